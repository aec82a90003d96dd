//! The basis of the tests from outside: the built functions between a simulated AWS and a stand-in Jenkins.
//!
//! A [`Stack`] starts both on loopback ports, and each function when it is first needed, with nothing but its
//! environment. [`Stack::settle`] and [`Stack::sweep`] do what EventBridge, the event sources and the schedule do on
//! AWS. A test checks the results: AWS' journal, the queues, Jenkins' nodes and the notices at its webhooks.

pub mod cloudwatch;
pub mod edge;
pub mod emf;
pub mod insights;
pub mod log_rules;

use std::collections::BTreeMap;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use local::aws::ecs::Task;
use local::aws::{Aws, Ecs};
use local::http::{Server, lock, serve_aws, serve_on};
use local::jenkins::{Delay, Jenkins, Permission};
use local::lambda::{Function, Outcome};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub mod roles;

use roles::{Roles, Seen};

pub const REGION: &str = "eu-west-1";
pub const ACCOUNT: &str = "123456789012";
pub const CLUSTER: &str = "jenkins";
/// The Auto Scaling group: 0 to 4 instances of 4096 CPU units and 7680 MiB, one of which is there at the start.
pub const GROUP: &str = "jenkins-ecs";
/// The token of the Jenkins user.
pub const API_TOKEN: &str = "11api0token0of0the0user";
/// The `Authorization` that Jenkins gets with it.
const BASIC_AUTHORIZATION: &str = "ZWNzLWFnZW50czoxMWFwaTB0b2tlbjBvZjB0aGUwdXNlcg==";
/// The `Authorization` that every notice has to carry.
pub const AUTHORIZATION: &str = "0authorization0of0webhooks0";

/// The queues in a function's environment, each named as its variable without `_QUEUE_URL`.
const QUEUES: [&str; 5] = ["requests", "waiting", "undelivered", "rejected", "completions"];

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binary {
    Request,
    TaskState,
    Teardown,
}

impl Binary {
    /// The access key of its calls, by which the journal identifies it.
    pub fn access_key(self) -> &'static str {
        match self {
            Self::Request => "AKIAREQUEST",
            Self::TaskState => "AKIATASKSTATE",
            Self::Teardown => "AKIATEARDOWN",
        }
    }

    /// The template's Timeout.
    fn timeout(self) -> Duration {
        Duration::from_secs(if self == Self::Teardown { 60 } else { 30 })
    }

    /// The binary that cargo built, next to the test's own.
    ///
    /// # Errors
    /// When it was not built.
    pub fn path(self) -> Result<PathBuf> {
        let name = match self {
            Self::Request => "request",
            Self::TaskState => "task-state",
            Self::Teardown => "teardown",
        };
        let test = std::env::current_exe()?;
        let path = test.ancestors().nth(2).context("the test has no folder")?.join(name);
        if !path.is_file() {
            bail!(
                "{} is not there: build the functions first, with `cargo build -p request -p task-state -p teardown` \
                 and the same --profile as the tests",
                path.display()
            );
        }
        Ok(path)
    }
}

/// A notice that Jenkins took.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The URL that it was sent to.
    pub url: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, byte for byte.
    pub raw: Bytes,
    /// Its body.
    pub body: Value,
}

impl Notice {
    /// `agent.ready`.
    pub fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }

    /// `START_FAILED`; empty where nothing failed.
    pub fn code(&self) -> &str {
        self.body["failure"]["code"].as_str().unwrap_or_default()
    }

    /// The name of its agent.
    pub fn agent(&self) -> &str {
        self.body["agent"]["name"].as_str().unwrap_or_default()
    }
}

/// Delays of Jenkins, by a part of the path.
type Slow = Arc<Mutex<Option<(String, Duration)>>>;

/// The whole system.
pub struct Stack {
    aws: Arc<Mutex<Aws>>,
    jenkins: Arc<Mutex<Jenkins>>,
    environment: BTreeMap<String, String>,
    functions: BTreeMap<Binary, Function>,
    /// Of all processes so far.
    outputs: Mutex<Vec<Arc<Mutex<String>>>>,
    events: Vec<Value>,
    /// All events of ECS so far.
    pub history: Vec<Value>,
    jenkins_server: Option<Server>,
    jenkins_root: String,
    slow: Slow,
    webhook: String,
    config: Value,
    seen: Arc<Mutex<Seen>>,
    allows_denials: bool,
    _aws_server: Server,
}

