//! `request`: SQS message → ECS task, and Auto Scaling group.

#![warn(clippy::too_many_lines)]

mod agent;
mod check;
mod failure;
pub mod handler;
mod inquiry;
pub mod launch;
mod placing;
pub mod plan;
mod room;
