//! Amazon EC2 Auto Scaling.

use std::collections::HashMap;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::types::{self as sdk, ScalingActivityStatusCode};

use super::Lazy;
use super::open_enum::open_enum;
use crate::config::Size;
use crate::fault::Fault;

open_enum!(
    /// The lifecycle state of a group's instance (EC2 Auto Scaling user guide, "Instance lifecycle").
    Lifecycle {
        Pending = "Pending",
        PendingWait = "Pending:Wait",
        PendingProceed = "Pending:Proceed",
        InService = "InService",
        EnteringStandby = "EnteringStandby",
        Standby = "Standby",
        Detaching = "Detaching",
        Detached = "Detached",
        Terminating = "Terminating",
        TerminatingWait = "Terminating:Wait",
        TerminatingProceed = "Terminating:Proceed",
        Terminated = "Terminated",
    }
);

open_enum!(
    /// The unit of a group's capacity (API_AutoScalingGroup, DesiredCapacityType); units are instances, or their
    /// weights.
    CapacityUnit {
        Units = "units",
        Vcpu = "vcpu",
        MemoryMib = "memory-mib",
    }
);

impl Lifecycle {
    /// Whether the instance counts towards the desired capacity and will stay: not in standby, in a warm pool or being
    /// terminated.
    pub fn counts(&self) -> bool {
        matches!(self, Self::Pending | Self::PendingWait | Self::PendingProceed | Self::InService)
    }
}

/// A group's current state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    /// Minimum capacity.
    pub minimum: u32,
    /// Desired capacity.
    pub desired: u32,
    /// Maximum capacity.
    pub maximum: u32,
    /// Whether new instances are protected from the group's own scale-in.
    pub protects_new: bool,
    pub instances: Vec<GroupInstance>,
    /// The weights of instances of its launch template's overrides, in their order; empty where instances are counted
    /// (API_LaunchTemplateOverrides, WeightedCapacity).
    pub weights: Vec<u32>,
    pub unit: CapacityUnit,
    /// Processes that are suspended: `Launch`, `AZRebalance`, ….
    pub suspended: Vec<String>,
    /// The number of Availability Zones it spreads over.
    pub zones: usize,
    /// Whether it replaces Spot instances that are at risk of an interruption.
    pub rebalances_capacity: bool,
}

/// How an instance relates to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It belongs to the group and will stay.
    Stays,
    /// It belongs to the group, but is in standby, in the warm pool or being terminated: it has no room for anybody.
    Leaves,
    /// It does not belong to the group.
    Foreign,
}

impl Group {
    /// The units that a new instance adds to the desired capacity: those of the group's other instances, else the
    /// weight of the first type that it launches, else what an instance of this size counts for.
    pub fn weight_of_new(&self, size: Option<Size>) -> u32 {
        let of_members = || self.instances.iter().map(|member| member.weight).max();
        let of_size = || match (&self.unit, size) {
            (CapacityUnit::Vcpu, Some(size)) => Some(size.cpu.div_ceil(1024)),
            // An instance type's memory, in whole GiB, is a little more than its instances register.
            (CapacityUnit::MemoryMib, Some(size)) => Some(size.memory.next_multiple_of(1024)),
            _ => None,
        };
        of_members().or(self.weights.first().copied()).or_else(of_size).unwrap_or(1).max(1)
    }

    /// How EC2 instances relate to the group, for those that are asked about.
    pub fn memberships<'a>(&'a self) -> impl Fn(Option<&str>) -> Membership + use<'a> {
        let members: HashMap<&str, bool> =
            self.instances.iter().map(|member| (member.id.as_str(), member.lifecycle.counts())).collect();
        move |ec2_id| match ec2_id.and_then(|id| members.get(id)) {
            Some(true) => Membership::Stays,
            Some(false) => Membership::Leaves,
            None => Membership::Foreign,
        }
    }

    pub fn is_suspended(&self, process: &str) -> bool {
        self.suspended.iter().any(|suspended| suspended == process)
    }

    /// Whether fewer instances are in service than desired.
    pub fn is_short(&self) -> bool {
        let in_service = self.instances.iter().filter(|member| member.lifecycle == Lifecycle::InService);
        in_service.map(|member| member.weight).fold(0, u32::saturating_add) < self.desired
    }
}

/// An instance of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInstance {
    /// Its id in EC2.
    pub id: String,
    pub lifecycle: Lifecycle,
    /// Its Availability Zone.
    pub zone: String,
    /// Whether the group's own scale-in leaves it alone.
    pub protected: bool,
    /// The units of the desired capacity that it counts for; 1 where instances are counted.
    pub weight: u32,
}

impl Default for GroupInstance {
    fn default() -> Self {
        Self { id: String::new(), lifecycle: Lifecycle::default(), zone: String::new(), protected: false, weight: 1 }
    }
}

