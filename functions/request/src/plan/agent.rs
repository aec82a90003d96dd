//! The next step of one agent, from what is known of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use shared::aws::ecs::{PlacementFailure, RunTaskOutcome};
use shared::config::Connect;
use shared::fault::Fault;
use shared::message::{Failure, FailureCode};

use super::Order;
use super::inquiry::is_inquiry;

/// What is known of an agent that is being placed.
#[derive(Debug, Default)]
pub struct Known {
    /// How often the message was received, this time included.
    pub receives: u32,
    /// Whether a copy of the request has begun to wait in this process.
    pub has_waited: bool,
    /// The tasks of its name, once they were looked for; looked for again after RunTask.
    pub found: Option<Result<Vec<String>, Fault>>,
    /// What an inbound agent needs to connect, once its node exists.
    pub inbound: Option<Result<BTreeMap<String, String>, Fault>>,
    pub outcome: Option<RunTaskOutcome>,
    /// Whether RunTask's answer shows a task that was started for another message.
    pub is_copy: bool,
}

/// The next step of an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Look for tasks of its name.
    LookForTask,
    /// Create the node of an inbound agent.
    CreateNode,
    RunTask,
    /// Tasks of its name exist: the request is answered from them.
    Answer(Vec<String>),
    /// Its task was started.
    Started,
    Wait {
        reason: String,
        failures: Vec<PlacementFailure>,
    },
    Fail(Failure),
    /// The message has to come back.
    Retry(Fault),
}

/// The next step. `asked` is when the request was sent.
pub fn next(order: &Order<'_>, known: &Known, asked: Option<Timestamp>) -> Step {
    let launch_failed = |message: String| Step::Fail(Failure::new(FailureCode::LaunchFailed, message));
    match (&known.outcome, &known.found) {
        (None, None) if must_look(order, known) => Step::LookForTask,
        (_, Some(Ok(arns))) if !arns.is_empty() => Step::Answer(arns.clone()),
        // An expired request whose agent cannot be looked up is reported as failed.
        (None, Some(Err(fault))) if order.expired.is_none() || !fault.is_final() => Step::Retry(fault.clone()),
        (None, _) => match (&order.expired, &known.inbound) {
            (Some(failure), _) => Step::Fail(failure.clone()),
            (None, None) if order.template.connect == Connect::Inbound => Step::CreateNode,
            (None, Some(Err(fault))) if fault.is_final() => {
                launch_failed(format!("Jenkins refuses the agent's node: {}", fault.message))
            }
            (None, Some(Err(fault))) => Step::Retry(fault.clone()),
            (None, _) => Step::RunTask,
        },
        (Some(RunTaskOutcome::Started(task)), _) if known.is_copy || is_inquiry(task, asked) => {
            Step::Answer(vec![task.arn.clone()])
        }
        (Some(RunTaskOutcome::Started(_)), _) => Step::Started,
        (Some(RunTaskOutcome::Existing(arns)), _) if !arns.is_empty() => Step::Answer(arns.clone()),
        (Some(RunTaskOutcome::Existing(_)), None) => Step::LookForTask,
        (Some(RunTaskOutcome::Existing(_)), Some(Err(fault))) => Step::Retry(fault.clone()),
        (Some(RunTaskOutcome::Existing(_)), Some(Ok(_))) => {
            Step::Wait { reason: "another copy of the request found no room".into(), failures: Vec::new() }
        }
        (Some(RunTaskOutcome::NoRoom { reason, failures }), _) => {
            Step::Wait { reason: reason.clone(), failures: failures.clone() }
        }
        (Some(RunTaskOutcome::Refused(fault)), _) => launch_failed(fault.to_string()),
        (Some(RunTaskOutcome::Unknown(fault)), _) => Step::Retry(fault.clone()),
    }
}

/// Whether a task may exist that RunTask's token does not find. A copy of a request that has waited may have found room
/// under another token; an expired request may have an agent; and if a try was cut short after it started its task, an
/// inbound agent must not get a second node, which would outlive it.
fn must_look(order: &Order<'_>, known: &Known) -> bool {
    let was_tried = known.receives > 1 && order.template.connect == Connect::Inbound;
    was_tried || order.attempt() > 0 || known.has_waited || order.expired.is_some()
}
