//! Metrics as CloudWatch reads them from the log ("Specification: Embedded metric format").

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The namespace that the template gives the functions of a stack of that name.
pub const NAMESPACE: &str = "jenkins-ecs-agents/agents";

/// The units of API_MetricDatum that are used here.
const UNITS: [&str; 2] = ["Count", "Milliseconds"];

/// The names and values of dimensions, besides names of clouds and templates.
const VALUES: [(&str, &[&str]); 3] = [
    (
        "code",
        &[
            "INVALID_REQUEST",
            "NO_TEMPLATE",
            "OVERRIDE_REFUSED",
            "LAUNCH_FAILED",
            "CAPACITY_TIMEOUT",
            "START_FAILED",
            "START_TIMEOUT",
            "LIFETIME_EXCEEDED",
            "IDLE",
            "SPOT_INTERRUPTION",
        ],
    ),
    ("cause", &["COMPLETED", "UNWANTED", "OTHER"]),
    ("waits_for", &["instance", "fargate", "maxAgents"]),
];

/// One value of a metric: its dimensions by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Datum {
    /// The metric.
    pub name: String,
    /// By name; `None` if the datum counts for the whole stack.
    pub dimensions: BTreeMap<String, String>,
    pub value: f64,
}

/// Reads all metrics from the functions' output.
///
/// # Errors
/// When a line with a member `_aws` violates the specification, or has a dimension that the configuration, if given,
/// does not bound.
pub fn read(output: &str, config: Option<&Value>) -> Result<Vec<Datum>> {
    let mut all = Vec::new();
    for line in output.lines().filter(|line| line.contains("\"_aws\"")) {
        all.extend(of_line(line, config).with_context(|| line.to_owned())?);
    }
    Ok(all)
}

fn of_line(line: &str, config: Option<&Value>) -> Result<Vec<Datum>> {
    let root: Value = serde_json::from_str(line).context("no additional data at the beginning or end")?;
    let time = root["_aws"]["Timestamp"].as_i64().context("Timestamp")?;
    let logged: jiff::Timestamp = root["timestamp"].as_str().context("timestamp")?.parse()?;
    ensure!((time - logged.as_millisecond()).abs() < 1000, "milliseconds after 1970, at the time of the line");
    let mut all = Vec::new();
    for directive in list(&root["_aws"]["CloudWatchMetrics"])? {
        ensure!(directive["Namespace"] == NAMESPACE, "Namespace");
        let sets = list(&directive["Dimensions"])?;
        ensure!(!sets.is_empty(), "Dimensions has at least one set");
        let metrics = list(&directive["Metrics"])?;
        ensure!((1..=100).contains(&metrics.len()), "at most 100 metrics");
        for set in sets {
            let set = list(set)?;
            ensure!(set.len() <= 9, "at most 9 dimensions");
            let mut dimensions = BTreeMap::new();
            for name in set {
                let name = name.as_str().context("a dimension is a string")?;
                let value = root[name].as_str().with_context(|| format!("{name}: a target with a string value"))?;
                let is_bounded = config.is_none_or(|config| bounded(name, config).contains(value));
                ensure!(is_bounded, "{name}: {value} is not bounded");
                dimensions.insert(name.to_owned(), value.to_owned());
            }
            for metric in metrics {
                let name = metric["Name"].as_str().context("Name")?;
                ensure!((1..=255).contains(&name.len()), "Name has 1 to 255 characters");
                ensure!(UNITS.iter().any(|unit| metric["Unit"] == *unit), "Unit");
                let value = root[name].as_f64().with_context(|| format!("{name}: a target with a numeric value"))?;
                ensure!(value >= 0.0, "{name}");
                all.push(Datum { name: name.to_owned(), dimensions: dimensions.clone(), value });
            }
        }
    }
    Ok(all)
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("not an array")
}

/// The values that a dimension can have under a configuration.
fn bounded<'a>(dimension: &str, config: &'a Value) -> BTreeSet<&'a str> {
    let clouds = config["clouds"].as_array().into_iter().flatten();
    let names = |of: &'a Value| of["name"].as_str();
    match dimension {
        "cloud" => clouds.filter_map(names).collect(),
        "template" => {
            clouds.flat_map(|cloud| cloud["templates"].as_array().into_iter().flatten()).filter_map(names).collect()
        }
        _ => VALUES
            .iter()
            .filter(|(name, _)| *name == dimension)
            .flat_map(|(_, values)| values.iter().copied())
            .collect(),
    }
}

/// The sum of a metric for the whole stack.
pub fn total(data: &[Datum], name: &str) -> f64 {
    data.iter().filter(|datum| datum.name == name && datum.dimensions.is_empty()).map(|datum| datum.value).sum()
}

/// The sums of a metric by the values of one of its dimensions.
pub fn by(data: &[Datum], name: &str, dimension: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for datum in data.iter().filter(|datum| datum.name == name) {
        if let Some(value) = datum.dimensions.get(dimension) {
            *sums.entry(value.clone()).or_default() += datum.value;
        }
    }
    sums
}
