//! Notices to Jenkins by webhook, signed as the Standard Webhooks specification has it.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderValue, header};
use jiff::Timestamp;
use sha2::Sha256;

use super::{Jenkins, USER_AGENT, is_refusal};
use crate::secret::{Secrets, SigningKey};

/// A bound on one notice: longer than on an API call, since a controller under load takes seconds to let a pipeline go on.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What came of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// It arrived.
    Delivered,
    /// Nobody waits for it.
    Unwanted,
    /// Jenkins could not take it now.
    Later(String),
    /// Jenkins does not let us; the setting to mend is named. As if it were down.
    Refused(String),
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
        let answer = match self.post_once(url.as_str(), id, &body, now).await {
            Ok(answer) if is_refusal(answer.status()) => {
                // The secrets may have been renewed since they were read: they are read again, once.
                if let Err(errors) = self.secrets.refresh().await {
                    let text =
                        format!("the webhook answered {}, and the secrets could not be read again", answer.status());
                    let text = format!("{text}: {}", errors.join("; "));
                    tracing::error!(notice.id = id, "{text}");
                    return Posted::Refused(text);
                }
                self.post_once(url.as_str(), id, &body, now).await
            }
            answer => answer,
        };
        answer.map_or_else(|posted| posted, |answer| self.judge(id, &answer))
    }

    async fn post_once(
        &self,
        url: &str,
        id: &str,
        body: &Bytes,
        now: Timestamp,
    ) -> Result<http::Response<Bytes>, Posted> {
        let request = request(url, id, body, now, &self.secrets.current()).map_err(|text| {
            tracing::error!(notice.id = id, "{text}");
            Posted::Later(text)
        })?;
        self.send(request, TIMEOUT).await.map_err(|error| Posted::Later(error.to_string()))
    }

    /// What an answer means, with a log entry where somebody has to mend something.
    fn judge(&self, id: &str, answer: &http::Response<Bytes>) -> Posted {
        let status = answer.status();
        let text = format!("the webhook answered {status}{}", self.said(answer));
        let (posted, setting): (fn(String) -> Posted, _) = match status.as_u16() {
            200 | 201 | 202 | 204 => return Posted::Delivered,
            410 => return Posted::Unwanted,
            404 if answer.headers().contains_key("x-jenkins") => return Posted::Unwanted,
            429 | 500..=599 => return Posted::Later(text),
            401 | 403 => (Posted::Refused, "mend jenkins.webhook.authorization"),
            300..=399 => (Posted::Rejected, "redirects are never followed; mend jenkins.url, or the webhook's URL"),
            _ => (Posted::Rejected, "mend jenkins.url, or the webhook's URL"),
        };
        let text = format!("{text}: {setting}");
        tracing::error!(notice.id = id, "{text}");
        posted(text)
    }
}

/// A notice as it is sent.
///
/// # Errors
/// Which setting cannot be sent.
fn request(
    url: &str,
    id: &str,
    body: &Bytes,
    now: Timestamp,
    secrets: &Secrets,
) -> Result<http::Request<Bytes>, String> {
    let mut request = http::Request::post(url)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(authorization) = &secrets.webhook_authorization {
        let mut value = HeaderValue::from_str(authorization.expose())
            .map_err(|_| "jenkins.webhook.authorization holds a character that no header can".to_owned())?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    if let Some(key) = &secrets.webhook_signing_key {
        let signature = signature(key, id, now.as_second(), body)
            .ok_or_else(|| "jenkins.webhook.signingSecret cannot be the key of a signature".to_owned())?;
        request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", now.as_second())
            .header("webhook-signature", signature);
    }
    request.body(body.clone()).map_err(|error| format!("the notice cannot be sent: {error}"))
}

/// `v1,` and the base64 of HMAC-SHA-256 over `id.timestamp.body` (Standard Webhooks, "Signature scheme").
fn signature(key: &SigningKey, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    let mut mac = <Hmac<Sha256>>::new_from_slice(key.expose()).ok()?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    Some(format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes())))
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
            assert!(
                matches!(&refused, Posted::Refused(text) if text.contains("jenkins.webhook.authorization")),
                "{refused:?}"
            );
            assert_eq!(posted(vec![answer(status, ""), answer(202, "")]).await, Posted::Delivered);
        }
        assert!(matches!(posted(vec![]).await, Posted::Later(_)));
    }

    #[tokio::test]
    async fn another_origin_is_never_called() {
        let scripted = scripted(vec![]);
        let posted =
            scripted.jenkins.post("http://169.254.169.254/", "msg_1", Bytes::new(), Timestamp::UNIX_EPOCH).await;
        assert!(matches!(posted, Posted::Rejected(_)));
        assert!(scripted.asked.lock().expect("asked").is_empty());
    }

    #[test]
    fn a_notice_carries_what_the_contract_says_and_shows_no_secret() {
        let secrets = Secrets {
            webhook_authorization: Some(Secret::new("raw authorization")),
            webhook_signing_key: Some(
                SigningKey::from_secret(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).expect("a key"),
            ),
            ..Secrets::default()
        };
        let now = Timestamp::from_second(1_614_265_330).expect("a time");
        let body = Bytes::from("{\"test\": 2432232314}");
        let signed = request(URL, "msg_p5jXN8AQM9LWM0D4loKWxJek", &body, now, &secrets).expect("a request");
        let headers = signed.headers();
        assert_eq!((signed.method().as_str(), headers["content-type"].as_bytes()), ("POST", &b"application/json"[..]));
        assert_eq!(headers["authorization"], "raw authorization");
        assert_eq!(headers["webhook-id"], "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(headers["webhook-timestamp"], "1614265330");
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(!format!("{signed:?}").contains("raw authorization"));
        let plain = request(URL, "a", &body, now, &Secrets::default()).expect("a request");
        assert!(
            ["authorization", "webhook-id", "webhook-timestamp", "webhook-signature"]
                .iter()
                .all(|name| !plain.headers().contains_key(*name))
        );
    }

    #[test]
    fn a_secret_that_cannot_be_sent_is_named_and_not_shown() {
        let secrets = Secrets { webhook_authorization: Some(Secret::new("two\nlines")), ..Secrets::default() };
        let text = request(URL, "a", &Bytes::new(), Timestamp::UNIX_EPOCH, &secrets).expect_err("no header");
        assert!(text.contains("jenkins.webhook.authorization") && !text.contains("two"), "{text}");
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        // The example of the specification's reference libraries.
        let key = SigningKey::from_secret(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).expect("a key");
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signed.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }
}
