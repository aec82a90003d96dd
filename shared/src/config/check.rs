//! What a configuration has to hold beyond its form.

use std::collections::BTreeMap;

use super::load::{ConfigError, Guessed};
use super::task_definition::is_task_definition;
use super::yaml::join;
use super::{
    Cloud, Config, Connect, EPHEMERAL_STORAGE, HostKeyVerification, Jenkins, Launch, LaunchType, Limit, Network,
    Override, PlacementConstraintType, PlacementStrategyType, RootUrl, Template, variables,
};
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
    let is_plain = plain_url(&jenkins.url, "url", faults);
    let message = "is a tag of every task: it may hold letters, digits and + - = . _ : / @ only, 256 at most";
    faults.unless(!is_plain || is_tag_text(jenkins.url.as_written(), 256), "url", message);
    if let (Some(webhook), true) = (&jenkins.webhook.url, faults.is_written("url"))
        && let Err(reason) = Origin::new((*jenkins.url).clone()).allows(webhook.as_written())
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

/// An http or https URL without user info, query and fragment.
fn plain_url(url: &RootUrl, field: &str, faults: &mut Faults<'_>) -> bool {
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    faults.unless(is_web, field, "has to be an http or https URL with a host");
    let has_user_info = !url.username().is_empty() || url.password().is_some();
    faults.unless(!has_user_info, field, "may hold no user info; that is what user and apiToken are for");
    let has_more = url.query().is_some() || url.fragment().is_some();
    faults.unless(!has_more, field, "may have no query and no fragment");
    is_web && !has_user_info && !has_more
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
    if cloud.auto_scaling_group.is_none() && faults.is_written("autoScalingGroup") {
        for (field, limit, why) in [
            ("idleInstanceTimeout", Some(cloud.idle_instance_timeout), "only its instances are ever terminated"),
            ("instanceRegistrationTimeout", cloud.instance_registration_timeout, "only its instances are waited for"),
        ] {
            let is_off = limit.is_none_or(|limit| limit == Limit::NEVER);
            faults.unless(is_off, field, format!("needs autoScalingGroup: {why}"));
        }
    }
    if let Some(url) = &cloud.agent_url {
        plain_url(url, "agentUrl", faults);
    }
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
    overrides(template, faults);
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
        suits_launch(template, faults);
    }
    if let Some(network) = &template.network {
        self::network(network, &mut faults.at("network"));
    }
    placement(template, faults);
    environment(template, faults);
    tags(template, faults);
}

fn overrides(template: &Template, faults: &mut Faults<'_>) {
    let storage = template.limits.ephemeral_storage;
    let message = "has to be 21 to 200";
    faults.unless(storage.is_none_or(|gib| EPHEMERAL_STORAGE.contains(&gib)), "limits.ephemeralStorage", message);
    let allows = |kind| template.allowed_overrides.contains(&kind);
    let may_be_fargate = template.may_be_on_fargate() || !faults.is_written("launch");
    let refused = allows(Override::EphemeralStorage) && !may_be_fargate;
    faults.unless(!refused, "allowedOverrides", "may have ephemeralStorage on Fargate only");
    let names_some = !template.allowed_task_definitions.is_empty() || !allows(Override::TaskDefinition);
    let message = "is missing or empty, and the override taskDefinition needs it";
    faults.unless(names_some, "allowedTaskDefinitions", message);
}

