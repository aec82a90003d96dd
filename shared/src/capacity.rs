//! The capacity that the waiting requests need, and what has room for them: one model of a cloud, for `request`,
//! `task-state` and the sweep. Pure.
//!
//! The target is absolute and computed from what is observed, so two copies that run at the same time compute the
//! same number; it is only ever a raise. It is in the group's own units: instances, or their weights.

mod first_fit;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::iter::repeat_n;

use first_fit::{Place, first_fit};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::aws::autoscaling::{Group, Membership};
use crate::aws::ecs::{Instance, Task};
use crate::config::{Size, Template};

/// What an instance has only one of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Exclusive {
    /// Of TCP.
    HostPort(u16),
    UdpPort(u16),
    /// The place for the only task of this family (`distinctInstance`).
    Family(String),
}

impl fmt::Display for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostPort(port) => write!(f, "port {port}"),
            Self::UdpPort(port) => write!(f, "UDP port {port}"),
            Self::Family(family) => write!(f, "the place for the only task of {family}"),
        }
    }
}

/// What one waiting agent needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Need {
    pub size: Size,
    pub gpus: u32,
    /// No two agents that have one of these in common share an instance.
    pub exclusive: BTreeSet<Exclusive>,
}

impl Need {
    /// Whether two such agents can never share an instance, as far as is known.
    fn needs_own_instance(&self) -> bool {
        self.gpus > 0 || !self.exclusive.is_empty()
    }

    /// Takes this from what is free. Returns false if there is not enough.
    fn take_from(&self, room: &mut Size, gpus: &mut u32, taken: &mut BTreeSet<Exclusive>) -> bool {
        let fits = self.size.fits(*room) && self.gpus <= *gpus && self.exclusive.is_disjoint(taken);
        if fits {
            *room = room.without(self.size);
            *gpus -= self.gpus;
            taken.extend(self.exclusive.iter().cloned());
        }
        fits
    }
}

impl From<Size> for Need {
    fn from(size: Size) -> Self {
        Self { size, ..Self::default() }
    }
}

impl Instance {
    /// Takes room for one more agent. Returns false if there is none.
    pub fn take(&mut self, need: &Need) -> bool {
        self.free != Size::default() && need.take_from(&mut self.free, &mut self.free_gpus, &mut self.taken)
    }

    /// Whether it can serve the tasks of a template, with room or without: external instances for the launch type
    /// EXTERNAL; for tasks that the cloud's group is raised for, the group's own instances; never one that is leaving.
    pub fn serves(&self, membership: Membership, template: Option<&Template>) -> bool {
        let is_external = template.is_some_and(Template::is_external);
        let is_there = match membership {
            Membership::Stays => true,
            Membership::Leaves => false,
            Membership::Foreign => template.is_some_and(|template| !template.scales_group()),
        };
        self.takes_tasks() && self.is_external() == is_external && is_there
    }
}

/// The daemon services of a cluster, and what their tasks take of its container instances. Registered resources include
/// that, remaining ones do not.
#[derive(Debug, Clone, Default)]
pub struct Daemons {
    /// Names of services.
    pub services: BTreeSet<String>,
    /// What they take, in how many tasks, by container instance; instances that were not observed are missing.
    pub taken: HashMap<String, (Size, u32)>,
}

impl Daemons {
    /// Whether a task belongs to one of them.
    pub fn run(&self, task: &Task) -> bool {
        task.service().is_some_and(|service| self.services.contains(service))
    }
}

/// The observed state of a cloud.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Its group, if it has one.
    pub group: Option<Group>,
    /// All container instances of its cluster.
    pub instances: Vec<Instance>,
    /// The size of a new instance of the group: the configured one, else that of its largest registered instance.
    pub configured: Option<Size>,
    pub daemons: Daemons,
    /// Instances of the group, by EC2 id, that have not registered in time, and since when they are overdue. They count
    /// neither as booting nor as room.
    pub never_registered: BTreeMap<String, Timestamp>,
    /// Container instances that ECS named for a reason other than CPU and memory.
    pub unfit: BTreeMap<String, Unfit>,
}

/// Why an instance with enough CPU and memory takes no more tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Its number of tasks shows how many an instance holds ([`crate::fault::Placement::Slots`]).
    Full,
    Other,
}

