//! Requests: what is placed, what is refused, and who is notified (docs/messages.md).

use std::collections::BTreeMap;

use jiff::Timestamp;
use local::aws::ApiError;
use serde_json::{Value, json};
use tests::{ACCOUNT, Binary, CLUSTER, REGION, Stack, log_rules};

use crate::teardown::thirty_templates_in_five_clouds;

fn template_of(started_by: &str) -> &str {
    started_by.strip_prefix("ecs-").unwrap().rsplit_once('-').unwrap().0
}

fn request(id: &str, label: &str) -> String {
    json!({"version": 1, "requestId": id, "label": label}).to_string()
}

/// The environment that a RunTask gives the container.
fn environment(input: &Value) -> Vec<(&str, &str)> {
    let container = &input["overrides"]["containerOverrides"][0];
    let pairs = container["environment"].as_array().into_iter().flatten();
    pairs.map(|pair| (pair["name"].as_str().unwrap(), pair["value"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_request_that_can_be_placed_is_one_aws_call() {
    let mut stack = Stack::start().await;
    stack.send("requests", &request("jenkins-app-main-42", "linux && maven"));
    assert_eq!(stack.poll(Binary::Request, "requests").await, 1);
    assert_eq!(stack.calls(), ["ecs:RunTask"]);
    assert_eq!(stack.bodies("requests"), Vec::<String>::new(), "it is acknowledged");

    let input = stack.inputs("RunTask").remove(0);
    assert_eq!(input["cluster"], CLUSTER);
    assert_eq!(input["taskDefinition"], "jenkins-maven");
    assert_eq!(input["launchType"], "EC2");
    assert_eq!(input["count"].as_u64().unwrap_or(1), 1);
    assert!(input["clientToken"].as_str().is_some_and(|token| (1..=64).contains(&token.len())));
    assert!(input.get("networkConfiguration").is_none_or(Value::is_null));
    let name = input["startedBy"].as_str().unwrap();
    let digits = name.strip_prefix("ecs-maven-").unwrap();
    assert!(digits.len() == 12 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{name}");
    assert_eq!(input["overrides"]["containerOverrides"][0]["name"], "agent");
    let task = stack.tasks().remove(0);
    assert_eq!(task.tags.get("jenkins-ecs-agents:controller").map(String::as_str), Some(stack.jenkins_root()));
}

#[tokio::test]
async fn a_batch_is_one_call_for_each_agent_and_none_besides() {
    let mut stack = Stack::start().await;
    for number in 0..3 {
        stack.send("requests", &request(&format!("batch-{number}"), "maven"));
    }
    stack.ask(json!({"requestId": "two", "label": "node", "count": 2}));
    stack.poll(Binary::Request, "requests").await;
    assert_eq!(stack.calls(), ["ecs:RunTask"; 5]);
    assert_eq!(stack.active_tasks().len(), 5);
}

#[tokio::test]
async fn a_message_may_come_through_sns() {
    let mut stack = Stack::start().await;
    let envelope = json!({
        "Type": "Notification", "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:eu-west-1:123456789012:requests", "Message": request("by-sns", "maven"),
        "Timestamp": "2026-11-24T18:00:00.000Z", "SignatureVersion": "1", "Signature": "x", "SigningCertURL": "https://x",
        "UnsubscribeURL": "https://x", "MessageAttributes": {"a": {"Type": "String", "Value": "b"}},
    });
    stack.send("requests", &envelope.to_string());
    stack.send("requests", &json!({"Type": "Notification", "Message": request("by-hand", "maven")}).to_string());
    stack.settle().await;
    let mut received: Vec<_> = stack.all_notices().iter().map(|notice| notice.body["requestId"].clone()).collect();
    received.sort_by_key(Value::to_string);
    assert_eq!(received, ["by-hand", "by-sns"]);
}

#[tokio::test]
async fn the_same_request_gives_the_same_name_and_the_message_id_stands_for_a_missing_one() {
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut stack = Stack::start().await;
        stack.ask(json!({"requestId": "app/main:7.1-x_y", "label": "maven", "count": 3}));
        let id = stack.send("requests", r#"{"version": 1, "label": "node"}"#);
        stack.settle().await;
        let tasks = stack.tasks();
        names.push(
            tasks.iter().map(|task| task.started_by.clone()).filter(|name| name.contains("maven")).collect::<Vec<_>>(),
        );
        let unnamed = stack.all_notices().into_iter().find(|notice| notice.agent().contains("node")).unwrap();
        assert_eq!(unnamed.body["requestId"], id.as_str());
    }
    names.iter_mut().for_each(|names| names.sort());
    assert_eq!(names[0], names[1]);
    names[0].dedup();
    assert_eq!(names[0].len(), 3, "each agent of a request has its own");
}

#[tokio::test]
async fn labels_are_matched_as_jenkins_matches_them() {
    let mut stack = Stack::with(|config| {
        let template = |name: &str, labels: &[&str]| {
            json!({"name": name, "labels": labels, "taskDefinition": "jenkins-node", "container": "agent", "connect": "ssh",
                "ssh": {"credentialsId": "key"}, "launch": {"type": "fargate"}, "network": {"subnets": ["subnet-1"]}})
        };
        config["clouds"] = json!([{"name": "one", "region": REGION, "cluster": CLUSTER, "templates": [
            template("linux", &["linux", "x86"]),
            template("arm", &["linux", "arm64", "big-one"]),
            template("windows", &["windows", "x86", "C++"]),
        ]}]);
    })
    .await;
    let cases = [
        ("linux", Some("linux")),
        ("arm64", Some("arm")),
        ("\"C++\"", Some("windows")),
        ("!linux", Some("windows")),
        ("linux && !x86", Some("arm")),
        ("windows || arm64", Some("arm")),
        ("x86 -> windows", Some("arm")),
        ("windows <-> x86", Some("arm")),
        ("(linux || windows) && !(x86 && linux) && !arm64", Some("windows")),
        // && binds tighter than ||, ! tighter than &&; <-> looser than ->.
        ("windows || linux && arm64", Some("arm")),
        ("big-one", Some("arm")),
        ("x86->windows", Some("arm")),
        ("windows -> x86 <-> arm64", Some("arm")),
        ("mac", None),
        ("linux && windows", None),
        ("! (linux || windows)", None),
    ];
    for (number, (label, _)) in cases.iter().enumerate() {
        stack.send("requests", &request(&format!("label-{number}"), label));
    }
    stack.settle().await;
    let notices = stack.all_notices();
    for (number, (label, expected)) in cases.iter().enumerate() {
        let mut of_request = notices.iter().filter(|notice| notice.body["requestId"] == format!("label-{number}"));
        let notice = of_request.next().unwrap_or_else(|| panic!("no notice about {label}"));
        match expected {
            Some(template) => assert_eq!(template_of(notice.agent()), *template, "{label}"),
            None => assert_eq!(notice.code(), "NO_TEMPLATE", "{label}"),
        }
    }
}

#[tokio::test]
async fn the_first_template_in_the_order_of_the_file_serves() {
    let mut stack = Stack::start().await;
    stack.agent("first", "linux").await;
    assert_eq!(template_of(&stack.tasks()[0].started_by), "maven");
}

#[tokio::test]
async fn nine_malformed_messages_disturb_no_neighbour() {
    let mut stack = Stack::start().await;
    let bad = [
        "not JSON".to_owned(),
        r#"["an", "array"]"#.into(),
        r#"{"version": 2, "label": "maven"}"#.into(),
        r#"{"label": "maven"}"#.into(),
        r#"{"version": 1}"#.into(),
        r#"{"version": 1, "label": "maven", "lable": "maven"}"#.into(),
        r#"{"version": 1, "label": "maven &&"}"#.into(),
        r#"{"version": 1, "label": "maven", "count": 11}"#.into(),
        r#"{"version": 1, "label": "maven", "requestId": "with a blank"}"#.into(),
    ];
    stack.send("requests", &request("good-1", "maven"));
    bad.iter().take(8).for_each(|body| drop(stack.send("requests", body)));
    stack.send("requests", &request("good-2", "node"));
    // A batch has at most ten; the ninth is in the next one.
    stack.send("requests", &bad[8]);
    for _ in 0..2 {
        let event = {
            let mut aws = stack.aws();
            let batch = aws.sqs.receive("requests", 10, None, Timestamp::now());
            let event = aws.sqs.event("requests", &batch);
            aws.sqs.acknowledge("requests", &batch, &json!({}));
            event
        };
        let answer = stack.invoke(Binary::Request, event).await.unwrap();
        assert_eq!(answer["batchItemFailures"].as_array().map_or(0, Vec::len), 0, "{answer}");
    }
    assert_eq!(stack.active_tasks().len(), 2);
    let rejected = stack.rejected();
    // Those of one batch are rejected concurrently, in any order.
    let bodies: std::collections::BTreeSet<_> = rejected.iter().map(|(body, _)| body.clone()).collect();
    assert_eq!((rejected.len(), bodies), (9, bad.into()));
    for (body, reason) in &rejected {
        assert!(!reason.is_empty(), "{body}");
    }
}

#[tokio::test]
async fn notifies_allowed_webhooks_why_a_request_is_refused() {
    let cases = [
        (json!({"label": "mac"}), "NO_TEMPLATE"),
        (json!({"label": "maven", "version": 7}), "INVALID_REQUEST"),
        (json!({"label": "maven", "unknown": 1}), "INVALID_REQUEST"),
        (json!({"label": "maven ||"}), "INVALID_REQUEST"),
        (json!({"label": "maven", "count": 0}), "INVALID_REQUEST"),
        (json!({"label": "maven", "overrides": {"command": ["sh"]}}), "OVERRIDE_REFUSED"),
        (
            json!({"label": "maven", "overrides": {"taskRole": "arn:aws:iam::123456789012:role/admin"}}),
            "OVERRIDE_REFUSED",
        ),
        (json!({"label": "maven", "overrides": {"cpu": 4097}}), "OVERRIDE_REFUSED"),
        (json!({"label": "maven", "overrides": {"memory": 16385}}), "OVERRIDE_REFUSED"),
        (json!({"label": "node", "overrides": {"environment": {"A": "b"}}}), "OVERRIDE_REFUSED"),
    ];
    let mut stack = Stack::start().await;
    let mut refused = Vec::new();
    for (number, (case, code)) in cases.iter().enumerate() {
        let url = stack.webhook();
        let mut body = json!({"version": 1, "requestId": format!("refused-{number}"), "webhookUrl": url});
        body.as_object_mut().unwrap().extend(case.as_object().unwrap().clone());
        stack.send("requests", &body.to_string());
        refused.push((url, code, body));
    }
    stack.settle().await;
    for (url, code, body) in &refused {
        assert_eq!(stack.received(url), [format!("agent.failed {code}")], "{body}");
        let notice = stack.notices(Some(url)).remove(0);
        assert_eq!(notice.body["requestId"], body["requestId"]);
        assert!(
            notice.body["failure"]["message"].as_str().is_some_and(|message| message.len() > 10),
            "{:?}",
            notice.body
        );
    }
    assert_eq!(stack.calls(), Vec::<String>::from_iter(vec!["sqs:SendMessage".to_owned(); cases.len()]));
    assert_eq!(stack.rejected().len(), cases.len());
    assert_eq!(stack.all_received().len(), cases.len(), "the configured webhook hears of all");
}

#[tokio::test]
async fn names_the_templates_where_none_serves() {
    let mut stack = Stack::start().await;
    let url = stack.agent("no-template", "maven && windows").await;
    let message = stack.notices(Some(&url))[0].body["failure"]["message"].to_string();
    assert!(message.contains("maven && windows") && message.contains("node"), "{message}");
}

#[tokio::test]
async fn a_webhook_of_another_origin_is_never_called_and_starts_nothing() {
    let mut stack = Stack::start().await;
    let trap = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let trap_port = trap.local_addr().unwrap().port();
    let root = stack.jenkins_root().to_owned();
    let host_and_port = root.trim_start_matches("http://").trim_end_matches("/ci/").to_owned();
    let port = host_and_port.rsplit(':').next().unwrap().to_owned();
    let urls = [
        format!("http://127.0.0.1:{trap_port}/ci/webhook-step/x"),
        format!("http://localhost:{port}/ci/webhook-step/x"),
        format!("https://{host_and_port}/ci/webhook-step/x"),
        format!("http://user:password@{host_and_port}/ci/webhook-step/x"),
        format!("http://{host_and_port}@127.0.0.1:{trap_port}/ci/x"),
        format!("http://{host_and_port}/other/webhook-step/x"),
        format!("http://{host_and_port}/ci/../admin"),
        format!("http://{host_and_port}/ci/%2e%2e/admin"),
        format!("http://{host_and_port}/ci/..%2fadmin"),
        format!("http://{host_and_port}/cix/y"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "file:///etc/passwd".into(),
        "//evil.example/x".into(),
        "not a URL".into(),
    ];
    for (number, url) in urls.iter().enumerate() {
        stack.ask(json!({"requestId": format!("foreign-{number}"), "label": "maven", "webhookUrl": url}));
    }
    let good = stack.webhook();
    let mixed = json!([good, format!("http://127.0.0.1:{trap_port}/x")]);
    stack.ask(json!({"requestId": "mixed", "label": "maven", "count": 2, "webhookUrl": mixed}));
    stack.settle().await;
    let started: Vec<_> = stack.all_notices().into_iter().filter(|notice| notice.kind() == "agent.ready").collect();
    assert_eq!(stack.count("ecs:RunTask"), 0, "{started:#?}");
    assert_eq!(stack.rejected().len(), urls.len() + 1);
    let accepted = tokio::time::timeout(std::time::Duration::from_millis(200), trap.accept()).await;
    assert!(accepted.is_err(), "the trap was called");
    let configured = stack.all_received().len();
    for exchange in stack.jenkins().exchanges() {
        let known = exchange.target.starts_with("/ci/ecs-agents/notices")
            || exchange.target == good.trim_start_matches(&format!("http://{host_and_port}"));
        assert!(known, "{exchange:?}");
    }
    assert!(stack.all_received().iter().all(|notice| notice == "agent.failed INVALID_REQUEST"));
    assert!(configured > urls.len());
}

#[tokio::test]
async fn overrides_reach_the_task_and_the_named_container() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["templates"][0]["environment"] = json!({"MAVEN_OPTS": "-Xmx1g", "A": "template"});
        config["clouds"][0]["templates"][0]["tags"] = json!({"team": "build"});
    })
    .await;
    let overrides = json!({"cpu": 1536, "memory": 3072, "environment": {"A": "b", "C": "d"}});
    let url = stack.webhook();
    stack.ask(json!({"requestId": "overridden", "label": "maven", "webhookUrl": url, "overrides": overrides}));
    stack.settle().await;
    let input = stack.inputs("RunTask").remove(0);
    assert_eq!((&input["overrides"]["cpu"], &input["overrides"]["memory"]), (&json!("1536"), &json!("3072")));
    let environment = environment(&input);
    for pair in [("MAVEN_OPTS", "-Xmx1g"), ("A", "b"), ("C", "d")] {
        assert!(environment.contains(&pair), "{environment:?}");
    }
    assert!(!environment.contains(&("A", "template")));
    assert_eq!(stack.tasks()[0].tags.get("team").map(String::as_str), Some("build"));
}

#[tokio::test]
async fn every_launch_type_becomes_a_valid_run_task() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["templates"] = json!([
            {"name": "fargate", "labels": ["fargate"], "taskDefinition": "jenkins-node:1", "container": "agent",
             "connect": "ssh", "ssh": {"credentialsId": "key", "address": "public"}, "launch": {"type": "fargate"},
             "platformVersion": "1.4.0", "enableExecuteCommand": true,
             "network": {"subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-1"], "assignPublicIp": true}},
            {"name": "providers", "labels": ["providers"], "container": "agent",
             "taskDefinition": format!("arn:aws:ecs:{REGION}:123456789012:task-definition/jenkins-node:1"),
             "connect": "ssh", "ssh": {"credentialsId": "key"},
             "launch": {"capacityProviders": [{"name": "FARGATE_SPOT", "weight": 4}, {"name": "FARGATE", "weight": 1, "base": 1}]},
             "network": {"subnets": ["subnet-1"]}},
        ]);
        config["clouds"][0]["templates"][0]["placementStrategy"] = json!([{"type": "binpack", "field": "memory"}]);
        config["clouds"][0]["templates"][0]["placementConstraints"] =
            json!([{"type": "memberOf", "expression": "attribute:ecs.os-type == linux"}]);
    })
    .await;
    for label in ["fargate", "providers", "maven"] {
        stack.send("requests", &request(label, label));
    }
    stack.settle().await;
    let inputs = stack.inputs("RunTask");
    let of = |template: &str| {
        let name = |input: &&Value| template_of(input["startedBy"].as_str().unwrap()) == template;
        inputs.iter().find(name).unwrap_or_else(|| panic!("no RunTask for {template}"))
    };
    let fargate = of("fargate");
    assert_eq!(fargate["launchType"], "FARGATE");
    assert_eq!(fargate["platformVersion"], "1.4.0");
    assert_eq!(fargate["enableExecuteCommand"], true);
    let network = json!({"awsvpcConfiguration": {
        "subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-1"], "assignPublicIp": "ENABLED"}});
    assert_eq!(fargate["networkConfiguration"], network);
    let providers = of("providers");
    assert!(providers.get("launchType").is_none_or(Value::is_null));
    let strategy = providers["capacityProviderStrategy"].as_array().unwrap();
    assert_eq!(strategy[0], json!({"capacityProvider": "FARGATE_SPOT", "weight": 4, "base": 0}));
    assert_eq!(strategy[1], json!({"capacityProvider": "FARGATE", "weight": 1, "base": 1}));
    let ec2 = of("maven");
    assert_eq!(ec2["placementStrategy"], json!([{"type": "binpack", "field": "memory"}]));
    assert_eq!(ec2["placementConstraints"][0]["expression"], "attribute:ecs.os-type == linux");
    // A public address was requested, and Jenkins gets it.
    let ready = stack.all_notices().into_iter().find(|notice| notice.agent().contains("-fargate-")).unwrap();
    assert!(ready.body["agent"]["host"].as_str().unwrap().starts_with("54."), "{:?}", ready.body);
}

