//! The configuration as it is written: one type for each section of the YAML.
//!
//! The JSON Schema is derived from these types (`schema`). They are read by `read`, which a test compares with the
//! schema.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::duration::Limit;
use crate::label::LabelSet;
use crate::task_definition::FamilyPattern;

/// Which agents a Jenkins controller can have, and where they run.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Configuration of jenkins-ecs-agents")]
pub struct Config {
    /// The Jenkins controller that the agents serve.
    pub jenkins: Jenkins,
    /// An EventBridge bus (name or ARN) that every notice is also put on.
    #[schemars(regex(pattern = "^(.*:event-bus/)?[A-Za-z0-9/._-]{1,256}$"))]
    pub event_bus: Option<String>,
    /// Where agents can run, in order of preference.
    #[schemars(length(min = 1))]
    pub clouds: Vec<Cloud>,
}

/// The Jenkins controller.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jenkins {
    /// Its root URL: the only origin that notices and API calls may go to.
    #[schemars(length(max = 256), regex(pattern = r"^https?://[\p{L}\p{N}+\-=._:]+(/[\p{L}\p{N}+\-=._:/@]*)?$"))]
    pub url: RootUrl,
    /// The user of the REST API, with Agent/Create, Connect, Disconnect, Delete and Overall/Read.
    #[schemars(regex(pattern = r"^[^:]*[^:\s][^:]*$"))]
    pub user: Option<String>,
    /// That user's API token.
    pub api_token: Option<SecretRef>,
    /// Whether nodes are created and deleted over the REST API. Default: whether `user` and `apiToken` are set.
    pub register_nodes: Option<bool>,
    /// PEM certificates of a private certificate authority, trusted for Jenkins alone.
    pub ca_certificate: Option<SecretRef>,
    /// How notices reach Jenkins.
    #[serde(default)]
    pub webhook: Webhook,
}

/// A URL that is also kept as it was written: the tag on our tasks, and the condition on it in the functions' roles,
/// have to match literally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootUrl {
    written: String,
    url: Url,
}

impl RootUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("must be an absolute URL: {error}"))?;
        Ok(Self { written: text.to_owned(), url })
    }

    /// As it was written.
    pub fn as_written(&self) -> &str {
        &self.written
    }
}

impl std::ops::Deref for RootUrl {
    type Target = Url;

    fn deref(&self) -> &Url {
        &self.url
    }
}

impl JsonSchema for RootUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RootUrl".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "uri", "pattern": r"^https?://[^/?#@\s]+(/[^?#\s]*)?$"})
    }
}

/// How notices reach Jenkins.
#[derive(Debug, Clone, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// Receives every notice of every request. Must be under `jenkins.url`.
    #[schemars(regex(pattern = "^https?://"))]
    pub url: Option<RootUrl>,
    /// Sent raw as the `Authorization` header of every notice.
    pub authorization: Option<SecretRef>,
    /// Signs notices as defined by Standard Webhooks (`whsec_` and base64).
    pub signing_secret: Option<SecretRef>,
}

