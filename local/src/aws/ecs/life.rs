//! The lifecycle of a task, step by step ("Amazon ECS task lifecycle").

use std::time::Duration;

use jiff::Timestamp;

use super::run::Spent;
use super::settings::Behaviour;
use super::tasks::{Bindings, Health, Status, Task};
use super::{Clock, Due, Ecs, Step};

/// The exit code of a container that handles SIGTERM: 128 and the signal's number.
const TERMINATED: i32 = 143;

impl Ecs {
    fn behaviour(&self, arn: &str) -> Behaviour {
        self.tasks.get(arn).and_then(|task| self.behaviours.get(&task.family)).cloned().unwrap_or_default()
    }

    /// A pending step in a task's life. A step that the task has already passed does nothing.
    pub(super) fn step(&mut self, arn: &str, step: Step, now: Timestamp) {
        let Some(task) = self.tasks.get(arn) else { return };
        let (status, lives, ran) =
            (task.last_status, task.desired_status == Status::Running, task.started_at.is_some());
        match step {
            Step::Prepared if lives && status <= Status::Pending => {
                let prepare = |task: &mut Task| {
                    task.last_status = Status::Pending;
                    task.pull_started_at = Some(now);
                    if let Some(interface) = &mut task.interface {
                        interface.status = "ATTACHED";
                    }
                };
                if status == Status::Pending {
                    self.tasks.get_mut(arn).into_iter().for_each(prepare);
                } else {
                    self.change(arn, now, prepare);
                }
                if !matches!(self.behaviour(arn), Behaviour::NeverRuns) {
                    self.later(now, self.settings.pull, Due::Task(arn.to_owned(), Step::Pulled));
                }
            }
            Step::Pulled if lives && status == Status::Pending => {
                self.tasks.get_mut(arn).into_iter().for_each(|task| task.pull_stopped_at = Some(now));
                match self.behaviour(arn) {
                    Behaviour::ImageMissing => self.fail_to_pull(arn, now),
                    Behaviour::FailsToStart { reason } => self.fail_to_start(arn, &reason, now),
                    _ => self.later(now, self.settings.start, Due::Task(arn.to_owned(), Step::Started)),
                }
            }
            Step::Started if lives && status == Status::Pending => self.run(arn, now),
            Step::Bound => self.bind(arn),
            Step::Checked if lives && status == Status::Running => {
                let health = match self.behaviour(arn) {
                    Behaviour::Unhealthy => Health::Unhealthy,
                    _ => Health::Healthy,
                };
                self.set_health(arn, health, now);
            }
            Step::Stopping if status < Status::Stopping => {
                if ran {
                    self.change(arn, now, |task| task.last_status = Status::Deactivating);
                }
                self.change(arn, now, |task| task.last_status = Status::Stopping);
                self.later(now, self.settings.stop, Due::Task(arn.to_owned(), Step::Ended));
            }
            Step::Ended if status < Status::Deprovisioning => {
                self.end_containers(arn, None);
                self.clean_up(arn, now);
            }
            Step::Gone if status < Status::Stopped => self.finish(arn, now),
            _ => {}
        }
    }

    fn run(&mut self, arn: &str, now: Timestamp) {
        if self.settings.binding.is_zero() {
            self.bind(arn);
        } else {
            self.later(now, self.settings.binding, Due::Task(arn.to_owned(), Step::Bound));
        }
        self.change(arn, now, |task| {
            task.last_status = Status::Running;
            task.started_at = Some(now);
            task.containers.iter_mut().for_each(|container| container.status = Status::Running);
        });
        let behaviour = self.behaviour(arn);
        let checked = |task: &Task| task.containers.iter().any(|container| container.has_health_check);
        if let Behaviour::Exits { after, code } = behaviour {
            self.later(now, after, Due::Exit(arn.to_owned(), code));
        }
        if self.tasks.get(arn).is_some_and(checked) && !matches!(behaviour, Behaviour::HealthUnknown) {
            self.later(now, self.settings.healthy, Due::Task(arn.to_owned(), Step::Checked));
        }
    }

    /// The network bindings are shown from now on. No event reports that.
    fn bind(&mut self, arn: &str) {
        if let Some(task) = self.tasks.get_mut(arn) {
            task.bindings = Bindings::Shown;
        }
    }

