//! Decides what the sweep does about our nodes whose task is gone.

use jiff::{SignedDuration, Timestamp};
use shared::jenkins::NodeState;

/// What the sweep does about one of our nodes whose task is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStep {
    /// Seen for the first time: it is taken offline, with a message that says when.
    Mark,
    /// It was already seen a minute ago.
    Delete,
    /// It was seen less than a minute ago.
    Wait,
}

/// The offline message of a node whose task is gone; the node itself records it.
const ORPHANED: &str = "jenkins-ecs-agents: its task is gone, seen ";

/// The message when it is first seen.
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
    fn deletes_a_node_without_a_task_when_it_is_seen_again() {
        let node = |cause: Option<String>| NodeState { offline_cause: cause, ..NodeState::default() };
        assert_eq!(node_step(&node(None), at(0)), NodeStep::Mark);
        let marked = node(Some(format!("Disconnected by bot : {}", orphan_message(at(0)))));
        assert_eq!(node_step(&marked, at(30)), NodeStep::Wait);
        assert_eq!(node_step(&marked, at(60)), NodeStep::Delete);
        assert_eq!(node_step(&node(Some("Connection was broken".into())), at(60)), NodeStep::Mark);
    }
}
