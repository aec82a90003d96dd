//! Decides what a completion ends.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use shared::arn::TaskArn;
use shared::aws::ecs::Task;
use shared::config::Cloud;
use shared::config::duration::elapsed;
use shared::message::{AgentRequest, BuildCompleted, MOST_AGENTS, RequestId};
use shared::stop::{Cause, Stop};
use shared::wait::Wait;

/// The stopped reason of a task whose build has ended.
pub fn completed(completion: &BuildCompleted) -> Stop {
    let build = completion.build.as_ref().map_or_else(
        || {
            completion
                .request_id
                .as_ref()
                .map_or_else(|| "its build".to_owned(), |id| format!("the build of request {id}"))
        },
        |build| format!("build {build}"),
    );
    let result = completion.result.as_deref().map(|result| format!(": {result}")).unwrap_or_default();
    Stop::new(Cause::Completed, format!("{build} is over{result}"))
}

/// The cloud in which the task of an ARN may be stopped.
///
/// # Errors
/// What is wrong with the ARN, if it is not a task of a configured cluster.
pub fn place(arn: &str, clouds: &[Cloud], accounts: &[BTreeSet<String>]) -> Result<usize, String> {
    let TaskArn { cluster, .. } = TaskArn::parse(arn)
        .ok_or_else(|| format!("taskArn: {arn:?} is not arn:aws:ecs:REGION:ACCOUNT:task/CLUSTER/ID"))?;
    let mut named = clouds.iter().zip(accounts).enumerate().filter(|(_, (cloud, _))| cluster.is_of(cloud)).peekable();
    if named.peek().is_none() {
        return Err(format!("taskArn: cluster {} in {} is not configured", cluster.name, cluster.region));
    }
    named
        .find(|(_, (_, accounts))| accounts.is_empty() || accounts.contains(cluster.account))
        .map(|(index, _)| index)
        .ok_or_else(|| format!("taskArn: account {} is not ours", cluster.account))
}

/// Whether the request of a completion of which ECS knows nothing may still be placed: for as long as it may wait, a
/// day at most.
pub fn may_still_be_placed(clouds: &[Cloud], sent_at: Timestamp, now: Timestamp) -> bool {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let longest = clouds
        .iter()
        .map(|cloud| cloud.instance_launch_timeout.0.map_or(DAY, |limit| limit.min(DAY)))
        .max()
        .unwrap_or(DAY);
    elapsed(sent_at, now) < longest
}

/// The agents of the completion's request that have no task, by template, request and index: those besides the known
/// ones, each of which has its template. Empty if none of these belongs to the request.
pub fn without_task(completion: &BuildCompleted, known: &[(&str, &Task)]) -> Vec<(String, RequestId, u32)> {
    let records = known.iter().filter_map(|(template, task)| Some((*template, task.record()?)));
    let mut of_request = records.filter(|(_, record)| completion.request_id.as_ref() == Some(&record.request_id));
    let Some((template, first)) = of_request.next() else { return Vec::new() };
    let mut has_task: BTreeSet<u32> = of_request.map(|(_, record)| record.index).collect();
    has_task.insert(first.index);
    let count = first.count.min(MOST_AGENTS);
    let rest = (0..count).filter(|index| !has_task.contains(index));
    rest.map(|index| (template.to_owned(), first.request_id.clone(), index)).collect()
}

/// Which agents of a waiting request have already been placed, if the completion names the request.
pub fn placed(completion: &BuildCompleted, wait: &Wait, body: &str, clouds: &[Cloud]) -> Vec<u32> {
    if completion.request_id.as_ref() != Some(&wait.request_id) {
        return Vec::new();
    }
    let asked = AgentRequest::parse(body).ok().and_then(|request| request.count);
    let of_template = || {
        let cloud = clouds.iter().find(|cloud| cloud.name == wait.cloud)?;
        let template = cloud.template(&wait.template)?;
        Some(template.agents_per_request)
    };
    let count = asked.or_else(of_template).unwrap_or_default().min(MOST_AGENTS);
    (0..count).filter(|index| !wait.agents.contains(index)).collect()
}

#[cfg(test)]
mod tests {
    use shared::arn;

    use super::*;
    use crate::plan::tests::config;

    #[test]
    fn stops_only_tasks_of_our_clusters_and_accounts() {
        let config = config();
        let function = "arn:aws:lambda:eu-west-1:111111111111:function:teardown";
        let queue = "https://sqs.eu-west-1.amazonaws.com/111111111111/completions";
        let own = arn::own_accounts(function, queue, "");
        let accounts: Vec<_> = config.clouds.iter().map(|cloud| arn::accounts_of(cloud, &own)).collect();
        for (arn, cloud) in [
            ("arn:aws:ecs:eu-west-1:111111111111:task/ci/0123", Some(0)),
            ("arn:aws:ecs:us-east-1:222222222222:task/default/0123", Some(1)),
            ("arn:aws:ecs:us-east-1:111111111111:task/default/0123", None),
            ("arn:aws:ecs:eu-west-1:333333333333:task/ci/0123", None),
            ("arn:aws:ecs:eu-west-2:111111111111:task/ci/0123", None),
            ("arn:aws:ecs:eu-west-1:111111111111:task/default/0123", None),
            ("arn:aws:ecs:eu-west-1:111111111111:task/0123", None),
            ("arn:aws:ecs:eu-west-1:111111111111:task/ci/0123/4", None),
            ("arn:aws:ecs:eu-west-1:111111111111:service/ci/0123", None),
            ("arn:aws:s3:::ci", None),
            ("0123", None),
            ("", None),
        ] {
            assert_eq!(place(arn, &config.clouds, &accounts).ok(), cloud, "{arn}");
        }
    }

    #[test]
    fn the_reason_names_the_build() {
        let of = |json: &str| completed(&BuildCompleted::parse(json).expect(json)).to_string();
        assert_eq!(
            of(r#"{"version": 1, "taskArn": "x", "build": {"job": "app/main", "number": 42}, "result": "SUCCESS"}"#),
            "COMPLETED: build app/main #42 is over: SUCCESS"
        );
        assert_eq!(of(r#"{"version": 1, "requestId": "r-1"}"#), "COMPLETED: the build of request r-1 is over");
    }
}
