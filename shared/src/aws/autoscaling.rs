//! Amazon EC2 Auto Scaling.

use aws_sdk_autoscaling::Client;

use super::ApiFault;

/// A group as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The least desired capacity.
    pub minimum: u32,
    /// The desired capacity.
    pub desired: u32,
    /// The most desired capacity.
    pub maximum: u32,
    /// Whether its instances start with protection from its own scale-in.
    pub protects_new: bool,
    /// EC2 ids of the instances that count towards the desired capacity.
    pub instances: Vec<GroupInstance>,
}

/// An instance of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupInstance {
    /// Its id in EC2.
    pub id: String,
    /// `Pending`, `InService`, …
    pub lifecycle: String,
}

/// DescribeAutoScalingGroups for one group; none if there is no such group.
///
/// # Errors
/// When the call failed.
pub async fn group(client: &Client, name: &str) -> Result<Option<Group>, ApiFault> {
    let answer = client
        .describe_auto_scaling_groups()
        .auto_scaling_group_names(name)
        .send()
        .await
        .map_err(|error| ApiFault::new("autoscaling:DescribeAutoScalingGroups", error))?;
    let number = |number: Option<i32>| u32::try_from(number.unwrap_or_default()).unwrap_or_default();
    Ok(answer
        .auto_scaling_groups
        .unwrap_or_default()
        .into_iter()
        .find(|group| group.auto_scaling_group_name() == Some(name))
        .map(|group| Group {
            name: name.to_owned(),
            minimum: number(group.min_size),
            desired: number(group.desired_capacity),
            maximum: number(group.max_size),
            protects_new: group.new_instances_protected_from_scale_in.unwrap_or_default(),
            instances: group
                .instances
                .unwrap_or_default()
                .into_iter()
                .map(|instance| GroupInstance {
                    id: instance.instance_id.unwrap_or_default(),
                    lifecycle: instance.lifecycle_state.map(|state| state.as_str().to_owned()).unwrap_or_default(),
                })
                .collect(),
        }))
}

/// SetDesiredCapacity to an absolute number, without waiting for a cooldown.
///
/// # Errors
/// When the call failed.
pub async fn set_desired(client: &Client, name: &str, desired: u32) -> Result<(), ApiFault> {
    client
        .set_desired_capacity()
        .auto_scaling_group_name(name)
        .desired_capacity(i32::try_from(desired).unwrap_or(i32::MAX))
        .honor_cooldown(false)
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("autoscaling:SetDesiredCapacity", error))
}

/// Terminates one instance, protected from scale-in or not, and lowers the desired capacity by it on demand; AWS refuses
/// that below the minimum, and replaces the instance where the group is short of one then
/// (API_TerminateInstanceInAutoScalingGroup, "Use instance scale-in protection").
///
/// # Errors
/// When the call failed.
pub async fn terminate(client: &Client, instance: &str, lowers: bool) -> Result<(), ApiFault> {
    client
        .terminate_instance_in_auto_scaling_group()
        .instance_id(instance)
        .should_decrement_desired_capacity(lowers)
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("autoscaling:TerminateInstanceInAutoScalingGroup", error))
}
