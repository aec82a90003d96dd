//! Nodes, the agents behind them and the builds on them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::Jenkins;
use super::answers::escape;

/// A permanent agent's node (`hudson.slaves.DumbSlave`) with the state of its computer (`hudson.slaves.SlaveComputer`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Human-readable.
    pub description: String,
    /// The agent's working directory.
    pub remote_fs: String,
    /// Number of executors. Without any, a node has no computer, and so no page (`Jenkins.createNewComputerForNode`).
    pub executors: i32,
    /// Who may build on it.
    pub mode: Mode,
    /// The labels as they were written.
    pub label_string: String,
    /// How the agent is started.
    pub launcher: Launcher,
    /// The class of the retention strategy; none is `Always` (`Slave.getRetentionStrategy`).
    pub retention_strategy: Option<String>,
    /// Environment variables of its builds (`EnvironmentVariablesNodeProperty`).
    pub environment: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
    /// The user that created it.
    pub created_by: String,
    /// Who took it offline, and why.
    pub temporarily_offline: Option<OfflineCause>,
    /// Whether the agent is connected.
    pub is_connected: bool,
    /// Why it is not, in Jenkins' words (`SimpleOfflineCause`); `None` if nobody has tried yet.
    pub disconnected: Option<&'static str>,
    /// The builds that run on it.
    pub builds: Vec<Build>,
    /// Since when only its computer is left (`Computer.getNode` is null).
    pub(super) removed: Option<Timestamp>,
}

/// A build on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its display name: `app #1`.
    pub name: String,
    /// Whether it is a pipeline's block: it outlives the node by five minutes.
    pub is_pipeline: bool,
}

/// How long a pipeline's block continues after its node was deleted (workflow-durable-task-step,
/// `ExecutorStepExecution.TIMEOUT_WAITING_FOR_NODE_MILLIS`).
const BLOCK_OUTLIVES_NODE: SignedDuration = SignedDuration::from_secs(300);

/// `Hudson.NodeBeingRemoved`.
const BEING_REMOVED: &str = "Node is being removed";

/// `OfflineCause.LaunchFailed`.
const LAUNCH_FAILED: &str = "This agent is offline because Jenkins failed to launch the agent process on it.";

/// `OfflineCause.connection_was_broken_simple`.
const CONNECTION_BROKEN: &str = "Connection was broken";

impl Node {
    /// `Computer.isOffline`.
    pub fn is_offline(&self) -> bool {
        self.temporarily_offline.is_some() || !self.is_connected || self.removed.is_some()
    }

    /// `Computer.isIdle`.
    pub fn is_idle(&self) -> bool {
        self.builds.is_empty()
    }

    /// Whether a build would start on it now.
    pub fn can_build(&self) -> bool {
        !self.is_offline() && usize::try_from(self.executors).is_ok_and(|executors| self.builds.len() < executors)
    }

    /// `Computer.getOfflineCauseReason`: also if nobody took it offline.
    pub fn offline_reason(&self) -> String {
        let disconnected = self.disconnected.map(escape);
        self.temporarily_offline.as_ref().map(OfflineCause::reason).or(disconnected).unwrap_or_default()
    }

    /// The labels, including its own name (`Node.getAssignedLabels`). Quoted labels with spaces are omitted here.
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
    /// Those that request one of its labels.
    Exclusive,
}

/// How an agent is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launcher {
    /// Jenkins logs in over SSH.
    Ssh(SshLauncher),
    /// The agent connects to Jenkins.
    Inbound(InboundLauncher),
}

/// `hudson.plugins.sshslaves.SSHLauncher`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshLauncher {
    /// The host.
    pub host: Option<String>,
    /// SSH port.
    pub port: i64,
    /// The ID of a Jenkins credential.
    pub credentials_id: Option<String>,
    /// Timeout of one attempt, in seconds.
    pub launch_timeout_seconds: i64,
    /// Attempts after the first.
    pub max_num_retries: i64,
    /// Pause between two attempts, in seconds.
    pub retry_wait_time: i64,
    /// The Java executable.
    pub java_path: Option<String>,
    /// Options of that Java.
    pub jvm_options: Option<String>,
    /// Prefix of the command.
    pub prefix_start_command: Option<String>,
    /// Suffix of the command.
    pub suffix_start_command: Option<String>,
    /// TCP_NODELAY of the connection.
    pub tcp_no_delay: bool,
    /// How the host key is verified; with none, no connection is made.
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
    /// A tunnel, for old agents.
    pub tunnel: Option<String>,
    /// `RemotingWorkDirSettings`: the folder of the agent's own files; `None` if that is off.
    pub work_dir: Option<WorkDir>,
}

/// `jenkins.slaves.RemotingWorkDirSettings`, enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkDir {
    /// None is the node's own directory.
    pub path: Option<String>,
    /// The folder below it.
    pub internal_dir: String,
    /// Whether the agent ends if the folder is missing.
    pub must_exist: bool,
}

/// `OfflineCause.UserCause`: somebody took it offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineCause {
    /// The user.
    pub user: String,
    /// The message, if there is one.
    pub message: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl OfflineCause {
    /// `UserCause.toString`: `SlaveComputer.DisconnectedBy` in `hudson.slaves.Messages`, as HTML.
    pub(super) fn description(&self) -> String {
        let message = self.message.as_ref().map(|message| format!(" : {message}")).unwrap_or_default();
        escape(&format!("Disconnected by {}{message}", self.user))
    }

    /// `IOfflineCause.getReason`, which is exported as `offlineCauseReason`: the description without everything up to
    /// its *last* ` : `, escaped as HTML once more.
    pub fn reason(&self) -> String {
        self.description().rsplit_once(" : ").map(|(_, reason)| escape(reason)).unwrap_or_default()
    }
}

