//! What the three functions have in common: wire types, configuration, names, the AWS and Jenkins edges.

pub mod aws;
pub mod config;
pub mod http;
pub mod label;
pub mod message;
pub mod name;
