//! Auto Scaling groups and their instances, and what EC2 says of them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::model::Instance;
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
    /// Network interfaces that the tasks of an instance may have.
    pub interfaces: u32,
    /// Whether its instances ever register.
    pub registers: bool,
    /// Its instances.
    pub members: Vec<Member>,
    /// The most instances that there ever were at once.
    pub most: usize,
    /// The sum of all times that instances were there, in seconds, of those that are gone.
    pub instance_seconds: f64,
}

/// An instance of a group.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// `Pending` or `InService`.
    pub lifecycle: &'static str,
    /// Whether scale-in leaves it alone.
    pub protected: bool,
    /// Since when it is paid for.
    pub launched_at: Timestamp,
    /// Tags in EC2.
    pub tags: BTreeMap<String, String>,
}

impl Group {
    /// Instance-seconds until `now`.
    pub fn paid_seconds(&self, now: Timestamp) -> f64 {
        let living: f64 = self.members.iter().map(|member| now.duration_since(member.launched_at).as_secs_f64()).sum();
        self.instance_seconds + living
    }
}

impl Ecs {
    /// Makes a group without instances beyond its minimum.
    pub fn create_group(&mut self, name: &str, cluster: &str, bounds: (u32, u32), size: (u32, u32), now: Timestamp) {
        let (minimum, maximum) = bounds;
        self.groups.insert(
            name.into(),
            Group {
                name: name.into(),
                minimum,
                desired: minimum,
                maximum,
                cluster: cluster.into(),
                size,
                interfaces: 3,
                registers: true,
                members: Vec::new(),
                most: 0,
                instance_seconds: 0.0,
            },
        );
        self.reconcile(name, now);
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
        let ids: Vec<String> = self.groups.get(name).into_iter().flat_map(|group| &group.members).map(|member| member.id.clone()).collect();
        for id in ids {
            self.boot(name, &id, now);
            self.register(name, &id, now);
        }
    }

    /// Starts or ends instances until there are as many as desired.
    fn reconcile(&mut self, name: &str, now: Timestamp) {
        let Some(group) = self.groups.get(name) else { return };
        let (have, want) = (group.members.len(), group.desired as usize);
        for _ in have..want {
            self.counter += 1;
            let id = format!("i-{:017x}", self.counter);
            if let Some(group) = self.groups.get_mut(name) {
                group.members.push(Member {
                    id: id.clone(),
                    lifecycle: "Pending",
                    protected: false,
                    launched_at: now,
                    tags: BTreeMap::new(),
                });
                group.most = group.most.max(group.members.len());
            }
            let boot = self.settings.boot;
            self.later(now, boot, Due::Boot(name.into(), id));
        }
        for _ in want..have {
            // The oldest unprotected instance goes, whatever runs on it: as a group's own scale-in does.
            let victim = self
                .groups
                .get(name)
                .and_then(|group| group.members.iter().find(|member| !member.protected))
                .map(|member| member.id.clone());
            let Some(victim) = victim else { return };
            self.terminate(name, &victim, now);
        }
    }

    pub(super) fn boot(&mut self, group: &str, id: &str, now: Timestamp) {
        let Some(found) = self.groups.get_mut(group) else { return };
        let registers = found.registers;
        let Some(member) = found.members.iter_mut().find(|member| member.id == id) else { return };
        if member.lifecycle == "Pending" {
            member.lifecycle = "InService";
            if registers {
                let register = self.settings.register;
                self.later(now, register, Due::Register(group.into(), id.into()));
            }
        }
    }

    pub(super) fn register(&mut self, group: &str, id: &str, now: Timestamp) {
        let Some(found) = self.groups.get(group).filter(|group| group.members.iter().any(|member| member.id == id)) else {
            return;
        };
        let (cluster, size, interfaces) = (found.cluster.clone(), found.size, found.interfaces);
        if !self.instances.values().any(|instance| instance.ec2_id == id) {
            self.add_instance(&cluster, id, size, interfaces, now);
        }
    }

