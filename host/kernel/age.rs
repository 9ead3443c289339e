//! How old a change may be when a node stores it: 10 s, counted from the start of its operation, or from when that was read of which it
//! is made. What is dropped for good once it is older than that (tombstones) cannot be brought back by what was on its way meanwhile.
//!
//! Two rules make it so. A coordinator gives no change a deadline that is [later](deadline) than this. A node counts deadlines from when a
//! request was sent, on its own monotonic clock, whatever time it has spent in sockets or in a process that was stopped; its coordinator
//! says when that was with an [estimate](NodeClock) that is never too late.

use std::time::Duration;

use super::limit::LONGEST_DEADLINE;

/// The longest time from the start of an operation, or from reading what a change is made of, to storing the change. Microseconds.
pub const OLDEST_MICROS: u64 = LONGEST_DEADLINE.as_micros() as u64;

/// The deadline of a request that changes a row, which gets `within` from now if that is not too long. `since`: when its operation began,
/// or when the first was read of what the change is made of. All in microseconds of the coordinator's monotonic clock.
pub fn deadline(since: u64, now: u64, within: u64) -> u64 {
    now.saturating_add(within).min(since.saturating_add(OLDEST_MICROS))
}

/// True when nothing may be sent any longer that is made of what was read at `since`: it has to be read again.
pub fn is_over(since: u64, now: u64) -> bool {
    deadline(since, now, u64::MAX) <= now
}

/// A node shows its clock with each frame. A lane that has been idle for this long asks for it, microseconds. Half of [`FORGOTTEN`] is
/// enough to forget the drift of two clocks, and twice a minute costs nothing.
const IDLE: u64 = 30_000_000;
/// What a node showed this long ago is not used any longer: by then two clocks may have drifted apart by 100 ms (at 500 ppm, the most
/// by which time services slow clocks down or speed them up for long). Microseconds.
const FORGOTTEN: u64 = 120_000_000;

/// What a coordinator knows of a node's monotonic clock, from what the node has shown.
///
/// What it showed, it showed before that arrived here. So its clock is ahead of this one by at least the difference between what it showed
/// and the time of arrival here, and the largest difference is the best estimate. Only recent ones are used, as clocks drift.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeClock {
    /// The largest difference since `since`, and that of the time before.
    ahead: [Option<i64>; 2],
    since: u64,
    /// When it was last shown.
    newest: u64,
    /// When it was last asked for.
    asked: u64,
}

impl NodeClock {
    /// The node has shown `shown`, which arrived at `now`.
    pub fn shown(&mut self, shown: u64, now: u64) {
        let passed = now.saturating_sub(self.since);
        if passed >= IDLE {
            let [recent, _] = self.ahead;
            self.ahead = [None, recent.filter(|_| passed < FORGOTTEN)];
            self.since = now;
        }
        let ahead = (shown as i64).saturating_sub(now as i64);
        self.ahead[0] = self.ahead[0].max(Some(ahead));
        self.newest = now;
    }

    /// The least that the node's clock can show at `now`; `None` when nothing is known that is recent.
    pub fn least(&self, now: u64) -> Option<u64> {
        let [recent, before] = self.ahead;
        let ahead = recent.max(before).filter(|_| now.saturating_sub(self.newest) < FORGOTTEN)?;
        Some((now as i64).saturating_add(ahead).max(0) as u64)
    }

    /// True when the node should be asked for its clock, which it is from then on.
    pub fn asks(&mut self, now: u64) -> bool {
        let asks = now.saturating_sub(self.newest.max(self.asked)) >= IDLE;
        if asks {
            self.asked = now;
        }
        asks
    }
}

