//! A configuration of one or several documents.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::fault::Fault;
use crate::read;
use crate::reader::{Faults, Place};
use crate::types::Config;
use crate::yaml;

/// A YAML text and its source, which matters only for a configuration of several texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
/// Everything that is wrong with it, ordered by path.
pub fn from_yaml(text: &str) -> Result<Config, Vec<Fault>> {
    match from_documents(&[Document::only(text)]) {
        (Some(config), faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(faults),
    }
}

/// Reads and checks a configuration of one or several texts, whose `clouds` are joined in order. Beside the faults,
/// ordered by path, it returns the configuration as far as it could be read, so that the secrets that it names can
/// still be looked for.
pub fn from_documents(documents: &[Document]) -> (Option<Config>, Vec<Fault>) {
    let Joined { value, cloud_sources, is_complete, faults } = Joined::new(documents);
    let faults = Faults::new(faults);
    let config = read::config(Place::new(&value, &faults), is_complete);
    let mut faults = faults.into_inner();
    for fault in &mut faults {
        let index = fault.path.strip_prefix("clouds[").and_then(|rest| rest.split(']').next()?.parse::<usize>().ok());
        match index.and_then(|index| cloud_sources.get(index)) {
            Some(source) if !source.is_empty() => fault.message += &format!(" (in {source})"),
            _ => {}
        }
    }
    faults.sort();
    faults.dedup();
    (config, faults)
}

/// Several texts, joined into one value.
struct Joined {
    value: Value,
    /// The source of each cloud.
    cloud_sources: Vec<String>,
    /// Whether every text could be read: the keys of an unreadable one are not missing.
    is_complete: bool,
    faults: Vec<Fault>,
}

impl Joined {
    fn new(documents: &[Document]) -> Self {
        let (mut fields, mut first_source) = (Map::new(), BTreeMap::new());
        let (mut cloud_sources, mut is_complete, mut faults) = (Vec::new(), true, Vec::new());
        for Document { source, text } in documents {
            let located = |fault: Fault| match source.as_str() {
                "" => fault,
                source => Fault::new("", format!("{source}: {fault}")),
            };
            let more = match mapping(text) {
                Ok((more, twice)) => {
                    faults.extend(twice.into_iter().map(located));
                    more
                }
                Err(message) => {
                    is_complete = false;
                    faults.push(located(Fault::new("", message)));
                    continue;
                }
            };
            for (key, value) in more {
                match (fields.get_mut(&key), value) {
                    (Some(Value::Array(clouds)), Value::Array(more)) if key == "clouds" => clouds.extend(more),
                    (Some(_), _) => {
                        let message = format!("is in {} too, and only one may have it", first_source[&key]);
                        faults.push(located(Fault::new(key, message)));
                    }
                    (None, value) => {
                        first_source.insert(key.clone(), source.as_str());
                        fields.insert(key, value);
                    }
                }
            }
            let clouds = fields.get("clouds").and_then(Value::as_array).map_or(0, Vec::len);
            cloud_sources.resize(clouds, source.clone());
        }
        Self { value: Value::Object(fields), cloud_sources, is_complete, faults }
    }
}

/// A text's keys, and the faults of duplicate ones.
fn mapping(text: &str) -> Result<(Map<String, Value>, Vec<Fault>), String> {
    match yaml::parse(text) {
        Ok((Value::Object(fields), twice)) => Ok((fields, twice)),
        Ok(_) => Err("must be a YAML mapping with jenkins and clouds".into()),
        Err(error) => Err(format!("not YAML: {error}")),
    }
}
