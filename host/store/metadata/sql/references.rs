//! References from binding records to artifacts: a record's artifact must be stored, and a stored one that is named must stay.

use witan_kernel::port::{Digest, StoreError};

use super::db::{Db, Value};

/// Whether an artifact is stored.
pub(super) async fn is_stored(db: &mut Db, digest: Digest) -> Result<bool, StoreError> {
    let known = "SELECT digest FROM plugin_artifacts WHERE digest = $1";
    Ok(db.row(known, &[Value::Bytes(&digest.0)]).await?.is_some())
}

/// Whether a record names an artifact.
pub(super) async fn is_named(db: &mut Db, digest: Digest) -> Result<bool, StoreError> {
    let names_it = format!("%{digest}%");
    let sql = "SELECT tenant_id FROM plugin_binding_records WHERE record LIKE $1 LIMIT 1";
    Ok(db.row(sql, &[Value::Text(&names_it)]).await?.is_some())
}
