//! Names of tenants, keys, nodes, stores and writes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::limit;

/// A value that breaks a rule of the data model: the field, the problem, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct Invalid {
    /// The field's name in the API.
    pub field: &'static str,
    /// What is wrong, with the value (shortened).
    pub problem: String,
    /// What to send instead.
    pub remedy: String,
}

impl Invalid {
    /// An invalid `field`.
    pub fn new(field: &'static str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field, problem: problem.into(), remedy: remedy.into() }
    }
}

/// Most characters of a client's text in a message: enough to find it in the request.
const SHOWN: usize = 40;

/// A client's text in a message: in quotes, and shortened.
pub fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short:?} (shortened)") } else { format!("{short:?}") }
}

/// Characters that are not seen, or that move others: the general categories Cc, Cf, Zl and Zp of Unicode 16. Sorted.
const INVISIBLE: [(char, char); 21] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    // The separators of lines and of paragraphs, then marks of direction.
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{2064}'),
    ('\u{2066}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0001}', '\u{e0001}'),
    // Letters that only programs see.
    ('\u{e0020}', '\u{e007f}'),
];

/// Whether a character is not seen, or moves others: a control, a format character, or a separator of lines or paragraphs.
pub fn is_invisible(c: char) -> bool {
    let past = INVISIBLE.partition_point(|(first, _)| *first <= c);
    c.is_control() || past.checked_sub(1).is_some_and(|at| c <= INVISIBLE[at].1)
}

/// A tenant's id: 1..=256 bytes of UTF-8 without ':' and control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Bytes);

impl TenantId {
    /// Checks and wraps an id.
    pub fn new(id: impl Into<String>) -> Result<Self, Invalid> {
        let id = id.into();
        let remedy = || format!("use 1 to {} bytes of UTF-8 without ':' and control characters", limit::TENANT_BYTES);
        if id.is_empty() {
            return Err(Invalid::new("tenant_id", "is empty", remedy()));
        }
        if id.len() > limit::TENANT_BYTES {
            return Err(Invalid::new("tenant_id", format!("has {} bytes", id.len()), remedy()));
        }
        if let Some(bad) = id.chars().find(|c| *c == ':' || c.is_control()) {
            return Err(Invalid::new("tenant_id", format!("{id:?} contains {bad:?}"), remedy()));
        }
        Ok(Self(Bytes::from(id.into_bytes())))
    }

    /// Checks what only a new tenant's id must be: without characters that nobody sees, or that change the order of others, so that no id
    /// looks like another one. Ids of before, which may have them, go on working.
    ///
    /// # Errors
    /// When it contains one; the message names it by its number.
    pub fn check_new(&self) -> Result<(), Invalid> {
        let Some(bad) = self.as_str().chars().find(|c| is_invisible(*c)) else { return Ok(()) };
        let id: String = self.as_str().escape_debug().collect();
        Err(Invalid::new(
            "tenant_id",
            format!(
                "\"{id}\" contains U+{:04X}, which is invisible or changes the direction of the text",
                u32::from(bad)
            ),
            "use visible characters only: an id must not look like another one",
        ))
    }

    /// Wraps an id that another part of this system has checked already (a peer, a stored row).
    pub fn from_trusted(id: Bytes) -> Self {
        Self(id)
    }

    /// The id's bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("(not UTF-8)")
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key: 1..=1024 bytes. The API accepts UTF-8 only; replicas accept any bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Bytes);

impl Key {
    /// Checks and wraps a key.
    pub fn new(key: impl Into<Bytes>) -> Result<Self, Invalid> {
        let key = key.into();
        let remedy = || format!("use 1 to {} bytes", limit::KEY_BYTES);
        if key.is_empty() {
            return Err(Invalid::new("key", "is empty", remedy()));
        }
        if key.len() > limit::KEY_BYTES {
            return Err(Invalid::new("key", format!("has {} bytes", key.len()), remedy()));
        }
        Ok(Self(key))
    }

    /// Wraps a key that another part of this system has checked already.
    pub fn from_trusted(key: Bytes) -> Self {
        Self(key)
    }

