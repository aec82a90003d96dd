//! A stand-in for a Jenkins controller, as far as this project speaks to one.
//!
//! It does no I/O and has no clock: a request comes in, an answer goes out. Each rule names the class of Jenkins (core
//! 2.579), Stapler, webhook-step or ssh-slaves that it was read from, so that it can be held against a real controller.
//! Where the stand-in is stricter than Jenkins or leaves something out, the comment says so.
//!
//! A request goes the way that it goes in Jenkins (core's `META-INF/web-fragment.xml`): `SuspiciousRequestFilter`,
//! authentication, `CrumbFilter`, and then Stapler, which finds the method for the path.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};

/// The first version that takes a node's XML at `computer/createItem` (jenkins pull request 11229).
const XML_SINCE: (u32, u32) = (2, 539);

/// What an anonymous caller is called (`Jenkins.ANONYMOUS2`).
const ANONYMOUS: &str = "anonymous";

// ---------------------------------------------------------------------------------------------------------------------
// Who may do what
// ---------------------------------------------------------------------------------------------------------------------

/// A permission of Jenkins that matters to agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Overall/Administer, which implies all.
    Administer,
    /// Overall/Read.
    Read,
    /// Agent/Build.
    Build,
    /// Agent/Configure.
    Configure,
    /// Agent/Connect.
    Connect,
    /// Agent/Create.
    Create,
    /// Agent/Delete.
    Delete,
    /// Agent/Disconnect, which implies Connect.
    Disconnect,
    /// Agent/Provision, which is for clouds.
    Provision,
}

impl Permission {
    /// What the project's user is given.
    pub const FOR_AGENTS: [Self; 5] = [Self::Read, Self::Create, Self::Connect, Self::Disconnect, Self::Delete];

    /// The permission's id and those that imply it, nearest first (`impliedBy` in `hudson.security.Permission`,
    /// `hudson.model.Computer`, `jenkins.model.Jenkins`, `hudson.slaves.Cloud`).
    fn chain(self) -> &'static [&'static str] {
        const ADMINISTER: &str = "hudson.model.Hudson.Administer";
        const WRITE: &str = "hudson.security.Permission.GenericWrite";
        const UPDATE: &str = "hudson.security.Permission.GenericUpdate";
        match self {
            Self::Administer => &[ADMINISTER],
            Self::Read => &["hudson.model.Hudson.Read", "hudson.security.Permission.GenericRead", ADMINISTER],
            Self::Build => &["hudson.model.Computer.Build", WRITE, ADMINISTER],
            Self::Configure => &[
                "hudson.model.Computer.Configure",
                "hudson.security.Permission.GenericConfigure",
                UPDATE,
                WRITE,
                ADMINISTER,
            ],
            Self::Connect => &["hudson.model.Computer.Connect", "hudson.model.Computer.Disconnect", ADMINISTER],
            Self::Create => {
                &["hudson.model.Computer.Create", "hudson.security.Permission.GenericCreate", WRITE, ADMINISTER]
            }
            Self::Delete => {
                &["hudson.model.Computer.Delete", "hudson.security.Permission.GenericDelete", WRITE, ADMINISTER]
            }
            Self::Disconnect => &["hudson.model.Computer.Disconnect", ADMINISTER],
            Self::Provision => &["hudson.model.Computer.Provision", ADMINISTER],
        }
    }

    fn id(self) -> &'static str {
        self.chain()[0]
    }

    /// As people see it: `Agent/Create`.
    pub fn title(self) -> String {
        let group = if matches!(self, Self::Administer | Self::Read) { "Overall" } else { "Agent" };
        format!("{group}/{self:?}")
    }
}

/// Somebody whom Jenkins knows.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// An API token; with it, no crumb is needed.
    pub api_token: Option<String>,
    /// A password; with it, a POST needs a crumb.
    pub password: Option<String>,
    /// What is granted.
    pub permissions: BTreeSet<Permission>,
}

/// The one who asks.
#[derive(Debug, Clone)]
struct Caller {
    name: String,
    permissions: BTreeSet<Permission>,
    is_by_token: bool,
}

impl Caller {
    fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// `SidACL.hasPermission`: a permission is there if it or one that implies it was granted.
    fn has(&self, permission: Permission) -> bool {
        self.permissions.iter().any(|granted| permission.chain().contains(&granted.id()))
    }

    /// `AccessControlled.checkPermission`.
    fn check(&self, permission: Permission) -> Result<(), Refusal> {
        if self.has(permission) { Ok(()) } else { Err(Refusal::Denied(permission)) }
    }
}

/// Why a request comes to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// `AccessDeniedException3`: 403.
    Denied(Permission),
    /// `hudson.model.Failure`: 400, with the message for people.
    Failure(String),
    /// Any other exception: 500, the page `oops`, which keeps the reason to the log.
    Oops(String),
    /// No such thing: 404.
    NotFound,
    /// A method annotated `@RequirePOST`: 405.
    PostOnly,
    /// `HttpServletResponse.sendError`: a page of Jetty's, which does not name Jenkins.
    Jetty(StatusCode, &'static str),
}

type Answered = Result<Response<Bytes>, Refusal>;

// ---------------------------------------------------------------------------------------------------------------------
// Nodes
// ---------------------------------------------------------------------------------------------------------------------

/// A permanent agent's node (`hudson.slaves.DumbSlave`) with what its computer (`hudson.slaves.SlaveComputer`) knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// The agent's working directory.
    pub remote_fs: String,
    /// Builds at once. Without any, a node has no computer, and so no page (`Jenkins.createNewComputerForNode`).
    pub executors: i32,
    /// Who may build on it.
    pub mode: Mode,
    /// The labels as they were written.
    pub label_string: String,
    /// How the agent is started.
    pub launcher: Launcher,
    /// The class of the retention strategy; none is `Always` (`Slave.getRetentionStrategy`).
    pub retention_strategy: Option<String>,
    /// For the builds (`EnvironmentVariablesNodeProperty`).
    pub environment: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
    /// By whom.
    pub created_by: String,
    /// Who took it offline, and why.
    pub temporarily_offline: Option<OfflineCause>,
    /// Whether the agent is connected.
    pub is_connected: bool,
    /// The builds that run on it.
    pub builds: Vec<String>,
}

impl Node {
    /// `Computer.isOffline`.
    pub fn is_offline(&self) -> bool {
        self.temporarily_offline.is_some() || !self.is_connected
    }

    /// `Computer.isIdle`.
    pub fn is_idle(&self) -> bool {
        self.builds.is_empty()
    }

    /// Whether a build would start on it now.
    pub fn can_build(&self) -> bool {
        !self.is_offline() && usize::try_from(self.executors).is_ok_and(|executors| self.builds.len() < executors)
    }

    /// The labels, its own name among them (`Node.getAssignedLabels`). Quoted labels with spaces are left out here.
    pub fn labels(&self) -> BTreeSet<String> {
        self.label_string.split_whitespace().map(str::to_owned).chain([self.name.clone()]).collect()
    }
}

/// Who may build on a node (`hudson.model.Node.Mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Anybody.
    #[default]
    Normal,
    /// Those who ask for one of its labels.
    Exclusive,
}

/// How an agent is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launcher {
    /// Jenkins logs in.
    Ssh(SshLauncher),
    /// The agent dials Jenkins.
    Inbound(InboundLauncher),
}

/// `hudson.plugins.sshslaves.SSHLauncher`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshLauncher {
    /// Where the agent is.
    pub host: Option<String>,
    /// The port there.
    pub port: i64,
    /// A Jenkins credential.
    pub credentials_id: Option<String>,
    /// Of one attempt, in seconds.
    pub launch_timeout_seconds: i64,
    /// Attempts after the first.
    pub max_num_retries: i64,
    /// Between two attempts, in seconds.
    pub retry_wait_time: i64,
    /// Which Java.
    pub java_path: Option<String>,
    /// For that Java.
    pub jvm_options: Option<String>,
    /// Before the command.
    pub prefix_start_command: Option<String>,
    /// After the command.
    pub suffix_start_command: Option<String>,
    /// Of the connection.
    pub tcp_no_delay: bool,
    /// Whether the agent is the one that is meant; none given means that no connection is made.
    pub host_key_verification: Option<HostKeyVerification>,
}

/// A strategy of `hudson.plugins.sshslaves.verifiers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKeyVerification {
    /// `NonVerifyingKeyVerificationStrategy`.
    NonVerifying,
    /// `KnownHostsFileKeyVerificationStrategy`.
    KnownHosts,
    /// `ManuallyProvidedKeyVerificationStrategy`, with `algorithm base64`.
    Key(String),
}

/// `hudson.slaves.JNLPLauncher`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundLauncher {
    /// Whether the agent speaks WebSocket, on the controller's own port.
    pub web_socket: bool,
    /// A tunnel, of old.
    pub tunnel: Option<String>,
    /// `RemotingWorkDirSettings`: where the agent keeps its own files; none if that is off.
    pub work_dir: Option<WorkDir>,
}

