//! The logs as an operator reads them: whose each line is, and what became of each build.

use std::collections::{BTreeMap, BTreeSet};

use local::aws::Fault;
use local::aws::ecs::Behaviour;
use serde_json::{Value, json};
use tests::{Binary, Stack};

const IDS: [&str; 3] = ["request.id", "agent.name", "task.arn"];

/// The lines of all functions, as they were written.
fn lines(stack: &Stack) -> Vec<Value> {
    let mut lines: Vec<Value> = stack.output().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by(|a, b| text(a, "timestamp").cmp(text(b, "timestamp")));
    lines
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// A build requests an agent. Returns its webhook's URL.
async fn ask(stack: &mut Stack, id: &str, label: &str, number: u32) -> String {
    let url = stack.webhook();
    let build = json!({"job": "app/main", "number": number});
    stack.ask(json!({"requestId": id, "label": label, "webhookUrl": url, "build": build}));
    stack.settle().await;
    url
}

/// Two builds that end, one by its task and one by its request; one whose image is missing; one that no template
/// serves. Returns the webhooks' URLs by request.
async fn run(stack: &mut Stack) -> BTreeMap<&'static str, String> {
    let mut urls = BTreeMap::new();
    urls.insert("ssh", ask(stack, "ssh", "maven", 1).await);
    let task = stack.tasks().remove(0);
    stack.complete(json!({"taskArn": task.arn, "agent": task.started_by}));
    stack.settle().await;
    urls.insert("inbound", ask(stack, "inbound", "dial", 2).await);
    stack.complete(json!({"requestId": "inbound", "build": {"job": "app/main", "number": 2}}));
    stack.settle().await;
    stack.aws().ecs.behave("jenkins-node", Behaviour::ImageMissing);
    urls.insert("no-image", ask(stack, "no-image", "node", 3).await);
    urls.insert("nobody", ask(stack, "nobody", "solaris", 4).await);
    stack.sweep().await;
    urls
}

#[tokio::test]
async fn every_line_of_an_agent_has_its_ids_and_the_launch_has_all() {
    let mut stack = Stack::start().await;
    run(&mut stack).await;
    let lines = lines(&stack);
    let launches: Vec<_> = lines.iter().filter(|line| line["message"] == "task started").collect();
    assert_eq!(launches.len(), 3, "{lines:#?}");
    for launch in launches {
        for field in IDS.into_iter().chain(["aws.request_id", "message.id", "build.job"]) {
            assert!(!text(launch, field).is_empty(), "{field}: {launch}");
        }
        assert!(launch["build.number"].is_u64(), "{launch}");
    }
    for line in &lines {
        // Except the fields for CloudWatch's metrics.
        let mut fields = line.as_object().unwrap().iter();
        assert!(fields.all(|(name, value)| name == "_aws" || !value.is_object()), "not flat: {line}");
        assert!(["timestamp", "level", "message"].iter().all(|field| !text(line, field).is_empty()), "{line}");
        let of_record = line.get("message.id").is_some() || line.get("notice.id").is_some();
        assert!(!of_record || IDS.iter().any(|id| line.get(*id).is_some()), "nobody's: {line}");
    }
    // After its launch, every line about a task has its request and its agent as well.
    for line in lines.iter().filter(|line| line.get("task.arn").is_some() && line["level"] != "DEBUG") {
        assert!(IDS.iter().all(|id| line.get(*id).is_some()), "{line}");
    }
}

#[tokio::test]
async fn the_logs_show_each_build_as_jenkins_and_ecs_saw_it() {
    let mut stack = Stack::start().await;
    let urls = run(&mut stack).await;
    let lines = lines(&stack);
    for (request, url) in urls {
        let story = || lines.iter().filter(|line| line["request.id"] == request);
        let received = story().filter(|line| line["message"] == "notice delivered" && line["notice.to"] == "request");
        let received: Vec<_> = received
            .map(|line| format!("{} {}", text(line, "notice.type"), text(line, "code")).trim_end().to_owned())
            .collect();
        assert_eq!(received, stack.received(&url), "{request}");
        let stopped: BTreeSet<_> =
            story().filter(|line| line["message"] == "task stopped").map(|line| text(line, "task.arn")).collect();
        let tasks = stack.tasks();
        let ended = |reason: &Option<String>| reason.as_deref().is_some_and(|reason| reason.contains("COMPLETED"));
        let of_request = tasks.iter().filter(|task| {
            story().any(|line| line["agent.name"] == task.started_by.as_str()) && ended(&task.stopped_reason)
        });
        assert_eq!(stopped, of_request.map(|task| task.arn.as_str()).collect(), "{request}");
    }
}

#[tokio::test]
async fn a_fault_is_logged_once_with_its_record() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "RunTask", Some(Fault::server()));
    ask(&mut stack, "unlucky", "node", 1).await;
    stack.aws().faults.always("ecs", "RunTask", None);
    stack.unhide("requests");
    stack.jenkins_goes_down();
    stack.settle().await;
    stack.poll(Binary::TaskState, "undelivered").await;
    let mut seen = BTreeSet::new();
    let lines = lines(&stack);
    let faults = lines.iter().filter(|line| matches!(text(line, "level"), "WARN" | "ERROR"));
    for line in faults {
        assert_eq!(line["request.id"], "unlucky", "{line}");
        let key = ["aws.request_id", "message.id", "error"].map(|field| text(line, field));
        assert!(seen.insert(key), "logged twice: {line}");
    }
    assert!(seen.len() >= 2, "a fault of ECS and one of Jenkins: {lines:#?}");
}
