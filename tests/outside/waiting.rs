//! Requests for which there is no room.

use std::time::Duration;

use jiff::Timestamp;
use local::aws::Fault;
use serde_json::{Value, json};
use tests::{Binary, CLUSTER, GROUP, Stack};

use crate::sweep::wait;

/// A world whose new instances take longer than any test.
async fn slow_boot(change: impl FnOnce(&mut Value)) -> Stack {
    let stack = Stack::with(change).await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    stack
}

/// Terminates the instance that exists at the start.
fn empty_the_group(stack: &mut Stack) {
    stack.aws().ecs.fill_group(GROUP, 0, Timestamp::now());
    stack.advance().clear();
    assert!(stack.aws().ecs.group(GROUP).unwrap().members.is_empty());
}

fn desired(stack: &Stack) -> u32 {
    stack.aws().ecs.group(GROUP).unwrap().desired
}

/// `maven` takes 1024 CPU units and 2048 MiB: three fit on an instance.
fn ask(stack: &Stack, id: &str, count: u32) {
    stack.ask(json!({"requestId": id, "label": "maven", "count": count}));
}

#[tokio::test]
async fn the_first_request_starts_the_first_instance_and_is_placed_when_it_is_there() {
    let mut stack =
        slow_boot(|config| config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680})).await;
    empty_the_group(&mut stack);
    let url = stack.agent("first", "maven").await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    assert!(stack.bodies("requests").is_empty());
    assert_eq!(stack.received(&url), Vec::<String>::new(), "that it waits is no outcome");
    assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 1);
    assert_eq!(desired(&stack), 1);
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    stack.unhide("waiting");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(stack.bodies("waiting").is_empty());
}

#[tokio::test]
async fn raises_the_group_once_to_the_demand() {
    let mut stack = slow_boot(|_| {}).await;
    // Three are placed, four wait: two more instances.
    for number in 0..7 {
        ask(&stack, &format!("room-{number}"), 1);
    }
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 3);
    assert_eq!(stack.bodies("waiting").len(), 4);
    assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 1);
    assert_eq!(desired(&stack), 3);
    // Two more fit on what is booting.
    ask(&stack, "fits-1", 1);
    ask(&stack, "fits-2", 1);
    stack.settle().await;
    assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 1);
    assert_eq!(desired(&stack), 3);
    // One more does not.
    ask(&stack, "too-much", 1);
    stack.settle().await;
    assert_eq!(desired(&stack), 4);
    // However much waits, the maximum is not exceeded.
    ask(&stack, "far-too-much", 10);
    stack.settle().await;
    assert_eq!(desired(&stack), 4);
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members.len(), 4);
}

#[tokio::test]
async fn two_copies_at_once_come_to_the_same_number() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    for number in 0..3 {
        ask(&stack, &format!("copy-{number}"), 1);
    }
    let event = {
        let mut aws = stack.aws();
        let batch = aws.sqs.receive("requests", 10, None, Timestamp::now());
        aws.sqs.event("requests", &batch)
    };
    let mut another = stack.another(Binary::Request).await;
    let other_event = event.clone();
    let (one, two) = tokio::join!(stack.invoke(Binary::Request, event), another.invoke(other_event));
    assert!(one.is_ok() && two.is_ok());
    // Both put all three into the waiting queue; counted as SQS counts, that is at most six.
    assert!((2..=3).contains(&desired(&stack)), "{}", desired(&stack));
    assert_eq!(stack.active_tasks().len(), 3);
}

#[tokio::test]
async fn a_group_is_never_lowered() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    if let Some(group) = stack.aws().ecs.group_mut(GROUP) {
        group.desired = 4;
    }
    ask(&stack, "one-more", 1);
    stack.settle().await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    assert_eq!(desired(&stack), 4);
}

#[tokio::test]
async fn raises_by_one_while_the_size_is_unknown_and_nothing_boots() {
    let mut stack = slow_boot(|_| {}).await;
    empty_the_group(&mut stack);
    ask(&stack, "unknown-1", 10);
    stack.settle().await;
    assert_eq!(desired(&stack), 1);
    ask(&stack, "unknown-2", 10);
    stack.settle().await;
    assert_eq!(desired(&stack), 1);
}