/// `jenkins.slaves.RemotingWorkDirSettings`, enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkDir {
    /// None is the node's own directory.
    pub path: Option<String>,
    /// Under it.
    pub internal_dir: String,
    /// Whether the agent ends if it is not there.
    pub must_exist: bool,
}

/// `OfflineCause.UserCause`: somebody took it offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineCause {
    /// Who.
    pub user: String,
    /// Why, if anything was said.
    pub message: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl OfflineCause {
    /// `SlaveComputer.DisconnectedBy` in `hudson.slaves.Messages`.
    fn description(&self) -> String {
        let message = self.message.as_ref().map(|message| format!(" : {message}")).unwrap_or_default();
        format!("Disconnected by {}{message}", self.user)
    }

    /// `IOfflineCause.getReason`, which is exported as `offlineCauseReason`: the description without all up to its *last*
    /// ` : `, and as HTML.
    pub fn reason(&self) -> String {
        self.description().rsplit_once(" : ").map(|(_, reason)| escape(reason)).unwrap_or_default()
    }
}

/// Why an inbound agent is not let in (`jenkins.agents.WebSocketAgents`, `jenkins.slaves.DefaultJnlpSlaveReceiver`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefused {
    /// There is no such node: 400.
    NoSuchAgent,
    /// The secret is another's: 403.
    WrongSecret,
    /// The node has another launcher: 400.
    NotInbound,
    /// There is one already: 400.
    AlreadyConnected,
}

// ---------------------------------------------------------------------------------------------------------------------
// What arrived
// ---------------------------------------------------------------------------------------------------------------------

/// A POST that arrived at a webhook.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When.
    pub at: Timestamp,
    /// Where, relative to the root: `webhook-step/…`.
    pub path: String,
    /// With what headers.
    pub headers: HeaderMap,
    /// With what body.
    pub body: Bytes,
    /// What it was answered.
    pub status: StatusCode,
}

/// A request that was answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When.
    pub at: Timestamp,
    /// `GET`, `POST` …
    pub method: Method,
    /// As it was asked, with its query.
    pub target: String,
    /// As whom; none if that did not come out.
    pub user: Option<String>,
    /// What it was answered.
    pub status: StatusCode,
}

/// What is known of one of webhook-step's tokens, all of it in memory (`WebhookRootAction`).
#[derive(Debug, Default)]
struct Webhook {
    /// `authTokens`: what the header has to be.
    authorization: Option<String>,
    /// `webhooks`: whether a pipeline waits.
    is_awaited: bool,
    /// What the pipeline that waited was given.
    given: Option<Arrival>,
    /// `alreadyPosted`: the last that came while nobody waited.
    posted: Option<Arrival>,
}

// ---------------------------------------------------------------------------------------------------------------------
// The controller
// ---------------------------------------------------------------------------------------------------------------------

/// The controller.
#[derive(Debug)]
pub struct Jenkins {
    /// With a slash at its end.
    root: String,
    /// The context path, without a slash at its end.
    context: String,
    version: String,
    users: BTreeMap<String, User>,
    nodes: BTreeMap<String, Node>,
    webhooks: BTreeMap<String, Webhook>,
    /// Plugins' own webhooks, by path: the header that each wants.
    endpoints: BTreeMap<String, Option<String>>,
    arrivals: Vec<Arrival>,
    scripts: Vec<(String, VecDeque<Response<Bytes>>)>,
    is_starting: bool,
    registered: u64,
    exchanges: Vec<Exchange>,
    killed: Vec<String>,
}

impl Jenkins {
    /// A controller at this URL, context path and all, without users and nodes. Anonymous callers may do nothing.
    pub fn new(root_url: &str) -> Self {
        let root = format!("{}/", root_url.trim_end_matches('/'));
        let host = root.find("://").map_or(0, |scheme| scheme + 3);
        let path = root[host..].find('/').map_or(root.len(), |slash| host + slash);
        let context = root[path..].trim_end_matches('/').to_owned();
        Self {
            root,
            context,
            version: "2.579".into(),
            users: BTreeMap::new(),
            nodes: BTreeMap::new(),
            webhooks: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            arrivals: Vec::new(),
            scripts: Vec::new(),
            is_starting: false,
            registered: 0,
            exchanges: Vec::new(),
            killed: Vec::new(),
        }
    }

    // --- Settings ---

    /// A path on this controller as a URL.
    pub fn url(&self, path: &str) -> String {
        format!("{}{}", self.root, path.trim_start_matches('/'))
    }

    /// What `X-Jenkins` says: `2.539`, `2.541.2`.
    pub fn set_version(&mut self, version: &str) {
        self.version = version.to_owned();
    }

    /// Adds a user or puts another in the place of one.
    pub fn set_user(&mut self, name: &str, user: User) {
        self.users.insert(name.to_owned(), user);
    }

    /// Adds a user who has this API token and may do this.
    pub fn add_user(&mut self, name: &str, api_token: &str, permissions: impl IntoIterator<Item = Permission>) {
        let permissions = permissions.into_iter().collect();
        self.set_user(name, User { api_token: Some(api_token.to_owned()), password: None, permissions });
    }

    /// Whether everything is answered with 503 and the page of a controller that starts (`hudson.util.HudsonIsLoading`),
    /// which does not name Jenkins. A controller that is down refuses the connection: that is the HTTP server's to do.
    pub fn set_starting(&mut self, is_starting: bool) {
        self.is_starting = is_starting;
    }

    /// A restart: agents are cut off until they connect again, and webhook-step forgets what it had in memory: what was
    /// posted and not yet waited for, and the secrets. Pipelines that wait go on waiting (`WaitForWebhookExecution.onResume`).
    pub fn restart(&mut self) {
        self.webhooks.retain(|_, webhook| webhook.is_awaited || webhook.given.is_some());
        for webhook in self.webhooks.values_mut() {
            (webhook.authorization, webhook.posted) = (None, None);
        }
        for node in self.nodes.values_mut() {
            node.is_connected = false;
        }
    }

    /// Answers the next requests for a path (relative to the root, as it is asked, without its query; `*` at the end
    /// stands for anything) so, one after the other, before anything else is looked at.
    pub fn script(&mut self, path: &str, answers: impl IntoIterator<Item = Response<Bytes>>) {
        self.scripts.push((path.to_owned(), answers.into_iter().collect()));
    }

    /// Forgets what is left of the scripts.
    pub fn clear_scripts(&mut self) {
        self.scripts.clear();
    }

    // --- Webhooks ---

