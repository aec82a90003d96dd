//! Compares instruction counts with those of `baseline.json`.
//!
//! The build that the tests run is measured, not the release, which takes a quarter of an hour more. It has the same
//! calls and loops, only more instructions for each, so that growth in one shows in the other.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use crate::FUNCTIONS;
use crate::callgrind::{Cost, Count, cost_of, valgrind};
use crate::world::Subject;

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/functions/baseline.json");
/// The tolerated growth, in per cent: what another compiler or machine makes of the same code.
const TOLERANCE: f64 = 8.0;
/// Warm invocations that are counted.
const WARM: u32 = 5;

async fn costs() -> Result<BTreeMap<String, Cost>> {
    let valgrind = valgrind().context("valgrind is missing")?;
    let mut costs = BTreeMap::new();
    for function in FUNCTIONS {
        let subject = Subject::Function(function);
        costs.insert(subject.name().to_owned(), cost_of(valgrind, subject, WARM, false).await?);
    }
    Ok(costs)
}

/// Writes the baseline again.
pub(crate) async fn update() -> Result<()> {
    std::fs::write(BASELINE, serde_json::to_string_pretty(&costs().await?)? + "\n")?;
    println!("wrote {BASELINE}");
    Ok(())
}

/// Fails if a function takes more than the baseline allows.
pub(crate) async fn compare() -> Result<()> {
    let text = std::fs::read_to_string(BASELINE).context(BASELINE)?;
    let baseline: BTreeMap<String, Cost> = serde_json::from_str(&text).context(BASELINE)?;
    let mut grown = Vec::new();
    for (name, now) in costs().await? {
        let before = baseline.get(&name).with_context(|| format!("{name} is not in the baseline"))?;
        for (what, before, now) in [("start", &before.start, &now.start), ("warm", &before.warm, &now.warm)] {
            let change = (now.total as f64 / before.total as f64 - 1.0) * 100.0;
            let millions = |count: u64| count as f64 / 1e6;
            let line = format!(
                "{name}, {what}: {:.2} M instructions, {change:+.1} % of {:.2} M",
                millions(now.total),
                millions(before.total)
            );
            println!("{line}");
            if change > TOLERANCE {
                grown.push(format!("{line}\n{}", culprits(before, now)));
            }
        }
    }
    if !grown.is_empty() {
        bail!(
            "more than {TOLERANCE} % above the baseline:\n{}\nWhere that is meant, write it again with `./local/bench --guard \
             --update` and say why in the commit.",
            grown.join("\n")
        );
    }
    Ok(())
}

/// The crates whose own functions grew the most.
fn culprits(before: &Count, now: &Count) -> String {
    let growth = |name: &str, now: u64| now as i64 - before.crates.get(name).copied().unwrap_or_default() as i64;
    let mut crates: Vec<_> = now.crates.iter().map(|(name, &now)| (growth(name, now), name)).collect();
    crates.sort_unstable_by(|a, b| b.cmp(a));
    let lines = crates.into_iter().take(6).filter(|(growth, _)| *growth > 0);
    lines.map(|(growth, name)| format!("  {name}: {:+.2} M", growth as f64 / 1e6)).collect::<Vec<_>>().join("\n")
}
