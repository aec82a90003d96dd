//! The clouds of the configuration, with the clients that reach them.

use std::collections::HashSet;

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_types::SdkConfig;
use aws_types::region::Region;

use crate::arn::{ClusterArn, TaskArn};
use crate::aws::Lazy;
use crate::aws::autoscaling::{Group, Groups};
use crate::aws::credentials::AssumedRole;
use crate::aws::ec2;
use crate::aws::ecs::Cluster;
use crate::config::{self, Template};
use crate::fault::Fault;
use crate::http::Http;

/// A cluster of the configuration, its Auto Scaling group and its templates.
#[derive(Debug)]
pub struct Cloud {
    /// Its index in the configuration.
    pub index: usize,
    pub config: config::Cloud,
    pub cluster: Cluster,
    pub groups: Groups,
    pub ec2: ec2::Client,
}

impl Cloud {
    /// Builds the clients for the cloud's region and role; makes no call.
    fn new(sdk: &SdkConfig, http: Http, index: usize, config: config::Cloud) -> Self {
        let mut regional = sdk.to_builder().region(Region::new(config.region.clone())).build();
        if let Some(role) = &config.assume_role_arn {
            let role = AssumedRole::new(role, Lazy::new(&regional, aws_sdk_sts::Client::new));
            regional = regional.into_builder().credentials_provider(SharedCredentialsProvider::new(role)).build();
        }
        Self {
            index,
            cluster: Cluster::new(Lazy::new(&regional, aws_sdk_ecs::Client::new), &config.cluster),
            groups: Groups::new(Lazy::new(&regional, aws_sdk_autoscaling::Client::new)),
            ec2: ec2::Client::new(&regional, http),
            config,
        }
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Clouds with the same key share a cluster.
    pub fn cluster_key(&self) -> (&str, &str, Option<&str>) {
        let config = &self.config;
        (&config.region, &config.cluster, config.assume_role_arn.as_deref())
    }

    /// Raises the group to a desired capacity, for this many agents that wait.
    ///
    /// # Errors
    /// When the call failed.
    pub async fn raise(&self, group: &Group, desired: u32, agents: usize) -> Result<(), Fault> {
        self.groups.set_desired(&group.name, desired).await?;
        tracing::info!(
            cloud = self.name(),
            group = group.name,
            desired_before = group.desired,
            desired,
            maximum = group.maximum,
            agents,
            metric.capacity_raised = desired.saturating_sub(group.desired),
            "group raised"
        );
        Ok(())
    }

    pub fn template(&self, name: &str) -> Option<&Template> {
        self.config.template(name)
    }
}

/// All clouds, in the order of the configuration.
#[derive(Debug)]
pub struct Clouds(Vec<Cloud>);

impl Clouds {
    pub fn new(sdk: &SdkConfig, http: &Http, configs: &[config::Cloud]) -> Self {
        let clouds = configs.iter().enumerate();
        Self(clouds.map(|(index, config)| Cloud::new(sdk, http.clone(), index, config.clone())).collect())
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Cloud> {
        self.0.iter()
    }

    /// The cloud with this index in the configuration.
    pub fn at(&self, index: usize) -> &Cloud {
        &self.0[index]
    }

    pub fn named(&self, name: &str) -> Option<&Cloud> {
        self.iter().find(|cloud| cloud.name() == name)
    }

    /// One cloud for each cluster.
    pub fn distinct_clusters(&self) -> impl Iterator<Item = &Cloud> {
        let mut seen = HashSet::new();
        self.iter().filter(move |cloud| seen.insert(cloud.cluster_key()))
    }

    /// The clouds of a cluster. Where clouds of several accounts have clusters of the same name in one region, those
    /// that assume a role in this account come before those that assume none.
    pub fn of_cluster(&self, cluster: ClusterArn<'_>) -> Vec<&Cloud> {
        let mut clouds: Vec<_> = self.iter().filter(|cloud| cluster.is_of(&cloud.config)).collect();
        let assumes = |cloud: &&Cloud| cloud.config.assume_role_arn.is_some();
        if clouds.iter().any(assumes) {
            clouds.retain(assumes);
        }
        clouds
    }

    /// The cloud of a task, by its cluster's ARN or its own. If several share the cluster, the one that has this
    /// template, else the first.
    pub fn of_task(&self, cluster_arn: &str, task_arn: &str, template: &str) -> Option<&Cloud> {
        let of_task = || Some(TaskArn::parse(task_arn)?.cluster);
        let clouds = self.of_cluster(ClusterArn::parse(cluster_arn).or_else(of_task)?);
        clouds.iter().find(|cloud| cloud.template(template).is_some()).or(clouds.first()).copied()
    }
}
