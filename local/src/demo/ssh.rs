//! The SSH side of an agent's container: a real `sshd` behind the address and port that Jenkins gets.
//!
//! No daemon runs: while a task runs, its port listens, and each connection gets an `sshd -i` of its own, which
//! accepts one key and no password. It also runs commands over SSH, as Jenkins' launcher would.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::folder::Folder;

const SSHD: &str = "/usr/sbin/sshd";

/// The keys and the configuration of the demo's sshd.
#[derive(Debug, Clone)]
pub(super) struct Ssh {
    folder: PathBuf,
    log: PathBuf,
    /// The user that may log in: the one that runs the demo, since only root may let others in.
    pub user: String,
}

impl Ssh {
    /// Makes keys and configuration.
    ///
    /// # Errors
    /// When sshd or its tools are missing, or files cannot be written.
    pub(super) async fn prepare(run_folder: &Folder) -> Result<Self> {
        ensure!(Path::new(SSHD).exists(), "{SSHD} is missing: start the demo with ./local/run, which installs it");
        let folder = run_folder.temporary().join("ssh");
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        for key in ["host_key", "agent_key"] {
            let file = folder.join(key);
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(&file)).await?;
        }
        let user = run(Command::new("id").arg("-un")).await?.trim().to_owned();
        // Quoted, since the folder's name may contain a space.
        let path = |name: &str| format!("\"{}\"", folder.join(name).display());
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nAllowUsers {user}\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n\
             PrintMotd no\nLogLevel ERROR\n",
            path("host_key"),
            path("agent_key.pub"),
        );
        std::fs::write(folder.join("sshd_config"), config)?;
        run(Command::new(SSHD).arg("-t").arg("-f").arg(folder.join("sshd_config"))).await?;
        Ok(Self { folder, log: run_folder.file("sshd.log"), user })
    }

    /// The private key that may log in.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("agent_key")
    }

    /// Listens on this address until the future is dropped; the sessions end with it.
    ///
    /// # Errors
    /// When the port is taken or no sshd can be started.
    pub(super) async fn serve(&self, address: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let mut sessions = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            let socket: OwnedFd = stream.into();
            let output = socket.as_fd().try_clone_to_owned()?;
            let mut session = Command::new(SSHD)
                .args(["-i", "-E"])
                .arg(&self.log)
                .arg("-f")
                .arg(self.folder.join("sshd_config"))
                .stdin(Stdio::from(socket))
                .stdout(Stdio::from(output))
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .context(SSHD)?;
            sessions.spawn(async move { session.wait().await });
            while sessions.try_join_next().is_some() {}
        }
    }

    /// The command line that logs in to an agent.
    pub(super) fn command_line(&self, host: &str, port: u16) -> Vec<String> {
        let key = self.key().display().to_string();
        ["ssh", "-F", "none", "-i", &key, "-p", &port.to_string(), "-l", &self.user]
            .into_iter()
            .chain(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "StrictHostKeyChecking=no"])
            .chain(["-o", "UserKnownHostsFile=/dev/null", host])
            .map(str::to_owned)
            .collect()
    }

    /// Runs a command on an agent: returns its output.
    ///
    /// # Errors
    /// When the login or the command failed, or takes longer than 30 s.
    pub(super) async fn run(&self, host: &str, port: u16, command: &str) -> Result<String> {
        let line = self.command_line(host, port);
        let mut login = Command::new(&line[0]);
        tokio::time::timeout(Duration::from_secs(30), run(login.args(&line[1..]).arg(command)))
            .await
            .with_context(|| format!("ssh to {host}:{port} took longer than 30 s"))?
    }
}

async fn run(command: &mut Command) -> Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.with_context(|| name.clone())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {} ({})", error.trim(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
