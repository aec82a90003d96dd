//! Tags of tasks, container instances, task definitions and clusters.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::input::{invalid, list, short, strings, text};
use super::{ApiError, Ecs, Status};

/// Keys and values.
pub(super) type Tags = BTreeMap<String, String>;

/// Reads tags. API_Tag: 50 at most, each key once, keys of 1 to 128 and values of up to 256 characters out of letters,
/// numbers, spaces and `+ - = . _ : / @`; the prefix `aws:` belongs to AWS.
///
/// # Errors
/// When they break a rule.
pub(super) fn read_tags(input: &Value) -> Result<Tags, ApiError> {
    let allowed = |c: char| c.is_alphanumeric() || c == ' ' || "+-=._:/@".contains(c);
    let mut tags = Tags::new();
    for tag in list(input) {
        let (key, value) = (tag["key"].as_str().unwrap_or_default(), tag["value"].as_str().unwrap_or_default());
        if !(1..=128).contains(&key.chars().count()) || !key.chars().all(allowed) {
            return Err(invalid(format!("Invalid tag key: {key}")));
        }
        if value.chars().count() > 256 || !value.chars().all(allowed) {
            return Err(invalid(format!("Invalid tag value for the key {key}")));
        }
        let reserved = |text: &str| text.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("aws:"));
        if reserved(key) || reserved(value) {
            return Err(invalid("The prefix aws: is reserved."));
        }
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(invalid(format!("Duplicate tag key: {key}")));
        }
    }
    if tags.len() > 50 {
        return Err(invalid("Too many tags: 50 at most."));
    }
    Ok(tags)
}

pub(super) fn describe(tags: &Tags) -> Value {
    tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// `task`, `container-instance`, …
fn kind(arn: &str) -> &str {
    arn.splitn(6, ':').nth(5).and_then(|resource| resource.split('/').next()).unwrap_or_default()
}

impl Ecs {
    /// API_TagResource, API_UntagResource, API_ListTagsForResource.
    pub(super) fn tagging(&mut self, action: &str, input: &Value) -> Result<Value, ApiError> {
        let arn = text(input, "resourceArn").ok_or_else(|| invalid("resourceArn is missing."))?;
        let stopped_too = self.settings.tags_on_stopped_tasks || action == "ListTagsForResource";
        let tags = self.tags_of(arn, stopped_too)?;
        match action {
            "TagResource" => {
                let mut all = tags.clone();
                all.extend(read_tags(&input["tags"])?);
                if all.len() > 50 {
                    return Err(ApiError::new("LimitExceededException", "50 tags at most."));
                }
                *tags = all;
                Ok(json!({}))
            }
            "UntagResource" => {
                strings(&input["tagKeys"]).for_each(|key| drop(tags.remove(key)));
                Ok(json!({}))
            }
            _ => Ok(json!({"tags": describe(tags)})),
        }
    }

    /// The tags of a resource, if it exists.
    pub(in crate::aws) fn tags(&self, arn: &str) -> Option<&Tags> {
        match kind(arn) {
            "task" => self.tasks.get(arn).map(|task| &task.tags),
            "container-instance" => self.instances.get(arn).map(|instance| &instance.tags),
            "cluster" => self.clusters.get(short(arn)).map(|cluster| &cluster.tags),
            "task-definition" => self.definition(arn).map(|definition| &definition.tags),
            _ => None,
        }
    }

    fn tags_of(&mut self, arn: &str, stopped_too: bool) -> Result<&mut Tags, ApiError> {
        let missing = || ApiError::new("ResourceNotFoundException", "The specified resource was not found.");
        match kind(arn) {
            "task" => {
                let task = self.tasks.get_mut(arn).ok_or_else(missing)?;
                if task.last_status == Status::Stopped && !stopped_too {
                    return Err(invalid("The specified task is stopped. Specify a running task and try again."));
                }
                Ok(&mut task.tags)
            }
            "container-instance" => Ok(&mut self.instances.get_mut(arn).ok_or_else(missing)?.tags),
            "cluster" => Ok(&mut self.clusters.get_mut(short(arn)).ok_or_else(missing)?.tags),
            "task-definition" => {
                let of_family =
                    |(family, revision): (&str, &str)| Some((family.to_owned(), revision.parse::<usize>().ok()?));
                let (family, revision) = short(arn).split_once(':').and_then(of_family).ok_or_else(missing)?;
                let definition =
                    self.definitions.get_mut(&family).and_then(|all| all.get_mut(revision.checked_sub(1)?));
                Ok(&mut Arc::make_mut(definition.ok_or_else(missing)?).tags)
            }
            _ => Err(invalid(format!("Invalid ARN: {arn}"))),
        }
    }
}
