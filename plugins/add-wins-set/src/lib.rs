//! Conflict resolver: a set of texts from which elements can be removed for good. An element that one writer adds while another one removes
//! it is in the set afterwards: the addition wins.
//!
//! A set is a JSON object with its elements, each with the tags of its additions, and the greatest tag of each writer that it has seen:
//!
//! ```json
//! {"elements": {"milk": {"phone": 2}, "bread": {"laptop": 1}}, "seen": {"laptop": 1, "phone": 2}}
//! ```
//!
//! A tag is a writer's name and a number. To add elements, a writer reads the set, raises its own number in `seen` by one, and gives each
//! element this one tag in place of any it had. To remove an element, it leaves it out and leaves `seen` as it is. It writes the whole
//! object with the context of the read. A writer's name must be its own, it must have at most one write of the set under way, and it must
//! never use a number twice.
//!
//! When siblings are merged, a tag is kept if both have it, or if only one has it and the other one has not seen it. What the other one has
//! seen and does not have, it has removed. An element without tags is left out. Nothing else is kept of removed elements, so the set does
//! not grow by being used; a writer's entry in `seen` remains.
//!
//! If a sibling is no such object, has a name twice, or a tag that its `seen` does not cover, all siblings are kept.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use witan_plugin_json::{Members, once, text};
use witan_plugin_sdk::join::{Join, Unreadable, joined};
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct AddWinsSet;

impl Plugin for AddWinsSet {}

impl ConflictResolver for AddWinsSet {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        Ok(joined::<Set>(question))
    }

    fn samples() -> Vec<Vec<u8>> {
        [
            r#"{"elements":{"milk":{"phone":2},"bread":{"laptop":1}},"seen":{"laptop":1,"phone":2}}"#,
            r#"{"elements":{"bread":{"laptop":1}},"seen":{"laptop":1,"phone":1}}"#,
            r#"{"elements":{"milk":{"laptop":2,"phone":1}},"seen":{"laptop":2,"phone":1}}"#,
            r#"{"elements":{},"seen":{"laptop":9,"phone":9}}"#,
            "{}",
            r#"{"elements":{"milk":{"phone":2}},"seen":{"phone":1}}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}

/// Numbers by the names of writers.
type Numbers = Members<u64>;

/// Elements with the tags of their additions, and the greatest tag of each writer that the set has seen. Every tag of an element is covered
/// by `seen`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Set {
    elements: Members<Numbers>,
    seen: Numbers,
}

impl Set {
    fn has_seen(&self, writer: &str, number: u64) -> bool {
        self.seen.0.get(writer).is_some_and(|seen| number <= *seen)
    }

    fn has(&self, element: &str, writer: &str, number: u64) -> bool {
        self.elements.0.get(element).is_some_and(|tags| tags.0.get(writer) == Some(&number))
    }

    /// The tags that this set still has after it has heard of what the other one has seen.
    fn kept(&self, other: &Self) -> impl Iterator<Item = (String, String, u64)> {
        let tags = self.elements.0.iter().flat_map(|(element, tags)| {
            tags.0.iter().map(move |(writer, number)| (element.as_str(), writer.as_str(), *number))
        });
        tags.filter(|(element, writer, number)| !other.has_seen(writer, *number) || other.has(element, writer, *number))
            .map(|(element, writer, number)| (element.to_owned(), writer.to_owned(), number))
    }
}

impl Join for Set {
    fn read(value: &[u8]) -> Result<Self, Unreadable> {
        let set: Self = serde_json::from_slice(value).map_err(Unreadable::new)?;
        for (element, tags) in &set.elements.0 {
            if tags.0.is_empty() {
                return Err(Unreadable::new(format_args!("its element {element:?} has no tag")));
            }
            if let Some((writer, number)) = tags.0.iter().find(|(writer, number)| !set.has_seen(writer, **number)) {
                return Err(Unreadable::new(format_args!(
                    "its element {element:?} has the tag {number} of {writer:?}, which is not in \"seen\""
                )));
            }
        }
        Ok(set)
    }

    fn join(&mut self, other: Self) {
        let mut elements: BTreeMap<String, Numbers> = BTreeMap::new();
        for (element, writer, number) in self.kept(&other).chain(other.kept(self)) {
            elements.entry(element).or_default().0.insert(writer, number);
        }
        self.elements = Members(elements);
        for (writer, number) in other.seen.0 {
            let seen = self.seen.0.entry(writer).or_default();
            *seen = (*seen).max(number);
        }
    }

    fn write(&self) -> Vec<u8> {
        text(self)
    }
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnySet)
    }
}

struct AnySet;

impl<'de> Visitor<'de> for AnySet {
    type Value = Set;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with \"elements\" and \"seen\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Set, A::Error> {
        let (mut elements, mut seen) = (None, None);
        while let Some(name) = map.next_key::<String>()? {
            match &*name {
                "elements" => once(&mut map, &name, &mut elements)?,
                "seen" => once(&mut map, &name, &mut seen)?,
                _ => return Err(A::Error::unknown_field(&name, &["elements", "seen"])),
            }
        }
        Ok(Set { elements: elements.unwrap_or_default(), seen: seen.unwrap_or_default() })
    }
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("elements", &self.elements)?;
        map.serialize_entry("seen", &self.seen)?;
        map.end()
    }
}

