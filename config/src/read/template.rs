use std::collections::{BTreeMap, BTreeSet};

use super::{Around, COUNT, ClusterKey, at_most, duration, filled, launch};
use crate::duration::Limit;
use crate::label::LabelSet;
use crate::reader::{Field, Fields, Place};
use crate::rules::{NAME, is_label, is_name, is_public_key, is_tag_text};
use crate::task_definition::{FamilyPattern, is_task_definition};
use crate::types::{
    Address, Connect, EPHEMERAL_STORAGE, HostKeyVerification, Launch, LaunchType, Limits, Network, Override, Ssh,
    Template, default_lifetime, default_start_timeout, default_workspace,
};
use crate::variables;

pub(super) fn template(fields: &mut Fields<'_>, cluster_key: &ClusterKey, around: &mut Around) -> Option<Template> {
    let name = fields.required("name", |place| place.text_that(is_name, NAME));
    if let Some(name) = name.as_ref()
        && let Some(first) = around.template_names.insert((cluster_key.clone(), name.clone()), fields.path().to_owned())
    {
        fields.fault("name", format!("{name:?} is the name of {first} too, in the same cluster"));
    }
    let labels = fields.required("labels", labels);
    let task_definition = fields.required("taskDefinition", |place| {
        place.text_that(is_task_definition, "must be a task definition's ARN, family:revision or family")
    });
    let connect =
        fields.required("connect", |place| place.choice(&[("ssh", Connect::Ssh), ("inbound", Connect::Inbound)]));
    let workspace = fields.optional("workspace", filled);
    let idle = fields.optional("idleTimeout", duration);
    needs_nodes(fields, &connect, &idle, around.registers_nodes);
    suits_inbound(fields, &connect, &workspace);
    let runs_on = fields.optional("launch", |place| place.mapping(launch::launch));
    let launch_settings = LaunchSettings::read(fields);
    launch_settings.suits(fields, &runs_on);
    let overridable = OverrideSettings::read(fields, &runs_on);
    Some(Template {
        container: fields.optional("container", filled).ok(),
        workspace: workspace.or(default_workspace()),
        executors: fields.optional("executors", |place| place.number(COUNT)).or(1),
        container_start_timeout: fields.optional("containerStartTimeout", duration).or(default_start_timeout()),
        agents_per_request: fields.optional("agentsPerRequest", |place| place.number(1..=10)).or(1),
        max_agents: fields.optional("maxAgents", |place| place.number(COUNT)).ok(),
        max_lifetime: fields.optional("maxLifetime", duration).or(default_lifetime()),
        idle_timeout: idle.ok(),
        ssh: fields.optional("ssh", |place| place.mapping(ssh)).or(Ssh::default()),
        launch: runs_on.or(Launch::default()),
        network: launch_settings.network.ok(),
        platform_version: launch_settings.platform_version.ok(),
        placement_strategy: launch_settings.placement_strategy.or(Vec::new()),
        placement_constraints: launch_settings.placement_constraints.or(Vec::new()),
        enable_execute_command: fields.optional("enableExecuteCommand", |place| place.flag()).or(false),
        environment: fields.optional("environment", environment).or(BTreeMap::new()),
        tags: fields.optional("tags", tags).or(BTreeMap::new()),
        allowed_overrides: overridable.allowed_overrides,
        limits: overridable.limits,
        allowed_task_definitions: overridable.allowed_task_definitions,
        name: name.ok()?,
        labels: labels.ok()?,
        task_definition: task_definition.ok()?,
        connect: connect.ok()?,
    })
}

fn labels(place: Place<'_>) -> Option<LabelSet> {
    super::not_empty(&place, "must have at least one label");
    let message = "cannot be a label: it is empty, begins or ends with a space, or holds a quote, backslash or control \
                   character";
    place.list(|place| place.text_that(is_label, message)).map(LabelSet)
}

fn needs_nodes(fields: &Fields<'_>, connect: &Field<Connect>, idle: &Field<Limit>, registers_nodes: Option<bool>) {
    if registers_nodes != Some(false) {
        return;
    }
    let is_limited = idle.as_ref().is_some_and(|limit| *limit != Limit::NEVER);
    let message = "needs jenkins.registerNodes: only Jenkins knows whether an agent is idle";
    fields.unless(!is_limited, "idleTimeout", message);
    let message = "inbound needs jenkins.registerNodes with user and apiToken: the agent's secret is that of its node";
    fields.unless(connect.as_ref() != Some(&Connect::Inbound), "connect", message);
}

