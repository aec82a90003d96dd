//! Nodes: their state in Jenkins, and those whose task is gone.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use shared::agents;
use shared::app::App;
use shared::arn::cluster_name;
use shared::aws::ecs::{DesiredStatus, TaskFilter};
use shared::batch::{Invocation, guarded};
use shared::cloud::Cloud;
use shared::fault::{Fault, Kind};
use shared::jenkins::NodeState;
use shared::log_fault;
use shared::name::AgentName;
use shared::span::Ids;
use tracing::Span;

use super::{CONCURRENCY, Item, each};
use crate::plan::nodes::{self as plan, NodeStep};
use crate::plan::tasks::Seen;

/// What Jenkins knows of its nodes.
pub(super) enum Nodes {
    Known(BTreeMap<String, NodeState>),
    /// It has none of ours, or does not show them to us.
    Unknown,
    /// It could not be queried.
    Away,
}

impl Nodes {
    pub(super) async fn fetch(app: &App, invocation: &Invocation) -> Self {
        if !app.jenkins.registers_nodes() {
            return Self::Unknown;
        }
        match guarded(invocation, app.jenkins.nodes()).await {
            Ok(nodes) => Self::Known(nodes.into_iter().map(|node| (node.name.clone(), node)).collect()),
            Err(fault) => {
                log_fault!(&fault, "Jenkins could not be asked for its nodes: no agent is stopped as idle");
                match fault.kind == Kind::Setting || fault.is_final() {
                    true => Self::Unknown,
                    false => Self::Away,
                }
            }
        }
    }

    pub(super) fn seen(&self, name: &AgentName) -> Seen<'_> {
        match self {
            Self::Known(nodes) => nodes.get(name.as_str()).map_or(Seen::Missing, Seen::Node),
            Self::Unknown => Seen::Unknown,
            Self::Away => Seen::Away,
        }
    }
}

impl Item for (&NodeState, AgentName) {
    fn span(&self) -> Span {
        Ids::of_agent(&self.1).span()
    }
}

/// Deletes our nodes whose task is gone; those whose task came back are brought back online.
pub(super) async fn sweep<'a>(
    app: &App,
    invocation: &Invocation,
    nodes: impl Iterator<Item = &'a NodeState>,
    running: &HashSet<AgentName>,
    now: Timestamp,
) {
    let ours: Vec<_> = nodes
        .filter_map(|node| {
            let name = app.agent_name(&node.name)?;
            is_ours(app, node, &name).then_some((node, name))
        })
        .collect();
    each(invocation, CONCURRENCY, &ours, |(node, name)| step(app, node, name, running.contains(name), now)).await;
}

async fn step(app: &App, node: &NodeState, name: &AgentName, is_alive: bool, now: Timestamp) -> Result<(), Fault> {
    let jenkins = &app.jenkins;
    if node.is_removed() {
        tracing::info!("computer deleted: Jenkins has lost its node");
        return jenkins.delete_node(name.as_str()).await.map(drop);
    }
    match plan::node_step(node, now) {
        NodeStep::Mark if is_alive && !jenkins.took_offline_silently(node) => Ok(()),
        _ if is_alive => jenkins.set_online(name.as_str()).await.map(drop),
        NodeStep::Wait => Ok(()),
        // An inbound agent's node is created before its task, which may have started since the tasks were listed.
        NodeStep::Mark if runs(app, name).await? => Ok(()),
        NodeStep::Delete if runs(app, name).await? => jenkins.set_online(name.as_str()).await.map(drop),
        NodeStep::Mark => jenkins.set_offline(name.as_str(), &plan::orphan_message(now)).await.map(drop),
        NodeStep::Delete => {
            tracing::info!("node deleted: its task is gone");
            jenkins.delete_node(name.as_str()).await.map(drop)
        }
    }
}

/// Whether a task of this name runs, asked now.
async fn runs(app: &App, name: &AgentName) -> Result<bool, Fault> {
    let serves = |cloud: &Cloud| cloud.template(app.template_name(name)).is_some();
    let is_served = app.clouds.iter().any(serves);
    for cloud in app.clouds.iter().filter(|cloud| !is_served || serves(cloud)) {
        let filter = TaskFilter::StartedBy(name.as_str());
        if !cloud.cluster.list_tasks(filter, DesiredStatus::Running).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a node with a name of ours belongs to this stack, not to another one with the same prefix: its description
/// names its cluster; if it does not, its template has to be one of ours. So the node of a template that was removed
/// goes, too.
fn is_ours(app: &App, node: &NodeState, name: &AgentName) -> bool {
    match node.description.as_deref().and_then(agents::described_cluster) {
        Some((cluster, region)) => app
            .clouds
            .iter()
            .any(|cloud| cloud.config.region == region && cluster_name(&cloud.config.cluster) == cluster),
        None => app.clouds.iter().any(|cloud| cloud.template(app.template_name(name)).is_some()),
    }
}
