//! The messages: requests and completions from Jenkins, notices to Jenkins, and the record of a request on its task.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tracing::Level;

use crate::config::{Connect, TaskDefinition, variables};
use crate::name::{AgentName, digest};
use crate::trace::{self, Trace};

/// The version of every message here.
pub const VERSION: u32 = 1;

/// The most agents per request.
pub const MOST_AGENTS: u32 = 10;

/// The longest message, in bytes. The overrides and the record of a request on its task are limited to 8192 characters
/// by ECS; a message may need the same again for escapes and an SNS envelope.
const MESSAGE_BYTES: usize = 64 * 1024;

/// The longest label expression, in bytes.
const LABEL_BYTES: usize = 1024;

/// The longest ARN, agent name and similar text, in bytes.
const TEXT_BYTES: usize = 2048;

/// The most variables, and the most words of a command.
const OVERRIDE_ENTRIES: usize = 100;

/// A build's request for agents.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentRequest {
    /// Validated by [`AgentRequest::parse`].
    #[serde(rename = "version", deserialize_with = "version_one")]
    _version: u32,
    /// Two messages with the same id start one agent. Default: the SQS message id.
    #[serde(default)]
    pub request_id: Option<RequestId>,
    /// A Jenkins label expression, without surrounding white space.
    #[serde(deserialize_with = "label")]
    pub label: String,
    /// One URL per agent, notified of its outcome.
    #[serde(default, rename = "webhookUrl", deserialize_with = "one_or_many")]
    pub webhook_urls: Vec<String>,
    /// The build that requests the agents.
    #[serde(default, deserialize_with = "object")]
    pub build: Option<Build>,
    /// After this time, the agents are no longer wanted.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// How many agents, 1 to 10.
    #[serde(default)]
    pub count: Option<u32>,
    /// Where it differs from the template.
    #[serde(default, deserialize_with = "object_or_default")]
    pub overrides: Overrides,
}

impl AgentRequest {
    /// Reads a message's body, bare or in an SNS envelope.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the message.
    pub fn parse(body: &str) -> Result<Self, String> {
        let request: Self = read(body, "an AgentRequest")?;
        request.overrides.check()?;
        match request.count {
            Some(count) if !(1..=MOST_AGENTS).contains(&count) => Err(format!("count: is {count}, must be 1 to 10")),
            _ if request.webhook_urls.len() > MOST_AGENTS as usize => {
                Err(format!("webhookUrl: has {} URLs; the maximum is {MOST_AGENTS}", request.webhook_urls.len()))
            }
            _ => Ok(request),
        }
    }
}

/// The parts of an invalid request that allow a failure to be reported.
#[derive(Debug, Default)]
pub struct Salvage {
    /// Its id, if it is valid.
    pub request_id: Option<RequestId>,
    /// Its URLs.
    pub webhook_urls: Vec<String>,
    /// Its build.
    pub build: Option<Build>,
}

impl Salvage {
    /// Reads what can be read.
    pub fn from(body: &str) -> Self {
        let message = sns_message(body).ok().flatten();
        let Ok(Value::Object(mut fields)) = serde_json::from_str(message.as_deref().unwrap_or(body)) else {
            return Self::default();
        };
        let mut take = |name: &str| fields.remove(name).unwrap_or_default();
        let webhook_urls = match take("webhookUrl") {
            Value::Array(urls) => urls,
            url => vec![url],
        };
        let texts = webhook_urls.into_iter().filter_map(|url| url.as_str().map(str::to_owned));
        Self {
            request_id: serde_json::from_value(take("requestId")).ok(),
            webhook_urls: texts.take(MOST_AGENTS as usize).collect(),
            build: serde_json::from_value(take("build")).ok(),
        }
    }
}

/// The id of a request: 1 to 128 of `A-Z a-z 0-9 . _ : / -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct RequestId(String);

impl RequestId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for RequestId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a requestId is 1 to 128 of A-Z a-z 0-9 . _ : / -".into())
        }
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A build in Jenkins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// The job's full name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The build's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Its page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.job.as_deref().unwrap_or("build"))?;
        self.number.map_or(Ok(()), |number| write!(f, " #{number}"))
    }
}

