//! SQS' standard queues: visibility, delay, receive counts, redrive.
//!
//! The rules are those of the SQS API reference (`API_SendMessage`, `API_ReceiveMessage`, …); the error codes are those of
//! botocore's model of SQS.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::ApiError;

/// The longest message, its attributes included, and the longest batch: 1 MiB since August 2025, 256 KiB before (SQS
/// quotas: messages; `API_CreateQueue`, MaximumMessageSize).
pub(super) const MAXIMUM_MESSAGE_SIZE: usize = 1024 * 1024;

/// A message in a queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its SQS message id.
    pub id: String,
    /// As it was sent.
    pub body: String,
    /// String attributes.
    pub attributes: BTreeMap<String, String>,
    /// The system attribute `AWSTraceHeader`.
    pub trace: Option<String>,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// When it was first received.
    pub first_received_at: Option<Timestamp>,
    /// How often it was received.
    pub receives: u32,
    /// It is not received (again) before this time.
    pub visible_at: Timestamp,
    /// The handle that deletes it, of its last receive.
    pub receipt: Option<String>,
}

/// A queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// The messages, in the order of their arrival.
    pub messages: Vec<Message>,
    /// The default visibility timeout, in seconds.
    pub visibility_timeout: i64,
    /// The dead-letter queue, and the number of receives after which messages are moved there.
    pub redrive: Option<(String, u32)>,
    /// Bytes that a message may have, its attributes included.
    pub maximum_message_size: usize,
    /// What has been counted so far.
    pub counts: Counts,
}

/// What SQS counts for CloudWatch ("Available CloudWatch metrics for Amazon SQS").
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Calls of ReceiveMessage, including empty ones.
    pub receives: usize,
    /// Messages that these returned.
    pub received: usize,
    /// Messages that were deleted.
    pub deleted: usize,
}

/// The queues of an account.
#[derive(Debug)]
pub struct Sqs {
    /// By name.
    pub queues: BTreeMap<String, Queue>,
    region: String,
    account: String,
    endpoint: String,
    counter: u64,
    /// Whether messages are received as from SQS: in an order that it chooses, and often fewer than requested though
    /// there are more ("Best-effort ordering"; `API_ReceiveMessage`, MaxNumberOfMessages). Otherwise in the order of
    /// their arrival.
    pub scattered: bool,
}

impl Sqs {
    pub(super) fn new(region: &str, account: &str, endpoint: &str) -> Self {
        Self {
            queues: BTreeMap::new(),
            region: region.into(),
            account: account.into(),
            endpoint: endpoint.trim_end_matches('/').into(),
            counter: 0,
            scattered: false,
        }
    }

    /// Creates a queue and returns its URL.
    pub fn create(&mut self, name: &str, visibility_timeout: i64, redrive: Option<(&str, u32)>) -> String {
        let redrive = redrive.map(|(queue, most)| (queue.to_owned(), most));
        let maximum_message_size = MAXIMUM_MESSAGE_SIZE;
        let (messages, counts) = (Vec::new(), Counts::default());
        self.queues.insert(name.into(), Queue { messages, visibility_timeout, redrive, maximum_message_size, counts });
        self.url(name)
    }

