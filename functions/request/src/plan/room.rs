//! What waits for room, and why.

use std::collections::HashMap;

use shared::aws::ecs::PlacementFailure;
use shared::capacity::{Observed, Plan};
use shared::config::{Cloud, Config, Size};
use shared::fault::Placement;

use super::limits::Existing;
use super::{Blocked, Order};

/// What the group's state adds to the reason of a wait.
pub fn explain(reason: &str, order: &Order<'_>, observed: &Observed, plan: Plan) -> String {
    let Some(group) = &observed.group else {
        return match order.cloud.auto_scaling_group {
            None => format!("{reason}; cloud {} has no autoScalingGroup that could be raised", order.cloud.name),
            Some(_) => reason.to_owned(),
        };
    };
    match plan {
        Plan { at_maximum: true, .. } => {
            format!("{reason}; group {} is at its maximum of {}", group.name, group.maximum)
        }
        Plan { raise_to: Some(target), .. } => {
            format!("{reason}; group {} was raised from {} to {target}", group.name, group.desired)
        }
        Plan { .. } => format!("{reason}; group {} has a desired capacity of {}", group.name, group.desired),
    }
}

/// Whether the depth of the waiting queue says how many agents wait for a group: not where several groups are waited for,
/// nor where some may wait for the end of other agents instead. `existing` are the agents of the clouds that were counted.
pub fn depth_tells(config: &Config, existing: &HashMap<usize, Existing>) -> bool {
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

/// What the waiting work of a cloud comes to: this batch's own agents, and as many more of their average size as wait
/// already. SQS counts approximately, so the sweep makes up for what is missed here.
pub fn demand(own: &[Size], waiting: u32) -> Vec<Size> {
    let Some(count) = u32::try_from(own.len()).ok().filter(|&count| count > 0) else { return Vec::new() };
    let average = |of: fn(&Size) -> u32| {
        let sum: u64 = own.iter().map(|size| u64::from(of(size))).sum();
        u32::try_from(sum / u64::from(count)).unwrap_or(u32::MAX)
    };
    let average = Size { cpu: average(|size| size.cpu), memory: average(|size| size.memory) };
    own.iter().copied().chain((0..waiting).map(|_| average)).collect()
}

/// Puts the agents that wait for one thing together.
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

/// Why the instances of a cloud's own group will never take a task: one of them lacks what the task demands, and none will
/// do once it has room. Another group's instances say nothing about ours; in a cloud without a group every instance counts
/// as its own.
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