#[tokio::test]
async fn a_task_too_large_for_every_instance_fails_and_raises_nothing() {
    let mut stack = slow_boot(|_| {}).await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "huge", "label": "maven", "webhookUrl": url, "overrides": {"memory": 16384}}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"]);
    assert_eq!(desired(&stack), 1);
    assert!(stack.bodies("waiting").is_empty());
    // The same where no instance is registered, but its size is configured.
    let mut stack =
        slow_boot(|config| config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680})).await;
    empty_the_group(&mut stack);
    let url = stack.webhook();
    stack.ask(json!({"requestId": "huge", "label": "maven", "webhookUrl": url, "overrides": {"memory": 16384}}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed LAUNCH_FAILED"]);
    assert_eq!(desired(&stack), 0);
}

#[tokio::test]
async fn without_a_group_nothing_is_scaled() {
    let mut stack =
        slow_boot(|config| drop(config["clouds"][0].as_object_mut().unwrap().remove("autoScalingGroup"))).await;
    ask(&stack, "fill", 5);
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 3);
    assert!(!stack.bodies("waiting").is_empty());
    assert!(stack.calls().iter().all(|call| !call.starts_with("autoscaling:")), "{:?}", stack.calls());
}

#[tokio::test]
async fn fargate_without_capacity_is_waited_for() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().fargate_has_capacity = false;
    let url = stack.agent("fargate", "node").await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    assert_eq!(stack.received(&url), Vec::<String>::new());
    assert!(stack.calls().iter().all(|call| !call.starts_with("autoscaling:")));
    stack.aws().ecs.settings().fargate_has_capacity = true;
    stack.unhide("waiting");
    stack.sweep().await;
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn fargate_of_the_clusters_default_strategy_is_waited_for_like_any_other() {
    for is_an_error in [false, true] {
        let mut stack =
            Stack::with(|config| config["clouds"][1]["templates"][0]["launch"] = json!({"type": "default"})).await;
        // No instance can hold the task, nor has it to.
        stack.aws().ecs.create_group("small", CLUSTER, (1, 1), (256, 512), Timestamp::now());
        stack.aws().ecs.fill_group("small", 1, Timestamp::now());
        empty_the_group(&mut stack);
        {
            let mut aws = stack.aws();
            aws.ecs.set_default_strategy(CLUSTER, &[json!({"capacityProvider": "FARGATE", "weight": 1})]);
            aws.ecs.settings().fargate_has_capacity = false;
            aws.ecs.settings().lack_of_fargate_is_an_error = is_an_error;
        }
        let url = stack.agent("default", "node").await;
        assert_eq!((stack.bodies("waiting").len(), stack.received(&url)), (1, vec![]), "{is_an_error}");
        stack.aws().ecs.settings().fargate_has_capacity = true;
        stack.unhide("waiting");
        stack.sweep().await;
        assert_eq!(stack.received(&url), ["agent.ready"], "{is_an_error}");
    }
}

#[tokio::test]
async fn room_wakes_as_many_as_fit_oldest_first() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    for number in 0..3 {
        ask(&stack, &format!("queued-{number}"), 1);
        stack.settle().await;
        // Times have to differ by a millisecond.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stack.bodies("waiting").len(), 3);
    stack.unhide("waiting");
    stack.forget_calls();
    let first = stack.active_tasks().remove(0);
    stack.complete(json!({"taskArn": first.arn}));
    stack.settle().await;
    stack.unhide("requests");
    stack.settle().await;
    let ready = stack.all_notices().into_iter().filter(|notice| notice.kind() == "agent.ready");
    let ready: Vec<_> = ready.map(|notice| notice.body["requestId"].clone()).collect();
    assert!(ready.contains(&json!("queued-0")), "{ready:?}");
    assert!(!ready.contains(&json!("queued-1")), "{ready:?}");
    assert_eq!(stack.bodies("waiting").len(), 2);
    assert_eq!(stack.active_tasks().len(), 3);
    assert!(stack.count("ecs:RunTask") <= 2, "only what fits is woken: {:?}", stack.calls());
}

