//! Parses YAML into JSON values, from which the types are read.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::fault::{Fault, join};

/// The most keys and values that aliases may repeat. A text of a kilobyte can repeat billions.
const ALIASED: usize = 50_000;

/// Parses one document. Duplicate keys of a mapping become faults, all at once; the first one counts.
///
/// # Errors
/// What is not YAML, and where. The document's text is not repeated.
pub(crate) fn parse(text: &str) -> Result<(Value, Vec<Fault>), String> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // YAML 1.2: `yes` and `on` are strings, as a label or a variable may be.
        strict_booleans: true,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED },
    };
    let mut twice = Vec::new();
    let node = Node { path: String::new(), twice: &mut twice };
    match serde_saphyr::with_deserializer_from_str_with_options(text, options, |document| node.deserialize(document)) {
        Ok(value) => Ok((value, twice)),
        Err(error) => Err(error.to_string()),
    }
}

/// A place in the document.
struct Node<'a> {
    path: String,
    twice: &'a mut Vec<Fault>,
}

impl Node<'_> {
    fn within(&mut self, path: String) -> Node<'_> {
        Node { path, twice: self.twice }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            match elements.next_element_seed(self.within(path))? {
                Some(element) => list.push(element),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = join(&self.path, &key);
            let value = entries.next_value_seed(self.within(path.clone()))?;
            if fields.contains_key(&key) {
                self.twice.push(Fault::new(path, "duplicate key"));
            } else {
                fields.insert(key, value);
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_every_kind_of_value() {
        let (value, twice) = parse("{a: [1, -1, 1.5, true, ~, 'x', y, on], b: {c: }, 3: d}").expect("good");
        assert_eq!(value, json!({"a": [1, -1, 1.5, true, null, "x", "y", "on"], "b": {"c": null}, "3": "d"}));
        assert_eq!(twice, []);
    }

    #[test]
    fn names_every_duplicate_key_and_keeps_the_first() {
        let (value, twice) = parse("a: 1\nb: [{c: 1, c: 2}, {c: 3}]\na: {d: 1, d: 1}").expect("good");
        assert_eq!(value, json!({"a": 1, "b": [{"c": 1}, {"c": 3}]}));
        let paths: Vec<_> = twice.iter().map(ToString::to_string).collect();
        assert_eq!(paths, ["b[0].c: duplicate key", "a.d: duplicate key", "a: duplicate key"]);
    }

    #[test]
    fn anchors_and_merge_keys_save_words() {
        let (value, twice) = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a").expect("good");
        assert_eq!(value, json!({"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}));
        assert_eq!(twice, []);
    }

    #[test]
    fn says_where_yaml_is_invalid_without_repeating_it() {
        for text in ["a: [hunter2", "a: 1\n b: hunter2", "a: hunter2\n---\nb: 2", "a: *hunter2", "{[hunter2]: 1}"] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("line "), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
        let list = |anchor: char, of: &str| format!("{anchor}: &{anchor} [{}]\n", [of; 9].join(", "));
        let billions =
            list('a', "x") + &('b'..'k').zip('a'..).map(|(to, of)| list(to, &format!("*{of}"))).collect::<String>();
        let error = parse(&billions).expect_err("too many");
        assert!(error.contains("alias") && error.contains("line "), "{error}");
    }
}
