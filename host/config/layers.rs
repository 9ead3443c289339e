//! Where values come from, and which of them is effective: defaults, a file, the environment, flags; later ones override
//! earlier ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::convert::convert;
use super::keys::{self, KEYS, Key, Kind};
use super::place::{Found, Places};
use super::problem::Problem;
use super::suggest;

/// The source of a value. Later ones override earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The default.
    Default,
    /// The file.
    File,
    /// The variable of this name.
    Environment(String),
    /// The flag of this name.
    Flag(&'static str),
}

impl Source {
    /// The layer of the source; a higher one overrides a lower one.
    fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File => 1,
            Self::Environment(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, PartialEq)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) source: Source,
}

/// Values by the path of their key.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Layers {
    given: BTreeMap<String, Given>,
    pub(super) problems: Vec<Problem>,
}

/// Alternative keys for the same setting: the one of the strongest source is effective, and that source may have only one.
const RIVALS: &[&[&str]] = &[
    &["database.url", "database.url_file", "database.host"],
    &["database.direct_url", "database.direct_url_file"],
    &["database.password", "database.password_file"],
    &["redis.url", "redis.url_file", "redis.addresses", "redis.host"],
    &["redis.password", "redis.password_file"],
];

impl Layers {
    /// The defaults.
    pub(super) fn defaults() -> Self {
        let mut layers = Self::default();
        for key in KEYS {
            if let Some(default) = key.default {
                layers.put(key, &Value::String(default.to_owned()), Source::Default);
            }
        }
        layers
    }

    fn put(&mut self, key: &Key, value: &Value, source: Source) {
        match convert(key.kind, value) {
            Ok(value) => _ = self.given.insert(key.path.to_owned(), Given { value, source }),
            Err(what) => self.problems.push(Problem::new(key.path, source, what)),
        }
    }

    /// Adds the values of a file.
    pub(super) fn file(&mut self, tree: &Value) {
        match tree {
            Value::Null => {}
            Value::Object(sections) => self.tree("", sections),
            _ => self.problems.push(Problem::new("", Source::File, "a configuration is sections with keys below them")),
        }
    }

    fn tree(&mut self, above: &str, entries: &Map<String, Value>) {
        for (name, value) in entries {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            match (keys::find(&path), value) {
                // A key without a value counts as absent.
                (Some(_), Value::Null) => {}
                (Some(key), value) => self.put(key, value, Source::File),
                (None, Value::Null) if keys::is_section(&path) => {}
                (None, Value::Object(entries)) if keys::is_section(&path) => self.tree(&path, entries),
                (None, _) if keys::is_section(&path) => {
                    let what = "is a section: write its keys below it, one per line";
                    self.problems.push(Problem::new(&path, Source::File, what));
                }
                // The types of that section check its keys.
                (None, value) if path.starts_with("security.") => self.raw(path, value.clone()),
                (None, _) => self.unknown(&path, Source::File),
            }
        }
    }

    fn raw(&mut self, path: String, value: Value) {
        self.given.insert(path, Given { value, source: Source::File });
    }

    /// Keys that are not in the table, as problems.
    pub(super) fn unknown_keys(&mut self) -> Vec<Problem> {
        let unknown: Vec<String> = self.given.keys().filter(|path| keys::find(path).is_none()).cloned().collect();
        unknown.iter().for_each(|path| self.unknown(path, Source::File));
        std::mem::take(&mut self.problems)
    }

    fn unknown(&mut self, path: &str, source: Source) {
        let what = match suggest::key(path) {
            Some(near) => format!("is not a key; did you mean {near}?"),
            None => "is not a key; `witan config print --documented` lists them all".to_owned(),
        };
        self.problems.push(Problem::new(path, source, what));
    }

