//! What a configuration has to hold beyond its form.

use std::collections::BTreeMap;

use super::load::ConfigError;
use super::{Cloud, Config, Connect, Jenkins, Launch, LaunchType, Limit, PlacementConstraintType, SecretRef, Template};
use crate::message::Record;
use crate::origin::Origin;

/// Collects faults under a path.
struct Faults<'a> {
    path: String,
    all: &'a mut Vec<ConfigError>,
}

impl Faults<'_> {
    fn at(&mut self, field: &str) -> Faults<'_> {
        let path = match (self.path.as_str(), field) {
            ("", field) => field.to_owned(),
            (path, field) if field.starts_with('[') => format!("{path}{field}"),
            (path, field) => format!("{path}.{field}"),
        };
        Faults { path, all: self.all }
    }

    fn add(&mut self, field: &str, message: impl Into<String>) {
        let path = self.at(field).path;
        self.all.push(ConfigError::new(path, message));
    }

    fn unless(&mut self, holds: bool, field: &str, message: impl Into<String>) {
        if !holds {
            self.add(field, message);
        }
    }
}

/// Everything that a configuration does not hold.
pub fn check(config: &Config, agent_name_prefix: &str) -> Vec<ConfigError> {
    let mut all = Vec::new();
    let mut faults = Faults { path: String::new(), all: &mut all };
    jenkins(&config.jenkins, &mut faults.at("jenkins"));
    if let Some(bus) = &config.event_bus {
        faults.unless(is_plain(bus), "eventBus", "has to be a bus' name or ARN");
    }
    faults.unless(!config.clouds.is_empty(), "clouds", "has to have at least one cloud");
    let mut clouds = BTreeMap::new();
    let mut templates = BTreeMap::new();
    for (index, one) in config.clouds.iter().enumerate() {
        let place = format!("clouds[{index}]");
        let mut faults = faults.at(&place);
        if let Some(first) = clouds.insert(one.name.as_str(), index) {
            faults.add("name", format!("{:?} is the name of clouds[{first}] too", one.name));
        }
        cloud(one, &config.jenkins, &mut faults);
        for (number, template) in one.templates.iter().enumerate() {
            let key = (&one.region, &one.cluster, &one.assume_role_arn, template.name.as_str());
            let here = format!("{place}.templates[{number}]");
            let mut faults = faults.at(&format!("templates[{number}]"));
            if let Some(first) = templates.insert(key, here) {
                faults.add("name", format!("{:?} is the name of {first} too, in the same cluster", template.name));
            }
            let length = agent_name_prefix.len() + template.name.len() + 13;
            faults.unless(length <= 128, "name", "is too long for ECS with the prefix: 128 characters in all");
            self::template(template, &config.jenkins, &mut faults);
        }
    }
    all
}

fn jenkins(jenkins: &Jenkins, faults: &mut Faults<'_>) {
    let url = &jenkins.url;
    faults.unless(
        matches!(url.scheme(), "http" | "https") && url.has_host(),
        "url",
        "has to be an http or https URL with a host",
    );
    faults.unless(url.username().is_empty() && url.password().is_none(), "url", "may hold no user info; see user and apiToken");
    faults.unless(url.query().is_none() && url.fragment().is_none(), "url", "may have no query and no fragment");
    for (name, reference) in [
        ("apiToken", &jenkins.api_token),
        ("caCertificate", &jenkins.ca_certificate),
        ("webhook.authorization", &jenkins.webhook.authorization),
        ("webhook.signingSecret", &jenkins.webhook.signing_secret),
    ] {
        if let Some(SecretRef::Ssm(text) | SecretRef::Env(text) | SecretRef::File(text)) = reference {
            faults.unless(!text.trim().is_empty(), name, "names nothing");
        }
    }
    if let Some(user) = &jenkins.user {
        faults.unless(!user.is_empty() && !user.contains(':'), "user", "may not be empty and may hold no colon");
    }
    if jenkins.register_nodes == Some(true) {
        faults.unless(jenkins.user.is_some(), "user", "is missing, and registerNodes needs it");
        faults.unless(jenkins.api_token.is_some(), "apiToken", "is missing, and registerNodes needs it");
    }
    if let Some(webhook) = &jenkins.webhook.url
        && let Err(reason) = Origin::new(url.clone()).allows(webhook.as_str())
    {
        faults.add("webhook.url", reason);
    }
}

