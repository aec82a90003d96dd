//! One list of valid and invalid variants, with which both schema and reader are tested.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::{Map, Value, json};

use crate::fault::{Fault, join};
use crate::{Document, from_documents, from_yaml, schema, yaml};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

/// The differences in `jenkins`, in the only cloud and in that cloud's template: keys as YAML; `~` removes one.
struct Variant {
    jenkins: &'static str,
    cloud: &'static str,
    template: &'static str,
}

const fn jenkins(jenkins: &'static str) -> Variant {
    Variant { jenkins, cloud: "", template: "" }
}

const fn cloud(cloud: &'static str) -> Variant {
    Variant { jenkins: "", cloud, template: "" }
}

const fn template(template: &'static str) -> Variant {
    Variant { jenkins: "", cloud: "", template }
}

impl Variant {
    fn value(&self) -> Value {
        let mut value = parsed(
            "jenkins: {url: 'https://ci.example.com/jenkins/', user: u, apiToken: {env: T}}
clouds: [{name: c, region: eu-west-1, templates: [{name: t, labels: [l], taskDefinition: d, connect: ssh}]}]",
        );
        for (pointer, keys) in
            [("/clouds/0/templates/0", self.template), ("/clouds/0", self.cloud), ("/jenkins", self.jenkins)]
        {
            let keys = parsed(&format!("{{{}}}", keys.replace("KEY", KEY)));
            let section = value.pointer_mut(pointer).and_then(Value::as_object_mut).expect("a section");
            for (key, value) in keys.as_object().expect("a mapping") {
                match value {
                    Value::Null => section.remove(key),
                    value => section.insert(key.clone(), value.clone()),
                };
            }
        }
        value
    }

    fn text(&self) -> String {
        format!("{} / {} / {}", self.jenkins, self.cloud, self.template)
    }
}

fn parsed(yaml: &str) -> Value {
    yaml::parse(yaml).unwrap_or_else(|error| panic!("{error}: {yaml}")).0
}

fn faults(value: &Value) -> Vec<Fault> {
    from_yaml(&value.to_string()).err().unwrap_or_default()
}

fn texts(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&schema()).expect("a schema")
}

const NO_NODES: &str = "user: ~, apiToken: ~";

/// Valid variants.
const RIGHT: &[Variant] = &[
    template(""),
    jenkins("registerNodes: true"),
    jenkins("registerNodes: false"),
    jenkins(NO_NODES),
    jenkins("url: 'http://localhost:8080'"),
    jenkins("webhook: {url: 'https://ci.example.com/jenkins/hook?a=b'}"),
    jenkins("caCertificate: {file: /ca.pem}, webhook: {authorization: {ssm: a}, signingSecret: {ssm: b}}"),
    Variant { jenkins: NO_NODES, cloud: "", template: "idleTimeout: never" },
    Variant { jenkins: "", cloud: "", template: "connect: inbound, ssh: {port: 22}, idleTimeout: 10m" },
    cloud("idleInstanceTimeout: 10m, autoScalingGroup: g, cluster: 'arn:aws:ecs:eu-west-1:1:cluster/c'"),
    cloud("autoScalingGroup: g, instanceRegistrationTimeout: 5m, agentUrl: 'http://jenkins:8080/x/'"),
    cloud("instanceRegistrationTimeout: never, idleInstanceTimeout: never, instanceLaunchTimeout: never"),
    cloud("region: us-gov-west-1, assumeRoleArn: 'arn:aws-us-gov:iam::1:role/path/x', maxAgents: 1"),
    cloud("instanceCapacity: {cpu: 1, memory: 1}"),
    template("workspace: a b"),
    template("labels: ['with space', 'größe', 'node.js/18', 'a&&b']"),
    template("taskDefinition: 'arn:aws:ecs:eu-west-1:123456789012:task-definition/a_b-C:7'"),
    template("taskDefinition: 'a:7', agentsPerRequest: 10, executors: 2, maxAgents: 1, maxLifetime: never"),
    template("ssh: {credentialsId: key, hostKeyVerification: {key: KEY}, port: 65535, address: public, maxRetries: 0}"),
    template("ssh: {hostKeyVerification: knownHosts, launchTimeout: 2m, retryWait: 1s}"),
    template("environment: {REMOTING_OPTS: x, JENKINS_JAVA_OPTS: y, A: '', B: '$HOME', 'PATH+X': /x}"),
    template("platformVersion: LATEST, launch: {type: ec2}"),
    template("launch: {type: external}"),
    template("launch: {type: fargate}, platformVersion: 1.4.0, network: {subnets: [s], assignPublicIp: true}"),
    template(
        "launch: {capacityProviders: [{name: FARGATE_SPOT, weight: 4}, {name: FARGATE, base: 1}]}, network: {subnets: [s]}",
    ),
    template("launch: {capacityProviders: [{name: p}]}, platformVersion: 1.4.0, allowedOverrides: [ephemeralStorage]"),
    template(
        "launch: {type: default}, network: {subnets: [s], assignPublicIp: true}, platformVersion: 1.4.0, \
         placementStrategy: [{type: random}], allowedOverrides: [ephemeralStorage]",
    ),
    template(
        "placementStrategy: [{type: spread, field: 'attribute:ecs.availability-zone'}, {type: binpack, field: MEMORY}], \
         placementConstraints: [{type: distinctInstance}, {type: memberOf, expression: x}]",
    ),
    template("tags: {'größe': 'a b+c-d=e.f_g:h/i@j', b: ''}"),
    template("limits: {cpu: 1, memory: 1, ephemeralStorage: 21}, allowedTaskDefinitions: [a]"),
    template("allowedTaskDefinitions: []"),
    template(
        "launch: {type: fargate}, network: {subnets: [s]}, allowedOverrides: [cpu, memory, ephemeralStorage, environment, \
         command, taskRole, taskDefinition], allowedTaskDefinitions: [a, 'b-*', '*'], limits: {ephemeralStorage: 200}",
    ),
];

