//! The three handlers between the simulators, with changed events and changed answers: no panic, an end before the
//! deadline, and an answer that Lambda understands.
//!
//! Time is tokio's paused time, and every call takes some of it: what would never end meets the deadline.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{set_hook, take_hook};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use local::aws::Aws;
use local::jenkins::{Jenkins, Permission};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use shared::app::App;
use shared::batch::Invocation;
use shared::clock::Clock;
use shared::config::environment::Environment;
use shared::http::Http;
use tests::{ACCOUNT, API_TOKEN, AUTHORIZATION, CLUSTER, REGION, configuration, furnish, rule_matches, sweep_event};
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, timeout};

use crate::mutate::{Change, Input, apply, changes, corpus, run};

/// The round trip of a call.
const TRIP: Duration = Duration::from_millis(50);
/// What an invocation may take, and the reserve that it keeps.
const LIMIT: Duration = Duration::from_secs(30);
const FUNCTIONS: [&str; 3] = ["request", "task-state", "teardown"];

/// The folders of the corpus that hold events of a function.
fn folders(function: &str) -> &'static [&'static str] {
    match function {
        "request" => &["batch", "check"],
        "task-state" => &["batch", "event"],
        _ => &["batch", "sweep"],
    }
}

/// What AWS and Jenkins answer, and how that is changed on the way.
struct Net {
    aws: Aws,
    jenkins: Jenkins,
    /// Changes of the answers to some calls, by the number of the call.
    changes: BTreeMap<usize, Vec<Change>>,
    calls: usize,
    twist: Twist,
}

/// What is odd about every answer.
#[derive(Debug, Clone, Copy)]
enum Twist {
    Nothing,
    /// Of each list there is always another page.
    Endless,
    /// Each number is this one.
    Numbers(&'static str),
}

impl Net {
    fn answer(&mut self, request: http::Request<Bytes>, now: Timestamp) -> http::Response<Bytes> {
        let is_jenkins = request.uri().host() == Some("jenkins.test");
        let response =
            if is_jenkins { self.jenkins.handle(request, now) } else { self.aws.handle(request, now).response };
        self.calls += 1;
        let response = response.map(|body| match self.twist {
            Twist::Nothing => body,
            Twist::Endless => endless(body),
            Twist::Numbers(number) => with_numbers(&body, number),
        });
        let Some(changes) = self.changes.get(&self.calls) else { return response };
        response.map(|body| {
            let mut bytes = body.to_vec();
            apply(changes, &mut bytes, &[]);
            bytes.into()
        })
    }
}

/// With this in place of each number, whether JSON writes it as a number or as a text.
fn with_numbers(body: &[u8], number: &str) -> Bytes {
    fn replace(value: &mut Value, number: &str) {
        match value {
            Value::Number(_) => *value = serde_json::from_str(number).expect("a number"),
            Value::String(text) if text.parse::<i64>().is_ok() => number.clone_into(text),
            Value::Array(values) => values.iter_mut().for_each(|value| replace(value, number)),
            Value::Object(fields) => fields.values_mut().for_each(|value| replace(value, number)),
            _ => {}
        }
    }
    if let Ok(mut value) = serde_json::from_slice(body) {
        replace(&mut value, number);
        return value.to_string().into();
    }
    let parts = std::str::from_utf8(body).unwrap_or_default().split_inclusive(['<', '>']);
    let parts = parts.map(|part| match part.strip_suffix('<') {
        Some(text) if text.parse::<i64>().is_ok() => format!("{number}<"),
        _ => part.to_owned(),
    });
    parts.collect::<String>().into()
}

fn endless(body: Bytes) -> Bytes {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&body) else { return body };
    let lists = ["taskArns", "serviceArns", "containerInstanceArns"];
    if lists.iter().any(|list| fields.contains_key(*list)) {
        fields.insert("nextToken".into(), "more".into());
    }
    if let Some(Value::Array(nodes)) = fields.get_mut("computer") {
        let node = nodes.first().cloned().unwrap_or_else(|| json!({"displayName": "a"}));
        nodes.resize(500, node);
    }
    if let Some(Value::Array(messages)) = fields.get_mut("Messages") {
        let message = json!({"MessageId": "m", "ReceiptHandle": "r", "Body": "{\"version\": 1, \"label\": \"maven\"}"});
        messages.resize(10, message);
    }
    Value::Object(fields).to_string().into()
}

struct World {
    net: Arc<Mutex<Net>>,
    epoch: Timestamp,
    start: Instant,
    apps: HashMap<&'static str, App>,
    events: Vec<Value>,
}

