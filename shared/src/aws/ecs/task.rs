//! Tasks as DescribeTasks and events show them, and the calls about them.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ecs::types::{self as sdk, TaskField};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Deserialize;

use super::{Cluster, REPORTED_TAG, timestamp};
use crate::aws::open_enum::open_enum;
use crate::config::Size;
use crate::fault::Fault;
use crate::message::Record;

open_enum!(
    /// The last known status of a task (ECS developer guide, "Task lifecycle states").
    TaskStatus {
        Provisioning = "PROVISIONING",
        Pending = "PENDING",
        Activating = "ACTIVATING",
        Running = "RUNNING",
        Deactivating = "DEACTIVATING",
        Stopping = "STOPPING",
        Deprovisioning = "DEPROVISIONING",
        Stopped = "STOPPED",
    }
);

open_enum!(
    /// The status that ECS is to bring a task to.
    DesiredStatus { Running = "RUNNING", Stopped = "STOPPED" }
);

open_enum!(HealthStatus { Healthy = "HEALTHY", Unhealthy = "UNHEALTHY", Unknown = "UNKNOWN" });

impl TaskStatus {
    /// Whether a task has not started to run yet.
    pub fn is_before_running(&self) -> bool {
        match self {
            Self::Provisioning | Self::Pending | Self::Activating => true,
            Self::Other(text) => text.is_empty(),
            _ => false,
        }
    }
}

/// A task, as DescribeTasks and the event *ECS Task State Change* show it, with the same fields.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    #[serde(rename = "taskArn")]
    pub arn: String,
    /// Its cluster's ARN.
    pub cluster_arn: String,
    /// Its task definition's ARN.
    pub task_definition_arn: Option<String>,
    /// Its container instance's ARN, on EC2.
    pub container_instance_arn: Option<String>,
    pub started_by: Option<String>,
    /// `service:NAME` for a task of a service, `family:NAME` for one that RunTask started.
    pub group: Option<String>,
    pub last_status: TaskStatus,
    pub desired_status: DesiredStatus,
    /// Grows with each change.
    pub version: i64,
    /// The stop code, for programs.
    pub stop_code: Option<String>,
    /// The stopped reason, human-readable.
    pub stopped_reason: Option<String>,
    /// When ECS created the task.
    pub created_at: Option<Timestamp>,
    /// When it began to pull the images.
    pub pull_started_at: Option<Timestamp>,
    /// When the images were pulled.
    pub pull_stopped_at: Option<Timestamp>,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// When it stopped.
    pub stopped_at: Option<Timestamp>,
    pub containers: Vec<Container>,
    /// Its network interfaces, with awsvpc.
    pub attachments: Vec<Attachment>,
    /// What it takes of an instance; zero where it was read from an event.
    #[serde(skip)]
    pub size: Size,
    /// Its overrides.
    pub overrides: Overrides,
    /// Its tags; events have none.
    #[serde(skip)]
    pub tags: BTreeMap<String, String>,
}

/// A container of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its name in the task definition.
    pub name: String,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// Why it ended, or never started.
    pub reason: Option<String>,
    /// None in events, which carry no health.
    pub health_status: Option<HealthStatus>,
    /// Ports of the container instance, in bridge and host mode.
    pub network_bindings: Vec<NetworkBinding>,
    /// Addresses of its own, with awsvpc.
    pub network_interfaces: Vec<NetworkInterface>,
}

/// A host port that leads to the container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkBinding {
    /// In the container.
    pub container_port: Option<i32>,
    /// On the host.
    pub host_port: Option<i32>,
    /// `0.0.0.0` or `::`; their host ports may differ.
    #[serde(rename = "bindIP")]
    pub bind_ip: Option<String>,
    /// `8000-8010`, where the mapping is a range.
    pub container_port_range: Option<String>,
    /// The range on the host, as long as that in the container.
    pub host_port_range: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: Option<String>,
}

/// A network interface of an awsvpc task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkInterface {
    /// The address inside the VPC.
    pub private_ipv4_address: Option<String>,
    pub ipv6_address: Option<String>,
}

/// An attachment of a task: its network interface.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// `eni` in events, `ElasticNetworkInterface` in answers.
    pub r#type: String,
    /// `networkInterfaceId`, `privateIPv4Address` and more.
    pub details: Vec<Pair>,
}

/// A name and its value.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pair {
    pub name: Option<String>,
    pub value: Option<String>,
}

/// The overrides of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Overrides {
    pub container_overrides: Vec<ContainerOverride>,
}

/// The overrides of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ContainerOverride {
    pub name: String,
    /// Fields that are not needed here.
    pub environment: Vec<Pair>,
}

impl Task {
    /// The family of its task definition, unless it was given another group.
    pub fn family(&self) -> Option<&str> {
        self.group.as_deref()?.strip_prefix("family:")
    }

    /// The service that started it.
    pub fn service(&self) -> Option<&str> {
        self.group.as_deref()?.strip_prefix("service:")
    }

