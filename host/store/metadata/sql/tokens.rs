//! API tokens.

use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, Changed, StoreError, TOKENS, Token, TokenStore, rules};

use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata, changes};

impl<D: Driver> TokenStore for SqlMetadata<D> {
    fn create_token(&self, token: Token, of_tenant: Option<usize>) -> Answer<()> {
        self.change(move |db| Box::pin(create(db, token, of_tenant)))
    }

    fn token(&self, id: &str) -> Answer<Option<Token>> {
        let id = id.to_owned();
        self.read(|db| Box::pin(get(db, id)))
    }

    fn tokens(&self, after: Option<&str>, limit: u32) -> Answer<Vec<Token>> {
        let after = after.map(str::to_owned);
        self.read(move |db| Box::pin(list(db, after, limit)))
    }

    fn remove_token(&self, id: &str) -> Answer<()> {
        let id = id.to_owned();
        self.change(|db| Box::pin(remove(db, id)))
    }
}

async fn create(db: &mut Db, token: Token, of_tenant: Option<usize>) -> Result<(), StoreError> {
    rules::token(&token)?;
    if get(db, token.id.clone()).await?.is_some() {
        return Err(rules::token_exists(&token.id));
    }
    let there = db.one("SELECT COUNT(*) AS tokens FROM api_tokens", &[]).await?;
    if there.number::<usize>("tokens")? >= TOKENS {
        return Err(rules::too_many_tokens());
    }
    if let (Some(tenant), Some(most)) = (&token.tenant, of_tenant) {
        let counted = "SELECT COUNT(*) AS tokens FROM api_tokens WHERE tenant_id = $1";
        if db.one(counted, &[Value::Text(tenant.as_str())]).await?.number::<usize>("tokens")? >= most {
            return Err(rules::too_many_tokens_of(tenant, most));
        }
    }
    db.execute(
        "INSERT INTO api_tokens (token_id, hash, tenant_id, scopes, label, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            Value::Text(&token.id),
            Value::Bytes(&token.hash),
            Value::MaybeText(token.tenant.as_ref().map(TenantId::as_str)),
            Value::Number(token.scopes.into()),
            Value::Text(&token.label),
            Value::Number(token.created_at_ms),
            Value::MaybeNumber(token.expires_at_ms),
        ],
    )
    .await?;
    changes::record(db, Changed::Tokens).await.map(drop)
}

async fn get(db: &mut Db, id: String) -> Result<Option<Token>, StoreError> {
    let row = db
        .row(
            "SELECT token_id, hash, tenant_id, scopes, label, created_at, expires_at
             FROM api_tokens WHERE token_id = $1",
            &[Value::Text(&id)],
        )
        .await?;
    row.as_ref().map(token).transpose()
}

async fn list(db: &mut Db, after: Option<String>, limit: u32) -> Result<Vec<Token>, StoreError> {
    let rows = db
        .rows(
            "SELECT token_id, hash, tenant_id, scopes, label, created_at, expires_at
             FROM api_tokens WHERE token_id > $1 ORDER BY token_id LIMIT $2",
            &[Value::Text(after.as_deref().unwrap_or_default()), Value::Number(rules::page(limit).into())],
        )
        .await?;
    rows.iter().map(token).collect()
}

async fn remove(db: &mut Db, id: String) -> Result<(), StoreError> {
    if db.execute("DELETE FROM api_tokens WHERE token_id = $1", &[Value::Text(&id)]).await? == 0 {
        return Err(rules::no_token(&id));
    }
    changes::record(db, Changed::Tokens).await.map(drop)
}

fn token(row: &Row) -> Result<Token, StoreError> {
    let tenant = row.maybe_text("tenant_id")?;
    let tenant = tenant.map(|id| TenantId::new(id).map_err(|error| damaged("tenant_id", &error))).transpose()?;
    Ok(Token {
        id: row.text("token_id")?,
        hash: row.exactly("hash")?,
        tenant,
        scopes: row.number("scopes")?,
        label: row.text("label")?,
        created_at_ms: row.number("created_at")?,
        expires_at_ms: row.maybe_number("expires_at")?,
    })
}