/// When a node stops carrying out a request, in microseconds of its clock: `deadline_ms` after it was sent, and never later than that
/// after it has `arrived`. `sent_at`: the least that the node's clock can have shown when it was sent; `None`: its coordinator does not
/// know.
pub fn until(sent_at: Option<u64>, arrived: u64, deadline_ms: u32) -> u64 {
    let from = sent_at.map_or(arrived, |sent_at| sent_at.min(arrived));
    let longest = match (deadline_ms, sent_at) {
        (0, None) => return u64::MAX,
        (0, Some(_)) => LONGEST_DEADLINE,
        (ms, None) => Duration::from_millis(ms.into()),
        (ms, Some(_)) => Duration::from_millis(ms.into()).min(LONGEST_DEADLINE),
    };
    from.saturating_add(longest.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn nothing_is_sent_that_is_made_of_what_was_read_long_ago() {
        assert_eq!(deadline(100, 100, 5 * SECOND), 100 + 5 * SECOND);
        assert_eq!(deadline(100, 100 + 7 * SECOND, 5 * SECOND), 100 + 10 * SECOND);
        assert_eq!(deadline(100, 100 + 12 * SECOND, 5 * SECOND), 100 + 10 * SECOND, "which has passed");
        assert!(!is_over(100, 99 + 10 * SECOND) && is_over(100, 100 + 10 * SECOND));
    }

    #[test]
    fn deadlines_count_from_when_it_was_sent() {
        assert_eq!(until(Some(50), 100, 5), 50 + 5000);
        assert_eq!(until(Some(150), 100, 5), 100 + 5000, "it has not arrived before it was sent");
        assert_eq!(until(None, 100, 5), 100 + 5000);
        assert_eq!(until(None, 100, 0), u64::MAX, "a coordinator of before");
        assert_eq!(until(Some(50), 100, 0), 50 + 10 * SECOND);
        assert_eq!(until(Some(50), 100, u32::MAX), 50 + 10 * SECOND);
    }

    #[test]
    fn a_clock_that_was_not_shown_for_long_is_asked_for_and_forgotten() {
        let mut clock = NodeClock::default();
        assert_eq!(clock.least(5), None);
        clock.shown(1000, 100);
        assert_eq!(clock.least(150), Some(1050));
        clock.shown(1020, 200);
        assert_eq!(clock.least(200), Some(1100), "an answer that took longer says less");
        assert!(!clock.asks(200 + IDLE - 1) && clock.asks(200 + IDLE) && !clock.asks(201 + IDLE));
        assert!(clock.least(199 + FORGOTTEN).is_some() && clock.least(200 + FORGOTTEN).is_none());
        clock.shown(2000, 300 + FORGOTTEN);
        assert_eq!(clock.least(300 + FORGOTTEN), Some(2000), "nothing that old is used");
    }

    #[test]
    fn an_estimate_counts_until_it_is_as_old_as_what_is_forgotten() {
        for (pause, counts) in [(IDLE, true), (FORGOTTEN - 1, true), (FORGOTTEN, false)] {
            let (mut clock, began) = (NodeClock::default(), 2 * FORGOTTEN);
            clock.shown(began + 1000, began);
            let now = began + pause;
            clock.shown(now + 10, now);
            assert_eq!(clock.least(now), Some(now + if counts { 1000 } else { 10 }), "after {pause} us");
        }
    }

    proptest! {
        #[test]
        fn an_estimate_is_never_too_late(
            start in 0..u64::MAX / 4,
            answers in proptest::collection::vec((1u64..40 * SECOND, 0u64..20 * SECOND), 1..30),
        ) {
            // The node's clock shows `start` when this one shows 0. Answers take different times to arrive, in order.
            let (mut clock, mut now, mut best) = (NodeClock::default(), 20 * SECOND, u64::MAX);
            for (pause, delay) in answers {
                now += pause;
                clock.shown(start + now - delay, now);
                let least = clock.least(now).unwrap();
                prop_assert!(least <= start + now);
                prop_assert!(least >= start + now - delay);
                best = best.min(delay);
                prop_assert!(start + now - least >= best, "no better than the best answer");
            }
        }

        #[test]
        fn a_request_has_no_more_time_than_from_its_arrival(sent in any::<u64>(), arrived in any::<u64>(), ms in any::<u32>()) {
            prop_assert!(until(Some(sent), arrived, ms) <= until(None, arrived, ms));
            prop_assert!(until(Some(sent), arrived, ms) <= arrived.saturating_add(OLDEST_MICROS));
            prop_assert_eq!(until(Some(sent), arrived, ms), until(Some(sent.min(arrived)), arrived, ms));
        }
    }
}
