//! The events that the functions are invoked with.

use jiff::Timestamp;
use serde_json::Value;
use shared::aws::ecs::Task;
use shared::batch;
use shared::stop::Stop;
use task_state::plan::{self, Event};
use teardown::plan::Event as Teardown;

use crate::mutate::holds;

/// Everything that is computed from a task alone.
pub(crate) fn look_at(task: &Task) {
    drop(task.record());
    drop(task.stopped_reason.as_deref().and_then(Stop::parse));
    assert_eq!(task.is_running(), task.last_status.as_str() == "RUNNING" && !task.is_ending());
    let _ = (plan::concern(task), task.family(), task.service(), task.reported_at(), task.container("agent"));
    let _ = (task.interface_detail("networkInterfaceId"), task.environment().count());
}

#[test]
fn events_of_ecs() {
    holds("event", |input| {
        let Ok(event) = serde_json::from_slice::<Value>(input) else { return false };
        match plan::event(event) {
            Event::Task(task) => look_at(&task),
            Event::Instance(instance) => {
                if let Some(instance) = instance.with_room() {
                    assert!(instance.takes_tasks() && instance.free.memory > 0);
                }
            }
            Event::Batch(_) | Event::Other(_) | Event::Unreadable(_) => return false,
        }
        true
    });
}

#[test]
fn batches_of_sqs() {
    holds("batch", |input| {
        let Ok(event) = serde_json::from_slice::<Value>(input) else { return false };
        let Ok(items) = batch::items(&event) else { return false };
        let records = event["Records"].as_array().expect("records");
        assert_eq!(items.len(), records.len(), "no record is lost");
        for (item, record) in items.iter().zip(records) {
            assert_eq!(item.body, record["body"].as_str().unwrap_or_default());
            assert!((1..=900).contains(&batch::backoff(&item.id, item.receives).as_secs()));
            let _ = item.sent_at(Timestamp::UNIX_EPOCH);
        }
        true
    });
}

#[test]
fn scheduled_events() {
    holds("sweep", |input| {
        let Ok(event) = serde_json::from_slice::<Value>(input) else { return false };
        matches!(teardown::plan::event(event, Timestamp::UNIX_EPOCH), Teardown::Sweep(_))
    });
}
