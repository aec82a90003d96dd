//! RunTask.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::definitions::{Network, TaskDefinition, amount, is_fargate_size, no_fargate_size};
use super::input::{client, invalid, list, number, object, text, without, without_nulls};
use super::placement::{Launch, Need, NoPlace};
use super::tags::{Tags, read_tags};
use super::tasks::{Bindings, Container, Health, Interface, Status, Task};
use super::{ApiError, Due, Ecs, Step};

/// "Tasks in the PROVISIONING state per cluster" (Amazon ECS service quotas).
const PROVISIONING_QUOTA: usize = 500;

/// The call that used a client token.
#[derive(Debug, Clone)]
pub(super) struct Spent {
    parameters: Value,
    pub arns: Vec<String>,
    failures: Vec<Value>,
    at: Timestamp,
}

/// What all tasks of a call share.
pub(super) struct Order<'a> {
    pub cluster: &'a str,
    pub definition: &'a TaskDefinition,
    pub launch: &'a Launch,
    pub size: (u32, u32),
    pub group: String,
    pub started_by: &'a str,
    pub overrides: Value,
    pub tags: Tags,
    pub input: &'a Value,
}

impl<'a> Order<'a> {
    pub(super) fn need(&'a self, provider: Option<&'a str>) -> Need<'a> {
        let Self { definition, launch, size, group, .. } = self;
        Need { definition, size: *size, gpus: definition.gpus(), group, launch, provider }
    }
}

impl Ecs {
    /// API_RunTask: an answer with tasks, with failures, or with both; or an error without any effect.
    pub(super) fn run_task(&mut self, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let cluster = self.cluster(input)?;
        // "You can specify up to 10 tasks for each call."
        let count = if input["count"].is_null() { Some(1) } else { number(&input["count"]) };
        let count =
            count.filter(|count| (1..=10).contains(count)).ok_or_else(|| invalid("Count must be between 1 and 10."))?;
        let token = self.token(input)?;
        let parameters = Value::Object(without(input, "clientToken"));
        let key = token.map(|token| (cluster.clone(), token.to_owned()));
        if let Some(spent) = key.as_ref().and_then(|key| self.tokens.get(key)).filter(|spent| self.is_valid(spent, now))
        {
            return self.replay(spent, &parameters);
        }
        let started_by = text(input, "startedBy").unwrap_or_default();
        // "Up to 128 letters (uppercase and lowercase), numbers, hyphens (-), forward slash (/), and underscores (_)"
        if started_by.len() > 128
            || !started_by.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_".contains(&byte))
        {
            return Err(invalid("startedBy: up to 128 letters, numbers, hyphens, forward slashes and underscores."));
        }
        if text(input, "referenceId").is_some_and(|id| id.chars().count() > 1024) {
            return Err(invalid("referenceId: up to 1024 characters."));
        }
        let name = text(input, "taskDefinition").ok_or_else(|| client("TaskDefinition can not be blank."))?;
        let definition = self.definition(name).ok_or_else(|| client("TaskDefinition not found."))?.clone();
        if !definition.active {
            return Err(client("TaskDefinition is inactive"));
        }
        let tags = self.tags_of_task(&cluster, input, &definition)?;
        let overrides = read_overrides(&input["overrides"], &definition)?;
        let launch = self.launch(&cluster, input, &definition)?;
        let storage = &input["overrides"]["ephemeralStorage"];
        // "tasks hosted on Fargate … 21 GiB … 200 GiB" (API_EphemeralStorage)
        if !storage.is_null() && launch.kind != "FARGATE" {
            return Err(invalid("Ephemeral storage is only supported on Fargate."));
        }
        if !storage.is_null() && !number(&storage["sizeInGiB"]).is_some_and(|size| (21..=200).contains(&size)) {
            return Err(invalid("Ephemeral storage has to be 21 to 200 GiB."));
        }
        let size = size(&input["overrides"], &definition)?;
        if launch.kind == "FARGATE" && !is_fargate_size(size.0, size.1) {
            return Err(no_fargate_size(Some(size.0), Some(size.1)));
        }
        // "If true, then the task definition must have a task role, or you must provide one as an override."
        if input["enableExecuteCommand"] == true
            && !definition.has_role
            && text(&input["overrides"], "taskRoleArn").is_none()
        {
            return Err(invalid(
                "The service couldn't be run because a valid taskRoleArn is not being used. Specify a valid task role in \
                 your task definition or as an override and try again.",
            ));
        }
        let group = text(input, "group").map_or_else(|| format!("family:{}", definition.family), str::to_owned);
        let order = Order {
            cluster: &cluster,
            definition: &definition,
            launch: &launch,
            size,
            group,
            started_by,
            overrides,
            tags,
            input,
        };
        let (arns, failures) = self.carry_out(&order, count, token, now)?;
        let answer = object([("tasks", self.describe_all(&arns).into()), ("failures", failures.clone().into())]);
        if let Some(key) = key
            && (!arns.is_empty() || self.settings.replays_failures)
        {
            self.tokens.insert(key, Spent { parameters, arns, failures, at: now });
        }
        Ok(answer)
    }

