//! Changes of plugins and bindings, step by step. A change that fails at any step leaves the previous version in force.
//!
//! Each change has two parts. What may take long (compiling, probing, asking the store which components there are) is done first, while
//! nothing is held that another change needs. Then the slot's turn is taken, what is stored is compared with what the change began with,
//! and the new version is stored and swapped in.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::limit::PLUGIN_CONFIGURATION_BYTES;
use witan_kernel::name::TenantId;
use witan_kernel::port::{RecordText, Saved, Slot};
use witan_kernel::sync::lock;

use super::library::{Artifact, means};
use super::proposal::BindRequest;
use super::target::{Target, next_record, no_binding, no_earlier};
use super::{Binding, HostState, Inner, LiveBinding, compiler_wait};
use crate::binding::{BindingRecord, BindingVersion, Partitioning, Reference, SlotRecord};
use crate::digest::Digest;
use crate::error::PluginError;
use crate::event::{Event, EventKind};
use crate::history::{Author, Entry, What};
use crate::instance::Program;
use crate::limit;
use crate::metrics::Counters;
use crate::tenant::{ActiveBinding, LoadError, Plan};

impl Inner {
    /// A component, whoever owns it.
    pub(super) fn known(&self, digest: Digest) -> Option<Artifact> {
        lock(&self.state).library.get(digest).cloned()
    }

    /// A program that something else holds in memory.
    pub(super) fn loaded(&self, digest: Digest) -> Option<Arc<Program>> {
        lock(&self.programs).get(&digest)?.upgrade()
    }

    /// The program of a known component, from memory or disk.
    pub(super) fn program(&self, digest: Digest) -> Result<(Arc<Program>, Artifact), PluginError> {
        let unknown = || PluginError::NotFound(format!("plugin {digest} is not known; stage it again"));
        let artifact = self.known(digest).ok_or_else(unknown)?;
        if let Some(program) = self.loaded(digest) {
            return Ok((program, artifact));
        }
        let bytes = self.shelf.read(digest)?;
        let valid = crate::validate::validate(&bytes, &self.shared.limits).map_err(PluginError::refused)?;
        Ok((self.compile(digest, &bytes, &valid, compiler_wait())?.0, artifact))
    }

