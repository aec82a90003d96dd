//! Batches of SQS messages: each record is processed on its own, whatever happens to its neighbours.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse};
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::aws::queues::Queues;
use crate::fault::Fault;
use crate::log_fault;
use crate::name::digest;
use crate::span::Ids;
use crate::trace::Trace;
use crate::wait;

/// Kept back at the end of an invocation, to return what is done.
const RESERVE: Duration = Duration::from_millis(1500);

/// How long an invocation without a deadline may take, in ms.
const DEFAULT_LIMIT: u64 = 25_000;

/// The circumstances of an invocation.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// When the answer has to be given, less the reserve.
    pub deadline: Instant,
    /// The function's ARN, which names its account.
    pub function_arn: String,
    /// Its own trace, if it is sampled.
    pub trace: Option<Trace>,
}

impl Invocation {
    /// From Lambda's context.
    pub fn new(context: &lambda_runtime::Context) -> Self {
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        // A deadline in the distant past is ignored.
        let is_meant = context.deadline + 60_000 > now;
        let left = if is_meant { context.deadline.saturating_sub(now) } else { DEFAULT_LIMIT };
        let left = Duration::from_millis(left);
        Self {
            deadline: Instant::now() + left.saturating_sub(RESERVE),
            function_arn: context.invoked_function_arn.clone(),
            trace: context.xray_trace_id.as_deref().and_then(Trace::parse),
        }
    }

    /// Whether it is too late to begin anything new.
    pub fn is_over(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Whether it is too late to begin something that takes so long.
    pub fn ends_within(&self, duration: Duration) -> bool {
        Instant::now() + duration >= self.deadline
    }
}

/// A message of a batch.
#[derive(Debug, Clone)]
pub struct Item {
    /// The span of everything that is logged about it.
    pub span: Span,
    /// Its SQS message id.
    pub id: String,
    pub body: String,
    /// Its receipt handle.
    pub receipt: String,
    /// How often it was received, this time included.
    pub receives: u32,
    /// Its send time according to the record ([`Item::sent_at`]).
    pub sent_at: Option<Timestamp>,
    /// The request's wait so far.
    pub wait: Option<wait::Wait>,
    /// The queue's ARN.
    pub source_arn: String,
    /// The sender's trace, if it is sampled.
    pub trace: Option<Trace>,
}

/// Whether a message sent at that time may still be in a queue: SQS keeps one for 14 days at most (API_CreateQueue).
pub fn may_be_in_a_queue(sent_at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(sent_at) <= SignedDuration::from_hours(14 * 24)
}

impl Item {
    /// When it was sent; `None` if that is too long ago for any queue.
    pub fn sent_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.sent_at.filter(|&sent_at| may_be_in_a_queue(sent_at, now))
    }

    /// Reads a record. A malformed part counts as missing: one odd record must not fail the batch.
    fn read(record: &Value) -> Self {
        let owned = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let attribute = |name: &str| record["attributes"][name].as_str();
        let number = |name: &str| attribute(name).and_then(|number| number.parse::<i64>().ok());
        let wait = record["messageAttributes"][wait::ATTRIBUTE]["stringValue"].as_str();
        Self {
            span: Ids { message: record["messageId"].as_str(), ..Ids::default() }.span(),
            id: owned("messageId"),
            body: owned("body"),
            receipt: owned("receiptHandle"),
            receives: number("ApproximateReceiveCount").and_then(|count| u32::try_from(count).ok()).unwrap_or(1),
            sent_at: number("SentTimestamp").and_then(|time| Timestamp::from_millisecond(time).ok()),
            trace: attribute("AWSTraceHeader").and_then(Trace::parse),
            wait: wait.and_then(|json| serde_json::from_str(json).ok()),
            source_arn: owned("eventSourceARN"),
        }
    }
}

/// The messages of an event.
///
/// # Errors
/// When it is not an SQS batch.
pub fn items(event: &Value) -> Result<Vec<Item>> {
    let records = event.get("Records").and_then(Value::as_array).context("not an SQS batch")?;
    Ok(records.iter().map(Item::read).collect())
}

