//! Decides what the sweep does about tasks.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use shared::aws::ecs::{IDLE_SINCE_TAG, KEEP_TAG, Task, TaskStatus};
use shared::config::duration::elapsed;
use shared::config::{Cloud, Connect, Limit, Template};
use shared::jenkins::NodeState;
use shared::stop::{Cause, Stop};

/// What the sweep does about one task.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskStep {
    /// Nothing to do.
    Leave,
    /// It is stopped.
    Stop(Stop),
    /// It runs and was not reported.
    Report,
    /// The same, but it should have been ready long ago: unless it is ready now, it is stopped with the reason, which
    /// is completed then.
    ReportOrStop(Stop),
    /// A build runs on it, but it is not recorded as reported.
    AtWork,
    /// It is idle from now on.
    MarkIdle(Idle),
    /// It is busy again.
    MarkBusy,
}

/// What Jenkins knows of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Nothing: it has no nodes of ours, or does not show them to us.
    Unknown,
    /// Nothing: it could not be queried.
    Away,
    /// The node does not exist.
    Missing,
    /// The node exists.
    Node(&'a NodeState),
}

/// Decides what becomes of a task that ECS keeps running; the first rule that applies decides. Without a template, the
/// defaults of a template apply.
pub fn task_step(task: &Task, cloud: &Cloud, template: Option<&Template>, seen: Seen<'_>, now: Timestamp) -> TaskStep {
    if task.tags.contains_key(KEEP_TAG) || task.is_ending() {
        return TaskStep::Leave;
    }
    let Some(created) = task.created_at else { return TaskStep::Leave };
    let lifetime = template.map_or(Limit::minutes(24 * 60), |template| template.max_lifetime);
    let is_outlived = lifetime.is_over(created, now);
    let is_reported = task.reported();
    // Jenkins accepted the notice and its answer was lost: the build runs.
    let is_busy = matches!(seen, Seen::Node(node) if node.idle == Some(false));
    if !is_reported && is_busy && !is_outlived {
        return TaskStep::AtWork;
    }
    if !is_reported && let Some(step) = start_step(task, (cloud, template), seen, is_outlived, now) {
        return step;
    }
    if is_outlived {
        let mut stop = Stop::new(Cause::LifetimeExceeded, format!("the agent is older than {lifetime}"));
        stop.before_ready = !is_reported && !is_busy;
        return TaskStep::Stop(stop);
    }
    match is_reported {
        true => idle_step(task, template, seen, now),
        false => report_step(task, template, seen, now),
    }
}

/// What becomes of a task that is not ready in time.
fn start_step(
    task: &Task,
    (cloud, template): (&Cloud, Option<&Template>),
    seen: Seen<'_>,
    is_outlived: bool,
    now: Timestamp,
) -> Option<TaskStep> {
    let limit = template.map_or(Limit::minutes(15), |template| template.container_start_timeout);
    let runs = task.last_status == TaskStatus::Running;
    let mut begun = task.created_at?;
    if template.is_some_and(Template::waits_in_ecs) {
        let wait = cloud.instance_launch_timeout;
        if task.last_status == TaskStatus::Provisioning {
            let text = || format!("no room within {wait}: no instance of a capacity provider has taken the task");
            return wait.is_over(begun, now).then(|| TaskStep::Stop(Stop::new(Cause::CapacityTimeout, text())));
        }
        // ECS does not report when a task got its instance: at the latest when the wait was over.
        let at_the_latest = wait.0.and_then(|wait| begun.checked_add(wait).ok());
        begun = task.pull_started_at.or(task.started_at).or(at_the_latest)?;
    }
    // While Jenkins is away, it is not the agent that is late; but no agent outlives its lifetime.
    if !limit.is_over(begun, now) || (runs && (seen == Seen::Away || is_outlived)) {
        return None;
    }
    let overdue = |why: &str| Stop::new(Cause::StartTimeout, format!("not ready within {limit}{why}"));
    Some(match runs {
        true => TaskStep::ReportOrStop(overdue("")),
        false => TaskStep::Stop(overdue(&format!(": the task is {}", task.last_status))),
    })
}

