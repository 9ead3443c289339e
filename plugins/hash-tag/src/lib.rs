//! Routing hook: keys with the same hash tag share a partition. The tag is found by the rule of Redis Cluster: the text between the
//! first '{' and the first '}' after it, unless it is empty. Without a tag the whole key is used. `{user1000}.following` and
//! `{user1000}.followers` share a partition; `foo{}{bar}` has no tag.

use witan_plugin_sdk::{Error, Plugin, RoutingHook};

/// The hook. It takes no configuration.
#[derive(Debug, Default)]
pub struct HashTag;

impl Plugin for HashTag {}

impl RoutingHook for HashTag {
    fn partition_key(&self, key: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(tag(key).unwrap_or(key).to_vec())
    }
}

fn tag(key: &[u8]) -> Option<&[u8]> {
    let after = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
    let inside = &after[..after.iter().position(|byte| *byte == b'}')?];
    (!inside.is_empty()).then_some(inside)
}

witan_plugin_sdk::routing_hook!(HashTag);

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(key: &str) -> String {
        String::from_utf8(HashTag.partition_key(key.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_the_rule() {
        assert_eq!(partition("{user1000}.following"), "user1000");
        assert_eq!(partition("{user1000}.followers"), "user1000");
        assert_eq!(partition("foo{}{bar}"), "foo{}{bar}");
        assert_eq!(partition("foo{{bar}}zap"), "{bar");
        assert_eq!(partition("foo{bar}{zap}"), "bar");
    }

    #[test]
    fn keys_without_a_tag_are_used_whole() {
        for key in ["plain", "{open", "close}", "}{", "{}", "a}b{c"] {
            assert_eq!(partition(key), key);
        }
    }
}
