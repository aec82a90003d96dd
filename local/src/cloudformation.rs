//! CloudFormation templates with their parameters substituted: enough to compare a template with what the functions do.
//! Anything unknown is an error, never ignored.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

/// Reads a template: `!Ref X` becomes `{"Ref": "X"}`, as the long form has it.
///
/// # Errors
/// When it is not YAML.
pub fn parse(text: &str) -> Result<Value> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let Node(value) = serde_saphyr::from_str_with_options(text, options)?;
    Ok(value)
}

/// A value with its tags in the long form.
struct Node(Value);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let serde_saphyr::Tagged(Plain(value), tag) = Deserialize::deserialize(deserializer)?;
        let tag = tag.as_deref().and_then(|tag| tag.strip_prefix('!'));
        Ok(Self(match tag {
            None => value,
            Some("Ref") => json!({"Ref": value}),
            Some("Condition") => json!({"Condition": value}),
            Some("GetAtt") => match value.as_str().and_then(|text| text.split_once('.')) {
                Some((resource, attribute)) => json!({"Fn::GetAtt": [resource, attribute]}),
                None => json!({"Fn::GetAtt": value}),
            },
            Some(function) => {
                let mut call = Map::new();
                call.insert(format!("Fn::{function}"), value);
                Value::Object(call)
            }
        }))
    }
}

