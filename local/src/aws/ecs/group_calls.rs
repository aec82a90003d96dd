//! The calls of Auto Scaling's query API.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::activities::Activity;
use super::groups::Group;
use super::{ApiError, Ecs};
use crate::aws::escape;

/// Parameters of the query protocol.
struct Form<'a>(&'a BTreeMap<String, String>);

impl<'a> Form<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let parse = |text: &str| text.parse().map_err(|_| fault(format!("{name} is no capacity: {text}")));
        self.text(name).map(parse).transpose()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|text| text == "true")
    }

    /// A list, in order.
    fn members(&self, name: &str) -> Vec<&'a str> {
        (1..).map_while(|index| self.text(&format!("{name}.member.{index}"))).collect()
    }
}

fn fault(message: impl Into<String>) -> ApiError {
    ApiError::new("ValidationError", message)
}

impl Ecs {
    /// Answers a call of Auto Scaling's query API.
    ///
    /// # Errors
    /// As Auto Scaling answers them.
    pub fn autoscaling(
        &mut self,
        action: &str,
        form: &BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<String, ApiError> {
        self.advance(now);
        let form = Form(form);
        let result = match action {
            "DescribeAutoScalingGroups" => self.describe_groups(&form)?,
            "DescribeScalingActivities" => self.describe_activities(&form)?,
            "SetDesiredCapacity" => self.set_desired_capacity(&form, now)?,
            "TerminateInstanceInAutoScalingGroup" => self.terminate_in_group(&form, now)?,
            "SetInstanceProtection" => self.set_instance_protection(&form)?,
            "UpdateAutoScalingGroup" => self.update_group(&form, now)?,
            _ => return Err(ApiError::new("InvalidAction", format!("{action} is not simulated"))),
        };
        Ok(format!(
            "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">{result}\
             <ResponseMetadata><RequestId>00000000-0000-4000-8000-000000000000</RequestId></ResponseMetadata></{action}Response>"
        ))
    }

    fn group_of(&mut self, form: &Form<'_>) -> Result<&mut Group, ApiError> {
        let name = form.text("AutoScalingGroupName").unwrap_or_default();
        self.groups
            .get_mut(name)
            .ok_or_else(|| fault(format!("AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")))
    }

    /// API_DescribeAutoScalingGroups: 50 a page, 100 at most; unknown names are left out.
    fn describe_groups(&self, form: &Form<'_>) -> Result<String, ApiError> {
        let names = form.members("AutoScalingGroupNames");
        let most = form.number("MaxRecords")?.unwrap_or(50);
        if !(1..=100).contains(&most) {
            return Err(fault("MaxRecords must be between 1 and 100."));
        }
        let after = form.text("NextToken").unwrap_or_default();
        if !after.is_empty() && !self.groups.contains_key(after) {
            return Err(bad_token());
        }
        let wanted =
            |group: &&Group| (names.is_empty() || names.contains(&group.name.as_str())) && group.name.as_str() > after;
        let mut rest = self.groups.values().filter(wanted);
        let page: Vec<&Group> = rest.by_ref().take(most as usize).collect();
        let next = match (rest.next(), page.last()) {
            (Some(_), Some(last)) => format!("<NextToken>{}</NextToken>", escape(&last.name)),
            _ => String::new(),
        };
        let groups: String = page.iter().map(|group| group.describe(&self.region, &self.account)).collect();
        Ok(format!(
            "<DescribeAutoScalingGroupsResult><AutoScalingGroups>{groups}</AutoScalingGroups>{next}</DescribeAutoScalingGroupsResult>"
        ))
    }

    /// API_DescribeScalingActivities: newest first, a hundred a page.
    fn describe_activities(&mut self, form: &Form<'_>) -> Result<String, ApiError> {
        let most = form.number("MaxRecords")?.unwrap_or(100);
        if !(1..=100).contains(&most) {
            return Err(fault("MaxRecords must be between 1 and 100."));
        }
        let from: usize = form.text("NextToken").map_or(Ok(0), |token| token.parse()).map_err(|_| bad_token())?;
        let group = self.group_of(form)?;
        let mut rest = group.activities.iter().skip(from);
        let page = rest.by_ref().take(most as usize);
        let page: String = page.map(|it| format!("<member>{}</member>", it.describe(&group.name))).collect();
        let next = rest.next().map(|_| format!("<NextToken>{}</NextToken>", from + most as usize));
        Ok(format!(
            "<DescribeScalingActivitiesResult><Activities>{page}</Activities>{}</DescribeScalingActivitiesResult>",
            next.unwrap_or_default()
        ))
    }

    /// API_SetDesiredCapacity: within the group's bounds; the cooldown applies only on request.
    fn set_desired_capacity(&mut self, form: &Form<'_>, now: Timestamp) -> Result<String, ApiError> {
        let desired = form.number("DesiredCapacity")?.ok_or_else(|| fault("DesiredCapacity is missing."))?;
        let honours = form.flag("HonorCooldown") == Some(true);
        let group = self.group_of(form)?;
        within(desired, group)?;
        let cools = group.scaled_at.is_some_and(|at| now.duration_since(at) < group.cooldown);
        if honours && cools {
            let message = "Scaling activity is in progress and blocks this action";
            return Err(ApiError::new("ScalingActivityInProgress", message));
        }
        group.desired = desired;
        let name = group.name.clone();
        self.reconcile(&name, now);
        Ok(String::new())
    }

    /// API_TerminateInstanceInAutoScalingGroup: on request it lowers the desired capacity, not below the minimum;
    /// otherwise the group replaces the instance.
    fn terminate_in_group(&mut self, form: &Form<'_>, now: Timestamp) -> Result<String, ApiError> {
        let id = form.text("InstanceId").unwrap_or_default().to_owned();
        let lower = form
            .flag("ShouldDecrementDesiredCapacity")
            .ok_or_else(|| fault("ShouldDecrementDesiredCapacity is missing."))?;
        let found = self.member(&id).map(|member| (member.is_leaving(), member.counts(), member.weight));
        let name = self.group_of_instance(&id).map(str::to_owned);
        let (Some((leaves, counts, weight)), Some(name)) = (found, name) else {
            return Err(fault(format!("Instance Id not found - No managed instance found for instance ID: {id}")));
        };
        if leaves {
            let message = format!("Instance {id} is already terminating.");
            return Err(ApiError::new("ScalingActivityInProgress", message));
        }
        if let Some(group) = self.groups.get_mut(&name).filter(|_| lower && counts) {
            if group.desired < group.minimum + weight {
                return Err(fault(format!(
                    "Currently, desiredSize equals minSize ({}). Terminating instance without replacement will violate \
                     group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's \
                     min size.",
                    group.minimum
                )));
            }
            group.desired -= weight;
        }
        self.begin_termination(
            &id,
            &format!("instance {id} was taken out of service in response to a user request."),
            now,
        );
        self.reconcile(&name, now);
        if lower {
            self.rebalance_later(&name, now);
        }
        let of_instance = |it: &&Activity| it.instance.as_deref() == Some(&id);
        let activity = self.groups.get(&name).and_then(|group| group.activities.iter().find(of_instance));
        Ok(format!(
            "<TerminateInstanceInAutoScalingGroupResult><Activity>{}</Activity></TerminateInstanceInAutoScalingGroupResult>",
            activity.map(|activity| activity.describe(&name)).unwrap_or_default()
        ))
    }

    /// API_SetInstanceProtection: up to 50 instances of the group.
    fn set_instance_protection(&mut self, form: &Form<'_>) -> Result<String, ApiError> {
        let ids = form.members("InstanceIds");
        if ids.is_empty() || ids.len() > 50 {
            return Err(fault("InstanceIds: 1 to 50"));
        }
        let protected = form.flag("ProtectedFromScaleIn").ok_or_else(|| fault("ProtectedFromScaleIn is missing."))?;
        let group = self.group_of(form)?;
        if let Some(id) = ids.iter().find(|id| !group.members.iter().any(|member| member.id == **id)) {
            return Err(fault(format!("The instance {id} is not part of Auto Scaling group {}.", group.name)));
        }
        for member in group.members.iter_mut().filter(|member| ids.contains(&member.id.as_str())) {
            member.protected = protected;
        }
        Ok("<SetInstanceProtectionResult/>".to_owned())
    }

    /// API_UpdateAutoScalingGroup: a desired capacity outside of new bounds moves to the nearer one.
    fn update_group(&mut self, form: &Form<'_>, now: Timestamp) -> Result<String, ApiError> {
        let [minimum, maximum, desired, cooldown] =
            ["MinSize", "MaxSize", "DesiredCapacity", "DefaultCooldown"].map(|name| form.number(name));
        let (minimum, maximum, desired, cooldown) = (minimum?, maximum?, desired?, cooldown?);
        let protects_new = form.flag("NewInstancesProtectedFromScaleIn");
        let group = self.group_of(form)?;
        let mut changed = Group {
            minimum: minimum.unwrap_or(group.minimum),
            maximum: maximum.unwrap_or(group.maximum),
            protects_new: protects_new.unwrap_or(group.protects_new),
            cooldown: cooldown.map_or(group.cooldown, |seconds| SignedDuration::from_secs(seconds.into())),
            ..group.clone()
        };
        if changed.minimum > changed.maximum {
            return Err(fault("Max bound, must be greater than or equal to min bound"));
        }
        changed.desired = desired.unwrap_or(group.desired.clamp(changed.minimum, changed.maximum));
        within(changed.desired, &changed)?;
        let name = changed.name.clone();
        *group = changed;
        self.reconcile(&name, now);
        Ok(String::new())
    }
}

fn bad_token() -> ApiError {
    ApiError::new("InvalidNextToken", "The NextToken value is not valid.")
}

fn within(desired: u32, group: &Group) -> Result<(), ApiError> {
    let (word, bound) = match desired {
        desired if desired > group.maximum => ("above max", group.maximum),
        desired if desired < group.minimum => ("below min", group.minimum),
        _ => return Ok(()),
    };
    Err(fault(format!("New SetDesiredCapacity value {desired} is {word} value {bound} for the AutoScalingGroup.")))
}
