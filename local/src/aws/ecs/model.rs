//! What there is: task definitions, container instances, tasks, and how they show themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Delays and limits of the world.
#[derive(Debug, Clone)]
pub struct Settings {
    /// From a raised desired capacity to a running instance.
    pub boot: Duration,
    /// From a running instance to a registered one.
    pub register: Duration,
    /// Fargate's own preparation.
    pub provision: Duration,
    /// How long images take.
    pub pull: Duration,
    /// From the image to the running container.
    pub start: Duration,
    /// From running to healthy, where there is a health check.
    pub healthy: Duration,
    /// From StopTask to STOPPING.
    pub stopping: Duration,
    /// From STOPPING to STOPPED.
    pub stop: Duration,
    /// RunTask calls a second, and at once.
    pub run_task_rate: Option<(u32, u32)>,
    /// Whether TagResource takes a stopped task; the API reference does not say.
    pub tags_on_stopped_tasks: bool,
    /// Whether Fargate has capacity.
    pub fargate_has_capacity: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            register: Duration::from_secs(20),
            provision: Duration::from_secs(8),
            pull: Duration::from_secs(4),
            start: Duration::from_secs(1),
            healthy: Duration::from_secs(5),
            stopping: Duration::from_millis(200),
            stop: Duration::from_secs(2),
            run_task_rate: Some((20, 20)),
            tags_on_stopped_tasks: true,
            fargate_has_capacity: true,
        }
    }
}

/// How the tasks of a family behave.
#[derive(Debug, Clone, Default)]
pub enum Behaviour {
    /// They run until they are stopped.
    #[default]
    Runs,
    /// Their image cannot be pulled.
    ImageMissing,
    /// They never leave PENDING.
    NeverRuns,
    /// They run and never become healthy.
    Unhealthy,
    /// They end by themselves.
    Exits {
        /// After so long.
        after: Duration,
        /// With this exit code.
        code: i32,
    },
}

/// The network mode of a task definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Ports of the instance, dynamic ones too.
    Bridge,
    /// The instance's own ports.
    Host,
    /// A network interface of its own.
    Awsvpc,
}

/// A task definition.
#[derive(Debug, Clone)]
pub struct TaskDefinition {
    /// Its ARN.
    pub arn: String,
    /// Its family.
    pub family: String,
    /// Its network mode.
    pub network: Network,
    /// CPU units.
    pub cpu: u32,
    /// MiB.
    pub memory: u32,
    pub(super) containers: Vec<ContainerDefinition>,
    /// As it was registered.
    pub raw: Value,
}

#[derive(Debug, Clone)]
pub(super) struct ContainerDefinition {
    pub name: String,
    #[allow(dead_code)]
    pub essential: bool,
    pub cpu: u32,
    pub memory: u32,
    pub has_health_check: bool,
    pub ports: Vec<PortMapping>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PortMapping {
    pub container: u16,
    pub host: u16,
}

/// A container instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its ARN.
    pub arn: String,
    /// Its cluster's name.
    pub cluster: String,
    /// Its id in EC2.
    pub ec2_id: String,
    /// Its address in the VPC.
    pub private_address: String,
    /// `ACTIVE` or `DRAINING`.
    pub status: String,
    /// Whether its container agent talks to ECS.
    pub connected: bool,
    /// CPU units and MiB.
    pub total: (u32, u32),
    /// What no task has reserved.
    pub free: (u32, u32),
    /// Host ports in use.
    pub ports: BTreeSet<u16>,
    /// Network interfaces that tasks may still have.
    pub interfaces: u32,
    /// Tasks on it.
    pub tasks: usize,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its attributes, for `memberOf`.
    pub attributes: BTreeMap<String, String>,
    /// When it registered.
    pub registered_at: Timestamp,
    pub(super) version: u64,
    pub(super) next_port: u16,
}

impl Instance {
    pub(super) fn take(&mut self, size: (u32, u32), interface: bool) {
        self.free.0 = self.free.0.saturating_sub(size.0);
        self.free.1 = self.free.1.saturating_sub(size.1);
        self.interfaces = self.interfaces.saturating_sub(u32::from(interface));
        self.tasks += 1;
    }

