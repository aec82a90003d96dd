//! What a later copy of a request is told.

use std::time::Duration;

use jiff::Timestamp;
use shared::aws::ecs::Task;

/// Whether RunTask's answer shows a task of an earlier message, so that this one is an inquiry: it was sent when the
/// task was there already. A message that comes back after a fault, or twice, was sent before, and its task is told of
/// by its events.
pub fn is_inquiry(task: &Task, asked: Option<Timestamp>) -> bool {
    const SKEW: Duration = Duration::from_secs(1);
    let has_begun = !task.last_status.is_before_running();
    match (task.created_at, asked) {
        // Two clocks may differ by so much; a task that runs already was not started by this call.
        (Some(created), Some(asked)) => created + SKEW < asked || (has_begun && created <= asked),
        _ => has_begun,
    }
}

/// What an inquiry is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer<'a> {
    /// The agent is ready: it is told again.
    Ready(&'a Task),
    /// The agent had ended when it was asked for; nothing is known of its task any more, perhaps.
    Ended(Option<&'a Task>),
    /// Its outcome is told after the question, as that of any agent.
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
