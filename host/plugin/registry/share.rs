//! Sharing with other coordinators: adopting what they have changed. The store is authoritative; what is in memory and on this host's
//! disk is a copy, so that questions, restarts and rollbacks need not wait for the store.

use std::sync::Arc;

use witan_kernel::port::{Slot, StoreError};
use witan_kernel::sync::lock;

use super::change::plan;
use super::library::{Artifact, find};
use super::{HostState, Inner};
use crate::binding::{self, BindingRecord, Reference};
use crate::digest::Digest;
use crate::error::PluginError;
use crate::event::{Event, EventKind};
use crate::instance::Program;
use crate::limit;
use crate::tenant::{LoadError, Plan};

impl Inner {
    /// At the start: loads the components of the store. A component that is only on this host's disk dates from a version that did not
    /// store components, and is stored if it is bound.
    pub(super) fn learn_components(&self) -> Result<(), PluginError> {
        let bound = binding::stored(self.store.as_ref())?;
        let needs = |digest| bound.iter().any(|record| digests(record).any(|needed| needed == digest));
        let mut state = lock(&self.state);
        let kept = self.store.components()?;
        for artifact in state.library.list().iter().filter(|local| !kept.iter().any(|k| k.digest == local.digest)) {
            match state.library.read(artifact.digest) {
                Ok(bytes) if needs(artifact.digest) => self.store.keep(artifact, &bytes)?,
                Ok(_) | Err(_) => _ = state.library.remove(artifact.digest),
            }
        }
        self.fetch(&mut state, kept)?;
        self.publish(&state);
        Ok(())
    }

    /// At the start: puts the stored bindings in force. One that cannot be loaded is in force too, and answers with faults.
    pub(super) fn restore(&self) -> Result<(), PluginError> {
        let records = binding::stored(self.store.as_ref())?;
        let mut state = lock(&self.state);
        for record in records {
            let slot = record.slot();
            let (primary, kept) = self.load(&state, &record);
            let mut live = self.live_binding(&state, record, primary);
            drop(kept);
            live.not_followed = self.superseded(&state, &live.record);
            state.bindings.insert(slot, live);
        }
        self.publish(&state);
        Ok(())
    }

    /// Adopts what other coordinators have changed.
    pub(super) fn refresh(&self, slots: Option<Vec<Slot>>) -> Result<(), PluginError> {
        let mut state = lock(&self.state);
        self.sync_components(&mut state)?;
        match slots {
            None => self.refresh_all(&mut state)?,
            Some(slots) => slots.iter().try_for_each(|slot| self.catch_up(&mut state, slot))?,
        }
        // Again: a removed component may have been kept only by a binding that is dropped by now.
        self.sync_components(&mut state)
    }

    fn refresh_all(&self, state: &mut HostState) -> Result<(), PluginError> {
        let records = binding::stored(self.store.as_ref())?;
        let stored: Vec<Slot> = records.iter().map(BindingRecord::slot).collect();
        let gone: Vec<Slot> = state.bindings.keys().filter(|slot| !stored.contains(slot)).cloned().collect();
        gone.iter().for_each(|slot| self.drop_binding(state, slot));
        records.into_iter().for_each(|record| self.adopt(state, record));
        Ok(())
    }

