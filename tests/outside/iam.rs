//! The templates' roles. Every other test runs under them too, and fails if one denies a call; these tests check what
//! the conditions deny.

use std::collections::BTreeSet;

use local::aws::Access;
use local::iam::Role;
use serde_json::json;
use tests::roles::{Noted, Roles, Used};
use tests::{ACCOUNT, Binary, CLUSTER, REGION, Stack};

use crate::template;

const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd";

#[tokio::test]
async fn a_task_in_our_cluster_that_is_not_ours_is_refused_by_the_role() {
    let mut stack = Stack::start().await;
    stack.agent("lookalike", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    for tags in [&[][..], &[("jenkins-ecs-agents:controller", "https://other.example.com/")]] {
        let tags = tags.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        stack.aws().ecs.task_mut(&arn).unwrap().tags = tags;
        stack.complete(json!({"taskArn": arn}));
        stack.settle().await;
        assert!(stack.bodies("completions").is_empty());
    }
    assert_eq!((stack.active_tasks().len(), stack.rejected().len()), (1, 2));
    assert_eq!(stack.seen().denied.len(), 1, "of the task with another controller's tag: {:#?}", stack.seen().denied);
    stack.allow_denials();
}

/// Accesses that no function makes, which the conditions have to deny.
#[test]
fn the_roles_conditions_deny_foreign_access() {
    let config = tests::configuration("https://jenkins.example.com/", "https://jenkins.example.com/notices");
    let roles = Roles::deployed(&config, Some(KEY)).unwrap();
    let task = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{CLUSTER}/0123");
    let instance = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:container-instance/{CLUSTER}/0123");
    let ours = ("aws:ResourceTag/jenkins-ecs-agents:controller", "https://jenkins.example.com/");
    let cluster = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{CLUSTER}");
    let of_cluster = ("ecs:cluster", cluster.as_str());
    let definition = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/jenkins-maven:3");
    let foreign = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/payments:3");
    let passed = ("iam:PassedToService", "ecs-tasks.amazonaws.com");
    let admin = format!("arn:aws:iam::{ACCOUNT}:role/admin");
    let agent = format!("arn:aws:iam::{ACCOUNT}:role/agent");
    let (through_ssm, through_s3) = ("ssm.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com");
    let controller = "jenkins-ecs-agents:controller";
    let set_by_us = ("aws:RequestTag/jenkins-ecs-agents:controller", "https://jenkins.example.com/");
    let set_by_others = ("aws:RequestTag/jenkins-ecs-agents:controller", "https://other.example.com/");
    let creating = ("ecs:CreateAction", "RunTask");
    let tag_key = "aws:TagKeys";
    type Case<'a> = (Binary, &'a str, &'a str, &'a [(&'a str, &'a str)], bool);
    let cases: [Case<'_>; 18] = [
        (Binary::Teardown, "ecs:StopTask", &task, &[ours], true),
        (Binary::Teardown, "ecs:StopTask", &task, &[(ours.0, "https://other.example.com/")], false),
        (Binary::TaskState, "ecs:TagResource", &task, &[ours, (tag_key, "jenkins-ecs-agents:reported")], true),
        (Binary::TaskState, "ecs:TagResource", &task, &[ours, (tag_key, controller)], false),
        (Binary::TaskState, "ecs:UntagResource", &task, &[ours, (tag_key, controller)], false),
        (Binary::Teardown, "ecs:TagResource", &task, &[ours, (tag_key, "team")], false),
        (Binary::Teardown, "ecs:UntagResource", &task, &[ours, (tag_key, "jenkins-ecs-agents:keep")], false),
        (Binary::Teardown, "ecs:TagResource", &instance, &[(tag_key, "team")], false),
        (Binary::Request, "ecs:TagResource", &task, &[creating, set_by_us, (tag_key, controller)], true),
        (Binary::Request, "ecs:TagResource", &task, &[creating, set_by_others, (tag_key, controller)], false),
        (Binary::Request, "ecs:TagResource", &task, &[set_by_us, (tag_key, controller)], false),
        (Binary::Request, "ecs:RunTask", &definition, &[of_cluster], true),
        (Binary::Request, "ecs:RunTask", &foreign, &[of_cluster], false),
        (Binary::Request, "iam:PassRole", &agent, &[passed], true),
        (Binary::Request, "iam:PassRole", &admin, &[passed], false),
        (Binary::Request, "iam:PassRole", &agent, &[("iam:PassedToService", "ec2.amazonaws.com")], false),
        (Binary::Request, "kms:Decrypt", KEY, &[("kms:ViaService", through_ssm)], true),
        (Binary::Request, "kms:Decrypt", KEY, &[("kms:ViaService", through_s3)], false),
    ];
    for (binary, action, resource, keys, allowed) in cases {
        let keys = keys.iter().map(|&(key, value)| (key.to_owned(), vec![value.to_owned()])).collect();
        let access = Access { action: action.into(), resource: resource.into(), keys };
        let decided = roles.decide(binary.access_key(), std::slice::from_ref(&access), &mut Used::new());
        assert_eq!(decided.is_ok(), allowed, "{binary:?} {access:?}: {decided:?}");
    }
}

