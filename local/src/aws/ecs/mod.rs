//! An honest simulator of Amazon ECS, of the Auto Scaling groups that its instances come from, and of the EC2 reads.
//!
//! One world: a group's instances boot, register in the cluster, take tasks, and take them along when they go. Names and
//! rules are those of the AWS API references; the action or page is named at each.

mod groups;
mod model;
mod placement;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::ApiError;
pub use groups::Group;
pub use model::{Behaviour, Instance, Settings, Task, TaskDefinition};
use model::{ContainerDefinition, Network, PortMapping};

/// The world.
pub struct Ecs {
    pub(super) region: String,
    pub(super) account: String,
    clusters: BTreeMap<String, String>,
    definitions: BTreeMap<String, TaskDefinition>,
    latest: HashMap<String, u32>,
    instances: BTreeMap<String, Instance>,
    tasks: BTreeMap<String, Task>,
    by_starter: HashMap<String, Vec<String>>,
    unplaced: BTreeSet<String>,
    tokens: HashMap<String, (String, Vec<String>, Timestamp)>,
    groups: BTreeMap<String, Group>,
    behaviours: HashMap<String, Behaviour>,
    due: BTreeSet<(Timestamp, u64, Due)>,
    events: Vec<Value>,
    settings: Settings,
    bucket: (f64, Option<Timestamp>),
    counter: u64,
    /// The most tasks that were ever active at once under one name: more than one is a doubled agent.
    pub most_of_a_name: usize,
}

/// Something that happens by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Task(String, u32),
    Exit(String, i64),
    Forget(String),
    Boot(String, String),
    Register(String, String),
}

impl Ecs {
    /// An empty region.
    pub fn new(region: &str, account: &str) -> Self {
        Self {
            region: region.into(),
            account: account.into(),
            clusters: BTreeMap::new(),
            definitions: BTreeMap::new(),
            latest: HashMap::new(),
            instances: BTreeMap::new(),
            tasks: BTreeMap::new(),
            by_starter: HashMap::new(),
            unplaced: BTreeSet::new(),
            tokens: HashMap::new(),
            groups: BTreeMap::new(),
            behaviours: HashMap::new(),
            due: BTreeSet::new(),
            events: Vec::new(),
            settings: Settings::default(),
            bucket: (0.0, None),
            counter: 0,
            most_of_a_name: 0,
        }
    }

    /// Delays and limits.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// How the tasks of a family behave.
    pub fn behave(&mut self, family: &str, behaviour: Behaviour) {
        self.behaviours.insert(family.into(), behaviour);
    }

    /// All tasks that ECS still knows.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// A task, for tests that change what nobody can change from outside.
    pub fn task_mut(&mut self, arn: &str) -> Option<&mut Task> {
        self.tasks.get_mut(arn)
    }

    /// All container instances.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// A container instance, for tests that change what nobody can change from outside.
    pub fn instance_mut(&mut self, arn: &str) -> Option<&mut Instance> {
        self.instances.get_mut(arn)
    }

