//! Which replica mints the dot of a `siblings` write.

use std::sync::Arc;

use super::round::{Next, PATIENCE_MICROS, Round};
use crate::fault::Fault;
use crate::limit::PerReplica;
use crate::record::Encoded;
use crate::replica::{Answer, Ask, ReplicaError};
use crate::siblings::Write;

/// Asks replicas one after the other for a dot, with the same write id, until one has minted it. A replica that takes longer than
/// [`PATIENCE_MICROS`] is not waited for alone: two dots of one write unite when they meet, so asking another costs a message and no
/// correctness.
#[derive(Debug, Clone)]
pub struct PutRound {
    write: Write,
    attempts: Attempts,
    step: Step,
    until: Option<u64>,
    minted: Option<(u8, Encoded)>,
    refusal: Option<ReplicaError>,
}

impl PutRound {
    /// A round over `replicas` replicas, the reachable ones first; `earlier` when an earlier operation with this write id may have been
    /// carried out.
    pub fn new(write: Write, replicas: u8, reachable: impl Fn(u8) -> bool, earlier: bool) -> Self {
        let mut attempts = Attempts::new(replicas, reachable);
        let step = attempts.start(earlier);
        Self { write, attempts, step, until: None, minted: None, refusal: None }
    }

    /// The replica that minted, and its whole record.
    pub fn into_minted(self) -> Option<(u8, Encoded)> {
        self.minted
    }

    /// The first failure.
    pub fn refusal(&self) -> Option<&ReplicaError> {
        self.refusal.as_ref()
    }

    /// True when no replica has minted, or will.
    pub fn certainly_not_applied(&self) -> bool {
        matches!(self.step, Step::Failed { certainly_not_applied: true })
    }
}

impl Round for PutRound {
    fn next(&mut self, now: u64) -> Next {
        if self.minted.is_some() {
            return Next::Met;
        }
        match self.step {
            Step::Try(Attempt { replica, again }) => {
                self.step = Step::Wait;
                self.until = Some(now + PATIENCE_MICROS);
                Next::Ask(replica, Ask::Put(Arc::new(Write { again, ..self.write.clone() })))
            }
            Step::Wait => Next::Wait { answers: 1, until: self.until },
            Step::Failed { .. } => Next::Short,
        }
    }

    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        let Answer::Put { record, .. } = answer else { return Err(ReplicaError::misfit()) };
        if self.minted.is_none() && self.attempts.answered(replica) {
            self.minted = Some((replica, record));
        }
        Ok(())
    }

    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        if self.attempts.is_open(replica) {
            self.step = self.attempts.failed(replica, error);
            self.refusal.get_or_insert_with(|| error.clone());
        }
    }

    fn waited(&mut self, _: u64) {
        self.until = None;
        self.step = self.attempts.slow();
    }
}

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    /// The replica to ask.
    replica: u8,
    /// True when an earlier attempt may have been carried out.
    again: bool,
}

/// What to do about attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Make this one.
    Try(Attempt),
    /// No further replica may be asked, but an earlier attempt may yet be answered.
    Wait,
    /// All have failed; true when certainly no replica has minted, or will.
    Failed { certainly_not_applied: bool },
}

/// Which replicas have been asked, and what is known of their attempts.
#[derive(Debug, Clone)]
struct Attempts {
    order: PerReplica<u8>,
    /// Replicas of `order` that have been asked.
    next: usize,
    /// Mask of the replicas that were asked and have not answered.
    open: u16,
    /// An attempt that failed, or is late, may have been carried out.
    doubtful: bool,
    /// A replica has refused as every other one would.
    refused: bool,
}

impl Attempts {
    fn new(replicas: u8, reachable: impl Fn(u8) -> bool) -> Self {
        let (mut order, dead): (PerReplica<u8>, PerReplica<u8>) = (0..replicas).partition(|r| reachable(*r));
        order.extend(dead);
        Self { order, next: 0, open: 0, doubtful: false, refused: false }
    }

    /// The first attempt.
    fn start(&mut self, earlier: bool) -> Step {
        self.doubtful = earlier;
        self.advance()
    }

    /// An attempt has failed.
    fn failed(&mut self, replica: u8, error: &ReplicaError) -> Step {
        self.answered(replica);
        self.doubtful |= !error.certainly_not_done();
        // Another replica would refuse as well, or would mint what may have been minted.
        let is_final = matches!(error, ReplicaError::SiblingLimit | ReplicaError::InDoubt | ReplicaError::WrongMode);
        if is_final && !Fault::RetryMintsAgain.is_on() {
            self.refused = true;
        }
        if self.open != 0 { Step::Wait } else { self.advance() }
    }

    /// An attempt is late: another replica may be asked meanwhile.
    fn slow(&mut self) -> Step {
        self.doubtful = true;
        match self.advance() {
            Step::Failed { .. } => Step::Wait,
            step => step,
        }
    }

    fn is_open(&self, replica: u8) -> bool {
        self.open & bit(replica) != 0
    }

    /// True for an attempt that was open.
    fn answered(&mut self, replica: u8) -> bool {
        let was_open = self.is_open(replica);
        self.open &= !bit(replica);
        was_open
    }

    fn advance(&mut self) -> Step {
        match self.order.get(self.next).copied().filter(|_| !self.refused) {
            None => Step::Failed { certainly_not_applied: !self.doubtful },
            Some(replica) => {
                self.next += 1;
                self.open |= bit(replica);
                Step::Try(Attempt { replica, again: self.doubtful && !Fault::RetryMintsAgain.is_on() })
            }
        }
    }
}

fn bit(replica: u8) -> u16 {
    1u16.checked_shl(u32::from(replica)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NodeId;

    fn attempt(replica: u8, again: bool) -> Step {
        Step::Try(Attempt { replica, again })
    }

    #[test]
    fn a_try_that_never_left_is_no_doubt() {
        let node = NodeId::new("n").unwrap();
        let mut attempts = Attempts::new(3, |_| true);
        assert_eq!(attempts.start(false), attempt(0, false));
        assert_eq!(attempts.failed(0, &ReplicaError::NotSent(node.clone())), attempt(1, false));
        assert_eq!(attempts.failed(1, &ReplicaError::Lost(node.clone())), attempt(2, true));
        assert_eq!(attempts.failed(2, &ReplicaError::NotSent(node)), Step::Failed { certainly_not_applied: false });
    }

    #[test]
    fn a_refusal_ends_it() {
        let mut attempts = Attempts::new(3, |_| true);
        attempts.start(false);
        assert_eq!(attempts.failed(0, &ReplicaError::SiblingLimit), Step::Failed { certainly_not_applied: true });
    }

    #[test]
    fn unreachable_replicas_are_asked_last() {
        let mut attempts = Attempts::new(3, |r| r != 0);
        assert_eq!(attempts.start(false), attempt(1, false));
        assert_eq!(attempts.slow(), attempt(2, true));
        assert_eq!(attempts.slow(), attempt(0, true));
        assert_eq!(attempts.slow(), Step::Wait);
    }
}
