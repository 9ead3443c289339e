//! Which replica mints the dot of a `siblings` write.

use std::sync::Arc;

use super::asking::{Asked, Asking};
use super::round::{Next, PATIENCE_MICROS, Round};
use super::tally::Tally;
use crate::fault::Fault;
use crate::limit::PerReplica;
use crate::record::Encoded;
use crate::replica::{Answer, Ask, ReplicaError};
use crate::siblings::Write;

/// Asks replicas one after the other for a dot, with the same write id, until one has minted it. A replica that takes longer than
/// [`PATIENCE_MICROS`] is not waited for alone: two dots of one write unite when they meet.
///
/// Nothing may be superseded under one dot and come back under another, so before a try that may not be the first, a quorum is asked
/// about the write, and pins its name ([`Ask::Names`]). If one of them knows the write, or a name that may have been this one has been
/// forgotten, it is not sent again. The first try asks nobody.
#[derive(Debug, Clone)]
pub struct PutRound {
    write: Write,
    attempts: Attempts,
    step: Step,
    until: Option<u64>,
    /// `None` when some replica cannot be asked: then it is tried again as the previous version did.
    asking: Option<Asking>,
    applied: Option<Applied>,
    refusal: Option<ReplicaError>,
    /// Dots that were minted for it, as far as replicas have said so.
    minted: u8,
}

/// A write that is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The replica that has stored all of `record`, if one has.
    pub replica: Option<u8>,
    /// The record that the other replicas have to merge.
    pub record: Encoded,
}

impl PutRound {
    /// A round over the first `replicas` replicas, the reachable ones first; `earlier` when an earlier operation with this write id may
    /// have been carried out; `asking`: an empty tally of a quorum, or of one of each placement, if every replica understands
    /// [`Ask::Names`].
    pub fn new(
        write: Write,
        replicas: u8,
        reachable: impl Fn(u8) -> bool,
        earlier: bool,
        asking: Option<Tally>,
    ) -> Self {
        let mut attempts = Attempts::new(replicas, reachable);
        let mut asking = asking.map(Asking::new);
        let step = match &mut asking {
            Some(asking) if earlier => {
                attempts.doubtful = true;
                asking.begin();
                Step::Wait
            }
            _ => attempts.start(earlier),
        };
        Self { write, attempts, step, until: None, asking, applied: None, refusal: None, minted: 0 }
    }

    /// The record in which the write is applied.
    pub fn applied(&self) -> Option<&Applied> {
        self.applied.as_ref()
    }

    /// The first failure.
    pub fn refusal(&self) -> Option<&ReplicaError> {
        self.refusal.as_ref()
    }

    /// True when replicas were asked about the write.
    pub fn was_asked(&self) -> bool {
        self.asking.as_ref().is_some_and(|asking| asking.has_begun())
    }

    /// True when no replica has minted, or will.
    pub fn certainly_not_applied(&self) -> bool {
        matches!(self.step, Step::Failed { certainly_not_applied: true })
    }

    /// True when replicas can no longer say whether an earlier try was applied.
    pub fn is_forgotten(&self) -> bool {
        self.refusal == Some(ReplicaError::InDoubt)
            || self.asking.as_ref().is_some_and(|a| a.result() == Some(&Asked::Forgotten))
    }

    /// Replicas that were asked about the write and have answered, of how many that had to, if a quorum was asked and is not complete.
    pub fn short_of_answers(&self) -> Option<(u8, u8)> {
        self.asking.as_ref().filter(|asking| asking.is_open()).map(Asking::counts)
    }

    /// The same round, which now goes on until every Put is answered.
    pub fn every_put(self) -> EveryPut {
        EveryPut(self)
    }

    /// A try is in doubt: from now on the replicas have to be asked first.
    fn doubt(&mut self) -> Option<Step> {
        let asking = self.asking.as_mut()?;
        if asking.result().is_none() {
            asking.begin();
            return Some(Step::Wait);
        }
        None
    }

    /// A quorum has answered, or cannot any more.
    fn decide(&mut self) {
        let Some(result) = self.asking.as_mut().and_then(|asking| asking.decide(&self.write)) else { return };
        self.step = match result {
            Asked::Known(record) => {
                self.applied.get_or_insert(Applied { replica: None, record });
                Step::Wait
            }
            Asked::Unknown(order) => {
                self.attempts.again_in(&order);
                self.attempts.advance()
            }
            Asked::Forgotten | Asked::Short => self.attempts.give_up(),
        };
    }
}

