//! The names of agents: Jenkins node names, ECS `startedBy` values, and our only record of what is ours.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Hex digits of the hash at the end of a name.
const HASH_DIGITS: usize = 12;

/// `<prefix><template>-<12 hex digits>`: the same request always gives the same name.
///
/// ECS allows letters, digits, `-`, `_`, `/` and `.` in `startedBy` (API_RunTask), Jenkins forbids `/` and more in a
/// node's name (`Jenkins.checkGoodName`); templates and prefixes are held to what both take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct AgentName(String);

impl AgentName {
    /// The name of the agent with this index among those of the request.
    pub fn new(prefix: &str, template: &str, request_id: &str, index: u32) -> Self {
        let digest = Sha256::digest(format!("{request_id}\n{index}"));
        Self(format!("{prefix}{template}-{}", hex(&digest[..HASH_DIGITS / 2])))
    }

    /// Parses a name: it is ours only if it has exactly this form, with this prefix.
    pub fn parse(prefix: &str, name: &str) -> Option<Self> {
        let (template, hash) = name.strip_prefix(prefix)?.rsplit_once('-')?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        (hash.len() == HASH_DIGITS
            && hash.bytes().all(hex)
            && (1..=64).contains(&template.len())
            && template.bytes().all(word))
        .then(|| Self(name.to_owned()))
    }

    /// The template's part of the name.
    pub fn template<'a>(&'a self, prefix: &str) -> &'a str {
        &self.0[prefix.len()..self.0.len() - HASH_DIGITS - 1]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first 32 hex digits of a SHA-256: for tokens and notice ids, which only have to be stable.
pub fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize()[..16])
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;

    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_stable_and_can_be_parsed(
            template in "[A-Za-z0-9_-]{1,64}", id in "[A-Za-z0-9._:/-]{1,128}", index in 0u32..10
        ) {
            let name = AgentName::new("ecs-", &template, &id, index);
            prop_assert_eq!(&name, &AgentName::new("ecs-", &template, &id, index));
            prop_assert_ne!(&name, &AgentName::new("ecs-", &template, &id, index + 1));
            let parsed = AgentName::parse("ecs-", name.as_str()).expect("its own form");
            prop_assert_eq!(parsed.template("ecs-"), template);
            prop_assert!(name.as_str().len() <= 128);
        }
    }

    /// The pipeline step computes it too, so that it never mistakes another build's agent for its own
    /// (jenkins/test/trustTest.groovy).
    #[test]
    fn a_name_ends_in_what_the_pipeline_step_computes() {
        let name = AgentName::new("ecs-", "maven", "app/main/42/0a1b2c3d4e5f", 0);
        assert_eq!(name.as_str(), "ecs-maven-55d903eae0d8");
    }

    #[test]
    fn only_the_exact_form_is_ours() {
        for (name, ours) in [
            ("ecs-maven-0a1b2c3d4e5f", true),
            ("ecs-a-b-0a1b2c3d4e5f", true),
            ("ecs-svc/9223370591234567890", false),
            ("ecs-maven-0A1B2C3D4E5F", false),
            ("ecs-maven-0a1b2c3d4e5", false),
            ("ecs-maven-0a1b2c3d4e5f0", false),
            ("ecs--0a1b2c3d4e5f", false),
            ("ci-maven-0a1b2c3d4e5f", false),
            ("ecs-ma ven-0a1b2c3d4e5f", false),
            ("", false),
        ] {
            assert_eq!(AgentName::parse("ecs-", name).is_some(), ours, "{name}");
        }
    }
}
