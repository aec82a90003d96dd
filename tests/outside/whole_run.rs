//! A run with every way in which an agent can end, for the tests of logs and metrics.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Response;
use jiff::{SignedDuration, Timestamp};
use local::aws::Fault;
use local::aws::ecs::{Behaviour, Task};
use serde_json::{Value, json};
use tests::{GROUP, Notice, Stack};

pub(crate) struct Run {
    pub(crate) stack: Stack,
    builds: u64,
    /// The part of the group's capacity that the functions did not raise.
    given: i64,
}

impl Run {
    async fn start() -> Self {
        let stack = Stack::with(|config| {
            config["clouds"][0]["idleInstanceTimeout"] = "10m".into();
            config["clouds"][0]["templates"][2]["maxAgents"] = 2.into();
        })
        .await;
        stack.aws().ecs.settings().boot = Duration::from_secs(3600);
        let mut run = Self { stack, builds: 0, given: 0 };
        run.given = run.capacity();
        run
    }

    /// A build requests agents. Returns the URL of its first webhook.
    async fn build(&mut self, id: &str, label: &str, more: Value) -> String {
        self.builds += 1;
        let urls: Vec<_> = (0..more["count"].as_u64().unwrap_or(1)).map(|_| self.stack.webhook()).collect();
        let mut request = json!({"requestId": id, "label": label, "webhookUrl": urls,
            "build": {"job": "app/main", "number": self.builds}});
        request.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        self.stack.ask(request);
        self.stack.settle().await;
        urls[0].clone()
    }

    async fn complete(&mut self, completion: Value) {
        self.stack.complete(completion);
        self.stack.settle().await;
    }

    /// The sweep some minutes from now.
    async fn sweep(&mut self, later: i64) {
        self.stack.sweep_at(Timestamp::now() + SignedDuration::from_mins(later)).await.unwrap();
        for queue in ["requests", "undelivered"] {
            self.stack.unhide(queue);
            self.stack.settle().await;
        }
    }

    /// The group's desired capacity, including what was given back.
    fn capacity(&self) -> i64 {
        let aws = self.stack.aws();
        let desired = i64::from(aws.ecs.group(GROUP).unwrap().desired);
        let ended = aws.calls("autoscaling", "TerminateInstanceInAutoScalingGroup");
        let lowered = ended.iter().filter(|call| call.input["ShouldDecrementDesiredCapacity"] == "true");
        desired + i64::try_from(lowered.count()).unwrap()
    }

    /// By how much the functions raised the group.
    pub(crate) fn raised(&self) -> i64 {
        self.capacity() - self.given
    }

    /// Somebody else sets the group's capacity.
    fn fill(&mut self, instances: u32) {
        let before = self.capacity();
        self.stack.aws().ecs.fill_group(GROUP, instances, Timestamp::now());
        self.given += self.capacity() - before;
    }

    fn task(&self, request: &str) -> Task {
        self.stack.tasks().into_iter().find(|task| request_of(task) == request).unwrap()
    }

    /// Makes a task older, as if it had been started so long ago.
    fn age(&self, request: &str, hours: i64) {
        let arn = self.task(request).arn;
        let mut aws = self.stack.aws();
        let task = aws.ecs.task_mut(&arn).unwrap();
        for time in [Some(&mut task.created_at), task.started_at.as_mut()].into_iter().flatten() {
            *time -= SignedDuration::from_hours(hours);
        }
    }

    /// A webhook answers once with this status.
    fn answer(&self, url: &str, status: u16) {
        let path = url.strip_prefix(self.stack.jenkins_root()).unwrap();
        let page = Response::builder().status(status).body(bytes::Bytes::new()).unwrap();
        self.stack.jenkins().script(path, [page]);
    }
}

/// The request that started a task.
pub(crate) fn request_of(task: &Task) -> String {
    let record: Value = serde_json::from_str(task.variable("JENKINS_ECS_AGENTS_REQUEST").unwrap()).unwrap();
    record["requestId"].as_str().unwrap().to_owned()
}

/// Builds that get their agents and complete, in each of the ways that a completion can name them.
async fn completed(run: &mut Run) {
    run.build("by-task", "maven", json!({})).await;
    let task = run.task("by-task");
    run.complete(json!({"taskArn": task.arn})).await;
    run.build("by-request", "dial", json!({})).await;
    run.complete(json!({"requestId": "by-request", "build": {"job": "app/main", "number": 2}})).await;
    run.build("by-name", "node", json!({})).await;
    let task = run.task("by-name");
    run.complete(json!({"agent": task.started_by})).await;
    run.build("three", "node", json!({"count": 3})).await;
    run.complete(json!({"requestId": "three"})).await;
}

