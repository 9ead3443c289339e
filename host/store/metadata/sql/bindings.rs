//! Plugin bindings: one text per slot, replaced by compare-and-swap.

use witan_kernel::fence;
use witan_kernel::port::{
    Answer, BINDINGS, BindingChange, BindingOnRecord, BindingStore, CandidateReport, Changed, HistoryEntry, RecordText,
    Slot, StoreError, rules,
};

use super::candidates::key;
use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata, candidates, changes, fences, references, tenants};

impl<D: Driver> BindingStore for SqlMetadata<D> {
    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>> {
        self.read(|db| Box::pin(all(db)))
    }

    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>> {
        let slot = slot.clone();
        self.read(|db| Box::pin(get(db, slot)))
    }

    fn change_binding_record(&self, change: BindingChange) -> Answer<u64> {
        self.change(move |db| Box::pin(save(db, change)))
    }

    fn binding_history(&self, slot: &Slot) -> Answer<Vec<HistoryEntry>> {
        let slot = slot.clone();
        self.read(|db| Box::pin(candidates::history(db, slot)))
    }

    fn put_report(&self, report: CandidateReport) -> Answer<()> {
        self.write(|db| Box::pin(candidates::put_report(db, report)))
    }

    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Answer<Vec<CandidateReport>> {
        let slot = slot.clone();
        self.read(move |db| Box::pin(candidates::reports(db, slot, number, since_ms)))
    }

    fn prepare_binding(&self, slot: &Slot, version: Option<RecordText>) -> Answer<()> {
        let slot = slot.clone();
        self.change(move |db| Box::pin(candidates::prepare(db, slot, version)))
    }

    fn prepared_binding(&self, slot: &Slot) -> Answer<Option<RecordText>> {
        let slot = slot.clone();
        self.read(|db| Box::pin(candidates::prepared(db, slot)))
    }
}

async fn all(db: &mut Db) -> Result<Vec<BindingOnRecord>, StoreError> {
    let all = "SELECT tenant_id, hook, version, record FROM plugin_binding_records ORDER BY tenant_id, hook";
    db.rows(all, &[]).await?.iter().map(record).collect()
}

async fn get(db: &mut Db, slot: Slot) -> Result<Option<BindingOnRecord>, StoreError> {
    let row = db
        .row(
            "SELECT tenant_id, hook, version, record FROM plugin_binding_records WHERE tenant_id = $1 AND hook = $2",
            &key(&slot),
        )
        .await?;
    row.as_ref().map(record).transpose()
}

pub(super) async fn save(db: &mut Db, change: BindingChange) -> Result<u64, StoreError> {
    rules::binding_change(&change)?;
    let BindingChange { slot, expected, record, puts_in_force, fenced, entry } = change;
    let stored = version(db, &slot).await?;
    if stored == 0 && record.is_none() {
        return Ok(0);
    }
    if stored != expected {
        return Err(rules::other_record(&slot, expected, stored));
    }
    if let Some(digest) = puts_in_force
        && !references::is_stored_for(db, &slot, digest).await?
    {
        return Err(rules::no_artifact(digest));
    }
    if stored == 0 {
        let there = db.one("SELECT COUNT(*) AS bindings FROM plugin_binding_records", &[]).await?;
        if there.number::<usize>("bindings")? >= BINDINGS {
            return Err(rules::too_many_bindings());
        }
    }
    // The revision is the version, so that one that was removed and stored again has another.
    let version = changed(db, &slot, fenced).await?;
    let [tenant, hook] = key(&slot);
    match &record {
        Some(RecordText(record)) => {
            db.execute(
                "INSERT INTO plugin_binding_records (tenant_id, hook, version, record) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (tenant_id, hook) DO UPDATE SET version = $3, record = $4",
                &[tenant, hook, Value::Number(version), Value::Text(record)],
            )
            .await?
        }
        None => {
            db.execute("DELETE FROM plugin_binding_records WHERE tenant_id = $1 AND hook = $2", &[tenant, hook]).await?
        }
    };
    if let Some(entry) = entry {
        candidates::add_entry(db, &slot, version, &entry).await?;
    }
    Ok(version)
}

/// Logs the change of a slot, and the fences that nodes owe for it. Returns its revision.
async fn changed(db: &mut Db, slot: &Slot, fenced: bool) -> Result<u64, StoreError> {
    let epoch = changes::record(db, Changed::Binding(slot.clone())).await?;
    let tenant = match &slot.tenant {
        Some(id) if fenced => tenants::get(db, id.clone()).await?,
        _ => None,
    };
    if let Some(level) = fence::of_binding(slot.hook, tenant.as_ref()).filter(|_| fenced) {
        fences::owe(db, slot.tenant.as_ref(), epoch, level).await?;
    }
    Ok(epoch)
}

/// 0 when there is none.
async fn version(db: &mut Db, slot: &Slot) -> Result<u64, StoreError> {
    let sql = "SELECT version FROM plugin_binding_records WHERE tenant_id = $1 AND hook = $2";
    db.row(sql, &key(slot)).await?.map_or(Ok(0), |row| row.number("version"))
}

fn record(row: &Row) -> Result<BindingOnRecord, StoreError> {
    let (tenant, hook) = (row.text("tenant_id")?, row.text("hook")?);
    let slot = Slot::parse(&tenant, &hook).ok_or_else(|| damaged("a binding's slot", &(tenant, hook)))?;
    Ok(BindingOnRecord { slot, version: row.number("version")?, record: row.text("record")? })
}