    /// The URL of a queue.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.endpoint, self.account)
    }

    /// The ARN of a queue.
    pub fn arn(&self, name: &str) -> String {
        format!("arn:aws:sqs:{}:{}:{name}", self.region, self.account)
    }

    /// The messages of a queue, hidden ones too.
    pub fn messages(&self, name: &str) -> &[Message] {
        self.queues.get(name).map_or(&[], |queue| &queue.messages)
    }

    /// When the next message of a queue can be received.
    pub fn next_visible(&self, name: &str) -> Option<Timestamp> {
        self.messages(name).iter().map(|message| message.visible_at).min()
    }

    /// Puts a message into a queue, as Jenkins does. Does nothing if the queue does not exist.
    pub fn send(&mut self, name: &str, body: &str, now: Timestamp) -> String {
        self.put(name, body.to_owned(), BTreeMap::new(), 0, now)
    }

    /// The same with the system attribute `AWSTraceHeader`, as a traced sender sets it.
    pub fn send_traced(&mut self, name: &str, body: &str, trace: &str, now: Timestamp) -> String {
        let id = self.send(name, body, now);
        let sent = self.queues.get_mut(name).and_then(|queue| queue.messages.last_mut());
        if let Some(message) = sent {
            message.trace = Some(trace.to_owned());
        }
        id
    }

    fn put(
        &mut self,
        name: &str,
        body: String,
        attributes: BTreeMap<String, String>,
        delay: i64,
        now: Timestamp,
    ) -> String {
        self.counter += 1;
        let id = format!("{:08x}-0000-4000-8000-{:012x}", self.counter, self.counter);
        if let Some(queue) = self.queues.get_mut(name) {
            queue.messages.push(Message {
                id: id.clone(),
                body,
                attributes,
                trace: None,
                sent_at: now,
                first_received_at: None,
                receives: 0,
                visible_at: now + SignedDuration::from_secs(delay),
                receipt: None,
            });
        }
        id
    }

    /// Receives messages: hides them, counts, and moves those that were received too often to the dead-letter queue.
    pub fn receive(&mut self, name: &str, most: usize, visibility: Option<i64>, now: Timestamp) -> Vec<Message> {
        let Some(queue) = self.queues.get_mut(name) else { return Vec::new() };
        let hidden = SignedDuration::from_secs(visibility.unwrap_or(queue.visibility_timeout));
        let redrive = queue.redrive.clone();
        let mut visible: Vec<usize> =
            (0..queue.messages.len()).filter(|&index| queue.messages[index].visible_at <= now).collect();
        let mut most = most;
        if self.scattered && !visible.is_empty() {
            let chance = scatter(self.counter, now);
            let start = chance as usize % visible.len();
            visible.rotate_left(start);
            most = most.min(1 + (chance >> 32) as usize % 12);
        }
        let (mut received, mut dead) = (Vec::new(), Vec::new());
        for index in visible {
            if received.len() >= most {
                break;
            }
            let message = &mut queue.messages[index];
            if redrive.as_ref().is_some_and(|(_, count)| message.receives >= *count) {
                dead.push(index);
                continue;
            }
            self.counter += 1;
            message.receives += 1;
            message.first_received_at.get_or_insert(now);
            message.visible_at = now + hidden;
            message.receipt = Some(format!("{}#{}", message.id, self.counter));
            received.push(message.clone());
        }
        dead.sort_unstable_by_key(|&index| std::cmp::Reverse(index));
        let dead: Vec<Message> = dead.into_iter().map(|index| queue.messages.remove(index)).collect();
        queue.counts.receives += 1;
        queue.counts.received += received.len();
        if let Some((letters, _)) = redrive
            && let Some(letters) = self.queues.get_mut(&letters)
        {
            letters.messages.extend(dead.into_iter().rev());
        }
        received
    }

    /// A receipt handle that was issued at some time; any other is refused.
    fn receipt<'a>(&self, input: &'a Value) -> Result<&'a str, ApiError> {
        let receipt = text(input, "ReceiptHandle");
        let number = receipt.rsplit_once('#').and_then(|(_, number)| number.parse::<u64>().ok());
        match number {
            Some(number) if (1..=self.counter).contains(&number) => Ok(receipt),
            _ if receipt.is_empty() => {
                Err(ApiError::new("MissingParameter", "The request must contain the parameter ReceiptHandle."))
            }
            _ => Err(ApiError::new("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")),
        }
    }

    /// Deletes a message by its last receipt handle; an older or used one changes nothing (`API_DeleteMessage`).
    pub fn delete(&mut self, name: &str, receipt: &str) {
        if let Some(queue) = self.queues.get_mut(name) {
            let place = queue.messages.iter().position(|message| message.receipt.as_deref() == Some(receipt));
            if let Some(place) = place {
                queue.messages.remove(place);
                queue.counts.deleted += 1;
            }
        }
    }

    fn hide(&mut self, name: &str, receipt: &str, seconds: i64, now: Timestamp) -> Result<(), ApiError> {
        if !(0..=43_200).contains(&seconds) {
            return Err(ApiError::new("InvalidParameterValue", "VisibilityTimeout has to be 0 to 43200."));
        }
        let message = self
            .queues
            .get_mut(name)
            .and_then(|queue| queue.messages.iter_mut().find(|message| message.receipt.as_deref() == Some(receipt)));
        match message {
            Some(message) if message.visible_at <= now => {
                Err(ApiError::new("MessageNotInflight", "The message is not in flight."))
            }
            Some(message) => {
                message.visible_at = now + SignedDuration::from_secs(seconds);
                Ok(())
            }
            None => Err(ApiError::new(
                "InvalidParameterValue",
                "The message does not exist or is not available for a change of its visibility timeout.",
            )),
        }
    }

    /// Answers a call.
    pub(super) fn call(&mut self, action: &str, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let missing = || ApiError::new("QueueDoesNotExist", "The specified queue does not exist.");
        match action {
            "CreateQueue" => {
                let name = text(input, "QueueName");
                if !self.queues.contains_key(name) {
                    let timeout = text(&input["Attributes"], "VisibilityTimeout").parse().unwrap_or(30);
                    let policy: Value =
                        serde_json::from_str(text(&input["Attributes"], "RedrivePolicy")).unwrap_or_default();
                    let letters =
                        text(&policy, "deadLetterTargetArn").rsplit(':').next().filter(|name| !name.is_empty());
                    // The count may be a number or a text.
                    let most = policy["maxReceiveCount"].to_string().trim_matches('"').parse().ok();
                    self.create(name, timeout, letters.zip(most));
                    let size = text(&input["Attributes"], "MaximumMessageSize").parse().ok();
                    if let Some((queue, size)) = self.queues.get_mut(name).zip(size) {
                        queue.maximum_message_size = size;
                    }
                }
                return Ok(json!({"QueueUrl": self.url(name)}));
            }
            "GetQueueUrl" => {
                let name = text(input, "QueueName");
                return if self.queues.contains_key(name) {
                    Ok(json!({"QueueUrl": self.url(name)}))
                } else {
                    Err(missing())
                };
            }
            _ => {}
        }
        let name = text(input, "QueueUrl").rsplit('/').next().unwrap_or_default().to_owned();
        if !self.queues.contains_key(&name) {
            return Err(missing());
        }
        match action {
            "SendMessage" => self.send_one(&name, input, now),
            "SendMessageBatch" => {
                let size: usize = input["Entries"].as_array().into_iter().flatten().map(message_size).sum();
                if size > MAXIMUM_MESSAGE_SIZE {
                    let message = format!(
                        "Batch requests cannot be longer than {MAXIMUM_MESSAGE_SIZE} bytes. You have sent {size} bytes."
                    );
                    return Err(ApiError::new("BatchRequestTooLong", message));
                }
                batch(input, |entry| self.send_one(&name, entry, now))
            }
            "ReceiveMessage" => {
                let most = input["MaxNumberOfMessages"].as_u64().unwrap_or(1);
                if !(1..=10).contains(&most) {
                    return Err(ApiError::new("InvalidParameterValue", "MaxNumberOfMessages has to be 1 to 10."));
                }
                if !(0..=20).contains(&input["WaitTimeSeconds"].as_i64().unwrap_or(0))
                    || !(0..=43_200).contains(&input["VisibilityTimeout"].as_i64().unwrap_or(0))
                {
                    let message = "WaitTimeSeconds has to be 0 to 20, and VisibilityTimeout 0 to 43200.";
                    return Err(ApiError::new("InvalidParameterValue", message));
                }
                let messages = self.receive(&name, most as usize, input["VisibilityTimeout"].as_i64(), now);
                if messages.is_empty() {
                    return Ok(json!({}));
                }
                Ok(json!({"Messages": messages.iter().map(|message| described(message, input)).collect::<Vec<_>>()}))
            }
            "DeleteMessage" => {
                let receipt = self.receipt(input)?;
                self.delete(&name, receipt);
                Ok(json!({}))
            }
            "DeleteMessageBatch" => batch(input, |entry| {
                let receipt = self.receipt(entry)?;
                self.delete(&name, receipt);
                Ok(json!({}))
            }),
            "ChangeMessageVisibility" => self.change_one(&name, input, now),
            "ChangeMessageVisibilityBatch" => batch(input, |entry| self.change_one(&name, entry, now)),
            "GetQueueAttributes" => {
                let mut attributes = self.describe(&name, now);
                let asked = names(input, &["AttributeNames"]);
                if !asked.contains("All") {
                    attributes.retain(|key, _| asked.contains(key.as_str()));
                }
                Ok(json!({"Attributes": attributes}))
            }
            "PurgeQueue" => {
                self.queues.entry(name).and_modify(|queue| queue.messages.clear());
                Ok(json!({}))
            }
            _ => Err(ApiError::new("UnsupportedOperation", format!("sqs:{action} is not simulated"))),
        }
    }

    fn change_one(&mut self, name: &str, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let seconds = input["VisibilityTimeout"].as_i64().unwrap_or(-1);
        self.hide(name, self.receipt(input)?.to_owned().as_str(), seconds, now).map(|()| json!({}))
    }

    fn send_one(&mut self, name: &str, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        let body = text(input, "MessageBody");
        if body.is_empty() {
            return Err(ApiError::new("MissingParameter", "The request must contain the parameter MessageBody."));
        }
        let allowed =
            |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..);
        if !body.chars().all(allowed) {
            return Err(ApiError::new(
                "InvalidMessageContents",
                "The message contains characters outside the allowed set.",
            ));
        }
        let attributes = read_attributes(&input["MessageAttributes"], &allowed)?;
        let most = self.queues.get(name).map_or(MAXIMUM_MESSAGE_SIZE, |queue| queue.maximum_message_size);
        if message_size(input) > most {
            let message =
                format!("One or more parameters are invalid. Reason: Message must be shorter than {most} bytes.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        let delay = input["DelaySeconds"].as_i64().unwrap_or(0);
        if !(0..=900).contains(&delay) {
            return Err(ApiError::new("InvalidParameterValue", "DelaySeconds has to be 0 to 900."));
        }
        let id = self.put(name, body.to_owned(), attributes, delay, now);
        // The Rust SDK does not check the digest.
        Ok(json!({"MessageId": id, "MD5OfMessageBody": ""}))
    }

    fn describe(&self, name: &str, now: Timestamp) -> Map<String, Value> {
        let mut attributes = Map::new();
        let Some(queue) = self.queues.get(name) else { return attributes };
        let hidden = |message: &&Message| message.visible_at > now;
        let in_flight = queue.messages.iter().filter(hidden).filter(|message| message.receives > 0).count();
        let delayed = queue.messages.iter().filter(hidden).filter(|message| message.receives == 0).count();
        let visible = queue.messages.len() - in_flight - delayed;
        attributes.insert("QueueArn".into(), self.arn(name).into());
        attributes.insert("MaximumMessageSize".into(), queue.maximum_message_size.to_string().into());
        attributes.insert("VisibilityTimeout".into(), queue.visibility_timeout.to_string().into());
        attributes.insert("ApproximateNumberOfMessages".into(), visible.to_string().into());
        attributes.insert("ApproximateNumberOfMessagesNotVisible".into(), in_flight.to_string().into());
        attributes.insert("ApproximateNumberOfMessagesDelayed".into(), delayed.to_string().into());
        if let Some((letters, most)) = &queue.redrive {
            let policy = json!({"deadLetterTargetArn": self.arn(letters), "maxReceiveCount": most});
            attributes.insert("RedrivePolicy".into(), policy.to_string().into());
        }
        attributes
    }

    /// A batch, as an event source passes it to a function (Lambda developer guide, "Using Lambda with Amazon SQS").
    pub fn event(&self, name: &str, messages: &[Message]) -> Value {
        let records: Vec<_> = messages
            .iter()
            .map(|message| {
                let attributes: Map<_, _> = message
                    .attributes
                    .iter()
                    .map(|(key, value)| {
                        let value =
                            json!({"stringValue": value, "stringListValues": [], "binaryListValues": [], "dataType": "String"});
                        (key.clone(), value)
                    })
                    .collect();
                json!({
                    "messageId": message.id,
                    "receiptHandle": message.receipt,
                    "body": message.body,
                    "attributes": system_attributes(message),
                    "messageAttributes": attributes,
                    "md5OfBody": "",
                    "eventSource": "aws:sqs",
                    "eventSourceARN": self.arn(name),
                    "awsRegion": self.region,
                })
            })
            .collect();
        json!({"Records": records})
    }

    /// Deletes the messages of a batch that a function has processed: all that its answer does not name (a partial
    /// batch response). An answer with an id that is not in the batch fails the whole batch, as in Lambda.
    pub fn acknowledge(&mut self, name: &str, messages: &[Message], answer: &Value) {
        let failures = answer["batchItemFailures"].as_array();
        let failed: Vec<_> = failures
            .into_iter()
            .flatten()
            .map(|failure| failure["itemIdentifier"].as_str().unwrap_or_default())
            .collect();
        if failed.iter().any(|id| !messages.iter().any(|message| message.id == *id)) {
            return;
        }
        for message in messages.iter().filter(|message| !failed.contains(&message.id.as_str())) {
            if let Some(receipt) = &message.receipt {
                self.delete(name, receipt);
            }
        }
    }
}

