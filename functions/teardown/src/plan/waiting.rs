//! What the sweep does about requests that wait: those whose time is up fail, those that find room go back to the
//! requests queue, and the groups are raised for the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use shared::capacity::Observed;
use shared::config::{Cloud, Size};
use shared::message::{AgentRequest, Failure};
use shared::wait::{self, Wait, Waiting, WaitsFor};

/// What becomes of one waiting message.
#[derive(Debug, Clone, PartialEq)]
pub enum MessageStep {
    /// Its time is up.
    Fail(Failure),
    /// It goes back to the requests queue.
    Wake,
    /// It waits on.
    Keep,
}

/// A group is given more instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raise {
    /// The cloud's place in the configuration.
    pub cloud: usize,
    pub group: String,
    pub desired_before: u32,
    pub desired: u32,
    /// Agents that wait for it.
    pub agents: usize,
}

/// What the sweep does about all that waits.
#[derive(Debug, Default, PartialEq)]
pub struct WaitingPlan {
    /// One for each message, in the order of the messages.
    pub steps: Vec<MessageStep>,
    pub raises: Vec<Raise>,
    /// The clouds, by their place in the configuration, whose instances are needed: none of them is given back.
    pub needed: BTreeSet<usize>,
}

/// How many agents there are, in each cloud and of each of its templates.
#[derive(Debug, Clone, Default)]
pub struct AgentCounts {
    clouds: HashMap<usize, u32>,
    templates: HashMap<(usize, String), u32>,
    /// Whether a cluster could not be asked, so that nobody knows whether a limit is reached.
    pub incomplete: bool,
}

impl AgentCounts {
    /// Counts one more agent of the cloud at this place of the configuration.
    pub fn add(&mut self, index: usize, template: &str) {
        *self.clouds.entry(index).or_default() += 1;
        *self.templates.entry((index, template.to_owned())).or_default() += 1;
    }

    /// Whether one more agent may exist; it is counted if so.
    fn take(&mut self, index: usize, cloud: &Cloud, template: &str) -> bool {
        let below = |limit: Option<u32>, count: Option<&u32>| limit.is_none_or(|limit| *count.unwrap_or(&0) < limit);
        let configured = cloud.templates.iter().find(|found| found.name == template);
        let is_free = !self.incomplete
            && below(cloud.max_agents, self.clouds.get(&index))
            && below(
                configured.and_then(|template| template.max_agents),
                self.templates.get(&(index, template.to_owned())),
            );
        if is_free {
            self.add(index, template);
        }
        is_free
    }
}

/// Plans what becomes of the messages, which come oldest first. A cloud that is not among the observed could not be asked:
/// what waits there waits on.
pub fn waiting(
    clouds: &[Cloud],
    messages: &[Waiting],
    mut observed: BTreeMap<usize, Observed>,
    mut agents: AgentCounts,
    now: Timestamp,
) -> WaitingPlan {
    let mut plan = WaitingPlan::default();
    let mut without_room: BTreeMap<usize, Vec<&Waiting>> = BTreeMap::new();
    for message in messages {
        let Some(wait) = &message.wait else {
            plan.steps.push(MessageStep::Wake);
            continue;
        };
        let found = clouds.iter().enumerate().find(|(_, cloud)| cloud.name == wait.cloud);
        if let Some(failure) = time_is_up(message, wait, found.map(|(_, cloud)| cloud), now) {
            plan.steps.push(MessageStep::Fail(failure));
            continue;
        }
        let step = match (found, wait.waits_for) {
            (None, _) | (_, WaitsFor::Fargate) => MessageStep::Wake,
            (Some((index, cloud)), WaitsFor::MaxAgents) => match agents.take(index, cloud, &wait.template) {
                true => {
                    let template = cloud.templates.iter().find(|template| template.name == wait.template);
                    if template.is_some_and(|template| !template.on_fargate()) {
                        plan.needed.insert(index);
                    }
                    MessageStep::Wake
                }
                false => MessageStep::Keep,
            },
            (Some((index, cloud)), WaitsFor::Instance) => {
                // Those that fit need the instances that they are about to go to.
                plan.needed.insert(index);
                match observed.get_mut(&index).is_some_and(|observed| take_room(cloud, wait, observed)) {
                    true => MessageStep::Wake,
                    false => {
                        without_room.entry(index).or_default().push(message);
                        MessageStep::Keep
                    }
                }
            }
        };
        plan.steps.push(step);
    }
    plan.raises = without_room
        .into_iter()
        .filter_map(|(index, waiting)| raise(index, &clouds[index], observed.get(&index)?, &waiting))
        .collect();
    plan
}

fn time_is_up(message: &Waiting, wait: &Wait, cloud: Option<&Cloud>, now: Timestamp) -> Option<Failure> {
    let expires_at = AgentRequest::parse(&message.body).ok().and_then(|request| request.expires_at);
    wait::too_long(wait.since, &wait.reason, cloud, expires_at, now)
}

/// Takes room on the cloud's instances for as many of a request's agents as fit. False if none does.
fn take_room(cloud: &Cloud, wait: &Wait, observed: &mut Observed) -> bool {
    let template = cloud.templates.iter().find(|template| template.name == wait.template);
    let is_external = template.is_some_and(|template| template.is_external());
    let instances = observed.instances.iter_mut();
    let serve = instances.filter(|instance| instance.takes_tasks() && instance.is_external() == is_external);
    wait::take_room(wait, serve.map(|instance| &mut instance.free))
}

/// The raise that gives the rest an instance. What the others took is no longer free.
fn raise(index: usize, cloud: &Cloud, observed: &Observed, waiting: &[&Waiting]) -> Option<Raise> {
    let demand: Vec<Size> = wait::demand(cloud, waiting.iter().copied()).into_values().collect();
    let group = observed.group.as_ref()?;
    let desired = observed.plan(&demand).raise_to?;
    let (group, desired_before) = (group.name.clone(), group.desired);
    Some(Raise { cloud: index, group, desired_before, desired, agents: demand.len() })
}
