//! No fault loses or doubles an agent.

use std::time::Duration;

use jiff::Timestamp;
use local::aws::ecs::Behaviour;
use local::aws::{ApiError, Fault};
use local::lambda::Outcome;
use serde_json::{Value, json};
use tests::{Binary, Stack};

/// Receives a batch and passes it to a function without deleting anything afterwards, as if the function had been
/// killed.
fn batch(stack: &Stack, queue: &str) -> Value {
    let mut aws = stack.aws();
    let batch = aws.sqs.receive(queue, 10, None, Timestamp::now());
    aws.sqs.event(queue, &batch)
}

fn failures(answer: &Outcome) -> usize {
    answer.as_ref().unwrap()["batchItemFailures"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_throttled_run_task_is_tried_again_and_again() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "RunTask", Some(Fault::throttled()));
    let url = stack.agent("throttled", "node").await;
    let message = stack.aws().sqs.messages("requests")[0].clone();
    assert!(message.visible_at > Timestamp::now(), "it backs off");
    assert_eq!(stack.received(&url), Vec::<String>::new());
    assert!(stack.rejected().is_empty() && stack.bodies("waiting").is_empty());
    stack.aws().faults.always("ecs", "RunTask", None);
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.tasks().len(), 1);
}

#[tokio::test]
async fn a_short_throttle_costs_no_second_receive() {
    let mut stack = Stack::start().await;
    stack.aws().faults.script("ecs", "RunTask", [Some(Fault::throttled())]);
    let url = stack.agent("briefly", "node").await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.tasks().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_starts_one_task() {
    let mut stack = Stack::start().await;
    stack.aws().faults.script("ecs", "RunTask", [Some(Fault::Lost), Some(Fault::Lost)]);
    let url = stack.agent("lost", "node").await;
    for _ in 0..2 {
        stack.unhide("requests");
        stack.settle().await;
    }
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.tasks().len(), 1);
}

#[tokio::test]
async fn every_answer_lost_and_another_process_later_it_is_still_one_task() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "RunTask", Some(Fault::Lost));
    let url = stack.webhook();
    stack.ask(json!({"requestId": "all-lost", "label": "node", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    assert_eq!(stack.bodies("requests").len(), 1);
    stack.aws().faults.always("ecs", "RunTask", None);
    stack.kill(Binary::Request);
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 1);
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(stack.bodies("requests").is_empty());
}

#[tokio::test]
async fn killed_between_effect_and_acknowledgement_it_does_nothing_twice() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "killed", "label": "node", "webhookUrl": url, "count": 2}));
    let event = batch(&stack, "requests");
    stack.invoke(Binary::Request, event).await.unwrap();
    stack.kill(Binary::Request);
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 2);

    stack.complete(json!({"requestId": "killed"}));
    let event = batch(&stack, "completions");
    stack.invoke(Binary::Teardown, event).await.unwrap();
    stack.kill(Binary::Teardown);
    stack.unhide("completions");
    stack.settle().await;
    assert!(stack.bodies("completions").is_empty());
    assert!(stack.active_tasks().is_empty() && stack.nodes().is_empty());
}

#[tokio::test]
async fn the_same_request_in_two_processes_at_once_is_one_task() {
    let mut stack = Stack::start().await;
    let body = json!({"requestId": "twins", "label": "node"});
    stack.ask(body.clone());
    let one = batch(&stack, "requests");
    stack.ask(body);
    let two = batch(&stack, "requests");
    let mut another = stack.another(Binary::Request).await;
    let (first, second) = tokio::join!(stack.invoke(Binary::Request, one), another.invoke(two));
    assert_eq!(failures(&first) + failures(&second.unwrap()), 0);
    assert_eq!(stack.tasks().len(), 1);
}