impl Round for PutRound {
    fn next(&mut self, now: u64) -> Next {
        if self.applied.is_some() {
            return Next::Met;
        }
        if let Some(replica) = self.asking.as_mut().and_then(Asking::next) {
            let Write { write_id, started, .. } = self.write;
            return Next::Ask(replica, Ask::Names { write_id, started });
        }
        match self.step {
            Step::Try(Attempt { replica, again }) => {
                self.step = Step::Wait;
                self.until = Some(now + PATIENCE_MICROS);
                let asked = again && self.asking.is_some();
                Next::Ask(replica, Ask::Put(Arc::new(Write { again, asked, ..self.write.clone() })))
            }
            // A Put's answer is enough alone; without one under way, only a quorum of the others is.
            Step::Wait if self.attempts.open == 0 => {
                Next::Wait { answers: self.asking.as_ref().map_or(1, Asking::missing), until: self.until }
            }
            Step::Wait => Next::Wait { answers: 1, until: self.until },
            Step::Failed { .. } => Next::Short,
        }
    }

    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        match answer {
            Answer::Put { record, applied_already } => {
                if self.attempts.answered(replica) {
                    self.minted += u8::from(!applied_already);
                    self.applied.get_or_insert(Applied { replica: Some(replica), record });
                }
                Ok(())
            }
            Answer::Record(record) => {
                let asking = self.asking.as_mut().ok_or_else(ReplicaError::misfit)?;
                asking.answered(replica, record.as_ref())?;
                self.decide();
                Ok(())
            }
            Answer::Stamp { .. } | Answer::Merged { .. } | Answer::Collected { .. } => Err(ReplicaError::misfit()),
        }
    }

    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        if !self.attempts.is_open(replica) {
            return;
        }
        self.refusal.get_or_insert_with(|| error.clone());
        let doubtful = self.attempts.close(replica, error);
        if self.attempts.refused || !doubtful {
            self.step = self.attempts.next();
        } else {
            self.step = self.doubt().unwrap_or_else(|| self.attempts.next());
        }
    }

    fn failed_beside(&mut self, replica: u8, error: &ReplicaError) {
        if let Some(asking) = &mut self.asking {
            asking.failed(replica);
            self.refusal.get_or_insert_with(|| error.clone());
            self.decide();
        }
    }

    fn waited(&mut self, _: u64) {
        self.until = None;
        self.attempts.doubtful = true;
        self.step = self.doubt().unwrap_or_else(|| self.attempts.slow());
    }
}

/// A [`PutRound`] that is met when every Put is answered: what follows an acknowledgement.
#[derive(Debug, Clone)]
pub struct EveryPut(PutRound);

impl EveryPut {
    /// True when the write has a pinned name that nobody needs: it has one dot, and no Put of it can arrive any more. This holds only if no
    /// other operation has ever sent the write.
    pub fn may_unpin(&self) -> bool {
        let settled = self.0.attempts.open == 0 && !self.0.attempts.lost && self.0.minted == 1;
        self.0.was_asked() && (settled || Fault::UnpinnedEarly.is_on())
    }
}

impl Round for EveryPut {
    fn next(&mut self, _: u64) -> Next {
        match self.0.attempts.open.count_ones() as u8 {
            0 => Next::Met,
            answers => Next::Wait { answers, until: None },
        }
    }

    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        // Those who were asked about it may answer still.
        if let Answer::Record(_) = answer { Ok(()) } else { self.0.answered(replica, answer) }
    }

    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        // The write is applied: nobody is tried in its place.
        if self.0.attempts.is_open(replica) {
            self.0.attempts.close(replica, error);
        }
    }

    fn failed_beside(&mut self, _: u8, _: &ReplicaError) {}
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
    /// An attempt failed that may have been, or may yet be, carried out.
    lost: bool,
}

impl Attempts {
    fn new(replicas: u8, reachable: impl Fn(u8) -> bool) -> Self {
        let (mut order, dead): (PerReplica<u8>, PerReplica<u8>) = (0..replicas).partition(|r| reachable(*r));
        order.extend(dead);
        Self { order, next: 0, open: 0, doubtful: false, refused: false, lost: false }
    }

