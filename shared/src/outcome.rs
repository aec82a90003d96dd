//! Decides what a task has become: pure.

use tracing::Level;

use crate::aws::ecs::{CONTROLLER_TAG, Container, HealthStatus, Task, TaskStatus};
use crate::message::{Failure, FailureCode, NoticeType};
use crate::stop::{Cause, Stop};

/// The state of a task, as ECS describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// It is ready, and has to be reported.
    Ready,
    /// It is not ready yet.
    NotYet,
    /// It has stopped.
    Stopped,
    /// There is nothing to report.
    Nothing(&'static str),
}

/// Classifies a task as ECS describes it, with its tags.
pub fn of_running(task: &Task, controller: &str, container: Option<&str>, has_health_check: bool) -> Running {
    if !is_or_was_ours(task, controller) {
        return Running::Nothing("the task is not this controller's");
    }
    if task.is_stopped() {
        return Running::Stopped;
    }
    if task.is_ending() {
        return Running::Nothing("the task is stopping; its last event reports the end");
    }
    if task.reported() {
        return Running::Nothing("the task was reported already");
    }
    if task.last_status != TaskStatus::Running {
        return Running::NotYet;
    }
    let health = container.and_then(|name| task.container(name)).and_then(|found| found.health_status.as_ref());
    match health {
        Some(HealthStatus::Unhealthy) => Running::NotYet,
        Some(HealthStatus::Unknown) | None if has_health_check => Running::NotYet,
        _ => Running::Ready,
    }
}

/// Whether a tag says that the task belongs to another controller.
pub fn is_anothers(task: &Task, controller: &str) -> bool {
    task.tags.get(CONTROLLER_TAG).is_some_and(|tag| tag != controller)
}

/// Whether a running task, described with its tags, is an agent of this controller. A name of our form is not enough:
/// anyone who may run tasks in the cluster can choose it.
pub fn is_ours(task: &Task, controller: &str) -> bool {
    task.tags.get(CONTROLLER_TAG).is_some_and(|tag| tag == controller)
}

/// Whether a task of our name is, or was, an agent of this controller: a task that is stopping may have lost its tags
/// (API_StopTask).
pub fn is_or_was_ours(task: &Task, controller: &str) -> bool {
    if task.is_ending() { !is_anothers(task, controller) } else { is_ours(task, controller) }
}

/// The outcome of a stopped task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Failed, unless a ready agent was reported; then stopped.
    pub kind: NoticeType,
    /// What went wrong, if anything.
    pub failure: Option<Failure>,
    /// The level at which it is logged.
    pub level: Level,
}

impl Ended {
    fn new(kind: NoticeType, failure: Option<Failure>) -> Self {
        let level = failure.as_ref().map_or(Level::INFO, |failure| failure.code.level());
        Self { kind, failure, level }
    }

    /// With a failure that nobody can prevent.
    fn expected(self) -> Self {
        Self { level: Level::INFO, ..self }
    }
}

/// Classifies a stopped task. `reported_ready` is what its tags said, `None` if that is no longer known.
pub fn of_stopped(task: &Task, container: Option<&str>, reported_ready: Option<bool>) -> Option<Ended> {
    let reason = task.stopped_reason.as_deref().unwrap_or_default();
    let stop = Stop::parse(reason);
    // A task that never ran was never ready, unless it was reported ready.
    let ran = task.started_at.is_some();
    let ready = match &stop {
        Some(stop) => ran && !stop.before_ready,
        None => reported_ready.unwrap_or(ran),
    };
    let exit_code = first_to_end(task, container).and_then(|found| found.exit_code);
    let failure = |code, message| Some(Failure { code, message, stop_code: task.stop_code.clone(), exit_code });
    match stop {
        Some(Stop { cause: Cause::Duplicate, .. }) => None,
        Some(Stop { cause: Cause::Unwanted, .. }) => Some(Ended::new(NoticeType::Stopped, None)),
        Some(Stop { cause, text, .. }) => {
            let kind = if ready { NoticeType::Stopped } else { NoticeType::Failed };
            let code = cause.failure().or((!ready).then_some(FailureCode::StartFailed));
            let ended = Ended::new(kind, code.and_then(|code| failure(code, text)));
            // The build did not wait until its agent was ready.
            Some(if cause == Cause::Completed { ended.expected() } else { ended })
        }
        None if !ready => {
            let message = start_failure(task, container, reason);
            let ended = Ended::new(NoticeType::Failed, failure(FailureCode::StartFailed, message));
            Some(if is_spot_interruption(task) { ended.expected() } else { ended })
        }
        None if is_spot_interruption(task) => {
            let message = format!("{RECLAIMED}: {reason}");
            Some(Ended::new(NoticeType::Stopped, failure(FailureCode::SpotInterruption, message)))
        }
        None => Some(Ended::new(NoticeType::Stopped, None)),
    }
}

