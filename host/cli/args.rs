//! How values are spelled on the command line: durations, sizes, values, contexts, addresses.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::ValueEnum;
use clap::builder::{PathBufValueParser, TypedValueParser};
use witan_kernel::name::{Invalid, Zone};

use crate::config::value;
pub use crate::config::value::{duration, duration_or_none, size};

/// Why an argument cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misspelled {
    /// "@" alone.
    #[error("a file name is missing after '@'")]
    NoFileName,
    /// Something other than hexadecimal digits after "hex:".
    #[error("is not hexadecimal after \"hex:\"")]
    NotHexadecimal,
    /// A file that only a shell would find.
    #[error(transparent)]
    Path(#[from] value::Misspelled),
    /// A context or cursor that is not base64.
    #[error("is not base64 ({0}); take it from `kv get --output json`, or write hex:<hexadecimal>")]
    NotBase64(base64::DecodeError),
    /// An address without host or port.
    #[error("{0:?} is not HOST:PORT")]
    NotAnAddress(String),
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The argument itself.
    Inline(String),
    /// A file.
    File(PathBuf),
    /// Standard input.
    Input,
}

impl Source {
    /// Reads "-" as standard input, "@path" as a file, "@@text" as the text "@text", and anything else as itself.
    pub fn parse(text: &str) -> Result<Self, Misspelled> {
        Ok(match text.strip_prefix('@') {
            _ if text == "-" => Self::Input,
            Some("") => return Err(Misspelled::NoFileName),
            Some(rest) if rest.starts_with('@') => Self::Inline(rest.to_owned()),
            Some(path) => Self::File(PathBuf::from(value::whole_path(path)?)),
            None => Self::Inline(text.to_owned()),
        })
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than `limit` allows.
    pub fn read(&self, limit: &Limit) -> anyhow::Result<Bytes> {
        let bytes = match self {
            Self::Inline(text) => Bytes::copy_from_slice(text.as_bytes()),
            Self::Input => limit.start_of(std::io::stdin().lock()).context("read standard input")?,
            Self::File(path) => {
                let name = path.display();
                let file = std::fs::File::open(path).with_context(|| format!("open {name}"))?;
                limit.start_of(file).with_context(|| format!("read {name}"))?
            }
        };
        if bytes.len() <= limit.bytes {
            return Ok(bytes);
        }
        let Limit { field, bytes: most, remedy } = limit;
        match self {
            Self::Inline(_) => {
                anyhow::bail!("{field} has {} bytes, more than {most} bytes, the limit; {remedy}", bytes.len())
            }
            Self::Input => anyhow::bail!("{field}: standard input has more than {most} bytes, the limit; {remedy}"),
            Self::File(path) => {
                anyhow::bail!("{field}: {} has more than {most} bytes, the limit; {remedy}", path.display())
            }
        }
    }
}

/// How long a value from a [`Source`] may be.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The flag or argument, for messages.
    pub field: &'static str,
    /// Longest, in bytes.
    pub bytes: usize,
    /// What to do with a longer one.
    pub remedy: &'static str,
}

impl Limit {
    /// Reads up to one byte more than is allowed, which is enough to refuse it.
    fn start_of(&self, from: impl Read) -> std::io::Result<Bytes> {
        let mut bytes = Vec::new();
        from.take(self.bytes as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Bytes::from(bytes))
    }
}

/// An opaque context token, as `kv get` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token(pub Bytes);

impl Token {
    /// Reads base64, or hexadecimal after "hex:".
    pub fn parse(text: &str) -> Result<Self, Misspelled> {
        if let Some(hex) = text.strip_prefix("hex:") {
            return from_hex(hex).map(Self).ok_or(Misspelled::NotHexadecimal);
        }
        let decoded = STANDARD.decode(text).map_err(Misspelled::NotBase64)?;
        Ok(Self(Bytes::from(decoded)))
    }
}

fn from_hex(text: &str) -> Option<Bytes> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// A token in base64, as [`Token::parse`] reads it.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Splits "host:port"; an IPv6 host is in brackets.
pub fn address(text: &str) -> Result<(String, u16), Misspelled> {
    let wrong = || Misspelled::NotAnAddress(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| wrong())?))
}

/// Checks the name of a zone.
pub fn zone(text: &str) -> Result<String, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("zone", "is empty", "name one, or use --no-zone of `nodes update` for none"));
    }
    Zone::new(text).map(|zone| zone.as_str().to_owned())
}

/// Reads the name of a file or folder, which need not be UTF-8.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.to_str().map(value::whole_path) {
        Some(Err(error)) => Err(error),
        _ => Ok(path),
    })
}

/// The spelling of a choice that only the command line has.
pub fn spelling<T: ValueEnum>(choice: T) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Limit, Source, Token, address, base64, duration, size};

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "0s", "0.0001us", "-1s", "NaNs", "infs", "1y", "s", "9999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("256"), Ok(256));
        assert_eq!(size("4KiB"), Ok(4096));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        for wrong in ["", "KiB", "1GB", "-1", "99999999999999999999"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_come_from_arguments_files_and_input() {
        assert_eq!(Source::parse("text"), Ok(Source::Inline("text".to_owned())));
        assert_eq!(Source::parse("@@text"), Ok(Source::Inline("@text".to_owned())));
        assert_eq!(Source::parse("@a/b"), Ok(Source::File("a/b".into())));
        assert_eq!(Source::parse("-"), Ok(Source::Input));
        assert!(Source::parse("@").is_err());
        assert!(Source::parse("@~/b").unwrap_err().to_string().contains("/home/NAME"));

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0, 255, 10]).unwrap();
        let source = Source::File(file.path().to_owned());
        let limit = |bytes| Limit { field: "--configuration", bytes, remedy: "make it shorter" };
        assert_eq!(source.read(&limit(3)).unwrap().as_ref(), [0, 255, 10]);
        for source in [source, Source::Inline("abc".to_owned())] {
            let refused = source.read(&limit(2)).unwrap_err().to_string();
            for part in ["--configuration", "more than 2 bytes", "make it shorter"] {
                assert!(refused.contains(part), "{part:?} is not in {refused}");
            }
        }
    }

    #[test]
    fn tokens_are_base64_or_hexadecimal() {
        let bytes = [0_u8, 1, 254, 255];
        assert_eq!(Token::parse(&base64(&bytes)).unwrap().0.as_ref(), bytes);
        assert_eq!(Token::parse("hex:0001feFF").unwrap().0.as_ref(), bytes);
        for wrong in ["hex:0", "hex:zz", "not base64!"] {
            assert!(Token::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_may_be_ipv6() {
        assert_eq!(address("n1.example:50052"), Ok(("n1.example".to_owned(), 50052)));
        assert_eq!(address("[::1]:1"), Ok(("::1".to_owned(), 1)));
        for wrong in ["", "host", "host:", "host:70000", ":1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
