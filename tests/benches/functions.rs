//! What the functions take, beside one that does nothing: from the start to the first answer, and for each invocation
//! once they are warm. CPU time is the kernel's account of the process; instructions are counted by valgrind, where it is
//! installed, and repeat. `./local/bench` builds what `BENCHMARK_FUNCTIONS` names, and runs it.
//!
//! An invocation is a batch of ten requests for `request`, one event for `task-state`, a batch of ten completions for
//! `teardown`; AWS and Jenkins are the simulators, over plain HTTP on loopback, and answer at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use local::lambda::Function;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{Binary, Stack};

/// Interleaved rounds, of which the median counts.
const ROUNDS: usize = 7;
/// Warm invocations of a round.
const WARM: u32 = 20;
/// The folder of the functions that are measured.
const FUNCTIONS: &str = "BENCHMARK_FUNCTIONS";
/// Set for the process that does nothing.
const FLOOR: &str = "BENCHMARK_FLOOR";

/// Who is measured, in the order of the table.
const SUBJECTS: [(&str, Option<Binary>); 4] = [
    ("nothing", None),
    ("request", Some(Binary::Request)),
    ("task-state", Some(Binary::TaskState)),
    ("teardown", Some(Binary::Teardown)),
];

#[derive(Debug, Default, Clone, Copy)]
struct Sample {
    start_cpu_ms: f64,
    warm_cpu_ms: f64,
    mebibytes: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::var_os(FLOOR).is_some() {
        let nothing = lambda_runtime::service_fn(async |_: lambda_runtime::LambdaEvent<Value>| {
            Ok::<_, lambda_runtime::Error>(json!({"batchItemFailures": []}))
        });
        return lambda_runtime::run(nothing).await.map_err(|error| anyhow::anyhow!("{error}"));
    }
    let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, binary) in SUBJECTS {
            samples.entry(name).or_default().push(measure(binary).await?);
        }
    }
    let valgrind = ["/usr/bin/valgrind", "/usr/local/bin/valgrind"].into_iter().find(|path| Path::new(path).is_file());
    println!("| function | start: CPU ms | M instructions | warm: CPU ms | M instructions | MiB |");
    println!("|---|---|---|---|---|---|");
    for (name, binary) in SUBJECTS {
        let median = |part: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples[name].iter().map(part).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (start, warm) = match valgrind {
            Some(valgrind) => {
                let once = instructions(valgrind, binary, 1).await?;
                let more = instructions(valgrind, binary, 1 + WARM).await?;
                (format!("{:.1}", once / 1e6), format!("{:.2}", (more - once) / f64::from(WARM) / 1e6))
            }
            None => ("no valgrind".into(), "no valgrind".into()),
        };
        println!(
            "| {name} | {:.1} | {start} | {:.2} | {warm} | {:.1} |",
            median(|sample| sample.start_cpu_ms),
            median(|sample| sample.warm_cpu_ms),
            median(|sample| sample.mebibytes),
        );
    }
    Ok(())
}

