//! Nodes over Jenkins' REST API.

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::node::{Launcher, Node};
use super::{Call, FORM, Jenkins, Version, definition, not_jenkins};
use crate::fault::{Fault, Kind};
use crate::secret::Secret;

/// Whether a node was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was created now.
    New,
    /// A node of this name existed.
    Existed,
}

/// A node as Jenkins shows it: what `hudson.model.Computer` exports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeState {
    /// Its name.
    #[serde(rename = "displayName")]
    pub name: String,
    /// Human-readable.
    pub description: Option<String>,
    /// Whether it is offline.
    pub offline: bool,
    /// Whether somebody took it offline.
    pub temporarily_offline: bool,
    /// The offline message; empty where whoever took it offline gave none.
    #[serde(rename = "offlineCauseReason")]
    pub offline_cause: Option<String>,
    /// Whether no build runs on it.
    pub idle: Option<bool>,
    /// Whether the agent connects to Jenkins.
    pub jnlp_agent: bool,
    /// Its labels, including its own name.
    pub assigned_labels: Option<Vec<serde_json::Value>>,
    /// Who or what took it offline.
    #[serde(rename = "offlineCause")]
    pub cause: Option<Cause>,
}

/// What `hudson.slaves.OfflineCause` exports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// `Disconnected by USER : MESSAGE`, if a person did it.
    pub description: Option<String>,
}

impl NodeState {
    /// Whether only the node's computer is left: Jenkins keeps it while a build runs on it, and sometimes for ever. A
    /// node has at least its own name as a label (`Computer.getAssignedLabels`).
    pub fn is_removed(&self) -> bool {
        self.assigned_labels.as_ref().is_some_and(Vec::is_empty)
    }
}

/// The fields of a node that are requested.
const FIELDS: &str = "displayName,description,offline,temporarilyOffline,offlineCauseReason,offlineCause[description],\
                      idle,jnlpAgent,assignedLabels[name]";

/// Nodes per page.
const PAGE: usize = 500;

/// From this version on, `ComputerSet.doCreateItem` accepts a node as XML.
const TAKES_XML: Version = Version(2, 539);

impl Jenkins {
    /// Creates a node: as XML where the controller accepts that, else as the form of its own page. Both are answered
    /// with 400 where the name is taken or not allowed. Needs Agent/Create.
    ///
    /// # Errors
    /// When it was not created and did not exist.
    pub async fn create_node(&self, node: &Node) -> Result<Created, Fault> {
        if self.takes_xml().await {
            match self.create_from_xml(node).await {
                // A controller that refuses XML after all is asked in the older way.
                Err(fault) if fault.is_final() => {
                    tracing::debug!(error = %fault, "not created from XML");
                }
                result => return result,
            }
        }
        self.create_from_form(node).await
    }

    /// Verifies a node that was just created. Jenkins drops what it cannot read in XML, and answers 200: without the
    /// plugin ssh-slaves the launcher becomes an inbound one, and the agent would never connect. Such a node is
    /// deleted.
    ///
    /// # Errors
    /// When it is such a node, or could not be verified.
    async fn verify(&self, node: &Node) -> Result<(), Fault> {
        let is_inbound = matches!(node.launcher, Launcher::Inbound);
        if is_inbound || self.node(&node.name).await?.is_none_or(|state| !state.jnlp_agent) {
            return Ok(());
        }
        self.delete_node(&node.name).await?;
        let text = "created the node without its SSH launcher: install the plugin ssh-slaves (SSH Build Agents)";
        Err(Fault::jenkins(Kind::Setting, text))
    }

