//! Reads a document field by field. Every fault is recorded with its path and reading continues, so that one pass finds
//! all of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::fault::{Fault, join};

/// The faults found so far.
pub(crate) type Faults = RefCell<Vec<Fault>>;

/// A value in the document.
pub(crate) struct Place<'a> {
    path: String,
    value: &'a Value,
    faults: &'a Faults,
}

impl<'a> Place<'a> {
    pub(crate) fn new(value: &'a Value, faults: &'a Faults) -> Self {
        Self { path: String::new(), value, faults }
    }

    /// Records a fault here.
    pub(crate) fn fault(&self, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault::new(&self.path, message));
    }

    /// A text is only named as such: it could be a secret.
    fn wrong_kind<T>(&self, expected: &str) -> Option<T> {
        let found = match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "a mapping",
        };
        self.fault(format!("must be {expected}, not {found}"));
        None
    }

    pub(crate) fn text(&self) -> Option<&'a str> {
        self.value.as_str().or_else(|| self.wrong_kind("a text"))
    }

    /// A text that satisfies `rule`.
    pub(crate) fn text_that(&self, rule: impl FnOnce(&str) -> bool, message: &str) -> Option<String> {
        let text = self.text()?;
        if rule(text) {
            return Some(text.to_owned());
        }
        self.fault(message);
        None
    }

    /// A text that a type parses; its error is the fault.
    pub(crate) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(self.text()?).map_err(|message| self.fault(message)).ok()
    }

    pub(crate) fn flag(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_kind("true or false"))
    }

    /// A whole number in the range.
    pub(crate) fn number<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let Value::Number(number) = self.value else { return self.wrong_kind("a whole number") };
        let number =
            number.as_u64().filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.fault(match (*range.start(), *range.end()) {
                (1, end) if end >= u64::from(u32::MAX) => "must be a whole number above 0".into(),
                (start, end) if end >= u64::from(u32::MAX) => format!("must be a whole number, {start} or more"),
                (start, end) => format!("must be a whole number, {start} to {end}"),
            });
        }
        number
    }

    /// One of these names.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let found = self.value.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
        if found.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.fault(format!("must be one of {}", names.join(", ")));
        }
        found.map(|(_, choice)| *choice)
    }

    /// A list; invalid elements are omitted.
    pub(crate) fn list<T>(&self, mut element: impl FnMut(Place<'a>) -> Option<T>) -> Option<Vec<T>> {
        let Value::Array(list) = self.value else { return self.wrong_kind("a list") };
        let place = |(index, value)| Place { path: format!("{}[{index}]", self.path), value, faults: self.faults };
        Some(list.iter().enumerate().map(place).filter_map(&mut element).collect())
    }

    /// A mapping with free keys; invalid entries are omitted.
    pub(crate) fn entries<T>(
        &self,
        mut entry: impl FnMut(&str, Place<'a>) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        let Value::Object(map) = self.value else { return self.wrong_kind("a mapping") };
        let mut read = |(key, value): (&'a String, &'a Value)| {
            let place = Place { path: join(&self.path, key), value, faults: self.faults };
            Some((key.clone(), entry(key, place)?))
        };
        Some(map.iter().filter_map(&mut read).collect())
    }

    /// A mapping with known keys; any other key is a fault.
    pub(crate) fn mapping<T>(&self, read: impl FnOnce(&mut Fields<'a>) -> Option<T>) -> Option<T> {
        let Value::Object(map) = self.value else { return self.wrong_kind("a mapping") };
        let mut fields = Fields { path: self.path.clone(), map, faults: self.faults, known: Vec::new() };
        let read = read(&mut fields);
        for key in map.keys().filter(|key| !fields.known.contains(&key.as_str())) {
            fields.fault(key, format!("is not known here; known are {}", fields.known.join(", ")));
        }
        read
    }

    pub(crate) fn as_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    pub(crate) fn is_mapping(&self) -> bool {
        self.value.is_object()
    }

    pub(crate) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    /// Elements of a list, or entries of a mapping.
    pub(crate) fn length(&self) -> usize {
        match self.value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        }
    }

    /// The only entry of a mapping with exactly one.
    pub(crate) fn only_entry(&self) -> Option<(&'a str, &'a Value)> {
        let entries = self.value.as_object().filter(|map| map.len() == 1)?;
        entries.iter().next().map(|(key, value)| (key.as_str(), value))
    }
}

/// A mapping that is read into a type.
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    faults: &'a Faults,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// A key without a value counts as missing.
    pub(crate) fn optional<T>(&mut self, key: &'static str, read: impl FnOnce(Place<'a>) -> Option<T>) -> Field<T> {
        self.known.push(key);
        let Some(value) = self.map.get(key).filter(|value| !value.is_null()) else { return Field::Absent };
        let place = Place { path: join(&self.path, key), value, faults: self.faults };
        read(place).map_or(Field::Wrong, Field::Read)
    }

    pub(crate) fn required<T>(&mut self, key: &'static str, read: impl FnOnce(Place<'a>) -> Option<T>) -> Field<T> {
        let field = self.optional(key, read);
        if field.is_absent() {
            self.fault(key, "is missing");
        }
        field
    }

    /// Records a fault at a key, or at a path below it.
    pub(crate) fn fault(&self, key: &str, message: impl Into<String>) {
        let path = if key.is_empty() { self.path.clone() } else { join(&self.path, key) };
        self.faults.borrow_mut().push(Fault::new(path, message));
    }

    pub(crate) fn unless(&self, holds: bool, key: &str, message: impl Into<String>) {
        if !holds {
            self.fault(key, message);
        }
    }

    /// Whether a list has elements, valid or not.
    pub(crate) fn has_elements(&self, key: &str) -> bool {
        self.map.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// The value of a key. A rule over several fields applies only to those that could be read.
pub(crate) enum Field<T> {
    Absent,
    /// Present, but already recorded as a fault.
    Wrong,
    Read(T),
}

impl<T> Field<T> {
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Self::Read(_))
    }

    pub(crate) fn as_ref(&self) -> Option<&T> {
        match self {
            Self::Read(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn ok(self) -> Option<T> {
        match self {
            Self::Read(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn or(self, default: T) -> T {
        self.ok().unwrap_or(default)
    }

    /// The value, or the default if the key is absent; `None` if it is invalid.
    pub(crate) fn effective<'f>(&'f self, default: &'f T) -> Option<&'f T> {
        match self {
            Self::Absent => Some(default),
            Self::Wrong => None,
            Self::Read(value) => Some(value),
        }
    }
}
