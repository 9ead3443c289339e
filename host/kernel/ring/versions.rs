//! The versions of the ring that are in use.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Ring;
use crate::name::NodeId;

/// The versions of the ring to which tenants may refer: one, as long as no node joins or leaves while data is stored. Tenants are moved
/// from one version to the next, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rings {
    /// By number; never empty.
    versions: Vec<(u64, Arc<Ring>)>,
}

impl Rings {
    /// These versions; the first number of two that are equal counts.
    pub fn new(mut versions: Vec<(u64, Arc<Ring>)>) -> Self {
        if versions.is_empty() {
            versions.push((0, Arc::new(Ring::new(&[], 0))));
        }
        versions.sort_by_key(|(version, _)| *version);
        versions.dedup_by_key(|(version, _)| *version);
        Self { versions }
    }

    /// One ring, of version 0.
    pub fn one(ring: Ring) -> Self {
        Self::new(vec![(0, Arc::new(ring))])
    }

    /// The newest version: new tenants are placed on it, and all others move there.
    pub fn newest(&self) -> &Arc<Ring> {
        // Never empty.
        &self.versions[self.versions.len() - 1].1
    }

    /// The number of the newest version.
    pub fn newest_version(&self) -> u64 {
        self.versions[self.versions.len() - 1].0
    }

    /// A version; `None` if it is not known here: it is newer than what is followed, or nobody uses it any longer.
    pub fn version(&self, version: u64) -> Option<&Arc<Ring>> {
        // The usual case first.
        self.versions.iter().rev().find(|(known, _)| *known == version).map(|(_, ring)| ring)
    }

    /// The nodes of any version: those that hold records, or are to. Sorted by id.
    pub fn nodes(&self) -> Vec<NodeId> {
        match &self.versions[..] {
            // The usual case.
            [(_, only)] => only.nodes().to_vec(),
            all => {
                all.iter().flat_map(|(_, ring)| ring.nodes()).collect::<BTreeSet<_>>().into_iter().cloned().collect()
            }
        }
    }

    /// Every version, the oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = (u64, &Arc<Ring>)> {
        self.versions.iter().map(|(version, ring)| (*version, ring))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_by_number_and_the_newest_is_the_highest() {
        let ring = |nodes: u32| {
            let nodes: Vec<(NodeId, u32)> = (0..nodes).map(|n| (NodeId::new(format!("n{n}")).unwrap(), 4)).collect();
            Arc::new(Ring::new(&nodes, 1))
        };
        let rings = Rings::new(vec![(7, ring(4)), (3, ring(3)), (7, ring(5))]);
        assert_eq!((rings.newest_version(), rings.newest().len()), (7, 4));
        assert_eq!(rings.version(3).map(|ring| ring.len()), Some(3));
        assert_eq!(rings.version(4), None);
        assert_eq!(rings.nodes().len(), 4, "each once");
        assert_eq!(rings.all().map(|(version, _)| version).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(Rings::new(vec![]).newest().len(), 0);
        assert_eq!(Rings::one(Ring::new(&[], 9)).newest_version(), 0);
    }
}
