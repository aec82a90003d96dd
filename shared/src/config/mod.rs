//! The configuration: what is written (`types`), how it is found and read (`load`), what it has to hold (`check`).

pub mod duration;
pub mod types;

pub use types::*;
