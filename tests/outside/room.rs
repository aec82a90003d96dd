//! Who can use which room: events of container instances and the sweep wake what fits on an instance of the cloud's own
//! group, and nothing that would find no room again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use local::aws::Fault;
use local::aws::ecs::Registration;
use serde_json::{Value, json};
use tests::{Binary, CLUSTER, GROUP, Stack};

/// A full instance in the group; instances launched later never boot.
async fn full(change: impl FnOnce(&mut Value)) -> Stack {
    let mut stack = Stack::with(change).await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack.ask(json!({"requestId": "fill", "label": "maven", "count": 3}));
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 3);
    stack
}

/// Puts requests into the waiting queue as the request function does.
fn wait(stack: &Stack, ids: impl Iterator<Item = String>, change: impl Fn(&mut Value)) {
    let mut aws = stack.aws();
    let since = Timestamp::now() - Duration::from_secs(30);
    for id in ids {
        let mut wait = json!({"requestId": id, "requestedAt": since, "since": since, "attempt": 1, "agents": [0],
            "cloud": "linux", "template": "maven", "size": {"cpu": 1024, "memory": 2048}, "waitsFor": "instance",
            "reason": "RESOURCE:MEMORY"});
        change(&mut wait);
        let label = wait["template"].clone();
        aws.sqs.send("waiting", &json!({"version": 1, "requestId": id, "label": label}).to_string(), since);
        let message = aws.sqs.queues.get_mut("waiting").unwrap().messages.last_mut().unwrap();
        message.attributes.insert("wait".to_owned(), wait.to_string());
    }
}

fn one(id: &str) -> impl Iterator<Item = String> {
    std::iter::once(id.to_owned())
}

/// The event that ECS sends about an instance in its current state.
fn event(stack: &Stack, arn: &str) -> Value {
    let mut aws = stack.aws();
    let input = json!({"cluster": CLUSTER, "containerInstances": [arn]});
    let answer = aws.ecs.call("DescribeContainerInstances", &input, Timestamp::now()).unwrap();
    let mut detail = answer["containerInstances"][0].clone();
    detail["clusterArn"] = format!("arn:aws:ecs:eu-west-1:123456789012:cluster/{CLUSTER}").into();
    json!({"detail-type": "ECS Container Instance State Change", "source": "aws.ecs", "detail": detail})
}

async fn bring(stack: &mut Stack, event: Value) {
    stack.invoke(Binary::TaskState, event).await.unwrap();
}

/// The first instance of the group, with room for one more agent.
fn make_room(stack: &Stack) -> String {
    let mut aws = stack.aws();
    let own = aws.ecs.group(GROUP).unwrap().members[0].id.clone();
    let arn = aws.ecs.instance_of(&own).unwrap().arn.clone();
    aws.ecs.instance_mut(&arn).unwrap().free = (1024, 2048);
    arn
}

#[tokio::test]
async fn an_event_wakes_every_request_that_fits() {
    let mut stack = full(|_| {}).await;
    wait(&stack, (0..1500).map(|number| format!("limited-{number}")), |wait| wait["waitsFor"] = "maxAgents".into());
    wait(&stack, one("fits"), |_| {});
    let arn = make_room(&stack);
    let event = event(&stack, &arn);
    bring(&mut stack, event).await;
    let woken = stack.bodies("requests");
    assert!(woken.len() == 1 && woken[0].contains("fits"), "{woken:?}");
    let aws = stack.aws();
    assert!(aws.sqs.messages("waiting").iter().all(|message| message.visible_at <= Timestamp::now()), "and released");
}

