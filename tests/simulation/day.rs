//! A day of 10,000 builds, and the cost of its instances compared with two simple policies.
//!
//! `UPDATE_DOCS=1` writes the table and the plot into docs/.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::faults::{CONFIG, run};
use super::world::Plan;

/// The relative number of builds in each hour: a working day with a nightly run at two.
const CURVE: [f64; 24] = [
    1.0, 1.0, 12.0, 3.0, 1.0, 1.0, 2.0, 6.0, 14.0, 22.0, 25.0, 24.0, 16.0, 18.0, 25.0, 26.0, 22.0, 14.0, 7.0, 4.0, 3.0,
    2.0, 2.0, 1.0,
];
const BOOT: f64 = 120.0;
/// Agents per instance: 8192 MiB by 2048.
const SLOTS: usize = 4;
const MAXIMUM: usize = 60;
/// From RunTask to a ready agent on a ready instance, in seconds.
const START: f64 = 6.0;

/// The result of a policy.
#[derive(Debug)]
struct Cost {
    instance_hours: f64,
    waits: Vec<f64>,
    /// Number of instances at each minute.
    curve: Vec<usize>,
}

impl Cost {
    fn percentile(&self, part: f64) -> f64 {
        let mut waits = self.waits.clone();
        waits.sort_by(f64::total_cmp);
        waits.get(((waits.len() as f64 - 1.0) * part) as usize).copied().unwrap_or_default()
    }
}

/// The day, with this probability of each fault.
pub(crate) fn plan(faults: f64) -> Plan {
    Plan {
        seed: 24,
        builds: 10_000,
        faults,
        curve: CURVE.to_vec(),
        span: Duration::from_secs(24 * 3600),
        build: (Duration::from_secs(60), Duration::from_secs(900)),
        config: CONFIG.into(),
        bounds: (0, MAXIMUM as u32),
        boot: Duration::from_secs(100),
        traits: Vec::new(),
    }
}

/// A day of the real code: its cost, and the builds on instances, as (requested at, duration).
fn day(faults: f64) -> (Cost, Vec<(f64, f64)>) {
    let world = run(plan(faults));
    let on_instances: Vec<_> =
        world.fates().into_iter().filter(|fate| fate.label == "ssh" && fate.waited.is_some()).collect();
    let cost = Cost {
        instance_hours: world.sim().aws.ecs.group("ci").expect("the group").paid_seconds(world.now()) / 3600.0,
        waits: on_instances.iter().filter_map(|fate| fate.waited).map(|waited| waited.as_secs_f64()).collect(),
        curve: world.instances_by_minute(),
    };
    let builds =
        on_instances.iter().map(|fate| (fate.asked_at.as_secs_f64(), fate.takes.as_secs_f64() + START)).collect();
    (cost, builds)
}

#[test]
fn a_day_of_ten_thousand_builds_leaves_nothing_behind() {
    let faulty = std::thread::spawn(|| day(0.01).0);
    let (ours, builds) = day(0.0);
    let faulty = faulty.join().expect("a day with faults");
    let never = simulate(&builds, &Policy::NeverIn);
    let step = simulate(&builds, &Policy::Step);
    let report = table(&ours, &faulty, &never, &step, builds.len());
    println!("{report}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
        write_table(docs, &report);
        std::fs::write(format!("{docs}/cost.svg"), plot(&ours, &never, &step)).expect("written");
    }
    assert!(ours.instance_hours < never.instance_hours, "giving instances back has to cost less than keeping them");
}

/// How the other groups are scaled.
enum Policy {
    /// Raised like ours, never lowered.
    NeverIn,
    /// A step policy on a metric: each minute, two instances more while builds wait, one less (an idle one) after 15
    /// minutes below half of the slots in use.
    Step,
}

