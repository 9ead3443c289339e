//! Fences of a storage node: requests under an older epoch are refused.
//!
//! A coordinator that is cut off from the metadata store goes on with what it knows. So does one that has not read a change yet. What a
//! promise rests on may therefore change only together with a fence: the nodes remember, durably, the epoch of the change, and refuse
//! whoever decides by an older one. An epoch is a revision of the metadata store, and a request carries the revision up to which its
//! coordinator had followed all changes when the operation began.
//!
//! Fences only rise, so raising one again, late or in another order is harmless. [`Marks`] are kept beside them.

mod marks;
mod noted;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::name::{NodeId, TenantId};
use crate::ring::Ring;
use crate::space::Space;
use crate::tenant::{Level, Tenant};

pub use marks::Marks;

/// Most fences of single tenants on a node: about 40 KB with names of usual length, a quarter of a megabyte with the longest. Each change
/// that needs a fence writes all of them. With one more, the lowest becomes the fence of all tenants: a coordinator that has missed that
/// many changes is refused for every tenant.
pub const FENCES: usize = 1024;

/// The fences of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fences {
    /// The least epoch that is served for any tenant.
    floor: u64,
    /// The least epoch that is served for this tenant. All are above the floor.
    tenants: BTreeMap<TenantId, u64>,
}

impl Fences {
    /// The least epoch under which requests about a tenant are served; 0: any.
    pub fn least(&self, tenant: &TenantId) -> u64 {
        // The usual case: nothing to look up.
        if self.tenants.is_empty() {
            return self.floor;
        }
        self.tenants.get(tenant).copied().unwrap_or(self.floor)
    }

    /// The same for the tenant of a space.
    pub fn least_of(&self, space: &Space) -> u64 {
        if self.tenants.is_empty() { self.floor } else { self.least(&space.tenant()) }
    }

    /// Raises the fence of a tenant, or of all tenants, to `epoch`. False if nothing has changed, since it was as high already.
    pub fn raise(&mut self, tenant: Option<&TenantId>, epoch: u64) -> bool {
        let Some(tenant) = tenant else { return self.raise_floor(epoch) };
        if epoch <= self.least(tenant) {
            return false;
        }
        self.tenants.insert(tenant.clone(), epoch);
        if self.tenants.len() > FENCES
            && let Some(lowest) = self.tenants.values().min().copied()
        {
            self.raise_floor(lowest);
        }
        true
    }

    fn raise_floor(&mut self, epoch: u64) -> bool {
        if epoch <= self.floor {
            return false;
        }
        self.floor = epoch;
        self.tenants.retain(|_, fence| *fence > epoch);
        true
    }

    /// The highest epoch of any fence; 0 if there is none. A metadata store whose revision is lower has lost changes.
    pub fn highest(&self) -> u64 {
        self.tenants.values().max().copied().unwrap_or(self.floor)
    }

    /// The fences as bytes, with a checksum.
    pub fn encode(&self) -> Bytes {
        noted::encode(self.floor, &self.tenants)
    }

    /// Reads what [`Self::encode`] has written; `None` when it is anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (floor, tenants) = noted::decode(bytes)?;
        tenants.values().all(|fence| *fence > floor).then_some(Self { floor, tenants })
    }
}

/// Whether a change of a tenant's settings needs a fence, and if so, the least level that operations could have under the settings of
/// before: an operation under old settings and a later one must not both succeed.
///
/// What a coordinator may go on doing by old settings while it is cut off, because no acknowledged write depends on it: the time of read
/// repairs, what happens in an outage of the idempotency store, and defaults of what a request may choose itself.
pub fn needed(before: &Tenant, after: &Tenant) -> Option<Level> {
    let changes = before.replication_factor != after.replication_factor
        || before.ordering != after.ordering
        || before.minimum_level != after.minimum_level
        || before.deleted_at_ms.is_some() != after.deleted_at_ms.is_some();
    changes.then_some(before.minimum_level)
}

