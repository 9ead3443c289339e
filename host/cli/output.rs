//! Standard output: aligned tables on a terminal, tab-separated lines in a pipe, or one JSON object.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::args::base64;

/// Format of results and errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people; tab-separated in a pipe
    #[default]
    Text,
    /// One JSON object per command
    Json,
}

/// Prints one JSON object, indented on a terminal and on one line in a pipe.
pub fn object(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = if out.is_terminal() { writeln!(out, "{value:#}") } else { writeln!(out, "{value}") };
    finish(written.and_then(|()| out.flush()))
}

/// Prints a line.
pub fn line(text: &str) -> io::Result<()> {
    finish(writeln!(io::stdout().lock(), "{text}"))
}

/// Ignores a reader that has closed the pipe (`witan ... | head`).
pub fn finish(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A table. Columns that contain only numbers are right-aligned.
#[derive(Debug, Clone, Default)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row; as many cells as there are columns.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.head.len());
        self.rows.push(cells.to_vec());
    }

    /// Prints it: aligned and with a head on a terminal; tab-separated and without the head in a pipe. On a terminal, `none`
    /// is printed if there are no rows.
    pub fn print(&self, none: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let text = match out.is_terminal() {
            true if self.rows.is_empty() => format!("{none}\n"),
            true => self.aligned(),
            false => self.plain(),
        };
        finish(out.write_all(text.as_bytes()))
    }

    /// The table for terminals.
    pub fn aligned(&self) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let right = |column: usize| {
            !self.rows.is_empty()
                && self.rows.iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit() || c == '-'))
        };
        let layout: Vec<(usize, bool)> = (0..self.head.len()).map(|column| (width(column), right(column))).collect();
        let mut text = String::new();
        for line in lines() {
            let cells = line.iter().zip(&layout).map(|(cell, (width, right))| match right {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// The table for pipes: a line per row, a tab between cells; tabs and line ends within cells become spaces.
    pub fn plain(&self) -> String {
        let clean = |cell: &String| cell.replace(['\t', '\n', '\r'], " ");
        self.rows.iter().map(|row| row.iter().map(clean).collect::<Vec<_>>().join("\t") + "\n").collect()
    }
}

/// A value in JSON, with its encoding: text if it is UTF-8, otherwise base64.
pub fn value_fields(value: &[u8]) -> Value {
    match std::str::from_utf8(value) {
        Ok(text) => json!({ "value": text, "value_encoding": "utf-8" }),
        Err(_) => json!({ "value": base64(value), "value_encoding": "base64" }),
    }
}

/// Adds the fields of `more` to the object `base`.
pub fn with(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

/// A value for a terminal: unchanged if it is text without control characters, otherwise escaped.
pub fn shown(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => text.to_owned(),
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => format!("base64 {}", base64(value)),
    }
}

/// A time, given in microseconds since 1970, as "2026-11-21 20:41:44.123 UTC".
pub fn moment(micros: i64) -> String {
    let (seconds, rest) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03} UTC", rest / 1000)
}

/// The date `days` after 1970-01-01 in the proleptic Gregorian calendar. It counts in years that begin in March, so that the
/// leap day is the last one.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year_of_era + era * 400 + next, month, day)
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

/// Microseconds for people: "420 us", "3.1 ms", "1.20 s".
pub fn micros(value: u64) -> String {
    let v = value as f64;
    match value {
        0..1_000 => format!("{value} us"),
        1_000..10_000 => format!("{:.2} ms", v / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", v / 1e3),
        _ => format!("{:.2} s", v / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, grouped, micros, moment, value_fields};

    #[test]
    fn tables_align_and_pipes_do_not() {
        let mut table = Table::new(["NODE", "KEYS"]);
        table.row(["n1".to_owned(), "7".to_owned()]);
        table.row(["node-2".to_owned(), "1,024".to_owned()]);
        assert_eq!(table.aligned(), "NODE     KEYS\nn1          7\nnode-2  1,024\n");
        assert_eq!(table.plain(), "n1\t7\nnode-2\t1,024\n");
    }

    #[test]
    fn values_that_are_no_text_are_base64() {
        assert_eq!(value_fields(b"hi")["value"], "hi");
        assert_eq!(value_fields(&[255])["value_encoding"], "base64");
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0), "1970-01-01 00:00:00.000 UTC");
        assert_eq!(moment(951_782_400_000_000), "2000-02-29 00:00:00.000 UTC");
        assert_eq!(moment(1_795_293_704_123_456), "2026-11-21 20:41:44.123 UTC");
        assert_eq!(moment(-1), "1969-12-31 23:59:59.999 UTC");
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(
            [micros(7), micros(1_234), micros(45_600), micros(1_500_000)],
            ["7 us", "1.23 ms", "45.6 ms", "1.50 s"]
        );
    }
}
