//! Places tasks: launch types, capacity providers, networks, constraints, strategies, and the failures of an answer
//! without tasks.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::definitions::{Network, TaskDefinition};
use super::input::{client, invalid, list, number, one_of, strings, text};
use super::instances::{Instance, InstanceStatus};
use super::query::Query;
use super::{ApiError, Ecs, mix};

/// The placement parameters of RunTask.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// `EC2`, `FARGATE`, `EXTERNAL`.
    pub kind: &'static str,
    /// Capacity providers with their base and weight; none with a launch type.
    pub providers: Vec<(String, u32, u32)>,
    pub subnet: String,
    /// Whether the task gets a public address.
    pub public: bool,
    pub constraints: Vec<Constraint>,
    pub strategy: Vec<Rule>,
}

/// A placement constraint.
#[derive(Debug, Clone)]
pub(super) enum Constraint {
    DistinctInstance,
    MemberOf(Query),
}

/// A rule of a placement strategy.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    Random,
    BinpackCpu,
    BinpackMemory,
    SpreadInstances,
    SpreadAttribute(String),
}

/// A task's requirements of an instance.
pub(super) struct Need<'a> {
    pub definition: &'a TaskDefinition,
    /// CPU units and MiB.
    pub size: (u32, u32),
    pub gpus: u32,
    pub group: &'a str,
    pub launch: &'a Launch,
    /// The capacity provider whose instances may run it.
    pub provider: Option<&'a str>,
}

/// Why a task cannot be placed.
pub(super) enum NoPlace {
    /// The call is invalid.
    Error(ApiError),
    /// The answer has failures.
    Failures(Vec<Value>),
}

