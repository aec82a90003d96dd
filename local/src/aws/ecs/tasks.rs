//! Tasks, and the calls that read and stop them.

use std::collections::BTreeMap;
use std::ops::Bound;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::input::{includes_tags, invalid, names, object, one_of, short, text};
use super::tags::describe as describe_tags;
use super::{ApiError, Clock, Ecs, page};

/// The status of a task ("Amazon ECS task lifecycle"), in the order of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// ECS prepares it: network interfaces, or an instance of a capacity provider.
    Provisioning,
    /// Its containers are being prepared.
    Pending,
    /// Its containers have started, and ECS has more to do.
    Activating,
    /// It runs.
    Running,
    /// ECS has something to undo before it stops.
    Deactivating,
    /// Its containers are ending.
    Stopping,
    /// ECS cleans up.
    Deprovisioning,
    /// It has stopped.
    Stopped,
}

impl Status {
    /// As AWS writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "PROVISIONING",
            Self::Pending => "PENDING",
            Self::Activating => "ACTIVATING",
            Self::Running => "RUNNING",
            Self::Deactivating => "DEACTIVATING",
            Self::Stopping => "STOPPING",
            Self::Deprovisioning => "DEPROVISIONING",
            Self::Stopped => "STOPPED",
        }
    }
}

impl PartialEq<&str> for Status {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// The result of a health check (API_Container).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// There is none, or it has no result yet.
    Unknown,
    /// It passes.
    Healthy,
    /// It fails.
    Unhealthy,
}

impl Health {
    /// As AWS writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Healthy => "HEALTHY",
            Self::Unhealthy => "UNHEALTHY",
        }
    }
}

impl PartialEq<&str> for Health {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// How a task shows its containers' ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bindings {
    Empty,
    Null,
    Shown,
}

/// A host port that leads to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// In the container.
    pub container: u16,
    /// On the host.
    pub host: u16,
    /// Whether it is UDP.
    pub udp: bool,
    /// The address: `0.0.0.0` or `::`.
    pub ip: &'static str,
    /// The number of ports of a range, which begins with these; none for a single port.
    pub range: Option<u16>,
}

impl Binding {
    /// API_NetworkBinding: a port, or a range and the range that Docker chose for it.
    fn shape(&self) -> Value {
        let range = |first: u16| {
            let last = |length: u16| format!("{first}-{}", first + length.saturating_sub(1));
            Value::from(self.range.map(last))
        };
        let port = |port: u16| Value::from(self.range.is_none().then_some(port));
        object([
            ("bindIP", self.ip.into()),
            ("containerPort", port(self.container)),
            ("hostPort", port(self.host)),
            ("containerPortRange", range(self.container)),
            ("hostPortRange", range(self.host)),
            ("protocol", if self.udp { "udp" } else { "tcp" }.into()),
        ])
    }
}

/// A container of a task.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Whether the task ends with it.
    pub essential: bool,
    /// Its host ports.
    pub bindings: Vec<Binding>,
    /// PENDING, RUNNING or STOPPED.
    pub status: Status,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// Why it ended or never started.
    pub reason: Option<String>,
    /// The result of its health check.
    pub health: Health,
    pub(super) has_health_check: bool,
    pub(super) gpu_ids: Vec<String>,
    pub(super) cpu: u32,
    pub(super) memory: Option<u32>,
    pub(super) reservation: Option<u32>,
    pub(super) id: String,
}

