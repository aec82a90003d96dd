//! The rules, one table each.

mod bindings;
mod groups;
mod places;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;

const START: Timestamp = Timestamp::constant(1_790_000_000, 0);

fn at(seconds: i64) -> Timestamp {
    START + SignedDuration::from_secs(seconds)
}

/// A cluster with a few task definitions and no instances.
fn world() -> Ecs {
    let mut ecs = Ecs::new("eu-west-1", "111122223333");
    ecs.advance(START);
    ecs.create_cluster("default");
    ecs.create_cluster("other");
    for definition in [
        json!({"family": "bridge", "networkMode": "bridge", "containerDefinitions": [
            {"name": "sidecar", "image": "sidecar:1", "cpu": 0, "memory": 128, "essential": false, "portMappings": [{"containerPort": 80}]},
            {"name": "agent", "image": "agent:1", "cpu": 512, "memory": 2048, "memoryReservation": 896,
             "portMappings": [{"containerPort": 22, "hostPort": 0}, {"containerPort": 9, "hostPort": 9000}]},
        ]}),
        json!({"family": "small", "containerDefinitions": [{"name": "agent", "image": "agent:1", "cpu": 512, "memory": 1024,
            "portMappings": [{"containerPort": 22}]}]}),
        json!({"family": "unsized", "networkMode": "awsvpc", "containerDefinitions": [
            {"name": "agent", "image": "agent:1", "cpu": 512, "memory": 1024}]}),
        json!({"family": "host", "networkMode": "host", "containerDefinitions": [
            {"name": "agent", "image": "agent:1", "cpu": 512, "memory": 1024, "portMappings": [{"containerPort": 2222}]}]}),
        json!({"family": "vpc", "networkMode": "awsvpc", "cpu": "512", "memory": "1 GB", "taskRoleArn": "arn:aws:iam::1:role/r",
            "requiresCompatibilities": ["FARGATE"], "containerDefinitions": [
            {"name": "agent", "image": "agent:1", "portMappings": [{"containerPort": 22}], "healthCheck": {"command": ["true"]}}]}),
    ] {
        ecs.register_definition(&definition).unwrap();
    }
    ecs
}

fn network() -> Value {
    json!({"awsvpcConfiguration": {"subnets": ["subnet-7"]}})
}

fn on_fargate() -> Value {
    json!({"taskDefinition": "vpc", "launchType": "FARGATE", "networkConfiguration": network()})
}

