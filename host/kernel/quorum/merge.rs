//! Sending one record to many replicas: a register's second round, the merges that follow a Put, and repairs.

use std::collections::{BTreeMap, BTreeSet};

use super::round::{Next, Round};
use super::tally::{Progress, Quorum, Tally};
use crate::fault::Fault;
use crate::hook::Shortfall;
use crate::name::WriteId;
use crate::record::Encoded;
use crate::replica::{Answer, Ask, ReplicaError};
use crate::siblings::Name;

/// Sends a record to every replica of its tally, until enough have stored it.
#[derive(Debug, Clone)]
pub struct MergeRound {
    /// Dropped when the last replica has been asked: a slow replica must not keep a large record in memory.
    record: Option<Encoded>,
    tally: Tally,
    shortfall: Shortfall,
    /// Replicas before this index have been asked.
    asked: u8,
    /// Replicas whose disk is full.
    full: u8,
    /// Pinned names that replicas hold and that are not in `record`, by replica; usually none.
    told: Vec<(u8, Vec<Name>)>,
}

impl MergeRound {
    /// A round that sends `record` to the replicas of `tally`, except those acknowledged before it starts.
    pub fn new(record: Encoded, tally: Tally, shortfall: Shortfall) -> Self {
        Self { record: Some(record), tally, shortfall, asked: 0, full: 0, told: Vec::new() }
    }

    /// The replica has stored the record.
    pub fn acked(&mut self, replica: u8) {
        self.tally.ack(replica);
    }

    /// How far the round has come. A shortfall that the policy accepts counts as met once every replica has answered.
    pub fn progress(&self) -> Progress {
        match self.tally.progress() {
            Progress::Short if self.tally.open() == 0 && self.tally.accepts(self.shortfall) => Progress::Met,
            Progress::Short if matches!(self.shortfall, Shortfall::Accept(_)) && self.tally.open() > 0 => {
                Progress::Open
            }
            progress => progress,
        }
    }

    /// Counts of answers.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// True when a replica's disk was full.
    pub fn disks_full(&self) -> bool {
        self.full > 0
    }

    /// Names that some of the replicas that count hold and others lack: what is acknowledged must not leave them behind. Empty as a rule.
    pub fn untold(&self) -> Vec<Name> {
        let told = self.told.iter().filter(|_| !Fault::PinsUntold.is_on()).flat_map(|(_, told)| told);
        // The first of each.
        let all: BTreeMap<WriteId, Name> = told.rev().map(|name| (name.id, *name)).collect();
        let all: Vec<Name> = all.into_values().collect();
        let lacks = |replica: u8| !self.knows(replica, &all);
        if (0..Quorum::MAX_REPLICAS).any(|replica| self.tally.has_acked(replica) && lacks(replica)) {
            all
        } else {
            Vec::new()
        }
    }

    /// True when a replica has the record, and these names beside it.
    pub fn knows(&self, replica: u8, names: &[Name]) -> bool {
        let told = self.told.iter().find(|(of, _)| *of == replica).map_or(&[][..], |(_, told)| told);
        let told: BTreeSet<WriteId> = told.iter().map(|name| name.id).collect();
        self.tally.has_acked(replica) && names.iter().all(|name| told.contains(&name.id))
    }

    /// The same round, which now goes on until every replica has answered.
    pub fn every_answer(self) -> EveryAnswer {
        EveryAnswer(self)
    }

    fn ask(&mut self) -> Option<Next> {
        let replica = self.tally.next_open(self.asked)?;
        self.asked = replica + 1;
        let is_last = self.tally.next_open(self.asked).is_none();
        let record = if is_last { self.record.take() } else { self.record.clone() };
        record.map(|record| Next::Ask(replica, Ask::Merge { record }))
    }
}

