//! Decides which container instances the sweep gives back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use shared::aws::autoscaling::{Group, GroupInstance, Lifecycle};
use shared::aws::ecs::{IDLE_SINCE_TAG, Instance, InstanceStatus, KEEP_TAG};
use shared::capacity::{Need, Observed};
use shared::config::{Cloud, Limit};

/// What the sweep does to a container instance that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStep {
    /// It is idle from now on.
    MarkIdle,
    /// It is busy again.
    MarkBusy,
    /// Its drain was interrupted, and it accepts tasks again.
    Undrain,
}

/// An instance that has been idle for long enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Its id in EC2.
    pub id: String,
    /// None if it has not registered.
    pub arn: Option<String>,
    pub is_draining: bool,
    /// The units of the desired capacity that it counts for.
    pub weight: u32,
    zone: String,
    since: Timestamp,
}

impl Due {
    fn new(member: &GroupInstance, instance: Option<&Instance>, since: Timestamp) -> Self {
        Self {
            id: member.id.clone(),
            arn: instance.map(|instance| instance.arn.clone()),
            is_draining: instance.is_some_and(|instance| instance.status == InstanceStatus::Draining),
            weight: member.weight,
            zone: member.zone.clone(),
            since,
        }
    }
}

/// The sweep's plan for the instances of a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InstancePlan {
    /// By the container instances' ARNs.
    pub steps: BTreeMap<String, InstanceStep>,
    /// The instances that may go, in this order: those of the fullest zone first, so that the group has no reason to
    /// rebalance its zones, which could terminate a busy instance (API_TerminateInstanceInAutoScalingGroup); then those
    /// that have been idle for longest.
    pub due: Vec<Due>,
    /// How much capacity may go.
    pub budget: Budget,
}

/// The units of a group's capacity that may go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Those beyond the desired capacity.
    beyond: u32,
    /// Those beyond the minimum.
    spare: u32,
}

impl Budget {
    /// Scale-in lowers the desired capacity of a group whose instances are all protected, and terminates none of them
    /// ("Use instance scale-in protection"): they exceed it until we terminate them.
    fn new(group: &Group) -> Self {
        let living = group.instances.iter().filter(|member| member.lifecycle.counts());
        let living = living.map(|member| member.weight).fold(0, u32::saturating_add);
        Self {
            beyond: if group.protects_new { living.saturating_sub(group.desired) } else { 0 },
            spare: group.desired.saturating_sub(group.minimum),
        }
    }

    /// Whether the desired capacity is lowered with an instance of this weight; `None` if it has to stay.
    pub fn take(&mut self, weight: u32) -> Option<bool> {
        for (units, lowers) in [(&mut self.beyond, false), (&mut self.spare, true)] {
            if let Some(left) = units.checked_sub(weight) {
                *units = left;
                return Some(lowers);
            }
        }
        None
    }

    /// An instance that was to go stays.
    pub fn put_back(&mut self, weight: u32, lowers: bool) {
        *(if lowers { &mut self.spare } else { &mut self.beyond }) += weight;
    }
}

