//! What a request comes to: pure, synchronous, time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use shared::aws::ecs::{CONTROLLER_TAG, Launch, Task, TemplateRef};
use shared::capacity::{Observed, Plan};
use shared::config::check::is_reserved_variable;
use shared::config::{Cloud, Config, Limit, Override, Size, Template};
use shared::label::LabelExpression;
use shared::message::{AgentRequest, Build, Failure, FailureCode, Overrides, Record, RequestId, Salvage};
use shared::name::{AgentName, digest};
use shared::origin::Origin;
use shared::wait::{Wait, WaitsFor};

/// A request that a template serves.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// The cloud's place in the configuration.
    pub cloud_index: usize,
    /// The cloud.
    pub cloud: &'a Cloud,
    /// The template.
    pub template: &'a Template,
    /// The request's id.
    pub request_id: RequestId,
    /// When Jenkins sent it.
    pub requested_at: Timestamp,
    /// Nobody wants the agents any more after this.
    pub expires_at: Option<Timestamp>,
    /// How many agents the request has in all.
    pub count: u32,
    /// Those still to start.
    pub agents: Vec<u32>,
    /// One URL for each agent, from the first on.
    pub webhook_urls: Vec<String>,
    /// The build that asks.
    pub build: Option<Build>,
    /// What it wants otherwise.
    pub overrides: Overrides,
    /// What it has been through already.
    pub wait: Option<Wait>,
}

/// A request that comes to nothing, and whom that can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Why.
    pub failure: Failure,
    /// Its id, where it is one.
    pub request_id: Option<RequestId>,
    /// Its build.
    pub build: Option<Build>,
    /// Its URLs that may be called.
    pub webhook_urls: Vec<String>,
}

/// What of a message there is besides its body.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// SQS' id.
    pub message_id: &'a str,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// What the request has been through.
    pub wait: Option<&'a Wait>,
}

/// Reads a message and finds the template that serves it.
///
/// # Errors
/// When the message is no request, or none that the configuration allows.
pub fn admit<'a>(
    config: &'a Config,
    origin: &Origin,
    body: &str,
    envelope: Envelope<'_>,
    now: Timestamp,
) -> Result<Order<'a>, Box<Refused>> {
    let admitted = AgentRequest::parse(body)
        .map_err(|message| Failure::new(FailureCode::InvalidRequest, message))
        .and_then(|request| order(config, origin, request, envelope, now));
    admitted.map_err(|failure| {
        let salvage = Salvage::from(body);
        let mut webhook_urls = salvage.webhook_urls;
        webhook_urls.retain(|url| origin.allows(url).is_ok());
        let request_id = salvage
            .request_id
            .or_else(|| envelope.wait.map(|wait| wait.request_id.clone()))
            .or_else(|| envelope.message_id.parse().ok());
        Box::new(Refused { failure, request_id, build: salvage.build, webhook_urls })
    })
}

