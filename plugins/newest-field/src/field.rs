//! Finding a field in a JSON object without reading the rest of it into memory.

use std::fmt;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::decimal::Decimal;

/// The way to a field: the names of the members, from the outermost object on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path(Vec<String>);

/// Why a text is no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathError {
    Empty,
    Escape,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty; use the name of a field, or a JSON pointer such as /meta/updated",
            Self::Escape => "has a ~ that is not followed by 0 or 1; in a JSON pointer write ~0 for ~ and ~1 for /",
        })
    }
}

/// What a sibling is compared by. A missing field is less than all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Missing,
    Number(Decimal),
    Text(String),
}

impl Path {
    pub(crate) fn name(name: &str) -> Self {
        Self(vec![name.to_owned()])
    }

    /// Reads a name or, if it starts with `/`, a JSON pointer.
    pub(crate) fn read(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        let Some(pointer) = text.strip_prefix('/') else { return Ok(Self::name(text)) };
        pointer.split('/').map(unescaped).collect::<Result<_, _>>().map(Self)
    }

    /// What a value is compared by.
    ///
    /// # Errors
    /// It is no JSON object, has a name of the path twice, or the field is neither a number nor a text.
    pub(crate) fn rank(&self, value: &[u8]) -> Result<Rank, serde_json::Error> {
        let mut field = value;
        for name in &self.0 {
            match member(field, name)? {
                Some(member) => field = member.get().as_bytes(),
                None => return Ok(Rank::Missing),
            }
        }
        match field {
            [b'"', ..] => serde_json::from_slice(field).map(Rank::Text),
            [b'-' | b'0'..=b'9', ..] => Ok(Rank::Number(Decimal::read(field))),
            _ => Err(serde_json::Error::custom("its field is neither a number nor a text")),
        }
    }
}

fn unescaped(escaped: &str) -> Result<String, PathError> {
    let mut parts = escaped.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (replaced, rest) = match part.as_bytes().first() {
            Some(b'0') => ('~', &part[1..]),
            Some(b'1') => ('/', &part[1..]),
            _ => return Err(PathError::Escape),
        };
        name.push(replaced);
        name.push_str(rest);
    }
    Ok(name)
}

/// The member of this name of a JSON object, as it was written.
fn member<'a>(object: &'a [u8], name: &str) -> Result<Option<&'a RawValue>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(object);
    let member = reader.deserialize_map(MemberOf(name))?;
    reader.end()?;
    Ok(member)
}

struct MemberOf<'n>(&'n str);

impl<'de> Visitor<'de> for MemberOf<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the member {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if name != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.is_none() {
                found = Some(map.next_value()?);
            } else {
                return Err(A::Error::custom(format_args!("the name {name:?} is there twice")));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_has_escapes_and_a_name_has_none() {
        assert_eq!(Path::read("a~1b").unwrap(), Path(vec!["a~1b".into()]));
        assert_eq!(Path::read("/a~1b/~0~01//").unwrap().0, ["a/b", "~~1", "", ""]);
        assert_eq!(Path::read("/~"), Err(PathError::Escape));
        assert_eq!(Path::read(""), Err(PathError::Empty));
    }

    #[test]
    fn a_field_is_found_behind_anything() {
        let deep = format!(r#"{{"x":{}{},"a":{{"y":1e999,"b":"\u0041"}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let path = Path::read("/a/b").unwrap();
        assert_eq!(path.rank(deep.as_bytes()).unwrap(), Rank::Text("A".into()));
        assert_eq!(path.rank(br#"{"a":{}}"#).unwrap(), Rank::Missing);
        assert_eq!(path.rank(br#"{"b":{}}"#).unwrap(), Rank::Missing);
        assert!(path.rank(br#"{"a":7}"#).is_err());
    }
}
