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
use shared::name::AgentName;

use self::nodes::Nodes;
use self::tasks::ClusterTasks;
use crate::plan::waiting::AgentCounts;

/// Calls that go out at once; more would only meet AWS' limits.
const CONCURRENCY: usize = 10;

/// Does all that is due at `time`. The parts go side by side: a slow Jenkins does not keep requests waiting.
pub async fn sweep(app: &App, invocation: &Invocation, time: Timestamp) {
    let nodes = Nodes::ask(app, invocation).await;
    let mut found = Vec::new();
    let mut running = HashSet::<AgentName>::new();
    let mut counts = AgentCounts::default();
    for cloud in app.clouds.distinct_clusters() {
        match guarded(invocation, ClusterTasks::ask(app, cloud)).await {
            Err(fault) => {
                counts.incomplete = true;
                log(&fault, cloud.name(), "the cluster could not be asked; nothing is stopped there");
            }
            Ok(tasks) => {
                for task in &tasks.running {
                    running.insert(task.name.clone());
                    counts.add(task.cloud.index, app.template_name(&task.name));
                }
                found.push(tasks);
            }
        }
    }
    let all_known = !counts.incomplete;
    let agents = async {
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
        let needed = waiting::sweep(app, invocation, counts, time).await;
        instances::sweep(app, invocation, &needed, time).await;
    };
    tokio::join!(agents, orphans, capacity);
}

/// Does something for each, ten at a time, until the time is over; what fails is done by the next sweep.
async fn each<'a, T, F>(invocation: &Invocation, all: &'a [T], work: impl Fn(&'a T) -> F)
where
    F: Future<Output = Result<(), Fault>> + 'a,
{
    stream::iter(all)
        .map(|one| guarded(invocation, work(one)))
        .buffer_unordered(CONCURRENCY)
        .for_each(|result| async {
            match result {
                Ok(()) => {}
                Err(fault) if fault.is_final() => {
                    tracing::error!(error = %fault, "left to the next sweep, which will meet the same");
                }
                Err(fault) => tracing::warn!(error = %fault, "left to the next sweep"),
            }
        })
        .await;
}

/// Logs what a part of the sweep could not do for a cloud: as an error where the next sweep will meet the same.
fn log(fault: &Fault, cloud: &str, consequence: &str) {
    match fault.is_final() {
        true => tracing::error!(cloud, error = %fault, "{consequence}"),
        false => tracing::warn!(cloud, error = %fault, "{consequence}"),
    }
}
