//! Small cases from public reports about ECS and Auto Scaling that once failed, with their expected results.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tests::{CLUSTER, GROUP, Stack};

/// Instances of 4096 CPU units and 8192 MiB, tasks of 1024 and 2048; instances launched later never boot.
async fn world(change: impl FnOnce(&mut Value)) -> Stack {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 8192});
        change(config);
    })
    .await;
    {
        let mut aws = stack.aws();
        aws.ecs.settings().boot = Duration::from_secs(3600);
        aws.ecs.fill_group(GROUP, 0, Timestamp::now());
        let group = aws.ecs.group_mut(GROUP).unwrap();
        (group.size, group.maximum) = ((4096, 8192), 100);
    }
    stack.advance().clear();
    stack
}

/// This many agents of a label, requested in one batch.
async fn ask(stack: &mut Stack, label: &str, agents: u32) {
    for index in 0..agents.div_ceil(10) {
        let count = (agents - index * 10).min(10);
        stack.ask(json!({"requestId": format!("case-{label}-{index}"), "label": label, "count": count}));
    }
    stack.settle().await;
}

fn desired(stack: &Stack) -> u32 {
    stack.aws().ecs.group(GROUP).unwrap().desired
}

/// The registered instances have no room left.
fn take_all_room(stack: &Stack) {
    let mut aws = stack.aws();
    let arns: Vec<String> = aws.ecs.instances().map(|instance| instance.arn.clone()).collect();
    for arn in arns {
        aws.ecs.instance_mut(&arn).unwrap().free = (0, 0);
    }
}

fn define(stack: &Stack, family: &str, mode: &str, containers: &Value) {
    let definition = json!({"family": family, "networkMode": mode, "containerDefinitions": containers});
    stack.aws().ecs.register_definition(&definition).unwrap();
}

/// The only template's task definition, in which the container is looked up.
fn with_definition(config: &mut Value, family: &str) {
    let template = &mut config["clouds"][0]["templates"][0];
    template["taskDefinition"] = family.into();
    template.as_object_mut().unwrap().remove("container");
}

#[tokio::test]
async fn weighted_groups_are_raised_in_units() {
    // (weight, full instances, agents, right)
    for (weight, instances, agents, right) in [(2, 2, 3, 6), (8, 1, 20, 48), (2, 0, 20, 10), (1, 2, 3, 3)] {
        let mut stack = world(|_| {}).await;
        {
            let mut aws = stack.aws();
            aws.ecs.group_mut(GROUP).unwrap().weight = Some(weight);
            aws.ecs.fill_group(GROUP, weight * instances, Timestamp::now());
        }
        take_all_room(&stack);
        ask(&mut stack, "maven", agents).await;
        assert_eq!(desired(&stack), right, "weight {weight}, {instances} full, {agents} agents");
    }
}

#[tokio::test]
async fn instances_that_never_register_are_replaced() {
    // (never registered, full, agents, whether a size is configured, right)
    for (lost, full, agents, is_known, right) in
        [(1, 0, 1, true, 2), (1, 1, 2, true, 3), (1, 0, 1, false, 2), (5, 0, 15, true, 9)]
    {
        let mut stack = world(|config| {
            if !is_known {
                config["clouds"][0].as_object_mut().unwrap().remove("instanceCapacity");
            }
        })
        .await;
        {
            let mut aws = stack.aws();
            aws.ecs.group_mut(GROUP).unwrap().broken = lost;
            aws.ecs.fill_group(GROUP, lost, "2026-01-01T00:00:00Z".parse().unwrap());
            aws.ecs.fill_group(GROUP, lost + full, Timestamp::now());
        }
        take_all_room(&stack);
        stack.advance().clear();
        ask(&mut stack, "maven", agents).await;
        assert_eq!(desired(&stack), right, "{lost} lost, {full} full, {agents} agents, known: {is_known}");
    }
}

