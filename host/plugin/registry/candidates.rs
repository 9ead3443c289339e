//! Candidates: trying a version beside the one in force, and what becomes of it.

use std::sync::Arc;

use witan_kernel::candidate::{Latencies, Mode, Next, Seen, Trial};
use witan_kernel::hook::Hook;
use witan_kernel::name::{Invalid, NodeId, TenantId};
use witan_kernel::port::{Slot, StoreError};
use witan_kernel::sync::lock;

use super::change::plan;
use super::proposal::{BindRequest, TryRequest};
use super::target::{Target, next_record, no_binding};
use super::{Binding, HostState, Inner, PluginHost};
use crate::binding::{BindingVersion, CandidateRecord, SlotRecord};
use crate::candidate::{Candidate, Example, Report, Watch};
use crate::error::PluginError;
use crate::event::{Event, EventKind};
use crate::history::{Author, Entry, What, now_ms};
use crate::metrics::Counters;
use crate::tenant::{ActiveBinding, LoadError};

/// What is known of a binding.
#[derive(Debug, Clone)]
pub struct ReportView {
    /// The binding, with the counts of this coordinator.
    pub binding: Binding,
    /// Duration of the calls, on this coordinator.
    pub latencies: Latencies,
    /// What is tried beside it.
    pub candidate: Option<CandidateView>,
}

/// What is known of a candidate.
#[derive(Debug, Clone)]
pub struct CandidateView {
    /// The version, and how it is tried.
    pub record: CandidateRecord,
    /// What all coordinators together have seen within the last window.
    pub window: Seen,
    /// What this coordinator has seen since the trial began, or since it started.
    pub total: Seen,
    /// Coordinators that cannot ask it, and why.
    pub missing: Vec<(NodeId, String)>,
    /// Instances that this coordinator has started, and lines that it dropped.
    pub counts: crate::metrics::Counts,
    /// The gauges that it reports, on this coordinator.
    pub gauges: Vec<(String, f64)>,
    /// Differing answers that this coordinator has seen. They may hold values.
    pub examples: Vec<Example>,
}

impl PluginHost {
    /// Tries a version beside the one in force: probes it, has it loaded by every live coordinator, stores it, and asks it from the next
    /// request on. Another candidate of the slot is discarded.
    pub async fn try_beside(&self, request: TryRequest) -> Result<Binding, PluginError> {
        let wanted = request.bind.clone();
        let coming = self.change(&self.inner.lanes.changes, move |inner| inner.coming(wanted)).await?;
        if let Some(coming) = coming {
            self.ready_everywhere(coming).await?;
        }
        self.change(&self.inner.lanes.changes, move |inner| inner.try_beside(request)).await
    }

    /// Puts a candidate in force.
    pub async fn promote(&self, tenant: Option<TenantId>, hook: Hook, author: Author) -> Result<Binding, PluginError> {
        let slot = Slot { tenant, hook };
        self.change(&self.inner.lanes.back, move |inner| inner.promote(&slot, &author)).await
    }

    /// Discards a candidate. It waits for the store alone.
    pub async fn discard(&self, tenant: Option<TenantId>, hook: Hook, author: Author) -> Result<Binding, PluginError> {
        let slot = Slot { tenant, hook };
        self.change(&self.inner.lanes.back, move |inner| inner.discard(&slot, &author)).await
    }

    /// What a promotion of a slot's candidate asks for, if it is to be put in force as any other version, because records may move.
    pub async fn candidate_of(
        &self,
        tenant: Option<TenantId>,
        hook: Hook,
        author: Author,
    ) -> Result<BindRequest, PluginError> {
        let slot = Slot { tenant, hook };
        self.change(&self.inner.lanes.back, move |inner| {
            let (_turn, stored) = inner.turn(&slot)?;
            let (_, candidate) = tried(&slot, stored.as_deref())?;
            let BindingVersion { reference, configuration, on_fault, .. } = candidate.version.clone();
            let Slot { tenant, hook } = slot;
            Ok(BindRequest { tenant, hook, plugin: reference, configuration, on_fault, author })
        })
        .await
    }

    /// What has become of a slot, the newest entry first.
    pub async fn history(&self, tenant: Option<TenantId>, hook: Hook) -> Result<Vec<Entry>, PluginError> {
        let slot = Slot { tenant, hook };
        let read = move |inner: &Inner| Ok(inner.store.history(&slot)?.iter().map(Entry::read).collect());
        self.change(&self.inner.lanes.back, read).await
    }

    /// What is known of a binding.
    pub async fn report(&self, tenant: Option<TenantId>, hook: Hook) -> Result<ReportView, PluginError> {
        let slot = Slot { tenant, hook };
        self.change(&self.inner.lanes.back, move |inner| inner.report(&slot)).await
    }