/// A task's own network interface.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its id.
    pub id: String,
    /// Its address in the VPC; empty if it has only IPv6.
    pub private_address: String,
    /// Its IPv6 address.
    pub ipv6_address: Option<String>,
    /// Its public address.
    pub public_address: Option<String>,
    /// Its subnet.
    pub subnet: String,
    pub(super) attachment: String,
    pub(super) status: &'static str,
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its ARN.
    pub arn: String,
    /// Its cluster's name.
    pub cluster: String,
    /// Its task definition's ARN.
    pub definition: String,
    /// Its task definition's family.
    pub family: String,
    /// Its task group.
    pub group: String,
    /// `EC2`, `FARGATE`, `EXTERNAL`.
    pub launch_type: &'static str,
    /// Its capacity provider.
    pub provider: Option<String>,
    /// `startedBy`; empty if it was not given.
    pub started_by: String,
    /// Its last status.
    pub last_status: Status,
    /// RUNNING or STOPPED.
    pub desired_status: Status,
    /// Its overrides, with an entry for each container.
    pub overrides: Value,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its container instance's ARN.
    pub instance: Option<String>,
    /// The stop code, for programs.
    pub stop_code: Option<String>,
    /// The stopped reason, human-readable.
    pub stopped_reason: Option<String>,
    /// When ECS created it.
    pub created_at: Timestamp,
    /// When the image pull began.
    pub pull_started_at: Option<Timestamp>,
    /// When the image pull ended.
    pub pull_stopped_at: Option<Timestamp>,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When its desired status became STOPPED.
    pub stopping_at: Option<Timestamp>,
    /// When it stopped.
    pub stopped_at: Option<Timestamp>,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Its own network interface.
    pub interface: Option<Interface>,
    /// Grows with each change that an event reports.
    pub version: u64,
    /// CPU units and MiB that it reserves.
    pub size: (u32, u32),
    /// GPUs that it reserves.
    pub gpus: u32,
    /// GiB of ephemeral storage on Fargate.
    pub ephemeral_storage: Option<u32>,
    /// RunTask's `referenceId`.
    pub reference_id: Option<String>,
    /// Whether its network bindings are shown, and what is shown until then.
    pub(super) bindings: Bindings,
    pub(super) cluster_arn: String,
    pub(super) zone: String,
    pub(super) platform_version: Option<String>,
    pub(super) enable_execute_command: bool,
    pub(super) token: Option<String>,
    pub(super) architecture: &'static str,
}

impl Task {
    /// The worst result of the essential containers that have a health check (API_Task).
    pub fn health(&self) -> Health {
        let checked = || self.containers.iter().filter(|container| container.essential && container.has_health_check);
        if checked().any(|container| container.health == Health::Unhealthy) {
            Health::Unhealthy
        } else if checked().next().is_some() && checked().all(|container| container.health == Health::Healthy) {
            Health::Healthy
        } else {
            Health::Unknown
        }
    }

    /// The value of a variable that RunTask set in one of its containers.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let containers = self.overrides["containerOverrides"].as_array().into_iter().flatten();
        let mut variables = containers.flat_map(|container| container["environment"].as_array().into_iter().flatten());
        variables.find(|variable| variable["name"] == name)?["value"].as_str()
    }

    /// As API_Task and the events show it: in an event, times are RFC 3339, an interface's type is `eni`, and there is
    /// no health.
    pub(super) fn shape(&self, clock: Clock) -> Value {
        let health = (clock == Clock::Answer).then(|| self.health().as_str());
        let time = |time: Option<Timestamp>| time.map_or(Value::Null, |time| clock.show(time));
        let on_fargate = self.launch_type == "FARGATE";
        let text = |text: &Option<String>| Value::from(text.as_deref());
        object([
            ("taskArn", self.arn.as_str().into()),
            ("clusterArn", self.cluster_arn.as_str().into()),
            ("taskDefinitionArn", self.definition.as_str().into()),
            ("containerInstanceArn", text(&self.instance)),
            ("availabilityZone", self.zone.as_str().into()),
            ("group", self.group.as_str().into()),
            ("launchType", self.launch_type.into()),
            ("capacityProviderName", text(&self.provider)),
            ("platformVersion", text(&self.platform_version)),
            ("platformFamily", on_fargate.then_some("Linux").into()),
            ("startedBy", Some(self.started_by.as_str()).filter(|name| !name.is_empty()).into()),
            ("lastStatus", self.last_status.as_str().into()),
            ("desiredStatus", self.desired_status.as_str().into()),
            ("healthStatus", health.into()),
            ("version", self.version.into()),
            ("cpu", self.size.0.to_string().into()),
            ("memory", self.size.1.to_string().into()),
            ("enableExecuteCommand", self.enable_execute_command.into()),
            ("overrides", self.overrides.clone()),
            ("containers", self.containers.iter().map(|container| container.shape(self, clock)).collect()),
            ("attachments", self.interface.iter().map(|interface| interface.attachment(clock)).collect()),
            ("attributes", json!([{"name": "ecs.cpu-architecture", "value": self.architecture}])),
            ("ephemeralStorage", self.ephemeral_storage.map(|size| json!({"sizeInGiB": size})).into()),
            ("connectivity", self.started_at.map(|_| "CONNECTED").into()),
            ("connectivityAt", time(self.started_at)),
            ("stopCode", text(&self.stop_code)),
            ("stoppedReason", text(&self.stopped_reason)),
            ("createdAt", time(Some(self.created_at))),
            ("pullStartedAt", time(self.pull_started_at)),
            ("pullStoppedAt", time(self.pull_stopped_at)),
            ("startedAt", time(self.started_at)),
            ("stoppingAt", time(self.stopping_at)),
            ("executionStoppedAt", time(self.started_at.and(self.stopped_at))),
            ("stoppedAt", time(self.stopped_at)),
        ])
    }

    fn describe(&self, with_tags: bool) -> Value {
        let mut shape = self.shape(Clock::Answer);
        shape["tags"] = if with_tags { describe_tags(&self.tags) } else { json!([]) };
        shape
    }
}