/// Whether a task is reported whose event is late or lost.
fn report_step(task: &Task, template: Option<&Template>, seen: Seen<'_>, now: Timestamp) -> TaskStep {
    let runs = task.last_status == TaskStatus::Running;
    match task.started_at.filter(|_| runs && seen != Seen::Away) {
        Some(started) if elapsed(started, now) >= event_wait(template, seen) => TaskStep::Report,
        _ => TaskStep::Leave,
    }
}

/// How long after its start a task whose outcome is not recorded is left to its event and to the undelivered queue. If
/// only the record is missing, nobody may be notified again.
fn event_wait(template: Option<&Template>, seen: Seen<'_>) -> Duration {
    let is_ssh = template.is_some_and(|template| template.connect == Connect::Ssh);
    match seen {
        // The node of an SSH agent is created by the event, just before the notice. After a failure the event is
        // repeated one and three minutes later, or is in the undelivered queue.
        Seen::Node(_) if is_ssh => Duration::from_secs(300),
        // A notified build takes an inbound agent as soon as it is online: its event is late or lost. Half a minute is
        // more than EventBridge takes.
        Seen::Node(node) if !node.offline => Duration::from_secs(30),
        Seen::Missing => Duration::from_secs(30),
        // Unknown; time to retry the record.
        Seen::Node(_) | Seen::Unknown | Seen::Away => Duration::from_secs(90),
    }
}

/// How long the record of a notice may be missing while the undelivered queue has messages: the longest pause between two
/// attempts, and a sweep.
const RECORD_WAIT: Duration = Duration::from_secs(1000);

/// Whether the notice of a task that runs may have been delivered without a record of that. `is_pending`: whether the
/// undelivered queue has messages, of which one may be the record.
pub fn may_be_notified(task: &Task, seen: Seen<'_>, is_pending: bool, now: Timestamp) -> bool {
    // The node is created before the notice.
    let may_be = is_pending && seen != Seen::Missing && lacks_record(task);
    may_be && task.started_at.is_some_and(|started| elapsed(started, now) < RECORD_WAIT)
}

/// Whether a task has started, and no notice of it is recorded.
pub fn lacks_record(task: &Task) -> bool {
    task.started_at.is_some() && !task.reported() && !task.is_ending()
}

fn idle_step(task: &Task, template: Option<&Template>, seen: Seen<'_>, now: Timestamp) -> TaskStep {
    let (state, limit, text) = match seen {
        Seen::Unknown | Seen::Away => return TaskStep::Leave,
        // Seen twice a minute apart: Jenkins may be about to create it.
        Seen::Missing => (Some(Idle::Missing), TWO_SWEEPS, "Jenkins no longer has its node".to_owned()),
        Seen::Node(node) => {
            let limit = template.and_then(|template| template.idle_timeout).unwrap_or(Limit::minutes(10));
            let text = match node.offline {
                true => {
                    format!("offline in Jenkins for {limit}: see the node's log in Jenkins for why it is not connected")
                }
                false => format!("idle in Jenkins for {limit}"),
            };
            ((node.idle == Some(true)).then_some(Idle::Idle), limit, text)
        }
    };
    let tag = task.tags.get(IDLE_SINCE_TAG);
    let since = tag.and_then(|tag| Idle::parse(tag)).filter(|(tagged, _)| Some(*tagged) == state);
    match (state, since) {
        (None, _) if tag.is_some() => TaskStep::MarkBusy,
        (None, _) => TaskStep::Leave,
        (Some(state), None) => TaskStep::MarkIdle(state),
        (Some(_), Some((_, since))) if limit.is_over(since, now) => TaskStep::Stop(Stop::new(Cause::Idle, text)),
        (Some(_), Some(_)) => TaskStep::Leave,
    }
}

/// The time between two sweeps, a little less than their minute.
const TWO_SWEEPS: Limit = Limit(Some(Duration::from_secs(55)));

/// Why an agent is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// No build runs on its node.
    Idle,
    /// It has no node.
    Missing,
}

impl Idle {
    const MISSING: &str = "missing ";

