//! A faithful simulator of Amazon ECS, of the Auto Scaling groups of its instances, and of the EC2 reads.
//!
//! One world: a group's instances boot, register in the cluster, run tasks, and end them when they are terminated.
//! Names and rules are those of the AWS API references and of botocore's service models (`API_…` names the page, a
//! title in quotation marks one of a developer guide); where neither has an error's words, they are those seen in
//! practice.
//!
//! It has no clock, no thread and no randomness: every call carries its time, ids come from a counter, and the same
//! calls give the same answers and events.

mod activities;
mod clusters;
mod daemons;
mod definitions;
mod ec2;
mod group_calls;
mod groups;
pub(super) mod input;
mod instances;
mod life;
mod placement;
mod query;
mod quotas;
mod run;
mod scaling;
mod settings;
mod tags;
mod tasks;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

pub use super::ApiError;
pub use definitions::{Network, TaskDefinition};
pub use groups::{Group, Kind, Member};
pub use instances::{Instance, InstanceStatus, Registration};
pub use quotas::{Quotas, Rate};
pub use settings::{Addressing, Behaviour, Settings};
pub use tasks::{Binding, Container, Health, Interface, Status, Task};

use clusters::{CapacityProvider, Cluster};
use daemons::Daemon;
use ec2::Machine;
use input::{invalid, number, object, text};
use placement::Launch;
use quotas::Buckets;
use run::Spent;

/// The world.
pub struct Ecs {
    region: String,
    account: String,
    settings: Settings,
    behaviours: HashMap<String, Behaviour>,
    clusters: BTreeMap<String, Cluster>,
    providers: BTreeMap<String, CapacityProvider>,
    daemons: Vec<Daemon>,
    /// The revisions of each family, in order.
    definitions: BTreeMap<String, Vec<Arc<TaskDefinition>>>,
    groups: BTreeMap<String, Group>,
    machines: BTreeMap<String, Machine>,
    instances: BTreeMap<String, Instance>,
    tasks: BTreeMap<String, Task>,
    /// ARNs of the tasks with the desired status RUNNING.
    active: BTreeSet<String>,
    /// ARNs of the tasks that are stopping or have stopped.
    ended: BTreeSet<String>,
    by_starter: HashMap<String, BTreeSet<String>>,
    nothing: BTreeSet<String>,
    /// The tasks of network interfaces.
    interfaces: HashMap<String, String>,
    /// The calls that used client tokens, by cluster and token.
    tokens: HashMap<(String, String), Spent>,
    /// The tasks that wait for an instance, oldest first.
    waiting: BTreeMap<u64, (String, Launch)>,
    due: BTreeMap<(Timestamp, u64), Due>,
    events: Vec<Value>,
    buckets: Buckets,
    counter: u64,
    now: Timestamp,
    /// Names under which more than one task was active at once: duplicate agents.
    pub doubled: BTreeSet<String>,
}

/// Something that happens by itself.
#[derive(Debug, Clone)]
enum Due {
    /// A task, by its ARN, takes a step.
    Task(String, Step),
    /// A task's container ends with this exit code.
    Exit(String, i32),
    /// A stopped task is forgotten.
    Forget(String),
    /// An EC2 instance, by its id, has booted.
    Boot(String),
    /// A lifecycle hook releases it.
    Proceed(String),
    /// A group, by its name, retries a launch.
    Retry(String),
    /// A group rebalances its zones.
    Rebalance(String),
    /// It registers in its cluster.
    Register(String),
    /// It is gone.
    Gone(String),
    /// It is forgotten.
    ForgetMachine(String),
    /// A capacity provider's group is raised.
    Scale(String),
}

/// A step in a task's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Prepared,
    Pulled,
    Started,
    Bound,
    Checked,
    Stopping,
    Ended,
    Gone,
}

/// The format of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// Seconds since 1970 (AWS JSON 1.1).
    Answer,
    /// RFC 3339.
    Event,
}

impl Clock {
    fn show(self, time: Timestamp) -> Value {
        match self {
            Self::Answer => seconds(time).into(),
            Self::Event => Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time).to_string().into(),
        }
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// A permutation of the 64-bit numbers that hides their order (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Ecs {
    /// An empty region of an account.
    pub fn new(region: &str, account: &str) -> Self {
        Self {
            region: region.to_owned(),
            account: account.to_owned(),
            settings: Settings::default(),
            behaviours: HashMap::new(),
            clusters: BTreeMap::new(),
            providers: BTreeMap::new(),
            daemons: Vec::new(),
            definitions: BTreeMap::new(),
            groups: BTreeMap::new(),
            machines: BTreeMap::new(),
            instances: BTreeMap::new(),
            tasks: BTreeMap::new(),
            active: BTreeSet::new(),
            ended: BTreeSet::new(),
            by_starter: HashMap::new(),
            nothing: BTreeSet::new(),
            interfaces: HashMap::new(),
            tokens: HashMap::new(),
            waiting: BTreeMap::new(),
            due: BTreeMap::new(),
            events: Vec::new(),
            buckets: Buckets::default(),
            counter: 0,
            now: Timestamp::UNIX_EPOCH,
            doubled: BTreeSet::new(),
        }
    }

    /// Delays and limits.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// How the tasks of a family behave from now on.
    pub fn behave(&mut self, family: &str, behaviour: Behaviour) {
        self.behaviours.insert(family.to_owned(), behaviour);
    }

    /// All tasks that ECS still knows, ordered by ARN.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// A task.
    pub fn task(&self, arn: &str) -> Option<&Task> {
        self.tasks.get(arn)
    }

    /// A task, for tests that change what the API cannot.
    pub fn task_mut(&mut self, arn: &str) -> Option<&mut Task> {
        self.tasks.get_mut(arn)
    }

