//! CloudWatch Logs Insights, as far as the dashboard's queries use it (CloudWatch Logs user guide, "CloudWatch Logs Insights
//! language query syntax").

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A log event, or a row of a result, by the names of its fields.
pub type Row = Map<String, Value>;

/// A result.
#[derive(Debug, Default)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// Runs a query over events in the order of their time, each with `@timestamp`.
///
/// # Panics
/// When it does not understand the query.
pub fn run(query: &str, events: &[Row]) -> Table {
    let mut table = Table { columns: vec!["@timestamp".into(), "@message".into()], rows: events.to_vec() };
    for command in query.split(" | ") {
        let (name, rest) = command.split_once(' ').expect("a command with arguments");
        match name {
            "SOURCE" => {}
            "filter" => table.rows.retain(|row| holds(rest, row)),
            "fields" | "display" => table.columns = rest.split(", ").map(str::to_owned).collect(),
            "stats" => table = stats(rest, &table.rows),
            "sort" => {
                let keys = rest.split(", ").map(|key| key.split_once(' ').expect("a field and an order"));
                let keys: Vec<_> = keys.collect();
                table.rows.sort_by(|a, b| {
                    let ordered = keys.iter().map(|(field, order)| match *order {
                        "asc" => compare(&a[*field], &b[*field]),
                        _ => compare(&b[*field], &a[*field]),
                    });
                    ordered.fold(Ordering::Equal, Ordering::then)
                });
            }
            "limit" => table.rows.truncate(rest.parse().expect("a number")),
            _ => panic!("{command} is not understood"),
        }
    }
    table
}

/// Conditions joined by `or`, or by `and`.
fn holds(condition: &str, row: &Row) -> bool {
    if condition.contains(" or ") {
        return condition.split(" or ").any(|part| holds(part, row));
    }
    condition.split(" and ").all(|part| {
        let text = |field: &str| row.get(field).and_then(Value::as_str);
        if let Some(field) = part.strip_prefix("ispresent(") {
            return row.contains_key(field.trim_end_matches(')'));
        }
        if let Some((field, list)) = part.split_once(" in [") {
            let list = list.trim_end_matches(']');
            return list.split(", ").any(|one| text(field) == Some(one.trim_matches('\'')));
        }
        let (field, value) = part.split_once(" = ").unwrap_or_else(|| panic!("{part} is not understood"));
        text(field) == Some(value.trim_matches('\''))
    })
}

fn stats(rest: &str, rows: &[Row]) -> Table {
    let (aggregates, keys) = rest.split_once(" by ").expect("by");
    let keys: Vec<_> = keys.split(", ").collect();
    let mut groups = BTreeMap::<Vec<String>, Vec<&Row>>::new();
    for row in rows {
        groups.entry(keys.iter().map(|key| of(key, row).to_string()).collect()).or_default().push(row);
    }
    let mut table = Table { columns: keys.iter().map(|key| (*key).to_owned()).collect(), rows: Vec::new() };
    let aggregates: Vec<_> = aggregates
        .split(", ")
        .map(|one| {
            let (function, name) = one.split_once(") as ").expect("a name");
            let (function, field) = function.split_once('(').expect("a function");
            (function, field, name)
        })
        .collect();
    table.columns.extend(aggregates.iter().map(|(_, _, name)| (*name).to_owned()));
    for group in groups.values() {
        let mut row: Row = keys.iter().map(|key| ((*key).to_owned(), of(key, group[0]))).collect();
        for (function, field, name) in &aggregates {
            row.insert((*name).to_owned(), aggregate(function, field, group));
        }
        table.rows.push(row);
    }
    table
}

/// A field, or the beginning of the five minutes in which the event lies.
fn of(key: &str, row: &Row) -> Value {
    if key != "bin(5m)" {
        return row.get(key).cloned().unwrap_or_default();
    }
    let time: jiff::Timestamp = row["@timestamp"].as_str().and_then(|time| time.parse().ok()).expect("a time");
    let begin = jiff::Timestamp::from_second(time.as_second() / 300 * 300).expect("a time");
    begin.to_string().into()
}

fn aggregate(function: &str, field: &str, rows: &[&Row]) -> Value {
    let values = || rows.iter().filter_map(|row| row.get(field));
    let value = match function {
        "count" => return rows.len().into(),
        "count_distinct" => return values().map(Value::to_string).collect::<BTreeSet<_>>().len().into(),
        "sum" => return values().filter_map(Value::as_f64).sum::<f64>().into(),
        "min" => values().min_by(|a, b| compare(a, b)),
        "max" => values().max_by(|a, b| compare(a, b)),
        // Of the latest event, also if it does not have the field.
        "latest" => rows.last().and_then(|row| row.get(field)),
        _ => panic!("{function} is not understood"),
    };
    value.cloned().unwrap_or_default()
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => a.as_str().cmp(&b.as_str()),
    }
}
