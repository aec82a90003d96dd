//! IAM's decision about one access: allowed if a statement allows it and none denies it ("Policy evaluation logic"). An
//! unknown operator or element is an error: a policy that cannot be evaluated proves nothing.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::aws::Access;
use crate::cloudformation::{self, Stack};

/// One statement of a role's policies.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its Sid, unique in its role.
    pub sid: String,
    allows: bool,
    /// Actions as written, with wildcards.
    pub actions: Vec<String>,
    resources: Vec<Resource>,
    conditions: Vec<Condition>,
}

/// One element of a statement's resources.
#[derive(Debug, Clone)]
struct Resource {
    /// What the template names ([`cloudformation::words`]).
    name: String,
    /// The ARNs that this stands for, stars and all.
    patterns: Vec<String>,
}

#[derive(Debug, Clone)]
struct Condition {
    key: String,
    quantifier: Quantifier,
    operator: Operator,
    if_exists: bool,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Quantifier {
    /// The request's key has one value.
    One,
    /// `ForAllValues:`, true where the key is missing.
    All,
    /// `ForAnyValue:`, false where the key is missing.
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Equals,
    NotEquals,
    Like,
    NotLike,
    Null,
}

/// The permissions of a role.
#[derive(Debug, Clone, Default)]
pub struct Role {
    /// Its statements, including those of its managed policies.
    pub statements: Vec<Statement>,
}

impl Role {
    /// A role of a stack, with the managed policies of the same stack.
    ///
    /// # Errors
    /// When a policy is not understood.
    pub fn of(stack: &Stack, id: &str) -> Result<Self> {
        let properties = stack.properties(id)?;
        let written = |id: &str| &stack.template()["Resources"][id]["Properties"];
        let own = written(id)["Policies"].as_array().into_iter().flatten();
        let mut documents: Vec<&Value> = own.map(|policy| &policy["PolicyDocument"]).collect();
        for arn in properties["ManagedPolicyArns"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let ids = stack.of_type("AWS::IAM::ManagedPolicy")?;
            let policy = ids.into_iter().find(|id| stack.attribute(id, "Ref").is_ok_and(|own| own == arn));
            documents.push(&written(policy.with_context(|| format!("{arn} is of another stack"))?)["PolicyDocument"]);
        }
        let mut role = Self::default();
        for document in documents {
            for statement in document["Statement"].as_array().context("a policy without statements")? {
                let Some(statement) = stack.chosen(statement)? else { continue };
                let statement = Statement::read(stack, statement).with_context(|| format!("{id}: {statement}"))?;
                ensure!(
                    role.statements.iter().all(|other| other.sid != statement.sid),
                    "{id} has {} twice",
                    statement.sid
                );
                role.statements.push(statement);
            }
        }
        Ok(role)
    }

    /// The statements that allow an access.
    ///
    /// # Errors
    /// When none does, or one denies it.
    pub fn decide(&self, access: &Access) -> Result<Vec<&Statement>, String> {
        let matching: Vec<_> = self.statements.iter().filter(|statement| statement.matches(access)).collect();
        let denied = || {
            let near =
                self.statements.iter().filter(|statement| statement.names(access)).map(|statement| &statement.sid);
            let keys = access.keys.iter().map(|(key, values)| format!(" {key}={}", values.join(",")));
            let near: Vec<_> = near.cloned().collect();
            format!(
                "not authorized to perform: {} on resource: {}{} (statements with that action: {})",
                access.action,
                access.resource,
                keys.collect::<String>(),
                if near.is_empty() { "none".into() } else { near.join(", ") }
            )
        };
        if matching.is_empty() || matching.iter().any(|statement| !statement.allows) {
            Err(denied())
        } else {
            Ok(matching)
        }
    }
}

impl Statement {
    /// Reads a statement as the template has it.
    fn read(stack: &Stack, written: &Value) -> Result<Self> {
        let statement = &stack.value(written)?;
        for element in statement.as_object().context("no statement")?.keys() {
            ensure!(
                ["Sid", "Effect", "Action", "Resource", "Condition"].contains(&element.as_str()),
                "{element} is not understood"
            );
        }
        let mut conditions = Vec::new();
        for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
            for (key, values) in keys.as_object().context("no condition")? {
                conditions.push(Condition::read(operator, key, values)?);
            }
        }
        Ok(Self {
            sid: statement["Sid"].as_str().context("a statement without Sid")?.to_owned(),
            allows: match statement["Effect"].as_str() {
                Some("Allow") => true,
                Some("Deny") => false,
                other => bail!("Effect {other:?}"),
            },
            actions: texts(&statement["Action"])?,
            resources: elements(&written["Resource"])
                .map(|element| {
                    let patterns = texts(&stack.value(element)?)?;
                    Ok(Resource { name: cloudformation::words(element), patterns })
                })
                .collect::<Result<_>>()?,
            conditions,
        })
    }

    /// Whether one of its actions matches. Actions are case-insensitive.
    pub fn names(&self, access: &Access) -> bool {
        let action = access.action.to_lowercase();
        self.actions.iter().any(|pattern| like(&pattern.to_lowercase(), &action))
    }

