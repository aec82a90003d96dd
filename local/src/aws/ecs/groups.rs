//! Auto Scaling groups.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::ec2::State;
use super::instances::Registration;
use super::{ApiError, Due, Ecs};
use crate::aws::escape;

/// A group.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The least desired capacity.
    pub minimum: u32,
    /// The desired capacity.
    pub desired: u32,
    /// The most desired capacity.
    pub maximum: u32,
    /// Where its instances register.
    pub cluster: String,
    /// CPU units and MiB of an instance, as it registers.
    pub size: (u32, u32),
    /// GPUs of an instance.
    pub gpus: u32,
    /// Network interfaces that the tasks of an instance may have.
    pub interfaces: u32,
    /// Whether its instances ever register.
    pub registers: bool,
    /// Whether its instances are born with scale-in protection.
    pub protects_new: bool,
    /// Attributes that its container instances register with.
    pub attributes: BTreeMap<String, String>,
    /// Tags of the group; its instances get them too.
    pub tags: BTreeMap<String, String>,
    /// How long after a scaling activity a call that honours it has to wait.
    pub cooldown: SignedDuration,
    /// Its instances.
    pub members: Vec<Member>,
    /// The most instances that there ever were at once, those not counted that were ending.
    pub most: usize,
    /// The sum of all times that instances were there, in seconds, of those that are gone.
    pub instance_seconds: f64,
    created_at: Timestamp,
    scaled_at: Option<Timestamp>,
}

/// An instance of a group.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// `Pending`, `InService` or `Terminating`.
    pub lifecycle: &'static str,
    /// Whether scale-in leaves it alone.
    pub protected: bool,
    /// Since when it is paid for.
    pub launched_at: Timestamp,
    zone: String,
    kind: String,
}

impl Member {
    fn counts(&self) -> bool {
        self.lifecycle != "Terminating"
    }
}

impl Group {
    /// Instance-seconds until `now`.
    pub fn paid_seconds(&self, now: Timestamp) -> f64 {
        let living: f64 = self.members.iter().map(|member| now.duration_since(member.launched_at).as_secs_f64()).sum();
        self.instance_seconds + living
    }

    /// The instances that count towards the desired capacity.
    pub fn living(&self) -> usize {
        self.members.iter().filter(|member| member.counts()).count()
    }

    /// Which instance scale-in takes: of the zone with the most, the oldest without protection ("Default termination
    /// policy"). Whatever runs on it.
    fn victim(&self) -> Option<String> {
        let living = || self.members.iter().filter(|member| member.counts());
        let in_zone = |zone: &str| living().filter(|member| member.zone == zone).count();
        let crowded = living().filter(|member| !member.protected).map(|member| in_zone(&member.zone)).max()?;
        living().find(|member| !member.protected && in_zone(&member.zone) == crowded).map(|member| member.id.clone())
    }

