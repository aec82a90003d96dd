//! request
fn main() {}
