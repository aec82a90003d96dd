//! The configuration (the crate `config`), and the environment that says where it is stored.

pub mod environment;
pub mod settings;

pub use config::*;
pub use settings::{QueueUrls, Settings};
