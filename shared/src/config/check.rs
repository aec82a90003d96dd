//! What a configuration has to hold beyond its form.

use std::collections::BTreeMap;

use super::load::{ConfigError, Guessed};
use super::yaml::join;
use super::{
    Cloud, Config, Connect, Jenkins, Launch, Limit, Network, PlacementConstraintType, PlacementStrategyType, Template,
};
use crate::message::Record;
use crate::origin::Origin;

/// Collects faults below a path. Guesses are not at fault.
struct Faults<'a> {
    path: String,
    guessed: &'a Guessed,
    all: &'a mut Vec<ConfigError>,
}

impl Faults<'_> {
    fn at(&mut self, field: &str) -> Faults<'_> {
        Faults { path: join(&self.path, field), guessed: self.guessed, all: self.all }
    }

    fn add(&mut self, field: &str, message: impl Into<String>) {
        let path = join(&self.path, field);
        if !self.guessed.covers(&path) {
            self.all.push(ConfigError::new(path, message));
        }
    }

    fn unless(&mut self, holds: bool, field: &str, message: impl Into<String>) {
        if !holds {
            self.add(field, message);
        }
    }

    /// Whether a field can be relied on where another one depends on it.
    fn is_written(&self, field: &str) -> bool {
        self.guessed.is_written(&join(&self.path, field))
    }
}

/// Adds everything that a configuration does not hold.
pub(super) fn check(config: &Config, guessed: &Guessed, all: &mut Vec<ConfigError>) {
    let mut faults = Faults { path: String::new(), guessed, all };
    if let Some(bus) = &config.event_bus {
        let name = bus.rsplit_once(":event-bus/").map_or(bus.as_str(), |(_, name)| name);
        faults.unless(is_word(name, 256, "/._-"), "eventBus", "has to be a bus' name or ARN");
    }
    jenkins(&config.jenkins, &mut faults.at("jenkins"));
    faults.unless(!config.clouds.is_empty(), "clouds", "has to have at least one cloud");
    // Whether nodes are registered is only known where none of these is a guess.
    let nodes = ["user", "apiToken", "registerNodes"]
        .iter()
        .all(|field| faults.at("jenkins").is_written(field))
        .then(|| config.jenkins.registers_nodes());
    let mut cloud_names = BTreeMap::new();
    let mut template_names = BTreeMap::new();
    for (index, one) in config.clouds.iter().enumerate() {
        let here = format!("clouds[{index}]");
        let mut faults = faults.at(&here);
        if let Some(first) = cloud_names.insert(&one.name, here.clone()) {
            faults.add("name", format!("{:?} is the name of {first} too", one.name));
        }
        cloud(one, &mut faults);
        for (index, one_template) in one.templates.iter().enumerate() {
            let place = format!("templates[{index}]");
            let mut faults = faults.at(&place);
            let cluster = (&one.region, cluster_name(&one.cluster), &one.assume_role_arn);
            if let Some(first) = template_names.insert((cluster, &one_template.name), format!("{here}.{place}")) {
                let message = format!("{:?} is the name of {first} too, in the same cluster", one_template.name);
                faults.add("name", message);
            }
            template(one_template, nodes, &mut faults);
        }
    }
}

fn jenkins(jenkins: &Jenkins, faults: &mut Faults<'_>) {
    let url: &url::Url = &jenkins.url;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    faults.unless(is_web, "url", "has to be an http or https URL with a host");
    let has_user_info = !url.username().is_empty() || url.password().is_some();
    faults.unless(!has_user_info, "url", "may hold no user info; that is what user and apiToken are for");
    faults.unless(url.query().is_none() && url.fragment().is_none(), "url", "may have no query and no fragment");
    let message = "is a tag of every task: it may hold letters, digits and + - = . _ : / @ only, 256 at most";
    let is_plain = is_web && url.query().is_none() && url.fragment().is_none();
    faults.unless(!is_plain || is_tag_text(jenkins.url.as_written(), 256), "url", message);
    if let (Some(webhook), true) = (&jenkins.webhook.url, faults.is_written("url"))
        && let Err(reason) = Origin::new(url.clone()).allows(webhook.as_written())
    {
        faults.add("webhook.url", reason);
    }
    for (field, reference) in [
        ("apiToken", &jenkins.api_token),
        ("caCertificate", &jenkins.ca_certificate),
        ("webhook.authorization", &jenkins.webhook.authorization),
        ("webhook.signingSecret", &jenkins.webhook.signing_secret),
    ] {
        let is_named = reference.as_ref().is_none_or(|reference| is_filled(reference.name()));
        faults.unless(is_named, field, "names nothing");
    }
    // RFC 7617: the first colon of Basic credentials ends the user.
    let user_is_fine = jenkins.user.as_ref().is_none_or(|user| is_filled(user) && !user.contains(':'));
    faults.unless(user_is_fine, "user", "has to be a Jenkins user's id, without a colon");
    if jenkins.register_nodes == Some(true) {
        faults.unless(jenkins.user.is_some(), "user", "is missing, and registerNodes needs it");
        faults.unless(jenkins.api_token.is_some(), "apiToken", "is missing, and registerNodes needs it");
    }
}