    /// A group.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The events since the last call, as EventBridge envelopes.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// When something next happens by itself.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _, _)| *at)
    }

    /// Lets everything happen that is due.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some((at, _, _)) = self.due.first().filter(|(at, _, _)| *at <= now) {
            let at = *at;
            let Some((_, _, due)) = self.due.pop_first() else { return };
            match due {
                Due::Task(arn, step) => self.step(&arn, step, at),
                Due::Exit(arn, code) => {
                    self.end(&arn, "EssentialContainerExited", "Essential container in task exited", i32::try_from(code).ok(), None, at);
                }
                Due::Forget(arn) => self.forget(&arn),
                Due::Boot(group, id) => self.boot(&group, &id, at),
                Due::Register(group, id) => self.register(&group, &id, at),
            }
        }
    }

    fn later(&mut self, at: Timestamp, delay: Duration, due: Due) {
        self.counter += 1;
        let at = at + jiff::SignedDuration::try_from(delay).unwrap_or(jiff::SignedDuration::ZERO);
        self.due.insert((at, self.counter, due));
    }

    fn id(&mut self) -> String {
        self.counter += 1;
        format!("{:08x}{:024x}", self.counter.wrapping_mul(2_654_435_761) & 0xffff_ffff, self.counter)
    }

    fn arn(&self, resource: &str) -> String {
        format!("arn:aws:ecs:{}:{}:{resource}", self.region, self.account)
    }

    fn cluster(&self, input: &Value) -> Result<String, ApiError> {
        let given = input["cluster"].as_str().unwrap_or("default");
        let name = given.rsplit('/').next().unwrap_or(given);
        if self.clusters.contains_key(name) {
            Ok(name.to_owned())
        } else {
            Err(ApiError::new("ClusterNotFoundException", "Cluster not found."))
        }
    }

    /// Makes a cluster.
    pub fn create_cluster(&mut self, name: &str) {
        self.clusters.insert(name.into(), "ACTIVE".into());
    }

    /// Answers a call of ECS' API.
    ///
    /// # Errors
    /// As ECS answers them.
    pub fn call(&mut self, action: &str, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        self.advance(now);
        match action {
            "CreateCluster" => {
                let name = input["clusterName"].as_str().unwrap_or("default").to_owned();
                self.create_cluster(&name);
                Ok(json!({"cluster": self.describe_cluster(&name)}))
            }
            "DescribeClusters" => {
                let names = strings(&input["clusters"]);
                let names = if names.is_empty() { vec!["default".to_owned()] } else { names };
                let short = |name: &String| name.rsplit('/').next().unwrap_or(name).to_owned();
                let (known, unknown): (Vec<_>, Vec<_>) =
                    names.iter().map(short).partition(|name| self.clusters.contains_key(name));
                let missing: Vec<_> = unknown
                    .iter()
                    .map(|name| json!({"arn": self.arn(&format!("cluster/{name}")), "reason": "MISSING"}))
                    .collect();
                let known: Vec<_> = known.iter().map(|name| self.describe_cluster(name)).collect();
                Ok(json!({"clusters": known, "failures": missing}))
            }
            "RegisterTaskDefinition" => self.register_definition(input),
            "DescribeTaskDefinition" => {
                let name = input["taskDefinition"].as_str().unwrap_or_default();
                let definition = self.definition(name).ok_or_else(unknown_definition)?;
                Ok(json!({"taskDefinition": definition.raw}))
            }
            "RunTask" => self.run_task(input, now),
            "StopTask" => self.stop_task(input, now),
            "DescribeTasks" => self.describe_tasks(input),
            "ListTasks" => self.list_tasks(input),
            "ListContainerInstances" => self.list_instances(input),
            "DescribeContainerInstances" => self.describe_instances(input),
            "UpdateContainerInstancesState" => self.update_instances(input, now),
            "TagResource" | "UntagResource" | "ListTagsForResource" => self.tagging(action, input),
            _ => Err(ApiError::new("UnknownOperationException", format!("{action} is not simulated"))),
        }
    }

    fn describe_cluster(&self, name: &str) -> Value {
        let of_cluster = |status: &str| {
            self.tasks.values().filter(|task| task.cluster == name && task.last_status == status).count()
        };
        json!({
            "clusterName": name,
            "clusterArn": self.arn(&format!("cluster/{name}")),
            "status": self.clusters.get(name),
            "registeredContainerInstancesCount": self.instances.values().filter(|instance| instance.cluster == name).count(),
            "runningTasksCount": of_cluster("RUNNING"),
            "pendingTasksCount": of_cluster("PENDING"),
        })
    }

    /// Registers a task definition (API_RegisterTaskDefinition).
    ///
    /// # Errors
    /// When it has no family or no container.
    pub fn register_definition(&mut self, input: &Value) -> Result<Value, ApiError> {
        let family = input["family"].as_str().unwrap_or_default().to_owned();
        let containers = input["containerDefinitions"].as_array().cloned().unwrap_or_default();
        if family.is_empty() || containers.is_empty() {
            return Err(ApiError::new("ClientException", "Family and container definitions are needed."));
        }
        let revision = self.latest.entry(family.clone()).or_default();
        *revision += 1;
        let revision = *revision;
        let arn = self.arn(&format!("task-definition/{family}:{revision}"));
        let number = |value: &Value| {
            value.as_u64().or_else(|| value.as_str()?.parse().ok()).and_then(|number| u32::try_from(number).ok())
        };
        let parsed: Vec<ContainerDefinition> = containers
            .iter()
            .map(|container| ContainerDefinition {
                name: container["name"].as_str().unwrap_or_default().into(),
                essential: container["essential"].as_bool().unwrap_or(true),
                cpu: number(&container["cpu"]).unwrap_or(0),
                memory: number(&container["memoryReservation"]).or(number(&container["memory"])).unwrap_or(0),
                has_health_check: !container["healthCheck"].is_null(),
                ports: container["portMappings"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|port| PortMapping {
                        container: number(&port["containerPort"]).unwrap_or(0) as u16,
                        host: number(&port["hostPort"]).unwrap_or(0) as u16,
                    })
                    .collect(),
            })
            .collect();
        let network = match input["networkMode"].as_str() {
            Some("host") => Network::Host,
            Some("awsvpc") => Network::Awsvpc,
            _ => Network::Bridge,
        };
        let mut raw = input.clone();
        raw["taskDefinitionArn"] = json!(arn);
        raw["revision"] = json!(revision);
        raw["status"] = json!("ACTIVE");
        let fits = if network == Network::Awsvpc { json!(["EC2", "FARGATE"]) } else { json!(["EC2", "EXTERNAL"]) };
        raw["compatibilities"] = fits;
        let definition = TaskDefinition {
            arn: arn.clone(),
            family,
            network,
            cpu: number(&input["cpu"]).unwrap_or_else(|| parsed.iter().map(|container| container.cpu).sum()),
            memory: number(&input["memory"]).unwrap_or_else(|| parsed.iter().map(|container| container.memory).sum()),
            containers: parsed,
            raw: raw.clone(),
        };
        self.definitions.insert(arn, definition);
        Ok(json!({"taskDefinition": raw}))
    }

    fn definition(&self, name: &str) -> Option<&TaskDefinition> {
        if name.starts_with("arn:") && name.rsplit('/').next().is_some_and(|short| short.contains(':')) {
            return self.definitions.get(name);
        }
        let short = name.rsplit('/').next().unwrap_or(name);
        let full = match short.split_once(':') {
            Some(_) => short.to_owned(),
            None => format!("{short}:{}", self.latest.get(short)?),
        };
        self.definitions.get(&self.arn(&format!("task-definition/{full}")))
    }

    fn throttle(&mut self, now: Timestamp) -> Result<(), ApiError> {
        let Some((rate, burst)) = self.settings.run_task_rate else { return Ok(()) };
        let (tokens, last) = self.bucket;
        let tokens = match last {
            None => f64::from(burst),
            Some(last) => (tokens + now.duration_since(last).as_secs_f64() * f64::from(rate)).min(f64::from(burst)),
        };
        if tokens < 1.0 {
            self.bucket = (tokens, Some(now));
            return Err(ApiError::new("ThrottlingException", "Rate exceeded"));
        }
        self.bucket = (tokens - 1.0, Some(now));
        Ok(())
    }

    /// API_RunTask.
    fn run_task(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        self.throttle(now)?;
        let cluster = self.cluster(input)?;
        let invalid = |message: &str| Err(ApiError::new("InvalidParameterException", message));
        let count = input["count"].as_u64().unwrap_or(1);
        if !(1..=10).contains(&count) {
            return invalid("count must be between 1 and 10");
        }
        let started_by = input["startedBy"].as_str().unwrap_or_default().to_owned();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/.".contains(&byte);
        if started_by.len() > 128 || !started_by.bytes().all(allowed) {
            return invalid("startedBy: up to 128 letters, numbers, hyphens, underscores, slashes and periods");
        }
        if input["overrides"].to_string().len() > 8192 {
            return invalid("overrides: Container Overrides length must be at most 8192");
        }
        check_tags(&input["tags"])?;
        let token = input["clientToken"].as_str().map(str::to_owned);
        if token.as_ref().is_some_and(|token| token.len() > 64) {
            return invalid("clientToken: up to 64 characters");
        }
        let mut parameters = input.clone();
        if let Some(parameters) = parameters.as_object_mut() {
            parameters.remove("clientToken");
        }
        let parameters = parameters.to_string();
        if let Some(token) = &token
            && let Some((before, arns, at)) = self.tokens.get(token)
            && now.duration_since(*at) < jiff::SignedDuration::from_hours(24)
        {
            if *before != parameters {
                return Err(ApiError {
                    extra: json!({"resourceIds": arns}),
                    ..ApiError::new("ConflictException", "The provided clientToken is already in use with a different RunTask request.")
                });
            }
            let tasks: Vec<_> = arns.iter().filter_map(|arn| self.tasks.get(arn)).map(|task| task.describe(true)).collect();
            return Ok(json!({"tasks": tasks, "failures": []}));
        }
        let name = input["taskDefinition"].as_str().unwrap_or_default();
        let definition = self.definition(name).cloned().ok_or_else(unknown_definition)?;
        let launch = placement::Launch::new(input, &definition)?;
        let mut arns = Vec::new();
        let mut failures = Vec::new();
        for _ in 0..count {
            let size = override_size(input, &definition);
            let place = match self.place(&cluster, &definition, &launch, size, input) {
                Ok(place) => place,
                Err(placement::NoPlace::Error(error)) => return Err(error),
                Err(placement::NoPlace::Failures(found)) => {
                    failures.extend(found);
                    continue;
                }
            };
            arns.push(self.start(&cluster, &definition, &launch, place, size, input, &started_by, now));
        }
        if let Some(token) = token.filter(|_| !arns.is_empty()) {
            self.tokens.insert(token, (parameters, arns.clone(), now));
        }
        let tasks: Vec<_> = arns.iter().filter_map(|arn| self.tasks.get(arn)).map(|task| task.describe(true)).collect();
        Ok(json!({"tasks": tasks, "failures": failures}))
    }

    #[allow(clippy::too_many_arguments)]
    fn start(
        &mut self,
        cluster: &str,
        definition: &TaskDefinition,
        launch: &placement::Launch,
        place: Option<String>,
        size: (u32, u32),
        input: &Value,
        started_by: &str,
        now: Timestamp,
    ) -> String {
        let id = self.id();
        let arn = self.arn(&format!("task/{cluster}/{id}"));
        let tags = input["tags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|tag| Some((tag["key"].as_str()?.to_owned(), tag["value"].as_str().unwrap_or_default().to_owned())))
            .collect();
        let on_instance = place.is_some();
        let mut task = Task::new(&arn, cluster, &self.arn(&format!("cluster/{cluster}")), definition, launch.kind, now);
        task.started_by = started_by.to_owned();
        task.overrides = input["overrides"].clone();
        task.tags = tags;
        task.size = size;
        task.spot = launch.spot;
        task.last_status = if on_instance { "PENDING" } else { "PROVISIONING" }.into();
        let names: Vec<String> = definition.containers.iter().map(|container| container.name.clone()).collect();
        if let Some(place) = place {
            self.occupy(&mut task, &place, definition, now);
        }
        if definition.network == Network::Awsvpc {
            self.counter += 1;
            let address = format!("10.1.{}.{}", self.counter / 250 % 250, self.counter % 250 + 1);
            task.attach(&format!("eni-{:017x}", self.counter), &address, launch.public);
        }
        task.containers.retain(|container| names.contains(&container.name));
        self.tasks.insert(arn.clone(), task);
        self.by_starter.entry(started_by.to_owned()).or_default().push(arn.clone());
        let active = self.by_starter[started_by]
            .iter()
            .filter(|arn| self.tasks.get(*arn).is_some_and(|task| task.desired_status == "RUNNING"))
            .count();
        if !started_by.is_empty() {
            self.most_of_a_name = self.most_of_a_name.max(active);
        }
        self.tell(&arn, now);
        if on_instance || launch.kind == "FARGATE" {
            let delay = if on_instance { Duration::ZERO } else { self.settings.provision };
            self.later(now, delay, Due::Task(arn.clone(), 1));
        } else {
            self.unplaced.insert(arn.clone());
        }
        arn
    }

    fn occupy(&mut self, task: &mut Task, place: &str, definition: &TaskDefinition, now: Timestamp) {
        let Some(instance) = self.instances.get_mut(place) else { return };
        task.instance = Some(place.to_owned());
        instance.take(task.size, definition.network == Network::Awsvpc);
        for container in &mut task.containers {
            let mappings = definition.containers.iter().find(|found| found.name == container.name);
            for mapping in mappings.into_iter().flat_map(|found| &found.ports) {
                let host = match definition.network {
                    Network::Awsvpc => continue,
                    Network::Host => mapping.container,
                    Network::Bridge if mapping.host == 0 => instance.dynamic_port(),
                    Network::Bridge => mapping.host,
                };
                instance.ports.insert(host);
                container.bindings.push((mapping.container, host));
            }
        }
        instance.version += 1;
        self.tell_instance(place, now);
    }

    fn release(&mut self, arn: &str, now: Timestamp) {
        let Some(task) = self.tasks.get(arn) else { return };
        let Some(place) = task.instance.clone() else { return };
        let size = task.size;
        let has_interface = task.interface.is_some();
        let ports: Vec<u16> = task.containers.iter().flat_map(|container| container.bindings.iter().map(|(_, host)| *host)).collect();
        if let Some(instance) = self.instances.get_mut(&place) {
            instance.give_back(size, has_interface);
            ports.iter().for_each(|port| {
                instance.ports.remove(port);
            });
            instance.version += 1;
            self.tell_instance(&place, now);
            self.place_waiting(now);
        }
    }

    /// Tasks of capacity providers with managed scaling wait in PROVISIONING until an instance has room.
    fn place_waiting(&mut self, now: Timestamp) {
        for arn in self.unplaced.clone() {
            let Some(mut task) = self.tasks.get(&arn).filter(|task| task.desired_status == "RUNNING").cloned() else {
                self.unplaced.remove(&arn);
                continue;
            };
            let Some(definition) = self.definitions.get(&task.definition).cloned() else { continue };
            if let Some(place) = self.any_room(&task.cluster, &definition, task.size) {
                self.unplaced.remove(&arn);
                self.occupy(&mut task, &place, &definition, now);
                task.last_status = "PENDING".into();
                task.version += 1;
                self.tasks.insert(arn.clone(), task);
                self.tell(&arn, now);
                self.later(now, Duration::ZERO, Due::Task(arn, 1));
            }
        }
    }

    /// The steps of a task's life: 1 pending, 2 the image is there, 3 running, 4 healthy; 10 stopping, 11 stopped.
    fn step(&mut self, arn: &str, step: u32, now: Timestamp) {
        let Some(task) = self.tasks.get(arn) else { return };
        let behaviour = self.behaviours.get(&task.family).cloned().unwrap_or_default();
        let ending = task.desired_status == "STOPPED";
        if ending && step < 10 {
            return;
        }
        match step {
            1 => {
                self.change(arn, now, |task| {
                    task.last_status = "PENDING".into();
                    task.pull_started_at = Some(now);
                });
                let pull = self.settings.pull;
                match behaviour {
                    Behaviour::NeverRuns => {}
                    Behaviour::ImageMissing => {
                        let reason = "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref";
                        self.end(arn, "TaskFailedToStart", reason, None, Some(reason), now);
                    }
                    _ => self.later(now, pull, Due::Task(arn.into(), 2)),
                }
            }
            2 => {
                self.change(arn, now, |task| task.pull_stopped_at = Some(now));
                let start = self.settings.start;
                self.later(now, start, Due::Task(arn.into(), 3));
            }
            3 => {
                let checked = self.tasks.get(arn).is_some_and(|task| task.has_health_check);
                self.change(arn, now, |task| {
                    task.last_status = "RUNNING".into();
                    task.started_at = Some(now);
                });
                if let Behaviour::Exits { after, code } = behaviour {
                    self.later(now, after, Due::Exit(arn.into(), i64::from(code)));
                } else if checked && !matches!(behaviour, Behaviour::Unhealthy) {
                    let healthy = self.settings.healthy;
                    self.later(now, healthy, Due::Task(arn.into(), 4));
                }
            }
            4 => self.change(arn, now, |task| task.health = "HEALTHY".into()),
            10 => {
                self.change(arn, now, |task| task.last_status = "STOPPING".into());
                let stop = self.settings.stop;
                self.later(now, stop, Due::Task(arn.into(), 11));
            }
            _ => self.finish(arn, now),
        }
    }

    fn change(&mut self, arn: &str, now: Timestamp, change: impl FnOnce(&mut Task)) {
        if let Some(task) = self.tasks.get_mut(arn) {
            change(task);
            task.version += 1;
            self.tell(arn, now);
        }
    }

    /// Ends a task that nobody stopped.
    fn end(&mut self, arn: &str, code: &str, reason: &str, exit: Option<i32>, detail: Option<&str>, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(arn).filter(|task| task.desired_status != "STOPPED") else { return };
        task.desired_status = "STOPPED".into();
        task.stop_code = Some(code.into());
        task.stopped_reason = Some(reason.into());
        for container in &mut task.containers {
            container.exit_code = exit;
            container.reason = detail.map(str::to_owned);
        }
        self.finish(arn, now);
    }

    fn finish(&mut self, arn: &str, now: Timestamp) {
        self.release(arn, now);
        self.change(arn, now, |task| {
            task.last_status = "STOPPED".into();
            task.stopped_at = Some(now);
            if task.started_at.is_some() {
                for container in &mut task.containers {
                    container.exit_code.get_or_insert(143);
                }
            }
        });
        // STOPPED tasks stay visible for about an hour (API_DescribeTasks).
        self.later(now, Duration::from_secs(3600), Due::Forget(arn.into()));
    }

    fn forget(&mut self, arn: &str) {
        if let Some(task) = self.tasks.remove(arn)
            && let Some(arns) = self.by_starter.get_mut(&task.started_by)
        {
            arns.retain(|other| other != arn);
            if arns.is_empty() {
                self.by_starter.remove(&task.started_by);
            }
        }
    }

    /// A container of the task ends by itself.
    pub fn exit(&mut self, arn: &str, code: i32, now: Timestamp) {
        self.end(arn, "EssentialContainerExited", "Essential container in task exited", Some(code), None, now);
    }

    /// AWS takes the task's Spot capacity back.
    pub fn interrupt(&mut self, arn: &str, now: Timestamp) {
        self.end(arn, "SpotInterruption", "Your Spot Task was interrupted.", None, None, now);
    }

    /// API_StopTask.
    fn stop_task(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let given = input["task"].as_str().unwrap_or_default();
        let arn = if given.starts_with("arn:") { given.to_owned() } else { self.arn(&format!("task/{cluster}/{given}")) };
        let reason = input["reason"].as_str().unwrap_or("Task stopped by user").to_owned();
        if reason.len() > 255 {
            return Err(ApiError::new("InvalidParameterException", "reason: up to 255 characters"));
        }
        let stop = self.settings.stopping;
        let Some(task) = self.tasks.get_mut(&arn).filter(|task| task.cluster == cluster) else {
            return Err(ApiError::new("InvalidParameterException", "The referenced task was not found."));
        };
        if task.desired_status != "STOPPED" {
            task.desired_status = "STOPPED".into();
            task.stop_code = Some("UserInitiated".into());
            task.stopped_reason = Some(reason);
            task.stopping_at = Some(now);
            // "Any tags associated with the task will be deleted."
            task.tags.clear();
            task.version += 1;
            self.tell(&arn, now);
            self.later(now, stop, Due::Task(arn.clone(), 10));
        }
        Ok(json!({"task": self.tasks.get(&arn).map(|task| task.describe(false))}))
    }

    fn describe_tasks(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let names = strings(&input["tasks"]);
        if names.is_empty() || names.len() > 100 {
            return Err(ApiError::new("InvalidParameterException", "tasks: 1 to 100"));
        }
        let with_tags = strings(&input["include"]).iter().any(|field| field == "TAGS");
        let (mut tasks, mut failures) = (Vec::new(), Vec::new());
        for name in names {
            let arn = if name.starts_with("arn:") { name } else { self.arn(&format!("task/{cluster}/{name}")) };
            match self.tasks.get(&arn).filter(|task| task.cluster == cluster) {
                Some(task) => tasks.push(task.describe(with_tags)),
                None => failures.push(json!({"arn": arn, "reason": "MISSING"})),
            }
        }
        Ok(json!({"tasks": tasks, "failures": failures}))
    }

    /// API_ListTasks: `startedBy` takes no other filter but the desired status, and there is no PENDING.
    fn list_tasks(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let text = |name: &str| input[name].as_str();
        let filters = ["family", "containerInstance", "serviceName", "launchType"];
        if text("startedBy").is_some() && filters.iter().any(|name| text(name).is_some()) {
            return Err(ApiError::new("InvalidParameterException", "startedBy takes no other filter"));
        }
        let status = text("desiredStatus").unwrap_or("RUNNING");
        let matches = |task: &&Task| {
            task.cluster == cluster
                && task.desired_status == status
                && text("family").is_none_or(|family| task.family == family)
                && text("launchType").is_none_or(|kind| task.launch_type == kind)
                && text("containerInstance").is_none_or(|arn| task.instance.as_deref() == Some(arn))
        };
        let arns: Vec<String> = match text("startedBy") {
            Some(name) => {
                let of_name = self.by_starter.get(name).into_iter().flatten().filter_map(|arn| self.tasks.get(arn));
                of_name.filter(matches).map(|task| task.arn.clone()).collect()
            }
            None => self.tasks.values().filter(matches).map(|task| task.arn.clone()).collect(),
        };
        Ok(page(&arns, input, "taskArns"))
    }

    fn list_instances(&self, input: &Value) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        let status = input["status"].as_str();
        let arns: Vec<String> = self
            .instances
            .values()
            .filter(|instance| instance.cluster == cluster && status.is_none_or(|status| instance.status == status))
            .map(|instance| instance.arn.clone())
            .collect();
        Ok(page(&arns, input, "containerInstanceArns"))
    }

    fn describe_instances(&self, input: &Value) -> Result<Value, ApiError> {
        self.cluster(input)?;
        let names = strings(&input["containerInstances"]);
        if names.is_empty() || names.len() > 100 {
            return Err(ApiError::new("InvalidParameterException", "containerInstances: 1 to 100"));
        }
        let with_tags = strings(&input["include"]).iter().any(|field| field == "TAGS");
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for arn in names {
            match self.instances.get(&arn) {
                Some(instance) => found.push(instance.describe(with_tags)),
                None => failures.push(json!({"arn": arn, "reason": "MISSING"})),
            }
        }
        Ok(json!({"containerInstances": found, "failures": failures}))
    }

    fn update_instances(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        self.cluster(input)?;
        let status = input["status"].as_str().unwrap_or_default().to_owned();
        if !matches!(status.as_str(), "ACTIVE" | "DRAINING") {
            return Err(ApiError::new("InvalidParameterException", "status: ACTIVE or DRAINING"));
        }
        let (mut changed, mut failures) = (Vec::new(), Vec::new());
        for arn in strings(&input["containerInstances"]) {
            match self.instances.get_mut(&arn) {
                Some(instance) => {
                    instance.status.clone_from(&status);
                    instance.version += 1;
                    self.tell_instance(&arn, now);
                    changed.push(arn);
                }
                None => failures.push(json!({"arn": arn, "reason": "MISSING"})),
            }
        }
        let described: Vec<_> = changed
            .iter()
            .filter_map(|arn| self.instances.get(arn))
            .map(|instance| instance.describe(false))
            .collect();
        Ok(json!({"containerInstances": described, "failures": failures}))
    }

    fn tagging(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        let arn = input["resourceArn"].as_str().unwrap_or_default();
        let takes_tags = self.settings.tags_on_stopped_tasks;
        let tags = if let Some(task) = self.tasks.get_mut(arn) {
            if action == "TagResource" && task.last_status == "STOPPED" && !takes_tags {
                return Err(ApiError::new("InvalidParameterException", "The specified task is stopped. Specify a running task and try again."));
            }
            &mut task.tags
        } else if let Some(instance) = self.instances.get_mut(arn) {
            &mut instance.tags
        } else {
            return Err(ApiError::new("InvalidParameterException", "The specified resource was not found."));
        };
        match action {
            "TagResource" => {
                check_tags(&input["tags"])?;
                for tag in input["tags"].as_array().into_iter().flatten() {
                    if let (Some(key), value) = (tag["key"].as_str(), tag["value"].as_str().unwrap_or_default()) {
                        tags.insert(key.into(), value.into());
                    }
                }
                if tags.len() > 50 {
                    return Err(ApiError::new("InvalidParameterException", "50 tags at most"));
                }
                Ok(json!({}))
            }
            "UntagResource" => {
                for key in strings(&input["tagKeys"]) {
                    tags.remove(&key);
                }
                Ok(json!({}))
            }
            _ => Ok(json!({"tags": tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect::<Vec<_>>()})),
        }
    }

    fn tell(&mut self, arn: &str, now: Timestamp) {
        let Some(task) = self.tasks.get(arn) else { return };
        let detail = task.event_detail(now);
        self.event("ECS Task State Change", arn, detail, now);
    }

    fn tell_instance(&mut self, arn: &str, now: Timestamp) {
        let Some(instance) = self.instances.get(arn) else { return };
        let mut detail = instance.describe(false);
        detail["clusterArn"] = json!(self.arn(&format!("cluster/{}", instance.cluster)));
        detail["registeredAt"] = json!(instance.registered_at);
        detail["updatedAt"] = json!(now);
        self.event("ECS Container Instance State Change", arn, detail, now);
    }

    fn event(&mut self, kind: &str, arn: &str, detail: Value, now: Timestamp) {
        let id = self.id();
        self.events.push(json!({
            "version": "0",
            "id": id,
            "detail-type": kind,
            "source": "aws.ecs",
            "account": self.account,
            "time": now,
            "region": self.region,
            "resources": [arn],
            "detail": detail,
        }));
    }
}

