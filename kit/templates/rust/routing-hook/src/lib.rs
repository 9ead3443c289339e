//! A routing hook: keys with the same text before the first '/' are stored on the same replicas. Replicas are read in the coordinator's own
//! order.
//!
//! A key must get the same partition key for ever: another rule is bound as a swap, which moves the tenant's records.

use witan_plugin_sdk::{Error, Plugin, RoutingHook};

/// The hook. It takes no configuration.
#[derive(Debug, Default)]
pub struct Prefix;

impl Plugin for Prefix {}

impl RoutingHook for Prefix {
    fn partition_key(&self, key: &[u8]) -> Result<Vec<u8>, Error> {
        // A partition key has at least one byte.
        match key.split(|byte| *byte == b'/').next() {
            Some(prefix) if !prefix.is_empty() => Ok(prefix.to_vec()),
            _ => Ok(key.to_vec()),
        }
    }
}

witan_plugin_sdk::routing_hook!(Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_before_the_first_slash_decides() {
        assert_eq!(Prefix.partition_key(b"user-1/cart").unwrap(), b"user-1");
        assert_eq!(Prefix.partition_key(b"/cart").unwrap(), b"/cart");
    }
}
