//! The configuration of a coordinator: defaults, a YAML file, the environment and flags; later ones override earlier ones.
//!
//! Reading order: `keys` (the one table of all keys), `layers` (which of several values is effective), `settings` (the result
//! as types), `check` (what the types cannot express), `database` and `redis` (addresses assembled from keys), `print`.
//!
//! Secrets are in a type that does not print them, and files with secrets are read only here.

mod check;
mod convert;
pub mod database;
pub mod keys;
mod layers;
mod place;
pub mod print;
mod problem;
pub mod redis;
pub mod settings;
mod suggest;
pub mod value;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use check::{NotAnAddress, address, plain_host};
pub use convert::{NotANode, node};
pub use layers::{Flag, Source};
pub use print::documented;
pub use problem::{KeyError, Problem, Problems, Shown};
pub use settings::Settings;

use layers::Layers;
use place::Places;

/// Largest file, in bytes: the longest sensible one lists a thousand storage nodes.
pub(crate) const FILE_BYTES: u64 = 1 << 20;

/// The sources of a configuration besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// The file.
    pub file: Option<PathBuf>,
    /// Environment variables; those without the prefix `WITAN_` are ignored.
    pub environment: Vec<(String, String)>,
    /// Names of such variables whose values are not UTF-8.
    pub garbled: Vec<String>,
    /// Flags.
    pub flags: Vec<Flag>,
}

impl Inputs {
    /// The file, or else the one that WITAN_CONFIG names, and this process's environment.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let (mut environment, mut garbled) = (Vec::new(), Vec::new());
        for (name, value) in std::env::vars_os() {
            // A name that is not UTF-8 cannot be one of ours.
            let Some(name) = name.to_str().filter(|name| name.starts_with("WITAN_")) else { continue };
            match value.into_string() {
                Ok(value) => environment.push((name.to_owned(), value)),
                Err(_) => garbled.push(name.to_owned()),
            }
        }
        // The name of a file need not be UTF-8.
        let named = || std::env::var_os("WITAN_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
        Self { file: file.or_else(named), environment, garbled, flags }
    }
}

/// A valid configuration.
#[derive(Clone)]
pub struct Loaded {
    /// The effective values.
    pub settings: Settings,
    /// Notes for the operator, which do not prevent its use.
    pub notes: Vec<Problem>,
    /// Its sources.
    pub inputs: Inputs,
    layers: Layers,
}

impl Loaded {
    /// Reads all sources, and checks the result.
    ///
    /// # Errors
    /// When it is invalid, with all problems that can be found at once.
    pub fn read(inputs: Inputs) -> Result<Self, Problems> {
        let failed = |all: Vec<Problem>| Problems { file: inputs.file.clone(), all };
        let mut layers = Layers::defaults();
        if let Some(file) = &inputs.file {
            let tree = parse(file).map_err(|what| failed(vec![Problem::new("", Source::File, what)]))?;
            layers.file(&tree);
        }
        layers.environment(&inputs.environment);
        layers.garbled(&inputs.garbled);
        layers.flags(&inputs.flags);
        layers.settle();
        let places = inputs.file.as_deref().and_then(Places::of);
        let moved = places.map_or_else(Vec::new, |places| layers.place(&places));
        let mut problems = std::mem::take(&mut layers.problems);
        let settings = match typed(&mut layers) {
            Ok(settings) => settings,
            Err(more) => {
                problems.extend(more);
                return Err(failed(problems));
            }
        };
        let checked = check::check(&settings, &layers, inputs.file.as_deref());
        problems.extend(checked.problems);
        if problems.is_empty() {
            let notes = moved.into_iter().chain(checked.notes).collect();
            return Ok(Self { settings, notes, inputs, layers });
        }
        Err(failed(problems))
    }

    /// Whether the value of a key differs.
    pub fn differs(&self, other: &Self, path: &str) -> bool {
        let value = |loaded: &Self| loaded.layers.get(path).map(|given| given.value.clone());
        value(self) != value(other)
    }

    /// The text value of a key, if it has one.
    pub fn text(&self, path: &str) -> Option<String> {
        self.layers.get(path)?.value.as_str().map(str::to_owned)
    }

    /// Where the value of a key comes from.
    pub fn source(&self, path: &str) -> Source {
        self.layers.source(path)
    }
}

/// Reads a YAML file.
fn parse(file: &Path) -> Result<Value, String> {
    let text = read_small(file)?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    // Without a snippet around the mistake, which may contain a password.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| format!("is not YAML: {error}"))
}

/// Reads the configuration, a text of bounded size. It may come from a pipe, but not from one that nobody writes to.
fn read_small(file: &Path) -> Result<String, String> {
    file.to_str().map_or(Ok(""), value::whole_path).map_err(|error| error.to_string())?;
    let cannot = |error: io::Error| format!("{} cannot be read: {error}", file.display());
    let path = file.to_owned();
    let read = witan_file::in_time(file, move || {
        let about = std::fs::metadata(&path)?.len();
        let mut text = String::new();
        // The size that was just asked for says nothing of a device or a pipe.
        if about <= FILE_BYTES {
            std::fs::File::open(&path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
        }
        Ok((about, text))
    });
    let (about, text) = read.map_err(cannot)?;
    if about > FILE_BYTES {
        return Err(format!("{} has {about} bytes; at most {FILE_BYTES} are allowed", file.display()));
    }
    if text.len() as u64 > FILE_BYTES {
        return Err(format!("{} has more than {FILE_BYTES} bytes, the most that are allowed", file.display()));
    }
    Ok(text)
}

/// Reads a text file that holds a secret, a key or certificates.
fn read_secret(file: &Path) -> Result<String, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("{} cannot be read: {why}", file.display());
    let content = witan_file::read(file, FILE_BYTES).map_err(|error| cannot(&error))?;
    String::from_utf8(content).map_err(|_| cannot(&"it is not text in UTF-8"))
}

fn typed(layers: &mut Layers) -> Result<Settings, Vec<Problem>> {
    serde_path_to_error::deserialize(layers.nested()).map_err(|error| {
        let unknown = layers.unknown_keys();
        if !unknown.is_empty() {
            return unknown;
        }
        let path = error.path().to_string();
        let source = layers.source(&path);
        vec![Problem::new(&path, source, error.inner().to_string())]
    })
}

#[cfg(test)]
mod tests;
