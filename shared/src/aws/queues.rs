//! Amazon SQS.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::Client;
pub use aws_sdk_sqs::types::QueueAttributeName;
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, MessageAttributeValue};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use futures::stream::{self, StreamExt as _};

use super::Lazy;
use crate::config::QueueUrls;
use crate::fault::Fault;
use crate::log_fault;
use crate::metrics;

/// The longest delay of a message (API_SendMessage).
pub const LONGEST_DELAY: Duration = Duration::from_secs(900);

/// Every queue accepts a message of this size, attributes included: 256 KiB were the limit before it was raised to 1
/// MiB (SQS developer guide, "Amazon SQS message quotas").
const SURELY_TAKEN: usize = 256 * 1024;

/// A received message, which has to be deleted or released.
#[derive(Debug, Clone)]
pub struct Received {
    pub body: String,
    /// The value of the one attribute that was requested.
    pub attribute: Option<String>,
    /// The handle to delete or release it.
    pub receipt: String,
}

/// The queues of the stack.
#[derive(Debug, Clone)]
pub struct Queues {
    client: Lazy<Client>,
    pub urls: QueueUrls,
}

impl Queues {
    pub fn new(client: impl Into<Lazy<Client>>, urls: QueueUrls) -> Self {
        Self { client: client.into(), urls }
    }

    /// Puts a message that can never work into the rejected queue, unchanged, with the reason.
    ///
    /// # Errors
    /// When the rejected queue could not take it.
    pub async fn reject(&self, body: &str, reason: &str) -> Result<(), Fault> {
        let reason: String = attribute_text(reason).chars().take(1000).collect();
        // SQS accepts no empty message (API_SendMessage).
        let body = if body.is_empty() { "(empty)" } else { body };
        let send = async |body| self.send(&self.urls.rejected, body, &[("reason", &reason)], Duration::ZERO).await;
        match send(body).await {
            // With the reason it may exceed SQS' limit: a part of it is better than nothing.
            Err(fault) if body.len() + reason.len() > SURELY_TAKEN => {
                log_fault!(&fault, size_bytes = body.len(), "a message is copied to the rejected queue in part");
                send(&body[..body.floor_char_boundary(SURELY_TAKEN - 4 * 1024)]).await
            }
            sent => sent,
        }?;
        metrics::MESSAGES_REJECTED.increment();
        Ok(())
    }

