//! Text as arguments of `witan`, and as the values that arguments have.

use clap::Parser;
use witan::cli::Cli;
use witan::cli::args::{Source, Token, address, base64, duration, duration_or_none, size};
use witan::config::node;

use crate::Seen;

/// Subcommands and flags.
pub(super) const WORDS: &[&[u8]] = &[
    b"kv\0put\0-t\0t\0k\0",
    b"kv\0get\0",
    b"tenant\0create\0",
    b"plugin\0bind\0",
    b"token\0create\0",
    b"nodes\0add\0",
    b"bench\0",
    b"repair\0",
    b"serve\0",
    b"node\0",
    b"--context\0",
    b"--output\0json\0",
    b"--timeout\0",
    b"hex:",
    b"1e308s",
    b"0.1us",
];

/// An input is arguments, each ended by a zero byte; the whole of it is also read as each kind of value.
pub(super) fn run(input: &[u8]) -> Seen {
    let text = String::from_utf8_lossy(input);
    let parsed = Cli::try_parse_from(std::iter::once("witan").chain(text.split_terminator('\0')));
    let outcome = match parsed {
        Ok(cli) => Seen::of(format!("{:?}", cli.command).chars().take_while(|c| c.is_alphabetic()).collect::<String>()),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            Seen::of(error.kind().to_string())
        }
    };
    text.split('\0').for_each(value);
    outcome
}

fn value(text: &str) {
    if let Ok(Token(bytes)) = Token::parse(text) {
        assert_eq!(Token::parse(&base64(&bytes)), Ok(Token(bytes.clone())));
        assert!(text.starts_with("hex:") || base64(&bytes) == text, "a token has two spellings");
    }
    if let Ok(time) = duration(text) {
        assert!(!time.is_zero(), "{text:?} is no time at all");
        assert_eq!(duration_or_none(text), Ok(time));
    }
    if let Ok(Source::Inline(inline)) = Source::parse(text) {
        assert!(text.ends_with(&inline));
    }
    if let Ok((host, _)) = address(text) {
        assert!(!host.is_empty());
    }
    if let Ok((_, host, port)) = node(text) {
        assert!(!host.is_empty() && port > 0);
    }
    let _ = size(text);
}
