//! Hostile and accidental input.

use std::time::Duration;

use jiff::Timestamp;
use local::aws::Fault;
use serde_json::{Value, json};
use tests::{Binary, Stack};

/// The variable with the record of a request.
fn record(input: &Value) -> (String, String) {
    let pairs = input["overrides"]["containerOverrides"][0]["environment"].as_array().unwrap();
    let found =
        pairs.iter().find(|pair| pair["value"].as_str().is_some_and(|value| value.contains("requestId"))).unwrap();
    (found["name"].as_str().unwrap().to_owned(), found["value"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn no_message_breaks_the_function() {
    let mut stack = Stack::start().await;
    let deep_json = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = |open: &str, close: &str| {
        let label = format!("{}maven{}", open.repeat(20_000), close.repeat(20_000));
        json!({"version": 1, "label": label}).to_string()
    };
    let bodies = [
        deep_json.clone(),
        format!(r#"{{"version": 1, "label": "maven", "build": {deep_json}}}"#),
        deep("(", ")"),
        deep("!", ""),
        deep("!(", ")"),
        deep("maven->(", ")"),
        r#"{"version": 1, "label": "maven", "label": "node"}"#.into(),
        r#"{"version": 1e400, "label": "maven"}"#.into(),
        r#"{"version": 1, "label": "maven", "count": -1}"#.into(),
        r#"{"version": 1, "label": "maven", "count": 99999999999999999999}"#.into(),
        r#"{"version": 1, "label": "", "requestId": "x"}"#.into(),
        r#"{"version": 1, "label": "\u0000", "requestId": "x"}"#.into(),
        r#"{"version": 1, "label": "maven", "expiresAt": "+999999-01-01T00:00:00Z"}"#.into(),
        r#"{"version": 1, "label": "maven", "expiresAt": "tomorrow"}"#.into(),
        r#"{"version": 1, "label": "maven", "webhookUrl": {"a": 1}}"#.into(),
        r#"{"Type": "Notification", "Message": 7}"#.into(),
        r#"{"Type": "Notification", "Message": "{\"Type\": \"Notification\", \"Message\": \"x\"}"}"#.into(),
        "null".into(),
        "[1, null, \"maven\", [], null, null, null, {}]".into(),
        "[1, \"r\", null, null, null, null]".into(),
        "\u{feff}{}".into(),
    ];
    for body in &bodies {
        stack.send("requests", body);
        assert_eq!(stack.poll(Binary::Request, "requests").await, 1, "{}", &body[..body.len().min(60)]);
    }
    assert!(stack.tasks().is_empty(), "{:?}", stack.inputs("RunTask"));
    assert_eq!(stack.rejected().len(), bodies.len());
    for body in &bodies {
        stack.send("completions", body);
        assert_eq!(stack.poll(Binary::Teardown, "completions").await, 1);
    }
    assert_eq!(stack.rejected().len(), 2 * bodies.len());
    assert!(stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn no_invocation_breaks_a_function() {
    let mut stack = Stack::start().await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let events: Vec<Vec<u8>> = vec![
        b"not JSON".to_vec(),
        b"".to_vec(),
        b"{\"Records\": [".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"{\"detail-type\": \"\xff\"}".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"a text\"".to_vec(),
        b"7".to_vec(),
        b"{}".to_vec(),
        b"{\"Records\": null}".to_vec(),
        b"{\"Records\": {}}".to_vec(),
        b"{\"Records\": [7, null, \"x\"]}".to_vec(),
        b"{\"detail-type\": 7, \"detail\": []}".to_vec(),
        b"{\"detail-type\": \"ECS Task State Change\"}".to_vec(),
        b"{\"detail-type\": \"ECS Task State Change\", \"detail\": {\"taskArn\": {}, \"version\": \"x\"}}".to_vec(),
        b"{\"detail-type\": \"ECS Container Instance State Change\", \"detail\": {\"remainingResources\": 7}}".to_vec(),
        format!("{{\"check\": {deep}}}").into_bytes(),
        format!("{{\"Records\": {deep}}}").into_bytes(),
        format!("{{\"detail-type\": \"ECS Task State Change\", \"detail\": {deep}}}").into_bytes(),
    ];
    for binary in [Binary::Request, Binary::TaskState, Binary::Teardown] {
        let process = stack.function(binary).await.id();
        for event in &events {
            let text = String::from_utf8_lossy(&event[..event.len().min(80)]).into_owned();
            let function = stack.function(binary).await;
            let answer = function.invoke_with(event.clone().into(), Duration::from_secs(10)).await;
            assert!(answer.is_ok(), "{binary:?} ended at {text}: {answer:?}");
        }
        assert_eq!(stack.function(binary).await.id(), process, "{binary:?}");
    }
    assert!(stack.calls().iter().all(|call| !call.contains(":Stop") && !call.contains(":Run")), "{:?}", stack.calls());
    stack.agent("after-all", "node").await;
    stack.complete(json!({"requestId": "after-all"}));
    stack.settle().await;
    let received = stack.all_received();
    assert!(received.ends_with(&["agent.ready".into(), "agent.stopped".into()]), "{received:?}");
}

#[tokio::test]
async fn a_record_that_is_no_message_disturbs_no_neighbour() {
    for (binary, queue) in
        [(Binary::Request, "requests"), (Binary::Teardown, "completions"), (Binary::TaskState, "undelivered")]
    {
        let mut stack = Stack::start().await;
        stack.agent("before", "maven").await;
        let good = match binary {
            Binary::Request => json!({"version": 1, "requestId": "good", "label": "node"}),
            Binary::Teardown => json!({"version": 1, "requestId": "before"}),
            Binary::TaskState => json!({"since": Timestamp::now(), "node": {"name": stack.nodes()[0]}}),
        };
        let record = |id: &str, changes: Value| {
            let mut record = json!({"messageId": id, "receiptHandle": format!("receipt-{id}"), "body": "{}",
                "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1764012345678"},
                "messageAttributes": {}, "md5OfBody": "x", "eventSource": "aws:sqs",
                "eventSourceARN": format!("arn:aws:sqs:eu-west-1:123456789012:{queue}"), "awsRegion": "eu-west-1"});
            record.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            record
        };
        let records = json!([
            record("body-null", json!({"body": null})),
            record("body-object", json!({"body": {"version": 1}})),
            record("attributes-null", json!({"attributes": null, "messageAttributes": null})),
            record("attributes-list", json!({"attributes": [], "messageAttributes": []})),
            record(
                "count-number",
                json!({"attributes": {"ApproximateReceiveCount": 1, "SentTimestamp": 1764012345678_u64}})
            ),
            record(
                "count-huge",
                json!({"attributes": {"ApproximateReceiveCount": "99999999999999999999", "SentTimestamp": "-1"}})
            ),
            record("wait-number", json!({"messageAttributes": {"wait": 7}})),
            record(
                "wait-binary",
                json!({"messageAttributes": {"wait": {"dataType": "Binary", "binaryValue": "AAAA"}}})
            ),
            record(
                "wait-rubbish",
                json!({"messageAttributes": {"wait": {"dataType": "String", "stringValue": "{\"agents\": [99]}"}}})
            ),
            record("good", json!({"body": good.to_string()})),
        ]);
        let answer = stack.invoke(binary, json!({"Records": records})).await;
        let answer = answer.unwrap_or_else(|error| panic!("{binary:?}: the batch failed: {error}"));
        let failed = answer["batchItemFailures"].to_string();
        assert!(!failed.contains("good"), "{binary:?}: {failed}");
        assert_eq!(
            stack.rejected().len() + answer["batchItemFailures"].as_array().unwrap().len(),
            9,
            "{binary:?}: {failed}"
        );
        match binary {
            Binary::Request => assert_eq!(stack.active_tasks().len(), 2),
            Binary::Teardown => assert!(stack.active_tasks().is_empty()),
            Binary::TaskState => assert!(stack.nodes().is_empty()),
        }
    }
}

#[tokio::test]
async fn a_request_cannot_forge_variables_of_the_launch() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["templates"][2]["allowedOverrides"] = json!(["environment"]);
    })
    .await;
    stack.agent("honest", "maven").await;
    let (variable, value) = record(&stack.inputs("RunTask")[0]);
    let trap = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut forged: Value = serde_json::from_str(&value).unwrap();
    forged["webhookUrl"] = format!("http://{}/x", trap.local_addr().unwrap()).into();
    let url = stack.webhook();
    let environment = json!({variable.as_str(): forged.to_string()});
    stack.ask(
        json!({"requestId": "forged", "label": "maven", "webhookUrl": url, "overrides": {"environment": environment}}),
    );
    for name in ["JENKINS_URL", "JENKINS_AGENT_NAME", "JENKINS_SECRET"] {
        let overrides = json!({"environment": {name: "https://evil.example.com/"}});
        stack.ask(json!({"requestId": format!("forged-{name}"), "label": "dial", "overrides": overrides}));
    }
    stack.settle().await;
    assert!(tokio::time::timeout(Duration::from_millis(200), trap.accept()).await.is_err(), "the trap was called");
    for input in stack.inputs("RunTask").iter().skip(1) {
        assert!(!input.to_string().contains("evil.example.com"), "{input}");
        assert_eq!(record(input).0, variable);
        assert!(!record(input).1.contains("/x\""), "{input}");
    }
}

#[tokio::test]
async fn a_task_that_carries_a_foreign_webhook_does_not_make_us_call_it() {
    let mut stack = Stack::start().await;
    stack.agent("template", "node").await;
    let trap = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut input = stack.inputs("RunTask").remove(0);
    let own = stack.notices(None)[0].url.clone();
    let own = if record(&input).1.contains(&own) {
        own
    } else {
        let record: Value = serde_json::from_str(&record(&input).1).unwrap();
        record.to_string().split('"').find(|part| part.contains("webhook-step")).unwrap().to_owned()
    };
    let text = input["overrides"].to_string().replace(&own, &format!("http://{}/x", trap.local_addr().unwrap()));
    input["overrides"] = serde_json::from_str(&text).unwrap();
    input["startedBy"] = "ecs-node-0123456789ab".into();
    input["clientToken"] = "by-hand".into();
    stack.aws().ecs.call("RunTask", &input, Timestamp::now()).unwrap();
    stack.settle().await;
    for _ in 0..2 {
        stack.sweep().await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), trap.accept()).await.is_err(), "the trap was called");
}

