//! Completions: what is stopped, what is refused, what is waited for (docs/messages.md).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use local::aws::Fault;
use serde_json::{Value, json};
use tests::{ACCOUNT, Binary, CLUSTER, REGION, Stack};

#[tokio::test]
async fn a_completion_names_its_agent_in_one_of_three_ways() {
    for way in ["requestId", "agent", "taskArn"] {
        let mut stack = Stack::start().await;
        stack.agent("done", "node").await;
        stack.agent("other", "node").await;
        let task = stack.tasks().into_iter().find(|task| {
            stack
                .all_notices()
                .iter()
                .any(|notice| notice.body["requestId"] == "done" && notice.agent() == task.started_by)
        });
        let task = task.unwrap();
        let named = match way {
            "requestId" => "done",
            "agent" => &task.started_by,
            _ => &task.arn,
        };
        stack.complete(json!({way: named, "build": {"job": "app/main", "number": 42}, "result": "SUCCESS"}));
        stack.settle().await;
        let stopped = stack.tasks().into_iter().find(|found| found.arn == task.arn).unwrap();
        assert_eq!(stopped.desired_status, "STOPPED", "{way}");
        let reason = stopped.stopped_reason.unwrap();
        assert!(reason.contains("app/main") && reason.contains("42"), "{way}: {reason}");
        assert_eq!(stack.active_tasks().len(), 1, "{way}");
        assert!(!stack.nodes().contains(&task.started_by), "{way}");
        assert_eq!(stack.nodes().len(), 1, "{way}");
        assert!(stack.bodies("completions").is_empty(), "{way}");
        assert_eq!(stack.count("ecs:StopTask"), 1, "{way}");
        assert_eq!(stack.all_received().last().map(String::as_str), Some("agent.stopped"), "{way}");
    }
}

#[tokio::test]
async fn with_a_task_arn_stop_task_goes_out_before_anything_that_could_fail() {
    let mut stack = Stack::start().await;
    stack.agent("direct", "node").await;
    let task = stack.tasks().remove(0);
    stack.function(Binary::Teardown).await;
    stack.jenkins_goes_down();
    for (service, action) in [("ecs", "DescribeTasks"), ("ecs", "ListTasks"), ("ecs", "DescribeTaskDefinition")] {
        stack.aws().faults.always(service, action, Some(Fault::server()));
    }
    stack.forget_calls();
    stack.complete(json!({"taskArn": task.arn, "requestId": "direct", "agent": task.started_by}));
    stack.poll(Binary::Teardown, "completions").await;
    assert_eq!(stack.calls()[0], "ecs:StopTask");
    assert!(stack.active_tasks().is_empty());
    let input = stack.inputs("StopTask").remove(0);
    assert!(input["cluster"].as_str().unwrap().ends_with(CLUSTER));
}

#[tokio::test]
async fn the_node_goes_once_jenkins_is_back() {
    let mut stack = Stack::start().await;
    stack.agent("down", "node").await;
    stack.jenkins_goes_down();
    stack.complete(json!({"requestId": "down"}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty(), "it does not wait for Jenkins");
    stack.jenkins_comes_back().await;
    for _ in 0..3 {
        stack.unhide("completions");
        stack.unhide("undelivered");
        stack.settle().await;
    }
    assert!(stack.nodes().is_empty());
    assert!(stack.bodies("completions").is_empty() && stack.bodies("undelivered").is_empty());
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
}

#[tokio::test]
async fn the_node_is_taken_offline_before_it_is_deleted() {
    let mut stack = Stack::start().await;
    stack.agent("offline", "node").await;
    let task = stack.tasks().remove(0);
    stack.complete(json!({"taskArn": task.arn}));
    stack.settle().await;
    let jenkins = stack.jenkins();
    let targets: Vec<_> = jenkins.exchanges().iter().map(|exchange| exchange.target.clone()).collect();
    let place = |part: &str| targets.iter().position(|target| target.contains(part));
    let (offline, delete) = (place("ffline"), place("doDelete").expect("the node is deleted"));
    assert!(offline.is_some_and(|offline| offline < delete), "{targets:#?}");
}

#[tokio::test]
async fn a_request_id_stops_all_agents_of_the_request() {
    let mut stack = Stack::start().await;
    stack.ask(json!({"requestId": "many", "label": "node", "count": 4}));
    stack.settle().await;
    stack.agent("other", "node").await;
    assert_eq!(stack.active_tasks().len(), 5);
    stack.complete(json!({"requestId": "many"}));
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 1);
    assert_eq!(stack.nodes().len(), 1);
}