fn order<'a>(
    config: &'a Config,
    origin: &Origin,
    request: AgentRequest,
    envelope: Envelope<'_>,
    now: Timestamp,
) -> Result<Order<'a>, Failure> {
    let invalid = |message: String| Failure::new(FailureCode::InvalidRequest, message);
    for url in &request.webhook_urls {
        origin.allows(url).map_err(|reason| invalid(format!("webhookUrl: {reason}")))?;
    }
    let request_id = match (request.request_id, envelope.wait) {
        (Some(id), _) => id,
        (None, Some(wait)) => wait.request_id.clone(),
        (None, None) => envelope
            .message_id
            .parse()
            .map_err(|_| invalid("there is no requestId, and the message's id is none either".into()))?,
    };
    if let Some(expiry) = request.expires_at.filter(|&expiry| expiry <= now) {
        let message = format!("the request was not served before it expired at {expiry}");
        return Err(Failure::new(FailureCode::CapacityTimeout, message));
    }
    let expression: LabelExpression =
        request.label.parse().map_err(|error| invalid(format!("label {:?}: {error}", request.label)))?;
    let (cloud_index, cloud, template) = config
        .clouds
        .iter()
        .enumerate()
        .flat_map(|(index, cloud)| cloud.templates.iter().map(move |template| (index, cloud, template)))
        .find(|(_, _, template)| expression.matches(&template.labels))
        .ok_or_else(|| Failure::new(FailureCode::NoTemplate, no_template(config, &request.label)))?;
    check_overrides(template, &request.overrides)?;
    let count = request.count.unwrap_or(template.agents_per_request);
    let wait = envelope.wait.cloned();
    Ok(Order {
        cloud_index,
        cloud,
        template,
        request_id,
        requested_at: wait.as_ref().map(|wait| wait.requested_at).or(envelope.sent_at).unwrap_or(now),
        expires_at: request.expires_at,
        count,
        agents: match &wait {
            Some(wait) => wait.agents.iter().copied().filter(|&index| index < count).collect(),
            None => (0..count).collect(),
        },
        webhook_urls: request.webhook_urls,
        build: request.build,
        overrides: request.overrides,
        wait,
    })
}

fn no_template(config: &Config, label: &str) -> String {
    let served: Vec<String> = config
        .clouds
        .iter()
        .flat_map(|cloud| &cloud.templates)
        .map(|template| {
            let labels: Vec<&str> = template.labels.0.iter().map(String::as_str).collect();
            format!("{} ({})", template.name, labels.join(" "))
        })
        .collect();
    format!("no template serves label {label:?}; the templates serve: {}", served.join(", "))
}

fn check_overrides(template: &Template, overrides: &Overrides) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure::new(FailureCode::OverrideRefused, message));
    let asked = [
        (Override::Cpu, "cpu", overrides.cpu.is_some()),
        (Override::Memory, "memory", overrides.memory.is_some()),
        (Override::Environment, "environment", !overrides.environment.is_empty()),
        (Override::Command, "command", overrides.command.is_some()),
        (Override::TaskRole, "taskRole", overrides.task_role.is_some()),
    ];
    for (kind, name, is_asked) in asked {
        if is_asked && !template.allowed_overrides.contains(&kind) {
            return refuse(format!(
                "overrides.{name}: template {} does not allow it; add {name} to its allowedOverrides",
                template.name
            ));
        }
    }
    let amounts = [
        ("cpu", overrides.cpu, template.limits.cpu),
        ("memory", overrides.memory, template.limits.memory),
    ];
    for (name, asked, limit) in amounts {
        match (asked, limit) {
            (Some(0), _) => {
                return Err(Failure::new(FailureCode::InvalidRequest, format!("overrides.{name}: has to be above 0")));
            }
            (Some(asked), Some(limit)) if asked > limit => {
                return refuse(format!(
                    "overrides.{name}: {asked} is over the limit of {limit} of template {}",
                    template.name
                ));
            }
            _ => {}
        }
    }
    if let Some(name) = overrides.environment.keys().find(|name| is_reserved_variable(name, template.connect)) {
        return refuse(format!("overrides.environment.{name}: is set by the launch itself"));
    }
    if let Some(name) = overrides.environment.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(Failure::new(
            FailureCode::InvalidRequest,
            format!("overrides.environment: {name:?} cannot be a variable's name"),
        ));
    }
    Ok(())
}

impl<'a> Order<'a> {
    /// The name of one of its agents.
    pub fn name(&self, prefix: &str, index: u32) -> AgentName {
        AgentName::new(prefix, &self.template.name, self.request_id.as_str(), index)
    }

    /// The URL that is told of one of its agents.
    pub fn webhook_url(&self, index: u32) -> Option<&str> {
        self.webhook_urls.get(index as usize).map(String::as_str)
    }

    /// How often ECS has answered definitely that there is no room.
    pub fn attempt(&self) -> u32 {
        self.wait.as_ref().map_or(0, |wait| wait.attempt)
    }

