//! Durations, counted by their order of magnitude.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Buckets: four for each doubling, up to 2^16 us (65 ms); the last one holds everything longer. No plugin may run for longer.
const BUCKETS: usize = 64;

/// Counts of durations, each in a bucket whose bounds are at most 25 % apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies([u32; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Latencies {
    /// Counts a duration in microseconds.
    pub fn record(&mut self, micros: u64) {
        let counted = &mut self.0[bucket(micros)];
        *counted = counted.saturating_add(1);
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (counted, more) in self.0.iter_mut().zip(other.0) {
            *counted = counted.saturating_add(more);
        }
    }

    /// All durations.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|counted| u64::from(*counted)).sum()
    }

    /// The duration that this many thousandths of all do not exceed, in microseconds: the upper bound of its bucket, so never too short.
    /// 0 without any.
    pub fn at_permille(&self, permille: u64) -> u64 {
        let (mut left, all) = (0, self.count());
        for (index, counted) in self.0.iter().enumerate() {
            left += u64::from(*counted);
            if left * 1000 >= all * permille {
                return upper(index);
            }
        }
        0
    }

    /// The counts, for a report: the bucket of each and its number, of those that are not empty.
    pub fn counted(&self) -> impl Iterator<Item = (u8, u32)> {
        self.0.iter().enumerate().filter(|(_, counted)| **counted > 0).map(|(index, counted)| (index as u8, *counted))
    }

    /// Reads what [`Self::counted`] gave. Buckets that there are not count as the last one.
    pub fn of(counted: impl IntoIterator<Item = (u8, u32)>) -> Self {
        let mut read = Self::default();
        for (index, number) in counted {
            let counted = &mut read.0[usize::from(index).min(BUCKETS - 1)];
            *counted = counted.saturating_add(number);
        }
        read
    }
}

/// The same, counted by many threads at once. A count that has reached 2^32 begins again.
#[derive(Debug)]
pub struct AtomicLatencies([AtomicU32; BUCKETS]);

impl Default for AtomicLatencies {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl AtomicLatencies {
    /// Counts a duration in microseconds.
    pub fn record(&self, micros: u64) {
        self.0[bucket(micros)].fetch_add(1, Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Latencies {
        Latencies(std::array::from_fn(|index| self.0[index].load(Relaxed)))
    }
}

/// Below four microseconds each has a bucket of its own; from there on, four buckets divide each doubling evenly.
fn bucket(micros: u64) -> usize {
    if micros < 4 {
        return micros as usize;
    }
    let doubling = 63 - micros.leading_zeros() as usize;
    let quarter = (micros >> (doubling - 2)) as usize & 3;
    ((doubling - 1) * 4 + quarter).min(BUCKETS - 1)
}

/// The longest duration in a bucket, in microseconds.
fn upper(index: usize) -> u64 {
    if index < 4 {
        return index as u64;
    }
    let (doubling, quarter) = (index / 4 + 1, index as u64 % 4);
    ((5 + quarter) << (doubling - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_within_the_bounds_of_its_bucket() {
        for micros in (0..70_000).chain([1 << 20, u64::MAX]) {
            let index = bucket(micros);
            if index < BUCKETS - 1 {
                assert!(micros <= upper(index), "{micros} is above {}", upper(index));
                assert!(index == 0 || micros > upper(index - 1), "{micros} is not above {}", upper(index - 1));
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_percentile_is_never_too_short() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.at_permille(990), latencies.count()), (0, 0));
        (0..99).for_each(|_| latencies.record(100));
        latencies.record(5_000);
        assert!((100..125).contains(&latencies.at_permille(990)), "{}", latencies.at_permille(990));
        assert!((5_000..6_250).contains(&latencies.at_permille(1000)));
        assert_eq!(latencies.counted().collect::<Vec<_>>(), [(22, 99), (44, 1)], "those that are not empty");
        let read = Latencies::of(latencies.counted());
        assert_eq!(read, latencies);
        let mut twice = latencies.clone();
        twice.add(&read);
        assert_eq!(twice.count(), 200);
        assert_eq!(Latencies::of([(255, 3)]).count(), 3);
        let counted = AtomicLatencies::default();
        (0..99).for_each(|_| counted.record(100));
        counted.record(5_000);
        assert_eq!(counted.read(), latencies);
    }
}
