//! Conflict resolver: a map whose fields are merged one by one. Of two versions of a field the newer one is kept, so writers that change
//! different fields do not undo each other's changes.
//!
//! A map is a JSON object from a field's name to its value, any JSON, and the time at which it was set:
//!
//! ```json
//! {"email": {"value": "ada@example.org", "time": 1764547200000}, "phone": {"time": 1764547260000}}
//! ```
//!
//! A time is a whole number: milliseconds since 1970 for example, or a count. A field without a value is one that was removed; it is kept,
//! so that it stays removed. To set or remove a field, a writer reads the map, changes this field alone, gives it a time greater than the
//! one that it has, and writes the whole object with the context of the read.
//!
//! Of two fields with the same time, one with a value is kept rather than one without; of two values the one whose text is greater, byte
//! by byte. Values are returned as they were written, spaces and digits included. If a sibling is no such object, or has a name twice, all
//! siblings are kept.

use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use witan_plugin_json::{Members, once, text};
use witan_plugin_sdk::join::{Join, Unreadable, joined};
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct RegisterMap;

impl Plugin for RegisterMap {}

impl ConflictResolver for RegisterMap {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        Ok(joined::<Map>(question))
    }

    fn samples() -> Vec<Vec<u8>> {
        [
            r#"{"email":{"value":"ada@example.org","time":3},"phone":{"time":2}}"#,
            r#"{"email":{"value":"ada@example.com","time":3},"name":{"value":{"first":"Ada"},"time":1}}"#,
            r#"{"phone":{"value":[1, 2.50, 1e999],"time":2}}"#,
            r#"{"email":{"value":null,"time":18446744073709551615}}"#,
            "{}",
            r#"{"email":"ada@example.org"}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}

/// Fields by their names.
struct Map(Members<Register>);

/// A field.
struct Register {
    time: u64,
    /// Its JSON as it was written; `None`: the field was removed.
    value: Option<Box<RawValue>>,
}

impl Register {
    /// Of two registers the one is kept that is greater in this order.
    fn rank(&self) -> (u64, Option<&str>) {
        (self.time, self.value.as_ref().map(|value| value.get()))
    }
}

impl Join for Map {
    fn read(value: &[u8]) -> Result<Self, Unreadable> {
        serde_json::from_slice(value).map(Self).map_err(Unreadable::new)
    }

    fn join(&mut self, other: Self) {
        for (field, theirs) in other.0.0 {
            match self.0.0.entry(field) {
                Entry::Vacant(entry) => _ = entry.insert(theirs),
                Entry::Occupied(mut entry) if entry.get().rank() < theirs.rank() => _ = entry.insert(theirs),
                Entry::Occupied(_) => {}
            }
        }
    }

    fn write(&self) -> Vec<u8> {
        text(&self.0)
    }
}

impl<'de> Deserialize<'de> for Register {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnyRegister)
    }
}

struct AnyRegister;

impl<'de> Visitor<'de> for AnyRegister {
    type Value = Register;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"value\": JSON, \"time\": NUMBER}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Register, A::Error> {
        let (mut value, mut time) = (None, None);
        while let Some(name) = map.next_key::<String>()? {
            match &*name {
                "value" => once(&mut map, &name, &mut value)?,
                "time" => once(&mut map, &name, &mut time)?,
                _ => return Err(A::Error::unknown_field(&name, &["value", "time"])),
            }
        }
        Ok(Register { value, time: time.ok_or_else(|| A::Error::missing_field("time"))? })
    }
}

impl Serialize for Register {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(value) = &self.value {
            map.serialize_entry("value", value)?;
        }
        map.serialize_entry("time", &self.time)?;
        map.end()
    }
}

witan_plugin_sdk::conflict_resolver!(RegisterMap);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use witan_plugin_sdk::resolver::{assert_laws, hostile_values, verdict};

    fn merged(values: &[&str]) -> Option<String> {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        verdict(&RegisterMap, &values).map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn the_newest_version_of_each_field_is_kept() {
        let one = r#"{"email":{"value":"new","time":5},"name":{"value":"Ada","time":1}}"#;
        let other = r#"{"name":{"value":"Ada L.","time":2},"email":{"value":"old","time":4}}"#;
        let both = r#"{"email":{"value":"new","time":5},"name":{"value":"Ada L.","time":2}}"#;
        assert_eq!(merged(&[one, other]).unwrap(), both);
    }

    #[test]
    fn a_removed_field_stays_removed_until_it_is_set_later() {
        let removed = r#"{"email":{"time":5}}"#;
        assert_eq!(merged(&[removed, r#"{"email":{"value":"old","time":4}}"#]).unwrap(), removed);
        let null = r#"{"email":{"value":null,"time":5}}"#;
        assert_eq!(merged(&[removed, null]).unwrap(), null, "at the same time a value wins, and null is one");
        let set = r#"{"email":{"value":"new","time":6}}"#;
        assert_eq!(merged(&[removed, set]).unwrap(), set);
    }

    #[test]
    fn values_are_returned_as_they_were_written() {
        let deep = format!(r#"{{"a":{{"value":{}1{},"time":1}}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(merged(&[&deep, "{}"]).unwrap(), deep);
        let exact = r#"{"a":{"value":[1.0, 123456789012345678901234567890,1e999,{"b":1,"b":2}],"time":1}}"#;
        assert_eq!(merged(&[exact, "{}"]).unwrap(), exact);
    }

    #[test]
    fn what_is_no_map_keeps_all() {
        let others = [
            "",
            "null",
            "[]",
            r#"{"a":1}"#,
            r#"{"a":{}}"#,
            r#"{"a":{"value":1}}"#,
            r#"{"a":{"value":1,"time":-1}}"#,
            r#"{"a":{"value":1,"time":1.5}}"#,
            r#"{"a":{"value":1,"time":"now"}}"#,
            r#"{"a":{"value":1,"time":1,"by":"me"}}"#,
            r#"{"a":{"value":1,"value":2,"time":1}}"#,
            r#"{"a":{"time":1},"a":{"time":1}}"#,
            r#"{"a":{"value":[1,"time":1}}"#,
        ];
        for other in others {
            assert_eq!(merged(&[r#"{"a":{"time":1}}"#, other]), None, "{other}");
        }
    }

    #[test]
    fn hostile_values_obey_the_laws() {
        assert_laws(&RegisterMap, &[RegisterMap::samples(), hostile_values()].concat());
    }

    fn any_map() -> impl Strategy<Value = Vec<u8>> {
        let values = prop::sample::select(vec![
            r#", "value":1"#,
            r#", "value": 1.0"#,
            r#","value":"text" "#,
            r#","value":{"a":[null]}"#,
            "",
        ]);
        let field = (prop_oneof![0_u64..4, Just(u64::MAX)], values);
        prop::collection::btree_map("[a-c]", field, 0..4).prop_map(|fields| {
            let fields = fields.iter().map(|(name, (time, value))| format!(r#""{name}" : {{"time":{time}{value}}}"#));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(",")).into_bytes()
        })
    }

    proptest! {
        #[test]
        fn verdicts_obey_the_laws(values in prop::collection::vec(any_map(), 3)) {
            assert_laws(&RegisterMap, &values);
        }
    }
}
