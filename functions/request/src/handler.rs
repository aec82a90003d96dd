//! Sequences a batch of requests: admit, count, run, then make room for what found none. Decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use aws_lambda_events::event::sqs::SqsBatchResponse;
use futures::future::join_all;
use serde_json::Value;
use shared::agents;
use shared::app::{App, CloudRef};
use shared::aws::ecs::{self, DesiredStatus, Of, Ran, Task, Unfit};
use shared::aws::{Class, autoscaling, queues};
use shared::batch::{self, Invocation, Item, Retry, guarded};
use shared::capacity::{Observed, Plan};
use shared::config::variables::INBOUND_VARIABLES;
use shared::config::{Connect, Size};
use shared::jenkins;
use shared::message::{Failure, FailureCode, Notice, NoticeType};
use shared::name::AgentName;
use shared::notices::Target;
use shared::outcome::is_anothers;
use shared::wait::{self, Waiting, WaitsFor};

use crate::check;
use crate::plan::{self, Answer, Blocked, Envelope, Existing, Order, Refused};

/// Answers an invocation: a batch of the requests queue, or the check.
///
/// # Errors
/// When the event is neither.
pub async fn handle(app: &App, invocation: &Invocation, event: Value) -> Result<Value> {
    if event.get("check").is_some() {
        return Ok(serde_json::to_value(check::report(app).await)?);
    }
    let items = batch::items(event).context("the event is not {\"check\": {}} either")?;
    Ok(serde_json::to_value(batch(app, invocation, items).await)?)
}

/// What a record has come to before anything is done about room.
enum Step<'a> {
    /// Nothing is left to do.
    Done,
    /// Some agents found no room.
    Blocked(Box<Order<'a>>, Vec<Blocked>),
}

async fn batch(app: &App, invocation: &Invocation, items: Vec<Item>) -> SqsBatchResponse {
    let admitted: Vec<_> = items.iter().map(|item| admit(app, item)).collect();
    let mut counts = count(app, invocation, &admitted).await;
    // Who may start under maxAgents is settled in order, before anything runs.
    let allowed: Vec<_> =
        admitted.iter().map(|admitted| admitted.as_ref().ok().map(|order| allow(app, order, &mut counts))).collect();
    let started = items.iter().zip(admitted).zip(allowed).map(|((item, admitted), allowed)| async move {
        guarded(invocation, async {
            match (admitted, allowed) {
                (Ok(order), Some(Ok((go, stay)))) => run(app, item, order, go, stay).await,
                (Ok(_), Some(Err(retry))) => Err(retry),
                (Ok(_), None) => Ok(Step::Done),
                (Err(refused), _) => refuse(app, item, *refused).await.map(|()| Step::Done),
            }
        })
        .await
    });
    let steps = join_all(started).await;
    let counts = counts.into_iter().filter_map(|(index, counted)| Some((index, counted.ok()?))).collect();
    let room = make_room(app, invocation, &steps, &counts).await;
    let finished = items.iter().zip(steps).map(|(item, step)| async {
        let result = match step {
            Ok(Step::Done) => Ok(()),
            Ok(Step::Blocked(order, blocked)) => finish(app, invocation, item, *order, blocked, &room).await,
            Err(retry) => Err(retry),
        };
        match result {
            Err(retry) => guarded(invocation, give_up_or_retry(app, item, retry)).await,
            done => done,
        }
    });
    let results = join_all(finished).await;
    batch::answer(app, &app.settings.queues.requests, items.into_iter().zip(results).collect()).await
}

fn admit<'a>(app: &'a App, item: &Item) -> Result<Order<'a>, Box<Refused>> {
    plan::admit(app.config(), app.jenkins.origin(), &item.body, envelope(item), app.now())
}

fn envelope(item: &Item) -> Envelope<'_> {
    Envelope { message_id: &item.id, sent_at: item.sent_at, wait: item.wait.as_ref() }
}

