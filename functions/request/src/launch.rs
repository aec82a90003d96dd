//! Builds the RunTask call.

use std::collections::BTreeMap;

use aws_sdk_ecs::error::BuildError;
use aws_sdk_ecs::operation::run_task::RunTaskInput;
use aws_sdk_ecs::operation::run_task::builders::RunTaskInputBuilder;
use aws_sdk_ecs::types as sdk;
use shared::config::{self, LaunchType, Template};

/// The parameters of a RunTask call.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The parts that are the same for every agent of the template.
    pub template: &'a Template,
    /// The agent's name.
    pub started_by: String,
    /// At most 64 characters.
    pub client_token: String,
    /// The agent's container.
    pub container: String,
    /// The container's environment, with the record.
    pub environment: BTreeMap<String, String>,
    /// The task's tags.
    pub tags: BTreeMap<String, String>,
    /// The task's CPU units, if they differ from the definition.
    pub cpu: Option<u32>,
    /// The task's memory in MiB, if it differs from the definition.
    pub memory: Option<u32>,
    /// The container's command, if it differs.
    pub command: Option<Vec<String>>,
    /// The task's role, if it differs.
    pub task_role: Option<String>,
    /// Family, `family:revision` or ARN.
    pub task_definition: String,
    /// GiB, if they differ from Fargate's 20.
    pub ephemeral_storage: Option<u32>,
}

/// The most that the overrides of a task may take, as JSON (API_RunTask: 8192 characters in all, with the JSON around
/// them). Counted in bytes, of which there are at least as many.
pub const OVERRIDES_BYTES: usize = 8192;

impl Launch<'_> {
    /// An upper bound of the length of its overrides as JSON, within a few bytes.
    pub fn overrides_bytes(&self) -> usize {
        // The names of all members, each number and the braces around them.
        const FRAME: usize = 256;
        let pair = |(name, value): (&String, &String)| variable_bytes(name, value);
        let environment: usize = self.environment.iter().map(pair).sum();
        let texts = self.command.iter().flatten().chain(&self.task_role).chain([&self.container]);
        environment + texts.map(|text| text_bytes(text) + 1).sum::<usize>() + FRAME
    }
}

/// The length of an environment override as JSON.
pub fn variable_bytes(name: &str, value: &str) -> usize {
    r#"{"name":,"value":},"#.len() + text_bytes(name) + text_bytes(value)
}

fn text_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

/// Builds the RunTask input, except for the cluster.
///
/// # Errors
/// When a required part is missing.
pub fn input(launch: &Launch<'_>) -> Result<RunTaskInputBuilder, BuildError> {
    let template = launch.template;
    let input = RunTaskInput::builder()
        .task_definition(&launch.task_definition)
        .count(1)
        .started_by(&launch.started_by)
        .client_token(&launch.client_token)
        .overrides(overrides(launch))
        // Only Fargate has platform versions; EC2 refuses the parameter (API_RunTask).
        .set_platform_version(template.platform_version.clone().filter(|_| template.launch.may_be_fargate()))
        .set_tags(Some(tags(&launch.tags)))
        .set_enable_execute_command(template.enable_execute_command.then_some(true))
        .set_network_configuration(template.network.as_ref().map(network).transpose()?)
        .set_placement_strategy(some(template.placement_strategy.iter().map(strategy).collect()))
        .set_placement_constraints(some(template.placement_constraints.iter().map(constraint).collect()));
    Ok(match &template.launch {
        config::Launch::Type(kind) => input.set_launch_type(match kind {
            LaunchType::Ec2 => Some(sdk::LaunchType::Ec2),
            LaunchType::Fargate => Some(sdk::LaunchType::Fargate),
            LaunchType::External => Some(sdk::LaunchType::External),
            // Neither a launch type nor a strategy: the cluster's default strategy (API_RunTask).
            LaunchType::Default => None,
        }),
        config::Launch::CapacityProviders(providers) => {
            input.set_capacity_provider_strategy(Some(providers.iter().map(provider).collect::<Result<_, _>>()?))
        }
    })
}

fn overrides(launch: &Launch<'_>) -> sdk::TaskOverride {
    let environment = launch.environment.iter();
    let container = sdk::ContainerOverride::builder()
        .name(&launch.container)
        .set_environment(Some(
            environment.map(|(name, value)| sdk::KeyValuePair::builder().name(name).value(value).build()).collect(),
        ))
        .set_command(launch.command.clone())
        .build();
    let storage = launch
        .ephemeral_storage
        .map(|size| sdk::EphemeralStorage::builder().size_in_gib(i32::try_from(size).unwrap_or(i32::MAX)).build());
    sdk::TaskOverride::builder()
        .container_overrides(container)
        .set_cpu(launch.cpu.map(|cpu| cpu.to_string()))
        .set_memory(launch.memory.map(|memory| memory.to_string()))
        .set_task_role_arn(launch.task_role.clone())
        .set_ephemeral_storage(storage)
        .build()
}

fn provider(provider: &config::CapacityProvider) -> Result<sdk::CapacityProviderStrategyItem, BuildError> {
    sdk::CapacityProviderStrategyItem::builder()
        .capacity_provider(&provider.name)
        .weight(provider.weight)
        .base(provider.base)
        .build()
}

fn network(network: &config::Network) -> Result<sdk::NetworkConfiguration, BuildError> {
    let public = if network.assign_public_ip { sdk::AssignPublicIp::Enabled } else { sdk::AssignPublicIp::Disabled };
    // An EC2 task may not set even `DISABLED` explicitly; for Fargate it is required (API_AwsVpcConfiguration).
    let vpc = sdk::AwsVpcConfiguration::builder()
        .set_subnets(Some(network.subnets.clone()))
        .set_security_groups(some(network.security_groups.clone()))
        .assign_public_ip(public)
        .build()?;
    Ok(sdk::NetworkConfiguration::builder().awsvpc_configuration(vpc).build())
}

fn strategy(strategy: &config::PlacementStrategy) -> sdk::PlacementStrategy {
    use config::PlacementStrategyType as Kind;
    let kind = match strategy.kind {
        Kind::Binpack => sdk::PlacementStrategyType::Binpack,
        Kind::Spread => sdk::PlacementStrategyType::Spread,
        Kind::Random => sdk::PlacementStrategyType::Random,
    };
    sdk::PlacementStrategy::builder().r#type(kind).set_field(strategy.field.clone()).build()
}

fn constraint(constraint: &config::PlacementConstraint) -> sdk::PlacementConstraint {
    use config::PlacementConstraintType as Kind;
    let kind = match constraint.kind {
        Kind::DistinctInstance => sdk::PlacementConstraintType::DistinctInstance,
        Kind::MemberOf => sdk::PlacementConstraintType::MemberOf,
    };
    sdk::PlacementConstraint::builder().r#type(kind).set_expression(constraint.expression.clone()).build()
}

/// An empty list is omitted, which ECS reads the same way.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn tags(tags: &BTreeMap<String, String>) -> Vec<sdk::Tag> {
    tags.iter().map(|(key, value)| sdk::Tag::builder().key(key).value(value).build()).collect()
}
