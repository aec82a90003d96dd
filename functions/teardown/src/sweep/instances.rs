//! Container instances that have had nothing to do for long enough are given back.

use std::collections::BTreeSet;

use jiff::Timestamp;
use shared::app::App;
use shared::aws::ecs::{IDLE_SINCE_TAG, Instance, InstanceStatus, KEEP_TAG};
use shared::batch::{Invocation, guarded};
use shared::cloud::Cloud;
use shared::config::Limit;
use shared::fault::Fault;

use super::{each, log};
use crate::plan::instances::{self as plan, InstanceStep};

/// Gives back idle instances, but in the clouds whose instances are `needed`.
pub(super) async fn sweep(app: &App, invocation: &Invocation, needed: &BTreeSet<usize>, now: Timestamp) {
    for cloud in app.clouds.iter().filter(|cloud| cloud.config.idle_instance_timeout != Limit::NEVER) {
        let Some(name) = &cloud.config.auto_scaling_group else { continue };
        let observed =
            guarded(invocation, async { Ok((cloud.groups.describe(name).await?, cloud.cluster.instances().await?)) });
        let (group, instances) = match observed.await {
            Ok((Some(group), instances)) => (group, instances),
            Ok((None, _)) => {
                let advice = "there is no such Auto Scaling group: change autoScalingGroup";
                tracing::error!(cloud = cloud.name(), group = name, "{advice}");
                continue;
            }
            Err(fault) => {
                log(&fault, cloud.name(), "no instance is given back");
                continue;
            }
        };
        let is_needed = needed.contains(&cloud.index);
        let steps = plan::instance_steps(&cloud.config, &group, &instances, is_needed, now);
        let due: Vec<_> =
            instances.iter().filter_map(|instance| Some((instance, *steps.get(&instance.arn)?))).collect();
        each(invocation, &due, |(instance, step)| carry_out(cloud, instance, *step, now)).await;
    }
}

async fn carry_out(cloud: &Cloud, instance: &Instance, step: InstanceStep, now: Timestamp) -> Result<(), Fault> {
    match step {
        InstanceStep::MarkIdle => cloud.cluster.tag(&instance.arn, IDLE_SINCE_TAG, &now.to_string()).await,
        InstanceStep::MarkBusy => cloud.cluster.untag(&instance.arn, IDLE_SINCE_TAG).await,
        InstanceStep::Undrain => undrain(cloud, instance).await,
        InstanceStep::DrainAndTerminate { lowers } => terminate(cloud, instance, lowers).await,
    }
}

async fn terminate(cloud: &Cloud, instance: &Instance, lowers: bool) -> Result<(), Fault> {
    let Some(id) = instance.ec2_id.as_deref() else { return Ok(()) };
    let (_, tags) = cloud.ec2.instance(id).await?;
    if tags.iter().any(|(key, _)| key == KEEP_TAG) {
        return match instance.status {
            InstanceStatus::Draining => undrain(cloud, instance).await,
            _ => Ok(()),
        };
    }
    cloud.cluster.set_instance_status(&instance.arn, InstanceStatus::Draining).await?;
    // Only now can no task come any more: what came until here keeps the instance.
    if cloud.cluster.is_occupied(&instance.arn).await? {
        return undrain(cloud, instance).await;
    }
    cloud.groups.terminate(id, lowers).await?;
    let group = cloud.config.auto_scaling_group.as_deref();
    tracing::info!(cloud = cloud.name(), group, ec2.instance = id, "idle instance given back");
    Ok(())
}

async fn undrain(cloud: &Cloud, instance: &Instance) -> Result<(), Fault> {
    cloud.cluster.set_instance_status(&instance.arn, InstanceStatus::Active).await?;
    cloud.cluster.untag(&instance.arn, IDLE_SINCE_TAG).await
}
