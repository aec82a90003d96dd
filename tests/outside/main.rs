//! Outside-in tests.
fn main() {}