#[tokio::test]
async fn rejects_malformed_messages_in_our_own_queues() {
    let mut stack = Stack::start().await;
    stack.send("undelivered", "rubbish");
    stack.send("undelivered", r#"{"some": "thing"}"#);
    stack.send("waiting", "rubbish");
    stack.settle().await;
    for _ in 0..3 {
        stack.sweep().await;
        stack.unhide("waiting");
        stack.unhide("requests");
        stack.unhide("undelivered");
        stack.settle().await;
    }
    for queue in ["undelivered", "waiting", "requests"] {
        assert_eq!(stack.bodies(queue), Vec::<String>::new(), "{queue}");
    }
    assert_eq!(stack.rejected().len(), 3, "{:?}", stack.rejected());
}

#[tokio::test]
async fn other_events_are_ignored_with_success() {
    let mut stack = Stack::start().await;
    for event in [
        json!({"source": "aws.ecs", "detail-type": "ECS Deployment State Change", "detail": {"eventType": "INFO"}}),
        json!({"source": "aws.ecs", "detail-type": "ECS Task State Change", "detail": {}}),
        json!({"source": "aws.ecs", "detail-type": "ECS Task State Change", "detail": {
            "startedBy": "ecs-node-0123456789ab", "lastStatus": "A_STATUS_OF_THE_FUTURE", "desiredStatus": "RUNNING",
            "clusterArn": "arn:aws:ecs:eu-west-1:123456789012:cluster/jenkins", "version": 3, "surprise": {"a": []},
            "taskArn": "arn:aws:ecs:eu-west-1:123456789012:task/jenkins/0123456789abcdef0123456789abcdef"}}),
        json!({"source": "aws.ecs", "detail-type": "ECS Container Instance State Change", "detail": {}}),
    ] {
        let text = event.to_string();
        let answer = stack.invoke(Binary::TaskState, event).await;
        assert!(answer.is_ok(), "{answer:?} to {text}");
    }
    assert!(stack.calls().iter().all(|call| !call.contains(":Stop") && !call.contains(":Run")), "{:?}", stack.calls());
}

#[tokio::test]
async fn under_the_real_rate_of_run_task_all_agents_come_and_none_twice() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().run_task_rate = Some((20, 20));
    for number in 0..12 {
        stack.ask(json!({"requestId": format!("rush-{number}"), "label": "node", "count": 5}));
    }
    for _ in 0..10 {
        stack.unhide("requests");
        while stack.poll(Binary::Request, "requests").await > 0 {}
        if stack.bodies("requests").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(stack.bodies("requests").is_empty());
    let mut names: Vec<_> = stack.tasks().into_iter().map(|task| task.started_by).collect();
    assert_eq!(names.len(), 60);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 60);
    assert!(stack.rejected().is_empty() && stack.bodies("requests-dead-letters").is_empty());
}

