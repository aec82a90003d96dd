//! The sequence of an ECS event, or of a batch of undelivered work.

use anyhow::{Result, anyhow};
use futures::future::{join_all, try_join_all};
use serde_json::Value;
use shared::app::App;
use shared::arn::ClusterArn;
use shared::aws::autoscaling::Membership;
use shared::aws::ecs::{self, Task};
use shared::batch::{self, Invocation, Item, Source, guarded};
use shared::cloud::Cloud;
use shared::fault::Fault;
use shared::log_fault;
use shared::message::Notice;
use shared::notifier::{Target, Undelivered, Work, log_not_delivered};
use shared::report::{self, OurAgent, Reported};
use shared::span::Ids;
use shared::wait;
use tracing::Instrument as _;

use crate::plan::{self, Concern, Event, Instance};

/// Handles an invocation.
///
/// # Errors
/// When an event could neither be processed nor kept: Lambda then repeats it.
pub async fn handle(app: &App, invocation: &Invocation, event: Value) -> Result<Value> {
    match plan::event(event) {
        Event::Batch(batch) => {
            let source = Source { queue: &app.queues.urls.undelivered, what: "undelivered work", max_attempts: None };
            batch::each(&app.queues, invocation, source, batch, async |item| retry(app, item).await).await
        }
        Event::Task(task) => match app.owner(&task) {
            None => Ok(Value::Null),
            Some((cloud, name)) => {
                let record = task.record();
                let span = Ids::of_task(&name, &task, record.as_ref()).span();
                let agent = OurAgent::new(app, cloud, &name);
                let reported = Box::pin(report(app, invocation, agent, &task)).instrument(span.clone()).await;
                // Outside the span of this agent: the woken request belongs to another.
                if let Err(fault) = agent_ended(app, invocation, agent, &task).await {
                    span.in_scope(|| log_fault!(&fault, "waiting requests not woken; the next sweep wakes them"));
                }
                reported.map(|()| Value::Null)
            }
        },
        Event::Instance(instance) => match guarded(invocation, room(app, &instance)).await {
            Ok(()) => Ok(Value::Null),
            Err(fault) if fault.is_final() => {
                log_fault!(&fault, "waiting requests not woken; the next sweep wakes them");
                Ok(Value::Null)
            }
            Err(fault) => Err(fault.into()),
        },
        Event::Other(what) => {
            tracing::debug!(what, "event ignored");
            Ok(Value::Null)
        }
        Event::Unreadable(what) => {
            tracing::error!(error = what, "event of ECS not understood; the sweep makes up for it");
            Ok(Value::Null)
        }
    }
}

/// Reports the task of an event. What cannot be reported now is kept; what never can is left to the sweep.
async fn report(app: &App, invocation: &Invocation, agent: OurAgent<'_>, task: &Task) -> Result<()> {
    let work = async {
        match plan::concern(task) {
            Concern::Nothing => Ok(()),
            Concern::Ended => report::stopped(app, agent, task).await,
            Concern::ReportEnd => report::last_event(app, agent, task).await,
            Concern::Report => match report::task(app, agent, &task.arn, None).await? {
                Reported::NotYet(why) => {
                    tracing::info!(why, "agent not ready yet; looked at again within seconds");
                    report::keep(app, agent, task).await
                }
                reported => reported.done(),
            },
        }
    };
    match guarded(invocation, Box::pin(work)).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.is_final() => {
            log_fault!(&fault, "task not reported; the sweep reports it");
            Ok(())
        }
        Err(fault) => {
            let kept = report::keep(app, agent, task).await;
            kept.map_err(|also| anyhow!("{fault}; and it could not be kept: {also}"))?;
            log_fault!(&fault, "task not reported yet; kept in the undelivered queue");
            Ok(())
        }
    }
}

