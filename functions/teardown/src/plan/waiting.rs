//! Decides what the sweep does about waiting requests: expired ones fail, those that find room go back to the requests
//! queue, and the groups are raised for the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use shared::aws::autoscaling::{Group, Membership};
use shared::aws::ecs::Instance;
use shared::capacity::{Need, Observed};
use shared::config::{Cloud, Template};
use shared::message::{AgentRequest, Failure};
use shared::name::AgentName;
use shared::wait::{self, Placed, Wait, Waiting, WaitsFor};

/// What becomes of one waiting message.
#[derive(Debug, Clone, PartialEq)]
pub enum MessageStep {
    /// It has waited too long.
    Fail(Failure),
    /// It goes back to the requests queue.
    Wake,
    /// It continues to wait.
    Keep,
}

/// A group's desired capacity is raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raise {
    /// The cloud's index in the configuration.
    pub cloud: usize,
    pub group: Group,
    pub desired: u32,
    /// The agents that wait for it.
    pub agents: usize,
}

/// Needs by the index of a cloud.
pub type Needed = BTreeMap<usize, BTreeSet<Need>>;

/// The sweep's plan for all waiting requests.
#[derive(Debug, Default, PartialEq)]
pub struct WaitingPlan {
    /// One for each message, in the order of the messages.
    pub steps: Vec<MessageStep>,
    pub raises: Vec<Raise>,
    /// What those need that may be placed on an instance, by their cloud's index in the configuration: an idle instance
    /// that would hold one of them is not given back.
    pub needed: Needed,
}

/// The existing agents, and how many of each cloud and each of its templates.
#[derive(Debug, Clone, Default)]
pub struct Agents {
    /// The prefix of their names.
    prefix: String,
    /// Those that have a task, running or stopped within the hour.
    pub names: HashSet<AgentName>,
    /// The clouds, by their index in the configuration, whose cluster could not be queried.
    pub unknown: BTreeSet<usize>,
    clouds: HashMap<usize, u32>,
    templates: HashMap<(usize, String), u32>,
}

/// The number of a template's agents.
#[derive(Debug, PartialEq, Eq)]
pub struct Count<'a> {
    pub cloud: &'a str,
    pub template: &'a str,
    /// Those that have a task.
    pub running: u32,
    /// Those that wait, each once, however many copies of its request wait.
    pub waiting: usize,
    /// For how long the first of them has waited.
    pub oldest_wait_ms: i64,
}

/// Counts the agents of each template that has any. Waiting agents count only for configured templates: anyone who may
/// send to the queue can write their names.
pub fn counts<'a>(clouds: &'a [Cloud], messages: &[Waiting], agents: &Agents, now: Timestamp) -> Vec<Count<'a>> {
    let waits = || messages.iter().filter_map(|message| message.wait.as_ref());
    let templates = clouds.iter().enumerate().flat_map(|(index, cloud)| {
        cloud.templates.iter().map(move |template| (index, cloud.name.as_str(), template.name.as_str()))
    });
    let count = |(index, cloud, template): (usize, &'a str, &'a str)| {
        let own = || waits().filter(|wait| wait.cloud == cloud && wait.template == template);
        let waiting: HashSet<_> =
            own().flat_map(|wait| wait.agents.iter().map(|agent| (wait.request_id.as_str(), *agent))).collect();
        let oldest = own().map(|wait| wait.since).min();
        let running = agents.templates.get(&(index, template.to_owned())).copied().unwrap_or_default();
        let ms = |since: Timestamp| i64::try_from(now.duration_since(since).as_millis()).unwrap_or_default().max(0);
        let oldest_wait_ms = oldest.map_or(0, ms);
        Count { cloud, template, running, waiting: waiting.len(), oldest_wait_ms }
    };
    templates.map(count).filter(|count| count.running > 0 || count.waiting > 0).collect()
}