    /// Reports what candidates have done here, and makes what is due for them. Called every second. True if a binding was changed.
    pub async fn tend(&self) -> Result<bool, PluginError> {
        if !self.inner.has_candidates() {
            return Ok(false);
        }
        self.change(&self.inner.lanes.back, Inner::tend).await
    }
}

/// The slot's record and its candidate.
fn tried<'a>(
    slot: &Slot,
    stored: Option<&'a SlotRecord>,
) -> Result<(&'a SlotRecord, &'a CandidateRecord), PluginError> {
    let none = || {
        let whose = slot.tenant.as_ref().map_or("the default".to_owned(), |tenant| format!("tenant {tenant}"));
        let remedy = "try one with `witan plugin bind ... --shadow` or `--canary`";
        PluginError::NoCandidate(format!("{whose} has no candidate for its {}; {remedy}", slot.hook))
    };
    let stored = stored.ok_or_else(none)?;
    Ok((stored, stored.candidate.as_ref().ok_or_else(none)?))
}

fn described(trial: &Trial) -> String {
    match trial.mode {
        Mode::Shadow => format!("a shadow, asked {} % of the questions", trial.percent),
        Mode::Canary => format!("a canary, which answers for {} % of the keys", trial.percent),
    }
}

impl Inner {
    /// Who has made what this coordinator does by itself.
    pub(super) fn author(&self, reason: impl Into<String>) -> Author {
        Author { who: format!("coordinator {}", self.coordinator), reason: reason.into() }
    }

    fn has_candidates(&self) -> bool {
        self.published.load().bindings.iter().any(|(_, bound)| bound.candidate.is_some())
    }

    fn try_beside(&self, request: TryRequest) -> Result<Binding, PluginError> {
        let TryRequest { bind, mode, percent, bounds, promote_after_s } = request;
        let (author, now) = (bind.author.clone(), now_ms());
        if bind.hook == Hook::RoutingHook && promote_after_s.is_some() {
            let problem = "a routing hook is not promoted by itself, since records may move";
            return Err(Invalid::new("promote_after_seconds", problem, "leave it out, and promote it by hand").into());
        }
        let percent = percent.unwrap_or_else(|| mode.default_percent());
        let trial = Trial { mode, percent, bounds, promote_after_s, began_ms: now, step_ms: now }.checked()?;
        let (slot, target) = self.target(bind)?;
        // Held until the candidate holds its program.
        let (loaded, artifact) = self.probed(&slot, &target)?;
        self.all_know_candidates()?;
        let (_turn, old) = self.turn(&slot)?;
        let Some((old, bound)) = old.as_deref().and_then(|old| Some((old, old.bound.as_ref()?))) else {
            return Err(no_binding(&slot));
        };
        if target.is(&bound.current) {
            return Err(PluginError::Invalid(format!("{} is in force already", bound.current.plugin)));
        }
        let Target { digest, reference, configuration, on_fault } = target;
        let (plugin, number) = (artifact.plugin(), bound.current.number + 1);
        let version = BindingVersion { number, digest, reference, plugin, configuration, on_fault };
        let entry = Entry::new(What::Tried, &version, &author).mode(trial.mode.as_str());
        let entry = entry.outcome(format!("{}, beside {}", described(&trial), bound.current.plugin));
        let record = SlotRecord { candidate: Some(CandidateRecord { version, trial }), ..old.clone() };
        self.save(&record, Some(&entry))?;
        self.change_candidate(&slot, record.candidate);
        drop(loaded);
        self.tell(EventKind::Tried, &slot, &entry);
        self.shown(&slot)
    }

    /// From the first candidate on, versions that do not know them refuse to start.
    fn all_know_candidates(&self) -> Result<(), PluginError> {
        let required = self.store.require_candidates();
        let Err(StoreError::Conflict(_)) = required else { return Ok(required?) };
        let old = self.store.coordinators()?.into_iter().filter(|(_, knows)| !knows);
        let names: Vec<_> = old.map(|(id, _)| id.to_string()).collect();
        Err(PluginError::NotReady(format!(
            "coordinators of a version that does not know candidates: {}; upgrade them first",
            names.join(", ")
        )))
    }

    fn promote(&self, slot: &Slot, author: &Author) -> Result<Binding, PluginError> {
        let (_turn, stored) = self.turn(slot)?;
        let (stored, candidate) = tried(slot, stored.as_deref())?;
        self.put_candidate_in_force(stored, candidate, author)
    }

