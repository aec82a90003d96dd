//! Who calls: credentials and crumbs.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderName, StatusCode, header};
use serde_json::json;

use super::answers::set;
use super::ask::Ask;
use super::refusal::{Answered, Refusal};
use super::users::Caller;
use super::{ANONYMOUS, Jenkins};

impl Jenkins {
    /// `jenkins.security.BasicHeaderProcessor`: only a header that begins with `Basic ` is read, on any path, including
    /// those of webhooks; wrong credentials are refused everywhere.
    pub(super) fn authenticate(&self, ask: &Ask<'_>) -> Option<Caller> {
        let anonymous = Caller { name: ANONYMOUS.into(), permissions: BTreeSet::new(), is_by_token: false };
        let Some(header) = ask.header(header::AUTHORIZATION) else { return Some(anonymous) };
        let Some(credentials) = header.get(..6).filter(|scheme| scheme.eq_ignore_ascii_case("basic ")) else {
            return Some(anonymous);
        };
        let decoded = BASE64.decode(&header[credentials.len()..]).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (name, password) = decoded.split_once(':')?;
        let user = self.users.get(name)?;
        let is_by_token = user.api_token.as_deref() == Some(password);
        let is_known = is_by_token || user.password.as_deref() == Some(password);
        is_known.then(|| Caller { name: name.to_owned(), permissions: user.permissions.clone(), is_by_token })
    }

    /// `hudson.security.csrf.CrumbFilter`: a POST needs a crumb, unless it came with an API token
    /// (`jenkins.security.ApiCrumbExclusion`) or goes to a webhook (`WebhookRootAction.process`).
    pub(super) fn check_crumb(&self, ask: &Ask<'_>, caller: &Caller) -> Result<(), Refusal> {
        let is_webhook = (ask.path.starts_with("/webhook-step/") && self.has_plugin("webhook-step"))
            || self.endpoints.contains_key(ask.path.trim_matches('/'));
        if !ask.is_post() || caller.is_by_token || is_webhook {
            return Ok(());
        }
        let crumb = ask.header(HeaderName::from_static("jenkins-crumb"));
        let crumb = crumb.as_deref().or_else(|| ask.parameter("Jenkins-Crumb"));
        let valid = ask.session().map(|session| self.crumb(&caller.name, &session));
        if crumb.is_some() && crumb == valid.as_deref() {
            return Ok(());
        }
        Err(Refusal::Jetty(StatusCode::FORBIDDEN, "No valid crumb was included in the request"))
    }

    /// `DefaultCrumbIssuer.issueCrumb`: for the user and the session.
    fn crumb(&self, user: &str, session: &str) -> String {
        self.digest("crumb", &format!("{user};{session}"))
    }

    /// `hudson.security.csrf.CrumbIssuer`, which starts a session.
    pub(super) fn issue_crumb(&self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        let known = ask.session();
        let session = known.clone().unwrap_or_else(|| self.digest("session", &self.exchanges.len().to_string()));
        let bean = json!({
            "_class": "hudson.security.csrf.DefaultCrumbIssuer",
            "crumb": self.crumb(&caller.name, &session),
            "crumbRequestField": "Jenkins-Crumb",
        });
        let mut response = self.export(ask, bean)?;
        if known.is_none() {
            set(&mut response, header::SET_COOKIE, &format!("JSESSIONID={session}; Path={}/; HttpOnly", self.context));
        }
        Ok(response)
    }
}
