//! The sweep (docs/architecture.md). Minutes pass by the events' `time`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use local::aws::Fault;
use local::aws::ecs::Behaviour;
use local::jenkins::Permission;
use serde_json::{Value, json};
use tests::{Binary, CLUSTER, GROUP, Stack};

fn minutes(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(minutes)
}

/// Runs a sweep some minutes from now, and everything that follows from it.
async fn sweep_in(stack: &mut Stack, later: i64) {
    stack.sweep_at(Timestamp::now() + minutes(later)).await.unwrap();
    stack.settle().await;
}

/// Makes a task older, as if it had been started earlier.
fn age(stack: &Stack, arn: &str, by: SignedDuration) {
    let mut aws = stack.aws();
    let task = aws.ecs.task_mut(arn).unwrap();
    for time in [Some(&mut task.created_at), task.started_at.as_mut()].into_iter().flatten() {
        *time -= by;
    }
}

#[tokio::test]
async fn a_quiet_world_stays_as_it_is() {
    let mut stack = Stack::start().await;
    stack.agent("busy", "node").await;
    stack.forget_calls();
    stack.sweep().await;
    let changes = stack.calls().into_iter().filter(|call| {
        let action = call.split(':').nth(1).unwrap();
        !["Describe", "List", "Get", "Receive", "Tag"].iter().any(|verb| action.starts_with(verb))
    });
    let changes: Vec<_> = changes.collect();
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(stack.active_tasks().len(), 1);
    assert_eq!(stack.nodes().len(), 1);
    assert_eq!(stack.all_received(), ["agent.ready"]);
}

#[tokio::test]
async fn stops_and_reports_an_agent_that_is_not_ready_in_time() {
    let mut stack =
        Stack::with(|config| config["clouds"][1]["templates"][0]["containerStartTimeout"] = "5m".into()).await;
    stack.aws().ecs.behave("jenkins-node", Behaviour::NeverRuns);
    let url = stack.agent("never", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    age(&stack, &arn, minutes(4));
    stack.sweep().await;
    assert_eq!(stack.received(&url), Vec::<String>::new());
    age(&stack, &arn, minutes(2));
    stack.sweep().await;
    assert_eq!(stack.received(&url), ["agent.failed START_TIMEOUT"]);
    assert!(stack.active_tasks().is_empty() && stack.nodes().is_empty());
}

#[tokio::test]
async fn an_agent_that_never_becomes_healthy_is_not_ready() {
    let mut stack =
        Stack::with(|config| config["clouds"][0]["templates"][0]["taskDefinition"] = "jenkins-checked".into()).await;
    stack.aws().ecs.behave("jenkins-checked", Behaviour::HealthUnknown);
    let url = stack.agent("unhealthy", "maven").await;
    let arn = stack.tasks()[0].arn.clone();
    age(&stack, &arn, minutes(16));
    stack.sweep().await;
    assert_eq!(stack.received(&url), ["agent.failed START_TIMEOUT"]);
}

#[tokio::test]
async fn an_agent_waits_for_jenkins_as_long_as_that_is_away() {
    let mut stack = Stack::start().await;
    stack.jenkins_goes_down();
    let url = stack.agent("restart", "maven").await;
    let arn = stack.tasks()[0].arn.clone();
    age(&stack, &arn, minutes(40));
    stack.sweep().await;
    assert_eq!(stack.active_tasks().len(), 1, "it is Jenkins that is not ready");
    stack.jenkins_comes_back().await;
    stack.sweep().await;
    assert_eq!(stack.received(&url), ["agent.ready"], "the first sweep that reaches Jenkins reports it");
    assert_eq!(stack.nodes().len(), 1);
}

#[tokio::test]
async fn stops_an_agent_that_jenkins_never_accepts_and_says_why() {
    for (token, permissions, word) in [
        (tests::API_TOKEN, vec![Permission::Read], "Agent/Create"),
        ("another", Permission::FOR_AGENTS.to_vec(), "jenkins.apiToken"),
    ] {
        let mut stack = Stack::start().await;
        stack.jenkins().add_user("ecs-agents", token, permissions);
        let url = stack.agent("refused", "maven").await;
        let arn = stack.tasks()[0].arn.clone();
        age(&stack, &arn, minutes(16));
        stack.sweep().await;
        assert!(stack.active_tasks().is_empty(), "{word}");
        stack.jenkins().add_user("ecs-agents", tests::API_TOKEN, Permission::FOR_AGENTS);
        stack.unhide("undelivered");
        stack.settle().await;
        assert_eq!(stack.received(&url), ["agent.failed START_TIMEOUT"]);
        let message = stack.notices(Some(&url))[0].body["failure"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("not ready within 15m") && message.contains(word), "{message}");
    }
}

#[tokio::test]
async fn no_agent_outlives_its_lifetime() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["templates"][0]["maxLifetime"] = "never".into();
        config["clouds"][0]["templates"][0]["idleTimeout"] = "never".into();
    })
    .await;
    let url = stack.agent("old", "node").await;
    stack.agent("forever", "maven").await;
    for task in stack.tasks() {
        age(&stack, &task.arn, SignedDuration::from_hours(25));
    }
    stack.sweep().await;
    let active = stack.active_tasks();
    assert_eq!(active.len(), 1);
    assert!(active[0].started_by.contains("maven"));
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(stack.all_received().contains(&"agent.stopped LIFETIME_EXCEEDED".into()), "{:?}", stack.all_received());
    assert_eq!(stack.nodes(), [active[0].started_by.clone()]);
}

#[tokio::test]
async fn neither_a_build_nor_jenkins_absence_extends_a_lifetime() {
    for is_away in [false, true] {
        let mut stack = Stack::start().await;
        let url = stack.agent("busy", "node").await;
        let task = stack.tasks().remove(0);
        stack.jenkins().connect_ssh(&task.started_by);
        assert!(stack.jenkins().start_build_on(&task.started_by, "app/main #1"));
        age(&stack, &task.arn, SignedDuration::from_hours(23));
        stack.sweep().await;
        assert_eq!(stack.active_tasks().len(), 1);
        if is_away {
            stack.jenkins_goes_down();
        }
        age(&stack, &task.arn, SignedDuration::from_hours(2));
        stack.sweep().await;
        assert!(stack.active_tasks().is_empty(), "{is_away}");
        if is_away {
            stack.jenkins_comes_back().await;
            stack.unhide("undelivered");
            stack.settle().await;
        }
        assert_eq!(stack.received(&url), ["agent.ready"], "{is_away}");
        assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped LIFETIME_EXCEEDED"], "{is_away}");
        assert!(stack.nodes().is_empty(), "{is_away}");
    }
}

