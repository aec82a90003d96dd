//! Pages and API resources that can be read.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::answers::{answer, encode, set};
use super::ask::Ask;
use super::refusal::{Answered, Refusal, oops};
use super::tree::Tree;
use super::users::Caller;
use super::{ANONYMOUS, Jenkins, Launcher, Node, Permission};

const SIMPLE_CAUSE: &str = "hudson.slaves.OfflineCause$SimpleOfflineCause";

impl Jenkins {
    /// `ComputerSet`, with its exported fields. The controller's own node comes first: nodes are sorted by name, and it
    /// has none.
    pub(super) fn computers_bean(&self, caller: &Caller, details: bool) -> Value {
        let agents = self.nodes.values().filter(|node| node.executors > 0).chain(self.removed.values());
        let online = agents.clone().filter(|node| !node.is_offline());
        let computers: Vec<_> = std::iter::once(self.built_in_bean(caller))
            .chain(agents.map(|node| self.computer_bean(node, caller, details)))
            .collect();
        json!({
            "_class": "hudson.model.ComputerSet",
            "busyExecutors": online.clone().map(|node| node.builds.len()).sum::<usize>(),
            "computer": computers,
            "displayName": "Nodes",
            "totalExecutors": online.map(|node| i64::from(node.executors)).sum::<i64>(),
        })
    }

    /// The exported fields of `hudson.model.Computer` and `SlaveComputer`, which do not include when it became idle.
    pub(super) fn computer_bean(&self, node: &Node, caller: &Caller, details: bool) -> Value {
        let is_inbound = matches!(node.launcher, Launcher::Inbound(_));
        let labels = if node.removed.is_some() { BTreeSet::new() } else { node.labels() };
        let labels: Vec<_> = labels.into_iter().map(|label| json!({"name": label})).collect();
        let executor = |number: usize| match node.builds.get(number) {
            _ if !details => json!({}),
            Some(build) => json!({
                "currentExecutable": {"_class": "hudson.model.FreeStyleBuild", "fullDisplayName": build.name},
                "idle": false, "likelyStuck": false, "number": number, "progress": -1,
            }),
            None => json!({
                "currentExecutable": null, "idle": true, "likelyStuck": false, "number": number, "progress": -1,
            }),
        };
        let icon = match &node.temporarily_offline {
            Some(_) => "symbol-computer-disconnected",
            None if node.is_offline() => "symbol-computer-offline",
            None => "symbol-computer",
        };
        let cause = node.temporarily_offline.as_ref();
        let simple = || node.disconnected.map(|text| json!({"_class": SIMPLE_CAUSE, "description": text}));
        let offline_cause = cause.map(|cause| {
            json!({
                "_class": "hudson.slaves.OfflineCause$UserCause",
                "timestamp": cause.at.as_millisecond(),
                "description": cause.description(),
            })
        });
        let offline_cause = offline_cause.or_else(simple);
        // `Computer.kill` removes those that are idle.
        let executors = match node.removed {
            Some(_) => node.builds.len(),
            None => usize::try_from(node.executors).unwrap_or(0),
        };
        json!({
            "_class": "hudson.slaves.SlaveComputer",
            "actions": [],
            "assignedLabels": labels,
            "description": if node.removed.is_some() { "" } else { &node.description },
            "displayName": node.name,
            "executors": (0..executors).map(executor).collect::<Vec<_>>(),
            "icon": icon,
            "iconClassName": icon,
            "idle": node.is_idle(),
            "jnlpAgent": is_inbound,
            "launchSupported": !is_inbound,
            "loadStatistics": {"_class": "hudson.model.Label$1"},
            "manualLaunchAllowed": true,
            "monitorData": monitor_data(caller),
            "numExecutors": executors,
            "offline": node.is_offline(),
            "offlineCause": offline_cause,
            "offlineCauseReason": node.offline_reason(),
            "oneOffExecutors": [],
            "temporarilyOffline": cause.is_some(),
            // `SlaveComputer.getAbsoluteRemotePath`
            "absoluteRemotePath": (node.is_connected && caller.has(Permission::Connect)).then_some(&node.remote_fs),
        })
    }

    /// `Jenkins.MasterComputer`, whose display name is this since 2.319. It has no executors here.
    pub(super) fn built_in_bean(&self, caller: &Caller) -> Value {
        json!({
            "_class": "hudson.model.Hudson$MasterComputer",
            "actions": [],
            "assignedLabels": [{"name": "built-in"}],
            "description": "the Jenkins controller's built-in node",
            "displayName": "Built-In Node",
            "executors": [],
            "icon": "symbol-computer",
            "iconClassName": "symbol-computer",
            "idle": true,
            "jnlpAgent": false,
            "launchSupported": true,
            "loadStatistics": {"_class": "hudson.model.Label$1"},
            "manualLaunchAllowed": true,
            "monitorData": monitor_data(caller),
            "numExecutors": 0,
            "offline": false,
            "offlineCause": null,
            "offlineCauseReason": "",
            "oneOffExecutors": [],
            "temporarilyOffline": false,
        })
    }

