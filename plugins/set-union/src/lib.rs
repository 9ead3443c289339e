//! Conflict resolver: JSON arrays are sets, and siblings are merged to their union.
//!
//! The merged value is one array without duplicates, in an order that depends only on its elements, so that every coordinator
//! produces the same bytes. If a sibling is not a JSON array, all siblings are kept, because dropping an unreadable value would lose
//! data. An element that one writer removed reappears if another writer kept it; sets that shrink need another kind of value.

use std::collections::BTreeSet;

use serde_json::Value;
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct SetUnion;

impl Plugin for SetUnion {}

impl ConflictResolver for SetUnion {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        let mut union = BTreeSet::new();
        for sibling in &question.siblings {
            let Some(elements) = elements(&sibling.value) else { return Ok(Verdict::KeepAll) };
            union.extend(elements);
        }
        let joined = union.into_iter().collect::<Vec<_>>().join(",");
        Ok(Verdict::Merged(format!("[{joined}]").into_bytes()))
    }

    fn samples() -> Vec<Vec<u8>> {
        [r#"["a","b"]"#, "[3, 1, 2.50]", r#"[{"y":1,"x":[]},null]"#, "[]", r#"["b","b",true,1e300]"#, "not an array"]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
    }
}

/// The elements of a JSON array in canonical form: no spaces, object keys sorted.
fn elements(value: &[u8]) -> Option<Vec<String>> {
    match serde_json::from_slice(value) {
        Ok(Value::Array(elements)) => Some(elements.iter().map(Value::to_string).collect()),
        _ => None,
    }
}

witan_plugin_sdk::conflict_resolver!(SetUnion);

#[cfg(test)]
mod tests {
    use super::*;
    use witan_plugin_sdk::resolver::{Sibling, assert_laws};

    fn union(values: &[&str]) -> Option<String> {
        let siblings = values.iter().map(|v| Sibling { value: v.as_bytes().to_vec(), time: 1 }).collect();
        let question = Question { key: b"k".to_vec(), siblings, attributes: Vec::new() };
        match SetUnion.resolve(&question).unwrap() {
            Verdict::Merged(bytes) => Some(String::from_utf8(bytes).unwrap()),
            Verdict::KeepAll => None,
            Verdict::Pick(_) => panic!("never picks"),
        }
    }

    #[test]
    fn no_element_is_lost_or_duplicated() {
        assert_eq!(union(&[r#"["b","a"]"#, r#"[ "c", "a" ]"#]).unwrap(), r#"["a","b","c"]"#);
        assert_eq!(union(&[r#"[{"y":1,"x":2}]"#, r#"[{"x":2,"y":1}]"#]).unwrap(), r#"[{"x":2,"y":1}]"#);
    }

    #[test]
    fn a_value_that_is_not_an_array_keeps_all() {
        for other in ["", "{}", "7", "[1", "[1]]", "\u{0}"] {
            assert_eq!(union(&["[1]", other]), None, "{other:?}");
        }
    }

    #[test]
    fn verdicts_obey_the_laws() {
        let mut values = SetUnion::samples();
        values.extend(
            ["[0.1,1e-7,123456789012345678901234567890]", r#"["\u0041","A","\n"]"#, "[[[]],[1,[2]]]"].map(Vec::from),
        );
        assert_laws(&SetUnion, &values);
    }
}
