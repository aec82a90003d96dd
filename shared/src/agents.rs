//! An agent's address, and the notices about it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::arn::{Arn, TaskArn, cluster_name};
use crate::aws::ec2::Addresses;
use crate::aws::ecs::{Container, NetworkBinding, NetworkInterface, Task, port_range};
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
    /// SSH port.
    pub port: u16,
}

/// Where the *named* container of a task listens for SSH: the task's own network interface with awsvpc, the host port
/// on the container instance otherwise.
///
/// # Errors
/// When the address is not known yet, or never will be.
pub async fn endpoint(
    memory: &Memory,
    cloud: &Cloud,
    template: &Template,
    container: &str,
    task: &Task,
) -> Result<Endpoint, Fault> {
    let described = task.container(container).ok_or_else(|| {
        Fault::permanent(format!(
            "the task has no container {container}; correct `container` of template {}",
            template.name
        ))
    })?;
    if let Some(private) = own_addresses(task, described) {
        let addresses = match template.ssh.address {
            Address::Private => private,
            Address::Public => public_addresses(cloud, task).await?,
        };
        let host = addresses.host(template.ssh.address).ok_or_else(|| {
            Fault::not_yet("the task has no public address (yet): set network.assignPublicIp, or ssh.address: private")
        })?;
        return Ok(Endpoint { host, port: template.ssh.port });
    }
    let Some(instance) = &task.container_instance_arn else {
        return Err(Fault::not_yet("the task has neither a network interface nor a container instance yet"));
    };
    if template.is_external() {
        return Err(Fault::permanent(
            "an external instance has no address in EC2: use `connect: inbound` for launch type external",
        ));
    }
    let mut ports = HostPorts::bound(described, template.ssh.port);
    if ports == HostPorts::default() {
        ports = mapped_port(memory, cloud, template, container, task).await?;
    }
    let addresses = match template.ssh.address {
        Address::Private => memory.private_addresses(cloud, instance).await?,
        Address::Public => memory.addresses_now(cloud, instance).await?,
    };
    ports.on(&addresses, template.ssh.address).ok_or_else(|| {
        let kind = if template.ssh.address == Address::Private { "private" } else { "public" };
        Fault::not_yet(format!("container instance {instance} has no {kind} address (yet)"))
    })
}

/// The addresses of a task's own network interface; none without one.
fn own_addresses(task: &Task, container: &Container) -> Option<Addresses> {
    let first =
        |of: fn(&NetworkInterface) -> Option<&String>| container.network_interfaces.iter().find_map(of).cloned();
    let addresses = Addresses {
        private: first(|interface| interface.private_ipv4_address.as_ref())
            .or_else(|| task.interface_detail("privateIPv4Address").map(str::to_owned)),
        ipv6: first(|interface| interface.ipv6_address.as_ref()),
        public: None,
    };
    addresses.host(Address::Private).is_some().then_some(addresses)
}

async fn public_addresses(cloud: &Cloud, task: &Task) -> Result<Addresses, Fault> {
    let interface = task
        .interface_detail("networkInterfaceId")
        .ok_or_else(|| Fault::not_yet("the task's network interface is not known yet"))?;
    cloud.ec2.interface(interface).await
}

/// The ports of a container instance that lead to one port of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct HostPorts {
    ipv4: Option<u16>,
    /// Docker may give it another one (moby 42288).
    ipv6: Option<u16>,
}

impl HostPorts {
    /// The same port on any address.
    fn any(port: u16) -> Self {
        Self { ipv4: Some(port), ipv6: Some(port) }
    }

    /// The bindings of a container's port, in any order.
    fn bound(container: &Container, port: u16) -> Self {
        let find = |is_ipv6: bool| {
            let of_kind = container.network_bindings.iter().filter(|binding| {
                binding.bind_ip.as_deref().is_some_and(|ip| ip.contains(':')) == is_ipv6
                    && binding.protocol.as_deref() != Some("udp")
            });
            of_kind.into_iter().find_map(|binding| host_port(binding, port))
        };
        Self { ipv4: find(false), ipv6: find(true) }
    }

    /// IPv4 before IPv6. A port that is bound to `::` alone is reached over IPv4 where there is no IPv6.
    fn on(self, addresses: &Addresses, kind: Address) -> Option<Endpoint> {
        let ipv4 = match kind {
            Address::Private => &addresses.private,
            Address::Public => &addresses.public,
        };
        let ways = [(ipv4, self.ipv4), (&addresses.ipv6, self.ipv6), (ipv4, self.ipv6)];
        let (host, port) = ways.into_iter().find_map(|(host, port)| host.clone().zip(port))?;
        Some(Endpoint { host, port })
    }
}

/// The host port of a binding, or of one of its range.
fn host_port(binding: &NetworkBinding, port: u16) -> Option<u16> {
    let found = match (&binding.container_port_range, &binding.host_port_range) {
        (Some(inside), Some(outside)) => {
            let (inside, outside) = (port_range(inside)?, port_range(outside)?);
            let offset = inside.contains(&port).then(|| port - inside.start())?;
            outside.start().checked_add(offset).filter(|port| outside.contains(port))
        }
        _ if binding.container_port == Some(i32::from(port)) => u16::try_from(binding.host_port?).ok(),
        _ => None,
    };
    found.filter(|port| *port > 0)
}