/// Where a secret is. Never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SecretRef {
    /// An SSM parameter, decrypted.
    Ssm(#[schemars(regex(pattern = r"\S"))] String),
    /// An environment variable.
    Env(#[schemars(regex(pattern = r"\S"))] String),
    /// A file.
    File(#[schemars(regex(pattern = r"\S"))] String),
}

impl SecretRef {
    /// The name of the parameter, the variable or the file.
    pub fn name(&self) -> &str {
        let (Self::Ssm(name) | Self::Env(name) | Self::File(name)) = self;
        name
    }
}

/// One cluster in one region and account, and the templates that run there.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cloud {
    /// 1 to 64 of `A-Z a-z 0-9 _ -`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub name: String,
    /// The AWS region, as in `eu-west-1`.
    #[schemars(regex(
        pattern = r"^((us|eu|ap|sa|ca|me|af|il|mx|cn|us-gov|us-iso|us-isob|us-isof|eu-isoe|eusc-de)-[a-z]+-[0-9]+)$"
    ))]
    pub region: String,
    /// The cluster's name or ARN.
    #[serde(default = "default_cluster")]
    #[schemars(regex(pattern = "^(arn:.*:cluster/)?[A-Za-z0-9_-]{1,255}$"))]
    pub cluster: String,
    /// A role to assume for a cluster in another account.
    #[schemars(regex(pattern = "^arn:.+:role/.+$"))]
    pub assume_role_arn: Option<String>,
    /// The Auto Scaling group of the cluster's instances. Without it, nothing is scaled.
    #[schemars(regex(pattern = r"\S"))]
    pub auto_scaling_group: Option<String>,
    /// How long a request may wait for room before it fails.
    #[serde(default = "default_launch_timeout")]
    pub instance_launch_timeout: Limit,
    /// An instance that has not registered this long after its launch no longer counts as booting or as room. Default
    /// 10m, with `autoScalingGroup`.
    pub instance_registration_timeout: Option<Limit>,
    /// Instances that have had no task for this long are terminated.
    #[serde(default)]
    pub idle_instance_timeout: Limit,
    /// What a new instance of the group offers. Default: as its largest registered instance.
    pub instance_capacity: Option<Size>,
    /// Agents of this cloud that may exist at once.
    #[schemars(range(min = 1))]
    pub max_agents: Option<u32>,
    /// The URL at which inbound agents reach the controller. Default: `jenkins.url`.
    pub agent_url: Option<RootUrl>,
    /// The kinds of agent, in order of preference.
    #[schemars(length(min = 1))]
    pub templates: Vec<Template>,
}

/// CPU units (1024 are one vCPU) and MiB of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Size {
    /// CPU units; 1024 are one vCPU.
    #[schemars(range(min = 1))]
    pub cpu: u32,
    /// MiB of memory.
    #[schemars(range(min = 1))]
    pub memory: u32,
}

impl Size {
    /// Whether a task of this size fits in `room`.
    pub fn fits(self, room: Self) -> bool {
        self.cpu <= room.cpu && self.memory <= room.memory
    }

    /// Both together.
    pub fn with(self, other: Self) -> Self {
        Self { cpu: self.cpu.saturating_add(other.cpu), memory: self.memory.saturating_add(other.memory) }
    }

    /// What is left of it without `part`; zero where that is more.
    pub fn without(self, part: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(part.cpu), memory: self.memory.saturating_sub(part.memory) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU units and {} MiB", self.cpu, self.memory)
    }
}