#[tokio::test]
async fn an_inbound_agent_runs_on_an_external_instance() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["templates"][2]["launch"] = json!({"type": "external"});
    })
    .await;
    let waits = stack.agent("before", "dial").await;
    assert!(stack.active_tasks().is_empty() && stack.nodes().is_empty(), "the instances of EC2 are none of EXTERNAL");
    let external = {
        let mut aws = stack.aws();
        let external = aws.ecs.add_instance(CLUSTER, "mi-0123456789", (2048, 4096), 0, Timestamp::now());
        let instance = aws.ecs.instance_mut(&external).unwrap();
        instance.attributes.insert("ecs.capability.external".into(), String::new());
        external
    };
    let url = stack.agent("after", "dial").await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(stack.active_tasks().iter().all(|task| task.instance.as_ref() == Some(&external)));
    assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 0, "no group makes an external instance");
    stack.unhide("waiting");
    stack.sweep().await;
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.received(&waits), ["agent.ready"], "and what waited is woken");
}

#[tokio::test]
async fn without_a_container_the_only_essential_one_is_looked_up_once() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["templates"][0].as_object_mut().unwrap().remove("container");
        config["clouds"][0]["templates"][0].as_object_mut().unwrap().remove("container");
    })
    .await;
    for number in 0..3 {
        stack.send("requests", &request(&format!("node-{number}"), "node"));
        stack.poll(Binary::Request, "requests").await;
    }
    assert_eq!(stack.calls(), ["ecs:DescribeTaskDefinition", "ecs:RunTask", "ecs:RunTask", "ecs:RunTask"]);
    assert_eq!(stack.inputs("RunTask")[0]["overrides"]["containerOverrides"][0]["name"], "agent");

    // Two essential containers: it is ambiguous.
    let url = stack.agent("two", "maven").await;
    assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"]);
}

