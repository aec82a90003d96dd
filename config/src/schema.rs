//! The JSON Schema: the types, and the rules over several keys that a schema can express.

use serde_json::{Map, Value, json};

use crate::types::Config;
use crate::variables::reserved_names;

/// The JSON Schema of a configuration.
///
/// Left to the reader, since no schema can express it: that names are unique, that `jenkins.webhook.url` is under
/// `jenkins.url`, and the content of a host key.
pub fn schema() -> Value {
    let mut schema: Value = schemars::schema_for!(Config).into();
    let definitions = schema["$defs"].as_object_mut().map(std::mem::take).unwrap_or_default();
    let definitions = definitions.into_iter().map(|(name, mut definition)| {
        let rules = rules(&name);
        if !rules.is_empty() {
            definition["allOf"] = rules.into();
        }
        refine(&name, &mut definition);
        optional_keys_may_be_empty(&mut definition);
        (name, definition)
    });
    schema["$defs"] = Value::Object(definitions.collect());
    schema["allOf"] = json!([inbound_needs_nodes()]);
    optional_keys_may_be_empty(&mut schema);
    schema
}

/// A key without a value counts as missing.
fn optional_keys_may_be_empty(definition: &mut Value) {
    let required = definition["required"].as_array().cloned().unwrap_or_default();
    let Some(Value::Object(properties)) = definition.get_mut("properties") else { return };
    for (key, property) in properties {
        let is_required = required.iter().any(|one| one == key);
        let Value::Object(fields) = property else { continue };
        match fields.get("type").cloned() {
            Some(Value::String(kind)) if !is_required => {
                fields.insert("type".into(), json!([kind, "null"]));
            }
            None if !is_required && fields.contains_key("$ref") => {
                let beside: Map<_, _> =
                    ["description", "default"].iter().filter_map(|key| fields.remove_entry(*key)).collect();
                *property = json!({"anyOf": [std::mem::take(fields), {"type": "null"}]});
                property.as_object_mut().into_iter().for_each(|fields| fields.extend(beside.clone()));
            }
            _ => {}
        }
    }
}

fn rules(definition: &str) -> Vec<Value> {
    match definition {
        "Jenkins" => vec![
            json!({"if": is("registerNodes", &[json!(true)]), "then": {"allOf": [has("user"), has("apiToken")]}}),
            json!({"if": has("user"), "then": has("apiToken")}),
            json!({"if": has("apiToken"), "then": has("user")}),
        ],
        "Cloud" => ["idleInstanceTimeout", "instanceRegistrationTimeout"].map(needs_group).into(),
        "Template" => template_rules(),
        "PlacementStrategy" => vec![
            json!({"if": is("type", &[json!("random")]), "then": {"not": has("field")}}),
            json!({"if": is("type", &[json!("binpack")]), "then": matches("field", "^([cC][pP][uU]|[mM][eE][mM][oO][rR][yY])$")}),
            json!({"if": is("type", &[json!("spread")]), "then": matches("field", "\\S")}),
        ],
        "PlacementConstraint" => vec![json!({
            "if": is("type", &[json!("memberOf")]),
            "then": matches("expression", "\\S"),
            "else": {"not": has("expression")},
        })],
        _ => Vec::new(),
    }
}

fn template_rules() -> Vec<Value> {
    let launch_is = |kinds: &[&str]| {
        let kinds: Vec<Value> = kinds.iter().map(|kind| json!(kind)).collect();
        json!({"properties": {"launch": is("type", &kinds)}, "allOf": [has("launch")]})
    };
    let by_fargate_providers = json!({
        "properties": {"launch": {
            "properties": {"capacityProviders": {"items": {"properties": {"name": {"enum": FARGATE}}}}},
            "required": ["capacityProviders"],
        }},
        "allOf": [has("launch")],
    });
    let on_instances = json!({"anyOf": [{"not": has("launch")}, launch_is(&["ec2", "external"])]});
    let allows = |kind: &str| json!({"properties": {"allowedOverrides": {"contains": {"const": kind}}}, "required": ["allowedOverrides"]});
    vec![
        json!({"if": is("connect", &[json!("inbound")]), "then": {"properties": {"workspace": {"pattern": "^\\S*$"}}}}),
        json!({"if": {"anyOf": [launch_is(&["fargate"]), by_fargate_providers]}, "then": has("network")}),
        json!({
            "if": launch_is(&["fargate"]),
            "then": {"properties": {"placementStrategy": {"maxItems": 0}, "placementConstraints": {"maxItems": 0}}},
        }),
        json!({
            "if": on_instances,
            "then": {
                "properties": {
                    "network": {"properties": {"assignPublicIp": {"const": false}}},
                    "platformVersion": {"pattern": "^LATEST$"},
                },
                "not": allows("ephemeralStorage"),
            },
        }),
        json!({"if": launch_is(&["external"]), "then": {"not": has("network")}}),
        json!({
            "if": allows("taskDefinition"),
            "then": {"properties": {"allowedTaskDefinitions": {"minItems": 1}}, "allOf": [has("allowedTaskDefinitions")]},
        }),
    ]
}

