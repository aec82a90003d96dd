//! Decides what an event requires: pure, synchronous, time is an argument.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use shared::aws::autoscaling::Membership;
use shared::aws::ecs::{self, DesiredStatus, InstanceStatus, Resource, Resources, Task, TaskStatus};
use shared::capacity::Exclusive;
use shared::config::{Cloud, Template};
use shared::message::{self, Agent, Notice, NoticeType};
use shared::stop::{Cause, Stop};
use shared::wait::{Wait, Waiting, WaitsFor};

/// What an invocation was called with.
#[derive(Debug)]
pub enum Event {
    /// A batch of the undelivered queue.
    Batch(Value),
    /// A task has changed.
    Task(Box<Task>),
    /// A container instance has changed.
    Instance(Instance),
    /// Nothing for this function.
    Other(String),
    /// An event of ECS for this function that cannot be read.
    Unreadable(String),
}

/// Classifies an event. What is not an event of ECS is ignored.
pub fn event(mut event: Value) -> Event {
    if event.get("Records").is_some() {
        return Event::Batch(event);
    }
    let kind = event.get("detail-type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut detail = event.get_mut("detail").map(Value::take).unwrap_or_default();
    drop_nulls(&mut detail);
    let read = match kind.as_str() {
        "ECS Task State Change" => serde_json::from_value(detail).map(|task| Event::Task(Box::new(task))),
        "ECS Container Instance State Change" => serde_json::from_value(detail).map(Event::Instance),
        _ => return Event::Other(format!("detail-type {kind:?}")),
    };
    read.unwrap_or_else(|error| Event::Unreadable(format!("{kind}: {error}")))
}

/// Null counts as missing.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// A container instance, as its event shows it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Instance {
    /// Its ARN.
    pub container_instance_arn: String,
    /// Its cluster's ARN.
    pub cluster_arn: String,
    /// Its id in EC2.
    pub ec2_instance_id: Option<String>,
    pub status: InstanceStatus,
    /// Whether its container agent is connected to ECS.
    pub agent_connected: bool,
    pub running_tasks_count: u32,
    pub pending_tasks_count: u32,
    /// Resources that no task has reserved.
    pub remaining_resources: Vec<Resource>,
}

impl Instance {
    /// The container instance with its room for tasks; `None` if it accepts no tasks.
    pub fn with_room(&self) -> Option<ecs::Instance> {
        let remaining = Resources(&self.remaining_resources);
        let instance = ecs::Instance {
            arn: self.container_instance_arn.clone(),
            ec2_id: self.ec2_instance_id.clone(),
            status: self.status.clone(),
            connected: self.agent_connected,
            free: remaining.size(),
            free_gpus: remaining.gpus(),
            taken: remaining.ports(),
            tasks: self.running_tasks_count.saturating_add(self.pending_tasks_count),
            ..ecs::Instance::default()
        };
        (instance.takes_tasks() && instance.free.memory > 0).then_some(instance)
    }
}

/// Whether a container instance can serve what a request waits for. `clouds` are those of its cluster, each with how
/// the instance relates to its group.
pub fn serves(instance: &ecs::Instance, wait: &Wait, clouds: &[(&Cloud, Membership)]) -> bool {
    let Some((cloud, membership)) = clouds.iter().find(|(cloud, _)| cloud.name == wait.cloud) else { return false };
    let template = cloud.template(&wait.template);
    // The event does not say which families have tasks on the instance; the sweep knows.
    let is_distinct = wait.exclusive.iter().any(|exclusive| matches!(exclusive, Exclusive::Family(_)));
    instance.serves(*membership, template) && !(is_distinct && instance.tasks > 0)
}

/// Whether a request waits for an instance of a cloud.
pub fn waits_for_instance(waiting: &[Waiting], cloud: &Cloud) -> bool {
    let waits = |wait: &Wait| wait.waits_for == WaitsFor::Instance && wait.cloud == cloud.name;
    waiting.iter().filter_map(|message| message.wait.as_ref()).any(waits)
}

/// What to do about a task's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// Ask ECS for the task's current state: it may have stopped since.
    Report,
    /// It has stopped, and ECS is asked whether it had been ready.
    ReportEnd,
    /// It ended as intended: the event is enough.
    Ended,
    /// It is starting or stopping.
    Nothing,
}

