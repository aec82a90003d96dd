//! Delivers notices: to the request's webhook, to the configured one, to the event bus, or to the queue of those that
//! could not be delivered yet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::aws::bus::Bus;
use crate::aws::queues::Queues;
use crate::clock::Clock;
use crate::fault::Fault;
use crate::jenkins::{Jenkins, Receipt};
use crate::log_fault;
use crate::message::Notice;
use crate::metrics;
use crate::name::AgentName;

/// Work that Jenkins could not take yet, as it is stored in the undelivered queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undelivered {
    /// When it was first tried.
    pub since: Timestamp,
    /// What to do.
    #[serde(flatten)]
    pub work: Work,
}

/// What to do once Jenkins is back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Look at the task again and report its state then.
    Task {
        cluster: String,
        arn: String,
        name: AgentName,
        /// What to report if ECS has forgotten the task by then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        otherwise: Option<Fallback>,
    },
    /// Record on the task what was reported, without notifying anybody again.
    Record {
        cluster: String,
        arn: String,
        name: AgentName,
        /// The tag's value.
        value: String,
    },
    /// Deliver this notice, whatever has happened since.
    Notice {
        notice: Box<Notice>,
        /// Who has not received it yet.
        to: Vec<Target>,
    },
    /// Delete a node.
    Node { name: String },
}

impl Work {
    /// What it is, for the log.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Task { .. } => "report of a task",
            Self::Record { .. } => "record of a report",
            Self::Notice { .. } => "notice",
            Self::Node { .. } => "deletion of a node",
        }
    }
}

/// A failure that is reported if nothing better is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    pub notice: Box<Notice>,
    /// The request's own webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
}

/// A recipient of notices.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// The request's own webhook.
    Request(String),
    /// The configured webhook.
    Configured,
    /// The event bus.
    Bus,
}

/// The result of a delivery that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    Delivered,
    /// The request's own webhook says that the agent is no longer wanted.
    Unwanted,
    /// The notice can never be delivered; it is in the rejected queue.
    Rejected,
}

/// Delivers notices.
pub struct Notifier {
    pub(crate) jenkins: Arc<Jenkins>,
    /// The configured webhook.
    pub(crate) webhook: Option<Url>,
    pub(crate) bus: Option<Bus>,
    pub(crate) queues: Queues,
    pub(crate) clock: Clock,
}

/// The delay before the first retry, in which Jenkins may recover.
const FIRST_RETRY: Duration = Duration::from_secs(5);

impl Target {
    fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "request",
            Self::Configured => "configured",
            Self::Bus => "bus",
        }
    }
}

