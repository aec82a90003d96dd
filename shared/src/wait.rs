//! Requests that wait for room: the SQS message is their record, and nothing polls the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::aws::ecs::{Instance, MOST_PORTS};
use crate::aws::queues::{Queues, Received};
use crate::capacity::{Exclusive, Need};
use crate::config::{Cloud, Limit, Size};
use crate::fault::Fault;
use crate::log_fault;
use crate::message::{Failure, FailureCode, MOST_AGENTS, RequestId};
use crate::metrics;
use crate::span::Ids;
use crate::trace::{self, Trace};

/// The message attribute that travels with a request between the queues, as JSON: SQS accepts ten attributes at most.
pub const ATTRIBUTE: &str = "wait";

/// The most messages that a batch of requests reads to count what waits: the sweep counts the rest.
const LOOK: usize = 500;

/// The most that the sweep and an event read; the next sweeps see the rest.
const LOOK_AT_ALL: usize = 10_000;

/// The most bytes of messages, with their attributes, that are held at a time, of a function's 256 MiB.
const LOOK_BYTES: usize = 32 * 1024 * 1024;

/// The most bytes of a reason that are believed.
const LONGEST_REASON: usize = 2000;

/// The longest time that a read may take: what was read has to be processed within the same invocation.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Concurrent receives.
const READERS: usize = 10;

/// How long a read hides the messages: longer than any function may take, so that messages in use are hidden from all
/// others. Whatever is not sent back is released before that.
const HIDDEN: Duration = Duration::from_secs(90);

/// The state of a waiting request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// Its id, which may have been that of its first message.
    pub request_id: RequestId,
    /// When Jenkins sent it.
    pub requested_at: Timestamp,
    /// When it began to wait.
    pub since: Timestamp,
    /// How often ECS has answered definitely that there is no room: part of the next RunTask's token.
    pub attempt: u32,
    /// Which of its agents still wait.
    #[serde(deserialize_with = "agents")]
    pub agents: Vec<u32>,
    pub cloud: String,
    pub template: String,
    /// The size of one of its agents, if it is known.
    pub size: Option<Size>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpus: u32,
    /// Exclusive resources that each of its agents needs ([`Need::exclusive`]).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty", deserialize_with = "exclusive")]
    pub exclusive: BTreeSet<Exclusive>,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// The reason, in ECS' words.
    #[serde(deserialize_with = "reason")]
    pub reason: String,
    /// The request's trace, if it is sampled.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::optional")]
    pub trace: Option<Trace>,
}

/// Anyone who may send to a queue can write the attribute: it may name no more agents than a request can have.
fn agents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let agents = Vec::<u32>::deserialize(deserializer)?;
    match agents.len() <= MOST_AGENTS as usize && agents.iter().all(|&index| index < MOST_AGENTS) {
        true => Ok(agents),
        false => Err(D::Error::custom(format!("{} agents of a request", agents.len()))),
    }
}

/// Nor are more ports believed than an instance can have in use, and the place for the only task of a family.
fn exclusive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<Exclusive>, D::Error> {
    let exclusive = BTreeSet::<Exclusive>::deserialize(deserializer)?;
    match exclusive.len() <= MOST_PORTS + 1 {
        true => Ok(exclusive),
        false => Err(D::Error::custom(format!("{} ports of a task", exclusive.len()))),
    }
}

/// Nor a reason longer than ours are: all copies of the request take over that of the first.
fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mut reason = String::deserialize(deserializer)?;
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    Ok(reason)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitsFor {
    /// An instance with room.
    Instance,
    /// Capacity that no event announces: Fargate's.
    Fargate,
    /// The end of another agent.
    MaxAgents,
}

impl WaitsFor {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Fargate => "fargate",
            Self::MaxAgents => "maxAgents",
        }
    }
}

impl Wait {
    /// How long the message stays hidden, so that one that found no room again is woken later than the others.
    pub fn delay(&self) -> Duration {
        match self.attempt {
            0 | 1 => Duration::ZERO,
            bounces => Duration::from_secs(5 << (bounces - 2).min(5)),
        }
    }

