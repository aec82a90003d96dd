//! The parts that the three functions share: wire types, configuration, names, the AWS and Jenkins edges.

#![warn(clippy::too_many_lines)]

pub mod agents;
pub mod app;
pub mod arn;
pub mod aws;
pub mod batch;
pub mod capacity;
pub mod clock;
pub mod cloud;
pub mod config;
pub mod fault;
pub mod http;
pub mod jenkins;
pub mod log;
pub mod memory;
pub mod message;
pub mod metrics;
pub mod name;
pub mod notifier;
pub mod observe;
pub mod outcome;
pub mod report;
pub mod secret;
pub mod segment;
pub mod span;
pub mod start;
pub mod stop;
pub mod trace;
pub mod wait;

pub use ::config::{label, origin};
