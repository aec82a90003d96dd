//! The functions' log lines that matter to somebody who watches the demo.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Value, json};

use super::deploy::STACK;
use super::emulator::Aws;

/// Messages below WARN that say why a request has no agent yet, or never gets one.
const NOTABLE: [&str; 5] = ["request waits", "request woken", "group raised", "request withdrawn", "request given up"];
/// Fields that every line has, or that are of no use to people.
const PLAIN: [&str; 7] = ["_aws", "timestamp", "level", "message", "span", "target", "filename"];

/// Follows the logs of the three functions.
pub(super) struct Logs {
    aws: Aws,
    seen: HashMap<&'static str, usize>,
}

/// One line.
pub(super) struct Line {
    function: &'static str,
    text: String,
    event: Value,
}

impl Logs {
    /// From their beginning.
    pub(super) fn new(aws: &Aws) -> Self {
        Self { aws: aws.clone(), seen: HashMap::new() }
    }

    /// The lines since the last call; none if they cannot be read.
    pub(super) async fn new_lines(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        for function in ["request", "task-state", "teardown"] {
            let input = json!({"logGroupName": format!("/aws/lambda/{STACK}-{function}")});
            let Ok(answer) = self.aws.json("logs", "Logs_20140328.FilterLogEvents", &input).await else { continue };
            let events = answer["events"].as_array().map(Vec::as_slice).unwrap_or_default();
            let seen = self.seen.entry(function).or_default();
            for message in events.iter().skip(*seen).filter_map(|event| event["message"].as_str()) {
                let text = message.trim_end().to_owned();
                lines.push(Line { function, event: serde_json::from_str(&text).unwrap_or_default(), text });
            }
            *seen = events.len();
        }
        lines
    }
}

impl Line {
    /// Whether it reports a fault.
    pub(super) fn is_complaint(&self) -> bool {
        match self.event["level"].as_str() {
            Some(level) => matches!(level, "WARN" | "ERROR"),
            None => self.text.contains("panicked"),
        }
    }

    /// Whether it reports what becomes of a request.
    pub(super) fn is_notable(&self) -> bool {
        let message = self.event["message"].as_str().unwrap_or_default();
        self.is_complaint() || NOTABLE.iter().any(|beginning| message.starts_with(beginning))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(message) = self.event["message"].as_str() else {
            return write!(f, "{}: {}", self.function, self.text);
        };
        write!(f, "{} {}: {message}", self.event["level"].as_str().unwrap_or("INFO"), self.function)?;
        let fields = self.event.as_object().into_iter().flatten().filter(|(name, _)| !PLAIN.contains(&name.as_str()));
        for (name, value) in fields {
            match value {
                Value::String(text) => write!(f, "; {name} {text}")?,
                other => write!(f, "; {name} {other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line { function: "request", text: text.to_owned(), event: serde_json::from_str(text).unwrap_or_default() }
    }

    #[test]
    fn shows_a_line_about_a_waiting_request() {
        let waits = line(
            r#"{"timestamp": "x", "level": "INFO", "message": "request waits", "reason": "RESOURCE:CPU", "attempt": 1}"#,
        );
        assert!(waits.is_notable() && !waits.is_complaint());
        assert_eq!(waits.to_string(), "INFO request: request waits; attempt 1; reason RESOURCE:CPU");
        assert!(!line(r#"{"level": "INFO", "message": "task started"}"#).is_notable());
        assert!(line(r#"{"level": "ERROR", "message": "completion refused"}"#).is_notable());
        assert!(line("thread 'main' panicked at").is_complaint());
    }
}
