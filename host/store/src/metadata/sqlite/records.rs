//! What the plugin platform stores of its bindings: a text of its own for each slot.

use sqlx::{Row, SqliteConnection};
use witan_kernel::port::StoreError;

use super::failed;
use crate::metadata::Slot;

fn tenant(slot: &Slot) -> String {
    slot.tenant.as_ref().map_or(String::new(), |tenant| tenant.as_str().to_owned())
}

pub(super) async fn all(db: &mut SqliteConnection) -> Result<Vec<String>, StoreError> {
    let query = "SELECT record FROM plugin_binding_records ORDER BY tenant_id, hook";
    let rows = sqlx::query(query).fetch_all(db).await.map_err(failed)?;
    rows.iter().map(|row| row.try_get("record").map_err(failed)).collect()
}

pub(super) async fn save(db: &mut SqliteConnection, slot: Slot, record: String) -> Result<(), StoreError> {
    let query = "INSERT INTO plugin_binding_records (tenant_id, hook, record) VALUES (?1, ?2, ?3)
                 ON CONFLICT (tenant_id, hook) DO UPDATE SET record = ?3";
    let saved = sqlx::query(query).bind(tenant(&slot)).bind(slot.hook.as_str()).bind(record).execute(db).await;
    saved.map(|_| ()).map_err(failed)
}

pub(super) async fn remove(db: &mut SqliteConnection, slot: Slot) -> Result<(), StoreError> {
    let query = "DELETE FROM plugin_binding_records WHERE tenant_id = ?1 AND hook = ?2";
    let removed = sqlx::query(query).bind(tenant(&slot)).bind(slot.hook.as_str()).execute(db).await;
    removed.map(|_| ()).map_err(failed)
}