/// Builds that can never get an agent.
async fn hopeless(run: &mut Run) {
    run.stack.aws().ecs.behave("jenkins-host", Behaviour::ImageMissing);
    run.build("no-image", "host", json!({})).await;
    run.build("no-template", "solaris", json!({})).await;
    run.build("no-override", "node", json!({"overrides": {"cpu": 4096}})).await;
    run.build("too-large", "maven", json!({"overrides": {"memory": 16384}})).await;
    run.stack.send("requests", "no JSON");
    run.stack.settle().await;
}

/// Calls and notices that fail at first.
async fn unlucky(run: &mut Run) {
    run.stack.aws().faults.script("ecs", "RunTask", std::iter::repeat_n(Some(Fault::throttled()), 3));
    run.build("throttled", "node", json!({})).await;
    run.stack.unhide("requests");
    run.stack.settle().await;
    let url = run.stack.webhook();
    run.answer(&url, 503);
    run.build("patient", "node", json!({"webhookUrl": url})).await;
    run.stack.unhide("undelivered");
    run.stack.settle().await;
    let url = run.stack.webhook();
    run.answer(&url, 410);
    run.build("unwanted", "node", json!({"webhookUrl": url})).await;
    for id in ["throttled", "patient"] {
        run.complete(json!({"requestId": id})).await;
    }
}

/// Builds that wait: for the end of another, for Fargate, for an instance; one in vain, and one that is aborted meanwhile.
async fn waiting(run: &mut Run) {
    for number in 1..=3 {
        run.build(&format!("limited-{number}"), "dial", json!({})).await;
    }
    run.complete(json!({"requestId": "limited-1"})).await;
    run.stack.aws().ecs.settings().fargate_has_capacity = false;
    run.build("no-fargate", "node", json!({})).await;
    run.stack.aws().ecs.settings().fargate_has_capacity = true;
    run.stack.unhide("waiting");
    run.sweep(0).await;
    for id in ["limited-2", "limited-3", "no-fargate"] {
        run.complete(json!({"requestId": id})).await;
    }
    run.build("burst", "maven", json!({"count": 5})).await;
    run.build("aborted", "maven", json!({})).await;
    run.stack.unhide("waiting");
    run.complete(json!({"requestId": "aborted"})).await;
    run.fill(2);
    run.stack.unhide("waiting");
    run.stack.settle().await;
    run.stack.unhide("requests");
    run.stack.settle().await;
    run.build("large", "maven", json!({"overrides": {"memory": 6000}})).await;
    run.stack.unhide("waiting");
    run.sweep(16).await;
    run.complete(json!({"requestId": "burst"})).await;
}

/// Agents that end without a completion.
async fn stopped(run: &mut Run) {
    run.build("spot", "node", json!({})).await;
    let task = run.task("spot");
    run.stack.aws().ecs.interrupt(&task.arn, Timestamp::now());
    run.stack.settle().await;
    run.build("old", "node", json!({})).await;
    run.age("old", 25);
    run.sweep(0).await;
    run.stack.aws().ecs.behave("jenkins-node", Behaviour::NeverRuns);
    run.build("never", "node", json!({})).await;
    run.age("never", 1);
    run.sweep(0).await;
    run.stack.aws().ecs.behave("jenkins-node", Behaviour::Runs);
    run.build("idle", "node", json!({})).await;
    let name = run.task("idle").started_by;
    run.stack.jenkins().connect_ssh(&name);
    for later in [0, 5, 11, 12, 20, 31, 32] {
        run.sweep(later).await;
    }
}

pub(crate) async fn whole_run() -> Run {
    let mut run = Run::start().await;
    completed(&mut run).await;
    hopeless(&mut run).await;
    unlucky(&mut run).await;
    waiting(&mut run).await;
    stopped(&mut run).await;
    run
}

/// The cause in an agent's stopped reason.
pub(crate) fn cause(tasks: &[Task], agent: &str) -> String {
    let task = tasks.iter().find(|task| task.started_by == agent).unwrap();
    let reason = task.stopped_reason.as_deref().unwrap();
    reason.split([':', ' ']).next().unwrap().to_owned()
}

/// All notices, each once, however often it was sent.
pub(crate) fn notices(stack: &Stack) -> Vec<Notice> {
    let mut ids = BTreeSet::new();
    stack.all_notices().into_iter().filter(|notice| ids.insert(notice.body["id"].to_string())).collect()
}