#[tokio::test]
async fn an_agent_that_jenkins_was_never_there_for_fails_at_the_end_of_its_lifetime() {
    let mut stack = Stack::start().await;
    stack.jenkins_goes_down();
    let url = stack.agent("unheard", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    age(&stack, &arn, SignedDuration::from_hours(25));
    stack.sweep().await;
    assert!(stack.active_tasks().is_empty());
    stack.jenkins_comes_back().await;
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed LIFETIME_EXCEEDED"]);
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn an_idle_agent_is_stopped_and_a_busy_one_is_not() {
    let mut stack = Stack::start().await;
    stack.agent("idle", "node").await;
    let idle = stack.nodes().remove(0);
    stack.agent("busy", "node").await;
    let busy = stack.nodes().into_iter().find(|name| *name != idle).unwrap();
    for name in [&idle, &busy] {
        stack.jenkins().connect_ssh(name);
    }
    assert!(stack.jenkins().start_build_on(&busy, "app/main #1"));
    for later in [0, 1, 5, 9] {
        sweep_in(&mut stack, later).await;
        assert_eq!(stack.active_tasks().len(), 2, "after {later} minutes");
    }
    sweep_in(&mut stack, 12).await;
    let active = stack.active_tasks();
    assert_eq!(active.iter().map(|task| task.started_by.as_str()).collect::<Vec<_>>(), [busy.as_str()]);
    assert!(stack.all_received().contains(&"agent.stopped IDLE".into()), "{:?}", stack.all_received());
    // Its build ends, and its own ten minutes begin.
    stack.jenkins().finish_build(&busy);
    sweep_in(&mut stack, 13).await;
    sweep_in(&mut stack, 20).await;
    assert_eq!(stack.active_tasks().len(), 1);
    sweep_in(&mut stack, 24).await;
    assert!(stack.active_tasks().is_empty());
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn a_build_in_between_begins_the_idle_time_anew() {
    let mut stack = Stack::start().await;
    stack.agent("now-and-then", "node").await;
    let name = stack.nodes().remove(0);
    stack.jenkins().connect_ssh(&name);
    sweep_in(&mut stack, 0).await;
    sweep_in(&mut stack, 5).await;
    assert!(stack.jenkins().start_build_on(&name, "app/main #1"));
    sweep_in(&mut stack, 6).await;
    stack.jenkins().finish_build(&name);
    sweep_in(&mut stack, 7).await;
    sweep_in(&mut stack, 12).await;
    assert_eq!(stack.active_tasks().len(), 1);
    sweep_in(&mut stack, 18).await;
    assert!(stack.active_tasks().is_empty());
}

#[tokio::test]
async fn nothing_is_stopped_on_a_guess() {
    let mut stack = Stack::start().await;
    stack.agent("guess", "node").await;
    let name = stack.nodes().remove(0);
    stack.jenkins().connect_ssh(&name);
    sweep_in(&mut stack, 0).await;
    // Jenkins does not answer while the time runs out.
    stack.jenkins_goes_down();
    let _ = stack.sweep_at(Timestamp::now() + minutes(20)).await;
    assert_eq!(stack.active_tasks().len(), 1, "whether it is idle, only Jenkins knows");
    stack.jenkins_comes_back().await;
    // ECS does not answer: no node is deleted.
    for action in ["ListTasks", "DescribeTasks"] {
        stack.aws().faults.always("ecs", action, Some(Fault::server()));
        for later in [21, 22, 23] {
            let _ = stack.sweep_at(Timestamp::now() + minutes(later)).await;
        }
        assert_eq!(stack.nodes().len(), 1, "{action}");
        stack.aws().faults.always("ecs", action, None);
    }
}

#[tokio::test]
async fn leaves_agents_and_instances_tagged_keep_alone() {
    let mut stack = Stack::start().await;
    stack.agent("kept", "node").await;
    let task = stack.tasks().remove(0);
    stack.aws().ecs.task_mut(&task.arn).unwrap().tags.insert("jenkins-ecs-agents:keep".into(), "yes".into());
    age(&stack, &task.arn, SignedDuration::from_hours(48));
    for later in [0, 11, 22] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(stack.active_tasks().len(), 1);
    assert_eq!(stack.nodes().len(), 1);
}

/// The tasks are listed, then stopped ten at a time: the tag comes in between.
#[tokio::test]
async fn an_idle_agent_that_is_tagged_keep_during_the_sweep_stays_online() {
    let mut stack = Stack::start().await;
    for number in 0..30 {
        stack.ask(json!({"requestId": format!("idle-{number}"), "label": "node", "webhookUrl": stack.webhook()}));
    }
    stack.settle().await;
    sweep_in(&mut stack, 0).await;
    stack.jenkins_is_slow("changeOfflineCause", Duration::from_millis(200));
    let aws = stack.shared_aws();
    let keep_once_one_is_stopped = async move {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut aws = aws.lock().unwrap();
            if aws.calls("ecs", "StopTask").is_empty() {
                continue;
            }
            let arns: Vec<_> = aws.ecs.tasks().map(|task| task.arn.clone()).collect();
            for arn in arns {
                aws.ecs.task_mut(&arn).unwrap().tags.insert("jenkins-ecs-agents:keep".into(), String::new());
            }
            break;
        }
    };
    let sweep = async { stack.sweep_at(Timestamp::now() + minutes(11)).await.unwrap() };
    tokio::join!(keep_once_one_is_stopped, sweep);
    let kept: Vec<_> = stack.active_tasks().into_iter().map(|task| task.started_by).collect();
    assert!((1..30).contains(&kept.len()), "{}", kept.len());
    let jenkins = stack.jenkins();
    let offline: Vec<_> =
        kept.iter().filter(|name| jenkins.node(name).unwrap().temporarily_offline.is_some()).collect();
    assert!(offline.is_empty(), "{offline:?}");
}

#[tokio::test]
async fn a_copy_of_a_request_is_answered_with_the_code_of_its_agents_end() {
    let mut stack = Stack::start().await;
    stack.agent("old", "node").await;
    let arn = stack.tasks().remove(0).arn;
    age(&stack, &arn, SignedDuration::from_hours(25));
    sweep_in(&mut stack, 0).await;
    let copy = stack.webhook();
    stack.ask(json!({"requestId": "old", "label": "node", "webhookUrl": copy}));
    stack.settle().await;
    assert_eq!(stack.received(&copy), ["agent.failed LIFETIME_EXCEEDED"]);
}

#[tokio::test]
async fn reports_tasks_whose_events_never_came() {
    let mut stack = Stack::start().await;
    // A task runs, and its event never came.
    let running = stack.webhook();
    stack.ask(json!({"requestId": "unheard", "label": "node", "webhookUrl": running}));
    stack.poll(Binary::Request, "requests").await;
    stack.advance().clear();
    assert_eq!(stack.received(&running), Vec::<String>::new());
    // For a minute, its event may be on its way.
    sweep_in(&mut stack, 2).await;
    assert_eq!(stack.received(&running), ["agent.ready"]);
    assert_eq!(stack.nodes().len(), 1);
    // Another ended before its event came.
    stack.aws().ecs.behave("jenkins-node", Behaviour::ImageMissing);
    let ended = stack.webhook();
    stack.ask(json!({"requestId": "unheard-end", "label": "node", "webhookUrl": ended}));
    stack.poll(Binary::Request, "requests").await;
    stack.advance().clear();
    sweep_in(&mut stack, 4).await;
    assert_eq!(stack.received(&ended), ["agent.failed START_FAILED"]);
    // The last event of the first is lost, too.
    let arn = stack.active_tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 1, Timestamp::now());
    stack.advance().clear();
    for later in [6, 7, 8] {
        sweep_in(&mut stack, later).await;
    }
    assert!(stack.nodes().is_empty());
    assert_eq!(stack.received(&running), ["agent.ready"]);
    assert_eq!(stack.received(&ended), ["agent.failed START_FAILED"]);
}

#[tokio::test]
async fn an_agent_that_was_reported_but_not_yet_recorded_is_not_reported_again() {
    for (label, registers) in [("maven", true), ("dial", true), ("node", false)] {
        let mut stack = Stack::with(|config| {
            config["jenkins"]["registerNodes"] = registers.into();
            if !registers {
                config["clouds"][0]["templates"].as_array_mut().unwrap().pop();
            }
        })
        .await;
        stack.aws().faults.always("ecs", "TagResource", Some(Fault::server()));
        let url = stack.agent("notified", label).await;
        // Jenkins forgets a webhook once it was called.
        let path = url.strip_prefix(stack.jenkins_root()).unwrap().to_owned();
        let gone = http::Response::builder().status(410).body(bytes::Bytes::new()).unwrap();
        stack.jenkins().script(&path, std::iter::repeat_n(gone, 20));
        for later in 1..=12 {
            sweep_in(&mut stack, later).await;
        }
        let received = |stack: &Stack| (stack.received(&url), stack.all_received());
        let once = (vec!["agent.ready".to_owned()], vec!["agent.ready".to_owned()]);
        assert_eq!((received(&stack), stack.active_tasks().len()), (once.clone(), 1), "{label}");
        stack.aws().faults.always("ecs", "TagResource", None);
        stack.unhide("undelivered");
        stack.settle().await;
        sweep_in(&mut stack, 13).await;
        assert!(stack.tasks()[0].tags["jenkins-ecs-agents:reported"].starts_with("ready"), "{label}");
        assert!(stack.bodies("undelivered").is_empty(), "{label}");
        assert_eq!((received(&stack), stack.active_tasks().len()), (once, 1), "{label}");
    }
}

#[tokio::test]
async fn an_agent_that_was_never_reported_is_reported_within_two_minutes_with_or_without_nodes() {
    for (label, registers) in [("dial", true), ("node", false)] {
        let mut stack = Stack::with(|config| {
            config["jenkins"]["registerNodes"] = registers.into();
            if !registers {
                config["clouds"][0]["templates"].as_array_mut().unwrap().pop();
            }
        })
        .await;
        let url = stack.webhook();
        stack.ask(json!({"requestId": "unheard", "label": label, "webhookUrl": url}));
        stack.poll(Binary::Request, "requests").await;
        stack.advance().clear();
        sweep_in(&mut stack, 2).await;
        assert_eq!(stack.received(&url), ["agent.ready"], "{label}");
    }
}

#[tokio::test]
async fn the_sweep_and_an_inquiry_report_the_public_address_and_use_the_event_bus() {
    let mut stack = Stack::with(|config| {
        config["eventBus"] = "ci-agents".into();
        let template = &mut config["clouds"][1]["templates"][0];
        template["ssh"]["address"] = "public".into();
        template["network"]["assignPublicIp"] = true.into();
    })
    .await;
    let url = stack.webhook();
    let request = json!({"requestId": "unheard", "label": "node", "webhookUrl": url});
    stack.ask(request.clone());
    stack.poll(Binary::Request, "requests").await;
    stack.advance().clear();
    sweep_in(&mut stack, 2).await;
    let public = stack.tasks()[0].interface.as_ref().unwrap().public_address.clone().unwrap();
    let hosts = |stack: &Stack| -> Vec<Value> {
        stack.notices(Some(&url)).iter().map(|notice| notice.body["agent"]["host"].clone()).collect()
    };
    assert_eq!(hosts(&stack), std::slice::from_ref(&public));
    assert_eq!(stack.aws().bus.entries.len(), 1);
    stack.jenkins().wait_for_webhook(&url);
    stack.ask(request);
    stack.settle().await;
    assert_eq!(hosts(&stack), [public.clone(), public]);
}

#[tokio::test]
async fn an_unreported_inbound_agent_is_reported_once_it_is_online() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "unheard", "label": "dial", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    stack.advance().clear();
    let name = stack.nodes().remove(0);
    let environment = stack.inputs("RunTask")[0]["overrides"]["containerOverrides"][0]["environment"].clone();
    let secret = environment.as_array().unwrap().iter().find(|variable| variable["name"] == "JENKINS_SECRET").unwrap();
    stack.jenkins().connect_inbound(&name, secret["value"].as_str().unwrap()).unwrap();
    sweep_in(&mut stack, 2).await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn deletes_a_node_without_a_task_a_minute_after_it_was_first_seen() {
    let mut stack = Stack::start().await;
    stack.agent("gone", "node").await;
    stack.agent("there", "node").await;
    let gone = stack.tasks().remove(0);
    {
        // The task ends and ECS forgets it, without an event.
        let mut aws = stack.aws();
        aws.ecs.exit(&gone.arn, 0, Timestamp::now());
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
        assert_eq!(aws.ecs.tasks().count(), 1);
    }
    stack.advance().clear();
    let first = Timestamp::now() + minutes(1);
    stack.sweep_at(first).await.unwrap();
    assert_eq!(stack.nodes().len(), 2);
    // The same minute, delivered twice, counts once.
    stack.sweep_at(first).await.unwrap();
    assert_eq!(stack.nodes().len(), 2);
    // Another process reads it from Jenkins.
    stack.kill(Binary::Teardown);
    stack.sweep_at(first + minutes(1)).await.unwrap();
    let nodes = stack.nodes();
    assert_eq!(nodes.len(), 1);
    assert_ne!(nodes[0], gone.started_by);
}

#[tokio::test]
async fn nodes_of_others_are_left_alone() {
    let mut stack = Stack::start().await;
    stack.agent("ours", "node").await;
    let request = |name: &str| {
        let json = json!({"name": name, "nodeDescription": "", "numExecutors": "1", "remoteFS": "/home", "labelString": "",
            "mode": "NORMAL", "type": "hudson.slaves.DumbSlave", "retentionStrategy": {
                "stapler-class": "hudson.slaves.RetentionStrategy$Always", "$class": "hudson.slaves.RetentionStrategy$Always"},
            "nodeProperties": {"stapler-class-bag": "true"},
            "launcher": {"stapler-class": "hudson.slaves.JNLPLauncher", "$class": "hudson.slaves.JNLPLauncher"}});
        let json = json.to_string().replace('%', "%25").replace('&', "%26").replace('+', "%2B").replace('$', "%24");
        let token = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("ecs-agents:{}", tests::API_TOKEN),
        );
        http::Request::post(format!("/ci/computer/doCreateItem?name={name}&type=hudson.slaves.DumbSlave"))
            .header("authorization", format!("Basic {token}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(bytes::Bytes::from(format!("json={json}")))
            .unwrap()
    };
    for name in ["somebody-s-agent", "ecs-agent", "ecs-node-0123", "other-node-0123456789ab"] {
        let answer = stack.jenkins().handle(request(name), Timestamp::now());
        assert!(answer.status().is_redirection(), "{name}: {answer:?}");
    }
    for later in [0, 1, 2] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(stack.nodes().len(), 5);
}

#[tokio::test]
async fn idle_instances_are_given_back_drained_first_and_not_below_the_minimum() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    {
        let mut aws = stack.aws();
        aws.ecs.fill_group(GROUP, 3, Timestamp::now());
        aws.ecs.group_mut(GROUP).unwrap().minimum = 1;
    }
    stack.agent("busy", "maven").await;
    let busy = stack.tasks().remove(0).instance.unwrap();
    let busy = stack.aws().ecs.instances().find(|instance| instance.arn == busy).unwrap().ec2_id.clone();
    let node = stack.nodes().remove(0);
    stack.jenkins().connect_ssh(&node);
    assert!(stack.jenkins().start_build_on(&node, "app/main #1"));
    stack.forget_calls();
    for later in [0, 1, 5, 9] {
        sweep_in(&mut stack, later).await;
        assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members.len(), 3, "after {later} minutes");
    }
    for later in 11..20 {
        sweep_in(&mut stack, later).await;
    }
    let members: Vec<_> =
        stack.aws().ecs.group(GROUP).unwrap().members.iter().map(|member| member.id.clone()).collect();
    assert_eq!(members, [busy], "the busy one stays");
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 1, "lowered by those alone");
    assert_eq!(stack.active_tasks().len(), 1);
    let calls = stack.calls();
    let place = |call: &str| calls.iter().position(|made| made == call).unwrap_or_else(|| panic!("{call}: {calls:?}"));
    assert!(place("ecs:UpdateContainerInstancesState") < place("autoscaling:TerminateInstanceInAutoScalingGroup"));
    assert_eq!(stack.count("autoscaling:SetDesiredCapacity"), 0);
    for call in stack.aws().calls("autoscaling", "TerminateInstanceInAutoScalingGroup") {
        assert_eq!(call.input["ShouldDecrementDesiredCapacity"], "true");
    }
    // The build ends, and the agent with it: the last instance is the group's minimum.
    stack.complete(json!({"requestId": "busy"}));
    stack.settle().await;
    for later in [20, 25, 31, 32, 33, 45] {
        sweep_in(&mut stack, later).await;
    }
    let aws = stack.aws();
    assert_eq!(aws.ecs.group(GROUP).unwrap().members.len(), 1);
    assert!(aws.ecs.instances().all(|instance| instance.status.as_str() == "ACTIVE"), "and takes agents");
}

