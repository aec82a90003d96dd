//! Nodes over Jenkins' REST API.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Fault, Jenkins, said, unexpected};
use crate::config::{self, HostKeyVerification, Limit};
use crate::secret::Secret;

/// A node as Jenkins is to have it.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Who may build on it.
    pub labels: Vec<String>,
    /// Its working directory.
    pub workspace: String,
    /// Builds at once.
    pub executors: u32,
    /// For the builds.
    pub environment: BTreeMap<String, String>,
    /// How Jenkins and the agent find each other.
    pub launcher: Launcher,
}

/// How Jenkins and an agent find each other.
#[derive(Debug, Clone)]
pub enum Launcher {
    /// Jenkins logs in.
    Ssh {
        /// Where.
        host: String,
        /// The port there.
        port: u16,
        /// How.
        settings: config::Ssh,
    },
    /// The agent dials Jenkins.
    Inbound,
}

/// Whether a node was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// Just now.
    New,
    /// There was one of this name.
    Existed,
}

/// A node as Jenkins shows it: what `hudson.model.Computer` exports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeState {
    /// Its name.
    #[serde(rename = "displayName")]
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Whether nothing can run there now.
    pub offline: bool,
    /// Whether somebody took it offline.
    pub temporarily_offline: bool,
    /// Why it is offline, in words.
    #[serde(rename = "offlineCauseReason")]
    pub offline_cause: Option<String>,
    /// Whether nothing runs there.
    pub idle: bool,
}

/// What of a node is asked for.
const FIELDS: &str = "displayName,description,offline,temporarilyOffline,offlineCauseReason,idle";

impl Jenkins {
    /// Creates a node: `ComputerSet.doDoCreateItem`, which answers with a redirect, and with 400 for a name that is taken
    /// or not allowed (`ComputerSet.checkName`). Needs Agent/Create.
    ///
    /// # Errors
    /// When it was not created and none was there.
    pub async fn create_node(&self, node: &Node) -> Result<Created, Fault> {
        let json = definition(node).to_string();
        let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("json", &json).finish();
        let path = format!("computer/doCreateItem?name={}&type=hudson.slaves.DumbSlave", encode(&node.name));
        let answer = self.call(Method::POST, &path, Some(form)).await?;
        match answer.status() {
            status if status.is_success() || status.is_redirection() => Ok(Created::New),
            StatusCode::BAD_REQUEST if self.node(&node.name).await?.is_some() => Ok(Created::Existed),
            StatusCode::BAD_REQUEST => Err(Fault::Permanent(format!("refuses node {}{}", node.name, said(&answer)))),
            _ => Err(unexpected("doCreateItem", &answer)),
        }
    }

