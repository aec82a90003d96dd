//! The Jenkins edge: everything that speaks HTTP to the controller.
//!
//! Every call is bounded, goes to the configured origin only, follows no redirect, and authenticates with an API token,
//! which needs no crumb (`hudson.security.csrf.CrumbFilter` lets `BasicHeaderApiTokenAuthenticator` pass).

mod nodes;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use url::Url;

pub use nodes::{Created, Launcher, Node, NodeState};
pub use webhook::Posted;

use crate::config;
use crate::http::Http;
use crate::origin::Origin;
use crate::secret::{Secret, SecretStore};

/// A bound on one API call: Jenkins answers them in milliseconds, or is in trouble.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// The controller.
#[derive(Debug)]
pub struct Jenkins {
    http: Http,
    root: Url,
    origin: Origin,
    user: Option<String>,
    registers_nodes: bool,
    secrets: Arc<SecretStore>,
}

/// Why Jenkins did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It may the next time.
    #[error("Jenkins: {0}")]
    Later(String),
    /// It does not know or let us; the setting to mend is named. As if it were down.
    #[error("Jenkins: {0}")]
    Refused(String),
    /// It never will.
    #[error("Jenkins: {0}")]
    Permanent(String),
}

/// What the check asks of Jenkins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoAmI {
    /// `X-Jenkins`, the controller's version.
    pub version: Option<String>,
    /// Whom Jenkins takes us for.
    pub user: String,
    /// Whether it knows us at all.
    pub is_authenticated: bool,
}

impl Jenkins {
    /// The controller of a configuration; nothing is called yet.
    pub fn new(http: Http, config: &config::Jenkins, secrets: Arc<SecretStore>) -> Self {
        let mut root: Url = (*config.url).clone();
        if !root.path().ends_with('/') {
            root.set_path(&format!("{}/", root.path()));
        }
        Self {
            http,
            origin: Origin::new(root.clone()),
            root,
            user: config.user.clone(),
            registers_nodes: config.registers_nodes(),
            secrets,
        }
    }

    /// The boundary of what is called.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether nodes are created and deleted here.
    pub fn registers_nodes(&self) -> bool {
        self.registers_nodes
    }

    /// Asks who we are.
    ///
    /// # Errors
    /// When Jenkins cannot be asked or does not accept our token.
    pub async fn who_am_i(&self) -> Result<WhoAmI, Fault> {
        let answer = self.call(Method::GET, "whoAmI/api/json", None).await?;
        let version = answer.headers().get("x-jenkins").and_then(|value| value.to_str().ok()).map(str::to_owned);
        if answer.status() != StatusCode::OK {
            return Err(unexpected("whoAmI", &answer));
        }
        let body: serde_json::Value = serde_json::from_slice(answer.body())
            .map_err(|error| Fault::Permanent(format!("{} does not answer like Jenkins: {error}", self.root)))?;
        Ok(WhoAmI {
            version,
            user: body["name"].as_str().unwrap_or("anonymous").to_owned(),
            is_authenticated: body["authenticated"].as_bool().unwrap_or(false) && !body["anonymous"].as_bool().unwrap_or(false),
        })
    }

    /// Finds out, by reading alone, which permissions we have: Overall/Read shows the root, and Agent/Create lets
    /// `ComputerSet.doCheckName` answer. No page that can only be read asks for Agent/Connect, Disconnect or Delete.
    pub async fn permissions(&self) -> Vec<(&'static str, Result<bool, Fault>)> {
        let mut found = Vec::new();
        for (permission, path) in [("Overall/Read", "api/json?tree=mode"), ("Agent/Create", "computer/checkName?value=")] {
            let granted = match self.call_once(&Method::GET, path, None).await {
                Ok(answer) if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Ok(false),
                Ok(answer) => settle(path, answer).map(|_| true),
                Err(fault) => Err(fault),
            };
            found.push((permission, granted));
        }
        found
    }

    /// Calls Jenkins as the configured user. Refusals have become faults; any other answer is the caller's to judge.
    async fn call(
        &self,
        method: Method,
        path: &str,
        form: Option<String>,
    ) -> Result<http::Response<Bytes>, Fault> {
        let answer = self.call_once(&method, path, form.as_deref()).await?;
        if !matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return settle(path, answer);
        }
        // The token may have been renewed since it was read: it is read again, once.
        if let Err(errors) = self.secrets.refresh().await {
            return Err(Fault::Refused(format!("the secrets could not be read again: {}", errors.join("; "))));
        }
        let answer = self.call_once(&method, path, form.as_deref()).await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => {
                let fault = "does not accept jenkins.user with jenkins.apiToken; make a new token and store it there";
                tracing::error!("Jenkins {fault}");
                Err(Fault::Refused(fault.into()))
            }
            StatusCode::FORBIDDEN => {
                let permission = answer
                    .headers()
                    .get("x-required-permission")
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or("a permission");
                let user = self.user.as_deref().unwrap_or("anonymous");
                let fault = format!("jenkins.user {user} lacks {permission} for {}", action(path));
                tracing::error!("Jenkins: {fault}");
                Err(Fault::Refused(fault))
            }
            _ => settle(path, answer),
        }
    }

    async fn call_once(&self, method: &Method, path: &str, form: Option<&str>) -> Result<http::Response<Bytes>, Fault> {
        let url = self.root.join(path).map_err(|error| Fault::Permanent(format!("{}: {error}", action(path))))?;
        let mut request = http::Request::builder()
            .method(method.clone())
            .uri(url.as_str())
            .header(header::ACCEPT, "application/json, text/html;q=0.5, */*;q=0.1");
        if let (Some(user), Some(token)) = (&self.user, &self.secrets.current().api_token) {
            request = request.header(header::AUTHORIZATION, basic(user, token));
        }
        if method == Method::POST {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Bytes::from(form.unwrap_or_default().to_owned());
        let request = request.body(body).map_err(|error| Fault::Permanent(format!("{}: {error}", action(path))))?;
        self.http.send(request, API_TIMEOUT).await.map_err(|error| Fault::Later(error.to_string()))
    }
}