#[tokio::test]
async fn the_end_of_an_agent_wakes_a_request_over_max_agents() {
    let mut stack = full(|config| config["clouds"][1]["maxAgents"] = 1.into()).await;
    stack.agent("first", "node").await;
    wait(&stack, (0..1500).map(|number| format!("roomless-{number}")), |_| {});
    wait(&stack, one("limited"), |wait| {
        wait["cloud"] = "fargate".into();
        wait["template"] = "node".into();
        wait["waitsFor"] = "maxAgents".into();
    });
    stack.complete(json!({"requestId": "first"}));
    stack.settle().await;
    assert!(stack.active_tasks().iter().any(|task| task.started_by.contains("-node-")), "the limited one is placed");
}

#[tokio::test]
async fn an_instance_that_leaves_its_group_has_no_room() {
    for lifecycle in ["Terminating:Wait", "Standby", "Detaching"] {
        let mut stack = full(|_| {}).await;
        wait(&stack, one("waits"), |_| {});
        let arn = make_room(&stack);
        stack.aws().ecs.group_mut(GROUP).unwrap().members[0].lifecycle = lifecycle;
        let event = event(&stack, &arn);
        bring(&mut stack, event).await;
        assert_eq!(stack.bodies("requests"), Vec::<String>::new(), "{lifecycle}, by its event");
        stack.sweep_at(Timestamp::now()).await.unwrap();
        assert_eq!(stack.bodies("requests"), Vec::<String>::new(), "{lifecycle}, by the sweep");
        assert_eq!(stack.bodies("waiting").len(), 1);
    }
}

#[tokio::test]
async fn another_groups_instance_has_no_room() {
    let mut stack = full(|_| {}).await;
    stack.aws().ecs.create_group("other", CLUSTER, (0, 1), (4096, 8192), Timestamp::now());
    stack.aws().ecs.fill_group("other", 1, Timestamp::now());
    stack.advance().clear();
    wait(&stack, one("waits"), |_| {});
    let foreign = stack.aws().ecs.instances().find(|instance| instance.free == (4096, 8192)).unwrap().arn.clone();
    let foreign = event(&stack, &foreign);
    bring(&mut stack, foreign).await;
    assert_eq!(stack.bodies("requests"), Vec::<String>::new(), "by its event");
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!(stack.bodies("requests"), Vec::<String>::new(), "by the sweep");
    // An instance of its own group has room.
    let own = make_room(&stack);
    let own = event(&stack, &own);
    bring(&mut stack, own).await;
    assert_eq!(stack.bodies("requests").len(), 1);
}

#[tokio::test]
async fn without_a_group_every_instance_serves() {
    for change in [
        (|config: &mut Value| drop(config["clouds"][0].as_object_mut().unwrap().remove("autoScalingGroup")))
            as fn(&mut Value),
        |config| config["clouds"][0]["templates"][0]["launch"] = json!({"type": "default"}),
    ] {
        let mut stack = full(change).await;
        let arn = stack.aws().ecs.add_instance(CLUSTER, "i-0123456789abcdef0", (4096, 8192), 2, Timestamp::now());
        stack.advance().clear();
        wait(&stack, one("by-event"), |_| {});
        let event = event(&stack, &arn);
        bring(&mut stack, event).await;
        assert_eq!(stack.bodies("requests").len(), 1);
        wait(&stack, one("by-sweep"), |_| {});
        stack.sweep_at(Timestamp::now()).await.unwrap();
        assert_eq!(stack.bodies("requests").len(), 2);
        assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 0);
    }
}

#[tokio::test]
async fn an_instance_without_a_free_gpu_or_port_wakes_nobody() {
    let mut stack = full(|_| {}).await;
    let arn = make_room(&stack);
    stack.aws().ecs.instance_mut(&arn).unwrap().ports.insert(2222);
    wait(&stack, one("gpu"), |wait| wait["gpus"] = 1.into());
    for (id, exclusive) in [("port", json!({"hostPort": 2222})), ("distinct", json!({"family": "jenkins-maven"}))] {
        wait(&stack, one(id), |wait| wait["exclusive"] = json!([exclusive]));
    }
    let full = event(&stack, &arn);
    bring(&mut stack, full).await;
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!(stack.bodies("requests"), Vec::<String>::new());
    // One that has everything joins the group.
    stack.aws().ecs.settings().boot = Duration::ZERO;
    stack.aws().ecs.group_mut(GROUP).unwrap().gpus = 1;
    stack.aws().ecs.fill_group(GROUP, 4, Timestamp::now());
    stack.advance().clear();
    stack.unhide("waiting");
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!(stack.bodies("requests").len(), 3);
}