    /// Sends a message, with string attributes, visible after the delay.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn send(
        &self,
        queue: &str,
        body: &str,
        attributes: &[(&str, &str)],
        delay: Duration,
    ) -> Result<(), Fault> {
        const ACTION: &str = "sqs:SendMessage";
        let mut call = self.client.send_message().queue_url(queue).message_body(body);
        for (name, value) in attributes {
            let value = MessageAttributeValue::builder().data_type("String").string_value(*value).build();
            let value = value.map_err(|error| Fault::from_aws(ACTION, None, error.to_string()))?;
            call = call.message_attributes(*name, value);
        }
        if !delay.is_zero() {
            call = call.delay_seconds(i32::try_from(delay.min(LONGEST_DELAY).as_secs()).unwrap_or(900));
        }
        call.send().await.map(drop).map_err(|error| fault(ACTION, queue, error))
    }

    /// Receives up to ten messages, hidden from others for `visibility`. Waits a second if there is none: a short poll
    /// asks only some of SQS' servers and may miss a few messages (SQS developer guide, "short and long polling").
    ///
    /// # Errors
    /// When the call failed.
    pub async fn receive(&self, queue: &str, attribute: &str, visibility: Duration) -> Result<Vec<Received>, Fault> {
        let call = self.client.receive_message().queue_url(queue).max_number_of_messages(10).wait_time_seconds(1);
        let call = call.visibility_timeout(i32::try_from(visibility.as_secs()).unwrap_or(30));
        let answer = call.message_attribute_names(attribute).send().await;
        let answer = answer.map_err(|error| fault("sqs:ReceiveMessage", queue, error))?;
        let received = answer.messages.unwrap_or_default().into_iter().filter_map(|message| {
            let mut attributes = message.message_attributes.unwrap_or_default();
            Some(Received {
                receipt: message.receipt_handle?,
                body: message.body.unwrap_or_default(),
                attribute: attributes.remove(attribute).and_then(|value| value.string_value),
            })
        });
        Ok(received.collect())
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn delete(&self, queue: &str, receipt: &str) -> Result<(), Fault> {
        let call = self.client.delete_message().queue_url(queue).receipt_handle(receipt);
        call.send().await.map(drop).map_err(|error| fault("sqs:DeleteMessage", queue, error))
    }

    /// Makes messages visible again at once. If that fails, a message comes back by itself when its visibility timeout
    /// ends.
    pub async fn release(&self, queue: &str, receipts: &[String]) {
        let batches = receipts.chunks(10).map(|receipts| self.release_batch(queue, receipts));
        stream::iter(batches).buffer_unordered(10).collect::<()>().await;
    }

    async fn release_batch(&self, queue: &str, receipts: &[String]) {
        let entries = receipts.iter().enumerate().filter_map(|(index, receipt)| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(index.to_string());
            entry.receipt_handle(receipt).visibility_timeout(0).build().ok()
        });
        let call = self.client.change_message_visibility_batch().queue_url(queue);
        if let Err(error) = call.set_entries(Some(entries.collect())).send().await {
            let fault = Fault::from_sdk("sqs:ChangeMessageVisibilityBatch", error);
            log_fault!(&fault, "waiting requests stay hidden from other functions for up to 90 s");
        }
    }

    /// Hides a message for this long from now, 12 hours in all at most (API_ChangeMessageVisibility).
    ///
    /// # Errors
    /// When the call failed.
    pub async fn hide(&self, queue: &str, receipt: &str, duration: Duration) -> Result<(), Fault> {
        let call = self.client.change_message_visibility().queue_url(queue).receipt_handle(receipt);
        let call = call.visibility_timeout(i32::try_from(duration.as_secs()).unwrap_or(900));
        call.send().await.map(drop).map_err(|error| fault("sqs:ChangeMessageVisibility", queue, error))
    }

    /// The number of messages, visible, hidden and delayed; SQS counts approximately.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn depth(&self, queue: &str) -> Result<u32, Fault> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages, ApproximateNumberOfMessagesDelayed, ApproximateNumberOfMessagesNotVisible,
        };
        let counts =
            [ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible, ApproximateNumberOfMessagesDelayed];
        let attributes = self.attributes(queue, &counts).await?;
        Ok(attributes.values().filter_map(|number| number.parse().ok()).fold(0, u32::saturating_add))
    }

    /// The number of receives after which the queue moves a message to its dead-letter queue; `None` if it never does.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn max_receives(&self, queue: &str) -> Result<Option<u32>, Fault> {
        let attributes = self.attributes(queue, &[QueueAttributeName::RedrivePolicy]).await?;
        Ok(attributes.get(&QueueAttributeName::RedrivePolicy).and_then(|policy| {
            let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
            let count = &policy["maxReceiveCount"];
            // SQS returns the value as it was set: a number, or a string of one.
            count.as_u64().or_else(|| count.as_str()?.parse().ok()).and_then(|count| u32::try_from(count).ok())
        }))
    }

    /// Some of a queue's attributes.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn attributes(
        &self,
        queue: &str,
        names: &[QueueAttributeName],
    ) -> Result<HashMap<QueueAttributeName, String>, Fault> {
        let call = self.client.get_queue_attributes().queue_url(queue).set_attribute_names(Some(names.to_vec()));
        let answer = call.send().await.map_err(|error| Fault::from_sdk("sqs:GetQueueAttributes", error))?;
        Ok(answer.attributes.unwrap_or_default())
    }
}

/// A fault with the name of its queue, which SQS does not repeat.
fn fault<E, R>(action: &'static str, queue: &str, error: SdkError<E, R>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    Fault::from_sdk(action, error).of(queue.rsplit('/').next().unwrap_or(queue))
}

/// SQS accepts only the characters that XML allows in an attribute, and no empty one (API_SendMessage).
fn attribute_text(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| match c {
            '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'.. => c,
            _ => '\u{FFFD}',
        })
        .collect();
    if text.is_empty() { "no reason was given".into() } else { text }
}
