//! Which container instances the sweep gives back.

use std::collections::BTreeMap;

use jiff::Timestamp;
use shared::aws::autoscaling::{Group, Lifecycle};
use shared::aws::ecs::{IDLE_SINCE_TAG, Instance, InstanceStatus, KEEP_TAG};
use shared::config::{Cloud, Limit};

/// What the sweep does about one container instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStep {
    /// It has had nothing to do, from now on.
    MarkIdle,
    /// It has something to do again.
    MarkBusy,
    /// It takes no more tasks, and goes if none came meanwhile.
    DrainAndTerminate {
        /// Whether the desired capacity goes down with it.
        lowers: bool,
    },
    /// Its drain was cut short, and it may go on.
    Undrain,
}

/// Which instances of a group are given back. `needed` says that requests wait: nothing goes then.
pub fn instance_steps(
    cloud: &Cloud,
    group: &Group,
    instances: &[Instance],
    needed: bool,
    now: Timestamp,
) -> BTreeMap<String, InstanceStep> {
    let limit = cloud.idle_instance_timeout;
    let mut steps = BTreeMap::new();
    if limit == Limit::NEVER {
        return steps;
    }
    let ours = |instance: &&Instance| {
        instance.ec2_id.as_deref().is_some_and(|id| {
            group.instances.iter().any(|member| member.id == id && member.lifecycle == Lifecycle::InService)
        })
    };
    let mut spare = group.desired.saturating_sub(group.minimum);
    // Scale-in lowers the desired capacity of a group whose instances are all protected, and ends none of them ("Use
    // instance scale-in protection"): they are beyond it until we end them.
    let living = group.instances.iter().filter(|member| !member.lifecycle.is_ending()).count();
    let mut beyond =
        if group.protects_new { u32::try_from(living).unwrap_or_default().saturating_sub(group.desired) } else { 0 };
    let mut candidates: Vec<_> = instances.iter().filter(ours).collect();
    let idle_since =
        |instance: &Instance| instance.tags.get(IDLE_SINCE_TAG).and_then(|time| time.parse::<Timestamp>().ok());
    candidates.sort_by_key(|instance| (idle_since(instance), instance.arn.clone()));
    for instance in candidates {
        let since = idle_since(instance);
        // Only we drain an instance that carries our tag; another's drain is its own.
        let drained_by_us = instance.status == InstanceStatus::Draining && since.is_some();
        if instance.status != InstanceStatus::Active && !drained_by_us {
            continue;
        }
        let step = match since {
            _ if instance.tags.contains_key(KEEP_TAG) => drained_by_us.then_some(InstanceStep::Undrain),
            _ if instance.tasks > 0 || needed => {
                if drained_by_us {
                    Some(InstanceStep::Undrain)
                } else {
                    since.map(|_| InstanceStep::MarkBusy)
                }
            }
            None => Some(InstanceStep::MarkIdle),
            Some(since) if limit.is_over(since, now) && beyond > 0 => {
                beyond -= 1;
                Some(InstanceStep::DrainAndTerminate { lowers: false })
            }
            Some(since) if limit.is_over(since, now) && spare > 0 => {
                spare -= 1;
                Some(InstanceStep::DrainAndTerminate { lowers: true })
            }
            Some(_) if drained_by_us => Some(InstanceStep::Undrain),
            Some(_) => None,
        };
        if let Some(step) = step {
            steps.insert(instance.arn.clone(), step);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::aws::autoscaling::GroupInstance;
    use shared::config::Size;

    use super::*;
    use crate::plan::tests::{at, config};

    fn instance(number: usize, tasks: u32, status: &str, idle_since: Option<i64>) -> Instance {
        let total = Size { cpu: 4096, memory: 8192 };
        Instance {
            arn: format!("arn-{number}"),
            ec2_id: Some(format!("i-{number}")),
            status: status.into(),
            connected: true,
            total,
            free: total,
            tasks,
            tags: idle_since.map(|since| (IDLE_SINCE_TAG.to_owned(), at(since).to_string())).into_iter().collect(),
            ..Instance::default()
        }
    }

    fn group(instances: &[Instance], minimum: u32) -> Group {
        Group {
            name: "group".into(),
            minimum,
            desired: instances.len() as u32,
            maximum: 100,
            instances: instances
                .iter()
                .map(|instance| GroupInstance {
                    id: instance.ec2_id.clone().unwrap_or_default(),
                    lifecycle: "InService".into(),
                })
                .collect(),
            ..Group::default()
        }
    }

    #[test]
    fn idle_instances_are_given_back_one_by_one() {
        use InstanceStep::*;
        let config = config();
        let cloud = &config.clouds[0];
        let one = |instance: Instance, minimum, needed| {
            let instances = [instance];
            instance_steps(cloud, &group(&instances, minimum), &instances, needed, at(1000)).get("arn-0").copied()
        };
        assert_eq!(one(instance(0, 0, "ACTIVE", None), 0, false), Some(MarkIdle));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(500)), 0, false), None);
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 0, false), Some(DrainAndTerminate { lowers: true }));
        assert_eq!(one(instance(0, 1, "ACTIVE", Some(400)), 0, false), Some(MarkBusy));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 1, false), None, "never below the minimum");
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 0, true), Some(MarkBusy), "requests wait");
        assert_eq!(one(instance(0, 1, "DRAINING", Some(400)), 0, false), Some(Undrain), "a task came after all");
        assert_eq!(
            one(instance(0, 0, "DRAINING", Some(400)), 0, false),
            Some(DrainAndTerminate { lowers: true }),
            "a drain cut short"
        );
        assert_eq!(one(instance(0, 0, "DRAINING", None), 0, false), None, "another's drain");
        let mut kept = instance(0, 0, "ACTIVE", Some(400));
        kept.tags.insert(KEEP_TAG.into(), String::new());
        assert_eq!(one(kept, 0, false), None);
    }

    #[test]
    fn those_beyond_the_desired_capacity_go_first_and_do_not_lower_it() {
        let config = config();
        let instances: Vec<_> = (0..4).map(|number| instance(number, 0, "ACTIVE", Some(100))).collect();
        let lowered = |protects_new| {
            let group = Group { desired: 2, protects_new, ..group(&instances, 1) };
            let steps = instance_steps(&config.clouds[0], &group, &instances, false, at(1000));
            steps.into_values().collect::<Vec<_>>()
        };
        let go = |lowers| InstanceStep::DrainAndTerminate { lowers };
        assert_eq!(lowered(true), [go(false), go(false), go(true)]);
        assert_eq!(lowered(false), [go(true)], "the group ends its surplus itself");
    }

    proptest! {
        #[test]
        fn never_below_the_minimum_and_never_with_a_task(
            loads in prop::collection::vec((0u32..3, prop::option::of(0i64..1000), any::<bool>()), 0..40), minimum in 0u32..40, needed: bool
        ) {
            let config = config();
            let instances: Vec<_> = loads
                .iter()
                .enumerate()
                .map(|(number, (tasks, since, drains))| instance(number, *tasks, if *drains { "DRAINING" } else { "ACTIVE" }, *since))
                .collect();
            let group = group(&instances, minimum.min(instances.len() as u32));
            let steps = instance_steps(&config.clouds[0], &group, &instances, needed, at(1000));
            let gone: Vec<_> = instances.iter().filter(|instance| matches!(steps.get(&instance.arn), Some(InstanceStep::DrainAndTerminate { .. }))).collect();
            prop_assert!(gone.iter().all(|instance| instance.tasks == 0));
            prop_assert!(group.desired - gone.len() as u32 >= group.minimum);
            prop_assert!(!needed || gone.is_empty());
        }
    }
}
