//! A build has ended: stops its agent's task, before anything that could fail, and deletes its node.

use std::collections::HashSet;

use futures::future::join_all;
use shared::app::App;
use shared::arn;
use shared::aws::ecs::{DesiredStatus, Task, TaskFilter};
use shared::batch::{Invocation, Item};
use shared::cloud::Cloud;
use shared::fault::{Fault, Kind};
use shared::message::{BuildCompleted, MOST_AGENTS};
use shared::name::AgentName;
use shared::outcome;
use shared::span::Ids;
use shared::stop::Stop;
use shared::wait::{self, Waiting};
use tokio::sync::{Mutex, OnceCell};
use tracing::Instrument as _;

use crate::plan::completion as plan;

/// The most tasks per cluster and desired status that are searched for agents whose names are not known.
const MOST_TASKS: usize = 1000;

/// State that the completions of one batch share: each cluster is listed at most once for all of them.
pub struct Batch {
    /// By the clouds' index in the configuration.
    running: Vec<OnceCell<Vec<Task>>>,
    stopped: Vec<OnceCell<Vec<Task>>>,
    /// Held while the waiting queue is read, which hides its messages from others.
    waiting: Mutex<()>,
}

impl Batch {
    pub fn new(app: &App) -> Self {
        let cells = || app.clouds.iter().map(|_| OnceCell::new()).collect();
        Self { running: cells(), stopped: cells(), waiting: Mutex::new(()) }
    }

    async fn tasks(&self, cloud: &Cloud, status: DesiredStatus) -> Result<&[Task], Fault> {
        let cells = if status == DesiredStatus::Running { &self.running } else { &self.stopped };
        let list = async || {
            let arns = cloud.cluster.list_tasks_at_most(TaskFilter::All, status, MOST_TASKS).await?;
            cloud.cluster.describe_tasks(&arns).await
        };
        cells[cloud.index].get_or_try_init(list).await.map(Vec::as_slice)
    }
}

/// The outcome of a completion.
enum Outcome {
    /// Everything that it names has ended.
    Over,
    /// Agents that it names may still be placed.
    Pending,
    /// ECS could not be queried for the agents.
    Unknown(Fault),
    /// It can never work.
    Refused(String),
}

/// Ends everything that a completion names.
///
/// # Errors
/// When the message has to come back.
pub async fn complete(app: &App, invocation: &Invocation, batch: &Batch, item: &Item) -> Result<(), Fault> {
    let completion = match BuildCompleted::parse(&item.body) {
        Ok(completion) => completion,
        Err(reason) => return reject(app, item, &reason).await,
    };
    Ids {
        message: None,
        request: completion.request_id.as_ref(),
        build: completion.build.as_ref(),
        agent: completion.agent.as_deref(),
        task: completion.task_arn.as_deref(),
    }
    .record();
    let work = Work { app, batch, completion: &completion, stop: plan::completed(&completion) };
    let ended = match &completion.task_arn {
        Some(arn) => end_task(&work, invocation, item, arn).await,
        None => end_named(&work).await,
    };
    let now = app.now();
    let is_young = plan::may_still_be_placed(&app.config().clouds, item.sent_at(now).unwrap_or(now), now);
    match ended {
        Ok(Outcome::Over) => Ok(()),
        Ok(Outcome::Refused(reason)) => reject(app, item, &reason).await,
        Ok(Outcome::Pending) if is_young => {
            Err(Fault::not_yet("the build completed before its agent started; the request may still be in a queue"))
        }
        Ok(Outcome::Pending) => {
            tracing::info!("build completed without an agent, and its request can no longer start one");
            Ok(())
        }
        Ok(Outcome::Unknown(fault)) if fault.is_final() => reject(app, item, &fault.to_string()).await,
        Ok(Outcome::Unknown(fault)) if is_young => Err(fault),
        Ok(Outcome::Unknown(fault)) => {
            let consequence = "completion given up; the sweep stops its agents once they are idle";
            tracing::error!(error = %fault, "{consequence}");
            Ok(())
        }
        Err(fault) if fault.is_final() => reject(app, item, &fault.to_string()).await,
        Err(fault) => Err(fault),
    }
}

