//! The bounds and the messages that every implementation shares.

use std::collections::HashSet;

use witan_kernel::limit;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

use super::{
    ADDRESS_BYTES, ARTIFACT_BYTES, ARTIFACTS, Artifact, BINDING_RECORD_BYTES, BINDINGS, CHANGES, COORDINATORS, Changed,
    Claim, CoordinatorOnRecord, Digest, HOST_BYTES, LEASE_MS, NODES, PAGE, PLUGIN_NAME_BYTES, PLUGIN_SOURCE_BYTES,
    PLUGIN_VERSION_BYTES, Slot, TOKEN_ID_BYTES, TOKEN_LABEL_BYTES, TOKENS, Token, VERSION_BYTES,
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
    text("a plugin's name", &artifact.entry.name, PLUGIN_NAME_BYTES)?;
    text("a plugin's version", &artifact.entry.version, PLUGIN_VERSION_BYTES)?;
    if let Some(file) = &artifact.entry.source {
        text("a plugin's file name", file, PLUGIN_SOURCE_BYTES)?;
    }
    let is = artifact.bytes.len();
    if !(1..=ARTIFACT_BYTES).contains(&is) {
        return Err(StoreError::Refused(format!("the plugin has {is} bytes; use 1 to {ARTIFACT_BYTES}")));
    }
    Ok(())
}

pub(super) fn binding_record(record: &str) -> Result<(), StoreError> {
    text("a binding's record", record, BINDING_RECORD_BYTES)
}

pub(super) fn claim(claim: &Claim, lease_ms: u64) -> Result<(), StoreError> {
    text("a coordinator's address", &claim.address, ADDRESS_BYTES)?;
    text("a coordinator's version", &claim.version, VERSION_BYTES)?;
    if !(1..=LEASE_MS).contains(&lease_ms) {
        return Err(StoreError::Refused(format!("a lease of {lease_ms} ms; use 1 to {LEASE_MS}")));
    }
    Ok(())
}

pub(super) fn token(token: &Token) -> Result<(), StoreError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if token.id.is_empty() || token.id.len() > TOKEN_ID_BYTES || !token.id.bytes().all(good) {
        return Err(StoreError::Refused(format!("a token's id has 1 to {TOKEN_ID_BYTES} of a-z, 0-9 and '-'")));
    }
    if token.label.is_empty() { Ok(()) } else { text("a token's label", &token.label, TOKEN_LABEL_BYTES) }
}

/// What a claim on a node id comes to, given the coordinator that is on record for it, if any.
pub(super) enum Granting {
    /// It goes on under the fence it has.
    Renewed(u64),
    /// It begins, under a new fence.
    New,
}

/// Whether a claim is granted. One's own lease that has run out is a new one: somebody may have counted on its end.
pub(super) fn grant(
    claim: &Claim,
    on_record: Option<&CoordinatorOnRecord>,
    now_ms: u64,
) -> Result<Granting, StoreError> {
    match on_record {
        Some(holder) if holder.until_ms > now_ms && holder.claim.instance == claim.instance => {
            Ok(Granting::Renewed(holder.fence))
        }
        Some(holder) if holder.until_ms > now_ms => Err(StoreError::Conflict(format!(
            "coordinator {} is running already, at {} (version {}), and has the id for another {} ms at least; \
             give this one an id of its own, or stop that one first",
            claim.node_id,
            holder.claim.address,
            holder.claim.version,
            holder.until_ms - now_ms
        ))),
        _ => Ok(Granting::New),
    }
}

fn text(what: &str, text: &str, most: usize) -> Result<(), StoreError> {
    if text.is_empty() || text.len() > most || text.contains('\0') {
        let is = text.len();
        return Err(StoreError::Refused(format!("{what} has {is} bytes; use 1 to {most}, none of them zero")));
    }
    Ok(())
}