/// Where a request differs from its template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Overrides {
    /// The task's CPU units.
    pub cpu: Option<u32>,
    /// The task's memory, in MiB.
    pub memory: Option<u32>,
    /// GiB of the task's ephemeral storage.
    pub ephemeral_storage: Option<u32>,
    /// Additional environment variables.
    #[serde(deserialize_with = "or_default")]
    pub environment: BTreeMap<String, String>,
    /// The container's command.
    pub command: Option<Vec<String>>,
    /// ARN of the task's role.
    #[serde(deserialize_with = "short")]
    pub task_role: Option<String>,
    /// A task definition other than the template's.
    pub task_definition: Option<TaskDefinition>,
}

impl Overrides {
    /// Checks how many there are, and that a container and a node can carry the variables. Whether the template allows
    /// them is checked elsewhere.
    fn check(&self) -> Result<(), String> {
        let words = self.command.as_ref().map_or(0, Vec::len);
        for (name, entries) in [("environment", self.environment.len()), ("command", words)] {
            if entries > OVERRIDE_ENTRIES {
                return Err(format!("overrides.{name}: has {entries} entries; the maximum is {OVERRIDE_ENTRIES}"));
            }
        }
        for (name, value) in &self.environment {
            variables::check(name, value).map_err(|message| format!("overrides.environment.{name}: {message}"))?;
        }
        Ok(())
    }
}

/// A build has ended.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildCompleted {
    #[serde(rename = "version", deserialize_with = "version_one")]
    _version: u32,
    /// Stops all agents of this request.
    #[serde(default)]
    pub request_id: Option<RequestId>,
    /// Stops this agent.
    #[serde(default, deserialize_with = "short")]
    pub agent: Option<String>,
    /// Stops this task.
    #[serde(default, deserialize_with = "short")]
    pub task_arn: Option<String>,
    /// The build.
    #[serde(default, deserialize_with = "object")]
    pub build: Option<Build>,
    /// Its result, in Jenkins' words.
    #[serde(default, deserialize_with = "short")]
    pub result: Option<String>,
}

impl BuildCompleted {
    /// Reads a message's body, bare or in an SNS envelope.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the message.
    pub fn parse(body: &str) -> Result<Self, String> {
        let completion: Self = read(body, "a BuildCompleted")?;
        if completion.request_id.is_none() && completion.agent.is_none() && completion.task_arn.is_none() {
            return Err("one of requestId, agent and taskArn is needed".into());
        }
        Ok(completion)
    }
}

/// A task's record of its request: the value of [`Record::VARIABLE`] in the container's environment overrides.
///
/// It is not a tag, since StopTask deletes tags (API_StopTask) and task events do not carry them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The request.
    pub request_id: RequestId,
    /// The index of the agent.
    pub index: u32,
    /// The request's number of agents.
    pub count: u32,
    /// When the request was sent.
    pub requested_at: Timestamp,
    /// The agent's container.
    pub container: String,
    /// The webhook that is notified of the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// The build that requested it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// The request's trace, if it is sampled.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::optional")]
    pub trace: Option<Trace>,
}

impl Record {
    /// The environment variable that holds it.
    pub const VARIABLE: &str = config::variables::REQUEST_RECORD;

    /// The record as JSON that satisfies `fits`. Until it does, the parts of the build that only people read are left
    /// out: first its page, then most of its job's name (which may be that of a folder with many others), then all.
    pub fn within(&self, fits: impl Fn(&str) -> bool) -> String {
        const JOB: usize = 200;
        let short = |job: &String| job.chars().take(JOB).chain("…".chars()).collect::<String>();
        let without_page = self.build.as_ref().map(|build| Build { url: None, ..build.clone() });
        let in_short = without_page.as_ref().map(|build| Build { job: build.job.as_ref().map(short), ..build.clone() });
        let ways = [self.build.clone(), without_page, in_short, None].into_iter();
        let json = |build| serde_json::to_string(&Self { build, ..self.clone() }).unwrap_or_default();
        let mut texts = ways.map(json).peekable();
        while let Some(text) = texts.next() {
            if fits(&text) || texts.peek().is_none() {
                return text;
            }
        }
        String::new()
    }
}

/// A notice to Jenkins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    pub version: u32,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: NoticeType,
    /// The same on every retry.
    pub id: String,
    /// When it was created.
    pub at: Timestamp,
    /// The request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The build that requested the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// The agent, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// Its task, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// How long each stage took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

impl Notice {
    /// A notice without optional parts. `subject` is the agent's name, or what replaces it.
    pub fn new(kind: NoticeType, subject: &str, at: Timestamp) -> Self {
        Self {
            version: VERSION,
            kind,
            id: format!("msg_{}", digest(&[kind.as_str(), subject])),
            at,
            request_id: None,
            build: None,
            agent: None,
            task: None,
            failure: None,
            timings: None,
        }
    }
}