impl World {
    async fn new() -> Self {
        let (epoch, start): (Timestamp, _) = ("2026-11-24T18:00:00Z".parse().expect("a time"), Instant::now());
        let mut aws = Aws::new(REGION, ACCOUNT, "http://aws.test");
        furnish(&mut aws.ecs, epoch).expect("a cluster");
        for queue in ["requests", "waiting", "undelivered", "rejected", "completions"] {
            aws.sqs.create(queue, 180, None);
        }
        aws.parameters.values.insert("/jenkins/api-token".into(), API_TOKEN.into());
        aws.parameters.values.insert("/jenkins/webhook".into(), AUTHORIZATION.into());
        let mut jenkins = Jenkins::new("http://jenkins.test/ci/");
        jenkins.add_user("ecs-agents", API_TOKEN, Permission::FOR_AGENTS);
        let webhook = jenkins.add_endpoint("ecs-agents/notices", Some(AUTHORIZATION));
        let config = configuration("http://jenkins.test/ci/", &webhook);
        let net = Net { aws, jenkins, changes: BTreeMap::new(), calls: 0, twist: Twist::Nothing };
        let mut world = Self { net: Arc::new(Mutex::new(net)), epoch, start, apps: HashMap::new(), events: Vec::new() };
        for function in FUNCTIONS {
            let app = world.app(config.clone()).await;
            world.apps.insert(function, app);
        }
        world
    }

    fn net(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.epoch + SignedDuration::try_from(self.start.elapsed()).unwrap_or_default()
    }

    async fn app(&self, config: Value) -> App {
        let (epoch, start, net) = (self.epoch, self.start, self.net.clone());
        let now = move || epoch + SignedDuration::try_from(start.elapsed()).unwrap_or_default();
        let http = Http::in_memory(move |request| {
            let net = net.clone();
            Box::pin(async move {
                sleep(TRIP).await;
                Ok(net.lock().unwrap_or_else(PoisonError::into_inner).answer(request, now()))
            })
        });
        let environment: Environment = Arc::new(move |name| {
            Some(match name {
                "AGENTS_CONFIG" => format!("inline:{config}"),
                "AWS_REGION" => REGION.into(),
                "AWS_ENDPOINT_URL" => "http://aws.test".into(),
                "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => "AKIA".into(),
                name => {
                    let queue = name.strip_suffix("_QUEUE_URL")?.to_lowercase();
                    format!("http://aws.test/{ACCOUNT}/{queue}")
                }
            })
        });
        let sdk = shared::aws::sdk_config(&environment, &http);
        let app = shared::start::build(&sdk, environment, Clock::new(now), http).await;
        app.unwrap_or_else(|faults| panic!("{faults}"))
    }

    async fn invoke(&self, function: &str, event: Value) -> anyhow::Result<Value> {
        let invocation = Invocation {
            deadline: Instant::now() + LIMIT - Duration::from_millis(1500),
            function_arn: format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}"),
            trace: None,
        };
        let app = &self.apps[function];
        match function {
            "request" => request::handler::handle(app, &invocation, event).await,
            "task-state" => task_state::handler::handle(app, &invocation, event).await,
            _ => teardown::handler::handle(app, &invocation, event).await,
        }
    }

    /// Sends messages to a queue, and returns the event with them.
    fn batch(&self, queue: &str, messages: &[Value]) -> Value {
        let now = self.now();
        let sqs = &mut self.net().aws.sqs;
        for message in messages {
            sqs.send(queue, &message.to_string(), now);
        }
        let batch = sqs.receive(queue, 10, None, now);
        sqs.event(queue, &batch)
    }

    /// Runs agents of every kind, and lets some wait.
    async fn populate(&mut self) {
        let ask = |id: &str, label: &str, count: u32| json!({"version": 1, "requestId": id, "label": label, "count": count, "build": {"job": id, "number": 1}});
        let requests = [ask("a", "maven", 1), ask("b", "dial", 1), ask("c", "node", 1), ask("d", "maven", 5)];
        self.invoke("request", self.batch("requests", &requests)).await.expect("agents");
        let now = self.now();
        let events = self.net().aws.advance(now);
        self.events = events.into_iter().filter(rule_matches).collect();
        for event in self.events.clone() {
            self.invoke("task-state", event).await.expect("a notice");
        }
    }

    /// Events of a function that refer to what there is.
    fn own_events(&self, function: &str) -> Vec<Value> {
        let tasks: Vec<_> = self.net().aws.ecs.tasks().cloned().collect();
        let since = self.now();
        match function {
            "request" => {
                let again = json!({"version": 1, "requestId": "a", "label": "maven"});
                let other = json!({"version": 1, "requestId": "e", "label": "node", "count": 3});
                let large = json!({"version": 1, "requestId": "f", "label": "maven", "count": 10});
                vec![self.batch("requests", &[again, other, large])]
            }
            "task-state" => {
                let node = json!({"since": since, "node": {"name": tasks[0].started_by}});
                let task = &tasks[1];
                let cluster = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{CLUSTER}");
                let task =
                    json!({"since": since, "task": {"cluster": cluster, "arn": task.arn, "name": task.started_by}});
                let batch = self.batch("undelivered", &[node, task]);
                self.events.iter().cloned().chain([batch]).collect()
            }
            _ => {
                let by_task = json!({"version": 1, "taskArn": tasks[0].arn});
                let by_name = json!({"version": 1, "agent": tasks[1].started_by, "result": "SUCCESS"});
                let by_request = json!({"version": 1, "requestId": "d"});
                let late = self.now() + SignedDuration::from_mins(20);
                vec![self.batch("completions", &[by_task, by_name, by_request]), sweep_event(late)]
            }
        }
    }
}

