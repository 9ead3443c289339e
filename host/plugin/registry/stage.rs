//! Components, on their way in and out: each is checked, compiled and kept for its owner, and leaves with the last of its owners.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::Component;
use witan_kernel::class::Class;
use witan_kernel::name::TenantId;
use witan_kernel::port::{SigningKey, Slot, StoreError, owners};
use witan_kernel::sync::lock;

use super::library::{Artifact, Source, means};
use super::{Inner, compiler_wait};
use crate::binding::Reference;
use crate::compile::Wanted;
use crate::describe::describe;
use crate::digest::Digest;
use crate::error::PluginError;
use crate::event::{Event, EventKind};
use crate::folder::Settled;
use crate::instance::Program;
use crate::signature::{self, Mode, Signature, SignatureError};
use crate::upload::Push;
use crate::validate::Valid;

impl Inner {
    /// Validates a component, compiles it, has it describe itself, and keeps it for its owner.
    pub(crate) fn stage(&self, push: &Push, source: Source, until: Instant) -> Result<Artifact, PluginError> {
        let digest = Digest::of(&push.bytes);
        let from = match &source {
            Source::Upload => "an upload".to_owned(),
            Source::File(name) => name.clone(),
        };
        let emit = |kind, detail: String| {
            self.shared.events.emit(Event::new(kind, detail).of(digest, &*from).owned_by(push.owner.clone()));
        };
        let staged = match self.owned(push.owner.as_ref(), digest) {
            Some(known) => self.sign_again(known, push),
            None => {
                emit(EventKind::Staged, format!("{} bytes from {from}", push.bytes.len()));
                self.stage_new(digest, push, source, until, &emit)
            }
        };
        if let Err(error) = &staged
            && !error.is_busy()
        {
            emit(EventKind::Refused, format!("{from} {error}"));
        }
        staged
    }

    /// Stages a file of the watched folder, with the signature that lies beside it.
    pub(crate) fn stage_file(&self, file: Settled) -> Result<(), PluginError> {
        let Settled { name, content, signature } = file;
        let signature = signature.filter(|_| self.signatures.mode != Mode::Off);
        let signature = match signature.map(|text| Signature::parse(&text)).transpose() {
            Ok(signature) => signature,
            Err(error) => {
                let detail = format!("{name}: {error}");
                let refused = Event::new(EventKind::Refused, detail).of(Digest::of(&content), &*name);
                self.shared.events.emit(refused);
                return Err(error.into());
            }
        };
        let push = Push { owner: None, bytes: content.into(), signature };
        self.stage(&push, Source::File(name), compiler_wait()).map(|_| ())
    }

    pub(super) fn owned(&self, owner: Option<&TenantId>, digest: Digest) -> Option<Artifact> {
        lock(&self.state).library.of(owner, digest).cloned()
    }

    fn stage_new(
        &self,
        digest: Digest,
        push: &Push,
        source: Source,
        until: Instant,
        emit: &dyn Fn(EventKind, String),
    ) -> Result<Artifact, PluginError> {
        let valid = crate::validate::validate(&push.bytes, &self.shared.limits).map_err(PluginError::refused)?;
        let class = valid.needs.class;
        self.may_have(push.owner.as_ref(), class, || ("the component".to_owned(), valid.needs.reason()))?;
        self.count_compilation(push.owner.as_ref(), class)?;
        let (program, compiled) = self.compile_for(push, digest, &valid, until)?;
        let hook = valid.hook;
        if compiled {
            emit(EventKind::Compiled, format!("for {hook}"));
        }
        let manifest = describe(&program, hook).map_err(PluginError::refused)?;
        let mut artifact = lock(&self.state).library.artifact(push, &valid, manifest, source);
        artifact.signed_by = self.signed_by(&artifact, push)?;
        let stocking = lock(&self.stocking);
        // Another thread may have staged the same component meanwhile.
        if let Some(known) = self.owned(push.owner.as_ref(), digest) {
            return Ok(known);
        }
        if push.owner.is_none() {
            self.make_room()?;
        }
        self.may_own(&artifact)?;
        self.store.keep(&artifact, &push.bytes)?;
        self.shelf.write(&artifact, &push.bytes)?;
        {
            let mut state = lock(&self.state);
            state.library.insert(artifact.clone());
            self.publish(&state);
        }
        drop(stocking);
        let ready = Event::new(EventKind::Ready, format!("for {hook}")).of(digest, artifact.plugin());
        self.shared.events.emit(ready.owned_by(push.owner.clone()));
        Ok(artifact)
    }

