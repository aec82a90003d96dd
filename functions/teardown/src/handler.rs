//! Sequences a batch of completions, or the sweep. Decides nothing.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Result, anyhow};
use futures::future::join_all;
use serde_json::Value;
use shared::app::{App, CloudRef};
use shared::aws::ecs::{self, DesiredStatus, Of, Task};
use shared::aws::{ApiFault, Class};
use shared::batch::{self, Invocation, Item, Retry};
use shared::config::Template;
use shared::message::{AgentRequest, BuildCompleted, MOST_AGENTS, Record, RequestId};
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
    let is_over = match &completion.task_arn {
        Some(arn) => complete_task(app, invocation, item, &completion, arn, &stop).await?,
        None => complete_named(app, item, &completion, &stop).await?,
    };
    let now = app.now();
    if !is_over && plan::may_still_be_placed(&app.config().clouds, item.sent_at.unwrap_or(now), now) {
        return Err(Retry("nothing is known yet of all the agents that are over; they may still be placed".into()));
    }
    if !is_over {
        tracing::info!(message.id = item.id, "nothing is known of all the agents that are over, nor will be");
    }
    Ok(())
}

async fn reject(app: &App, item: &Item, reason: &str) -> Result<(), Retry> {
    tracing::error!(message.id = item.id, error = reason, "completion refused");
    Ok(app.reject(&item.body, reason).await?)
}

/// StopTask goes out before anything that can fail. Answers whether all that the completion names is over.
async fn complete_task(
    app: &App,
    invocation: &Invocation,
    item: &Item,
    completion: &BuildCompleted,
    arn: &str,
    stop: &Stop,
) -> Result<bool, Retry> {
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
        Err(reason) => return reject(app, item, &reason).await.map(|()| true),
    };
    let cloud = app.cloud(index);
    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
    let task = match ecs::stop_task(client, cluster, arn, &stop.to_string()).await {
        Ok(task) if task.started_by.is_some() => Some(task),
        Ok(_) => ecs::describe_tasks(client, cluster, &[arn.to_owned()]).await?.into_iter().next(),
        Err(fault) if is_gone(&fault) => None,
        Err(fault) if fault.class() == Class::Permanent => match ended_already(app, cloud, arn).await {
            Some(task) => Some(task),
            None => return reject(app, item, &fault.to_string()).await.map(|()| true),
        },
        Err(fault) => return Err(fault.into()),
    };
    tracing::info!(task.arn = arn, reason = %stop, "task is stopped");
    let started_by = task.as_ref().and_then(|task| task.started_by.clone());
    let name = started_by.or_else(|| completion.agent.clone()).and_then(|name| app.agent_name(&name));
    if let Some(name) = &name {
        remove_node(app, name, stop).await?;
    }
    let known = match (task, name) {
        (Some(task), Some(name)) => vec![(cloud, name, task)],
        // ECS has forgotten this agent; the request may have others.
        (None, _) if completion.request_id.is_some() => {
            return complete_named(app, item, completion, stop).await.map(|_| true);
        }
        _ => return Ok(true),
    };
    let mut faults = Vec::new();
    let is_over = complete_rest(app, completion, &known, stop, &mut faults).await?;
    judge(app, item, is_over, faults).await
}

/// The task, if it is an agent of ours that is over or will be. StopTask deletes a task's tags, so that a second one is
/// refused by the condition on the tag in the function's role.
async fn ended_already(app: &App, cloud: CloudRef<'_>, arn: &str) -> Option<Task> {
    let described = ecs::describe_tasks(&cloud.clients.ecs, &cloud.cloud.cluster, &[arn.to_owned()]).await;
    described.ok()?.into_iter().find(|task| task.is_ending() && app.whose(task).is_some())
}

/// An agent of which ECS knows a task, running or stopped.
type Known<'a> = (CloudRef<'a>, AgentName, Task);