#[tokio::test]
async fn an_unwanted_agent_is_stopped_in_the_end_though_stop_task_fails() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    let path = url.strip_prefix(stack.jenkins_root()).unwrap().to_owned();
    let gone = || http::Response::builder().status(410).body(bytes::Bytes::new()).unwrap();
    stack.jenkins().script(&path, (0..10).map(|_| gone()));
    stack.aws().faults.always("ecs", "StopTask", Some(Fault::server()));
    stack.ask(json!({"requestId": "unwanted", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 1);
    stack.aws().faults.always("ecs", "StopTask", None);
    for _ in 0..3 {
        stack.unhide("undelivered");
        stack.settle().await;
    }
    assert!(stack.active_tasks().is_empty());
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn a_completion_stops_running_agents_and_withdraws_waiting_ones() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack.ask(json!({"requestId": "half", "label": "maven", "count": 5}));
    stack.settle().await;
    assert_eq!((stack.active_tasks().len(), !stack.bodies("waiting").is_empty()), (3, true));
    stack.unhide("waiting");
    stack.complete(json!({"requestId": "half"}));
    stack.settle().await;
    for _ in 0..4 {
        for queue in ["waiting", "requests", "completions"] {
            stack.unhide(queue);
        }
        stack.sweep().await;
    }
    assert!(stack.active_tasks().is_empty(), "{:?}", stack.active_tasks().len());
    assert!(stack.bodies("waiting").is_empty());
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn a_message_too_long_to_copy_with_its_reason_is_kept_in_part() {
    let mut stack = Stack::start().await;
    stack.send("requests", &"x".repeat(262_143));
    for queue in stack.aws().sqs.queues.values_mut() {
        queue.maximum_message_size = 262_144;
    }
    stack.settle().await;
    let rejected = stack.rejected();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].0.len() > 200_000 && rejected[0].1.contains("INVALID_REQUEST"), "{}", rejected[0].1);
    assert!(stack.bodies("requests").is_empty());
    assert_eq!(stack.all_received(), ["agent.failed INVALID_REQUEST"]);
}