    /// Whether it applies under the same condition keys, with the same operators.
    pub fn is_as_narrow_as(&self, other: &Self) -> bool {
        let keys = |statement: &Self| -> Vec<_> {
            let conditions = statement.conditions.iter();
            conditions.map(|it| (it.key.clone(), it.quantifier, it.operator, it.if_exists)).collect()
        };
        self.allows == other.allows && keys(self) == keys(other)
    }

    fn matches(&self, access: &Access) -> bool {
        // A call on all resources of a kind is allowed only by a statement about all of them.
        self.names(access)
            && self.resources.iter().any(|resource| resource.is_meant(access))
            && self.conditions.iter().all(|condition| condition.holds(&access.keys))
    }

    /// Each of its actions on each of its resources, and under each of its condition keys: `sqs:SendMessage on WaitingQueue`,
    /// `ecs:RunTask if ecs:cluster`.
    pub fn permissions(&self) -> Vec<String> {
        self.permissions_where(|_| true, |_| true, |_| true)
    }

    /// Those that an access which it allows makes use of: of the conditions, those whose key the access brings.
    pub fn used_by(&self, access: &Access) -> Vec<String> {
        self.permissions_where(
            |action| like(&action.to_lowercase(), &access.action.to_lowercase()),
            |resource| resource.is_meant(access),
            |condition| condition.given(&access.keys).is_some(),
        )
    }

    fn permissions_where(
        &self,
        action: impl Fn(&str) -> bool,
        resource: impl Fn(&Resource) -> bool,
        condition: impl Fn(&Condition) -> bool,
    ) -> Vec<String> {
        let resources = self.resources.iter().filter(|it| resource(it)).map(|it| format!("on {}", it.name));
        let conditions = self.conditions.iter().filter(|it| condition(it)).map(|it| format!("if {}", it.key));
        let objects: Vec<String> = resources.chain(conditions).collect();
        let actions = self.actions.iter().filter(|it| action(it));
        actions.flat_map(|action| objects.iter().map(move |object| format!("{action} {object}"))).collect()
    }
}

impl Resource {
    fn is_meant(&self, access: &Access) -> bool {
        self.patterns.iter().any(|pattern| like(pattern, &access.resource))
    }
}

impl Condition {
    fn read(operator: &str, key: &str, values: &Value) -> Result<Self> {
        let (quantifier, rest) = match operator.split_once(':') {
            Some(("ForAllValues", rest)) => (Quantifier::All, rest),
            Some(("ForAnyValue", rest)) => (Quantifier::Any, rest),
            Some(_) => bail!("the condition operator {operator} is not understood"),
            None => (Quantifier::One, operator),
        };
        let bare = rest.strip_suffix("IfExists").unwrap_or(rest);
        let operator = match bare {
            "StringEquals" | "Bool" => Operator::Equals,
            "StringNotEquals" => Operator::NotEquals,
            // "ArnEquals and ArnLike behave identically."
            "StringLike" | "ArnLike" | "ArnEquals" => Operator::Like,
            "StringNotLike" | "ArnNotLike" | "ArnNotEquals" => Operator::NotLike,
            "Null" => Operator::Null,
            _ => bail!("the condition operator {operator} is not understood"),
        };
        Ok(Self { key: key.to_owned(), quantifier, operator, if_exists: bare != rest, values: texts(values)? })
    }

    /// The values of its key in a request. The names of condition keys are case-insensitive.
    fn given<'a>(&self, keys: &'a BTreeMap<String, Vec<String>>) -> Option<&'a Vec<String>> {
        keys.iter().find(|(key, _)| key.eq_ignore_ascii_case(&self.key)).map(|(_, values)| values)
    }

    fn holds(&self, keys: &BTreeMap<String, Vec<String>>) -> bool {
        let given = self.given(keys);
        if self.operator == Operator::Null {
            return self.values == [given.is_none().to_string()];
        }
        let Some(given) = given else {
            let negated = matches!(self.operator, Operator::NotEquals | Operator::NotLike);
            return self.if_exists
                || match self.quantifier {
                    Quantifier::All => true,
                    Quantifier::Any => false,
                    Quantifier::One => negated,
                };
        };
        match self.quantifier {
            Quantifier::Any => given.iter().any(|value| self.fits(value)),
            Quantifier::One | Quantifier::All => given.iter().all(|value| self.fits(value)),
        }
    }

    fn fits(&self, value: &str) -> bool {
        let mut values = self.values.iter();
        match self.operator {
            Operator::Equals => values.any(|wanted| wanted == value),
            Operator::NotEquals => values.all(|wanted| wanted != value),
            Operator::Like => values.any(|wanted| like(wanted, value)),
            Operator::NotLike => values.all(|wanted| !like(wanted, value)),
            Operator::Null => false,
        }
    }
}

/// The elements of a list, or the only one.
fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    let (list, single) = match value {
        Value::Array(values) => (values.as_slice(), None),
        single => (&[][..], Some(single)),
    };
    list.iter().chain(single)
}

