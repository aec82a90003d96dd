//! The environment and the configuration when a function starts (docs/configuration.md).

use serde_json::{Value, json};
use tests::edge::Edge;
use tests::{Binary, Stack};

/// The output of a start that fails, and its exit code.
async fn failed_start(stack: &mut Stack, binary: Binary) -> String {
    let function = stack.function(binary).await;
    let code = function.ended().await.unwrap_or_else(|_| panic!("it started"));
    assert_ne!(code, Some(0));
    function.output()
}

#[tokio::test]
async fn every_missing_setting_is_named_at_once() {
    for binary in [Binary::Request, Binary::TaskState, Binary::Teardown] {
        let mut stack = Stack::start().await;
        let names = [
            "AGENTS_CONFIG",
            "REQUESTS_QUEUE_URL",
            "WAITING_QUEUE_URL",
            "UNDELIVERED_QUEUE_URL",
            "REJECTED_QUEUE_URL",
            "COMPLETIONS_QUEUE_URL",
        ];
        names.iter().for_each(|name| stack.set_env(name, None));
        stack.set_env("AGENT_NAME_PREFIX", Some("not a prefix!"));
        let said = failed_start(&mut stack, binary).await;
        for name in names.iter().chain(&["AGENT_NAME_PREFIX"]) {
            assert!(said.contains(name), "{name}: {said}");
        }
    }
}

#[tokio::test]
async fn every_fault_of_a_configuration_is_named_at_once_with_its_path() {
    let mut stack = Stack::with(|config| {
        config["jenkins"]["apiToken"] = "a literal that nobody may write here".into();
        config["jenkins"]["wehbook"] = json!({});
        config["eventBus"] = 7.into();
        config["clouds"][0]["name"] = "with a blank".into();
        config["clouds"][0]["instanceLaunchTimeout"] = "soon".into();
        config["clouds"][0]["maxAgents"] = 0.into();
        let templates = &mut config["clouds"][0]["templates"];
        templates[0]["labels"] = json!([]);
        templates[0]["agentsPerRequest"] = 11.into();
        templates[1]["name"] = "maven".into();
        templates[1]["executors"] = 0.into();
        templates[1]["containerStartTimeout"] = "0s".into();
        templates[2].as_object_mut().unwrap().remove("taskDefinition");
        templates[2]["connect"] = "telnet".into();
        templates[2]["environment"] = json!({"JENKINS_TUNNEL": "x", "A": "a$$b"});
        templates[2]["launch"] = json!({});
        config["clouds"][0]["agentUrl"] = "https://user@jenkins.internal/".into();
        config["clouds"][1]["region"] = "mars-north-1".into();
        config["clouds"][1]["instanceRegistrationTimeout"] = "5m".into();
        let node = &mut config["clouds"][1]["templates"][0];
        node["labels"] = json!(["it's"]);
        node["allowedOverrides"] = json!(["taskDefinition"]);
        node["limits"] = json!({"ephemeralStorage": 20});
        node["ssh"]["hostKeyVerification"] = json!({"key": "SHA256:abcdef"});
        config["clouds"][1]["templates"][0]["launch"]["type"] = "lambda".into();
        config["clouds"][1]["templates"][0]["network"]["subnet"] = "subnet-1".into();
    })
    .await;
    stack.set_env("WAITING_QUEUE_URL", None);
    let said = failed_start(&mut stack, Binary::Request).await;
    for path in [
        "jenkins.apiToken",
        "jenkins.wehbook",
        "eventBus",
        "clouds[0].name",
        "clouds[0].instanceLaunchTimeout",
        "clouds[0].maxAgents",
        "clouds[0].templates[0].labels",
        "clouds[0].templates[0].agentsPerRequest",
        "clouds[0].templates[1].name",
        "clouds[0].templates[1].executors",
        "clouds[0].templates[1].containerStartTimeout",
        "clouds[0].templates[2].taskDefinition",
        "clouds[0].templates[2].connect",
        "clouds[0].templates[2].environment.JENKINS_TUNNEL",
        "clouds[0].templates[2].environment.A",
        "clouds[0].templates[2].launch",
        "clouds[0].agentUrl",
        "clouds[1].region",
        "clouds[1].instanceRegistrationTimeout",
        "clouds[1].templates[0].labels[0]",
        "clouds[1].templates[0].allowedTaskDefinitions",
        "clouds[1].templates[0].limits.ephemeralStorage",
        "clouds[1].templates[0].ssh.hostKeyVerification.key",
        "clouds[1].templates[0].launch.type",
        "clouds[1].templates[0].network.subnet",
        "WAITING_QUEUE_URL",
    ] {
        assert!(said.contains(path), "{path}: {said}");
    }
    assert!(!said.contains("a literal that nobody"), "{said}");
}

