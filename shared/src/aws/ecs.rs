//! Amazon ECS: tasks, task definitions, container instances.

use std::collections::BTreeMap;

use aws_sdk_ecs::Client;
use aws_sdk_ecs::types::{self as sdk, TaskField};
pub use aws_sdk_ecs::types::{ContainerInstanceStatus, DesiredStatus};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Deserialize;

use super::{ApiFault, Class};
use crate::config::{self, LaunchType, Size, Template};
use crate::message::Record;

/// The tag that says whose a task is.
pub const CONTROLLER_TAG: &str = "jenkins-ecs-agents:controller";
/// The tag that says that, when and how a task's outcome was told: `ready 2026-11-24T18:00:41Z`.
pub const REPORTED_TAG: &str = "jenkins-ecs-agents:reported";
/// The tag that keeps the sweep away from a task or an instance.
pub const KEEP_TAG: &str = "jenkins-ecs-agents:keep";
/// The tag that says since when an agent or an instance has had nothing to do.
pub const IDLE_SINCE_TAG: &str = "jenkins-ecs-agents:idle-since";

/// One RunTask, decided; `ecs.rs` only writes it down.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// Name or ARN.
    pub cluster: &'a str,
    /// Everything that does not differ from agent to agent.
    pub template: &'a Template,
    /// The agent's name.
    pub started_by: String,
    /// At most 64 characters.
    pub client_token: String,
    /// The agent's container.
    pub container: String,
    /// For the container, with the record.
    pub environment: BTreeMap<String, String>,
    /// For the task.
    pub tags: BTreeMap<String, String>,
    /// The task's CPU units, where they differ from the definition.
    pub cpu: Option<u32>,
    /// The task's MiB, where they differ from the definition.
    pub memory: Option<u32>,
    /// The container's command, where it differs.
    pub command: Option<Vec<String>>,
    /// The task's role, where it differs.
    pub task_role: Option<String>,
}

/// What RunTask did.
#[derive(Debug, Clone, PartialEq)]
pub enum Ran {
    /// There is such a task, new or from an earlier call with the same token.
    Task(Box<Task>),
    /// Another copy of the request has used this token, and started these; none, if it found no room
    /// (ConflictException).
    Existing(Vec<String>),
    /// ECS answered definitely that it started nothing.
    NoRoom {
        /// In words, for whoever waits.
        reason: String,
        /// The container instances that ECS named for a reason other than CPU and memory.
        unfit: Vec<Unfit>,
    },
    /// ECS will never start this.
    Refused(String),
    /// Nothing is known; the same token has to be used again.
    Unknown(String),
}

/// A container instance that a task cannot go to, whatever CPU and memory it has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Its ARN.
    pub arn: String,
    /// Whether the tasks on it use up something that each task takes, a network interface or a port, so that they tell how
    /// many an instance holds.
    pub is_full: bool,
}

/// Starts a task.
pub async fn run_task(client: &Client, launch: &Launch<'_>) -> Ran {
    let input = match run_task_input(launch) {
        Ok(input) => input,
        Err(error) => return Ran::Refused(error.to_string()),
    };
    match input.send_with(client).await {
        Ok(answer) => match answer.tasks.unwrap_or_default().into_iter().next() {
            Some(task) => Ran::Task(Box::new(task.into())),
            None => judge(answer.failures.unwrap_or_default()),
        },
        Err(error) => {
            if let Some(sdk_conflict) = error.as_service_error()
                && let aws_sdk_ecs::operation::run_task::RunTaskError::ConflictException(conflict) = sdk_conflict
            {
                return Ran::Existing(conflict.resource_ids().to_vec());
            }
            let fault = ApiFault::new("ecs:RunTask", error);
            match fault.class() {
                Class::NoRoom => Ran::NoRoom { reason: fault.message, unfit: Vec::new() },
                Class::Permanent => Ran::Refused(fault.to_string()),
                Class::Retry => Ran::Unknown(fault.to_string()),
            }
        }
    }
}

