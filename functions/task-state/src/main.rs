//! task-state
fn main() {}