/// Panics at the caller's location, so that a failure names the line of its test.
#[track_caller]
fn or_panic<T>(work: impl Future<Output = Result<T>>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move { work.await.unwrap_or_else(|error| panic!("at {caller}: {error:#}")) }
}

impl Stack {
    /// Starts it with the [`configuration`].
    #[track_caller]
    pub fn start() -> impl Future<Output = Self> {
        or_panic(Self::try_with(|_| {}))
    }

    /// Starts it with another configuration.
    #[track_caller]
    pub fn with(change: impl FnOnce(&mut Value)) -> impl Future<Output = Self> {
        or_panic(Self::try_with(change))
    }

    async fn try_with(change: impl FnOnce(&mut Value)) -> Result<Self> {
        let (aws_listener, jenkins_listener) = (loopback().await?, loopback().await?);
        let endpoint = format!("http://{}", aws_listener.local_addr()?);
        let root = format!("http://{}/ci/", jenkins_listener.local_addr()?);
        let now = Timestamp::now();

        let mut aws = Aws::new(REGION, ACCOUNT, &endpoint);
        build_world(&mut aws, now)?;
        let mut jenkins = Jenkins::new(&root);
        jenkins.add_user("ecs-agents", API_TOKEN, Permission::FOR_AGENTS);
        let webhook = jenkins.add_endpoint("ecs-agents/notices", Some(AUTHORIZATION));

        let mut config = configuration(&root, &webhook);
        change(&mut config);
        let (guard, seen) = Roles::guard(config.clone(), None);
        aws.guard = Some(guard);
        let mut environment: BTreeMap<String, String> = [
            ("AGENTS_CONFIG", format!("inline:{config}")),
            ("AWS_REGION", REGION.into()),
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE".into()),
            ("AWS_SECRET_ACCESS_KEY", "0secret0key0of0aws0".into()),
            ("AWS_LAMBDA_LOG_LEVEL", "DEBUG".into()),
            ("AWS_LAMBDA_LOG_FORMAT", "JSON".into()),
            ("METRICS_NAMESPACE", emf::NAMESPACE.into()),
            ("METRICS_BY_TEMPLATE", "true".into()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for queue in QUEUES {
            environment.insert(format!("{}_QUEUE_URL", queue.to_uppercase()), aws.sqs.url(queue));
        }

        let (aws, jenkins) = (Arc::new(Mutex::new(aws)), Arc::new(Mutex::new(jenkins)));
        let slow = Slow::default();
        Ok(Self {
            _aws_server: serve_aws(aws.clone(), aws_listener)?,
            jenkins_server: Some(serve_jenkins(&jenkins, &slow, jenkins_listener)?),
            jenkins_root: root,
            slow,
            webhook,
            config,
            seen,
            allows_denials: false,
            aws,
            jenkins,
            environment,
            functions: BTreeMap::new(),
            outputs: Mutex::default(),
            events: Vec::new(),
            history: Vec::new(),
        })
    }

    // --- The world ---

    pub fn aws(&self) -> MutexGuard<'_, Aws> {
        lock(&self.aws)
    }

    /// The same, for callers that poll a function of their own.
    pub fn shared_aws(&self) -> Arc<Mutex<Aws>> {
        self.aws.clone()
    }

    pub fn jenkins(&self) -> MutexGuard<'_, Jenkins> {
        lock(&self.jenkins)
    }

    /// `http://127.0.0.1:PORT/ci/`
    pub fn jenkins_root(&self) -> &str {
        &self.jenkins_root
    }

    /// Jenkins refuses connections.
    pub fn jenkins_goes_down(&mut self) {
        self.jenkins_server = None;
    }

    /// Jenkins is there again, at its old address.
    #[track_caller]
    pub fn jenkins_comes_back(&mut self) -> impl Future<Output = ()> {
        or_panic(self.try_jenkins_comes_back())
    }

