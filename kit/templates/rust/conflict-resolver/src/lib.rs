//! A conflict resolver: a value is a set of lines, and siblings are merged to the union of their lines.
//!
//! Verdicts must not depend on the order of the siblings, and merging a verdict again must change nothing. So the lines are sorted, and
//! each is there once.

use std::collections::BTreeSet;

use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct Lines;

impl Plugin for Lines {}

impl ConflictResolver for Lines {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        let mut union = BTreeSet::new();
        for sibling in &question.siblings {
            // A value with a zero byte is no text. Nothing of it may be lost, so its readers get all siblings.
            if sibling.value.contains(&0) {
                return Ok(Verdict::KeepAll);
            }
            union.extend(sibling.value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()));
        }
        let lines = union.into_iter().flat_map(|line| [line, b"\n"]);
        Ok(Verdict::Merged(lines.flatten().copied().collect()))
    }

    /// The coordinator tries the laws on these before it binds the plugin.
    fn samples() -> Vec<Vec<u8>> {
        ["a\nb\n", "b\nc", "\n\n", "", "no text\0"].map(|text| text.as_bytes().to_vec()).to_vec()
    }
}

witan_plugin_sdk::conflict_resolver!(Lines);

#[cfg(test)]
mod tests {
    use witan_plugin_sdk::resolver::assert_laws;

    use super::*;

    #[test]
    fn verdicts_obey_the_laws() {
        assert_laws(&Lines, &Lines::samples());
    }
}