#[tokio::test]
async fn an_answer_of_failures_alone_does_not_bind_the_token_for_ever() {
    // Some report that an answer of failures is replayed for its token: the next attempt needs another one.
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().fargate_has_capacity = false;
    let url = stack.agent("attempts", "node").await;
    stack.aws().ecs.settings().fargate_has_capacity = true;
    for _ in 0..2 {
        stack.unhide("waiting");
        stack.sweep().await;
        stack.unhide("requests");
        stack.settle().await;
    }
    let tokens: Vec<_> = stack.inputs("RunTask").iter().map(|input| input["clientToken"].to_string()).collect();
    assert!(tokens.len() >= 2 && tokens[0] != tokens[tokens.len() - 1], "{tokens:?}");
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn gives_up_one_try_before_the_dead_letter_queue() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "RunTask", Some(Fault::server()));
    let url = stack.webhook();
    stack.ask(json!({"requestId": "hopeless", "label": "node", "webhookUrl": url}));
    // It was received ten times before.
    stack.aws().sqs.queues.get_mut("requests").unwrap().messages[0].receives = 10;
    let mut receives = 10;
    while stack.bodies("rejected").is_empty() && receives < 13 {
        stack.unhide("requests");
        stack.poll(Binary::Request, "requests").await;
        receives += 1;
    }
    assert!(receives <= 12, "before SQS does");
    stack.settle().await;
    let rejected = stack.rejected();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].0.contains("hopeless") && !rejected[0].1.is_empty());
    assert!(stack.bodies("requests").is_empty() && stack.bodies("requests-dead-letters").is_empty());
    assert_eq!(stack.received(&url).len(), 1);
    assert!(stack.received(&url)[0].starts_with("agent.failed"));
}

#[tokio::test]
async fn a_refusal_that_cannot_be_kept_is_not_acknowledged() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("sqs", "SendMessage", Some(Fault::server()));
    stack.send("requests", "not JSON");
    stack.settle().await;
    assert_eq!(stack.bodies("requests"), ["not JSON"]);
    stack.aws().faults.always("sqs", "SendMessage", None);
    stack.unhide("requests");
    stack.settle().await;
    assert!(stack.bodies("requests").is_empty());
    assert_eq!(stack.rejected().len(), 1);
}

#[tokio::test]
async fn a_refusal_is_reported_once_and_kept_once_though_the_other_fails() {
    for (label, code) in [("nothing", "agent.failed NO_TEMPLATE"), ("node", "agent.failed LAUNCH_FAILED")] {
        let mut stack =
            Stack::with(|config| config["clouds"][1]["templates"][0]["taskDefinition"] = "gone".into()).await;
        stack.allow_denials();
        let url = stack.webhook();
        stack.aws().faults.always("sqs", "SendMessage", Some(Fault::server()));
        stack.ask(json!({"requestId": "notified", "label": label, "webhookUrl": url}));
        for _ in 0..2 {
            stack.unhide("requests");
            stack.poll(Binary::Request, "requests").await;
        }
        assert_eq!(stack.received(&url), [code]);
        assert_eq!(stack.bodies("requests").len(), 1, "its copy is still to be made");
        stack.aws().faults.always("sqs", "SendMessage", None);
        stack.unhide("requests");
        stack.settle().await;
        assert_eq!((stack.received(&url), stack.all_received()), (vec![code.into()], vec![code.into()]));
        assert_eq!((stack.rejected().len(), stack.bodies("requests").len()), (1, 0));

        // The reverse: the copy is made, and what Jenkins does not accept cannot be kept.
        let mut stack =
            Stack::with(|config| config["clouds"][1]["templates"][0]["taskDefinition"] = "gone".into()).await;
        stack.allow_denials();
        stack.jenkins_goes_down();
        let lets_the_copy_pass = [None].into_iter().chain((0..6).map(|_| Some(Fault::server())));
        stack.aws().faults.script("sqs", "SendMessage", lets_the_copy_pass);
        stack.ask(json!({"requestId": "kept", "label": label}));
        for _ in 0..3 {
            stack.unhide("requests");
            stack.poll(Binary::Request, "requests").await;
        }
        assert_eq!((stack.rejected().len(), stack.bodies("undelivered").len()), (1, 1), "{label}");
    }
}

#[tokio::test]
async fn events_outlast_an_ecs_that_does_not_answer() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "DescribeTasks", Some(Fault::server()));
    let url = stack.agent("blind", "node").await;
    assert_eq!(stack.received(&url), Vec::<String>::new());
    stack.aws().faults.always("ecs", "DescribeTasks", None);
    // EventBridge retries, or the undelivered queue brings it back.
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn a_ready_agent_that_cannot_be_recorded_is_reported_once_by_one_process() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "TagResource", Some(Fault::server()));
    let url = stack.agent("unrecorded", "node").await;
    stack.aws().faults.always("ecs", "TagResource", None);
    stack.unhide("undelivered");
    stack.settle().await;
    let received = stack.received(&url);
    assert!(!received.is_empty() && received.iter().all(|notice| notice == "agent.ready"), "{received:?}");
    let ids: Vec<_> = stack.notices(Some(&url)).iter().map(|notice| notice.body["id"].clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "a repetition has the same id");
}

