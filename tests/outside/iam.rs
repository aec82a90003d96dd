//! The templates' roles. Every other test runs under them too, and fails where one denies a call; here is what their
//! conditions keep out.

use std::collections::BTreeSet;

use local::aws::Access;
use serde_json::json;
use tests::roles::{Noted, Roles, Used};
use tests::{ACCOUNT, Binary, CLUSTER, REGION, Stack};

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

/// Accesses that no function makes, which the conditions are there to deny.
#[test]
fn the_conditions_keep_out_what_they_are_there_for() {
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

/// Permissions that the functions do not use themselves, each with the reason for which a role has it.
const NOT_THEIRS: [(&str, &str, &str); 5] = [
    ("Log", "logs:CreateLogStream logs:PutLogEvents", "Lambda writes a function's log in its role"),
    ("Requests", "sqs:DeleteMessage sqs:ReceiveMessage", "Lambda polls an event source in the function's role"),
    ("UndeliveredAndWaiting", "sqs:GetQueueAttributes", "the same"),
    ("CompletionsAndWaiting", "sqs:GetQueueAttributes", "the same"),
    ("DeadLetters", "sqs:SendMessage", "Lambda keeps events that failed in all tries"),
];

/// Runs after all other tests, which have noted what they used: `./local/test` does that.
#[test]
#[ignore = "needs the notes of all other tests"]
fn every_permission_is_used_by_a_test_or_says_why_it_is_there() {
    let noted = Noted::take().unwrap();
    // The roles in other accounts hold the same statements, as the next test shows.
    let used: BTreeSet<_> = noted.used.iter().map(|(role, sid, action)| (role.as_str(), sid, action)).collect();
    let anywhere: BTreeSet<_> = used.iter().map(|(_, sid, action)| (*sid, *action)).collect();
    let is_used = |(role, sid, action): &(String, String, String)| match role.as_str() {
        "AgentsRole" => anywhere.contains(&(sid, action)),
        role => used.contains(&(role, sid, action)),
    };
    let is_named = |(_, sid, action): &&(String, String, String)| {
        NOT_THEIRS.iter().any(|(its_sid, actions, _)| its_sid == sid && actions.split(' ').any(|it| it == action))
    };
    let unused: Vec<_> = noted.permissions.iter().filter(|permission| !is_used(permission)).collect();
    let without_reason: Vec<_> = unused.iter().copied().filter(|permission| !is_named(permission)).collect();
    assert!(
        without_reason.is_empty(),
        "take them out of the templates, or say why they are there: {without_reason:#?}"
    );
    for (sid, actions, reason) in NOT_THEIRS {
        for action in actions.split(' ') {
            let is_unused = unused.iter().any(|(_, its_sid, its_action)| its_sid == sid && its_action == action);
            assert!(is_unused, "{sid} {action} is used, or gone: {reason}");
        }
    }
}

#[test]
fn a_role_in_another_account_may_do_what_the_functions_own_roles_may_under_the_same_conditions() {
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
