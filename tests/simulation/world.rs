//! The world around the handlers: AWS' event sources, EventBridge, and a controller with its builds.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use local::aws::ecs::Task;
use local::aws::{Aws, Message};
use local::jenkins::{Jenkins, Launcher, Permission};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use shared::app::App;
use shared::batch::Invocation;
use shared::clock::Clock;
use shared::http::Http;
use tests::cloudwatch::{Metric, Metrics};
use tests::rule_matches;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::traits::Trait;

const REGION: &str = "eu-west-1";
const ACCOUNT: &str = "123456789012";
/// The time at which each world begins.
pub(crate) const EPOCH: &str = "2026-03-02T00:00:00Z";

thread_local! {
    static BEGIN: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
}

/// The time in this thread's world, for its log.
pub(crate) fn now_here() -> Timestamp {
    let (epoch, start) = BEGIN.get().expect("a world");
    epoch + SignedDuration::try_from(start.elapsed()).unwrap_or_default()
}

/// The parameters of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The seed, which repeats it.
    pub seed: u64,
    /// The number of builds.
    pub builds: u32,
    /// The probability of each fault.
    pub faults: f64,
    /// The relative number of builds in each hour of the day.
    pub curve: Vec<f64>,
    /// The span in which builds begin.
    pub span: Duration,
    /// The shortest and longest duration of a build.
    pub build: (Duration, Duration),
    /// The configuration.
    pub config: String,
    /// The group's bounds.
    pub bounds: (u32, u32),
    /// From a raised desired capacity to a running instance.
    pub boot: Duration,
    /// The traits of AWS.
    pub traits: Vec<Trait>,
}

/// The result of a build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fate {
    /// The request's id.
    pub request: String,
    /// The requested label.
    pub label: &'static str,
    /// The time of the request, since the beginning.
    pub asked_at: Duration,
    /// The duration of the build.
    pub takes: Duration,
    /// From the request to the ready agent.
    pub waited: Option<Duration>,
    /// Whether it was aborted while it waited.
    pub aborted: bool,
    /// Whether it was completed on its agent.
    pub built: bool,
    /// The message of a failure.
    pub failure: Option<String>,
    /// The agent that it got, or that failed.
    pub(crate) agent: Option<String>,
    /// The address that Jenkins got, if it is wrong.
    pub astray: Option<String>,
}

/// AWS and Jenkins.
pub(crate) struct Sim {
    pub aws: Aws,
    pub jenkins: Jenkins,
    random: StdRng,
    faults: f64,
    /// Whether all builds have ended.
    is_calm: bool,
    /// The ids of the notices whose delivery was acknowledged to the function.
    pub(crate) acknowledged: HashSet<String>,
    /// The number of calls of each action, by `function service:Action`.
    pub calls: BTreeMap<String, usize>,
    /// The number of processes of each function.
    pub(crate) processes: BTreeMap<&'static str, usize>,
    /// The agents whose instance was terminated before they had ended.
    pub(crate) lost: HashSet<String>,
    /// The requests of which there was more than one message: sent again, or twice at once in the queues.
    pub(crate) copied: HashSet<String>,
    /// The requests of which a message was processed that ECS had refused before.
    pub(crate) refused: HashSet<String>,
}

