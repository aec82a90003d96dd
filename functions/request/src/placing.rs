//! Starts the agents of a request: carries out the steps that `plan::agent` returns, and passes back what it observed.

use std::collections::BTreeMap;

use futures::future::join_all;
use shared::agents;
use shared::app::App;
use shared::aws::ecs::{PlacementFailure, RunTaskOutcome};
use shared::batch::Item;
use shared::cloud::Cloud;
use shared::config::Connect;
use shared::config::variables::INBOUND_VARIABLES;
use shared::fault::Fault;
use shared::jenkins::{Launcher, Node};
use shared::log_fault;
use shared::message::Failure;
use shared::span::Ids;
use tracing::Instrument as _;

use crate::agent::{Agent, span};
use crate::plan::agent::{Known, Step};
use crate::plan::limits::Split;
use crate::plan::{self, Blocked, Order};
use crate::{failure, inquiry, launch};

/// The result for a request's agents, before room is made.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    /// Those that found no room.
    pub blocked: Vec<Blocked>,
}

/// How the placing of an agent ended.
enum End {
    Done,
    Blocked(Blocked),
    Failed(Failure),
}

/// Starts the agents that may start. Agents for which waiting cannot help are failed.
///
/// # Errors
/// When the message has to come back.
pub(crate) async fn place(app: &App, item: &Item, order: &Order<'_>, split: Split) -> Result<Placed, Fault> {
    let cloud = app.clouds.at(order.cloud_index);
    let container = match container(app, cloud, order).await {
        Ok(container) => container,
        Err(fault) if fault.is_final() => {
            Box::pin(failure::launch_failed(app, item, order, &order.agents, fault.to_string())).await?;
            return Ok(Placed::default());
        }
        Err(fault) => return Err(fault),
    };
    let container = &container;
    let ends = join_all(split.placeable.into_iter().map(|index| async move {
        let name = order.name(&app.settings.agent_name_prefix, index);
        let agent = Agent { order, index, name: &name, cloud };
        (index, Box::pin(start(app, item, agent, container)).instrument(span(order, &name)).await)
    }))
    .await;
    let mut placed = Placed::default();
    let mut failed: BTreeMap<&'static str, BTreeMap<String, (Failure, Vec<u32>)>> = BTreeMap::new();
    for (index, end) in ends {
        match end? {
            End::Done => {}
            End::Blocked(blocked) => placed.blocked.push(blocked),
            End::Failed(failure) => {
                let of_code = failed.entry(failure.code.as_str()).or_default();
                of_code.entry(failure.message.clone()).or_insert_with(|| (failure, Vec::new())).1.push(index);
            }
        }
    }
    for (failure, agents) in failed.into_values().flat_map(BTreeMap::into_values) {
        Box::pin(failure::end(app, item, order, &agents, failure)).await?;
    }
    placed.blocked.extend((!split.over_limit.is_empty()).then(|| order.over_limit(split.over_limit)));
    Ok(placed)
}

/// The agent's container: the template's, or the only essential one of the task definition. If the request overrides
/// the task definition, the container is looked up in it.
async fn container(app: &App, cloud: &Cloud, order: &Order<'_>) -> Result<String, Fault> {
    match &order.template.container {
        _ if order.expired.is_some() => Ok(String::new()),
        Some(name) if order.overrides.task_definition.is_none() => Ok(name.clone()),
        _ => {
            let definition = Box::pin(app.memory.task_definition(cloud, order.task_definition())).await?;
            order.container(&definition).map_err(Fault::permanent)
        }
    }
}

/// Whether a refused RunTask may have named a container that the family's newer revision has renamed. Returns the new
/// name.
async fn renamed_container(app: &App, agent: Agent<'_>, container: &str) -> Option<String> {
    let order = agent.order;
    if order.template.container.is_some() || is_pinned(order.task_definition()) {
        return None;
    }
    let refreshed = app.memory.refresh_task_definition(agent.cloud, order.task_definition());
    let definition = Box::pin(refreshed).await.ok()?;
    order.container(&definition).ok().filter(|name| name != container)
}

/// Whether a task definition's name includes its revision, so that its content never changes.
pub(crate) fn is_pinned(task_definition: &str) -> bool {
    let name = task_definition.rsplit('/').next().unwrap_or_default();
    name.contains(':')
}

