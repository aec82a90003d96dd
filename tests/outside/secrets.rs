//! Secrets: read once, read again when they are refused, shown nowhere (docs/configuration.md).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use local::jenkins::Permission;
use serde_json::json;
use tests::edge::Edge;
use tests::{API_TOKEN, AUTHORIZATION, Stack};

const SIGNING_KEY: &[u8; 32] = b"0signing0key0of0the0webhooks0000";

/// Everything that anybody could read: logs, calls, queues, notices, tasks.
fn all_that_is_said(stack: &Stack) -> String {
    let aws = stack.aws();
    let calls = aws
        .journal
        .iter()
        .filter(|call| call.service != "ssm")
        .map(|call| format!("{:?} {:?}", call.input, call.output));
    let queues = format!("{:?}", aws.sqs.queues);
    let tasks: Vec<_> = aws.ecs.tasks().map(|task| format!("{:?} {:?}", task.tags, task.overrides)).collect();
    let calls: Vec<_> = calls.collect();
    let bus = format!("{:?}", aws.bus.entries);
    drop(aws);
    let notices: Vec<_> = stack.notices(None).into_iter().map(|notice| notice.body.to_string()).collect();
    let nodes: Vec<_> = stack.jenkins().nodes().map(|node| format!("{node:?}")).collect();
    format!("{}\n{calls:?}\n{queues}\n{tasks:?}\n{bus}\n{notices:?}\n{nodes:?}", stack.output())
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let secret = format!("whsec_{}", STANDARD.encode(SIGNING_KEY));
    let mut stack = Stack::with(|config| {
        config["jenkins"]["webhook"]["signingSecret"] = json!({"env": "SIGNING_SECRET"});
        config["eventBus"] = "ci-agents".into();
    })
    .await;
    stack.set_env("SIGNING_SECRET", Some(&secret));
    stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some("DEBUG"));
    stack.agent("plain", "maven").await;
    stack.agent("dialling", "dial").await;
    stack.agent("refused", "nothing").await;
    stack.send("requests", "not JSON");
    // Refused by Jenkins, and down.
    stack.jenkins().add_user("ecs-agents", "another", Permission::FOR_AGENTS);
    stack.agent("unauthorised", "node").await;
    stack.jenkins_goes_down();
    stack.agent("down", "node").await;
    stack.complete(json!({"requestId": "plain"}));
    stack.settle().await;
    stack.sweep_at(jiff::Timestamp::now()).await.ok();
    let said = all_that_is_said(&stack);
    assert!(said.contains("DEBUG") || said.contains("INFO"), "there are logs");
    let basic = STANDARD.encode(format!("ecs-agents:{API_TOKEN}"));
    for secret in [API_TOKEN, AUTHORIZATION, &basic, &secret[6..], "0signing0key0", stack.env("AWS_SECRET_ACCESS_KEY")]
    {
        assert!(!said.contains(secret), "{secret} is in: {}", said.split(secret).next().unwrap_or_default());
    }
}

#[tokio::test]
async fn secrets_are_read_at_the_start_alone() {
    let mut stack = Stack::start().await;
    for number in 0..3 {
        stack.agent(&format!("again-{number}"), "node").await;
    }
    let reads = stack.aws().journal.iter().filter(|call| call.service == "ssm").count();
    // One start of each of three functions.
    assert!(reads <= 3, "{reads}");
}

