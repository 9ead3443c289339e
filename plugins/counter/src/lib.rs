//! Conflict resolver: a counter that any number of writers change at once, without losing or repeating a count.
//!
//! A counter is a JSON object from a writer's name to what this writer alone has counted:
//!
//! ```json
//! {"laptop": {"up": 5, "down": 2}, "phone": 3}
//! ```
//!
//! A whole number is short for `{"up": NUMBER, "down": 0}`. The counter's value is the sum of all `up` minus the sum of all `down`: 6 here.
//! To count, a writer reads the counter, raises its own number and writes the whole object with the context of the read. It never changes
//! the number of another writer and never lowers its own: to count down it raises `down`. A writer's name must be its own, and it must have
//! at most one write of the counter under way.
//!
//! Siblings are merged to the greater `up` and the greater `down` of each writer. A writer's entry cannot be removed while another writer
//! may write the counter with it. If a sibling is no such object, or has a name twice, all siblings are kept.

use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use witan_plugin_json::{Members, once, text};
use witan_plugin_sdk::join::{Join, Unreadable, joined};
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct Counter;

impl Plugin for Counter {}

impl ConflictResolver for Counter {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        Ok(joined::<Counts>(question))
    }

    fn samples() -> Vec<Vec<u8>> {
        [
            r#"{"phone":3}"#,
            r#"{"phone":4,"laptop":{"up":5,"down":2}}"#,
            r#"{"phone":{"up":1,"down":7},"tablet":0}"#,
            r#"{"laptop":{"down":18446744073709551615}}"#,
            "{}",
            "7",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}

/// What each writer has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts(Members<Count>);

/// What one writer has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    up: u64,
    down: u64,
}

impl Join for Counts {
    fn read(value: &[u8]) -> Result<Self, Unreadable> {
        serde_json::from_slice(value).map(Self).map_err(Unreadable::new)
    }

    fn join(&mut self, other: Self) {
        for (writer, theirs) in other.0.0 {
            match self.0.0.entry(writer) {
                Entry::Vacant(entry) => _ = entry.insert(theirs),
                Entry::Occupied(mut entry) => {
                    let ours = entry.get_mut();
                    *ours = Count { up: ours.up.max(theirs.up), down: ours.down.max(theirs.down) };
                }
            }
        }
    }

    fn write(&self) -> Vec<u8> {
        text(&self.0)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyCount)
    }
}

struct AnyCount;

impl<'de> Visitor<'de> for AnyCount {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0 to 18446744073709551615, or {\"up\": NUMBER, \"down\": NUMBER}")
    }

    fn visit_u64<E>(self, up: u64) -> Result<Count, E> {
        Ok(Count { up, down: 0 })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
        let (mut up, mut down) = (None, None);
        while let Some(name) = map.next_key::<String>()? {
            match &*name {
                "up" => once(&mut map, &name, &mut up)?,
                "down" => once(&mut map, &name, &mut down)?,
                _ => return Err(A::Error::unknown_field(&name, &["up", "down"])),
            }
        }
        Ok(Count { up: up.unwrap_or(0), down: down.unwrap_or(0) })
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.down {
            0 => serializer.serialize_u64(self.up),
            _ => serializer.collect_map([("up", self.up), ("down", self.down)]),
        }
    }
}

witan_plugin_sdk::conflict_resolver!(Counter);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use witan_plugin_sdk::resolver::{assert_laws, hostile_values, verdict};

    fn merged(values: &[&str]) -> Option<String> {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        verdict(&Counter, &values).map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn each_writer_counts_for_itself() {
        assert_eq!(merged(&[r#"{"phone":3}"#, r#"{"laptop":2}"#]).unwrap(), r#"{"laptop":2,"phone":3}"#);
        assert_eq!(merged(&[r#"{"a":3}"#, r#"{"a":{"up":2,"down":1}}"#]).unwrap(), r#"{"a":{"up":3,"down":1}}"#);
        assert_eq!(merged(&["{}", r#"{"a":{}}"#]).unwrap(), r#"{"a":0}"#);
    }

    #[test]
    fn what_is_no_counter_keeps_all() {
        let others = [
            "",
            "3",
            "[3]",
            r#"{"a":-1}"#,
            r#"{"a":1.5}"#,
            r#"{"a":1e3}"#,
            r#"{"a":[1,2]}"#,
            r#"{"a":18446744073709551616}"#,
            r#"{"a":{"up":1,"left":1}}"#,
            r#"{"a":{"up":1,"up":2}}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":1}}"#,
        ];
        for other in others {
            assert_eq!(merged(&[r#"{"a":1}"#, other]), None, "{other}");
        }
    }

    #[test]
    fn hostile_values_obey_the_laws() {
        assert_laws(&Counter, &[Counter::samples(), hostile_values()].concat());
    }

    fn any_counter() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![0_u64..4, Just(u64::MAX), any::<u64>()];
        let count = (number.clone(), number).prop_map(|(up, down)| Count { up, down });
        let counts = prop::collection::btree_map("[a-c]", count, 0..4);
        counts.prop_map(|counts| Counts(Members(counts)).write())
    }

    proptest! {
        #[test]
        fn verdicts_obey_the_laws(values in prop::collection::vec(any_counter(), 3)) {
            assert_laws(&Counter, &values);
        }

        #[test]
        fn no_count_is_lost_or_repeated(steps in prop::collection::vec((0_usize..3, any::<bool>(), 0_usize..3), 0..60)) {
            // Each writer has a copy, counts in its own, and now and then takes over another's.
            let mut copies: [Counts; 3] = std::array::from_fn(|_| Counts::read(b"{}").unwrap());
            let mut counted = 0_i64;
            for (writer, is_up, from) in steps {
                let other = copies[from].clone();
                let copy = &mut copies[writer];
                copy.join(other);
                let own = copy.0.0.entry(writer.to_string()).or_insert(Count { up: 0, down: 0 });
                if is_up { own.up += 1 } else { own.down += 1 }
                counted += if is_up { 1 } else { -1 };
            }
            let [mut all, second, third] = copies;
            all.join(second);
            all.join(third);
            let total: i64 = all.0.0.values().map(|count| count.up as i64 - count.down as i64).sum();
            prop_assert_eq!(total, counted);
        }
    }
}
