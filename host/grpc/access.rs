//! The API token service.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use witan_control::{Catalog, Turn, Turns};
use witan_kernel::name::{Invalid, TenantId};
use witan_kernel::port::{TOKEN_ID_BYTES, Token};
use witan_wire::v1;
use witan_wire::v1::access_service_server::AccessService;

use super::guard::{caller, denied};
use super::kept::{Admit, listed, usage};
use super::status::{invalid, store_report};
use super::tenants::{self, page_size, seconds};
use crate::access::caller::Caller;
use crate::access::issuance::{Denied, Issuance};
use crate::access::scope::{Scope, Scopes};
use crate::access::token::Grant;

/// The API token service.
pub struct AccessApi {
    issuance: Issuance,
    catalog: Arc<Catalog>,
    answers: Arc<dyn Admit>,
}

impl AccessApi {
    /// Serves `issuance`; each call takes one of the turns of `catalog`, and a listing has room among `answers`.
    pub fn new(issuance: Issuance, catalog: Arc<Catalog>, answers: Arc<dyn Admit>) -> Self {
        Self { issuance, catalog, answers }
    }
}

#[tonic::async_trait]
impl AccessService for AccessApi {
    async fn create_token(
        &self,
        mut request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = caller(&mut request)?;
        let grant = grant(request.into_inner()).map_err(|error| invalid(&error))?;
        let _turn = take(self.catalog.changes(), &caller, grant.tenant.as_ref())?;
        let fresh = self.issuance.create(&caller, grant).await.map_err(|error| status(&caller, &error))?;
        Ok(Response::new(v1::CreateTokenResponse { info: Some(info(&fresh.token)), token: fresh.text }))
    }

    async fn list_tokens(
        &self,
        mut request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let (caller, usage) = (caller(&mut request)?, usage(&request));
        let request = request.into_inner();
        let limit = page_size(request.page_size).map_err(|error| invalid(&error))?;
        let tenant = named(request.tenant_id).map_err(|error| invalid(&error))?;
        let after = after(request.page_token).map_err(|error| invalid(&error))?;
        let _turn = take(self.catalog.lookups(), &caller, tenant.as_ref())?;
        let page = self
            .issuance
            .list(&caller, tenant.as_ref(), after, limit)
            .await
            .map_err(|error| status(&caller, &error))?;
        let answer = v1::ListTokensResponse {
            tokens: page.tokens.iter().map(info).collect(),
            next_page_token: page.next.unwrap_or_default(),
        };
        listed(&*self.answers, &usage, caller.credential().tenant(), answer)
    }

    async fn revoke_token(
        &self,
        mut request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let caller = caller(&mut request)?;
        let _turn = take(self.catalog.changes(), &caller, None)?;
        let revoked = self.issuance.revoke(&caller, &request.get_ref().token_id).await;
        revoked.map_err(|error| status(&caller, &error))?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }
}

/// A turn for a call that names this tenant, or none.
fn take(turns: &Turns, caller: &Caller, named: Option<&TenantId>) -> Result<Turn, Status> {
    let tenant = caller.credential().tenant().or(named);
    turns.take(tenant.and_then(|tenant| caller.on_behalf_of(tenant))).map_err(|refused| tenants::status(&refused))
}

fn named(tenant_id: String) -> Result<Option<TenantId>, Invalid> {
    if tenant_id.is_empty() { Ok(None) } else { TenantId::new(tenant_id).map(Some) }
}

fn after(page_token: String) -> Result<Option<String>, Invalid> {
    if page_token.len() > TOKEN_ID_BYTES {
        let remedy = "send the next_page_token of the previous page, unchanged";
        return Err(Invalid::new("page_token", format!("has {} bytes", page_token.len()), remedy));
    }
    Ok(Some(page_token).filter(|token| !token.is_empty()))
}

fn grant(request: v1::CreateTokenRequest) -> Result<Grant, Invalid> {
    let expires_at_ms = match u64::try_from(request.expires_at) {
        Ok(0) => None,
        Ok(seconds) => Some(seconds.saturating_mul(1000)),
        Err(_) => return Err(Invalid::new("expires_at", "is negative", "send Unix seconds, or 0 for none")),
    };
    Ok(Grant {
        tenant: named(request.tenant_id)?,
        scopes: Scopes::parse(request.scopes.iter().map(String::as_str))?,
        label: request.label,
        expires_at_ms,
    })
}

fn info(token: &Token) -> v1::TokenInfo {
    v1::TokenInfo {
        token_id: token.id.clone(),
        tenant_id: token.tenant.as_ref().map_or_else(String::new, ToString::to_string),
        scopes: Scopes::from_bits(token.scopes).iter().map(Scope::as_str).map(str::to_owned).collect(),
        label: token.label.clone(),
        created_at: seconds(token.created_at_ms),
        expires_at: token.expires_at_ms.map_or(0, seconds),
    }
}

fn status(caller: &Caller, error: &Denied) -> Status {
    match error {
        Denied::Refused(refused) => denied(caller, refused),
        Denied::Invalid(error) => invalid(error),
        Denied::Store(error) => store_report(error, "TOKEN_EXISTS", "TOKEN_NOT_FOUND").status(),
    }
}