    async fn try_jenkins_comes_back(&mut self) -> Result<()> {
        let address = self.jenkins_root.trim_start_matches("http://").trim_end_matches("/ci/").to_owned();
        for _ in 0..50 {
            // The old listener ends when its task does.
            if let Ok(listener) = TcpListener::bind(&address).await {
                self.jenkins_server = Some(serve_jenkins(&self.jenkins, &self.slow, listener)?);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{address} is taken")
    }

    /// From now on, Jenkins answers requests whose path contains this text after this delay.
    pub fn jenkins_is_slow(&self, part: &str, delay: Duration) {
        *lock(&self.slow) = Some((part.to_owned(), delay));
    }

    /// Changes the environment of the functions that are started from now on.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.environment.insert(name.into(), value.into()),
            None => self.environment.remove(name),
        };
    }

    /// Encrypts the parameters with a customer managed key, whose ARN the stack gets as a parameter.
    pub fn encrypt_with(&mut self, key: &str) {
        let (guard, seen) = Roles::guard(self.config.clone(), Some(key.to_owned()));
        self.seen = seen;
        let mut aws = self.aws();
        aws.guard = Some(guard);
        aws.parameters.key = Some(key.to_owned());
    }

    /// The accesses that the functions' roles were asked for so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// This test expects a role to deny a call. In every other test that is a failure, whatever the function does about
    /// it.
    pub fn allow_denials(&mut self) {
        self.allows_denials = true;
    }

    /// A function's environment.
    pub fn env(&self, name: &str) -> &str {
        self.environment.get(name).map(String::as_str).unwrap_or_default()
    }

    // --- The functions ---

    /// A function, started if it does not run yet.
    #[track_caller]
    pub fn function(&mut self, binary: Binary) -> impl Future<Output = &mut Function> {
        or_panic(self.try_function(binary))
    }

    async fn try_function(&mut self, binary: Binary) -> Result<&mut Function> {
        if !self.functions.contains_key(&binary) {
            let function = self.try_another(binary).await?;
            self.functions.insert(binary, function);
        }
        self.functions.get_mut(&binary).context("just started")
    }

    /// Another process of a function, as Lambda starts one besides the first.
    #[track_caller]
    pub fn another(&self, binary: Binary) -> impl Future<Output = Function> {
        or_panic(self.try_another(binary))
    }

    async fn try_another(&self, binary: Binary) -> Result<Function> {
        let mut environment = self.environment.clone();
        environment.insert("AWS_ACCESS_KEY_ID".into(), binary.access_key().into());
        let function = Function::start(&binary.path()?, &environment).await?;
        lock(&self.outputs).push(function.collected());
        Ok(function)
    }

    /// Runs a program as a function, with a function's environment.
    #[track_caller]
    pub fn start_program(&self, program: &Path) -> impl Future<Output = Function> {
        or_panic(self.try_start_program(program))
    }

    async fn try_start_program(&self, program: &Path) -> Result<Function> {
        Function::start(program, &self.environment).await
    }

    /// Ends a function's process, whatever it is doing; the next use starts another.
    pub fn kill(&mut self, binary: Binary) {
        self.functions.remove(&binary);
    }

    /// Invokes a function.
    #[track_caller]
    pub fn invoke(&mut self, binary: Binary, event: Value) -> impl Future<Output = Outcome> {
        or_panic(self.try_invoke(binary, event))
    }

    /// Invokes a function whose process may end over it.
    ///
    /// # Errors
    /// When it did.
    pub async fn try_invoke(&mut self, binary: Binary, event: Value) -> Result<Outcome> {
        self.try_function(binary).await?.invoke_within(event, binary.timeout()).await
    }

    /// Invokes a function once with the messages of a queue that are visible, at most ten.
    #[track_caller]
    pub fn poll(&mut self, binary: Binary, queue: &str) -> impl Future<Output = usize> {
        or_panic(self.try_poll(binary, queue))
    }

    async fn try_poll(&mut self, binary: Binary, queue: &str) -> Result<usize> {
        let aws = self.aws.clone();
        self.try_function(binary).await?.poll(&aws, queue).await
    }

