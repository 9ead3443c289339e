//! Swaps of a tenant's routing hook: its rows move to another generation, whose keys another hook places.
//!
//! What places each generation is recorded beside the binding, in the same transaction as the placement change that moves the rows, so
//! that neither is ever on record without the other. Nothing that is recorded of a generation changes any more; it is forgotten once the
//! tenant's entry names that generation no longer.

use std::sync::Arc;

use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Digest, Migration, PlacementChange, Saved, Slot};
use witan_kernel::sync::lock;

use super::change::{plan, unbound};
use super::proposal::{Named, Proposal, Proposed, RoutingChange};
use super::target::{next_record, no_binding, no_earlier};
use super::{Binding, HostState, Inner, LivePartitions};
use crate::binding::{BindingRecord, BindingVersion, Partitioning, SlotRecord, same_hook};
use crate::error::PluginError;
use crate::event::{Event, EventKind};
use crate::history::{Author, Entry, What};
use crate::limit;
use crate::metrics::Counters;
use crate::snapshot::Generations;
use crate::tenant::{ActiveBinding, LoadError, Plan, TenantBinding};

impl Inner {
    pub(super) fn propose(&self, change: RoutingChange, named: Named) -> Result<Proposal, PluginError> {
        let author;
        let (tenant, target) = match change {
            RoutingChange::Bind(request) => {
                author = request.author.clone();
                let (slot, target) = self.target(request)?;
                (slot.tenant, Some(target))
            }
            RoutingChange::Rollback(tenant, author) => return self.propose_back(tenant, named, author),
            RoutingChange::Unbind(tenant, by) => {
                author = by;
                (Some(tenant), None)
            }
        };
        let tenant = tenant.ok_or_else(|| PluginError::Invalid("a default has no generations".into()))?;
        let slot = slot(&tenant);
        let probed = target.as_ref().map(|target| self.probed(&slot, target)).transpose()?;
        let from = self.as_stored(&slot)?;
        let old = from.as_deref().and_then(|from| from.bound.as_ref());
        let (bound, plan, kind) = match (target, probed) {
            (Some(target), Some((plan, artifact))) => {
                self.has_room(from.as_deref())?;
                let followed = self.in_folder(&target.reference);
                let is_same = old.is_some_and(|old| target.is(&old.current));
                let bound = match old {
                    Some(old) if is_same => old.clone(),
                    old => next_record(&slot, old, target, &artifact.plugin(), followed),
                };
                (Some(bound), Some(plan), EventKind::Activated)
            }
            _ if old.is_none() => return Err(no_binding(&slot)),
            _ => (None, None, EventKind::Unbound),
        };
        self.proposed(&slot, from.clone(), bound, plan, (kind, author), named)
    }

    /// As a rollback, which needs the version of before in memory, or at least stored.
    fn propose_back(&self, tenant: TenantId, named: Named, author: Author) -> Result<Proposal, PluginError> {
        let slot = slot(&tenant);
        let from = self.as_stored(&slot)?;
        let mut bound = from.as_deref().and_then(|from| from.bound.clone()).ok_or_else(|| no_binding(&slot))?;
        let version = bound.previous.pop().ok_or_else(|| no_earlier(slot.hook))?;
        let plan = self.plan_of(&version)?;
        bound.current = BindingVersion { number: bound.current.number + 1, ..version };
        bound.followed = self.in_folder(&bound.current.reference).or(bound.followed);
        self.proposed(&slot, from, Some(bound), Some(plan), (EventKind::RolledBack, author), named)
    }