impl Sim {
    /// Notes what is to be known of the copies of a received request.
    fn note_received(&mut self, message: &Message) {
        let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
        let request = body["requestId"].as_str().unwrap_or_default().to_owned();
        let id = format!(r#""requestId":"{request}""#);
        let queued = ["requests", "waiting"].into_iter().flat_map(|queue| self.aws.sqs.messages(queue));
        if queued.filter(|other| other.body.contains(&id)).count() > 1 {
            self.copied.insert(request.clone());
        }
        let wait = message.attributes.get("wait").and_then(|wait| serde_json::from_str::<Value>(wait).ok());
        if wait.is_some_and(|wait| wait["attempt"] != 0) {
            self.refused.insert(request);
        }
    }
}

/// Idle processes, with the time since when.
type Idle = Vec<(Instant, App)>;

#[derive(Clone)]
pub(crate) struct World {
    sim: Arc<Mutex<Sim>>,
    start: Instant,
    epoch: Timestamp,
    plan: Arc<Plan>,
    /// The processes of each function. As on Lambda, a process handles one invocation at a time, and its memory ends
    /// with it.
    idle: Arc<Mutex<HashMap<&'static str, Idle>>>,
    fates: Arc<Mutex<BTreeMap<u32, Fate>>>,
    instances: Arc<Mutex<Vec<usize>>>,
    metrics: Arc<Mutex<Metrics>>,
}

/// Round-trip time to AWS and Jenkins.
const TRIP: Duration = Duration::from_millis(15);
/// After this time Lambda ends an idle process; AWS does not document it, so nobody may rely on it.
const IDLE_PROCESS: Duration = Duration::from_secs(300);

impl World {
    pub(crate) async fn new(plan: Plan) -> Self {
        let epoch: Timestamp = EPOCH.parse().expect("a time");
        let start = Instant::now();
        BEGIN.set(Some((epoch, start)));
        let mut aws = Aws::new(REGION, ACCOUNT, "http://aws.test");
        aws.ecs.create_cluster("ci");
        let container = |name: &str, port: u16| {
            json!({"name": name, "image": "agent", "essential": true,
                "portMappings": [{"containerPort": port, "hostPort": 0, "protocol": "tcp"}]})
        };
        for (family, mode) in [("ssh", "bridge"), ("inbound", "awsvpc"), ("broken", "awsvpc")] {
            let mut agent = container("agent", 22);
            if family == "ssh" && plan.traits.contains(&Trait::HostPort) {
                // Not 22, which the container agent of every instance reserves (API_PortMapping).
                agent["portMappings"][0]["hostPort"] = 2222.into();
            }
            if plan.traits.contains(&Trait::Health) {
                agent["healthCheck"] = json!({"command": ["CMD", "true"]});
            }
            let definition = json!({"family": family, "networkMode": mode, "cpu": "1024", "memory": "2048",
                "runtimePlatform": {"cpuArchitecture": "X86_64"}, "containerDefinitions": [agent]});
            aws.ecs.register_definition(&definition).expect("a task definition");
        }
        aws.ecs.behave("broken", local::aws::ecs::Behaviour::ImageMissing);
        aws.ecs.create_group("ci", "ci", plan.bounds, (4096, 8192), epoch);
        aws.ecs.settings().boot = plan.boot;
        aws.sqs.scattered = true;
        // As the check requires for a group whose instances are given back.
        if let Some(group) = aws.ecs.group_mut("ci") {
            group.suspended.insert("AZRebalance".into());
        }
        // In a fixed order, whatever they were drawn in: some depend on others.
        Trait::ALL
            .into_iter()
            .filter(|it| plan.traits.contains(it))
            .for_each(|it| it.apply(&mut aws, plan.seed, epoch));
        for (name, redrive) in [
            ("dead", None),
            ("requests", Some(("dead", 20))),
            ("waiting", None),
            ("undelivered", Some(("dead", 1000))),
            ("rejected", None),
            ("completions", Some(("dead", 1000))),
        ] {
            aws.sqs.create(name, 180, redrive);
        }
        let mut jenkins = Jenkins::new("http://jenkins.test/");
        jenkins.add_user("bot", "t0ken", Permission::FOR_AGENTS);
        jenkins.add_endpoint("all", None);
        let random = StdRng::seed_from_u64(plan.seed);
        let sim = Arc::new(Mutex::new(Sim {
            aws,
            jenkins,
            random,
            faults: 0.0,
            is_calm: false,
            acknowledged: HashSet::new(),
            calls: BTreeMap::new(),
            processes: BTreeMap::new(),
            lost: HashSet::new(),
            copied: HashSet::new(),
            refused: HashSet::new(),
        }));
        Self {
            sim,
            start,
            epoch,
            plan: Arc::new(plan),
            idle: Arc::default(),
            fates: Arc::default(),
            instances: Arc::default(),
            metrics: Arc::default(),
        }
    }

    /// The current time in the world.
    pub(crate) fn now(&self) -> Timestamp {
        self.epoch + SignedDuration::try_from(self.start.elapsed()).unwrap_or_default()
    }

