//! The sweep catches what events have missed. A part that fails does not prevent the others, and nothing is stopped on
//! a guess.

mod instances;
mod nodes;
mod tasks;
mod waiting;

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use futures::future;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use shared::app::App;
use shared::batch::{Invocation, guarded};
use shared::capacity::Need;
use shared::fault::Fault;
use shared::log_fault;
use shared::name::AgentName;
use shared::observe;
use shared::wait::{self, Waiting};
use tracing::{Instrument as _, Span};

use self::nodes::Nodes;
use self::tasks::ClusterTasks;
use crate::plan::waiting::{self as plan, Agents};

/// Concurrent items; more would only exceed AWS' rates.
const CONCURRENCY: usize = 10;

/// Does everything that is due at `time`. The parts run concurrently: a slow Jenkins does not delay requests.
pub async fn sweep(app: &App, invocation: &Invocation, time: Timestamp) {
    // Waiting requests are hidden from all others before the tasks are listed: no request that is not among the tasks
    // is placed meanwhile.
    let (nodes, messages) =
        tokio::join!(Nodes::fetch(app, invocation), guarded(invocation, wait::look_at_all(&app.queues)));
    let mut agents = Agents::new(&app.settings.agent_name_prefix);
    let mut on_instances = observe::Tasks::default();
    let found = list_tasks(app, invocation, &mut agents, &mut on_instances).await;
    let running: HashSet<AgentName> = found.iter().flat_map(|it| &it.running).map(|task| task.name.clone()).collect();
    let all_known = agents.unknown.is_empty();
    let ends = async {
        for tasks in &found {
            tasks::sweep(app, invocation, &tasks.running, &nodes, time).await;
            tasks::sweep_ends(app, invocation, &tasks.stopped, time).await;
        }
    };
    let orphans = async {
        if let Nodes::Known(nodes) = &nodes
            && all_known
        {
            nodes::sweep(app, invocation, nodes.values(), &running, time).await;
        }
    };
    let capacity = async {
        let needed = match messages {
            Ok(messages) => {
                log_counts(app, &messages, &agents, time);
                waiting::sweep(app, invocation, messages, (agents, &on_instances), time).await
            }
            Err(fault) => {
                log_fault!(&fault, "the waiting queue could not be read; no instance is given back");
                // Somebody may wait for any of them.
                app.clouds.iter().map(|cloud| (cloud.index, BTreeSet::from([Need::default()]))).collect()
            }
        };
        instances::sweep(app, invocation, &needed, &on_instances, time).await;
    };
    tokio::join!(ends, orphans, capacity);
}

/// Lists the tasks of each cluster that can be queried, and counts their agents.
async fn list_tasks<'a>(
    app: &'a App,
    invocation: &Invocation,
    agents: &mut Agents,
    on_instances: &mut observe::Tasks,
) -> Vec<ClusterTasks<'a>> {
    let mut found = Vec::new();
    for cloud in app.clouds.distinct_clusters() {
        match guarded(invocation, ClusterTasks::fetch(app, cloud, on_instances)).await {
            Err(fault) => {
                let key = cloud.cluster_key();
                agents.unknown.extend(app.clouds.iter().filter(|it| it.cluster_key() == key).map(|it| it.index));
                log_fault!(&fault, cloud = cloud.name(), "the cluster could not be queried; nothing is stopped there");
            }
            Ok(tasks) => {
                for task in &tasks.running {
                    agents.count(task.cloud.index, app.template_name(&task.name));
                }
                agents.names.extend(tasks.running.iter().chain(&tasks.stopped).map(|task| task.name.clone()));
                found.push(tasks);
            }
        }
    }
    found
}

/// Logs how many agents of each template there are.
fn log_counts(app: &App, messages: &[Waiting], agents: &Agents, now: Timestamp) {
    for count in plan::counts(&app.config().clouds, messages, agents, now) {
        tracing::info!(
            cloud = count.cloud,
            template = count.template,
            metric.agents_running = count.running,
            metric.agents_waiting = count.waiting,
            metric.oldest_wait_ms = count.oldest_wait_ms,
            "agents of the template"
        );
    }
}

/// Items that take longer than this are rare. None is begun so late that the deadline may cut it off, since the next sweep
/// would then repeat it.
const ITEM: Duration = Duration::from_secs(2);

/// Processes each item in its own span, several at once, until the time is nearly over; what fails is left to the next
/// sweep.
async fn each<'a, T: Item, F>(invocation: &Invocation, at_once: usize, all: &'a [T], work: impl Fn(&'a T) -> F)
where
    F: Future<Output = Result<(), Fault>> + 'a,
{
    let work = &work;
    let begun = stream::iter(all)
        .take_while(|_| future::ready(!invocation.ends_within(ITEM)))
        .map(|one| {
            let result = async move {
                if let Err(fault) = guarded(invocation, work(one)).await {
                    log_fault!(&fault, "step not done; the next sweep repeats it");
                }
            };
            result.instrument(one.span())
        })
        .buffer_unordered(at_once)
        .count()
        .await;
    if begun < all.len() {
        tracing::info!(left = all.len() - begun, "the sweep's time is nearly over; the next sweep does the rest");
    }
}

/// An item that the sweep processes.
trait Item {
    /// The span of everything that is logged about it.
    fn span(&self) -> Span;
}

impl<T: Item> Item for &T {
    fn span(&self) -> Span {
        (**self).span()
    }
}