fn unknown_definition() -> ApiError {
    ApiError::new("ClientException", "TaskDefinition not found.")
}

/// A hundred a page at most (API_ListTasks, API_ListContainerInstances).
fn page(arns: &[String], input: &Value, key: &str) -> Value {
    let most = input["maxResults"].as_u64().unwrap_or(100).clamp(1, 100) as usize;
    let from: usize = input["nextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
    let mut answer = json!({});
    answer[key] = arns.iter().skip(from).take(most).cloned().collect();
    if from + most < arns.len() {
        answer["nextToken"] = json!((from + most).to_string());
    }
    answer
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// API_Tag: 50 at most, keys of 1 to 128 and values of up to 256 characters from a small alphabet, never `aws:`.
fn check_tags(tags: &Value) -> Result<(), ApiError> {
    let tags = tags.as_array().map(Vec::as_slice).unwrap_or_default();
    let allowed = |c: char| c.is_alphanumeric() || c.is_whitespace() || "+-=._:/@".contains(c);
    let good = |tag: &Value| {
        let (key, value) = (tag["key"].as_str().unwrap_or_default(), tag["value"].as_str().unwrap_or_default());
        (1..=128).contains(&key.chars().count())
            && value.chars().count() <= 256
            && key.chars().chain(value.chars()).all(allowed)
            && !key.to_ascii_lowercase().starts_with("aws:")
    };
    if tags.len() > 50 || !tags.iter().all(good) {
        return Err(ApiError::new("InvalidParameterException", "Invalid tag."));
    }
    Ok(())
}

fn override_size(input: &Value, definition: &TaskDefinition) -> (u32, u32) {
    let number = |name: &str| input["overrides"][name].as_str().and_then(|text| text.parse().ok());
    (number("cpu").unwrap_or(definition.cpu), number("memory").unwrap_or(definition.memory))
}