/// Why an inbound agent is refused (`jenkins.agents.WebSocketAgents`, `jenkins.slaves.DefaultJnlpSlaveReceiver`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefused {
    /// The node does not exist: 400.
    NoSuchAgent,
    /// The secret is wrong: 403.
    WrongSecret,
    /// The node has another launcher: 400.
    NotInbound,
    /// One is already connected: 400.
    AlreadyConnected,
}

impl Jenkins {
    /// The nodes, by name, without the controller's own.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The secret of an inbound agent, as `jenkins-agent.jnlp` shows it. It depends on the name alone
    /// (`JnlpAgentReceiver.SLAVE_SECRET`): a later node of that name has the same.
    pub fn secret(&self, name: &str) -> String {
        self.digest("agent", name)
    }

    /// An inbound agent connects.
    ///
    /// # Errors
    /// When Jenkins refuses it.
    pub fn connect_inbound(&mut self, name: &str, secret: &str) -> Result<(), ConnectionRefused> {
        let expected = self.secret(name);
        let node = self.nodes.get_mut(name).ok_or(ConnectionRefused::NoSuchAgent)?;
        match node.launcher {
            _ if secret != expected => Err(ConnectionRefused::WrongSecret),
            Launcher::Ssh(_) => Err(ConnectionRefused::NotInbound),
            Launcher::Inbound(_) if node.is_connected => Err(ConnectionRefused::AlreadyConnected),
            Launcher::Inbound(_) => {
                (node.is_connected, node.disconnected) = (true, None);
                Ok(())
            }
        }
    }

    /// The SSH launcher has reached the agent. Returns false if there is no such node with that launcher.
    pub fn connect_ssh(&mut self, name: &str) -> bool {
        let node = self.nodes.get_mut(name).filter(|node| matches!(node.launcher, Launcher::Ssh(_)));
        node.is_some_and(|node| {
            (node.is_connected, node.disconnected) = (true, None);
            true
        })
    }

    /// The launcher has given up (`OfflineCause.LaunchFailed`).
    pub fn fail_launch(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            (node.is_connected, node.disconnected) = (false, Some(LAUNCH_FAILED));
        }
    }

    /// The connection to an agent is lost, and with it the builds on it.
    pub fn disconnect(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            (node.is_connected, node.disconnected) = (false, Some(CONNECTION_BROKEN));
            self.killed.extend(node.builds.drain(..).map(|build| build.name));
        }
    }

    /// Starts a freestyle build on a node. Returns false if the node cannot take one, or nothing starts in quiet-down
    /// (`Queue.isBlockedByShutdown`).
    pub fn start_build_on(&mut self, name: &str, build: &str) -> bool {
        self.start(name, Build { name: build.to_owned(), is_pipeline: false })
    }

    /// Starts a pipeline's block on a node, as [`Jenkins::start_build_on`] does a freestyle build.
    pub fn start_pipeline_on(&mut self, name: &str, build: &str) -> bool {
        self.start(name, Build { name: build.to_owned(), is_pipeline: true })
    }

    fn start(&mut self, name: &str, build: Build) -> bool {
        let node = self.nodes.get_mut(name).filter(|node| node.can_build() && !self.is_quieting_down);
        node.is_some_and(|node| {
            node.builds.push(build);
            true
        })
    }

    /// Ends the oldest build on a node. Returns which.
    pub fn finish_build(&mut self, name: &str) -> Option<String> {
        let node = self.nodes.get_mut(name).filter(|node| !node.builds.is_empty())?;
        Some(node.builds.remove(0).name)
    }

    /// Jenkins has lost a node and still lists its computer, idle: a race of its own when many are deleted at once.
    pub fn lose_node(&mut self, name: &str, now: Timestamp) {
        let Some(node) = self.nodes.get(name).cloned() else { return };
        self.remove_node(name, now);
        let computer = Node { is_connected: false, removed: Some(now), builds: Vec::new(), ..node };
        self.removed.entry(name.to_owned()).or_insert(computer);
    }

    /// `Nodes.removeNode`: the connection ends, and a freestyle build with it. The computer stays while a build is
    /// left.
    pub(super) fn remove_node(&mut self, name: &str, now: Timestamp) {
        let Some(mut node) = self.nodes.remove(name) else { return };
        let (left, killed): (Vec<_>, Vec<_>) = node.builds.into_iter().partition(|build| build.is_pipeline);
        self.killed.extend(killed.into_iter().map(|build| build.name));
        node.builds = left;
        (node.is_connected, node.disconnected, node.temporarily_offline) = (false, Some(BEING_REMOVED), None);
        node.removed = Some(now);
        if !node.builds.is_empty() {
            self.removed.insert(name.to_owned(), node);
        }
    }

    /// Ends blocks whose node was deleted long ago, and their computers.
    pub(super) fn end_blocks(&mut self, now: Timestamp) {
        let is_over = |node: &Node| {
            !node.builds.is_empty() && node.removed.is_some_and(|removed| now >= removed + BLOCK_OUTLIVES_NODE)
        };
        let over: Vec<_> = self.removed.values().filter(|node| is_over(node)).map(|node| node.name.clone()).collect();
        for node in over.iter().filter_map(|name| self.removed.remove(name)).collect::<Vec<_>>() {
            self.killed.extend(node.builds.into_iter().map(|build| build.name));
        }
    }

    /// The builds that lost their agent.
    pub fn killed_builds(&self) -> &[String] {
        &self.killed
    }

    /// The pipelines that never end, because their computer was deleted during a block.
    pub fn hung_builds(&self) -> &[String] {
        &self.hung
    }
}
