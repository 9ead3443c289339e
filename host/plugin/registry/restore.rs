//! The start: which bindings are in force before the host serves, and which plugins are loaded after that. Reading, authenticating and
//! checking an interpreter takes about a tenth of a second, and there may be hundreds. Routing hooks are in force from the start,
//! whatever they take: without them it is not known where records are.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};
use std::thread;

use witan_kernel::hook::Hook;
use witan_kernel::port::Slot;
use witan_kernel::sync::lock;

use super::{Inner, LiveBinding};
use crate::binding::{self, BindingRecord, SlotRecord};
use crate::digest::Digest;
use crate::error::PluginError;
use crate::limit;
use crate::pool::STACK_BYTES;
use crate::tenant::{LoadError, Plan, TenantBinding};

impl Inner {
    /// Puts the stored bindings in force; returns the slots of which something is to be loaded later. One that cannot be loaded is in force
    /// too, and answers with faults.
    pub(super) fn restore(&self) -> Result<Vec<Slot>, PluginError> {
        let mut late = Vec::new();
        for record in binding::stored(self.store.as_ref())? {
            if self.restore_one(record.clone()) {
                late.push(record.slot);
            }
        }
        self.publish(&lock(&self.state));
        Ok(late)
    }

    /// True if something of the slot is to be loaded later.
    fn restore_one(&self, record: SlotRecord) -> bool {
        let is_late = |digest: Digest| record.slot.hook != Hook::RoutingHook && self.is_large(digest);
        let (late, now): (Vec<Digest>, Vec<Digest>) = record.digests().partition(|digest| is_late(*digest));
        let kept: Vec<_> = now.into_iter().filter_map(|digest| self.program(digest).ok()).collect();
        let primary = record.bound.as_ref().map(|bound| match is_late(bound.current.digest) {
            true => Err(LoadError(PluginError::Late)),
            false => self.load_current(bound),
        });
        let mut state = lock(&self.state);
        if let (Some(bound), Some(primary)) = (record.bound, primary) {
            let live = self.live_binding(&state, bound, primary);
            // Without its program its failures would speak against it.
            let tried = record.candidate.filter(|tried| !late.contains(&tried.version.digest));
            let candidate = tried.map(|tried| self.candidate(&state, &record.slot, None, tried));
            state.bindings.insert(record.slot.clone(), LiveBinding { candidate, ..live });
        }
        let none = self.set_partitions(&mut state, &record.slot, record.partitions);
        drop(state);
        drop((kept, none));
        !late.is_empty()
    }

    /// Whether a component is so large that reading its machine code takes long.
    fn is_large(&self, digest: Digest) -> bool {
        self.known(digest).is_some_and(|artifact| !artifact.class.is_for_all())
    }

    /// Loads what a slot lacks since the start.
    fn load_late(&self, slot: &Slot) -> Result<(), PluginError> {
        let Some(record) = self.as_begun(slot)? else { return Ok(()) };
        let (primary, kept) = self.load(&record);
        if let Some(Err(LoadError(busy))) = &primary
            && busy.is_busy()
        {
            return Err(PluginError::HostBusy(busy.to_string()));
        }
        let turn = self.turns.take(slot);
        if self.stored(slot)?.as_ref() != Some(&record) {
            return Err(PluginError::keeps_changing());
        }
        if let (Some(bound), Some(primary)) = (record.bound, primary) {
            self.replace_late(slot, bound, primary);
        }
        self.change_candidate(slot, record.candidate);
        drop(turn);
        drop(kept);
        self.hold_earlier(slot)
    }

    /// Puts a plugin in force in a slot that lacks it since the start. For a thread that has the slot's turn.
    fn replace_late(&self, slot: &Slot, bound: BindingRecord, primary: Result<Plan, LoadError>) {
        let mut state = lock(&self.state);
        let before = state.bindings.get(slot).filter(|live| *live.record == bound && live.active.is_late());
        let Some(not_followed) = before.map(|live| live.not_followed) else { return };
        let live = self.live_binding(&state, bound, primary);
        let old = state.bindings.insert(slot.clone(), LiveBinding { not_followed, ..live });
        self.publish(&state);
        drop(state);
        drop(old);
    }

    /// What is stored for a slot, if that is what it had at the start; what has been changed since is loaded by whoever adopts the change.
    fn as_begun(&self, slot: &Slot) -> Result<Option<SlotRecord>, PluginError> {
        let _turn = self.turns.take(slot);
        let stored = self.stored(slot)?;
        let state = lock(&self.state);
        let live = state.bindings.get(slot).map(|live| &*live.record);
        Ok(stored.filter(|stored| stored.bound.as_ref() == live))
    }
}

/// Starts the thread that loads what these slots lack. It ends when all are loaded, or the host has been dropped.
pub(super) fn start(inner: &Arc<Inner>, slots: Vec<Slot>) -> io::Result<()> {
    let host = Arc::downgrade(inner);
    let loaded = move |binding: &Arc<TenantBinding>| {
        match host.upgrade().and_then(|host| host.in_force(binding.tenant(), binding.active.hook)) {
            Some(now) => (!now.is_late()).then_some(now),
            // What is not bound any more is not waited for.
            None => Some(Arc::clone(binding)),
        }
    };
    inner.shared.late.begin(loaded, slots.len());
    if slots.is_empty() {
        return Ok(());
    }
    let host = Arc::downgrade(inner);
    let work = move || load(&host, slots.into());
    thread::Builder::new().name("witan-late-plugins".into()).stack_size(STACK_BYTES).spawn(work).map(|_| ())
}

/// Loads them one after the other. One that cannot be loaded now, say because the store does not answer, is tried again after the others.
fn load(host: &Weak<Inner>, mut slots: VecDeque<Slot>) {
    while let Some(slot) = slots.pop_front() {
        let Some(inner) = host.upgrade() else { return };
        let loaded = inner.load_late(&slot);
        match loaded {
            Ok(()) => inner.shared.late.one_less(),
            Err(error) => {
                tracing::warn!(?slot, %error, "a plugin is not loaded yet since the start");
                slots.push_back(slot);
                drop(inner);
                thread::sleep(limit::LATE_RETRY);
            }
        }
    }
}
