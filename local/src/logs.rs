//! The functions' log lines, and the folder of a run's logs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};

/// The functions, each with a file `NAME.log` in the folder of a run's logs.
pub const FUNCTIONS: [&str; 3] = ["request", "task-state", "teardown"];

/// Messages below WARN that say why a request has no agent yet, or never gets one.
const NOTABLE: [&str; 5] = ["request waits", "request woken", "group raised", "request withdrawn", "request given up"];

/// Fields that are shown otherwise, or that are of no use to people.
const PLAIN: [&str; 6] = ["_aws", "timestamp", "level", "message", "aws.request_id", "message.id"];

/// Counts of the process since its last line with metrics; they do not belong to what the line reports.
const COUNTERS: [&str; 5] =
    ["aws_calls", "aws_throttles", "messages_rejected", "notices_undelivered", "requests_woken"];

/// One line of a function's log.
#[derive(Debug, Clone)]
pub struct Line {
    /// The function, such as `task-state`.
    pub function: String,
    text: String,
    /// Empty where the line is not JSON, such as those of Lambda itself.
    fields: Map<String, Value>,
}

impl Line {
    /// A line as the function has printed it.
    pub fn new(function: &str, text: &str) -> Self {
        let fields = serde_json::from_str(text).unwrap_or_default();
        Self { function: function.to_owned(), text: text.to_owned(), fields }
    }

    /// The text of a field; empty if there is none.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number in a field.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name).and_then(Value::as_u64)
    }

    /// Its message; empty where it is not JSON.
    pub fn message(&self) -> &str {
        self.field("message")
    }

    /// Whether it reports a fault.
    pub fn is_complaint(&self) -> bool {
        match self.field("level") {
            "" => self.text.contains("panicked"),
            level => matches!(level, "WARN" | "ERROR"),
        }
    }

    /// Whether it reports what becomes of a request.
    pub fn is_notable(&self) -> bool {
        self.is_complaint() || NOTABLE.iter().any(|beginning| self.message().starts_with(beginning))
    }

    /// The other fields that matter to people, each as `NAME VALUE`.
    pub(crate) fn details(&self, without: &[&str]) -> String {
        let hidden = |name: &str| PLAIN.iter().chain(&COUNTERS).chain(without).any(|hidden| *hidden == name);
        let shown = self.fields.iter().filter(|(name, _)| !hidden(name)).map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        });
        shown.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message().is_empty() {
            return write!(f, "{}: {}", self.function, self.text);
        }
        write!(f, "{} {}: {}", self.field("level"), self.function, self.message())?;
        let details = self.details(&[]);
        if details.is_empty() { Ok(()) } else { write!(f, "; {details}") }
    }
}

/// All lines of a run.
///
/// # Errors
/// When the folder is not one of a run's logs.
pub fn read(folder: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut found = false;
    for function in FUNCTIONS {
        let path = folder.join(format!("{function}.log"));
        if !path.exists() {
            continue;
        }
        found = true;
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        lines.extend(text.lines().map(|line| Line::new(function, line)));
    }
    ensure!(found, "{} has none of {}", folder.display(), FUNCTIONS.map(|name| format!("{name}.log")).join(", "));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_says_why_a_request_waits_is_notable() {
        let line = |text| Line::new("request", text);
        let waits = line(
            r#"{"timestamp": "x", "level": "INFO", "message": "request waits", "reason": "RESOURCE:CPU", "attempt": 1,
                "aws_calls": 7, "_aws": {}}"#,
        );
        assert!(waits.is_notable() && !waits.is_complaint());
        assert_eq!(waits.to_string(), "INFO request: request waits; attempt 1; reason RESOURCE:CPU");
        assert!(!line(r#"{"level": "INFO", "message": "task started"}"#).is_notable());
        assert!(line(r#"{"level": "ERROR", "message": "completion rejected"}"#).is_notable());
        assert!(line("thread 'main' panicked at").is_complaint());
    }
}
