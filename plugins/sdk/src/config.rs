//! A simple configuration format: lines of `key = value`.

use std::collections::BTreeMap;
use std::str::FromStr;

/// One problem with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigIssue {
    /// The key, or a path to it; empty for the configuration as a whole.
    pub at: String,
    /// What is wrong, and what would be correct.
    pub problem: String,
}

impl ConfigIssue {
    /// An issue `at` a key.
    pub fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

/// A configuration of lines such as `slow-us = 5000`. Empty lines and lines that start with '#' are ignored.
///
/// Call [`Settings::take`] for every known key, then [`Settings::finish`], which reports unknown keys.
#[derive(Debug, Default)]
pub struct Settings {
    values: BTreeMap<String, String>,
    issues: Vec<ConfigIssue>,
}

impl Settings {
    /// Reads a configuration. [`Settings::finish`] reports lines that cannot be read.
    pub fn read(configuration: &[u8]) -> Self {
        let mut settings = Self::default();
        let Ok(text) = std::str::from_utf8(configuration) else {
            settings.issues.push(ConfigIssue::new("", "is not UTF-8; write lines of key = value"));
            return settings;
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.split_once('=') {
                Some((key, value)) => settings.insert(key.trim(), value.trim()),
                None => settings.issues.push(ConfigIssue::new(line, "is not key = value")),
            }
        }
        settings
    }

    fn insert(&mut self, key: &str, value: &str) {
        if self.values.insert(key.to_owned(), value.to_owned()).is_some() {
            self.issues.push(ConfigIssue::new(key, "is given twice; give it once"));
        }
    }

    /// Reads `key` into `field`, if it is present. `expected` describes a correct value in a few words.
    pub fn take<T: FromStr>(&mut self, key: &str, expected: &str, field: &mut T) {
        let Some(text) = self.values.remove(key) else { return };
        match text.parse() {
            Ok(value) => *field = value,
            Err(_) => self.issues.push(ConfigIssue::new(key, format!("{text:?} is not {expected}"))),
        }
    }

    /// Reports an issue that the plugin has found.
    pub fn refuse(&mut self, key: &str, problem: impl Into<String>) {
        self.issues.push(ConfigIssue::new(key, problem));
    }

    /// Returns all issues, unknown keys included.
    pub fn finish(mut self) -> Result<(), Vec<ConfigIssue>> {
        for key in self.values.keys() {
            self.issues.push(ConfigIssue::new(key, "is not known"));
        }
        if self.issues.is_empty() { Ok(()) } else { Err(self.issues) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_with_its_key() {
        let mut settings = Settings::read(b"# comment\n\na = 7\nb = x\nc\nd = 1\na = 8\n");
        let (mut a, mut b) = (0_u32, 5_u32);
        settings.take("a", "a number", &mut a);
        settings.take("b", "a number", &mut b);
        assert_eq!((a, b), (8, 5));
        let issues = settings.finish().unwrap_err();
        let at: Vec<&str> = issues.iter().map(|issue| issue.at.as_str()).collect();
        assert_eq!(at, ["c", "a", "b", "d"]);
    }

    #[test]
    fn an_empty_configuration_is_valid() {
        assert_eq!(Settings::read(b"").finish(), Ok(()));
        assert!(Settings::read(&[0xff]).finish().is_err());
    }
}
