//! Nodes, the agents behind them and the builds on them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Jenkins;
use super::answers::escape;

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
    pub(super) fn description(&self) -> String {
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

impl Jenkins {
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
}
