//! What a binding is to be next, and its record.

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::port::Slot;

use crate::binding::{BindingRecord, BindingVersion, OnFault, Reference};
use crate::digest::Digest;
use crate::error::PluginError;
use crate::limit;

/// The version that a binding is to have next.
pub(super) struct Target {
    pub(super) digest: Digest,
    pub(super) reference: Reference,
    pub(super) configuration: Bytes,
    pub(super) on_fault: OnFault,
}

impl Target {
    pub(super) fn is(&self, version: &BindingVersion) -> bool {
        self.digest == version.digest
            && self.reference == version.reference
            && self.configuration == version.configuration
            && self.on_fault == version.on_fault
    }
}

/// The record with the target as its next version.
pub(super) fn next_record(
    slot: &Slot,
    old: Option<&BindingRecord>,
    target: Target,
    plugin: &str,
    followed: Option<Digest>,
) -> BindingRecord {
    let mut previous: Vec<BindingVersion> =
        old.into_iter().flat_map(|old| old.previous.iter().chain([&old.current]).cloned()).collect();
    previous.drain(..previous.len().saturating_sub(limit::HISTORY));
    let current = BindingVersion {
        number: old.map_or(1, |old| old.current.number + 1),
        digest: target.digest,
        reference: target.reference,
        plugin: plugin.to_owned(),
        configuration: target.configuration,
        on_fault: target.on_fault,
    };
    BindingRecord { tenant: slot.tenant.clone(), hook: slot.hook, current, previous, followed }
}

/// There is nothing to go back to.
pub(super) fn no_earlier(hook: Hook) -> PluginError {
    PluginError::Invalid(format!("the {hook} binding has no earlier version; unbind it instead"))
}

pub(super) fn no_binding(slot: &Slot) -> PluginError {
    let whose = slot.tenant.as_ref().map_or("the default".to_owned(), |tenant| format!("tenant {tenant}"));
    PluginError::NotFound(format!("{whose} has no {} binding", slot.hook))
}
