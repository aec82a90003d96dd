//! CloudWatch's metrics, math expressions and alarms, as far as the templates use them.
//!
//! The rules are those of the CloudWatch user guide: "Alarm evaluation", "Configuring how CloudWatch alarms treat missing data"
//! and "Using math expressions".

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;
use local::aws::{Counts, Sqs};
use serde_json::Value;

/// How many data points more than an alarm's evaluation periods CloudWatch looks at. It does not say how many; in the guide's
/// examples there are five for three.
const MORE_POINTS: u64 = 2;

/// The identity of a metric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Metric {
    /// `AWS/SQS`
    pub namespace: String,
    /// `NumberOfMessagesReceived`
    pub name: String,
    /// All of them: a metric with other dimensions is another metric.
    pub dimensions: BTreeMap<String, String>,
}

impl Metric {
    /// A metric with one dimension, as most of AWS' own have.
    pub fn of(namespace: &str, name: &str, (dimension, value): (&str, &str)) -> Self {
        let dimensions = [(dimension.to_owned(), value.to_owned())].into();
        Self { namespace: namespace.to_owned(), name: name.to_owned(), dimensions }
    }

    /// The metric of an alarm, or of a `MetricStat` in one.
    pub fn read(definition: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let dimensions = definition["Dimensions"].as_array().into_iter().flatten();
        Self {
            namespace: text(&definition["Namespace"]),
            name: text(&definition["MetricName"]),
            dimensions: dimensions.map(|one| (text(&one["Name"]), text(&one["Value"]))).collect(),
        }
    }
}

/// Reported values, by the minute.
#[derive(Debug, Default)]
pub struct Metrics {
    values: BTreeMap<Metric, BTreeMap<u64, Vec<f64>>>,
    /// What each queue had counted by the minute before.
    counted: BTreeMap<String, Counts>,
}

impl Metrics {
    /// Reports a value.
    pub fn put(&mut self, metric: Metric, minute: u64, value: f64) {
        self.values.entry(metric).or_default().entry(minute).or_default().push(value);
    }

    /// Reports the metrics of SQS ("Available CloudWatch metrics for Amazon SQS"): most of them only if there is something to
    /// count, and none of a queue that was never used.
    pub fn put_queues(&mut self, sqs: &Sqs, minute: u64, now: Timestamp) {
        for (name, queue) in &sqs.queues {
            let before = self.counted.insert(name.clone(), queue.counts).unwrap_or_default();
            let mut put = |metric: &str, value: usize| {
                self.put(Metric::of("AWS/SQS", metric, ("QueueName", name)), minute, value as f64);
            };
            let hidden = queue.messages.iter().filter(|message| message.visible_at > now);
            let (in_flight, delayed): (Vec<_>, Vec<_>) = hidden.partition(|message| message.receives > 0);
            if queue.counts.receives > 0 || !queue.messages.is_empty() {
                let visible = queue.messages.len() - in_flight.len() - delayed.len();
                put("ApproximateNumberOfMessagesVisible", visible);
            }
            for (metric, count) in [
                ("ApproximateNumberOfMessagesNotVisible", in_flight.len()),
                ("ApproximateNumberOfMessagesDelayed", delayed.len()),
                ("NumberOfMessagesDeleted", queue.counts.deleted - before.deleted),
            ] {
                if count > 0 {
                    put(metric, count);
                }
            }
            if queue.counts.receives > before.receives {
                put("NumberOfMessagesReceived", queue.counts.received - before.received);
            }
        }
    }

    /// The metrics of a name that have exactly these dimensions, as a search expression finds them.
    pub fn search(&self, namespace: &str, dimensions: &[&str], name: &str) -> impl Iterator<Item = &Metric> {
        self.values.keys().filter(move |metric| {
            let has = dimensions.iter().all(|dimension| metric.dimensions.contains_key(*dimension));
            metric.namespace == namespace && metric.name == name && has && metric.dimensions.len() == dimensions.len()
        })
    }

    /// One data point; `None` if nothing was reported.
    pub fn statistic(&self, metric: &Metric, statistic: &str, minutes: Range<u64>) -> Option<f64> {
        let mut values: Vec<f64> =
            self.values.get(metric)?.range(minutes).flat_map(|(_, values)| values).copied().collect();
        let sum: f64 = values.iter().sum();
        let count = values.len() as f64;
        (!values.is_empty()).then(|| match statistic {
            "Sum" => sum,
            "SampleCount" => count,
            "p50" | "p95" | "p99" => {
                values.sort_by(f64::total_cmp);
                let part: f64 = statistic[1..].parse().expect("a number");
                values[((count * part / 100.0).ceil() as usize).saturating_sub(1)]
            }
            "Average" => sum / count,
            "Minimum" => values.iter().copied().fold(f64::INFINITY, f64::min),
            "Maximum" => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            other => panic!("the statistic {other} is not understood"),
        })
    }
}