    /// The key's bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

/// A storage node's id: 1..=128 of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Checks and wraps an id.
    pub fn new(id: impl AsRef<str>) -> Result<Self, Invalid> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > 128 || !id.chars().all(is_plain) {
            return Err(Invalid::new(
                "node_id",
                format!("{} is not a node id", shown(id)),
                "use 1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-'",
            ));
        }
        Ok(Self(Arc::from(id)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What fails together with a storage node: at most 64 of `a-z A-Z 0-9 . _ -`. Empty for a node that names none; all of those count as one
/// zone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Zone(Arc<str>);

impl Zone {
    /// Checks and wraps a name; an empty one is none.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Invalid> {
        let name = name.as_ref();
        if name.len() > limit::ZONE_BYTES || !name.chars().all(is_plain) {
            let most = limit::ZONE_BYTES;
            return Err(Invalid::new(
                "zone",
                format!("{} is not a zone", shown(name)),
                format!("use at most {most} of a-z, A-Z, 0-9, '.', '_' and '-', or leave it empty for none"),
            ));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name as text; empty for none.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the node names no zone.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// In messages.
impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() { f.write_str("no zone") } else { write!(f, "zone {}", self.as_str()) }
    }
}

/// The characters of names that appear in addresses, file names and labels of metrics.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

macro_rules! sixteen {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads 16 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The bytes as 32 lower-case hexadecimal digits.
            pub fn hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

sixteen! {
    /// The id of a client's intention to write. A retry repeats it, so that both together have one effect.
    WriteId
}

sixteen! {
    /// The id of a store, drawn when an empty store is created and when a backup is restored. It is part of every actor, so that a wiped
    /// disk cannot reuse a dot.
    StoreId
}

sixteen! {
    /// An era of the cluster: from one restore of all its stores to the next. Zero until the first one is declared.
    Era
}

impl std::str::FromStr for NodeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_new_tenant_has_nothing_invisible() {
        for good in ["acme", "Müller & Söhne", "日本", "a b", "\u{5e9}\u{5dc}\u{5d5}\u{5dd}", "\u{1f40e}"] {
            assert_eq!(TenantId::new(good).unwrap().check_new(), Ok(()), "{good}");
        }
        let bad = [
            "acme\u{200b}",
            "\u{202e}emca",
            "a\u{ad}b",
            "\u{feff}acme",
            "a\u{2028}b",
            "a\u{e0061}",
            "a\u{2066}b\u{2069}",
            "a\u{200d}b",
        ];
        for id in bad {
            let invalid = TenantId::new(id).expect("ids of before go on working").check_new().unwrap_err();
            assert_eq!(invalid.field, "tenant_id");
            let shown = invalid.to_string();
            assert!(shown.contains("U+") && !shown.chars().any(is_invisible), "{shown}");
        }
    }

    #[test]
    fn names_are_bounded_and_say_what_they_are_made_of() {
        let of = |bytes: usize| "n".repeat(bytes);
        assert_eq!([0, 1, 1024, 1025].map(|bytes| Key::new(of(bytes)).is_ok()), [false, true, true, false]);
        assert_eq!([0, 1, 128, 129].map(|bytes| NodeId::new(of(bytes)).is_ok()), [false, true, true, false]);
        assert_eq!([0, 1, 64, 65].map(|bytes| Zone::new(of(bytes)).is_ok()), [true, true, true, false]);
        assert_eq!([0, 1, 256, 257].map(|bytes| TenantId::new(of(bytes)).is_ok()), [false, true, true, false]);
        for good in ["a", "Z", "0", ".", "_", "-", "eu-west_1.B"] {
            assert!(NodeId::new(good).is_ok() && Zone::new(good).is_ok(), "{good}");
        }
        for bad in [" ", "a b", "a/b", "a:b", "é", "a\n"] {
            assert!(NodeId::new(bad).is_err() && Zone::new(bad).is_err(), "{bad:?}");
        }
        assert!(Zone::default().is_none() && !Zone::new("z").unwrap().is_none());
        assert_eq!([Zone::default(), Zone::new("z").unwrap()].map(|zone| zone.to_string()), ["no zone", "zone z"]);
        assert_eq!(format!("{:?} {:?}", Zone::new("z").unwrap(), TenantId::new("t").unwrap()), r#""z" "t""#);
        let node = NodeId::new("n").unwrap();
        assert_eq!(format!("{node} {node:?} {}", node.as_str()), "n n n");
        let key = Key::new("k\n").unwrap();
        assert_eq!((key.to_string(), format!("{key:?}")), ("k\n".to_owned(), r#""k\n""#.to_owned()));
        assert_eq!(WriteId([0x0f; 16]).to_string(), "0f".repeat(16));
        assert_eq!(format!("{:?}", WriteId([0xa1; 16])), "a1".repeat(16));
    }

    #[test]
    fn a_long_text_is_shortened_in_messages() {
        assert_eq!(shown(""), r#""""#);
        assert_eq!(shown("a\n"), r#""a\n""#);
        let of = |count: usize| "é".repeat(count);
        assert_eq!(shown(&of(SHOWN)), format!("\"{}\"", of(SHOWN)));
        assert_eq!(shown(&of(SHOWN + 1)), format!("\"{}\" (shortened)", of(SHOWN)));
    }

    #[test]
    fn what_is_invisible_is_what_unicode_says() {
        let all: Vec<char> = ('\0'..=char::MAX).filter(|c| is_invisible(*c)).collect();
        // 65 controls, 170 format characters, and two separators, in Unicode 16.
        assert_eq!(all.len(), 65 + 170 + 2);
        for c in all {
            // The standard library has a table of its own, of all that cannot be printed, private and unassigned ones among them.
            assert!(c.escape_debug().count() > 1, "{c:?} can be printed");
        }
        for c in ['a', ' ', '\u{a0}', '\u{3000}', '\u{301}', '\u{fe0f}', '\u{e000}'] {
            assert!(!is_invisible(c), "{c:?} is not of these categories");
        }
    }
}