    /// Resolves the reference, probes the plugin, stores the binding, and swaps it in.
    pub(super) fn bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        let (tenant, hook, plugin) = (request.tenant.clone(), request.hook, request.plugin.to_string());
        let bound = self.try_bind(request);
        if let Err(error) = &bound
            && !error.is_busy()
        {
            let mut event = Event::new(EventKind::Refused, error.to_string()).at(tenant, hook);
            event.plugin = plugin;
            self.shared.events.emit(event);
        }
        bound
    }

    fn try_bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        let author = request.author.clone();
        let (slot, target) = self.target(request)?;
        if let Some(bound) = self.is_in_force(&slot, &target) {
            return Ok(bound);
        }
        self.activate(&slot, target, None, (What::Bound, &author))
    }

    /// What a binding that is asked for would be, with the binding of before as it is stored now.
    pub(super) fn target(&self, request: BindRequest) -> Result<(Slot, Target), PluginError> {
        if request.configuration.len() > PLUGIN_CONFIGURATION_BYTES {
            return Err(PluginError::Invalid(format!(
                "the configuration has {} bytes; at most {} are allowed",
                request.configuration.len(),
                PLUGIN_CONFIGURATION_BYTES
            )));
        }
        let artifact = self.resolve(request.tenant.as_ref(), &request.plugin)?.ok_or_else(|| {
            PluginError::NotFound(format!("no plugin {} is known; upload it or list those that are", request.plugin))
        })?;
        if artifact.hook != request.hook {
            return Err(PluginError::Invalid(format!(
                "{} is a {} and cannot be bound as a {}",
                artifact.plugin(),
                artifact.hook,
                request.hook
            )));
        }
        let slot = Slot { tenant: request.tenant, hook: request.hook };
        self.catch_up(&slot)?;
        let target = Target {
            digest: artifact.digest,
            reference: request.plugin.of_anybody(),
            configuration: request.configuration,
            on_fault: request.on_fault,
        };
        Ok((slot, target))
    }

    /// The binding, if it is what a change wants. Binding again retries what could not be loaded here.
    pub(super) fn is_in_force(&self, slot: &Slot, target: &Target) -> Option<Binding> {
        let state = lock(&self.state);
        let live = state.bindings.get(slot)?;
        (target.is(&live.record.current) && live.active.primary.is_ok()).then(|| live.view())
    }

    /// Puts a version in force in place of the current one; of `from`, if it is given, and otherwise not.
    fn activate(
        &self,
        slot: &Slot,
        target: Target,
        from: Option<&BindingRecord>,
        (what, author): (What, &Author),
    ) -> Result<Binding, PluginError> {
        let (plan, artifact) = self.probed(slot, &target)?;
        let (_turn, old) = self.turn(slot)?;
        let bound = old.as_ref().and_then(|old| old.bound.as_ref());
        if from.is_some_and(|from| bound != Some(from)) {
            return Err(PluginError::HostBusy("the binding was changed while the plugin was probed; try again".into()));
        }
        if let Some(bound) = self.is_in_force(slot, &target) {
            return Ok(bound);
        }
        self.has_room(old.as_deref())?;
        let followed = self.in_folder(&target.reference);
        let record = next_record(slot, bound, target, &artifact.plugin(), followed);
        let partitions = old.as_ref().map(|old| old.partitions.clone()).unwrap_or_default();
        let entry = Entry::new(what, &record.current, author);
        self.put_in_force(record, partitions, plan, EventKind::Activated, entry, None)
    }

    /// Checks that there may be another binding, if there was none.
    pub(super) fn has_room(&self, old: Option<&SlotRecord>) -> Result<(), PluginError> {
        if old.is_none() && lock(&self.state).bindings.len() >= limit::BINDINGS {
            return Err(PluginError::Invalid(format!("there are {} bindings already", limit::BINDINGS)));
        }
        Ok(())
    }

    /// The plan of a slot's target, after it has passed its probe.
    pub(super) fn probed(&self, slot: &Slot, target: &Target) -> Result<(Plan, Artifact), PluginError> {
        // First, since it may have to be compiled here.
        self.may_bind(slot, target.digest)?;
        let (program, artifact) = self.program(target.digest)?;
        let plan = plan(&program, &artifact, &target.configuration);
        self.probe(&plan, &artifact)?;
        Ok((plan, artifact))
    }

    pub(super) fn probe(&self, plan: &Plan, artifact: &Artifact) -> Result<(), PluginError> {
        let case = (artifact.owner.clone(), plan.digest, Digest::of(&plan.configuration));
        if lock(&self.state).probed.contains(&case) {
            return Ok(());
        }
        crate::probe::probe(plan, artifact.hook, artifact.deterministic, &[])
            .map_err(|error| PluginError::unprobed(artifact.plugin(), error))?;
        let mut state = lock(&self.state);
        // Bounded by starting over: probing a plugin once more does no harm.
        if state.probed.len() >= limit::ARTIFACTS {
            state.probed.clear();
        }
        state.probed.insert(case);
        Ok(())
    }

    /// The component in the watched folder that a reference by name means.
    pub(super) fn in_folder(&self, reference: &Reference) -> Option<Digest> {
        let folder = self.folder.as_ref()?;
        let artifacts = self.published.load().artifacts.clone();
        match reference {
            Reference::Digest(_) => None,
            // What is in the folder is the operator's.
            Reference::Name { .. } => folder.newest(|digest| {
                let is_it = |it: &Artifact| it.digest == digest && it.owner.is_none() && means(reference, it);
                artifacts.iter().any(is_it)
            }),
        }
    }

    /// Stores the record, then swaps it in: a restart finds the version that is in force. For a thread that has the slot's turn.
    pub(super) fn put_in_force(
        &self,
        record: BindingRecord,
        partitions: Vec<Partitioning>,
        plan: Plan,
        kind: EventKind,
        entry: Entry,
        not_followed: Option<Digest>,
    ) -> Result<Binding, PluginError> {
        let record = SlotRecord { partitions, ..SlotRecord::of(record) };
        self.save(&record, Some(&entry))?;
        let SlotRecord { bound, partitions, .. } = record;
        let bound = bound.ok_or_else(PluginError::keeps_changing)?;
        Ok(self.swap(bound, partitions, Ok(plan), kind, not_followed))
    }

    /// Stores what a slot has now, with an entry in its history.
    pub(super) fn save(&self, record: &SlotRecord, entry: Option<&Entry>) -> Result<(), PluginError> {
        let entry = entry.and_then(Entry::encode);
        let is_empty = record.bound.is_none() && record.partitions.is_empty();
        let text = (!is_empty).then(|| RecordText(record.encode()));
        // What is tried must be there as well; what is in force beside it was there already.
        let needed = record.candidate.as_ref().map(|candidate| &candidate.version).or(record.current());
        let puts_in_force = needed.map(|version| version.digest);
        Ok(self.store.save(&record.slot, Saved { record: text, puts_in_force, entry })?)
    }

    /// Swaps a version in: it answers from the next request on. For a thread that has the slot's turn.
    pub(super) fn swap(
        &self,
        record: BindingRecord,
        partitions: Vec<Partitioning>,
        primary: Result<Plan, LoadError>,
        kind: EventKind,
        not_followed: Option<Digest>,
    ) -> Binding {
        let slot = record.slot();
        let (shown, old) = {
            let mut state = lock(&self.state);
            let live = LiveBinding { not_followed, ..self.live_binding(&state, record, primary) };
            let shown = live.view();
            let old = state.bindings.insert(slot.clone(), live);
            let partitions = self.set_partitions(&mut state, &slot, partitions);
            self.publish(&state);
            let old = (old, partitions);
            (shown, old)
        };
        self.shared.totals[slot.hook as usize].swapped();
        let current = &shown.record.current;
        let detail = format!("version {} of the binding, {}", current.number, current.digest.short());
        self.shared
            .events
            .emit(Event::new(kind, detail).of(current.digest, &*current.plugin).at(slot.tenant, slot.hook));
        drop(old);
        shown
    }

    /// A binding with its programs, which are taken from the version before it or from other bindings.
    pub(super) fn live_binding(
        &self,
        state: &HostState,
        record: BindingRecord,
        primary: Result<Plan, LoadError>,
    ) -> LiveBinding {
        let slot = record.slot();
        let old = state.bindings.get(&slot);
        let mut programs: BTreeMap<Digest, Arc<Program>> = BTreeMap::new();
        for version in &record.previous {
            let kept = old.and_then(|old| old.programs.get(&version.digest).cloned());
            let kept = kept.or_else(|| self.loaded(version.digest));
            programs.extend(kept.map(|program| (version.digest, program)));
        }
        if let Ok(plan) = &primary {
            programs.insert(plan.digest, plan.program.clone());
        }
        let current = &record.current;
        let differs = |v: &&BindingVersion| v.digest != current.digest || v.configuration != current.configuration;
        let last = record.previous.last().filter(differs);
        let fallback = last.and_then(|version| {
            let program = programs.get(&version.digest)?;
            let artifact = state.library.get(version.digest)?;
            Some(plan(program, artifact, &version.configuration))
        });
        let is_late = matches!(primary, Err(LoadError(PluginError::Late)));
        let active = ActiveBinding {
            tenant: record.tenant.clone(),
            hook: record.hook,
            version: record.current.clone(),
            primary,
            fallback,
            counters: Arc::new(Counters::logging_to(self.shared.logs.of(&slot))),
            shared: self.shared.clone(),
            // It is replaced by itself once it is loaded.
            is_quiet: is_late,
        };
        LiveBinding {
            record: Arc::new(record),
            active: Arc::new(active),
            candidate: None,
            programs,
            not_followed: None,
        }
    }

    /// Puts the previous version in force again, with the configuration that it had.
    pub(super) fn rollback(
        &self,
        tenant: Option<TenantId>,
        hook: Hook,
        author: &Author,
    ) -> Result<Binding, PluginError> {
        let slot = Slot { tenant, hook };
        let mut program = None;
        for _ in 0..limit::CHANGE_ATTEMPTS {
            let turn = self.turns.take(&slot);
            let stored = self.stored(&slot)?;
            let (bound, partitions) = stored.map(|it| (it.bound, it.partitions)).unwrap_or_default();
            let Some(mut record) = bound else {
                self.drop_binding(&slot, partitions);
                return Err(no_binding(&slot));
            };
            let Some(version) = record.previous.pop() else {
                return Err(no_earlier(hook));
            };
            let Some(plan) = self.held(&slot, &version) else {
                // Another coordinator put in force what this one has not loaded yet, or could not load.
                drop(turn);
                self.learn(std::iter::once(version.digest))?;
                program = Some(self.program(version.digest)?);
                continue;
            };
            record.current = BindingVersion { number: record.current.number + 1, ..version };
            let in_folder = self.in_folder(&record.current.reference);
            let entry = Entry::new(What::RolledBack, &record.current, author);
            return self.put_in_force(record, partitions, plan, EventKind::RolledBack, entry, in_folder);
        }
        drop(program);
        Err(PluginError::keeps_changing())
    }

    /// The plan of a version whose program is in memory.
    pub(super) fn held(&self, slot: &Slot, version: &BindingVersion) -> Option<Plan> {
        let state = lock(&self.state);
        let artifact = state.library.get(version.digest)?;
        let kept = state.bindings.get(slot).and_then(|live| live.programs.get(&version.digest)).cloned();
        let program = kept.or_else(|| self.loaded(version.digest))?;
        Some(plan(&program, artifact, &version.configuration))
    }

    pub(super) fn unbind(&self, tenant: Option<TenantId>, hook: Hook, author: &Author) -> Result<(), PluginError> {
        let slot = Slot { tenant, hook };
        let _turn = self.turns.take(&slot);
        let (bound, partitions) = self.stored(&slot)?.map(|it| (it.bound, it.partitions)).unwrap_or_default();
        if let Some(bound) = &bound {
            // What rows are placed by stays on record.
            let (slot, partitions) = (slot.clone(), partitions.clone());
            let left = SlotRecord { slot, bound: None, partitions, candidate: None };
            self.save(&left, Some(&unbound(&bound.current, author)))?;
        }
        self.drop_binding(&slot, partitions);
        if bound.is_some() { Ok(()) } else { Err(no_binding(&slot)) }
    }

    /// Drops a binding: the default binding, or the native rule, applies from the next request on. For a thread that has the slot's turn.
    pub(super) fn drop_binding(&self, slot: &Slot, partitions: Vec<Partitioning>) {
        let (live, _partitions) = {
            let mut state = lock(&self.state);
            let (live, before) = (state.bindings.remove(slot), self.set_partitions(&mut state, slot, partitions));
            self.publish(&state);
            (live, before)
        };
        let Some(live) = live else { return };
        let current = &live.record.current;
        let event = Event::new(EventKind::Unbound, "").of(current.digest, &*current.plugin);
        self.shared.events.emit(event.at(slot.tenant.clone(), slot.hook));
    }

    /// Lets bindings by name follow the watched folder. Routing hooks do not follow, since another one would move keys, which is a change
    /// of placement: an event says what to run.
    pub(crate) fn follow(&self) {
        let slots: Vec<Slot> = lock(&self.state).bindings.keys().cloned().collect();
        for slot in slots {
            let Some((next, record)) = self.to_follow(&slot) else { continue };
            if slot.hook == Hook::RoutingHook {
                self.announce(&slot, next, &record.current);
                self.does_not_follow(&slot, next);
                continue;
            }
            // Another coordinator with the same file in its folder may have been faster.
            if self.catch_up(&slot).is_ok()
                && let Some((still, from)) = self.to_follow(&slot)
                && still == next
            {
                self.follow_to(&slot, next, &from);
            }
        }
    }

    /// The component in the watched folder that a binding by name has not used yet, and the record of the binding.
    fn to_follow(&self, slot: &Slot) -> Option<(Digest, Arc<BindingRecord>)> {
        let (record, not_followed) = {
            let state = lock(&self.state);
            let live = state.bindings.get(slot)?;
            (live.record.clone(), live.not_followed)
        };
        let next = self.in_folder(&record.current.reference)?;
        let is_new = record.followed != Some(next) && record.current.digest != next && not_followed != Some(next);
        is_new.then_some((next, record))
    }

    fn follow_to(&self, slot: &Slot, next: Digest, from: &BindingRecord) {
        let current = from.current.clone();
        let target = Target {
            digest: next,
            reference: current.reference,
            configuration: current.configuration,
            on_fault: current.on_fault,
        };
        let author = self.author("the plugin folder has another file of this name");
        let Err(error) = self.activate(slot, target, Some(from), (What::Followed, &author)) else { return };
        if error.is_transient() {
            let plugin = &*current.plugin;
            tracing::warn!(plugin, %error, "a file that a binding follows cannot be put in force yet; it will be retried");
            return;
        }
        let detail = format!("{} stays in force: {error}", current.plugin);
        let event = Event::new(EventKind::Refused, detail).of(next, &*current.plugin);
        self.shared.events.emit(event.at(slot.tenant.clone(), slot.hook));
        self.does_not_follow(slot, next);
    }

    fn does_not_follow(&self, slot: &Slot, next: Digest) {
        if let Some(live) = lock(&self.state).bindings.get_mut(slot) {
            live.not_followed = Some(next);
        }
    }
}