pub(super) fn lost_update(id: &TenantId, expected: u64, stored: u64) -> StoreError {
    StoreError::Conflict(format!(
        "tenant {id} is at version {stored}, not {expected}; read it again and repeat the change"
    ))
}

/// The revision from which on all changes are remembered, when the newest is `revision`.
pub(super) fn remembered_from(revision: u64) -> u64 {
    revision.saturating_sub(CHANGES)
}

/// True when all changes after `after` are remembered. A revision of the future means that the store was set back.
pub(super) fn complete(after: u64, revision: u64) -> bool {
    (remembered_from(revision)..=revision).contains(&after)
}

pub(super) fn other_record(slot: &Slot, expected: u64, stored: u64) -> StoreError {
    let told = |version| if version == 0 { "none".to_owned() } else { format!("version {version}") };
    StoreError::Conflict(format!(
        "the {}'s binding was changed by another coordinator ({} is stored, {} was expected); look at it and repeat the change",
        slot.hook,
        told(stored),
        told(expected)
    ))
}

pub(super) fn too_many_bindings() -> StoreError {
    StoreError::Refused(format!("there are {BINDINGS} bindings, the most there can be; remove one first"))
}

pub(super) fn too_many_coordinators() -> StoreError {
    StoreError::Refused(format!("there are {COORDINATORS} live coordinators, the most there can be"))
}

pub(super) fn token_exists(id: &str) -> StoreError {
    StoreError::Exists(format!("token {id}"))
}

pub(super) fn no_token(id: &str) -> StoreError {
    StoreError::Missing(format!("token {id}"))
}

pub(super) fn too_many_tokens() -> StoreError {
    StoreError::Refused(format!("there are {TOKENS} tokens, the most there can be; remove one first"))
}

pub(super) fn tenant_exists(stored: &Tenant) -> StoreError {
    let id = &stored.id;
    StoreError::Exists(match stored.deleted_at_ms {
        Some(_) => format!("tenant {id} was deleted, and its id is not given again: it"),
        None => format!("tenant {id}"),
    })
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

/// Whether the store id of a node may be replaced: `on_record` is its own, `others` are those of other nodes. False when there
/// is nothing to do.
pub(super) fn replaces_store(
    id: &NodeId,
    on_record: Option<StoreId>,
    from: StoreId,
    to: StoreId,
    mut others: impl Iterator<Item = StoreId>,
) -> Result<bool, StoreError> {
    if on_record == Some(to) {
        return Ok(false);
    }
    if on_record != Some(from) {
        let why =
            format!("storage node {id} has another store on record than {from}; look again, and repeat the repair");
        return Err(StoreError::Conflict(why));
    }
    if others.any(|other| other == to) {
        let why = format!("the store {to} of storage node {id} is another node's: was its folder copied?");
        return Err(StoreError::Refused(why));
    }
    Ok(true)
}

pub(super) fn too_many_nodes() -> StoreError {
    StoreError::Refused(format!("there are {NODES} storage nodes, the most there can be"))
}

pub(super) fn no_artifact(digest: Digest) -> StoreError {
    StoreError::Missing(format!("plugin {digest}"))
}

pub(super) fn needed_artifact(digest: Digest) -> StoreError {
    StoreError::Refused(format!("plugin {digest} is bound, or kept for a rollback; unbind it first"))
}

pub(super) fn too_many_artifacts() -> StoreError {
    StoreError::Refused(format!("there are {ARTIFACTS} plugins, the most there can be; remove one first"))
}

/// Each change once, where it stands last.
pub(super) fn each_once(all: impl DoubleEndedIterator<Item = Changed>) -> Vec<Changed> {
    let mut seen = HashSet::new();
    let mut changed: Vec<Changed> = all.rev().filter(|changed| seen.insert(changed.clone())).collect();
    changed.reverse();
    changed
}

pub(super) fn too_new(needs: u64) -> StoreError {
    StoreError::Conflict(format!(
        "the metadata were changed by a newer version of this program, and only one that knows their schema {needs} can \
         work on them; run that version"
    ))
}