#[tokio::test]
async fn a_whole_batch_of_a_cold_process_looks_it_up_once() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["templates"][0].as_object_mut().unwrap().remove("container");
    })
    .await;
    for number in 0..5 {
        stack.send("requests", &request(&format!("node-{number}"), "node"));
    }
    stack.poll(Binary::Request, "requests").await;
    assert_eq!((stack.count("ecs:DescribeTaskDefinition"), stack.count("ecs:RunTask")), (1, 5));
}

#[tokio::test]
async fn fails_at_once_where_waiting_cannot_help() {
    type Case = (&'static str, fn(&mut Value), Option<local::aws::Fault>);
    let cases: [Case; 4] = [
        ("the cluster is missing", |config| config["clouds"][0]["cluster"] = "gone".into(), None),
        (
            "the task definition is missing",
            |config| config["clouds"][0]["templates"][0]["taskDefinition"] = "gone".into(),
            None,
        ),
        ("access is denied", |_| {}, Some(local::aws::Fault::denied())),
        (
            "no instance has the attribute",
            |config| {
                config["clouds"][0]["templates"][0]["placementConstraints"] =
                    json!([{"type": "memberOf", "expression": "attribute:gpu == yes"}]);
            },
            None,
        ),
    ];
    for (case, change, fault) in cases {
        let mut stack = Stack::with(change).await;
        stack.allow_denials();
        stack.aws().faults.always("ecs", "RunTask", fault);
        let url = stack.agent("hopeless", "maven").await;
        assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"], "{case}");
        assert_eq!(stack.rejected().len(), 1, "{case}");
        assert!(stack.bodies("requests").is_empty() && stack.bodies("waiting").is_empty(), "{case}");
        assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 0, "{case}");
    }
}

