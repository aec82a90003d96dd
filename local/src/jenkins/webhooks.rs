//! Posts to webhooks: webhook-step's, and those of other plugins.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;

use super::Jenkins;
use super::answers::plain;
use super::ask::Ask;
use super::refusal::{Answered, Refusal};

/// A POST that arrived at a webhook.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When.
    pub at: Timestamp,
    /// Its path, relative to the root: `webhook-step/…`.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The status of its answer.
    pub status: StatusCode,
}

/// The state of one of webhook-step's tokens, all of it in memory (`WebhookRootAction`).
#[derive(Debug, Default)]
pub(super) struct Webhook {
    /// `authTokens`: the required header.
    pub(super) authorization: Option<String>,
    /// `webhooks`: whether a pipeline waits.
    pub(super) is_awaited: bool,
    /// What the waiting pipeline was given.
    pub(super) given: Option<Arrival>,
    /// `alreadyPosted`: the last post while nobody waited.
    pub(super) posted: Option<Arrival>,
}

impl Jenkins {
    /// The step `registerWebhook`: a URL, and the required `Authorization` header, if any (`RegisterWebhookExecution`).
    /// Nobody waits for it yet.
    pub fn register_webhook(&mut self, auth_token: Option<&str>) -> String {
        self.registered += 1;
        let digits = self.digest("webhook", &self.registered.to_string());
        let token = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..32]].join("-");
        let url = self.url(&format!("webhook-step/{token}"));
        self.webhooks.insert(token, Webhook { authorization: auth_token.map(str::to_owned), ..Webhook::default() });
        url
    }

    /// The step `waitForWebhook`: what was posted to this URL, once; until then, the pipeline waits
    /// (`WaitForWebhookExecution.start`). To be polled.
    pub fn wait_for_webhook(&mut self, url: &str) -> Option<Arrival> {
        let webhook = self.webhooks.entry(self.token(url)?).or_default();
        let found = webhook.given.take().or_else(|| webhook.posted.take());
        webhook.is_awaited = found.is_none();
        found
    }

    /// The pipeline no longer waits: aborted or timed out (`WaitForWebhookExecution.stop`).
    pub fn abandon_webhook(&mut self, url: &str) {
        if let Some(webhook) = self.token(url).and_then(|token| self.webhooks.get_mut(&token)) {
            webhook.is_awaited = false;
            webhook.authorization = None;
        }
    }

    fn token(&self, url: &str) -> Option<String> {
        Some(url.strip_prefix(&self.root)?.strip_prefix("webhook-step/")?.to_owned())
    }

    /// A webhook of another plugin that accepts any number of POSTs and answers 200; 403 to a wrong `Authorization`.
    /// Jenkins' only rule for it is that its POSTs need no crumb.
    pub fn add_endpoint(&mut self, path: &str, authorization: Option<&str>) -> String {
        let path = path.trim_matches('/').to_owned();
        let url = self.url(&path);
        self.endpoints.insert(path, authorization.map(str::to_owned));
        url
    }

    /// All posts to webhooks and endpoints, including refused ones, oldest first.
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// Forgets all exchanges, posts and webhooks that nobody waits for, for runs of any length.
    pub fn forget_the_past(&mut self) {
        self.exchanges.clear();
        self.arrivals.clear();
        self.webhooks.retain(|_, webhook| webhook.is_awaited);
        self.clear_scripts();
    }

    /// `WebhookRootAction.doDynamic`: 500 without a token; 403 to a wrong `Authorization`; 200 if a pipeline waits;
    /// else 202, whether anybody will ever ask for it or not: an unknown token is kept as well, and a later POST
    /// replaces an earlier one. A secret that nobody requires is only logged.
    pub(super) fn post_webhook(&mut self, ask: &Ask<'_>) -> Answered {
        let token = ask.path.strip_prefix("/webhook-step/").filter(|token| !token.is_empty());
        let token = token.ok_or(Refusal::Oops("no token".into()))?.to_owned();
        let authorization = ask.header(header::AUTHORIZATION);
        let webhook = self.webhooks.entry(token).or_default();
        let (status, result) = match &webhook.authorization {
            Some(expected) if authorization.as_ref() != Some(expected) => (StatusCode::FORBIDDEN, Some("Unauthorized")),
            _ if webhook.is_awaited => (StatusCode::OK, Some("WebhookTriggered")),
            _ => (StatusCode::ACCEPTED, None),
        };
        let arrival = arrival(ask, status);
        match status {
            StatusCode::OK => webhook.given = Some(arrival.clone()),
            StatusCode::ACCEPTED => webhook.posted = Some(arrival.clone()),
            _ => {}
        }
        webhook.is_awaited &= status != StatusCode::OK;
        self.arrivals.push(arrival);
        let mut response = plain(status);
        if let Some(result) = result {
            response.headers_mut().insert("result", HeaderValue::from_static(result));
        }
        Ok(response)
    }

    pub(super) fn post_endpoint(&mut self, ask: &Ask<'_>) -> Answered {
        let expected = self.endpoints.get(ask.path.trim_matches('/')).ok_or(Refusal::NotFound)?;
        let is_refused = expected.is_some() && *expected != ask.header(header::AUTHORIZATION);
        let status = if is_refused { StatusCode::FORBIDDEN } else { StatusCode::OK };
        self.arrivals.push(arrival(ask, status));
        Ok(plain(status))
    }
}

fn arrival(ask: &Ask<'_>, status: StatusCode) -> Arrival {
    Arrival {
        at: ask.at,
        path: ask.path.trim_start_matches('/').to_owned(),
        headers: ask.headers.clone(),
        body: ask.body.clone(),
        status,
    }
}
