//! Reads: which replicas to ask, when to ask a further one, and what the answers say together.

use super::round::{Next, PATIENCE_MICROS, Round};
use super::tally::{Progress, Tally};
use crate::fault::Fault;
use crate::hook::Shortfall;
use crate::limit::PerReplica;
use crate::record::{Encoded, Record};
use crate::replica::{Answer, Ask, ReplicaError};

/// When a read asks spare replicas although none has failed. Moments are monotonic microseconds.
#[derive(Debug, Clone)]
pub struct Hedging<F> {
    /// When the read started. All replicas are asked [`PATIENCE_MICROS`] later, whatever the budget: those asked first may be dead.
    /// Without this, the reads under way when a node hangs would wait for it until their deadlines. Later reads ask it last.
    pub started: u64,
    /// Takes one hedge from the coordinator's budget; false when it is used up. Called only when there is a spare replica.
    pub budget: F,
}

/// Asks as many replicas as must answer, and a further one for each that fails.
#[derive(Debug, Clone)]
pub struct ReadRound<F> {
    tally: Tally,
    order: PerReplica<u8>,
    /// Replicas of `order` whose requests have been handed out.
    sent: usize,
    /// Replicas of `order` that are to be asked.
    wanted: usize,
    /// Those of `order` that are asked although none has failed, before patience ends.
    hedged: usize,
    shortfall: Shortfall,
    hedging: Hedging<F>,
    /// When to ask spare replicas; `None` once all are asked.
    until: Option<u64>,
    records: PerReplica<(u8, Option<Encoded>)>,
}

impl<F: FnMut() -> bool> ReadRound<F> {
    /// A round that asks the replicas of `tally` in `order`, each of them once.
    pub fn new(order: PerReplica<u8>, tally: Tally, shortfall: Shortfall, hedging: Hedging<F>) -> Self {
        let until = Some(hedging.started + PATIENCE_MICROS);
        let (records, hedged) = (PerReplica::new(), order.len());
        let mut round = Self { tally, order, sent: 0, wanted: 0, hedged, shortfall, hedging, until, records };
        round.want_enough();
        round
    }

    /// Lets the round ask one spare replica `micros` after its start, if the budget allows it. To be called before it starts.
    pub fn hedge_after(&mut self, micros: u64) {
        self.until = Some(self.hedging.started + micros.min(PATIENCE_MICROS));
    }

    /// The last replicas of the order, this number of them, are spare ones only for those that fail. To be called before it starts.
    pub fn not_hedged(&mut self, last: usize) {
        self.hedged = self.order.len().saturating_sub(last);
    }

    /// The replicas asked so far: at the beginning, those asked first.
    pub fn asked(&self) -> &[u8] {
        &self.order[..self.wanted]
    }

    /// What each replica that answered has stored, in the order of the answers.
    pub fn records(&self) -> &PerReplica<(u8, Option<Encoded>)> {
        &self.records
    }

    /// A replica's answer turns out to be no record that any replica can have written: it counts as a failure, and the next replica is
    /// asked instead.
    pub fn refuted(&mut self, replica: u8) {
        self.records.retain(|(answered, _)| *answered != replica);
        if self.tally.revoke(replica) {
            self.ask_instead();
        }
    }

    /// Counts of answers.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Replicas asked that have not answered.
    fn unanswered(&self) -> u8 {
        self.asked().iter().filter(|replica| self.tally.is_open(**replica)).count() as u8
    }

    /// How far the round has come. A shortfall that the policy accepts counts as met once every replica that was asked has answered,
    /// in whatever order.
    fn progress(&self) -> Progress {
        match self.tally.progress() {
            Progress::Short if self.unanswered() > 0 && matches!(self.shortfall, Shortfall::Accept(_)) => {
                Progress::Open
            }
            Progress::Short if self.suffices() => Progress::Met,
            progress => progress,
        }
    }

    /// Asks until those who may still answer would be enough.
    fn want_enough(&mut self) {
        while self.wanted < self.order.len() && !self.tally.can_be_met_by(self.asked()) {
            self.wanted += 1;
        }
    }

    /// Asks a further replica for one that has failed.
    fn ask_instead(&mut self) {
        if self.progress() == Progress::Open {
            self.want_one_more();
            self.want_enough();
        }
    }

    fn want_one_more(&mut self) {
        self.wanted = (self.wanted + 1).min(self.order.len());
    }
}

