//! The one error of everything that leaves the process: what was asked, what came back, and whether asking again can help.
//!
//! Nothing else decides what an answer of AWS or Jenkins means. Who meets a fault asks [`Fault::is_final`] and goes by
//! that.

mod aws;
mod placement;

use std::fmt;

use tracing::Level;

pub use placement::{Placement, classify_placement};

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// What the fault means for whoever called.
    pub kind: Kind,
    /// What was asked, as its API or program names it: `ecs:RunTask`, `Jenkins`. Empty for a fault of our own.
    pub action: &'static str,
    /// The code of the answer; none where no answer came.
    pub code: Option<String>,
    /// In the words of whoever answered, or of the HTTP client; never a secret.
    pub message: String,
}

/// What a fault means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ECS has no room for a task now; it may have later.
    NoRoom,
    /// What was asked for is on its way, as it should be.
    NotYet,
    /// Fewer calls have to be made.
    Throttled,
    /// The next try may succeed: a network fault, an outage, and every answer that nobody knows.
    Passing,
    /// Jenkins does not accept our credentials, or something else answers in its place. Tried again as in an outage, since
    /// whoever changes the setting wants nothing to be lost meanwhile.
    Setting,
    /// A role does not allow the call. The same call fails until the role is changed.
    Denied,
    /// What was named does not exist (any more).
    Missing,
    /// The same call always fails.
    Permanent,
}

impl Fault {
    /// A fault of our own making that the next try may not meet.
    pub fn passing(message: impl Into<String>) -> Self {
        Self::own(Kind::Passing, message)
    }

    /// Nothing wrong, but nothing to go on with either.
    pub fn not_yet(message: impl Into<String>) -> Self {
        Self::own(Kind::NotYet, message)
    }

    /// A fault of our own making that every try meets.
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

    /// Whether the same call will fail again, so that nothing is tried again.
    pub fn is_final(&self) -> bool {
        match self.kind {
            Kind::NoRoom | Kind::NotYet | Kind::Throttled | Kind::Passing | Kind::Setting => false,
            Kind::Denied | Kind::Missing | Kind::Permanent => true,
        }
    }

    /// The level at which whoever deals with it logs it: an error where somebody has to change something, a warning where
    /// something is in trouble that is not ours, and neither where trying again is all that it takes.
    pub fn level(&self) -> Level {
        match self.kind {
            Kind::NoRoom | Kind::NotYet | Kind::Throttled => Level::INFO,
            Kind::Passing => Level::WARN,
            Kind::Setting | Kind::Denied | Kind::Missing | Kind::Permanent => Level::ERROR,
        }
    }

    /// The same fault with what it was for before its message.
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
