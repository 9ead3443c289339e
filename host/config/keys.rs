//! Every key of the configuration, once: its meaning, format and default. The documentation, the defaults, the checks of file
//! and environment, and the suggestions in error messages all come from here.

mod table;

pub use table::KEYS;

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its path, such as `server.port`.
    pub path: &'static str,
    /// The format of its value.
    pub kind: Kind,
    /// Its default.
    pub default: Option<&'static str>,
    /// What happens without it, if it has no default.
    pub otherwise: &'static str,
    /// Its meaning.
    pub about: &'static str,
    /// An example, if its kind has no suitable one.
    pub sample: &'static str,
    /// Whether a change of the file takes effect without a restart.
    pub reloads: bool,
    /// Why it is accepted without having an effect.
    pub idle: Option<&'static str>,
}

/// The format of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Text.
    Text,
    /// Text that is never shown.
    Secret,
    /// The name of a file or folder.
    Path,
    /// `true` or `false`.
    Flag,
    /// A whole number between these bounds, inclusive.
    Number(u64, u64),
    /// A number from 0 to 1.
    Share,
    /// A time with its unit; above zero.
    Time,
    /// The same, or 0 for never.
    TimeOrNever,
    /// Bytes, with or without a unit.
    Size,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// A list of storage nodes.
    Nodes,
}

impl Kind {
    /// The description in the documentation.
    pub fn shown(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Secret => "text, kept secret".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Number(0, u64::MAX) => "number".to_owned(),
            Self::Number(from, u64::MAX) => format!("number from {from}"),
            Self::Number(from, to) => format!("number, {from} to {to}"),
            Self::Share => "number, 0 to 1".to_owned(),
            Self::Time => "time: us, ms, s, m, h".to_owned(),
            Self::TimeOrNever => "time: us, ms, s, m, h; or 0".to_owned(),
            Self::Size => "size: B, KiB, MiB, GiB".to_owned(),
            Self::Choice(choices) => choices.join(" / "),
            Self::Texts => "list of texts".to_owned(),
            Self::Nodes => "list of nodes".to_owned(),
        }
    }
}

impl Key {
    pub(super) const fn new(path: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { path, kind, default: None, otherwise: "none", about, sample: "", reloads: false, idle: None }
    }

    const fn default(self, text: &'static str) -> Self {
        Self { default: Some(text), ..self }
    }

    const fn otherwise(self, text: &'static str) -> Self {
        Self { otherwise: text, ..self }
    }

    const fn sample(self, text: &'static str) -> Self {
        Self { sample: text, ..self }
    }

    const fn reloads(self) -> Self {
        Self { reloads: true, ..self }
    }

    const fn idle(self, why: &'static str) -> Self {
        Self { idle: Some(why), ..self }
    }

    /// An example of its value, as written in the environment.
    pub fn example(&self) -> &'static str {
        match (self.sample, self.default) {
            ("", Some(default)) => default,
            ("", None) => match self.kind {
                Kind::Text | Kind::Texts => "text",
                Kind::Secret => "a-secret",
                Kind::Path => "/etc/witan/file",
                Kind::Flag => "true",
                Kind::Number(..) | Kind::Share => "1",
                Kind::Time | Kind::TimeOrNever => "5s",
                Kind::Size => "64MiB",
                Kind::Choice(choices) => choices[0],
                Kind::Nodes => "node-1=10.0.0.1:50052",
            },
            (sample, _) => sample,
        }
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("WITAN_{}", self.path.to_uppercase().replace('.', "__"))
    }
}

/// The key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether `path` is a section with keys.
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}
