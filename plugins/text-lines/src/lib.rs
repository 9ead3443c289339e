//! Conflict resolver: texts are sets of lines, and siblings are merged to the union of their lines.
//!
//! A line ends with `\n`, `\r\n` or the end of the text. The merged text has each line once, sorted by its bytes, each ended with `\n`;
//! empty lines are left out. So it serves lists whose order does not matter: allowed addresses, tags, the ids of what has been done.
//!
//! To add lines, a client reads the text and writes it with the new lines and the context of the read. A line that one writer removes
//! reappears if a concurrent write has it still; use `add-wins-set` where removals matter. If a sibling is not UTF-8, all are kept.

use std::collections::BTreeSet;

use witan_plugin_sdk::join::{Join, Unreadable, joined};
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct TextLines;

impl Plugin for TextLines {}

impl ConflictResolver for TextLines {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        Ok(joined::<Lines>(question))
    }

    fn samples() -> Vec<Vec<u8>> {
        ["b\na\n", "a\r\n\r\nc", "", "\n\n", "one line", "a\rb\n a\n"].map(|text| text.as_bytes().to_vec()).to_vec()
    }
}

/// The lines of a text.
struct Lines(BTreeSet<String>);

impl Join for Lines {
    fn read(value: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(value).map_err(Unreadable::new)?;
        // Of several `\r` at the end of a line all belong to the end: else the text that is written would be read as other lines.
        let lines = text.split('\n').map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty());
        Ok(Self(lines.map(str::to_owned).collect()))
    }

    fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn write(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for line in &self.0 {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        text
    }
}

witan_plugin_sdk::conflict_resolver!(TextLines);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use witan_plugin_sdk::resolver::{assert_laws, hostile_values, verdict};

    fn merged(values: &[&[u8]]) -> Option<String> {
        verdict(&TextLines, values).map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn each_line_is_there_once_and_sorted() {
        assert_eq!(merged(&[b"b\na", b"c\r\na\r\n\r\n"]).unwrap(), "a\nb\nc\n");
        assert_eq!(merged(&[b"", b"\n"]).unwrap(), "");
        assert_eq!(merged(&[b"a\r\r\n", b"a\rb"]).unwrap(), "a\na\rb\n");
    }

    #[test]
    fn a_value_that_is_no_text_keeps_all() {
        assert_eq!(merged(&[b"a", b"\xff"]), None);
        assert_eq!(merged(&[b"a", b"a\xc3"]), None);
    }

    #[test]
    fn hostile_values_obey_the_laws() {
        assert_laws(&TextLines, &[TextLines::samples(), hostile_values()].concat());
    }

    proptest! {
        #[test]
        fn verdicts_obey_the_laws(values in prop::collection::vec("[ab\r\n]{0,8}", 3)) {
            assert_laws(&TextLines, &values.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }
    }
}
