//! Alarms: each fires on the outage that it is about, and on no other.
//!
//! A course of minutes on the local stack reports the metrics of SQS, Lambda, EventBridge and the functions' log lines. The
//! alarms of both templates are evaluated on these.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use local::aws::ecs::Behaviour;
use local::cloudformation;
use serde_json::{Value, json};
use tests::cloudwatch::{self, Metric, Metrics};
use tests::roles::{FORWARDING, QUEUES, TEMPLATE};
use tests::{ACCOUNT, Binary, CLUSTER, GROUP, REGION, Stack, emf};

const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:alarms";
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The other resources that the alarms watch, by logical id and by the name in a course.
const NAMES: [(&str, &str); 7] = [
    ("RequestsDeadLetters", "requests-dead-letters"),
    ("UndeliveredDeadLetters", "undelivered-dead-letters"),
    ("CompletionsDeadLetters", "completions-dead-letters"),
    ("EventsDeadLetters", "events-dead-letters"),
    ("RequestFunction", "request"),
    ("TaskStateFunction", "task-state"),
    ("TeardownFunction", "teardown"),
];

/// All alarms of both templates, by their logical ids.
fn alarms() -> BTreeMap<String, Value> {
    let cluster = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{CLUSTER}");
    let definitions = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/jenkins-*");
    let bus = format!("arn:aws:events:{REGION}:{ACCOUNT}:event-bus/default");
    let main = [
        ("JenkinsUrl", "https://jenkins.example.com/"),
        ("ClusterArns", &cluster),
        ("TaskDefinitionArns", &definitions),
        ("AlarmTopicArn", TOPIC),
    ];
    let forwarding = [("ClusterArns", cluster.as_str()), ("TargetEventBusArn", &bus), ("AlarmTopicArn", TOPIC)];
    let names: Vec<_> = QUEUES.into_iter().chain(NAMES).collect();
    let letters = [("DeadLetters", "forwarding-dead-letters")];
    let mut all = BTreeMap::new();
    for (template, given, names) in [(TEMPLATE, &main[..], &names[..]), (FORWARDING, &forwarding, &letters)] {
        let stack = cloudformation::Stack::new(template, (REGION, ACCOUNT), given, names).unwrap();
        for id in stack.of_type("AWS::CloudWatch::Alarm").unwrap() {
            all.insert(id.to_owned(), stack.properties(id).unwrap());
        }
    }
    all
}

// --- Outages ---

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    BrokenConfiguration,
    NoConcurrency,
    JenkinsIsAway,
    EventSourcesAreOff,
    SweepIsOff,
    ImageIsMissing,
    OneImageIsMissing,
    GroupIsAtMaximum,
    BadMessage,
    TargetBusRefuses,
}

impl Outage {
    const ALL: [Self; 10] = [
        Self::BrokenConfiguration,
        Self::NoConcurrency,
        Self::JenkinsIsAway,
        Self::EventSourcesAreOff,
        Self::SweepIsOff,
        Self::ImageIsMissing,
        Self::OneImageIsMissing,
        Self::GroupIsAtMaximum,
        Self::BadMessage,
        Self::TargetBusRefuses,
    ];

