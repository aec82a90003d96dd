//! The templates from outside: which parameters they accept, when their alarms fire, and that the documents match them.

use std::collections::BTreeMap;

use local::cloudformation::{Stack, words};
use local::iam::Role;
use serde_json::Value;
use tests::roles::{FORWARDING, TEMPLATE};

const PLACE: (&str, &str) = ("eu-west-1", "111122223333");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The required parameters, and all possible ones.
const NEEDED: [(&str, &str); 3] = [
    ("JenkinsUrl", "https://jenkins.example.com/"),
    ("ClusterArns", "arn:aws:ecs:eu-west-1:111122223333:cluster/jenkins"),
    ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:111122223333:task-definition/jenkins-*"),
];
const POSSIBLE: [(&str, &str); 9] = [
    ("TaskRoleArns", "arn:aws:iam::111122223333:role/agent,arn:aws:iam::111122223333:role/ci/agent-*"),
    (
        "AutoScalingGroupArns",
        "arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:*:autoScalingGroupName/jenkins ecs",
    ),
    ("AssumeRoleArns", "arn:aws:iam::444455556666:role/agents"),
    ("EventBusArn", "arn:aws:events:eu-west-1:111122223333:event-bus/ci-agents"),
    ("KmsKeyArn", "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
    ("SubnetIds", "subnet-1,subnet-2"),
    ("SecurityGroupIds", "sg-1"),
    ("Topics", "true"),
    ("AlarmTopicArn", "arn:aws:sns:eu-west-1:111122223333:alarms"),
];

fn stack(parameters: &[(&str, &str)]) -> anyhow::Result<Stack> {
    let others = NEEDED.iter().filter(|(name, _)| parameters.iter().all(|(given, _)| given != name));
    let given: Vec<_> = others.chain(parameters).copied().collect();
    Stack::new(TEMPLATE, PLACE, &given, &[])
}

#[test]
fn parameters_accept_valid_values_and_explain_refusals() {
    stack(&[]).unwrap();
    stack(&POSSIBLE).unwrap();
    for (name, value) in [
        ("JenkinsUrl", "https://jenkins.example.com/ci"),
        (
            "ClusterArns",
            "arn:aws-cn:ecs:cn-north-1:111122223333:cluster/a,arn:aws:ecs:us-east-1:444455556666:cluster/b",
        ),
        ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:111122223333:task-definition/maven:7"),
        ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:111122223333:task-definition/maven:*"),
        ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:111122223333:task-definition/*"),
        ("ConfigParameter", "clouds/linux"),
    ] {
        assert!(stack(&[(name, value)]).is_ok(), "{name}={value}: {:?}", stack(&[(name, value)]).err());
    }
    for (name, value, words) in [
        ("JenkinsUrl", "https://user@jenkins.example.com/", "a URL without user"),
        ("ClusterArns", "", "full ARNs"),
        ("ClusterArns", "jenkins", "full ARNs"),
        ("ClusterArns", "arn:aws:ecs:eu-west-1:111122223333:cluster/*", "without wildcards"),
        ("ClusterArns", "arn:aws:ecs:eu-west-1:*:cluster/jenkins", "with region and account"),
        ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:111122223333:task-definition/maven", "ending with a revision"),
        ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:*:task-definition/maven:*", "region and account"),
        ("TaskDefinitionArns", "maven:7", "ARNs of task definitions"),
        ("TaskRoleArns", "arn:aws:iam::*:role/agent", "with their account"),
        ("AssumeRoleArns", "arn:aws:iam::111122223333:role/*", "without wildcards"),
        ("AutoScalingGroupArns", "jenkins-ecs", "ARNs of Auto Scaling groups"),
        ("KmsKeyArn", "arn:aws:kms:eu-west-1:111122223333:alias/jenkins", "not of its alias"),
        ("EventBusArn", "ci-agents", "ARN of an event bus"),
        ("ConfigParameter", "/other/config", "what follows ParameterPrefix"),
        ("ParameterPrefix", "/jenkins/", "does not end with one"),
        ("AlarmTopicArn", "alarms", "ARN of a topic"),
        ("SubnetIds", "subnet-1", "SubnetIds needs SecurityGroupIds"),
        ("MaximumConcurrency", "1", "MaximumConcurrency"),
        ("Architecture", "arm", "Architecture"),
    ] {
        let refused = stack(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value} is taken"));
        assert!(refused.to_string().contains(words), "{name}={value}: {refused}");
    }
    for template in [TEMPLATE, FORWARDING] {
        let template = local::cloudformation::parse(template).unwrap();
        for (name, declaration) in template["Parameters"].as_object().unwrap() {
            assert!(!declaration["Description"].is_null(), "{name} does not say what it is for");
            let arn = name.contains("Arn");
            assert!(!arn || declaration["ConstraintDescription"].is_string(), "{name} refuses without a sentence");
        }
    }
}

#[test]
fn queues_outlive_the_stack() {
    for template in [TEMPLATE, FORWARDING] {
        let template = local::cloudformation::parse(template).unwrap();
        for (id, resource) in template["Resources"].as_object().unwrap() {
            let keeps = resource["DeletionPolicy"] == "Retain" && resource["UpdateReplacePolicy"] == "Retain";
            assert_eq!(keeps, resource["Type"] == "AWS::SQS::Queue", "{id}");
        }
    }
}

#[test]
fn the_functions_may_send_traces_only_where_they_are_traced() {
    let sends = |tracing| {
        let stack = stack(&[("Tracing", tracing)]).unwrap();
        let allows = |role: &&str| {
            let statements = Role::of(&stack, role).unwrap().statements;
            statements.iter().any(|statement| statement.actions.contains(&"xray:PutTraceSegments".to_owned()))
        };
        ["RequestRole", "TaskStateRole", "TeardownRole"].into_iter().filter(allows).count()
    };
    assert_eq!((sends("PassThrough"), sends("Active")), (0, 3));
    let template = local::cloudformation::parse(TEMPLATE).unwrap();
    assert_eq!(template["Globals"]["Function"]["Tracing"]["Ref"], "Tracing");
    assert!(stack(&[("Tracing", "On")]).is_err());
}

// --- Alarms, as CloudWatch evaluates them ("Using Amazon CloudWatch alarms", "Using math expressions") ---

/// A metric's data points, by its name in the case: one per period, none where nothing was reported.
type Series<'a> = &'a [(&'a str, &'a [Option<f64>])];

#[derive(Debug, PartialEq)]
enum State {
    Fine,
    Alarm,
    Insufficient,
}

/// An alarm's state after the last data point.
fn state(alarm: &Value, series: Series<'_>) -> State {
    let periods = alarm["EvaluationPeriods"].as_u64().unwrap() as usize;
    let length = series[0].1.len();
    let values: Vec<Option<f64>> = (length - periods..length).map(|at| value(alarm, series, at)).collect();
    let threshold = alarm["Threshold"].as_f64().unwrap();
    let breaches = |value: f64| match alarm["ComparisonOperator"].as_str() {
        Some("GreaterThanThreshold") => value > threshold,
        Some("LessThanThreshold") => value < threshold,
        other => panic!("{other:?}"),
    };
    let missing = alarm["TreatMissingData"].as_str().unwrap();
    if missing == "missing" && values.iter().all(Option::is_none) {
        return State::Insufficient;
    }
    let breaching = |value: &Option<f64>| match (value, missing) {
        (Some(value), _) => breaches(*value),
        (None, "breaching") => true,
        (None, "notBreaching" | "missing") => false,
        (None, other) => panic!("{other}"),
    };
    if values.iter().all(breaching) { State::Alarm } else { State::Fine }
}

/// The alarm's value of one period: of its metric, or of its expression over them.
fn value(alarm: &Value, series: Series<'_>, at: usize) -> Option<f64> {
    let of = |name: &str| {
        let found = series.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("the case says nothing of {name}")).1[at]
    };
    let Some(metrics) = alarm["Metrics"].as_array() else { return of(alarm["MetricName"].as_str().unwrap()) };
    let expression = metrics.iter().find_map(|metric| metric["Expression"].as_str()).unwrap();
    let mut known = BTreeMap::new();
    for metric in metrics.iter().filter(|metric| !metric["MetricStat"].is_null()) {
        let name = metric["MetricStat"]["Metric"]["MetricName"].as_str().unwrap();
        known.insert(metric["Id"].as_str().unwrap(), of(name));
    }
    Math { tokens: tokens(expression), at: 0, known }.comparison()
}

fn tokens(expression: &str) -> Vec<String> {
    let spaced = ["(", ")", ",", "+", "==", ">"]
        .iter()
        .fold(expression.to_owned(), |text, sign| text.replace(sign, &format!(" {sign} ")));
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// The part of CloudWatch's metric math that the alarms use. An operation on a missing data point has no result.
struct Math<'a> {
    tokens: Vec<String>,
    at: usize,
    known: BTreeMap<&'a str, Option<f64>>,
}

impl Math<'_> {
    fn next(&mut self) -> String {
        self.at += 1;
        self.tokens[self.at - 1].clone()
    }

    fn take(&mut self, sign: &str) -> bool {
        let taken = self.tokens.get(self.at).is_some_and(|token| token == sign);
        self.at += usize::from(taken);
        taken
    }

    fn comparison(&mut self) -> Option<f64> {
        let left = self.sum();
        for (sign, holds) in [(">", (|a, b| a > b) as fn(f64, f64) -> bool), ("==", |a, b| a == b)] {
            if self.take(sign) {
                let right = self.sum();
                return left.zip(right).map(|(left, right)| f64::from(u8::from(holds(left, right))));
            }
        }
        left
    }

    fn sum(&mut self) -> Option<f64> {
        let mut sum = self.atom();
        while self.take("+") {
            sum = sum.zip(self.atom()).map(|(a, b)| a + b);
        }
        sum
    }

    fn arguments(&mut self) -> Vec<Option<f64>> {
        assert!(self.take("("));
        let mut arguments = vec![self.comparison()];
        while self.take(",") {
            arguments.push(self.comparison());
        }
        assert!(self.take(")"));
        arguments
    }

    fn atom(&mut self) -> Option<f64> {
        match self.next().as_str() {
            "IF" => {
                let arguments = self.arguments();
                if arguments[0]? == 0.0 { arguments[2] } else { arguments[1] }
            }
            "FILL" => {
                let arguments = self.arguments();
                arguments[0].or(arguments[1])
            }
            token => match token.parse() {
                Ok(number) => Some(number),
                Err(_) => *self.known.get(token).unwrap_or_else(|| panic!("{token} is not understood")),
            },
        }
    }
}

const VISIBLE: &str = "ApproximateNumberOfMessagesVisible";
const HIDDEN: &str = "ApproximateNumberOfMessagesNotVisible";
const DELAYED: &str = "ApproximateNumberOfMessagesDelayed";
const RECEIVED: &str = "NumberOfMessagesReceived";
const DELETED: &str = "NumberOfMessagesDeleted";

/// One value in each of ten periods.
fn always(value: f64) -> [Option<f64>; 10] {
    [Some(value); 10]
}

/// Nothing reported, and then one value `count` times.
fn lately(count: usize, value: f64) -> [Option<f64>; 10] {
    std::array::from_fn(|at| (at >= 10 - count).then_some(value))
}

fn alarms() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let possible: Vec<_> = NEEDED.iter().chain(&POSSIBLE).copied().collect();
    let forwarding = [
        NEEDED[1],
        ("TargetEventBusArn", "arn:aws:events:us-east-1:111122223333:event-bus/default"),
        ("AlarmTopicArn", "arn:aws:sns:eu-west-1:111122223333:alarms"),
    ];
    for (template, given) in [(TEMPLATE, &possible[..]), (FORWARDING, &forwarding[..])] {
        let stack = Stack::new(template, PLACE, given, &[]).unwrap();
        for id in stack.of_type("AWS::CloudWatch::Alarm").unwrap() {
            all.push((id.to_owned(), stack.properties(id).unwrap()));
        }
    }
    all
}

fn alarm(name: &str) -> Value {
    alarms().into_iter().find(|(id, _)| id == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn each_alarm_fires_only_on_its_cause() {
    for name in [
        "RequestsDeadLettersAlarm",
        "UndeliveredDeadLettersAlarm",
        "CompletionsDeadLettersAlarm",
        "EventsDeadLettersAlarm",
        "RejectedAlarm",
        "DeadLettersAlarm",
    ] {
        let alarm = alarm(name);
        assert_eq!(state(&alarm, &[(VISIBLE, &lately(0, 0.0))]), State::Fine, "{name}: a queue that is never used");
        assert_eq!(state(&alarm, &[(VISIBLE, &always(0.0))]), State::Fine, "{name}");
        assert_eq!(state(&alarm, &[(VISIBLE, &lately(1, 1.0))]), State::Alarm, "{name}: one message");
    }
    for name in ["RequestErrorsAlarm", "TaskStateErrorsAlarm", "TeardownErrorsAlarm"] {
        let alarm = alarm(name);
        assert_eq!(state(&alarm, &[("Errors", &lately(2, 1.0))]), State::Fine, "{name}: ten minutes");
        assert_eq!(state(&alarm, &[("Errors", &lately(3, 1.0))]), State::Alarm, "{name}: fifteen minutes");
        assert_eq!(state(&alarm, &[("Errors", &lately(0, 0.0))]), State::Fine, "{name}: nobody invokes it");
    }
    for name in ["RequestThrottlesAlarm", "TaskStateThrottlesAlarm", "TeardownThrottlesAlarm"] {
        let alarm = alarm(name);
        assert_eq!(state(&alarm, &[("Throttles", &lately(3, 5.0))]), State::Alarm, "{name}");
        assert_eq!(state(&alarm, &[("Throttles", &always(0.0))]), State::Fine, "{name}");
    }
}

#[test]
fn the_undelivered_alarm_fires_in_an_outage_and_not_on_a_busy_day() {
    let alarm = alarm("UndeliveredAlarm");
    let held = |visible: f64, hidden: f64, taken: &[Option<f64>; 10]| {
        state(
            &alarm,
            &[(VISIBLE, &always(visible)), (HIDDEN, &always(hidden)), (DELAYED, &always(0.0)), (DELETED, taken)],
        )
    };
    assert_eq!(held(0.0, 0.0, &always(0.0)), State::Fine, "nothing to report");
    // A notice that is retried again and again is nearly always hidden, and was received often: its age does not show.
    assert_eq!(held(0.1, 0.9, &always(0.0)), State::Alarm, "one notice, Jenkins is away");
    assert_eq!(held(3.0, 400.0, &lately(0, 0.0)), State::Alarm, "no count of what was taken");
    // 200 agents an hour that are looked at again for a minute each.
    assert_eq!(held(0.2, 3.1, &always(17.0)), State::Fine, "each stays for a minute");
    let outage = |minutes: usize| {
        let lies: [_; 10] = std::array::from_fn(|at| Some(if at >= 10 - minutes / 5 { 40.0 } else { 0.0 }));
        let taken = always(0.0);
        state(&alarm, &[(VISIBLE, &lies), (HIDDEN, &always(0.0)), (DELAYED, &always(0.0)), (DELETED, &taken)])
    };
    assert_eq!((outage(25), outage(30)), (State::Fine, State::Alarm), "a restart of Jenkins is no alarm");
    let new = lately(0, 0.0);
    let of_new = state(&alarm, &[(VISIBLE, &new), (HIDDEN, &new), (DELAYED, &new), (DELETED, &new)]);
    assert_eq!(of_new, State::Fine, "a new stack");
}

#[test]
fn messages_that_nobody_receives_raise_an_alarm() {
    for name in ["RequestsUnreadAlarm", "WaitingUnreadAlarm", "CompletionsUnreadAlarm"] {
        let alarm = alarm(name);
        let of = |visible: &[Option<f64>; 10], received: &[Option<f64>; 10]| {
            state(&alarm, &[(VISIBLE, visible), (RECEIVED, received)])
        };
        assert_eq!(of(&always(7.0), &always(0.0)), State::Alarm, "{name}: the event source is off");
        assert_eq!(of(&always(7.0), &lately(0, 0.0)), State::Alarm, "{name}: and nothing is counted");
        assert_eq!(of(&always(7.0), &always(30.0)), State::Fine, "{name}: looked at, and put back");
        assert_eq!(of(&always(0.0), &always(0.0)), State::Fine, "{name}: empty");
        assert_eq!(of(&lately(0, 0.0), &lately(0, 0.0)), State::Fine, "{name}: a new stack");
        assert_eq!(of(&lately(2, 7.0), &always(0.0)), State::Fine, "{name}: ten minutes");
    }
}

#[test]
fn agents_that_fail_raise_an_alarm_where_fewer_become_ready() {
    let alarm = alarm("AgentsFailAlarm");
    let of = |failed: &[Option<f64>; 10], ready: &[Option<f64>; 10]| {
        state(&alarm, &[("agents_failed", failed), ("ready_ms", ready)])
    };
    let nothing = lately(0, 0.0);
    assert_eq!(of(&always(2.0), &nothing), State::Alarm, "an image that does not exist");
    assert_eq!(of(&always(2.0), &always(1.0)), State::Alarm, "most of them fail");
    assert_eq!(of(&always(2.0), &always(20.0)), State::Fine, "one template of many");
    assert_eq!(of(&lately(2, 2.0), &nothing), State::Fine, "ten minutes");
    assert_eq!(of(&nothing, &always(20.0)), State::Fine, "none fails");
    assert_eq!(of(&nothing, &nothing), State::Fine, "nobody asks, or there are no metrics");
}

#[test]
fn the_sweeps_alarm_fires_when_the_sweep_stops_and_not_on_a_new_stack() {
    let alarm = alarm("SweepAlarm");
    let runs = |invocations: &[Option<f64>; 10]| state(&alarm, &[("Invocations", invocations)]);
    // An alarm begins with insufficient data, and acts only where its state changes.
    assert_eq!(runs(&lately(0, 0.0)), State::Insufficient, "a new stack, and a rule that has stopped");
    assert_eq!(runs(&lately(1, 1.0)), State::Fine, "the first minute");
    assert_eq!(runs(&always(1.0)), State::Fine);
    assert!(alarm["InsufficientDataActions"].is_array(), "{alarm}");
}

#[test]
fn every_alarm_notifies_the_topic_and_is_documented_and_on_the_dashboard() {
    let all = alarms();
    let dashboard = TEMPLATE.split("DashboardBody").nth(1).unwrap();
    for (id, alarm) in &all {
        let topic = &alarm["AlarmActions"][0];
        assert_eq!(topic, "arn:aws:sns:eu-west-1:111122223333:alarms", "{id}");
        assert_eq!(topic, &alarm["OKActions"][0], "{id}");
        assert!(OPERATIONS.contains(&format!("`{id}`")), "docs/operations.md says nothing of {id}");
        let own = TEMPLATE.contains(&format!("  {id}:\n"));
        assert!(!own || dashboard.contains(&format!("${{{id}.Arn}}")), "{id} is not on the dashboard");
    }
    for word in OPERATIONS.split('`').filter(|word| word.ends_with("Alarm") && !word.contains([' ', ':'])) {
        assert!(all.iter().any(|(id, _)| id == word), "docs/operations.md names {word}, which does not exist");
    }
}

// --- The dashboard ---

/// All sources of the functions.
fn sources() -> String {
    fn read(folder: &std::path::Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.extension() {
                Some(extension) if extension == "rs" => all.push_str(&std::fs::read_to_string(&entry).unwrap()),
                None if entry.is_dir() => read(&entry, all),
                _ => {}
            }
        }
    }
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut all = String::new();
    for folder in ["shared/src", "functions/request/src", "functions/task-state/src", "functions/teardown/src"] {
        read(&root.join(folder), &mut all);
    }
    all
}

fn widgets() -> Vec<Value> {
    let body = stack(&[]).unwrap().properties("Dashboard").unwrap()["DashboardBody"].as_str().unwrap().to_owned();
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    body["widgets"].as_array().unwrap().clone()
}

/// The grid is 24 wide ("Dashboard Body Structure and Syntax").
#[test]
fn the_dashboards_widgets_fill_its_grid_without_overlap() {
    let mut taken = std::collections::BTreeSet::new();
    let mut bottom = 0;
    for widget in widgets() {
        let [x, y, width, height] = ["x", "y", "width", "height"].map(|key| widget[key].as_u64().unwrap());
        assert!(width > 0 && x + width <= 24, "{widget}");
        bottom = bottom.max(y + height);
        let cells = (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y)));
        for cell in cells {
            assert!(taken.insert(cell), "{cell:?} twice: {widget}");
        }
        assert!(widget["type"] == "text" || widget["properties"]["title"].is_string(), "{widget}");
        assert!(
            ["text", "alarm"].iter().any(|kind| widget["type"] == *kind)
                || widget["properties"]["region"] == "eu-west-1"
        );
    }
    assert_eq!(taken.len() as u64, 24 * bottom, "there are holes");
}

/// The text between two marks, wherever it occurs.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Vec<&'a str> {
    text.split(begin).skip(1).map(|rest| rest.split(end).next().unwrap()).collect()
}

#[test]
fn the_dashboard_looks_for_messages_and_metrics_that_are_logged() {
    let sources = sources();
    let dashboard = Value::from(widgets()).to_string();
    let mut messages = between(&dashboard, "message = '", "'");
    messages
        .extend(between(&dashboard, "message in [", "]").iter().flat_map(|list| list.trim_matches('\'').split("', '")));
    assert!(messages.len() > 6, "{messages:?}");
    for message in messages {
        let logged = [",", "\n", ")"].iter().any(|end| sources.contains(&format!("\"{message}\"{end}")));
        assert!(logged, "nobody logs {message:?}");
    }
    assert_eq!(sources.matches("\"group raised\"\n").count(), 2, "request and the sweep raise groups");
    let searched = between(&dashboard, r#"MetricName=\""#, r#"\""#);
    let own = between(&dashboard, r#""jenkins-ecs-agents/agents",""#, r#"""#);
    assert!(searched.len() > 6 && own.len() > 6, "{searched:?} {own:?}: {dashboard}");
    for metric in searched.into_iter().chain(own) {
        let is_counted = sources.contains(&format!("metric.{metric} ="));
        assert!(is_counted, "nothing counts {metric}");
        assert!(OPERATIONS.contains(&format!("`{metric}`")), "docs/operations.md says nothing of {metric}");
    }
}

#[test]
fn every_metric_has_its_row_in_the_table() {
    for metric in between(&sources(), " metric.", " =")
        .into_iter()
        .filter(|name| !name.contains(|c: char| c != '_' && !c.is_ascii_lowercase()))
    {
        assert!(OPERATIONS.contains(&format!("`{metric}`")), "docs/operations.md says nothing of {metric}");
    }
}

// --- The table of permissions in docs/security.md ---

/// One line for each statement of each role: what, on what, under which condition, and why.
fn permissions() -> String {
    let template = local::cloudformation::parse(TEMPLATE).unwrap();
    let mut lines =
        vec!["| role | statement | actions | resources | condition |".to_owned(), "|---|---|---|---|---|".into()];
    for (id, policies) in [
        ("CommonPolicy", vec![&template["Resources"]["CommonPolicy"]["Properties"]["PolicyDocument"]]),
        ("RequestRole", inline(&template, "RequestRole")),
        ("TaskStateRole", inline(&template, "TaskStateRole")),
        ("TeardownRole", inline(&template, "TeardownRole")),
        ("JenkinsPolicy", vec![&template["Resources"]["JenkinsPolicy"]["Properties"]["PolicyDocument"]]),
    ] {
        for statement in policies.iter().flat_map(|policy| policy["Statement"].as_array().unwrap()) {
            // A statement under a condition of the template is the second of three.
            let statement = statement["Fn::If"].get(1).unwrap_or(statement);
            let [actions, resources] = [&statement["Action"], &statement["Resource"]].map(words);
            let condition = statement["Condition"].as_object().into_iter().flatten().flat_map(|(operator, keys)| {
                let keys = keys.as_object().unwrap().iter();
                keys.map(move |(key, value)| format!("`{key}` {} {}", operator.replace(':', " "), words(value)))
            });
            let conditions: Vec<_> = condition.collect();
            let condition = if conditions.is_empty() { "none".to_owned() } else { conditions.join(" and ") };
            let sid = statement["Sid"].as_str().unwrap();
            lines.push(format!("| {id} | {sid} | {actions} | {resources} | {condition} |"));
        }
    }
    lines.join("\n")
}

fn inline<'a>(template: &'a Value, role: &str) -> Vec<&'a Value> {
    let policies = template["Resources"][role]["Properties"]["Policies"].as_array().unwrap();
    policies.iter().map(|policy| &policy["PolicyDocument"]).collect()
}

/// `UPDATE_DOCS=1` writes the table anew.
#[test]
fn the_table_of_permissions_matches_the_template() {
    const BEGIN: &str = "<!-- permissions: made from template.yaml; do not edit -->\n";
    const END: &str = "\n<!-- end -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let wanted = permissions();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(found, wanted, "run this test with UPDATE_DOCS=1, and read the difference");
    }
}

// --- The saved query ---

/// The query finds a request in all logs, by fields that the lines have.
#[test]
fn the_saved_query_looks_through_all_logs_for_ids_that_lines_carry() {
    let template = local::cloudformation::parse(TEMPLATE).unwrap();
    let resources = template["Resources"].as_object().unwrap();
    let logs = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::Logs::LogGroup");
    let logs: Vec<_> = logs.map(|(id, _)| serde_json::json!({"Ref": id})).collect();
    let query = &resources["StoryQuery"]["Properties"];
    let searched = query["LogGroupNames"].as_array().unwrap();
    assert!(logs.len() == 3 && logs.iter().all(|log| searched.contains(log)), "{searched:?}");
    let text = query["QueryString"].as_str().unwrap();
    let spans = include_str!("../../shared/src/span.rs");
    for field in ["request.id", "agent.name", "task.arn"] {
        assert!(text.contains(field) && spans.contains(&format!("{field} = self.")), "{field}");
    }
}