impl HostState {
    /// Whether a version of a binding needs this component.
    pub(super) fn refers_to(&self, digest: Digest) -> bool {
        self.needs_of(None, digest)
    }

    /// Whether a version of a binding needs this component of this owner's: a tenant's are for its own bindings, the operator's for all.
    pub(super) fn needs_of(&self, owner: Option<&TenantId>, digest: Digest) -> bool {
        let is_for = |slot: &Slot| owner.is_none() || slot.tenant.as_ref() == owner;
        let live = || self.bindings.iter().filter(|(slot, _)| is_for(slot)).map(|(_, live)| live);
        let tried = live().filter_map(|live| Some(&live.candidate.as_ref()?.record.version));
        let bound = live().map(|live| &live.record);
        let placing = self.partitions.iter().filter(|(slot, _)| is_for(slot)).flat_map(|(_, of)| &of.record);
        let needed = bound.flat_map(|record| record.previous.iter().chain([&record.current]));
        needed.chain(tried).chain(placing.filter_map(|it| it.by.as_ref())).any(|version| version.digest == digest)
    }
}

/// The entry of a history that says that nothing is bound any longer.
pub(super) fn unbound(before: &BindingVersion, author: &Author) -> Entry {
    Entry::new(What::Unbound, before, author).outcome("nothing is bound")
}

pub(super) fn plan(program: &Arc<Program>, artifact: &Artifact, configuration: &Bytes) -> Plan {
    Plan {
        digest: artifact.digest,
        program: program.clone(),
        configuration: configuration.clone(),
        by: format!("{}@{}", artifact.name, artifact.digest.short()).into(),
        deterministic: artifact.deterministic,
    }
}
