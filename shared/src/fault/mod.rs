//! The one error of everything that leaves the process: what was called, what came back, and whether trying again can
//! help.
//!
//! Nothing else classifies an answer of AWS or Jenkins. Callers ask [`Fault::is_final`] and act on that.

mod aws;
mod placement;

use std::fmt;

use tracing::Level;

pub use placement::{Placement, classify_placement};

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The fault's classification.
    pub kind: Kind,
    /// The action, as its API or program names it: `ecs:RunTask`, `Jenkins`. Empty for our own faults.
    pub action: &'static str,
    /// The code of the answer; `None` if no answer came.
    pub code: Option<String>,
    /// In the words of the service or of the HTTP client; never a secret.
    pub message: String,
}

/// Classifies a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ECS has no room for a task now; it may have later.
    NoRoom,
    /// The result is on its way, as expected.
    NotYet,
    /// Too many calls were made.
    Throttled,
    /// The next try may succeed: a network fault, an outage, and every unknown answer.
    Passing,
    /// Jenkins does not accept our credentials, or something else answers in its place. Retried as in an outage, since
    /// nothing may be lost until somebody changes the setting.
    Setting,
    /// A role does not allow the call. The same call fails until the role is changed.
    Denied,
    /// The named resource does not exist (any more).
    Missing,
    /// The same call always fails.
    Permanent,
}

impl Fault {
    /// A fault of our own that the next try may not meet.
    pub fn passing(message: impl Into<String>) -> Self {
        Self::own(Kind::Passing, message)
    }

    /// Not an error: the result is not there yet.
    pub fn not_yet(message: impl Into<String>) -> Self {
        Self::own(Kind::NotYet, message)
    }

    /// A fault of our own that every try would meet.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::own(Kind::Permanent, message)
    }

    fn own(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, action: "", code: None, message: message.into() }
    }

    /// A fault of the controller.
    pub fn jenkins(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, action: "Jenkins", code: None, message: message.into() }
    }

    /// Whether the same call would fail again, so that it is not retried.
    pub fn is_final(&self) -> bool {
        match self.kind {
            Kind::NoRoom | Kind::NotYet | Kind::Throttled | Kind::Passing | Kind::Setting => false,
            Kind::Denied | Kind::Missing | Kind::Permanent => true,
        }
    }

    /// The level at which it is logged where it is handled: error where somebody has to change something, warning for
    /// trouble that is not ours, and neither where a retry is enough.
    pub fn level(&self) -> Level {
        match self.kind {
            Kind::NoRoom | Kind::NotYet | Kind::Throttled => Level::INFO,
            Kind::Passing => Level::WARN,
            Kind::Setting | Kind::Denied | Kind::Missing | Kind::Permanent => Level::ERROR,
        }
    }

    /// The same fault, with its purpose before the message.
    pub fn of(mut self, subject: impl fmt::Display) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.action.is_empty() {
            write!(f, "{}: ", self.action)?;
        }
        if let Some(code) = &self.code {
            write!(f, "{code}: ")?;
        }
        f.write_str(&self.message)
    }
}
