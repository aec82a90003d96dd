//! Instructions, counted by valgrind's callgrind.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::world::{Subject, World};

/// Instruction counts, in total and by crate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// All of them.
    pub total: u64,
    /// Those of each crate's own functions; functions without a path count as `libc`.
    pub crates: BTreeMap<String, u64>,
}

/// Instruction counts of a function.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The start and the first invocation.
    pub start: Count,
    /// A warm invocation.
    pub warm: Count,
}

/// Where valgrind is, if it is installed.
pub(crate) fn valgrind() -> Option<&'static str> {
    ["/usr/bin/valgrind", "/usr/local/bin/valgrind"].into_iter().find(|path| Path::new(path).is_file())
}

/// Counts a start with one invocation, and one with `warm` more: the difference is that of the warm ones.
pub(crate) async fn cost_of(valgrind: &str, subject: Subject, warm: u32, tls: bool) -> Result<Cost> {
    let start = count(valgrind, subject, 1, tls).await?;
    let more = count(valgrind, subject, 1 + warm, tls).await?;
    let each = |more: u64, once: u64| more.saturating_sub(once) / u64::from(warm);
    let crates = more.crates.iter().map(|(name, &more)| {
        let once = start.crates.get(name).copied().unwrap_or_default();
        (name.clone(), each(more, once))
    });
    Ok(Cost { warm: Count { total: each(more.total, start.total), crates: crates.collect() }, start })
}

async fn count(valgrind: &str, subject: Subject, invocations: u32, tls: bool) -> Result<Count> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    let mut world = World::new(subject, invocations, tls).await?;
    let wrapper = [
        valgrind.to_owned(),
        "-q".into(),
        "--tool=callgrind".into(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let mut process = world.start(Some(&wrapper)).await?;
    for _ in 0..invocations {
        world.invoke(&mut process, 10).await?;
    }
    let id = process.function.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it ended")?;
    kill_process(id, Signal::TERM)?;
    let _ = process.function.ended().await?;
    Ok(read(&std::fs::read_to_string(&out).context("valgrind wrote nothing")?))
}

/// Reads callgrind's file (Callgrind Format Specification): `fn=(ID) NAME` begins a function, and lines of numbers are
/// its own cost, except the one after `calls=`, which is the callee's.
fn read(text: &str) -> Count {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut count = Count::default();
    let (mut function, mut is_callees) = ("", false);
    for line in text.lines() {
        if let Some((kind @ ("fn" | "cfn"), name)) = line.split_once('=') {
            let (id, name) = name.split_once(' ').map_or((name, None), |(id, name)| (id, Some(name)));
            if let Some(name) = name {
                names.insert(id, name);
            }
            if kind == "fn" {
                function = id;
            }
        } else if line.starts_with("calls=") {
            is_callees = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or_default();
            if !std::mem::take(&mut is_callees) {
                count.total += cost;
                *count.crates.entry(crate_of(names.get(function).unwrap_or(&"")).to_owned()).or_default() += cost;
            }
        }
    }
    count
}

/// `shared` of `<shared::http::Network as …>::call`.
fn crate_of(function: &str) -> &str {
    let path = function.trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let path = path.strip_prefix("mut ").or(path.strip_prefix("dyn ")).unwrap_or(path);
    path.split_once("::").map_or("libc", |(name, _)| name)
}
