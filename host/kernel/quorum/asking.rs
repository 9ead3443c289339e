//! Asking a quorum about a write that may have been applied before.

use super::tally::{Progress, Tally};
use crate::limit::PerReplica;
use crate::record::{Encoded, Record};
use crate::replica::ReplicaError;
use crate::siblings::{Siblings, Write};

/// What a quorum says about a write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    /// It is applied: all that they hold, joined.
    Known(Encoded),
    /// It is not known, its name is pinned, and no name that may have been this one was forgotten. Those who have answered, in order.
    Unknown(PerReplica<u8>),
    /// It is not known, and may have been forgotten.
    Forgotten,
    /// Too few have answered.
    Short,
}

/// The question, and its answers.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    tally: Tally,
    begun: bool,
    /// Replicas before this index have been asked.
    asked: u8,
    records: PerReplica<(u8, Siblings)>,
    result: Option<Asked>,
}

impl Asking {
    /// A question to the replicas of `tally`, of which it requires a quorum.
    pub(super) fn new(tally: Tally) -> Self {
        Self { tally, begun: false, asked: 0, records: PerReplica::new(), result: None }
    }

    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// True while it is not known what a quorum says.
    pub(super) fn is_open(&self) -> bool {
        self.begun && matches!(self.result, None | Some(Asked::Short))
    }

    pub(super) fn result(&self) -> Option<&Asked> {
        self.result.as_ref()
    }

    /// Replicas that have to answer, and how many have.
    pub(super) fn counts(&self) -> (u8, u8) {
        (self.tally.required(), self.tally.received())
    }

    /// Answers without which nothing can be decided.
    pub(super) fn missing(&self) -> u8 {
        if self.is_open() { self.tally.missing().max(1) } else { 1 }
    }

    /// The next replica to ask.
    pub(super) fn next(&mut self) -> Option<u8> {
        let open = self.begun && self.result.is_none();
        let replica = if open { self.tally.next_open(self.asked) } else { None }?;
        self.asked = replica + 1;
        Some(replica)
    }

    pub(super) fn answered(&mut self, replica: u8, record: Option<&Encoded>) -> Result<(), ReplicaError> {
        if !self.tally.is_open(replica) {
            return Ok(());
        }
        let record = match record.map(Encoded::decode).transpose() {
            Ok(None) => Siblings::default(),
            Ok(Some(Record::Siblings(record))) => record,
            Ok(Some(Record::Register(_))) | Err(_) => return Err(ReplicaError::misfit()),
        };
        self.tally.ack(replica);
        self.records.push((replica, record));
        Ok(())
    }

    pub(super) fn failed(&mut self, replica: u8) {
        self.tally.fail(replica, false);
    }

    /// What a quorum says, once: `None` while too few have answered, and afterwards.
    pub(super) fn decide(&mut self, write: &Write) -> Option<Asked> {
        if !self.begun || self.result.is_some() {
            return None;
        }
        let result = match self.tally.progress() {
            Progress::Open => return None,
            Progress::Short => Asked::Short,
            Progress::Met => self.judge(write),
        };
        self.result = Some(result.clone());
        Some(result)
    }

    fn judge(&self, write: &Write) -> Asked {
        let mut all = Siblings::default();
        for (_, record) in &self.records {
            all.merge(record);
        }
        if all.knows(&write.write_id).is_some() {
            return Asked::Known(Record::Siblings(all).encode());
        }
        if all.names.horizon >= write.started {
            return Asked::Forgotten;
        }
        Asked::Unknown(self.records.iter().map(|(replica, _)| *replica).collect())
    }
}
