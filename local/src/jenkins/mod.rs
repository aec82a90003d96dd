//! A stand-in for the parts of a Jenkins controller that this project uses.
//!
//! It does no I/O and has no clock: a request comes in, an answer goes out. Each rule names the class of Jenkins
//! (core 2.579), Stapler, webhook-step or ssh-slaves that it was read from, so that it can be compared with a real
//! controller. Where the stand-in is stricter than Jenkins or incomplete, the comment says so.
//!
//! A request passes through the same stages as in Jenkins (core's `META-INF/web-fragment.xml`):
//! `SuspiciousRequestFilter`, authentication, `CrumbFilter`, and then Stapler, which finds the method for the path.

mod access;
mod answers;
mod ask;
mod beans;
mod computers;
mod file;
mod form;
mod nodes;
mod refusal;
mod requests;
#[cfg(test)]
mod tests;
mod tree;
mod users;
mod webhooks;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use bytes::Bytes;
use http::Response;

pub use nodes::{
    Build, ConnectionRefused, HostKeyVerification, InboundLauncher, Launcher, Mode, Node, OfflineCause, SshLauncher,
    WorkDir,
};
pub use requests::Exchange;
pub use users::{Permission, User};
pub use webhooks::Arrival;

use webhooks::Webhook;

/// The first version that accepts a node's XML at `computer/createItem` (jenkins pull request 11229).
const XML_SINCE: (u32, u32) = (2, 539);

/// The name of an anonymous caller (`Jenkins.ANONYMOUS2`).
const ANONYMOUS: &str = "anonymous";

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
    /// Plugins' own webhooks, by path: the header that each requires.
    endpoints: BTreeMap<String, Option<String>>,
    arrivals: Vec<Arrival>,
    scripts: Vec<(String, VecDeque<Response<Bytes>>)>,
    startup: Startup,
    is_quieting_down: bool,
    missing_plugins: BTreeSet<String>,
    /// Computers without a node.
    removed: BTreeMap<String, Node>,
    /// How many creations by form overlook an existing node of the same name.
    racing_creations: u32,
    /// By path as in `scripts`: the delay of the next answer.
    delays: Vec<(String, Duration)>,
    registered: u64,
    exchanges: Vec<Exchange>,
    killed: Vec<String>,
    hung: Vec<String>,
}

/// The stage of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Startup {
    /// `hudson.util.HudsonIsLoading`.
    Loading,
    /// The next request comes too early.
    Unready,
    Done,
}

/// An extension of an answer: its delay, after it has taken effect.
#[derive(Debug, Clone, Copy)]
pub struct Delay(pub Duration);

impl Jenkins {
    /// A controller at this URL, including the context path, without users and nodes. Anonymous callers may do nothing.
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
            startup: Startup::Done,
            is_quieting_down: false,
            missing_plugins: BTreeSet::new(),
            removed: BTreeMap::new(),
            racing_creations: 0,
            delays: Vec::new(),
            registered: 0,
            exchanges: Vec::new(),
            killed: Vec::new(),
            hung: Vec::new(),
        }
    }

    // --- Settings ---

    /// A path on this controller as a URL.
    pub fn url(&self, path: &str) -> String {
        format!("{}{}", self.root, path.trim_start_matches('/'))
    }

    /// The version in `X-Jenkins`: `2.539`, `2.541.2`.
    pub fn set_version(&mut self, version: &str) {
        self.version = version.to_owned();
    }

    /// Adds or replaces a user.
    pub fn set_user(&mut self, name: &str, user: User) {
        self.users.insert(name.to_owned(), user);
    }

    /// Adds a user with this API token and these permissions.
    pub fn add_user(&mut self, name: &str, api_token: &str, permissions: impl IntoIterator<Item = Permission>) {
        let permissions = permissions.into_iter().collect();
        self.set_user(name, User { api_token: Some(api_token.to_owned()), password: None, permissions });
    }

    /// Whether everything is answered with 503 and the page of a controller that starts
    /// (`hudson.util.HudsonIsLoading`), which does not name Jenkins; the first request after that gets 500 and Jenkins'
    /// own page, as seen on a real controller. One that is down refuses the connection, which is the HTTP server's
    /// task.
    pub fn set_starting(&mut self, is_starting: bool) {
        self.startup = match self.startup {
            _ if is_starting => Startup::Loading,
            Startup::Loading => Startup::Unready,
            startup => startup,
        };
    }

    /// Whether no build may start (`Jenkins.doQuietDown`). Nodes are created and deleted as always.
    pub fn set_quieting_down(&mut self, is_quieting_down: bool) {
        self.is_quieting_down = is_quieting_down;
    }

    /// A plugin that is not installed: `ssh-slaves` or `webhook-step`; all others are.
    pub fn remove_plugin(&mut self, plugin: &str) {
        self.missing_plugins.insert(plugin.to_owned());
    }

    fn has_plugin(&self, plugin: &str) -> bool {
        !self.missing_plugins.contains(plugin)
    }

    /// The next creation by form does not see a node of the same name and replaces it: `Jenkins.getComputer` creates a
    /// new `ComputerSet` each time, so its `synchronized` has no effect.
    pub fn race_next_creation(&mut self) {
        self.racing_creations += 1;
    }

    /// The next request for a path (as in [`Jenkins::script`]) takes effect at once and is answered after this time: a
    /// creation waits for the queue's lock (`Queue.withLock`).
    pub fn delay(&mut self, path: &str, duration: Duration) {
        self.delays.push((path.to_owned(), duration));
    }

    /// A restart: agents are disconnected until they connect again, and webhook-step forgets what it had in memory:
    /// what was posted and not yet waited for, and the secrets. Pipelines that wait continue to wait
    /// (`WaitForWebhookExecution.onResume`).
    pub fn restart(&mut self) {
        self.webhooks.retain(|_, webhook| webhook.is_awaited || webhook.given.is_some());
        for webhook in self.webhooks.values_mut() {
            (webhook.authorization, webhook.posted) = (None, None);
        }
        for node in self.nodes.values_mut() {
            node.is_connected = false;
        }
        // Computers are created from the existing nodes.
        self.removed.clear();
    }

    /// Scripts the answers of the next requests for a path (relative to the root, as requested, without its query; `*`
    /// at the end stands for anything), one after the other, before anything else is looked at.
    pub fn script(&mut self, path: &str, answers: impl IntoIterator<Item = Response<Bytes>>) {
        self.scripts.push((path.to_owned(), answers.into_iter().collect()));
    }

    /// Removes the remaining scripts.
    pub fn clear_scripts(&mut self) {
        self.scripts.clear();
    }

    /// All requests, oldest first.
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// 64 hexadecimal digits, like those of `HMACConfidentialKey.mac`; the same for the same controller, so that a test
    /// is repeatable. Nothing is secret here.
    fn digest(&self, purpose: &str, text: &str) -> String {
        let part = |part: u8| {
            let mut hasher = DefaultHasher::new();
            (&self.root, purpose, text, part).hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        };
        (0..4).map(part).collect()
    }
}
