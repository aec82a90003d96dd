//! What one process remembers: nothing depends on it, nothing is lost with it, and none of it grows without an end.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    notices: Mutex<Recent<String, NoticeState>>,
    waited: Mutex<Recent<String, ()>>,
    started: Mutex<Recent<String, String>>,
    max_receives: OnceCell<Option<u32>>,
}

/// How many of the last entries are kept at least: those of minutes, even of the largest site. A few hundred bytes each.
const RECENT: usize = 2000;

/// The last entries: at least [`RECENT`], and at most twice as many.
struct Recent<K, V> {
    new: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { new: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Hash + Eq, V> Recent<K, V> {
    fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.new.get(key).or_else(|| self.old.get(key))
    }

    fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.new.len() >= RECENT {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(key, value);
    }

    fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (new, old) = (self.new.remove(key), self.old.remove(key));
        new.or(old)
    }
}

/// Answers that do not change. Concurrent callers share one call; faults are not remembered.
type Lookups<K, V> = Mutex<Recent<K, Arc<OnceCell<V>>>>;

/// What is used again is recent again.
fn lookup<K: Hash + Eq, V>(lookups: &Lookups<K, V>, key: K) -> Arc<OnceCell<V>> {
    let mut lookups = lock(lookups);
    let known = lookups.remove(&key).unwrap_or_default();
    lookups.insert(key, known.clone());
    known
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

    /// Remembers that a copy of a request has begun to wait: its next RunTask has another token, so a later copy has to
    /// look for its task before it runs one. Copies in other processes are found by the younger task's event, or the
    /// sweep.
    pub fn remember_wait(&self, request_id: &str) {
        lock(&self.waited).insert(request_id.to_owned(), ());
    }

    /// Whether a copy of a request has begun to wait.
    pub fn has_waited(&self, request_id: &str) -> bool {
        lock(&self.waited).get(request_id).is_some()
    }

    /// Whether a task was started for a message other than this one, which makes this one a copy. ECS' answer alone may
    /// not show it: clocks differ, and a task is pending for a while.
    pub fn was_started_for_another(&self, task_arn: &str, message_id: &str) -> bool {
        let mut started = lock(&self.started);
        if let Some(first) = started.get(task_arn) {
            return first != message_id;
        }
        started.insert(task_arn.to_owned(), message_id.to_owned());
        false
    }

    /// Whether this process has delivered a notice to the request's webhook.
    pub fn was_delivered(&self, notice_id: &str) -> bool {
        matches!(lock(&self.notices).get(notice_id), Some(NoticeState::Delivered))
    }

    /// Claims a notice for delivery to the request's webhook. This prevents duplicates when events come twice and ECS
    /// accepts no tag any more.
    pub fn claim(&self, notice_id: &str) -> Claim<'_> {
        let mut notices = lock(&self.notices);
        match notices.get(notice_id) {
            Some(NoticeState::Delivered) => Claim::Delivered,
            Some(NoticeState::OnItsWay) => Claim::Taken,
            None => {
                notices.insert(notice_id.to_owned(), NoticeState::OnItsWay);
                Claim::Mine(Delivery { memory: self, notice_id: notice_id.to_owned(), is_delivered: false })
            }
        }
    }
}

/// A notice as this process knows it.
enum NoticeState {
    OnItsWay,
    Delivered,
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
    is_delivered: bool,
}

impl Delivery<'_> {
    /// The notice was delivered.
    pub fn done(mut self) {
        self.is_delivered = true;
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let mut notices = lock(&self.memory.notices);
        if self.is_delivered {
            notices.insert(std::mem::take(&mut self.notice_id), NoticeState::Delivered);
        } else {
            notices.remove(&self.notice_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_last_entries_and_no_more() {
        let memory = Memory::default();
        for number in 0..10 * RECENT {
            let id = number.to_string();
            memory.remember_wait(&id);
            assert!(!memory.was_started_for_another(&id, "a") && memory.was_started_for_another(&id, "b"));
            let Claim::Mine(delivery) = memory.claim(&id) else { panic!("{id} was claimed before") };
            assert!(matches!(memory.claim(&id), Claim::Taken));
            delivery.done();
            drop(lookup(&memory.ec2_ids, id));
            // In use all the time.
            drop(lookup(&memory.ec2_ids, "0".into()));
        }
        for number in 9 * RECENT..10 * RECENT {
            let id = number.to_string();
            assert!(memory.has_waited(&id) && memory.was_delivered(&id) && lock(&memory.ec2_ids).get(&id).is_some());
        }
        assert!(!memory.has_waited("0") && !memory.was_delivered("0"));
        assert!(lock(&memory.ec2_ids).get("0").is_some());
        fn count<K, V>(recent: &Mutex<Recent<K, V>>) -> usize {
            let recent = lock(recent);
            recent.new.len() + recent.old.len()
        }
        let counts = [count(&memory.notices), count(&memory.waited), count(&memory.started), count(&memory.ec2_ids)];
        assert!(counts.iter().all(|count| (RECENT..=2 * RECENT).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_notice_that_was_not_delivered_is_claimed_again() {
        let memory = Memory::default();
        drop(memory.claim("a"));
        assert!(!memory.was_delivered("a") && matches!(memory.claim("a"), Claim::Mine(_)));
    }
}