    /// The alarms that it makes fire, and after how many minutes at most: the time in docs/operations.md plus one period, since
    /// an outage may begin in the middle of one.
    fn alarms(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::BrokenConfiguration => &[
                ("RequestErrorsAlarm", 20),
                ("TaskStateErrorsAlarm", 20),
                ("TeardownErrorsAlarm", 20),
                ("RequestsDeadLettersAlarm", 10),
                ("UndeliveredDeadLettersAlarm", 10),
                ("CompletionsDeadLettersAlarm", 10),
                ("EventsDeadLettersAlarm", 10),
            ],
            Self::NoConcurrency => {
                &[("RequestThrottlesAlarm", 20), ("TaskStateThrottlesAlarm", 20), ("TeardownThrottlesAlarm", 20)]
            }
            Self::JenkinsIsAway => &[("UndeliveredAlarm", 35)],
            Self::EventSourcesAreOff => {
                &[("RequestsUnreadAlarm", 20), ("CompletionsUnreadAlarm", 20), ("UndeliveredAlarm", 35)]
            }
            // CloudWatch looks two minutes further back before it finds that there are no data.
            Self::SweepIsOff => &[("WaitingUnreadAlarm", 20), ("SweepAlarm", 13)],
            Self::ImageIsMissing => &[("AgentsFailAlarm", 20), ("StartsFailAlarm", 10)],
            Self::OneImageIsMissing => &[("StartsFailAlarm", 10)],
            Self::GroupIsAtMaximum => &[("AgentsWaitAlarm", 15)],
            Self::BadMessage => &[("RejectedAlarm", 10)],
            Self::TargetBusRefuses => &[("DeadLettersAlarm", 10)],
        }
    }

    fn begin(self, course: &mut Course) {
        let stack = &mut course.stack;
        match self {
            Self::BrokenConfiguration => course.break_configuration(),
            Self::NoConcurrency => {
                course.is_throttled = true;
                course.send_everywhere();
            }
            Self::JenkinsIsAway => {
                for number in 0..3 {
                    stack.ask(json!({"requestId": format!("away-{number}"), "label": "node"}));
                }
                stack.jenkins_goes_down();
            }
            Self::EventSourcesAreOff => {
                course.send_everywhere();
                course.is_off = ["requests", "undelivered", "completions"].into();
            }
            Self::SweepIsOff => {
                stack.aws().ecs.settings().boot = Duration::from_secs(3600);
                stack.ask(json!({"requestId": "no-room", "label": "maven", "count": 4}));
                course.is_off = ["sweep"].into();
            }
            Self::ImageIsMissing => stack.aws().ecs.behave("jenkins-node", Behaviour::ImageMissing),
            Self::OneImageIsMissing => stack.aws().ecs.behave("jenkins-dial", Behaviour::ImageMissing),
            Self::GroupIsAtMaximum => {
                stack.aws().ecs.group_mut(GROUP).unwrap().maximum = 1;
                stack.ask(json!({"requestId": "no-room", "label": "maven", "count": 4}));
            }
            Self::BadMessage => drop(stack.send("requests", "no JSON")),
            // EventBridge sends an event that its target does not accept to the dead-letter queue.
            Self::TargetBusRefuses => {
                stack.aws().sqs.create("forwarding-dead-letters", 30, None);
                stack.send("forwarding-dead-letters", "{}");
            }
        }
    }
}

/// The minutes before the outage, which begins in the middle of a period.
const BEFORE: u64 = 12;

/// The alarms that fire in an outage, and how many minutes after it began.
async fn fired(outage: Outage) -> BTreeMap<String, u64> {
    let mut course = Course::start().await;
    while course.minute < BEFORE {
        course.builds(true);
        course.pass().await;
    }
    outage.begin(&mut course);
    let most = outage.alarms().iter().map(|(_, within)| *within).max().unwrap();
    while course.minute < BEFORE + most {
        course.builds(outage != Outage::JenkinsIsAway);
        if outage == Outage::OneImageIsMissing {
            course.builds_of_two_templates();
        }
        course.pass().await;
    }
    course.fired().into_iter().map(|(alarm, minute)| (alarm, minute - BEFORE)).collect()
}