/// The type of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoticeType {
    /// The agent can take its build.
    #[serde(rename = "agent.ready")]
    Ready,
    /// There will be no agent.
    #[serde(rename = "agent.failed")]
    Failed,
    /// A ready agent has ended.
    #[serde(rename = "agent.stopped")]
    Stopped,
    /// The request waits for room.
    #[serde(rename = "agent.waiting")]
    Waiting,
}

impl NoticeType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "agent.ready",
            Self::Failed => "agent.failed",
            Self::Stopped => "agent.stopped",
            Self::Waiting => "agent.waiting",
        }
    }
}

/// The agent of a notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// The node's name.
    pub name: AgentName,
    /// The template's labels.
    pub labels: Vec<String>,
    /// How it connects.
    pub connect: Connect,
    /// Its address, for SSH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its port, for SSH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub workspace: String,
    pub executors: u32,
    /// The ID of the Jenkins credential for its SSH login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_id: Option<String>,
}

/// The task of a notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its ARN.
    pub arn: String,
    /// Its cluster's ARN.
    pub cluster: String,
    /// Its task definition's ARN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_definition: Option<String>,
    /// Its container instance's ARN, on EC2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_instance: Option<String>,
    /// Grows with each change of the task.
    pub version: i64,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub code: FailureCode,
    /// Human-readable: what happened and what to do.
    pub message: String,
    /// ECS' stop code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_code: Option<String>,
    /// The exit code of the agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

impl Failure {
    /// A failure without an answer from ECS.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), stop_code: None, exit_code: None }
    }
}

/// The code of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureCode {
    /// The message is not a valid request.
    InvalidRequest,
    /// No template serves the label.
    NoTemplate,
    /// The template does not allow the override.
    OverrideRefused,
    /// ECS cannot start such a task.
    LaunchFailed,
    /// There was no room in time.
    CapacityTimeout,
    /// The task ended before it was ready.
    StartFailed,
    /// The task was not ready in time.
    StartTimeout,
    /// The agent is older than its lifetime.
    LifetimeExceeded,
    /// The agent had no build for too long.
    Idle,
    /// AWS reclaimed the Spot capacity.
    SpotInterruption,
}

impl FailureCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::NoTemplate => "NO_TEMPLATE",
            Self::OverrideRefused => "OVERRIDE_REFUSED",
            Self::LaunchFailed => "LAUNCH_FAILED",
            Self::CapacityTimeout => "CAPACITY_TIMEOUT",
            Self::StartFailed => "START_FAILED",
            Self::StartTimeout => "START_TIMEOUT",
            Self::LifetimeExceeded => "LIFETIME_EXCEEDED",
            Self::Idle => "IDLE",
            Self::SpotInterruption => "SPOT_INTERRUPTION",
        }
    }

    /// The level at which it is logged: an error where a request, a setting or an image must be changed, a warning where a
    /// build got too little of what there is, and neither where that is how agents end.
    pub fn level(self) -> Level {
        match self {
            Self::InvalidRequest | Self::NoTemplate | Self::OverrideRefused | Self::LaunchFailed => Level::ERROR,
            Self::StartFailed | Self::StartTimeout => Level::ERROR,
            Self::CapacityTimeout | Self::LifetimeExceeded => Level::WARN,
            Self::Idle | Self::SpotInterruption => Level::INFO,
        }
    }
}

/// Times of an agent's stages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// Jenkins sent the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
    /// ECS created the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_at: Option<Timestamp>,
    /// The image pull began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_started_at: Option<Timestamp>,
    /// The image pull ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_stopped_at: Option<Timestamp>,
    /// The task began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// From the request to this notice, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<i64>,
}

impl Timings {
    /// The stages up to a notice; each begins where the one before ends. The last is the one that had not ended yet.
    pub fn stages(&self, notified_at: Timestamp) -> Vec<(&'static str, Timestamp, Timestamp)> {
        const NAMES: [&str; 5] = ["waiting", "launch", "pull", "start", "notice"];
        let ends = [self.launched_at, self.pull_started_at, self.pull_stopped_at, self.started_at];
        let last = ends.iter().rposition(Option::is_some).map_or(0, |known| known + 1);
        let known = NAMES.into_iter().zip(ends).filter_map(|(name, end)| Some((name, end?)));
        let Some(mut begin) = self.requested_at else { return Vec::new() };
        let stages = known.chain([(NAMES[last], notified_at)]);
        stages.map(|(name, end)| (name, std::mem::replace(&mut begin, end), end)).collect()
    }
}