#[tokio::test]
async fn a_placement_that_leaves_no_room_costs_one_look_at_most() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    ask(&stack, "waits", 1);
    stack.settle().await;
    let event =
        stack.history.iter().rfind(|event| event["detail-type"] == "ECS Container Instance State Change").unwrap();
    let full = event.clone();
    stack.forget_calls();
    stack.invoke(Binary::TaskState, full).await.unwrap();
    assert!(stack.calls().len() <= 1, "{:?}", stack.calls());
}

#[tokio::test]
async fn over_max_agents_a_request_waits_and_raises_nothing() {
    let mut stack = slow_boot(|config| config["clouds"][1]["templates"][0]["maxAgents"] = 1.into()).await;
    let first = stack.agent("first", "node").await;
    let second = stack.agent("second", "node").await;
    assert_eq!(stack.received(&first), ["agent.ready"]);
    assert_eq!(stack.received(&second), Vec::<String>::new());
    assert_eq!((stack.active_tasks().len(), stack.bodies("waiting").len()), (1, 1));
    stack.unhide("waiting");
    stack.complete(json!({"requestId": "first"}));
    stack.settle().await;
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.received(&second), ["agent.ready"], "an agent's end makes room");
    assert_eq!(stack.active_tasks().len(), 1);
    assert!(stack.calls().iter().all(|call| !call.starts_with("autoscaling:")), "{:?}", stack.calls());
}

#[tokio::test]
async fn a_clouds_max_agents_counts_all_its_templates_even_in_one_batch() {
    let mut stack = Stack::with(|config| config["clouds"][0]["maxAgents"] = 2.into()).await;
    for (number, label) in ["maven", "host", "maven", "maven"].iter().enumerate() {
        stack.ask(json!({"requestId": format!("limited-{number}"), "label": label}));
    }
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 2);
    assert_eq!(stack.bodies("waiting").len(), 2);
    assert_eq!(desired(&stack), 1);
}

#[tokio::test]
async fn a_request_waits_no_longer_than_allowed() {
    for way in ["instanceLaunchTimeout", "expiresAt"] {
        let mut stack = slow_boot(|config| {
            if way == "instanceLaunchTimeout" {
                config["clouds"][0]["instanceLaunchTimeout"] = "1s".into();
            }
        })
        .await;
        ask(&stack, "fill", 3);
        stack.settle().await;
        let url = stack.webhook();
        let mut request = json!({"requestId": "impatient", "label": "maven", "webhookUrl": url});
        if way == "expiresAt" {
            request["expiresAt"] = (Timestamp::now() + jiff::SignedDuration::from_secs(1)).to_string().into();
        }
        stack.ask(request);
        stack.settle().await;
        assert_eq!(stack.bodies("waiting").len(), 1, "{way}");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        stack.unhide("waiting");
        stack.sweep().await;
        stack.unhide("requests");
        stack.settle().await;
        assert_eq!(stack.received(&url), ["agent.failed CAPACITY_TIMEOUT"], "{way}");
        assert!(stack.bodies("waiting").is_empty(), "{way}");
        let message = stack.notices(Some(&url))[0].body["failure"]["message"].to_string();
        assert!(message.len() > 20, "{message}");
    }
}

#[tokio::test]
async fn copies_of_a_waiting_request_are_one_request() {
    let mut stack = slow_boot(|config| {
        // The queue's own count includes copies, and is not used where agents may wait until others end.
        config["clouds"][1]["maxAgents"] = 50.into();
        config["clouds"][0]["instanceLaunchTimeout"] = "1m".into();
    })
    .await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    let urls = [stack.webhook(), stack.webhook()];
    let copy = |url: &str| json!({"requestId": "asked-again", "label": "maven", "count": 3, "webhookUrl": url});
    stack.ask(copy(&urls[0]));
    stack.ask(copy(&urls[0]));
    stack.settle().await;
    assert_eq!((stack.bodies("waiting").len(), desired(&stack)), (2, 2), "three agents go on one instance");
    let first = Timestamp::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    stack.ask(copy(&urls[1]));
    stack.settle().await;
    stack.unhide("waiting");
    stack.sweep().await;
    assert_eq!((stack.bodies("waiting").len(), desired(&stack)), (3, 2), "for the sweep too");
    stack.unhide("waiting");
    // The first copies have waited for a minute, but the last has not.
    stack.sweep_at(first + Duration::from_secs(62)).await.unwrap();
    assert!(stack.bodies("waiting").is_empty(), "the last copy's time is over with the first's");
    for url in &urls {
        let received = stack.notices(Some(url));
        assert!(received.iter().all(|notice| notice.code() == "CAPACITY_TIMEOUT"), "{:?}", stack.received(url));
        assert!(!received.is_empty());
    }
}

