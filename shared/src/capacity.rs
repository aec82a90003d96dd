//! How many instances the waiting work needs: one plan, for `request` and the sweep alike. Pure.
//!
//! The answer is absolute and computed from what is observed, so two copies that run at once come to the same number;
//! it is only ever a raise.

use std::collections::BTreeMap;

use crate::aws::autoscaling::{Group, Lifecycle};
use crate::aws::ecs::Instance;
use crate::config::Size;

/// A cloud as it stands.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Its group, if it has one.
    pub group: Option<Group>,
    /// All container instances of its cluster.
    pub instances: Vec<Instance>,
    /// What one instance offers, as configured, until the first has registered.
    pub configured: Option<Size>,
    /// Container instances that ECS named for another reason than CPU and memory, and whether their tasks tell how many
    /// an instance holds ([`crate::fault::Placement::Slots`]).
    pub unfit: BTreeMap<String, bool>,
}

/// What is to be done about the waiting work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// The new desired capacity, above the present one.
    pub raise_to: Option<u32>,
    /// Whether the group's maximum leaves some of the work without an instance.
    pub at_maximum: bool,
}

/// A place for tasks: an instance that is there, boots or is to come.
struct Bin {
    room: Size,
    slots: u32,
}

impl Bin {
    fn take(&mut self, size: Size) -> bool {
        let fits = self.slots > 0 && size.fits(self.room);
        if fits {
            self.room = self.room.without(size);
            self.slots -= 1;
        }
        fits
    }
}

