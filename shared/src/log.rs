//! Logs as Lambda's advanced logging controls want them.

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging. The runtime's own JSON has no timestamp, without which Lambda takes every line for INFO.
///
/// The level is for our own words: the SDK's DEBUG shows whole requests, secrets and all, and stays off.
pub fn init(environment: &dyn Fn(&str) -> Option<String>) {
    let level = match environment("AWS_LAMBDA_LOG_LEVEL").unwrap_or_default().to_ascii_uppercase().as_str() {
        "TRACE" => LevelFilter::TRACE,
        "DEBUG" => LevelFilter::DEBUG,
        "WARN" => LevelFilter::WARN,
        "ERROR" | "FATAL" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    };
    let ours = ["shared", "request", "task_state", "teardown"];
    let filter = Targets::new().with_default(LevelFilter::ERROR).with_targets(ours.map(|name| (name, level)));
    let layer = tracing_subscriber::fmt::layer().with_span_events(FmtSpan::NONE).with_target(false);
    let layer = match environment("AWS_LAMBDA_LOG_FORMAT").unwrap_or_default().to_ascii_uppercase().as_str() {
        "TEXT" => layer.without_time().with_ansi(false).boxed(),
        _ => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    // A second call, as in tests, changes nothing.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
