//! AWS on one machine, without a network, a clock or a thread: requests go in, answers and events come out.
//!
//! [`Aws`] tells the services apart as their endpoints do, keeps a journal of every call, and injects faults.

pub mod ecs;
mod faults;
mod services;
mod sqs;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::Value;

pub use ecs::Ecs;
pub use faults::{Fault, Faults};
pub use services::{Bus, Parameters};
pub use sqs::{Message, Queue, Sqs};
use wire::Asked;
pub use wire::escape;

/// An error as the services answer it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// `ThrottlingException`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Further members of the JSON answer.
    pub extra: Value,
}

impl ApiError {
    /// A client error, 400.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { status: 400, code: code.into(), message: message.into(), extra: Value::Null }
    }
}

/// One call, as the journal has it.
#[derive(Debug, Clone)]
pub struct Call {
    /// `ecs`, `sqs`, `autoscaling`, …
    pub service: &'static str,
    /// `RunTask`.
    pub action: String,
    /// The input; query parameters as an object.
    pub input: Value,
    /// The region that it was signed for.
    pub region: String,
    /// The account that its credentials are of.
    pub account: String,
    /// When.
    pub at: Timestamp,
    /// The answer, where it is JSON and no error.
    pub output: Value,
    /// The error code of the answer, if it was an error.
    pub error: Option<String>,
    /// Whether the answer got lost.
    pub lost: bool,
}

/// An answer and what is to become of it on its way.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub response: Response<Bytes>,
    /// How long it takes.
    pub delay: Duration,
    /// Whether it gets lost: what was asked has happened, and nobody hears of it.
    pub lost: bool,
}

/// AWS as one account sees it.
pub struct Aws {
    /// ECS, Auto Scaling and EC2 of the home region and account.
    pub ecs: Ecs,
    /// The same of other regions and accounts, by both. A call that is signed for a region which is not here goes to the
    /// home region.
    pub elsewhere: BTreeMap<(String, String), Ecs>,
    /// SQS.
    pub sqs: Sqs,
    /// SSM parameters.
    pub parameters: Parameters,
    /// EventBridge, as a list of what was put.
    pub bus: Bus,
    /// What goes wrong.
    pub faults: Faults,
    /// Every call.
    pub journal: Vec<Call>,
    region: String,
    account: String,
}

impl Aws {
    /// An empty account in one region. `endpoint` is where it is reached, for the queues' URLs.
    pub fn new(region: &str, account: &str, endpoint: &str) -> Self {
        Self {
            ecs: Ecs::new(region, account),
            elsewhere: BTreeMap::new(),
            sqs: Sqs::new(region, account, endpoint),
            parameters: Parameters::default(),
            bus: Bus::default(),
            faults: Faults::default(),
            journal: Vec::new(),
            region: region.to_owned(),
            account: account.to_owned(),
        }
    }

    /// ECS, Auto Scaling and EC2 of another region and account.
    pub fn elsewhere(&mut self, region: &str, account: &str) -> &mut Ecs {
        self.elsewhere.entry((region.into(), account.into())).or_insert_with(|| Ecs::new(region, account))
    }

    /// Answers one request.
    pub fn handle(&mut self, request: Request<Bytes>, now: Timestamp) -> Answer {
        let asked = Asked::read(&request);
        let (region, account) = match &asked.scope {
            Some(scope) => {
                (scope.region.clone(), services::account_of(&scope.access_key).unwrap_or(&self.account).to_owned())
            }
            None => (self.region.clone(), self.account.clone()),
        };
        let fault = self.faults.next(asked.service, &asked.action);
        let result = match &fault {
            Some(Fault::Error(error)) => Err(error.clone()),
            _ => self.call(&asked, &region, &account, now),
        };
        let lost = matches!(fault, Some(Fault::Lost));
        self.journal.push(Call {
            service: asked.service,
            action: asked.action.clone(),
            input: asked.input.clone(),
            region,
            account,
            at: now,
            output: result.as_deref().ok().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default(),
            error: result.as_ref().err().map(|error| error.code.clone()),
            lost,
        });
        let delay = match fault {
            Some(Fault::Slow(delay)) => delay,
            _ => Duration::ZERO,
        };
        Answer { response: asked.answer(result), delay, lost }
    }

    fn call(&mut self, asked: &Asked, region: &str, account: &str, now: Timestamp) -> Result<String, ApiError> {
        let Asked { service, action, input, .. } = asked;
        let ecs = self.elsewhere.get_mut(&(region.to_owned(), account.to_owned())).unwrap_or(&mut self.ecs);
        let text = |value: Value| value.to_string();
        match *service {
            "ecs" => ecs.call(action, input, now).map(text),
            "autoscaling" => ecs.autoscaling(action, &asked.form(), now),
            "ec2" => ecs.ec2(action, &asked.form(), now),
            "sqs" => self.sqs.call(action, input, now).map(text),
            "ssm" => self.parameters.call(action, input).map(text),
            "events" => self.bus.call(action, input).map(text),
            "sts" => services::sts(action, &asked.form(), account),
            _ => Err(ApiError::new("UnknownOperationException", format!("{service}:{action} is not simulated"))),
        }
    }

    /// Lets everything due by now happen, in every region, and answers the events of it.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Value> {
        std::iter::once(&mut self.ecs)
            .chain(self.elsewhere.values_mut())
            .flat_map(|ecs| {
                ecs.advance(now);
                ecs.take_events()
            })
            .collect()
    }

    /// When something happens next, in any region.
    pub fn next_due(&self) -> Option<Timestamp> {
        std::iter::once(&self.ecs).chain(self.elsewhere.values()).filter_map(Ecs::next_due).min()
    }

    /// The calls of a service's action.
    pub fn calls(&self, service: &str, action: &str) -> Vec<&Call> {
        self.journal.iter().filter(|call| call.service == service && call.action == action).collect()
    }
}