/// Plans which instances of a group are given back: none that would hold an agent that is `needed`. Only instances in
/// service go.
pub fn plan(cloud: &Cloud, observed: &Observed, needed: Option<&BTreeSet<Need>>, now: Timestamp) -> InstancePlan {
    let limit = cloud.idle_instance_timeout;
    let Some(group) = observed.group.as_ref().filter(|_| limit != Limit::NEVER) else { return InstancePlan::default() };
    let mut plan = InstancePlan { budget: Budget::new(group), ..InstancePlan::default() };
    let members: HashMap<&str, &GroupInstance> =
        group.instances.iter().map(|member| (member.id.as_str(), member)).collect();
    let in_service = |id: &str| members.get(id).filter(|member| member.lifecycle == Lifecycle::InService);
    for instance in &observed.instances {
        let Some(member) = instance.ec2_id.as_deref().and_then(in_service) else { continue };
        let daemons = observed.daemons.taken.get(&instance.arn).map_or(0, |(_, count)| *count);
        let is_needed = needed.into_iter().flatten().any(|need| observed.would_hold(instance, need));
        let is_busy = instance.tasks > daemons || is_needed;
        match registered(instance, is_busy, limit, now) {
            Some(Registered::Step(step)) => drop(plan.steps.insert(instance.arn.clone(), step)),
            Some(Registered::Due(since)) => plan.due.push(Due::new(member, Some(instance), since)),
            None => {}
        }
    }
    // One that is overdue serves nobody, whoever waits.
    let lost = observed.never_registered.iter().filter(|(_, since)| limit.is_over(**since, now));
    let lost = lost.filter_map(|(id, since)| Some(Due::new(in_service(id)?, None, *since)));
    plan.due.extend(lost);
    plan.due = fullest_zone_first(plan.due, group);
    plan
}

/// The state of a registered instance.
enum Registered {
    Step(InstanceStep),
    /// It has been idle since then, for long enough.
    Due(Timestamp),
}

fn registered(instance: &Instance, is_busy: bool, limit: Limit, now: Timestamp) -> Option<Registered> {
    let since = instance.tags.get(IDLE_SINCE_TAG).and_then(|time| time.parse::<Timestamp>().ok());
    // Only we drain an instance that carries our tag; a drain by somebody else is left alone.
    let drained_by_us = instance.status == InstanceStatus::Draining && since.is_some();
    if instance.status != InstanceStatus::Active && !drained_by_us {
        return None;
    }
    let undrain = drained_by_us.then_some(Registered::Step(InstanceStep::Undrain));
    match since {
        _ if instance.tags.contains_key(KEEP_TAG) => undrain,
        _ if is_busy => undrain.or(since.map(|_| Registered::Step(InstanceStep::MarkBusy))),
        None => Some(Registered::Step(InstanceStep::MarkIdle)),
        Some(since) if limit.is_over(since, now) => Some(Registered::Due(since)),
        Some(_) => undrain,
    }
}