    /// Sets the result of the health checks of a task's containers. No event reports that ("Amazon ECS task state
    /// change events" has no such state).
    pub fn set_health(&mut self, arn: &str, health: Health, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(arn) else { return };
        for container in task.containers.iter_mut().filter(|container| container.has_health_check) {
            container.health = health;
        }
        if self.settings.health_events {
            self.change(arn, now, |_| ());
        }
    }

    fn fail_to_pull(&mut self, arn: &str, now: Timestamp) {
        let image = |task: &Task| task.containers.first().map(|container| container.image.clone());
        let image = self.tasks.get(arn).and_then(image).unwrap_or_default();
        let reason = format!(
            "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref {image}: {image}: not found"
        );
        self.fail_to_start(arn, &reason, now);
    }

    /// Fargate gives the reason in the stopped reason; on EC2 only the container does ("Stopped tasks error messages").
    fn fail_to_start(&mut self, arn: &str, reason: &str, now: Timestamp) {
        let on_fargate = self.tasks.get(arn).is_some_and(|task| task.launch_type == "FARGATE");
        if !self.doom(arn, "TaskFailedToStart", if on_fargate { reason } else { "Task failed to start" }, now) {
            return;
        }
        if let Some(task) = self.tasks.get_mut(arn) {
            task.containers.iter_mut().for_each(|container| container.status = Status::Stopped);
            if let Some(container) = task.containers.first_mut() {
                container.reason = Some(reason.to_owned());
            }
        }
        self.clean_up(arn, now);
    }

    /// The task's first essential container ends by itself, and the task with it.
    pub fn exit(&mut self, arn: &str, code: i32, now: Timestamp) {
        let name =
            |task: &Task| task.containers.iter().find(|container| container.essential).map(|found| found.name.clone());
        if let Some(name) = self.tasks.get(arn).and_then(name) {
            self.exit_container(arn, &name, code, now);
        }
    }

    /// A container ends by itself; the task continues if it was not essential.
    pub fn exit_container(&mut self, arn: &str, name: &str, code: i32, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(arn).filter(|task| task.last_status == Status::Running) else { return };
        let Some(container) = task.containers.iter_mut().find(|container| container.name == name) else { return };
        if container.status == Status::Stopped {
            return;
        }
        container.status = Status::Stopped;
        container.exit_code = Some(code);
        if !container.essential {
            self.change(arn, now, |_| ());
        } else if self.doom(arn, "EssentialContainerExited", "Essential container in task exited", now) {
            self.end_containers(arn, None);
            self.clean_up(arn, now);
        }
    }

    /// AWS takes the task's Spot capacity back: the containers get SIGTERM and two minutes at most.
    pub fn interrupt(&mut self, arn: &str, now: Timestamp) {
        self.stop(arn, "SpotInterruption", "Your Spot Task was interrupted.", now);
    }

    /// Stops a task; one that is already stopping continues to stop.
    pub(super) fn stop(&mut self, arn: &str, code: &str, reason: &str, now: Timestamp) {
        if !self.doom(arn, code, reason, now) {
            return;
        }
        self.change(arn, now, |_| ());
        // A task without an instance has nothing to stop.
        let waiting = self.waiting.iter().find(|(_, (waiting, _))| waiting == arn).map(|(number, _)| *number);
        match waiting {
            Some(number) => {
                self.waiting.remove(&number);
                self.later(now, Duration::ZERO, Due::Task(arn.to_owned(), Step::Gone));
            }
            None => self.later(now, self.settings.stopping, Due::Task(arn.to_owned(), Step::Stopping)),
        }
    }

    /// A task's instance is gone, and its containers could not end properly.
    pub(super) fn kill(&mut self, arn: &str, code: &str, reason: &str, now: Timestamp) {
        self.doom(arn, code, reason, now);
        if self.tasks.get(arn).is_some_and(|task| task.last_status < Status::Stopped) {
            self.finish(arn, now);
        }
    }

