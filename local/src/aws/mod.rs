//! AWS on one machine, without a network, a clock or a thread: requests go in, answers and events come out.
//!
//! [`Aws`] tells the services apart as their endpoints do, keeps a journal of every call, and injects faults.

pub mod ecs;
mod faults;
mod services;
mod sqs;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

pub use ecs::Ecs;
pub use faults::{Fault, Faults};
pub use services::{Bus, Parameters};
pub use sqs::{Message, Queue, Sqs};

/// An error as the services answer it.
#[derive(Debug, Clone)]
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
    /// When.
    pub at: Timestamp,
    /// The error code of the answer, if it was an error.
    pub error: Option<String>,
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

/// A region of an account.
pub struct Aws {
    /// ECS, Auto Scaling and EC2.
    pub ecs: Ecs,
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
    account: String,
}

impl Aws {
    /// An empty region. `endpoint` is where it is reached, for the queues' URLs.
    pub fn new(region: &str, account: &str, endpoint: &str) -> Self {
        Self {
            ecs: Ecs::new(region, account),
            sqs: Sqs::new(region, account, endpoint),
            parameters: Parameters::default(),
            bus: Bus::default(),
            faults: Faults::default(),
            journal: Vec::new(),
            account: account.to_owned(),
        }
    }

    /// Answers one request.
    pub fn handle(&mut self, request: Request<Bytes>, now: Timestamp) -> Answer {
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).map(str::to_owned);
        let (service, action, input, is_json) = match target {
            Some(target) => {
                let (prefix, action) = target.split_once('.').unwrap_or((&target, ""));
                let service = match prefix {
                    "AmazonEC2ContainerServiceV20141113" => "ecs",
                    "AmazonSQS" => "sqs",
                    "AmazonSSM" => "ssm",
                    "AWSEvents" => "events",
                    _ => "unknown",
                };
                let input = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
                (service, action.to_owned(), input, true)
            }
            None => {
                let form = form(request.body());
                let service = match form.get("Version").map(String::as_str) {
                    Some("2011-01-01") => "autoscaling",
                    Some("2016-11-15") => "ec2",
                    Some("2011-06-15") => "sts",
                    _ => "unknown",
                };
                let action = form.get("Action").cloned().unwrap_or_default();
                (service, action, json!(form), false)
            }
        };
        let fault = self.faults.next(service, &action);
        let result = match &fault {
            Some(Fault::Error(error)) => Err(error.clone()),
            _ => self.call(service, &action, &input, now),
        };
        self.journal.push(Call {
            service,
            action: action.clone(),
            input,
            at: now,
            error: result.as_ref().err().map(|error| error.code.clone()),
        });
        let response = match result {
            Ok(body) => reply(StatusCode::OK, is_json, body),
            Err(error) if is_json => {
                let mut body = json!({"__type": error.code, "message": error.message});
                if let (Some(body), Value::Object(extra)) = (body.as_object_mut(), error.extra) {
                    body.extend(extra);
                }
                reply(status(error.status), true, body.to_string())
            }
            Err(error) => reply(status(error.status), false, xml_error(service, &error)),
        };
        let delay = match &fault {
            Some(Fault::Slow(delay)) => *delay,
            _ => Duration::ZERO,
        };
        Answer { response, delay, lost: matches!(fault, Some(Fault::Lost)) }
    }

    fn call(&mut self, service: &str, action: &str, input: &Value, now: Timestamp) -> Result<String, ApiError> {
        let form = || -> BTreeMap<String, String> { serde_json::from_value(input.clone()).unwrap_or_default() };
        match service {
            "ecs" => self.ecs.call(action, input, now).map(|value| value.to_string()),
            "autoscaling" => self.ecs.autoscaling(action, &form(), now),
            "ec2" => self.ecs.ec2(action, &form(), now),
            "sqs" => self.sqs.call(action, input, now).map(|value| value.to_string()),
            "ssm" => self.parameters.call(action, input).map(|value| value.to_string()),
            "events" => self.bus.call(action, input).map(|value| value.to_string()),
            "sts" => services::sts(action, &form(), &self.account),
            _ => Err(ApiError::new("UnknownOperationException", format!("{service} {action} is not simulated"))),
        }
    }

    /// The calls of a service's action.
    pub fn calls(&self, service: &str, action: &str) -> Vec<&Call> {
        self.journal.iter().filter(|call| call.service == service && call.action == action).collect()
    }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST)
}

fn reply(status: StatusCode, is_json: bool, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let kind = if is_json { "application/x-amz-json-1.1" } else { "text/xml" };
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response.headers_mut().insert("x-amzn-requestid", http::HeaderValue::from_static("00000000-0000-0000-0000-000000000000"));
    response
}

/// EC2's errors have another shape than those of the other query services.
fn xml_error(service: &str, error: &ApiError) -> String {
    let (code, message) = (escape(&error.code), escape(&error.message));
    if service == "ec2" {
        format!("<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>0</RequestID></Response>")
    } else {
        format!("<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error><RequestId>0</RequestId></ErrorResponse>")
    }
}

/// Text as it may stand in XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn form(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}
