//! ECS' events to Jenkins, and the notices (docs/messages.md).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use local::aws::ecs::{Addressing, Behaviour};
use local::aws::{ApiError, Fault};
use local::jenkins::{HostKeyVerification, Launcher, Mode};
use serde_json::{Value, json};
use sha2::Sha256;
use tests::{AUTHORIZATION, Binary, CLUSTER, Stack};

use crate::teardown::thirty_templates_in_five_clouds;

const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1bFSTxVyKv0bSa6ykMTyCE9HzwYzbEK6kXVR4B4BaG";

/// A scripted page of Jenkins.
fn page(status: u16, headers: &[(&str, &str)]) -> http::Response<bytes::Bytes> {
    let mut page = http::Response::builder().status(status);
    for (name, value) in headers {
        page = page.header(*name, *value);
    }
    page.body(bytes::Bytes::new()).unwrap()
}

/// A webhook's path as [`local::jenkins::Jenkins::script`] takes it.
fn path(stack: &Stack, url: &str) -> String {
    url.strip_prefix(stack.jenkins_root()).unwrap().to_owned()
}

#[tokio::test]
async fn the_address_is_the_named_containers_host_port() {
    let mut stack = Stack::start().await;
    let url = stack.agent("bridge", "maven").await;
    let notice = stack.notices(Some(&url)).remove(0);
    let task = stack.tasks().remove(0);
    let agent = task.containers.iter().find(|container| container.name == "agent").unwrap();
    let sidecar = task.containers.iter().find(|container| container.name == "sidecar").unwrap();
    assert_ne!(agent.bindings, sidecar.bindings);
    let host = stack.aws().ecs.instances().next().unwrap().private_address.clone();
    assert_eq!(notice.body["agent"]["host"], host);
    assert_eq!(notice.body["agent"]["port"], agent.bindings[0].host);
}

#[tokio::test]
async fn host_mode_and_awsvpc_have_addresses_of_their_own_kind() {
    let mut stack = Stack::start().await;
    let host = stack.agent("host", "host").await;
    let fargate = stack.agent("fargate", "node").await;
    let instance = stack.aws().ecs.instances().next().unwrap().private_address.clone();
    let agent = stack.notices(Some(&host))[0].body["agent"].clone();
    assert_eq!((&agent["host"], &agent["port"]), (&json!(instance), &json!(2222)));
    let agent = stack.notices(Some(&fargate))[0].body["agent"].clone();
    let tasks = stack.tasks();
    let task = tasks.iter().find(|task| task.started_by.contains("-node-")).unwrap();
    assert_eq!(
        (&agent["host"], &agent["port"]),
        (&json!(task.interface.as_ref().unwrap().private_address), &json!(22))
    );
}

#[tokio::test]
async fn a_ready_notice_says_all_that_jenkins_needs() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    let build = json!({"job": "app/main", "number": 42, "url": "https://jenkins.example.com/job/app/job/main/42/"});
    stack.ask(json!({"requestId": "jenkins-app-main-42", "label": "maven", "webhookUrl": url, "build": build}));
    stack.settle().await;
    let notice = stack.notices(Some(&url)).remove(0);
    let body = &notice.body;
    let task = stack.tasks().remove(0);
    assert_eq!(body["version"], 1);
    assert_eq!(body["type"], "agent.ready");
    assert!(body["id"].as_str().is_some_and(|id| !id.is_empty()));
    assert!(body["at"].as_str().unwrap().parse::<Timestamp>().is_ok());
    assert_eq!(body["requestId"], "jenkins-app-main-42");
    assert_eq!(body["build"], build);
    let agent = &body["agent"];
    assert_eq!(agent["name"], task.started_by.as_str());
    assert_eq!(agent["labels"], json!(["linux", "maven"]));
    assert_eq!(agent["connect"], "ssh");
    assert_eq!(agent["workspace"], "/home/jenkins");
    assert_eq!(agent["executors"], 1);
    assert_eq!(agent["credentialsId"], "jenkins-agent-key");
    assert_eq!(body["task"]["arn"], task.arn.as_str());
    assert!(body["task"]["cluster"].as_str().unwrap().ends_with(CLUSTER));
    assert!(body["task"]["taskDefinition"].as_str().unwrap().ends_with("jenkins-maven:1"));
    assert_eq!(body["task"]["containerInstance"], task.instance.as_deref().unwrap());
    assert!(body["task"]["version"].as_u64().is_some());
    assert!(body.get("failure").is_none_or(Value::is_null));
    for time in ["requestedAt", "launchedAt", "pullStartedAt", "pullStoppedAt", "startedAt"] {
        assert!(body["timings"][time].as_str().is_some_and(|time| time.parse::<Timestamp>().is_ok()), "{time}: {body}");
    }
    assert!(body["timings"]["totalMs"].as_u64().is_some());
    assert_eq!(notice.headers["content-type"], "application/json");
    assert_eq!(notice.headers["authorization"], AUTHORIZATION, "raw, and without the line's end");
    assert!(!notice.headers.contains_key("webhook-signature"));
}

#[tokio::test]
async fn notices_are_signed_as_standard_webhooks_has_it() {
    let key = b"a key of the stack's own, 32 byte";
    let mut stack =
        Stack::with(|config| config["jenkins"]["webhook"]["signingSecret"] = json!({"ssm": "/jenkins/signing"})).await;
    let secret = format!("whsec_{}", STANDARD.encode(key));
    stack.aws().parameters.values.insert("/jenkins/signing".into(), secret.clone());
    stack.agent("signed", "node").await;
    let notices = stack.notices(None);
    assert_eq!(notices.len(), 2);
    for notice in notices {
        let header = |name: &str| notice.headers[name].to_str().unwrap().to_owned();
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        assert_eq!(id, notice.body["id"].as_str().unwrap());
        let age = Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
        assert!((-5..60).contains(&age), "{age}");
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(&notice.raw);
        assert_eq!(header("webhook-signature"), format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())));
    }
    assert!(!stack.output().contains(&secret[6..]));
}

