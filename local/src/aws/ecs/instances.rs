//! Container instances.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::definitions::PortMapping;
use super::input::{includes_tags, invalid, list, names, object, one_of, short, text};
use super::query::Query;
use super::settings::Addressing;
use super::tags::{Tags, describe as describe_tags};
use super::tasks::Binding;
use super::{ApiError, Clock, Ecs, Status, page};

/// The ports that the container agent reserves: SSH, Docker, and its own (API_PortMapping).
const RESERVED_PORTS: [u16; 6] = [22, 2375, 2376, 51678, 51679, 51680];

/// The range of dynamic host ports, `ip_local_port_range` of Linux (API_PortMapping).
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 32768..=60999;

/// The status of a container instance (API_ContainerInstance).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStatus {
    /// It accepts tasks.
    Active,
    /// It accepts no new tasks.
    Draining,
    /// It is deregistered.
    Inactive,
}

impl InstanceStatus {
    /// As AWS writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Inactive => "INACTIVE",
        }
    }
}

impl PartialEq<&str> for InstanceStatus {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
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
    /// Its address in the VPC; empty if it has only IPv6.
    pub private_address: String,
    /// Its IPv6 address.
    pub ipv6_address: Option<String>,
    /// Its address in the internet.
    pub public_address: Option<String>,
    /// Whether it accepts tasks.
    pub status: InstanceStatus,
    /// Whether its container agent is connected to ECS.
    pub connected: bool,
    /// CPU units and MiB that it registered with.
    pub total: (u32, u32),
    /// CPU units and MiB that no task has reserved.
    pub free: (u32, u32),
    /// GPUs that it registered with.
    pub all_gpus: Vec<String>,
    /// GPUs that no task has reserved.
    pub gpus: Vec<String>,
    /// The addresses to which Docker binds the ports of its tasks.
    pub addressing: Addressing,
    /// TCP ports of the host in use by tasks.
    pub ports: BTreeSet<u16>,
    /// UDP ports of the host in use by tasks.
    pub udp_ports: BTreeSet<u16>,
    /// Network interfaces still available to tasks.
    pub interfaces: u32,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// The tasks on it that have not stopped, with their groups.
    pub tasks: BTreeMap<String, String>,
    /// When it registered.
    pub registered_at: Timestamp,
    /// The capacity provider that it belongs to.
    pub provider: Option<String>,
    /// Counts registrations.
    pub(super) number: u64,
    pub(super) version: u64,
    pub(super) next_port: u16,
}

impl Instance {
    pub(super) fn uses(&self, port: u16, udp: bool) -> bool {
        if udp { self.udp_ports.contains(&port) } else { RESERVED_PORTS.contains(&port) || self.ports.contains(&port) }
    }

    /// Docker assigns ports in turn, so that one just freed is not reused at once. Returns the first of this many in a
    /// row.
    fn dynamic_port(&mut self, udp: bool, length: u16) -> Option<u16> {
        for _ in DYNAMIC_PORTS {
            let first = self.next_port;
            let last = first.saturating_add(length - 1);
            let fits = last <= *DYNAMIC_PORTS.end() && (first..=last).all(|port| !self.uses(port, udp));
            self.next_port = match fits {
                true if last < *DYNAMIC_PORTS.end() => last + 1,
                false if first < *DYNAMIC_PORTS.end() => first + 1,
                _ => *DYNAMIC_PORTS.start(),
            };
            if fits {
                return Some(first);
            }
        }
        None
    }

    /// Reserves host ports for a mapping: a static port is the same in IPv4 and IPv6, a dynamic one need not be.
    pub(super) fn bind(&mut self, mapping: &PortMapping) -> Vec<Binding> {
        let PortMapping { container, host, udp, range } = *mapping;
        let length = range.unwrap_or(1);
        let mut bindings = Vec::new();
        for ip in self.addressing.binds() {
            let host = if host == 0 { self.dynamic_port(udp, length) } else { Some(host) };
            let Some(host) = host else { continue };
            let ports = if udp { &mut self.udp_ports } else { &mut self.ports };
            ports.extend(host..host + length);
            bindings.push(Binding { container, host, udp, ip, range });
        }
        bindings
    }

    /// Whether it is an EC2 instance: ECS Anywhere's have an attribute that says so.
    pub(super) fn is_external(&self) -> bool {
        self.attributes.contains_key("ecs.capability.external")
    }

