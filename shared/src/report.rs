//! Reports to Jenkins what has become of a task: for its events, for retries, and for the sweep.

use tracing::Level;

use crate::agents::{self, Endpoint, Subject};
use crate::app::App;
use crate::aws::ecs::{CONTROLLER_TAG, DesiredStatus, HealthStatus, REPORTED_TAG, Task, TaskFilter};
use crate::cloud::Cloud;
use crate::config::variables::is_reserved;
use crate::config::{Connect, Template};
use crate::fault::{Fault, Kind};
use crate::jenkins::{Created, Launcher, Node};
use crate::memory::Claim;
use crate::message::{Failure, Notice, NoticeType, Record};
use crate::name::AgentName;
use crate::notifier::{Delivery, Fallback, Target, Undelivered, Work};
use crate::outcome::{self, Ended, Running};
use crate::segment;
use crate::span::Ids;
use crate::stop::{Cause, Stop};
use crate::{log_at, log_fault};

/// One of our agents that has, or had, a task.
#[derive(Clone, Copy)]
pub struct OurAgent<'a> {
    /// The cloud of its task.
    pub cloud: &'a Cloud,
    pub name: &'a AgentName,
    /// Its template, unless it is no longer configured.
    pub template: Option<&'a Template>,
    /// Whether its notice may have been delivered without a record of that. Then it is not sent again.
    pub may_be_notified: bool,
}

impl<'a> OurAgent<'a> {
    /// An agent, with the template that its name contains.
    pub fn new(app: &App, cloud: &'a Cloud, name: &'a AgentName) -> Self {
        Self { cloud, name, template: cloud.template(app.template_name(name)), may_be_notified: false }
    }

    fn template_name(&self) -> Option<&str> {
        self.template.map(|template| template.name.as_str())
    }

    fn subject<'r>(&self, record: Option<&'r Record>) -> Subject<'r>
    where
        'a: 'r,
    {
        Subject::of_record(self.name, self.template, record)
    }
}

/// The result of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// Everyone who had to be notified was notified.
    Done,
    /// Nobody was notified, because everyone may have been before.
    MayBeDone,
    /// The task is not ready yet, for this reason.
    NotYet(String),
    /// Jenkins refuses to create the node.
    Refused(Fault),
}

impl Reported {
    /// Success, unless it has to be repeated.
    ///
    /// # Errors
    /// When Jenkins refuses to create the node.
    pub fn done(self) -> Result<(), Fault> {
        match self {
            Self::Done | Self::MayBeDone | Self::NotYet(_) => Ok(()),
            Self::Refused(fault) => Err(fault),
        }
    }
}

/// Describes a task and reports its state.
///
/// # Errors
/// When it has to be repeated; nothing is lost as long as the caller does so.
pub async fn task(app: &App, agent: OurAgent<'_>, arn: &str, otherwise: Option<&Fallback>) -> Result<Reported, Fault> {
    match agent.cloud.cluster.describe_task(arn).await? {
        Some(task) => described(app, agent, &task).await,
        None => {
            tracing::info!("task no longer known to ECS");
            lost(app, agent.name, otherwise).await?;
            Ok(Reported::Done)
        }
    }
}

/// Reports the end of a task from its last event. A stopped task no longer changes; ECS is asked only for its tags,
/// which say whether a ready agent was reported.
///
/// # Errors
/// When it has to be repeated.
pub async fn last_event(app: &App, agent: OurAgent<'_>, event: &Task) -> Result<(), Fault> {
    let described = agent.cloud.cluster.describe_task(&event.arn).await?;
    let is_known = described.is_some();
    let mut task = event.clone();
    task.tags = described.map(|task| task.tags).unwrap_or_default();
    let is_ours = task.record().is_some() || task.tags.contains_key(CONTROLLER_TAG);
    if !is_ours || outcome::is_anothers(&task, app.controller()) {
        return Ok(());
    }
    if !is_known && task.started_at.is_some() {
        // ECS has forgotten it; it ran, so its build has most likely had it.
        task.tags.insert(REPORTED_TAG.into(), "ready".into());
    }
    stopped(app, agent, &task).await
}

