//! The emulator of AWS in which the functions run: starts, calls and ends it.
//!
//! It checks no signatures, so these calls need no SDK: a credential scope in the `Authorization` header names the
//! service and the region, and the access key names the account.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::folder::Folder;

/// The region of the demo.
pub(super) const REGION: &str = "eu-west-1";
/// The account of the demo, one of those in AWS' documentation.
pub(super) const ACCOUNT: &str = "111122223333";

/// Calls the emulator.
#[derive(Clone)]
pub(super) struct Aws {
    /// Its root, `http://127.0.0.1:PORT`.
    pub endpoint: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Aws {
    /// A client of the emulator at this address.
    pub(super) fn new(endpoint: String) -> Self {
        Self { endpoint, http: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// An action of a JSON service: `AmazonSQS.SendMessage`.
    ///
    /// # Errors
    /// When there is no answer, or an error.
    pub(super) async fn json(&self, service: &str, target: &str, input: &Value) -> Result<Value> {
        let request = Request::post(&self.endpoint)
            .header("x-amz-target", target)
            .header("content-type", "application/x-amz-json-1.0");
        let answer = self.send(service, request, input.to_string().into()).await.context(target.to_owned())?;
        serde_json::from_slice(&answer).with_context(|| format!("the answer to {target}"))
    }

    /// An action of a query service: CloudFormation.
    ///
    /// # Errors
    /// When there is no answer, or an error.
    pub(super) async fn form(
        &self,
        service: &str,
        version: &str,
        action: &str,
        fields: &[(String, String)],
    ) -> Result<String> {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).append_pair("Version", version).extend_pairs(fields);
        let request = Request::post(&self.endpoint).header("content-type", "application/x-www-form-urlencoded");
        let answer = self.send(service, request, form.finish().into()).await.context(action.to_owned())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Puts a resource of a REST service: a bucket, an object.
    ///
    /// # Errors
    /// When there is no answer, or an error.
    pub(super) async fn put(&self, service: &str, path: &str, body: Bytes) -> Result<()> {
        let request = Request::put(format!("{}{path}", self.endpoint));
        self.send(service, request, body).await.map(drop).with_context(|| format!("PUT {path}"))
    }

    /// Invokes a function asynchronously, as EventBridge does.
    ///
    /// # Errors
    /// When the emulator does not accept the event.
    pub(super) async fn invoke_async(&self, function: &str, event: &Value) -> Result<()> {
        self.invocation(function, "Event", event).await.map(drop)
    }

    /// Invokes a function and waits for its answer.
    ///
    /// # Errors
    /// When the emulator does not accept the event, or the answer is not JSON.
    pub(super) async fn invoke(&self, function: &str, event: &Value) -> Result<Value> {
        let answer = self.invocation(function, "RequestResponse", event).await?;
        serde_json::from_slice(&answer).with_context(|| format!("the answer of {function}"))
    }

    async fn invocation(&self, function: &str, kind: &str, event: &Value) -> Result<Bytes> {
        let request = Request::post(format!("{}/2015-03-31/functions/{function}/invocations", self.endpoint))
            .header("x-amz-invocation-type", kind);
        self.send("lambda", request, event.to_string().into()).await.with_context(|| format!("invoke {function}"))
    }

    async fn send(&self, service: &str, request: http::request::Builder, body: Bytes) -> Result<Bytes> {
        let credential = format!("{ACCOUNT}/20260101/{REGION}/{service}/aws4_request");
        let request = request
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"),
            )
            .body(Full::new(body))?;
        let response = self.http.request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "the emulator answers {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}

/// The emulator as a process. Its functions are in its process group, which ends with it.
pub(super) struct Emulator {
    /// Its client.
    pub aws: Aws,
    /// The log of it and its functions.
    pub log: PathBuf,
    /// The folder for temporary files.
    pub temporary: PathBuf,
    child: Child,
    group: Option<Pid>,
}

impl Emulator {
    /// Starts it on a loopback port and waits until it answers. `environment` also applies to its functions.
    ///
    /// # Errors
    /// When it is not installed or does not start; the error quotes the end of its log.
    pub(super) async fn start(
        stack: &Path,
        folder: &Folder,
        port: u16,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let program = stack.join("venv/bin/ministack");
        ensure!(
            program.exists(),
            "{} is missing: start the demo with ./local/run, which installs it",
            program.display()
        );
        let (log, temporary) = (folder.file("emulator.log"), folder.temporary());
        let out = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let child = Command::new(&program)
            .env("BIND_HOST", "127.0.0.1")
            .env("MINISTACK_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("TMPDIR", &temporary)
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_REGION", REGION)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let mut emulator = Self { aws: Aws::new(endpoint), log, temporary, child, group };
        let deadline = Instant::now() + Duration::from_secs(30);
        while emulator.aws.send("s3", Request::get(&emulator.aws.endpoint), Bytes::new()).await.is_err() {
            if let Some(status) = emulator.child.try_wait()? {
                bail!("the emulator ended at once ({status}):\n{}", emulator.end_of_log());
            }
            if Instant::now() >= deadline {
                bail!("the emulator does not answer within 30 s:\n{}", emulator.end_of_log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(emulator)
    }

    /// The last lines of its log, for an error.
    pub(super) fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends it and its functions, and waits until they are gone.
    pub(super) async fn end(mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            // It cannot refuse that signal.
            self.child.wait().await.ok();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It fails only if the group has already ended.
            kill_process_group(group, signal).ok();
        }
    }
}

impl Drop for Emulator {
    /// Nothing is left behind, however the demo ends.
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
