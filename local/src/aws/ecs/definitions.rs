//! Task definitions.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::input::{client, includes_tags, invalid, list, number, short, text, without, without_nulls};
use super::tags::{Tags, describe, read_tags};
use super::{ApiError, Ecs};

/// The network mode of a task definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Host ports, including dynamic ones.
    Bridge,
    /// The instance's own ports.
    Host,
    /// A network interface of its own.
    Awsvpc,
    /// No network.
    None,
}

/// A revision of a task definition.
#[derive(Debug, Clone)]
pub struct TaskDefinition {
    /// Its ARN.
    pub arn: String,
    /// Its family.
    pub family: String,
    /// Its network mode.
    pub network: Network,
    /// CPU units of the task, if they are set.
    pub cpu: Option<u32>,
    /// Memory of the task in MiB, if it is set.
    pub memory: Option<u32>,
    /// As DescribeTaskDefinition shows it.
    pub shown: Value,
    pub(super) active: bool,
    pub(super) fits_fargate: bool,
    pub(super) has_role: bool,
    /// `x86_64` or `arm64`.
    pub(super) architecture: &'static str,
    pub(super) containers: Vec<ContainerDefinition>,
    /// Required attributes of an instance, with their values where these count.
    pub(super) attributes: Vec<(String, Option<String>)>,
    /// Constraints, as in RunTask.
    pub(super) constraints: Vec<Value>,
    pub(super) tags: Tags,
}

#[derive(Debug, Clone)]
pub(super) struct ContainerDefinition {
    pub name: String,
    pub image: String,
    pub essential: bool,
    pub cpu: u32,
    /// The hard limit.
    pub memory: Option<u32>,
    /// The soft limit, which is reserved if it is set (API_ContainerDefinition).
    pub reservation: Option<u32>,
    pub has_health_check: bool,
    pub gpus: u32,
    pub ports: Vec<PortMapping>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PortMapping {
    pub container: u16,
    /// 0 for a dynamic one.
    pub host: u16,
    pub udp: bool,
    /// The number of ports of a range.
    pub range: Option<u16>,
}

impl PortMapping {
    fn read(input: &Value, container: &str, network: Network) -> Result<Self, ApiError> {
        let wrong = || client(format!("Invalid container port in the port mappings of container {container}."));
        let port = |name: &str| number(&input[name]).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        let udp = input["protocol"] == "udp";
        if let Some(range) = text(input, "containerPortRange") {
            // "You must use either the bridge network mode or the awsvpc network mode", and no host port with it
            // (API_PortMapping).
            let fits = matches!(network, Network::Bridge | Network::Awsvpc);
            let (first, last) = range.split_once('-').ok_or_else(wrong)?;
            let [first, last] = [first, last].map(|port| port.parse().ok().filter(|port: &u16| *port > 0));
            let (first, last) = first.zip(last).filter(|(first, last)| first <= last && fits).ok_or_else(wrong)?;
            if port("hostPort").or(port("containerPort")).is_some() || last - first >= 100 {
                return Err(wrong());
            }
            let host = if network == Network::Bridge { 0 } else { first };
            return Ok(Self { container: first, host, udp, range: Some(last - first + 1) });
        }
        let container = port("containerPort").ok_or_else(wrong)?;
        let host = match (network, port("hostPort")) {
            (Network::Bridge, host) => host.unwrap_or(0),
            // "the hostPort can either be left blank or set to the same value as the containerPort" (API_PortMapping)
            (_, Some(host)) if host != container => {
                return Err(client(
                    "When networkMode=awsvpc or host, the host ports and container ports in port mappings must match.",
                ));
            }
            _ => container,
        };
        Ok(Self { container, host, udp, range: None })
    }