#[tokio::test]
async fn a_notice_is_not_lost_though_no_queue_accepts_it() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.jenkins_goes_down();
    for action in ["SendMessage", "SendMessageBatch"] {
        stack.aws().faults.always("sqs", action, Some(Fault::server()));
    }
    stack.ask(json!({"requestId": "nowhere", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    for action in ["SendMessage", "SendMessageBatch"] {
        stack.aws().faults.always("sqs", action, None);
    }
    stack.jenkins_comes_back().await;
    // EventBridge repeats what failed.
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
}

#[tokio::test]
async fn near_its_time_limit_a_function_returns_unfinished_messages() {
    let mut stack = Stack::start().await;
    stack.function(Binary::Request).await;
    for number in 0..5 {
        stack.ask(json!({"requestId": format!("slow-{number}"), "label": "node"}));
    }
    let event = batch(&stack, "requests");
    stack.aws().faults.always("ecs", "RunTask", Some(Fault::Slow(Duration::from_secs(20))));
    let began = std::time::Instant::now();
    let function = stack.function(Binary::Request).await;
    let answer = function.invoke_within(event, Duration::from_secs(4)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "it answers before its end");
    assert_eq!(failures(&answer), 5);
    stack.aws().faults.always("ecs", "RunTask", None);
    stack.unhide("requests");
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 5);
}

#[tokio::test]
async fn one_slow_webhook_does_not_hold_the_batch() {
    let mut stack = Stack::start().await;
    let slow = stack.webhook();
    let quick = [stack.webhook(), stack.webhook()];
    stack.jenkins_goes_down();
    for (id, url) in [("slow", &slow), ("quick-0", &quick[0]), ("quick-1", &quick[1])] {
        stack.ask(json!({"requestId": id, "label": "nothing", "webhookUrl": url}));
    }
    stack.settle().await;
    assert!(!stack.bodies("undelivered").is_empty());
    stack.jenkins_comes_back().await;
    let token = slow.rsplit('/').next().unwrap().to_owned();
    stack.jenkins_is_slow(&token, Duration::from_secs(60));
    stack.unhide("undelivered");
    while stack.poll(Binary::TaskState, "undelivered").await > 0 {}
    for url in &quick {
        assert_eq!(stack.received(url), ["agent.failed NO_TEMPLATE"]);
    }
    assert!(!stack.bodies("undelivered").is_empty(), "the slow one is kept");
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_holds_up_no_other_recipient() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.behave("jenkins-node", Behaviour::ImageMissing);
    let slow = stack.webhook();
    let token = slow.rsplit('/').next().unwrap().to_owned();
    stack.jenkins_is_slow(&token, Duration::from_secs(60));
    stack.ask(json!({"requestId": "slow", "label": "node", "webhookUrl": slow}));
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.failed START_FAILED"]);
    assert!(stack.received(&slow).is_empty() && stack.bodies("undelivered").len() == 1);
    stack.jenkins_is_slow(&token, Duration::ZERO);
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&slow), ["agent.failed START_FAILED"]);
    assert_eq!(stack.all_received().len(), 1, "nobody else is notified again");
}

#[tokio::test]
async fn a_conflict_of_the_token_names_a_task_that_exists() {
    let mut stack = Stack::start().await;
    stack.agent("conflict", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    let conflict = ApiError { extra: json!({"resourceIds": [arn]}), ..ApiError::new("ConflictException", "in use") };
    stack.aws().faults.script("ecs", "RunTask", [Some(Fault::Error(conflict))]);
    stack.ask(json!({"requestId": "conflict", "label": "node"}));
    stack.settle().await;
    assert_eq!(stack.tasks().len(), 1);
    assert!(stack.rejected().is_empty() && stack.bodies("requests").is_empty());
}

#[tokio::test]
async fn reports_of_stopped_agents_wait_for_jenkins_too() {
    let mut stack = Stack::start().await;
    stack.agent("stops", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.jenkins_goes_down();
    stack.aws().ecs.exit(&arn, 1, Timestamp::now());
    stack.settle().await;
    stack.jenkins_comes_back().await;
    for _ in 0..3 {
        stack.unhide("undelivered");
        stack.settle().await;
    }
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
    assert!(stack.nodes().is_empty());
}