    /// The value of a task's tag [`IDLE_SINCE_TAG`].
    pub fn tag(self, since: Timestamp) -> String {
        match self {
            Self::Idle => since.to_string(),
            Self::Missing => format!("{}{since}", Self::MISSING),
        }
    }

    fn parse(tag: &str) -> Option<(Self, Timestamp)> {
        match tag.strip_prefix(Self::MISSING) {
            Some(since) => Some((Self::Missing, since.parse().ok()?)),
            None => Some((Self::Idle, tag.parse().ok()?)),
        }
    }
}

/// The younger of two tasks of the same name.
pub fn duplicates<'a>(tasks: impl Iterator<Item = &'a Task>) -> Vec<(&'a Task, Stop)> {
    let mut by_name: HashMap<&str, Vec<&Task>> = HashMap::new();
    for task in tasks.filter(|task| !task.is_ending()) {
        by_name.entry(task.started_by.as_deref().unwrap_or_default()).or_default().push(task);
    }
    let mut found: Vec<(&Task, Stop)> = by_name
        .into_values()
        .flat_map(|mut tasks| {
            tasks.sort_by_key(|task| (task.created_at, task.arn.clone()));
            let eldest = tasks.first().map(|task| task.arn.clone()).unwrap_or_default();
            tasks
                .into_iter()
                .skip(1)
                .map(move |task| (task, Stop::new(Cause::Duplicate, format!("{eldest} has the same name"))))
        })
        .collect();
    found.sort_by(|a, b| a.0.arn.cmp(&b.0.arn));
    found
}

/// For this long after its end, the sweep reports a task that nobody has recorded as reported. Not for the whole hour
/// that ECS shows it: a stopped task accepts no tag, so each new process reports it again.
const REPORT_ENDS_FOR: Duration = Duration::from_secs(600);

/// Whether that time is nearly over, so that what could not be reported has to be kept elsewhere.
pub fn is_last_sight(task: &Task, now: Timestamp) -> bool {
    task.stopped_at.is_some_and(|stopped| elapsed(stopped, now) >= REPORT_ENDS_FOR - Duration::from_secs(60))
}