    pub(super) fn give_back(&mut self, size: (u32, u32), interface: bool) {
        self.free.0 = (self.free.0 + size.0).min(self.total.0);
        self.free.1 = (self.free.1 + size.1).min(self.total.1);
        self.interfaces += u32::from(interface);
        self.tasks = self.tasks.saturating_sub(1);
    }

    /// A port of the ephemeral range (API_PortMapping: 32768 and above).
    pub(super) fn dynamic_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = if port >= 60999 { 32768 } else { port + 1 };
            if !self.ports.contains(&port) {
                return port;
            }
        }
    }

    pub(super) fn describe(&self, with_tags: bool) -> Value {
        let resources = |(cpu, memory): (u32, u32), ports: &BTreeSet<u16>| {
            let ports: Vec<String> = [22, 2375, 2376, 51678, 51679].iter().chain(ports).map(ToString::to_string).collect();
            json!([
                {"name": "CPU", "type": "INTEGER", "integerValue": cpu},
                {"name": "MEMORY", "type": "INTEGER", "integerValue": memory},
                {"name": "PORTS", "type": "STRINGSET", "stringSetValue": ports},
            ])
        };
        let mut described = json!({
            "containerInstanceArn": self.arn,
            "ec2InstanceId": self.ec2_id,
            "status": self.status,
            "agentConnected": self.connected,
            "version": self.version,
            "registeredResources": resources(self.total, &BTreeSet::new()),
            "remainingResources": resources(self.free, &self.ports),
            "runningTasksCount": self.tasks,
            "pendingTasksCount": 0,
            "registeredAt": seconds(self.registered_at),
            "attributes": self.attributes.iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>(),
        });
        if with_tags {
            described["tags"] = tags(&self.tags);
        }
        described
    }
}

fn tags(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// A container of a task.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Container port and host port.
    pub bindings: Vec<(u16, u16)>,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// Why it ended or never began.
    pub reason: Option<String>,
    checked: bool,
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its ARN.
    pub arn: String,
    /// Its cluster's name.
    pub cluster: String,
    cluster_arn: String,
    /// Its task definition's ARN.
    pub definition: String,
    /// Its task definition's family.
    pub family: String,
    /// `EC2`, `FARGATE`, `EXTERNAL`.
    pub launch_type: String,
    /// Who started it.
    pub started_by: String,
    /// `PROVISIONING` … `STOPPED`.
    pub last_status: String,
    /// `RUNNING` or `STOPPED`.
    pub desired_status: String,
    /// `UNKNOWN`, `HEALTHY`, `UNHEALTHY`.
    pub health: String,
    /// What it was started with.
    pub overrides: Value,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its container instance's ARN.
    pub instance: Option<String>,
    /// Why it stopped, for programs.
    pub stop_code: Option<String>,
    /// Why it stopped, for people.
    pub stopped_reason: Option<String>,
    /// ECS took it.
    pub created_at: Timestamp,
    /// It ran.
    pub started_at: Option<Timestamp>,
    /// It was over.
    pub stopped_at: Option<Timestamp>,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Its network interface: id and private address.
    pub interface: Option<(String, String)>,
    pub(super) public: bool,
    pub(super) pull_started_at: Option<Timestamp>,
    pub(super) pull_stopped_at: Option<Timestamp>,
    pub(super) stopping_at: Option<Timestamp>,
    pub(super) size: (u32, u32),
    pub(super) has_health_check: bool,
    pub(super) spot: bool,
    pub(super) version: u64,
}

impl Task {
    pub(super) fn new(arn: &str, cluster: &str, cluster_arn: &str, definition: &TaskDefinition, launch_type: &str, now: Timestamp) -> Self {
        Self {
            arn: arn.into(),
            cluster: cluster.into(),
            cluster_arn: cluster_arn.into(),
            definition: definition.arn.clone(),
            family: definition.family.clone(),
            launch_type: launch_type.into(),
            started_by: String::new(),
            last_status: "PROVISIONING".into(),
            desired_status: "RUNNING".into(),
            health: "UNKNOWN".into(),
            overrides: Value::Null,
            tags: BTreeMap::new(),
            instance: None,
            stop_code: None,
            stopped_reason: None,
            created_at: now,
            started_at: None,
            stopped_at: None,
            containers: definition
                .containers
                .iter()
                .map(|container| Container {
                    name: container.name.clone(),
                    bindings: Vec::new(),
                    exit_code: None,
                    reason: None,
                    checked: container.has_health_check,
                })
                .collect(),
            interface: None,
            public: false,
            pull_started_at: None,
            pull_stopped_at: None,
            stopping_at: None,
            size: (definition.cpu, definition.memory),
            has_health_check: definition.containers.iter().any(|container| container.has_health_check),
            spot: false,
            version: 1,
        }
    }