/// Whether the replicas that lack a fence are too few, for every key of a tenant, to meet `level` by themselves.
pub fn tolerates(ring: &Ring, replication_factor: u8, level: Level, lacks: impl Fn(&NodeId) -> bool) -> bool {
    let required = usize::from(level.required(replication_factor));
    if required > 1 && ring.nodes().iter().filter(|node| lacks(node)).count() < required {
        // The usual case, without a walk around the ring.
        return true;
    }
    let ranges = ring.replica_ranges(&[replication_factor]);
    ranges.iter().all(|range| range.replicas.iter().filter(|node| lacks(node)).count() < required)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u16) -> TenantId {
        TenantId::new(format!("t{n}")).unwrap()
    }

    proptest! {
        /// In whichever order and however often fences are raised, each request that any of them refuses is refused in the end, and while
        /// few tenants have one, no other.
        #[test]
        fn what_is_refused_depends_on_neither_order_nor_repetition(
            raised in prop::collection::vec((prop::option::weighted(0.9, 0u16..6), 1u64..40), 0..24),
            seed in any::<u64>(),
        ) {
            let mut fences = Fences::default();
            for (of, epoch) in &raised {
                fences.raise(of.map(tenant).as_ref(), *epoch);
            }
            let mut other = Fences::default();
            let turn = (seed % (raised.len() as u64 + 1)) as usize;
            for (of, epoch) in raised[turn..].iter().chain(&raised) {
                other.raise(of.map(tenant).as_ref(), *epoch);
            }
            prop_assert_eq!(&fences, &other);
            for n in 0..7 {
                let least = raised.iter().filter(|(of, _)| of.is_none_or(|of| of == n)).map(|(_, epoch)| *epoch).max();
                prop_assert_eq!(fences.least(&tenant(n)), least.unwrap_or(0));
            }
            prop_assert_eq!(fences.highest(), raised.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0));
            prop_assert_eq!(Fences::decode(&fences.encode()), Some(fences));
        }
    }

    #[test]
    fn with_more_than_there_is_room_for_the_lowest_hold_for_all() {
        let mut fences = Fences::default();
        // In an order in which neither names nor epochs rise.
        let epoch = |n: u16| 1 + u64::from(n) * 7919 % 5003;
        for n in 0..2500 {
            fences.raise(Some(&tenant(n)), epoch(n));
            assert!(fences.tenants.len() <= FENCES);
        }
        assert!(fences.floor > 0 && fences.tenants.values().all(|fence| *fence > fences.floor));
        assert!((0..2500).all(|n| fences.least(&tenant(n)) >= epoch(n)));
        assert!((0..2500).any(|n| fences.least(&tenant(n)) == epoch(n) && epoch(n) > fences.floor));
        assert_eq!(Fences::decode(&fences.encode()), Some(fences));
    }

    #[test]
    fn damage_is_noticed() {
        let mut fences = Fences::default();
        fences.raise(Some(&tenant(1)), 7);
        fences.raise(None, 3);
        let good = fences.encode();
        assert_eq!(Fences::decode(&good), Some(fences));
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert_eq!(Fences::decode(&bad), None, "byte {at}");
            assert_eq!(Fences::decode(&good[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn raising_to_what_is_there_changes_nothing() {
        let mut fences = Fences::default();
        assert!(fences.raise(Some(&tenant(1)), 5));
        assert!(!fences.raise(Some(&tenant(1)), 5) && !fences.raise(Some(&tenant(1)), 4));
        assert!(fences.raise(None, 6) && !fences.raise(None, 6));
        assert!(!fences.raise(Some(&tenant(1)), 6), "the fence of all tenants covers it");
        assert!(fences.raise(Some(&tenant(1)), 7));
        assert_eq!((fences.least(&tenant(1)), fences.least(&tenant(2)), fences.highest()), (7, 6, 7));
    }

    #[test]
    fn replicas_without_a_fence_cannot_meet_the_level() {
        let node = |n: u32| NodeId::new(format!("n{n}")).unwrap();
        let nodes: Vec<(NodeId, u32)> = (1..=7).map(|n| (node(n), 16)).collect();
        let ring = Ring::new(&nodes, 1);
        for lacking in 0u32..1 << 7 {
            let lacks = |of: &NodeId| (1..=7).any(|n| lacking & 1 << (n - 1) != 0 && *of == node(n));
            for factor in 1..=5 {
                let most = (0..=u64::MAX / 3).step_by(1 << 53).map(|token| {
                    ring.replicas(token.wrapping_mul(0x9e37_79b9_7f4a_7c15), factor)
                        .iter()
                        .filter(|node| lacks(node))
                        .count()
                });
                let most = most.max().unwrap();
                for level in [Level::One, Level::Quorum, Level::All] {
                    let tolerated = tolerates(&ring, factor, level, lacks);
                    assert!(!tolerated || most < usize::from(level.required(factor)), "{lacking:b} {factor} {level}");
                    if lacking.count_ones() < u32::from(level.required(factor)) {
                        assert!(tolerated, "{lacking:b} {factor} {level}");
                    }
                }
            }
        }
    }
}
