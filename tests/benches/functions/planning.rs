//! Measures capacity planning for the waiting requests.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shared::aws::autoscaling::{Group, GroupInstance, Lifecycle};
use shared::aws::ecs::{Instance, InstanceStatus};
use shared::capacity::{Exclusive, Need, Observed};
use shared::config::Size;

/// Sizes of tasks: CPU units and MiB.
const SIZES: [(u32, u32); 4] = [(256, 512), (512, 1024), (1024, 2048), (2048, 4096)];
/// Planning ten times as much at once may take this many times as long as planning ten times: n log n takes 1.3 times, n
/// squared ten times.
const GROWTH: f64 = 7.0;

/// Plans 1,000 requests over 500 instances, and ten times both. Only the growth has a limit: the time of one plan depends
/// on the machine, and on what else it does.
pub(crate) fn measure() -> Result<()> {
    for (what, size) in [("of four sizes", of_four as fn(usize) -> Size), ("of different sizes", different)] {
        let (ten_times, tenfold) = (plan(1, 10, size), plan(10, 1, size));
        let growth = tenfold.as_secs_f64() / ten_times.as_secs_f64();
        println!(
            "planning 1,000 requests {what} over 500 instances: {:.2?}; ten times as many: {:.1} times as long",
            ten_times / 10,
            10.0 * growth
        );
        ensure!(growth < GROWTH, "planning does not scale: more than {GROWTH} times as long for a request");
    }
    Ok(())
}

/// How long some plans take: the shortest of several tries, which was disturbed the least.
fn plan(factor: usize, plans: usize, size: fn(usize) -> Size) -> Duration {
    let demand: Vec<Need> = (0..1000 * factor).map(|index| need(index, size(index))).collect();
    let observed = observed(500 * factor);
    let attempt = |_| {
        let began = Instant::now();
        for _ in 0..plans {
            assert!(std::hint::black_box(&observed).plan(&demand).raise_to.is_some(), "there is not room for all");
        }
        began.elapsed()
    };
    (0..10).map(attempt).min().unwrap_or_default()
}

/// Every fourth needs a GPU, every fifth a host port, of which there are three.
fn need(index: usize, size: Size) -> Need {
    let port = index.is_multiple_of(5).then(|| Exclusive::HostPort(8080 + (index % 3) as u16));
    Need { size, gpus: u32::from(index.is_multiple_of(4)), exclusive: port.into_iter().collect() }
}

fn of_four(index: usize) -> Size {
    let (cpu, memory) = SIZES[index / 2 % SIZES.len()];
    Size { cpu, memory }
}

fn different(index: usize) -> Size {
    Size { cpu: 256 + (37 * index % 1792) as u32, memory: 512 + (index % 3581) as u32 }
}

/// A group of half-full instances, a fifth of it still booting.
fn observed(instances: usize) -> Observed {
    let instance = |index: usize| Instance {
        arn: format!("arn-{index}"),
        ec2_id: Some(format!("i-{index:017}")),
        status: InstanceStatus::Active,
        connected: true,
        total: Size { cpu: 4096, memory: 7680 },
        free: Size { cpu: of_four(2 * index).cpu, memory: of_four(index / 2).memory },
        gpus: 1,
        // Every instance has ports of its own in use, those of sshd and of the container agent.
        taken: [22, 2375, 2376, 51678, 51679].map(Exclusive::HostPort).into(),
        free_gpus: u32::from(index.is_multiple_of(2)),
        tasks: 1,
        ..Instance::default()
    };
    let instances: Vec<_> = (0..instances).map(instance).collect();
    let members = instances.iter().map(|instance| GroupInstance {
        id: instance.ec2_id.clone().unwrap_or_default(),
        lifecycle: Lifecycle::InService,
        ..GroupInstance::default()
    });
    let desired = instances.len() as u32;
    let group = Group { desired, maximum: u32::MAX, instances: members.collect(), ..Group::default() };
    let registered = instances.into_iter().enumerate().filter(|(index, _)| index % 5 != 0).map(|(_, it)| it).collect();
    Observed { group: Some(group), instances: registered, ..Observed::default() }
}