thread_local! {
    /// The panics of this thread: the handlers catch those of a record.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            print(panic);
        }));
    });
    PANICS.with(|panics| panics.set(0));
}

/// The identifiers in a batch response are those of the event's messages.
fn is_understood(answer: &Value, event: &Value) {
    let Some(failures) = answer.get("batchItemFailures") else { return };
    let ids: Vec<_> = event["Records"].as_array().expect("a batch").iter().map(|record| &record["messageId"]).collect();
    for failure in failures.as_array().expect("failures") {
        let id = &failure["itemIdentifier"];
        assert!(ids.contains(&id) || id == "", "{failure} is no message of {event}");
    }
}

/// An event for a function, and the answers that it gets.
#[derive(Debug, Clone, Default)]
struct Case {
    function: usize,
    /// Which event.
    base: Option<Index>,
    event: Vec<Change>,
    /// The numbers of calls, and the changes of their answers.
    answers: Vec<(usize, Vec<Change>)>,
}

async fn check(case: Case, entries: &HashMap<&str, Vec<Input>>) {
    let mut world = World::new().await;
    world.populate().await;
    let function = FUNCTIONS[case.function];
    let own = world.own_events(function).into_iter().map(|event| Input(event.to_string().into_bytes()));
    let bases: Vec<Input> = own.chain(entries[function].iter().cloned()).collect();
    let mut bytes = bases[case.base.map_or(0, |base| base.index(bases.len()))].0.clone();
    apply(&case.event, &mut bytes, &bases);
    let Ok(event) = serde_json::from_slice::<Value>(&bytes) else { return };
    {
        let mut net = world.net();
        let before = net.calls;
        net.changes = case.answers.into_iter().map(|(call, changes)| (before + 1 + call, changes)).collect();
    }
    count_panics();
    let answer = timeout(LIMIT, world.invoke(function, event.clone())).await;
    assert_eq!(PANICS.with(Cell::get), 0, "{function} panicked");
    if let Ok(answer) = answer.expect("an answer before Lambda ends the process") {
        is_understood(&answer, &event);
    }
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(work);
}

#[test]
fn invocations() {
    let read = |folder: &&str| match *folder {
        "batch" => corpus("batch"),
        "check" => corpus("check"),
        "event" => corpus("event"),
        _ => corpus("sweep"),
    };
    let entries = FUNCTIONS
        .map(|function| (function, folders(function).iter().map(read).flat_map(BTreeMap::into_values).collect()));
    let entries: HashMap<&str, Vec<Input>> = entries.into();
    let answer = || (0..30usize, changes(3));
    let case =
        (0..FUNCTIONS.len(), any::<Index>(), prop_oneof![1 => Just(Vec::new()), 1 => changes(4)], vec(answer(), 0..4))
            .prop_map(|(function, base, event, answers)| Case { function, base: Some(base), event, answers });
    run(16, case, |case| block_on(check(case, &entries)));
}

/// Invokes every function with each of its own events while every answer is odd.
fn survive(twist: Twist) {
    for function in FUNCTIONS {
        block_on(async {
            let mut world = World::new().await;
            world.populate().await;
            let events = world.own_events(function);
            world.net().twist = twist;
            count_panics();
            for event in events {
                let answer = timeout(LIMIT, world.invoke(function, event.clone())).await;
                if let Ok(answer) = answer.unwrap_or_else(|_| panic!("{function} does not end: {twist:?}: {event}")) {
                    is_understood(&answer, &event);
                }
                assert_eq!(PANICS.with(Cell::get), 0, "{function} panicked: {twist:?}: {event}");
            }
        });
    }
}

#[test]
fn lists_without_an_end_meet_the_deadline() {
    survive(Twist::Endless);
}

#[test]
fn numbers_are_only_numbers() {
    for number in ["0", "-1", "2147483647", "4294967295", "9223372036854775807"] {
        survive(Twist::Numbers(number));
    }
}