impl Agents {
    /// No agents yet, whose names will have this prefix.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..Self::default() }
    }

    /// Whether an agent of a waiting request has a task.
    fn exists(&self, wait: &Wait, index: u32) -> bool {
        self.names.contains(&AgentName::new(&self.prefix, &wait.template, wait.request_id.as_str(), index))
    }

    /// Counts one more agent of the cloud with this index in the configuration.
    pub fn count(&mut self, index: usize, template: &str) {
        *self.clouds.entry(index).or_default() += 1;
        *self.templates.entry((index, template.to_owned())).or_default() += 1;
    }

    /// Whether one more agent may exist; it is counted if so.
    fn take(&mut self, index: usize, cloud: &Cloud, template: &str) -> bool {
        let below = |limit: Option<u32>, count: Option<&u32>| limit.is_none_or(|limit| *count.unwrap_or(&0) < limit);
        let of_template = self.templates.get(&(index, template.to_owned()));
        let limit_of_template = cloud.template(template).and_then(|template| template.max_agents);
        let is_free = !self.unknown.contains(&index)
            && below(cloud.max_agents, self.clouds.get(&index))
            && below(limit_of_template, of_template);
        if is_free {
            self.count(index, template);
        }
        is_free
    }
}

/// A cloud in which requests wait for an instance.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    pub observed: Observed,
    /// Why its group's last launch failed, if that was asked.
    pub launch_failure: Option<String>,
}

/// Plans what becomes of the messages, which come oldest first. A cloud that is not among the observed could not be
/// asked: its requests continue to wait.
pub fn waiting(
    clouds: &[Cloud],
    messages: &[Waiting],
    mut observed: BTreeMap<usize, Observation>,
    mut agents: Agents,
    now: Timestamp,
) -> WaitingPlan {
    let mut plan = WaitingPlan::default();
    let memberships: BTreeMap<usize, Vec<Membership>> =
        observed.iter().map(|(index, it)| (*index, it.observed.memberships())).collect();
    let mut without_room: BTreeMap<usize, Vec<&Waiting>> = BTreeMap::new();
    let mut placed = Placed::default();
    for message in messages {
        let Some(wait) = &message.wait else {
            plan.steps.push(MessageStep::Wake);
            continue;
        };
        let Some((index, cloud)) = clouds.iter().enumerate().find(|(_, cloud)| cloud.name == wait.cloud) else {
            let failure = time_is_up(message, None, &wait.reason, now);
            plan.steps.push(failure.map_or(MessageStep::Wake, MessageStep::Fail));
            continue;
        };
        if all_exist(wait, &agents, &mut placed) {
            // It is answered, and needs no room.
            plan.steps.push(MessageStep::Wake);
            continue;
        }
        if let Some(failure) = time_is_up(message, Some(cloud), &reason(cloud, wait, observed.get(&index)), now) {
            // Whether it was placed is unknown until its cluster answers.
            let is_unknown = agents.unknown.contains(&index);
            plan.steps.push(if is_unknown { MessageStep::Keep } else { MessageStep::Fail(failure) });
            continue;
        }
        if wait.agents.iter().all(|&index| placed.has(wait, index)) {
            // Copies that are woken at the same time could run two tasks (docs/adr/0008).
            plan.steps.push(MessageStep::Keep);
            continue;
        }
        let is_free = match wait.waits_for {
            WaitsFor::Fargate => true,
            WaitsFor::MaxAgents => agents.take(index, cloud, &wait.template),
            WaitsFor::Instance => {
                let observed = observed.get_mut(&index).zip(memberships.get(&index));
                let has_room = observed
                    .is_some_and(|(it, known)| placed.take_room(wait, serving(cloud, wait, &mut it.observed, known)));
                if !has_room {
                    without_room.entry(index).or_default().push(message);
                }
                has_room
            }
        };
        if is_free && wait.waits_for != WaitsFor::Instance {
            wait.agents.iter().for_each(|&index| placed.note(wait, index));
        }
        if needs_instance(cloud, wait, is_free) {
            plan.needed.entry(index).or_default().insert(wait.need());
        }
        plan.steps.push(if is_free { MessageStep::Wake } else { MessageStep::Keep });
    }
    plan.raises = without_room
        .into_iter()
        .filter_map(|(index, waiting)| {
            let demand = wait::demand(&clouds[index], waiting.iter().copied(), &placed);
            raise(index, &observed.get(&index)?.observed, demand.into_values().collect())
        })
        .collect();
    plan
}