/// What an answer of failures alone means (ECS developer guide, "Amazon ECS API failure reasons").
fn judge(failures: Vec<sdk::Failure>) -> Ran {
    if failures.is_empty() {
        return Ran::Unknown("ecs:RunTask: answered neither tasks nor failures".into());
    }
    let mut reasons: Vec<&str> = failures.iter().filter_map(|failure| failure.reason()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let text = reasons.join(", ");
    let begins = |words: &[&str]| {
        reasons.iter().any(|reason| words.iter().any(|word| reason.to_ascii_uppercase().starts_with(word)))
    };
    let holds = |words: &str| reasons.iter().any(|reason| reason.to_ascii_lowercase().contains(words));
    // Another instance mends `distinctInstance`, while `memberOf` and ATTRIBUTE are the template's.
    let mends = begins(&["RESOURCE", "AGENT", "DISTINCTINSTANCE"]) || holds("capacity") || holds(super::REACHED_LIMIT);
    if !mends {
        let detail = failures.iter().find_map(|failure| failure.detail()).map(|detail| format!(" ({detail})"));
        let text = format!("ecs:RunTask: {text}{}", detail.unwrap_or_default());
        // What is not listed may pass, as an internal error does.
        let never = ["ATTRIBUTE", "MEMBEROF", "LOCATION", "MISSING", "INACTIVE", "BLOCKED", "INVALID", "UNSUPPORTED"];
        return if begins(&never) { Ran::Refused(text) } else { Ran::Unknown(text) };
    }
    let unfit = failures.iter().filter_map(|failure| {
        let reason = failure.reason().filter(|reason| !matches!(*reason, "RESOURCE:CPU" | "RESOURCE:MEMORY"))?;
        Some(Unfit { arn: failure.arn()?.to_owned(), is_full: reason.starts_with("RESOURCE") })
    });
    Ran::NoRoom { reason: text, unfit: unfit.collect() }
}

fn run_task_input(
    launch: &Launch<'_>,
) -> Result<
    aws_sdk_ecs::operation::run_task::builders::RunTaskInputBuilder,
    aws_smithy_types::error::operation::BuildError,
> {
    let template = launch.template;
    let container = sdk::ContainerOverride::builder()
        .name(&launch.container)
        .set_environment(Some(
            launch
                .environment
                .iter()
                .map(|(name, value)| sdk::KeyValuePair::builder().name(name).value(value).build())
                .collect(),
        ))
        .set_command(launch.command.clone())
        .build();
    let overrides = sdk::TaskOverride::builder()
        .container_overrides(container)
        .set_cpu(launch.cpu.map(|cpu| cpu.to_string()))
        .set_memory(launch.memory.map(|memory| memory.to_string()))
        .set_task_role_arn(launch.task_role.clone())
        .build();
    let mut input = aws_sdk_ecs::operation::run_task::RunTaskInput::builder()
        .cluster(launch.cluster)
        .task_definition(&template.task_definition)
        .count(1)
        .started_by(&launch.started_by)
        .client_token(&launch.client_token)
        .overrides(overrides)
        // Only Fargate has platform versions; EC2 refuses the parameter (API_RunTask).
        .set_platform_version(template.platform_version.clone().filter(|_| template.on_fargate()))
        .set_tags(Some(tags(&launch.tags)));
    if template.enable_execute_command {
        input = input.enable_execute_command(true);
    }
    input = match &template.launch {
        config::Launch::Type(kind) => input.set_launch_type(match kind {
            LaunchType::Ec2 => Some(sdk::LaunchType::Ec2),
            LaunchType::Fargate => Some(sdk::LaunchType::Fargate),
            LaunchType::External => Some(sdk::LaunchType::External),
            // Neither a launch type nor a strategy: the cluster's default strategy (API_RunTask).
            LaunchType::Default => None,
        }),
        config::Launch::CapacityProviders(providers) => {
            let strategy = providers.iter().map(|provider| {
                sdk::CapacityProviderStrategyItem::builder()
                    .capacity_provider(&provider.name)
                    .weight(provider.weight)
                    .base(provider.base)
                    .build()
            });
            input.set_capacity_provider_strategy(Some(strategy.collect::<Result<_, _>>()?))
        }
    };
    if let Some(network) = &template.network {
        let public =
            if network.assign_public_ip { sdk::AssignPublicIp::Enabled } else { sdk::AssignPublicIp::Disabled };
        // An EC2 task may not even say `DISABLED` otherwise than by default; Fargate has to know (API_AwsVpcConfiguration).
        let vpc = sdk::AwsVpcConfiguration::builder()
            .set_subnets(Some(network.subnets.clone()))
            .set_security_groups((!network.security_groups.is_empty()).then(|| network.security_groups.clone()))
            .assign_public_ip(public)
            .build()?;
        input = input.network_configuration(sdk::NetworkConfiguration::builder().awsvpc_configuration(vpc).build());
    }
    for strategy in &template.placement_strategy {
        use crate::config::PlacementStrategyType as Kind;
        let kind = match strategy.kind {
            Kind::Binpack => sdk::PlacementStrategyType::Binpack,
            Kind::Spread => sdk::PlacementStrategyType::Spread,
            Kind::Random => sdk::PlacementStrategyType::Random,
        };
        input = input.placement_strategy(
            sdk::PlacementStrategy::builder().r#type(kind).set_field(strategy.field.clone()).build(),
        );
    }
    for constraint in &template.placement_constraints {
        use crate::config::PlacementConstraintType as Kind;
        let kind = match constraint.kind {
            Kind::DistinctInstance => sdk::PlacementConstraintType::DistinctInstance,
            Kind::MemberOf => sdk::PlacementConstraintType::MemberOf,
        };
        input = input.placement_constraints(
            sdk::PlacementConstraint::builder().r#type(kind).set_expression(constraint.expression.clone()).build(),
        );
    }
    Ok(input)
}

fn tags(tags: &BTreeMap<String, String>) -> Vec<sdk::Tag> {
    tags.iter().map(|(key, value)| sdk::Tag::builder().key(key).value(value).build()).collect()
}

/// A task, as DescribeTasks and as the event *ECS Task State Change* show it: the same fields under the same names.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    /// Its ARN.
    #[serde(rename = "taskArn")]
    pub arn: String,
    /// Its cluster's ARN.
    pub cluster_arn: String,
    /// Its task definition's ARN.
    pub task_definition_arn: Option<String>,
    /// Its container instance's ARN, on EC2.
    pub container_instance_arn: Option<String>,
    /// Who started it.
    pub started_by: Option<String>,
    /// `PROVISIONING` … `STOPPED`.
    pub last_status: String,
    /// `RUNNING` or `STOPPED`.
    pub desired_status: String,
    /// `HEALTHY`, `UNHEALTHY`, `UNKNOWN`.
    pub health_status: Option<String>,
    /// Grows with each change.
    pub version: i64,
    /// Why it stopped, for programs.
    pub stop_code: Option<String>,
    /// Why it stopped, for people.
    pub stopped_reason: Option<String>,
    /// ECS took it.
    pub created_at: Option<Timestamp>,
    /// The images began to come.
    pub pull_started_at: Option<Timestamp>,
    /// The images were there.
    pub pull_stopped_at: Option<Timestamp>,
    /// It ran.
    pub started_at: Option<Timestamp>,
    /// It was over.
    pub stopped_at: Option<Timestamp>,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Its network interfaces, with awsvpc.
    pub attachments: Vec<Attachment>,
    /// What it was started with.
    pub overrides: Overrides,
    /// Its tags; an event has none.
    #[serde(skip)]
    pub tags: BTreeMap<String, String>,
}