/// What a queue's messages are, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub queue: &'a str,
    /// A message of the queue: `request`.
    pub what: &'static str,
    /// How often a message is received at most, if that is limited and known.
    pub max_attempts: Option<u32>,
}

/// Processes each message of an event, and returns the batch response.
///
/// # Errors
/// When it is not an SQS batch.
pub async fn each(
    queues: &Queues,
    invocation: &Invocation,
    source: Source<'_>,
    event: Value,
    work: impl AsyncFn(&Item) -> Result<(), Fault>,
) -> Result<Value> {
    let results = items(&event)?.into_iter().map(|item| async {
        // Boxed: the future is large, and would be copied whenever the batch is.
        let result = guarded(invocation, Box::pin(work(&item))).instrument(item.span.clone()).await;
        (item, result)
    });
    let results = futures::future::join_all(results).await;
    Ok(serde_json::to_value(answer(queues, source, results).await)?)
}

/// Runs a future until it ends, panics or reaches the deadline.
///
/// # Errors
/// When it did not end well; it has to be repeated.
pub async fn guarded<T>(invocation: &Invocation, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    if invocation.is_over() {
        return Err(Fault::passing("not begun: the invocation's deadline is near"));
    }
    match tokio::time::timeout_at(invocation.deadline, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Fault::passing(format!("panicked: {message}")))
        }
        Err(_) => Err(Fault::passing("not finished before the invocation's deadline")),
    }
}

/// Builds the batch response. Every record that has to come back is hidden for a while first.
pub async fn answer(queues: &Queues, source: Source<'_>, results: Vec<(Item, Result<(), Fault>)>) -> SqsBatchResponse {
    let failed = results.into_iter().filter_map(|(item, result)| Some((item, result.err()?)));
    let hidden = failed.map(|(item, fault)| {
        let span = item.span.clone();
        async move {
            let delay = backoff(&item.id, item.receives);
            log_fault!(
                &fault,
                what = source.what,
                attempt = item.receives,
                max_attempts = source.max_attempts,
                delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "message tried again later"
            );
            if !item.receipt.is_empty()
                && let Err(fault) = queues.hide(source.queue, &item.receipt, delay).await
            {
                log_fault!(&fault, "message not hidden until then; its queue decides when it comes back");
            }
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = item.id;
            failure
        }
        .instrument(span)
    });
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = futures::future::join_all(hidden).await;
    response
}

/// How long a message stays hidden after this many receives: 4 s, doubled up to 15 min, and between half and all of
/// that, depending on the message's id, so that messages that failed together do not come back together.
pub fn backoff(id: &str, receives: u32) -> Duration {
    let ceiling = Duration::from_secs(4 << receives.clamp(1, 9).saturating_sub(1)).min(Duration::from_secs(900));
    let spread =
        digest(&[id, &receives.to_string()]).bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    ceiling.mul_f64(0.5 + f64::from(spread % 1000) / 2000.0).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_panics_and_timeouts_into_faults() {
        let invocation =
            |left| Invocation { deadline: Instant::now() + left, function_arn: String::new(), trace: None };
        let minute = invocation(Duration::from_secs(60));
        let panics = guarded(&minute, async { if minute.is_over() { Ok(()) } else { panic!("no such {}", "index") } });
        assert_eq!(panics.await, Err(Fault::passing("panicked: no such index")));
        assert_eq!(guarded(&minute, async { Ok(1) }).await, Ok(1), "its neighbour");
        let short = invocation(Duration::from_millis(5));
        let fault = guarded::<()>(&short, std::future::pending()).await.expect_err("it never ends");
        assert!(fault.message.contains("not finished"), "{fault}");
        let fault = guarded(&short, async { Ok(()) }).await.expect_err("it is too late to begin");
        assert!(fault.message.contains("not begun"), "{fault}");
    }

    #[test]
    fn the_backoff_grows_and_is_bounded() {
        for (receives, most) in [(0, 4), (1, 4), (2, 8), (5, 64), (9, 900), (1000, 900)] {
            let delay = backoff("id", receives).as_secs_f64();
            assert!(delay <= f64::from(most) && delay >= f64::from(most) / 2.0, "{receives}: {delay}");
        }
    }
}
