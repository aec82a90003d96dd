//! Amazon SQS.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::Client;
pub use aws_sdk_sqs::types::QueueAttributeName;
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, MessageAttributeValue};

use super::ApiFault;

/// The longest that SQS delays a message (API_SendMessage).
pub const LONGEST_DELAY: Duration = Duration::from_secs(900);

/// A message that was received and has to be deleted or released.
#[derive(Debug, Clone)]
pub struct Received {
    /// As it was sent.
    pub body: String,
    /// The value of the one attribute that was asked for.
    pub attribute: Option<String>,
    /// Deletes or releases it.
    pub receipt: String,
}

/// Sends a message, with string attributes, visible after the delay.
///
/// # Errors
/// When the call failed.
pub async fn send(
    client: &Client,
    queue: &str,
    body: &str,
    attributes: &[(&str, &str)],
    delay: Duration,
) -> Result<(), ApiFault> {
    let mut call = client.send_message().queue_url(queue).message_body(body);
    for (name, value) in attributes {
        let value = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(*value)
            .build()
            .map_err(|error| ApiFault { action: "sqs:SendMessage", code: None, message: error.to_string() })?;
        call = call.message_attributes(*name, value);
    }
    if !delay.is_zero() {
        call = call.delay_seconds(i32::try_from(delay.min(LONGEST_DELAY).as_secs()).unwrap_or(900));
    }
    call.send().await.map(drop).map_err(|error| ApiFault::new("sqs:SendMessage", error))
}

/// Receives up to ten messages, hidden from others for `visibility`. Waits a second where there is none: a short poll
/// asks only some of SQS' servers and may miss the few that are there (SQS developer guide, "short and long polling").
///
/// # Errors
/// When the call failed.
pub async fn receive(
    client: &Client,
    queue: &str,
    attribute: &str,
    visibility: Duration,
) -> Result<Vec<Received>, ApiFault> {
    let answer = client
        .receive_message()
        .queue_url(queue)
        .max_number_of_messages(10)
        .visibility_timeout(i32::try_from(visibility.as_secs()).unwrap_or(30))
        .wait_time_seconds(1)
        .message_attribute_names(attribute)
        .send()
        .await
        .map_err(|error| ApiFault::new("sqs:ReceiveMessage", error))?;
    Ok(answer
        .messages
        .unwrap_or_default()
        .into_iter()
        .filter_map(|message| {
            Some(Received {
                receipt: message.receipt_handle?,
                body: message.body.unwrap_or_default(),
                attribute: message
                    .message_attributes
                    .and_then(|mut attributes| attributes.remove(attribute))
                    .and_then(|value| value.string_value),
            })
        })
        .collect())
}

/// Deletes a message.
///
/// # Errors
/// When the call failed.
pub async fn delete(client: &Client, queue: &str, receipt: &str) -> Result<(), ApiFault> {
    client
        .delete_message()
        .queue_url(queue)
        .receipt_handle(receipt)
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("sqs:DeleteMessage", error))
}

/// Makes messages visible again at once. A message that stays hidden after a fault comes back by itself.
pub async fn release(client: &Client, queue: &str, receipts: &[String]) {
    for receipts in receipts.chunks(10) {
        let entries = receipts.iter().enumerate().filter_map(|(index, receipt)| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(receipt)
                .visibility_timeout(0)
                .build()
                .ok()
        });
        let call = client.change_message_visibility_batch().queue_url(queue).set_entries(Some(entries.collect()));
        if let Err(error) = call.send().await {
            let fault = ApiFault::new("sqs:ChangeMessageVisibilityBatch", error);
            tracing::warn!(error = %fault, "waiting messages stay hidden until their visibility timeout ends");
        }
    }
}

/// Hides a message for so long from now, 12 hours at most in all (API_ChangeMessageVisibility).
///
/// # Errors
/// When the call failed.
pub async fn hide(client: &Client, queue: &str, receipt: &str, duration: Duration) -> Result<(), ApiFault> {
    client
        .change_message_visibility()
        .queue_url(queue)
        .receipt_handle(receipt)
        .visibility_timeout(i32::try_from(duration.as_secs()).unwrap_or(900))
        .send()
        .await
        .map(drop)
        .map_err(|error| ApiFault::new("sqs:ChangeMessageVisibility", error))
}

/// How many messages there are, visible, hidden and delayed: as SQS counts, approximately.
///
/// # Errors
/// When the call failed.
pub async fn depth(client: &Client, queue: &str) -> Result<u32, ApiFault> {
    let attributes = attributes(
        client,
        queue,
        &[
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ],
    )
    .await?;
    Ok(attributes.values().filter_map(|number| number.parse::<u32>().ok()).sum())
}

/// After how many receives the queue moves a message to its dead letters; none if it never does.
///
/// # Errors
/// When the call failed.
pub async fn max_receives(client: &Client, queue: &str) -> Result<Option<u32>, ApiFault> {
    let attributes = attributes(client, queue, &[QueueAttributeName::RedrivePolicy]).await?;
    Ok(attributes.get(&QueueAttributeName::RedrivePolicy).and_then(|policy| {
        let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
        let count = &policy["maxReceiveCount"];
        // SQS answers what it was given: a number or a string of one.
        count.as_u64().or_else(|| count.as_str()?.parse().ok()).and_then(|count| u32::try_from(count).ok())
    }))
}

/// Some of a queue's attributes.
///
/// # Errors
/// When the call failed.
pub async fn attributes(
    client: &Client,
    queue: &str,
    names: &[QueueAttributeName],
) -> Result<HashMap<QueueAttributeName, String>, ApiFault> {
    let answer = client
        .get_queue_attributes()
        .queue_url(queue)
        .set_attribute_names(Some(names.to_vec()))
        .send()
        .await
        .map_err(|error| ApiFault::new("sqs:GetQueueAttributes", error))?;
    Ok(answer.attributes.unwrap_or_default())
}