/// Invalid variants, each with the beginning of its only fault. The template's path is `t`.
const WRONG: &[(Variant, &str)] = &[
    (jenkins("url: ~"), "jenkins.url: is missing"),
    (jenkins("url: 7"), "jenkins.url: must be a text, not a number"),
    (jenkins("url: ci.example.com"), "jenkins.url: must be an absolute URL"),
    (jenkins("url: ftp://ci.example.com/"), "jenkins.url: must be an http"),
    (jenkins("url: 'https://u:hunter2@ci.example.com/'"), "jenkins.url: must not contain user info"),
    (jenkins("url: 'https://ci.example.com/~jenkins/'"), "jenkins.url: is a tag of every task"),
    (jenkins("url: 'https://ci.example.com/?a=b'"), "jenkins.url: must not have a query"),
    (jenkins("url: 'https://ci.example.com/#a'"), "jenkins.url: must not have a query"),
    (jenkins("wehbook: {}"), "jenkins.wehbook: is not known here"),
    (jenkins("user: 'a:b'"), "jenkins.user: must be"),
    (jenkins("user: ~"), "jenkins.user: is missing, and apiToken is of no use without it"),
    (jenkins("apiToken: ~"), "jenkins.apiToken: is missing, and user is of no use without it"),
    (jenkins("apiToken: hunter2"), "jenkins.apiToken: must be {ssm: NAME}"),
    (jenkins("apiToken: {text: hunter2}"), "jenkins.apiToken: must be {ssm: NAME}"),
    (jenkins("apiToken: {ssm: a, env: hunter2}"), "jenkins.apiToken: must be {ssm: NAME}"),
    (jenkins("caCertificate: {file: ' '}"), "jenkins.caCertificate: names nothing"),
    (jenkins("webhook: {authorization: {ssm: ''}}"), "jenkins.webhook.authorization: names nothing"),
    (jenkins("webhook: {url: 7}"), "jenkins.webhook.url: "),
    (jenkins("registerNodes: maybe"), "jenkins.registerNodes: must be true or false, not a text"),
    (cloud("name: 'with a blank'"), "clouds[0].name: "),
    (cloud("region: ~"), "clouds[0].region: is missing"),
    (cloud("region: europe"), "clouds[0].region: "),
    (cloud("region: mars-north-1"), "clouds[0].region: must be a region of an AWS partition"),
    (cloud("cluster: 'a b'"), "clouds[0].cluster: "),
    (cloud("assumeRoleArn: admin"), "clouds[0].assumeRoleArn: "),
    (cloud("autoScalingGroup: ''"), "clouds[0].autoScalingGroup: "),
    (cloud("idleInstanceTimeout: 10m"), "clouds[0].idleInstanceTimeout: needs autoScalingGroup"),
    (cloud("instanceRegistrationTimeout: 10m"), "clouds[0].instanceRegistrationTimeout: needs autoScalingGroup"),
    (cloud("autoScalingGroup: g, idleInstanceTimeout: 0s"), "clouds[0].idleInstanceTimeout: \"0s\""),
    (cloud("autoScalingGroup: g, instanceRegistrationTimeout: -1m"), "clouds[0].instanceRegistrationTimeout: "),
    (cloud("instanceLaunchTimeout: soon"), "clouds[0].instanceLaunchTimeout: "),
    (cloud("instanceCapacity: {cpu: 0, memory: 1}"), "clouds[0].instanceCapacity.cpu: must be a whole number above 0"),
    (cloud("instanceCapacity: {cpu: 1}"), "clouds[0].instanceCapacity.memory: is missing"),
    (cloud("maxAgents: 0"), "clouds[0].maxAgents: "),
    (cloud("maxAgents: -1"), "clouds[0].maxAgents: "),
    (cloud("maxAgents: 1.5"), "clouds[0].maxAgents: "),
    (cloud("agentUrl: 'ftp://a/'"), "clouds[0].agentUrl: must be an http"),
    (cloud("agentUrl: 'https://u:hunter2@a/'"), "clouds[0].agentUrl: must not contain user info"),
    (cloud("agentUrl: 'https://a/?b'"), "clouds[0].agentUrl: must not have a query"),
    (cloud("agentUrl: 'https://a/#b'"), "clouds[0].agentUrl: must not have a query"),
    (cloud("templates: []"), "clouds[0].templates: must have at least one"),
    (cloud("colour: red"), "clouds[0].colour: is not known here"),
    (template("name: 'a.b'"), "t.name: "),
    (template("labels: ~"), "t.labels: is missing"),
    (template("labels: []"), "t.labels: must have"),
    (template("labels: ['']"), "t.labels[0]: cannot be a label"),
    (template("labels: [' a']"), "t.labels[0]: cannot be a label"),
    (template("labels: ['a\\b']"), "t.labels[0]: cannot be a label"),
    (template("labels: [\"it's\"]"), "t.labels[0]: cannot be a label"),
    (template("labels: ['a\"b']"), "t.labels[0]: cannot be a label"),
    (template("labels: linux"), "t.labels: must be a list, not a text"),
    (template("taskDefinition: ~"), "t.taskDefinition: is missing"),
    (template("taskDefinition: 'a:b'"), "t.taskDefinition: "),
    (template("taskDefinition: 'a:0'"), "t.taskDefinition: "),
    (template("taskDefinition: 'arn:aws:ecs:eu-west-1:1:task-definition/a'"), "t.taskDefinition: "),
    (template("container: ''"), "t.container: "),
    (template("connect: ~"), "t.connect: is missing"),
    (template("connect: telnet"), "t.connect: must be one of ssh, inbound"),
    (template("workspace: ''"), "t.workspace: "),
    (template("connect: inbound, workspace: /home/a b"), "t.workspace: must not contain white space"),
    (template("executors: 0"), "t.executors: "),
    (template("agentsPerRequest: 0"), "t.agentsPerRequest: must be a whole number, 1 to 10"),
    (template("agentsPerRequest: 11"), "t.agentsPerRequest: "),
    (template("maxAgents: 0"), "t.maxAgents: "),
    (template("maxLifetime: -1h"), "t.maxLifetime: "),
    (template("containerStartTimeout: 0s"), "t.containerStartTimeout: "),
    (template("ssh: {credentialsId: ''}"), "t.ssh.credentialsId: names nothing"),
    (template("ssh: {port: 0}"), "t.ssh.port: "),
    (template("ssh: {port: 65536}"), "t.ssh.port: "),
    (template("ssh: {address: both}"), "t.ssh.address: "),
    (template("ssh: {launchTimeout: never}"), "t.ssh.launchTimeout: cannot be never"),
    (template("ssh: {retryWait: never}"), "t.ssh.retryWait: cannot be never"),
    (template("ssh: {hostKeyVerification: some}"), "t.ssh.hostKeyVerification: must be none, knownHosts or"),
    (template("ssh: {hostKeyVerification: {key: ssh-ed25519 AAAA}}"), "t.ssh.hostKeyVerification.key: must be an SSH"),
    (template("ssh: {hostKeyVerification: {}}"), "t.ssh.hostKeyVerification.key: is missing"),
    (template("launch: {}"), "t.launch: needs type or capacityProviders"),
    (template("launch: {type: lambda}"), "t.launch.type: must be one of ec2, fargate, external, default"),
    (
        template("launch: {type: ec2, capacityProviders: [{name: p}]}"),
        "t.launch.type: cannot be combined with capacityProviders",
    ),
    (template("launch: {capacityProviders: []}"), "t.launch.capacityProviders: must have at least one"),
    (template("launch: {capacityProviders: [{name: p, weight: 1001}]}"), "t.launch.capacityProviders[0].weight: "),
    (template("launch: {capacityProviders: [{name: p, base: -1}]}"), "t.launch.capacityProviders[0].base: "),
    (template("launch: {capacityProviders: [{name: 'a b'}]}"), "t.launch.capacityProviders[0].name: "),
    (
        template("launch: {capacityProviders: [{name: p, weight: 0}]}"),
        "t.launch.capacityProviders: must have one weight",
    ),
    (
        template("launch: {capacityProviders: [{name: p, base: 1}, {name: q, base: 1}]}"),
        "t.launch.capacityProviders: must have at most one base",
    ),
    (template("launch: {capacityProviders: [{name: p}, {name: FARGATE}]}"), "t.launch.capacityProviders: cannot mix"),
    (template("launch: {type: fargate}"), "t.network: is missing, and Fargate needs its subnets"),
    (template("launch: {capacityProviders: [{name: FARGATE_SPOT}]}"), "t.network: is missing"),
    (template("launch: {type: external}, network: {subnets: [s]}"), "t.network: is not for external"),
    (template("network: {}"), "t.network.subnets: is missing"),
    (template("network: {subnets: []}"), "t.network.subnets: must have 1 to 16"),
    (template("network: {subnets: ['']}"), "t.network.subnets[0]: "),
    // The converter's placeholder.
    (template("network: {subnets: [FILL IN]}"), "t.network.subnets[0]: "),
    (
        template("network: {subnets: [s], securityGroups: [a, b, c, d, e, f]}"),
        "t.network.securityGroups: has 6 entries; the maximum is 5",
    ),
    (template("network: {subnets: [s], assignPublicIp: true}"), "t.network.assignPublicIp: is for Fargate only"),
    (template("platformVersion: 1.4.0"), "t.platformVersion: is for Fargate only"),
    (
        template("launch: {type: fargate}, network: {subnets: [s]}, placementStrategy: [{type: random}]"),
        "t.placementStrategy: is not for Fargate",
    ),
    (
        template("launch: {type: fargate}, network: {subnets: [s]}, placementConstraints: [{type: distinctInstance}]"),
        "t.placementConstraints: is not for Fargate",
    ),
    (template("placementStrategy: [{type: random, field: cpu}]"), "t.placementStrategy[0].field: cannot be combined"),
    (template("placementStrategy: [{type: binpack}]"), "t.placementStrategy[0].field: must be cpu or memory"),
    (template("placementStrategy: [{type: spread}]"), "t.placementStrategy[0].field: is missing"),
    (
        template("placementConstraints: [{type: memberOf}]"),
        "t.placementConstraints[0].expression: is required with memberOf",
    ),
    (
        template("placementConstraints: [{type: distinctInstance, expression: x}]"),
        "t.placementConstraints[0].expression: is required with memberOf",
    ),
    (template("environment: {JENKINS_ECS_AGENTS_REQUEST: x}"), "t.environment.JENKINS_ECS_AGENTS_REQUEST: is decided"),
    (template("connect: inbound, environment: {JENKINS_SECRET: x}"), "t.environment.JENKINS_SECRET: is decided"),
    (template("environment: {JENKINS_TUNNEL: x}"), "t.environment.JENKINS_TUNNEL: is decided by the launch itself"),
    (template("environment: {jenkins_url: x}"), "t.environment.jenkins_url: is decided by the launch itself"),
    (template("environment: {A=B: x}"), "t.environment.A=B: cannot be a variable's name"),
    (template("environment: {A: 1}"), "t.environment.A: must be a text, not a number"),
    (template("environment: {A: 'x$$y'}"), "t.environment.A: must not contain $$"),
    (template("tags: {'AWS:x': y}"), "t.tags.AWS:x: must not begin with aws:"),
    (template("tags: {'jenkins-ecs-agents:x': y}"), "t.tags.jenkins-ecs-agents:x: must not begin with"),
    (template("tags: {a: 'b;c'}"), "t.tags.a: may only contain letters"),
    (template("allowedOverrides: [image]"), "t.allowedOverrides[0]: must be one of cpu, memory"),
    (template("allowedOverrides: [ephemeralStorage]"), "t.allowedOverrides: ephemeralStorage is for Fargate only"),
    (
        template("launch: {type: external}, allowedOverrides: [ephemeralStorage]"),
        "t.allowedOverrides: ephemeralStorage is for Fargate only",
    ),
    (template("allowedOverrides: [taskDefinition]"), "t.allowedTaskDefinitions: is missing or empty"),
    (
        template("allowedOverrides: [taskDefinition], allowedTaskDefinitions: []"),
        "t.allowedTaskDefinitions: is missing or empty",
    ),
    (
        template("allowedOverrides: [taskDefinition], allowedTaskDefinitions: ['a*b']"),
        "t.allowedTaskDefinitions[0]: must be",
    ),
    (template("limits: {cpu: 0}"), "t.limits.cpu: "),
    (template("limits: {memory: 0}"), "t.limits.memory: "),
    (template("limits: {ephemeralStorage: 20}"), "t.limits.ephemeralStorage: must be a whole number, 21 to 200"),
    (template("limits: {ephemeralStorage: 201}"), "t.limits.ephemeralStorage: "),
    (
        Variant { jenkins: NO_NODES, cloud: "", template: "connect: inbound" },
        "t.connect: inbound needs jenkins.registerNodes",
    ),
    (
        Variant { jenkins: "registerNodes: false", cloud: "", template: "connect: inbound" },
        "t.connect: inbound needs jenkins.registerNodes",
    ),
    (
        Variant { jenkins: "registerNodes: false", cloud: "", template: "idleTimeout: 10m" },
        "t.idleTimeout: needs jenkins.registerNodes",
    ),
];

