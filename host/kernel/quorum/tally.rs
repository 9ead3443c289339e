//! Counting answers.

use crate::fault::Fault;
use crate::hook::Shortfall;

/// Where a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Neither met nor lost.
    Open,
    /// Enough replicas have answered.
    Met,
    /// So many have failed that the requirement cannot be met.
    Short,
}

/// Which of at most eight replicas have answered, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    replicas: u8,
    required: u8,
    acked: u8,
    failed: u8,
    certain: u8,
}

impl Tally {
    /// Nobody of `replicas` (at most 8) has answered; `required` must.
    pub fn new(replicas: u8, required: u8) -> Self {
        let required = if Fault::QuorumOffByOne.is_on() { required.saturating_sub(1).max(1) } else { required };
        Self { replicas, required, acked: 0, failed: 0, certain: 0 }
    }

    /// A replica did what it was asked.
    pub fn ack(&mut self, replica: u8) {
        let bit = self.fresh(replica);
        self.acked |= bit;
    }

    /// A replica did not; `certain` when it never will.
    pub fn fail(&mut self, replica: u8, certain: bool) {
        let bit = self.fresh(replica);
        self.failed |= bit;
        if certain {
            self.certain |= bit;
        }
    }

    /// Where the round stands.
    pub fn progress(&self) -> Progress {
        if self.acks() >= self.required {
            Progress::Met
        } else if self.acks() + self.open() < self.required {
            Progress::Short
        } else {
            Progress::Open
        }
    }

    /// Replicas that did what they were asked.
    pub fn acks(&self) -> u8 {
        self.acked.count_ones() as u8
    }

    /// Replicas that have not answered.
    pub fn open(&self) -> u8 {
        self.replicas - (self.acked | self.failed).count_ones() as u8
    }

    /// Replicas that must still do what they were asked; never more than those that may, for nothing is decided before they have
    /// answered where a shortfall is accepted.
    pub fn missing(&self) -> u8 {
        self.required.saturating_sub(self.acks()).min(self.open())
    }

    /// Replicas that must answer.
    pub fn required(&self) -> u8 {
        self.required
    }

    /// True when the replica did what it was asked.
    pub fn has_acked(&self, replica: u8) -> bool {
        self.acked & bit(replica) != 0
    }

    /// True when the replica has neither done nor failed.
    pub fn is_open(&self, replica: u8) -> bool {
        replica < self.replicas && (self.acked | self.failed) & bit(replica) == 0
    }

    /// True when no replica has done, or may still do, what it was asked.
    pub fn certainly_nothing_done(&self) -> bool {
        self.acked == 0 && self.certain.count_ones() as u8 == self.replicas
    }

    /// Whether so many answers are enough after all.
    pub fn accepts(&self, shortfall: Shortfall) -> bool {
        matches!(shortfall, Shortfall::Accept(least) if self.acks() >= least && least > 0)
    }

    fn fresh(&self, replica: u8) -> u8 {
        if self.is_open(replica) { bit(replica) } else { 0 }
    }
}

fn bit(replica: u8) -> u8 {
    1u8.checked_shl(u32::from(replica)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn nothing_counts_twice() {
        let mut tally = Tally::new(3, 2);
        tally.ack(0);
        tally.ack(0);
        tally.fail(0, true);
        assert_eq!((tally.acks(), tally.open(), tally.progress()), (1, 2, Progress::Open));
        tally.fail(1, true);
        tally.fail(2, false);
        assert_eq!(tally.progress(), Progress::Short);
        assert!(!tally.certainly_nothing_done());
    }

    #[test]
    fn nobody_is_waited_for_who_has_failed() {
        let mut tally = Tally::new(3, 3);
        assert_eq!(tally.missing(), 3);
        tally.fail(1, false);
        assert_eq!(tally.missing(), 2, "more will never come");
        tally.ack(0);
        assert_eq!(tally.missing(), 1);
        tally.ack(2);
        assert_eq!(tally.missing(), 0);
    }

    #[test]
    fn an_unknown_replica_changes_nothing() {
        let mut tally = Tally::new(3, 2);
        tally.ack(3);
        tally.ack(200);
        assert_eq!(tally.acks(), 0);
    }

    proptest! {
        #[test]
        fn progress_is_final_once_everyone_answered(events in proptest::collection::vec((0u8..5, any::<bool>(), any::<bool>()), 0..20), required in 1u8..=5) {
            let mut tally = Tally::new(5, required);
            let mut met = false;
            for (replica, acked, certain) in events {
                if acked { tally.ack(replica) } else { tally.fail(replica, certain) }
                prop_assert!(!met || tally.progress() == Progress::Met, "met stays met");
                met = tally.progress() == Progress::Met;
            }
            for replica in 0..5 { tally.fail(replica, true) }
            prop_assert_eq!(tally.open(), 0);
            prop_assert!(tally.progress() != Progress::Open);
            prop_assert_eq!(tally.progress() == Progress::Met, tally.acks() >= required);
        }
    }
}