/// A bridged task definition whose agent has these ports of its instance besides the one for SSH.
fn define(stack: &Stack, family: &str, ports: &[(u16, &str)]) {
    let mapping =
        |(port, protocol): &(u16, &str)| json!({"containerPort": port, "hostPort": port, "protocol": protocol});
    let mut mappings = vec![json!({"containerPort": 22, "hostPort": 0})];
    mappings.extend(ports.iter().map(mapping));
    let definition = json!({"family": family, "networkMode": "bridge", "containerDefinitions": [{
        "name": "agent", "image": "jenkins/ssh-agent", "cpu": 1024, "memory": 2048, "portMappings": mappings}]});
    stack.aws().ecs.register_definition(&definition).unwrap();
}

/// The only instance, and on it somebody else's task.
async fn beside(change: impl FnOnce(&mut Value), ports: &[(u16, &str)]) -> (Stack, String) {
    let mut stack = Stack::with(change).await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    define(&stack, "web", ports);
    let run = json!({"cluster": CLUSTER, "taskDefinition": "web"});
    stack.aws().ecs.call("RunTask", &run, Timestamp::now()).unwrap();
    stack.advance().clear();
    let arn = stack.aws().ecs.instances().next().unwrap().arn.clone();
    (stack, arn)
}

fn of_family(family: &str) -> impl FnOnce(&mut Value) {
    let family = family.to_owned();
    move |config| config["clouds"][0]["templates"][0]["taskDefinition"] = family.into()
}

fn desired(stack: &Stack) -> u32 {
    stack.aws().ecs.group(GROUP).unwrap().desired
}

#[tokio::test]
async fn every_port_of_the_host_that_a_task_takes_has_to_be_free() {
    for (taken, distinct) in [((9090, "tcp"), false), ((9091, "udp"), false), ((8080, "tcp"), true)] {
        let (mut stack, arn) = beside(
            |config| {
                of_family("three-ports")(config);
                if distinct {
                    config["clouds"][0]["templates"][0]["placementConstraints"] = json!([{"type": "distinctInstance"}]);
                }
            },
            &[taken],
        )
        .await;
        define(&stack, "three-ports", &[(8080, "tcp"), (9090, "tcp"), (9091, "udp")]);
        stack.agent("waits", "maven").await;
        assert_eq!((stack.bodies("waiting").len(), desired(&stack)), (1, 2), "{taken:?}");
        let busy = event(&stack, &arn);
        bring(&mut stack, busy).await;
        stack.sweep_at(Timestamp::now()).await.unwrap();
        assert_eq!((stack.bodies("requests").len(), desired(&stack)), (0, 2), "{taken:?}");
        let web = stack.active_tasks().remove(0).arn;
        stack.aws().ecs.call("StopTask", &json!({"cluster": CLUSTER, "task": web}), Timestamp::now()).unwrap();
        stack.advance().clear();
        stack.unhide("waiting");
        stack.sweep_at(Timestamp::now()).await.unwrap();
        assert_eq!((stack.bodies("requests").len(), desired(&stack)), (1, 2), "{taken:?} is free");
    }
}