#[tokio::test]
async fn agents_that_share_no_instance_get_one_each_at_once() {
    let distinct = |config: &mut Value| {
        config["clouds"][0]["templates"][0]["placementConstraints"] = json!([{"type": "distinctInstance"}]);
    };
    let container = |extra: Value| {
        let mut container = json!({"name": "agent", "image": "jenkins/ssh-agent", "essential": true, "cpu": 1024,
            "memory": 2048, "portMappings": [{"containerPort": 22, "hostPort": 0}]});
        container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([container])
    };
    // From zero.
    let mut stack = world(distinct).await;
    ask(&mut stack, "maven", 3).await;
    assert_eq!(desired(&stack), 3, "distinctInstance");
    let mut stack = world(|config| with_definition(config, "one-port")).await;
    define(&stack, "one-port", "bridge", &container(json!({"portMappings": [{"containerPort": 22, "hostPort": 22}]})));
    ask(&mut stack, "maven", 4).await;
    assert_eq!(desired(&stack), 4, "a static host port");
    let mut stack = world(|_| {}).await;
    ask(&mut stack, "host", 4).await;
    assert_eq!(desired(&stack), 4, "the host's network");
    let gpu = container(json!({"resourceRequirements": [{"type": "GPU", "value": "1"}]}));
    let mut stack = world(|config| with_definition(config, "one-gpu")).await;
    define(&stack, "one-gpu", "bridge", &gpu);
    ask(&mut stack, "maven", 4).await;
    assert_eq!(desired(&stack), 4, "one GPU an instance");

    // Beside one that has its agent.
    let mut stack = world(distinct).await;
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    stack.agent("there", "maven").await;
    ask(&mut stack, "maven", 8).await;
    assert_eq!(desired(&stack), 9, "distinctInstance next to one");
    for daemons in [2, 0] {
        let mut stack = world(|config| with_definition(config, "one-gpu")).await;
        define(&stack, "one-gpu", "bridge", &gpu);
        define(&stack, "small", "bridge", &json!([{"name": "logs", "image": "logs", "cpu": 64, "memory": 64}]));
        {
            let mut aws = stack.aws();
            aws.ecs.group_mut(GROUP).unwrap().gpus = 1;
            aws.ecs.fill_group(GROUP, 1, Timestamp::now());
            for daemon in 0..daemons {
                aws.ecs.create_daemon(CLUSTER, &format!("daemon-{daemon}"), "small", Timestamp::now()).unwrap();
            }
        }
        stack.agent("there", "maven").await;
        ask(&mut stack, "maven", 4).await;
        assert_eq!(desired(&stack), 5, "one GPU per instance, next to one with {daemons} daemons");
    }
}

#[tokio::test]
async fn another_groups_instances_fail_no_build() {
    let member_of = |config: &mut Value| {
        config["clouds"][0]["templates"][0]["placementConstraints"] =
            json!([{"type": "memberOf", "expression": "attribute:ecs.cpu-architecture == x86_64"}]);
    };
    let attribute = |config: &mut Value| with_definition(config, "needs-attribute");
    for change in [member_of as fn(&mut Value), attribute] {
        // (own instances that boot, own full ones, right)
        for (booting, full, right) in [(0, 0, 1), (1, 0, 1), (0, 1, 2)] {
            let mut stack = world(change).await;
            let definition = json!({"family": "needs-attribute", "networkMode": "bridge",
                "runtimePlatform": {"cpuArchitecture": "X86_64", "operatingSystemFamily": "LINUX"},
                "containerDefinitions": [{"name": "agent", "image": "jenkins/ssh-agent", "cpu": 1024, "memory": 2048,
                    "portMappings": [{"containerPort": 22, "hostPort": 0}]}]});
            {
                let mut aws = stack.aws();
                let now = Timestamp::now();
                aws.ecs.register_definition(&definition).unwrap();
                aws.ecs.create_group("other", CLUSTER, (0, 1), (4096, 8192), now);
                let other = aws.ecs.group_mut("other").unwrap();
                other.attributes.insert("ecs.cpu-architecture".into(), "arm64".into());
                aws.ecs.fill_group("other", 1, now);
                aws.ecs.fill_group(GROUP, full, now);
                if booting > 0 {
                    let set = [("AutoScalingGroupName", GROUP), ("DesiredCapacity", "1")];
                    let form = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
                    aws.ecs.autoscaling("SetDesiredCapacity", &form, now).unwrap();
                }
                let own: Vec<String> = aws
                    .ecs
                    .instances()
                    .filter(|instance| !instance.attributes.values().any(|value| value == "arm64"))
                    .map(|instance| instance.arn.clone())
                    .collect();
                for arn in own {
                    aws.ecs.instance_mut(&arn).unwrap().free = (0, 0);
                }
            }
            stack.advance().clear();
            let url = stack.agent("ours", "maven").await;
            assert_eq!(stack.received(&url), Vec::<String>::new(), "{booting} boot, {full} full");
            assert_eq!(desired(&stack), right, "{booting} boot, {full} full");
            assert_eq!(stack.bodies("waiting").len(), 1);
        }
    }
}

