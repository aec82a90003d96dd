//! Lambda's Runtime API around one function: the built binary, started with only the given environment.
//!
//! The API is that of the Lambda developer guide, "Using the Lambda runtime API for custom runtimes".

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::aws::Aws;
use crate::http::{self, Server, lock};

/// A function's answer: its result, or the error that it reports.
pub type Outcome = Result<Value, String>;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<Outcome>>>>;

/// Lambda's header for an invocation that is not traced.
const UNSAMPLED: &str = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0";

struct Invocation {
    id: String,
    event: Bytes,
    timeout: Duration,
}

/// A function under its Runtime API. It ends when this is dropped.
pub struct Function {
    name: String,
    events: mpsc::UnboundedSender<Invocation>,
    waiting: Waiting,
    output: Arc<Mutex<String>>,
    child: Child,
    asked: Arc<Notify>,
    trace: Arc<Mutex<String>>,
    counter: u64,
    _server: Server,
}

impl Function {
    /// Starts a binary.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(binary: &Path, environment: &BTreeMap<String, String>) -> Result<Self> {
        let (events, receiver) = mpsc::unbounded_channel::<Invocation>();
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let waiting: Waiting = Arc::default();
        let asked: Arc<Notify> = Arc::default();
        let name = binary.file_name().and_then(|name| name.to_str()).unwrap_or("function").to_owned();
        let trace = Arc::new(Mutex::new(UNSAMPLED.to_owned()));
        let server = {
            let (waiting, name, asked, trace) = (waiting.clone(), name.clone(), asked.clone(), trace.clone());
            http::serve(move |request| {
                if request.uri().path().ends_with("/invocation/next") {
                    asked.notify_one();
                }
                let (receiver, waiting, name) = (receiver.clone(), waiting.clone(), name.clone());
                let trace = trace.clone();
                async move { runtime_api(request, &receiver, &waiting, (&name, &trace)).await }
            })
            .await?
        };
        let mut child = Command::new(binary)
            .env_clear()
            .envs(environment)
            .env("AWS_LAMBDA_RUNTIME_API", server.address.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", &name)
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}"))
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "stream")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started: build it with `cargo build --bins`", binary.display()))?;
        let output = Arc::new(Mutex::new(String::new()));
        if let Some(stdout) = child.stdout.take() {
            keep(stdout, output.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            keep(stderr, output.clone());
        }
        Ok(Self { name, events, waiting, output, child, asked, trace, counter: 0, _server: server })
    }

    /// Waits until it requests its first event. Has to precede the first invocation.
    ///
    /// # Errors
    /// When it does not do so within half a minute.
    pub async fn ready(&self) -> Result<()> {
        let asked = tokio::time::timeout(Duration::from_secs(30), self.asked.notified()).await;
        asked.with_context(|| format!("{} asks for no event:\n{}", self.name, self.output()))
    }

    /// Invokes it with a time limit of half a minute.
    ///
    /// # Errors
    /// When it ended, or did not answer.
    pub async fn invoke(&mut self, event: Value) -> Result<Outcome> {
        self.invoke_within(event, Duration::from_secs(30)).await
    }

    /// Invokes it with this time limit.
    ///
    /// # Errors
    /// When it ended, or did not answer.
    pub async fn invoke_within(&mut self, event: Value, timeout: Duration) -> Result<Outcome> {
        self.invoke_with(event.to_string().into(), timeout).await
    }

    /// Invokes it with any event, JSON or not.
    ///
    /// # Errors
    /// When it ended, or did not answer.
    pub async fn invoke_with(&mut self, event: Bytes, timeout: Duration) -> Result<Outcome> {
        self.counter += 1;
        let id = format!("{:08x}-0000-4000-8000-000000000000", self.counter);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(id.clone(), sender);
        self.events.send(Invocation { id, event, timeout })?;
        tokio::select! {
            answer = receiver => Ok(answer?),
            status = self.child.wait() => {
                // Its last output may still be in the pipes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                bail!("{} ended ({}):\n{}", self.name, status?, self.output())
            }
            () = tokio::time::sleep(timeout + Duration::from_secs(30)) => {
                bail!("{} did not answer:\n{}", self.name, self.output())
            }
        }
    }

    /// Acts as an event source: receives a batch from a queue, invokes the function, and deletes the messages that the
    /// answer does not name as failed. After an error of the function all messages stay. Returns the size of the batch.
    ///
    /// # Errors
    /// When it ended, or did not answer.
    pub async fn poll(&mut self, aws: &Mutex<Aws>, queue: &str) -> Result<usize> {
        let (batch, event) = {
            let sqs = &mut lock(aws).sqs;
            let batch = sqs.receive(queue, 10, None, Timestamp::now());
            let event = sqs.event(queue, &batch);
            (batch, event)
        };
        if batch.is_empty() {
            return Ok(0);
        }
        if let Ok(answer) = self.invoke(event).await? {
            lock(aws).sqs.acknowledge(queue, &batch, &answer);
        }
        Ok(batch.len())
    }

    /// Waits for its end, as after a start that failed. Returns its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&mut self) -> Result<Option<i32>> {
        let status = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await??;
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(status.code())
    }

    /// The tracing header of its next invocations.
    pub fn set_trace(&self, header: &str) {
        header.clone_into(&mut lock(&self.trace));
    }

    /// The number of its invocations so far.
    pub fn invocations(&self) -> u64 {
        self.counter
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Where all that it prints is collected, also when it has ended.
    pub fn collected(&self) -> Arc<Mutex<String>> {
        self.output.clone()
    }

    /// All that it has printed, on both streams.
    pub fn output(&self) -> String {
        lock(&self.output).clone()
    }
}

fn keep(stream: impl AsyncRead + Unpin + Send + 'static, output: Arc<Mutex<String>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut output = lock(&output);
            output.push_str(&line);
            output.push('\n');
        }
    });
}

async fn runtime_api(
    request: ::http::Request<Bytes>,
    events: &tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
    waiting: &Waiting,
    (name, trace): (&str, &Mutex<String>),
) -> Response {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["2018-06-01", "runtime", "invocation", "next"] => {
            let Some(invocation) = events.lock().await.recv().await else { return answer(500) };
            let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + invocation.timeout;
            let mut response = Response::new(Body::from(invocation.event));
            let arn = format!("arn:aws:lambda:eu-west-1:123456789012:function:{name}");
            for (header, value) in [
                ("content-type", "application/json"),
                ("lambda-runtime-aws-request-id", &invocation.id),
                ("lambda-runtime-deadline-ms", &deadline.as_millis().to_string()),
                ("lambda-runtime-invoked-function-arn", &arn),
                ("lambda-runtime-trace-id", &lock(trace).clone()),
            ] {
                if let Ok(value) = value.parse() {
                    response.headers_mut().insert(header, value);
                }
            }
            response
        }
        ["2018-06-01", "runtime", "invocation", id, kind @ ("response" | "error")] => {
            let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
            let outcome = if *kind == "response" {
                Ok(body)
            } else {
                Err(body["errorMessage"].as_str().unwrap_or("no message").to_owned())
            };
            if let Some(sender) = lock(waiting).remove(*id) {
                let _ = sender.send(outcome);
            }
            answer(202)
        }
        ["2018-06-01", "runtime", "init", "error"] => answer(202),
        _ => answer(404),
    }
}

fn answer(status: u16) -> Response {
    let mut response = Response::new(Body::from("{}"));
    if let Ok(status) = ::http::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    response
}
