//! What takes room: daemons, GPUs, other architectures; and capacity providers.

use super::*;

/// A daemon of 64 CPU units and 512 MiB.
fn with_daemon(ecs: &mut Ecs) {
    let definition = json!({"family": "daemon", "containerDefinitions": [
        {"name": "logs", "image": "logs:1", "cpu": 64, "memory": 512}]});
    ecs.register_definition(&definition).unwrap();
    ecs.create_daemon("default", "logs", "daemon", at(0)).unwrap();
}

#[test]
fn a_daemon_runs_on_each_instance_and_reserves_resources() {
    let mut ecs = world();
    let old = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    with_daemon(&mut ecs);
    let new = ecs.add_instance("default", "i-2", (2048, 4096), 2, at(0));
    ecs.add_instance("other", "i-3", (2048, 4096), 2, at(0));
    ecs.advance(at(30));
    assert_eq!(ecs.tasks().count(), 2);
    let input = json!({"containerInstances": [old, new]});
    let shown = ecs.call("DescribeContainerInstances", &input, at(30)).unwrap();
    for instance in shown["containerInstances"].as_array().unwrap() {
        assert_eq!(instance["registeredResources"][1]["integerValue"], 4096);
        assert_eq!(instance["remainingResources"][1]["integerValue"], 4096 - 512);
        assert_eq!(instance["runningTasksCount"], 1);
    }
    let daemon = ecs.tasks().next().unwrap().clone();
    assert!(daemon.started_by.starts_with("ecs-svc/") && daemon.group == "service:logs", "{daemon:?}");
    assert!(ecs.doubled.is_empty(), "a service's tasks share a name");
    // A daemon that ends is started again.
    ecs.exit(&daemon.arn, 1, at(40));
    ecs.advance(at(60));
    assert_eq!(ecs.tasks().filter(|task| task.last_status == "RUNNING").count(), 2);
}

#[test]
fn a_daemon_stops_last_on_a_draining_instance_and_returns() {
    let mut ecs = world();
    with_daemon(&mut ecs);
    let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let agent = arn(&run(&mut ecs, json!({"taskDefinition": "small"}), at(0)));
    let state = |ecs: &mut Ecs, status: &str, now| {
        let input = json!({"containerInstances": [place], "status": status});
        ecs.call("UpdateContainerInstancesState", &input, now).unwrap();
    };
    state(&mut ecs, "DRAINING", at(30));
    ecs.advance(at(60));
    assert_eq!(ecs.instance(&place).unwrap().tasks.len(), 2, "an agent is still there");
    ecs.call("StopTask", &json!({"task": agent}), at(60)).unwrap();
    ecs.advance(at(120));
    assert!(ecs.instance(&place).unwrap().tasks.is_empty());
    state(&mut ecs, "ACTIVE", at(120));
    assert_eq!(ecs.instance(&place).unwrap().tasks.len(), 1);
}

#[test]
fn failures_name_the_instances_of_every_group() {
    let mut ecs = world();
    ecs.register_definition(&json!({"family": "gpu", "containerDefinitions": [
        {"name": "agent", "image": "agent:1", "memory": 64, "resourceRequirements": [{"type": "GPU", "value": "1"}]}]}))
        .unwrap();
    ecs.register_definition(&json!({"family": "arm", "runtimePlatform": {"cpuArchitecture": "ARM64"},
        "containerDefinitions": [{"name": "agent", "image": "agent:1", "memory": 64}]}))
        .unwrap();
    ecs.create_group("gpus", "default", (0, 5), (2048, 4096), at(0));
    ecs.group_mut("gpus").unwrap().gpus = 1;
    ecs.create_group("arms", "default", (0, 5), (2048, 4096), at(0));
    let arm = BTreeMap::from([("ecs.cpu-architecture".to_owned(), "arm64".to_owned())]);
    ecs.group_mut("arms").unwrap().attributes = arm;
    ecs.fill_group("gpus", 1, at(0));
    let answer = run(&mut ecs, json!({"taskDefinition": "arm"}), at(0));
    assert_eq!(reasons(&answer), ["ATTRIBUTE"]);
    ecs.fill_group("arms", 1, at(0));
    let first = run(&mut ecs, json!({"taskDefinition": "gpu"}), at(0));
    assert_eq!(ecs.task(&arn(&first)).unwrap().gpus, 1);
    assert_eq!(reasons(&run(&mut ecs, json!({"taskDefinition": "gpu"}), at(0))), ["RESOURCE:GPU"; 2]);
    let place = ecs.task(&arn(&first)).unwrap().instance.clone().unwrap();
    let shown = ecs.call("DescribeContainerInstances", &json!({"containerInstances": [place]}), at(0)).unwrap();
    let shown = &shown["containerInstances"][0];
    assert_eq!(shown["registeredResources"][4]["stringSetValue"].as_array().unwrap().len(), 1);
    assert_eq!(shown["remainingResources"][4]["stringSetValue"], json!([]));
    ecs.call("StopTask", &json!({"task": arn(&first)}), at(30)).unwrap();
    ecs.advance(at(60));
    arn(&run(&mut ecs, json!({"taskDefinition": "gpu"}), at(60)));
    arn(&run(&mut ecs, json!({"taskDefinition": "arm"}), at(60)));
}

