//! The parameter `tree` of the API.

use std::collections::BTreeMap;

use serde_json::Value;

/// The parameter `tree`: `a,b[c],d[e]{0,2}` (`org.kohsuke.stapler.export.NamedPathPruner`).
#[derive(Debug, Default)]
pub(super) struct Tree {
    children: BTreeMap<String, Tree>,
    /// A range of a list: first, and end (exclusive).
    range: Option<(usize, usize)>,
}

impl Tree {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let tree = Self::list(&mut rest)?;
        if rest.is_empty() { Ok(tree) } else { Err(format!("Malformed tree expression: {text}")) }
    }

    fn list(rest: &mut &str) -> Result<Self, String> {
        let mut tree = Self::default();
        loop {
            let end = rest.find([',', '[', ']', '{', '}']).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if name.is_empty() {
                return Err(format!("Malformed tree expression: a name is expected at {rest:?}"));
            }
            *rest = after;
            let mut child = if accept(rest, "[") { Self::list(rest)? } else { Self::default() };
            if after.starts_with('[') && !accept(rest, "]") {
                return Err("Malformed tree expression: ] is expected".into());
            }
            if accept(rest, "{") {
                let (range, after) = rest.split_once('}').ok_or("Malformed tree expression: } is expected")?;
                *rest = after;
                child.range = Some(parse_range(range).ok_or("Malformed tree expression: a number is expected")?);
            }
            tree.children.insert(name.to_owned(), child);
            if !accept(rest, ",") {
                return Ok(tree);
            }
        }
    }

    /// Keeps only what is named; the class is always included. A map, unlike a bean, is kept whole
    /// (`Property.writeValue`).
    pub(super) fn prune(&self, value: Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.into_iter().filter_map(|(name, value)| {
                    if name == "_class" {
                        return Some((name, value));
                    }
                    let tree = self.children.get(&name).or_else(|| self.children.get("*"))?;
                    let value = if name == "monitorData" { value } else { tree.prune(value) };
                    Some((name, value))
                });
                Value::Object(kept.collect())
            }
            Value::Array(values) => {
                let (from, before) = self.range.unwrap_or((0, usize::MAX));
                let kept = values.into_iter().take(before).skip(from);
                kept.map(|value| self.prune(value)).collect()
            }
            other => other,
        }
    }
}

fn accept(rest: &mut &str, token: &str) -> bool {
    let after = rest.strip_prefix(token);
    *rest = after.unwrap_or(rest);
    after.is_some()
}

/// `N`, `N,`, `,M` or `N,M`.
fn parse_range(text: &str) -> Option<(usize, usize)> {
    let Some((from, before)) = text.split_once(',') else {
        let from = text.parse().ok()?;
        return Some((from, from + 1));
    };
    let number = |text: &str, default| if text.is_empty() { Some(default) } else { text.parse().ok() };
    Some((number(from, 0)?, number(before, usize::MAX)?))
}