/// `SpotInterruption` is the stop code of Fargate Spot (ECS developer guide, "Stopped task error codes"); the guide's own
/// example event has `TerminationNotice` and says "Your Spot Task was interrupted".
fn is_spot_interruption(task: &Task) -> bool {
    let reason = task.stopped_reason.as_deref().unwrap_or_default().to_ascii_lowercase();
    task.stop_code.as_deref() == Some("SpotInterruption")
        || ["spot interruption", "spot task was interrupted"].iter().any(|words| reason.contains(words))
}

/// The EC2 instance that a task ended with, in ECS' words: `Host EC2 (instance i-0123456789abcdef0) terminated.`
pub fn ended_host(task: &Task) -> Option<&str> {
    let (_, rest) = task.stopped_reason.as_deref()?.split_once("Host EC2 (instance ")?;
    rest.split_once(") terminated").map(|(id, _)| id)
}

/// The end of a task by a Spot interruption of its instance: the task itself says only that its host was terminated.
pub fn interrupted(mut ended: Ended, task: &Task) -> Ended {
    let reason = task.stopped_reason.as_deref().unwrap_or_default();
    match &mut ended.failure {
        Some(failure) => failure.message = format!("{RECLAIMED}: {}", failure.message),
        None => {
            let message = format!("{RECLAIMED}: {reason}");
            ended.failure = Some(Failure {
                stop_code: task.stop_code.clone(),
                ..Failure::new(FailureCode::SpotInterruption, message)
            });
        }
    }
    ended.expected()
}

const RECLAIMED: &str = "AWS reclaimed the Spot capacity; request another agent";

/// Exit codes of killed containers: SIGKILL, SIGTERM.
const KILLED: [i32; 2] = [137, 143];

/// The container that ended the task. ECS gives no order, but the others were stopped because of it: a container with a
/// reason of its own comes before one that failed, then one that succeeded, then one that was killed; among equals, the
/// agent's comes first.
fn first_to_end<'a>(task: &'a Task, agent: Option<&str>) -> Option<&'a Container> {
    let ended = task.containers.iter().filter(|found| found.exit_code.is_some() || found.reason.is_some());
    ended.min_by_key(|found| {
        let rank = match (&found.reason, found.exit_code) {
            (Some(_), _) => 0,
            (None, Some(code)) if code != 0 && !KILLED.contains(&code) => 1,
            (None, Some(0)) => 2,
            _ => 3,
        };
        (rank, Some(found.name.as_str()) != agent)
    })
}

