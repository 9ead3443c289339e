//! Plugin bindings.

use witan_kernel::fence;
use witan_kernel::name::NodeId;
use witan_kernel::port::{
    Answer, BINDINGS, BindingChange, BindingOnRecord, BindingStore, CandidateReport, Changed, HISTORY_ENTRIES,
    HistoryEntry, REPORTS, REPORTS_KEPT_MS, RecordText, Slot, StoreError, rules,
};

use super::{MemoryMetadata, State};
use crate::slot::{SlotKey, slot_key};

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

    /// Checks that a record may be changed.
    pub(super) fn may_change_binding(&self, of: &BindingChange) -> Result<(), StoreError> {
        rules::binding_change(of)?;
        self.expect_binding(&of.slot, of.expected)?;
        if let Some(digest) = of.puts_in_force.filter(|digest| !self.has_artifact_for(&of.slot, *digest)) {
            return Err(rules::no_artifact(digest));
        }
        if of.expected == 0 && self.bindings.len() >= BINDINGS {
            return Err(rules::too_many_bindings());
        }
        Ok(())
    }

    pub(super) fn change_binding(&mut self, of: BindingChange) -> Result<u64, StoreError> {
        let key = slot_key(&of.slot);
        if of.record.is_none() && !self.bindings.contains_key(&key) {
            return Ok(0);
        }
        self.may_change_binding(&of)?;
        let BindingChange { slot, record, fenced, entry, .. } = of;
        let version = self.binding_changed(&slot, fenced);
        match record {
            Some(RecordText(record)) => {
                self.bindings.insert(key.clone(), BindingOnRecord { slot, version, record });
            }
            None => _ = self.bindings.remove(&key),
        }
        if let Some(text) = entry {
            let history = self.histories.entry(key).or_default();
            history.insert(0, HistoryEntry { number: version, text });
            history.truncate(HISTORY_ENTRIES);
        }
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

    fn change_binding_record(&self, change: BindingChange) -> Answer<u64> {
        self.answer(move |state| state.change_binding(change))
    }

    fn binding_history(&self, slot: &Slot) -> Answer<Vec<HistoryEntry>> {
        let key = slot_key(slot);
        self.answer(move |state| Ok(state.histories.get(&key).cloned().unwrap_or_default()))
    }

    fn put_report(&self, report: CandidateReport) -> Answer<()> {
        self.answer(move |state| {
            rules::report(&report)?;
            let key = slot_key(&report.slot);
            let old = report.at_ms.saturating_sub(REPORTS_KEPT_MS);
            state.reports.retain(|(slot, _, _, at_ms), _| *slot != key || *at_ms >= old);
            state.reports.insert((key, report.number, report.coordinator.clone(), report.at_ms), report);
            Ok(())
        })
    }

    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Answer<Vec<CandidateReport>> {
        let key = slot_key(slot);
        self.answer(move |state| {
            let wanted = |(of, version, _, at_ms): &(SlotKey, u64, NodeId, u64)| {
                *of == key && *version == number && *at_ms >= since_ms
            };
            let found = state.reports.iter().filter(|(at, _)| wanted(at));
            Ok(found.take(REPORTS).map(|(_, report)| report.clone()).collect())
        })
    }

    fn prepare_binding(&self, slot: &Slot, version: Option<RecordText>) -> Answer<()> {
        let slot = slot.clone();
        self.answer(move |state| {
            let key = slot_key(&slot);
            let Some(text) = version else {
                state.preparations.remove(&key);
                return Ok(());
            };
            rules::binding_record(&text.0)?;
            state.preparations.insert(key, text);
            state.changed(Changed::Binding(slot));
            Ok(())
        })
    }

    fn prepared_binding(&self, slot: &Slot) -> Answer<Option<RecordText>> {
        let key = slot_key(slot);
        self.answer(move |state| Ok(state.preparations.get(&key).cloned()))
    }
}
