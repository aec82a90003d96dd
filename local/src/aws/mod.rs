//! AWS on one machine, without a network, a clock or a thread: requests go in, answers and events come out.
//!
//! [`Aws`] distinguishes the services as their endpoints do, keeps a journal of every call, and injects faults.

mod access;
pub mod ecs;
mod faults;
mod services;
mod sqs;
mod types;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::Value;

pub use access::Access;
use access::Scene;
pub use ecs::Ecs;
pub use faults::{Fault, Faults};
pub use services::{Bus, Parameters};
pub use sqs::{Counts, Message, Queue, Sqs};
use wire::Asked;
pub use wire::escape;

/// An error, as the services answer it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// `ThrottlingException`.
    pub code: String,
    /// Human-readable.
    pub message: String,
    /// Additional members of the JSON answer.
    pub extra: Value,
}

impl ApiError {
    /// A client error, 400.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { status: 400, code: code.into(), message: message.into(), extra: Value::Null }
    }
}

/// One call in the journal.
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
    /// The account of its credentials.
    pub account: String,
    /// Who called: the access key of its signature; empty if it was not signed.
    pub access_key: String,
    /// The accesses that it requires, with the resources as they were before the call.
    pub accesses: Vec<Access>,
    /// When.
    pub at: Timestamp,
    /// The answer, if it is JSON and no error.
    pub output: Value,
    /// The error code of the answer, if it was an error.
    pub error: Option<String>,
    /// Whether the answer was lost.
    pub lost: bool,
}

/// Decides whether an access key may make a call.
pub type Guard = Box<dyn FnMut(&str, &[Access]) -> Result<(), String> + Send>;

/// An answer, and its fate on the way.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub response: Response<Bytes>,
    /// How long it takes.
    pub delay: Duration,
    /// Whether it is lost: the call took effect, but the caller gets no answer.
    pub lost: bool,
}

/// AWS as one account sees it.
pub struct Aws {
    /// ECS, Auto Scaling and EC2 of the home region and account.
    pub ecs: Ecs,
    /// The same for other regions and accounts, by both. A call that is signed for an unknown region goes to the home
    /// region.
    pub elsewhere: BTreeMap<(String, String), Ecs>,
    /// SQS.
    pub sqs: Sqs,
    /// SSM parameters.
    pub parameters: Parameters,
    /// EventBridge, as a list of the entries.
    pub bus: Bus,
    /// The faults of calls.
    pub faults: Faults,
    /// IAM: returns why an access key may not make a call. Without it, everything is allowed.
    pub guard: Option<Guard>,
    /// Every call.
    pub journal: Vec<Call>,
    region: String,
    account: String,
}