    /// Adopts the stored version of a binding, before it is changed.
    pub(super) fn catch_up(&self, state: &mut HostState, slot: &Slot) -> Result<(), PluginError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        match self.store.binding(slot)? {
            Some(stored) => {
                let record = BindingRecord::decode(&stored.record)?;
                if digests(&record).any(|digest| state.library.get(digest).is_none()) {
                    self.sync_components(state)?;
                }
                self.adopt(state, record);
            }
            None => self.drop_binding(state, slot),
        }
        Ok(())
    }

    /// The component that a reference means, even if another coordinator has only just staged it.
    pub(super) fn resolve(&self, state: &mut HostState, plugin: &Reference) -> Result<Option<Artifact>, PluginError> {
        let find = |state: &HostState| find(&state.library.list(), plugin, self.folder.as_ref()).cloned();
        // A name means the newest component, which may not be known here yet.
        if self.store.is_shared() && (matches!(plugin, Reference::Name { .. }) || find(state).is_none()) {
            self.sync_components(state)?;
        }
        Ok(find(state))
    }

    /// Puts in force what another coordinator has stored.
    fn adopt(&self, state: &mut HostState, record: BindingRecord) {
        let slot = record.slot();
        if state.bindings.get(&slot).is_some_and(|live| *live.record == record) {
            return;
        }
        let (primary, kept) = self.load(state, &record);
        self.swap(state, slot.clone(), record, primary, EventKind::Activated);
        drop(kept);
        // The current content of this host's folder is older than the change; only later changes in the folder are followed.
        let record = state.bindings.get(&slot).map(|live| live.record.clone());
        let in_folder = record.and_then(|record| self.in_folder(&state.library.list(), &record.current.reference));
        if let Some(live) = state.bindings.get_mut(&slot) {
            live.not_followed = in_folder;
        }
    }

    /// The plan of a stored binding, and the programs of its earlier versions, for a rollback.
    fn load(&self, state: &HostState, record: &BindingRecord) -> (Result<Plan, LoadError>, Vec<Arc<Program>>) {
        let primary = match self.program(state, record.current.digest) {
            Ok((program, artifact)) => Ok(plan(&program, &artifact, &record.current.configuration)),
            Err(error) => Err(LoadError::from(error)),
        };
        if let Err(error) = &primary {
            let event = Event::new(EventKind::Refused, error.to_string());
            let event = event.of(record.current.digest, &*record.current.plugin);
            self.shared.events.emit(event.at(record.tenant.clone(), record.hook));
        }
        let earlier = record.previous.iter().filter_map(|version| self.program(state, version.digest).ok());
        (primary, earlier.map(|kept| kept.0).collect())
    }

    /// The component in the folder that a binding must not follow at the start, because it was staged in the cluster before the one in
    /// force: another coordinator has, or had, a newer file. (A single coordinator has only its own folder, and the record says what
    /// was followed.)
    fn superseded(&self, state: &HostState, record: &BindingRecord) -> Option<Digest> {
        let list = state.library.list();
        let in_folder = self.in_folder(&list, &record.current.reference).filter(|_| self.store.is_shared())?;
        let staged_at = |digest| list.iter().find(|artifact| artifact.digest == digest).map(|it| it.staged_at_ms);
        (staged_at(in_folder) <= staged_at(record.current.digest)).then_some(in_folder)
    }

    /// Makes the known components those of the store.
    fn sync_components(&self, state: &mut HostState) -> Result<(), PluginError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        let kept = self.store.components()?;
        let gone: Vec<Digest> = {
            let list = state.library.list();
            let gone = list.iter().filter(|local| !kept.iter().any(|entry| entry.digest == local.digest));
            gone.map(|artifact| artifact.digest).filter(|digest| !state.refers_to(*digest)).collect()
        };
        gone.into_iter().for_each(|digest| _ = self.forget(state, digest));
        self.fetch(state, kept)?;
        self.publish(state);
        Ok(())
    }

    /// Copies missing components from the store: the newest, if there are more than [`limit::ARTIFACTS`].
    fn fetch(&self, state: &mut HostState, mut kept: Vec<Artifact>) -> Result<(), PluginError> {
        kept.sort_by_key(|artifact| std::cmp::Reverse(artifact.staged_at_ms));
        for artifact in kept.into_iter().take(limit::ARTIFACTS) {
            if state.library.get(artifact.digest).is_some() {
                continue;
            }
            // It may have been removed since it was listed.
            let Some(bytes) = self.store.component(artifact.digest)? else { continue };
            if Digest::of(&bytes) != artifact.digest {
                let damaged = format!("plugin {} is damaged in the store; remove and upload it again", artifact.digest);
                return Err(StoreError::Damaged(damaged).into());
            }
            state.library.insert(artifact, &bytes)?;
        }
        Ok(())
    }
}

/// The components of all versions of a binding.
fn digests(record: &BindingRecord) -> impl Iterator<Item = Digest> {
    record.previous.iter().chain([&record.current]).map(|version| version.digest)
}
