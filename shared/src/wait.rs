//! Requests that wait for room: the SQS message is their record, and nothing polls the queue.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::aws::queues::Queues;
use crate::config::{Cloud, Limit, Size};
use crate::fault::Fault;
use crate::message::{Failure, FailureCode, RequestId};

/// The message attribute that travels with a request between the queues, as JSON: SQS takes ten attributes at most.
pub const ATTRIBUTE: &str = "wait";

/// The most messages that one look at the waiting queue takes.
const LOOK: usize = 500;

/// A look hides the messages for so long: enough to decide and to send some back.
const HIDDEN: Duration = Duration::from_secs(30);

/// What a request has been through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// Its id, which may have been that of its first message.
    pub request_id: RequestId,
    /// When Jenkins sent it.
    pub requested_at: Timestamp,
    /// When it first had to wait.
    pub since: Timestamp,
    /// How often ECS has answered definitely that there is no room: part of the next RunTask's token.
    pub attempt: u32,
    /// Which of its agents still wait.
    pub agents: Vec<u32>,
    /// The cloud that serves it.
    pub cloud: String,
    /// The template that serves it.
    pub template: String,
    /// What one of its agents takes, where that is known.
    pub size: Option<Size>,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// Why, in ECS' words.
    pub reason: String,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitsFor {
    /// An instance with room.
    Instance,
    /// Capacity that nobody announces: Fargate's.
    Fargate,
    /// The end of another agent.
    MaxAgents,
}

impl Wait {
    /// How long the message stays out of sight, so that one that bounced is woken later than the others.
    pub fn delay(&self) -> Duration {
        match self.attempt {
            0 | 1 => Duration::ZERO,
            bounces => Duration::from_secs(5 << (bounces - 2).min(5)),
        }
    }
}

/// A message taken from the waiting queue.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The request, as Jenkins sent it.
    pub body: String,
    /// What it has been through; none if somebody else put it there.
    pub wait: Option<Wait>,
    /// Deletes or releases it.
    pub receipt: String,
}

/// Takes what waits, oldest first. What is not sent back has to be released.
///
/// # Errors
/// When nothing could be received.
pub async fn look(queues: &Queues) -> Result<Vec<Waiting>, Fault> {
    let mut waiting = Vec::new();
    while waiting.len() < LOOK {
        let received = match queues.receive(&queues.urls.waiting, ATTRIBUTE, HIDDEN).await {
            Ok(received) => received,
            Err(fault) if waiting.is_empty() => return Err(fault),
            Err(_) => break,
        };
        // A short page is not the end: SQS answers as soon as it has found a message (API_ReceiveMessage).
        if received.is_empty() {
            break;
        }
        waiting.extend(received.into_iter().map(|message| Waiting {
            wait: message.attribute.as_deref().and_then(|json| serde_json::from_str(json).ok()),
            body: message.body,
            receipt: message.receipt,
        }));
    }
    waiting.sort_by_key(|message| message.wait.as_ref().map(|wait| wait.since));
    // Copies of a request wait since the first of them did.
    let mut first: HashMap<RequestId, Timestamp> = HashMap::new();
    for wait in waiting.iter_mut().filter_map(|message| message.wait.as_mut()) {
        wait.since = *first.entry(wait.request_id.clone()).or_insert(wait.since);
    }
    Ok(waiting)
}

/// Puts a request into the waiting queue.
///
/// # Errors
/// When the call failed; the request is then still where it was.
pub async fn hand_over(queues: &Queues, body: &str, wait: &Wait) -> Result<(), Fault> {
    let json = serde_json::to_string(wait).unwrap_or_default();
    queues.send(&queues.urls.waiting, body, &[(ATTRIBUTE, &json)], wait.delay()).await
}

/// Sends a request back to the requests queue, and only then takes it out of the waiting queue.
///
/// # Errors
/// When a call failed; the request is then in one queue or, harmlessly, in both.
pub async fn wake(queues: &Queues, message: &Waiting) -> Result<(), Fault> {
    let json = message.wait.as_ref().and_then(|wait| serde_json::to_string(wait).ok());
    let attributes: Vec<_> = json.iter().map(|json| (ATTRIBUTE, json.as_str())).collect();
    queues.send(&queues.urls.requests, &message.body, &attributes, Duration::ZERO).await?;
    forget(queues, message).await
}

/// Takes a request out of the waiting queue.
///
/// # Errors
/// When the call failed.
pub async fn forget(queues: &Queues, message: &Waiting) -> Result<(), Fault> {
    queues.delete(&queues.urls.waiting, &message.receipt).await
}

/// Lets others see the messages again.
pub async fn release(queues: &Queues, messages: &[Waiting]) {
    let receipts: Vec<_> = messages.iter().map(|message| message.receipt.clone()).collect();
    queues.release(&queues.urls.waiting, &receipts).await;
}

/// The agents that wait for an instance of a cloud's group, with what each takes: once each, however many copies of its
/// request wait. Pure.
pub fn demand<'a>(cloud: &Cloud, waiting: impl Iterator<Item = &'a Waiting>) -> BTreeMap<(&'a str, u32), Size> {
    let scales = |wait: &&Wait| {
        let template = cloud.templates.iter().find(|template| template.name == wait.template);
        wait.cloud == cloud.name
            && wait.waits_for == WaitsFor::Instance
            && template.is_some_and(|template| template.scales_group())
    };
    waiting
        .filter_map(|message| message.wait.as_ref())
        .filter(scales)
        .flat_map(|wait| {
            let size = wait.size.unwrap_or_default();
            wait.agents.iter().map(move |&index| ((wait.request_id.as_str(), index), size))
        })
        .collect()
}

/// Why what has waited since then is failed; none while it may wait on. Pure.
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

/// Takes room for as many of a request's agents as fit. False if none does. Pure.
pub fn take_room<'a>(wait: &Wait, rooms: impl Iterator<Item = &'a mut Size>) -> bool {
    let size = wait.size.unwrap_or_default();
    let mut left = wait.agents.len();
    for room in rooms {
        while left > 0 && size.fits(*room) && *room != Size::default() {
            *room = room.without(size);
            left -= 1;
        }
    }
    left < wait.agents.len()
}

/// Splits off what fits into `room`, in the order given. Pure.
pub fn fitting(waiting: Vec<Waiting>, mut room: Size, serves: impl Fn(&Wait) -> bool) -> (Vec<Waiting>, Vec<Waiting>) {
    waiting.into_iter().partition(|message| {
        let wait = message.wait.as_ref().filter(|wait| wait.waits_for == WaitsFor::Instance && serves(wait));
        wait.is_some_and(|wait| take_room(wait, std::iter::once(&mut room)))
    })
}
