//! Plugin bindings on record: one text per slot, replaced by compare-and-swap.

use std::fmt;

#[cfg(doc)]
use super::StoreError;
use super::{Answer, Digest};
use crate::hook::Hook;
use crate::name::TenantId;

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

/// Plugin bindings on record.
pub trait BindingStore: Send + Sync + 'static {
    /// Every slot's record, by tenant and hook. At most [`BINDINGS`].
    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>>;

    /// One slot's record.
    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>>;

    /// Replaces a slot's record of version `expected` (0: there is none yet) and returns the new version, which is greater than
    /// any that the slot has had. A record names the artifacts it needs by their digests in lower-case hexadecimal digits; the
    /// artifact `puts_in_force`, if given, must exist. [`StoreError::Conflict`] when another version is stored;
    /// [`StoreError::Missing`] when the artifact does not exist; [`StoreError::Refused`] for more than [`BINDING_RECORD_BYTES`]
    /// or beyond [`BINDINGS`]. `fenced`: every storage node on record owes the fence that the change
    /// [needs](crate::fence::of_binding), if it needs one.
    fn save_binding_record(
        &self,
        slot: &Slot,
        expected: u64,
        record: String,
        puts_in_force: Option<Digest>,
        fenced: bool,
    ) -> Answer<u64>;

    /// Removes a slot's record of version `expected`. Not an error when there is none. [`StoreError::Conflict`] when another
    /// version is stored. `fenced`: as in [`BindingStore::save_binding_record`].
    fn remove_binding_record(&self, slot: &Slot, expected: u64, fenced: bool) -> Answer<()>;
}