#[tokio::test]
async fn scale_in_spares_protected_instances_until_the_sweep_terminates_idle_ones() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    {
        let mut aws = stack.aws();
        let group = aws.ecs.group_mut(GROUP).unwrap();
        (group.protects_new, group.minimum) = (true, 1);
        aws.ecs.fill_group(GROUP, 4, Timestamp::now());
    }
    stack.agent("busy", "maven").await;
    let node = stack.nodes().remove(0);
    stack.jenkins().connect_ssh(&node);
    assert!(stack.jenkins().start_build_on(&node, "app/main #1"));
    // The first instance is older than the protection, and may have the agent.
    let place = stack.active_tasks()[0].instance.clone().unwrap();
    let place = stack.aws().ecs.instance(&place).unwrap().ec2_id.clone();
    if let Some(group) = stack.aws().ecs.group_mut(GROUP) {
        group.members.iter_mut().filter(|member| member.id == place).for_each(|member| member.protected = true);
    }
    // A scaling policy that does not know of agents.
    stack.aws().ecs.fill_group(GROUP, 1, Timestamp::now());
    assert_eq!(stack.active_tasks().len(), 1, "scale-in leaves protected instances alone");
    for later in [0, 5, 11, 12, 13] {
        sweep_in(&mut stack, later).await;
    }
    let aws = stack.aws();
    let group = aws.ecs.group(GROUP).unwrap();
    assert_eq!((group.members.len(), group.desired), (1, 1), "what was left idle went, and was not replaced");
    drop(aws);
    assert_eq!(stack.active_tasks().len(), 1);
}