    /// Registers a container instance.
    pub fn add_instance(&mut self, cluster: &str, ec2_id: &str, size: (u32, u32), interfaces: u32, now: Timestamp) -> String {
        let id = self.id();
        let arn = self.arn(&format!("container-instance/{cluster}/{id}"));
        let number = self.counter;
        self.instances.insert(
            arn.clone(),
            Instance {
                arn: arn.clone(),
                cluster: cluster.into(),
                ec2_id: ec2_id.into(),
                private_address: format!("10.0.{}.{}", number / 250 % 250, number % 250 + 1),
                status: "ACTIVE".into(),
                connected: true,
                total: size,
                free: size,
                ports: BTreeSet::new(),
                interfaces,
                tasks: 0,
                tags: BTreeMap::new(),
                attributes: BTreeMap::from([("ecs.os-type".to_owned(), "linux".to_owned())]),
                registered_at: now,
                version: 1,
                next_port: 32768,
            },
        );
        self.tell_instance(&arn, now);
        self.place_waiting(now);
        arn
    }

    /// Ends an instance, with every task on it.
    pub fn terminate(&mut self, group: &str, id: &str, now: Timestamp) {
        if let Some(group) = self.groups.get_mut(group)
            && let Some(index) = group.members.iter().position(|member| member.id == id)
        {
            let member = group.members.remove(index);
            group.instance_seconds += now.duration_since(member.launched_at).as_secs_f64();
        }
        let gone: Vec<String> =
            self.instances.values().filter(|instance| instance.ec2_id == id).map(|instance| instance.arn.clone()).collect();
        for arn in gone {
            let on_it: Vec<String> = self
                .tasks
                .values()
                .filter(|task| task.instance.as_deref() == Some(&arn) && task.last_status != "STOPPED")
                .map(|task| task.arn.clone())
                .collect();
            for task in on_it {
                let reason = format!("Host EC2 (instance {id}) terminated.");
                self.end(&task, "TerminationNotice", &reason, None, None, now);
            }
            self.instances.remove(&arn);
        }
    }