impl Launch {
    /// Reads the parameters that all launch types share (API_RunTask).
    ///
    /// # Errors
    /// When they contradict each other or the task definition.
    pub(super) fn new(input: &Value, definition: &TaskDefinition) -> Result<Self, ApiError> {
        let awsvpc = definition.network == Network::Awsvpc;
        let network = &input["networkConfiguration"]["awsvpcConfiguration"];
        if awsvpc && network.is_null() {
            return Err(invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified."));
        }
        if !awsvpc && !network.is_null() {
            return Err(invalid(
                "Network Configuration is not valid for the given networkMode of this task definition.",
            ));
        }
        one_of(network, "assignPublicIp", &["ENABLED", "DISABLED"])?;
        // "There's a limit of 16 subnets" and of 5 security groups (API_AwsVpcConfiguration).
        let subnets: Vec<&str> = strings(&network["subnets"]).collect();
        if awsvpc && subnets.is_empty() {
            return Err(invalid("subnets can not be empty."));
        }
        if subnets.len() > 16 {
            return Err(invalid("subnets can have at most 16 items."));
        }
        if list(&network["securityGroups"]).len() > 5 {
            return Err(invalid("securityGroups can have at most 5 items."));
        }
        // Up to 10 constraints "including constraints in the task definition", and 5 rules (API_RunTask).
        let constraints = definition.constraints.iter().chain(list(&input["placementConstraints"]));
        let constraints = constraints.map(Constraint::read).collect::<Result<Vec<_>, _>>()?;
        let strategy = list(&input["placementStrategy"]).iter().map(Rule::read).collect::<Result<Vec<_>, _>>()?;
        if constraints.len() > 10 {
            return Err(invalid("placementConstraints can have at most 10 items."));
        }
        if strategy.len() > 5 {
            return Err(invalid("placementStrategy can have at most 5 items."));
        }
        Ok(Self {
            kind: "EC2",
            providers: Vec::new(),
            subnet: subnets.first().map_or_else(String::new, |subnet| (*subnet).to_owned()),
            public: network["assignPublicIp"] == "ENABLED",
            constraints,
            strategy,
        })
    }
}

impl Constraint {
    fn read(input: &Value) -> Result<Self, ApiError> {
        match (text(input, "type"), text(input, "expression")) {
            (Some("distinctInstance"), None) => Ok(Self::DistinctInstance),
            // "You can't specify an expression if the constraint type is distinctInstance" (API_PlacementConstraint).
            (Some("distinctInstance"), Some(_)) => Err(invalid("distinctInstance takes no expression.")),
            (Some("memberOf"), Some(expression)) => Query::parse(expression).map(Self::MemberOf),
            _ => Err(invalid("Invalid placement constraint.")),
        }
    }
}

impl Rule {
    /// API_PlacementStrategy names the fields.
    fn read(input: &Value) -> Result<Self, ApiError> {
        let field = text(input, "field").unwrap_or_default();
        match (text(input, "type"), field.to_ascii_lowercase().as_str()) {
            (Some("random"), _) => Ok(Self::Random),
            (Some("binpack"), "cpu") => Ok(Self::BinpackCpu),
            (Some("binpack"), "memory") => Ok(Self::BinpackMemory),
            (Some("spread"), "instanceid" | "host") => Ok(Self::SpreadInstances),
            (Some("spread"), lower) if lower.starts_with("attribute:") => Ok(Self::SpreadAttribute(field.to_owned())),
            _ => Err(invalid("Invalid placement strategy.")),
        }
    }
}

impl Ecs {
    /// Reads the placement of a task, and validates it against the task definition and the cluster (API_RunTask).
    ///
    /// # Errors
    /// In ECS' words, where they are known.
    pub(super) fn launch(&self, cluster: &str, input: &Value, definition: &TaskDefinition) -> Result<Launch, ApiError> {
        let mut launch = Launch::new(input, definition)?;
        let given = list(&input["capacityProviderStrategy"]);
        // "When you use neither, the default capacity provider strategy of the cluster is used" (API_RunTask).
        let by_default = self.clusters.get(cluster).map(|cluster| cluster.default_strategy.as_slice());
        let neither = given.is_empty() && text(input, "launchType").is_none();
        let providers = if neither { by_default.unwrap_or_default() } else { given };
        match (text(input, "launchType"), providers) {
            (Some(_), [_, ..]) => {
                return Err(invalid(
                    "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
                ));
            }
            (None | Some("EC2"), []) => {}
            (Some("FARGATE"), []) => launch.kind = "FARGATE",
            (Some("EXTERNAL"), []) => launch.kind = "EXTERNAL",
            (Some(other), []) => return Err(invalid(format!("Invalid launch type: {other}"))),
            (None, providers) => {
                launch.providers = self.providers_of(cluster, providers)?;
                let on_fargate = launch.providers.iter().filter(|(name, ..)| name.starts_with("FARGATE")).count();
                // API_CreateCluster: a strategy has either Fargate's capacity providers or those of groups.
                if on_fargate != 0 && on_fargate != launch.providers.len() {
                    return Err(invalid("A capacity provider strategy cannot mix Fargate with Auto Scaling groups."));
                }
                if on_fargate != 0 {
                    launch.kind = "FARGATE";
                }
            }
        }
        match launch.kind {
            "FARGATE" => {
                if definition.network != Network::Awsvpc || !definition.fits_fargate {
                    return Err(invalid("Task definition does not support launch_type FARGATE."));
                }
                if !launch.constraints.is_empty() {
                    return Err(invalid("Placement constraints are not supported with FARGATE launch type."));
                }
                if !launch.strategy.is_empty() {
                    return Err(invalid("Placement strategies are not supported with FARGATE launch type."));
                }
                let version = text(input, "platformVersion").unwrap_or("LATEST");
                if !matches!(version, "LATEST" | "1.4.0" | "1.3.0" | "1.0.0") {
                    return Err(ApiError::new(
                        "PlatformUnknownException",
                        format!("The specified platform version {version} does not exist."),
                    ));
                }
            }
            kind => {
                if kind == "EXTERNAL" && definition.network == Network::Awsvpc {
                    return Err(invalid("Task definition does not support launch_type EXTERNAL."));
                }
                // "A platform version is only specified for tasks hosted on Fargate."
                if text(input, "platformVersion").is_some() {
                    return Err(invalid(format!(
                        "The platform version must be null when specifying an {kind} launch type."
                    )));
                }
                if launch.public {
                    return Err(invalid("Assign public IP is not supported for this launch type."));
                }
            }
        }
        Ok(launch)
    }