    /// The step `registerWebhook`: a URL, and what its `Authorization` header has to be, if anything
    /// (`RegisterWebhookExecution`). Nobody waits for it yet.
    pub fn register_webhook(&mut self, auth_token: Option<&str>) -> String {
        self.registered += 1;
        let digits = self.digest("webhook", &self.registered.to_string());
        let token = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..32]].join("-");
        let url = self.url(&format!("webhook-step/{token}"));
        self.webhooks.insert(token, Webhook { authorization: auth_token.map(str::to_owned), ..Webhook::default() });
        url
    }

    /// The step `waitForWebhook`: what was posted to this URL, once; until then, the pipeline waits
    /// (`WaitForWebhookExecution.start`). To be asked again and again.
    pub fn wait_for_webhook(&mut self, url: &str) -> Option<Arrival> {
        let webhook = self.webhooks.entry(self.token(url)?).or_default();
        let found = webhook.given.take().or_else(|| webhook.posted.take());
        webhook.is_awaited = found.is_none();
        found
    }

    /// The pipeline waits no longer, aborted or timed out (`WaitForWebhookExecution.stop`).
    pub fn abandon_webhook(&mut self, url: &str) {
        if let Some(webhook) = self.token(url).and_then(|token| self.webhooks.get_mut(&token)) {
            webhook.is_awaited = false;
            webhook.authorization = None;
        }
    }

    fn token(&self, url: &str) -> Option<String> {
        Some(url.strip_prefix(&self.root)?.strip_prefix("webhook-step/")?.to_owned())
    }

    /// A webhook of a plugin's own that takes any number of POSTs and answers 200; 403 to a wrong `Authorization`. No
    /// rule of Jenkins' beyond that POSTs to it need no crumb.
    pub fn add_endpoint(&mut self, path: &str, authorization: Option<&str>) -> String {
        let path = path.trim_matches('/').to_owned();
        let url = self.url(&path);
        self.endpoints.insert(path, authorization.map(str::to_owned));
        url
    }

    /// All that arrived at webhooks and endpoints, refusals too, oldest first.
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// All that was asked, oldest first.
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    // --- Nodes, agents and builds ---

    /// The nodes, by name; the controller's own is not among them.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The secret of an inbound agent, as `jenkins-agent.jnlp` tells it. It depends on the name alone
    /// (`JnlpAgentReceiver.SLAVE_SECRET`): a later node of that name has the same.
    pub fn secret(&self, name: &str) -> String {
        self.digest("agent", name)
    }

    /// An inbound agent dials in.
    ///
    /// # Errors
    /// When Jenkins does not let it in.
    pub fn connect_inbound(&mut self, name: &str, secret: &str) -> Result<(), ConnectionRefused> {
        let expected = self.secret(name);
        let node = self.nodes.get_mut(name).ok_or(ConnectionRefused::NoSuchAgent)?;
        match node.launcher {
            _ if secret != expected => Err(ConnectionRefused::WrongSecret),
            Launcher::Ssh(_) => Err(ConnectionRefused::NotInbound),
            Launcher::Inbound(_) if node.is_connected => Err(ConnectionRefused::AlreadyConnected),
            Launcher::Inbound(_) => {
                node.is_connected = true;
                Ok(())
            }
        }
    }

    /// The SSH launcher has reached the agent. Answers false if there is no such node with that launcher.
    pub fn connect_ssh(&mut self, name: &str) -> bool {
        let node = self.nodes.get_mut(name).filter(|node| matches!(node.launcher, Launcher::Ssh(_)));
        node.is_some_and(|node| {
            node.is_connected = true;
            true
        })
    }

    /// The connection to an agent is lost, and with it the builds on it.
    pub fn disconnect(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.is_connected = false;
            self.killed.append(&mut node.builds);
        }
    }

    /// Starts a build on a node. Answers false if the node cannot take one.
    pub fn start_build_on(&mut self, name: &str, build: &str) -> bool {
        let node = self.nodes.get_mut(name).filter(|node| node.can_build());
        node.is_some_and(|node| {
            node.builds.push(build.to_owned());
            true
        })
    }

    /// Ends the oldest build on a node. Answers which.
    pub fn finish_build(&mut self, name: &str) -> Option<String> {
        let node = self.nodes.get_mut(name).filter(|node| !node.builds.is_empty())?;
        Some(node.builds.remove(0))
    }

    /// The builds that lost their agent.
    pub fn killed_builds(&self) -> &[String] {
        &self.killed
    }

    /// 64 hexadecimal digits, as `HMACConfidentialKey.mac` gives; the same for the same controller, so that a test can be
    /// repeated. Nothing is secret here.
    fn digest(&self, purpose: &str, text: &str) -> String {
        let part = |part: u8| {
            let mut hasher = DefaultHasher::new();
            (&self.root, purpose, text, part).hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        };
        (0..4).map(part).collect()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The way of a request
// ---------------------------------------------------------------------------------------------------------------------

/// A request as Stapler has it.
struct Ask<'a> {
    method: &'a Method,
    /// Relative to the context path, as it was asked: `/computer/…`.
    path: &'a str,
    /// Of the query and, if the body is a form, of the body (`ServletRequest.getParameter`).
    parameters: Vec<(String, String)>,
    headers: &'a HeaderMap,
    body: &'a Bytes,
    at: Timestamp,
}

impl Ask<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn header(&self, name: HeaderName) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    fn is_post(&self) -> bool {
        self.method == Method::POST
    }

    /// `@RequirePOST`. (`@POST` is another matter: with another method there is no such page, and the answer is 404.)
    fn post_only(&self) -> Result<(), Refusal> {
        if self.is_post() { Ok(()) } else { Err(Refusal::PostOnly) }
    }

    fn session(&self) -> Option<String> {
        let cookies = self.header(header::COOKIE)?;
        cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("JSESSIONID=").map(str::to_owned))
    }
}

impl Jenkins {
    /// Answers a request.
    pub fn handle(&mut self, request: Request<Bytes>, now: Timestamp) -> Response<Bytes> {
        let (parts, body) = request.into_parts();
        let (user, response) = self.answer(&parts, &body, now);
        self.exchanges.push(Exchange {
            at: now,
            method: parts.method,
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            user,
            status: response.status(),
        });
        response
    }

    fn answer(
        &mut self,
        parts: &http::request::Parts,
        body: &Bytes,
        now: Timestamp,
    ) -> (Option<String>, Response<Bytes>) {
        let path = parts.uri.path();
        // Jetty knows the context path and nothing else.
        let Some(path) =
            path.strip_prefix(self.context.as_str()).filter(|path| path.is_empty() || path.starts_with('/'))
        else {
            return (None, jetty(StatusCode::NOT_FOUND, "Not Found"));
        };
        if let Some(answer) = self.scripted(path) {
            return (None, answer);
        }
        if self.is_starting {
            return (None, starting());
        }
        if path.contains(';') {
            return (None, jetty(StatusCode::BAD_REQUEST, "Semicolons are not allowed in the request URI"));
        }
        let decode = |text: &[u8]| url::form_urlencoded::parse(text).into_owned().collect::<Vec<_>>();
        let mut parameters = decode(parts.uri.query().unwrap_or_default().as_bytes());
        let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if content_type.starts_with(b"application/x-www-form-urlencoded") {
            parameters.extend(decode(body));
        }
        let ask = Ask { method: &parts.method, path, parameters, headers: &parts.headers, body, at: now };
        let Some(caller) = self.authenticate(&ask) else {
            return (None, unauthenticated());
        };
        let answered = self.check_crumb(&ask, &caller).and_then(|()| self.dispatch(&ask, &caller));
        let response = answered.unwrap_or_else(|refusal| self.refuse(refusal, &caller));
        (Some(caller.name), response)
    }

