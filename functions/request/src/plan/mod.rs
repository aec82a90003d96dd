//! Decides what becomes of a request: pure, synchronous, time is an argument.

pub mod agent;
pub mod inquiry;
pub mod limits;
pub mod overrides;
pub mod room;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use shared::agents::Subject;
use shared::aws::ecs::{CONTROLLER_TAG, PlacementFailure, TaskDefinition};
use shared::batch::{self, Item};
use shared::capacity::Need;
use shared::config::{Cloud, Config, Connect, Size, Template};
use shared::fault::{Placement, classify_placement};
use shared::label::LabelExpression;
use shared::message::{AgentRequest, Build, Failure, FailureCode, MOST_AGENTS, Overrides, Record, RequestId, Salvage};
use shared::name::{AgentName, digest};
use shared::origin::Origin;
use shared::trace::Trace;
use shared::wait::{self, Wait, WaitsFor};

use crate::launch::{Launch, OVERRIDES_BYTES, variable_bytes};

/// A request that a template serves.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// The cloud's index in the configuration.
    pub cloud_index: usize,
    pub cloud: &'a Cloud,
    pub template: &'a Template,
    pub request_id: RequestId,
    /// When Jenkins sent it.
    pub requested_at: Timestamp,
    /// After this time, the agents are no longer wanted.
    pub expires_at: Option<Timestamp>,
    /// Why no agent is started any more: the request has expired.
    pub expired: Option<Failure>,
    /// The request's number of agents.
    pub count: u32,
    /// Those still to start.
    pub agents: Vec<u32>,
    /// One URL per agent, from the first on.
    pub webhook_urls: Vec<String>,
    /// The build that requested it.
    pub build: Option<Build>,
    /// Where it differs from the template.
    pub overrides: Overrides,
    /// Its wait so far.
    pub wait: Option<Wait>,
    /// Its trace, if it is sampled.
    pub trace: Option<Trace>,
}

/// A request that cannot be served, and the details needed to report it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Why.
    pub failure: Failure,
    /// Its id, if it is valid.
    pub request_id: Option<RequestId>,
    /// Its build.
    pub build: Option<Build>,
    /// The URLs that may be called.
    pub webhook_urls: Vec<String>,
}

/// Message metadata: id, send time, wait, trace, accounts.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The SQS message id.
    pub message_id: &'a str,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// The request's wait so far.
    pub wait: Option<&'a Wait>,
    pub trace: Option<&'a Trace>,
    /// The accounts of the queue and the function.
    pub own_accounts: &'a BTreeSet<String>,
}

/// Parses a message and finds the template that serves it.
///
/// # Errors
/// When the message is not a valid request, or the configuration does not allow it.
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
    let own_id = request.request_id.or_else(|| envelope.wait.map(|wait| wait.request_id.clone()));
    let request_id = own_id
        .or_else(|| envelope.message_id.parse().ok())
        .ok_or_else(|| invalid("there is no requestId, and the message's id is none either".into()))?;
    let expired = request.expires_at.filter(|&expiry| expiry <= now).map(|expiry| {
        let message = format!("the request was not served before it expired at {expiry}");
        Failure::new(FailureCode::CapacityTimeout, message)
    });
    let (cloud_index, cloud, template) = template_for(config, &request.label)?;
    let wait = envelope.wait.cloned();
    // A woken request carries the trace of whoever woke it; its own is the first.
    let trace = wait.as_ref().map_or_else(|| envelope.trace.cloned(), |wait| wait.trace.clone());
    // The waiting agents keep their place, even if the template has changed.
    let promised = wait.iter().flat_map(|wait| &wait.agents).filter(|&&index| index < MOST_AGENTS);
    let promised: BTreeSet<u32> = promised.copied().collect();
    let count = request.count.unwrap_or(template.agents_per_request);
    let count = promised.last().map_or(count, |index| count.max(index + 1));
    let has_webhooks = request.webhook_urls.len() >= count as usize;
    overrides::check(template, &request.overrides, has_webhooks)?;
    overrides::check_task_definition(cloud, template, &request.overrides, envelope.own_accounts)?;
    Ok(Order {
        cloud_index,
        cloud,
        template,
        request_id,
        requested_at: wait.as_ref().map(|wait| wait.requested_at).or(envelope.sent_at).unwrap_or(now),
        expires_at: request.expires_at,
        expired,
        count,
        agents: if wait.is_some() { promised.into_iter().collect() } else { (0..count).collect() },
        webhook_urls: request.webhook_urls,
        build: request.build,
        overrides: request.overrides,
        wait,
        trace,
    })
}