/// A value whose own tag was read already.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Self)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
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

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Node(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some((key, Node(value))) = map.next_entry::<String, Node>()? {
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

/// A template as one stack has it.
pub struct Stack {
    template: Value,
    parameters: BTreeMap<String, Value>,
    names: BTreeMap<String, String>,
    region: String,
    account: String,
}

/// The name of every stack here.
pub const STACK: &str = "agents";

impl Stack {
    /// Substitutes parameters; the others have their defaults. `names` are the resources whose physical name is not
    /// `STACK-LogicalId`.
    ///
    /// # Errors
    /// When a parameter is unknown, missing or refused, or a rule fails: with the template's own words.
    pub fn new(
        text: &str,
        (region, account): (&str, &str),
        given: &[(&str, &str)],
        names: &[(&str, &str)],
    ) -> Result<Self> {
        let template = parse(text)?;
        let mut parameters = BTreeMap::new();
        let declared = template["Parameters"].as_object().context("no Parameters")?;
        for (name, _) in given {
            ensure!(declared.contains_key(*name), "there is no parameter {name}");
        }
        for (name, declaration) in declared {
            let given = given.iter().find(|(given, _)| given == name).map(|(_, value)| (*value).to_owned());
            let default =
                || declaration.get("Default").map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
            let text = given.or_else(default).with_context(|| format!("{name} is missing"))?;
            parameters.insert(name.clone(), read_parameter(name, declaration, &text)?);
        }
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let names = names.iter().map(owned).collect();
        let stack = Self { template, parameters, names, region: region.into(), account: account.into() };
        stack.obey_rules()?;
        Ok(stack)
    }

    /// "Rules": where the condition holds, the assertions have to hold.
    fn obey_rules(&self) -> Result<()> {
        for rule in self.template["Rules"].as_object().into_iter().flat_map(Map::values) {
            if rule.get("RuleCondition").map_or(Ok(true), |condition| self.holds(condition))? {
                for assertion in rule["Assertions"].as_array().into_iter().flatten() {
                    ensure!(self.holds(&assertion["Assert"])?, "{}", text(&assertion["AssertDescription"])?);
                }
            }
        }
        Ok(())
    }

    /// The existing resources of one type, by their logical ids.
    ///
    /// # Errors
    /// When a condition is not understood.
    pub fn of_type(&self, kind: &str) -> Result<Vec<&str>> {
        let all = self.template["Resources"].as_object().context("no Resources")?;
        let mut found = Vec::new();
        for (id, resource) in all.iter().filter(|(_, resource)| resource["Type"] == kind) {
            if self.exists(resource)? {
                found.push(id.as_str());
            }
        }
        Ok(found)
    }

    fn exists(&self, resource: &Value) -> Result<bool> {
        resource.get("Condition").map_or(Ok(true), |name| self.condition(text(name)?))
    }

    /// The properties of a resource, fully substituted.
    ///
    /// # Errors
    /// When there is no such resource, or it is not understood.
    pub fn properties(&self, id: &str) -> Result<Value> {
        let resource = self.template["Resources"].get(id).with_context(|| format!("no resource {id}"))?;
        ensure!(self.exists(resource)?, "{id} is not made with these parameters");
        self.value(&resource["Properties"]).with_context(|| id.to_owned())
    }

    /// A value with its conditions decided and its functions as written; none for `AWS::NoValue`.
    ///
    /// # Errors
    /// When a condition is not understood.
    pub fn chosen<'a>(&self, value: &'a Value) -> Result<Option<&'a Value>> {
        match only(value) {
            Some(("Fn::If", argument)) => {
                self.chosen(&argument[if self.condition(text(&argument[0])?)? { 1 } else { 2 }])
            }
            Some(("Ref", name)) if name == "AWS::NoValue" => Ok(None),
            _ => Ok(Some(value)),
        }
    }

    /// The template as it was read.
    pub fn template(&self) -> &Value {
        &self.template
    }

    fn condition(&self, name: &str) -> Result<bool> {
        self.holds(self.template["Conditions"].get(name).with_context(|| format!("no condition {name}"))?)
    }

    /// A condition function.
    fn holds(&self, test: &Value) -> Result<bool> {
        let (function, argument) = only(test).with_context(|| format!("{test} is no condition"))?;
        let all = || argument.as_array().into_iter().flatten();
        Ok(match function {
            "Condition" => self.condition(text(argument)?)?,
            "Fn::Not" => !self.holds(&argument[0])?,
            "Fn::And" => all().map(|test| self.holds(test)).collect::<Result<Vec<_>>>()?.into_iter().all(|held| held),
            "Fn::Or" => all().map(|test| self.holds(test)).collect::<Result<Vec<_>>>()?.into_iter().any(|held| held),
            "Fn::Equals" => self.value(&argument[0])? == self.value(&argument[1])?,
            "Fn::Contains" => {
                let (list, value) = (self.value(&argument[0])?, self.value(&argument[1])?);
                list.as_array().context("Fn::Contains takes a list")?.contains(&value)
            }
            _ => bail!("the condition {function} is not understood"),
        })
    }

    /// A value with everything substituted. `AWS::NoValue` is omitted.
    ///
    /// # Errors
    /// When a function is not understood.
    pub fn value(&self, value: &Value) -> Result<Value> {
        if let Some((function, argument)) = only(value)
            && (function == "Ref" || function.starts_with("Fn::"))
        {
            return self.function(function, argument);
        }
        Ok(match value {
            Value::Array(values) => {
                let values = values.iter().map(|value| self.value(value)).collect::<Result<Vec<_>>>()?;
                values.into_iter().filter(|value| !value.is_null()).collect()
            }
            Value::Object(members) => {
                let members = members.iter().map(|(key, value)| Ok((key.clone(), self.value(value)?)));
                members
                    .filter(|member| member.as_ref().is_ok_and(|(_, value)| !value.is_null()) || member.is_err())
                    .collect::<Result<Map<_, _>>>()?
                    .into()
            }
            scalar => scalar.clone(),
        })
    }

    fn function(&self, function: &str, argument: &Value) -> Result<Value> {
        Ok(match function {
            "Ref" => self.reference(text(argument)?)?,
            "Fn::GetAtt" => self.attribute(text(&argument[0])?, text(&argument[1])?)?.into(),
            "Fn::If" => self.value(&argument[if self.condition(text(&argument[0])?)? { 1 } else { 2 }])?,
            "Fn::Join" => {
                let parts = self.value(&argument[1])?;
                let parts = parts.as_array().context("Fn::Join takes a list")?;
                parts.iter().map(shown).collect::<Vec<_>>().join(text(&argument[0])?).into()
            }
            "Fn::Sub" => match argument {
                Value::String(text) => self.substitute(text, &Map::new())?.into(),
                _ => {
                    let own = self.value(&argument[1])?;
                    self.substitute(text(&argument[0])?, own.as_object().context("Fn::Sub takes a map")?)?.into()
                }
            },
            _ => bail!("{function} is not understood"),
        })
    }

    fn substitute(&self, text: &str, own: &Map<String, Value>) -> Result<String> {
        let mut parts = text.split("${");
        let mut result = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = part.split_once('}').with_context(|| format!("${{{part} has no end"))?;
            let value = match (own.get(name), name.split_once('.')) {
                (Some(value), _) => shown(value),
                (None, Some((id, attribute))) => self.attribute(id, attribute)?,
                (None, None) => shown(&self.reference(name)?),
            };
            result.push_str(&value);
            result.push_str(rest);
        }
        Ok(result)
    }

    fn reference(&self, name: &str) -> Result<Value> {
        Ok(match name {
            "AWS::NoValue" => Value::Null,
            "AWS::Region" => self.region.as_str().into(),
            "AWS::AccountId" => self.account.as_str().into(),
            "AWS::Partition" => "aws".into(),
            "AWS::StackName" => STACK.into(),
            "AWS::URLSuffix" => "amazonaws.com".into(),
            _ => match self.parameters.get(name) {
                Some(value) => value.clone(),
                None => self.attribute(name, "Ref")?.into(),
            },
        })
    }

    /// The value of Ref (`Ref`) and Fn::GetAtt of a resource ("Resource and property types reference", "Return
    /// values").
    ///
    /// # Errors
    /// When that is not known here.
    pub fn attribute(&self, id: &str, attribute: &str) -> Result<String> {
        let kind = self.template["Resources"][id]["Type"].as_str();
        let name = self.names.get(id).cloned().unwrap_or_else(|| format!("{STACK}-{id}"));
        let (region, account) = (&self.region, &self.account);
        let arn = |service: &str, resource: String| format!("arn:aws:{service}:{region}:{account}:{resource}");
        Ok(match (kind, attribute) {
            (Some("AWS::SQS::Queue"), "Ref") => format!("https://sqs.{region}.amazonaws.com/{account}/{name}"),
            (Some("AWS::SQS::Queue"), "Arn") => arn("sqs", name),
            (Some("AWS::SQS::Queue"), "QueueName") => name,
            (Some("AWS::SNS::Topic"), "Ref") => arn("sns", name),
            (Some("AWS::Logs::LogGroup"), "Arn") => arn("logs", format!("log-group:{name}:*")),
            (Some("AWS::IAM::Role"), "Arn") => format!("arn:aws:iam::{account}:role/{name}"),
            (Some("AWS::IAM::ManagedPolicy"), "Ref") => format!("arn:aws:iam::{account}:policy/{name}"),
            (Some("AWS::CloudWatch::Alarm"), "Arn") => arn("cloudwatch", format!("alarm:{name}")),
            (Some("AWS::Events::Rule"), "Arn") => arn("events", format!("rule/{name}")),
            (Some("AWS::Serverless::Function"), "Arn") => arn("lambda", format!("function:{name}")),
            (Some("AWS::Serverless::Function" | "AWS::Logs::LogGroup"), "Ref") => name,
            // The rule `FunctionEvent` that SAM creates for a function's event.
            (None, "Arn") if self.is_rule(id) => arn("events", format!("rule/{name}")),
            (None, "Ref") if self.is_rule(id) => name,
            _ => bail!("{id}.{attribute} is not known"),
        })
    }

    fn is_rule(&self, id: &str) -> bool {
        self.template["Resources"].as_object().into_iter().flatten().any(|(function, resource)| {
            let events = &resource["Properties"]["Events"];
            let event = id.strip_prefix(function.as_str()).and_then(|event| events[event]["Type"].as_str());
            matches!(event, Some("EventBridgeRule" | "Schedule"))
        })
    }
}