impl<F: FnMut() -> bool> Round for ReadRound<F> {
    fn next(&mut self, _: u64) -> Next {
        if self.sent < self.wanted {
            self.sent += 1;
            return Next::Ask(self.order[self.sent - 1], Ask::Read);
        }
        match self.progress() {
            Progress::Open => Next::Wait { answers: self.tally.missing().min(self.unanswered()), until: self.until },
            Progress::Met => Next::Met,
            Progress::Short => Next::Short,
        }
    }

    /// "Not found" is an answer.
    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        let Answer::Record(record) = answer else { return Err(ReplicaError::misfit()) };
        if !self.tally.is_open(replica) {
            return Ok(());
        }
        if record.is_none() && Fault::NotFoundNotCounted.is_on() {
            self.failed(replica, &ReplicaError::Late);
        }
        self.tally.ack(replica);
        self.records.push((replica, record));
        Ok(())
    }

    /// The next replica is asked instead.
    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        if !self.tally.is_open(replica) {
            return;
        }
        self.tally.fail(replica, error.certainly_not_done());
        self.ask_instead();
    }

    fn waited(&mut self, now: u64) {
        let patience = self.hedging.started + PATIENCE_MICROS;
        if now >= patience {
            self.until = None;
            self.wanted = self.order.len();
        } else {
            self.until = Some(patience);
            if self.wanted < self.hedged && (self.hedging.budget)() {
                self.want_one_more();
            }
        }
    }

    fn suffices(&self) -> bool {
        self.tally.progress() == Progress::Met || self.tally.accepts(self.shortfall)
    }
}

/// What several replicas' answers say together.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconciled {
    /// The merge of all; `None` when no replica has the record.
    pub record: Option<Record>,
    /// Replicas among those that answered whose record differs from the merge.
    pub stale: PerReplica<u8>,
}

