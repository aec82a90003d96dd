//! Why we stop a task: written into its stopped reason, and read again from its last event. StopTask deletes a task's
//! tags (API_StopTask), so only this text says how an agent ended.

use std::fmt;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error;

use crate::message::FailureCode;

/// Why we stop a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub cause: Cause,
    /// Whether it was known at the time that no ready agent had been reported.
    pub before_ready: bool,
    /// Human-readable.
    pub text: String,
}

/// The cause for which a task is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Cause {
    /// Its build is over.
    Completed,
    /// Jenkins says that it is no longer wanted.
    Unwanted,
    /// It can never be reached or registered.
    Unusable,
    /// An older task has its name.
    Duplicate,
    /// ECS had no instance for it in time.
    CapacityTimeout,
    /// It was not ready in time.
    StartTimeout,
    /// It is older than its lifetime.
    LifetimeExceeded,
    /// It had no build for too long.
    Idle,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "COMPLETED",
            Self::Unwanted => "UNWANTED",
            Self::Unusable => "UNUSABLE",
            Self::Duplicate => "DUPLICATE",
            Self::CapacityTimeout => "CAPACITY_TIMEOUT",
            Self::StartTimeout => "START_TIMEOUT",
            Self::LifetimeExceeded => "LIFETIME_EXCEEDED",
            Self::Idle => "IDLE",
        }
    }

    /// The failure to report; `None` if agents normally end this way.
    pub fn failure(self) -> Option<FailureCode> {
        match self {
            Self::Completed | Self::Unwanted | Self::Duplicate => None,
            Self::Unusable => Some(FailureCode::StartFailed),
            Self::CapacityTimeout => Some(FailureCode::CapacityTimeout),
            Self::StartTimeout => Some(FailureCode::StartTimeout),
            Self::LifetimeExceeded => Some(FailureCode::LifetimeExceeded),
            Self::Idle => Some(FailureCode::Idle),
        }
    }
}

const BEFORE_READY: &str = " before ready";

impl Stop {
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        use Cause::{CapacityTimeout, StartTimeout, Unusable, Unwanted};
        let before_ready = matches!(cause, CapacityTimeout | StartTimeout | Unusable | Unwanted);
        Self { cause, before_ready, text: text.into() }
    }

    /// Parses a stopped reason; `None` if it is not one of ours.
    pub fn parse(reason: &str) -> Option<Self> {
        let (head, text) = reason.split_once(": ")?;
        let (code, before_ready) = match head.strip_suffix(BEFORE_READY) {
            Some(code) => (code, true),
            None => (head, false),
        };
        let code = IntoDeserializer::<Error>::into_deserializer(code);
        let cause = Cause::deserialize(code).ok()?;
        Some(Self { cause, before_ready, text: text.to_owned() })
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before_ready = if self.before_ready { BEFORE_READY } else { "" };
        write!(f, "{}{before_ready}: {}", self.cause.as_str(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_reason_survives_a_round_trip() {
        let causes = [
            Cause::Completed,
            Cause::Unwanted,
            Cause::Unusable,
            Cause::Duplicate,
            Cause::CapacityTimeout,
            Cause::StartTimeout,
            Cause::LifetimeExceeded,
            Cause::Idle,
        ];
        for cause in causes {
            for before_ready in [false, true] {
                let stop = Stop { cause, before_ready, text: "build a: b #1".into() };
                assert_eq!(Stop::parse(&stop.to_string()), Some(stop));
            }
        }
        for foreign in ["", "Essential container in task exited", "Task failed: x", "IDLE"] {
            assert_eq!(Stop::parse(foreign), None, "{foreign}");
        }
    }
}
