//! Calls about the keys with which plugins are signed.

use tonic::{Code, Request, Response, Status};
use witan_control::Refused;
use witan_kernel::name::{Invalid, shown};
use witan_kernel::port::{SigningKey, StoreError, rules};
use witan_wire::v1;

use super::{PluginApi, named, own, signature};
use crate::grpc::guard::caller;
use crate::grpc::kept::{listed, usage};
use crate::grpc::status::{invalid, refused};
use crate::grpc::tenants;

impl PluginApi {
    pub(super) async fn add_key(
        &self,
        mut request: Request<v1::AddSigningKeyRequest>,
    ) -> Result<Response<v1::AddSigningKeyResponse>, Status> {
        let caller = caller(&mut request)?;
        let v1::AddSigningKeyRequest { tenant_id, key_id, public_key } = request.into_inner();
        let owner = named(&tenant_id)?;
        own(&caller, owner.as_ref())?;
        let public: Option<[u8; 32]> = public_key[..].try_into().ok();
        let public = public.filter(signature::is_public_key).ok_or_else(|| {
            let problem = format!("is no public key of Ed25519: it has {} bytes", public_key.len());
            invalid(&Invalid::new("public_key", problem, "send the 32 bytes of the key that `witan plugin sign` shows"))
        })?;
        let key = SigningKey { owner, id: key_id, public, added_at_ms: (self.now_ms)() };
        let is_id = rules::signing_key(&key);
        is_id.map_err(|error| refused(Code::InvalidArgument, "INVALID_REQUEST", error.to_string()))?;
        if self.is_configured(key.owner.is_none(), &key.id) {
            return Err(exists(&format!("the configuration has a signing key {} already; use another id", key.id)));
        }
        let turn = self.change(&caller, key.owner.as_ref())?;
        self.catalog.add_signing_key(turn, key).await.map_err(|refused| status(&refused))?;
        Ok(Response::new(v1::AddSigningKeyResponse {}))
    }

    pub(super) async fn list_keys(
        &self,
        mut request: Request<v1::ListSigningKeysRequest>,
    ) -> Result<Response<v1::ListSigningKeysResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let tenant = named(&request.get_ref().tenant_id)?;
        own(&caller, tenant.as_ref())?;
        let stored = {
            let on_behalf_of = tenant.as_ref().and_then(|tenant| caller.on_behalf_of(tenant));
            let turn = self.catalog.lookups().take(on_behalf_of);
            let _turn = turn.map_err(|refused| tenants::status(&refused))?;
            self.catalog.signing_keys().await.map_err(|refused| status(&refused))?
        };
        let configured = self.host.configured_keys().iter().map(|key| shown_key(key, true));
        let keys = configured.chain(stored.iter().map(|key| shown_key(key, false)));
        let of_tenant = |key: &v1::SigningKey| tenant.as_ref().is_none_or(|tenant| key.tenant_id == tenant.as_str());
        let keys = keys.filter(of_tenant).collect();
        listed(&*self.answers, &usage, caller.credential().tenant(), v1::ListSigningKeysResponse { keys })
    }

    pub(super) async fn remove_key(
        &self,
        mut request: Request<v1::RemoveSigningKeyRequest>,
    ) -> Result<Response<v1::RemoveSigningKeyResponse>, Status> {
        let caller = caller(&mut request)?;
        let v1::RemoveSigningKeyRequest { tenant_id, key_id } = request.into_inner();
        let owner = named(&tenant_id)?;
        own(&caller, owner.as_ref())?;
        if self.is_configured(owner.is_none(), &key_id) {
            let why = format!("signing key {} is one of the configuration; remove it there", shown(&key_id));
            return Err(refused(Code::FailedPrecondition, "INVALID_REQUEST", why));
        }
        let turn = self.change(&caller, owner.as_ref())?;
        let removed = self.catalog.remove_signing_key(turn, owner.as_ref(), &key_id).await;
        removed.map_err(|refused| status(&refused))?;
        Ok(Response::new(v1::RemoveSigningKeyResponse {}))
    }

    /// Whether the configuration has a key of the operator's of this id.
    fn is_configured(&self, of_operator: bool, id: &str) -> bool {
        of_operator && self.host.configured_keys().iter().any(|key| key.id == id)
    }
}

fn exists(why: &str) -> Status {
    refused(Code::AlreadyExists, "SIGNING_KEY_EXISTS", why)
}

fn status(error: &Refused) -> Status {
    match error {
        Refused::Store(StoreError::Exists(_)) => exists(&format!("{error}; use another id, or remove that key first")),
        Refused::Store(StoreError::Missing(what)) if what.starts_with("signing key") => refused(
            Code::NotFound,
            "SIGNING_KEY_NOT_FOUND",
            format!("{error}; `witan plugin keys list` shows those that do"),
        ),
        other => tenants::status(other),
    }
}

fn shown_key(key: &SigningKey, configured: bool) -> v1::SigningKey {
    v1::SigningKey {
        tenant_id: key.owner.as_ref().map_or_else(String::new, ToString::to_string),
        key_id: key.id.clone(),
        public_key: key.public.to_vec().into(),
        added_at_ms: i64::try_from(key.added_at_ms).unwrap_or(i64::MAX),
        configured,
    }
}
