//! Durations as the configuration writes them: `90s`, `15m`, `2h` or `never`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest time that something may take; `never` is no limit, and the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit(pub Option<Duration>);

impl Limit {
    /// No limit.
    pub const NEVER: Self = Self(None);

    /// This many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Some(Duration::from_secs(seconds)))
    }

    /// This many minutes.
    pub const fn minutes(minutes: u64) -> Self {
        Self::seconds(minutes * 60)
    }

    /// Whether something that has lasted since then has lasted too long.
    pub fn is_over(self, since: Timestamp, now: Timestamp) -> bool {
        self.0.is_some_and(|limit| elapsed(since, now) >= limit)
    }
}

/// The time since then; zero if it lies in the future.
pub fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration: write 90s, 15m, 2h or never");
        if text == "never" {
            return Ok(Self::NEVER);
        }
        let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        // A century is more than any setting needs, and keeps all sums of times in range.
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
            Some(0) => Err(format!("{text:?} must be above 0; write never for no limit")),
            Some(seconds) if seconds <= 100 * 366 * 24 * 3600 => Ok(Self::seconds(seconds)),
            _ => Err(format!("{text:?} is too long; write never for no limit")),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|limit| limit.as_secs()) {
            None => f.write_str("never"),
            Some(seconds) if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            Some(seconds) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            Some(seconds) => write!(f, "{seconds}s"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl schemars::JsonSchema for Limit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "90s, 15m, 2h or never",
            "pattern": "^(0*[1-9][0-9]*[smh]|never)$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, seconds) in [("90s", Some(90)), ("15m", Some(900)), ("2h", Some(7200)), ("never", None)] {
            let limit: Limit = text.parse().expect(text);
            assert_eq!(limit.0.map(|limit| limit.as_secs()), seconds);
            assert_eq!(limit.to_string(), text);
        }
        for wrong in ["", "15", "m", "-5m", "0s", "00h", "1.5h", "1d", "5 m", "Never", "9999999999999999999h", "é"] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }
}
