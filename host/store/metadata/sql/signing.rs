//! Keys with which plugins are signed.

use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, SIGNING_KEYS, SigningKey, SigningKeyStore, StoreError, rules};

use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata};

impl<D: Driver> SigningKeyStore for SqlMetadata<D> {
    fn add_signing_key(&self, key: SigningKey) -> Answer<()> {
        self.change(|db| Box::pin(add(db, key)))
    }

    fn signing_keys(&self) -> Answer<Vec<SigningKey>> {
        self.read(|db| Box::pin(all(db)))
    }

    fn remove_signing_key(&self, owner: Option<&TenantId>, id: &str) -> Answer<()> {
        let (owner, id) = (owner.cloned(), id.to_owned());
        self.change(move |db| Box::pin(remove(db, owner, id)))
    }
}

async fn add(db: &mut Db, key: SigningKey) -> Result<(), StoreError> {
    rules::signing_key(&key)?;
    let all = all(db).await?;
    if let Some(known) = all.iter().find(|known| known.owner == key.owner && known.id == key.id) {
        return if known.public == key.public { Ok(()) } else { Err(rules::signing_key_exists(&key)) };
    }
    if all.len() >= SIGNING_KEYS {
        return Err(rules::too_many_signing_keys());
    }
    db.execute(
        "INSERT INTO plugin_signing_keys (tenant_id, key_id, public_key, created_at) VALUES ($1, $2, $3, $4)",
        &[
            Value::Text(owner_text(key.owner.as_ref())),
            Value::Text(&key.id),
            Value::Bytes(&key.public),
            Value::Number(key.added_at_ms),
        ],
    )
    .await
    .map(drop)
}

async fn all(db: &mut Db) -> Result<Vec<SigningKey>, StoreError> {
    let all = "SELECT tenant_id, key_id, public_key, created_at FROM plugin_signing_keys ORDER BY tenant_id, key_id";
    db.rows(all, &[]).await?.iter().map(key).collect()
}

async fn remove(db: &mut Db, owner: Option<TenantId>, id: String) -> Result<(), StoreError> {
    let sql = "DELETE FROM plugin_signing_keys WHERE tenant_id = $1 AND key_id = $2";
    match db.execute(sql, &[Value::Text(owner_text(owner.as_ref())), Value::Text(&id)]).await? {
        0 => Err(rules::no_signing_key(&id)),
        _ => Ok(()),
    }
}

fn owner_text(owner: Option<&TenantId>) -> &str {
    owner.map_or("", TenantId::as_str)
}

fn key(row: &Row) -> Result<SigningKey, StoreError> {
    let owner = row.text("tenant_id")?;
    let owner = (!owner.is_empty()).then(|| TenantId::new(owner)).transpose();
    Ok(SigningKey {
        owner: owner.map_err(|error| damaged("a signing key's owner", &error.to_string()))?,
        id: row.text("key_id")?,
        public: row.exactly("public_key")?,
        added_at_ms: row.number("created_at")?,
    })
}
