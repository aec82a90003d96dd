//! Amazon EventBridge: every notice, for automation.

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;

use super::Lazy;
use crate::fault::Fault;

/// An event bus and the client that reaches it.
#[derive(Debug, Clone)]
pub struct Bus {
    client: Lazy<Client>,
    name: String,
}

impl Bus {
    pub fn new(client: impl Into<Lazy<Client>>, name: impl Into<String>) -> Self {
        Self { client: client.into(), name: name.into() }
    }

    /// Puts a notice on the bus.
    ///
    /// # Errors
    /// When the call failed, or EventBridge answered 200 but rejected the entry (API_PutEvents).
    pub async fn put(&self, detail_type: &str, detail: &str) -> Result<(), Fault> {
        const ACTION: &str = "events:PutEvents";
        let entry = PutEventsRequestEntry::builder().event_bus_name(&self.name).source("jenkins-ecs-agents");
        let call = self.client.put_events().entries(entry.detail_type(detail_type).detail(detail).build());
        let answer = call.send().await.map_err(|error| Fault::from_sdk(ACTION, error))?;
        let refused = answer.entries().iter().find_map(|entry| Some((entry.error_code()?, entry.error_message())));
        match refused {
            Some((code, message)) => {
                Err(Fault::from_aws(ACTION, Some(code.to_owned()), message.unwrap_or_default().to_owned()))
            }
            None => Ok(()),
        }
    }
}