    /// AWS and Jenkins.
    pub(crate) fn sim(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The results of the builds.
    pub(crate) fn fates(&self) -> Vec<Fate> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The parameters of the run.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The metrics of SQS, Lambda and EventBridge.
    pub(crate) fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn minute(&self) -> u64 {
        self.start.elapsed().as_secs() / 60
    }

    /// The number of instances at each minute.
    pub(crate) fn instances_by_minute(&self) -> Vec<usize> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs all builds, and then everything that is still pending.
    pub(crate) async fn run(&self) {
        self.set_faults(self.plan.faults);
        let mut machinery = vec![
            spawn_local(self.clone().pump_events()),
            spawn_local(self.clone().sweep_every_minute()),
            spawn_local(self.clone().restart_jenkins_now_and_then()),
            spawn_local(self.clone().lose_instances_now_and_then()),
            spawn_local(self.clone().disconnect_instances_now_and_then()),
            spawn_local(self.clone().put_instances_in_standby_now_and_then()),
            spawn_local(self.clone().end_want_of_capacity()),
        ];
        for (queue, function) in [("requests", "request"), ("undelivered", "task-state"), ("completions", "teardown")] {
            // MaximumConcurrency 2
            for _ in 0..2 {
                machinery.push(spawn_local(self.clone().event_source(queue, function)));
            }
        }
        let mut random = StdRng::seed_from_u64(self.plan.seed);
        let mut builds = Vec::new();
        for (number, at) in arrivals(&self.plan, &mut random).into_iter().enumerate() {
            let world = self.clone();
            let number = number as u32;
            builds.push(spawn_local(async move {
                sleep(at).await;
                world.build(number).await;
            }));
        }
        for build in builds {
            build.await.expect("a build");
        }
        self.set_faults(0.0);
        self.sim().is_calm = true;
        self.sim().jenkins.set_starting(false);
        // A completion of a request that was aborted before it was placed is kept for as long as the request could be
        // placed.
        let rest = if self.plan.faults > 0.0 { 180 } else { 75 };
        sleep(Duration::from_secs(rest * 60)).await;
        for part in machinery {
            part.abort();
        }
    }

    fn set_faults(&self, probability: f64) {
        let seed = self.plan.seed;
        let mut sim = self.sim();
        sim.faults = probability;
        if probability > 0.0 {
            sim.aws.faults.by_chance(seed, probability);
        } else {
            sim.aws.faults.calm();
        }
    }

    /// Whether an occasional fault occurs now.
    fn goes_wrong(&self) -> bool {
        let mut sim = self.sim();
        let probability = sim.faults;
        sim.random.random_bool(probability)
    }

    fn between(&self, from: Duration, to: Duration) -> Duration {
        Duration::from_secs_f64(self.sim().random.random_range(from.as_secs_f64()..=to.as_secs_f64()))
    }

    /// Invokes a function, and reports that to CloudWatch ("Types of metrics for Lambda functions").
    async fn invoke(&self, function: &'static str, event: Value) -> Option<Value> {
        let minute = self.minute();
        let answer = self.handle(function, event).await;
        let mut metrics = self.metrics();
        for (name, count) in [("Invocations", true), ("Errors", answer.is_none())] {
            let metric = Metric::of("AWS/Lambda", name, ("FunctionName", function));
            metrics.put(metric, minute, f64::from(u8::from(count)));
        }
        answer
    }

    /// Lets a process of a function handle an event; occasionally it is killed halfway.
    async fn handle(&self, function: &'static str, event: Value) -> Option<Value> {
        let app = self.process(function).await;
        let invocation = Invocation {
            deadline: Instant::now() + Duration::from_secs(28),
            function_arn: format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}"),
            trace: None,
        };
        let work = async {
            match function {
                "request" => request::handler::handle(&app, &invocation, event).await,
                "task-state" => task_state::handler::handle(&app, &invocation, event).await,
                _ => teardown::handler::handle(&app, &invocation, event).await,
            }
        };
        let killed = self.goes_wrong();
        let time = if killed { self.between(Duration::ZERO, Duration::from_secs(1)) } else { Duration::from_secs(60) };
        let answer = timeout(time, work).await.ok()?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(function).or_default().push((Instant::now(), app));
        answer.ok()
    }

