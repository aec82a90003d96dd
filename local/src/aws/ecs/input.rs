//! Reads the input of a call.

use serde_json::{Map, Value};

use super::ApiError;

/// The entries of a list; `None` if it is no list.
pub(in crate::aws) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The strings of a list.
pub(in crate::aws) fn strings(value: &Value) -> impl Iterator<Item = &str> {
    list(value).iter().filter_map(Value::as_str)
}

/// A text that is present and not empty: the SDKs omit unset members, the CLI may send empty ones.
pub(in crate::aws) fn text<'a>(input: &'a Value, name: &str) -> Option<&'a str> {
    input[name].as_str().filter(|text| !text.is_empty())
}

/// A number, or a text that is one.
pub(super) fn number(value: &Value) -> Option<u32> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).and_then(|number| u32::try_from(number).ok())
}

/// The last part of an ARN; any other text as it is.
pub(in crate::aws) fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// An object without its empty members: AWS' answers omit what is not set.
pub(super) fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

/// An object of the members that are set. It takes values as they are, where `json!` would serialise each again.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let set = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(set.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A copy of an object without one member.
pub(super) fn without(value: &Value, name: &str) -> Map<String, Value> {
    let mut fields = value.as_object().cloned().unwrap_or_default();
    fields.remove(name);
    fields
}

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new("InvalidParameterException", message)
}

pub(super) fn client(message: impl Into<String>) -> ApiError {
    ApiError::new("ClientException", message)
}

/// An enum's value; `None` if it is not set.
///
/// # Errors
/// When the enum has no such value.
pub(super) fn one_of<'a>(input: &'a Value, name: &str, values: &[&str]) -> Result<Option<&'a str>, ApiError> {
    match text(input, name) {
        Some(value) if !values.contains(&value) => {
            Err(invalid(format!("{name} should be one of [{}], and not {value}.", values.join(", "))))
        }
        value => Ok(value),
    }
}

/// Whether a call requests tags.
///
/// # Errors
/// When it requests something unknown.
pub(super) fn includes_tags(input: &Value, others: &[&str]) -> Result<bool, ApiError> {
    match strings(&input["include"]).find(|field| *field != "TAGS" && !others.contains(field)) {
        Some(unknown) => Err(invalid(format!("include has no value {unknown}."))),
        None => Ok(strings(&input["include"]).any(|field| field == "TAGS")),
    }
}

/// A list of names with a maximum length.
///
/// # Errors
/// When it is empty or longer.
pub(super) fn names<'a>(input: &'a Value, name: &str, most: usize) -> Result<Vec<&'a str>, ApiError> {
    let names: Vec<&str> = strings(&input[name]).collect();
    match names.len() {
        0 => Err(invalid(format!("{name} cannot be empty."))),
        many if many > most => Err(invalid(format!("{name} cannot have more than {most} elements."))),
        _ => Ok(names),
    }
}
