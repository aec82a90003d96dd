//! What is told of an agent: where it is, and the notice that says so.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::app::{App, CloudRef, ClusterArn};
use crate::aws::ecs::Task;
use crate::aws::{ApiFault, Class};
use crate::config::{Address, Cloud, Connect, Template};
use crate::jenkins::{Launcher, Node};
use crate::message::{Agent, Build, Notice, NoticeType, Record, RequestId, Task as NoticeTask, Timings};
use crate::name::AgentName;

/// Where Jenkins logs in to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An IP address.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// Why there is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoEndpoint {
    /// AWS could not be asked, or does not know yet.
    Retry(String),
    /// There never will be one: what to mend.
    Never(String),
}

impl From<ApiFault> for NoEndpoint {
    fn from(fault: ApiFault) -> Self {
        match fault.class() {
            Class::Permanent => Self::Never(fault.to_string()),
            Class::NoRoom | Class::Retry => Self::Retry(fault.to_string()),
        }
    }
}

/// Where the *named* container of a task listens for SSH: the task's own network interface with awsvpc, the host port
/// on the container instance otherwise.
///
/// # Errors
/// When that cannot be known, now or ever.
pub async fn endpoint(
    app: &App,
    cloud: CloudRef<'_>,
    template: &Template,
    container: &str,
    task: &Task,
) -> Result<Endpoint, NoEndpoint> {
    let ssh = &template.ssh;
    let described = task.container(container).ok_or_else(|| {
        NoEndpoint::Never(format!(
            "the task has no container {container}; mend `container` of template {}",
            template.name
        ))
    })?;
    let own = described
        .network_interfaces
        .iter()
        .find_map(|interface| interface.private_ipv4_address.as_deref())
        .or_else(|| task.interface_detail("privateIPv4Address"));
    if let Some(private) = own {
        let host = match ssh.address {
            Address::Private => private.to_owned(),
            Address::Public => {
                let interface = task
                    .interface_detail("networkInterfaceId")
                    .ok_or_else(|| NoEndpoint::Retry("the task's network interface is not known yet".into()))?;
                cloud.clients.ec2.interface(interface).await?.public.ok_or_else(|| {
                    NoEndpoint::Never(format!(
                        "network interface {interface} has no public address: set network.assignPublicIp, or ssh.address: private"
                    ))
                })?
            }
        };
        return Ok(Endpoint { host, port: ssh.port });
    }
    let Some(instance) = &task.container_instance_arn else {
        return Err(NoEndpoint::Retry("the task has neither a network interface nor a container instance yet".into()));
    };
    if template.is_external() {
        return Err(NoEndpoint::Never(
            "an external instance has no address in EC2: use `connect: inbound` for launch type external".into(),
        ));
    }
    let binding = described.network_bindings.iter().find(|binding| {
        binding.container_port == Some(i32::from(ssh.port)) && binding.protocol.as_deref() != Some("udp")
    });
    let port = match binding.and_then(|binding| binding.host_port).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port > 0 => port,
        _ => {
            // In host mode a port needs no mapping (ECS developer guide, "host network mode").
            let definition = task.task_definition_arn.as_deref().unwrap_or(&template.task_definition);
            match app.task_definition(cloud, definition).await {
                Ok(definition) if definition.network_mode == "host" => ssh.port,
                Ok(definition) => {
                    return Err(NoEndpoint::Never(format!(
                        "container {container} of {} maps no port {}: add a port mapping with host port 0, or mend ssh.port",
                        definition.arn, ssh.port
                    )));
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    };
    let addresses = app.instance_addresses(cloud, instance).await?;
    let (host, kind) = match ssh.address {
        Address::Private => (addresses.private, "private"),
        Address::Public => (addresses.public, "public"),
    };
    let host = host.ok_or_else(|| NoEndpoint::Never(format!("container instance {instance} has no {kind} address")))?;
    Ok(Endpoint { host, port })
}

/// A notice about an agent that has no task (yet).
pub fn notice_without_task(
    kind: NoticeType,
    name: &AgentName,
    template: Option<&Template>,
    request_id: &RequestId,
    build: Option<Build>,
    requested_at: Timestamp,
    at: Timestamp,
) -> Notice {
    let mut notice = Notice::new(kind, name.as_str(), at);
    notice.request_id = Some(request_id.clone());
    notice.build = build;
    notice.agent = template.map(|template| agent(name, template, None));
    notice.timings =
        Some(Timings { requested_at: Some(requested_at), total_ms: Some(ms(requested_at, at)), ..Timings::default() });
    notice
}

/// A notice about an agent, with all that is known of it.
pub fn notice(
    kind: NoticeType,
    name: &AgentName,
    template: Option<&Template>,
    endpoint: Option<Endpoint>,
    task: &Task,
    record: Option<&Record>,
    at: Timestamp,
) -> Notice {
    let requested_at = record.map(|record| record.requested_at);
    let mut notice = Notice::new(kind, name.as_str(), at);
    notice.request_id = record.map(|record| record.request_id.clone());
    notice.build = record.and_then(|record| record.build.clone());
    notice.agent = template.map(|template| agent(name, template, endpoint));
    notice.task = Some(NoticeTask {
        arn: task.arn.clone(),
        cluster: task.cluster_arn.clone(),
        task_definition: task.task_definition_arn.clone(),
        container_instance: task.container_instance_arn.clone(),
        version: task.version,
    });
    notice.timings = Some(Timings {
        requested_at,
        launched_at: task.created_at,
        pull_started_at: task.pull_started_at,
        pull_stopped_at: task.pull_stopped_at,
        started_at: task.started_at,
        total_ms: requested_at.map(|requested| ms(requested, at)),
    });
    notice
}

fn ms(from: Timestamp, to: Timestamp) -> i64 {
    i64::try_from(to.duration_since(from).as_millis()).unwrap_or(i64::MAX)
}

/// What a notice says of an agent.
pub fn agent(name: &AgentName, template: &Template, endpoint: Option<Endpoint>) -> Agent {
    Agent {
        name: name.clone(),
        labels: template.labels.0.clone(),
        connect: template.connect,
        port: endpoint.as_ref().map(|endpoint| endpoint.port),
        host: endpoint.map(|endpoint| endpoint.host),
        workspace: template.workspace.clone(),
        executors: template.executors,
        credentials_id: template.ssh.credentials_id.clone().filter(|_| template.connect == Connect::Ssh),
    }
}

/// A node as Jenkins is to have it. A request with a webhook gets one labelled with its own name alone: its build asks
/// for it by name, and no other takes it.
pub fn node(
    name: &AgentName,
    template: &Template,
    has_webhook: bool,
    launcher: Launcher,
    environment: BTreeMap<String, String>,
    description: &str,
) -> Node {
    Node {
        name: name.to_string(),
        description: description.to_owned(),
        labels: if has_webhook { vec![name.to_string()] } else { template.labels.0.iter().map(quoted).collect() },
        workspace: template.workspace.clone(),
        executors: template.executors,
        environment,
        launcher,
    }
}

/// A label as it stands in a node's list of them, which Jenkins splits at spaces outside quotes (`Label.parse`).
fn quoted(label: &String) -> String {
    if label.contains(char::is_whitespace) { format!("\"{label}\"") } else { label.clone() }
}

/// What a node says of itself: its build, its cluster, and its task in the AWS console, where its logs are too.
pub fn describe(request_id: &RequestId, build: Option<&Build>, cloud: &Cloud, task_arn: Option<&str>) -> String {
    let mut text = format!("ECS agent of request {request_id}");
    if let Some(build) = build {
        text += &format!(" for {build}");
        if let Some(url) = &build.url {
            text += &format!(" ({url})");
        }
    }
    text += &format!("{IN_CLUSTER}{} of {}", cluster_name(&cloud.cluster), cloud.region);
    if let Some(arn) = task_arn {
        text += &format!(", task {arn}");
        let place = ClusterArn::of_resource(arn, "task").zip(arn.rsplit_once('/'));
        if let Some((cluster, (_, id))) = place {
            let console = match arn.split(':').nth(1) {
                Some("aws-cn") => "console.amazonaws.cn",
                Some("aws-us-gov") => "console.amazonaws-us-gov.com",
                _ => "console.aws.amazon.com",
            };
            text += &format!(
                ", logs: https://{region}.{console}/ecs/v2/clusters/{name}/tasks/{id}/logs?region={region}",
                region = cluster.region,
                name = cluster.name,
            );
        }
    }
    text
}

const IN_CLUSTER: &str = " in cluster ";

/// The cluster and its region that a node's description names.
pub fn described_cluster(description: &str) -> Option<(&str, &str)> {
    let (_, rest) = description.rsplit_once(IN_CLUSTER)?;
    rest.split(',').next()?.split_once(" of ")
}

/// The name in a cluster's ARN, or the name itself.
pub fn cluster_name(cluster: &str) -> &str {
    ClusterArn::parse(cluster).map_or(cluster, |arn| arn.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_which_cluster_it_is_of() {
        let yaml = "{jenkins: {url: 'https://a/'}, clouds: [{name: c, region: eu-west-1, cluster: ci, templates: []}]}";
        let (config, _) = crate::config::from_documents(&[crate::config::Document::only(yaml)]);
        let cloud: Cloud = config.expect("a configuration").clouds.remove(0);
        let id: RequestId = "a".parse().expect("an id");
        let build = Build { job: Some("in cluster x of y".into()), number: Some(1), url: None };
        for arn in [None, Some("arn:aws-cn:ecs:cn-north-1:123456789012:task/ci/0a1b")] {
            let text = describe(&id, Some(&build), &cloud, arn);
            assert_eq!(described_cluster(&text), Some(("ci", "eu-west-1")), "{text}");
            assert_eq!(text.contains("https://cn-north-1.console.amazonaws.cn/ecs"), arn.is_some(), "{text}");
        }
        assert_eq!(described_cluster("somebody's own"), None);
    }
}