/// An agent's end makes room for one that waits because of `maxAgents`.
async fn agent_ended(app: &App, invocation: &Invocation, agent: OurAgent<'_>, task: &Task) -> Result<(), Fault> {
    let Some(freed) = plan::freed(task, &agent.cloud.config, app.template_name(agent.name)) else { return Ok(()) };
    guarded(invocation, async {
        let mut waiting = wait::look_at_all(&app.queues).await?;
        let next = freed.next(&waiting).map(|index| waiting.remove(index));
        wait::release(&app.queues, &waiting).await;
        match next {
            Some(message) => wait::wake(&app.queues, &message).await,
            None => Ok(()),
        }
    })
    .await
}

/// A container instance has room: as many waiting requests as fit, oldest first, go back to the requests queue.
async fn room(app: &App, instance: &Instance) -> Result<(), Fault> {
    let Some(cluster) = ClusterArn::parse(&instance.cluster_arn) else { return Ok(()) };
    let clouds = app.clouds.of_cluster(cluster);
    let Some(mut instance) = instance.with_room().filter(|_| !clouds.is_empty()) else { return Ok(()) };
    let room = instance.free;
    let waiting = wait::look_at_all(&app.queues).await?;
    let asked = clouds.iter().filter(|cloud| plan::waits_for_instance(&waiting, &cloud.config));
    let asked = try_join_all(asked.map(async |cloud| Ok((&cloud.config, membership(cloud, &instance).await?)))).await;
    let clouds = match asked {
        Ok(clouds) => clouds,
        Err(fault) => {
            wait::release(&app.queues, &waiting).await;
            return Err(fault);
        }
    };
    let serves = |instance: &_, wait: &_| plan::serves(instance, wait, &clouds);
    let (woken, rest) = wait::fitting(waiting, &mut instance, serves);
    wait::release(&app.queues, &rest).await;
    if !rest.is_empty() || !woken.is_empty() {
        tracing::info!(
            container_instance.arn = instance.arn,
            room.cpu = room.cpu,
            room.memory_mib = room.memory,
            woken = woken.len(),
            waiting = rest.len(),
            "room on an instance"
        );
    }
    for result in join_all(woken.iter().map(|message| wait::wake(&app.queues, message))).await {
        result?;
    }
    Ok(())
}

/// How a container instance relates to a cloud's group. In a cloud without a group, every instance counts as its own;
/// if the group does not exist, none does.
async fn membership(cloud: &Cloud, instance: &ecs::Instance) -> Result<Membership, Fault> {
    let Some(name) = &cloud.config.auto_scaling_group else { return Ok(Membership::Stays) };
    let group = cloud.groups.describe(name).await?;
    Ok(group.map_or(Membership::Foreign, |group| group.memberships()(instance.ec2_id.as_deref())))
}

/// Retries undelivered work. What never works, or has not worked for a day, is moved to the rejected queue.
async fn retry(app: &App, item: &Item) -> Result<(), Fault> {
    let undelivered: Undelivered = match serde_json::from_str(&item.body) {
        Ok(undelivered) => undelivered,
        Err(error) => return reject(app, item, &format!("not an undelivered notice: {error}")).await,
    };
    ids(&undelivered.work).record();
    match work(app, item, &undelivered).await {
        Err(fault) if fault.is_final() => reject(app, item, &fault.to_string()).await,
        Err(fault) if plan::is_given_up(undelivered.since, app.now()) => {
            reject(app, item, &format!("given up after a day: {fault}")).await
        }
        result => result.map_err(|fault| fault.of(undelivered.work.what())),
    }
}

/// The ids for the span.
fn ids(work: &Work) -> Ids<'_> {
    match work {
        Work::Task { arn, name, otherwise, .. } => {
            let known = otherwise.as_ref().map(|fallback| Ids::from(&*fallback.notice)).unwrap_or_default();
            Ids { agent: Some(name.as_str()), task: Some(arn), ..known }
        }
        Work::Record { arn, name, .. } => Ids { agent: Some(name.as_str()), task: Some(arn), ..Ids::default() },
        Work::Notice { notice, .. } => Ids::from(&**notice),
        Work::Node { name } => Ids { agent: Some(name), ..Ids::default() },
    }
}

