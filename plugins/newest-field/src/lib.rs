//! Conflict resolver: of siblings that are JSON objects, the one is kept whose field, such as the time of its last change, is greatest.
//!
//! The sibling is returned as it was written. Whatever else the other ones contain is not seen any more, so this is for values that are
//! replaced as a whole. Unlike the time at which the cluster stored a value, the field is what the application says.
//!
//! Configuration, as lines of `key = value`:
//!
//! | key | default | meaning |
//! | --- | --- | --- |
//! | field | updated | the name of the field; or, if it starts with `/`, a JSON pointer (RFC 6901) to it, such as `/meta/updated` |
//! | missing | keep-all | `oldest`: an object without the field is older than all that have it; `keep-all`: then all siblings are kept |
//!
//! The field must be a number in all siblings, or a text in all. Numbers are compared exactly, whatever their length; texts byte by byte,
//! so that times must have one format and time zone, such as `2026-11-30T18:00:00Z`. Of siblings with equal fields the one is kept whose
//! bytes are greater, so that every coordinator keeps the same. If a sibling is no object, has the name twice, or its field is neither a
//! number nor a text, all siblings are kept.

mod decimal;
mod field;

use std::fmt;

use witan_plugin_sdk::host::{self, Severity};
use witan_plugin_sdk::join::Unreadable;
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConfigIssue, ConflictResolver, Error, Plugin, Settings};

use crate::field::{Path, Rank};

/// Most bytes that the siblings of one question may have together. Looking for a field takes time in proportion to them, and for this many
/// it stays well below the CPU time of a call. Larger ones are kept.
const SIBLINGS_BYTES: usize = 1 << 20;

/// The resolver.
#[derive(Debug)]
pub struct NewestField {
    path: Path,
    missing_is_oldest: bool,
}

impl Default for NewestField {
    fn default() -> Self {
        Self { path: Path::name("updated"), missing_is_oldest: false }
    }
}

impl Plugin for NewestField {
    fn configure(&mut self, configuration: &[u8]) -> Result<(), Vec<ConfigIssue>> {
        let mut settings = Settings::read(configuration);
        let (mut field, mut missing) = ("updated".to_owned(), "keep-all".to_owned());
        settings.take("field", "the name of a field", &mut field);
        settings.take("missing", "keep-all or oldest", &mut missing);
        match Path::read(&field) {
            Ok(path) => self.path = path,
            Err(problem) => settings.refuse("field", problem.to_string()),
        }
        match &*missing {
            "oldest" => self.missing_is_oldest = true,
            "keep-all" => self.missing_is_oldest = false,
            _ => settings.refuse("missing", format!("{missing:?} is not known; use keep-all or oldest")),
        }
        settings.finish()
    }
}