    fn describe(&self, region: &str, account: &str) -> String {
        let members: String = self
            .members
            .iter()
            .map(|member| {
                format!(
                    "<member><InstanceId>{}</InstanceId><InstanceType>{}</InstanceType><AvailabilityZone>{}</AvailabilityZone>\
                     <LifecycleState>{}</LifecycleState><HealthStatus>Healthy</HealthStatus>\
                     <ProtectedFromScaleIn>{}</ProtectedFromScaleIn></member>",
                    member.id, member.kind, member.zone, member.lifecycle, member.protected
                )
            })
            .collect();
        let name = escape(&self.name);
        let tags: String = self
            .tags
            .iter()
            .map(|(key, value)| {
                format!(
                    "<member><ResourceId>{name}</ResourceId><ResourceType>auto-scaling-group</ResourceType><Key>{}</Key>\
                     <Value>{}</Value><PropagateAtLaunch>true</PropagateAtLaunch></member>",
                    escape(key),
                    escape(value)
                )
            })
            .collect();
        format!(
            "<member><AutoScalingGroupName>{name}</AutoScalingGroupName>\
             <AutoScalingGroupARN>arn:aws:autoscaling:{region}:{account}:autoScalingGroup:0:autoScalingGroupName/{name}</AutoScalingGroupARN>\
             <MinSize>{}</MinSize><MaxSize>{}</MaxSize><DesiredCapacity>{}</DesiredCapacity>\
             <DefaultCooldown>{}</DefaultCooldown>\
             <AvailabilityZones><member>{region}a</member><member>{region}b</member></AvailabilityZones>\
             <HealthCheckType>EC2</HealthCheckType><HealthCheckGracePeriod>300</HealthCheckGracePeriod>\
             <CreatedTime>{}</CreatedTime><NewInstancesProtectedFromScaleIn>{}</NewInstancesProtectedFromScaleIn>\
             <Instances>{members}</Instances><Tags>{tags}</Tags></member>",
            self.minimum,
            self.maximum,
            self.desired,
            self.cooldown.as_secs(),
            self.created_at,
            self.protects_new,
        )
    }
}

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
    /// Makes a group, with its minimum as desired capacity.
    pub fn create_group(&mut self, name: &str, cluster: &str, bounds: (u32, u32), size: (u32, u32), now: Timestamp) {
        let (minimum, maximum) = bounds;
        let group = Group {
            name: name.to_owned(),
            minimum,
            desired: minimum,
            maximum,
            cluster: cluster.to_owned(),
            size,
            gpus: 0,
            interfaces: 3,
            registers: true,
            protects_new: false,
            attributes: BTreeMap::new(),
            tags: BTreeMap::new(),
            cooldown: SignedDuration::from_secs(300),
            members: Vec::new(),
            most: 0,
            instance_seconds: 0.0,
            created_at: now,
            scaled_at: None,
        };
        self.groups.insert(name.to_owned(), group);
        self.reconcile(name, now);
    }

    /// A group.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The name of the group that an EC2 instance is in.
    pub(in crate::aws) fn group_of_instance(&self, ec2_id: &str) -> Option<&str> {
        self.machines.get(ec2_id)?.group.as_deref()
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// A group, for tests that change what nobody can change from outside.
    pub fn group_mut(&mut self, name: &str) -> Option<&mut Group> {
        self.groups.get_mut(name)
    }

    /// Sets a group's desired capacity as its owner would, and lets its instances be there at once.
    pub fn fill_group(&mut self, name: &str, desired: u32, now: Timestamp) {
        if let Some(group) = self.groups.get_mut(name) {
            group.desired = desired;
        }
        self.reconcile(name, now);
        let members = self.groups.get(name).into_iter().flat_map(|group| &group.members);
        let ids: Vec<String> = members.filter(|member| member.counts()).map(|member| member.id.clone()).collect();
        for id in ids {
            self.boot(&id, now);
            self.register(&id, now);
        }
    }

    fn member(&mut self, id: &str) -> Option<&mut Member> {
        let group = self.machines.get(id)?.group.clone()?;
        self.groups.get_mut(&group)?.members.iter_mut().find(|member| member.id == id)
    }

    /// Starts or ends instances until there are as many as desired.
    fn reconcile(&mut self, name: &str, now: Timestamp) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (have, want) = (group.living(), group.desired as usize);
        if have != want {
            group.scaled_at = Some(now);
        }
        for _ in have..want {
            self.launch_member(name, now);
        }
        for _ in want..have {
            let Some(victim) = self.groups.get(name).and_then(Group::victim) else { return };
            self.begin_termination(&victim, now);
        }
    }

    fn launch_member(&mut self, name: &str, now: Timestamp) {
        let id = self.hex_id("i");
        let machine = self.machine(&id, Some(name), now).clone();
        let Some(group) = self.groups.get_mut(name) else { return };
        group.members.push(Member {
            id: id.clone(),
            lifecycle: "Pending",
            protected: group.protects_new,
            launched_at: now,
            zone: machine.zone,
            kind: machine.kind,
        });
        group.most = group.most.max(group.living());
        self.later(now, self.settings.boot, Due::Boot(id));
    }

    pub(super) fn boot(&mut self, id: &str, now: Timestamp) {
        let Some(member) = self.member(id).filter(|member| member.lifecycle == "Pending") else { return };
        member.lifecycle = "InService";
        if let Some(machine) = self.machines.get_mut(id) {
            machine.state = State::Running;
        }
        self.later(now, self.settings.register, Due::Register(id.to_owned()));
    }

    pub(super) fn register(&mut self, id: &str, now: Timestamp) {
        if self.member(id).is_none_or(|member| member.lifecycle != "InService") || self.instance_of(id).is_some() {
            return;
        }
        let name = self.machines.get(id).and_then(|machine| machine.group.as_ref());
        let Some(group) = name.and_then(|name| self.groups.get(name)).filter(|group| group.registers) else { return };
        let provider = self.providers.iter().find(|(_, provider)| provider.group == group.name);
        let registration = Registration {
            ec2_id: id.to_owned(),
            size: group.size,
            gpus: group.gpus,
            interfaces: group.interfaces,
            attributes: group.attributes.clone(),
            tags: BTreeMap::new(),
            provider: provider.map(|(name, _)| name.clone()),
        };
        let cluster = group.cluster.clone();
        self.register_instance(&cluster, registration, now);
    }

    /// An instance is told to end. Its container agent stops at once, the tasks on it when it is gone.
    fn begin_termination(&mut self, id: &str, now: Timestamp) {
        if let Some(member) = self.member(id) {
            member.lifecycle = "Terminating";
        }
        if let Some(machine) = self.machines.get_mut(id) {
            machine.state = State::ShuttingDown;
        }
        if let Some(arn) = self.instance_of(id).map(|instance| instance.arn.clone()) {
            self.connect_instance(&arn, false, now);
        }
        self.later(now, self.settings.terminate, Due::Gone(id.to_owned()));
    }

    /// An instance is gone, with every task on it.
    pub(super) fn gone(&mut self, id: &str, now: Timestamp) {
        let Some(machine) = self.machines.get_mut(id).filter(|machine| machine.state != State::Terminated) else {
            return;
        };
        machine.state = State::Terminated;
        let group = machine.group.clone();
        if let Some(group) = group.as_ref().and_then(|name| self.groups.get_mut(name))
            && let Some(index) = group.members.iter().position(|member| member.id == id)
        {
            let member = group.members.remove(index);
            group.instance_seconds += now.duration_since(member.launched_at).as_secs_f64();
        }
        // "If you terminate a running container instance, Amazon ECS automatically deregisters the instance."
        if let Some(arn) = self.instance_of(id).map(|instance| instance.arn.clone()) {
            self.deregister(&arn, &format!("Host EC2 (instance {id}) terminated."), now);
        }
        // "Terminated instances remain visible after termination for approximately one hour" (API_TerminateInstances).
        self.later(now, std::time::Duration::from_secs(3600), Due::ForgetMachine(id.to_owned()));
        if let Some(group) = group {
            self.reconcile(&group, now);
        }
    }

    /// An instance dies without notice, as in a Spot reclaim or a fault; its group replaces it.
    pub fn kill_instance(&mut self, ec2_id: &str, now: Timestamp) {
        self.gone(ec2_id, now);
    }

    /// Managed scaling raises the group of a capacity provider to what the tasks that wait for it need.
    pub(super) fn scale(&mut self, provider: &str, now: Timestamp) {
        let (waiting, (cpu, memory)) = self.waiting_for(provider);
        let Some(found) = self.providers.get_mut(provider) else { return };
        found.scaling = false;
        let name = found.group.clone();
        let Some(group) = self.groups.get_mut(&name).filter(|_| waiting > 0) else { return };
        let booting = group.members.iter().filter(|member| member.lifecycle == "Pending").count() as u32;
        let needed =
            cpu.div_ceil(group.size.0.max(1)).max(memory.div_ceil(group.size.1.max(1))).saturating_sub(booting);
        group.desired = (group.desired + needed).min(group.maximum);
        let more = group.desired < group.maximum;
        self.reconcile(&name, now);
        // It looks again while tasks wait, since what was sized by sums need not fit.
        if more && let Some(found) = self.providers.get_mut(provider) {
            found.scaling = true;
            let again = self.settings.managed_scaling + self.settings.boot + self.settings.register;
            self.later(now, again.max(std::time::Duration::from_secs(1)), Due::Scale(provider.to_owned()));
        }
    }

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

    /// API_SetDesiredCapacity: within the group's bounds; cooldowns count only where the call says so.
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

    /// API_TerminateInstanceInAutoScalingGroup: the desired capacity goes down with it on demand, not below the minimum;
    /// without that, the group replaces the instance.
    fn terminate_in_group(&mut self, form: &Form<'_>, now: Timestamp) -> Result<String, ApiError> {
        let id = form.text("InstanceId").unwrap_or_default().to_owned();
        let lower = form
            .flag("ShouldDecrementDesiredCapacity")
            .ok_or_else(|| fault("ShouldDecrementDesiredCapacity is missing."))?;
        let found = self.member(&id).map(|member| member.lifecycle);
        let name = self.machines.get(&id).and_then(|machine| machine.group.clone());
        let (Some(lifecycle), Some(name)) = (found, name) else {
            return Err(fault(format!("Instance Id not found - No managed instance found for instance ID: {id}")));
        };
        if lifecycle == "Terminating" {
            let message = format!("Instance {id} is already terminating.");
            return Err(ApiError::new("ScalingActivityInProgress", message));
        }
        if let Some(group) = self.groups.get_mut(&name).filter(|_| lower) {
            if group.desired <= group.minimum {
                return Err(fault(format!(
                    "Currently, desiredSize equals minSize ({}). Terminating instance without replacement will violate \
                     group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's \
                     min size.",
                    group.minimum
                )));
            }
            group.desired -= 1;
        }
        self.begin_termination(&id, now);
        self.reconcile(&name, now);
        let activity = self.uuid();
        Ok(format!(
            "<TerminateInstanceInAutoScalingGroupResult><Activity><ActivityId>{activity}</ActivityId>\
             <AutoScalingGroupName>{}</AutoScalingGroupName><Description>Terminating EC2 instance: {id}</Description>\
             <Cause>At {now} instance {id} was taken out of service in response to a user request.</Cause>\
             <StartTime>{now}</StartTime><StatusCode>InProgress</StatusCode><Progress>0</Progress></Activity>\
             </TerminateInstanceInAutoScalingGroupResult>",
            escape(&name)
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

fn within(desired: u32, group: &Group) -> Result<(), ApiError> {
    let (word, bound) = match desired {
        desired if desired > group.maximum => ("above max", group.maximum),
        desired if desired < group.minimum => ("below min", group.minimum),
        _ => return Ok(()),
    };
    Err(fault(format!("New SetDesiredCapacity value {desired} is {word} value {bound} for the AutoScalingGroup.")))
}
