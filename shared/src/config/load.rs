//! Reads the configuration, wherever it is, and finds everything that is wrong with its form at once.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use serde_path_to_error::{Path, Segment};

use super::Config;
use super::check;

/// A fault of the configuration: where, and what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// `clouds[0].templates[1].executors`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl ConfigError {
    /// A fault.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

/// Reads and checks a configuration of one document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_yaml(text: &str, agent_name_prefix: &str) -> Result<Config, Vec<ConfigError>> {
    from_documents(&[(String::new(), text.to_owned())], agent_name_prefix)
}

/// Reads and checks a configuration of several documents, each with its source: their `clouds` are joined.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_documents(documents: &[(String, String)], agent_name_prefix: &str) -> Result<Config, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut joined = Map::new();
    let mut from: Map<String, Value> = Map::new();
    for (source, text) in documents {
        let at = |message: String| {
            ConfigError::new("", if source.is_empty() { message } else { format!("{source}: {message}") })
        };
        match serde_saphyr::from_str::<Value>(text) {
            Ok(Value::Object(fields)) => {
                for (key, value) in fields {
                    match (joined.get_mut(&key), value) {
                        (Some(Value::Array(clouds)), Value::Array(more)) if key == "clouds" => clouds.extend(more),
                        (Some(_), _) => errors.push(at(format!("{key} is in {} already", from[&key]))),
                        (None, value) => {
                            from.insert(key.clone(), Value::from(source.as_str()));
                            joined.insert(key, value);
                        }
                    }
                }
            }
            Ok(_) => errors.push(at("the configuration has to be a YAML mapping with jenkins and clouds".into())),
            Err(error) => errors.push(at(format!("not YAML: {error}"))),
        }
    }
    if !errors.is_empty() && joined.is_empty() {
        return Err(errors);
    }
    let (config, guessed) = typed(Value::Object(joined), &mut errors);
    if let Some(config) = &config {
        // What was put in place of something wrong or missing is not held against the rules.
        let real = |error: &ConfigError| !guessed.iter().any(|path| is_within(&error.path, path));
        errors.extend(check::check(config, agent_name_prefix).into_iter().filter(real));
    }
    errors.sort();
    errors.dedup();
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(errors),
    }
}

fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// More faults than this are not looked for.
const MOST: usize = 200;

/// Deserialises; at each fault, notes it, puts something of the right form in its place and tries again, so that one
/// run finds them all. Answers too where it did so.
fn typed(mut value: Value, errors: &mut Vec<ConfigError>) -> (Option<Config>, BTreeSet<String>) {
    let mut guessed = BTreeSet::new();
    for _ in 0..MOST {
        let error = match serde_path_to_error::deserialize::<_, Config>(value.clone()) {
            Ok(config) => return (Some(config), guessed),
            Err(error) => error,
        };
        let message = error.inner().to_string();
        let path = error.path();
        let field = |prefix: &str| message.strip_prefix(prefix)?.split('`').next();
        if field("unknown field `").is_some() {
            // The path ends with the field itself.
            errors.push(ConfigError::new(text(path), unknown(&message)));
            remove(&mut value, path);
        } else if let Some(name) = field("missing field `") {
            let at = join(path, name);
            if guessed.insert(at.clone()) {
                errors.push(ConfigError::new(at, "is missing"));
            }
            if let Some(Value::Object(fields)) = find(&mut value, path, 0) {
                fields.insert(name.to_owned(), guess(name));
            }
        } else {
            let at = text(path);
            let again = !guessed.insert(at.clone());
            if again {
                // What was guessed does not fit either: the field is left out, and its default holds.
                remove(&mut value, path);
                continue;
            }
            errors.push(ConfigError::new(at, message));
            let name = path.iter().rev().find_map(|segment| match segment {
                Segment::Map { key } => Some(key.as_str()),
                _ => None,
            });
            match (find(&mut value, path, 0), path.iter().last()) {
                (Some(place), Some(Segment::Seq { .. })) => *place = guess_element(name.unwrap_or_default()),
                _ => remove(&mut value, path),
            }
        }
    }
    (None, guessed)
}

/// `unknown field `x`, expected one of …` without what the path says already.
fn unknown(message: &str) -> String {
    match message.split_once(", ") {
        Some((_, expected)) => format!("is not known here; {expected}"),
        None => "is not known here".into(),
    }
}

/// Something of the right form for a field that has to be there.
fn guess(name: &str) -> Value {
    match name {
        "jenkins" => json!({"url": guess("url")}),
        "url" => json!("https://placeholder.invalid/"),
        "clouds" => json!([guess_element("clouds")]),
        "templates" => json!([guess_element("templates")]),
        "labels" => json!(["placeholder"]),
        "subnets" => json!(["subnet-placeholder"]),
        "region" => json!("us-east-1"),
        "connect" => json!("ssh"),
        "cpu" | "memory" => json!(1),
        "type" => json!("random"),
        _ => json!("placeholder"),
    }
}

fn guess_element(name: &str) -> Value {
    match name {
        "clouds" => json!({"name": "placeholder", "region": "us-east-1", "templates": [guess_element("templates")]}),
        "templates" => {
            json!({"name": "placeholder", "labels": ["placeholder"], "taskDefinition": "placeholder", "connect": "ssh"})
        }
        "capacityProviders" => json!({"name": "placeholder"}),
        "placementStrategy" => json!({"type": "random"}),
        "placementConstraints" => json!({"type": "distinctInstance"}),
        "allowedOverrides" => json!("cpu"),
        _ => json!("placeholder"),
    }
}

fn text(path: &Path) -> String {
    let mut text = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => text += &format!("[{index}]"),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text += key;
            }
            Segment::Unknown => text += "?",
        }
    }
    text
}

fn join(path: &Path, name: &str) -> String {
    let path = text(path);
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The value at a path, without its last `less` segments.
fn find<'a>(value: &'a mut Value, path: &Path, less: usize) -> Option<&'a mut Value> {
    let segments: Vec<_> = path.iter().collect();
    let mut place = value;
    for segment in &segments[..segments.len().saturating_sub(less)] {
        place = match segment {
            Segment::Seq { index } => place.get_mut(*index)?,
            Segment::Map { key } => place.get_mut(key.as_str())?,
            // A variant is a key where it has a content, and no place of its own where it is only a word.
            Segment::Enum { variant } if place.get(variant.as_str()).is_some() => place.get_mut(variant.as_str())?,
            Segment::Enum { .. } | Segment::Unknown => place,
        };
    }
    Some(place)
}

/// Removes what is at a path: a key from its mapping; in a list, the whole list's key.
fn remove(value: &mut Value, path: &Path) {
    let segments: Vec<_> = path.iter().collect();
    let Some(last) = segments.iter().rposition(|segment| matches!(segment, Segment::Map { .. })) else {
        *value = Value::Object(Map::new());
        return;
    };
    let Segment::Map { key } = segments[last] else { return };
    if let Some(Value::Object(fields)) = find(value, path, segments.len() - last) {
        fields.remove(key);
    }
}
