//! The sweep: the net beneath everything that arrives as an event. One part that cannot be done does not keep the
//! others from being done, and nothing is stopped on a guess.

mod instances;
mod nodes;
mod tasks;
mod waiting;

use std::collections::HashSet;

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use shared::app::App;
use shared::batch::{Invocation, guarded};
use shared::fault::Fault;
use shared::log_fault;
use shared::name::AgentName;
use shared::observe;
use shared::wait::{self, Waiting};
use tracing::{Instrument as _, Span};

use self::nodes::Nodes;
use self::tasks::ClusterTasks;
use crate::plan::waiting::{self as plan, Agents};

/// Things that are done at once; more would only meet AWS' limits.
const CONCURRENCY: usize = 10;

/// Does all that is due at `time`. The parts go side by side: a slow Jenkins does not keep requests waiting.
pub async fn sweep(app: &App, invocation: &Invocation, time: Timestamp) {
    // What waits is hidden from all others before the tasks are listed: nothing that is not among them is placed meanwhile.
    let (nodes, messages) =
        tokio::join!(Nodes::ask(app, invocation), guarded(invocation, wait::look_at_all(&app.queues)));
    let mut found = Vec::new();
    let mut on_instances = observe::Tasks::default();
    let mut running = HashSet::<AgentName>::new();
    let mut agents = Agents::default();
    for cloud in app.clouds.distinct_clusters() {
        match guarded(invocation, ClusterTasks::ask(app, cloud, &mut on_instances)).await {
            Err(fault) => {
                agents
                    .unknown
                    .extend(app.clouds.iter().filter(|it| it.cluster_key() == cloud.cluster_key()).map(|it| it.index));
                log_fault!(&fault, cloud = cloud.name(), "the cluster could not be asked; nothing is stopped there");
            }
            Ok(tasks) => {
                for task in &tasks.running {
                    running.insert(task.name.clone());
                    agents.count(task.cloud.index, app.template_name(&task.name));
                }
                agents.names.extend(tasks.running.iter().chain(&tasks.stopped).map(|task| task.name.clone()));
                found.push(tasks);
            }
        }
    }
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
                app.clouds.iter().map(|cloud| cloud.index).collect()
            }
        };
        instances::sweep(app, invocation, &needed, &on_instances, time).await;
    };
    tokio::join!(ends, orphans, capacity);
}

/// Logs how many agents of each template there are, where there are any.
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

/// Does something for each in its own span, some at once, until the time is over; what fails is done by the next sweep.
async fn each<'a, T: Item, F>(invocation: &Invocation, at_once: usize, all: &'a [T], work: impl Fn(&'a T) -> F)
where
    F: Future<Output = Result<(), Fault>> + 'a,
{
    let work = &work;
    stream::iter(all)
        .map(|one| {
            let result = async move {
                if let Err(fault) = guarded(invocation, work(one)).await {
                    log_fault!(&fault, "not done; the next sweep does it");
                }
            };
            result.instrument(one.span())
        })
        .buffer_unordered(at_once)
        .collect::<()>()
        .await;
}

/// What the sweep takes a step with.
trait Item {
    /// The span of all that is logged of it.
    fn span(&self) -> Span;
}

impl<T: Item> Item for &T {
    fn span(&self) -> Span {
        (**self).span()
    }
}