    /// A process of a function: an idle one, unless Lambda would have ended it, or a new one.
    async fn process(&self, function: &'static str) -> App {
        let warm = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let processes = idle.entry(function).or_default();
            processes.retain(|(since, _)| since.elapsed() < IDLE_PROCESS);
            processes.pop()
        };
        if let Some((_, app)) = warm {
            return app;
        }
        *self.sim().processes.entry(function).or_default() += 1;
        let (epoch, start) = (self.epoch, self.start);
        let now = move || epoch + SignedDuration::try_from(start.elapsed()).unwrap_or_default();
        let http = connector(function, self.sim.clone(), now);
        let environment = environment(&self.plan.config);
        let sdk = shared::aws::sdk_config(&environment, &http);
        let app = shared::start::build(&sdk, environment, Clock::new(now), http).await;
        app.unwrap_or_else(|faults| panic!("{faults}"))
    }

    /// An event source mapping: batches of ten, partial batch responses.
    async fn event_source(self, queue: &'static str, function: &'static str) {
        loop {
            let now = self.now();
            let (batch, event) = {
                let mut sim = self.sim();
                let batch = sim.aws.sqs.receive(queue, 10, None, now);
                let event = sim.aws.sqs.event(queue, &batch);
                batch.iter().filter(|_| queue == "requests").for_each(|message| sim.note_received(message));
                (batch, event)
            };
            if batch.is_empty() {
                sleep(Duration::from_millis(250)).await;
                continue;
            }
            if let Some(answer) = self.invoke(function, event).await {
                self.sim().aws.sqs.acknowledge(queue, &batch, &answer);
            }
        }
    }

    /// EventBridge: events arrive soon, late, twice, out of order, and one in a few hundred never.
    async fn pump_events(self) {
        loop {
            let now = self.now();
            let (events, next) = {
                let mut sim = self.sim();
                (sim.aws.advance(now), sim.aws.next_due())
            };
            self.note_lost(&events);
            for event in events.into_iter().filter(rule_matches) {
                let copies = if self.goes_wrong() { 2 } else { 1 };
                for _ in 0..copies {
                    if self.goes_wrong() && self.sim().random.random_bool(0.2) {
                        continue;
                    }
                    let late = self.goes_wrong();
                    let most = if late { Duration::from_secs(45) } else { Duration::from_millis(400) };
                    let delay = self.between(Duration::from_millis(100), most);
                    let (world, event) = (self.clone(), event.clone());
                    spawn_local(async move {
                        sleep(delay).await;
                        // Two retries, as Lambda makes for asynchronous invocations.
                        for pause in [60, 120, 0] {
                            if world.invoke("task-state", event.clone()).await.is_some() {
                                break;
                            }
                            sleep(Duration::from_secs(pause)).await;
                        }
                    });
                }
            }
            let until = next.map_or(Duration::from_millis(500), |next| {
                Duration::try_from(next.duration_since(now)).unwrap_or_default()
            });
            sleep(until.clamp(Duration::from_millis(20), Duration::from_millis(500))).await;
        }
    }

    fn note_lost(&self, events: &[Value]) {
        let on_lost_host = |detail: &&Value| {
            let reason = detail["stoppedReason"].as_str().unwrap_or_default();
            detail["lastStatus"] == "STOPPED" && reason.starts_with("Host EC2")
        };
        let lost = events.iter().map(|event| &event["detail"]).filter(on_lost_host);
        let names = lost.filter_map(|detail| detail["startedBy"].as_str().map(str::to_owned));
        self.sim().lost.extend(names.filter(|name| !name.starts_with("ecs-svc/")));
    }

    async fn sweep_every_minute(self) {
        loop {
            {
                let count = self.sim().aws.ecs.group("ci").map_or(0, |group| group.members.len());
                self.instances.lock().unwrap_or_else(PoisonError::into_inner).push(count);
            }
            let rule = ("RuleName", "agents-TeardownFunctionSweep");
            self.metrics().put(Metric::of("AWS/Events", "Invocations", rule), self.minute(), 1.0);
            self.metrics().put_queues(&self.sim().aws.sqs, self.minute(), self.now());
            sleep(Duration::from_secs(60)).await;
            let event = json!({"version": "0", "detail-type": "Scheduled Event", "source": "aws.events",
                "time": self.now(), "detail": {}});
            let world = self.clone();
            spawn_local(async move { world.invoke("teardown", event).await });
        }
    }

