//! The JSON types of members, by name, as in the services' models (botocore): a member of another type is a
//! `SerializationException`, before the service looks at anything else.

use serde_json::Value;

use super::ApiError;

const TEXTS: &[&str] = &[
    "capacityProvider",
    "clientToken",
    "cluster",
    "containerInstance",
    "desiredStatus",
    "family",
    "filter",
    "group",
    "launchType",
    "nextToken",
    "platformVersion",
    "propagateTags",
    "reason",
    "referenceId",
    "resourceArn",
    "serviceName",
    "startedBy",
    "status",
    "task",
    "taskDefinition",
    "Id",
    "MessageBody",
    "Name",
    "NextToken",
    "Path",
    "QueueName",
    "QueueUrl",
    "ReceiptHandle",
];
const LISTS: &[&str] = &[
    "attributes",
    "capacityProviderStrategy",
    "clusters",
    "containerInstances",
    "include",
    "placementConstraints",
    "placementStrategy",
    "tagKeys",
    "tags",
    "tasks",
    "AttributeNames",
    "Entries",
    "MessageAttributeNames",
    "MessageSystemAttributeNames",
    "Names",
];
const NUMBERS: &[&str] = &[
    "count",
    "maxResults",
    "DelaySeconds",
    "MaxNumberOfMessages",
    "MaxResults",
    "VisibilityTimeout",
    "WaitTimeSeconds",
];
const FLAGS: &[&str] = &["enableECSManagedTags", "enableExecuteCommand", "force", "Recursive", "WithDecryption"];
const STRUCTURES: &[&str] = &["networkConfiguration", "overrides", "Attributes", "MessageAttributes"];

/// Validates the members of a call's input, and those of the entries of a batch.
///
/// # Errors
/// When the input is not a structure, or a member has a type other than its name's.
pub(super) fn check(input: &Value) -> Result<(), ApiError> {
    let wrong = |message: String| Err(ApiError::new("SerializationException", message));
    let Some(members) = input.as_object() else { return wrong("The request is no JSON structure.".into()) };
    for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
        let is = |names: &[&str]| names.contains(&name.as_str());
        let fits = (!is(TEXTS) || value.is_string())
            && (!is(LISTS) || value.is_array())
            && (!is(NUMBERS) || value.is_i64() || value.is_u64())
            && (!is(FLAGS) || value.is_boolean())
            && (!is(STRUCTURES) || value.is_object());
        if !fits {
            return wrong(format!("{name} has the wrong type."));
        }
    }
    // Those of PutEvents have names of their own.
    input["Entries"].as_array().into_iter().flatten().try_for_each(check)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_have_the_types_of_the_models() {
        for input in [
            json!({"cluster": "c", "tasks": ["a"], "maxResults": 5, "force": true, "overrides": {}, "nextToken": null}),
            json!({"Entries": [{"Id": "a", "MessageBody": "b", "DelaySeconds": 0}], "unknown": 5}),
        ] {
            assert_eq!(check(&input), Ok(()), "{input}");
        }
        for input in [
            json!(null),
            json!([]),
            json!("text"),
            json!({"cluster": 5}),
            json!({"tasks": "a"}),
            json!({"maxResults": "5"}),
            json!({"maxResults": 0.5}),
            json!({"force": "true"}),
            json!({"overrides": []}),
            json!({"Entries": [{"Id": "a", "MessageBody": 5}]}),
            json!({"Entries": ["a"]}),
        ] {
            assert_eq!(check(&input).map_err(|error| error.code), Err("SerializationException".into()), "{input}");
        }
    }
}
