//! The story of each request in the functions' logs: its lines, and how it ended.
//!
//! A line belongs to a request if it has its `request.id`, or the `agent.name` or `task.arn` of one of its agents. The line
//! `task started`, which has all three, says which these are, as in the saved query of template.yaml.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::logs::Line;

/// Fields that are the same on most lines of a story.
const IDS: [&str; 6] = ["request.id", "build.job", "build.number", "agent.name", "task.arn", "notice.id"];

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Story<'l> {
    /// Its id.
    pub request: &'l str,
    /// Job and number of its build, where it names them.
    pub build: Option<(&'l str, u64)>,
    /// Its agents that have, or had, a task.
    pub agents: Vec<Agent<'l>>,
    /// The number of other agents that failed, by code.
    pub failed: BTreeMap<&'l str, u64>,
    /// Whether a completion took it out of the waiting queue.
    pub is_withdrawn: bool,
    /// In order of time.
    pub lines: Vec<&'l Line>,
}

/// An agent that has, or had, a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent<'l> {
    /// Its name.
    pub name: &'l str,
    /// The ARN of its task.
    pub task: &'l str,
    /// From the request to the notice that it is ready.
    pub ready_ms: Option<u64>,
    /// The code of its failure, or why it was stopped.
    pub end: Option<&'l str>,
}

/// The stories of all requests, in the order in which they began.
pub fn stories(lines: &[Line]) -> Vec<Story<'_>> {
    let mut lines: Vec<&Line> = lines.iter().filter(|line| !line.message().is_empty()).collect();
    // All times have the same format, so they sort as text.
    lines.sort_by_key(|line| line.field("timestamp"));
    let mut stories: Vec<Story<'_>> = Vec::new();
    let mut places = HashMap::new();
    for line in &lines {
        let request = line.field("request.id");
        if !request.is_empty() {
            let place = *places.entry(("request.id", request)).or_insert(stories.len());
            if place == stories.len() {
                stories.push(Story::new(request));
            }
            if line.message() == "task started" {
                for id in ["agent.name", "task.arn"] {
                    places.insert((id, line.field(id)), place);
                }
            }
        }
    }
    for line in lines {
        let of = |id| places.get(&(id, line.field(id))).copied();
        let places: BTreeSet<usize> = ["request.id", "agent.name", "task.arn"].into_iter().filter_map(of).collect();
        for place in places {
            stories[place].add(line);
        }
    }
    stories
}

/// The stories of a request, of all requests of a build (`JOB#NUMBER`), or of an agent.
pub fn find<'s, 'l>(stories: &'s [Story<'l>], what: &str) -> Vec<&'s Story<'l>> {
    stories.iter().filter(|story| story.is_called(what)).collect()
}

impl<'l> Story<'l> {
    fn new(request: &'l str) -> Self {
        Self {
            request,
            build: None,
            agents: Vec::new(),
            failed: BTreeMap::new(),
            is_withdrawn: false,
            lines: Vec::new(),
        }
    }

    fn add(&mut self, line: &'l Line) {
        self.lines.push(line);
        if let Some(number) = line.number("build.number") {
            self.build.get_or_insert((line.field("build.job"), number));
        }
        let (name, task) = (line.field("agent.name"), line.field("task.arn"));
        let agent = self.agents.iter_mut().find(|agent| agent.task == task);
        match (line.message(), agent) {
            ("task started", None) => self.agents.push(Agent { name, task, ready_ms: None, end: None }),
            ("agent ready", Some(agent)) => agent.ready_ms = agent.ready_ms.or(line.number("ready_ms").or(Some(0))),
            ("agent ended", Some(agent)) => {
                let end = [line.field("code"), line.field("cause")].into_iter().find(|end| !end.is_empty());
                agent.end = agent.end.or(end);
            }
            ("request failed", _) => {
                *self.failed.entry(line.field("code")).or_default() += line.number("agents_failed").unwrap_or_default();
            }
            (message, _) if message.starts_with("request withdrawn") => self.is_withdrawn = true,
            _ => {}
        }
    }

    fn is_called(&self, what: &str) -> bool {
        let of_build = self.build.is_some_and(|(job, number)| what.strip_prefix(job) == Some(&format!("#{number}")));
        of_build || self.request == what || self.agents.iter().any(|agent| [agent.name, agent.task].contains(&what))
    }

    /// Its end, or its state if it has not ended.
    pub fn end(&self) -> String {
        let mut ends = BTreeMap::<String, u64>::new();
        for agent in &self.agents {
            *ends.entry(agent.end()).or_default() += 1;
        }
        for (code, agents) in &self.failed {
            *ends.entry(format!("failed {code}")).or_default() += agents;
        }
        if self.is_withdrawn {
            ends.insert("withdrawn".into(), 1);
        }
        let ends: Vec<_> =
            ends.into_iter().map(|(end, count)| if count > 1 { format!("{count} times {end}") } else { end }).collect();
        let last = self.lines.iter().rev().find(|line| line.message().starts_with("request "));
        match (ends.is_empty(), last) {
            (false, _) => ends.join(", "),
            (true, Some(line)) => line.message().trim_start_matches("request ").to_owned(),
            (true, None) => "no request".into(),
        }
    }

