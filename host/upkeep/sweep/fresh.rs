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
