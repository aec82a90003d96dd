//! The stand-in Jenkins behind its port, and a way to wait for changes in it.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::body::Body;
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::http::{Server, lock, serve_on};
use crate::jenkins::{Jenkins, Launcher, Permission};

/// The user of the functions' API token.
pub(super) const USER: &str = "ecs-agents";
/// Their API token.
pub(super) const API_TOKEN: &str = "110123456789abcdef0123456789abcdef";
/// The `Authorization` that webhooks require.
pub(super) const AUTHORIZATION: &str = "demo-webhook-authorization";

/// The controller.
pub(super) struct Controller {
    jenkins: Arc<Mutex<Jenkins>>,
    changes: watch::Sender<()>,
    root: String,
    /// Receives every notice of every request.
    pub notices: String,
    _server: Server,
}

impl Controller {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When no port can be had.
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let root = format!("http://{}/jenkins/", listener.local_addr()?);
        let mut jenkins = Jenkins::new(&root);
        jenkins.add_user(USER, API_TOKEN, Permission::FOR_AGENTS);
        let notices = jenkins.add_endpoint("ecs-agents/notices", Some(AUTHORIZATION));
        let jenkins = Arc::new(Mutex::new(jenkins));
        let changes = watch::Sender::new(());
        let (answering, changed) = (jenkins.clone(), changes.clone());
        let server = serve_on(listener, move |request| {
            let response = lock(&answering).handle(request, Timestamp::now());
            changed.send_replace(());
            async move { response.map(Body::from) }
        })?;
        Ok(Self { jenkins, changes, root, notices, _server: server })
    }

    /// Its root URL, with a slash at its end.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Changes it, and wakes everyone who waits.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Jenkins) -> T) -> T {
        let result = work(&mut lock(&self.jenkins));
        self.changes.send_replace(());
        result
    }

    /// Reads it, without changes that others wait for.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Jenkins) -> T) -> T {
        look(&lock(&self.jenkins))
    }

    /// Waits until `look` finds something.
    pub(super) async fn find<T>(&self, mut look: impl FnMut(&mut Jenkins) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(found) = look(&mut lock(&self.jenkins)) {
                return found;
            }
            // The sender lives as long as `self`.
            changes.changed().await.ok();
        }
    }

    /// Waits for a post to a webhook of webhook-step.
    pub(super) async fn notice(&self, url: &str) -> Value {
        let arrival = self.find(|jenkins| jenkins.wait_for_webhook(url)).await;
        serde_json::from_slice(&arrival.body).unwrap_or_default()
    }

    /// Waits for a notice of this type about this request, at the webhook that receives all notices.
    pub(super) async fn notice_of(&self, request: &str, kind: &str) {
        let mut seen = 0;
        self.find(|jenkins| {
            let arrivals = &jenkins.arrivals()[seen..];
            seen += arrivals.len();
            arrivals.iter().filter(|arrival| self.notices.ends_with(&arrival.path)).find_map(|arrival| {
                let notice: Value = serde_json::from_slice(&arrival.body).ok()?;
                (notice["requestId"] == request && notice["type"] == kind).then_some(())
            })
        })
        .await;
    }

    /// The address that the SSH launcher of a node would log in to, once the node exists.
    pub(super) async fn ssh_launcher(&self, node: &str) -> (String, u16) {
        self.find(|jenkins| match &jenkins.node(node)?.launcher {
            Launcher::Ssh(launcher) => Some((launcher.host.clone()?, launcher.port.try_into().ok()?)),
            Launcher::Inbound(_) => None,
        })
        .await
    }

    /// Waits until a node is gone.
    pub(super) async fn no_node(&self, name: &str) {
        self.find(|jenkins| jenkins.node(name).is_none().then_some(())).await;
    }
}