#[tokio::test]
async fn a_task_that_fits_no_instance_with_its_daemon_fails_and_raises_nothing() {
    // (overrides of the task, memory of the daemon)
    for (overrides, daemon) in [(json!({"memory": 7800}), 512), (json!({"cpu": 4096, "memory": 1024}), 64)] {
        let mut stack = world(|_| {}).await;
        define(&stack, "daemon", "bridge", &json!([{"name": "d", "image": "d", "cpu": 64, "memory": daemon}]));
        stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
        stack.aws().ecs.create_daemon(CLUSTER, "everywhere", "daemon", Timestamp::now()).unwrap();
        stack.advance().clear();
        let url = stack.webhook();
        stack.ask(json!({"requestId": "too-large", "label": "maven", "webhookUrl": url, "overrides": overrides}));
        stack.settle().await;
        assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"], "{overrides}");
        assert_eq!(desired(&stack), 1, "{overrides}");
    }
}

#[tokio::test]
async fn a_familys_new_revision_counts_from_the_next_request_on() {
    let revision = |stack: &Stack, name: &str, memory: u32| {
        let agent = json!({"name": name, "image": "jenkins/ssh-agent", "essential": true, "cpu": 1024, "memory": memory,
            "portMappings": [{"containerPort": 22, "hostPort": 0}]});
        let sidecar = json!({"name": "sidecar", "image": "proxy", "essential": false, "cpu": 0, "memory": 64});
        define(stack, "moving", "bridge", &json!([sidecar, agent]));
    };
    let free = |stack: &Stack, memory: u32| {
        let mut aws = stack.aws();
        let arn = aws.ecs.instances().next().unwrap().arn.clone();
        aws.ecs.instance_mut(&arn).unwrap().free = (4096, memory);
    };
    let moving = |config: &mut Value| with_definition(config, "moving");

    // It needs more, and no longer fits.
    let mut stack = world(moving).await;
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    revision(&stack, "agent", 2048);
    stack.agent("first", "maven").await;
    revision(&stack, "agent", 6144);
    free(&stack, 4096);
    stack.agent("second", "maven").await;
    assert_eq!(desired(&stack), 2);

    // It needs less, and is no longer too large.
    let mut stack = world(moving).await;
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    revision(&stack, "agent", 16384);
    let url = stack.agent("first", "maven").await;
    assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"]);
    revision(&stack, "agent", 4096);
    free(&stack, 0);
    let url = stack.agent("second", "maven").await;
    assert_eq!((stack.received(&url), desired(&stack)), (Vec::new(), 2));

    // Its only essential container has another name.
    let mut stack = world(moving).await;
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    revision(&stack, "agent", 2048);
    stack.agent("first", "maven").await;
    revision(&stack, "builder", 2048);
    let url = stack.agent("second", "maven").await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn an_old_small_instance_beside_a_grown_launch_template_fails_no_build() {
    // (a small one is up, desired before, right)
    for (is_up, before, right) in [(true, 1, 2), (true, 2, 2), (false, 0, 1)] {
        let mut stack = world(|config| {
            config["clouds"][0]["instanceCapacity"] = json!({"cpu": 8192, "memory": 16384});
        })
        .await;
        {
            let mut aws = stack.aws();
            aws.ecs.fill_group(GROUP, u32::from(is_up), Timestamp::now());
            let set = [("AutoScalingGroupName", GROUP.to_owned()), ("DesiredCapacity", before.to_string())];
            let form = set.map(|(key, value)| (key.to_owned(), value)).into();
            aws.ecs.autoscaling("SetDesiredCapacity", &form, Timestamp::now()).unwrap();
        }
        stack.advance().clear();
        let url = stack.webhook();
        let overrides = json!({"cpu": 2048, "memory": 12288});
        stack.ask(json!({"requestId": "large", "label": "maven", "webhookUrl": url, "overrides": overrides}));
        stack.settle().await;
        assert_eq!(stack.received(&url), Vec::<String>::new(), "up: {is_up}, desired {before}");
        assert_eq!(desired(&stack), right, "up: {is_up}, desired {before}");
    }
}