    fn shown(&self) -> Value {
        let protocol = if self.udp { "udp" } else { "tcp" };
        match self.range {
            Some(length) => {
                let range = format!("{}-{}", self.container, self.container + length - 1);
                json!({"containerPortRange": range, "protocol": protocol})
            }
            None => json!({"containerPort": self.container, "hostPort": self.host, "protocol": protocol}),
        }
    }
}

impl TaskDefinition {
    /// Reads the input of RegisterTaskDefinition.
    fn read(input: &Value, arn: String, family: &str, now: Timestamp) -> Result<Self, ApiError> {
        let network = match text(input, "networkMode") {
            // "The default Docker network mode is bridge" (API_TaskDefinition).
            None | Some("bridge") => Network::Bridge,
            Some("host") => Network::Host,
            Some("awsvpc") => Network::Awsvpc,
            Some("none") => Network::None,
            Some(other) => return Err(client(format!("Invalid network mode: {other}"))),
        };
        let (cpu, memory) = (amount(&input["cpu"], "vcpu")?, amount(&input["memory"], "gb")?);
        let wants_fargate = list(&input["requiresCompatibilities"]).iter().any(|kind| kind == "FARGATE");
        if wants_fargate && network != Network::Awsvpc {
            return Err(client("Fargate only supports network mode ‘awsvpc’."));
        }
        let fits_fargate =
            network == Network::Awsvpc && cpu.zip(memory).is_some_and(|(cpu, memory)| is_fargate_size(cpu, memory));
        if wants_fargate && !fits_fargate {
            return Err(no_fargate_size(cpu, memory));
        }
        if let Some(setting) = not_on_fargate(input).filter(|_| wants_fargate) {
            return Err(client(format!("Fargate compatible task definitions do not support {setting}")));
        }
        let (mut containers, mut shown_containers) = (Vec::new(), Vec::new());
        for container in list(&input["containerDefinitions"]) {
            let definition = ContainerDefinition::read(container, network)?;
            if memory.is_none() && definition.memory.or(definition.reservation).is_none() {
                return Err(client(format!(
                    "Invalid setting for container '{}'. At least one of 'memory' or 'memoryReservation' must be specified.",
                    definition.name
                )));
            }
            shown_containers.push(definition.shown(container));
            containers.push(definition);
        }
        if containers.is_empty() {
            return Err(client("Container list cannot be empty."));
        }
        if !containers.iter().any(|container| container.essential) {
            return Err(client("At least one container must be essential."));
        }
        // ECS derives them from the parameters; these are the ones that most often prevent a placement.
        let architecture = architecture(&input["runtimePlatform"])?;
        let mut attributes = Vec::new();
        if network == Network::Awsvpc {
            attributes.push(("ecs.capability.task-eni".to_owned(), None));
        }
        if let Some(architecture) = architecture {
            attributes.push(("ecs.cpu-architecture".to_owned(), Some(architecture.to_owned())));
        }
        let mut shown = Value::Object(without(input, "tags"));
        shown["taskDefinitionArn"] = json!(arn);
        shown["revision"] = json!(arn.rsplit(':').next().and_then(|revision| revision.parse::<u32>().ok()));
        shown["status"] = json!("ACTIVE");
        shown["containerDefinitions"] = json!(shown_containers);
        shown["requiresAttributes"] =
            attributes.iter().map(|(name, value)| without_nulls(json!({"name": name, "value": value}))).collect();
        shown["compatibilities"] = match network {
            Network::Awsvpc if fits_fargate => json!(["EC2", "FARGATE"]),
            Network::Awsvpc => json!(["EC2"]),
            _ => json!(["EXTERNAL", "EC2"]),
        };
        shown["registeredAt"] = json!(super::seconds(now));
        for list in ["volumes", "placementConstraints"] {
            if shown[list].is_null() {
                shown[list] = json!([]);
            }
        }
        // Texts like `1 vCPU` become numbers when the definition is registered (API_RegisterTaskDefinition).
        for (name, value) in [("cpu", cpu), ("memory", memory)] {
            if let Some(value) = value {
                shown[name] = json!(value.to_string());
            }
        }
        Ok(Self {
            arn,
            family: family.to_owned(),
            network,
            cpu,
            memory,
            shown,
            active: true,
            fits_fargate,
            has_role: text(input, "taskRoleArn").is_some(),
            architecture: architecture.unwrap_or("x86_64"),
            containers,
            attributes,
            constraints: list(&input["placementConstraints"]).to_vec(),
            tags: read_tags(&input["tags"])?,
        })
    }
}

impl TaskDefinition {
    /// GPUs of all its containers.
    pub(super) fn gpus(&self) -> u32 {
        self.containers.iter().map(|container| container.gpus).sum()
    }
}

impl ContainerDefinition {
    fn read(input: &Value, network: Network) -> Result<Self, ApiError> {
        let name = text(input, "name").ok_or_else(|| client("Container.name should not be null or empty."))?;
        let image = text(input, "image").ok_or_else(|| client("Container.image should not be null or empty."))?;
        let ports = list(&input["portMappings"]).iter().map(|mapping| PortMapping::read(mapping, name, network));
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            name: name.to_owned(),
            image: image.to_owned(),
            essential: input["essential"].as_bool().unwrap_or(true),
            cpu: number(&input["cpu"]).unwrap_or(0),
            memory: number(&input["memory"]),
            reservation: number(&input["memoryReservation"]),
            has_health_check: !input["healthCheck"].is_null(),
            gpus: list(&input["resourceRequirements"])
                .iter()
                .filter(|requirement| requirement["type"] == "GPU")
                .filter_map(|requirement| number(&requirement["value"]))
                .sum(),
            ports,
        })
    }

    /// As it was registered, with the defaults filled in.
    fn shown(&self, input: &Value) -> Value {
        let mut shown: Map<String, Value> = input.as_object().cloned().unwrap_or_default();
        shown.insert("cpu".into(), json!(self.cpu));
        shown.insert("essential".into(), json!(self.essential));
        shown.insert("portMappings".into(), self.ports.iter().map(PortMapping::shown).collect());
        for list in ["environment", "mountPoints", "volumesFrom"] {
            shown.entry(list).or_insert_with(|| json!([]));
        }
        Value::Object(shown)
    }
}