/// A container of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// As the task definition calls it.
    pub name: String,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// Why it ended or never began.
    pub reason: Option<String>,
    /// `HEALTHY`, `UNHEALTHY`, `UNKNOWN`.
    pub health_status: Option<String>,
    /// Ports of the container instance, in bridge and host mode.
    pub network_bindings: Vec<NetworkBinding>,
    /// Addresses of its own, with awsvpc.
    pub network_interfaces: Vec<NetworkInterface>,
}

/// A port of the container instance that leads to the container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkBinding {
    /// Inside.
    pub container_port: Option<i32>,
    /// Outside.
    pub host_port: Option<i32>,
    /// `tcp` or `udp`.
    pub protocol: Option<String>,
}

/// An address of an awsvpc task's own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkInterface {
    /// The address inside the VPC.
    pub private_ipv4_address: Option<String>,
}

/// What is attached to a task: its network interface.
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
    /// The name.
    pub name: Option<String>,
    /// The value.
    pub value: Option<String>,
}

/// What a task was started with.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Overrides {
    /// Of each container.
    pub container_overrides: Vec<ContainerOverride>,
}

/// What a container was started with.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ContainerOverride {
    /// The container.
    pub name: String,
    /// Its further variables.
    pub environment: Vec<Pair>,
}

impl Task {
    /// The environment that the task was started with.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.overrides
            .container_overrides
            .iter()
            .flat_map(|container| &container.environment)
            .filter_map(|pair| Some((pair.name.as_deref()?, pair.value.as_deref()?)))
    }

    /// The record of its request.
    pub fn record(&self) -> Option<Record> {
        let (_, json) = self.environment().find(|(name, _)| *name == Record::VARIABLE)?;
        serde_json::from_str(json).ok()
    }

    /// The container of this name.
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

    /// Whether its outcome was told to whoever waits.
    pub fn reported(&self) -> bool {
        self.tags.contains_key(REPORTED_TAG)
    }

    /// Whether it was told to be ready, to whoever could be told.
    pub fn reported_ready(&self) -> bool {
        self.tags.get(REPORTED_TAG).is_some_and(|value| value.starts_with("ready") || value.starts_with("rejected"))
    }

    /// When its outcome was told.
    pub fn reported_at(&self) -> Option<Timestamp> {
        self.tags.get(REPORTED_TAG)?.split_once(' ')?.1.parse().ok()
    }

    /// Whether it is over.
    pub fn is_stopped(&self) -> bool {
        self.last_status == "STOPPED"
    }

    /// Whether it is over or will be.
    pub fn is_ending(&self) -> bool {
        self.is_stopped() || self.desired_status == "STOPPED"
    }
}

