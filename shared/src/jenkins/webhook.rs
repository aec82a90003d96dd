//! Notices to Jenkins by webhook, signed as the Standard Webhooks specification has it.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use sha2::Sha256;

use super::Jenkins;
use crate::secret::{Secrets, SigningKey};

/// A bound on one notice: a controller under load takes seconds to start a pipeline's next step.
const TIMEOUT: Duration = Duration::from_secs(8);

/// What came of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// It arrived.
    Delivered,
    /// Nobody waits for it.
    Unwanted,
    /// Jenkins could not take it now.
    Later(String),
    /// It never will.
    Rejected(String),
}

impl Jenkins {
    /// Posts a notice to a URL on Jenkins' origin; any other is never called.
    pub async fn post(&self, url: &str, id: &str, body: Bytes, now: Timestamp) -> Posted {
        let url = match self.origin.allows(url) {
            Ok(url) => url,
            Err(reason) => return Posted::Rejected(format!("the webhook's URL: {reason}")),
        };
        let first = self.post_once(url.as_str(), id, &body, now).await;
        let status = match first {
            Err(posted) => return posted,
            Ok(answer) if !is_refusal(answer.status()) => return judge(&answer),
            Ok(answer) => answer.status(),
        };
        // The secrets may have been renewed since they were read: they are read again, once.
        if let Err(errors) = self.secrets.refresh().await {
            return Posted::Later(format!("the secrets could not be read again: {}", errors.join("; ")));
        }
        match self.post_once(url.as_str(), id, &body, now).await {
            Err(posted) => posted,
            Ok(answer) if !is_refusal(answer.status()) => judge(&answer),
            Ok(_) => {
                let fault = format!("the webhook answered {status}: mend jenkins.webhook.authorization");
                tracing::error!(notice.id = id, "{fault}");
                Posted::Later(fault)
            }
        }
    }

    async fn post_once(
        &self,
        url: &str,
        id: &str,
        body: &Bytes,
        now: Timestamp,
    ) -> Result<http::Response<Bytes>, Posted> {
        let request = request(url, id, body, now, &self.secrets.current()).map_err(Posted::Rejected)?;
        self.http.send(request, TIMEOUT).await.map_err(|error| Posted::Later(error.to_string()))
    }
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

fn request(
    url: &str,
    id: &str,
    body: &Bytes,
    now: Timestamp,
    secrets: &Secrets,
) -> Result<http::Request<Bytes>, String> {
    let mut request = http::Request::post(url).header(header::CONTENT_TYPE, "application/json");
    if let Some(authorization) = &secrets.webhook_authorization {
        let mut value = HeaderValue::from_str(authorization.expose())
            .map_err(|_| "jenkins.webhook.authorization cannot be a header: it holds a control character".to_owned())?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    if let Some(key) = &secrets.webhook_signing_key {
        request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", now.as_second().to_string())
            .header("webhook-signature", signature(key, id, now.as_second(), body));
    }
    request.body(body.clone()).map_err(|error| error.to_string())
}

/// `v1,` and the base64 of HMAC-SHA-256 over `id.timestamp.body` (Standard Webhooks, "Signature scheme").
fn signature(key: &SigningKey, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut mac = <Hmac<Sha256>>::new_from_slice(key.expose()).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes()))
}

/// What an answer that is no refusal means.
fn judge(answer: &http::Response<Bytes>) -> Posted {
    let status = answer.status();
    match status.as_u16() {
        200 | 201 | 202 | 204 => Posted::Delivered,
        410 => Posted::Unwanted,
        404 if answer.headers().contains_key("x-jenkins") => Posted::Unwanted,
        429 | 500..=599 => Posted::Later(format!("the webhook answered {status}")),
        300..=399 => {
            let fault = format!("the webhook answered {status}, and redirects are never followed: mend jenkins.url or the webhook's URL");
            tracing::error!("{fault}");
            Posted::Rejected(fault)
        }
        _ => {
            let fault = format!("the webhook answered {status}: mend jenkins.url or the webhook's URL");
            tracing::error!("{fault}");
            Posted::Rejected(fault)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scripted};
    use super::*;
    use crate::secret::Secret;

    const URL: &str = "https://ci.example.com/jenkins/webhook-step/6f0c";

    async fn posted(answers: Vec<http::Response<&'static str>>) -> Posted {
        scripted(answers).jenkins.post(URL, "msg_1", Bytes::from("{}"), Timestamp::UNIX_EPOCH).await
    }

    #[tokio::test]
    async fn answers_mean_what_the_contract_says() {
        for status in [200, 201, 202, 204] {
            assert_eq!(posted(vec![answer(status, "")]).await, Posted::Delivered);
        }
        assert_eq!(posted(vec![answer(410, "")]).await, Posted::Unwanted);
        assert_eq!(posted(vec![answer(404, "")]).await, Posted::Unwanted);
        let proxy = http::Response::builder().status(404).body("").expect("a response");
        assert!(matches!(posted(vec![proxy]).await, Posted::Rejected(_)));
        for status in [429, 500, 502, 503] {
            assert!(matches!(posted(vec![answer(status, "")]).await, Posted::Later(_)), "{status}");
        }
        for status in [301, 302, 307, 400, 405, 413] {
            assert!(matches!(posted(vec![answer(status, "")]).await, Posted::Rejected(_)), "{status}");
        }
        for status in [401, 403] {
            let refused = posted(vec![answer(status, ""), answer(status, "")]).await;
            assert!(matches!(&refused, Posted::Later(text) if text.contains("jenkins.webhook.authorization")), "{refused:?}");
            assert_eq!(posted(vec![answer(status, ""), answer(202, "")]).await, Posted::Delivered);
        }
        assert!(matches!(posted(vec![]).await, Posted::Later(_)));
    }

    #[tokio::test]
    async fn another_origin_is_never_called() {
        let scripted = scripted(vec![]);
        let posted = scripted.jenkins.post("http://169.254.169.254/", "msg_1", Bytes::new(), Timestamp::UNIX_EPOCH).await;
        assert!(matches!(posted, Posted::Rejected(_)));
        assert!(scripted.asked.lock().expect("asked").is_empty());
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        // The example of the specification's reference libraries.
        let key = SigningKey::from_secret(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).expect("a key");
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
