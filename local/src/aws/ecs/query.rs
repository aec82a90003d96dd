//! The cluster query language (ECS developer guide, "Cluster query language"), used by `memberOf` and the filter of
//! ListContainerInstances.

use super::ApiError;
use super::input::invalid;

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Query {
    Not(Box<Query>),
    And(Box<Query>, Box<Query>),
    Or(Box<Query>, Box<Query>),
    /// A subject, an operator and its arguments.
    Test(String, Operator, Vec<String>),
}

/// How a subject is compared with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Exists,
    NotExists,
    In,
    NotIn,
    Matches,
    NotMatches,
}

impl Query {
    /// Reads an expression of at most 2000 characters (API_PlacementConstraint).
    ///
    /// # Errors
    /// When it is not a valid expression.
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let fault = || invalid(format!("Invalid expression: {text}"));
        if text.chars().count() > 2000 {
            return Err(fault());
        }
        let tokens = tokens(text);
        let mut parser = Parser { tokens: &tokens };
        let query = parser.any().ok_or_else(fault)?;
        if parser.tokens.is_empty() { Ok(query) } else { Err(fault()) }
    }

    /// Whether it holds for these values of subjects.
    pub(super) fn holds(&self, of: &dyn Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::Not(query) => !query.holds(of),
            Self::And(left, right) => left.holds(of) && right.holds(of),
            Self::Or(left, right) => left.holds(of) || right.holds(of),
            Self::Test(subject, operator, arguments) => {
                let value = of(subject);
                let value = value.as_deref();
                let first = arguments.first().map_or("", String::as_str);
                let order = |value: &str| match (value.parse::<f64>(), first.parse::<f64>()) {
                    (Ok(value), Ok(first)) => value.partial_cmp(&first),
                    _ => Some(value.cmp(first)),
                };
                match operator {
                    Operator::Exists => value.is_some(),
                    Operator::NotExists => value.is_none(),
                    Operator::Equal => value == Some(first),
                    Operator::NotEqual => value != Some(first),
                    Operator::In => value.is_some_and(|value| arguments.iter().any(|argument| argument == value)),
                    Operator::NotIn => value.is_none_or(|value| arguments.iter().all(|argument| argument != value)),
                    Operator::Matches => value.is_some_and(|value| matches(first.as_bytes(), value.as_bytes())),
                    Operator::NotMatches => value.is_none_or(|value| !matches(first.as_bytes(), value.as_bytes())),
                    Operator::Greater => value.and_then(order).is_some_and(|order| order.is_gt()),
                    Operator::GreaterOrEqual => value.and_then(order).is_some_and(|order| order.is_ge()),
                    Operator::Less => value.and_then(order).is_some_and(|order| order.is_lt()),
                    Operator::LessOrEqual => value.and_then(order).is_some_and(|order| order.is_le()),
                }
            }
        }
    }
}

/// Words, quoted words, and operator signs.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let sign = ["==", "!=", ">=", "<=", "=~", "!~", "&&", "||", "(", ")", "[", "]", ",", ">", "<", "!"]
            .into_iter()
            .find(|sign| rest.starts_with(sign));
        let (token, length) = if let Some(sign) = sign {
            (sign, sign.len())
        } else if matches!(first, '"' | '\'') {
            let quoted = &rest[1..];
            let end = quoted.find(first).unwrap_or(quoted.len());
            (&quoted[..end], (end + 2).min(rest.len()))
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "()[],=!<>&|".contains(c)).unwrap_or(rest.len());
            // A lone `=`, `&` or `|` is not a sign of the language; as a word, it cannot cause an endless loop.
            (&rest[..end.max(first.len_utf8())], end.max(first.len_utf8()))
        };
        tokens.push(token.to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}

struct Parser<'a> {
    tokens: &'a [String],
}

