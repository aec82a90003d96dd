//! Tells Jenkins what has become of a task: for its events, for retries, and for the sweep alike.

use crate::agents::{self, NoEndpoint};
use crate::app::{App, Claim, CloudRef};
use crate::aws::ecs::{self, CONTROLLER_TAG, DesiredStatus, Of, REPORTED_TAG, Task};
use crate::aws::{ApiFault, Class};
use crate::batch::Retry;
use crate::config::variables::is_reserved;
use crate::config::{Connect, Template};
use crate::jenkins::{self, Created, Launcher};
use crate::message::{Notice, NoticeType, Record};
use crate::name::AgentName;
use crate::notices::{Delivered, Fallback, Target, Undelivered, Work};
use crate::outcome::{self, Running};
use crate::stop::{Cause, Stop};

/// One of our tasks.
#[derive(Clone, Copy)]
pub struct Ours<'a> {
    /// Where it runs.
    pub cloud: CloudRef<'a>,
    /// Its agent's name.
    pub name: &'a AgentName,
    /// Its template, unless it is no longer configured.
    pub template: Option<&'a Template>,
}

/// A task among those of its name.
enum Standing {
    Alone,
    Eldest,
    /// It was stopped.
    Younger,
}

/// What came of telling what a task has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// Whoever had to be told was told.
    Done,
    /// The task is not ready yet.
    NotYet,
    /// Jenkins does not let us tell; the setting to mend is named.
    Refused(String),
}

impl Reported {
    /// Nothing, unless it has to be tried again.
    ///
    /// # Errors
    /// When Jenkins refuses it.
    pub fn done(self) -> Result<(), Retry> {
        match self {
            Self::Done | Self::NotYet => Ok(()),
            Self::Refused(reason) => Err(Retry(reason)),
        }
    }
}

impl App {
    /// The cloud and the name of a task, if it is ours.
    pub fn whose(&self, task: &Task) -> Option<(CloudRef<'_>, AgentName)> {
        let name = self.agent_name(task.started_by.as_deref()?)?;
        let cloud = self.cloud_of(&task.cluster_arn, &task.arn, &name)?;
        Some((cloud, name))
    }

    /// A task of ours with the template that its name says.
    pub fn ours<'a>(&self, cloud: CloudRef<'a>, name: &'a AgentName) -> Ours<'a> {
        Ours { cloud, name, template: cloud.template(self.template_name(name)) }
    }

    /// Looks at a task and tells what it has become.
    ///
    /// # Errors
    /// When that has to be tried again; nothing is lost as long as the caller does.
    pub async fn report(&self, ours: Ours<'_>, arn: &str, otherwise: Option<&Fallback>) -> Result<Reported, Retry> {
        let clients = &ours.cloud.clients.ecs;
        let tasks = ecs::describe_tasks(clients, &ours.cloud.cloud.cluster, &[arn.to_owned()]).await?;
        match tasks.into_iter().next() {
            Some(task) => self.report_described(ours, &task).await,
            None => {
                tracing::info!(agent.name = ours.name.as_str(), task.arn = arn, "ECS no longer knows the task");
                self.report_lost(ours.name, otherwise).await?;
                Ok(Reported::Done)
            }
        }
    }

    /// Tells the end of a task that its last event shows. A stopped task does not change any more; ECS is asked for its tags
    /// alone, which say whether somebody was told of a ready agent.
    ///
    /// # Errors
    /// When that has to be tried again.
    pub async fn report_end(&self, ours: Ours<'_>, event: &Task) -> Result<(), Retry> {
        let (client, cluster) = (&ours.cloud.clients.ecs, &ours.cloud.cloud.cluster);
        let described = ecs::describe_tasks(client, cluster, std::slice::from_ref(&event.arn)).await?;
        let is_known = !described.is_empty();
        let mut task = event.clone();
        task.tags = described.into_iter().next().map(|task| task.tags).unwrap_or_default();
        let is_ours = task.record().is_some() || task.tags.contains_key(CONTROLLER_TAG);
        if !is_ours || outcome::is_anothers(&task, self.config().jenkins.url.as_written()) {
            return Ok(());
        }
        if !is_known && task.started_at.is_some() {
            // Nobody can say any more; it ran, and its build has most likely had it.
            task.tags.insert(REPORTED_TAG.into(), "ready".into());
        }
        self.stopped(ours, &task).await
    }