#[tokio::test]
async fn a_wait_keeps_the_time_it_began_at() {
    // Refused again and again, a request still waits from its first time on.
    let mut stack = slow_boot(|config| config["clouds"][0]["instanceLaunchTimeout"] = "2s".into()).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    let url = stack.agent("bounced", "maven").await;
    let began = Timestamp::now();
    while stack.received(&url).is_empty() && Timestamp::now().duration_since(began).as_secs() < 20 {
        stack.unhide("waiting");
        stack.sweep().await;
        stack.unhide("requests");
        stack.settle().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(stack.received(&url), ["agent.failed CAPACITY_TIMEOUT"]);
    assert_eq!(stack.active_tasks().len(), 3);
}

#[tokio::test]
async fn a_hand_over_that_fails_loses_nothing() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    // The SDK retries a few times by itself.
    stack.aws().faults.always("sqs", "SendMessage", Some(Fault::server()));
    stack.aws().faults.always("sqs", "SendMessageBatch", Some(Fault::server()));
    let url = stack.agent("handed", "maven").await;
    assert_eq!(stack.bodies("requests").len(), 1, "not acknowledged");
    assert!(stack.bodies("waiting").is_empty());
    stack.aws().faults.always("sqs", "SendMessage", None);
    stack.aws().faults.always("sqs", "SendMessageBatch", None);
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    assert_eq!(stack.received(&url), Vec::<String>::new());
}

#[tokio::test]
async fn the_sweep_raises_the_group_and_sends_back_when_events_were_missed() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    // Auto Scaling cannot be asked when the request comes.
    for action in ["DescribeAutoScalingGroups", "SetDesiredCapacity"] {
        stack.aws().faults.always("autoscaling", action, Some(Fault::server()));
    }
    let url = stack.agent("missed", "maven").await;
    for action in ["DescribeAutoScalingGroups", "SetDesiredCapacity"] {
        stack.aws().faults.always("autoscaling", action, None);
    }
    stack.unhide("requests");
    stack.settle().await;
    stack.unhide("waiting");
    stack.sweep().await;
    assert_eq!(desired(&stack), 2);
    // The instance registers without an event.
    stack.aws().ecs.fill_group(GROUP, 2, Timestamp::now());
    stack.advance().clear();
    stack.unhide("waiting");
    stack.sweep().await;
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn agents_of_one_request_may_be_placed_one_after_the_other() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "bit-by-bit", 5);
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 3);
    stack.aws().ecs.fill_group(GROUP, 2, Timestamp::now());
    for _ in 0..3 {
        stack.unhide("waiting");
        stack.settle().await;
        stack.unhide("requests");
        stack.settle().await;
    }
    let tasks = stack.active_tasks();
    assert_eq!(tasks.len(), 5);
    let mut names: Vec<_> = tasks.iter().map(|task| &task.started_by).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 5);
    assert_eq!(stack.all_received().iter().filter(|notice| *notice == "agent.ready").count(), 5);
    assert!(tasks.iter().all(|task| task.cluster == CLUSTER));
}

#[tokio::test]
async fn with_managed_scaling_the_task_waits_in_ecs_and_the_group_is_not_ours_to_touch() {
    let mut stack = slow_boot(|config| {
        let template = &mut config["clouds"][0]["templates"][0];
        template["launch"] = json!({"capacityProviders": [{"name": "managed", "weight": 1}]});
    })
    .await;
    stack.aws().ecs.create_capacity_provider("managed", GROUP, true);
    ask(&stack, "managed", 5);
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 5);
    assert!(stack.tasks().iter().any(|task| task.last_status.as_str() == "PROVISIONING"));
    assert!(stack.bodies("waiting").is_empty());
    stack.sweep().await;
    assert!(stack.calls().iter().all(|call| !call.starts_with("autoscaling:Set")), "{:?}", stack.calls());
}