#[tokio::test]
async fn no_group_is_raised_for_a_port_that_is_in_use_on_each_of_its_instances() {
    // The container agent has it, next to an agent on the only instance.
    let (mut stack, _) = beside(of_family("reserved"), &[(9090, "tcp")]).await;
    define(&stack, "reserved", &[(2376, "tcp")]);
    stack.agent("reserved", "maven").await;
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!((stack.bodies("waiting").len(), desired(&stack)), (1, 1));
    let wait = stack.aws().sqs.messages("waiting")[0].attributes["wait"].clone();
    assert!(wait.contains("port 2376 is in use on every instance of group"), "{wait}");

    // A daemon has it. Nobody knows before the first instance is there.
    let mut stack = Stack::with(of_family("agent")).await;
    define(&stack, "logs", &[(9090, "tcp")]);
    define(&stack, "agent", &[(9090, "tcp")]);
    stack.aws().ecs.fill_group(GROUP, 0, Timestamp::now());
    stack.aws().ecs.create_daemon(CLUSTER, "logs", "logs", Timestamp::now()).unwrap();
    stack.advance().clear();
    stack.agent("beside-a-daemon", "maven").await;
    assert_eq!(desired(&stack), 1);
    for _ in 0..3 {
        stack.settle().await;
        stack.unhide("waiting");
        stack.sweep_at(Timestamp::now()).await.unwrap();
        assert_eq!((stack.bodies("waiting").len(), desired(&stack)), (1, 1));
    }
}

#[tokio::test]
async fn copies_of_a_request_are_given_room_once() {
    for by_event in [true, false] {
        let mut stack = full(|_| {}).await;
        wait(&stack, ["copied", "copied", "single", "single"].map(str::to_owned).into_iter(), |_| {});
        let arn = make_room(&stack);
        stack.aws().ecs.instance_mut(&arn).unwrap().free = (2048, 4096);
        if by_event {
            let event = event(&stack, &arn);
            bring(&mut stack, event).await;
        } else {
            stack.sweep_at(Timestamp::now()).await.unwrap();
        }
        let mut woken = stack.bodies("requests");
        woken.sort();
        assert!(woken.len() == 2 && woken[0].contains("copied") && woken[1].contains("single"), "{woken:?}");
        assert_eq!(desired(&stack), 1, "nobody is left without room");
    }
}

#[tokio::test]
async fn the_sweep_wakes_one_copy_of_a_request_at_a_time() {
    for waits_for in ["fargate", "maxAgents"] {
        let mut stack = Stack::with(|config| config["clouds"][1]["maxAgents"] = 2.into()).await;
        wait(&stack, ["copied", "copied", "single"].map(str::to_owned).into_iter(), |wait| {
            wait["cloud"] = "fargate".into();
            wait["template"] = "node".into();
            wait["waitsFor"] = waits_for.into();
        });
        stack.sweep_at(Timestamp::now()).await.unwrap();
        let mut woken = stack.bodies("requests");
        woken.sort();
        assert!(woken.len() == 2 && woken[0].contains("copied") && woken[1].contains("single"), "{woken:?}");
        stack.settle().await;
        stack.unhide("waiting");
        stack.sweep().await;
        assert!(stack.bodies("waiting").is_empty() && stack.active_tasks().len() == 2, "the other copy is answered");
    }
}

#[tokio::test]
async fn the_sweep_gives_no_room_to_copies_of_what_was_placed() {
    let mut stack = full(|_| {}).await;
    wait(&stack, ["fill", "fill", "waits"].map(str::to_owned).into_iter(), |_| {});
    make_room(&stack);
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!(stack.bodies("requests").len(), 3, "the copies are answered");
    stack.settle().await;
    assert_eq!((stack.active_tasks().len(), desired(&stack)), (4, 1));
    assert!(stack.bodies("waiting").is_empty());
}