    /// A node; none if there is none of this name.
    ///
    /// # Errors
    /// When Jenkins could not be asked.
    pub async fn node(&self, name: &str) -> Result<Option<NodeState>, Fault> {
        let path = format!("computer/{}/api/json?tree={FIELDS}", encode(name));
        let answer = self.call(Method::GET, &path, None).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => serde_json::from_slice(answer.body()).map(Some).map_err(not_json),
            _ => Err(unexpected("a node's api/json", &answer)),
        }
    }

    /// All nodes, the controller's own among them.
    ///
    /// # Errors
    /// When Jenkins could not be asked.
    pub async fn nodes(&self) -> Result<Vec<NodeState>, Fault> {
        #[derive(Deserialize)]
        struct All {
            computer: Vec<NodeState>,
        }
        let answer = self.call(Method::GET, &format!("computer/api/json?tree=computer[{FIELDS}]"), None).await?;
        match answer.status() {
            StatusCode::OK => {
                serde_json::from_slice(answer.body()).map(|All { computer }| computer).map_err(not_json)
            }
            _ => Err(unexpected("computer/api/json", &answer)),
        }
    }

    /// Takes a node offline with this message. `Computer.doToggleOffline` toggles, so that the state is read first; one
    /// that is offline already keeps its state and gets the message. Answers false if there is no such node. Needs
    /// Agent/Disconnect.
    ///
    /// # Errors
    /// When Jenkins could not be asked.
    pub async fn set_offline(&self, name: &str, message: &str) -> Result<bool, Fault> {
        let Some(node) = self.node(name).await? else { return Ok(false) };
        let action = if node.temporarily_offline { "changeOfflineCause" } else { "toggleOffline" };
        self.node_action(name, &format!("{action}?offlineMessage={}", encode(message))).await
    }

    /// Lets a node take builds again that was taken offline. Answers false if there is no such node, or it was not.
    /// Needs Agent/Connect.
    ///
    /// # Errors
    /// When Jenkins could not be asked.
    pub async fn set_online(&self, name: &str) -> Result<bool, Fault> {
        match self.node(name).await? {
            Some(node) if node.temporarily_offline => self.node_action(name, "toggleOffline").await,
            _ => Ok(false),
        }
    }

    /// Deletes a node (`Computer.doDoDelete`), which ends a build on it at once. Answers false if there is no such node.
    /// Needs Agent/Delete.
    ///
    /// # Errors
    /// When Jenkins could not be asked.
    pub async fn delete_node(&self, name: &str) -> Result<bool, Fault> {
        self.node_action(name, "doDelete").await
    }

    async fn node_action(&self, name: &str, action: &str) -> Result<bool, Fault> {
        let path = format!("computer/{}/{action}", encode(name));
        let answer = self.call(Method::POST, &path, Some(String::new())).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() || status.is_redirection() => Ok(true),
            _ => Err(unexpected(super::action(action), &answer)),
        }
    }

    /// The secret with which an inbound agent connects: the first argument in `jenkins-agent.jnlp`
    /// (`SlaveComputer.doJenkinsAgentJnlp`). Needs Agent/Connect.
    ///
    /// # Errors
    /// When Jenkins could not be asked, or its answer holds no secret.
    pub async fn inbound_secret(&self, name: &str) -> Result<Secret, Fault> {
        let answer = self.call(Method::GET, &format!("computer/{}/jenkins-agent.jnlp", encode(name)), None).await?;
        if answer.status() != StatusCode::OK {
            // A node just made may not have its computer yet.
            return Err(Fault::Later(format!("answered {} to jenkins-agent.jnlp of {name}", answer.status())));
        }
        let text = String::from_utf8_lossy(answer.body());
        let argument = text.split("<argument>").nth(1).and_then(|rest| rest.split("</argument>").next());
        match argument.map(str::trim) {
            Some(secret) if !secret.is_empty() => Ok(Secret::new(secret)),
            _ => Err(Fault::Permanent(format!("jenkins-agent.jnlp of {name} holds no secret"))),
        }
    }
}

fn not_json(error: serde_json::Error) -> Fault {
    Fault::Permanent(format!("does not answer like Jenkins: {error}"))
}

fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The form that Jenkins' own page for a permanent agent submits (`DumbSlave`, `Slave`'s data-bound setters).
fn definition(node: &Node) -> Value {
    let environment: Vec<Value> =
        node.environment.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let mut properties = json!({"stapler-class-bag": "true"});
    if !environment.is_empty() {
        properties["hudson-slaves-EnvironmentVariablesNodeProperty"] = json!({"env": environment});
    }
    json!({
        "name": node.name,
        "nodeDescription": node.description,
        "numExecutors": node.executors.to_string(),
        "remoteFS": node.workspace,
        "labelString": node.labels.join(" "),
        "mode": "EXCLUSIVE",
        "": ["hudson.slaves.JNLPLauncher", "hudson.slaves.RetentionStrategy$Always"],
        "launcher": launcher(&node.launcher),
        "retentionStrategy": class("hudson.slaves.RetentionStrategy$Always"),
        "nodeProperties": properties,
        "type": "hudson.slaves.DumbSlave",
    })
}

fn class(name: &str) -> Value {
    json!({"stapler-class": name, "$class": name})
}

