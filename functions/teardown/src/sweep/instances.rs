//! Gives back container instances that have been idle for long enough.

use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use shared::app::App;
use shared::aws::ecs::{IDLE_SINCE_TAG, InstanceStatus, KEEP_TAG};
use shared::batch::{Invocation, guarded};
use shared::capacity::Daemons;
use shared::cloud::Cloud;
use shared::config::Limit;
use shared::fault::Fault;
use shared::log_fault;
use shared::observe;
use tracing::Span;

use super::{CONCURRENCY, Item, each};
use crate::plan::instances::{self as plan, Due, InstancePlan, InstanceStep};
use crate::plan::waiting::Needed;

/// Tags that a sweep sets or removes per second. ECS allows an account 10 a second and 20 at once (ECS developer guide,
/// "Request throttling"), and the rest is for the records of ready agents.
const MARKS_PER_SECOND: usize = 5;

/// Tags that one sweep sets or removes; the next sweeps do the rest.
const MARKS: usize = 50;

impl Item for (String, InstanceStep) {
    fn span(&self) -> Span {
        tracing::error_span!("instance", container_instance.arn = self.0)
    }
}

/// Gives back idle instances, except those that would hold what is `needed`.
pub(super) async fn sweep(app: &App, invocation: &Invocation, needed: &Needed, tasks: &observe::Tasks, now: Timestamp) {
    let mut marks_left = MARKS;
    for cloud in app.clouds.iter().filter(|cloud| cloud.config.idle_instance_timeout != Limit::NEVER) {
        let Some(name) = &cloud.config.auto_scaling_group else { continue };
        // Not what `waiting` observed: since then it has raised groups, and woken requests may have been placed.
        let observed = async {
            let mut observed = observe::instances(cloud, Some(tasks)).await?;
            observe::group(cloud, name, &mut observed, now).await.map(|is_there| is_there.then_some(observed))
        };
        let observed = match guarded(invocation, observed).await {
            Ok(Some(observed)) => observed,
            Ok(None) => {
                let advice = "there is no such Auto Scaling group: change autoScalingGroup";
                tracing::error!(cloud = cloud.name(), group = name, "{advice}");
                continue;
            }
            Err(fault) => {
                log_fault!(&fault, cloud = cloud.name(), "idle instances not given back; the next sweep tries again");
                continue;
            }
        };
        let mut plan = plan::plan(&cloud.config, &observed, needed.get(&cloud.index), now);
        let steps = std::mem::take(&mut plan.steps).into_iter();
        let (undrains, mut marks): (Vec<_>, Vec<_>) = steps.partition(|(_, step)| *step == InstanceStep::Undrain);
        each(invocation, CONCURRENCY, &undrains, |(arn, step)| carry_out(cloud, arn, *step, now)).await;
        // A mark that stays on a busy instance would shorten its next idle time.
        marks.sort_by_key(|(_, step)| *step != InstanceStep::MarkBusy);
        marks.truncate(marks_left);
        marks_left -= marks.len();
        tokio::join!(mark(cloud, invocation, &marks, now), give_back(cloud, invocation, plan, &observed.daemons));
    }
}

/// Marks instances as idle or busy, a few per second.
async fn mark(cloud: &Cloud, invocation: &Invocation, marks: &[(String, InstanceStep)], now: Timestamp) {
    for (index, wave) in marks.chunks(MARKS_PER_SECOND).enumerate() {
        if index > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if invocation.is_over() {
            return;
        }
        each(invocation, MARKS_PER_SECOND, wave, |(arn, step)| carry_out(cloud, arn, *step, now)).await;
    }
}

async fn carry_out(cloud: &Cloud, arn: &str, step: InstanceStep, now: Timestamp) -> Result<(), Fault> {
    match step {
        InstanceStep::MarkIdle => cloud.cluster.tag(arn, IDLE_SINCE_TAG, &now.to_string()).await,
        InstanceStep::MarkBusy => cloud.cluster.untag(arn, IDLE_SINCE_TAG).await,
        InstanceStep::Undrain => undrain(cloud, arn).await,
    }
}

/// Terminates the instances that are due, as many as may go, several at once. One that stays does not keep the others.
async fn give_back(cloud: &Cloud, invocation: &Invocation, plan: InstancePlan, daemons: &Daemons) {
    let InstancePlan { due, mut budget, .. } = plan;
    let mut due = due.into_iter().peekable();
    while due.peek().is_some() && !invocation.is_over() {
        let mut wave = Vec::new();
        while wave.len() < CONCURRENCY
            && let Some(lowers) = due.peek().and_then(|next| budget.take(next.weight))
        {
            wave.extend(due.next().map(|next| (next, lowers)));
        }
        if wave.is_empty() {
            // It may not go: the group needs it for its minimum.
            if let Some(stays) = due.next()
                && let Err(fault) = guarded(invocation, stay(cloud, &stays)).await
            {
                log_fault!(&fault, cloud = cloud.name(), "an instance stays draining until the next sweep");
            }
            continue;
        }
        let ended = wave.iter().map(|(due, lowers)| guarded(invocation, end(cloud, due, *lowers, daemons)));
        for ((due, lowers), ended) in wave.iter().zip(join_all(ended).await) {
            let is_gone = ended.unwrap_or_else(|fault| {
                let cloud = cloud.name();
                log_fault!(&fault, cloud, ec2.instance = due.id, "an instance is given back by a later sweep");
                false
            });
            if !is_gone {
                budget.put_back(due.weight, *lowers);
            }
        }
    }
}

/// Drains an instance and terminates it, unless it has to stay. Returns whether it went.
async fn end(cloud: &Cloud, due: &Due, lowers: bool, daemons: &Daemons) -> Result<bool, Fault> {
    let (_, tags) = cloud.ec2.instance(&due.id).await?;
    if tags.iter().any(|(key, _)| key == KEEP_TAG) {
        return stay(cloud, due).await.map(|()| false);
    }
    if let Some(arn) = &due.arn {
        cloud.cluster.set_instance_status(arn, InstanceStatus::Draining).await?;
        // From now on no task can be placed: one that was placed before keeps the instance.
        let tasks = cloud.cluster.tasks_on(arn).await?;
        if tasks.iter().any(|task| !daemons.run(task)) {
            return undrain(cloud, arn).await.map(|()| false);
        }
    }
    let group = cloud.config.auto_scaling_group.as_deref();
    match cloud.groups.terminate(&due.id, lowers).await {
        Ok(()) => {
            let cloud = cloud.name();
            tracing::info!(
                cloud,
                group,
                ec2.instance = due.id,
                metric.instances_given_back = 1,
                "idle instance given back"
            );
            Ok(true)
        }
        Err(fault) => {
            let consequence = "an idle instance cannot be ended; it accepts tasks again";
            log_fault!(&fault, cloud = cloud.name(), group, ec2.instance = due.id, "{consequence}");
            if let Some(arn) = &due.arn {
                undrain(cloud, arn).await?;
            }
            Ok(false)
        }
    }
}

/// Lets an instance accept tasks again that was to go and stays.
async fn stay(cloud: &Cloud, due: &Due) -> Result<(), Fault> {
    match &due.arn {
        Some(arn) if due.is_draining => undrain(cloud, arn).await,
        _ => Ok(()),
    }
}

async fn undrain(cloud: &Cloud, arn: &str) -> Result<(), Fault> {
    cloud.cluster.set_instance_status(arn, InstanceStatus::Active).await?;
    cloud.cluster.untag(arn, IDLE_SINCE_TAG).await
}
