//! Standard output and standard error: aligned tables on a terminal, tab-separated lines in a pipe, or one JSON object.
//!
//! Keys, tenants, labels and messages are chosen by others, who must not be able to command the terminal of whoever lists them, nor to add
//! a record to what a script reads. So nothing else in the command line writes to either stream; a test sees to it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::{Value, json};
use witan_kernel::name::is_invisible;

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

/// Where text goes, which decides what must not be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// A terminal obeys control characters: they move the cursor, change its title, and hide or reorder what is shown.
    Terminal,
    /// A program takes each line for a record.
    Program,
}

impl Reader {
    fn of(stream: &impl IsTerminal) -> Self {
        if stream.is_terminal() { Self::Terminal } else { Self::Program }
    }

    /// Whether a character would do something there, rather than be read.
    fn obeys(self, c: char) -> bool {
        match self {
            // Joiners only choose the shape of their neighbours; scripts and emoji need them.
            Self::Terminal => is_invisible(c) && !matches!(c, '\u{200c}' | '\u{200d}'),
            Self::Program => matches!(c, '\n' | '\r' | '\t'),
        }
    }
}

/// How one character is written where it must not be itself.
fn escape(c: char, to: &mut String) {
    match c {
        '\n' => to.push_str("\\n"),
        '\r' => to.push_str("\\r"),
        '\t' => to.push_str("\\t"),
        '\\' => to.push_str("\\\\"),
        // Writing to a string does not fail.
        c => _ = write!(to, "\\u{{{:x}}}", u32::from(c)),
    }
}

fn escaped(text: &str, escapes: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&escapes) {
        return Cow::Borrowed(text);
    }
    let mut to = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if escapes(c) { escape(c, &mut to) } else { to.push(c) }
    }
    Cow::Owned(to)
}

/// A name that somebody else chose (a key, a tenant, a label) as one line of its own, or one cell of a table: nothing in it is obeyed, and
/// no two names look alike, since the backslash is doubled.
fn name(text: &str, reader: Reader) -> Cow<'_, str> {
    escaped(text, |c| c == '\\' || reader.obeys(c))
}

/// Text that somebody else chose, as a part of a line: without anything that could begin another line, or that a terminal obeys.
pub fn inline(text: &str) -> Cow<'_, str> {
    escaped(text, |c| Reader::Terminal.obeys(c))
}

/// Several lines, of which the line ends and tabs are ours.
fn lines(text: &str, reader: Reader) -> Cow<'_, str> {
    escaped(text, |c| reader == Reader::Terminal && !matches!(c, '\n' | '\t') && reader.obeys(c))
}

/// JSON as it may be shown on a terminal: what would be obeyed can only be within a text, where `\u` means the same.
fn json(mut text: String, reader: Reader) -> String {
    let escapes = |c| c != '\n' && reader.obeys(c);
    if reader == Reader::Program || !text.contains(escapes) {
        return text;
    }
    let whole = std::mem::take(&mut text);
    for c in whole.chars() {
        match escapes(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(text, "\\u{unit:04x}")),
            false => text.push(c),
        }
    }
    text
}

/// Prints one JSON object, indented on a terminal and on one line in a pipe.
pub fn object(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let reader = Reader::of(&out);
    let text = if reader == Reader::Terminal { format!("{value:#}") } else { value.to_string() };
    finish(writeln!(out, "{}", json(text, reader)).and_then(|()| out.flush()))
}

/// Prints one JSON object of a stream of them: on one line, on a terminal too.
pub fn record(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = json(value.to_string(), Reader::of(&out));
    finish(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Prints a line: always one, whatever names are in it.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let reader = Reader::of(&out);
    let text = escaped(text, |c| reader.obeys(c) || (reader == Reader::Program && c == '\\'));
    finish(writeln!(out, "{text}"))
}

/// Prints text of several lines. Names in it have gone through [`inline`].
pub fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = lines(text, Reader::of(&out));
    finish(writeln!(out, "{text}"))
}

/// Prints names, one on each line; with `null`, each as it is and followed by a zero byte, for `xargs -0`.
///
/// # Errors
/// When a name cannot be printed in this way, or standard output fails.
pub fn names<'a>(names: impl Iterator<Item = &'a str>, null: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let reader = Reader::of(&out);
    let mut text = String::new();
    for each in names {
        if !null {
            text.push_str(&name(each, reader));
            text.push('\n');
            continue;
        }
        anyhow::ensure!(
            !each.contains('\0'),
            "--null: {each:?} contains a zero byte, which would end it early; use --output json instead"
        );
        text.push_str(each);
        text.push('\0');
    }
    Ok(finish(out.write_all(text.as_bytes()))?)
}

/// Prints a value as it is in a pipe; on a terminal as [`shown`], with a line end, so that the prompt starts on its own line.
pub fn value(value: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !out.is_terminal() {
        return finish(out.write_all(value).and_then(|()| out.flush()));
    }
    let text = shown(value);
    let line_end = if text.ends_with('\n') { "" } else { "\n" };
    finish(write!(out, "{text}{line_end}").and_then(|()| out.flush()))
}

