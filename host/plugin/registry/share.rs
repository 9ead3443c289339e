//! What is shared with other coordinators: taking in what they have changed. The store knows what holds; what is here and on
//! this host's disk is a copy, so that questions, restarts and rollbacks wait for nobody.

use std::sync::Arc;

use witan_kernel::port::StoreError;

use super::change::{Key, plan};
use super::library::{Artifact, find};
use super::{Inner, PluginError, State};
use crate::binding::{BindingRecord, Reference};
use crate::compile::lock;
use crate::digest::Digest;
use crate::event::{Event, EventKind};
use crate::instance::Program;
use crate::limit;
use crate::slot::Plan;

impl Inner {
    /// At the start: knows the components that the store knows. One that only this host's disk has is of a time in which the
    /// store kept none, and is stored if it is bound.
    pub(super) fn learn_components(&self) -> Result<(), PluginError> {
        let bound = self.store.bindings()?;
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

    /// At the start: puts the stored bindings in force. One that cannot be loaded is in force too, as a fault with a reason.
    pub(super) fn restore(&self) -> Result<(), PluginError> {
        let records = self.store.bindings()?;
        let mut state = lock(&self.state);
        for record in records {
            let key = (record.tenant.clone(), record.hook);
            let (primary, kept) = self.load(&state, &record);
            let mut bound = self.bound(&state, record, primary);
            drop(kept);
            bound.not_followed = self.passed_over(&state, &bound.record);
            state.bindings.insert(key, bound);
        }
        self.publish(&state);
        Ok(())
    }

    /// Takes in what other coordinators have changed.
    pub(super) fn refresh(&self, slots: Option<Vec<Key>>) -> Result<(), PluginError> {
        let mut state = lock(&self.state);
        self.sync_components(&mut state)?;
        match slots {
            None => self.refresh_all(&mut state)?,
            Some(slots) => slots.iter().try_for_each(|key| self.catch_up(&mut state, key))?,
        }
        // A component that only a binding kept here, which is gone by now, goes as well.
        self.sync_components(&mut state)
    }

    fn refresh_all(&self, state: &mut State) -> Result<(), PluginError> {
        let records = self.store.bindings()?;
        let stored: Vec<Key> = records.iter().map(|record| (record.tenant.clone(), record.hook)).collect();
        let gone: Vec<Key> = state.bindings.keys().filter(|key| !stored.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.vacate(state, key));
        records.into_iter().for_each(|record| self.adopt(state, record));
        Ok(())
    }

    /// Knows a binding as it is stored, before it is changed.
    pub(super) fn catch_up(&self, state: &mut State, key: &Key) -> Result<(), PluginError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        match self.store.binding(key.0.as_ref(), key.1)? {
            Some(record) => {
                if digests(&record).any(|digest| state.library.get(digest).is_none()) {
                    self.sync_components(state)?;
                }
                self.adopt(state, record);
            }
            None => self.vacate(state, key),
        }
        Ok(())
    }

    /// The component that a reference means; another coordinator may have taken it in just now.
    pub(super) fn known(&self, state: &mut State, plugin: &Reference) -> Result<Option<Artifact>, PluginError> {
        let look = |state: &State| find(&state.library.list(), plugin, self.folder.as_ref()).cloned();
        // By name, the newest is meant, which may be one that is not known here yet.
        if self.store.is_shared() && (matches!(plugin, Reference::Name { .. }) || look(state).is_none()) {
            self.sync_components(state)?;
        }
        Ok(look(state))
    }

    /// Puts in force what another coordinator has stored.
    fn adopt(&self, state: &mut State, record: BindingRecord) {
        let key = (record.tenant.clone(), record.hook);
        if state.bindings.get(&key).is_some_and(|bound| *bound.record == record) {
            return;
        }
        let (primary, kept) = self.load(state, &record);
        self.swap(state, key.clone(), record, primary, EventKind::Activated);
        drop(kept);
        // This host's folder has been looked at already; only what changes in it from now on is followed.
        let record = state.bindings.get(&key).map(|bound| bound.record.clone());
        let filed = record.and_then(|record| self.filed(&state.library.list(), &record.current.reference));
        if let Some(bound) = state.bindings.get_mut(&key) {
            bound.not_followed = filed;
        }
    }

    /// What answers for a stored binding, and the programs of its earlier versions, for a rollback.
    fn load(&self, state: &State, record: &BindingRecord) -> (Result<Plan, String>, Vec<Arc<Program>>) {
        let primary = match self.program(state, record.current.digest) {
            Ok((program, artifact)) => Ok(plan(&program, &artifact, &record.current.configuration)),
            Err(error) => Err(format!("cannot be loaded: {error}")),
        };
        if let Err(reason) = &primary {
            let event = Event::new(EventKind::Refused, reason.clone());
            let event = event.of(record.current.digest, &*record.current.plugin);
            self.shared.events.emit(event.at(record.tenant.clone(), record.hook));
        }
        let earlier = record.previous.iter().filter_map(|version| self.program(state, version.digest).ok());
        (primary, earlier.map(|kept| kept.0).collect())
    }

    /// At a start, a file that came into the cluster before what is in force is not followed: another coordinator has a newer
    /// one, or has had it. (Alone, this host's folder is all there is, and the record says what was followed.)
    fn passed_over(&self, state: &State, record: &BindingRecord) -> Option<Digest> {
        let list = state.library.list();
        let filed = self.filed(&list, &record.current.reference).filter(|_| self.store.is_shared())?;
        let since = |digest| list.iter().find(|artifact| artifact.digest == digest).map(|found| found.staged_at_ms);
        (since(filed) <= since(record.current.digest)).then_some(filed)
    }

    /// Knows the components that the store knows, and no others.
    fn sync_components(&self, state: &mut State) -> Result<(), PluginError> {
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

    /// Copies the components that are not here; the newest, if there are more than may be.
    fn fetch(&self, state: &mut State, mut kept: Vec<Artifact>) -> Result<(), PluginError> {
        kept.sort_by_key(|artifact| std::cmp::Reverse(artifact.staged_at_ms));
        for artifact in kept.into_iter().take(limit::ARTIFACTS) {
            if state.library.get(artifact.digest).is_some() {
                continue;
            }
            // Removed since it was listed.
            let Some(bytes) = self.store.component(artifact.digest)? else { continue };
            if Digest::of(&bytes) != artifact.digest {
                let damaged = format!("plugin {} is damaged in the store; remove and upload it again", artifact.digest);
                return Err(StoreError::Damaged(damaged).into());
            }
            state.library.insert(artifact, &bytes).map_err(PluginError::Host)?;
        }
        Ok(())
    }
}

/// The components of a binding's versions.
fn digests(record: &BindingRecord) -> impl Iterator<Item = Digest> {
    record.previous.iter().chain([&record.current]).map(|version| version.digest)
}
