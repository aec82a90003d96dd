//! Where a task goes: launch types, networks, constraints, and the failures of an answer without tasks.

use serde_json::{Value, json};

use super::model::{Network, TaskDefinition};
use super::{ApiError, Ecs, Instance};

/// What RunTask's parameters say of the place.
pub(super) struct Launch {
    /// `EC2`, `FARGATE`, `EXTERNAL`.
    pub kind: &'static str,
    /// Whether tasks may wait in PROVISIONING for a capacity provider's instances.
    pub waits: bool,
    /// Whether it is Fargate Spot.
    pub spot: bool,
    /// Whether the task gets a public address.
    pub public: bool,
}

/// Why there is no place.
pub(super) enum NoPlace {
    /// The call is wrong.
    Error(ApiError),
    /// The answer has failures.
    Failures(Vec<Value>),
}

impl Launch {
    /// Reads and checks the parameters (API_RunTask).
    pub fn new(input: &Value, definition: &TaskDefinition) -> Result<Self, ApiError> {
        let invalid = |message: &str| Err(ApiError::new("InvalidParameterException", message));
        let strategy = input["capacityProviderStrategy"].as_array().filter(|strategy| !strategy.is_empty());
        let kind = input["launchType"].as_str();
        if strategy.is_some() && kind.is_some() {
            return invalid("Specifying both a launch type and capacity provider strategy is not supported.");
        }
        let provider = strategy.and_then(|strategy| strategy[0]["capacityProvider"].as_str());
        let fargate = kind == Some("FARGATE") || provider.is_some_and(|provider| provider.starts_with("FARGATE"));
        let network = &input["networkConfiguration"]["awsvpcConfiguration"];
        if definition.network == Network::Awsvpc && network["subnets"].as_array().is_none_or(Vec::is_empty) {
            return invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified.");
        }
        if definition.network != Network::Awsvpc && !network.is_null() {
            return invalid("Network Configuration is not valid for the given networkMode of this task definition.");
        }
        if fargate {
            if definition.network != Network::Awsvpc {
                return invalid("Fargate only supports network mode ‘awsvpc’.");
            }
            if input["placementStrategy"].as_array().is_some_and(|rules| !rules.is_empty())
                || input["placementConstraints"].as_array().is_some_and(|rules| !rules.is_empty())
            {
                return invalid("Placement strategies and constraints are not supported with FARGATE launch type.");
            }
        } else {
            if !input["platformVersion"].is_null() {
                return invalid("The platform version must be null when specifying an EC2 launch type.");
            }
            if network["assignPublicIp"] == "ENABLED" {
                return invalid("Assign public IP is not supported for this launch type.");
            }
        }
        Ok(Self {
            kind: match kind {
                _ if fargate => "FARGATE",
                Some("EXTERNAL") => "EXTERNAL",
                _ => "EC2",
            },
            waits: provider.is_some() && !fargate,
            spot: provider == Some("FARGATE_SPOT"),
            public: network["assignPublicIp"] == "ENABLED",
        })
    }
}

impl Ecs {
    /// A container instance for a task; none where none is needed.
    pub(super) fn place(
        &self,
        cluster: &str,
        definition: &TaskDefinition,
        launch: &Launch,
        size: (u32, u32),
        input: &Value,
    ) -> Result<Option<String>, NoPlace> {
        if launch.kind == "FARGATE" {
            return if self.settings.fargate_has_capacity {
                Ok(None)
            } else {
                let reason = "Capacity is unavailable at this time. Please try again later or in a different availability zone";
                Err(NoPlace::Failures(vec![json!({"reason": reason})]))
            };
        }
        let instances: Vec<&Instance> =
            self.instances.values().filter(|instance| instance.cluster == cluster && instance.status == "ACTIVE").collect();
        if instances.is_empty() && !launch.waits {
            let error = ApiError::new("InvalidParameterException", "No Container Instances were found in your cluster.");
            return Err(NoPlace::Error(error));
        }
        let mut failures = Vec::new();
        let mut fitting: Vec<&Instance> = Vec::new();
        for instance in instances {
            match self.refusal(instance, definition, size, input) {
                None => fitting.push(instance),
                Some(reason) => failures.push(json!({"arn": instance.arn, "reason": reason})),
            }
        }
        let rule = &input["placementStrategy"][0];
        match (rule["type"].as_str(), rule["field"].as_str()) {
            (Some("binpack"), Some(field)) if field.eq_ignore_ascii_case("cpu") => fitting.sort_by_key(|instance| instance.free.0),
            (Some("binpack"), _) => fitting.sort_by_key(|instance| instance.free.1),
            _ => fitting.sort_by_key(|instance| std::cmp::Reverse(instance.free)),
        }
        match fitting.first() {
            Some(instance) => Ok(Some(instance.arn.clone())),
            None if launch.waits => Ok(None),
            None => Err(NoPlace::Failures(failures)),
        }
    }

    /// Any container instance with room, for tasks that wait in PROVISIONING.
    pub(super) fn any_room(&self, cluster: &str, definition: &TaskDefinition, size: (u32, u32)) -> Option<String> {
        self.instances
            .values()
            .filter(|instance| instance.cluster == cluster && instance.status == "ACTIVE")
            .find(|instance| self.refusal(instance, definition, size, &Value::Null).is_none())
            .map(|instance| instance.arn.clone())
    }

    /// Why an instance does not take a task ("Amazon ECS API failure reasons").
    fn refusal(&self, instance: &Instance, definition: &TaskDefinition, size: (u32, u32), input: &Value) -> Option<&'static str> {
        if !instance.connected {
            return Some("AGENT");
        }
        for constraint in input["placementConstraints"].as_array().into_iter().flatten() {
            let met = match constraint["type"].as_str() {
                Some("memberOf") => is_member(instance, constraint["expression"].as_str().unwrap_or_default()),
                _ => !self.tasks.values().any(|task| {
                    task.instance.as_deref() == Some(&instance.arn)
                        && task.family == definition.family
                        && task.desired_status == "RUNNING"
                }),
            };
            if !met {
                return Some("ATTRIBUTE");
            }
        }
        if size.0 > instance.free.0 {
            return Some("RESOURCE:CPU");
        }
        if size.1 > instance.free.1 {
            return Some("RESOURCE:MEMORY");
        }
        if definition.network == Network::Awsvpc && instance.interfaces == 0 {
            return Some("RESOURCE:ENI");
        }
        let fixed = definition.containers.iter().flat_map(|container| &container.ports).map(|port| match definition.network {
            Network::Host => port.container,
            _ => port.host,
        });
        if definition.network != Network::Awsvpc && fixed.into_iter().any(|port| port != 0 && instance.ports.contains(&port)) {
            return Some("RESOURCE:PORTS");
        }
        None
    }
}

/// `attribute:NAME == VALUE` and `attribute:NAME != VALUE`, the part of the cluster query language that is used here.
fn is_member(instance: &Instance, expression: &str) -> bool {
    let parts: Vec<&str> = expression.split_whitespace().collect();
    let value = |name: &str| name.strip_prefix("attribute:").and_then(|name| instance.attributes.get(name)).map(String::as_str);
    match parts.as_slice() {
        [name, "==", wanted] => value(name) == Some(*wanted),
        [name, "!=", wanted] => value(name) != Some(*wanted),
        [name, "exists"] => value(name).is_some(),
        _ => false,
    }
}