impl Parser<'_> {
    fn take(&mut self, wanted: &[&str]) -> bool {
        match self.tokens.split_first() {
            Some((first, rest)) if wanted.contains(&first.as_str()) => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn word(&mut self) -> Option<String> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    fn any(&mut self) -> Option<Query> {
        let mut query = self.all()?;
        while self.take(&["||", "or"]) {
            query = Query::Or(Box::new(query), Box::new(self.all()?));
        }
        Some(query)
    }

    fn all(&mut self) -> Option<Query> {
        let mut query = self.one()?;
        while self.take(&["&&", "and"]) {
            query = Query::And(Box::new(query), Box::new(self.one()?));
        }
        Some(query)
    }

    fn one(&mut self) -> Option<Query> {
        if self.take(&["!", "not"]) {
            return Some(Query::Not(Box::new(self.one()?)));
        }
        if self.take(&["("]) {
            let query = self.any()?;
            return self.take(&[")"]).then_some(query);
        }
        let subject = self.word()?;
        if self.take(&["exists"]) {
            return Some(Query::Test(subject, Operator::Exists, Vec::new()));
        }
        let operator = match self.word()?.as_str() {
            "==" | "equals" => Operator::Equal,
            "!=" | "not_equals" => Operator::NotEqual,
            ">" | "greater_than" => Operator::Greater,
            ">=" | "greater_than_equal" => Operator::GreaterOrEqual,
            "<" | "less_than" => Operator::Less,
            "<=" | "less_than_equal" => Operator::LessOrEqual,
            "=~" | "matches" => Operator::Matches,
            "!~" | "not_matches" => Operator::NotMatches,
            "in" => Operator::In,
            "not_in" => Operator::NotIn,
            "not_exists" => return Some(Query::Test(subject, Operator::NotExists, Vec::new())),
            "!" if self.take(&["exists"]) => return Some(Query::Test(subject, Operator::NotExists, Vec::new())),
            "!" if self.take(&["in"]) => Operator::NotIn,
            _ => return None,
        };
        let mut arguments = Vec::new();
        if matches!(operator, Operator::In | Operator::NotIn) {
            if !self.take(&["["]) {
                return None;
            }
            while !self.take(&["]"]) {
                arguments.push(self.word()?);
                self.take(&[","]);
            }
        } else {
            arguments.push(self.word()?);
        }
        Some(Query::Test(subject, operator, arguments))
    }
}

/// The part of regular expressions that is used for instance types: literals, `\.`, `.` and a `*` after either. The
/// whole text has to match.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (first, rest) = match pattern {
        [] => return text.is_empty(),
        [b'\\', escaped, rest @ ..] => (Some(*escaped), rest),
        [b'.', rest @ ..] => (None, rest),
        [literal, rest @ ..] => (Some(*literal), rest),
    };
    let fits = |byte: &u8| first.is_none_or(|first| first == *byte);
    if let [b'*', rest @ ..] = rest {
        let longest = text.iter().take_while(|byte| fits(byte)).count();
        return (0..=longest).any(|taken| matches(rest, &text[taken..]));
    }
    text.first().is_some_and(fits) && matches(rest, &text[1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str) -> Option<String> {
        let value = match name {
            "attribute:ecs.instance-type" => "g2.xlarge",
            "attribute:ecs.availability-zone" => "eu-west-1a",
            "attribute:stack" => "build agents",
            "agentConnected" => "true",
            "runningTasksCount" => "12",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn evaluates_expressions() {
        for (text, holds) in [
            ("attribute:ecs.instance-type == g2.xlarge", true),
            ("attribute:ecs.instance-type==g2.xlarge", true),
            ("attribute:ecs.instance-type != g2.xlarge", false),
            ("attribute:ecs.instance-type =~ g2.*", true),
            ("attribute:ecs.instance-type =~ t2.*", false),
            ("attribute:ecs.instance-type =~ g2\\.x.*e", true),
            ("attribute:ecs.instance-type !~ t2.*", true),
            ("attribute:ecs.availability-zone in [eu-west-1a, eu-west-1b]", true),
            ("attribute:ecs.availability-zone not_in [eu-west-1a, eu-west-1b]", false),
            ("attribute:ecs.availability-zone !in [eu-west-1b]", true),
            ("attribute:stack == 'build agents'", true),
            ("attribute:stack exists", true),
            ("attribute:none exists", false),
            ("attribute:none !exists", true),
            ("attribute:none not_exists", true),
            ("not(attribute:stack exists)", false),
            ("!attribute:none exists", true),
            ("runningTasksCount > 9", true),
            ("runningTasksCount <= 9", false),
            ("agentConnected == true and runningTasksCount == 12", true),
            ("agentConnected == false or (runningTasksCount == 12 && attribute:stack exists)", true),
        ] {
            let query = Query::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
            assert_eq!(query.holds(&subject), holds, "{text}");
        }
    }

    #[test]
    fn refuses_invalid_expressions() {
        for text in ["", "a", "a ==", "a = b", "a == b)", "(a == b", "a in b", "a in [b", "a == b c", "&", "'"] {
            assert!(Query::parse(text).is_err(), "{text}");
        }
        assert!(Query::parse(&format!("a == {}", "b".repeat(2000))).is_err());
    }
}
