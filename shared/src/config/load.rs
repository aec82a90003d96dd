//! Reads the configuration and finds everything that is wrong with it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value, json};
use serde_path_to_error::Segment;

use super::Config;
use super::check::check;
use super::yaml::{self, join};

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

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// One YAML text and where it is from, which only a configuration of several texts has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The SSM parameter's name.
    pub source: String,
    /// YAML.
    pub text: String,
}

impl Document {
    /// The only text of a configuration.
    pub fn only(text: impl Into<String>) -> Self {
        Self { source: String::new(), text: text.into() }
    }
}

/// Reads and checks a configuration of one text.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_yaml(text: &str) -> Result<Config, Vec<ConfigError>> {
    from_documents(&[Document::only(text)])
}

/// Reads and checks a configuration of one or several texts, whose `clouds` are joined in order.
///
/// # Errors
/// Everything that is wrong with it, ordered by path.
pub fn from_documents(documents: &[Document]) -> Result<Config, Vec<ConfigError>> {
    let Joined { mut value, cloud_sources, mut guessed, mut errors } = Joined::new(documents);
    let config = typed(&mut value, &mut guessed, &mut errors);
    if let Some(config) = &config {
        check(config, &guessed, &mut errors);
    }
    if let (Some(config), []) = (config, errors.as_slice()) {
        return Ok(config);
    }
    for error in &mut errors {
        let index = error.path.strip_prefix("clouds[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
        match index.and_then(|index| cloud_sources.get(index)) {
            Some(source) if !source.is_empty() => error.message += &format!(" (in {source})"),
            _ => {}
        }
    }
    errors.sort();
    errors.dedup();
    Err(errors)
}

/// Several texts as one value.
#[derive(Default)]
struct Joined {
    value: Value,
    /// Where each cloud is from.
    cloud_sources: Vec<String>,
    guessed: Guessed,
    errors: Vec<ConfigError>,
}

impl Joined {
    fn new(documents: &[Document]) -> Self {
        let (mut fields, mut first_source) = (Map::new(), BTreeMap::new());
        let mut joined = Self::default();
        let mut complete = true;
        for Document { source, text } in documents {
            let located = |error: ConfigError| match source.as_str() {
                "" => error,
                source => ConfigError::new("", format!("{source}: {error}")),
            };
            let more = match yaml::parse(text) {
                Ok((Value::Object(more), twice)) => {
                    joined.errors.extend(twice.into_iter().map(located));
                    more
                }
                unreadable => {
                    complete = false;
                    let message = match unreadable {
                        Ok(_) => "has to be a YAML mapping with jenkins and clouds".into(),
                        Err(error) => format!("not YAML: {error}"),
                    };
                    joined.errors.push(located(ConfigError::new("", message)));
                    continue;
                }
            };
            for (key, value) in more {
                match (fields.get_mut(&key), value) {
                    (Some(Value::Array(clouds)), Value::Array(more)) if key == "clouds" => clouds.extend(more),
                    (Some(_), _) => {
                        let message = format!("is in {} too, and only one may have it", first_source[&key]);
                        joined.errors.push(located(ConfigError::new(key, message)));
                    }
                    (None, value) => {
                        first_source.insert(key.clone(), source.as_str());
                        fields.insert(key, value);
                    }
                }
            }
            let clouds = fields.get("clouds").and_then(Value::as_array).map_or(0, Vec::len);
            joined.cloud_sources.resize(clouds, source.clone());
        }
        if !complete {
            // What the unreadable text has is not missing.
            for key in ["jenkins", "clouds"].into_iter().filter(|&key| !fields.contains_key(key)) {
                joined.guessed.0.insert(key.into());
            }
        }
        joined.value = Value::Object(fields);
        joined
    }
}

/// The places where something is missing or wrong. What stands there instead is a guess, not held against anybody.
#[derive(Debug, Default)]
pub(super) struct Guessed(BTreeSet<String>);

impl Guessed {
    /// Whether what is at the path was written so: neither it, nor what it is part of or made of, is a guess.
    pub(super) fn is_written(&self, path: &str) -> bool {
        !self.0.iter().any(|guess| is_within(path, guess) || is_within(guess, path))
    }

    /// Whether it is or belongs to a guess.
    pub(super) fn covers(&self, path: &str) -> bool {
        self.0.iter().any(|guess| is_within(path, guess))
    }
}

fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// More faults than this are not looked for.
const MOST: usize = 200;

/// Deserialises; notes what is wrong, puts a guess in its place and tries again, so that one run finds everything.
fn typed(value: &mut Value, guessed: &mut Guessed, errors: &mut Vec<ConfigError>) -> Option<Config> {
    for _ in 0..MOST {
        let error = match serde_path_to_error::deserialize::<_, Config>(&*value) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let segments: Vec<&Segment> = error.path().iter().collect();
        let message = error.inner().to_string();
        if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            let path = join(&text(&segments), field);
            if guessed.0.insert(path.clone()) {
                errors.push(ConfigError::new(path, "is missing"));
            }
            if let Some(Value::Object(fields)) = find(value, &segments) {
                fields.insert(field.into(), guess_field(list_of(&segments), field));
            }
        } else if let Some(rest) = message.strip_prefix("unknown field `") {
            let expected = rest.split_once(", ").map_or("nothing expected", |(_, expected)| expected);
            errors.push(ConfigError::new(text(&segments), format!("is not known here; {expected}")));
            repair(value, &segments);
        } else {
            // A variant without content is no place of its own.
            let end = segments.iter().rposition(|segment| matches!(segment, Segment::Seq { .. } | Segment::Map { .. }));
            let place = &segments[..end.map_or(0, |end| end + 1)];
            if guessed.0.insert(text(place)) {
                errors.push(ConfigError::new(text(&segments), worded(&message)));
            }
            repair(value, place);
        }
    }
    None
}

