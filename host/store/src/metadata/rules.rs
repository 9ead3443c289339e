//! The bounds and the messages that every implementation shares.

use witan_kernel::hook::Hook;
use witan_kernel::limit;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

use super::{
    ARTIFACT_BYTES, ARTIFACTS, Artifact, CONFIGURATION_BYTES, Digest, HOST_BYTES, Mode, NODES, PAGE, PLUGIN_NAME_BYTES,
    PLUGIN_VERSION_BYTES, Slot, Terms,
};

pub(super) fn page(limit: u32) -> u32 {
    limit.clamp(1, PAGE)
}

pub(super) fn tenant(tenant: &Tenant) -> Result<(), StoreError> {
    text("tenant_id", tenant.id.as_str(), limit::TENANT_BYTES)?;
    let factor = tenant.replication_factor;
    if !limit::REPLICATION_FACTOR.contains(&factor) {
        return Err(StoreError::Refused(format!(
            "replication_factor is {factor}; use {:?}",
            limit::REPLICATION_FACTOR
        )));
    }
    Ok(())
}

pub(super) fn node(node: &StorageNode) -> Result<(), StoreError> {
    text("host", &node.host, HOST_BYTES)?;
    if !(1..=limit::MAX_VIRTUAL_NODES).contains(&node.virtual_nodes) {
        let (is, most) = (node.virtual_nodes, limit::MAX_VIRTUAL_NODES);
        return Err(StoreError::Refused(format!("virtual_nodes is {is}; use 1 to {most}")));
    }
    Ok(())
}

pub(super) fn artifact(artifact: &Artifact) -> Result<(), StoreError> {
    text("a plugin's name", &artifact.name, PLUGIN_NAME_BYTES)?;
    text("a plugin's version", &artifact.version, PLUGIN_VERSION_BYTES)?;
    if !(1..=ARTIFACT_BYTES).contains(&artifact.bytes.len()) {
        let is = artifact.bytes.len();
        return Err(StoreError::Refused(format!("the plugin has {is} bytes; use 1 to {ARTIFACT_BYTES}")));
    }
    Ok(())
}

pub(super) fn terms(terms: &Terms) -> Result<(), StoreError> {
    if terms.configuration.len() > CONFIGURATION_BYTES {
        let is = terms.configuration.len();
        return Err(StoreError::Refused(format!(
            "the configuration has {is} bytes; use at most {CONFIGURATION_BYTES}"
        )));
    }
    if let Mode::Canary { percent: percent @ 101.. } = terms.mode {
        return Err(StoreError::Refused(format!("a canary's percent is {percent}; use 0 to 100")));
    }
    terms.by_name.as_deref().map_or(Ok(()), |name| text("a plugin's name", name, PLUGIN_NAME_BYTES))
}

fn text(what: &str, text: &str, most: usize) -> Result<(), StoreError> {
    if text.is_empty() || text.len() > most || text.contains('\0') {
        let is = text.len();
        return Err(StoreError::Refused(format!("{what} has {is} bytes; use 1 to {most}, none of them zero")));
    }
    Ok(())
}

pub(super) fn lost_update(tenant: &Tenant, stored: u64) -> StoreError {
    StoreError::Conflict(format!(
        "tenant {} is at version {stored}, not {}; read it again and repeat the change",
        tenant.id, tenant.version
    ))
}

pub(super) fn not_in_force(slot: &Slot, from: u64, in_force: u64) -> StoreError {
    let hook = slot.hook;
    StoreError::Conflict(format!(
        "binding {in_force} of the {hook} is in force, not {from}; look at the bindings again"
    ))
}

pub(super) fn nothing_bound(slot: &Slot) -> StoreError {
    StoreError::Missing(format!("a binding of the {}", slot.hook))
}

pub(super) fn forgotten(slot: &Slot, number: u64) -> StoreError {
    StoreError::Missing(format!("binding {number} of the {} (no longer)", slot.hook))
}

pub(super) fn same_hook(terms: &Terms, of_artifact: Hook) -> Result<(), StoreError> {
    if terms.slot.hook == of_artifact {
        return Ok(());
    }
    let hook = terms.slot.hook;
    Err(StoreError::Conflict(format!("plugin {} decides as {of_artifact}, not as {hook}", terms.digest)))
}

pub(super) fn tenant_exists(id: &TenantId) -> StoreError {
    StoreError::Exists(format!("tenant {id}"))
}

pub(super) fn no_tenant(id: &TenantId) -> StoreError {
    StoreError::Missing(format!("tenant {id}"))
}

pub(super) fn node_exists(id: &NodeId) -> StoreError {
    StoreError::Exists(format!("storage node {id}"))
}

pub(super) fn no_node(id: &NodeId) -> StoreError {
    StoreError::Missing(format!("storage node {id}"))
}

pub(super) fn too_many_nodes() -> StoreError {
    StoreError::Refused(format!("there are {NODES} storage nodes, the most there can be"))
}

pub(super) fn no_artifact(digest: Digest) -> StoreError {
    StoreError::Missing(format!("plugin {digest}"))
}

pub(super) fn artifact_bound(digest: Digest) -> StoreError {
    StoreError::Conflict(format!(
        "plugin {digest} is bound, or is what a binding would roll back to; bind another first"
    ))
}

pub(super) fn too_many_artifacts() -> StoreError {
    StoreError::Refused(format!("there are {ARTIFACTS} plugins, the most there can be; remove one first"))
}