/// Whether the sweep has to report a stopped task: nobody did, and its event had time to arrive.
pub fn is_unreported_end(task: &Task, now: Timestamp) -> bool {
    let Some(stopped) = task.stopped_at else { return false };
    let age = elapsed(stopped, now);
    let ended_as_intended =
        Stop::parse(task.stopped_reason.as_deref().unwrap_or_default()).is_some_and(|stop| !stop.before_ready);
    !task.reported() && !ended_as_intended && (Duration::from_secs(60)..REPORT_ENDS_FOR).contains(&age)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use shared::aws::ecs::REPORTED_TAG;
    use shared::config::{Launch, LaunchType};

    use super::*;
    use crate::plan::tests::{at, config};

    fn task(reported: bool, tags: &[(&str, &str)]) -> Task {
        let mut task = Task {
            last_status: "RUNNING".into(),
            desired_status: "RUNNING".into(),
            created_at: Some(at(0)),
            started_at: Some(at(10)),
            ..Task::default()
        };
        task.tags.extend(tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        if reported {
            task.tags.insert(REPORTED_TAG.into(), "ready x".into());
        }
        task
    }

    static IDLE: LazyLock<NodeState> = LazyLock::new(|| NodeState { idle: Some(true), ..NodeState::default() });
    static BUSY: LazyLock<NodeState> = LazyLock::new(|| NodeState { idle: Some(false), ..NodeState::default() });

    /// The step for an agent of a template with `containerStartTimeout: 5m`, `idleTimeout: 10m` and `maxLifetime: 2h`; a
    /// stop with its reason.
    fn step(task: &Task, seen: Seen<'_>, now: i64) -> String {
        let cloud = &config().clouds[0];
        described(task_step(task, cloud, cloud.templates.first(), seen, at(now)))
    }

    fn described(step: TaskStep) -> String {
        match step {
            TaskStep::Stop(stop) => format!("stop: {stop}"),
            TaskStep::ReportOrStop(stop) => format!("report or stop: {stop}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn reports_a_started_task_once_its_event_had_time() {
        let unreported = task(false, &[]);
        for (seen, now, expected) in [
            (Seen::Missing, 39, "Leave"),
            (Seen::Missing, 40, "Report"),
            (Seen::Unknown, 99, "Leave"),
            (Seen::Unknown, 100, "Report"),
            // The record is late, not the notice.
            (Seen::Node(&IDLE), 299, "Leave"),
            (Seen::Node(&BUSY), 299, "AtWork"),
            (Seen::Away, 299, "Leave"),
        ] {
            assert_eq!(step(&unreported, seen, now), expected, "{seen:?} at {now}");
        }
        assert_eq!(step(&task(true, &[]), Seen::Unknown, 300), "Leave");
    }

    #[test]
    fn stops_a_task_that_is_not_ready_in_time() {
        let running = task(false, &[]);
        let pending = Task { last_status: "PENDING".into(), ..running.clone() };
        for (task, seen, now, expected) in [
            (&running, Seen::Unknown, 300, "report or stop: START_TIMEOUT before ready: not ready within 5m"),
            (&pending, Seen::Unknown, 299, "Leave"),
            (
                &pending,
                Seen::Unknown,
                300,
                "stop: START_TIMEOUT before ready: not ready within 5m: the task is PENDING",
            ),
            // A pending task does not wait for Jenkins; a running one does.
            (&pending, Seen::Away, 300, "stop: START_TIMEOUT before ready: not ready within 5m: the task is PENDING"),
            (&running, Seen::Away, 300, "Leave"),
            (&running, Seen::Away, 7199, "Leave"),
            (&running, Seen::Node(&BUSY), 300, "AtWork"),
        ] {
            assert_eq!(step(task, seen, now), expected, "{} {seen:?} at {now}", task.last_status);
        }
    }

    #[test]
    fn a_task_that_waits_in_ecs_has_the_time_of_a_request_and_then_that_of_a_start() {
        let mut cloud = config().clouds[0].clone();
        cloud.templates[0].launch = Launch::Type(LaunchType::Default);
        let waits = Task { last_status: "PROVISIONING".into(), started_at: None, ..task(false, &[]) };
        let placed = Task { last_status: "PENDING".into(), ..waits.clone() };
        let pulls = Task { pull_started_at: Some(at(600)), ..placed.clone() };
        let runs = Task { last_status: "RUNNING".into(), started_at: Some(at(610)), ..pulls.clone() };
        let no_room = "stop: CAPACITY_TIMEOUT before ready: no room within 15m: \
            no instance of a capacity provider has taken the task";
        let late = "START_TIMEOUT before ready: not ready within 5m";
        for (task, now, expected) in [
            (&waits, 899, "Leave"),
            (&waits, 900, no_room),
            (&placed, 1199, "Leave"),
            (&placed, 1200, &format!("stop: {late}: the task is PENDING")),
            (&pulls, 899, "Leave"),
            (&pulls, 900, &format!("stop: {late}: the task is PENDING")),
            (&runs, 899, "Report"),
            (&runs, 900, &format!("report or stop: {late}")),
        ] {
            let step = task_step(task, &cloud, cloud.templates.first(), Seen::Unknown, at(now));
            assert_eq!(described(step), expected, "{} at {now}", task.last_status);
        }
    }

    #[test]
    fn stops_an_agent_that_is_older_than_its_lifetime() {
        let stop = "stop: LIFETIME_EXCEEDED: the agent is older than 2h";
        let unready = "stop: LIFETIME_EXCEEDED before ready: the agent is older than 2h";
        for (reported, seen, now, expected) in [
            (true, Seen::Node(&BUSY), 7199, "Leave"),
            (true, Seen::Node(&BUSY), 7200, stop),
            (true, Seen::Away, 7200, stop),
            (false, Seen::Away, 7200, unready),
            // It was ready for its build.
            (false, Seen::Node(&BUSY), 7200, stop),
        ] {
            assert_eq!(step(&task(reported, &[]), seen, now), expected, "{reported} {seen:?} at {now}");
        }
    }

    #[test]
    fn stops_an_agent_that_has_been_idle_for_too_long() {
        let ready = task(true, &[]);
        let idle = task(true, &[(IDLE_SINCE_TAG, &Idle::Idle.tag(at(400)))]);
        let missing = task(true, &[(IDLE_SINCE_TAG, &Idle::Missing.tag(at(400)))]);
        for (task, seen, now, expected) in [
            (&ready, Seen::Node(&IDLE), 400, "MarkIdle(Idle)"),
            (&ready, Seen::Missing, 460, "MarkIdle(Missing)"),
            (&idle, Seen::Node(&IDLE), 999, "Leave"),
            (&idle, Seen::Node(&IDLE), 1000, "stop: IDLE: idle in Jenkins for 10m"),
            (&idle, Seen::Node(&BUSY), 1000, "MarkBusy"),
            (&idle, Seen::Away, 5000, "Leave"),
            (&idle, Seen::Unknown, 5000, "Leave"),
            // Idle until now, not missing.
            (&idle, Seen::Missing, 900, "MarkIdle(Missing)"),
            (&missing, Seen::Missing, 454, "Leave"),
            // Seen twice, a minute apart.
            (&missing, Seen::Missing, 455, "stop: IDLE: Jenkins no longer has its node"),
            (&missing, Seen::Node(&IDLE), 5000, "MarkIdle(Idle)"),
            (&missing, Seen::Node(&BUSY), 5000, "MarkBusy"),
        ] {
            assert_eq!(step(task, seen, now), expected, "{:?} {seen:?} at {now}", task.tags);
        }
    }

    #[test]
    fn leaves_a_task_that_people_keep_or_that_is_ending() {
        let kept = task(false, &[(KEEP_TAG, "")]);
        let ending = Task { desired_status: "STOPPED".into(), ..task(true, &[]) };
        for task in [kept, ending] {
            for seen in [Seen::Unknown, Seen::Away, Seen::Missing, Seen::Node(&IDLE), Seen::Node(&BUSY)] {
                assert_eq!(step(&task, seen, 300_000), "Leave", "{seen:?}");
            }
        }
    }

    #[test]
    fn a_notice_may_be_delivered_while_its_record_can_be_pending() {
        let node = NodeState::default();
        let may_be = |reported, seen, is_pending, now| may_be_notified(&task(reported, &[]), seen, is_pending, at(now));
        for seen in [Seen::Unknown, Seen::Node(&node)] {
            assert!(may_be(false, seen, true, 1009));
            assert!(!may_be(false, seen, true, 1010), "not for ever");
            assert!(!may_be(false, seen, false, 100), "no record is pending");
            assert!(!may_be(true, seen, true, 100));
        }
        assert!(!may_be(false, Seen::Missing, true, 100), "an agent without a node was not reported");
    }

    #[test]
    fn the_younger_of_two_is_stopped() {
        let named = |arn: &str, created: i64| {
            let mut task = task(true, &[]);
            task.arn = arn.into();
            task.started_by = Some("ecs-maven-0a1b2c3d4e5f".into());
            task.created_at = Some(at(created));
            task
        };
        let tasks = [named("b", 5), named("a", 9), named("c", 1)];
        let found: Vec<_> = duplicates(tasks.iter()).into_iter().map(|(task, _)| task.arn.as_str()).collect();
        assert_eq!(found, ["a", "b"]);
    }

    #[test]
    fn reports_an_unreported_end_once_its_event_had_time() {
        let ended = |reason: &str, stopped: i64, reported: bool| {
            let mut task = task(reported, &[]);
            task.last_status = "STOPPED".into();
            task.stopped_reason = Some(reason.into());
            task.stopped_at = Some(at(stopped));
            is_unreported_end(&task, at(1000))
        };
        assert!(ended("Essential container in task exited", 930, false));
        assert!(ended("START_TIMEOUT before ready: x", 930, false));
        assert!(!ended("Essential container in task exited", 950, false), "its event may be on its way");
        assert!(ended("Essential container in task exited", 401, false));
        assert!(!ended("Essential container in task exited", 400, false), "reported long ago");
        assert!(!ended("Essential container in task exited", 930, true));
        assert!(!ended("COMPLETED: build a #1 is over", 930, false));
    }
}
