//! The measured programs, and the system around them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use local::aws::Fault;
use local::lambda::Function;
use serde_json::{Value, json};
use tests::edge::Edge;
use tests::{Binary, Stack};

use crate::FLOOR;

/// The folder of the functions that are measured.
const BINARIES: &str = "BENCHMARK_FUNCTIONS";
/// The folder of the alternatives that are measured, built.
const ALTERNATIVES: &str = "BENCHMARK_ALTERNATIVES";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A function that does nothing.
    Nothing,
    /// One of ours.
    Function(Binary),
    /// `request` in Python with boto3.
    Python,
    /// `request` in Node with the AWS SDK v3.
    Node,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Function(Binary::Request) => "request",
            Self::Function(Binary::TaskState) => "task-state",
            Self::Function(Binary::Teardown) => "teardown",
            Self::Python => "Python, boto3",
            Self::Node => "Node, SDK v3",
        }
    }

    /// The program and its arguments.
    pub(crate) fn command(self) -> Result<Vec<PathBuf>> {
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).context("use ./local/bench");
        Ok(match self {
            Self::Nothing => vec![std::env::current_exe()?],
            Self::Function(_) => vec![folder(BINARIES)?.join(self.name())],
            Self::Python => {
                let folder = folder(ALTERNATIVES)?.join("python");
                vec![folder.join("venv/bin/python"), folder.join("function.py")]
            }
            Self::Node => {
                let paths = std::env::var_os("PATH").unwrap_or_default();
                let node = std::env::split_paths(&paths).map(|path| path.join("node")).find(|node| node.is_file());
                vec![node.context("there is no node")?, folder(ALTERNATIVES)?.join("node/bundle.mjs")]
            }
        })
    }

    /// The size of the deployment package, in megabytes. (boto3 and the SDK for Node are part of Lambda's own
    /// runtimes.)
    pub(crate) fn zipped_mb(self) -> Result<f64> {
        let command = self.command()?;
        let files = match self {
            Self::Python => {
                let libraries = std::fs::read_dir(command[1].with_file_name("package"))?;
                libraries.map(|file| Ok(file?.path())).chain([Ok(command[1].clone())]).collect::<Result<Vec<_>>>()?
            }
            Self::Node => vec![command[1].clone()],
            Self::Nothing | Self::Function(_) => command,
        };
        let folder = tempfile::tempdir()?;
        let zip = folder.path().join("function.zip");
        let mut python = std::process::Command::new("python3");
        let status =
            python.args(["-m", "zipfile", "-c"]).arg(&zip).args(files).status().context("python3 makes the zip")?;
        ensure!(status.success(), "python3 -m zipfile failed");
        Ok(zip.metadata()?.len() as f64 / 1e6)
    }
}

/// A separate system for each process, with its invocations.
pub(crate) struct World {
    /// AWS and Jenkins.
    pub stack: Stack,
    subject: Subject,
    events: Vec<Value>,
    tasks: Vec<String>,
    asked: u32,
    edge: Edge,
    _trust: tempfile::NamedTempFile,
}

