//! Questions about the names of writes, and what they pin.

use witan_kernel::name::WriteId;
use witan_kernel::record::Record;
use witan_kernel::replica::{Answer, Outcome, ReplicaError};
use witan_kernel::siblings::Siblings;

use super::BatchRow;

impl BatchRow {
    /// The record of siblings; an empty one without a record.
    fn siblings(&mut self) -> Result<Siblings, ReplicaError> {
        self.decode()?;
        match &self.record {
            None => Ok(Siblings::default()),
            Some(Record::Siblings(siblings)) => Ok(siblings.clone()),
            Some(Record::Register(_)) => Err(ReplicaError::WrongMode),
        }
    }

    pub(super) fn names(&mut self, write_id: &WriteId, started: u64) -> Outcome {
        let mut siblings = self.siblings()?;
        if siblings.pin(write_id, started)? {
            self.set(Record::Siblings(siblings), None);
        }
        Ok(Answer::Record(self.encoded()))
    }

    pub(super) fn unpin(&mut self, write_id: &WriteId) -> Outcome {
        let mut siblings = self.siblings()?;
        let changed = siblings.names.unpin(write_id);
        if changed {
            self.set(Record::Siblings(siblings), None);
        }
        Ok(Answer::Merged { superseded: !changed, told: Vec::new() })
    }
}
