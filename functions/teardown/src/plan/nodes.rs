//! What the sweep does about nodes of ours whose task is gone.

use jiff::{SignedDuration, Timestamp};
use shared::jenkins::NodeState;

/// What the sweep does about a node of ours whose task is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStep {
    /// First sight: it is taken offline, which says since when.
    Mark,
    /// It was seen a minute ago already.
    Delete,
    /// It was seen less than a minute ago.
    Wait,
}

/// What the sweep writes into a node whose task is gone; the node itself remembers.
const ORPHANED: &str = "jenkins-ecs-agents: its task is gone, seen ";

/// The message of a first sight.
pub fn orphan_message(now: Timestamp) -> String {
    format!("{ORPHANED}{now}")
}

/// Decides what becomes of a node whose task is gone.
pub fn node_step(node: &NodeState, now: Timestamp) -> NodeStep {
    let since = node
        .offline_cause
        .as_deref()
        .and_then(|cause| cause.rsplit_once(ORPHANED))
        .and_then(|(_, time)| time.split_whitespace().next()?.parse::<Timestamp>().ok());
    match since {
        None => NodeStep::Mark,
        Some(since) if now.duration_since(since) >= SignedDuration::from_secs(55) => NodeStep::Delete,
        Some(_) => NodeStep::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::at;

    #[test]
    fn a_node_without_a_task_goes_at_the_second_sight() {
        let node = |cause: Option<String>| NodeState { offline_cause: cause, ..NodeState::default() };
        assert_eq!(node_step(&node(None), at(0)), NodeStep::Mark);
        let marked = node(Some(format!("Disconnected by bot : {}", orphan_message(at(0)))));
        assert_eq!(node_step(&marked, at(30)), NodeStep::Wait);
        assert_eq!(node_step(&marked, at(60)), NodeStep::Delete);
        assert_eq!(node_step(&node(Some("Connection was broken".into())), at(60)), NodeStep::Mark);
    }
}
