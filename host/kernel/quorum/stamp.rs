//! Round 1 of a register's write: which stamp will stand above everything acknowledged before?
//!
//! Source: Attiya, Bar-Noy, Dolev, "Sharing memory robustly in message-passing systems" (JACM 1995), in its multi-writer
//! form, where the writer first asks a majority for the greatest timestamp.

use super::tally::{Progress, Tally};
use crate::register::Stamp;
use crate::replica::ReplicaError;

/// The stamps that replicas tell.
#[derive(Debug, Clone)]
pub struct StampRound {
    tally: Tally,
    greatest: Option<Stamp>,
    known: Option<Stamp>,
}

impl StampRound {
    /// A round to `replicas` replicas of which `required` must answer.
    pub fn new(replicas: u8, required: u8) -> Self {
        Self { tally: Tally::new(replicas, required), greatest: None, known: None }
    }

    /// A replica has told which stamp stands and which one this write had before.
    pub fn told(&mut self, replica: u8, stands: Option<Stamp>, known: Option<Stamp>) -> Progress {
        if self.tally.is_open(replica) {
            self.tally.ack(replica);
            self.greatest = self.greatest.max(stands);
            self.known = self.known.max(known);
        }
        self.tally.progress()
    }

    /// A replica has not answered.
    pub fn failed(&mut self, replica: u8, error: &ReplicaError) -> Progress {
        self.tally.fail(replica, error.certainly_not_done());
        self.tally.progress()
    }

    /// The write's stamp: the one it had before, else the greatest of the clock, what stands plus one, and what the client
    /// has seen plus one.
    pub fn stamp(&self, clock: u64, seen: Option<Stamp>) -> Stamp {
        self.known.unwrap_or_else(|| {
            let above = |stamp: Option<Stamp>| stamp.map_or(0, |s| s.0.saturating_add(1));
            Stamp(clock.max(above(self.greatest)).max(above(seen)))
        })
    }

    /// Counts.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stands_above_clock_answers_and_context() {
        let mut round = StampRound::new(3, 2);
        assert_eq!(round.told(0, Some(Stamp(50)), None), Progress::Open);
        assert_eq!(round.told(0, Some(Stamp(900)), None), Progress::Open, "counts once");
        assert_eq!(round.told(1, None, None), Progress::Met);
        assert_eq!(round.stamp(10, None), Stamp(51));
        assert_eq!(round.stamp(10, Some(Stamp(70))), Stamp(71));
        assert_eq!(round.stamp(100, Some(Stamp(70))), Stamp(100));
    }

    #[test]
    fn a_retry_keeps_the_stamp_it_had() {
        let mut round = StampRound::new(3, 2);
        round.told(0, Some(Stamp(50)), Some(Stamp(40)));
        assert_eq!(round.stamp(1000, None), Stamp(40));
    }
}