#[tokio::test]
async fn with_a_minimum_of_none_the_last_instance_goes_too_and_comes_back_when_it_is_needed() {
    let mut stack = Stack::with(|config| {
        config["clouds"][0]["idleInstanceTimeout"] = "10m".into();
        config["clouds"][0]["instanceCapacity"] = json!({"cpu": 4096, "memory": 7680});
    })
    .await;
    for later in [0, 5, 11, 12, 13] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members.len(), 0);
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 0);
    let url = stack.agent("wakes", "maven").await;
    for _ in 0..3 {
        stack.unhide("waiting");
        stack.sweep().await;
        stack.unhide("requests");
        stack.settle().await;
    }
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn by_default_and_by_tag_instances_stay() {
    let mut stack = Stack::start().await;
    for later in [0, 60, 600] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members.len(), 1);

    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    let arn = stack.aws().ecs.instances().next().unwrap().arn.clone();
    stack.aws().ecs.instance_mut(&arn).unwrap().tags.insert("jenkins-ecs-agents:keep".into(), String::new());
    for later in [0, 11, 12, 13] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().members.len(), 1);
}

#[tokio::test]
async fn a_drain_that_was_cut_short_is_finished_or_undone() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    stack.aws().faults.always("autoscaling", "TerminateInstanceInAutoScalingGroup", Some(Fault::server()));
    for later in [0, 5, 11] {
        let _ = stack.sweep_at(Timestamp::now() + minutes(later)).await;
    }
    stack.aws().faults.always("autoscaling", "TerminateInstanceInAutoScalingGroup", None);
    stack.kill(Binary::Teardown);
    for later in [12, 13, 14] {
        sweep_in(&mut stack, later).await;
    }
    let aws = stack.aws();
    let left: Vec<_> = aws.ecs.instances().map(|instance| instance.status.as_str().to_owned()).collect();
    assert!(left.is_empty() || left == ["ACTIVE"], "{left:?}");
    let members = aws.ecs.group(GROUP).unwrap().members.len();
    assert_eq!(members, left.len());
}