/// Reports the state of a task as ECS describes it now.
async fn described(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<Reported, Fault> {
    let record = task.record();
    record.iter().for_each(|record| Ids::from(record).record());
    let container = record.as_ref().map(|record| record.container.as_str());
    let has_health_check = has_health_check(app, agent, task, container).await?;
    match outcome::of_running(task, app.controller(), container, has_health_check) {
        Running::Ready => ready(app, agent, task, record.as_ref()).await,
        Running::Stopped => stopped(app, agent, task).await.map(|()| Reported::Done),
        Running::NotYet => Ok(Reported::NotYet(not_yet(task))),
        Running::Nothing(why) => {
            tracing::debug!("{why}");
            Ok(Reported::Done)
        }
    }
}

fn not_yet(task: &Task) -> String {
    match task.is_running() {
        true => "the task runs but is not healthy".to_owned(),
        false => format!("the task is {}", task.last_status),
    }
}

/// Whether the container has a health check. ECS reports `UNKNOWN` both for a container without one and for one that
/// was not checked yet (API_Container), so the task definition decides; it is described once per process.
async fn has_health_check(app: &App, agent: OurAgent<'_>, task: &Task, container: Option<&str>) -> Result<bool, Fault> {
    let health = container.and_then(|name| task.container(name)).and_then(|container| container.health_status.as_ref());
    let is_undecided = health == Some(&HealthStatus::Unknown) && !task.is_ending() && !task.reported();
    let Some(definition) = task.task_definition_arn.as_deref().filter(|_| is_undecided) else { return Ok(false) };
    match app.memory.task_definition(agent.cloud, definition).await {
        Ok(definition) => {
            let found = definition.containers.iter().find(|found| Some(found.name.as_str()) == container);
            Ok(found.is_some_and(|found| found.health_check))
        }
        Err(fault) if fault.is_final() => {
            log_fault!(&fault, "task definition not read; the container is taken to have no health check");
            Ok(false)
        }
        Err(fault) => Err(fault),
    }
}

/// Creates the node of an agent whose task runs, and reports it ready.
async fn ready(app: &App, agent: OurAgent<'_>, task: &Task, record: Option<&Record>) -> Result<Reported, Fault> {
    let name = agent.name;
    let Some(record) = record else {
        return unusable(agent, task, "the task carries no record of its request").await;
    };
    let Some(template) = agent.template else {
        let text = format!("template {} is no longer configured", app.template_name(name));
        return unusable(agent, task, &text).await;
    };
    let endpoint = match template.connect {
        Connect::Inbound => None,
        Connect::Ssh => match agents::endpoint(&app.memory, agent.cloud, template, &record.container, task).await {
            Ok(endpoint) => Some(endpoint),
            Err(fault) if fault.is_final() => return unusable(agent, task, &fault.to_string()).await,
            Err(fault) if fault.kind == Kind::NotYet => return Ok(Reported::NotYet(fault.message)),
            Err(fault) => return Err(fault),
        },
    };
    if app.jenkins.registers_nodes() {
        let node = node(agent, template, task, record, endpoint.as_ref());
        match register(app, agent, task, &node).await {
            Ok(Registered::Yes) => {}
            Ok(Registered::YoungerOfTwo) => return Ok(Reported::Done),
            Err(fault) if fault.action == "Jenkins" && fault.is_final() => {
                let text = format!("Jenkins refuses the node: {}", fault.message);
                return unusable(agent, task, &text).await;
            }
            Err(fault) if fault.kind == Kind::Setting => return Ok(Reported::Refused(fault)),
            Err(fault) => return Err(fault),
        }
    }
    let notice = agent.subject(Some(record)).ready(endpoint, task, app.now());
    notify_ready(app, agent, task, &notice, record).await
}

/// The node of an agent whose task runs.
fn node(agent: OurAgent<'_>, template: &Template, task: &Task, record: &Record, endpoint: Option<&Endpoint>) -> Node {
    let launcher = match endpoint {
        Some(endpoint) => {
            Launcher::Ssh { host: endpoint.host.clone(), port: endpoint.port, settings: template.ssh.clone() }
        }
        None => Launcher::Inbound,
    };
    let environment = task
        .environment()
        .filter(|(variable, _)| !is_reserved(variable))
        .map(|(variable, value)| (variable.to_owned(), value.to_owned()))
        .collect();
    let cloud = &agent.cloud.config;
    let description = agents::describe(&record.request_id, record.build.as_ref(), cloud, Some(&task.arn));
    Node { environment, description, ..agents::node(agent.name, template, record.webhook_url.is_some(), launcher) }
}

/// Whether an agent has its node.
enum Registered {
    Yes,
    /// An older task has the same name; this one was stopped.
    YoungerOfTwo,
}

/// Creates an agent's node, unless another task of its name has created it.
async fn register(app: &App, agent: OurAgent<'_>, task: &Task, node: &Node) -> Result<Registered, Fault> {
    match app.jenkins.create_node(node).await? {
        Created::New => {}
        // The sweep may have found the node before its task and taken it offline.
        Created::Existed if matches!(node.launcher, Launcher::Inbound) => {
            app.jenkins.set_online(agent.name.as_str()).await?;
        }
        Created::Existed => match standing(app, agent, task).await? {
            Standing::Alone => {}
            Standing::Younger { eldest } => {
                let stop = Stop::new(Cause::Duplicate, format!("{eldest} has the same name"));
                self::stop(agent, task, stop).await?;
                return Ok(Registered::YoungerOfTwo);
            }
            // The node may be the younger task's, with that task's address.
            Standing::Eldest => {
                app.jenkins.delete_node(agent.name.as_str()).await?;
                app.jenkins.create_node(node).await?;
            }
        },
    }
    Ok(Registered::Yes)
}

/// The rank of a task by age, among those of its name.
enum Standing {
    Alone,
    Eldest,
    Younger { eldest: String },
}

async fn standing(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<Standing, Fault> {
    let cluster = &agent.cloud.cluster;
    let arns = cluster.list_tasks(TaskFilter::StartedBy(agent.name.as_str()), DesiredStatus::Running).await?;
    if arns.iter().all(|arn| *arn == task.arn) {
        return Ok(Standing::Alone);
    }
    let mut tasks = cluster.describe_tasks(&arns).await?;
    tasks.retain(|task| outcome::is_ours(task, app.controller()));
    let age = |task: &&Task| (task.created_at, task.arn.clone());
    let eldest = tasks.iter().chain([task]).min_by_key(age).unwrap_or(task);
    Ok(match eldest.arn == task.arn {
        true => Standing::Eldest,
        false => Standing::Younger { eldest: eldest.arn.clone() },
    })
}

/// Reports a ready agent: first to its request's webhook, then to everyone else; the outcome is recorded on the task.
async fn notify_ready(
    app: &App,
    agent: OurAgent<'_>,
    task: &Task,
    notice: &Notice,
    record: &Record,
) -> Result<Reported, Fault> {
    if agent.may_be_notified {
        tracing::info!("the agent is ready, and the record of its notice may be in the undelivered queue");
        return Ok(Reported::MayBeDone);
    }
    let claim = app.memory.claim(&notice.id);
    let delivery = match (&record.webhook_url, &claim) {
        (_, Claim::Taken) => return Err(Fault::not_yet("the notice is on its way just now")),
        (Some(url), Claim::Mine(_)) => app.notifier.notify(notice, &Target::Request(url.clone())).await?,
        _ => Delivery::Delivered,
    };
    let outcome = match delivery {
        Delivery::Delivered => "ready",
        Delivery::Rejected => "rejected",
        Delivery::Unwanted if is_at_work(app, agent.name).await? => "ready",
        Delivery::Unwanted => {
            let unwanted = Stop::new(Cause::Unwanted, "Jenkins says that nobody waits for this agent");
            stop(agent, task, unwanted).await?;
            app.notifier.delete_node(agent.name).await?;
            return Ok(Reported::Done);
        }
    };
    if let Claim::Mine(delivery) = claim {
        delivery.done();
    }
    notify_listeners(app, notice).await?;
    segment::send(app.settings.xray_daemon, record.trace.as_ref(), notice);
    record_or_keep(app, agent, task, outcome).await?;
    log_ready(agent, notice);
    Ok(Reported::Done)
}

/// Whether a build runs on an agent that its webhook calls unwanted: the webhook was notified before, and the answer or
/// the record of it was lost.
async fn is_at_work(app: &App, name: &AgentName) -> Result<bool, Fault> {
    if !app.jenkins.registers_nodes() {
        return Ok(false);
    }
    let node = app.jenkins.node(name.as_str()).await.map_err(|fault| {
        // No agent is stopped without a look at its node: retried, whatever the fault.
        Fault::passing(format!("whether a build runs on the unwanted agent is not known: {fault}"))
    })?;
    Ok(node.is_some_and(|node| node.idle == Some(false)))
}

/// Notifies everyone but the request's own webhook, once per process. This precedes the record: after it, nobody is
/// notified again.
async fn notify_listeners(app: &App, notice: &Notice) -> Result<bool, Fault> {
    if let Claim::Mine(delivery) = app.memory.claim(&format!("{} to listeners", notice.id)) {
        app.notifier.notify_all(notice, app.notifier.listeners()).await?;
        delivery.done();
        return Ok(true);
    }
    Ok(false)
}

/// Records an agent as ready that has a build although that was never recorded: the build was notified, or found the
/// agent by its labels. Nobody who could refuse the agent is asked.
///
/// # Errors
/// When it could not be reported or recorded.
pub async fn at_work(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<(), Fault> {
    let notice = agent.subject(task.record().as_ref()).ready(None, task, app.now());
    notify_listeners(app, &notice).await?;
    record_or_keep(app, agent, task, "ready").await?;
    log_ready(agent, &notice);
    Ok(())
}

/// Logs that an agent is ready, and how long each stage took.
fn log_ready(agent: OurAgent<'_>, notice: &Notice) {
    let Some(timings) = &notice.timings else { return };
    let stages = timings.stages(notice.at);
    let ms = |name: &str| {
        let (_, from, to) = stages.iter().find(|(stage, ..)| *stage == name)?;
        // The clocks of ECS and Lambda may differ.
        Some(to.as_millisecond().saturating_sub(from.as_millisecond()).max(0))
    };
    tracing::info!(
        cloud = agent.cloud.name(),
        template = agent.template_name(),
        metric.ready_ms = timings.total_ms.map(|total| total.max(0)),
        metric.waiting_ms = ms("waiting"),
        metric.launch_ms = ms("launch"),
        metric.pull_ms = ms("pull"),
        metric.start_ms = ms("start"),
        metric.notice_ms = ms("notice"),
        "agent ready"
    );
}

/// Stops a task that can never become an agent; its last event reports why.
async fn unusable(agent: OurAgent<'_>, task: &Task, why: &str) -> Result<Reported, Fault> {
    stop(agent, task, Stop::new(Cause::Unusable, why)).await.map(|()| Reported::Done)
}

/// Reports the end of a task.
///
/// # Errors
/// When it has to be repeated.
pub async fn stopped(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<(), Fault> {
    if let Some((notice, level)) = report_end(app, agent, task).await? {
        log_end(agent, &notice, task, level);
    }
    Ok(())
}

/// The same for the sweep, which cannot see whether another process has already reported the end. Most likely it has,
/// so it is neither counted nor logged as an error again.
///
/// # Errors
/// When it has to be repeated.
pub async fn stopped_unseen(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<(), Fault> {
    if let Some((notice, _)) = report_end(app, agent, task).await? {
        let failure = notice.failure.as_ref();
        tracing::info!(
            cloud = agent.cloud.name(),
            template = agent.template_name(),
            code = failure.map(|failure| failure.code.as_str()),
            error = failure.map(|failure| failure.message.as_str()),
            "agent ended: found by the sweep"
        );
    }
    Ok(())
}

/// Reports the end of a task. Returns the notice and its log level, if this process had not reported it before.
async fn report_end(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<Option<(Notice, Level)>, Fault> {
    let request = task.record();
    request.iter().for_each(|record| Ids::from(record).record());
    let container = request.as_ref().map(|record| record.container.as_str());
    let Some(mut ended) = end(agent.cloud, task, container, known_readiness(task)).await? else { return Ok(None) };
    // The sweep may have found a start overdue at the moment in which the agent was reported ready.
    if app.memory.was_delivered(&Notice::new(NoticeType::Ready, agent.name.as_str(), app.now()).id) {
        ended.kind = NoticeType::Stopped;
    }
    app.notifier.delete_node(agent.name).await?;
    let mut notice = agent.subject(request.as_ref()).notice_of_task(ended.kind, task, app.now());
    notice.failure = ended.failure;
    let level = ended.level;
    let is_new = match ended.kind {
        NoticeType::Failed if task.reported() => false,
        NoticeType::Failed => {
            let webhook_url = request.as_ref().and_then(|record| record.webhook_url.as_deref());
            let is_new = notify_once(app, &notice, webhook_url).await?;
            let trace = request.as_ref().and_then(|record| record.trace.as_ref());
            segment::send(app.settings.xray_daemon, trace, &notice);
            // ECS may accept no tag of a stopped task any more.
            if let Err(fault) = record(agent.cloud, &task.arn, &format!("failed {}", app.now())).await {
                tracing::debug!(error = %fault, "stopped task takes no tag");
            }
            is_new
        }
        _ => notify_listeners(app, &notice).await?,
    };
    Ok(is_new.then_some((notice, level)))
}

/// Logs that agents of a request failed before they had a task. A refused request has neither cloud nor template.
pub fn request_failed(cloud: Option<&str>, template: Option<&str>, failure: &Failure, agents: usize) {
    log_at!(
        failure.code.level(),
        cloud,
        template,
        code = failure.code.as_str(),
        error = failure.message,
        metric.agents_failed = agents,
        "request failed"
    );
}

/// Logs how an agent ended.
fn log_end(agent: OurAgent<'_>, notice: &Notice, task: &Task, level: Level) {
    let (cloud, template) = (agent.cloud.name(), agent.template_name());
    let count = |kind| (notice.kind == kind).then_some(1);
    let (failed, stopped) = (count(NoticeType::Failed), count(NoticeType::Stopped));
    // Not if the build was aborted, or Spot capacity was lost: that is no error.
    let to_fix = failed.filter(|_| level == Level::ERROR);
    match &notice.failure {
        Some(failure) => log_at!(
            level,
            cloud,
            template,
            code = failure.code.as_str(),
            error = failure.message,
            metric.agents_failed = failed,
            metric.starts_failed = to_fix,
            metric.agents_stopped = stopped,
            "agent ended"
        ),
        None => {
            let stop = Stop::parse(task.stopped_reason.as_deref().unwrap_or_default());
            let cause = stop.map_or("OTHER", |stop| stop.cause.as_str());
            tracing::info!(cloud, template, cause, metric.agents_stopped = stopped, "agent ended");
        }
    }
}

/// The outcome of a stopped task ([`outcome::of_stopped`]), with a look at the EC2 instance that it ended with.
///
/// # Errors
/// When EC2 could not be queried.
pub async fn end(
    cloud: &Cloud,
    task: &Task,
    container: Option<&str>,
    reported_ready: Option<bool>,
) -> Result<Option<Ended>, Fault> {
    let Some(ended) = outcome::of_stopped(task, container, reported_ready) else { return Ok(None) };
    Ok(Some(if was_interrupted(cloud, task).await? { outcome::interrupted(ended, task) } else { ended }))
}

/// Whether a task ended with its EC2 instance because AWS took the Spot instance back ("Spot Instance interruption
/// notices": the state reason's code).
async fn was_interrupted(cloud: &Cloud, task: &Task) -> Result<bool, Fault> {
    let Some(id) = outcome::ended_host(task) else { return Ok(false) };
    match cloud.ec2.state_reason(id).await {
        Ok(code) => Ok(code.as_deref() == Some("Server.SpotInstanceTermination")),
        Err(fault) if fault.is_final() => {
            log_fault!(
                &fault,
                ec2.instance = id,
                "instance not described; its end is not taken for a Spot interruption"
            );
            Ok(false)
        }
        Err(fault) => Err(fault),
    }
}

/// Whether a stopped task's tags say that it was reported ready; `None` if that is no longer known.
fn known_readiness(task: &Task) -> Option<bool> {
    let is_ours = Stop::parse(task.stopped_reason.as_deref().unwrap_or_default()).is_some();
    // StopTask deleted its tags: somebody else's call, or ours for a task that had already stopped.
    let lost_tags = !task.tags.contains_key(CONTROLLER_TAG) && !task.reported();
    (!is_ours && !lost_tags).then(|| task.reported_ready())
}

/// Notifies everyone of the end of a task, all at once: once per process. Returns whether it did so now.
async fn notify_once(app: &App, notice: &Notice, webhook_url: Option<&str>) -> Result<bool, Fault> {
    match app.memory.claim(&notice.id) {
        Claim::Mine(delivery) => {
            app.notifier.notify_all(notice, app.notifier.everybody(webhook_url)).await?;
            delivery.done();
            Ok(true)
        }
        Claim::Taken => Err(Fault::not_yet("the notice is on its way just now")),
        Claim::Delivered => Ok(false),
    }
}

/// Records on the task that its outcome was reported. If only that fails, only the record is kept for later: nobody is
/// notified again.
async fn record_or_keep(app: &App, agent: OurAgent<'_>, task: &Task, outcome: &str) -> Result<(), Fault> {
    let value = format!("{outcome} {}", app.now());
    let Err(fault) = record(agent.cloud, &task.arn, &value).await else { return Ok(()) };
    log_fault!(&fault, "outcome reported, but not recorded on the task yet");
    let (cluster, arn, name) = (task.cluster_arn.clone(), task.arn.clone(), agent.name.clone());
    let work = Work::Record { cluster, arn, name, value };
    app.notifier.keep(&Undelivered { since: app.now(), work }).await
}

/// Sets the tag that records when and how a task's outcome was reported.
///
/// # Errors
/// When it has to be repeated.
pub async fn record(cloud: &Cloud, arn: &str, value: &str) -> Result<(), Fault> {
    match cloud.cluster.tag(arn, REPORTED_TAG, value).await {
        Err(fault) if fault.kind == Kind::Denied => {
            let advice = "outcome reported, but not recorded on the task: the function's role needs ecs:TagResource";
            tracing::error!(error = %fault, "{advice}");
            Ok(())
        }
        Err(fault) if fault.is_final() => {
            tracing::debug!(error = %fault, "the task takes no tag any more");
            Ok(())
        }
        result => result,
    }
}

/// Stops a task. If it is already gone, that is success.
///
/// # Errors
/// When ECS could not be queried.
pub async fn stop(agent: OurAgent<'_>, task: &Task, stop: Stop) -> Result<(), Fault> {
    match agent.cloud.cluster.stop_task(&task.arn, &stop.to_string()).await {
        Err(fault) if fault.kind == Kind::Missing => return Ok(()),
        result => result?,
    };
    tracing::info!(reason = %stop, "task stopped");
    Ok(())
}

/// Reports the end of a task whose real outcome is no longer known.
///
/// # Errors
/// When it has to be repeated.
pub async fn lost(app: &App, name: &AgentName, otherwise: Option<&Fallback>) -> Result<(), Fault> {
    app.notifier.delete_node(name).await?;
    match otherwise {
        Some(fallback) => notify_once(app, &fallback.notice, fallback.webhook_url.as_deref()).await.map(drop),
        None => Ok(()),
    }
}

/// Keeps a task for later, with what to report if ECS forgets it before Jenkins can be reached.
///
/// # Errors
/// When the undelivered queue did not accept it.
pub async fn keep(app: &App, agent: OurAgent<'_>, task: &Task) -> Result<(), Fault> {
    let work = Work::Task {
        cluster: task.cluster_arn.clone(),
        arn: task.arn.clone(),
        name: agent.name.clone(),
        otherwise: fallback(app, agent, task),
    };
    app.notifier.keep(&Undelivered { since: app.now(), work }).await
}

fn fallback(app: &App, agent: OurAgent<'_>, task: &Task) -> Option<Fallback> {
    let record = task.record()?;
    let mut gone = task.clone();
    // If it still ran, nobody had been notified of it; if it ended after it ran, its build most likely had it.
    if !task.is_stopped() {
        gone.started_at = None;
    }
    gone.stopped_reason.get_or_insert_with(|| "the task ended while Jenkins could not be notified".into());
    let ended = outcome::of_stopped(&gone, Some(&record.container), None)?;
    let mut notice = agent.subject(Some(&record)).notice_of_task(ended.kind, task, app.now());
    notice.failure = ended.failure;
    let webhook_url = record.webhook_url.filter(|_| ended.kind == NoticeType::Failed);
    Some(Fallback { notice: Box::new(notice), webhook_url })
}