async fn assert_fires(outage: Outage) {
    let fired = fired(outage).await;
    let expected: BTreeSet<_> = outage.alarms().iter().map(|(alarm, _)| *alarm).collect();
    assert_eq!(fired.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{outage:?}");
    for (alarm, within) in outage.alarms() {
        assert!(fired[*alarm] <= *within, "{alarm} after {} minutes", fired[*alarm]);
    }
}

#[test]
fn every_alarm_has_an_outage_that_makes_it_fire() {
    let made: BTreeSet<_> = Outage::ALL.into_iter().flat_map(Outage::alarms).map(|(alarm, _)| *alarm).collect();
    let all = alarms();
    assert_eq!(all.keys().map(String::as_str).collect::<BTreeSet<_>>(), made);
}

#[tokio::test]
async fn a_configuration_that_no_function_starts_with() {
    assert_fires(Outage::BrokenConfiguration).await;
}

#[tokio::test]
async fn an_account_without_concurrency_for_the_functions() {
    assert_fires(Outage::NoConcurrency).await;
}

#[tokio::test]
async fn jenkins_away_for_longer_than_a_restart() {
    assert_fires(Outage::JenkinsIsAway).await;
}

#[tokio::test]
async fn event_sources_that_somebody_disabled() {
    assert_fires(Outage::EventSourcesAreOff).await;
}

#[tokio::test]
async fn a_sweep_that_somebody_disabled() {
    assert_fires(Outage::SweepIsOff).await;
}

#[tokio::test]
async fn an_image_that_does_not_exist() {
    assert_fires(Outage::ImageIsMissing).await;
}

#[tokio::test]
async fn an_image_of_one_template_that_does_not_exist() {
    assert_fires(Outage::OneImageIsMissing).await;
}

#[tokio::test]
async fn a_group_at_its_maximum() {
    assert_fires(Outage::GroupIsAtMaximum).await;
}

#[tokio::test]
async fn a_message_that_can_never_work() {
    assert_fires(Outage::BadMessage).await;
}

#[tokio::test]
async fn events_that_could_not_be_forwarded() {
    assert_fires(Outage::TargetBusRefuses).await;
}

#[tokio::test]
async fn builds_a_wait_and_a_restart_of_jenkins_are_no_outage() {
    let mut course = Course::start().await;
    course.stack.aws().ecs.settings().boot = Duration::from_secs(3600);
    while course.minute < 60 {
        course.builds(!(20..40).contains(&course.minute));
        match course.minute {
            5 => course.stack.ask(json!({"requestId": "room", "label": "maven", "count": 5})),
            12 => course.stack.aws().ecs.fill_group(GROUP, 2, Timestamp::now()),
            20 => course.stack.jenkins_goes_down(),
            40 => course.stack.jenkins_comes_back().await,
            // Agents that fail to start: because of a fault, twice; because their build is aborted, or Spot capacity is lost.
            42 => course.stack.aws().ecs.behave("jenkins-dial", Behaviour::ImageMissing),
            43 | 45 => course.stack.ask(json!({"requestId": format!("broken-{}", course.minute), "label": "dial"})),
            46 => course.stack.aws().ecs.behave("jenkins-dial", Behaviour::NeverRuns),
            minute @ (47 | 49 | 51 | 53) => {
                course.stack.ask(json!({"requestId": format!("cut-off-{minute}"), "label": "dial"}));
            }
            minute @ (48 | 50) => course.stack.complete(json!({"requestId": format!("cut-off-{}", minute - 1)})),
            52 | 54 => {
                let tasks = course.stack.active_tasks();
                let task = tasks.iter().find(|task| task.started_at.is_none()).unwrap();
                course.stack.aws().ecs.interrupt(&task.arn, Timestamp::now());
            }
            _ => {}
        }
        course.pass().await;
    }
    assert_eq!(course.fired(), BTreeMap::new());
    let notices = course.stack.all_received();
    let count = |kind| notices.iter().filter(|notice| notice.starts_with(kind)).count();
    assert!(count("agent.ready") > 20 && count("agent.failed") == 6, "{notices:?}");
}

#[tokio::test]
async fn a_new_stack_that_nobody_uses_raises_no_alarm() {
    let mut course = Course::start().await;
    while course.minute < 40 {
        course.pass().await;
    }
    assert_eq!(course.fired(), BTreeMap::new());
    // Without any data either.
    for (id, alarm) in alarms() {
        assert_eq!(cloudwatch::fires(&alarm, &Metrics::default(), 60), None, "{id}");
    }
}

/// A request's wait, with its times put back by a minute.
fn a_minute_earlier(wait: &str) -> String {
    let mut wait: Value = serde_json::from_str(wait).unwrap();
    for time in ["requestedAt", "since"] {
        let was: Timestamp = wait[time].as_str().unwrap().parse().unwrap();
        wait[time] = (was - SignedDuration::from_mins(1)).to_string().into();
    }
    wait.to_string()
}

// --- A course ---

/// A stack over some minutes, and its metrics.
struct Course {
    stack: Stack,
    minute: u64,
    metrics: Metrics,
    /// Disabled event sources, by their queue, and the rule of the sweep.
    is_off: BTreeSet<&'static str>,
    /// Whether Lambda has no concurrency for the functions.
    is_throttled: bool,
    /// Events on which the function failed: the minute of the next attempt, and how many attempts are left.
    again: Vec<(u64, u32, Value)>,
    /// How much of each function's output was read.
    read: BTreeMap<Binary, usize>,
}

const SOURCES: [(&str, Binary); 3] =
    [("requests", Binary::Request), ("undelivered", Binary::TaskState), ("completions", Binary::Teardown)];

impl Course {
    async fn start() -> Self {
        let stack = Stack::start().await;
        stack.aws().sqs.create("events-dead-letters", 30, None);
        Self {
            stack,
            minute: 0,
            metrics: Metrics::default(),
            is_off: BTreeSet::new(),
            is_throttled: false,
            again: Vec::new(),
            read: BTreeMap::new(),
        }
    }

    /// Every other minute a build requests an agent; ten minutes later it is over.
    fn builds(&self, may_begin: bool) {
        if !self.minute.is_multiple_of(2) {
            return;
        }
        if may_begin {
            let url = self.stack.webhook();
            self.stack.ask(json!({"requestId": format!("build-{}", self.minute), "label": "node", "webhookUrl": url}));
        }
        if let Some(begun) = self.minute.checked_sub(10) {
            self.stack.complete(json!({"requestId": format!("build-{begun}")}));
        }
    }

    /// Each hour, 180 builds on one template and 20 on another.
    fn builds_of_two_templates(&self) {
        for number in 0..3 {
            self.stack.ask(json!({"requestId": format!("many-{}-{number}", self.minute), "label": "node"}));
            if let Some(begun) = self.minute.checked_sub(10) {
                self.stack.complete(json!({"requestId": format!("many-{begun}-{number}")}));
            }
        }
        if self.minute.is_multiple_of(3) {
            self.stack.ask(json!({"requestId": format!("few-{}", self.minute), "label": "dial"}));
        }
    }

    /// Sends one message for each function.
    fn send_everywhere(&self) {
        self.stack.ask(json!({"requestId": "one", "label": "node"}));
        self.stack.complete(json!({"requestId": "two"}));
        self.stack.send("undelivered", "{}");
    }

    /// No function starts any more. One message of each queue has been received as often as the queue allows.
    fn break_configuration(&mut self) {
        self.stack.set_env("AGENTS_CONFIG", Some("inline:jenkins"));
        Binary::ALL.into_iter().for_each(|binary| self.kill(binary));
        self.send_everywhere();
        let mut aws = self.stack.aws();
        for queue in SOURCES.map(|(queue, _)| queue) {
            aws.sqs.send(queue, "{}", Timestamp::now());
            let queue = aws.sqs.queues.get_mut(queue).unwrap();
            queue.messages.last_mut().unwrap().receives = queue.redrive.as_ref().unwrap().1;
        }
        let running = aws.ecs.tasks().next().unwrap().arn.clone();
        aws.ecs.exit(&running, 1, Timestamp::now());
    }

    /// Lets a minute pass.
    async fn pass(&mut self) {
        for queue in self.stack.aws().sqs.queues.values_mut() {
            for message in &mut queue.messages {
                message.visible_at -= SignedDuration::from_mins(1);
                message.sent_at -= SignedDuration::from_mins(1);
                if let Some(wait) = message.attributes.get_mut("wait") {
                    *wait = a_minute_earlier(wait);
                }
            }
        }
        let (due, later) = std::mem::take(&mut self.again).into_iter().partition(|(minute, ..)| *minute <= self.minute);
        self.again = later;
        for (_, attempts, event) in due {
            self.deliver(event, attempts).await;
        }
        for _ in 0..3 {
            for (queue, binary) in SOURCES {
                while !self.is_off.contains(queue) && self.poll(queue, binary).await {}
            }
            for event in std::mem::take(self.stack.advance()) {
                self.deliver(event, 3).await;
            }
        }
        if !self.is_off.contains("sweep") {
            let rule = ("RuleName", "agents-TeardownFunctionSweep");
            self.metrics.put(Metric::of("AWS/Events", "Invocations", rule), self.minute, 1.0);
            self.invoke(Binary::Teardown, tests::sweep_event(Timestamp::now())).await;
        }
        self.metrics.put_queues(&self.stack.aws().sqs, self.minute, Timestamp::now());
        self.report_logs();
        self.minute += 1;
    }

    /// Does what an event source does. False if there is no message.
    async fn poll(&mut self, queue: &str, binary: Binary) -> bool {
        let (batch, event) = {
            let sqs = &mut self.stack.aws().sqs;
            let batch = sqs.receive(queue, 10, None, Timestamp::now());
            let event = sqs.event(queue, &batch);
            (batch, event)
        };
        if !batch.is_empty()
            && let Some(answer) = self.invoke(binary, event).await
        {
            self.stack.aws().sqs.acknowledge(queue, &batch, &answer);
        }
        !batch.is_empty()
    }

    /// Does what Lambda does with an event: after three failed attempts it goes to the dead-letter queue ("Asynchronous
    /// invocation").
    async fn deliver(&mut self, event: Value, attempts: u32) {
        let is_throttled = self.is_throttled;
        if self.invoke(Binary::TaskState, event.clone()).await.is_some() {
            return;
        }
        match attempts - u32::from(!is_throttled) {
            0 => drop(self.stack.send("events-dead-letters", &event.to_string())),
            left => self.again.push((self.minute + 1, left, event)),
        }
    }

    /// Invokes a function, and reports Lambda's metrics ("Types of metrics for Lambda functions").
    async fn invoke(&mut self, binary: Binary, event: Value) -> Option<Value> {
        let name = binary.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let mut put = |metric: &str, count: bool| {
            let metric = Metric::of("AWS/Lambda", metric, ("FunctionName", &name));
            self.metrics.put(metric, self.minute, f64::from(u8::from(count)));
        };
        put("Throttles", self.is_throttled);
        if self.is_throttled {
            return None;
        }
        let outcome = self.stack.try_invoke(binary, event).await;
        let has_ended = outcome.is_err();
        let answer = outcome.ok().and_then(Result::ok);
        put("Errors", answer.is_none());
        if has_ended {
            self.kill(binary);
        }
        answer
    }

    fn kill(&mut self, binary: Binary) {
        self.report_logs();
        self.stack.kill(binary);
        self.read.remove(&binary);
    }

    /// The metrics on the functions' new log lines.
    fn report_logs(&mut self) {
        for binary in Binary::ALL {
            let output = self.stack.output_of(binary);
            let whole_lines = output.rfind('\n').map_or(0, |end| end + 1);
            let from = std::mem::replace(self.read.entry(binary).or_default(), whole_lines);
            for datum in emf::read(&output[from..whole_lines], None).unwrap() {
                let metric =
                    Metric { namespace: emf::NAMESPACE.into(), name: datum.name, dimensions: datum.dimensions };
                self.metrics.put(metric, self.minute, datum.value);
            }
        }
    }

    /// The alarms that have fired, and when.
    fn fired(&self) -> BTreeMap<String, u64> {
        let fired = alarms().into_iter().filter_map(|(id, alarm)| {
            let minute = cloudwatch::fires(&alarm, &self.metrics, self.minute)?;
            Some((id, minute))
        });
        fired.collect()
    }
}

// --- Metrics that are no outage ---

/// One value in each period of five minutes; `None` if nothing was reported.
type Series<'a> = &'a [Option<f64>];

/// An alarm's state after the last value of each of its metrics.
fn state(alarm: &Value, series: &[(&str, Series<'_>)]) -> cloudwatch::State {
    let mut metrics = Metrics::default();
    for query in alarm["Metrics"].as_array().into_iter().flatten().map(|query| &query["MetricStat"]["Metric"]) {
        let Some(name) = query["MetricName"].as_str() else { continue };
        let (_, values) = series.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}?"));
        for (index, value) in values.iter().enumerate() {
            let Some(value) = *value else { continue };
            let is_count = name == "ready_ms";
            for _ in 0..if is_count { value as usize } else { 1 } {
                metrics.put(Metric::read(query), index as u64 * 5, value);
            }
        }
    }
    cloudwatch::state(alarm, &metrics, series[0].1.len() as u64 * 5)
}

/// One value in each of ten periods.
fn always(value: f64) -> [Option<f64>; 10] {
    [Some(value); 10]
}

/// Nothing reported, and then one value `count` times.
fn lately(count: usize, value: f64) -> [Option<f64>; 10] {
    std::array::from_fn(|at| (at >= 10 - count).then_some(value))
}

const NONE: [Option<f64>; 10] = [None; 10];

#[test]
fn notices_that_jenkins_takes_within_minutes_are_no_outage() {
    let alarm = &alarms()["UndeliveredAlarm"];
    let held = |visible: f64, hidden: f64, taken: Series<'_>| {
        let series = [
            ("ApproximateNumberOfMessagesVisible", &always(visible)[..]),
            ("ApproximateNumberOfMessagesNotVisible", &always(hidden)),
            ("NumberOfMessagesDeleted", taken),
        ];
        state(alarm, &series)
    };
    use cloudwatch::State::{Alarm, Ok};
    // One notice that is tried again and again is hidden nearly always.
    assert_eq!(held(0.1, 0.9, &NONE), Alarm, "one notice, Jenkins is away");
    // 200 agents an hour that are looked at again for a minute each.
    assert_eq!(held(0.2, 3.1, &always(17.0)), Ok, "each stays for a minute");
}

#[test]
fn messages_that_are_looked_at_and_put_back_are_read() {
    for name in ["RequestsUnreadAlarm", "WaitingUnreadAlarm", "CompletionsUnreadAlarm"] {
        let alarm = &alarms()[name];
        let of = |visible: Series<'_>, received: Series<'_>| {
            state(alarm, &[("ApproximateNumberOfMessagesVisible", visible), ("NumberOfMessagesReceived", received)])
        };
        use cloudwatch::State::{Alarm, Ok};
        assert_eq!(of(&always(7.0), &NONE), Alarm, "{name}: nobody asks for them");
        assert_eq!(of(&always(7.0), &always(30.0)), Ok, "{name}: looked at, and put back");
        assert_eq!(of(&lately(2, 7.0), &NONE), Ok, "{name}: ten minutes");
    }
}

#[test]
fn agents_that_fail_are_no_outage_where_more_become_ready() {
    let alarm = &alarms()["AgentsFailAlarm"];
    let of = |failed: Series<'_>, ready: Series<'_>| state(alarm, &[("agents_failed", failed), ("ready_ms", ready)]);
    use cloudwatch::State::{Alarm, Ok};
    assert_eq!(of(&always(2.0), &always(1.0)), Alarm, "most of them fail");
    assert_eq!(of(&always(2.0), &always(20.0)), Ok, "one template of many");
    assert_eq!(of(&lately(2, 2.0), &NONE), Ok, "ten minutes");
    assert_eq!(of(&NONE, &always(20.0)), Ok, "none fails");
}

#[test]
fn every_alarm_notifies_the_topic_and_is_documented_and_on_the_dashboard() {
    let all = alarms();
    let dashboard = TEMPLATE.split("DashboardBody").nth(1).unwrap();
    for (id, alarm) in &all {
        let topic = &alarm["AlarmActions"][0];
        assert_eq!(topic, TOPIC, "{id}");
        assert_eq!(topic, &alarm["OKActions"][0], "{id}");
        assert!(OPERATIONS.contains(&format!("`{id}`")), "docs/operations.md says nothing of {id}");
        let own = TEMPLATE.contains(&format!("  {id}:\n"));
        assert!(!own || dashboard.contains(&format!("${{{id}.Arn}}")), "{id} is not on the dashboard");
    }
    for word in OPERATIONS.split('`').filter(|word| word.ends_with("Alarm") && !word.contains([' ', ':'])) {
        assert!(all.contains_key(word), "docs/operations.md names {word}, which does not exist");
    }
}
