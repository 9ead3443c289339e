//! The hook asked when live siblings differ.

pub use crate::bindings::conflict_resolver::exports::witan::plugin::resolver::{Question, Sibling, Verdict};

use crate::{Error, Plugin};

/// Decides what stands when siblings differ.
///
/// Several coordinators ask, in any order, about any part of the siblings, more than once. So the order must not
/// matter, resolving a part first must not matter, and resolving a verdict with one of the siblings it was made of must
/// give the verdict again. The host checks this before it lets a resolver in; [`assert_laws`] checks it in a test.
pub trait ConflictResolver: Plugin {
    /// Decides one conflict: one sibling at least.
    fn resolve(&self, question: &Question) -> Result<Verdict, Error>;

    /// A handful of values of the kind that this resolver merges, as different as they come.
    fn samples() -> Vec<Vec<u8>> {
        Vec::new()
    }
}

/// Panics when the verdicts on some of `values` break a law, naming the values. For tests; quadratic to cubic in their
/// number.
pub fn assert_laws<R: ConflictResolver>(resolver: &R, values: &[Vec<u8>]) {
    let resolve = |parts: &[&[u8]]| -> Option<Vec<u8>> {
        let siblings = parts.iter().map(|value| Sibling { value: value.to_vec(), time: 1 }).collect();
        let question = Question { key: b"key".to_vec(), siblings, attributes: Vec::new() };
        match resolver.resolve(&question) {
            Ok(Verdict::Pick(index)) => Some(question.siblings[index as usize].value.clone()),
            Ok(Verdict::Merged(value)) => Some(value),
            Ok(Verdict::KeepAll) => None,
            Err(error) => panic!("{error:?} on {parts:?}"),
        }
    };
    for a in values {
        for b in values {
            let ab = resolve(&[a, b]);
            assert_eq!(ab, resolve(&[b, a]), "not commutative on {a:?} and {b:?}");
            let Some(ab) = ab else { continue };
            assert_eq!(resolve(&[&ab, a]).as_ref(), Some(&ab), "not idempotent on {a:?} and {b:?}");
            assert_eq!(resolve(&[&ab, &ab]).as_ref(), Some(&ab), "not idempotent on {ab:?}");
            for c in values {
                let whole = resolve(&[a, b, c]);
                assert_eq!(whole, resolve(&[&ab, c]), "not associative on {a:?}, {b:?} and {c:?}");
            }
        }
    }
}
