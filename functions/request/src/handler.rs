//! The sequence of an invocation: the check, or a batch of the requests queue.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use aws_lambda_events::event::sqs::SqsBatchResponse;
use futures::future::join_all;
use serde_json::Value;
use shared::app::App;
use shared::arn;
use shared::aws::ecs::{DesiredStatus, TaskFilter};
use shared::batch::{self, Invocation, Item, Source, guarded};
use shared::cloud::Cloud;
use shared::fault::Fault;
use shared::outcome::is_ours;
use shared::span::Ids;
use tracing::Instrument as _;

use crate::placing::{self, Placed};
use crate::plan::limits::{self, Existing, Split};
use crate::plan::{self, Envelope, Order, Refused};
use crate::room::{self, Rooms};
use crate::{check, failure};

/// Handles an invocation.
///
/// # Errors
/// When the event is neither a batch nor the check.
pub async fn handle(app: &App, invocation: &Invocation, event: Value) -> Result<Value> {
    if event.get("check").is_some() {
        return Ok(serde_json::to_value(check::report(app).await)?);
    }
    let mut items = batch::items(&event).context("the event is not {\"check\": {}} either")?;
    for item in &mut items {
        item.trace = item.trace.take().or_else(|| invocation.trace.clone());
    }
    Ok(serde_json::to_value(answer(app, invocation, items).await)?)
}

/// Processes every record on its own, except for what they share: the number of existing agents, and room.
///
/// The futures of a record are boxed, and so are the rare ones in them: they take many KB, and would be copied at each
/// step.
async fn answer(app: &App, invocation: &Invocation, items: Vec<Item>) -> SqsBatchResponse {
    // All messages of a batch come from one queue.
    let queue_arn = items.first().map_or("", |item| &item.source_arn);
    let own = arn::own_accounts(&invocation.function_arn, &app.queues.urls.requests, queue_arn);
    let admitted: Vec<_> = items.iter().map(|item| admit(app, &own, item)).collect();
    let mut counts = count(app, invocation, &admitted).await;
    // Who may start under maxAgents is decided in order, before anything runs.
    let splits: Vec<_> = admitted.iter().map(|admitted| split(app, admitted.as_ref().ok(), &mut counts)).collect();
    let placed = items.iter().zip(&admitted).zip(splits).map(|((item, admitted), split)| {
        let work = guarded(invocation, async move {
            match admitted {
                Ok(order) => Box::pin(placing::place(app, item, order, split?)).await,
                Err(refused) => Box::pin(failure::refuse(app, item, refused)).await.map(|()| Placed::default()),
            }
        });
        work.instrument(item.span.clone())
    });
    let placed = join_all(placed).await;
    let counts = counts.into_iter().filter_map(|(index, counted)| Some((index, counted.ok()?))).collect();
    let blocked = admitted
        .iter()
        .zip(&placed)
        .filter_map(|(admitted, placed)| Some((admitted.as_ref().ok()?, placed.as_ref().ok()?.blocked.as_slice())));
    let rooms = Rooms::make(app, invocation, blocked.collect(), &counts).await;
    let rooms = &rooms;
    let finished = items.iter().zip(&admitted).zip(placed).map(|((item, admitted), placed)| {
        let work = async move {
            let result = match (admitted, placed) {
                (Ok(order), Ok(placed)) if !placed.blocked.is_empty() => {
                    guarded(invocation, Box::pin(room::wait(app, item, order, placed.blocked, rooms))).await
                }
                (_, Ok(_)) => Ok(()),
                (_, Err(fault)) => Err(fault),
            };
            let Err(fault) = result else { return Ok(()) };
            let admitted = admitted.as_ref().map_err(|refused| &**refused);
            guarded(invocation, Box::pin(failure::give_up_or_retry(app, item, admitted, fault))).await
        };
        work.instrument(item.span.clone())
    });
    let results = join_all(finished).await;
    let queue = &app.queues.urls.requests;
    let source = Source { queue, what: "request", max_attempts: app.memory.known_max_receives() };
    batch::answer(&app.queues, source, items.iter().cloned().zip(results).collect()).await
}

fn admit<'a>(app: &'a App, own: &BTreeSet<String>, item: &Item) -> Result<Order<'a>, Box<Refused>> {
    let _span = item.span.enter();
    let now = app.now();
    let (wait, trace) = (item.wait.as_ref(), item.trace.as_ref());
    let envelope = Envelope { message_id: &item.id, sent_at: item.sent_at(now), wait, trace, own_accounts: own };
    let admitted = plan::admit(app.config(), app.jenkins.origin(), &item.body, envelope, now);
    let (request, build) = match &admitted {
        Ok(order) => (Some(&order.request_id), order.build.as_ref()),
        Err(refused) => (refused.request_id.as_ref(), refused.build.as_ref()),
    };
    Ids { request, build, ..Ids::default() }.record();
    admitted
}

/// Counts the agents of the clouds in which a request meets a limit: once for the whole batch.
async fn count(
    app: &App,
    invocation: &Invocation,
    admitted: &[Result<Order<'_>, Box<Refused>>],
) -> HashMap<usize, Result<Existing, Fault>> {
    let limited = limits::limited_clouds(admitted.iter().flatten());
    let counts = limited
        .into_iter()
        .map(|index| async move { (index, guarded(invocation, existing(app, app.clouds.at(index))).await) });
    join_all(counts).await.into_iter().collect()
}

async fn existing(app: &App, cloud: &Cloud) -> Result<Existing, Fault> {
    let mut existing = Existing::default();
    let arns = cloud.cluster.list_tasks(TaskFilter::All, DesiredStatus::Running).await?;
    let tasks = cloud.cluster.describe_tasks(&arns).await?;
    for task in tasks.into_iter().filter(|task| is_ours(task, app.controller())) {
        if let Some(name) = task.started_by.as_deref().and_then(|name| app.agent_name(name)) {
            let template = app.template_name(&name);
            if cloud.template(template).is_some() {
                existing.add(&name, template);
            }
        }
    }
    Ok(existing)
}

fn split(
    app: &App,
    order: Option<&Order<'_>>,
    counts: &mut HashMap<usize, Result<Existing, Fault>>,
) -> Result<Split, Fault> {
    let Some(order) = order else { return Ok(Split::default()) };
    match counts.get_mut(&order.cloud_index).filter(|_| order.is_limited()) {
        None => Ok(Split::all(order)),
        Some(Err(fault)) => Err(fault.clone()),
        Some(Ok(existing)) => Ok(limits::within(order, &app.settings.agent_name_prefix, existing)),
    }
}
