//! What the check asks Jenkins: who we are and what we may do, found out by reading alone.

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::nodes::encode;
use super::{Call, FORM, Jenkins, is_refusal, not_jenkins, version};
use crate::fault::Fault;

/// The user that Jenkins sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoAmI {
    /// `X-Jenkins`, the controller's version.
    pub version: Option<String>,
    /// The user's name.
    pub user: String,
    /// Whether it is a known user.
    pub is_authenticated: bool,
}

/// The fields of `hudson.model.Computer` that show what we may do.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Computer {
    #[serde(rename = "_class", default)]
    class: String,
    #[serde(default)]
    display_name: String,
    monitor_data: Option<Value>,
}

#[derive(Deserialize)]
struct Computers {
    computer: Vec<Computer>,
}

/// The controller's own node, which comes first (`ComputerSet.getComputers` sorts by name, and it has none), and one
/// more.
const TWO_NODES: &str = "computer/api/json?tree=computer[displayName,monitorData[*]]%7B0,2%7D";

/// The controller's own node has this page in every Jenkins since 2.319 (`Jenkins.MasterComputer`).
const OFFLINE_PAGE: &str = "computer/(built-in)/setOfflineCause";

impl Jenkins {
    /// Asks who we are (`hudson.security.WhoAmI`), which needs no permission.
    ///
    /// # Errors
    /// When Jenkins cannot be asked or does not accept our token.
    pub async fn who_am_i(&self) -> Result<WhoAmI, Fault> {
        #[derive(Deserialize)]
        struct Me {
            name: String,
            #[serde(default)]
            authenticated: bool,
            #[serde(default)]
            anonymous: bool,
        }
        let call = Call::get("whoAmI/api/json");
        let answer = self.call(call).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.unexpected(call, &answer));
        }
        let me: Me = serde_json::from_slice(answer.body()).map_err(not_jenkins)?;
        Ok(WhoAmI {
            version: version(&answer).map(str::to_owned),
            is_authenticated: me.authenticated && !me.anonymous,
            user: me.name,
        })
    }

    /// Finds out which permissions we have, as far as Jenkins shows them without a change. Those that it does not show
    /// are left out: Agent/Delete while there is no agent.
    ///
    /// - Overall/Read: without it, nobody sees the list of nodes (`Jenkins.getTarget`).
    /// - Agent/Create: without it, `ComputerSet.doCheckName` refuses; given no name, it checks nothing.
    /// - Agent/Connect: without it, `Computer.getMonitorData` is empty.
    /// - Agent/Disconnect: without it, `Computer/setOfflineCause.jelly` has no form.
    /// - Agent/Delete: without it, an agent's page has no link `doDelete` (`Computer/sidepanel.jelly`).
    pub async fn permissions(&self) -> Vec<(&'static str, Result<bool, Fault>)> {
        let list = self.look(TWO_NODES).await.and_then(|list| match list {
            Some(list) => serde_json::from_slice(list.body()).map(Some).map_err(not_jenkins),
            None => Ok(None),
        });
        let nodes = match list {
            Ok(Some(Computers { computer })) => computer,
            Ok(None) => return vec![("Overall/Read", Ok(false))],
            Err(fault) => return vec![("Overall/Read", Err(fault))],
        };
        let mut found = vec![("Overall/Read", Ok(true))];
        let create = self.look("computer/checkName?value=").await;
        found.push(("Agent/Create", create.map(|answer| answer.is_some())));
        let monitored: Vec<_> = nodes.iter().filter_map(|node| node.monitor_data.as_ref()?.as_object()).collect();
        if !monitored.is_empty() {
            found.push(("Agent/Connect", Ok(monitored.iter().any(|data| !data.is_empty()))));
        }
        let disconnect = self.shows(OFFLINE_PAGE, "changeOfflineCause").await;
        found.extend(disconnect.map(|granted| ("Agent/Disconnect", granted)));
        let is_agent = |node: &&Computer| !node.class.is_empty() && !node.class.ends_with("MasterComputer");
        if let Some(agent) = nodes.iter().find(is_agent) {
            let delete = self.shows(&format!("computer/{}/", encode(&agent.display_name)), "doDelete").await;
            found.extend(delete.map(|granted| ("Agent/Delete", granted)));
        }
        found
    }

    /// Whether Jenkins lets us post. With a password in place of an API token it does not: each POST then needs a crumb
    /// (`hudson.security.csrf.CrumbFilter`). The check of an empty name changes nothing.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn lets_us_post(&self) -> Result<bool, Fault> {
        let call = Call::post("computer/checkName?value=", FORM, "");
        let answer = self.call_once(call).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            // Refused by Jenkins itself, behind the filter, because Agent/Create is missing.
            status if is_refusal(status) => Ok(answer.headers().contains_key("x-required-permission")),
            _ => Err(self.unexpected(call, &answer)),
        }
    }

    /// Jenkins' own URL, with which the URLs of its builds and webhooks begin; empty where none is set, `None` if we
    /// may not see it.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn own_url(&self) -> Result<Option<String>, Fault> {
        #[derive(Deserialize)]
        struct Root {
            url: Option<String>,
        }
        let Some(answer) = self.look("api/json?tree=url").await? else { return Ok(None) };
        let Root { url } = serde_json::from_slice(answer.body()).map_err(not_jenkins)?;
        Ok(Some(url.unwrap_or_default()))
    }

    /// Whether a URL is Jenkins' root as it is configured here.
    pub fn is_root(&self, url: &str) -> bool {
        let path = |url: &Url| url.path().trim_end_matches('/').to_owned();
        Url::parse(url).is_ok_and(|url| url.origin() == self.root.origin() && path(&url) == path(&self.root))
    }

    /// Whether a plugin's class is installed (`Descriptor.doHelp`); `None` if we may not see it.
    ///
    /// # Errors
    /// When Jenkins could not be queried.
    pub async fn has_class(&self, class: &str) -> Result<Option<bool>, Fault> {
        let path = format!("descriptorByName/{class}/help");
        match self.look(&path).await {
            Ok(answer) => Ok(answer.map(|_| true)),
            Err(fault) if fault.is_final() => Ok(Some(false)),
            Err(fault) => Err(fault),
        }
    }

    /// The answer's body; `None` if we may not see it.
    async fn look(&self, path: &str) -> Result<Option<http::Response<Bytes>>, Fault> {
        let call = Call::get(path);
        let answer = self.call_once(call).await?;
        match answer.status() {
            StatusCode::OK => Ok(Some(answer)),
            status if is_refusal(status) => Ok(None),
            _ => Err(self.unexpected(call, &answer)),
        }
    }

    /// Whether a page contains a text; `None` if there is no such page.
    async fn shows(&self, page: &str, what: &str) -> Option<Result<bool, Fault>> {
        match self.look(page).await {
            Ok(answer) => Some(Ok(answer.is_some_and(|answer| String::from_utf8_lossy(answer.body()).contains(what)))),
            Err(fault) if fault.is_final() => None,
            Err(fault) => Some(Err(fault)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scripted};
    use super::*;
    use crate::fault::Kind;

    #[tokio::test]
    async fn reads_the_user_that_jenkins_sees() {
        let body = r#"{"_class": "hudson.security.WhoAmI", "anonymous": false, "authenticated": true, "name": "bot"}"#;
        let known = scripted(vec![answer(200, body)]).jenkins.who_am_i().await.expect("an answer");
        assert_eq!(known, WhoAmI { version: Some("2.500".into()), user: "bot".into(), is_authenticated: true });
        let body = r#"{"anonymous": true, "authenticated": true, "name": "anonymous"}"#;
        assert!(!scripted(vec![answer(200, body)]).jenkins.who_am_i().await.expect("an answer").is_authenticated);
        let proxy = scripted(vec![answer(200, "<html>Welcome</html>")]).jenkins.who_am_i().await;
        let fault = proxy.expect_err("a proxy");
        assert!(fault.kind == Kind::Setting && fault.message.contains("jenkins.url"), "{fault}");
    }

    fn granted(found: Vec<(&'static str, Result<bool, Fault>)>) -> Vec<(&'static str, bool)> {
        found.into_iter().map(|(permission, granted)| (permission, granted.expect("an answer"))).collect()
    }

    #[tokio::test]
    async fn finds_permissions_by_reading_alone() {
        let nodes = r#"{"computer": [
            {"_class": "hudson.model.Hudson$MasterComputer", "displayName": "Built-In Node", "monitorData": {"a": null}},
            {"_class": "hudson.slaves.SlaveComputer", "displayName": "an agent", "monitorData": {"a": null}}]}"#;
        let scripted = scripted(vec![
            answer(200, nodes),
            answer(200, "<div/>"),
            answer(200, "<form action=\"changeOfflineCause\">"),
            answer(200, "<a href=\"doDelete\">"),
        ]);
        let all = ["Overall/Read", "Agent/Create", "Agent/Connect", "Agent/Disconnect", "Agent/Delete"];
        assert_eq!(granted(scripted.jenkins.permissions().await), all.map(|permission| (permission, true)));
        let asked = scripted.asked.lock().expect("asked");
        assert!(asked.iter().all(|request| request.method() == "GET"));
        assert_eq!(asked[2].uri().path(), "/jenkins/computer/(built-in)/setOfflineCause");
        assert_eq!(asked[3].uri().path(), "/jenkins/computer/an%20agent/");
    }

    #[tokio::test]
    async fn reports_missing_permissions_and_omits_unknown_ones() {
        let built_in = r#"{"computer": [{"_class": "hudson.model.Hudson$MasterComputer", "monitorData": {}}]}"#;
        let lacking = scripted(vec![answer(200, built_in), answer(403, ""), answer(200, "<div/>")]);
        assert_eq!(
            granted(lacking.jenkins.permissions().await),
            [("Overall/Read", true), ("Agent/Create", false), ("Agent/Connect", false), ("Agent/Disconnect", false)]
        );
        assert_eq!(granted(scripted(vec![answer(403, "")]).jenkins.permissions().await), [("Overall/Read", false)]);
        let little = scripted(vec![answer(200, r#"{"computer": [{}]}"#), answer(200, ""), answer(404, "")]);
        assert_eq!(granted(little.jenkins.permissions().await), [("Overall/Read", true), ("Agent/Create", true)]);
    }
}
