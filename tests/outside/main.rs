//! The built functions, from outside.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod request;
mod simulator;
mod task_state;
mod teardown;
mod waiting;
