//! What goes with bindings: their history, what coordinators report of candidates, and which version a slot is to have next.

use witan_kernel::name::NodeId;
use witan_kernel::port::{
    CandidateReport, Changed, HISTORY_ENTRIES, HistoryEntry, REPORTS, REPORTS_KEPT_MS, RecordText, Slot, StoreError,
    rules,
};

use super::changes;
use super::db::{Db, Value};
use super::row::damaged;

/// A slot, as the tables have it.
pub(super) fn key(slot: &Slot) -> [Value<'_>; 2] {
    [Value::Text(slot.tenant_text()), Value::Text(slot.hook.as_str())]
}

/// Adds an entry to a slot's history, and forgets the oldest ones.
pub(super) async fn add_entry(db: &mut Db, slot: &Slot, number: u64, text: &str) -> Result<(), StoreError> {
    let [tenant, hook] = key(slot);
    let add = "INSERT INTO binding_history (tenant_id, hook, number, entry) VALUES ($1, $2, $3, $4)";
    db.execute(add, &[tenant, hook, Value::Number(number), Value::Text(text)]).await?;
    let forget = "DELETE FROM binding_history WHERE tenant_id = $1 AND hook = $2 AND number NOT IN
        (SELECT number FROM binding_history WHERE tenant_id = $1 AND hook = $2 ORDER BY number DESC LIMIT $3)";
    db.execute(forget, &[tenant, hook, Value::Number(HISTORY_ENTRIES as u64)]).await.map(drop)
}

pub(super) async fn history(db: &mut Db, slot: Slot) -> Result<Vec<HistoryEntry>, StoreError> {
    let sql = "SELECT number, entry FROM binding_history WHERE tenant_id = $1 AND hook = $2 ORDER BY number DESC";
    let rows = db.rows(sql, &key(&slot)).await?;
    rows.iter().map(|row| Ok(HistoryEntry { number: row.number("number")?, text: row.text("entry")? })).collect()
}

pub(super) async fn put_report(db: &mut Db, report: CandidateReport) -> Result<(), StoreError> {
    rules::report(&report)?;
    let CandidateReport { slot, number, coordinator, at_ms, text } = &report;
    let [tenant, hook] = key(slot);
    let coordinator = Value::Text(coordinator.as_str());
    db.execute(
        "INSERT INTO candidate_reports (tenant_id, hook, number, coordinator, at_ms, report)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (tenant_id, hook, number, coordinator, at_ms) DO UPDATE SET report = $6",
        &[tenant, hook, Value::Number(*number), coordinator, Value::Number(*at_ms), Value::Text(text)],
    )
    .await?;
    let old = Value::Number(at_ms.saturating_sub(REPORTS_KEPT_MS));
    let forget = "DELETE FROM candidate_reports WHERE tenant_id = $1 AND hook = $2 AND at_ms < $3";
    db.execute(forget, &[tenant, hook, old]).await.map(drop)
}

pub(super) async fn reports(
    db: &mut Db,
    slot: Slot,
    number: u64,
    since_ms: u64,
) -> Result<Vec<CandidateReport>, StoreError> {
    let [tenant, hook] = key(&slot);
    let sql = "SELECT coordinator, at_ms, report FROM candidate_reports
        WHERE tenant_id = $1 AND hook = $2 AND number = $3 AND at_ms >= $4 ORDER BY coordinator, at_ms LIMIT $5";
    let values = [tenant, hook, Value::Number(number), Value::Number(since_ms), Value::Number(REPORTS as u64)];
    let rows = db.rows(sql, &values).await?;
    let report = |row: &super::row::Row| {
        let name = row.text("coordinator")?;
        Ok(CandidateReport {
            slot: slot.clone(),
            number,
            coordinator: NodeId::new(&*name).map_err(|_| damaged("a report's coordinator", &name))?,
            at_ms: row.number("at_ms")?,
            text: row.text("report")?,
        })
    };
    rows.iter().map(report).collect()
}

pub(super) async fn prepare(db: &mut Db, slot: Slot, version: Option<RecordText>) -> Result<(), StoreError> {
    let [tenant, hook] = key(&slot);
    let Some(RecordText(text)) = &version else {
        let sql = "DELETE FROM binding_preparations WHERE tenant_id = $1 AND hook = $2";
        return db.execute(sql, &[tenant, hook]).await.map(drop);
    };
    rules::binding_record(text)?;
    let sql = "INSERT INTO binding_preparations (tenant_id, hook, record) VALUES ($1, $2, $3)
        ON CONFLICT (tenant_id, hook) DO UPDATE SET record = $3";
    db.execute(sql, &[tenant, hook, Value::Text(text)]).await?;
    changes::record(db, Changed::Binding(slot.clone())).await.map(drop)
}

pub(super) async fn prepared(db: &mut Db, slot: Slot) -> Result<Option<RecordText>, StoreError> {
    let sql = "SELECT record FROM binding_preparations WHERE tenant_id = $1 AND hook = $2";
    let row = db.row(sql, &key(&slot)).await?;
    row.map(|row| row.text("record").map(RecordText)).transpose()
}
