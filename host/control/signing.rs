//! Keys with which plugins are signed.

use witan_kernel::name::TenantId;
use witan_kernel::port::SigningKey;

use super::{Catalog, Refused, Turn};

impl Catalog {
    /// Adds a key. One of a tenant, only while the tenant exists.
    ///
    /// # Errors
    /// [`witan_kernel::port::StoreError::Exists`] when the owner has another key of this id.
    pub async fn add_signing_key(&self, _turn: Turn, key: SigningKey) -> Result<(), Refused> {
        if let Some(tenant) = &key.owner {
            self.tenant(tenant).await?;
        }
        Ok(self.metadata.add_signing_key(key).await?)
    }

    /// Every key, by owner and id.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKey>, Refused> {
        Ok(self.metadata.signing_keys().await?)
    }

    /// Removes a key: what is signed with it is accepted no longer.
    ///
    /// # Errors
    /// [`witan_kernel::port::StoreError::Missing`] when the owner has no key of this id.
    pub async fn remove_signing_key(&self, _turn: Turn, owner: Option<&TenantId>, id: &str) -> Result<(), Refused> {
        Ok(self.metadata.remove_signing_key(owner, id).await?)
    }
}