    /// `jenkins.model.Jenkins`.
    pub(super) fn root_bean(&self) -> Value {
        json!({
            "_class": "hudson.model.Hudson",
            "assignedLabels": [{"name": "built-in"}],
            "description": null,
            "jobs": [],
            "mode": "NORMAL",
            "nodeDescription": "the Jenkins controller's built-in node",
            "nodeName": "",
            "numExecutors": 0,
            "overallLoad": {},
            "primaryView": {"_class": "hudson.model.AllView", "name": "all", "url": self.root},
            "quietDownReason": null,
            "quietingDown": self.is_quieting_down,
            "slaveAgentPort": -1,
            "unlabeledLoad": {"_class": "jenkins.model.UnlabeledLoadStatistics"},
            "url": self.root,
            "useCrumbs": true,
            "useSecurity": true,
            "views": [{"_class": "hudson.model.AllView", "name": "all", "url": self.root}],
        })
    }

    /// `hudson.model.User`, for `Jenkins.getMe`, which an anonymous caller does not have.
    pub(super) fn user_bean(&self, caller: &Caller) -> Result<Value, Refusal> {
        if caller.is_anonymous() {
            return Err(Refusal::Denied(Permission::Read));
        }
        Ok(json!({
            "_class": "hudson.model.User",
            "absoluteUrl": self.url(&format!("user/{}", encode(&caller.name))),
            "description": null,
            "fullName": caller.name,
            "id": caller.name,
            "property": [],
        }))
    }

    /// `hudson.model.Api.doJson` and Stapler's `ResponseImpl.serveExposedBean`.
    pub(super) fn export(&self, ask: &Ask<'_>, bean: Value) -> Answered {
        let bean = match ask.parameter("tree") {
            Some(tree) => Tree::parse(tree).map_err(Refusal::Oops)?.prune(bean),
            None => bean,
        };
        let mut response = answer(StatusCode::OK, "application/json;charset=utf-8", bean.to_string());
        self.name_jenkins(&mut response);
        set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(&mut response, header::X_FRAME_OPTIONS, "deny");
        Ok(response)
    }

    /// `Computer/index.jelly` and `sidepanel.jelly`: actions that are not allowed are not shown.
    pub(super) fn computer_page(&self, name: &str, caller: &Caller) -> Response<Bytes> {
        let is_offline = self.nodes.get(name).is_some_and(|node| node.temporarily_offline.is_some());
        let form = |action: &str| format!("<form method=\"post\" action=\"{action}\"></form>");
        let shown = [
            (caller.has(Permission::Delete), "<a href=\"doDelete\">Delete Agent</a>".to_owned()),
            (is_offline && caller.has(Permission::Connect), form("toggleOffline") + &form("setOfflineCause")),
            (!is_offline && caller.has(Permission::Disconnect), form("markOffline")),
        ];
        let body: String = shown.into_iter().filter_map(|(is_shown, html)| is_shown.then_some(html)).collect();
        self.page(StatusCode::OK, name, &body)
    }

    /// `Computer/setOfflineCause.jelly`.
    pub(super) fn set_offline_cause_page(&self, caller: &Caller) -> Response<Bytes> {
        let form = "<form method=\"post\" action=\"changeOfflineCause\"></form>";
        self.page(StatusCode::OK, "Update offline reason", if caller.has(Permission::Disconnect) { form } else { "" })
    }
}

/// `hudson.security.WhoAmI`.
pub(super) fn who_am_i(caller: &Caller) -> Value {
    json!({
        "_class": "hudson.security.WhoAmI",
        "anonymous": caller.is_anonymous(),
        "authenticated": true,
        "authorities": if caller.is_anonymous() { json!([ANONYMOUS]) } else { json!(["authenticated"]) },
        "name": caller.name,
    })
}

/// `Computer.getMonitorData`, which is empty without the permission to connect; nothing is measured here.
fn monitor_data(caller: &Caller) -> Value {
    const MONITORS: [&str; 7] = [
        "hudson.node_monitors.ArchitectureMonitor",
        "hudson.node_monitors.ClockMonitor",
        "hudson.node_monitors.DiskSpaceMonitor",
        "hudson.node_monitors.ResponseTimeMonitor",
        "hudson.node_monitors.SwapSpaceMonitor",
        "hudson.node_monitors.TemporarySpaceMonitor",
        "jenkins.node_monitors.RemotingVersionMonitor",
    ];
    let monitors: &[&str] = if caller.has(Permission::Connect) { &MONITORS } else { &[] };
    monitors.iter().map(|monitor| ((*monitor).to_owned(), Value::Null)).collect::<Map<_, _>>().into()
}

/// Whether the executors' state is shown: with a `tree`, or a `depth` of 1. A depth that is not a number is an
/// exception (`ResponseImpl.serveExposedBean`).
pub(super) fn shows_details(ask: &Ask<'_>) -> Result<bool, Refusal> {
    if ask.parameter("tree").is_some() {
        return Ok(true);
    }
    let depth = ask.parameter("depth").map(str::parse::<u32>).transpose();
    depth.map(|depth| depth.unwrap_or(0) > 0).map_err(|error| oops("Depth parameter must be a number", error))
}
