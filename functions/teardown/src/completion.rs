//! A build is over: its agent's task is stopped, before anything that could fail, and its node goes.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::future::join_all;
use shared::app::App;
use shared::aws::ecs::{DesiredStatus, Task, TaskFilter};
use shared::batch::{Invocation, Item};
use shared::cloud::Cloud;
use shared::config::Template;
use shared::fault::{Fault, Kind};
use shared::message::{AgentRequest, BuildCompleted, MOST_AGENTS, Record, RequestId};
use shared::name::AgentName;
use shared::stop::Stop;
use shared::wait::{self, Waiting};

use crate::plan::completion as plan;

/// What a completion has come to.
enum Outcome {
    /// All that it names is over.
    Over,
    /// Agents that it names may still be placed.
    Pending,
    /// It can never work.
    Refused(String),
}

/// Ends what a completion names.
///
/// # Errors
/// When it has to come back.
pub async fn complete(app: &App, invocation: &Invocation, item: &Item) -> Result<(), Fault> {
    let completion = match BuildCompleted::parse(&item.body) {
        Ok(completion) => completion,
        Err(reason) => return reject(app, item, &reason).await,
    };
    let stop = plan::completed(&completion);
    let ended = match &completion.task_arn {
        Some(arn) => end_task(app, invocation, item, (&completion, arn), &stop).await,
        None => end_named(app, &completion, &stop).await,
    };
    let now = app.now();
    match ended {
        Ok(Outcome::Over) => Ok(()),
        Ok(Outcome::Refused(reason)) => reject(app, item, &reason).await,
        Ok(Outcome::Pending) if plan::may_still_be_placed(&app.config().clouds, item.sent_at.unwrap_or(now), now) => {
            Err(Fault::passing("ECS does not know all agents that are over; they may still be placed"))
        }
        Ok(Outcome::Pending) => {
            tracing::info!(message.id = item.id, "ECS does not know all agents that are over, nor will it");
            Ok(())
        }
        Err(fault) if fault.is_final() => reject(app, item, &fault.to_string()).await,
        Err(fault) => Err(fault),
    }
}

async fn reject(app: &App, item: &Item, reason: &str) -> Result<(), Fault> {
    tracing::error!(message.id = item.id, error = reason, "completion rejected");
    app.queues.reject(&item.body, reason).await
}

/// Stops a task by its ARN. StopTask goes out before anything that can fail.
async fn end_task(
    app: &App,
    invocation: &Invocation,
    item: &Item,
    (completion, arn): (&BuildCompleted, &str),
    stop: &Stop,
) -> Result<Outcome, Fault> {
    let clouds = &app.config().clouds;
    let queue = &app.queues.urls.completions;
    let accounts = |cloud| plan::accounts(cloud, &invocation.function_arn, queue, &item.source_arn);
    let accounts: Vec<BTreeSet<String>> = clouds.iter().map(accounts).collect();
    let cloud = match plan::place(arn, clouds, &accounts) {
        Ok(index) => app.clouds.at(index),
        Err(reason) => return Ok(Outcome::Refused(reason)),
    };
    let task = match cloud.cluster.stop_task(arn, &stop.to_string()).await {
        Ok(task) if task.started_by.is_some() => Some(task),
        Ok(_) => cloud.cluster.describe_task(arn).await?,
        Err(fault) if fault.kind == Kind::Missing => None,
        Err(fault) if fault.is_final() => match ended_already(app, cloud, arn).await {
            Some(task) => Some(task),
            None => return Err(fault),
        },
        Err(fault) => return Err(fault),
    };
    tracing::info!(task.arn = arn, reason = %stop, "task stopped");
    let started_by = task.as_ref().and_then(|task| task.started_by.clone());
    let name = started_by.or_else(|| completion.agent.clone()).and_then(|name| app.agent_name(&name));
    if let Some(name) = &name {
        remove_node(app, name, stop).await?;
    }
    match (task, name) {
        (Some(task), Some(name)) => end_rest(app, completion, &[(cloud, name, task)], stop).await,
        // ECS has forgotten this agent; the request may have others.
        (None, _) if completion.request_id.is_some() => match end_named(app, completion, stop).await? {
            Outcome::Pending => Ok(Outcome::Over),
            outcome => Ok(outcome),
        },
        _ => Ok(Outcome::Over),
    }
}