#[tokio::test]
async fn a_foreign_drain_is_not_undone() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    let arn = stack.aws().ecs.instances().next().unwrap().arn.clone();
    let drain = json!({"cluster": CLUSTER, "containerInstances": [arn], "status": "DRAINING"});
    stack.aws().ecs.call("UpdateContainerInstancesState", &drain, Timestamp::now()).unwrap();
    for later in [0, 1] {
        sweep_in(&mut stack, later).await;
    }
    let statuses: Vec<_> = stack.aws().ecs.instances().map(|instance| instance.status.as_str().to_owned()).collect();
    assert_eq!(statuses, ["DRAINING"], "somebody else's business");
}

#[tokio::test]
async fn waiting_requests_keep_the_instances_that_they_need() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    // Requests over maxAgents need no instance; requests without room do.
    stack.ask(json!({"requestId": "fill", "label": "maven", "count": 3}));
    stack.settle().await;
    stack.ask(json!({"requestId": "waits", "label": "maven"}));
    stack.settle().await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    let desired = stack.aws().ecs.group(GROUP).unwrap().desired;
    for later in [0, 5, 12] {
        stack.sweep_at(Timestamp::now() + minutes(later)).await.unwrap();
        stack.unhide("waiting");
    }
    assert!(stack.aws().ecs.group(GROUP).unwrap().desired >= desired);
    assert_eq!(stack.count("autoscaling:TerminateInstanceInAutoScalingGroup"), 0);
}

/// This many times ten running agents, however long ECS would have taken to launch them.
async fn run_tens(stack: &mut Stack, tens: usize) {
    let quotas = {
        let mut aws = stack.aws();
        let settings = aws.ecs.settings();
        (settings.quotas.take(), settings.run_task_rate.take())
    };
    for number in 0..tens {
        stack.ask(json!({"requestId": format!("ten-{number}"), "label": "node", "count": 10}));
    }
    while stack.poll(Binary::Request, "requests").await > 0 {}
    stack.advance().clear();
    let mut aws = stack.aws();
    let settings = aws.ecs.settings();
    (settings.quotas, settings.run_task_rate) = quotas;
}

#[tokio::test]
async fn reads_all_pages() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["templates"][0]["idleTimeout"] = "never".into();
    })
    .await;
    run_tens(&mut stack, 25).await;
    let tasks = stack.active_tasks();
    assert_eq!(tasks.len(), 250);
    for task in &tasks {
        age(&stack, &task.arn, SignedDuration::from_hours(25));
    }
    let mut sweeps = 0;
    while !stack.active_tasks().is_empty() && sweeps < 5 {
        stack.sweep_at(Timestamp::now()).await.unwrap();
        sweeps += 1;
    }
    assert!(stack.active_tasks().is_empty(), "{} are left", stack.active_tasks().len());
}

#[tokio::test]
async fn five_thousand_tasks_and_five_hundred_instances_fit_into_a_sweep() {
    let mut stack = Stack::with(|config| {
        config["jenkins"]["registerNodes"] = false.into();
        config["clouds"][0]["idleInstanceTimeout"] = "10m".into();
        config["clouds"][0]["templates"].as_array_mut().unwrap().truncate(1);
    })
    .await;
    run_tens(&mut stack, 500).await;
    let last = {
        let mut aws = stack.aws();
        aws.ecs.group_mut(GROUP).unwrap().maximum = 500;
        aws.ecs.fill_group(GROUP, 500, Timestamp::now());
        let arns: Vec<String> = aws.ecs.tasks().map(|task| task.arn.clone()).collect();
        for arn in &arns {
            let tags = &mut aws.ecs.task_mut(arn).unwrap().tags;
            tags.insert("jenkins-ecs-agents:reported".into(), "ready 2026-11-24T18:00:00Z".into());
        }
        assert_eq!((arns.len(), aws.ecs.instances().count()), (5000, 500));
        arns.into_iter().max().unwrap()
    };
    age(&stack, &last, SignedDuration::from_hours(25));
    let busy = {
        let mut aws = stack.aws();
        let busy = aws.ecs.instances().map(|instance| instance.arn.clone()).max().unwrap();
        let task = aws.ecs.tasks().next().unwrap();
        let (task, group) = (task.arn.clone(), task.group.clone());
        let instance = aws.ecs.instance_mut(&busy).unwrap();
        instance.tasks.insert(task, group);
        instance.tags.insert("jenkins-ecs-agents:idle-since".into(), "2026-11-24T18:00:00Z".into());
        busy
    };
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!(stack.active_tasks().len(), 4999, "the one that is overdue is found among them");
    let unmarked = |stack: &Stack| stack.aws().ecs.instances().filter(|instance| instance.tags.is_empty()).count();
    assert_eq!(
        unmarked(&stack),
        451,
        "and as many idle instances are marked as leaves the records of agents their quota"
    );
    assert!(stack.aws().ecs.instance(&busy).unwrap().tags.is_empty(), "what is no longer idle comes first");
    let throttled = "step not done; the next sweep repeats it";
    assert!(!stack.output().contains(throttled), "slowly enough not to be throttled");
    stack.sweep_at(Timestamp::now()).await.unwrap();
    assert_eq!(unmarked(&stack), 401, "the next sweeps mark the rest");
    let process = stack.function(Binary::Teardown).await.id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 192 * 1024, "{peak} KiB, of the 256 MiB that the template gives");
}

