//! task-state