impl Observed {
    /// The group's own container instances, but for those that are being terminated: they do not count towards the desired
    /// capacity any more.
    fn registered(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| self.lifecycle(instance).is_some_and(|state| !state.is_ending()))
    }

    /// Whether a container instance belongs to the group.
    pub fn is_of_group(&self, arn: &str) -> bool {
        self.instances.iter().any(|instance| instance.arn == arn && self.lifecycle(instance).is_some())
    }

    fn lifecycle(&self, instance: &Instance) -> Option<&Lifecycle> {
        let members = &self.group.as_ref()?.instances;
        let member = members.iter().find(|member| Some(&member.id) == instance.ec2_id.as_ref())?;
        Some(&member.lifecycle)
    }

    /// What one instance of the group offers: the largest that has registered, until then what was configured.
    fn instance_size(&self) -> Option<Size> {
        let totals = self.registered().map(|instance| instance.total).filter(|total| total.memory > 0);
        totals.max_by_key(|size| (size.memory, size.cpu)).or(self.configured)
    }

    /// The instance that comes nearest to holding a task that is larger than any instance can be, as far as anything is
    /// known; none if one may hold it.
    pub fn too_large(&self, size: Size) -> Option<Size> {
        let of_group = self.instance_size();
        if self.group.is_some() && of_group.is_none() {
            return None;
        }
        let others = self.instances.iter().filter(|instance| !instance.is_external()).map(|instance| instance.total);
        let known: Vec<_> = others.filter(|total| total.memory > 0).chain(of_group).collect();
        if known.iter().any(|&total| size.fits(total)) {
            return None;
        }
        known.into_iter().max_by_key(|total| (total.memory, total.cpu))
    }

    /// The desired capacity that gives every task of `demand` a place.
    pub fn plan(&self, demand: &[Size]) -> Plan {
        let Some(group) = &self.group else { return Plan::default() };
        if demand.is_empty() {
            return Plan::default();
        }
        let registered = self.registered().count() as u32;
        let booting = group.desired.saturating_sub(registered);
        let wanted = match self.instance_size() {
            Some(size) => group.desired + self.instances_beyond(booting, size, demand),
            // Nothing is known of an instance's size: the first to boot will tell.
            None if booting == 0 => group.desired + 1,
            None => group.desired,
        };
        let target = wanted.min(group.maximum);
        Plan { raise_to: (target > group.desired).then_some(target), at_maximum: wanted > group.maximum }
    }

    /// How many new instances it takes beyond those that are there or boot.
    fn instances_beyond(&self, booting: u32, size: Size, demand: &[Size]) -> u32 {
        // An instance that is full for network interfaces or ports tells how many tasks an instance holds.
        let slots = self
            .instances
            .iter()
            .filter(|instance| self.unfit.get(&instance.arn) == Some(&true) && instance.tasks > 0)
            .map(|instance| instance.tasks)
            .max()
            .unwrap_or(u32::MAX);
        let has_room = |instance: &&Instance| {
            instance.takes_tasks()
                && !instance.is_external()
                && !self.unfit.contains_key(&instance.arn)
                && !self.lifecycle(instance).is_some_and(Lifecycle::is_ending)
        };
        let mut bins: Vec<Bin> = self
            .instances
            .iter()
            .filter(has_room)
            .map(|instance| Bin { room: instance.free, slots: slots.saturating_sub(instance.tasks) })
            .collect();
        bins.extend((0..booting).map(|_| Bin { room: size, slots }));
        let before = bins.len();
        let mut demand = demand.to_vec();
        // The largest first: the usual way to need few bins (first fit decreasing).
        demand.sort_unstable_by_key(|size| std::cmp::Reverse((size.memory, size.cpu)));
        for task in demand {
            if !bins.iter_mut().any(|bin| bin.take(task)) && task.fits(size) {
                let mut bin = Bin { room: size, slots };
                bin.take(task);
                bins.push(bin);
            }
        }
        (bins.len() - before) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aws::autoscaling::GroupInstance;
    use crate::aws::ecs::InstanceStatus;

    const TASK: Size = Size { cpu: 1024, memory: 2048 };
    const INSTANCE: Size = Size { cpu: 4096, memory: 7680 };

    fn observed(desired: u32, maximum: u32, free: &[Size]) -> Observed {
        let instances: Vec<_> = free
            .iter()
            .enumerate()
            .map(|(index, &free)| Instance {
                arn: format!("arn-{index}"),
                ec2_id: Some(format!("i-{index}")),
                status: InstanceStatus::Active,
                connected: true,
                free,
                total: INSTANCE,
                tasks: 1,
                ..Instance::default()
            })
            .collect();
        let members = instances
            .iter()
            .map(|instance| GroupInstance { id: instance.ec2_id.clone().unwrap_or_default(), ..Default::default() })
            .collect();
        let group =
            Group { name: "group".into(), minimum: 0, desired, maximum, instances: members, ..Group::default() };
        Observed { group: Some(group), instances, configured: Some(INSTANCE), unfit: BTreeMap::new() }
    }

    #[test]
    fn the_group_is_raised_to_what_the_work_needs() {
        let none = Size::default();
        let raised = |observed: &Observed, tasks: usize| observed.plan(&vec![TASK; tasks]).raise_to;
        // Three tasks of 2 GiB fit on an instance.
        assert_eq!(raised(&observed(0, 10, &[]), 1), Some(1));
        assert_eq!(raised(&observed(0, 10, &[]), 20), Some(7));
        assert_eq!(raised(&observed(2, 10, &[none, none]), 4), Some(4), "five instances are never cut to one");
        assert_eq!(raised(&observed(2, 10, &[none]), 3), None, "one boots and will hold all three");
        assert_eq!(raised(&observed(2, 10, &[none]), 4), Some(3));
        assert_eq!(raised(&observed(1, 10, &[INSTANCE]), 3), None, "there is room meanwhile");
        assert_eq!(raised(&observed(5, 5, &[none; 5]), 30), None);
        assert!(observed(5, 5, &[none; 5]).plan(&[TASK]).at_maximum);
        assert_eq!(raised(&observed(3, 5, &[none; 3]), 30), Some(5));
        assert_eq!(raised(&observed(0, 10, &[]), 0), None);
    }

    #[test]
    fn an_unknown_size_raises_by_one_while_nothing_boots() {
        let mut unknown = observed(0, 10, &[]);
        unknown.configured = None;
        assert_eq!(unknown.plan(&[TASK; 9]).raise_to, Some(1));
        unknown.group.as_mut().expect("a group").desired = 1;
        assert_eq!(unknown.plan(&[TASK; 9]).raise_to, None);
        assert_eq!(unknown.too_large(Size { cpu: 1 << 20, memory: 1 << 20 }), None);
    }

    #[test]
    fn a_task_larger_than_any_instance_raises_nothing() {
        let state = observed(0, 10, &[]);
        let huge = Size { cpu: 8192, memory: 2048 };
        assert_eq!(state.too_large(huge), Some(INSTANCE));
        assert_eq!(state.plan(&[huge]).raise_to, None);
    }

    #[test]
    fn what_is_configured_counts_until_the_first_instance_has_registered() {
        let mut state = observed(1, 10, &[Size::default()]);
        state.configured = Some(Size { cpu: 8192, memory: 16384 });
        let large = Size { cpu: 4096, memory: 8192 };
        assert_eq!(state.too_large(large), Some(INSTANCE));
        state.group.as_mut().expect("a group").instances.clear();
        assert_eq!(state.too_large(large), None, "the small instance is not of the group");
        state.configured = None;
        assert_eq!(state.too_large(large), None, "nobody knows the group's instances");
    }

    #[test]
    fn an_instance_that_is_being_terminated_is_neither_there_nor_room() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.group.as_mut().expect("a group").instances[0].lifecycle = Lifecycle::TerminatingWait;
        assert_eq!(state.plan(&[TASK]).raise_to, None, "its successor boots");
        assert_eq!(state.plan(&[TASK; 4]).raise_to, Some(2));
    }

    #[test]
    fn instances_outside_aws_take_nothing_that_waits_for_the_group() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.instances[0].ec2_id = Some("mi-0123456789abcdef0".into());
        state.group.as_mut().expect("a group").desired = 0;
        assert_eq!(state.plan(&[TASK]).raise_to, Some(1));
    }

    #[test]
    fn an_instance_that_does_not_fit_says_nothing_about_how_many_tasks_one_holds() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.unfit.insert("arn-0".into(), false);
        assert_eq!(state.plan(&[TASK; 6]).raise_to, Some(3), "three tasks each");
    }

    #[test]
    fn instances_without_interfaces_are_full_however_much_memory_they_have() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.instances[0].tasks = 2;
        state.unfit.insert("arn-0".into(), true);
        assert_eq!(state.plan(&[TASK]).raise_to, Some(2));
        assert_eq!(state.plan(&[TASK; 4]).raise_to, Some(3), "two a new instance, as on the full one");
    }

    proptest! {
        #[test]
        fn never_lowered_never_beyond_the_maximum_and_enough(
            desired in 0u32..20, maximum in 0u32..30, registered in 0usize..20, tasks in 0usize..60
        ) {
            let registered = registered.min(desired as usize);
            let desired = desired.min(maximum);
            let registered = registered.min(desired as usize);
            let state = observed(desired, maximum, &vec![Size::default(); registered]);
            let plan = state.plan(&vec![TASK; tasks]);
            if let Some(target) = plan.raise_to {
                prop_assert!(target > desired && target <= maximum);
            }
            let capacity = (plan.raise_to.unwrap_or(desired) - registered as u32) as usize * 3;
            prop_assert!(capacity >= tasks || plan.at_maximum);
            // A second copy that sees the first one's raise comes to the same number.
            let mut raised = state.clone();
            if let (Some(target), Some(group)) = (plan.raise_to, raised.group.as_mut()) {
                group.desired = target;
            }
            prop_assert_eq!(raised.plan(&vec![TASK; tasks]).raise_to, None);
        }
    }
}
