//! The built functions, from outside.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod alarms;
mod cases;
mod check;
mod config;
mod convert;
mod faults;
mod hostile;
mod iam;
mod jenkins;
mod logs;
mod metrics;
mod request;
mod room;
mod secrets;
mod simulator;
mod soak;
mod sweep;
mod task_state;
mod teardown;
mod template;
mod trace;
mod waiting;
mod whole_run;
