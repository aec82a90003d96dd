//! What every invocation of a function needs, built once at start-up.

use std::sync::Arc;

use jiff::Timestamp;

use crate::aws::Lazy;
use crate::aws::queues::Queues;
use crate::clock::Clock;
use crate::cloud::{Cloud, Clouds};
use crate::config::{Config, Settings};
use crate::jenkins::Jenkins;
use crate::memory::Memory;
use crate::name::AgentName;
use crate::notifier::Notifier;

/// Settings and clients.
pub struct App {
    pub settings: Settings,
    pub clouds: Clouds,
    pub queues: Queues,
    pub jenkins: Arc<Jenkins>,
    pub notifier: Notifier,
    pub sts: Lazy<aws_sdk_sts::Client>,
    pub clock: Clock,
    pub memory: Memory,
}

impl App {
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The value of the controller's tag on our tasks: `jenkins.url` as it is written.
    pub fn controller(&self) -> &str {
        self.config().jenkins.url.as_written()
    }

    /// Parses the name of one of our agents; `None` if it is not one.
    pub fn agent_name(&self, name: &str) -> Option<AgentName> {
        AgentName::parse(&self.settings.agent_name_prefix, name)
    }

    /// The template's part of an agent's name.
    pub fn template_name<'a>(&self, name: &'a AgentName) -> &'a str {
        name.template(&self.settings.agent_name_prefix)
    }

    /// The cloud of a task that has the name of an agent of ours, and that name.
    pub fn owner(&self, task: &crate::aws::ecs::Task) -> Option<(&Cloud, AgentName)> {
        let name = self.agent_name(task.started_by.as_deref()?)?;
        let cloud = self.clouds.of_task(&task.cluster_arn, &task.arn, self.template_name(&name))?;
        Some((cloud, name))
    }
}