    /// API_CapacityProviderStrategyItem: up to 20, associated with the cluster, one base, some weight.
    fn providers_of(&self, cluster: &str, strategy: &[Value]) -> Result<Vec<(String, u32, u32)>, ApiError> {
        let mut providers = Vec::new();
        for item in strategy {
            let name = text(item, "capacityProvider").unwrap_or_default();
            if self.clusters.get(cluster).is_none_or(|cluster| !cluster.providers.contains(name)) {
                return Err(invalid(format!(
                    "The specified capacity provider '{name}' is not associated with the cluster. Associate it and try again."
                )));
            }
            let [base, weight] = ["base", "weight"].map(|name| number(&item[name]).unwrap_or(0));
            if base > 100_000 || weight > 1000 {
                return Err(invalid("Invalid capacity provider strategy."));
            }
            providers.push((name.to_owned(), base, weight));
        }
        if providers.len() > 20 {
            return Err(invalid("A capacity provider strategy can have at most 20 items."));
        }
        if providers.iter().filter(|(_, base, _)| *base > 0).count() > 1 {
            return Err(invalid("Only one capacity provider in a strategy can have a base defined."));
        }
        // The CLI's users write a single item without a weight; ECS accepts it with weight 1.
        match providers.as_mut_slice() {
            [(_, _, weight)] if strategy[0]["weight"].is_null() => *weight = 1,
            _ => {}
        }
        if providers.iter().all(|(.., weight)| *weight == 0) {
            return Err(invalid("At least one capacity provider must have a weight greater than zero."));
        }
        Ok(providers)
    }

    /// A container instance for a task; `None` if it needs none, or if it may wait for one.
    pub(super) fn place(&self, cluster: &str, need: &Need<'_>) -> Result<Option<String>, NoPlace> {
        if need.launch.kind == "FARGATE" {
            let spot = need.provider == Some("FARGATE_SPOT");
            let has = if spot { self.settings.spot_has_capacity } else { self.settings.fargate_has_capacity };
            let reason =
                "Capacity is unavailable at this time. Please try again later or in a different availability zone";
            return match has {
                true => Ok(None),
                false if self.settings.lack_of_fargate_is_an_error => Err(NoPlace::Error(client(reason))),
                false => Err(NoPlace::Failures(vec![json!({"reason": reason})])),
            };
        }
        let waits =
            need.provider.and_then(|name| self.providers.get(name)).is_some_and(|provider| provider.managed_scaling);
        let (mut failures, mut fitting, mut seen) = (Vec::new(), Vec::new(), false);
        for instance in self.candidates(cluster, need) {
            seen = true;
            match instance.refusal(need) {
                None => fitting.push(instance),
                Some(reason) => failures.push(json!({"arn": instance.arn, "reason": reason})),
            }
        }
        match (self.best(fitting, need), need.provider) {
            (Some(arn), _) => Ok(Some(arn)),
            (None, _) if waits => Ok(None),
            (None, _) if seen => Err(NoPlace::Failures(failures)),
            // "Amazon ECS API failure reasons", RunTask.
            (None, Some(provider)) => {
                let arn = self.arn(&format!("capacity-provider/{provider}"));
                Err(NoPlace::Failures(vec![json!({"arn": arn, "reason": "EMPTY CAPACITY PROVIDER"})]))
            }
            (None, None) => Err(NoPlace::Error(invalid("No Container Instances were found in your cluster."))),
        }
    }

