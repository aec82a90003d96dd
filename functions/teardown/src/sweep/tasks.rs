//! Tasks: stops those that are overdue, idle or duplicate, and reports those whose event never came.

use std::collections::HashMap;

use jiff::Timestamp;
use shared::app::App;
use shared::aws::ecs::{DesiredStatus, IDLE_SINCE_TAG, KEEP_TAG, Task, TaskFilter};
use shared::batch::{Invocation, guarded};
use shared::cloud::Cloud;
use shared::fault::Fault;
use shared::log_fault;
use shared::name::AgentName;
use shared::observe;
use shared::outcome;
use shared::report::{self, OurAgent, Reported};
use shared::span::Ids;
use shared::stop::{Cause, Stop};
use tracing::Span;

use super::nodes::Nodes;
use super::{CONCURRENCY, Item, each};
use crate::plan::tasks::{self as plan, TaskStep};

/// A task of one of our agents.
pub(super) struct OurTask<'a> {
    pub(super) cloud: &'a Cloud,
    pub(super) name: AgentName,
    pub(super) task: Task,
}

impl<'a> OurTask<'a> {
    /// None if the task is not ours.
    fn new(app: &'a App, task: Task) -> Option<Self> {
        let (cloud, name) = app.owner(&task).filter(|_| outcome::is_or_was_ours(&task, app.controller()))?;
        Some(Self { cloud, name, task })
    }

    fn agent(&self, app: &App) -> OurAgent<'_> {
        OurAgent::new(app, self.cloud, &self.name)
    }
}

impl Item for OurTask<'_> {
    fn span(&self) -> Span {
        Ids::of_task(&self.name, &self.task, self.task.record().as_ref()).span()
    }
}

/// The tasks of a cluster.
pub(super) struct ClusterTasks<'a> {
    /// Ours that ECS keeps running.
    pub(super) running: Vec<OurTask<'a>>,
    /// Ours that stopped within the last hour.
    pub(super) stopped: Vec<OurTask<'a>>,
}

impl<'a> ClusterTasks<'a> {
    /// Lists them, and adds what they show about their container instances.
    pub(super) async fn fetch(app: &'a App, cloud: &Cloud, on_instances: &mut observe::Tasks) -> Result<Self, Fault> {
        let running = list(cloud, DesiredStatus::Running).await?;
        running.iter().for_each(|task| on_instances.add(task));
        let ours = |task| OurTask::new(app, task);
        let stopped = list(cloud, DesiredStatus::Stopped).await?.into_iter().filter_map(ours).collect();
        Ok(Self { running: running.into_iter().filter_map(ours).collect(), stopped })
    }
}

async fn list(cloud: &Cloud, status: DesiredStatus) -> Result<Vec<Task>, Fault> {
    let arns = cloud.cluster.list_tasks(TaskFilter::All, status).await?;
    cloud.cluster.describe_tasks(&arns).await
}