/// What to do about the waiting requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// The new desired capacity, above the present one, in the group's units.
    pub raise_to: Option<u32>,
    /// Whether the group's maximum leaves some requests without an instance.
    pub at_maximum: bool,
    /// Whether nothing is raised because so many of the group's instances never registered.
    pub is_broken: bool,
}

impl Observed {
    /// How each container instance relates to the group, in their order; in a cloud without a group, every one counts
    /// as its own.
    pub fn memberships(&self) -> Vec<Membership> {
        match &self.group {
            None => vec![Membership::Stays; self.instances.len()],
            Some(group) => {
                let membership = group.memberships();
                self.instances.iter().map(|instance| membership(instance.ec2_id.as_deref())).collect()
            }
        }
    }

    /// The group's own container instances, except those that are leaving; in a cloud without a group, all but external
    /// ones.
    pub fn own(&self) -> impl Iterator<Item = &Instance> {
        let own = self.instances.iter().zip(self.memberships());
        own.filter(|(instance, membership)| *membership == Membership::Stays && !instance.is_external())
            .map(|(instance, _)| instance)
    }

    /// Whether a container instance belongs to the group.
    pub fn is_of_group(&self, arn: &str) -> bool {
        let Some(instance) = self.instances.iter().find(|instance| instance.arn == arn) else { return false };
        let mut members = self.group.iter().flat_map(|group| &group.instances);
        members.any(|member| Some(&member.id) == instance.ec2_id.as_ref())
    }

    /// A sentence about the instances of the group that never registered; none if all did.
    pub fn unregistered_text(&self) -> Option<String> {
        let group = self.group.as_ref().filter(|_| !self.never_registered.is_empty())?;
        let ids: Vec<_> = self.never_registered.keys().take(5).map(String::as_str).collect();
        Some(format!(
            "{} instances of group {} never registered in the cluster ({}): check the cluster's name in their user data, their instance role and the network route to ECS",
            self.never_registered.len(),
            group.name,
            ids.join(", ")
        ))
    }

    /// What daemons take of an instance of the group, and how many there are, as far as any instance was observed.
    fn daemons_of_one(&self) -> (Size, u32) {
        let seen = |instance: &Instance| self.daemons.taken.get(&instance.arn).copied();
        let of_own = self.own().filter_map(seen).max_by_key(|(_, count)| *count);
        of_own.or_else(|| self.instances.iter().find_map(seen)).unwrap_or_default()
    }

    /// Tasks on an instance that do not belong to daemons.
    fn agents_on(&self, instance: &Instance, daemons: u32) -> u32 {
        instance.tasks.saturating_sub(self.daemons.taken.get(&instance.arn).map_or(daemons, |(_, count)| *count))
    }

    /// What a new instance of the group registers.
    fn new_instance(&self) -> Option<Size> {
        let totals = self.own().map(|instance| instance.total).filter(|total| total.memory > 0);
        self.configured.or_else(|| totals.max_by_key(|size| (size.memory, size.cpu)))
    }

    /// The instance that comes nearest to holding a task that is too large for every instance, as far as is known; none
    /// if one may hold it. In a cloud without a group, every instance counts as its own.
    pub fn too_large(&self, size: Size) -> Option<Size> {
        let totals = self.own().map(|instance| instance.total).filter(|total| total.memory > 0);
        let (daemons, _) = self.daemons_of_one();
        let known: Vec<_> = totals.chain(self.new_instance()).map(|total| total.without(daemons)).collect();
        match known.iter().any(|&total| size.fits(total)) {
            true => None,
            false => known.into_iter().max_by_key(|total| (total.memory, total.cpu)),
        }
    }

    /// Whether an instance would hold an agent if nothing but its daemons ran on it, as far as is known.
    pub fn would_hold(&self, instance: &Instance, need: &Need) -> bool {
        let (daemons, _) = self.daemons.taken.get(&instance.arn).copied().unwrap_or_default();
        let fits = instance.total.memory == 0 || need.size.fits(instance.total.without(daemons));
        fits && need.gpus <= instance.gpus && need.exclusive.is_disjoint(&instance.reserved)
    }

