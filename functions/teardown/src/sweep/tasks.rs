//! Tasks: those that are overdue, idle or twice are stopped, and events that never came are made up for.

use std::collections::HashMap;

use jiff::Timestamp;
use shared::app::App;
use shared::aws::ecs::{DesiredStatus, IDLE_SINCE_TAG, KEEP_TAG, Task, TaskFilter};
use shared::batch::Invocation;
use shared::cloud::Cloud;
use shared::fault::Fault;
use shared::name::AgentName;
use shared::outcome;
use shared::report::{self, OurAgent, Reported};
use shared::stop::{Cause, Stop};

use super::each;
use super::nodes::Nodes;
use crate::plan::tasks::{self as plan, TaskStep};

/// A task of an agent of ours.
pub(super) struct OurTask<'a> {
    pub(super) cloud: &'a Cloud,
    pub(super) name: AgentName,
    pub(super) task: Task,
}

impl OurTask<'_> {
    fn agent(&self, app: &App) -> OurAgent<'_> {
        OurAgent::new(app, self.cloud, &self.name)
    }
}

/// Our tasks of a cluster: those that are to run, and those that ended within the last hour.
pub(super) struct ClusterTasks<'a> {
    pub(super) running: Vec<OurTask<'a>>,
    pub(super) stopped: Vec<OurTask<'a>>,
}

impl<'a> ClusterTasks<'a> {
    pub(super) async fn ask(app: &'a App, cloud: &Cloud) -> Result<Self, Fault> {
        Ok(Self {
            running: our_tasks(app, cloud, DesiredStatus::Running).await?,
            stopped: our_tasks(app, cloud, DesiredStatus::Stopped).await?,
        })
    }
}

async fn our_tasks<'a>(app: &'a App, cloud: &Cloud, status: DesiredStatus) -> Result<Vec<OurTask<'a>>, Fault> {
    let arns = cloud.cluster.list_tasks(TaskFilter::All, status).await?;
    let tasks = cloud.cluster.describe_tasks(&arns).await?.into_iter();
    let ours = tasks.filter_map(|task| {
        let (cloud, name) = app.owner(&task).filter(|_| !outcome::is_anothers(&task, app.controller()))?;
        Some(OurTask { cloud, name, task })
    });
    Ok(ours.collect())
}

/// Takes one step with each task that is to run.
pub(super) async fn sweep(app: &App, invocation: &Invocation, running: &[OurTask<'_>], nodes: &Nodes, now: Timestamp) {
    let twice: HashMap<&str, _> = plan::duplicates(running.iter().map(|ours| &ours.task))
        .into_iter()
        .map(|(task, stop)| (task.arn.as_str(), stop))
        .collect();
    each(invocation, running, |ours| {
        let duplicate = twice.get(ours.task.arn.as_str()).filter(|_| !ours.task.tags.contains_key(KEEP_TAG));
        async move {
            match duplicate {
                Some(stop) => report::stop(ours.agent(app), &ours.task, stop.clone()).await,
                None => step(app, ours, nodes, now).await,
            }
        }
    })
    .await;
}

async fn step(app: &App, ours: &OurTask<'_>, nodes: &Nodes, now: Timestamp) -> Result<(), Fault> {
    let (task, agent, cluster) = (&ours.task, ours.agent(app), &ours.cloud.cluster);
    match plan::task_step(task, agent.template, nodes.seen(&ours.name), now) {
        TaskStep::Leave => Ok(()),
        TaskStep::Stop(stop) => stop_if_still_due(app, ours, nodes, stop, now).await,
        TaskStep::Report => report::task(app, agent, &task.arn, None).await?.done(),
        TaskStep::AtWork => report::at_work(app, agent, task).await,
        TaskStep::ReportOrStop(mut stop) => {
            let why = match report::task(app, agent, &task.arn, None).await? {
                Reported::Done => return Ok(()),
                Reported::NotYet => "the task runs but is not healthy".to_owned(),
                Reported::Refused(fault) => fault.to_string(),
            };
            stop.text = format!("{}: {why}", stop.text);
            report::stop(agent, task, stop).await
        }
        TaskStep::MarkIdle(idle) => cluster.tag(&task.arn, IDLE_SINCE_TAG, &idle.tag(now)).await,
        TaskStep::MarkBusy => cluster.untag(&task.arn, IDLE_SINCE_TAG).await,
    }
}

/// Stops a task if what is true just now says the same: much may have happened since the tasks were listed.
async fn stop_if_still_due(
    app: &App,
    ours: &OurTask<'_>,
    nodes: &Nodes,
    stop: Stop,
    now: Timestamp,
) -> Result<(), Fault> {
    let agent = ours.agent(app);
    let Some(task) = ours.cloud.cluster.describe_task(&ours.task.arn).await? else { return Ok(()) };
    let is_idle = stop.cause != Cause::Idle || is_still_idle(app, &ours.name, &stop).await?;
    match plan::task_step(&task, agent.template, nodes.seen(&ours.name), now) {
        TaskStep::Stop(_) if is_idle => report::stop(agent, &task, stop).await,
        _ => Ok(()),
    }
}

/// Whether an agent that has had nothing to do for long has nothing to do now: a build may have begun there since Jenkins
/// was asked. It takes none any more where that is so.
async fn is_still_idle(app: &App, name: &AgentName, stop: &Stop) -> Result<bool, Fault> {
    app.jenkins.set_offline(name.as_str(), &stop.text).await?;
    let is_busy = app.jenkins.node(name.as_str()).await?.is_some_and(|node| node.idle == Some(false));
    if is_busy {
        app.jenkins.set_online(name.as_str()).await?;
    }
    Ok(!is_busy)
}

/// Makes up for last events that never came.
pub(super) async fn sweep_ends(app: &App, invocation: &Invocation, stopped: &[OurTask<'_>], now: Timestamp) {
    let unreported: Vec<_> = stopped.iter().filter(|ours| plan::is_unreported_end(&ours.task, now)).collect();
    each(invocation, &unreported, |ours| async move {
        let agent = ours.agent(app);
        match report::stopped(app, agent, &ours.task).await {
            Err(_) if plan::is_last_sight(&ours.task, now) => report::keep(app, agent, &ours.task).await,
            told => told,
        }
    })
    .await;
}