async fn reject(app: &App, item: &Item, reason: &str) -> Result<(), Fault> {
    app.queues.reject(&item.body, reason).await?;
    tracing::error!(error = reason, "completion rejected");
    Ok(())
}

/// One completion.
struct Work<'a> {
    app: &'a App,
    batch: &'a Batch,
    completion: &'a BuildCompleted,
    stop: Stop,
}

/// An agent of which ECS knows a task, running or stopped.
struct Found<'a> {
    cloud: &'a Cloud,
    name: AgentName,
    task: Task,
}

/// Stops a task by its ARN. StopTask is called before anything that can fail.
async fn end_task(work: &Work<'_>, invocation: &Invocation, item: &Item, task_arn: &str) -> Result<Outcome, Fault> {
    let app = work.app;
    let clouds = &app.config().clouds;
    let queue = &app.queues.urls.completions;
    let own = arn::own_accounts(&invocation.function_arn, queue, &item.source_arn);
    let accounts: Vec<_> = clouds.iter().map(|cloud| arn::accounts_of(cloud, &own)).collect();
    let cloud = match plan::place(task_arn, clouds, &accounts) {
        Ok(index) => app.clouds.at(index),
        Err(reason) => return Ok(Outcome::Refused(reason)),
    };
    let task = stop_task(work, cloud, task_arn).await?;
    let started_by = task.as_ref().and_then(|task| task.started_by.clone());
    let name = started_by.or_else(|| work.completion.agent.clone()).and_then(|name| app.agent_name(&name));
    if let Some(name) = &name {
        Ids::of_agent(name).record();
        remove_node(work, name).await?;
    }
    match (task, name) {
        (Some(task), Some(name)) => end_rest(work, vec![Found { cloud, name, task }]).await,
        // ECS has forgotten this agent; the request may have others.
        (None, _) if work.completion.request_id.is_some() => Ok(match end_named(work).await? {
            Outcome::Pending => Outcome::Over,
            outcome => outcome,
        }),
        _ => Ok(Outcome::Over),
    }
}

/// Stops a task. Returns it, unless ECS has forgotten it.
async fn stop_task(work: &Work<'_>, cloud: &Cloud, arn: &str) -> Result<Option<Task>, Fault> {
    let stopped = cloud.cluster.stop_task(arn, &work.stop.to_string()).await;
    let task = match stopped {
        Ok(task) if task.started_by.is_some() => Some(task),
        Ok(_) => cloud.cluster.describe_task(arn).await?,
        Err(fault) if fault.kind == Kind::Missing => None,
        // The role's condition is a tag, which is missing on a task that was stopped and on one that ECS has forgotten.
        Err(fault) if fault.is_final() => match cloud.cluster.describe_task(arn).await? {
            Some(task) if !task.is_ending() || work.app.owner(&task).is_none() => return Err(fault),
            task => task,
        },
        Err(fault) => return Err(fault),
    };
    let Some(stopped) = &task else {
        tracing::info!("task no longer known to ECS: nothing is left to stop");
        return Ok(None);
    };
    let record = stopped.record();
    let known = record.as_ref().map(Ids::from).unwrap_or_default();
    Ids { agent: stopped.started_by.as_deref(), ..known }.record();
    tracing::info!(reason = %work.stop, "task stopped");
    Ok(task)
}

