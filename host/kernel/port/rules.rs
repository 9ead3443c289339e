//! Limits and error texts that every implementation of the metadata and idempotency stores shares.

use std::collections::HashSet;

use super::owners::NotOwned;
use super::{
    ADDRESS_BYTES, ARTIFACT_BYTES, BINDING_RECORD_BYTES, BINDINGS, BindingChange, CAPABILITIES_BYTES, CHANGES,
    COORDINATORS, CandidateReport, Changed, Claim, Component, CoordinatorOnRecord, Digest, HISTORY_ENTRY_BYTES,
    HOST_BYTES, LEASE_MS, NODES, PAGE, PLUGIN_CLASS_REASON_BYTES, PLUGIN_NAME_BYTES, PLUGIN_SOURCE_BYTES,
    PLUGIN_VERSION_BYTES, PUSH_REASON_BYTES, PushOnRecord, REPORT_BYTES, Slot, Source, StorageNode, StoreError,
    TOKEN_ID_BYTES, TOKEN_LABEL_BYTES, TOKENS, Token, VERSION_BYTES,
};
use super::{SIGNING_KEY_ID_BYTES, SIGNING_KEYS, SigningKey};
use crate::capability::{CANDIDATES, CLASSES, GENERATIONS, MAINTENANCE, MOVES, OWNERS, SMALL_RECORDS, ZONES};
use crate::class::Class;
use crate::idempotency::{RESPONSE_BYTES, Step};
use crate::limit;
use crate::name::{NodeId, TenantId, shown};
use crate::tenant::Tenant;

/// Rows of a page for which `limit` were asked.
pub fn page(limit: u32) -> u32 {
    limit.clamp(1, PAGE)
}

/// Checks a tenant against the data model's limits.
pub fn tenant(tenant: &Tenant) -> Result<(), StoreError> {
    text("tenant_id", tenant.id.as_str(), limit::TENANT_BYTES)?;
    let factor = tenant.replication_factor;
    if !limit::REPLICATION_FACTOR.contains(&factor) {
        return Err(StoreError::Refused(format!(
            "replication_factor is {factor}; use {:?}",
            limit::REPLICATION_FACTOR
        )));
    }
    let kept = tenant.idempotency_retention_ms;
    if !limit::IDEMPOTENCY_RETENTION_MS.contains(&kept) {
        let range = limit::IDEMPOTENCY_RETENTION_MS;
        return Err(StoreError::Refused(format!("idempotency_retention is {kept} ms; use {range:?}")));
    }
    Ok(())
}

/// Checks a storage node's host and virtual nodes.
pub fn node(node: &StorageNode) -> Result<(), StoreError> {
    text("host", &node.host, HOST_BYTES)?;
    if !(1..=limit::MAX_VIRTUAL_NODES).contains(&node.virtual_nodes) {
        let (is, most) = (node.virtual_nodes, limit::MAX_VIRTUAL_NODES);
        return Err(StoreError::Refused(format!("virtual_nodes is {is}; use 1 to {most}")));
    }
    Ok(())
}

/// Checks a component's size and names.
pub fn component(component: &Component) -> Result<(), StoreError> {
    text("a plugin's name", &component.artifact.name, PLUGIN_NAME_BYTES)?;
    text("a plugin's version", &component.artifact.version, PLUGIN_VERSION_BYTES)?;
    let reason = component.artifact.class_reason.len();
    if reason > PLUGIN_CLASS_REASON_BYTES {
        let most = PLUGIN_CLASS_REASON_BYTES;
        return Err(StoreError::Refused(format!("the reason for a plugin's class has {reason} bytes; at most {most}")));
    }
    if let Source::File(file) = &component.artifact.source {
        text("a plugin's file name", file, PLUGIN_SOURCE_BYTES)?;
    }
    let is = component.bytes.len();
    if !(1..=ARTIFACT_BYTES).contains(&is) {
        return Err(StoreError::Refused(format!("the plugin has {is} bytes; use 1 to {ARTIFACT_BYTES}")));
    }
    Ok(())
}

/// Checks the size of a binding's record.
pub fn binding_record(record: &str) -> Result<(), StoreError> {
    text("a binding's record", record, BINDING_RECORD_BYTES)
}

/// Checks a change of a binding's record.
pub fn binding_change(change: &BindingChange) -> Result<(), StoreError> {
    if let Some(record) = &change.record {
        binding_record(&record.0)?;
    }
    change.entry.as_ref().map_or(Ok(()), |entry| text("an entry of a binding's history", entry, HISTORY_ENTRY_BYTES))
}

/// Checks what a coordinator reports of a candidate.
pub fn report(report: &CandidateReport) -> Result<(), StoreError> {
    text("a report of a candidate", &report.text, REPORT_BYTES)
}

