//! Changes of plugins and bindings, step by step. A change that fails at any step leaves the previous version in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::limit::PLUGIN_CONFIGURATION_BYTES;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Slot, StoreError};
use witan_kernel::sync::lock;

use super::library::{Artifact, Source};
use super::{BindRequest, Binding, HostState, Inner, LiveBinding, view};
use crate::binding::{BindingRecord, BindingVersion, OnFault, Reference};
use crate::describe::describe;
use crate::digest::Digest;
use crate::error::{HostError, PluginError, Why};
use crate::event::{Event, EventKind};
use crate::instance::Program;
use crate::limit;
use crate::metrics::Counters;
use crate::tenant::{ActiveBinding, LoadError, Plan};

impl Inner {
    /// Validates a component, compiles it, has it describe itself, and keeps it.
    pub(crate) fn stage(&self, bytes: &[u8], source: Source) -> Result<Artifact, PluginError> {
        let digest = Digest::of(bytes);
        if let Some(known) = lock(&self.state).library.get(digest) {
            return Ok(known.clone());
        }
        let from = match &source {
            Source::Upload => "an upload".to_owned(),
            Source::File(name) => name.clone(),
        };
        let emit = |kind, detail: String| self.shared.events.emit(Event::new(kind, detail).of(digest, &*from));
        emit(EventKind::Staged, format!("{} bytes from {from}", bytes.len()));
        let staged = self.stage_new(digest, bytes, source, &emit);
        if let Err(error) = &staged {
            emit(EventKind::Refused, format!("{from} {error}"));
        }
        staged
    }

    fn stage_new(
        &self,
        digest: Digest,
        bytes: &[u8],
        source: Source,
        emit: &dyn Fn(EventKind, String),
    ) -> Result<Artifact, PluginError> {
        let hook = crate::validate::validate(bytes, &self.shared.limits).map_err(PluginError::refused)?;
        let (program, compiled) = self.compile(digest, bytes, hook)?;
        if compiled {
            emit(EventKind::Compiled, format!("for {hook}"));
        }
        let manifest = describe(&program, hook).map_err(PluginError::refused)?;
        let mut state = lock(&self.state);
        self.make_room(&mut state)?;
        let artifact = state.library.artifact(bytes, hook, manifest, source);
        self.store.keep(&artifact, &Bytes::copy_from_slice(bytes))?;
        state.library.insert(artifact.clone(), bytes)?;
        self.publish(&state);
        drop(state);
        let ready = Event::new(EventKind::Ready, format!("for {hook}")).of(digest, artifact.plugin());
        self.shared.events.emit(ready);
        Ok(artifact)
    }

    fn make_room(&self, state: &mut HostState) -> Result<(), PluginError> {
        if let Some(digest) = state.library.to_evict(|digest| state.refers_to(digest)) {
            self.store.forget(digest)?;
            self.forget(state, digest);
        }
        if state.library.is_full() {
            return Err(HostError::Full.into());
        }
        Ok(())
    }

    pub(super) fn forget(&self, state: &mut HostState, digest: Digest) -> Option<Artifact> {
        let artifact = state.library.remove(digest)?;
        self.compiler.forget(digest);
        lock(&self.programs).remove(&digest);
        let event = Event::new(EventKind::Removed, "").of(digest, artifact.plugin());
        self.shared.events.emit(event);
        Some(artifact)
    }

    /// The program of a component, shared by all bindings that run it. The flag is true when it was compiled.
    fn compile(&self, digest: Digest, bytes: &[u8], hook: Hook) -> Result<(Arc<Program>, bool), PluginError> {
        if let Some(program) = lock(&self.programs).get(&digest).and_then(|program| program.upgrade()) {
            return Ok((program, false));
        }
        let (component, compiled) =
            self.compiler.component(&self.engine, digest, bytes).map_err(PluginError::refused)?;
        let budget = self.shared.limits.budget(hook).clone();
        let program = Program::link(&self.engine, &component, hook, self.shared.ticks.clone(), budget)
            .map_err(PluginError::refused)?;
        let program = Arc::new(program);
        let mut programs = lock(&self.programs);
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(digest, Arc::downgrade(&program));
        Ok((program, compiled))
    }

