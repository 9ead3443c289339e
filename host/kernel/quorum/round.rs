//! One request to every replica: a register's second round, and the merges that follow a Put.

use super::tally::{Progress, Tally};
use crate::hook::Shortfall;
use crate::replica::ReplicaError;

/// A request that was sent to every replica.
#[derive(Debug, Clone)]
pub struct Round {
    tally: Tally,
    shortfall: Shortfall,
    full: u8,
}

impl Round {
    /// A round to `replicas` replicas of which `required` must store what they are sent.
    pub fn new(replicas: u8, required: u8, shortfall: Shortfall) -> Self {
        Self { tally: Tally::new(replicas, required), shortfall, full: 0 }
    }

    /// The replica has stored it.
    pub fn acked(&mut self, replica: u8) -> Progress {
        self.tally.ack(replica);
        self.progress()
    }

    /// The replica has not.
    pub fn failed(&mut self, replica: u8, error: &ReplicaError) -> Progress {
        if matches!(error, ReplicaError::StorageFull) && self.tally.is_open(replica) {
            self.full += 1;
        }
        self.tally.fail(replica, error.certainly_not_done());
        self.progress()
    }

    /// Time is up: what has been stored must do, or nothing will.
    pub fn elapsed(&self) -> Progress {
        match self.tally.progress() {
            Progress::Met => Progress::Met,
            _ if self.tally.accepts(self.shortfall) => Progress::Met,
            _ => Progress::Short,
        }
    }

    /// Where the round stands; a shortfall that the policy accepts counts as met.
    pub fn progress(&self) -> Progress {
        match self.tally.progress() {
            Progress::Short if self.tally.open() == 0 && self.tally.accepts(self.shortfall) => Progress::Met,
            Progress::Short if matches!(self.shortfall, Shortfall::Accept(_)) && self.tally.open() > 0 => {
                Progress::Open
            }
            progress => progress,
        }
    }

    /// Counts.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// True when a full disk was among the reasons.
    pub fn disks_full(&self) -> bool {
        self.full > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_as_soon_as_the_requirement_is_met() {
        let mut round = Round::new(3, 2, Shortfall::Fail);
        assert_eq!(round.acked(2), Progress::Open);
        assert_eq!(round.acked(0), Progress::Met);
        assert_eq!(round.failed(1, &ReplicaError::Late), Progress::Met);
    }

    #[test]
    fn a_shortfall_is_told_as_soon_as_it_is_certain() {
        let mut round = Round::new(3, 2, Shortfall::Fail);
        round.failed(0, &ReplicaError::Overloaded);
        assert_eq!(round.failed(1, &ReplicaError::StorageFull), Progress::Short);
        assert!(round.disks_full());
        assert!(!round.tally().certainly_nothing_done(), "the third may still store it");
        round.failed(2, &ReplicaError::Overloaded);
        assert!(round.tally().certainly_nothing_done());
    }

    #[test]
    fn an_accepted_shortfall_waits_for_everyone_or_the_deadline() {
        let mut round = Round::new(3, 3, Shortfall::Accept(2));
        round.acked(0);
        assert_eq!(round.failed(1, &ReplicaError::Late), Progress::Open);
        assert_eq!(round.elapsed(), Progress::Short, "one answer is not two");
        assert_eq!(round.acked(2), Progress::Met);
    }
}