/// Invalid variants that no schema can express.
const WRONG_FOR_THE_READER_ALONE: &[(Variant, &str)] = &[
    (jenkins("webhook: {url: 'https://b.example.com/'}"), "jenkins.webhook.url: the host is b.example.com"),
    (jenkins("webhook: {url: 'https://ci.example.com/other'}"), "jenkins.webhook.url: the path is not under it"),
    (template("environment: {Path: x, PATH: y}"), "t.environment.Path: duplicate name"),
    (
        template("ssh: {hostKeyVerification: {key: ssh-rsa AAAAB3NzaC1yc2EAAAAD}}"),
        "t.ssh.hostKeyVerification.key: must be an SSH",
    ),
    (cloud("instanceLaunchTimeout: 9999999h"), "clouds[0].instanceLaunchTimeout: \"9999999h\" is too long"),
];

fn assert_only_fault(variant: &Variant, expected: &str) {
    let found = texts(&faults(&variant.value()));
    let expected = match expected.strip_prefix("t.") {
        Some(rest) => format!("clouds[0].templates[0].{rest}"),
        None => expected.to_owned(),
    };
    assert!(
        matches!(found.as_slice(), [one] if one.starts_with(&expected) && !one.contains("hunter2")),
        "{} is not {expected}: {found:#?}",
        variant.text()
    );
}