/// API_RuntimePlatform; an instance with another platform cannot run the task.
fn architecture(platform: &Value) -> Result<Option<&'static str>, ApiError> {
    match text(platform, "cpuArchitecture") {
        None => Ok(None),
        Some("X86_64") => Ok(Some("x86_64")),
        Some("ARM64") => Ok(Some("arm64")),
        Some(other) => Err(client(format!("Invalid CPU architecture: {other}"))),
    }
}

/// CPU units or MiB, as a number or with its unit: `1 vCPU`, `2 GB` (API_RegisterTaskDefinition).
///
/// # Errors
/// When it is neither.
pub(super) fn amount(value: &Value, unit: &str) -> Result<Option<u32>, ApiError> {
    if value.is_null() || value == "" {
        return Ok(None);
    }
    let in_words = || {
        let words = value.as_str()?.to_ascii_lowercase();
        let of_unit: f64 = words.strip_suffix(unit)?.trim().parse().ok()?;
        let units = of_unit * 1024.0;
        (units > 0.0 && units <= 1_000_000.0).then_some(units as u32)
    };
    number(value).or_else(in_words).map(Some).ok_or_else(|| client(format!("Invalid setting: {value}")))
}

/// A setting that only container instances support (ECS developer guide, "Amazon ECS task definition differences for
/// Fargate"), of those that the converter writes.
fn not_on_fargate(input: &Value) -> Option<&'static str> {
    let of_container = |container: &Value| {
        let linux = &container["linuxParameters"];
        let refused = |capability: &Value| capability != "SYS_PTRACE";
        let settings = [
            (container["privileged"] == true, "privileged"),
            (!list(&container["dnsSearchDomains"]).is_empty(), "dnsSearchDomains"),
            (!list(&container["extraHosts"]).is_empty(), "extraHosts"),
            (linux["sharedMemorySize"].is_number(), "sharedMemorySize"),
            (list(&linux["capabilities"]["add"]).iter().any(refused), "capabilities other than SYS_PTRACE"),
        ];
        settings.into_iter().find(|(is_set, _)| *is_set).map(|(_, name)| name)
    };
    let has_host_path = list(&input["volumes"]).iter().any(|volume| volume["host"]["sourcePath"].is_string());
    let in_containers = list(&input["containerDefinitions"]).iter().find_map(of_container);
    in_containers.or(has_host_path.then_some("sourcePath"))
}

/// "Task CPU and memory" for Fargate (ECS developer guide, "Amazon ECS task definition parameters for Fargate").
pub(super) fn is_fargate_size(cpu: u32, memory: u32) -> bool {
    let steps = |least: u32, most: u32, step: u32| (least..=most).contains(&memory) && memory.is_multiple_of(step);
    match cpu {
        256 => [512, 1024, 2048].contains(&memory),
        512 => steps(1024, 4096, 1024),
        1024 => steps(2048, 8192, 1024),
        2048 => steps(4096, 16384, 1024),
        4096 => steps(8192, 30720, 1024),
        8192 => steps(16384, 61440, 4096),
        16384 => steps(32768, 122_880, 8192),
        _ => false,
    }
}

