//! The sequence of a batch of completions, or the sweep. Decides nothing.

use anyhow::{Result, anyhow};
use serde_json::Value;
use shared::app::App;
use shared::batch::{self, Invocation, Source};

use crate::completion::{self, Batch};
use crate::plan::{self, Event};
use crate::sweep;

/// Handles an invocation.
///
/// # Errors
/// When the event is neither a batch nor the sweep's.
pub async fn handle(app: &App, invocation: &Invocation, event: Value) -> Result<Value> {
    match plan::event(event, app.now()) {
        Event::Batch(batch) => {
            let source = Source { queue: &app.queues.urls.completions, what: "completion", max_attempts: None };
            let shared = Batch::new(app);
            let work = async |item: &_| completion::complete(app, invocation, &shared, item).await;
            batch::each(&app.queues, invocation, source, batch, work).await
        }
        Event::Sweep(time) => {
            sweep::sweep(app, invocation, time).await;
            Ok(Value::Null)
        }
        Event::Other(what) => Err(anyhow!("neither an SQS batch nor the sweep's scheduled event: {what}")),
    }
}
