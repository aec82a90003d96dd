//! Outside-in tests.