/// Why a task never became an agent, in one sentence that says what to do.
fn start_failure(task: &Task, container: Option<&str>, reason: &str) -> String {
    let first = first_to_end(task, container);
    let exit = first.and_then(|first| first.exit_code);
    let all = match first {
        // ECS often repeats the container's reason as the task's.
        Some(Container { name, reason: Some(detail), .. }) if !reason.contains(detail.as_str()) => {
            format!("{reason}; container {name}: {detail}")
        }
        Some(Container { name, .. }) => format!("{reason}; container {name}"),
        None => reason.to_owned(),
    };
    let cannot_pull = ["CannotPull", "pull image manifest", "ImageNotFound"].iter().any(|words| all.contains(words));
    let hint = if cannot_pull && (all.contains("not found") || all.contains("ImageNotFound")) {
        "image not found: check its name and tag: "
    } else if cannot_pull {
        "image not pullable: check its name, the task's execution role and the network route to the registry: "
    } else if all.contains("ResourceInitializationError") {
        "the task could not be set up: check its execution role, secrets, log group and network: "
    } else if all.contains("OutOfMemory") {
        "the container was killed because it ran out of memory: raise the task's memory: "
    } else if is_spot_interruption(task) {
        "AWS reclaimed the Spot capacity; request another agent: "
    } else if exit.is_some() {
        "the container ended before the agent was ready: see its log: "
    } else {
        ""
    };
    let exit = exit.map(|code| format!(" (exit code {code})")).unwrap_or_default();
    let definition = task.task_definition_arn.as_deref().filter(|_| cannot_pull).and_then(|arn| arn.rsplit('/').next());
    let definition = definition.map(|name| format!(" (task definition {name})")).unwrap_or_default();
    format!("{hint}{all}{exit}{definition}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::ecs::REPORTED_TAG;

    fn task(status: &str) -> Task {
        Task {
            last_status: status.into(),
            desired_status: if status == "STOPPED" { "STOPPED" } else { "RUNNING" }.into(),
            containers: vec![Container { name: "agent".into(), ..Container::default() }],
            tags: [(CONTROLLER_TAG.to_owned(), "https://ci/".to_owned())].into(),
            started_at: Some(jiff::Timestamp::UNIX_EPOCH),
            ..Task::default()
        }
    }

    #[test]
    fn a_running_task_is_ready_once() {
        let state = |task: &Task, check| of_running(task, "https://ci/", Some("agent"), check);
        assert_eq!(state(&task("RUNNING"), false), Running::Ready);
        assert_eq!(state(&task("PENDING"), false), Running::NotYet);
        assert_eq!(state(&task("STOPPED"), false), Running::Stopped);
        assert_eq!(state(&task("RUNNING"), true), Running::NotYet);
        for (health, ready) in [("HEALTHY", true), ("UNHEALTHY", false), ("UNKNOWN", false)] {
            let mut task = task("RUNNING");
            task.containers[0].health_status = Some(health.into());
            assert_eq!(state(&task, true) == Running::Ready, ready, "{health}");
        }
        let mut reported = task("RUNNING");
        reported.tags.insert(REPORTED_TAG.into(), "ready 2026".into());
        assert!(matches!(state(&reported, false), Running::Nothing(_)));
        let mut anothers = task("RUNNING");
        anothers.tags.insert(CONTROLLER_TAG.into(), "https://other/".into());
        assert!(matches!(state(&anothers, false), Running::Nothing(_)));
        let mut untagged = task("RUNNING");
        untagged.tags.clear();
        assert!(matches!(state(&untagged, false), Running::Nothing(_)));
        let mut ending = task("RUNNING");
        ending.desired_status = "STOPPED".into();
        assert!(matches!(state(&ending, false), Running::Nothing(_)));
    }

    #[test]
    fn classifies_the_end_of_a_task() {
        use FailureCode::*;
        use NoticeType::*;
        for (reason, stop_code, started, reported, kind, code) in [
            (
                "Essential container in task exited",
                "EssentialContainerExited",
                true,
                Some(false),
                Failed,
                Some(StartFailed),
            ),
            ("Essential container in task exited", "EssentialContainerExited", true, Some(true), Stopped, None),
            ("CannotPullContainerError: x", "TaskFailedToStart", false, Some(false), Failed, Some(StartFailed)),
            ("Your Spot Task was interrupted.", "TerminationNotice", true, Some(true), Stopped, Some(SpotInterruption)),
            ("Scaling activity", "SpotInterruption", true, Some(true), Stopped, Some(SpotInterruption)),
            ("COMPLETED: build a #1 is over: SUCCESS", "UserInitiated", true, None, Stopped, None),
            ("COMPLETED: build a #1 is over: ABORTED", "UserInitiated", false, None, Failed, Some(StartFailed)),
            ("START_TIMEOUT before ready: x", "UserInitiated", true, None, Failed, Some(StartTimeout)),
            ("LIFETIME_EXCEEDED: x", "UserInitiated", true, None, Stopped, Some(LifetimeExceeded)),
            ("IDLE: x", "UserInitiated", true, None, Stopped, Some(Idle)),
            ("UNUSABLE before ready: no port", "UserInitiated", true, None, Failed, Some(StartFailed)),
            ("UNWANTED before ready: x", "UserInitiated", true, None, Stopped, None),
        ] {
            let mut task = task("STOPPED");
            task.stopped_reason = Some(reason.into());
            task.stop_code = Some(stop_code.into());
            task.started_at = task.started_at.filter(|_| started);
            let ended = of_stopped(&task, Some("agent"), reported).expect(reason);
            assert_eq!((ended.kind, ended.failure.map(|failure| failure.code)), (kind, code), "{reason}");
        }
        let mut duplicate = task("STOPPED");
        duplicate.stopped_reason = Some("DUPLICATE: x".into());
        assert_eq!(of_stopped(&duplicate, Some("agent"), None), None);
    }

    #[test]
    fn logs_an_unpreventable_end_below_error() {
        for (reason, reported, level) in [
            ("CannotPullContainerError: x", false, Level::ERROR),
            ("START_TIMEOUT before ready: x", false, Level::ERROR),
            ("LIFETIME_EXCEEDED: x", true, Level::WARN),
            ("IDLE: x", true, Level::INFO),
            ("COMPLETED: build a #1 is over: ABORTED", false, Level::INFO),
            ("Your Spot Task was interrupted.", false, Level::INFO),
            ("Your Spot Task was interrupted.", true, Level::INFO),
        ] {
            let mut task = task("STOPPED");
            task.stopped_reason = Some(reason.into());
            task.started_at = task.started_at.filter(|_| reported);
            let level_of = |ended: Option<Ended>| ended.map(|ended| ended.level);
            assert_eq!(level_of(of_stopped(&task, Some("agent"), Some(reported))), Some(level), "{reason}");
        }
    }

    #[test]
    fn blames_the_container_that_ended_first() {
        let container = |name: &str, exit_code: i32, reason: Option<&str>| Container {
            name: name.into(),
            exit_code: Some(exit_code),
            reason: reason.map(Into::into),
            ..Container::default()
        };
        let oom = Some("OutOfMemoryError: Container killed due to memory usage");
        for (containers, blamed, for_memory) in [
            ([("agent", 137, None), ("sidecar", 1, None)], "sidecar (exit code 1)", false),
            ([("sidecar", 143, None), ("agent", 3, None)], "agent (exit code 3)", false),
            ([("agent", 143, None), ("sidecar", 0, None)], "sidecar (exit code 0)", false),
            ([("sidecar", 0, None), ("agent", 0, None)], "agent (exit code 0)", false),
            ([("sidecar", 137, None), ("agent", 137, None)], "agent (exit code 137)", false),
            ([("sidecar", 137, oom), ("agent", 1, None)], "sidecar: OutOfMemoryError", true),
        ] {
            let mut task = task("STOPPED");
            task.containers = containers.map(|(name, code, reason)| container(name, code, reason)).to_vec();
            task.stopped_reason = Some("Essential container in task exited".into());
            let failure =
                of_stopped(&task, Some("agent"), Some(false)).and_then(|ended| ended.failure).expect("a failure");
            assert!(failure.message.contains(&format!("container {blamed}")), "{containers:?}: {}", failure.message);
            assert_eq!(failure.message.contains("memory"), for_memory, "{containers:?}: {}", failure.message);
        }
    }

    #[test]
    fn recognises_a_terminated_host() {
        let mut task = task("STOPPED");
        task.stopped_reason = Some("Host EC2 (instance i-0123456789abcdef0) terminated.".into());
        assert_eq!(ended_host(&task), Some("i-0123456789abcdef0"));
        let ended =
            of_stopped(&task, Some("agent"), Some(true)).map(|ended| interrupted(ended, &task)).expect("an end");
        assert_eq!(ended.failure.map(|failure| failure.code), Some(FailureCode::SpotInterruption));
        task.stopped_reason = Some("Essential container in task exited".into());
        assert_eq!(ended_host(&task), None);
    }
}
