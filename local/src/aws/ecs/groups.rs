//! Auto Scaling groups and their description. Their behaviour is in `scaling.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Ecs;
use super::activities::Activity;
use crate::aws::escape;

/// A group.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Minimum capacity.
    pub minimum: u32,
    /// Desired capacity, in instances or, where they have weights, in units.
    pub desired: u32,
    /// Maximum capacity.
    pub maximum: u32,
    /// The cluster in which its instances register.
    pub cluster: String,
    /// CPU units and MiB that an instance of its launch template registers.
    pub size: (u32, u32),
    /// The weight of an instance of its launch template; `None` if instances are counted.
    pub weight: Option<u32>,
    /// The instance types of a mixed instances policy, launched in turn; `None` if only the launch template's type is
    /// used.
    pub kinds: Vec<Kind>,
    /// `units`, `vcpu` or `memory-mib` (API_CreateAutoScalingGroup, DesiredCapacityType).
    pub desired_type: Option<&'static str>,
    /// GPUs of an instance.
    pub gpus: u32,
    /// Network interfaces available to the tasks of an instance.
    pub interfaces: u32,
    /// Whether its instances ever register.
    pub registers: bool,
    /// The number of its next instances that never register: no role, no route, the name of another cluster.
    pub broken: u32,
    /// Whether its instances are Spot instances.
    pub spot: bool,
    /// Whether it replaces Spot instances that are at risk of an interruption ("Capacity Rebalancing").
    pub rebalances_capacity: bool,
    /// Whether new instances are protected from scale-in.
    pub protects_new: bool,
    /// Attributes that its container instances register with.
    pub attributes: BTreeMap<String, String>,
    /// Tags of the group; its instances get them too.
    pub tags: BTreeMap<String, String>,
    /// The cooldown that a call with `HonorCooldown` observes after a scaling activity.
    pub cooldown: SignedDuration,
    /// Its zones; a new instance is launched in the one with the fewest.
    pub zones: Vec<String>,
    /// Its suspended processes: `Launch`, `Terminate`, `AZRebalance` … ("Suspend and resume processes").
    pub suspended: BTreeSet<String>,
    /// How long a lifecycle hook holds a new instance in `Pending:Wait`.
    pub launch_hook: Option<Duration>,
    /// How long a lifecycle hook holds a terminating instance in `Terminating:Wait`; it keeps running meanwhile, with
    /// its container agent.
    pub terminate_hook: Option<Duration>,
    /// Why no instance can be launched, in the words of the failed scaling activities.
    pub cannot_launch: Option<String>,
    /// Its instances.
    pub members: Vec<Member>,
    /// The most instances at any time, except those being terminated.
    pub most: usize,
    /// The total lifetime of terminated instances, in seconds.
    pub instance_seconds: f64,
    /// Its activities, newest first.
    pub(super) activities: Vec<Activity>,
    pub(super) launched: usize,
    pub(super) retrying: bool,
    pub(super) scaled_at: Option<Timestamp>,
    pub(super) created_at: Timestamp,
}

/// An instance type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// `m6i.large`
    pub name: String,
    /// The weight of one; `None` if instances are counted.
    pub weight: Option<u32>,
    /// CPU units and MiB that an instance registers.
    pub size: (u32, u32),
}

/// An instance of a group.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// `Pending`, `Pending:Wait`, `InService`, `Standby`, `Terminating`, `Warmed:Stopped` … ("Instance lifecycle").
    pub lifecycle: &'static str,
    /// Whether scale-in leaves it alone.
    pub protected: bool,
    /// Since when it is paid for.
    pub launched_at: Timestamp,
    /// Its zone.
    pub zone: String,
    /// The units that it counts for; 1 where instances are counted.
    pub weight: u32,
    /// Whether it ever registers.
    pub registers: bool,
    pub(super) kind: Kind,
}

impl Member {
    /// Whether it counts towards the desired capacity: not in standby, in the warm pool or while it is terminated.
    pub(super) fn counts(&self) -> bool {
        self.lifecycle.starts_with("Pending") || self.lifecycle == "InService"
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.lifecycle.starts_with("Terminating")
    }

    pub(super) fn is_warm(&self) -> bool {
        self.lifecycle.starts_with("Warmed")
    }
}