async fn start(app: &App, item: &Item, agent: Agent<'_>, container: &str) -> Result<End, Fault> {
    let order = agent.order;
    let asked = plan::asked_at(item, app.now());
    let mut known = Known {
        receives: item.receives,
        has_waited: app.memory.has_waited(order.request_id.as_str()),
        ..Known::default()
    };
    loop {
        match plan::agent::next(order, &known, asked) {
            Step::LookForTask => {
                known.found = Some(Box::pin(agent.cloud.cluster.tasks_named(agent.name.as_str())).await);
            }
            Step::CreateNode => known.inbound = Some(inbound(app, agent).await),
            Step::RunTask => {
                known.found = None;
                let mut outcome = run_task(app, agent, container, known.inbound.as_ref()).await;
                if matches!(outcome, RunTaskOutcome::Refused(_))
                    && let Some(container) = renamed_container(app, agent, container).await
                {
                    outcome = run_task(app, agent, &container, known.inbound.as_ref()).await;
                }
                if let RunTaskOutcome::Started(task) = &outcome {
                    known.is_copy = app.memory.was_started_for_another(&task.arn, &item.id);
                }
                known.outcome = Some(outcome);
            }
            Step::Answer(arns) => {
                return Box::pin(inquiry::answer(app, item, agent, &arns)).await.map(|()| End::Done);
            }
            Step::Started => return Ok(End::Done),
            Step::Wait { reason, failures } => {
                delete_node(app, agent).await;
                return Ok(End::Blocked(order.no_room(agent.index, reason, failures)));
            }
            Step::Fail(failure) => {
                delete_node(app, agent).await;
                return Ok(End::Failed(failure));
            }
            Step::Retry(fault) => return Err(fault),
        }
    }
}

async fn run_task(
    app: &App,
    agent: Agent<'_>,
    container: &str,
    inbound: Option<&Result<BTreeMap<String, String>, Fault>>,
) -> RunTaskOutcome {
    let order = agent.order;
    let record = order.record(agent.index, container);
    let inbound = inbound.and_then(|inbound| inbound.as_ref().ok()).cloned();
    let launch = order.launch(agent.name, &record, app.controller(), inbound);
    let input = match launch::input(&launch) {
        Ok(input) => input,
        Err(error) => return RunTaskOutcome::Refused(Fault::permanent(error.to_string())),
    };
    let outcome = agent.cloud.cluster.run_task(input).await;
    if let RunTaskOutcome::Started(task) = &outcome {
        Ids { task: Some(&task.arn), ..Ids::default() }.record();
        tracing::info!(
            cloud = order.cloud.name,
            template = order.template.name,
            metric.agents_started = 1,
            "task started"
        );
    }
    outcome
}

/// Creates the node of an inbound agent before the task starts: Jenkins derives the agent's secret from the node's
/// name. Returns what the container needs to connect.
async fn inbound(app: &App, agent: Agent<'_>) -> Result<BTreeMap<String, String>, Fault> {
    let (order, name) = (agent.order, agent.name);
    let has_webhook = order.webhook_url(agent.index).is_some();
    let node = Node {
        environment: order.environment(),
        description: agents::describe(&order.request_id, order.build.as_ref(), order.cloud, None),
        ..agents::node(name, order.template, has_webhook, Launcher::Inbound)
    };
    app.jenkins.create_node(&node).await?;
    let secret = app.jenkins.inbound_secret(name.as_str()).await?;
    let url = order.cloud.agent_url(&app.config().jenkins).as_str();
    let values = [url, name.as_str(), secret.expose(), &order.template.workspace, "true"];
    Ok(INBOUND_VARIABLES.into_iter().zip(values).map(|(name, value)| (name.into(), value.into())).collect())
}

/// An inbound agent's node was created before its task; without a task it is deleted.
async fn delete_node(app: &App, agent: Agent<'_>) {
    if agent.order.template.connect == Connect::Inbound
        && agent.order.expired.is_none()
        && let Err(fault) = app.jenkins.delete_node(agent.name.as_str()).await
    {
        log_fault!(&fault, "node not deleted yet; the sweep deletes it");
    }
}

/// The placement failures of all agents in `blocked`.
pub(crate) fn failures(blocked: &[Blocked]) -> impl Iterator<Item = &PlacementFailure> {
    blocked.iter().flat_map(|blocked| &blocked.failures)
}
