//! The simulated ECS, EC2 and Auto Scaling of the demo, in real time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::emulator::{ACCOUNT, REGION};
use super::imported::{DEFAULT, Imported};
use crate::aws::Aws;
use crate::http::{Server, lock, serve_aws};

/// The cluster of the demo.
pub(super) const CLUSTER: &str = "default";
/// Its Auto Scaling group.
pub(super) const GROUP: &str = "jenkins-ecs";

/// The simulator behind its port.
pub(super) struct World {
    aws: Arc<Mutex<Aws>>,
    server: Server,
}

impl World {
    /// Starts it on a free port: the demo's cluster, a group with two instances, and two task definitions; or the
    /// resources of an imported configuration.
    ///
    /// # Errors
    /// When no port is available, or a task definition is refused.
    pub(super) async fn start(imported: Option<&Imported>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut aws = Aws::new(REGION, ACCOUNT, &endpoint);
        let now = Timestamp::now();
        let settings = aws.ecs.settings();
        // Faster than AWS, so that a demo takes seconds; nothing depends on it.
        settings.boot = Duration::from_secs(2);
        settings.register = Duration::from_millis(500);
        settings.provision = Duration::from_millis(300);
        settings.pull = Duration::from_millis(200);
        settings.start = Duration::from_millis(100);
        settings.stopping = Duration::from_millis(50);
        settings.stop = Duration::from_millis(200);
        let own = (vec![CLUSTER], vec![(GROUP, CLUSTER)], definitions().to_vec());
        let (clusters, groups, definitions) = imported.map_or(own, |imported| {
            let groups = imported.groups.iter().map(|(group, cluster)| (group.as_str(), cluster.as_str()));
            (imported.clusters.iter().map(String::as_str).collect(), groups.collect(), imported.definitions.clone())
        });
        for cluster in clusters {
            aws.ecs.create_cluster(cluster);
            aws.ecs.set_default_strategy(cluster, &[json!({"capacityProvider": "FARGATE", "weight": 1})]);
        }
        for (group, cluster) in groups {
            aws.ecs.create_group(group, cluster, (0, 4), (8192, 16384), now);
            let providers = imported.into_iter().flat_map(|imported| &imported.providers);
            for (provider, _) in providers.filter(|(_, of)| of == cluster) {
                aws.ecs.create_capacity_provider(provider, group, true);
                if provider == DEFAULT {
                    aws.ecs.set_default_strategy(cluster, &[json!({"capacityProvider": provider, "weight": 1})]);
                }
            }
            // Afterwards: instances belong to the capacity providers that their group has when they register.
            aws.ecs.fill_group(group, 2, now);
        }
        for definition in definitions {
            aws.ecs
                .register_definition(&definition)
                .map_err(|error| anyhow!("register {}: {}", definition["family"], error.message))?;
        }
        let aws = Arc::new(Mutex::new(aws));
        let server = serve_aws(aws.clone(), listener).context("serve the simulator")?;
        Ok(Self { aws, server })
    }

    /// Its address.
    pub(super) fn endpoint(&self) -> String {
        self.server.url()
    }

    /// Processes everything that is due, and returns its events.
    pub(super) fn advance(&self) -> Vec<Value> {
        let mut aws = lock(&self.aws);
        let events = aws.advance(Timestamp::now());
        // Instances get loopback addresses, so that an sshd can answer on the host port that ECS gave; most likely not
        // those of another run.
        let network = 1 + std::process::id() % 250;
        let outside: Vec<_> = aws
            .ecs
            .instances()
            .filter_map(|instance| {
                let (_, host) = instance.private_address.strip_prefix("10.")?.split_once('.')?;
                Some((instance.arn.clone(), format!("127.{network}.{host}")))
            })
            .collect();
        for (arn, address) in outside {
            if let Some(instance) = aws.ecs.instance_mut(&arn) {
                instance.private_address = address;
            }
        }
        events
    }

    /// The address of a container instance.
    pub(super) fn address_of(&self, instance: &str) -> Option<IpAddr> {
        let aws = lock(&self.aws);
        aws.ecs.instances().find(|found| found.arn == instance)?.private_address.parse().ok()
    }

    /// The number of tasks that have not stopped.
    pub(super) fn living_tasks(&self) -> usize {
        lock(&self.aws).ecs.tasks().filter(|task| task.last_status != "STOPPED").count()
    }

    /// Tasks that have not stopped, and container instances, for the page.
    pub(super) fn snapshot(&self) -> (Vec<Value>, Vec<Value>) {
        let aws = lock(&self.aws);
        let id = |arn: &str| arn.rsplit('/').next().unwrap_or_default().to_owned();
        let tasks = aws.ecs.tasks().filter(|task| task.last_status != "STOPPED").map(|task| {
            json!({
                "agent": task.started_by, "status": task.last_status.as_str(), "launch": task.launch_type,
                "instance": task.instance.as_deref().map(id),
            })
        });
        let instances = aws.ecs.instances().map(|instance| {
            json!({
                "id": id(&instance.arn), "status": instance.status.as_str(), "tasks": instance.tasks.len(),
                "cpu": [instance.total.0 - instance.free.0, instance.total.0],
                "memory": [instance.total.1 - instance.free.1, instance.total.1],
            })
        });
        (tasks.collect(), instances.collect())
    }

    /// The number of calls of each action.
    pub(super) fn calls(&self) -> BTreeMap<String, usize> {
        let mut calls = BTreeMap::new();
        for call in &lock(&self.aws).journal {
            *calls.entry(format!("{}:{}", call.service, call.action)).or_default() += 1;
        }
        calls
    }
}

/// One with a sidecar first and a dynamic host port, one for Fargate.
fn definitions() -> [Value; 2] {
    [
        json!({
            "family": "jenkins-maven",
            "networkMode": "bridge",
            "containerDefinitions": [
                {"name": "sidecar", "image": "sidecar", "cpu": 64, "memory": 128, "essential": false,
                 "portMappings": [{"containerPort": 9100, "hostPort": 0}]},
                {"name": "agent", "image": "jenkins/ssh-agent", "cpu": 960, "memory": 1920, "essential": true,
                 "portMappings": [{"containerPort": 22, "hostPort": 0}]},
            ],
        }),
        json!({
            "family": "jenkins-node",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "1024",
            "memory": "2048",
            "containerDefinitions": [{"name": "agent", "image": "jenkins/inbound-agent", "essential": true}],
        }),
    ]
}