impl Aws {
    /// An empty account in one region. `endpoint` is its address, for the queues' URLs.
    pub fn new(region: &str, account: &str, endpoint: &str) -> Self {
        Self {
            ecs: Ecs::new(region, account),
            elsewhere: BTreeMap::new(),
            sqs: Sqs::new(region, account, endpoint),
            parameters: Parameters::default(),
            bus: Bus::default(),
            faults: Faults::default(),
            guard: None,
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
        let ecs = self.elsewhere.get(&(region.clone(), account.clone())).unwrap_or(&self.ecs);
        let scene = Scene { ecs, region: &region, account: &account, key: self.parameters.key.as_deref() };
        let accesses = scene.accesses(&asked);
        let fault = self.faults.next(asked.service, &asked.action);
        let guarded = self.guard.as_mut().map_or(Ok(()), |guard| guard(asked.access_key(), &accesses));
        let result = match (&fault, guarded) {
            (_, Err(message)) => Err(access::denied(asked.service, message)),
            (Some(Fault::Error(error)), _) => Err(error.clone()),
            _ => self.call(&asked, &region, &account, now),
        };
        let lost = matches!(fault, Some(Fault::Lost));
        self.journal.push(Call {
            service: asked.service,
            action: asked.action.clone(),
            input: asked.input.clone(),
            region,
            account,
            access_key: asked.access_key().to_owned(),
            accesses,
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
        if asked.speaks_json() {
            types::check(input)?;
        }
        match *service {
            "ecs" => ecs.call(action, input, now).map(text),
            "autoscaling" => ecs.autoscaling(action, &asked.form(), now),
            "ec2" => ecs.ec2(action, &asked.form(), now),
            "sqs" => self.sqs.call(action, input, now).map(text),
            "ssm" => self.parameters.call(action, input).map(text),
            "events" => self.bus.call(action, input).map(text),
            "sts" => services::sts(action, &asked.form(), account, asked.access_key()),
            _ => Err(ApiError::new("UnknownOperationException", format!("{service}:{action} is not simulated"))),
        }
    }

    /// Processes everything that is due, in every region, and returns its events.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Value> {
        std::iter::once(&mut self.ecs)
            .chain(self.elsewhere.values_mut())
            .flat_map(|ecs| {
                ecs.advance(now);
                ecs.take_events()
            })
            .collect()
    }

    /// When something next happens, in any region.
    pub fn next_due(&self) -> Option<Timestamp> {
        std::iter::once(&self.ecs).chain(self.elsewhere.values()).filter_map(Ecs::next_due).min()
    }

    /// The calls of a service's action.
    pub fn calls(&self, service: &str, action: &str) -> Vec<&Call> {
        self.journal.iter().filter(|call| call.service == service && call.action == action).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn aws() -> Aws {
        Aws::new("eu-west-1", "123456789012", "http://localhost")
    }

    fn json_call(aws: &mut Aws, target: &str, input: &Value) -> (u16, Value, Response<Bytes>) {
        let request = Request::post("/").header("x-amz-target", target).body(Bytes::from(input.to_string())).unwrap();
        let response = aws.handle(request, Timestamp::UNIX_EPOCH).response;
        (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap_or_default(), response)
    }

    fn form_call(aws: &mut Aws, form: &str, key: &str, region: &str) -> Answer {
        let credential =
            format!("AWS4-HMAC-SHA256 Credential={key}/20261124/{region}/sts/aws4_request, SignedHeaders=host");
        let request =
            Request::post("/").header("authorization", credential).body(Bytes::from(form.to_owned())).unwrap();
        aws.handle(request, Timestamp::UNIX_EPOCH)
    }

    fn text(answer: &Answer) -> String {
        String::from_utf8_lossy(answer.response.body()).into_owned()
    }

    #[test]
    fn each_protocol_has_its_errors() {
        let mut aws = aws();
        let (status, body, _) =
            json_call(&mut aws, "AmazonEC2ContainerServiceV20141113.ListTasks", &json!({"cluster": "gone"}));
        assert_eq!((status, &body["__type"]), (400, &json!("ClusterNotFoundException")));
        let (status, _, response) =
            json_call(&mut aws, "AmazonSQS.SendMessage", &json!({"QueueUrl": "http://localhost/1/gone"}));
        assert_eq!(status, 400);
        assert_eq!(response.headers()["x-amzn-query-error"], "AWS.SimpleQueueService.NonExistentQueue;Sender");
        let answer = form_call(&mut aws, "Version=2011-06-15&Action=Nothing", "AKIA", "eu-west-1");
        assert!(text(&answer).starts_with("<ErrorResponse>"));
        let answer = form_call(&mut aws, "Version=2016-11-15&Action=Nothing", "AKIA", "eu-west-1");
        assert!(text(&answer).starts_with("<Response><Errors>"));
        assert!(aws.journal.iter().all(|call| call.error.is_some()));
    }

    #[test]
    fn refuses_malformed_json() {
        let mut aws = aws();
        for target in ["AmazonEC2ContainerServiceV20141113.ListTasks", "AmazonSQS.ListQueues", "AmazonSSM.GetParameter"]
        {
            let request =
                Request::post("/").header("x-amz-target", target).body(Bytes::from_static(b"{\"a\":")).unwrap();
            let response = aws.handle(request, Timestamp::UNIX_EPOCH).response;
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!((response.status().as_u16(), &body["__type"]), (400, &json!("SerializationException")));
        }
    }

    #[test]
    fn an_assumed_role_speaks_for_its_account_and_region() {
        let mut aws = aws();
        aws.elsewhere("us-east-1", "999999999999").create_cluster("far");
        let assume =
            "Version=2011-06-15&Action=AssumeRole&RoleArn=arn:aws:iam::999999999999:role/agents&RoleSessionName=s";
        let answer = text(&form_call(&mut aws, assume, "AKIA", "eu-west-1"));
        let key = answer.split("<AccessKeyId>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        let who = form_call(&mut aws, "Version=2011-06-15&Action=GetCallerIdentity", &key, "us-east-1");
        assert!(text(&who).contains("<Account>999999999999</Account>"));
        let last = aws.journal.last().unwrap();
        assert_eq!((last.region.as_str(), last.account.as_str()), ("us-east-1", "999999999999"));
    }

    #[test]
    fn a_lost_answer_takes_effect_and_a_refusal_does_not() {
        let mut aws = aws();
        let url = aws.sqs.create("queue", 30, None);
        let send = json!({"QueueUrl": url, "MessageBody": "x"});
        aws.faults.script("sqs", "SendMessage", [Some(Fault::Lost), Some(Fault::server()), None]);
        let request = || {
            Request::post("/")
                .header("x-amz-target", "AmazonSQS.SendMessage")
                .body(Bytes::from(send.to_string()))
                .unwrap()
        };
        assert!(aws.handle(request(), Timestamp::UNIX_EPOCH).lost);
        assert_eq!(aws.sqs.messages("queue").len(), 1);
        assert_eq!(aws.handle(request(), Timestamp::UNIX_EPOCH).response.status(), 500);
        assert_eq!(aws.sqs.messages("queue").len(), 1);
        assert_eq!(aws.handle(request(), Timestamp::UNIX_EPOCH).response.status(), 200);
        assert_eq!(aws.sqs.messages("queue").len(), 2);
        assert_eq!(aws.calls("sqs", "SendMessage").len(), 3);
    }

    #[test]
    fn one_seed_gives_one_sequence_of_faults() {
        let row = |seed: u64| {
            let mut aws = aws();
            aws.faults.by_chance(seed, 0.5);
            let ask = json!({"Name": "/x"});
            (0..50)
                .map(|_| json_call(&mut aws, "AmazonSSM.GetParameter", &ask).1["__type"].to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
    }

    #[test]
    fn parameters_come_in_pages_and_decrypted_only_on_demand() {
        let mut aws = aws();
        for number in 0..12 {
            aws.parameters.values.insert(format!("/a/{number:02}"), number.to_string());
        }
        aws.parameters.values.insert("/a/deep/er".into(), "x".into());
        aws.parameters.values.insert("/ab".into(), "x".into());
        let by_path = "AmazonSSM.GetParametersByPath";
        let (_, first, _) = json_call(&mut aws, by_path, &json!({"Path": "/a/", "WithDecryption": true}));
        assert_eq!(first["Parameters"].as_array().unwrap().len(), 10);
        let (_, second, _) = json_call(&mut aws, by_path, &json!({"Path": "/a/", "NextToken": first["NextToken"]}));
        assert_eq!(second["Parameters"].as_array().unwrap().len(), 2);
        let (_, garbage, _) = json_call(&mut aws, by_path, &json!({"Path": "/a/", "NextToken": "garbage"}));
        assert_eq!(garbage["__type"], "InvalidNextToken");
        assert!(second["NextToken"].is_null());
        assert!(second["Parameters"][0]["Value"].as_str().unwrap().starts_with("AQIC"), "not decrypted");
        let (_, some, _) =
            json_call(&mut aws, "AmazonSSM.GetParameters", &json!({"Names": ["/ab", "/no"], "WithDecryption": true}));
        assert_eq!((&some["Parameters"][0]["Value"], &some["InvalidParameters"]), (&json!("x"), &json!(["/no"])));
    }
}