    /// Whether the controller's version accepts XML. If no answer has shown the version yet, it is asked for; if it is
    /// unknown, the form is used.
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
        let created = self.create(node, Call::post(&path, "application/xml; charset=UTF-8", &xml)).await?;
        if created == Created::New {
            self.verify(node).await?;
        }
        Ok(created)
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
            // Something in front of Jenkins, such as a proxy's page during a restart.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if super::version(&answer).is_none() => {
                let action = call.action();
                let status = answer.status();
                Err(Fault::jenkins(
                    Kind::Setting,
                    format!("answered {status} to {action}, and not as Jenkins does: correct jenkins.url"),
                ))
            }
            // The message is in the controller's language: only the node shows whether it exists.
            StatusCode::BAD_REQUEST if self.node(&node.name).await?.is_some() => Ok(Created::Existed),
            _ => Err(self.unexpected(call, &answer)),
        }
    }

    /// A node; `None` if there is none of this name.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
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

    /// All nodes, including the controller's own, page by page. Of computers whose node is gone, only the idle ones,
    /// which Jenkins has forgotten: it drops the busy ones itself once their builds have ended.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn nodes(&self) -> Result<Vec<NodeState>, Fault> {
        #[derive(Deserialize)]
        struct Page {
            computer: Vec<NodeState>,
        }
        let mut nodes = Vec::new();
        for from in (0..).step_by(PAGE) {
            let path = format!("computer/api/json?tree=computer[{FIELDS}]%7B{from},{}%7D", from + PAGE);
            let call = Call::get(&path);
            let answer = self.call(call).await?;
            match answer.status() {
                StatusCode::OK => {}
                // A proxy's page, in front of a Jenkins that is away.
                StatusCode::NOT_FOUND if super::version(&answer).is_none() => {
                    return Err(Fault { kind: Kind::Passing, ..self.unexpected(call, &answer) });
                }
                _ => return Err(self.unexpected(call, &answer)),
            }
            let Page { computer } = serde_json::from_slice(answer.body()).map_err(not_jenkins)?;
            let is_last = computer.len() < PAGE;
            nodes.extend(computer.into_iter().filter(|node| !node.is_removed() || node.idle == Some(true)));
            if is_last {
                break;
            }
        }
        Ok(nodes)
    }

    /// Takes a node offline with this message, whatever its state (`Computer.doChangeOfflineCause`): two calls at once
    /// do not undo each other. Returns false if there is no such node. Needs Agent/Disconnect.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn set_offline(&self, name: &str, message: &str) -> Result<bool, Fault> {
        self.node_action(name, &format!("changeOfflineCause?offlineMessage={}", encode(message))).await
    }

    /// Brings a node back online that was taken offline. Jenkins can only toggle that: two calls at once leave it
    /// offline without a message. So the state is read again, and the sweep fixes what still went wrong. Returns false
    /// if there is no such node, or it was online. Needs Agent/Connect.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn set_online(&self, name: &str) -> Result<bool, Fault> {
        let was_offline = match self.node(name).await? {
            Some(node) if node.temporarily_offline => self.node_action(name, "toggleOffline").await?,
            _ => return Ok(false),
        };
        if self.node(name).await?.is_some_and(|node| self.took_offline_silently(&node)) {
            self.node_action(name, "toggleOffline").await?;
        }
        Ok(was_offline)
    }

    /// Whether our own user took a node offline without a message, which we never do on purpose
    /// (`hudson.slaves.Messages`, `SlaveComputer.DisconnectedBy`).
    pub fn took_offline_silently(&self, node: &NodeState) -> bool {
        let description = node.cause.as_ref().and_then(|cause| cause.description.as_deref());
        let user = description.and_then(|text| text.strip_prefix("Disconnected by "));
        node.temporarily_offline && user.is_some() && user == self.user.as_deref()
    }

    /// Deletes a node (`Computer.doDoDelete`), which ends a build on it. Returns false if there is no such node. The
    /// computer that is left of a node that was deleted under a build stays: a pipeline would wait for ever. Needs
    /// Agent/Delete.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn delete_node(&self, name: &str) -> Result<bool, Fault> {
        match self.node(name).await? {
            None => Ok(false),
            Some(node) if node.is_removed() && node.idle != Some(true) => Ok(false),
            Some(_) => self.node_action(name, "doDelete").await,
        }
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
    /// When Jenkins could not be queried, or its answer holds no secret.
    pub async fn inbound_secret(&self, name: &str) -> Result<Secret, Fault> {
        let path = format!("computer/{}/jenkins-agent.jnlp", encode(name));
        let call = Call::get(&path);
        let answer = self.call(call).await?;
        match answer.status() {
            StatusCode::OK => first_argument(answer.body()).ok_or_else(|| {
                Fault::jenkins(Kind::Permanent, format!("the answer to {} holds no secret", call.action()))
            }),
            // A new node may not have its computer yet.
            StatusCode::NOT_FOUND => Err(Fault::jenkins(Kind::NotYet, format!("has no {} yet", call.action()))),
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

/// Encodes a text for a path or a query.
pub(super) fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scripted};
    use std::collections::BTreeMap;

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
    async fn falls_back_to_the_form_where_xml_is_refused() {
        let scripted = scripted(vec![
            of_version("2.541.1", 200, "{}"),
            of_version("2.541.1", 400, "<p>No mode given<!--x--></div>"),
            answer(404, ""),
            answer(302, ""),
        ]);
        assert_eq!(scripted.jenkins.create_node(&node()).await, Ok(Created::New));
        assert_eq!(scripted.asked.lock().expect("asked")[3].uri().path(), "/jenkins/computer/doCreateItem");
    }

    #[tokio::test]
    async fn accepts_an_existing_node_and_reports_a_bad_name() {
        let there = scripted(vec![answer(200, "{}"), answer(400, ""), answer(200, "{\"displayName\": \"x\"}")]);
        assert_eq!(there.jenkins.create_node(&node()).await, Ok(Created::Existed));
        let page = "<h1>Error</h1><p>‘<b>*</b>’ is an unsafe character<!--hudson.model.Failure: x--></div></div>";
        let bad = scripted(vec![answer(200, "{}"), answer(400, page), answer(404, "")]);
        let fault = bad.jenkins.create_node(&node()).await.expect_err("400");
        assert!(fault.kind == Kind::Permanent && fault.message.contains("‘*’ is an unsafe character"), "{fault}");
    }

    #[tokio::test]
    async fn retries_later_while_jenkins_is_in_trouble() {
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
            ..NodeState::default()
        };
        assert_eq!(scripted.jenkins.nodes().await.expect("nodes")[1], expected);
        assert_eq!(scripted.asked.lock().expect("asked").len(), 1);
    }

    #[tokio::test]
    async fn takes_a_node_offline_in_any_state() {
        let scripted = scripted(vec![answer(302, ""), answer(404, "")]);
        assert_eq!(scripted.jenkins.set_offline("a", "x y").await, Ok(true));
        assert_eq!(scripted.jenkins.set_offline("a", "x").await, Ok(false));
        let asked = scripted.asked.lock().expect("asked")[0].uri().to_string();
        assert!(asked.ends_with("/computer/a/changeOfflineCause?offlineMessage=x%20y"), "{asked}");
    }

    const ONLINE: &str = "{\"temporarilyOffline\": false}";
    const SILENT: &str = "{\"temporarilyOffline\": true, \"offlineCause\": {\"description\": \"Disconnected by bot\"}}";

    #[tokio::test]
    async fn brings_a_node_online_and_verifies_it() {
        let offline =
            "{\"temporarilyOffline\": true, \"offlineCause\": {\"description\": \"Disconnected by bot : x\"}}";
        let once = scripted(vec![answer(200, offline), answer(302, ""), answer(200, ONLINE)]);
        assert_eq!(once.jenkins.set_online("a").await, Ok(true));
        assert_eq!(scripted(vec![answer(200, ONLINE)]).jenkins.set_online("a").await, Ok(false));
        assert_eq!(scripted(vec![answer(404, "")]).jenkins.set_online("a").await, Ok(false));
        // Another process toggled at the same time.
        let answers = vec![answer(200, offline), answer(302, ""), answer(200, SILENT), answer(302, "")];
        let raced = scripted(answers);
        assert_eq!(raced.jenkins.set_online("a").await, Ok(true));
        assert_eq!(raced.asked.lock().expect("asked").len(), 4);
        // Somebody has taken it offline since.
        let taken = "{\"temporarilyOffline\": true, \"offlineCause\": {\"description\": \"Disconnected by ann\"}}";
        let taken = scripted(vec![answer(200, offline), answer(302, ""), answer(200, taken)]);
        assert_eq!(taken.jenkins.set_online("a").await, Ok(true));
        assert_eq!(taken.asked.lock().expect("asked").len(), 3);
    }

    #[tokio::test]
    async fn deletes_a_node_but_never_the_computer_under_a_build() {
        let there = "{\"assignedLabels\": [{}], \"idle\": false}";
        for (status, deleted) in [(302, true), (200, true), (404, false)] {
            let scripted = scripted(vec![answer(200, there), answer(status, "")]);
            assert_eq!(scripted.jenkins.delete_node("a b").await, Ok(deleted));
            let asked = scripted.asked.lock().expect("asked");
            assert_eq!(
                (asked[1].method().as_str(), asked[1].uri().path()),
                ("POST", "/jenkins/computer/a%20b/doDelete")
            );
        }
        assert_eq!(scripted(vec![answer(404, "")]).jenkins.delete_node("a").await, Ok(false));
        let removed = scripted(vec![answer(200, "{\"assignedLabels\": [], \"idle\": false}")]);
        assert_eq!(removed.jenkins.delete_node("a").await, Ok(false));
        let forgotten = scripted(vec![answer(200, "{\"assignedLabels\": [], \"idle\": true}"), answer(302, "")]);
        assert_eq!(forgotten.jenkins.delete_node("a").await, Ok(true));
    }

    #[tokio::test]
    async fn the_secret_is_the_first_argument() {
        let jnlp =
            "<jnlp><application-desc><argument>5ecre7</argument><argument>a</argument></application-desc></jnlp>";
        let asked =
            |status, body| async move { scripted(vec![answer(status, body)]).jenkins.inbound_secret("a").await };
        assert_eq!(asked(200, jnlp).await.expect("a secret").expose(), "5ecre7");
        assert!(asked(404, "").await.is_err_and(|fault| fault.kind == Kind::NotYet));
        assert!(asked(200, "<jnlp/>").await.is_err_and(|fault| fault.kind == Kind::Permanent));
    }
}