/// Stops the agents that a completion names by request or name.
async fn end_named(work: &Work<'_>) -> Result<Outcome, Fault> {
    let app = work.app;
    let agent = match &work.completion.agent {
        Some(agent) => match app.agent_name(agent) {
            None if work.completion.request_id.is_none() => {
                return Ok(Outcome::Refused(format!("agent: {agent:?} is not the name of an agent of ours")));
            }
            None => {
                tracing::warn!("the completion names an agent that is not ours; the agents of its request are stopped");
                None
            }
            name => name,
        },
        None => None,
    };
    let found = match &work.completion.request_id {
        Some(id) => {
            let prefix = &app.settings.agent_name_prefix;
            let templates = app.clouds.iter().flat_map(|cloud| &cloud.config.templates);
            let names = templates.flat_map(|template| {
                (0..MOST_AGENTS).map(|index| AgentName::new(prefix, &template.name, id.as_str(), index))
            });
            find(work, &names.chain(agent).collect()).await
        }
        None => match &agent {
            Some(name) => find_by_name(work, name).await,
            None => Ok(Vec::new()),
        },
    };
    match found {
        Err(fault) => Ok(Outcome::Unknown(fault)),
        Ok(found) => {
            stop_each(work, &found).await?;
            end_rest(work, found).await
        }
    }
}

/// Whether a task is one of our agents and has one of these names.
fn named<'a>(work: &Work<'a>, task: &Task, names: &HashSet<AgentName>) -> Option<(&'a Cloud, AgentName)> {
    let (cloud, name) = work.app.owner(task)?;
    (names.contains(&name) && outcome::is_or_was_ours(task, work.app.controller())).then_some((cloud, name))
}

/// The agents of these names that ECS knows: one listing of each cluster, however many names there are.
async fn find<'a>(work: &Work<'a>, names: &HashSet<AgentName>) -> Result<Vec<Found<'a>>, Fault> {
    let mut found: Vec<Found<'_>> = Vec::new();
    let mut last = None;
    for status in [DesiredStatus::Running, DesiredStatus::Stopped] {
        for cloud in work.app.clouds.distinct_clusters() {
            match work.batch.tasks(cloud, status.clone()).await {
                Err(fault) => last = Some(fault),
                Ok(tasks) => {
                    for task in tasks {
                        let Some((cloud, name)) = named(work, task, names) else { continue };
                        // A name may have had several tasks: all that run are stopped; if none does, a stopped one
                        // represents the agent.
                        if status == DesiredStatus::Running || found.iter().all(|other| other.name != name) {
                            found.push(Found { cloud, name, task: task.clone() });
                        }
                    }
                }
            }
        }
        if !found.is_empty() && plan::without_task(work.completion, &with_templates(work, &found)).is_empty() {
            break;
        }
    }
    match last {
        Some(fault) if found.is_empty() => Err(fault),
        _ => Ok(found),
    }
}

/// The tasks of an agent, in the clusters whose clouds have its template, or else in all.
async fn find_by_name<'a>(work: &Work<'a>, name: &AgentName) -> Result<Vec<Found<'a>>, Fault> {
    let app = work.app;
    let serves = |cloud: &Cloud| cloud.template(app.template_name(name)).is_some();
    let is_served = app.clouds.iter().any(serves);
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for cloud in app.clouds.iter().filter(|cloud| !is_served || serves(cloud)) {
        if !seen.insert(cloud.cluster_key()) {
            continue;
        }
        let arns = cloud.cluster.tasks_named(name.as_str()).await?;
        let tasks = cloud.cluster.describe_tasks(&arns).await?;
        let ours = tasks.into_iter().filter(|task| outcome::is_or_was_ours(task, app.controller()));
        found.extend(ours.map(|task| Found { cloud, name: name.clone(), task }));
    }
    Ok(found)
}

/// The tasks, each with its agent's template.
fn with_templates<'f>(work: &Work<'_>, found: &'f [Found<'_>]) -> Vec<(&'f str, &'f Task)> {
    found.iter().map(|agent| (work.app.template_name(&agent.name), &agent.task)).collect()
}

