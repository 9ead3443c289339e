//! How durations, sizes and secrets are spelled, and kept.

use std::fmt;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use witan_kernel::weight::Weights;

/// Why a text is not a duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misspelled {
    /// A duration without a unit.
    #[error("a unit is missing: write 500ms, 10s, 5m or 1h")]
    NoUnit,
    /// A duration with an unknown unit.
    #[error("{0:?} is not a unit of time: use us, ms, s, m or h")]
    TimeUnit(String),
    /// A size with an unknown unit.
    #[error("{0:?} is not a unit of size: use B, KiB, MiB or GiB")]
    SizeUnit(String),
    /// What precedes the unit.
    #[error("{0:?} is not a number")]
    Number(String),
    /// A duration that is zero, negative or too long.
    #[error("must be above zero and at most 30 days")]
    TimeRange,
    /// A path that only a shell understands.
    #[error(
        "{0:?} begins with ~, which only a shell replaces, and only at the beginning of a word: write the whole path, as in \
         /home/NAME/FILE, or ./~ for a file of that name"
    )]
    Home(String),
    /// A size beyond what this machine can address.
    #[error("is too large")]
    SizeRange,
}

/// Reads "250us", "500ms", "10s", "5m" or "1h"; fractions are allowed, at most 30 days.
///
/// # Errors
/// When the text is not a duration, or out of range.
pub fn duration(text: &str) -> Result<Duration, Misspelled> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" => return Err(Misspelled::NoUnit),
        other => return Err(Misspelled::TimeUnit(other.to_owned())),
    };
    let number: f64 = number.trim().parse().map_err(|_| Misspelled::Number(number.to_owned()))?;
    let seconds = number * unit;
    if !(seconds > 0.0 && seconds <= 30.0 * 86_400.0) {
        return Err(Misspelled::TimeRange);
    }
    // Less than half a nanosecond is rounded to nothing.
    Some(Duration::from_secs_f64(seconds)).filter(|time| !time.is_zero()).ok_or(Misspelled::TimeRange)
}

/// Reads a duration as [`duration`] does, or "0" for none at all.
///
/// # Errors
/// As [`duration`].
pub fn duration_or_none(text: &str) -> Result<Duration, Misspelled> {
    if text == "0" || text == "0s" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Reads a number of bytes: "256", "4KiB", "1MiB", "2GiB".
///
/// # Errors
/// When the text is not a size.
pub fn size(text: &str) -> Result<usize, Misspelled> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: usize = match unit.trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        other => return Err(Misspelled::SizeUnit(other.to_owned())),
    };
    let number: usize = number.parse().map_err(|_| Misspelled::Number(number.to_owned()))?;
    number.checked_mul(unit).ok_or(Misspelled::SizeRange)
}

/// A path that means the same to a shell and to this process.
///
/// # Errors
/// When it begins with `~`: nothing is there, and a folder of that name would be created.
pub fn whole_path(text: &str) -> Result<&str, Misspelled> {
    if text.starts_with('~') { Err(Misspelled::Home(text.chars().take(200).collect())) } else { Ok(text) }
}

/// A duration in the largest unit in which it is whole.
pub fn spelled(duration: Duration) -> String {
    let micros = duration.as_micros();
    let units = [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1000, "ms")];
    match units.into_iter().find(|(unit, _)| micros > 0 && micros.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", micros / unit),
        None if micros == 0 => "0s".to_owned(),
        None => format!("{micros}us"),
    }
}

/// A duration, written as text.
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
        to.serialize_str(&spelled(self.0))
    }
}

/// Shown in place of a secret.
pub const HIDDEN: &str = "***";

/// Text that is never printed or logged.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for authenticating with it.
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

/// Weights of tenants, by which they share what there is not enough of; those that are not here have 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantWeights(pub Weights);

impl<'de> Deserialize<'de> for TenantWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Vec::<String>::deserialize(deserializer)?;
        Weights::parse("tenants.weights", &entries).map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for TenantWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.entries())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["500us", "250ms", "5s", "5m", "30m", "24h", "90m"] {
            assert_eq!(spelled(duration(text).unwrap()), text);
        }
        assert_eq!(spelled(Duration::ZERO), "0s");
        assert_eq!(duration_or_none("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!((format!("{secret:?}"), serde_json::to_string(&secret).unwrap()), ("***".into(), "\"***\"".into()));
        assert_eq!(secret.reveal(), "hunter2");
    }
}
