//! Sequences an event of ECS or a batch of what Jenkins could not take yet. Decides nothing.

use anyhow::{Result, anyhow};
use futures::future::join_all;
use serde_json::Value;
use shared::app::{App, ClusterArn};
use shared::aws::ecs::{self, Task};
use shared::batch::{self, Invocation, Item, Retry, guarded};
use shared::message::{Notice, NoticeType};
use shared::notices::{Undelivered, Work};
use shared::wait::{self, WaitsFor};

use crate::plan::{self, Concern, Event, Instance};

/// Answers an invocation.
///
/// # Errors
/// When an event could neither be dealt with nor kept: Lambda then brings it again.
pub async fn handle(app: &App, invocation: &Invocation, event: Value) -> Result<Value> {
    match plan::event(event) {
        Event::Batch(batch) => {
            let queue = &app.settings.queues.undelivered;
            batch::each(app, invocation, queue, batch, async |item| retry(app, item).await).await
        }
        Event::Task(task) => {
            let (result, woken) =
                (task_changed(app, invocation, &task).await, agent_ended(app, invocation, &task).await);
            if let Err(Retry(reason)) = woken {
                tracing::warn!(error = reason, "the sweep will wake the waiting requests");
            }
            result.map(|()| Value::Null)
        }
        Event::Instance(instance) => match guarded(invocation, room(app, &instance)).await {
            Ok(()) => Ok(Value::Null),
            Err(Retry(reason)) => Err(anyhow!("{reason}")),
        },
        Event::Other(what) => {
            tracing::debug!(what, "not ours to deal with");
            Ok(Value::Null)
        }
        Event::Unreadable(what) => {
            tracing::error!(error = what, "an event of ECS cannot be read; the sweep makes up for it");
            Ok(Value::Null)
        }
    }
}

async fn task_changed(app: &App, invocation: &Invocation, task: &Task) -> Result<()> {
    let Some((cloud, name)) = app.whose(task) else { return Ok(()) };
    let ours = app.ours(cloud, &name);
    let work = async {
        match plan::concern(task) {
            Concern::Nothing => Ok(()),
            Concern::Ended => app.stopped(ours, task).await,
            Concern::Judge => app.report_end(ours, task).await,
            Concern::Look => app.report(ours, &task.arn, None).await?.done(),
        }
    };
    let Err(Retry(reason)) = guarded(invocation, work).await else { return Ok(()) };
    tracing::warn!(agent.name = name.as_str(), task.arn = task.arn, error = reason, "kept for later");
    let work = Work::Task {
        cluster: task.cluster_arn.clone(),
        arn: task.arn.clone(),
        name: name.clone(),
        otherwise: app.fallback(ours, task),
    };
    app.keep(&Undelivered { since: app.now(), work })
        .await
        .map_err(|fault| anyhow!("{reason}; and it could not be kept: {fault}"))
}

/// An agent's end is room for one that waits under `maxAgents`.
async fn agent_ended(app: &App, invocation: &Invocation, task: &Task) -> Result<(), Retry> {
    let Some((cloud, name)) = app.whose(task).filter(|_| task.is_stopped()) else { return Ok(()) };
    let template = app.template_name(&name);
    let limited =
        cloud.cloud.max_agents.or(cloud.template(template).and_then(|template| template.max_agents)).is_some();
    if !limited {
        return Ok(());
    }
    guarded(invocation, async {
        let mut waiting = wait::look(app).await?;
        let serves = |message: &wait::Waiting| {
            message.wait.as_ref().is_some_and(|wait| {
                wait.waits_for == WaitsFor::MaxAgents
                    && wait.cloud == cloud.cloud.name
                    && (cloud.cloud.max_agents.is_some() || wait.template == template)
            })
        };
        let next = waiting.iter().position(serves).map(|index| waiting.remove(index));
        wait::release(app, &waiting).await;
        match next {
            Some(message) => Ok(wait::wake(app, &message).await?),
            None => Ok(()),
        }
    })
    .await
}

