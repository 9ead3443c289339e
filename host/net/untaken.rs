//! Answers that the client of a connection has not taken, and for how long they may wait.

use std::collections::BTreeMap;

/// The time for a large answer, whatever the line, in milliseconds.
pub(crate) const TAKEN_WITHIN_MS: u64 = 10_000;
/// What a line carries at least, in bytes in a millisecond: 2 Mbit/s. A large answer has the time that everything takes which has shared
/// the line with it.
pub(crate) const LINE: u64 = 256;
/// The time for an answer of any size, in milliseconds: far more than a client needs that takes its answers at all.
pub(crate) const ANSWERED_WITHIN_MS: u64 = 30_000;

/// The answers of a connection that its client has to take in time, and has not taken.
#[derive(Debug, Default)]
pub(crate) struct Large {
    next: u64,
    /// Bytes of all such answers so far.
    admitted: u64,
    /// Those that wait.
    waiting_bytes: u64,
    pub(crate) waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    /// When it began to wait, in milliseconds since the listener started.
    since_ms: u64,
    /// The time that it has beside that for everything that shares the line.
    within_ms: u64,
    /// Bytes of such answers that had been taken by then.
    taken: u64,
    bytes: u64,
}

impl Large {
    pub(crate) fn enter(&mut self, bytes: u64, within_ms: u64, since_ms: u64) -> u64 {
        let (number, taken) = (self.next, self.admitted - self.waiting_bytes);
        self.waiting.insert(number, Waiting { since_ms, within_ms, taken, bytes });
        self.next += 1;
        self.admitted += bytes;
        self.waiting_bytes += bytes;
        number
    }

    pub(crate) fn leave(&mut self, number: u64) {
        let left = self.waiting.remove(&number);
        self.waiting_bytes -= left.map_or(0, |left| left.bytes);
    }

    /// Whether the oldest one has waited for longer than a slow line needs for everything that has shared the line with it.
    pub(crate) fn is_stalled(&self, now_ms: u64) -> bool {
        let oldest = self.waiting.values().next();
        oldest.is_some_and(|oldest| {
            let shared = self.admitted - oldest.taken;
            now_ms.saturating_sub(oldest.since_ms) > oldest.within_ms + shared / LINE
        })
    }
}