/// A plain simulation of the same builds on instances of four slots.
fn simulate(builds: &[(f64, f64)], policy: &Policy) -> Cost {
    let mut builds = builds.to_vec();
    builds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let last = builds.last().map_or(0.0, |(at, takes)| at + takes) + 3600.0;
    // An instance: when it is ready, and when each of its slots is free again.
    let mut instances: Vec<(f64, f64, [f64; SLOTS])> = Vec::new();
    let (mut waiting, mut waits, mut curve) = (Vec::new(), Vec::new(), Vec::new());
    let (mut next, mut low_since, mut seconds) = (0, None, 0.0);
    let mut now = 0.0;
    while now < last {
        let is_minute = (now as u64).is_multiple_of(60);
        while next < builds.len() && builds[next].0 <= now {
            waiting.push(builds[next]);
            next += 1;
        }
        waiting.retain(|&(at, takes)| {
            let slot = instances
                .iter_mut()
                .filter(|(_, ready, _)| *ready <= now)
                .flat_map(|(_, _, slots)| slots)
                .find(|free| **free <= now);
            match slot {
                Some(free) => {
                    *free = now + takes;
                    waits.push(now - at + START);
                    false
                }
                None => true,
            }
        });
        let booting = instances.iter().filter(|(_, ready, _)| *ready > now).count();
        let wanted = match policy {
            Policy::NeverIn => waiting.len().div_ceil(SLOTS).saturating_sub(booting),
            Policy::Step if is_minute && !waiting.is_empty() => 2,
            Policy::Step => 0,
        };
        for _ in 0..wanted.min(MAXIMUM - instances.len()) {
            instances.push((now, now + BOOT, [0.0; SLOTS]));
        }
        if let Policy::Step = policy
            && is_minute
        {
            let busy = instances.iter().flat_map(|(_, _, slots)| slots).filter(|free| **free > now).count();
            let is_low = waiting.is_empty() && busy * 2 < instances.len() * SLOTS;
            low_since = if is_low { low_since.or(Some(now)) } else { None };
            if low_since.is_some_and(|since| now - since >= 900.0)
                && let Some(idle) = instances
                    .iter()
                    .position(|(_, ready, slots)| *ready <= now && slots.iter().all(|free| *free <= now))
            {
                seconds += now - instances[idle].0;
                instances.remove(idle);
            }
        }
        if is_minute {
            curve.push(instances.len());
        }
        now += 1.0;
    }
    // Remaining instances run until the end of the day.
    let day: f64 = 24.0 * 3600.0;
    seconds += instances.iter().map(|(since, _, _)| (day.max(last) - since).max(0.0)).sum::<f64>();
    Cost { instance_hours: seconds / 3600.0, waits, curve }
}

fn table(ours: &Cost, faulty: &Cost, never: &Cost, step: &Cost, builds: usize) -> String {
    let mut text = format!(
        "{builds} of the builds ran on instances.\n\n\
         | policy | instance-hours | median wait | 99th percentile |\n|---|---|---|---|\n"
    );
    for (name, cost) in [
        ("jenkins-ecs-agents", ours),
        ("jenkins-ecs-agents, with faults", faulty),
        ("scaled out alike, never scaled in", never),
        ("step policy: +2 per minute while builds wait, -1 per minute after 15 minutes below half", step),
    ] {
        let _ = writeln!(
            text,
            "| {name} | {:.0} | {:.0} s | {:.0} s |",
            cost.instance_hours,
            cost.percentile(0.5),
            cost.percentile(0.99)
        );
    }
    text
}

/// Replaces the table in docs/cost.md.
fn write_table(docs: &str, table: &str) {
    const BEGIN: &str = "<!-- table: written by tests/simulation/day.rs -->\n";
    const END: &str = "<!-- end of table -->\n";
    let path = format!("{docs}/cost.md");
    let text = std::fs::read_to_string(&path).expect("docs/cost.md");
    let (before, rest) = text.split_once(BEGIN).expect("the table's beginning");
    let (_, after) = rest.split_once(END).expect("the table's end");
    std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).expect("written");
}

fn plot(ours: &Cost, never: &Cost, step: &Cost) -> String {
    let (width, height) = (900.0, 300.0);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-50 -20 1000 380\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect x=\"-50\" y=\"-20\" width=\"1000\" height=\"380\" fill=\"white\"/>\n",
    );
    let lines: BTreeMap<_, _> = [("#2a9d8f", ours), ("#adb5bd", never), ("#e76f51", step)].into();
    let top = 1.0 + lines.values().flat_map(|cost| &cost.curve).copied().max().unwrap_or(1) as f64;
    for hour in (0..=24).step_by(4) {
        let x = f64::from(hour) / 24.0 * width;
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"{height}\" stroke=\"#eee\"/><text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{hour}:00</text>",
            height + 20.0
        );
    }
    for count in (0..=top as usize).step_by(10) {
        let y = height - count as f64 / top * height;
        let _ = writeln!(
            svg,
            "<line x1=\"0\" x2=\"{width}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#eee\"/><text x=\"-8\" y=\"{y}\" text-anchor=\"end\">{count}</text>"
        );
    }
    for (colour, cost) in &lines {
        let points: Vec<String> = cost
            .curve
            .iter()
            .take(24 * 60)
            .enumerate()
            .map(|(minute, count)| {
                format!("{:.1},{:.1}", minute as f64 / 1440.0 * width, height - *count as f64 / top * height)
            })
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            points.join(" ")
        );
    }
    for (row, (colour, name)) in
        [("#2a9d8f", "jenkins-ecs-agents"), ("#adb5bd", "never scaled in"), ("#e76f51", "step policy")]
            .iter()
            .enumerate()
    {
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>", 20 + row * 180, height + 45.0);
    }
    svg + "</svg>\n"
}
