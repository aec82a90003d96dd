//! Nodes over Jenkins' REST API.

use std::collections::BTreeMap;

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Call, FORM, Jenkins, Version, definition, not_jenkins};
use crate::config;
use crate::fault::{Fault, Kind};
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
#[expect(clippy::large_enum_variant, reason = "one at a time, on its way into one call")]
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
    pub idle: Option<bool>,
}

/// What of a node is asked for.
const FIELDS: &str = "displayName,description,offline,temporarilyOffline,offlineCauseReason,idle";

/// From this version on `ComputerSet.doCreateItem` takes a node as XML.
const TAKES_XML: Version = Version(2, 539);

impl Jenkins {
    /// Creates a node: as XML where the controller takes that, else as the form of its own page. Either is answered with
    /// 400 where the name is taken or not allowed. Needs Agent/Create.
    ///
    /// # Errors
    /// When it was not created and none was there.
    pub async fn create_node(&self, node: &Node) -> Result<Created, Fault> {
        if self.takes_xml().await {
            match self.create_from_xml(node).await {
                // A controller that does not take it after all is asked in the older way.
                Err(fault) if fault.is_final() => {
                    tracing::debug!(agent.name = node.name, error = %fault, "not created from XML");
                }
                result => return result,
            }
        }
        self.create_from_form(node).await
    }

    /// Whether the controller takes XML by its version, which is asked for if no answer has told it yet. Who cannot say
    /// gets the form.
    async fn takes_xml(&self) -> bool {
        if self.version().is_none()
            && let Err(fault) = self.call_once(Call::get("whoAmI/api/json")).await
        {
            tracing::debug!(error = %fault, "the controller's version is unknown");
        }
        self.version() >= Some(TAKES_XML)
    }

    /// `ComputerSet.doCreateItem` with XML, which answers 200.
    async fn create_from_xml(&self, node: &Node) -> Result<Created, Fault> {
        let path = format!("computer/createItem?name={}", encode(&node.name));
        let xml = definition::xml(node);
        self.create(node, Call::post(&path, "application/xml; charset=UTF-8", &xml)).await
    }

    /// `ComputerSet.doDoCreateItem`, which answers with a redirect to the list of nodes.
    async fn create_from_form(&self, node: &Node) -> Result<Created, Fault> {
        let path = format!("computer/doCreateItem?name={}&type=hudson.slaves.DumbSlave", encode(&node.name));
        let json = definition::form(node).to_string();
        let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("json", &json).finish();
        self.create(node, Call::post(&path, FORM, &form)).await
    }

    async fn create(&self, node: &Node, call: Call<'_>) -> Result<Created, Fault> {
        let answer = self.call(call).await?;
        match answer.status() {
            status if is_done(status) => Ok(Created::New),
            StatusCode::BAD_REQUEST if self.said(&answer).contains("already exists") => Ok(Created::Existed),
            // Something else before it, as a proxy's page while Jenkins restarts.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if super::version(&answer).is_none() => {
                let action = call.action();
                let status = answer.status();
                Err(Fault::jenkins(
                    Kind::Setting,
                    format!("answered {status} to {action}, and not as Jenkins does: mend jenkins.url"),
                ))
            }
            // In words it says so in many languages.
            StatusCode::BAD_REQUEST if self.node(&node.name).await?.is_some() => Ok(Created::Existed),
            _ => Err(self.unexpected(call, &answer)),
        }
    }

    /// A node; none if there is none of this name.
    ///
    /// # Errors
    /// When Jenkins could not be asked.
    pub async fn node(&self, name: &str) -> Result<Option<NodeState>, Fault> {
        let path = format!("computer/{}/api/json?tree={FIELDS}", encode(name));
        let call = Call::get(&path);
        let answer = self.call(call).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => serde_json::from_slice(answer.body()).map(Some).map_err(not_jenkins),
            _ => Err(self.unexpected(call, &answer)),
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
        let path = format!("computer/api/json?tree=computer[{FIELDS}]");
        let call = Call::get(&path);
        let answer = self.call(call).await?;
        match answer.status() {
            StatusCode::OK => serde_json::from_slice(answer.body()).map(|all: All| all.computer).map_err(not_jenkins),
            _ => Err(self.unexpected(call, &answer)),
        }
    }

    /// Takes a node offline with this message. `Computer.doToggleOffline` toggles, so that the state is read first; one
    /// that is offline already stays so and gets the message (`Computer.doChangeOfflineCause`). Answers false if there is
    /// no such node. Needs Agent/Disconnect.
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
        let call = Call::post(&path, FORM, "");
        let answer = self.call(call).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if is_done(status) => Ok(true),
            _ => Err(self.unexpected(call, &answer)),
        }
    }

    /// The secret with which an inbound agent connects: the first argument in `jenkins-agent.jnlp`
    /// (`SlaveComputer.doJenkinsAgentJnlp`). Needs Agent/Connect.
    ///
    /// # Errors
    /// When Jenkins could not be asked, or its answer holds no secret.
    pub async fn inbound_secret(&self, name: &str) -> Result<Secret, Fault> {
        let path = format!("computer/{}/jenkins-agent.jnlp", encode(name));
        let call = Call::get(&path);
        let answer = self.call(call).await?;
        match answer.status() {
            StatusCode::OK => first_argument(answer.body()).ok_or_else(|| {
                Fault::jenkins(Kind::Permanent, format!("the answer to {} holds no secret", call.action()))
            }),
            // A node just made may not have its computer yet.
            StatusCode::NOT_FOUND => Err(Fault::jenkins(Kind::Passing, format!("has no {} yet", call.action()))),
            _ => Err(self.unexpected(call, &answer)),
        }
    }
}

