//! Decides what a completion ends, and what the sweep does: pure, synchronous, time is an argument.

pub mod completion;
pub mod instances;
pub mod nodes;
pub mod tasks;
pub mod waiting;

use jiff::Timestamp;
use serde_json::Value;

/// What an invocation was called with.
#[derive(Debug)]
pub enum Event {
    /// A batch of the completions queue.
    Batch(Value),
    /// Time for the sweep.
    Sweep(Timestamp),
    /// Neither.
    Other(String),
}

/// Classifies an event. The sweep uses the event's own `time`, so that two sweeps are a minute apart however late they
/// arrive.
pub fn event(event: Value, now: Timestamp) -> Event {
    if event.get("Records").is_some() {
        return Event::Batch(event);
    }
    match event.get("detail-type").and_then(Value::as_str) {
        Some("Scheduled Event") => {
            let time = event.get("time").and_then(Value::as_str).and_then(|time| time.parse().ok());
            Event::Sweep(time.unwrap_or(now))
        }
        other => Event::Other(format!("detail-type {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use shared::config::Config;
    use shared::config::from_yaml;

    use super::*;

    const CONFIG: &str = "
jenkins: {url: https://ci.example.com/, user: u, apiToken: {env: T}}
clouds:
  - name: linux
    region: eu-west-1
    cluster: ci
    autoScalingGroup: group
    idleInstanceTimeout: 10m
    templates:
      - {name: maven, labels: [maven], taskDefinition: maven, connect: ssh, containerStartTimeout: 5m, idleTimeout: 10m, maxLifetime: 2h}
  - name: other
    region: us-east-1
    assumeRoleArn: arn:aws:iam::222222222222:role/agents
    templates:
      - {name: maven, labels: [maven], taskDefinition: maven, connect: ssh}
";

    pub(super) fn config() -> Config {
        from_yaml(CONFIG).expect("a configuration")
    }

    pub(super) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    #[test]
    fn the_sweep_uses_the_events_time() {
        let scheduled = serde_json::json!({"detail-type": "Scheduled Event", "time": "2026-11-24T18:00:00Z"});
        assert!(matches!(event(scheduled, at(0)), Event::Sweep(time) if time.to_string() == "2026-11-24T18:00:00Z"));
        assert!(matches!(event(serde_json::json!({"Records": []}), at(0)), Event::Batch(_)));
        assert!(matches!(event(serde_json::json!({}), at(0)), Event::Other(_)));
    }
}
