//! Values that any two writers' versions of can be joined into one: the shortest way to a resolver whose verdicts keep the laws.

use std::fmt;

use crate::host::{self, Severity};
use crate::resolver::{Question, Verdict};

/// Most bytes that all siblings of a question may have, and the joined value, for [`joined`] to merge them: few enough that parsing
/// and joining them stays well below the CPU time and the memory of a call, whatever they contain. Larger ones are kept.
pub const JOINED_BYTES: usize = 256 << 10;

/// A kind of value with a join: the least value that contains two others.
///
/// `join` must be commutative, associative and idempotent, and `read` must read what `write` writes as the same value. Then the verdicts
/// of [`joined`] keep the laws of resolvers.
pub trait Join: Sized {
    /// Reads a stored value.
    ///
    /// # Errors
    /// The bytes are no value of this kind.
    fn read(value: &[u8]) -> Result<Self, Unreadable>;

    /// Adds to this value what the other one contains.
    fn join(&mut self, other: Self);

    /// The value in its canonical form: equal values give equal bytes.
    fn write(&self) -> Vec<u8>;
}

/// Why bytes are no value of the kind that a resolver joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(String);

impl Unreadable {
    /// `problem` continues the words "sibling 1 is not joined: ".
    pub fn new(problem: impl fmt::Display) -> Self {
        Self(problem.to_string())
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The join of all siblings. All are kept, and a line of the severity `debug` says why, if one of them cannot be read, or if they or their
/// join have more than [`JOINED_BYTES`].
pub fn joined<V: Join>(question: &Question) -> Verdict {
    match join_all::<V>(question) {
        Ok(value) => Verdict::Merged(value),
        Err(reason) => {
            host::log(Severity::Debug, &format!("all siblings are kept: {reason}"));
            Verdict::KeepAll
        }
    }
}

fn join_all<V: Join>(question: &Question) -> Result<Vec<u8>, Unreadable> {
    within_bounds(question.siblings.iter().map(|sibling| sibling.value.len()).sum())?;
    let mut all: Option<V> = None;
    for (index, sibling) in question.siblings.iter().enumerate() {
        let value = V::read(&sibling.value)
            .map_err(|problem| Unreadable::new(format_args!("sibling {} is not joined: {problem}", index + 1)))?;
        match &mut all {
            Some(all) => all.join(value),
            None => all = Some(value),
        }
    }
    let written = all.ok_or_else(|| Unreadable::new("there are none"))?.write();
    within_bounds(written.len())?;
    Ok(written)
}

fn within_bounds(bytes: usize) -> Result<(), Unreadable> {
    if bytes <= JOINED_BYTES {
        return Ok(());
    }
    Err(Unreadable::new(format_args!("they have {bytes} bytes, of which at most {JOINED_BYTES} are joined")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::Sibling;

    /// The greatest byte; only values of one byte are read.
    struct Greatest(u8);

    impl Join for Greatest {
        fn read(value: &[u8]) -> Result<Self, Unreadable> {
            match value {
                [byte] => Ok(Self(*byte)),
                _ => Err(Unreadable::new(format_args!("it has {} bytes", value.len()))),
            }
        }

        fn join(&mut self, other: Self) {
            self.0 = self.0.max(other.0);
        }

        fn write(&self) -> Vec<u8> {
            vec![self.0]
        }
    }

    fn question(values: &[&[u8]]) -> Question {
        let siblings = values.iter().map(|value| Sibling { value: value.to_vec(), time: 1 }).collect();
        Question { key: b"k".to_vec(), siblings, attributes: Vec::new() }
    }

    #[test]
    fn siblings_are_joined_or_all_kept() {
        assert!(matches!(joined::<Greatest>(&question(&[b"a", b"c", b"b"])), Verdict::Merged(value) if value == b"c"));
        assert!(matches!(joined::<Greatest>(&question(&[b"a", b"bc"])), Verdict::KeepAll));
        assert!(matches!(joined::<Greatest>(&question(&[])), Verdict::KeepAll));
    }

    #[test]
    fn the_reason_names_the_sibling_and_the_bound() {
        let reason = |values: &[&[u8]]| join_all::<Greatest>(&question(values)).unwrap_err().to_string();
        assert_eq!(reason(&[b"a", b"bc"]), "sibling 2 is not joined: it has 2 bytes");
        let large = vec![0; JOINED_BYTES];
        assert_eq!(reason(&[&large, b"a"]), "they have 262145 bytes, of which at most 262144 are joined");
    }
}