    /// Occasionally Jenkins is away for a minute to an hour.
    async fn restart_jenkins_now_and_then(self) {
        loop {
            sleep(self.between(Duration::from_secs(1800), Duration::from_secs(3 * 3600))).await;
            if self.sim().faults > 0.0 {
                self.sim().jenkins.set_starting(true);
                sleep(self.between(Duration::from_secs(60), Duration::from_secs(900))).await;
                self.sim().jenkins.set_starting(false);
            }
        }
    }

    /// Whether something happens to instances: while there are builds.
    fn is_disturbed_by(&self, it: Trait) -> bool {
        self.plan.traits.contains(&it) && !self.sim().is_calm
    }

    /// One of the group's instances that are in service.
    fn some_instance(&self) -> Option<String> {
        let mut sim = self.sim();
        let group = sim.aws.ecs.group("ci")?;
        let in_service = group.members.iter().filter(|member| member.lifecycle == "InService");
        let ids: Vec<String> = in_service.map(|member| member.id.clone()).collect();
        let choice = sim.random.random_range(0..ids.len().max(1));
        ids.into_iter().nth(choice)
    }

    /// EC2 takes Spot instances back.
    async fn lose_instances_now_and_then(self) {
        while self.is_disturbed_by(Trait::Spot) {
            sleep(self.between(Duration::from_secs(60), Duration::from_secs(240))).await;
            let now = self.now();
            if let Some(id) = self.some_instance().filter(|_| self.is_disturbed_by(Trait::Spot)) {
                self.sim().aws.ecs.interrupt_instance(&id, now);
            }
        }
    }

    /// Container agents are disconnected for a while, as during an update.
    async fn disconnect_instances_now_and_then(self) {
        while self.is_disturbed_by(Trait::Disconnects) {
            sleep(self.between(Duration::from_secs(30), Duration::from_secs(180))).await;
            let Some(id) = self.some_instance() else { continue };
            let Some(arn) = self.sim().aws.ecs.instance_of(&id).map(|instance| instance.arn.clone()) else { continue };
            let now = self.now();
            self.sim().aws.ecs.connect_instance(&arn, false, now);
            sleep(self.between(Duration::from_secs(5), Duration::from_secs(90))).await;
            let now = self.now();
            self.sim().aws.ecs.connect_instance(&arn, true, now);
        }
    }

    /// Somebody puts instances in standby for inspection, and back into service.
    async fn put_instances_in_standby_now_and_then(self) {
        while self.is_disturbed_by(Trait::Standby) {
            sleep(self.between(Duration::from_secs(120), Duration::from_secs(400))).await;
            let Some(id) = self.some_instance() else { continue };
            let now = self.now();
            let lowers = self.sim().random.random_bool(0.5);
            self.sim().aws.ecs.enter_standby(&id, lowers, now);
            sleep(self.between(Duration::from_secs(60), Duration::from_secs(600))).await;
            let now = self.now();
            self.sim().aws.ecs.exit_standby(&id, now);
        }
    }

    /// The capacity that is missing at first becomes available.
    async fn end_want_of_capacity(self) {
        sleep(self.between(Duration::from_secs(120), Duration::from_secs(900))).await;
        let mut sim = self.sim();
        sim.aws.ecs.settings().fargate_has_capacity = true;
        if let Some(group) = sim.aws.ecs.group_mut("ci") {
            group.cannot_launch = None;
        }
    }