/// The task, if it is an agent of ours that is over or will be. StopTask deletes a task's tags, so that a second one is
/// refused by the condition on the tag in the function's role.
async fn ended_already(app: &App, cloud: &Cloud, arn: &str) -> Option<Task> {
    let task = cloud.cluster.describe_task(arn).await.ok()??;
    (task.is_ending() && app.owner(&task).is_some()).then_some(task)
}

/// An agent of which ECS knows a task, running or stopped.
type Known<'a> = (&'a Cloud, AgentName, Task);

/// Stops the agents that a completion names.
async fn end_named(app: &App, completion: &BuildCompleted, stop: &Stop) -> Result<Outcome, Fault> {
    let request = completion.request_id.as_ref();
    let mut names = Vec::new();
    if let Some(agent) = &completion.agent {
        match app.agent_name(agent) {
            Some(name) => names.extend(clouds_of(app, &name).into_iter().map(|cloud| (cloud, name.clone()))),
            None if request.is_some() => tracing::warn!(agent.name = agent, "not the name of an agent of ours"),
            None => return Ok(Outcome::Refused(format!("agent: {agent:?} is not the name of an agent of ours"))),
        }
    }
    names.extend(request.iter().flat_map(|id| agents_of(app, id, |template| 0..template.agents_per_request)));
    names.sort_by(|a, b| (a.0.index, &a.1).cmp(&(b.0.index, &b.1)));
    names.dedup_by(|a, b| (a.0.index, &a.1) == (b.0.index, &b.1));
    let mut known = stop_each(app, &names, stop).await?;
    if known.is_empty() && withdraw(app, completion, stop).await? {
        return Ok(Outcome::Over);
    }
    if let Some(id) = request.filter(|_| known.is_empty()) {
        // Its first agents may never have been placed, or have gone long ago.
        let further = agents_of(app, id, |template| template.agents_per_request..MOST_AGENTS);
        known = stop_each(app, &further, stop).await?;
    }
    match known.is_empty() {
        true => Ok(Outcome::Pending),
        false => end_rest(app, completion, &known, stop).await,
    }
}

/// The clouds that an agent may be in, by its template.
fn clouds_of<'a>(app: &'a App, name: &AgentName) -> Vec<&'a Cloud> {
    let serves = |cloud: &&Cloud| cloud.template(app.template_name(name)).is_some();
    let (serving, others): (Vec<_>, Vec<_>) = app.clouds.iter().partition(serves);
    if serving.is_empty() { others } else { serving }
}

/// The names that a request's agents can have, whichever template served it.
fn agents_of<'a>(
    app: &'a App,
    id: &RequestId,
    indexes: impl Fn(&Template) -> Range<u32>,
) -> Vec<(&'a Cloud, AgentName)> {
    let prefix = &app.settings.agent_name_prefix;
    let templates = app.clouds.iter().flat_map(|cloud| cloud.config.templates.iter().map(move |one| (cloud, one)));
    let names = templates.flat_map(|(cloud, template)| {
        indexes(template).map(move |index| (cloud, AgentName::new(prefix, &template.name, id.as_str(), index)))
    });
    names.collect()
}

/// Ends the agents of a request beside those whose tasks are known, where the completion names the request. Those without
/// a task wait, or are on their way to be placed.
async fn end_rest(app: &App, completion: &BuildCompleted, known: &[Known<'_>], stop: &Stop) -> Result<Outcome, Fault> {
    let is_of_request = |record: &Record| completion.request_id.as_ref() == Some(&record.request_id);
    let found = known.iter().find_map(|(cloud, name, task)| Some((cloud, name, task.record().filter(is_of_request)?)));
    let Some((cloud, name, record)) = found else { return Ok(Outcome::Over) };
    let (prefix, template) = (&app.settings.agent_name_prefix, app.template_name(name));
    let rest: Vec<_> = (0..record.count)
        .map(|index| AgentName::new(prefix, template, record.request_id.as_str(), index))
        .filter(|name| !known.iter().any(|(_, known, _)| known == name))
        .map(|name| (*cloud, name))
        .collect();
    let have_tasks = stop_each(app, &rest, stop).await?.len();
    match have_tasks == rest.len() || withdraw(app, completion, stop).await? {
        true => Ok(Outcome::Over),
        false => Ok(Outcome::Pending),
    }
}

/// Stops the tasks of each agent; a fault with one does not keep the others from it.
///
/// # Errors
/// After all was done that could be done, what could not: first what another try may do.
async fn stop_each<'a>(app: &App, agents: &[(&'a Cloud, AgentName)], stop: &Stop) -> Result<Vec<Known<'a>>, Fault> {
    let stopped = join_all(agents.iter().map(|(cloud, name)| stop_agent(app, cloud, name, stop))).await;
    let mut known = Vec::new();
    let mut faults = Vec::new();
    for ((cloud, name), stopped) in agents.iter().zip(stopped) {
        match stopped {
            Ok(task) => known.extend(task.map(|task| (*cloud, name.clone(), task))),
            Err(fault) => faults.push(fault),
        }
    }
    faults.sort_by_key(Fault::is_final);
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(known),
    }
}

