//! The accesses that a call requires: actions on resources with condition keys, as the Service Authorization Reference
//! lists them. A test compares them with a role's policies.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ecs::input::{list, short, strings, text};
use super::wire::Asked;
use super::{ApiError, Ecs};

/// One access that IAM decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// `ecs:RunTask`. A batch action of SQS counts as the single action.
    pub action: String,
    /// An ARN; `*` if the action has no resource type.
    pub resource: String,
    /// The condition keys of the request, with their values: `ecs:cluster`, `aws:RequestTag/team`.
    pub keys: BTreeMap<String, Vec<String>>,
}

impl Access {
    fn new(action: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { action: action.into(), resource: resource.into(), keys: BTreeMap::new() }
    }

    fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.keys.entry(key.into()).or_default().push(value.into());
        self
    }

    /// With the current tags of the resource.
    fn tagged(self, tags: Option<&BTreeMap<String, String>>) -> Self {
        let tags = tags.into_iter().flatten();
        tags.fold(self, |access, (key, value)| access.with(format!("aws:ResourceTag/{key}"), value))
    }

    /// With the tags that the request sets.
    fn tagging(self, tags: &Value) -> Self {
        tags.as_array().into_iter().flatten().fold(self, |access, tag| {
            let key = text(tag, "key").unwrap_or_default();
            let value = text(tag, "value").unwrap_or_default();
            access.with(format!("aws:RequestTag/{key}"), value).with("aws:TagKeys", key)
        })
    }
}

/// How a service reports that IAM denied a call, in its own protocol ("Common Errors", EC2's "Error codes").
pub(super) fn denied(service: &str, message: String) -> ApiError {
    match service {
        "autoscaling" | "sqs" | "sts" => ApiError { status: 403, ..ApiError::new("AccessDenied", message) },
        "ec2" => ApiError { status: 403, ..ApiError::new("UnauthorizedOperation", message) },
        _ => ApiError::new("AccessDeniedException", message),
    }
}

/// The state that a call meets: its region's and account's ECS, before the call.
pub(super) struct Scene<'a> {
    pub ecs: &'a Ecs,
    pub region: &'a str,
    pub account: &'a str,
    /// The customer managed key that encrypts parameters.
    pub key: Option<&'a str>,
}

