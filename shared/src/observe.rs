//! Looks at a cloud: what its plan of capacity needs to know.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::aws::autoscaling::{Group, Lifecycle};
use crate::aws::ecs::{DesiredStatus, Instance, TaskFilter};
use crate::capacity::Observed;
use crate::cloud::Cloud;
use crate::config::Size;
use crate::config::duration::elapsed;
use crate::fault::Fault;

/// Observes a cloud, but for its group.
///
/// # Errors
/// When AWS could not be asked.
pub async fn instances(cloud: &Cloud) -> Result<Observed, Fault> {
    let instances = cloud.cluster.instances().await?;
    let daemons = daemons(cloud, &instances).await?;
    Ok(Observed { instances, daemons, configured: cloud.config.instance_capacity, ..Observed::default() })
}

/// Observes a cloud's group: last, so that as little time as can be lies between looking and raising; what another copy
/// has raised meanwhile must not be lowered. False if there is no such group.
///
/// # Errors
/// When AWS could not be asked.
pub async fn group(cloud: &Cloud, name: &str, observed: &mut Observed, now: Timestamp) -> Result<bool, Fault> {
    let Some(mut group) = cloud.groups.describe(name).await? else { return Ok(false) };
    let unregistered = unregistered(&group, &observed.instances);
    if !unregistered.is_empty() {
        observed.never_registered = never_registered(cloud, &unregistered, now).await?;
        match cloud.groups.describe(name).await? {
            Some(again) => group = again,
            None => return Ok(false),
        }
    }
    observed.group = Some(group);
    Ok(true)
}

/// Ids of a group's instances that are in service and in no cluster of ours.
fn unregistered(group: &Group, instances: &[Instance]) -> Vec<String> {
    let registered: BTreeSet<_> = instances.iter().filter_map(|instance| instance.ec2_id.as_deref()).collect();
    let in_service = group.instances.iter().filter(|member| member.lifecycle == Lifecycle::InService);
    in_service.map(|member| &member.id).filter(|id| !registered.contains(id.as_str())).cloned().collect()
}

/// Those of the instances that were launched too long ago to register still.
async fn never_registered(cloud: &Cloud, ids: &[String], now: Timestamp) -> Result<BTreeSet<String>, Fault> {
    let Some(limit) = cloud.config.registration_timeout().0 else { return Ok(BTreeSet::new()) };
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let launched = cloud.ec2.launch_times(&ids).await?;
    Ok(launched.into_iter().filter(|(_, at)| elapsed(*at, now) >= limit).map(|(id, _)| id).collect())
}

/// What daemon services take of an instance, as seen on the instance with the fewest tasks: registered resources include
/// it, remaining ones do not.
async fn daemons(cloud: &Cloud, instances: &[Instance]) -> Result<(Size, u32), Fault> {
    let candidates = instances.iter().filter(|instance| instance.takes_tasks() && !instance.is_external());
    let Some(sample) = candidates.filter(|instance| instance.tasks > 0).min_by_key(|instance| instance.tasks) else {
        return Ok((Size::default(), 0));
    };
    let arns = cloud.cluster.list_tasks(TaskFilter::Instance(&sample.arn), DesiredStatus::Running).await?;
    let tasks = cloud.cluster.describe_tasks(&arns[..arns.len().min(100)]).await?;
    let of_services = tasks.iter().filter(|task| task.is_of_service());
    Ok(of_services.fold((Size::default(), 0), |(size, count), task| (size.with(task.size), count + 1)))
}