fn cloud(cloud: &Cloud, _: &Jenkins, faults: &mut Faults<'_>) {
    faults.unless(is_name(&cloud.name), "name", "has to be 1 to 64 of A-Z a-z 0-9 _ -");
    faults.unless(
        cloud.region.len() >= 3 && cloud.region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
        "region",
        format!("{:?} is no AWS region", cloud.region),
    );
    faults.unless(is_plain(&cloud.cluster), "cluster", "has to be a cluster's name or ARN");
    if let Some(role) = &cloud.assume_role_arn {
        faults.unless(role.starts_with("arn:") && role.contains(":role/"), "assumeRoleArn", "has to be a role's ARN");
    }
    if let Some(group) = &cloud.auto_scaling_group {
        faults.unless(!group.trim().is_empty(), "autoScalingGroup", "names nothing");
    }
    faults.unless(
        cloud.idle_instance_timeout == Limit::NEVER || cloud.auto_scaling_group.is_some(),
        "idleInstanceTimeout",
        "needs autoScalingGroup",
    );
    if let Some(size) = cloud.instance_capacity {
        faults.unless(size.cpu > 0, "instanceCapacity.cpu", "has to be above 0");
        faults.unless(size.memory > 0, "instanceCapacity.memory", "has to be above 0");
    }
    faults.unless(cloud.max_agents != Some(0), "maxAgents", "has to be above 0");
    faults.unless(!cloud.templates.is_empty(), "templates", "has to have at least one template");
}

fn template(template: &Template, jenkins: &Jenkins, faults: &mut Faults<'_>) {
    faults.unless(is_name(&template.name), "name", "has to be 1 to 64 of A-Z a-z 0-9 _ -");
    faults.unless(!template.labels.0.is_empty(), "labels", "has to have at least one label");
    for label in &template.labels.0 {
        faults.unless(
            !label.is_empty() && !label.chars().any(|c| c.is_whitespace() || c.is_control() || c == '"' || c == '\\'),
            "labels",
            format!("{label:?} cannot be a label"),
        );
    }
    faults.unless(is_plain(&template.task_definition), "taskDefinition", "has to be an ARN, family:revision or family");
    if let Some(container) = &template.container {
        faults.unless(!container.trim().is_empty(), "container", "names nothing");
    }
    faults.unless(!template.workspace.trim().is_empty(), "workspace", "names nothing");
    faults.unless(template.executors > 0, "executors", "has to be above 0");
    faults.unless((1..=10).contains(&template.agents_per_request), "agentsPerRequest", "has to be 1 to 10");
    faults.unless(template.max_agents != Some(0), "maxAgents", "has to be above 0");
    faults.unless(template.limits.cpu != Some(0), "limits.cpu", "has to be above 0");
    faults.unless(template.limits.memory != Some(0), "limits.memory", "has to be above 0");
    faults.unless(
        template.idle_timeout.is_none_or(|limit| limit == Limit::NEVER) || jenkins.registers_nodes(),
        "idleTimeout",
        "needs jenkins.registerNodes: only Jenkins knows whether an agent is idle",
    );
    if template.connect == Connect::Inbound {
        faults.unless(
            jenkins.registers_nodes(),
            "connect",
            "inbound needs jenkins.registerNodes, with user and apiToken: the agent's secret is its node's",
        );
    } else {
        faults.unless(template.ssh.port > 0, "ssh.port", "has to be above 0");
        faults.unless(template.ssh.launch_timeout != Limit::NEVER, "ssh.launchTimeout", "cannot be never");
        faults.unless(template.ssh.retry_wait != Limit::NEVER, "ssh.retryWait", "cannot be never");
    }
    launch(&template.launch, &mut faults.at("launch"));
    network(template, faults);
    environment(template, faults);
    tags(template, faults);
}

