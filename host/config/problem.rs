//! Problems of a configuration, with what to do about them.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::layers::Source;

/// A key whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct KeyError {
    /// The key's path.
    pub key: &'static str,
    /// What is wrong with its value, and what to do.
    pub what: String,
}

impl KeyError {
    /// The value of `key` cannot be used.
    pub fn new(key: &'static str, what: impl Into<String>) -> Self {
        Self { key, what: what.into() }
    }
}

/// An error in the value of a key, or a note about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key's path; empty when it concerns the whole file.
    pub key: String,
    /// The source of its value.
    pub source: Source,
    /// What is wrong with it, and what to do.
    pub what: String,
}

impl Problem {
    /// A problem with the value of `key`.
    pub fn new(key: &str, source: Source, what: impl Into<String>) -> Self {
        Self { key: key.to_owned(), source, what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Environment(name) => write!(f, "{name}: {}", self.what),
            Source::Flag(name) => write!(f, "{name}: {}", self.what),
            Source::File | Source::Default if self.key.is_empty() => f.write_str(&self.what),
            Source::File | Source::Default => write!(f, "{}: {}", self.key, self.what),
        }
    }
}

/// All errors in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file, when there is one.
    pub file: Option<PathBuf>,
    /// The errors; at least one.
    pub all: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        for problem in &self.all {
            f.write_str("\n  ")?;
            if let (Some(file), Source::File | Source::Default) = (&self.file, &problem.source) {
                write!(f, "{}: ", file.display())?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A problem, for JSON output.
#[derive(Debug, Serialize)]
pub struct Shown {
    key: String,
    source: String,
    message: String,
}

impl From<&Problem> for Shown {
    fn from(problem: &Problem) -> Self {
        Self { key: problem.key.clone(), source: problem.source.to_string(), message: problem.what.clone() }
    }
}