fn connect(template: &Template, nodes: Option<bool>, faults: &mut Faults<'_>) {
    let ssh = &template.ssh;
    match template.connect {
        Connect::Inbound => {
            let message =
                "inbound needs jenkins.registerNodes with user and apiToken: the agent's secret is that of its node";
            faults.unless(nodes != Some(false), "connect", message);
            // It goes unquoted into the image's command line.
            let has_space = template.workspace.contains(char::is_whitespace);
            let message = "may hold no white space with connect: inbound: the official image does not quote it";
            faults.unless(!has_space, "workspace", message);
        }
        Connect::Ssh => {
            faults.unless(ssh.credentials_id.as_deref().is_none_or(is_filled), "ssh.credentialsId", "names nothing");
            faults.unless(ssh.port > 0, "ssh.port", POSITIVE);
            faults.unless(ssh.launch_timeout != Limit::NEVER, "ssh.launchTimeout", "cannot be never");
            faults.unless(ssh.retry_wait != Limit::NEVER, "ssh.retryWait", "cannot be never");
            if let HostKeyVerification::Key(key) = &ssh.host_key_verification {
                let message = "has to be an SSH public key as ssh-keygen writes it: ssh-ed25519 AAAA…";
                faults.unless(is_public_key(key), "ssh.hostKeyVerification.key", message);
            }
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

/// What is only for Fargate, or only for instances. By a capacity provider or the cluster's default strategy it may be
/// either, and ECS says so.
fn suits_launch(template: &Template, faults: &mut Faults<'_>) {
    let message = "is missing, and Fargate needs its subnets";
    faults.unless(!template.on_fargate() || template.network.is_some(), "network", message);
    match template.launch.kind {
        _ if !template.launch.capacity_providers.is_empty() => {}
        Some(LaunchType::Default) => {}
        Some(LaunchType::Fargate) => {
            faults.unless(template.placement_strategy.is_empty(), "placementStrategy", "is not for Fargate");
            faults.unless(template.placement_constraints.is_empty(), "placementConstraints", "is not for Fargate");
        }
        None | Some(LaunchType::Ec2 | LaunchType::External) => {
            let public = template.network.as_ref().is_some_and(|network| network.assign_public_ip);
            faults.unless(!public, "network.assignPublicIp", "is for Fargate only");
            let message = "is not for external instances";
            faults.unless(!template.is_external() || template.network.is_none(), "network", message);
            // The default may be written down anywhere.
            let version = template.platform_version.as_deref();
            faults.unless(version.is_none_or(|it| it == "LATEST"), "platformVersion", "is for Fargate only");
        }
    }
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
    for name in template.environment.keys() {
        let field = join("environment", name);
        faults.unless(is_filled(name) && !name.contains('='), &field, "cannot be a variable's name");
        faults.unless(!variables::is_reserved(name), &field, "is decided by the launch itself");
    }
}

pub use super::variables::INBOUND_VARIABLES;

/// Whether the launch itself decides this variable.
pub fn is_reserved_variable(name: &str, _: Connect) -> bool {
    variables::is_reserved(name)
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
    is_filled(text) && text.trim() == text && !text.chars().any(|c| c.is_control() || "\"'\\".contains(c))
}

/// What regions of each partition begin with: `regionRegex` of the SDKs' partitions.
const PARTITIONS: [&str; 16] = [
    "us", "eu", "ap", "sa", "ca", "me", "af", "il", "mx", "cn", "us-gov", "us-iso", "us-isob", "us-isof", "eu-isoe",
    "eusc-de",
];

fn is_region(text: &str) -> bool {
    let (words, number) = text.rsplit_once('-').unwrap_or_default();
    let (partition, place) = words.rsplit_once('-').unwrap_or_default();
    PARTITIONS.contains(&partition)
        && !place.is_empty()
        && place.bytes().all(|byte| byte.is_ascii_lowercase())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// An SSH public key of a type that Jenkins' SSH client knows: the type, and the same type with the key's numbers in
/// base64 (RFC 4253, section 6.6). A comment may follow.
fn is_public_key(text: &str) -> bool {
    const TYPES: [&str; 6] =
        ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa", "ssh-dss"];
    let mut words = text.split(' ');
    let (Some(kind), Some(encoded)) = (words.next(), words.next()) else { return false };
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).unwrap_or_default();
    let mut fields = Vec::new();
    let mut rest = decoded.as_slice();
    while let Some((length, more)) = rest.split_first_chunk() {
        let Some((field, more)) = more.split_at_checked(u32::from_be_bytes(*length) as usize) else { return false };
        fields.push(field);
        rest = more;
    }
    let numbers = match kind {
        "ssh-ed25519" => 1,
        "ssh-dss" => 4,
        _ => 2,
    };
    let is_one_line = !text.contains(char::is_control);
    is_one_line
        && TYPES.contains(&kind)
        && rest.is_empty()
        && fields.len() == 1 + numbers
        && fields[0] == kind.as_bytes()
}

fn cluster_name(cluster: &str) -> &str {
    match cluster.split_once(":cluster/") {
        Some((arn, name)) if arn.starts_with("arn:") => name,
        _ => cluster,
    }
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
            (
                URL,
                "instanceRegistrationTimeout: 5m",
                "connect: ssh",
                "clouds[0].instanceRegistrationTimeout: needs auto",
            ),
            (URL, "agentUrl: 'ftp://a/'", "connect: ssh", "clouds[0].agentUrl: has to be an http"),
            (URL, "agentUrl: 'https://u:hunter2@a/'", "connect: ssh", "clouds[0].agentUrl: may hold no user info"),
            (URL, "agentUrl: 'https://a/?b'", "connect: ssh", "clouds[0].agentUrl: may have no query"),
            (URL, "agentUrl: 'https://a/#b'", "connect: ssh", "clouds[0].agentUrl: may have no query"),
            (URL, "region: mars-north-1", "connect: ssh", "clouds[0].region: "),
            (URL, "maxAgents: -1", "connect: ssh", "clouds[0].maxAgents: "),
            // The template.
            (URL, "", &format!("connect: ssh, name: {a65}"), "clouds[0].templates[0].name: "),
            (URL, "", "connect: ssh, name: 'a.b'", "clouds[0].templates[0].name: "),
            (URL, "", "connect: ssh, labels: []", "clouds[0].templates[0].labels: has to have"),
            (URL, "", "connect: ssh, labels: ['']", "clouds[0].templates[0].labels: \"\""),
            (URL, "", "connect: ssh, labels: [' a']", "clouds[0].templates[0].labels: \" a\""),
            (URL, "", "connect: ssh, labels: ['a\\b']", "clouds[0].templates[0].labels: "),
            (URL, "", "connect: ssh, labels: [\"it's\"]", "clouds[0].templates[0].labels: "),
            (
                NODES,
                "",
                "connect: inbound, workspace: /home/a b",
                "clouds[0].templates[0].workspace: may hold no white",
            ),
            (
                URL,
                "",
                "connect: ssh, ssh: {hostKeyVerification: {key: ssh-ed25519 AAAA}}",
                "clouds[0].templates[0].ssh.hostKeyVerification.key: has to be",
            ),
            (
                URL,
                "",
                "connect: ssh, limits: {ephemeralStorage: 20}",
                "clouds[0].templates[0].limits.ephemeralStorage: ",
            ),
            (
                URL,
                "",
                "connect: ssh, limits: {ephemeralStorage: 201}",
                "clouds[0].templates[0].limits.ephemeralStorage: ",
            ),
            (
                URL,
                "",
                "connect: ssh, allowedOverrides: [ephemeralStorage]",
                "clouds[0].templates[0].allowedOverrides: may have ephemeralStorage on Fargate only",
            ),
            (
                URL,
                "",
                "connect: ssh, allowedOverrides: [taskDefinition]",
                "clouds[0].templates[0].allowedTaskDefinitions: is missing or empty",
            ),
            (
                URL,
                "",
                "connect: ssh, allowedOverrides: [taskDefinition], allowedTaskDefinitions: []",
                "clouds[0].templates[0].allowedTaskDefinitions: is missing or empty",
            ),
            (
                URL,
                "",
                "connect: ssh, allowedTaskDefinitions: ['a*b']",
                "clouds[0].templates[0].allowedTaskDefinitions[0]: has to be",
            ),
            (
                URL,
                "",
                "connect: ssh, environment: {JENKINS_TUNNEL: x}",
                "clouds[0].templates[0].environment.JENKINS_TUNNEL",
            ),
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
            (
                URL,
                "",
                "connect: ssh, environment: {REMOTING_OPTS: x, A: y}, idleTimeout: never, platformVersion: LATEST",
            ),
            (NODES, "", "connect: inbound, ssh: {port: 22}, idleTimeout: 10m"),
            (NODES, "", "connect: ssh, ssh: {credentialsId: key, hostKeyVerification: {key: KEY}}"),
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
            (
                URL,
                "autoScalingGroup: g, instanceRegistrationTimeout: 5m, agentUrl: 'http://jenkins:8080/x/'",
                "connect: ssh",
            ),
            (URL, "instanceRegistrationTimeout: never", "connect: ssh, workspace: a b"),
            (
                URL,
                "",
                "connect: ssh, launch: {type: default}, network: {subnets: [s], assignPublicIp: true}, platformVersion: 1.4.0, placementStrategy: [{type: random}], allowedOverrides: [ephemeralStorage]",
            ),
            (URL, "", "connect: ssh, launch: {capacityProviders: [{name: p}]}, platformVersion: 1.4.0"),
            (
                URL,
                "",
                "connect: ssh, launch: {type: fargate}, network: {subnets: [s]}, allowedOverrides: [ephemeralStorage, taskDefinition], allowedTaskDefinitions: [a, 'b-*'], limits: {ephemeralStorage: 200}",
            ),
            (URL, "", "connect: ssh, tags: {'größe': 'a b+c-d=e.f_g:h/i@j'}"),
        ] {
            let template = template.replace("KEY", KEY);
            assert_eq!(faults(jenkins, cloud, &template), Vec::<String>::new(), "{jenkins} / {cloud} / {template}");
        }
    }

    #[test]
    fn a_region_is_one_of_a_partition() {
        for region in [
            "eu-west-1",
            "us-gov-west-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eu-isoe-west-1",
            "us-isof-south-1",
            "eusc-de-east-1",
            "ap-southeast-5",
            "cn-northwest-1",
            "mx-central-1",
            "il-central-1",
        ] {
            assert!(super::is_region(region), "{region}");
        }
        for region in [
            "",
            "eu",
            "eu-west",
            "eu-1",
            "EU-west-1",
            "eu--west-1",
            "eu-west-1a",
            "eu-west-",
            "xx-west-1",
            "eu-west-west-1",
            "mars-north-1",
            "eusc-east-1",
            "us-isox-east-1",
        ] {
            assert!(!super::is_region(region), "{region}");
        }
    }

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

    #[test]
    fn a_host_key_is_an_ssh_public_key() {
        let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=";
        for key in [KEY, &format!("{KEY} root@agent"), ecdsa] {
            assert!(super::is_public_key(key), "{key}");
        }
        let swapped = KEY.replace("ssh-ed25519", "ssh-rsa");
        for key in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            "ssh-ed25519 AAAA",
            "SHA256:abcdef",
            &KEY[..60],
            &swapped,
            &KEY[12..],
            &format!("{KEY}\nmore"),
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(!super::is_public_key(key), "{key}");
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
            (NODES, "", "connect: telnet, workspace: a b", "clouds[0].templates[0].connect: "),
            (NODES, "", "workspace: a b", "clouds[0].templates[0].connect: is missing"),
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