/// Merges answers. `None` when they hold records of two conflict modes, which cannot merge.
pub fn reconcile(answers: &[(u8, Option<Record>)]) -> Option<Reconciled> {
    let mut merged: Option<Record> = None;
    for record in answers.iter().filter_map(|(_, record)| record.as_ref()) {
        merged = Some(match merged {
            None => record.clone(),
            Some(so_far) if so_far.same_state(record) => so_far,
            Some(so_far) => Record::merge(Some(so_far), record.clone()).ok()?.0,
        });
    }
    let stale = answers
        .iter()
        .filter(|(_, record)| match (record, &merged) {
            (Some(record), Some(merged)) => !record.same_state(merged),
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
    use crate::quorum::Quorum;
    use crate::register::{Register, Stamp};

    fn register(stamp: u64) -> Record {
        Record::Register(Register::written(Stamp(stamp), WriteId([1; 16]), Some(Bytes::from_static(b"v"))))
    }

    fn round(order: &[u8], required: u8, shortfall: Shortfall) -> ReadRound<fn() -> bool> {
        let hedging = Hedging { started: 0, budget: (|| true) as fn() -> bool };
        let tally = Tally::new(order.len() as u8, required);
        let mut round = ReadRound::new(PerReplica::from_slice(order), tally, shortfall, hedging);
        round.hedge_after(1000);
        round
    }

    /// The replicas asked now, and what follows.
    fn next<F: FnMut() -> bool>(round: &mut ReadRound<F>) -> (Vec<u8>, Progress) {
        let mut asked = Vec::new();
        loop {
            match round.next(0) {
                Next::Ask(replica, _) => asked.push(replica),
                Next::Wait { .. } => return (asked, Progress::Open),
                Next::Met => return (asked, Progress::Met),
                Next::Short => return (asked, Progress::Short),
            }
        }
    }

    fn answer<F: FnMut() -> bool>(round: &mut ReadRound<F>, replica: u8, record: Option<Encoded>) -> Progress {
        round.answered(replica, Answer::Record(record)).unwrap();
        next(round).1
    }

    fn fail<F: FnMut() -> bool>(round: &mut ReadRound<F>, replica: u8) -> (Vec<u8>, Progress) {
        round.failed(replica, &ReplicaError::Late);
        next(round)
    }

    fn some() -> Option<Encoded> {
        Some(register(5).encode())
    }

    #[test]
    fn asks_one_more_for_each_failure() {
        let mut round = round(&[2, 0, 1], 2, Shortfall::Fail);
        assert_eq!(next(&mut round), (vec![2, 0], Progress::Open));
        assert_eq!(fail(&mut round, 2), (vec![1], Progress::Open));
        assert_eq!(answer(&mut round, 0, None), Progress::Open);
        assert_eq!(answer(&mut round, 1, some()), Progress::Met);
        assert_eq!(round.records().as_slice(), [(0, None), (1, some())]);
    }

    #[test]
    fn who_is_asked_last_is_asked_for_a_failure_and_at_the_end_of_patience_but_not_as_a_hedge() {
        let begun = |spared| {
            let mut round = round(&[2, 0, 1], 2, Shortfall::Fail);
            round.not_hedged(spared);
            assert_eq!(next(&mut round), (vec![2, 0], Progress::Open));
            round
        };
        let mut hedged = begun(0);
        hedged.waited(1000);
        assert_eq!(next(&mut hedged).0, [1]);
        let mut spared = begun(1);
        spared.waited(1000);
        assert_eq!(next(&mut spared).0, []);
        spared.waited(PATIENCE_MICROS);
        assert_eq!(next(&mut spared).0, [1]);
        assert_eq!(fail(&mut begun(1), 0).0, [1]);
        // More than there are: none is a spare one.
        begun(7).waited(1000);
    }

    #[test]
    fn an_accepted_shortfall_does_not_depend_on_who_comes_first() {
        let accepting = || {
            let mut round = round(&[0, 1, 2], 3, Shortfall::Accept(1));
            next(&mut round);
            round
        };
        let mut round = accepting();
        assert_eq!(fail(&mut round, 0).1, Progress::Open);
        assert_eq!(answer(&mut round, 1, some()), Progress::Open);
        assert_eq!(answer(&mut round, 2, some()), Progress::Met);
        let mut round = accepting();
        assert_eq!(answer(&mut round, 1, some()), Progress::Open);
        assert_eq!(answer(&mut round, 2, some()), Progress::Open);
        assert_eq!(fail(&mut round, 0).1, Progress::Met);
        let mut round = accepting();
        for replica in 0..3 {
            let expected = if replica < 2 { Progress::Open } else { Progress::Short };
            assert_eq!(fail(&mut round, replica).1, expected);
        }
    }

    #[test]
    fn at_the_deadline_an_accepted_shortfall_is_enough() {
        for (shortfall, enough) in
            [(Shortfall::Fail, false), (Shortfall::Accept(2), false), (Shortfall::Accept(1), true)]
        {
            let mut round = round(&[0, 1, 2], 3, shortfall);
            next(&mut round);
            assert!(!round.suffices(), "nobody has answered");
            answer(&mut round, 1, None);
            assert_eq!(round.suffices(), enough, "{shortfall:?}");
            answer(&mut round, 0, None);
            answer(&mut round, 2, None);
            assert!(round.suffices());
        }
    }

    #[test]
    fn an_answer_counts_once_and_one_to_another_request_does_not() {
        let mut round = round(&[0, 1, 2], 2, Shortfall::Fail);
        next(&mut round);
        assert_eq!(
            round.answered(0, Answer::Merged { superseded: false, told: Vec::new() }),
            Err(ReplicaError::misfit())
        );
        assert_eq!(answer(&mut round, 0, some()), Progress::Open);
        assert_eq!(answer(&mut round, 0, None), Progress::Open, "the same replica again");
        assert_eq!(fail(&mut round, 0), (vec![], Progress::Open), "it has answered");
        assert_eq!((round.tally().acks(), round.unanswered()), (1, 1));
        assert_eq!(round.records().as_slice(), [(0, some())]);
    }

    #[test]
    fn an_answer_that_is_no_record_is_a_failure() {
        let mut round = round(&[0, 1, 2], 2, Shortfall::Fail);
        next(&mut round);
        answer(&mut round, 0, some());
        assert_eq!(answer(&mut round, 1, some()), Progress::Met);
        round.refuted(1);
        round.refuted(1);
        assert_eq!(next(&mut round), (vec![2], Progress::Open), "another one is asked, once");
        assert_eq!(answer(&mut round, 2, None), Progress::Met);
        assert_eq!(round.records().as_slice(), [(0, some()), (2, None)]);
        round.refuted(0);
        assert_eq!(next(&mut round), (vec![], Progress::Short));
    }

    #[test]
    fn a_hedge_is_one_spare() {
        let mut round = round(&[0, 1, 2], 2, Shortfall::Fail);
        next(&mut round);
        assert_eq!(round.next(0), Next::Wait { answers: 2, until: Some(1000) });
        round.waited(1000);
        assert_eq!(next(&mut round).0, [2]);
        round.waited(1000);
        assert_eq!(next(&mut round).0, [] as [u8; 0]);
        assert_eq!(fail(&mut round, 0).1, Progress::Open);
        assert_eq!(fail(&mut round, 1).1, Progress::Short);
    }

    #[test]
    fn a_hedge_beyond_the_budget_waits_for_patience_to_end() {
        let budget = (|| false) as fn() -> bool;
        let hedging = Hedging { started: 50, budget };
        let mut round = ReadRound::new(smallvec![3, 0, 1, 2, 4], Tally::new(5, 2), Shortfall::Fail, hedging);
        round.hedge_after(1000);
        assert_eq!((round.asked(), next(&mut round.clone()).0), (&[3, 0][..], vec![3, 0]));
        next(&mut round);
        round.waited(1050);
        assert_eq!(round.next(1050), Next::Wait { answers: 2, until: Some(50 + PATIENCE_MICROS) });
        round.waited(50 + PATIENCE_MICROS);
        assert_eq!(next(&mut round).0, [1, 2, 4]);
        assert_eq!(round.next(0), Next::Wait { answers: 2, until: None });
    }

    #[test]
    fn patience_begins_when_the_read_does() {
        let hedging = Hedging { started: 50, budget: (|| true) as fn() -> bool };
        let mut round = ReadRound::new(smallvec![0, 1], Tally::new(2, 1), Shortfall::Fail, hedging);
        next(&mut round);
        assert_eq!(round.next(50), Next::Wait { answers: 1, until: Some(50 + PATIENCE_MICROS) });
    }

    #[test]
    fn a_hedge_takes_from_the_budget_only_where_there_is_a_spare() {
        for (replicas, taken) in [(2, 0), (3, 1)] {
            let asked = std::cell::Cell::new(0);
            let budget = || {
                asked.set(asked.get() + 1);
                true
            };
            let order: PerReplica<u8> = (0..replicas).collect();
            let mut round =
                ReadRound::new(order, Tally::new(replicas, 2), Shortfall::Fail, Hedging { started: 0, budget });
            round.hedge_after(1000);
            next(&mut round);
            round.waited(1000);
            assert_eq!((asked.get(), round.asked().len()), (taken, usize::from(replicas)));
        }
    }

    #[test]
    fn both_sets_of_a_placement_change_are_asked() {
        let tally = Tally::both(Quorum::of([0, 1, 2], 2), Quorum::of([3, 4, 5], 2));
        let hedging = Hedging { started: 0, budget: || true };
        let mut round = ReadRound::new(smallvec![0, 1, 3, 4, 5, 2], tally, Shortfall::Fail, hedging);
        assert_eq!(next(&mut round), (vec![0, 1, 3, 4], Progress::Open));
        assert_eq!(fail(&mut round, 0), (vec![5, 2], Progress::Open), "until the first set can be met");
        for replica in [1, 3, 4] {
            assert_eq!(answer(&mut round, replica, some()), Progress::Open);
        }
        assert_eq!(answer(&mut round, 2, some()), Progress::Met);
    }

    #[test]
    fn two_not_founds_and_one_value_still_repair() {
        let answers = [(0, None), (1, None), (2, Some(register(5)))];
        let reconciled = reconcile(&answers).unwrap();
        assert_eq!(reconciled.record, Some(register(5)));
        assert_eq!(reconciled.stale.as_slice(), [0, 1]);
    }

    #[test]
    fn what_differs_is_merged_and_what_is_behind_is_stale() {
        let answers = [(0, Some(register(5))), (1, Some(register(7))), (2, Some(register(7)))];
        let reconciled = reconcile(&answers).unwrap();
        let Some(Record::Register(merged)) = reconciled.record else { panic!("a register") };
        assert_eq!(merged.stamp, Stamp(7));
        assert_eq!(reconciled.stale.as_slice(), [0]);
        let other = Record::Siblings(crate::siblings::Siblings::default());
        assert_eq!(reconcile(&[(0, Some(register(5))), (1, Some(other))]), None);
    }

    /// Nobody is stale who has the same state: what each remembers besides is not merged.
    #[test]
    fn of_answers_with_the_same_state_the_first_is_taken_as_it_is() {
        let mut remembers = register(7);
        let Record::Register(stored) = &mut remembers else { panic!("a register") };
        stored.recent.remember(WriteId([9; 16]), 3);
        for answers in [[register(7), remembers.clone()], [remembers, register(7)]] {
            let reconciled = reconcile(&[(0, Some(answers[0].clone())), (1, Some(answers[1].clone()))]).unwrap();
            assert_eq!((reconciled.record.as_ref(), reconciled.stale.len()), (Some(&answers[0]), 0));
        }
    }

    #[test]
    fn no_replica_has_it_none_is_stale() {
        let reconciled = reconcile(&[(0, None), (1, None)]).unwrap();
        assert_eq!((reconciled.record, reconciled.stale.len()), (None, 0));
    }
}