witan_plugin_sdk::conflict_resolver!(AddWinsSet);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;
    use witan_plugin_sdk::resolver::{assert_laws, hostile_values, verdict};

    fn merged(values: &[&str]) -> Option<String> {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        verdict(&AddWinsSet, &values).map(|value| String::from_utf8(value).unwrap())
    }

    const BOTH: &str = r#"{"elements":{"bread":{"laptop":1},"milk":{"phone":1}},"seen":{"laptop":1,"phone":1}}"#;

    #[test]
    fn a_removed_element_stays_removed() {
        let without_milk = r#"{"elements":{"bread":{"laptop":1}},"seen":{"laptop":1,"phone":1}}"#;
        assert_eq!(merged(&[BOTH, without_milk]).unwrap(), without_milk);
    }

    #[test]
    fn an_addition_wins_over_a_concurrent_removal() {
        let added_again = r#"{"elements":{"bread":{"laptop":1},"milk":{"phone":2}},"seen":{"laptop":1,"phone":2}}"#;
        let removed = r#"{"elements":{"bread":{"laptop":1}},"seen":{"laptop":1,"phone":1}}"#;
        assert_eq!(merged(&[added_again, removed]).unwrap(), added_again);
    }

    #[test]
    fn what_is_no_set_keeps_all() {
        let others = [
            "",
            "[]",
            r#"["milk"]"#,
            r#"{"elements":["milk"],"seen":{}}"#,
            r#"{"elements":{"milk":{}},"seen":{}}"#,
            r#"{"elements":{"milk":{"a":1}}}"#,
            r#"{"elements":{"milk":{"a":2}},"seen":{"a":1}}"#,
            r#"{"elements":{"milk":{"a":-1}},"seen":{"a":1}}"#,
            r#"{"elements":{},"elements":{},"seen":{}}"#,
            r#"{"elements":{},"seen":{"a":1,"a":2}}"#,
            r#"{"elements":{},"seen":{},"version":2}"#,
        ];
        for other in others {
            assert_eq!(merged(&[BOTH, other]), None, "{other}");
        }
    }

    #[test]
    fn hostile_values_obey_the_laws() {
        assert_laws(&AddWinsSet, &[AddWinsSet::samples(), hostile_values()].concat());
    }

    /// Any set that can be read, also one that no history leads to.
    fn any_set() -> impl Strategy<Value = Vec<u8>> {
        let tags = prop::collection::btree_map("[p-r]", prop_oneof![0_u64..5, Just(u64::MAX)], 1..4);
        let elements = prop::collection::btree_map("[a-c]", tags, 0..4);
        let more = prop::collection::btree_map("[p-r]", 0_u64..5, 0..4);
        (elements, more).prop_map(|(elements, more)| {
            let mut set = Set { elements: Members::default(), seen: Members(more) };
            for (element, tags) in elements {
                for (writer, number) in &tags {
                    let seen = set.seen.0.entry(writer.clone()).or_default();
                    *seen = (*seen).max(*number);
                }
                set.elements.0.insert(element, Members(tags));
            }
            set.write()
        })
    }

    /// What the documentation tells clients to do.
    fn add(set: &mut Set, writer: &str, element: &str) -> (String, u64) {
        let number = set.seen.0.entry(writer.to_owned()).or_default();
        *number += 1;
        let tag = (writer.to_owned(), *number);
        set.elements.0.insert(element.to_owned(), Members(BTreeMap::from([tag.clone()])));
        tag
    }

    /// One of three writers takes over another's copy, then adds or removes an element.
    type Step = (usize, usize, bool, usize);

    proptest! {
        #[test]
        fn verdicts_obey_the_laws(values in prop::collection::vec(any_set(), 3)) {
            assert_laws(&AddWinsSet, &values);
        }

        /// The definition: an element is in the set if one of its additions was seen by no removal of it.
        #[test]
        fn it_is_the_set_of_its_definition(
            steps in prop::collection::vec((0_usize..3, 0_usize..3, any::<bool>(), 0_usize..3), 0..60)
        ) {
            const ELEMENTS: [&str; 3] = ["a", "b", "c"];
            type Known = (BTreeSet<(String, u64, usize)>, BTreeSet<(String, u64, usize)>);
            let mut copies: [(Set, Known); 3] = Default::default();
            let steps: Vec<Step> = steps;
            for (writer, from, is_addition, element) in steps {
                let (set, (added, removed)) = copies[from].clone();
                let copy = &mut copies[writer];
                copy.0.join(set);
                copy.1.0.extend(added);
                copy.1.1.extend(removed);
                let (set, (added, removed)) = copy;
                // A later addition of the same writer takes the place of the tags that it has seen.
                let seen: Vec<_> = added.iter().filter(|(_, _, of)| *of == element).cloned().collect();
                if is_addition {
                    let (writer, number) = add(set, &writer.to_string(), ELEMENTS[element]);
                    added.insert((writer, number, element));
                } else {
                    set.elements.0.remove(ELEMENTS[element]);
                    removed.extend(seen);
                }
            }
            let (mut all, (mut added, mut removed)): (Set, Known) = Default::default();
            for (set, known) in copies {
                all.join(set);
                added.extend(known.0);
                removed.extend(known.1);
            }
            let expected: BTreeSet<&str> = added.difference(&removed).map(|(_, _, of)| ELEMENTS[*of]).collect();
            let found: BTreeSet<&str> = all.elements.0.keys().map(String::as_str).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