/// The official image does not quote the work directory in its command line.
fn suits_inbound(fields: &Fields<'_>, connect: &Field<Connect>, workspace: &Field<String>) {
    let has_space = workspace.as_ref().is_some_and(|workspace| workspace.contains(char::is_whitespace));
    let is_wrong = has_space && connect.as_ref() == Some(&Connect::Inbound);
    let message = "must not contain white space with connect: inbound: the official image does not quote it";
    fields.unless(!is_wrong, "workspace", message);
}

fn ssh(fields: &mut Fields<'_>) -> Option<Ssh> {
    let default = Ssh::default();
    Some(Ssh {
        port: fields.optional("port", |place| place.number(1..=65_535)).or(default.port),
        credentials_id: fields.optional("credentialsId", filled).ok(),
        address: fields
            .optional("address", |place| place.choice(&[("private", Address::Private), ("public", Address::Public)]))
            .or(default.address),
        host_key_verification: fields
            .optional("hostKeyVerification", host_key_verification)
            .or(default.host_key_verification),
        launch_timeout: fields.optional("launchTimeout", finite).or(default.launch_timeout),
        max_retries: fields.optional("maxRetries", |place| place.number(0..=u32::MAX.into())).or(default.max_retries),
        retry_wait: fields.optional("retryWait", finite).or(default.retry_wait),
        java_path: fields.optional("javaPath", text).ok(),
        jvm_options: fields.optional("jvmOptions", text).ok(),
        prefix_start_command: fields.optional("prefixStartCommand", text).ok(),
        suffix_start_command: fields.optional("suffixStartCommand", text).ok(),
    })
}

fn text(place: Place<'_>) -> Option<String> {
    place.text().map(str::to_owned)
}

/// Jenkins' SSH launcher has no `never`.
fn finite(place: Place<'_>) -> Option<Limit> {
    let limit = place.parsed(str::parse)?;
    if limit == Limit::NEVER {
        place.fault("cannot be never");
        return None;
    }
    Some(limit)
}

fn host_key_verification(place: Place<'_>) -> Option<HostKeyVerification> {
    if !place.is_mapping() {
        let choices = [("none", HostKeyVerification::None), ("knownHosts", HostKeyVerification::KnownHosts)];
        let found = place.as_text().and_then(|text| choices.into_iter().find(|(name, _)| *name == text));
        if found.is_none() {
            place.fault("must be none, knownHosts or {key: \"ssh-ed25519 AAAA…\"}");
        }
        return found.map(|(_, verification)| verification);
    }
    place.mapping(|fields| {
        let message = "must be an SSH public key as ssh-keygen writes it: ssh-ed25519 AAAA…";
        fields.required("key", |place| place.text_that(is_public_key, message)).ok().map(HostKeyVerification::Key)
    })
}

/// A template's parameters of RunTask besides the launch type.
struct LaunchSettings {
    network: Field<Network>,
    platform_version: Field<String>,
    placement_strategy: Field<Vec<crate::types::PlacementStrategy>>,
    placement_constraints: Field<Vec<crate::types::PlacementConstraint>>,
}

impl LaunchSettings {
    fn read(fields: &mut Fields<'_>) -> Self {
        Self {
            network: fields.optional("network", |place| place.mapping(launch::network)),
            platform_version: fields.optional("platformVersion", filled),
            placement_strategy: fields.optional("placementStrategy", |place| {
                at_most(&place, 5);
                place.list(|place| place.mapping(launch::placement_strategy))
            }),
            placement_constraints: fields.optional("placementConstraints", |place| {
                at_most(&place, 10);
                place.list(|place| place.mapping(launch::placement_constraint))
            }),
        }
    }

    /// Settings that are only for Fargate, or only for instances. With a capacity provider or the cluster's default
    /// strategy it may be either, and ECS reports it.
    fn suits(&self, fields: &Fields<'_>, launch: &Field<Launch>) {
        let default = Launch::default();
        let Some(launch) = launch.effective(&default) else { return };
        let message = "is missing, and Fargate needs its subnets";
        fields.unless(!(launch.is_fargate() && self.network.is_absent()), "network", message);
        match launch {
            Launch::CapacityProviders(_) | Launch::Type(LaunchType::Default) => {}
            Launch::Type(LaunchType::Fargate) => {
                let has_strategy = self.placement_strategy.as_ref().is_some_and(|list| !list.is_empty());
                fields.unless(!has_strategy, "placementStrategy", "is not for Fargate");
                let has_constraints = self.placement_constraints.as_ref().is_some_and(|list| !list.is_empty());
                fields.unless(!has_constraints, "placementConstraints", "is not for Fargate");
            }
            Launch::Type(kind @ (LaunchType::Ec2 | LaunchType::External)) => {
                let is_public = self.network.as_ref().is_some_and(|network| network.assign_public_ip);
                fields.unless(!is_public, "network.assignPublicIp", "is for Fargate only");
                let has_network = !self.network.is_absent() && *kind == LaunchType::External;
                fields.unless(!has_network, "network", "is not for external instances");
                // The default may be written down anywhere.
                let is_other = self.platform_version.as_ref().is_some_and(|version| version != "LATEST");
                fields.unless(!is_other, "platformVersion", "is for Fargate only");
            }
        }
    }
}

