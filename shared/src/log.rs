//! Logs for Lambda's advanced logging controls: one line for each event, with the fields of the spans around it.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;

use jiff::Timestamp;
use serde::Serializer as _;
use serde::ser::SerializeMap as _;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::metrics::{self, Description, Metrics};

/// Where lines go, and the clock that they show.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub now: fn() -> Timestamp,
    pub write: fn(&str),
}

/// Starts logging to the standard output.
pub fn init(environment: &dyn Fn(&str) -> Option<String>) {
    // If the standard output is broken, there is nowhere to report it.
    let write = |line: &str| drop(std::io::stdout().lock().write_all(line.as_bytes()));
    // A second call, as in tests, changes nothing.
    let _ = subscriber(environment, Output { now: Timestamp::now, write }).try_init();
}

/// Writes the log as the environment has it.
///
/// Only our own events are logged. The SDK's errors come back as faults, and its DEBUG shows whole requests, including
/// secrets; [`crate::start`] logs an invocation that failed with its id, so the runtime's own log is not needed.
pub fn subscriber(
    environment: &dyn Fn(&str) -> Option<String>,
    output: Output,
) -> impl Subscriber + Send + Sync + use<> {
    let level = match environment("AWS_LAMBDA_LOG_LEVEL").unwrap_or_default().to_ascii_uppercase().as_str() {
        "TRACE" => LevelFilter::TRACE,
        "DEBUG" => LevelFilter::DEBUG,
        "WARN" => LevelFilter::WARN,
        "ERROR" | "FATAL" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    };
    let ours = ["shared", "request", "task_state", "teardown"].map(|name| (name, level));
    let filter = Targets::new().with_targets(ours);
    let format = match environment("AWS_LAMBDA_LOG_FORMAT").unwrap_or_default().to_ascii_uppercase().as_str() {
        "TEXT" => Format::Text,
        _ => Format::Json,
    };
    let metrics = environment("METRICS_NAMESPACE").filter(|_| format == Format::Json).map(|namespace| {
        metrics::enable();
        Metrics { namespace, by_template: environment("METRICS_BY_TEMPLATE").as_deref() == Some("true") }
    });
    tracing_subscriber::registry().with(filter).with(Lines { format, metrics, output })
}

/// Logs at a level that is only known at run time.
#[macro_export]
macro_rules! log_at {
    ($level:expr, $($rest:tt)+) => {
        match $level {
            tracing::Level::ERROR => tracing::error!($($rest)+),
            tracing::Level::WARN => tracing::warn!($($rest)+),
            _ => tracing::info!($($rest)+),
        }
    };
}

/// Logs a fault, once, where it is handled: at the fault's own level, with its consequence.
#[macro_export]
macro_rules! log_fault {
    ($fault:expr, $($rest:tt)+) => {{
        let fault: &$crate::fault::Fault = $fault;
        $crate::log_at!(fault.level(), error = %fault, $($rest)+)
    }};
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    /// Human-readable: the platform adds the time.
    Text,
}

/// Writes each event, flat: its own fields, then those of its spans, innermost first.
struct Lines {
    format: Format,
    /// `None` if lines carry no metrics.
    metrics: Option<Metrics>,
    output: Output,
}

/// Fields in the order in which they became known, each name once.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let own = fields.0.len();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(known) = span.extensions().get::<Fields>() {
                for (name, value) in &known.0 {
                    if fields.0.iter().all(|(known, _)| known != name) {
                        fields.0.push((name, value.clone()));
                    }
                }
            }
        }
        let now = (self.output.now)();
        let described =
            metrics::embed(self.metrics.as_ref(), &metrics::COUNTERS, &mut fields.0, own, now.as_millisecond());
        let line = self.format.line(now, event.metadata().level().as_str(), fields, described);
        (self.output.write)(&line);
    }
}

impl Format {
    fn line(self, now: Timestamp, level: &'static str, mut fields: Fields, metrics: Option<Description<'_>>) -> String {
        let message = fields.take("message").unwrap_or_default();
        let mut line = match self {
            Self::Json => {
                // Lambda takes a line without a time for INFO.
                let time = format!("{now:.6}");
                let head = [("timestamp", time.into()), ("level", level.into()), ("message", message)];
                // Strings and numbers in memory: serialising them cannot fail.
                json(head.into_iter().chain(fields.0), metrics).unwrap_or_default()
            }
            Self::Text => {
                let mut line = format!("{level} {}", message.as_str().unwrap_or_default());
                for (name, value) in fields.0 {
                    let _ = match &value {
                        Value::String(text) if !text.contains([' ', '"', '\n']) => write!(line, " {name}={text}"),
                        other => write!(line, " {name}={other}"),
                    };
                }
                line
            }
        };
        line.push('\n');
        line
    }
}

fn json(
    fields: impl Iterator<Item = (&'static str, Value)>,
    metrics: Option<Description<'_>>,
) -> serde_json::Result<String> {
    let mut line = Vec::with_capacity(1024);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    for (name, value) in fields {
        map.serialize_entry(name, &value)?;
    }
    if let Some(metrics) = metrics {
        map.serialize_entry("_aws", &metrics)?;
    }
    map.end()?;
    Ok(String::from_utf8(line).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let mut fields = Fields::default();
        for (name, value) in [
            ("error", Value::from("a \"b\"\nc")),
            ("message", "task started".into()),
            ("build.number", 41.into()),
            ("request.id", "app-1".into()),
            ("build.number", 42.into()),
        ] {
            fields.set(name, value);
        }
        fields
    }

    #[test]
    fn a_line_of_json_is_flat_and_has_each_name_once() {
        let line = Format::Json.line(Timestamp::now(), "INFO", fields(), None);
        let (head, rest) = line.split_once(r#","level""#).expect("a level");
        let time = head.strip_prefix(r#"{"timestamp":""#).and_then(|time| time.strip_suffix('"'));
        assert!(time.is_some_and(|time| time.ends_with('Z') && time.parse::<Timestamp>().is_ok()), "{head}");
        let expected =
            r#":"INFO","message":"task started","error":"a \"b\"\nc","build.number":42,"request.id":"app-1"}"#;
        assert_eq!(rest.trim_end(), expected);
    }

    #[test]
    fn a_line_of_text_begins_with_its_level() {
        let expected = "INFO task started error=\"a \\\"b\\\"\\nc\" build.number=42 request.id=app-1\n";
        assert_eq!(Format::Text.line(Timestamp::now(), "INFO", fields(), None), expected);
    }
}
