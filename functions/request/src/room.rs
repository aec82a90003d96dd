//! Makes room: observes each cloud once per batch, raises its group, and lets requests wait.

use std::collections::{BTreeMap, HashMap};

use futures::future::join_all;
use jiff::Timestamp;
use shared::app::App;
use shared::batch::{Invocation, Item, guarded};
use shared::capacity::{Need, Observed, Plan, Unfit};
use shared::cloud::Cloud;
use shared::fault::{Fault, Placement};
use shared::log_fault;
use shared::message::NoticeType;
use shared::observe;
use shared::wait::{self, Placed, Wait, Waiting, WaitsFor};
use tracing::Instrument as _;

use crate::agent;
use crate::failure;
use crate::placing;
use crate::plan::limits::{Existing, Split};
use crate::plan::{Blocked, Order, room};

/// Orders with those of their agents that found no room.
type Needs<'a> = Vec<(&'a Order<'a>, &'a [Blocked])>;

/// The clouds in which a batch found no room, after their groups were raised.
pub(crate) struct Rooms(HashMap<usize, Result<Room, Fault>>);

impl Rooms {
    /// Observes each cloud and raises its group, once per batch.
    pub(crate) async fn make(
        app: &App,
        invocation: &Invocation,
        needs: Needs<'_>,
        counts: &HashMap<usize, Existing>,
    ) -> Self {
        let mut by_cloud: BTreeMap<usize, Needs<'_>> = BTreeMap::new();
        for (order, blocked) in needs {
            if blocked.iter().any(|blocked| blocked.waits_for == WaitsFor::Instance) {
                by_cloud.entry(order.cloud_index).or_default().push((order, blocked));
            }
        }
        let others = match by_cloud.values().flatten().any(|(order, _)| order.scales()) {
            true => Others::ask(app, invocation, counts).await,
            false => Others::default(),
        };
        let others = &others;
        let rooms = by_cloud.into_iter().map(|(index, needs)| async move {
            (index, guarded(invocation, Room::make(app, app.clouds.at(index), needs, others)).await)
        });
        Self(join_all(rooms).await.into_iter().collect())
    }

    fn of(&self, order: &Order<'_>) -> Result<&Room, Fault> {
        match self.0.get(&order.cloud_index) {
            Some(Ok(room)) => Ok(room),
            Some(Err(fault)) => Err(fault.clone()),
            None => Err(Fault::passing("the cloud was not observed")),
        }
    }
}

/// The requests that already wait, besides this batch.
#[derive(Default)]
struct Others {
    /// The messages that were not read, from SQS' count, which is approximate.
    unread: u32,
    /// Those that were read, where the count does not show what they wait for.
    known: Vec<Waiting>,
}

impl Others {
    async fn ask(app: &App, invocation: &Invocation, counts: &HashMap<usize, Existing>) -> Self {
        let asked = async {
            let depth = app.queues.depth(&app.queues.urls.waiting).await?;
            if room::depth_is_demand(app.config(), counts) {
                return Ok(Self { unread: depth, known: Vec::new() });
            }
            let known = wait::look(&app.queues).await?;
            wait::release(&app.queues, &known).await;
            // If none could be read, nothing shows what the others wait for; the sweep raises the group for them.
            let read = u32::try_from(known.len()).unwrap_or(u32::MAX);
            Ok(Self { unread: if read > 0 { depth.saturating_sub(read) } else { 0 }, known })
        };
        guarded(invocation, asked).await.unwrap_or_else(|fault| {
            log_fault!(&fault, "waiting requests not counted; the sweep raises the group for them");
            Self::default()
        })
    }
}

/// A cloud after its group was raised.
struct Room {
    observed: Observed,
    plan: Plan,
    /// Why the group could not be raised, if waiting cannot change that.
    refused: Option<String>,
    /// The size of a task of each order, by request.
    needs: HashMap<String, Need>,
}

impl Room {
    async fn make(app: &App, cloud: &Cloud, needs: Needs<'_>, others: &Others) -> Result<Self, Fault> {
        let mut taken = HashMap::new();
        for (order, _) in &needs {
            let name = order.task_definition();
            let definition = match placing::is_pinned(name) {
                true => app.memory.task_definition(cloud, name).await?,
                false => app.memory.refresh_task_definition(cloud, name).await?,
            };
            taken.insert(order.request_id.to_string(), room::need(order, &definition));
        }
        let mut observed = observe::instances(cloud, None).await?;
        let failures = needs.iter().flat_map(|(_, blocked)| placing::failures(blocked));
        observed.unfit = failures
            .filter(|failure| failure.placement != Placement::Size)
            .filter_map(|failure| {
                let unfit = if failure.placement == Placement::Slots { Unfit::Full } else { Unfit::Other };
                Some((failure.instance.clone()?, unfit))
            })
            .collect();
        let mut room = Self { observed, plan: Plan::default(), refused: None, needs: taken };
        room.observe_group(cloud, app.now()).await?;
        room.raise(cloud, &needs, others).await?;
        Ok(room)
    }