#[tokio::test]
async fn the_node_is_there_before_the_notice_and_as_the_template_has_it() {
    let mut stack = Stack::with(|config| {
        let template = &mut config["clouds"][0]["templates"][0];
        template["executors"] = 2.into();
        template["environment"] = json!({"MAVEN_OPTS": "-Xmx1g", "ODD": "a \"quoted\" <b> & 'c'"});
        template["ssh"] = json!({"credentialsId": "jenkins-agent-key", "hostKeyVerification": {"key": HOST_KEY},
            "launchTimeout": "90s", "maxRetries": 7, "retryWait": "2s", "javaPath": "/opt/java/bin/java",
            "jvmOptions": "-Xmx64m", "prefixStartCommand": "bash -lc '", "suffixStartCommand": "'"});
    })
    .await;
    let url = stack.agent("node", "maven").await;
    let notice = stack.notices(Some(&url)).remove(0);
    let name = notice.agent().to_owned();
    {
        let jenkins = stack.jenkins();
        let node = jenkins.node(&name).unwrap();
        assert_eq!(node.labels(), [name.clone()].into(), "its own name alone: no other build takes it");
        assert_eq!(node.remote_fs, "/home/jenkins");
        assert_eq!(node.executors, 2);
        assert_eq!(node.mode, Mode::Exclusive);
        assert_eq!(node.environment["MAVEN_OPTS"], "-Xmx1g");
        assert_eq!(node.environment["ODD"], "a \"quoted\" <b> & 'c'");
        assert!(!node.description.is_empty());
        let Launcher::Ssh(ssh) = &node.launcher else { panic!("{:?}", node.launcher) };
        assert_eq!(ssh.host.as_deref(), notice.body["agent"]["host"].as_str());
        assert_eq!(Some(ssh.port), notice.body["agent"]["port"].as_i64());
        assert_eq!(ssh.credentials_id.as_deref(), Some("jenkins-agent-key"));
        assert_eq!((ssh.launch_timeout_seconds, ssh.max_num_retries, ssh.retry_wait_time), (90, 7, 2));
        assert_eq!(ssh.java_path.as_deref(), Some("/opt/java/bin/java"));
        assert_eq!(ssh.jvm_options.as_deref(), Some("-Xmx64m"));
        assert_eq!(ssh.prefix_start_command.as_deref().map(str::trim), Some("bash -lc '"));
        assert_eq!(ssh.suffix_start_command.as_deref().map(str::trim), Some("'"));
        assert_eq!(ssh.host_key_verification, Some(HostKeyVerification::Key(HOST_KEY.into())));
        let targets: Vec<_> = jenkins.exchanges().iter().map(|exchange| exchange.target.clone()).collect();
        let place = |part: &str| targets.iter().position(|target| target.contains(part));
        assert!(place("reateItem").unwrap() < place("webhook-step").unwrap(), "{targets:?}");
    }
    // Without a webhook nobody requests it by name: it has the template's labels.
    stack.ask(json!({"requestId": "by-label", "label": "node"}));
    stack.settle().await;
    let jenkins = stack.jenkins();
    let node = jenkins.nodes().find(|node| node.name.contains("-node-")).unwrap();
    let labels = node.labels();
    assert!(labels.contains("linux") && labels.contains("node"), "{labels:?}");
}

#[tokio::test]
async fn both_ways_to_create_a_node_give_the_same_node() {
    let mut nodes = Vec::new();
    for version in ["2.504.3", "2.538", "2.539", "2.579"] {
        let mut stack = Stack::start().await;
        stack.jenkins().set_version(version);
        // The first exchange shows the version; the second agent's node is created in the way that it allows.
        stack.agent("first", "node").await;
        stack.agent("second", "node").await;
        let jenkins = stack.jenkins();
        assert_eq!(jenkins.nodes().count(), 2, "{version}");
        let node = jenkins.nodes().next().unwrap().clone();
        nodes.push((node.name, node.remote_fs, node.executors, node.mode, node.label_string, node.environment));
    }
    nodes.dedup();
    assert_eq!(nodes.len(), 1);
}

#[tokio::test]
async fn without_register_nodes_jenkins_is_only_notified() {
    let mut stack = Stack::with(|config| {
        let jenkins = config["jenkins"].as_object_mut().unwrap();
        jenkins.remove("user");
        jenkins.remove("apiToken");
        jenkins.insert("registerNodes".into(), false.into());
        config["clouds"][0]["templates"].as_array_mut().unwrap().pop();
        for cloud in config["clouds"].as_array_mut().unwrap() {
            for template in cloud["templates"].as_array_mut().unwrap() {
                template["idleTimeout"] = "never".into();
            }
        }
    })
    .await;
    let url = stack.agent("unregistered", "node").await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    stack.complete(json!({"requestId": "unregistered"}));
    stack.settle().await;
    assert!(stack.active_tasks().is_empty());
    assert!(stack.jenkins().exchanges().iter().all(|exchange| !exchange.target.contains("computer")));
}

#[tokio::test]
async fn an_inbound_agent_gets_its_node_before_its_task_and_its_connection_settings() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "dial", "label": "dial", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    let task = stack.tasks().remove(0);
    let name = task.started_by.clone();
    assert_eq!(stack.nodes(), [name.as_str()], "the node, before anything of ECS was heard");
    let input = stack.inputs("RunTask").remove(0);
    let pairs = input["overrides"]["containerOverrides"][0]["environment"].as_array().unwrap().clone();
    let value = |name: &str| {
        let found =
            pairs.iter().find(|pair| pair["name"] == name).map(|pair| pair["value"].as_str().unwrap().to_owned());
        found.unwrap_or_else(|| panic!("{name} is missing"))
    };
    assert_eq!(value("JENKINS_URL"), stack.jenkins_root());
    assert_eq!(value("JENKINS_AGENT_NAME"), name);
    assert_eq!(value("JENKINS_AGENT_WORKDIR"), "/home/jenkins");
    assert_eq!(value("JENKINS_WEB_SOCKET"), "true");
    let secret = value("JENKINS_SECRET");
    stack.jenkins().connect_inbound(&name, &secret).unwrap();
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    let agent = stack.notices(Some(&url))[0].body["agent"].clone();
    assert_eq!(agent["connect"], "inbound");
    assert!(
        matches!(&stack.jenkins().node(&name).unwrap().launcher, Launcher::Inbound(launcher) if launcher.web_socket)
    );
    assert!(!stack.output().contains(&secret), "not in logs");
}

#[tokio::test]
async fn a_container_with_a_health_check_is_ready_when_it_is_healthy() {
    let mut stack =
        Stack::with(|config| config["clouds"][0]["templates"][0]["taskDefinition"] = "jenkins-checked".into()).await;
    stack.aws().ecs.settings().healthy = Duration::from_secs(3600);
    let url = stack.agent("checked", "maven").await;
    assert_eq!(stack.tasks()[0].last_status, "RUNNING");
    assert_eq!(stack.received(&url), Vec::<String>::new());
    // Looked at again, it is still not healthy, and is kept for another look within seconds.
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&url), Vec::<String>::new());
    let next = stack.aws().sqs.messages("undelivered")[0].visible_at.duration_since(Timestamp::now()).as_secs();
    assert!((0..15).contains(&next), "{next} s");
    // No event reports its health.
    let events = stack.aws().advance(Timestamp::now() + SignedDuration::from_hours(2));
    assert!(events.is_empty(), "{events:?}");
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn distinguishes_ipv4_and_ipv6_bindings_in_any_order() {
    for (addressing, is_ipv6) in
        [(Addressing::Dual, false), (Addressing::DualV6First, false), (Addressing::V6, true), (Addressing::V4, false)]
    {
        let mut stack = Stack::start().await;
        stack.aws().ecs.settings().instance_addresses = addressing;
        let arn = new_instance(&stack);
        let url = stack.agent("dual", "maven").await;
        let notice = stack.notices(Some(&url)).remove(0);
        let task = stack.tasks().remove(0);
        let instance = stack.aws().ecs.instance(&arn).unwrap().clone();
        let shown =
            stack.aws().ecs.call("DescribeTasks", &json!({"cluster": CLUSTER, "tasks": [task.arn]}), Timestamp::now());
        let containers = shown.unwrap()["tasks"][0]["containers"].clone();
        let agent =
            containers.as_array().unwrap().iter().find(|container| container["name"] == "agent").unwrap().clone();
        let bindings = agent["networkBindings"].as_array().unwrap();
        let ip = if is_ipv6 { "::" } else { "0.0.0.0" };
        let port = &bindings.iter().find(|binding| binding["bindIP"] == ip).unwrap()["hostPort"];
        let host = if is_ipv6 { instance.ipv6_address.unwrap() } else { instance.private_address };
        assert_eq!(
            (&notice.body["agent"]["host"], &notice.body["agent"]["port"]),
            (&json!(host), port),
            "{addressing:?}"
        );
        let jenkins = stack.jenkins();
        let Launcher::Ssh(ssh) = &jenkins.node(notice.agent()).unwrap().launcher else { panic!("not SSH") };
        assert_eq!(ssh.host.as_deref(), Some(host.as_str()), "without brackets");
    }
}

