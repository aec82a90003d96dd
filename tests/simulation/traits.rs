//! What AWS is like beside the plain world: each trait is one of its rules that an account may or may not meet. A world
//! has those that its seed draws.

use std::time::Duration;

use jiff::Timestamp;
use local::aws::Aws;
use local::aws::ecs::{Addressing, Quotas};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

/// A trait of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trait {
    /// The group counts in units, of which an instance has two.
    Weighted,
    /// A daemon service has a task on each instance.
    Daemons,
    /// Instances of another group, for another architecture, are in the cluster.
    Foreign,
    /// Ports are bound to IPv4 and IPv6, each to a port of its own, in either order.
    DualStack,
    /// ECS' request quotas hold.
    Quotas,
    /// A few instances never register.
    Broken,
    /// The group evens out its zones, and protects its instances from that.
    Zones,
    /// Network bindings show a few seconds after RUNNING.
    LateBindings,
    /// Agents have a health check, of which no event tells.
    Health,
    /// Lifecycle hooks hold instances on their way in and out.
    Hooks,
}

impl Trait {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Weighted,
        Self::Daemons,
        Self::Foreign,
        Self::DualStack,
        Self::Quotas,
        Self::Broken,
        Self::Zones,
        Self::LateBindings,
        Self::Health,
        Self::Hooks,
    ];

    /// Those with which every run of the functions ends as it has to. A trait moves here when they live with it; of the
    /// others, `DualStack` is known to fail: Jenkins gets the port of IPv6 with the address of IPv4.
    pub(crate) const LIVED_WITH: &[Self] = &[];

    /// The traits of a world: half of those that the functions live with, by the seed, or exactly those that
    /// `SIMULATION_TRAITS=Weighted,Daemons` names, or `all`.
    pub(crate) fn draw(seed: u64) -> Vec<Self> {
        let mut random = StdRng::seed_from_u64(seed ^ 0x7a17);
        match std::env::var("SIMULATION_TRAITS").as_deref() {
            Ok("all") => Self::ALL.to_vec(),
            Ok(names) => {
                let is_named = |it: &Self| names.split(',').any(|name| name == format!("{it:?}"));
                Self::ALL.into_iter().filter(is_named).collect()
            }
            Err(_) => Self::LIVED_WITH.iter().copied().filter(|_| random.random_bool(0.5)).collect(),
        }
    }

    /// Makes a world like this, before its first build.
    pub(crate) fn apply(self, aws: &mut Aws, seed: u64, now: Timestamp) {
        let seconds = Duration::from_secs;
        match self {
            Self::Weighted => {
                if let Some(group) = aws.ecs.group_mut("ci") {
                    (group.weight, group.maximum) = (Some(2), group.maximum * 2);
                }
            }
            Self::Daemons => {
                let definition = json!({"family": "daemon", "containerDefinitions": [
                    {"name": "logs", "image": "logs", "cpu": 64, "memory": 256}]});
                aws.ecs.register_definition(&definition).expect("a task definition");
                aws.ecs.create_daemon("ci", "logs", "daemon", now).expect("a daemon");
            }
            Self::Foreign => {
                aws.ecs.create_group("others", "ci", (0, 3), (4096, 8192), now);
                let group = aws.ecs.group_mut("others").expect("the group");
                group.attributes.insert("ecs.cpu-architecture".into(), "arm64".into());
                aws.ecs.fill_group("others", 2, now);
            }
            Self::DualStack => {
                let v6_first = seed.is_multiple_of(2);
                aws.ecs.settings().instance_addresses =
                    if v6_first { Addressing::DualV6First } else { Addressing::Dual };
            }
            Self::Quotas => aws.ecs.settings().quotas = Some(Quotas::default()),
            Self::Broken => {
                if let Some(group) = aws.ecs.group_mut("ci") {
                    group.broken = 2;
                }
            }
            Self::Zones => {
                aws.ecs.settings().rebalance = Some(seconds(60));
                if let Some(group) = aws.ecs.group_mut("ci") {
                    group.protects_new = true;
                }
            }
            Self::LateBindings => aws.ecs.settings().binding = seconds(3),
            Self::Health => aws.ecs.settings().health_events = false,
            Self::Hooks => {
                if let Some(group) = aws.ecs.group_mut("ci") {
                    (group.launch_hook, group.terminate_hook) = (Some(seconds(20)), Some(seconds(90)));
                }
            }
        }
    }
}