impl Group {
    fn new(name: &str, cluster: &str, (minimum, maximum): (u32, u32), size: (u32, u32), now: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            minimum,
            desired: minimum,
            maximum,
            cluster: cluster.to_owned(),
            size,
            weight: None,
            kinds: Vec::new(),
            desired_type: None,
            gpus: 0,
            interfaces: 3,
            registers: true,
            broken: 0,
            spot: false,
            rebalances_capacity: false,
            protects_new: false,
            attributes: BTreeMap::new(),
            tags: BTreeMap::new(),
            cooldown: SignedDuration::from_secs(300),
            zones: Vec::new(),
            suspended: BTreeSet::new(),
            launch_hook: None,
            terminate_hook: None,
            cannot_launch: None,
            members: Vec::new(),
            most: 0,
            instance_seconds: 0.0,
            activities: Vec::new(),
            launched: 0,
            retrying: false,
            scaled_at: None,
            created_at: now,
        }
    }

    /// No instance of its type is available, in the words of EC2's `InsufficientInstanceCapacity`.
    pub fn lacks_capacity(&mut self) {
        let kind = self.next_kind().name;
        let zone = self.zones.first().map(String::as_str).unwrap_or_default();
        self.cannot_launch = Some(format!(
            "We currently do not have sufficient {kind} capacity in the Availability Zone you requested ({zone}). Our system \
             will be working on provisioning additional capacity. Launching EC2 instance failed."
        ));
    }

    /// Instance-seconds until `now`.
    pub fn paid_seconds(&self, now: Timestamp) -> f64 {
        let living: f64 = self.members.iter().map(|member| now.duration_since(member.launched_at).as_secs_f64()).sum();
        self.instance_seconds + living
    }

    /// The instances that count towards the desired capacity.
    pub fn living(&self) -> usize {
        self.members.iter().filter(|member| member.counts()).count()
    }

    /// The present capacity, in the units of the desired one.
    pub(super) fn capacity(&self) -> u32 {
        self.members.iter().filter(|member| member.counts()).map(|member| member.weight).sum()
    }

    /// The type of the next instance.
    pub(super) fn next_kind(&self) -> Kind {
        let own = || Kind { name: "m6i.large".to_owned(), weight: self.weight, size: self.size };
        let turn = self.launched.checked_rem(self.kinds.len());
        turn.and_then(|turn| self.kinds.get(turn).cloned()).unwrap_or_else(own)
    }

    /// The units that an instance counts for.
    pub(super) fn weight_of(&self, kind: &Kind) -> u32 {
        match self.desired_type {
            Some("vcpu") => kind.size.0.div_ceil(1024),
            Some("memory-mib") => kind.size.1,
            _ => kind.weight.unwrap_or(1),
        }
        .max(1)
    }

    pub(super) fn in_zone(&self, zone: &str) -> usize {
        self.members.iter().filter(|member| member.counts() && member.zone == zone).count()
    }

    /// The zone of the next instance: the one with the fewest ("Auto Scaling benefits for application architecture").
    pub(super) fn emptiest_zone(&self) -> Option<String> {
        self.zones.iter().min_by_key(|zone| self.in_zone(zone)).cloned()
    }

    /// The instance that scale-in terminates: in the zone with the most, the oldest without protection ("Default
    /// termination policy"), whatever runs on it. It never removes more units than there are too many.
    pub(super) fn victim(&self, most: u32) -> Option<String> {
        let open =
            || self.members.iter().filter(|member| member.counts() && !member.protected && member.weight <= most);
        let crowded = open().map(|member| self.in_zone(&member.zone)).max()?;
        open().find(|member| self.in_zone(&member.zone) == crowded).map(|member| member.id.clone())
    }

    fn describe_members(&self) -> String {
        let units = self.weight.is_some() || self.desired_type.is_some() || !self.kinds.is_empty();
        let member = |member: &Member| {
            let weight =
                if units { format!("<WeightedCapacity>{}</WeightedCapacity>", member.weight) } else { String::new() };
            format!(
                "<member><InstanceId>{}</InstanceId><InstanceType>{}</InstanceType><AvailabilityZone>{}</AvailabilityZone>\
                 <LifecycleState>{}</LifecycleState><HealthStatus>Healthy</HealthStatus>\
                 <ProtectedFromScaleIn>{}</ProtectedFromScaleIn>{weight}</member>",
                member.id, member.kind.name, member.zone, member.lifecycle, member.protected
            )
        };
        self.members.iter().map(member).collect()
    }

    /// Instance types with their weights (API_MixedInstancesPolicy).
    fn describe_kinds(&self) -> String {
        let own = self.weight.map(|_| vec![self.next_kind()]);
        let kinds = if self.kinds.is_empty() { own.unwrap_or_default() } else { self.kinds.clone() };
        if kinds.is_empty() {
            return String::new();
        }
        let kind = |kind: &Kind| {
            let weight = kind.weight.map(|weight| format!("<WeightedCapacity>{weight}</WeightedCapacity>"));
            format!("<member><InstanceType>{}</InstanceType>{}</member>", kind.name, weight.unwrap_or_default())
        };
        let overrides: String = kinds.iter().map(kind).collect();
        format!(
            "<MixedInstancesPolicy><LaunchTemplate><LaunchTemplateSpecification><LaunchTemplateId>lt-0</LaunchTemplateId>\
             <Version>1</Version></LaunchTemplateSpecification><Overrides>{overrides}</Overrides></LaunchTemplate>\
             </MixedInstancesPolicy>"
        )
    }

    /// API_AutoScalingGroup.
    pub(super) fn describe(&self, region: &str, account: &str) -> String {
        let name = escape(&self.name);
        let tag = |(key, value): (&String, &String)| {
            format!(
                "<member><ResourceId>{name}</ResourceId><ResourceType>auto-scaling-group</ResourceType><Key>{}</Key>\
                 <Value>{}</Value><PropagateAtLaunch>true</PropagateAtLaunch></member>",
                escape(key),
                escape(value)
            )
        };
        let suspended = |process: &String| {
            let reason = "User suspended";
            format!(
                "<member><ProcessName>{process}</ProcessName><SuspensionReason>{reason}</SuspensionReason></member>"
            )
        };
        let kind = self.desired_type.map(|kind| format!("<DesiredCapacityType>{kind}</DesiredCapacityType>"));
        let zones: String = self.zones.iter().map(|zone| format!("<member>{zone}</member>")).collect();
        format!(
            "<member><AutoScalingGroupName>{name}</AutoScalingGroupName>\
             <AutoScalingGroupARN>arn:aws:autoscaling:{region}:{account}:autoScalingGroup:0:autoScalingGroupName/{name}</AutoScalingGroupARN>\
             <MinSize>{}</MinSize><MaxSize>{}</MaxSize><DesiredCapacity>{}</DesiredCapacity>{}{}\
             <DefaultCooldown>{}</DefaultCooldown><AvailabilityZones>{zones}</AvailabilityZones>\
             <HealthCheckType>EC2</HealthCheckType><HealthCheckGracePeriod>300</HealthCheckGracePeriod>\
             <CreatedTime>{}</CreatedTime><NewInstancesProtectedFromScaleIn>{}</NewInstancesProtectedFromScaleIn>\
             <CapacityRebalance>{}</CapacityRebalance><WarmPoolSize>{}</WarmPoolSize><SuspendedProcesses>{}</SuspendedProcesses>\
             <Instances>{}</Instances><Tags>{}</Tags></member>",
            self.minimum,
            self.maximum,
            self.desired,
            kind.unwrap_or_default(),
            self.describe_kinds(),
            self.cooldown.as_secs(),
            self.created_at,
            self.protects_new,
            self.rebalances_capacity,
            self.members.iter().filter(|member| member.is_warm()).count(),
            self.suspended.iter().map(suspended).collect::<String>(),
            self.describe_members(),
            self.tags.iter().map(tag).collect::<String>(),
        )
    }
}

