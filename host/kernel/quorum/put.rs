//! Which replica mints the dot of a `siblings` write.

use crate::fault::Fault;
use crate::replica::ReplicaError;

/// One try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutAttempt {
    /// The replica to ask.
    pub replica: u8,
    /// True when an earlier try may have been carried out.
    pub again: bool,
}

/// What to do after a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutNext {
    /// Try this one.
    Try(PutAttempt),
    /// Nobody is left to ask, but an earlier try may yet be answered.
    Wait,
    /// It failed; true when certainly no replica has applied it.
    Failed {
        /// No replica has minted, or will.
        certainly_not_applied: bool,
    },
}

/// Asks replicas one after the other for a dot, with the same write id.
#[derive(Debug, Clone)]
pub struct PutRound {
    replicas: u8,
    order: [u8; 8],
    next: u8,
    open: u8,
    doubtful: bool,
    refused: bool,
}

impl PutRound {
    /// A round over `replicas` replicas (at most 8), the reachable ones first.
    pub fn new(replicas: u8, reachable: impl Fn(u8) -> bool) -> Self {
        let mut order = [0; 8];
        let (live, dead): (Vec<u8>, Vec<u8>) = (0..replicas.min(8)).partition(|r| reachable(*r));
        for (slot, replica) in order.iter_mut().zip(live.into_iter().chain(dead)) {
            *slot = replica;
        }
        Self { replicas: replicas.min(8), order, next: 0, open: 0, doubtful: false, refused: false }
    }

    /// The first try; `earlier` when an earlier operation with this write id may have been carried out.
    pub fn start(&mut self, earlier: bool) -> PutNext {
        self.doubtful = earlier;
        self.advance()
    }

    /// A try failed.
    pub fn failed(&mut self, replica: u8, error: &ReplicaError) -> PutNext {
        self.open &= !(1 << replica.min(7));
        self.doubtful |= !error.certainly_not_done();
        // Another replica would refuse alike, or would mint what may have been minted.
        let final_word = matches!(error, ReplicaError::SiblingLimit | ReplicaError::InDoubt | ReplicaError::WrongMode);
        if final_word && !Fault::RetryMintsAgain.is_on() {
            self.refused = true;
        }
        if self.open != 0 { PutNext::Wait } else { self.advance() }
    }

    /// A try has not been answered for long: another replica may be asked meanwhile.
    pub fn slow(&mut self) -> PutNext {
        self.doubtful = true;
        match self.advance() {
            PutNext::Failed { .. } => PutNext::Wait,
            next => next,
        }
    }

    fn advance(&mut self) -> PutNext {
        if self.refused || self.next >= self.replicas {
            return PutNext::Failed { certainly_not_applied: !self.doubtful };
        }
        let replica = self.order[usize::from(self.next)];
        self.next += 1;
        self.open |= 1 << replica;
        PutNext::Try(PutAttempt { replica, again: self.doubtful && !Fault::RetryMintsAgain.is_on() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NodeId;

    fn attempt(replica: u8, again: bool) -> PutNext {
        PutNext::Try(PutAttempt { replica, again })
    }

    #[test]
    fn a_try_that_never_left_is_no_doubt() {
        let node = NodeId::new("n").unwrap();
        let mut round = PutRound::new(3, |_| true);
        assert_eq!(round.start(false), attempt(0, false));
        assert_eq!(round.failed(0, &ReplicaError::NotSent(node.clone())), attempt(1, false));
        assert_eq!(round.failed(1, &ReplicaError::Lost(node.clone())), attempt(2, true));
        assert_eq!(round.failed(2, &ReplicaError::NotSent(node)), PutNext::Failed { certainly_not_applied: false });
    }

    #[test]
    fn a_refusal_ends_it() {
        let mut round = PutRound::new(3, |_| true);
        round.start(false);
        assert_eq!(round.failed(0, &ReplicaError::SiblingLimit), PutNext::Failed { certainly_not_applied: true });
    }

    #[test]
    fn unreachable_replicas_are_asked_last() {
        let mut round = PutRound::new(3, |r| r != 0);
        assert_eq!(round.start(false), attempt(1, false));
        assert_eq!(round.slow(), attempt(2, true));
        assert_eq!(round.slow(), attempt(0, true));
        assert_eq!(round.slow(), PutNext::Wait);
    }
}