    /// The environment that the task was started with.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.overrides
            .container_overrides
            .iter()
            .flat_map(|container| &container.environment)
            .filter_map(|pair| Some((pair.name.as_deref()?, pair.value.as_deref()?)))
    }

    /// Whether all its containers run, and it is to keep running.
    pub fn is_running(&self) -> bool {
        self.last_status == TaskStatus::Running && !self.is_ending()
    }

    /// The record of its request.
    pub fn record(&self) -> Option<Record> {
        let (_, json) = self.environment().find(|(name, _)| *name == Record::VARIABLE)?;
        serde_json::from_str(json).ok()
    }

    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// A detail of its network interface.
    pub fn interface_detail(&self, name: &str) -> Option<&str> {
        self.attachments
            .iter()
            .filter(|attachment| matches!(attachment.r#type.as_str(), "eni" | "ElasticNetworkInterface"))
            .flat_map(|attachment| &attachment.details)
            .find(|detail| detail.name.as_deref() == Some(name))?
            .value
            .as_deref()
    }

    /// Whether its outcome was reported.
    pub fn reported(&self) -> bool {
        self.tags.contains_key(REPORTED_TAG)
    }

    /// Whether it was reported ready, or that report was rejected.
    pub fn reported_ready(&self) -> bool {
        self.tags.get(REPORTED_TAG).is_some_and(|value| value.starts_with("ready") || value.starts_with("rejected"))
    }

    /// When its outcome was reported.
    pub fn reported_at(&self) -> Option<Timestamp> {
        self.tags.get(REPORTED_TAG)?.split_once(' ')?.1.parse().ok()
    }

    /// Whether it has stopped.
    pub fn is_stopped(&self) -> bool {
        self.last_status == TaskStatus::Stopped
    }

    /// Whether it has stopped or is stopping.
    pub fn is_ending(&self) -> bool {
        self.is_stopped() || self.desired_status == DesiredStatus::Stopped
    }
}

fn number(text: Option<&str>) -> u32 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

impl From<sdk::Task> for Task {
    fn from(task: sdk::Task) -> Self {
        Self {
            arn: task.task_arn.unwrap_or_default(),
            cluster_arn: task.cluster_arn.unwrap_or_default(),
            task_definition_arn: task.task_definition_arn,
            container_instance_arn: task.container_instance_arn,
            started_by: task.started_by,
            group: task.group,
            last_status: task.last_status.unwrap_or_default().into(),
            desired_status: task.desired_status.unwrap_or_default().into(),
            version: task.version,
            stop_code: task.stop_code.map(|code| code.as_str().to_owned()),
            stopped_reason: task.stopped_reason,
            created_at: timestamp(task.created_at),
            pull_started_at: timestamp(task.pull_started_at),
            pull_stopped_at: timestamp(task.pull_stopped_at),
            started_at: timestamp(task.started_at),
            stopped_at: timestamp(task.stopped_at),
            containers: task.containers.unwrap_or_default().into_iter().map(Into::into).collect(),
            attachments: task
                .attachments
                .unwrap_or_default()
                .into_iter()
                .map(|attachment| Attachment {
                    r#type: attachment.r#type.unwrap_or_default(),
                    details: attachment.details.unwrap_or_default().into_iter().map(Into::into).collect(),
                })
                .collect(),
            size: Size { cpu: number(task.cpu.as_deref()), memory: number(task.memory.as_deref()) },
            overrides: Overrides {
                container_overrides: task
                    .overrides
                    .and_then(|overrides| overrides.container_overrides)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|container| ContainerOverride {
                        name: container.name.unwrap_or_default(),
                        environment: container.environment.unwrap_or_default().into_iter().map(Into::into).collect(),
                    })
                    .collect(),
            },
            tags: super::tags(task.tags),
        }
    }
}

impl From<sdk::Container> for Container {
    fn from(container: sdk::Container) -> Self {
        Self {
            name: container.name.unwrap_or_default(),
            exit_code: container.exit_code,
            reason: container.reason,
            health_status: container.health_status.map(|status| status.as_str().into()),
            network_bindings: container
                .network_bindings
                .unwrap_or_default()
                .into_iter()
                .map(|binding| NetworkBinding {
                    container_port: binding.container_port,
                    host_port: binding.host_port,
                    bind_ip: binding.bind_ip,
                    container_port_range: binding.container_port_range,
                    host_port_range: binding.host_port_range,
                    protocol: binding.protocol.map(|protocol| protocol.as_str().to_owned()),
                })
                .collect(),
            network_interfaces: container
                .network_interfaces
                .unwrap_or_default()
                .into_iter()
                .map(|interface| NetworkInterface {
                    private_ipv4_address: interface.private_ipv4_address,
                    ipv6_address: interface.ipv6_address,
                })
                .collect(),
        }
    }
}

impl From<sdk::KeyValuePair> for Pair {
    fn from(pair: sdk::KeyValuePair) -> Self {
        Self { name: pair.name, value: pair.value }
    }
}

