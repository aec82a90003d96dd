//! The local stack: AWS and Jenkins on one machine, for the demo, the tests and the benchmark.

#![allow(clippy::too_many_arguments, reason = "a simulated call takes what AWS takes, and the time")]

pub mod aws;
pub mod cloudformation;
pub mod demo;
pub mod http;
pub mod iam;
pub mod jenkins;
pub mod lambda;
pub mod logs;
pub mod story;
