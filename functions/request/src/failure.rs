//! Fails requests, or agents of theirs: keeps a copy for people, and notifies everyone who may be notified.

use futures::future::join_all;
use shared::app::App;
use shared::batch::Item;
use shared::fault::Fault;
use shared::memory::Claim;
use shared::message::{Failure, FailureCode, Notice, NoticeType};
use shared::report;
use tracing::Instrument as _;

use crate::agent;
use crate::plan::{Order, Refused};

/// Fails agents for a reason that waiting cannot change; the message is kept for people.
///
/// # Errors
/// When a notice could not be delivered or kept.
pub(crate) async fn launch_failed(
    app: &App,
    item: &Item,
    order: &Order<'_>,
    agents: &[u32],
    message: String,
) -> Result<(), Fault> {
    end(app, item, order, agents, Failure::new(FailureCode::LaunchFailed, message)).await
}

/// Fails agents. A message that can never work is kept for people; one that has only expired is not.
///
/// # Errors
/// When a notice could not be delivered or kept.
pub(crate) async fn end(
    app: &App,
    item: &Item,
    order: &Order<'_>,
    agents: &[u32],
    failure: Failure,
) -> Result<(), Fault> {
    // The build is notified, whatever happens to the copy.
    let copied = match failure.code {
        FailureCode::CapacityTimeout => Ok(()),
        _ => copy(app, item, &failure).await,
    };
    log_once(app, item, &format!("{} of {agents:?}", failure.code.as_str()), || {
        report::request_failed(Some(&order.cloud.name), Some(&order.template.name), &failure, agents.len());
    })
    .await;
    let notified = agents.iter().map(|&index| {
        let name = order.name(&app.settings.agent_name_prefix, index);
        let mut notice = order.subject(&name).notice(NoticeType::Failed, app.now());
        notice.failure = Some(failure.clone());
        let span = agent::span(order, &name);
        notify(app, item, notice, order.webhook_url(index)).instrument(span)
    });
    join_all(notified).await.into_iter().chain([copied]).collect()
}

/// Refuses a message that is not a valid request, or that no template can serve.
///
/// # Errors
/// When a notice could not be delivered or kept.
pub(crate) async fn refuse(app: &App, item: &Item, refused: &Refused) -> Result<(), Fault> {
    let copied = copy(app, item, &refused.failure).await;
    let subject = refused.request_id.as_ref().map_or(item.id.as_str(), |id| id.as_str());
    let notice = |index: usize| {
        let mut notice = Notice::new(NoticeType::Failed, &format!("{subject}/{index}"), app.now());
        notice.request_id = refused.request_id.clone();
        notice.build = refused.build.clone();
        notice.failure = Some(refused.failure.clone());
        notice
    };
    // If the request was placed in part, only the agents that still wait have no outcome yet.
    let waits =
        |index: usize| item.wait.as_ref().is_none_or(|wait| wait.agents.iter().any(|&agent| agent as usize == index));
    let urls = refused.webhook_urls.iter().map(|url| Some(url.as_str())).enumerate();
    let mut urls: Vec<_> = urls.filter(|&(index, _)| waits(index)).collect();
    if urls.is_empty() {
        urls.push((0, None));
    }
    log_once(app, item, "refusal", || report::request_failed(None, None, &refused.failure, urls.len())).await;
    let notified = urls.into_iter().map(|(index, url)| notify(app, item, notice(index), url));
    join_all(notified).await.into_iter().chain([copied]).collect()
}

/// Puts a copy of a message into the rejected queue, with the reason.
async fn copy(app: &App, item: &Item, failure: &Failure) -> Result<(), Fault> {
    let reason = format!("{}: {}", failure.code.as_str(), failure.message);
    once(app, item, "copied", app.queues.reject(&item.body, &reason)).await
}

/// Notifies everyone who is notified of an agent.
async fn notify(app: &App, item: &Item, notice: Notice, webhook_url: Option<&str>) -> Result<(), Fault> {
    let targets = app.notifier.everybody(webhook_url);
    once(app, item, &notice.id, app.notifier.notify_all(&notice, targets)).await
}

/// Logs a failure of a message once, however often that comes back because a part of its handling failed.
async fn log_once(app: &App, item: &Item, what: &str, log: impl FnOnce()) {
    let what = format!("log of {what}");
    let log = async {
        log();
        Ok(())
    };
    // An error means that it is being logged.
    once(app, item, &what, log).await.ok();
}

/// Does something for a message once, however often the message comes back to this process for another reason.
async fn once(app: &App, item: &Item, what: &str, work: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
    match app.memory.claim(&format!("{what} of {}", item.id)) {
        Claim::Delivered if !item.id.is_empty() => Ok(()),
        Claim::Taken if !item.id.is_empty() => Err(Fault::not_yet("it is in progress elsewhere in this process")),
        Claim::Mine(claim) => {
            work.await?;
            claim.done();
            Ok(())
        }
        _ => work.await,
    }
}

/// Handles the fault of a record. A final fault ends it. Any other brings it back, until one try before the last that
/// the queue allows: should that try be cut short, the last one gives up. In the dead-letter queue, nobody would be
/// notified.
///
/// # Errors
/// When the message has to come back.
pub(crate) async fn give_up_or_retry(
    app: &App,
    item: &Item,
    admitted: Result<&Order<'_>, &Refused>,
    fault: Fault,
) -> Result<(), Fault> {
    let message = match fault.is_final() {
        true => fault.to_string(),
        false if item.receives < 2 => return Err(fault),
        false => match app.memory.max_receives(&app.queues).await {
            Ok(Some(most)) if item.receives >= most.saturating_sub(1).max(2) => {
                format!("given up after {} tries: {fault}", item.receives)
            }
            _ => return Err(fault),
        },
    };
    match admitted {
        Ok(order) => {
            let agents = without_task(app, order).await;
            if agents.is_empty() {
                tracing::error!(error = message, "request given up; its agents exist, and their events report them");
                return Ok(());
            }
            launch_failed(app, item, order, &agents, message).await
        }
        Err(refused) => refuse(app, item, refused).await,
    }
}

/// The agents of a request for which ECS knows no task: the others have had, or will have, their outcome.
async fn without_task(app: &App, order: &Order<'_>) -> Vec<u32> {
    let cloud = app.clouds.at(order.cloud_index);
    let known = order.agents.iter().map(|&index| async move {
        let name = order.name(&app.settings.agent_name_prefix, index);
        // Where ECS cannot be asked, the agent is reported as failed: a build that hears nothing is worse.
        let arns = cloud.cluster.tasks_named(name.as_str()).await.unwrap_or_default();
        arns.is_empty().then_some(index)
    });
    join_all(known).await.into_iter().flatten().collect()
}
