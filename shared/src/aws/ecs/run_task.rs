//! RunTask, and the meaning of its answer.

use aws_sdk_ecs::operation::run_task::RunTaskError;
use aws_sdk_ecs::operation::run_task::builders::RunTaskInputBuilder;
use aws_sdk_ecs::types as sdk;

use super::{Cluster, Task};
use crate::fault::{Fault, Kind, Placement, classify_placement};

/// The outcome of RunTask.
#[derive(Debug, Clone, PartialEq)]
pub enum RunTaskOutcome {
    /// The task exists: new, or from an earlier call with the same token.
    Started(Box<Task>),
    /// Another copy of the request has used this token and started these tasks; `None` if it found no room
    /// (ConflictException).
    Existing(Vec<String>),
    /// ECS answered definitely that it started nothing.
    NoRoom {
        /// The reasons, human-readable.
        reason: String,
        /// One for each container instance that was considered; empty where ECS named none.
        failures: Vec<PlacementFailure>,
    },
    /// ECS will never start this task.
    Refused(Fault),
    /// The outcome is unknown; the same token has to be used again.
    Unknown(Fault),
}

/// Why a container instance did not take a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementFailure {
    /// The container instance's ARN; `None` if the failure names none.
    pub instance: Option<String>,
    pub placement: Placement,
    /// In ECS' words: `RESOURCE:MEMORY`.
    pub reason: String,
}

impl Cluster {
    /// Starts a task.
    pub async fn run_task(&self, input: RunTaskInputBuilder) -> RunTaskOutcome {
        match Box::pin(input.cluster(&self.name).send_with(&self.client)).await {
            Ok(answer) => match answer.tasks.unwrap_or_default().into_iter().next() {
                Some(task) => RunTaskOutcome::Started(Box::new(task.into())),
                None => of_failures(answer.failures.unwrap_or_default()),
            },
            Err(error) => {
                if let Some(RunTaskError::ConflictException(conflict)) = error.as_service_error() {
                    return RunTaskOutcome::Existing(conflict.resource_ids().to_vec());
                }
                let fault = Fault::from_sdk("ecs:RunTask", error);
                match fault.kind {
                    Kind::NoRoom => RunTaskOutcome::NoRoom { reason: fault.message, failures: Vec::new() },
                    _ if fault.is_final() => RunTaskOutcome::Refused(fault),
                    _ => RunTaskOutcome::Unknown(fault),
                }
            }
        }
    }
}

/// Classifies an answer of failures alone: the reason that leaves the most hope decides.
fn of_failures(failures: Vec<sdk::Failure>) -> RunTaskOutcome {
    let fault = |kind, message| Fault { kind, action: "ecs:RunTask", code: None, message };
    let detail = failures.iter().find_map(|failure| failure.detail()).map(|detail| format!(" ({detail})"));
    let failures: Vec<_> = failures
        .into_iter()
        .filter_map(|failure| {
            let reason = failure.reason?;
            Some(PlacementFailure { instance: failure.arn, placement: classify_placement(&reason), reason })
        })
        .collect();
    let mut reasons: Vec<&str> = failures.iter().map(|failure| failure.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    if reasons.is_empty() {
        return RunTaskOutcome::Unknown(fault(Kind::Passing, "answered neither tasks nor failures".into()));
    }
    let text = reasons.join(", ");
    let any = |placements: &[Placement]| failures.iter().any(|failure| placements.contains(&failure.placement));
    use Placement::{NoCapacity, Size, Slots, Unavailable, Unsuitable};
    if any(&[Size, Slots, Unavailable, NoCapacity, Unsuitable]) {
        return RunTaskOutcome::NoRoom { reason: text, failures };
    }
    let text = text + &detail.unwrap_or_default();
    match any(&[Placement::Never]) {
        true => RunTaskOutcome::Refused(fault(Kind::Permanent, text)),
        false => RunTaskOutcome::Unknown(fault(Kind::Passing, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_an_answer_of_failures_by_its_reasons() {
        let outcome = |reasons: &[&str]| {
            let failures = reasons
                .iter()
                .zip(1..)
                .map(|(reason, number)| sdk::Failure::builder().arn(format!("arn-{number}")).reason(*reason).build());
            of_failures(failures.collect())
        };
        for reasons in [
            &["RESOURCE:MEMORY"][..],
            &["AGENT"],
            &["ATTRIBUTE", "RESOURCE:CPU"],
            &["distinctInstance placement constraint unsatisfied."],
            &["Capacity is unavailable at this time. Please try again later or in a different availability zone"],
            &["You've reached the limit on the number of tasks you can run concurrently"],
            // It depends on whose instance it is, which is not known here.
            &["ATTRIBUTE"],
            &["memberOf placement constraint unsatisfied."],
        ] {
            assert!(matches!(outcome(reasons), RunTaskOutcome::NoRoom { .. }), "{reasons:?}");
        }
        for reasons in [&["MISSING"][..], &["INACTIVE"]] {
            assert!(matches!(outcome(reasons), RunTaskOutcome::Refused(_)), "{reasons:?}");
        }
        for reasons in [&[][..], &["Internal error."], &["something new"]] {
            assert!(matches!(outcome(reasons), RunTaskOutcome::Unknown(_)), "{reasons:?}");
        }
        let RunTaskOutcome::NoRoom { failures, .. } = outcome(&["RESOURCE:MEMORY", "RESOURCE:ENI", "AGENT"]) else {
            panic!("no room")
        };
        let found: Vec<_> = failures.iter().map(|failure| (failure.instance.as_deref(), failure.placement)).collect();
        assert_eq!(
            found,
            [
                (Some("arn-1"), Placement::Size),
                (Some("arn-2"), Placement::Slots),
                (Some("arn-3"), Placement::Unavailable)
            ]
        );
    }
}
