//! Round 1 of a register's write: which stamp is above everything acknowledged before?
//!
//! Source: Attiya, Bar-Noy, Dolev, "Sharing memory robustly in message-passing systems" (JACM 1995), in its multi-writer
//! form, where the writer first asks a majority for the greatest timestamp.

use super::round::{Next, Round};
use super::tally::{Progress, Tally};
use crate::name::WriteId;
use crate::register::Stamp;
use crate::replica::{Answer, Ask, ReplicaError};

/// Asks every replica for its stamp, until enough have reported it.
#[derive(Debug, Clone)]
pub struct StampRound {
    write_id: WriteId,
    tally: Tally,
    /// Replicas before this index have been asked.
    asked: u8,
    /// The greatest stamp stored at a replica.
    greatest: Option<Stamp>,
    /// The greatest stamp that this write was given by an earlier attempt.
    known: Option<Stamp>,
}

impl StampRound {
    /// A round to the replicas of `tally`, about the write `write_id`.
    pub fn new(write_id: WriteId, tally: Tally) -> Self {
        Self { write_id, tally, asked: 0, greatest: None, known: None }
    }

    /// The write's stamp: the one it had before, else the greatest of the clock, the stored stamp plus one, and what the client
    /// has seen plus one.
    pub fn stamp(&self, clock: u64, seen: Option<Stamp>) -> Stamp {
        self.known.unwrap_or_else(|| {
            let above = |stamp: Option<Stamp>| stamp.map_or(0, |s| s.0.saturating_add(1));
            Stamp(clock.max(above(self.greatest)).max(above(seen)))
        })
    }

    /// Counts of answers.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Round for StampRound {
    fn next(&mut self, _: u64) -> Next {
        if let Some(replica) = self.tally.next_open(self.asked) {
            self.asked = replica + 1;
            return Next::Ask(replica, Ask::Stamp { write_id: self.write_id });
        }
        match self.tally.progress() {
            Progress::Open => Next::Wait { answers: self.tally.missing(), until: None },
            Progress::Met => Next::Met,
            Progress::Short => Next::Short,
        }
    }

    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        let Answer::Stamp { stands, known } = answer else { return Err(ReplicaError::misfit()) };
        if self.tally.is_open(replica) {
            self.tally.ack(replica);
            self.greatest = self.greatest.max(stands);
            self.known = self.known.max(known);
        }
        Ok(())
    }

    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        self.tally.fail(replica, error.certainly_not_done());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round() -> StampRound {
        StampRound::new(WriteId([1; 16]), Tally::new(3, 2))
    }

    fn reports(round: &mut StampRound, replica: u8, stands: Option<Stamp>, known: Option<Stamp>) -> Progress {
        round.answered(replica, Answer::Stamp { stands, known }).unwrap();
        round.tally().progress()
    }

    #[test]
    fn is_above_clock_answers_and_context() {
        let mut round = round();
        assert_eq!(reports(&mut round, 0, Some(Stamp(50)), None), Progress::Open);
        assert_eq!(reports(&mut round, 0, Some(Stamp(900)), None), Progress::Open, "counts once");
        assert_eq!(reports(&mut round, 1, None, None), Progress::Met);
        assert_eq!(round.stamp(10, None), Stamp(51));
        assert_eq!(round.stamp(10, Some(Stamp(70))), Stamp(71));
        assert_eq!(round.stamp(100, Some(Stamp(70))), Stamp(100));
    }

    /// What a round does not say for itself.
    #[test]
    fn failures_beside_it_are_failures_and_nothing_is_revoked_or_enough_before_it_is_met() {
        let mut round = round();
        reports(&mut round, 0, None, None);
        assert!(!round.revoked(0) && !round.suffices());
        round.failed_beside(1, &ReplicaError::Late);
        assert_eq!(round.tally().progress(), Progress::Open);
        round.failed_beside(2, &ReplicaError::Late);
        assert_eq!(round.tally().progress(), Progress::Short);
    }

    #[test]
    fn a_retry_keeps_the_stamp_it_had() {
        let mut round = round();
        reports(&mut round, 0, Some(Stamp(50)), Some(Stamp(40)));
        assert_eq!(round.stamp(1000, None), Stamp(40));
    }
}