#[test]
fn a_default_strategy_may_have_a_provider_without_instances() {
    let mut ecs = world();
    ecs.create_group("g", "default", (0, 2), (2048, 4096), at(0));
    ecs.create_capacity_provider("ec2", "g", false);
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    ecs.set_default_strategy("default", &[json!({"capacityProvider": "ec2", "weight": 1})]);
    let shown = ecs.call("DescribeClusters", &json!({}), at(0)).unwrap();
    assert_eq!(shown["clusters"][0]["defaultCapacityProviderStrategy"][0]["capacityProvider"], "ec2");
    // Its own instances are considered, not those without a provider.
    let answer = run(&mut ecs, json!({"taskDefinition": "small"}), at(0));
    assert_eq!(reasons(&answer), ["EMPTY CAPACITY PROVIDER"]);
    assert_eq!(answer["failures"][0]["arn"], "arn:aws:ecs:eu-west-1:111122223333:capacity-provider/ec2");
    arn(&run(&mut ecs, json!({"taskDefinition": "small", "launchType": "EC2"}), at(0)));
    ecs.fill_group("g", 1, at(0));
    let answer = run(&mut ecs, json!({"taskDefinition": "small"}), at(0));
    assert_eq!(answer["tasks"][0]["capacityProviderName"], "ec2");
}

#[test]
fn run_task_keeps_its_parameters() {
    let mut ecs = world();
    let tagged = json!({"family": "vpc", "networkMode": "awsvpc", "cpu": "512", "memory": "1024",
        "tags": [{"key": "of", "value": "definition"}, {"key": "k", "value": "definition"}],
        "containerDefinitions": [{"name": "agent", "image": "agent:1"}]});
    ecs.register_definition(&tagged).unwrap();
    let role = "arn:aws:iam::111122223333:role/build";
    let input = with(
        &on_fargate(),
        json!({"referenceId": "r-1", "propagateTags": "TASK_DEFINITION", "enableECSManagedTags": true,
            "tags": [{"key": "k", "value": "call"}],
            "overrides": {"taskRoleArn": role, "ephemeralStorage": {"sizeInGiB": 100}}}),
    );
    let arn = arn(&run(&mut ecs, input, at(0)));
    let shown = task(&mut ecs, &arn, at(0));
    assert_eq!(
        shown["tags"],
        json!([{"key": "aws:ecs:clusterName", "value": "default"}, {"key": "k", "value": "call"},
            {"key": "of", "value": "definition"}])
    );
    assert_eq!(shown["ephemeralStorage"]["sizeInGiB"], 100);
    assert_eq!(
        (&shown["overrides"]["taskRoleArn"], &shown["overrides"]["ephemeralStorage"]["sizeInGiB"]),
        (&json!(role), &json!(100))
    );
    assert_eq!(ecs.task(&arn).unwrap().reference_id.as_deref(), Some("r-1"));
    let plain = run(&mut ecs, on_fargate(), at(0));
    assert_eq!(
        (&plain["tasks"][0]["tags"], &plain["tasks"][0]["ephemeralStorage"]["sizeInGiB"]),
        (&json!([]), &json!(20))
    );

    let storage = |size: u32| json!({"overrides": {"ephemeralStorage": {"sizeInGiB": size}}});
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    for input in [
        with(&on_fargate(), storage(20)),
        with(&on_fargate(), storage(201)),
        with(&json!({"taskDefinition": "small"}), storage(21)),
        with(&on_fargate(), json!({"referenceId": "r".repeat(1025)})),
        with(&on_fargate(), json!({"propagateTags": "SERVICE"})),
    ] {
        assert_eq!(ecs.call("RunTask", &input, at(0)).unwrap_err().code, "InvalidParameterException", "{input}");
    }
    for size in [21, 200] {
        run(&mut ecs, with(&on_fargate(), storage(size)), at(0));
    }
}