fn timestamp(time: Option<aws_smithy_types::DateTime>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).unwrap_or_default()).ok()
}

impl From<sdk::Task> for Task {
    fn from(task: sdk::Task) -> Self {
        Self {
            arn: task.task_arn.unwrap_or_default(),
            cluster_arn: task.cluster_arn.unwrap_or_default(),
            task_definition_arn: task.task_definition_arn,
            container_instance_arn: task.container_instance_arn,
            started_by: task.started_by,
            last_status: task.last_status.unwrap_or_default(),
            desired_status: task.desired_status.unwrap_or_default(),
            health_status: task.health_status.map(|status| status.as_str().to_owned()),
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
            tags: task
                .tags
                .unwrap_or_default()
                .into_iter()
                .filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())))
                .collect(),
        }
    }
}

impl From<sdk::Container> for Container {
    fn from(container: sdk::Container) -> Self {
        Self {
            name: container.name.unwrap_or_default(),
            exit_code: container.exit_code,
            reason: container.reason,
            health_status: container.health_status.map(|status| status.as_str().to_owned()),
            network_bindings: container
                .network_bindings
                .unwrap_or_default()
                .into_iter()
                .map(|binding| NetworkBinding {
                    container_port: binding.container_port,
                    host_port: binding.host_port,
                    protocol: binding.protocol.map(|protocol| protocol.as_str().to_owned()),
                })
                .collect(),
            network_interfaces: container
                .network_interfaces
                .unwrap_or_default()
                .into_iter()
                .map(|interface| NetworkInterface { private_ipv4_address: interface.private_ipv4_address })
                .collect(),
        }
    }
}

impl From<sdk::KeyValuePair> for Pair {
    fn from(pair: sdk::KeyValuePair) -> Self {
        Self { name: pair.name, value: pair.value }
    }
}

/// DescribeTasks with tags. Tasks that ECS does not know are missing from the answer.
///
/// # Errors
/// When a call failed.
pub async fn describe_tasks(client: &Client, cluster: &str, arns: &[String]) -> Result<Vec<Task>, ApiFault> {
    // 100 tasks at most (API_DescribeTasks); some pages at once.
    let pages = arns.chunks(100).map(|arns| async move {
        let call = client.describe_tasks().cluster(cluster).set_tasks(Some(arns.to_vec())).include(TaskField::Tags);
        let answer = call.send().await.map_err(|error| ApiFault::new("ecs:DescribeTasks", error))?;
        Ok(answer.tasks.unwrap_or_default().into_iter().map(Task::from).collect::<Vec<_>>())
    });
    let pages: Vec<_> = stream::iter(pages).buffered(5).try_collect().await?;
    Ok(pages.into_iter().flatten().collect())
}

