//! Sequences a batch of completions, or the sweep. Decides nothing.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use futures::future::join_all;
use serde_json::Value;
use shared::app::{App, CloudRef};
use shared::aws::Class;
use shared::aws::ecs::{self, DesiredStatus, Task};
use shared::batch::{self, Invocation, Item, Retry};
use shared::message::{AgentRequest, BuildCompleted, Record};
use shared::name::AgentName;
use shared::report::is_gone;
use shared::stop::Stop;
use shared::wait::{self, Waiting};

use crate::plan::{self, Event};
use crate::sweep;

/// Answers an invocation.
///
/// # Errors
/// When the event is neither a batch nor the sweep's.
pub async fn handle(app: &App, invocation: &Invocation, event: Value) -> Result<Value> {
    match plan::event(event, app.now()) {
        Event::Batch(batch) => {
            let queue = &app.settings.queues.completions;
            batch::each(app, invocation, queue, batch, async |item| complete(app, invocation, item).await).await
        }
        Event::Sweep(time) => {
            sweep::sweep(app, invocation, time).await;
            Ok(Value::Null)
        }
        Event::Other(what) => Err(anyhow!("neither an SQS batch nor the sweep's scheduled event: {what}")),
    }
}

async fn complete(app: &App, invocation: &Invocation, item: &Item) -> Result<(), Retry> {
    let completion = match BuildCompleted::parse(&item.body) {
        Ok(completion) => completion,
        Err(reason) => return reject(app, item, &reason).await,
    };
    let stop = plan::completed(&completion);
    match &completion.task_arn {
        Some(arn) => complete_task(app, invocation, item, &completion, arn, &stop).await,
        None if complete_agents(app, item, &completion, &stop).await? => Ok(()),
        None => {
            let now = app.now();
            if plan::may_still_be_placed(&app.config().clouds, item.sent_at.unwrap_or(now), now) {
                return Err(Retry("nothing is known of the request yet; it may still be placed".into()));
            }
            tracing::info!(message.id = item.id, "nothing is known of the completed request, nor will be");
            Ok(())
        }
    }
}

async fn reject(app: &App, item: &Item, reason: &str) -> Result<(), Retry> {
    tracing::error!(message.id = item.id, error = reason, "completion refused");
    Ok(app.reject(&item.body, reason).await?)
}

/// StopTask goes out before anything that can fail.
async fn complete_task(
    app: &App,
    invocation: &Invocation,
    item: &Item,
    completion: &BuildCompleted,
    arn: &str,
    stop: &Stop,
) -> Result<(), Retry> {
    let accounts: Vec<BTreeSet<String>> = app
        .config()
        .clouds
        .iter()
        .map(|cloud| {
            let queue = &app.settings.queues.completions;
            plan::accounts(cloud, &invocation.function_arn, queue, &item.source_arn)
        })
        .collect();
    let index = match plan::place(arn, &app.config().clouds, &accounts) {
        Ok(index) => index,
        Err(reason) => return reject(app, item, &reason).await,
    };
    let cloud = app.cloud(index);
    let task = match ecs::stop_task(&cloud.clients.ecs, &cloud.cloud.cluster, arn, &stop.to_string()).await {
        Ok(task) => Some(task),
        Err(fault) if is_gone(&fault) => None,
        Err(fault) if fault.class() == Class::Permanent => match ended_already(app, cloud, arn).await {
            Some(task) => Some(task),
            None => return reject(app, item, &fault.to_string()).await,
        },
        Err(fault) => return Err(fault.into()),
    };
    tracing::info!(task.arn = arn, reason = %stop, "task is stopped");
    let started_by = task.as_ref().and_then(|task| task.started_by.clone());
    let name = started_by.or_else(|| completion.agent.clone()).and_then(|name| app.agent_name(&name));
    if let Some(name) = &name {
        remove_node(app, name, stop).await?;
    }
    if task.is_none() && completion.request_id.is_some() {
        // ECS has forgotten this agent; the request may have others, and wait for more.
        return complete_agents(app, item, completion, stop).await.map(drop);
    }
    let Some(name) = name else { return Ok(()) };
    let siblings = task.map(|task| siblings(app, app.template_name(&name), completion, &task)).unwrap_or_default();
    if siblings.is_empty() {
        return Ok(());
    }
    withdraw(app, completion, stop).await?;
    stop_all(app, cloud, &siblings, stop).await
}

