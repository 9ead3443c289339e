//! Reading JSON objects strictly, for resolvers that must not lose what they do not understand.
//!
//! JSON allows a name twice in one object, and most readers silently take the last one. A resolver that did would drop a part of what a
//! client has written, so here it is an error. The depth of nesting is bounded by serde_json.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// The members of a JSON object by name, each name once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members<T>(pub BTreeMap<String, T>);

impl<T> Default for Members<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Each(PhantomData)).map(Self)
    }
}

impl<T: Serialize> Serialize for Members<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}

struct Each<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Each<T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value()?;
            if members.contains_key(&name) {
                return Err(twice(&name));
            }
            members.insert(name, value);
        }
        Ok(members)
    }
}

/// The error of an object with a name twice.
pub fn twice<E: Error>(name: &str) -> E {
    E::custom(format_args!("the name {name:?} is there twice"))
}

/// Reads a member of an object whose name must not have come before.
///
/// # Errors
/// It has, or the value cannot be read.
pub fn once<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    name: &str,
    member: &mut Option<T>,
) -> Result<(), A::Error> {
    if member.is_some() {
        return Err(twice(name));
    }
    *member = Some(map.next_value()?);
    Ok(())
}

/// A value as JSON, without spaces. The names of [`Members`] are sorted.
pub fn text(value: &impl Serialize) -> Vec<u8> {
    // Only values that are no text, such as maps with other names than strings, cannot be written.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_with_a_name_twice_is_refused() {
        let read = |text: &str| serde_json::from_str::<Members<u64>>(text).map_err(|error| error.to_string());
        assert_eq!(text(&read(r#"{ "b": 1, "a": 2 }"#).unwrap()), br#"{"a":2,"b":1}"#);
        assert!(read(r#"{"a":1,"\u0061":1}"#).unwrap_err().contains("\"a\" is there twice"));
        assert!(read("[1]").unwrap_err().contains("expected an object"));
    }
}