impl ConflictResolver for NewestField {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        match self.newest(question) {
            Ok(index) => Ok(Verdict::Pick(index)),
            Err(reason) => {
                host::log(Severity::Debug, &format!("all siblings are kept: {reason}"));
                Ok(Verdict::KeepAll)
            }
        }
    }

    fn samples() -> Vec<Vec<u8>> {
        [
            r#"{"updated":7,"a":1}"#,
            r#"{"updated":7.0,"a":2}"#,
            r#"{"updated":1e400}"#,
            r#"{"updated":"2026-11-30T18:00:00Z"}"#,
            r#"{"updated":"2026-11-30T18:00:01Z"}"#,
            r#"{"changed":8}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}

impl NewestField {
    /// The index of the sibling that is kept.
    fn newest(&self, question: &Question) -> Result<u32, Unreadable> {
        let bytes: usize = question.siblings.iter().map(|sibling| sibling.value.len()).sum();
        if bytes > SIBLINGS_BYTES {
            let problem = format_args!("they have {bytes} bytes, of which at most {SIBLINGS_BYTES} are compared");
            return Err(Unreadable::new(problem));
        }
        let mut newest: Option<(Rank, &[u8], u32)> = None;
        let mut has = Has::default();
        for (index, sibling) in (0_u32..).zip(&question.siblings) {
            let unreadable = |problem: &dyn fmt::Display| {
                Unreadable::new(format_args!("sibling {} is not compared: {problem}", index + 1))
            };
            let rank = self.path.rank(&sibling.value).map_err(|problem| unreadable(&problem))?;
            match rank {
                Rank::Missing if !self.missing_is_oldest => return Err(unreadable(&"it does not have the field")),
                Rank::Missing => {}
                Rank::Number(_) => has.numbers = true,
                Rank::Text(_) => has.texts = true,
            }
            let this = (rank, sibling.value.as_slice(), index);
            if newest.as_ref().is_none_or(|newest| (&newest.0, newest.1) < (&this.0, this.1)) {
                newest = Some(this);
            }
        }
        match newest {
            Some(_) if has.numbers && has.texts => {
                Err(Unreadable::new("the field is a number in some and a text in others"))
            }
            Some((_, _, index)) => Ok(index),
            None => Err(Unreadable::new("there are none")),
        }
    }
}

/// The kinds of fields that siblings have.
#[derive(Default)]
struct Has {
    numbers: bool,
    texts: bool,
}

witan_plugin_sdk::conflict_resolver!(NewestField);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use witan_plugin_sdk::resolver::{assert_laws, hostile_values, verdict};

    fn configured(configuration: &str) -> NewestField {
        let mut resolver = NewestField::default();
        resolver.configure(configuration.as_bytes()).unwrap();
        resolver
    }

    fn newest(configuration: &str, values: &[&str]) -> Option<String> {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        verdict(&configured(configuration), &values).map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn the_greatest_field_wins_and_its_sibling_is_unchanged() {
        let (old, new) = (r#"{"updated": 9, "b":1}"#, r#"{ "a":[], "updated":10 }"#);
        assert_eq!(newest("", &[old, new]).unwrap(), new);
        assert_eq!(newest("", &[new, old]).unwrap(), new);
        let (old, new) = (r#"{"m":{"t":"2026-11-30T09:00Z"}}"#, r#"{"m":{"t":"2026-11-30T10:00Z"}}"#);
        assert_eq!(newest("field = /m/t", &[old, new]).unwrap(), new);
        assert_eq!(newest("field = m/t", &[r#"{"m/t":1}"#, r#"{"m/t":2}"#]).unwrap(), r#"{"m/t":2}"#);
    }

    #[test]
    fn numbers_are_compared_exactly() {
        let (old, new) = (r#"{"updated":9007199254740992}"#, r#"{"updated":9007199254740993.0}"#);
        assert_eq!(newest("", &[old, new]).unwrap(), new);
    }

    #[test]
    fn what_cannot_be_compared_keeps_all() {
        let others = [
            "",
            "7",
            r#"[{"updated":1}]"#,
            r#"{"changed":1}"#,
            r#"{"updated":"1"}"#,
            r#"{"updated":null}"#,
            r#"{"updated":true}"#,
            r#"{"updated":[2]}"#,
            r#"{"updated":{"time":2}}"#,
            r#"{"updated":1,"updated":2}"#,
            r#"{"updated":2"#,
            r#"{"updated":2}}"#,
            r#"{"updated":02}"#,
        ];
        for other in others {
            assert_eq!(newest("", &[r#"{"updated":1}"#, other]), None, "{other}");
        }
    }

    #[test]
    fn an_object_without_the_field_may_be_the_oldest() {
        let (none, old) = (r#"{"z":1}"#, r#"{"updated":-1}"#);
        assert_eq!(newest("missing = oldest", &[none, old]).unwrap(), old);
        assert_eq!(newest("missing = oldest", &[none, r#"{"a":1}"#]).unwrap(), none, "the greater bytes");
        assert_eq!(newest("missing = oldest", &[r#"{"updated":null}"#, old]), None, "null is there");
        assert_eq!(newest("missing = oldest\nfield = /a/b", &[r#"{"a":1}"#, r#"{"a":{"b":1}}"#]), None);
    }

    #[test]
    fn a_configuration_is_read_and_checked() {
        for (wrong, at) in [
            ("field =", "field"),
            ("field = /a~2b", "field"),
            ("missing = newest", "missing"),
            ("fields = a", "fields"),
        ] {
            let issues = NewestField::default().configure(wrong.as_bytes()).unwrap_err();
            assert_eq!(issues.iter().map(|issue| &*issue.at).collect::<Vec<_>>(), [at], "{wrong}");
        }
    }

    #[test]
    fn hostile_values_obey_the_laws() {
        let values = [NewestField::samples(), hostile_values()].concat();
        assert_laws(&NewestField::default(), &values);
        assert_laws(&configured("missing = oldest"), &values);
    }

    fn any_object() -> impl Strategy<Value = String> {
        let field = prop_oneof![
            (-3_i32..4, 0_usize..3, -2_i32..3)
                .prop_map(|(n, zeros, exponent)| { format!(r#","updated":{n}.{}5E{exponent}"#, "0".repeat(zeros)) }),
            (-3_i32..4).prop_map(|n| format!(r#","updated":{n}"#)),
            "[a-b]{0,2}".prop_map(|text| format!(r#","updated":"{text}""#)),
            Just(String::new()),
        ];
        (0_u8..3, field).prop_map(|(n, field)| format!(r#"{{"n":{n}{field}}}"#))
    }

    proptest! {
        #[test]
        fn verdicts_obey_the_laws(values in prop::collection::vec(any_object(), 3)) {
            let values: Vec<Vec<u8>> = values.into_iter().map(String::into_bytes).collect();
            assert_laws(&NewestField::default(), &values);
            assert_laws(&configured("missing = oldest"), &values);
        }
    }
}
