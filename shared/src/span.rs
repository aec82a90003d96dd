//! The fields of every line that is logged about a record.
//!
//! A record is a message of a batch, an event or an item of the sweep. Its span is opened where work on it begins,
//! with the ids that are known there; later ones are added as they become known.

use tracing::Span;

use crate::aws::ecs::Task;
use crate::message::{Build, Notice, Record, RequestId};
use crate::name::AgentName;

/// The ids of a record's span, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids<'a> {
    /// The SQS id of the message that is processed.
    pub message: Option<&'a str>,
    pub request: Option<&'a RequestId>,
    pub build: Option<&'a Build>,
    pub agent: Option<&'a str>,
    pub task: Option<&'a str>,
}

impl<'a> From<&'a Record> for Ids<'a> {
    fn from(record: &'a Record) -> Self {
        Self { request: Some(&record.request_id), build: record.build.as_ref(), ..Self::default() }
    }
}

impl<'a> From<&'a Notice> for Ids<'a> {
    fn from(notice: &'a Notice) -> Self {
        Self {
            message: None,
            request: notice.request_id.as_ref(),
            build: notice.build.as_ref(),
            agent: notice.agent.as_ref().map(|agent| agent.name.as_str()),
            task: notice.task.as_ref().map(|task| task.arn.as_str()),
        }
    }
}

impl<'a> Ids<'a> {
    pub fn of_agent(name: &'a AgentName) -> Self {
        Self { agent: Some(name.as_str()), ..Self::default() }
    }

    /// The ids of an agent's task, with the record of its request.
    pub fn of_task(name: &'a AgentName, task: &'a Task, record: Option<&'a Record>) -> Self {
        let known = record.map(Self::from).unwrap_or_default();
        Self { agent: Some(name.as_str()), task: Some(&task.arn), ..known }
    }

    /// Opens the span of a record. It exists at every log level: errors need the ids, too.
    pub fn span(self) -> Span {
        tracing::error_span!(
            "record",
            message.id = self.message,
            request.id = self.request(),
            build.job = self.job(),
            build.number = self.number(),
            agent.name = self.agent,
            task.arn = self.task,
        )
    }

    /// Adds them to the current record's span.
    pub fn record(self) {
        let span = Span::current();
        tracing::record_all!(
            span,
            message.id = self.message,
            request.id = self.request(),
            build.job = self.job(),
            build.number = self.number(),
            agent.name = self.agent,
            task.arn = self.task,
        );
    }

    fn request(&self) -> Option<&str> {
        self.request.map(RequestId::as_str)
    }

    fn job(&self) -> Option<&str> {
        self.build?.job.as_deref()
    }

    fn number(&self) -> Option<u64> {
        self.build?.number
    }
}

/// The span around all records of an invocation.
pub fn invocation(request_id: &str) -> Span {
    tracing::error_span!("invocation", aws.request_id = request_id)
}
