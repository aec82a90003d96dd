//! The environment of a function: the only place that reads it.

use std::fmt;
use std::net::SocketAddr;

use aws_sdk_ssm::Client;

use super::{Config, Document, from_documents, is_word};
use crate::aws::Lazy;
use crate::config::environment::Environment;
use crate::fault::Fault;
use crate::secret::SecretStore;
use crate::trace;

/// A function's settings, read from its environment and validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// The queues.
    pub queues: QueueUrls,
    /// What the names of our agents begin with.
    pub agent_name_prefix: String,
    /// Where Lambda's X-Ray daemon listens, if there is one.
    pub xray_daemon: Option<SocketAddr>,
}

/// The URLs of the queues.
#[derive(Debug, Clone, Default)]
pub struct QueueUrls {
    /// `AgentRequest`s.
    pub requests: String,
    /// Requests that wait for room.
    pub waiting: String,
    /// Notices and reports that Jenkins could not take yet.
    pub undelivered: String,
    /// Messages that can never work.
    pub rejected: String,
    /// `BuildCompleted`s.
    pub completions: String,
}

/// All faults of the settings, in one message.
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
const LONGEST_PREFIX: usize = 32;

// With the template's 64 characters, a hyphen and 12 digits, a name still fits into `startedBy` (API_RunTask).
const _: () = assert!(LONGEST_PREFIX + 64 + 1 + 12 <= 128);

/// Reads and validates the settings, and reads the secrets that they name.
///
/// # Errors
/// Every setting and every secret at fault.
pub async fn load(
    environment: Environment,
    ssm: impl Into<Lazy<Client>>,
) -> Result<(Settings, SecretStore), SettingsFaults> {
    let ssm = ssm.into();
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
    let queues = QueueUrls {
        requests: queue("REQUESTS_QUEUE_URL"),
        waiting: queue("WAITING_QUEUE_URL"),
        undelivered: queue("UNDELIVERED_QUEUE_URL"),
        rejected: queue("REJECTED_QUEUE_URL"),
        completions: queue("COMPLETIONS_QUEUE_URL"),
    };
    let agent_name_prefix = environment("AGENT_NAME_PREFIX").unwrap_or_else(|| DEFAULT_PREFIX.into());
    if !is_word(&agent_name_prefix, LONGEST_PREFIX, "_-") {
        faults.push(format!("AGENT_NAME_PREFIX: {agent_name_prefix:?} must be 1 to 32 of A-Z a-z 0-9 _ -"));
    }
    if environment("AWS_REGION").or_else(|| environment("AWS_DEFAULT_REGION")).is_none() {
        faults.push("AWS_REGION: is missing; Lambda sets it, elsewhere set it to the region of the queues".into());
    }
    let config = match environment("AGENTS_CONFIG") {
        None => {
            faults.push(format!("AGENTS_CONFIG: is missing; set it to {SOURCES}"));
            None
        }
        Some(source) => match documents(&source, &ssm).await {
            Ok(documents) => {
                let (config, errors) = from_documents(&documents);
                faults.extend(errors.iter().map(ToString::to_string));
                config
            }
            Err(fault) => {
                faults.push(format!("AGENTS_CONFIG: {fault}"));
                None
            }
        },
    };
    let secrets = match &config {
        Some(config) => {
            SecretStore::read(config, ssm, environment.clone()).await.map_err(|errors| faults.extend(errors)).ok()
        }
        None => None,
    };
    match (config, secrets) {
        (Some(config), Some(secrets)) if faults.is_empty() => {
            let xray_daemon = environment("AWS_XRAY_DAEMON_ADDRESS").as_deref().and_then(trace::daemon);
            Ok((Settings { config, queues, agent_name_prefix, xray_daemon }, secrets))
        }
        _ => Err(SettingsFaults(faults)),
    }
}

const SOURCES: &str = "file:PATH, ssm:/parameter/name, ssm:/path/ or inline:YAML";

