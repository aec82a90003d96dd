//! The environment of the process, or of a test.

use std::sync::Arc;

/// Reads environment variables; only `settings` does so for the process.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;
