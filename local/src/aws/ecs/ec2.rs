//! EC2 instances, and EC2's read calls about them and about tasks' network interfaces.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::settings::Addressing;
use super::{ApiError, Ecs};
use crate::aws::escape;

/// The state of an EC2 instance, with the code that EC2 gives it (API_InstanceState).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Pending = 0,
    Running = 16,
    ShuttingDown = 32,
    Terminated = 48,
    Stopped = 80,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopped => "stopped",
        }
    }
}

/// An EC2 instance.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub kind: String,
    pub zone: String,
    /// Empty if it has only IPv6.
    pub private_address: String,
    pub ipv6_address: Option<String>,
    pub addressing: Addressing,
    pub public_address: Option<String>,
    pub state: State,
    /// Its state reason: `Server.SpotInstanceTermination`.
    pub state_reason: Option<&'static str>,
    pub spot: bool,
    pub launched_at: Timestamp,
    pub tags: BTreeMap<String, String>,
    /// The Auto Scaling group that it is in.
    pub group: Option<String>,
}

impl Ecs {
    /// The EC2 instance of this id; created as one that has always existed if it is missing.
    pub(super) fn machine(&mut self, id: &str, now: Timestamp) -> &Machine {
        if !self.machines.contains_key(id) {
            let machine = self.new_machine(now);
            self.machines.insert(id.to_owned(), machine);
        }
        &self.machines[id]
    }

    /// A running instance in no group.
    pub(super) fn new_machine(&mut self, now: Timestamp) -> Machine {
        let number = self.next();
        let [a, b] = self.settings.instance_network;
        let addressing = self.settings.instance_addresses;
        let host = format!("{}.{}", number / 250 % 250, number % 250 + 1);
        Machine {
            kind: "m6i.large".to_owned(),
            zone: self.zone(number),
            private_address: if addressing.has_v4() { format!("{a}.{b}.{host}") } else { String::new() },
            ipv6_address: addressing.has_v6().then(|| format!("2001:db8:{a:x}:{b:x}::{number:x}")),
            addressing,
            public_address: addressing.has_v4().then(|| format!("54.{b}.{host}")),
            state: State::Running,
            state_reason: None,
            spot: false,
            launched_at: now,
            tags: BTreeMap::new(),
            group: None,
        }
    }

    /// Sets a tag of an EC2 instance.
    pub fn tag_machine(&mut self, ec2_id: &str, key: &str, value: &str) {
        if let Some(machine) = self.machines.get_mut(ec2_id) {
            machine.tags.insert(key.to_owned(), value.to_owned());
        }
    }

    /// Answers a read call of EC2's query API.
    ///
    /// # Errors
    /// As EC2 answers them.
    pub fn ec2(&mut self, action: &str, form: &BTreeMap<String, String>, now: Timestamp) -> Result<String, ApiError> {
        self.advance(now);
        let members =
            |name: &str| -> Vec<&String> { (1..).map_while(|index| form.get(&format!("{name}.{index}"))).collect() };
        let content = match action {
            "DescribeInstances" if form.keys().any(|key| key.starts_with("Filter.")) => {
                self.filter_machines(form.get("Filter.1.Name").map(String::as_str), &members("Filter.1.Value"))?
            }
            "DescribeInstances" => self.describe_machines(&members("InstanceId"))?,
            "DescribeNetworkInterfaces" => self.describe_interfaces(&members("NetworkInterfaceId"))?,
            _ => {
                return Err(ApiError::new(
                    "InvalidAction",
                    format!("The action {action} is not valid for this web service."),
                ));
            }
        };
        Ok(format!(
            "<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
             <requestId>00000000-0000-4000-8000-000000000000</requestId>{content}</{action}Response>"
        ))
    }

    /// API_DescribeInstances, by id or all of them; one unknown id fails the call.
    fn describe_machines(&self, ids: &[&String]) -> Result<String, ApiError> {
        let ids: Vec<&String> = if ids.is_empty() { self.machines.keys().collect() } else { ids.to_vec() };
        let mut items = String::new();
        for id in ids {
            let Some(machine) = self.machines.get(id) else {
                return Err(ApiError::new(
                    "InvalidInstanceID.NotFound",
                    format!("The instance ID '{id}' does not exist"),
                ));
            };
            items += &format!(
                "<item><reservationId>r-0{}</reservationId><ownerId>{}</ownerId><groupSet/><instancesSet>{}</instancesSet></item>",
                id.trim_start_matches("i-0"),
                self.account,
                self.describe_machine(id, machine)
            );
        }
        Ok(format!("<reservationSet>{items}</reservationSet>"))
    }