    /// Tells what a task has become, as ECS describes it just now.
    ///
    /// # Errors
    /// When that has to be tried again.
    pub async fn report_described(&self, ours: Ours<'_>, task: &Task) -> Result<Reported, Retry> {
        let record = task.record();
        let container = record.as_ref().map(|record| record.container.as_str());
        let has_health_check = self.has_health_check(ours, task, container).await?;
        match outcome::of_running(task, self.config().jenkins.url.as_written(), container, has_health_check) {
            Running::Ready => self.ready(ours, task, record.as_ref()).await,
            Running::Stopped => self.stopped(ours, task).await.map(|()| Reported::Done),
            Running::NotYet => Ok(Reported::NotYet),
            Running::Nothing(why) => {
                tracing::debug!(agent.name = ours.name.as_str(), task.arn = task.arn, "{why}");
                Ok(Reported::Done)
            }
        }
    }

    /// ECS says `UNKNOWN` of a container without a health check as well as of one that was not checked yet
    /// (API_Container), so that the task definition has to tell; it is described once per process.
    async fn has_health_check(&self, ours: Ours<'_>, task: &Task, container: Option<&str>) -> Result<bool, Retry> {
        let unknown = container
            .and_then(|name| task.container(name))
            .is_some_and(|container| container.health_status.as_deref() == Some("UNKNOWN"));
        let (true, false, false, Some(definition)) =
            (unknown, task.is_ending(), task.reported(), &task.task_definition_arn)
        else {
            return Ok(false);
        };
        match self.task_definition(ours.cloud, definition).await {
            Ok(definition) => {
                let found = definition.containers.iter().find(|found| Some(found.name.as_str()) == container);
                Ok(found.is_some_and(|found| found.health_check))
            }
            Err(fault) if fault.class() == Class::Permanent => {
                tracing::warn!(error = %fault, "taken to have no health check");
                Ok(false)
            }
            Err(fault) => Err(fault.into()),
        }
    }

