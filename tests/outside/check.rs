//! The check.

use local::aws::Fault;
use local::jenkins::{Permission, User};
use serde_json::{Value, json};
use tests::{Binary, CLUSTER, GROUP, REGION, Stack};

async fn check(stack: &mut Stack) -> Value {
    stack.invoke(Binary::Request, json!({"check": {}})).await.unwrap()
}

/// Everything in the report that has an `ok`.
fn items(report: &Value) -> Vec<&Value> {
    let children: Vec<&Value> = match report {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    let own = report.get("ok").filter(|ok| ok.is_boolean()).map(|_| report);
    own.into_iter().chain(children.into_iter().flat_map(items)).collect()
}

/// The faults as texts: only the innermost items.
fn faults(report: &Value) -> Vec<String> {
    let wrong = items(report).into_iter().filter(|item| item["ok"] == false);
    wrong.filter(|item| items(item).len() == 1).map(Value::to_string).collect()
}

#[tokio::test]
async fn reports_what_it_found_and_changes_nothing() {
    let mut stack = Stack::start().await;
    let report = check(&mut stack).await;
    assert_eq!(faults(&report), Vec::<String>::new());
    let text = report.to_string();
    for found in ["123456789012", CLUSTER, GROUP, "jenkins-maven", "agent", "awsvpc", "bridge", "ecs-agents"] {
        assert!(text.contains(found), "{found}: {report:#}");
    }
    for queue in ["REQUESTS", "WAITING", "UNDELIVERED", "REJECTED", "COMPLETIONS"] {
        let url = stack.env(&format!("{queue}_QUEUE_URL"));
        assert!(text.contains(url), "{url}: {report:#}");
    }
    for call in stack.calls() {
        let action = call.split(':').nth(1).unwrap();
        assert!(["Get", "List", "Describe"].iter().any(|verb| action.starts_with(verb)), "{call}");
    }
    for exchange in stack.jenkins().exchanges() {
        // It checks an empty name, to find out whether it may post.
        let is_check = exchange.target.ends_with("/computer/checkName?value=");
        assert!(exchange.method == http::Method::GET || is_check, "{exchange:?}");
    }
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn finds_each_fault_and_says_how_to_fix_it() {
    type Case = (&'static str, fn(&mut Value), &'static str);
    let cases: [Case; 10] = [
        ("no cluster", |config| config["clouds"][0]["cluster"] = "gone".into(), "gone"),
        ("no group", |config| config["clouds"][0]["autoScalingGroup"] = "no-group".into(), "no-group"),
        (
            "no task definition",
            |config| config["clouds"][0]["templates"][0]["taskDefinition"] = "nothing".into(),
            "taskDefinition",
        ),
        (
            "no such revision",
            |config| config["clouds"][0]["templates"][0]["taskDefinition"] = "jenkins-maven:9".into(),
            "taskDefinition",
        ),
        ("no such container", |config| config["clouds"][0]["templates"][0]["container"] = "agnet".into(), "agnet"),
        ("no port", |config| config["clouds"][0]["templates"][0]["ssh"]["port"] = 2022.into(), "2022"),
        (
            "bridge on Fargate",
            |config| config["clouds"][1]["templates"][0]["taskDefinition"] = "jenkins-maven".into(),
            "awsvpc",
        ),
        (
            "awsvpc without a network",
            |config| config["clouds"][0]["templates"][0]["taskDefinition"] = "jenkins-node".into(),
            "network",
        ),
        (
            "not the only essential container",
            |config| {
                config["clouds"][0]["templates"][0].as_object_mut().unwrap().remove("container");
            },
            "essential",
        ),
        ("a user that Jenkins does not know", |config| config["jenkins"]["user"] = "nobody".into(), "jenkins.user"),
    ];
    for (case, change, word) in cases {
        let mut stack = Stack::with(change).await;
        let report = check(&mut stack).await;
        let faults = faults(&report);
        assert!(!faults.is_empty(), "{case}: {report:#}");
        assert!(faults.iter().any(|fault| fault.contains(word)), "{case}: {faults:#?}");
        assert!(faults.iter().all(|fault| fault.contains("mend") || fault.len() > 60), "{case}: {faults:#?}");
        assert_eq!(report["ok"], false, "{case}");
    }
}

#[tokio::test]
async fn finds_faults_outside_aws() {
    // A queue.
    let mut stack = Stack::start().await;
    stack.allow_denials();
    let url = format!("{}s", stack.env("WAITING_QUEUE_URL"));
    stack.set_env("WAITING_QUEUE_URL", Some(&url));
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("WAITING_QUEUE_URL")), "{found:#?}");

    // Jenkins.
    let mut stack = Stack::start().await;
    stack.jenkins_goes_down();
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("jenkins")), "{found:#?}");

    // The token.
    let mut stack = Stack::start().await;
    stack.jenkins().add_user("ecs-agents", "another", Permission::FOR_AGENTS);
    let found = faults(&check(&mut stack).await);
    assert!(
        found.iter().any(|fault| fault.contains("jenkins.apiToken") || fault.contains("jenkins.user")),
        "{found:#?}"
    );
    assert!(!format!("{found:?}{}", stack.output()).contains(tests::API_TOKEN));

    // Permissions.
    for missing in [Permission::Read, Permission::Create, Permission::Connect] {
        let mut stack = Stack::start().await;
        let granted = Permission::FOR_AGENTS.into_iter().filter(|permission| {
            // Disconnect implies Connect.
            *permission != missing && !(missing == Permission::Connect && *permission == Permission::Disconnect)
        });
        stack.jenkins().add_user("ecs-agents", tests::API_TOKEN, granted);
        let found = faults(&check(&mut stack).await);
        assert!(found.iter().any(|fault| fault.contains(&missing.title())), "{missing:?}: {found:#?}");
    }
}