/// Anyone who may send to the requests queue can write the attribute with a request's wait.
#[tokio::test]
async fn a_forged_wait_breaks_nothing_and_has_an_end() {
    let times = ["-009999-01-02T01:59:59Z", "9999-12-30T22:00:00Z"];
    for (since, is_late) in [(times[0], true), (times[1], false)] {
        let mut stack = Stack::with(|config| config["clouds"][1]["instanceLaunchTimeout"] = "1s".into()).await;
        stack.aws().ecs.settings().fargate_has_capacity = false;
        let url = stack.webhook();
        stack.ask(json!({"requestId": "forged", "label": "node", "webhookUrl": url}));
        let wait = json!({"requestId": "another", "requestedAt": since, "since": since, "attempt": u32::MAX,
            "agents": [0, 0, 9], "cloud": "nowhere", "template": "nothing", "size": {"cpu": u32::MAX, "memory": u32::MAX},
            "gpus": u32::MAX, "waitsFor": "instance", "reason": "x"});
        let text = wait.to_string();
        stack.aws().sqs.queues.get_mut("requests").unwrap().messages[0].attributes.insert("wait".into(), text);
        stack.poll(Binary::Request, "requests").await;
        assert_eq!(stack.bodies("waiting").is_empty(), is_late);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        stack.unhide("waiting");
        stack.sweep().await;
        assert!(
            stack.received(&url).iter().all(|notice| notice == "agent.failed CAPACITY_TIMEOUT"),
            "{:?}",
            stack.received(&url)
        );
        assert!(!stack.received(&url).is_empty() && stack.tasks().is_empty(), "{since}");
        assert!(stack.bodies("requests").is_empty() && stack.bodies("waiting").is_empty(), "{since}");
    }
}

#[tokio::test]
async fn the_largest_numbers_are_only_numbers() {
    let mut stack = Stack::with(|config| {
        let template = &mut config["clouds"][0]["templates"][0];
        template.as_object_mut().unwrap().remove("limits");
    })
    .await;
    let most = json!({"cpu": u32::MAX, "memory": u32::MAX});
    for number in 0..3 {
        stack.ask(json!({"requestId": format!("most-{number}"), "label": "maven", "count": 10, "overrides": most}));
    }
    let url = stack.webhook();
    let build = json!({"job": "a", "number": u64::MAX});
    stack.ask(json!({"requestId": "late", "label": "node", "webhookUrl": url, "build": build,
        "expiresAt": "9999-12-30T22:00:00Z"}));
    stack.settle().await;
    assert_eq!((stack.received(&url), stack.active_tasks().len()), (vec!["agent.ready".into()], 1));
    let failed = stack.all_received().iter().filter(|notice| *notice == "agent.failed LAUNCH_FAILED").count();
    assert_eq!((failed, stack.bodies("waiting").len()), (30, 0));
    assert!(!stack.calls().iter().any(|call| call.starts_with("autoscaling:Set")), "{:?}", stack.calls());
}