#[test]
fn schema_and_reader_accept_the_same_variants() {
    let validator = validator();
    for variant in RIGHT {
        let value = variant.value();
        assert_eq!(texts(&faults(&value)), Vec::<String>::new(), "{}", variant.text());
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{}", variant.text());
    }
}

#[test]
fn schema_and_reader_refuse_the_same_variants() {
    let validator = validator();
    let missed: Vec<_> =
        WRONG.iter().filter(|(variant, _)| validator.is_valid(&variant.value())).map(|(it, _)| it.text()).collect();
    assert_eq!(missed, Vec::<String>::new(), "the schema takes these");
    for (variant, fault) in WRONG {
        assert_only_fault(variant, fault);
    }
}

#[test]
fn the_reader_refuses_what_no_schema_can_express() {
    let validator = validator();
    for (variant, fault) in WRONG_FOR_THE_READER_ALONE {
        assert_only_fault(variant, fault);
        assert!(validator.is_valid(&variant.value()), "the schema says it: {}", variant.text());
    }
}

#[test]
fn limits_lists_and_texts() {
    let validator = validator();
    let many = |count: usize, one: &str| vec![one; count].join(", ");
    let tags: Vec<String> = (0..41).map(|tag| format!("t{tag}: x")).collect();
    for (keys, fault) in [
        (format!("name: {}", "a".repeat(65)), "name: must be 1 to 64"),
        (format!("tags: {{{}}}", tags.join(", ")), "tags: has 41 entries; the maximum is 40"),
        (format!("tags: {{a: {}}}", "x".repeat(257)), "tags.a: must have a value of at most 256"),
        (format!("network: {{subnets: [{}]}}", many(17, "s")), "network.subnets: must have 1 to 16"),
        (
            format!("placementStrategy: [{}]", many(6, "{type: random}")),
            "placementStrategy: has 6 entries; the maximum is 5",
        ),
        (
            format!("placementConstraints: [{}]", many(11, "{type: distinctInstance}")),
            "placementConstraints: has 11 entries; the maximum is 10",
        ),
        (
            format!("launch: {{capacityProviders: [{}]}}", many(21, "{name: p}")),
            "launch.capacityProviders: must have at most 20",
        ),
    ] {
        let variant = template(Box::leak(keys.into_boxed_str()));
        assert!(!validator.is_valid(&variant.value()), "{fault}");
        assert_only_fault(&variant, &format!("t.{fault}"));
    }
}