#[tokio::test]
async fn names_unknown_keys_and_reserved_variables_everywhere() {
    let reserved = [
        "JENKINS_URL",
        "JENKINS_AGENT_NAME",
        "JENKINS_SECRET",
        "JENKINS_AGENT_WORKDIR",
        "JENKINS_WEB_SOCKET",
        "JENKINS_NAME",
        "JENKINS_TUNNEL",
        "JENKINS_DIRECT_CONNECTION",
        "JENKINS_INSTANCE_IDENTITY",
        "JENKINS_PROTOCOLS",
    ];
    let sections = [
        "/jenkins",
        "/jenkins/webhook",
        "/clouds/0",
        "/clouds/0/instanceCapacity",
        "/clouds/0/templates/0",
        "/clouds/0/templates/0/ssh",
        "/clouds/0/templates/0/ssh/hostKeyVerification",
        "/clouds/0/templates/0/limits",
        "/clouds/0/templates/0/placementStrategy/0",
        "/clouds/0/templates/0/placementConstraints/0",
        "/clouds/0/templates/1/launch",
        "/clouds/0/templates/1/launch/capacityProviders/0",
        "/clouds/1/templates/0/network",
    ];
    let mut stack = Stack::with(|config| {
        config["colour"] = "red".into();
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680});
        let templates = &mut config["clouds"][0]["templates"];
        templates[0]["ssh"]["hostKeyVerification"] = json!({"key": "ssh-ed25519 AAAA"});
        templates[0]["placementStrategy"] = json!([{"type": "random"}]);
        templates[0]["placementConstraints"] = json!([{"type": "distinctInstance"}]);
        templates[1]["launch"] = json!({"capacityProviders": [{"name": "own"}]});
        let pairs = reserved.iter().chain(&["jenkins_url"]).map(|name| ((*name).to_owned(), json!("x")));
        templates[2]["environment"] = pairs.collect::<serde_json::Map<_, _>>().into();
        for section in sections {
            config.pointer_mut(section).unwrap()["colour"] = "red".into();
        }
    })
    .await;
    let said = failed_start(&mut stack, Binary::TaskState).await;
    let found: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("- ")?.split_once(": ")).collect();
    let mut expected = vec!["colour".to_owned(), "clouds[0].templates[0].ssh.hostKeyVerification.key".into()];
    expected.extend(sections.iter().map(|section| {
        let parts = section[1..].split('/').map(|part| match part.parse::<u32>() {
            Ok(index) => format!("[{index}]"),
            Err(_) => format!(".{part}"),
        });
        format!("{}.colour", parts.collect::<String>().trim_start_matches('.'))
    }));
    let variables = reserved.iter().chain(&["jenkins_url"]);
    expected.extend(variables.map(|name| format!("clouds[0].templates[2].environment.{name}")));
    expected.sort();
    let mut paths: Vec<_> = found.iter().map(|(path, _)| (*path).to_owned()).collect();
    paths.sort();
    assert_eq!(paths, expected, "{said}");
}