fn cloud(cloud: &Cloud, faults: &mut Faults<'_>) {
    faults.unless(is_name(&cloud.name), "name", NAME);
    faults.unless(is_region(&cloud.region), "region", "has to be an AWS region, as eu-west-1");
    let cluster = cluster_name(&cloud.cluster);
    faults.unless(is_word(cluster, 255, "_-"), "cluster", "has to be a cluster's name or ARN");
    if let Some(role) = &cloud.assume_role_arn {
        let is_role = role.starts_with("arn:") && role.split_once(":role/").is_some_and(|(_, name)| is_filled(name));
        faults.unless(is_role, "assumeRoleArn", "has to be a role's ARN");
    }
    faults.unless(cloud.auto_scaling_group.as_deref().is_none_or(is_filled), "autoScalingGroup", "names nothing");
    faults.unless(
        cloud.idle_instance_timeout == Limit::NEVER
            || cloud.auto_scaling_group.is_some()
            || !faults.is_written("autoScalingGroup"),
        "idleInstanceTimeout",
        "needs autoScalingGroup: only its instances are ever terminated",
    );
    if let Some(size) = cloud.instance_capacity {
        faults.unless(size.cpu > 0, "instanceCapacity.cpu", POSITIVE);
        faults.unless(size.memory > 0, "instanceCapacity.memory", POSITIVE);
    }
    faults.unless(cloud.max_agents != Some(0), "maxAgents", POSITIVE);
    faults.unless(!cloud.templates.is_empty(), "templates", "has to have at least one template");
}

fn template(template: &Template, nodes: Option<bool>, faults: &mut Faults<'_>) {
    faults.unless(is_name(&template.name), "name", NAME);
    faults.unless(!template.labels.0.is_empty(), "labels", "has to have at least one label");
    for label in template.labels.0.iter().filter(|label| !is_label(label)) {
        faults.add(
            "labels",
            format!("{label:?} cannot be a label: it is empty, or holds a quote, backslash or control character"),
        );
    }
    faults.unless(
        is_task_definition(&template.task_definition),
        "taskDefinition",
        "has to be a task definition's ARN, family:revision or family",
    );
    faults.unless(template.container.as_deref().is_none_or(is_filled), "container", "names nothing");
    faults.unless(is_filled(&template.workspace), "workspace", "names nothing");
    faults.unless(template.executors > 0, "executors", POSITIVE);
    faults.unless((1..=10).contains(&template.agents_per_request), "agentsPerRequest", "has to be 1 to 10");
    faults.unless(template.max_agents != Some(0), "maxAgents", POSITIVE);
    faults.unless(template.limits.cpu != Some(0), "limits.cpu", POSITIVE);
    faults.unless(template.limits.memory != Some(0), "limits.memory", POSITIVE);
    faults.unless(
        nodes != Some(false) || template.idle_timeout.is_none_or(|limit| limit == Limit::NEVER),
        "idleTimeout",
        "needs jenkins.registerNodes: only Jenkins knows whether an agent is idle",
    );
    if faults.is_written("connect") {
        connect(template, nodes, faults);
    }
    launch(&template.launch, &mut faults.at("launch"));
    if faults.is_written("launch") {
        match template.on_fargate() {
            true => fargate(template, faults),
            false => instances(template, faults),
        }
    }
    if let Some(network) = &template.network {
        self::network(network, &mut faults.at("network"));
    }
    placement(template, faults);
    environment(template, faults);
    tags(template, faults);
}

fn connect(template: &Template, nodes: Option<bool>, faults: &mut Faults<'_>) {
    let ssh = &template.ssh;
    match template.connect {
        Connect::Inbound => faults.unless(
            nodes != Some(false),
            "connect",
            "inbound needs jenkins.registerNodes with user and apiToken: the agent's secret is that of its node",
        ),
        Connect::Ssh => {
            faults.unless(ssh.credentials_id.as_deref().is_none_or(is_filled), "ssh.credentialsId", "names nothing");
            faults.unless(ssh.port > 0, "ssh.port", POSITIVE);
            faults.unless(ssh.launch_timeout != Limit::NEVER, "ssh.launchTimeout", "cannot be never");
            faults.unless(ssh.retry_wait != Limit::NEVER, "ssh.retryWait", "cannot be never");
        }
    }
}

