//! A picture of the dashboard: its layout as the template has it, with data of the simulated day.
//!
//! `UPDATE_DOCS=1` draws it again into docs/dashboard.svg.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use local::cloudformation::Stack;
use serde_json::Value;
use shared::log::Output;
use tests::cloudwatch::{self, Metric, Metrics};
use tests::insights::{Row, Table};
use tests::roles::{QUEUES, TEMPLATE};
use tests::{ACCOUNT, REGION, emf};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::day;
use super::drawing::{picture, shown, unescaped};
use super::faults::simulate;
use super::world;

const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/dashboard.svg");

/// The minutes of the day that are shown: three hours, as CloudWatch does at first, until some builds wait.
pub(crate) const SHOWN: Range<u64> = 310..490;

thread_local! {
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

#[test]
fn the_picture_has_the_widgets_of_the_dashboard() {
    let (jenkins, cluster, definitions) = (
        ("JenkinsUrl", "https://jenkins.example.com/"),
        ("ClusterArns", "arn:aws:ecs:eu-west-1:123456789012:cluster/ci"),
        ("TaskDefinitionArns", "arn:aws:ecs:eu-west-1:123456789012:task-definition/*"),
    );
    let functions =
        [("RequestFunction", "request"), ("TaskStateFunction", "task-state"), ("TeardownFunction", "teardown")];
    let names: Vec<_> = QUEUES.into_iter().chain(functions).collect();
    let stack =
        Stack::new(TEMPLATE, (REGION, ACCOUNT), &[jenkins, cluster, definitions], &names).expect("the template");
    let body = &stack.properties("Dashboard").expect("the dashboard")["DashboardBody"];
    let body: Value = serde_json::from_str(body.as_str().expect("a text")).expect("JSON");
    let widgets = body["widgets"].as_array().expect("widgets");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PICTURE, picture(&stack, widgets, &Data::of_a_day())).expect("written");
    }
    let picture = std::fs::read_to_string(PICTURE).expect("docs/dashboard.svg");
    let descriptions = picture.split("<desc>").skip(1).filter_map(|rest| rest.split("</desc>").next());
    let drawn: Vec<Value> = descriptions.map(|text| serde_json::from_str(&unescaped(text)).expect("JSON")).collect();
    assert!(
        drawn == *widgets,
        "docs/dashboard.svg shows another dashboard; UPDATE_DOCS=1 cargo nextest run --workspace picture_has draws it again"
    );
}

// --- The data ---

/// What CloudWatch would have received.
pub(crate) struct Data {
    /// Lines of the log within the shown time.
    pub(crate) events: Vec<Row>,
    pub(crate) metrics: Metrics,
}

impl Data {
    /// Of the day with faults, so that there is something to see.
    fn of_a_day() -> Self {
        let environment = |name: &str| match name {
            "METRICS_NAMESPACE" => Some(emf::NAMESPACE.to_owned()),
            _ => None,
        };
        let output = Output { now: world::now_here, write: |line| LOG.with_borrow_mut(|log| log.push_str(line)) };
        let world = {
            let _guard = shared::log::subscriber(&environment, output).set_default();
            simulate(day::plan(0.01), Some(Duration::from_secs(SHOWN.end * 60)))
        };
        let mut data = Self { events: Vec::new(), metrics: std::mem::take(&mut *world.metrics()) };
        let begin: Timestamp = world::EPOCH.parse().expect("a time");
        for line in LOG.take().lines() {
            let mut event: Row = serde_json::from_str(line).expect("JSON");
            let time = event["timestamp"].clone();
            let at: Timestamp = time.as_str().and_then(|text| text.parse().ok()).expect("a time");
            let minute = at.duration_since(begin).as_secs() as u64 / 60;
            for datum in emf::read(line, None).expect("metrics") {
                let metric =
                    Metric { namespace: emf::NAMESPACE.into(), name: datum.name, dimensions: datum.dimensions };
                data.metrics.put(metric, minute, datum.value);
            }
            if SHOWN.contains(&minute) {
                event.insert("@timestamp".into(), time);
                data.events.push(event);
            }
        }
        data
    }
}

/// A line or an area of a graph.
pub(crate) struct Series {
    pub(crate) label: String,
    /// One in each period.
    pub(crate) points: Vec<Option<f64>>,
    pub(crate) is_right: bool,
}

