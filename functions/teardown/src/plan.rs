//! What a completion comes to, and what the sweep does: pure, synchronous, time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::app::ClusterArn;
use shared::aws::autoscaling::Group;
use shared::aws::ecs::{IDLE_SINCE_TAG, Instance, KEEP_TAG, Task};
use shared::config::duration::elapsed;
use shared::config::{Cloud, Limit, Template};
use shared::jenkins::NodeState;
use shared::message::BuildCompleted;
use shared::stop::{Cause, Stop};
use shared::wait::{self, Wait, Waiting};

/// What an invocation brings.
#[derive(Debug)]
pub enum Event {
    /// A batch of the completions queue.
    Batch(Value),
    /// Time for the sweep.
    Sweep(Timestamp),
    /// Neither.
    Other(String),
}

/// Tells the events apart. The sweep goes by the event's own `time`, so that two of them are a minute apart however
/// late they come.
pub fn event(event: Value, now: Timestamp) -> Event {
    if event.get("Records").is_some() {
        return Event::Batch(event);
    }
    match event.get("detail-type").and_then(Value::as_str) {
        Some("Scheduled Event") => {
            let time = event.get("time").and_then(Value::as_str).and_then(|time| time.parse().ok());
            Event::Sweep(time.unwrap_or(now))
        }
        other => Event::Other(format!("detail-type {other:?}")),
    }
}

/// Why a task is stopped when its build is over.
pub fn completed(completion: &BuildCompleted) -> Stop {
    let build = completion.build.as_ref().map_or_else(
        || {
            completion
                .request_id
                .as_ref()
                .map_or_else(|| "its build".to_owned(), |id| format!("the build of request {id}"))
        },
        |build| format!("build {build}"),
    );
    let result = completion.result.as_deref().map(|result| format!(": {result}")).unwrap_or_default();
    Stop::new(Cause::Completed, format!("{build} is over{result}"))
}

/// Where the task of an ARN may be stopped.
///
/// # Errors
/// When it is no task of a configured cluster: what is wrong with the ARN.
pub fn place(arn: &str, clouds: &[Cloud], accounts: &[BTreeSet<String>]) -> Result<usize, String> {
    let cluster = ClusterArn::of_resource(arn, "task")
        .ok_or_else(|| format!("taskArn: {arn:?} is not arn:aws:ecs:REGION:ACCOUNT:task/CLUSTER/ID"))?;
    let mut regional = clouds.iter().zip(accounts).enumerate().filter(|(_, (cloud, _))| cluster.is(cloud)).peekable();
    if regional.peek().is_none() {
        return Err(format!("taskArn: cluster {} in {} is not configured", cluster.name, cluster.region));
    }
    regional
        .find(|(_, (_, accounts))| accounts.is_empty() || accounts.contains(cluster.account))
        .map(|(index, _)| index)
        .ok_or_else(|| format!("taskArn: account {} is not ours", cluster.account))
}

/// The accounts that a cloud's tasks can be in, as far as that is known without asking: that of its cluster's ARN or its
/// role, else ours.
pub fn accounts(cloud: &Cloud, function_arn: &str, queue_url: &str, source_arn: &str) -> BTreeSet<String> {
    let of_arn = |arn: &str| arn.split(':').nth(4).map(str::to_owned);
    let digits = |account: &String| account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let found = match (ClusterArn::parse(&cloud.cluster), &cloud.assume_role_arn) {
        (Some(cluster), _) => vec![Some(cluster.account.to_owned())],
        (None, Some(role)) => vec![of_arn(role)],
        (None, None) => vec![of_arn(function_arn), of_arn(source_arn), queue_url.rsplit('/').nth(1).map(str::to_owned)],
    };
    found.into_iter().flatten().filter(digits).collect()
}

/// How long a completion of which ECS knows nothing may still be early: as long as its request could be placed, a day
/// at most.
pub fn may_still_be_placed(clouds: &[Cloud], sent_at: Timestamp, now: Timestamp) -> bool {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let longest = clouds
        .iter()
        .map(|cloud| cloud.instance_launch_timeout.0.map_or(DAY, |limit| limit.min(DAY)))
        .max()
        .unwrap_or(DAY);
    elapsed(sent_at, now) < longest
}