fn basic(user: &str, token: &Secret) -> String {
    let text = format!("{user}:{}", token.expose());
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

/// 5xx and 429 pass; everything else is for the caller to judge.
fn settle(path: &str, answer: http::Response<Bytes>) -> Result<http::Response<Bytes>, Fault> {
    let status = answer.status();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Fault::Later(format!("answered {status} to {}", action(path))));
    }
    Ok(answer)
}

/// An answer that is neither success nor anything known.
fn unexpected(what: &str, answer: &http::Response<Bytes>) -> Fault {
    Fault::Permanent(format!("answered {} to {what}{}", answer.status(), said(answer)))
}

/// What Jenkins says in an error page: the `X-Error` header, or the page's paragraph.
///
/// `hudson.model.Failure` and `hudson.util.FormFillFailure` show their message in a `<p>` of an HTML page.
fn said(answer: &http::Response<Bytes>) -> String {
    if let Some(error) = answer.headers().get("x-error").and_then(|value| value.to_str().ok()) {
        return format!(": {error}");
    }
    let body = String::from_utf8_lossy(&answer.body()[..answer.body().len().min(64 * 1024)]).into_owned();
    let paragraph = body.split("<p>").nth(1).and_then(|rest| rest.split("</p>").next()).unwrap_or_default();
    let text: String = paragraph.split('<').map(|part| part.rsplit('>').next().unwrap_or_default()).collect();
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

/// A path without its query.
fn action(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::secret::Secrets;

    /// A Jenkins that answers from a list and keeps what it was asked.
    pub(crate) struct Scripted {
        pub jenkins: Jenkins,
        pub asked: Arc<Mutex<Vec<http::Request<Bytes>>>>,
    }

    pub(crate) fn scripted(answers: Vec<http::Response<&'static str>>) -> Scripted {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let http = {
            let asked = asked.clone();
            Http::in_memory(move |request| {
                asked.lock().expect("asked").push(request);
                let answer = answers.lock().expect("answers").next();
                Box::pin(async move { answer.map(|answer| answer.map(Bytes::from)).ok_or("no more answers".into()) })
            })
        };
        let yaml = "{url: 'https://ci.example.com/jenkins', user: bot, apiToken: {env: TOKEN}}";
        let config: config::Jenkins = serde_saphyr::from_str(yaml).expect("a configuration");
        let secrets = SecretStore::fixed(Secrets {
            api_token: Some(Secret::new("t0ken")),
            webhook_authorization: Some(Secret::new("raw authorization")),
            ..Secrets::default()
        });
        Scripted { jenkins: Jenkins::new(http, &config, Arc::new(secrets)), asked }
    }

    pub(crate) fn answer(status: u16, body: &'static str) -> http::Response<&'static str> {
        http::Response::builder().status(status).header("X-Jenkins", "2.500").body(body).expect("a response")
    }

    #[tokio::test]
    async fn a_refusal_names_the_setting_after_the_secrets_were_read_again() {
        let scripted = scripted(vec![answer(401, ""), answer(401, "")]);
        let fault = scripted.jenkins.who_am_i().await.expect_err("401");
        assert!(matches!(&fault, Fault::Refused(text) if text.contains("jenkins.apiToken")), "{fault}");
        let asked = scripted.asked.lock().expect("asked");
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0].uri(), "https://ci.example.com/jenkins/whoAmI/api/json");
        assert_eq!(asked[0].headers()["authorization"], "Basic Ym90OnQwa2Vu");
    }

    #[tokio::test]
    async fn a_missing_permission_is_named() {
        let forbidden = || {
            http::Response::builder()
                .status(403)
                .header("X-Required-Permission", "hudson.model.Computer.Create")
                .body("")
                .expect("a response")
        };
        let scripted = scripted(vec![forbidden(), forbidden()]);
        let fault = scripted.jenkins.delete_node("a").await.expect_err("403");
        assert!(fault.to_string().contains("hudson.model.Computer.Create"), "{fault}");
    }
}