    /// Adds the values of environment variables, `WITAN_SECTION__KEY`. Unknown variables without `__` are ignored.
    pub(super) fn environment(&mut self, variables: &[(String, String)]) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix("WITAN_") else { continue };
            let path = rest.to_lowercase().replace("__", ".");
            let source = Source::Environment(name.clone());
            match keys::find(&path) {
                Some(_) if value.trim().is_empty() => {}
                Some(key) => self.put(key, &Value::String(value.trim().to_owned()), source),
                None if rest.contains("__") => {
                    let near = suggest::key(&path).and_then(keys::find);
                    let what = match near {
                        Some(near) => format!("is not a variable of ours; did you mean {}?", near.variable()),
                        None => "is not a variable of ours; `witan config print --documented` lists them".to_owned(),
                    };
                    self.problems.push(Problem::new(&path, source, what));
                }
                None => {}
            }
        }
    }

    /// Reports variables whose values are not UTF-8. They are not shown, since they may be secrets.
    pub(super) fn garbled(&mut self, names: &[String]) {
        for name in names {
            let path = name.trim_start_matches("WITAN_").to_lowercase().replace("__", ".");
            if keys::find(&path).is_some() || path.contains('.') {
                let what = match keys::find(&path).is_some_and(|key| key.kind == Kind::Path) {
                    true => {
                        "is not UTF-8: give the file a name in UTF-8, or set it to a link with such a name".to_owned()
                    }
                    false => {
                        format!("is not UTF-8: set it again, or unset it; `printenv {name} | xxd` shows its bytes")
                    }
                };
                self.problems.push(Problem::new(&path, Source::Environment(name.clone()), what));
            }
        }
    }

    /// Makes the relative paths of the file whole. Returns a note for each that is not where it was expected.
    pub(super) fn place(&mut self, places: &Places) -> Vec<Problem> {
        let mut notes = Vec::new();
        for key in KEYS.iter().filter(|key| key.kind == Kind::Path) {
            let Some(given) = self.given.get_mut(key.path).filter(|given| given.source == Source::File) else {
                continue;
            };
            let Some(written) = given.value.as_str() else { continue };
            let Found { path, instead_of } = places.find(Path::new(written));
            if let Some(expected) = instead_of {
                let (expected, path) = (expected.display(), path.display());
                let what = format!(
                    "{expected} does not exist, so {path} in the working directory is used: relative paths are relative to the \
                     configuration file; move it there, or write the whole path"
                );
                notes.push(Problem::new(key.path, Source::File, what));
            }
            match path.into_os_string().into_string() {
                Ok(path) => given.value = Value::String(path),
                Err(_) => {
                    let what =
                        "is relative to a folder whose name is not UTF-8: rename that folder, or write a whole path";
                    self.problems.push(Problem::new(key.path, Source::File, what));
                }
            }
        }
        notes
    }

    /// Adds the values of flags.
    pub(super) fn flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            match keys::find(flag.key) {
                Some(key) => self.put(key, &Value::String(flag.value.clone()), Source::Flag(flag.name)),
                None => self.unknown(flag.key, Source::Flag(flag.name)),
            }
        }
    }

    /// Keeps the strongest of each group of alternatives.
    pub(super) fn settle(&mut self) {
        for rivals in RIVALS {
            let set: Vec<(&str, u8)> =
                rivals.iter().filter_map(|path| Some((*path, self.given.get(*path)?.source.rank()))).collect();
            let Some(strongest) = set.iter().map(|(_, rank)| *rank).max() else { continue };
            let mut effective = set.iter().filter(|(_, rank)| *rank == strongest);
            if let (Some((first, _)), Some((second, _))) = (effective.next(), effective.next()) {
                let source = self.given[*second].source.clone();
                let what = format!("means the same as {first}; remove one of them");
                self.problems.push(Problem::new(second, source, what));
            }
            for (path, _) in set.iter().filter(|(_, rank)| *rank < strongest) {
                self.given.remove(*path);
            }
        }
    }

    /// All values as one tree.
    pub(super) fn nested(&self) -> Value {
        let mut root = Map::new();
        for (path, given) in &self.given {
            insert(&mut root, path, given.value.clone());
        }
        Value::Object(root)
    }

    /// The source of the value at `path`.
    pub(super) fn source(&self, path: &str) -> Source {
        self.given.get(path).map_or(Source::Default, |given| given.source.clone())
    }

    /// The values by the path of their key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Given)> {
        self.given.iter().map(|(path, given)| (path.as_str(), given))
    }

    pub(super) fn get(&self, path: &str) -> Option<&Given> {
        self.given.get(path)
    }
}

fn insert(tree: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => _ = tree.insert(path.to_owned(), value),
        Some((section, rest)) => {
            let below = tree.entry(section).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// A flag of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag, as it is typed.
    pub name: &'static str,
    /// The key that it sets.
    pub key: &'static str,
    /// Its value, as in the environment.
    pub value: String,
}
