//! What each tenant asks of each plugin, as a bounded number of series for metrics: the busiest have one each, and the others have one
//! together.
//!
//! A series is kept while it is used, so that what a graph shows does not change its meaning from one look to the next; only one that has
//! been quiet for long makes room for another. What was counted in one series is never counted in another as well: none ever decreases.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use witan_kernel::hook::{FaultKind, Hook};
use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use crate::metrics::Unanswered;

/// Series of each hook, besides the one of all others. Each is four numbers, in a few hundred bytes of every scrape.
const SERIES: usize = 32;
/// Looks in which a series has not changed before it may make room for another: five minutes at the usual interval of 15 seconds.
const QUIET_LOOKS: u32 = 20;
/// The plugin and the tenant of the series of all others.
const OTHER: &str = "other";

/// What one tenant has asked of one plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantCounts {
    /// Calls into the plugin.
    pub calls: u64,
    /// Questions on which it failed.
    pub faults: u64,
    /// Questions that it was not asked.
    pub refused: u64,
    /// Duration of all calls together, in nanoseconds.
    pub nanos: u64,
}

impl TenantCounts {
    fn each(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            calls: of(self.calls, other.calls),
            faults: of(self.faults, other.faults),
            refused: of(self.refused, other.refused),
            nanos: of(self.nanos, other.nanos),
        }
    }

    fn and(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }
}

/// A series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSeries {
    /// The hook.
    pub hook: Hook,
    /// The plugin's name; "other" for all that have no series of their own.
    pub plugin: String,
    /// The tenant; "other" likewise.
    pub tenant: String,
    /// Its counts since the process started. They never decrease.
    pub counts: TenantCounts,
}

/// Counts one tenant's questions to one version of a plugin.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    calls: AtomicU64,
    faults: AtomicU64,
    refused: AtomicU64,
    nanos: AtomicU64,
    /// What of it is in a series already.
    taken: Mutex<TenantCounts>,
}

impl Tally {
    pub(crate) fn called(&self, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn unanswered(&self, kind: FaultKind) {
        match Unanswered::of(kind) {
            Unanswered::Declined => {}
            Unanswered::Failed => _ = self.faults.fetch_add(1, Relaxed),
            Unanswered::NotAsked => _ = self.refused.fetch_add(1, Relaxed),
        }
    }

    /// What was counted since this was called last.
    pub(crate) fn take(&self) -> TenantCounts {
        let mut taken = lock(&self.taken);
        let now = TenantCounts {
            calls: self.calls.load(Relaxed),
            faults: self.faults.load(Relaxed),
            refused: self.refused.load(Relaxed),
            nanos: self.nanos.load(Relaxed),
        };
        let before = std::mem::replace(&mut *taken, now);
        now.each(before, u64::saturating_sub)
    }
}

/// What is to be added to the series of a tenant and a plugin.
#[derive(Debug, Clone)]
pub(crate) struct More {
    pub(crate) hook: Hook,
    pub(crate) plugin: String,
    pub(crate) tenant: TenantId,
    pub(crate) counts: TenantCounts,
}

/// The series of every hook, in the order of [`Hook::ALL`].
#[derive(Debug, Default)]
pub(crate) struct Tallies([Mutex<Table>; 3]);

#[derive(Debug, Default)]
struct Table {
    series: BTreeMap<(String, TenantId), Series>,
    other: TenantCounts,
}

#[derive(Debug, Default)]
struct Series {
    counts: TenantCounts,
    /// Looks since it has changed.
    quiet: u32,
}

impl Table {
    /// Adds to a series that there is, or to that of all others.
    fn add(&mut self, more: More) {
        match self.series.get_mut(&(more.plugin, more.tenant)) {
            Some(series) => {
                series.counts = series.counts.and(more.counts);
                series.quiet = 0;
            }
            None => self.other = self.other.and(more.counts),
        }
    }

    /// Makes a series if there is room, or if one has been quiet for long.
    fn make(&mut self, plugin: &str, tenant: &TenantId) {
        let key = (plugin.to_owned(), tenant.clone());
        if self.series.contains_key(&key) || (plugin == OTHER && tenant.as_str() == OTHER) {
            return;
        }
        if self.series.len() >= SERIES {
            let quietest = self.series.iter().max_by_key(|(_, series)| series.quiet);
            let Some((quietest, _)) = quietest.filter(|(_, series)| series.quiet >= QUIET_LOOKS) else { return };
            let quietest = quietest.clone();
            self.series.remove(&quietest);
        }
        self.series.insert(key, Series::default());
    }
}

impl Tallies {
    /// Adds what was counted by somebody who ends now.
    pub(crate) fn add(&self, more: More) {
        lock(&self.0[more.hook as usize]).add(more);
    }

