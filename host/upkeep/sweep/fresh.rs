//! For how long merges may be sent of what was read. One that was stored long after its sources were read could bring back what has been
//! deleted and collected in between.

use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::age;
use witan_kernel::limit::LONGEST_DEADLINE;
use witan_kernel::port::Clock;

/// Longest time between reading a record and storing a merge that was made of it: that of an operation, in whose order deletions are
/// collected.
pub(crate) const FRESH: Duration = LONGEST_DEADLINE;

/// The deadline of a merge of what was first read at `read`: after `within` microseconds, and not after [`FRESH`].
pub(crate) fn deadline(clock: &impl Clock, read: Instant, within: u64) -> u64 {
    let now = clock.monotonic_micros();
    age::deadline(now.saturating_sub(read.elapsed().as_micros() as u64), now, within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Since(Instant);

    impl Clock for Since {
        fn wall_micros(&self) -> u64 {
            0
        }

        fn monotonic_micros(&self) -> u64 {
            1000 + self.0.elapsed().as_micros() as u64
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_merge_is_stored_later_than_ten_seconds_after_it_was_read() {
        let read = Instant::now();
        let (clock, within) = (Since(read), 5_000_000);
        for (passes, expected) in [(0, 5_001_000), (4, 9_001_000), (2, 10_001_000), (9, 10_001_000)] {
            tokio::time::advance(Duration::from_secs(passes)).await;
            assert_eq!(deadline(&clock, read, within), expected);
        }
    }
}
