//! A pipeline of the stand-in Jenkins: requests an agent, waits for the webhook, runs its build, releases the agent.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::controller::{self, Controller};
use super::emulator::Aws;
use super::ssh::Ssh;
use super::timeline::{Step, Timelines};

/// The time limit of each step.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shared by all pipelines.
pub(super) struct Shop {
    /// The queues.
    pub aws: Aws,
    /// URL of the requests queue.
    pub requests: String,
    /// URL of the completions queue.
    pub completions: String,
    /// The stand-in Jenkins.
    pub jenkins: Arc<Controller>,
    /// Logs in to agents.
    pub ssh: Ssh,
    /// The timeline.
    pub timelines: Arc<Timelines>,
}

/// How a template's agents connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Template {
    /// Over SSH, on a container instance in bridge mode.
    SshOnEc2,
    /// They connect to Jenkins, from Fargate.
    InboundOnFargate,
}

impl Template {
    /// The text in the timeline.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SshOnEc2 => "maven, SSH, EC2",
            Self::InboundOnFargate => "node, Fargate",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::SshOnEc2 => "linux && maven",
            Self::InboundOnFargate => "linux && node",
        }
    }
}

/// The result of a build.
pub(super) struct Outcome {
    /// Whether a command ran over SSH on its agent.
    pub over_ssh: bool,
}

impl Shop {
    /// Runs one build from its request until its agent is gone. `stopped` resolves when the task has stopped.
    ///
    /// # Errors
    /// When a step fails or takes longer than a minute.
    pub(super) async fn build(
        &self,
        id: &str,
        number: usize,
        template: Template,
        stopped: watch::Receiver<bool>,
    ) -> Result<Outcome> {
        let result = self.steps(id, number, template, stopped).await;
        if let Err(error) = &result {
            self.timelines.note(id, &format!("failed: {error:#}"));
        }
        self.timelines.end(id);
        result.with_context(|| id.to_owned())
    }

    async fn steps(
        &self,
        id: &str,
        number: usize,
        template: Template,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<Outcome> {
        let webhook = self.jenkins.with(|jenkins| jenkins.register_webhook(Some(controller::AUTHORIZATION)));
        let page = self.jenkins.with(|jenkins| jenkins.url(&format!("job/demo/{number}/")));
        let build = json!({"job": "demo", "number": number, "url": page});
        let request = json!({
            "version": 1, "requestId": id, "label": template.label(), "webhookUrl": webhook, "build": build,
        });
        self.timelines.begin(id, template.name());
        self.send(&self.requests, &request).await?;

        let notice = within("a notice", self.jenkins.notice(&webhook)).await?;
        let text = |pointer: &str| notice.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        ensure!(text("/type") == "agent.ready", "{}: {}", text("/failure/code"), text("/failure/message"));
        let name = text("/agent/name");
        self.timelines.agent(id, name);
        self.timelines.reached(id, Step::Ready);

        let over_ssh = template == Template::SshOnEc2;
        let place = if over_ssh {
            // Jenkins connects to the node's address, which has to be that of the notice.
            let (host, port) = within("the node", self.jenkins.ssh_launcher(name)).await?;
            let noticed = (text("/agent/host"), notice.pointer("/agent/port").and_then(Value::as_u64));
            ensure!(noticed == (&host, Some(port.into())), "the node says {host}:{port}, the notice {noticed:?}");
            self.jenkins.with(|jenkins| jenkins.connect_ssh(name));
            Some((host, port))
        } else {
            None
        };
        let number_text = number.to_string();
        within(
            "the agent to come online",
            self.jenkins.find(|jenkins| jenkins.start_build_on(name, &number_text).then_some(())),
        )
        .await?;
        let printed = match place {
            Some((host, port)) => {
                let command = format!("echo build {number} on $(echo $SSH_CONNECTION | cut -d' ' -f3-4)");
                self.ssh.run(&host, port, &command).await?
            }
            None => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                format!("build {number} on an inbound agent")
            }
        };
        if !printed.contains(&format!("build {number} on")) {
            bail!("the build printed {printed:?}");
        }
        self.jenkins.with(|jenkins| jenkins.finish_build(name));
        self.timelines.reached(id, Step::Build);
        self.timelines.note(id, printed.trim());

        let completion = json!({
            "version": 1, "requestId": id, "agent": name, "taskArn": text("/task/arn"),
            "build": {"job": "demo", "number": number}, "result": "SUCCESS",
        });
        self.send(&self.completions, &completion).await?;
        self.timelines.reached(id, Step::Completed);

        within("the task to stop", stopped.wait_for(|stopped| *stopped)).await?.context("there are no more events")?;
        within("the node to go", self.jenkins.no_node(name)).await?;
        within("the notice of its end", self.jenkins.notice_of(id, "agent.stopped")).await?;
        self.timelines.reached(id, Step::Stopped);
        Ok(Outcome { over_ssh })
    }

    async fn send(&self, queue: &str, body: &Value) -> Result<()> {
        let input = json!({"QueueUrl": queue, "MessageBody": body.to_string()});
        self.aws.json("sqs", "AmazonSQS.SendMessage", &input).await.map(drop)
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.with_context(|| format!("waited a minute in vain for {what}"))
}