/// One process: its start to the first answer, and what it takes once it is warm.
async fn measure(binary: Option<Binary>) -> Result<Sample> {
    let mut world = World::new(binary).await?;
    let mut function = world.start(None).await?;
    world.invoke(&mut function).await?;
    let process = PathBuf::from(format!("/proc/{}", function.id().context("it ended")?));
    let start_cpu_ms = cpu_ms(&process)?;
    for _ in 0..WARM {
        world.invoke(&mut function).await?;
    }
    let warm_cpu_ms = (cpu_ms(&process)? - start_cpu_ms) / f64::from(WARM);
    let status = std::fs::read_to_string(process.join("status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok(Sample { start_cpu_ms, warm_cpu_ms, mebibytes: kibibytes / 1024.0 })
}

/// Nanoseconds on a CPU are the first number of `schedstat` (proc(5)).
fn cpu_ms(process: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(process.join("schedstat"))?;
    Ok(text.split(' ').next().context("an empty schedstat")?.parse::<f64>()? / 1e6)
}

/// The instructions of a process that is invoked so often, by callgrind.
async fn instructions(valgrind: &str, binary: Option<Binary>, invocations: u32) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let counts = folder.path().join("counts");
    let mut world = World::new(binary).await?;
    let wrapper = format!(
        "#!/bin/sh\nexec {valgrind} -q --tool=callgrind --callgrind-out-file='{}' '{}'\n",
        counts.display(),
        world.program.display()
    );
    let mut function = world.start(Some((folder.path(), &wrapper))).await?;
    for _ in 0..invocations {
        world.invoke(&mut function).await?;
    }
    let id = function.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it ended")?;
    kill_process(id, Signal::TERM)?;
    let _ = function.ended().await?;
    let counts = std::fs::read_to_string(&counts).context("valgrind wrote nothing")?;
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    Ok(total.context("valgrind wrote no total")?.trim().parse()?)
}

/// A system of its own for each process, and what is left to invoke it with.
struct World {
    stack: Stack,
    binary: Option<Binary>,
    program: PathBuf,
    events: Vec<Value>,
    tasks: Vec<String>,
    asked: u32,
}

impl World {
    async fn new(binary: Option<Binary>) -> Result<Self> {
        let program = match binary {
            Some(binary) => {
                let folder = std::env::var_os(FUNCTIONS).context("use ./local/bench")?;
                Path::new(&folder).join(binary.path()?.file_name().context("a file")?)
            }
            None => std::env::current_exe()?,
        };
        let mut stack = Stack::start().await?;
        stack.set_env("AWS_LAMBDA_LOG_LEVEL", Some("INFO"));
        if binary.is_none() {
            stack.set_env(FLOOR, Some("yes"));
        }
        let mut world = Self { stack, binary, program, events: Vec::new(), tasks: Vec::new(), asked: 0 };
        if matches!(binary, Some(Binary::TaskState | Binary::Teardown)) {
            // Ten tasks for each invocation, with the RUNNING event of each.
            for _ in 0..=WARM {
                world.ask();
                world.stack.poll(Binary::Request, "requests").await?;
            }
            world.events = world.stack.advance().clone();
            world.tasks = world.stack.active_tasks().into_iter().map(|task| task.arn).collect();
            ensure!(world.events.len() > WARM as usize, "only {} tasks run", world.events.len());
        }
        Ok(world)
    }

    async fn start(&self, wrapper: Option<(&Path, &str)>) -> Result<Function> {
        let program = match wrapper {
            Some((folder, script)) => {
                use std::os::unix::fs::PermissionsExt as _;
                let path = folder.join("function");
                std::fs::write(&path, script)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
                path
            }
            None => self.program.clone(),
        };
        self.stack.start_program(&program).await
    }

    fn ask(&mut self) {
        for _ in 0..10 {
            self.asked += 1;
            let (id, url) = (format!("bench-{}", self.asked), self.stack.webhook());
            self.stack.ask(json!({"requestId": id, "label": "node", "webhookUrl": url}));
        }
    }

    async fn invoke(&mut self, function: &mut Function) -> Result<()> {
        let aws = self.stack.shared_aws();
        match self.binary {
            None => {
                let answer = function.invoke(json!({"Records": []})).await?;
                ensure!(answer.is_ok(), "{answer:?}");
            }
            Some(Binary::Request) => {
                self.ask();
                ensure!(function.poll(&aws, "requests").await? == 10, "no full batch");
            }
            Some(Binary::TaskState) => {
                let event = self.events.pop().context("no event is left")?;
                let answer = function.invoke(event).await?;
                ensure!(answer.is_ok(), "{answer:?}");
            }
            Some(Binary::Teardown) => {
                for task in self.tasks.split_off(self.tasks.len() - 10) {
                    self.stack.complete(json!({"taskArn": task}));
                }
                ensure!(function.poll(&aws, "completions").await? == 10, "no full batch");
            }
        }
        Ok(())
    }
}