/// Which tasks are listed.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// The whole cluster's.
    Cluster,
    /// Those of one `startedBy`, which takes no other filter but the status.
    Name(&'a str),
    /// Those on one container instance, by its ARN.
    Instance(&'a str),
}

/// ARNs of tasks by their desired status; all pages.
///
/// # Errors
/// When a call failed.
pub async fn list_tasks(
    client: &Client,
    cluster: &str,
    of: Of<'_>,
    desired_status: DesiredStatus,
) -> Result<Vec<String>, ApiFault> {
    let mut arns = Vec::new();
    let mut next = None;
    loop {
        let call = client.list_tasks().cluster(cluster).desired_status(desired_status.clone()).set_next_token(next);
        let call = match of {
            Of::Cluster => call,
            Of::Name(name) => call.started_by(name),
            Of::Instance(arn) => call.container_instance(arn),
        };
        let answer = call.send().await.map_err(|error| ApiFault::new("ecs:ListTasks", error))?;
        arns.extend(answer.task_arns.unwrap_or_default());
        next = answer.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(arns);
        }
    }
}

/// Whether a container instance has a task on it that has not stopped. Its counts of running and pending tasks leave out
/// those that are on their way up or down (`pendingTasksCount` in API_ContainerInstance is that of status PENDING).
///
/// # Errors
/// When a call failed.
pub async fn is_occupied(client: &Client, cluster: &str, instance: &str) -> Result<bool, ApiFault> {
    if !list_tasks(client, cluster, Of::Instance(instance), DesiredStatus::Running).await?.is_empty() {
        return Ok(true);
    }
    let ending = list_tasks(client, cluster, Of::Instance(instance), DesiredStatus::Stopped).await?;
    Ok(describe_tasks(client, cluster, &ending).await?.iter().any(|task| !task.is_stopped()))
}

/// ARNs of the tasks of one name: those that are to run, or else those that ended within the last hour.
///
/// # Errors
/// When a call failed.
pub async fn tasks_of(client: &Client, cluster: &str, name: &str) -> Result<Vec<String>, ApiFault> {
    let running = list_tasks(client, cluster, Of::Name(name), DesiredStatus::Running).await?;
    if running.is_empty() {
        list_tasks(client, cluster, Of::Name(name), DesiredStatus::Stopped).await
    } else {
        Ok(running)
    }
}

/// Stops a task. The reason is cut to the 255 characters that ECS takes (API_StopTask).
///
/// # Errors
/// When the call failed.
pub async fn stop_task(client: &Client, cluster: &str, arn: &str, reason: &str) -> Result<Task, ApiFault> {
    let answer = client
        .stop_task()
        .cluster(cluster)
        .task(arn)
        .reason(reason.chars().take(255).collect::<String>())
        .send()
        .await
        .map_err(|error| ApiFault::new("ecs:StopTask", error))?;
    Ok(answer.task.map(Task::from).unwrap_or_default())
}

/// Sets a tag of a task or a container instance.
///
/// # Errors
/// When the call failed, as it does on a stopped task.
pub async fn tag(client: &Client, arn: &str, key: &str, value: &str) -> Result<(), ApiFault> {
    client
        .tag_resource()
        .resource_arn(arn)
        .tags(sdk::Tag::builder().key(key).value(value).build())
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("ecs:TagResource", error))
}

/// Removes a tag of a task or a container instance.
///
/// # Errors
/// When the call failed.
pub async fn untag(client: &Client, arn: &str, key: &str) -> Result<(), ApiFault> {
    client
        .untag_resource()
        .resource_arn(arn)
        .tag_keys(key)
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("ecs:UntagResource", error))
}

/// What of a task definition matters here.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskDefinition {
    /// Its full ARN.
    pub arn: String,
    /// `ACTIVE`, `INACTIVE`.
    pub status: String,
    /// `bridge`, `host`, `awsvpc`, `none`; Linux' default is bridge.
    pub network_mode: String,
    /// Launch types that it fits.
    pub compatibilities: Vec<String>,
    /// What a task of it takes: the task's own size or the sum of its containers'.
    pub size: Size,
    /// Its containers.
    pub containers: Vec<ContainerDefinition>,
}