    /// The program of a known component, from memory or disk.
    pub(super) fn program(&self, state: &HostState, digest: Digest) -> Result<(Arc<Program>, Artifact), PluginError> {
        let unknown = || PluginError::NotFound(format!("plugin {digest} is not known; stage it again"));
        let artifact = state.library.get(digest).ok_or_else(unknown)?.clone();
        if let Some(program) = lock(&self.programs).get(&digest).and_then(|program| program.upgrade()) {
            return Ok((program, artifact));
        }
        let bytes = state.library.read(digest)?;
        let hook = crate::validate::validate(&bytes, &self.shared.limits).map_err(PluginError::refused)?;
        Ok((self.compile(digest, &bytes, hook)?.0, artifact))
    }

    /// Resolves the reference, probes the plugin, stores the binding, and swaps it in.
    pub(super) fn bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        let (tenant, hook, plugin) = (request.tenant.clone(), request.hook, request.plugin.to_string());
        let bound = self.try_bind(request);
        if let Err(error) = &bound {
            let mut event = Event::new(EventKind::Refused, error.to_string()).at(tenant, hook);
            event.plugin = plugin;
            self.shared.events.emit(event);
        }
        bound
    }

    fn try_bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        if request.configuration.len() > PLUGIN_CONFIGURATION_BYTES {
            return Err(PluginError::Invalid(format!(
                "the configuration has {} bytes; at most {} are allowed",
                request.configuration.len(),
                PLUGIN_CONFIGURATION_BYTES
            )));
        }
        let mut state = lock(&self.state);
        let artifact = self.resolve(&mut state, &request.plugin)?.ok_or_else(|| {
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
        self.catch_up(&mut state, &slot)?;
        let target = Target {
            digest: artifact.digest,
            reference: request.plugin,
            configuration: request.configuration,
            on_fault: request.on_fault,
        };
        // Binding again retries what could not be loaded here.
        let as_wanted = |live: &&LiveBinding| target.is(&live.record.current) && live.active.primary.is_ok();
        if let Some(live) = state.bindings.get(&slot).filter(as_wanted) {
            return Ok(view(&live.record, &live.active));
        }
        if !state.bindings.contains_key(&slot) && state.bindings.len() >= limit::BINDINGS {
            return Err(PluginError::Invalid(format!("there are {} bindings already", limit::BINDINGS)));
        }
        self.activate(&mut state, slot, target)
    }

    /// Puts a version in force in place of the current one.
    fn activate(&self, state: &mut HostState, slot: Slot, target: Target) -> Result<Binding, PluginError> {
        let (program, artifact) = self.program(state, target.digest)?;
        let plan = plan(&program, &artifact, &target.configuration);
        self.probe(state, &plan, &artifact)?;
        let old = state.bindings.get(&slot).map(|live| live.record.clone());
        let followed = self.in_folder(&state.library.list(), &target.reference);
        let version = BindingVersion {
            number: old.as_ref().map_or(1, |old| old.current.number + 1),
            digest: target.digest,
            reference: target.reference,
            plugin: artifact.plugin(),
            configuration: target.configuration,
            on_fault: target.on_fault,
        };
        let mut previous = old.map(|old| old.previous.iter().cloned().chain([old.current.clone()]).collect::<Vec<_>>());
        if let Some(previous) = &mut previous {
            previous.drain(..previous.len().saturating_sub(limit::HISTORY));
        }
        let previous = previous.unwrap_or_default();
        let record =
            BindingRecord { tenant: slot.tenant.clone(), hook: slot.hook, current: version, previous, followed };
        self.put_in_force(state, slot, record, Ok(plan), EventKind::Activated)
    }

    fn probe(&self, state: &mut HostState, plan: &Plan, artifact: &Artifact) -> Result<(), PluginError> {
        let case = (plan.digest, Digest::of(&plan.configuration));
        if state.probed.contains(&case) {
            return Ok(());
        }
        crate::probe::probe(plan, artifact.hook, artifact.deterministic)
            .map_err(|error| PluginError::refused(Why::Probe { plugin: artifact.plugin(), error }))?;
        // Bounded by starting over: probing a plugin once more does no harm.
        if state.probed.len() >= limit::ARTIFACTS {
            state.probed.clear();
        }
        state.probed.insert(case);
        Ok(())
    }

    /// The component in the watched folder that a reference by name means.
    pub(super) fn in_folder(&self, artifacts: &[Artifact], reference: &Reference) -> Option<Digest> {
        let folder = self.folder.as_ref()?;
        match reference {
            Reference::Digest(_) => None,
            Reference::Name { name, version } => folder.newest(|digest| {
                let fits = |a: &Artifact| a.name == *name && version.as_ref().is_none_or(|v| a.version == *v);
                artifacts.iter().any(|artifact| artifact.digest == digest && fits(artifact))
            }),
        }
    }

    /// Stores the record, then swaps it in: a restart finds the version that is in force.
    fn put_in_force(
        &self,
        state: &mut HostState,
        slot: Slot,
        record: BindingRecord,
        primary: Result<Plan, LoadError>,
        kind: EventKind,
    ) -> Result<Binding, PluginError> {
        self.store.save(&record.slot(), record.encode(), record.current.digest)?;
        Ok(self.swap(state, slot, record, primary, kind))
    }

    /// Swaps a version in: it answers from the next request on.
    pub(super) fn swap(
        &self,
        state: &mut HostState,
        slot: Slot,
        record: BindingRecord,
        primary: Result<Plan, LoadError>,
        kind: EventKind,
    ) -> Binding {
        let live = self.live_binding(state, record, primary);
        let shown = view(&live.record, &live.active);
        let old = state.bindings.insert(slot.clone(), live);
        self.publish(state);
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
            let kept = kept.or_else(|| lock(&self.programs).get(&version.digest)?.upgrade());
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
        let active = ActiveBinding {
            tenant: record.tenant.clone(),
            hook: record.hook,
            version: record.current.clone(),
            primary,
            fallback,
            counters: Arc::new(Counters::default()),
            shared: self.shared.clone(),
        };
        LiveBinding { record: Arc::new(record), active: Arc::new(active), programs, not_followed: None }
    }

    /// Puts the previous version in force again, with the configuration that it had.
    pub(super) fn rollback(&self, tenant: Option<TenantId>, hook: Hook) -> Result<Binding, PluginError> {
        let mut state = lock(&self.state);
        let slot = Slot { tenant, hook };
        self.catch_up(&mut state, &slot)?;
        let live = state.bindings.get(&slot).ok_or_else(|| no_binding(&slot))?;
        let mut record = BindingRecord::clone(&live.record);
        let Some(version) = record.previous.pop() else {
            return Err(PluginError::Invalid(format!("the {hook} binding has no earlier version; unbind it instead")));
        };
        let (program, artifact) = self.program(&state, version.digest)?;
        let plan = plan(&program, &artifact, &version.configuration);
        record.current = BindingVersion { number: record.current.number + 1, ..version };
        self.put_in_force(&mut state, slot, record, Ok(plan), EventKind::RolledBack)
    }

    pub(super) fn unbind(&self, tenant: Option<TenantId>, hook: Hook) -> Result<(), PluginError> {
        let mut state = lock(&self.state);
        let slot = Slot { tenant, hook };
        self.catch_up(&mut state, &slot)?;
        if !state.bindings.contains_key(&slot) {
            return Err(no_binding(&slot));
        }
        self.store.remove(&slot)?;
        self.drop_binding(&mut state, &slot);
        Ok(())
    }

    /// Drops a binding: the default binding, or the native rule, applies from the next request on.
    pub(super) fn drop_binding(&self, state: &mut HostState, slot: &Slot) {
        let Some(live) = state.bindings.remove(slot) else { return };
        self.publish(state);
        let current = &live.record.current;
        let event = Event::new(EventKind::Unbound, "").of(current.digest, &*current.plugin);
        self.shared.events.emit(event.at(slot.tenant.clone(), slot.hook));
    }

    pub(super) fn remove(&self, plugin: &Reference) -> Result<Artifact, PluginError> {
        let mut state = lock(&self.state);
        let not_found = || PluginError::NotFound(format!("no plugin {plugin} is known"));
        let in_use =
            || PluginError::InUse(format!("plugin {plugin} is bound, or kept for a rollback; unbind it first"));
        let digest = self.resolve(&mut state, plugin)?.ok_or_else(not_found)?.digest;
        if state.refers_to(digest) {
            return Err(in_use());
        }
        self.store.forget(digest).map_err(|error| match error {
            // Another coordinator bound it in the meantime.
            StoreError::Refused(_) => in_use(),
            other => other.into(),
        })?;
        let removed = self.forget(&mut state, digest).ok_or_else(not_found)?;
        self.publish(&state);
        Ok(removed)
    }

    /// Lets bindings by name follow the watched folder. Routing hooks do not follow: another one would move keys, which is a change
    /// of placement.
    pub(crate) fn follow(&self) {
        let mut state = lock(&self.state);
        let slots: Vec<Slot> = state.bindings.keys().filter(|slot| slot.hook != Hook::RoutingHook).cloned().collect();
        for slot in slots {
            let Some(next) = self.to_follow(&state, &slot) else { continue };
            if state.bindings.get(&slot).is_some_and(|live| live.not_followed == Some(next)) {
                continue;
            }
            // Another coordinator with the same file in its folder may have been faster.
            if self.catch_up(&mut state, &slot).is_ok() && self.to_follow(&state, &slot) == Some(next) {
                self.follow_to(&mut state, &slot, next);
            }
        }
    }

    /// The component in the watched folder that a binding by name has not used yet.
    fn to_follow(&self, state: &HostState, slot: &Slot) -> Option<Digest> {
        let record = &state.bindings.get(slot)?.record;
        let next = self.in_folder(&state.library.list(), &record.current.reference)?;
        (record.followed != Some(next) && record.current.digest != next).then_some(next)
    }

    fn follow_to(&self, state: &mut HostState, slot: &Slot, next: Digest) {
        let Some(current) = state.bindings.get(slot).map(|live| live.record.current.clone()) else { return };
        let target = Target {
            digest: next,
            reference: current.reference,
            configuration: current.configuration,
            on_fault: current.on_fault,
        };
        let Err(error) = self.activate(state, slot.clone(), target) else { return };
        if error.is_transient() {
            let plugin = &*current.plugin;
            tracing::warn!(plugin, %error, "a file that a binding follows cannot be put in force yet; it will be retried");
            return;
        }
        let detail = format!("{} stays in force: {error}", current.plugin);
        let event = Event::new(EventKind::Refused, detail).of(next, &*current.plugin);
        self.shared.events.emit(event.at(slot.tenant.clone(), slot.hook));
        if let Some(live) = state.bindings.get_mut(slot) {
            live.not_followed = Some(next);
        }
    }
}

impl HostState {
    /// Whether a version of a binding needs this component.
    pub(super) fn refers_to(&self, digest: Digest) -> bool {
        self.bindings.values().any(|live| {
            let record = &live.record;
            record.current.digest == digest || record.previous.iter().any(|version| version.digest == digest)
        })
    }
}

/// The version that a binding is to have next.
struct Target {
    digest: Digest,
    reference: Reference,
    configuration: Bytes,
    on_fault: OnFault,
}

impl Target {
    fn is(&self, version: &BindingVersion) -> bool {
        self.digest == version.digest
            && self.reference == version.reference
            && self.configuration == version.configuration
            && self.on_fault == version.on_fault
    }
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

fn no_binding(slot: &Slot) -> PluginError {
    let whose = slot.tenant.as_ref().map_or("the default".to_owned(), |tenant| format!("tenant {tenant}"));
    PluginError::NotFound(format!("{whose} has no {} binding", slot.hook))
}
