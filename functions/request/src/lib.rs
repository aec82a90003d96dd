//! `request`: SQS message → ECS task, and Auto Scaling group.

mod check;
mod failure;
pub mod handler;
mod inquiry;
pub mod launch;
mod placing;
pub mod plan;
mod room;