/// A form is answered with a redirect (`HttpResponses.redirectToDot`), the API with 200.
fn is_done(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// The text of the first `<argument>` (`SlaveComputer/jenkins-agent.jnlp.jelly`).
fn first_argument(jnlp: &[u8]) -> Option<Secret> {
    let jnlp = roxmltree::Document::parse(std::str::from_utf8(jnlp).ok()?).ok()?;
    let argument = jnlp.descendants().find(|element| element.has_tag_name("argument"))?;
    argument.text().map(str::trim).filter(|text| !text.is_empty()).map(Secret::new)
}

/// For a path or a query.
pub(super) fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scripted};
    use super::*;

    fn node() -> Node {
        Node {
            name: "ecs-a-0a1b2c3d4e5f".into(),
            description: "for a & b".into(),
            labels: vec!["a".into(), "b".into()],
            workspace: "/home/jenkins".into(),
            executors: 1,
            environment: BTreeMap::from([("A".into(), "b c".into())]),
            launcher: Launcher::Inbound,
        }
    }

    fn of_version(version: &str, status: u16, body: &'static str) -> http::Response<&'static str> {
        http::Response::builder().status(status).header("X-Jenkins", version).body(body).expect("a response")
    }

    #[tokio::test]
    async fn an_older_controller_gets_the_form() {
        let scripted = scripted(vec![of_version("2.528.3", 200, "{}"), answer(302, ""), answer(302, "")]);
        assert_eq!(scripted.jenkins.create_node(&node()).await, Ok(Created::New));
        assert_eq!(scripted.jenkins.create_node(&node()).await, Ok(Created::New));
        let asked = scripted.asked.lock().expect("asked");
        assert_eq!(asked.len(), 3, "the version is asked for once");
        assert_eq!(asked[1].method(), "POST");
        assert_eq!(
            asked[1].uri(),
            "https://ci.example.com/jenkins/computer/doCreateItem?name=ecs-a-0a1b2c3d4e5f&type=hudson.slaves.DumbSlave"
        );
        assert_eq!(asked[1].headers()["content-type"], FORM);
        assert_eq!(asked[1].headers()["authorization"], "Basic Ym90OnQwa2Vu");
        let (_, json) = url::form_urlencoded::parse(asked[1].body()).find(|(key, _)| key == "json").expect("json");
        assert_eq!(json, definition::form(&node()).to_string());
    }

    #[tokio::test]
    async fn a_newer_controller_gets_xml() {
        let scripted = scripted(vec![of_version("2.541.1", 200, "{}"), of_version("2.541.1", 200, "")]);
        assert_eq!(scripted.jenkins.create_node(&node()).await, Ok(Created::New));
        let asked = scripted.asked.lock().expect("asked");
        assert_eq!(asked[1].uri(), "https://ci.example.com/jenkins/computer/createItem?name=ecs-a-0a1b2c3d4e5f");
        assert_eq!(asked[1].headers()["content-type"], "application/xml; charset=UTF-8");
        assert_eq!(*asked[1].body(), definition::xml(&node()));
    }

    #[tokio::test]
    async fn whoever_takes_no_xml_after_all_gets_the_form() {
        let scripted = scripted(vec![
            of_version("2.541.1", 200, "{}"),
            of_version("2.541.1", 400, "<p>No mode given</p>"),
            answer(404, ""),
            answer(302, ""),
        ]);
        assert_eq!(scripted.jenkins.create_node(&node()).await, Ok(Created::New));
        assert_eq!(scripted.asked.lock().expect("asked")[3].uri().path(), "/jenkins/computer/doCreateItem");
    }

    #[tokio::test]
    async fn a_node_that_is_there_is_no_fault_and_a_bad_one_is() {
        let there = scripted(vec![answer(200, "{}"), answer(400, ""), answer(200, "{\"displayName\": \"x\"}")]);
        assert_eq!(there.jenkins.create_node(&node()).await, Ok(Created::Existed));
        let page = "<h1>Error</h1><p>‘<b>*</b>’ is an unsafe character</p>";
        let bad = scripted(vec![answer(200, "{}"), answer(400, page), answer(404, "")]);
        let fault = bad.jenkins.create_node(&node()).await.expect_err("400");
        assert!(fault.kind == Kind::Permanent && fault.message.contains("‘*’ is an unsafe character"), "{fault}");
    }

    #[tokio::test]
    async fn a_controller_in_trouble_is_asked_again_later() {
        let after_version = |status| vec![answer(200, "{}"), answer(status, "")];
        for answers in [vec![], vec![answer(503, "")], after_version(500), after_version(429)] {
            let fault = scripted(answers).jenkins.create_node(&node()).await.expect_err("trouble");
            assert_eq!(fault.kind, Kind::Passing, "{fault}");
        }
    }

    #[tokio::test]
    async fn nodes_are_read_in_one_call() {
        let body = r#"{"_class": "hudson.model.ComputerSet", "computer": [
            {"_class": "hudson.model.Hudson$MasterComputer", "displayName": "Built-In Node", "description": "",
             "offline": false, "temporarilyOffline": false, "offlineCauseReason": "", "idle": true},
            {"_class": "hudson.slaves.SlaveComputer", "displayName": "ecs-a-0a1b2c3d4e5f", "description": null,
             "offline": true, "temporarilyOffline": true, "offlineCauseReason": "build over", "idle": false}]}"#;
        let scripted = scripted(vec![answer(200, body)]);
        let expected = NodeState {
            name: "ecs-a-0a1b2c3d4e5f".into(),
            description: None,
            offline: true,
            temporarily_offline: true,
            offline_cause: Some("build over".into()),
            idle: Some(false),
        };
        assert_eq!(scripted.jenkins.nodes().await.expect("nodes")[1], expected);
        assert_eq!(scripted.asked.lock().expect("asked").len(), 1);
    }

    #[tokio::test]
    async fn offline_is_read_before_it_is_toggled() {
        let online = scripted(vec![answer(200, "{\"temporarilyOffline\": false}"), answer(302, "")]);
        assert_eq!(online.jenkins.set_offline("a", "x y").await, Ok(true));
        let toggled = online.asked.lock().expect("asked")[1].uri().to_string();
        assert!(toggled.ends_with("/toggleOffline?offlineMessage=x%20y"), "{toggled}");
        let offline = scripted(vec![answer(200, "{\"temporarilyOffline\": true}"), answer(302, "")]);
        assert_eq!(offline.jenkins.set_offline("a", "x").await, Ok(true));
        assert!(offline.asked.lock().expect("asked")[1].uri().path().ends_with("/changeOfflineCause"));
        let gone = scripted(vec![answer(404, "")]);
        assert_eq!(gone.jenkins.set_offline("a", "x").await, Ok(false));
    }

    #[tokio::test]
    async fn only_what_is_offline_goes_online() {
        let offline = scripted(vec![answer(200, "{\"temporarilyOffline\": true}"), answer(302, "")]);
        assert_eq!(offline.jenkins.set_online("a").await, Ok(true));
        let online = scripted(vec![answer(200, "{\"temporarilyOffline\": false}")]);
        assert_eq!(online.jenkins.set_online("a").await, Ok(false));
    }

    #[tokio::test]
    async fn what_is_gone_need_not_be_deleted() {
        for (status, deleted) in [(302, true), (200, true), (404, false)] {
            let scripted = scripted(vec![answer(status, "")]);
            assert_eq!(scripted.jenkins.delete_node("a b").await, Ok(deleted));
            let asked = scripted.asked.lock().expect("asked");
            assert_eq!(
                (asked[0].method().as_str(), asked[0].uri().path()),
                ("POST", "/jenkins/computer/a%20b/doDelete")
            );
        }
    }

    #[tokio::test]
    async fn the_secret_is_the_first_argument() {
        let jnlp =
            "<jnlp><application-desc><argument>5ecre7</argument><argument>a</argument></application-desc></jnlp>";
        let asked =
            |status, body| async move { scripted(vec![answer(status, body)]).jenkins.inbound_secret("a").await };
        assert_eq!(asked(200, jnlp).await.expect("a secret").expose(), "5ecre7");
        assert!(asked(404, "").await.is_err_and(|fault| fault.kind == Kind::Passing));
        assert!(asked(200, "<jnlp/>").await.is_err_and(|fault| fault.kind == Kind::Permanent));
    }
}