impl Round for MergeRound {
    fn next(&mut self, _: u64) -> Next {
        if let Some(ask) = self.ask() {
            return ask;
        }
        match self.progress() {
            Progress::Open => Next::Wait { answers: self.tally.missing(), until: None },
            Progress::Met => Next::Met,
            Progress::Short => Next::Short,
        }
    }

    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        let Answer::Merged { told, .. } = answer else { return Err(ReplicaError::misfit()) };
        if !told.is_empty() && self.tally.is_open(replica) {
            self.told.push((replica, told));
        }
        self.acked(replica);
        Ok(())
    }

    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        if matches!(error, ReplicaError::StorageFull) && self.tally.is_open(replica) {
            self.full += 1;
        }
        self.tally.fail(replica, error.certainly_not_done());
    }

    fn revoked(&mut self, replica: u8) -> bool {
        self.tally.revoke(replica)
    }

    fn suffices(&self) -> bool {
        self.tally.progress() == Progress::Met || self.tally.accepts(self.shortfall)
    }
}

/// A [`MergeRound`] that is met when every replica has answered, whatever the answers are: the rest of a write after its response, and
/// repairs in the background.
#[derive(Debug, Clone)]
pub struct EveryAnswer(MergeRound);

impl EveryAnswer {
    /// Counts of answers.
    pub fn tally(&self) -> &Tally {
        &self.0.tally
    }
}

impl Round for EveryAnswer {
    fn next(&mut self, _: u64) -> Next {
        if let Some(ask) = self.0.ask() {
            return ask;
        }
        match self.0.tally.open() {
            0 => Next::Met,
            answers => Next::Wait { answers, until: None },
        }
    }

    fn answered(&mut self, replica: u8, answer: Answer) -> Result<(), ReplicaError> {
        self.0.answered(replica, answer)
    }

    fn failed(&mut self, replica: u8, error: &ReplicaError) {
        self.0.failed(replica, error);
    }

