//! Observes a cloud: what capacity planning, waiting requests and idle instances need to know.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use crate::aws::autoscaling::{Group, Lifecycle};
use crate::aws::ecs::{Cluster, DesiredStatus, Instance, Task, TaskFilter};
use crate::capacity::{Daemons, Exclusive, Observed};
use crate::cloud::Cloud;
use crate::config::{Limit, Size};
use crate::fault::Fault;
use crate::log_fault;

/// What a cluster's running tasks show about their container instances.
#[derive(Debug, Default)]
pub struct Tasks {
    /// The service of each task of a service, and what the task takes.
    services: HashMap<String, Vec<(String, Size)>>,
    families: HashMap<String, BTreeSet<String>>,
}

impl Tasks {
    pub fn add(&mut self, task: &Task) {
        let Some(instance) = task.container_instance_arn.clone() else { return };
        if let Some(service) = task.service() {
            self.services.entry(instance).or_default().push((service.to_owned(), task.size));
        } else if let Some(family) = task.family() {
            self.families.entry(instance).or_default().insert(family.to_owned());
        }
    }
}

/// Observes a cloud, except its group. If nobody has listed the cluster's tasks, those of one instance are used.
///
/// # Errors
/// When AWS could not be queried.
pub async fn instances(cloud: &Cloud, tasks: Option<&Tasks>) -> Result<Observed, Fault> {
    let mut instances = cloud.cluster.instances().await?;
    let sampled = match tasks {
        Some(_) => Tasks::default(),
        None => sample(&cloud.cluster, &instances).await?,
    };
    let tasks = tasks.unwrap_or(&sampled);
    let daemons = daemons(cloud, tasks).await?;
    for instance in &mut instances {
        let families = tasks.families.get(&instance.arn).into_iter().flatten();
        instance.taken.extend(families.cloned().map(Exclusive::Family));
    }
    Ok(Observed { instances, daemons, configured: cloud.config.instance_capacity, ..Observed::default() })
}

/// Observes a cloud's group. This comes last, so that as little time as possible passes before the group is raised:
/// what another copy has raised meanwhile must not be lowered. Returns false if there is no such group.
///
/// # Errors
/// When AWS could not be queried.
pub async fn group(cloud: &Cloud, name: &str, observed: &mut Observed, now: Timestamp) -> Result<bool, Fault> {
    let Some(mut group) = cloud.groups.describe(name).await? else { return Ok(false) };
    if unregistered(&group, &observed.instances).next().is_some() {
        observed.never_registered =
            never_registered(cloud, &group, &observed.instances, now).await.unwrap_or_else(|fault| {
                // They count as booting: nothing is terminated and nothing more is launched on a guess.
                let consequence =
                    "launch times of instances that have not registered are unknown; they count as booting";
                log_fault!(&fault, cloud = cloud.name(), "{consequence}");
                BTreeMap::new()
            });
        match cloud.groups.describe(name).await? {
            Some(again) => group = again,
            None => return Ok(false),
        }
    }
    observed.group = Some(group);
    Ok(true)
}

/// Ids of a group's instances that are in service and not registered in our clusters.
fn unregistered<'a>(group: &'a Group, instances: &'a [Instance]) -> impl Iterator<Item = &'a str> {
    let registered: BTreeSet<_> = instances.iter().filter_map(|instance| instance.ec2_id.as_deref()).collect();
    let in_service = group.instances.iter().filter(|member| member.lifecycle == Lifecycle::InService);
    in_service.map(|member| member.id.as_str()).filter(move |id| !registered.contains(id))
}

/// The group's instances that should have registered by now, by EC2 id, and since when they are overdue.
///
/// # Errors
/// When EC2 could not be queried for their launch times.
pub async fn never_registered(
    cloud: &Cloud,
    group: &Group,
    instances: &[Instance],
    now: Timestamp,
) -> Result<BTreeMap<String, Timestamp>, Fault> {
    let Limit(Some(limit)) = cloud.config.registration_timeout() else { return Ok(BTreeMap::new()) };
    let ids: Vec<&str> = unregistered(group, instances).collect();
    let launched = cloud.ec2.launch_times(&ids).await?;
    let limit = SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX);
    let due = launched.into_iter().filter_map(|(id, at)| Some((id, at.checked_add(limit).ok()?)));
    Ok(due.filter(|(_, due)| *due <= now).collect())
}

/// The tasks of the instance with the fewest, most of which are its daemons'.
async fn sample(cluster: &Cluster, instances: &[Instance]) -> Result<Tasks, Fault> {
    let candidates = instances.iter().filter(|instance| instance.takes_tasks() && !instance.is_external());
    let mut tasks = Tasks::default();
    if let Some(sample) = candidates.filter(|instance| instance.tasks > 0).min_by_key(|instance| instance.tasks) {
        let arns = cluster.list_tasks(TaskFilter::Instance(&sample.arn), DesiredStatus::Running).await?;
        cluster.describe_tasks(&arns[..arns.len().min(100)]).await?.iter().for_each(|task| tasks.add(task));
    }
    Ok(tasks)
}

/// Which of the services that have tasks are daemons, and what they take. Tasks of other services are where they happen
/// to be: they say nothing about a new instance, and keep the one that they are on.
async fn daemons(cloud: &Cloud, tasks: &Tasks) -> Result<Daemons, Fault> {
    if tasks.services.is_empty() {
        return Ok(Daemons::default());
    }
    let services = match cloud.cluster.daemon_services().await {
        Err(fault) if fault.is_final() => {
            let consequence = "no service is taken for a daemon: instances with tasks of services are not given back";
            log_fault!(&fault, cloud = cloud.name(), "{consequence}");
            BTreeSet::new()
        }
        services => services?,
    };
    let of_instance = |tasks: &Vec<(String, Size)>| {
        let daemons = tasks.iter().filter(|(service, _)| services.contains(service));
        daemons.fold((Size::default(), 0), |(size, count), (_, one)| (size.with(*one), count + 1))
    };
    let taken = tasks.services.iter().map(|(arn, tasks)| (arn.clone(), of_instance(tasks))).collect();
    Ok(Daemons { services, taken })
}
