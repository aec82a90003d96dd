//! Waiting requests: carries out [`crate::plan::waiting`].

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use shared::agents::Subject;
use shared::app::App;
use shared::batch::{Invocation, guarded};
use shared::cloud::Cloud;
use shared::fault::Fault;
use shared::message::{AgentRequest, Failure, Notice, NoticeType};
use shared::name::AgentName;
use shared::notifier::Target;
use shared::observe;
use shared::span::Ids;
use shared::wait::{self, Wait, Waiting, WaitsFor};
use shared::{log_fault, report};
use tracing::{Instrument as _, Span};

use super::{CONCURRENCY, Item, each};
use crate::plan::waiting::{self as plan, Agents, MessageStep, Needed, Observation};

/// Concurrent calls of SQS, which throttles nobody who stays below thousands a second.
const QUEUE_CALLS: usize = 50;

/// Fails requests that have waited too long, sends back those that have room, and raises the groups for the rest.
/// Returns what may be placed on the clouds' instances.
pub(super) async fn sweep(
    app: &App,
    invocation: &Invocation,
    messages: Vec<Waiting>,
    (agents, tasks): (Agents, &observe::Tasks),
    now: Timestamp,
) -> Needed {
    let names = agents.names.clone();
    let observed = observe_all(app, invocation, (&messages, tasks), now).await;
    let plan = plan::waiting(&app.config().clouds, &messages, observed, agents, now);
    for raise in &plan.raises {
        let cloud = app.clouds.at(raise.cloud);
        if let Err(fault) = guarded(invocation, cloud.raise(&raise.group, raise.desired, raise.agents)).await {
            log_fault!(&fault, cloud = cloud.name(), "group not raised; the next sweep raises it");
        }
    }
    let (mut kept, mut woken, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for (message, step) in messages.into_iter().zip(plan.steps) {
        match step {
            MessageStep::Keep => kept.push(message),
            MessageStep::Wake => woken.push(message),
            MessageStep::Fail(failure) => late.push((message, failure)),
        }
    }
    wait::release(&app.queues, &kept).await;
    each(invocation, QUEUE_CALLS, &woken, |message| wait::wake(&app.queues, message)).await;
    let notified = Notified::default();
    each(invocation, CONCURRENCY, &late, |(message, failure)| fail(app, message, failure, (&names, &notified))).await;
    plan.needed
}

/// The current state of the clouds in which requests wait for an instance, without those that could not be queried.
async fn observe_all(
    app: &App,
    invocation: &Invocation,
    (messages, tasks): (&[Waiting], &observe::Tasks),
    now: Timestamp,
) -> BTreeMap<usize, Observation> {
    let waits = |cloud: &Cloud| {
        let waits = |wait: &Wait| wait.waits_for == WaitsFor::Instance && wait.cloud == cloud.name();
        messages.iter().filter_map(|message| message.wait.as_ref()).any(waits)
    };
    let overdue = plan::overdue(&app.config().clouds, messages, now);
    let mut all = BTreeMap::new();
    for cloud in app.clouds.iter().filter(|cloud| waits(cloud)) {
        match guarded(invocation, observe(cloud, tasks, overdue.contains(&cloud.index), now)).await {
            Ok(observation) => {
                if let Some(group) = &observation.observed.group {
                    tracing::info!(
                        cloud = cloud.name(),
                        group = group.name,
                        metric.group_desired = group.desired,
                        metric.group_maximum = group.maximum,
                        instances_in_cluster = observation.observed.own().count(),
                        never_registered = observation.observed.never_registered.len(),
                        "requests wait for the group"
                    );
                }
                all.insert(cloud.index, observation);
            }
            Err(fault) => {
                log_fault!(&fault, cloud = cloud.name(), "cloud not observed; its requests go on waiting");
            }
        }
    }
    all
}

async fn observe(
    cloud: &Cloud,
    tasks: &observe::Tasks,
    is_overdue: bool,
    now: Timestamp,
) -> Result<Observation, Fault> {
    let mut observed = observe::instances(cloud, Some(tasks)).await?;
    if let Some(name) = &cloud.config.auto_scaling_group {
        observe::group(cloud, name, &mut observed, now).await?;
    }
    let mut launch_failure = None;
    if let Some(group) = observed.group.as_ref().filter(|group| is_overdue && group.is_short()) {
        launch_failure = cloud.groups.last_launch_failure(&group.name).await.unwrap_or_else(|fault| {
            log_fault!(
                &fault,
                cloud = cloud.name(),
                "scaling activities not read; the reason for missing instances is unknown"
            );
            None
        });
    }
    Ok(Observation { observed, launch_failure })
}

impl Item for Waiting {
    fn span(&self) -> Span {
        self.ids().span()
    }
}

impl Item for (Waiting, Failure) {
    fn span(&self) -> Span {
        self.0.ids().span()
    }
}

/// The failures that this sweep has reported at all, and to whom: all copies of a request are reported once.
type Notified = Mutex<HashSet<(String, Option<Target>)>>;

/// Leaves out the targets that were notified already. Returns the number of agents whose failure is reported for the first time.
fn claim(notices: &mut [(AgentName, Notice, Vec<Target>)], notified: &Notified) -> usize {
    let mut notified = notified.lock().unwrap_or_else(PoisonError::into_inner);
    let mut new = 0;
    for (_, notice, targets) in notices {
        targets.retain(|target| notified.insert((notice.id.clone(), Some(target.clone()))));
        new += usize::from(notified.insert((notice.id.clone(), None)));
    }
    new
}

/// Reports the failure of a request that has waited too long, unless a copy of it has found room.
async fn fail(
    app: &App,
    message: &Waiting,
    failure: &Failure,
    (placed, notified): (&HashSet<AgentName>, &Notified),
) -> Result<(), Fault> {
    let Some(wait) = &message.wait else { return Ok(()) };
    let request = AgentRequest::parse(&message.body).ok();
    let build = request.as_ref().and_then(|request| request.build.as_ref());
    Ids { build, ..Ids::default() }.record();
    let cloud = app.clouds.named(&wait.cloud);
    let template = cloud.and_then(|cloud| cloud.template(&wait.template));
    let mut notices = Vec::new();
    for &index in &wait.agents {
        let name = AgentName::new(&app.settings.agent_name_prefix, &wait.template, wait.request_id.as_str(), index);
        if placed.contains(&name) {
            continue;
        }
        let subject = Subject {
            name: &name,
            template,
            request_id: Some(&wait.request_id),
            build,
            requested_at: Some(wait.requested_at),
        };
        let mut notice = subject.notice(NoticeType::Failed, app.now());
        notice.failure = Some(failure.clone());
        let url = request.as_ref().and_then(|request| request.webhook_urls.get(index as usize));
        let targets = app.notifier.everybody(url.map(String::as_str));
        notices.push((name, notice, targets));
    }
    let failed = claim(&mut notices, notified);
    for (name, notice, targets) in notices {
        app.notifier.notify_all(&notice, targets).instrument(Ids::of_agent(&name).span()).await?;
    }
    let template = template.map(|template| template.name.as_str());
    match failed {
        0 => tracing::info!("copy of a request dropped: the request has failed, or has its agents"),
        _ => report::request_failed(cloud.map(Cloud::name), template, failure, failed),
    }
    wait::forget(&app.queues, message).await
}