/// A string, a Boolean, or a list of them.
fn texts(value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(value) => Ok(value.to_string()),
        other => bail!("{other} is no text"),
    };
    elements(value).map(one).collect()
}

/// Whether a text matches a pattern in which `*` stands for any characters and `?` for one.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut position) = (0, 0);
    let mut star = None;
    while position < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match star {
                Some((back, taken)) => {
                    star = Some((back, taken + 1));
                    at = back + 1;
                    position = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]
mod tests {
    use serde_json::json;

    use super::*;

    fn access(action: &str, resource: &str, keys: &[(&str, &[&str])]) -> Access {
        let keys = keys
            .iter()
            .map(|(key, values)| ((*key).to_owned(), values.iter().map(|&value| value.to_owned()).collect()));
        Access { action: action.into(), resource: resource.into(), keys: keys.collect() }
    }

    fn read(statement: &Value) -> Result<Statement> {
        let stack = Stack::new("{Parameters: {}, Resources: {Queue: {Type: 'AWS::SQS::Queue'}}}", ("r", "1"), &[], &[]);
        Statement::read(&stack.unwrap(), statement)
    }

    fn role(statements: Value) -> Role {
        let statements = statements.as_array().unwrap().iter().map(|statement| read(statement).unwrap());
        Role { statements: statements.collect() }
    }

    #[test]
    fn patterns_have_stars_and_question_marks() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*:task/*", "arn:aws:ecs:r:1:task/c/1", true),
            ("jenkins-*", "jenkins", false),
            ("a*b*c", "aXbYbZc", true),
        ] {
            assert_eq!(like(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn evaluates_conditions() {
        let holds = |operator: &str, values: Value, given: &[(&str, &[&str])]| {
            Condition::read(operator, "k", &values).unwrap().holds(&access("", "", given).keys)
        };
        assert!(holds("StringEquals", json!("v"), &[("k", &["v"])]));
        assert!(!holds("StringEquals", json!("v"), &[("k", &["V"])]));
        assert!(!holds("StringEquals", json!("v"), &[]), "a missing key fits nothing");
        assert!(holds("StringEqualsIfExists", json!("v"), &[]));
        assert!(holds("StringNotEquals", json!("v"), &[]), "a missing key differs");
        assert!(holds("ArnEquals", json!(["x", "arn:*:c"]), &[("K", &["arn:a:c"])]), "keys know no case");
        assert!(holds("ForAllValues:StringEquals", json!(["a", "b"]), &[("k", &["a", "b"])]));
        assert!(!holds("ForAllValues:StringEquals", json!(["a"]), &[("k", &["a", "b"])]));
        assert!(holds("ForAllValues:StringEquals", json!(["a"]), &[]), "true of no values");
        assert!(holds("ForAnyValue:StringLike", json!("b*"), &[("k", &["a", "bc"])]));
        assert!(!holds("ForAnyValue:StringLike", json!("b*"), &[]));
        assert!(holds("Null", json!("false"), &[("k", &["a"])]));
        assert!(!holds("Null", json!(false), &[]));
        assert!(Condition::read("NumericEquals", "k", &json!("1")).is_err());
    }

    #[test]
    fn a_denial_overrides_an_allowance() {
        let role = role(json!([
            {"Sid": "All", "Effect": "Allow", "Action": "sqs:*", "Resource": "*"},
            {"Sid": "Not", "Effect": "Deny", "Action": "sqs:SendMessage", "Resource": "arn:b"},
        ]));
        assert_eq!(role.decide(&access("sqs:sendmessage", "arn:a", &[])).unwrap()[0].sid, "All");
        assert!(role.decide(&access("sqs:SendMessage", "arn:b", &[])).is_err());
        assert!(role.decide(&access("sns:Publish", "arn:a", &[])).unwrap_err().contains("none"));
    }

    #[test]
    fn refuses_a_policy_that_cannot_be_evaluated() {
        let statement = json!({"Sid": "S", "Effect": "Allow", "NotAction": "x", "Resource": "*"});
        assert!(read(&statement).is_err());
    }

    #[test]
    fn an_access_uses_its_action_on_its_resource_and_the_conditions_that_it_brings() {
        let statement =
            read(&json!({"Sid": "S", "Effect": "Allow", "Action": ["sqs:SendMessage", "sqs:ReceiveMessage"],
            "Resource": ["arn:*:other", {"Fn::GetAtt": ["Queue", "Arn"]}],
            "Condition": {"StringEqualsIfExists": {"k": "v"}, "ForAllValues:StringLike": {"l": "*"}}}));
        let statement = statement.unwrap();
        let all = statement.permissions();
        assert_eq!(all.len(), 2 * (2 + 2), "{all:?}");
        let used = |keys: &[(&str, &[&str])]| -> Vec<String> {
            statement.used_by(&access("sqs:sendmessage", "arn:aws:sqs:r:1:agents-Queue", keys))
        };
        assert_eq!(used(&[]), ["sqs:SendMessage on Queue"]);
        assert_eq!(used(&[("L", &["a"])]), ["sqs:SendMessage on Queue", "sqs:SendMessage if l"]);
        assert!(used(&[]).iter().all(|permission| all.contains(permission)));
    }
}
