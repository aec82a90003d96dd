//! The behaviour of Auto Scaling groups: instances are launched, serve, and are terminated ("Instance lifecycle").

use std::time::Duration;

use jiff::Timestamp;

use super::ec2::State;
use super::groups::Member;
use super::instances::Registration;
use super::{Clock, Due, Ecs};

/// Why an instance ended, with EC2's code (API_StateReason).
const BY_USER: &str = "Client.UserInitiatedShutdown";
const BY_FAULT: &str = "Client.InstanceInitiatedShutdown";
const BY_SPOT: &str = "Server.SpotInstanceTermination";

impl Ecs {
    /// Sets a group's desired capacity, and lets its instances register at once.
    pub fn fill_group(&mut self, name: &str, desired: u32, now: Timestamp) {
        if let Some(group) = self.groups.get_mut(name) {
            group.desired = desired;
        }
        self.reconcile(name, now);
        let members = self.groups.get(name).into_iter().flat_map(|group| &group.members);
        let ids: Vec<String> = members.filter(|member| member.counts()).map(|member| member.id.clone()).collect();
        for id in ids {
            self.boot(&id, now);
            self.proceed(&id, now);
            self.register(&id, now);
        }
    }

    /// Puts instances into a group's warm pool, in a state like `Warmed:Stopped` ("Warm pools for Amazon EC2 Auto
    /// Scaling"). The next instances of the group are taken from there.
    pub fn fill_warm_pool(&mut self, name: &str, count: usize, lifecycle: &'static str, now: Timestamp) {
        for _ in 0..count {
            let Some(id) = self.new_member(name, None, lifecycle, now) else { return };
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.state = if lifecycle == "Warmed:Running" { State::Running } else { State::Stopped };
            }
        }
    }

    /// Launches or terminates instances until the capacity is the desired one. With weights it may exceed it by part of
    /// an instance; an instance is never terminated for a part ("Configure instance weights").
    pub(super) fn reconcile(&mut self, name: &str, now: Timestamp) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (have, want) = (group.capacity(), group.desired);
        let process = if have < want { "Launch" } else { "Terminate" };
        if have == want || group.suspended.contains(process) {
            return;
        }
        if have < want
            && let Some(message) = group.cannot_launch.clone()
        {
            if !std::mem::replace(&mut group.retrying, true) {
                self.fail_activity(name, message, now);
                let pause = self.settings.launch_retry.max(Duration::from_secs(1));
                self.later(now, pause, Due::Retry(name.to_owned()));
            }
            return;
        }
        group.scaled_at = Some(now);
        while self.groups.get(name).is_some_and(|group| group.capacity() < want) {
            self.launch_member(name, None, now);
        }
        while let Some(victim) =
            self.groups.get(name).and_then(|group| group.victim(group.capacity().checked_sub(want)?))
        {
            self.begin_termination(&victim, "an instance was taken out of service to shrink the capacity.", now);
        }
    }

    /// A group retries the launches that failed.
    pub(super) fn retry(&mut self, name: &str, now: Timestamp) {
        if let Some(group) = self.groups.get_mut(name) {
            group.retrying = false;
        }
        self.reconcile(name, now);
    }

    /// An instance from the warm pool, or a new one, in the zone with the fewest or the given one.
    fn launch_member(&mut self, name: &str, zone: Option<String>, now: Timestamp) {
        let warm = self.groups.get_mut(name).and_then(|group| group.members.iter_mut().find(|member| member.is_warm()));
        let id = match warm {
            Some(member) => {
                member.lifecycle = "Pending";
                Some(member.id.clone())
            }
            None => self.new_member(name, zone, "Pending", now),
        };
        let (Some(id), Some(group)) = (id, self.groups.get_mut(name)) else { return };
        group.most = group.most.max(group.living());
        let cause = "an instance was started in response to a difference between desired and actual capacity.";
        self.begin_activity(name, "Launching a new", &id, cause, now);
        self.later(now, self.settings.boot, Due::Boot(id));
    }

    fn new_member(
        &mut self,
        name: &str,
        zone: Option<String>,
        lifecycle: &'static str,
        now: Timestamp,
    ) -> Option<String> {
        let id = self.hex_id("i");
        let mut machine = self.new_machine(now);
        let group = self.groups.get_mut(name)?;
        let kind = group.next_kind();
        group.launched += 1;
        let zone = zone.or_else(|| group.emptiest_zone()).unwrap_or_default();
        let registers = group.broken == 0;
        group.broken = group.broken.saturating_sub(1);
        group.members.push(Member {
            id: id.clone(),
            lifecycle,
            protected: group.protects_new,
            launched_at: now,
            zone: zone.clone(),
            weight: group.weight_of(&kind),
            registers,
            kind: kind.clone(),
        });
        machine.kind = kind.name;
        machine.zone = zone;
        machine.state = State::Pending;
        machine.spot = group.spot;
        machine.tags.clone_from(&group.tags);
        machine.tags.insert("aws:autoscaling:groupName".to_owned(), name.to_owned());
        machine.group = Some(name.to_owned());
        self.machines.insert(id.clone(), machine);
        Some(id)
    }

    /// An instance has booted. It may register while a lifecycle hook still holds it.
    pub(super) fn boot(&mut self, id: &str, now: Timestamp) {
        let hook = self.machines.get(id).and_then(|machine| self.groups.get(machine.group.as_ref()?)?.launch_hook);
        let Some(member) = self.member(id).filter(|member| member.lifecycle == "Pending") else { return };
        member.lifecycle = "Pending:Wait";
        if let Some(machine) = self.machines.get_mut(id) {
            machine.state = State::Running;
        }
        match hook {
            Some(hook) => self.later(now, hook, Due::Proceed(id.to_owned())),
            None => self.proceed(id, now),
        }
        self.later(now, self.settings.register, Due::Register(id.to_owned()));
    }

    /// A lifecycle hook releases an instance.
    pub(super) fn proceed(&mut self, id: &str, now: Timestamp) {
        match self.member(id).map(|member| (member.lifecycle, &mut member.lifecycle)) {
            Some(("Pending:Wait", lifecycle)) => {
                *lifecycle = "InService";
                if let Some(group) = self.group_of_instance(id).map(str::to_owned) {
                    self.end_activity(&group, id, now);
                }
            }
            Some(("Terminating:Wait", lifecycle)) => {
                *lifecycle = "Terminating:Proceed";
                self.shut_down(id, now);
            }
            _ => {}
        }
    }

    pub(super) fn register(&mut self, id: &str, now: Timestamp) {
        let Some(member) = self.member(id) else { return };
        let comes = member.registers && !member.is_leaving() && !member.is_warm() && member.lifecycle != "Pending";
        let size = member.kind.size;
        let Some(group) = self.group_of_instance(id).and_then(|name| self.groups.get(name)) else { return };
        if !comes || !group.registers || self.instance_of(id).is_some() {
            return;
        }
        let provider = self.providers.iter().find(|(_, provider)| provider.group == group.name);
        let registration = Registration {
            ec2_id: id.to_owned(),
            size,
            gpus: group.gpus,
            interfaces: group.interfaces,
            attributes: group.attributes.clone(),
            tags: std::collections::BTreeMap::new(),
            provider: provider.map(|(name, _)| name.clone()),
        };
        let cluster = group.cluster.clone();
        self.register_instance(&cluster, registration, now);
    }

    /// Puts an instance in standby: it keeps running and accepting tasks, but no longer counts. The desired capacity is
    /// lowered with it, or the group replaces it (API_EnterStandby).
    pub fn enter_standby(&mut self, id: &str, lowers: bool, now: Timestamp) {
        let Some(member) = self.member(id).filter(|member| member.lifecycle == "InService") else { return };
        member.lifecycle = "Standby";
        let weight = member.weight;
        let Some(group) = self.group_of_instance(id).map(str::to_owned) else { return };
        if let Some(group) = self.groups.get_mut(&group).filter(|_| lowers) {
            group.desired = group.desired.saturating_sub(weight);
        }
        self.reconcile(&group, now);
    }

    /// Returns an instance from standby to service by way of `Pending`; the desired capacity is raised with it, at most
    /// to the maximum (API_ExitStandby).
    pub fn exit_standby(&mut self, id: &str, now: Timestamp) {
        let Some(member) = self.member(id).filter(|member| member.lifecycle == "Standby") else { return };
        member.lifecycle = "Pending:Wait";
        let weight = member.weight;
        let Some(name) = self.group_of_instance(id).map(str::to_owned) else { return };
        if let Some(group) = self.groups.get_mut(&name) {
            group.desired = (group.desired + weight).min(group.maximum);
            group.most = group.most.max(group.living());
        }
        self.proceed(id, now);
        self.reconcile(&name, now);
    }

    /// Begins to terminate an instance. A lifecycle hook may hold it for a while.
    pub(super) fn begin_termination(&mut self, id: &str, cause: &str, now: Timestamp) {
        let Some(name) = self.group_of_instance(id).map(str::to_owned) else { return };
        let hook = self.groups.get(&name).and_then(|group| group.terminate_hook);
        if let Some(member) = self.member(id) {
            member.lifecycle = if hook.is_some() { "Terminating:Wait" } else { "Terminating" };
        }
        self.begin_activity(&name, "Terminating", id, cause, now);
        match hook {
            Some(hook) => self.later(now, hook, Due::Proceed(id.to_owned())),
            None => self.shut_down(id, now),
        }
    }

    /// Its container agent stops at once, its tasks when it is gone.
    fn shut_down(&mut self, id: &str, now: Timestamp) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.state = State::ShuttingDown;
            machine.state_reason.get_or_insert(BY_USER);
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
        machine.state_reason.get_or_insert(BY_FAULT);
        let group = machine.group.clone();
        if let Some(name) = &group {
            self.end_activity(name, id, now);
        }
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
        self.later(now, Duration::from_secs(3600), Due::ForgetMachine(id.to_owned()));
        if let Some(group) = group {
            self.reconcile(&group, now);
        }
    }

    /// An instance fails without notice; its group replaces it.
    pub fn kill_instance(&mut self, ec2_id: &str, now: Timestamp) {
        self.gone(ec2_id, now);
    }

    /// EC2 takes a Spot instance back: a warning, and two minutes later it is gone ("Spot Instance interruption
    /// notices"). Its tasks say only that their host was terminated; the instance's state reason says why.
    pub fn interrupt_instance(&mut self, ec2_id: &str, now: Timestamp) {
        let Some(machine) = self.machines.get_mut(ec2_id) else { return };
        machine.state_reason = Some(BY_SPOT);
        machine.spot = true;
        let arn = format!("arn:aws:ec2:{}:{}:instance/{ec2_id}", self.region, self.account);
        let detail = serde_json::json!({"instance-id": ec2_id, "instance-action": "terminate"});
        self.event("EC2 Spot Instance Interruption Warning", &arn, detail, now);
        if let Some(event) = self.events.last_mut() {
            event["source"] = "aws.ec2".into();
            event["time"] = Clock::Event.show(now);
        }
        self.later(now, self.settings.spot_notice, Due::Gone(ec2_id.to_owned()));
    }

    /// A lowered capacity may leave the zones uneven; the group rebalances them ("Rebalancing might terminate instances
    /// in other zones", API_TerminateInstanceInAutoScalingGroup).
    pub(super) fn rebalance_later(&mut self, name: &str, now: Timestamp) {
        if let Some(delay) = self.settings.rebalance {
            self.later(now, delay, Due::Rebalance(name.to_owned()));
        }
    }

    /// Launches in the emptiest zone before it terminates an instance without protection in the fullest, whatever runs
    /// on it ("Rebalancing activities").
    pub(super) fn rebalance(&mut self, name: &str, now: Timestamp) {
        let Some(group) = self.groups.get(name) else { return };
        if ["AZRebalance", "Launch", "Terminate"].iter().any(|process| group.suspended.contains(*process)) {
            return;
        }
        let (Some(emptiest), Some(most)) =
            (group.emptiest_zone(), group.zones.iter().map(|zone| group.in_zone(zone)).max())
        else {
            return;
        };
        if most < group.in_zone(&emptiest) + 2 || group.cannot_launch.is_some() {
            return;
        }
        let open = |member: &&Member| member.counts() && !member.protected && group.in_zone(&member.zone) == most;
        let Some(victim) = group.members.iter().find(open).map(|member| member.id.clone()) else { return };
        self.launch_member(name, Some(emptiest), now);
        self.begin_termination(&victim, "an instance was taken out of service to balance the zones.", now);
        self.rebalance_later(name, now);
    }

    /// Managed scaling raises a capacity provider's group to what the waiting tasks need.
    pub(super) fn scale(&mut self, provider: &str, now: Timestamp) {
        let (waiting, (cpu, memory)) = self.waiting_for(provider);
        let Some(found) = self.providers.get_mut(provider) else { return };
        found.scaling = false;
        let name = found.group.clone();
        let Some(group) = self.groups.get_mut(&name).filter(|_| waiting > 0) else { return };
        let booting = group.members.iter().filter(|member| member.lifecycle.starts_with("Pending")).count() as u32;
        let needed =
            cpu.div_ceil(group.size.0.max(1)).max(memory.div_ceil(group.size.1.max(1))).saturating_sub(booting);
        let weight = group.weight_of(&group.next_kind());
        group.desired = (group.desired + needed * weight).min(group.maximum);
        let more = group.desired < group.maximum;
        self.reconcile(&name, now);
        // It is checked again while tasks wait, since a size computed from sums need not fit.
        if more && let Some(found) = self.providers.get_mut(provider) {
            found.scaling = true;
            let again = self.settings.managed_scaling + self.settings.boot + self.settings.register;
            self.later(now, again.max(Duration::from_secs(1)), Due::Scale(provider.to_owned()));
        }
    }
}