    fn proposed(
        &self,
        slot: &Slot,
        from: Option<Arc<SlotRecord>>,
        bound: Option<BindingRecord>,
        plan: Option<Plan>,
        (kind, author): (EventKind, Author),
        named: Named,
    ) -> Result<Proposal, PluginError> {
        let by = bound.as_ref().map(|bound| bound.current.clone());
        let mut partitions = match from.as_deref() {
            Some(from) if !from.partitions.is_empty() => from.partitions.clone(),
            from => vec![Partitioning { generation: 0, by: from.and_then(SlotRecord::current).cloned() }],
        };
        // What the entry does not name, or not any longer, was forgotten by it for ever.
        partitions.retain(|it| named.names(it.generation));
        let target = partitions.iter().find(|it| it.generation == named.target());
        let Some(target) = target else { return Err(PluginError::keeps_changing()) };
        if target.is_by(by.as_ref()) {
            return Ok(Proposal::SamePlaces);
        }
        let generation = named.highest.checked_add(1).ok_or_else(PluginError::keeps_changing)?;
        partitions.push(Partitioning { generation, by });
        if partitions.len() > limit::PARTITIONS {
            return Err(PluginError::HostBusy(
                "too many swaps of this routing hook are under way; try again later".into(),
            ));
        }
        let tenant = slot.tenant.clone().ok_or_else(PluginError::keeps_changing)?;
        let places = plan.clone().map(Ok).or_else(|| self.default_plan());
        let asked = places.transpose()?.map(|plan| self.asked_apart(&tenant, plan));
        let to = SlotRecord { slot: slot.clone(), bound, partitions, candidate: None };
        Ok(Proposal::Swap(Box::new(Proposed { tenant, generation, from, to, kind, author, plan, asked })))
    }

    /// The routing hook of all tenants.
    fn default_plan(&self) -> Option<Result<Plan, PluginError>> {
        let default = Slot { tenant: None, hook: Hook::RoutingHook };
        let version = lock(&self.state).bindings.get(&default)?.record.current.clone();
        Some(self.plan_of(&version))
    }

    fn plan_of(&self, version: &BindingVersion) -> Result<Plan, PluginError> {
        self.learn(std::iter::once(version.digest))?;
        let (program, artifact) = self.program(version.digest)?;
        Ok(plan(&program, &artifact, &version.configuration))
    }

    /// A hook's instances for questions that are no client's.
    fn asked_apart(&self, tenant: &TenantId, plan: Plan) -> TenantBinding {
        let version = BindingVersion {
            number: 0,
            digest: plan.digest,
            reference: crate::binding::Reference::Digest(plan.digest),
            plugin: plan.by.to_string(),
            configuration: plan.configuration.clone(),
            on_fault: crate::binding::OnFault::Fail,
        };
        TenantBinding::new(Arc::new(self.active(&slot(tenant), version, Ok(plan))), tenant.clone())
    }

    fn active(&self, slot: &Slot, version: BindingVersion, primary: Result<Plan, LoadError>) -> ActiveBinding {
        ActiveBinding {
            tenant: slot.tenant.clone(),
            hook: slot.hook,
            version,
            primary,
            fallback: None,
            counters: Arc::new(Counters::logging_to(self.shared.logs.of(slot))),
            shared: self.shared.clone(),
            is_quiet: true,
        }
    }

    /// What is stored of a slot, which is what is in force here.
    fn as_stored(&self, slot: &Slot) -> Result<Option<Arc<SlotRecord>>, PluginError> {
        Ok(self.turn(slot)?.1)
    }

    /// Records a swap together with the placement change, and puts the binding in force. Until the rows have moved, their keys are placed
    /// by the hook of before; in which order replicas are read, the new one says from now on.
    pub(super) fn record(&self, proposed: Proposed, now_ms: u64) -> Result<(Option<Binding>, Migration), PluginError> {
        let Proposed { tenant, generation, from, to, kind, author, plan, asked } = proposed;
        let slot = to.slot.clone();
        let (_turn, stored) = self.turn(&slot)?;
        if stored != from {
            return Err(PluginError::HostBusy("the binding was changed while the plugin was probed; try again".into()));
        }
        let digest = to.bound.as_ref().map(|bound| bound.current.digest);
        let change = PlacementChange::Generation { tenant, generation };
        let before = from.as_deref().and_then(SlotRecord::current);
        let entry = match (&to.bound, before) {
            (Some(bound), _) if kind == EventKind::RolledBack => {
                Some(Entry::new(What::RolledBack, &bound.current, &author))
            }
            (Some(bound), _) => Some(Entry::new(What::Bound, &bound.current, &author)),
            (None, before) => before.map(|before| unbound(before, &author)),
        };
        let entry =
            entry.map(|entry| entry.outcome("records move; then it places their keys")).and_then(|it| it.encode());
        let saved = Saved { entry, ..Saved::of(to.encode(), digest) };
        let migration = self.store.save_and_move(&slot, saved, change, now_ms)?;
        let SlotRecord { bound, partitions, .. } = to;
        let bound = match (bound, plan) {
            (Some(bound), Some(plan)) => Some(self.swap(bound, partitions, Ok(plan), kind, None)),
            _ => {
                self.drop_binding(&slot, partitions);
                None
            }
        };
        drop(asked);
        Ok((bound, migration))
    }