/// Another URL for the same controller.
fn move_jenkins(config: &mut Value, from: &str, to: &str) {
    for url in ["/jenkins/url", "/jenkins/webhook/url"] {
        let url = config.pointer_mut(url).unwrap();
        *url = format!("{}/", url.as_str().unwrap()).replace(from, to).trim_end_matches('/').into();
    }
}

#[tokio::test]
async fn finds_faults_that_jenkins_hides() {
    // A password reads and cannot post.
    let mut stack = Stack::start().await;
    let password = User {
        api_token: None,
        password: Some(tests::API_TOKEN.into()),
        permissions: Permission::FOR_AGENTS.into_iter().collect(),
    };
    stack.jenkins().set_user("ecs-agents", password);
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("jenkins.apiToken") && fault.contains("password")), "{found:#?}");

    // createItem drops the launcher and answers 200.
    let mut stack = Stack::start().await;
    stack.jenkins().remove_plugin("ssh-slaves");
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("install the plugin ssh-slaves")), "{found:#?}");

    // Jenkins answers under a URL that its webhooks do not begin with.
    let mut stack = Stack::with(|config| move_jenkins(config, "127.0.0.1", "localhost")).await;
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("holds http://127.0.0.1")), "{found:#?}");

    // A server without Jenkins at this path.
    let mut stack = Stack::with(|config| move_jenkins(config, "/ci/", "/elsewhere/")).await;
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("not at this path") && !fault.contains("VPC")), "{found:#?}");
}

#[tokio::test]
async fn asks_for_the_webhook_step_where_no_other_webhook_is_configured() {
    let mut stack = Stack::with(|config| {
        config["jenkins"]["webhook"].as_object_mut().unwrap().remove("url");
    })
    .await;
    stack.jenkins().remove_plugin("webhook-step");
    let found = faults(&check(&mut stack).await);
    assert!(found.iter().any(|fault| fault.contains("install the plugin webhook-step")), "{found:#?}");
}

#[tokio::test]
async fn reports_a_webhook_secret_that_looks_like_a_password_without_repeating_it() {
    let mut stack = Stack::start().await;
    let secret = "Basic aHVudGVyMjpodW50ZXIy";
    stack.aws().parameters.values.insert("/jenkins/webhook".into(), secret.into());
    let report = check(&mut stack).await;
    let found = faults(&report);
    assert!(found.iter().any(|fault| fault.contains("jenkins.webhook.authorization")), "{found:#?}");
    assert!(!report.to_string().contains("aHVudGVyMjpodW50ZXIy"), "{report}");
}