    /// The desired capacity that gives every agent of `demand` a place.
    pub fn plan(&self, demand: &[Need]) -> Plan {
        let Some(group) = &self.group else { return Plan::default() };
        if demand.is_empty() {
            return Plan::default();
        }
        let size = self.new_instance();
        let weight = group.weight_of_new(size);
        let booting = self.booting(group).div_ceil(weight);
        let needed = match size {
            Some(size) => self.instances_beyond(booting, size, demand),
            // The size of an instance is unknown: the first to boot will show it. Agents that cannot share an instance
            // need one each.
            None => {
                let each = demand.iter().filter(|need| need.needs_own_instance()).count() as u32;
                each.saturating_sub(booting).max(u32::from(booting == 0))
            }
        };
        // Whatever keeps its instances out of the cluster would keep the next ones out, too.
        let is_broken = needed > 0 && self.never_registered.len() as u32 >= needed.saturating_mul(2);
        let wanted = group.desired.saturating_add(needed.saturating_mul(weight));
        let target = wanted.min(group.maximum);
        Plan {
            raise_to: (target > group.desired && !is_broken).then_some(target),
            at_maximum: wanted > group.maximum,
            is_broken,
        }
    }

    /// The units of the desired capacity that are on their way: not registered, and not overdue.
    fn booting(&self, group: &Group) -> u32 {
        let registered: BTreeSet<&str> =
            self.instances.iter().filter_map(|instance| instance.ec2_id.as_deref()).collect();
        let settled = group.instances.iter().filter(|member| {
            let is_settled = registered.contains(member.id.as_str()) || self.never_registered.contains_key(&member.id);
            member.lifecycle.counts() && is_settled
        });
        group.desired.saturating_sub(settled.map(|member| member.weight).fold(0, u32::saturating_add))
    }

    /// An empty instance of this size.
    fn new_place(&self, size: Size, demand: &[Need]) -> Place {
        let (room, daemons) = self.daemons_of_one();
        // An instance that is out of network interfaces or ports shows how many tasks an instance holds.
        let full = self.instances.iter().filter(|instance| self.unfit.get(&instance.arn) == Some(&Unfit::Full));
        let agents = full.map(|instance| self.agents_on(instance, daemons)).filter(|&agents| agents > 0);
        let slots = agents.max().filter(|_| demand.iter().all(|need| need.exclusive.is_empty())).unwrap_or(u32::MAX);
        // Until an instance has registered, a new one is presumed to have the GPUs of the largest need.
        let gpus = self.own().map(|instance| instance.gpus).max().filter(|&gpus| gpus > 0);
        let gpus = gpus.or(demand.iter().map(|need| need.gpus).max()).unwrap_or_default();
        Place { room: size.without(room), gpus, slots, taken: self.taken_of_new().cloned().unwrap_or_default() }
    }

    /// What is in use on each instance of the group before an agent runs there, as far as is known: ports that its container
    /// agent reserves, such as that of sshd, and those of daemons, if an instance has no other tasks.
    fn taken_of_new(&self) -> Option<&BTreeSet<Exclusive>> {
        let (daemon, daemons) = self.daemons_of_one();
        // ECS does not count a task that is stopping, which still has its memory and its ports.
        let is_empty = |instance: &&Instance| {
            let daemon = self.daemons.taken.get(&instance.arn).map_or(daemon, |(size, _)| *size);
            self.agents_on(instance, daemons) == 0 && instance.total.without(daemon).fits(instance.free)
        };
        let taken = self.own().filter(is_empty).map(|instance| &instance.taken);
        let reserved = self.own().map(|instance| &instance.reserved);
        taken.min_by_key(|taken| taken.len()).or_else(|| reserved.min_by_key(|reserved| reserved.len()))
    }

