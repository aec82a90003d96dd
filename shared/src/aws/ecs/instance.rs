//! Container instances.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ecs::types as sdk;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Cluster, timestamp};
use crate::aws::open_enum::open_enum;
use crate::capacity::Exclusive;
use crate::config::Size;
use crate::fault::Fault;

open_enum!(
    /// The status of a container instance (API_ContainerInstance).
    InstanceStatus {
        Active = "ACTIVE",
        Draining = "DRAINING",
        Registering = "REGISTERING",
        Deregistering = "DEREGISTERING",
        RegistrationFailed = "REGISTRATION_FAILED",
        Inactive = "INACTIVE",
    }
);

/// A container instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instance {
    /// Its ARN.
    pub arn: String,
    /// Its id in EC2.
    pub ec2_id: Option<String>,
    pub status: InstanceStatus,
    /// Whether its container agent is connected to ECS.
    pub connected: bool,
    /// CPU and memory that no task has reserved.
    pub free: Size,
    /// GPUs that no task has reserved.
    pub free_gpus: u32,
    /// Exclusive resources that are in use: its host ports, and, where its tasks are known, the families that have a
    /// task on it.
    pub taken: BTreeSet<Exclusive>,
    /// Host ports that it registered as in use, before any task: `ECS_RESERVED_PORTS` of its container agent.
    pub reserved: BTreeSet<Exclusive>,
    /// GPUs that it registered.
    pub gpus: u32,
    /// CPU and memory that it registered.
    pub total: Size,
    /// Tasks on it, running or pending.
    pub tasks: u32,
    /// When it registered.
    pub registered_at: Option<Timestamp>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// Whether ECS would place a task on it.
    pub fn takes_tasks(&self) -> bool {
        self.status == InstanceStatus::Active && self.connected
    }

    /// Whether it is registered from outside AWS: it takes tasks of launch type EXTERNAL, and no others
    /// (ECS developer guide, "Amazon ECS clusters for external instances"; their ids begin with `mi-`).
    pub fn is_external(&self) -> bool {
        self.ec2_id.as_deref().is_some_and(|id| id.starts_with("mi-"))
    }
}

/// One resource of a container instance (API_Resource), in answers and in events.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource {
    /// `CPU`, `MEMORY`, `PORTS`, `PORTS_UDP`, `GPU`
    pub name: String,
    /// The amount, if it is a number.
    pub integer_value: i64,
    /// Free GPUs; ports in use.
    pub string_set_value: Vec<String>,
}

/// The resources of a container instance, registered or remaining.
#[derive(Debug, Clone, Copy)]
pub struct Resources<'a>(pub &'a [Resource]);

impl<'a> Resources<'a> {
    fn amount(self, name: &str) -> u32 {
        let found = self.0.iter().find(|resource| resource.name == name);
        found.map_or(0, |resource| u32::try_from(resource.integer_value).unwrap_or_default())
    }

    fn texts(self, name: &'static str) -> impl Iterator<Item = &'a str> {
        let found = self.0.iter().filter(move |resource| resource.name == name);
        found.flat_map(|resource| &resource.string_set_value).map(String::as_str)
    }

    /// CPU and memory.
    pub fn size(self) -> Size {
        Size { cpu: self.amount("CPU"), memory: self.amount("MEMORY") }
    }

    /// The number of GPUs, which are listed by their IDs.
    pub fn gpus(self) -> u32 {
        u32::try_from(self.texts("GPU").count()).unwrap_or(u32::MAX)
    }

    /// The ports in use.
    pub fn ports(self) -> BTreeSet<Exclusive> {
        let of = |name, exclusive: fn(u16) -> Exclusive| {
            self.texts(name).filter_map(move |port| port.parse().ok().map(exclusive))
        };
        of("PORTS", Exclusive::HostPort).chain(of("PORTS_UDP", Exclusive::UdpPort)).collect()
    }
}

impl From<sdk::Resource> for Resource {
    fn from(resource: sdk::Resource) -> Self {
        Self {
            name: resource.name.unwrap_or_default(),
            integer_value: resource.integer_value.into(),
            string_set_value: resource.string_set_value.unwrap_or_default(),
        }
    }
}

impl From<sdk::ContainerInstance> for Instance {
    fn from(instance: sdk::ContainerInstance) -> Self {
        let resources = |resources: Option<Vec<sdk::Resource>>| -> Vec<Resource> {
            resources.unwrap_or_default().into_iter().map(Resource::from).collect()
        };
        let (registered, remaining) =
            (resources(instance.registered_resources), resources(instance.remaining_resources));
        let (registered, remaining) = (Resources(&registered), Resources(&remaining));
        Self {
            free: remaining.size(),
            free_gpus: remaining.gpus(),
            taken: remaining.ports(),
            reserved: registered.ports(),
            gpus: registered.gpus(),
            total: registered.size(),
            tasks: u32::try_from(instance.running_tasks_count.saturating_add(instance.pending_tasks_count))
                .unwrap_or_default(),
            connected: instance.agent_connected,
            status: instance.status.unwrap_or_default().into(),
            registered_at: timestamp(instance.registered_at),
            tags: super::tags(instance.tags),
            ec2_id: instance.ec2_instance_id,
            arn: instance.container_instance_arn.unwrap_or_default(),
        }
    }
}

impl Cluster {
    /// All container instances, all pages.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn instances(&self) -> Result<Vec<Instance>, Fault> {
        let mut arns = Vec::new();
        let mut next = None;
        loop {
            let call = self.client.list_container_instances().cluster(&self.name).set_next_token(next);
            let answer = call.send().await.map_err(|error| Fault::from_sdk("ecs:ListContainerInstances", error))?;
            arns.extend(answer.container_instance_arns.unwrap_or_default());
            next = answer.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        self.describe_instances(&arns).await
    }

    /// DescribeContainerInstances with tags.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn describe_instances(&self, arns: &[String]) -> Result<Vec<Instance>, Fault> {
        let mut instances = Vec::with_capacity(arns.len());
        // 100 container instances at most (API_DescribeContainerInstances).
        for arns in arns.chunks(100) {
            let call = self.client.describe_container_instances().cluster(&self.name);
            let call = call.include(sdk::ContainerInstanceField::Tags).set_container_instances(Some(arns.to_vec()));
            let answer = call.send().await.map_err(|error| Fault::from_sdk("ecs:DescribeContainerInstances", error))?;
            instances.extend(answer.container_instances.unwrap_or_default().into_iter().map(Instance::from));
        }
        Ok(instances)
    }

    /// Drains a container instance, or makes it accept tasks again.
    ///
    /// # Errors
    /// When the call failed, or ECS answered 200 but refused the instance.
    pub async fn set_instance_status(&self, arn: &str, status: InstanceStatus) -> Result<(), Fault> {
        const ACTION: &str = "ecs:UpdateContainerInstancesState";
        let call = self.client.update_container_instances_state().cluster(&self.name).container_instances(arn);
        let answer =
            call.status(status.as_str().into()).send().await.map_err(|error| Fault::from_sdk(ACTION, error))?;
        match answer.failures().first() {
            Some(failure) => {
                let detail = failure.detail().unwrap_or("no detail").to_owned();
                Err(Fault::from_aws(ACTION, failure.reason().map(str::to_owned), detail))
            }
            None => Ok(()),
        }
    }
}
