//! Metrics in CloudWatch's embedded metric format: on lines of the log, without a call (CloudWatch user guide,
//! "Specification: Embedded metric format").
//!
//! A field `metric.NAME` of an event is a metric NAME. It counts for the dimensions that the event itself names
//! ([`DIMENSIONS`]) and for the whole stack. What is counted without a line of its own is a [`Counter`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;
use serde_json::Value;

/// The prefix of fields that are metrics.
pub const PREFIX: &str = "metric.";

/// The fields that are dimensions. CloudWatch charges for each value, so their values have to be bounded: names of the
/// configuration, and enumerations.
pub const DIMENSIONS: [&str; 5] = ["cloud", "template", "code", "cause", "waits_for"];

/// Attempts of AWS API calls.
pub static AWS_CALLS: Counter = Counter::new("aws_calls");
/// Calls that AWS throttled in all their attempts.
pub static AWS_THROTTLES: Counter = Counter::new("aws_throttles");
/// Messages that were moved to the rejected queue.
pub static MESSAGES_REJECTED: Counter = Counter::new("messages_rejected");
/// Attempts to deliver a notice that failed and will be repeated.
pub static NOTICES_UNDELIVERED: Counter = Counter::new("notices_undelivered");
/// Requests that were sent back from the waiting queue.
pub static REQUESTS_WOKEN: Counter = Counter::new("requests_woken");

pub(crate) const COUNTERS: [&Counter; 5] =
    [&AWS_CALLS, &AWS_THROTTLES, &MESSAGES_REJECTED, &NOTICES_UNDELIVERED, &REQUESTS_WOKEN];

/// Metrics that are reported by template only. Calls are made every minute, so they would cost also in hours without agents; a
/// group's capacity is meaningless as a total.
const DETAILS: [&str; 3] = ["aws_calls", "group_desired", "group_maximum"];

/// Whether lines carry metrics.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// The metrics that are reported.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub namespace: String,
    /// Whether by all dimensions. Otherwise failures are reported by their code, and everything else for the whole stack.
    pub by_template: bool,
}

impl Metrics {
    fn reports(&self, metric: &str) -> bool {
        self.by_template || !DETAILS.contains(&metric)
    }

    fn has_dimension(&self, name: &str) -> bool {
        self.by_template || name == "code"
    }

    fn directive(&self, dimensions: Vec<Vec<&'static str>>, names: Vec<&'static str>) -> Option<Directive<'_>> {
        let unit = |name: &str| if name.ends_with("_ms") { "Milliseconds" } else { "Count" };
        let names = names.into_iter().filter(|name| self.reports(name));
        let metrics: Vec<_> = names.map(|name| Metric { name, unit: unit(name) }).collect();
        let is_empty = metrics.is_empty();
        (!is_empty).then_some(Directive { namespace: &self.namespace, dimensions, metrics })
    }
}

/// The member `_aws` of a line, which describes its metrics.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Description<'a> {
    /// In ms since 1970.
    timestamp: i64,
    cloud_watch_metrics: Vec<Directive<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive<'a> {
    namespace: &'a str,
    dimensions: Vec<Vec<&'static str>>,
    metrics: Vec<Metric>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metric {
    name: &'static str,
    unit: &'static str,
}

/// Counts what has no line of its own, until the next line with metrics includes it.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    count: AtomicU64,
}

impl Counter {
    const fn new(name: &'static str) -> Self {
        Self { name, count: AtomicU64::new(0) }
    }