/// Stops the agents that a completion names. Answers whether all of them are over.
async fn complete_named(app: &App, item: &Item, completion: &BuildCompleted, stop: &Stop) -> Result<bool, Retry> {
    let request = completion.request_id.as_ref();
    let mut names = Vec::new();
    if let Some(agent) = &completion.agent {
        match app.agent_name(agent) {
            Some(name) => names.extend(clouds_of(app, &name).into_iter().map(|cloud| (cloud, name.clone()))),
            None if request.is_some() => tracing::warn!(agent.name = agent, "not the name of an agent of ours"),
            None => {
                let reason = format!("agent: {agent:?} is not the name of an agent of ours");
                return reject(app, item, &reason).await.map(|()| true);
            }
        }
    }
    names.extend(request.iter().flat_map(|id| agents_of(app, id, |template| 0..template.agents_per_request)));
    names.sort_by(|a, b| (a.0.index, &a.1).cmp(&(b.0.index, &b.1)));
    names.dedup_by(|a, b| (a.0.index, &a.1) == (b.0.index, &b.1));
    let mut faults = Vec::new();
    let mut known = stop_each(app, &names, stop, &mut faults).await;
    let mut is_over = known.is_empty() && withdraw(app, completion, stop).await?;
    if let Some(id) = request.filter(|_| known.is_empty() && !is_over) {
        // Its first agents may never have been placed, or have gone long ago.
        let further = agents_of(app, id, |template| template.agents_per_request..MOST_AGENTS);
        known = stop_each(app, &further, stop, &mut faults).await;
    }
    if !known.is_empty() {
        is_over = complete_rest(app, completion, &known, stop, &mut faults).await?;
    }
    judge(app, item, is_over, faults).await
}

/// The clouds that an agent may be in, by its template.
fn clouds_of<'a>(app: &'a App, name: &AgentName) -> Vec<CloudRef<'a>> {
    let serves = |cloud: &CloudRef<'_>| cloud.template(app.template_name(name)).is_some();
    let (serving, others): (Vec<_>, Vec<_>) = app.all_clouds().partition(serves);
    if serving.is_empty() { others } else { serving }
}

/// The names that a request's agents can have, whichever template served it.
fn agents_of<'a>(
    app: &'a App,
    id: &RequestId,
    indexes: impl Fn(&Template) -> Range<u32>,
) -> Vec<(CloudRef<'a>, AgentName)> {
    let prefix = &app.settings.agent_name_prefix;
    let templates = app.all_clouds().flat_map(|cloud| cloud.cloud.templates.iter().map(move |one| (cloud, one)));
    let names = templates.flat_map(|(cloud, template)| {
        indexes(template).map(move |index| (cloud, AgentName::new(prefix, &template.name, id.as_str(), index)))
    });
    names.collect()
}

