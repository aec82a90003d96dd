//! AWS X-Ray: the trace of a request, carried from its message through its task to its notice, so that one trace shows
//! the whole way from the request to the ready agent.
//!
//! Lambda traces each invocation by itself. Only we know what lies between two invocations: it is sent as one
//! segment when an agent's outcome is reported.

use std::net::{SocketAddr, UdpSocket};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::message::{Notice, NoticeType};
use crate::name::digest;

/// The name of our segments, and so of our node in X-Ray's map.
const SEGMENT: &str = "jenkins-ecs-agents";

/// A sampled trace: the part of X-Ray's tracing header that a segment needs (X-Ray developer guide, "Tracing header").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `1-5759e988-bd862e3fe1be46a994272793`
    root: String,
    /// The parent segment: 16 hex digits.
    parent: Option<String>,
}

impl Trace {
    /// Parses a header, `Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1`. None if the trace
    /// is not sampled, or the header is malformed: anyone who may send a message can write it.
    pub fn parse(header: &str) -> Option<Self> {
        let field = |name: &str| {
            let fields = header.split(';').filter_map(|field| field.trim().split_once('='));
            fields.into_iter().find_map(|(key, value)| (key == name).then_some(value))
        };
        let root = field("Root").filter(|root| {
            let parts: Vec<_> = root.split('-').collect();
            matches!(parts.as_slice(), ["1", time, id] if is_hex(time, 8) && is_hex(id, 24))
        })?;
        let is_sampled = field("Sampled") == Some("1");
        let parent = field("Parent").filter(|parent| is_hex(parent, 16));
        is_sampled.then(|| Self { root: root.to_owned(), parent: parent.map(str::to_owned) })
    }

    fn header(&self) -> String {
        let parent = self.parent.as_ref().map(|parent| format!(";Parent={parent}")).unwrap_or_default();
        format!("Root={}{parent};Sampled=1", self.root)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.header())
    }
}

/// Reads an optional trace. A malformed one counts as none: nothing else depends on it.
///
/// # Errors
/// When the value is not a text.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Trace>, D::Error> {
    let header = Option::<String>::deserialize(deserializer)?;
    Ok(header.and_then(|header| Trace::parse(&header)))
}

/// The daemon that Lambda names in `AWS_XRAY_DAEMON_ADDRESS`: `169.254.100.1:2000`, or `tcp:ADDRESS udp:ADDRESS`.
pub fn daemon(address: &str) -> Option<SocketAddr> {
    let mut addresses = address.split_whitespace().map(|one| one.strip_prefix("udp:").unwrap_or(one));
    addresses.find_map(|address| address.parse().ok())
}

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
    fn reads_the_header_of_a_sampled_trace_and_nothing_else() {
        for (rest, expected) in [
            (";Parent=53995c3f42cd8ad8;Sampled=1", Some(";Parent=53995c3f42cd8ad8;Sampled=1")),
            (";Sampled=1", Some(";Sampled=1")),
            ("; Sampled=1; Parent=53995c3f42cd8ad8", Some(";Parent=53995c3f42cd8ad8;Sampled=1")),
            (";Parent=x;Sampled=1;Lineage=a:0", Some(";Sampled=1")),
            (";Parent=53995c3f42cd8ad8;Sampled=0", None),
            (";Parent=53995c3f42cd8ad8", None),
        ] {
            let header = Trace::parse(&format!("Root={ROOT}{rest}")).map(|trace| trace.header());
            assert_eq!(header, expected.map(|rest| format!("Root={ROOT}{rest}")), "{rest}");
        }
        for root in ["", "1-5759e988", "1-5759e988-bd862e3fe1be46a99427279Z", "2-5759e988-bd862e3fe1be46a994272793"] {
            assert_eq!(Trace::parse(&format!("Root={root};Sampled=1")), None, "{root}");
        }
    }

    #[test]
    fn finds_the_daemons_udp_address() {
        let address = "127.0.0.1:2001".parse().ok();
        assert_eq!(daemon("127.0.0.1:2001"), address);
        assert_eq!(daemon("tcp:127.0.0.1:2000 udp:127.0.0.1:2001"), address);
        assert_eq!(daemon("nowhere"), None);
    }

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