    /// Answers a call of Auto Scaling's query API.
    ///
    /// # Errors
    /// As Auto Scaling answers them.
    pub fn autoscaling(&mut self, action: &str, form: &BTreeMap<String, String>, now: Timestamp) -> Result<String, ApiError> {
        self.advance(now);
        let invalid = |message: String| Err(ApiError::new("ValidationError", message));
        let result = match action {
            "DescribeAutoScalingGroups" => {
                let names: Vec<&String> =
                    form.iter().filter(|(key, _)| key.starts_with("AutoScalingGroupNames.member.")).map(|(_, name)| name).collect();
                let groups: String = self
                    .groups
                    .values()
                    .filter(|group| names.is_empty() || names.contains(&&group.name))
                    .map(describe)
                    .collect();
                format!("<DescribeAutoScalingGroupsResult><AutoScalingGroups>{groups}</AutoScalingGroups></DescribeAutoScalingGroupsResult>")
            }
            "SetDesiredCapacity" => {
                let name = form.get("AutoScalingGroupName").cloned().unwrap_or_default();
                let desired: u32 = form.get("DesiredCapacity").and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
                let Some(group) = self.groups.get_mut(&name) else {
                    return invalid("AutoScalingGroup name not found - null".into());
                };
                if desired > group.maximum {
                    return invalid(format!("New SetDesiredCapacity value {desired} is above max value {} for the AutoScalingGroup.", group.maximum));
                }
                if desired < group.minimum {
                    return invalid(format!("New SetDesiredCapacity value {desired} is below min value {} for the AutoScalingGroup.", group.minimum));
                }
                group.desired = desired;
                self.reconcile(&name, now);
                String::new()
            }
            "TerminateInstanceInAutoScalingGroup" => {
                let id = form.get("InstanceId").cloned().unwrap_or_default();
                let lower = form.get("ShouldDecrementDesiredCapacity").is_some_and(|flag| flag == "true");
                let owner = self.groups.values_mut().find(|group| group.members.iter().any(|member| member.id == id));
                let Some(group) = owner else {
                    return invalid(format!("Instance Id not found - No managed instance found for instance ID {id}"));
                };
                if lower {
                    if group.desired <= group.minimum {
                        return invalid("Currently, desiredSize equals minSize. Terminating instance without replacement will violate group's min size constraint.".into());
                    }
                    group.desired -= 1;
                }
                let name = group.name.clone();
                self.terminate(&name, &id, now);
                self.reconcile(&name, now);
                "<TerminateInstanceInAutoScalingGroupResult/>".into()
            }
            "SetInstanceProtection" => {
                let name = form.get("AutoScalingGroupName").cloned().unwrap_or_default();
                let protected = form.get("ProtectedFromScaleIn").is_some_and(|flag| flag == "true");
                let ids: Vec<String> =
                    form.iter().filter(|(key, _)| key.starts_with("InstanceIds.member.")).map(|(_, id)| id.clone()).collect();
                for member in self.groups.get_mut(&name).into_iter().flat_map(|group| &mut group.members) {
                    if ids.contains(&member.id) {
                        member.protected = protected;
                    }
                }
                "<SetInstanceProtectionResult/>".into()
            }
            _ => return Err(ApiError::new("InvalidAction", format!("{action} is not simulated"))),
        };
        Ok(format!("<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">{result}<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></{action}Response>"))
    }

    /// Answers a read of EC2's query API.
    ///
    /// # Errors
    /// As EC2 answers them.
    pub fn ec2(&mut self, action: &str, form: &BTreeMap<String, String>, now: Timestamp) -> Result<String, ApiError> {
        self.advance(now);
        let xmlns = "xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"";
        match action {
            "DescribeInstances" => {
                let mut items = String::new();
                for id in form.iter().filter(|(key, _)| key.starts_with("InstanceId.")).map(|(_, id)| id) {
                    let Some(instance) = self.instances.values().find(|instance| instance.ec2_id == *id) else {
                        return Err(ApiError::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist")));
                    };
                    let member = self.groups.values().flat_map(|group| &group.members).find(|member| member.id == *id);
                    let tags: String = member
                        .into_iter()
                        .flat_map(|member| &member.tags)
                        .map(|(key, value)| format!("<item><key>{}</key><value>{}</value></item>", escape(key), escape(value)))
                        .collect();
                    items += &format!(
                        "<item><instanceId>{id}</instanceId><instanceState><code>16</code><name>running</name></instanceState>\
                         <privateIpAddress>{}</privateIpAddress><ipAddress>{}</ipAddress><tagSet>{tags}</tagSet></item>",
                        instance.private_address,
                        instance.private_address.replacen("10.0.", "54.0.", 1),
                    );
                }
                Ok(format!("<DescribeInstancesResponse {xmlns}><requestId>0</requestId><reservationSet><item><reservationId>r-1</reservationId><instancesSet>{items}</instancesSet></item></reservationSet></DescribeInstancesResponse>"))
            }
            "DescribeNetworkInterfaces" => {
                let id = form.get("NetworkInterfaceId.1").cloned().unwrap_or_default();
                let task = self.tasks.values().find(|task| task.interface.as_ref().is_some_and(|(interface, _)| *interface == id));
                let Some((task, (_, address))) = task.and_then(|task| Some((task, task.interface.as_ref()?))) else {
                    return Err(ApiError::new("InvalidNetworkInterfaceID.NotFound", format!("The networkInterface ID '{id}' does not exist")));
                };
                let public = if task.public {
                    format!("<association><publicIp>{}</publicIp></association>", address.replacen("10.1.", "54.1.", 1))
                } else {
                    String::new()
                };
                Ok(format!("<DescribeNetworkInterfacesResponse {xmlns}><requestId>0</requestId><networkInterfaceSet><item><networkInterfaceId>{id}</networkInterfaceId><privateIpAddress>{address}</privateIpAddress>{public}</item></networkInterfaceSet></DescribeNetworkInterfacesResponse>"))
            }
            _ => Err(ApiError::new("InvalidAction", format!("{action} is not simulated"))),
        }
    }
}

fn describe(group: &Group) -> String {
    let members: String = group
        .members
        .iter()
        .map(|member| {
            format!(
                "<member><InstanceId>{}</InstanceId><AvailabilityZone>a</AvailabilityZone><LifecycleState>{}</LifecycleState>\
                 <HealthStatus>Healthy</HealthStatus><ProtectedFromScaleIn>{}</ProtectedFromScaleIn></member>",
                member.id, member.lifecycle, member.protected
            )
        })
        .collect();
    format!(
        "<member><AutoScalingGroupName>{}</AutoScalingGroupName><MinSize>{}</MinSize><MaxSize>{}</MaxSize>\
         <DesiredCapacity>{}</DesiredCapacity><DefaultCooldown>300</DefaultCooldown><AvailabilityZones><member>a</member></AvailabilityZones>\
         <HealthCheckType>EC2</HealthCheckType><HealthCheckGracePeriod>0</HealthCheckGracePeriod>\
         <CreatedTime>2026-01-01T00:00:00Z</CreatedTime><Instances>{members}</Instances></member>",
        group.name, group.minimum, group.maximum, group.desired
    )
}
