//! The Jenkins edge: all HTTP calls to the controller.
//!
//! Every call has a timeout, goes to the configured origin only, follows no redirect, and authenticates with an API
//! token, which needs no crumb (`hudson.security.csrf.CrumbFilter` lets `BasicHeaderApiTokenAuthenticator` pass).

mod access;
mod definition;
mod node;
mod nodes;
mod webhook;

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use url::Url;

pub use access::WhoAmI;
pub use node::{Launcher, Node};
pub use nodes::{Created, NodeState};
pub use webhook::Receipt;

use crate::config;
use crate::fault::{Fault, Kind};
use crate::http::{Http, HttpFault};
use crate::origin::Origin;
use crate::secret::SecretStore;

/// Timeout of one API call: Jenkins answers in milliseconds, or is in trouble.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of an API's answer that is read, in bytes: many times a page of nodes with long descriptions.
const API_LIMIT: usize = 4 * 1024 * 1024;

const USER_AGENT: &str = concat!("jenkins-ecs-agents/", env!("CARGO_PKG_VERSION"));

const FORM: &str = "application/x-www-form-urlencoded";

/// The controller.
#[derive(Debug)]
pub struct Jenkins {
    http: Http,
    root: Url,
    origin: Origin,
    user: Option<String>,
    registers_nodes: bool,
    secrets: Arc<SecretStore>,
    /// As the last answer that had a version said: a hint how best to create a node.
    version: Mutex<Option<Version>>,
}

impl From<HttpFault> for Fault {
    fn from(fault: HttpFault) -> Self {
        Self::jenkins(Kind::Passing, fault.to_string())
    }
}

/// The part of Jenkins' version that matters: `2.541` of `2.541.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    /// From the header `X-Jenkins`, which pages and the API have, and redirects do not (`Functions.advertiseHeaders`,
    /// `hudson.model.Api`).
    fn of(answer: &http::Response<Bytes>) -> Option<Self> {
        let mut numbers = version(answer)?.split(['.', '-', ' ']).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

fn version(answer: &http::Response<Bytes>) -> Option<&str> {
    answer.headers().get("x-jenkins")?.to_str().ok()
}

/// A call, with what it sends.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    method: &'a Method,
    /// Relative to the root, with its query.
    path: &'a str,
    content_type: Option<&'static str>,
    body: &'a str,
}

impl<'a> Call<'a> {
    fn get(path: &'a str) -> Self {
        Self { method: &Method::GET, path, content_type: None, body: "" }
    }

    fn post(path: &'a str, content_type: &'static str, body: &'a str) -> Self {
        Self { method: &Method::POST, path, content_type: Some(content_type), body }
    }

    /// The path without its query.
    fn action(&self) -> &'a str {
        self.path.split('?').next().unwrap_or(self.path)
    }
}