    /// All metrics that CloudWatch would read from what the functions have printed.
    ///
    /// # Errors
    /// When a line breaks the specification.
    pub fn metrics(&self) -> Result<Vec<emf::Datum>> {
        // A configuration from elsewhere is not known here.
        let is_own = self.env("AGENTS_CONFIG").starts_with("inline:");
        emf::read(&self.output(), is_own.then_some(&self.config))
    }

    /// Everything that the functions have printed.
    pub fn output(&self) -> String {
        self.outputs().concat()
    }

    /// What each process of a function has printed.
    fn outputs(&self) -> Vec<String> {
        lock(&self.outputs).iter().map(|output| lock(output).clone()).collect()
    }

    /// What no line of a log may show.
    fn secrets(&self) -> Vec<String> {
        let known = [API_TOKEN, BASIC_AUTHORIZATION, AUTHORIZATION, self.env("AWS_SECRET_ACCESS_KEY")];
        let tasks = self.tasks();
        let inbound = tasks.iter().filter_map(|task| task.variable("JENKINS_SECRET"));
        known.into_iter().chain(inbound).map(str::to_owned).collect()
    }

    /// All that a function has printed since it was started.
    pub fn output_of(&self, binary: Binary) -> String {
        self.functions.get(&binary).map(Function::output).unwrap_or_default()
    }

    // --- What happens ---

    /// Lets ECS do what is due, and keeps its events for [`Stack::deliver`].
    pub fn advance(&mut self) -> &mut Vec<Value> {
        let events = self.aws().advance(Timestamp::now());
        self.history.extend(events.iter().cloned());
        self.events.extend(events.into_iter().filter(rule_matches));
        &mut self.events
    }

    /// Delivers the events that are due to `task-state`; one that fails is kept for the next time. Returns how many
    /// were processed.
    #[track_caller]
    pub fn deliver(&mut self) -> impl Future<Output = usize> {
        or_panic(self.try_deliver())
    }

    async fn try_deliver(&mut self) -> Result<usize> {
        self.advance();
        let mut taken = 0;
        for event in std::mem::take(&mut self.events) {
            match self.try_invoke(Binary::TaskState, event.clone()).await? {
                Ok(_) => taken += 1,
                Err(_) => self.events.push(event),
            }
        }
        Ok(taken)
    }

    /// Processes events and the queues with an event source until there are no more.
    #[track_caller]
    pub fn settle(&mut self) -> impl Future<Output = ()> {
        or_panic(self.try_settle())
    }

    async fn try_settle(&mut self) -> Result<()> {
        for _ in 0..200 {
            let mut busy = self.try_poll(Binary::Request, "requests").await?;
            busy += self.try_poll(Binary::Teardown, "completions").await?;
            busy += self.try_deliver().await?;
            busy += self.try_poll(Binary::TaskState, "undelivered").await?;
            if busy == 0 {
                return Ok(());
            }
        }
        bail!("it does not settle:\n{}", self.output())
    }

    /// Runs the sweep of a minute, with this time in its event.
    #[track_caller]
    pub fn sweep_at(&mut self, time: Timestamp) -> impl Future<Output = Outcome> {
        or_panic(self.try_sweep_at(time))
    }

    async fn try_sweep_at(&mut self, time: Timestamp) -> Result<Outcome> {
        self.advance();
        self.try_invoke(Binary::Teardown, sweep_event(time)).await
    }

    /// Runs the sweep now, and everything that follows from it.
    #[track_caller]
    pub fn sweep(&mut self) -> impl Future<Output = ()> {
        or_panic(self.try_sweep())
    }

    async fn try_sweep(&mut self) -> Result<()> {
        // Events have whole seconds; this one must not be in the past.
        if let Err(error) = self.try_sweep_at(Timestamp::now() + Duration::from_secs(1)).await? {
            bail!("the sweep failed: {error}\n{}", self.output());
        }
        self.try_settle().await
    }

    /// Makes the hidden messages of a queue visible, as time would.
    pub fn unhide(&self, queue: &str) {
        let now = Timestamp::now();
        for message in self.aws().sqs.queues.get_mut(queue).into_iter().flat_map(|queue| &mut queue.messages) {
            message.visible_at = now;
        }
    }

    // --- What Jenkins says ---

