//! Which entries are written of those that anybody can provoke in any number: refusals, and calls that failed and changed nothing. Whoever
//! provokes them must not push what did happen out of the rotated files, so beyond a rate they are only counted. The count is written, too.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use witan_kernel::sync::lock;

/// Most sources that have an account of their own; further ones share one. A source is forgotten once it may have its whole burst again.
const SOURCES: usize = 1000;

/// How many entries of one source are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// At once.
    pub(super) burst: u32,
    /// Each second after that.
    pub(super) per_second: u32,
}

/// The accounts of one kind of entry.
#[derive(Debug)]
pub(super) struct Sieve {
    rate: Rate,
    sources: Mutex<BTreeMap<String, Account>>,
}

#[derive(Debug)]
struct Account {
    /// Entries that may be written at once, as of `since`.
    credit: f64,
    since: Instant,
    left_out: u64,
}

impl Sieve {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, sources: Mutex::default() }
    }

    /// Whether an entry of this source is written: then the number of those before it that were left out. Otherwise it is counted as left
    /// out.
    pub(super) fn passes(&self, source: &str, now: Instant) -> Option<u64> {
        let mut sources = lock(&self.sources);
        if !sources.contains_key(source) && sources.len() >= SOURCES {
            sources.retain(|_, account| {
                account.left_out > 0 || account.credit_at(now, self.rate) < self.rate.burst.into()
            });
        }
        let shared = !sources.contains_key(source) && sources.len() >= SOURCES;
        let source = if shared { "" } else { source };
        let new = || Account { credit: self.rate.burst.into(), since: now, left_out: 0 };
        let account = sources.entry(source.to_owned()).or_insert_with(new);
        account.credit = account.credit_at(now, self.rate);
        account.since = now;
        if account.credit < 1.0 {
            account.left_out += 1;
            return None;
        }
        account.credit -= 1.0;
        Some(std::mem::take(&mut account.left_out))
    }

    /// The sources of which entries were left out since the last time, and how many.
    pub(super) fn left_out(&self) -> Vec<(String, u64)> {
        let mut sources = lock(&self.sources);
        let some = sources.iter_mut().filter(|(_, account)| account.left_out > 0);
        some.map(|(source, account)| (source.clone(), std::mem::take(&mut account.left_out))).collect()
    }
}

impl Account {
    fn credit_at(&self, now: Instant, rate: Rate) -> f64 {
        let elapsed: Duration = now.saturating_duration_since(self.since);
        (self.credit + elapsed.as_secs_f64() * f64::from(rate.per_second)).min(rate.burst.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_rate_and_what_is_left_out_is_counted() {
        let sieve = Sieve::new(Rate { burst: 2, per_second: 1 });
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([(); 4].map(|()| sieve.passes("a", at(0))), [Some(0), Some(0), None, None]);
        assert_eq!(sieve.passes("b", at(0)), Some(0));
        assert_eq!(sieve.passes("a", at(1)), Some(2), "with the number of those before it");
        assert_eq!((sieve.passes("a", at(1)), sieve.left_out()), (None, vec![("a".to_owned(), 1)]));
        assert!(sieve.left_out().is_empty(), "each is counted once");
    }

    #[test]
    fn sources_are_bounded() {
        let sieve = Sieve::new(Rate { burst: 1, per_second: 1 });
        let start = Instant::now();
        for number in 0..3 * SOURCES {
            sieve.passes(&number.to_string(), start);
        }
        assert!(lock(&sieve.sources).len() <= SOURCES + 1);
        sieve.passes("late", start + Duration::from_secs(10));
        assert!(lock(&sieve.sources).len() <= 2, "those that may have their burst again are forgotten");
    }
}