/// What the sweep does about one task.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskStep {
    /// It is as it is to be.
    Leave,
    /// It ends here.
    Stop(Stop),
    /// It runs and nobody was told.
    Report,
    /// The same, and it should have been ready long ago: it ends, for a reason to be added, if it is not ready now or
    /// Jenkins refuses it.
    ReportOrStop(Stop),
    /// A build runs on it, and nobody recorded that it was told.
    AtWork,
    /// It has nothing to do, from now on.
    MarkIdle(Idle),
    /// It has something to do again.
    MarkBusy,
}

/// What Jenkins says of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Nothing: it has no nodes of ours, or does not let us see them.
    Unknown,
    /// Nothing: it could not be asked.
    Away,
    /// There is no such node.
    Missing,
    /// There is.
    Node(&'a NodeState),
}

/// Judges a task that ECS wants to run. Without a template, the defaults of one hold.
pub fn task_step(task: &Task, template: Option<&Template>, seen: Seen<'_>, now: Timestamp) -> TaskStep {
    if task.tags.contains_key(KEEP_TAG) || task.is_ending() {
        return TaskStep::Leave;
    }
    let start = template.map_or(Limit::minutes(15), |template| template.container_start_timeout);
    let lifetime = template.map_or(Limit::minutes(24 * 60), |template| template.max_lifetime);
    let Some(created) = task.created_at else { return TaskStep::Leave };
    let ready = task.reported();
    // Jenkins took the notice and its answer got lost: the build is at work.
    let is_busy = matches!(seen, Seen::Node(node) if node.idle == Some(false));
    if !ready && is_busy && !lifetime.is_over(created, now) {
        return TaskStep::AtWork;
    }
    let runs = task.last_status == "RUNNING";
    // While Jenkins is away, it is Jenkins that is not ready; but nothing outlives its lifetime.
    let waits = runs && (seen == Seen::Away || lifetime.is_over(created, now));
    if !ready && start.is_over(created, now) && !waits {
        let overdue = |why: &str| Stop::new(Cause::StartTimeout, format!("not ready within {start}{why}"));
        return match runs {
            true => TaskStep::ReportOrStop(overdue("")),
            false => TaskStep::Stop(overdue(&format!(": the task is {}", task.last_status))),
        };
    }
    if lifetime.is_over(created, now) {
        let mut stop = Stop::new(Cause::LifetimeExceeded, format!("the agent is older than {lifetime}"));
        stop.before_ready = !ready && !is_busy;
        return TaskStep::Stop(stop);
    }
    if !ready {
        // Its event is late or lost; half a minute is more than EventBridge takes.
        let started = task.started_at.filter(|_| runs && seen != Seen::Away);
        return match started {
            Some(started) if elapsed(started, now) >= Duration::from_secs(30) => TaskStep::Report,
            _ => TaskStep::Leave,
        };
    }
    idle_step(task, template, seen, now)
}

