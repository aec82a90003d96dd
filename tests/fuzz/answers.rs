//! The answers of Jenkins and AWS, through the clients that read them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Response, StatusCode};
use shared::aws::ecs::RunTaskOutcome;
use shared::cloud::{Cloud, Clouds};
use shared::config::environment::Environment;
use shared::http::Http;
use shared::jenkins::{Jenkins, Launcher, Node};
use shared::secret::{Secret, SecretStore, Secrets};
use tokio::runtime::{Builder, Runtime};

use crate::configuration::config;
use crate::events::look_at;
use crate::mutate::holds_at;

/// A client's side of the network, where every request gets the same answer.
struct Net {
    answer: Arc<Mutex<(StatusCode, Bytes)>>,
    http: Http,
    runtime: Runtime,
}

impl Net {
    fn new() -> Self {
        let answer = Arc::new(Mutex::new((StatusCode::OK, Bytes::new())));
        let http = {
            let answer = answer.clone();
            Http::in_memory(move |_| {
                let (status, body) = answer.lock().expect("the answer").clone();
                let response = Response::builder().status(status).header("x-jenkins", "2.541").body(body);
                Box::pin(async move { response.map_err(|error| error.to_string()) })
            })
        };
        // Paused: the SDK's pauses between its tries take no time.
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        Self { answer, http, runtime }
    }

    fn cloud(&self) -> Clouds {
        let environment: Environment = Arc::new(|name| {
            let known = matches!(name, "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY").then(|| "AKIA".to_owned());
            known.or_else(|| (name == "AWS_ENDPOINT_URL").then(|| "http://aws.test".to_owned()))
        });
        let sdk = shared::aws::sdk_config(&environment, &self.http);
        Clouds::new(&sdk, &self.http, &config().clouds)
    }

    fn jenkins(&self) -> Jenkins {
        let secrets = Secrets { api_token: Some(Secret::new("t0ken")), ..Secrets::default() };
        Jenkins::new(self.http.clone(), &config().jenkins, Arc::new(SecretStore::fixed(secrets)))
    }

    /// Reads each entry as the body of every kind of answer. What counts is whether it is accepted as that of a success.
    fn holds(&self, folder: &str, read: impl AsyncFn() -> bool) {
        holds_at(5, folder, |input| {
            let answered = |status| {
                *self.answer.lock().expect("the answer") = (status, Bytes::copy_from_slice(input));
                self.runtime.block_on(read())
            };
            for status in [StatusCode::FOUND, StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY] {
                answered(status);
            }
            answered(StatusCode::OK)
        });
    }

    /// The same for AWS, with the first cloud.
    fn aws(&self, folder: &str, read: impl AsyncFn(&Cloud) -> bool) {
        let clouds = self.cloud();
        self.holds(folder, async || read(clouds.at(0)).await);
    }
}

#[test]
fn lists_of_nodes() {
    let net = Net::new();
    let jenkins = net.jenkins();
    let node = Node {
        name: "ecs-maven-0a1b2c3d4e5f".into(),
        description: String::new(),
        labels: Vec::new(),
        workspace: "/".into(),
        executors: 1,
        environment: BTreeMap::new(),
        launcher: Launcher::Inbound,
    };
    net.holds("jenkins-nodes", async || {
        for result in jenkins.permissions().await {
            let _ = result.1.map_err(|fault| fault.to_string());
        }
        let _ = jenkins.create_node(&node).await.map_err(|fault| assert!(!fault.to_string().contains("t0ken")));
        let _ = (jenkins.delete_node("a").await, jenkins.set_online("a").await, jenkins.own_url().await);
        jenkins.nodes().await.is_ok_and(|nodes| !nodes.is_empty())
    });
}

#[test]
fn secrets_of_inbound_agents() {
    let net = Net::new();
    let jenkins = net.jenkins();
    net.holds("jenkins-jnlp", async || {
        let Ok(secret) = jenkins.inbound_secret("a").await else { return false };
        assert!(!secret.expose().is_empty() && secret.expose().trim() == secret.expose());
        true
    });
}

#[test]
fn users() {
    let net = Net::new();
    let jenkins = net.jenkins();
    net.holds("jenkins-whoami", async || jenkins.who_am_i().await.is_ok());
}

#[test]
fn instances_of_ec2() {
    const ID: &str = "i-0123456789abcdef0";
    let net = Net::new();
    net.aws("ec2-instances", async |cloud| {
        let _ = (cloud.ec2.state_reason(ID).await, cloud.ec2.launch_times(&[ID, "i-0"]).await);
        cloud.ec2.instance(ID).await.is_ok()
    });
}

#[test]
fn network_interfaces() {
    let net = Net::new();
    net.aws("ec2-interfaces", async |cloud| cloud.ec2.interface("eni-1").await.is_ok());
}

#[test]
fn auto_scaling_groups() {
    let net = Net::new();
    net.aws("autoscaling-groups", async |cloud| {
        let _ = cloud.groups.last_launch_failure("group").await;
        let Ok(Some(group)) = cloud.groups.describe("group").await else { return false };
        assert!(group.name == "group" && group.weight_of_new(None) > 0);
        let is_member = group.memberships();
        let _ = (group.is_short(), is_member(Some("i-0")), group.is_suspended("Launch"));
        true
    });
}

#[test]
fn tasks() {
    let net = Net::new();
    net.aws("ecs-tasks", async |cloud| {
        let Ok(tasks) = cloud.cluster.describe_tasks(&["a".to_owned()]).await else { return false };
        tasks.iter().for_each(look_at);
        !tasks.is_empty()
    });
}

#[test]
fn container_instances() {
    let net = Net::new();
    net.aws("ecs-instances", async |cloud| {
        let instances = cloud.cluster.describe_instances(&["a".to_owned()]).await;
        instances.is_ok_and(|instances| !instances.is_empty())
    });
}

#[test]
fn task_definitions() {
    let net = Net::new();
    net.aws("ecs-definitions", async |cloud| {
        let Ok(definition) = cloud.cluster.describe_task_definition("a").await else { return false };
        assert!(definition.exclusive.len() <= 100);
        let _ = (definition.gpus(), definition.only_essential().map_err(|text| assert!(!text.is_empty())));
        true
    });
}

#[test]
fn answers_of_run_task() {
    let config = config();
    let own = std::collections::BTreeSet::new();
    let origin = shared::origin::Origin::new((*config.jenkins.url).clone());
    let envelope =
        request::plan::Envelope { message_id: "a", sent_at: None, wait: None, trace: None, own_accounts: &own };
    let body = r#"{"version": 1, "label": "linux"}"#;
    let order = request::plan::admit(&config, &origin, body, envelope, jiff::Timestamp::UNIX_EPOCH).expect("a request");
    let launch = order.launch(&order.name("ecs-", 0), &order.record(0, "agent"), "https://ci.example.com/", None);
    let input = request::launch::input(&launch).expect("an input");
    let net = Net::new();
    net.aws("ecs-run-task", async |cloud| match cloud.cluster.run_task(input.clone()).await {
        RunTaskOutcome::Started(task) => {
            look_at(&task);
            true
        }
        RunTaskOutcome::NoRoom { reason, .. } => {
            assert!(!reason.is_empty());
            true
        }
        RunTaskOutcome::Existing(_) | RunTaskOutcome::Refused(_) | RunTaskOutcome::Unknown(_) => false,
    });
}