/// Classifies a task's event.
pub fn concern(task: &Task) -> Concern {
    match task.last_status {
        TaskStatus::Running if task.desired_status != DesiredStatus::Stopped => Concern::Report,
        TaskStatus::Stopped => match Stop::parse(task.stopped_reason.as_deref().unwrap_or_default()) {
            Some(Stop { cause: Cause::Unwanted | Cause::Duplicate, .. }) => Concern::Ended,
            Some(Stop {
                cause: Cause::Completed | Cause::Idle | Cause::LifetimeExceeded, before_ready: false, ..
            }) if task.started_at.is_some() => Concern::Ended,
            _ => Concern::ReportEnd,
        },
        _ => Concern::Nothing,
    }
}

/// Whether something has been retried for longer than Jenkins may be away.
pub fn is_given_up(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) > jiff::SignedDuration::from_hours(25)
}

/// How long until a task that is not ready is looked at again: a tenth of the time that it has taken so far, so that
/// many slow tasks do not exceed ECS' rate for reads. `None` after `containerStartTimeout`, or if the template is gone: the
/// sweep takes over.
pub fn next_look(template: Option<&Template>, since: Timestamp, now: Timestamp) -> Option<Duration> {
    template.filter(|template| !template.container_start_timeout.is_over(since, now))?;
    let taken = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some((taken / 10).clamp(Duration::from_secs(3), Duration::from_secs(15)))
}

/// The agent and task of a notice that is true only while they run.
pub fn must_still_run(notice: &Notice) -> Option<(&Agent, &message::Task)> {
    notice.agent.as_ref().zip(notice.task.as_ref()).filter(|_| notice.kind == NoticeType::Ready)
}

/// A place within `maxAgents` that an ended agent leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freed<'a> {
    cloud: &'a str,
    /// The only template that it can serve; `None` if the limit is the cloud's.
    template: Option<&'a str>,
}

/// The place that the end of a template's agent leaves; `None` while it has not ended, or if nothing limits its number.
pub fn freed<'a>(task: &Task, cloud: &'a Cloud, template: &'a str) -> Option<Freed<'a>> {
    let limit = || cloud.template(template)?.max_agents;
    let template = match cloud.max_agents {
        Some(_) => None,
        None => Some(limit().map(|_| template)?),
    };
    task.is_stopped().then_some(Freed { cloud: &cloud.name, template })
}

