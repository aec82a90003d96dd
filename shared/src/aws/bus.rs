//! Amazon EventBridge: every notice, for automation.

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;

use super::ApiFault;

/// Puts a notice on the bus.
///
/// # Errors
/// When the call failed, or EventBridge answered 200 and did not take the entry (API_PutEvents).
pub async fn put(client: &Client, bus: &str, detail_type: &str, detail: &str) -> Result<(), ApiFault> {
    let entry = PutEventsRequestEntry::builder()
        .event_bus_name(bus)
        .source("jenkins-ecs-agents")
        .detail_type(detail_type)
        .detail(detail)
        .build();
    let answer =
        client.put_events().entries(entry).send().await.map_err(|error| ApiFault::new("events:PutEvents", error))?;
    match answer.entries().iter().find(|entry| entry.error_code().is_some()) {
        Some(entry) => Err(ApiFault {
            action: "events:PutEvents",
            code: entry.error_code().map(str::to_owned),
            message: entry.error_message().unwrap_or_default().to_owned(),
        }),
        None => Ok(()),
    }
}
