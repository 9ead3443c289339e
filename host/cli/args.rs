//! How values are spelt on the command line: durations, sizes, values, contexts, addresses.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::ValueEnum;

pub use crate::config::value::{duration, duration_or_none, size};

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
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text.strip_prefix('@') {
            _ if text == "-" => Self::Input,
            Some("") => return Err("a file name is missing after '@'".to_owned()),
            Some(rest) if rest.starts_with('@') => Self::Inline(rest.to_owned()),
            Some(path) => Self::File(PathBuf::from(path)),
            None => Self::Inline(text.to_owned()),
        })
    }

    /// Reads it all; at most `limit` bytes.
    pub fn read(&self, limit: usize) -> anyhow::Result<Bytes> {
        let within = |mut from: Box<dyn Read>, name: String| {
            let mut bytes = Vec::new();
            let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
            from.by_ref().take(most).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
            anyhow::ensure!(bytes.len() <= limit, "{name} has more than {limit} bytes, which is the limit");
            Ok(Bytes::from(bytes))
        };
        match self {
            Self::Inline(text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Self::Input => within(Box::new(std::io::stdin().lock()), "standard input".to_owned()),
            Self::File(path) => {
                let name = path.display().to_string();
                let file = std::fs::File::open(path).with_context(|| format!("open {name}"))?;
                within(Box::new(file), name)
            }
        }
    }
}

/// An opaque context token, as `kv get` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token(pub Bytes);

impl Token {
    /// Reads base64, or hexadecimal behind "hex:".
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(hex) = text.strip_prefix("hex:") {
            return from_hex(hex).map(Self).ok_or_else(|| "is not hexadecimal after \"hex:\"".to_owned());
        }
        let decoded = STANDARD.decode(text).map_err(|error| {
            format!("is not base64 ({error}); take it from `kv get --output json`, or write hex:<hexadecimal>")
        })?;
        Ok(Self(Bytes::from(decoded)))
    }
}

fn from_hex(text: &str) -> Option<Bytes> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The base64 of a token, as [`Token::parse`] reads it.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Splits "host:port"; an IPv6 host stands in brackets.
pub fn address(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("{text:?} is not HOST:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| wrong())?))
}

/// A consistency level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// One replica answers
    One,
    /// More than half of the replicas answer
    Quorum,
    /// Every replica answers
    All,
}

/// What happens to concurrent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConflictMode {
    /// One value per key, totally ordered: the last write stands
    Register,
    /// Concurrent writes are all kept until a resolver, or a later write, settles them
    Siblings,
}

/// How a register's writes are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ordering {
    /// A quorum is asked first: acknowledged writes are ordered whatever the clocks do
    Quorum,
    /// By the coordinators' clocks alone: one round trip less, without that promise
    Clock,
}

/// When replicas that a read found stale are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadRepair {
    /// After the answer, in the background
    Async,
    /// Before the answer: reads are linearizable
    Blocking,
}

/// What requests with an idempotency key do while its store cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IdempotencyOutage {
    /// They fail
    Reject,
    /// They are carried out without that promise
    Proceed,
}

/// The API's spelling of a choice, "" when none was made: the server then uses its default, or keeps what stands.
pub fn spelt<T: ValueEnum>(choice: Option<T>) -> String {
    choice.and_then(|choice| choice.to_possible_value()).map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Level, Source, Token, address, base64, duration, size, spelt};

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "0s", "-1s", "NaNs", "infs", "1y", "s", "9999h"] {
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

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0, 255, 10]).unwrap();
        let source = Source::File(file.path().to_owned());
        assert_eq!(source.read(3).unwrap().as_ref(), [0, 255, 10]);
        assert!(source.read(2).unwrap_err().to_string().contains("more than 2 bytes"));
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

    #[test]
    fn choices_are_spelt_as_the_api_spells_them() {
        assert_eq!(spelt(Some(Level::Quorum)), "quorum");
        assert_eq!(spelt::<Level>(None), "");
    }
}
