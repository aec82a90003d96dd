//! Decides who may start where `maxAgents` limits how many agents exist.

use std::collections::{BTreeSet, HashMap, HashSet};

use shared::name::AgentName;

use super::Order;

/// Which agents of a request may start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split {
    pub placeable: Vec<u32>,
    /// Those that have to wait until others end.
    pub over_limit: Vec<u32>,
}

impl Split {
    /// No limit applies.
    pub fn all(order: &Order<'_>) -> Self {
        Self { placeable: order.agents.clone(), over_limit: Vec::new() }
    }
}

/// The indexes in the configuration of the clouds whose agents have to be counted.
pub fn limited_clouds<'a, 'o: 'a>(orders: impl Iterator<Item = &'a Order<'o>>) -> BTreeSet<usize> {
    orders.filter(|order| order.is_limited()).map(|order| order.cloud_index).collect()
}

/// Which agents of a request may start under the limits. An agent that already exists may: its message is an inquiry.
pub fn within(order: &Order<'_>, prefix: &str, existing: &mut Existing) -> Split {
    let mut split = Split::default();
    for &index in &order.agents {
        let name = order.name(prefix, index);
        let of_template = existing.of(&order.template.name);
        let is_full = |limit: Option<u32>, count: u32| limit.is_some_and(|limit| count >= limit);
        if existing.names.contains(name.as_str()) {
            split.placeable.push(index);
        } else if is_full(order.cloud.max_agents, existing.all) || is_full(order.template.max_agents, of_template) {
            split.over_limit.push(index);
        } else {
            existing.add(&name, &order.template.name);
            split.placeable.push(index);
        }
    }
    split
}

/// The existing agents of a cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Existing {
    /// Their names.
    pub names: HashSet<String>,
    /// Their number.
    pub all: u32,
    /// Their number for each template.
    pub by_template: HashMap<String, u32>,
}

impl Existing {
    /// The number of a template's agents.
    pub fn of(&self, template: &str) -> u32 {
        self.by_template.get(template).copied().unwrap_or_default()
    }

    /// Counts one more.
    pub fn add(&mut self, name: &AgentName, template: &str) {
        if self.names.insert(name.to_string()) {
            self.all += 1;
            *self.by_template.entry(template.to_owned()).or_default() += 1;
        }
    }
}