/// As API_RunTask and API_CapacityProviderStrategyItem have it.
fn launch(launch: &Launch, faults: &mut Faults<'_>) {
    let providers = &launch.capacity_providers;
    faults.unless(launch.kind.is_none() || providers.is_empty(), "type", "and capacityProviders exclude each other");
    for (index, provider) in providers.iter().enumerate() {
        let mut faults = faults.at(&format!("capacityProviders[{index}]"));
        faults.unless(is_word(&provider.name, 255, "_-"), "name", "has to be a capacity provider's name");
        faults.unless((0..=1000).contains(&provider.weight), "weight", "has to be 0 to 1000");
        faults.unless((0..=100_000).contains(&provider.base), "base", "has to be 0 to 100000");
    }
    let field = "capacityProviders";
    faults.unless(providers.len() <= 20, field, "may have 20 at most");
    if !faults.is_written(field) {
        return;
    }
    let with_weight = providers.iter().filter(|provider| provider.weight > 0).count();
    let with_base = providers.iter().filter(|provider| provider.base > 0).count();
    let of_fargate = providers.iter().filter(|provider| provider.is_fargate()).count();
    faults.unless(with_weight > 0 || providers.is_empty(), field, "has to have one weight above 0");
    faults.unless(with_base <= 1, field, "may have one base above 0 only");
    faults.unless(of_fargate == 0 || of_fargate == providers.len(), field, "cannot mix Fargate's with others");
}

fn fargate(template: &Template, faults: &mut Faults<'_>) {
    faults.unless(template.network.is_some(), "network", "is missing, and Fargate needs its subnets");
    faults.unless(template.placement_strategy.is_empty(), "placementStrategy", "is not for Fargate");
    faults.unless(template.placement_constraints.is_empty(), "placementConstraints", "is not for Fargate");
}

fn instances(template: &Template, faults: &mut Faults<'_>) {
    let public = template.network.as_ref().is_some_and(|network| network.assign_public_ip);
    faults.unless(!public, "network.assignPublicIp", "is for Fargate only");
    faults.unless(!template.is_external() || template.network.is_none(), "network", "is not for external instances");
    // The default may be written down anywhere.
    let version = template.platform_version.as_deref();
    faults.unless(version.is_none_or(|version| version == "LATEST"), "platformVersion", "is for Fargate only");
}

/// As API_AwsVpcConfiguration has it.
fn network(network: &Network, faults: &mut Faults<'_>) {
    faults.unless((1..=16).contains(&network.subnets.len()), "subnets", "has to have 1 to 16 subnets");
    faults.unless(network.subnets.iter().all(|id| is_word(id, 64, "-")), "subnets", "has to have ids, as subnet-1");
    faults.unless(network.security_groups.len() <= 5, "securityGroups", "may have 5 at most");
    let groups_are_ids = network.security_groups.iter().all(|id| is_word(id, 64, "-"));
    faults.unless(groups_are_ids, "securityGroups", "has to have ids, as sg-1");
}

/// As API_RunTask, API_PlacementStrategy and API_PlacementConstraint have it.
fn placement(template: &Template, faults: &mut Faults<'_>) {
    faults.unless(template.placement_strategy.len() <= 5, "placementStrategy", "may have 5 at most");
    for (index, strategy) in template.placement_strategy.iter().enumerate() {
        let mut faults = faults.at(&format!("placementStrategy[{index}]"));
        let (holds, message) = match (strategy.kind, strategy.field.as_deref()) {
            (PlacementStrategyType::Random, field) => (field.is_none(), "does not go with random"),
            (PlacementStrategyType::Binpack, field) => {
                let binpack = field.map(str::to_ascii_lowercase);
                (matches!(binpack.as_deref(), Some("cpu" | "memory")), "has to be cpu or memory for binpack")
            }
            (PlacementStrategyType::Spread, field) => {
                (field.is_some_and(is_filled), "is missing: spread goes by instanceId or by an attribute:NAME")
            }
        };
        faults.unless(holds || !faults.is_written("type"), "field", message);
    }
    faults.unless(template.placement_constraints.len() <= 10, "placementConstraints", "may have 10 at most");
    for (index, constraint) in template.placement_constraints.iter().enumerate() {
        let mut faults = faults.at(&format!("placementConstraints[{index}]"));
        let wanted = constraint.kind == PlacementConstraintType::MemberOf;
        let holds = constraint.expression.as_deref().is_some_and(is_filled) == wanted;
        faults.unless(holds || !faults.is_written("type"), "expression", "goes with memberOf, and only with it");
    }
}

