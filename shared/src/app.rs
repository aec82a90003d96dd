//! What every invocation of a function works with, built once at start-up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::OnceCell;

use crate::aws::ec2::Addresses;
use crate::aws::ecs::{self, TaskDefinition};
use crate::aws::{ApiFault, CloudClients};
use crate::config::{Cloud, Config, Settings, Template};
use crate::jenkins::Jenkins;
use crate::name::AgentName;

/// Tells the time; the tests' clocks run faster.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock of one's own.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The system's.
    pub fn system() -> Self {
        Self::new(|| {
            let now = Timestamp::now();
            // Milliseconds are what Jenkins and people read.
            now.round(jiff::Unit::Millisecond).unwrap_or(now)
        })
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// Settings, clients and what one process remembers of things that do not change.
pub struct App {
    /// The settings.
    pub settings: Settings,
    /// The clients of each cloud, in the order of the configuration.
    pub clouds: Vec<CloudClients>,
    /// The queues.
    pub sqs: aws_sdk_sqs::Client,
    /// The event bus.
    pub events: aws_sdk_eventbridge::Client,
    /// Who we are.
    pub sts: aws_sdk_sts::Client,
    /// The controller.
    pub jenkins: Jenkins,
    /// The time.
    pub clock: Clock,
    /// What does not change while a process lives.
    pub memory: Memory,
}

/// Facts that are looked up once per process: nothing is lost when it ends.
#[derive(Default)]
pub struct Memory {
    definitions: Lookups<(usize, String), Arc<TaskDefinition>>,
    addresses: Lookups<String, Addresses>,
    told: Mutex<HashMap<String, Told>>,
    waited: Mutex<HashMap<String, Timestamp>>,
    max_receives: OnceCell<Option<u32>>,
}

/// Answers that do not change: whoever asks while somebody else does waits for that answer; a fault is not remembered.
type Lookups<K, V> = Mutex<HashMap<K, Arc<OnceCell<V>>>>;

fn lookup<K: std::hash::Hash + Eq, V>(lookups: &Lookups<K, V>, key: K) -> Arc<OnceCell<V>> {
    lock(lookups).entry(key).or_default().clone()
}

/// A cloud of the configuration with its clients.
#[derive(Clone, Copy)]
pub struct CloudRef<'a> {
    /// Its place in the configuration.
    pub index: usize,
    /// Its settings.
    pub cloud: &'a Cloud,
    /// Its clients.
    pub clients: &'a CloudClients,
}

impl App {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Our agent's name, if that is what it is.
    pub fn agent_name(&self, name: &str) -> Option<AgentName> {
        AgentName::parse(&self.settings.agent_name_prefix, name)
    }

