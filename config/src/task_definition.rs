//! Names of task definitions, and the patterns for those that a request may ask for.

use std::fmt;

use serde::Deserialize;

/// A task definition: `family`, `family:revision` or a full ARN with its revision.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TaskDefinition(String);

impl TaskDefinition {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The family, without revision and ARN.
    pub fn family(&self) -> &str {
        let name = self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name);
        name.split_once(':').map_or(name, |(family, _)| family)
    }

    /// Region and account of the definition, if it is an ARN.
    pub fn region_and_account(&self) -> Option<(&str, &str)> {
        let mut parts = self.0.strip_prefix("arn:")?.split(':').skip(2);
        Some((parts.next()?, parts.next()?))
    }
}

impl fmt::Display for TaskDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TaskDefinition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_task_definition(&text) {
            Ok(Self(text))
        } else {
            Err("must be a task definition's ARN, family:revision or family".into())
        }
    }
}

/// API_RegisterTaskDefinition: a family has up to 255 letters, digits, underscores and hyphens.
pub(crate) fn is_task_definition(text: &str) -> bool {
    let name = match text.split_once(":task-definition/") {
        // arn:PARTITION:ecs:REGION:ACCOUNT
        Some((arn, name)) if is_ecs_arn(arn) && name.contains(':') => name,
        Some(_) => return false,
        None => text,
    };
    let (family, revision) = name.split_once(':').unwrap_or((name, "1"));
    is_family(family) && revision.parse::<u32>().is_ok_and(|revision| revision > 0)
}

fn is_ecs_arn(head: &str) -> bool {
    let parts: Vec<&str> = head.split(':').collect();
    matches!(parts.as_slice(), ["arn", partition, "ecs", region, account]
        if ![partition, region, account].iter().any(|part| part.is_empty()))
}

fn is_family(text: &str) -> bool {
    crate::rules::is_word(text, 255, "_-")
}

/// The families that a request may ask for: a family, or a prefix with `*` behind it.
#[derive(Debug, Clone, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(inline)]
pub struct FamilyPattern(#[schemars(regex(pattern = r"^([A-Za-z0-9_-]{1,255}|[A-Za-z0-9_-]{0,254}\*)$"))] String);

impl FamilyPattern {
    /// Whether the definition's family matches. An ARN is matched by its family alone.
    pub fn allows(&self, definition: &TaskDefinition) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => definition.family().starts_with(beginning),
            None => definition.family() == self.0,
        }
    }
}

impl fmt::Display for FamilyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FamilyPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let beginning = text.strip_suffix('*');
        let is_pattern = beginning.is_some_and(|beginning| beginning.is_empty() || is_family(beginning));
        if text.len() <= 255 && (is_pattern || is_family(&text)) {
            Ok(Self(text))
        } else {
            Err("must be a task definition's family, `*` at its end allowed".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(text: &str) -> TaskDefinition {
        text.to_owned().try_into().expect(text)
    }

    #[test]
    fn reads_family_revision_and_arn() {
        let arn = "arn:aws:ecs:eu-west-1:123456789012:task-definition/a_b-C:7";
        for (text, family, place) in [
            ("a", "a", None),
            ("a:7", "a", None),
            ("a_b-C", "a_b-C", None),
            (arn, "a_b-C", Some(("eu-west-1", "123456789012"))),
        ] {
            let definition = definition(text);
            assert_eq!((definition.family(), definition.region_and_account()), (family, place), "{text}");
        }
        let long = "a".repeat(256);
        for text in [
            "",
            "a b",
            "a:",
            ":7",
            "a:x",
            "a:0",
            "a:1:2",
            "a*",
            "task-definition/a:7",
            "x:task-definition/a:7",
            "arn:aws:ecs:eu-west-1:1:task-definition/a",
            "arn:aws:iam:eu-west-1:1:task-definition/a:1",
            "arn:aws:ecs::1:task-definition/a:1",
            &long,
        ] {
            assert!(TaskDefinition::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_is_matched_by_the_family() {
        for (pattern, text, allowed) in [
            ("jenkins-*", "jenkins-maven", true),
            ("jenkins-*", "jenkins-", true),
            ("jenkins-*", "jenkins", false),
            ("jenkins-*", "arn:aws:ecs:eu-west-1:123456789012:task-definition/jenkins-maven:7", true),
            ("jenkins-*", "arn:aws:ecs:eu-west-1:123456789012:task-definition/other:7", false),
            ("maven", "maven:3", true),
            ("maven", "maven2", false),
            ("*", "anything", true),
        ] {
            let pattern = FamilyPattern::try_from(pattern.to_owned()).expect(pattern);
            assert_eq!(pattern.allows(&definition(text)), allowed, "{pattern} {text}");
        }
        for wrong in ["", "a*b", "**", "a:1", "a b", "arn:aws:ecs:eu-west-1:1:task-definition/*"] {
            assert!(FamilyPattern::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