/// One kind of agent.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// 1 to 64 of `A-Z a-z 0-9 _ -`; part of every agent's name.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub name: String,
    /// A request's label expression is evaluated against these.
    pub labels: LabelSet,
    /// Full ARN, `family:revision` or `family`.
    #[schemars(regex(
        pattern = "^(arn:.+:task-definition/[A-Za-z0-9_-]{1,255}:0*[1-9][0-9]*|[A-Za-z0-9_-]{1,255}(:0*[1-9][0-9]*)?)$"
    ))]
    pub task_definition: String,
    /// The agent's container. Default: the task definition's only essential container.
    #[schemars(regex(pattern = r"\S"))]
    pub container: Option<String>,
    /// Whether Jenkins connects to the agent over SSH, or the agent to Jenkins over WebSocket.
    pub connect: Connect,
    /// The agent's working directory.
    #[serde(default = "default_workspace")]
    #[schemars(regex(pattern = r"\S"))]
    pub workspace: String,
    /// Executors of the node. More than one gives up one build per agent.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub executors: u32,
    /// From RunTask until the agent must be ready, without the time that its task waits for an instance of a capacity
    /// provider. While Jenkins is down, agents that run are left alone.
    #[serde(default = "default_start_timeout")]
    pub container_start_timeout: Limit,
    /// Agents for a request without `count`; 1 to 10.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    pub agents_per_request: u32,
    /// Agents of this template that may exist at once.
    #[schemars(range(min = 1))]
    pub max_agents: Option<u32>,
    /// An agent older than this is stopped.
    #[serde(default = "default_lifetime")]
    pub max_lifetime: Limit,
    /// An agent without a build for this long, according to Jenkins, is stopped. Default 10m, with `registerNodes`.
    pub idle_timeout: Option<Limit>,
    /// How Jenkins connects, for `connect: ssh`.
    #[serde(default)]
    pub ssh: Ssh,
    /// What the task runs on. Default: EC2.
    #[serde(default)]
    pub launch: Launch,
    /// For task definitions with network mode `awsvpc` only.
    pub network: Option<Network>,
    /// The Fargate platform version.
    #[schemars(regex(pattern = r"\S"))]
    pub platform_version: Option<String>,
    /// How ECS chooses among instances.
    #[serde(default)]
    #[schemars(length(max = 5))]
    pub placement_strategy: Vec<PlacementStrategy>,
    /// Which instances ECS may choose.
    #[serde(default)]
    #[schemars(length(max = 10))]
    pub placement_constraints: Vec<PlacementConstraint>,
    /// Allows `aws ecs execute-command` on the agent.
    #[serde(default)]
    pub enable_execute_command: bool,
    /// Environment variables of the container, and of the builds on the node.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Tags of the task, 40 at most.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What a request may override.
    #[serde(default)]
    pub allowed_overrides: Vec<Override>,
    /// The most that an override may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// Families that the override `taskDefinition` may name; `*` at the end stands for any suffix.
    #[serde(default)]
    pub allowed_task_definitions: Vec<FamilyPattern>,
}

/// How Jenkins and the agent find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Connect {
    /// Jenkins logs in to the agent.
    Ssh,
    /// The agent dials Jenkins, over WebSocket.
    Inbound,
}

/// Jenkins' SSH launcher, for one template.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ssh {
    /// The container port of sshd.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The id of a Jenkins credential.
    #[schemars(regex(pattern = r"\S"))]
    pub credentials_id: Option<String>,
    /// Which address of the agent Jenkins connects to.
    pub address: Address,
    /// How Jenkins checks the host key.
    pub host_key_verification: HostKeyVerification,
    /// How long one attempt of Jenkins' SSH launcher may take; not `never`.
    #[schemars(extend("pattern" = "^[0-9]+[smh]$"))]
    pub launch_timeout: Limit,
    /// Further attempts of Jenkins' SSH launcher.
    pub max_retries: u32,
    /// Pause between two attempts of Jenkins' SSH launcher; not `never`.
    #[schemars(extend("pattern" = "^[0-9]+[smh]$"))]
    pub retry_wait: Limit,
    /// The agent's `java`.
    pub java_path: Option<String>,
    /// Options for that `java`.
    pub jvm_options: Option<String>,
    /// Prepended to the command that starts the agent.
    pub prefix_start_command: Option<String>,
    /// Appended to the command that starts the agent.
    pub suffix_start_command: Option<String>,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            port: 22,
            credentials_id: None,
            address: Address::Private,
            host_key_verification: HostKeyVerification::None,
            launch_timeout: Limit::seconds(60),
            max_retries: 10,
            retry_wait: Limit::seconds(3),
            java_path: None,
            jvm_options: None,
            prefix_start_command: None,
            suffix_start_command: None,
        }
    }
}

/// Which address of an agent Jenkins dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Address {
    /// The address inside the VPC.
    Private,
    /// The public address.
    Public,
}