    /// A component that is known already, which is signed from now on if it is pushed with a signature.
    fn sign_again(&self, known: Artifact, push: &Push) -> Result<Artifact, PluginError> {
        let signed_by = self.signed_by(&known, push)?;
        if signed_by.is_none() || signed_by == known.signed_by {
            return Ok(known);
        }
        let signed = Artifact { signed_by, ..known };
        let _stocking = lock(&self.stocking);
        self.store.keep(&signed, &push.bytes)?;
        let mut state = lock(&self.state);
        state.library.insert(signed.clone());
        self.publish(&state);
        Ok(signed)
    }

    /// The key with which a component is signed that is pushed, if it is as it must be.
    fn signed_by(&self, artifact: &Artifact, push: &Push) -> Result<Option<String>, PluginError> {
        match (self.signatures.mode, &push.signature) {
            (Mode::Off, _) => Ok(None),
            (_, Some(signature)) => Ok(Some(signature::verify(artifact, signature, &self.signing_keys()?)?)),
            (Mode::Warn, None) => {
                tracing::warn!(plugin = artifact.plugin(), tenant = artifact.owner_text(), "a plugin is not signed");
                Ok(None)
            }
            (Mode::Required, None) => Err(SignatureError::Missing { plugin: artifact.plugin() }.into()),
        }
    }

    /// Checks that a slot may have a component now: that its tenant has the class that it needs, and, where plugins must be signed, that
    /// it is signed by a key that has not been removed.
    pub(super) fn may_bind(&self, slot: &Slot, digest: Digest) -> Result<(), PluginError> {
        let own = self.owned(slot.tenant.as_ref(), digest).or_else(|| self.owned(None, digest));
        let Some(artifact) = own else { return Ok(()) };
        self.may_have(slot.tenant.as_ref(), artifact.class, || (artifact.plugin(), artifact.class_reason.clone()))?;
        if self.signatures.mode == Mode::Required {
            signature::is_signed(&artifact, &self.signing_keys()?)?;
        }
        Ok(())
    }

    /// Checks that a tenant has a class. What is for all tenants (`None`) is an operator's, who may have any. `what`: the component, and
    /// why it needs the class.
    fn may_have(
        &self,
        tenant: Option<&TenantId>,
        class: Class,
        what: impl FnOnce() -> (String, String),
    ) -> Result<(), PluginError> {
        let Some(tenant) = tenant.filter(|_| !class.is_for_all()) else { return Ok(()) };
        if self.store.has_class(tenant, class)? {
            return Ok(());
        }
        let (what, reason) = what();
        Err(PluginError::ClassNotGranted { what, tenant: tenant.clone(), class, reason })
    }

    /// Counts a compilation for a tenant, if there is room for one of this class.
    fn count_compilation(&self, tenant: Option<&TenantId>, class: Class) -> Result<(), PluginError> {
        let Some(tenant) = tenant.filter(|_| !class.is_for_all()) else { return Ok(()) };
        match self.store.count_compilation(tenant)? {
            None => Ok(()),
            Some(ms) => Err(PluginError::Rate { tenant: tenant.clone(), class, wait: Duration::from_millis(ms) }),
        }
    }

    /// The keys of the configuration, and those of the store as they are now: a key that was removed is gone at once.
    fn signing_keys(&self) -> Result<Vec<SigningKey>, PluginError> {
        let mut keys = self.signatures.keys.clone();
        keys.extend(self.store.signing_keys()?);
        Ok(keys)
    }

    /// The program of a component that is pushed. A tenant's is compiled even if others have it, so that its answer takes as long as if
    /// nobody had.
    fn compile_for(
        &self,
        push: &Push,
        digest: Digest,
        valid: &Valid,
        until: Instant,
    ) -> Result<(Arc<Program>, bool), PluginError> {
        if push.owner.is_none() || self.known(digest).is_none() {
            return self.compile(digest, &push.bytes, valid, until);
        }
        let needed = |digest| lock(&self.state).refers_to(digest);
        let compiled = self.compiler.component_anew(&self.engine, &wanted(valid, digest, &push.bytes), until, &needed);
        // It only describes itself: bindings go on with the program that they have.
        Ok((Arc::new(self.link(&compiled.map_err(PluginError::uncompiled)?, valid)?), true))
    }