/// What of a container definition matters here.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerDefinition {
    /// Its name.
    pub name: String,
    /// Whether the task ends with it.
    pub essential: bool,
    /// Whether ECS watches its health.
    pub health_check: bool,
    /// Container ports that are mapped.
    pub ports: Vec<i32>,
}

impl TaskDefinition {
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

/// DescribeTaskDefinition.
///
/// # Errors
/// When the call failed.
pub async fn describe_task_definition(client: &Client, name: &str) -> Result<TaskDefinition, ApiFault> {
    let definition = client
        .describe_task_definition()
        .task_definition(name)
        .send()
        .await
        .map_err(|error| ApiFault::new("ecs:DescribeTaskDefinition", error))?
        .task_definition
        .ok_or_else(|| ApiFault {
            action: "ecs:DescribeTaskDefinition",
            code: None,
            message: format!("no task definition in the answer for {name}"),
        })?;
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok()).filter(|&number| number > 0);
    let containers = definition.container_definitions();
    let sum = |of: fn(&sdk::ContainerDefinition) -> i32| {
        u32::try_from(containers.iter().map(of).sum::<i32>()).unwrap_or_default()
    };
    Ok(TaskDefinition {
        size: Size {
            cpu: number(definition.cpu()).unwrap_or_else(|| sum(|container| container.cpu)),
            memory: number(definition.memory()).unwrap_or_else(|| {
                // An instance reserves the hard limit, or the soft one where there is one (API_ContainerDefinition).
                sum(|container| container.memory_reservation.or(container.memory).unwrap_or_default())
            }),
        },
        network_mode: definition.network_mode().map_or("bridge", |mode| mode.as_str()).to_owned(),
        status: definition.status().map_or("ACTIVE", |status| status.as_str()).to_owned(),
        compatibilities: definition.compatibilities().iter().map(|launch| launch.as_str().to_owned()).collect(),
        containers: containers
            .iter()
            .map(|container| ContainerDefinition {
                name: container.name().unwrap_or_default().to_owned(),
                essential: container.essential().unwrap_or(true),
                health_check: container.health_check().is_some(),
                ports: container.port_mappings().iter().filter_map(|mapping| mapping.container_port()).collect(),
            })
            .collect(),
        arn: definition.task_definition_arn.unwrap_or_default(),
    })
}

/// A container instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instance {
    /// Its ARN.
    pub arn: String,
    /// Its id in EC2.
    pub ec2_id: Option<String>,
    /// `ACTIVE`, `DRAINING`, …
    pub status: String,
    /// Whether its container agent talks to ECS.
    pub connected: bool,
    /// What no task has reserved.
    pub free: Size,
    /// What it registered with.
    pub total: Size,
    /// Tasks on it, running or coming.
    pub tasks: u32,
    /// When it registered.
    pub registered_at: Option<Timestamp>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// Whether ECS would place a task on it.
    pub fn takes_tasks(&self) -> bool {
        self.status == "ACTIVE" && self.connected
    }

    /// Whether it is registered from outside AWS: it takes tasks of launch type EXTERNAL, and no others
    /// (ECS developer guide, "Amazon ECS clusters for external instances"; their ids begin with `mi-`).
    pub fn is_external(&self) -> bool {
        self.ec2_id.as_deref().is_some_and(|id| id.starts_with("mi-"))
    }
}

/// All container instances of a cluster, all pages.
///
/// # Errors
/// When a call failed.
pub async fn instances(client: &Client, cluster: &str) -> Result<Vec<Instance>, ApiFault> {
    let mut arns = Vec::new();
    let mut next = None;
    loop {
        let answer = client
            .list_container_instances()
            .cluster(cluster)
            .set_next_token(next)
            .send()
            .await
            .map_err(|error| ApiFault::new("ecs:ListContainerInstances", error))?;
        arns.extend(answer.container_instance_arns.unwrap_or_default());
        next = answer.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            break;
        }
    }
    describe_instances(client, cluster, &arns).await
}