#[tokio::test]
async fn a_secret_that_was_changed_is_read_again_when_it_is_refused() {
    let mut stack = Stack::start().await;
    stack.agent("before", "node").await;
    stack.jenkins().add_user("ecs-agents", "rotated-token", Permission::FOR_AGENTS);
    stack.jenkins().add_endpoint("ecs-agents/notices", Some("rotated-authorization"));
    let url = stack.jenkins().register_webhook(Some("rotated-authorization"));
    stack.jenkins().wait_for_webhook(&url);
    {
        let mut aws = stack.aws();
        aws.parameters.values.insert("/jenkins/api-token".into(), "rotated-token".into());
        aws.parameters.values.insert("/jenkins/webhook".into(), "rotated-authorization".into());
    }
    stack.ask(json!({"requestId": "after", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.nodes().len(), 2);
    assert!(stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn a_secret_that_stays_wrong_names_the_setting_and_loses_nothing() {
    for (setting, by_user) in [
        ("jenkins.apiToken was read again from ssm:/jenkins/api-token just now", true),
        ("jenkins.webhook.authorization", false),
    ] {
        let mut stack = Stack::start().await;
        let url = if by_user {
            stack.jenkins().add_user("ecs-agents", "another", Permission::FOR_AGENTS);
            stack.webhook()
        } else {
            let url = stack.jenkins().register_webhook(Some("another"));
            stack.jenkins().wait_for_webhook(&url);
            url
        };
        stack.ask(json!({"requestId": "wrong", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        assert_eq!(stack.received(&url), Vec::<String>::new(), "{setting}");
        assert!(!stack.bodies("undelivered").is_empty(), "{setting}: as if Jenkins were down");
        assert!(stack.rejected().is_empty(), "{setting}");
        let output = stack.output();
        let named = output.lines().any(|line| line.contains("ERROR") && line.contains(setting));
        assert!(named, "{setting}: {output}");
        // It is corrected.
        if by_user {
            stack.jenkins().add_user("ecs-agents", API_TOKEN, Permission::FOR_AGENTS);
        } else {
            stack.aws().parameters.values.insert("/jenkins/webhook".into(), "another".into());
            stack.jenkins().add_endpoint("ecs-agents/notices", Some("another"));
        }
        for _ in 0..3 {
            stack.unhide("undelivered");
            stack.settle().await;
        }
        assert_eq!(stack.received(&url), ["agent.ready"], "{setting}");
    }
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let mut stack = Stack::start().await;
    stack.jenkins().add_user("ecs-agents", API_TOKEN, [Permission::Read]);
    stack.agent("powerless", "node").await;
    let output = stack.output();
    assert!(output.contains("Agent/Create") || output.contains("hudson.model.Computer.Create"), "{output}");
    assert!(!stack.bodies("undelivered").is_empty());
}

/// Jenkins has a certificate of a company's own authority.
#[tokio::test]
async fn jenkins_is_trusted_by_the_authority_of_ca_certificate() {
    for is_trusted in [true, false] {
        let mut stack = Stack::start().await;
        let root = stack.jenkins_root().to_owned();
        let (edge, authority) = Edge::tls(root.trim_end_matches("/ci/")).await.unwrap();
        let config = stack.env("AGENTS_CONFIG").replace(root.trim_end_matches("/ci/"), &edge.url);
        let mut config: serde_json::Value = serde_json::from_str(config.strip_prefix("inline:").unwrap()).unwrap();
        if is_trusted {
            config["jenkins"]["caCertificate"] = json!({"env": "AUTHORITY"});
        }
        stack.set_env("AUTHORITY", Some(&authority));
        stack.set_env("AGENTS_CONFIG", Some(&format!("inline:{config}")));
        // The roles were deployed for the other URL.
        stack.aws().guard = None;
        let url = stack.webhook();
        let over_tls = url.replace(root.trim_end_matches("/ci/"), &edge.url);
        stack.ask(json!({"requestId": "over-tls", "label": "node", "webhookUrl": over_tls}));
        stack.settle().await;
        let expected = if is_trusted { vec!["agent.ready"] } else { vec![] };
        assert_eq!(
            (stack.received(&url), stack.nodes().len()),
            (expected.iter().map(ToString::to_string).collect(), expected.len())
        );
        assert_eq!(stack.bodies("undelivered").is_empty(), is_trusted);
        assert_eq!(stack.output().contains("UnknownIssuer"), !is_trusted);
    }
}

#[tokio::test]
async fn a_secret_may_be_a_file_and_a_level_of_the_log_shows_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("token"), format!("{API_TOKEN}\n")).unwrap();
    std::fs::write(path("raw"), format!("{AUTHORIZATION}\r\n")).unwrap();
    for format in ["JSON", "Text"] {
        let mut stack = Stack::with(|config| {
            config["jenkins"]["apiToken"] = json!({"file": path("token")});
            config["jenkins"]["webhook"]["authorization"] = json!({"file": path("raw")});
        })
        .await;
        stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some("TRACE"));
        stack.set_env("AWS_LAMBDA_LOG_FORMAT", Some(format));
        let url = stack.agent("filed", "dial").await;
        assert_eq!(stack.received(&url), ["agent.ready"]);
        stack.complete(json!({"requestId": "filed"}));
        stack.settle().await;
        let said = stack.output();
        let basic = STANDARD.encode(format!("ecs-agents:{API_TOKEN}"));
        for secret in [API_TOKEN, AUTHORIZATION, &basic, stack.env("AWS_SECRET_ACCESS_KEY")] {
            assert!(!said.contains(secret), "{format}: {secret}");
        }
        let lines = said.lines().filter(|line| !line.is_empty());
        let are_json = lines.clone().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
        assert!(lines.count() > 0 && are_json == (format == "JSON"), "{said}");
    }
}
