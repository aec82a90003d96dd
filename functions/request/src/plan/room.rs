//! What waits for room, and why.

use std::collections::{BTreeSet, HashMap};

use shared::aws::ecs::{PlacementFailure, TaskDefinition};
use shared::capacity::{Exclusive, Need, Observed, Plan};
use shared::config::{Cloud, Config, PlacementConstraint, PlacementConstraintType, Size};
use shared::fault::Placement;

use super::limits::Existing;
use super::{Blocked, Order};

/// Adds the group's state to the reason of a wait.
pub fn explain(blocked: &Blocked, order: &Order<'_>, observed: &Observed, plan: Plan) -> String {
    let reason = &blocked.reason;
    if reason.contains("EMPTY CAPACITY PROVIDER") {
        return format!(
            "{reason}; the capacity provider has no container instance: turn on managed scaling, or launch instances in its Auto Scaling group"
        );
    }
    let Some(group) = &observed.group else {
        return match order.cloud.auto_scaling_group {
            None => format!("{reason}; cloud {} has no autoScalingGroup that could be raised", order.cloud.name),
            Some(_) => reason.clone(),
        };
    };
    if let Some(taken) = observed.taken_everywhere(&blocked.need) {
        return format!(
            "{reason}; {taken} is in use on every instance of group {}: by a daemon, or reserved by its container agent",
            group.name
        );
    }
    let state = match plan {
        Plan { is_broken: true, .. } => None,
        Plan { at_maximum: true, .. } => Some(format!("group {} is at its maximum of {}", group.name, group.maximum)),
        Plan { raise_to: Some(target), .. } => {
            Some(format!("group {} was raised from {} to {target}", group.name, group.desired))
        }
        Plan { .. } => Some(format!(
            "group {} has a desired capacity of {}, and {} of its instances are in the cluster",
            group.name,
            group.desired,
            observed.own().count()
        )),
    };
    let parts = [Some(reason.clone()), state, observed.unregistered_text()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Whether the depth of the waiting queue is the number of agents that wait for a group. It is not if there are several
/// groups, or if some agents may wait until others end. `existing` are the agents of the clouds that were counted.
pub fn depth_is_demand(config: &Config, existing: &HashMap<usize, Existing>) -> bool {
    let at_limit = |index: usize, cloud: &Cloud| {
        let full = |limit: Option<u32>, count: fn(&Existing, &str) -> u32, name: &str| {
            limit.is_some_and(|limit| existing.get(&index).is_none_or(|existing| count(existing, name) >= limit))
        };
        full(cloud.max_agents, |existing, _| existing.all, "")
            || cloud.templates.iter().any(|template| full(template.max_agents, Existing::of, &template.name))
    };
    let groups = config.clouds.iter().filter(|cloud| cloud.auto_scaling_group.is_some()).count();
    groups == 1 && !config.clouds.iter().enumerate().any(|(index, cloud)| at_limit(index, cloud))
}

/// The need of an agent, with the task definition of its template.
pub fn need(order: &Order<'_>, definition: &TaskDefinition) -> Need {
    let is_distinct = |constraint: &PlacementConstraint| constraint.kind == PlacementConstraintType::DistinctInstance;
    // The constraint applies among the tasks of one group, and a task's group is its family unless another is set
    // (API_RunTask).
    let mut exclusive = definition.exclusive.clone();
    exclusive.extend(order.template.placement_constraints.iter().any(is_distinct).then(|| {
        let family = definition.arn.rsplit('/').next().and_then(|name| name.split(':').next());
        Exclusive::Family(family.unwrap_or_default().to_owned())
    }));
    Need { size: order.size(definition.size), gpus: definition.gpus(), exclusive }
}

/// How many agents of a cloud wait in messages that were not read: the same share as in those that were read, and one per
/// message if none had to be read.
pub fn unread_agents(unread: u32, read: usize, agents: usize) -> u32 {
    let share = u64::from(unread) * agents as u64 / (read.max(1) as u64);
    if read == 0 { unread } else { u32::try_from(share).unwrap_or(u32::MAX) }
}

/// The most agents that are planned for besides those of the batch: more than any group has room for.
const MOST_WAITING: usize = 100_000;

/// The total demand: that of the batch, and for each message in the queue, by SQS' count, the average of the batch.
pub fn demand(own: &[Need], waiting: u32) -> Vec<Need> {
    let Some(count) = u32::try_from(own.len()).ok().filter(|&count| count > 0) else { return Vec::new() };
    let average = |of: fn(&Need) -> u32| {
        let sum: u64 = own.iter().map(|need| u64::from(of(need))).sum();
        u32::try_from(sum / u64::from(count)).unwrap_or(u32::MAX)
    };
    let size = Size { cpu: average(|need| need.size.cpu), memory: average(|need| need.size.memory) };
    let is_alike = own.iter().all(|need| need.exclusive == own[0].exclusive);
    let exclusive = if is_alike { own[0].exclusive.clone() } else { BTreeSet::new() };
    let other = Need { size, gpus: average(|need| need.gpus), exclusive };
    own.iter().cloned().chain(std::iter::repeat_n(other, MOST_WAITING.min(waiting as usize))).collect()
}

/// Groups the agents that wait for the same thing.
pub fn merge(blocked: Vec<Blocked>) -> Vec<Blocked> {
    let mut merged: Vec<Blocked> = Vec::new();
    for one in blocked {
        match merged.iter_mut().find(|other| other.waits_for == one.waits_for) {
            Some(other) => {
                other.agents.extend(one.agents);
                other.failures.extend(one.failures);
            }
            None => merged.push(one),
        }
    }
    merged
}

/// Why the instances of a cloud's own group will never take a task: one of them lacks what the task requires, and none
/// would take it once it has room. Another group's instances say nothing about ours; in a cloud without a group, every
/// instance counts as its own.
pub fn unsuitable(observed: &Observed, cloud: &Cloud, failures: &[PlacementFailure]) -> Option<String> {
    let is_own = |failure: &&PlacementFailure| match (&cloud.auto_scaling_group, &failure.instance) {
        (None, _) => true,
        (Some(_), Some(arn)) => observed.is_of_group(arn),
        (Some(_), None) => false,
    };
    let (unsuitable, others): (Vec<_>, Vec<_>) =
        failures.iter().filter(is_own).partition(|failure| failure.placement == Placement::Unsuitable);
    let first = unsuitable.first().filter(|_| others.is_empty())?;
    let instance = first.instance.as_deref().map(|arn| format!(" (container instance {arn})")).unwrap_or_default();
    Some(format!("ecs:RunTask: {}{instance}", first.reason))
}