/// Counts the agents of the clouds where a request meets a limit: one look for the whole batch.
async fn count(
    app: &App,
    invocation: &Invocation,
    admitted: &[Result<Order<'_>, Box<Refused>>],
) -> HashMap<usize, Result<Existing, Retry>> {
    let limited: BTreeSet<_> = admitted
        .iter()
        .flatten()
        .filter(|order| !order.is_unlimited() && order.expired.is_none())
        .map(|order| order.cloud_index)
        .collect();
    let counts = limited
        .into_iter()
        .map(|index| async move { (index, guarded(invocation, existing(app, app.cloud(index))).await) });
    join_all(counts).await.into_iter().collect()
}

async fn existing(app: &App, cloud: CloudRef<'_>) -> Result<Existing, Retry> {
    let cluster = &cloud.cloud.cluster;
    let arns = ecs::list_tasks(&cloud.clients.ecs, cluster, Of::Cluster, DesiredStatus::Running).await?;
    let mut existing = Existing::default();
    for task in ecs::describe_tasks(&cloud.clients.ecs, cluster, &arns).await? {
        if is_anothers(&task, app.config().jenkins.url.as_written()) {
            continue;
        }
        if let Some(name) = task.started_by.as_deref().and_then(|name| app.agent_name(name)) {
            let template = app.template_name(&name);
            if cloud.template(template).is_some() {
                existing.add(&name, template);
            }
        }
    }
    Ok(existing)
}

fn allow(
    app: &App,
    order: &Order<'_>,
    counts: &mut HashMap<usize, Result<Existing, Retry>>,
) -> Result<(Vec<u32>, Vec<u32>), Retry> {
    let counted = counts.get_mut(&order.cloud_index);
    match counted.filter(|_| !order.is_unlimited() && order.expired.is_none()) {
        None => Ok((order.agents.clone(), Vec::new())),
        Some(Err(retry)) => Err(retry.clone()),
        Some(Ok(existing)) => {
            let names: Vec<_> =
                order.agents.iter().map(|&index| order.name(&app.settings.agent_name_prefix, index)).collect();
            Ok(plan::within_limits(order, &names, existing))
        }
    }
}

/// Starts the agents of a request.
async fn run<'a>(app: &'a App, item: &Item, order: Order<'a>, go: Vec<u32>, stay: Vec<u32>) -> Result<Step<'a>, Retry> {
    let cloud = app.cloud(order.cloud_index);
    if let Some(failure) = order.expired.clone() {
        return expire(app, item, cloud, &order, &order.agents, failure).await.map(|()| Step::Done);
    }
    let container = match &order.template.container {
        Some(name) => name.clone(),
        None => match app.task_definition(cloud, &order.template.task_definition).await {
            Ok(definition) => match definition.only_essential() {
                Ok(name) => name.to_owned(),
                Err(message) => return launch_failed(app, item, &order, &order.agents, message).await,
            },
            Err(fault) if fault.class() == Class::Permanent => {
                return launch_failed(app, item, &order, &order.agents, fault.to_string()).await;
            }
            Err(fault) => return Err(fault.into()),
        },
    };
    let started = join_all(go.into_iter().map(|index| {
        let (order, container) = (&order, &container);
        async move { (index, start(app, item, cloud, order, index, container).await) }
    }))
    .await;
    let mut blocked = Vec::new();
    let mut refused: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (index, started) in started {
        match started? {
            Started::Yes => {}
            Started::NoRoom { reason, unfit } => {
                let waits_for = order.waits_for();
                blocked.push(Blocked { agents: vec![index], waits_for, reason, size: None, unfit });
            }
            Started::Refused(message) => refused.entry(message).or_default().push(index),
        }
    }
    for (message, agents) in refused {
        launch_failed(app, item, &order, &agents, message).await?;
    }
    if !stay.is_empty() {
        let limits = [
            order.cloud.max_agents.map(|limit| format!("{limit} of cloud {}", order.cloud.name)),
            order.template.max_agents.map(|limit| format!("{limit} of template {}", order.template.name)),
        ];
        let reason = format!("maxAgents ({}) are running", limits.into_iter().flatten().collect::<Vec<_>>().join(", "));
        let waits_for = WaitsFor::MaxAgents;
        blocked.push(Blocked { agents: stay, waits_for, reason, size: None, unfit: Vec::new() });
    }
    Ok(if blocked.is_empty() { Step::Done } else { Step::Blocked(Box::new(order), blocked) })
}

/// Ends what nobody wants any more; an agent that exists all the same is told as it is.
async fn expire(
    app: &App,
    item: &Item,
    cloud: CloudRef<'_>,
    order: &Order<'_>,
    agents: &[u32],
    failure: Failure,
) -> Result<(), Retry> {
    let mut never_started = Vec::new();
    for &index in agents {
        let name = order.name(&app.settings.agent_name_prefix, index);
        match ecs::tasks_of(&cloud.clients.ecs, &order.cloud.cluster, name.as_str()).await {
            Ok(arns) if arns.is_empty() => never_started.push(index),
            Ok(arns) => answer_inquiry(app, cloud, order, index, &name, &arns, item).await?,
            Err(fault) if fault.class() == Class::Permanent => never_started.push(index),
            Err(fault) => return Err(fault.into()),
        }
    }
    if !never_started.is_empty() {
        fail(app, order, &never_started, failure).await?;
    }
    Ok(())
}

/// What came of starting one agent.
enum Started {
    /// Its task exists.
    Yes,
    /// It has to wait.
    NoRoom { reason: String, unfit: Vec<Unfit> },
    /// It never can.
    Refused(String),
}

async fn start(
    app: &App,
    item: &Item,
    cloud: CloudRef<'_>,
    order: &Order<'_>,
    index: u32,
    container: &str,
) -> Result<Started, Retry> {
    let name = order.name(&app.settings.agent_name_prefix, index);
    // A request that has waited may have a copy that found room meanwhile, under another token; and where a try was cut
    // short after its task was started, an inbound agent needs no second node, which would outlive it.
    let tried = item.receives > 1 && order.template.connect == Connect::Inbound;
    if tried || order.attempt() > 0 || app.has_waited(order.request_id.as_str()) {
        let arns = ecs::tasks_of(&cloud.clients.ecs, &order.cloud.cluster, name.as_str()).await?;
        if !arns.is_empty() {
            answer_inquiry(app, cloud, order, index, &name, &arns, item).await?;
            return Ok(Started::Yes);
        }
    }
    let record = order.record(index, container);
    let inbound = match order.template.connect {
        Connect::Ssh => None,
        Connect::Inbound => match inbound(app, order, &name, index).await? {
            Ok(environment) => Some(environment),
            Err(message) => return Ok(Started::Refused(message)),
        },
    };
    let launch = order.launch(&name, &record, app.config().jenkins.url.as_written(), inbound);
    let ran = ecs::run_task(&cloud.clients.ecs, &launch).await;
    let started = match ran {
        Ran::Task(task) if plan::is_inquiry(&task, plan::asked_at(envelope(item), app.now())) => {
            answer_inquiry(app, cloud, order, index, &name, std::slice::from_ref(&task.arn), item).await?;
            Started::Yes
        }
        Ran::Task(task) => {
            tracing::info!(
                request.id = order.request_id.as_str(),
                agent.name = name.as_str(),
                task.arn = task.arn,
                template = order.template.name,
                "task started"
            );
            Started::Yes
        }
        Ran::Existing(mut arns) => {
            if arns.is_empty() {
                arns = ecs::tasks_of(&cloud.clients.ecs, &order.cloud.cluster, name.as_str()).await?;
            }
            if arns.is_empty() {
                Started::NoRoom { reason: "another copy of the request found no room".into(), unfit: Vec::new() }
            } else {
                answer_inquiry(app, cloud, order, index, &name, &arns, item).await?;
                Started::Yes
            }
        }
        Ran::NoRoom { reason, unfit } => Started::NoRoom { reason, unfit },
        Ran::Refused(message) => Started::Refused(message),
        Ran::Unknown(message) => return Err(Retry(message)),
    };
    // An inbound agent's node was there before its task; it does not stay without one.
    if order.template.connect == Connect::Inbound
        && !matches!(started, Started::Yes)
        && let Err(fault) = app.jenkins.delete_node(name.as_str()).await
    {
        tracing::warn!(agent.name = name.as_str(), error = %fault, "the sweep will delete the node");
    }
    Ok(started)
}

/// Creates the node of an inbound agent, whose secret Jenkins derives from its name, before the task starts.
async fn inbound(
    app: &App,
    order: &Order<'_>,
    name: &AgentName,
    index: u32,
) -> Result<Result<BTreeMap<String, String>, String>, Retry> {
    let labels = order.webhook_url(index).is_some();
    let node = agents::node(
        name,
        order.template,
        labels,
        jenkins::Launcher::Inbound,
        order.environment(),
        &agents::describe(&order.request_id, order.build.as_ref(), order.cloud, None),
    );
    let secret = async {
        app.jenkins.create_node(&node).await?;
        app.jenkins.inbound_secret(name.as_str()).await
    };
    match secret.await {
        Ok(secret) => {
            let values =
                [app.config().jenkins.url.as_str(), name.as_str(), secret.expose(), &order.template.workspace, "true"];
            Ok(Ok(INBOUND_VARIABLES.into_iter().zip(values).map(|(name, value)| (name.into(), value.into())).collect()))
        }
        Err(jenkins::Fault::Permanent(message)) => Ok(Err(format!("Jenkins refuses the node {name}: {message}"))),
        Err(fault) => Err(fault.into()),
    }
}

/// After so many receives, seconds apart, a task that ECS does not describe is gone.
const SURE_AFTER: u32 = 3;

/// Answers a later copy of a request: what its agent has become is told again.
async fn answer_inquiry(
    app: &App,
    cloud: CloudRef<'_>,
    order: &Order<'_>,
    index: u32,
    name: &AgentName,
    arns: &[String],
    item: &Item,
) -> Result<(), Retry> {
    let tasks = ecs::describe_tasks(&cloud.clients.ecs, &order.cloud.cluster, arns).await?;
    if tasks.is_empty() && item.receives < SURE_AFTER {
        // ECS is eventually consistent: what another copy has just started may not be seen yet (API_RunTask).
        return Err(Retry("the request's task is not described yet".into()));
    }
    let notice = match plan::answer(&tasks, plan::asked_at(envelope(item), app.now())) {
        Answer::Ready(task) => ready_again(app, cloud, order, index, name, task).await?,
        Answer::Ended(task) => {
            app.delete_node(name).await?;
            Some(ended(app, order, index, name, task))
        }
        Answer::Nothing => None,
    };
    if let Some(notice) = notice {
        tracing::info!(
            request.id = order.request_id.as_str(),
            agent.name = name.as_str(),
            notice.r#type = notice.kind.as_str(),
            "answered an inquiry"
        );
        let url = order.webhook_url(index).map(|url| Target::Request(url.to_owned()));
        app.tell_all(&notice, url.into_iter().chain(app.listeners()).collect()).await?;
    }
    Ok(())
}

async fn ready_again(
    app: &App,
    cloud: CloudRef<'_>,
    order: &Order<'_>,
    index: u32,
    name: &AgentName,
    task: &Task,
) -> Result<Option<Notice>, Retry> {
    let record = task.record().unwrap_or_else(|| order.record(index, ""));
    let endpoint = match order.template.connect {
        Connect::Inbound => None,
        Connect::Ssh => match agents::endpoint(app, cloud, order.template, &record.container, task).await {
            Ok(endpoint) => Some(endpoint),
            Err(agents::NoEndpoint::Retry(reason)) => return Err(Retry(reason)),
            Err(agents::NoEndpoint::Never(_)) => return Ok(None),
        },
    };
    let kind = NoticeType::Ready;
    Ok(Some(agents::notice(kind, name, Some(order.template), endpoint, task, Some(&record), app.now())))
}

fn ended(app: &App, order: &Order<'_>, index: u32, name: &AgentName, task: Option<&Task>) -> Notice {
    let mut notice = match task {
        Some(task) => {
            let record = task.record().unwrap_or_else(|| order.record(index, ""));
            agents::notice(NoticeType::Failed, name, Some(order.template), None, task, Some(&record), app.now())
        }
        None => head(app, NoticeType::Failed, order, index),
    };
    let reason = task.and_then(|task| task.stopped_reason.as_deref()).unwrap_or("its task is gone");
    let mut failure = Failure::new(
        FailureCode::StartFailed,
        format!("the agent of this request has ended already: {reason}; ask again under another requestId"),
    );
    failure.stop_code = task.and_then(|task| task.stop_code.clone());
    notice.failure = Some(failure);
    notice
}

/// Observes and raises the group of each cloud that a request found without room: once per batch.
async fn make_room(
    app: &App,
    invocation: &Invocation,
    steps: &[Result<Step<'_>, Retry>],
    counts: &HashMap<usize, Existing>,
) -> HashMap<usize, Result<Room, Retry>> {
    let mut needs: BTreeMap<usize, Vec<(&Order<'_>, &Blocked)>> = BTreeMap::new();
    for step in steps.iter().flatten() {
        if let Step::Blocked(order, blocked) = step {
            let blocked = blocked.iter().filter(|blocked| blocked.waits_for == WaitsFor::Instance);
            needs.entry(order.cloud_index).or_default().extend(blocked.map(|blocked| (&**order, blocked)));
        }
    }
    let others = match needs.values().flatten().any(|(order, _)| order.scales()) {
        true => Others::ask(app, invocation, counts).await,
        false => Others::default(),
    };
    let others = &others;
    let rooms = needs.into_iter().filter(|(_, needs)| !needs.is_empty()).map(|(index, needs)| async move {
        (index, guarded(invocation, observe_and_raise(app, app.cloud(index), needs, others)).await)
    });
    join_all(rooms).await.into_iter().collect()
}

/// Who waits already, beside this batch.
#[derive(Default)]
struct Others {
    /// As SQS counts, approximately.
    depth: u32,
    /// Each message, where the count alone does not say what it waits for.
    known: Vec<Waiting>,
}

impl Others {
    async fn ask(app: &App, invocation: &Invocation, counts: &HashMap<usize, Existing>) -> Self {
        let asked = async {
            let queue = &app.settings.queues.waiting;
            if plan::depth_tells(app.config(), counts) {
                return Ok(Self { depth: queues::depth(&app.sqs, queue).await?, known: Vec::new() });
            }
            let known = wait::look(app).await?;
            wait::release(app, &known).await;
            Ok(Self { depth: 0, known })
        };
        guarded(invocation, asked).await.unwrap_or_else(|Retry(reason)| {
            tracing::warn!(error = reason, "who waits already is unknown; the sweep raises the group for them");
            Self::default()
        })
    }
}

/// A cloud after its group was raised.
struct Room {
    observed: Observed,
    plan: Plan,
    /// Why the group could not be raised, where that will not mend.
    refused: Option<String>,
    /// What a task of each template takes.
    sizes: HashMap<String, Size>,
}

async fn observe_and_raise(
    app: &App,
    cloud: CloudRef<'_>,
    needs: Vec<(&Order<'_>, &Blocked)>,
    others: &Others,
) -> Result<Room, Retry> {
    let mut sizes = HashMap::new();
    for (order, _) in &needs {
        if !sizes.contains_key(&order.template.name) {
            let definition = app.task_definition(cloud, &order.template.task_definition).await?;
            sizes.insert(order.template.name.clone(), definition.size);
        }
    }
    let scaled: Vec<_> = needs.iter().filter(|(order, _)| order.scales()).collect();
    let unfit = needs.iter().flat_map(|(_, blocked)| &blocked.unfit);
    let mut room = Room {
        observed: Observed {
            group: None,
            instances: ecs::instances(&cloud.clients.ecs, &cloud.cloud.cluster).await?,
            configured: cloud.cloud.instance_capacity,
            unfit: unfit.map(|unfit| (unfit.arn.clone(), unfit.is_full)).collect(),
        },
        plan: Plan::default(),
        refused: None,
        sizes,
    };
    // The group comes last, so that as little time as can be lies between looking and raising: what another copy has
    // raised meanwhile must not be lowered.
    let Some(name) = cloud.cloud.auto_scaling_group.as_deref().filter(|_| !scaled.is_empty()) else { return Ok(room) };
    match autoscaling::group(&cloud.clients.autoscaling, name).await {
        Ok(Some(group)) => room.observed.group = Some(group),
        Ok(None) => {
            let cloud = &cloud.cloud.name;
            room.refused =
                Some(format!("there is no Auto Scaling group {name}; mend autoScalingGroup of cloud {cloud}"));
        }
        Err(fault) if fault.class() == Class::Permanent => room.refused = Some(fault.to_string()),
        Err(fault) => return Err(fault.into()),
    }
    // Each agent counts once, however many copies of its request are here.
    let mut agents = wait::demand(cloud.cloud, others.known.iter());
    agents.extend(scaled.iter().flat_map(|(order, blocked)| {
        let size = order.size(room.sizes.get(&order.template.name).copied().unwrap_or_default());
        blocked.agents.iter().map(move |&index| ((order.request_id.as_str(), index), size))
    }));
    agents.retain(|_, size| room.observed.too_large(*size).is_none());
    let agents: Vec<Size> = agents.into_values().collect();
    room.plan = room.observed.plan(&plan::demand(&agents, others.depth));
    if let (Some(target), Some(group)) = (room.plan.raise_to, &room.observed.group) {
        match autoscaling::set_desired(&cloud.clients.autoscaling, &group.name, target).await {
            Ok(()) => tracing::info!(
                cloud = cloud.cloud.name,
                group = group.name,
                desired_before = group.desired,
                desired = target,
                maximum = group.maximum,
                agents = agents.len(),
                waiting = others.depth,
                "group raised"
            ),
            Err(fault) if fault.class() == Class::Permanent => room.refused = Some(fault.to_string()),
            Err(fault) => return Err(fault.into()),
        }
    }
    Ok(room)
}

/// Lets wait, or ends, what is blocked. Once the request is safe in its queue, nothing may bring it back.
async fn finish(
    app: &App,
    invocation: &Invocation,
    item: &Item,
    order: Order<'_>,
    blocked: Vec<Blocked>,
    rooms: &HashMap<usize, Result<Room, Retry>>,
) -> Result<(), Retry> {
    let waiting = guarded(invocation, wait_for_room(app, item, &order, blocked, rooms)).await?;
    if order.wait.is_none()
        && let Err(Retry(reason)) = guarded(invocation, tell_waiting(app, &order, waiting)).await
    {
        tracing::warn!(request.id = order.request_id.as_str(), error = reason, "nobody heard that it waits");
    }
    Ok(())
}

/// Moves what is blocked to the waiting queue, or ends it where waiting cannot help. Answers which agents wait.
async fn wait_for_room(
    app: &App,
    item: &Item,
    order: &Order<'_>,
    blocked: Vec<Blocked>,
    rooms: &HashMap<usize, Result<Room, Retry>>,
) -> Result<Vec<u32>, Retry> {
    let mut merged: Vec<Blocked> = Vec::new();
    for one in blocked {
        match merged.iter_mut().find(|other| other.waits_for == one.waits_for) {
            Some(other) => other.agents.extend(one.agents),
            None => merged.push(one),
        }
    }
    let mut waiting = Vec::new();
    for mut blocked in merged {
        if blocked.waits_for == WaitsFor::Instance {
            let room = match rooms.get(&order.cloud_index) {
                Some(Ok(room)) => room,
                Some(Err(retry)) => return Err(retry.clone()),
                None => return Err(Retry("the cloud was not observed".into())),
            };
            let size = order.size(room.sizes.get(&order.template.name).copied().unwrap_or_default());
            if let Some(largest) = room.observed.too_large(size).filter(|_| !order.template.is_external()) {
                let message = format!(
                    "the task takes {size}, and the largest instance has {largest}: no instance will ever hold it"
                );
                launch_failed(app, item, order, &blocked.agents, message).await?;
                continue;
            }
            if let Some(refused) = &room.refused {
                launch_failed(app, item, order, &blocked.agents, refused.clone()).await?;
                continue;
            }
            blocked.size = Some(size);
            blocked.reason = plan::explain(&blocked.reason, order, &room.observed, room.plan);
        }
        match order.next_wait(&blocked, app.now()) {
            Err(failure) => {
                expire(app, item, app.cloud(order.cloud_index), order, &blocked.agents, failure).await?;
            }
            Ok(wait) => {
                app.remember_wait(order.request_id.as_str());
                wait::hand_over(app, &item.body, &wait).await?;
                tracing::info!(
                    request.id = order.request_id.as_str(),
                    agents = ?wait.agents,
                    attempt = wait.attempt,
                    reason = wait.reason,
                    "request waits"
                );
                waiting.extend(wait.agents);
            }
        }
    }
    Ok(waiting)
}

/// Tells everybody but the request's own webhook, which takes one outcome.
async fn tell_waiting(app: &App, order: &Order<'_>, agents: Vec<u32>) -> Result<(), Retry> {
    let listeners = app.listeners();
    if listeners.is_empty() {
        return Ok(());
    }
    let told = agents.into_iter().map(|index| {
        let (notice, listeners) = (head(app, NoticeType::Waiting, order, index), listeners.clone());
        async move { app.tell_all(&notice, listeners).await }
    });
    Ok(join_all(told).await.into_iter().collect::<Result<_, _>>()?)
}

/// A notice about an agent that has no task.
fn head(app: &App, kind: NoticeType, order: &Order<'_>, index: u32) -> Notice {
    let name = order.name(&app.settings.agent_name_prefix, index);
    let build = order.build.clone();
    agents::notice_without_task(
        kind,
        &name,
        Some(order.template),
        &order.request_id,
        build,
        order.requested_at,
        app.now(),
    )
}

/// Tells the build that there will be no agent, for a reason that no waiting mends; the message is kept for people.
async fn launch_failed<'a>(
    app: &App,
    item: &Item,
    order: &Order<'_>,
    agents: &[u32],
    message: String,
) -> Result<Step<'a>, Retry> {
    app.reject(&item.body, &message).await?;
    fail(app, order, agents, Failure::new(FailureCode::LaunchFailed, message)).await?;
    Ok(Step::Done)
}

/// Tells the build that there will be no agent.
async fn fail(app: &App, order: &Order<'_>, agents: &[u32], failure: Failure) -> Result<(), Retry> {
    tracing::error!(
        request.id = order.request_id.as_str(),
        code = failure.code.as_str(),
        error = failure.message,
        "no agent for the request"
    );
    let told = agents.iter().map(|&index| {
        let mut notice = head(app, NoticeType::Failed, order, index);
        notice.failure = Some(failure.clone());
        let request = order.webhook_url(index).map(|url| Target::Request(url.to_owned()));
        async move { app.tell_all(&notice, request.into_iter().chain(app.listeners()).collect()).await }
    });
    Ok(join_all(told).await.into_iter().collect::<Result<_, _>>()?)
}

/// Refuses a message: kept for people, told to whoever may be told.
async fn refuse(app: &App, item: &Item, refused: Refused) -> Result<(), Retry> {
    tracing::error!(
        message.id = item.id,
        request.id = refused.request_id.as_ref().map(|id| id.as_str()),
        code = refused.failure.code.as_str(),
        error = refused.failure.message,
        "request refused"
    );
    let reason = format!("{}: {}", refused.failure.code.as_str(), refused.failure.message);
    app.reject(&item.body, &reason).await?;
    let subject = refused.request_id.as_ref().map_or(item.id.as_str(), |id| id.as_str());
    let notice = |index: usize| {
        let mut notice = Notice::new(NoticeType::Failed, &format!("{subject}/{index}"), app.now());
        notice.request_id = refused.request_id.clone();
        notice.build = refused.build.clone();
        notice.failure = Some(refused.failure.clone());
        notice
    };
    // Of a request that was placed in part, only those agents that still wait have no outcome yet.
    let waits =
        |index: usize| item.wait.as_ref().is_none_or(|wait| wait.agents.iter().any(|&agent| agent as usize == index));
    let mut urls: Vec<_> =
        refused.webhook_urls.into_iter().map(Some).enumerate().filter(|&(index, _)| waits(index)).collect();
    if urls.is_empty() {
        urls.push((0, None));
    }
    let told = urls.into_iter().map(|(index, url)| {
        let targets = url.map(Target::Request).into_iter().chain(app.listeners()).collect();
        let notice = notice(index);
        async move { app.tell_all(&notice, targets).await }
    });
    Ok(join_all(told).await.into_iter().collect::<Result<_, _>>()?)
}

/// One try before the last that the queue allows: should this one be cut short, the last gives up. In the dead letters,
/// nobody would be told.
async fn give_up_or_retry(app: &App, item: &Item, retry: Retry) -> Result<(), Retry> {
    if item.receives < 2 {
        return Err(retry);
    }
    match app.max_receives().await {
        Ok(Some(most)) if item.receives >= most.saturating_sub(1).max(2) => {}
        _ => return Err(retry),
    }
    let message = format!("given up after {} tries: {}", item.receives, retry.0);
    match admit(app, item) {
        Ok(order) => {
            let agents = without_task(app, &order).await;
            if agents.is_empty() {
                tracing::error!(
                    request.id = order.request_id.as_str(),
                    error = message,
                    "its agents are there; their events tell"
                );
                return Ok(());
            }
            launch_failed(app, item, &order, &agents, message).await.map(drop)
        }
        Err(refused) => refuse(app, item, *refused).await,
    }
}

/// The agents of a request of which ECS knows no task: those that do have had, or will have, their outcome.
async fn without_task(app: &App, order: &Order<'_>) -> Vec<u32> {
    let known = order.agents.iter().map(|&index| async move {
        let name = order.name(&app.settings.agent_name_prefix, index);
        // What cannot be found out is told as failed: a build that hears nothing is worse.
        let is_known = app.has_task(app.cloud(order.cloud_index), &name).await.unwrap_or(false);
        (!is_known).then_some(index)
    });
    join_all(known).await.into_iter().flatten().collect()
}
