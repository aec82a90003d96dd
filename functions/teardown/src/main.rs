//! teardown
fn main() {}