fn environment(template: &Template, faults: &mut Faults<'_>) {
    let connect = faults.is_written("connect").then_some(template.connect);
    for name in template.environment.keys() {
        let field = join("environment", name);
        faults.unless(is_filled(name) && !name.contains('='), &field, "cannot be a variable's name");
        let is_ours = name == Record::VARIABLE || connect.is_some_and(|connect| is_reserved_variable(name, connect));
        faults.unless(!is_ours, &field, "is set by the launch itself");
    }
}

/// What every `inbound` agent's container is given, as the official inbound-agent image reads it: the controller's URL,
/// the node's name and secret, the working directory, and whether to use WebSocket.
pub const INBOUND_VARIABLES: [&str; 5] =
    ["JENKINS_URL", "JENKINS_AGENT_NAME", "JENKINS_SECRET", "JENKINS_AGENT_WORKDIR", "JENKINS_WEB_SOCKET"];

/// Whether the launch itself sets this variable, so that nobody else may.
pub fn is_reserved_variable(name: &str, connect: Connect) -> bool {
    name == Record::VARIABLE || (connect == Connect::Inbound && INBOUND_VARIABLES.contains(&name))
}

/// ECS takes 50 tags of a resource; the rest is ours.
const MOST_TAGS: usize = 40;

/// As API_Tag has it.
fn tags(template: &Template, faults: &mut Faults<'_>) {
    faults.unless(template.tags.len() <= MOST_TAGS, "tags", format!("may have {MOST_TAGS} at most"));
    for (key, value) in &template.tags {
        let field = join("tags", key);
        for reserved in ["aws:", "jenkins-ecs-agents:"] {
            let is_reserved = key.to_ascii_lowercase().starts_with(reserved);
            faults.unless(!is_reserved, &field, format!("may not begin with {reserved}"));
        }
        faults.unless((1..=128).contains(&key.chars().count()), &field, "has to have 1 to 128 characters");
        faults.unless(value.chars().count() <= 256, &field, "may have a value of 256 characters at most");
        let message = "may hold letters, digits, spaces and + - = . _ : / @ only";
        faults.unless(is_tag_text(key, usize::MAX) && is_tag_text(value, usize::MAX), &field, message);
    }
}

fn is_tag_text(text: &str, most: usize) -> bool {
    text.chars().count() <= most && text.chars().all(|c| c.is_alphanumeric() || " +-=._:/@".contains(c))
}

const POSITIVE: &str = "has to be above 0";
const NAME: &str = "has to be 1 to 64 of A-Z a-z 0-9 _ -";

fn is_name(text: &str) -> bool {
    is_word(text, 64, "_-")
}