impl Ecs {
    /// Creates a group, with its minimum as desired capacity.
    pub fn create_group(&mut self, name: &str, cluster: &str, bounds: (u32, u32), size: (u32, u32), now: Timestamp) {
        let mut group = Group::new(name, cluster, bounds, size, now);
        group.zones = ["a", "b"].map(|zone| format!("{}{zone}", self.region)).to_vec();
        self.groups.insert(name.to_owned(), group);
        self.reconcile(name, now);
    }

    /// A group.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The name of an EC2 instance's group.
    pub(in crate::aws) fn group_of_instance(&self, ec2_id: &str) -> Option<&str> {
        self.machines.get(ec2_id)?.group.as_deref()
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// A group, for tests that change what the API cannot.
    pub fn group_mut(&mut self, name: &str) -> Option<&mut Group> {
        self.groups.get_mut(name)
    }

    pub(super) fn member(&mut self, id: &str) -> Option<&mut Member> {
        let group = self.machines.get(id)?.group.clone()?;
        self.groups.get_mut(&group)?.members.iter_mut().find(|member| member.id == id)
    }

    /// The timestamps of an EC2 instance that was launched at this time.
    pub fn set_launched_at(&mut self, ec2_id: &str, at: Timestamp) {
        if let Some(machine) = self.machines.get_mut(ec2_id) {
            machine.launched_at = at;
        }
        if let Some(member) = self.member(ec2_id) {
            member.launched_at = at;
        }
    }
}
