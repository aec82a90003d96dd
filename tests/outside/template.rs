//! The templates from outside: which parameters they accept, and that the documents match them.

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
pub(crate) const POSSIBLE: [(&str, &str); 10] = [
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
    ("Tracing", "Active"),
    ("Topics", "true"),
    ("AlarmTopicArn", "arn:aws:sns:eu-west-1:111122223333:alarms"),
];

pub(crate) fn stack(parameters: &[(&str, &str)]) -> anyhow::Result<Stack> {
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
        ("AgentNamePrefix", "ecs-16characters"),
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
        ("AgentNamePrefix", "ecs-17-characters", "AgentNamePrefix"),
        ("MaximumConcurrency", "1", "MaximumConcurrency"),
        ("LogLevel", "FATAL", "LogLevel"),
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

// --- The dashboard ---

/// All sources of the functions.
pub(crate) fn sources() -> String {
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
    widgets_of(&stack(&[]).unwrap())
}

fn widgets_of(stack: &Stack) -> Vec<Value> {
    let body = stack.properties("Dashboard").unwrap()["DashboardBody"].as_str().unwrap().to_owned();
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    body["widgets"].as_array().unwrap().clone()
}

#[test]
fn without_metrics_there_is_no_alarm_on_them_either() {
    for (metrics, is_there) in [("none", false), ("stack", true), ("templates", true)] {
        let stack = stack(&[("Metrics", metrics)]).unwrap();
        let alarms = stack.of_type("AWS::CloudWatch::Alarm").unwrap();
        let widgets = Value::from(widgets_of(&stack)).to_string();
        for alarm in ["AgentsFailAlarm", "StartsFailAlarm", "AgentsWaitAlarm"] {
            assert_eq!(alarms.contains(&alarm), is_there, "{alarm}: {metrics}");
            assert_eq!(widgets.contains(alarm), is_there, "{alarm}: {metrics}");
        }
    }
    let template = local::cloudformation::parse(TEMPLATE).unwrap();
    let variables = &template["Globals"]["Function"]["Environment"]["Variables"];
    for (variable, condition) in [("METRICS_NAMESPACE", "HasMetrics"), ("METRICS_BY_TEMPLATE", "HasTemplateMetrics")] {
        assert_eq!(variables[variable]["Fn::If"][0], condition);
    }
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
    let sources = sources();
    let is_name = |name: &&str| !name.contains(|c: char| c != '_' && !c.is_ascii_lowercase());
    let metrics: std::collections::BTreeSet<_> =
        between(&sources, " metric.", " =").into_iter().filter(is_name).collect();
    for metric in &metrics {
        assert!(OPERATIONS.contains(&format!("`{metric}`")), "docs/operations.md says nothing of {metric}");
    }
    let details = between(&sources, "const DETAILS: [&str; ", "]")[0].parse::<usize>().unwrap();
    let by_default = metrics.len() - details;
    assert!(OPERATIONS.contains(&format!("| {by_default} for the whole stack;")), "{by_default} by default");
    assert!(OPERATIONS.contains(&format!("| those and {details} more;")), "{details} more by template");
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

/// `UPDATE_DOCS=1` writes the table again.
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