impl Freed<'_> {
    /// The index of the first waiting request that the place may serve.
    pub fn next(self, waiting: &[Waiting]) -> Option<usize> {
        let serves = |wait: &Wait| {
            wait.waits_for == WaitsFor::MaxAgents
                && wait.cloud == self.cloud
                && self.template.is_none_or(|template| wait.template == template)
        };
        waiting.iter().position(|message| message.wait.as_ref().is_some_and(serves))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::config::{Config, Size, from_yaml};

    use super::*;

    #[test]
    fn only_a_connected_active_instance_has_room() {
        let instance = |status: &str, connected: bool, memory: i64| {
            let detail = json!({"detail-type": "ECS Container Instance State Change", "detail": {
                "status": status, "agentConnected": connected, "containerInstanceArn": "x", "unknown": 1,
                "ec2InstanceId": "i-1", "runningTasksCount": 1, "pendingTasksCount": 1,
                "remainingResources": [
                    {"name": "CPU", "type": "INTEGER", "integerValue": 1024},
                    {"name": "MEMORY", "type": "INTEGER", "integerValue": memory},
                    {"name": "PORTS", "type": "STRINGSET", "stringSetValue": ["22"]},
                    {"name": "PORTS_UDP", "type": "STRINGSET", "stringSetValue": ["53"]},
                    {"name": "GPU", "type": "STRINGSET", "stringSetValue": ["GPU-1", "GPU-2"]}]}});
            match event(detail) {
                Event::Instance(instance) => instance.with_room(),
                other => panic!("{other:?}"),
            }
        };
        let expected = ecs::Instance {
            arn: "x".into(),
            ec2_id: Some("i-1".into()),
            status: InstanceStatus::Active,
            connected: true,
            free: Size { cpu: 1024, memory: 2048 },
            free_gpus: 2,
            taken: [Exclusive::HostPort(22), Exclusive::UdpPort(53)].into(),
            tasks: 2,
            ..ecs::Instance::default()
        };
        assert_eq!(instance("ACTIVE", true, 2048), Some(expected));
        assert_eq!(instance("DRAINING", true, 2048), None);
        assert_eq!(instance("ACTIVE", false, 2048), None);
        assert_eq!(instance("ACTIVE", true, 0), None);
    }

    #[test]
    fn ignores_foreign_events() {
        for foreign in [json!({}), json!([]), json!({"detail-type": "x"})] {
            assert!(matches!(event(foreign.clone()), Event::Other(_)), "{foreign}");
        }
        let odd = json!({"detail-type": "ECS Task State Change", "detail": 3});
        assert!(matches!(event(odd), Event::Unreadable(_)));
        let nulls = json!({"detail-type": "ECS Task State Change", "detail": {"taskArn": "arn", "containers": null}});
        assert!(matches!(event(nulls), Event::Task(task) if task.arn == "arn"));
    }

    /// Two templates, one of which limits its agents.
    fn config() -> Config {
        let yaml = "
jenkins: {url: https://ci.example.com/, user: u, apiToken: {env: T}}
clouds:
  - name: linux
    region: eu-west-1
    cluster: ci
    templates:
      - {name: maven, labels: [maven], taskDefinition: maven, connect: ssh, containerStartTimeout: 1h}
      - {name: node, labels: [node], taskDefinition: node, connect: ssh, maxAgents: 1}
";
        from_yaml(yaml).expect("a configuration")
    }

    #[test]
    fn looks_at_an_unready_task_again_within_seconds() {
        let config = config();
        let template = config.clouds[0].templates.first();
        let since = Timestamp::from_second(10_000).expect("a time");
        let at = |taken: i64| Timestamp::from_second(10_000 + taken).expect("a time");
        for (taken, expected) in
            [(-5, Some(3)), (0, Some(3)), (60, Some(6)), (600, Some(15)), (3599, Some(15)), (3600, None)]
        {
            assert_eq!(next_look(template, since, at(taken)), expected.map(Duration::from_secs), "{taken}");
        }
        assert_eq!(next_look(None, since, at(0)), None, "its template is gone");
    }

    #[test]
    fn an_end_frees_a_place_within_the_limit_that_it_counted_towards() {
        let waiting = |waits_for: &str, cloud: &str, template: &str| {
            let wait = json!({
                "requestId": "a", "requestedAt": "2026-11-24T18:00:00Z", "since": "2026-11-24T18:00:00Z", "attempt": 1,
                "agents": [0], "cloud": cloud, "template": template, "waitsFor": waits_for, "reason": "maxAgents"
            });
            let wait = Some(serde_json::from_value(wait).expect("a wait"));
            Waiting { body: String::new(), wait, receipt: String::new() }
        };
        let all = [
            Waiting { body: String::new(), wait: None, receipt: String::new() },
            waiting("instance", "linux", "node"),
            waiting("maxAgents", "other", "node"),
            waiting("maxAgents", "linux", "maven"),
            waiting("maxAgents", "linux", "node"),
        ];
        let limited_by_template = config().clouds.remove(0);
        let limited_by_cloud = Cloud { max_agents: Some(3), ..limited_by_template.clone() };
        let stopped = Task { last_status: TaskStatus::Stopped, ..Task::default() };
        for (cloud, template, next) in [
            (&limited_by_template, "maven", None),
            (&limited_by_template, "node", Some(4)),
            (&limited_by_template, "removed", None),
            (&limited_by_cloud, "node", Some(3)),
            (&limited_by_cloud, "removed", Some(3)),
        ] {
            let freed = freed(&stopped, cloud, template);
            assert_eq!(freed.and_then(|freed| freed.next(&all)), next, "{template} of {:?}", cloud.max_agents);
        }
        assert_eq!(freed(&Task::default(), &limited_by_cloud, "node"), None, "it has not ended");
    }

    #[test]
    fn the_intended_end_needs_no_call() {
        let task = |status: &str, reason: &str, started: bool| Task {
            last_status: status.into(),
            stopped_reason: Some(reason.into()),
            started_at: started.then_some(Timestamp::UNIX_EPOCH),
            ..Task::default()
        };
        for (status, reason, started, expected) in [
            ("PENDING", "", false, Concern::Nothing),
            ("RUNNING", "", true, Concern::Report),
            ("DEPROVISIONING", "x", true, Concern::Nothing),
            ("STOPPED", "COMPLETED: build a #1 is over: SUCCESS", true, Concern::Ended),
            ("STOPPED", "COMPLETED: build a #1 is over: ABORTED", false, Concern::ReportEnd),
            ("STOPPED", "COMPLETED before ready: build a #1 is over: ABORTED", true, Concern::ReportEnd),
            ("STOPPED", "START_TIMEOUT before ready: x", true, Concern::ReportEnd),
            ("STOPPED", "Essential container in task exited", true, Concern::ReportEnd),
        ] {
            assert_eq!(concern(&task(status, reason, started)), expected, "{status} {reason}");
        }
    }
}
