//! Copies the functions' logs from the emulator to files that outlive it, for `local/story`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::deploy::STACK;
use super::emulator::Aws;
use crate::logs::{self, FUNCTIONS, Line};

/// How far before the newest known line the next read begins, in ms: lines of invocations that end at the same time may be
/// written out of order.
const OVERLAP_MS: i64 = 10_000;

/// Follows the logs of the three functions.
pub(super) struct Logs {
    aws: Aws,
    folder: PathBuf,
    /// The emulator writes the lines of an invocation at once, into a stream of their own.
    streams: HashSet<String>,
    /// The time of the newest line, in ms, by function.
    newest: HashMap<&'static str, i64>,
}

impl Logs {
    /// From their beginning, into a folder.
    pub(super) fn new(aws: &Aws, folder: PathBuf) -> Self {
        Self { aws: aws.clone(), folder, streams: HashSet::new(), newest: HashMap::new() }
    }

    /// Copies the lines since the last call, and returns them; none if they cannot be read.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) async fn new_lines(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for function in FUNCTIONS {
            let since = self.newest.get(function).map(|newest| newest - OVERLAP_MS);
            let input = json!({"logGroupName": format!("/aws/lambda/{STACK}-{function}"), "startTime": since});
            let Ok(answer) = self.aws.json("logs", "Logs_20140328.FilterLogEvents", &input).await else { continue };
            let events = answer["events"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut file = String::new();
            let mut streams = HashSet::new();
            for event in events {
                let text = |name: &str| event[name].as_str().unwrap_or_default();
                if self.streams.contains(text("logStreamName")) {
                    continue;
                }
                streams.insert(text("logStreamName").to_owned());
                let line = text("message").trim_end();
                file.push_str(line);
                file.push('\n');
                lines.push(Line::new(function, line));
            }
            self.streams.extend(streams);
            if let Some(newest) = events.iter().filter_map(|event| event["timestamp"].as_i64()).max() {
                self.newest.insert(function, newest);
            }
            let path = self.folder.join(format!("{function}.log"));
            let opened = File::options().append(true).open(&path);
            opened.and_then(|mut log| log.write_all(file.as_bytes())).with_context(|| path.display().to_string())?;
        }
        Ok(lines)
    }

    /// All lines copied so far.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn copied(&self) -> Result<Vec<Line>> {
        logs::read(&self.folder)
    }
}
