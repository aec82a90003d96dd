//! Amazon Resource Names and their parts: `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`.

use std::collections::BTreeSet;

use crate::config::Cloud;

/// An ARN of any service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arn<'a> {
    pub partition: &'a str,
    pub service: &'a str,
    pub region: &'a str,
    /// Twelve digits, except for resources that AWS owns.
    pub account: &'a str,
    /// Everything after the account: `task/ci/0a1b`.
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    pub fn parse(arn: &'a str) -> Option<Self> {
        let mut parts = arn.splitn(6, ':');
        let head = parts.next()?;
        let arn = Self {
            partition: parts.next()?,
            service: parts.next()?,
            region: parts.next()?,
            account: parts.next()?,
            resource: parts.next()?,
        };
        (head == "arn").then_some(arn)
    }

    /// The domain of the partition's web console.
    pub fn console(&self) -> &'static str {
        match self.partition {
            "aws-cn" => "console.amazonaws.cn",
            "aws-us-gov" => "console.amazonaws-us-gov.com",
            _ => "console.aws.amazon.com",
        }
    }
}

/// The account of an ARN, if it is twelve digits.
pub fn account(arn: &str) -> Option<&str> {
    Arn::parse(arn).map(|arn| arn.account).filter(|account| is_account(account))
}

/// Whether a text is the id of an AWS account.
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The accounts of the stack itself, as far as they are known without a call: those of its function and its queue.
pub fn own_accounts(function_arn: &str, queue_url: &str, queue_arn: &str) -> BTreeSet<String> {
    let found = [account(function_arn), account(queue_arn), queue_url.rsplit('/').nth(1)];
    found.into_iter().flatten().filter(|account| is_account(account)).map(str::to_owned).collect()
}

/// The accounts that a cloud's tasks can be in: that of its cluster's ARN or its role, else the stack's own.
pub fn accounts_of(cloud: &Cloud, own: &BTreeSet<String>) -> BTreeSet<String> {
    let named = match (ClusterArn::parse(&cloud.cluster), &cloud.assume_role_arn) {
        (Some(cluster), _) => Some(cluster.account).filter(|account| is_account(account)),
        (None, Some(role)) => account(role),
        (None, None) => return own.clone(),
    };
    named.map(str::to_owned).into_iter().collect()
}

/// The ARN of an ECS cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterArn<'a> {
    pub region: &'a str,
    pub account: &'a str,
    pub name: &'a str,
}

impl<'a> ClusterArn<'a> {
    pub fn parse(arn: &'a str) -> Option<Self> {
        let arn = Arn::parse(arn).filter(|arn| arn.service == "ecs")?;
        Some(Self { region: arn.region, account: arn.account, name: arn.resource.strip_prefix("cluster/")? })
    }

    /// Whether it is the cluster of this cloud, as far as can be known: a cloud without a role and with only a cluster
    /// name may be in any account.
    pub fn is_of(&self, cloud: &Cloud) -> bool {
        let account = cloud.assume_role_arn.as_deref().and_then(Arn::parse).map(|role| role.account);
        self.region == cloud.region
            && account.is_none_or(|account| account == self.account)
            && match ClusterArn::parse(&cloud.cluster) {
                Some(own) => (own.region, own.account, own.name) == (self.region, self.account, self.name),
                None => cloud.cluster == self.name,
            }
    }
}

/// The ARN of an ECS task: `arn:aws:ecs:REGION:ACCOUNT:task/CLUSTER/ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskArn<'a> {
    pub cluster: ClusterArn<'a>,
    pub id: &'a str,
}

impl<'a> TaskArn<'a> {
    pub fn parse(arn: &'a str) -> Option<Self> {
        let arn = Arn::parse(arn).filter(|arn| arn.service == "ecs")?;
        let (name, id) = arn.resource.strip_prefix("task/")?.split_once('/')?;
        let is_whole = !name.is_empty() && !id.is_empty() && !id.contains('/');
        is_whole.then_some(Self { cluster: ClusterArn { region: arn.region, account: arn.account, name }, id })
    }
}

/// The name in a cluster's ARN, or the name itself.
pub fn cluster_name(cluster: &str) -> &str {
    ClusterArn::parse(cluster).map_or(cluster, |arn| arn.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_arns_of_ecs_apart() {
        let cluster = ClusterArn { region: "eu-west-1", account: "123456789012", name: "ci" };
        assert_eq!(ClusterArn::parse("arn:aws:ecs:eu-west-1:123456789012:cluster/ci"), Some(cluster));
        assert_eq!(
            TaskArn::parse("arn:aws-cn:ecs:eu-west-1:123456789012:task/ci/0a1b"),
            Some(TaskArn { cluster, id: "0a1b" })
        );
        for wrong in [
            "",
            "ci",
            "arn:aws:ecs:eu-west-1:123456789012",
            "arn:aws:sqs:eu-west-1:123456789012:task/ci/1",
            "arn:aws:ecs:eu-west-1:123456789012:task/ci",
            "arn:aws:ecs:eu-west-1:123456789012:task/ci/1/2",
            "arn:aws:ecs:eu-west-1:123456789012:task//1",
            "ARN:aws:ecs:eu-west-1:123456789012:task/ci/1",
        ] {
            assert_eq!(TaskArn::parse(wrong), None, "{wrong}");
        }
        assert_eq!(cluster_name("arn:aws:ecs:eu-west-1:123456789012:cluster/ci"), "ci");
        assert_eq!(cluster_name("ci"), "ci");
        assert_eq!(account("arn:aws:iam::123456789012:role/agents"), Some("123456789012"));
        assert_eq!(account("arn:aws:iam::aws:policy/x"), None);
    }
}
