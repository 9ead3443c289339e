//! Components that were pushed and that nobody waits for.

use witan_kernel::name::TenantId;
use witan_kernel::port::{Digest, PushOnRecord};

use super::{Catalog, Refused};

impl Catalog {
    /// How far the push of a component has come that is for this owner; `None`: there is none on record.
    pub async fn push_on_record(
        &self,
        owner: Option<&TenantId>,
        digest: Digest,
    ) -> Result<Option<PushOnRecord>, Refused> {
        Ok(self.metadata.push(owner, digest).await?)
    }
}
