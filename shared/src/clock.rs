//! The time, as everything that takes time into account reads it.

use std::sync::Arc;

use jiff::Timestamp;

/// The current time; the tests' clocks run faster.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The system's clock, in milliseconds: the precision that Jenkins and people read.
    pub fn system() -> Self {
        Self::new(|| {
            let now = Timestamp::now();
            now.round(jiff::Unit::Millisecond).unwrap_or(now)
        })
    }

    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}