pub(super) fn no_fargate_size(cpu: Option<u32>, memory: Option<u32>) -> ApiError {
    let shown = |amount: Option<u32>| amount.map_or("no".to_owned(), |amount| amount.to_string());
    client(format!("No Fargate configuration exists for given values: {} CPU, {} memory.", shown(cpu), shown(memory)))
}

impl Ecs {
    /// Registers a task definition like RegisterTaskDefinition, as part of the setup.
    ///
    /// # Errors
    /// When ECS would refuse it.
    pub fn register_definition(&mut self, input: &Value) -> Result<Value, ApiError> {
        self.register_task_definition(input, self.now)
    }

    /// API_RegisterTaskDefinition: a family of up to 255 letters, numbers, underscores and hyphens, and containers.
    pub(super) fn register_task_definition(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let family = text(input, "family").ok_or_else(|| client("Family should not be null or empty."))?;
        if family.len() > 255 || !family.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            return Err(client(
                "Family contains invalid characters when it should only contain letters, numbers, _ and -.",
            ));
        }
        let revision = self.definitions.get(family).map_or(0, Vec::len) + 1;
        let arn = self.arn(&format!("task-definition/{family}:{revision}"));
        let definition = TaskDefinition::read(input, arn, family, now)?;
        let answer = json!({"taskDefinition": definition.shown, "tags": describe(&definition.tags)});
        self.definitions.entry(family.to_owned()).or_default().push(Arc::new(definition));
        Ok(answer)
    }

    /// API_DeregisterTaskDefinition: the revision becomes INACTIVE.
    pub(super) fn deregister_task_definition(&mut self, input: &Value) -> Result<Value, ApiError> {
        let name = text(input, "taskDefinition").unwrap_or_default();
        if !short(name).contains(':') {
            return Err(invalid("The revision is missing."));
        }
        let arn = self.definition(name).map(|definition| definition.arn.clone());
        let found = arn.and_then(|arn| {
            let (family, revision) = short(&arn).split_once(':')?;
            self.definitions.get_mut(family)?.get_mut(revision.parse::<usize>().ok()?.checked_sub(1)?)
        });
        let definition = found.ok_or_else(|| client("The specified task definition does not exist."))?;
        let definition = Arc::make_mut(definition);
        definition.active = false;
        definition.shown["status"] = json!("INACTIVE");
        Ok(json!({"taskDefinition": definition.shown}))
    }

    /// API_DescribeTaskDefinition; INACTIVE revisions can still be described.
    pub(super) fn describe_task_definition(&self, input: &Value) -> Result<Value, ApiError> {
        let name = text(input, "taskDefinition").unwrap_or_default();
        let definition = self.definition(name).ok_or_else(|| client("Unable to describe task definition."))?;
        let mut answer = json!({"taskDefinition": definition.shown});
        if includes_tags(input, &[])? {
            answer["tags"] = describe(&definition.tags);
        }
        Ok(answer)
    }

    /// The ARN of the revision that a name refers to.
    pub(in crate::aws) fn definition_arn(&self, name: &str) -> Option<&str> {
        self.definition(name).map(|definition| definition.arn.as_str())
    }

    /// A revision as DescribeTaskDefinition shows it.
    pub(in crate::aws) fn definition_shown(&self, name: &str) -> Option<&Value> {
        self.definition(name).map(|definition| &definition.shown)
    }

    /// A revision by its full ARN, by `family:revision`, or the latest ACTIVE one of a family (API_RunTask).
    pub(super) fn definition(&self, name: &str) -> Option<&Arc<TaskDefinition>> {
        let (family, revision) = match short(name).split_once(':') {
            Some((family, revision)) => (family, Some(revision.parse::<usize>().ok()?)),
            None => (short(name), None),
        };
        let revisions = self.definitions.get(family)?;
        let found = match revision {
            Some(revision) => revisions.get(revision.checked_sub(1)?),
            None => revisions.iter().rev().find(|definition| definition.active),
        }?;
        let prefix = self.arn("task-definition/");
        (!name.starts_with("arn:") || name.starts_with(&prefix)).then_some(found)
    }
}