/// Whether all agents of a request exist, so that its message is a copy. Those that exist need no room.
fn all_exist(wait: &Wait, agents: &Agents, placed: &mut Placed) -> bool {
    let existing = wait.agents.iter().filter(|&&index| agents.exists(wait, index));
    existing.inspect(|&&index| placed.note(wait, index)).count() == wait.agents.len()
}

/// The clouds, by their index in the configuration, in which a request has waited too long for an instance.
pub fn overdue(clouds: &[Cloud], messages: &[Waiting], now: Timestamp) -> BTreeSet<usize> {
    let index = |message: &Waiting| {
        let wait = message.wait.as_ref().filter(|wait| wait.waits_for == WaitsFor::Instance)?;
        let (index, cloud) = clouds.iter().enumerate().find(|(_, cloud)| cloud.name == wait.cloud)?;
        time_is_up(message, Some(cloud), &wait.reason, now).map(|_| index)
    };
    messages.iter().filter_map(index).collect()
}

fn time_is_up(message: &Waiting, cloud: Option<&Cloud>, reason: &str, now: Timestamp) -> Option<Failure> {
    let wait = message.wait.as_ref()?;
    let expires_at = AgentRequest::parse(&message.body).ok().and_then(|request| request.expires_at);
    wait::too_long(wait.since, reason, cloud, expires_at, now)
}

/// Why a request waits now: what prevents its group from providing an instance, or else what ECS said last.
fn reason(cloud: &Cloud, wait: &Wait, observation: Option<&Observation>) -> String {
    let said = || wait.reason.clone();
    let scales = cloud.template(&wait.template).is_none_or(Template::scales_group);
    let is_for_group = wait.waits_for == WaitsFor::Instance && scales;
    let Some(observation) = observation.filter(|_| is_for_group) else { return said() };
    let Some(group) = &observation.observed.group else { return said() };
    let name = &group.name;
    let unregistered = observation.observed.unregistered_text();
    match &observation.launch_failure {
        Some(failure) => format!("group {name} could not launch an instance: {failure}"),
        None => unregistered.unwrap_or_else(|| match group.desired >= group.maximum {
            true => format!("group {name} is at its maximum of {}", group.maximum),
            false => said(),
        }),
    }
}

/// Whether an instance of the cloud's group may serve a request: one that is sent back, or one that waits for it.
fn needs_instance(cloud: &Cloud, wait: &Wait, is_free: bool) -> bool {
    let template = cloud.template(&wait.template);
    match wait.waits_for {
        WaitsFor::Fargate => false,
        WaitsFor::Instance => template.is_none_or(|it| !it.is_external()),
        WaitsFor::MaxAgents => is_free && template.is_some_and(|it| !it.on_fargate() && !it.is_external()),
    }
}

/// The instances that can serve a request.
fn serving<'a>(
    cloud: &'a Cloud,
    wait: &Wait,
    observed: &'a mut Observed,
    memberships: &'a [Membership],
) -> impl Iterator<Item = &'a mut Instance> {
    let template = cloud.template(&wait.template);
    let there = observed.instances.iter_mut().zip(memberships);
    there.filter(move |(instance, membership)| instance.serves(**membership, template)).map(|(instance, _)| instance)
}

/// The raise that gives the rest an instance. What the others took is no longer free.
fn raise(index: usize, observed: &Observed, demand: Vec<Need>) -> Option<Raise> {
    let desired = observed.plan(&demand).raise_to?;
    Some(Raise { cloud: index, group: observed.group.clone()?, desired, agents: demand.len() })
}

