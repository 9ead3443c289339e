//! References from binding records to artifacts: a record's artifact must be stored, and a stored one that is named must stay.

use witan_kernel::name::TenantId;
use witan_kernel::port::{Digest, Slot, StoreError};

use super::db::{Db, Value};

/// Whether an artifact is stored that a slot may have: the operator's, or its tenant's.
pub(super) async fn is_stored_for(db: &mut Db, slot: &Slot, digest: Digest) -> Result<bool, StoreError> {
    let known = "SELECT digest FROM plugin_artifacts WHERE digest = $1 AND (
            NOT EXISTS (SELECT 1 FROM plugin_owners WHERE digest = $1)
            OR EXISTS (SELECT 1 FROM plugin_owners WHERE digest = $1 AND tenant_id = $2))";
    Ok(db.row(known, &[Value::Bytes(&digest.0), Value::Text(slot.tenant_text())]).await?.is_some())
}

/// Whether a record names an artifact, of those slots that it is for: a tenant's own, or all.
pub(super) async fn is_named(db: &mut Db, owner: Option<&TenantId>, digest: Digest) -> Result<bool, StoreError> {
    let names_it = format!("%{digest}%");
    let owner = owner.map_or("", TenantId::as_str);
    let sql = "SELECT tenant_id FROM plugin_binding_records
        WHERE record LIKE $1 AND ($2 = '' OR tenant_id = $2) LIMIT 1";
    Ok(db.row(sql, &[Value::Text(&names_it), Value::Text(owner)]).await?.is_some())
}