/// Takes a key out of its mapping; an element of a list is replaced, since its neighbours keep their places.
fn repair(value: &mut Value, place: &[&Segment]) {
    let Some((last, parents)) = place.split_last() else { return };
    match (last, find(value, parents)) {
        (Segment::Map { key }, Some(Value::Object(fields))) => {
            fields.remove(key);
        }
        (Segment::Seq { index }, Some(Value::Array(list))) => {
            if let Some(element) = list.get_mut(*index) {
                *element = guess_element(list_of(place));
            }
        }
        _ => {}
    }
}

/// The key of the list that the path leads into, if its last step does.
fn list_of<'a>(segments: &[&'a Segment]) -> &'a str {
    match segments {
        [.., Segment::Map { key }, Segment::Seq { .. }] => key,
        _ => "",
    }
}

fn find<'a>(value: &'a mut Value, segments: &[&Segment]) -> Option<&'a mut Value> {
    segments.iter().try_fold(value, |place, segment| match segment {
        Segment::Seq { index } => place.get_mut(*index),
        Segment::Map { key } | Segment::Enum { variant: key } => place.get_mut(key.as_str()),
        Segment::Unknown => None,
    })
}

fn text(segments: &[&Segment]) -> String {
    segments.iter().fold(String::new(), |path, segment| match segment {
        Segment::Seq { index } => format!("{path}[{index}]"),
        Segment::Map { key } | Segment::Enum { variant: key } => join(&path, key),
        Segment::Unknown => path,
    })
}

/// serde's message in the words of a configuration. A text that stands in the wrong place is not repeated: it could be
/// a secret.
fn worded(message: &str) -> String {
    let wrong = ["invalid type: ", "invalid value: ", "unknown variant "].iter().find_map(|head| message.strip_prefix(head));
    let Some((found, expected)) = wrong.and_then(|wrong| wrong.split_once(", expected ")) else {
        return message.to_owned();
    };
    let expected = match expected {
        "a sequence" => "a list",
        "a map" => "a mapping",
        "a boolean" => "true or false",
        "u16" | "u32" => "a whole number, 0 or more",
        "i32" => "a whole number",
        _ if expected.starts_with("struct ") => "a mapping",
        _ => expected,
    };
    let found = match found {
        "map" => "a mapping",
        "sequence" => "a list",
        "null" => "nothing",
        _ if found.starts_with("string ") => "a text",
        _ => found,
    };
    format!("has to be {expected}, not {found}")
}

/// Something of the right form for a field that has to be there.
fn guess_field(list: &str, field: &str) -> Value {
    match (list, field) {
        (_, "jenkins") => json!({"url": guess_field("", "url")}),
        (_, "url") => json!("https://guess.invalid/"),
        (_, "clouds" | "templates") => json!([guess_element(field)]),
        (_, "labels" | "subnets") => json!(["guess"]),
        (_, "cpu" | "memory") => json!(1),
        (_, "connect") => json!("ssh"),
        ("placementStrategy", "type") => json!("random"),
        ("placementConstraints", "type") => json!("distinctInstance"),
        _ => json!("guess"),
    }
}

/// The same for an element of a list.
fn guess_element(list: &str) -> Value {
    let fields: &[&str] = match list {
        "clouds" => &["name", "region", "templates"],
        "templates" => &["name", "labels", "taskDefinition", "connect"],
        "capacityProviders" => &["name"],
        "placementStrategy" | "placementConstraints" => &["type"],
        "allowedOverrides" => return json!("cpu"),
        _ => return json!("guess"),
    };
    fields.iter().map(|&field| (field, guess_field(list, field))).collect()
}