/// The task, if it is an agent of ours that is over or will be. StopTask deletes a task's tags, so that a second one is
/// refused by the condition on the tag in the function's role.
async fn ended_already(app: &App, cloud: CloudRef<'_>, arn: &str) -> Option<Task> {
    let described = ecs::describe_tasks(&cloud.clients.ecs, &cloud.cloud.cluster, &[arn.to_owned()]).await;
    described.ok()?.into_iter().find(|task| task.is_ending() && app.whose(task).is_some())
}

/// The names of a request's other agents: they end with its build, where the completion names the request.
fn siblings(app: &App, template: &str, completion: &BuildCompleted, task: &Task) -> Vec<AgentName> {
    let is_of_request = |record: &Record| completion.request_id.as_ref() == Some(&record.request_id);
    let Some(record) = task.record().filter(is_of_request) else { return Vec::new() };
    let name = |index| AgentName::new(&app.settings.agent_name_prefix, template, record.request_id.as_str(), index);
    (0..record.count).filter(|&index| index != record.index).map(name).collect()
}

async fn stop_all(app: &App, cloud: CloudRef<'_>, names: &[AgentName], stop: &Stop) -> Result<(), Retry> {
    let stopped = names.iter().map(|name| stop_agent(app, cloud, name, stop));
    join_all(stopped).await.into_iter().try_for_each(|stopped| stopped.map(drop))
}

