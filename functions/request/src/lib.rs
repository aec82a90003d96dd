//! `request`: SQS message → ECS task (and Auto Scaling group).

pub mod check;
pub mod handler;
pub mod plan;
