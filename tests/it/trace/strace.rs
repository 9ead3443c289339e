//! Reads the output of strace: calls in the order in which they began, with the line in which each returned.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Bytes that were handed to the operating system.
pub(super) struct Chunk {
    /// The file's path, or the socket's ends.
    pub(super) to: String,
    /// The line in which the call began.
    pub(super) began: usize,
    /// The line in which it returned.
    pub(super) returned: usize,
    /// The bytes that the system accepted.
    pub(super) bytes: Vec<u8>,
}

/// A sync that succeeded.
pub(super) struct Sync {
    /// The file's path.
    pub(super) path: String,
    /// The line in which the call began.
    pub(super) began: usize,
    /// The line in which it returned.
    pub(super) returned: usize,
}

/// A parsed trace.
pub(super) struct Trace {
    /// In the order in which the calls began.
    pub(super) chunks: Vec<Chunk>,
    /// In the order in which the calls returned.
    pub(super) syncs: Vec<Sync>,
}

/// Everything written to one journal file.
pub(super) struct Journal<'a> {
    pub(super) path: &'a str,
    pub(super) bytes: Vec<u8>,
    /// Where each call's bytes end, and the line in which it returned.
    ends: Vec<(usize, usize)>,
}

impl Journal<'_> {
    /// The line in which the call returned that wrote the byte at `at`.
    pub(super) fn line_at(&self, at: usize) -> usize {
        let call = self.ends.partition_point(|(end, _)| *end <= at);
        self.ends[call].1
    }
}

/// A call that has begun: its name, the rest of its line, and the line number.
struct Begun {
    name: String,
    arguments: String,
    line: usize,
}

impl Trace {
    pub(super) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("read the trace");
        let mut trace = Self { chunks: Vec::new(), syncs: Vec::new() };
        let mut unfinished: HashMap<&str, Begun> = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if let Some(resumed) = rest.strip_prefix("<... ") {
                let Some(begun) = unfinished.remove(thread) else { continue };
                trace.returned(&begun, result(resumed), number);
            } else if let Some((name, arguments)) = rest.split_once('(') {
                let (name, arguments) = (name.to_owned(), arguments.to_owned());
                let begun = Begun { name, arguments, line: number };
                if rest.ends_with("<unfinished ...>") {
                    unfinished.insert(thread, begun);
                } else {
                    trace.returned(&begun, result(rest), number);
                }
            }
        }
        trace.chunks.sort_by_key(|chunk| chunk.began);
        trace
    }

    fn returned(&mut self, begun: &Begun, result: Option<usize>, line: usize) {
        let (Some(result), Some(to)) = (result, target(&begun.arguments)) else { return };
        if begun.name.ends_with("sync") {
            self.syncs.push(Sync { path: to, began: begun.line, returned: line });
            return;
        }
        let mut bytes = strings(&begun.arguments);
        assert!(bytes.len() >= result, "the trace shortens what was written: {}", begun.arguments);
        bytes.truncate(result);
        self.chunks.push(Chunk { to, began: begun.line, returned: line, bytes });
    }

    /// The writes to each journal.
    pub(super) fn journals(&self) -> Vec<Journal<'_>> {
        let mut journals: Vec<Journal<'_>> = Vec::new();
        for chunk in self.chunks.iter().filter(|chunk| chunk.to.ends_with(".jnl")) {
            let journal = match journals.iter_mut().find(|journal| journal.path == chunk.to) {
                Some(journal) => journal,
                None => {
                    journals.push(Journal { path: &chunk.to, bytes: Vec::new(), ends: Vec::new() });
                    journals.last_mut().expect("one was pushed")
                }
            };
            journal.bytes.extend_from_slice(&chunk.bytes);
            journal.ends.push((journal.bytes.len(), chunk.returned));
        }
        journals
    }
}

/// The result of a call; `None` when it failed.
fn result(line: &str) -> Option<usize> {
    line.rsplit_once(") ")?.1.trim_start().strip_prefix("= ")?.split_whitespace().next()?.parse().ok()
}

/// The target of a descriptor: `3</a/path>` or `7<TCP:[here->there]>`.
fn target(arguments: &str) -> Option<String> {
    let (_, named) = arguments.split_once('<')?;
    if let Some(socket) = named.strip_prefix("TCP:[") {
        return Some(format!("TCP:[{}", socket.split_once(']')?.0));
    }
    Some(named.split_once('>')?.0.to_owned())
}

/// All strings of a line, concatenated and unescaped.
fn strings(arguments: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = arguments.as_bytes().iter().copied().peekable();
    let mut inside = false;
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => inside = !inside,
            b'\\' if inside => {
                let escaped = rest.next().expect("something is escaped");
                bytes.push(match escaped {
                    b'x' => digits(&mut rest, 0, 16, 2),
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0b,
                    b'f' => 0x0c,
                    b'0'..=b'7' => digits(&mut rest, u32::from(escaped - b'0'), 8, 2),
                    other => other,
                });
            }
            other if inside => bytes.push(other),
            _ => {}
        }
    }
    bytes
}

/// At most `most` further digits.
fn digits(rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>, start: u32, radix: u32, most: usize) -> u8 {
    let mut number = start;
    for _ in 0..most {
        let Some(digit) = rest.peek().and_then(|byte| char::from(*byte).to_digit(radix)) else { break };
        number = number * radix + digit;
        rest.next();
    }
    u8::try_from(number).expect("an escape is one byte")
}

#[cfg(test)]
mod tests {
    use super::{result, strings, target};

    #[test]
    fn lines_are_read() {
        let call = r#"7<TCP:[127.0.0.1:1->127.0.0.1:2]>, [{iov_base="a\x00", iov_len=2}, {iov_base="\"\n", iov_len=2}], 2) = 4"#;
        assert_eq!(strings(call), b"a\0\"\n");
        assert_eq!(target(call).as_deref(), Some("TCP:[127.0.0.1:1->127.0.0.1:2"));
        assert_eq!(result(call), Some(4));
        assert_eq!(target("3</tmp/0.jnl>)        = 0").as_deref(), Some("/tmp/0.jnl"));
        assert_eq!(result("fdatasync resumed>)       = 0"), Some(0));
        assert_eq!(result("fdatasync resumed>)       = -1 EIO (Input/output error)"), None);
    }
}