#[tokio::test]
async fn a_queue_that_may_not_be_written_is_named_and_the_failure_is_logged_once() {
    let mut stack = Stack::start().await;
    stack.allow_denials();
    stack.aws().faults.always("sqs", "SendMessage", Some(local::aws::Fault::denied()));
    // The instance holds three.
    for number in 0..4 {
        stack.ask(json!({"requestId": format!("r-{number}"), "label": "maven", "webhookUrl": stack.webhook()}));
    }
    stack.ask(json!({"requestId": "nobody", "label": "solaris", "webhookUrl": stack.webhook()}));
    for _ in 0..4 {
        stack.unhide("requests");
        stack.settle().await;
    }
    let lines = log_rules::lines(&stack.output());
    let failed = |code: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["message"] == "request failed" && line["code"] == code).collect()
    };
    assert_eq!(failed("NO_TEMPLATE").len(), 1, "{lines:#?}");
    let failed = failed("LAUNCH_FAILED");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    let error = failed[0]["error"].as_str().unwrap();
    assert!(error.contains("AccessDenied") && error.contains(": waiting: "), "{error}");
}

#[tokio::test]
async fn each_agent_of_a_request_has_one_outcome_at_its_own_webhook() {
    let mut stack = Stack::with(|config| config["clouds"][1]["templates"][0]["agentsPerRequest"] = 3.into()).await;
    let urls = [stack.webhook(), stack.webhook()];
    stack.ask(json!({"requestId": "three", "label": "node", "webhookUrl": urls}));
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 3);
    for url in &urls {
        assert_eq!(stack.received(url), ["agent.ready"]);
    }
    assert_ne!(stack.notices(Some(&urls[0]))[0].agent(), stack.notices(Some(&urls[1]))[0].agent());
    assert_eq!(stack.all_received(), ["agent.ready"; 3], "the third reports to the configured webhook alone");
}

#[tokio::test]
async fn a_copy_of_a_request_starts_nothing_and_asks_again() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    let body = json!({"requestId": "twice", "label": "node", "webhookUrl": url});
    // Twice in one batch.
    stack.ask(body.clone());
    stack.ask(body.clone());
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 1);
    // And once more, when its agent is ready.
    stack.ask(body.clone());
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 1);
    let notices = stack.notices(Some(&url));
    assert!(notices.len() > 1, "an inquiry is answered");
    assert!(notices.iter().all(|notice| notice.kind() == "agent.ready" && notice.body["id"] == notices[0].body["id"]));
    // And once more, when it has ended.
    stack.complete(json!({"requestId": "twice"}));
    stack.settle().await;
    let before = stack.received(&url).len();
    stack.ask(body);
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 1);
    let received = stack.received(&url);
    assert_eq!(received.len(), before + 1);
    assert!(received.last().unwrap().starts_with("agent.failed"), "{received:?}");
}

/// ECS may repeat its first answer for a known token, and clocks differ.
#[tokio::test]
async fn a_copy_is_answered_though_ecs_answers_as_at_first() {
    let mut stack = Stack::start().await;
    let url = stack.agent("again", "node").await;
    let first = stack.aws().calls("ecs", "RunTask")[0].output.clone();
    let replay = ApiError { status: 200, extra: first, ..ApiError::new("", "") };
    stack.aws().faults.script("ecs", "RunTask", [Some(local::aws::Fault::Error(replay))]);
    let copy = stack.webhook();
    stack.ask(json!({"requestId": "again", "label": "node", "webhookUrl": copy}));
    stack.settle().await;
    assert_eq!((stack.received(&copy), stack.tasks().len()), (vec!["agent.ready".into()], 1));
    assert_eq!(stack.notices(Some(&copy))[0].body["id"], stack.notices(Some(&url))[0].body["id"]);
}

#[tokio::test]
async fn a_copy_without_a_webhook_of_its_own_is_answered_at_the_configured_one() {
    let mut stack = Stack::start().await;
    for state in ["ready", "over"] {
        stack.ask(json!({"requestId": "listened", "label": "node"}));
        stack.settle().await;
        if state == "ready" {
            stack.ask(json!({"requestId": "listened", "label": "node"}));
            stack.settle().await;
            stack.complete(json!({"requestId": "listened"}));
            stack.settle().await;
        }
    }
    assert_eq!(stack.all_received(), ["agent.ready", "agent.ready", "agent.stopped", "agent.failed START_FAILED"]);
    assert_eq!(stack.active_tasks().len() + stack.nodes().len(), 0);
}

#[tokio::test]
async fn an_expired_request_is_not_placed() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "late", "label": "node", "webhookUrl": url, "expiresAt": "2020-01-01T00:00:00Z"}));
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 0);
    assert_eq!(stack.received(&url), ["agent.failed CAPACITY_TIMEOUT"]);
}

#[tokio::test]
async fn reports_an_existing_agent_of_an_expired_request() {
    let mut stack = Stack::start().await;
    stack.agent("late", "node").await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "late", "label": "node", "webhookUrl": url, "expiresAt": "2020-01-01T00:00:00Z"}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!((stack.tasks().len(), stack.count("ecs:RunTask")), (1, 1));
}