/// Takes one step with each running task.
pub(super) async fn sweep(app: &App, invocation: &Invocation, running: &[OurTask<'_>], nodes: &Nodes, now: Timestamp) {
    let duplicates: HashMap<&str, _> = plan::duplicates(running.iter().map(|ours| &ours.task))
        .into_iter()
        .map(|(task, stop)| (task.arn.as_str(), stop))
        .collect();
    let is_pending = is_pending(app, invocation, running).await;
    each(invocation, CONCURRENCY, running, |ours| {
        let duplicate = duplicates.get(ours.task.arn.as_str()).filter(|_| !ours.task.tags.contains_key(KEEP_TAG));
        async move {
            match duplicate {
                Some(stop) => report::stop(ours.agent(app), &ours.task, stop.clone()).await,
                None => step(app, ours, nodes, is_pending, now).await,
            }
        }
    })
    .await;
}

/// Whether the record of a notice that one of the tasks lacks may be in the undelivered queue.
async fn is_pending(app: &App, invocation: &Invocation, running: &[OurTask<'_>]) -> bool {
    if !running.iter().any(|ours| plan::lacks_record(&ours.task)) {
        return false;
    }
    let depth = guarded(invocation, app.queues.depth(&app.queues.urls.undelivered)).await;
    depth.map_or_else(
        |fault| {
            log_fault!(&fault, "whether records of notices are pending is not known; no notice is repeated");
            true
        },
        |depth| depth > 0,
    )
}

async fn step(app: &App, ours: &OurTask<'_>, nodes: &Nodes, is_pending: bool, now: Timestamp) -> Result<(), Fault> {
    let (task, cluster, seen) = (&ours.task, &ours.cloud.cluster, nodes.seen(&ours.name));
    let may_be_notified = plan::may_be_notified(task, seen, is_pending, now);
    let agent = OurAgent { may_be_notified, ..ours.agent(app) };
    match plan::task_step(task, &ours.cloud.config, agent.template, seen, now) {
        TaskStep::Leave => Ok(()),
        TaskStep::Stop(_) => stop_if_still_due(app, ours, nodes, now).await,
        TaskStep::Report => report::task(app, agent, &task.arn, None).await?.done(),
        TaskStep::AtWork => report::at_work(app, agent, task).await,
        TaskStep::ReportOrStop(mut stop) => {
            let why = match report::task(app, agent, &task.arn, None).await? {
                Reported::Done | Reported::MayBeDone => return Ok(()),
                Reported::NotYet(why) => why,
                Reported::Refused(fault) => fault.to_string(),
            };
            stop.text = format!("{}: {why}", stop.text);
            report::stop(agent, task, stop).await
        }
        TaskStep::MarkIdle(idle) => cluster.tag(&task.arn, IDLE_SINCE_TAG, &idle.tag(now)).await,
        TaskStep::MarkBusy => cluster.untag(&task.arn, IDLE_SINCE_TAG).await,
    }
}

/// Stops a task if there still is a reason: much may have happened since the tasks were listed.
async fn stop_if_still_due(app: &App, ours: &OurTask<'_>, nodes: &Nodes, now: Timestamp) -> Result<(), Fault> {
    let agent = ours.agent(app);
    let Some(task) = ours.cloud.cluster.describe_task(&ours.task.arn).await? else { return Ok(()) };
    let step = plan::task_step(&task, &ours.cloud.config, agent.template, nodes.seen(&ours.name), now);
    let TaskStep::Stop(stop) = step else { return Ok(()) };
    if stop.cause == Cause::Idle && !is_still_idle(app, &ours.name, &stop).await? {
        return Ok(());
    }
    report::stop(agent, &task, stop).await
}

/// Whether an agent that has been idle for long still is: a build may have started since Jenkins was asked. If it is
/// idle, it accepts no build any more.
async fn is_still_idle(app: &App, name: &AgentName, stop: &Stop) -> Result<bool, Fault> {
    app.jenkins.set_offline(name.as_str(), &stop.text).await?;
    let is_busy = app.jenkins.node(name.as_str()).await?.is_some_and(|node| node.idle == Some(false));
    if is_busy {
        app.jenkins.set_online(name.as_str()).await?;
    }
    Ok(!is_busy)
}

/// Reports tasks whose last event never came.
pub(super) async fn sweep_ends(app: &App, invocation: &Invocation, stopped: &[OurTask<'_>], now: Timestamp) {
    let unreported: Vec<_> = stopped.iter().filter(|ours| plan::is_unreported_end(&ours.task, now)).collect();
    each(invocation, CONCURRENCY, &unreported, |ours| async move {
        let agent = ours.agent(app);
        match report::stopped_unseen(app, agent, &ours.task).await {
            Err(_) if plan::is_last_sight(&ours.task, now) => report::keep(app, agent, &ours.task).await,
            result => result,
        }
    })
    .await;
}
