//! Passes the simulator's events to the functions, through the emulator's own rules.
//!
//! `PutEvents` refuses sources that begin with `aws.`, in the emulator as on AWS: only AWS' own services may send
//! such events. So the rules are read, the emulator's `TestEventPattern` finds those that match, and their targets are
//! invoked asynchronously, as EventBridge does.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::emulator::Aws;

/// The rules for events, with their targets.
pub(super) struct Rules {
    aws: Aws,
    rules: Vec<Rule>,
}

struct Rule {
    pattern: String,
    functions: Vec<String>,
}

impl Rules {
    /// Reads the rules of the default bus.
    ///
    /// # Errors
    /// When the emulator does not answer.
    pub(super) async fn read(aws: Aws) -> Result<Self> {
        let answer = aws.json("events", "AWSEvents.ListRules", &json!({})).await?;
        let mut rules = Vec::new();
        for rule in answer["Rules"].as_array().into_iter().flatten() {
            let (Some(name), Some(pattern)) = (rule["Name"].as_str(), rule["EventPattern"].as_str()) else { continue };
            let targets = aws.json("events", "AWSEvents.ListTargetsByRule", &json!({"Rule": name})).await?;
            let functions = targets["Targets"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|target| Some(target["Arn"].as_str()?.rsplit(':').next()?.to_owned()))
                .collect();
            rules.push(Rule { pattern: pattern.to_owned(), functions });
        }
        Ok(Self { aws, rules })
    }

    /// The number of rules.
    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Passes on one event; returns how many functions received it.
    ///
    /// # Errors
    /// When the emulator does not answer.
    pub(super) async fn deliver(&self, event: &Value) -> Result<usize> {
        let mut delivered = 0;
        for rule in &self.rules {
            let input = json!({"EventPattern": rule.pattern, "Event": event.to_string()});
            let answer = self.aws.json("events", "AWSEvents.TestEventPattern", &input).await?;
            if answer["Result"].as_bool().context("the answer to TestEventPattern")? {
                for function in &rule.functions {
                    self.aws.invoke_async(function, event).await?;
                    delivered += 1;
                }
            }
        }
        Ok(delivered)
    }
}