    /// Brings a slot's record into line with its tenant's entry, which was read after the version of the record that is known here: the
    /// binding is that of the generation which the rows have, or are to have, and what the entry does not name is forgotten. `read`: reads
    /// the entry. True if anything has changed.
    pub(super) fn settle(
        &self,
        tenant: &TenantId,
        read: impl Fn() -> Result<Option<Named>, PluginError>,
    ) -> Result<bool, PluginError> {
        let slot = slot(tenant);
        for _ in 0..limit::CHANGE_ATTEMPTS {
            // First the record: a swap that is recorded later makes this one stale, and is not overwritten.
            let Some(from) = self.as_stored(&slot)? else { return Ok(false) };
            let Some(named) = read()? else { return Ok(false) };
            let Some(to) = settled(&from, named) else { return Ok(false) };
            let (primary, kept) = self.load(&to);
            let (_turn, stored) = self.turn(&slot)?;
            if stored.as_ref() != Some(&from) {
                continue;
            }
            let given_up = to.current().filter(|_| to.bound != from.bound);
            let author = self.author("the swap was given up");
            self.save(&to, given_up.map(|version| Entry::new(What::GivenUp, version, &author)).as_ref())?;
            self.take_over(to, primary);
            drop(kept);
            return Ok(true);
        }
        Err(PluginError::keeps_changing())
    }

    /// The tenants whose record may not be in line with their entries: those whose swap may have ended.
    pub(super) fn unsettled(&self) -> Vec<TenantId> {
        let state = lock(&self.state);
        let is_unsettled = |(slot, of): &(&Slot, &LivePartitions)| {
            let current = state.bindings.get(slot).map(|live| &live.record.current);
            of.record.len() != 1 || !of.record.iter().all(|it| it.is_by(current))
        };
        state.partitions.iter().filter(is_unsettled).filter_map(|(slot, _)| slot.tenant.clone()).collect()
    }

    /// Replaces what is known of a slot's generations. What was known before is returned, to be dropped without the lock.
    pub(super) fn set_partitions(
        &self,
        state: &mut HostState,
        slot: &Slot,
        record: Vec<Partitioning>,
    ) -> Option<LivePartitions> {
        if record.is_empty() {
            return state.partitions.remove(slot);
        }
        let live: Generations<ActiveBinding> = record.iter().map(|it| self.placing(state, slot, it)).collect();
        state.partitions.insert(slot.clone(), LivePartitions { record, live })
    }

    /// What places the keys of a generation: what is bound if it is the same hook, or what placed them before.
    fn placing(&self, state: &HostState, slot: &Slot, it: &Partitioning) -> (u32, Option<Arc<ActiveBinding>>) {
        let Some(by) = &it.by else { return (it.generation, None) };
        let bound = state.bindings.get(slot).map(|live| &live.active);
        let before = state.partitions.get(slot).into_iter().flat_map(|of| of.live.iter());
        let known = before.filter_map(|(_, active)| active.as_ref()).chain(bound);
        let is_it = |active: &&Arc<ActiveBinding>| same_hook(Some(&active.version), Some(by)) && active.primary.is_ok();
        // Rather the one that is bound: its counts are shown.
        if let Some(active) = known.filter(is_it).last() {
            return (it.generation, Some(active.clone()));
        }
        let artifact = state.library.get(by.digest);
        let plan = self.loaded(by.digest).zip(artifact).map(|(program, it)| plan(&program, it, &by.configuration));
        let missing = || PluginError::NotFound(format!("plugin {} is not loaded; upload it again", by.digest));
        (it.generation, Some(Arc::new(self.active(slot, by.clone(), plan.ok_or_else(|| LoadError(missing()))))))
    }