/// How Jenkins checks an agent's SSH host key.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostKeyVerification {
    /// It does not.
    None,
    /// Against the controller's `known_hosts`.
    KnownHosts,
    /// Against this public key.
    Key(
        #[schemars(regex(
            pattern = "^(ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}|ssh-rsa AAAAB3NzaC1yc2EAAAA[A-Za-z0-9+/]+={0,2}|ecdsa-sha2-nistp(256|384|521) AAAAE2VjZHNhLXNoYTItbmlzdHA[A-Za-z0-9+/]+={0,2}|ssh-dss AAAAB3NzaC1kc3MAAA[A-Za-z0-9+/]+={0,2})( .*)?$"
        ))]
        String,
    ),
}

/// What a task runs on. Default: EC2.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Launch {
    /// A launch type.
    Type(LaunchType),
    /// A capacity provider strategy.
    CapacityProviders(#[schemars(length(min = 1, max = 20))] Vec<CapacityProvider>),
}

impl Default for Launch {
    fn default() -> Self {
        Self::Type(LaunchType::Ec2)
    }
}

impl Launch {
    /// Whether it is Fargate, by launch type or by AWS' own capacity providers.
    pub fn is_fargate(&self) -> bool {
        match self {
            Self::Type(kind) => *kind == LaunchType::Fargate,
            Self::CapacityProviders(providers) => providers.iter().all(CapacityProvider::is_fargate),
        }
    }

    /// Whether it may turn out to be Fargate: what a capacity provider or the cluster's default strategy uses is known
    /// only to ECS.
    pub fn may_be_fargate(&self) -> bool {
        matches!(self, Self::CapacityProviders(_) | Self::Type(LaunchType::Fargate | LaunchType::Default))
    }
}

/// The launch type of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LaunchType {
    /// On container instances in EC2.
    Ec2,
    /// On Fargate.
    Fargate,
    /// On registered instances elsewhere (ECS Anywhere).
    External,
    /// By the cluster's default capacity provider strategy.
    Default,
}

/// One capacity provider of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapacityProvider {
    /// Its name; `FARGATE` and `FARGATE_SPOT` are AWS' own.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,255}$"))]
    pub name: String,
    /// Its share of the tasks beyond `base`; 0 to 1000.
    #[serde(default = "one_signed")]
    #[schemars(range(min = 0, max = 1000))]
    pub weight: i32,
    /// At least this many tasks run on it; 0 to 100000.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub base: i32,
}

/// The network of an `awsvpc` task.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// 1 to 16 subnets of one VPC.
    #[schemars(length(min = 1, max = 16), inner(regex(pattern = "^[A-Za-z0-9-]{1,64}$")))]
    pub subnets: Vec<String>,
    /// Up to 5; default: the VPC's own.
    #[serde(default)]
    #[schemars(length(max = 5), inner(regex(pattern = "^[A-Za-z0-9-]{1,64}$")))]
    pub security_groups: Vec<String>,
    /// Fargate only.
    #[serde(default)]
    pub assign_public_ip: bool,
}

/// One rule by which ECS chooses among instances.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacementStrategy {
    /// Fill instances up, spread over them, or choose any.
    #[serde(rename = "type")]
    pub kind: PlacementStrategyType,
    /// What the rule considers: `memory`, `cpu`, `attribute:…`, `instanceId`. None for `random`.
    pub field: Option<String>,
}

/// A placement rule of ECS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PlacementStrategyType {
    /// Fill one instance after the other.
    Binpack,
    /// Spread evenly.
    Spread,
    /// Any.
    Random,
}

/// One condition on the instances that ECS may choose.
#[derive(Debug, Clone, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacementConstraint {
    /// One task an instance, or instances that the expression selects.
    #[serde(rename = "type")]
    pub kind: PlacementConstraintType,
    /// In ECS' cluster query language, for `memberOf`.
    pub expression: Option<String>,
}

/// A placement condition of ECS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PlacementConstraintType {
    /// One task of the group per instance.
    DistinctInstance,
    /// Instances that the expression selects.
    MemberOf,
}

