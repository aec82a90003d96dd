//! The tables in `docs/configuration.md`, generated from the schema.

use serde_json::{Map, Value};

/// Sections in the order in which a reader needs them: heading, definition, and place.
const SECTIONS: [(&str, &str, &str); 13] = [
    ("Top level", "", "the document"),
    ("jenkins", "Jenkins", "`jenkins`"),
    ("webhook", "Webhook", "`jenkins.webhook`"),
    ("cloud", "Cloud", "an entry of `clouds`"),
    ("instanceCapacity", "Size", "`clouds[].instanceCapacity`"),
    ("template", "Template", "an entry of `clouds[].templates`"),
    ("ssh", "Ssh", "`templates[].ssh`"),
    ("launch", "Launch", "`templates[].launch`: one of the two"),
    ("capacityProvider", "CapacityProvider", "an entry of `launch.capacityProviders`"),
    ("network", "Network", "`templates[].network`"),
    ("placementStrategy", "PlacementStrategy", "an entry of `templates[].placementStrategy`"),
    ("placementConstraint", "PlacementConstraint", "an entry of `templates[].placementConstraints`"),
    ("limits", "Limits", "`templates[].limits`"),
];

/// A table for each section.
pub(crate) fn settings_table(schema: &Value) -> String {
    let tables = SECTIONS.iter().map(|(heading, name, place)| {
        let definition = if name.is_empty() { schema } else { &schema["$defs"][*name] };
        let rows: String = properties(definition)
            .iter()
            .map(|(key, property, is_required)| row(key, property, *is_required))
            .collect();
        format!("### {heading}\n\nIn {place}.\n\n| setting | value | default | meaning |\n|---|---|---|---|\n{rows}")
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// The keys of a mapping, or of all its variants.
fn properties(definition: &Value) -> Vec<(String, Value, bool)> {
    let variants = definition["oneOf"].as_array().into_iter().flatten().map(|variant| (variant, false));
    let all = [(definition, true)].into_iter().chain(variants);
    all.flat_map(|(mapping, is_whole)| {
        let required = mapping["required"].as_array().cloned().unwrap_or_default();
        let fields = mapping["properties"].as_object().cloned().unwrap_or_default();
        let meaning = mapping["description"].clone();
        fields.into_iter().map(move |(key, mut property)| {
            if !is_whole {
                property["description"] = meaning.clone();
            }
            let is_required = is_whole && required.iter().any(|one| *one == key);
            (key, property, is_required)
        })
    })
    .collect()
}

fn row(key: &str, property: &Value, is_required: bool) -> String {
    let description = property["description"].as_str().unwrap_or_default().replace('\n', " ");
    // A default that is not a constant is the description's sentence that begins with `Default`.
    let (meaning, default) = match description.split_once("Default") {
        Some((meaning, default)) => (meaning.trim(), default.trim_start_matches(':').trim().trim_end_matches('.')),
        None => (description.trim(), ""),
    };
    let default = match &property["default"] {
        _ if is_required => "required".into(),
        _ if !default.is_empty() => default.to_owned(),
        Value::Null => "none".into(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Object(fields) if fields.is_empty() => "none".into(),
        Value::Object(_) => "as below".into(),
        other => format!("`{other}`"),
    };
    format!("| `{key}` | {} | {default} | {meaning} |\n", value(property))
}

/// The possible values.
fn value(property: &Value) -> String {
    let variants = ["anyOf", "oneOf"].iter().find_map(|kind| property[*kind].as_array());
    if let Some(variants) = variants {
        let is_something = |variant: &&Value| variant["type"] != "null";
        return variants.iter().filter(is_something).map(value).collect::<Vec<_>>().join(" or ");
    }
    if let Some(reference) = property["$ref"].as_str() {
        return of_definition(reference.trim_start_matches("#/$defs/"));
    }
    if let Some(choice) = property.get("const") {
        return format!("`{}`", choice.as_str().unwrap_or_default());
    }
    let kind = property["type"].as_str().or_else(|| property["type"][0].as_str()).unwrap_or_default();
    match kind {
        "boolean" => "`true` or `false`".into(),
        "integer" => range(&property["minimum"], &property["maximum"]),
        "array" => format!("list of {}", value(&property["items"])),
        "object" if property["additionalProperties"]["type"] == "string" => "mapping of texts".into(),
        "object" => "mapping".into(),
        _ if property["format"] == "uri" => "URL".into(),
        _ => "text".into(),
    }
}

fn range(minimum: &Value, maximum: &Value) -> String {
    match (minimum.as_u64(), maximum.as_u64().filter(|&maximum| maximum < u64::from(u32::MAX))) {
        (Some(minimum), Some(maximum)) => format!("{minimum} to {maximum}"),
        (minimum, None) => format!("{} or more", minimum.unwrap_or_default()),
        (None, Some(maximum)) => format!("up to {maximum}"),
    }
}

fn of_definition(name: &str) -> String {
    match name {
        "Duration" => "duration".into(),
        "SecretRef" => "[secret](#secrets)".into(),
        "HostKeyVerification" => "`none`, `knownHosts` or `{key: …}`".into(),
        "Connect" => "`ssh` or `inbound`".into(),
        "Address" => "`private` or `public`".into(),
        "LaunchType" => "`ec2`, `fargate`, `external` or `default`".into(),
        "PlacementStrategyType" => "`binpack`, `spread` or `random`".into(),
        "PlacementConstraintType" => "`distinctInstance` or `memberOf`".into(),
        "Override" => {
            "`cpu`, `memory`, `ephemeralStorage`, `environment`, `command`, `taskRole`, `taskDefinition`".into()
        }
        "LabelSet" => "list of text".into(),
        _ => match SECTIONS.iter().find(|(_, definition, _)| *definition == name) {
            Some((heading, ..)) => format!("[{heading}](#{})", heading.to_lowercase()),
            None => name.to_owned(),
        },
    }
}

/// Definitions that are texts or choices, so that the tables need no section for them.
const INLINE: [&str; 10] = [
    "Address",
    "Connect",
    "Duration",
    "HostKeyVerification",
    "LabelSet",
    "LaunchType",
    "Override",
    "PlacementConstraintType",
    "PlacementStrategyType",
    "SecretRef",
];

#[test]
fn the_tables_in_the_documentation_are_those_of_the_schema() {
    const BEGIN: &str = "<!-- settings: made from the schema -->\n";
    const END: &str = "<!-- end of settings -->\n";
    let schema = crate::schema();
    let table = settings_table(&schema);
    assert!(!table.contains("|  |"), "an empty cell");
    for name in schema["$defs"].as_object().into_iter().flat_map(Map::keys) {
        let is_shown = SECTIONS.iter().any(|(_, definition, _)| definition == name) || INLINE.contains(&name.as_str());
        assert!(is_shown, "{name} is in no table");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = std::fs::read_to_string(path).expect("docs/configuration.md");
    let (before, rest) = text.split_once(BEGIN).expect("a beginning");
    let (shown, after) = rest.split_once(END).expect("an end");
    let wanted = format!("\n{table}\n");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).expect("written");
    } else {
        assert!(shown == wanted, "run the tests with UPDATE_SCHEMA=1 and commit docs/configuration.md");
    }
}