#[test]
fn names_are_unique_where_agents_could_be_mixed_up() {
    let cloud = |name: &str, rest: &str, own: &str| {
        let template = |name: &str| format!("{{name: {name}, labels: [l], taskDefinition: d, connect: ssh}}");
        format!("{{name: {name}, {rest}, templates: [{}, {}]}}", template(own), template(&format!("x{name}")))
    };
    let found = |clouds: &[String]| {
        let yaml = format!("jenkins: {{url: https://a/}}\nclouds: [{}]", clouds.join(", "));
        texts(&from_yaml(&yaml).err().unwrap_or_default())
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
    // Whatever else is wrong with their cloud.
    assert_eq!(
        found(&[cloud("a", "region: mars-1", "xa"), cloud("b", "region: mars-1", "xb")]),
        [
            "clouds[0].region: must be a region of an AWS partition, as eu-west-1",
            "clouds[0].templates[1].name: \"xa\" is the name of clouds[0].templates[0] too, in the same cluster",
            "clouds[1].region: must be a region of an AWS partition, as eu-west-1",
            "clouds[1].templates[1].name: \"xb\" is the name of clouds[1].templates[0] too, in the same cluster",
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
fn a_key_without_a_value_counts_as_missing() {
    let text = "jenkins: {url: https://a/, webhook: , user: ~}
eventBus:
clouds: [{name: c, region: eu-west-1, autoScalingGroup: , templates: [{name: t, labels: [l], taskDefinition: d, connect: ssh,
  environment: , launch: , network: , executors: , ssh: , limits: , placementStrategy: , maxLifetime: }]}]";
    assert_eq!(from_yaml(text).map(|config| config.clouds.len()), Ok(1));
    let errors: Vec<_> = validator().iter_errors(&parsed(text)).map(|error| error.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    let found = texts(&from_yaml(&text.replace("connect: ssh", "connect: ")).expect_err("wrong"));
    assert_eq!(found, ["clouds[0].templates[0].connect: is missing"]);
}

/// Every key of the configuration.
const FULL: &str = r#"
jenkins:
  url: https://jenkins.example.com/
  user: ecs-agents
  apiToken: {ssm: /jenkins/api-token}
  registerNodes: true
  caCertificate: {ssm: /jenkins/ca}
  webhook:
    url: https://jenkins.example.com/hook
    authorization: {ssm: /jenkins/webhook}
    signingSecret: {ssm: /jenkins/signing}
eventBus: ci-agents
clouds:
  - name: linux
    region: eu-west-1
    cluster: default
    assumeRoleArn: arn:aws:iam::123456789012:role/agents
    autoScalingGroup: jenkins-ecs
    instanceLaunchTimeout: 15m
    instanceRegistrationTimeout: 10m
    idleInstanceTimeout: never
    instanceCapacity: {cpu: 4096, memory: 7680}
    maxAgents: 100
    agentUrl: https://jenkins.internal/
    templates:
      - name: maven
        labels: [linux, maven]
        taskDefinition: arn:aws:ecs:eu-west-1:123456789012:task-definition/jenkins-maven:7
        container: agent
        connect: ssh
        workspace: /home/jenkins
        executors: 1
        containerStartTimeout: 15m
        agentsPerRequest: 1
        maxAgents: 20
        maxLifetime: 24h
        idleTimeout: 10m
        ssh:
          port: 22
          credentialsId: jenkins-agent-key
          address: private
          hostKeyVerification: {key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"}
          launchTimeout: 60s
          maxRetries: 10
          retryWait: 3s
          javaPath: /opt/java/bin/java
          jvmOptions: -Xmx64m
          prefixStartCommand: "sh -lc '"
          suffixStartCommand: "'"
        launch:
          type: ec2
        network:
          subnets: [subnet-1]
          securityGroups: [sg-1]
          assignPublicIp: false
        platformVersion: LATEST
        placementStrategy: [{type: binpack, field: memory}]
        placementConstraints: [{type: memberOf, expression: "attribute:ecs.os-type == linux"}]
        enableExecuteCommand: false
        environment: {MAVEN_OPTS: -Xmx1g}
        tags: {team: build}
        allowedOverrides: [cpu, memory, environment, command, taskRole, taskDefinition]
        limits: {cpu: 4096, memory: 16384, ephemeralStorage: 100}
        allowedTaskDefinitions: ["jenkins-*"]
      - name: node
        labels: [node]
        taskDefinition: node
        connect: inbound
        launch: {capacityProviders: [{name: FARGATE_SPOT, weight: 4, base: 0}, {name: FARGATE, weight: 1, base: 1}]}
        network: {subnets: [subnet-1, subnet-2], assignPublicIp: true}
"#;

/// Every place below this one, as a path and as a JSON pointer.
fn places(value: &Value, path: &str, pointer: &str) -> Vec<(String, String)> {
    let below: Vec<(String, String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (join(path, key), format!("{pointer}/{key}"), value)).collect()
        }
        Value::Array(list) => (list.iter().enumerate())
            .map(|(index, value)| (format!("{path}[{index}]"), format!("{pointer}/{index}"), value))
            .collect(),
        _ => Vec::new(),
    };
    let mut all = Vec::new();
    for (path, pointer, value) in below {
        all.extend(places(value, &path, &pointer));
        all.push((path, pointer));
    }
    all
}

fn all_places() -> Vec<(String, String)> {
    places(&parsed(FULL), "", "")
}

fn is_within(path: &str, outer: &str) -> bool {
    outer.is_empty() || path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[test]
fn reads_every_setting() {
    let config = from_yaml(FULL).expect("good");
    assert_eq!(config.clouds[0].templates.len(), 2);
    let errors: Vec<_> = validator().iter_errors(&parsed(FULL)).map(|error| error.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    // So that the tests below cover every key.
    let schema = schema();
    let used: BTreeSet<_> = all_places().into_iter().map(|(path, _)| path).collect();
    for definition in schema["$defs"].as_object().into_iter().flat_map(Map::values).chain([&schema]) {
        for field in definition["properties"].as_object().into_iter().flat_map(Map::keys) {
            assert!(used.iter().any(|path| path == field || path.ends_with(&format!(".{field}"))), "{field}");
        }
    }
}

#[test]
fn reports_each_missing_key_where_it_is_missing() {
    let validator = validator();
    let mut required = 0;
    for (path, pointer) in all_places() {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let mut value = parsed(FULL);
        let Some(Value::Object(fields)) = value.pointer_mut(parent) else { continue };
        fields.remove(key);
        let found = faults(&value);
        assert_eq!(validator.is_valid(&value), found.is_empty(), "{path}: {found:#?}");
        if let [one, more @ ..] = found.as_slice() {
            required += 1;
            // A key that another needs, or that conflicts with its default, is reported there.
            let is_needed = one.message.contains(key) || key == "launch";
            let near = is_within(&one.path, &path) || is_within(&path, &one.path) || is_needed;
            assert!(near && more.is_empty(), "{path}: {found:#?}");
        }
    }
    assert!(required > 20, "{required}");
}

#[test]
fn names_unknown_keys() {
    let validator = validator();
    for (path, pointer) in all_places().into_iter().chain([(String::new(), String::new())]) {
        let mut value = parsed(FULL);
        match value.pointer_mut(&pointer) {
            Some(Value::Object(fields)) => fields.insert("colour".into(), json!(["red"])),
            _ => continue,
        };
        let found = faults(&value);
        assert!(!validator.is_valid(&value), "{path}");
        assert_eq!(found.len(), 1, "{path}: {found:#?}");
        assert!(is_within(&join(&path, "colour"), &found[0].path), "{path}: {found:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_fault_is_found_at_once_and_nothing_else(
        chosen in subsequence(all_places(), 1..8), nonsense in prop_oneof![Just(json!([{"x": 1}])), Just(json!(-1.5))]
    ) {
        let mut value = parsed(FULL);
        let mut wrong: Vec<&str> = Vec::new();
        for (path, pointer) in &chosen {
            // A fault inside another one cannot be seen.
            if let Some(place) = value.pointer_mut(pointer) {
                *place = nonsense.clone();
                wrong.retain(|inner| !is_within(inner, path));
                wrong.push(path);
            }
        }
        let found = faults(&value);
        prop_assert!(!validator().is_valid(&value));
        let near = |a: &str, b: &str| is_within(a, b) || is_within(b, a);
        for path in &wrong {
            prop_assert!(found.iter().any(|fault| near(&fault.path, path)), "{path} in {found:#?}");
        }
        for fault in &found {
            prop_assert!(wrong.iter().any(|path| near(&fault.path, path)), "{fault} besides {wrong:?}");
        }
    }
}

#[test]
fn a_rule_is_silent_where_one_of_its_keys_is_wrong_already() {
    for (variant, fault) in [
        (
            Variant { jenkins: "apiToken: hunter2", cloud: "", template: "connect: inbound, idleTimeout: 5m" },
            "jenkins.apiToken: ",
        ),
        (jenkins("url: [], webhook: {url: 'https://b/'}"), "jenkins.url: "),
        (template("connect: telnet, workspace: a b"), "t.connect: "),
        (template("launch: {type: fargat}, network: {subnets: [s], assignPublicIp: true}"), "t.launch.type: "),
        (cloud("idleInstanceTimeout: 5m, autoScalingGroup: []"), "clouds[0].autoScalingGroup: "),
    ] {
        assert_only_fault(&variant, fault);
    }
}

#[test]
fn returns_the_valid_part_beside_the_faults() {
    let value = template("connect: telnet").value();
    let (config, faults) = from_documents(&[Document::only(value.to_string())]);
    assert_eq!(faults.len(), 1);
    assert!(config.is_some_and(|config| config.jenkins.api_token.is_some() && config.clouds[0].templates.is_empty()));
}

fn document(source: &str, text: &str) -> Document {
    Document { source: source.into(), text: text.into() }
}

fn one_cloud(name: &str, more: &str) -> String {
    let template = format!("{{name: {name}, labels: [l], taskDefinition: d, connect: ssh}}");
    format!("clouds: [{{name: {name}, region: eu-west-1, templates: [{template}], {more}}}]")
}

#[test]
fn the_clouds_of_several_texts_are_joined() {
    let (config, faults) = from_documents(&[
        document("/a/1", &one_cloud("one", "")),
        document("/a/2", &(one_cloud("two", "") + "\njenkins: {url: https://a/}")),
        document("/a/3", "eventBus: bus"),
    ]);
    assert_eq!(faults, []);
    let config = config.expect("good");
    let names: Vec<_> = config.clouds.iter().map(|cloud| cloud.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(config.event_bus.as_deref(), Some("bus"));
}

#[test]
fn the_faults_of_several_texts_say_where_they_are_from() {
    let found = texts(
        &from_documents(&[
            document("/a/1", &(one_cloud("one", "maxAgents: 0") + "\njenkins: {url: https://a/}")),
            document("/a/2", &(one_cloud("two", "maxAgents: 0, maxAgents: 1") + "\njenkins: {url: https://b/}")),
            document("/a/3", "clouds: 3"),
            document("/a/4", "a: ["),
        ])
        .1,
    );
    assert_eq!(
        found[..3],
        [
            "/a/2: clouds[0].maxAgents: duplicate key",
            "/a/2: jenkins: is in /a/1 too, and only one may have it",
            "/a/3: clouds: is in /a/1 too, and only one may have it",
        ]
    );
    assert!(found[3].starts_with("/a/4: not YAML: "), "{found:#?}");
    let message = "maxAgents: must be a whole number above 0";
    assert_eq!(found[4..], [format!("clouds[0].{message} (in /a/1)"), format!("clouds[1].{message} (in /a/2)")]);
}

#[test]
fn keys_of_an_unreadable_text_are_not_reported_as_missing() {
    let (_, found) = from_documents(&[document("/a/1", "jenkins: {"), document("/a/2", &one_cloud("two", ""))]);
    assert!(matches!(found.as_slice(), [one] if one.message.starts_with("/a/1: not YAML")), "{found:#?}");
}

#[test]
fn reports_a_document_that_is_no_configuration() {
    for (text, expected) in [
        ("", "must be a YAML mapping with jenkins and clouds"),
        ("- a", "must be a YAML mapping with jenkins and clouds"),
        ("{}", "clouds: is missing; jenkins: is missing"),
        ("jenkins: 3\nclouds: x", "clouds: must be a list, not a text; jenkins: must be a mapping, not a number"),
        ("jenkins: {url: https://a/}\nclouds: []", "clouds: must have at least one cloud"),
    ] {
        assert_eq!(texts(&from_yaml(text).expect_err(text)).join("; "), expected);
    }
}

#[test]
fn the_example_is_a_configuration_and_fits_the_schema() {
    let example = include_str!("../../agents.example.yaml");
    assert!(from_yaml(example).expect("good").jenkins.registers_nodes());
    let errors: Vec<_> = validator().iter_errors(&parsed(example)).map(|error| error.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn the_shipped_schema_is_that_of_the_types() {
    let schema = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../agents.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(path, &schema).expect("written");
    }
    let shipped = std::fs::read_to_string(path).expect("agents.schema.json");
    assert!(shipped == schema, "run the tests with UPDATE_SCHEMA=1 and commit agents.schema.json");
}