/// What requests may override.
struct OverrideSettings {
    allowed_overrides: Vec<Override>,
    limits: Limits,
    allowed_task_definitions: Vec<FamilyPattern>,
}

impl OverrideSettings {
    fn read(fields: &mut Fields<'_>, launch: &Field<Launch>) -> Self {
        let overrides = fields.optional("allowedOverrides", |place| place.list(|place| place.choice(&Override::NAMES)));
        let allows = |kind: Override| overrides.as_ref().is_some_and(|list| list.contains(&kind));
        let definitions = fields.optional("allowedTaskDefinitions", |place| {
            place.list(|place| place.parsed(|text| FamilyPattern::try_from(text.to_owned())))
        });
        let is_empty = definitions.effective(&Vec::new()).is_some_and(Vec::is_empty);
        // If it holds only faults, these have been reported already.
        let is_missing = is_empty && !fields.has_elements("allowedTaskDefinitions");
        let message = "is missing or empty, and the override taskDefinition needs it";
        fields.unless(!(is_missing && allows(Override::TaskDefinition)), "allowedTaskDefinitions", message);
        let default = Launch::default();
        let is_elsewhere = launch.effective(&default).is_some_and(|launch| !launch.may_be_fargate());
        let is_refused = is_elsewhere && allows(Override::EphemeralStorage);
        fields.unless(!is_refused, "allowedOverrides", "ephemeralStorage is for Fargate only");
        Self {
            limits: fields.optional("limits", |place| place.mapping(limits)).or(Limits::default()),
            allowed_overrides: overrides.or(Vec::new()),
            allowed_task_definitions: definitions.or(Vec::new()),
        }
    }
}

fn limits(fields: &mut Fields<'_>) -> Option<Limits> {
    let storage = u64::from(*EPHEMERAL_STORAGE.start())..=u64::from(*EPHEMERAL_STORAGE.end());
    Some(Limits {
        cpu: fields.optional("cpu", |place| place.number(COUNT)).ok(),
        memory: fields.optional("memory", |place| place.number(COUNT)).ok(),
        ephemeral_storage: fields.optional("ephemeralStorage", |place| place.number(storage)).ok(),
    })
}

fn environment(place: Place<'_>) -> Option<BTreeMap<String, String>> {
    // Jenkins keeps them case-insensitively (`hudson.EnvVars`).
    let mut names = BTreeSet::new();
    place.entries(|name, place| {
        let value = place.text()?;
        if let Err(message) = variables::check(name, value) {
            place.fault(message);
        } else if variables::is_reserved(name) {
            place.fault("is decided by the launch itself");
        } else if !names.insert(name.to_lowercase()) {
            place.fault("duplicate name: Jenkins ignores case");
        }
        Some(value.to_owned())
    })
}

/// ECS allows 50 tags per resource; we need the rest.
const MOST_TAGS: usize = 40;

/// As API_Tag has it.
fn tags(place: Place<'_>) -> Option<BTreeMap<String, String>> {
    at_most(&place, MOST_TAGS);
    place.entries(|key, place| {
        let value = place.text()?;
        let folded = key.to_ascii_lowercase();
        for (is_wrong, message) in [
            (folded.starts_with("aws:"), "must not begin with aws:"),
            (folded.starts_with("jenkins-ecs-agents:"), "must not begin with jenkins-ecs-agents:"),
            (!(1..=128).contains(&key.chars().count()), "must have 1 to 128 characters"),
            (value.chars().count() > 256, "must have a value of at most 256 characters"),
            (
                !is_tag_text(key, usize::MAX) || !is_tag_text(value, usize::MAX),
                "may only contain letters, digits, spaces and + - = . _ : / @",
            ),
        ] {
            if is_wrong {
                place.fault(message);
            }
        }
        Some(value.to_owned())
    })
}