/// An alarm's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `OK`
    Ok,
    /// `ALARM`
    Alarm,
    /// `INSUFFICIENT_DATA`, in which every alarm begins.
    InsufficientData,
}

/// The first minute in which an alarm changes to a state, other than `OK`, for which it has actions.
pub fn fires(alarm: &Value, metrics: &Metrics, until: u64) -> Option<u64> {
    let mut before = State::InsufficientData;
    (1..=until).filter(|minute| minute % period(alarm) == 0).find(|&minute| {
        let now = state(alarm, metrics, minute);
        let actions = match now {
            State::Ok => &Value::Null,
            State::Alarm => &alarm["AlarmActions"],
            State::InsufficientData => &alarm["InsufficientDataActions"],
        };
        std::mem::replace(&mut before, now) != now && actions.as_array().is_some_and(|actions| !actions.is_empty())
    })
}

/// An alarm's period in minutes.
fn period(alarm: &Value) -> u64 {
    let metrics = alarm["Metrics"].as_array().into_iter().flatten();
    let seconds = metrics.map(|metric| &metric["MetricStat"]["Period"]).find_map(Value::as_u64);
    seconds.or(alarm["Period"].as_u64()).expect("a period") / 60
}

/// An alarm's state at the end of a period.
pub fn state(alarm: &Value, metrics: &Metrics, minute: u64) -> State {
    let periods = alarm["EvaluationPeriods"].as_u64().expect("EvaluationPeriods");
    let to_alarm = alarm["DatapointsToAlarm"].as_u64().unwrap_or(periods);
    let period = period(alarm);
    let threshold = alarm["Threshold"].as_f64().expect("Threshold");
    let breaches = |value: f64| match alarm["ComparisonOperator"].as_str() {
        Some("GreaterThanThreshold") => value > threshold,
        Some("LessThanThreshold") => value < threshold,
        other => panic!("the operator {other:?} is not understood"),
    };
    let point = |back: u64| {
        let end = minute.checked_sub(back * period)?;
        value(alarm, metrics, end.checked_sub(period)?..end).map(breaches)
    };
    let points: Vec<_> = (0..periods + MORE_POINTS).map(point).collect();
    evaluate(&points, (to_alarm as usize, periods as usize), alarm["TreatMissingData"].as_str().unwrap_or("missing"))
}

/// The state that follows from data points, the newest first: whether each breaches the threshold, `None` if it is
/// missing. So many of so many periods have to breach it.
fn evaluate(points: &[Option<bool>], (to_alarm, periods): (usize, usize), missing: &str) -> State {
    let real: Vec<bool> = points.iter().flatten().copied().take(periods).collect();
    let breaching = real.iter().filter(|breaches| **breaches).count();
    let is_alarm = match (missing, real.len()) {
        (_, count) if count == periods => breaching >= to_alarm,
        ("notBreaching", _) => breaching >= to_alarm,
        ("missing", 0) => return State::InsufficientData,
        // "Avoiding premature transitions to alarm state"
        ("missing", count) if to_alarm == periods => {
            breaching == count && points.iter().rposition(Option::is_some) >= Some(periods - 1)
        }
        (other, _) => panic!("{other} is not understood"),
    };
    if is_alarm { State::Alarm } else { State::Ok }
}

/// An alarm's value of one period: of its metric, or of its expression over several.
fn value(alarm: &Value, metrics: &Metrics, minutes: Range<u64>) -> Option<f64> {
    let Some(queries) = alarm["Metrics"].as_array() else {
        return metrics.statistic(&Metric::read(alarm), alarm["Statistic"].as_str()?, minutes);
    };
    let known = queries.iter().filter_map(|query| {
        let of = &query["MetricStat"];
        let value = metrics.statistic(&Metric::read(&of["Metric"]), of["Stat"].as_str()?, minutes.clone());
        Some((query["Id"].as_str()?, value))
    });
    let known = known.collect();
    let expression = queries.iter().find_map(|query| query["Expression"].as_str()).expect("an expression");
    math(expression, known, period(alarm) * 60)
}