/// Reads a JSON body, bare or in an SNS envelope. `serde_json` limits the nesting to 128.
fn read<T: serde::de::DeserializeOwned>(body: &str, what: &str) -> Result<T, String> {
    if body.len() > MESSAGE_BYTES {
        return Err(format!("not {what}: it has {} bytes; the maximum is {MESSAGE_BYTES}", body.len()));
    }
    let message = sns_message(body).map_err(|error| format!("not JSON: {error}"))?;
    // From the text, not from the parsed value: otherwise a duplicate field would go unnoticed.
    let mut text = serde_json::Deserializer::from_str(message.as_deref().unwrap_or(body));
    let Object(read) =
        serde_path_to_error::deserialize(&mut text).map_err(|error| match error.path().to_string().as_str() {
            "." => format!("not {what}: {}", error.inner()),
            path => format!("not {what}: {path}: {}", error.inner()),
        })?;
    text.end().map_err(|error| format!("not {what}: {error}"))?;
    Ok(read)
}

/// The message inside an SNS envelope; none for any other JSON.
///
/// An envelope has `Type: Notification` and the message as text (SNS developer guide, "Raw message delivery").
fn sns_message(body: &str) -> serde_json::Result<Option<String>> {
    let mut value: Value = serde_json::from_str(body)?;
    let enveloped = value.get("Type").and_then(Value::as_str) == Some("Notification");
    Ok(match value.get_mut("Message").map(Value::take) {
        Some(Value::String(message)) if enveloped => Some(message),
        _ => None,
    })
}

fn version_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Number(number) if number.as_u64() == Some(VERSION.into()) => Ok(VERSION),
        other => Err(serde::de::Error::custom(format!("version {other} is not known here; {VERSION} is"))),
    }
}

/// Surrounding white space does not count: a Jenkinsfile may write it over several lines.
fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let label = String::deserialize(deserializer)?;
    bounded(label.trim(), LABEL_BYTES)
}

fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.map(|text| bounded(&text, TEXT_BYTES)).transpose()
}

fn bounded<E: serde::de::Error>(text: &str, most: usize) -> Result<String, E> {
    if text.len() > most {
        return Err(E::custom(format!("has {} bytes; the maximum is {most}", text.len())));
    }
    Ok(text.to_owned())
}

/// A JSON object: serde would also accept a list of the fields' values.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<PhantomData<T>> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
    }
}

fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

fn object_or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(object(deserializer)?.unwrap_or_default())
}

