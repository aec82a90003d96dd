//! Measures capacity planning for the waiting requests.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shared::aws::autoscaling::{Group, GroupInstance, Lifecycle};
use shared::aws::ecs::{Instance, InstanceStatus};
use shared::capacity::{Exclusive, Need, Observed};
use shared::config::Size;

/// Sizes of tasks: CPU units and MiB.
const SIZES: [(u32, u32); 4] = [(256, 512), (512, 1024), (1024, 2048), (2048, 4096)];
/// Ten times the work may take this many times as long: n log n is 13 times, n squared 100.
const GROWTH: f64 = 30.0;

/// Plans 1,000 requests over 500 instances, and ten times both. Only the growth has a limit: the time of one plan
/// depends on the machine.
pub(crate) fn measure() -> Result<()> {
    let (once, ten) = (plan(1), plan(10));
    let growth = ten.as_secs_f64() / once.as_secs_f64();
    println!("planning 1,000 requests over 500 instances: {once:.1?}; ten times as many: {growth:.1} times as long");
    ensure!(growth < GROWTH, "planning does not scale: more than {GROWTH} times as long");
    Ok(())
}

/// The shortest of several tries, which was disturbed the least.
fn plan(factor: usize) -> Duration {
    let demand: Vec<Need> = (0..1000 * factor).map(need).collect();
    let observed = observed(500 * factor);
    let attempt = |_| {
        let began = Instant::now();
        assert!(std::hint::black_box(&observed).plan(&demand).raise_to.is_some(), "there is not room for all");
        began.elapsed()
    };
    (0..10).map(attempt).min().unwrap_or_default()
}

/// A mixture: every fourth needs a GPU, every fifth a host port, of which there are three.
fn need(index: usize) -> Need {
    let port = index.is_multiple_of(5).then(|| Exclusive::HostPort(8080 + (index % 3) as u16));
    Need { size: size(index / 2), gpus: u32::from(index.is_multiple_of(4)), exclusive: port.into_iter().collect() }
}

fn size(index: usize) -> Size {
    let (cpu, memory) = SIZES[index % SIZES.len()];
    Size { cpu, memory }
}

/// A group of half-full instances, a fifth of it still booting.
fn observed(instances: usize) -> Observed {
    let instance = |index: usize| Instance {
        arn: format!("arn-{index}"),
        ec2_id: Some(format!("i-{index:017}")),
        status: InstanceStatus::Active,
        connected: true,
        total: Size { cpu: 4096, memory: 7680 },
        free: Size { cpu: size(index).cpu, memory: size(index / 4).memory },
        gpus: 1,
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
