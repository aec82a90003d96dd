//! `teardown`: build complete → task stopped; and the sweep.

pub mod completion;
pub mod handler;
pub mod plan;
pub mod sweep;
