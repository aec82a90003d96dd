//! The services' protocols: how a request names its call, and how an answer or an error is written.
//!
//! ECS, SSM and EventBridge use AWS JSON 1.1, SQS JSON 1.0; Auto Scaling, EC2 and STS the query protocol with XML
//! answers. The Rust SDK does the same (each crate's serializers).

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use super::ApiError;

/// A parsed request.
pub(super) struct Asked {
    /// `ecs`, `sqs`, `autoscaling`, …
    pub service: &'static str,
    /// `RunTask`.
    pub action: String,
    /// The input; query parameters as an object.
    pub input: Value,
    /// Whose region and access key signed it: the credential's scope in Signature Version 4.
    pub scope: Option<Scope>,
}

/// What a signature says about its author.
pub(super) struct Scope {
    pub access_key: String,
    pub region: String,
}

impl Asked {
    pub(super) fn read(request: &Request<Bytes>) -> Self {
        let scope = Scope::read(request.headers());
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
        if let Some(target) = target {
            let (prefix, action) = target.split_once('.').unwrap_or((target, ""));
            let service = match prefix {
                "AmazonEC2ContainerServiceV20141113" => "ecs",
                "AmazonSQS" => "sqs",
                "AmazonSSM" => "ssm",
                "AWSEvents" => "events",
                _ => "unknown",
            };
            let input = serde_json::from_slice(request.body()).unwrap_or_default();
            return Self { service, action: action.to_owned(), input, scope };
        }
        let mut form: BTreeMap<String, String> = url::form_urlencoded::parse(request.body()).into_owned().collect();
        let service = match form.remove("Version").as_deref() {
            Some("2011-01-01") => "autoscaling",
            Some("2016-11-15") => "ec2",
            Some("2011-06-15") => "sts",
            _ => "unknown",
        };
        let action = form.remove("Action").unwrap_or_default();
        Self { service, action, input: json!(form), scope }
    }

    /// The access key of the signature; empty if there is none.
    pub(super) fn access_key(&self) -> &str {
        self.scope.as_ref().map_or("", |scope| &scope.access_key)
    }

    pub(super) fn speaks_json(&self) -> bool {
        !matches!(self.service, "autoscaling" | "ec2" | "sts")
    }

    /// The input of a query call.
    pub(super) fn form(&self) -> BTreeMap<String, String> {
        serde_json::from_value(self.input.clone()).unwrap_or_default()
    }

    /// The answer as it goes out.
    pub(super) fn answer(&self, result: Result<String, ApiError>) -> Response<Bytes> {
        let kind = match self.service {
            "sqs" => "application/x-amz-json-1.0",
            _ if self.speaks_json() => "application/x-amz-json-1.1",
            _ => "text/xml",
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert("x-amzn-requestid", HeaderValue::from_static("00000000-0000-4000-8000-000000000000"));
        let (status, body) = match result {
            Ok(body) => (StatusCode::OK, body),
            Err(error) => {
                if self.service == "sqs"
                    && let Ok(code) = query_error(&error).parse()
                {
                    headers.insert("x-amzn-query-error", code);
                }
                let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
                (status, if self.speaks_json() { json_error(error) } else { self.xml_error(&error) })
            }
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// EC2's errors have a different form than those of the other query services.
    fn xml_error(&self, error: &ApiError) -> String {
        let (code, message) = (escape(&error.code), escape(&error.message));
        if self.service == "ec2" {
            format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
                 <RequestID>0</RequestID></Response>"
            )
        } else {
            let kind = if error.status < 500 { "Sender" } else { "Receiver" };
            format!(
                "<ErrorResponse><Error><Type>{kind}</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                 <RequestId>0</RequestId></ErrorResponse>"
            )
        }
    }
}

impl Scope {
    /// `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/SERVICE/aws4_request, …`
    fn read(headers: &HeaderMap) -> Option<Self> {
        let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (_, credential) = authorization.split_once("Credential=")?;
        let mut parts = credential.split(',').next()?.split('/');
        Some(Self { access_key: parts.next()?.to_owned(), region: parts.nth(1)?.to_owned() })
    }
}

fn json_error(error: ApiError) -> String {
    let mut body = json!({"__type": error.code, "message": error.message});
    if let (Some(body), Value::Object(extra)) = (body.as_object_mut(), error.extra) {
        body.extend(extra);
    }
    body.to_string()
}

/// SQS once used the query protocol and still returns its error codes; the SDK takes them for the code.
fn query_error(error: &ApiError) -> String {
    let code = match error.code.as_str() {
        "QueueDoesNotExist" => "AWS.SimpleQueueService.NonExistentQueue",
        "MessageNotInflight" => "AWS.SimpleQueueService.MessageNotInflight",
        "EmptyBatchRequest" => "AWS.SimpleQueueService.EmptyBatchRequest",
        "TooManyEntriesInBatchRequest" => "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
        "BatchEntryIdsNotDistinct" => "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
        "UnsupportedOperation" => "AWS.SimpleQueueService.UnsupportedOperation",
        other => other,
    };
    format!("{code};{}", if error.status < 500 { "Sender" } else { "Receiver" })
}

/// Text, escaped for XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