    /// The tags of a task: those of the call, of its definition if they are propagated, and those of ECS if they are
    /// enabled ("Tagging Amazon ECS resources"). A task without a service has no service tags.
    fn tags_of_task(&self, cluster: &str, input: &Value, definition: &TaskDefinition) -> Result<Tags, ApiError> {
        let mut tags = match text(input, "propagateTags") {
            None | Some("NONE") => Tags::new(),
            Some("TASK_DEFINITION") => definition.tags.clone(),
            Some(other) => return Err(invalid(format!("Invalid propagateTags: {other}"))),
        };
        tags.extend(read_tags(&input["tags"])?);
        if tags.len() > 50 {
            return Err(invalid("Too many tags: 50 at most."));
        }
        if input["enableECSManagedTags"] == true {
            tags.insert("aws:ecs:clusterName".to_owned(), cluster.to_owned());
        }
        Ok(tags)
    }

    /// Up to 64 characters in the range of 33 to 126 (API_RunTask).
    fn token<'a>(&self, input: &'a Value) -> Result<Option<&'a str>, ApiError> {
        let token = text(input, "clientToken");
        let valid = |token: &str| token.len() <= 64 && token.bytes().all(|byte| (33..=126).contains(&byte));
        if token.is_some_and(|token| !valid(token)) {
            return Err(invalid("clientToken: up to 64 characters in the range of 33 to 126."));
        }
        Ok(token)
    }

    /// A token lives for 24 hours, and no longer than its tasks and an hour ("Ensuring idempotency"), which is as long
    /// as ECS shows them.
    fn is_valid(&self, spent: &Spent, now: Timestamp) -> bool {
        now.duration_since(spent.at) < SignedDuration::from_hours(24)
            && (spent.arns.is_empty() || spent.arns.iter().any(|arn| self.tasks.contains_key(arn)))
    }

    /// "Ensuring idempotency": the same parameters get the first call's result, others a conflict.
    fn replay(&self, spent: &Spent, parameters: &Value) -> Result<Value, ApiError> {
        if spent.parameters != *parameters {
            let message = "The provided clientToken is already in use with a different RunTask request.";
            let extra = json!({"resourceIds": spent.arns});
            return Err(ApiError { extra, ..ApiError::new("ConflictException", message) });
        }
        Ok(object([("tasks", self.describe_all(&spent.arns).into()), ("failures", spent.failures.clone().into())]))
    }

    /// Starts as many tasks as there is room for.
    fn carry_out(
        &mut self,
        order: &Order<'_>,
        count: u32,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<(Vec<String>, Vec<Value>), ApiError> {
        let mut taken = vec![0; order.launch.providers.len()];
        let mut arns = Vec::new();
        for _ in 0..count {
            let provider = choose(&order.launch.providers, &mut taken);
            let place = match self.place(order.cluster, &order.need(provider)) {
                Ok(place) => place,
                Err(NoPlace::Failures(failures)) => return Ok((arns, failures)),
                // Started tasks cannot be undone, so an error can only occur before the first task.
                Err(NoPlace::Error(_)) if !arns.is_empty() => return Ok((arns, Vec::new())),
                Err(NoPlace::Error(error)) => return Err(error),
            };
            let waits = place.is_none() && order.launch.kind != "FARGATE";
            if waits && self.waiting.len() >= PROVISIONING_QUOTA {
                if arns.is_empty() {
                    return Err(client(
                        "You've reached the limit on the number of tasks in the PROVISIONING state per cluster.",
                    ));
                }
                return Ok((arns, Vec::new()));
            }
            arns.push(self.start(order, place, provider, token, now));
        }
        Ok((arns, Vec::new()))
    }

    pub(super) fn start(
        &mut self,
        order: &Order<'_>,
        place: Option<String>,
        provider: Option<&str>,
        token: Option<&str>,
        now: Timestamp,
    ) -> String {
        let Order { cluster, definition, launch, .. } = *order;
        let on_fargate = launch.kind == "FARGATE";
        let id = self.id();
        let arn = self.arn(&format!("task/{cluster}/{id}"));
        let awsvpc = definition.network == Network::Awsvpc;
        let containers = self.containers(definition, &order.overrides);
        let task = Task {
            arn: arn.clone(),
            cluster: cluster.to_owned(),
            cluster_arn: self.cluster_arn(cluster),
            definition: definition.arn.clone(),
            family: definition.family.clone(),
            group: order.group.clone(),
            launch_type: launch.kind,
            provider: provider.map(str::to_owned),
            started_by: order.started_by.to_owned(),
            // ECS has something to prepare for awsvpc and Fargate, and for a task that has no instance yet.
            last_status: if awsvpc || place.is_none() { Status::Provisioning } else { Status::Pending },
            desired_status: Status::Running,
            overrides: order.overrides.clone(),
            tags: order.tags.clone(),
            instance: None,
            stop_code: None,
            stopped_reason: None,
            created_at: now,
            pull_started_at: None,
            pull_stopped_at: None,
            started_at: None,
            stopping_at: None,
            stopped_at: None,
            containers,
            interface: awsvpc.then(|| self.interface(launch)),
            version: 0,
            size: order.size,
            gpus: definition.gpus(),
            // "By default, tasks … receive a minimum of 20 GiB of ephemeral storage" (Fargate task ephemeral storage).
            ephemeral_storage: on_fargate.then(|| {
                number(&order.overrides["ephemeralStorage"]["sizeInGiB"])
                    .or_else(|| number(&definition.shown["ephemeralStorage"]["sizeInGiB"]))
                    .unwrap_or(20)
            }),
            reference_id: text(order.input, "referenceId").map(str::to_owned),
            bindings: if self.settings.bindings_are_null { Bindings::Null } else { Bindings::Empty },
            architecture: definition.architecture,
            zone: self.zone(self.counter),
            platform_version: on_fargate.then(|| match text(order.input, "platformVersion") {
                None | Some("LATEST") => "1.4.0".to_owned(),
                Some(version) => version.to_owned(),
            }),
            enable_execute_command: order.input["enableExecuteCommand"] == true,
            token: token.map(str::to_owned),
        };
        if let Some(interface) = &task.interface {
            self.interfaces.insert(interface.id.clone(), arn.clone());
        }
        self.tasks.insert(arn.clone(), task);
        self.active.insert(arn.clone());
        if !order.started_by.is_empty() && !order.started_by.starts_with("ecs-svc/") {
            let of_name = self.by_starter.entry(order.started_by.to_owned()).or_default();
            of_name.insert(arn.clone());
            if of_name.iter().filter(|arn| self.active.contains(*arn)).count() > 1 {
                self.doubled.insert(order.started_by.to_owned());
            }
        }
        match place {
            Some(place) => {
                self.occupy(&arn, &place, definition);
                self.change(&arn, now, |_| ());
                self.change_instance(&place, now, |_| ());
                self.begin(&arn, now);
            }
            None => {
                self.change(&arn, now, |_| ());
                if on_fargate {
                    self.begin(&arn, now);
                } else {
                    self.wait_for_instance(&arn, launch, now);
                }
            }
        }
        arn
    }

    fn containers(&mut self, definition: &TaskDefinition, overrides: &Value) -> Vec<Container> {
        let overridden = |name: &str, of: &str| {
            list(&overrides["containerOverrides"])
                .iter()
                .find(|other| other["name"] == name)
                .and_then(|found| number(&found[of]))
        };
        let containers = definition.containers.iter().map(|container| Container {
            name: container.name.clone(),
            image: container.image.clone(),
            essential: container.essential,
            bindings: Vec::new(),
            status: Status::Pending,
            exit_code: None,
            reason: None,
            health: Health::Unknown,
            has_health_check: container.has_health_check,
            gpu_ids: Vec::new(),
            cpu: overridden(&container.name, "cpu").unwrap_or(container.cpu),
            memory: overridden(&container.name, "memory").or(container.memory),
            reservation: overridden(&container.name, "memoryReservation").or(container.reservation),
            id: self.id(),
        });
        containers.collect()
    }

    fn interface(&mut self, launch: &Launch) -> Interface {
        let attachment = self.uuid();
        let number = self.next();
        let [a, b] = self.settings.interface_network;
        let host = format!("{}.{}", number / 250 % 250, number % 250 + 1);
        let addressing = self.settings.interface_addresses;
        Interface {
            id: self.hex_id("eni"),
            private_address: if addressing.has_v4() { format!("{a}.{b}.{host}") } else { String::new() },
            ipv6_address: addressing.has_v6().then(|| format!("2001:db8:{a:x}:{b:x}::{number:x}")),
            public_address: (launch.public && addressing.has_v4()).then(|| format!("54.{b}.{host}")),
            subnet: launch.subnet.clone(),
            attachment,
            status: "PRECREATED",
        }
    }

    /// Reserves an instance's resources for a task. Reservations show at once; host ports that Docker chooses show when
    /// the task runs.
    pub(super) fn occupy(&mut self, arn: &str, place: &str, definition: &TaskDefinition) {
        let (Some(task), Some(instance)) = (self.tasks.get_mut(arn), self.instances.get_mut(place)) else { return };
        task.instance = Some(place.to_owned());
        if let Some(zone) = instance.attributes.get("ecs.availability-zone") {
            task.zone.clone_from(zone);
        }
        instance.tasks.insert(arn.to_owned(), task.group.clone());
        instance.free.0 = instance.free.0.saturating_sub(task.size.0);
        instance.free.1 = instance.free.1.saturating_sub(task.size.1);
        for (container, of) in task.containers.iter_mut().zip(&definition.containers) {
            let left = instance.gpus.len().saturating_sub(of.gpus as usize);
            container.gpu_ids = instance.gpus.split_off(left);
        }
        if task.interface.is_some() {
            instance.interfaces = instance.interfaces.saturating_sub(1);
            return;
        }
        for (container, of) in task.containers.iter_mut().zip(&definition.containers) {
            container.bindings = of.ports.iter().flat_map(|port| instance.bind(port)).collect();
        }
    }

    /// A task of a capacity provider with managed scaling waits in PROVISIONING until an instance has room.
    fn wait_for_instance(&mut self, arn: &str, launch: &Launch, now: Timestamp) {
        let number = self.next();
        self.waiting.insert(number, (arn.to_owned(), launch.clone()));
        let provider = self.tasks.get(arn).and_then(|task| task.provider.clone());
        if let Some(name) = provider
            && let Some(provider) = self.providers.get_mut(&name)
            && !std::mem::replace(&mut provider.scaling, true)
        {
            self.later(now, self.settings.managed_scaling, Due::Scale(name));
        }
    }

    /// Places the tasks that wait, oldest first.
    pub(super) fn place_waiting(&mut self, now: Timestamp) {
        let waiting: Vec<u64> = self.waiting.keys().copied().collect();
        for number in waiting {
            let Some((arn, launch)) = self.waiting.get(&number) else { continue };
            let Some(task) = self.tasks.get(arn) else { continue };
            let Some(definition) = self.definition(&task.definition) else { continue };
            let need = Need {
                definition,
                size: task.size,
                gpus: task.gpus,
                group: &task.group,
                launch,
                provider: task.provider.as_deref(),
            };
            let Some(place) = self.room(&task.cluster, &need) else { continue };
            let (arn, definition, awsvpc) = (arn.clone(), definition.clone(), task.interface.is_some());
            self.waiting.remove(&number);
            self.occupy(&arn, &place, &definition);
            self.change(&arn, now, |task| {
                if !awsvpc {
                    task.last_status = Status::Pending;
                }
            });
            self.change_instance(&place, now, |_| ());
            self.begin(&arn, now);
        }
    }

    /// What waits for instances of a capacity provider: how many tasks, and their CPU units and MiB.
    pub(super) fn waiting_for(&self, provider: &str) -> (u32, (u32, u32)) {
        let tasks = self.waiting.values().filter_map(|(arn, _)| self.tasks.get(arn));
        let tasks = tasks.filter(|task| task.provider.as_deref() == Some(provider));
        tasks.fold((0, (0, 0)), |(count, (cpu, memory)), task| (count + 1, (cpu + task.size.0, memory + task.size.1)))
    }

    /// A task reaches the state in which its containers are prepared.
    fn begin(&mut self, arn: &str, now: Timestamp) {
        let prepared = self.tasks.get(arn).is_some_and(|task| task.last_status == Status::Pending);
        let delay = if prepared { std::time::Duration::ZERO } else { self.settings.provision };
        self.later(now, delay, Due::Task(arn.to_owned(), Step::Prepared));
    }
}