    /// The value of a subject of the cluster query language.
    pub(super) fn subject(&self, name: &str) -> Option<String> {
        match name {
            "ec2InstanceId" => Some(self.ec2_id.clone()),
            "agentConnected" => Some(self.connected.to_string()),
            "status" => Some(self.status.as_str().to_owned()),
            "runningTasksCount" => Some(self.tasks.len().to_string()),
            _ => self.attributes.get(name.strip_prefix("attribute:")?).cloned(),
        }
    }

    pub(super) fn shape(&self, (running, pending): (usize, usize), clock: Clock) -> Value {
        let resources = |(cpu, memory): (u32, u32), gpus: &[String], tcp: &BTreeSet<u16>, udp: &BTreeSet<u16>| {
            // "Automatically assigned ports aren't included" (API_PortMapping).
            let fixed = |port: &&u16| !DYNAMIC_PORTS.contains(*port);
            let texts = |ports: Vec<&u16>| ports.into_iter().map(|port| Value::from(port.to_string())).collect();
            let tcp = texts(RESERVED_PORTS.iter().chain(tcp.iter().filter(fixed)).collect());
            let udp = texts(udp.iter().filter(fixed).collect());
            let resource = |name: &str, kind: &str, member: &str, value: Value| {
                object([("name", name.into()), ("type", kind.into()), (member, value)])
            };
            let gpus = (!self.all_gpus.is_empty()).then(|| resource("GPU", "STRINGSET", "stringSetValue", json!(gpus)));
            let resources = [
                resource("CPU", "INTEGER", "integerValue", cpu.into()),
                resource("MEMORY", "INTEGER", "integerValue", memory.into()),
                resource("PORTS", "STRINGSET", "stringSetValue", tcp),
                resource("PORTS_UDP", "STRINGSET", "stringSetValue", udp),
            ];
            resources.into_iter().chain(gpus).collect::<Value>()
        };
        let none = BTreeSet::new();
        let attributes = self.attributes.iter();
        let attributes =
            attributes.map(|(name, value)| object([("name", name.as_str().into()), ("value", value.as_str().into())]));
        object([
            ("containerInstanceArn", self.arn.as_str().into()),
            ("ec2InstanceId", self.ec2_id.as_str().into()),
            ("capacityProviderName", self.provider.as_deref().into()),
            ("version", self.version.into()),
            (
                "versionInfo",
                json!({"agentVersion": "1.97.0", "agentHash": "0a1b2c3d", "dockerVersion": "DockerVersion: 25.0.8"}),
            ),
            ("status", self.status.as_str().into()),
            ("agentConnected", self.connected.into()),
            ("registeredResources", resources(self.total, &self.all_gpus, &none, &none)),
            ("remainingResources", resources(self.free, &self.gpus, &self.ports, &self.udp_ports)),
            ("runningTasksCount", running.into()),
            ("pendingTasksCount", pending.into()),
            ("registeredAt", clock.show(self.registered_at)),
            ("attributes", attributes.collect()),
            ("attachments", Value::Array(Vec::new())),
        ])
    }
}

/// The parameters of a registration.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Its id in EC2.
    pub ec2_id: String,
    /// CPU units and MiB.
    pub size: (u32, u32),
    /// GPUs.
    pub gpus: u32,
    /// Network interfaces available to its tasks.
    pub interfaces: u32,
    /// Further attributes.
    pub attributes: BTreeMap<String, String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The capacity provider that it belongs to.
    pub provider: Option<String>,
}

impl Ecs {
    /// Registers a container instance in a cluster; an EC2 instance of that id is created if it is missing.
    pub fn add_instance(
        &mut self,
        cluster: &str,
        ec2_id: &str,
        size: (u32, u32),
        interfaces: u32,
        now: Timestamp,
    ) -> String {
        let registration = Registration {
            ec2_id: ec2_id.to_owned(),
            size,
            gpus: 0,
            interfaces,
            attributes: BTreeMap::new(),
            tags: Tags::new(),
            provider: None,
        };
        self.register_instance(cluster, registration, now)
    }