    /// A build registers a webhook and waits for it.
    pub fn webhook(&self) -> String {
        let mut jenkins = self.jenkins();
        let url = jenkins.register_webhook(Some(AUTHORIZATION));
        jenkins.wait_for_webhook(&url);
        url
    }

    /// A request of version 1.
    pub fn ask(&self, mut request: Value) {
        request["version"] = 1.into();
        self.send("requests", &request.to_string());
    }

    /// A completion of version 1.
    pub fn complete(&self, mut completion: Value) {
        completion["version"] = 1.into();
        self.send("completions", &completion.to_string());
    }

    /// Puts a message into a queue. Returns its id.
    pub fn send(&self, queue: &str, body: &str) -> String {
        self.aws().sqs.send(queue, body, Timestamp::now())
    }

    /// Requests an agent of a label with a webhook of its own, and processes everything. Returns the webhook's URL.
    #[track_caller]
    pub fn agent(&mut self, id: &str, label: &str) -> impl Future<Output = String> {
        or_panic(self.try_agent(id, label))
    }

    async fn try_agent(&mut self, id: &str, label: &str) -> Result<String> {
        let url = self.webhook();
        self.ask(json!({"requestId": id, "label": label, "webhookUrl": url}));
        self.try_settle().await?;
        Ok(url)
    }

    // --- What came of it ---

    /// The notices that Jenkins took at a webhook of a build, or at any.
    pub fn notices(&self, url: Option<&str>) -> Vec<Notice> {
        let jenkins = self.jenkins();
        jenkins
            .arrivals()
            .iter()
            .filter(|arrival| arrival.status.is_success())
            .map(|arrival| Notice {
                url: jenkins.url(&arrival.path),
                headers: arrival.headers.clone(),
                body: serde_json::from_slice(&arrival.body).unwrap_or_default(),
                raw: arrival.body.clone(),
            })
            .filter(|notice| url.is_none_or(|url| notice.url == url))
            .collect()
    }

    /// The notices that Jenkins took at the configured webhook, which gets all.
    pub fn all_notices(&self) -> Vec<Notice> {
        self.notices(Some(&self.webhook))
    }

    /// The type and failure code of the notices at a webhook: `agent.failed START_FAILED`.
    pub fn received(&self, url: &str) -> Vec<String> {
        let words = |notice: Notice| format!("{} {}", notice.kind(), notice.code()).trim_end().to_owned();
        self.notices(Some(url)).into_iter().map(words).collect()
    }

    /// The same for the configured webhook.
    pub fn all_received(&self) -> Vec<String> {
        self.received(&self.webhook)
    }

    /// The tasks that ECS knows, oldest first.
    pub fn tasks(&self) -> Vec<Task> {
        let mut tasks: Vec<_> = self.aws().ecs.tasks().cloned().collect();
        tasks.sort_by(|a, b| (a.created_at, &a.arn).cmp(&(b.created_at, &b.arn)));
        tasks
    }

    /// The tasks that ECS keeps running.
    pub fn active_tasks(&self) -> Vec<Task> {
        self.tasks().into_iter().filter(|task| task.desired_status == "RUNNING").collect()
    }

    /// The names of Jenkins' nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.jenkins().nodes().map(|node| node.name.clone()).collect()
    }

    /// The bodies in a queue, hidden ones too.
    pub fn bodies(&self, queue: &str) -> Vec<String> {
        self.aws().sqs.messages(queue).iter().map(|message| message.body.clone()).collect()
    }

    /// The bodies in the rejected queue, each with its reason.
    pub fn rejected(&self) -> Vec<(String, String)> {
        let reason = |attributes: &BTreeMap<String, String>| attributes.get("reason").cloned().unwrap_or_default();
        let aws = self.aws();
        let messages = aws.sqs.messages("rejected").iter();
        messages.map(|message| (message.body.clone(), reason(&message.attributes))).collect()
    }

    /// Every AWS call since [`Stack::forget_calls`], as `ecs:RunTask`, without those of a start.
    pub fn calls(&self) -> Vec<String> {
        let aws = self.aws();
        let calls = aws.journal.iter().filter(|call| call.service != "ssm");
        calls.map(|call| format!("{}:{}", call.service, call.action)).collect()
    }

    /// The number of calls of an AWS action, such as `ecs:RunTask`.
    pub fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|made| *made == call).count()
    }

    /// The inputs of an ECS action.
    pub fn inputs(&self, action: &str) -> Vec<Value> {
        self.aws().calls("ecs", action).iter().map(|call| call.input.clone()).collect()
    }

    /// Forgets all that grows with the number of invocations, for runs of any length. Nothing checks the logs until
    /// then any more.
    pub fn forget_the_past(&mut self) {
        self.history.clear();
        self.forget_calls();
        lock(&self.outputs).iter().for_each(|output| lock(output).clear());
        self.jenkins().forget_the_past();
        let mut aws = self.aws();
        let ends = aws.sqs.queues.iter_mut().filter(|(name, _)| *name == "rejected" || name.ends_with("-dead-letters"));
        ends.for_each(|(_, queue)| queue.messages.clear());
    }

    /// Clears the journal.
    pub fn forget_calls(&self) {
        self.aws().journal.clear();
    }
}

