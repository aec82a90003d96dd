//! The behaviour of a real controller, and what follows from it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tests::{Binary, Stack};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

/// One agent that Jenkins has connected to.
async fn connected(stack: &mut Stack) -> String {
    stack.agent("connected", "node").await;
    let name = stack.nodes().remove(0);
    assert!(stack.jenkins().connect_ssh(&name));
    name
}

/// Asks Jenkins as our user.
fn ask(stack: &Stack, method: &str, path: &str) -> u16 {
    let basic = BASE64.encode(format!("ecs-agents:{}", tests::API_TOKEN));
    let request = Request::builder().method(method).uri(format!("/ci/{path}"));
    let request = request.header("authorization", format!("Basic {basic}")).body(Bytes::new()).unwrap();
    stack.jenkins().handle(request, Timestamp::now()).status().as_u16()
}

/// The number of requests to Jenkins whose path and query contain this.
fn count(stack: &Stack, part: &str) -> usize {
    stack.jenkins().exchanges().iter().filter(|exchange| exchange.target.contains(part)).count()
}

#[tokio::test]
async fn never_deletes_the_computer_under_a_pipelines_block() {
    let mut stack = Stack::start().await;
    let name = connected(&mut stack).await;
    assert!(stack.jenkins().start_pipeline_on(&name, "app/main #1"));
    let arn = stack.active_tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 0, Timestamp::now());
    stack.settle().await;
    assert!(stack.nodes().is_empty());
    // The last event and the completion come again, and two sweeps run.
    let last = stack.history.last().unwrap().clone();
    stack.invoke(Binary::TaskState, last).await.unwrap();
    stack.complete(json!({"agent": name, "taskArn": arn}));
    stack.settle().await;
    for minutes in [0, 2] {
        stack.sweep_at(Timestamp::now() + SignedDuration::from_mins(minutes)).await.unwrap();
    }
    assert_eq!(stack.jenkins().hung_builds(), Vec::<String>::new());
    assert_eq!(count(&stack, "/doDelete"), 1);
}

#[tokio::test]
async fn deletes_a_computer_that_jenkins_has_forgotten() {
    let mut stack = Stack::start().await;
    let name = connected(&mut stack).await;
    stack.jenkins().lose_node(&name, Timestamp::now());
    let arn = stack.active_tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 0, Timestamp::now());
    stack.sweep().await;
    assert_eq!(ask(&stack, "GET", &format!("computer/{name}/api/json")), 404);
}

#[tokio::test]
async fn lets_in_a_live_node_that_two_toggles_left_offline() {
    let mut stack = Stack::start().await;
    let name = connected(&mut stack).await;
    ask(&stack, "POST", &format!("computer/{name}/toggleOffline"));
    assert!(stack.jenkins().node(&name).unwrap().is_offline());
    stack.sweep().await;
    assert!(!stack.jenkins().node(&name).unwrap().is_offline());
    // Offline messages that people wrote are left alone.
    ask(&stack, "POST", &format!("computer/{name}/changeOfflineCause?offlineMessage=a+look"));
    stack.sweep().await;
    assert!(stack.jenkins().node(&name).unwrap().is_offline());
}

#[tokio::test]
async fn takes_a_node_offline_without_toggling() {
    let mut stack = Stack::start().await;
    let name = connected(&mut stack).await;
    stack.complete(json!({"agent": name}));
    stack.settle().await;
    assert!(stack.nodes().is_empty());
    assert_eq!((count(&stack, "changeOfflineCause"), count(&stack, "toggleOffline")), (1, 0));
}