    /// What one of its agents needs.
    pub fn need(&self) -> Need {
        Need { size: self.size.unwrap_or_default(), gpus: self.gpus, exclusive: self.exclusive.clone() }
    }
}

/// A message read from the waiting queue.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The request, as Jenkins sent it.
    pub body: String,
    /// Its wait; `None` if somebody else put it there.
    pub wait: Option<Wait>,
    /// The handle to delete or release it.
    pub receipt: String,
}

impl Waiting {
    /// The ids for its span.
    pub fn ids(&self) -> Ids<'_> {
        Ids { request: self.wait.as_ref().map(|wait| &wait.request_id), ..Ids::default() }
    }
}

/// Reads some of the waiting requests, oldest first. What is not sent back has to be released.
///
/// # Errors
/// When nothing could be received.
pub async fn look(queues: &Queues) -> Result<Vec<Waiting>, Fault> {
    look_at(queues, LOOK).await
}

/// The same, for as much as one invocation can process: a request that fits may come after any number that do not.
///
/// # Errors
/// When nothing could be received.
pub async fn look_at_all(queues: &Queues) -> Result<Vec<Waiting>, Fault> {
    look_at(queues, LOOK_AT_ALL).await
}

async fn look_at(queues: &Queues, most: usize) -> Result<Vec<Waiting>, Fault> {
    let end = Instant::now() + LOOK_TIME;
    let mut seen = receive(queues).await?;
    if !seen.waiting.is_empty() {
        let all = Mutex::new(seen);
        join_all((0..READERS).map(|_| read(queues, (most, end), &all))).await;
        seen = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    }
    let mut waiting = seen.waiting;
    waiting.sort_by_key(|message| message.wait.as_ref().map(|wait| wait.since));
    // All copies of a request have waited since the first of them began, and for its reason: that of a later one is often
    // only that an earlier one waits.
    let mut first: HashMap<RequestId, (Timestamp, String)> = HashMap::new();
    for wait in waiting.iter_mut().filter_map(|message| message.wait.as_mut()) {
        let (since, reason) = first.entry(wait.request_id.clone()).or_insert_with(|| (wait.since, wait.reason.clone()));
        wait.since = *since;
        wait.reason.clone_from(reason);
    }
    Ok(waiting)
}

/// Receives until nothing more comes, or enough was read, or it is time to end. After a fault, what was read is used.
async fn read(queues: &Queues, (most, end): (usize, Instant), all: &Mutex<Seen>) {
    let all = || all.lock().unwrap_or_else(PoisonError::into_inner);
    while Instant::now() < end && !all().is_enough(most) {
        match receive(queues).await {
            // A short page is not the end: SQS answers as soon as it has found a message (API_ReceiveMessage).
            Ok(seen) if seen.waiting.is_empty() => return,
            Ok(seen) => all().add(seen),
            Err(fault) => {
                log_fault!(&fault, "not all waiting requests were read; later looks read the others");
                return;
            }
        }
    }
}

async fn receive(queues: &Queues) -> Result<Seen, Fault> {
    queues.receive(&queues.urls.waiting, ATTRIBUTE, HIDDEN).await.map(Seen::new)
}

/// What a look has seen.
struct Seen {
    waiting: Vec<Waiting>,
    /// What SQS sent for it: bodies and attributes.
    bytes: usize,
}

impl Seen {
    fn new(received: Vec<Received>) -> Self {
        let size = |message: &Received| message.body.len() + message.attribute.as_ref().map_or(0, String::len);
        let bytes = received.iter().map(size).sum();
        let waiting = received.into_iter().map(|message| Waiting {
            wait: message.attribute.as_deref().and_then(|json| serde_json::from_str(json).ok()),
            body: message.body,
            receipt: message.receipt,
        });
        Self { waiting: waiting.collect(), bytes }
    }

    fn is_enough(&self, most: usize) -> bool {
        self.waiting.len() >= most || self.bytes >= LOOK_BYTES
    }

    fn add(&mut self, more: Self) {
        self.bytes += more.bytes;
        self.waiting.extend(more.waiting);
    }
}