    /// A container instance for a task that waits in PROVISIONING.
    pub(super) fn room(&self, cluster: &str, need: &Need<'_>) -> Option<String> {
        let fitting = self.candidates(cluster, need).filter(|instance| instance.takes(need)).collect();
        self.best(fitting, need)
    }

    /// The instances that may run a task: DRAINING ones get no new tasks (API_UpdateContainerInstancesState).
    fn candidates(&self, cluster: &str, need: &Need<'_>) -> impl Iterator<Item = &Instance> {
        self.instances.values().filter(move |instance| {
            instance.cluster == cluster
                && instance.status == InstanceStatus::Active
                && instance.is_external() == (need.launch.kind == "EXTERNAL")
                && need.provider.is_none_or(|provider| instance.provider.as_deref() == Some(provider))
        })
    }

    /// Applies the rules of the strategy one after the other ("Amazon ECS task placement strategies"); random without
    /// any.
    fn best(&self, fitting: Vec<&Instance>, need: &Need<'_>) -> Option<String> {
        let of_group =
            |instance: &Instance| instance.tasks.values().filter(|group| *group == need.group).count() as u64;
        let random = |instance: &Instance| mix(self.counter ^ mix(instance.number));
        let spread = |instance: &Instance, attribute: &str| {
            let bucket = instance.subject(attribute);
            fitting.iter().filter(|other| other.subject(attribute) == bucket).map(|other| of_group(other)).sum()
        };
        let key = |instance: &&&Instance| {
            let rule = |rule: &Rule| match rule {
                Rule::Random => random(instance),
                Rule::BinpackCpu => u64::from(instance.free.0),
                Rule::BinpackMemory => u64::from(instance.free.1),
                Rule::SpreadInstances => of_group(instance),
                Rule::SpreadAttribute(attribute) => spread(instance, attribute),
            };
            let keys: Vec<u64> = need.launch.strategy.iter().map(rule).collect();
            (keys, Reverse(random(instance)))
        };
        fitting.iter().min_by_key(key).map(|instance| instance.arn.clone())
    }
}

impl Instance {
    /// Whether it can run a task.
    pub(super) fn takes(&self, need: &Need<'_>) -> bool {
        self.refusal(need).is_none()
    }

    /// Why it cannot run a task ("Amazon ECS API failure reasons").
    fn refusal(&self, need: &Need<'_>) -> Option<&'static str> {
        if !self.connected {
            return Some("AGENT");
        }
        let lacks = |(name, value): &(String, Option<String>)| match self.attributes.get(name) {
            Some(has) => value.as_ref().is_some_and(|value| value != has),
            None => true,
        };
        if need.definition.attributes.iter().any(lacks) {
            return Some("ATTRIBUTE");
        }
        for constraint in &need.launch.constraints {
            match constraint {
                Constraint::MemberOf(query) if !query.holds(&|name| self.subject(name)) => {
                    return Some("MemberOf placement constraint unsatisfied.");
                }
                Constraint::DistinctInstance if self.tasks.values().any(|group| group == need.group) => {
                    return Some("DistinctInstance placement constraint unsatisfied.");
                }
                _ => {}
            }
        }
        self.shortage(need)
    }

    /// The resource of which it has too little.
    fn shortage(&self, need: &Need<'_>) -> Option<&'static str> {
        let ports = need.definition.containers.iter().flat_map(|container| &container.ports);
        let mut fixed = ports.filter(|port| port.host != 0);
        let awsvpc = need.definition.network == Network::Awsvpc;
        if need.size.0 > self.free.0 {
            Some("RESOURCE:CPU")
        } else if need.size.1 > self.free.1 {
            Some("RESOURCE:MEMORY")
        } else if need.gpus as usize > self.gpus.len() {
            Some("RESOURCE:GPU")
        } else if awsvpc && self.interfaces == 0 {
            Some("RESOURCE:ENI")
        } else if !awsvpc && fixed.any(|port| self.uses(port.host, port.udp)) {
            Some("RESOURCE:PORTS")
        } else {
            None
        }
    }
}