/// Logs why a notice is kept.
pub fn log_not_delivered(notice: &Notice, fault: &Fault) {
    log_fault!(fault, notice.r#type = notice.kind.as_str(), notice.id = notice.id, "notice not delivered yet");
}

impl Notifier {
    /// The recipients of every notice.
    pub fn listeners(&self) -> Vec<Target> {
        let configured = self.webhook.as_ref().map(|_| Target::Configured);
        let bus = self.bus.as_ref().map(|_| Target::Bus);
        configured.into_iter().chain(bus).collect()
    }

    /// The request's own webhook, if it has one, and the recipients of every notice.
    pub fn everybody(&self, webhook_url: Option<&str>) -> Vec<Target> {
        webhook_url.map(|url| Target::Request(url.to_owned())).into_iter().chain(self.listeners()).collect()
    }

    /// Notifies one target. A notice that can never be delivered is moved to the rejected queue.
    ///
    /// # Errors
    /// When the notice has to be sent again, or the rejected queue did not accept it.
    pub async fn notify(&self, notice: &Notice, target: &Target) -> Result<Delivery, Fault> {
        let body = serde_json::to_string(notice).unwrap_or_default();
        let sent = self.send(notice, target, &body).await;
        let rejection = match sent {
            Ok(Receipt::Delivered) => {
                tracing::info!(
                    notice.r#type = notice.kind.as_str(),
                    notice.id = notice.id,
                    notice.to = target.name(),
                    code = notice.failure.as_ref().map(|failure| failure.code.as_str()),
                    "notice delivered"
                );
                return Ok(Delivery::Delivered);
            }
            Ok(Receipt::Unwanted) if matches!(target, Target::Request(_)) => return Ok(Delivery::Unwanted),
            // Only the request's own webhook speaks for its build.
            Ok(Receipt::Unwanted) => "jenkins.webhook.url leads to nothing in Jenkins: correct it".to_owned(),
            Err(fault) if fault.is_final() => fault.to_string(),
            Err(fault) => {
                metrics::NOTICES_UNDELIVERED.increment();
                return Err(fault);
            }
        };
        self.queues.reject(&body, &rejection).await?;
        tracing::error!(
            notice.r#type = notice.kind.as_str(),
            notice.id = notice.id,
            notice.to = target.name(),
            error = rejection,
            "notice rejected"
        );
        Ok(Delivery::Rejected)
    }

    async fn send(&self, notice: &Notice, target: &Target, body: &str) -> Result<Receipt, Fault> {
        let post = |url| {
            let body = Bytes::copy_from_slice(body.as_bytes());
            self.jenkins.post(url, &notice.id, body, self.clock.now())
        };
        match (target, &self.webhook, &self.bus) {
            (Target::Request(url), _, _) => post(url).await,
            (Target::Configured, Some(url), _) => post(url.as_str()).await,
            (Target::Bus, _, Some(bus)) => {
                let advice = "change eventBus or the function's role";
                let put = bus.put(notice.kind.as_str(), body).await;
                put.map(|()| Receipt::Delivered).map_err(|fault| fault.of(format!("the event bus, {advice}")))
            }
            // It was configured when the notice was kept, but is no longer.
            (Target::Configured | Target::Bus, _, _) => Ok(Receipt::Delivered),
        }
    }

    /// Notifies all targets; what cannot be delivered now is moved to the undelivered queue.
    ///
    /// # Errors
    /// When a queue did not accept what has to be kept.
    pub async fn notify_all(&self, notice: &Notice, targets: Vec<Target>) -> Result<(), Fault> {
        let (later, mut faults): (Vec<_>, Vec<_>) = self.notify_each(notice, targets).await.into_iter().unzip();
        if later.is_empty() {
            return Ok(());
        }
        // One outage may affect several targets.
        faults.dedup();
        for fault in &faults {
            log_not_delivered(notice, fault);
        }
        let work = Work::Notice { notice: Box::new(notice.clone()), to: later };
        self.keep(&Undelivered { since: self.clock.now(), work }).await
    }

    /// Notifies all targets at once: one that does not answer does not delay the others. Returns those that have to be
    /// notified again.
    pub async fn notify_each(&self, notice: &Notice, targets: Vec<Target>) -> Vec<(Target, Fault)> {
        let sent = join_all(targets.iter().map(|target| self.notify(notice, target))).await;
        targets.into_iter().zip(sent).filter_map(|(target, sent)| Some((target, sent.err()?))).collect()
    }

    /// Keeps work for when Jenkins is back.
    ///
    /// # Errors
    /// When the undelivered queue did not accept it.
    pub async fn keep(&self, undelivered: &Undelivered) -> Result<(), Fault> {
        self.keep_for(undelivered, FIRST_RETRY).await
    }

    /// Keeps work for at least this long.
    ///
    /// # Errors
    /// When the undelivered queue did not accept it.
    pub async fn keep_for(&self, undelivered: &Undelivered, delay: Duration) -> Result<(), Fault> {
        let body = serde_json::to_string(undelivered).unwrap_or_default();
        self.queues.send(&self.queues.urls.undelivered, &body, &[], delay).await
    }

    /// Deletes a node; if Jenkins cannot do that now, it is kept for later.
    ///
    /// # Errors
    /// When it could not be kept either.
    pub async fn delete_node(&self, name: &AgentName) -> Result<(), Fault> {
        if !self.jenkins.registers_nodes() {
            return Ok(());
        }
        match self.jenkins.delete_node(name.as_str()).await {
            Ok(_) => Ok(()),
            Err(fault) => {
                log_fault!(&fault, "node not deleted yet; kept in the undelivered queue");
                let work = Work::Node { name: name.to_string() };
                self.keep(&Undelivered { since: self.clock.now(), work }).await
            }
        }
    }
}
