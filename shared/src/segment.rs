//! AWS X-Ray: the segment from a request to the outcome of its agent.

use std::net::{SocketAddr, UdpSocket};

use serde_json::{Value, json};

use crate::message::{Notice, NoticeType};
use crate::name::digest;
use crate::trace::Trace;

/// The name of our segments, and so of our node in X-Ray's map.
const SEGMENT: &str = "jenkins-ecs-agents";

/// Sends an agent's stages to the daemon, as a segment of its request's trace: over UDP, without an answer. Its id is
/// derived from the notice's, so a repeated segment replaces the first.
pub fn send(daemon: Option<SocketAddr>, trace: Option<&Trace>, notice: &Notice) {
    let (Some(daemon), Some(trace)) = (daemon, trace) else { return };
    let Some(segment) = segment(trace, notice) else { return };
    // The daemon's protocol (X-Ray developer guide, "Sending segment documents to the X-Ray daemon").
    let datagram = format!("{{\"format\": \"json\", \"version\": 1}}\n{segment}");
    let any = if daemon.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sent = UdpSocket::bind(any).and_then(|socket| socket.send_to(datagram.as_bytes(), daemon));
    if let Err(error) = sent {
        tracing::debug!(error = %error, "the X-Ray daemon did not take the segment");
    }
}

/// The segment from the request to the notice, with a subsegment for each known stage; `None` if the send time of the
/// request is unknown.
fn segment(trace: &Trace, notice: &Notice) -> Option<Value> {
    let timings = notice.timings.as_ref()?;
    let id = |of: &str| digest(&[&notice.id, of])[..16].to_owned();
    let stages = timings.stages(notice.at).into_iter().map(
        |(name, from, to)| json!({"name": name, "id": id(name), "start_time": seconds(from), "end_time": seconds(to)}),
    );
    let mut segment = json!({
        "name": SEGMENT,
        "id": id(SEGMENT),
        "trace_id": trace.root,
        "start_time": seconds(timings.requested_at?),
        "end_time": seconds(notice.at),
        "annotations": {
            "outcome": notice.kind.as_str(),
            "request": notice.request_id,
            "agent": notice.agent.as_ref().map(|agent| &agent.name),
        },
        "subsegments": stages.collect::<Vec<_>>(),
    });
    if let Some(parent) = &trace.parent {
        segment["parent_id"] = parent.as_str().into();
    }
    if let Some(failure) = notice.failure.as_ref().filter(|_| notice.kind == NoticeType::Failed) {
        segment["fault"] = true.into();
        let exception = json!({"id": id("failure"), "type": failure.code.as_str(), "message": failure.message});
        segment["cause"] = json!({"exceptions": [exception]});
    }
    Some(segment)
}

/// Seconds since 1970, with milliseconds.
fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Timings;

    const ROOT: &str = "1-5759e988-bd862e3fe1be46a994272793";

    #[test]
    fn a_segment_covers_the_time_from_the_request_to_the_notice() {
        let at = |second: i64| jiff::Timestamp::from_millisecond(1_800_000_000_500 + second * 1000).expect("a time");
        let mut notice = Notice::new(NoticeType::Ready, "ecs-maven-0123456789ab", at(40));
        let trace = Trace::parse(&format!("Root={ROOT};Parent=53995c3f42cd8ad8;Sampled=1")).expect("a trace");
        assert_eq!(segment(&trace, &notice), None, "nobody knows when it was asked for");
        notice.timings = Some(Timings {
            requested_at: Some(at(0)),
            launched_at: Some(at(1)),
            pull_started_at: Some(at(5)),
            pull_stopped_at: Some(at(25)),
            started_at: Some(at(30)),
            total_ms: None,
        });
        let found = segment(&trace, &notice).expect("a segment");
        assert_eq!(found["trace_id"], ROOT);
        assert_eq!(found["parent_id"], "53995c3f42cd8ad8");
        assert_eq!((&found["start_time"], &found["end_time"]), (&json!(1_800_000_000.5), &json!(1_800_000_040.5)));
        let stages = found["subsegments"].as_array().expect("subsegments").iter();
        let ends: Vec<_> = stages.map(|stage| (stage["name"].clone(), stage["end_time"].clone())).collect();
        let expected = [("waiting", 1), ("launch", 5), ("pull", 25), ("start", 30), ("notice", 40)];
        assert_eq!(ends, expected.map(|(name, second)| (json!(name), json!(seconds(at(second))))));
    }
}
