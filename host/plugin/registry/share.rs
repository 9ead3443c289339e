//! Sharing with other coordinators: adopting what they have changed. The store is authoritative; what is in memory and on this host's
//! disk is a copy, so that questions, restarts and rollbacks need not wait for the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use witan_kernel::name::TenantId;
use witan_kernel::port::{Slot, StoreError};
use witan_kernel::sync::lock;

use super::Inner;
use super::change::plan;
use super::library::{Artifact, find};
use crate::binding::{self, BindingRecord, Reference, SlotRecord};
use crate::digest::Digest;
use crate::error::PluginError;
use crate::event::{Event, EventKind};
use crate::instance::Program;
use crate::limit;
use crate::tenant::{LoadError, Plan};
use crate::turn::Turn;

impl Inner {
    /// At the start: loads the components of the store. A component that is only on this host's disk dates from a version that did not
    /// store components, and is stored if it is bound.
    pub(super) fn learn_components(&self, on_disk: Vec<Artifact>) -> Result<(), PluginError> {
        let bound = binding::stored(self.store.as_ref())?;
        let needs = |digest| bound.iter().any(|record| record.digests().any(|needed| needed == digest));
        let _stocking = lock(&self.stocking);
        let mut kept = self.store.components()?;
        let is_there: BTreeSet<Digest> = on_disk.iter().map(|artifact| artifact.digest).collect();
        for artifact in on_disk {
            if kept.iter().any(|kept| kept.digest == artifact.digest) {
                continue;
            }
            match self.shelf.read(artifact.digest) {
                Ok(bytes) if needs(artifact.digest) => {
                    self.store.keep(&artifact, &bytes)?;
                    kept.push(artifact);
                }
                Ok(_) | Err(_) => {
                    self.shelf.remove(artifact.digest);
                    self.compiler.forget(artifact.digest);
                }
            }
        }
        self.fetch(kept, &|digest| is_there.contains(&digest))
    }

    /// After the first scan of the folder: finds what bindings must not follow, because another coordinator has, or had, a newer file.
    pub(crate) fn find_superseded(&self) {
        let records: Vec<_> = lock(&self.state).bindings.values().map(|live| live.record.clone()).collect();
        for record in records {
            let Some(superseded) = self.superseded(&record) else { continue };
            if let Some(live) = lock(&self.state).bindings.get_mut(&record.slot()) {
                live.not_followed = Some(superseded);
            }
        }
    }

    /// Adopts what other coordinators have changed.
    pub(super) fn refresh(&self, slots: Option<Vec<Slot>>) -> Result<(), PluginError> {
        self.sync_components()?;
        match slots {
            None => self.refresh_all()?,
            Some(slots) => slots.iter().try_for_each(|slot| self.catch_up(slot))?,
        }
        // Again: a removed component may have been kept only by a binding that is dropped by now.
        self.sync_components()
    }

    fn refresh_all(&self) -> Result<(), PluginError> {
        let records = binding::stored(self.store.as_ref())?;
        let mut slots: Vec<Slot> = {
            let state = lock(&self.state);
            state.bindings.keys().chain(state.partitions.keys()).cloned().collect()
        };
        slots.retain(|slot| !records.iter().any(|record| record.slot == *slot));
        let changed = records.iter().filter(|record| !self.is_live(&record.slot, Some(record)));
        slots.extend(changed.map(|record| record.slot.clone()));
        slots.iter().try_for_each(|slot| self.adopt(slot))
    }

    /// Adopts the stored version of a binding, before it is changed.
    pub(super) fn catch_up(&self, slot: &Slot) -> Result<(), PluginError> {
        if self.store.is_shared() { self.adopt(slot) } else { Ok(()) }
    }

    /// Puts in force what is stored for a slot, which another coordinator may have changed. Its programs are loaded while the slot is
    /// free for others, so that a rollback need not wait for a compilation.
    fn adopt(&self, slot: &Slot) -> Result<(), PluginError> {
        self.make_ready(slot)?;
        for _ in 0..limit::CHANGE_ATTEMPTS {
            let turn = self.turns.take(slot);
            let stored = self.stored(slot)?;
            if self.is_live(slot, stored.as_ref()) {
                drop(turn);
                return self.hold_earlier(slot);
            }
            let Some(record) = stored else {
                self.drop_binding(slot, Vec::new());
                return Ok(());
            };
            drop(turn);
            self.learn(record.digests())?;
            let (primary, kept) = match self.load(&record) {
                // Too busy to load it: what is in force stays so until the next attempt.
                (Some(Err(LoadError(busy))), _) if busy.is_busy() => return Err(busy),
                loaded => loaded,
            };
            let _turn = self.turns.take(slot);
            if self.stored(slot)?.as_ref() == Some(&record) {
                self.take_over(record, primary);
                drop(kept);
                return Ok(());
            }
        }
        Err(PluginError::keeps_changing())
    }

