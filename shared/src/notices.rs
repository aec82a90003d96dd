//! Notices on their way: to the request's webhook, to the configured one, to the event bus, or to the queue of those
//! that could not be delivered yet.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::aws::{ApiFault, Class, bus, queues};
use crate::jenkins::Posted;
use crate::message::Notice;
use crate::name::AgentName;

/// Something that Jenkins could not take yet, as it lies in the undelivered queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undelivered {
    /// When it was first tried.
    pub since: Timestamp,
    /// What is to be done.
    #[serde(flatten)]
    pub work: Work,
}

/// What is to be done once Jenkins is back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Look at the task again and report what it is then.
    Task {
        /// Its cluster's ARN.
        cluster: String,
        /// Its ARN.
        arn: String,
        /// Its agent's name.
        name: AgentName,
        /// What is to be told if ECS has forgotten the task by then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        otherwise: Option<Fallback>,
    },
    /// Deliver this notice, whatever has happened since.
    Notice {
        /// The notice.
        notice: Box<Notice>,
        /// Who has not got it yet.
        to: Vec<Target>,
    },
    /// Delete a node.
    Node {
        /// Its name.
        name: String,
    },
}

/// A failure that is told if nothing better is known any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// The notice.
    pub notice: Box<Notice>,
    /// The request's own webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
}

/// Who gets a notice.
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

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// It arrived.
    Yes,
    /// Nobody wants the agent.
    Unwanted,
    /// It never will arrive; it lies in the rejected queue.
    Rejected,
    /// It has to be tried again.
    Later(String),
    /// The same, and somebody has to mend a setting.
    Refused(String),
}

impl Delivered {
    /// Why it has to be tried again, if so.
    pub fn again(self) -> Option<String> {
        match self {
            Self::Later(reason) | Self::Refused(reason) => Some(reason),
            Self::Yes | Self::Unwanted | Self::Rejected => None,
        }
    }
}

impl App {
    /// Everybody who gets every notice.
    pub fn listeners(&self) -> Vec<Target> {
        let configured = self.config().jenkins.webhook.url.as_ref().map(|_| Target::Configured);
        let bus = self.config().event_bus.as_ref().map(|_| Target::Bus);
        configured.into_iter().chain(bus).collect()
    }

    /// Tells one target. A notice that can never arrive is put into the rejected queue.
    ///
    /// # Errors
    /// When the rejected queue could not take it.
    pub async fn tell(&self, notice: &Notice, target: &Target) -> Result<Delivered, ApiFault> {
        let body = serde_json::to_string(notice).unwrap_or_default();
        let posted = match target {
            Target::Request(url) => self.jenkins.post(url, &notice.id, Bytes::from(body.clone()), self.now()).await,
            Target::Configured => match &self.config().jenkins.webhook.url {
                Some(url) => self.jenkins.post(url.as_str(), &notice.id, Bytes::from(body.clone()), self.now()).await,
                None => Posted::Delivered,
            },
            Target::Bus => match &self.config().event_bus {
                Some(name) => match bus::put(&self.events, name, notice.kind.as_str(), &body).await {
                    Ok(()) => Posted::Delivered,
                    Err(fault) if fault.class() == Class::Permanent => {
                        tracing::error!(error = %fault, "the event bus refuses notices: mend eventBus or the function's role");
                        Posted::Rejected(fault.to_string())
                    }
                    Err(fault) => Posted::Later(fault.to_string()),
                },
                None => Posted::Delivered,
            },
        };
        Ok(match posted {
            Posted::Delivered => {
                tracing::info!(
                    notice.r#type = notice.kind.as_str(),
                    notice.id = notice.id,
                    request.id = notice.request_id.as_ref().map(|id| id.as_str()),
                    agent.name = notice.agent.as_ref().map(|agent| agent.name.as_str()),
                    "notice delivered"
                );
                Delivered::Yes
            }
            Posted::Unwanted if matches!(target, Target::Request(_)) => Delivered::Unwanted,
            // Only the request's own webhook speaks for its build.
            Posted::Unwanted => {
                let reason = "jenkins.webhook.url leads to nothing in Jenkins: mend it";
                tracing::error!(notice.id = notice.id, error = reason, "notice rejected");
                self.reject(&body, reason).await?;
                Delivered::Rejected
            }
            Posted::Later(reason) => {
                tracing::warn!(notice.id = notice.id, error = reason, "notice not delivered yet");
                Delivered::Later(reason)
            }
            Posted::Refused(reason) => Delivered::Refused(reason),
            Posted::Rejected(reason) => {
                self.reject(&body, &reason).await?;
                Delivered::Rejected
            }
        })
    }

    /// Tells everybody; what cannot be delivered now goes to the undelivered queue.
    ///
    /// # Errors
    /// When a queue could not take what has to be kept.
    pub async fn tell_all(&self, notice: &Notice, targets: Vec<Target>) -> Result<(), ApiFault> {
        // All at once: one that does not answer costs the others nothing.
        let told = join_all(targets.iter().map(|target| self.tell(notice, target))).await;
        let mut later = Vec::new();
        for (target, told) in targets.into_iter().zip(told) {
            if told?.again().is_some() {
                later.push(target);
            }
        }
        if !later.is_empty() {
            let work = Work::Notice { notice: Box::new(notice.clone()), to: later };
            self.keep(&Undelivered { since: self.now(), work }).await?;
        }
        Ok(())
    }

    /// Keeps something for when Jenkins is back.
    ///
    /// # Errors
    /// When the undelivered queue could not take it.
    pub async fn keep(&self, undelivered: &Undelivered) -> Result<(), ApiFault> {
        let body = serde_json::to_string(undelivered).unwrap_or_default();
        queues::send(&self.sqs, &self.settings.queues.undelivered, &body, &[], FIRST_RETRY).await
    }

    /// Puts a message that can never work into the rejected queue, as it is, with the reason.
    ///
    /// # Errors
    /// When the rejected queue could not take it.
    pub async fn reject(&self, body: &str, reason: &str) -> Result<(), ApiFault> {
        let reason: String = attribute_text(reason).chars().take(1000).collect();
        // SQS takes no empty message (API_SendMessage).
        let body = if body.is_empty() { "(empty)" } else { body };
        queues::send(&self.sqs, &self.settings.queues.rejected, body, &[("reason", &reason)], Duration::ZERO).await
    }
}

/// Jenkins is given a moment before the first retry.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// SQS takes only the characters that XML has in an attribute, and no empty one (API_SendMessage).
fn attribute_text(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| match c {
            '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'.. => c,
            _ => '\u{FFFD}',
        })
        .collect();
    if text.is_empty() { "no reason was given".into() } else { text }
}