/// What a value refers to, for a document: a parameter, a resource, a text.
pub fn words(value: &Value) -> String {
    if let Value::Array(values) = value {
        return values.iter().map(words).collect::<Vec<_>>().join(", ");
    }
    match only(value) {
        Some(("Ref", name)) => shown(name),
        Some(("Fn::GetAtt", argument)) => shown(&argument[0]),
        Some(("Fn::Sub", text)) => format!("`{}`", shown(text).replace("AWS::", "")),
        _ if value == "*" => "any".into(),
        _ => format!("`{}`", shown(value)),
    }
}

/// A parameter's text, validated by its declaration. The pattern of a list applies to each member ("Parameters").
fn read_parameter(name: &str, declaration: &Value, given: &str) -> Result<Value> {
    let refused = || match declaration["ConstraintDescription"].as_str() {
        Some(words) => format!("{name}: {words}"),
        None => format!("{name}: {given:?} is refused"),
    };
    let list = declaration["Type"] == "CommaDelimitedList";
    let members: Vec<&str> = if list { given.split(',').map(str::trim).collect() } else { vec![given] };
    if let Some(pattern) = declaration["AllowedPattern"].as_str() {
        let pattern = regex::Regex::new(&format!("^(?:{pattern})$"))?;
        ensure!(members.iter().all(|member| pattern.is_match(member)), "{}", refused());
    }
    if let Some(allowed) = declaration["AllowedValues"].as_array() {
        ensure!(allowed.iter().any(|value| shown(value) == given), "{}", refused());
    }
    if declaration["Type"] == "Number" {
        let number: f64 = given.parse().with_context(refused)?;
        let within = declaration["MinValue"].as_f64().is_none_or(|least| number >= least)
            && declaration["MaxValue"].as_f64().is_none_or(|most| number <= most);
        ensure!(within, "{}", refused());
    }
    Ok(if list { members.into() } else { given.into() })
}

/// The only member of an object.
fn only(value: &Value) -> Option<(&str, &Value)> {
    let members = value.as_object().filter(|members| members.len() == 1)?;
    members.iter().next().map(|(key, value)| (key.as_str(), value))
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