    async fn ready(&self, ours: Ours<'_>, task: &Task, record: Option<&Record>) -> Result<Reported, Retry> {
        let name = ours.name;
        let Some(record) = record else {
            if !task.tags.contains_key(CONTROLLER_TAG) {
                tracing::debug!(agent.name = name.as_str(), task.arn = task.arn, "not ours: no tag and no record");
                return Ok(Reported::Done);
            }
            return self.unusable(ours, task, "the task carries no record of its request").await;
        };
        let Some(template) = ours.template else {
            let text = format!("template {} is no longer configured", self.template_name(name));
            return self.unusable(ours, task, &text).await;
        };
        let endpoint = match template.connect {
            Connect::Inbound => None,
            Connect::Ssh => match agents::endpoint(self, ours.cloud, template, &record.container, task).await {
                Ok(endpoint) => Some(endpoint),
                Err(NoEndpoint::Retry(reason)) => return Err(Retry(reason)),
                Err(NoEndpoint::Never(reason)) => return self.unusable(ours, task, &reason).await,
            },
        };
        if self.jenkins.registers_nodes() {
            let launcher = match &endpoint {
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
            let description =
                agents::describe(&record.request_id, record.build.as_ref(), ours.cloud.cloud, Some(&task.arn));
            let labelled = record.webhook_url.is_some();
            let node = agents::node(name, template, labelled, launcher, environment, &description);
            match self.jenkins.create_node(&node).await {
                Ok(Created::Existed) if template.connect == Connect::Ssh => match self.standing(ours, task).await? {
                    Standing::Alone => {}
                    Standing::Younger => return Ok(Reported::Done),
                    // It may be the younger's, with the younger's address.
                    Standing::Eldest => {
                        self.jenkins.delete_node(name.as_str()).await?;
                        self.jenkins.create_node(&node).await?;
                    }
                },
                // The sweep may have met the node before its task and taken it offline.
                Ok(Created::Existed) => drop(self.jenkins.set_online(name.as_str()).await?),
                Ok(Created::New) => {}
                Err(jenkins::Fault::Permanent(reason)) => {
                    return self.unusable(ours, task, &format!("Jenkins refuses the node: {reason}")).await;
                }
                Err(fault @ jenkins::Fault::Refused(_)) => return Ok(Reported::Refused(fault.to_string())),
                Err(fault) => return Err(fault.into()),
            }
        }
        let notice = agents::notice(NoticeType::Ready, name, Some(template), endpoint, task, Some(record), self.now());
        let claim = self.claim(&notice.id);
        let outcome = match (&record.webhook_url, &claim) {
            (_, Claim::Anothers) => return Err(Retry("it is being told just now".into())),
            (Some(url), Claim::Mine(_)) => self.tell(&notice, &Target::Request(url.clone())).await?,
            _ => Delivered::Yes,
        };
        let told = match outcome {
            Delivered::Yes => "ready",
            Delivered::Rejected => "rejected",
            Delivered::Unwanted => {
                let stop = Stop::new(Cause::Unwanted, "Jenkins says that nobody waits for this agent");
                self.stop(ours, task, stop).await?;
                self.delete_node(name).await?;
                return Ok(Reported::Done);
            }
            // As if Jenkins were down, whoever has to mend it: the log names the setting.
            Delivered::Later(reason) | Delivered::Refused(reason) => return Err(Retry(reason)),
        };
        if let Claim::Mine(telling) = claim {
            telling.done();
        }
        self.tell_listeners(&notice).await?;
        self.mark(ours.cloud, task, told).await?;
        Ok(Reported::Done)
    }

    /// Tells everybody but the request's own webhook, once per process. Before anything is recorded: what is recorded is
    /// not told again.
    async fn tell_listeners(&self, notice: &Notice) -> Result<(), Retry> {
        if let Claim::Mine(telling) = self.claim(&format!("{} to listeners", notice.id)) {
            self.tell_all(notice, self.listeners()).await?;
            telling.done();
        }
        Ok(())
    }

    /// Records an agent as ready that is at work, though that was never recorded: its build has heard of it, or found it
    /// by its labels. Nothing is asked of anybody who could refuse it.
    ///
    /// # Errors
    /// When it could not be told or recorded.
    pub async fn at_work(&self, ours: Ours<'_>, task: &Task) -> Result<(), Retry> {
        let record = task.record();
        let now = self.now();
        let notice = agents::notice(NoticeType::Ready, ours.name, ours.template, None, task, record.as_ref(), now);
        self.tell_listeners(&notice).await?;
        self.mark(ours.cloud, task, "ready").await
    }

    /// Stops a task that can never become an agent; its last event tells why.
    async fn unusable(&self, ours: Ours<'_>, task: &Task, why: &str) -> Result<Reported, Retry> {
        self.stop(ours, task, Stop::new(Cause::Unusable, why)).await.map(|()| Reported::Done)
    }

    /// Another task of this name may have made the node. The younger of two is stopped.
    async fn standing(&self, ours: Ours<'_>, task: &Task) -> Result<Standing, Retry> {
        let clients = &ours.cloud.clients.ecs;
        let cluster = &ours.cloud.cloud.cluster;
        let arns = ecs::list_tasks(clients, cluster, Of::Name(ours.name.as_str()), DesiredStatus::Running).await?;
        if arns.iter().all(|arn| *arn == task.arn) {
            return Ok(Standing::Alone);
        }
        let tasks = ecs::describe_tasks(clients, cluster, &arns).await?;
        let age = |task: &&Task| (task.created_at, task.arn.clone());
        let eldest = tasks.iter().chain([task]).min_by_key(age).unwrap_or(task);
        if eldest.arn == task.arn {
            return Ok(Standing::Eldest);
        }
        let stop = Stop::new(Cause::Duplicate, format!("{} has the same name", eldest.arn));
        self.stop(ours, task, stop).await.map(|()| Standing::Younger)
    }

    /// Tells the end of a task.
    ///
    /// # Errors
    /// When that has to be tried again.
    pub async fn stopped(&self, ours: Ours<'_>, task: &Task) -> Result<(), Retry> {
        let record = task.record();
        let container = record.as_ref().map(|record| record.container.as_str());
        let reported = match Stop::parse(task.stopped_reason.as_deref().unwrap_or_default()) {
            Some(_) => None,
            // Somebody else stopped it, and StopTask took its tags.
            None if task.stop_code.as_deref() == Some("UserInitiated") && !task.tags.contains_key(CONTROLLER_TAG) => {
                None
            }
            None => Some(task.reported_ready()),
        };
        let Some(mut ended) = outcome::of_stopped(task, container, reported) else { return Ok(()) };
        // The sweep may have judged a start overdue in the moment in which it was told to be ready.
        if self.was_told(&Notice::new(NoticeType::Ready, ours.name.as_str(), self.now()).id) {
            ended.kind = NoticeType::Stopped;
        }
        self.delete_node(ours.name).await?;
        let mut notice = agents::notice(ended.kind, ours.name, ours.template, None, task, record.as_ref(), self.now());
        notice.failure = ended.failure;
        if let Some(failure) = &notice.failure {
            tracing::error!(
                agent.name = ours.name.as_str(),
                task.arn = task.arn,
                request.id = record.as_ref().map(|record| record.request_id.as_str()),
                code = failure.code.as_str(),
                error = failure.message,
                "agent ended"
            );
        }
        let url = record.as_ref().and_then(|record| record.webhook_url.as_deref());
        match ended.kind {
            NoticeType::Failed if task.reported() => Ok(()),
            NoticeType::Failed => {
                self.tell_once(&notice, url).await?;
                // ECS may take no tag of a stopped task any more.
                if let Err(Retry(reason)) = self.mark(ours.cloud, task, "failed").await {
                    tracing::debug!(task.arn = task.arn, error = reason, "not marked as reported");
                }
                Ok(())
            }
            _ => self.tell_listeners(&notice).await,
        }
    }

    /// Tells an outcome to the request's webhook, then to everybody else: once per process.
    async fn tell_once(&self, notice: &Notice, url: Option<&str>) -> Result<(), Retry> {
        match self.claim(&notice.id) {
            Claim::Mine(telling) => {
                if let Some(url) = url
                    && let Some(reason) = self.tell(notice, &Target::Request(url.to_owned())).await?.again()
                {
                    return Err(Retry(reason));
                }
                telling.done();
            }
            Claim::Anothers => return Err(Retry("it is being told just now".into())),
            Claim::Told => {}
        }
        self.tell_listeners(notice).await
    }

    /// Records on the task that its outcome was told.
    async fn mark(&self, cloud: CloudRef<'_>, task: &Task, told: &str) -> Result<(), Retry> {
        let value = format!("{told} {}", self.now());
        match ecs::tag(&cloud.clients.ecs, &task.arn, REPORTED_TAG, &value).await {
            Err(fault) if fault.code.as_deref().is_some_and(|code| code.starts_with("AccessDenied")) => {
                let advice = "nobody remembers that the outcome was told: the function's role needs ecs:TagResource";
                tracing::error!(task.arn = task.arn, error = %fault, "{advice}");
                Ok(())
            }
            Err(fault) if fault.class() == Class::Permanent => {
                tracing::debug!(task.arn = task.arn, error = %fault, "the task takes no tag any more");
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Stops a task. One that is gone already is what was wanted.
    ///
    /// # Errors
    /// When ECS could not be asked.
    pub async fn stop(&self, ours: Ours<'_>, task: &Task, stop: Stop) -> Result<(), Retry> {
        tracing::info!(agent.name = ours.name.as_str(), task.arn = task.arn, reason = %stop, "stopping the task");
        let stopped =
            ecs::stop_task(&ours.cloud.clients.ecs, &ours.cloud.cloud.cluster, &task.arn, &stop.to_string()).await;
        match stopped {
            Err(fault) if is_gone(&fault) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    /// Deletes a node; what Jenkins cannot do now is kept for later.
    ///
    /// # Errors
    /// When it could not even be kept.
    pub async fn delete_node(&self, name: &AgentName) -> Result<(), ApiFault> {
        if !self.jenkins.registers_nodes() {
            return Ok(());
        }
        match self.jenkins.delete_node(name.as_str()).await {
            Ok(_) => Ok(()),
            Err(fault) => {
                tracing::warn!(agent.name = name.as_str(), error = %fault, "the node is deleted later");
                let work = Work::Node { name: name.to_string() };
                self.keep(&Undelivered { since: self.now(), work }).await
            }
        }
    }

    /// Tells the end of a task of which nobody can say any more what it has become.
    ///
    /// # Errors
    /// When that has to be tried again.
    pub async fn report_lost(&self, name: &AgentName, otherwise: Option<&Fallback>) -> Result<(), Retry> {
        self.delete_node(name).await?;
        match otherwise {
            Some(fallback) => self.tell_once(&fallback.notice, fallback.webhook_url.as_deref()).await,
            None => Ok(()),
        }
    }

    /// What has to be told if ECS forgets the task before Jenkins can be told.
    pub fn fallback(&self, ours: Ours<'_>, task: &Task) -> Option<Fallback> {
        let record = task.record()?;
        let mut gone = task.clone();
        // One that still ran had nobody told of it; one that ended after it ran most likely had its build.
        if !task.is_stopped() {
            gone.started_at = None;
        }
        gone.stopped_reason.get_or_insert_with(|| "the task ended while Jenkins could not be told of it".into());
        let ended = outcome::of_stopped(&gone, Some(&record.container), None)?;
        let mut notice = agents::notice(ended.kind, ours.name, ours.template, None, task, Some(&record), self.now());
        notice.failure = ended.failure;
        let webhook_url = record.webhook_url.filter(|_| ended.kind == NoticeType::Failed);
        Some(Fallback { notice: Box::new(notice), webhook_url })
    }
}

/// Whether StopTask says that there is no such task (any more): `InvalidParameterException` with these words.
pub fn is_gone(fault: &ApiFault) -> bool {
    let message = fault.message.to_ascii_lowercase();
    fault.class() == Class::Permanent && message.contains("task") && message.contains("not found")
}
