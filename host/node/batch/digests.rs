//! How a batch keeps the store's digests: what rows were before it, and what they are once it is written.

use witan_kernel::fault::Fault;
use witan_kernel::replica::ReplicaError;

use super::{Batch, BatchRow};
use crate::engine::EngineError;
use crate::leaves::Changed;
use crate::store::digest;

impl Batch<'_> {
    /// Notes what the batch has changed, or might have changed if it has failed, before another one is written.
    pub(super) fn note_changes(&self, failed: Option<&EngineError>) {
        let changed = self.rows.iter().filter(|row| row.changed && !Fault::DigestNotUpdated.is_on());
        match failed {
            None => self.store.note_changes(changed.map(|row| Changed {
                row: &row.key,
                before: row.before.flatten(),
                after: row.record.as_ref().and_then(|record| digest(&row.key, record)),
            })),
            // No part of it was written, or will be.
            Some(EngineError::Full) => {}
            Some(EngineError::Broken(_)) => self.store.note_lost(changed.map(|row| &row.key)),
        }
    }
}

impl BatchRow {
    /// Remembers what a digest has of the row, before it may be changed for the first time.
    pub(super) fn note_before(&mut self) -> Result<(), ReplicaError> {
        self.decode()?;
        if self.before.is_none() {
            self.before = Some(self.record.as_ref().and_then(|record| digest(&self.key, record)));
        }
        Ok(())
    }
}