    /// The template's part of an agent's name.
    pub fn template_name<'a>(&self, name: &'a AgentName) -> &'a str {
        name.template(&self.settings.agent_name_prefix)
    }

    /// The cloud at this place of the configuration.
    pub fn cloud(&self, index: usize) -> CloudRef<'_> {
        CloudRef { index, cloud: &self.config().clouds[index], clients: &self.clouds[index] }
    }

    /// All clouds.
    pub fn all_clouds(&self) -> impl Iterator<Item = CloudRef<'_>> {
        (0..self.clouds.len()).map(|index| self.cloud(index))
    }

    /// The clouds of a cluster. Where clouds of several accounts have clusters of one name in one region, those that assume
    /// a role in this account are meant before those that assume none.
    pub fn clouds_of(&self, cluster: ClusterArn<'_>) -> Vec<CloudRef<'_>> {
        let mut clouds: Vec<_> = self.all_clouds().filter(|cloud| cluster.is(cloud.cloud)).collect();
        let is_assumed = |cloud: &CloudRef<'_>| cloud.cloud.assume_role_arn.is_some();
        if clouds.iter().any(is_assumed) {
            clouds.retain(is_assumed);
        }
        clouds
    }

    /// The cloud of a task, by its cluster's ARN or its own: where several share the cluster, the one that has the
    /// template of the agent's name, else the first.
    pub fn cloud_of(&self, cluster: &str, task: &str, name: &AgentName) -> Option<CloudRef<'_>> {
        let cluster = ClusterArn::parse(cluster).or_else(|| ClusterArn::of_resource(task, "task"))?;
        let clouds = self.clouds_of(cluster);
        clouds.iter().find(|cloud| cloud.template(self.template_name(name)).is_some()).or(clouds.first()).copied()
    }

    /// A task definition, described once.
    ///
    /// # Errors
    /// When ECS could not be asked or does not know it.
    pub async fn task_definition(&self, cloud: CloudRef<'_>, name: &str) -> Result<Arc<TaskDefinition>, ApiFault> {
        let known = lookup(&self.memory.definitions, (cloud.index, name.to_owned()));
        let describe = async || ecs::describe_task_definition(&cloud.clients.ecs, name).await.map(Arc::new);
        known.get_or_try_init(describe).await.cloned()
    }

    /// The addresses of a container instance, looked up once.
    ///
    /// # Errors
    /// When AWS could not be asked or does not know the instance.
    pub async fn instance_addresses(&self, cloud: CloudRef<'_>, arn: &str) -> Result<Addresses, ApiFault> {
        let known = lookup(&self.memory.addresses, arn.to_owned());
        let look = async || {
            let unknown = |message: String| ApiFault { action: "ecs:DescribeContainerInstances", code: None, message };
            let arns = [arn.to_owned()];
            let instances = ecs::describe_instances(&cloud.clients.ecs, &cloud.cloud.cluster, &arns).await?;
            let id = instances
                .into_iter()
                .find_map(|instance| instance.ec2_id)
                .ok_or_else(|| unknown(format!("{arn} has no EC2 instance")))?;
            Ok(cloud.clients.ec2.instance(&id).await?.0)
        };
        known.get_or_try_init(look).await.cloned()
    }

    /// Whether ECS knows a task of this name, one that runs or one that ended within the last hour: its agent's outcome was
    /// told, or will be.
    ///
    /// # Errors
    /// When ECS could not be asked.
    pub async fn has_task(&self, cloud: CloudRef<'_>, name: &AgentName) -> Result<bool, ApiFault> {
        let arns = ecs::tasks_of(&cloud.clients.ecs, &cloud.cloud.cluster, name.as_str()).await?;
        Ok(!arns.is_empty())
    }

    /// After how many receives the requests queue moves a message to its dead letters, asked once.
    ///
    /// # Errors
    /// When SQS could not be asked.
    pub async fn max_receives(&self) -> Result<Option<u32>, ApiFault> {
        let ask = async || crate::aws::queues::max_receives(&self.sqs, &self.settings.queues.requests).await;
        self.memory.max_receives.get_or_try_init(ask).await.copied()
    }

    /// Remembers that a copy of a request has gone to wait, for a day: its next RunTask has another token, so that a later
    /// copy has to look for its task before it runs one. Copies that other processes meet are found by the younger
    /// task's event, or the sweep.
    pub fn remember_wait(&self, request_id: &str) {
        let now = self.now();
        let mut waited = lock(&self.memory.waited);
        if waited.len() >= 10_000 {
            waited.retain(|_, at| now.duration_since(*at).as_hours() < 24);
        }
        waited.insert(request_id.to_owned(), now);
    }

    /// Whether a copy of a request has gone to wait.
    pub fn has_waited(&self, request_id: &str) -> bool {
        lock(&self.memory.waited).contains_key(request_id)
    }

    /// Whether this process has told a notice to the request's webhook.
    pub fn was_told(&self, notice_id: &str) -> bool {
        matches!(lock(&self.memory.told).get(notice_id), Some(Told::At(_)))
    }

    /// Claims a notice for telling it to the request's webhook. A help against events that come twice, where ECS takes no
    /// tag any more; nothing depends on it.
    pub fn claim(&self, notice_id: &str) -> Claim<'_> {
        let now = self.now();
        let mut told = lock(&self.memory.told);
        if told.len() >= 10_000 {
            let recent = |at: Timestamp| now.duration_since(at).as_secs() < 3600;
            told.retain(|_, state| matches!(state, Told::Now) || matches!(state, Told::At(at) if recent(*at)));
        }
        match told.get(notice_id) {
            Some(Told::At(_)) => Claim::Told,
            Some(Told::Now) => Claim::Anothers,
            None => {
                told.insert(notice_id.to_owned(), Told::Now);
                Claim::Mine(Telling { app: self, notice_id: notice_id.to_owned(), is_told: false })
            }
        }
    }
}