#[tokio::test]
async fn never_stops_foreign_tasks() {
    let mut stack = Stack::start().await;
    stack.agent("ours", "node").await;
    let input = stack.inputs("RunTask").remove(0);
    let run = |started_by: &str, tags: Value| {
        let mut input = input.clone();
        input["startedBy"] = started_by.into();
        input["tags"] = tags;
        input.as_object_mut().unwrap().remove("clientToken");
        stack.aws().ecs.call("RunTask", &input, Timestamp::now()).unwrap();
    };
    run("ecs-svc/1234567890123456789", json!([]));
    run("somebody", json!([]));
    run("ecs-node-ba9876543210", json!([]));
    run(
        "ecs-node-0123456789ab",
        json!([{"key": "jenkins-ecs-agents:controller", "value": "https://another.example.com/"}]),
    );
    for task in stack.tasks() {
        age(&stack, &task.arn, SignedDuration::from_hours(48));
    }
    for later in [0, 1, 2] {
        sweep_in(&mut stack, later).await;
    }
    let active = stack.active_tasks();
    assert_eq!(active.len(), 4, "ours alone is past its time");
    assert!(active.iter().all(|task| task.started_by != stack.inputs("RunTask")[0]["startedBy"].as_str().unwrap()));
}

/// Puts requests of a cloud's template into the waiting queue that have waited since then.
pub(crate) fn wait(
    stack: &Stack,
    ids: impl Iterator<Item = String>,
    (cloud, template): (&str, &str),
    waits_for: &str,
    since: Timestamp,
) {
    let mut aws = stack.aws();
    for id in ids {
        let wait = json!({"requestId": id, "requestedAt": since, "since": since, "attempt": 1, "agents": [0],
            "cloud": cloud, "template": template, "size": {"cpu": 1024, "memory": 2048}, "waitsFor": waits_for,
            "reason": "RESOURCE:MEMORY"});
        aws.sqs.send("waiting", &json!({"version": 1, "requestId": id, "label": template}).to_string(), since);
        let message = aws.sqs.queues.get_mut("waiting").unwrap().messages.last_mut().unwrap();
        message.attributes.insert("wait".to_owned(), wait.to_string());
    }
}

const MAVEN: (&str, &str) = ("linux", "maven");
const DIAL: (&str, &str) = ("linux", "dial");

#[tokio::test]
async fn wakes_every_request_that_fits() {
    let mut stack = Stack::with(|config| config["clouds"][0]["templates"][0]["maxAgents"] = 1.into()).await;
    stack.agent("one", "maven").await;
    stack.aws().ecs.fill_group(GROUP, 3, Timestamp::now());
    let now = Timestamp::now();
    wait(
        &stack,
        (0..1500).map(|number| format!("limited-{number}")),
        MAVEN,
        "maxAgents",
        now - Duration::from_secs(60),
    );
    wait(&stack, (0..5).map(|number| format!("fits-{number}")), DIAL, "instance", now - Duration::from_secs(30));
    stack.sweep_at(now).await.unwrap();
    let woken = stack.bodies("requests");
    assert_eq!(woken.len(), 5, "{woken:?}");
    assert!(woken.iter().all(|body| body.contains("fits-")));
    assert_eq!(stack.bodies("waiting").len(), 1500);
    let aws = stack.aws();
    assert!(aws.sqs.messages("waiting").iter().all(|message| message.visible_at <= Timestamp::now()), "and released");
}

#[tokio::test]
async fn one_sweep_fails_two_thousand_overdue_requests_once_each() {
    let mut stack = Stack::start().await;
    let long_ago = Timestamp::now() - Duration::from_secs(3600);
    wait(&stack, (0..2000).map(|number| format!("late-{number}")), MAVEN, "maxAgents", long_ago);
    // A copy of one, and one whose other copy has found room.
    wait(&stack, std::iter::once("late-7".to_owned()), MAVEN, "maxAgents", long_ago);
    stack.agent("placed", "maven").await;
    wait(&stack, std::iter::once("placed".to_owned()), MAVEN, "maxAgents", long_ago);
    for _ in 0..2 {
        stack.sweep_at(Timestamp::now()).await.unwrap();
        assert!(stack.bodies("waiting").is_empty(), "{} are left", stack.bodies("waiting").len());
        let failed: Vec<_> =
            stack.all_notices().into_iter().filter(|notice| notice.code() == "CAPACITY_TIMEOUT").collect();
        let ids: std::collections::BTreeSet<_> =
            failed.iter().map(|notice| notice.body["requestId"].as_str().unwrap().to_owned()).collect();
        assert_eq!((failed.len(), ids.len()), (2000, 2000));
        assert!(!ids.contains("placed"));
    }
    assert_eq!(stack.active_tasks().len(), 1);
}

#[tokio::test]
async fn more_than_ten_thousand_waiting_requests_have_their_turn_over_several_sweeps() {
    let mut stack = Stack::with(|config| config["clouds"][0]["templates"][0]["maxAgents"] = 1.into()).await;
    stack.agent("one", "maven").await;
    stack.aws().ecs.fill_group(GROUP, 3, Timestamp::now());
    stack.aws().sqs.scattered = true;
    let now = Timestamp::now();
    let read = |stack: &Stack| stack.aws().sqs.queues["waiting"].counts.received;
    wait(&stack, (0..11_000).map(|number| format!("limited-{number}")), MAVEN, "maxAgents", now);
    wait(&stack, (0..8).map(|number| format!("fits-{number}")), DIAL, "instance", now);
    for _ in 0..40 {
        let before = read(&stack);
        stack.unhide("waiting");
        stack.sweep_at(now).await.unwrap();
        // Each of ten readers may have been about to read ten more.
        assert!(read(&stack) - before < 10_100);
        if stack.bodies("requests").len() == 8 {
            break;
        }
    }
    let woken = stack.bodies("requests");
    assert!(woken.len() == 8 && woken.iter().all(|body| body.contains("fits-")), "{woken:?}");
    assert_eq!(stack.bodies("waiting").len(), 11_000);
}

#[tokio::test]
async fn a_sweep_without_enough_time_repeats_nothing() {
    let mut stack = Stack::start().await;
    let long_ago = Timestamp::now() - Duration::from_secs(3600);
    wait(&stack, (0..150).map(|number| format!("late-{number}")), MAVEN, "maxAgents", long_ago);
    stack.jenkins_is_slow("notices", Duration::from_millis(300));
    let mut sweeps = 0;
    while !stack.bodies("waiting").is_empty() && sweeps < 50 {
        stack.unhide("waiting");
        let event = tests::sweep_event(Timestamp::now());
        let function = stack.function(Binary::Teardown).await;
        function.invoke_within(event, Duration::from_secs(5)).await.unwrap().unwrap();
        sweeps += 1;
    }
    let notices = stack.all_notices();
    let ids: std::collections::BTreeSet<_> = notices.iter().map(|notice| notice.body["id"].to_string()).collect();
    assert_eq!((notices.len(), ids.len()), (150, 150), "after {sweeps} sweeps");
    assert!(sweeps > 1 && stack.output().contains("the next sweep does the rest"));
}