/// The Auto Scaling groups of one region and account.
#[derive(Debug, Clone)]
pub struct Groups(Lazy<Client>);

impl Groups {
    pub fn new(client: impl Into<Lazy<Client>>) -> Self {
        Self(client.into())
    }

    /// DescribeAutoScalingGroups for one group; `None` if there is no such group.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn describe(&self, name: &str) -> Result<Option<Group>, Fault> {
        let answer = self.0.describe_auto_scaling_groups().auto_scaling_group_names(name).send().await;
        let answer = answer.map_err(|error| Fault::from_sdk("autoscaling:DescribeAutoScalingGroups", error))?;
        let groups = answer.auto_scaling_groups.unwrap_or_default();
        Ok(groups.into_iter().find(|group| group.auto_scaling_group_name() == Some(name)).map(Group::from))
    }

    /// Why the group's last launch of an instance failed; `None` if it did not (API_DescribeScalingActivities, newest
    /// first).
    ///
    /// # Errors
    /// When the call failed.
    pub async fn last_launch_failure(&self, name: &str) -> Result<Option<String>, Fault> {
        let call = self.0.describe_scaling_activities().auto_scaling_group_name(name).max_records(20);
        let answer = call.send().await;
        let answer = answer.map_err(|error| Fault::from_sdk("autoscaling:DescribeScalingActivities", error))?;
        let is_launch =
            |activity: &&sdk::Activity| activity.description().is_some_and(|it| it.starts_with("Launching"));
        let last = answer.activities().iter().find(is_launch);
        let failed = last.filter(|activity| activity.status_code() == Some(&ScalingActivityStatusCode::Failed));
        Ok(failed.and_then(|activity| activity.status_message()).map(str::to_owned))
    }

    /// SetDesiredCapacity to an absolute number, without waiting for a cooldown.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn set_desired(&self, name: &str, desired: u32) -> Result<(), Fault> {
        let call = self.0.set_desired_capacity().auto_scaling_group_name(name).honor_cooldown(false);
        let call = call.desired_capacity(i32::try_from(desired).unwrap_or(i32::MAX));
        call.send().await.map(drop).map_err(|error| Fault::from_sdk("autoscaling:SetDesiredCapacity", error))
    }

    /// Terminates one instance, protected from scale-in or not, and on request lowers the desired capacity by it. AWS
    /// refuses that below the minimum, and replaces the instance where the group is then short of one
    /// (API_TerminateInstanceInAutoScalingGroup, "Use instance scale-in protection").
    ///
    /// # Errors
    /// When the call failed.
    pub async fn terminate(&self, instance: &str, lowers: bool) -> Result<(), Fault> {
        let call = self.0.terminate_instance_in_auto_scaling_group().instance_id(instance);
        let answer = call.should_decrement_desired_capacity(lowers).send().await;
        answer.map(drop).map_err(|error| Fault::from_sdk("autoscaling:TerminateInstanceInAutoScalingGroup", error))
    }
}

impl From<sdk::AutoScalingGroup> for Group {
    fn from(group: sdk::AutoScalingGroup) -> Self {
        let number = |number: Option<i32>| u32::try_from(number.unwrap_or_default()).unwrap_or_default();
        Self {
            name: group.auto_scaling_group_name.unwrap_or_default(),
            minimum: number(group.min_size),
            desired: number(group.desired_capacity),
            maximum: number(group.max_size),
            protects_new: group.new_instances_protected_from_scale_in.unwrap_or_default(),
            weights: group
                .mixed_instances_policy
                .and_then(|policy| policy.launch_template?.overrides)
                .unwrap_or_default()
                .into_iter()
                .filter_map(|kind| kind.weighted_capacity?.parse().ok())
                .collect(),
            unit: group.desired_capacity_type.unwrap_or_default().into(),
            zones: group.availability_zones.unwrap_or_default().len(),
            rebalances_capacity: group.capacity_rebalance.unwrap_or_default(),
            suspended: group
                .suspended_processes
                .unwrap_or_default()
                .into_iter()
                .filter_map(|process| process.process_name)
                .collect(),
            instances: group
                .instances
                .unwrap_or_default()
                .into_iter()
                .map(|instance| GroupInstance {
                    id: instance.instance_id.unwrap_or_default(),
                    lifecycle: instance.lifecycle_state.map(|state| state.as_str().into()).unwrap_or_default(),
                    zone: instance.availability_zone.unwrap_or_default(),
                    protected: instance.protected_from_scale_in.unwrap_or_default(),
                    weight: instance.weighted_capacity.and_then(|weight| weight.parse().ok()).unwrap_or(1),
                })
                .collect(),
        }
    }
}