#[tokio::test]
async fn an_expired_copy_is_answered_if_its_agent_exists() {
    let mut stack = Stack::start().await;
    stack.agent("asked", "node").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (url, now) = (stack.webhook(), Timestamp::now());
    let expired = now - Duration::from_secs(5);
    wait(&stack, one("asked"), |wait| {
        wait["cloud"] = "fargate".into();
        wait["template"] = "node".into();
        wait["waitsFor"] = "fargate".into();
        wait["requestedAt"] = now.to_string().into();
    });
    let body = json!({"version": 1, "requestId": "asked", "label": "node", "webhookUrl": url, "expiresAt": expired});
    stack.aws().sqs.queues.get_mut("waiting").unwrap().messages[0].body = body.to_string();
    stack.sweep_at(Timestamp::now()).await.unwrap();
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn an_idle_instance_stays_only_for_a_request_that_it_would_hold() {
    for (memory, gone) in [(7680, 0), (7681, 1)] {
        let mut stack = Stack::with(|config| {
            config["clouds"][0]["idleInstanceTimeout"] = "10m".into();
            config["clouds"][0]["instanceCapacity"] = json!({"cpu": 8192, "memory": 16384});
        })
        .await;
        stack.aws().ecs.settings().boot = Duration::from_secs(3600);
        let now = Timestamp::now();
        stack.sweep_at(now).await.unwrap();
        wait(&stack, one("large"), |wait| wait["size"] = json!({"cpu": 1024, "memory": memory}));
        stack.sweep_at(now + Duration::from_secs(660)).await.unwrap();
        let ended = stack.count("autoscaling:TerminateInstanceInAutoScalingGroup");
        assert_eq!(ended, gone, "beside a request for {memory} MiB");
    }
}

#[tokio::test]
async fn a_copy_fails_with_the_reason_of_the_first_message() {
    let mut stack = full(|config| config["clouds"][0]["instanceLaunchTimeout"] = "1s".into()).await;
    let urls = ["RESOURCE:PORTS", "another copy of the request found no room"].map(|reason| {
        let url = stack.webhook();
        wait(&stack, one("late"), |wait| wait["reason"] = reason.into());
        let mut aws = stack.aws();
        let message = aws.sqs.queues.get_mut("waiting").unwrap().messages.last_mut().unwrap();
        message.body = json!({"version": 1, "requestId": "late", "label": "maven", "webhookUrl": url}).to_string();
        url
    });
    stack.sweep_at(Timestamp::now()).await.unwrap();
    for url in urls {
        let failure = stack.notices(Some(&url)).remove(0).body["failure"]["message"].to_string();
        assert!(failure.contains("RESOURCE:PORTS"), "{failure}");
    }
}

#[tokio::test]
async fn releases_requests_that_an_event_could_not_process() {
    let mut stack = full(|_| {}).await;
    wait(&stack, one("waits"), |_| {});
    let arn = make_room(&stack);
    stack.aws().faults.always("autoscaling", "DescribeAutoScalingGroups", Some(Fault::server()));
    let event = event(&stack, &arn);
    assert!(stack.invoke(Binary::TaskState, event.clone()).await.is_err(), "Lambda brings it again");
    assert!(stack.aws().sqs.messages("waiting").iter().all(|message| message.visible_at <= Timestamp::now()));
    stack.aws().faults.always("autoscaling", "DescribeAutoScalingGroups", None);
    bring(&mut stack, event).await;
    assert_eq!(stack.bodies("requests").len(), 1);
}

#[tokio::test]
async fn an_external_instance_serves_external_templates_alone() {
    let mut stack = full(|config| config["clouds"][0]["templates"][1]["launch"] = json!({"type": "external"})).await;
    let registration = Registration {
        ec2_id: "mi-0123456789abcdef0".into(),
        size: (4096, 8192),
        gpus: 0,
        interfaces: 2,
        attributes: BTreeMap::from([("ecs.capability.external".to_owned(), String::new())]),
        tags: BTreeMap::new(),
        provider: None,
    };
    let arn = stack.aws().ecs.register_instance(CLUSTER, registration, Timestamp::now());
    stack.advance().clear();
    wait(&stack, one("inside"), |_| {});
    wait(&stack, one("outside"), |wait| wait["template"] = "host".into());
    let event = event(&stack, &arn);
    bring(&mut stack, event).await;
    let woken = stack.bodies("requests");
    assert!(woken.len() == 1 && woken[0].contains("outside"), "{woken:?}");
}

/// Another service's task on an instance; the service is not a daemon.
fn run_replica(stack: &Stack, arn: &str) {
    let mut aws = stack.aws();
    let task = aws.ecs.tasks().next().unwrap().arn.clone();
    let task = aws.ecs.task_mut(&task).unwrap();
    (task.group, task.started_by) = ("service:web".into(), "ecs-svc/1234567890123456789".into());
    let (task, group) = (task.arn.clone(), task.group.clone());
    aws.ecs.instance_mut(arn).unwrap().tasks.insert(task, group);
}

#[tokio::test]
async fn the_task_of_a_service_that_is_no_daemon_is_not_expected_on_each_instance() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680});
    })
    .await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack.agent("another", "maven").await;
    let arn = stack.aws().ecs.instances().next().unwrap().arn.clone();
    run_replica(&stack, &arn);
    let url = stack.webhook();
    let whole = json!({"requestId": "whole", "label": "maven", "webhookUrl": url, "overrides": {"memory": 7000}});
    stack.ask(whole);
    stack.settle().await;
    assert_eq!(stack.received(&url), Vec::<String>::new(), "it fits on an instance of its own");
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 2);
    // A daemon of the same size is on each instance.
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680});
    })
    .await;
    stack.aws().ecs.create_daemon(CLUSTER, "logs", "jenkins-dial", Timestamp::now()).unwrap();
    stack.advance().clear();
    let url = stack.webhook();
    stack.ask(json!({"requestId": "whole", "label": "maven", "webhookUrl": url, "overrides": {"memory": 7000}}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"]);
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 1);
}