fn idle_step(task: &Task, template: Option<&Template>, seen: Seen<'_>, now: Timestamp) -> TaskStep {
    let (state, limit, text) = match seen {
        Seen::Unknown | Seen::Away => return TaskStep::Leave,
        // Seen twice a minute apart: Jenkins may be about to create it.
        Seen::Missing => (Some(Idle::Missing), TWO_SWEEPS, "Jenkins no longer has its node".to_owned()),
        Seen::Node(node) => {
            let limit = template.and_then(|template| template.idle_timeout).unwrap_or(Limit::minutes(10));
            let state = if node.offline { "offline" } else { "idle" };
            ((node.idle == Some(true)).then_some(Idle::Idle), limit, format!("{state} in Jenkins for {limit}"))
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

/// What lies between two sweeps, a little less than their minute.
const TWO_SWEEPS: Limit = Limit(Some(Duration::from_secs(55)));

/// Why an agent has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Nothing runs on its node.
    Idle,
    /// It has none.
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

/// The younger of two tasks that have one name.
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

/// For so long after its end, the sweep tells of a task of which nobody recorded that it was told. Not for the hour that
/// ECS shows it: ECS takes no tag of a stopped task, so that each process of ours tells it once again.
const TELL_ENDS_FOR: Duration = Duration::from_secs(600);

/// Whether that time is nearly over, and what could not be told has to be kept elsewhere.
pub fn is_last_sight(task: &Task, now: Timestamp) -> bool {
    task.stopped_at.is_some_and(|stopped| elapsed(stopped, now) >= TELL_ENDS_FOR - Duration::from_secs(60))
}

/// Whether a stopped task has to be reported by the sweep: nobody did, and its event had time to come.
pub fn is_unreported_end(task: &Task, now: Timestamp) -> bool {
    let Some(stopped) = task.stopped_at else { return false };
    let age = elapsed(stopped, now);
    let ended_as_told =
        Stop::parse(task.stopped_reason.as_deref().unwrap_or_default()).is_some_and(|stop| !stop.before_ready);
    !task.reported() && !ended_as_told && (Duration::from_secs(60)..TELL_ENDS_FOR).contains(&age)
}

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

/// Judges a node whose task is gone.
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

/// What the sweep does about one container instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStep {
    /// It has had nothing to do, from now on.
    MarkIdle,
    /// It has something to do again.
    MarkBusy,
    /// It takes no more tasks, and goes if none came meanwhile.
    DrainAndTerminate {
        /// Whether the desired capacity goes down with it.
        lowers: bool,
    },
    /// Its drain was cut short, and it may go on.
    Undrain,
}

/// Which instances of a group are given back. `needed` says that requests wait: nothing goes then.
pub fn instance_steps(
    cloud: &Cloud,
    group: &Group,
    instances: &[Instance],
    needed: bool,
    now: Timestamp,
) -> BTreeMap<String, InstanceStep> {
    let limit = cloud.idle_instance_timeout;
    let mut steps = BTreeMap::new();
    if limit == Limit::NEVER {
        return steps;
    }
    let ours = |instance: &&Instance| {
        instance
            .ec2_id
            .as_deref()
            .is_some_and(|id| group.instances.iter().any(|member| member.id == id && member.lifecycle == "InService"))
    };
    let mut spare = group.desired.saturating_sub(group.minimum);
    // Scale-in lowers the desired capacity of a group whose instances are all protected, and ends none of them ("Use
    // instance scale-in protection"): they are beyond it until we end them.
    let living = group.instances.iter().filter(|member| !member.lifecycle.starts_with("Terminat")).count();
    let mut beyond =
        if group.protects_new { u32::try_from(living).unwrap_or_default().saturating_sub(group.desired) } else { 0 };
    let mut candidates: Vec<_> = instances.iter().filter(ours).collect();
    let idle_since =
        |instance: &Instance| instance.tags.get(IDLE_SINCE_TAG).and_then(|time| time.parse::<Timestamp>().ok());
    candidates.sort_by_key(|instance| (idle_since(instance), instance.arn.clone()));
    for instance in candidates {
        let since = idle_since(instance);
        // Only we drain an instance that carries our tag; another's drain is its own.
        let drained_by_us = instance.status == "DRAINING" && since.is_some();
        if instance.status != "ACTIVE" && !drained_by_us {
            continue;
        }
        let step = match since {
            _ if instance.tags.contains_key(KEEP_TAG) => drained_by_us.then_some(InstanceStep::Undrain),
            _ if instance.tasks > 0 || needed => {
                if drained_by_us {
                    Some(InstanceStep::Undrain)
                } else {
                    since.map(|_| InstanceStep::MarkBusy)
                }
            }
            None => Some(InstanceStep::MarkIdle),
            Some(since) if limit.is_over(since, now) && beyond > 0 => {
                beyond -= 1;
                Some(InstanceStep::DrainAndTerminate { lowers: false })
            }
            Some(since) if limit.is_over(since, now) && spare > 0 => {
                spare -= 1;
                Some(InstanceStep::DrainAndTerminate { lowers: true })
            }
            Some(_) if drained_by_us => Some(InstanceStep::Undrain),
            Some(_) => None,
        };
        if let Some(step) = step {
            steps.insert(instance.arn.clone(), step);
        }
    }
    steps
}

/// Splits off the requests that fit into what the instances of their cloud have free, oldest first.
pub fn fitting(cloud: &Cloud, mut waiting: Vec<Waiting>, instances: &[Instance]) -> (Vec<Waiting>, Vec<Waiting>) {
    let is_external =
        |wait: &Wait| cloud.templates.iter().any(|template| template.name == wait.template && template.is_external());
    let mut fitting = Vec::new();
    for instance in instances.iter().filter(|instance| instance.takes_tasks()) {
        let serves = |wait: &Wait| is_external(wait) == instance.is_external();
        let (here, rest) = wait::fitting(waiting, instance.free, serves);
        fitting.extend(here);
        waiting = rest;
    }
    (fitting, waiting)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::aws::autoscaling::GroupInstance;
    use shared::aws::ecs::REPORTED_TAG;
    use shared::config::{Config, Size, from_yaml};

    use super::*;

    const CONFIG: &str = "
jenkins: {url: https://ci.example.com/, user: u, apiToken: {env: T}}
clouds:
  - name: linux
    region: eu-west-1
    cluster: ci
    autoScalingGroup: group
    idleInstanceTimeout: 10m
    templates:
      - {name: maven, labels: [maven], taskDefinition: maven, connect: ssh, containerStartTimeout: 5m, idleTimeout: 10m, maxLifetime: 2h}
  - name: other
    region: us-east-1
    assumeRoleArn: arn:aws:iam::222222222222:role/agents
    templates:
      - {name: maven, labels: [maven], taskDefinition: maven, connect: ssh}
";

    fn config() -> Config {
        from_yaml(CONFIG).expect("a configuration")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    #[test]
    fn only_tasks_of_our_clusters_and_accounts_are_stopped() {
        let config = config();
        let function = "arn:aws:lambda:eu-west-1:111111111111:function:teardown";
        let queue = "https://sqs.eu-west-1.amazonaws.com/111111111111/completions";
        let accounts: Vec<_> = config.clouds.iter().map(|cloud| accounts(cloud, function, queue, "")).collect();
        for (arn, cloud) in [
            ("arn:aws:ecs:eu-west-1:111111111111:task/ci/0123", Some(0)),
            ("arn:aws:ecs:us-east-1:222222222222:task/default/0123", Some(1)),
            ("arn:aws:ecs:us-east-1:111111111111:task/default/0123", None),
            ("arn:aws:ecs:eu-west-1:333333333333:task/ci/0123", None),
            ("arn:aws:ecs:eu-west-2:111111111111:task/ci/0123", None),
            ("arn:aws:ecs:eu-west-1:111111111111:task/default/0123", None),
            ("arn:aws:ecs:eu-west-1:111111111111:task/0123", None),
            ("arn:aws:ecs:eu-west-1:111111111111:task/ci/0123/4", None),
            ("arn:aws:ecs:eu-west-1:111111111111:service/ci/0123", None),
            ("arn:aws:s3:::ci", None),
            ("0123", None),
            ("", None),
        ] {
            assert_eq!(place(arn, &config.clouds, &accounts).ok(), cloud, "{arn}");
        }
    }

    #[test]
    fn the_reason_names_the_build() {
        let of = |json: &str| completed(&BuildCompleted::parse(json).expect(json)).to_string();
        assert_eq!(
            of(r#"{"version": 1, "taskArn": "x", "build": {"job": "app/main", "number": 42}, "result": "SUCCESS"}"#),
            "COMPLETED: build app/main #42 is over: SUCCESS"
        );
        assert_eq!(of(r#"{"version": 1, "requestId": "r-1"}"#), "COMPLETED: the build of request r-1 is over");
    }

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

    #[test]
    fn what_is_overdue_or_unwanted_is_stopped_and_nothing_on_a_guess() {
        let config = config();
        let template = config.clouds[0].templates.first();
        let idle = NodeState { idle: Some(true), ..NodeState::default() };
        let busy = NodeState { idle: Some(false), ..NodeState::default() };
        let since = |seconds: i64| at(seconds).to_string();
        let cause = |step: &TaskStep| match step {
            TaskStep::Stop(stop) | TaskStep::ReportOrStop(stop) => Some(stop.cause),
            _ => None,
        };
        let step = |task: &Task, seen: Seen<'_>, now: i64| task_step(task, template, seen, at(now));
        assert_eq!(step(&task(false, &[]), Seen::Unknown, 39), TaskStep::Leave);
        assert_eq!(step(&task(false, &[]), Seen::Unknown, 40), TaskStep::Report);
        assert_eq!(cause(&step(&task(false, &[]), Seen::Unknown, 300)), Some(Cause::StartTimeout));
        for age in [75, 300, 7199] {
            assert_eq!(step(&task(false, &[]), Seen::Away, age), TaskStep::Leave, "it waits for Jenkins");
        }
        assert_eq!(cause(&step(&task(false, &[]), Seen::Away, 7200)), Some(Cause::LifetimeExceeded));
        let pending = Task { last_status: "PENDING".into(), ..task(false, &[]) };
        let TaskStep::Stop(stop) = step(&pending, Seen::Away, 300) else { panic!("it waits for nobody") };
        assert_eq!(stop.to_string(), "START_TIMEOUT before ready: not ready within 5m: the task is PENDING");
        assert_eq!(step(&task(false, &[]), Seen::Node(&busy), 300), TaskStep::AtWork, "a build is at work there");
        let TaskStep::Stop(stop) = step(&task(false, &[]), Seen::Node(&busy), 7200) else { panic!("it is too old") };
        assert!(!stop.before_ready, "it was ready for its build");
        assert_eq!(step(&task(false, &[(KEEP_TAG, "")]), Seen::Unknown, 300_000), TaskStep::Leave);
        assert_eq!(step(&task(true, &[]), Seen::Unknown, 300), TaskStep::Leave);
        assert_eq!(cause(&step(&task(true, &[]), Seen::Node(&busy), 7200)), Some(Cause::LifetimeExceeded));
        assert_eq!(step(&task(true, &[]), Seen::Node(&busy), 7199), TaskStep::Leave);
        assert_eq!(step(&task(true, &[]), Seen::Node(&idle), 400), TaskStep::MarkIdle(Idle::Idle));
        let marked = task(true, &[(IDLE_SINCE_TAG, &since(400))]);
        assert_eq!(step(&marked, Seen::Node(&idle), 999), TaskStep::Leave);
        assert_eq!(cause(&step(&marked, Seen::Node(&idle), 1000)), Some(Cause::Idle));
        assert_eq!(step(&marked, Seen::Node(&busy), 1000), TaskStep::MarkBusy);
        assert_eq!(step(&marked, Seen::Away, 5000), TaskStep::Leave, "Jenkins could not be asked");
        assert_eq!(step(&task(true, &[]), Seen::Missing, 460), TaskStep::MarkIdle(Idle::Missing));
        assert_eq!(step(&marked, Seen::Missing, 900), TaskStep::MarkIdle(Idle::Missing), "idle until now, not missing");
        let missing = task(true, &[(IDLE_SINCE_TAG, &Idle::Missing.tag(at(400)))]);
        assert_eq!(step(&missing, Seen::Missing, 454), TaskStep::Leave);
        assert_eq!(cause(&step(&missing, Seen::Missing, 455)), Some(Cause::Idle), "seen twice a minute apart");
        assert_eq!(step(&missing, Seen::Node(&idle), 5000), TaskStep::MarkIdle(Idle::Idle));
        assert_eq!(step(&missing, Seen::Node(&busy), 5000), TaskStep::MarkBusy);
        let mut ending = task(true, &[]);
        ending.desired_status = "STOPPED".into();
        assert_eq!(step(&ending, Seen::Node(&idle), 300_000), TaskStep::Leave);
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
    fn an_end_without_an_outcome_is_told_once_its_event_had_time() {
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
        assert!(!ended("Essential container in task exited", 400, false), "told long ago");
        assert!(!ended("Essential container in task exited", 930, true));
        assert!(!ended("COMPLETED: build a #1 is over", 930, false));
    }

    #[test]
    fn a_node_without_a_task_goes_at_the_second_sight() {
        let node = |cause: Option<String>| NodeState { offline_cause: cause, ..NodeState::default() };
        assert_eq!(node_step(&node(None), at(0)), NodeStep::Mark);
        let marked = node(Some(format!("Disconnected by bot : {}", orphan_message(at(0)))));
        assert_eq!(node_step(&marked, at(30)), NodeStep::Wait);
        assert_eq!(node_step(&marked, at(60)), NodeStep::Delete);
        assert_eq!(node_step(&node(Some("Connection was broken".into())), at(60)), NodeStep::Mark);
    }

    fn instance(number: usize, tasks: u32, status: &str, idle_since: Option<i64>) -> Instance {
        let total = Size { cpu: 4096, memory: 8192 };
        Instance {
            arn: format!("arn-{number}"),
            ec2_id: Some(format!("i-{number}")),
            status: status.into(),
            connected: true,
            total,
            free: total,
            tasks,
            tags: idle_since.map(|since| (IDLE_SINCE_TAG.to_owned(), at(since).to_string())).into_iter().collect(),
            ..Instance::default()
        }
    }

    fn group(instances: &[Instance], minimum: u32) -> Group {
        Group {
            name: "group".into(),
            minimum,
            desired: instances.len() as u32,
            maximum: 100,
            instances: instances
                .iter()
                .map(|instance| GroupInstance {
                    id: instance.ec2_id.clone().unwrap_or_default(),
                    lifecycle: "InService".into(),
                })
                .collect(),
            ..Group::default()
        }
    }

    #[test]
    fn idle_instances_are_given_back_one_by_one() {
        use InstanceStep::*;
        let config = config();
        let cloud = &config.clouds[0];
        let one = |instance: Instance, minimum, needed| {
            let instances = [instance];
            instance_steps(cloud, &group(&instances, minimum), &instances, needed, at(1000)).get("arn-0").copied()
        };
        assert_eq!(one(instance(0, 0, "ACTIVE", None), 0, false), Some(MarkIdle));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(500)), 0, false), None);
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 0, false), Some(DrainAndTerminate { lowers: true }));
        assert_eq!(one(instance(0, 1, "ACTIVE", Some(400)), 0, false), Some(MarkBusy));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 1, false), None, "never below the minimum");
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 0, true), Some(MarkBusy), "requests wait");
        assert_eq!(one(instance(0, 1, "DRAINING", Some(400)), 0, false), Some(Undrain), "a task came after all");
        assert_eq!(
            one(instance(0, 0, "DRAINING", Some(400)), 0, false),
            Some(DrainAndTerminate { lowers: true }),
            "a drain cut short"
        );
        assert_eq!(one(instance(0, 0, "DRAINING", None), 0, false), None, "another's drain");
        let mut kept = instance(0, 0, "ACTIVE", Some(400));
        kept.tags.insert(KEEP_TAG.into(), String::new());
        assert_eq!(one(kept, 0, false), None);
    }

    #[test]
    fn those_beyond_the_desired_capacity_go_first_and_do_not_lower_it() {
        let config = config();
        let instances: Vec<_> = (0..4).map(|number| instance(number, 0, "ACTIVE", Some(100))).collect();
        let lowered = |protects_new| {
            let group = Group { desired: 2, protects_new, ..group(&instances, 1) };
            let steps = instance_steps(&config.clouds[0], &group, &instances, false, at(1000));
            steps.into_values().collect::<Vec<_>>()
        };
        let go = |lowers| InstanceStep::DrainAndTerminate { lowers };
        assert_eq!(lowered(true), [go(false), go(false), go(true)]);
        assert_eq!(lowered(false), [go(true)], "the group ends its surplus itself");
    }

    proptest! {
        #[test]
        fn never_below_the_minimum_and_never_with_a_task(
            loads in prop::collection::vec((0u32..3, prop::option::of(0i64..1000), any::<bool>()), 0..40), minimum in 0u32..40, needed: bool
        ) {
            let config = config();
            let instances: Vec<_> = loads
                .iter()
                .enumerate()
                .map(|(number, (tasks, since, drains))| instance(number, *tasks, if *drains { "DRAINING" } else { "ACTIVE" }, *since))
                .collect();
            let group = group(&instances, minimum.min(instances.len() as u32));
            let steps = instance_steps(&config.clouds[0], &group, &instances, needed, at(1000));
            let gone: Vec<_> = instances.iter().filter(|instance| matches!(steps.get(&instance.arn), Some(InstanceStep::DrainAndTerminate { .. }))).collect();
            prop_assert!(gone.iter().all(|instance| instance.tasks == 0));
            prop_assert!(group.desired - gone.len() as u32 >= group.minimum);
            prop_assert!(!needed || gone.is_empty());
        }
    }

    #[test]
    fn the_sweep_goes_by_the_events_time() {
        let scheduled = serde_json::json!({"detail-type": "Scheduled Event", "time": "2026-11-24T18:00:00Z"});
        assert!(matches!(event(scheduled, at(0)), Event::Sweep(time) if time.to_string() == "2026-11-24T18:00:00Z"));
        assert!(matches!(event(serde_json::json!({"Records": []}), at(0)), Event::Batch(_)));
        assert!(matches!(event(serde_json::json!({}), at(0)), Event::Other(_)));
    }
}