impl Interface {
    /// An attachment is PRECREATED until its interface exists (API_Attachment).
    fn attachment(&self, clock: Clock) -> Value {
        let mut details = vec![json!({"name": "subnetId", "value": self.subnet})];
        if self.status != "PRECREATED" {
            details.push(json!({"name": "networkInterfaceId", "value": self.id}));
            if !self.private_address.is_empty() {
                details.push(json!({"name": "privateIPv4Address", "value": self.private_address}));
            }
        }
        let kind = if clock == Clock::Event { "eni" } else { "ElasticNetworkInterface" };
        json!({"id": self.attachment, "type": kind, "status": self.status, "details": details})
    }
}

impl Container {
    fn shape(&self, task: &Task, clock: Clock) -> Value {
        let prefix = task.arn.split(":task/").next().unwrap_or_default();
        // "After a task reaches the RUNNING status, … port assignments are visible" (API_NetworkBinding).
        let bindings = match task.bindings {
            Bindings::Shown => self.bindings.iter().map(Binding::shape).collect(),
            _ => Value::Array(Vec::new()),
        };
        let interfaces = task.interface.iter().filter(|interface| interface.status != "PRECREATED").map(|interface| {
            object([
                ("attachmentId", interface.attachment.as_str().into()),
                ("privateIpv4Address", Some(interface.private_address.as_str()).filter(|text| !text.is_empty()).into()),
                ("ipv6Address", interface.ipv6_address.as_deref().into()),
            ])
        });
        let amount = |amount: Option<u32>| Value::from(amount.map(|amount| amount.to_string()));
        let mut shape = object([
            ("containerArn", format!("{prefix}:container/{}/{}", task.cluster, self.id).into()),
            ("taskArn", task.arn.as_str().into()),
            ("name", self.name.as_str().into()),
            ("image", self.image.as_str().into()),
            ("runtimeId", task.started_at.map(|_| self.id.as_str()).into()),
            ("lastStatus", self.status.as_str().into()),
            ("exitCode", self.exit_code.into()),
            ("reason", self.reason.as_deref().into()),
            ("networkBindings", bindings),
            ("networkInterfaces", interfaces.collect()),
            ("healthStatus", (clock == Clock::Answer).then(|| self.health.as_str()).into()),
            ("cpu", self.cpu.to_string().into()),
            ("memory", amount(self.memory)),
            ("memoryReservation", amount(self.reservation)),
            ("gpuIds", Some(&self.gpu_ids).filter(|ids| !ids.is_empty()).map(|ids| json!(ids)).into()),
        ]);
        if task.bindings == Bindings::Null {
            shape["networkBindings"] = Value::Null;
        }
        shape
    }
}

