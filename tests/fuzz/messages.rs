//! Messages, what travels with them, and the texts in them.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use request::plan::{Blocked, Envelope, Order, admit};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::arn::{ClusterArn, TaskArn};
use shared::capacity::Need;
use shared::config::{Config, FamilyPattern, Limit, TaskDefinition, variables};
use shared::label::{LabelExpression, LabelSet};
use shared::message::{AgentRequest, BuildCompleted, MOST_AGENTS, NoticeType, Record, RequestId, Salvage};
use shared::name::AgentName;
use shared::notifier::{Undelivered, Work};
use shared::origin::Origin;
use shared::stop::Stop;
use shared::trace::Trace;
use shared::wait::{Placed, Wait, Waiting, WaitsFor, demand, too_long};
use teardown::plan::completion;

use crate::configuration::config;
use crate::mutate::holds;

fn now() -> Timestamp {
    "2026-11-24T18:00:05Z".parse().expect("a time")
}

fn origin(config: &Config) -> Origin {
    Origin::new((*config.jenkins.url).clone())
}

fn envelope<'a>(wait: Option<&'a Wait>, own_accounts: &'a BTreeSet<String>) -> Envelope<'a> {
    Envelope { message_id: "059f36b4-87a3-44ab-83d2-661975830a7d", sent_at: None, wait, trace: None, own_accounts }
}

/// What is written is read as the same.
fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let text = serde_json::to_string(value).expect("JSON");
    assert_eq!(serde_json::from_str::<T>(&text).as_ref().ok(), Some(value), "{text}");
}

/// What a request that a template serves makes of ECS and Jenkins.
fn is_in_order(order: &Order<'_>, origin: &Origin) {
    assert!((1..=MOST_AGENTS).contains(&order.count));
    assert!(order.agents.iter().all(|index| *index < order.count));
    assert!(order.webhook_urls.iter().all(|url| origin.allows(url).is_ok()));
    for (name, value) in order.environment() {
        assert_eq!(variables::check(&name, &value), Ok(()));
    }
    for index in 0..order.count {
        let name = order.name("ecs-", index);
        assert_eq!(AgentName::parse("ecs-", name.as_str()).as_ref(), Some(&name));
        let record = order.record(index, "agent");
        survives(&record);
        let launch = order.launch(&name, &record, "https://ci.example.com/", None);
        assert!(launch.client_token.len() <= 64);
        assert!(request::launch::input(&launch).is_ok());
        let written: Record = serde_json::from_str(&launch.environment[Record::VARIABLE]).expect("a record");
        assert_eq!(Record { build: None, ..written }, Record { build: None, ..record });
    }
    let blocked = Blocked {
        agents: (0..order.count).collect(),
        waits_for: WaitsFor::Instance,
        reason: "RESOURCE:MEMORY".into(),
        need: Need::from(order.size(Default::default())),
        failures: Vec::new(),
    };
    if let Ok(wait) = order.next_wait(&blocked, now()) {
        survives(&wait);
    }
}

#[test]
fn requests() {
    let config = config();
    let (origin, own) = (origin(&config), BTreeSet::from(["123456789012".to_owned()]));
    holds("request", |input| {
        let body = String::from_utf8_lossy(input);
        match admit(&config, &origin, &body, envelope(None, &own), now()) {
            Ok(order) => is_in_order(&order, &origin),
            Err(refused) => {
                assert!(refused.webhook_urls.len() <= MOST_AGENTS as usize);
                assert!(refused.webhook_urls.iter().all(|url| origin.allows(url).is_ok()));
                assert!(!refused.failure.message.is_empty());
                assert!(refused.request_id.is_some(), "there is always somebody to report it to");
            }
        }
        assert!(Salvage::from(&body).webhook_urls.len() <= MOST_AGENTS as usize);
        let Ok(request) = AgentRequest::parse(&body) else { return false };
        assert!(request.label.len() <= 1024 && request.webhook_urls.len() <= MOST_AGENTS as usize);
        assert!(request.overrides.environment.len() <= 100);
        assert!(request.overrides.command.is_none_or(|words| words.len() <= 100));
        true
    });
}

#[test]
fn completions() {
    let config = config();
    let accounts = vec![BTreeSet::from(["123456789012".to_owned()]); config.clouds.len()];
    holds("completion", |input| {
        let Ok(read) = BuildCompleted::parse(&String::from_utf8_lossy(input)) else { return false };
        assert!(read.request_id.is_some() || read.agent.is_some() || read.task_arn.is_some());
        for text in [&read.agent, &read.task_arn, &read.result].into_iter().flatten() {
            assert!(text.len() <= 2048);
        }
        if let Some(arn) = &read.task_arn
            && let Ok(index) = completion::place(arn, &config.clouds, &accounts)
        {
            let task = TaskArn::parse(arn).expect("a task's ARN");
            assert_eq!((task.cluster.region, task.cluster.name), ("eu-west-1", &*config.clouds[index].cluster));
        }
        let stop = completion::completed(&read);
        assert_eq!(Stop::parse(&stop.to_string()), Some(stop));
        true
    });
}