    /// The same by a filter, which does not fail for ids that EC2 does not know, and accepts at most 200 values.
    fn filter_machines(&self, name: Option<&str>, ids: &[&String]) -> Result<String, ApiError> {
        if name != Some("instance-id") || ids.is_empty() || ids.len() > 200 {
            let message = format!("The filter {name:?} with {} values is invalid", ids.len());
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        let known: Vec<&String> = ids.iter().copied().filter(|id| self.machines.contains_key(*id)).collect();
        match known.is_empty() {
            true => Ok("<reservationSet/>".to_owned()),
            false => self.describe_machines(&known),
        }
    }

    fn describe_machine(&self, id: &str, machine: &Machine) -> String {
        // A terminated instance has no addresses. Changes that a test made to the container instance apply.
        let (private, v6, public) = match (machine.state, self.instance_of(id)) {
            (State::Terminated, _) => (None, None, None),
            (_, Some(of)) => (Some(&of.private_address), of.ipv6_address.as_ref(), of.public_address.as_ref()),
            (_, None) => {
                (Some(&machine.private_address), machine.ipv6_address.as_ref(), machine.public_address.as_ref())
            }
        };
        let element = |name: &str, text: Option<&String>| {
            text.filter(|text| !text.is_empty())
                .map(|text| format!("<{name}>{}</{name}>", escape(text)))
                .unwrap_or_default()
        };
        let reason = machine.state_reason.filter(|_| matches!(machine.state, State::ShuttingDown | State::Terminated));
        let reason = reason.map(|code| {
            let message = match code {
                "Server.SpotInstanceTermination" => "Spot instance termination",
                "Client.UserInitiatedShutdown" => "User initiated shutdown",
                _ => "Instance initiated shutdown",
            };
            format!("<stateReason><code>{code}</code><message>{code}: {message}</message></stateReason>")
        });
        let tags: String = machine
            .tags
            .iter()
            .map(|(key, value)| format!("<item><key>{}</key><value>{}</value></item>", escape(key), escape(value)))
            .collect();
        format!(
            "<item><instanceId>{id}</instanceId><imageId>ami-0a1b2c3d4e5f60718</imageId>\
             <instanceState><code>{}</code><name>{}</name></instanceState>\
             <instanceType>{}</instanceType><launchTime>{}</launchTime>\
             <placement><availabilityZone>{}</availabilityZone><tenancy>default</tenancy></placement>\
             <subnetId>subnet-1</subnetId><vpcId>vpc-1</vpcId>{}{}{}{}{}\
             <tagSet>{tags}</tagSet></item>",
            machine.state as u8,
            machine.state.as_str(),
            machine.kind,
            machine.launched_at,
            machine.zone,
            element("privateIpAddress", private),
            element("ipAddress", public),
            element("ipv6Address", v6),
            reason.unwrap_or_default(),
            if machine.spot { "<instanceLifecycle>spot</instanceLifecycle>" } else { "" },
        )
    }

    /// API_DescribeNetworkInterfaces, by id; one unknown id fails the call. An interface is deleted with its task.
    fn describe_interfaces(&self, ids: &[&String]) -> Result<String, ApiError> {
        let mut items = String::new();
        for id in ids {
            let task = self.interfaces.get(*id).and_then(|arn| self.tasks.get(arn));
            let interface =
                task.and_then(|task| task.interface.as_ref()).filter(|interface| interface.status == "ATTACHED");
            let Some(interface) = interface else {
                let message = format!("The networkInterface ID '{id}' does not exist");
                return Err(ApiError::new("InvalidNetworkInterfaceID.NotFound", message));
            };
            let association = interface.public_address.as_ref().map(|address| {
                format!("<association><publicIp>{address}</publicIp><ipOwnerId>amazon</ipOwnerId></association>")
            });
            let association = association.unwrap_or_default();
            let v4 = Some(&interface.private_address).filter(|address| !address.is_empty()).map(|address| {
                let address = format!("<privateIpAddress>{address}</privateIpAddress>");
                format!(
                    "{address}{association}<privateIpAddressesSet><item>{address}<primary>true</primary>{association}</item>\
                     </privateIpAddressesSet>"
                )
            });
            let v6 = interface.ipv6_address.as_ref().map(|address| {
                format!("<ipv6AddressesSet><item><ipv6Address>{address}</ipv6Address></item></ipv6AddressesSet>")
            });
            items += &format!(
                "<item><networkInterfaceId>{id}</networkInterfaceId><subnetId>{}</subnetId><status>in-use</status>\
                 {}{}<tagSet/></item>",
                escape(&interface.subnet),
                v4.unwrap_or_default(),
                v6.unwrap_or_default(),
            );
        }
        Ok(format!("<networkInterfaceSet>{items}</networkInterfaceSet>"))
    }
}