/// 1 to `most` ASCII letters, digits and what else is allowed.
pub(super) fn is_word(text: &str, most: usize, others: &str) -> bool {
    (1..=most).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn is_filled(text: &str) -> bool {
    !text.trim().is_empty()
}

/// Whether the text can be a label: in the node's list of them, which Jenkins splits with `QuotedStringTokenizer`
/// (`Label.parse`), and in an expression it may have to stand in quotes.
fn is_label(text: &str) -> bool {
    is_filled(text) && text.trim() == text && !text.chars().any(|c| c.is_control() || c == '"' || c == '\\')
}

fn is_region(text: &str) -> bool {
    let (words, number) = text.rsplit_once('-').unwrap_or_default();
    let is_letters = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    words.contains('-')
        && words.split('-').all(is_letters)
        && (1..=2).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn cluster_name(cluster: &str) -> &str {
    match cluster.split_once(":cluster/") {
        Some((arn, name)) if arn.starts_with("arn:") => name,
        _ => cluster,
    }
}

/// API_RegisterTaskDefinition: a family has up to 255 letters, digits, underscores and hyphens.
fn is_task_definition(text: &str) -> bool {
    let (family, revision) = match text.split_once(":task-definition/") {
        Some((arn, name)) if arn.starts_with("arn:") && name.contains(':') => name.split_once(':').unwrap_or_default(),
        Some(_) => return false,
        None => text.split_once(':').unwrap_or((text, "1")),
    };
    is_word(family, 255, "_-") && revision.parse::<u32>().is_ok_and(|revision| revision > 0)
}

#[cfg(test)]
mod tests {
    use crate::config::load::from_yaml;

    /// With one cloud of one template, to each of which fields are added.
    fn faults(jenkins: &str, cloud: &str, template: &str) -> Vec<String> {
        // Merge keys let the fields take the place of the defaults.
        let template = format!("{{<<: {{name: t, labels: [l], taskDefinition: d}}, {template}}}");
        let cloud = format!("{{<<: {{name: c, region: eu-west-1}}, templates: [{template}], {cloud}}}");
        let yaml = format!("jenkins: {{{jenkins}}}\nclouds: [{cloud}]");
        from_yaml(&yaml).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    const URL: &str = "url: https://ci.example.com/jenkins/";
    const NODES: &str = "url: https://ci.example.com/jenkins/, user: u, apiToken: {env: T}";

    #[test]
    fn each_rule_is_held() {
        let a65 = "a".repeat(65);
        let subnets = vec!["subnet-1"; 17].join(", ");
        let tags: String = (0..41).map(|tag| format!("t{tag}: x, ")).collect();
        let providers = vec!["{name: p}"; 21].join(", ");
        let cases: &[(&str, &str, &str, &str)] = &[
            // Jenkins.
            ("url: ftp://ci.example.com/", "", "connect: ssh", "jenkins.url: has to be an http"),
            ("url: 'https://u:hunter2@ci.example.com/'", "", "connect: ssh", "jenkins.url: may hold no user info"),
            ("url: 'https://ci.example.com/~jenkins/'", "", "connect: ssh", "jenkins.url: is a tag of every task"),
            ("url: 'https://ci.example.com/?a=b'", "", "connect: ssh", "jenkins.url: may have no query"),
            ("url: ci.example.com", "", "connect: ssh", "jenkins.url: has to be an absolute URL"),
            (
                "url: https://a.example.com/, webhook: {url: 'https://b.example.com/'}",
                "",
                "connect: ssh",
                "jenkins.webhook.url: ",
            ),
            ("url: https://a/x/, webhook: {url: 'https://a/y'}", "", "connect: ssh", "jenkins.webhook.url: "),
            (
                "url: https://a/, registerNodes: true, apiToken: {env: T}",
                "",
                "connect: ssh, ssh: {credentialsId: c}",
                "jenkins.user: is missing",
            ),
            (
                "url: https://a/, registerNodes: true, user: u",
                "",
                "connect: ssh, ssh: {credentialsId: c}",
                "jenkins.apiToken: is missing",
            ),
            ("url: https://a/, user: 'a:b'", "", "connect: ssh", "jenkins.user: has to be"),
            ("url: https://a/, caCertificate: {file: ' '}", "", "connect: ssh", "jenkins.caCertificate: names nothing"),
            (
                "url: https://a/, webhook: {authorization: {ssm: ''}}",
                "",
                "connect: ssh",
                "jenkins.webhook.authorization: names nothing",
            ),
            // The cloud.
            (URL, "region: europe", "connect: ssh", "clouds[0].region: "),
            (URL, "cluster: 'a b'", "connect: ssh", "clouds[0].cluster: "),
            (URL, "assumeRoleArn: admin", "connect: ssh", "clouds[0].assumeRoleArn: "),
            (URL, "autoScalingGroup: ''", "connect: ssh", "clouds[0].autoScalingGroup: "),
            (URL, "idleInstanceTimeout: 10m", "connect: ssh", "clouds[0].idleInstanceTimeout: needs autoScalingGroup"),
            (URL, "idleInstanceTimeout: 0s", "connect: ssh", "clouds[0].idleInstanceTimeout: \"0s\""),
            (URL, "instanceCapacity: {cpu: 0, memory: 1}", "connect: ssh", "clouds[0].instanceCapacity.cpu: "),
            (URL, "instanceCapacity: {cpu: 1, memory: 0}", "connect: ssh", "clouds[0].instanceCapacity.memory: "),
            (URL, "maxAgents: 0", "connect: ssh", "clouds[0].maxAgents: "),
            (URL, "maxAgents: -1", "connect: ssh", "clouds[0].maxAgents: "),
            // The template.
            (URL, "", &format!("connect: ssh, name: {a65}"), "clouds[0].templates[0].name: "),
            (URL, "", "connect: ssh, name: 'a.b'", "clouds[0].templates[0].name: "),
            (URL, "", "connect: ssh, labels: []", "clouds[0].templates[0].labels: has to have"),
            (URL, "", "connect: ssh, labels: ['']", "clouds[0].templates[0].labels: \"\""),
            (URL, "", "connect: ssh, labels: [' a']", "clouds[0].templates[0].labels: \" a\""),
            (URL, "", "connect: ssh, labels: ['a\\b']", "clouds[0].templates[0].labels: "),
            (URL, "", "connect: ssh, taskDefinition: 'a:b'", "clouds[0].templates[0].taskDefinition: "),
            (URL, "", "connect: ssh, taskDefinition: 'a:0'", "clouds[0].templates[0].taskDefinition: "),
            (
                URL,
                "",
                "connect: ssh, taskDefinition: 'arn:aws:ecs:eu-west-1:1:task-definition/a'",
                "clouds[0].templates[0].taskDefinition: ",
            ),
            (URL, "", "connect: ssh, container: ''", "clouds[0].templates[0].container: "),
            (URL, "", "connect: ssh, workspace: ''", "clouds[0].templates[0].workspace: "),
            (URL, "", "connect: ssh, executors: 0", "clouds[0].templates[0].executors: "),
            (URL, "", "connect: ssh, agentsPerRequest: 0", "clouds[0].templates[0].agentsPerRequest: "),
            (URL, "", "connect: ssh, agentsPerRequest: 11", "clouds[0].templates[0].agentsPerRequest: "),
            (URL, "", "connect: ssh, maxAgents: 0", "clouds[0].templates[0].maxAgents: "),
            (URL, "", "connect: ssh, limits: {cpu: 0}", "clouds[0].templates[0].limits.cpu: "),
            (URL, "", "connect: ssh, limits: {memory: 0}", "clouds[0].templates[0].limits.memory: "),
            (URL, "", "connect: ssh, maxLifetime: -1h", "clouds[0].templates[0].maxLifetime: "),
            (
                URL,
                "",
                "connect: ssh, idleTimeout: 10m",
                "clouds[0].templates[0].idleTimeout: needs jenkins.registerNodes",
            ),
            (URL, "", "connect: inbound", "clouds[0].templates[0].connect: inbound needs jenkins.registerNodes"),
            (
                NODES,
                "",
                "connect: ssh, ssh: {credentialsId: ''}",
                "clouds[0].templates[0].ssh.credentialsId: names nothing",
            ),
            (URL, "", "connect: ssh, ssh: {port: 0}", "clouds[0].templates[0].ssh.port: "),
            (URL, "", "connect: ssh, ssh: {port: 65536}", "clouds[0].templates[0].ssh.port: "),
            (URL, "", "connect: ssh, ssh: {launchTimeout: never}", "clouds[0].templates[0].ssh.launchTimeout: "),
            (URL, "", "connect: ssh, ssh: {retryWait: never}", "clouds[0].templates[0].ssh.retryWait: "),
            // What it runs on.
            (
                URL,
                "",
                "connect: ssh, launch: {type: ec2, capacityProviders: [{name: p}]}",
                "clouds[0].templates[0].launch.type: ",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: p, weight: 1001}]}",
                "clouds[0].templates[0].launch.capacityProviders[0].weight: ",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: p, base: -1}]}",
                "clouds[0].templates[0].launch.capacityProviders[0].base: ",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: p, weight: 0}]}",
                "clouds[0].templates[0].launch.capacityProviders: has to have",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: p, base: 1}, {name: q, base: 1}]}",
                "clouds[0].templates[0].launch.capacityProviders: may have one base",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: p}, {name: FARGATE}]}",
                "clouds[0].templates[0].launch.capacityProviders: cannot mix",
            ),
            (
                URL,
                "",
                &format!("connect: ssh, launch: {{capacityProviders: [{providers}]}}"),
                "clouds[0].templates[0].launch.capacityProviders: may have 20",
            ),
            (URL, "", "connect: ssh, launch: {type: fargate}", "clouds[0].templates[0].network: is missing"),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: FARGATE_SPOT}]}",
                "clouds[0].templates[0].network: is missing",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {type: external}, network: {subnets: [subnet-1]}",
                "clouds[0].templates[0].network: is not for external",
            ),
            (URL, "", "connect: ssh, network: {subnets: []}", "clouds[0].templates[0].network.subnets: "),
            (
                URL,
                "",
                &format!("connect: ssh, network: {{subnets: [{subnets}]}}"),
                "clouds[0].templates[0].network.subnets: ",
            ),
            (URL, "", "connect: ssh, network: {subnets: ['']}", "clouds[0].templates[0].network.subnets: "),
            (
                URL,
                "",
                "connect: ssh, network: {subnets: [s], securityGroups: [a, b, c, d, e, f]}",
                "clouds[0].templates[0].network.securityGroups: ",
            ),
            (
                URL,
                "",
                "connect: ssh, network: {subnets: [s], assignPublicIp: true}",
                "clouds[0].templates[0].network.assignPublicIp: ",
            ),
            (URL, "", "connect: ssh, platformVersion: 1.4.0", "clouds[0].templates[0].platformVersion: "),
            (
                URL,
                "",
                "connect: ssh, launch: {type: fargate}, network: {subnets: [s]}, placementStrategy: [{type: random}]",
                "clouds[0].templates[0].placementStrategy: ",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {type: fargate}, network: {subnets: [s]}, placementConstraints: [{type: distinctInstance}]",
                "clouds[0].templates[0].placementConstraints: ",
            ),
            (
                URL,
                "",
                "connect: ssh, placementStrategy: [{type: random, field: cpu}]",
                "clouds[0].templates[0].placementStrategy[0].field: ",
            ),
            (
                URL,
                "",
                "connect: ssh, placementStrategy: [{type: binpack}]",
                "clouds[0].templates[0].placementStrategy[0].field: ",
            ),
            (
                URL,
                "",
                "connect: ssh, placementStrategy: [{type: spread}]",
                "clouds[0].templates[0].placementStrategy[0].field: ",
            ),
            (
                URL,
                "",
                "connect: ssh, placementConstraints: [{type: memberOf}]",
                "clouds[0].templates[0].placementConstraints[0].expression: ",
            ),
            (
                URL,
                "",
                "connect: ssh, placementConstraints: [{type: distinctInstance, expression: x}]",
                "clouds[0].templates[0].placementConstraints[0].expression: ",
            ),
            // What it is given.
            (
                URL,
                "",
                "connect: ssh, environment: {JENKINS_ECS_AGENTS_REQUEST: x}",
                "clouds[0].templates[0].environment.JENKINS_ECS_AGENTS_REQUEST: ",
            ),
            (
                NODES,
                "",
                "connect: inbound, environment: {JENKINS_SECRET: x}",
                "clouds[0].templates[0].environment.JENKINS_SECRET: ",
            ),
            (URL, "", "connect: ssh, environment: {A=B: x}", "clouds[0].templates[0].environment.A=B: "),
            (URL, "", "connect: ssh, tags: {'AWS:x': y}", "clouds[0].templates[0].tags.AWS:x: "),
            (
                URL,
                "",
                "connect: ssh, tags: {'jenkins-ecs-agents:x': y}",
                "clouds[0].templates[0].tags.jenkins-ecs-agents:x: ",
            ),
            (URL, "", "connect: ssh, tags: {a: 'b;c'}", "clouds[0].templates[0].tags.a: "),
            (URL, "", &format!("connect: ssh, tags: {{{tags}}}"), "clouds[0].templates[0].tags: may have 40"),
        ];
        for (jenkins, cloud, template, fault) in cases {
            let found = faults(jenkins, cloud, template);
            assert!(
                matches!(found.as_slice(), [one] if one.starts_with(fault) && !one.contains("hunter2")),
                "{jenkins} / {cloud} / {template}: {found:#?}"
            );
        }
    }

    #[test]
    fn what_goes_together_is_taken() {
        for (jenkins, cloud, template) in [
            (URL, "", "connect: ssh"),
            (URL, "", "connect: ssh, environment: {JENKINS_URL: x, A: y}, idleTimeout: never, platformVersion: LATEST"),
            (NODES, "", "connect: inbound, ssh: {port: 22}, idleTimeout: 10m"),
            (NODES, "", "connect: ssh, ssh: {credentialsId: key, hostKeyVerification: {key: ssh-ed25519 AAAA}}"),
            (
                "url: 'https://ci.example.com:8443/x', webhook: {url: 'https://ci.example.com:8443/x/hook'}",
                "",
                "connect: ssh",
            ),
            (
                URL,
                "idleInstanceTimeout: 10m, autoScalingGroup: g, cluster: 'arn:aws:ecs:eu-west-1:1:cluster/c'",
                "connect: ssh",
            ),
            (URL, "assumeRoleArn: 'arn:aws-us-gov:iam::1:role/path/x'", "connect: ssh, launch: {type: external}"),
            (
                URL,
                "",
                "connect: ssh, launch: {type: fargate}, platformVersion: 1.4.0, network: {subnets: [s], assignPublicIp: true}",
            ),
            (
                URL,
                "",
                "connect: ssh, launch: {capacityProviders: [{name: FARGATE_SPOT, weight: 4}, {name: FARGATE, base: 1}]}, network: {subnets: [s]}",
            ),
            (
                URL,
                "",
                "connect: ssh, placementStrategy: [{type: spread, field: 'attribute:ecs.availability-zone'}, {type: binpack, field: MEMORY}]",
            ),
            (URL, "", "connect: ssh, tags: {'größe': 'a b+c-d=e.f_g:h/i@j'}"),
        ] {
            assert_eq!(faults(jenkins, cloud, template), Vec::<String>::new(), "{jenkins} / {cloud} / {template}");
        }
    }

    #[test]
    fn regions_and_task_definitions_have_their_shapes() {
        for region in ["eu-west-1", "us-gov-west-1", "us-iso-east-1", "eusc-de-east-1", "ap-southeast-5"] {
            assert!(super::is_region(region), "{region}");
        }
        for region in ["", "eu", "eu-west", "eu-1", "EU-west-1", "eu--west-1", "eu-west-1a", "eu-west-"] {
            assert!(!super::is_region(region), "{region}");
        }
        for definition in ["a", "a:7", "a_b-C", "arn:aws:ecs:eu-west-1:123456789012:task-definition/a:7"] {
            assert!(super::is_task_definition(definition), "{definition}");
        }
        for definition in ["", "a b", "a:", ":7", "a:x", "a:1:2", "task-definition/a:7", "x:task-definition/a:7"] {
            assert!(!super::is_task_definition(definition), "{definition}");
        }
    }

    #[test]
    fn names_are_unique_where_agents_could_be_mixed_up() {
        let cloud = |name: &str, rest: &str, template: &str| {
            let template = format!("{{name: {template}, labels: [l], taskDefinition: d, connect: ssh}}");
            format!(
                "{{name: {name}, {rest}, templates: [{template}, {{name: x{name}, labels: [l], taskDefinition: d, connect: ssh}}]}}"
            )
        };
        let found = |clouds: &[String]| {
            let yaml = format!("jenkins: {{url: https://a/}}\nclouds: [{}]", clouds.join(", "));
            let errors = from_yaml(&yaml).err().unwrap_or_default();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let arn = "region: eu-west-1, cluster: 'arn:aws:ecs:eu-west-1:1:cluster/default'";
        assert_eq!(
            found(&[cloud("a", "region: eu-west-1", "t"), cloud("b", arn, "t"), cloud("a", "region: eu-west-2", "xa")]),
            [
                "clouds[1].templates[0].name: \"t\" is the name of clouds[0].templates[0] too, in the same cluster",
                "clouds[2].name: \"a\" is the name of clouds[0] too",
                "clouds[2].templates[1].name: \"xa\" is the name of clouds[2].templates[0] too, in the same cluster",
            ]
        );
        let apart = [
            cloud("a", "region: eu-west-1", "t"),
            cloud("b", "region: eu-west-2", "t"),
            cloud("c", "region: eu-west-1, cluster: other", "t"),
            cloud("d", "region: eu-west-1, assumeRoleArn: 'arn:aws:iam::1:role/x'", "t"),
        ];
        assert_eq!(found(&apart), Vec::<String>::new());
    }

    #[test]
    fn a_guess_is_held_against_nobody() {
        for (jenkins, cloud, template, fault) in [
            (
                "url: https://a/, user: u, apiToken: hunter2",
                "",
                "connect: inbound, idleTimeout: 5m",
                "jenkins.apiToken: ",
            ),
            ("url: [], webhook: {url: 'https://b/'}", "", "connect: ssh", "jenkins.url: "),
            (NODES, "", "connect: telnet, environment: {JENKINS_URL: x}", "clouds[0].templates[0].connect: "),
            (NODES, "", "environment: {JENKINS_URL: x}", "clouds[0].templates[0].connect: is missing"),
            (
                URL,
                "",
                "connect: ssh, launch: {type: fargat}, network: {subnets: [s], assignPublicIp: true}",
                "clouds[0].templates[0].launch.type: ",
            ),
            (URL, "idleInstanceTimeout: 5m, autoScalingGroup: []", "connect: ssh", "clouds[0].autoScalingGroup: "),
            (
                URL,
                "",
                "connect: ssh, placementStrategy: [{typ: spread, field: x}]",
                "clouds[0].templates[0].placementStrategy[0].typ",
            ),
        ] {
            let found = faults(jenkins, cloud, template);
            assert!(found.iter().any(|one| one.starts_with(fault)), "{found:#?}");
            assert!(found.iter().all(|one| one.contains(".typ") || one.starts_with(fault)), "{found:#?}");
            assert!(!found.concat().contains("hunter2"));
        }
    }
}
