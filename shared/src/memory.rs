//! What one process remembers: nothing depends on it, and nothing is lost with it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::OnceCell;

use crate::aws::ec2::Addresses;
use crate::aws::ecs::TaskDefinition;
use crate::aws::queues::Queues;
use crate::cloud::Cloud;
use crate::config::Address;
use crate::fault::Fault;

/// Facts that are looked up once per process.
#[derive(Default)]
pub struct Memory {
    definitions: Lookups<(usize, String), Arc<TaskDefinition>>,
    ec2_ids: Lookups<String, String>,
    addresses: Lookups<String, Addresses>,
    notices: Mutex<HashMap<String, NoticeState>>,
    waited: Mutex<HashMap<String, Timestamp>>,
    started: Mutex<HashMap<String, String>>,
    max_receives: OnceCell<Option<u32>>,
}

/// How many entries a map may have before old ones go.
const LIMIT: usize = 10_000;

/// Answers that do not change. Concurrent callers share one call; faults are not remembered.
type Lookups<K, V> = Mutex<HashMap<K, Arc<OnceCell<V>>>>;

fn lookup<K: Hash + Eq, V>(lookups: &Lookups<K, V>, key: K) -> Arc<OnceCell<V>> {
    lock(lookups).entry(key).or_default().clone()
}

/// A panic in one record must not make the memory unusable for the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// A task definition, described once.
    ///
    /// # Errors
    /// When ECS could not be queried or does not know it.
    pub async fn task_definition(&self, cloud: &Cloud, name: &str) -> Result<Arc<TaskDefinition>, Fault> {
        let known = lookup(&self.definitions, (cloud.index, name.to_owned()));
        let describe = async || cloud.cluster.describe_task_definition(name).await.map(Arc::new);
        known.get_or_try_init(describe).await.cloned()
    }

    /// A task definition, described again: a family may have a newer revision than the remembered one.
    ///
    /// # Errors
    /// When ECS could not be queried or does not know it.
    pub async fn refresh_task_definition(&self, cloud: &Cloud, name: &str) -> Result<Arc<TaskDefinition>, Fault> {
        lock(&self.definitions).remove(&(cloud.index, name.to_owned()));
        self.task_definition(cloud, name).await
    }

    /// The addresses of a container instance, read from EC2 each time: public ones may change, or come late.
    ///
    /// # Errors
    /// When AWS could not be queried or does not know the instance.
    pub async fn addresses_now(&self, cloud: &Cloud, arn: &str) -> Result<Addresses, Fault> {
        let known = lookup(&self.ec2_ids, arn.to_owned());
        let look = async || {
            let instances = cloud.cluster.describe_instances(&[arn.to_owned()]).await?;
            let unknown = || Fault::not_yet(format!("container instance {arn} has no EC2 instance"));
            instances.into_iter().find_map(|instance| instance.ec2_id).ok_or_else(unknown)
        };
        let id = known.get_or_try_init(look).await?;
        Ok(cloud.ec2.instance(id).await?.0)
    }

    /// The permanent addresses of a container instance, looked up once; public ones are not included.
    ///
    /// # Errors
    /// When AWS could not be queried, does not know the instance, or the instance has none yet.
    pub async fn private_addresses(&self, cloud: &Cloud, arn: &str) -> Result<Addresses, Fault> {
        let known = lookup(&self.addresses, arn.to_owned());
        let look = async || {
            let found = Addresses { public: None, ..self.addresses_now(cloud, arn).await? };
            let none = || Fault::not_yet(format!("container instance {arn} has no address yet"));
            found.host(Address::Private).ok_or_else(none).map(|_| found)
        };
        known.get_or_try_init(look).await.cloned()
    }

    /// The number of receives after which the requests queue moves a message to its dead-letter queue, asked once.
    ///
    /// # Errors
    /// When SQS could not be queried.
    pub async fn max_receives(&self, queues: &Queues) -> Result<Option<u32>, Fault> {
        let ask = async || queues.max_receives(&queues.urls.requests).await;
        self.max_receives.get_or_try_init(ask).await.copied()
    }

    /// The same, if it has been read already.
    pub fn known_max_receives(&self) -> Option<u32> {
        self.max_receives.get().copied().flatten()
    }

    /// Remembers for a day that a copy of a request has begun to wait: its next RunTask has another token, so a later
    /// copy has to look for its task before it runs one. Copies in other processes are found by the younger task's
    /// event, or the sweep.
    pub fn remember_wait(&self, request_id: &str, now: Timestamp) {
        let mut waited = lock(&self.waited);
        if waited.len() >= LIMIT {
            waited.retain(|_, at| now.duration_since(*at).as_hours() < 24);
        }
        waited.insert(request_id.to_owned(), now);
    }

    /// Whether a copy of a request has begun to wait.
    pub fn has_waited(&self, request_id: &str) -> bool {
        lock(&self.waited).contains_key(request_id)
    }

    /// Whether a task was started for a message other than this one, which makes this one a copy. ECS' answer alone may
    /// not show it: clocks differ, and a task is pending for a while.
    pub fn was_started_for_another(&self, task_arn: &str, message_id: &str) -> bool {
        let mut started = lock(&self.started);
        if started.len() >= LIMIT {
            started.clear();
        }
        started.entry(task_arn.to_owned()).or_insert_with(|| message_id.to_owned()) != message_id
    }

    /// Whether this process has delivered a notice to the request's webhook.
    pub fn was_delivered(&self, notice_id: &str) -> bool {
        matches!(lock(&self.notices).get(notice_id), Some(NoticeState::Delivered(_)))
    }

    /// Claims a notice for delivery to the request's webhook. This prevents duplicates when events come twice and ECS
    /// accepts no tag any more.
    pub fn claim(&self, notice_id: &str, now: Timestamp) -> Claim<'_> {
        let mut notices = lock(&self.notices);
        if notices.len() >= LIMIT {
            let is_recent = |at: Timestamp| now.duration_since(at).as_secs() < 3600;
            notices.retain(|_, state| match state {
                NoticeState::OnItsWay => true,
                NoticeState::Delivered(at) => is_recent(*at),
            });
        }
        match notices.get(notice_id) {
            Some(NoticeState::Delivered(_)) => Claim::Delivered,
            Some(NoticeState::OnItsWay) => Claim::Taken,
            None => {
                notices.insert(notice_id.to_owned(), NoticeState::OnItsWay);
                Claim::Mine(Delivery { memory: self, notice_id: notice_id.to_owned(), delivered_at: None })
            }
        }
    }
}

/// A notice as this process knows it.
enum NoticeState {
    OnItsWay,
    Delivered(Timestamp),
}

/// The result of a claim.
pub enum Claim<'a> {
    /// The caller delivers it.
    Mine(Delivery<'a>),
    /// Another task of this process is delivering it.
    Taken,
    /// It was delivered.
    Delivered,
}

/// A claimed notice; it can be claimed again unless it is delivered.
pub struct Delivery<'a> {
    memory: &'a Memory,
    notice_id: String,
    delivered_at: Option<Timestamp>,
}

impl Delivery<'_> {
    /// The notice was delivered.
    pub fn done(mut self, now: Timestamp) {
        self.delivered_at = Some(now);
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let mut notices = lock(&self.memory.notices);
        match self.delivered_at {
            Some(at) => {
                notices.insert(std::mem::take(&mut self.notice_id), NoticeState::Delivered(at));
            }
            None => {
                notices.remove(&self.notice_id);
            }
        }
    }
}