impl Ecs {
    /// The ARN of a task that a call names by ARN or id.
    ///
    /// # Errors
    /// When it cannot be a task of that cluster.
    fn task_arn(&self, cluster: &str, given: &str) -> Result<String, ApiError> {
        let arn =
            if given.starts_with("arn:") { given.to_owned() } else { self.arn(&format!("task/{cluster}/{given}")) };
        let prefix = self.arn("task/");
        let Some((of, id)) = arn.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else {
            return Err(invalid(format!("Invalid identifier: {given}")));
        };
        if of != cluster {
            return Err(invalid(format!(
                "Invalid identifier: Identifier is for cluster {of}. Your cluster is {cluster}"
            )));
        }
        if !matches!(id.len(), 32 | 36) {
            return Err(invalid("taskId length should be one of [32,36]"));
        }
        Ok(arn)
    }

    pub(super) fn describe_all(&self, arns: &[String]) -> Vec<Value> {
        arns.iter().filter_map(|arn| self.tasks.get(arn)).map(|task| task.describe(true)).collect()
    }

    /// API_StopTask. Repeated on a task that is stopping or has stopped, it changes nothing.
    pub(super) fn stop_task(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let arn = self.task_arn(&cluster, text(input, "task").unwrap_or_default())?;
        let reason = text(input, "reason").unwrap_or("Task stopped by user");
        // The limit is that of the console and of practice; the model has none.
        if reason.chars().count() > 255 {
            return Err(invalid("reason: up to 255 characters"));
        }
        let Some(task) = self.tasks.get_mut(&arn) else {
            return Err(invalid("The referenced task was not found."));
        };
        // "Any tags associated with the task will be deleted."
        task.tags.clear();
        self.stop(&arn, "UserInitiated", reason, now);
        Ok(object([("task", self.tasks.get(&arn).map(|task| task.describe(false)).into())]))
    }

    /// API_DescribeTasks: up to 100; a task that ECS no longer knows is a failure MISSING.
    pub(super) fn describe_tasks(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let with_tags = includes_tags(input, &[])?;
        let (mut tasks, mut failures) = (Vec::new(), Vec::new());
        for given in names(input, "tasks", 100)? {
            let arn = self.task_arn(&cluster, given)?;
            match self.tasks.get(&arn) {
                Some(task) => tasks.push(task.describe(with_tags)),
                None => failures.push(json!({"arn": arn, "reason": "MISSING"})),
            }
        }
        Ok(object([("tasks", tasks.into()), ("failures", failures.into())]))
    }

    /// API_ListTasks: `startedBy` allows no other filter but the desired status, which nothing has at PENDING.
    pub(super) fn list_tasks(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let [family, instance, service, launch_type] =
            ["family", "containerInstance", "serviceName", "launchType"].map(|name| text(input, name));
        one_of(input, "launchType", &["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"])?;
        let started_by = text(input, "startedBy");
        if started_by.is_some() && [family, instance, service, launch_type].iter().any(Option::is_some) {
            return Err(invalid("startedBy can be combined with no other filter."));
        }
        let candidates = match one_of(input, "desiredStatus", &["RUNNING", "PENDING", "STOPPED"])? {
            Some("STOPPED") => Some(&self.ended),
            Some("PENDING") => None,
            _ => Some(&self.active),
        };
        let matches = |task: &&Task| {
            task.cluster == cluster
                && family.is_none_or(|family| task.family == family)
                && service.is_none_or(|service| task.group.strip_prefix("service:") == Some(service))
                && launch_type.is_none_or(|kind| task.launch_type == kind)
                && instance
                    .is_none_or(|given| task.instance.as_deref().is_some_and(|arn| arn == given || short(arn) == given))
        };
        let Some(candidates) = candidates else { return Ok(json!({"taskArns": []})) };
        // Both sets are ordered by ARN, so a page continues where the one before it ended.
        let of_name = started_by.map(|name| self.by_starter.get(name).unwrap_or(&self.nothing));
        let from = text(input, "nextToken").map_or(Bound::Unbounded, Bound::Excluded);
        let arns = of_name.unwrap_or(candidates).range::<str, _>((from, Bound::Unbounded));
        let arns = arns.filter(|arn| of_name.is_none() || candidates.contains(*arn));
        let tasks = arns.filter_map(|arn| self.tasks.get(arn)).filter(matches);
        page(tasks.map(|task| task.arn.as_str()), input, "taskArns")
    }
}