    /// A build: requests an agent, waits for its webhook, runs, completes; occasionally it is aborted while it waits.
    async fn build(&self, number: u32) {
        let mut random = StdRng::seed_from_u64(self.plan.seed ^ (u64::from(number) << 20));
        let request = format!("build-{number}");
        let label = match random.random_range(0..100) {
            0..60 => "ssh",
            60..98 => "inbound",
            _ => "broken",
        };
        let aborts = (self.plan.faults > 0.0 && random.random_bool(0.03))
            .then(|| Duration::from_secs_f64(random.random_range(0.1..120.0)));
        let (least, most) = self.plan.build;
        let takes = Duration::from_secs_f64(random.random_range(least.as_secs_f64()..=most.as_secs_f64()));
        let asked = Instant::now();
        let asked_at = asked.duration_since(self.start);
        let mut fate = Fate { request: request.clone(), label, asked_at, takes, ..Fate::default() };
        let mut urls = Vec::new();
        let outcome = loop {
            if !urls.is_empty() {
                self.sim().copied.insert(request.clone());
            }
            urls.push(self.ask(&request, label, number));
            let patience = Duration::from_secs(300);
            let left = aborts.map_or(patience, |at| at.saturating_sub(asked.elapsed()).min(patience));
            match timeout(left, self.hear(&urls)).await {
                Ok(notice) => break Some(notice),
                Err(_) if aborts.is_some_and(|at| asked.elapsed() >= at) => break None,
                // The request is repeated under the same id, as the pipeline step does.
                Err(_) if asked.elapsed() < Duration::from_secs(4 * 3600) => {}
                Err(_) => break None,
            }
        };
        fate.agent = outcome.as_ref().and_then(|notice| notice["agent"]["name"].as_str().map(str::to_owned));
        let mut completion = json!({"version": 1, "requestId": request, "build": {"job": "sim", "number": number}});
        match outcome {
            None => fate.aborted = aborts.is_some(),
            Some(notice) if notice["type"] == "agent.ready" => {
                fate.waited = Some(asked.elapsed());
                let name = notice["agent"]["name"].as_str().unwrap_or_default().to_owned();
                fate.astray = self.astray(&name);
                fate.built = self.run_build(&name, &request, takes).await;
                completion["agent"] = json!(name);
                completion["taskArn"] = notice["task"]["arn"].clone();
            }
            Some(notice) => fate.failure = Some(notice["failure"]["code"].as_str().unwrap_or_default().to_owned()),
        }
        let now = self.now();
        self.sim().aws.sqs.send("completions", &completion.to_string(), now);
        self.fates.lock().unwrap_or_else(PoisonError::into_inner).insert(number, fate);
    }

    fn ask(&self, request: &str, label: &str, number: u32) -> String {
        let now = self.now();
        let mut sim = self.sim();
        let url = sim.jenkins.register_webhook(None);
        let body = json!({"version": 1, "requestId": request, "label": label, "webhookUrl": url,
            "build": {"job": "sim", "number": number}});
        sim.aws.sqs.send("requests", &body.to_string(), now);
        // SNS and SQS may deliver twice.
        if sim.faults > 0.0 && {
            let p = sim.faults;
            sim.random.random_bool(p)
        } {
            sim.aws.sqs.send("requests", &body.to_string(), now);
        }
        url
    }