    /// Adds what was counted since the last look, and returns all series.
    pub(crate) fn look(&self, mut more: Vec<More>) -> Vec<TenantSeries> {
        more.retain(|more| more.counts != TenantCounts::default());
        // The busiest first, so that they get what room there is.
        more.sort_by_key(|more| std::cmp::Reverse(more.counts.nanos));
        let mut all = Vec::new();
        for hook in Hook::ALL {
            let mut table = lock(&self.0[hook as usize]);
            table.series.values_mut().for_each(|series| series.quiet = series.quiet.saturating_add(1));
            for more in more.iter().filter(|more| more.hook == hook) {
                table.make(&more.plugin, &more.tenant);
                table.add(more.clone());
            }
            let shown = |plugin: &str, tenant: &str, counts| {
                let (plugin, tenant) = (plugin.to_owned(), tenant.to_owned());
                TenantSeries { hook, plugin, tenant, counts }
            };
            let own = table.series.iter().map(|((plugin, tenant), it)| shown(plugin, tenant.as_str(), it.counts));
            all.extend(own.chain([shown(OTHER, OTHER, table.other)]));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOOK: Hook = Hook::ConflictResolver;

    fn more(tenant: &str, calls: u64) -> More {
        let counts = TenantCounts { calls, nanos: calls * 1000, ..TenantCounts::default() };
        More { hook: HOOK, plugin: "cart".into(), tenant: TenantId::new(tenant).unwrap(), counts }
    }

    fn calls(series: &[TenantSeries], tenant: &str) -> Option<u64> {
        let mut of = series.iter().filter(|it| it.hook == HOOK && it.tenant == tenant);
        of.next().map(|it| it.counts.calls)
    }

    #[test]
    fn the_busiest_have_a_series_each_and_the_others_one_together() {
        let tallies = Tallies::default();
        let first = tallies.look((1..=40).map(|n| more(&format!("t{n}"), n)).collect());
        assert_eq!(first.iter().filter(|it| it.hook == HOOK).count(), SERIES + 1);
        assert_eq!((calls(&first, "t40"), calls(&first, "t9"), calls(&first, "t8")), (Some(40), Some(9), None));
        assert_eq!(calls(&first, OTHER), Some((1..=8).sum()));
        // Whoever has a series keeps it, although others are busier now.
        let second = tallies.look(vec![more("t1", 1000), more("t40", 1)]);
        assert_eq!((calls(&second, "t40"), calls(&second, "t9")), (Some(41), Some(9)));
        assert_eq!(calls(&second, OTHER), Some((1..=8).sum::<u64>() + 1000));
        assert_eq!(first.iter().filter(|it| it.hook != HOOK).count(), 2, "the other hooks' others");
    }

    #[test]
    fn a_series_that_was_quiet_for_long_makes_room() {
        let tallies = Tallies::default();
        tallies.look((1..=SERIES).map(|n| more(&format!("t{n}"), 1)).collect());
        for _ in 0..QUIET_LOOKS - 1 {
            let busy: Vec<More> = (2..=SERIES).map(|n| more(&format!("t{n}"), 1)).collect();
            assert_eq!(calls(&tallies.look(busy), "t1"), Some(1));
        }
        let later = tallies.look(vec![more("new", 5)]);
        assert_eq!((calls(&later, "t1"), calls(&later, "new"), calls(&later, OTHER)), (None, Some(5), Some(0)));
    }

    #[test]
    fn who_is_called_other_has_no_series_beside_the_others() {
        let tallies = Tallies::default();
        let series = tallies.look(vec![More { plugin: OTHER.into(), ..more(OTHER, 3) }, more(OTHER, 4)]);
        let of: Vec<_> = series.iter().filter(|it| it.hook == HOOK).map(|it| (&*it.plugin, it.counts.calls)).collect();
        assert_eq!(of, [("cart", 4), (OTHER, 3)]);
    }

    #[test]
    fn each_count_is_taken_once() {
        let tally = Tally::default();
        tally.called(Duration::from_nanos(5));
        tally.unanswered(FaultKind::Trap);
        tally.unanswered(FaultKind::Queue);
        tally.unanswered(FaultKind::Declined);
        assert_eq!(tally.take(), TenantCounts { calls: 1, faults: 1, refused: 1, nanos: 5 });
        tally.called(Duration::from_nanos(7));
        assert_eq!(tally.take(), TenantCounts { calls: 1, nanos: 7, ..TenantCounts::default() });
        let tallies = Tallies::default();
        tallies.add(more("gone", 2));
        assert_eq!(calls(&tallies.look(Vec::new()), OTHER), Some(2));
    }
}