/// What this process knows of a notice.
enum Told {
    /// It is being told.
    Now,
    /// It was told.
    At(Timestamp),
}

/// Who tells a notice.
pub enum Claim<'a> {
    /// Whoever claimed it.
    Mine(Telling<'a>),
    /// Somebody else in this process, just now.
    Anothers,
    /// It was told.
    Told,
}

/// A notice that is being told; it can be claimed again unless it was.
pub struct Telling<'a> {
    app: &'a App,
    notice_id: String,
    is_told: bool,
}

impl Telling<'_> {
    /// It was told.
    pub fn done(mut self) {
        self.is_told = true;
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let mut told = lock(&self.app.memory.told);
        if self.is_told {
            told.insert(std::mem::take(&mut self.notice_id), Told::At(self.app.now()));
        } else {
            told.remove(&self.notice_id);
        }
    }
}

/// A panic in one record must not take the memory from the others.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> CloudRef<'a> {
    /// A template of this cloud.
    pub fn template(&self, name: &str) -> Option<&'a Template> {
        self.cloud.templates.iter().find(|template| template.name == name)
    }
}

/// The ARN of a cluster, taken apart: `arn:aws:ecs:REGION:ACCOUNT:cluster/NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterArn<'a> {
    /// The region.
    pub region: &'a str,
    /// The account.
    pub account: &'a str,
    /// The cluster's name.
    pub name: &'a str,
}

impl<'a> ClusterArn<'a> {
    /// Takes the ARN of a cluster apart.
    pub fn parse(arn: &'a str) -> Option<Self> {
        let (region, account, resource) = ecs_arn(arn)?;
        Some(Self { region, account, name: resource.strip_prefix("cluster/")? })
    }

    /// The cluster in the ARN of a task or a container instance: `arn:aws:ecs:REGION:ACCOUNT:task/NAME/ID`.
    pub fn of_resource(arn: &'a str, kind: &str) -> Option<Self> {
        let (region, account, resource) = ecs_arn(arn)?;
        let (name, id) = resource.strip_prefix(kind)?.strip_prefix('/')?.split_once('/')?;
        (!name.is_empty() && !id.is_empty() && !id.contains('/')).then_some(Self { region, account, name })
    }

    /// Whether it is the cluster of this cloud, as far as that is known: a cloud without a role and with a bare cluster
    /// name may be in any account.
    pub fn is(&self, cloud: &Cloud) -> bool {
        let account = cloud.assume_role_arn.as_deref().and_then(|role| role.split(':').nth(4));
        self.region == cloud.region
            && account.is_none_or(|account| account == self.account)
            && match ClusterArn::parse(&cloud.cluster) {
                Some(own) => (own.region, own.account, own.name) == (self.region, self.account, self.name),
                None => cloud.cluster == self.name,
            }
    }
}

fn ecs_arn(arn: &str) -> Option<(&str, &str, &str)> {
    let mut parts = arn.splitn(6, ':');
    let head = (parts.next()?, parts.next()?, parts.next()?);
    (head.0 == "arn" && head.2 == "ecs").then_some(())?;
    Some((parts.next()?, parts.next()?, parts.next()?))
}
