//! A node to create.

use std::collections::BTreeMap;

use crate::config;

/// The node to create.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Human-readable.
    pub description: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its working directory.
    pub workspace: String,
    /// Number of executors.
    pub executors: u32,
    /// Environment variables of its builds.
    pub environment: BTreeMap<String, String>,
    /// How Jenkins and the agent connect.
    pub launcher: Launcher,
}

/// How Jenkins and an agent connect.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on its way into one call")]
pub enum Launcher {
    /// Jenkins logs in over SSH.
    Ssh {
        /// The host.
        host: String,
        /// SSH port.
        port: u16,
        /// The launcher's settings.
        settings: config::Ssh,
    },
    /// The agent connects to Jenkins.
    Inbound,
}
