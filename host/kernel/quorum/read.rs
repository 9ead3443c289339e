//! Reads: whom to ask, when to ask one more, and what the answers say together.

use smallvec::SmallVec;

use super::tally::{Progress, Tally};
use crate::fault::Fault;
use crate::hook::Shortfall;
use crate::record::Record;
use crate::replica::ReplicaError;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadNext {
    /// Ask this replica too.
    pub ask: Option<u8>,
    /// Where the round stands.
    pub progress: Progress,
}

/// Asks as many replicas as must answer, and a further one for each that fails.
#[derive(Debug, Clone)]
pub struct ReadRound {
    tally: Tally,
    order: SmallVec<[u8; 5]>,
    next: usize,
    shortfall: Shortfall,
}

impl ReadRound {
    /// A round over the replicas of `order` (a permutation of 0..n), of which `required` must answer.
    pub fn new(order: SmallVec<[u8; 5]>, required: u8, shortfall: Shortfall) -> Self {
        Self { tally: Tally::new(order.len() as u8, required), order, next: 0, shortfall }
    }

    /// The replicas to ask first.
    pub fn start(&mut self) -> SmallVec<[u8; 5]> {
        self.next = usize::from(self.tally.required()).min(self.order.len());
        SmallVec::from_slice(&self.order[..self.next])
    }

    /// The replica has told what it stores (`found`) or that it stores nothing. "Not found" is an answer.
    pub fn told(&mut self, replica: u8, found: bool) -> ReadNext {
        if !found && Fault::NotFoundNotCounted.is_on() {
            return self.failed(replica, &ReplicaError::Late);
        }
        self.tally.ack(replica);
        ReadNext { ask: None, progress: self.progress() }
    }

    /// The replica has not answered: the next one is asked.
    pub fn failed(&mut self, replica: u8, error: &ReplicaError) -> ReadNext {
        self.tally.fail(replica, error.certainly_not_done());
        let ask = if self.tally.progress() == Progress::Open { self.spare() } else { None };
        ReadNext { ask, progress: self.progress() }
    }

    /// A shortfall that the policy accepts is told once everybody who was asked has answered, in whatever order.
    fn progress(&self) -> Progress {
        match self.tally.progress() {
            Progress::Short if self.unanswered() > 0 && matches!(self.shortfall, Shortfall::Accept(_)) => {
                Progress::Open
            }
            Progress::Short => self.elapsed(),
            progress => progress,
        }
    }

    /// The hedge's time has come: one spare replica, if there is one.
    pub fn spare(&mut self) -> Option<u8> {
        let replica = self.order.get(self.next).copied();
        self.next += usize::from(replica.is_some());
        replica
    }

    /// Time is up.
    pub fn elapsed(&self) -> Progress {
        match self.tally.progress() {
            Progress::Met => Progress::Met,
            _ if self.tally.accepts(self.shortfall) => Progress::Met,
            _ => Progress::Short,
        }
    }

    /// Replicas asked that have not answered.
    pub fn unanswered(&self) -> usize {
        self.order[..self.next].iter().filter(|replica| self.tally.is_open(**replica)).count()
    }

    /// Counts.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// What several replicas' answers say together.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconciled {
    /// The merge of all; `None` when nobody has the record.
    pub record: Option<Record>,
    /// Replicas among those that answered whose record does not stand level with the merge.
    pub stale: SmallVec<[u8; 5]>,
}

/// Merges answers. Records of differing kinds cannot merge: `None`.
pub fn reconcile(answers: &[(u8, Option<Record>)]) -> Option<Reconciled> {
    let mut merged: Option<Record> = None;
    for record in answers.iter().filter_map(|(_, record)| record.as_ref()) {
        merged = Some(match merged {
            None => record.clone(),
            Some(so_far) if so_far.same_standing(record) => so_far,
            Some(so_far) => Record::merge(Some(so_far), record.clone()).ok()?.0,
        });
    }
    let stale = answers
        .iter()
        .filter(|(_, record)| match (record, &merged) {
            (Some(record), Some(merged)) => !record.same_standing(merged),
            (None, Some(_)) => true,
            (_, None) => false,
        })
        .map(|(replica, _)| *replica)
        .collect();
    Some(Reconciled { record: merged, stale })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use smallvec::smallvec;

    use super::*;
    use crate::name::WriteId;
    use crate::register::{Register, Stamp};

    fn register(stamp: u64) -> Record {
        Record::Register(Register::written(Stamp(stamp), WriteId([1; 16]), Some(Bytes::from_static(b"v"))))
    }

    #[test]
    fn asks_one_more_for_each_failure() {
        let mut round = ReadRound::new(smallvec![2, 0, 1], 2, Shortfall::Fail);
        assert_eq!(round.start().as_slice(), [2, 0]);
        let next = round.failed(2, &ReplicaError::Late);
        assert_eq!(next, ReadNext { ask: Some(1), progress: Progress::Open });
        assert_eq!(round.told(0, false).progress, Progress::Open);
        assert_eq!(round.told(1, true).progress, Progress::Met);
    }

    #[test]
    fn an_accepted_shortfall_does_not_depend_on_who_comes_first() {
        let accepting = || {
            let mut round = ReadRound::new(smallvec![0, 1, 2], 3, Shortfall::Accept(1));
            round.start();
            round
        };
        let mut round = accepting();
        assert_eq!(round.failed(0, &ReplicaError::Late).progress, Progress::Open);
        assert_eq!(round.told(1, true).progress, Progress::Open);
        assert_eq!(round.told(2, true).progress, Progress::Met);
        let mut round = accepting();
        assert_eq!(round.told(1, true).progress, Progress::Open);
        assert_eq!(round.told(2, true).progress, Progress::Open);
        assert_eq!(round.failed(0, &ReplicaError::Late).progress, Progress::Met);
        let mut round = accepting();
        for replica in 0..3 {
            let expected = if replica < 2 { Progress::Open } else { Progress::Short };
            assert_eq!(round.failed(replica, &ReplicaError::Late).progress, expected);
        }
    }

    #[test]
    fn a_hedge_is_one_spare() {
        let mut round = ReadRound::new(smallvec![0, 1, 2], 2, Shortfall::Fail);
        round.start();
        assert_eq!(round.spare(), Some(2));
        assert_eq!(round.spare(), None);
        assert_eq!(round.failed(0, &ReplicaError::Late).progress, Progress::Open);
        assert_eq!(round.failed(1, &ReplicaError::Late).progress, Progress::Short);
    }

    #[test]
    fn two_not_founds_and_one_value_still_repair() {
        let answers = [(0, None), (1, None), (2, Some(register(5)))];
        let reconciled = reconcile(&answers).unwrap();
        assert_eq!(reconciled.record, Some(register(5)));
        assert_eq!(reconciled.stale.as_slice(), [0, 1]);
    }

    #[test]
    fn nobody_has_it_nobody_is_stale() {
        let reconciled = reconcile(&[(0, None), (1, None)]).unwrap();
        assert_eq!((reconciled.record, reconciled.stale.len()), (None, 0));
    }
}
