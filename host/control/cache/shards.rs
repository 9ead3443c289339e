//! A bounded map that is read without a lock: each shard is an immutable map, replaced by a changed copy.
//!
//! Reads are of every request, changes of a tenant's first one, so that a change may cost the copy of a shard (some
//! microseconds at 157 entries) for a read to cost a hash and a look. General caches log every read to keep their order of
//! eviction; with 10,000 tenants it is enough to know who was asked for since the last time round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use indexmap::IndexMap;
use witan_kernel::name::TenantId;

/// Enough that a shard is cheap to copy.
const SHARDS: usize = 64;

/// The map. Its caller sees to it that there is one change at a time.
pub(super) struct Shards<V> {
    shards: Box<[Shard<V>]>,
    most_each: usize,
}

/// Every entry keeps its position, so that the hand passes each of them once in a round.
type Map<V> = IndexMap<TenantId, Arc<Entry<V>>>;

struct Shard<V> {
    map: ArcSwap<Map<V>>,
    /// Where the search for something to evict goes on.
    hand: AtomicUsize,
}

struct Entry<V> {
    value: V,
    /// Asked for since the hand was here last.
    used: AtomicBool,
}

impl<V> Shards<V> {
    /// An empty map of about `most` entries: each shard holds its part.
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        let shards = (0..SHARDS.min(most)).map(|_| Shard { map: ArcSwap::default(), hand: AtomicUsize::new(0) });
        let shards: Box<[Shard<V>]> = shards.collect();
        let most_each = most.div_ceil(shards.len());
        Self { shards, most_each }
    }

    /// Looks at an entry.
    pub(super) fn look<R>(&self, id: &TenantId, at: impl FnOnce(&V) -> R) -> Option<R> {
        let map = self.shard(id).map.load();
        let entry = map.get(id)?;
        // Written only when it changes: readers on several cores share the line.
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(at(&entry.value))
    }

    /// Puts an entry, in place of one that was not asked for lately if there is no room.
    pub(super) fn insert(&self, id: TenantId, value: V) {
        let shard = self.shard(&id);
        let mut map = Map::clone(&shard.map.load());
        let victim = (map.len() >= self.most_each && !map.contains_key(&id)).then(|| shard.victim(&map)).flatten();
        // Not yet asked for again: a flood of new entries drives out its own.
        let (last, _) = map.insert_full(id, Arc::new(Entry { value, used: AtomicBool::new(false) }));
        if let Some(victim) = victim {
            // The new entry takes the victim's position.
            map.swap_indices(victim, last);
            map.pop();
        }
        shard.map.store(Arc::new(map));
    }

    /// The ids of all entries, in no order.
    pub(super) fn ids(&self) -> Vec<TenantId> {
        self.shards.iter().flat_map(|shard| shard.map.load().keys().cloned().collect::<Vec<_>>()).collect()
    }

    /// Removes an entry.
    pub(super) fn remove(&self, id: &TenantId) {
        let shard = self.shard(id);
        let map = shard.map.load();
        if map.contains_key(id) {
            let mut map = Map::clone(&map);
            map.shift_remove(id);
            shard.map.store(Arc::new(map));
        }
    }

    /// Whoever makes ids that meet in one shard gets a small cache for them, and nothing worse.
    fn shard(&self, id: &TenantId) -> &Shard<V> {
        let bytes = id.bytes();
        let seed = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
        let mixed = bytes
            .iter()
            .rev()
            .take(12)
            .fold(seed, |mixed, byte| (mixed ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
        &self.shards[(mixed >> 32) as usize % self.shards.len()]
    }
}

impl<V> Shard<V> {
    /// The position of an entry to evict. Second chance: whoever was asked for since the last time round stays for another.
    fn victim(&self, map: &Map<V>) -> Option<usize> {
        let (count, from) = (map.len(), self.hand.load(Ordering::Relaxed));
        let mut around = (0..2 * count).map(|step| (from + step) % count);
        let victim =
            around.find(|at| map.get_index(*at).is_some_and(|(_, entry)| !entry.used.swap(false, Ordering::Relaxed)));
        self.hand.store(victim.map_or(from, |at| at + 1), Ordering::Relaxed);
        victim
    }
}

#[cfg(test)]
mod tests {
    use super::Shards;
    use witan_kernel::name::TenantId;

    fn id(of: usize) -> TenantId {
        TenantId::new(format!("tenant-{of}")).expect("valid")
    }

    #[test]
    fn it_holds_so_many_and_spreads_them() {
        let shards = Shards::new(1000);
        (0..5000).for_each(|of| shards.insert(id(of), of));
        let sizes: Vec<usize> = shards.shards.iter().map(|shard| shard.map.load().len()).collect();
        assert_eq!((sizes.iter().min(), sizes.iter().max()), (Some(&16), Some(&16)));
        shards.insert(id(3), 33);
        assert_eq!(shards.look(&id(3), |value| *value), Some(33));
        shards.remove(&id(3));
        assert_eq!(shards.look(&id(3), |value| *value), None);
    }

    #[test]
    fn what_is_asked_for_stays() {
        let shards = Shards::new(1280);
        (0..200).for_each(|of| shards.insert(id(of), of));
        for of in 200..10_000 {
            shards.insert(id(of), of);
            if of % 10 == 0 {
                (0..200).for_each(|of| assert_eq!(shards.look(&id(of), |value| *value), Some(of)));
            }
        }
    }

    #[test]
    fn one_is_room_enough() {
        let shards = Shards::new(0);
        (0..10).for_each(|of| shards.insert(id(of), of));
        assert_eq!((0..10).filter_map(|of| shards.look(&id(of), |value| *value)).collect::<Vec<_>>(), [9]);
    }
}