    /// Sets a task's desired status to STOPPED, unless it is already.
    fn doom(&mut self, arn: &str, code: &str, reason: &str, now: Timestamp) -> bool {
        let Some(task) = self.tasks.get_mut(arn).filter(|task| task.desired_status == Status::Running) else {
            return false;
        };
        task.desired_status = Status::Stopped;
        task.stop_code = Some(code.to_owned());
        task.stopped_reason = Some(reason.to_owned());
        task.stopping_at = Some(now);
        self.active.remove(arn);
        self.ended.insert(arn.to_owned());
        true
    }

    /// Running containers end like containers that handle SIGTERM.
    fn end_containers(&mut self, arn: &str, reason: Option<&str>) {
        let Some(task) = self.tasks.get_mut(arn) else { return };
        for container in &mut task.containers {
            if container.status == Status::Running {
                container.exit_code = Some(TERMINATED);
                container.reason = reason.map(str::to_owned);
            }
            container.status = Status::Stopped;
        }
    }

    /// Network interfaces are taken down before a task is STOPPED.
    fn clean_up(&mut self, arn: &str, now: Timestamp) {
        if self.tasks.get(arn).is_some_and(|task| task.interface.is_some()) {
            self.change(arn, now, |task| task.last_status = Status::Deprovisioning);
            self.later(now, self.settings.deprovision, Due::Task(arn.to_owned(), Step::Gone));
        } else {
            self.finish(arn, now);
        }
    }

    fn finish(&mut self, arn: &str, now: Timestamp) {
        self.change(arn, now, |task| {
            task.last_status = Status::Stopped;
            task.stopped_at = Some(now);
            task.containers.iter_mut().for_each(|container| container.status = Status::Stopped);
            if let Some(interface) = &mut task.interface {
                interface.status = "DELETED";
            }
        });
        self.release(arn, now);
        self.later(now, self.settings.remember_stopped, Due::Forget(arn.to_owned()));
    }

    /// Returns a task's resources to its instance.
    fn release(&mut self, arn: &str, now: Timestamp) {
        let Some(task) = self.tasks.get(arn) else { return };
        if let Some(interface) = &task.interface {
            self.interfaces.remove(&interface.id);
        }
        let Some(place) = task.instance.clone() else { return };
        let Some(instance) = self.instances.get_mut(&place) else { return };
        if instance.tasks.remove(arn).is_none() {
            return;
        }
        instance.free.0 = (instance.free.0 + task.size.0).min(instance.total.0);
        instance.free.1 = (instance.free.1 + task.size.1).min(instance.total.1);
        instance.interfaces += u32::from(task.interface.is_some());
        for container in &task.containers {
            instance.gpus.extend(container.gpu_ids.iter().cloned());
            for binding in &container.bindings {
                let ports = if binding.udp { &mut instance.udp_ports } else { &mut instance.ports };
                for port in binding.host..binding.host + binding.range.unwrap_or(1) {
                    ports.remove(&port);
                }
            }
        }
        self.change_instance(&place, now, |_| ());
        self.keep_daemons(&place, now);
        self.place_waiting(now);
    }

    pub(super) fn forget(&mut self, arn: &str) {
        let Some(task) = self.tasks.remove(arn) else { return };
        self.ended.remove(arn);
        if let Some(of_name) = self.by_starter.get_mut(&task.started_by) {
            of_name.remove(arn);
            if of_name.is_empty() {
                self.by_starter.remove(&task.started_by);
            }
        }
        // A token may belong to several tasks, and may have been reused since.
        let known = |spent: &Spent| spent.arns.iter().any(|arn| self.tasks.contains_key(arn));
        if let Some(key) = task.token.map(|token| (task.cluster, token))
            && self.tokens.get(&key).is_some_and(|spent| !known(spent))
        {
            self.tokens.remove(&key);
        }
    }

    /// Changes a task; its version grows, and an event reports it ("Amazon ECS task state change events").
    pub(super) fn change(&mut self, arn: &str, now: Timestamp, change: impl FnOnce(&mut Task)) {
        let Some(task) = self.tasks.get_mut(arn) else { return };
        change(task);
        task.version += 1;
        let mut detail = task.shape(Clock::Event);
        detail["updatedAt"] = Clock::Event.show(now);
        self.event("ECS Task State Change", arn, detail, now);
    }
}