#[test]
fn waits() {
    let config = config();
    let (origin, own) = (origin(&config), BTreeSet::new());
    holds("wait", |input| {
        let Ok(wait) = serde_json::from_slice::<Wait>(input) else { return false };
        assert!(wait.agents.len() <= MOST_AGENTS as usize && wait.agents.iter().all(|index| *index < MOST_AGENTS));
        assert!(wait.exclusive.len() <= 101 && wait.delay().as_secs() <= 160);
        survives(&wait);
        for cloud in &config.clouds {
            drop(too_long(wait.since, &wait.reason, Some(cloud), Some(wait.requested_at), now()));
            let waiting = Waiting { body: String::new(), wait: Some(wait.clone()), receipt: String::new() };
            let agents = demand(cloud, std::iter::once(&waiting), &Placed::default());
            assert!(agents.len() <= wait.agents.len());
        }
        let body = r#"{"version": 1, "label": "linux", "webhookUrl": "https://ci.example.com/webhook-step/1"}"#;
        let order = admit(&config, &origin, body, envelope(Some(&wait), &own), now()).expect("a request");
        is_in_order(&order, &origin);
        true
    });
}

#[test]
fn records() {
    let name = AgentName::new("ecs-", "maven", "r", 0);
    holds("record", |input| {
        let Ok(record) = serde_json::from_slice::<Record>(input) else { return false };
        survives(&record);
        for most in [0, 300, 1000, 8192] {
            let text = record.within(|text| text.len() <= most);
            let cut: Record = serde_json::from_str(&text).expect("a record");
            assert_eq!(Record { build: None, ..cut }, Record { build: None, ..record.clone() });
        }
        let notice = shared::agents::Subject::of_record(&name, None, Some(&record)).notice(NoticeType::Ready, now());
        survives(&notice);
        true
    });
}

#[test]
fn undelivered_work() {
    holds("undelivered", |input| {
        let Ok(read) = serde_json::from_slice::<Undelivered>(input) else { return false };
        survives(&read);
        if let Work::Notice { notice, .. } = &read.work {
            drop(notice.timings.as_ref().map(|timings| timings.stages(notice.at)));
        }
        true
    });
}

#[test]
fn label_expressions() {
    let sets =
        ["", "a", "linux maven", "größe/🧑‍🔧"].map(|labels| LabelSet(labels.split(' ').map(str::to_owned).collect()));
    holds("label", |input| {
        let text = String::from_utf8_lossy(input);
        match text.parse::<LabelExpression>() {
            Ok(expression) => {
                assert_eq!(expression.to_string(), text);
                let negated: LabelExpression = match format!("!({text})").parse() {
                    Ok(negated) => negated,
                    // One pair of parentheses too many.
                    Err(error) => return error.message.contains("parentheses"),
                };
                for labels in &sets {
                    assert_ne!(expression.matches(labels), negated.matches(labels), "{text}");
                }
                true
            }
            Err(error) => {
                assert!((1..=text.chars().count() + 1).contains(&error.position), "{error}");
                false
            }
        }
    });
}

/// What is read is written as it was, or at least reads as the same again.
fn reads<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str) -> bool {
    let Ok(read) = text.parse::<T>() else { return false };
    assert_eq!(read.to_string().parse().ok(), Some(read), "{text:?}");
    true
}

#[test]
fn names_and_other_short_texts() {
    let origin = origin(&config());
    holds("text", |input| {
        let text = &*String::from_utf8_lossy(input);
        let mut known = reads::<Limit>(text) | reads::<RequestId>(text);
        if let Ok(definition) = TaskDefinition::try_from(text.to_owned()) {
            assert!(definition.family().len() <= 255 && !definition.family().is_empty());
            assert_eq!(definition.to_string(), text);
            known = true;
        }
        if let Ok(pattern) = FamilyPattern::try_from(text.to_owned()) {
            assert_eq!(pattern.to_string(), text);
            known = true;
        }
        if let Some(name) = AgentName::parse("ecs-", text) {
            assert!(text.len() <= 128 && text.starts_with(&format!("ecs-{}-", name.template("ecs-"))));
            known = true;
        }
        if let Ok(url) = origin.allows(text) {
            assert!(url.as_str().starts_with("https://ci.example.com/") && url.username().is_empty());
            known = true;
        }
        if let Some(stop) = Stop::parse(text) {
            assert_eq!(stop.to_string(), text);
            known = true;
        }
        if let Some(trace) = Trace::parse(text) {
            survives(&trace_in_record(trace));
            known = true;
        }
        known | TaskArn::parse(text).is_some() | ClusterArn::parse(text).is_some()
    });
}

fn trace_in_record(trace: Trace) -> Record {
    Record {
        request_id: "r".parse().expect("an id"),
        index: 0,
        count: 1,
        requested_at: now(),
        container: "agent".into(),
        webhook_url: None,
        build: None,
        trace: Some(trace),
    }
}