#[tokio::test]
async fn messages_stay_hidden_for_longer_than_a_sweep_takes() {
    let mut stack = Stack::start().await;
    stack.sweep_at(Timestamp::now()).await.unwrap();
    let looks = stack.aws().calls("sqs", "ReceiveMessage").iter().map(|call| call.input.clone()).collect::<Vec<_>>();
    let waiting = looks.iter().filter(|input| input["QueueUrl"].as_str().unwrap().ends_with("/waiting"));
    assert!(waiting.clone().count() > 0);
    assert!(waiting.clone().all(|input| input["VisibilityTimeout"].as_i64().unwrap() > 60), "{looks:?}");
}

#[tokio::test]
async fn a_failed_request_says_why_its_group_got_no_instance() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.group_mut(GROUP).unwrap().lacks_capacity();
    let now = Timestamp::now();
    wait(&stack, std::iter::once("young".to_owned()), MAVEN, "instance", now);
    stack.aws().ecs.fill_group(GROUP, 3, now);
    stack.sweep_at(now).await.unwrap();
    assert_eq!(stack.count("autoscaling:DescribeScalingActivities"), 0, "only where a request fails");
    wait(&stack, (0..3).map(|number| format!("late-{number}")), MAVEN, "instance", now - Duration::from_secs(3600));
    stack.sweep_at(now).await.unwrap();
    let notices = stack.all_notices();
    let failed: Vec<_> = notices.iter().filter(|notice| notice.code() == "CAPACITY_TIMEOUT").collect();
    assert_eq!(failed.len(), 3);
    let message = failed[0].body["failure"]["message"].as_str().unwrap();
    assert!(message.contains(GROUP) && message.contains("sufficient m6i.large capacity"), "{message}");
    assert_eq!(stack.count("autoscaling:DescribeScalingActivities"), 1);
}

/// A cloud with this many instances, which go when they have been idle for ten minutes.
async fn idle_instances(count: u32) -> Stack {
    let stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    stack.aws().ecs.fill_group(GROUP, count, Timestamp::now());
    stack
}

fn members(stack: &Stack) -> Vec<String> {
    stack.aws().ecs.group(GROUP).unwrap().members.iter().map(|member| member.id.clone()).collect()
}

#[tokio::test]
async fn an_instance_that_has_to_stay_does_not_keep_the_others() {
    let mut stack = idle_instances(3).await;
    stack.aws().ecs.group_mut(GROUP).unwrap().minimum = 2;
    let kept = members(&stack).remove(0);
    stack.aws().ecs.tag_machine(&kept, "jenkins-ecs-agents:keep", "");
    for later in [0, 11] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(members(&stack).len(), 2);
    assert!(members(&stack).contains(&kept));
    assert!(stack.aws().ecs.instances().all(|instance| instance.status.as_str() == "ACTIVE"));
}

#[tokio::test]
async fn an_instance_that_cannot_be_ended_takes_tasks_again_and_the_others_go() {
    let mut stack = idle_instances(3).await;
    sweep_in(&mut stack, 0).await;
    let refusal = local::aws::ApiError::new("ValidationError", "Instance cannot be terminated.");
    let faults = [Some(Fault::Error(refusal)), None, None];
    stack.aws().faults.script("autoscaling", "TerminateInstanceInAutoScalingGroup", faults);
    sweep_in(&mut stack, 11).await;
    assert_eq!(members(&stack).len(), 1, "the others went");
    let statuses: Vec<_> = stack.aws().ecs.instances().map(|instance| instance.status.as_str().to_owned()).collect();
    assert_eq!(statuses, ["ACTIVE"]);
    assert!(stack.output().contains("cannot be ended"), "it is logged");
}

#[tokio::test]
async fn an_instance_that_ecs_does_not_drain_is_not_terminated() {
    let mut stack = idle_instances(2).await;
    sweep_in(&mut stack, 0).await;
    // API_UpdateContainerInstancesState: 200, with the instance among the failures.
    let failures =
        json!([{"arn": "arn:aws:ecs:eu-west-1:123456789012:container-instance/jenkins/1", "reason": "INACTIVE"}]);
    let refusal = local::aws::ApiError {
        status: 200,
        extra: json!({"containerInstances": [], "failures": failures}),
        ..local::aws::ApiError::new("", "")
    };
    stack.aws().faults.always("ecs", "UpdateContainerInstancesState", Some(Fault::Error(refusal)));
    sweep_in(&mut stack, 11).await;
    assert_eq!((members(&stack).len(), stack.count("autoscaling:TerminateInstanceInAutoScalingGroup")), (2, 0));
    stack.aws().faults.always("ecs", "UpdateContainerInstancesState", None);
    sweep_in(&mut stack, 12).await;
    assert_eq!(members(&stack).len(), 0, "the next sweep tries again");
}

#[tokio::test]
async fn daemons_keep_no_idle_instance() {
    let mut stack = idle_instances(2).await;
    stack.aws().ecs.create_daemon(CLUSTER, "logs", "jenkins-dial", Timestamp::now()).unwrap();
    stack.advance().clear();
    assert_eq!(stack.active_tasks().len(), 2);
    for later in [0, 11, 12] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(members(&stack), Vec::<String>::new());
}

#[tokio::test]
async fn weighted_instances_are_given_back_in_the_groups_units() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    {
        let mut aws = stack.aws();
        aws.ecs.fill_group(GROUP, 0, Timestamp::now());
        let group = aws.ecs.group_mut(GROUP).unwrap();
        (group.weight, group.maximum, group.minimum) = (Some(4), 40, 4);
        aws.ecs.fill_group(GROUP, 12, Timestamp::now());
    }
    stack.advance().clear();
    assert_eq!(members(&stack).len(), 3);
    for later in [0, 11] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(members(&stack).len(), 1);
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 4);
    assert!(stack.aws().ecs.instances().all(|instance| instance.status.as_str() == "ACTIVE"));
}

#[tokio::test]
async fn an_instance_that_never_registers_is_given_back() {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    stack.aws().ecs.group_mut(GROUP).unwrap().broken = 1;
    stack.aws().ecs.fill_group(GROUP, 2, Timestamp::now());
    let registered = stack.aws().ecs.instances().next().unwrap().arn.clone();
    stack.aws().ecs.instance_mut(&registered).unwrap().tags.insert("jenkins-ecs-agents:keep".into(), String::new());
    for later in [0, 9, 19] {
        sweep_in(&mut stack, later).await;
        assert_eq!(members(&stack).len(), 2, "after {later} minutes");
    }
    sweep_in(&mut stack, 21).await;
    assert_eq!(members(&stack).len(), 1);
    assert_eq!(stack.aws().ecs.group(GROUP).unwrap().desired, 1);
}

