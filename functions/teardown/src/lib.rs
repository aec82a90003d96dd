//! `teardown`: build complete → task stopped; and the sweep.

#![warn(clippy::too_many_lines)]

pub mod completion;
pub mod handler;
pub mod plan;
pub mod sweep;