#[tokio::test]
async fn an_ssh_node_without_its_launcher_is_no_agent() {
    let mut stack = Stack::start().await;
    stack.jenkins().remove_plugin("ssh-slaves");
    let url = stack.webhook();
    stack.ask(json!({"requestId": "plugin", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    assert_eq!(stack.received(&url), Vec::<String>::new());
    assert!(stack.nodes().is_empty(), "it could never connect");
    assert!(stack.output().contains("install the plugin ssh-slaves"), "{}", stack.output());
}

#[tokio::test]
async fn says_why_jenkins_refuses_a_node_in_its_own_words() {
    let mut stack = Stack::start().await;
    let page = "<!DOCTYPE html><html><head><title>Jenkins - Jenkins</title></head><body><div><h1>Error</h1>\
                <p>‘ecs’ is not allowed here<!--hudson.model.Failure--></div></body></html>";
    let refused = || Response::builder().status(400).header("x-jenkins", "2.579").body(page.into()).unwrap();
    stack.jenkins().script("computer/createItem", [refused()]);
    stack.jenkins().script("computer/doCreateItem", [refused()]);
    let url = stack.webhook();
    stack.ask(json!({"requestId": "words", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    let failed = stack.notices(Some(&url)).remove(0).body["failure"]["message"].to_string();
    assert!(failed.contains("‘ecs’ is not allowed here") && !failed.contains("Jenkins - Jenkins"), "{failed}");
}

#[tokio::test]
async fn a_creation_that_outlasts_its_time_limit_has_taken_effect() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.jenkins().delay("computer/createItem", Duration::from_secs(6));
    stack.ask(json!({"requestId": "slow", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    for _ in 0..2 {
        stack.unhide("undelivered");
        stack.settle().await;
    }
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.nodes().len(), 1);
    assert_eq!(stack.active_tasks().len(), 1);
}

#[tokio::test]
async fn a_webhooks_answer_is_read_no_further_than_it_is_of_use() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    let endless = Response::builder().status(200).body(vec![b'x'; 40 * 1024 * 1024].into()).unwrap();
    let path = url.strip_prefix(stack.jenkins_root()).unwrap().to_owned();
    stack.jenkins().script(&path, [endless]);
    stack.ask(json!({"requestId": "endless", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    assert_eq!(count(&stack, &path), 1, "delivered, whatever else is said");
    assert!(stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_its_status_is_an_answer() {
    let mut stack = Stack::with(|config| {
        config["jenkins"]["registerNodes"] = false.into();
        config["clouds"][0]["templates"].as_array_mut().unwrap().pop();
    })
    .await;
    let url = stack.webhook();
    let address = stack.jenkins_root().trim_start_matches("http://").trim_end_matches("/ci/").to_owned();
    stack.jenkins_goes_down();
    let listener = broken_jenkins(&address).await;
    let (heard, mut posts) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = tokio::io::BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            heard.send(line).unwrap();
            // The rest of the request stays unread until the answer is out.
            stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    stack.ask(json!({"requestId": "half", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    let mut heard = Vec::new();
    while let Ok(line) = posts.try_recv() {
        heard.push(line);
    }
    let path = url.rsplit_once("/ci/").unwrap().1;
    assert_eq!(heard.iter().filter(|line| line.contains(path)).count(), 1, "{heard:?}");
    assert!(stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn no_agent_is_late_while_a_proxy_answers_for_jenkins() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    let address = stack.jenkins_root().trim_start_matches("http://").trim_end_matches("/ci/").to_owned();
    stack.jenkins_goes_down();
    let listener = broken_jenkins(&address).await;
    let proxy = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 64 * 1024]).await;
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    });
    stack.ask(json!({"requestId": "early", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    // Past containerStartTimeout.
    stack.sweep_at(Timestamp::now() + Duration::from_secs(1200)).await.unwrap();
    assert_eq!(stack.active_tasks().len(), 1);
    proxy.abort();
    stack.jenkins_comes_back().await;
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

/// The old listener ends when its task does.
async fn broken_jenkins(address: &str) -> tokio::net::TcpListener {
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test]
async fn a_root_url_without_its_last_slash_serves_as_it_is_written() {
    let mut stack = Stack::with(|config| {
        let url = config["jenkins"]["url"].as_str().unwrap().trim_end_matches('/').to_owned();
        config["jenkins"]["url"] = url.into();
    })
    .await;
    let written = stack.jenkins_root().trim_end_matches('/').to_owned();
    let url = stack.agent("slash", "dial").await;
    assert_eq!((stack.received(&url), stack.nodes().len()), (vec!["agent.ready".into()], 1));
    let task = stack.active_tasks().remove(0);
    assert_eq!(task.tags["jenkins-ecs-agents:controller"], written);
    for (number, path) in ["-evil/x", "x", "/../x", "@evil.example/x"].iter().enumerate() {
        stack.ask(
            json!({"requestId": format!("evil-{number}"), "label": "node", "webhookUrl": format!("{written}{path}")}),
        );
    }
    stack.settle().await;
    assert_eq!((stack.rejected().len(), stack.tasks().len()), (4, 1));
    stack.sweep().await;
    assert_eq!(stack.active_tasks().len(), 1, "it is ours, and not overdue");
    stack.complete(json!({"taskArn": task.arn}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty() && stack.nodes().is_empty());
}
