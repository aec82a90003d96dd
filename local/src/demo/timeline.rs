//! One line per request, with the milliseconds from its post to each step: redrawn in place on a terminal, otherwise
//! printed when it is complete.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The steps of a request, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// ECS has a task for it.
    Task,
    /// The task's containers run.
    Running,
    /// Jenkins was notified, and has the node.
    Ready,
    /// The build on the agent has ended.
    Build,
    /// Jenkins has posted the completion.
    Completed,
    /// The task has stopped, and the node is gone.
    Stopped,
}

/// The headings of the steps.
pub(super) const STEPS: [&str; 6] = ["task", "running", "ready", "build", "completed", "stopped"];

/// All requests of the demo.
pub(super) struct Timelines {
    lines: Mutex<Lines>,
    redraw: AtomicBool,
}

#[derive(Default)]
struct Lines {
    lines: Vec<Line>,
    drawn: usize,
}

#[derive(Debug, Clone)]
struct Line {
    request: String,
    kind: &'static str,
    agent: String,
    start: Instant,
    at: [Option<Duration>; STEPS.len()],
    note: String,
}

impl Default for Timelines {
    fn default() -> Self {
        Self::new()
    }
}

impl Timelines {
    pub(super) fn new() -> Self {
        Self { lines: Mutex::default(), redraw: AtomicBool::new(std::io::stdout().is_terminal()) }
    }

    /// From now on, other lines are printed: nothing is redrawn any more.
    pub(super) fn settle(&self) {
        self.redraw.store(false, Ordering::Relaxed);
    }

    /// Prints the headings.
    pub(super) fn heading(&self) {
        let mut heading = format!("{:<10} {:<17} {:<30}", "request", "template", "agent");
        for step in STEPS {
            write!(heading, " {step:>10}").ok();
        }
        println!("\n{heading}   (ms since the request)");
    }

    /// A request was posted now.
    pub(super) fn begin(&self, request: &str, kind: &'static str) {
        let line = Line {
            request: request.to_owned(),
            kind,
            agent: String::new(),
            start: Instant::now(),
            at: [None; STEPS.len()],
            note: String::new(),
        };
        self.change(|lines| lines.push(line));
    }

    /// A request that was posted by hand was observed.
    pub(super) fn by_hand(&self, request: &str) {
        let known = self.lock().lines.iter().any(|line| line.request == request);
        if !known && !request.is_empty() {
            self.begin(request, "by hand");
        }
    }

    /// All requests, for the page; the newest first.
    pub(super) fn snapshot(&self) -> Vec<Value> {
        let lines = self.lock();
        let lines = lines.lines.iter().rev().map(|line| {
            let at: Vec<_> = line.at.iter().map(|at| at.map(|at| at.as_millis() as u64)).collect();
            json!({
                "request": line.request, "template": line.kind, "agent": line.agent, "at": at, "note": line.note,

            })
        });
        lines.collect()
    }

    /// The requests, each with its agent.
    pub(super) fn agents(&self) -> Vec<(String, String)> {
        self.lock().lines.iter().map(|line| (line.request.clone(), line.agent.clone())).collect()
    }

    /// A step was reached now. Only the first time counts: events may be repeated.
    pub(super) fn reached(&self, request: &str, step: Step) {
        self.with(request, |line| {
            line.at[step as usize].get_or_insert(line.start.elapsed());
        });
    }

    /// The request's agent is known.
    pub(super) fn agent(&self, request: &str, name: &str) {
        self.with(request, |line| name.clone_into(&mut line.agent));
    }

    /// Shows what the build printed, or what went wrong.
    pub(super) fn note(&self, request: &str, note: &str) {
        self.with(request, |line| note.clone_into(&mut line.note));
    }

    /// The request has ended: outside a terminal, its line is printed.
    pub(super) fn end(&self, request: &str) {
        if !self.redraw.load(Ordering::Relaxed) {
            let lines = self.lock();
            if let Some(line) = lines.lines.iter().find(|line| line.request == request) {
                println!("{}", render(line));
            }
        }
    }

    /// The times of a step over all requests that reached it, shortest first.
    pub(super) fn times(&self, step: Step) -> Vec<Duration> {
        let mut times: Vec<_> = self.lock().lines.iter().filter_map(|line| line.at[step as usize]).collect();
        times.sort();
        times
    }

    fn with(&self, request: &str, change: impl FnOnce(&mut Line)) {
        self.change(|lines| {
            if let Some(line) = lines.iter_mut().find(|line| line.request == request) {
                change(line);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Line>)) {
        let mut lines = self.lock();
        change(&mut lines.lines);
        if self.redraw.load(Ordering::Relaxed) {
            // Without wrapping, so that a line stays one line in a narrow window.
            let mut text = String::from("\x1b[?7l");
            if lines.drawn > 0 {
                write!(text, "\x1b[{}A", lines.drawn).ok();
            }
            for line in &lines.lines {
                writeln!(text, "\x1b[2K{}", render(line)).ok();
            }
            lines.drawn = lines.lines.len();
            print!("{text}\x1b[?7h");
            std::io::stdout().flush().ok();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn render(line: &Line) -> String {
    let mut text = format!("{:<10} {:<17} {:<30}", line.request, line.kind, line.agent);
    for at in line.at {
        match at {
            Some(at) => write!(text, " {:>10}", at.as_millis()).ok(),
            None => write!(text, " {:>10}", "·").ok(),
        };
    }
    if !line.note.is_empty() {
        write!(text, "   {}", line.note).ok();
    }
    text
}

/// The p-th percentile (0 to 100) of sorted times, nearest rank.
pub(super) fn percentile(sorted: &[Duration], p: usize) -> Duration {
    let rank = (sorted.len() * p).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_use_the_nearest_rank() {
        let times: Vec<_> = (1..=20).map(Duration::from_millis).collect();
        for (p, expected) in [(0, 1), (50, 10), (95, 19), (100, 20)] {
            assert_eq!(percentile(&times, p), Duration::from_millis(expected), "{p}");
        }
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_step_counts_once() {
        let timelines = Timelines { lines: Mutex::default(), redraw: AtomicBool::new(false) };
        timelines.begin("a", "x");
        timelines.reached("a", Step::Task);
        let first = timelines.times(Step::Task);
        std::thread::sleep(Duration::from_millis(2));
        timelines.reached("a", Step::Task);
        assert_eq!(timelines.times(Step::Task), first);
        assert!(timelines.times(Step::Stopped).is_empty());
    }
}
