//! Rules for every line of the functions' logs. Each test from outside checks them at its end.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The fields that say whose a line is.
pub const IDS: [&str; 3] = ["request.id", "agent.name", "task.arn"];

/// The fields of a line about a cloud, its group, or an instance.
const PLACES: [&str; 4] = ["cloud", "group", "container_instance.arn", "ec2.instance"];

/// Messages about no agent and none of these.
const OF_NOTHING: [&str; 12] = [
    "event ignored",
    "event of ECS not understood; the sweep makes up for it",
    "counts of the invocation",
    "the invocation failed",
    "waiting requests not woken; the next sweep wakes them",
    "not all waiting requests were read; later looks read the others",
    "waiting requests not counted; the sweep raises the group for them",
    "waiting requests stay hidden from other functions for up to 90 s",
    "the waiting queue could not be read; no instance is given back",
    "the sweep's time is nearly over; the next sweep does the rest",
    "whether records of notices are pending is not known; no notice is repeated",
    "Jenkins could not be asked for its nodes: no agent is stopped as idle",
];

/// Messages about a record that cannot be read and names nobody.
const OF_UNREADABLE: [&str; 6] = [
    "request failed",
    "notice delivered",
    "request woken: there may be room for it",
    "completion rejected",
    "undelivered message rejected",
    "message tried again later",
];

/// Messages about a record that names a task, logged before ECS described it.
const OF_NAMED_TASKS: [&str; 3] =
    ["completion rejected", "message tried again later", "task no longer known to ECS: nothing is left to stop"];

/// The fields by which faults differ, besides the ids.
const FAULT: [&str; 5] = ["aws.request_id", "message.id", "notice.id", "notice.to", "error"];

/// All messages for which there are exceptions.
pub fn exceptions() -> impl Iterator<Item = &'static str> {
    OF_NOTHING.into_iter().chain(OF_UNREADABLE).chain(OF_NAMED_TASKS)
}

/// The violations of the rules in the output of processes. No line may contain one of the `secrets`.
pub fn violations(outputs: &[String], secrets: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for line in outputs.iter().flat_map(|output| output.lines()) {
        found.extend(secrets.iter().filter(|secret| line.contains(*secret)).map(|_| format!("a secret: {line}")));
    }
    let processes: Vec<Vec<Value>> = outputs.iter().map(|output| lines(output)).collect();
    let launches = launches(processes.iter().flatten());
    for process in &processes {
        let mut faults = BTreeSet::new();
        let mut requests = BTreeMap::new();
        for line in process {
            let mut report = |rule: &str| found.push(format!("{rule}: {line}"));
            if !is_flat(line) {
                report("neither flat nor complete");
            }
            if !is_somebodys(line, true) {
                report("nobody's");
            }
            let record = ["aws.request_id", "message.id"].map(|id| text(line, id));
            if !record[1].is_empty() {
                let request = requests.entry(record).or_insert("");
                match (*request, text(line, "request.id")) {
                    (known, "") if !known.is_empty() => report("without the request, which was known"),
                    (_, now) => *request = now,
                }
            }
            if let Some(launch) = launches.get(text(line, "task.arn"))
                && text(launch, "timestamp") <= text(line, "timestamp")
                && !OF_NAMED_TASKS.contains(&text(line, "message"))
                && IDS.iter().any(|id| line[*id] != launch[*id])
            {
                report("not as its launch has it");
            }
            let fault = FAULT.into_iter().chain(IDS).chain(PLACES);
            let mut fault: Vec<_> = fault.map(|field| text(line, field)).collect();
            match text(line, "level") {
                // One outage may have several consequences.
                "WARN" => fault.push(text(line, "message")),
                "ERROR" => {}
                _ => continue,
            }
            if is_somebodys(line, false) && !faults.insert(fault) {
                report("a fault twice");
            }
        }
    }
    found
}

/// The lines of a process that are JSON; others are the runtime's, or say why it could not start.
pub fn lines(output: &str) -> Vec<Value> {
    output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A field that is a text; empty if there is none.
pub fn text<'l>(line: &'l Value, field: &str) -> &'l str {
    line[field].as_str().unwrap_or_default()
}

fn launches<'l>(lines: impl Iterator<Item = &'l Value>) -> BTreeMap<&'l str, &'l Value> {
    lines.filter(|line| line["message"] == "task started").map(|line| (text(line, "task.arn"), line)).collect()
}

/// Whether all fields are plain, except those for CloudWatch's metrics, and none is missing that every line has.
fn is_flat(line: &Value) -> bool {
    let is_plain = |(name, value): (&String, &Value)| name == "_aws" || !value.is_object() && !value.is_array();
    let is_complete = ["timestamp", "level", "message"].iter().all(|field| !text(line, field).is_empty());
    is_complete && line.as_object().is_some_and(|fields| fields.iter().all(is_plain))
}

/// Whether a line says whose it is; with `or_nobodys`, or need not.
fn is_somebodys(line: &Value, or_nobodys: bool) -> bool {
    let of_record = ["message.id", "notice.id"];
    let has = |names: &[&str]| names.iter().any(|name| line.get(*name).is_some());
    let message = text(line, "message");
    let is_nobodys = || OF_UNREADABLE.contains(&message) || (OF_NOTHING.contains(&message) && !has(&of_record));
    has(&IDS) || (has(&PLACES) && !has(&of_record)) || (or_nobodys && is_nobodys())
}