/// Permissions that the functions do not use themselves: role, statement, actions, resource, and why the role has them.
const NOT_THEIRS: [(&str, &str, &str, &str, &str); 7] = [
    ("RequestRole", "Log", "logs:CreateLogStream logs:PutLogEvents", "RequestLog", LOGS),
    ("TaskStateRole", "Log", "logs:CreateLogStream logs:PutLogEvents", "TaskStateLog", LOGS),
    ("TeardownRole", "Log", "logs:CreateLogStream logs:PutLogEvents", "TeardownLog", LOGS),
    ("RequestRole", "Requests", "sqs:DeleteMessage sqs:ReceiveMessage", "RequestsQueue", POLLS),
    ("TaskStateRole", "Undelivered", POLLING, "UndeliveredQueue", POLLS),
    ("TeardownRole", "Completions", POLLING, "CompletionsQueue", POLLS),
    ("TaskStateRole", "DeadLetters", "sqs:SendMessage", "EventsDeadLetters", KEEPS),
];
const KEEPS: &str = "Lambda keeps events on which the function failed in all attempts";
const LOGS: &str = "Lambda writes a function's log in its role";
const POLLS: &str = "Lambda polls an event source in the function's role";
const POLLING: &str = "sqs:DeleteMessage sqs:GetQueueAttributes sqs:ReceiveMessage";

/// Statements that the roles of the tests do not have: each with its actions and why nothing in the tests could use it.
const LAMBDAS_OWN: [(&str, &str, &str); 2] = [
    (
        "Vpc",
        "ec2:AssignPrivateIpAddresses ec2:CreateNetworkInterface ec2:DeleteNetworkInterface ec2:DescribeNetworkInterfaces \
         ec2:DescribeSubnets ec2:UnassignPrivateIpAddresses",
        "Lambda connects functions to a VPC in their role",
    ),
    (
        "Traces",
        "xray:PutTelemetryRecords xray:PutTraceSegments",
        "Lambda's X-Ray daemon sends traces in the function's role",
    ),
];

#[test]
fn the_roles_of_the_tests_have_every_statement_that_a_function_uses() {
    let mut config = tests::configuration("https://jenkins.example.com/", "https://jenkins.example.com/notices");
    config["eventBus"] = "ci-agents".into();
    config["clouds"][0]["assumeRoleArn"] = "arn:aws:iam::999999999999:role/agents".into();
    config["clouds"][1]["autoScalingGroup"] = "another".into();
    let permissions = Roles::deployed(&config, Some(KEY)).unwrap().permissions();
    let tested: BTreeSet<_> = permissions.into_iter().map(|(role, sid, _)| (role, sid)).collect();
    let all = template::stack(&template::POSSIBLE).unwrap();
    for binary in Binary::ALL {
        let statements = Role::of(&all, binary.role()).unwrap().statements;
        let untested: BTreeSet<_> = statements
            .iter()
            .filter(|statement| !tested.contains(&(binary.role().to_owned(), statement.sid.clone())))
            .map(|statement| (statement.sid.as_str(), statement.actions.join(" ")))
            .collect();
        let lambdas = LAMBDAS_OWN.iter().map(|&(sid, actions, _)| (sid, actions.to_owned())).collect();
        assert_eq!(untested, lambdas, "{binary:?}");
    }
}

/// Runs after all other tests, which have recorded what they used: `./local/test` does that.
#[test]
#[ignore = "needs the notes of all other tests"]
fn every_permission_is_used_by_a_test_or_has_a_reason() {
    let Noted { permissions, used } = Noted::take().unwrap();
    // The roles in other accounts have the same statements, as the next test shows.
    let anywhere: BTreeSet<_> = used.iter().map(|(_, sid, what)| (sid, what)).collect();
    let is_used = |permission: &&(String, String, String)| match permission {
        (role, sid, what) if role == "AgentsRole" => anywhere.contains(&(sid, what)),
        own => used.contains(own),
    };
    let unused: Used = permissions.iter().filter(|permission| !is_used(permission)).cloned().collect();
    let not_theirs = NOT_THEIRS.iter().flat_map(|(role, sid, actions, resource, _)| {
        actions.split(' ').map(move |action| ((*role).into(), (*sid).into(), format!("{action} on {resource}")))
    });
    let not_theirs: Used = not_theirs.collect();
    let without_reason: Vec<_> = unused.difference(&not_theirs).collect();
    assert!(
        without_reason.is_empty(),
        "take them out of the templates, or say why they are there: {without_reason:#?}"
    );
    let without_need: Vec<_> = not_theirs.difference(&unused).collect();
    assert!(without_need.is_empty(), "these are used, or gone: {without_need:#?}");
}

#[test]
fn a_role_in_another_account_has_the_permissions_of_the_functions_roles() {
    let mut config = tests::configuration("https://jenkins.example.com/", "https://jenkins.example.com/notices");
    config["clouds"][0]["assumeRoleArn"] = "arn:aws:iam::999999999999:role/agents".into();
    config["clouds"][1]["autoScalingGroup"] = "another".into();
    let roles = Roles::deployed(&config, None).unwrap();
    assert!(roles.twins().count() > 10);
    for (statement, own) in roles.twins() {
        for action in &statement.actions {
            let twin = own.iter().find(|own| own.actions.contains(action));
            assert!(twin.is_some_and(|twin| statement.is_as_narrow_as(twin)), "{action} of {statement:?}");
        }
    }
}