/// Null counts as missing: Groovy's JsonOutput writes it for what has no value.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "webhookUrl: must be a URL or a list of URLs")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(OneOrMany::One(url)) => vec![url],
        Some(OneOrMany::Many(urls)) => urls,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(fields: Value) -> Result<AgentRequest, String> {
        let mut body = json!({"version": 1, "label": "linux"});
        body.as_object_mut().into_iter().for_each(|body| body.extend(fields.as_object().cloned().unwrap_or_default()));
        AgentRequest::parse(&body.to_string())
    }

    #[test]
    fn ignores_white_space_around_a_label() {
        assert_eq!(request(json!({"label": "\n\t linux && maven \r\n"})).expect("good").label, "linux && maven");
    }

    #[test]
    fn shortens_a_record_by_what_only_people_read() {
        let record = |job: &str, url: Option<String>| Record {
            request_id: "r".parse().expect("an id"),
            index: 0,
            count: 1,
            requested_at: Timestamp::UNIX_EPOCH,
            container: "agent".into(),
            webhook_url: Some("https://a/".into()),
            build: Some(Build { job: Some(job.into()), number: Some(1), url }),
            trace: None,
        };
        let long = record(&"ж".repeat(2000), Some("https://a/".repeat(400)));
        let cut = |most: usize| {
            let text = long.within(|text| text.len() <= most);
            let cut: Record = serde_json::from_str(&text).expect("a record");
            assert_eq!(Record { build: long.build.clone(), ..cut.clone() }, long, "the rest stays");
            cut.build.map(|build| (build.job.map(|job| job.chars().count()), build.number, build.url.is_some()))
        };
        assert_eq!(cut(10_000), Some((Some(2000), Some(1), true)));
        assert_eq!(cut(5000), Some((Some(2000), Some(1), false)));
        assert_eq!(cut(1000), Some((Some(201), Some(1), false)));
        assert_eq!(cut(10), None);
        let short = record("a", None);
        assert_eq!(serde_json::from_str::<Record>(&short.within(|_| true)).ok(), Some(short));
    }

    #[test]
    fn reads_every_override() {
        let arn = "arn:aws:ecs:eu-west-1:123456789012:task-definition/jenkins-maven:7";
        let overrides = request(json!({"overrides": {"ephemeralStorage": 50, "taskDefinition": arn, "cpu": null,
            "command": ["a", ""], "environment": {"A": "", "REMOTING_OPTS": "$HOME"}}}))
        .expect("good")
        .overrides;
        assert_eq!(overrides.ephemeral_storage, Some(50));
        assert_eq!(overrides.task_definition.map(|it| it.family().to_owned()).as_deref(), Some("jenkins-maven"));
        assert_eq!((overrides.cpu, overrides.environment.len()), (None, 2));
    }

    #[test]
    fn limits_the_size_of_input() {
        let long = "x".repeat(TEXT_BYTES + 1);
        let variables: BTreeMap<_, _> = (0..=OVERRIDE_ENTRIES).map(|index| (format!("A{index}"), "")).collect();
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        for (fields, fault) in [
            (json!({"label": "a || ".repeat(300) + "a"}), "label: has 1501 bytes; the maximum is 1024"),
            (json!({"webhookUrl": vec!["https://a/"; 11]}), "webhookUrl: has 11 URLs"),
            (json!({"overrides": {"environment": variables}}), "overrides.environment: has 101 entries"),
            (json!({"overrides": {"command": vec!["x"; 101]}}), "overrides.command: has 101 entries"),
            (json!({"overrides": {"taskRole": long}}), "overrides.taskRole: has 2049 bytes"),
            (json!({"overrides": {"environment": {"A": "x$$y"}}}), "overrides.environment.A: must not contain $$"),
            (json!({"overrides": {"environment": {"A=B": "x"}}}), "overrides.environment.A=B: cannot be"),
            (
                json!({"overrides": {"taskDefinition": "a b"}}),
                "overrides.taskDefinition: must be a task definition's ARN",
            ),
            (json!({"overrides": {"ephemeralStorage": "50"}}), "overrides.ephemeralStorage: "),
            (json!({"overrides": {"command": deep}}), "recursion limit exceeded"),
            (json!({"label": "x".repeat(MESSAGE_BYTES)}), "the maximum is 65536"),
        ] {
            let found = request(fields).expect_err(fault);
            assert!(found.contains(fault) && found.len() < 300, "{found}");
        }
        let completion = json!({"version": 1, "agent": long}).to_string();
        assert!(BuildCompleted::parse(&completion).expect_err("too long").contains("agent: has 2049 bytes"));
    }

    #[test]
    fn every_failure_code_is_documented() {
        // Serde's error lists all variants.
        let error = serde_json::from_str::<FailureCode>("\"\"").expect_err("no code").to_string();
        let codes: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert!(codes.len() > 5, "{error}");
        for code in codes {
            let read: FailureCode = serde_json::from_value(json!(code)).expect("a code");
            assert_eq!(read.as_str(), code);
            let is_documented = |document: &str| {
                let mut first_cells = document.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
                first_cells.any(|cell| cell.contains(&format!("`{code}`")))
            };
            assert!(is_documented(include_str!("../../docs/messages.md")), "{code} in docs/messages.md");
            assert!(is_documented(include_str!("../../docs/troubleshooting.md")), "{code} in docs/troubleshooting.md");
        }
    }

    #[test]
    fn the_documented_examples_are_messages() {
        let mut found = BTreeMap::new();
        for section in include_str!("../../docs/messages.md").split("\n## ").skip(1) {
            let (title, text) = section.split_once('\n').expect("a heading");
            let examples = text.split("```json\n").skip(1).filter_map(|block| block.split("```").next());
            for example in examples {
                match title {
                    "Requests" => drop(AgentRequest::parse(example).expect(example)),
                    "Completions" => drop(BuildCompleted::parse(example).expect(example)),
                    "Notices" => {
                        let notice: Notice = serde_json::from_str(example).expect(example);
                        let read = serde_json::to_value(notice).expect("JSON");
                        assert_eq!(read, serde_json::from_str::<Value>(example).expect("JSON"), "no other fields");
                    }
                    _ => continue,
                }
                *found.entry(title).or_insert(0) += 1;
            }
        }
        assert_eq!(found, [("Completions", 1), ("Notices", 2), ("Requests", 1)].into());
    }
}