#[tokio::test]
async fn the_time_in_provisioning_is_a_wait_for_room() {
    let mut stack = slow_boot(|config| {
        let cloud = &mut config["clouds"][0];
        cloud["instanceLaunchTimeout"] = "10m".into();
        cloud["templates"][0]["containerStartTimeout"] = "5m".into();
        cloud["templates"][0]["launch"] = json!({"capacityProviders": [{"name": "managed", "weight": 1}]});
    })
    .await;
    stack.aws().ecs.fill_group(GROUP, 0, Timestamp::now());
    stack.aws().ecs.create_capacity_provider("managed", GROUP, true);
    let url = stack.agent("managed", "maven").await;
    assert_eq!(stack.tasks()[0].last_status.as_str(), "PROVISIONING");
    for (minutes, expected) in [(9, &[][..]), (11, &["agent.failed CAPACITY_TIMEOUT".to_owned()])] {
        stack.sweep_at(Timestamp::now() + jiff::SignedDuration::from_mins(minutes)).await.unwrap();
        stack.settle().await;
        assert_eq!(stack.received(&url), expected, "after {minutes} minutes");
    }
}

#[tokio::test]
async fn a_capacity_provider_without_instances_is_named_with_what_to_do() {
    let mut stack = slow_boot(|config| {
        config["clouds"][0]["instanceLaunchTimeout"] = "1s".into();
        config["clouds"][0]["templates"][0]["launch"] = json!({"capacityProviders": [{"name": "own", "weight": 1}]});
    })
    .await;
    {
        let mut aws = stack.aws();
        aws.ecs.fill_group(GROUP, 0, Timestamp::now());
        aws.ecs.create_capacity_provider("own", GROUP, false);
        // The cloud's group is at its maximum, which is not why the request waits.
        aws.ecs.group_mut(GROUP).unwrap().maximum = 0;
    }
    let url = stack.agent("empty", "maven").await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    stack.unhide("waiting");
    stack.sweep_at(Timestamp::now() + Duration::from_secs(5)).await.unwrap();
    let failure = stack.notices(Some(&url)).remove(0).body["failure"].clone();
    let message = failure["message"].as_str().unwrap();
    assert_eq!(failure["code"], "CAPACITY_TIMEOUT");
    assert!(message.contains("EMPTY CAPACITY PROVIDER; ") && message.contains("managed scaling"), "{message}");
}

#[tokio::test]
async fn an_inbound_agent_that_is_never_placed_leaves_no_node_behind() {
    for way in ["aborted", "timed out"] {
        let mut stack = slow_boot(|config| {
            if way == "timed out" {
                config["clouds"][0]["instanceLaunchTimeout"] = "1s".into();
            }
        })
        .await;
        ask(&stack, "fill", 3);
        stack.settle().await;
        let filled = stack.nodes();
        // By CPU, four `dial` would fit; the memory that is left is too little for one.
        let url = stack.agent("dial", "dial").await;
        assert_eq!(stack.bodies("waiting").len(), 1, "{way}");
        stack.unhide("waiting");
        if way == "aborted" {
            stack.complete(json!({"requestId": "dial"}));
            stack.settle().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1200)).await;
        }
        for later in 0..3 {
            let time = Timestamp::now() + jiff::SignedDuration::from_mins(later) + Duration::from_secs(1);
            stack.sweep_at(time).await.unwrap();
            stack.unhide("waiting");
            stack.unhide("requests");
            stack.unhide("completions");
            stack.settle().await;
        }
        assert_eq!(stack.nodes(), filled, "{way}");
        assert!(stack.received(&url).iter().all(|notice| notice.starts_with("agent.failed")), "{way}");
        assert!(stack.bodies("waiting").is_empty() && stack.bodies("completions").is_empty(), "{way}");
    }
}