/// An instance with the current address settings replaces the earlier ones.
fn new_instance(stack: &Stack) -> String {
    let (mut aws, now) = (stack.aws(), Timestamp::now());
    let others: Vec<_> = aws.ecs.instances().map(|instance| instance.arn.clone()).collect();
    for arn in others {
        aws.ecs.instance_mut(&arn).unwrap().free = (0, 0);
    }
    let arn = aws.ecs.add_instance(CLUSTER, "i-0123456789abcdef0", (4096, 7680), 2, now);
    aws.ecs.take_events();
    arn
}

#[tokio::test]
async fn a_task_of_an_ipv6_only_subnet_is_reached_by_ipv6() {
    for (addressing, is_ipv6) in [(Addressing::V6, true), (Addressing::Dual, false)] {
        let mut stack = Stack::start().await;
        stack.aws().ecs.settings().interface_addresses = addressing;
        let url = stack.agent("six", "node").await;
        let notice = stack.notices(Some(&url)).remove(0);
        let interface = stack.tasks().remove(0).interface.unwrap();
        let host = if is_ipv6 { interface.ipv6_address.unwrap() } else { interface.private_address };
        assert_eq!(notice.body["agent"]["host"], host, "{addressing:?}");
    }
}

#[tokio::test]
async fn bindings_that_come_late_are_waited_for_and_static_ones_are_not() {
    for is_null in [false, true] {
        for (family, is_static) in [("late-static", true), ("late-dynamic", false)] {
            let mut stack = Stack::start().await;
            {
                let mut aws = stack.aws();
                let port = if is_static { 2200 } else { 0 };
                let definition = json!({"family": "jenkins-maven", "networkMode": "bridge", "containerDefinitions": [
                    {"name": "agent", "image": "a", "essential": true, "cpu": 512, "memory": 512,
                     "portMappings": [{"containerPort": 22, "hostPort": port}]}]});
                aws.ecs.register_definition(&definition).unwrap();
                let settings = aws.ecs.settings();
                settings.binding = Duration::from_secs(3600);
                settings.bindings_are_null = is_null;
            }
            let url = stack.agent(family, "maven").await;
            if !is_static {
                assert_eq!(stack.received(&url), Vec::<String>::new(), "{family}");
                assert_eq!(stack.active_tasks().len(), 1, "{family}");
                stack.aws().advance(Timestamp::now() + SignedDuration::from_hours(2));
                stack.unhide("undelivered");
                stack.settle().await;
            }
            assert_eq!(stack.received(&url), ["agent.ready"], "{family}");
            if is_static {
                assert_eq!(stack.notices(Some(&url))[0].body["agent"]["port"], 2200);
            }
        }
    }
}

#[tokio::test]
async fn an_agent_whose_address_never_comes_fails_at_its_start_timeout() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().binding = Duration::from_secs(36_000);
    let url = stack.agent("never", "maven").await;
    stack.sweep_at(Timestamp::now() + SignedDuration::from_mins(16)).await.unwrap();
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed START_TIMEOUT"]);
    let failure = stack.notices(Some(&url))[0].body["failure"].clone();
    assert!(failure["message"].as_str().unwrap().contains("host port"), "{failure}");
}

#[tokio::test]
async fn repeated_events_notify_once() {
    let mut stack = Stack::start().await;
    let url = stack.agent("repeated", "node").await;
    let events = stack.history.clone();
    for event in events.iter().chain(events.iter().rev()) {
        stack.invoke(Binary::TaskState, event.clone()).await.unwrap();
    }
    // Another process knows only what is recorded.
    let mut another = stack.another(Binary::TaskState).await;
    for event in &events {
        another.invoke(event.clone()).await.unwrap().unwrap();
    }
    assert_eq!(stack.received(&url), ["agent.ready"]);
    let tags = stack.tasks().remove(0).tags;
    assert!(
        tags.keys().any(|tag| tag.starts_with("jenkins-ecs-agents:") && tag != "jenkins-ecs-agents:controller"),
        "{tags:?}"
    );
}

#[tokio::test]
async fn a_running_event_after_the_end_registers_nothing() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.ask(json!({"requestId": "reversed", "label": "node", "webhookUrl": url}));
    stack.poll(Binary::Request, "requests").await;
    stack.advance();
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 3, Timestamp::now());
    stack.advance().reverse();
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed START_FAILED"]);
    assert!(stack.nodes().is_empty());
    let created = stack.jenkins().exchanges().iter().any(|exchange| exchange.target.contains("reateItem"));
    assert!(!created);
}

#[tokio::test]
async fn an_event_of_a_task_that_ecs_forgot_does_no_harm() {
    let mut stack = Stack::start().await;
    let url = stack.agent("forgotten", "node").await;
    let running = stack.history.iter().rfind(|event| event["detail"]["lastStatus"] == "RUNNING").unwrap().clone();
    let arn = stack.tasks()[0].arn.clone();
    {
        let mut aws = stack.aws();
        aws.ecs.exit(&arn, 0, Timestamp::now());
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
        assert_eq!(aws.ecs.tasks().count(), 0);
    }
    stack.invoke(Binary::TaskState, running).await.unwrap();
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.all_received().iter().filter(|notice| *notice == "agent.ready").count(), 1);
}

