//! The hook asked for a key's partition, and for the order in which its replicas are read.

pub use crate::bindings::routing_hook::exports::witan::plugin::routing::{Candidate, Replica};

use crate::{Attributes, Error, Plugin};

/// Decides which partition keys belong to, and which replicas are read first. Implement one function or both.
pub trait RoutingHook: Plugin {
    /// The partition key, 1 to 1024 bytes: keys with the same partition key are stored on the same replicas. A key must get the same
    /// partition key for ever. By default it is the key itself.
    fn partition_key(&self, key: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(key.to_vec())
    }

    /// The order in which replicas are read: indices into `candidates`, each at most once, best first. Replicas that are left out follow
    /// in the coordinator's own order, which is also the default. A candidate's `state.attributes` have its `zone`, and `attributes` the
    /// `coordinator-zone`, as far as there are any.
    fn prefer_replicas(&self, key: &[u8], candidates: &[Candidate], attributes: &Attributes) -> Result<Vec<u8>, Error> {
        let _ = (key, candidates, attributes);
        Ok(Vec::new())
    }
}
