//! The totals of the metrics in the log. (Every test from outside checks that each line with metrics follows
//! CloudWatch's specification.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use local::aws::Fault;
use serde_json::{Value, json};
use tests::emf::{self, Datum};
use tests::{Binary, Notice, Stack};

use crate::whole_run::{cause, notices, whole_run};

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

#[tokio::test]
async fn the_metrics_of_a_run_match_its_events() {
    let run = whole_run().await;
    let stack = &run.stack;
    let data = stack.metrics().unwrap();
    let total = |name: &str| emf::total(&data, name);
    let (tasks, notices) = (stack.tasks(), notices(stack));
    let ready: Vec<_> = notices.iter().filter(|notice| notice.kind() == "agent.ready").collect();
    assert_eq!(total("agents_started"), tasks.len() as f64);
    assert_eq!(samples(&data, "ready_ms"), ready.len());
    assert_eq!(emf::by(&data, "agents_failed", "code"), by_code(&notices, "agent.failed"));
    // Of the failed ones, the whole run aborts none before it is ready.
    let mut unstarted = by_code(&notices, "agent.failed");
    unstarted.retain(|code, _| code.starts_with("START_"));
    assert_eq!(emf::by(&data, "starts_failed", "code"), unstarted);
    let mut stopped = by_code(&notices, "agent.stopped");
    assert_eq!(total("agents_stopped"), stopped.values().sum::<f64>());
    stopped.remove("");
    assert_eq!(emf::by(&data, "agents_stopped", "code"), stopped);
    let mut causes = BTreeMap::new();
    for notice in notices.iter().filter(|notice| notice.kind() == "agent.stopped" && notice.code().is_empty()) {
        *causes.entry(cause(&tasks, notice.agent())).or_default() += 1.0;
    }
    assert_eq!(emf::by(&data, "agents_stopped", "cause"), causes);
    assert_eq!(emf::by(&data, "waits_begun", "waits_for"), waits(stack));
    assert!(by_code(&notices, "agent.failed").len() > 5 && stopped.len() > 2 && causes.len() > 1, "{notices:?}");
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
    assert_eq!(total("capacity_raised"), run.raised() as f64);
    let given_back = stack.count("autoscaling:TerminateInstanceInAutoScalingGroup");
    assert!(run.raised() > 0 && given_back > 0);
    assert_eq!(total("instances_given_back"), given_back as f64);
    assert_eq!(total("messages_rejected"), stack.bodies("rejected").len() as f64);
    assert_eq!(total("requests_woken"), sent(stack, "requests").len() as f64);
    assert_eq!(total("aws_calls"), stack.aws().journal.len() as f64);
    let refused = stack.jenkins().exchanges().iter().filter(|exchange| exchange.status.is_server_error()).count();
    assert_eq!((total("aws_throttles"), total("notices_undelivered")), (1.0, refused as f64));
}

fn samples(data: &[Datum], name: &str) -> usize {
    data.iter().filter(|datum| datum.name == name && datum.dimensions.is_empty()).count()
}

/// The messages that the functions sent to a queue.
fn sent(stack: &Stack, queue: &str) -> Vec<Value> {
    let aws = stack.aws();
    let sent = aws.calls("sqs", "SendMessage").into_iter().map(|call| call.input.clone());
    sent.filter(|input| input["QueueUrl"].as_str().unwrap().ends_with(&format!("/{queue}"))).collect()
}

/// The agents that went to the waiting queue, each counted once, by what they waited for first.
fn waits(stack: &Stack) -> BTreeMap<String, f64> {
    let mut known = BTreeSet::new();
    let mut waits = BTreeMap::new();
    for message in sent(stack, "waiting") {
        let wait: Value =
            serde_json::from_str(message["MessageAttributes"]["wait"]["StringValue"].as_str().unwrap()).unwrap();
        for agent in wait["agents"].as_array().unwrap() {
            if known.insert(format!("{} {agent}", wait["requestId"])) {
                *waits.entry(wait["waitsFor"].as_str().unwrap().to_owned()).or_default() += 1.0;
            }
        }
    }
    waits
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
async fn by_default_totals_and_codes_are_reported_and_nothing_where_nothing_happens() {
    let mut stack = Stack::start().await;
    stack.set_env("METRICS_BY_TEMPLATE", None);
    stack.sweep().await;
    assert_eq!(stack.metrics().unwrap(), [], "an idle stack");
    assert!(stack.output().contains("aws_calls"), "the log says it all the same");
    stack.agent("a", "maven").await;
    stack.agent("no-template", "windows").await;
    stack.sweep().await;
    let data = stack.metrics().unwrap();
    assert_eq!(emf::by(&data, "agents_failed", "code"), [("NO_TEMPLATE".to_owned(), 1.0)].into());
    assert_eq!((emf::total(&data, "agents_started"), samples(&data, "ready_ms")), (1.0, 1));
    assert_eq!(emf::total(&data, "agents_running"), 1.0);
    let others =
        data.iter().filter(|datum| datum.name == "aws_calls" || datum.dimensions.keys().any(|name| name != "code"));
    assert_eq!(others.count(), 0, "{data:?}");
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