/// Ends the agents of a request beside those whose tasks are known, where the completion names the request. Those without
/// a task wait, or are on their way to be placed. Answers whether none of them can come any more.
async fn complete_rest(
    app: &App,
    completion: &BuildCompleted,
    known: &[Known<'_>],
    stop: &Stop,
    faults: &mut Vec<ApiFault>,
) -> Result<bool, Retry> {
    let is_of_request = |record: &Record| completion.request_id.as_ref() == Some(&record.request_id);
    let told = known.iter().find_map(|(cloud, name, task)| Some((cloud, name, task.record().filter(is_of_request)?)));
    let Some((cloud, name, record)) = told else { return Ok(true) };
    let (prefix, template) = (&app.settings.agent_name_prefix, app.template_name(name));
    let rest: Vec<_> = (0..record.count)
        .map(|index| AgentName::new(prefix, template, record.request_id.as_str(), index))
        .filter(|name| !known.iter().any(|(_, known, _)| known == name))
        .map(|name| (*cloud, name))
        .collect();
    let have_tasks = stop_each(app, &rest, stop, faults).await.len();
    Ok(have_tasks == rest.len() || withdraw(app, completion, stop).await?)
}

/// After all was done that could be done: what could not.
async fn judge(app: &App, item: &Item, is_over: bool, faults: Vec<ApiFault>) -> Result<bool, Retry> {
    if let Some(fault) = faults.iter().find(|fault| fault.class() != Class::Permanent) {
        return Err(Retry(fault.to_string()));
    }
    for fault in &faults {
        tracing::error!(message.id = item.id, error = %fault, "a completion's agents could not all be asked for");
    }
    match faults.iter().find(|fault| fault.action == "ecs:StopTask") {
        Some(fault) => reject(app, item, &fault.to_string()).await.map(|()| true),
        None => Ok(is_over),
    }
}

/// Stops the tasks of each agent; a fault with one does not keep the others from it.
async fn stop_each<'a>(
    app: &App,
    agents: &[(CloudRef<'a>, AgentName)],
    stop: &Stop,
    faults: &mut Vec<ApiFault>,
) -> Vec<Known<'a>> {
    let stopped = join_all(agents.iter().map(|(cloud, name)| stop_agent(app, *cloud, name, stop))).await;
    let mut known = Vec::new();
    for ((cloud, name), stopped) in agents.iter().zip(stopped) {
        match stopped {
            Ok(task) => known.extend(task.map(|task| (*cloud, name.clone(), task))),
            Err(fault) => faults.push(fault),
        }
    }
    known
}

/// Stops an agent's tasks and removes its node. Answers one of its tasks, running or stopped, if ECS knows any.
async fn stop_agent(app: &App, cloud: CloudRef<'_>, name: &AgentName, stop: &Stop) -> Result<Option<Task>, ApiFault> {
    let (client, cluster) = (&cloud.clients.ecs, &cloud.cloud.cluster);
    let running = ecs::list_tasks(client, cluster, Of::Name(name.as_str()), DesiredStatus::Running).await?;
    for arn in &running {
        match ecs::stop_task(client, cluster, arn, &stop.to_string()).await {
            Err(fault) if !is_gone(&fault) && ended_already(app, cloud, arn).await.is_none() => return Err(fault),
            _ => tracing::info!(agent.name = name.as_str(), task.arn = arn, reason = %stop, "task stopped"),
        }
    }
    let known = match running.is_empty() {
        true => ecs::list_tasks(client, cluster, Of::Name(name.as_str()), DesiredStatus::Stopped).await?,
        false => running,
    };
    let task = ecs::describe_tasks(client, cluster, &known[..known.len().min(1)]).await?.into_iter().next();
    if task.is_some() {
        remove_node(app, name, stop).await?;
    }
    Ok(task)
}

/// The node goes offline, so that nothing new begins there, and is deleted. Jenkins is not waited for: what it cannot
/// do now is kept for later.
async fn remove_node(app: &App, name: &AgentName, stop: &Stop) -> Result<(), ApiFault> {
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
        if let Some(placed) = placed(app, completion, message) {
            let mut faults = Vec::new();
            stop_each(app, &placed, stop, &mut faults).await;
            if let Some(fault) = faults.into_iter().next() {
                return Err(fault.into());
            }
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
fn placed<'a>(app: &'a App, completion: &BuildCompleted, message: &Waiting) -> Option<Vec<(CloudRef<'a>, AgentName)>> {
    let wait = message.wait.as_ref().filter(|wait| completion.request_id.as_ref() == Some(&wait.request_id))?;
    let cloud = app.all_clouds().find(|cloud| cloud.cloud.name == wait.cloud)?;
    let asked = AgentRequest::parse(&message.body).ok().and_then(|request| request.count);
    let count = asked.or_else(|| Some(cloud.template(&wait.template)?.agents_per_request))?;
    let (prefix, id) = (&app.settings.agent_name_prefix, wait.request_id.as_str());
    let placed = (0..count).filter(|index| !wait.agents.contains(index));
    Some(placed.map(|index| (cloud, AgentName::new(prefix, &wait.template, id, index))).collect())
}