/// A container instance has room: as many waiting requests as fit, oldest first, go back to the requests queue.
async fn room(app: &App, instance: &Instance) -> Result<(), Retry> {
    let Some(cluster) = ClusterArn::parse(&instance.cluster_arn) else { return Ok(()) };
    let clouds: Vec<_> = app.clouds_of(cluster).iter().map(|cloud| &cloud.cloud.name).collect();
    let Some(room) = instance.room().filter(|_| !clouds.is_empty()) else { return Ok(()) };
    let waiting = wait::look(app).await?;
    if waiting.is_empty() {
        return Ok(());
    }
    let (woken, rest) = wait::fitting(waiting, room, |wait| clouds.contains(&&wait.cloud));
    wait::release(app, &rest).await;
    tracing::info!(
        container_instance.arn = instance.container_instance_arn,
        room.cpu = room.cpu,
        room.memory_mib = room.memory,
        woken = woken.len(),
        waiting = rest.len(),
        "room on an instance"
    );
    for result in join_all(woken.iter().map(|message| wait::wake(app, message))).await {
        result?;
    }
    Ok(())
}

/// Tries again what Jenkins could not take.
async fn retry(app: &App, item: &Item) -> Result<(), Retry> {
    let undelivered: Undelivered = match serde_json::from_str(&item.body) {
        Ok(undelivered) => undelivered,
        Err(error) => return Ok(app.reject(&item.body, &format!("not an undelivered notice: {error}")).await?),
    };
    match work(app, item, &undelivered).await {
        Err(Retry(reason)) if plan::is_given_up(undelivered.since, app.now()) => {
            tracing::error!(
                error = reason,
                "Jenkins could not be reached for a day; the notice is in the rejected queue"
            );
            Ok(app.reject(&item.body, &format!("given up after a day: {reason}")).await?)
        }
        result => result,
    }
}

async fn work(app: &App, item: &Item, undelivered: &Undelivered) -> Result<(), Retry> {
    match &undelivered.work {
        Work::Task { cluster, arn, name, otherwise } => {
            let Some(name) = app.agent_name(name.as_str()) else { return not_ours(app, item, name.as_str()).await };
            let Some(cloud) = app.cloud_of(cluster, arn, &name) else {
                app.report_lost(&name, otherwise.as_ref()).await?;
                let reason = format!("the cloud of task {arn} is no longer configured");
                tracing::error!(agent.name = name.as_str(), task.arn = arn, error = reason, "given up");
                return Ok(app.reject(&item.body, &reason).await?);
            };
            app.report(app.ours(cloud, &name), arn, otherwise.as_ref()).await?.done()
        }
        Work::Notice { notice, .. } if !still_ready(app, notice).await? => {
            tracing::info!(notice.id = notice.id, "not told any more: the agent has ended, as its own notice says");
            Ok(())
        }
        Work::Notice { notice, to } => {
            let mut left = Vec::new();
            let mut reason = String::new();
            for target in to {
                if let Some(why) = app.tell(notice, target).await?.again() {
                    reason = why;
                    left.push(target.clone());
                }
            }
            if left.is_empty() {
                Ok(())
            } else if left.len() == to.len() {
                Err(Retry(reason))
            } else {
                // Whoever has it does not get it again.
                let work = Work::Notice { notice: notice.clone(), to: left };
                Ok(app.keep(&Undelivered { since: undelivered.since, work }).await?)
            }
        }
        Work::Node { name } => match app.agent_name(name) {
            Some(name) => Ok(app.jenkins.delete_node(name.as_str()).await.map(drop)?),
            None => not_ours(app, item, name).await,
        },
    }
}

async fn not_ours(app: &App, item: &Item, name: &str) -> Result<(), Retry> {
    Ok(app.reject(&item.body, &format!("{name:?} is not the name of an agent of ours")).await?)
}

/// Whether what a notice says is still so: a ready agent may have ended since.
async fn still_ready(app: &App, notice: &Notice) -> Result<bool, Retry> {
    let (NoticeType::Ready, Some(agent), Some(task)) = (notice.kind, &notice.agent, &notice.task) else {
        return Ok(true);
    };
    let Some(name) = app.agent_name(agent.name.as_str()) else { return Ok(true) };
    let Some(cloud) = app.cloud_of(&task.cluster, &task.arn, &name) else { return Ok(true) };
    let tasks = ecs::describe_tasks(&cloud.clients.ecs, &cloud.cloud.cluster, std::slice::from_ref(&task.arn)).await?;
    Ok(tasks.first().is_some_and(|task| !task.is_ending()))
}
