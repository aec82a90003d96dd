//! Services of the scheduling strategy DAEMON: one task on each container instance ("Amazon ECS services", Daemon).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::input::invalid;
use super::placement::Launch;
use super::run::{Order, read_overrides, size};
use super::tags::Tags;
use super::{ApiError, Ecs, InstanceStatus};

/// A service that keeps one task on each container instance of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    cluster: String,
    service: String,
    family: String,
    /// `ecs-svc/` and the number of the deployment.
    started_by: String,
}

impl Daemon {
    fn group(&self) -> String {
        format!("service:{}", self.service)
    }
}

impl Ecs {
    /// Creates a daemon service of a family; it starts a task on each present and future container instance.
    ///
    /// # Errors
    /// When the family does not exist.
    pub fn create_daemon(
        &mut self,
        cluster: &str,
        service: &str,
        family: &str,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        if self.definition(family).is_none() {
            return Err(invalid("TaskDefinition not found."));
        }
        let started_by = format!("ecs-svc/{:019}", self.next());
        let [cluster, service, family] = [cluster, service, family].map(str::to_owned);
        self.daemons.push(Daemon { cluster, service, family, started_by });
        let places: Vec<String> = self.instances.keys().cloned().collect();
        places.iter().for_each(|place| self.keep_daemons(place, now));
        Ok(())
    }

    /// API_ListServices. All services here are daemons.
    pub(super) fn list_services(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let strategy = input["schedulingStrategy"].as_str().unwrap_or("DAEMON");
        if !["DAEMON", "REPLICA"].contains(&strategy) {
            return Err(invalid(format!("Invalid scheduling strategy: {strategy}")));
        }
        let daemons = self.daemons.iter().filter(|daemon| daemon.cluster == cluster && strategy == "DAEMON");
        let arn = |daemon: &Daemon| {
            format!("arn:aws:ecs:{}:{}:service/{cluster}/{}", self.region, self.account, daemon.service)
        };
        Ok(json!({"serviceArns": daemons.map(arn).collect::<Vec<_>>()}))
    }

    /// Starts the daemons that an ACTIVE instance lacks. On a DRAINING one they stop last: the scheduler stops them
    /// once no other task is on it ("Draining Amazon ECS container instances").
    pub(super) fn keep_daemons(&mut self, place: &str, now: Timestamp) {
        let Some(instance) = self.instances.get(place).filter(|instance| instance.connected) else { return };
        let of_services = |group: &String| group.starts_with("service:");
        match instance.status {
            InstanceStatus::Active => {
                let lacks = |daemon: &&Daemon| {
                    daemon.cluster == instance.cluster && !instance.tasks.values().any(|group| *group == daemon.group())
                };
                let lacking: Vec<Daemon> = self.daemons.iter().filter(lacks).cloned().collect();
                lacking.iter().for_each(|daemon| self.start_daemon(daemon, place, now));
            }
            InstanceStatus::Draining if instance.tasks.values().all(of_services) => {
                let tasks: Vec<String> = instance.tasks.keys().cloned().collect();
                let reason = |arn: &str| format!("ECS container instance {arn} is DRAINING");
                tasks.iter().for_each(|arn| self.stop(arn, "ServiceSchedulerInitiated", &reason(place), now));
            }
            _ => {}
        }
    }

    fn start_daemon(&mut self, daemon: &Daemon, place: &str, now: Timestamp) {
        let Some(definition) = self.definition(&daemon.family).cloned() else { return };
        let (Ok(launch), Ok(overrides), Ok(size)) = (
            Launch::new(&Value::Null, &definition),
            read_overrides(&Value::Null, &definition),
            size(&Value::Null, &definition),
        ) else {
            return;
        };
        let order = Order {
            cluster: &daemon.cluster,
            definition: &definition,
            launch: &launch,
            size,
            group: daemon.group(),
            started_by: &daemon.started_by,
            overrides,
            tags: Tags::new(),
            input: &Value::Null,
        };
        let fits = self.instances.get(place).is_some_and(|instance| instance.takes(&order.need(None)));
        if fits {
            self.start(&order, Some(place.to_owned()), None, None, now);
        }
    }
}
