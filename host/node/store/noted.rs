//! What a store notes durably of its place in the cluster: whether it is the one on record, and whether collection has begun.

use std::sync::atomic::Ordering;

use witan_kernel::sync::lock;

use super::Store;
use super::identity::{IDENTITY, Identity, Noted};
use crate::engine::EngineError;

impl Store {
    /// False if the node has learned that the metadata has another store on record.
    pub fn is_on_record(&self) -> bool {
        !self.not_on_record.load(Ordering::Acquire)
    }

    /// A coordinator says whether this is the node's store on record. Takes effect at once; returns whether it has to be
    /// [noted](Self::note_standing).
    pub(crate) fn set_on_record(&self, on_record: bool) -> bool {
        let changes = self.not_on_record.swap(!on_record, Ordering::AcqRel) == on_record;
        match (changes, on_record) {
            (false, _) => {}
            (true, true) => tracing::info!(store = %self.id, "this store is on record as the node's"),
            (true, false) => tracing::error!(
                store = %self.id,
                "another store is on record as this node's: if its disk is not mounted, stop the node, mount it, and start the node again; \
                 if this store is to replace it, run `witan repair`"
            ),
        }
        changes
    }

    /// Notes durably what [`Self::set_on_record`] was called with last. Blocks.
    pub(crate) fn note_standing(&self) {
        let mut noted = lock(&self.noted);
        let on_record = self.is_on_record();
        // The error is kept in the condition.
        let _ = self.note(&mut noted, |noted| Noted { on_record, ..noted });
    }

    /// The collection of tombstones begins, which rests on the [age](witan_kernel::age) of every request: from when this returns, and after
    /// a restart, no batch applies requests that do not say when they were sent, and programs of before refuse to open the store.
    /// Idempotent, and cheap from the second time on; the first blocks. May be called while a batch is applied. On an error it may have
    /// begun or not.
    pub fn require_ages(&self) -> Result<(), EngineError> {
        if self.requires_ages() {
            return Ok(());
        }
        self.note(&mut lock(&self.noted), |noted| Noted { aged: true, ..noted })?;
        if !self.aged.swap(true, Ordering::AcqRel) {
            tracing::info!(store = %self.id, "the collection of tombstones has begun: earlier versions of witan refuse to open this store");
        }
        Ok(())
    }

    /// True once the collection of tombstones has begun.
    pub fn requires_ages(&self) -> bool {
        self.aged.load(Ordering::Acquire)
    }

    /// Changes what the identity on disk says of the store, durably.
    pub(super) fn note(&self, noted: &mut Noted, change: impl FnOnce(Noted) -> Noted) -> Result<(), EngineError> {
        let changed = change(*noted);
        if changed != *noted {
            let identity = Identity { id: self.id, boot: self.boot, noted: changed };
            self.engine.set_note(IDENTITY, identity.encode()).inspect_err(|error| self.failed(error))?;
            *noted = changed;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::FENCES;
    use super::*;
    use crate::engine::Engine;
    use crate::engine::simulated::Disk;
    use crate::testing::{Dice, open};

    #[test]
    fn that_it_is_not_on_record_is_remembered_and_programs_of_before_refuse_it() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let codec = |disk: &Disk| disk.open().note(IDENTITY).unwrap().unwrap()[0];
        let store = open(&disk, &dice);
        let id = store.id();
        assert!(store.is_on_record() && !store.set_on_record(true), "as of before");
        assert!(store.set_on_record(false) && !store.set_on_record(false));
        store.note_standing();
        disk.crash();
        assert_eq!((open(&disk, &dice).is_on_record(), codec(&disk)), (false, 2));
        let store = open(&disk, &dice);
        assert!(store.set_on_record(true));
        store.note_standing();
        disk.crash();
        assert_eq!((open(&disk, &dice).is_on_record(), codec(&disk)), (true, 1));
        assert_eq!(open(&disk, &dice).id(), id);
    }

    #[test]
    fn that_collection_has_begun_is_durable_and_programs_of_before_refuse_the_store() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let codec = |disk: &Disk| disk.open().note(IDENTITY).unwrap().unwrap()[0];
        let store = open(&disk, &dice);
        let id = store.id();
        assert!(!store.requires_ages());
        store.require_ages().unwrap();
        store.require_ages().unwrap();
        assert!(store.requires_ages());
        disk.crash();
        assert_eq!(codec(&disk), 5);
        let store = open(&disk, &dice);
        assert!(store.requires_ages() && store.is_on_record() && store.id() == id);
        assert!(store.set_on_record(false));
        store.note_standing();
        store.raise_fence(None, 7).unwrap();
        disk.crash();
        assert_eq!(codec(&disk), 8);
        let store = open(&disk, &dice);
        assert!(store.requires_ages() && !store.is_on_record() && store.fences().highest() == 7);
    }

    #[test]
    fn collection_begins_while_a_fence_waits_for_the_batch_to_end() {
        let (disk, dice) = (Disk::new(), Dice::default());
        let store = open(&disk, &dice);
        std::thread::scope(|scope| {
            let batch = store.fences();
            let raising = scope.spawn(|| store.raise_fence(None, 7));
            // It has noted that there are fences, and waits.
            while store.engine().note(FENCES).unwrap().is_none() {
                std::thread::yield_now();
            }
            store.require_ages().unwrap();
            drop(batch);
            raising.join().unwrap().unwrap();
        });
        assert!(store.requires_ages() && store.fences().highest() == 7);
    }
}