/// Stops an agent's tasks and removes its node. Answers one of its tasks, running or stopped, if ECS knows any.
async fn stop_agent(app: &App, cloud: &Cloud, name: &AgentName, stop: &Stop) -> Result<Option<Task>, Fault> {
    let cluster = &cloud.cluster;
    let running = cluster.list_tasks(TaskFilter::StartedBy(name.as_str()), DesiredStatus::Running).await?;
    for arn in &running {
        match cluster.stop_task(arn, &stop.to_string()).await {
            Err(fault) if fault.kind != Kind::Missing && ended_already(app, cloud, arn).await.is_none() => {
                return Err(fault);
            }
            _ => tracing::info!(agent.name = name.as_str(), task.arn = arn, reason = %stop, "task stopped"),
        }
    }
    let known = match running.is_empty() {
        true => cluster.list_tasks(TaskFilter::StartedBy(name.as_str()), DesiredStatus::Stopped).await?,
        false => running,
    };
    let Some(arn) = known.first() else { return Ok(None) };
    let task = cluster.describe_task(arn).await?;
    if task.is_some() {
        remove_node(app, name, stop).await?;
    }
    Ok(task)
}

/// The node goes offline, so that nothing new begins there, and is deleted. Jenkins is not waited for: what it cannot
/// do now is kept for later.
async fn remove_node(app: &App, name: &AgentName, stop: &Stop) -> Result<(), Fault> {
    if app.jenkins.registers_nodes()
        && let Err(fault) = app.jenkins.set_offline(name.as_str(), &stop.text).await
    {
        tracing::debug!(agent.name = name.as_str(), error = %fault, "not taken offline");
    }
    app.notifier.delete_node(name).await
}

/// Takes a request that still waits out of the queue. Answers whether there was one.
async fn withdraw(app: &App, completion: &BuildCompleted, stop: &Stop) -> Result<bool, Fault> {
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
    let (ours, others): (Vec<_>, Vec<_>) = wait::look(&app.queues).await?.into_iter().partition(concerned);
    wait::release(&app.queues, &others).await;
    for message in &ours {
        // Only the message knows how many agents the request has; those that found room end before it goes.
        if let Some(placed) = placed(app, completion, message) {
            stop_each(app, &placed, stop).await?;
        }
        wait::forget(&app.queues, message).await?;
        tracing::info!(
            request.id = message.wait.as_ref().map(|wait| wait.request_id.as_str()),
            "request withdrawn: its build is over"
        );
    }
    Ok(!ours.is_empty())
}

/// The agents of a waiting request that found room already, where the completion names the request.
fn placed<'a>(app: &'a App, completion: &BuildCompleted, message: &Waiting) -> Option<Vec<(&'a Cloud, AgentName)>> {
    let wait = message.wait.as_ref().filter(|wait| completion.request_id.as_ref() == Some(&wait.request_id))?;
    let cloud = app.clouds.named(&wait.cloud)?;
    let asked = AgentRequest::parse(&message.body).ok().and_then(|request| request.count);
    let count = asked.or_else(|| Some(cloud.template(&wait.template)?.agents_per_request))?;
    let (prefix, id) = (&app.settings.agent_name_prefix, wait.request_id.as_str());
    let placed = (0..count).filter(|index| !wait.agents.contains(index));
    Some(placed.map(|index| (cloud, AgentName::new(prefix, &wait.template, id, index))).collect())
}