    /// The exclusive resource that an agent needs and no instance of the group has to offer, as far as is known.
    pub fn taken_everywhere<'n>(&self, need: &'n Need) -> Option<&'n Exclusive> {
        let taken = self.taken_of_new()?;
        need.exclusive.iter().find(|what| taken.contains(what))
    }

    /// How many new instances are needed beyond those that are registered or booting.
    fn instances_beyond(&self, booting: u32, size: Size, demand: &[Need]) -> u32 {
        let new = self.new_place(size, demand);
        let (_, daemons) = self.daemons_of_one();
        let has_room = |instance: &&Instance| instance.takes_tasks() && !self.unfit.contains_key(&instance.arn);
        let there = self.own().filter(has_room).map(|instance| Place {
            room: instance.free,
            gpus: instance.free_gpus,
            slots: new.slots.saturating_sub(self.agents_on(instance, daemons)),
            taken: instance.taken.clone(),
        });
        // One booting instance for each agent is as good as any number of them.
        let booting = demand.len().min(booting as usize);
        let mut places: Vec<Place> = there.chain(repeat_n(new.clone(), booting)).collect();
        let before = places.len();
        // No agent needs more than one new instance.
        places.extend(repeat_n(new, demand.len()));
        let used = first_fit(places, demand).into_iter().max().map_or(0, |last| last + 1);
        used.saturating_sub(before) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aws::autoscaling::{CapacityUnit, GroupInstance, Lifecycle};
    use crate::aws::ecs::InstanceStatus;

    const TASK: Size = Size { cpu: 1024, memory: 2048 };
    const INSTANCE: Size = Size { cpu: 4096, memory: 7680 };

    fn needs(size: Size, count: usize) -> Vec<Need> {
        vec![size.into(); count]
    }

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
            .map(|instance| GroupInstance {
                id: instance.ec2_id.clone().unwrap_or_default(),
                lifecycle: Lifecycle::InService,
                ..GroupInstance::default()
            })
            .collect();
        let group =
            Group { name: "group".into(), minimum: 0, desired, maximum, instances: members, ..Group::default() };
        Observed { group: Some(group), instances, configured: Some(INSTANCE), ..Observed::default() }
    }

    #[test]
    fn raises_the_group_to_the_demand() {
        let none = Size::default();
        let raised = |observed: &Observed, tasks: usize| observed.plan(&needs(TASK, tasks)).raise_to;
        // Three tasks of 2 GiB fit on an instance.
        assert_eq!(raised(&observed(0, 10, &[]), 1), Some(1));
        assert_eq!(raised(&observed(0, 10, &[]), 20), Some(7));
        assert_eq!(raised(&observed(2, 10, &[none, none]), 4), Some(4), "a group of five is never lowered to one");
        assert_eq!(raised(&observed(2, 10, &[none]), 3), None, "one boots and will hold all three");
        assert_eq!(raised(&observed(2, 10, &[none]), 4), Some(3));
        assert_eq!(raised(&observed(1, 10, &[INSTANCE]), 3), None, "there is room meanwhile");
        assert_eq!(raised(&observed(5, 5, &[none; 5]), 30), None);
        assert!(observed(5, 5, &[none; 5]).plan(&needs(TASK, 1)).at_maximum);
        assert_eq!(raised(&observed(3, 5, &[none; 3]), 30), Some(5));
        assert_eq!(raised(&observed(0, 10, &[]), 0), None);
    }

    #[test]
    fn an_unknown_size_raises_by_one_while_nothing_boots() {
        let mut unknown = observed(0, 10, &[]);
        unknown.configured = None;
        assert_eq!(unknown.plan(&needs(TASK, 9)).raise_to, Some(1));
        unknown.group.as_mut().expect("a group").desired = 1;
        assert_eq!(unknown.plan(&needs(TASK, 9)).raise_to, None);
        assert_eq!(unknown.too_large(Size { cpu: 1 << 20, memory: 1 << 20 }), None);
    }

    #[test]
    fn a_task_larger_than_any_instance_raises_nothing() {
        let state = observed(0, 10, &[]);
        let huge = Size { cpu: 8192, memory: 2048 };
        assert_eq!(state.too_large(huge), Some(INSTANCE));
        assert_eq!(state.plan(&needs(huge, 1)).raise_to, None);
    }

    #[test]
    fn a_task_is_too_large_if_it_fits_neither_a_new_nor_a_registered_instance() {
        let mut state = observed(1, 10, &[Size::default()]);
        state.configured = Some(Size { cpu: 8192, memory: 16384 });
        let large = Size { cpu: 4096, memory: 8192 };
        assert_eq!(state.too_large(large), None, "the launch template has grown");
        assert_eq!(state.plan(&needs(large, 1)).raise_to, Some(2));
        state.group.as_mut().expect("a group").desired = 2;
        assert_eq!(state.plan(&needs(large, 1)).raise_to, None, "the new one boots");
        state.configured = Some(Size { cpu: 2048, memory: 4096 });
        assert_eq!(state.too_large(large), Some(INSTANCE));
        state.configured = None;
        state.group.as_mut().expect("a group").instances.clear();
        assert_eq!(state.too_large(large), None, "nobody knows the group's instances");
    }

    #[test]
    fn subtracts_the_resources_of_daemons() {
        let mut state = observed(1, 10, &[Size { cpu: 4032, memory: 7168 }]);
        state.daemons.taken.insert("arn-0".into(), (Size { cpu: 64, memory: 512 }, 1));
        let nearly_all = Size { cpu: 1024, memory: 7500 };
        assert_eq!(state.too_large(nearly_all), Some(Size { cpu: 4032, memory: 7168 }));
        assert_eq!(state.plan(&needs(nearly_all, 1)).raise_to, None);
    }

    #[test]
    fn a_weighted_group_is_raised_in_its_own_units() {
        let none = Size::default();
        let weighted = |weight: u32, instances: usize, desired: u32| {
            let mut state = observed(desired, 100, &vec![none; instances]);
            let group = state.group.as_mut().expect("a group");
            group.weights = vec![weight];
            group.instances.iter_mut().for_each(|member| member.weight = weight);
            state
        };
        assert_eq!(weighted(2, 2, 4).plan(&needs(TASK, 3)).raise_to, Some(6));
        assert_eq!(weighted(8, 1, 8).plan(&needs(TASK, 20)).raise_to, Some(8 + 7 * 8));
        assert_eq!(weighted(2, 0, 0).plan(&needs(TASK, 20)).raise_to, Some(14));
        assert_eq!(weighted(2, 1, 4).plan(&needs(TASK, 3)).raise_to, None, "one boots");
    }

    #[test]
    fn a_group_in_vcpus_or_memory_counts_an_instance_of_it_from_the_first_on() {
        let of = |unit: CapacityUnit, desired: u32| {
            let mut state = observed(desired, 100_000, &[]);
            state.group.as_mut().expect("a group").unit = unit;
            state.plan(&needs(TASK, 20)).raise_to
        };
        // Three on an instance of four vCPUs and, as EC2 counts, 8192 MiB.
        assert_eq!(of(CapacityUnit::Vcpu, 0), Some(7 * 4));
        assert_eq!(of(CapacityUnit::Vcpu, 4), Some(7 * 4), "one boots");
        assert_eq!(of(CapacityUnit::MemoryMib, 0), Some(7 * 8192));
        let mut unknown = observed(0, 100, &[]);
        unknown.configured = None;
        unknown.group.as_mut().expect("a group").unit = CapacityUnit::Vcpu;
        assert_eq!(unknown.plan(&needs(TASK, 20)).raise_to, Some(1), "the first instance shows its size");
    }

    #[test]
    fn exclusive_resources_are_free_until_they_are_taken() {
        let need = |exclusive: Exclusive| Need { size: TASK, exclusive: [exclusive].into(), ..Need::default() };
        let (port, family) = (need(Exclusive::HostPort(2222)), need(Exclusive::Family("maven".into())));
        let mut instance = Instance { free: INSTANCE, ..Instance::default() };
        assert!(instance.take(&port) && !instance.take(&port));
        assert!(instance.take(&family) && !instance.take(&family));
        let mut state = observed(1, 10, &[INSTANCE]);
        assert_eq!(state.plan(std::slice::from_ref(&port)).raise_to, None);
        state.instances[0].taken.insert(Exclusive::HostPort(2222));
        assert_eq!(state.plan(&[port]).raise_to, Some(2));
    }

    #[test]
    fn overdue_instances_are_not_booting_and_limit_further_raises() {
        let zombies = |count: usize| {
            let mut state = observed(count as u32, 100, &[]);
            let members: Vec<_> = (0..count)
                .map(|index| GroupInstance {
                    id: format!("i-dead-{index}"),
                    lifecycle: Lifecycle::InService,
                    ..GroupInstance::default()
                })
                .collect();
            state.never_registered = members.iter().map(|member| (member.id.clone(), Timestamp::UNIX_EPOCH)).collect();
            state.group.as_mut().expect("a group").instances = members;
            state
        };
        assert_eq!(zombies(1).plan(&needs(TASK, 1)).raise_to, Some(2));
        assert_eq!(zombies(5).plan(&needs(TASK, 15)).raise_to, Some(10));
        let broken = zombies(2).plan(&needs(TASK, 1));
        assert!(broken.is_broken && broken.raise_to.is_none(), "{broken:?}");
        let mut unknown = zombies(1);
        unknown.configured = None;
        assert_eq!(unknown.plan(&needs(TASK, 1)).raise_to, Some(2));
    }

    #[test]
    fn agents_that_share_no_instance_get_one_each() {
        let apart = |count: usize| {
            vec![Need { size: TASK, exclusive: [Exclusive::HostPort(22)].into(), ..Need::default() }; count]
        };
        let mut state = observed(0, 10, &[]);
        assert_eq!(state.plan(&apart(4)).raise_to, Some(4));
        state.configured = None;
        assert_eq!(state.plan(&apart(4)).raise_to, Some(4), "though an instance's size is unknown");
        let mut beside = observed(1, 10, &[INSTANCE]);
        beside.unfit.insert("arn-0".into(), Unfit::Other);
        assert_eq!(beside.plan(&apart(8)).raise_to, Some(9));
    }

    #[test]
    fn one_gpu_an_instance_is_presumed_until_one_has_registered() {
        let trained = |count: usize| vec![Need { size: TASK, gpus: 1, ..Need::default() }; count];
        let mut state = observed(0, 20, &[]);
        assert_eq!(state.plan(&trained(4)).raise_to, Some(4));
        let mut beside = observed(1, 20, &[Size { cpu: 2048, memory: 4096 }]);
        beside.instances[0].gpus = 1;
        beside.instances[0].tasks = 3;
        assert_eq!(beside.plan(&trained(4)).raise_to, Some(5), "daemons say nothing about GPUs");
        beside.instances[0].gpus = 2;
        assert_eq!(beside.plan(&trained(4)).raise_to, Some(3));
        state.configured = None;
        assert_eq!(state.plan(&trained(4)).raise_to, Some(4));
    }

    #[test]
    fn an_instance_that_is_leaving_the_group_has_no_room() {
        for lifecycle in ["Standby", "EnteringStandby", "Detaching", "Terminating:Wait", "Warmed:Stopped"] {
            let mut state = observed(1, 10, &[INSTANCE]);
            state.group.as_mut().expect("a group").instances[0].lifecycle = lifecycle.into();
            state.group.as_mut().expect("a group").desired = 0;
            assert_eq!(state.plan(&needs(TASK, 1)).raise_to, Some(1), "{lifecycle}");
        }
    }

    #[test]
    fn ignores_an_instance_that_is_being_terminated() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.group.as_mut().expect("a group").instances[0].lifecycle = Lifecycle::TerminatingWait;
        assert_eq!(state.plan(&needs(TASK, 1)).raise_to, None, "its successor boots");
        assert_eq!(state.plan(&needs(TASK, 4)).raise_to, Some(2));
    }

    #[test]
    fn external_instances_serve_no_request_that_waits_for_the_group() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.instances[0].ec2_id = Some("mi-0123456789abcdef0".into());
        state.group.as_mut().expect("a group").desired = 0;
        assert_eq!(state.plan(&needs(TASK, 1)).raise_to, Some(1));
    }

    #[test]
    fn an_unsuitable_instance_does_not_show_how_many_tasks_one_holds() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.unfit.insert("arn-0".into(), Unfit::Other);
        assert_eq!(state.plan(&needs(TASK, 6)).raise_to, Some(3), "three tasks each");
    }

    #[test]
    fn instances_without_free_interfaces_are_full() {
        let mut state = observed(1, 10, &[INSTANCE]);
        state.instances[0].tasks = 2;
        state.unfit.insert("arn-0".into(), Unfit::Full);
        assert_eq!(state.plan(&needs(TASK, 1)).raise_to, Some(2));
        assert_eq!(state.plan(&needs(TASK, 4)).raise_to, Some(3), "two a new instance, as on the full one");
    }

    proptest! {
        #[test]
        fn never_lowers_never_exceeds_the_maximum_and_suffices(
            desired in 0u32..20, maximum in 0u32..30, registered in 0usize..20, tasks in 0usize..60
        ) {
            let registered = registered.min(desired as usize);
            let desired = desired.min(maximum);
            let registered = registered.min(desired as usize);
            let state = observed(desired, maximum, &vec![Size::default(); registered]);
            let plan = state.plan(&needs(TASK, tasks));
            if let Some(target) = plan.raise_to {
                prop_assert!(target > desired && target <= maximum);
            }
            let capacity = (plan.raise_to.unwrap_or(desired) - registered as u32) as usize * 3;
            prop_assert!(capacity >= tasks || plan.at_maximum);
            // A second copy that sees the first one's raise computes the same number.
            let mut raised = state.clone();
            if let (Some(target), Some(group)) = (plan.raise_to, raised.group.as_mut()) {
                group.desired = target;
            }
            prop_assert_eq!(raised.plan(&needs(TASK, tasks)).raise_to, None);
        }
    }
}