    /// Puts in force what is stored for a slot. For a thread that has the slot's turn.
    pub(super) fn take_over(&self, record: SlotRecord, primary: Option<Result<Plan, LoadError>>) {
        let SlotRecord { slot, bound, partitions, candidate } = record;
        match (bound, primary) {
            (Some(bound), _) if self.is_bound(&slot, &bound) => self.change_partitions(&slot, partitions),
            (Some(bound), Some(primary)) => {
                // The current content of this host's folder is older than the change; only later changes in the folder are followed.
                let in_folder = self.in_folder(&bound.current.reference);
                self.swap(bound, partitions, primary, EventKind::Activated, in_folder);
            }
            (Some(_) | None, _) => self.drop_binding(&slot, partitions),
        }
        self.change_candidate(&slot, candidate);
    }

    /// Whether a binding is the one in force here.
    fn is_bound(&self, slot: &Slot, bound: &BindingRecord) -> bool {
        lock(&self.state).bindings.get(slot).is_some_and(|live| *live.record == *bound && live.active.primary.is_ok())
    }

    /// Loads the programs of earlier versions that are not in memory: a rollback did without them.
    pub(super) fn hold_earlier(&self, slot: &Slot) -> Result<(), PluginError> {
        let missing: Vec<Digest> = {
            let state = lock(&self.state);
            let live = state.bindings.get(slot);
            let needed = live.into_iter().flat_map(|live| digests(&live.record).map(move |digest| (live, digest)));
            needed.filter(|(live, digest)| !live.programs.contains_key(digest)).map(|(_, digest)| digest).collect()
        };
        self.learn(missing.iter().copied())?;
        for digest in missing {
            let Ok((program, _)) = self.program(digest) else { continue };
            if let Some(live) = lock(&self.state).bindings.get_mut(slot)
                && digests(&live.record).any(|needed| needed == digest)
            {
                live.programs.insert(digest, program);
            }
        }
        self.hold_partitions(slot)
    }

    /// What is stored for a slot. For a thread that has the slot's turn.
    pub(super) fn stored(&self, slot: &Slot) -> Result<Option<SlotRecord>, PluginError> {
        let stored = self.store.binding(slot)?;
        Ok(stored.map(|stored| SlotRecord::decode(&stored.record)).transpose()?)
    }

    fn is_live(&self, slot: &Slot, record: Option<&SlotRecord>) -> bool {
        let state = lock(&self.state);
        let bound = state.bindings.get(slot).map(|live| &*live.record);
        let partitions = state.partitions.get(slot).map_or(&[][..], |of| &of.record);
        let tried = state.bindings.get(slot).and_then(|live| Some(&live.candidate.as_ref()?.record));
        let stored = record.and_then(|record| record.bound.as_ref());
        let parts = record.map_or(&[][..], |record| &record.partitions);
        bound == stored && partitions == parts && tried == record.and_then(|record| record.candidate.as_ref())
    }

    /// The slot's turn, and its record, when what is stored is what is in force here.
    pub(super) fn turn(&self, slot: &Slot) -> Result<(Turn<'_, Slot>, Option<Arc<SlotRecord>>), PluginError> {
        for _ in 0..limit::CHANGE_ATTEMPTS {
            let turn = self.turns.take(slot);
            let stored = self.stored(slot)?;
            if self.is_live(slot, stored.as_ref()) {
                return Ok((turn, stored.map(Arc::new)));
            }
            drop(turn);
            self.adopt(slot)?;
        }
        Err(PluginError::keeps_changing())
    }

    /// Learns of components that another coordinator has staged, if one of these is not known.
    pub(super) fn learn(&self, mut needed: impl Iterator<Item = Digest>) -> Result<(), PluginError> {
        let unknown = needed.any(|digest| lock(&self.state).library.get(digest).is_none());
        if unknown { self.sync_components() } else { Ok(()) }
    }

    /// The component that a reference of a tenant (`None`: for all tenants) means, even if another coordinator has only just staged it.
    pub(super) fn resolve(
        &self,
        tenant: Option<&TenantId>,
        plugin: &Reference,
    ) -> Result<Option<Artifact>, PluginError> {
        let find = || find(&self.published.load().artifacts, tenant, plugin, self.folder.as_ref()).cloned();
        // A name means the newest component, which may not be known here yet.
        if self.store.is_shared() && (matches!(plugin, Reference::Name { .. }) || find().is_none()) {
            self.sync_components()?;
        }
        Ok(find())
    }

    /// The plan of a slot's binding, if there is one, and the programs of everything else that it needs, for a rollback and for its
    /// partitions.
    pub(super) fn load(&self, record: &SlotRecord) -> (Option<Result<Plan, LoadError>>, Vec<Arc<Program>>) {
        let primary = record.bound.as_ref().map(|bound| self.load_current(bound));
        (primary, record.digests().filter_map(|digest| self.program(digest).ok()).map(|kept| kept.0).collect())
    }

