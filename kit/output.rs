//! What the commands print: lines for people, or one JSON object for programs. A component's own words are shown without anything that a
//! terminal obeys; the plugin host has put them on one line.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;
use witan_kernel::name::is_invisible;

/// Format of results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people
    #[default]
    Text,
    /// One JSON object
    Json,
}

/// Prints one line to the standard output.
pub fn line(text: &str) -> io::Result<()> {
    finish(writeln!(io::stdout().lock(), "{}", inline(text)))
}

/// Prints one JSON object.
pub fn object(value: &Value) -> io::Result<()> {
    finish(writeln!(io::stdout().lock(), "{value}"))
}

/// Prints one line to the standard error: what is being done, or what went wrong.
pub fn note(text: &str) {
    // Nobody can be notified of a failure to notify.
    _ = writeln!(io::stderr().lock(), "{}", inline(text));
}

/// Text as a part of a line.
fn inline(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\n    "),
            c if is_invisible(c) && !matches!(c, '\u{200c}' | '\u{200d}') => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// A reader that has seen enough, such as `head`, is no failure.
fn finish(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A whole number with a comma between groups of three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_a_component_says() {
        assert_eq!(inline("a\u{1b}[2Jb\u{202e}c"), "a\\u{1b}[2Jb\\u{202e}c");
        assert_eq!(inline("müller: 日本"), "müller: 日本");
        assert_eq!(inline("one\ntwo"), "one\n    two");
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!([grouped(12), grouped(1_234_567)], ["12", "1,234,567"]);
    }
}