    /// One line for a list.
    pub fn summary(&self) -> String {
        let build = self.build.map(|(job, number)| format!("{job}#{number}")).unwrap_or_default();
        let agents: Vec<_> = self.agents.iter().map(|agent| agent.name).collect();
        format!("{:<28} {build:<20} {:<36} {}", self.request, self.end(), agents.join(" ")).trim_end().to_owned()
    }

    /// Its lines, for people.
    pub fn text(&self) -> String {
        let build = self.build.map(|(job, number)| format!(", build {job}#{number}")).unwrap_or_default();
        let mut text = format!("{}{build}: {}\n", self.request, self.end());
        for agent in &self.agents {
            text.push_str(&format!("agent {}, task {}\n", agent.name, agent.task));
        }
        for line in &self.lines {
            // The time of day, with milliseconds.
            let time = line.field("timestamp").get(11..23).unwrap_or_default();
            let (level, message) = (line.field("level"), line.message());
            // The name of a single agent is in the heading.
            let agent = if self.agents.len() > 1 { line.field("agent.name") } else { "" };
            let details = [agent.to_owned(), line.details(&IDS)].into_iter().filter(|text| !text.is_empty());
            let details = details.collect::<Vec<_>>().join("; ");
            let line = format!("{time} {:<10} {level:<5} {message:<28} {details}", line.function);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl Agent<'_> {
    fn end(&self) -> String {
        match (self.ready_ms, self.end) {
            (None, None) => "starting".into(),
            (None, Some(end)) => format!("failed {end}"),
            (Some(_), None) => "ready".into(),
            (Some(_), Some(end)) => format!("ready, then {end}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(function: &str, second: u32, message: &str, fields: serde_json::Value) -> Line {
        let mut line = fields;
        line["timestamp"] = format!("2026-01-01T00:00:{second:02}.000000Z").into();
        line["level"] = "INFO".into();
        line["message"] = message.into();
        Line::new(function, &line.to_string())
    }

    /// Without cargo or anything else to build with.
    #[test]
    fn the_script_answers_help_and_wrong_arguments_at_once() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/story");
        let usage = include_str!("story/usage.txt");
        let tools = tempfile::tempdir().expect("a folder");
        for tool in ["cat", "mkdir", "dirname"] {
            let found = ["/usr/bin", "/bin"].map(|folder| std::path::PathBuf::from(folder).join(tool));
            let found = found.iter().find(|path| path.exists()).expect(tool);
            std::os::unix::fs::symlink(found, tools.path().join(tool)).expect(tool);
        }
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new("/bin/bash");
            let output = command.arg(script).args(arguments).env("PATH", tools.path()).output().expect("bash");
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            (output.status.success(), text)
        };
        assert_eq!(run(&["demo-1", "--help"]), (true, usage.to_owned()));
        for wrong in [&["--fast"][..], &["--logs"], &["a", "b"], &[""]] {
            let (is_fine, text) = run(wrong);
            assert!(!is_fine && text.contains(usage), "{wrong:?}: {text}");
        }
        let (is_fine, text) = run(&["--logs", "/nowhere"]);
        assert!(!is_fine && text.contains("/nowhere is no folder"), "{text}");
    }

    #[test]
    fn lines_are_joined_by_the_launch() {
        let (a, b) =
            (json!({"request.id": "a", "build.job": "app/main", "build.number": 7}), json!({"request.id": "b"}));
        let ids = json!({"request.id": "a", "agent.name": "ecs-1", "task.arn": "arn:1"});
        let mut ready = ids.clone();
        ready["ready_ms"] = 1400.into();
        let mut ended = ids.clone();
        ended["cause"] = "COMPLETED".into();
        let lines = [
            line("teardown", 9, "node deleted", json!({"agent.name": "ecs-1"})),
            line("teardown", 8, "agent ended", ended),
            line("request", 3, "request failed", json!({"request.id": "b", "code": "NO_TEMPLATE", "agents_failed": 2})),
            line("request", 1, "request waits", a),
            line("request", 2, "task started", ids),
            line("task-state", 4, "agent ready", ready),
            line("task-state", 5, "notice delivered", json!({"task.arn": "arn:1"})),
            line("teardown", 6, "sweep", json!({})),
            line("request", 2, "request waits", b),
            Line::new("request", "START RequestId: 1"),
        ];
        let stories = stories(&lines);
        let ends: Vec<_> = stories.iter().map(|story| (story.request, story.end())).collect();
        assert_eq!(ends, [("a", "ready, then COMPLETED".to_owned()), ("b", "2 times failed NO_TEMPLATE".to_owned())]);
        let messages = |story: &Story<'_>| story.lines.iter().map(|line| line.message().to_owned()).collect::<Vec<_>>();
        let of_a = ["request waits", "task started", "agent ready", "notice delivered", "agent ended", "node deleted"];
        assert_eq!(messages(&stories[0]), of_a);
        for what in ["a", "app/main#7", "ecs-1", "arn:1"] {
            let found: Vec<_> = find(&stories, what).iter().map(|story| story.request).collect();
            assert_eq!(found, ["a"], "{what}");
        }
        assert!(find(&stories, "app/main#8").is_empty());
        let text = stories[0].text();
        assert!(
            text.contains("\n00:00:04.000 task-state INFO  agent ready                  ready_ms 1400\n"),
            "{text}"
        );
    }
}