#[tokio::test]
async fn reports_what_could_not_be_checked_and_checks_the_rest() {
    let mut stack = Stack::start().await;
    for (service, action) in
        [("ecs", "DescribeClusters"), ("autoscaling", "DescribeAutoScalingGroups"), ("sqs", "GetQueueAttributes")]
    {
        stack.aws().faults.always(service, action, Some(Fault::denied()));
    }
    let report = check(&mut stack).await;
    let found = faults(&report).join("\n");
    for word in ["DescribeClusters", "DescribeAutoScalingGroups", "GetQueueAttributes"] {
        assert!(found.contains(word), "{word}: {found}");
    }
    assert!(items(&report).iter().any(|item| item["ok"] == true));
}

#[tokio::test]
async fn instances_are_counted_on_all_pages_and_those_of_the_own_cluster_alone() {
    let mut stack = Stack::start().await;
    {
        let mut aws = stack.aws();
        let now = jiff::Timestamp::now();
        aws.ecs.create_cluster("other");
        for number in 0..120 {
            aws.ecs.add_instance(CLUSTER, &format!("i-{number:017x}"), (1024, 1024), 2, now);
        }
        for number in 120..127 {
            aws.ecs.add_instance("other", &format!("i-{number:017x}"), (1024, 1024), 2, now);
        }
    }
    let report = check(&mut stack).await.to_string();
    assert!(report.contains("121"), "{report}");
    assert!(!report.contains("128") && !report.contains("127 "), "{report}");
}

#[tokio::test]
async fn another_region_and_account_is_checked_with_its_own_credentials() {
    let mut stack = Stack::with(|config| {
        config["clouds"][1]["region"] = "us-east-1".into();
        config["clouds"][1]["assumeRoleArn"] = "arn:aws:iam::999999999999:role/agents".into();
        config["clouds"][1]["cluster"] = "far".into();
    })
    .await;
    stack.aws().elsewhere("us-east-1", "999999999999").create_cluster("far");
    let report = check(&mut stack).await.to_string();
    assert!(report.contains("cluster far is ACTIVE") || report.contains("far"), "{report}");
    let far: Vec<_> = stack
        .aws()
        .calls("ecs", "DescribeClusters")
        .iter()
        .map(|call| (call.region.clone(), call.account.clone()))
        .collect();
    assert!(far.contains(&("us-east-1".into(), "999999999999".into())), "{far:?}");
    assert!(far.contains(&(REGION.into(), "123456789012".into())), "{far:?}");
}

#[tokio::test]
async fn every_report_has_one_shape_and_is_fresh() {
    let mut stack = Stack::with(|config| config["clouds"][0]["templates"][0]["taskDefinition"] = "later".into()).await;
    for is_there in [false, true] {
        if is_there {
            let container = json!({"name": "agent", "image": "a", "essential": true, "cpu": 64, "memory": 64,
                "portMappings": [{"containerPort": 22, "hostPort": 0}]});
            let definition = json!({"family": "later", "networkMode": "bridge", "containerDefinitions": [container]});
            stack.aws().ecs.register_definition(&definition).unwrap();
        }
        let report = check(&mut stack).await;
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&report), ["items", "ok"]);
        assert_eq!(report["ok"], is_there, "{report:#}");
        for item in report["items"].as_array().unwrap() {
            assert_eq!(keys(item), ["found", "item", "mend", "ok"], "{item}");
            let texts =
                [&item["item"], &item["found"]].into_iter().chain((item["ok"] == false).then_some(&item["mend"]));
            assert!(texts.into_iter().all(|text| text.as_str().is_some_and(|text| !text.is_empty())), "{item}");
        }
        let of_template = |item: &&Value| item["item"] == "clouds[0].templates[0].taskDefinition";
        let item = report["items"].as_array().unwrap().iter().find(of_template).unwrap();
        assert_eq!(item["ok"], is_there, "{item}");
    }
}

/// The faults that the check finds in a changed group, where idle instances are given back.
async fn group_faults(change: impl FnOnce(&mut local::aws::ecs::Group)) -> Vec<String> {
    let mut stack = Stack::with(|config| config["clouds"][0]["idleInstanceTimeout"] = "10m".into()).await;
    change(stack.aws().ecs.group_mut(GROUP).unwrap());
    faults(&check(&mut stack).await)
}

