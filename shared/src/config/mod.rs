//! The configuration: what is written (`types`), how it is read (`yaml`, `load`), what it has to hold (`check`), and the
//! environment that says where it is (`settings`).

pub mod check;
pub mod duration;
pub mod load;
pub mod settings;
pub mod types;
mod yaml;

pub use duration::Limit;
pub use settings::{Queues, Settings};
pub use types::*;