impl World {
    /// With the input of `invocations`. AWS is behind an [`Edge`], which the functions trust where it speaks TLS.
    pub(crate) async fn new(subject: Subject, invocations: u32, tls: bool) -> Result<Self> {
        let mut stack = Stack::with(|config| {
            config["jenkins"]["registerNodes"] = false.into();
            // Inbound agents have nodes.
            if let Some(templates) = config["clouds"][0]["templates"].as_array_mut() {
                templates.retain(|template| template["connect"] != "inbound");
            }
        })
        .await;
        {
            // Batch follows batch faster than ECS' quotas allow, and a throttled call would count twice.
            let mut aws = stack.aws();
            let settings = aws.ecs.settings();
            (settings.quotas, settings.run_task_rate) = (None, None);
        }
        stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some("INFO"));
        if subject == Subject::Nothing {
            stack.set_env(FLOOR, Some("yes"));
        }
        if matches!(subject, Subject::Python | Subject::Node) {
            // Lambda sets both; boto3 reads this one.
            stack.set_env("AWS_DEFAULT_REGION", Some(tests::REGION));
            stack.set_env("AGENTS", Some(&alternative_configuration(&stack).to_string()));
        }
        let trust = tempfile::NamedTempFile::new()?;
        let aws = stack.env("AWS_ENDPOINT_URL").to_owned();
        let edge = if tls {
            let (edge, authority) = Edge::tls(&aws).await?;
            std::fs::write(&trust, authority)?;
            stack.set_env("AWS_CA_BUNDLE", trust.path().to_str());
            stack.set_env("NODE_EXTRA_CA_CERTS", trust.path().to_str());
            edge
        } else {
            Edge::plain(&aws).await?
        };
        stack.set_env("AWS_ENDPOINT_URL", Some(&edge.url));
        let (events, tasks) = (Vec::new(), Vec::new());
        let mut world = Self { stack, subject, events, tasks, asked: 0, edge, _trust: trust };
        if matches!(subject, Subject::Function(Binary::TaskState | Binary::Teardown)) {
            // Ten tasks for each invocation, with the RUNNING event of each.
            for _ in 0..invocations {
                world.ask(10);
                world.stack.poll(Binary::Request, "requests").await;
            }
            world.events = world.stack.advance().clone();
            world.tasks = world.stack.active_tasks().into_iter().map(|task| task.arn).collect();
            ensure!(world.events.len() >= invocations as usize, "only {} tasks run", world.events.len());
        }
        Ok(world)
    }

    /// Starts the measured program, behind `wrapper` if there is one: a command that takes the program as its last
    /// arguments.
    pub(crate) async fn start(&self, wrapper: Option<&[String]>) -> Result<Process> {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir()?;
        let path = folder.path().join(self.subject.name().replace([',', ' '], "-"));
        let words = self.subject.command()?.into_iter().map(|word| word.display().to_string());
        let words = wrapper.unwrap_or_default().iter().cloned().chain(words).map(|word| format!("'{word}'"));
        std::fs::write(&path, format!("#!/bin/sh\nexec {}\n", words.collect::<Vec<_>>().join(" ")))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Process { function: self.stack.start_program(&path).await, _folder: folder })
    }

    /// Sets how long AWS takes to answer.
    pub(crate) fn answer_after(&self, delay: Duration) {
        let fault = (!delay.is_zero()).then_some(Fault::Slow(delay));
        self.stack.aws().faults.always("ecs", "RunTask", fault);
    }

    /// The number of connections to AWS.
    pub(crate) fn connections(&self) -> usize {
        self.edge.connections()
    }

    fn ask(&mut self, requests: u32) {
        for _ in 0..requests {
            self.asked += 1;
            let (id, url) = (format!("bench-{}", self.asked), self.stack.webhook());
            self.stack.ask(json!({"requestId": id, "label": "node", "webhookUrl": url}));
        }
    }

    /// Invokes it once with this many messages, or one event.
    pub(crate) async fn invoke(&mut self, process: &mut Process, messages: u32) -> Result<()> {
        let aws = self.stack.shared_aws();
        let function = &mut process.function;
        match self.subject {
            Subject::Nothing => {
                let answer = function.invoke(json!({"Records": []})).await?;
                ensure!(answer.is_ok(), "{answer:?}");
            }
            Subject::Function(Binary::TaskState) => {
                let event = self.events.pop().context("no event is left")?;
                let answer = function.invoke(event).await?;
                ensure!(answer.is_ok(), "{answer:?}");
            }
            Subject::Function(Binary::Teardown) => {
                ensure!(self.tasks.len() >= messages as usize, "no task is left");
                for task in self.tasks.split_off(self.tasks.len() - messages as usize) {
                    self.stack.complete(json!({"taskArn": task}));
                }
                ensure!(function.poll(&aws, "completions").await? == messages as usize, "no full batch");
            }
            Subject::Function(Binary::Request) | Subject::Python | Subject::Node => {
                let before = self.stack.count("ecs:RunTask");
                self.ask(messages);
                ensure!(function.poll(&aws, "requests").await? == messages as usize, "no full batch");
                let calls = self.stack.count("ecs:RunTask") - before;
                ensure!(calls == messages as usize, "{calls} calls:\n{}", function.output());
            }
        }
        Ok(())
    }
}

/// The stack as the alternatives know it: one cluster and the template of the label `node`.
fn alternative_configuration(stack: &Stack) -> Value {
    json!({
        "controller": stack.jenkins_root(), "cluster": tests::CLUSTER,
        "templates": [{"name": "node", "labels": ["linux", "node"], "taskDefinition": "jenkins-node",
            "container": "agent", "network": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"]}}],
    })
}

/// A process that is measured.
pub(crate) struct Process {
    /// Its runtime.
    pub function: Function,
    _folder: tempfile::TempDir,
}

impl Process {
    fn file(&self, name: &str) -> Result<String> {
        let id = self.function.id().context("it ended")?;
        Ok(std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join(name))?)
    }

    /// Its CPU time: the nanoseconds at the beginning of `schedstat` (proc(5)), of all its threads.
    pub(crate) fn cpu_ms(&self) -> Result<f64> {
        let id = self.function.id().context("it ended")?;
        let mut nanoseconds = 0.0;
        for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += text.split(' ').next().context("an empty schedstat")?.parse::<f64>()?;
        }
        Ok(nanoseconds / 1e6)
    }

    /// Its peak memory.
    pub(crate) fn peak_mebibytes(&self) -> Result<f64> {
        let status = self.file("status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(peak.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}
