//! The cost of the functions: from the start to the first answer, and for each invocation once they are warm, compared
//! with a function that does nothing and with what a user would write in Python or Node instead. CPU time is the
//! kernel's account of the process; instructions are counted by valgrind and are repeatable.
//!
//! An invocation is a batch of ten requests for `request`, one event for `task-state`, a batch of ten completions for
//! `teardown`; AWS and Jenkins are the simulators on loopback. `./local/bench` builds what is measured, and runs this;
//! with `--guard`, instructions alone, against `baseline.json`. Both plan capacity for the requests that wait, too.

mod beside;
mod callgrind;
mod guard;
mod planning;
mod ready;
mod world;

use anyhow::Result;
use serde_json::{Value, json};
use tests::Binary;

use crate::callgrind::{cost_of, valgrind};
use crate::world::{Subject, World};

/// Interleaved rounds, of which the median counts.
const ROUNDS: usize = 7;
/// Warm invocations of a round.
const WARM: u32 = 20;
/// Set for the process that does nothing.
const FLOOR: &str = "BENCHMARK_FLOOR";

/// The functions, in the order of the tables.
const FUNCTIONS: [Binary; 3] = [Binary::Request, Binary::TaskState, Binary::Teardown];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::var_os(FLOOR).is_some() {
        let nothing = lambda_runtime::service_fn(async |_: lambda_runtime::LambdaEvent<Value>| {
            Ok::<_, lambda_runtime::Error>(json!({"batchItemFailures": []}))
        });
        return lambda_runtime::run(nothing).await.map_err(|error| anyhow::anyhow!("{error}"));
    }
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--guard"] => {
            planning::measure()?;
            guard::compare().await
        }
        ["--guard", "--update"] => guard::update().await,
        [] => {
            functions().await?;
            ready::table().await?;
            beside::table().await?;
            planning::measure()
        }
        other => anyhow::bail!("{other:?}: there are --guard and --guard --update"),
    }
}

/// The three functions, compared with one that does nothing.
async fn functions() -> Result<()> {
    let subjects: Vec<_> = std::iter::once(Subject::Nothing).chain(FUNCTIONS.map(Subject::Function)).collect();
    let mut samples = vec![Vec::new(); subjects.len()];
    for _ in 0..ROUNDS {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(measure(*subject).await?);
        }
    }
    println!("| function | start: CPU ms | M instructions | warm: CPU ms | M instructions | MiB | zip: MB |");
    println!("|---|---|---|---|---|---|---|");
    for (subject, samples) in subjects.into_iter().zip(samples) {
        let (start, warm) = instructions(subject, false).await?;
        println!(
            "| {} | {:.1} | {start} | {:.2} | {warm} | {:.1} | {} |",
            subject.name(),
            median(samples.iter().map(|sample| sample.0)),
            median(samples.iter().map(|sample| sample.1)),
            median(samples.iter().map(|sample| sample.2)),
            if subject == Subject::Nothing { "".into() } else { format!("{:.1}", subject.zipped_mb()?) },
        );
    }
    let (start, warm) = instructions(Subject::Function(Binary::Request), true).await?;
    println!("| request, AWS over TLS | | {start} | | {warm} | | |\n");
    Ok(())
}

/// One process: CPU time from its start to the first answer, that of a warm invocation, and the most memory it had.
async fn measure(subject: Subject) -> Result<(f64, f64, f64)> {
    let mut world = World::new(subject, WARM + 1, false).await?;
    let mut process = world.start(None).await?;
    world.invoke(&mut process, 10).await?;
    let start = process.cpu_ms()?;
    for _ in 0..WARM {
        world.invoke(&mut process, 10).await?;
    }
    Ok((start, (process.cpu_ms()? - start) / f64::from(WARM), process.peak_mebibytes()?))
}

/// Million instructions of a start with the first invocation, and of a warm one, if valgrind is installed.
async fn instructions(subject: Subject, tls: bool) -> Result<(String, String)> {
    let Some(valgrind) = valgrind() else { return Ok(("no valgrind".into(), "no valgrind".into())) };
    let cost = cost_of(valgrind, subject, WARM, tls).await?;
    let millions = |count: u64| format!("{:.2}", count as f64 / 1e6);
    Ok((millions(cost.start.total), millions(cost.warm.total)))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