impl Scene<'_> {
    /// The accesses of a call. GetCallerIdentity needs no permission.
    pub(super) fn accesses(&self, asked: &Asked) -> Vec<Access> {
        let input = &asked.input;
        match (asked.service, asked.action.as_str()) {
            ("ecs", action) => self.of_ecs(action, input),
            ("autoscaling", action) => vec![self.of_group(action, input)],
            ("ssm", action) => self.of_parameters(action, input),
            ("events", action) => self.of_bus(action, input),
            ("sqs", action) => {
                let queue = text(input, "QueueUrl").map(short).or_else(|| text(input, "QueueName")).unwrap_or_default();
                vec![Access::new(format!("sqs:{}", action.trim_end_matches("Batch")), self.arn("sqs", queue))]
            }
            ("sts", "AssumeRole") => vec![Access::new("sts:AssumeRole", text(input, "RoleArn").unwrap_or_default())],
            ("sts", "GetCallerIdentity") => Vec::new(),
            (service, action) => vec![Access::new(format!("{service}:{action}"), "*")],
        }
    }

    fn arn(&self, service: &str, resource: &str) -> String {
        format!("arn:aws:{service}:{}:{}:{resource}", self.region, self.account)
    }

    /// A resource of a cluster, named by its ARN or its id.
    fn in_cluster(&self, kind: &str, cluster: &str, given: &str) -> String {
        if given.starts_with("arn:") { given.to_owned() } else { self.arn("ecs", &format!("{kind}/{cluster}/{given}")) }
    }

    fn of_ecs(&self, action: &str, input: &Value) -> Vec<Access> {
        let name = text(input, "cluster").map_or("default", short);
        let cluster = self.arn("ecs", &format!("cluster/{name}"));
        let on = |resource: String| {
            let tags = self.ecs.tags(&resource);
            Access::new(format!("ecs:{action}"), resource).tagged(tags)
        };
        let given = |name: &str| text(input, name).unwrap_or_default();
        let each = |kind: &str, list: &str| -> Vec<Access> {
            let names = strings(&input[list]);
            names.map(|given| on(self.in_cluster(kind, name, given)).with("ecs:cluster", &cluster)).collect()
        };
        match action {
            "RunTask" => self.of_run_task(input, name, on(self.definition(input)).with("ecs:cluster", &cluster)),
            "StopTask" => {
                vec![on(self.in_cluster("task", name, given("task"))).with("ecs:cluster", &cluster)]
            }
            "DescribeTasks" => each("task", "tasks"),
            "DescribeContainerInstances" | "UpdateContainerInstancesState" => {
                each("container-instance", "containerInstances")
            }
            "ListTasks" => {
                let instance = text(input, "containerInstance").unwrap_or("*");
                vec![on(self.in_cluster("container-instance", name, instance)).with("ecs:cluster", &cluster)]
            }
            "ListServices" => vec![Access::new("ecs:ListServices", "*").with("ecs:cluster", &cluster)],
            "ListContainerInstances" | "DeregisterContainerInstance" => vec![on(cluster)],
            "DescribeClusters" => {
                let names = strings(&input["clusters"]);
                names.map(|given| on(self.arn("ecs", &format!("cluster/{}", short(given))))).collect()
            }
            "TagResource" => vec![on(given("resourceArn").to_owned()).tagging(&input["tags"])],
            "UntagResource" => {
                let access = on(given("resourceArn").to_owned());
                vec![strings(&input["tagKeys"]).fold(access, |access, key| access.with("aws:TagKeys", key))]
            }
            "ListTagsForResource" => vec![on(given("resourceArn").to_owned())],
            _ => vec![Access::new(format!("ecs:{action}"), "*")],
        }
    }

    /// The revision that a name refers to.
    fn definition(&self, input: &Value) -> String {
        let given = text(input, "taskDefinition").unwrap_or_default();
        match self.ecs.definition_arn(given) {
            Some(arn) => arn.to_owned(),
            None if given.starts_with("arn:") => given.to_owned(),
            None => self.arn("ecs", &format!("task-definition/{given}")),
        }
    }

    /// Tags on creation require `ecs:TagResource` ("Tag resources during creation"); the roles of the task have to be
    /// passed, including those of the task definition ("Amazon ECS task IAM role").
    fn of_run_task(&self, input: &Value, cluster: &str, run: Access) -> Vec<Access> {
        let run = match input["enableExecuteCommand"].as_bool() {
            Some(enabled) => run.with("ecs:enable-execute-command", enabled.to_string()),
            None => run,
        };
        let mut accesses = vec![run.tagging(&input["tags"])];
        if !list(&input["tags"]).is_empty() {
            let tag = Access::new("ecs:TagResource", self.in_cluster("task", cluster, "*"));
            accesses.push(tag.with("ecs:CreateAction", "RunTask").tagging(&input["tags"]));
        }
        let of_definition = text(input, "taskDefinition").and_then(|name| self.ecs.definition_shown(name));
        for role in ["taskRoleArn", "executionRoleArn"] {
            if let Some(passed) = text(&input["overrides"], role).or_else(|| text(of_definition?, role)) {
                accesses
                    .push(Access::new("iam:PassRole", passed).with("iam:PassedToService", "ecs-tasks.amazonaws.com"));
            }
        }
        accesses
    }

    /// The describing actions of Auto Scaling have no resource type.
    fn of_group(&self, action: &str, input: &Value) -> Access {
        let named = text(input, "AutoScalingGroupName");
        let of_instance = || self.ecs.group_of_instance(text(input, "InstanceId")?);
        let group = named.or_else(of_instance).unwrap_or_default();
        let action = format!("autoscaling:{action}");
        if action.starts_with("autoscaling:Describe") {
            return Access::new(action, "*");
        }
        let resource = format!("autoScalingGroup:0:autoScalingGroupName/{group}");
        Access::new(action, self.arn("autoscaling", &resource)).tagged(self.ecs.group(group).map(|group| &group.tags))
    }

    /// With a customer managed key, decryption requires access to that key, too; the AWS managed one allows everyone in
    /// the account.
    fn of_parameters(&self, action: &str, input: &Value) -> Vec<Access> {
        let names: Vec<&str> = match action {
            "GetParametersByPath" => text(input, "Path").map(|path| path.trim_end_matches('/')).into_iter().collect(),
            "GetParameters" => strings(&input["Names"]).collect(),
            _ => text(input, "Name").into_iter().collect(),
        };
        let mut accesses = Vec::new();
        for name in names {
            let parameter = self.arn("ssm", &format!("parameter/{}", name.trim_start_matches('/')));
            let key = self.key.filter(|_| input["WithDecryption"] == true);
            accesses.push(Access::new(format!("ssm:{action}"), &parameter));
            accesses.extend(key.map(|key| {
                let via = format!("ssm.{}.amazonaws.com", self.region);
                Access::new("kms:Decrypt", key)
                    .with("kms:ViaService", via)
                    .with("kms:EncryptionContext:PARAMETER_ARN", parameter)
            }));
        }
        accesses
    }

    fn of_bus(&self, action: &str, input: &Value) -> Vec<Access> {
        let entries = list(&input["Entries"]).iter();
        let access = |entry: &Value| {
            let bus = match text(entry, "EventBusName").unwrap_or("default") {
                given if given.starts_with("arn:") => given.to_owned(),
                given => self.arn("events", &format!("event-bus/{given}")),
            };
            Access::new(format!("events:{action}"), bus)
                .with("events:source", text(entry, "Source").unwrap_or_default())
                .with("events:detail-type", text(entry, "DetailType").unwrap_or_default())
        };
        entries.map(access).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use jiff::Timestamp;
    use serde_json::json;

    use super::super::Aws;
    use super::*;

    fn world() -> Aws {
        let mut aws = Aws::new("eu-west-1", "111122223333", "http://localhost");
        aws.ecs.create_cluster("ci");
        let definition = json!({"family": "agent", "executionRoleArn": "arn:aws:iam::111122223333:role/pull",
            "containerDefinitions": [{"name": "agent", "image": "agent", "memory": 512}]});
        aws.ecs.register_definition(&definition).unwrap();
        aws.ecs.create_group("g", "ci", (0, 5), (2048, 4096), Timestamp::UNIX_EPOCH);
        aws.ecs.fill_group("g", 1, Timestamp::UNIX_EPOCH);
        aws
    }

    fn ask(aws: &mut Aws, target: &str, input: &Value) -> Vec<String> {
        let request = Request::post("/").header("x-amz-target", target).body(Bytes::from(input.to_string())).unwrap();
        aws.handle(request, Timestamp::UNIX_EPOCH);
        shown(aws)
    }

    fn ask_form(aws: &mut Aws, form: String) -> Vec<String> {
        aws.handle(Request::post("/").body(Bytes::from(form)).unwrap(), Timestamp::UNIX_EPOCH);
        shown(aws)
    }

    /// `ecs:RunTask ARN key=value`
    fn shown(aws: &Aws) -> Vec<String> {
        let show = |access: &Access| {
            let keys = access.keys.iter().map(|(key, values)| format!(" {key}={}", values.join(",")));
            format!("{} {}{}", access.action, access.resource, keys.collect::<String>())
        };
        aws.journal.last().unwrap().accesses.iter().map(show).collect()
    }

    #[test]
    fn run_task_requires_access_to_its_tags_and_roles() {
        let mut aws = world();
        let input = json!({"cluster": "ci", "taskDefinition": "agent", "tags": [{"key": "k", "value": "v"}],
            "overrides": {"taskRoleArn": "arn:aws:iam::111122223333:role/build"}});
        let asked = ask(&mut aws, "AmazonEC2ContainerServiceV20141113.RunTask", &input);
        let tags = "aws:RequestTag/k=v aws:TagKeys=k";
        assert_eq!(
            asked,
            [
                format!(
                    "ecs:RunTask arn:aws:ecs:eu-west-1:111122223333:task-definition/agent:1 {tags} \
                     ecs:cluster=arn:aws:ecs:eu-west-1:111122223333:cluster/ci"
                ),
                format!("ecs:TagResource arn:aws:ecs:eu-west-1:111122223333:task/ci/* {tags} ecs:CreateAction=RunTask"),
                "iam:PassRole arn:aws:iam::111122223333:role/build iam:PassedToService=ecs-tasks.amazonaws.com".into(),
                "iam:PassRole arn:aws:iam::111122223333:role/pull iam:PassedToService=ecs-tasks.amazonaws.com".into(),
            ]
        );
    }

    #[test]
    fn a_resource_has_its_tags_from_before_the_call() {
        let mut aws = world();
        let run = json!({"cluster": "ci", "taskDefinition": "agent", "tags": [{"key": "k", "value": "v"}]});
        ask(&mut aws, "AmazonEC2ContainerServiceV20141113.RunTask", &run);
        let task = aws.ecs.tasks().next().unwrap().arn.clone();
        let cluster = "ecs:cluster=arn:aws:ecs:eu-west-1:111122223333:cluster/ci";
        let stop = json!({"cluster": "ci", "task": task});
        let asked = ask(&mut aws, "AmazonEC2ContainerServiceV20141113.StopTask", &stop);
        assert_eq!(asked, [format!("ecs:StopTask {task} aws:ResourceTag/k=v {cluster}")]);
        assert_eq!(
            ask(&mut aws, "AmazonEC2ContainerServiceV20141113.StopTask", &stop),
            [format!("ecs:StopTask {task} {cluster}")]
        );
        let untag = json!({"resourceArn": task, "tagKeys": ["a", "b"]});
        assert_eq!(
            ask(&mut aws, "AmazonEC2ContainerServiceV20141113.UntagResource", &untag),
            [format!("ecs:UntagResource {task} aws:TagKeys=a,b")]
        );
    }

    #[test]
    fn every_service_names_its_resource() {
        let mut aws = world();
        aws.parameters.key = Some("arn:aws:kms:eu-west-1:111122223333:key/k".into());
        let instance = aws.ecs.group("g").unwrap().members[0].id.clone();
        let group = "arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:0:autoScalingGroupName/g";
        assert_eq!(
            ask_form(
                &mut aws,
                format!("Version=2011-01-01&Action=TerminateInstanceInAutoScalingGroup&InstanceId={instance}")
            ),
            [format!("autoscaling:TerminateInstanceInAutoScalingGroup {group}")]
        );
        let describe = "Version=2011-01-01&Action=DescribeAutoScalingGroups".to_owned();
        assert_eq!(ask_form(&mut aws, describe), ["autoscaling:DescribeAutoScalingGroups *"]);
        let assume = "Version=2011-06-15&Action=AssumeRole&RoleArn=arn:aws:iam::9:role/r".to_owned();
        assert_eq!(ask_form(&mut aws, assume), ["sts:AssumeRole arn:aws:iam::9:role/r"]);
        let send = json!({"QueueUrl": "http://localhost/111122223333/q", "Entries": []});
        assert_eq!(
            ask(&mut aws, "AmazonSQS.SendMessageBatch", &send),
            ["sqs:SendMessage arn:aws:sqs:eu-west-1:111122223333:q"]
        );
        let parameter = "arn:aws:ssm:eu-west-1:111122223333:parameter/a/b";
        assert_eq!(
            ask(&mut aws, "AmazonSSM.GetParameter", &json!({"Name": "/a/b", "WithDecryption": true})),
            [
                format!("ssm:GetParameter {parameter}"),
                format!(
                    "kms:Decrypt arn:aws:kms:eu-west-1:111122223333:key/k \
                     kms:EncryptionContext:PARAMETER_ARN={parameter} kms:ViaService=ssm.eu-west-1.amazonaws.com"
                ),
            ]
        );
        let put = json!({"Entries": [{"Source": "s", "DetailType": "d", "EventBusName": "bus", "Detail": "{}"}]});
        assert_eq!(
            ask(&mut aws, "AWSEvents.PutEvents", &put),
            [
                "events:PutEvents arn:aws:events:eu-west-1:111122223333:event-bus/bus events:detail-type=d events:source=s"
            ]
        );
    }
}