/// Which tasks to list.
#[derive(Debug, Clone, Copy)]
pub enum TaskFilter<'a> {
    /// All of the cluster.
    All,
    /// Those with this `startedBy`, which allows no other filter but the desired status.
    StartedBy(&'a str),
    /// Those on one container instance, by its ARN.
    Instance(&'a str),
}

impl Cluster {
    /// DescribeTasks with tags. Tasks that ECS does not know are missing from the answer.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn describe_tasks(&self, arns: &[String]) -> Result<Vec<Task>, Fault> {
        // 100 tasks at most (API_DescribeTasks); several pages at once.
        let pages = arns.chunks(100).map(|arns| async move {
            let call = self.client.describe_tasks().cluster(&self.name).include(TaskField::Tags);
            let answer = call.set_tasks(Some(arns.to_vec())).send().await;
            let answer = answer.map_err(|error| Fault::from_sdk("ecs:DescribeTasks", error))?;
            Ok::<_, Fault>(answer.tasks.unwrap_or_default().into_iter().map(Task::from).collect::<Vec<_>>())
        });
        let pages: Vec<_> = stream::iter(pages).buffered(5).try_collect().await?;
        Ok(pages.into_iter().flatten().collect())
    }

    /// One task; `None` if ECS does not know it (any more).
    ///
    /// # Errors
    /// When the call failed.
    pub async fn describe_task(&self, arn: &str) -> Result<Option<Task>, Fault> {
        Ok(self.describe_tasks(&[arn.to_owned()]).await?.into_iter().next())
    }

    /// ARNs of tasks by their desired status; all pages.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn list_tasks(&self, filter: TaskFilter<'_>, desired: DesiredStatus) -> Result<Vec<String>, Fault> {
        self.list_tasks_at_most(filter, desired, usize::MAX).await
    }

    /// ARNs of tasks by their desired status; stops reading pages once there are this many.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn list_tasks_at_most(
        &self,
        filter: TaskFilter<'_>,
        desired: DesiredStatus,
        most: usize,
    ) -> Result<Vec<String>, Fault> {
        let mut arns = Vec::new();
        let mut next = None;
        loop {
            let call = self.client.list_tasks().cluster(&self.name).set_next_token(next);
            let call = call.desired_status(desired.as_str().into());
            let call = match filter {
                TaskFilter::All => call,
                TaskFilter::StartedBy(name) => call.started_by(name),
                TaskFilter::Instance(arn) => call.container_instance(arn),
            };
            let answer = call.send().await.map_err(|error| Fault::from_sdk("ecs:ListTasks", error))?;
            arns.extend(answer.task_arns.unwrap_or_default());
            next = answer.next_token.filter(|token| !token.is_empty());
            if next.is_none() || arns.len() >= most {
                return Ok(arns);
            }
        }
    }

    /// ARNs of the tasks of one name: those with the desired status RUNNING, or those that stopped within the last
    /// hour.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn tasks_named(&self, name: &str) -> Result<Vec<String>, Fault> {
        let running = self.list_tasks(TaskFilter::StartedBy(name), DesiredStatus::Running).await?;
        match running.is_empty() {
            true => self.list_tasks(TaskFilter::StartedBy(name), DesiredStatus::Stopped).await,
            false => Ok(running),
        }
    }

    /// The tasks on a container instance that have not stopped. The instance's own counts leave out those that are
    /// being provisioned or stopped (`pendingTasksCount` in API_ContainerInstance counts the status PENDING).
    ///
    /// # Errors
    /// When a call failed.
    pub async fn tasks_on(&self, instance: &str) -> Result<Vec<Task>, Fault> {
        let mut arns = self.list_tasks(TaskFilter::Instance(instance), DesiredStatus::Running).await?;
        arns.extend(self.list_tasks(TaskFilter::Instance(instance), DesiredStatus::Stopped).await?);
        let tasks = self.describe_tasks(&arns).await?;
        Ok(tasks.into_iter().filter(|task| !task.is_stopped()).collect())
    }

    /// The names of the cluster's services of the scheduling strategy DAEMON.
    ///
    /// # Errors
    /// When a call failed.
    pub async fn daemon_services(&self) -> Result<BTreeSet<String>, Fault> {
        let call = self.client.list_services().cluster(&self.name).scheduling_strategy(sdk::SchedulingStrategy::Daemon);
        let mut names = BTreeSet::new();
        let mut next = None;
        loop {
            let call = call.clone().max_results(100).set_next_token(next);
            let answer = call.send().await.map_err(|error| Fault::from_sdk("ecs:ListServices", error))?;
            let arns = answer.service_arns.unwrap_or_default();
            names.extend(arns.iter().filter_map(|arn| Some(arn.rsplit_once('/')?.1.to_owned())));
            next = answer.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(names);
            }
        }
    }

    /// Stops a task. The reason is cut to the 255 characters that ECS accepts (API_StopTask). If the task is gone, the
    /// fault is of kind `Missing`.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn stop_task(&self, arn: &str, reason: &str) -> Result<Task, Fault> {
        let reason: String = reason.chars().take(255).collect();
        let call = self.client.stop_task().cluster(&self.name).task(arn).reason(reason);
        let answer = call.send().await.map_err(|error| Fault::from_sdk("ecs:StopTask", error))?;
        Ok(answer.task.map(Task::from).unwrap_or_default())
    }
}
