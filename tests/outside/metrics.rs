//! The totals of the metrics in the log. (Every test from outside checks that each line with metrics follows
//! CloudWatch's specification.)

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use local::aws::Fault;
use local::aws::ecs::Behaviour;
use serde_json::json;
use tests::emf::{self, Datum};
use tests::{Binary, GROUP, Notice, Stack};

/// The notices of a type, by their failure code.
fn by_code(notices: &[Notice], kind: &str) -> BTreeMap<String, f64> {
    let mut codes = BTreeMap::new();
    for notice in notices.iter().filter(|notice| notice.kind() == kind) {
        *codes.entry(notice.code().to_owned()).or_default() += 1.0;
    }
    codes
}

fn ms(notice: &Notice, from: &str, to: &str) -> f64 {
    let at = |name: &str| {
        let time = if name == "at" { &notice.body["at"] } else { &notice.body["timings"][name] };
        time.as_str().unwrap().parse::<Timestamp>().unwrap().as_millisecond()
    };
    (at(to) - at(from)) as f64
}

/// A morning: agents of two clouds that become ready, one whose image is missing, requests that no template serves,
/// four that wait for an instance, an hour of Jenkins' absence, builds that end.
async fn morning(stack: &mut Stack) {
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    for (id, label) in [("a", "maven"), ("b", "dial"), ("c", "node"), ("d", "node")] {
        stack.agent(id, label).await;
    }
    stack.aws().ecs.behave("jenkins-host", Behaviour::ImageMissing);
    stack.agent("no-image", "host").await;
    stack.agent("no-template", "windows").await;
    stack.send("requests", "no JSON");
    // Three fit on the instance, which already has two.
    stack.ask(json!({"requestId": "burst", "label": "maven", "count": 5}));
    stack.settle().await;
    assert!(!stack.bodies("waiting").is_empty());
    stack.sweep().await;
    stack.aws().ecs.fill_group(GROUP, 3, Timestamp::now());
    stack.unhide("waiting");
    stack.settle().await;
    for id in ["a", "b", "c"] {
        stack.complete(json!({"requestId": id}));
    }
    stack.settle().await;
    stack.sweep().await;
}

#[tokio::test]
async fn the_metrics_of_a_run_match_its_events() {
    let mut stack = Stack::start().await;
    let before = stack.aws().ecs.group(GROUP).unwrap().desired;
    morning(&mut stack).await;
    let data = stack.metrics().unwrap();
    let total = |name: &str| emf::total(&data, name);
    let notices = stack.all_notices();
    let ready: Vec<_> = notices.iter().filter(|notice| notice.kind() == "agent.ready").collect();
    let stopped = notices.iter().filter(|notice| notice.kind() == "agent.stopped").count();
    let waiting = notices.iter().filter(|notice| notice.kind() == "agent.waiting").count();
    assert_eq!(total("agents_started"), stack.tasks().len() as f64);
    assert_eq!(samples(&data, "ready_ms"), ready.len());
    assert_eq!(emf::by(&data, "agents_failed", "code"), by_code(&notices, "agent.failed"));
    assert_eq!(by_code(&notices, "agent.failed").len(), 3, "{notices:?}");
    assert_eq!(emf::by(&data, "agents_stopped", "cause"), [("COMPLETED".to_owned(), stopped as f64)].into());
    assert_eq!(emf::by(&data, "waits_begun", "waits_for"), [("instance".to_owned(), waiting as f64)].into());
    assert!(ready.len() == 9 && stopped == 3 && waiting > 0, "{notices:?}");
    for (metric, from, to) in [
        ("ready_ms", "requestedAt", "at"),
        ("waiting_ms", "requestedAt", "launchedAt"),
        ("notice_ms", "startedAt", "at"),
    ] {
        let expected: f64 = ready.iter().map(|notice| ms(notice, from, to)).sum();
        assert_eq!(total(metric), expected, "{metric}");
    }
    let stages: f64 = ["waiting_ms", "launch_ms", "pull_ms", "start_ms", "notice_ms"].map(total).iter().sum();
    assert_eq!(stages, total("ready_ms"));
    assert_eq!(total("capacity_raised"), raised_to(&stack) - f64::from(before));
    assert_eq!(total("messages_rejected"), stack.bodies("rejected").len() as f64);
    assert_eq!(total("requests_woken"), woken(&stack) as f64);
    assert_eq!(total("aws_calls"), stack.aws().journal.len() as f64);
    assert_eq!((total("aws_throttles"), total("notices_undelivered")), (0.0, 0.0));
}