#[tokio::test]
async fn a_group_that_counts_vcpus_is_raised_by_the_vcpus_of_its_instances() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680});
    })
    .await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack.aws().ecs.fill_group(GROUP, 0, Timestamp::now());
    stack.advance().clear();
    {
        let mut aws = stack.aws();
        let group = aws.ecs.group_mut(GROUP).unwrap();
        (group.desired_type, group.maximum) = (Some("vcpu"), 100);
    }
    stack.ask(json!({"requestId": "units", "label": "maven", "count": 7}));
    stack.settle().await;
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 12, "three instances of four vCPUs");
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members.len(), 3);
    stack.unhide("waiting");
    stack.sweep().await;
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 12, "they boot");
}

#[tokio::test]
async fn an_overdue_request_that_finds_no_room_fails_once_for_each_agent() {
    let mut stack = full(|config| config["clouds"][0]["instanceLaunchTimeout"] = "1s".into()).await;
    let url = stack.webhook();
    let request = json!({"version": 1, "requestId": "late", "label": "maven", "count": 2, "webhookUrl": [url.clone()]});
    let since = Timestamp::now() - Duration::from_secs(60);
    let wait = json!({"requestId": "late", "requestedAt": since, "since": since, "attempt": 1, "agents": [0, 1],
        "cloud": "linux", "template": "maven", "size": {"cpu": 1024, "memory": 2048}, "waitsFor": "instance",
        "reason": "RESOURCE:MEMORY"});
    {
        let mut aws = stack.aws();
        aws.sqs.send("requests", &request.to_string(), since);
        let message = aws.sqs.queues.get_mut("requests").unwrap().messages.last_mut().unwrap();
        message.attributes.insert("wait".to_owned(), wait.to_string());
    }
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed CAPACITY_TIMEOUT"]);
    let failed: Vec<_> = stack.all_notices().into_iter().filter(|it| it.code() == "CAPACITY_TIMEOUT").collect();
    assert_eq!(failed.len(), 2, "each agent once: {:?}", stack.all_received());
    assert!(stack.bodies("waiting").is_empty() && stack.rejected().is_empty());
}