#[tokio::test]
async fn suspended_processes_that_keep_the_group_as_it_is_are_found() {
    let protect = |group: &mut local::aws::ecs::Group| {
        group.protects_new = true;
        group.members.iter_mut().for_each(|member| member.protected = true);
    };
    for process in ["Launch", "Terminate"] {
        let found = group_faults(|group| {
            protect(group);
            group.suspended.insert(process.into());
        })
        .await;
        assert!(found.len() == 1 && found[0].contains(&format!("resume {process}")), "{process}: {found:#?}");
    }
    let found = group_faults(|group| {
        protect(group);
        group.suspended.extend(["AlarmNotification".into(), "ReplaceUnhealthy".into()]);
    })
    .await;
    assert_eq!(found, Vec::<String>::new(), "these do no harm");
}

#[tokio::test]
async fn rebalancing_that_may_end_a_busy_instance_is_found_where_idle_ones_are_given_back() {
    let protect = |group: &mut local::aws::ecs::Group| group.protects_new = true;
    let protect_all = |group: &mut local::aws::ecs::Group| {
        protect(group);
        group.members.iter_mut().for_each(|member| member.protected = true);
    };
    for found in [group_faults(|_| {}).await, group_faults(protect).await] {
        assert!(found.len() == 1 && found[0].contains("suspend AZRebalance"), "{found:#?}");
    }
    assert_eq!(group_faults(protect_all).await, Vec::<String>::new());
    let suspend = |group: &mut local::aws::ecs::Group| group.suspended.extend(["AZRebalance".into()]);
    assert_eq!(group_faults(suspend).await, Vec::<String>::new());
    assert_eq!(group_faults(|group| group.zones.truncate(1)).await, Vec::<String>::new());
    let spot = |group: &mut local::aws::ecs::Group| {
        protect_all(group);
        (group.spot, group.rebalances_capacity) = (true, true);
    };
    let found = group_faults(spot).await;
    assert!(found.len() == 1 && found[0].contains("Capacity Rebalancing"), "{found:#?}");
}

#[tokio::test]
async fn instances_that_never_registered_are_found_and_those_that_boot_are_not() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.group_mut(GROUP).unwrap().broken = 2;
    stack.aws().ecs.fill_group(GROUP, 3, jiff::Timestamp::now());
    assert_eq!(faults(&check(&mut stack).await), Vec::<String>::new(), "they may still register");
    let lost: Vec<String> = {
        let aws = stack.aws();
        let members = aws.ecs.group(GROUP).unwrap().members.iter();
        members.filter(|member| !member.registers).map(|member| member.id.clone()).collect()
    };
    assert_eq!(lost.len(), 2);
    for id in &lost {
        stack.aws().ecs.set_launched_at(id, "2026-01-01T00:00:00Z".parse().unwrap());
    }
    let found = faults(&check(&mut stack).await);
    assert!(found.len() == 1 && lost.iter().all(|id| found[0].contains(id.as_str())), "{found:#?}");
    assert!(found[0].contains("ECS_CLUSTER") && found[0].contains("within 10m"), "{found:#?}");
    // EC2 cannot be asked.
    stack.aws().faults.always("ec2", "DescribeInstances", Some(Fault::denied()));
    let found = faults(&check(&mut stack).await);
    assert!(found.len() == 1 && found[0].contains("ec2:DescribeInstances"), "{found:#?}");
}

#[tokio::test]
async fn reports_a_groups_capacity_in_its_units_and_its_instances_apart_from_others() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.add_instance(CLUSTER, "i-0123456789abcdef0", (1024, 1024), 2, jiff::Timestamp::now());
    let report = check(&mut stack).await.to_string();
    assert!(report.contains("maximum 4, counted in instances; 1 instances"), "{report}");
    assert!(report.contains("2 container instances are registered, 2 of them take tasks, 1 are of group"), "{report}");
    for (desired_type, unit) in [("vcpu", "vCPUs"), ("memory-mib", "MiB")] {
        stack.aws().ecs.group_mut(GROUP).unwrap().desired_type = Some(desired_type);
        let report = check(&mut stack).await.to_string();
        assert!(report.contains(&format!("maximum 4, counted in {unit};")), "{report}");
    }
}