/// Stops the tasks that are to keep running; a fault of one does not affect the others. All nodes are deleted.
///
/// # Errors
/// After everything possible was done: first a fault that a retry may resolve.
async fn stop_each(work: &Work<'_>, found: &[Found<'_>]) -> Result<(), Fault> {
    let ended = join_all(found.iter().map(|agent| {
        let record = agent.task.record();
        let span = Ids::of_task(&agent.name, &agent.task, record.as_ref()).span();
        let stop = async move {
            if !agent.task.is_ending() {
                stop_task(work, agent.cloud, &agent.task.arn).await?;
            }
            remove_node(work, &agent.name).await
        };
        stop.instrument(span)
    }));
    let mut faults: Vec<Fault> = ended.await.into_iter().filter_map(Result::err).collect();
    faults.sort_by_key(Fault::is_final);
    faults.into_iter().next().map_or(Ok(()), Err)
}

/// Ends the agents of a request besides those whose tasks are known, if the completion names the request. Those without
/// a task wait, or are about to be placed.
async fn end_rest(work: &Work<'_>, mut found: Vec<Found<'_>>) -> Result<Outcome, Fault> {
    let prefix = &work.app.settings.agent_name_prefix;
    let names = |found: &[Found<'_>]| -> HashSet<AgentName> {
        let rest = plan::without_task(work.completion, &with_templates(work, found));
        rest.into_iter().map(|(template, id, index)| AgentName::new(prefix, &template, id.as_str(), index)).collect()
    };
    // If the completion names a task by its ARN, the task's record says how many agents the request has.
    let rest = names(&found);
    if !rest.is_empty() && work.completion.task_arn.is_some() {
        match find(work, &rest).await {
            Err(fault) => return Ok(Outcome::Unknown(fault)),
            Ok(others) => {
                stop_each(work, &others).await?;
                found.extend(others);
            }
        }
    }
    if !found.is_empty() && names(&found).is_empty() {
        return Ok(Outcome::Over);
    }
    Ok(if withdraw(work, &found).await? { Outcome::Over } else { Outcome::Pending })
}

/// Takes the node offline, so that no build starts on it, and deletes it. Does not wait for Jenkins: what it cannot do
/// now is kept for later.
async fn remove_node(work: &Work<'_>, name: &AgentName) -> Result<(), Fault> {
    let app = work.app;
    if app.jenkins.registers_nodes()
        && let Err(fault) = app.jenkins.set_offline(name.as_str(), &work.stop.text).await
    {
        tracing::debug!(error = %fault, "node not taken offline");
    }
    app.notifier.delete_node(name).await
}

/// Deletes a request that still waits from the queue. Returns whether there was one.
async fn withdraw(work: &Work<'_>, found: &[Found<'_>]) -> Result<bool, Fault> {
    let (app, completion) = (work.app, work.completion);
    let prefix = &app.settings.agent_name_prefix;
    let is_named = |message: &Waiting| {
        message.wait.as_ref().is_some_and(|wait| {
            let by_name = |index: &u32| {
                let name = AgentName::new(prefix, &wait.template, wait.request_id.as_str(), *index);
                completion.agent.as_deref() == Some(name.as_str())
            };
            completion.request_id.as_ref() == Some(&wait.request_id) || wait.agents.iter().all(by_name)
        })
    };
    let ours = {
        let _turn = work.batch.waiting.lock().await;
        let (ours, others): (Vec<_>, Vec<_>) = wait::look_at_all(&app.queues).await?.into_iter().partition(is_named);
        wait::release(&app.queues, &others).await;
        ours
    };
    for message in &ours {
        let Some(wait) = &message.wait else { continue };
        // Agents that were placed since the clusters were listed are stopped before the message is deleted: only it
        // knows of them.
        for index in plan::placed(completion, wait, &message.body, &app.config().clouds) {
            let name = AgentName::new(prefix, &wait.template, wait.request_id.as_str(), index);
            if found.iter().all(|known| known.name != name) {
                stop_each(work, &find_by_name(work, &name).await?).await?;
            }
        }
        wait::forget(&app.queues, message).await?;
        Ids { request: Some(&wait.request_id), ..Ids::default() }.record();
        tracing::info!("request withdrawn: its build has completed");
    }
    Ok(!ours.is_empty())
}
