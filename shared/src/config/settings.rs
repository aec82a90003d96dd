//! The environment of a function: the only place that reads it.

use std::fmt;

use aws_sdk_ssm::Client;

use super::Config;
use super::load::{self, Document};
use crate::aws::ApiFault;
use crate::secret::{Environment, SecretStore};

/// What a function is told by its environment, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// The queues.
    pub queues: Queues,
    /// What the names of our agents begin with.
    pub agent_name_prefix: String,
}

/// The URLs of the queues.
#[derive(Debug, Clone, Default)]
pub struct Queues {
    /// `AgentRequest`s.
    pub requests: String,
    /// Requests that wait for room.
    pub waiting: String,
    /// What Jenkins could not take yet.
    pub undelivered: String,
    /// What can never work.
    pub rejected: String,
    /// `BuildCompleted`s.
    pub completions: String,
}

/// Everything that is wrong with the settings, in one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsFaults(pub Vec<String>);

impl fmt::Display for SettingsFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.0.len() == 1 { " is" } else { "s are" };
        write!(f, "{} setting{s} missing or wrong:", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n- {fault}"))
    }
}

impl std::error::Error for SettingsFaults {}

/// The process's environment.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

const DEFAULT_PREFIX: &str = "ecs-";

/// Reads and checks the settings, and reads the secrets that they name.
///
/// # Errors
/// Every setting and every secret at fault.
pub async fn load(environment: Environment, ssm: Client) -> Result<(Settings, SecretStore), SettingsFaults> {
    let mut faults = Vec::new();
    let mut queue = |name: &str| match environment(name) {
        Some(url) if url::Url::parse(&url).is_ok_and(|url| url.has_host()) => url,
        Some(url) => {
            faults.push(format!("{name}: {url:?} is not a queue's URL"));
            String::new()
        }
        None => {
            faults.push(format!("{name}: is missing; set it to the queue's URL"));
            String::new()
        }
    };
    let queues = Queues {
        requests: queue("REQUESTS_QUEUE_URL"),
        waiting: queue("WAITING_QUEUE_URL"),
        undelivered: queue("UNDELIVERED_QUEUE_URL"),
        rejected: queue("REJECTED_QUEUE_URL"),
        completions: queue("COMPLETIONS_QUEUE_URL"),
    };
    let agent_name_prefix = environment("AGENT_NAME_PREFIX").unwrap_or_else(|| DEFAULT_PREFIX.into());
    if !is_prefix(&agent_name_prefix) {
        faults.push(format!("AGENT_NAME_PREFIX: {agent_name_prefix:?} is not 1 to 32 of A-Z a-z 0-9 _ -"));
    }
    if environment("AWS_REGION").is_none() {
        faults.push("AWS_REGION: is missing; Lambda sets it, elsewhere set it to the region of the queues".into());
    }
    let config = match environment("AGENTS_CONFIG") {
        None => Err(vec![
            "AGENTS_CONFIG: is missing; set it to file:PATH, ssm:/parameter/name, ssm:/path/ or inline:YAML".into(),
        ]),
        Some(source) => match documents(&source, &ssm).await {
            Err(fault) => Err(vec![format!("AGENTS_CONFIG: {fault}")]),
            Ok(documents) => load::from_documents(&documents)
                .map_err(|errors| errors.iter().map(ToString::to_string).collect()),
        },
    };
    let read = match config {
        Ok(config) => SecretStore::read(&config, ssm, environment.clone()).await.map(|secrets| (config, secrets)),
        Err(errors) => Err(errors),
    };
    match read {
        Ok((config, secrets)) if faults.is_empty() => Ok((Settings { config, queues, agent_name_prefix }, secrets)),
        Ok(_) => Err(SettingsFaults(faults)),
        Err(errors) => {
            faults.extend(errors);
            Err(SettingsFaults(faults))
        }
    }
}

fn is_prefix(prefix: &str) -> bool {
    (1..=32).contains(&prefix.len())
        && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The documents of a source, each with where it is from.
async fn documents(source: &str, ssm: &Client) -> Result<Vec<Document>, String> {
    if let Some(yaml) = source.strip_prefix("inline:") {
        return Ok(vec![Document::only(yaml)]);
    }
    if let Some(path) = source.strip_prefix("file:") {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        return Ok(vec![Document::only(text)]);
    }
    let Some(name) = source.strip_prefix("ssm:") else {
        let kind = source.split(':').next().unwrap_or_default();
        return Err(format!("{kind:?} is no source; write file:PATH, ssm:/parameter/name, ssm:/path/ or inline:YAML"));
    };
    if !name.ends_with('/') {
        let answer = ssm
            .get_parameter()
            .name(name)
            .with_decryption(true)
            .send()
            .await
            .map_err(|error| ApiFault::new("ssm:GetParameter", error).to_string())?;
        let value = answer.parameter.and_then(|parameter| parameter.value);
        return Ok(vec![Document::only(value.ok_or_else(|| format!("SSM parameter {name} has no value"))?)]);
    }
    let mut documents = Vec::new();
    let mut next = None;
    loop {
        let answer = ssm
            .get_parameters_by_path()
            .path(name)
            .recursive(true)
            .with_decryption(true)
            .set_next_token(next)
            .send()
            .await
            .map_err(|error| ApiFault::new("ssm:GetParametersByPath", error).to_string())?;
        let found = answer.parameters.unwrap_or_default();
        documents.extend(found.into_iter().filter_map(|parameter| Some(Document { source: parameter.name?, text: parameter.value? })));
        next = answer.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            break;
        }
    }
    documents.sort_by(|a: &Document, b| a.source.cmp(&b.source));
    if documents.is_empty() { Err(format!("there are no SSM parameters under {name}")) } else { Ok(documents) }
}
