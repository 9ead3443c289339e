//! The hook asked when a key has conflicting siblings.

pub use crate::bindings::conflict_resolver::exports::witan::plugin::resolver::{Question, Sibling, Verdict};

use crate::{Error, Plugin};

/// Decides which value replaces conflicting siblings.
///
/// Several coordinators may ask about the same conflict, in any order, about any subset of the siblings, and more than once. Verdicts
/// must therefore be commutative (the order of the siblings does not matter), associative (resolving a subset first does not matter)
/// and idempotent (resolving a verdict with one of its siblings gives the verdict again). The host checks this before it accepts a
/// resolver; [`assert_laws`] checks it in a test.
pub trait ConflictResolver: Plugin {
    /// Decides one conflict. There is at least one sibling.
    fn resolve(&self, question: &Question) -> Result<Verdict, Error>;

    /// Decides several conflicts with one call, each as [`Self::resolve`] does. Only worth implementing where that takes less time than one
    /// after the other.
    fn resolve_many(&self, questions: &[Question]) -> Vec<Result<Verdict, Error>> {
        questions.iter().map(|question| self.resolve(question)).collect()
    }

    /// A few sample values of the kind that this resolver merges, as varied as possible: the host checks the laws on them.
    fn samples() -> Vec<Vec<u8>> {
        Vec::new()
    }
}

/// The value that a resolver's verdict leaves of these values, all of the same time; `None`: all are kept. For tests.
///
/// # Panics
/// When it declines, or picks a sibling that is not there.
pub fn verdict<R: ConflictResolver>(resolver: &R, values: &[&[u8]]) -> Option<Vec<u8>> {
    let siblings = values.iter().map(|value| Sibling { value: value.to_vec(), time: 1 }).collect();
    let question = Question { key: b"key".to_vec(), siblings, attributes: Vec::new() };
    match resolver.resolve(&question) {
        Ok(Verdict::Pick(index)) => Some(question.siblings[index as usize].value.clone()),
        Ok(Verdict::Merged(value)) => Some(value),
        Ok(Verdict::KeepAll) => None,
        Err(error) => panic!("{error:?} on {values:?}"),
    }
}

/// Panics if the verdicts on some of `values` break a law, naming these values. For tests; takes time cubic in their number.
pub fn assert_laws<R: ConflictResolver>(resolver: &R, values: &[Vec<u8>]) {
    let resolve = |parts: &[&[u8]]| verdict(resolver, parts);
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

/// Values that no client of good will writes, and that a resolver may be shown all the same: a resolver must answer something about each,
/// and keep the laws. For tests.
pub fn hostile_values() -> Vec<Vec<u8>> {
    const DEEP: usize = 1_000;
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(DEEP), close.repeat(DEEP)).into_bytes();
    let digits = "9".repeat(DEEP);
    let mut values = vec![
        nested("[", "]"),
        nested(r#"{"a":"#, "}"),
        "[".repeat(DEEP).into_bytes(),
        format!("[{digits}]").into_bytes(),
        format!(r#"{{"a":{digits}}}"#).into_bytes(),
        format!(r#"{{"a":{{"time":{digits},"value":{digits}}}}}"#).into_bytes(),
    ];
    let texts: [&[u8]; 16] = [
        b"",
        b"\0",
        b"\n",
        b"\xff\xfe\x00",
        b"{\"a\xff\":1}",
        b"\xef\xbb\xbf{}",
        br#"{"a":1,"a":2}"#,
        br#"{"a":{"value":1,"value":2,"time":1}}"#,
        br#"{"\ud800":1}"#,
        br#"{"a":"\udfff"}"#,
        br#"{"a":1e999999999999999999999}"#,
        br#"{"a":-1e-999999999999999999999}"#,
        br#"{"a":-0}"#,
        br#"{"":{"":{"":{}}}}"#,
        b"{\"a\":\"\x00\"}",
        br#"{"a":NaN}"#,
    ];
    values.extend(texts.map(<[u8]>::to_vec));
    values
}
