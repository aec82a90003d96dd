//! `task-state`: ECS event → notice to Jenkins.

pub mod handler;
pub mod plan;