fn fullest_zone_first(mut due: Vec<Due>, group: &Group) -> Vec<Due> {
    let mut zones: HashMap<&str, u32> = HashMap::new();
    for member in group.instances.iter().filter(|member| member.lifecycle.counts()) {
        *zones.entry(&member.zone).or_default() += 1;
    }
    // The longest idle last: among equals, the last one is taken first.
    due.sort_by(|a, b| (b.since, &b.id).cmp(&(a.since, &a.id)));
    let mut ordered = Vec::with_capacity(due.len());
    while let Some((next, _)) =
        due.iter().enumerate().max_by_key(|(index, due)| (zones.get(due.zone.as_str()).copied(), *index))
    {
        let next = due.remove(next);
        if let Some(count) = zones.get_mut(next.zone.as_str()) {
            *count = count.saturating_sub(1);
        }
        ordered.push(next);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::capacity::Daemons;
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
                    ..GroupInstance::default()
                })
                .collect(),
            ..Group::default()
        }
    }

    /// The plan for these instances, whose tasks are all agents, at 1000.
    fn planned(group: Group, instances: &[Instance], is_needed: bool) -> InstancePlan {
        let observed = Observed { group: Some(group), instances: instances.to_vec(), ..Observed::default() };
        plan(&config().clouds[0], &observed, anything(is_needed).as_ref(), at(1000))
    }

    /// An agent of unknown size that is needed, if any is.
    fn anything(is_needed: bool) -> Option<BTreeSet<Need>> {
        is_needed.then(|| BTreeSet::from([Need::default()]))
    }

    /// The ids of those that go if no call fails, each with whether it lowers the desired capacity.
    fn gone(mut plan: InstancePlan) -> Vec<(String, bool)> {
        plan.due.iter().filter_map(|due| Some((due.id.clone(), plan.budget.take(due.weight)?))).collect()
    }

    fn ids(plan: InstancePlan) -> Vec<String> {
        gone(plan).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn idle_instances_are_given_back_after_their_time() {
        use InstanceStep::*;
        let one = |instance: Instance, minimum, is_needed| {
            let instances = [instance];
            let plan = planned(group(&instances, minimum), &instances, is_needed);
            (plan.steps.get("arn-0").copied(), gone(plan).first().map(|(_, lowers)| *lowers))
        };
        assert_eq!(one(instance(0, 0, "ACTIVE", None), 0, false), (Some(MarkIdle), None));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(500)), 0, false), (None, None));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 0, false), (None, Some(true)));
        assert_eq!(one(instance(0, 1, "ACTIVE", Some(400)), 0, false), (Some(MarkBusy), None));
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 1, false), (None, None), "never below the minimum");
        assert_eq!(one(instance(0, 0, "ACTIVE", Some(400)), 0, true), (Some(MarkBusy), None), "requests wait");
        assert_eq!(one(instance(0, 1, "DRAINING", Some(400)), 0, false), (Some(Undrain), None), "a task came");
        assert_eq!(one(instance(0, 0, "DRAINING", Some(400)), 0, false), (None, Some(true)), "a drain cut short");
        assert_eq!(one(instance(0, 0, "DRAINING", None), 0, false), (None, None), "another's drain");
        let mut kept = instance(0, 0, "ACTIVE", Some(400));
        kept.tags.insert(KEEP_TAG.into(), String::new());
        assert_eq!(one(kept, 0, false), (None, None));
    }

    #[test]
    fn only_instances_that_would_hold_an_agent_that_waits_are_needed() {
        let instances = [instance(0, 2, "ACTIVE", Some(100))];
        let observed = Observed {
            group: Some(group(&instances, 0)),
            instances: instances.to_vec(),
            daemons: Daemons {
                taken: [("arn-0".into(), (Size { cpu: 64, memory: 512 }, 2))].into(),
                ..Daemons::default()
            },
            ..Observed::default()
        };
        let stays = |need: Need| plan(&config().clouds[0], &observed, Some(&[need].into()), at(1000)).due.is_empty();
        assert!(stays(Size { cpu: 4032, memory: 7680 }.into()));
        assert!(!stays(Size { cpu: 4033, memory: 7680 }.into()), "beside its daemons");
        assert!(!stays(Need { gpus: 1, ..Need::default() }));
    }

    #[test]
    fn only_instances_in_service_are_given_back() {
        for lifecycle in ["Standby", "Pending:Wait", "Terminating:Wait", "Warmed:Running", "Detaching", "Anything"] {
            let instances = [instance(0, 0, "ACTIVE", Some(100))];
            let mut group = group(&instances, 0);
            group.instances[0].lifecycle = lifecycle.into();
            assert_eq!(planned(group, &instances, false).due, [], "{lifecycle}");
        }
    }

    #[test]
    fn daemons_keep_no_instance() {
        let instances = [instance(0, 2, "ACTIVE", Some(100)), instance(1, 2, "ACTIVE", Some(100))];
        let taken = [("arn-0", 2), ("arn-1", 1)].map(|(arn, count)| (arn.to_owned(), (Size::default(), count)));
        let observed = Observed {
            group: Some(group(&instances, 0)),
            instances: instances.to_vec(),
            daemons: Daemons { taken: taken.into(), ..Daemons::default() },
            ..Observed::default()
        };
        assert_eq!(ids(plan(&config().clouds[0], &observed, None, at(1000))), ["i-0"]);
    }

    #[test]
    fn an_overdue_instance_is_idle() {
        let mut group = group(&[instance(0, 0, "ACTIVE", None)], 0);
        group.instances[0].id = "i-lost".into();
        let after = |seconds: i64, is_needed| {
            let never_registered = BTreeMap::from([("i-lost".to_owned(), at(1000 - seconds))]);
            let observed = Observed { group: Some(group.clone()), never_registered, ..Observed::default() };
            ids(plan(&config().clouds[0], &observed, anything(is_needed).as_ref(), at(1000)))
        };
        assert_eq!(after(599, false), [""; 0]);
        assert_eq!(after(600, false), ["i-lost"]);
        assert_eq!(after(600, true), ["i-lost"], "it serves nobody who waits");
    }

    #[test]
    fn weights_are_counted_in_the_groups_units() {
        let instances: Vec<_> = (0..3).map(|number| instance(number, 0, "ACTIVE", Some(100))).collect();
        let weighted = |minimum| {
            let mut group = Group { desired: 12, ..group(&instances, minimum) };
            group.instances.iter_mut().for_each(|member| member.weight = 4);
            ids(planned(group, &instances, false)).len()
        };
        assert_eq!([weighted(0), weighted(4), weighted(5), weighted(8), weighted(9)], [3, 2, 1, 1, 0]);
    }

    #[test]
    fn the_fullest_zone_goes_first() {
        let instances: Vec<_> = (0..4).map(|number| instance(number, 0, "ACTIVE", Some(100 + number as i64))).collect();
        let mut group = Group { minimum: 1, ..group(&instances, 1) };
        for (member, zone) in group.instances.iter_mut().zip(["a", "b", "b", "b"]) {
            member.zone = zone.into();
        }
        assert_eq!(ids(planned(group, &instances, false)), ["i-1", "i-2", "i-0"]);
    }

    #[test]
    fn an_instance_that_stays_leaves_its_budget_to_the_others() {
        let instances: Vec<_> = (0..2).map(|number| instance(number, 0, "ACTIVE", Some(100))).collect();
        let mut plan = planned(group(&instances, 1), &instances, false);
        let lowers = plan.budget.take(1).expect("one may go");
        assert_eq!(plan.budget.take(1), None);
        plan.budget.put_back(1, lowers);
        assert_eq!((plan.due.len(), plan.budget.take(1)), (2, Some(true)));
    }

    #[test]
    fn surplus_instances_go_first_and_do_not_lower_the_capacity() {
        let instances: Vec<_> = (0..4).map(|number| instance(number, 0, "ACTIVE", Some(100))).collect();
        let lowered = |protects_new| {
            let group = Group { desired: 2, protects_new, ..group(&instances, 1) };
            gone(planned(group, &instances, false)).into_iter().map(|(_, lowers)| lowers).collect::<Vec<_>>()
        };
        assert_eq!(lowered(true), [false, false, true]);
        assert_eq!(lowered(false), [true], "the group ends its surplus itself");
    }

    proptest! {
        #[test]
        fn never_goes_below_the_minimum_and_never_takes_a_task(
            loads in prop::collection::vec((0u32..3, prop::option::of(0i64..1000), any::<bool>(), 1u32..4), 0..40),
            minimum in 0u32..40,
            is_needed: bool,
        ) {
            let drains = |drains: bool| if drains { "DRAINING" } else { "ACTIVE" };
            let instances: Vec<_> = loads
                .iter()
                .enumerate()
                .map(|(number, (tasks, since, drain, _))| instance(number, *tasks, drains(*drain), *since))
                .collect();
            let mut group = group(&instances, 0);
            for (member, (.., weight)) in group.instances.iter_mut().zip(&loads) {
                member.weight = *weight;
            }
            group.desired = group.instances.iter().map(|member| member.weight).sum();
            group.minimum = minimum.min(group.desired);
            let gone = ids(planned(group.clone(), &instances, is_needed));
            let gone: Vec<_> = (0..instances.len()).filter(|number| gone.contains(&format!("i-{number}"))).collect();
            prop_assert!(gone.iter().all(|&number| instances[number].tasks == 0));
            let units: u32 = gone.iter().map(|&number| group.instances[number].weight).sum();
            prop_assert!(group.desired - units >= group.minimum);
            prop_assert!(!is_needed || gone.is_empty());
        }
    }
}
