//! From the configuration to the RunTask request, for every form of launch: the shape at the SDK's edge.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use aws_sdk_ecs::config::{BehaviorVersion, Credentials, Region};
use jiff::Timestamp;
use request::launch;
use request::plan::{Envelope, admit};
use serde_json::{Value, json};
use shared::aws::ecs::{Cluster, RunTaskOutcome};
use shared::config::from_yaml;
use shared::http::Http;
use shared::origin::Origin;

/// The body of the RunTask for a template, without what every launch has alike.
async fn run_task_of(template: &str, overrides: Value) -> Value {
    let yaml = format!(
        "jenkins: {{url: 'https://ci.example.com/'}}\nclouds:\n  - name: c\n    region: eu-west-1\n    cluster: ci\n    templates:\n      - {{name: t, labels: [l], taskDefinition: 'agents:7', container: agent, connect: ssh, {template}}}\n"
    );
    let config = from_yaml(&yaml).unwrap_or_else(|errors| panic!("{errors:?}"));
    let body = json!({"version": 1, "label": "l", "requestId": "r-1", "overrides": overrides, "webhookUrl": "https://ci.example.com/w"}).to_string();
    let own_accounts = &BTreeSet::new();
    let envelope = Envelope { message_id: "m", sent_at: None, wait: None, trace: None, own_accounts };
    let origin = Origin::new((*config.jenkins.url).clone());
    let order = admit(&config, &origin, &body, envelope, Timestamp::UNIX_EPOCH)
        .map_err(|refused| refused.failure.message)
        .expect("admitted");
    let name = order.name("ecs-", 0);
    let launch = order.launch(&name, &order.record(0, "agent"), "https://ci.example.com/", None);
    let sent = Arc::new(Mutex::new(Value::Null));
    let http = {
        let sent = sent.clone();
        Http::in_memory(move |request| {
            *sent.lock().expect("sent") = serde_json::from_slice(request.body()).expect("JSON");
            let answer =
                json!({"tasks": [{"taskArn": "arn:aws:ecs:eu-west-1:123456789012:task/ci/1"}], "failures": []});
            Box::pin(async move { Ok(http::Response::new(bytes::Bytes::from(answer.to_string()))) })
        })
    };
    let client = aws_sdk_ecs::Client::from_conf(
        aws_sdk_ecs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .http_client(http.client())
            .build(),
    );
    let input = launch::input(&launch).expect("a request");
    let outcome = Cluster::new(client, "ci").run_task(input).await;
    assert!(matches!(outcome, RunTaskOutcome::Started(_)), "{outcome:?}");
    let mut sent = sent.lock().expect("sent").take();
    let fields = sent.as_object_mut().expect("an object");
    assert_eq!(fields.remove("cluster"), Some(json!("ci")));
    assert_eq!(fields.remove("taskDefinition"), Some(json!("agents:7")));
    assert_eq!(fields.remove("count"), Some(json!(1)));
    assert_eq!(fields.remove("startedBy"), Some(json!(name.as_str())));
    assert!(fields.remove("clientToken").is_some());
    if fields["tags"].as_array().is_some_and(|tags| tags.len() == 3) {
        fields.remove("tags");
    }
    if overrides == json!({}) {
        fields.remove("overrides");
    }
    sent
}

#[tokio::test]
async fn every_form_of_launch_becomes_its_run_task() {
    let vpc = |public: &str| json!({"awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"], "assignPublicIp": public}});
    for (template, expected) in [
        ("launch: {type: ec2}", json!({"launchType": "EC2"})),
        ("executors: 1", json!({"launchType": "EC2"})),
        (
            "launch: {type: ec2}, network: {subnets: [subnet-1], securityGroups: [sg-1]}, platformVersion: LATEST",
            json!({"launchType": "EC2", "networkConfiguration": vpc("DISABLED")}),
        ),
        (
            "launch: {type: fargate}, network: {subnets: [subnet-1], securityGroups: [sg-1], assignPublicIp: true}, platformVersion: 1.4.0",
            json!({"launchType": "FARGATE", "networkConfiguration": vpc("ENABLED"), "platformVersion": "1.4.0"}),
        ),
        ("launch: {type: external}", json!({"launchType": "EXTERNAL"})),
        (
            "launch: {capacityProviders: [{name: FARGATE_SPOT, weight: 4}, {name: FARGATE, weight: 1, base: 1}]}, network: {subnets: [subnet-1], securityGroups: [sg-1]}",
            json!({"networkConfiguration": vpc("DISABLED"), "capacityProviderStrategy": [
                {"capacityProvider": "FARGATE_SPOT", "weight": 4, "base": 0},
                {"capacityProvider": "FARGATE", "weight": 1, "base": 1}]}),
        ),
        (
            "launch: {capacityProviders: [{name: my-provider}]}",
            json!({"capacityProviderStrategy": [{"capacityProvider": "my-provider", "weight": 1, "base": 0}]}),
        ),
        (
            "placementStrategy: [{type: spread, field: 'attribute:ecs.availability-zone'}, {type: binpack, field: memory}], placementConstraints: [{type: memberOf, expression: 'attribute:ecs.cpu-architecture == arm64'}, {type: distinctInstance}]",
            json!({"launchType": "EC2",
                "placementStrategy": [{"type": "spread", "field": "attribute:ecs.availability-zone"}, {"type": "binpack", "field": "memory"}],
                "placementConstraints": [{"type": "memberOf", "expression": "attribute:ecs.cpu-architecture == arm64"}, {"type": "distinctInstance"}]}),
        ),
        (
            // Windows instances are chosen like any other attribute.
            "placementConstraints: [{type: memberOf, expression: 'attribute:ecs.os-type == windows'}]",
            json!({"launchType": "EC2", "placementConstraints": [{"type": "memberOf", "expression": "attribute:ecs.os-type == windows"}]}),
        ),
        ("enableExecuteCommand: true", json!({"launchType": "EC2", "enableExecuteCommand": true})),
    ] {
        assert_eq!(run_task_of(template, json!({})).await, expected, "{template}");
    }
}

#[tokio::test]
async fn overrides_and_tags_are_where_ecs_expects_them() {
    let template =
        "environment: {A: b}, tags: {team: build}, allowedOverrides: [cpu, memory, environment, command, taskRole]";
    let overrides = json!({"cpu": 512, "memory": 1024, "environment": {"C": "d"}, "command": ["x", "y"], "taskRole": "arn:aws:iam::123456789012:role/r"});
    let sent = run_task_of(template, overrides).await;
    assert_eq!(sent["overrides"]["cpu"], "512");
    assert_eq!(sent["overrides"]["memory"], "1024");
    assert_eq!(sent["overrides"]["taskRoleArn"], "arn:aws:iam::123456789012:role/r");
    let container = &sent["overrides"]["containerOverrides"][0];
    assert_eq!(container["name"], "agent");
    assert_eq!(container["command"], json!(["x", "y"]));
    let environment = container["environment"].as_array().expect("variables");
    assert!(
        environment.contains(&json!({"name": "A", "value": "b"}))
            && environment.contains(&json!({"name": "C", "value": "d"}))
    );
    let tags = sent["tags"].as_array().expect("tags");
    assert!(tags.contains(&json!({"key": "team", "value": "build"})));
    assert!(tags.contains(&json!({"key": "jenkins-ecs-agents:controller", "value": "https://ci.example.com/"})));
}
