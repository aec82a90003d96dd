//! What a completion comes to, and what the sweep does: pure, synchronous, time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use shared::app::ClusterArn;
use shared::aws::autoscaling::Group;
use shared::aws::ecs::{IDLE_SINCE_TAG, Instance, KEEP_TAG, Task};
use shared::config::{Cloud, Limit, Template};
use shared::jenkins::NodeState;
use shared::message::{BuildCompleted, FailureCode};
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
        || completion.request_id.as_ref().map_or_else(|| "its build".to_owned(), |id| format!("the build of request {id}")),
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

/// The accounts that a cloud's tasks can be in, as far as that is known without asking: those of its role, or ours.
pub fn accounts(cloud: &Cloud, function_arn: &str, queue_url: &str, source_arn: &str) -> BTreeSet<String> {
    let of_arn = |arn: &str| arn.split(':').nth(4).map(str::to_owned);
    let digits = |account: &String| account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let found = match &cloud.assume_role_arn {
        Some(role) => vec![of_arn(role)],
        None => vec![of_arn(function_arn), of_arn(source_arn), queue_url.rsplit('/').nth(1).map(str::to_owned)],
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

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn is_over(since: Timestamp, limit: Limit, now: Timestamp) -> bool {
    limit.0.is_some_and(|limit| elapsed(since, now) >= limit)
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
    /// It has nothing to do, from now on.
    MarkIdle,
    /// It has something to do again.
    MarkBusy,
}

/// What Jenkins says of an agent; nothing where Jenkins could not be asked or registers no nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Nobody knows.
    Unknown,
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
    if !ready && is_over(created, start, now) {
        let status = if task.last_status == "RUNNING" { "runs but is not healthy or cannot be registered" } else { &task.last_status };
        return TaskStep::Stop(Stop::new(Cause::StartTimeout, format!("not ready within {start}: the task {status}")));
    }
    if is_over(created, lifetime, now) {
        let mut stop = Stop::new(Cause::LifetimeExceeded, format!("the agent is older than {lifetime}"));
        stop.before_ready = !ready;
        return TaskStep::Stop(stop);
    }
    if !ready {
        // Its event is late or lost; a minute is more than EventBridge takes.
        let started = task.started_at.filter(|_| task.last_status == "RUNNING");
        return match started {
            Some(started) if elapsed(started, now) >= Duration::from_secs(60) => TaskStep::Report,
            _ => TaskStep::Leave,
        };
    }
    idle_step(task, template, seen, now)
}

fn idle_step(task: &Task, template: Option<&Template>, seen: Seen<'_>, now: Timestamp) -> TaskStep {
    let since = task.tags.get(IDLE_SINCE_TAG).and_then(|time| time.parse::<Timestamp>().ok());
    let (idle, limit, text) = match seen {
        Seen::Unknown => return TaskStep::Leave,
        // Seen twice a minute apart: Jenkins may be about to create it.
        Seen::Missing => (true, Limit::minutes(1), "Jenkins no longer has its node".to_owned()),
        Seen::Node(node) => {
            let limit = template.and_then(|template| template.idle_timeout).unwrap_or(Limit::minutes(10));
            let state = if node.offline { "offline" } else { "idle" };
            (node.idle, limit, format!("{state} in Jenkins for {limit}"))
        }
    };
    match (idle, since) {
        (false, Some(_)) => TaskStep::MarkBusy,
        (false, None) => TaskStep::Leave,
        (true, None) => TaskStep::MarkIdle,
        (true, Some(since)) if is_over(since, limit, now) => TaskStep::Stop(Stop::new(Cause::Idle, text)),
        (true, Some(_)) => TaskStep::Leave,
    }
}

/// The younger of two tasks that have one name.
pub fn duplicates(tasks: &[Task]) -> Vec<(&Task, Stop)> {
    let mut by_name: HashMap<&str, Vec<&Task>> = HashMap::new();
    for task in tasks.iter().filter(|task| !task.is_ending()) {
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

/// Whether a stopped task has to be reported by the sweep: nobody did, its event had time to come, and it is not so
/// old that ECS' inability to tag a stopped task would tell its end again and again.
pub fn is_unreported_end(task: &Task, now: Timestamp) -> bool {
    let Some(stopped) = task.stopped_at else { return false };
    let age = elapsed(stopped, now);
    let ended_as_told = Stop::parse(task.stopped_reason.as_deref().unwrap_or_default()).is_some_and(|stop| !stop.before_ready);
    !task.reported() && !ended_as_told && (Duration::from_secs(60)..Duration::from_secs(240)).contains(&age)
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

/// Why a waiting request is failed; none while it may wait on.
pub fn waited_too_long(wait: &Wait, cloud: Option<&Cloud>, expires_at: Option<Timestamp>, now: Timestamp) -> Option<(FailureCode, String)> {
    let limit = cloud.map_or(Limit::minutes(15), |cloud| cloud.instance_launch_timeout);
    if is_over(wait.since, limit, now) {
        Some((FailureCode::CapacityTimeout, format!("no room within {limit}: {}", wait.reason)))
    } else {
        expires_at
            .filter(|&expiry| expiry <= now)
            .map(|expiry| (FailureCode::CapacityTimeout, format!("no room before the request expired at {expiry}: {}", wait.reason)))
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
    DrainAndTerminate,
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
        instance.ec2_id.as_deref().is_some_and(|id| {
            group.instances.iter().any(|member| member.id == id && member.lifecycle == "InService")
        })
    };
    let mut spare = group.desired.saturating_sub(group.minimum);
    let mut candidates: Vec<_> = instances.iter().filter(ours).collect();
    let idle_since = |instance: &Instance| instance.tags.get(IDLE_SINCE_TAG).and_then(|time| time.parse::<Timestamp>().ok());
    candidates.sort_by_key(|instance| (idle_since(instance), instance.arn.clone()));
    for instance in candidates {
        let since = idle_since(instance);
        // Only we drain an instance that carries our tag; another's drain is its own.
        let drained_by_us = instance.status == "DRAINING" && since.is_some();
        if instance.tags.contains_key(KEEP_TAG) || (instance.status != "ACTIVE" && !drained_by_us) {
            continue;
        }
        let step = match since {
            _ if instance.tasks > 0 || needed => {
                if drained_by_us {
                    Some(InstanceStep::Undrain)
                } else {
                    since.map(|_| InstanceStep::MarkBusy)
                }
            }
            None => Some(InstanceStep::MarkIdle),
            Some(since) if is_over(since, limit, now) && spare > 0 => {
                spare -= 1;
                Some(InstanceStep::DrainAndTerminate)
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

/// Splits off the requests that fit into what the instances have free, oldest first.
pub fn fitting(mut waiting: Vec<Waiting>, instances: &[Instance]) -> (Vec<Waiting>, Vec<Waiting>) {
    let mut fitting = Vec::new();
    for instance in instances.iter().filter(|instance| instance.takes_tasks()) {
        let (here, rest) = wait::fitting(waiting, instance.free, |_| true);
        fitting.extend(here);
        waiting = rest;
    }
    (fitting, waiting)
}