    /// Replaces what is known of a slot's generations, and publishes it. For a thread that has the slot's turn.
    pub(super) fn change_partitions(&self, slot: &Slot, record: Vec<Partitioning>) {
        let mut state = lock(&self.state);
        let before = self.set_partitions(&mut state, slot, record);
        self.publish(&state);
        drop(state);
        drop(before);
    }

    /// Loads what places keys of any tenant and could not be loaded before.
    pub(super) fn hold_all_partitions(&self) -> Result<(), PluginError> {
        let slots: Vec<Slot> = lock(&self.state).partitions.keys().cloned().collect();
        slots.iter().try_for_each(|slot| self.hold_partitions(slot))
    }

    /// Loads what places keys and could not be loaded before.
    pub(super) fn hold_partitions(&self, slot: &Slot) -> Result<(), PluginError> {
        let missing: Vec<Digest> = {
            let state = lock(&self.state);
            let Some(of) = state.partitions.get(slot) else { return Ok(()) };
            let broken = of.live.iter().filter_map(|(_, active)| active.as_ref().filter(|it| it.primary.is_err()));
            broken.map(|active| active.version.digest).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        self.learn(missing.iter().copied())?;
        let kept: Vec<_> = missing.iter().filter_map(|digest| self.program(*digest).ok()).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let _turn = self.turns.take(slot);
        let record = lock(&self.state).partitions.get(slot).map(|of| of.record.clone());
        if let Some(record) = record {
            self.change_partitions(slot, record);
        }
        drop(kept);
        Ok(())
    }

    /// Says of routing hooks that are bound by name that another file of this name is in the watched folder: they do not follow.
    pub(super) fn announce(&self, slot: &Slot, next: Digest, current: &BindingVersion) {
        let whose = slot.tenant.as_ref().map_or(String::new(), |tenant| format!(" --tenant {tenant}"));
        let detail = format!(
            "{} stays in force, since another routing hook moves records; to swap it, run `witan plugin bind routing-hook \
             {next}{whose}`",
            current.plugin
        );
        let event = Event::new(EventKind::NotFollowed, detail).of(next, &*current.plugin);
        self.shared.events.emit(event.at(slot.tenant.clone(), slot.hook));
    }
}

fn slot(tenant: &TenantId) -> Slot {
    Slot { tenant: Some(tenant.clone()), hook: Hook::RoutingHook }
}

/// A record in line with what its tenant's entry names; `None`: it is.
fn settled(record: &SlotRecord, named: Named) -> Option<SlotRecord> {
    // Of a generation that is not on record, nothing is known here: better wait.
    let target = record.partitioning(named.target())?;
    let mut next = record.clone();
    next.partitions.retain(|it| named.names(it.generation));
    if !target.is_by(record.current()) {
        next.bound = target.by.clone().map(|by| bound_again(record, by));
        next.candidate = None;
    }
    (next != *record).then_some(next)
}

/// A binding with a version of before in force again.
fn bound_again(record: &SlotRecord, by: BindingVersion) -> BindingRecord {
    let (tenant, hook) = (record.slot.tenant.clone(), record.slot.hook);
    let Some(bound) = &record.bound else {
        return BindingRecord { tenant, hook, current: by, previous: Vec::new(), followed: None };
    };
    let mut previous = bound.previous.clone();
    if let Some(at) = previous.iter().rposition(|version| same_hook(Some(version), Some(&by))) {
        previous.truncate(at);
    }
    let current = BindingVersion { number: bound.current.number + 1, ..by };
    BindingRecord { tenant, hook, current, previous, followed: bound.followed }
}
