//! Changes, step by step. Whatever fails on the way leaves in force what was in force, and says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;

use super::library::{Artifact, Source};
use super::{BindRequest, Binding, Bound, Inner, PluginError, State, view};
use crate::binding::{BindingRecord, BindingVersion, Reference, is_name, is_version};
use crate::compile::lock;
use crate::digest::Digest;
use crate::event::{Event, EventKind};
use crate::instance::{Manifest, Program};
use crate::limit;
use crate::metrics::Counters;
use crate::slot::{Active, Plan};

pub(super) type Key = (Option<TenantId>, Hook);

impl Inner {
    /// Stage, validate, compile, describe, keep.
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
        let staged = self.admit(digest, bytes, source, &emit);
        if let Err(error) = &staged {
            emit(EventKind::Refused, format!("{from} {error}"));
        }
        staged
    }

    fn admit(
        &self,
        digest: Digest,
        bytes: &[u8],
        source: Source,
        emit: &dyn Fn(EventKind, String),
    ) -> Result<Artifact, PluginError> {
        let hook = crate::validate::validate(bytes, &self.shared.limits).map_err(PluginError::Refused)?;
        let (program, compiled) = self.compile(digest, bytes, hook)?;
        if compiled {
            emit(EventKind::Compiled, format!("for {hook}"));
        }
        let manifest = describe(&program, hook).map_err(PluginError::Refused)?;
        let mut state = lock(&self.state);
        self.make_room(&mut state)?;
        let artifact = state.library.card_of(bytes, hook, manifest, source);
        self.store.keep(&artifact, &Bytes::copy_from_slice(bytes))?;
        state.library.insert(artifact.clone(), bytes).map_err(PluginError::Host)?;
        self.publish(&state);
        drop(state);
        let ready = Event::new(EventKind::Ready, format!("for {hook}")).of(digest, artifact.plugin());
        self.shared.events.emit(ready);
        Ok(artifact)
    }

    fn make_room(&self, state: &mut State) -> Result<(), PluginError> {
        if let Some(digest) = state.library.to_evict(|digest| state.refers_to(digest)) {
            self.store.forget(digest)?;
            self.forget(state, digest);
        }
        if state.library.is_full() {
            return Err(PluginError::Host(format!(
                "there are {} plugins, all of them bound or kept for a rollback; unbind some",
                limit::ARTIFACTS
            )));
        }
        Ok(())
    }

    pub(super) fn forget(&self, state: &mut State, digest: Digest) -> Option<Artifact> {
        let artifact = state.library.remove(digest)?;
        self.compiler.forget(digest);
        lock(&self.programs).remove(&digest);
        let event = Event::new(EventKind::Removed, "").of(digest, artifact.plugin());
        self.shared.events.emit(event);
        Some(artifact)
    }

    /// The program of a component, shared by all that run it.
    fn compile(&self, digest: Digest, bytes: &[u8], hook: Hook) -> Result<(Arc<Program>, bool), PluginError> {
        if let Some(program) = lock(&self.programs).get(&digest).and_then(|program| program.upgrade()) {
            return Ok((program, false));
        }
        let (component, compiled) =
            self.compiler.component(&self.engine, digest, bytes).map_err(PluginError::Refused)?;
        let budget = self.shared.limits.budget(hook).clone();
        let program = Program::link(&self.engine, &component, hook, self.shared.ticks.clone(), budget)
            .map_err(PluginError::Refused)?;
        let program = Arc::new(program);
        let mut programs = lock(&self.programs);
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(digest, Arc::downgrade(&program));
        Ok((program, compiled))
    }

    /// The program of a known component, from memory or disk.
    pub(super) fn program(&self, state: &State, digest: Digest) -> Result<(Arc<Program>, Artifact), PluginError> {
        let gone = || PluginError::NotFound(format!("plugin {digest} is not known; stage it again"));
        let artifact = state.library.get(digest).ok_or_else(gone)?.clone();
        if let Some(program) = lock(&self.programs).get(&digest).and_then(|program| program.upgrade()) {
            return Ok((program, artifact));
        }
        let bytes = state.library.read(digest).map_err(PluginError::Host)?;
        let hook = crate::validate::validate(&bytes, &self.shared.limits).map_err(PluginError::Refused)?;
        Ok((self.compile(digest, &bytes, hook)?.0, artifact))
    }

    /// Resolve, probe, store, swap.
    pub(super) fn bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        let (tenant, hook, plugin) = (request.tenant.clone(), request.hook, request.plugin.to_string());
        let bound = self.bind_quietly(request);
        if let Err(error) = &bound {
            let mut event = Event::new(EventKind::Refused, error.to_string()).at(tenant, hook);
            event.plugin = plugin;
            self.shared.events.emit(event);
        }
        bound
    }

    fn bind_quietly(&self, request: BindRequest) -> Result<Binding, PluginError> {
        if request.configuration.len() > limit::CONFIGURATION_BYTES {
            return Err(PluginError::Invalid(format!(
                "the configuration has {} bytes; at most {} are allowed",
                request.configuration.len(),
                limit::CONFIGURATION_BYTES
            )));
        }
        let mut state = lock(&self.state);
        let artifact = self.known(&mut state, &request.plugin)?.ok_or_else(|| {
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
        let key = (request.tenant, request.hook);
        self.catch_up(&mut state, &key)?;
        let target = Target {
            digest: artifact.digest,
            reference: request.plugin,
            configuration: request.configuration,
            on_fault: request.on_fault,
        };
        // What could not be loaded here is tried again by binding it again.
        let as_wanted = |bound: &&Bound| target.is(&bound.record.current) && bound.active.primary.is_ok();
        if let Some(bound) = state.bindings.get(&key).filter(as_wanted) {
            return Ok(view(&bound.record, &bound.active));
        }
        if !state.bindings.contains_key(&key) && state.bindings.len() >= limit::BINDINGS {
            return Err(PluginError::Invalid(format!("there are {} bindings already", limit::BINDINGS)));
        }
        self.activate(&mut state, key, target)
    }

    /// Puts a version in force after the one that is.
    fn activate(&self, state: &mut State, key: Key, target: Target) -> Result<Binding, PluginError> {
        let (program, artifact) = self.program(state, target.digest)?;
        let plan = plan(&program, &artifact, &target.configuration);
        self.probe(state, &plan, &artifact)?;
        let old = state.bindings.get(&key).map(|bound| bound.record.clone());
        let followed = self.filed(&state.library.list(), &target.reference);
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
        let record = BindingRecord { tenant: key.0.clone(), hook: key.1, current: version, previous, followed };
        self.put_in_force(state, key, record, Ok(plan), EventKind::Activated)
    }

    fn probe(&self, state: &mut State, plan: &Plan, artifact: &Artifact) -> Result<(), PluginError> {
        let case = (plan.digest, Digest::of(&plan.configuration));
        if state.probed.contains(&case) {
            return Ok(());
        }
        crate::probe::probe(plan, artifact.hook, artifact.deterministic)
            .map_err(|reason| PluginError::Refused(format!("{} is refused: {reason}", artifact.plugin())))?;
        // A full memory is emptied: a probe more is no harm.
        if state.probed.len() >= limit::ARTIFACTS {
            state.probed.clear();
        }
        state.probed.insert(case);
        Ok(())
    }

    /// The watched folder's component that a reference by name means.
    pub(super) fn filed(&self, artifacts: &[Artifact], reference: &Reference) -> Option<Digest> {
        let folder = self.folder.as_ref()?;
        match reference {
            Reference::Digest(_) => None,
            Reference::Name { name, version } => folder.newest(|digest| {
                let fits = |a: &Artifact| a.name == *name && version.as_ref().is_none_or(|v| a.version == *v);
                artifacts.iter().any(|artifact| artifact.digest == digest && fits(artifact))
            }),
        }
    }

    /// Stores the record, then swaps: what is in force is always what a restart would find.
    fn put_in_force(
        &self,
        state: &mut State,
        key: Key,
        record: BindingRecord,
        primary: Result<Plan, String>,
        kind: EventKind,
    ) -> Result<Binding, PluginError> {
        self.store.save(&record)?;
        Ok(self.swap(state, key, record, primary, kind))
    }

    /// From the next request on, this answers.
    pub(super) fn swap(
        &self,
        state: &mut State,
        key: Key,
        record: BindingRecord,
        primary: Result<Plan, String>,
        kind: EventKind,
    ) -> Binding {
        let bound = self.bound(state, record, primary);
        let shown = view(&bound.record, &bound.active);
        let old = state.bindings.insert(key.clone(), bound);
        self.publish(state);
        self.shared.totals[key.1 as usize].swapped();
        let current = &shown.record.current;
        let detail = format!("version {} of the binding, {}", current.number, current.digest.short());
        self.shared.events.emit(Event::new(kind, detail).of(current.digest, &*current.plugin).at(key.0, key.1));
        drop(old);
        shown
    }

    pub(super) fn bound(&self, state: &State, record: BindingRecord, primary: Result<Plan, String>) -> Bound {
        let key = (record.tenant.clone(), record.hook);
        let old = state.bindings.get(&key);
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
        let active = Active {
            tenant: record.tenant.clone(),
            hook: record.hook,
            version: record.current.clone(),
            primary,
            fallback,
            counters: Arc::new(Counters::default()),
            shared: self.shared.clone(),
        };
        Bound { record: Arc::new(record), active: Arc::new(active), programs, not_followed: None }
    }

    /// One version back: what answered before answers again, with the configuration that it had.
    pub(super) fn rollback(&self, tenant: Option<TenantId>, hook: Hook) -> Result<Binding, PluginError> {
        let mut state = lock(&self.state);
        let key = (tenant, hook);
        self.catch_up(&mut state, &key)?;
        let bound = state.bindings.get(&key).ok_or_else(|| no_binding(&key))?;
        let mut record = BindingRecord::clone(&bound.record);
        let Some(version) = record.previous.pop() else {
            return Err(PluginError::Invalid(format!("the {hook} binding has no earlier version; unbind it instead")));
        };
        let (program, artifact) = self.program(&state, version.digest)?;
        let plan = plan(&program, &artifact, &version.configuration);
        record.current = BindingVersion { number: record.current.number + 1, ..version };
        self.put_in_force(&mut state, key, record, Ok(plan), EventKind::RolledBack)
    }

    pub(super) fn unbind(&self, tenant: Option<TenantId>, hook: Hook) -> Result<(), PluginError> {
        let mut state = lock(&self.state);
        let key = (tenant, hook);
        self.catch_up(&mut state, &key)?;
        if !state.bindings.contains_key(&key) {
            return Err(no_binding(&key));
        }
        self.store.remove(key.0.as_ref(), hook)?;
        self.vacate(&mut state, &key);
        Ok(())
    }

    /// From the next request on, the default binding, or the native rule, answers.
    pub(super) fn vacate(&self, state: &mut State, key: &Key) {
        let Some(bound) = state.bindings.remove(key) else { return };
        self.publish(state);
        let current = &bound.record.current;
        let event = Event::new(EventKind::Unbound, "").of(current.digest, &*current.plugin);
        self.shared.events.emit(event.at(key.0.clone(), key.1));
    }

    pub(super) fn remove(&self, plugin: &Reference) -> Result<Artifact, PluginError> {
        let mut state = lock(&self.state);
        let not_found = || PluginError::NotFound(format!("no plugin {plugin} is known"));
        let in_use =
            || PluginError::InUse(format!("plugin {plugin} is bound, or kept for a rollback; unbind it first"));
        let digest = self.known(&mut state, plugin)?.ok_or_else(not_found)?.digest;
        if state.refers_to(digest) {
            return Err(in_use());
        }
        self.store.forget(digest).map_err(|error| match error {
            // Another coordinator has bound it just now.
            StoreError::Refused(_) => in_use(),
            other => other.into(),
        })?;
        let removed = self.forget(&mut state, digest).ok_or_else(not_found)?;
        self.publish(&state);
        Ok(removed)
    }

    /// Bindings by name follow the watched folder. Routing hooks do not: another one would move keys, and that is a
    /// placement change.
    pub(crate) fn follow(&self) {
        let mut state = lock(&self.state);
        let keys: Vec<Key> = state.bindings.keys().filter(|key| key.1 != Hook::RoutingHook).cloned().collect();
        for key in keys {
            let Some(filed) = self.to_follow(&state, &key) else { continue };
            if state.bindings.get(&key).is_some_and(|bound| bound.not_followed == Some(filed)) {
                continue;
            }
            // Another coordinator, with the same file in its folder, may have been faster.
            if self.catch_up(&mut state, &key).is_ok() && self.to_follow(&state, &key) == Some(filed) {
                self.follow_to(&mut state, &key, filed);
            }
        }
    }

    /// The component in the watched folder that a binding by name has not been at.
    fn to_follow(&self, state: &State, key: &Key) -> Option<Digest> {
        let record = &state.bindings.get(key)?.record;
        let filed = self.filed(&state.library.list(), &record.current.reference)?;
        (record.followed != Some(filed) && record.current.digest != filed).then_some(filed)
    }

    fn follow_to(&self, state: &mut State, key: &Key, filed: Digest) {
        let Some(current) = state.bindings.get(key).map(|bound| bound.record.current.clone()) else { return };
        let target = Target {
            digest: filed,
            reference: current.reference,
            configuration: current.configuration,
            on_fault: current.on_fault,
        };
        let Err(error) = self.activate(state, key.clone(), target) else { return };
        if error.passes() {
            tracing::warn!(plugin = %current.plugin, %error, "a file that a binding follows cannot be put in force yet");
            return;
        }
        let detail = format!("{} stays in force: {error}", current.plugin);
        let event = Event::new(EventKind::Refused, detail).of(filed, &*current.plugin);
        self.shared.events.emit(event.at(key.0.clone(), key.1));
        if let Some(bound) = state.bindings.get_mut(key) {
            bound.not_followed = Some(filed);
        }
    }
}

impl State {
    pub(super) fn refers_to(&self, digest: Digest) -> bool {
        self.bindings.values().any(|bound| {
            let record = &bound.record;
            record.current.digest == digest || record.previous.iter().any(|version| version.digest == digest)
        })
    }
}

/// What a binding is to become.
struct Target {
    digest: Digest,
    reference: Reference,
    configuration: Bytes,
    on_fault: crate::binding::OnFault,
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

fn no_binding(key: &Key) -> PluginError {
    let whose = key.0.as_ref().map_or("the default".to_owned(), |tenant| format!("tenant {tenant}"));
    PluginError::NotFound(format!("{whose} has no {} binding", key.1))
}

/// Asks a component who it is, in an instance of its own.
fn describe(program: &Program, hook: Hook) -> Result<Manifest, String> {
    let started = program.start("a plugin being staged".into(), Arc::default());
    let manifest = started.and_then(|mut instance| instance.describe()).map_err(|fault| fault.to_string())?;
    if !is_name(&manifest.name) {
        return Err("does not name itself with 1 to 64 of a-z, 0-9 and '-'".into());
    }
    if !is_version(&manifest.version) {
        return Err("does not give its version as 1 to 64 of a-z, A-Z, 0-9, '.', '-' and '+'".into());
    }
    if manifest.hook != hook.as_str() {
        let said = crate::instance::shorten(&manifest.hook);
        return Err(format!("says that it is a {said:?} but exports what a {hook} does"));
    }
    Ok(manifest)
}
