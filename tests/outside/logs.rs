//! The logs as an operator reads them: what became of each build, and which faults there were. (Every test from outside
//! checks the rules for single lines.)

use std::collections::{BTreeMap, BTreeSet};

use local::aws::Fault;
use local::logs::Line;
use local::story::{self, Story};
use serde_json::json;
use tests::log_rules::{self, IDS, text};
use tests::{Binary, Stack};

use crate::whole_run::{Run, cause, notices, request_of, whole_run};

/// What became of a request, as AWS and Jenkins saw it, or by its story in the logs.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// ARNs by the agents' names.
    tasks: BTreeSet<(String, String)>,
    ready: BTreeSet<String>,
    /// Codes; each agent's.
    failed: Vec<String>,
    /// Codes or causes, by the agents' names.
    stopped: BTreeSet<(String, String)>,
    is_withdrawn: bool,
}

/// All requests, as AWS and Jenkins saw them.
fn seen(run: &Run) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::<String, Seen>::new();
    let tasks = run.stack.tasks();
    for task in &tasks {
        all.entry(request_of(task)).or_default().tasks.insert((task.started_by.clone(), task.arn.clone()));
    }
    for notice in notices(&run.stack) {
        let seen = all.entry(notice.body["requestId"].as_str().unwrap_or_default().to_owned()).or_default();
        let (agent, code) = (notice.agent().to_owned(), notice.code().to_owned());
        match notice.kind() {
            "agent.ready" => drop(seen.ready.insert(agent)),
            "agent.failed" => seen.failed.push(code),
            "agent.stopped" if code.is_empty() => drop(seen.stopped.insert((agent.clone(), cause(&tasks, &agent)))),
            "agent.stopped" => drop(seen.stopped.insert((agent, code))),
            _ => {}
        }
    }
    all.remove("");
    for seen in all.values_mut() {
        seen.failed.sort();
        // It waited, and nothing else happened.
        seen.is_withdrawn = *seen == Seen::default();
    }
    all
}

/// A request, by its story.
fn logged(story: &Story<'_>) -> Seen {
    let mut logged = Seen { is_withdrawn: story.is_withdrawn, ..Seen::default() };
    for (code, &agents) in &story.failed {
        logged.failed.extend((0..agents).map(|_| (*code).to_owned()));
    }
    for agent in &story.agents {
        logged.tasks.insert((agent.name.to_owned(), agent.task.to_owned()));
        if agent.ready_ms.is_some() {
            logged.ready.insert(agent.name.to_owned());
        }
        match agent.end {
            Some(end) if agent.ready_ms.is_none() && end != "UNWANTED" => logged.failed.push(end.to_owned()),
            Some(end) => drop(logged.stopped.insert((agent.name.to_owned(), end.to_owned()))),
            None => {}
        }
    }
    logged.failed.sort();
    logged
}

#[tokio::test]
async fn the_logs_show_each_build_as_jenkins_and_ecs_saw_it() {
    let run = whole_run().await;
    let output = run.stack.output();
    let launches: Vec<_> =
        log_rules::lines(&output).into_iter().filter(|line| line["message"] == "task started").collect();
    for launch in launches {
        for field in IDS.into_iter().chain(["aws.request_id", "message.id", "build.job"]) {
            assert!(!text(&launch, field).is_empty(), "{field}: {launch}");
        }
        assert!(launch["build.number"].is_u64(), "{launch}");
    }
    for line in log_rules::lines(&output).iter().filter(|line| line.get("code").is_some()) {
        let level = match (text(line, "message"), text(line, "code")) {
            ("request failed" | "agent ended", "CAPACITY_TIMEOUT" | "LIFETIME_EXCEEDED") => "WARN",
            ("request failed" | "agent ended", code) if !["IDLE", "SPOT_INTERRUPTION"].contains(&code) => "ERROR",
            _ => "INFO",
        };
        assert_eq!(line["level"], level, "{line}");
    }
    // The functions' names are not needed to join the lines.
    let lines: Vec<_> = output.lines().map(|line| Line::new("function", line)).collect();
    let stories = story::stories(&lines);
    let mut expected = seen(&run);
    for story in &stories {
        assert_eq!(Some(logged(story)), expected.remove(story.request), "{}", story.text());
        // A message that is not JSON names no build.
        if let Some((job, number)) = story.build {
            let found = story::find(&stories, &format!("{job}#{number}"));
            assert!(found.len() == 1 && found[0].request == story.request, "{job}#{number}");
        }
    }
    assert!(expected.is_empty(), "not in the logs: {expected:?}");
    assert_eq!(stories.iter().filter(|story| story.build.is_none()).count(), 1);
    let ends: BTreeSet<_> = stories.iter().map(Story::end).collect();
    assert!(ends.len() >= 14, "the run has every kind of end: {ends:#?}");
}

#[tokio::test]
async fn a_fault_is_logged_with_its_record() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "RunTask", Some(Fault::server()));
    let url = stack.webhook();
    stack.ask(json!({"requestId": "unlucky", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    stack.aws().faults.always("ecs", "RunTask", None);
    stack.unhide("requests");
    stack.jenkins_goes_down();
    stack.settle().await;
    stack.poll(Binary::TaskState, "undelivered").await;
    let lines = log_rules::lines(&stack.output());
    let faults: Vec<_> = lines.iter().filter(|line| matches!(text(line, "level"), "WARN" | "ERROR")).collect();
    assert!(faults.iter().all(|line| line["request.id"] == "unlucky"), "{faults:#?}");
    assert!(faults.len() >= 2, "a fault of ECS and one of Jenkins: {lines:#?}");
}

#[test]
fn the_exceptions_from_the_rules_are_messages_that_are_logged() {
    let sources = crate::template::sources();
    for message in log_rules::exceptions() {
        assert!(sources.contains(&format!("\"{message}\"")), "nobody logs {message:?}");
    }
}

#[tokio::test]
async fn a_level_leaves_out_the_lines_below_it() {
    for (level, logged) in [("WARN", &["ERROR", "WARN"][..]), ("ERROR", &["ERROR"])] {
        let mut stack = Stack::start().await;
        stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some(level));
        stack.agent("well", "node").await;
        stack.complete(json!({"requestId": "well"}));
        stack.settle().await;
        stack.sweep().await;
        assert_eq!(stack.output(), "", "{level}: nobody has to look at a build that is well");
        for (id, fault) in [("unlucky", Fault::server()), ("denied", Fault::denied())] {
            stack.aws().faults.always("ecs", "RunTask", Some(fault));
            stack.agent(id, "node").await;
        }
        let lines = log_rules::lines(&stack.output());
        let levels: BTreeSet<_> = lines.iter().map(|line| text(line, "level")).collect();
        assert_eq!(levels, logged.iter().copied().collect(), "{lines:#?}");
        // The spans are there at every level.
        for line in &lines {
            assert!(["unlucky", "denied"].contains(&text(line, "request.id")), "{line}");
            assert!(!text(line, "agent.name").is_empty(), "{line}");
        }
    }
}
