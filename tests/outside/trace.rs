//! X-Ray: what the daemon receives over UDP.

use std::net::UdpSocket;
use std::time::Duration;

use jiff::Timestamp;
use local::aws::ecs::Behaviour;
use serde_json::{Value, json};
use tests::{Binary, GROUP, Stack};

const ROOT: &str = "1-5759e988-bd862e3fe1be46a994272793";
const PARENT: &str = "53995c3f42cd8ad8";

/// A system whose functions use an X-Ray daemon, and that daemon.
async fn traced() -> (Stack, UdpSocket) {
    let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
    daemon.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut stack = Stack::start().await;
    stack.set_env("AWS_XRAY_DAEMON_ADDRESS", Some(&daemon.local_addr().unwrap().to_string()));
    (stack, daemon)
}

/// The next segment, unless none comes.
fn segment(daemon: &UdpSocket) -> Option<Value> {
    let mut buffer = vec![0; 64 * 1024];
    let length = daemon.recv(&mut buffer).ok()?;
    let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
    let (header, document) = text.split_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Value>(header).unwrap(), json!({"format": "json", "version": 1}));
    Some(serde_json::from_str(document).unwrap())
}

fn header() -> String {
    format!("Root={ROOT};Parent={PARENT};Sampled=1")
}

/// Sends a request with a tracing header.
fn ask_traced(stack: &Stack, id: &str, label: &str, header: &str) {
    let body = json!({"version": 1, "requestId": id, "label": label}).to_string();
    stack.aws().sqs.send_traced("requests", &body, header, Timestamp::now());
}

/// X-Ray's requirements for a segment and its subsegments ("X-Ray segment documents"), and that each stage begins where
/// the one before ends.
fn assert_sound(segment: &Value) {
    let is_hex = |value: &Value, digits: usize| {
        value.as_str().is_some_and(|id| id.len() == digits && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let mut end = segment["start_time"].as_f64().unwrap();
    let mut ids = vec![segment["id"].clone()];
    for stage in segment["subsegments"].as_array().unwrap() {
        assert_eq!(stage["start_time"].as_f64().unwrap(), end, "{segment}");
        end = stage["end_time"].as_f64().unwrap();
        ids.push(stage["id"].clone());
    }
    assert_eq!(segment["end_time"].as_f64().unwrap(), end, "{segment}");
    assert!(ids.iter().all(|id| is_hex(id, 16)), "{segment}");
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), segment["subsegments"].as_array().unwrap().len() + 1, "{segment}");
}

#[tokio::test]
async fn a_ready_agent_is_a_segment_of_its_requests_trace() {
    let (mut stack, daemon) = traced().await;
    ask_traced(&stack, "traced", "maven", &header());
    stack.settle().await;
    let found = segment(&daemon).unwrap();
    assert_eq!((&found["trace_id"], &found["parent_id"]), (&json!(ROOT), &json!(PARENT)));
    let notice = stack.all_notices().remove(0);
    assert_eq!(found["annotations"]["agent"], notice.agent());
    assert_eq!(found["annotations"]["request"], "traced");
    let at = |time: &Value| time.as_str().unwrap().parse::<Timestamp>().unwrap().as_duration().as_secs_f64();
    assert_eq!(found["start_time"], at(&notice.body["timings"]["requestedAt"]));
    assert_eq!(found["end_time"], at(&notice.body["at"]));
    assert_sound(&found);
    assert_eq!(segment(&daemon), None, "one agent, one segment");
}

#[tokio::test]
async fn a_request_that_waited_keeps_its_trace() {
    let (mut stack, daemon) = traced().await;
    stack.aws().ecs.fill_group(GROUP, 0, Timestamp::now());
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack.advance().clear();
    ask_traced(&stack, "waits", "maven", &header());
    stack.settle().await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    stack.unhide("waiting");
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.waiting", "agent.ready"]);
    let found = segment(&daemon).unwrap();
    assert_eq!((&found["trace_id"], &found["subsegments"][0]["name"]), (&json!(ROOT), &json!("waiting")));
    assert_sound(&found);
}

#[tokio::test]
async fn without_a_header_the_request_gets_the_invocations_trace() {
    let (mut stack, daemon) = traced().await;
    stack.function(Binary::Request).await.set_trace(&header());
    stack.agent("lambda", "maven").await;
    let found = segment(&daemon).unwrap();
    assert_eq!((&found["trace_id"], &found["parent_id"]), (&json!(ROOT), &json!(PARENT)));
}

#[tokio::test]
async fn a_failed_start_is_a_fault_in_its_trace() {
    let (mut stack, daemon) = traced().await;
    stack.aws().ecs.behave("jenkins-maven", Behaviour::ImageMissing);
    ask_traced(&stack, "fails", "maven", &header());
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.failed START_FAILED"]);
    let found = segment(&daemon).unwrap();
    assert_eq!((&found["trace_id"], &found["fault"]), (&json!(ROOT), &json!(true)));
    assert_eq!(found["cause"]["exceptions"][0]["type"], "START_FAILED");
    assert_sound(&found);
}

#[tokio::test]
async fn traces_only_sampled_requests_with_a_valid_header() {
    let (mut stack, daemon) = traced().await;
    let unsampled = header().replace("Sampled=1", "Sampled=0");
    for (id, header) in [("unsampled", unsampled.as_str()), ("nonsense", "Root=1-x;Sampled=1"), ("empty", "")] {
        ask_traced(&stack, id, "maven", header);
    }
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.ready"; 3]);
    assert_eq!(segment(&daemon), None);
    for input in stack.inputs("RunTask") {
        assert!(!input.to_string().contains("Sampled"), "{input}");
    }
}