/// DescribeContainerInstances with tags.
///
/// # Errors
/// When a call failed.
pub async fn describe_instances(client: &Client, cluster: &str, arns: &[String]) -> Result<Vec<Instance>, ApiFault> {
    let mut instances = Vec::with_capacity(arns.len());
    // 100 container instances at most (API_DescribeContainerInstances).
    for arns in arns.chunks(100) {
        let answer = client
            .describe_container_instances()
            .cluster(cluster)
            .set_container_instances(Some(arns.to_vec()))
            .include(sdk::ContainerInstanceField::Tags)
            .send()
            .await
            .map_err(|error| ApiFault::new("ecs:DescribeContainerInstances", error))?;
        instances.extend(answer.container_instances.unwrap_or_default().into_iter().map(Instance::from));
    }
    Ok(instances)
}

/// The CPU and memory among a container instance's resources.
fn size_of(resources: &[sdk::Resource]) -> Size {
    let amount = |name: &str| {
        resources
            .iter()
            .find(|resource| resource.name() == Some(name))
            .map_or(0, |resource| u32::try_from(resource.integer_value()).unwrap_or_default())
    };
    Size { cpu: amount("CPU"), memory: amount("MEMORY") }
}

impl From<sdk::ContainerInstance> for Instance {
    fn from(instance: sdk::ContainerInstance) -> Self {
        Self {
            free: size_of(instance.remaining_resources()),
            total: size_of(instance.registered_resources()),
            tasks: u32::try_from(instance.running_tasks_count + instance.pending_tasks_count).unwrap_or_default(),
            connected: instance.agent_connected,
            status: instance.status.unwrap_or_default(),
            registered_at: timestamp(instance.registered_at),
            tags: instance
                .tags
                .unwrap_or_default()
                .into_iter()
                .filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())))
                .collect(),
            ec2_id: instance.ec2_instance_id,
            arn: instance.container_instance_arn.unwrap_or_default(),
        }
    }
}

/// Drains a container instance (no new tasks) or lets it take tasks again.
///
/// # Errors
/// When the call failed.
pub async fn set_instance_status(
    client: &Client,
    cluster: &str,
    arn: &str,
    status: ContainerInstanceStatus,
) -> Result<(), ApiFault> {
    client
        .update_container_instances_state()
        .cluster(cluster)
        .container_instances(arn)
        .status(status)
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("ecs:UpdateContainerInstancesState", error))
}

/// The status of a cluster; none if there is no such cluster.
///
/// # Errors
/// When the call failed.
pub async fn cluster_status(client: &Client, name: &str) -> Result<Option<String>, ApiFault> {
    let answer = client
        .describe_clusters()
        .clusters(name)
        .send()
        .await
        .map_err(|error| ApiFault::new("ecs:DescribeClusters", error))?;
    Ok(answer.clusters.unwrap_or_default().into_iter().find_map(|cluster| cluster.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_their_reasons() {
        let judged = |reasons: &[&str]| {
            let failures = reasons
                .iter()
                .zip(1..)
                .map(|(reason, number)| sdk::Failure::builder().arn(format!("arn-{number}")).reason(*reason).build());
            judge(failures.collect())
        };
        for reasons in [
            &["RESOURCE:MEMORY"][..],
            &["AGENT"],
            &["ATTRIBUTE", "RESOURCE:CPU"],
            &["distinctInstance placement constraint unsatisfied."],
            &["Capacity is unavailable at this time. Please try again later or in a different availability zone"],
            &["You've reached the limit on the number of tasks you can run concurrently"],
        ] {
            assert!(matches!(judged(reasons), Ran::NoRoom { .. }), "{reasons:?}");
        }
        for reasons in
            [&["ATTRIBUTE"][..], &["memberOf placement constraint unsatisfied."], &["MISSING"], &["INACTIVE"]]
        {
            assert!(matches!(judged(reasons), Ran::Refused(_)), "{reasons:?}");
        }
        for reasons in [&[][..], &["Internal error."], &["something new"]] {
            assert!(matches!(judged(reasons), Ran::Unknown(_)), "{reasons:?}");
        }
        let Ran::NoRoom { unfit, .. } = judged(&["RESOURCE:MEMORY", "RESOURCE:ENI", "AGENT"]) else {
            panic!("no room")
        };
        let expected = [("arn-2", true), ("arn-3", false)];
        assert_eq!(unfit, expected.map(|(arn, is_full)| Unfit { arn: arn.into(), is_full }));
    }
}