    pub fn increment(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The count since the last call.
    fn take(&self) -> Option<u64> {
        Some(self.count.swap(0, Ordering::Relaxed)).filter(|&count| count > 0)
    }
}

pub(crate) fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// At the end of an invocation, logs what was counted and included in no line: Lambda may never run the process again.
pub fn flush() {
    let is_left = COUNTERS.iter().any(|counter| counter.count.load(Ordering::Relaxed) > 0);
    if is_left && ENABLED.load(Ordering::Relaxed) {
        tracing::info!(
            metric.aws_calls = AWS_CALLS.take(),
            metric.aws_throttles = AWS_THROTTLES.take(),
            metric.messages_rejected = MESSAGES_REJECTED.take(),
            metric.notices_undelivered = NOTICES_UNDELIVERED.take(),
            metric.requests_woken = REQUESTS_WOKEN.take(),
            "counts of the invocation"
        );
    }
}

/// Renames the metrics among an event's own fields, the first `own`, to their plain names. With `metrics`, a line that has any
/// becomes one of the embedded metric format: it includes the counters, and describes those that are reported.
pub(crate) fn embed<'a>(
    metrics: Option<&'a Metrics>,
    counters: &[&Counter],
    fields: &mut Vec<(&'static str, Value)>,
    own: usize,
    now_ms: i64,
) -> Option<Description<'a>> {
    let mut names = Vec::new();
    for (name, _) in &mut fields[..own] {
        if let Some(metric) = name.strip_prefix(PREFIX) {
            *name = metric;
            names.push(metric);
        }
    }
    let metrics = metrics.filter(|_| !names.is_empty())?;
    let named = |name: &str| fields[..own].iter().any(|(known, value)| *known == name && value.is_string());
    let dimensions = DIMENSIONS.into_iter().filter(|name| metrics.has_dimension(name) && named(name));
    let dimensions: Vec<_> = dimensions.collect();
    let mut sets = vec![Vec::new()];
    sets.extend((!dimensions.is_empty()).then_some(dimensions));
    let counted: Vec<_> =
        counters.iter().filter_map(|counter| Some((counter.name, Value::from(counter.take()?)))).collect();
    let counters = counted.iter().map(|(name, _)| *name).collect();
    let directives: Vec<_> = [(sets, names), (vec![Vec::new()], counters)]
        .into_iter()
        .filter_map(|(sets, names)| metrics.directive(sets, names))
        .collect();
    fields.extend(counted);
    let is_empty = directives.is_empty();
    (!is_empty).then_some(Description { timestamp: now_ms, cloud_watch_metrics: directives })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_with_metrics_describes_them_and_includes_the_counters() {
        // The test's own counter: other tests of this process call AWS.
        let calls = Counter::new("aws_calls");
        let by = |by_template| Metrics { namespace: "agents".into(), by_template };
        let line = |metrics: Option<Metrics>| {
            let mut fields: Vec<(&'static str, Value)> = vec![
                ("metric.agents_failed", 2.into()),
                ("code", "IDLE".into()),
                ("cloud", "linux".into()),
                ("error", "x".into()),
                // Of the span.
                ("template", "maven".into()),
            ];
            calls.increment();
            let description = embed(metrics.as_ref(), &[&calls], &mut fields, 4, 1_800_000_000_123);
            fields.extend(description.map(|description| ("_aws", json!(description))));
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>()
        };
        let plain = line(None);
        assert_eq!((&plain["agents_failed"], plain.get("_aws")), (&json!(2), None));
        let found = line(Some(by(true)));
        let metrics = json!([
            {"Namespace": "agents", "Dimensions": [[], ["cloud", "code"]], "Metrics": [{"Name": "agents_failed", "Unit": "Count"}]},
            {"Namespace": "agents", "Dimensions": [[]], "Metrics": [{"Name": "aws_calls", "Unit": "Count"}]},
        ]);
        assert_eq!(found["_aws"], json!({"Timestamp": 1_800_000_000_123_i64, "CloudWatchMetrics": metrics}));
        assert_eq!((&found["agents_failed"], &found["aws_calls"]), (&json!(2), &json!(2)));
        let found = line(Some(by(false)));
        let metrics = json!([
            {"Namespace": "agents", "Dimensions": [[], ["code"]], "Metrics": [{"Name": "agents_failed", "Unit": "Count"}]},
        ]);
        assert_eq!((&found["_aws"]["CloudWatchMetrics"], &found["aws_calls"]), (&metrics, &json!(1)));
        for fields in [vec![("code", Value::from("IDLE"))], vec![("metric.aws_calls", Value::from(7))]] {
            let mut line = fields;
            assert!(embed(Some(&by(false)), &[&calls], &mut line, 1, 0).is_none());
            assert_eq!(line.len(), 1, "{line:?}");
        }
    }
}
