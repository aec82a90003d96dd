//! The processes of the simulated tasks: an sshd on the host port that ECS gave, or an agent that connects to Jenkins.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::controller::Controller;
use super::ssh::Ssh;
use super::timeline::{Step, Timelines};

/// The containers of all running tasks, driven by ECS' events.
pub(super) struct Containers {
    ssh: Ssh,
    jenkins: Arc<Controller>,
    timelines: Arc<Timelines>,
    running: HashMap<String, Container>,
    stopped: HashMap<String, watch::Sender<bool>>,
}

/// A container; it ends when it is dropped.
enum Container {
    Sshd(JoinHandle<()>),
    Inbound { jenkins: Arc<Controller>, agent: String },
}

impl Drop for Container {
    fn drop(&mut self) {
        match self {
            Self::Sshd(handle) => handle.abort(),
            Self::Inbound { jenkins, agent } => jenkins.with(|jenkins| jenkins.disconnect(agent)),
        }
    }
}

/// The parts of a task event that matter here.
struct Task<'a> {
    arn: &'a str,
    status: &'a str,
    agent: &'a str,
    detail: &'a Value,
}

impl<'a> Task<'a> {
    fn of(event: &'a Value) -> Option<Self> {
        if event["detail-type"] != "ECS Task State Change" {
            return None;
        }
        let detail = &event["detail"];
        let text = |name: &str| detail[name].as_str();
        Some(Self { arn: text("taskArn")?, status: text("lastStatus")?, agent: text("startedBy")?, detail })
    }

    fn variable(&self, name: &str) -> Option<&'a str> {
        let containers = self.detail["overrides"]["containerOverrides"].as_array()?;
        let mut variables = containers.iter().filter_map(|container| container["environment"].as_array()).flatten();
        variables.find(|variable| variable["name"] == name)?["value"].as_str()
    }

    fn request_id(&self) -> Option<String> {
        let record: Value = serde_json::from_str(self.variable("JENKINS_ECS_AGENTS_REQUEST")?).ok()?;
        record["requestId"].as_str().map(str::to_owned)
    }

    /// The host port of the container port 22.
    fn ssh_port(&self) -> Option<u16> {
        let containers = self.detail["containers"].as_array()?;
        let mut bindings = containers.iter().filter_map(|container| container["networkBindings"].as_array()).flatten();
        bindings.find(|binding| binding["containerPort"] == 22)?["hostPort"].as_u64()?.try_into().ok()
    }
}

impl Containers {
    pub(super) fn new(ssh: Ssh, jenkins: Arc<Controller>, timelines: Arc<Timelines>) -> Self {
        Self { ssh, jenkins, timelines, running: HashMap::new(), stopped: HashMap::new() }
    }

    /// Resolves when the task of this request has stopped.
    pub(super) fn stopped(&mut self, request: &str) -> watch::Receiver<bool> {
        self.stopped.entry(request.to_owned()).or_insert_with(|| watch::channel(false).0).subscribe()
    }

    /// Starts and ends containers on ECS' events. `address_of` finds the address of a container instance.
    pub(super) fn observe(&mut self, event: &Value, address_of: impl FnOnce(&str) -> Option<IpAddr>) {
        let Some(task) = Task::of(event) else { return };
        let request = task.request_id().unwrap_or_default();
        self.timelines.by_hand(&request);
        self.timelines.agent(&request, task.agent);
        self.timelines.reached(&request, Step::Task);
        match task.status {
            "RUNNING" => {
                self.timelines.reached(&request, Step::Running);
                if !self.running.contains_key(task.arn)
                    && let Some(container) = self.start(&task, address_of)
                {
                    self.running.insert(task.arn.to_owned(), container);
                }
            }
            "STOPPED" => {
                self.running.remove(task.arn);
                if let Some(stopped) = self.stopped.get(&request) {
                    stopped.send_replace(true);
                }
            }
            _ => {}
        }
    }

    fn start(&self, task: &Task<'_>, address_of: impl FnOnce(&str) -> Option<IpAddr>) -> Option<Container> {
        if let Some(secret) = task.variable("JENKINS_SECRET") {
            let connected = self.jenkins.with(|jenkins| jenkins.connect_inbound(task.agent, secret));
            if let Err(refused) = connected {
                eprintln!("{}: Jenkins does not let the agent in: {refused:?}", task.agent);
            }
            return Some(Container::Inbound { jenkins: self.jenkins.clone(), agent: task.agent.to_owned() });
        }
        let address = SocketAddr::new(address_of(task.detail["containerInstanceArn"].as_str()?)?, task.ssh_port()?);
        let ssh = self.ssh.clone();
        Some(Container::Sshd(tokio::spawn(async move {
            if let Err(error) = ssh.serve(address).await {
                eprintln!("sshd on {address}: {error:#}");
            }
        })))
    }
}