impl Jenkins {
    /// The controller of a configuration; makes no call.
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
            version: Mutex::new(None),
        }
    }

    /// The origin that may be called.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether the webhook's authorization, if there is one, is of the kind that Jenkins reads as user and password
    /// (`jenkins.security.BasicHeaderProcessor`) before it asks the webhook's plugin.
    pub fn webhook_authorization_is_basic(&self) -> Option<bool> {
        let secrets = self.secrets.current();
        let kind = secrets.webhook_authorization.as_ref()?.expose().split(' ').next()?;
        Some(kind.eq_ignore_ascii_case("basic"))
    }

    /// Whether nodes are created and deleted here.
    pub fn registers_nodes(&self) -> bool {
        self.registers_nodes
    }

    /// Calls Jenkins as the configured user. Refusals are faults; the caller interprets any other answer.
    async fn call(&self, call: Call<'_>) -> Result<http::Response<Bytes>, Fault> {
        let answer = self.call_once(call).await?;
        if !is_refusal(answer.status()) {
            return Ok(answer);
        }
        // The token may have been renewed since it was read: it is read again, once.
        let text = match self.secrets.refresh().await {
            Err(errors) => format!("the secrets could not be read again: {}", errors.join("; ")),
            Ok(()) => {
                let answer = self.call_once(call).await?;
                if !is_refusal(answer.status()) {
                    return Ok(answer);
                }
                self.refusal(call, &answer)
            }
        };
        Err(Fault::jenkins(Kind::Setting, text))
    }

    /// What to change after a 401 or 403 to credentials that have just been read again.
    fn refusal(&self, call: Call<'_>, answer: &http::Response<Bytes>) -> String {
        let (user, action) = (self.user.as_deref().unwrap_or("anonymous"), call.action());
        let required = answer.headers().get("x-required-permission").and_then(|value| value.to_str().ok());
        match required.map(permission_name) {
            Some(permission) => format!("jenkins.user {user} lacks {permission} for {action}: grant it in Jenkins"),
            None => {
                let advice = match self.secrets.api_token_source() {
                    Some(source) => format!(
                        "jenkins.apiToken was read again from {source} just now and is refused, too: write a new token there, \
                         which the next attempt reads, or correct jenkins.user"
                    ),
                    None => "set jenkins.user and jenkins.apiToken".to_owned(),
                };
                format!(
                    "answered {} to {action} as jenkins.user {user}{}: {advice}",
                    answer.status(),
                    self.said(answer)
                )
            }
        }
    }

    /// One exchange. Any answer is fine, as long as it comes from Jenkins and Jenkins is not in trouble.
    async fn call_once(&self, call: Call<'_>) -> Result<http::Response<Bytes>, Fault> {
        let broken =
            |error: &dyn Display| Fault::jenkins(Kind::Permanent, format!("cannot ask for {}: {error}", call.action()));
        let url = self.root.join(call.path).map_err(|error| broken(&error))?;
        let mut request = http::Request::builder()
            .method(call.method)
            .uri(url.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json, text/html;q=0.5, */*;q=0.1")
            // Jenkins words its errors in the caller's language.
            .header(header::ACCEPT_LANGUAGE, "en");
        if let Some(basic) = self.basic() {
            let mut value = HeaderValue::try_from(format!("Basic {basic}")).map_err(|error| broken(&error))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(content_type) = call.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(Bytes::from(call.body.to_owned())).map_err(|error| broken(&error))?;
        let answer = self.send(request, API_TIMEOUT, API_LIMIT).await?;
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Fault::jenkins(
                Kind::Passing,
                format!("answered {status} to {}{}", call.action(), self.said(&answer)),
            ));
        }
        match self.leads_away(&url, &answer) {
            Some(to) => Err(Fault::jenkins(
                Kind::Setting,
                format!(
                    "answered {status} to {} and leads to {to}: jenkins.url must reach Jenkins itself, past any login page",
                    call.action()
                ),
            )),
            None => Ok(answer),
        }
    }

    /// Sends a request, and remembers the version.
    async fn send(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
        limit: usize,
    ) -> Result<http::Response<Bytes>, HttpFault> {
        let answer = self.http.send(request, timeout, limit).await?;
        if let Some(version) = Version::of(&answer) {
            *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
        }
        Ok(answer)
    }

    /// The version as last seen.
    fn version(&self) -> Option<Version> {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jenkins answers its forms with a redirect back. One to another host or to a login page comes from something
    /// else, for example a single sign-on in front of it, and nothing has been done then.
    fn leads_away(&self, url: &Url, answer: &http::Response<Bytes>) -> Option<String> {
        if !answer.status().is_redirection() {
            return None;
        }
        let to = url.join(answer.headers().get(header::LOCATION)?.to_str().ok()?).ok()?;
        let path = to.path().strip_prefix(self.root.path()).unwrap_or(to.path());
        let is_login = ["login", "securityRealm/"].iter().any(|page| path.starts_with(page));
        (is_login || to.host() != self.root.host()).then(|| format!("{}{}", to.host_str().unwrap_or("?"), to.path()))
    }

    /// User and token for `Authorization: Basic`, if both are set.
    fn basic(&self) -> Option<String> {
        let secrets = self.secrets.current();
        let text = format!("{}:{}", self.user.as_ref()?, secrets.api_token.as_ref()?.expose());
        Some(base64::engine::general_purpose::STANDARD.encode(text))
    }

    /// An answer that is neither success nor known.
    fn unexpected(&self, call: Call<'_>, answer: &http::Response<Bytes>) -> Fault {
        Fault::jenkins(
            Kind::Permanent,
            format!("answered {} to {}{}", answer.status(), call.action(), self.said(answer)),
        )
    }

    /// The words of an answer, after a colon: the header `X-Error`, the paragraph of an error page
    /// (`hudson/model/AbstractModelObject/error.jelly`, which Jenkins writes without its end tag), its title, or a
    /// plain text; without our secrets, should somebody repeat them.
    fn said(&self, answer: &http::Response<Bytes>) -> String {
        let body = String::from_utf8_lossy(&answer.body()[..answer.body().len().min(64 * 1024)]);
        let element = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            let end = format!("</{name}>");
            let ends = [end.as_str(), "<!--", "</div>"].into_iter().filter_map(|end| rest.find(end));
            Some(&rest[..ends.min()?])
        };
        let is_page = body.trim_start().starts_with('<');
        // Jenkins' own name says nothing.
        let title = || {
            let title = element("title")?;
            Some(title.strip_suffix(" - Jenkins").unwrap_or(title)).filter(|title| *title != "Jenkins")
        };
        let text = if is_page { element("p").or_else(title) } else { Some(&*body) };
        // Tags are removed, and their content is kept.
        let mut parts = text.unwrap_or_default().split('<');
        let first = parts.next().unwrap_or_default();
        let rest = parts.filter_map(|part| Some(part.split_once('>')?.1));
        // A header is Latin-1.
        let header = answer.headers().get("x-error").map(|value| value.as_bytes().iter().map(|byte| char::from(*byte)));
        let text = header.map_or_else(|| std::iter::once(first).chain(rest).collect(), Iterator::collect);
        let text = self.redact(text);
        let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let text: String = words.collect::<Vec<_>>().join(" ").chars().take(200).collect();
        if text.is_empty() { text } else { format!(": {text}") }
    }

    fn redact(&self, text: String) -> String {
        let secrets = self.secrets.current();
        let raw = [&secrets.api_token, &secrets.webhook_authorization].into_iter().flatten();
        let raw = raw.map(|secret| secret.expose().to_owned());
        raw.chain(self.basic()).fold(text, |text, secret| text.replace(&secret, "[secret]"))
    }
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// A permission's name on Jenkins' security page, from `X-Required-Permission`
/// (`hudson.security.AccessDeniedException3`): the group's class and the permission.
fn permission_name(id: &str) -> String {
    match id.rsplit_once('.') {
        Some(("hudson.model.Computer", name)) => format!("Agent/{name}"),
        Some(("hudson.model.Hudson", name)) => format!("Overall/{name}"),
        _ => id.to_owned(),
    }
}

/// A proxy's page, or something else that is not Jenkins: treated as no answer.
fn not_jenkins(error: serde_json::Error) -> Fault {
    Fault::jenkins(Kind::Setting, format!("the answer is not that of a Jenkins ({error}): correct jenkins.url"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::secret::{Secret, Secrets};

    fn settings(yaml: &str) -> Option<config::Jenkins> {
        let document = config::Document::only(format!("{{jenkins: {yaml}, clouds: []}}"));
        config::from_documents(&[document]).0.map(|config| config.jenkins)
    }

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
        let config = settings(yaml).expect("a configuration");
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
    async fn names_the_setting_after_a_second_refusal() {
        let scripted = scripted(vec![answer(401, ""), answer(401, "")]);
        let fault = scripted.jenkins.who_am_i().await.expect_err("401");
        assert!(fault.kind == Kind::Setting && fault.message.contains("jenkins.apiToken"), "{fault}");
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
        let fault = scripted.jenkins.set_offline("a", "x").await.expect_err("403");
        assert!(fault.to_string().contains("Agent/Create"), "{fault}");
    }

    #[tokio::test]
    async fn a_login_page_is_not_success() {
        let redirect = |location: &'static str| {
            http::Response::builder().status(302).header("Location", location).body("").expect("a response")
        };
        for location in [
            "https://sso.example.com/authorize",
            "/jenkins/login?from=%2F",
            "https://ci.example.com/jenkins/securityRealm/commenceLogin",
        ] {
            let fault = scripted(vec![redirect(location)]).jenkins.set_offline("a", "x").await.expect_err(location);
            assert!(fault.kind == Kind::Setting && fault.message.contains("jenkins.url"), "{fault}");
        }
        let own = "https://ci.example.com/jenkins/computer/";
        for location in ["..", ".", own, "http://ci.example.com/jenkins/computer/"] {
            assert_eq!(scripted(vec![redirect(location)]).jenkins.set_offline("a", "x").await, Ok(true), "{location}");
        }
    }

    #[tokio::test]
    async fn reports_errors_in_words_and_without_secrets() {
        let page = "<!DOCTYPE html><html><head><title>Starting\n Jenkins</title></head><body>t0ken</body></html>";
        for (body, words) in [
            (page, ": Starting Jenkins"),
            ("<html><p>Agent called <b>‘a’</b> already exists</p>", ": Agent called ‘a’ already exists"),
            ("<html><h1>Error</h1><p>Node 'a' is bad<!--at x.Y--></div>", ": Node 'a' is bad"),
            ("<html><title>Jenkins - Jenkins</title>", ""),
            ("<html><title> - Jenkins</title>", ""),
            ("<html><title>Sign in - Jenkins</title>", ": Sign in"),
            (
                "you sent Basic Ym90OnQwa2Vu, t0ken and\u{7} raw authorization",
                ": you sent Basic [secret], [secret] and [secret]",
            ),
            ("", ""),
        ] {
            let fault = scripted(vec![answer(503, body)]).jenkins.nodes().await.expect_err("503");
            assert_eq!(fault.kind, Kind::Passing, "{fault}");
            let text = &fault.message;
            assert_eq!(text, &format!("answered 503 Service Unavailable to computer/api/json{words}"));
        }
        assert!(scripted(vec![]).jenkins.nodes().await.is_err_and(|fault| fault.kind == Kind::Passing));
    }

    #[test]
    fn reads_the_version_to_its_second_number() {
        let version = |text: &str| {
            Version::of(&http::Response::builder().header("X-Jenkins", text).body(Bytes::new()).expect("a response"))
        };
        assert_eq!(version("2.541.2"), Some(Version(2, 541)));
        assert_eq!(version("2.579-SNAPSHOT (private)"), Some(Version(2, 579)));
        assert_eq!(version("?"), None);
        assert!(version("2.528.3") < Some(Version(2, 539)));
        assert!(version("3.0") > Some(Version(2, 539)));
    }

    /// Through the real client, which has its own rules for what a URL may hold.
    #[tokio::test]
    async fn sends_queries_unchanged() {
        use std::io::{Read as _, Write as _};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = [0; 4096];
            let length = stream.read(&mut head).expect("a request");
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").expect("an answer");
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        let yaml = format!("{{url: 'http://127.0.0.1:{port}'}}");
        let config = settings(&yaml).expect("a configuration");
        let http = Http::with_tls(None).expect("a client");
        let jenkins = Jenkins::new(http, &config, Arc::new(SecretStore::fixed(Secrets::default())));
        assert_eq!(jenkins.permissions().await, [("Overall/Read", Ok(false))]);
        let asked = asked.join().expect("a request");
        let line = "GET /computer/api/json?tree=computer[displayName,monitorData[*]]%7B0,2%7D HTTP/1.1\r\n";
        assert!(asked.starts_with(line), "{asked}");
    }
}
