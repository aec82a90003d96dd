//! The answer to a later copy of a request.

use std::time::Duration;

use jiff::Timestamp;
use shared::aws::ecs::Task;

/// Whether RunTask's answer shows a task of an earlier message, so that this one is an inquiry: it was sent when the
/// task existed already. A message that comes back after a fault, or twice, was sent before; its task is reported by
/// its events.
pub fn is_inquiry(task: &Task, asked: Option<Timestamp>) -> bool {
    const SKEW: Duration = Duration::from_secs(1);
    let has_begun = !task.last_status.is_before_running();
    match (task.created_at, asked) {
        // The tolerated difference of two clocks; a task that already runs was not started by this call.
        (Some(created), Some(asked)) => created + SKEW < asked || (has_begun && created <= asked),
        _ => has_begun,
    }
}

/// The answer to an inquiry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer<'a> {
    /// The agent is ready, which is reported again.
    Ready(&'a Task),
    /// The agent had ended when the inquiry was sent; its task may be forgotten.
    Ended(Option<&'a Task>),
    /// Its outcome will be reported by its events, after the inquiry.
    Nothing,
}

/// Answers an inquiry from the tasks of the agent's name.
pub fn answer(tasks: &[Task], asked: Option<Timestamp>) -> Answer<'_> {
    let before = |time: Option<Timestamp>| match (time, asked) {
        // SQS cuts its milliseconds.
        (Some(time), Some(asked)) => time <= asked,
        _ => true,
    };
    match tasks.iter().find(|task| !task.is_ending()) {
        Some(task) if task.reported_ready() && before(task.reported_at()) => Answer::Ready(task),
        Some(_) => Answer::Nothing,
        None => match tasks.first() {
            Some(task) if task.is_stopped() && before(task.stopped_at) => Answer::Ended(Some(task)),
            Some(_) => Answer::Nothing,
            None => Answer::Ended(None),
        },
    }
}
