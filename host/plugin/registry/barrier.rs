//! The barrier before a version is put in force: every live coordinator loads and probes it first, so that all switch at the same time and
//! none answers by the version of before because it still compiles. Coordinators have no channel to each other: who is to load what, and
//! who has, is on record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use witan_kernel::name::NodeId;
use witan_kernel::port::{CandidateReport, RecordText, Slot};
use witan_kernel::sync::lock;

use super::change::plan;
use super::proposal::BindRequest;
use super::target::Target;
use super::{Inner, PluginHost};
use crate::binding::BindingVersion;
use crate::candidate::Report;
use crate::error::PluginError;
use crate::history::now_ms;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(25);

/// A version that a slot is to have next.
pub(super) struct Coming {
    slot: Slot,
    /// Its number is that of the preparation.
    version: BindingVersion,
}

impl PluginHost {
    /// Has a version loaded by every other live coordinator.
    ///
    /// # Errors
    /// [`PluginError::NotReady`] with the names of those that have not loaded it in time, or cannot.
    pub(super) async fn ready_everywhere(&self, coming: Coming) -> Result<(), PluginError> {
        let Coming { slot, version } = coming;
        let (of, text) = (slot.clone(), version.encode());
        let begun = self.change(&self.inner.lanes.back, move |inner| {
            let waits = !inner.other_coordinators()?.is_empty();
            if waits {
                inner.store.prepare(&of, Some(RecordText(text)))?;
            }
            Ok(waits)
        });
        if !begun.await? {
            return Ok(());
        }
        let within = self.inner.limits().ready;
        let until = Instant::now() + within;
        let waited = loop {
            let of = slot.clone();
            let missing = self.change(&self.inner.lanes.back, move |inner| inner.not_ready(&of, version.number)).await;
            match missing {
                Ok(missing) if missing.is_empty() => break Ok(()),
                Ok(missing) => match missing.iter().find(|(_, why)| !why.is_empty()) {
                    Some((coordinator, why)) => {
                        break Err(PluginError::NotReady(format!("coordinator {coordinator} cannot load it: {why}")));
                    }
                    None if Instant::now() >= until => break Err(late(&missing, within)),
                    None => tokio::time::sleep(LOOK).await,
                },
                Err(error) => break Err(error),
            }
        };
        let done = self.change(&self.inner.lanes.back, move |inner| Ok(inner.store.prepare(&slot, None)?)).await;
        waited.and(done)
    }
}

/// Says of whom the version is still awaited.
fn late(missing: &BTreeMap<NodeId, String>, within: Duration) -> PluginError {
    let names: Vec<_> = missing.keys().map(ToString::to_string).collect();
    let (who, within) = (names.join(", "), within.as_secs());
    PluginError::NotReady(format!(
        "not loaded within {within} s by: {who}; nothing has changed: look at these coordinators, or try again"
    ))
}

impl Inner {
    /// What a request would put in force; `None`: nothing new, or there are no other coordinators.
    pub(super) fn coming(&self, request: BindRequest) -> Result<Option<Coming>, PluginError> {
        if !self.store.is_shared() {
            return Ok(None);
        }
        // A refusal is reported by the change itself.
        let Ok((slot, target)) = self.target(request) else { return Ok(None) };
        if self.is_in_force(&slot, &target).is_some() {
            return Ok(None);
        }
        match self.probed(&slot, &target) {
            Ok((_, artifact)) => {
                let Target { digest, reference, configuration, on_fault } = target;
                let (plugin, number) = (artifact.plugin(), now_ms());
                let version = BindingVersion { number, digest, reference, plugin, configuration, on_fault };
                Ok(Some(Coming { slot, version }))
            }
            Err(_) => Ok(None),
        }
    }

    /// The other live coordinators that load what is prepared.
    fn other_coordinators(&self) -> Result<Vec<NodeId>, PluginError> {
        let live = self.store.coordinators()?.into_iter();
        Ok(live.filter(|(id, knows)| *knows && *id != self.coordinator).map(|(id, _)| id).collect())
    }

    /// The live coordinators that have not loaded a version, each with why it cannot, if it has said so.
    fn not_ready(&self, slot: &Slot, number: u64) -> Result<BTreeMap<NodeId, String>, PluginError> {
        let mut missing: BTreeMap<NodeId, String> =
            self.other_coordinators()?.into_iter().map(|id| (id, String::new())).collect();
        for report in self.store.reports(slot, number, 0)? {
            let why = Report::decode(&report.text).missing;
            if why.is_empty() {
                missing.remove(&report.coordinator);
            } else if let Some(said) = missing.get_mut(&report.coordinator) {
                *said = why;
            }
        }
        Ok(missing)
    }

    /// Loads what a slot is to have next, if that is on record, and says so. It is held until the slot changes.
    pub(super) fn make_ready(&self, slot: &Slot) -> Result<(), PluginError> {
        let Some(RecordText(text)) = self.store.prepared(slot)? else {
            let held = lock(&self.preparing).remove(slot);
            drop(held);
            return Ok(());
        };
        let version = BindingVersion::decode(&text)?;
        if lock(&self.preparing).get(slot).is_some_and(|(number, _)| *number == version.number) {
            return Ok(());
        }
        self.learn(std::iter::once(version.digest))?;
        let loaded = self.program(version.digest).and_then(|(program, artifact)| {
            self.probe(&plan(&program, &artifact, &version.configuration), &artifact)?;
            Ok(program)
        });
        if let Err(error) = &loaded
            && error.is_busy()
        {
            // That says nothing about the version: it is tried again with the next look at the slot.
            return loaded.map(drop);
        }
        let missing = loaded.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.say(slot, version.number, &Report { missing, ..Report::default() })?;
        if let Ok(program) = loaded {
            let before = lock(&self.preparing).insert(slot.clone(), (version.number, program));
            drop(before);
        }
        Ok(())
    }

    /// Puts on record what this coordinator says of a version.
    pub(super) fn say(&self, slot: &Slot, number: u64, report: &Report) -> Result<(), PluginError> {
        let mut text = report.encode();
        if text.len() > witan_kernel::port::REPORT_BYTES {
            // Only a long reason can make it so long.
            let missing = crate::fault::shorten(&report.missing);
            text = Report { missing, ..report.clone() }.encode();
        }
        let (slot, coordinator) = (slot.clone(), self.coordinator.clone());
        Ok(self.store.report(CandidateReport { slot, number, coordinator, at_ms: now_ms(), text })?)
    }
}