/// `base` with the members of `more`.
fn with(base: &Value, more: Value) -> Value {
    let mut all = base.clone();
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

fn run(ecs: &mut Ecs, input: Value, now: Timestamp) -> Value {
    ecs.call("RunTask", &input, now).unwrap_or_else(|error| panic!("{input}: {error:?}"))
}

fn arn(answer: &Value) -> String {
    answer["tasks"][0]["taskArn"].as_str().unwrap_or_else(|| panic!("no task in {answer}")).to_owned()
}

fn task(ecs: &mut Ecs, arn: &str, now: Timestamp) -> Value {
    let answer = ecs.call("DescribeTasks", &json!({"tasks": [arn], "include": ["TAGS"]}), now).unwrap();
    answer["tasks"][0].clone()
}

fn reasons(answer: &Value) -> Vec<&str> {
    answer["failures"].as_array().unwrap().iter().map(|failure| failure["reason"].as_str().unwrap()).collect()
}

/// Runs the world up to a time, and returns the task events until then: `STATUS/desired`.
fn history(ecs: &mut Ecs, until: Timestamp) -> Vec<String> {
    ecs.advance(until);
    let events = ecs.take_events().into_iter().filter(|event| event["detail-type"] == "ECS Task State Change");
    let show = |event: Value| {
        let detail = &event["detail"];
        format!("{}/{}", detail["lastStatus"].as_str().unwrap(), detail["desiredStatus"].as_str().unwrap())
    };
    events.map(show).collect()
}

#[test]
fn refuses_invalid_calls_without_effect() {
    let small = json!({"taskDefinition": "small"});
    let tag = |key: &str, value: &str| json!([{"key": key, "value": value}]);
    let tags = |count: usize| (0..count).map(|n| json!({"key": format!("k{n}"), "value": ""})).collect::<Value>();
    let variable = |length: usize| json!({"containerOverrides": [{"name": "agent", "environment": [{"name": "A", "value": "x".repeat(length)}]}]});
    let provider = |items: Value| {
        with(
            &json!({"taskDefinition": "vpc", "networkConfiguration": network()}),
            json!({"capacityProviderStrategy": items}),
        )
    };
    for (input, code) in [
        (json!({}), "ClientException"),
        (json!({"taskDefinition": "none"}), "ClientException"),
        (json!({"taskDefinition": "small:2"}), "ClientException"),
        (json!({"taskDefinition": "arn:aws:ecs:us-east-1:111122223333:task-definition/small:1"}), "ClientException"),
        (with(&small, json!({"cluster": "none"})), "ClusterNotFoundException"),
        (
            with(&small, json!({"cluster": "arn:aws:ecs:us-east-1:111122223333:cluster/default"})),
            "ClusterNotFoundException",
        ),
        (with(&small, json!({"count": 0})), "InvalidParameterException"),
        (with(&small, json!({"count": 11})), "InvalidParameterException"),
        (with(&small, json!({"startedBy": "a".repeat(129)})), "InvalidParameterException"),
        (with(&small, json!({"startedBy": "a.b"})), "InvalidParameterException"),
        (with(&small, json!({"startedBy": "a b"})), "InvalidParameterException"),
        (with(&small, json!({"clientToken": "a".repeat(65)})), "InvalidParameterException"),
        (with(&small, json!({"clientToken": "a b"})), "InvalidParameterException"),
        (with(&small, json!({"tags": tags(51)})), "InvalidParameterException"),
        (with(&small, json!({"tags": tag("", "a")})), "InvalidParameterException"),
        (with(&small, json!({"tags": tag(&"k".repeat(129), "a")})), "InvalidParameterException"),
        (with(&small, json!({"tags": tag("k", &"v".repeat(257))})), "InvalidParameterException"),
        (with(&small, json!({"tags": tag("k", "a,b")})), "InvalidParameterException"),
        (with(&small, json!({"tags": tag("AWS:k", "a")})), "InvalidParameterException"),
        (with(&small, json!({"tags": [{"key": "k"}, {"key": "k"}]})), "InvalidParameterException"),
        (with(&small, json!({"tags": tag("k", "aws:v")})), "InvalidParameterException"),
        (
            with(&small, json!({"placementConstraints": vec![json!({"type": "distinctInstance"}); 11]})),
            "InvalidParameterException",
        ),
        (
            json!({"taskDefinition": "unsized", "launchType": "FARGATE", "networkConfiguration": network()}),
            "InvalidParameterException",
        ),
        (with(&small, json!({"overrides": variable(8192)})), "InvalidParameterException"),
        (with(&small, json!({"overrides": {"containerOverrides": [{"name": "none"}]}})), "InvalidParameterException"),
        (with(&small, json!({"networkConfiguration": network()})), "InvalidParameterException"),
        (with(&small, json!({"launchType": "FARGATE"})), "InvalidParameterException"),
        (with(&small, json!({"platformVersion": "LATEST"})), "InvalidParameterException"),
        (with(&small, json!({"launchType": "CLOUD"})), "InvalidParameterException"),
        (with(&small, json!({"enableExecuteCommand": true})), "InvalidParameterException"),
        (
            with(&small, json!({"placementConstraints": [{"type": "memberOf", "expression": "a ="}]})),
            "InvalidParameterException",
        ),
        (
            with(&small, json!({"placementConstraints": [{"type": "distinctInstance", "expression": "a == b"}]})),
            "InvalidParameterException",
        ),
        (
            with(&small, json!({"placementStrategy": [{"type": "binpack", "field": "disk"}]})),
            "InvalidParameterException",
        ),
        (with(&small, json!({"placementStrategy": vec![json!({"type": "random"}); 6]})), "InvalidParameterException"),
        (json!({"taskDefinition": "vpc"}), "InvalidParameterException"),
        (
            json!({"taskDefinition": "vpc", "networkConfiguration": {"awsvpcConfiguration": {"subnets": []}}}),
            "InvalidParameterException",
        ),
        (
            json!({"taskDefinition": "vpc", "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["s"], "assignPublicIp": "ENABLED"}}}),
            "InvalidParameterException",
        ),
        (
            json!({"taskDefinition": "vpc", "launchType": "EXTERNAL", "networkConfiguration": network()}),
            "InvalidParameterException",
        ),
        (with(&on_fargate(), json!({"placementStrategy": [{"type": "random"}]})), "InvalidParameterException"),
        (
            with(&on_fargate(), json!({"placementConstraints": [{"type": "distinctInstance"}]})),
            "InvalidParameterException",
        ),
        (with(&on_fargate(), json!({"platformVersion": "9.9.9"})), "PlatformUnknownException"),
        (with(&on_fargate(), json!({"overrides": {"cpu": "512", "memory": "512"}})), "ClientException"),
        (
            with(&on_fargate(), json!({"capacityProviderStrategy": [{"capacityProvider": "FARGATE"}]})),
            "InvalidParameterException",
        ),
        (provider(json!([{"capacityProvider": "none", "weight": 1}])), "InvalidParameterException"),
        (
            provider(
                json!([{"capacityProvider": "FARGATE", "weight": 0}, {"capacityProvider": "FARGATE_SPOT", "weight": 0}]),
            ),
            "InvalidParameterException",
        ),
        (
            provider(
                json!([{"capacityProvider": "FARGATE", "weight": 1, "base": 1}, {"capacityProvider": "FARGATE_SPOT", "base": 1}]),
            ),
            "InvalidParameterException",
        ),
    ] {
        // With room for everything, so that only the fault in question refuses the call.
        let mut ecs = world();
        ecs.add_instance("default", "i-1", (1 << 20, 1 << 20), 20, at(0));
        let error = ecs.call("RunTask", &input, at(0)).expect_err(&input.to_string());
        assert_eq!((error.status, error.code.as_str()), (400, code), "{input}: {}", error.message);
        assert_eq!(ecs.tasks().count(), 0, "{input}");
    }
    let mut ecs = world();
    let error = ecs.call("RunTask", &json!({"taskDefinition": "small"}), at(0)).unwrap_err();
    assert_eq!(error.message, "No Container Instances were found in your cluster.");
    let external = json!({"taskDefinition": "vpc", "launchType": "EXTERNAL", "networkConfiguration": network()});
    let error = ecs.call("RunTask", &external, at(0)).unwrap_err();
    assert_eq!(error.message, "Task definition does not support launch_type EXTERNAL.");
    assert_eq!(
        ecs.call("RunTask", &json!({"taskDefinition": "none"}), at(0)).unwrap_err().message,
        "TaskDefinition not found."
    );
    let error = ecs.call("DescribeTaskDefinition", &json!({"taskDefinition": "none"}), at(0)).unwrap_err();
    assert_eq!(error.message, "Unable to describe task definition.");
}

#[test]
fn accepts_the_largest_allowed_values() {
    let variables = |length: usize| json!({"containerOverrides": [{"name": "agent", "environment": [{"name": "A", "value": "x".repeat(length)}]}]});
    let frame = variables(0).to_string().len();
    for more in [
        json!({"startedBy": format!("{}/_-", "a".repeat(125))}),
        json!({"clientToken": format!("{}~!", "a".repeat(62))}),
        json!({"tags": (0..50).map(|n| json!({"key": format!("k{n}"), "value": "ä + - = . _ : / @"})).collect::<Value>()}),
        json!({"overrides": variables(8192 - frame)}),
        json!({"cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/default", "count": 10}),
        json!({"platformVersion": "1.4.0", "enableExecuteCommand": true}),
        json!({"taskDefinition": "arn:aws:ecs:eu-west-1:111122223333:task-definition/vpc:1"}),
        json!({"overrides": {"cpu": "1 vCPU", "memory": "2 GB"}}),
    ] {
        let mut ecs = world();
        let answer = run(&mut ecs, with(&on_fargate(), more.clone()), at(0));
        assert!(answer["failures"].as_array().unwrap().is_empty(), "{more}");
        assert_eq!(answer["tasks"].as_array().unwrap().len() as u64, more["count"].as_u64().unwrap_or(1), "{more}");
    }
}

#[test]
fn a_full_instance_names_the_missing_resource() {
    type Change = fn(&mut Instance);
    let cases: [(&str, Value, Change, &str); 8] = [
        ("small", json!({}), |instance| instance.free.0 = 511, "RESOURCE:CPU"),
        ("small", json!({}), |instance| instance.free.1 = 1023, "RESOURCE:MEMORY"),
        ("bridge", json!({}), |instance| assert!(instance.ports.insert(9000)), "RESOURCE:PORTS"),
        ("host", json!({}), |instance| assert!(instance.ports.insert(2222)), "RESOURCE:PORTS"),
        ("vpc", json!({"networkConfiguration": network()}), |instance| instance.interfaces = 0, "RESOURCE:ENI"),
        (
            "vpc",
            json!({"networkConfiguration": network()}),
            |instance| drop(instance.attributes.remove("ecs.capability.task-eni")),
            "ATTRIBUTE",
        ),
        ("small", json!({}), |instance| instance.connected = false, "AGENT"),
        (
            "small",
            json!({"placementConstraints": [{"type": "memberOf", "expression": "attribute:ecs.instance-type =~ t3.*"}]}),
            |_| (),
            "MemberOf placement constraint unsatisfied.",
        ),
    ];
    for (family, more, change, reason) in cases {
        let mut ecs = world();
        let place = ecs.add_instance("default", "i-1", (4096, 8192), 2, at(0));
        change(ecs.instance_mut(&place).unwrap());
        ecs.take_events();
        let answer = run(&mut ecs, with(&json!({"taskDefinition": family}), more), at(0));
        assert_eq!(answer["tasks"], json!([]), "{reason}");
        assert_eq!(answer["failures"], json!([{"arn": place, "reason": reason}]));
        assert!(ecs.take_events().is_empty());
    }
}

#[test]
fn an_instance_reserves_and_releases_resources() {
    let mut ecs = world();
    let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let size = ecs.instance(&place).unwrap().free;
    // The soft limit of the agent and the hard one of the sidecar: 896 + 128.
    let first = arn(&run(&mut ecs, json!({"taskDefinition": "bridge"}), at(0)));
    assert_eq!(ecs.instance(&place).unwrap().free, (size.0 - 512, size.1 - 1024));
    assert_eq!(reasons(&run(&mut ecs, json!({"taskDefinition": "bridge"}), at(0))), ["RESOURCE:PORTS"]);
    // Three of ten fit.
    let answer = run(&mut ecs, json!({"taskDefinition": "small", "count": 10}), at(0));
    assert_eq!(answer["tasks"].as_array().unwrap().len(), 3);
    assert_eq!(reasons(&answer), ["RESOURCE:CPU"]);
    let input = json!({"containerInstances": [place], "include": ["TAGS"]});
    let shown = ecs.call("DescribeContainerInstances", &input, at(0)).unwrap();
    let shown = &shown["containerInstances"][0];
    assert_eq!((&shown["pendingTasksCount"], &shown["runningTasksCount"]), (&json!(4), &json!(0)));
    assert_eq!(shown["remainingResources"][0]["integerValue"], 0);
    assert_eq!(shown["registeredResources"][1]["integerValue"], 4096);
    let ports = shown["remainingResources"][2]["stringSetValue"].as_array().unwrap();
    assert!(ports.contains(&json!("9000")) && ports.contains(&json!("22")) && ports.len() == 7, "{ports:?}");

    ecs.advance(at(60));
    let shown = task(&mut ecs, &first, at(60));
    let bindings = |index: usize| {
        let bindings = shown["containers"][index]["networkBindings"].as_array().unwrap();
        bindings
            .iter()
            .map(|binding| (binding["containerPort"].as_u64().unwrap(), binding["hostPort"].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!((bindings(0), bindings(1)), (vec![(80, 32768)], vec![(22, 32769), (9, 9000)]));
    let shown = ecs.call("DescribeContainerInstances", &input, at(60)).unwrap();
    assert_eq!(shown["containerInstances"][0]["runningTasksCount"], 4);

    let version = ecs.instance(&place).unwrap().version;
    let all: Vec<String> = ecs.tasks().map(|task| task.arn.clone()).collect();
    for arn in &all {
        ecs.call("StopTask", &json!({"task": arn}), at(60)).unwrap();
    }
    ecs.advance(at(120));
    let instance = ecs.instance(&place).unwrap();
    assert_eq!(instance.free, size);
    assert!(instance.ports.is_empty() && instance.tasks.is_empty());
    assert_eq!(instance.version, version + 4);
}

#[test]
fn considers_only_instances_that_accept_tasks() {
    let mut ecs = world();
    let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    ecs.add_instance("other", "i-2", (2048, 4096), 2, at(0));
    let drain = |status: &str| json!({"containerInstances": [place], "status": status});
    ecs.call("UpdateContainerInstancesState", &drain("DRAINING"), at(0)).unwrap();
    let error = ecs.call("RunTask", &json!({"taskDefinition": "small"}), at(0)).unwrap_err();
    assert_eq!(error.message, "No Container Instances were found in your cluster.");
    let list = |ecs: &mut Ecs, input: Value| {
        let answer = ecs.call("ListContainerInstances", &input, at(0)).unwrap();
        answer["containerInstanceArns"].as_array().unwrap().len()
    };
    for (input, count) in [
        (json!({}), 1),
        (json!({"status": "DRAINING"}), 1),
        (json!({"status": "ACTIVE"}), 0),
        (json!({"filter": "agentConnected == true"}), 1),
        (json!({"filter": "runningTasksCount > 0"}), 0),
        (json!({"cluster": "other", "filter": "attribute:ecs.os-type == linux and ec2InstanceId == i-2"}), 1),
    ] {
        assert_eq!(list(&mut ecs, input.clone()), count, "{input}");
    }
    ecs.call("UpdateContainerInstancesState", &drain("ACTIVE"), at(0)).unwrap();
    run(&mut ecs, json!({"taskDefinition": "small"}), at(0));
    assert_eq!(list(&mut ecs, json!({"filter": "runningTasksCount > 0"})), 1);
    // ECS Anywhere has instances of its own.
    let error = ecs.call("RunTask", &json!({"taskDefinition": "small", "launchType": "EXTERNAL"}), at(0)).unwrap_err();
    assert_eq!(error.code, "InvalidParameterException");
    let external = ecs.add_instance("default", "mi-1", (2048, 4096), 0, at(0));
    ecs.instance_mut(&external).unwrap().attributes.insert("ecs.capability.external".into(), String::new());
    let answer = run(&mut ecs, json!({"taskDefinition": "small", "launchType": "EXTERNAL"}), at(0));
    assert_eq!(answer["tasks"][0]["containerInstanceArn"], json!(external));
    for status in ["INACTIVE", "REGISTERING"] {
        assert!(ecs.call("UpdateContainerInstancesState", &drain(status), at(0)).is_err());
    }
}

#[test]
fn strategies_and_constraints_choose_the_instance() {
    // Two instances, one of which has less left; tasks go to the one that the strategy chooses.
    for (more, fuller) in [
        (json!({"placementStrategy": [{"type": "binpack", "field": "memory"}]}), true),
        (json!({"placementStrategy": [{"type": "binpack", "field": "CPU"}]}), true),
        (json!({"placementStrategy": [{"type": "spread", "field": "instanceId"}]}), false),
        (
            json!({"placementStrategy": [{"type": "spread", "field": "attribute:rack"}, {"type": "binpack", "field": "cpu"}]}),
            false,
        ),
        (json!({"placementConstraints": [{"type": "distinctInstance"}]}), false),
        (json!({"placementConstraints": [{"type": "memberOf", "expression": "attribute:rack == a"}]}), true),
    ] {
        let mut ecs = world();
        let full = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
        ecs.instance_mut(&full).unwrap().attributes.insert("rack".into(), "a".into());
        assert_eq!(
            run(&mut ecs, json!({"taskDefinition": "small"}), at(0))["tasks"][0]["containerInstanceArn"],
            json!(full)
        );
        ecs.add_instance("default", "i-2", (2048, 4096), 2, at(0));
        let answer = run(&mut ecs, with(&json!({"taskDefinition": "small"}), more.clone()), at(0));
        assert_eq!(answer["tasks"][0]["containerInstanceArn"] == json!(full), fuller, "{more}");
    }
    let mut ecs = world();
    for id in ["i-1", "i-2"] {
        ecs.add_instance("default", id, (2048, 4096), 2, at(0));
    }
    let distinct =
        json!({"taskDefinition": "small", "count": 3, "placementConstraints": [{"type": "distinctInstance"}]});
    let answer = run(&mut ecs, distinct, at(0));
    assert_eq!(answer["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(reasons(&answer), ["DistinctInstance placement constraint unsatisfied."; 2]);
}

#[test]
fn a_token_starts_one_task() {
    let mut ecs = world();
    let token = with(&on_fargate(), json!({"clientToken": "t-1", "startedBy": "ecs-a", "count": 2}));
    let first = run(&mut ecs, token.clone(), at(0));
    ecs.advance(at(30));
    let again = run(&mut ecs, token.clone(), at(30));
    assert_eq!(arn(&first), arn(&again));
    assert_eq!(
        (&first["tasks"][0]["lastStatus"], &again["tasks"][0]["lastStatus"]),
        (&json!("PROVISIONING"), &json!("RUNNING"))
    );
    assert_eq!(first["tasks"][0]["createdAt"], again["tasks"][0]["createdAt"]);
    let error = ecs.call("RunTask", &with(&token, json!({"startedBy": "ecs-b"})), at(30)).unwrap_err();
    let known: Vec<&Value> = first["tasks"].as_array().unwrap().iter().map(|task| &task["taskArn"]).collect();
    assert_eq!((error.code.as_str(), &error.extra), ("ConflictException", &json!({"resourceIds": known})));
    // Another cluster, another token.
    run(&mut ecs, with(&token, json!({"cluster": "other"})), at(30));
    assert_eq!(ecs.tasks().count(), 4);

    // It lives as long as ECS shows the task: an hour longer than the task at most.
    for arn in known {
        ecs.call("StopTask", &json!({"task": arn}), at(60)).unwrap();
    }
    assert_eq!(arn(&run(&mut ecs, token.clone(), at(3600))), arn(&first));
    assert_ne!(arn(&run(&mut ecs, token.clone(), at(3700))), arn(&first));

    // And 24 hours at most.
    let mut ecs = world();
    let first = run(&mut ecs, token.clone(), at(0));
    assert_eq!(arn(&run(&mut ecs, token.clone(), at(86_399))), arn(&first));
    assert_ne!(arn(&run(&mut ecs, token, at(86_400))), arn(&first));
}

#[test]
fn an_answer_of_failures_may_be_replayed_or_not() {
    for replays in [true, false] {
        let mut ecs = world();
        ecs.settings().replays_failures = replays;
        ecs.settings().fargate_has_capacity = false;
        let token = with(&on_fargate(), json!({"clientToken": "t-1"}));
        assert_eq!(reasons(&run(&mut ecs, token.clone(), at(0))).len(), 1);
        ecs.settings().fargate_has_capacity = true;
        assert_eq!(run(&mut ecs, token.clone(), at(1))["tasks"].as_array().unwrap().is_empty(), replays);
        assert_eq!(
            run(&mut ecs, with(&token, json!({"clientToken": "t-2"})), at(1))["tasks"].as_array().unwrap().len(),
            1
        );
    }
}

#[test]
fn fargate_may_have_no_capacity() {
    let mut ecs = world();
    let spot = json!({"taskDefinition": "vpc", "networkConfiguration": network(), "capacityProviderStrategy": [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]});
    ecs.settings().spot_has_capacity = false;
    assert_eq!(run(&mut ecs, on_fargate(), at(0))["tasks"].as_array().unwrap().len(), 1);
    assert!(reasons(&run(&mut ecs, spot.clone(), at(0)))[0].starts_with("Capacity is unavailable"));
    ecs.settings().lack_of_fargate_is_an_error = true;
    assert_eq!(ecs.call("RunTask", &spot, at(0)).unwrap_err().code, "ClientException");
    ecs.settings().spot_has_capacity = true;
    let answer = run(&mut ecs, spot, at(0));
    assert_eq!(
        (&answer["tasks"][0]["capacityProviderName"], &answer["tasks"][0]["launchType"]),
        (&json!("FARGATE_SPOT"), &json!("FARGATE"))
    );
}

#[test]
fn providers_share_tasks_by_base_and_weight() {
    for (strategy, on_spot) in [
        (json!([{"capacityProvider": "FARGATE", "weight": 1}, {"capacityProvider": "FARGATE_SPOT", "weight": 4}]), 8),
        (
            json!([{"capacityProvider": "FARGATE", "weight": 1, "base": 5}, {"capacityProvider": "FARGATE_SPOT", "weight": 4}]),
            4,
        ),
        (json!([{"capacityProvider": "FARGATE"}, {"capacityProvider": "FARGATE_SPOT", "weight": 1}]), 10),
    ] {
        let mut ecs = world();
        let input = json!({"taskDefinition": "vpc", "networkConfiguration": network(), "count": 10, "capacityProviderStrategy": strategy});
        run(&mut ecs, input.clone(), at(0));
        let spot = ecs.tasks().filter(|task| task.provider.as_deref() == Some("FARGATE_SPOT")).count();
        assert_eq!(spot, on_spot, "{input}");
    }
}

#[test]
fn run_task_is_throttled_by_a_bucket() {
    let mut ecs = world();
    ecs.settings().quotas = None;
    let throttled = |ecs: &mut Ecs, now: Timestamp, calls: usize| {
        (0..calls)
            .filter(|_| ecs.call("RunTask", &on_fargate(), now).is_err_and(|error| error.code == "ThrottlingException"))
            .count()
    };
    assert_eq!(throttled(&mut ecs, at(0), 25), 5);
    assert_eq!(throttled(&mut ecs, at(0) + SignedDuration::from_millis(500), 15), 5);
    assert_eq!(throttled(&mut ecs, at(100), 25), 5);
    ecs.settings().run_task_rate = None;
    assert_eq!(throttled(&mut ecs, at(100), 100), 0);
}

#[test]
fn calls_of_one_kind_share_a_bucket() {
    for (actions, burst, per_second) in [
        (&["DescribeTasks", "ListTasks", "ListContainerInstances", "DescribeContainerInstances"][..], 100, 20),
        (&["TagResource", "UntagResource"], 20, 10),
        (&["StopTask", "RunTask", "UpdateContainerInstancesState"], 100, 40),
        (&["DescribeClusters"], 50, 20),
        (&["DescribeTaskDefinition"], 50, 20),
    ] {
        let mut ecs = world();
        ecs.settings().run_task_rate = None;
        // Invalid calls count, too.
        let taken = |ecs: &mut Ecs, now: Timestamp| {
            let mut count = 0;
            for action in actions.iter().cycle().take(300) {
                let throttled = |error: ApiError| error.code == "ThrottlingException";
                count += usize::from(!ecs.call(action, &json!({}), now).is_err_and(throttled));
            }
            count
        };
        assert_eq!((taken(&mut ecs, at(0)), taken(&mut ecs, at(1))), (burst, per_second), "{actions:?}");
        ecs.settings().quotas = None;
        assert_eq!(taken(&mut ecs, at(1)), 300);
    }
}

#[test]
fn a_tasks_lifecycle_follows_its_launch_type_and_containers() {
    let stop = 30;
    type Then = fn(&mut Ecs, &str);
    let nothing: Then = |_, _| ();
    let stopped: Then = |ecs, arn| drop(ecs.call("StopTask", &json!({"task": arn, "reason": "enough"}), at(30)));
    let up = ["PENDING/RUNNING", "RUNNING/RUNNING"];
    let up_vpc = ["PROVISIONING/RUNNING", "PENDING/RUNNING", "RUNNING/RUNNING"];
    let down = ["RUNNING/STOPPED", "DEACTIVATING/STOPPED", "STOPPING/STOPPED"];
    let gone = ["STOPPED/STOPPED"];
    let gone_vpc = ["DEPROVISIONING/STOPPED", "STOPPED/STOPPED"];
    for (name, input, behaviour, then, expected) in [
        ("runs", json!({"taskDefinition": "small"}), Behaviour::Runs, nothing, up.to_vec()),
        ("is stopped", json!({"taskDefinition": "small"}), Behaviour::Runs, stopped, [&up[..], &down, &gone].concat()),
        ("is stopped on Fargate", on_fargate(), Behaviour::Runs, stopped, [&up_vpc[..], &down, &gone_vpc].concat()),
        ("is unhealthy", on_fargate(), Behaviour::Unhealthy, nothing, up_vpc.to_vec()),
        ("has no result", on_fargate(), Behaviour::HealthUnknown, nothing, up_vpc.to_vec()),
        (
            "is interrupted",
            on_fargate(),
            Behaviour::Runs,
            |ecs, arn| ecs.interrupt(arn, at(30)),
            [&up_vpc[..], &down, &gone_vpc].concat(),
        ),
        (
            "exits",
            json!({"taskDefinition": "small"}),
            Behaviour::Exits { after: Duration::from_secs(9), code: 3 },
            nothing,
            [&up[..], &gone].concat(),
        ),
        (
            "has no image",
            json!({"taskDefinition": "small"}),
            Behaviour::ImageMissing,
            nothing,
            [&up[..1], &gone].concat(),
        ),
        ("has no image on Fargate", on_fargate(), Behaviour::ImageMissing, nothing, [&up_vpc[..2], &gone_vpc].concat()),
        ("never runs", json!({"taskDefinition": "small"}), Behaviour::NeverRuns, nothing, up[..1].to_vec()),
        (
            "never runs and is stopped",
            json!({"taskDefinition": "small"}),
            Behaviour::NeverRuns,
            stopped,
            vec!["PENDING/RUNNING", "PENDING/STOPPED", "STOPPING/STOPPED", "STOPPED/STOPPED"],
        ),
    ] {
        let mut ecs = world();
        ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
        let family = input["taskDefinition"].as_str().unwrap().to_owned();
        ecs.behave(&family, behaviour);
        let arn = arn(&run(&mut ecs, input, at(0)));
        let mut seen = history(&mut ecs, at(stop));
        then(&mut ecs, &arn);
        seen.extend(history(&mut ecs, at(100)));
        assert_eq!(seen, expected, "{name}");
        assert_eq!(ecs.task(&arn).unwrap().version as usize, expected.len(), "{name}");
    }
}

#[test]
fn a_stopped_task_says_why() {
    type Then = fn(&mut Ecs, &str);
    let nothing: Then = |_, _| ();
    let small = || json!({"taskDefinition": "small"});
    for (input, behaviour, then, code, reason, exit, container) in [
        (
            small(),
            Behaviour::Runs,
            (|ecs, arn| drop(ecs.call("StopTask", &json!({"task": arn, "reason": "enough"}), at(30)))) as Then,
            "UserInitiated",
            "enough",
            json!(143),
            Value::Null,
        ),
        (
            small(),
            Behaviour::Runs,
            |ecs, arn| drop(ecs.call("StopTask", &json!({"task": arn}), at(30))),
            "UserInitiated",
            "Task stopped by user",
            json!(143),
            Value::Null,
        ),
        (
            small(),
            Behaviour::Exits { after: Duration::from_secs(1), code: 7 },
            nothing,
            "EssentialContainerExited",
            "Essential container in task exited",
            json!(7),
            Value::Null,
        ),
        (
            small(),
            Behaviour::ImageMissing,
            nothing,
            "TaskFailedToStart",
            "Task failed to start",
            Value::Null,
            json!("CannotPull"),
        ),
        (
            on_fargate(),
            Behaviour::ImageMissing,
            nothing,
            "TaskFailedToStart",
            "CannotPull",
            Value::Null,
            json!("CannotPull"),
        ),
        (
            on_fargate(),
            Behaviour::FailsToStart { reason: "ResourceInitializationError: no".into() },
            nothing,
            "TaskFailedToStart",
            "ResourceInit",
            Value::Null,
            json!("ResourceInit"),
        ),
        (
            on_fargate(),
            Behaviour::Runs,
            |ecs, arn| ecs.interrupt(arn, at(30)),
            "SpotInterruption",
            "Your Spot Task was interrupted.",
            json!(143),
            Value::Null,
        ),
        (
            small(),
            Behaviour::Runs,
            |ecs, _| ecs.kill_instance("i-1", at(30)),
            "TerminationNotice",
            "Host EC2 (instance i-1) terminated.",
            Value::Null,
            Value::Null,
        ),
    ] {
        let mut ecs = world();
        ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
        ecs.behave(input["taskDefinition"].as_str().unwrap(), behaviour);
        let arn = arn(&run(&mut ecs, input, at(0)));
        ecs.advance(at(30));
        then(&mut ecs, &arn);
        ecs.advance(at(60));
        let shown = task(&mut ecs, &arn, at(60));
        assert_eq!(
            (shown["lastStatus"].as_str(), shown["stopCode"].as_str()),
            (Some("STOPPED"), Some(code)),
            "{shown}"
        );
        assert!(shown["stoppedReason"].as_str().unwrap().starts_with(reason), "{shown}");
        assert_eq!(shown["containers"][0]["exitCode"], exit, "{shown}");
        let reason = shown["containers"][0]["reason"].as_str();
        assert!(reason.is_none_or(|reason| reason.starts_with(container.as_str().unwrap_or("?"))), "{shown}");
        assert_eq!(reason.is_some(), container.is_string());
    }
}

/// What was pending when a task was stopped or lost has no effect.
#[test]
fn nothing_happens_after_the_end() {
    let mut ecs = world();
    ecs.settings().stopping = Duration::from_secs(10);
    ecs.settings().pull = Duration::from_secs(1);
    ecs.settings().start = Duration::from_secs(5);
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let arn = arn(&run(&mut ecs, json!({"taskDefinition": "small"}), at(0)));
    ecs.call("StopTask", &json!({"task": arn}), at(2)).unwrap();
    let seen = history(&mut ecs, at(9));
    assert_eq!(seen, ["PENDING/RUNNING", "PENDING/STOPPED"], "it does not start while it is to stop");
    ecs.kill_instance("i-1", at(9));
    assert_eq!(history(&mut ecs, at(100)), ["STOPPED/STOPPED"]);
    assert_eq!(ecs.task(&arn).unwrap().stop_code.as_deref(), Some("UserInitiated"));
}

#[test]
fn a_sidecar_may_end_and_the_task_goes_on() {
    let mut ecs = world();
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let arn = arn(&run(&mut ecs, json!({"taskDefinition": "bridge"}), at(0)));
    ecs.advance(at(30));
    ecs.exit_container(&arn, "sidecar", 1, at(30));
    assert_eq!(task(&mut ecs, &arn, at(40))["lastStatus"], "RUNNING");
    ecs.exit(&arn, 5, at(40));
    let shown = task(&mut ecs, &arn, at(50));
    assert_eq!((&shown["containers"][0]["exitCode"], &shown["containers"][1]["exitCode"]), (&json!(1), &json!(5)));
    assert_eq!(shown["stopCode"], "EssentialContainerExited");
}

#[test]
fn stop_task_deletes_tags_and_is_idempotent() {
    let mut ecs = world();
    let tags = json!([{"key": "k", "value": "v"}]);
    let arn = arn(&run(&mut ecs, with(&on_fargate(), json!({"tags": tags})), at(0)));
    assert_eq!(task(&mut ecs, &arn, at(1))["tags"], tags);
    let first = ecs.call("StopTask", &json!({"task": arn, "reason": "one"}), at(2)).unwrap();
    assert_eq!(
        (&first["task"]["lastStatus"], &first["task"]["desiredStatus"]),
        (&json!("PROVISIONING"), &json!("STOPPED"))
    );
    let version = ecs.task(&arn).unwrap().version;
    ecs.call("StopTask", &json!({"task": arn, "reason": "two"}), at(2)).unwrap();
    assert_eq!(ecs.task(&arn).unwrap().version, version);
    let shown = task(&mut ecs, &arn, at(60));
    assert_eq!((&shown["tags"], &shown["stoppedReason"]), (&json!([]), &json!("one")));
    ecs.call("StopTask", &json!({"task": arn}), at(60)).unwrap();
    let id = arn.rsplit('/').next().unwrap();
    for (input, message) in [
        (json!({"task": id, "cluster": "default", "reason": "r".repeat(256)}), "255"),
        (json!({"task": "0".repeat(32)}), "The referenced task was not found."),
        (json!({"task": "gone"}), "taskId length"),
        (json!({"task": arn, "cluster": "other"}), "Identifier is for cluster default"),
        (json!({"task": arn.replace("eu-west-1", "us-east-1")}), "Invalid identifier"),
        (json!({"task": arn.replace("111122223333", "444455556666")}), "Invalid identifier"),
    ] {
        let error = ecs.call("StopTask", &input, at(61)).unwrap_err();
        assert_eq!(error.code, "InvalidParameterException");
        assert!(error.message.contains(message), "{input}: {}", error.message);
    }
    ecs.call("StopTask", &json!({"task": id, "reason": "r".repeat(255)}), at(61)).unwrap();
}

#[test]
fn a_stopped_task_is_shown_for_an_hour() {
    let mut ecs = world();
    let arn = arn(&run(&mut ecs, with(&on_fargate(), json!({"startedBy": "ecs-a"})), at(0)));
    ecs.call("StopTask", &json!({"task": arn}), at(30)).unwrap();
    ecs.advance(at(40));
    let listed = |ecs: &mut Ecs, now: Timestamp| {
        let input = json!({"startedBy": "ecs-a", "desiredStatus": "STOPPED"});
        ecs.call("ListTasks", &input, now).unwrap()["taskArns"].as_array().unwrap().len()
    };
    assert_eq!(
        (task(&mut ecs, &arn, at(3600))["lastStatus"].as_str(), listed(&mut ecs, at(3600))),
        (Some("STOPPED"), 1)
    );
    let answer = ecs.call("DescribeTasks", &json!({"tasks": [arn]}), at(3700)).unwrap();
    assert_eq!((&answer["tasks"], &answer["failures"]), (&json!([]), &json!([{"arn": arn, "reason": "MISSING"}])));
    assert_eq!(listed(&mut ecs, at(3700)), 0);
    assert_eq!(ecs.next_due(), None);
    assert!(ecs.by_starter.is_empty() && ecs.tokens.is_empty() && ecs.interfaces.is_empty() && ecs.ended.is_empty());
}

#[test]
fn lists_are_filtered_and_paged() {
    let mut ecs = world();
    ecs.settings().run_task_rate = None;
    ecs.settings().quotas = None;
    ecs.add_instance("default", "i-1", (1 << 20, 1 << 20), 2, at(0));
    for n in 0..25 {
        run(&mut ecs, json!({"taskDefinition": "small", "count": 10, "startedBy": format!("ecs-{}", n % 5)}), at(0));
    }
    run(&mut ecs, with(&on_fargate(), json!({"startedBy": "ecs-0"})), at(0));
    run(&mut ecs, with(&on_fargate(), json!({"cluster": "other"})), at(0));
    let place = ecs.instances().next().unwrap().arn.clone();
    let all = |ecs: &mut Ecs, input: Value| {
        let (mut arns, mut pages, mut token) = (Vec::new(), 0, Value::Null);
        loop {
            let answer = ecs.call("ListTasks", &with(&input, json!({"nextToken": token})), at(0)).unwrap();
            arns.extend(answer["taskArns"].as_array().unwrap().clone());
            pages += 1;
            token = answer["nextToken"].clone();
            if token.is_null() {
                let distinct: std::collections::BTreeSet<String> = arns.iter().map(Value::to_string).collect();
                assert_eq!(distinct.len(), arns.len(), "{input}");
                return (arns.len(), pages);
            }
        }
    };
    for (input, found) in [
        (json!({}), (251, 3)),
        (json!({"maxResults": 50}), (251, 6)),
        (json!({"startedBy": "ecs-0"}), (51, 1)),
        (json!({"startedBy": "ecs-0", "desiredStatus": "RUNNING", "maxResults": 20}), (51, 3)),
        (json!({"startedBy": "ecs-0", "desiredStatus": "STOPPED"}), (0, 1)),
        (json!({"startedBy": "none"}), (0, 1)),
        (json!({"desiredStatus": "PENDING"}), (0, 1)),
        (json!({"family": "small"}), (250, 3)),
        (json!({"family": "vpc", "launchType": "FARGATE"}), (1, 1)),
        (json!({"launchType": "EC2"}), (250, 3)),
        (json!({"containerInstance": place}), (250, 3)),
        (json!({"containerInstance": place.rsplit('/').next()}), (250, 3)),
        (json!({"cluster": "other"}), (1, 1)),
    ] {
        assert_eq!(all(&mut ecs, input.clone()), found, "{input}");
    }
    for input in [
        json!({"startedBy": "a", "family": "small"}),
        json!({"startedBy": "a", "launchType": "EC2"}),
        json!({"maxResults": 101}),
        json!({"desiredStatus": "GONE"}),
        json!({"launchType": "CLOUD"}),
        json!({"nextToken": "garbage"}),
    ] {
        assert_eq!(ecs.call("ListTasks", &input, at(0)).unwrap_err().code, "InvalidParameterException", "{input}");
    }
    for (action, input) in [
        ("ListContainerInstances", json!({"status": "GONE"})),
        ("ListContainerInstances", json!({"nextToken": "garbage"})),
        ("DescribeContainerInstances", json!({"containerInstances": [place], "include": ["TAG"]})),
        ("DescribeTasks", json!({"tasks": ["0".repeat(32)], "include": ["EVENTS"]})),
        ("DescribeClusters", json!({"include": ["tags"]})),
        ("DescribeTaskDefinition", json!({"taskDefinition": "small", "include": ["ALL"]})),
    ] {
        assert_eq!(ecs.call(action, &input, at(0)).unwrap_err().code, "InvalidParameterException", "{action} {input}");
    }
    let many: Vec<String> = (0..101).map(|n| format!("{n:032}")).collect();
    assert!(ecs.call("DescribeTasks", &json!({"tasks": many}), at(0)).is_err());
    assert!(ecs.call("DescribeTasks", &json!({"tasks": []}), at(0)).is_err());
    assert_eq!(
        ecs.call("DescribeTasks", &json!({"tasks": many[..100]}), at(0)).unwrap()["failures"].as_array().unwrap().len(),
        100
    );
}

#[test]
fn awsvpc_tasks_have_an_interface_of_their_own() {
    let mut ecs = world();
    let public = json!({"awsvpcConfiguration": {"subnets": ["subnet-7"], "assignPublicIp": "ENABLED"}});
    let arn = arn(&run(&mut ecs, with(&on_fargate(), json!({"networkConfiguration": public})), at(0)));
    let detail = |shown: &Value, name: &str| {
        let details = shown["attachments"][0]["details"].as_array().unwrap();
        details.iter().find(|detail| detail["name"] == name).map(|detail| detail["value"].as_str().unwrap().to_owned())
    };
    let shown = task(&mut ecs, &arn, at(1));
    assert_eq!(
        (shown["attachments"][0]["status"].as_str(), detail(&shown, "networkInterfaceId")),
        (Some("PRECREATED"), None)
    );
    let shown = task(&mut ecs, &arn, at(30));
    let (id, address) = (detail(&shown, "networkInterfaceId").unwrap(), detail(&shown, "privateIPv4Address").unwrap());
    assert_eq!(shown["attachments"][0]["type"], "ElasticNetworkInterface");
    assert_eq!(shown["containers"][0]["networkInterfaces"][0]["privateIpv4Address"], json!(address));
    assert_eq!((&shown["containers"][0]["networkBindings"], &shown["healthStatus"]), (&json!([]), &json!("HEALTHY")));
    let describe = |ecs: &mut Ecs, now| {
        ecs.ec2("DescribeNetworkInterfaces", &BTreeMap::from([("NetworkInterfaceId.1".to_owned(), id.clone())]), now)
    };
    let xml = describe(&mut ecs, at(30)).unwrap();
    let found = ecs.task(&arn).unwrap().interface.clone().unwrap();
    assert!(xml.contains(&format!("<privateIpAddress>{address}</privateIpAddress>")), "{xml}");
    assert!(xml.contains(&format!("<association><publicIp>{}</publicIp>", found.public_address.unwrap())), "{xml}");
    let events = ecs.take_events();
    assert_eq!(events.last().unwrap()["detail"]["attachments"][0]["type"], "eni");
    ecs.call("StopTask", &json!({"task": arn}), at(30)).unwrap();
    assert_eq!(describe(&mut ecs, at(60)).unwrap_err().code, "InvalidNetworkInterfaceID.NotFound");
}

#[test]
fn events_are_complete_and_have_no_tags() {
    let mut ecs = world();
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let overrides = json!({"containerOverrides": [{"name": "agent", "environment": [{"name": "A", "value": "b"}]}]});
    let input = json!({"taskDefinition": "bridge", "startedBy": "ecs-a", "tags": [{"key": "k", "value": "v"}], "overrides": overrides});
    let arn = arn(&run(&mut ecs, input, at(1)));
    ecs.advance(at(30));
    let events = ecs.take_events();
    let kinds: Vec<&str> = events.iter().map(|event| event["detail-type"].as_str().unwrap()).collect();
    let (on_task, on_instance) = ("ECS Task State Change", "ECS Container Instance State Change");
    // Registered; the task placed, with what is left of the instance; running.
    assert_eq!(kinds, [on_instance, on_task, on_instance, on_task]);
    for event in &events {
        assert_eq!(
            (&event["source"], &event["account"], &event["region"]),
            (&json!("aws.ecs"), &json!("111122223333"), &json!("eu-west-1"))
        );
        assert!(
            event["detail"]["tags"].is_null() && event["version"] == "0" && event["id"].as_str().unwrap().len() == 36
        );
        assert!(event["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
        assert_eq!(event["detail"]["clusterArn"], "arn:aws:ecs:eu-west-1:111122223333:cluster/default");
    }
    let detail = &events[3]["detail"];
    assert_eq!(events[3]["resources"], json!([arn]));
    assert_eq!(
        (&detail["startedBy"], &detail["version"], &detail["group"]),
        (&json!("ecs-a"), &json!(2), &json!("family:bridge"))
    );
    assert_eq!(detail["overrides"]["containerOverrides"][1]["environment"][0]["value"], "b");
    assert_eq!(detail["overrides"]["containerOverrides"][0], json!({"name": "sidecar"}));
    assert_eq!(detail["createdAt"], json!(at(1)));
    assert_eq!(detail["containers"][1]["networkBindings"][0]["hostPort"], 32769);
    let instance = &events[2]["detail"];
    assert_eq!(
        (&instance["remainingResources"][0]["integerValue"], &instance["pendingTasksCount"]),
        (&json!(1536), &json!(1))
    );
    assert_eq!((&instance["version"], &instance["ec2InstanceId"]), (&json!(2), &json!("i-1")));
    assert!(ecs.take_events().is_empty());
}

#[test]
fn tags_are_set_on_existing_resources() {
    let mut ecs = world();
    let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let arn = arn(&run(&mut ecs, on_fargate(), at(0)));
    for resource in [
        &arn,
        &place,
        "arn:aws:ecs:eu-west-1:111122223333:cluster/default",
        "arn:aws:ecs:eu-west-1:111122223333:task-definition/vpc:1",
    ] {
        let tag = |key: &str| json!({"resourceArn": resource, "tags": [{"key": key, "value": "v"}]});
        ecs.call("TagResource", &tag("a"), at(1)).unwrap();
        ecs.call("TagResource", &tag("b"), at(1)).unwrap();
        ecs.call("UntagResource", &json!({"resourceArn": resource, "tagKeys": ["a", "none"]}), at(1)).unwrap();
        let listed = ecs.call("ListTagsForResource", &json!({"resourceArn": resource}), at(1)).unwrap();
        assert_eq!(listed["tags"], json!([{"key": "b", "value": "v"}]), "{resource}");
        assert!(
            ecs.call("TagResource", &json!({"resourceArn": resource, "tags": [{"key": "aws:x", "value": ""}]}), at(1))
                .is_err()
        );
    }
    let input = json!({"containerInstances": [place.rsplit('/').next(), "none"], "include": ["TAGS"]});
    let answer = ecs.call("DescribeContainerInstances", &input, at(1)).unwrap();
    assert_eq!(answer["containerInstances"][0]["tags"][0]["key"], "b");
    assert_eq!(answer["failures"][0]["reason"], "MISSING");

    ecs.call("StopTask", &json!({"task": arn}), at(1)).unwrap();
    let tag = json!({"resourceArn": arn, "tags": [{"key": "a", "value": "v"}]});
    assert!(ecs.call("TagResource", &tag, at(60)).unwrap_err().message.starts_with("The specified task is stopped."));
    ecs.settings().tags_on_stopped_tasks = true;
    ecs.call("TagResource", &tag, at(60)).unwrap();
    let gone = json!({"resourceArn": format!("{}0", &arn[..arn.len() - 1]), "tags": []});
    assert_eq!(ecs.call("TagResource", &gone, at(60)).unwrap_err().code, "ResourceNotFoundException");
}

#[test]
fn task_definitions_have_revisions() {
    let mut ecs = world();
    let second =
        json!({"family": "small", "containerDefinitions": [{"name": "agent", "image": "agent:2", "memory": 512}]});
    let answer = ecs.call("RegisterTaskDefinition", &second, at(0)).unwrap();
    assert_eq!(answer["taskDefinition"]["revision"], 2);
    let shown = |ecs: &mut Ecs, name: &str| {
        ecs.call("DescribeTaskDefinition", &json!({"taskDefinition": name}), at(0))
            .map(|answer| answer["taskDefinition"].clone())
    };
    let arn = "arn:aws:ecs:eu-west-1:111122223333:task-definition/small:1";
    for (name, revision) in [("small", 2), ("small:1", 1), (arn, 1)] {
        assert_eq!(shown(&mut ecs, name).unwrap()["revision"], revision, "{name}");
    }
    let first = shown(&mut ecs, "small:1").unwrap();
    let container = &first["containerDefinitions"][0];
    assert_eq!((&container["essential"], &container["portMappings"][0]["hostPort"]), (&json!(true), &json!(0)));
    assert_eq!((&first["status"], &first["compatibilities"]), (&json!("ACTIVE"), &json!(["EXTERNAL", "EC2"])));
    let vpc = shown(&mut ecs, "vpc").unwrap();
    assert_eq!((&vpc["memory"], &vpc["compatibilities"]), (&json!("1024"), &json!(["EC2", "FARGATE"])));
    assert_eq!(vpc["containerDefinitions"][0]["portMappings"][0]["hostPort"], 22);

    ecs.call("DeregisterTaskDefinition", &json!({"taskDefinition": "small:2"}), at(0)).unwrap();
    assert_eq!(shown(&mut ecs, "small").unwrap()["revision"], 1);
    assert_eq!(shown(&mut ecs, "small:2").unwrap()["status"], "INACTIVE");
    let error = ecs.call("RunTask", &json!({"taskDefinition": "small:2"}), at(0)).unwrap_err();
    assert_eq!((error.code.as_str(), error.message.as_str()), ("ClientException", "TaskDefinition is inactive"));

    let container = |more: Value| json!([with(&json!({"name": "a", "image": "b", "memory": 1}), more)]);
    for definition in [
        json!({"containerDefinitions": container(json!({}))}),
        json!({"family": "a b", "containerDefinitions": container(json!({}))}),
        json!({"family": "a", "containerDefinitions": []}),
        json!({"family": "a", "containerDefinitions": [{"name": "a", "image": "b"}]}),
        json!({"family": "a", "containerDefinitions": container(json!({"image": ""}))}),
        json!({"family": "a", "containerDefinitions": container(json!({"essential": false}))}),
        json!({"family": "a", "networkMode": "cable", "containerDefinitions": container(json!({}))}),
        json!({"family": "a", "networkMode": "host", "containerDefinitions": container(json!({"portMappings": [{"containerPort": 1, "hostPort": 2}]}))}),
        json!({"family": "a", "containerDefinitions": container(json!({"portMappings": [{"hostPort": 2}]}))}),
        json!({"family": "a", "requiresCompatibilities": ["FARGATE"], "containerDefinitions": container(json!({}))}),
        json!({"family": "a", "requiresCompatibilities": ["FARGATE"], "networkMode": "awsvpc", "cpu": "256", "memory": "4096", "containerDefinitions": container(json!({}))}),
        json!({"family": "a", "cpu": "much", "containerDefinitions": container(json!({}))}),
    ] {
        assert_eq!(
            ecs.call("RegisterTaskDefinition", &definition, at(0)).unwrap_err().code,
            "ClientException",
            "{definition}"
        );
    }
}

#[test]
fn fargate_refuses_what_needs_an_instance() {
    let mut ecs = world();
    let definition = |kinds: Value, container: Value, volumes: Value| {
        let container = with(&json!({"name": "a", "image": "b"}), container);
        json!({"family": "a", "requiresCompatibilities": kinds, "networkMode": "awsvpc", "cpu": "256", "memory": "512",
            "containerDefinitions": [container], "volumes": volumes})
    };
    let capability = |name: &str| json!({"linuxParameters": {"capabilities": {"add": [name]}}});
    for (container, volumes, allowed) in [
        (json!({"privileged": true}), json!([]), false),
        (json!({"privileged": false}), json!([{"name": "v"}]), true),
        (json!({"dnsSearchDomains": ["d"]}), json!([]), false),
        (json!({"linuxParameters": {"sharedMemorySize": 64}}), json!([]), false),
        (capability("SYS_ADMIN"), json!([]), false),
        (capability("SYS_PTRACE"), json!([]), true),
        (json!({}), json!([{"name": "v", "host": {"sourcePath": "/v"}}]), false),
    ] {
        let input = definition(json!(["FARGATE"]), container.clone(), volumes.clone());
        let registered = ecs.call("RegisterTaskDefinition", &input, at(0));
        assert_eq!(registered.is_ok(), allowed, "{input}");
        ecs.call("RegisterTaskDefinition", &definition(json!(["EC2"]), container, volumes), at(0)).unwrap();
    }
}

#[test]
fn clusters_are_described_or_missing() {
    let mut ecs = world();
    run(&mut ecs, on_fargate(), at(0));
    ecs.call("CreateCluster", &json!({"clusterName": "new"}), at(0)).unwrap();
    assert!(ecs.call("CreateCluster", &json!({"clusterName": "a b"}), at(0)).is_err());
    let answer = ecs.call("DescribeClusters", &json!({"clusters": ["default", "none", "new"]}), at(60)).unwrap();
    assert_eq!(answer["clusters"][0]["runningTasksCount"], 1);
    assert_eq!(
        (&answer["clusters"][1]["clusterName"], &answer["clusters"][1]["status"]),
        (&json!("new"), &json!("ACTIVE"))
    );
    assert_eq!(
        answer["failures"],
        json!([{"arn": "arn:aws:ecs:eu-west-1:111122223333:cluster/none", "reason": "MISSING"}])
    );
    // A cluster that the API created has no capacity providers but those it was given.
    let input = json!({"cluster": "new", "taskDefinition": "vpc", "networkConfiguration": network(), "capacityProviderStrategy": [{"capacityProvider": "FARGATE", "weight": 1}]});
    assert!(ecs.call("RunTask", &input, at(60)).unwrap_err().message.contains("not associated"));
}

#[test]
fn attributes_are_put_and_deleted() {
    let mut ecs = world();
    let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let id = place.rsplit('/').next().unwrap();
    let call =
        |ecs: &mut Ecs, action: &str, attribute: Value| ecs.call(action, &json!({"attributes": [attribute]}), at(0));
    call(&mut ecs, "PutAttributes", json!({"name": "rack", "value": "a", "targetId": place})).unwrap();
    assert_eq!(ecs.instance(&place).unwrap().attributes["rack"], "a");
    call(&mut ecs, "DeleteAttributes", json!({"name": "rack", "targetType": "container-instance", "targetId": id}))
        .unwrap();
    assert!(!ecs.instance(&place).unwrap().attributes.contains_key("rack"));
    for (attribute, code) in [
        (json!({"name": "rack", "targetId": id}), "InvalidParameterException"),
        (json!({"name": "", "targetId": place}), "InvalidParameterException"),
        (json!({"name": "a b", "targetId": place}), "InvalidParameterException"),
        (json!({"name": "a", "value": "v".repeat(129), "targetId": place}), "InvalidParameterException"),
        (json!({"name": "a", "targetId": format!("{place}0")}), "TargetNotFoundException"),
    ] {
        assert_eq!(call(&mut ecs, "PutAttributes", attribute.clone()).unwrap_err().code, code, "{attribute}");
    }
}

#[test]
fn an_instance_with_tasks_is_deregistered_by_force_alone() {
    let mut ecs = world();
    let place = ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let arn = arn(&run(&mut ecs, json!({"taskDefinition": "small"}), at(0)));
    let call = |ecs: &mut Ecs, force: bool| {
        ecs.call("DeregisterContainerInstance", &json!({"containerInstance": place, "force": force}), at(30))
    };
    assert_eq!(call(&mut ecs, false).unwrap_err().message, "Found running tasks on the instance.");
    ecs.take_events();
    assert_eq!(call(&mut ecs, true).unwrap()["containerInstance"]["status"], "INACTIVE");
    assert_eq!(task(&mut ecs, &arn, at(30))["lastStatus"], "STOPPED");
    assert_eq!(ecs.instances().count(), 0);
    let events = ecs.take_events();
    let last = &events.last().unwrap()["detail"];
    assert_eq!((&last["status"], &last["agentConnected"]), (&json!("INACTIVE"), &json!(false)));
    assert!(call(&mut ecs, true).is_err());
}

fn form(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn scaling(ecs: &mut Ecs, action: &str, pairs: &[(&str, &str)], now: Timestamp) -> Result<String, ApiError> {
    ecs.autoscaling(action, &form(pairs), now)
}

/// A group `g` of 1 to 5 instances, and the states of its instances: P, I, T.
fn grouped() -> Ecs {
    let mut ecs = world();
    ecs.create_group("g", "default", (1, 5), (2048, 4096), at(0));
    ecs
}

fn members(ecs: &Ecs) -> String {
    ecs.group("g").unwrap().members.iter().map(|member| &member.lifecycle[..1]).collect()
}

#[test]
fn a_group_grows_registers_and_shrinks() {
    let mut ecs = grouped();
    let desired = |ecs: &mut Ecs, desired: &str, now| {
        scaling(ecs, "SetDesiredCapacity", &[("AutoScalingGroupName", "g"), ("DesiredCapacity", desired)], now)
    };
    assert_eq!(members(&ecs), "P");
    ecs.advance(at(60));
    assert_eq!((members(&ecs).as_str(), ecs.instances().count()), ("I", 0));
    ecs.advance(at(80));
    assert_eq!(ecs.instances().count(), 1);
    desired(&mut ecs, "3", at(100)).unwrap();
    assert_eq!(members(&ecs), "IPP");
    ecs.advance(at(200));
    assert_eq!((members(&ecs).as_str(), ecs.instances().count()), ("III", 3));

    // Two tasks on the first; it is protected; scale-in terminates the others.
    let first = ecs.group("g").unwrap().members[0].id.clone();
    let protect = |ecs: &mut Ecs, id: &str, protected: &str| {
        scaling(
            ecs,
            "SetInstanceProtection",
            &[("AutoScalingGroupName", "g"), ("InstanceIds.member.1", id), ("ProtectedFromScaleIn", protected)],
            at(200),
        )
    };
    protect(&mut ecs, &first, "true").unwrap();
    assert!(protect(&mut ecs, "i-none", "true").is_err());
    desired(&mut ecs, "1", at(200)).unwrap();
    assert_eq!(members(&ecs), "ITT");
    assert_eq!(ecs.instances().filter(|instance| instance.connected).count(), 1);
    ecs.advance(at(300));
    assert_eq!((members(&ecs).as_str(), ecs.instances().count()), ("I", 1));
    assert_eq!(ecs.group("g").unwrap().members[0].id, first);
    assert_eq!(ecs.group("g").unwrap().most, 3);

    for (value, message) in
        [("6", "New SetDesiredCapacity value 6 is above max value 5"), ("0", "value 0 is below min value 1")]
    {
        let error = desired(&mut ecs, value, at(300)).unwrap_err();
        assert!(error.code == "ValidationError" && error.message.contains(message), "{}", error.message);
    }
    let honoured = [("AutoScalingGroupName", "g"), ("DesiredCapacity", "2"), ("HonorCooldown", "true")];
    assert_eq!(
        scaling(&mut ecs, "SetDesiredCapacity", &honoured, at(301)).unwrap_err().code,
        "ScalingActivityInProgress"
    );
    scaling(&mut ecs, "SetDesiredCapacity", &honoured, at(900)).unwrap();
    let unknown = [("AutoScalingGroupName", "none"), ("DesiredCapacity", "2")];
    assert_eq!(scaling(&mut ecs, "SetDesiredCapacity", &unknown, at(900)).unwrap_err().code, "ValidationError");
    // 300 s of the first two that were terminated, and the present one.
    let paid = ecs.group("g").unwrap().paid_seconds(at(900));
    assert_eq!(paid, 900.0 + 2.0 * 120.0);
}

#[test]
fn an_instance_is_given_back_alone() {
    let mut ecs = grouped();
    ecs.fill_group("g", 2, at(0));
    let ids: Vec<String> = ecs.group("g").unwrap().members.iter().map(|member| member.id.clone()).collect();
    let arn = arn(&run(
        &mut ecs,
        json!({"taskDefinition": "small", "placementConstraints": [{"type": "memberOf", "expression": format!("ec2InstanceId == {}", ids[0])}]}),
        at(0),
    ));
    let terminate = |ecs: &mut Ecs, id: &str, lower: &str| {
        scaling(
            ecs,
            "TerminateInstanceInAutoScalingGroup",
            &[("InstanceId", id), ("ShouldDecrementDesiredCapacity", lower)],
            at(30),
        )
    };
    let xml = terminate(&mut ecs, &ids[0], "true").unwrap();
    assert!(xml.starts_with("<TerminateInstanceInAutoScalingGroupResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><TerminateInstanceInAutoScalingGroupResult><Activity><ActivityId>"), "{xml}");
    assert_eq!((ecs.group("g").unwrap().desired, members(&ecs).as_str()), (1, "TI"));
    assert_eq!(terminate(&mut ecs, &ids[0], "true").unwrap_err().code, "ScalingActivityInProgress");
    // Until the instance is gone, its task runs, and no other is placed there.
    assert_eq!(task(&mut ecs, &arn, at(40))["lastStatus"], "RUNNING");
    let shown = task(&mut ecs, &arn, at(60));
    assert_eq!((&shown["lastStatus"], &shown["stopCode"]), (&json!("STOPPED"), &json!("TerminationNotice")));

    let error = terminate(&mut ecs, &ids[1], "true").unwrap_err();
    assert!(
        error.code == "ValidationError" && error.message.starts_with("Currently, desiredSize equals minSize (1)."),
        "{}",
        error.message
    );
    terminate(&mut ecs, &ids[1], "false").unwrap();
    assert_eq!((ecs.group("g").unwrap().desired, members(&ecs).as_str()), (1, "TP"));
    let error = terminate(&mut ecs, "i-none", "true").unwrap_err();
    assert!(error.message.contains("No managed instance found"), "{}", error.message);
}

#[test]
fn a_lost_instance_is_replaced() {
    let mut ecs = grouped();
    ecs.fill_group("g", 1, at(0));
    let id = ecs.group("g").unwrap().members[0].id.clone();
    ecs.kill_instance(&id, at(10));
    ecs.kill_instance(&id, at(10));
    assert_eq!((members(&ecs).as_str(), ecs.instances().count()), ("P", 0));
    ecs.advance(at(200));
    assert_eq!((members(&ecs).as_str(), ecs.instances().count()), ("I", 1));
}

#[test]
fn bounds_move_the_desired_capacity() {
    let mut ecs = grouped();
    let update = |ecs: &mut Ecs, pairs: &[(&str, &str)]| {
        let all: Vec<_> = [("AutoScalingGroupName", "g")].iter().chain(pairs).copied().collect();
        scaling(ecs, "UpdateAutoScalingGroup", &all, at(0)).map(|_| {
            let group = ecs.group("g").unwrap();
            (group.minimum, group.desired, group.maximum)
        })
    };
    assert_eq!(update(&mut ecs, &[("MinSize", "3")]).unwrap(), (3, 3, 5));
    assert_eq!(update(&mut ecs, &[("MinSize", "0"), ("MaxSize", "2")]).unwrap(), (0, 2, 2));
    assert_eq!(update(&mut ecs, &[("DesiredCapacity", "0")]).unwrap(), (0, 0, 2));
    assert!(update(&mut ecs, &[("MinSize", "3")]).is_err());
    assert!(update(&mut ecs, &[("DesiredCapacity", "3")]).is_err());
    assert!(update(&mut ecs, &[("MaxSize", "many")]).is_err());
    assert_eq!(
        update(&mut ecs, &[("NewInstancesProtectedFromScaleIn", "true"), ("DesiredCapacity", "1")]).unwrap(),
        (0, 1, 2)
    );
    assert!(ecs.group("g").unwrap().members.last().unwrap().protected);
}

#[test]
fn groups_are_described_in_pages() {
    let mut ecs = world();
    for n in 0..60 {
        ecs.create_group(&format!("g{n:02}"), "default", (0, 5), (2048, 4096), at(0));
    }
    ecs.fill_group("g00", 2, at(0));
    ecs.group_mut("g00").unwrap().tags.insert("a".into(), "<&>".into());
    let describe =
        |ecs: &mut Ecs, pairs: &[(&str, &str)]| scaling(ecs, "DescribeAutoScalingGroups", pairs, at(0)).unwrap();
    let count = |xml: &str| xml.matches("<AutoScalingGroupName>").count();
    let first = describe(&mut ecs, &[]);
    assert_eq!(count(&first), 50);
    assert!(first.contains("<NextToken>g49</NextToken>"));
    let second = describe(&mut ecs, &[("NextToken", "g49")]);
    assert_eq!((count(&second), second.contains("<NextToken>")), (10, false));
    assert_eq!(count(&describe(&mut ecs, &[("MaxRecords", "100")])), 60);
    let one =
        describe(&mut ecs, &[("AutoScalingGroupNames.member.1", "g00"), ("AutoScalingGroupNames.member.2", "none")]);
    assert_eq!(count(&one), 1);
    for part in [
        "<DescribeAutoScalingGroupsResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><DescribeAutoScalingGroupsResult><AutoScalingGroups><member>",
        "<LifecycleState>InService</LifecycleState>",
        "<ProtectedFromScaleIn>false</ProtectedFromScaleIn>",
        "<Value>&lt;&amp;&gt;</Value>",
        "<DesiredCapacity>2</DesiredCapacity>",
    ] {
        assert!(one.contains(part), "{part} in {one}");
    }
}

#[test]
fn ec2_shows_instances_for_an_hour_after_their_end() {
    let mut ecs = grouped();
    ecs.advance(at(100));
    let id = ecs.group("g").unwrap().members[0].id.clone();
    ecs.tag_machine(&id, "Name", "agents");
    let describe = |ecs: &mut Ecs, id: &str, now| ecs.ec2("DescribeInstances", &form(&[("InstanceId.1", id)]), now);
    let xml = describe(&mut ecs, &id, at(100)).unwrap();
    let instance = ecs.instances().next().unwrap();
    for part in [
        "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">".to_owned(),
        "<reservationSet><item>".to_owned(),
        format!("<instancesSet><item><instanceId>{id}</instanceId>"),
        "<name>running</name>".to_owned(),
        format!("<privateIpAddress>{}</privateIpAddress>", instance.private_address),
        format!("<ipAddress>{}</ipAddress>", instance.public_address.clone().unwrap()),
        "<key>Name</key><value>agents</value>".to_owned(),
        "<key>aws:autoscaling:groupName</key><value>g</value>".to_owned(),
    ] {
        assert!(xml.contains(&part), "{part} in {xml}");
    }
    assert_eq!(describe(&mut ecs, "i-none", at(100)).unwrap_err().code, "InvalidInstanceID.NotFound");
    ecs.kill_instance(&id, at(100));
    let xml = describe(&mut ecs, &id, at(101)).unwrap();
    assert!(xml.contains("<name>terminated</name>") && !xml.contains("privateIpAddress"), "{xml}");
    assert!(describe(&mut ecs, &id, at(3701)).is_err());
}

#[test]
fn managed_scaling_lets_tasks_wait_and_raises_the_group() {
    let mut ecs = world();
    ecs.create_group("g", "default", (0, 2), (2048, 4096), at(0));
    ecs.create_capacity_provider("ec2", "g", true);
    ecs.add_instance("default", "i-1", (2048, 4096), 2, at(0));
    let input = json!({"taskDefinition": "small", "count": 10, "startedBy": "ecs-a", "capacityProviderStrategy": [{"capacityProvider": "ec2", "weight": 1}]});
    let answer = run(&mut ecs, input.clone(), at(0));
    assert_eq!((answer["tasks"].as_array().unwrap().len(), answer["failures"].as_array().unwrap().len()), (10, 0));
    assert!(answer["tasks"].as_array().unwrap().iter().all(|task| task["lastStatus"] == "PROVISIONING"));
    // One stops waiting.
    let first = arn(&answer);
    ecs.call("StopTask", &json!({"task": first}), at(1)).unwrap();
    assert_eq!(task(&mut ecs, &first, at(1))["lastStatus"], "STOPPED");
    ecs.advance(at(60));
    assert_eq!(ecs.group("g").unwrap().desired, 2);
    ecs.advance(at(200));
    let count = |ecs: &Ecs, status: Status| ecs.tasks().filter(|task| task.last_status == status).count();
    assert_eq!((count(&ecs, Status::Running), count(&ecs, Status::Provisioning)), (8, 1));
    assert!(
        ecs.tasks().filter(|task| task.last_status == Status::Running).all(|task| {
            ecs.instance(task.instance.as_deref().unwrap()).unwrap().provider.as_deref() == Some("ec2")
        })
    );
    let running = ecs.tasks().find(|task| task.last_status == Status::Running).unwrap().arn.clone();
    ecs.call("StopTask", &json!({"task": running}), at(200)).unwrap();
    ecs.advance(at(300));
    assert_eq!((count(&ecs, Status::Running), count(&ecs, Status::Provisioning)), (8, 0));
    assert_eq!(ecs.group("g").unwrap().desired, 2);

    // Instances that are booting are not requested again.
    let mut other = world();
    other.create_group("g", "default", (0, 5), (2048, 4096), at(0));
    other.create_capacity_provider("ec2", "g", true);
    run(&mut other, input.clone(), at(0));
    let raise = [("AutoScalingGroupName", "g"), ("DesiredCapacity", "2")];
    scaling(&mut other, "SetDesiredCapacity", &raise, at(30)).unwrap();
    other.advance(at(60));
    assert_eq!(other.group("g").unwrap().desired, 3);

    // Without managed scaling, a full group is an answer of failures.
    ecs.create_capacity_provider("ec2", "g", false);
    assert_eq!(reasons(&run(&mut ecs, input, at(300))).len(), 2);
}

#[test]
fn limits_the_number_of_waiting_tasks() {
    let mut ecs = world();
    ecs.settings().run_task_rate = None;
    ecs.create_group("g", "default", (0, 0), (2048, 4096), at(0));
    ecs.create_capacity_provider("ec2", "g", true);
    let input =
        json!({"taskDefinition": "small", "count": 10, "capacityProviderStrategy": [{"capacityProvider": "ec2"}]});
    for _ in 0..50 {
        run(&mut ecs, input.clone(), at(0));
    }
    assert_eq!(ecs.call("RunTask", &input, at(0)).unwrap_err().code, "ClientException");
}

#[test]
fn without_delays_events_keep_their_order() {
    let mut ecs = world();
    ecs.settings().without_delays();
    let arn = arn(&run(&mut ecs, on_fargate(), at(0)));
    assert_eq!(history(&mut ecs, at(0)), ["PROVISIONING/RUNNING", "PENDING/RUNNING", "RUNNING/RUNNING"]);
    ecs.call("StopTask", &json!({"task": arn}), at(0)).unwrap();
    assert_eq!(history(&mut ecs, at(0)).last().unwrap(), "STOPPED/STOPPED");
}

/// The same calls give the same world; ids have the right length, and no two are the same.
#[test]
fn a_day_is_repeatable_and_fast() {
    let day = |tasks: i64| {
        let mut ecs = world();
        ecs.settings().run_task_rate = None;
        ecs.create_group("g", "default", (0, 400), (4096, 8192), at(0));
        ecs.fill_group("g", 200, at(0));
        let (mut events, mut last) = (0, Value::Null);
        let mut ids = std::collections::BTreeSet::new();
        for n in 0..tasks {
            let input = if n % 2 == 0 { json!({"taskDefinition": "small"}) } else { on_fargate() };
            let input = with(&input, json!({"startedBy": format!("ecs-{n}"), "clientToken": format!("t-{n}")}));
            let arn = arn(&run(&mut ecs, input, at(n)));
            let id = arn.rsplit('/').next().unwrap().to_owned();
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && ids.insert(id));
            let listed = ecs.call("ListTasks", &json!({"startedBy": format!("ecs-{n}")}), at(n)).unwrap();
            assert_eq!(listed["taskArns"], json!([arn]));
            if n >= 100 {
                let name = format!("ecs-{}", n - 100);
                let old = ecs.by_starter[&name].first().unwrap().clone();
                ecs.call("StopTask", &json!({"task": old}), at(n)).unwrap();
            }
            let new = ecs.take_events();
            events += new.len();
            last = new.into_iter().last().unwrap_or(last);
        }
        assert!(ecs.doubled.is_empty());
        (events, last, ecs.tasks().count())
    };
    let (_, _, left) = day(10_000);
    assert!(left < 4000, "{left} tasks");
    assert_eq!(day(300), day(300));
}
