//! The three real handlers in a simulated world: ECS, Auto Scaling, SQS and Jenkins, with faults of every kind.
//!
//! Everything runs on one thread in tokio's paused time, over an in-memory HTTP connector: a day takes minutes, and the
//! seed of a run repeats it (`SIMULATION_SEED`); `SIMULATION_LOG=1` prints the functions' logs.

mod dashboard;
mod day;
mod drawing;
mod faults;
mod traits;
mod world;