    async fn observe_group(&mut self, cloud: &Cloud, now: Timestamp) -> Result<(), Fault> {
        let Some(name) = &cloud.config.auto_scaling_group else { return Ok(()) };
        match observe::group(cloud, name, &mut self.observed, now).await {
            Ok(true) => {}
            Ok(false) => {
                let cloud = cloud.name();
                let text = format!("there is no Auto Scaling group {name}; change autoScalingGroup of cloud {cloud}");
                self.refused = Some(text);
            }
            Err(fault) if fault.is_final() => self.refused = Some(fault.to_string()),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// Raises the group to what the waiting requests need.
    async fn raise(&mut self, cloud: &Cloud, needs: &Needs<'_>, others: &Others) -> Result<(), Fault> {
        // Each agent counts once, however many copies of its request are in the batch.
        let mut agents = wait::demand(&cloud.config, others.known.iter(), &Placed::default());
        let unread = room::unread_agents(others.unread, others.known.len(), agents.len());
        for (order, blocked) in needs.iter().filter(|(order, _)| order.scales()) {
            let need = self.need(order);
            let waits = |blocked: &&Blocked| {
                blocked.waits_for == WaitsFor::Instance
                    && room::unsuitable(&self.observed, order.cloud, &blocked.failures).is_none()
            };
            for blocked in blocked.iter().filter(waits) {
                agents.extend(blocked.agents.iter().map(|&index| ((order.request_id.as_str(), index), need.clone())));
            }
        }
        agents.retain(|_, need| self.observed.too_large(need.size).is_none());
        let agents: Vec<Need> = agents.into_values().collect();
        let demand = room::demand(&agents, unread);
        self.plan = self.observed.plan(&demand);
        let (Some(desired), Some(group)) = (self.plan.raise_to, &self.observed.group) else { return Ok(()) };
        match cloud.raise(group, desired, demand.len()).await {
            Err(fault) if fault.is_final() => self.refused = Some(fault.to_string()),
            raised => return raised,
        }
        Ok(())
    }

    fn need(&self, order: &Order<'_>) -> Need {
        self.needs.get(order.request_id.as_str()).cloned().unwrap_or_default()
    }

    /// Why waiting cannot help an agent for which ECS had no room.
    fn refusal(&self, order: &Order<'_>, blocked: &Blocked) -> Option<String> {
        let size = self.need(order).size;
        if let Some(reason) = room::unsuitable(&self.observed, order.cloud, &blocked.failures) {
            return Some(reason);
        }
        if let Some(largest) = self.observed.too_large(size).filter(|_| !order.template.is_external()) {
            let text =
                format!("the task takes {size}, and the largest instance has {largest}: no instance will ever hold it");
            return Some(text);
        }
        self.refused.clone().filter(|_| order.scales())
    }
}

/// Moves the blocked agents to the waiting queue, or fails them where waiting cannot help. Once the request is safe in
/// its queue, nothing may bring it back.
///
/// # Errors
/// When the message has to come back.
pub(crate) async fn wait(
    app: &App,
    item: &Item,
    order: &Order<'_>,
    blocked: Vec<Blocked>,
    rooms: &Rooms,
) -> Result<(), Fault> {
    let mut waiting = Vec::new();
    for blocked in room::merge(blocked) {
        waiting.extend(wait_or_fail(app, item, order, blocked, rooms).await?);
    }
    if order.wait.is_none()
        && let Err(fault) = notify_waiting(app, order, waiting).await
    {
        log_fault!(&fault, "notice agent.waiting not sent");
    }
    Ok(())
}

/// Returns the agents that wait now.
async fn wait_or_fail(
    app: &App,
    item: &Item,
    order: &Order<'_>,
    mut blocked: Blocked,
    rooms: &Rooms,
) -> Result<Vec<u32>, Fault> {
    if blocked.waits_for == WaitsFor::Instance {
        let room = rooms.of(order)?;
        if let Some(refusal) = room.refusal(order, &blocked) {
            failure::launch_failed(app, item, order, &blocked.agents, refusal).await?;
            return Ok(Vec::new());
        }
        blocked.need = room.need(order);
        blocked.reason = room::explain(&blocked, order, &room.observed, room.plan);
    }
    match order.next_wait(&blocked, app.now()) {
        // As for any expired request: agents that already exist are reported as they are.
        Err(failure) => {
            let expired = order.expire(failure);
            let agents = Split { placeable: blocked.agents, over_limit: Vec::new() };
            placing::place(app, item, &expired, agents).await?;
            Ok(Vec::new())
        }
        Ok(wait) => hand_over(app, item, order, wait).await,
    }
}

/// Moves agents to the waiting queue, and returns them.
async fn hand_over(app: &App, item: &Item, order: &Order<'_>, wait: Wait) -> Result<Vec<u32>, Fault> {
    app.memory.remember_wait(order.request_id.as_str());
    let handed_over = wait::hand_over(&app.queues, &item.body, &wait).await;
    handed_over.map_err(|fault| fault.of("there is no room yet, and the request cannot be set to wait"))?;
    tracing::info!(
        agents = ?wait.agents,
        attempt = wait.attempt,
        reason = wait.reason,
        cloud = wait.cloud,
        template = wait.template,
        waits_for = wait.waits_for.as_str(),
        metric.waits_begun = order.wait.is_none().then_some(wait.agents.len()),
        "request waits"
    );
    Ok(wait.agents)
}

/// Notifies everyone but the request's own webhook, which accepts one outcome.
async fn notify_waiting(app: &App, order: &Order<'_>, agents: Vec<u32>) -> Result<(), Fault> {
    let listeners = &app.notifier.listeners();
    if listeners.is_empty() {
        return Ok(());
    }
    let notified = agents.into_iter().map(|index| {
        let name = order.name(&app.settings.agent_name_prefix, index);
        let notice = order.subject(&name).notice(NoticeType::Waiting, app.now());
        let span = agent::span(order, &name);
        async move { app.notifier.notify_all(&notice, listeners.clone()).await }.instrument(span)
    });
    join_all(notified).await.into_iter().collect()
}