/// Checks a claim and the length of its lease.
pub fn claim(claim: &Claim, lease_ms: u64) -> Result<(), StoreError> {
    text("a coordinator's address", &claim.address, ADDRESS_BYTES)?;
    text("a coordinator's version", &claim.version, VERSION_BYTES)?;
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let named = |name: &String| !name.is_empty() && name.bytes().all(good);
    let bytes: usize = claim.capabilities.iter().map(|name| name.len() + 1).sum();
    if bytes > CAPABILITIES_BYTES || !claim.capabilities.iter().all(named) {
        return Err(StoreError::Refused(format!(
            "a coordinator's capabilities have {bytes} bytes; use at most {CAPABILITIES_BYTES}, each of a-z, 0-9 and '-'"
        )));
    }
    if !(1..=LEASE_MS).contains(&lease_ms) {
        return Err(StoreError::Refused(format!("a lease of {lease_ms} ms; use 1 to {LEASE_MS}")));
    }
    Ok(())
}

/// Checks a token's id and label.
pub fn token(token: &Token) -> Result<(), StoreError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if token.id.is_empty() || token.id.len() > TOKEN_ID_BYTES || !token.id.bytes().all(good) {
        return Err(StoreError::Refused(format!("a token's id has 1 to {TOKEN_ID_BYTES} of a-z, 0-9 and '-'")));
    }
    if token.label.is_empty() { Ok(()) } else { text("a token's label", &token.label, TOKEN_LABEL_BYTES) }
}

/// Checks the response that a step records, and returns its size in bytes; 0 for a step that records none.
pub fn response_bytes(step: &Step) -> Result<usize, StoreError> {
    match step {
        Step::Done { response, .. } if response.len() > RESPONSE_BYTES => Err(StoreError::Refused(format!(
            "a response to record has {} bytes; at most {RESPONSE_BYTES} are recorded",
            response.len()
        ))),
        Step::Done { response, .. } => Ok(response.len()),
        Step::Reserve { .. } | Step::Stamp { .. } | Step::Release { .. } | Step::Abandon { .. } => Ok(0),
    }
}

fn text(what: &str, text: &str, most: usize) -> Result<(), StoreError> {
    if text.is_empty() || text.len() > most || text.contains('\0') {
        let is = text.len();
        return Err(StoreError::Refused(format!("{what} has {is} bytes; use 1 to {most}, none of them zero")));
    }
    Ok(())
}

/// How a claim on a node id is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granting {
    /// The lease is renewed under this fence.
    Renewed(u64),
    /// A new lease, under a new fence.
    New,
}

