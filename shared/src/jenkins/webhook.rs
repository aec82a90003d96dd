//! Notices to Jenkins by webhook, signed as the Standard Webhooks specification defines.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderValue, header};
use jiff::Timestamp;
use sha2::Sha256;

use super::{Jenkins, USER_AGENT, is_refusal};
use crate::fault::{Fault, Kind};
use crate::http::HttpFault;
use crate::secret::{Secrets, SigningKey};

/// Timeout of one notice: longer than that of an API call, since a controller under load takes seconds to resume a
/// pipeline.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The part of a webhook's answer that is read, in bytes: only a few words of it are of use.
const LIMIT: usize = 64 * 1024;

/// Jenkins' answer to a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    Delivered,
    /// Nobody waits for it.
    Unwanted,
}

impl Jenkins {
    /// Posts a notice to a URL on Jenkins' origin; any other URL is never called.
    ///
    /// # Errors
    /// When Jenkins did not accept it.
    pub async fn post(&self, url: &str, id: &str, body: Bytes, now: Timestamp) -> Result<Receipt, Fault> {
        let refuse = |reason| Fault::jenkins(Kind::Permanent, format!("the webhook's URL: {reason}"));
        let url = self.origin.allows(url).map_err(refuse)?;
        let mut answer = self.post_once(url.as_str(), id, &body, now).await?;
        if is_refusal(answer.status()) {
            // The secrets may have been renewed since they were read: they are read again, once.
            if let Err(errors) = self.secrets.refresh().await {
                let text = format!("the webhook answered {}, and the secrets could not be read again", answer.status());
                let text = format!("{text}: {}", errors.join("; "));
                return Err(Fault::jenkins(Kind::Setting, text));
            }
            answer = self.post_once(url.as_str(), id, &body, now).await?;
        }
        self.receipt(&answer)
    }

    async fn post_once(
        &self,
        url: &str,
        id: &str,
        body: &Bytes,
        now: Timestamp,
    ) -> Result<http::Response<Bytes>, Fault> {
        let request = request(url, id, body, now, &self.secrets.current());
        let request = request.map_err(|text| Fault::jenkins(Kind::Setting, text))?;
        match self.send(request, TIMEOUT, LIMIT).await {
            // The status has come, and says it all. A notice that was delivered must not be sent again.
            Err(HttpFault::Incomplete { answer, .. }) => Ok(*answer),
            answer => Ok(answer?),
        }
    }

    /// Classifies an answer.
    fn receipt(&self, answer: &http::Response<Bytes>) -> Result<Receipt, Fault> {
        let status = answer.status();
        let text = format!("the webhook answered {status}{}", self.said(answer));
        match status.as_u16() {
            200 | 201 | 202 | 204 => Ok(Receipt::Delivered),
            410 => Ok(Receipt::Unwanted),
            404 if answer.headers().contains_key("x-jenkins") => Ok(Receipt::Unwanted),
            // Without that header the answer is a proxy's, in front of a Jenkins that is away.
            404 | 429 | 500..=599 => Err(Fault::jenkins(Kind::Passing, text)),
            401 | 403 => {
                // Without the plugin, Jenkins itself refuses: its filter requires a crumb for an unknown path.
                let advice = "change jenkins.webhook.authorization, or install the plugin of that URL (webhook-step)";
                Err(Fault::jenkins(Kind::Setting, format!("{text}: {advice}")))
            }
            300..=399 => {
                let advice = "redirects are never followed; change jenkins.url, or the webhook's URL";
                Err(Fault::jenkins(Kind::Permanent, format!("{text}: {advice}")))
            }
            _ => Err(Fault::jenkins(Kind::Permanent, format!("{text}: change jenkins.url, or the webhook's URL"))),
        }
    }
}

/// Builds the request of a notice.
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

    async fn posted(answers: Vec<http::Response<&'static str>>) -> Result<Receipt, Fault> {
        scripted(answers).jenkins.post(URL, "msg_1", Bytes::from("{}"), Timestamp::UNIX_EPOCH).await
    }

    async fn kind(answers: Vec<http::Response<&'static str>>) -> Kind {
        posted(answers).await.expect_err("a fault").kind
    }

    #[tokio::test]
    async fn classifies_answers() {
        for status in [200, 201, 202, 204] {
            assert_eq!(posted(vec![answer(status, "")]).await, Ok(Receipt::Delivered));
        }
        assert_eq!(posted(vec![answer(410, "")]).await, Ok(Receipt::Unwanted));
        assert_eq!(posted(vec![answer(404, "")]).await, Ok(Receipt::Unwanted));
        let proxy = http::Response::builder().status(404).body("").expect("a response");
        assert_eq!(kind(vec![proxy]).await, Kind::Passing);
        for status in [429, 500, 502, 503] {
            assert_eq!(kind(vec![answer(status, "")]).await, Kind::Passing, "{status}");
        }
        for status in [301, 302, 307, 400, 405, 413] {
            assert_eq!(kind(vec![answer(status, "")]).await, Kind::Permanent, "{status}");
        }
        for status in [401, 403] {
            let fault = posted(vec![answer(status, ""), answer(status, "")]).await.expect_err("refused");
            assert!(fault.kind == Kind::Setting && fault.message.contains("jenkins.webhook.authorization"), "{fault}");
            assert_eq!(posted(vec![answer(status, ""), answer(202, "")]).await, Ok(Receipt::Delivered));
        }
        assert_eq!(kind(vec![]).await, Kind::Passing);
    }

    #[tokio::test]
    async fn never_calls_another_origin() {
        let scripted = scripted(vec![]);
        let posted =
            scripted.jenkins.post("http://169.254.169.254/", "msg_1", Bytes::new(), Timestamp::UNIX_EPOCH).await;
        assert!(posted.is_err_and(|fault| fault.is_final()));
        assert!(scripted.asked.lock().expect("asked").is_empty());
    }

    #[test]
    fn sends_the_required_headers_and_shows_no_secret() {
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
    fn names_a_secret_that_cannot_be_sent_without_showing_it() {
        let secrets = Secrets { webhook_authorization: Some(Secret::new("two\nlines")), ..Secrets::default() };
        let text = request(URL, "a", &Bytes::new(), Timestamp::UNIX_EPOCH, &secrets).expect_err("no header");
        assert!(text.contains("jenkins.webhook.authorization") && !text.contains("two"), "{text}");
    }

    #[test]
    fn signs_as_in_the_specification() {
        // The example of the specification's reference libraries.
        let key = SigningKey::from_secret(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).expect("a key");
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signed.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }
}
