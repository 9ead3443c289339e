//! How durations, sizes and secrets are spelt, and kept.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Reads "250us", "500ms", "10s", "5m" or "1h"; fractions are allowed, at most 30 days.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" => return Err("a unit is missing: write 500ms, 10s, 5m or 1h".to_owned()),
        other => return Err(format!("{other:?} is not a unit of time: use us, ms, s, m or h")),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("{number:?} is not a number"))?;
    let seconds = number * unit;
    if !(seconds > 0.0 && seconds <= 30.0 * 86_400.0) {
        return Err("must be above zero and at most 30 days".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Reads a duration as [`duration`] does, or "0" for none at all.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" || text == "0s" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Reads a number of bytes: "256", "4KiB", "1MiB", "2GiB".
pub fn size(text: &str) -> Result<usize, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: usize = match unit.trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        other => return Err(format!("{other:?} is not a unit of size: use B, KiB, MiB or GiB")),
    };
    let number: usize = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
    number.checked_mul(unit).ok_or_else(|| "is too large".to_owned())
}

/// A duration as a person would write it, in whole units.
pub fn spelt(duration: Duration) -> String {
    let micros = duration.as_micros();
    let units = [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1000, "ms")];
    match units.into_iter().find(|(unit, _)| micros > 0 && micros.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", micros / unit),
        None if micros == 0 => "0s".to_owned(),
        None => format!("{micros}us"),
    }
}

/// A time that is written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        duration_or_none(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&spelt(self.0))
    }
}

/// What is shown in place of a secret.
pub const HIDDEN: &str = "***";

/// Text that is neither printed nor logged.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` to itself.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever needs it to get in somewhere.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["500us", "250ms", "5s", "5m", "30m", "24h", "90m"] {
            assert_eq!(spelt(duration(text).unwrap()), text);
        }
        assert_eq!(spelt(Duration::ZERO), "0s");
        assert_eq!(duration_or_none("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!((format!("{secret:?}"), serde_json::to_string(&secret).unwrap()), ("***".into(), "\"***\"".into()));
        assert_eq!(secret.reveal(), "hunter2");
    }
}