/// The series of a graph's `metrics` ("Metric Widget Properties": an array for each, in which `...` repeats the one before).
pub(crate) fn series(properties: &Value, metrics: &Metrics) -> Vec<Series> {
    let mut all = Vec::new();
    let mut by_id = BTreeMap::new();
    let mut before: Vec<String> = Vec::new();
    let rows = properties["metrics"].as_array().expect("metrics");
    // Expressions may come before the metrics that they name.
    for row in rows.iter().map(|row| row.as_array().expect("an array")) {
        let given = row.iter().filter_map(Value::as_str);
        let options = row.last().filter(|last| last.is_object()).unwrap_or(&Value::Null);
        let path: Vec<_> = match given.clone().next() {
            Some("...") => {
                let rest: Vec<_> = given.skip(1).map(str::to_owned).collect();
                before[..before.len() - rest.len()].iter().cloned().chain(rest).collect()
            }
            _ => given.map(str::to_owned).collect(),
        };
        if path.is_empty() {
            continue;
        }
        let dimensions = path[2..].chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let metric = Metric { namespace: path[0].clone(), name: path[1].clone(), dimensions };
        let stat = options["stat"].as_str().or(properties["stat"].as_str()).expect("a statistic");
        let points = points(metrics, &metric, stat, period(properties));
        if let Some(id) = options["id"].as_str() {
            by_id.insert(id, points.clone());
        }
        let label = options["label"].as_str().unwrap_or(&metric.name).to_owned();
        all.push((options, Series { label, points, is_right: options["yAxis"] == "right" }));
        before = path;
    }
    let mut own = all.into_iter();
    rows.iter()
        .flat_map(|row| match row[0]["expression"].as_str() {
            Some(search) if search.starts_with("SEARCH(") => found(search, &row[0], metrics),
            Some(expression) => {
                let count = (SHOWN.end - SHOWN.start) / period(properties);
                let point = |at: usize| {
                    let known = by_id.iter().map(|(id, points)| (*id, points[at])).collect();
                    cloudwatch::math(expression, known, period(properties) * 60)
                };
                let label = row[0]["label"].as_str().expect("a label").to_owned();
                vec![Series { label, points: (0..count as usize).map(point).collect(), is_right: false }]
            }
            None => {
                own.next().filter(|(options, _)| options["visible"] != false).map(|(_, one)| one).into_iter().collect()
            }
        })
        .collect()
}

/// A graph's period in minutes.
fn period(properties: &Value) -> u64 {
    properties["period"].as_u64().expect("a period") / 60
}

fn points(metrics: &Metrics, metric: &Metric, stat: &str, period: u64) -> Vec<Option<f64>> {
    SHOWN.step_by(period as usize).map(|begin| metrics.statistic(metric, stat, begin..begin + period)).collect()
}

/// `SEARCH('{"namespace", "dimension", …} MetricName="name"', 'statistic', seconds)`: a series for each metric that has exactly
/// these dimensions ("Using search expressions in graphs"), labelled by one of them ("Using dynamic labels").
fn found(search: &str, options: &Value, metrics: &Metrics) -> Vec<Series> {
    let quoted: Vec<_> = search.split('"').skip(1).step_by(2).collect();
    let [namespace, dimensions @ .., name] = &quoted[..] else { panic!("{search} is not understood") };
    let stat = search.split('\'').nth(3).expect("a statistic");
    let seconds: u64 = search.rsplit([' ', ')']).nth(1).and_then(|text| text.parse().ok()).expect("a period");
    let found = metrics.search(namespace, dimensions, name);
    let series = found.map(|metric| {
        let mut label = options["label"].as_str().expect("a label").to_owned();
        for (dimension, value) in &metric.dimensions {
            label = label.replace(&format!("${{PROP('Dim.{dimension}')}}"), value);
        }
        Series { label, points: points(metrics, metric, stat, seconds / 60), is_right: false }
    });
    series.collect()
}

/// The series of a query with `bin(5m)`, by its columns.
pub(crate) fn binned(table: &Table) -> Vec<Series> {
    let periods: Vec<String> =
        SHOWN.step_by(5).map(|minute| format!("{:02}:{:02}", minute / 60, minute % 60)).collect();
    let point = |column: &str, begin: &String| {
        let row = table.rows.iter().find(|row| shown(&row["bin(5m)"]).starts_with(begin.as_str()))?;
        row[column].as_f64()
    };
    let of = |column: &String| Series {
        label: column.clone(),
        points: periods.iter().map(|begin| point(column, begin)).collect(),
        is_right: false,
    };
    table.columns[1..].iter().map(of).collect()
}
