//! What is told of an agent: where it is, and the notice that says so.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::arn::{Arn, TaskArn, cluster_name};
use crate::aws::ecs::Task;
use crate::cloud::Cloud;
use crate::config::{self, Address, Connect, Template};
use crate::fault::Fault;
use crate::jenkins::{Launcher, Node};
use crate::memory::Memory;
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

/// Where the *named* container of a task listens for SSH: the task's own network interface with awsvpc, the host port
/// on the container instance otherwise.
///
/// # Errors
/// When that cannot be known, now or ever.
pub async fn endpoint(
    memory: &Memory,
    cloud: &Cloud,
    template: &Template,
    container: &str,
    task: &Task,
) -> Result<Endpoint, Fault> {
    let ssh = &template.ssh;
    let described = task.container(container).ok_or_else(|| {
        Fault::permanent(format!(
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
                    .ok_or_else(|| Fault::passing("the task's network interface is not known yet"))?;
                cloud.ec2.interface(interface).await?.public.ok_or_else(|| {
                    Fault::permanent(format!(
                        "network interface {interface} has no public address: set network.assignPublicIp, or ssh.address: private"
                    ))
                })?
            }
        };
        return Ok(Endpoint { host, port: ssh.port });
    }
    let Some(instance) = &task.container_instance_arn else {
        return Err(Fault::passing("the task has neither a network interface nor a container instance yet"));
    };
    if template.is_external() {
        return Err(Fault::permanent(
            "an external instance has no address in EC2: use `connect: inbound` for launch type external",
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
            match memory.task_definition(cloud, definition).await {
                Ok(definition) if definition.network_mode == "host" => ssh.port,
                Ok(definition) => {
                    return Err(Fault::permanent(format!(
                        "container {container} of {} maps no port {}: add a port mapping with host port 0, or mend ssh.port",
                        definition.arn, ssh.port
                    )));
                }
                Err(fault) => return Err(fault),
            }
        }
    };
    let addresses = memory.instance_addresses(cloud, instance).await?;
    let (host, kind) = match ssh.address {
        Address::Private => (addresses.private, "private"),
        Address::Public => (addresses.public, "public"),
    };
    let host = host.ok_or_else(|| Fault::permanent(format!("container instance {instance} has no {kind} address")))?;
    Ok(Endpoint { host, port })
}

/// An agent that a notice is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub name: &'a AgentName,
    /// None where it is no longer configured.
    pub template: Option<&'a Template>,
    pub request_id: Option<&'a RequestId>,
    pub build: Option<&'a Build>,
    /// When Jenkins asked for it.
    pub requested_at: Option<Timestamp>,
}

impl<'a> Subject<'a> {
    /// The agent of a task.
    pub fn of_record(name: &'a AgentName, template: Option<&'a Template>, record: Option<&'a Record>) -> Self {
        Self {
            name,
            template,
            request_id: record.map(|record| &record.request_id),
            build: record.and_then(|record| record.build.as_ref()),
            requested_at: record.map(|record| record.requested_at),
        }
    }

    /// A notice about the agent, whatever its task is.
    pub fn notice(&self, kind: NoticeType, at: Timestamp) -> Notice {
        let mut notice = Notice::new(kind, self.name.as_str(), at);
        notice.request_id = self.request_id.cloned();
        notice.build = self.build.cloned();
        notice.agent = self.template.map(|template| agent(self.name, template, None));
        notice.timings = Some(Timings {
            requested_at: self.requested_at,
            total_ms: self.requested_at.map(|requested| ms(requested, at)),
            ..Timings::default()
        });
        notice
    }

    /// The same, with what is known of its task.
    pub fn notice_of_task(&self, kind: NoticeType, task: &Task, at: Timestamp) -> Notice {
        let mut notice = self.notice(kind, at);
        notice.task = Some(NoticeTask {
            arn: task.arn.clone(),
            cluster: task.cluster_arn.clone(),
            task_definition: task.task_definition_arn.clone(),
            container_instance: task.container_instance_arn.clone(),
            version: task.version,
        });
        if let Some(timings) = &mut notice.timings {
            timings.launched_at = task.created_at;
            timings.pull_started_at = task.pull_started_at;
            timings.pull_stopped_at = task.pull_stopped_at;
            timings.started_at = task.started_at;
        }
        notice
    }

    /// The notice of a ready agent.
    pub fn ready(&self, endpoint: Option<Endpoint>, task: &Task, at: Timestamp) -> Notice {
        let mut notice = self.notice_of_task(NoticeType::Ready, task, at);
        notice.agent = self.template.map(|template| agent(self.name, template, endpoint));
        notice
    }
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
pub fn describe(
    request_id: &RequestId,
    build: Option<&Build>,
    cloud: &config::Cloud,
    task_arn: Option<&str>,
) -> String {
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
        if let Some((TaskArn { cluster, id }, parts)) = TaskArn::parse(arn).zip(Arn::parse(arn)) {
            text += &format!(
                ", logs: https://{region}.{console}/ecs/v2/clusters/{name}/tasks/{id}/logs?region={region}",
                region = cluster.region,
                console = parts.console(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_which_cluster_it_is_of() {
        let yaml = "{jenkins: {url: 'https://a/'}, clouds: [{name: c, region: eu-west-1, cluster: ci, templates: []}]}";
        let (config, _) = config::from_documents(&[config::Document::only(yaml)]);
        let cloud = config.expect("a configuration").clouds.remove(0);
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