/// The texts of a source.
async fn documents(source: &str, ssm: &Client) -> Result<Vec<Document>, String> {
    match source.split_once(':') {
        Some(("inline", yaml)) => Ok(vec![Document::only(yaml)]),
        Some(("file", path)) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(vec![Document::only(text)]),
            Err(error) => Err(format!("cannot read {path}: {error}")),
        },
        Some(("ssm", path)) if path.ends_with('/') => parameters(path, ssm).await,
        Some(("ssm", name)) => parameter(name, ssm).await,
        // The text may be a whole configuration without its `inline:`.
        _ => Err(format!("begins with no known source; set it to {SOURCES}")),
    }
}

async fn parameter(name: &str, ssm: &Client) -> Result<Vec<Document>, String> {
    let answer = ssm
        .get_parameter()
        .name(name)
        .with_decryption(true)
        .send()
        .await
        .map_err(|error| format!("cannot read {name}: {}", Fault::from_sdk("ssm:GetParameter", error)))?;
    let text = answer.parameter.and_then(|parameter| parameter.value);
    Ok(vec![Document::only(text.ok_or_else(|| format!("the SSM parameter {name} has no value"))?)])
}

/// All parameters under a path, ordered by name.
async fn parameters(path: &str, ssm: &Client) -> Result<Vec<Document>, String> {
    let mut pages =
        ssm.get_parameters_by_path().path(path).recursive(true).with_decryption(true).into_paginator().send();
    let mut documents = Vec::new();
    while let Some(page) = pages.next().await {
        let page =
            page.map_err(|error| format!("cannot read {path}: {}", Fault::from_sdk("ssm:GetParametersByPath", error)))?;
        let found = page.parameters.unwrap_or_default().into_iter();
        documents.extend(found.filter_map(|one| Some(Document { source: one.name?, text: one.value? })));
    }
    documents.sort();
    if documents.is_empty() { Err(format!("there are no SSM parameters under {path}")) } else { Ok(documents) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::secret::tests::ssm;

    const CLOUD: &str =
        "{name: NAME, region: eu-west-1, templates: [{name: NAME, labels: [l], taskDefinition: d, connect: ssh}]}";

    fn configuration(name: &str) -> String {
        format!("jenkins: {{url: https://ci.example.com/}}\nclouds: [{}]", CLOUD.replace("NAME", name))
    }

    fn environment(changes: &[(&str, &str)]) -> Environment {
        let queue = "https://sqs.eu-west-1.amazonaws.com/123456789012/queue";
        let mut variables: BTreeMap<String, String> = ["REQUESTS", "WAITING", "UNDELIVERED", "REJECTED", "COMPLETIONS"]
            .map(|name| (format!("{name}_QUEUE_URL"), format!("{queue}-{name}")))
            .into();
        variables.insert("AWS_REGION".into(), "eu-west-1".into());
        variables.insert("AGENTS_CONFIG".into(), format!("inline:{}", configuration("c")));
        variables.extend(changes.iter().map(|&(name, value)| (name.into(), value.into())));
        Arc::new(move |name| variables.get(name).filter(|value| !value.is_empty()).cloned())
    }

    fn nothing() -> Client {
        ssm(|operation, _| panic!("{operation} was called"))
    }

    async fn faults(changes: &[(&str, &str)], ssm: Client) -> Vec<String> {
        load(environment(changes), ssm).await.expect_err("faults").0
    }

    #[tokio::test]
    async fn reads_valid_settings() {
        let (settings, _) = load(environment(&[]), nothing()).await.expect("good");
        assert_eq!(settings.agent_name_prefix, "ecs-");
        assert!(settings.queues.requests.ends_with("-REQUESTS"));
        assert!(settings.queues.waiting.ends_with("-WAITING"));
        assert!(settings.queues.undelivered.ends_with("-UNDELIVERED"));
        assert!(settings.queues.rejected.ends_with("-REJECTED"));
        assert!(settings.queues.completions.ends_with("-COMPLETIONS"));
        assert_eq!(settings.config.clouds[0].name, "c");
    }

    #[tokio::test]
    async fn every_setting_at_fault_is_named_in_one_message() {
        let config = "inline:jenkins: {url: https://a/, user: u, apiToken: {env: TOKEN}, colour: red}\nclouds: []";
        let found = load(
            environment(&[
                ("REQUESTS_QUEUE_URL", ""),
                ("WAITING_QUEUE_URL", "queue"),
                ("AGENT_NAME_PREFIX", "a/b"),
                ("AWS_REGION", ""),
                ("AGENTS_CONFIG", config),
            ]),
            nothing(),
        );
        let message = found.await.expect_err("faults").to_string();
        let lines: Vec<_> = message.lines().collect();
        assert_eq!(lines[0], "7 settings are missing or wrong:");
        for (line, start) in lines[1..].iter().zip([
            "- REQUESTS_QUEUE_URL: is missing",
            "- WAITING_QUEUE_URL: \"queue\" is not",
            "- AGENT_NAME_PREFIX: \"a/b\" must be",
            "- AWS_REGION: is missing",
            "- clouds: must have",
            "- jenkins.colour: is not known here",
            "- jenkins.apiToken: there is no environment variable TOKEN",
        ]) {
            assert!(line.starts_with(start), "{message}");
        }
    }

    #[tokio::test]
    async fn reports_an_unreadable_source() {
        for (source, fault) in [
            ("", "AGENTS_CONFIG: is missing"),
            ("s3:bucket", "AGENTS_CONFIG: begins with no known source"),
            ("/etc/agents.yaml", "AGENTS_CONFIG: begins with no known source"),
            ("file:/nowhere/agents.yaml", "AGENTS_CONFIG: cannot read /nowhere/agents.yaml: "),
        ] {
            let found = faults(&[("AGENTS_CONFIG", source)], nothing()).await;
            assert!(matches!(found.as_slice(), [one] if one.starts_with(fault)), "{found:?}");
        }
        let missing = ssm(|_, _| (400, json!({"__type": "ParameterNotFound", "message": "no such"})));
        let found = faults(&[("AGENTS_CONFIG", "ssm:/agents")], missing).await;
        assert_eq!(found, ["AGENTS_CONFIG: cannot read /agents: ssm:GetParameter: ParameterNotFound: no such"]);
        let found = faults(&[("AGENTS_CONFIG", "ssm:/agents/")], ssm(|_, _| (200, json!({"Parameters": []})))).await;
        assert_eq!(found, ["AGENTS_CONFIG: there are no SSM parameters under /agents/"]);
    }

    #[tokio::test]
    async fn a_file_and_a_parameter_hold_a_configuration() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), configuration("filed")).expect("written");
        let source = format!("file:{}", file.path().display());
        let (settings, _) = load(environment(&[("AGENTS_CONFIG", &source)]), nothing()).await.expect("good");
        assert_eq!(settings.config.clouds[0].name, "filed");

        let one = ssm(|operation, input| {
            assert_eq!(operation, "GetParameter");
            assert_eq!(input, json!({"Name": "/agents", "WithDecryption": true}));
            (200, json!({"Parameter": {"Name": "/agents", "Value": configuration("stored")}}))
        });
        let (settings, _) = load(environment(&[("AGENTS_CONFIG", "ssm:/agents")]), one).await.expect("good");
        assert_eq!(settings.config.clouds[0].name, "stored");
    }

    #[tokio::test]
    async fn the_parameters_under_a_path_are_joined_in_the_order_of_their_names() {
        let page = |names: &[(&str, String)], next: Value| {
            let parameters: Vec<_> = names.iter().map(|(name, text)| json!({"Name": name, "Value": text})).collect();
            (200, json!({"Parameters": parameters, "NextToken": next}))
        };
        let pages = ssm(move |operation, input| {
            assert_eq!(operation, "GetParametersByPath");
            assert_eq!((&input["Path"], &input["WithDecryption"]), (&json!("/agents/"), &json!(true)));
            let clouds = |name: &str| format!("clouds: [{}]", CLOUD.replace("NAME", name));
            match input["NextToken"].as_str() {
                None => page(&[("/agents/z", clouds("last"))], json!("2")),
                Some("2") => page(&[], json!("3")),
                _ => page(&[("/agents/b", clouds("second")), ("/agents/a", configuration("first"))], Value::Null),
            }
        });
        let (settings, _) = load(environment(&[("AGENTS_CONFIG", "ssm:/agents/")]), pages).await.expect("good");
        let names: Vec<_> = settings.config.clouds.iter().map(|cloud| cloud.name.as_str()).collect();
        assert_eq!(names, ["first", "second", "last"]);
    }
}