#[cfg(test)]
mod tests {
    use shared::aws::autoscaling::GroupInstance;
    use shared::aws::ecs::InstanceStatus;
    use shared::capacity::Exclusive;
    use shared::config::Size;

    use super::*;
    use crate::plan::tests::{at, config};

    const SIZE: Size = Size { cpu: 1024, memory: 2048 };

    /// A request that began to wait this many seconds ago, at 1000.
    fn message(id: &str, waited: i64, waits_for: WaitsFor) -> Waiting {
        let wait = Wait {
            request_id: id.parse().expect("an id"),
            requested_at: at(1000 - waited),
            since: at(1000 - waited),
            attempt: 1,
            agents: vec![0],
            cloud: "linux".into(),
            template: "maven".into(),
            size: Some(SIZE),
            gpus: 0,
            exclusive: BTreeSet::new(),
            waits_for,
            reason: "RESOURCE:MEMORY".into(),
            trace: None,
        };
        Waiting { body: r#"{"version": 1, "label": "maven"}"#.into(), wait: Some(wait), receipt: id.into() }
    }

    fn observation(instances: usize, free: Size, maximum: u32) -> Observation {
        let instance = |index: usize| Instance {
            arn: format!("arn-{index}"),
            ec2_id: Some(format!("i-{index}")),
            status: InstanceStatus::Active,
            connected: true,
            free,
            total: Size { cpu: 4096, memory: 8192 },
            ..Instance::default()
        };
        let member = |index: usize| GroupInstance {
            id: format!("i-{index}"),
            lifecycle: "InService".into(),
            ..GroupInstance::default()
        };
        let group = Group {
            name: "group".into(),
            desired: instances as u32,
            maximum,
            instances: (0..instances).map(member).collect(),
            ..Group::default()
        };
        let instances = (0..instances).map(instance).collect();
        let observed = Observed { group: Some(group), instances, ..Observed::default() };
        Observation { observed, launch_failure: None }
    }

    fn plan(messages: &[Waiting], observation: Option<Observation>, agents: Agents) -> WaitingPlan {
        let observed = observation.map(|observation| (0, observation)).into_iter().collect();
        waiting(&config().clouds, messages, observed, agents, at(1000))
    }

    fn failure(step: &MessageStep) -> &str {
        match step {
            MessageStep::Fail(failure) => &failure.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wakes_the_oldest_that_fit_and_raises_for_the_rest() {
        let messages = ["a", "b", "c", "d"].map(|id| message(id, 100, WaitsFor::Instance));
        let plan = plan(&messages, Some(observation(1, Size { cpu: 2048, memory: 4096 }, 10)), Agents::default());
        use MessageStep::{Keep, Wake};
        assert_eq!(plan.steps, [Wake, Wake, Keep, Keep]);
        assert_eq!(plan.raises.iter().map(|raise| (raise.desired, raise.agents)).collect::<Vec<_>>(), [(2, 2)]);
        assert_eq!(plan.needed, Needed::from([(0, BTreeSet::from([SIZE.into()]))]));
    }

    #[test]
    fn leaving_and_foreign_instances_have_no_room() {
        let waiting = [message("a", 100, WaitsFor::Instance)];
        for lifecycle in ["Terminating:Wait", "Standby", "Detaching", "Warmed:Running"] {
            let mut leaves = observation(1, SIZE, 10);
            leaves.observed.group.as_mut().expect("a group").instances[0].lifecycle = lifecycle.into();
            assert_eq!(plan(&waiting, Some(leaves), Agents::default()).steps, [MessageStep::Keep], "{lifecycle}");
        }
        let mut foreign = observation(1, SIZE, 10);
        let group = foreign.observed.group.as_mut().expect("a group");
        (group.desired, group.instances) = (0, Vec::new());
        let of_foreign = plan(&waiting, Some(foreign.clone()), Agents::default());
        assert_eq!((of_foreign.steps, of_foreign.raises.len()), (vec![MessageStep::Keep], 1));
        foreign.observed.group = None;
        let own = plan(&waiting, Some(foreign), Agents::default());
        assert_eq!(own.steps, [MessageStep::Wake], "without a group every instance is the cloud's own");
    }

    #[test]
    fn wakes_nothing_for_a_gpu_or_port_in_use() {
        let mut trained = message("a", 100, WaitsFor::Instance);
        trained.wait.as_mut().expect("a wait").gpus = 1;
        let mut listening = message("b", 90, WaitsFor::Instance);
        listening.wait.as_mut().expect("a wait").exclusive = [Exclusive::HostPort(2222)].into();
        let mut there = observation(1, Size { cpu: 4096, memory: 8192 }, 10);
        there.observed.instances[0].taken.insert(Exclusive::HostPort(2222));
        let messages = [trained, listening];
        use MessageStep::{Keep, Wake};
        assert_eq!(plan(&messages, Some(there.clone()), Agents::default()).steps, [Keep, Keep]);
        there.observed.instances[0].free_gpus = 1;
        there.observed.instances[0].taken.clear();
        assert_eq!(plan(&messages, Some(there), Agents::default()).steps, [Wake, Wake]);
    }

    #[test]
    fn a_failed_request_names_the_reason_of_its_wait() {
        let late = [message("a", 901, WaitsFor::Instance)];
        let of = |observation: Observation| plan(&late, Some(observation), Agents::default()).steps.remove(0);
        let at_maximum = of(observation(1, Size::default(), 1));
        assert_eq!(failure(&at_maximum), "no room within 15m: group group is at its maximum of 1");
        let none_to_be_had =
            Observation { launch_failure: Some("no m6i.large".into()), ..observation(1, Size::default(), 1) };
        let none_to_be_had = of(none_to_be_had);
        assert_eq!(
            failure(&none_to_be_had),
            "no room within 15m: group group could not launch an instance: no m6i.large"
        );
        let growing = of(observation(1, Size::default(), 2));
        assert_eq!(failure(&growing), "no room within 15m: RESOURCE:MEMORY");
        assert_eq!(overdue(&config().clouds, &late, at(1000)), BTreeSet::from([0]));
        assert_eq!(overdue(&config().clouds, &late, at(900)), BTreeSet::new());
    }

    #[test]
    fn nothing_fails_on_a_guess() {
        let agents = Agents { unknown: BTreeSet::from([0]), ..Agents::default() };
        let messages = [message("a", 901, WaitsFor::Instance), message("b", 10, WaitsFor::MaxAgents)];
        assert_eq!(plan(&messages, None, agents).steps, [MessageStep::Keep, MessageStep::Keep]);
    }

    #[test]
    fn sends_back_requests_that_no_cloud_serves() {
        let mut foreign = message("a", 100, WaitsFor::Instance);
        foreign.wait.as_mut().expect("a wait").cloud = "gone".into();
        let unknown = Waiting { wait: None, ..message("b", 0, WaitsFor::Instance) };
        let plan = plan(&[foreign, unknown], None, Agents::default());
        assert_eq!(plan.steps, [MessageStep::Wake, MessageStep::Wake]);
    }

    #[test]
    fn counts_each_waiting_agent_once_and_only_configured_templates() {
        let mut stranger = message("stranger", 900, WaitsFor::Instance);
        stranger.wait.as_mut().expect("a wait").template = "unbounded".into();
        let messages = [
            message("a", 60, WaitsFor::Instance),
            message("a", 60, WaitsFor::Instance),
            message("b", 30, WaitsFor::MaxAgents),
            stranger,
        ];
        let mut agents = Agents::default();
        agents.count(0, "maven");
        let config = config();
        let counts = counts(&config.clouds, &messages, &agents, at(1000));
        let maven = Count { cloud: "linux", template: "maven", running: 1, waiting: 2, oldest_wait_ms: 60_000 };
        assert_eq!(counts, [maven]);
    }
}
