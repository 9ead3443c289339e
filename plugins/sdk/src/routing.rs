//! The hook asked where a key lies, and which of its replicas are read first.

pub use crate::bindings::routing_hook::exports::witan::plugin::routing::{Candidate, Replica};

use crate::{Error, Plugin};

/// Decides where keys lie, and which replicas are read first. Implement one function or both.
pub trait RoutingHook: Plugin {
    /// The bytes, 1 to 1024, that decide the key's place: keys with the same ones lie together. Equal keys must get equal
    /// answers for ever. Without an implementation: the key itself.
    fn partition_key(&self, key: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(key.to_vec())
    }

    /// The order in which replicas are read: indices into `candidates`, each at most once, best first. Those left out
    /// follow in the coordinator's own order. Without an implementation: all in that order.
    fn prefer_replicas(&self, key: &[u8], candidates: &[Candidate]) -> Result<Vec<u8>, Error> {
        let _ = (key, candidates);
        Ok(Vec::new())
    }
}
