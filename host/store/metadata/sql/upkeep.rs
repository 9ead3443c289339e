//! Claims of upkeep: who does which part of the work that a cluster does by itself. Each change holds the lock of all changes, so that the
//! rules of the port decide from what is still true; none of them is a change that others follow.

use witan_kernel::name::NodeId;
use witan_kernel::port::upkeep::{lost_duty, named_duty, too_many_duties};
use witan_kernel::port::{
    Answer, Claimant, DUTIES, Duties, Duty, DutyKind, DutyOnRecord, PassEnd, StoreError, UpkeepClaims,
};

use super::db::{Db, Value};
use super::row::Row;
use super::{Driver, SqlMetadata};

impl<D: Driver> UpkeepClaims for SqlMetadata<D> {
    fn duties(&self) -> Answer<Duties> {
        self.read(|db| Box::pin(all(db)))
    }

    fn claim_duty(&self, duty: &Duty, by: Claimant, for_ms: u64) -> Answer<DutyOnRecord> {
        let duty = duty.clone();
        self.change(move |db| {
            Box::pin(async move {
                let claimed = known_or_new(db, &duty).await?.claimed(by, for_ms, db.now_ms().await?)?;
                put(db, &claimed).await?;
                Ok(claimed)
            })
        })
    }

    fn keep_duty(&self, duty: &Duty, fence: u64, cursor: Vec<u8>, for_ms: u64) -> Answer<()> {
        let duty = duty.clone();
        self.change(move |db| {
            Box::pin(async move {
                let known = get(db, &duty).await?.ok_or_else(|| lost_duty(&duty))?;
                let kept = known.kept(fence, cursor, for_ms, db.now_ms().await?)?;
                put(db, &kept).await
            })
        })
    }

    fn give_back_duty(&self, duty: &Duty, fence: u64, end: PassEnd) -> Answer<()> {
        let duty = duty.clone();
        self.change(move |db| {
            Box::pin(async move {
                let known = get(db, &duty).await?.ok_or_else(|| lost_duty(&duty))?;
                let ended = known.given_back(fence, end, db.now_ms().await?)?;
                put(db, &ended).await
            })
        })
    }

    fn want_duty(&self, duty: &Duty) -> Answer<()> {
        let duty = duty.clone();
        self.change(move |db| {
            Box::pin(async move {
                let known = known_or_new(db, &duty).await?;
                let wanted = DutyOnRecord { wanted_ms: db.now_ms().await?, ..known };
                put(db, &wanted).await
            })
        })
    }

    fn forget_duty(&self, duty: &Duty) -> Answer<()> {
        let duty = duty.clone();
        self.change(move |db| {
            Box::pin(async move {
                let sql = "DELETE FROM upkeep_claims WHERE kind = $1 AND claimed_range = $2";
                db.execute(sql, &[Value::Text(duty.kind.as_str()), Value::Text(&duty.range)]).await.map(drop)
            })
        })
    }
}

async fn all(db: &mut Db) -> Result<Duties, StoreError> {
    // The clock first, so that no claim that was renewed in between seems to have expired.
    let now_ms = db.now_ms().await?;
    let rows = db
        .rows(
            "SELECT kind, claimed_range, coordinator, instance, fence, claimed_until, begun_at, resume_at, covered_at, ended_at, wanted_at
             FROM upkeep_claims ORDER BY kind, claimed_range",
            &[],
        )
        .await?;
    let mut duties = Vec::with_capacity(rows.len());
    for row in &rows {
        // A later version may have kinds of its own.
        if DutyKind::parse(&row.text("kind")?).is_some() {
            duties.push(on_record(row)?);
        }
    }
    duties.sort_by(|a: &DutyOnRecord, b| a.duty.cmp(&b.duty));
    Ok(Duties { now_ms, duties })
}

async fn get(db: &mut Db, duty: &Duty) -> Result<Option<DutyOnRecord>, StoreError> {
    let row = db
        .row(
            "SELECT kind, claimed_range, coordinator, instance, fence, claimed_until, begun_at, resume_at, covered_at, ended_at, wanted_at
             FROM upkeep_claims WHERE kind = $1 AND claimed_range = $2",
            &[Value::Text(duty.kind.as_str()), Value::Text(&duty.range)],
        )
        .await?;
    row.map(|row| on_record(&row)).transpose()
}

async fn known_or_new(db: &mut Db, duty: &Duty) -> Result<DutyOnRecord, StoreError> {
    named_duty(duty)?;
    if let Some(known) = get(db, duty).await? {
        return Ok(known);
    }
    let sql = if duty.kind == DutyKind::Missed {
        "SELECT COUNT(*) AS known FROM upkeep_claims WHERE kind = $1"
    } else {
        "SELECT COUNT(*) AS known FROM upkeep_claims WHERE kind <> $1"
    };
    let known = db.one(sql, &[Value::Text(DutyKind::Missed.as_str())]).await?.number::<usize>("known")?;
    if known >= DUTIES { Err(too_many_duties()) } else { Ok(DutyOnRecord::new(duty.clone())) }
}

async fn put(db: &mut Db, record: &DutyOnRecord) -> Result<(), StoreError> {
    let (coordinator, instance) = match &record.holder {
        Some(holder) => (holder.coordinator.as_str(), &holder.instance[..]),
        None => ("", &[][..]),
    };
    db.execute(
        "INSERT INTO upkeep_claims
            (kind, claimed_range, coordinator, instance, fence, claimed_until, begun_at, resume_at, covered_at, ended_at, wanted_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (kind, claimed_range) DO UPDATE
         SET coordinator = $3, instance = $4, fence = $5, claimed_until = $6, begun_at = $7, resume_at = $8, covered_at = $9,
            ended_at = $10, wanted_at = $11",
        &[
            Value::Text(record.duty.kind.as_str()),
            Value::Text(&record.duty.range),
            Value::Text(coordinator),
            Value::Bytes(instance),
            Value::Number(record.fence),
            Value::Number(record.until_ms),
            Value::Number(record.begun_ms),
            Value::Bytes(&record.cursor),
            Value::Number(record.covered_ms),
            Value::Number(record.ended_ms),
            Value::Number(record.wanted_ms),
        ],
    )
    .await
    .map(drop)
}

fn on_record(row: &Row) -> Result<DutyOnRecord, StoreError> {
    let holder = match row.text("coordinator")?.as_str() {
        "" => None,
        _ => Some(Claimant {
            coordinator: row.spelled("coordinator", |text| NodeId::new(text).ok())?,
            instance: row.exactly("instance")?,
        }),
    };
    Ok(DutyOnRecord {
        duty: Duty { kind: row.spelled("kind", DutyKind::parse)?, range: row.text("claimed_range")? },
        holder,
        fence: row.number("fence")?,
        until_ms: row.number("claimed_until")?,
        begun_ms: row.number("begun_at")?,
        cursor: row.bytes("resume_at")?,
        covered_ms: row.number("covered_at")?,
        ended_ms: row.number("ended_at")?,
        wanted_ms: row.number("wanted_at")?,
    })
}