    /// The record for one of its tasks.
    pub fn record(&self, index: u32, container: &str) -> Record {
        Record {
            request_id: self.request_id.clone(),
            index,
            count: self.count,
            requested_at: self.requested_at,
            container: container.to_owned(),
            webhook_url: self.webhook_url(index).map(str::to_owned),
            build: self.build.clone(),
        }
    }

    /// What the builds on an agent find in their environment.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = self.template.environment.clone();
        environment.extend(self.overrides.environment.clone());
        environment
    }

    /// The RunTask for one of its agents.
    pub fn launch(
        &self,
        name: &AgentName,
        record: &Record,
        controller: &str,
        inbound: Option<BTreeMap<String, String>>,
    ) -> Launch<'a> {
        let mut environment = self.environment();
        environment.extend(inbound.unwrap_or_default());
        environment.insert(Record::VARIABLE.into(), serde_json::to_string(record).unwrap_or_default());
        let mut tags = self.template.tags.clone();
        tags.insert(CONTROLLER_TAG.into(), controller.into());
        tags.insert("jenkins-ecs-agents:template".into(), self.template.name.clone());
        tags.insert("jenkins-ecs-agents:request-id".into(), self.request_id.to_string());
        Launch {
            cluster: &self.cloud.cluster,
            template: TemplateRef(self.template),
            started_by: name.to_string(),
            client_token: digest(&[name.as_str(), &self.attempt().to_string()]),
            container: record.container.clone(),
            environment,
            tags,
            cpu: self.overrides.cpu,
            memory: self.overrides.memory,
            command: self.overrides.command.clone(),
            task_role: self.overrides.task_role.clone(),
        }
    }

    /// What one of its tasks takes, with the size of its task definition.
    pub fn size(&self, defined: Size) -> Size {
        Size {
            cpu: self.overrides.cpu.unwrap_or(defined.cpu),
            memory: self.overrides.memory.unwrap_or(defined.memory),
        }
    }

    /// What a request for such a template waits for when ECS says that there is no room.
    pub fn waits_for(&self) -> WaitsFor {
        if self.template.on_fargate() { WaitsFor::Fargate } else { WaitsFor::Instance }
    }

    /// Whether a group may be raised for it.
    pub fn scales(&self) -> bool {
        self.cloud.auto_scaling_group.is_some() && self.template.scales_group()
    }

    /// Its next wait, or the failure of one that has waited too long.
    ///
    /// # Errors
    /// When its time is up.
    pub fn next_wait(&self, blocked: &Blocked, now: Timestamp) -> Result<Wait, Failure> {
        let since = self.wait.as_ref().map_or(now, |wait| wait.since);
        let expired = self.expires_at.is_some_and(|expiry| expiry <= now);
        if expired || is_over(since, self.cloud.instance_launch_timeout, now) {
            return Err(Failure::new(
                FailureCode::CapacityTimeout,
                format!("no room within {}: {}", self.cloud.instance_launch_timeout, blocked.reason),
            ));
        }
        // An answer of failures alone is certain, so that the next RunTask carries the next attempt.
        let attempt = self.attempt() + u32::from(blocked.waits_for != WaitsFor::MaxAgents);
        Ok(Wait {
            request_id: self.request_id.clone(),
            requested_at: self.requested_at,
            since,
            attempt,
            agents: blocked.agents.clone(),
            cloud: self.cloud.name.clone(),
            template: self.template.name.clone(),
            size: blocked.size,
            waits_for: blocked.waits_for,
            reason: blocked.reason.clone(),
        })
    }
}

/// Agents of a request that cannot start now.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocked {
    /// Which.
    pub agents: Vec<u32>,
    /// What they wait for.
    pub waits_for: WaitsFor,
    /// Why, for people.
    pub reason: String,
    /// What one of them takes.
    pub size: Option<Size>,
    /// Container instances that are full for another reason than CPU and memory.
    pub full: Vec<String>,
}