    async fn hear(&self, urls: &[String]) -> Value {
        loop {
            {
                let mut sim = self.sim();
                if let Some(arrival) = urls.iter().find_map(|url| sim.jenkins.wait_for_webhook(url)) {
                    return serde_json::from_slice(&arrival.body).unwrap_or_default();
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// The address of a node, if it is not the port of its agent's container: of IPv4, or of IPv6 if there is no other.
    fn astray(&self, name: &str) -> Option<String> {
        let sim = self.sim();
        let Some(Launcher::Ssh(launcher)) = sim.jenkins.node(name).map(|node| &node.launcher) else { return None };
        if sim.aws.ecs.doubled.contains(name) {
            return None;
        }
        let runs = |task: &&Task| task.started_by == name && task.desired_status == "RUNNING";
        let task = sim.aws.ecs.tasks().find(runs)?;
        let place = sim.aws.ecs.instance(task.instance.as_deref()?)?;
        let bindings = || task.containers.iter().flat_map(|container| &container.bindings);
        let binding = bindings().find(|binding| binding.ip == "0.0.0.0").or_else(|| bindings().next())?;
        let host = if binding.ip == "::" { place.ipv6_address.as_deref()? } else { &place.private_address };
        let right = launcher.port == i64::from(binding.host) && launcher.host.as_deref() == Some(host);
        (!right).then(|| format!("{:?}:{} instead of {host}:{}", launcher.host, launcher.port, binding.host))
    }

    /// The build runs on its node as long as the node exists.
    async fn run_build(&self, name: &str, build: &str, takes: Duration) -> bool {
        {
            let mut sim = self.sim();
            if !sim.jenkins.connect_ssh(name) {
                let secret = sim.jenkins.secret(name);
                let _ = sim.jenkins.connect_inbound(name, &secret);
            }
            if !sim.jenkins.start_build_on(name, build) {
                return false;
            }
        }
        sleep(takes).await;
        let mut sim = self.sim();
        sim.jenkins.finish_build(name).is_some()
    }

    /// The outcomes that arrived at the webhooks of each request: distinct types and ids.
    pub(crate) fn outcomes(&self) -> HashMap<String, Vec<(String, String)>> {
        let mut outcomes: HashMap<String, Vec<(String, String)>> = HashMap::new();
        let sim = self.sim();
        for arrival in sim
            .jenkins
            .arrivals()
            .iter()
            .filter(|arrival| arrival.path.contains("webhook-step") && arrival.status.is_success())
        {
            let notice: Value = serde_json::from_slice(&arrival.body).unwrap_or_default();
            let text = |name: &str| notice[name].as_str().unwrap_or_default().to_owned();
            let kind = match notice["failure"]["message"].as_str() {
                Some(message) => format!("{} ({message}) at {}", text("type"), arrival.at),
                None => text("type"),
            };
            let received = outcomes.entry(text("requestId")).or_default();
            if !received.iter().any(|(_, id)| *id == text("id")) {
                received.push((kind, text("id")));
            }
        }
        outcomes
    }
}

/// The start times of the builds: the hours of the span, weighted by the curve.
fn arrivals(plan: &Plan, random: &mut StdRng) -> Vec<Duration> {
    let total: f64 = plan.curve.iter().sum();
    let slot = plan.span.as_secs_f64() / plan.curve.len() as f64;
    let mut times: Vec<Duration> = (0..plan.builds)
        .map(|_| {
            let mut at = random.random_range(0.0..total);
            let index = plan.curve.iter().position(|weight| {
                at -= weight;
                at < 0.0
            });
            let index = index.unwrap_or(plan.curve.len() - 1) as f64;
            Duration::from_secs_f64((index + random.random_range(0.0..1.0)) * slot)
        })
        .collect();
    times.sort();
    times
}

fn environment(config: &str) -> shared::config::environment::Environment {
    let mut values: HashMap<String, String> = ["requests", "waiting", "undelivered", "rejected", "completions"]
        .iter()
        .map(|queue| (format!("{}_QUEUE_URL", queue.to_uppercase()), format!("http://aws.test/{ACCOUNT}/{queue}")))
        .collect();
    let config = format!("inline:{config}");
    for (name, value) in [
        ("AGENTS_CONFIG", config.as_str()),
        ("AWS_REGION", REGION),
        ("AWS_ENDPOINT_URL", "http://aws.test"),
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("TOKEN", "t0ken"),
    ] {
        values.insert(name.into(), value.into());
    }
    Arc::new(move |name| values.get(name).cloned())
}

/// The network: everything takes its time, and Jenkins' answers are lost or slow like AWS'.
fn connector(
    function: &'static str,
    sim: Arc<Mutex<Sim>>,
    now: impl Fn() -> Timestamp + Clone + Send + Sync + 'static,
) -> Http {
    Http::in_memory(move |request: http::Request<Bytes>| {
        let (sim, now) = (sim.clone(), now.clone());
        Box::pin(async move {
            sleep(TRIP).await;
            let notice = request.uri().path().contains("webhook-step").then(|| request.body().clone());
            let (response, delay, lost) = {
                let mut sim = sim.lock().unwrap_or_else(PoisonError::into_inner);
                if request.uri().host() == Some("jenkins.test") {
                    let probability = sim.faults;
                    let wrong = sim.random.random_bool(probability);
                    let kind = sim.random.random_range(0..3);
                    let delay = if wrong && kind == 0 { Duration::from_secs(12) } else { Duration::ZERO };
                    if wrong && kind == 1 {
                        return Err("connection reset".into());
                    }
                    let response = sim.jenkins.handle(request, now());
                    (response, delay, wrong && kind == 2)
                } else {
                    let answer = sim.aws.handle(request, now());
                    // A day's journal with all bodies would take gigabytes.
                    for call in std::mem::take(&mut sim.aws.journal) {
                        *sim.calls.entry(format!("{function} {}:{}", call.service, call.action)).or_default() += 1;
                    }
                    (answer.response, answer.delay, answer.lost)
                }
            };
            sleep(TRIP + delay).await;
            if let Some(notice) = notice.filter(|_| response.status().is_success() && !lost) {
                let notice: Value = serde_json::from_slice(&notice).unwrap_or_default();
                let id = notice["id"].as_str().unwrap_or_default().to_owned();
                sim.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.insert(id);
            }
            if lost { Err("connection closed before the answer".into()) } else { Ok(response) }
        })
    })
}