/// A number without apparent order, the same for the same calls (the finaliser of SplitMix64).
fn scatter(counter: u64, now: Timestamp) -> u64 {
    let mut x = counter ^ now.as_millisecond().cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The bytes of a message: its body, and each attribute's name, type and value (SQS developer guide, "Message metadata").
fn message_size(entry: &Value) -> usize {
    let attributes = entry["MessageAttributes"].as_object().into_iter().flatten();
    let size =
        |(key, value): (&String, &Value)| key.len() + text(value, "DataType").len() + text(value, "StringValue").len();
    text(entry, "MessageBody").len() + attributes.map(size).sum::<usize>()
}

/// Up to ten attributes of the types String, Number or Binary, each with an optional custom label after a dot
/// (`API_MessageAttributeValue`). Binary is not used here.
fn read_attributes(input: &Value, allowed: &dyn Fn(char) -> bool) -> Result<BTreeMap<String, String>, ApiError> {
    let mut attributes = BTreeMap::new();
    for (key, given) in input.as_object().into_iter().flatten() {
        let (value, data_type) = (text(given, "StringValue"), text(given, "DataType"));
        let reserved = |prefix: &&str| key.to_ascii_lowercase().starts_with(prefix);
        let named = (1..=256).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
            && !key.starts_with('.')
            && !key.ends_with('.')
            && !key.contains("..")
            && !["aws.", "amazon."].iter().any(reserved);
        let typed = match data_type.split('.').next() {
            Some("String") => !value.is_empty() && value.chars().all(allowed),
            Some("Number") => value.parse::<f64>().is_ok(),
            _ => false,
        };
        if !named || !typed || data_type.len() > 256 {
            let message =
                format!("The message attribute '{key}' with type '{data_type}' has no valid name, type or value.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        attributes.insert(key.clone(), value.to_owned());
    }
    if attributes.len() > 10 {
        let message = format!("Number of message attributes [{}] exceeds the allowed maximum [10].", attributes.len());
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    Ok(attributes)
}

/// The names in one of several lists of the input.
fn names<'a>(input: &'a Value, lists: &[&str]) -> BTreeSet<&'a str> {
    lists.iter().filter_map(|list| input[list].as_array()).flatten().filter_map(Value::as_str).collect()
}

/// One to ten entries with ids of their own, each processed on its own (`API_SendMessageBatch` and similar calls).
fn batch(input: &Value, mut one: impl FnMut(&Value) -> Result<Value, ApiError>) -> Result<Value, ApiError> {
    let entries = input["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids: BTreeSet<_> = entries.iter().map(|entry| text(entry, "Id")).collect();
    match entries.len() {
        0 => return Err(ApiError::new("EmptyBatchRequest", "The batch request has no entries.")),
        11.. => {
            return Err(ApiError::new("TooManyEntriesInBatchRequest", "The batch request has more than 10 entries."));
        }
        count if ids.len() < count => {
            return Err(ApiError::new("BatchEntryIdsNotDistinct", "Two entries of the batch request have one id."));
        }
        _ => {}
    }
    // "alphanumeric characters, hyphens, and underscores", up to 80.
    let valid = |id: &&str| {
        (1..=80).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if !ids.iter().all(valid) {
        return Err(ApiError::new(
            "InvalidBatchEntryId",
            "A batch entry id can have letters, numbers, hyphens, underscores.",
        ));
    }
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for entry in entries {
        match one(entry) {
            Ok(mut answer) => {
                answer["Id"] = entry["Id"].clone();
                good.push(answer);
            }
            Err(error) => {
                bad.push(json!({"Id": entry["Id"], "Code": error.code, "Message": error.message, "SenderFault": true}));
            }
        }
    }
    Ok(json!({"Successful": good, "Failed": bad}))
}

fn system_attributes(message: &Message) -> Map<String, Value> {
    let first = message.first_received_at.unwrap_or(message.sent_at);
    [
        ("ApproximateReceiveCount", message.receives.to_string()),
        ("SentTimestamp", message.sent_at.as_millisecond().to_string()),
        ("ApproximateFirstReceiveTimestamp", first.as_millisecond().to_string()),
        ("SenderId", "AIDAEXAMPLE".into()),
    ]
    .into_iter()
    .chain(message.trace.clone().map(|trace| ("AWSTraceHeader", trace)))
    .map(|(key, value)| (key.to_owned(), value.into()))
    .collect()
}

/// A received message. Attributes are included only on request (`API_ReceiveMessage`).
fn described(message: &Message, input: &Value) -> Value {
    let mut answer = json!({
        "MessageId": message.id,
        "ReceiptHandle": message.receipt,
        "Body": message.body,
        "MD5OfBody": "",
    });
    let asked = names(input, &["AttributeNames", "MessageSystemAttributeNames"]);
    let mut system = system_attributes(message);
    system.retain(|key, _| asked.contains("All") || asked.contains(key.as_str()));
    if !system.is_empty() {
        answer["Attributes"] = system.into();
    }
    let asked = names(input, &["MessageAttributeNames"]);
    let wanted = |key: &str| {
        asked.iter().any(|name| match *name {
            "All" | ".*" => true,
            name => name.strip_suffix(".*").map_or(name == key, |prefix| key.starts_with(prefix)),
        })
    };
    let attributes: Map<_, _> = message
        .attributes
        .iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (key.clone(), json!({"StringValue": value, "DataType": "String"})))
        .collect();
    if !attributes.is_empty() {
        answer["MessageAttributes"] = attributes.into();
    }
    answer
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    fn queues() -> Sqs {
        let mut sqs = Sqs::new("eu-west-1", "123456789012", "http://localhost/");
        sqs.create("letters", 30, None);
        sqs.create("requests", 30, Some(("letters", 2)));
        sqs
    }

    fn call(sqs: &mut Sqs, action: &str, queue: &str, mut input: Value, seconds: i64) -> Result<Value, ApiError> {
        input["QueueUrl"] = sqs.url(queue).into();
        sqs.call(action, &input, at(seconds))
    }

    #[test]
    fn a_received_message_is_hidden_returns_and_is_redriven() {
        let mut sqs = queues();
        sqs.send("requests", "one", at(0));
        let first = sqs.receive("requests", 10, None, at(0));
        assert_eq!(first.len(), 1);
        assert!(sqs.receive("requests", 10, None, at(29)).is_empty(), "hidden");
        let second = sqs.receive("requests", 10, None, at(30));
        assert_eq!(second[0].receives, 2);
        sqs.delete("requests", first[0].receipt.as_deref().unwrap());
        assert_eq!(sqs.messages("requests").len(), 1, "an old receipt deletes nothing");
        assert!(sqs.receive("requests", 10, None, at(60)).is_empty());
        assert_eq!(sqs.messages("letters")[0].body, "one");
        assert_eq!(sqs.next_visible("letters"), Some(at(60)));
    }

    #[test]
    fn attributes_come_only_when_asked_for() {
        let mut sqs = queues();
        let attributes = json!({"reason": {"DataType": "String", "StringValue": "because"}});
        call(&mut sqs, "SendMessage", "letters", json!({"MessageBody": "x", "MessageAttributes": attributes}), 0)
            .unwrap();
        let bare = call(&mut sqs, "ReceiveMessage", "letters", json!({"VisibilityTimeout": 0}), 0).unwrap();
        assert!(bare["Messages"][0].get("Attributes").is_none());
        assert!(bare["Messages"][0].get("MessageAttributes").is_none());
        let asked =
            json!({"MessageSystemAttributeNames": ["ApproximateReceiveCount"], "MessageAttributeNames": ["All"]});
        let full = call(&mut sqs, "ReceiveMessage", "letters", asked, 0).unwrap();
        assert_eq!(full["Messages"][0]["Attributes"], json!({"ApproximateReceiveCount": "2"}));
        assert_eq!(full["Messages"][0]["MessageAttributes"]["reason"]["StringValue"], "because");
    }

    #[test]
    fn a_delayed_message_is_counted_as_such() {
        let mut sqs = queues();
        call(&mut sqs, "SendMessage", "requests", json!({"MessageBody": "x", "DelaySeconds": 60}), 0).unwrap();
        sqs.send("requests", "y", at(0));
        sqs.receive("requests", 1, None, at(0));
        let all = call(&mut sqs, "GetQueueAttributes", "requests", json!({"AttributeNames": ["All"]}), 1).unwrap();
        assert_eq!(all["Attributes"]["ApproximateNumberOfMessages"], "0");
        assert_eq!(all["Attributes"]["ApproximateNumberOfMessagesNotVisible"], "1");
        assert_eq!(all["Attributes"]["ApproximateNumberOfMessagesDelayed"], "1");
        let policy =
            call(&mut sqs, "GetQueueAttributes", "requests", json!({"AttributeNames": ["RedrivePolicy"]}), 1).unwrap();
        assert_eq!(policy["Attributes"].as_object().unwrap().len(), 1);
        assert!(policy["Attributes"]["RedrivePolicy"].as_str().unwrap().contains("\"maxReceiveCount\":2"));
    }

    #[test]
    fn processes_each_entry_of_a_batch_on_its_own() {
        let mut sqs = queues();
        let entries = json!([{"Id": "a", "MessageBody": "x"}, {"Id": "b", "MessageBody": ""}]);
        let answer = call(&mut sqs, "SendMessageBatch", "requests", json!({"Entries": entries}), 0).unwrap();
        assert_eq!(answer["Successful"][0]["Id"], "a");
        assert_eq!(answer["Failed"][0]["Code"], "MissingParameter");
        for (entries, code) in [
            (json!([]), "EmptyBatchRequest"),
            (json!([{"Id": "a"}, {"Id": "a"}]), "BatchEntryIdsNotDistinct"),
            (
                json!((0..11).map(|id| json!({"Id": id.to_string()})).collect::<Vec<_>>()),
                "TooManyEntriesInBatchRequest",
            ),
        ] {
            let error = call(&mut sqs, "SendMessageBatch", "requests", json!({"Entries": entries}), 0).unwrap_err();
            assert_eq!(error.code, code);
        }
    }

    #[test]
    fn refuses_messages_that_are_too_long_with_their_attributes() {
        let mut sqs = queues();
        let send = |sqs: &mut Sqs, body: usize, attributes: Value| {
            let input = json!({"MessageBody": "x".repeat(body), "MessageAttributes": attributes});
            call(sqs, "SendMessage", "letters", input, 0).map(drop).map_err(|error| error.code)
        };
        let reason = json!({"reason": {"DataType": "String", "StringValue": "because"}});
        // reason, String, because: 6 + 6 + 7.
        for (size, body) in [(1024 * 1024, 1024 * 1024 - 19), (262_144, 262_144 - 19)] {
            sqs.queues.get_mut("letters").unwrap().maximum_message_size = size;
            assert_eq!(send(&mut sqs, body, reason.clone()), Ok(()));
            assert_eq!(send(&mut sqs, body + 1, reason.clone()), Err("InvalidParameterValue".into()));
            assert_eq!(send(&mut sqs, size, json!({})), Ok(()));
        }
        let entry = |id: &str| json!({"Id": id, "MessageBody": "x".repeat(600 * 1024)});
        let batch = json!({"Entries": [entry("a"), entry("b")]});
        assert_eq!(call(&mut sqs, "SendMessageBatch", "requests", batch, 0).unwrap_err().code, "BatchRequestTooLong");
        for attributes in [
            json!({"a": {"StringValue": "no type"}}),
            json!({"a": {"DataType": "Text", "StringValue": "x"}}),
            json!({"a": {"DataType": "Number", "StringValue": "x"}}),
            json!({"a": {"DataType": "String", "StringValue": ""}}),
            json!({"aws.a": {"DataType": "String", "StringValue": "x"}}),
            json!({"a b": {"DataType": "String", "StringValue": "x"}}),
            (0..11).map(|n| (format!("a{n}"), json!({"DataType": "String", "StringValue": "x"}))).collect(),
        ] {
            assert_eq!(send(&mut sqs, 1, attributes.clone()), Err("InvalidParameterValue".into()), "{attributes}");
        }
        assert_eq!(send(&mut sqs, 1, json!({"a": {"DataType": "Number.int", "StringValue": "1"}})), Ok(()));
        let batch = json!({"Entries": [{"Id": "a b", "MessageBody": "x"}]});
        assert_eq!(call(&mut sqs, "SendMessageBatch", "requests", batch, 0).unwrap_err().code, "InvalidBatchEntryId");
    }

    #[test]
    fn refuses_an_unknown_receipt_and_ignores_an_old_one() {
        let mut sqs = queues();
        sqs.send("requests", "x", at(0));
        let old = sqs.receive("requests", 1, None, at(0)).remove(0).receipt;
        sqs.receive("requests", 1, None, at(30));
        for receipt in ["garbage", "garbage#9999999", "#0"] {
            for (action, more) in [("DeleteMessage", 0), ("ChangeMessageVisibility", 5)] {
                let input = json!({"ReceiptHandle": receipt, "VisibilityTimeout": more});
                assert_eq!(call(&mut sqs, action, "requests", input, 31).unwrap_err().code, "ReceiptHandleIsInvalid");
            }
            let batch = json!({"Entries": [{"Id": "a", "ReceiptHandle": receipt}]});
            let answer = call(&mut sqs, "DeleteMessageBatch", "requests", batch, 31).unwrap();
            assert_eq!(answer["Failed"][0]["Code"], "ReceiptHandleIsInvalid");
        }
        call(&mut sqs, "DeleteMessage", "requests", json!({"ReceiptHandle": old}), 31).unwrap();
        assert_eq!(sqs.messages("requests").len(), 1);
        let hide = json!({"ReceiptHandle": old, "VisibilityTimeout": 500});
        assert!(call(&mut sqs, "ChangeMessageVisibility", "requests", hide, 31).is_err());
        assert_eq!(sqs.next_visible("requests"), Some(at(60)), "an old receipt hides nothing");
    }

    #[test]
    fn only_messages_in_flight_can_be_hidden() {
        let mut sqs = queues();
        sqs.send("requests", "x", at(0));
        let message = sqs.receive("requests", 1, None, at(0)).remove(0);
        let change = |timeout: i64| json!({"ReceiptHandle": message.receipt, "VisibilityTimeout": timeout});
        call(&mut sqs, "ChangeMessageVisibility", "requests", change(100), 1).unwrap();
        assert_eq!(sqs.next_visible("requests"), Some(at(101)));
        let late = call(&mut sqs, "ChangeMessageVisibility", "requests", change(5), 101).unwrap_err();
        assert_eq!(late.code, "MessageNotInflight");
        sqs.delete("requests", message.receipt.as_deref().unwrap());
        let gone = call(&mut sqs, "ChangeMessageVisibility", "requests", change(5), 102).unwrap_err();
        assert_eq!(gone.code, "InvalidParameterValue");
    }

    #[test]
    fn a_partial_batch_response_keeps_failed_messages() {
        let mut sqs = queues();
        let keep = sqs.send("requests", "keep", at(0));
        sqs.send("requests", "done", at(0));
        let batch = sqs.receive("requests", 10, None, at(0));
        sqs.acknowledge("requests", &batch, &json!({"batchItemFailures": [{"itemIdentifier": "unknown"}]}));
        assert_eq!(sqs.messages("requests").len(), 2, "a foreign id fails the whole batch");
        sqs.acknowledge("requests", &batch, &json!({"batchItemFailures": [{"itemIdentifier": keep}]}));
        assert_eq!(sqs.messages("requests").len(), 1);
        assert_eq!(sqs.messages("requests")[0].body, "keep");
    }
}