/// Whether a wait has lasted too long.
pub fn is_over(since: Timestamp, limit: Limit, now: Timestamp) -> bool {
    limit.0.is_some_and(|limit| now.duration_since(since) >= jiff::SignedDuration::try_from(limit).unwrap_or(jiff::SignedDuration::MAX))
}

/// Whether RunTask's answer shows a task of an earlier message, so that this one is an inquiry: the task is past its
/// start, or older than the message. A message that comes back after a fault is younger than neither and starts nothing
/// twice either way.
pub fn is_inquiry(task: &Task, sent_at: Option<Timestamp>) -> bool {
    const SKEW: Duration = Duration::from_secs(1);
    let starting = matches!(task.last_status.as_str(), "" | "PROVISIONING" | "PENDING" | "ACTIVATING");
    let older = match (task.created_at, sent_at) {
        (Some(created), Some(sent)) => created + SKEW < sent,
        _ => false,
    };
    !starting || older
}

/// What the group's state adds to the reason of a wait.
pub fn explain(reason: &str, order: &Order<'_>, capacity: Option<(&Observed, Plan)>) -> String {
    let Some(group) = capacity.and_then(|(observed, _)| observed.group.as_ref()) else {
        return if order.cloud.auto_scaling_group.is_none() && order.waits_for() == WaitsFor::Instance {
            format!("{reason}; cloud {} has no autoScalingGroup that could be raised", order.cloud.name)
        } else {
            reason.to_owned()
        };
    };
    match capacity {
        Some((_, plan)) if plan.at_maximum => {
            format!("{reason}; group {} is at its maximum of {}", group.name, group.maximum)
        }
        Some((_, Plan { raise_to: Some(target), .. })) => {
            format!("{reason}; group {} was raised from {} to {target}", group.name, group.desired)
        }
        _ => format!("{reason}; group {} has a desired capacity of {}", group.name, group.desired),
    }
}

/// What the waiting work of a cloud comes to: this batch's own agents, and as many more of their average size as wait
/// already. SQS counts approximately, so the sweep makes up for what is missed here.
pub fn demand(own: &[Size], waiting: u32) -> Vec<Size> {
    let Some(count) = u32::try_from(own.len()).ok().filter(|&count| count > 0) else { return Vec::new() };
    let average = Size {
        cpu: own.iter().map(|size| size.cpu).sum::<u32>() / count,
        memory: own.iter().map(|size| size.memory).sum::<u32>() / count,
    };
    own.iter().copied().chain((0..waiting).map(|_| average)).collect()
}

/// Which agents of a request may start while at most so many may exist. An agent that exists already may: its message
/// is an inquiry.
pub fn within_limits(
    order: &Order<'_>,
    names: &[AgentName],
    existing: &mut Existing,
) -> (Vec<u32>, Vec<u32>) {
    order.agents.iter().copied().zip(names).fold((Vec::new(), Vec::new()), |(mut go, mut stay), (index, name)| {
        let template = existing.by_template.get(&order.template.name).copied().unwrap_or_default();
        let full = |limit: Option<u32>, count: u32| limit.is_some_and(|limit| count >= limit);
        if existing.names.contains(name.as_str()) {
            go.push(index);
        } else if full(order.cloud.max_agents, existing.all) || full(order.template.max_agents, template) {
            stay.push(index);
        } else {
            existing.add(name, &order.template.name);
            go.push(index);
        }
        (go, stay)
    })
}

/// The agents of a cloud that exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Existing {
    /// Their names.
    pub names: std::collections::HashSet<String>,
    /// How many.
    pub all: u32,
    /// How many of each template.
    pub by_template: std::collections::HashMap<String, u32>,
}

impl Existing {
    /// Counts one more.
    pub fn add(&mut self, name: &AgentName, template: &str) {
        if self.names.insert(name.to_string()) {
            self.all += 1;
            *self.by_template.entry(template.to_owned()).or_default() += 1;
        }
    }
}
