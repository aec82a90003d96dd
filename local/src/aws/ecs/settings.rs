//! The speed of the simulated world, its resources, and the behaviour of its containers.

use std::time::Duration;

use super::Quotas;

/// Delays and limits of the world.
#[derive(Debug, Clone)]
pub struct Settings {
    /// From a raised desired capacity to a running instance.
    pub boot: Duration,
    /// From a running instance to a registered one.
    pub register: Duration,
    /// From the termination of an instance until it is gone.
    pub terminate: Duration,
    /// Preparation of a network interface, and of Fargate's own machine.
    pub provision: Duration,
    /// The duration of image pulls.
    pub pull: Duration,
    /// From the image to the running container.
    pub start: Duration,
    /// From running to healthy, where there is a health check.
    pub healthy: Duration,
    /// From StopTask to DEACTIVATING and STOPPING.
    pub stopping: Duration,
    /// From STOPPING until the containers have ended.
    pub stop: Duration,
    /// From ended containers until the network interface is gone.
    pub deprovision: Duration,
    /// How long a stopped task is shown: at least one hour (API_DescribeTasks).
    pub remember_stopped: Duration,
    /// From the first task without an instance until managed scaling raises the group of a capacity provider.
    pub managed_scaling: Duration,
    /// How long before a group retries a failed launch.
    pub launch_retry: Duration,
    /// From the warning until a Spot instance is gone.
    pub spot_notice: Duration,
    /// From a lowered capacity until a group rebalances its zones; `None` if it never does.
    pub rebalance: Option<Duration>,
    /// ECS' rate limits; none for no throttling.
    pub quotas: Option<Quotas>,
    /// The rate limit for launched tasks, per second and in a burst; none for no throttling.
    pub run_task_rate: Option<(u32, u32)>,
    /// Whether TagResource accepts a stopped task. ECS refuses it explicitly; the API reference does not say.
    pub tags_on_stopped_tasks: bool,
    /// Whether an event reports a container's health check, with its result. AWS sends none, and its events carry no
    /// health ("Amazon ECS task state change events"): only DescribeTasks does.
    pub health_events: bool,
    /// The addresses of EC2 instances.
    pub instance_addresses: Addressing,
    /// The addresses of tasks' own network interfaces.
    pub interface_addresses: Addressing,
    /// From RUNNING until the network bindings are shown.
    pub binding: Duration,
    /// Whether network bindings that are not shown yet are `null` rather than an empty list.
    pub bindings_are_null: bool,
    /// Whether Fargate has capacity.
    pub fargate_has_capacity: bool,
    /// Whether Fargate Spot has capacity.
    pub spot_has_capacity: bool,
    /// Whether missing Fargate capacity is a `ClientException` rather than an entry of `failures`: the API reference
    /// does not say which, so nobody may rely on either.
    pub lack_of_fargate_is_an_error: bool,
    /// Whether an answer of failures alone is replayed for the same client token. Not documented, so nobody may rely on
    /// either; replaying is the harsher of the two.
    pub replays_failures: bool,
    /// The first two numbers of the addresses of EC2 instances.
    pub instance_network: [u8; 2],
    /// The first two numbers of the addresses of tasks' own network interfaces.
    pub interface_network: [u8; 2],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            register: Duration::from_secs(20),
            terminate: Duration::from_secs(20),
            provision: Duration::from_secs(8),
            pull: Duration::from_secs(4),
            start: Duration::from_secs(1),
            healthy: Duration::from_secs(5),
            stopping: Duration::from_millis(200),
            stop: Duration::from_secs(2),
            deprovision: Duration::from_secs(1),
            remember_stopped: Duration::from_secs(3600),
            managed_scaling: Duration::from_secs(60),
            launch_retry: Duration::from_secs(60),
            spot_notice: Duration::from_secs(120),
            rebalance: Some(Duration::from_secs(60)),
            quotas: Some(Quotas::default()),
            run_task_rate: Some((20, 20)),
            tags_on_stopped_tasks: false,
            health_events: false,
            instance_addresses: Addressing::V4,
            interface_addresses: Addressing::V4,
            binding: Duration::ZERO,
            bindings_are_null: false,
            fargate_has_capacity: true,
            spot_has_capacity: true,
            lack_of_fargate_is_an_error: false,
            replays_failures: true,
            instance_network: [10, 0],
            interface_network: [10, 1],
        }
    }
}

/// The kinds of addresses ("Amazon ECS networking": IPv4, dual stack, IPv6-only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// Only IPv4.
    #[default]
    V4,
    /// Both. Docker then binds a port on both, a dynamic one to a separate port for each (moby 42288); IPv4 comes
    /// first.
    Dual,
    /// Both, with the bindings of IPv6 first: their order is not documented.
    DualV6First,
    /// Only IPv6.
    V6,
}

impl Addressing {
    pub(super) fn has_v4(self) -> bool {
        self != Self::V6
    }

    pub(super) fn has_v6(self) -> bool {
        self != Self::V4
    }

    /// The addresses that Docker binds a port to, in the order in which ECS shows them.
    pub(super) fn binds(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &["0.0.0.0"],
            Self::Dual => &["0.0.0.0", "::"],
            Self::DualV6First => &["::", "0.0.0.0"],
            Self::V6 => &["::"],
        }
    }
}

impl Settings {
    /// Removes all delays. Events still come one after the other.
    pub fn without_delays(&mut self) {
        for delay in [
            &mut self.boot,
            &mut self.register,
            &mut self.terminate,
            &mut self.provision,
            &mut self.pull,
            &mut self.start,
            &mut self.healthy,
            &mut self.stopping,
            &mut self.stop,
            &mut self.deprovision,
            &mut self.managed_scaling,
            &mut self.spot_notice,
        ] {
            *delay = Duration::ZERO;
        }
    }
}

/// The behaviour of the tasks of a family.
#[derive(Debug, Clone, Default)]
pub enum Behaviour {
    /// They run until they are stopped, and become healthy if they have a health check.
    #[default]
    Runs,
    /// Their image cannot be pulled.
    ImageMissing,
    /// They fail to start for this reason, such as `ResourceInitializationError: …`.
    FailsToStart {
        /// In ECS' words.
        reason: String,
    },
    /// They never leave PENDING.
    NeverRuns,
    /// They run and become unhealthy.
    Unhealthy,
    /// They run, and their health check never has a result.
    HealthUnknown,
    /// They end by themselves.
    Exits {
        /// After this time.
        after: Duration,
        /// With this exit code.
        code: i32,
    },
}
