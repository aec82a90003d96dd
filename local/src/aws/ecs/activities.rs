//! Scaling activities: what a group did, and why it failed (API_Activity).

use jiff::Timestamp;

use super::Ecs;
use crate::aws::escape;

/// How many are kept per group; AWS keeps those of six weeks.
const KEPT: usize = 300;

/// An activity of a group.
#[derive(Debug, Clone)]
pub(super) struct Activity {
    pub id: String,
    pub instance: Option<String>,
    pub description: String,
    pub cause: String,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// `InProgress`, `Successful`, `Failed`.
    pub status: &'static str,
    /// Why it failed.
    pub message: Option<String>,
}

impl Activity {
    /// As DescribeScalingActivities and TerminateInstanceInAutoScalingGroup show it, without the enclosing element.
    pub(super) fn describe(&self, group: &str) -> String {
        let element = |name: &str, text: Option<String>| {
            text.map(|text| format!("<{name}>{}</{name}>", escape(&text))).unwrap_or_default()
        };
        format!(
            "<ActivityId>{}</ActivityId><AutoScalingGroupName>{}</AutoScalingGroupName><Description>{}</Description>\
             <Cause>{}</Cause><StartTime>{}</StartTime>{}<StatusCode>{}</StatusCode>{}<Progress>{}</Progress>",
            self.id,
            escape(group),
            escape(&self.description),
            escape(&self.cause),
            self.started_at,
            element("EndTime", self.ended_at.map(|at| at.to_string())),
            self.status,
            element("StatusMessage", self.message.clone()),
            if self.ended_at.is_some() { 100 } else { 50 },
        )
    }
}

impl Ecs {
    /// Records that a group begins to launch or terminate an instance; returns the activity as it is described.
    pub(super) fn begin_activity(&mut self, group: &str, what: &str, instance: &str, cause: &str, now: Timestamp) {
        let activity = Activity {
            id: self.uuid(),
            instance: Some(instance.to_owned()),
            description: format!("{what} EC2 instance: {instance}"),
            cause: format!("At {now} {cause}"),
            started_at: now,
            ended_at: None,
            status: "InProgress",
            message: None,
        };
        self.keep_activity(group, activity);
    }

    /// Records that a group could not launch an instance.
    pub(super) fn fail_activity(&mut self, group: &str, message: String, now: Timestamp) {
        let activity = Activity {
            id: self.uuid(),
            instance: None,
            description: "Launching a new EC2 instance. Status Reason: ".to_owned() + &message,
            cause: format!(
                "At {now} an instance was started in response to a difference between desired and actual capacity."
            ),
            started_at: now,
            ended_at: Some(now),
            status: "Failed",
            message: Some(message),
        };
        self.keep_activity(group, activity);
    }

    fn keep_activity(&mut self, group: &str, activity: Activity) {
        if let Some(group) = self.groups.get_mut(group) {
            group.activities.insert(0, activity);
            group.activities.truncate(KEPT);
        }
    }

    /// An instance is in service, or terminated.
    pub(super) fn end_activity(&mut self, group: &str, instance: &str, now: Timestamp) {
        let activities = self.groups.get_mut(group).into_iter().flat_map(|group| &mut group.activities);
        let of_instance =
            |activity: &&mut Activity| activity.ended_at.is_none() && activity.instance.as_deref() == Some(instance);
        if let Some(activity) = activities.into_iter().find(of_instance) {
            activity.ended_at = Some(now);
            activity.status = "Successful";
        }
    }
}
