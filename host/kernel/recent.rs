//! `recent`: the writes that a record remembers by their ids, so that a retry has no second effect.

use smallvec::SmallVec;

use crate::limit::{CLOCK_SKEW_MICROS, RECENT_ENTRIES, RECENT_MICROS};
use crate::name::WriteId;

/// Ids of recent writes, at most [`crate::limit::RECENT_ENTRIES`], each with a hybrid time (in a register: the stamp).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recent {
    /// Newest first; equal times: greater write id first.
    pub entries: SmallVec<[(WriteId, u64); 2]>,
    /// The greatest time of an entry that was dropped because of its age or for lack of room; 0 when none was. For a write that is not
    /// here and may be as old as this, it is unknown whether it was applied.
    pub horizon: u64,
}

/// Newest first.
fn rank(entry: &(WriteId, u64)) -> (u64, WriteId) {
    (entry.1, entry.0)
}

impl Recent {
    /// The time under which a write is remembered.
    pub fn time_of(&self, write_id: &WriteId) -> Option<u64> {
        self.entries.iter().find(|(id, _)| id == write_id).map(|(_, time)| *time)
    }

    /// Remembers a write. A write that is remembered already keeps the greater of both times, as the union of two records must (the entry
    /// with the lesser time may have been dropped elsewhere). True when that changed anything.
    pub fn remember(&mut self, write_id: WriteId, time: u64) -> bool {
        let entry = (write_id, time);
        if let Some(at) = self.entries.iter().position(|(id, _)| *id == write_id) {
            if self.entries[at].1 >= time {
                return false;
            }
            self.entries.remove(at);
        } else if self.entries.len() >= RECENT_ENTRIES
            && self.entries.last().is_some_and(|last| rank(last) > rank(&entry))
        {
            let raised = time > self.horizon;
            self.horizon = self.horizon.max(time);
            return raised;
        }
        let at = self.entries.partition_point(|other| rank(other) > rank(&entry));
        self.entries.insert(at, entry);
        self.keep_first(RECENT_ENTRIES);
        true
    }

    /// Takes the union: the newest [`RECENT_ENTRIES`] of both. True when this one changed. Associative, commutative and idempotent.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut changed = other.horizon > self.horizon;
        self.horizon = self.horizon.max(other.horizon);
        if self.entries != other.entries {
            for (id, time) in &other.entries {
                changed |= self.remember(*id, *time);
            }
        }
        changed
    }

    /// Drops entries older than [`RECENT_MICROS`] at `now_micros` (microseconds since 1970), allowing for clock skew, and raises the
    /// horizon accordingly. True when anything was dropped.
    pub fn expire(&mut self, now_micros: u64) -> bool {
        // A coordinator's clock may be behind by the skew: what it has just written already looks that old.
        let oldest = now_micros.saturating_sub(RECENT_MICROS + CLOCK_SKEW_MICROS);
        let keep = self.entries.partition_point(|(_, time)| *time >= oldest);
        self.keep_first(keep)
    }

    fn keep_first(&mut self, keep: usize) -> bool {
        let Some((_, time)) = self.entries.get(keep) else { return false };
        self.horizon = self.horizon.max(*time);
        self.entries.truncate(keep);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

    use super::Recent;
    use crate::limit::{CLOCK_SKEW_MICROS, RECENT_ENTRIES, RECENT_MICROS};
    use crate::name::WriteId;

    fn id(n: u8) -> WriteId {
        WriteId([n; 16])
    }

    #[test]
    fn newest_first_and_the_greater_time_stays() {
        let mut recent = Recent::default();
        for (n, time) in [(1, 10), (2, 30), (3, 20), (1, 5), (3, 40), (4, 30)] {
            recent.remember(id(n), time);
        }
        assert_eq!(recent.entries.as_slice(), [(id(3), 40), (id(4), 30), (id(2), 30), (id(1), 10)]);
        assert_eq!(recent.horizon, 0);
    }

    #[test]
    fn the_horizon_tells_what_was_dropped() {
        let mut recent = Recent::default();
        for n in 0..=RECENT_ENTRIES as u8 {
            recent.remember(id(n), 100 + u64::from(n));
        }
        assert_eq!((recent.entries.len(), recent.horizon), (RECENT_ENTRIES, 100));
        assert_eq!(recent.time_of(&id(0)), None);
        assert!(recent.expire(CLOCK_SKEW_MICROS + RECENT_MICROS + 103));
        assert_eq!((recent.entries.len(), recent.horizon), (RECENT_ENTRIES - 2, 102));
        assert!(!recent.expire(CLOCK_SKEW_MICROS + RECENT_MICROS + 103));
        assert!(!recent.expire(0));
    }

    #[test]
    fn a_write_older_than_a_full_list_only_raises_the_horizon_and_says_whether_it_did() {
        let mut recent = Recent::default();
        for n in 0..RECENT_ENTRIES as u8 {
            assert!(recent.remember(id(n), 100));
        }
        let full = recent.entries.clone();
        let older = [(200, 50), (201, 50), (202, 40), (203, 51)];
        let raised = older.map(|(n, time)| (recent.remember(id(n), time), recent.horizon));
        assert_eq!(raised, [(true, 50), (false, 50), (false, 50), (true, 51)]);
        assert_eq!(recent.entries, full);
    }

    #[test]
    fn a_greater_horizon_is_taken_over_and_a_lesser_one_is_not() {
        let mut recent = Recent { horizon: 5, ..Recent::default() };
        let merges = [4, 5, 6].map(|horizon| {
            let changed = recent.merge(&Recent { horizon, ..Recent::default() });
            (changed, recent.horizon)
        });
        assert_eq!(merges, [(false, 5), (false, 5), (true, 6)]);
    }

    fn recents() -> impl Strategy<Value = Recent> {
        proptest::collection::vec((0..100u8, 0..120u64), 0..80).prop_map(|writes| {
            let mut recent = Recent::default();
            for (n, time) in writes {
                recent.remember(id(n), time);
            }
            recent
        })
    }

    fn merged(a: &Recent, b: &Recent) -> Recent {
        let mut out = a.clone();
        let changed = out.merge(b);
        assert_eq!(changed, out != *a);
        out
    }

    proptest! {
        #[test]
        fn union_obeys_the_laws(a in recents(), b in recents(), c in recents()) {
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        }

        #[test]
        fn whatever_is_missing_is_not_newer_than_the_horizon(writes in proptest::collection::vec(any::<(u8, u64)>(), 0..200)) {
            let mut recent = Recent::default();
            for (n, time) in &writes {
                recent.remember(id(*n), *time);
            }
            for (n, time) in &writes {
                assert!(recent.time_of(&id(*n)).is_some() || recent.horizon >= *time);
            }
        }
    }
}