    fn revoked(&mut self, replica: u8) -> bool {
        self.0.revoked(replica)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::name::WriteId;

    fn round(replicas: u8, required: u8, shortfall: Shortfall) -> MergeRound {
        MergeRound::new(Encoded(Bytes::new()), Tally::new(replicas, required), shortfall)
    }

    #[test]
    fn returns_as_soon_as_the_requirement_is_met() {
        let mut round = round(3, 2, Shortfall::Fail);
        round.acked(2);
        assert_eq!(round.progress(), Progress::Open);
        round.acked(0);
        assert_eq!(round.progress(), Progress::Met);
        round.failed(1, &ReplicaError::Late);
        assert_eq!(round.progress(), Progress::Met);
    }

    #[test]
    fn a_shortfall_is_reported_as_soon_as_it_is_certain() {
        let mut round = round(3, 2, Shortfall::Fail);
        round.failed(0, &ReplicaError::Overloaded);
        round.failed(1, &ReplicaError::StorageFull);
        assert_eq!(round.progress(), Progress::Short);
        assert!(round.disks_full());
        assert!(!round.tally().certainly_nothing_done(), "the third may still store it");
        round.failed(2, &ReplicaError::Overloaded);
        assert!(round.tally().certainly_nothing_done());
    }

    #[test]
    fn an_accepted_shortfall_waits_for_every_replica_or_the_deadline() {
        let mut round = round(3, 3, Shortfall::Accept(2));
        round.acked(0);
        round.failed(1, &ReplicaError::Late);
        assert_eq!(round.progress(), Progress::Open);
        assert!(!round.suffices(), "one answer is not two");
        round.acked(2);
        assert_eq!(round.progress(), Progress::Met);
        assert!(round.suffices());
    }

    #[test]
    fn at_the_deadline_an_accepted_shortfall_is_enough() {
        let mut failing = round(3, 3, Shortfall::Fail);
        let mut accepting = round(3, 3, Shortfall::Accept(1));
        assert!(!accepting.suffices(), "nobody has it");
        for round in [&mut failing, &mut accepting] {
            round.acked(1);
        }
        assert!(!failing.suffices() && accepting.suffices());
        assert_eq!(accepting.progress(), Progress::Open, "there is time for the others");
        failing.acked(0);
        assert!(!failing.suffices());
        failing.acked(2);
        assert!(failing.suffices());
    }

    #[test]
    fn a_shortfall_that_is_not_enough_is_reported_when_all_have_answered() {
        let mut round = round(3, 3, Shortfall::Accept(2));
        for (replica, progress) in [(0, Progress::Open), (1, Progress::Open), (2, Progress::Short)] {
            round.failed(replica, &ReplicaError::Late);
            assert_eq!(round.progress(), progress, "{replica}");
        }
        assert!(!round.suffices());
    }

    #[test]
    fn a_full_disk_counts_once_and_no_other_failure_is_one() {
        let mut round = round(3, 2, Shortfall::Fail);
        round.acked(0);
        round.failed(0, &ReplicaError::StorageFull);
        round.failed(1, &ReplicaError::Late);
        assert!(!round.disks_full(), "it has stored the record");
        round.failed(2, &ReplicaError::StorageFull);
        assert!(round.disks_full());
        assert_eq!(round.next(0), Next::Short);
    }

    #[test]
    fn replicas_that_have_the_record_are_not_sent_it() {
        let mut round = round(3, 2, Shortfall::Fail);
        round.acked(1);
        let mut asked = Vec::new();
        while let Next::Ask(replica, _) = round.next(0) {
            asked.push(replica);
        }
        assert_eq!(asked, [0, 2]);
        assert_eq!(round.next(0), Next::Wait { answers: 1, until: None });
        round.answered(2, Answer::Merged { superseded: false, told: Vec::new() }).unwrap();
        assert_eq!(round.next(0), Next::Met);
        assert_eq!(round.answered(2, Answer::Merged { superseded: false, told: Vec::new() }), Ok(()));
        assert_eq!(round.tally().acks(), 2, "counted once");
        let mut rest = round.every_answer();
        assert_eq!(rest.next(0), Next::Wait { answers: 1, until: None }, "no replica is asked twice");
        rest.failed(0, &ReplicaError::Late);
        assert_eq!((rest.next(0), rest.tally().acks()), (Next::Met, 2));
    }

    #[test]
    fn what_a_replaced_store_has_acknowledged_does_not_count() {
        let mut round = round(3, 2, Shortfall::Fail);
        round.acked(0);
        round.acked(1);
        assert_eq!(round.progress(), Progress::Met);
        assert!(round.revoked(1) && !round.revoked(1) && !round.revoked(2));
        assert_eq!(round.progress(), Progress::Open);
        round.failed(2, &ReplicaError::Overloaded);
        assert_eq!(round.progress(), Progress::Short);
        assert!(!round.tally().certainly_nothing_done(), "the replaced store may come back");
    }

    #[test]
    fn names_that_only_some_replicas_know_are_passed_on() {
        let name = |n| Name { pinned: true, ..Name::dead(WriteId([n; 16]), 5) };
        let merged = |told| Answer::Merged { superseded: false, told };
        let mut one = round(3, 2, Shortfall::Fail);
        one.acked(0);
        one.answered(1, merged(vec![name(1)])).unwrap();
        assert_eq!(one.untold(), [name(1)]);
        assert_eq!([0, 1, 2].map(|replica| one.knows(replica, &[name(1)])), [false, true, false]);
        let mut all = round(3, 2, Shortfall::Fail);
        for replica in 0..2 {
            all.answered(replica, merged(vec![name(1)])).unwrap();
        }
        assert_eq!(all.untold(), [], "both know it");
        all.answered(2, merged(vec![name(2)])).unwrap();
        assert_eq!(all.untold(), [name(1), name(2)], "each that counts has to know all");
    }

    #[test]
    fn only_the_first_answer_of_a_replica_tells_names() {
        let name = Name { pinned: true, ..Name::dead(WriteId([1; 16]), 5) };
        let mut round = round(3, 2, Shortfall::Fail);
        for told in [vec![], vec![name]] {
            round.answered(0, Answer::Merged { superseded: false, told }).unwrap();
        }
        assert_eq!((round.untold(), round.knows(0, &[]), round.knows(1, &[])), (vec![], true, false));
    }

    #[test]
    fn what_is_revoked_after_the_response_does_not_count_either() {
        let mut round = round(3, 2, Shortfall::Fail);
        round.acked(0);
        let mut rest = round.every_answer();
        assert!(rest.revoked(0) && !rest.revoked(0) && !rest.revoked(1));
        assert_eq!((rest.tally().acks(), rest.tally().open()), (0, 2));
    }

    #[test]
    fn an_answer_to_another_request_is_a_failure() {
        let mut round = round(3, 2, Shortfall::Fail);
        assert_eq!(round.answered(0, Answer::Record(None)), Err(ReplicaError::misfit()));
        assert_eq!(round.tally().open(), 3);
    }
}