    pub(super) fn load_current(&self, record: &BindingRecord) -> Result<Plan, LoadError> {
        let primary = match self.program(record.current.digest) {
            Ok((program, artifact)) => Ok(plan(&program, &artifact, &record.current.configuration)),
            Err(error) => Err(LoadError(error)),
        };
        if let Err(error) = &primary
            && !error.0.is_busy()
        {
            let event = Event::new(EventKind::Refused, error.to_string());
            let event = event.of(record.current.digest, &*record.current.plugin);
            self.shared.events.emit(event.at(record.tenant.clone(), record.hook));
        }
        primary
    }

    /// The component in the folder that a binding must not follow at the start, because it was staged in the cluster before the one in
    /// force: another coordinator has, or had, a newer file. (A single coordinator has only its own folder, and the record says what
    /// was followed.)
    fn superseded(&self, record: &BindingRecord) -> Option<Digest> {
        let in_folder = self.in_folder(&record.current.reference).filter(|_| self.store.is_shared())?;
        let list = self.published.load().artifacts.clone();
        let staged_at = |digest| list.iter().find(|artifact| artifact.digest == digest).map(|it| it.staged_at_ms);
        (staged_at(in_folder) <= staged_at(record.current.digest)).then_some(in_folder)
    }

    /// Makes the known components those of the store.
    pub(super) fn sync_components(&self) -> Result<(), PluginError> {
        if !self.store.is_shared() {
            return Ok(());
        }
        let _stocking = lock(&self.stocking);
        let kept = self.store.components()?;
        let gone: Vec<Artifact> = {
            let owned: BTreeSet<_> = kept.iter().map(|artifact| (artifact.digest, &artifact.owner)).collect();
            let stored: BTreeSet<_> = kept.iter().map(|artifact| artifact.digest).collect();
            let state = lock(&self.state);
            let list = state.library.list();
            let gone = list.iter().filter(|local| !owned.contains(&(local.digest, &local.owner)));
            // What a binding refers to stays, unless it is somebody else's now.
            gone.filter(|it| stored.contains(&it.digest) || !state.refers_to(it.digest)).cloned().collect()
        };
        // If the store is full, another coordinator may have evicted what only this one's folder has. Otherwise somebody has removed it.
        let of_operator = kept.iter().filter(|artifact| artifact.owner.is_none()).count();
        let folder = self.folder.as_ref().filter(|_| of_operator >= limit::ARTIFACTS);
        // First what has come: bytes that have another owner now are there already.
        self.fetch(kept, &|_| false)?;
        for Artifact { digest, owner, .. } in gone {
            self.forget(owner.as_ref(), digest);
            if let Some(folder) = folder {
                folder.stage_again(digest);
            }
        }
        Ok(())
    }

    /// Copies missing components from the store: if there are more than [`limit::ARTIFACTS`] of the operator, those that bindings refer to
    /// and the newest. `on_disk`: what is on the shelf without being known. For a thread that is stocking.
    fn fetch(&self, kept: Vec<Artifact>, on_disk: &dyn Fn(Digest) -> bool) -> Result<(), PluginError> {
        let (mut kept, of_tenants): (Vec<_>, Vec<_>) = kept.into_iter().partition(|artifact| artifact.owner.is_none());
        if kept.len() > limit::ARTIFACTS {
            let bound = binding::stored(self.store.as_ref())?;
            let needed = |digest| bound.iter().any(|record| record.digests().any(|of_slot| of_slot == digest));
            kept.sort_by_cached_key(|artifact| std::cmp::Reverse((needed(artifact.digest), artifact.staged_at_ms)));
        }
        for artifact in kept.into_iter().take(limit::ARTIFACTS).chain(of_tenants) {
            let is_there = {
                let state = lock(&self.state);
                if state.library.of(artifact.owner.as_ref(), artifact.digest) == Some(&artifact) {
                    continue;
                }
                state.library.get(artifact.digest).is_some() || on_disk(artifact.digest)
            };
            if is_there {
                lock(&self.state).library.insert(artifact);
                continue;
            }
            // It may have been removed since it was listed.
            let Some(bytes) = self.store.component(artifact.digest)? else { continue };
            if Digest::of(&bytes) != artifact.digest {
                let damaged = format!("plugin {} is damaged in the store; remove and upload it again", artifact.digest);
                return Err(StoreError::Damaged(damaged).into());
            }
            self.shelf.write(&artifact, &bytes)?;
            lock(&self.state).library.insert(artifact);
        }
        self.publish(&lock(&self.state));
        Ok(())
    }
}

/// The components of all versions of a binding.
fn digests(record: &BindingRecord) -> impl Iterator<Item = Digest> {
    record.previous.iter().chain([&record.current]).map(|version| version.digest)
}