/// `JNLPLauncher` and ssh-slaves' `SSHLauncher` with their data-bound setters.
fn launcher(launcher: &Launcher) -> Value {
    match launcher {
        Launcher::Inbound => {
            let mut json = class("hudson.slaves.JNLPLauncher");
            json["webSocket"] = json!(true);
            json["workDirSettings"] = json!({"disabled": false, "workDirPath": "", "internalDir": "remoting", "failIfWorkDirIsMissing": false});
            json
        }
        Launcher::Ssh { host, port, settings } => {
            let mut json = class("hudson.plugins.sshslaves.SSHLauncher");
            let seconds = |limit: Limit| limit.0.unwrap_or_default().as_secs();
            json["host"] = json!(host);
            json["port"] = json!(port);
            json["credentialsId"] = json!(settings.credentials_id);
            json["launchTimeoutSeconds"] = json!(seconds(settings.launch_timeout));
            json["maxNumRetries"] = json!(settings.max_retries);
            json["retryWaitTime"] = json!(seconds(settings.retry_wait));
            json["javaPath"] = json!(settings.java_path.as_deref().unwrap_or_default());
            json["jvmOptions"] = json!(settings.jvm_options.as_deref().unwrap_or_default());
            json["prefixStartSlaveCmd"] = json!(settings.prefix_start_command.as_deref().unwrap_or_default());
            json["suffixStartSlaveCmd"] = json!(settings.suffix_start_command.as_deref().unwrap_or_default());
            json["tcpNoDelay"] = json!(true);
            json["sshHostKeyVerificationStrategy"] = match &settings.host_key_verification {
                HostKeyVerification::None => class("hudson.plugins.sshslaves.verifiers.NonVerifyingKeyVerificationStrategy"),
                HostKeyVerification::KnownHosts => {
                    class("hudson.plugins.sshslaves.verifiers.KnownHostsFileKeyVerificationStrategy")
                }
                HostKeyVerification::Key(key) => {
                    let mut json = class("hudson.plugins.sshslaves.verifiers.ManuallyProvidedKeyVerificationStrategy");
                    json["key"] = json!(key);
                    json
                }
            };
            json
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scripted};
    use super::*;

    fn node(launcher: Launcher) -> Node {
        Node {
            name: "ecs-a-0a1b2c3d4e5f".into(),
            description: "for a & b".into(),
            labels: vec!["a".into(), "b".into()],
            workspace: "/home/jenkins".into(),
            executors: 1,
            environment: BTreeMap::from([("A".into(), "b c".into())]),
            launcher,
        }
    }

    fn form(request: &http::Request<bytes::Bytes>) -> Value {
        let (_, json) = url::form_urlencoded::parse(request.body()).find(|(key, _)| key == "json").expect("json");
        serde_json::from_str(&json).expect("JSON")
    }

    #[tokio::test]
    async fn a_node_is_posted_as_the_page_posts_it() {
        let scripted = scripted(vec![answer(302, "")]);
        let settings = config::Ssh { prefix_start_command: Some("bash -l -c '".into()), ..config::Ssh::default() };
        let launcher = Launcher::Ssh { host: "10.0.1.5".into(), port: 32768, settings };
        assert_eq!(scripted.jenkins.create_node(&node(launcher)).await, Ok(Created::New));
        let asked = scripted.asked.lock().expect("asked");
        assert_eq!(
            asked[0].uri(),
            "https://ci.example.com/jenkins/computer/doCreateItem?name=ecs-a-0a1b2c3d4e5f&type=hudson.slaves.DumbSlave"
        );
        let form = form(&asked[0]);
        assert_eq!(form["labelString"], "a b");
        assert_eq!(form["mode"], "EXCLUSIVE");
        assert_eq!(form["launcher"]["host"], "10.0.1.5");
        assert_eq!(form["launcher"]["port"], 32768);
        assert_eq!(form["launcher"]["prefixStartSlaveCmd"], "bash -l -c '");
        assert_eq!(form["nodeProperties"]["hudson-slaves-EnvironmentVariablesNodeProperty"]["env"][0]["value"], "b c");
    }

    #[tokio::test]
    async fn a_node_that_is_there_is_no_fault_and_a_bad_one_is() {
        let there = scripted(vec![answer(400, ""), answer(200, "{\"displayName\": \"x\"}")]);
        assert_eq!(there.jenkins.create_node(&node(Launcher::Inbound)).await, Ok(Created::Existed));
        let bad = scripted(vec![answer(400, "<h1>Error</h1><p>‘<b>*</b>’ is an unsafe character</p>"), answer(404, "")]);
        let fault = bad.jenkins.create_node(&node(Launcher::Inbound)).await.expect_err("400");
        assert!(matches!(&fault, Fault::Permanent(text) if text.contains("is an unsafe character")), "{fault}");
    }

    #[tokio::test]
    async fn offline_is_read_before_it_is_toggled() {
        let online = scripted(vec![answer(200, "{\"temporarilyOffline\": false}"), answer(302, "")]);
        assert_eq!(online.jenkins.set_offline("a", "x y").await, Ok(true));
        assert!(online.asked.lock().expect("asked")[1].uri().to_string().ends_with("/toggleOffline?offlineMessage=x%20y"));
        let offline = scripted(vec![answer(200, "{\"temporarilyOffline\": true}"), answer(302, "")]);
        assert_eq!(offline.jenkins.set_offline("a", "x").await, Ok(true));
        assert!(offline.asked.lock().expect("asked")[1].uri().path().ends_with("/changeOfflineCause"));
        let gone = scripted(vec![answer(404, "")]);
        assert_eq!(gone.jenkins.set_offline("a", "x").await, Ok(false));
    }

    #[tokio::test]
    async fn the_secret_is_the_first_argument() {
        let jnlp = "<jnlp><application-desc><argument>5ecre7</argument><argument>a</argument></application-desc></jnlp>";
        let scripted = scripted(vec![answer(200, jnlp)]);
        assert_eq!(scripted.jenkins.inbound_secret("a").await.expect("a secret").expose(), "5ecre7");
    }
}