#[tokio::test]
async fn a_last_event_is_believed_though_ecs_has_forgotten_the_task() {
    let mut stack = Stack::start().await;
    stack.agent("ended", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 0, Timestamp::now());
    let events: Vec<_> = stack.advance().drain(..).collect();
    let stopped = events.into_iter().find(|event| event["detail"]["lastStatus"] == "STOPPED").unwrap();
    {
        let mut aws = stack.aws();
        aws.advance(Timestamp::now() + SignedDuration::from_hours(2));
        assert_eq!(aws.ecs.tasks().count(), 0);
    }
    stack.invoke(Binary::TaskState, stopped).await.unwrap();
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn a_configured_webhook_that_leads_nowhere_costs_no_agent_and_no_notice() {
    let mut stack = Stack::start().await;
    let gone = page(404, &[("x-jenkins", "2.579")]);
    stack.jenkins().script("ecs-agents/notices", [gone.clone(), gone]);
    let url = stack.agent("mistyped", "node").await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!((stack.active_tasks().len(), stack.nodes().len()), (1, 1));
    let rejected = stack.rejected();
    assert!(rejected.len() == 1 && rejected[0].1.contains("jenkins.webhook.url"), "{rejected:?}");
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_fails_at_once_and_says_why() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.behave("jenkins-node", Behaviour::ImageMissing);
    let url = stack.agent("no-image", "node").await;
    assert_eq!(stack.received(&url), ["agent.failed START_FAILED"]);
    let failure = stack.notices(Some(&url))[0].body["failure"].clone();
    assert_eq!(failure["stopCode"], "TaskFailedToStart");
    let message = failure["message"].as_str().unwrap();
    assert!(
        message.starts_with("image not found: ") && message.ends_with("(task definition jenkins-node:1)"),
        "{message}"
    );
    assert_eq!(message.matches("CannotPullContainerError").count(), 1, "{message}");
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn reports_the_exit_code_of_a_container_that_ends_before_it_is_ready() {
    let mut stack =
        Stack::with(|config| config["clouds"][0]["templates"][0]["taskDefinition"] = "jenkins-checked".into()).await;
    stack.aws().ecs.behave("jenkins-checked", Behaviour::Exits { after: Duration::ZERO, code: 137 });
    let url = stack.agent("exits", "maven").await;
    assert_eq!(stack.received(&url), ["agent.failed START_FAILED"]);
    let failure = stack.notices(Some(&url))[0].body["failure"].clone();
    assert_eq!((&failure["exitCode"], &failure["stopCode"]), (&json!(137), &json!("EssentialContainerExited")));
}

#[tokio::test]
async fn an_agent_that_ends_later_loses_its_node_and_its_build() {
    let mut stack = Stack::start().await;
    let url = stack.agent("ends", "node").await;
    let name = stack.nodes().remove(0);
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 1, Timestamp::now());
    stack.settle().await;
    assert!(stack.nodes().is_empty());
    assert_eq!(stack.received(&url), ["agent.ready"], "the build has had its one outcome");
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
    assert_eq!(stack.all_notices()[1].agent(), name);
}

#[tokio::test]
async fn reports_a_spot_interruption() {
    let mut stack = Stack::start().await;
    stack.agent("spot", "node").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().ecs.interrupt(&arn, Timestamp::now());
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped SPOT_INTERRUPTION"]);
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn ignores_foreign_events() {
    let mut stack = Stack::start().await;
    stack.agent("ours", "node").await;
    let event = stack.history.iter().rfind(|event| event["detail"]["lastStatus"] == "RUNNING").unwrap().clone();
    stack.forget_calls();
    let exchanges = stack.jenkins().exchanges().len();
    let mut foreign = Vec::new();
    for name in [
        "ecs-svc/1234567890123456789",
        "somebody",
        "ecs-node-0A1B2C3D4E5F",
        "ecs-node-0a1b2c",
        "other-node-0a1b2c3d4e5f",
        "",
    ] {
        let mut event = event.clone();
        event["detail"]["startedBy"] = name.into();
        event["detail"]["taskArn"] =
            format!("arn:aws:ecs:eu-west-1:123456789012:task/{CLUSTER}/0123456789abcdef0123456789abcdef").into();
        foreign.push(event);
    }
    let mut nameless = event.clone();
    nameless["detail"].as_object_mut().unwrap().remove("startedBy");
    foreign.push(nameless);
    let mut elsewhere = event.clone();
    elsewhere["detail"]["clusterArn"] = "arn:aws:ecs:eu-west-1:123456789012:cluster/other".into();
    elsewhere["detail"]["taskArn"] =
        "arn:aws:ecs:eu-west-1:123456789012:task/other/0123456789abcdef0123456789abcdef".into();
    foreign.push(elsewhere);
    for event in foreign {
        let text = event.to_string();
        let answer = stack.invoke(Binary::TaskState, event).await;
        assert!(answer.is_ok(), "{answer:?} for {text}");
        assert_eq!(stack.calls(), Vec::<String>::new(), "{text}");
    }
    // In our cluster, with a name of our form, but its tag names another controller.
    let arn = stack.tasks()[0].arn.clone();
    let task_tags = |stack: &Stack, controller: &str| {
        let mut aws = stack.aws();
        let task = aws.ecs.task_mut(&arn).unwrap();
        task.tags.clear();
        task.tags.insert("jenkins-ecs-agents:controller".into(), controller.into());
    };
    task_tags(&stack, "https://another.example.com/");
    let mut another = stack.another(Binary::TaskState).await;
    another.invoke(event).await.unwrap().unwrap();
    assert_eq!(stack.jenkins().exchanges().len(), exchanges);
    assert_eq!(stack.active_tasks().len(), 1);
}

#[tokio::test]
async fn stops_an_unwanted_agent() {
    for answer in [page(410, &[]), page(404, &[("x-jenkins", "2.579")])] {
        let status = answer.status();
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [answer]);
        stack.ask(json!({"requestId": "unwanted", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        assert!(stack.active_tasks().is_empty(), "{status}");
        assert!(stack.nodes().is_empty(), "{status}");
        assert_eq!(stack.count("ecs:StopTask"), 1, "{status}");
    }
}

#[tokio::test]
async fn rejects_notices_that_jenkins_refuses_permanently() {
    let moved = page(302, &[("location", "http://127.0.0.1:9/elsewhere"), ("x-jenkins", "2.579")]);
    for answer in [moved, page(400, &[("x-jenkins", "2.579")]), page(413, &[])] {
        let status = answer.status();
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [answer.clone(), answer.clone(), answer]);
        stack.ask(json!({"requestId": "permanent", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        let rejected = stack.rejected();
        assert_eq!(rejected.len(), 1, "{status}");
        assert!(rejected[0].1.contains(status.as_str()), "{status}: {}", rejected[0].1);
        assert!(rejected[0].0.contains("agent.ready"), "{status}: {}", rejected[0].0);
        assert!(stack.bodies("undelivered").is_empty(), "{status}");
        let tries = stack.jenkins().exchanges().iter().filter(|exchange| exchange.target.ends_with(&path)).count();
        assert_eq!(tries, 1, "{status}");
        assert!(stack.output().contains("ERROR"), "{status}");
    }
}

#[tokio::test]
async fn notices_wait_while_jenkins_is_down_and_keep_their_id() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.jenkins_goes_down();
    stack.ask(json!({"requestId": "patient", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    assert!(!stack.bodies("undelivered").is_empty());
    for _ in 0..5 {
        stack.unhide("undelivered");
        stack.settle().await;
    }
    assert!(!stack.bodies("undelivered").is_empty(), "nothing is lost");
    stack.jenkins_comes_back().await;
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert_eq!(stack.all_received(), ["agent.ready"]);
    assert!(stack.bodies("undelivered").is_empty());
    let ids: Vec<_> = stack.notices(None).iter().map(|notice| notice.body["id"].clone()).collect();
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn waits_out_every_kind_of_outage() {
    // A 404 that does not name Jenkins comes from a proxy.
    for answer in [page(503, &[]), page(500, &[]), page(502, &[]), page(429, &[]), page(404, &[])] {
        let status = answer.status();
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [answer.clone(), answer]);
        stack.ask(json!({"requestId": "unwell", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        assert_eq!(stack.received(&url), Vec::<String>::new(), "{status}");
        for _ in 0..3 {
            stack.unhide("undelivered");
            stack.settle().await;
        }
        assert_eq!(stack.received(&url), ["agent.ready"], "{status}");
        assert_eq!(stack.all_received(), ["agent.ready"], "{status}");
        assert!(stack.bodies("undelivered").is_empty() && stack.rejected().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_ready_whose_task_has_stopped_meanwhile_arrives_as_failed() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.jenkins_goes_down();
    stack.ask(json!({"requestId": "too-late", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().ecs.exit(&arn, 1, Timestamp::now());
    stack.settle().await;
    stack.jenkins_comes_back().await;
    for _ in 0..3 {
        stack.unhide("undelivered");
        stack.settle().await;
    }
    assert_eq!(stack.received(&url), ["agent.failed START_FAILED"]);
    assert!(stack.nodes().is_empty());
    assert!(stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn notices_go_to_the_event_bus_too() {
    let mut stack = Stack::with(|config| config["eventBus"] = "ci-agents".into()).await;
    let url = stack.agent("bus", "node").await;
    stack.complete(json!({"requestId": "bus"}));
    stack.settle().await;
    let entries = stack.aws().bus.entries.clone();
    let kinds: Vec<_> = entries.iter().map(|entry| entry["DetailType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["agent.ready", "agent.stopped"]);
    for entry in &entries {
        assert_eq!(entry["Source"], "jenkins-ecs-agents");
        assert_eq!(entry["EventBusName"], "ci-agents");
    }
    let detail: Value = serde_json::from_str(entries[0]["Detail"].as_str().unwrap()).unwrap();
    assert_eq!(detail, stack.notices(Some(&url))[0].body);
}

#[tokio::test]
async fn of_two_tasks_of_one_name_the_younger_is_stopped() {
    let mut stack = Stack::start().await;
    stack.agent("doubled", "node").await;
    // The same RunTask under another token, as after an answer that was lost for longer than a token lives.
    let mut input = stack.inputs("RunTask").remove(0);
    input["clientToken"] = "another".into();
    let now = Timestamp::now();
    stack.aws().ecs.call("RunTask", &input, now).unwrap();
    stack.settle().await;
    stack.sweep().await;
    let tasks = stack.tasks();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[0].desired_status, "RUNNING", "the elder stays");
    assert_eq!(tasks[1].desired_status, "STOPPED");
    assert_eq!(stack.nodes().len(), 1, "and so does its node");
}

#[tokio::test]
async fn a_ready_agent_that_somebody_stops_by_hand_is_stopped_not_failed() {
    let mut stack = Stack::start().await;
    let url = stack.agent("by-hand", "node").await;
    let task = stack.active_tasks().remove(0);
    let stop = json!({"cluster": CLUSTER, "task": task.arn, "reason": "cleaning up"});
    stack.aws().ecs.call("StopTask", &stop, Timestamp::now()).unwrap();
    // Another process receives the event: StopTask deleted the task's tags.
    stack.kill(Binary::TaskState);
    stack.settle().await;
    for later in [1, 2, 3] {
        stack.sweep_at(Timestamp::now() + SignedDuration::from_mins(later)).await.unwrap();
    }
    assert_eq!(stack.received(&url), ["agent.ready"]);
    assert!(
        stack.all_received().iter().all(|notice| notice == "agent.ready" || notice == "agent.stopped"),
        "{:?}",
        stack.all_received()
    );
    assert!(stack.nodes().is_empty());
}

#[tokio::test]
async fn the_node_of_the_younger_becomes_the_elders() {
    let mut stack = Stack::start().await;
    stack.ask(json!({"requestId": "overtaken", "label": "node"}));
    stack.poll(Binary::Request, "requests").await;
    let mut input = stack.inputs("RunTask").remove(0);
    input["clientToken"] = "another".into();
    stack.aws().ecs.call("RunTask", &input, Timestamp::now()).unwrap();
    stack.advance().clear();
    // The younger's event comes first.
    let (elder, younger) = (stack.tasks().remove(0), stack.tasks().remove(1));
    for task in [&younger, &elder] {
        let running = |event: &&Value| {
            event["detail"]["taskArn"] == task.arn.as_str() && event["detail"]["lastStatus"] == "RUNNING"
        };
        let event = stack.history.iter().rev().find(running).unwrap().clone();
        stack.invoke(Binary::TaskState, event).await.unwrap();
    }
    stack.sweep().await;
    assert_eq!(stack.active_tasks().iter().map(|task| &task.arn).collect::<Vec<_>>(), [&elder.arn]);
    let name = stack.nodes().remove(0);
    let jenkins = stack.jenkins();
    let node = jenkins.node(&name).unwrap();
    let Launcher::Ssh(launcher) = &node.launcher else { panic!("{:?}", node.launcher) };
    assert_eq!(launcher.host, elder.interface.map(|interface| interface.private_address));
    assert!(node.description.contains(&elder.arn), "{}", node.description);
}

#[tokio::test]
async fn a_notice_is_kept_for_a_day_and_then_rejected() {
    for returns_in_time in [true, false] {
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        stack.ask(json!({"requestId": "a-day", "label": "nothing", "webhookUrl": url}));
        stack.jenkins_goes_down();
        stack.settle().await;
        let rejected = stack.rejected().len();
        for hours in [12, 24] {
            kept_since(&stack, hours);
            stack.settle().await;
            assert!(!stack.bodies("undelivered").is_empty(), "after {hours} hours");
        }
        if returns_in_time {
            stack.jenkins_comes_back().await;
            stack.unhide("undelivered");
        } else {
            kept_since(&stack, 26);
        }
        stack.settle().await;
        assert!(stack.bodies("undelivered").is_empty());
        let given_up = stack.rejected().split_off(rejected);
        assert!(given_up.iter().all(|(_, reason)| reason.contains("given up after a day")), "{given_up:?}");
        let expected = if returns_in_time { (vec!["agent.failed NO_TEMPLATE".to_owned()], 0) } else { (Vec::new(), 1) };
        assert_eq!((stack.received(&url), given_up.len()), expected);
    }
}

/// Undelivered messages that were first tried so many hours ago, and often since.
fn kept_since(stack: &Stack, hours: i64) {
    for message in &mut stack.aws().sqs.queues.get_mut("undelivered").unwrap().messages {
        let mut body: Value = serde_json::from_str(&message.body).unwrap();
        body["since"] = (Timestamp::now() - SignedDuration::from_hours(hours)).to_string().into();
        message.body = body.to_string();
        message.receives = 100;
    }
    stack.unhide("undelivered");
}

#[tokio::test]
async fn the_delays_between_tries_grow() {
    let mut stack = Stack::start().await;
    let url = stack.webhook();
    stack.jenkins_goes_down();
    stack.ask(json!({"requestId": "growing", "label": "nothing", "webhookUrl": url}));
    stack.settle().await;
    let try_after = |stack: &Stack, receives: u32| {
        for message in &mut stack.aws().sqs.queues.get_mut("undelivered").unwrap().messages {
            message.receives = receives;
        }
        stack.unhide("undelivered");
    };
    try_after(&stack, 0);
    let delay = |stack: &Stack| {
        let messages = stack.aws().sqs.messages("undelivered").to_vec();
        messages.iter().map(|message| message.visible_at.duration_since(Timestamp::now()).as_secs()).min().unwrap()
    };
    stack.poll(Binary::TaskState, "undelivered").await;
    let first = delay(&stack);
    try_after(&stack, 12);
    stack.poll(Binary::TaskState, "undelivered").await;
    let later = delay(&stack);
    assert!((0..=600).contains(&first) && later > first && later <= 43_200, "{first} s, then {later} s");
}

#[tokio::test]
async fn an_agent_costs_few_calls() {
    let mut stack = Stack::start().await;
    // What a process looks up only once is known after the first.
    for label in ["node", "maven"] {
        stack.agent(&format!("first-{label}"), label).await;
    }
    for (label, most) in [("node", 4), ("maven", 4)] {
        stack.forget_calls();
        stack.agent(&format!("second-{label}"), label).await;
        let arn = stack.tasks().into_iter().rfind(|task| task.started_by.contains(label)).unwrap().arn;
        stack.complete(json!({"taskArn": arn}));
        stack.settle().await;
        let calls: Vec<_> = stack.calls().into_iter().filter(|call| !call.starts_with("sqs:")).collect();
        assert!(calls.len() <= most, "{label}: {calls:?}");
    }
}

#[tokio::test]
async fn a_running_lookalike_without_our_tag_gets_no_node_and_is_not_stopped() {
    for label in ["node", "maven"] {
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        stack.ask(json!({"requestId": "lookalike", "label": label, "webhookUrl": url}));
        stack.poll(Binary::Request, "requests").await;
        let arn = stack.tasks()[0].arn.clone();
        stack.aws().ecs.task_mut(&arn).unwrap().tags.clear();
        stack.settle().await;
        stack.unhide("undelivered");
        stack.settle().await;
        assert_eq!(stack.all_received(), Vec::<String>::new(), "{label}");
        assert!(stack.nodes().is_empty(), "{label}");
        assert_eq!((stack.active_tasks().len(), stack.count("ecs:StopTask")), (1, 0), "{label}");
    }
}

#[tokio::test]
async fn where_only_the_record_fails_only_the_record_is_repeated() {
    let mut stack = Stack::start().await;
    stack.aws().faults.always("ecs", "TagResource", Some(Fault::throttled()));
    let url = stack.webhook();
    let path = path(&stack, &url);
    stack.ask(json!({"requestId": "unrecorded", "label": "node", "webhookUrl": url}));
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.ready"]);
    // Another process retries, without knowing who was notified.
    stack.kill(Binary::TaskState);
    stack.unhide("undelivered");
    stack.settle().await;
    assert!(!stack.bodies("undelivered").is_empty(), "the record is still to be made");
    // Jenkins forgot the webhook when it was answered.
    stack.jenkins().script(&path, [page(410, &[])]);
    stack.aws().faults.always("ecs", "TagResource", None);
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.ready"]);
    let posts = stack.jenkins().exchanges().iter().filter(|exchange| exchange.target.ends_with(&path)).count();
    assert_eq!(posts, 1);
    let task = stack.active_tasks().remove(0);
    assert!(task.tags["jenkins-ecs-agents:reported"].starts_with("ready"), "{:?}", task.tags);
    assert!(stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn does_not_stop_an_unwanted_agent_with_a_build() {
    for is_away in [false, true] {
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [page(503, &[]), page(410, &[])]);
        stack.ask(json!({"requestId": "busy", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        let name = stack.nodes().remove(0);
        if is_away {
            let node = format!("computer/{name}/api/json");
            stack.jenkins().script(&node, [page(503, &[]), page(503, &[]), page(503, &[])]);
        } else {
            stack.jenkins().connect_ssh(&name);
            assert!(stack.jenkins().start_build_on(&name, "app #1"));
        }
        stack.unhide("undelivered");
        stack.settle().await;
        assert_eq!((stack.active_tasks().len(), stack.nodes().len()), (1, 1), "{is_away}");
        let is_reported = stack.tasks()[0].tags.contains_key("jenkins-ecs-agents:reported");
        assert_eq!((is_reported, stack.bodies("undelivered").is_empty()), (!is_away, !is_away));
        let posts = stack.jenkins().exchanges().iter().filter(|exchange| exchange.target.ends_with(&path)).count();
        assert_eq!(posts, 2, "the second was answered 410");
    }
}

#[tokio::test]
async fn the_container_that_ended_first_is_named() {
    let mut stack = Stack::start().await;
    // Never ready: the port is not shown.
    stack.aws().ecs.settings().binding = Duration::from_secs(3600);
    let url = stack.agent("sidecar", "maven").await;
    let arn = stack.tasks()[0].arn.clone();
    stack.aws().ecs.exit_container(&arn, "sidecar", 3, Timestamp::now());
    stack.settle().await;
    assert_eq!(stack.received(&url), ["agent.failed START_FAILED"]);
    let failure = stack.notices(Some(&url))[0].body["failure"].clone();
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("container sidecar (exit code 3)") && !message.contains("memory"), "{failure}");
    assert_eq!(failure["exitCode"], 3);
}

#[tokio::test]
async fn distinguishes_an_interrupted_spot_instance_from_a_failed_one() {
    for (is_spot, expected, repeated) in [
        (true, "agent.stopped SPOT_INTERRUPTION", "agent.failed SPOT_INTERRUPTION"),
        (false, "agent.stopped", "agent.failed START_FAILED"),
    ] {
        let mut stack = Stack::start().await;
        stack.agent("host", "maven").await;
        {
            let (mut aws, now) = (stack.aws(), Timestamp::now());
            let id = aws.ecs.instances().next().unwrap().ec2_id.clone();
            if is_spot { aws.ecs.interrupt_instance(&id, now) } else { aws.ecs.kill_instance(&id, now) }
        }
        stack.settle().await;
        assert_eq!(stack.all_received(), ["agent.ready", expected]);
        // The build asks again.
        let url = stack.agent("host", "maven").await;
        assert_eq!(stack.received(&url), [repeated]);
    }
}

#[tokio::test]
async fn a_port_of_a_range_is_found() {
    let mut stack = Stack::start().await;
    let definition = json!({"family": "jenkins-maven", "networkMode": "bridge", "containerDefinitions": [
        {"name": "agent", "image": "a", "essential": true, "cpu": 512, "memory": 512,
         "portMappings": [{"containerPortRange": "20-25"}]}]});
    stack.aws().ecs.register_definition(&definition).unwrap();
    let url = stack.agent("range", "maven").await;
    let task = stack.tasks().remove(0);
    let input = json!({"cluster": CLUSTER, "tasks": [task.arn]});
    let shown = stack.aws().ecs.call("DescribeTasks", &input, Timestamp::now()).unwrap();
    let range = shown["tasks"][0]["containers"][0]["networkBindings"][0]["hostPortRange"].as_str().unwrap().to_owned();
    let first: u64 = range.split_once('-').unwrap().0.parse().unwrap();
    assert_eq!(stack.notices(Some(&url))[0].body["agent"]["port"], first + 2);
}

#[tokio::test]
async fn a_public_address_is_asked_for_each_time() {
    let mut stack = Stack::with(|config| config["clouds"][0]["templates"][0]["ssh"]["address"] = "public".into()).await;
    let arn = stack.aws().ecs.instances().next().unwrap().arn.clone();
    let set = |stack: &Stack, address: Option<&str>| {
        stack.aws().ecs.instance_mut(&arn).unwrap().public_address = address.map(str::to_owned);
    };
    set(&stack, None);
    let late = stack.agent("late", "maven").await;
    assert_eq!((stack.received(&late), stack.active_tasks().len()), (vec![], 1));
    set(&stack, Some("198.51.100.1"));
    stack.unhide("undelivered");
    stack.settle().await;
    assert_eq!(stack.notices(Some(&late))[0].body["agent"]["host"], "198.51.100.1");
    set(&stack, Some("198.51.100.2"));
    let changed = stack.agent("changed", "maven").await;
    assert_eq!(stack.notices(Some(&changed))[0].body["agent"]["host"], "198.51.100.2");
}

#[tokio::test]
async fn many_agents_that_are_ready_at_once_are_reported_once_each() {
    let mut stack = Stack::start().await;
    let urls: Vec<_> = (0..60)
        .map(|index| {
            let url = stack.webhook();
            stack.ask(json!({"requestId": format!("many-{index}"), "label": "node", "webhookUrl": url}));
            url
        })
        .collect();
    for _ in 0..12 {
        stack.settle().await;
        let are_recorded = stack.tasks().iter().all(|task| task.tags.contains_key("jenkins-ecs-agents:reported"));
        if are_recorded && stack.tasks().len() == urls.len() && stack.bodies("undelivered").is_empty() {
            break;
        }
        // Another process does not know who was notified.
        stack.kill(Binary::TaskState);
        stack.unhide("requests");
        stack.unhide("undelivered");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for url in &urls {
        assert_eq!(stack.received(url), ["agent.ready"]);
    }
    assert_eq!(stack.all_received().len(), urls.len());
    assert!(stack.bodies("undelivered").is_empty());
    assert!(stack.tasks().iter().all(|task| task.tags.contains_key("jenkins-ecs-agents:reported")));
}

/// The number of posts to a webhook, whatever the answer.
fn posts(stack: &Stack, path: &str) -> usize {
    stack.jenkins().exchanges().iter().filter(|exchange| exchange.target.ends_with(path)).count()
}

#[tokio::test]
async fn an_inbound_agent_dials_agent_url_and_all_else_stays_with_jenkins() {
    let dialled = "http://jenkins.internal:8081/inside";
    let mut stack = Stack::with(|config| config["clouds"][0]["agentUrl"] = dialled.into()).await;
    let url = stack.agent("inside", "dial").await;
    assert_eq!((stack.received(&url), stack.all_received()), (vec!["agent.ready".into()], vec!["agent.ready".into()]));
    let input = stack.inputs("RunTask").remove(0);
    let pairs = input["overrides"]["containerOverrides"][0]["environment"].as_array().unwrap();
    let given: Vec<_> = pairs.iter().filter(|pair| pair["name"] == "JENKINS_URL").map(|pair| &pair["value"]).collect();
    assert_eq!(given, [dialled]);
    assert_eq!(stack.tasks()[0].tags["jenkins-ecs-agents:controller"], stack.jenkins_root());
    // A webhook there belongs to another origin.
    stack.ask(json!({"requestId": "there", "label": "dial", "webhookUrl": format!("{dialled}/webhook-step/x")}));
    stack.settle().await;
    assert_eq!(stack.all_received().last().map(String::as_str), Some("agent.failed INVALID_REQUEST"));
}

#[tokio::test]
async fn each_status_of_success_is_a_delivery_and_any_other_is_not() {
    for (status, is_delivered) in [(200, true), (201, true), (202, true), (204, true), (206, false)] {
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [page(status, &[])]);
        stack.ask(json!({"requestId": "status", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        let reported = &stack.tasks()[0].tags["jenkins-ecs-agents:reported"];
        assert_eq!(reported.starts_with("ready"), is_delivered, "{status}: {reported}");
        assert_eq!((posts(&stack, &path), stack.rejected().len()), (1, usize::from(!is_delivered)), "{status}");
        assert!(stack.bodies("undelivered").is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_refused_notice_makes_the_secrets_read_once_more_and_waits() {
    for status in [401, 403] {
        let mut stack = Stack::start().await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.function(Binary::TaskState).await;
        stack.jenkins().script(&path, [page(status, &[]), page(status, &[])]);
        stack.ask(json!({"requestId": "refused", "label": "node", "webhookUrl": url}));
        stack.poll(Binary::Request, "requests").await;
        let reads = |stack: &Stack| {
            let key = Binary::TaskState.access_key();
            stack.aws().journal.iter().filter(|call| call.service == "ssm" && call.access_key == key).count()
        };
        stack.invoke(Binary::TaskState, json!({"Records": []})).await.unwrap();
        let before = reads(&stack);
        stack.deliver().await;
        assert_eq!((reads(&stack), posts(&stack, &path)), (before + 1, 2), "{status}");
        assert!(stack.rejected().is_empty() && !stack.bodies("undelivered").is_empty(), "{status}");
        let output = stack.output();
        let names = |line: &str| line.contains("ERROR") && line.contains("jenkins.webhook.authorization");
        assert!(output.lines().any(names), "{status}: {output}");
        stack.unhide("undelivered");
        stack.settle().await;
        assert_eq!((stack.received(&url), posts(&stack, &path)), (vec!["agent.ready".into()], 3), "{status}");
    }
}

#[tokio::test]
async fn never_follows_a_redirect() {
    for status in [301, 302, 303, 307, 308] {
        let mut stack = Stack::start().await;
        let (url, other) = (stack.webhook(), stack.webhook());
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [page(status, &[("location", &other)])]);
        let configured = page(status, &[("location", &other)]);
        stack.jenkins().script("ecs-agents/notices", [configured]);
        stack.ask(json!({"requestId": "moved", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        let other = other.strip_prefix(stack.jenkins_root()).unwrap().to_owned();
        assert_eq!((posts(&stack, &path), posts(&stack, &other)), (1, 0), "{status}");
        assert_eq!(stack.rejected().len(), 2, "{status}: one of each webhook");
        assert_eq!((stack.active_tasks().len(), stack.nodes().len()), (1, 1), "{status}");
    }
}

#[tokio::test]
async fn only_the_requests_own_webhook_speaks_for_its_build() {
    for answer in [page(410, &[]), page(404, &[("x-jenkins", "2.579")]), page(400, &[])] {
        let status = answer.status();
        let mut stack = Stack::start().await;
        stack.jenkins().script("ecs-agents/notices", [answer]);
        let url = stack.agent("wanted", "node").await;
        assert_eq!((stack.received(&url), stack.all_received().len()), (vec!["agent.ready".into()], 0), "{status}");
        assert_eq!((stack.active_tasks().len(), stack.nodes().len()), (1, 1), "{status}");
        let rejected = stack.rejected();
        assert!(rejected.len() == 1 && rejected[0].0.contains("agent.ready"), "{status}: {rejected:?}");
        assert!(stack.bodies("undelivered").is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_failed_agent_that_nobody_waits_for_is_no_error() {
    for answer in [page(410, &[]), page(404, &[("x-jenkins", "2.579")])] {
        let mut stack = Stack::start().await;
        let urls = [stack.webhook(), stack.webhook()];
        for url in &urls {
            let path = path(&stack, url);
            stack.jenkins().script(&path, [answer.clone()]);
        }
        stack.aws().ecs.behave("jenkins-node", Behaviour::ImageMissing);
        stack.ask(json!({"requestId": "fails", "label": "node", "webhookUrl": urls[0]}));
        stack.ask(json!({"requestId": "refused", "label": "nothing", "webhookUrl": urls[1]}));
        stack.settle().await;
        for url in &urls {
            assert_eq!(posts(&stack, &path(&stack, url)), 1);
        }
        let mut received = stack.all_received();
        received.sort();
        assert_eq!(received, ["agent.failed NO_TEMPLATE", "agent.failed START_FAILED"]);
        assert!(stack.bodies("undelivered").is_empty());
        assert_eq!(stack.count("ecs:StopTask"), 0, "it has ended");
    }
}

#[tokio::test]
async fn without_nodes_an_unwanted_agent_is_stopped_unasked() {
    for answer in [page(410, &[]), page(404, &[("x-jenkins", "2.579")])] {
        let mut stack = Stack::with(|config| {
            config["jenkins"]["registerNodes"] = false.into();
            config["clouds"][0]["templates"].as_array_mut().unwrap().pop();
        })
        .await;
        let url = stack.webhook();
        let path = path(&stack, &url);
        stack.jenkins().script(&path, [answer]);
        stack.ask(json!({"requestId": "unwanted", "label": "node", "webhookUrl": url}));
        stack.settle().await;
        assert!(stack.active_tasks().is_empty());
        assert!(stack.jenkins().exchanges().iter().all(|exchange| !exchange.target.contains("computer")));
    }
}

#[tokio::test]
async fn a_retry_is_signed_anew_under_the_same_id() {
    let key = b"a key of the stack's own, 32 byte";
    let mut stack =
        Stack::with(|config| config["jenkins"]["webhook"]["signingSecret"] = json!({"env": "SIGNING"})).await;
    stack.set_env("SIGNING", Some(&format!("whsec_{}", STANDARD.encode(key))));
    // Refused by the stand-in, which keeps what arrived.
    let url = stack.jenkins().register_webhook(Some("another"));
    stack.ask(json!({"requestId": "signed", "label": "nothing", "webhookUrl": url}));
    stack.settle().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stack.unhide("undelivered");
    stack.poll(Binary::TaskState, "undelivered").await;
    let arrivals: Vec<_> = {
        let path = path(&stack, &url);
        let jenkins = stack.jenkins();
        let of_url = jenkins.arrivals().iter().filter(|arrival| arrival.path == path).cloned();
        of_url.collect()
    };
    assert!(arrivals.len() >= 2);
    for arrival in &arrivals {
        let header = |name: &str| arrival.headers[name].to_str().unwrap().to_owned();
        let body: Value = serde_json::from_slice(&arrival.body).unwrap();
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        assert_eq!(id, body["id"].as_str().unwrap());
        assert_eq!(arrival.body, arrivals[0].body, "to the byte");
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(&arrival.body);
        assert_eq!(header("webhook-signature"), format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())));
        let sent = arrival.at.as_second();
        assert!((sent - timestamp.parse::<i64>().unwrap()).abs() <= 1, "{timestamp}, at {sent}");
    }
    assert_ne!(arrivals.last().unwrap().headers["webhook-timestamp"], arrivals[0].headers["webhook-timestamp"]);
}

#[tokio::test]
async fn a_failed_start_reports_everything_that_ecs_says() {
    let mut stack = Stack::start().await;
    stack.aws().ecs.settings().binding = Duration::from_secs(3600);
    let url = stack.agent("fails", "maven").await;
    let task = stack.tasks().remove(0);
    stack.aws().ecs.exit_container(&task.arn, "agent", 3, Timestamp::now());
    stack.advance();
    // ECS' own words for a container that was killed because of its memory.
    let reason = "OutOfMemoryError: Container killed due to memory usage";
    let is_last = |event: &&mut Value| event["detail"]["lastStatus"] == "STOPPED";
    let event = stack.advance().iter_mut().find(is_last).unwrap();
    event["detail"]["containers"].as_array_mut().unwrap().iter_mut().for_each(|container| {
        if container["name"] == "agent" {
            container["reason"] = reason.into();
        }
    });
    stack.settle().await;
    let body = stack.notices(Some(&url)).remove(0).body;
    let failure = &body["failure"];
    assert_eq!((&body["type"], &failure["code"]), (&json!("agent.failed"), &json!("START_FAILED")));
    assert_eq!((&failure["stopCode"], &failure["exitCode"]), (&json!("EssentialContainerExited"), &json!(3)));
    let message = failure["message"].as_str().unwrap();
    for words in ["Essential container in task exited", reason, "exit code 3", "agent"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!((&body["agent"]["name"], &body["task"]["arn"]), (&json!(task.started_by), &json!(task.arn)));
}

#[tokio::test]
async fn host_keys_are_verified_as_the_template_says_and_variables_reach_the_node() {
    for (setting, expected) in [
        (json!("none"), HostKeyVerification::NonVerifying),
        (json!("knownHosts"), HostKeyVerification::KnownHosts),
        (json!({"key": HOST_KEY}), HostKeyVerification::Key(HOST_KEY.into())),
    ] {
        let mut stack = Stack::with(|config| {
            config["clouds"][0]["templates"][0]["ssh"]["hostKeyVerification"] = setting.clone();
            config["clouds"][0]["templates"][0]["environment"] = json!({"A": "template", "B": "template"});
        })
        .await;
        let url = stack.webhook();
        let overrides = json!({"environment": {"A": "request"}});
        stack.ask(json!({"requestId": "keys", "label": "maven", "webhookUrl": url, "overrides": overrides}));
        stack.settle().await;
        let jenkins = stack.jenkins();
        let node = jenkins.nodes().next().unwrap();
        let Launcher::Ssh(launcher) = &node.launcher else { panic!("{:?}", node.launcher) };
        assert_eq!(launcher.host_key_verification.as_ref(), Some(&expected));
        assert_eq!((node.environment["A"].as_str(), node.environment["B"].as_str()), ("request", "template"));
    }
}

#[tokio::test]
async fn reports_an_end_though_ec2_has_forgotten_the_instance() {
    let mut stack = Stack::start().await;
    stack.agent("host", "maven").await;
    {
        let (mut aws, now) = (stack.aws(), Timestamp::now());
        let id = aws.ecs.instances().next().unwrap().ec2_id.clone();
        aws.ecs.interrupt_instance(&id, now);
        let forgotten = ApiError::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"));
        aws.faults.always("ec2", "DescribeInstances", Some(Fault::Error(forgotten)));
    }
    stack.settle().await;
    assert_eq!(stack.all_received(), ["agent.ready", "agent.stopped"]);
    assert!(stack.nodes().is_empty() && stack.bodies("undelivered").is_empty());
}

#[tokio::test]
async fn the_calls_for_an_event_do_not_grow_with_the_templates() {
    let mut stack = thirty_templates_in_five_clouds(|config| {
        for cloud in config["clouds"].as_array_mut().unwrap() {
            cloud["maxAgents"] = 1.into();
        }
    })
    .await;
    stack.agent("ready", "label-4-5").await;
    assert_eq!(stack.count("ecs:DescribeTasks"), 1);
    assert_eq!(stack.count("ecs:TagResource"), 1);
    // Its end: the place within maxAgents is given to the one request that waits for it.
    stack.agent("waits", "label-4-4").await;
    let task = stack.active_tasks().remove(0);
    stack.aws().ecs.exit(&task.arn, 0, Timestamp::now());
    stack.forget_calls();
    stack.unhide("waiting");
    stack.deliver().await;
    let of_ecs: Vec<_> = stack.calls().into_iter().filter(|call| call.starts_with("ecs:")).collect();
    assert!(of_ecs.len() <= 2, "{of_ecs:?}");
    assert_eq!(stack.bodies("requests").len(), 1, "the request that waited is woken");
}
