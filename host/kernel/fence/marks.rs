//! Marks of a storage node: under which epoch it has last dropped what it held of a tenant, to get it anew.
//!
//! In a [placement change](crate::placement) a node that gets records first drops what it may have of them from before
//! ([`Purpose::Enter`](crate::scan::Purpose::Enter)), and marks the tenant with the epoch of the change. The mark says two things: asked
//! again under the same epoch, the node drops nothing, because by then the rows are those of the change; and a node that was to drop rows
//! under an earlier epoch no longer may.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{FENCES, noted};
use crate::name::TenantId;

/// The marks of a node: of [`FENCES`] tenants at most, for the same reason. With one more, the lowest is forgotten: its tenant's change, if
/// it is still under way, begins anew, and whether the tenant has been marked since is judged by the highest mark that was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// The highest mark that was forgotten; 0: none was.
    forgotten: u64,
    tenants: BTreeMap<TenantId, u64>,
}

impl Marks {
    /// True when the last mark of a tenant is known, and is this epoch.
    pub fn is(&self, tenant: &TenantId, epoch: u64) -> bool {
        self.tenants.get(tenant) == Some(&epoch)
    }

    /// True when a tenant may have been marked with a later epoch: it was, or its last mark may have been forgotten, and may be later.
    pub fn is_after(&self, tenant: &TenantId, epoch: u64) -> bool {
        self.tenants.get(tenant).copied().unwrap_or(self.forgotten) > epoch
    }

    /// Marks a tenant with an epoch. False if nothing has changed, since it was marked with this epoch or a later one.
    pub fn set(&mut self, tenant: &TenantId, epoch: u64) -> bool {
        if self.tenants.get(tenant).is_some_and(|mark| *mark >= epoch) {
            return false;
        }
        self.tenants.insert(tenant.clone(), epoch);
        if self.tenants.len() > FENCES
            && let Some((lowest, mark)) = self.tenants.iter().min_by_key(|(_, mark)| **mark)
        {
            self.forgotten = self.forgotten.max(*mark);
            let lowest = lowest.clone();
            self.tenants.remove(&lowest);
        }
        true
    }

    /// The marks as bytes, with a checksum.
    pub fn encode(&self) -> Bytes {
        noted::encode(self.forgotten, &self.tenants)
    }

    /// Reads what [`Self::encode`] has written; `None` when it is anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (forgotten, tenants) = noted::decode(bytes)?;
        Some(Self { forgotten, tenants })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u16) -> TenantId {
        TenantId::new(format!("t{n}")).unwrap()
    }

    proptest! {
        /// In whichever order they come, each tenant has its highest mark.
        #[test]
        fn a_mark_only_rises(set in prop::collection::vec((0u16..6, 1u64..40), 0..24)) {
            let mut marks = Marks::default();
            for (n, epoch) in &set {
                let higher = !marks.is(&tenant(*n), *epoch) && !marks.is_after(&tenant(*n), *epoch);
                prop_assert_eq!(marks.set(&tenant(*n), *epoch), higher);
            }
            for n in 0..7 {
                let last = set.iter().filter(|(of, _)| *of == n).map(|(_, epoch)| *epoch).max();
                for epoch in 0..41 {
                    prop_assert_eq!(marks.is(&tenant(n), epoch), last == Some(epoch));
                    prop_assert_eq!(marks.is_after(&tenant(n), epoch), last.unwrap_or(0) > epoch);
                }
            }
            prop_assert_eq!(Marks::decode(&marks.encode()), Some(marks));
        }
    }

    #[test]
    fn with_more_than_there_is_room_for_the_lowest_is_forgotten_and_nothing_is_taken_for_unmarked() {
        let mut marks = Marks::default();
        // In an order in which neither names nor epochs rise.
        let epoch = |n: u16| 1 + u64::from(n) * 7919 % 5003;
        for n in 0..2500 {
            marks.set(&tenant(n), epoch(n));
            assert!(marks.tenants.len() <= FENCES);
        }
        let mut epochs: Vec<u64> = (0..2500).map(epoch).collect();
        epochs.sort_unstable();
        assert_eq!(marks.tenants.values().min(), epochs.get(2500 - FENCES), "the highest are kept");
        assert_eq!(marks.forgotten, epochs[2500 - FENCES - 1]);
        for n in 0..2500 {
            assert!(marks.is_after(&tenant(n), epoch(n) - 1), "marked since, for all that is known");
            assert!(!marks.is(&tenant(n), epoch(n) - 1) && !marks.is(&tenant(n), epoch(n) + 1));
        }
        assert_eq!(Marks::decode(&marks.encode()), Some(marks));
    }

    #[test]
    fn damage_is_noticed() {
        let mut marks = Marks::default();
        marks.set(&tenant(1), 7);
        marks.set(&tenant(2), 3);
        let good = marks.encode();
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert_eq!(Marks::decode(&bad), None, "byte {at}");
            assert_eq!(Marks::decode(&good[..at]), None, "{at} bytes");
        }
    }
}