/// A math expression over the values of one period of so many seconds.
pub fn math(expression: &str, known: BTreeMap<&str, Option<f64>>, seconds: u64) -> Option<f64> {
    let mut math = Math { tokens: tokens(expression), at: 0, known, seconds };
    let value = math.comparison();
    assert_eq!(math.at, math.tokens.len(), "{expression} is not understood");
    value
}

fn tokens(expression: &str) -> Vec<String> {
    let spaced = ["(", ")", ",", "+", "*", "/", "==", ">"]
        .iter()
        .fold(expression.to_owned(), |text, sign| text.replace(sign, &format!(" {sign} ")));
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// The part of CloudWatch's metric math that the templates use. An operation on a missing data point has no result.
struct Math<'a> {
    tokens: Vec<String>,
    at: usize,
    known: BTreeMap<&'a str, Option<f64>>,
    seconds: u64,
}

impl Math<'_> {
    fn next(&mut self) -> String {
        self.at += 1;
        self.tokens[self.at - 1].clone()
    }

    fn take(&mut self, sign: &str) -> bool {
        let taken = self.tokens.get(self.at).is_some_and(|token| token == sign);
        self.at += usize::from(taken);
        taken
    }

    fn comparison(&mut self) -> Option<f64> {
        let left = self.sum();
        for (sign, holds) in [(">", (|a, b| a > b) as fn(f64, f64) -> bool), ("==", |a, b| a == b)] {
            if self.take(sign) {
                let right = self.sum();
                return left.zip(right).map(|(left, right)| f64::from(u8::from(holds(left, right))));
            }
        }
        left
    }

    fn sum(&mut self) -> Option<f64> {
        let mut sum = self.product();
        while self.take("+") {
            sum = sum.zip(self.product()).map(|(a, b)| a + b);
        }
        sum
    }

    fn product(&mut self) -> Option<f64> {
        let mut product = self.atom();
        loop {
            product = match (self.take("*"), self.take("/")) {
                (true, _) => product.zip(self.atom()).map(|(a, b)| a * b),
                (_, true) => product.zip(self.atom()).map(|(a, b)| a / b),
                _ => return product,
            };
        }
    }

    fn arguments(&mut self) -> Vec<Option<f64>> {
        assert!(self.take("("));
        let mut arguments = vec![self.comparison()];
        while self.take(",") {
            arguments.push(self.comparison());
        }
        assert!(self.take(")"));
        arguments
    }

    fn atom(&mut self) -> Option<f64> {
        match self.next().as_str() {
            "IF" => {
                let arguments = self.arguments();
                if arguments[0]? == 0.0 { arguments[2] } else { arguments[1] }
            }
            "PERIOD" => {
                self.arguments();
                Some(self.seconds as f64)
            }
            "FILL" => {
                let arguments = self.arguments();
                arguments[0].or(arguments[1])
            }
            token => match token.parse() {
                Ok(number) => Some(number),
                Err(_) => *self.known.get(token).unwrap_or_else(|| panic!("{token} is not understood")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the guide's two tables, the newest data point last: the state with missing data as `missing`, and as
    /// `notBreaching`.
    #[test]
    fn data_points_give_the_state_that_the_guide_shows() {
        use State::{Alarm, InsufficientData, Ok};
        for (points, as_missing, as_good) in [
            ("0-X-X", Ok, Ok),
            ("0----", Ok, Ok),
            ("-----", InsufficientData, Ok),
            ("0XX-X", Alarm, Alarm),
            ("--X--", Alarm, Ok),
            ("---X-", Ok, Ok),
            ("----X", Ok, Ok),
        ] {
            let read: Vec<_> = points.chars().rev().map(|point| (point != '-').then_some(point == 'X')).collect();
            assert_eq!(evaluate(&read, (3, 3), "missing"), as_missing, "{points}");
            assert_eq!(evaluate(&read, (3, 3), "notBreaching"), as_good, "{points}");
        }
        // Two of three.
        for (points, as_good) in [("0-X-X", Alarm), ("00X0X", Alarm), ("0-X--", Ok), ("----0", Ok), ("---X-", Ok)] {
            let read: Vec<_> = points.chars().rev().map(|point| (point != '-').then_some(point == 'X')).collect();
            assert_eq!(evaluate(&read, (2, 3), "notBreaching"), as_good, "{points}");
        }
    }
}
