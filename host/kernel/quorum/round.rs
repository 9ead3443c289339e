//! What every exchange with replicas has in common.

use crate::replica::{Answer, Ask, ReplicaError};

/// A replica that has not answered within this time may be dead: further ones are asked without waiting for it. Microseconds. A
/// quarter of a second is far above a healthy round trip and far below every deadline that is not set to fail.
pub const PATIENCE_MICROS: u64 = 250_000;

/// What an operation does next. Moments are monotonic microseconds.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Send this request to this replica, then ask again.
    Ask(u8, Ask),
    /// Wait until this many further replicas have done what they were asked, or one has failed, or `until` has come.
    Wait {
        /// With fewer successes, and no failure, there would be nothing new to do.
        answers: u8,
        /// When to call [`Round::waited`]; `None`: the operation's deadline is the only bound.
        until: Option<u64>,
    },
    /// The requirement is met.
    Met,
    /// The requirement cannot be met any more.
    Short,
}

/// The decisions of one exchange with a key's replicas. It is given their answers and the passing of time, and says what to do next;
/// sending, receiving and waiting are the caller's.
///
/// Laws, which the tests check for every implementation:
///
/// - Each replica is asked at most once, and only its first answer counts.
/// - [`Next::Met`] and [`Next::Short`] are final, and neither comes while too few replicas have answered to decide.
/// - [`Next::Wait`] never waits for more successes than can still come from replicas that were asked, nor for more than are needed.
pub trait Round {
    /// What to do next, at the moment `now`.
    fn next(&mut self, now: u64) -> Next;

    /// A replica answered.
    ///
    /// # Errors
    /// The answer does not fit the request. The caller reports that as the replica's failure.
    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError>;

    /// A replica failed.
    fn failed(&mut self, replica: u8, error: &ReplicaError);

    /// A replica has not answered a question that was asked beside the round's own ([`Ask::Names`] beside a Put).
    fn failed_beside(&mut self, replica: u8, error: &ReplicaError) {
        self.failed(replica, error);
    }

    /// The moment named by [`Next::Wait`] has come: it is `now`.
    fn waited(&mut self, now: u64) {
        let _ = now;
    }

    /// A replica's store was replaced after it had answered, so its acknowledgement does not count. True when one had been counted.
    fn revoked(&mut self, replica: u8) -> bool {
        let _ = replica;
        false
    }

    /// True when what has been answered is enough now that the deadline has passed.
    fn suffices(&self) -> bool {
        false
    }
}