    pub(super) fn attach(&mut self, id: &str, address: &str, public: bool) {
        self.interface = Some((id.into(), address.into()));
        self.public = public;
    }

    /// As API_Task shows it: times are seconds since 1970.
    pub(super) fn describe(&self, with_tags: bool) -> Value {
        let time = |time: Option<Timestamp>| time.map_or(Value::Null, |time| json!(seconds(time)));
        let mut described = self.common("ElasticNetworkInterface", &time);
        if with_tags {
            described["tags"] = tags(&self.tags);
        }
        described
    }

    /// As an event's detail shows it: times are RFC 3339, and there are no tags.
    pub(super) fn event_detail(&self, now: Timestamp) -> Value {
        let time = |time: Option<Timestamp>| time.map_or(Value::Null, |time| json!(time));
        let mut detail = self.common("eni", &time);
        detail["updatedAt"] = json!(now);
        detail
    }

    fn common(&self, interface: &str, time: &dyn Fn(Option<Timestamp>) -> Value) -> Value {
        let running = self.last_status == "RUNNING";
        let containers: Vec<Value> = self
            .containers
            .iter()
            .map(|container| {
                let bindings: Vec<_> = container
                    .bindings
                    .iter()
                    .filter(|_| running)
                    .map(|(inside, outside)| {
                        json!({"bindIP": "0.0.0.0", "containerPort": inside, "hostPort": outside, "protocol": "tcp"})
                    })
                    .collect();
                let interfaces: Vec<_> = self
                    .interface
                    .iter()
                    .map(|(id, address)| json!({"attachmentId": format!("at-{id}"), "privateIpv4Address": address}))
                    .collect();
                without_nulls(json!({
                    "name": container.name,
                    "taskArn": self.arn,
                    "lastStatus": self.last_status,
                    "networkBindings": bindings,
                    "networkInterfaces": interfaces,
                    "exitCode": container.exit_code,
                    "reason": container.reason,
                    "healthStatus": if container.checked { self.health.as_str() } else { "UNKNOWN" },
                }))
            })
            .collect();
        let attachments: Vec<Value> = self
            .interface
            .iter()
            .map(|(id, address)| {
                json!({"id": format!("at-{id}"), "type": interface, "status": "ATTACHED", "details": [
                    {"name": "subnetId", "value": "subnet-1"},
                    {"name": "networkInterfaceId", "value": id},
                    {"name": "privateIPv4Address", "value": address},
                ]})
            })
            .collect();
        without_nulls(json!({
            "taskArn": self.arn,
            "clusterArn": self.cluster_arn,
            "taskDefinitionArn": self.definition,
            "containerInstanceArn": self.instance,
            "group": format!("family:{}", self.family),
            "launchType": self.launch_type,
            "capacityProviderName": self.spot.then_some("FARGATE_SPOT"),
            "startedBy": (!self.started_by.is_empty()).then_some(&self.started_by),
            "lastStatus": self.last_status,
            "desiredStatus": self.desired_status,
            "healthStatus": self.health,
            "version": self.version,
            "cpu": self.size.0.to_string(),
            "memory": self.size.1.to_string(),
            "overrides": self.overrides,
            "containers": containers,
            "attachments": attachments,
            "stopCode": self.stop_code,
            "stoppedReason": self.stopped_reason,
            "createdAt": time(Some(self.created_at)),
            "pullStartedAt": time(self.pull_started_at),
            "pullStoppedAt": time(self.pull_stopped_at),
            "startedAt": time(self.started_at),
            "stoppingAt": time(self.stopping_at),
            "stoppedAt": time(self.stopped_at),
        }))
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}