fn launch(launch: &Launch, faults: &mut Faults<'_>) {
    let providers = &launch.capacity_providers;
    faults.unless(launch.kind.is_none() || providers.is_empty(), "type", "and capacityProviders exclude each other");
    for (index, provider) in providers.iter().enumerate() {
        let mut faults = faults.at(&format!("capacityProviders[{index}]"));
        faults.unless(is_plain(&provider.name), "name", "has to be a capacity provider's name");
        faults.unless((0..=1000).contains(&provider.weight), "weight", "has to be 0 to 1000");
        faults.unless((0..=100_000).contains(&provider.base), "base", "has to be 0 to 100000");
    }
    if !providers.is_empty() {
        faults.unless(providers.iter().any(|provider| provider.weight > 0), "capacityProviders", "one weight has to be above 0");
        let bases = providers.iter().filter(|provider| provider.base > 0).count();
        faults.unless(bases <= 1, "capacityProviders", "only one may have a base");
        let fargate = providers.iter().filter(|provider| provider.name.starts_with("FARGATE")).count();
        faults.unless(
            fargate == 0 || fargate == providers.len(),
            "capacityProviders",
            "Fargate's and Auto Scaling groups' cannot be mixed",
        );
    }
}

fn network(template: &Template, faults: &mut Faults<'_>) {
    let fargate = template.on_fargate();
    match &template.network {
        None => faults.unless(!fargate, "network", "is missing, and Fargate needs its subnets"),
        Some(network) => {
            faults.unless((1..=16).contains(&network.subnets.len()), "network.subnets", "has to have 1 to 16 subnets");
            faults.unless(network.security_groups.len() <= 5, "network.securityGroups", "may have 5 at most");
            let all = network.subnets.iter().chain(&network.security_groups);
            faults.unless(all.into_iter().all(|id| is_plain(id)), "network", "has an empty id");
            faults.unless(!network.assign_public_ip || fargate, "network.assignPublicIp", "is for Fargate only");
        }
    }
    let placed = template.placement_strategy.is_empty() && template.placement_constraints.is_empty();
    faults.unless(placed || !fargate, "placementStrategy", "and placementConstraints are not for Fargate");
    faults.unless(template.placement_strategy.len() <= 5, "placementStrategy", "may have 5 rules at most");
    faults.unless(template.placement_constraints.len() <= 10, "placementConstraints", "may have 10 at most");
    for (index, constraint) in template.placement_constraints.iter().enumerate() {
        let wanted = constraint.kind == PlacementConstraintType::MemberOf;
        faults.unless(
            constraint.expression.is_some() == wanted,
            &format!("placementConstraints[{index}].expression"),
            "goes with memberOf, and only with it",
        );
    }
    faults.unless(
        template.launch.kind != Some(LaunchType::External) || template.network.is_none(),
        "network",
        "is not for external instances",
    );
}

fn environment(template: &Template, faults: &mut Faults<'_>) {
    for name in template.environment.keys() {
        let field = format!("environment.{name}");
        faults.unless(!name.is_empty() && !name.contains('='), &field, "cannot be a variable's name");
        faults.unless(!is_reserved_variable(name, template.connect), &field, "is set by the launch itself");
    }
}

/// What every `inbound` agent's container is given, as the official inbound-agent image reads it.
pub const INBOUND_VARIABLES: [&str; 5] =
    ["JENKINS_URL", "JENKINS_AGENT_NAME", "JENKINS_SECRET", "JENKINS_AGENT_WORKDIR", "JENKINS_WEB_SOCKET"];

/// Whether the launch itself sets this variable, so that nobody else may.
pub fn is_reserved_variable(name: &str, connect: Connect) -> bool {
    name == Record::VARIABLE || (connect == Connect::Inbound && INBOUND_VARIABLES.contains(&name))
}

/// ECS takes 50 tags of a resource (API_Tag); we set some ourselves.
const MOST_TAGS: usize = 40;