    /// The first attempt.
    fn start(&mut self, earlier: bool) -> Step {
        self.doubtful = earlier;
        self.advance()
    }

    /// An attempt has failed. True when the write is in doubt.
    fn close(&mut self, replica: u8, error: &ReplicaError) -> bool {
        self.answered(replica);
        let lost = !error.certainly_not_done() && !matches!(error, ReplicaError::InDoubt);
        self.lost |= lost;
        self.doubtful |= !error.certainly_not_done();
        // Another replica would refuse as well, or would mint what may have been minted.
        let is_final = matches!(error, ReplicaError::SiblingLimit | ReplicaError::InDoubt | ReplicaError::WrongMode);
        if is_final && !Fault::RetryMintsAgain.is_on() {
            self.refused = true;
        }
        self.doubtful
    }

    /// What follows a failure.
    fn next(&mut self) -> Step {
        if self.open != 0 { Step::Wait } else { self.advance() }
    }

    /// No replica is tried any more.
    fn give_up(&mut self) -> Step {
        self.refused = true;
        self.next()
    }

    /// Tries those who were asked first, in this order, and the others after them, even if their first try has failed.
    fn again_in(&mut self, asked: &[u8]) {
        let others: PerReplica<u8> = self.order.iter().copied().filter(|replica| !asked.contains(replica)).collect();
        self.order = asked.iter().copied().chain(others).filter(|replica| !self.is_open(*replica)).collect();
        self.next = 0;
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
    use crate::name::{NodeId, StoreId, WriteId};
    use crate::record::Record;
    use crate::siblings::{Actor, Siblings, VersionVector};

    fn attempt(replica: u8, again: bool) -> Step {
        Step::Try(Attempt { replica, again })
    }

    #[test]
    fn a_try_that_never_left_is_no_doubt() {
        let node = NodeId::new("n").unwrap();
        let mut attempts = Attempts::new(3, |_| true);
        assert_eq!(attempts.start(false), attempt(0, false));
        let mut failed = |replica, error: ReplicaError| {
            attempts.close(replica, &error);
            attempts.next()
        };
        assert_eq!(failed(0, ReplicaError::NotSent(node.clone())), attempt(1, false));
        assert_eq!(failed(1, ReplicaError::Lost(node.clone())), attempt(2, true));
        assert_eq!(failed(2, ReplicaError::NotSent(node)), Step::Failed { certainly_not_applied: false });
    }

    #[test]
    fn a_refusal_ends_it() {
        let mut attempts = Attempts::new(3, |_| true);
        attempts.start(false);
        assert!(!attempts.close(0, &ReplicaError::SiblingLimit));
        assert_eq!(attempts.next(), Step::Failed { certainly_not_applied: true });
    }

    #[test]
    fn unreachable_replicas_are_asked_last() {
        let mut attempts = Attempts::new(3, |r| r != 0);
        assert_eq!(attempts.start(false), attempt(1, false));
        assert_eq!(attempts.slow(), attempt(2, true));
        assert_eq!(attempts.slow(), attempt(0, true));
        assert_eq!(attempts.slow(), Step::Wait);
    }

    const STARTED: u64 = 1_700_000_000_000_000;

    fn id(n: u8) -> WriteId {
        WriteId([n; 16])
    }

    fn write(n: u8) -> Write {
        let (seen, ids) = (VersionVector::default(), Vec::new());
        Write { write_id: id(n), started: STARTED, again: false, asked: false, seen, ids, newest: 0, value: None }
    }

    fn round(earlier: bool) -> PutRound {
        PutRound::new(write(1), 3, |_| true, earlier, Some(Tally::new(3, 2)))
    }

    /// Who is asked now: replica, and whether it is a Put.
    fn asked(round: &mut PutRound) -> Vec<(u8, bool)> {
        let mut asked = Vec::new();
        while let Next::Ask(replica, ask) = round.next(0) {
            match ask {
                Ask::Put(put) => {
                    assert_eq!(put.again, put.asked);
                    asked.push((replica, true));
                }
                Ask::Names { write_id, started } => {
                    assert_eq!((write_id, started), (id(1), STARTED));
                    asked.push((replica, false));
                }
                other => panic!("{other:?}"),
            }
        }
        asked
    }

    fn holding(record: &Siblings) -> Answer {
        Answer::Record(Some(Record::Siblings(record.clone()).encode()))
    }

    fn minted(record: &Siblings) -> Answer {
        Answer::Put { record: Record::Siblings(record.clone()).encode(), applied_already: false }
    }

    fn applied() -> Siblings {
        let mut record = Siblings::default();
        record.put(&write(1), Actor { store: StoreId([1; 16]), birth: 1 });
        record
    }

    #[test]
    fn a_first_try_asks_nobody_and_a_slow_one_asks_all() {
        let mut round = round(false);
        assert_eq!(asked(&mut round), [(0, true)]);
        assert_eq!(round.next(0), Next::Wait { answers: 1, until: Some(PATIENCE_MICROS) });
        round.waited(PATIENCE_MICROS);
        assert_eq!(asked(&mut round), [(0, false), (1, false), (2, false)]);
        assert_eq!(round.next(0), Next::Wait { answers: 1, until: None });
        // The slow one answers after all.
        round.answered(0, minted(&applied())).unwrap();
        assert_eq!(round.next(0), Next::Met);
        assert_eq!(round.applied().unwrap().replica, Some(0));
        let every = round.every_put();
        assert!(every.may_unpin(), "one event, and no Put is under way");
    }

    #[test]
    fn a_first_try_that_succeeds_has_asked_nobody_and_pinned_nothing() {
        let mut round = round(false);
        assert_eq!(asked(&mut round), [(0, true)]);
        assert_eq!((round.was_asked(), round.short_of_answers(), round.applied()), (false, None, None));
        round.answered(0, minted(&applied())).unwrap();
        assert_eq!((round.next(0), round.was_asked(), round.refusal()), (Next::Met, false, None));
        let mut every = round.every_put();
        assert_eq!((every.next(0), every.may_unpin()), (Next::Met, false));
    }

    /// Another replica would refuse as well. Only one that may have forgotten the write leaves its outcome open.
    #[test]
    fn a_refusal_is_final_and_says_whether_the_write_may_have_been_applied() {
        use ReplicaError::{InDoubt, SiblingLimit, WrongMode};
        for (error, forgotten) in [(SiblingLimit, false), (WrongMode, false), (InDoubt, true)] {
            let mut round = round(false);
            asked(&mut round);
            assert!(!round.is_forgotten() && !round.certainly_not_applied());
            round.failed(1, &ReplicaError::Late);
            assert_eq!((asked(&mut round), round.refusal()), (vec![], None), "nobody has asked that one");
            round.failed(0, &error);
            assert_eq!((round.next(0), round.refusal()), (Next::Short, Some(&error)));
            assert_eq!((round.is_forgotten(), round.certainly_not_applied()), (forgotten, !forgotten), "{error}");
        }
        let stamp = Answer::Stamp { stands: None, known: None };
        assert_eq!(round(false).answered(0, stamp), Err(ReplicaError::misfit()));
    }

    #[test]
    fn a_replica_whose_put_is_under_way_is_not_tried_again() {
        let mut round = round(false);
        asked(&mut round);
        round.waited(PATIENCE_MICROS);
        assert_eq!((asked(&mut round).len(), round.short_of_answers()), (3, Some((2, 0))));
        round.answered(2, Answer::Record(None)).unwrap();
        round.answered(0, Answer::Record(None)).unwrap();
        assert_eq!(round.short_of_answers(), None, "a quorum has answered");
        assert_eq!(asked(&mut round), [(2, true)], "the one that was asked, not the one that may be minting");
        round.answered(1, Answer::Record(None)).unwrap();
        assert_eq!(asked(&mut round), [], "what a quorum has said is decided once");
        round.waited(2 * PATIENCE_MICROS);
        assert_eq!(asked(&mut round), [(1, true)]);
        round.waited(3 * PATIENCE_MICROS);
        assert_eq!((asked(&mut round), round.next(0)), (vec![], Next::Wait { answers: 1, until: None }));
    }

    #[test]
    fn who_was_asked_mints_once_a_quorum_has_not_known_it() {
        let mut round = round(true);
        assert_eq!(asked(&mut round), [(0, false), (1, false), (2, false)]);
        assert_eq!(round.next(0), Next::Wait { answers: 2, until: None });
        round.answered(2, holding(&Siblings::default())).unwrap();
        assert_eq!(asked(&mut round), []);
        round.answered(1, Answer::Record(None)).unwrap();
        assert_eq!(asked(&mut round), [(2, true)]);
        round.waited(0);
        assert_eq!(asked(&mut round), [(1, true)], "the next one, and nobody is asked about it again");
        round.answered(1, minted(&applied())).unwrap();
        let mut every = round.every_put();
        assert_eq!((every.next(0), every.may_unpin()), (Next::Wait { answers: 1, until: None }, false));
        every.answered(2, minted(&applied())).unwrap();
        assert_eq!((every.next(0), every.may_unpin()), (Next::Met, false), "two events");
    }

    #[test]
    fn a_put_that_fails_after_the_acknowledgement_is_not_tried_elsewhere() {
        let late = |error: &ReplicaError| {
            let mut round = round(false);
            asked(&mut round);
            round.waited(PATIENCE_MICROS);
            asked(&mut round);
            round.answered(1, Answer::Record(None)).unwrap();
            round.answered(2, Answer::Record(None)).unwrap();
            assert_eq!(asked(&mut round), [(1, true)]);
            round.answered(1, minted(&applied())).unwrap();
            let mut every = round.every_put();
            assert_eq!(every.next(0), Next::Wait { answers: 1, until: None });
            every.failed(0, error);
            (every.next(0), every.may_unpin())
        };
        assert_eq!(late(&ReplicaError::Overloaded), (Next::Met, true));
        assert_eq!(late(&ReplicaError::Lost(NodeId::new("n").unwrap())), (Next::Met, false), "it may arrive yet");
    }

    #[test]
    fn a_write_that_one_of_them_knows_is_not_sent_again() {
        let mut round = round(true);
        asked(&mut round);
        round.answered(0, holding(&Siblings::default())).unwrap();
        round.answered(1, holding(&applied())).unwrap();
        assert_eq!(round.next(0), Next::Met);
        let Applied { replica, record } = round.applied().unwrap().clone();
        let Ok(Record::Siblings(record)) = record.decode() else { panic!("siblings") };
        assert_eq!((replica, record.versions.len()), (None, 1));
        assert!(!round.every_put().may_unpin(), "it is not known how many events it has");
    }

    #[test]
    fn what_may_have_been_forgotten_stays_in_doubt_and_says_so() {
        let mut round = round(true);
        asked(&mut round);
        let mut forgetful = Siblings::default();
        forgetful.names.horizon = STARTED;
        round.answered(0, holding(&forgetful)).unwrap();
        round.answered(2, Answer::Record(None)).unwrap();
        assert_eq!(round.next(0), Next::Short);
        assert!(round.is_forgotten() && !round.certainly_not_applied());
    }

    #[test]
    fn without_a_quorum_to_ask_it_stays_in_doubt() {
        let mut round = round(true);
        asked(&mut round);
        round.answered(0, Answer::Record(None)).unwrap();
        round.failed_beside(1, &ReplicaError::Overloaded);
        assert_eq!(round.short_of_answers(), Some((2, 1)));
        round.failed_beside(2, &ReplicaError::Late);
        assert_eq!(round.next(0), Next::Short);
        assert!(!round.is_forgotten() && !round.certainly_not_applied());
    }

    #[test]
    fn a_lost_try_is_not_tried_elsewhere_before_a_quorum_was_asked() {
        let node = NodeId::new("n").unwrap();
        let mut round = round(false);
        assert_eq!(asked(&mut round), [(0, true)]);
        round.failed(0, &ReplicaError::NotSent(node.clone()));
        assert_eq!(asked(&mut round), [(1, true)], "certainly not done");
        round.failed(1, &ReplicaError::Lost(node));
        assert_eq!(asked(&mut round), [(0, false), (1, false), (2, false)]);
        round.answered(1, Answer::Record(None)).unwrap();
        round.answered(0, Answer::Record(None)).unwrap();
        assert_eq!(asked(&mut round), [(1, true)], "even where it was tried before");
        round.answered(1, minted(&applied())).unwrap();
        assert!(!round.every_put().may_unpin(), "the lost one may arrive yet");
    }
}