    fn scripted(&mut self, path: &str) -> Option<Response<Bytes>> {
        let path = path.trim_start_matches('/');
        let fits = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => path == pattern,
        };
        let mut scripts = self.scripts.iter_mut().filter(|(pattern, _)| fits(pattern));
        scripts.find_map(|(_, answers)| answers.pop_front())
    }

    /// `jenkins.security.BasicHeaderProcessor`: only a header that begins with `Basic ` is looked at, on any path, that
    /// of a webhook too; a wrong one is refused everywhere.
    fn authenticate(&self, ask: &Ask<'_>) -> Option<Caller> {
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
    fn check_crumb(&self, ask: &Ask<'_>, caller: &Caller) -> Result<(), Refusal> {
        let is_webhook =
            ask.path.starts_with("/webhook-step/") || self.endpoints.contains_key(ask.path.trim_matches('/'));
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

    /// `DefaultCrumbIssuer.issueCrumb`: of the user and the session.
    fn crumb(&self, user: &str, session: &str) -> String {
        self.digest("crumb", &format!("{user};{session}"))
    }

    /// Stapler finds the method for a path.
    fn dispatch(&mut self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        let decoded: Vec<_> =
            ask.path.split('/').skip(1).map(|part| percent_decode_str(part).decode_utf8_lossy()).collect();
        let path: Vec<&str> = decoded.iter().map(AsRef::as_ref).collect();
        // `Jenkins.getTarget`: without Overall/Read there is nothing but the public pages
        // (`ALWAYS_READABLE_PATHS` and the `UnprotectedRootAction`s).
        let is_public = matches!(path.first(), Some(&("login" | "whoAmI" | "webhook-step" | "404" | "oops")))
            || self.endpoints.contains_key(ask.path.trim_matches('/'));
        if !is_public {
            caller.check(Permission::Read)?;
        }
        match path.as_slice() {
            [] | [""] => Ok(self.page(StatusCode::OK, "Dashboard", "")),
            ["login"] => Ok(self.page(StatusCode::OK, "Sign in", "<form action=\"j_spring_security_check\"></form>")),
            ["api", "json"] => self.export(ask, self.root_bean()),
            ["whoAmI", "api", "json"] => self.export(ask, who_am_i(caller)),
            ["me", "api", "json"] => self.export(ask, self.user_bean(caller)?),
            ["crumbIssuer", "api", "json"] => self.issue_crumb(ask, caller),
            ["webhook-step", ..] if ask.is_post() => self.post_webhook(ask),
            _ if ask.is_post() && self.endpoints.contains_key(ask.path.trim_matches('/')) => self.post_endpoint(ask),
            ["computer"] => Ok(self.redirect("computer/")),
            ["computer", ""] => Ok(self.page(StatusCode::OK, "Nodes", "")),
            ["computer", "api", "json"] => {
                let details = shows_details(ask)?;
                self.export(ask, self.computers_bean(caller, details))
            }
            ["computer", "checkName"] => self.check_name_page(ask, caller),
            ["computer", "createItem"] => self.create_item(ask, caller),
            ["computer", "doCreateItem"] if ask.is_post() => self.do_create_item(ask, caller),
            ["computer", name] if self.has_computer(name) => Ok(self.redirect(&format!("computer/{}/", encode(name)))),
            // `Jenkins.getComputer`: the controller's own node has the empty name.
            ["computer", "(built-in)" | "(master)", rest @ ..] => self.built_in(rest, ask, caller),
            ["computer", name, rest @ ..] if self.has_computer(name) => self.computer(name, rest, ask, caller),
            _ => Err(Refusal::NotFound),
        }
    }

    fn has_computer(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.executors > 0)
    }

    /// The controller's own node (`Jenkins.MasterComputer`); its toggles are left out.
    fn built_in(&self, rest: &[&str], ask: &Ask<'_>, caller: &Caller) -> Answered {
        match rest {
            [""] => Ok(self.page(StatusCode::OK, "Built-In Node", "")),
            ["api", "json"] => self.export(ask, self.built_in_bean(caller)),
            ["setOfflineCause"] => Ok(self.set_offline_cause_page(caller)),
            ["doDelete"] => Ok(plain(StatusCode::BAD_REQUEST)),
            _ => Err(Refusal::NotFound),
        }
    }

    fn computer(&mut self, name: &str, rest: &[&str], ask: &Ask<'_>, caller: &Caller) -> Answered {
        match rest {
            [""] => Ok(self.computer_page(name, caller)),
            ["api", "json"] => {
                let details = shows_details(ask)?;
                let node = self.nodes.get(name).ok_or(Refusal::NotFound)?;
                self.export(ask, self.computer_bean(node, caller, details))
            }
            ["setOfflineCause"] => Ok(self.set_offline_cause_page(caller)),
            ["toggleOffline"] => self.toggle_offline(name, ask, caller),
            ["changeOfflineCause"] => self.change_offline_cause(name, ask, caller),
            ["doDelete"] => self.do_delete(name, ask, caller),
            ["jenkins-agent.jnlp" | "slave-agent.jnlp"] => self.agent_jnlp(name, ask, caller),
            _ => Err(Refusal::NotFound),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What can be done
// ---------------------------------------------------------------------------------------------------------------------

impl Jenkins {
    /// `WebhookRootAction.doDynamic`: 403 to a wrong `Authorization`; 200 if a pipeline waits; else 202, whether anybody
    /// will ever ask for it or not: an unknown token is kept as well. A secret that nobody asked for is only logged.
    fn post_webhook(&mut self, ask: &Ask<'_>) -> Answered {
        let token = ask.path.strip_prefix("/webhook-step/").ok_or(Refusal::Oops("no token".into()))?.to_owned();
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

    fn post_endpoint(&mut self, ask: &Ask<'_>) -> Answered {
        let expected = self.endpoints.get(ask.path.trim_matches('/')).ok_or(Refusal::NotFound)?;
        let is_refused = expected.is_some() && *expected != ask.header(header::AUTHORIZATION);
        let status = if is_refused { StatusCode::FORBIDDEN } else { StatusCode::OK };
        self.arrivals.push(arrival(ask, status));
        Ok(plain(status))
    }

    /// `ComputerSet.doDoCreateItem`, what the page for a new permanent agent submits to: 302 to the list of nodes.
    fn do_create_item(&mut self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        caller.check(Permission::Create)?;
        let name = self.check_name(fix_empty_and_trim(ask.parameter("name")))?;
        // `RequestImpl.getSubmittedForm`.
        let form = ask.parameter("json").filter(|form| !form.is_empty());
        let form = form.ok_or(Refusal::Jetty(StatusCode::BAD_REQUEST, "This page expects a form submission"))?;
        let form: Value = serde_json::from_str(form).map_err(|error| oops("Failed to parse JSON", error))?;
        // `NodeDescriptor.all().find(type)` finds nothing: a NullPointerException.
        if ask.parameter("type") != Some("hudson.slaves.DumbSlave") {
            return Err(Refusal::Oops(format!("no node type {:?}", ask.parameter("type"))));
        }
        let blank = blank(&name, ask.at, &caller.name);
        let node = bind_form(blank, &form).map_err(Refusal::Oops)?;
        self.nodes.insert(name, node);
        Ok(self.redirect("computer/"))
    }

    /// `ComputerSet.doCreateItem`: from 2.539 with a node's XML (200), before it only a page for people. `mode=copy` is
    /// left out.
    fn create_item(&mut self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        caller.check(Permission::Create)?;
        let content_type = ask.header(header::CONTENT_TYPE).unwrap_or_default();
        let is_xml = ["application/xml", "text/xml"].iter().any(|xml| content_type.starts_with(xml));
        if !is_xml || !self.takes_xml() {
            let message = match ask.parameter("mode") {
                None => "No mode given".into(),
                Some(mode) => format!("No node type ‘{mode}’ is known"),
            };
            return Err(Refusal::Failure(message));
        }
        let xml = std::str::from_utf8(ask.body).map_err(|error| oops("not UTF-8", error))?;
        let element = Element::parse(xml).map_err(Refusal::Oops)?;
        let mut node = bind_xml(blank("", ask.at, &caller.name), &element).map_err(Refusal::Oops)?;
        if let Some(name) = fix_empty_and_trim(ask.parameter("name")) {
            node.name = name;
        }
        if self.nodes.contains_key(&node.name) {
            return Err(Refusal::Failure(format!("Node '{}' already exists", node.name)));
        }
        // `Nodes.addNode`: the name is checked only here, and is not trimmed.
        check_good_name(&node.name)?;
        self.nodes.insert(node.name.clone(), node);
        Ok(plain(StatusCode::OK))
    }

    fn takes_xml(&self) -> bool {
        let mut numbers = self.version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= XML_SINCE
    }

    /// `ComputerSet.checkName`.
    fn check_name(&self, name: Option<String>) -> Result<String, Refusal> {
        let name = name.ok_or_else(|| Refusal::Failure("Query parameter 'name' is required".into()))?;
        check_good_name(&name)?;
        if self.nodes.contains_key(&name) {
            return Err(Refusal::Failure(format!("Agent called ‘{name}’ already exists")));
        }
        Ok(name)
    }

    /// `ComputerSet.doCheckName`, for the page that asks while one types; always 200 (`FormValidation`).
    fn check_name_page(&self, ask: &Ask<'_>, caller: &Caller) -> Answered {
        caller.check(Permission::Create)?;
        let checked = match ask.parameter("value").filter(|value| !value.is_empty()) {
            Some(value) => self.check_name(Some(value.trim().to_owned())),
            None => Ok(String::new()),
        };
        let body = match checked {
            Ok(_) => "<div/>".into(),
            Err(Refusal::Failure(message)) => format!("<div class=error>{}</div>", escape(&message)),
            Err(refusal) => return Err(refusal),
        };
        Ok(answer(StatusCode::OK, "text/html;charset=utf-8", body))
    }

    /// `Computer.doToggleOffline`: back online needs Agent/Connect, offline Agent/Disconnect.
    fn toggle_offline(&mut self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        let node = self.nodes.get_mut(name).ok_or(Refusal::NotFound)?;
        if node.temporarily_offline.is_none() {
            return self.change_offline_cause(name, ask, caller);
        }
        caller.check(Permission::Connect)?;
        node.temporarily_offline = None;
        Ok(self.redirect(&format!("computer/{}/", encode(name))))
    }

    /// `Computer.doChangeOfflineCause`: offline with this message, whatever it was before.
    fn change_offline_cause(&mut self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        caller.check(Permission::Disconnect)?;
        let node = self.nodes.get_mut(name).ok_or(Refusal::NotFound)?;
        let message = fix_empty_and_trim(ask.parameter("offlineMessage"));
        node.temporarily_offline = Some(OfflineCause { user: caller.name.clone(), message, at: ask.at });
        Ok(self.redirect(&format!("computer/{}/", encode(name))))
    }

    /// `Computer.doDoDelete`: the node and, at once, the connection (`Nodes.removeNode`). Jenkins keeps the computer until
    /// its last build has ended; here the build ends at once.
    fn do_delete(&mut self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        ask.post_only()?;
        caller.check(Permission::Delete)?;
        let mut node = self.nodes.remove(name).ok_or(Refusal::NotFound)?;
        self.killed.append(&mut node.builds);
        Ok(self.redirect("computer/"))
    }

    /// `SlaveComputer.doJenkinsAgentJnlp`, `EncryptedSlaveAgentJnlpFile` and `jenkins-agent.jnlp.jelly`. With
    /// `encrypt=true` Jenkins asks for no permission and encrypts the file with the secret itself: left out.
    fn agent_jnlp(&self, name: &str, ask: &Ask<'_>, caller: &Caller) -> Answered {
        if ask.parameter("encrypt") == Some("true") {
            return Err(Refusal::NotFound);
        }
        caller.check(Permission::Connect)?;
        let node = self.nodes.get(name).ok_or(Refusal::NotFound)?;
        let mut arguments = vec![self.secret(name), node.name.clone()];
        if let Launcher::Inbound(launcher) = &node.launcher {
            if launcher.web_socket {
                arguments.push("-webSocket".into());
            }
            if let Some(tunnel) = &launcher.tunnel {
                arguments.extend(["-tunnel".into(), tunnel.clone()]);
            }
            if let Some(work_dir) = &launcher.work_dir {
                let path = work_dir.path.as_ref().unwrap_or(&node.remote_fs);
                arguments.extend(["-workDir", path, "-internalDir", &work_dir.internal_dir].map(str::to_owned));
                if work_dir.must_exist {
                    arguments.push("-failIfWorkDirIsMissing".into());
                }
            }
        }
        arguments.extend(["-url".into(), self.root.clone()]);
        let arguments: String =
            arguments.iter().map(|argument| format!("<argument>{}</argument>", escape(argument))).collect();
        let body = format!("<jnlp><application-desc>{arguments}</application-desc></jnlp>");
        Ok(answer(StatusCode::OK, "application/x-java-jnlp-file", body))
    }

    /// `hudson.security.csrf.CrumbIssuer`, which starts a session.
    fn issue_crumb(&self, ask: &Ask<'_>, caller: &Caller) -> Answered {
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

fn arrival(ask: &Ask<'_>, status: StatusCode) -> Arrival {
    Arrival {
        at: ask.at,
        path: ask.path.trim_start_matches('/').to_owned(),
        headers: ask.headers.clone(),
        body: ask.body.clone(),
        status,
    }
}

/// `Jenkins.checkGoodName`, with the words of `hudson.model.Messages`.
fn check_good_name(name: &str) -> Result<(), Refusal> {
    let failure = |message: String| Err(Refusal::Failure(message));
    if name.is_empty() {
        return failure("No name is specified".into());
    }
    if let "." | ".." = name.trim() {
        return failure(format!("“{}” is not an allowed name", name.trim()));
    }
    for letter in name.chars() {
        if letter.is_control() {
            let shown: String = name
                .chars()
                .map(|letter| match letter.is_control() {
                    true => format!("\\u{};", u32::from(letter)),
                    false => letter.to_string(),
                })
                .collect();
            return failure(format!("No control code is allowed: {shown}"));
        }
        if "?*/\\%!@#$^&|<>[]:;".contains(letter) {
            return failure(format!("‘{letter}’ is an unsafe character"));
        }
    }
    if name.trim().ends_with('.') {
        return failure("A name cannot end with ‘.’".into());
    }
    Ok(())
}

/// `Util.fixEmptyAndTrim`.
fn fix_empty_and_trim(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn oops(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::Oops(format!("{what}: {error}"))
}

// ---------------------------------------------------------------------------------------------------------------------
// A node, out of a form or a file
// ---------------------------------------------------------------------------------------------------------------------

const SSH_LAUNCHER: &str = "hudson.plugins.sshslaves.SSHLauncher";
const INBOUND_LAUNCHER: &str = "hudson.slaves.JNLPLauncher";
const ENVIRONMENT: &str = "hudson.slaves.EnvironmentVariablesNodeProperty";
const RETENTION_STRATEGIES: [&str; 3] = [
    "hudson.slaves.RetentionStrategy$Always",
    "hudson.slaves.RetentionStrategy$Demand",
    "hudson.slaves.SimpleScheduledRetentionStrategy",
];

/// A node of which nothing is known but its name: the defaults of `hudson.model.Slave`.
fn blank(name: &str, created: Timestamp, created_by: &str) -> Node {
    Node {
        name: name.to_owned(),
        description: String::new(),
        remote_fs: String::new(),
        executors: 1,
        mode: Mode::Normal,
        label_string: String::new(),
        launcher: default_launcher(),
        retention_strategy: None,
        environment: BTreeMap::new(),
        created,
        created_by: created_by.to_owned(),
        temporarily_offline: None,
        is_connected: false,
        builds: Vec::new(),
    }
}

/// `Slave.getLauncher`.
fn default_launcher() -> Launcher {
    let work_dir = WorkDir { path: None, internal_dir: "remoting".into(), must_exist: false };
    Launcher::Inbound(InboundLauncher { web_socket: false, tunnel: None, work_dir: Some(work_dir) })
}

/// The form of a permanent agent, bound as `RequestImpl.bindJSON` does: the constructor of `DumbSlave` and the setters of
/// `Slave`, all of them by name; what has no setter is ignored. Any fault is an exception, and so a 500.
fn bind_form(blank: Node, form: &Value) -> Result<Node, String> {
    let fields = form.as_object().ok_or("the form is not an object")?;
    let mut node = blank;
    node.description = text(fields, "nodeDescription")?.unwrap_or_default();
    node.remote_fs = text(fields, "remoteFS")?.unwrap_or_default();
    node.label_string = text(fields, "labelString")?.unwrap_or_default().trim().to_owned();
    if let Some(executors) = number(fields, "numExecutors")? {
        node.executors = i32::try_from(executors).map_err(|error| format!("numExecutors: {error}"))?;
    }
    if let Some(mode) = text(fields, "mode")? {
        node.mode = parse_mode(&mode)?;
    }
    if let Some(launcher) = part(fields, "launcher")? {
        node.launcher = bind_launcher(launcher, false)?;
    }
    if let Some(strategy) = part(fields, "retentionStrategy")? {
        node.retention_strategy = Some(retention_strategy(class(strategy)?)?);
    }
    for (class, property) in node_properties(fields)? {
        // `TypePair.convertJSON`, "ignore unrecognized element".
        if class == ENVIRONMENT {
            for entry in one_or_many(property.get("env")) {
                let entry = entry.as_object().ok_or("env: not an object")?;
                let key = text(entry, "key")?.ok_or("env: a variable without a key")?;
                put(&mut node.environment, key, text(entry, "value")?.unwrap_or_default());
            }
        }
    }
    Ok(node)
}

/// `nodeProperties`: an object by class name (`stapler-class-bag`, with `-` for `.`), or a list of objects that name
/// their classes.
fn node_properties(fields: &Map<String, Value>) -> Result<Vec<Property<'_>>, String> {
    let value = fields.get("nodeProperties");
    if let Some(bag) = value.and_then(Value::as_object).filter(|bag| bag.contains_key("stapler-class-bag")) {
        let named = bag.iter().flat_map(|(name, value)| {
            one_or_many(Some(value)).filter_map(Value::as_object).map(|property| (name.replace('-', "."), property))
        });
        return Ok(named.collect());
    }
    one_or_many(value)
        .map(|property| {
            let property = property.as_object().ok_or("nodeProperties: not an object")?;
            Ok((class(property)?.to_owned(), property))
        })
        .collect()
}

/// A class and its fields.
type Property<'a> = (String, &'a Map<String, Value>);

fn one_or_many(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    let values = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    values.iter()
}

/// `EnvVars` ignores case: a later value is put under the first name.
fn put(environment: &mut BTreeMap<String, String>, key: String, value: String) {
    let known = environment.keys().find(|known| known.eq_ignore_ascii_case(&key)).cloned();
    environment.insert(known.unwrap_or(key), value);
}

fn parse_mode(mode: &str) -> Result<Mode, String> {
    match mode {
        "NORMAL" => Ok(Mode::Normal),
        "EXCLUSIVE" => Ok(Mode::Exclusive),
        _ => Err(format!("no enum constant hudson.model.Node.Mode.{mode}")),
    }
}

fn retention_strategy(class: &str) -> Result<String, String> {
    if RETENTION_STRATEGIES.contains(&class) { Ok(class.to_owned()) } else { Err(format!("no such class {class}")) }
}

/// A launcher: the form's names are those of the file. Only the two that this project uses are known here.
fn bind_launcher(fields: &Map<String, Value>, is_file: bool) -> Result<Launcher, String> {
    match class(fields)? {
        SSH_LAUNCHER => bind_ssh(fields, is_file).map(Launcher::Ssh),
        INBOUND_LAUNCHER => {
            let work_dir = match part(fields, "workDirSettings")? {
                None if is_file => None, // `JNLPLauncher.readResolve`
                None => match default_launcher() {
                    Launcher::Inbound(launcher) => launcher.work_dir,
                    Launcher::Ssh(_) => None,
                },
                Some(settings) if flag(settings, "disabled")?.unwrap_or(false) => None,
                Some(settings) => Some(WorkDir {
                    path: fix_empty_and_trim(text(settings, "workDirPath")?.as_deref()),
                    internal_dir: text(settings, "internalDir")?.unwrap_or_else(|| "remoting".into()),
                    must_exist: flag(settings, "failIfWorkDirIsMissing")?.unwrap_or(false),
                }),
            };
            let web_socket = flag(fields, "webSocket")?.unwrap_or(false);
            let tunnel = fix_empty_and_trim(text(fields, "tunnel")?.as_deref());
            Ok(Launcher::Inbound(InboundLauncher { web_socket, tunnel, work_dir }))
        }
        other => Err(format!("class {other} is specified, but no such class found")),
    }
}

/// `SSHLauncher`: its constructor and setters, or `readResolve` for a file.
fn bind_ssh(fields: &Map<String, Value>, is_file: bool) -> Result<SshLauncher, String> {
    let optional = |name| text(fields, name).map(|text| text.filter(|text| !text.is_empty()));
    let at_least = |name, least, default| {
        Ok::<_, String>(number(fields, name)?.filter(|number| *number >= least).unwrap_or(default))
    };
    let timeout = at_least("launchTimeoutSeconds", 1, 60)?;
    Ok(SshLauncher {
        host: fix_empty_and_trim(text(fields, "host")?.as_deref()),
        port: number(fields, "port")?.filter(|port| *port != 0).unwrap_or(22),
        credentials_id: text(fields, "credentialsId")?,
        // JENKINS-58589: 210 was the default once, and is taken for it.
        launch_timeout_seconds: if is_file && timeout == 210 { 60 } else { timeout },
        max_num_retries: at_least("maxNumRetries", 0, 10)?,
        retry_wait_time: at_least("retryWaitTime", 0, 15)?,
        java_path: optional("javaPath")?,
        jvm_options: optional("jvmOptions")?,
        prefix_start_command: optional("prefixStartSlaveCmd")?,
        suffix_start_command: optional("suffixStartSlaveCmd")?,
        tcp_no_delay: flag(fields, "tcpNoDelay")?.unwrap_or(true),
        host_key_verification: match part(fields, "sshHostKeyVerificationStrategy")? {
            Some(strategy) => Some(bind_verification(strategy)?),
            None => None,
        },
    })
}

fn bind_verification(fields: &Map<String, Value>) -> Result<HostKeyVerification, String> {
    let name = class(fields)?;
    match name.strip_prefix("hudson.plugins.sshslaves.verifiers.") {
        Some("NonVerifyingKeyVerificationStrategy") => Ok(HostKeyVerification::NonVerifying),
        Some("KnownHostsFileKeyVerificationStrategy") => Ok(HostKeyVerification::KnownHosts),
        Some("ManuallyProvidedKeyVerificationStrategy") => {
            // A form has `algorithm base64`, a file the two fields of `HostKey`.
            let key = match fields.get("key") {
                Some(Value::Object(key)) => {
                    [text(key, "algorithm")?.unwrap_or_default(), text(key, "key")?.unwrap_or_default()].join(" ")
                }
                _ => text(fields, "key")?.ok_or("no key")?,
            };
            let (_, bytes) = key.split_once(' ').ok_or("the key has two parts")?;
            BASE64.decode(bytes.split(' ').next().unwrap_or_default()).map_err(|error| format!("key: {error}"))?;
            Ok(HostKeyVerification::Key(key))
        }
        _ => Err(format!("class {name} is specified, but no such class found")),
    }
}

/// The class that a part names: `$class`, or `stapler-class` of old (`TypePair.convertJSON`).
fn class(fields: &Map<String, Value>) -> Result<&str, String> {
    let named = fields.get("$class").or_else(|| fields.get("stapler-class"));
    named.ok_or("no class is named, and the type is abstract")?.as_str().ok_or_else(|| "a list of classes".into())
}

fn part<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Map<String, Value>>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(part)) => Ok(Some(part)),
        Some(other) => Err(format!("{name}: {other} is no object")),
    }
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(other) => Err(format!("{name}: {other} is no text")),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<i64>, String> {
    text(fields, name)?.map(|text| text.parse().map_err(|error| format!("{name}: {text}: {error}"))).transpose()
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<Option<bool>, String> {
    Ok(text(fields, name)?.map(|text| text.eq_ignore_ascii_case("true")))
}

/// A node's file, as `Jenkins.XSTREAM2` reads it: fields, not setters, and no constructor, so that what is not there is 0,
/// false or null. What XStream does not know it leaves out (`RobustReflectionConverter`).
fn bind_xml(blank: Node, slave: &Element) -> Result<Node, String> {
    if !matches!(slave.name.as_str(), "slave" | "hudson.slaves.DumbSlave") {
        return Err(format!("{} is no node", slave.name));
    }
    let fields = slave.fields();
    let mut node = blank;
    node.name = text(&fields, "name")?.unwrap_or_default();
    node.description = text(&fields, "description")?.unwrap_or_default();
    node.remote_fs = text(&fields, "remoteFS")?.unwrap_or_default();
    node.label_string = text(&fields, "label")?.unwrap_or_default().trim().to_owned();
    node.executors = i32::try_from(number(&fields, "numExecutors")?.unwrap_or(0)).map_err(|error| error.to_string())?;
    node.mode = parse_mode(&text(&fields, "mode")?.ok_or("no mode")?)?;
    if let Some(launcher) = part(&fields, "launcher")? {
        node.launcher = bind_launcher(launcher, true)?;
    }
    if let Some(strategy) = part(&fields, "retentionStrategy")? {
        node.retention_strategy = Some(retention_strategy(class(strategy)?)?);
    }
    if let Some(environment) = slave.find(&["nodeProperties", ENVIRONMENT, "envVars"]) {
        node.environment = bind_environment(environment)?;
    }
    Ok(node)
}

/// `EnvVars`, a `TreeMap` with a comparator of its own, as Java's serialisation writes it: a count, and then names and
/// values in the comparator's order. Jenkins would take another order as it comes, and then not find what it looks for;
/// here that is a fault.
fn bind_environment(variables: &Element) -> Result<BTreeMap<String, String>, String> {
    let map = variables.find(&["tree-map"]).ok_or("envVars: no tree-map")?;
    let strings: Vec<_> = map.children.iter().filter(|child| child.name == "string").collect();
    let count = map.find(&["int"]).and_then(|count| count.text.trim().parse::<usize>().ok());
    if strings.len() % 2 != 0 || count != Some(strings.len() / 2) {
        return Err("envVars: the count is not that of the variables".into());
    }
    if map.find(&["default", "comparator"]).is_none() {
        return Err("envVars: no comparator".into());
    }
    // `String.CASE_INSENSITIVE_ORDER` compares upper case, then lower case.
    let fold = |name: &str| name.to_uppercase().to_lowercase();
    let pairs: Vec<_> = strings.chunks(2).map(|pair| (pair[0].text.clone(), pair[1].text.clone())).collect();
    if pairs.windows(2).any(|pair| fold(&pair[0].0) >= fold(&pair[1].0)) {
        return Err("envVars: not in the comparator's order".into());
    }
    Ok(pairs.into_iter().collect())
}

/// An XML element.
#[derive(Debug, Default)]
struct Element {
    name: String,
    class: Option<String>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn parse(xml: &str) -> Result<Self, String> {
        use quick_xml::events::Event;
        // Files of Jenkins' own are XML 1.1, so that a text may hold control characters.
        const VERSION: quick_xml::XmlVersion = quick_xml::XmlVersion::Explicit1_1;
        let mut reader = quick_xml::Reader::from_str(xml);
        let mut document = Self::default();
        let mut open: Vec<Self> = Vec::new();
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let inner = open.last_mut().unwrap_or(&mut document);
            match event {
                Event::Start(start) => open.push(Self::start(&start)?),
                Event::Empty(start) => inner.children.push(Self::start(&start)?),
                Event::End(_) => {
                    let element = open.pop().ok_or("an end without a start")?;
                    open.last_mut().unwrap_or(&mut document).children.push(element);
                }
                Event::Text(text) => inner.text.push_str(&text.xml_content(VERSION)),
                Event::CData(text) => inner.text.push_str(&text.xml_content(VERSION)),
                Event::GeneralRef(reference) => {
                    let letter = reference.resolve_char_ref().map_err(|error| error.to_string())?.map(String::from);
                    let named = || quick_xml::escape::resolve_predefined_entity(&reference).map(str::to_owned);
                    inner.text.push_str(&letter.or_else(named).ok_or("an unknown entity")?);
                }
                Event::Eof if !open.is_empty() => return Err("the XML ends too early".into()),
                Event::Eof => return document.children.pop().ok_or_else(|| "no XML".into()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }

    fn start(start: &quick_xml::events::BytesStart<'_>) -> Result<Self, String> {
        let class = start.try_get_attribute("class").map_err(|error| error.to_string())?;
        let class = class.map(|class| class.normalized_value(quick_xml::XmlVersion::Explicit1_1)).transpose();
        let class = class.map_err(|error| error.to_string())?.map(Into::into);
        Ok(Self { name: start.name().0.to_owned(), class, ..Self::default() })
    }

    fn find(&self, path: &[&str]) -> Option<&Self> {
        match path {
            [] => Some(self),
            [first, rest @ ..] => self.children.iter().find(|child| child.name == *first)?.find(rest),
        }
    }

    /// The children as fields: a text, or an object that names its class.
    fn fields(&self) -> Map<String, Value> {
        let class = self.class.iter().map(|class| ("$class".to_owned(), json!(class)));
        let children = self.children.iter().map(|child| {
            let is_text = child.children.is_empty() && child.class.is_none();
            (child.name.clone(), if is_text { json!(child.text) } else { Value::Object(child.fields()) })
        });
        class.chain(children).collect()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What can be read
// ---------------------------------------------------------------------------------------------------------------------

impl Jenkins {
    /// `ComputerSet`, with what it exports. The controller's own node comes first: nodes are sorted by name, and it has
    /// none.
    fn computers_bean(&self, caller: &Caller, details: bool) -> Value {
        let agents = self.nodes.values().filter(|node| node.executors > 0);
        let online = agents.clone().filter(|node| !node.is_offline());
        let computers: Vec<_> = std::iter::once(self.built_in_bean(caller))
            .chain(agents.map(|node| self.computer_bean(node, caller, details)))
            .collect();
        json!({
            "_class": "hudson.model.ComputerSet",
            "busyExecutors": online.clone().map(|node| node.builds.len()).sum::<usize>(),
            "computer": computers,
            "displayName": "Nodes",
            "totalExecutors": online.map(|node| i64::from(node.executors)).sum::<i64>(),
        })
    }

    /// What `hudson.model.Computer` and `SlaveComputer` export. When it became idle is not among it.
    fn computer_bean(&self, node: &Node, caller: &Caller, details: bool) -> Value {
        let is_inbound = matches!(node.launcher, Launcher::Inbound(_));
        let labels: Vec<_> = node.labels().into_iter().map(|label| json!({"name": label})).collect();
        let executor = |number: usize| match node.builds.get(number) {
            _ if !details => json!({}),
            Some(build) => json!({
                "currentExecutable": {"_class": "hudson.model.FreeStyleBuild", "fullDisplayName": build},
                "idle": false, "likelyStuck": false, "number": number, "progress": -1,
            }),
            None => json!({
                "currentExecutable": null, "idle": true, "likelyStuck": false, "number": number, "progress": -1,
            }),
        };
        let icon = match &node.temporarily_offline {
            Some(_) => "symbol-computer-disconnected",
            None if node.is_offline() => "symbol-computer-offline",
            None => "symbol-computer",
        };
        let cause = node.temporarily_offline.as_ref();
        json!({
            "_class": "hudson.slaves.SlaveComputer",
            "actions": [],
            "assignedLabels": labels,
            "description": node.description,
            "displayName": node.name,
            "executors": (0..usize::try_from(node.executors).unwrap_or(0)).map(executor).collect::<Vec<_>>(),
            "icon": icon,
            "iconClassName": icon,
            "idle": node.is_idle(),
            "jnlpAgent": is_inbound,
            "launchSupported": !is_inbound,
            "loadStatistics": {"_class": "hudson.model.Label$1"},
            "manualLaunchAllowed": true,
            "monitorData": monitor_data(caller),
            "numExecutors": node.executors,
            "offline": node.is_offline(),
            "offlineCause": cause.map(|cause| json!({
                "_class": "hudson.slaves.OfflineCause$UserCause",
                "timestamp": cause.at.as_millisecond(),
                "description": cause.description(),
            })),
            "offlineCauseReason": cause.map(OfflineCause::reason).unwrap_or_default(),
            "oneOffExecutors": [],
            "temporarilyOffline": cause.is_some(),
            // `SlaveComputer.getAbsoluteRemotePath`
            "absoluteRemotePath": (node.is_connected && caller.has(Permission::Connect)).then_some(&node.remote_fs),
        })
    }

    /// `Jenkins.MasterComputer`, whose name for people is this one since 2.319. It has no executors here.
    fn built_in_bean(&self, caller: &Caller) -> Value {
        json!({
            "_class": "hudson.model.Hudson$MasterComputer",
            "actions": [],
            "assignedLabels": [{"name": "built-in"}],
            "description": "the Jenkins controller's built-in node",
            "displayName": "Built-In Node",
            "executors": [],
            "icon": "symbol-computer",
            "iconClassName": "symbol-computer",
            "idle": true,
            "jnlpAgent": false,
            "launchSupported": true,
            "loadStatistics": {"_class": "hudson.model.Label$1"},
            "manualLaunchAllowed": true,
            "monitorData": monitor_data(caller),
            "numExecutors": 0,
            "offline": false,
            "offlineCause": null,
            "offlineCauseReason": "",
            "oneOffExecutors": [],
            "temporarilyOffline": false,
        })
    }

    /// `jenkins.model.Jenkins`.
    fn root_bean(&self) -> Value {
        json!({
            "_class": "hudson.model.Hudson",
            "assignedLabels": [{"name": "built-in"}],
            "description": null,
            "jobs": [],
            "mode": "NORMAL",
            "nodeDescription": "the Jenkins controller's built-in node",
            "nodeName": "",
            "numExecutors": 0,
            "overallLoad": {},
            "primaryView": {"_class": "hudson.model.AllView", "name": "all", "url": self.root},
            "quietDownReason": null,
            "quietingDown": false,
            "slaveAgentPort": -1,
            "unlabeledLoad": {"_class": "jenkins.model.UnlabeledLoadStatistics"},
            "url": self.root,
            "useCrumbs": true,
            "useSecurity": true,
            "views": [{"_class": "hudson.model.AllView", "name": "all", "url": self.root}],
        })
    }

    /// `hudson.model.User`, for `Jenkins.getMe`, which an anonymous caller does not have.
    fn user_bean(&self, caller: &Caller) -> Result<Value, Refusal> {
        if caller.is_anonymous() {
            return Err(Refusal::Denied(Permission::Read));
        }
        Ok(json!({
            "_class": "hudson.model.User",
            "absoluteUrl": self.url(&format!("user/{}", encode(&caller.name))),
            "description": null,
            "fullName": caller.name,
            "id": caller.name,
            "property": [],
        }))
    }

    /// `hudson.model.Api.doJson` and Stapler's `ResponseImpl.serveExposedBean`.
    fn export(&self, ask: &Ask<'_>, bean: Value) -> Answered {
        let bean = match ask.parameter("tree") {
            Some(tree) => Tree::parse(tree).map_err(Refusal::Oops)?.prune(bean),
            None => bean,
        };
        let mut response = answer(StatusCode::OK, "application/json;charset=utf-8", bean.to_string());
        self.name_jenkins(&mut response);
        set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(&mut response, header::X_FRAME_OPTIONS, "deny");
        Ok(response)
    }

    /// `Computer/index.jelly` and `sidepanel.jelly`: what may not be done is not shown.
    fn computer_page(&self, name: &str, caller: &Caller) -> Response<Bytes> {
        let is_offline = self.nodes.get(name).is_some_and(|node| node.temporarily_offline.is_some());
        let form = |action: &str| format!("<form method=\"post\" action=\"{action}\"></form>");
        let shown = [
            (caller.has(Permission::Delete), "<a href=\"doDelete\">Delete Agent</a>".to_owned()),
            (is_offline && caller.has(Permission::Connect), form("toggleOffline") + &form("setOfflineCause")),
            (!is_offline && caller.has(Permission::Disconnect), form("markOffline")),
        ];
        let body: String = shown.into_iter().filter_map(|(is_shown, html)| is_shown.then_some(html)).collect();
        self.page(StatusCode::OK, name, &body)
    }

    /// `Computer/setOfflineCause.jelly`.
    fn set_offline_cause_page(&self, caller: &Caller) -> Response<Bytes> {
        let form = "<form method=\"post\" action=\"changeOfflineCause\"></form>";
        self.page(StatusCode::OK, "Update offline reason", if caller.has(Permission::Disconnect) { form } else { "" })
    }
}

/// `hudson.security.WhoAmI`.
fn who_am_i(caller: &Caller) -> Value {
    json!({
        "_class": "hudson.security.WhoAmI",
        "anonymous": caller.is_anonymous(),
        "authenticated": true,
        "authorities": if caller.is_anonymous() { json!([ANONYMOUS]) } else { json!(["authenticated"]) },
        "name": caller.name,
    })
}

/// `Computer.getMonitorData`, of which only who may connect sees anything; nothing is measured here.
fn monitor_data(caller: &Caller) -> Value {
    const MONITORS: [&str; 7] = [
        "hudson.node_monitors.ArchitectureMonitor",
        "hudson.node_monitors.ClockMonitor",
        "hudson.node_monitors.DiskSpaceMonitor",
        "hudson.node_monitors.ResponseTimeMonitor",
        "hudson.node_monitors.SwapSpaceMonitor",
        "hudson.node_monitors.TemporarySpaceMonitor",
        "jenkins.node_monitors.RemotingVersionMonitor",
    ];
    let monitors: &[&str] = if caller.has(Permission::Connect) { &MONITORS } else { &[] };
    monitors.iter().map(|monitor| ((*monitor).to_owned(), Value::Null)).collect::<Map<_, _>>().into()
}

/// Whether the executors' state is shown: with a `tree`, or a `depth` of 1. A depth that is no number is an exception
/// (`ResponseImpl.serveExposedBean`).
fn shows_details(ask: &Ask<'_>) -> Result<bool, Refusal> {
    if ask.parameter("tree").is_some() {
        return Ok(true);
    }
    let depth = ask.parameter("depth").map(str::parse::<u32>).transpose();
    depth.map(|depth| depth.unwrap_or(0) > 0).map_err(|error| oops("Depth parameter must be a number", error))
}

/// The parameter `tree`: `a,b[c],d[e]{0,2}` (`org.kohsuke.stapler.export.NamedPathPruner`).
#[derive(Debug, Default)]
struct Tree {
    children: BTreeMap<String, Tree>,
    /// Of a list: from, and before.
    range: Option<(usize, usize)>,
}

impl Tree {
    fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let tree = Self::list(&mut rest)?;
        if rest.is_empty() { Ok(tree) } else { Err(format!("Malformed tree expression: {text}")) }
    }

    fn list(rest: &mut &str) -> Result<Self, String> {
        let mut tree = Self::default();
        loop {
            let end = rest.find([',', '[', ']', '{', '}']).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if name.is_empty() {
                return Err(format!("Malformed tree expression: a name is expected at {rest:?}"));
            }
            *rest = after;
            let mut child = if accept(rest, "[") { Self::list(rest)? } else { Self::default() };
            if after.starts_with('[') && !accept(rest, "]") {
                return Err("Malformed tree expression: ] is expected".into());
            }
            if accept(rest, "{") {
                let (range, after) = rest.split_once('}').ok_or("Malformed tree expression: } is expected")?;
                *rest = after;
                child.range = Some(parse_range(range).ok_or("Malformed tree expression: a number is expected")?);
            }
            tree.children.insert(name.to_owned(), child);
            if !accept(rest, ",") {
                return Ok(tree);
            }
        }
    }

    /// Leaves what is named; the class is always there. A map, unlike a bean, is left whole (`Property.writeValue`).
    fn prune(&self, value: Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.into_iter().filter_map(|(name, value)| {
                    if name == "_class" {
                        return Some((name, value));
                    }
                    let tree = self.children.get(&name).or_else(|| self.children.get("*"))?;
                    let value = if name == "monitorData" { value } else { tree.prune(value) };
                    Some((name, value))
                });
                Value::Object(kept.collect())
            }
            Value::Array(values) => {
                let (from, before) = self.range.unwrap_or((0, usize::MAX));
                let kept = values.into_iter().take(before).skip(from);
                kept.map(|value| self.prune(value)).collect()
            }
            other => other,
        }
    }
}

fn accept(rest: &mut &str, token: &str) -> bool {
    let after = rest.strip_prefix(token);
    *rest = after.unwrap_or(rest);
    after.is_some()
}

/// `N`, `N,`, `,M` or `N,M`.
fn parse_range(text: &str) -> Option<(usize, usize)> {
    let Some((from, before)) = text.split_once(',') else {
        let from = text.parse().ok()?;
        return Some((from, from + 1));
    };
    let number = |text: &str, default| if text.is_empty() { Some(default) } else { text.parse().ok() };
    Some((number(from, 0)?, number(before, usize::MAX)?))
}

// ---------------------------------------------------------------------------------------------------------------------
// Answers
// ---------------------------------------------------------------------------------------------------------------------

impl Jenkins {
    /// A page of Jenkins' own (`lib/layout/layout.jelly`).
    fn page(&self, status: StatusCode, title: &str, body: &str) -> Response<Bytes> {
        let title = escape(title);
        let html = format!("<!DOCTYPE html><html><head><title>{title}</title></head><body>{body}</body></html>");
        let mut response = answer(status, "text/html;charset=utf-8", html);
        self.name_jenkins(&mut response);
        set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        response
    }

    /// `Functions.advertiseHeaders`: pages and the API have these headers; redirects, plain answers and Jetty's own pages
    /// have not.
    fn name_jenkins(&self, response: &mut Response<Bytes>) {
        set(response, HeaderName::from_static("x-hudson"), "1.395");
        set(response, HeaderName::from_static("x-jenkins"), &self.version);
        set(response, HeaderName::from_static("x-jenkins-session"), &self.digest("instance", "")[..8]);
    }

    /// `ResponseImpl.sendRedirect`, 302.
    fn redirect(&self, path: &str) -> Response<Bytes> {
        let mut response = plain(StatusCode::FOUND);
        set(&mut response, header::LOCATION, &self.url(path));
        response
    }

    fn refuse(&self, refusal: Refusal, caller: &Caller) -> Response<Bytes> {
        match refusal {
            Refusal::Denied(permission) => self.denied(permission, caller),
            // `hudson.model.Failure` and `AbstractModelObject/error.jelly`.
            Refusal::Failure(message) => {
                let body = format!("<h1>Error</h1><p>{}</p>", escape(&message));
                let mut response = self.page(StatusCode::BAD_REQUEST, "Jenkins", &body);
                set(&mut response, HeaderName::from_static("x-error"), &message);
                response
            }
            // `Jenkins/oops.jelly`, which has the reason only where stack traces are shown.
            Refusal::Oops(_) => {
                let body = "<h1>Oops!</h1><h2>A problem occurred while processing the request</h2>";
                self.page(StatusCode::INTERNAL_SERVER_ERROR, "Jenkins", body)
            }
            // `Jenkins.generateNotFoundResponse` and `Jenkins/_404.jelly`.
            Refusal::NotFound => self.page(StatusCode::NOT_FOUND, "Not Found", "<h1>Oops!</h1><h2>Not Found</h2>"),
            // `CrumbFilter/retry.jelly`.
            Refusal::PostOnly => {
                let body = "<h1>This URL requires POST</h1>";
                let mut response = self.page(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", body);
                set(&mut response, header::ALLOW, "POST");
                response
            }
            Refusal::Jetty(status, message) => jetty(status, message),
        }
    }

    /// `AccessDeniedException3.reportAsHeaders`; for somebody known `AccessDeniedHandlerImpl` and `accessDenied.jelly`, for
    /// an anonymous caller `HudsonAuthenticationEntryPoint`, which sends a browser to the login with a 403.
    fn denied(&self, permission: Permission, caller: &Caller) -> Response<Bytes> {
        let mut response = if caller.is_anonymous() {
            let login = self.url("login");
            let body = format!("<meta http-equiv='refresh' content='1;url={login}'/>Authentication required");
            self.page(StatusCode::FORBIDDEN, "", &body)
        } else {
            let message = format!("{} is missing the {} permission", caller.name, permission.title());
            let body = format!("<h1>Access Denied</h1><p class=\"error\">{}</p>", escape(&message));
            self.page(StatusCode::FORBIDDEN, "Jenkins", &body)
        };
        set(&mut response, HeaderName::from_static("x-you-are-authenticated-as"), &caller.name);
        set(&mut response, HeaderName::from_static("x-required-permission"), permission.id());
        for id in &permission.chain()[1..] {
            response.headers_mut().append("x-permission-implied-by", HeaderValue::from_static(id));
        }
        response
    }
}

/// `BasicAuthenticationEntryPoint`, as `SecurityRealm.createFilter` sets it up. Jetty's page: it does not name Jenkins.
fn unauthenticated() -> Response<Bytes> {
    let mut response = jetty(StatusCode::UNAUTHORIZED, "Unauthorized");
    set(&mut response, header::WWW_AUTHENTICATE, "Basic realm=\"Jenkins\"");
    response
}

/// `HudsonIsLoading/index.jelly`.
fn starting() -> Response<Bytes> {
    let body = "<!DOCTYPE html><html><head><title>Starting Jenkins</title></head><body><h1>Please wait while Jenkins is \
                getting ready to work</h1><p>Your browser will reload automatically when Jenkins is ready</p></body></html>";
    answer(StatusCode::SERVICE_UNAVAILABLE, "text/html;charset=utf-8", body.into())
}

/// A page of the servlet container's own; web.xml has pages of Jenkins' for 404 and for exceptions alone.
fn jetty(status: StatusCode, message: &str) -> Response<Bytes> {
    let code = status.as_u16();
    let body = format!(
        "<html><head><title>Error {code} {message}</title></head><body><h2>HTTP ERROR {code} {message}</h2></body></html>"
    );
    answer(status, "text/html;charset=iso-8859-1", body)
}

fn plain(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
    let mut response = plain(status);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    *response.body_mut() = body.into();
    response
}

/// A header of Jetty's is Latin-1, and what is not in that becomes a blank (`HttpGenerator.putSanitisedValue`).
fn set(response: &mut Response<Bytes>, name: HeaderName, value: &str) {
    let latin: Vec<u8> = value.chars().map(|letter| u8::try_from(letter).unwrap_or(b' ')).collect();
    let value = HeaderValue::from_bytes(&latin).unwrap_or_else(|_| HeaderValue::from_static(""));
    response.headers_mut().insert(name, value);
}

fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// `Util.escape`: for HTML, with blanks that stay.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\n' => escaped.push_str("<br>"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#039;"),
            ' ' if letters.peek() == Some(&' ') => escaped.push_str("&nbsp;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