    /// All container instances.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// A container instance.
    pub fn instance(&self, arn: &str) -> Option<&Instance> {
        self.instances.get(arn)
    }

    /// A container instance, for tests that change what the API cannot.
    pub fn instance_mut(&mut self, arn: &str) -> Option<&mut Instance> {
        self.instances.get_mut(arn)
    }

    /// The container instance on an EC2 instance.
    pub fn instance_of(&self, ec2_id: &str) -> Option<&Instance> {
        self.instances.values().find(|instance| instance.ec2_id == ec2_id)
    }

    /// The events since the last call, as EventBridge envelopes.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// When something next happens by itself.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Processes everything that is due, each step at its own time.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((at, _), due) = entry.remove_entry();
            match due {
                Due::Task(arn, step) => self.step(&arn, step, at),
                Due::Exit(arn, code) => self.exit(&arn, code, at),
                Due::Forget(arn) => self.forget(&arn),
                Due::Boot(id) => self.boot(&id, at),
                Due::Proceed(id) => self.proceed(&id, at),
                Due::Retry(name) => self.retry(&name, at),
                Due::Rebalance(name) => self.rebalance(&name, at),
                Due::Register(id) => self.register(&id, at),
                Due::Gone(id) => self.gone(&id, at),
                Due::ForgetMachine(id) => drop(self.machines.remove(&id)),
                Due::Scale(provider) => self.scale(&provider, at),
            }
        }
        self.now = self.now.max(now);
    }

    /// Answers a call of ECS' API.
    ///
    /// # Errors
    /// As ECS answers them.
    pub fn call(&mut self, action: &str, input: &Value, now: Timestamp) -> Result<Value, ApiError> {
        self.advance(now);
        self.throttle(action, now)?;
        match action {
            "CreateCluster" => self.create_cluster_call(input),
            "DescribeClusters" => self.describe_clusters(input),
            "RegisterTaskDefinition" => self.register_task_definition(input, now),
            "DeregisterTaskDefinition" => self.deregister_task_definition(input),
            "DescribeTaskDefinition" => self.describe_task_definition(input),
            "RunTask" => self.run_task(input, now),
            "StopTask" => self.stop_task(input, now),
            "DescribeTasks" => self.describe_tasks(input),
            "ListTasks" => self.list_tasks(input),
            "ListServices" => self.list_services(input),
            "ListContainerInstances" => self.list_container_instances(input),
            "DescribeContainerInstances" => self.describe_container_instances(input),
            "UpdateContainerInstancesState" => self.update_container_instances(input, now),
            "DeregisterContainerInstance" => self.deregister_container_instance(input, now),
            "PutAttributes" | "DeleteAttributes" => self.attributes(action, input),
            "TagResource" | "UntagResource" | "ListTagsForResource" => self.tagging(action, input),
            _ => Err(ApiError::new("UnknownOperationException", format!("{action} is not simulated"))),
        }
    }

    fn later(&mut self, at: Timestamp, delay: Duration, due: Due) {
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
        let at = at.checked_add(delay).unwrap_or(Timestamp::MAX);
        let number = self.next();
        self.due.insert((at, number), due);
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// 32 hexadecimal digits, like the ids of tasks and container instances.
    fn id(&mut self) -> String {
        let number = self.next();
        format!("{:016x}{:016x}", mix(number), mix(!number))
    }

    /// An id of EC2: a prefix and 17 hexadecimal digits.
    fn hex_id(&mut self, prefix: &str) -> String {
        let number = self.next();
        format!("{prefix}-0{:016x}", mix(number))
    }

    fn uuid(&mut self) -> String {
        let id = self.id();
        format!("{}-{}-4{}-a{}-{}", &id[..8], &id[8..12], &id[13..16], &id[17..20], &id[20..])
    }

    fn arn(&self, resource: &str) -> String {
        format!("arn:aws:ecs:{}:{}:{resource}", self.region, self.account)
    }

    fn zone(&self, number: u64) -> String {
        format!("{}{}", self.region, if number.is_multiple_of(2) { 'a' } else { 'b' })
    }

    /// An EventBridge event of ECS ("Amazon ECS events").
    fn event(&mut self, kind: &str, arn: &str, detail: Value, now: Timestamp) {
        let id = self.uuid();
        let event = object([
            ("version", "0".into()),
            ("id", id.into()),
            ("detail-type", kind.into()),
            ("source", "aws.ecs".into()),
            ("account", self.account.as_str().into()),
            ("time", Clock::Event.show(now)),
            ("region", self.region.as_str().into()),
            ("resources", vec![arn].into()),
            ("detail", detail),
        ]);
        self.events.push(event);
    }
}

/// A page of sorted ARNs, a hundred at most (API_ListTasks, API_ListContainerInstances). A token names where the page
/// before ended, so that concurrent changes neither repeat nor hide the rest.
fn page<'a>(arns: impl Iterator<Item = &'a str>, input: &Value, name: &str) -> Result<Value, ApiError> {
    let most = if input["maxResults"].is_null() { Some(100) } else { number(&input["maxResults"]) };
    let most = most.filter(|most| (1..=100).contains(most)).ok_or_else(|| invalid("maxResults: 1 to 100"))?;
    let after = text(input, "nextToken").unwrap_or_default();
    if !after.is_empty() && !after.starts_with("arn:") {
        return Err(invalid("Invalid token: the nextToken is not one that was given out."));
    }
    let mut rest = arns.skip_while(|arn| *arn <= after);
    let page: Vec<&str> = rest.by_ref().take(most as usize).collect();
    let next = rest.next().and(page.last()).copied();
    Ok(object([("nextToken", next.into()), (name, page.into())]))
}