/// Decides on a claim, given the coordinator on record for its node id, if any. A holder's own expired lease is granted anew,
/// since others may have relied on its end.
pub fn grant(claim: &Claim, on_record: Option<&CoordinatorOnRecord>, now_ms: u64) -> Result<Granting, StoreError> {
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

/// The schema that every program of a capability's version knows, and none of an earlier version: whoever requires the capability
/// requires that.
pub fn schema_of(capability: &str) -> Result<u64, StoreError> {
    match capability {
        SMALL_RECORDS => Ok(6),
        MOVES => Ok(9),
        ZONES => Ok(10),
        MAINTENANCE => Ok(11),
        GENERATIONS => Ok(12),
        CANDIDATES => Ok(13),
        OWNERS => Ok(14),
        CLASSES => Ok(15),
        _ => Err(StoreError::Refused(format!("the metadata store cannot require the capability {capability}"))),
    }
}

/// Checks that every live coordinator names a capability.
pub fn all_name(capability: &str, coordinators: &[CoordinatorOnRecord]) -> Result<(), StoreError> {
    let lacks = |at: &&CoordinatorOnRecord| at.is_live() && !at.names(capability);
    match coordinators.iter().find(lacks) {
        None => Ok(()),
        Some(CoordinatorOnRecord { claim, .. }) => Err(StoreError::Conflict(format!(
            "coordinator {} at {} (version {}) does not know {capability}",
            claim.node_id, claim.address, claim.version
        ))),
    }
}

/// The oldest revision since which all changes are kept, when the newest is `revision`.
pub fn remembered_from(revision: u64) -> u64 {
    revision.saturating_sub(CHANGES)
}

/// True when all changes after `after` are kept. A revision beyond the newest means that the store was restored to an earlier
/// state.
pub fn complete(after: u64, revision: u64) -> bool {
    (remembered_from(revision)..=revision).contains(&after)
}

/// Each change once, at the position of its last occurrence.
pub fn each_once(all: impl DoubleEndedIterator<Item = Changed>) -> Vec<Changed> {
    let mut seen = HashSet::new();
    let mut changed: Vec<Changed> = all.rev().filter(|changed| seen.insert(changed.clone())).collect();
    changed.reverse();
    changed
}

/// A tenant's update is based on another version than the one stored.
pub fn lost_update(id: &TenantId, expected: u64, stored: u64) -> StoreError {
    StoreError::Conflict(format!(
        "tenant {id} is at version {stored}, not {expected}; read it again and repeat the change"
    ))
}

/// A binding's change is based on another version than the one stored; 0 means none.
pub fn other_record(slot: &Slot, expected: u64, stored: u64) -> StoreError {
    let shown = |version| if version == 0 { "none".to_owned() } else { format!("version {version}") };
    StoreError::Conflict(format!(
        "the {}'s binding was changed by another coordinator ({} is stored, {} was expected); look at it and repeat the change",
        slot.hook,
        shown(stored),
        shown(expected)
    ))
}

/// [`BINDINGS`] is reached.
pub fn too_many_bindings() -> StoreError {
    StoreError::Refused(format!("there are {BINDINGS} bindings, the most there can be; remove one first"))
}

/// [`COORDINATORS`] is reached.
pub fn too_many_coordinators() -> StoreError {
    StoreError::Refused(format!("there are {COORDINATORS} live coordinators, the most there can be"))
}

/// A token of this id is stored already.
pub fn token_exists(id: &str) -> StoreError {
    StoreError::Exists(format!("token {id}"))
}

/// No token of this id is stored.
pub fn no_token(id: &str) -> StoreError {
    StoreError::Missing(format!("token {id}"))
}

/// [`TOKENS`] is reached.
pub fn too_many_tokens() -> StoreError {
    StoreError::Refused(format!("there are {TOKENS} tokens, the most there can be; remove one first"))
}

/// The tenant has as many tokens as one may have.
pub fn too_many_tokens_of(tenant: &TenantId, most: usize) -> StoreError {
    StoreError::Refused(format!(
        "tenant {tenant} has {most} API tokens or more, and may have {most}; revoke some, or ask an operator for another one"
    ))
}

/// A tenant of this id is stored already, perhaps as deleted.
pub fn tenant_exists(stored: &Tenant) -> StoreError {
    let id = &stored.id;
    StoreError::Exists(match stored.deleted_at_ms {
        Some(_) => format!("tenant {id} was deleted, and its id is not given again: it"),
        None => format!("tenant {id}"),
    })
}

/// No tenant of this id is stored.
pub fn no_tenant(id: &TenantId) -> StoreError {
    StoreError::Missing(format!("tenant {id}"))
}

/// A storage node of this id is stored already.
pub fn node_exists(id: &NodeId) -> StoreError {
    StoreError::Exists(format!("storage node {id}"))
}

/// No storage node of this id is stored.
pub fn no_node(id: &NodeId) -> StoreError {
    StoreError::Missing(format!("storage node {id}"))
}

/// [`NODES`] is reached.
pub fn too_many_nodes() -> StoreError {
    StoreError::Refused(format!("there are {NODES} storage nodes, the most there can be"))
}

/// No artifact of this digest is stored.
pub fn no_artifact(digest: Digest) -> StoreError {
    StoreError::Missing(format!("plugin {digest}"))
}

/// A binding's record names the artifact.
pub fn needed_artifact(digest: Digest) -> StoreError {
    StoreError::Refused(format!("plugin {digest} is bound, or kept for a rollback; unbind it first"))
}

/// What an owner may not have.
pub fn not_owned(why: &NotOwned) -> StoreError {
    StoreError::Refused(why.to_string())
}

/// Checks that a class is one that is granted.
pub fn granted_class(class: Class) -> Result<(), StoreError> {
    if class.is_for_all() {
        return Err(StoreError::Refused(format!("every tenant has class {class}; it is neither granted nor revoked")));
    }
    Ok(())
}

/// Checks what is recorded of a push.
pub fn push(push: &PushOnRecord) -> Result<(), StoreError> {
    if push.reason.len() > PUSH_REASON_BYTES {
        let bytes = push.reason.len();
        return Err(StoreError::Refused(format!(
            "the reason of a push has {bytes} bytes; at most {PUSH_REASON_BYTES}"
        )));
    }
    Ok(())
}

/// Whether a signing key may have this id: 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'.
pub fn is_signing_key_id(id: &str) -> bool {
    (1..=SIGNING_KEY_ID_BYTES).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Checks a signing key's id.
pub fn signing_key(key: &SigningKey) -> Result<(), StoreError> {
    if is_signing_key_id(&key.id) {
        return Ok(());
    }
    let id = shown(&key.id);
    Err(StoreError::Refused(format!(
        "key_id {id} is not allowed; use 1 to {SIGNING_KEY_ID_BYTES} of a-z, A-Z, 0-9, '.', '_' and '-'"
    )))
}

/// The owner has another key of this id.
pub fn signing_key_exists(key: &SigningKey) -> StoreError {
    StoreError::Exists(format!("another signing key {}", key.id))
}

/// The owner has no key of this id.
pub fn no_signing_key(id: &str) -> StoreError {
    StoreError::Missing(format!("signing key {}", shown(id)))
}

/// [`SIGNING_KEYS`] is reached.
pub fn too_many_signing_keys() -> StoreError {
    StoreError::Refused(format!("there are {SIGNING_KEYS} signing keys, the most there can be; remove one first"))
}

/// The store's schema requires a program that knows migration `needs`.
pub fn too_new(needs: u64) -> StoreError {
    StoreError::Conflict(format!(
        "the metadata were changed by a newer version of this program, and only one that knows their schema {needs} can \
         work on them; run that version"
    ))
}
