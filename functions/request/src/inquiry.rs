//! Answers a later copy of a request: reports again what has become of its agent.

use shared::agents;
use shared::app::App;
use shared::aws::ecs::Task;
use shared::batch::Item;
use shared::config::Connect;
use shared::fault::Fault;
use shared::message::{Failure, FailureCode, Notice, NoticeType};
use shared::report;

use crate::agent::Agent;
use crate::plan;
use crate::plan::inquiry::Answer;

/// After this many receives, seconds apart, a task that ECS does not describe is gone.
const SURE_AFTER: u32 = 3;

/// Answers from the tasks of the agent's name.
///
/// # Errors
/// When the message has to come back.
pub(crate) async fn answer(app: &App, item: &Item, agent: Agent<'_>, arns: &[String]) -> Result<(), Fault> {
    let tasks = agent.cloud.cluster.describe_tasks(arns).await?;
    if tasks.is_empty() && item.receives < SURE_AFTER {
        // ECS is eventually consistent: a task that another copy has just started may not be visible yet (API_RunTask).
        return Err(Fault::not_yet("the request's task is not described yet"));
    }
    let notice = match plan::inquiry::answer(&tasks, plan::asked_at(item, app.now())) {
        Answer::Ready(task) => ready_again(app, agent, task).await?,
        Answer::Ended(task) => {
            app.notifier.delete_node(agent.name).await?;
            Some(ended(app, agent, task).await?)
        }
        Answer::Nothing => None,
    };
    if let Some(notice) = notice {
        tracing::info!(
            notice.r#type = notice.kind.as_str(),
            "request repeated: the outcome of its agent is sent again"
        );
        let targets = app.notifier.everybody(agent.order.webhook_url(agent.index));
        app.notifier.notify_all(&notice, targets).await?;
    }
    Ok(())
}

async fn ready_again(app: &App, agent: Agent<'_>, task: &Task) -> Result<Option<Notice>, Fault> {
    let order = agent.order;
    let record = task.record().unwrap_or_else(|| order.record(agent.index, ""));
    let endpoint = match order.template.connect {
        Connect::Inbound => None,
        Connect::Ssh => {
            match agents::endpoint(&app.memory, agent.cloud, order.template, &record.container, task).await {
                Ok(endpoint) => Some(endpoint),
                Err(fault) if fault.is_final() => return Ok(None),
                Err(fault) => return Err(fault),
            }
        }
    };
    let subject = agents::Subject::of_record(agent.name, Some(order.template), Some(&record));
    Ok(Some(subject.ready(endpoint, task, app.now())))
}

async fn ended(app: &App, agent: Agent<'_>, task: Option<&Task>) -> Result<Notice, Fault> {
    let order = agent.order;
    let Some(task) = task else {
        let mut notice = order.subject(agent.name).notice(NoticeType::Failed, app.now());
        notice.failure = Some(Failure::new(FailureCode::StartFailed, already_ended("its task is gone")));
        return Ok(notice);
    };
    let record = task.record().unwrap_or_else(|| order.record(agent.index, ""));
    let subject = agents::Subject::of_record(agent.name, Some(order.template), Some(&record));
    let mut notice = subject.notice_of_task(NoticeType::Failed, task, app.now());
    let end = report::end(agent.cloud, task, Some(&record.container), None).await?;
    let code = end.and_then(|end| end.failure).map_or(FailureCode::StartFailed, |failure| failure.code);
    let mut failure = Failure::new(code, already_ended(task.stopped_reason.as_deref().unwrap_or_default()));
    failure.stop_code = task.stop_code.clone();
    notice.failure = Some(failure);
    Ok(notice)
}

fn already_ended(reason: &str) -> String {
    format!("the agent of this request has already ended: {reason}; send a new request with another requestId")
}