    /// Checks that the owner may have another component, before anything is stored. The store checks it again.
    fn may_own(&self, artifact: &Artifact) -> Result<(), PluginError> {
        let known = lock(&self.state).library.list();
        // What others have staged meanwhile may not be known here.
        let stored = self.store.is_shared().then(|| self.store.components()).transpose()?;
        Ok(owners::may_own(artifact, stored.as_ref().unwrap_or(&known).iter())?)
    }

    /// For a thread that is stocking.
    fn make_room(&self) -> Result<(), PluginError> {
        // Bound by other coordinators, as the store says.
        let mut bound = BTreeSet::new();
        while lock(&self.state).library.is_full() {
            let unused = {
                let state = lock(&self.state);
                let needed = |digest| state.refers_to(digest) || self.is_filed(digest) || bound.contains(&digest);
                state.library.to_evict(needed)
            };
            let digest = unused.ok_or(PluginError::Full)?;
            match self.store.forget(None, digest) {
                Ok(()) => _ = self.forget(None, digest),
                Err(StoreError::Refused(_)) => _ = bound.insert(digest),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether a component is a file of the watched folder.
    fn is_filed(&self, digest: Digest) -> bool {
        self.folder.as_ref().is_some_and(|folder| folder.has(digest))
    }

    /// Forgets that an owner has a component, and the component if nobody else has it. For a thread that is stocking.
    pub(super) fn forget(&self, owner: Option<&TenantId>, digest: Digest) -> Option<Artifact> {
        let (artifact, is_left) = {
            let mut state = lock(&self.state);
            let artifact = state.library.remove(owner, digest)?;
            self.publish(&state);
            (artifact, state.library.get(digest).is_some())
        };
        if !is_left {
            self.shelf.remove(digest);
            self.compiler.forget(digest);
            lock(&self.programs).remove(&digest);
        }
        let event = Event::new(EventKind::Removed, "").of(digest, artifact.plugin());
        self.shared.events.emit(event.owned_by(artifact.owner.clone()));
        Some(artifact)
    }

    /// The program of a component, shared by all bindings that run it. The flag is true when it was compiled.
    pub(super) fn compile(
        &self,
        digest: Digest,
        bytes: &[u8],
        valid: &Valid,
        until: Instant,
    ) -> Result<(Arc<Program>, bool), PluginError> {
        if let Some(program) = self.loaded(digest) {
            return Ok((program, false));
        }
        let needed = |digest| lock(&self.state).refers_to(digest);
        let compiled = self.compiler.component(&self.engine, &wanted(valid, digest, bytes), until, &needed);
        let (component, compiled) = compiled.map_err(PluginError::uncompiled)?;
        let program = Arc::new(self.link(&component, valid)?);
        let mut programs = lock(&self.programs);
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(digest, Arc::downgrade(&program));
        Ok((program, compiled))
    }

    fn link(&self, component: &Component, valid: &Valid) -> Result<Program, PluginError> {
        let ticks = self.shared.ticks.clone();
        Program::link(&self.engine, component, valid.hook, ticks, valid.budget.clone()).map_err(PluginError::refused)
    }

    /// Takes a component from its owner.
    pub(super) fn remove(&self, owner: Option<&TenantId>, plugin: &Reference) -> Result<Artifact, PluginError> {
        let not_found = || PluginError::NotFound(format!("no plugin {plugin} is known"));
        let in_use =
            || PluginError::InUse(format!("plugin {plugin} is bound, or kept for a rollback; unbind it first"));
        // What others have staged, another coordinator may know.
        self.resolve(owner, plugin)?;
        let known = lock(&self.state).library.list();
        let own = known.iter().filter(|it| it.owner.as_ref() == owner && means(plugin, it));
        let digest = own.max_by_key(|it| (self.is_filed(it.digest), it.staged_at_ms)).ok_or_else(not_found)?.digest;
        let _stocking = lock(&self.stocking);
        if lock(&self.state).needs_of(owner, digest) {
            return Err(in_use());
        }
        self.store.forget(owner, digest).map_err(|error| match error {
            // Another coordinator bound it in the meantime.
            StoreError::Refused(_) => in_use(),
            other => other.into(),
        })?;
        self.forget(owner, digest).ok_or_else(not_found)
    }
}

/// What the compiler has to know of a component that keeps the rules.
fn wanted<'a>(valid: &Valid, digest: Digest, bytes: &'a [u8]) -> Wanted<'a> {
    Wanted { digest, bytes, class: valid.needs.class }
}