const FARGATE: [&str; 2] = ["FARGATE", "FARGATE_SPOT"];

/// Rules for parts of one definition.
fn refine(definition: &str, schema: &mut Value) {
    match definition {
        "Template" => {
            schema["properties"]["environment"]["propertyNames"] = json!({
                "pattern": "^[^=\\u0000-\\u001f\\u007f]*[^=\\s\\u0000-\\u001f\\u007f][^=\\u0000-\\u001f\\u007f]*$",
                "not": {"pattern": format!("^({})$", reserved_names().map(without_case).collect::<Vec<_>>().join("|"))},
            });
            schema["properties"]["environment"]["additionalProperties"] =
                json!({"type": "string", "not": {"pattern": "\\$\\$|\\u0000"}});
            let ours = ["aws:", "jenkins-ecs-agents:"].map(without_case).join("|");
            let tags = &mut schema["properties"]["tags"];
            tags["maxProperties"] = json!(40);
            tags["propertyNames"] = json!({
                "pattern": "^[\\p{L}\\p{N} +\\-=._:/@]{1,128}$",
                "not": {"pattern": format!("^({ours})")},
            });
            tags["additionalProperties"] = json!({"type": "string", "pattern": "^[\\p{L}\\p{N} +\\-=._:/@]{0,256}$"});
        }
        "Launch" => {
            let providers = schema["oneOf"].as_array_mut().into_iter().flatten();
            for providers in providers.filter_map(|variant| variant["properties"].get_mut("capacityProviders")) {
                let weightless = json!({"properties": {"weight": {"const": 0}}, "required": ["weight"]});
                let based = json!({"properties": {"base": {"minimum": 1}}, "required": ["base"]});
                let of_fargate = json!({"properties": {"name": {"enum": FARGATE}}});
                providers["allOf"] = json!([
                    {"contains": {"not": weightless}},
                    {"contains": based, "minContains": 0, "maxContains": 1},
                    {"anyOf": [{"items": of_fargate}, {"items": {"not": of_fargate}}]},
                ]);
            }
        }
        _ => {}
    }
}

/// A pattern that matches upper and lower case.
fn without_case(text: &str) -> String {
    let both = |c: char| match c.is_ascii_alphabetic() {
        true => format!("[{}{}]", c.to_ascii_uppercase(), c.to_ascii_lowercase()),
        false => c.to_string(),
    };
    text.chars().map(both).collect()
}

fn inbound_needs_nodes() -> Value {
    let without_nodes = json!({"anyOf": [
        is("registerNodes", &[json!(false)]),
        {"not": {"anyOf": [has("registerNodes"), has("user")]}},
    ]});
    let template = json!({"properties": {"connect": {"const": "ssh"}, "idleTimeout": {"enum": ["never", null]}}});
    let clouds = json!({"items": {"properties": {"templates": {"items": template}}}});
    json!({"if": {"properties": {"jenkins": without_nodes}}, "then": {"properties": {"clouds": clouds}}})
}

fn needs_group(timeout: &str) -> Value {
    let is_limited = json!({"properties": {timeout: {"not": {"enum": ["never", null]}}}, "required": [timeout]});
    json!({"if": is_limited, "then": has("autoScalingGroup")})
}

/// The key is present, with a value.
fn has(key: &str) -> Value {
    json!({"properties": {key: {"not": {"type": "null"}}}, "required": [key]})
}

/// The key is present with one of these values.
fn is(key: &str, values: &[Value]) -> Value {
    json!({"properties": {key: {"enum": values}}, "required": [key]})
}

fn matches(key: &str, pattern: &str) -> Value {
    json!({"properties": {key: {"type": "string", "pattern": pattern}}, "required": [key]})
}