/// The next provider: the base first, then by weight (API_CapacityProviderStrategyItem).
fn choose<'a>(providers: &'a [(String, u32, u32)], taken: &mut [u32]) -> Option<&'a str> {
    let base = providers.iter().zip(taken.iter()).position(|((_, base, _), taken)| taken < base);
    let by_weight = || {
        let share = |index: &usize| {
            let (_, base, weight) = &providers[*index];
            f64::from(taken[*index].saturating_sub(*base) + 1) / f64::from(*weight)
        };
        let weighted = (0..providers.len()).filter(|index| providers[*index].2 > 0);
        weighted.min_by(|one, other| share(one).total_cmp(&share(other)))
    };
    let index = base.or_else(by_weight)?;
    taken[index] += 1;
    Some(&providers[index].0)
}

/// API_RunTask: 8192 characters in all, with the JSON around them; API_ContainerOverride: only for existing containers.
/// Answers and events have an entry for each container.
pub(super) fn read_overrides(given: &Value, definition: &TaskDefinition) -> Result<Value, ApiError> {
    if !given.is_null() && given.to_string().chars().count() > 8192 {
        return Err(invalid("Container Overrides length must be at most 8192"));
    }
    let containers = list(&given["containerOverrides"]);
    for container in containers {
        let name = text(container, "name").unwrap_or_default();
        if !definition.containers.iter().any(|of| of.name == name) {
            return Err(invalid(format!(
                "Override for container named {name} is not a container in the TaskDefinition."
            )));
        }
    }
    let entry = |name: &String| {
        let given = containers.iter().find(|container| container["name"] == name.as_str());
        given.cloned().unwrap_or_else(|| json!({"name": name}))
    };
    let mut overrides = if given.is_object() { without_nulls(given.clone()) } else { json!({}) };
    overrides["containerOverrides"] = definition.containers.iter().map(|of| entry(&of.name)).collect();
    overrides["inferenceAcceleratorOverrides"] = json!([]);
    Ok(overrides)
}

/// What a task reserves: its own size if it is set, or the sum of its containers', each of which may be overridden.
pub(super) fn size(overrides: &Value, definition: &TaskDefinition) -> Result<(u32, u32), ApiError> {
    let of = |container: &str, name: &str| {
        list(&overrides["containerOverrides"])
            .iter()
            .find(|given| given["name"] == container)
            .and_then(|given| number(&given[name]))
    };
    let cpu = definition.containers.iter().map(|container| of(&container.name, "cpu").unwrap_or(container.cpu)).sum();
    let memory = definition.containers.iter().map(|container| {
        let reservation = of(&container.name, "memoryReservation").or(container.reservation);
        reservation.or(of(&container.name, "memory")).or(container.memory).unwrap_or(0)
    });
    let (own_cpu, own_memory) = (amount(&overrides["cpu"], "vcpu")?, amount(&overrides["memory"], "gb")?);
    Ok((own_cpu.or(definition.cpu).unwrap_or(cpu), own_memory.or(definition.memory).unwrap_or_else(|| memory.sum())))
}
