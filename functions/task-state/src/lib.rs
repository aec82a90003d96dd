//! `task-state`: ECS event → notice to Jenkins.

#![warn(clippy::too_many_lines)]

pub mod handler;
pub mod plan;
