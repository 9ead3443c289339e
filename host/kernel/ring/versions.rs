//! The versions of the ring that are in use.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use super::{Preference, ReplicaRange, Ring};
use crate::name::NodeId;

/// Tokens, both ends included.
type Tokens = (u64, u64);

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

    /// The whole ring in ranges, by their tokens, without gap or overlap: for each, the nodes that hold its tokens under every version, the
    /// oldest first, as [`Ring::replica_ranges`] says.
    pub fn replica_ranges(&self, factors: &[u8]) -> Vec<(Tokens, Vec<(u64, Preference)>)> {
        let mut all: Vec<(u64, Peekable<IntoIter<ReplicaRange>>)> = Vec::with_capacity(self.versions.len());
        for (version, ring) in &self.versions {
            let ranges = ring.replica_ranges(factors);
            if !ranges.is_empty() {
                all.push((*version, ranges.into_iter().peekable()));
            }
        }
        let (mut cut, mut first) = (Vec::new(), 0);
        while let Some(last) = all.iter_mut().filter_map(|(_, ranges)| ranges.peek().map(|range| range.to)).min() {
            let mut versions = Vec::with_capacity(all.len());
            for (version, ranges) in &mut all {
                match ranges.next_if(|range| range.to == last) {
                    Some(range) => versions.push((*version, range.replicas)),
                    None => versions.extend(ranges.peek().map(|range| (*version, range.replicas.clone()))),
                }
            }
            cut.push(((first, last), versions));
            first = last.wrapping_add(1);
        }
        cut
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
    fn ranges_say_who_holds_them_under_every_version() {
        let ring = |nodes: std::ops::Range<u32>| {
            let nodes: Vec<(NodeId, u32)> = nodes.map(|n| (NodeId::new(format!("n{n}")).unwrap(), 8)).collect();
            Arc::new(Ring::new(&nodes, 1))
        };
        let rings = Rings::new(vec![(1, ring(0..3)), (2, ring(1..6)), (5, ring(0..0))]);
        let all = rings.replica_ranges(&[2, 3]);
        assert_eq!((all[0].0.0, all.last().unwrap().0.1), (0, u64::MAX));
        assert!(all.windows(2).all(|pair| pair[0].0.1 + 1 == pair[1].0.0));
        for ((from, to), versions) in &all {
            assert_eq!(versions.iter().map(|(version, _)| *version).collect::<Vec<_>>(), [1, 2]);
            for (version, replicas) in versions {
                let ring = rings.version(*version).unwrap();
                for token in [*from, *to] {
                    for factor in [2, 3] {
                        let sorted = |nodes: &[NodeId]| BTreeSet::from_iter(nodes.to_vec());
                        assert_eq!(sorted(&replicas[..factor]), sorted(&ring.replicas(token, factor as u8)));
                    }
                }
            }
        }
        let one = Rings::one(Ring::clone(&ring(0..3)));
        let alone: Vec<_> = one.newest().replica_ranges(&[2]).into_iter().map(|range| (range.from, range.to)).collect();
        assert_eq!(one.replica_ranges(&[2]).iter().map(|(tokens, _)| *tokens).collect::<Vec<_>>(), alone);
    }

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
        assert_eq!(rings.all().map(|(version, _)| version).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(rings.nodes().len(), 4);
        assert_eq!(Rings::new(vec![]).newest().len(), 0);
        assert_eq!(Rings::one(Ring::new(&[], 9)).newest_version(), 0);
    }
}