    /// For a thread that has the slot's turn.
    fn put_candidate_in_force(
        &self,
        stored: &SlotRecord,
        CandidateRecord { version, .. }: &CandidateRecord,
        author: &Author,
    ) -> Result<Binding, PluginError> {
        let slot = &stored.slot;
        let not_loaded = || PluginError::NotReady(format!("{} is not loaded here; try again", version.plugin));
        let plan = self.held(slot, version).ok_or_else(not_loaded)?;
        let BindingVersion { digest, reference, configuration, on_fault, .. } = version.clone();
        let target = Target { digest, reference, configuration, on_fault };
        let followed = self.in_folder(&target.reference);
        let record = next_record(slot, stored.bound.as_ref(), target, &version.plugin, followed);
        let entry = Entry::new(What::Promoted, version, author);
        self.put_in_force(record, stored.partitions.clone(), plan, EventKind::Promoted, entry, None)
    }

    fn discard(&self, slot: &Slot, author: &Author) -> Result<Binding, PluginError> {
        let (_turn, stored) = self.turn(slot)?;
        let (stored, candidate) = tried(slot, stored.as_deref())?;
        self.end(stored, candidate, What::Discarded, author)?;
        self.shown(slot)
    }

    /// Ends a trial. For a thread that has the slot's turn.
    fn end(
        &self,
        stored: &SlotRecord,
        CandidateRecord { version, trial }: &CandidateRecord,
        what: What,
        author: &Author,
    ) -> Result<(), PluginError> {
        let in_force = stored.current().map_or("the native rule", |current| &current.plugin);
        let entry = Entry::new(what, version, author).mode(trial.mode.as_str());
        let entry = entry.outcome(format!("{in_force} answers for all keys"));
        self.save(&SlotRecord { candidate: None, ..stored.clone() }, Some(&entry))?;
        self.change_candidate(&stored.slot, None);
        let kind = if what == What::Discarded { EventKind::Discarded } else { EventKind::TakenBack };
        self.tell(kind, &stored.slot, &entry);
        if what == What::TakenBack {
            self.shared.totals[stored.slot.hook as usize].taken_back();
        }
        Ok(())
    }

    /// Replaces what is known of a slot's candidate, and publishes it. For a thread that has the slot's turn.
    pub(super) fn change_candidate(&self, slot: &Slot, record: Option<CandidateRecord>) {
        let before = {
            let mut state = lock(&self.state);
            let Some(live) = state.bindings.get(slot) else { return };
            let old = live.candidate.clone();
            let is_as_before = match (&old, &record) {
                (None, None) => true,
                (Some(old), Some(record)) => old.record == *record && old.active.primary.is_ok(),
                _ => false,
            };
            if is_as_before {
                return;
            }
            let next = record.map(|record| self.candidate(&state, slot, old.as_ref(), record));
            if let Some(live) = state.bindings.get_mut(slot) {
                live.candidate = next;
            }
            self.publish(&state);
            old
        };
        drop(before);
    }

    /// A candidate, whose program something else holds in memory. Another step of the same trial keeps what was seen.
    pub(super) fn candidate(
        &self,
        state: &HostState,
        slot: &Slot,
        old: Option<&Arc<Candidate>>,
        record: CandidateRecord,
    ) -> Arc<Candidate> {
        let is_same = |old: &&Arc<Candidate>| {
            old.record.trial.began_ms == record.trial.began_ms && old.record.version == record.version
        };
        if let Some(old) = old.filter(is_same).filter(|old| old.active.primary.is_ok()) {
            return Arc::new(Candidate { record, active: old.active.clone(), watch: old.watch.clone() });
        }
        let version = record.version.clone();
        let known = self.loaded(version.digest).zip(state.library.get(version.digest));
        let missing = || PluginError::NotFound(format!("plugin {} is not loaded here", version.digest));
        let primary = known.map(|(program, artifact)| plan(&program, artifact, &version.configuration));
        let active = ActiveBinding {
            tenant: slot.tenant.clone(),
            hook: slot.hook,
            primary: primary.ok_or_else(|| LoadError(missing())),
            version,
            fallback: None,
            counters: Arc::new(Counters::logging_to(self.shared.logs.of(slot))),
            shared: self.shared.clone(),
            is_quiet: true,
        };
        Arc::new(Candidate { record, active: Arc::new(active), watch: Arc::new(Watch::default()) })
    }