/// What a request may be allowed to override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Override {
    /// The task's CPU units.
    Cpu,
    /// The task's MiB.
    Memory,
    /// GiB of the task's ephemeral storage, on Fargate.
    EphemeralStorage,
    /// Environment variables of the container and the node.
    Environment,
    /// The container's command.
    Command,
    /// The task's role.
    TaskRole,
    /// Another task definition.
    TaskDefinition,
}

impl Override {
    pub(crate) const NAMES: [(&str, Self); 7] = [
        ("cpu", Self::Cpu),
        ("memory", Self::Memory),
        ("ephemeralStorage", Self::EphemeralStorage),
        ("environment", Self::Environment),
        ("command", Self::Command),
        ("taskRole", Self::TaskRole),
        ("taskDefinition", Self::TaskDefinition),
    ];
}

/// The most that an override may ask for.
#[derive(Debug, Clone, Copy, Default, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// CPU units of the task.
    #[schemars(range(min = 1))]
    pub cpu: Option<u32>,
    /// MiB of the task's memory.
    #[schemars(range(min = 1))]
    pub memory: Option<u32>,
    /// GiB of the task's ephemeral storage, on Fargate.
    #[schemars(range(min = 21, max = 200))]
    pub ephemeral_storage: Option<u32>,
}

/// GiB of ephemeral storage that a task on Fargate may ask for (API_EphemeralStorage).
pub const EPHEMERAL_STORAGE: std::ops::RangeInclusive<u32> = 21..=200;

pub(crate) fn default_cluster() -> String {
    "default".into()
}

pub(crate) fn default_workspace() -> String {
    "/home/jenkins".into()
}

fn one() -> u32 {
    1
}

fn one_signed() -> i32 {
    1
}

pub(crate) fn default_launch_timeout() -> Limit {
    Limit::minutes(15)
}

pub(crate) fn default_start_timeout() -> Limit {
    Limit::minutes(15)
}

pub(crate) fn default_lifetime() -> Limit {
    Limit::minutes(24 * 60)
}

impl Template {
    /// Whether its tasks run on Fargate, by launch type or by AWS' own capacity providers.
    pub fn on_fargate(&self) -> bool {
        self.launch.is_fargate()
    }

    /// Whether it runs on external instances, and on no others.
    pub fn is_external(&self) -> bool {
        self.launch == Launch::Type(LaunchType::External)
    }

    /// Whether its tasks may wait in ECS, in PROVISIONING, until a capacity provider has launched an instance.
    pub fn waits_in_ecs(&self) -> bool {
        !self.on_fargate() && !self.is_external() && !self.scales_group()
    }

    /// Whether the cloud's group may be raised for it: capacity providers scale on their own, and nothing scales
    /// external instances.
    pub fn scales_group(&self) -> bool {
        self.launch == Launch::Type(LaunchType::Ec2)
    }
}

impl Cloud {
    /// The template of this name.
    pub fn template(&self, name: &str) -> Option<&Template> {
        self.templates.iter().find(|template| template.name == name)
    }

    /// How long after its launch an instance may take to register.
    pub fn registration_timeout(&self) -> Limit {
        self.instance_registration_timeout.unwrap_or(Limit::minutes(10))
    }

    /// Where its inbound agents find the controller.
    pub fn agent_url<'a>(&'a self, jenkins: &'a Jenkins) -> &'a RootUrl {
        self.agent_url.as_ref().unwrap_or(&jenkins.url)
    }
}

impl CapacityProvider {
    /// Whether it is one of AWS' own.
    pub fn is_fargate(&self) -> bool {
        matches!(self.name.as_str(), "FARGATE" | "FARGATE_SPOT")
    }
}

impl Jenkins {
    /// Whether nodes are created and deleted over the REST API.
    pub fn registers_nodes(&self) -> bool {
        self.register_nodes.unwrap_or(self.user.is_some() && self.api_token.is_some())
    }
}