#[tokio::test]
async fn a_certificate_at_fault_is_named_beside_the_other_settings() {
    let broken = "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n";
    for authority in ["jenkins.caCertificate", "AWS_CA_BUNDLE"] {
        let mut stack = Stack::with(|config| {
            config["colour"] = "red".into();
            if authority == "jenkins.caCertificate" {
                config["jenkins"]["caCertificate"] = json!({"env": "AUTHORITY"});
            }
        })
        .await;
        stack.set_env("AUTHORITY", Some(broken));
        if authority == "AWS_CA_BUNDLE" {
            stack.set_env("AWS_CA_BUNDLE", Some("/nowhere/bundle.pem"));
        }
        stack.set_env("WAITING_QUEUE_URL", None);
        let said = failed_start(&mut stack, Binary::Teardown).await;
        for setting in [authority, "colour", "WAITING_QUEUE_URL"] {
            assert!(said.contains(&format!("- {setting}: ")), "{setting}: {said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn starts_with_settings_that_are_allowed_and_ignored() {
    let mut stack = Stack::with(|config| {
        let everything = json!({"network": {"subnets": ["subnet-1"], "assignPublicIp": true}, "platformVersion": "1.4.0",
            "placementStrategy": [{"type": "random"}], "placementConstraints": [{"type": "distinctInstance"}],
            "allowedOverrides": ["ephemeralStorage"], "limits": {"ephemeralStorage": 200}});
        let extend = |template: &mut Value, more: &Value| {
            template.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        };
        let templates = &mut config["clouds"][0]["templates"];
        extend(&mut templates[0], &everything);
        templates[0]["launch"] = json!({"type": "default"});
        extend(&mut templates[1], &everything);
        templates[1]["launch"] = json!({"capacityProviders": [{"name": "own", "weight": 0, "base": 1}, {"name": "other"}]});
        templates[2]["ssh"] = json!({"port": 2222, "hostKeyVerification": "knownHosts"});
        templates[2]["limits"] = json!({"cpu": 1, "memory": 1, "ephemeralStorage": 21});
        templates[2]["allowedTaskDefinitions"] = json!(["x-*"]);
        templates[2]["environment"] = json!({"REMOTING_OPTS": "-x", "JENKINS_JAVA_OPTS": "-y"});
        for limit in ["containerStartTimeout", "maxLifetime", "idleTimeout"] {
            templates[2][limit] = "never".into();
        }
        for limit in ["instanceLaunchTimeout", "instanceRegistrationTimeout", "idleInstanceTimeout"] {
            config["clouds"][0][limit] = "never".into();
        }
        config["clouds"][0]["agentUrl"] = "http://jenkins.internal:8080/ci".into();
    })
    .await;
    for binary in [Binary::Request, Binary::TaskState, Binary::Teardown] {
        let answer = stack.invoke(binary, json!({"Records": []})).await;
        assert_eq!(answer.unwrap()["batchItemFailures"], json!([]), "{binary:?}");
    }
}

#[tokio::test]
async fn reads_each_source_of_the_configuration() {
    // A file, in YAML proper.
    let mut stack = Stack::start().await;
    let yaml = stack.env("AGENTS_CONFIG").strip_prefix("inline:").unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agents.yaml");
    std::fs::write(&file, format!("# a comment\n{yaml}\n")).unwrap();
    stack.set_env("AGENTS_CONFIG", Some(&format!("file:{}", file.display())));
    stack.agent("file", "node").await;
    assert_eq!(stack.active_tasks().len(), 1);

    // One parameter.
    let mut stack = Stack::start().await;
    let yaml = stack.env("AGENTS_CONFIG").strip_prefix("inline:").unwrap().to_owned();
    stack.aws().parameters.values.insert("/jenkins/agents/config".into(), yaml);
    stack.set_env("AGENTS_CONFIG", Some("ssm:/jenkins/agents/config"));
    stack.agent("parameter", "node").await;
    assert_eq!(stack.active_tasks().len(), 1);
}

#[tokio::test]
async fn the_parameters_under_a_path_are_joined_in_the_order_of_their_names() {
    let mut stack = Stack::start().await;
    let whole: Value = serde_json::from_str(stack.env("AGENTS_CONFIG").strip_prefix("inline:").unwrap()).unwrap();
    {
        let mut aws = stack.aws();
        let values = &mut aws.parameters.values;
        values.insert("/jenkins/agents/clouds/00-jenkins".into(), json!({"jenkins": whole["jenkins"]}).to_string());
        // More than one page of them; each serves `linux`, and the first by name is used.
        for number in (1..=14).rev() {
            let mut cloud = whole["clouds"][1].clone();
            cloud["name"] = format!("cloud-{number}").into();
            cloud["templates"][0]["name"] = format!("node-{number:02}").into();
            values.insert(format!("/jenkins/agents/clouds/{number:02}"), json!({"clouds": [cloud]}).to_string());
        }
        values.insert("/jenkins/agents/other".into(), "not for us".into());
    }
    stack.set_env("AGENTS_CONFIG", Some("ssm:/jenkins/agents/clouds/"));
    stack.agent("joined", "linux").await;
    assert!(stack.tasks()[0].started_by.starts_with("ecs-node-01-"), "{}", stack.tasks()[0].started_by);
}

#[tokio::test]
async fn faults_in_several_parameters_are_named_with_their_parameter() {
    let mut stack = Stack::start().await;
    let whole: Value = serde_json::from_str(stack.env("AGENTS_CONFIG").strip_prefix("inline:").unwrap()).unwrap();
    {
        let mut aws = stack.aws();
        let mut put = |name: &str, text: String| {
            aws.parameters.values.insert(format!("/jenkins/agents/clouds/{name}"), text);
        };
        put("00", json!({"jenkins": whole["jenkins"], "colour": "red"}).to_string());
        put("01", json!({"clouds": [whole["clouds"][1]]}).to_string());
        put("02", "clouds: [hunter2".into());
        let mut cloud = whole["clouds"][0].clone();
        cloud["templates"][0]["executors"] = 0.into();
        put("deeper/03", json!({"clouds": [cloud, whole["clouds"][1]]}).to_string());
        put("deeper/04", json!({"jenkins": whole["jenkins"]}).to_string());
        put("deeper/05", "[]".into());
    }
    stack.set_env("AGENTS_CONFIG", Some("ssm:/jenkins/agents/clouds/"));
    let said = failed_start(&mut stack, Binary::Teardown).await;
    let in_parameter = |name: &str| format!("/jenkins/agents/clouds/{name}");
    for (path, parameter) in [
        ("colour: ", ""),
        ("/jenkins/agents/clouds/02: not YAML", ""),
        ("clouds[1].templates[0].executors: ", "deeper/03"),
        ("clouds[2].name: ", "deeper/03"),
        ("jenkins: is in /jenkins/agents/clouds/00 too", "deeper/04"),
        ("/jenkins/agents/clouds/deeper/05: ", ""),
    ] {
        let line = said.lines().find(|line| line.contains(path)).unwrap_or_else(|| panic!("{path}: {said}"));
        assert!(parameter.is_empty() || line.contains(&in_parameter(parameter)), "{line}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn the_example_in_the_repository_is_a_configuration() {
    let mut stack = Stack::start().await;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../agents.example.yaml");
    // Under the prefix that the template lets the functions read.
    for secret in ["api-token", "webhook"] {
        stack.aws().parameters.values.insert(format!("/jenkins/ecs-agents/{secret}"), "secret".into());
    }
    stack.set_env("AGENTS_CONFIG", Some(&format!("file:{example}")));
    let answer = stack.invoke(Binary::Request, json!({"Records": []})).await;
    assert!(answer.is_ok(), "{answer:?}");
}

#[tokio::test]
async fn names_a_missing_source_or_secret() {
    let mut stack = Stack::start().await;
    stack.set_env("AGENTS_CONFIG", Some("ssm:/jenkins/not/there"));
    let said = failed_start(&mut stack, Binary::Request).await;
    assert!(said.contains("AGENTS_CONFIG"), "{said}");

    let mut stack = Stack::with(|config| {
        config["jenkins"]["apiToken"] = json!({"ssm": "/jenkins/missing/token"});
        config["jenkins"]["webhook"]["authorization"] = json!({"env": "MISSING_VARIABLE"});
        config["jenkins"]["webhook"]["signingSecret"] = json!({"file": "/missing/file"});
    })
    .await;
    let said = failed_start(&mut stack, Binary::TaskState).await;
    for name in ["/jenkins/missing/token", "MISSING_VARIABLE", "/missing/file"] {
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[tokio::test]
async fn two_stacks_in_one_cluster_have_two_prefixes() {
    let mut stack = Stack::start().await;
    stack.set_env("AGENT_NAME_PREFIX", Some("team-b-"));
    stack.ask(json!({"requestId": "prefixed", "label": "node"}));
    stack.poll(Binary::Request, "requests").await;
    let task = stack.tasks().remove(0);
    assert!(task.started_by.starts_with("team-b-node-"), "{}", task.started_by);
    // A stack with the default prefix leaves it alone.
    stack.set_env("AGENT_NAME_PREFIX", None);
    stack.settle().await;
    stack.sweep().await;
    assert_eq!(stack.active_tasks().len(), 1);
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn a_prefix_has_up_to_32_characters() {
    let prefix = format!("ecs-{}", "p".repeat(28));
    let mut stack = Stack::with(|config| config["clouds"][1]["templates"][0]["name"] = "t".repeat(64).into()).await;
    stack.set_env("AGENT_NAME_PREFIX", Some(&prefix));
    let url = stack.agent("long", "node").await;
    let task = stack.tasks().remove(0);
    assert!(task.started_by.starts_with(&format!("{prefix}tttt")), "{}", task.started_by);
    assert_eq!((task.started_by.len(), stack.nodes()), (32 + 64 + 1 + 12, vec![task.started_by.clone()]));
    stack.sweep().await;
    stack.complete(json!({"agent": task.started_by}));
    stack.settle().await;
    assert_eq!((stack.received(&url), stack.active_tasks().len()), (vec!["agent.ready".to_owned()], 0));
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
    assert!(stack.nodes().is_empty());
    stack.set_env("AGENT_NAME_PREFIX", Some(&format!("{prefix}p")));
    for binary in Binary::ALL {
        stack.kill(binary);
        let said = failed_start(&mut stack, binary).await;
        assert!(said.contains("AGENT_NAME_PREFIX") && said.contains("1 to 32"), "{said}");
    }
}

#[tokio::test]
async fn several_regions_and_accounts_stand_side_by_side() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["region"] = "us-east-1".into();
        config["clouds"][1]["assumeRoleArn"] = "arn:aws:iam::999999999999:role/agents".into();
    })
    .await;
    {
        let mut aws = stack.aws();
        let far = aws.elsewhere("us-east-1", "999999999999");
        far.settings().without_delays();
        far.create_cluster(tests::CLUSTER);
        let definition = json!({"family": "jenkins-node", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "cpu": "1024", "memory": "2048", "containerDefinitions": [
                {"name": "agent", "image": "jenkins/ssh-agent", "portMappings": [{"containerPort": 22, "hostPort": 22}]}]});
        far.register_definition(&definition).unwrap();
    }
    let url = stack.agent("far", "node").await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    let near = stack.agent("near", "maven").await;
    assert_eq!(stack.received(&near), ["agent.ready"]);
    let runs: Vec<_> =
        stack.aws().calls("ecs", "RunTask").iter().map(|call| (call.region.clone(), call.account.clone())).collect();
    assert_eq!(runs, [("us-east-1".into(), "999999999999".into()), ("eu-west-1".into(), "123456789012".into())]);
    for id in ["far", "near"] {
        stack.complete(json!({"requestId": id}));
        stack.settle().await;
    }
    assert!(stack.nodes().is_empty());
    assert!(stack.active_tasks().is_empty());
}

/// AWS is reached through a proxy that inspects TLS.
#[tokio::test]
async fn aws_is_trusted_by_the_authority_of_aws_ca_bundle() {
    let mut stack = Stack::start().await;
    let (edge, authority) = Edge::tls(stack.env("AWS_ENDPOINT_URL")).await.unwrap();
    stack.set_env("AWS_ENDPOINT_URL", Some(&edge.url));
    let said = failed_start(&mut stack, Binary::Request).await;
    assert!(said.contains("UnknownIssuer"), "{said}");

    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&bundle, authority).unwrap();
    stack.kill(Binary::Request);
    stack.set_env("AWS_CA_BUNDLE", bundle.path().to_str());
    stack.ask(json!({"requestId": "over-tls", "label": "maven"}));
    assert_eq!(stack.poll(Binary::Request, "requests").await, 1);
    assert_eq!(stack.active_tasks().len(), 1);

    stack.kill(Binary::Request);
    stack.set_env("AWS_CA_BUNDLE", Some("/nowhere/bundle.pem"));
    let said = failed_start(&mut stack, Binary::Request).await;
    assert!(said.contains("AWS_CA_BUNDLE: cannot read /nowhere/bundle.pem"), "{said}");
}