fn serve_jenkins(jenkins: &Arc<Mutex<Jenkins>>, slow: &Slow, listener: TcpListener) -> Result<Server> {
    let (jenkins, slow) = (jenkins.clone(), slow.clone());
    serve_on(listener, move |request| {
        let delay = match &*lock(&slow) {
            Some((part, delay)) if request.uri().path().contains(part.as_str()) => *delay,
            _ => Duration::ZERO,
        };
        let jenkins = jenkins.clone();
        async move {
            tokio::time::sleep(delay).await;
            let response = lock(&jenkins).handle(request, Timestamp::now());
            if let Some(Delay(duration)) = response.extensions().get() {
                tokio::time::sleep(*duration).await;
            }
            response.map(Into::into)
        }
    })
}

/// A test that fails prints what the functions logged.
impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "--- what the functions said ---\n{}--- and asked of AWS ---\n{}",
                self.output(),
                self.calls().join("\n")
            );
        } else {
            let denied = std::mem::take(&mut lock(&self.seen).denied);
            assert!(self.allows_denials || denied.is_empty(), "the functions' roles denied: {denied:#?}");
            if let Err(error) = self.metrics() {
                panic!("a metric that CloudWatch would not take: {error:#}");
            }
            let violations = log_rules::violations(&self.outputs(), &self.secrets());
            assert!(violations.is_empty(), "lines of the log break the rules: {violations:#?}");
        }
        if let Err(error) = lock(&self.seen).note() {
            println!("what the roles were asked for is not noted: {error:#}");
        }
    }
}

async fn loopback() -> Result<TcpListener> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).await?)
}

/// The event of a minute's sweep; its time has whole seconds.
pub fn sweep_event(time: Timestamp) -> Value {
    json!({
        "version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "source": "aws.events",
        "detail-type": "Scheduled Event", "account": ACCOUNT, "region": REGION,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "resources": [format!("arn:aws:events:{REGION}:{ACCOUNT}:rule/sweep")], "detail": {},
    })
}

/// The event patterns of the deployed rules.
pub fn rule_matches(event: &Value) -> bool {
    let detail = &event["detail"];
    match event["detail-type"].as_str() {
        Some("ECS Task State Change") => {
            let ours = detail["startedBy"].as_str().is_some_and(|name| name.starts_with("ecs-"));
            let of_service = detail["group"].as_str().is_some_and(|group| group.starts_with("service:"));
            ours && !of_service && matches!(detail["lastStatus"].as_str(), Some("RUNNING" | "STOPPED"))
        }
        Some("ECS Container Instance State Change") => detail["status"] == "ACTIVE" && detail["agentConnected"] == true,
        _ => false,
    }
}