#[tokio::test]
async fn reports_each_agent_of_an_expired_request_to_the_configured_webhook() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    let expiry = "2020-01-01T00:00:00Z";
    stack.ask(json!({"requestId": "late", "label": "node", "count": 3, "webhookUrl": url, "expiresAt": expiry}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed CAPACITY_TIMEOUT"]);
    assert_eq!(stack.all_received(), ["agent.failed CAPACITY_TIMEOUT"; 3]);
}

#[tokio::test]
async fn an_event_that_is_no_batch_is_an_error_and_not_the_end() {
    let mut stack = Stack::start().await;
    assert!(stack.invoke(Binary::Request, json!({"what": "is this"})).await.is_err());
    stack.agent("after-all", "node").await;
    assert_eq!(stack.tasks().len(), 1);
}

#[tokio::test]
async fn an_override_of_the_code_that_runs_needs_a_webhook_for_each_agent() {
    for (overrides, count, urls, expected) in [
        (json!({"environment": {"A": "b"}}), 1, 0, "agent.failed OVERRIDE_REFUSED"),
        (json!({"command": ["x"]}), 2, 1, "agent.failed OVERRIDE_REFUSED"),
        (json!({"environment": {"A": "b"}}), 1, 1, "agent.ready"),
        (json!({"environment": {"REMOTING_OPTS": "b"}}), 1, 1, "agent.failed OVERRIDE_REFUSED"),
    ] {
        let mut stack = Stack::with(|config| {
            config["clouds"][1]["templates"][0]["allowedOverrides"] = json!(["environment", "command"]);
        })
        .await;
        let webhooks: Vec<String> = (0..urls).map(|_| stack.webhook()).collect();
        stack.ask(json!({"requestId": "chosen", "label": "node", "count": count, "webhookUrl": webhooks, "overrides": overrides}));
        stack.settle().await;
        assert_eq!(stack.all_received().first().map(String::as_str), Some(expected), "{overrides}");
        let is_started = expected == "agent.ready";
        assert_eq!(stack.tasks().len(), usize::from(is_started), "{overrides}");
    }
}

#[tokio::test]
async fn another_task_definition_is_run_where_the_template_allows_its_family() {
    for (asked, expected) in [
        ("other", "agent.failed OVERRIDE_REFUSED"),
        ("jenkins-gone", "agent.failed LAUNCH_FAILED"),
        ("arn:aws:ecs:us-east-1:123456789012:task-definition/jenkins-node:1", "agent.failed OVERRIDE_REFUSED"),
    ] {
        let mut stack = Stack::with(|config| {
            let template = &mut config["clouds"][1]["templates"][0];
            template["allowedOverrides"] = json!(["taskDefinition"]);
            template["allowedTaskDefinitions"] = json!(["jenkins-*"]);
        })
        .await;
        let url = stack.webhook();
        stack.ask(
            json!({"requestId": "image", "label": "node", "webhookUrl": url, "overrides": {"taskDefinition": asked}}),
        );
        stack.settle().await;
        assert_eq!(stack.received(&url), [expected], "{asked}");
        assert!(stack.tasks().is_empty(), "{asked}");
    }
}

/// RunTask's answer of failures alone, one for each reason.
fn failures_alone(reasons: &[&str]) -> local::aws::Fault {
    let arn = |number: usize| format!("arn:aws:ecs:{REGION}:{ACCOUNT}:container-instance/{CLUSTER}/{number:032x}");
    let failures: Vec<_> =
        reasons.iter().enumerate().map(|(number, reason)| json!({"arn": arn(number), "reason": reason})).collect();
    let answer = ApiError { status: 200, extra: json!({"tasks": [], "failures": failures}), ..ApiError::new("", "") };
    local::aws::Fault::Error(answer)
}

fn tokens(stack: &Stack) -> Vec<String> {
    stack.inputs("RunTask").iter().map(|input| input["clientToken"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn waits_for_room_after_every_failure_that_room_resolves() {
    let client_error = |code: &str, message: &str| local::aws::Fault::Error(ApiError::new(code, message));
    let cases = [
        failures_alone(&["RESOURCE:CPU"]),
        failures_alone(&["RESOURCE:MEMORY"]),
        failures_alone(&["RESOURCE:PORTS"]),
        failures_alone(&["RESOURCE:ENI"]),
        failures_alone(&["RESOURCE:GPU"]),
        failures_alone(&["RESOURCE:NEURON"]),
        failures_alone(&["AGENT"]),
        failures_alone(&["distinctInstance placement constraint unsatisfied."]),
        failures_alone(&["LOCATION", "RESOURCE:MEMORY"]),
        failures_alone(&["ATTRIBUTE"]),
        failures_alone(&["MemberOf placement constraint unsatisfied."]),
        failures_alone(&["LOCATION"]),
        failures_alone(&["No Container Instances were found in your cluster."]),
        client_error("InvalidParameterException", "No Container Instances were found in your cluster."),
        client_error("ClientException", "No Container Instances were found in your capacity provider."),
    ];
    for fault in cases {
        let mut stack = Stack::start().await;
        stack.aws().faults.script("ecs", "RunTask", [Some(fault.clone())]);
        let url = stack.webhook();
        stack.ask(json!({"requestId": "blocked", "label": "maven", "webhookUrl": url}));
        stack.poll(Binary::Request, "requests").await;
        assert_eq!((stack.bodies("waiting").len(), stack.bodies("requests").len()), (1, 0), "{fault:?}");
        assert_eq!(stack.received(&url), Vec::<String>::new(), "{fault:?}");
        assert_eq!(stack.all_received(), ["agent.waiting"], "{fault:?}");
        assert!(stack.rejected().is_empty(), "{fault:?}");
    }
}

#[tokio::test]
async fn reports_final_failures_and_retries_unknown_ones() {
    for (reasons, without_group, is_final) in [
        (&["MISSING"][..], false, true),
        (&["INACTIVE"], false, true),
        (&["ATTRIBUTE"], true, true),
        (&["LOCATION"], true, true),
        (&["MemberOf placement constraint unsatisfied."], true, true),
        (&["ATTRIBUTE", "RESOURCE:MEMORY"], true, false),
        (&["something that ECS invents tomorrow"], false, false),
        (&[], false, false),
    ] {
        let mut stack = Stack::with(|config| {
            if without_group {
                config["clouds"][0].as_object_mut().unwrap().remove("autoScalingGroup");
            }
        })
        .await;
        stack.aws().faults.script("ecs", "RunTask", [Some(failures_alone(reasons))]);
        let url = stack.agent("blocked", "maven").await;
        let expected = if is_final { vec!["agent.failed LAUNCH_FAILED"] } else { vec![] };
        assert_eq!(stack.received(&url), expected, "{reasons:?}");
        assert_eq!(stack.rejected().len(), usize::from(is_final), "{reasons:?}");
        let kept = stack.bodies("requests").len() + stack.bodies("waiting").len();
        assert_eq!(kept, usize::from(!is_final), "{reasons:?}");
        assert!(stack.rejected().iter().all(|(_, reason)| reason.contains("LAUNCH_FAILED")), "{:?}", stack.rejected());
    }
}

#[tokio::test]
async fn the_token_changes_only_after_an_answer_of_failures_alone() {
    let mut stack = Stack::start().await;
    let server = || Some(local::aws::Fault::server());
    // Each receive makes three tries.
    stack.aws().faults.script("ecs", "RunTask", std::iter::repeat_with(server).take(6));
    let url = stack.webhook();
    stack.ask(json!({"requestId": "token", "label": "node", "webhookUrl": url}));
    for _ in 0..2 {
        stack.poll(Binary::Request, "requests").await;
        stack.kill(Binary::Request);
        stack.unhide("requests");
    }
    stack.aws().faults.script("ecs", "RunTask", [Some(failures_alone(&["RESOURCE:MEMORY"]))]);
    stack.poll(Binary::Request, "requests").await;
    let before = tokens(&stack);
    assert_eq!(before.len(), 7);
    assert!(before.iter().all(|token| *token == before[0]), "{before:?}");
    // It travels with the message to any process; a lost answer does not change it.
    stack.kill(Binary::Request);
    stack.unhide("waiting");
    stack.aws().faults.script("ecs", "RunTask", std::iter::repeat_with(|| Some(local::aws::Fault::Lost)).take(3));
    stack.sweep().await;
    stack.kill(Binary::Request);
    stack.unhide("requests");
    stack.settle().await;
    let after = tokens(&stack).split_off(7);
    assert!(!after.is_empty() && after.iter().all(|token| *token == after[0] && *token != before[0]), "{after:?}");
    assert_eq!(stack.tasks().len(), 1);
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn request_ids_counts_and_urls_are_taken_up_to_their_limits() {
    let mut stack = Stack::start().await;
    let longest = format!("{}._:/-Z9", "a".repeat(121));
    assert_eq!(longest.len(), 128);
    let good = [json!({"requestId": longest}), json!({"requestId": "x"}), json!({"requestId": null, "count": null})];
    let bad = [
        json!({"requestId": format!("{longest}a")}),
        json!({"requestId": ""}),
        json!({"requestId": "a b"}),
        json!({"requestId": "a\n"}),
        json!({"requestId": "ä"}),
        json!({"requestId": "a?b"}),
        json!({"requestId": 7}),
        json!({"requestId": ["a"]}),
        json!({"count": 0}),
        json!({"count": 11}),
        json!({"count": -1}),
        json!({"count": 1.5}),
        json!({"count": "2"}),
        json!({"count": 4_294_967_297_u64}),
        json!({"label": ""}),
        json!({"label": " \n "}),
        json!({"label": null}),
        json!({"label": ["maven"]}),
        json!({"version": "1"}),
        json!({"version": 1.5}),
        json!({"version": null}),
        json!({"webhookUrl": ""}),
        json!({"webhookUrl": 7}),
        json!({"expiresAt": "2026-11-24"}),
        json!({"expiresAt": 1_764_012_345}),
        json!({"build": "app/main"}),
        json!({"build": {"job": "a", "unknown": 1}}),
        json!({"build": ["app/main", 1]}),
        json!({"overrides": []}),
        json!({"overrides": {"unknown": 1}}),
        json!({"overrides": {"cpu": "1024"}}),
        json!({"overrides": {"memory": -1}}),
        json!({"overrides": {"environment": {"A": 1}}}),
    ];
    let body = |fields: &Value| {
        let mut body = json!({"version": 1, "label": "node"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body.to_string()
    };
    let (good, bad): (Vec<_>, Vec<_>) = (good.iter().map(body).collect(), bad.iter().map(body).collect());
    for body in good.iter().chain(&bad) {
        stack.send("requests", body);
        stack.poll(Binary::Request, "requests").await;
    }
    let rejected: Vec<_> = stack.rejected();
    let bodies: Vec<_> = rejected.iter().map(|(body, _)| body.clone()).collect();
    assert_eq!(bodies, bad);
    assert!(rejected.iter().all(|(_, reason)| reason.starts_with("INVALID_REQUEST: ")), "{rejected:?}");
    assert_eq!(stack.tasks().len(), good.len());
    assert!(stack.bodies("requests").is_empty());
    for input in stack.inputs("RunTask") {
        assert!(
            input["clientToken"].as_str().unwrap().len() <= 64 && input["startedBy"].as_str().unwrap().len() <= 128
        );
    }
}

#[tokio::test]
async fn a_label_is_read_as_jenkins_reads_it() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["templates"][0]["labels"] = json!(["linux", "big one", "a&&b", "jdk-17", "größe"]);
    })
    .await;
    let cases = [
        ("\n\t jdk-17 \r\n", true),
        ("\u{a0}jdk-17", true),
        ("\"big one\"", true),
        ("\"big one\"&&größe", true),
        ("\"a&&b\"", true),
        ("\"jdk-17\" && !maven", true),
        ("!maven&&!host&&!dial", true),
        ("maven->größe && jdk-17", false),
        ("(linux -> größe)", true),
        ("größe && (jdk-17 <-> linux)", true),
        ("big one", false),
        ("big", false),
        ("'jdk-17'", false),
        ("!!jdk-17", false),
        ("jdk-17 -> linux -> linux", false),
        ("jdk-17 &&", false),
        ("jdk-17 & linux", false),
        ("(jdk-17", false),
        ("\"jdk-17", false),
        ("JDK-17", false),
    ];
    for (number, (label, _)) in cases.iter().enumerate() {
        stack.ask(json!({"requestId": format!("label-{number}"), "label": label}));
        stack.settle().await;
    }
    let served: Vec<_> = stack.inputs("RunTask").iter().map(|input| input["startedBy"].clone()).collect();
    let of_node = |number: usize| shared::name::AgentName::new("ecs-", "node", &format!("label-{number}"), 0);
    for (number, (label, is_served)) in cases.iter().enumerate() {
        assert_eq!(served.contains(&json!(of_node(number).as_str())), *is_served, "{label:?}");
    }
}

#[tokio::test]
async fn overrides_go_up_to_their_limits() {
    let role = "arn:aws:iam::123456789012:role/agent-of-a-build";
    let cases = [
        (json!({"cpu": 4096, "memory": 7680}), None),
        (json!({"cpu": 1}), None),
        (json!({"cpu": 0}), Some("INVALID_REQUEST")),
        (json!({"cpu": 4097}), Some("OVERRIDE_REFUSED")),
        (json!({"memory": 7681}), Some("OVERRIDE_REFUSED")),
        (json!({"command": ["sh", "-c", "x"]}), None),
        (json!({"taskRole": role}), None),
        (json!({"ephemeralStorage": 21}), Some("OVERRIDE_REFUSED")),
        (json!({"taskDefinition": "jenkins-maven"}), Some("OVERRIDE_REFUSED")),
        (json!({"environment": {"A": "b", "PATH+X": "/x"}}), None),
        (json!({"environment": {"jenkins_secret": "x"}}), Some("OVERRIDE_REFUSED")),
        (json!({"environment": {"JENKINS_PROTOCOLS": "x"}}), Some("OVERRIDE_REFUSED")),
        (json!({"environment": {"Jenkins_Java_Opts": "x"}}), Some("OVERRIDE_REFUSED")),
        (json!({}), None),
        (json!({"environment": {}, "cpu": null, "command": null, "taskRole": null}), None),
    ];
    for (overrides, refused) in cases {
        let mut stack = Stack::with(|config| {
            let template = &mut config["clouds"][0]["templates"][0];
            template["allowedOverrides"] = json!(["cpu", "memory", "environment", "command", "taskRole"]);
            template["limits"] = json!({"cpu": 4096, "memory": 7680});
        })
        .await;
        stack.allow_denials();
        let url = stack.webhook();
        stack.ask(json!({"requestId": "asked", "label": "maven", "webhookUrl": [url], "overrides": overrides}));
        stack.poll(Binary::Request, "requests").await;
        match refused {
            Some(code) => assert_eq!(stack.received(&url), [format!("agent.failed {code}")], "{overrides}"),
            None => {
                let input = stack.inputs("RunTask").remove(0);
                let asked = &input["overrides"];
                let container = &asked["containerOverrides"][0];
                if let Some(command) = overrides.get("command").filter(|command| !command.is_null()) {
                    assert_eq!(container["command"], *command);
                }
                if let Some(role) = overrides.get("taskRole").filter(|role| !role.is_null()) {
                    assert_eq!(asked["taskRoleArn"], *role);
                }
                for amount in ["cpu", "memory"] {
                    let expected = overrides.get(amount).and_then(Value::as_u64).map(|amount| amount.to_string());
                    assert_eq!(asked[amount].as_str().map(str::to_owned), expected, "{overrides}");
                }
            }
        }
        assert_eq!(stack.count("ecs:RunTask"), usize::from(refused.is_none()), "{overrides}");
    }
}

#[tokio::test]
async fn ephemeral_storage_is_for_fargate_from_21_to_200() {
    for (size, limit, expected) in [
        (0, None, false),
        (20, None, false),
        (21, None, true),
        (200, None, true),
        (201, None, false),
        (50, Some(50), true),
        (51, Some(50), false),
    ] {
        let mut stack = Stack::with(|config| {
            let template = &mut config["clouds"][1]["templates"][0];
            template["allowedOverrides"] = json!(["ephemeralStorage"]);
            template["limits"] = limit.map_or(json!({}), |limit| json!({"ephemeralStorage": limit}));
        })
        .await;
        // It does not decide what runs: no webhook is needed.
        stack.ask(json!({"requestId": "storage", "label": "node", "overrides": {"ephemeralStorage": size}}));
        stack.poll(Binary::Request, "requests").await;
        let inputs = stack.inputs("RunTask");
        match expected {
            true => assert_eq!(inputs[0]["overrides"]["ephemeralStorage"], json!({"sizeInGiB": size})),
            false => {
                assert!(inputs.is_empty(), "{size}");
                assert_eq!(stack.all_received(), ["agent.failed OVERRIDE_REFUSED"], "{size}");
            }
        }
    }
    // If a strategy decides, ECS has to refuse it.
    for launch in [json!({"type": "default"}), json!({"capacityProviders": [{"name": "own"}]})] {
        let mut stack = Stack::with(|config| {
            let template = &mut config["clouds"][0]["templates"][0];
            template["launch"] = launch.clone();
            template["allowedOverrides"] = json!(["ephemeralStorage"]);
        })
        .await;
        let message = "You must use Fargate launch type or capacity provider for ephemeral storage.";
        let refusal = ApiError::new("InvalidParameterException", message);
        stack.aws().faults.script("ecs", "RunTask", [Some(local::aws::Fault::Error(refusal))]);
        stack.ask(json!({"requestId": "storage", "label": "maven", "overrides": {"ephemeralStorage": 21}}));
        stack.settle().await;
        assert_eq!(stack.all_received(), ["agent.failed LAUNCH_FAILED"], "{launch}");
        assert_eq!(stack.inputs("RunTask")[0]["overrides"]["ephemeralStorage"]["sizeInGiB"], 21);
    }
}

#[tokio::test]
async fn a_task_definition_is_asked_for_by_family_revision_or_arn_of_the_own_account() {
    let arn =
        |region: &str, account: &str, name: &str| format!("arn:aws:ecs:{region}:{account}:task-definition/{name}");
    let cases = [
        ("jenkins-other".to_owned(), "agent.ready"),
        ("jenkins-other:1".into(), "agent.ready"),
        (arn(REGION, ACCOUNT, "jenkins-other:1"), "agent.ready"),
        ("jenkins-other:9".into(), "agent.failed LAUNCH_FAILED"),
        ("jenkins-maven".into(), "agent.ready"),
        ("jenkins-dial".into(), "agent.failed LAUNCH_FAILED"),
        ("jenkins-nameless".into(), "agent.failed LAUNCH_FAILED"),
        ("foreign".into(), "agent.failed OVERRIDE_REFUSED"),
        (arn(REGION, ACCOUNT, "foreign:1"), "agent.failed OVERRIDE_REFUSED"),
        (arn("us-east-1", ACCOUNT, "jenkins-other:1"), "agent.failed OVERRIDE_REFUSED"),
        (arn(REGION, "999999999999", "jenkins-other:1"), "agent.failed OVERRIDE_REFUSED"),
        (arn(REGION, ACCOUNT, "jenkins-other"), "agent.failed INVALID_REQUEST"),
        ("jenkins-other:0".into(), "agent.failed INVALID_REQUEST"),
        ("jenkins other".into(), "agent.failed INVALID_REQUEST"),
        (String::new(), "agent.failed INVALID_REQUEST"),
    ];
    for by_arn in [false, true] {
        for (asked, expected) in &cases {
            let mut stack = Stack::with(|config| {
                let template = &mut config["clouds"][0]["templates"][0];
                template["allowedOverrides"] = json!(["taskDefinition"]);
                template["allowedTaskDefinitions"] = json!(["jenkins-*"]);
                if by_arn {
                    template["taskDefinition"] = arn(REGION, ACCOUNT, "jenkins-maven:1").into();
                }
            })
            .await;
            stack.allow_denials();
            let container = |name: &str, ports: Value| json!({"name": name, "image": "a", "essential": true, "cpu": 64, "memory": 64, "portMappings": ports});
            for definition in [
                json!({"family": "jenkins-other", "networkMode": "bridge", "containerDefinitions": [
                    container("first", json!([])), container("agent", json!([{"containerPort": 22, "hostPort": 0}]))]}),
                json!({"family": "jenkins-nameless", "networkMode": "bridge",
                    "containerDefinitions": [container("first", json!([{"containerPort": 22, "hostPort": 0}]))]}),
            ] {
                stack.aws().ecs.register_definition(&definition).unwrap();
            }
            let url = stack.webhook();
            let overrides = json!({"taskDefinition": asked});
            stack.ask(json!({"requestId": "image", "label": "maven", "webhookUrl": url, "overrides": overrides}));
            stack.settle().await;
            assert_eq!(stack.received(&url), [*expected], "{asked}");
            if *expected == "agent.ready" {
                let input = stack.inputs("RunTask").remove(0);
                assert_eq!(input["taskDefinition"], *asked);
                assert_eq!(input["overrides"]["containerOverrides"][0]["name"], "agent");
                let key = Binary::Request.access_key();
                let calls = stack
                    .aws()
                    .calls("ecs", "DescribeTaskDefinition")
                    .iter()
                    .filter(|call| call.access_key == key)
                    .count();
                assert_eq!(calls, 1, "{asked}: {:?}", stack.calls());
            } else {
                assert_eq!(stack.count("ecs:RunTask"), 0, "{asked}");
            }
        }
    }
}

#[tokio::test]
async fn with_the_default_strategy_ecs_chooses_and_no_group_is_raised() {
    let mut stack =
        Stack::with(|config| config["clouds"][0]["templates"][0]["launch"] = json!({"type": "default"})).await;
    let failure = failures_alone(&["RESOURCE:MEMORY"]);
    stack.aws().faults.script("ecs", "RunTask", [Some(failure)]);
    let url = stack.agent("default", "maven").await;
    let input = stack.inputs("RunTask").remove(0);
    for parameter in ["launchType", "capacityProviderStrategy", "platformVersion", "networkConfiguration"] {
        assert!(input.get(parameter).is_none_or(Value::is_null), "{parameter}: {input}");
    }
    assert_eq!((stack.bodies("waiting").len(), stack.received(&url).len()), (1, 0));
    stack.unhide("waiting");
    stack.sweep().await;
    assert!(!stack.calls().iter().any(|call| call.starts_with("autoscaling:Set")), "{:?}", stack.calls());
}

#[tokio::test]
async fn lists_of_webhooks_may_be_empty_shorter_or_longer() {
    let mut stack = Stack::start().await;
    let urls: Vec<_> = (0..6).map(|_| stack.webhook()).collect();
    stack.ask(json!({"requestId": "none", "label": "node", "webhookUrl": []}));
    stack.ask(json!({"requestId": "null", "label": "node", "webhookUrl": null}));
    stack.ask(json!({"requestId": "fewer", "label": "node", "count": 3, "webhookUrl": urls[..2]}));
    stack.ask(json!({"requestId": "more", "label": "node", "count": 1, "webhookUrl": urls[2..5]}));
    stack.ask(json!({"requestId": "one", "label": "node", "count": 2, "webhookUrl": urls[5]}));
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 8);
    let received: Vec<_> = urls.iter().map(|url| stack.received(url).len()).collect();
    assert_eq!(received, [1, 1, 1, 0, 0, 1]);
    assert_eq!(stack.all_received().len(), 8);
}

#[tokio::test]
async fn reports_a_refused_request_to_each_allowed_url() {
    let mut stack = Stack::start().await;
    let urls: Vec<_> = (0..5).map(|_| stack.webhook()).collect();
    let inner = json!({"version": 9, "webhookUrl": urls[1]}).to_string();
    for body in [
        json!({"version": 1, "label": "node", "webhookUrl": [7, urls[0], "http://evil.example/x"]}),
        json!({"Type": "Notification", "Message": inner}),
        json!({"version": 1, "label": "x".repeat(100_000), "webhookUrl": urls[2]}),
        json!({"version": 1, "label": "node", "requestId": "with a blank", "webhookUrl": [urls[3]]}),
        json!({"version": 1, "label": "node", "count": 2, "unknown": 1, "webhookUrl": urls[4]}),
    ] {
        stack.send("requests", &body.to_string());
    }
    stack.settle().await;
    for url in &urls {
        assert_eq!(stack.received(url), ["agent.failed INVALID_REQUEST"]);
    }
    assert_eq!(stack.rejected().len(), urls.len());
    assert_eq!(stack.calls().iter().filter(|call| !call.starts_with("sqs:")).count(), 0, "{:?}", stack.calls());
}

#[tokio::test]
async fn tricks_with_the_origin_start_nothing() {
    let mut stack = Stack::start().await;
    let root = stack.jenkins_root().to_owned();
    let host = root.trim_start_matches("http://").trim_end_matches("/ci/").to_owned();
    let port = host.rsplit(':').next().unwrap().to_owned();
    let bad = [
        format!("http://{host}/ci-evil/x"),
        format!("http://{host}/ci%2fx"),
        format!("http://{host}/CI/x"),
        format!("http://{host}//ci/x"),
        format!("http://{host}/ci/%2E%2e/x"),
        format!("http://{host}/ci/%252e%252e/x"),
        format!("http://{host}/ci/.%2e/x"),
        format!("http://{host}/ci/..;/x"),
        format!("http://{host}\\@evil.example/ci/x"),
        format!("http://{host}@evil.example/ci/x"),
        format!("http://@{host}/ci/x"),
        format!("http://:@{host}/ci/x"),
        format!("http://127.0.0.1.:{port}/ci/x"),
        format!("http://127.1:{port}/ci/x"),
        format!("http://2130706433:{port}/ci/x"),
        format!("http://0x7f.0.0.1:{port}/ci/x"),
        format!("http://%31%32%37.0.0.1:{port}/ci/x"),
        format!("http://[::ffff:127.0.0.1]:{port}/ci/x"),
        format!("http://evil.example/ci/x?http://{host}/ci/"),
        format!("http:/{host}/ci/x"),
        format!("http:{host}/ci/x"),
        format!("//{host}/ci/x"),
        "http://127.0.0.1/ci/x".into(),
        format!("http://127.0.0.1:{port}0/ci/x"),
        format!(" http://{host}/ci/x"),
        format!("http://{host}/ci/x\r\nHost: evil.example"),
    ];
    for (number, url) in bad.iter().enumerate() {
        stack.ask(json!({"requestId": format!("bad-{number}"), "label": "node", "webhookUrl": url}));
    }
    stack.settle().await;
    let started: Vec<_> = stack.all_notices().into_iter().filter(|notice| notice.kind() == "agent.ready").collect();
    assert!(stack.tasks().is_empty(), "{started:#?}");
    assert_eq!(stack.rejected().len(), bad.len());
    // The same origin in other words is called.
    let token = stack.webhook().rsplit('/').next().unwrap().to_owned();
    for (number, url) in
        [format!("HTTP://{host}/ci/webhook-step/{token}"), format!("http://{host}/ci/a/./b?x=%20")].iter().enumerate()
    {
        stack.ask(json!({"requestId": format!("good-{number}"), "label": "node", "webhookUrl": url}));
    }
    stack.settle().await;
    assert!(stack.tasks().len() == 2 && stack.rejected().len() == bad.len(), "{:?}", stack.rejected().last());
}

/// A job deep in folders whose names are not ASCII: its page's URL is longer than a record may be.
#[tokio::test]
async fn accepts_a_build_with_a_long_name() {
    let folder = "Команда-платформы-и-инструментов";
    let job = format!("{}feature%2FАРХ-1234-очень-длинное-имя-ветки", format!("{folder}/").repeat(24));
    let encoded: String = folder.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let page = format!("https://jenkins.example.com/{}job/feature/7/", format!("job/{encoded}/").repeat(24));
    let build = json!({"job": job, "number": 7, "url": page});
    for (environment, is_whole) in [(0, true), (3000, false), (6800, false)] {
        let mut stack = Stack::with(|config| {
            config["clouds"][0]["templates"][0]["environment"] = json!({"LONG": "\"".repeat(environment / 2)});
        })
        .await;
        let url = stack.webhook();
        stack.ask(json!({"requestId": "long", "label": "maven", "webhookUrl": url, "build": build}));
        stack.settle().await;
        assert_eq!(stack.received(&url), ["agent.ready"], "{environment}: {:?}", stack.rejected());
        let shown = &stack.notices(Some(&url))[0].body["build"];
        assert_eq!(*shown == build, is_whole, "{environment}: {shown}");
        stack.complete(json!({"requestId": "long", "build": build}));
        stack.settle().await;
        assert!(stack.active_tasks().is_empty() && stack.rejected().is_empty(), "{environment}");
    }
}

/// The calls of AWS for a batch of ten requests, two to each of five clouds with six templates.
async fn calls_of_a_batch_to_all_clouds(change: impl FnOnce(&mut Value)) -> BTreeMap<String, usize> {
    let mut stack = thirty_templates_in_five_clouds(change).await;
    for cloud in 0..5 {
        for template in [4, 5] {
            let label = format!("label-{cloud}-{template}");
            stack.ask(json!({"requestId": format!("to-{label}"), "label": label}));
        }
    }
    stack.forget_calls();
    stack.poll(Binary::Request, "requests").await;
    let mut calls = BTreeMap::new();
    stack.calls().into_iter().for_each(|call| *calls.entry(call).or_default() += 1);
    calls
}

#[tokio::test]
async fn the_calls_for_a_batch_do_not_grow_with_the_templates() {
    let placed = calls_of_a_batch_to_all_clouds(|_| {}).await;
    assert_eq!(placed, BTreeMap::from([("ecs:RunTask".to_owned(), 10)]));
    // Agents are counted once for each cloud.
    let counted = calls_of_a_batch_to_all_clouds(|config| {
        for cloud in config["clouds"].as_array_mut().unwrap() {
            cloud["maxAgents"] = 10.into();
        }
    });
    let expected = [("ecs:ListTasks".to_owned(), 5), ("ecs:RunTask".to_owned(), 10)];
    assert_eq!(counted.await, BTreeMap::from(expected));
}
