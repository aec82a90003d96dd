//! AWS X-Ray: the trace of a request, carried from its message through its task to its notice, so that one trace shows
//! the whole way from the request to the ready agent.
//!
//! Lambda traces each invocation by itself. Only we know what lies between two invocations: it is sent as one
//! segment when an agent's outcome is reported.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A sampled trace: the part of X-Ray's tracing header that a segment needs (X-Ray developer guide, "Tracing header").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `1-5759e988-bd862e3fe1be46a994272793`
    pub(crate) root: String,
    /// The parent segment: 16 hex digits.
    pub(crate) parent: Option<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