/// The configuration that tests start from: a cloud of container instances and one of Fargate, in one cluster.
pub fn configuration(root: &str, webhook: &str) -> Value {
    json!({
        "jenkins": {
            "url": root,
            "user": "ecs-agents",
            "apiToken": {"ssm": "/jenkins/api-token"},
            "registerNodes": true,
            "webhook": {"url": webhook, "authorization": {"ssm": "/jenkins/webhook"}},
        },
        "clouds": [
            {
                "name": "linux", "region": REGION, "cluster": CLUSTER, "autoScalingGroup": GROUP,
                "templates": [
                    {"name": "maven", "labels": ["linux", "maven"], "taskDefinition": "jenkins-maven", "container": "agent",
                     "connect": "ssh", "workspace": "/home/jenkins", "ssh": {"credentialsId": "jenkins-agent-key"},
                     "allowedOverrides": ["cpu", "memory", "environment"], "limits": {"cpu": 4096, "memory": 16384}},
                    {"name": "host", "labels": ["linux", "host"], "taskDefinition": "jenkins-host", "container": "agent",
                     "connect": "ssh", "ssh": {"credentialsId": "jenkins-agent-key", "port": 2222}},
                    {"name": "dial", "labels": ["linux", "dial"], "taskDefinition": "jenkins-dial", "container": "agent",
                     "connect": "inbound"},
                ],
            },
            {
                "name": "fargate", "region": REGION, "cluster": CLUSTER,
                "templates": [
                    {"name": "node", "labels": ["linux", "node"], "taskDefinition": "jenkins-node", "container": "agent",
                     "connect": "ssh", "ssh": {"credentialsId": "jenkins-agent-key"}, "launch": {"type": "fargate"},
                     "network": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"]}},
                ],
            },
        ],
    })
}

/// A cluster, task definitions and a group with one instance. Nothing takes time.
///
/// # Errors
/// When ECS refuses a task definition.
pub fn furnish(ecs: &mut Ecs, now: Timestamp) -> Result<()> {
    let settings = ecs.settings();
    settings.without_delays();
    ecs.create_cluster(CLUSTER);
    // A sidecar with a port of its own comes before the agent: the named container counts, not the first.
    let sidecar = json!({"name": "sidecar", "image": "proxy", "essential": true, "cpu": 64, "memory": 64,
        "portMappings": [{"containerPort": 22, "hostPort": 0}]});
    let agent = |ports: Value| {
        json!({"name": "agent", "image": "jenkins/ssh-agent", "essential": true, "cpu": 960, "memory": 1984,
            "portMappings": ports})
    };
    for definition in [
        json!({"family": "jenkins-maven", "networkMode": "bridge",
            "containerDefinitions": [sidecar, agent(json!([{"containerPort": 22, "hostPort": 0}]))]}),
        json!({"family": "jenkins-host", "networkMode": "host",
            "containerDefinitions": [agent(json!([{"containerPort": 2222, "hostPort": 2222}]))]}),
        json!({"family": "jenkins-dial", "networkMode": "bridge", "containerDefinitions": [agent(json!([]))]}),
        json!({"family": "jenkins-node", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "taskRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/agent"), "cpu": "1024", "memory": "2048",
            "containerDefinitions": [agent(json!([{"containerPort": 22, "hostPort": 22}]))]}),
        json!({"family": "jenkins-checked", "networkMode": "bridge", "containerDefinitions": [
            {"name": "agent", "image": "jenkins/ssh-agent", "essential": true, "cpu": 1024, "memory": 2048,
             "healthCheck": {"command": ["CMD", "true"]}, "portMappings": [{"containerPort": 22, "hostPort": 0}]}]}),
    ] {
        let registered = ecs.register_definition(&definition);
        registered.map_err(|error| anyhow::anyhow!("{}: {}", error.code, error.message))?;
    }
    ecs.create_group(GROUP, CLUSTER, (0, 4), (4096, 7680), now);
    ecs.fill_group(GROUP, 1, now);
    ecs.take_events();
    Ok(())
}

/// The same, queues and parameters.
fn build_world(aws: &mut Aws, now: Timestamp) -> Result<()> {
    furnish(&mut aws.ecs, now)?;
    for queue in ["requests", "undelivered", "completions"] {
        let letters = format!("{queue}-dead-letters");
        aws.sqs.create(&letters, 30, None);
        aws.sqs.create(queue, 180, Some((&letters, if queue == "requests" { 12 } else { 1000 })));
    }
    aws.sqs.create("waiting", 30, None);
    aws.sqs.create("rejected", 30, None);
    aws.parameters.values.insert("/jenkins/api-token".into(), API_TOKEN.into());
    aws.parameters.values.insert("/jenkins/webhook".into(), format!("{AUTHORIZATION}\n"));
    Ok(())
}
