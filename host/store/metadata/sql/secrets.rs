//! The cluster's secrets.

use witan_kernel::name::Era;
use witan_kernel::port::{Answer, Changed, SECRETS, Secret, SecretStore, Secrets, StoreError};

use super::db::{Db, Value};
use super::row::Row;
use super::{Driver, SqlMetadata, changes, stores};

impl<D: Driver> SecretStore for SqlMetadata<D> {
    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Secrets> {
        self.change(move |db| Box::pin(secrets(db, fresh, now_ms)))
    }

    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Secrets> {
        self.change(move |db| Box::pin(rotate_secret(db, fresh, now_ms)))
    }

    fn begin_era(&self, era: Era, fresh: [u8; 32], above: u64, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(begin_era(db, era, fresh, (above, now_ms))))
    }
}

async fn secrets(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<Secrets, StoreError> {
    let on_record = all_secrets(db).await?;
    if on_record.keys.is_empty() { rotate_secret(db, fresh, now_ms).await } else { Ok(on_record) }
}

async fn rotate_secret(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<Secrets, StoreError> {
    add_secret(db, fresh, now_ms).await?;
    keep_secrets(db, SECRETS).await?;
    all_secrets(db).await
}

async fn begin_era(db: &mut Db, era: Era, fresh: [u8; 32], above_and_now_ms: (u64, u64)) -> Result<(), StoreError> {
    let (above, now_ms) = above_and_now_ms;
    db.execute(
        "UPDATE cluster_state SET era = $1, revision = CASE WHEN revision < $2 THEN $2 ELSE revision END",
        &[Value::Bytes(&era.0), Value::Number(above)],
    )
    .await?;
    add_secret(db, fresh, now_ms).await?;
    keep_secrets(db, 1).await?;
    stores::forget_commits(db).await
}

async fn add_secret(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO cluster_secrets (secret_id, secret, created_at)
         SELECT COALESCE(MAX(secret_id), 0) + 1, $1, $2 FROM cluster_secrets",
        &[Value::Bytes(&fresh), Value::Number(now_ms)],
    )
    .await
    .map(drop)
}

/// Removes all but the newest `most` secrets.
async fn keep_secrets(db: &mut Db, most: usize) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM cluster_secrets
         WHERE secret_id NOT IN (SELECT secret_id FROM cluster_secrets ORDER BY secret_id DESC LIMIT $1)",
        &[Value::Number(most as u64)],
    )
    .await?;
    changes::record(db, Changed::Secrets).await.map(drop)
}

async fn all_secrets(db: &mut Db) -> Result<Secrets, StoreError> {
    let rows = db.rows("SELECT secret_id, secret FROM cluster_secrets ORDER BY secret_id DESC", &[]).await?;
    let secret = |row: &Row| Ok(Secret { id: row.number("secret_id")?, key: row.exactly("secret")? });
    let keys = rows.iter().map(secret).collect::<Result<_, StoreError>>()?;
    let state = db.one("SELECT era FROM cluster_state", &[]).await?;
    let era = match state.maybe_bytes("era")? {
        Some(_) => Era(state.exactly("era")?),
        None => Era::default(),
    };
    Ok(Secrets { era, keys })
}