/// Puts a request into the waiting queue.
///
/// # Errors
/// When the call failed; the request is then still where it was.
pub async fn hand_over(queues: &Queues, body: &str, wait: &Wait) -> Result<(), Fault> {
    let json = serde_json::to_string(wait).unwrap_or_default();
    queues.send(&queues.urls.waiting, body, &[(ATTRIBUTE, &json)], wait.delay()).await
}

/// Sends a request back to the requests queue, and only then deletes it from the waiting queue.
///
/// # Errors
/// When a call failed; the request is then in one queue or, harmlessly, in both.
pub async fn wake(queues: &Queues, message: &Waiting) -> Result<(), Fault> {
    let json = message.wait.as_ref().and_then(|wait| serde_json::to_string(wait).ok());
    let attributes: Vec<_> = json.iter().map(|json| (ATTRIBUTE, json.as_str())).collect();
    let woken = async {
        queues.send(&queues.urls.requests, &message.body, &attributes, Duration::ZERO).await?;
        metrics::REQUESTS_WOKEN.increment();
        tracing::info!("request woken: there may be room for it");
        forget(queues, message).await
    };
    woken.instrument(message.ids().span()).await
}

/// Deletes a request from the waiting queue.
///
/// # Errors
/// When the call failed.
pub async fn forget(queues: &Queues, message: &Waiting) -> Result<(), Fault> {
    queues.delete(&queues.urls.waiting, &message.receipt).await
}

/// Makes the messages visible to others again.
pub async fn release(queues: &Queues, messages: &[Waiting]) {
    let receipts: Vec<_> = messages.iter().map(|message| message.receipt.clone()).collect();
    queues.release(&queues.urls.waiting, &receipts).await;
}

/// The needs of the agents that wait for an instance of a cloud's group and have no room yet: each agent once, however many
/// copies of its request wait. Pure.
pub fn demand<'a>(
    cloud: &Cloud,
    waiting: impl Iterator<Item = &'a Waiting>,
    placed: &Placed,
) -> BTreeMap<(&'a str, u32), Need> {
    let scales = |wait: &&Wait| {
        let template = cloud.template(&wait.template);
        wait.cloud == cloud.name
            && wait.waits_for == WaitsFor::Instance
            && template.is_some_and(|template| template.scales_group())
    };
    waiting
        .filter_map(|message| message.wait.as_ref())
        .filter(scales)
        .flat_map(|wait| {
            let need = wait.need();
            let left = wait.agents.iter().filter(|&&index| !placed.has(wait, index));
            left.map(move |&index| ((wait.request_id.as_str(), index), need.clone()))
        })
        .collect()
}

/// The failure of a request that has waited since then; none while it may continue to wait. Pure.
pub fn too_long(
    since: Timestamp,
    reason: &str,
    cloud: Option<&Cloud>,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Option<Failure> {
    let limit = cloud.map_or(Limit::minutes(15), |cloud| cloud.instance_launch_timeout);
    let message = if limit.is_over(since, now) {
        format!("no room within {limit}: {reason}")
    } else {
        let expiry = expires_at.filter(|&expiry| expiry <= now)?;
        format!("no room before the request expired at {expiry}: {reason}")
    };
    Some(Failure::new(FailureCode::CapacityTimeout, message))
}

/// The agents of waiting requests that were given room: each once, however many copies of its request wait.
#[derive(Debug, Default)]
pub struct Placed(HashSet<(RequestId, u32)>);

impl Placed {
    /// Records an agent that exists, or whose request is woken.
    pub fn note(&mut self, wait: &Wait, index: u32) {
        self.0.insert((wait.request_id.clone(), index));
    }

    pub fn has(&self, wait: &Wait, index: u32) -> bool {
        self.0.contains(&(wait.request_id.clone(), index))
    }

    /// Takes room on these instances for as many of a request's agents as fit and have none. Returns false if none does.
    pub fn take_room<'a>(&mut self, wait: &Wait, instances: impl Iterator<Item = &'a mut Instance>) -> bool {
        let need = wait.need();
        let left: Vec<u32> = wait.agents.iter().copied().filter(|&index| !self.has(wait, index)).collect();
        let mut left = left.into_iter().peekable();
        let before = self.0.len();
        for instance in instances {
            while left.peek().is_some() && instance.take(&need) {
                left.next().into_iter().for_each(|index| self.note(wait, index));
            }
        }
        self.0.len() > before
    }
}

