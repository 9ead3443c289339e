//! Plugin bindings.

use witan_kernel::fence;
use witan_kernel::port::{
    Answer, BINDINGS, BindingOnRecord, BindingStore, Changed, Digest, HookRecord, Slot, StoreError, rules,
};

use super::{MemoryMetadata, State};
use crate::slot::slot_key;

impl State {
    /// Checks that a slot's record is at version `expected`; 0 when there is none.
    fn expect_binding(&self, slot: &Slot, expected: u64) -> Result<(), StoreError> {
        let stored = self.bindings.get(&slot_key(slot)).map_or(0, |record| record.version);
        if stored == expected { Ok(()) } else { Err(rules::other_record(slot, expected, stored)) }
    }

    /// Logs the change of a slot, and the fences that nodes owe for it. Returns its revision.
    fn binding_changed(&mut self, slot: &Slot, fenced: bool) -> u64 {
        let epoch = self.changed(Changed::Binding(slot.clone()));
        let tenant = slot.tenant.as_ref().and_then(|id| self.tenants.get(id));
        if let Some(level) = fence::of_binding(slot.hook, tenant).filter(|_| fenced) {
            self.owe(slot.tenant.as_ref(), epoch, level);
        }
        epoch
    }

    /// Checks that a record may be saved.
    pub(super) fn may_save_binding(&self, of: &HookRecord) -> Result<(), StoreError> {
        rules::binding_record(&of.record)?;
        self.expect_binding(&of.slot, of.expected)?;
        if let Some(digest) = of.puts_in_force.filter(|digest| !self.has_artifact_for(&of.slot, *digest)) {
            return Err(rules::no_artifact(digest));
        }
        if of.expected == 0 && self.bindings.len() >= BINDINGS {
            return Err(rules::too_many_bindings());
        }
        Ok(())
    }

    /// Saves a record, and has its change fenced if `fenced` says so.
    pub(super) fn save_binding(&mut self, of: HookRecord, fenced: bool) -> Result<u64, StoreError> {
        self.may_save_binding(&of)?;
        let HookRecord { slot, record, .. } = of;
        let version = self.binding_changed(&slot, fenced);
        self.bindings.insert(slot_key(&slot), BindingOnRecord { slot, version, record });
        Ok(version)
    }
}

impl BindingStore for MemoryMetadata {
    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>> {
        self.answer(|state| Ok(state.bindings.values().cloned().collect()))
    }

    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>> {
        let key = slot_key(slot);
        self.answer(move |state| Ok(state.bindings.get(&key).cloned()))
    }

    fn save_binding_record(
        &self,
        slot: &Slot,
        expected: u64,
        record: String,
        puts_in_force: Option<Digest>,
        fenced: bool,
    ) -> Answer<u64> {
        let slot = slot.clone();
        self.answer(move |state| state.save_binding(HookRecord { slot, expected, record, puts_in_force }, fenced))
    }

    fn remove_binding_record(&self, slot: &Slot, expected: u64, fenced: bool) -> Answer<()> {
        let slot = slot.clone();
        self.answer(move |state| {
            if state.bindings.contains_key(&slot_key(&slot)) {
                state.expect_binding(&slot, expected)?;
                state.bindings.remove(&slot_key(&slot));
                state.binding_changed(&slot, fenced);
            }
            Ok(())
        })
    }
}
