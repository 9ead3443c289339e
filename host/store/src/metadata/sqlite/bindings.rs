//! Plugin bindings: a numbered history for each slot, and which of it is in force.

use bytes::Bytes;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;

use super::columns::{column, exactly, number, spelled, whole};
use super::{failed, plugins};
use crate::metadata::{Binding, Digest, HISTORY, Mode, OnFault, Slot, Terms, rules};

const ACTIVE: &str = "active";
const SHADOW: &str = "shadow";
const CANARY: &str = "canary";

/// The default for all tenants has the id ''.
fn tenant_id(slot: &Slot) -> &str {
    slot.tenant.as_ref().map_or("", TenantId::as_str)
}

pub(super) async fn bind(db: &mut SqliteConnection, terms: Terms) -> Result<Binding, StoreError> {
    rules::terms(&terms)?;
    let hook = plugins::hook(db, terms.digest).await?.ok_or_else(|| rules::no_artifact(terms.digest))?;
    rules::same_hook(&terms, hook)?;
    let (previous, last) = in_force(db, &terms.slot).await?;
    let binding = Binding { number: last + 1, previous, terms };
    insert(db, &binding).await?;
    sqlx::query(
        "INSERT INTO plugin_bindings_in_force (tenant_id, hook, number, last) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT (tenant_id, hook) DO UPDATE SET number = ?3, last = ?3",
    )
    .bind(tenant_id(&binding.terms.slot))
    .bind(hook.as_str())
    .bind(whole(binding.number))
    .execute(&mut *db)
    .await
    .map_err(failed)?;
    sqlx::query("DELETE FROM plugin_bindings WHERE tenant_id = ? AND hook = ? AND number <= ? AND number <> ?")
        .bind(tenant_id(&binding.terms.slot))
        .bind(hook.as_str())
        .bind(whole(binding.number.saturating_sub(HISTORY as u64)))
        .bind(whole(previous))
        .execute(db)
        .await
        .map_err(failed)?;
    Ok(binding)
}

async fn insert(db: &mut SqliteConnection, binding: &Binding) -> Result<(), StoreError> {
    let terms = &binding.terms;
    let (mode, percent) = match terms.mode {
        Mode::Active => (ACTIVE, 0),
        Mode::Shadow => (SHADOW, 0),
        Mode::Canary { percent } => (CANARY, percent),
    };
    sqlx::query(
        "INSERT INTO plugin_bindings (tenant_id, hook, number, previous, digest, configuration, on_fault, mode, percent,
            by_name, created_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(tenant_id(&terms.slot))
    .bind(terms.slot.hook.as_str())
    .bind(whole(binding.number))
    .bind(whole(binding.previous))
    .bind(&terms.digest.0[..])
    .bind(&terms.configuration[..])
    .bind(terms.on_fault.as_str())
    .bind(mode)
    .bind(i64::from(percent))
    .bind(terms.by_name.as_deref())
    .bind(whole(terms.created_at_ms))
    .execute(db)
    .await
    .map_err(failed)?;
    Ok(())
}

/// The number in force, 0 for none, and the greatest ever given.
async fn in_force(db: &mut SqliteConnection, slot: &Slot) -> Result<(u64, u64), StoreError> {
    let row = sqlx::query("SELECT number, last FROM plugin_bindings_in_force WHERE tenant_id = ? AND hook = ?")
        .bind(tenant_id(slot))
        .bind(slot.hook.as_str())
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    row.map_or(Ok((0, 0)), |row| Ok((number(&row, "number")?, number(&row, "last")?)))
}

pub(super) async fn rollback(db: &mut SqliteConnection, slot: Slot, from: u64) -> Result<Option<Binding>, StoreError> {
    let (now, _) = in_force(db, &slot).await?;
    if now == 0 {
        return Err(rules::nothing_bound(&slot));
    }
    if now != from {
        return Err(rules::not_in_force(&slot, from, now));
    }
    let bound = get(db, slot.clone(), now).await?.ok_or_else(|| rules::forgotten(&slot, now))?;
    let before = get(db, slot.clone(), bound.previous).await?;
    if bound.previous != 0 && before.is_none() {
        return Err(rules::forgotten(&slot, bound.previous));
    }
    sqlx::query("UPDATE plugin_bindings_in_force SET number = ? WHERE tenant_id = ? AND hook = ?")
        .bind(whole(bound.previous))
        .bind(tenant_id(&slot))
        .bind(slot.hook.as_str())
        .execute(db)
        .await
        .map_err(failed)?;
    Ok(before)
}

pub(super) async fn list(
    db: &mut SqliteConnection,
    after: Option<Slot>,
    limit: u32,
) -> Result<Vec<Binding>, StoreError> {
    // No hook is called '', so that ('', '') stands before all.
    let rows = sqlx::query(
        "SELECT bound.* FROM plugin_bindings_in_force AS now
         JOIN plugin_bindings AS bound
            ON bound.tenant_id = now.tenant_id AND bound.hook = now.hook AND bound.number = now.number
         WHERE (now.tenant_id, now.hook) > (?, ?) ORDER BY now.tenant_id, now.hook LIMIT ?",
    )
    .bind(after.as_ref().map_or("", tenant_id))
    .bind(after.as_ref().map_or("", |slot| slot.hook.as_str()))
    .bind(rules::page(limit))
    .fetch_all(db)
    .await
    .map_err(failed)?;
    rows.iter().map(binding).collect()
}

pub(super) async fn get(db: &mut SqliteConnection, slot: Slot, number: u64) -> Result<Option<Binding>, StoreError> {
    let row = sqlx::query("SELECT * FROM plugin_bindings WHERE tenant_id = ? AND hook = ? AND number = ?")
        .bind(tenant_id(&slot))
        .bind(slot.hook.as_str())
        .bind(whole(number))
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    row.as_ref().map(binding).transpose()
}

pub(super) async fn history(db: &mut SqliteConnection, slot: Slot) -> Result<Vec<Binding>, StoreError> {
    let rows =
        sqlx::query("SELECT * FROM plugin_bindings WHERE tenant_id = ? AND hook = ? ORDER BY number DESC LIMIT ?")
            .bind(tenant_id(&slot))
            .bind(slot.hook.as_str())
            .bind(HISTORY as i64)
            .fetch_all(db)
            .await
            .map_err(failed)?;
    rows.iter().map(binding).collect()
}

fn binding(row: &SqliteRow) -> Result<Binding, StoreError> {
    let percent = number(row, "percent")?;
    let mode = |text: &str| match text {
        ACTIVE => Some(Mode::Active),
        SHADOW => Some(Mode::Shadow),
        CANARY => Some(Mode::Canary { percent }),
        _ => None,
    };
    let tenant = |text: &str| if text.is_empty() { Some(None) } else { TenantId::new(text).ok().map(Some) };
    Ok(Binding {
        number: number(row, "number")?,
        previous: number(row, "previous")?,
        terms: Terms {
            slot: Slot { tenant: spelled(row, "tenant_id", tenant)?, hook: spelled(row, "hook", Hook::parse)? },
            digest: Digest(exactly(row, "digest")?),
            configuration: Bytes::from(column::<Vec<u8>>(row, "configuration")?),
            on_fault: spelled(row, "on_fault", OnFault::parse)?,
            mode: spelled(row, "mode", mode)?,
            by_name: column(row, "by_name")?,
            created_at_ms: number(row, "created_at")?,
        },
    })
}