    /// Registers a container instance; returns its ARN.
    pub fn register_instance(&mut self, cluster: &str, registration: Registration, now: Timestamp) -> String {
        let Registration { ec2_id, size, gpus, interfaces, attributes, tags, provider } = registration;
        let gpus: Vec<String> = (0..gpus).map(|_| format!("GPU-{}", self.uuid())).collect();
        let machine = self.machine(&ec2_id, now).clone();
        let id = self.id();
        let arn = self.arn(&format!("container-instance/{cluster}/{id}"));
        let mut all = BTreeMap::from(
            [
                ("ecs.os-type", "linux"),
                ("ecs.cpu-architecture", "x86_64"),
                ("ecs.instance-type", &machine.kind),
                ("ecs.availability-zone", &machine.zone),
                ("ecs.capability.task-eni", ""),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        all.extend(attributes);
        let instance = Instance {
            arn: arn.clone(),
            cluster: cluster.to_owned(),
            ec2_id,
            private_address: machine.private_address,
            ipv6_address: machine.ipv6_address,
            addressing: machine.addressing,
            all_gpus: gpus.clone(),
            gpus,
            public_address: machine.public_address,
            status: InstanceStatus::Active,
            connected: true,
            total: size,
            free: size,
            ports: BTreeSet::new(),
            udp_ports: BTreeSet::new(),
            interfaces,
            tags,
            attributes: all,
            tasks: BTreeMap::new(),
            registered_at: now,
            provider,
            number: self.counter,
            version: 0,
            next_port: *DYNAMIC_PORTS.start(),
        };
        self.instances.insert(arn.clone(), instance);
        self.change_instance(&arn, now, |_| ());
        self.keep_daemons(&arn, now);
        self.place_waiting(now);
        arn
    }

    /// Its container agent loses the connection to ECS, or regains it.
    pub fn connect_instance(&mut self, arn: &str, connected: bool, now: Timestamp) {
        if self.instances.get(arn).is_some_and(|instance| instance.connected != connected) {
            self.change_instance(arn, now, |instance| instance.connected = connected);
            self.keep_daemons(arn, now);
            self.place_waiting(now);
        }
    }

    /// Changes a container instance; its version grows, and an event reports it ("Amazon ECS container instance state
    /// change events").
    pub(super) fn change_instance(&mut self, arn: &str, now: Timestamp, change: impl FnOnce(&mut Instance)) {
        let Some(instance) = self.instances.get_mut(arn) else { return };
        change(instance);
        instance.version += 1;
        let Some(instance) = self.instances.get(arn) else { return };
        let mut detail = self.shape_of(instance, Clock::Event);
        detail["clusterArn"] = self.cluster_arn(&instance.cluster).into();
        detail["updatedAt"] = Clock::Event.show(now);
        self.event("ECS Container Instance State Change", arn, detail, now);
    }

    fn shape_of(&self, instance: &Instance, clock: Clock) -> Value {
        // API_ContainerInstance: those of status PENDING and RUNNING; the others are in neither.
        let count = |status: Status| {
            let tasks = instance.tasks.keys().filter_map(|arn| self.tasks.get(arn));
            tasks.filter(|task| task.last_status == status).count()
        };
        instance.shape((count(Status::Running), count(Status::Pending)), clock)
    }

    fn describe_instance(&self, instance: &Instance, with_tags: bool) -> Value {
        let mut shape = self.shape_of(instance, Clock::Answer);
        if with_tags {
            shape["tags"] = describe_tags(&instance.tags);
        }
        shape
    }

    /// A container instance of a cluster, by its ARN or its id.
    fn instance_arn(&self, cluster: &str, given: &str) -> String {
        if given.starts_with("arn:") {
            given.to_owned()
        } else {
            self.arn(&format!("container-instance/{cluster}/{given}"))
        }
    }

    /// The container instances that a call names, and failures MISSING for the others.
    fn named_instances(&self, cluster: &str, given: &[&str]) -> (Vec<String>, Vec<Value>) {
        let (known, unknown): (Vec<_>, Vec<_>) = given
            .iter()
            .map(|name| self.instance_arn(cluster, name))
            .partition(|arn| self.instances.get(arn).is_some_and(|instance| instance.cluster == cluster));
        let missing = unknown.into_iter().map(|arn| json!({"arn": arn, "reason": "MISSING"})).collect();
        (known, missing)
    }

    /// API_ListContainerInstances: a hundred a page, all but INACTIVE ones, or those of a status.
    pub(super) fn list_container_instances(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        // API_ListContainerInstances.
        let states = ["ACTIVE", "DRAINING", "REGISTERING", "DEREGISTERING", "REGISTRATION_FAILED"];
        let status = one_of(input, "status", &states)?;
        let filter = text(input, "filter").map(Query::parse).transpose()?;
        let arns = self.instances.values().filter(|instance| {
            instance.cluster == cluster
                && status.is_none_or(|status| instance.status == status)
                && filter.as_ref().is_none_or(|filter| filter.holds(&|name| instance.subject(name)))
        });
        page(arns.map(|instance| instance.arn.as_str()), input, "containerInstanceArns")
    }

    /// API_DescribeContainerInstances: up to 100.
    pub(super) fn describe_container_instances(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let (known, failures) = self.named_instances(&cluster, &names(input, "containerInstances", 100)?);
        let with_tags = includes_tags(input, &["CONTAINER_INSTANCE_HEALTH"])?;
        let known = known.iter().filter_map(|arn| self.instances.get(arn));
        let described: Vec<_> = known.map(|instance| self.describe_instance(instance, with_tags)).collect();
        Ok(object([("containerInstances", described.into()), ("failures", failures.into())]))
    }

    /// API_UpdateContainerInstancesState: up to 10, to ACTIVE or DRAINING. Tasks without a service keep running.
    pub(super) fn update_container_instances(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let status = match text(input, "status") {
            Some("ACTIVE") => InstanceStatus::Active,
            Some("DRAINING") => InstanceStatus::Draining,
            _ => return Err(invalid("Container instance status should be one of [ACTIVE, DRAINING].")),
        };
        let (known, failures) = self.named_instances(&cluster, &names(input, "containerInstances", 10)?);
        for arn in &known {
            if self.instances.get(arn).is_some_and(|instance| instance.status != status) {
                self.change_instance(arn, now, |instance| instance.status = status);
                self.keep_daemons(arn, now);
            }
        }
        self.place_waiting(now);
        let known = known.iter().filter_map(|arn| self.instances.get(arn));
        let described: Vec<_> = known.map(|instance| self.describe_instance(instance, false)).collect();
        Ok(object([("containerInstances", described.into()), ("failures", failures.into())]))
    }

    /// API_DeregisterContainerInstance: with tasks on it only by force, which stops them ("Amazon ECS task state change
    /// events").
    pub(super) fn deregister_container_instance(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let arn = self.instance_arn(&cluster, text(input, "containerInstance").unwrap_or_default());
        let Some(instance) = self.instances.get(&arn).filter(|instance| instance.cluster == cluster) else {
            return Err(invalid("The referenced container instance was not found."));
        };
        if !instance.tasks.is_empty() && input["force"] != true {
            return Err(invalid("Found running tasks on the instance."));
        }
        let gone = self.deregister(&arn, "Container instance deregistration forced by user", now);
        Ok(json!({"containerInstance": gone.map(|instance| self.describe_instance(&instance, false))}))
    }

    /// Deregisters a container instance with every task on it; INACTIVE ones may disappear at any time
    /// (API_DeregisterContainerInstance), so they do at once.
    pub(super) fn deregister(&mut self, arn: &str, reason: &str, now: Timestamp) -> Option<Instance> {
        let tasks: Vec<String> = self.instances.get(arn)?.tasks.keys().cloned().collect();
        // It no longer accepts waiting tasks while those on it end one by one.
        if let Some(instance) = self.instances.get_mut(arn) {
            instance.status = InstanceStatus::Inactive;
            instance.connected = false;
        }
        for task in tasks {
            self.kill(&task, "TerminationNotice", reason, now);
        }
        self.change_instance(arn, now, |_| ());
        self.instances.remove(arn)
    }

    /// API_PutAttributes, API_DeleteAttributes: up to 10 a call, of a container instance by ARN, or by id and type.
    pub(super) fn attributes(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let attributes = list(&input["attributes"]);
        if attributes.is_empty() || attributes.len() > 10 {
            return Err(invalid("attributes: 1 to 10"));
        }
        let mut changes = Vec::new();
        for attribute in attributes {
            let (name, value) = (text(attribute, "name").unwrap_or_default(), text(attribute, "value"));
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_/\\.".contains(c);
            if !(1..=128).contains(&name.chars().count()) || !name.chars().all(allowed) {
                return Err(invalid(format!("Invalid attribute name: {name}")));
            }
            if value.is_some_and(|value| value.chars().count() > 128) {
                return Err(invalid(format!("Invalid value of the attribute {name}")));
            }
            let target = text(attribute, "targetId").unwrap_or_default();
            if !target.starts_with("arn:") && attribute["targetType"] != "container-instance" {
                return Err(invalid("targetType is required with the short form of targetId."));
            }
            let arn = self.instance_arn(&cluster, target);
            if !self.instances.contains_key(&arn) {
                return Err(ApiError::new("TargetNotFoundException", format!("{} was not found.", short(target))));
            }
            changes.push((arn, name.to_owned(), value.unwrap_or_default().to_owned()));
        }
        for (arn, name, value) in changes {
            let Some(instance) = self.instances.get_mut(&arn) else { continue };
            if action == "PutAttributes" {
                instance.attributes.insert(name, value);
            } else {
                instance.attributes.remove(&name);
            }
        }
        Ok(json!({"attributes": attributes}))
    }
}