/// The host port where no binding is shown: in host mode none is needed (ECS developer guide, "host network mode"), and
/// a static one is known beforehand.
async fn mapped_port(
    memory: &Memory,
    cloud: &Cloud,
    template: &Template,
    container: &str,
    task: &Task,
) -> Result<HostPorts, Fault> {
    let port = template.ssh.port;
    let definition = task.task_definition_arn.as_deref().unwrap_or(&template.task_definition);
    let definition = memory.task_definition(cloud, definition).await?;
    let found = definition.containers.iter().find(|found| found.name == container);
    let fixed = found.and_then(|container| container.host_ports.get(&port));
    let is_mapped = found.is_some_and(|container| container.ports.contains(&i32::from(port)));
    match (definition.network_mode.as_str(), fixed) {
        ("host", _) => Ok(HostPorts::any(port)),
        ("awsvpc", _) => Err(Fault::not_yet("the task's own address does not show yet")),
        (_, Some(fixed)) => Ok(HostPorts::any(*fixed)),
        _ if is_mapped => Err(Fault::not_yet(format!("the host port of container {container} does not show yet"))),
        _ => Err(Fault::permanent(format!(
            "container {container} of {} maps no port {port}: add a port mapping with host port 0, or correct ssh.port",
            definition.arn
        ))),
    }
}

/// The agent that a notice is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub name: &'a AgentName,
    /// `None` if it is no longer configured.
    pub template: Option<&'a Template>,
    pub request_id: Option<&'a RequestId>,
    pub build: Option<&'a Build>,
    /// When Jenkins requested it.
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

    /// A notice about the agent, without its task.
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

    /// The same, with the details of its task.
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

/// The agent as a notice describes it.
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

/// The node to create, without environment and description. For a request with a webhook, its only label is its own
/// name: the build asks for it by name, and no other build takes it.
pub fn node(name: &AgentName, template: &Template, has_webhook: bool, launcher: Launcher) -> Node {
    Node {
        name: name.to_string(),
        description: String::new(),
        labels: if has_webhook { vec![name.to_string()] } else { template.labels.0.iter().map(quoted).collect() },
        workspace: template.workspace.clone(),
        executors: template.executors,
        environment: BTreeMap::new(),
        launcher,
    }
}

/// A label as it is written in a node's list of labels, which Jenkins splits at spaces outside quotes (`Label.parse`).
fn quoted(label: &String) -> String {
    if label.contains(char::is_whitespace) { format!("\"{label}\"") } else { label.clone() }
}

/// A node's description: its build, its cluster, and a link to its task in the AWS console, which also shows the logs.
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

    fn binding(ip: &str, inside: &str, outside: &str) -> NetworkBinding {
        let range = inside.contains('-');
        let text = |text: &str| range.then(|| text.to_owned());
        NetworkBinding {
            bind_ip: Some(ip.into()),
            container_port: inside.parse().ok(),
            host_port: outside.parse().ok(),
            container_port_range: text(inside),
            host_port_range: text(outside),
            protocol: Some("tcp".into()),
        }
    }

    #[test]
    fn prefers_ipv4_whatever_the_order_of_bindings() {
        let (v4, v6) = (binding("0.0.0.0", "22", "49153"), binding("::", "22", "49154"));
        let udp = NetworkBinding { protocol: Some("udp".into()), ..binding("0.0.0.0", "22", "1") };
        let addresses = |v4: Option<&str>, v6: Option<&str>| Addresses {
            private: v4.map(Into::into),
            public: None,
            ipv6: v6.map(Into::into),
        };
        let at = |bindings: &[&NetworkBinding], addresses: Addresses| {
            let network_bindings = bindings.iter().copied().cloned().collect();
            let container = Container { network_bindings, ..Container::default() };
            let found = HostPorts::bound(&container, 22).on(&addresses, Address::Private);
            found.map(|endpoint| (endpoint.host, endpoint.port))
        };
        let (ip, ip6) = (Some("10.0.0.7"), Some("2001:db8::10"));
        for (bindings, (has4, has6), expected) in [
            (vec![&v6, &v4], (ip, None), Some(("10.0.0.7", 49153))),
            (vec![&v4, &v6], (ip, ip6), Some(("10.0.0.7", 49153))),
            (vec![&v6], (ip, None), Some(("10.0.0.7", 49154))),
            (vec![&v6], (ip, ip6), Some(("2001:db8::10", 49154))),
            (vec![&v6, &v4], (None, ip6), Some(("2001:db8::10", 49154))),
            (vec![&udp], (ip, ip6), None),
            (vec![], (ip, ip6), None),
        ] {
            let expected = expected.map(|(host, port): (&str, u16)| (host.to_owned(), port));
            assert_eq!(at(&bindings, addresses(has4, has6)), expected, "{bindings:?}");
        }
    }

    #[test]
    fn maps_a_port_of_a_range() {
        let range = binding("0.0.0.0", "20-25", "50000-50005");
        for (port, expected) in [(20, Some(50000)), (22, Some(50002)), (25, Some(50005)), (19, None), (26, None)] {
            assert_eq!(host_port(&range, port), expected, "{port}");
        }
        assert_eq!(host_port(&binding("0.0.0.0", "20-25", "50000-50001"), 22), None);
        assert_eq!(host_port(&binding("0.0.0.0", "22", "0"), 22), None);
    }

    #[test]
    fn a_description_names_the_cluster() {
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