fn tags(template: &Template, faults: &mut Faults<'_>) {
    faults.unless(template.tags.len() <= MOST_TAGS, "tags", format!("may have {MOST_TAGS} at most"));
    for (key, value) in &template.tags {
        let field = format!("tags.{key}");
        let lower = key.to_ascii_lowercase();
        faults.unless(!lower.starts_with("aws:"), &field, "may not begin with aws:");
        faults.unless(!lower.starts_with("jenkins-ecs-agents:"), &field, "may not begin with jenkins-ecs-agents:");
        faults.unless((1..=128).contains(&key.chars().count()), &field, "has to have 1 to 128 characters");
        faults.unless(value.chars().count() <= 256, &field, "may have a value of 256 characters at most");
        let allowed = |c: char| c.is_alphanumeric() || "+-=._:/@ ".contains(c);
        faults.unless(key.chars().chain(value.chars()).all(allowed), &field, "may hold letters, digits, spaces and + - = . _ : / @");
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::load::from_yaml;

    fn faults(yaml: &str) -> Vec<String> {
        match from_yaml(yaml, "ecs-") {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn every_fault_is_named_at_once_with_its_path() {
        let found = faults(
            "
jenkins:
  url: https://jenkins.example.com/
  registerNodes: true
  webhook: {url: 'https://evil.org/x'}
  colour: red
clouds:
  - name: linux
    region: eu-west-1
    maxAgents: 0
    instanceLaunchTimeout: 0s
    templates:
      - {name: maven, labels: [], taskDefinition: maven, connect: ssh, executors: 0}
      - {name: maven, labels: [a], taskDefinition: maven, connect: telnet, executors: -1}
      - {name: 'no good', labels: [a, 3], connect: ssh, agentsPerRequest: 11, launch: {type: fargate}}
  - name: linux
    region: eu-west-1
    templates: []
",
        );
        for path in [
            "clouds[0].instanceLaunchTimeout: ",
            "clouds[0].maxAgents: ",
            "clouds[0].templates[0].executors: ",
            "clouds[0].templates[0].labels: ",
            "clouds[0].templates[1].connect: ",
            "clouds[0].templates[1].executors: ",
            "clouds[0].templates[1].name: \"maven\"",
            "clouds[0].templates[2].agentsPerRequest: ",
            "clouds[0].templates[2].labels[1]: ",
            "clouds[0].templates[2].name: ",
            "clouds[0].templates[2].network: ",
            "clouds[0].templates[2].taskDefinition: is missing",
            "clouds[1].name: \"linux\"",
            "clouds[1].templates: ",
            "jenkins.apiToken: ",
            "jenkins.colour: is not known here",
            "jenkins.user: ",
            "jenkins.webhook.url: ",
        ] {
            assert_eq!(found.iter().filter(|fault| fault.starts_with(path)).count(), 1, "{path}\n{found:#?}");
        }
        assert_eq!(found.len(), 18, "{found:#?}");
    }

    #[test]
    fn a_small_configuration_is_enough() {
        let yaml = "
jenkins: {url: https://jenkins.example.com}
clouds:
  - {name: a, region: eu-west-1, templates: [{name: b, labels: [c], taskDefinition: d, connect: ssh}]}
";
        assert_eq!(faults(yaml), Vec::<String>::new());
        assert!(!from_yaml(yaml, "ecs-").expect("good").jenkins.registers_nodes());
    }

    #[test]
    fn what_is_not_a_configuration_is_told_in_a_sentence() {
        for (yaml, part) in [
            ("", "mapping"),
            ("- a", "mapping"),
            ("a: [", "not YAML"),
            ("jenkins: {url: https://a/}\njenkins: {url: https://b/}", "not YAML"),
            ("{}", "jenkins: is missing"),
            ("jenkins: 3\nclouds: 4", "clouds: "),
            ("jenkins: {url: https://a/, apiToken: literal}\nclouds: []", "jenkins.apiToken: "),
            ("jenkins: {url: 'https://u:p@a/'}\nclouds: []", "jenkins.url: may hold no user info"),
        ] {
            let found = faults(yaml);
            assert!(found.iter().any(|fault| fault.contains(part)), "{yaml}: {found:?}");
        }
    }

    #[test]
    fn the_example_is_a_configuration() {
        let config: Config = from_yaml(include_str!("../../../agents.example.yaml"), "ecs-").expect("good");
        assert!(config.jenkins.registers_nodes());
    }

    #[test]
    fn the_schema_that_is_shipped_is_that_of_the_types() {
        let schema = serde_json::to_string_pretty(&schemars::schema_for!(Config)).expect("JSON") + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../agents.schema.json");
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &schema).expect("written");
        }
        let shipped = std::fs::read_to_string(path).expect("agents.schema.json");
        assert_eq!(shipped, schema, "run the tests with UPDATE_SCHEMA=1 and commit agents.schema.json");
    }
}