/// An empty group with changes.
async fn with_group(change: impl FnOnce(&mut local::aws::ecs::Group)) -> Stack {
    let mut stack = slow_boot(|config| {
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 8192});
        config["clouds"][0]["templates"][0]["placementConstraints"] =
            json!([{"type": "memberOf", "expression": "attribute:ecs.cpu-architecture == x86_64"}]);
    })
    .await;
    empty_the_group(&mut stack);
    change(stack.aws().ecs.group_mut(GROUP).unwrap());
    stack
}

#[tokio::test]
async fn a_weighted_group_is_raised_in_its_own_units() {
    let mut stack = with_group(|group| {
        group.weight = Some(2);
        group.maximum = 100;
    })
    .await;
    for index in 0..6 {
        stack.ask(json!({"requestId": format!("weighed-{index}"), "label": "maven", "count": 2}));
    }
    stack.settle().await;
    // Twelve agents of 2 GiB on instances of 8 GiB: three instances of two units.
    assert_eq!(desired(&stack), 6);
}

#[tokio::test]
async fn a_placement_failure_of_another_groups_instance_is_no_room() {
    let mut stack = with_group(|_| {}).await;
    {
        let mut aws = stack.aws();
        aws.ecs.create_group("other", CLUSTER, (0, 1), (4096, 8192), Timestamp::now());
        aws.ecs.group_mut("other").unwrap().attributes.insert("ecs.cpu-architecture".into(), "arm64".into());
        aws.ecs.fill_group("other", 1, Timestamp::now());
    }
    stack.settle().await;
    let url = stack.agent("foreign", "maven").await;
    assert_eq!(stack.received(&url), Vec::<String>::new());
    assert_eq!(desired(&stack), 1);
}

#[tokio::test]
async fn agents_that_share_no_instance_get_one_each_from_zero() {
    let mut stack = slow_boot(|config| {
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 8192});
        config["clouds"][0]["templates"][0]["placementConstraints"] = json!([{"type": "distinctInstance"}]);
    })
    .await;
    empty_the_group(&mut stack);
    stack.aws().ecs.group_mut(GROUP).unwrap().maximum = 100;
    stack.ask(json!({"requestId": "apart", "label": "maven", "count": 3}));
    stack.settle().await;
    assert_eq!(desired(&stack), 3);
}

#[tokio::test]
async fn instances_that_never_register_are_neither_booting_nor_raised_beyond_reason() {
    let mut stack = with_group(|group| {
        group.registers = false;
        group.maximum = 100;
    })
    .await;
    stack.aws().ecs.fill_group(GROUP, 2, "2026-01-01T00:00:00Z".parse().unwrap());
    stack.ask(json!({"requestId": "dead", "label": "maven"}));
    stack.settle().await;
    assert_eq!(desired(&stack), 2, "what keeps two from the cluster would keep the third");
    assert!(stack.output().contains("never registered in the cluster"), "the reason names them");
}

#[tokio::test]
async fn an_instance_that_a_lifecycle_hook_holds_is_booting() {
    let mut stack =
        Stack::with(|config| config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680})).await;
    empty_the_group(&mut stack);
    stack.aws().ecs.settings().register = Duration::from_secs(3600);
    stack.aws().ecs.group_mut(GROUP).unwrap().launch_hook = Some(Duration::from_secs(3600));
    for number in 0..3 {
        ask(&stack, &format!("held-{number}"), 1);
    }
    stack.settle().await;
    assert_eq!(desired(&stack), 1);
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members[0].lifecycle, "Pending:Wait");
    stack.sweep().await;
    assert_eq!(desired(&stack), 1, "three fit on the instance that is held");
    ask(&stack, "more", 1);
    stack.settle().await;
    assert_eq!(desired(&stack), 2);
}

#[tokio::test]
async fn instances_of_a_warm_pool_are_neither_room_nor_booting() {
    for lifecycle in ["Warmed:Stopped", "Warmed:Hibernated", "Warmed:Running"] {
        let mut stack = slow_boot(|_| {}).await;
        ask(&stack, "fill", 3);
        stack.settle().await;
        stack.aws().ecs.fill_warm_pool(GROUP, 2, lifecycle, Timestamp::now());
        ask(&stack, "waits", 3);
        stack.settle().await;
        stack.sweep().await;
        assert_eq!(desired(&stack), 2, "{lifecycle}: the one instance that is needed, and no more");
    }
}