fn samples(data: &[Datum], name: &str) -> usize {
    data.iter().filter(|datum| datum.name == name && datum.dimensions.is_empty()).count()
}

/// The capacity to which the group was last raised.
fn raised_to(stack: &Stack) -> f64 {
    let aws = stack.aws();
    let calls = aws.calls("autoscaling", "SetDesiredCapacity");
    calls.last().unwrap().input["DesiredCapacity"].as_str().unwrap().parse().unwrap()
}

/// The messages that the functions sent to the requests queue.
fn woken(stack: &Stack) -> usize {
    let aws = stack.aws();
    let sent = aws.calls("sqs", "SendMessage");
    sent.iter().filter(|call| call.input["QueueUrl"].as_str().unwrap().ends_with("/requests")).count()
}

#[tokio::test]
async fn the_sweep_counts_waiting_and_running_agents() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack.ask(json!({"requestId": "five", "label": "maven", "count": 5}));
    stack.settle().await;
    // Copies of a request count once, and what a stranger writes is no dimension.
    let attribute = json!({"requestId": "x", "requestedAt": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z", "attempt": 1,
        "agents": [0], "cloud": "elsewhere", "template": "stranger", "waitsFor": "instance", "reason": "x"});
    {
        let mut aws = stack.aws();
        let queue = aws.sqs.queues.get_mut("waiting").unwrap();
        let mut copy = queue.messages[0].clone();
        copy.id = "copy".into();
        let mut stranger = copy.clone();
        stranger.id = "stranger".into();
        stranger.attributes.insert("wait".into(), attribute.to_string());
        queue.messages.extend([copy, stranger]);
    }
    stack.unhide("waiting");
    let waited = Timestamp::now() + Duration::from_secs(60);
    stack.sweep_at(waited).await.unwrap();
    let data = stack.metrics().unwrap();
    let of_maven = |name: &str| emf::by(&data, name, "template").get("maven").copied();
    assert_eq!((of_maven("agents_running"), of_maven("agents_waiting")), (Some(3.0), Some(2.0)));
    assert!(of_maven("oldest_wait_ms").is_some_and(|age| (58_000.0..62_000.0).contains(&age)), "{data:?}");
    assert_eq!(emf::by(&data, "group_maximum", "cloud"), [("linux".to_owned(), 4.0)].into());
}

#[tokio::test]
async fn notices_that_jenkins_does_not_take_are_counted_each_time() {
    let mut stack = Stack::start().await;
    stack.jenkins_goes_down();
    let url = stack.webhook();
    stack.ask(json!({"requestId": "away", "label": "windows", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    let data = stack.metrics().unwrap();
    assert_eq!(emf::total(&data, "notices_undelivered"), 2.0, "its own webhook and the configured one: {data:?}");
    assert_eq!(emf::total(&data, "messages_rejected"), 1.0);
}

#[tokio::test]
async fn without_a_namespace_and_in_text_no_line_is_a_metric() {
    for (name, value) in [("METRICS_NAMESPACE", None), ("AWS_LAMBDA_LOG_FORMAT", Some("TEXT"))] {
        let mut stack = Stack::start().await;
        stack.set_env(name, value);
        stack.agent("plain", "maven").await;
        let output = stack.output();
        assert!(
            output.contains("agents_started") && !output.contains("_aws") && !output.contains("metric."),
            "{output}"
        );
    }
}

#[tokio::test]
async fn a_throttled_call_is_counted_once_and_its_attempts_as_calls() {
    let mut stack = Stack::start().await;
    stack.aws().faults.script("ecs", "RunTask", std::iter::repeat_n(Some(Fault::throttled()), 3));
    stack.ask(json!({"requestId": "throttled", "label": "maven"}));
    stack.poll(Binary::Request, "requests").await;
    let data = stack.metrics().unwrap();
    assert_eq!(emf::total(&data, "aws_throttles"), 1.0, "{data:?}");
    assert_eq!(emf::total(&data, "aws_calls"), stack.aws().journal.len() as f64);
}
