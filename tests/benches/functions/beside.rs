//! `request` compared with the same work in Python and in Node: the table of ratios.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::Binary;

use crate::callgrind::{cost_of, valgrind};
use crate::median;
use crate::world::{Subject, World};

const SUBJECTS: [Subject; 3] = [Subject::Function(Binary::Request), Subject::Python, Subject::Node];
/// Interleaved rounds, of which the median counts.
const ROUNDS: usize = 5;
/// Warm invocations of each kind in a round.
const WARM: u32 = 10;
/// Messages of a batch, and how long AWS takes to answer.
const KINDS: [(u32, Duration); 4] =
    [(1, Duration::ZERO), (10, Duration::ZERO), (1, Duration::from_millis(30)), (10, Duration::from_millis(30))];

/// What is measured of each; a row of the table.
const ROWS: [&str; 11] = [
    "init, ms",
    "first batch of 10, ms",
    "CPU to the first answer, ms",
    "warm, 1 message, 0 ms an answer, ms",
    "warm, 10 messages, 0 ms an answer, ms",
    "warm, 1 message, 30 ms an answer, ms",
    "warm, 10 messages, 30 ms an answer, ms",
    "CPU of a warm batch of 10, ms",
    "memory, MiB",
    "AWS calls of a batch of 10",
    "connections to AWS, in all",
];

/// Measures and prints the table.
pub(crate) async fn table() -> Result<()> {
    let mut samples: [Vec<[f64; ROWS.len()]>; SUBJECTS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (subject, samples) in SUBJECTS.into_iter().zip(&mut samples) {
            samples.push(measure(subject).await?);
        }
    }
    println!("| | {} |", SUBJECTS.map(Subject::name).join(" | "));
    println!("|---|---|---|---|");
    for (index, name) in ROWS.iter().enumerate() {
        row(name, samples.iter().map(|samples| median(samples.iter().map(|sample| sample[index]))));
    }
    let sizes = SUBJECTS.into_iter().map(Subject::zipped_mb).collect::<Result<Vec<_>>>()?;
    row("zip, MB", sizes.into_iter());
    if let Some(valgrind) = valgrind() {
        // Node compiles as it runs, which valgrind does not follow.
        let mut counts = Vec::new();
        for subject in [SUBJECTS[0], SUBJECTS[1]] {
            counts.push(cost_of(valgrind, subject, 3, false).await?);
        }
        let millions = |count: u64| count as f64 / 1e6;
        row("start and first batch, M instructions", counts.iter().map(|cost| millions(cost.start.total)));
        row("warm batch of 10, M instructions", counts.iter().map(|cost| millions(cost.warm.total)));
    }
    Ok(())
}

/// Values, each also as a multiple of the first.
fn row(name: &str, values: impl Iterator<Item = f64>) {
    let values: Vec<f64> = values.collect();
    let cells = values.iter().enumerate().map(|(index, value)| match index {
        0 => format!("{value:.1}"),
        _ => format!("{value:.1} ({:.1}×)", value / values[0]),
    });
    let mut cells: Vec<_> = cells.collect();
    cells.resize(SUBJECTS.len(), String::new());
    println!("| {name} | {} |", cells.join(" | "));
}

async fn measure(subject: Subject) -> Result<[f64; ROWS.len()]> {
    let mut world = World::new(subject, 0, false).await?;
    let began = Instant::now();
    let mut process = world.start(None).await?;
    process.function.ready().await?;
    let init = began.elapsed();
    let began = Instant::now();
    world.invoke(&mut process, 10).await?;
    let (first, start_cpu) = (began.elapsed(), process.cpu_ms()?);
    let mut warm = [Duration::ZERO; KINDS.len()];
    let mut warm_cpu = 0.0;
    for ((messages, delay), warm) in KINDS.into_iter().zip(&mut warm) {
        world.answer_after(delay);
        let (began, cpu) = (Instant::now(), process.cpu_ms()?);
        for _ in 0..WARM {
            world.invoke(&mut process, messages).await?;
        }
        *warm = began.elapsed() / WARM;
        if (messages, delay) == KINDS[1] {
            warm_cpu = (process.cpu_ms()? - cpu) / f64::from(WARM);
        }
    }
    world.stack.forget_calls();
    world.invoke(&mut process, 10).await?;
    let calls = world.stack.calls().len();
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok([
        ms(init),
        ms(first),
        start_cpu,
        ms(warm[0]),
        ms(warm[1]),
        ms(warm[2]),
        ms(warm[3]),
        warm_cpu,
        process.peak_mebibytes()?,
        calls as f64,
        world.connections() as f64,
    ])
}
