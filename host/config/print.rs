//! Prints the configuration, with the source of each value, and the page that explains every key.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Loaded;
use super::keys::{KEYS, Kind};
use super::layers::Source;
use super::value::HIDDEN;

/// A key's value and its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The key's path.
    pub key: &'static str,
    /// The effective value; `None`: not set, and no default. Secrets are hidden.
    pub value: Option<Value>,
    /// Its source.
    pub source: Source,
}

impl Loaded {
    /// Every key with its effective value, in the order of the table.
    pub fn effective(&self) -> Vec<Effective> {
        let of = |key: &'static super::keys::Key| {
            let given = self.layers.get(key.path);
            let value = given.map(|given| match key.kind {
                Kind::Secret => json!(HIDDEN),
                Kind::Texts => {
                    given.value.as_array().map_or(json!([]), |texts| texts.iter().map(without_user).collect())
                }
                _ => given.value.clone(),
            });
            Effective { key: key.path, value, source: self.source(key.path) }
        };
        KEYS.iter().map(of).collect()
    }

    /// The effective values as YAML, each with its source.
    pub fn yaml(&self) -> String {
        let mut out = String::new();
        let mut open: Vec<&str> = Vec::new();
        for Effective { key, value, source } in self.effective() {
            let Some(value) = value else { continue };
            let parts: Vec<&str> = key.split('.').collect();
            let Some((name, sections)) = parts.split_last() else { continue };
            let shared = open.iter().zip(sections).take_while(|(a, b)| a == b).count();
            for (depth, section) in sections.iter().enumerate().skip(shared) {
                let _ = writeln!(out, "{}{section}:", "  ".repeat(depth));
            }
            open = sections.to_vec();
            // JSON is valid YAML, and quotes text.
            let line = format!("{}{name}: {value}", "  ".repeat(sections.len()));
            let _ = writeln!(out, "{line:<50} # {source}");
        }
        out
    }

    /// The effective values as JSON.
    pub fn json(&self) -> Value {
        let shown = |Effective { key, value, source }: Effective| json!({ "key": key, "value": value, "source": source.to_string() });
        json!({ "keys": self.effective().into_iter().map(shown).collect::<Vec<_>>() })
    }
}

/// Hides the part of an address that may contain a password.
fn without_user(address: &Value) -> Value {
    let text = address.as_str().unwrap_or_default();
    match text.rsplit_once('@') {
        Some((_, host)) => json!(format!("{HIDDEN}@{host}")),
        None => json!(text),
    }
}

/// Every key, explained: the generated part of docs/configuration.md.
pub fn documented() -> String {
    let mut out = String::new();
    let mut section = "";
    for key in KEYS {
        let head = key.path.rsplit_once('.').map_or(key.path, |(head, _)| head);
        if head != section {
            section = head;
            let _ = write!(out, "\n### {section}\n\n");
        }
        let holds = match key.default {
            Some(default) => format!("default `{default}`"),
            None => format!("without it: {}", key.otherwise),
        };
        let _ = writeln!(out, "- **`{}`** ({}; {holds}). {}", key.path, key.kind.shown(), key.about);
        let _ = write!(out, "  `{}`", key.variable());
        if key.reloads {
            out.push_str(" A change takes effect without a restart.");
        }
        if let Some(why) = key.idle {
            let _ = write!(out, " **Without effect**: {why}.");
        }
        out.push('\n');
    }
    out.trim_start().to_owned()
}