#[tokio::test]
async fn a_request_that_found_no_room_again_is_woken_later() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    let url = stack.agent("bounces", "maven").await;
    let is_of_instance = |event: &&Value| event["detail-type"] == "ECS Container Instance State Change";
    let mut event = stack.history.iter().rfind(is_of_instance).unwrap().clone();
    // It says that there is room, which another request will have taken.
    for resource in event["detail"]["remainingResources"].as_array_mut().unwrap() {
        match resource["name"].as_str() {
            Some("CPU") => resource["integerValue"] = 4096.into(),
            Some("MEMORY") => resource["integerValue"] = 7680.into(),
            _ => {}
        }
    }
    let mut delays = Vec::new();
    for _ in 0..4 {
        let now = Timestamp::now();
        delays.push(stack.aws().sqs.messages("waiting")[0].visible_at.duration_since(now).as_secs().max(0));
        stack.unhide("waiting");
        stack.invoke(Binary::TaskState, event.clone()).await.unwrap();
        assert_eq!((stack.bodies("requests").len(), stack.bodies("waiting").len()), (1, 0), "woken: {delays:?}");
        stack.poll(Binary::Request, "requests").await;
        assert_eq!((stack.bodies("requests").len(), stack.bodies("waiting").len()), (0, 1), "bounced: {delays:?}");
    }
    assert!(delays[0] == 0 && delays.is_sorted() && delays[3] >= 10 && delays[3] <= 900, "{delays:?}");
    assert_eq!(
        (stack.received(&url).len(), stack.all_received().iter().filter(|notice| *notice == "agent.waiting").count()),
        (0, 1)
    );
}

#[tokio::test]
async fn a_maximum_that_was_lowered_meanwhile_fails_no_request() {
    let mut stack = slow_boot(|_| {}).await;
    ask(&stack, "fill", 3);
    stack.settle().await;
    let message = "New SetDesiredCapacity value 2 is above max value 1 for the AutoScalingGroup.";
    let refusal = local::aws::ApiError::new("ValidationError", message);
    stack.aws().faults.script("autoscaling", "SetDesiredCapacity", [Some(Fault::Error(refusal))]);
    let url = stack.agent("raced", "maven").await;
    stack.aws().ecs.group_mut(GROUP).unwrap().maximum = 1;
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!((stack.bodies("waiting").len(), stack.bodies("requests").len()), (1, 0));
    assert_eq!((stack.received(&url).len(), stack.rejected().len(), desired(&stack)), (0, 0, 1));
}

/// With several groups, the depth of the queue does not show how many requests wait for which.
#[tokio::test]
async fn a_batch_raises_each_group_to_what_two_thousand_waiting_requests_need() {
    let mut stack = slow_boot(|config| {
        let mut another = config["clouds"][0].clone();
        (another["name"], another["autoScalingGroup"]) = ("another".into(), "another".into());
        another["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680});
        another["templates"].as_array_mut().unwrap().truncate(1);
        (another["templates"][0]["name"], another["templates"][0]["labels"]) = ("other".into(), json!(["other"]));
        config["clouds"].as_array_mut().unwrap().push(another);
    })
    .await;
    stack.aws().ecs.create_group("another", CLUSTER, (0, 1000), (4096, 7680), Timestamp::now());
    stack.aws().ecs.group_mut(GROUP).unwrap().maximum = 1000;
    ask(&stack, "fill", 3);
    stack.settle().await;
    let since = Timestamp::now() - Duration::from_secs(60);
    for number in 0..500 {
        let ids = (0..3).map(|part| format!("linux-{number}-{part}"));
        wait(&stack, ids, ("linux", "maven"), "instance", since);
        wait(&stack, std::iter::once(format!("another-{number}")), ("another", "other"), "instance", since);
    }
    ask(&stack, "one-more", 1);
    stack.ask(json!({"requestId": "another-one", "label": "other"}));
    stack.poll(Binary::Request, "requests").await;
    let raised = [GROUP, "another"].map(|group| stack.aws().ecs.group(group).unwrap().desired);
    // Three agents on an instance, and one instance that is full.
    assert!((502..=512).contains(&raised[0]) && (167..=172).contains(&raised[1]), "{raised:?}");
}