#[tokio::test]
async fn an_instance_in_standby_is_not_given_back() {
    let mut stack = idle_instances(2).await;
    let standby = members(&stack).remove(0);
    stack.aws().ecs.enter_standby(&standby, true, Timestamp::now());
    for later in [0, 11, 12] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(members(&stack), [standby]);
}

#[tokio::test]
async fn giving_back_leaves_the_group_no_zones_to_even_out() {
    let mut stack = idle_instances(4).await;
    stack.aws().ecs.settings().rebalance = Some(Duration::ZERO);
    stack.agent("busy", "maven").await;
    let node = stack.nodes().remove(0);
    stack.jenkins().connect_ssh(&node);
    assert!(stack.jenkins().start_build_on(&node, "app/main #1"));
    for later in [0, 11, 12, 13] {
        sweep_in(&mut stack, later).await;
    }
    assert_eq!(members(&stack).len(), 1);
    assert_eq!(stack.active_tasks().len(), 1, "the busy instance was not ended for its zone");
    assert!(
        !stack.all_received().iter().any(|notice| notice.starts_with("agent.stopped")),
        "{:?}",
        stack.all_received()
    );
}

#[tokio::test]
async fn keep_holds_for_starts_duplicates_and_lifetimes_alike() {
    let mut stack = Stack::start().await;
    let keep = |stack: &Stack, arn: &str| {
        stack.aws().ecs.task_mut(arn).unwrap().tags.insert("jenkins-ecs-agents:keep".into(), String::new());
    };
    stack.agent("elder", "node").await;
    let mut input = stack.inputs("RunTask").remove(0);
    input["clientToken"] = "another".into();
    stack.aws().ecs.call("RunTask", &input, Timestamp::now()).unwrap();
    stack.aws().ecs.behave("jenkins-maven", Behaviour::NeverRuns);
    let url = stack.webhook();
    stack.ask(json!({"requestId": "never", "label": "maven", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    stack.advance().clear();
    for task in stack.tasks() {
        keep(&stack, &task.arn);
        age(&stack, &task.arn, SignedDuration::from_hours(30));
    }
    for later in [0, 1, 2] {
        stack.sweep_at(Timestamp::now() + minutes(later)).await.unwrap();
    }
    assert_eq!((stack.active_tasks().len(), stack.count("ecs:StopTask")), (3, 0));
    assert_eq!(stack.received(&url), Vec::<String>::new());
}

#[tokio::test]
async fn a_cluster_that_cannot_be_asked_keeps_all_nodes_and_no_other_clusters_tasks() {
    let mut stack = Stack::start().await;
    for (id, label) in [("gone", "node"), ("old", "maven")] {
        stack.agent(id, label).await;
    }
    let (gone, old) = (stack.tasks().remove(0), stack.tasks().remove(1));
    stack.aws().ecs.exit(&gone.arn, 0, Timestamp::now());
    age(&stack, &old.arn, SignedDuration::from_hours(25));
    stack.advance().clear();
    // A process with one more cluster, which does not exist.
    let mut config: Value = serde_json::from_str(stack.env("AGENTS_CONFIG").strip_prefix("inline:").unwrap()).unwrap();
    let mut lost = config["clouds"][1].clone();
    (lost["name"], lost["cluster"]) = ("lost".into(), "lost".into());
    config["clouds"].as_array_mut().unwrap().push(lost);
    stack.set_env("AGENTS_CONFIG", Some(&format!("inline:{config}")));
    stack.kill(Binary::Teardown);
    stack.allow_denials();
    for later in [1, 2, 3] {
        stack.sweep_at(Timestamp::now() + minutes(later)).await.unwrap();
    }
    assert!(stack.active_tasks().is_empty(), "where ECS answers, the lifetime is over");
    assert!(stack.nodes().contains(&gone.started_by), "a node may be of the cluster that does not answer");
}

#[tokio::test]
async fn two_sweeps_within_a_minute_count_as_one() {
    let mut stack = Stack::start().await;
    stack.agent("gone", "node").await;
    let gone = stack.tasks().remove(0);
    {
        let mut aws = stack.aws();
        aws.ecs.exit(&gone.arn, 0, Timestamp::now());
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
    }
    stack.advance().clear();
    let first = Timestamp::now() + minutes(1);
    for (seconds, nodes) in [(0, 1), (1, 1), (30, 1), (60, 0)] {
        stack.sweep_at(first + Duration::from_secs(seconds)).await.unwrap();
        assert_eq!(stack.nodes().len(), nodes, "after {seconds} s");
    }
}

#[tokio::test]
async fn a_scheduled_event_without_a_time_is_a_sweep_of_now() {
    let mut stack = Stack::start().await;
    stack.agent("old", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    age(&stack, &arn, SignedDuration::from_hours(25));
    for time in [json!(null), json!("soon"), json!(7)] {
        let event = json!({"detail-type": "Scheduled Event", "source": "aws.events", "time": time, "detail": {}});
        stack.invoke(Binary::Teardown, event).await.unwrap();
    }
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped LIFETIME_EXCEEDED"]);
}

#[tokio::test]
async fn ends_the_agents_and_nodes_of_a_removed_template() {
    let mut stack = Stack::start().await;
    for id in ["gone", "there"] {
        stack.agent(id, "node").await;
    }
    let gone = stack.tasks().remove(0);
    {
        let mut aws = stack.aws();
        aws.ecs.exit(&gone.arn, 0, Timestamp::now());
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
    }
    stack.advance().clear();
    let mut config: Value = serde_json::from_str(stack.env("AGENTS_CONFIG").strip_prefix("inline:").unwrap()).unwrap();
    config["clouds"][1]["templates"][0]["name"] = "renamed".into();
    stack.set_env("AGENTS_CONFIG", Some(&format!("inline:{config}")));
    for binary in [Binary::Request, Binary::TaskState, Binary::Teardown] {
        stack.kill(binary);
    }
    for later in [1, 2] {
        stack.sweep_at(Timestamp::now() + minutes(later)).await.unwrap();
    }
    assert_eq!(stack.nodes().len(), 1, "the node of the task that runs stays");
    assert!(!stack.nodes().contains(&gone.started_by));
    // With the defaults of a template, the other is idle ten minutes later.
    for later in [3, 14] {
        sweep_in(&mut stack, later).await;
    }
    assert!(stack.active_tasks().is_empty() && stack.nodes().is_empty());
}