/// Splits off what fits on an instance, in the given order. Pure.
pub fn fitting(
    waiting: Vec<Waiting>,
    instance: &mut Instance,
    serves: impl Fn(&Instance, &Wait) -> bool,
) -> (Vec<Waiting>, Vec<Waiting>) {
    let mut placed = Placed::default();
    waiting.into_iter().partition(|message| {
        let wait = message.wait.as_ref().filter(|wait| wait.waits_for == WaitsFor::Instance && serves(instance, wait));
        wait.is_some_and(|wait| placed.take_room(wait, std::iter::once(&mut *instance)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn believes_no_more_agents_than_a_request_can_have() {
        assert!(read("[0, 9]", "AGENT").is_ok());
        assert!(read("[10]", "AGENT").is_err());
        assert!(read(&format!("[{}0]", "0,".repeat(10)), "AGENT").is_err());
    }

    #[test]
    fn a_look_ends_at_so_many_bytes_of_bodies_and_attributes() {
        let seen = |body: usize, attribute: usize| {
            let message =
                Received { body: "b".repeat(body), attribute: Some("a".repeat(attribute)), receipt: String::new() };
            Seen::new(vec![message])
        };
        assert!(!seen(LOOK_BYTES / 2, LOOK_BYTES / 2 - 1).is_enough(2));
        assert!(seen(LOOK_BYTES / 2, LOOK_BYTES / 2).is_enough(2));
        let mut two = seen(1, LOOK_BYTES - 2);
        two.add(seen(0, 1));
        assert!(two.is_enough(3));
    }

    #[test]
    fn cuts_a_reason_that_is_longer_than_ours() {
        let reason = |text: &str| read("[0]", text).expect("a wait").reason.len();
        assert_eq!(reason(&"a".repeat(2000)), 2000);
        assert_eq!(reason(&format!("a{}", "ä".repeat(1000))), 1999);
    }

    fn read(agents: &str, reason: &str) -> serde_json::Result<Wait> {
        serde_json::from_str(&format!(
            r#"{{"requestId": "a", "requestedAt": "2026-11-24T18:00:00Z", "since": "2026-11-24T18:00:00Z", "attempt": 1,
                "agents": {agents}, "cloud": "linux", "template": "maven", "waitsFor": "instance", "reason": "{reason}"}}"#
        ))
    }

    #[test]
    fn a_request_takes_room_for_as_many_of_its_agents_as_fit() {
        let task = Size { cpu: 1024, memory: 2048 };
        let wait = Wait {
            request_id: "a".parse().expect("an id"),
            requested_at: Timestamp::UNIX_EPOCH,
            since: Timestamp::UNIX_EPOCH,
            attempt: 1,
            agents: vec![0, 1, 2],
            cloud: "linux".into(),
            template: "maven".into(),
            size: Some(task),
            gpus: 0,
            exclusive: BTreeSet::new(),
            waits_for: WaitsFor::Instance,
            reason: "RESOURCE:MEMORY".into(),
            trace: None,
        };
        let rooms = [task, Size { cpu: 4096, memory: 2048 }, Size { cpu: 512, memory: 8192 }];
        let mut instances = rooms.map(|free| Instance { free, ..Instance::default() });
        assert!(Placed::default().take_room(&wait, instances.iter_mut()));
        let left = [Size { cpu: 0, memory: 0 }, Size { cpu: 3072, memory: 0 }, Size { cpu: 512, memory: 8192 }];
        assert_eq!(instances.each_ref().map(|instance| instance.free), left);
        assert!(!Placed::default().take_room(&wait, instances.iter_mut()), "nothing is left");
    }
}