async fn work(app: &App, item: &Item, undelivered: &Undelivered) -> Result<(), Fault> {
    match &undelivered.work {
        Work::Task { cluster, arn, name, otherwise } => {
            let Some(name) = app.agent_name(name.as_str()) else { return not_ours(app, item, name.as_str()).await };
            let Some(cloud) = app.clouds.of_task(cluster, arn, app.template_name(&name)) else {
                report::lost(app, &name, otherwise.as_ref()).await?;
                return reject(app, item, &format!("the cloud of task {arn} is no longer configured")).await;
            };
            let agent = OurAgent::new(app, cloud, &name);
            match report::task(app, agent, arn, otherwise.as_ref()).await? {
                Reported::NotYet(why) => look_again(app, agent, undelivered, &why).await,
                reported => reported.done(),
            }
        }
        Work::Record { cluster, arn, name, value } => {
            let Some(name) = app.agent_name(name.as_str()) else { return not_ours(app, item, name.as_str()).await };
            match app.clouds.of_task(cluster, arn, app.template_name(&name)) {
                Some(cloud) => report::record(cloud, arn, value).await,
                None => reject(app, item, &format!("the cloud of task {arn} is no longer configured")).await,
            }
        }
        Work::Notice { notice, .. } if is_outdated(app, notice).await? => {
            tracing::info!(notice.id = notice.id, "ready notice dropped: the agent has ended");
            Ok(())
        }
        Work::Notice { notice, to } => deliver(app, undelivered, notice, to).await,
        Work::Node { name } => match app.agent_name(name) {
            Some(name) => app.jenkins.delete_node(name.as_str()).await.map(drop),
            None => not_ours(app, item, name).await,
        },
    }
}

/// Keeps a task that is not ready yet, to look at it again within seconds: no event reports a container's health, nor
/// an address that comes late.
async fn look_again(app: &App, agent: OurAgent<'_>, undelivered: &Undelivered, why: &str) -> Result<(), Fault> {
    match plan::next_look(agent.template, undelivered.since, app.now()) {
        Some(delay) => {
            tracing::debug!(why, "agent still not ready");
            app.notifier.keep_for(undelivered, delay).await
        }
        None => {
            tracing::info!(why, "agent not ready within containerStartTimeout; the sweep stops it");
            Ok(())
        }
    }
}

/// Delivers a notice to each target that has not received it yet.
async fn deliver(app: &App, undelivered: &Undelivered, notice: &Notice, to: &[Target]) -> Result<(), Fault> {
    let failed = app.notifier.notify_each(notice, to.to_vec()).await;
    let (left, mut faults): (Vec<_>, Vec<_>) = failed.into_iter().unzip();
    match faults.pop() {
        None => Ok(()),
        Some(fault) if left.len() == to.len() => Err(fault),
        // Targets that have received it are not notified again.
        Some(fault) => {
            log_not_delivered(notice, &fault);
            let work = Work::Notice { notice: Box::new(notice.clone()), to: left };
            app.notifier.keep(&Undelivered { since: undelivered.since, work }).await
        }
    }
}

async fn not_ours(app: &App, item: &Item, name: &str) -> Result<(), Fault> {
    reject(app, item, &format!("{name:?} is not the name of an agent of ours")).await
}

async fn reject(app: &App, item: &Item, reason: &str) -> Result<(), Fault> {
    app.queues.reject(&item.body, reason).await?;
    tracing::error!(error = reason, "undelivered message rejected");
    Ok(())
}

/// Whether a notice that is delivered late is no longer true.
async fn is_outdated(app: &App, notice: &Notice) -> Result<bool, Fault> {
    let Some((agent, task)) = plan::must_still_run(notice) else { return Ok(false) };
    let Some(name) = app.agent_name(agent.name.as_str()) else { return Ok(false) };
    let Some(cloud) = app.clouds.of_task(&task.cluster, &task.arn, app.template_name(&name)) else { return Ok(false) };
    let described = cloud.cluster.describe_task(&task.arn).await?;
    Ok(described.is_none_or(|task| task.is_ending()))
}