/// The first template that serves a label expression, with its cloud and the cloud's index.
fn template_for<'a>(config: &'a Config, label: &str) -> Result<(usize, &'a Cloud, &'a Template), Failure> {
    let expression: LabelExpression = label
        .parse()
        .map_err(|error| Failure::new(FailureCode::InvalidRequest, format!("label {label:?}: {error}")))?;
    let clouds = config.clouds.iter().enumerate();
    clouds
        .flat_map(|(index, cloud)| cloud.templates.iter().map(move |template| (index, cloud, template)))
        .find(|(_, _, template)| expression.matches(&template.labels))
        .ok_or_else(|| Failure::new(FailureCode::NoTemplate, no_template(config, label)))
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

impl<'a> Order<'a> {
    /// The name of one of its agents.
    pub fn name(&self, prefix: &str, index: u32) -> AgentName {
        AgentName::new(prefix, &self.template.name, self.request_id.as_str(), index)
    }

    /// The webhook URL of one of its agents.
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
            trace: self.trace.clone(),
        }
    }

    /// The environment variables that builds on an agent see.
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
        let mut tags = self.template.tags.clone();
        tags.insert(CONTROLLER_TAG.into(), controller.into());
        tags.insert("jenkins-ecs-agents:template".into(), self.template.name.clone());
        tags.insert("jenkins-ecs-agents:request-id".into(), self.request_id.to_string());
        let mut launch = Launch {
            template: self.template,
            started_by: name.to_string(),
            client_token: digest(&[name.as_str(), &self.attempt().to_string()]),
            container: record.container.clone(),
            environment,
            tags,
            cpu: self.overrides.cpu,
            memory: self.overrides.memory,
            command: self.overrides.command.clone(),
            task_role: self.overrides.task_role.clone(),
            task_definition: self.task_definition().to_owned(),
            ephemeral_storage: self.overrides.ephemeral_storage,
        };
        // The tags that we add are never the reason for which ECS refuses a task.
        let room = OVERRIDES_BYTES.saturating_sub(launch.overrides_bytes());
        let record = record.within(|record| variable_bytes(Record::VARIABLE, record) <= room);
        launch.environment.insert(Record::VARIABLE.into(), record);
        launch
    }

    /// The task definition of its tasks: the template's, unless the request overrides it.
    pub fn task_definition(&self) -> &str {
        self.overrides.task_definition.as_ref().map_or(&self.template.task_definition, |asked| asked.as_str())
    }

    /// The agent's container in a task definition.
    ///
    /// # Errors
    /// When it is missing, or Jenkins could not log in to it.
    pub fn container(&self, definition: &TaskDefinition) -> Result<String, String> {
        let name = match &self.template.container {
            Some(name) => name.as_str(),
            None => definition.only_essential()?,
        };
        let found = definition.containers.iter().find(|container| container.name == name);
        let container = found.ok_or_else(|| format!("task definition {} has no container {name}", definition.arn))?;
        let port = i32::from(self.template.ssh.port);
        // With awsvpc and host, every port of the container is reachable without a mapping.
        let is_open = matches!(definition.network_mode.as_str(), "awsvpc" | "host") || container.ports.contains(&port);
        match self.template.connect == Connect::Inbound || is_open {
            true => Ok(name.to_owned()),
            false => Err(format!(
                "container {name} of {} maps no port {port}: add a port mapping with host port 0, or change ssh.port",
                definition.arn
            )),
        }
    }

    /// The size of one of its tasks, with that of its task definition.
    pub fn size(&self, defined: Size) -> Size {
        Size { cpu: self.overrides.cpu.unwrap_or(defined.cpu), memory: self.overrides.memory.unwrap_or(defined.memory) }
    }

    /// Whether a limit on the number of agents decides if it may start some.
    pub fn is_limited(&self) -> bool {
        self.cloud.max_agents.or(self.template.max_agents).is_some() && self.expired.is_none()
    }

    /// One of its agents, for a notice.
    pub fn subject<'s>(&'s self, name: &'s AgentName) -> Subject<'s> {
        Subject {
            name,
            template: Some(self.template),
            request_id: Some(&self.request_id),
            build: self.build.as_ref(),
            requested_at: Some(self.requested_at),
        }
    }

    /// An agent that ECS has no room for.
    pub fn no_room(&self, index: u32, reason: String, failures: Vec<PlacementFailure>) -> Blocked {
        // Only the answer shows that the cluster's default strategy, or a capacity provider, is Fargate's.
        let of_error = failures.is_empty().then(|| classify_placement(&reason));
        let mut placements = failures.iter().map(|failure| failure.placement).chain(of_error);
        let lacks_capacity = placements.any(|placement| placement == Placement::NoCapacity);
        let is_fargate = self.template.on_fargate() || (self.template.launch.may_be_fargate() && lacks_capacity);
        let waits_for = if is_fargate { WaitsFor::Fargate } else { WaitsFor::Instance };
        Blocked { agents: vec![index], waits_for, reason, need: Need::default(), failures }
    }

    /// Agents that wait until others end.
    pub fn over_limit(&self, agents: Vec<u32>) -> Blocked {
        let limits = [
            self.cloud.max_agents.map(|limit| format!("{limit} of cloud {}", self.cloud.name)),
            self.template.max_agents.map(|limit| format!("{limit} of template {}", self.template.name)),
        ];
        let reason = format!("maxAgents ({}) are running", limits.into_iter().flatten().collect::<Vec<_>>().join(", "));
        Blocked { agents, waits_for: WaitsFor::MaxAgents, reason, need: Need::default(), failures: Vec::new() }
    }

    /// Whether a group may be raised for it.
    pub fn scales(&self) -> bool {
        self.cloud.auto_scaling_group.is_some() && self.template.scales_group()
    }

    /// The same request after its expiry.
    pub fn expire(&self, failure: Failure) -> Self {
        Self { expired: Some(failure), ..self.clone() }
    }

    /// Its next wait, or the failure of a request that has waited too long.
    ///
    /// # Errors
    /// When it has waited too long.
    pub fn next_wait(&self, blocked: &Blocked, now: Timestamp) -> Result<Wait, Failure> {
        // Anyone who may send a request can write the attribute, but the wait still has an end.
        let since = self.wait.as_ref().map_or(now, |wait| wait.since.min(now));
        if let Some(failure) = wait::too_long(since, &blocked.reason, Some(self.cloud), self.expires_at, now) {
            return Err(failure);
        }
        // An answer of failures alone is certain, so the next RunTask carries the next attempt.
        let attempt = self.attempt().saturating_add(u32::from(blocked.waits_for != WaitsFor::MaxAgents));
        Ok(Wait {
            request_id: self.request_id.clone(),
            requested_at: self.requested_at,
            since,
            attempt,
            agents: blocked.agents.clone(),
            cloud: self.cloud.name.clone(),
            template: self.template.name.clone(),
            size: (blocked.waits_for == WaitsFor::Instance).then_some(blocked.need.size),
            gpus: blocked.need.gpus,
            exclusive: blocked.need.exclusive.clone(),
            waits_for: blocked.waits_for,
            reason: blocked.reason.clone(),
            trace: self.trace.clone(),
        })
    }
}

