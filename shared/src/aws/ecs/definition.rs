//! Task definitions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use aws_sdk_ecs::types as sdk;

use super::Cluster;
use crate::capacity::Exclusive;
use crate::config::Size;
use crate::fault::Fault;

/// The parts of a task definition that matter here.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskDefinition {
    /// Its full ARN.
    pub arn: String,
    /// `ACTIVE`, `INACTIVE`.
    pub status: String,
    /// `bridge`, `host`, `awsvpc`, `none`; Linux' default is bridge.
    pub network_mode: String,
    /// Launch types that it is compatible with.
    pub compatibilities: Vec<String>,
    /// The size of a task: its own, or the sum of its containers'.
    pub size: Size,
    /// The host ports that a task occupies alone.
    pub exclusive: BTreeSet<Exclusive>,
    /// Its containers.
    pub containers: Vec<ContainerDefinition>,
}

/// The parts of a container definition that matter here.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerDefinition {
    /// Its name.
    pub name: String,
    /// Whether the task ends with it.
    pub essential: bool,
    /// Whether it has a health check.
    pub health_check: bool,
    /// Mapped container ports, including those of ranges.
    pub ports: Vec<i32>,
    /// The host ports of TCP ports that have static ones.
    pub host_ports: BTreeMap<u16, u16>,
    pub gpus: u32,
}

/// A range of ports, `8000-8010`.
pub(crate) fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

/// The container ports of a mapping: one, or a range.
fn container_ports(mapping: &sdk::PortMapping) -> Vec<i32> {
    match mapping.container_port_range().and_then(port_range) {
        Some(range) => range.map(i32::from).collect(),
        None => mapping.container_port().into_iter().collect(),
    }
}

fn is_udp(mapping: &sdk::PortMapping) -> bool {
    mapping.protocol() == Some(&sdk::TransportProtocol::Udp)
}

fn static_port(mapping: &sdk::PortMapping) -> Option<(u16, u16)> {
    let port = |port: Option<i32>| port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    port(mapping.container_port()).zip(port(mapping.host_port()))
}

/// The most ports of a container instance that can be in use at a time, without those that are assigned automatically
/// (API_PortMapping).
pub(crate) const MOST_PORTS: usize = 100;

/// The host ports that a task occupies alone: those that mappings name, or all ports of containers in the instance's own
/// network.
fn exclusive(definition: &sdk::TaskDefinition) -> BTreeSet<Exclusive> {
    let mode = definition.network_mode();
    let of_mapping = |mapping: &sdk::PortMapping| {
        let ports = match mode {
            Some(sdk::NetworkMode::Awsvpc | sdk::NetworkMode::None) => Vec::new(),
            Some(sdk::NetworkMode::Host) => {
                container_ports(mapping).into_iter().filter_map(|port| u16::try_from(port).ok()).collect()
            }
            _ => static_port(mapping).map(|(_, host)| host).into_iter().collect(),
        };
        ports.into_iter().map(if is_udp(mapping) { Exclusive::UdpPort } else { Exclusive::HostPort })
    };
    let mappings = definition.container_definitions().iter().flat_map(|container| container.port_mappings());
    mappings.flat_map(of_mapping).take(MOST_PORTS).collect()
}

impl TaskDefinition {
    pub fn gpus(&self) -> u32 {
        self.containers.iter().map(|container| container.gpus).fold(0, u32::saturating_add)
    }

    /// The agent's container where the template names none: the only essential one.
    ///
    /// # Errors
    /// When there are several or none.
    pub fn only_essential(&self) -> Result<&str, String> {
        let mut essential = self.containers.iter().filter(|container| container.essential);
        match (essential.next(), essential.next()) {
            (Some(container), None) => Ok(&container.name),
            _ => Err(format!(
                "task definition {} has not exactly one essential container ({}); say which is the agent's with `container`",
                self.arn,
                self.containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

impl Cluster {
    /// DescribeTaskDefinition, by family, `family:revision` or ARN.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn describe_task_definition(&self, name: &str) -> Result<TaskDefinition, Fault> {
        const ACTION: &str = "ecs:DescribeTaskDefinition";
        let call = self.client.describe_task_definition().task_definition(name);
        let answer = call.send().await.map_err(|error| Fault::from_sdk(ACTION, error))?;
        let missing = || Fault::from_aws(ACTION, None, format!("no task definition in the answer for {name}"));
        answer.task_definition.map(Into::into).ok_or_else(missing)
    }
}

impl From<sdk::TaskDefinition> for TaskDefinition {
    fn from(definition: sdk::TaskDefinition) -> Self {
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok()).filter(|&number| number > 0);
        let containers = definition.container_definitions();
        let sum = |of: fn(&sdk::ContainerDefinition) -> i32| {
            u32::try_from(containers.iter().map(of).fold(0, i32::saturating_add)).unwrap_or_default()
        };
        Self {
            size: Size {
                cpu: number(definition.cpu()).unwrap_or_else(|| sum(|container| container.cpu)),
                memory: number(definition.memory()).unwrap_or_else(|| {
                    // An instance reserves the hard limit, or the soft one where there is one (API_ContainerDefinition).
                    sum(|container| container.memory_reservation.or(container.memory).unwrap_or_default())
                }),
            },
            exclusive: exclusive(&definition),
            network_mode: definition.network_mode().map_or("bridge", |mode| mode.as_str()).to_owned(),
            status: definition.status().map_or("ACTIVE", |status| status.as_str()).to_owned(),
            compatibilities: definition.compatibilities().iter().map(|launch| launch.as_str().to_owned()).collect(),
            containers: containers
                .iter()
                .map(|container| ContainerDefinition {
                    name: container.name().unwrap_or_default().to_owned(),
                    essential: container.essential().unwrap_or(true),
                    health_check: container.health_check().is_some(),
                    ports: container.port_mappings().iter().flat_map(container_ports).collect(),
                    host_ports: container
                        .port_mappings()
                        .iter()
                        .filter(|mapping| !is_udp(mapping))
                        .filter_map(static_port)
                        .collect(),
                    gpus: container
                        .resource_requirements()
                        .iter()
                        .filter(|requirement| *requirement.r#type() == sdk::ResourceType::Gpu)
                        .filter_map(|requirement| requirement.value().parse::<u32>().ok())
                        .fold(0, u32::saturating_add),
                })
                .collect(),
            arn: definition.task_definition_arn.unwrap_or_default(),
        }
    }
}
