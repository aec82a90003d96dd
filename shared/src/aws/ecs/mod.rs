//! Amazon ECS: tasks, task definitions, container instances of one cluster.

mod definition;
mod instance;
mod run_task;
mod task;

use std::collections::BTreeMap;

use aws_sdk_ecs::Client;
use aws_sdk_ecs::types as sdk;
use jiff::Timestamp;

pub use definition::{ContainerDefinition, TaskDefinition};
pub(crate) use definition::{MOST_PORTS, port_range};
pub use instance::{Instance, InstanceStatus, Resource, Resources};
pub use run_task::{PlacementFailure, RunTaskOutcome};
pub use task::{
    Attachment, Container, ContainerOverride, DesiredStatus, HealthStatus, NetworkBinding, NetworkInterface, Overrides,
    Pair, Task, TaskFilter, TaskStatus,
};

use super::Lazy;
use crate::fault::Fault;

/// The tag that names a task's controller.
pub const CONTROLLER_TAG: &str = "jenkins-ecs-agents:controller";
/// The tag that records when and how a task's outcome was reported: `ready 2026-11-24T18:00:41Z`.
pub const REPORTED_TAG: &str = "jenkins-ecs-agents:reported";
/// The tag that makes the sweep leave a task or an instance alone.
pub const KEEP_TAG: &str = "jenkins-ecs-agents:keep";
/// The tag that records since when an agent or an instance has been idle.
pub const IDLE_SINCE_TAG: &str = "jenkins-ecs-agents:idle-since";

/// A cluster and its client.
#[derive(Debug, Clone)]
pub struct Cluster {
    client: Lazy<Client>,
    /// Name or ARN, as configured.
    name: String,
}

impl Cluster {
    pub fn new(client: impl Into<Lazy<Client>>, name: impl Into<String>) -> Self {
        Self { client: client.into(), name: name.into() }
    }

    /// Name or ARN, as configured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The status of the cluster; `None` if there is no such cluster.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn status(&self) -> Result<Option<String>, Fault> {
        let call = self.client.describe_clusters().clusters(&self.name);
        let answer = call.send().await.map_err(|error| Fault::from_sdk("ecs:DescribeClusters", error))?;
        Ok(answer.clusters.unwrap_or_default().into_iter().find_map(|cluster| cluster.status))
    }

    /// Sets a tag of a task or a container instance.
    ///
    /// # Errors
    /// When the call failed, as it does on a stopped task.
    pub async fn tag(&self, arn: &str, key: &str, value: &str) -> Result<(), Fault> {
        let tag = sdk::Tag::builder().key(key).value(value).build();
        let call = self.client.tag_resource().resource_arn(arn).tags(tag);
        call.send().await.map(drop).map_err(|error| Fault::from_sdk("ecs:TagResource", error))
    }

    /// Removes a tag of a task or a container instance.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn untag(&self, arn: &str, key: &str) -> Result<(), Fault> {
        let call = self.client.untag_resource().resource_arn(arn).tag_keys(key);
        call.send().await.map(drop).map_err(|error| Fault::from_sdk("ecs:UntagResource", error))
    }
}

fn timestamp(time: Option<aws_smithy_types::DateTime>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).unwrap_or_default()).ok()
}

fn tags(tags: Option<Vec<sdk::Tag>>) -> BTreeMap<String, String> {
    tags.unwrap_or_default().into_iter().filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default()))).collect()
}