    fn tend(&self) -> Result<bool, PluginError> {
        let candidates: Vec<(Slot, Arc<Candidate>)> = {
            let state = lock(&self.state);
            let tried = |(slot, live): (&Slot, &super::LiveBinding)| Some((slot.clone(), live.candidate.clone()?));
            state.bindings.iter().filter_map(tried).collect()
        };
        let (mut changed, mut failed) = (false, None);
        for (slot, candidate) in candidates {
            // One that fails does not hold up the others.
            match self.tend_one(&slot, &candidate) {
                Ok(has_changed) => changed |= has_changed,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    fn tend_one(&self, slot: &Slot, candidate: &Candidate) -> Result<bool, PluginError> {
        let (now, trial) = (now_ms(), &candidate.record.trial);
        let (seen, found) = candidate.watch.tick(&trial.bounds, now);
        if let Some(finding) = found {
            candidate.report(finding);
        }
        let missing = candidate.active.primary.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if seen.is_some() || !missing.is_empty() {
            self.say(slot, trial.began_ms, &Report::of(&seen.unwrap_or_default(), missing))?;
            candidate.watch.reported();
        }
        let (window, _) = self.window(slot, trial, now)?;
        match trial.next(&window, now) {
            Next::Wait => Ok(false),
            next => self.make_due(slot, &candidate.record, next, now),
        }
    }

    /// What all coordinators have seen within the last window, and who cannot ask it.
    fn window(&self, slot: &Slot, trial: &Trial, now: u64) -> Result<(Seen, Vec<(NodeId, String)>), PluginError> {
        let since = now.saturating_sub(u64::from(trial.bounds.window_s) * 1000);
        let (mut sum, mut missing) = (Seen::default(), Vec::new());
        for stored in self.store.reports(slot, trial.began_ms, since)? {
            let report = Report::decode(&stored.text);
            sum.add(&report.seen());
            if !report.missing.is_empty() {
                missing.retain(|(coordinator, _)| *coordinator != stored.coordinator);
                missing.push((stored.coordinator, report.missing));
            }
        }
        Ok((sum, missing))
    }

    /// Makes what is due, unless somebody else has done so. True if the binding has changed.
    fn make_due(&self, slot: &Slot, from: &CandidateRecord, next: Next, now: u64) -> Result<bool, PluginError> {
        let (_turn, stored) = self.turn(slot)?;
        let Some(stored) = stored.filter(|stored| stored.candidate.as_ref() == Some(from)) else { return Ok(false) };
        match next {
            Next::Wait => return Ok(false),
            Next::TakeBack(finding) => {
                self.end(&stored, from, What::TakenBack, &self.author(finding.to_string()))?;
            }
            Next::Step(percent) => {
                let CandidateRecord { version, trial } = from.clone();
                let trial = trial.at(percent, now);
                let entry = Entry::new(What::Stepped, &version, &self.author("nothing was found in its window"));
                let entry = entry.mode(trial.mode.as_str()).outcome(described(&trial));
                let record = SlotRecord { candidate: Some(CandidateRecord { version, trial }), ..(*stored).clone() };
                self.save(&record, Some(&entry))?;
                self.change_candidate(slot, record.candidate);
                self.tell(EventKind::Tried, slot, &entry);
            }
            Next::Promote => {
                let author = self.author("its time has passed, and nothing was found");
                self.put_candidate_in_force(&stored, from, &author)?;
            }
        }
        Ok(true)
    }

    fn report(&self, slot: &Slot) -> Result<ReportView, PluginError> {
        let (binding, active, candidate) = {
            let state = lock(&self.state);
            let live = state.bindings.get(slot).ok_or_else(|| no_binding(slot))?;
            (live.view(), live.active.clone(), live.candidate.clone())
        };
        let candidate = candidate.map(|candidate| {
            let (window, missing) = self.window(slot, &candidate.record.trial, now_ms())?;
            let (total, examples) = candidate.watch.total();
            let counters = &candidate.active.counters;
            Ok::<_, PluginError>(CandidateView {
                record: candidate.record.clone(),
                window,
                total,
                missing,
                counts: counters.read(),
                gauges: counters.gauges(),
                examples,
            })
        });
        let latencies = active.counters.latencies();
        Ok(ReportView { binding, latencies, candidate: candidate.transpose()? })
    }

    /// The binding as it is shown.
    fn shown(&self, slot: &Slot) -> Result<Binding, PluginError> {
        let state = lock(&self.state);
        state.bindings.get(slot).map(super::LiveBinding::view).ok_or_else(|| no_binding(slot))
    }

    /// Tells of what the history says.
    fn tell(&self, kind: EventKind, slot: &Slot, entry: &Entry) {
        let reason = if entry.reason.is_empty() { String::new() } else { format!("{}; ", entry.reason) };
        let mut event = Event::new(kind, format!("{reason}{}", entry.outcome)).at(slot.tenant.clone(), slot.hook);
        event.plugin = format!("{}@{}", entry.name, entry.version);
        event.digest = witan_kernel::port::Digest::parse(&entry.digest);
        self.shared.events.emit(event);
    }
}
