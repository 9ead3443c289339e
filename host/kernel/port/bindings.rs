//! Plugin bindings on record: one text per slot, replaced by compare-and-swap.

use std::fmt;

#[cfg(doc)]
use super::StoreError;
use super::{Answer, Digest};
use crate::hook::Hook;
use crate::name::{NodeId, TenantId};

/// Most slots with a binding: every hook of a thousand tenants.
pub const BINDINGS: usize = 4096;
/// Largest record of a slot's binding, in bytes: the binding in force and eight before it, each with 64 KiB of configuration in
/// hexadecimal digits, take 1.2 MB.
pub const BINDING_RECORD_BYTES: usize = 2 << 20;

/// Where a plugin is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The tenant; `None` is the default for tenants without a binding.
    pub tenant: Option<TenantId>,
    /// The hook that the plugin answers.
    pub hook: Hook,
}

impl Slot {
    /// The tenant's id as text, `""` for the default.
    pub fn tenant_text(&self) -> &str {
        self.tenant.as_ref().map_or("", TenantId::as_str)
    }

    /// The slot of a tenant's id as text, `""` for the default, and a hook's name.
    pub fn parse(tenant: &str, hook: &str) -> Option<Self> {
        let tenant = if tenant.is_empty() { None } else { Some(TenantId::new(tenant).ok()?) };
        Some(Self { tenant, hook: Hook::parse(hook)? })
    }
}

/// A slot's binding, as the plugin host has stored it. Its text may contain a tenant's secret and is not logged.
#[derive(Clone, PartialEq, Eq)]
pub struct BindingOnRecord {
    /// The slot.
    pub slot: Slot,
    /// Increases with every change; never 0.
    pub version: u64,
    /// The plugin host's own format.
    pub record: String,
}

impl fmt::Debug for BindingOnRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindingOnRecord")
            .field("slot", &self.slot)
            .field("version", &self.version)
            .field("record_bytes", &self.record.len())
            .finish()
    }
}

/// A change of a slot's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingChange {
    /// The slot.
    pub slot: Slot,
    /// The version that is stored now; 0: there is none.
    pub expected: u64,
    /// The plugin host's text; `None` removes it.
    pub record: Option<RecordText>,
    /// The artifact that it puts in force.
    pub puts_in_force: Option<Digest>,
    /// Whether every storage node on record owes the fence that the change [needs](crate::fence::of_binding), if it needs one.
    pub fenced: bool,
    /// What the slot's history says of it.
    pub entry: Option<String>,
}

/// The plugin host's text for a slot. It may contain a tenant's secret and is not logged.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordText(pub String);

impl fmt::Debug for RecordText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

/// An entry of a slot's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The version of the slot's record that the change has made: later changes have greater ones.
    pub number: u64,
    /// The plugin host's text, without secrets.
    pub text: String,
}

/// Entries of each slot's history that are kept, the newest.
pub const HISTORY_ENTRIES: usize = 100;
/// Largest entry of a history, in bytes: a few names, a digest and a reason.
pub const HISTORY_ENTRY_BYTES: usize = 4096;

/// How long reports are kept, in milliseconds: a day.
pub const REPORTS_KEPT_MS: u64 = 24 * 3600 * 1000;
/// Largest report, in bytes: counts, and a histogram.
pub const REPORT_BYTES: usize = 4096;
/// Most reports of one candidate that are read at once: those of sixteen coordinators over the longest window.
pub const REPORTS: usize = 16 * crate::candidate::WINDOW_S as usize;

/// What one coordinator reports of one version of a slot, for a second or so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateReport {
    /// The slot.
    pub slot: Slot,
    /// The version's number.
    pub number: u64,
    /// Who reports.
    pub coordinator: NodeId,
    /// The end of the time that it is about: Unix time, milliseconds.
    pub at_ms: u64,
    /// The plugin host's text, without values.
    pub text: String,
}

/// Plugin bindings on record.
pub trait BindingStore: Send + Sync + 'static {
    /// Every slot's record, by tenant and hook. At most [`BINDINGS`].
    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>>;

    /// One slot's record.
    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>>;

    /// Replaces or removes a slot's record of version [`BindingChange::expected`] and returns the new version, which is greater than any
    /// that the slot has had; 0 if there was nothing to remove. A record names the artifacts it needs by their digests in lower-case
    /// hexadecimal digits; the artifact that it puts in force, if any, must exist. [`StoreError::Conflict`] when another version is stored;
    /// [`StoreError::Missing`] when the artifact does not exist; [`StoreError::Refused`] for more than [`BINDING_RECORD_BYTES`] or
    /// [`HISTORY_ENTRY_BYTES`], or beyond [`BINDINGS`].
    fn change_binding_record(&self, change: BindingChange) -> Answer<u64>;

    /// Replaces a slot's record, as [`Self::change_binding_record`], without an entry in its history.
    fn save_binding_record(
        &self,
        slot: &Slot,
        expected: u64,
        record: String,
        puts_in_force: Option<Digest>,
        fenced: bool,
    ) -> Answer<u64> {
        let (slot, record) = (slot.clone(), Some(RecordText(record)));
        self.change_binding_record(BindingChange { slot, expected, record, puts_in_force, fenced, entry: None })
    }

    /// Removes a slot's record, as [`Self::change_binding_record`], without an entry in its history. Not an error when there is none.
    fn remove_binding_record(&self, slot: &Slot, expected: u64, fenced: bool) -> Answer<()> {
        let slot = slot.clone();
        let change = BindingChange { slot, expected, record: None, puts_in_force: None, fenced, entry: None };
        let removed = self.change_binding_record(change);
        Box::pin(async move { removed.await.map(drop) })
    }

    /// A slot's history, the newest entry first. At most [`HISTORY_ENTRIES`].
    fn binding_history(&self, slot: &Slot) -> Answer<Vec<HistoryEntry>>;

    /// Keeps what a coordinator has seen of a candidate; one of the same moment is replaced. Those of the slot that are a day older are
    /// forgotten. [`StoreError::Refused`] outside the limits. This is no change that others follow.
    fn put_report(&self, report: CandidateReport) -> Answer<()>;

    /// What all coordinators have seen of a candidate since `since_ms`, by coordinator and time.
    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Answer<Vec<CandidateReport>>;

    /// Tells every coordinator to load a version that the slot is to have next, which others follow as a change of the slot; `None`: none
    /// is, which is no change that others follow.
    /// [`StoreError::Refused`] for more than [`BINDING_RECORD_BYTES`].
    fn prepare_binding(&self, slot: &Slot, version: Option<RecordText>) -> Answer<()>;

    /// The version that a slot is to have next.
    fn prepared_binding(&self, slot: &Slot) -> Answer<Option<RecordText>>;
}