/// Prints bytes that this program has made, such as a script, as they are.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    finish(io::stdout().lock().write_all(bytes))
}

/// Prints a remark of one line to standard error.
pub fn note(text: &str) {
    // There is nobody to tell that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{}", inline(text));
}

/// Prints text of several lines to standard error. Names in it have gone through [`inline`].
pub fn notes(text: &str) {
    let mut err = io::stderr().lock();
    let text = lines(text, Reader::of(&err));
    // As above.
    let _ = writeln!(err, "{text}");
}

/// Replaces the line of progress on a terminal.
pub fn progress(text: &str) {
    let mut err = io::stderr().lock();
    // As above.
    let _ = write!(err, "\r\x1b[K{}", inline(text)).and_then(|()| err.flush());
}

/// Ignores a reader that has closed the pipe (`witan ... | head`).
fn finish(written: io::Result<()>) -> io::Result<()> {
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

    /// One more column, at the end.
    #[must_use]
    pub fn with(mut self, column: &str) -> Self {
        self.head.push(column.to_owned());
        self
    }

    /// Adds a row of as many cells as there are columns.
    pub fn push(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells);
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
        let shown = |line: &Vec<String>| -> Vec<String> {
            line.iter().map(|cell| name(cell, Reader::Terminal).into_owned()).collect()
        };
        let (head, rows): (Vec<String>, Vec<Vec<String>>) = (shown(&self.head), self.rows.iter().map(shown).collect());
        let lines = || std::iter::once(&head).chain(&rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let right = |column: usize| {
            !rows.is_empty() && rows.iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit() || c == '-'))
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

    /// The table for pipes: a line per row, a tab between cells; within cells, both are escaped.
    pub fn plain(&self) -> String {
        let cells = |row: &Vec<String>| -> Vec<String> {
            row.iter().map(|cell| name(cell, Reader::Program).into_owned()).collect()
        };
        self.rows.iter().map(|row| cells(row).join("\t") + "\n").collect()
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

/// A value for people: text with its line ends and tabs, without anything that a terminal obeys; base64 if it is no text.
pub fn shown(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => lines(text, Reader::Terminal).into_owned(),
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
    use std::path::Path;

    use super::{Reader, Table, grouped, inline, json, lines, micros, moment, name, shown, value_fields};

    /// A name that clears the screen, hides what follows, turns the text around, and adds a record.
    const EVIL: &str = "a\u{1b}[2J\u{9b}8m\u{202e}\u{e0041}\nb\tc\\d";

    #[test]
    fn a_terminal_obeys_nothing_that_others_chose() {
        let escaped = r"a\u{1b}[2J\u{9b}8m\u{202e}\u{e0041}";
        assert_eq!(name(EVIL, Reader::Terminal), format!(r"{escaped}\nb\tc\\d"));
        assert_eq!(inline(EVIL), format!(r"{escaped}\nb\tc\d"));
        assert_eq!(lines(EVIL, Reader::Terminal), format!("{escaped}\nb\tc\\d"));
        assert_eq!(shown(EVIL.as_bytes()), lines(EVIL, Reader::Terminal));
        let mut table = Table::new(["NAME"]);
        table.row([EVIL.to_owned()]);
        assert_eq!(table.aligned().lines().count(), 2, "the head and one row");
        assert!(!table.aligned().contains(['\u{1b}', '\u{9b}', '\u{202e}']));
        for good in ["müller", "k:1/2", "日本", "a b", "\u{1f468}\u{200d}\u{1f469}"] {
            assert_eq!(name(good, Reader::Terminal), good);
        }
    }

    #[test]
    fn a_pipe_has_one_record_on_each_line() {
        assert_eq!(name("a\nb", Reader::Program), r"a\nb");
        assert_eq!(name(r"a\nb", Reader::Program), r"a\\nb", "no two names look alike");
        let mut table = Table::new(["NAME", "LABEL"]);
        table.row(["a\nb".to_owned(), "c\td\r".to_owned()]);
        assert_eq!(table.plain(), "a\\nb\tc\\td\\r\n");
    }

    #[test]
    fn json_says_the_same_on_a_terminal() {
        let value = serde_json::json!({ "key": EVIL });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = json(text.clone(), Reader::Terminal);
            assert!(!shown.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{e0041}']), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            assert_eq!(json(text.clone(), Reader::Program), text);
        }
    }

    #[test]
    fn nothing_else_writes_to_the_streams() {
        fn look(folder: &Path) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    look(&path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for direct in ["println!", "print!(", "stdout().", "stderr().lock()"] {
                    let line = text.lines().position(|line| line.contains(direct));
                    assert!(
                        line.is_none() || path.ends_with("output.rs"),
                        "{}:{}: {direct} shows what others chose as it is: use output::line, note, names or a Table",
                        path.display(),
                        line.unwrap_or_default() + 1
                    );
                }
            }
        }
        look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("host/cli"));
    }

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