#[tokio::test]
async fn a_request_id_stops_agents_beyond_the_templates_number_though_the_first_is_forgotten() {
    let mut stack = Stack::start().await;
    stack.ask(json!({"requestId": "many", "label": "node", "count": 3}));
    stack.settle().await;
    let first = shared::name::AgentName::new("ecs-", "node", "many", 0);
    let arn = stack.tasks().into_iter().find(|task| task.started_by == first.as_str()).unwrap().arn;
    {
        let mut aws = stack.aws();
        aws.ecs.exit(&arn, 0, Timestamp::now());
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
    }
    assert_eq!(stack.tasks().len(), 2);
    stack.complete(json!({"requestId": "many"}));
    stack.settle().await;
    assert_eq!(stack.active_tasks().len(), 0);
}

#[tokio::test]
async fn a_completion_ends_a_partly_placed_request() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().boot = Duration::from_secs(24 * 3600);
    stack.ask(json!({"requestId": "part", "label": "maven", "count": 5}));
    stack.settle().await;
    assert_eq!((stack.active_tasks().len(), stack.bodies("waiting").len()), (3, 1));
    // ECS has forgotten the first.
    let first = stack.active_tasks().remove(0);
    {
        let mut aws = stack.aws();
        aws.ecs.exit(&first.arn, 0, Timestamp::now());
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
    }
    assert_eq!(stack.tasks().len(), 2);
    stack.unhide("waiting");
    stack.complete(json!({"requestId": "part"}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty() && stack.bodies("waiting").is_empty());
    // And the same if the completion names the forgotten task.
    stack.ask(json!({"requestId": "named", "label": "node"}));
    stack.settle().await;
    stack.complete(json!({"requestId": "named", "taskArn": first.arn}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty() && stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn a_completion_of_an_ended_agent_is_success() {
    let mut stack = Stack::start().await;
    stack.agent("over", "node").await;
    let task = stack.tasks().remove(0);
    stack.aws().ecs.exit(&task.arn, 0, Timestamp::now());
    stack.settle().await;
    for completion in [
        json!({"requestId": "over"}),
        json!({"agent": task.started_by}),
        json!({"taskArn": task.arn}),
        json!({"taskArn": task.arn, "agent": task.started_by, "requestId": "over"}),
    ] {
        stack.complete(completion.clone());
        stack.settle().await;
        assert!(stack.bodies("completions").is_empty(), "{completion}");
    }
    assert!(stack.rejected().is_empty());
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
}

#[tokio::test]
async fn a_completion_may_come_through_sns() {
    let mut stack = Stack::start().await;
    stack.agent("sns", "node").await;
    let message = json!({"version": 1, "requestId": "sns"}).to_string();
    let envelope = json!({"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:eu-west-1:123456789012:t", "Message": message});
    stack.send("completions", &envelope.to_string());
    stack.settle().await;
    assert!(stack.active_tasks().is_empty());
}

#[tokio::test]
async fn a_completion_withdraws_the_request_that_still_waits() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().fargate_has_capacity = false;
    let url = stack.agent("aborted", "node").await;
    assert_eq!(stack.bodies("waiting").len(), 1);
    stack.unhide("waiting");
    stack.complete(json!({"requestId": "aborted"}));
    stack.settle().await;
    assert!(stack.bodies("waiting").is_empty());
    assert!(stack.bodies("completions").is_empty());
    stack.aws().ecs.settings().fargate_has_capacity = true;
    stack.sweep().await;
    assert!(stack.tasks().is_empty());
    assert!(stack.received(&url).iter().all(|notice| notice.starts_with("agent.failed")));
}

#[tokio::test]
async fn a_completion_that_comes_before_its_request_is_kept_until_it_finds_it() {
    let mut stack = Stack::start().await;
    stack.complete(json!({"requestId": "early"}));
    stack.settle().await;
    assert_eq!(stack.bodies("completions").len(), 1, "it waits for what may still be placed");
    assert!(stack.rejected().is_empty());
    stack.agent("early", "node").await;
    for _ in 0..2 {
        stack.unhide("completions");
        stack.settle().await;
    }
    assert!(stack.active_tasks().is_empty());
    assert!(stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn a_completion_of_an_unknown_request_succeeds_once_it_cannot_be_placed() {
    let mut stack = Stack::with(|config| {
        for cloud in config["clouds"].as_array_mut().unwrap() {
            cloud["instanceLaunchTimeout"] = "1s".into();
        }
    })
    .await;
    stack.complete(json!({"requestId": "never-was"}));
    stack.settle().await;
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    for _ in 0..3 {
        stack.unhide("completions");
        stack.settle().await;
    }
    assert!(stack.bodies("completions").is_empty());
    assert!(stack.bodies("completions-dead-letters").is_empty());
    assert!(stack.rejected().is_empty());
}

#[tokio::test]
async fn foreign_arns_are_rejected_without_a_call() {
    let mut stack = Stack::start().await;
    let id = "0123456789abcdef0123456789abcdef";
    let arns = [
        format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task/{CLUSTER}/{id}"),
        format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/other/{id}"),
        format!("arn:aws:ecs:{REGION}:{ACCOUNT}:service/{CLUSTER}/{id}"),
        format!("arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1"),
        "not an ARN".into(),
    ];
    for arn in &arns {
        stack.complete(json!({"taskArn": arn, "requestId": "foreign"}));
    }
    stack.settle().await;
    assert!(stack.calls().iter().all(|call| !call.starts_with("ecs:")), "{:?}", stack.calls());
    let rejected = stack.rejected();
    assert_eq!(rejected.len(), arns.len());
    assert!(rejected.iter().all(|(_, reason)| !reason.is_empty()));
    assert!(stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn a_task_of_another_account_in_a_cluster_of_our_name_is_not_ours() {
    let mut stack = Stack::with(|config| {
        let cluster = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{CLUSTER}");
        for cloud in config["clouds"].as_array_mut().unwrap() {
            cloud["cluster"] = cluster.clone().into();
        }
    })
    .await;
    stack.agent("by-arn", "node").await;
    stack.forget_calls();
    let arn = format!("arn:aws:ecs:{REGION}:999999999999:task/{CLUSTER}/0123456789abcdef0123456789abcdef");
    stack.complete(json!({"taskArn": arn}));
    stack.settle().await;
    assert_eq!(stack.count("ecs:StopTask"), 0);
    assert_eq!(stack.rejected().len(), 1);
    stack.complete(json!({"requestId": "by-arn"}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty());
}

/// StopTask deletes a task's tags, on which the role's permission to stop it depends.
#[tokio::test]
async fn a_second_completion_that_the_role_refuses_is_success() {
    let mut stack = Stack::start().await;
    stack.agent("twice", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.complete(json!({"taskArn": arn}));
    stack.settle().await;
    stack.aws().faults.always("ecs", "StopTask", Some(Fault::denied()));
    stack.complete(json!({"taskArn": arn}));
    stack.settle().await;
    assert!(stack.rejected().is_empty());
    assert!(stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn a_task_that_the_role_may_not_stop_is_rejected() {
    let mut stack = Stack::start().await;
    stack.agent("anything", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().faults.always("ecs", "StopTask", Some(Fault::denied()));
    stack.complete(json!({"taskArn": arn}));
    stack.settle().await;
    assert_eq!(stack.rejected().len(), 1);
    assert!(stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn rejects_malformed_completions_without_affecting_others() {
    let mut stack = Stack::start().await;
    stack.agent("neighbour", "node").await;
    let bad = [
        "not JSON".to_owned(),
        json!({"version": 1}).to_string(),
        json!({"version": 2, "requestId": "x"}).to_string(),
        json!({"requestId": "x"}).to_string(),
        json!({"version": 1, "requestId": "x", "unknown": true}).to_string(),
        json!({"version": 1, "requestId": "with a blank"}).to_string(),
        json!({"version": 1, "requestId": 7}).to_string(),
    ];
    bad.iter().for_each(|body| drop(stack.send("completions", body)));
    stack.complete(json!({"requestId": "neighbour"}));
    assert_eq!(stack.poll(Binary::Teardown, "completions").await, bad.len() + 1);
    assert!(stack.bodies("completions").is_empty());
    let mut rejected: Vec<_> = stack.rejected().into_iter().map(|(body, _)| body).collect();
    let mut expected = bad.to_vec();
    rejected.sort();
    expected.sort();
    assert_eq!(rejected, expected);
    assert!(stack.active_tasks().is_empty());
}

#[tokio::test]
async fn stop_task_is_tried_until_it_works() {
    let mut stack = Stack::start().await;
    stack.agent("stubborn", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().faults.always("ecs", "StopTask", Some(Fault::server()));
    stack.complete(json!({"taskArn": arn}));
    for _ in 0..3 {
        stack.unhide("completions");
        stack.settle().await;
    }
    assert_eq!(stack.bodies("completions").len(), 1);
    assert_eq!(stack.active_tasks().len(), 1);
    stack.aws().faults.always("ecs", "StopTask", None);
    stack.unhide("completions");
    stack.settle().await;
    assert!(stack.active_tasks().is_empty());
    assert!(stack.nodes().is_empty());
    assert!(stack.bodies("completions").is_empty());
}

/// Thirty templates in five clouds, each with a cluster of its own but the first two, which share one.
pub(crate) async fn thirty_templates_in_five_clouds(change: impl FnOnce(&mut Value)) -> Stack {
    let stack = Stack::with(|config| {
        let fargate = config["clouds"][1].clone();
        for cloud in 0..5 {
            if cloud > 1 {
                let mut another = fargate.clone();
                another["name"] = format!("cloud-{cloud}").into();
                another["cluster"] = format!("cluster-{cloud}").into();
                config["clouds"].as_array_mut().unwrap().push(another);
            }
            let template = config["clouds"][cloud]["templates"][0].clone();
            let templates = config["clouds"][cloud]["templates"].as_array_mut().unwrap();
            for number in templates.len()..6 {
                let mut another = template.clone();
                another["name"] = format!("template-{cloud}-{number}").into();
                another["labels"] = json!([format!("label-{cloud}-{number}")]);
                templates.push(another);
            }
        }
        change(config);
    })
    .await;
    for cluster in ["cluster-2", "cluster-3", "cluster-4"] {
        stack.aws().ecs.create_cluster(cluster);
    }
    stack
}

#[tokio::test]
async fn a_request_that_nobody_knows_costs_one_listing_of_each_cluster_for_the_whole_batch() {
    let mut stack = thirty_templates_in_five_clouds(|_| {}).await;
    stack.forget_calls();
    for number in 0..10 {
        stack.complete(json!({"requestId": format!("unknown-{number}")}));
    }
    stack.poll(Binary::Teardown, "completions").await;
    assert_eq!(stack.count("ecs:ListTasks"), 8, "four clusters, running and stopped tasks");
    let others = stack.calls().into_iter().filter(|call| call.starts_with("ecs:") && call != "ecs:ListTasks").count();
    assert_eq!(others, 0, "{:?}", stack.calls());
    assert_eq!(stack.bodies("completions").len(), 10, "they may still be placed");
}

#[tokio::test]
async fn a_request_id_finds_its_agents_among_thirty_templates() {
    let mut stack = thirty_templates_in_five_clouds(|_| {}).await;
    stack.ask(json!({"requestId": "many", "label": "label-1-5", "count": 3}));
    stack.agent("other", "node").await;
    assert_eq!(stack.active_tasks().len(), 4);
    stack.forget_calls();
    stack.complete(json!({"requestId": "many"}));
    stack.poll(Binary::Teardown, "completions").await;
    assert_eq!(stack.active_tasks().len(), 1);
    assert_eq!(stack.count("ecs:StopTask"), 3);
    assert!(stack.count("ecs:ListTasks") <= 4, "{:?}", stack.calls());
    assert!(stack.bodies("completions").is_empty());
}

#[tokio::test]
async fn a_completion_whose_time_is_over_does_not_come_back_though_ecs_cannot_be_asked() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "ListTasks", Some(Fault::throttled()));
    stack.complete(json!({"requestId": "never-was"}));
    stack.poll(Binary::Teardown, "completions").await;
    assert_eq!(stack.bodies("completions").len(), 1);
    stack.aws().sqs.queues.get_mut("completions").unwrap().messages[0].sent_at -= SignedDuration::from_mins(15);
    stack.unhide("completions");
    stack.poll(Binary::Teardown, "completions").await;
    assert!(stack.bodies("completions").is_empty() && stack.rejected().is_empty());
    assert!(stack.output().contains("given up"), "it is logged");
}

#[tokio::test]
async fn a_completion_that_ecs_refuses_to_look_up_is_rejected_with_the_reason() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "ListTasks", Some(Fault::denied()));
    stack.complete(json!({"requestId": "denied"}));
    stack.settle().await;
    assert!(stack.bodies("completions").is_empty());
    let rejected = stack.rejected();
    assert!(rejected.len() == 1 && rejected[0].1.contains("AccessDenied"), "{rejected:?}");
}

/// A name of our form is no proof: anyone who may run tasks in the cluster can choose it.
#[tokio::test]
async fn a_task_of_our_name_without_our_tag_is_not_stopped_by_name() {
    let mut stack = Stack::start().await;
    stack.agent("ours", "node").await;
    let mut input = stack.inputs("RunTask").remove(0);
    let name = shared::name::AgentName::new("ecs-", "node", "theirs", 0).to_string();
    input["startedBy"] = name.clone().into();
    input["tags"] = json!([]);
    input.as_object_mut().unwrap().remove("clientToken");
    stack.aws().ecs.call("RunTask", &input, Timestamp::now()).unwrap();
    stack.complete(json!({"agent": name}));
    stack.complete(json!({"requestId": "theirs"}));
    stack.poll(Binary::Teardown, "completions").await;
    assert_eq!(stack.active_tasks().len(), 2);
    assert_eq!(stack.count("ecs:StopTask"), 0);
}

#[tokio::test]
async fn a_completion_of_a_task_that_ended_by_itself_makes_no_failed_start_of_it() {
    let mut stack = Stack::start().await;
    let url = stack.agent("ended", "node").await;
    let task = stack.active_tasks().remove(0);
    stack.aws().ecs.exit(&task.arn, 0, Timestamp::now());
    stack.settle().await;
    // StopTask deletes the tags, one of which says that the agent was ready.
    stack.complete(json!({"agent": task.started_by, "taskArn": task.arn}));
    stack.settle().await;
    for minutes in [0, 2] {
        let time = Timestamp::now() + SignedDuration::from_mins(minutes);
        stack.sweep_at(time).await.unwrap();
    }
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(!stack.all_received().iter().any(|notice| notice.contains("START_FAILED")), "{:?}", stack.all_received());
}

#[tokio::test]
async fn a_task_of_another_account_is_rejected_without_a_call_though_the_cluster_is_a_bare_name() {
    let mut stack = Stack::start().await;
    let id = "0123456789abcdef0123456789abcdef";
    stack.complete(json!({"taskArn": format!("arn:aws:ecs:{REGION}:999999999999:task/{CLUSTER}/{id}")}));
    stack.complete(json!({"taskArn": format!("arn:aws:ecs:{REGION}::task/{CLUSTER}/{id}")}));
    stack.complete(json!({"taskArn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{CLUSTER}/{id}/more")}));
    stack.complete(json!({"taskArn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{id}")}));
    stack.complete(json!({"taskArn": "", "requestId": "x"}));
    stack.poll(Binary::Teardown, "completions").await;
    assert_eq!((stack.rejected().len(), stack.bodies("completions").len()), (5, 0));
    assert!(stack.calls().iter().all(|call| !call.starts_with("ecs:")), "{:?}", stack.calls());
}

#[tokio::test]
async fn the_roles_condition_refuses_a_task_without_our_tag() {
    let mut stack = Stack::start().await;
    stack.allow_denials();
    stack.agent("ours", "node").await;
    let mut input = stack.inputs("RunTask").remove(0);
    for tags in [json!([]), json!([{"key": "jenkins-ecs-agents:controller", "value": "https://another.example.com/"}])]
    {
        input["startedBy"] = "somebody".into();
        input["tags"] = tags.clone();
        input.as_object_mut().unwrap().remove("clientToken");
        let answer = stack.aws().ecs.call("RunTask", &input, jiff::Timestamp::now()).unwrap();
        let before = stack.rejected().len();
        stack.complete(json!({"taskArn": answer["tasks"][0]["taskArn"]}));
        stack.settle().await;
        assert_eq!(stack.rejected().len(), before + 1, "{tags}");
        assert!(stack.bodies("completions").is_empty(), "{tags}");
    }
    assert_eq!(stack.active_tasks().len(), 3);
}

#[tokio::test]
async fn a_build_of_a_long_name_is_named_as_far_as_ecs_takes_it() {
    let mut stack = Stack::start().await;
    stack.agent("long", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    let job = format!("folder/{}", "команда/".repeat(100));
    stack.complete(json!({"taskArn": arn, "build": {"job": job, "number": 7}, "result": "ABORTED"}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty() && stack.rejected().is_empty());
    assert!(stack.tasks()[0].stopped_reason.as_deref().unwrap().contains("folder/команда"));
}

#[tokio::test]
async fn a_completion_stops_an_agent_at_every_stage() {
    let mut stack = Stack::start().await;
    // Placed but not running yet; its events are still to come.
    stack.aws().ecs.settings().pull = Duration::from_secs(3600);
    let url = stack.webhook();
    stack.ask(json!({"requestId": "pulling", "label": "node", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    stack.complete(json!({"requestId": "pulling", "build": {"job": "a", "number": 1}}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty() && stack.bodies("completions").is_empty());
    assert!(stack.nodes().is_empty());
    assert!(
        stack.received(&url).iter().all(|notice| notice == "agent.failed START_FAILED"),
        "{:?}",
        stack.received(&url)
    );
}

/// As in AWS' own examples of events, which are from 2018.
#[tokio::test]
async fn ignores_an_implausible_send_time() {
    let mut stack = Stack::start().await;
    let record = |body: serde_json::Value| {
        json!({"messageId": "059f36b4-87a3-44ab-83d2-661975830a7d", "receiptHandle": "x", "body": body.to_string(),
            "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1545082649183"}, "messageAttributes": {},
            "eventSource": "aws:sqs", "eventSourceARN": format!("arn:aws:sqs:{REGION}:{ACCOUNT}:completions")})
    };
    let event = json!({"Records": [record(json!({"version": 1, "requestId": "never-was"}))]});
    let answer = stack.invoke(Binary::Teardown, event).await.unwrap();
    assert_eq!(answer["batchItemFailures"].as_array().unwrap().len(), 1, "it may still be placed");
    let event = json!({"Records": [record(json!({"version": 1, "requestId": "old", "label": "node"}))]});
    stack.invoke(Binary::Request, event).await.unwrap();
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.ready"]);
    let took = stack.all_notices()[0].body["timings"]["totalMs"].as_i64().unwrap();
    assert!((0..60_000).contains(&took), "{took} ms");
}

/// Even if its request may wait for ever.
#[tokio::test]
async fn a_completion_of_nothing_is_kept_for_a_day_at_most() {
    for is_throttled in [false, true] {
        let mut stack = Stack::with(|config| config["clouds"][0]["instanceLaunchTimeout"] = "never".into()).await;
        if is_throttled {
            stack.aws().faults.always("ecs", "ListTasks", Some(Fault::throttled()));
        }
        stack.complete(json!({"requestId": "never-was"}));
        for (hours, kept) in [(23, 1), (1, 0)] {
            stack.aws().sqs.queues.get_mut("completions").unwrap().messages[0].sent_at -=
                SignedDuration::from_hours(hours);
            stack.unhide("completions");
            stack.poll(Binary::Teardown, "completions").await;
            assert_eq!(stack.bodies("completions").len(), kept, "{is_throttled}");
        }
        assert!(stack.rejected().is_empty() && stack.bodies("completions-dead-letters").is_empty());
    }
}