/// Agents of a request that cannot start now.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocked {
    /// Their indexes.
    pub agents: Vec<u32>,
    /// What they wait for.
    pub waits_for: WaitsFor,
    /// Why, human-readable.
    pub reason: String,
    /// The size of one of them.
    pub need: Need,
    /// Why each container instance that was considered did not take it.
    pub failures: Vec<PlacementFailure>,
}

/// When a request was sent first: when its first message was sent. None if that is implausible: SQS keeps a message for
/// 14 days at most.
pub fn asked_at(item: &Item, now: Timestamp) -> Option<Timestamp> {
    let asked = item.wait.as_ref().map(|wait| wait.requested_at).or(item.sent_at);
    asked.filter(|&asked| batch::may_be_in_a_queue(asked, now))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::json;
    use shared::aws::ecs::Task;
    use shared::config::from_yaml;

    use super::inquiry::{Answer, answer, is_inquiry};
    use super::limits::{Existing, Split, within};
    use super::room::{demand, depth_is_demand};
    use super::*;

    const CONFIG: &str = "
jenkins: {url: https://ci.example.com/}
clouds:
  - name: linux
    region: eu-west-1
    autoScalingGroup: group
    maxAgents: 3
    templates:
      - name: maven
        labels: [linux, maven]
        taskDefinition: maven
        container: agent
        connect: ssh
        environment: {A: template, B: template}
        tags: {team: build}
        maxAgents: 2
        agentsPerRequest: 2
        allowedOverrides: [cpu, environment]
        limits: {cpu: 2048}
      - {name: any, labels: [linux, node], taskDefinition: node, container: agent, connect: ssh}
";

    fn config() -> Config {
        from_yaml(CONFIG).expect("a configuration")
    }

    fn origin(config: &Config) -> Origin {
        Origin::new((*config.jenkins.url).clone())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    static NO_ACCOUNTS: BTreeSet<String> = BTreeSet::new();

    fn envelope(wait: Option<&Wait>) -> Envelope<'_> {
        let message_id = "11111111-1111-4111-8111-111111111111";
        Envelope { message_id, sent_at: Some(at(0)), wait, trace: None, own_accounts: &NO_ACCOUNTS }
    }

    fn admitted<'a>(config: &'a Config, body: &str) -> Result<Order<'a>, Box<Refused>> {
        admit(config, &origin(config), body, envelope(None), at(1))
    }

    #[test]
    fn uses_the_first_matching_template() {
        let config = config();
        for (label, template) in
            [("linux", "maven"), ("maven", "maven"), ("linux && !maven", "any"), ("node -> linux", "maven")]
        {
            let body = serde_json::json!({"version": 1, "label": label}).to_string();
            assert_eq!(admitted(&config, &body).expect(label).template.name, template, "{label}");
        }
        let order = admitted(&config, r#"{"version": 1, "label": "maven"}"#).expect("good");
        assert_eq!(order.request_id.as_str(), "11111111-1111-4111-8111-111111111111");
        assert_eq!((order.count, order.agents.as_slice()), (2, [0, 1].as_slice()));
        assert_eq!(order.requested_at, at(0));
    }

    #[test]
    fn an_expired_request_carries_its_failure() {
        let config = config();
        let expired = |at: &str| {
            let body = serde_json::json!({"version": 1, "label": "linux", "expiresAt": at}).to_string();
            admitted(&config, &body).expect("a request").expired.map(|failure| failure.code)
        };
        assert_eq!(expired("2027-01-15T08:00:00Z"), Some(FailureCode::CapacityTimeout));
        assert_eq!(expired("2027-01-15T10:00:00+02:00"), Some(FailureCode::CapacityTimeout));
        assert_eq!(expired("2027-01-15T08:00:02Z"), None);
    }

    #[test]
    fn keeps_waiting_agents_when_the_template_asks_for_fewer() {
        let config = config();
        let body = r#"{"version": 1, "label": "linux && node"}"#;
        let admitted = admitted(&config, body).expect("a request");
        let blocked = Blocked {
            agents: vec![1, 2],
            waits_for: WaitsFor::Instance,
            reason: "RESOURCE:MEMORY".into(),
            need: Need::default(),
            failures: vec![],
        };
        let wait = admitted.next_wait(&blocked, at(1)).expect("it may wait");
        let again = admit(&config, &origin(&config), body, envelope(Some(&wait)), at(60)).expect("a request");
        assert_eq!((again.count, again.agents), (3, vec![1, 2]));
    }

    #[test]
    fn the_depth_of_the_queue_is_the_demand_while_no_limit_applies() {
        let config = config();
        let existing = |count: u32| {
            let mut existing = Existing::default();
            for index in 0..count {
                existing.add(&AgentName::new("ecs-", "any", "r", index), "any");
            }
            HashMap::from([(0, existing)])
        };
        assert!(depth_is_demand(&config, &existing(2)));
        assert!(
            !depth_is_demand(&config, &existing(3)),
            "the cloud's three are there, and some may wait for their end"
        );
        assert!(!depth_is_demand(&config, &HashMap::new()), "nobody counted");
    }

    #[test]
    fn refuses_with_a_code_what_cannot_be_served() {
        use FailureCode::*;
        let config = config();
        for (body, code, part) in [
            ("", InvalidRequest, "not JSON"),
            ("[]", InvalidRequest, "not an AgentRequest"),
            (r#""{}""#, InvalidRequest, "not an AgentRequest"),
            (r#"{"label": "linux"}"#, InvalidRequest, "version"),
            (r#"{"version": 2, "label": "linux"}"#, InvalidRequest, "version 2"),
            (r#"{"version": "1", "label": "linux"}"#, InvalidRequest, "version"),
            (r#"{"version": 1}"#, InvalidRequest, "label"),
            (r#"{"version": 1, "label": "linux", "colour": 1}"#, InvalidRequest, "colour"),
            (r#"{"version": 1, "label": "linux", "label": "maven"}"#, InvalidRequest, "duplicate"),
            (r#"{"version": 1, "label": "linux &&"}"#, InvalidRequest, "character"),
            (r#"{"version": 1, "label": "linux", "count": 0}"#, InvalidRequest, "1 to 10"),
            (r#"{"version": 1, "label": "linux", "count": 11}"#, InvalidRequest, "1 to 10"),
            (r#"{"version": 1, "label": "linux", "requestId": "a b"}"#, InvalidRequest, "requestId"),
            (r#"{"version": 1, "label": "linux", "expiresAt": "soon"}"#, InvalidRequest, "expiresAt"),
            (r#"{"version": 1, "label": "linux", "webhookUrl": "https://evil.org/x"}"#, InvalidRequest, "host"),
            (
                r#"{"version": 1, "label": "linux", "webhookUrl": ["https://ci.example.com/x", "http://ci.example.com/x"]}"#,
                InvalidRequest,
                "scheme",
            ),
            (r#"{"version": 1, "label": "linux", "webhookUrl": 3}"#, InvalidRequest, "webhookUrl"),
            (r#"{"version": 1, "label": "windows"}"#, NoTemplate, "maven (linux maven), any (linux node)"),
            (r#"{"version": 1, "label": "linux", "overrides": {"memory": 1}}"#, OverrideRefused, "memory"),
            (r#"{"version": 1, "label": "linux", "overrides": {"cpu": 4096}}"#, OverrideRefused, "2048"),
            (r#"{"version": 1, "label": "linux", "overrides": {"cpu": 0}}"#, InvalidRequest, "cpu"),
            (r#"{"version": 1, "label": "linux", "overrides": {"cpu": -1}}"#, InvalidRequest, "-1"),
            (
                r#"{"version": 1, "label": "linux", "overrides": {"environment": {"JENKINS_ECS_AGENTS_REQUEST": "x"}}}"#,
                OverrideRefused,
                "needs a webhookUrl for each agent",
            ),
            (
                r#"{"version": 1, "label": "linux", "count": 1, "webhookUrl": "https://ci.example.com/x", "overrides": {"environment": {"JENKINS_ECS_AGENTS_REQUEST": "x"}}}"#,
                OverrideRefused,
                "launch itself",
            ),
            (
                r#"{"version": 1, "label": "linux", "count": 1, "webhookUrl": "https://ci.example.com/x", "overrides": {"environment": {"REMOTING_OPTS": "x"}}}"#,
                OverrideRefused,
                "template alone",
            ),
            (
                r#"{"version": 1, "label": "linux", "count": 2, "webhookUrl": ["https://ci.example.com/x"], "overrides": {"environment": {"A": "x"}}}"#,
                OverrideRefused,
                "needs a webhookUrl for each agent",
            ),
        ] {
            let refused = admitted(&config, body).map(|_| ()).expect_err(body);
            assert_eq!(refused.failure.code, code, "{body}: {}", refused.failure.message);
            assert!(refused.failure.message.contains(part), "{body}: {}", refused.failure.message);
        }
    }

    #[test]
    fn reports_a_refusal_only_to_allowed_webhooks() {
        let config = config();
        let body =
            r#"{"version": 9, "requestId": "r-1", "webhookUrl": ["https://ci.example.com/a", "https://evil.org/b"]}"#;
        let refused = admitted(&config, body).map(|_| ()).expect_err("refused");
        assert_eq!(refused.webhook_urls, ["https://ci.example.com/a"]);
        assert_eq!(refused.request_id.expect("an id").as_str(), "r-1");
    }

    #[test]
    fn a_message_in_an_sns_envelope_is_the_same_message() {
        let config = config();
        let inner = serde_json::json!({"version": 1, "label": "maven", "requestId": "r-1"}).to_string();
        let body =
            serde_json::json!({"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": inner}).to_string();
        assert_eq!(admitted(&config, &body).expect("good").request_id.as_str(), "r-1");
    }

    #[test]
    fn a_launch_carries_its_record() {
        let config = config();
        let body = r#"{"version": 1, "label": "maven", "requestId": "r-1", "overrides": {"cpu": 512, "environment": {"B": "request"}}, "count": 1,
            "webhookUrl": "https://ci.example.com/a", "build": {"job": "j", "number": 1}}"#;
        let order = admitted(&config, body).expect("good");
        let name = order.name("ecs-", 0);
        let record = order.record(0, "agent");
        let launch = order.launch(&name, &record, "https://ci.example.com/", None);
        assert_eq!(launch.started_by, name.as_str());
        assert!(launch.client_token.len() <= 64);
        assert_eq!(launch.environment["A"], "template");
        assert_eq!(launch.environment["B"], "request");
        assert_eq!(serde_json::from_str::<Record>(&launch.environment[Record::VARIABLE]).expect("a record"), record);
        assert_eq!(launch.tags["team"], "build");
        assert_eq!(launch.tags[CONTROLLER_TAG], "https://ci.example.com/");
        assert_eq!((launch.cpu, launch.memory), (Some(512), None));
        assert_eq!(order.record(1, "agent").webhook_url, None, "one URL is the first agent's");
    }

    #[test]
    fn only_a_definite_refusal_changes_the_token_and_every_wait_ends() {
        let config = config();
        let body = r#"{"version": 1, "label": "maven", "requestId": "r-1"}"#;
        let order = admitted(&config, body).expect("good");
        let mut blocked = Blocked {
            agents: vec![1],
            waits_for: WaitsFor::Instance,
            reason: "RESOURCE:CPU".into(),
            need: Need::default(),
            failures: vec![],
        };
        let wait = order.next_wait(&blocked, at(10)).expect("it waits");
        assert_eq!((wait.attempt, wait.since, wait.agents.as_slice()), (1, at(10), [1].as_slice()));
        let again = admit(&config, &origin(&config), body, envelope(Some(&wait)), at(20)).expect("good");
        assert_eq!(again.agents, [1]);
        let token =
            |order: &Order<'_>| order.launch(&order.name("ecs-", 1), &order.record(1, "agent"), "", None).client_token;
        assert_ne!(token(&order), token(&again));
        blocked.waits_for = WaitsFor::MaxAgents;
        assert_eq!(again.next_wait(&blocked, at(30)).expect("it waits").attempt, 1, "ECS was not even asked");
        let failure = again.next_wait(&blocked, at(10 + 900)).expect_err("too long");
        assert_eq!(failure.code, FailureCode::CapacityTimeout);
        assert!(failure.message.contains("15m"), "{}", failure.message);
    }

    #[test]
    fn distinguishes_an_inquiry_from_a_repeated_message() {
        let task = |status: &str, created: i64| Task {
            last_status: status.into(),
            created_at: Some(at(created)),
            ..Task::default()
        };
        for (status, created, inquiry) in [
            ("PENDING", 100, false),
            ("PENDING", 10, true),
            ("RUNNING", 101, false),
            ("RUNNING", 50, true),
            ("STOPPED", 101, false),
        ] {
            assert_eq!(is_inquiry(&task(status, created), Some(at(100))), inquiry, "{status} {created}");
        }
        assert!(is_inquiry(&task("RUNNING", 1), None) && !is_inquiry(&task("PENDING", 1), None));
        let sent = |at: Timestamp| {
            let record = json!({"attributes": {"SentTimestamp": at.as_millisecond().to_string()}});
            batch::items(&json!({"Records": [record]})).expect("a batch").remove(0)
        };
        assert_eq!(asked_at(&sent(Timestamp::UNIX_EPOCH), at(0)), None);
        assert_eq!(asked_at(&sent(at(0)), at(5)), Some(at(0)));
    }

    #[test]
    fn answers_an_inquiry_with_the_state_when_it_was_sent() {
        let task = |status: &str, desired: &str, reported: Option<i64>, stopped: Option<i64>| {
            let mut task = Task { last_status: status.into(), desired_status: desired.into(), ..Task::default() };
            task.stopped_at = stopped.map(at);
            task.tags.extend(
                reported.map(|time| (shared::aws::ecs::REPORTED_TAG.to_owned(), format!("ready {}", at(time)))),
            );
            task
        };
        let answered = |task: Task| match answer(&[task], Some(at(100))) {
            Answer::Ready(_) => "ready",
            Answer::Ended(_) => "ended",
            Answer::Nothing => "nothing",
        };
        assert_eq!(answered(task("RUNNING", "RUNNING", Some(50), None)), "ready");
        assert_eq!(answered(task("RUNNING", "RUNNING", Some(150), None)), "nothing");
        assert_eq!(answered(task("RUNNING", "RUNNING", None, None)), "nothing");
        assert_eq!(answered(task("STOPPED", "STOPPED", None, Some(50))), "ended");
        assert_eq!(answered(task("STOPPED", "STOPPED", Some(50), Some(150))), "nothing");
        assert_eq!(answered(task("STOPPING", "STOPPED", None, None)), "nothing");
        assert_eq!(answer(&[], Some(at(100))), Answer::Ended(None));
    }

    #[test]
    fn limits_count_existing_agents_and_allow_inquiries() {
        let config = config();
        let order =
            admitted(&config, r#"{"version": 1, "label": "maven", "requestId": "r-1", "count": 3}"#).expect("good");
        let split = |placeable: &[u32], over_limit: &[u32]| Split {
            placeable: placeable.to_vec(),
            over_limit: over_limit.to_vec(),
        };
        let mut none = Existing::default();
        assert_eq!(within(&order, "ecs-", &mut none), split(&[0, 1], &[2]));
        let mut first = Existing::default();
        first.add(&order.name("ecs-", 0), "maven");
        first.add(&AgentName::new("ecs-", "any", "other", 0), "any");
        assert_eq!(within(&order, "ecs-", &mut first), split(&[0, 1], &[2]));
        let mut full = Existing::default();
        for index in 0..3 {
            full.add(&AgentName::new("ecs-", "any", "other", index), "any");
        }
        assert_eq!(within(&order, "ecs-", &mut full), split(&[], &[0, 1, 2]));
    }

    proptest! {
        #[test]
        fn never_panics_and_copies_have_the_same_names(body in ".{0,200}", label in "[a-z!&|()<>\" -]{0,20}") {
            let config = config();
            let _ = admitted(&config, &body);
            let body = serde_json::json!({"version": 1, "label": label, "requestId": "r"}).to_string();
            if let Ok(order) = admitted(&config, &body) {
                let later = admit(&config, &origin(&config), &body, Envelope { message_id: "x", sent_at: Some(at(9)), ..envelope(None) }, at(9));
                prop_assert_eq!(order.name("ecs-", 0), later.expect("the same").name("ecs-", 0));
            }
        }

        #[test]
        fn the_demand_is_that_of_the_batch_and_of_the_queue(
            own in prop::collection::vec((1u32..4096, 1u32..8192), 0..20), waiting in 0u32..200
        ) {
            let own: Vec<Need> = own.into_iter().map(|(cpu, memory)| Size { cpu, memory }.into()).collect();
            let demand = demand(&own, waiting);
            prop_assert_eq!(demand.len(), if own.is_empty() { 0 } else { own.len() + waiting as usize });
            prop_assert!(demand.starts_with(&own));
        }
    }
}
