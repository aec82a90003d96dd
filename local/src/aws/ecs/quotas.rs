//! ECS' rate limits: a token bucket for each kind of call of an account in a region ("Request throttling for the Amazon
//! ECS API").

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{ApiError, Ecs};

/// A token bucket's size and refill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls at once.
    pub burst: u32,
    /// Calls a second in the long run.
    pub per_second: u32,
}

impl Rate {
    const fn new(burst: u32, per_second: u32) -> Self {
        Self { burst, per_second }
    }
}

/// The quotas of an account, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// DescribeTasks, ListTasks, DescribeContainerInstances and ListContainerInstances together.
    pub reads: Rate,
    /// RunTask, StopTask and every other change of a cluster's resources together.
    pub changes: Rate,
    /// TagResource and UntagResource together.
    pub tags: Rate,
    /// ListTagsForResource.
    pub tag_reads: Rate,
    /// DescribeClusters.
    pub cluster_reads: Rate,
    /// DescribeTaskDefinition.
    pub definition_reads: Rate,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            reads: Rate::new(100, 20),
            changes: Rate::new(100, 40),
            tags: Rate::new(20, 10),
            tag_reads: Rate::new(50, 20),
            cluster_reads: Rate::new(50, 20),
            definition_reads: Rate::new(50, 20),
        }
    }
}

impl Quotas {
    /// The bucket of a call; none for calls that the functions never make often.
    fn bucket(&self, action: &str) -> Option<(&'static str, Rate)> {
        Some(match action {
            "DescribeTasks" | "ListTasks" | "DescribeContainerInstances" | "ListContainerInstances" => {
                ("reads", self.reads)
            }
            "RunTask"
            | "StopTask"
            | "UpdateContainerInstancesState"
            | "DeregisterContainerInstance"
            | "PutAttributes"
            | "DeleteAttributes" => ("changes", self.changes),
            "TagResource" | "UntagResource" => ("tags", self.tags),
            "ListTagsForResource" => ("tag reads", self.tag_reads),
            "DescribeClusters" => ("cluster reads", self.cluster_reads),
            "DescribeTaskDefinition" => ("definition reads", self.definition_reads),
            _ => return None,
        })
    }
}

/// The tokens left in the buckets, and since when.
#[derive(Debug, Default)]
pub(super) struct Buckets(BTreeMap<&'static str, (f64, Timestamp)>);

impl Buckets {
    /// Takes a token, if there is one.
    fn take(&mut self, name: &'static str, rate: Rate, now: Timestamp) -> bool {
        let (tokens, since) = self.0.get(name).copied().unwrap_or((f64::from(rate.burst), now));
        let refilled = tokens + now.duration_since(since).as_secs_f64().max(0.0) * f64::from(rate.per_second);
        let tokens = refilled.min(f64::from(rate.burst));
        let has_one = tokens >= 1.0;
        self.0.insert(name, (if has_one { tokens - 1.0 } else { tokens }, now));
        has_one
    }
}

impl Ecs {
    /// Counts a call. RunTask also has a rate limit of its own for launched tasks.
    pub(super) fn throttle(&mut self, action: &str, now: Timestamp) -> Result<(), ApiError> {
        let of_account = self.settings.quotas.and_then(|quotas| quotas.bucket(action));
        let launches = self.settings.run_task_rate.filter(|_| action == "RunTask");
        let launches = launches.map(|(per_second, burst)| ("launches", Rate { burst, per_second }));
        for (name, rate) in of_account.into_iter().chain(launches) {
            if !self.buckets.take(name, rate, now) {
                return Err(ApiError::new("ThrottlingException", "Rate exceeded"));
            }
        }
        Ok(())
    }
}
