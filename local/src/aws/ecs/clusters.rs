//! Clusters and their capacity providers.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::input::{client, includes_tags, invalid, short, strings, text};
use super::tags::{Tags, read_tags};
use super::{ApiError, Ecs, Status, tags};

/// A cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Cluster {
    /// Its associated capacity providers.
    pub providers: BTreeSet<String>,
    /// The strategy of RunTask calls without a launch type and a strategy.
    pub default_strategy: Vec<Value>,
    pub tags: Tags,
}

/// A capacity provider with the instances of a group.
#[derive(Debug, Clone)]
pub(super) struct CapacityProvider {
    pub group: String,
    /// Whether tasks may wait in PROVISIONING while ECS raises the group.
    pub managed_scaling: bool,
    /// Whether a raise is already pending.
    pub scaling: bool,
}

impl Ecs {
    /// Creates a cluster; Fargate and Fargate Spot are associated with it.
    pub fn create_cluster(&mut self, name: &str) {
        let providers = ["FARGATE", "FARGATE_SPOT"].map(str::to_owned).into();
        self.clusters.insert(name.to_owned(), Cluster { providers, ..Cluster::default() });
    }

    /// Sets a cluster's default capacity provider strategy (API_PutClusterCapacityProviders).
    pub fn set_default_strategy(&mut self, cluster: &str, strategy: &[Value]) {
        if let Some(cluster) = self.clusters.get_mut(cluster) {
            cluster.default_strategy = strategy.to_vec();
        }
    }

    /// Creates a capacity provider of a group's instances and associates it with the group's cluster.
    pub fn create_capacity_provider(&mut self, name: &str, group: &str, managed_scaling: bool) {
        let Some(cluster) = self.groups.get(group).map(|group| group.cluster.clone()) else { return };
        if let Some(cluster) = self.clusters.get_mut(&cluster) {
            cluster.providers.insert(name.to_owned());
        }
        let provider = CapacityProvider { group: group.to_owned(), managed_scaling, scaling: false };
        self.providers.insert(name.to_owned(), provider);
    }

    pub(super) fn cluster_arn(&self, name: &str) -> String {
        self.arn(&format!("cluster/{name}"))
    }

    /// The name of the cluster in a call; the default one if it names none (API_RunTask).
    pub(super) fn cluster(&self, input: &Value) -> Result<String, ApiError> {
        let given = text(input, "cluster").unwrap_or("default");
        let name = short(given);
        let known = self.clusters.contains_key(name) && (!given.starts_with("arn:") || given == self.cluster_arn(name));
        if known { Ok(name.to_owned()) } else { Err(ApiError::new("ClusterNotFoundException", "Cluster not found.")) }
    }

    /// API_CreateCluster: up to 255 letters, numbers, underscores and hyphens.
    pub(super) fn create_cluster_call(&mut self, input: &Value) -> Result<Value, ApiError> {
        let name = text(input, "clusterName").unwrap_or("default");
        if name.len() > 255 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            return Err(invalid("Invalid cluster name."));
        }
        let providers: BTreeSet<String> = strings(&input["capacityProviders"]).map(str::to_owned).collect();
        let known = |name: &String| name.starts_with("FARGATE") || self.providers.contains_key(name);
        if let Some(unknown) = providers.iter().find(|name| !known(name)) {
            return Err(client(format!("The specified capacity provider {unknown} was not found.")));
        }
        let tags = read_tags(&input["tags"])?;
        self.clusters.entry(name.to_owned()).or_insert(Cluster { providers, tags, ..Cluster::default() });
        Ok(json!({"cluster": self.describe_cluster(name, true)}))
    }

    /// API_DescribeClusters: up to 100; an unknown cluster is a failure MISSING.
    pub(super) fn describe_clusters(&self, input: &Value) -> Result<Value, ApiError> {
        let names: Vec<&str> = match strings(&input["clusters"]).collect::<Vec<_>>() {
            none if none.is_empty() => vec!["default"],
            names => names,
        };
        if names.len() > 100 {
            return Err(invalid("Clusters cannot have more than 100 elements."));
        }
        let with_tags = includes_tags(input, &["ATTACHMENTS", "CONFIGURATIONS", "SETTINGS", "STATISTICS"])?;
        let (known, unknown): (Vec<_>, Vec<_>) =
            names.into_iter().map(short).partition(|name| self.clusters.contains_key(*name));
        let clusters: Vec<_> = known.into_iter().map(|name| self.describe_cluster(name, with_tags)).collect();
        let failures: Vec<_> =
            unknown.into_iter().map(|name| json!({"arn": self.cluster_arn(name), "reason": "MISSING"})).collect();
        Ok(json!({"clusters": clusters, "failures": failures}))
    }

    fn describe_cluster(&self, name: &str, with_tags: bool) -> Value {
        let here = |status: Status| {
            let tasks = self.active.iter().filter_map(|arn| self.tasks.get(arn));
            tasks.filter(|task| task.cluster == name && task.last_status == status).count()
        };
        let cluster = self.clusters.get(name).cloned().unwrap_or_default();
        let mut described = json!({
            "clusterName": name,
            "clusterArn": self.cluster_arn(name),
            "status": "ACTIVE",
            "registeredContainerInstancesCount": self.instances.values().filter(|instance| instance.cluster == name).count(),
            "runningTasksCount": here(Status::Running),
            "pendingTasksCount": here(Status::Pending),
            "activeServicesCount": 0,
            "capacityProviders": cluster.providers,
            "defaultCapacityProviderStrategy": cluster.default_strategy,
            "settings": [],
            "statistics": [],
        });
        if with_tags {
            described["tags"] = tags::describe(&cluster.tags);
        }
        described
    }
}
