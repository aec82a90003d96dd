//! Reads a node from its configuration file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Node;
use super::form::{
    ENVIRONMENT, Reading, bind_launcher, class, default_launcher, number, parse_mode, part, retention_strategy, text,
};

/// A node's file, as `Jenkins.XSTREAM2` reads it: fields, not setters, and no constructor, so that missing values are
/// 0, false or null. What it cannot read, such as an unknown class or constant, is dropped
/// (`RobustReflectionConverter`), and the answer is 200.
pub(super) fn bind_xml(blank: Node, slave: &Element, reading: Reading) -> Result<Node, String> {
    if !matches!(slave.name.as_str(), "slave" | "hudson.slaves.DumbSlave") {
        return Err(format!("{} is no node", slave.name));
    }
    let fields = slave.fields();
    let mut node = blank;
    node.name = text(&fields, "name")?.unwrap_or_default();
    node.description = text(&fields, "description")?.unwrap_or_default();
    node.remote_fs = text(&fields, "remoteFS")?.unwrap_or_default();
    node.label_string = text(&fields, "label")?.unwrap_or_default().trim().to_owned();
    node.executors =
        number(&fields, "numExecutors").ok().flatten().and_then(|number| i32::try_from(number).ok()).unwrap_or(0);
    node.mode = text(&fields, "mode")?.and_then(|mode| parse_mode(&mode).ok()).unwrap_or_default();
    if let Some(launcher) = part(&fields, "launcher")? {
        node.launcher = bind_launcher(launcher, reading).unwrap_or_else(|_| default_launcher());
    }
    if let Some(strategy) = part(&fields, "retentionStrategy")? {
        node.retention_strategy = class(strategy).and_then(retention_strategy).ok();
    }
    if let Some(environment) = slave.find(&["nodeProperties", ENVIRONMENT, "envVars"]) {
        node.environment = bind_environment(environment)?;
    }
    Ok(node)
}

/// `EnvVars`, a `TreeMap` with a comparator of its own, as Java's serialisation writes it: a count, and then names and
/// values in the comparator's order. Jenkins would keep another order, and then not find its entries; here that is an
/// error.
fn bind_environment(variables: &Element) -> Result<BTreeMap<String, String>, String> {
    let map = variables.find(&["tree-map"]).ok_or("envVars: no tree-map")?;
    let strings: Vec<_> = map.children.iter().filter(|child| child.name == "string").collect();
    let count = map.find(&["int"]).and_then(|count| count.text.trim().parse::<usize>().ok());
    if strings.len() % 2 != 0 || count != Some(strings.len() / 2) {
        return Err("envVars: the count is not that of the variables".into());
    }
    if map.find(&["default", "comparator"]).is_none() {
        return Err("envVars: no comparator".into());
    }
    // `String.CASE_INSENSITIVE_ORDER` compares upper case, then lower case.
    let fold = |name: &str| name.to_uppercase().to_lowercase();
    let pairs: Vec<_> = strings.chunks(2).map(|pair| (pair[0].text.clone(), pair[1].text.clone())).collect();
    if pairs.windows(2).any(|pair| fold(&pair[0].0) >= fold(&pair[1].0)) {
        return Err("envVars: not in the comparator's order".into());
    }
    Ok(pairs.into_iter().collect())
}

/// An XML element. Jenkins' own files are XML 1.1, whose texts may hold control characters: roxmltree reads only 1.0.
#[derive(Debug, Default)]
pub(super) struct Element {
    name: String,
    class: Option<String>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    pub(super) fn parse(xml: &str) -> Result<Self, String> {
        use quick_xml::events::Event;
        // Jenkins' own files are XML 1.1, so that a text may hold control characters.
        const VERSION: quick_xml::XmlVersion = quick_xml::XmlVersion::Explicit1_1;
        let mut reader = quick_xml::Reader::from_str(xml);
        let mut document = Self::default();
        let mut open: Vec<Self> = Vec::new();
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let inner = open.last_mut().unwrap_or(&mut document);
            match event {
                Event::Start(start) => open.push(Self::start(&start)?),
                Event::Empty(start) => inner.children.push(Self::start(&start)?),
                Event::End(_) => {
                    let element = open.pop().ok_or("an end without a start")?;
                    open.last_mut().unwrap_or(&mut document).children.push(element);
                }
                Event::Text(text) => inner.text.push_str(&text.xml_content(VERSION)),
                Event::CData(text) => inner.text.push_str(&text.xml_content(VERSION)),
                Event::GeneralRef(reference) => {
                    let letter = reference.resolve_char_ref().map_err(|error| error.to_string())?.map(String::from);
                    let named = || quick_xml::escape::resolve_predefined_entity(&reference).map(str::to_owned);
                    inner.text.push_str(&letter.or_else(named).ok_or("an unknown entity")?);
                }
                Event::Eof if !open.is_empty() => return Err("the XML ends too early".into()),
                Event::Eof => return document.children.pop().ok_or_else(|| "no XML".into()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }

    fn start(start: &quick_xml::events::BytesStart<'_>) -> Result<Self, String> {
        let class = start.try_get_attribute("class").map_err(|error| error.to_string())?;
        let class = class.map(|class| class.normalized_value(quick_xml::XmlVersion::Explicit1_1)).transpose();
        let class = class.map_err(|error| error.to_string())?.map(Into::into);
        Ok(Self { name: start.name().0.to_owned(), class, ..Self::default() })
    }

    fn find(&self, path: &[&str]) -> Option<&Self> {
        match path {
            [] => Some(self),
            [first, rest @ ..] => self.children.iter().find(|child| child.name == *first)?.find(rest),
        }
    }

    /// The children as fields: a text, or an object that names its class.
    fn fields(&self) -> Map<String, Value> {
        let class = self.class.iter().map(|class| ("$class".to_owned(), json!(class)));
        let children = self.children.iter().map(|child| {
            let is_text = child.children.is_empty() && child.class.is_none();
            (child.name.clone(), if is_text { json!(child.text) } else { Value::Object(child.fields()) })
        });
        class.chain(children).collect()
    }
}