/// Stops the agents that a completion names. Answers whether anything is known of them.
async fn complete_agents(app: &App, item: &Item, completion: &BuildCompleted, stop: &Stop) -> Result<bool, Retry> {
    let mut candidates: Vec<(CloudRef<'_>, AgentName)> = Vec::new();
    if let Some(agent) = &completion.agent {
        let Some(name) = app.agent_name(agent) else {
            let reason = format!("agent: {agent:?} is not the name of an agent of ours");
            return reject(app, item, &reason).await.map(|()| true);
        };
        let template = app.template_name(&name).to_owned();
        let (serving, all): (Vec<_>, Vec<_>) = app.all_clouds().partition(|cloud| cloud.template(&template).is_some());
        let clouds = if serving.is_empty() { all } else { serving };
        candidates.extend(clouds.into_iter().map(|cloud| (cloud, name.clone())));
    }
    if let Some(id) = &completion.request_id {
        for cloud in app.all_clouds() {
            for template in &cloud.cloud.templates {
                candidates.extend((0..template.agents_per_request).map(|index| {
                    (cloud, AgentName::new(&app.settings.agent_name_prefix, &template.name, id.as_str(), index))
                }));
            }
        }
    }
    candidates.sort_by(|a, b| (a.0.index, &a.1).cmp(&(b.0.index, &b.1)));
    candidates.dedup_by(|a, b| (a.0.index, &a.1) == (b.0.index, &b.1));
    let found = candidates.iter().map(|(cloud, name)| async { stop_agent(app, *cloud, name, stop).await });
    let mut known = Vec::new();
    for ((cloud, name), found) in candidates.iter().zip(join_all(found).await) {
        known.extend(found?.map(|task| (*cloud, name, task)));
    }
    // Those beyond the template's own number, which the request asked for.
    for (cloud, name, task) in &known {
        let mut siblings = siblings(app, app.template_name(name), completion, task);
        siblings.retain(|name| !candidates.iter().any(|(_, candidate)| candidate == name));
        if !siblings.is_empty() {
            stop_all(app, *cloud, &siblings, stop).await?;
            break;
        }
    }
    // The rest of a request that was placed in part waits on.
    Ok(withdraw(app, completion, stop).await? || !known.is_empty())
}

/// Stops an agent's tasks and removes its node. Answers one of its tasks, running or stopped, if ECS knows any.
async fn stop_agent(app: &App, cloud: CloudRef<'_>, name: &AgentName, stop: &Stop) -> Result<Option<Task>, Retry> {
    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
    let running = ecs::list_tasks(client, cluster, Some(name.as_str()), DesiredStatus::Running).await?;
    let mut last = None;
    for arn in &running {
        last = match ecs::stop_task(client, cluster, arn, &stop.to_string()).await {
            Ok(task) => Some(task),
            Err(fault) if is_gone(&fault) => Some(Task::default()),
            Err(fault) => return Err(fault.into()),
        };
        tracing::info!(agent.name = name.as_str(), task.arn = arn, reason = %stop, "task stopped");
    }
    if running.is_empty() {
        let stopped = ecs::list_tasks(client, cluster, Some(name.as_str()), DesiredStatus::Stopped).await?;
        last = ecs::describe_tasks(client, cluster, &stopped[..stopped.len().min(1)]).await?.into_iter().next();
    }
    if last.is_some() {
        remove_node(app, name, stop).await?;
    }
    Ok(last)
}

/// The node goes offline, so that nothing new begins there, and is deleted. Jenkins is not waited for: what it cannot
/// do now is kept for later.
async fn remove_node(app: &App, name: &AgentName, stop: &Stop) -> Result<(), Retry> {
    if app.jenkins.registers_nodes()
        && let Err(fault) = app.jenkins.set_offline(name.as_str(), &stop.text).await
    {
        tracing::debug!(agent.name = name.as_str(), error = %fault, "not taken offline");
    }
    app.delete_node(name).await
}

/// Takes a request that still waits out of the queue. Answers whether there was one.
async fn withdraw(app: &App, completion: &BuildCompleted, stop: &Stop) -> Result<bool, Retry> {
    let prefix = &app.settings.agent_name_prefix;
    let concerned = |message: &Waiting| {
        message.wait.as_ref().is_some_and(|wait| {
            let by_name = |index: &u32| {
                let name = AgentName::new(prefix, &wait.template, wait.request_id.as_str(), *index);
                completion.agent.as_deref() == Some(name.as_str())
            };
            completion.request_id.as_ref() == Some(&wait.request_id) || wait.agents.iter().all(by_name)
        })
    };
    let (ours, others): (Vec<_>, Vec<_>) = wait::look(app).await?.into_iter().partition(concerned);
    wait::release(app, &others).await;
    for message in &ours {
        // Only the message knows how many agents the request has; those that found room end before it goes.
        if let Some((cloud, placed)) = placed(app, completion, message) {
            stop_all(app, cloud, &placed, stop).await?;
        }
        wait::forget(app, message).await?;
        tracing::info!(
            request.id = message.wait.as_ref().map(|wait| wait.request_id.as_str()),
            "request withdrawn: its build is over"
        );
    }
    Ok(!ours.is_empty())
}

/// The agents of a waiting request that found room already, where the completion names the request.
fn placed<'a>(app: &'a App, completion: &BuildCompleted, message: &Waiting) -> Option<(CloudRef<'a>, Vec<AgentName>)> {
    let wait = message.wait.as_ref().filter(|wait| completion.request_id.as_ref() == Some(&wait.request_id))?;
    let cloud = app.all_clouds().find(|cloud| cloud.cloud.name == wait.cloud)?;
    let asked = AgentRequest::parse(&message.body).ok().and_then(|request| request.count);
    let count = asked.or_else(|| Some(cloud.template(&wait.template)?.agents_per_request))?;
    let (prefix, id) = (&app.settings.agent_name_prefix, wait.request_id.as_str());
    let placed = (0..count).filter(|index| !wait.agents.contains(index));
    Some((cloud, placed.map(|index| AgentName::new(prefix, &wait.template, id, index)).collect()))
}
