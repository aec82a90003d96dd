//! Variations of AWS: each trait is one of its rules that an account may or may not meet. The seed draws the traits of
//! a world.

use std::time::Duration;

use jiff::Timestamp;
use local::aws::Aws;
use local::aws::ecs::{Addressing, Group, Kind};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

/// A trait of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trait {
    /// The group counts in units, of which an instance has two.
    Weighted,
    /// The group has two instance types, one twice as large as the other.
    Mixed,
    /// A daemon service has a task on each instance.
    Daemons,
    /// Instances of another group, for another architecture, are in the cluster.
    Foreign,
    /// Ports are bound to IPv4 and IPv6, each to a port of its own, in either order; or to IPv6 alone.
    DualStack,
    /// Each agent needs a host port that an instance has only once.
    HostPort,
    /// A few instances never register.
    Broken,
    /// The group rebalances its zones, from which its instances are protected.
    Zones,
    /// Network bindings are shown a few seconds after RUNNING.
    LateBindings,
    /// Agents have a health check, which no event reports.
    Health,
    /// Lifecycle hooks hold instances that are launched and terminated.
    Hooks,
    /// The group has a warm pool.
    WarmPool,
    /// Instances are put in standby, and back into service.
    Standby,
    /// Container agents lose their connection now and then.
    Disconnects,
    /// EC2 takes instances back.
    Spot,
    /// At first, neither EC2 nor Fargate has capacity.
    Scarce,
    /// Undocumented behaviour of AWS varies, as the seed draws it.
    Undocumented,
}

impl Trait {
    /// All traits.
    pub(crate) const ALL: [Self; 17] = [
        Self::Weighted,
        Self::Mixed,
        Self::Daemons,
        Self::Foreign,
        Self::DualStack,
        Self::HostPort,
        Self::Broken,
        Self::Zones,
        Self::LateBindings,
        Self::Health,
        Self::Hooks,
        Self::WarmPool,
        Self::Standby,
        Self::Disconnects,
        Self::Spot,
        Self::Scarce,
        Self::Undocumented,
    ];

    /// The traits of a world: half of them, drawn by the seed, or exactly those in `SIMULATION_TRAITS=Weighted,Daemons`, or
    /// `all`.
    pub(crate) fn draw(seed: u64) -> Vec<Self> {
        let mut random = StdRng::seed_from_u64(seed ^ 0x7a17);
        match std::env::var("SIMULATION_TRAITS").as_deref() {
            Ok("all") => Self::ALL.to_vec(),
            Ok(names) => {
                let is_named = |it: &Self| names.split(',').any(|name| name == format!("{it:?}"));
                Self::ALL.into_iter().filter(is_named).collect()
            }
            Err(_) => Self::ALL.into_iter().filter(|_| random.random_bool(0.5)).collect(),
        }
    }

    /// Applies the trait to a world, before its first build. The world itself applies task definitions and events of
    /// instances.
    pub(crate) fn apply(self, aws: &mut Aws, seed: u64, now: Timestamp) {
        self.change_group(aws.ecs.group_mut("ci").expect("the group"));
        match self {
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
                let kinds = [Addressing::DualV6First, Addressing::Dual, Addressing::V6];
                aws.ecs.settings().instance_addresses = kinds[(seed % 3) as usize];
                aws.ecs.settings().interface_addresses = kinds[(seed / 3 % 3) as usize];
            }
            Self::LateBindings => aws.ecs.settings().binding = Duration::from_secs(3),
            Self::WarmPool => aws.ecs.fill_warm_pool("ci", 3, "Warmed:Stopped", now),
            Self::Scarce => aws.ecs.settings().fargate_has_capacity = false,
            Self::Undocumented => {
                let settings = aws.ecs.settings();
                settings.bindings_are_null = seed & 1 == 0;
                settings.tags_on_stopped_tasks = seed & 2 == 0;
                settings.replays_failures = seed & 4 != 0;
                settings.lack_of_fargate_is_an_error = seed & 8 == 0;
            }
            _ => {}
        }
    }

    fn change_group(self, group: &mut Group) {
        let seconds = Duration::from_secs;
        match self {
            Self::Weighted => (group.weight, group.maximum) = (Some(2), group.maximum * 2),
            Self::Mixed => {
                let kind = |name: &str, times: u32| Kind {
                    name: name.into(),
                    weight: group.weight.map(|weight| weight * times),
                    size: (group.size.0 * times, group.size.1 * times),
                };
                group.kinds = vec![kind("m6i.large", 1), kind("m6i.xlarge", 2)];
            }
            Self::Broken => group.broken = 2,
            Self::Zones => {
                group.suspended.clear();
                group.protects_new = true;
            }
            Self::Scarce => group.lacks_capacity(),
            Self::Hooks => (group.launch_hook, group.terminate_hook) = (Some(seconds(20)), Some(seconds(90))),
            _ => {}
        }
    }
}
