//! Creating, listing and revoking API tokens, and who may.

use std::sync::Arc;

use witan_kernel::name::{Invalid, TenantId};
use witan_kernel::port::{Metadata, PAGE, StoreError, TOKEN_ID_BYTES, Token};

use super::Access;
use super::caller::Caller;
use super::refusal::Refusal;
use super::scope::{Scope, Scopes};
use super::token::{Fresh, Grant, make};

/// Most pages of the store read for one response, if the caller may see few of the tokens.
const PAGES: usize = 10;

/// Why a token was not created, listed or revoked.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// The caller is not allowed to.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request is invalid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A page of tokens.
#[derive(Debug)]
pub struct Page {
    /// The tokens that the caller may see.
    pub tokens: Vec<Token>,
    /// Id after which the next page begins; `None`: this is the last one.
    pub next: Option<String>,
}

/// Creates, lists and revokes tokens.
pub struct Issuance {
    access: Arc<Access>,
    metadata: Arc<dyn Metadata>,
    /// Most tokens of a tenant that others than operators may make.
    of_tenant: usize,
}

impl Issuance {
    /// Tokens in `metadata`, as `access` checks them. A tenant has at most `of_tenant`, unless an operator makes more for it: the store
    /// has room for a number of tokens that all tenants share.
    pub fn new(access: Arc<Access>, metadata: Arc<dyn Metadata>, of_tenant: usize) -> Self {
        Self { access, metadata, of_tenant }
    }

    /// Creates a token. Callers cannot grant more than they have, nor for longer; an operator has everything.
    ///
    /// # Errors
    /// When the caller is not allowed to, or the store does not answer.
    pub async fn create(&self, caller: &Caller, grant: Grant) -> Result<Fresh, Denied> {
        self.may_concern(caller, grant.tenant.as_ref())?;
        let now_ms = self.access.now_ms();
        let grant = within(caller, well_formed(grant, now_ms)?)?;
        let fresh = make(grant, rand::random(), rand::random(), now_ms);
        let most = (!caller.is_operator()).then_some(self.of_tenant);
        self.metadata.create_token(fresh.token.clone(), most).await?;
        self.access.token_made(&fresh.token).await;
        Ok(fresh)
    }

    /// About `limit` tokens after the id `after`: those of `tenant`, or all that the caller may see.
    ///
    /// # Errors
    /// When the caller is not allowed to, or the store does not answer.
    pub async fn list(
        &self,
        caller: &Caller,
        tenant: Option<&TenantId>,
        after: Option<String>,
        limit: u32,
    ) -> Result<Page, Denied> {
        let tenant = tenant.or(caller.credential().tenant());
        self.may_concern(caller, tenant)?;
        let mut page = Page { tokens: Vec::new(), next: after };
        for _ in 0..PAGES {
            let size = if tenant.is_none() { limit } else { PAGE };
            let read = self.metadata.tokens(page.next.as_deref(), size).await?;
            let is_last = read.len() < size as usize;
            for token in read {
                // A page ends before the first token for which it has no room.
                if page.tokens.len() == limit as usize {
                    return Ok(page);
                }
                page.next = Some(token.id.clone());
                if tenant.is_none() || token.tenant.as_ref() == tenant {
                    page.tokens.push(token);
                }
            }
            if is_last {
                return Ok(Page { next: None, ..page });
            }
            if page.tokens.len() == limit as usize {
                break;
            }
        }
        Ok(page)
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// When there is no such token that the caller may revoke, or the store does not answer.
    pub async fn revoke(&self, caller: &Caller, id: &str) -> Result<(), Denied> {
        let missing = || StoreError::Missing(format!("token {}", id.chars().take(64).collect::<String>()));
        if id.len() > TOKEN_ID_BYTES {
            return Err(missing().into());
        }
        let token = self.metadata.token(id).await?.ok_or_else(missing)?;
        // Callers that may not revoke a token cannot find out whether it exists.
        let is_own = caller.credential().tenant().is_none_or(|own| token.tenant.as_ref() == Some(own));
        if !is_own {
            return Err(missing().into());
        }
        self.may_concern(caller, token.tenant.as_ref())?;
        if Scopes::from_bits(token.scopes).has(Scope::Operator) {
            caller.may_all()?;
        }
        self.metadata.remove_token(id).await?;
        self.access.token_revoked(id).await;
        Ok(())
    }

    /// Tokens without a tenant are managed by operators and by administrators of all tenants.
    fn may_concern(&self, caller: &Caller, tenant: Option<&TenantId>) -> Result<(), Refusal> {
        match tenant {
            Some(tenant) => caller.may(tenant),
            None if caller.credential().tenant().is_some() => caller.may_all(),
            None => Ok(()),
        }
    }
}

/// Checks what holds for every token.
///
/// # Errors
/// When the grant is invalid.
pub fn well_formed(grant: Grant, now_ms: u64) -> Result<Grant, Invalid> {
    if grant.tenant.is_some() && grant.scopes.has(Scope::Operator) {
        let remedy = "leave out tenant_id, or operator: operators act on all tenants";
        return Err(Invalid::new("scopes", "has operator for a token of one tenant", remedy));
    }
    if grant.expires_at_ms.is_some_and(|end| end <= now_ms) {
        return Err(Invalid::new("expires_at", "has passed", "send a future time, or 0 for none"));
    }
    Ok(grant)
}

/// A grant as `caller` may give it: complete, or refused; it expires no later than the caller's credential.
fn within(caller: &Caller, grant: Grant) -> Result<Grant, Refusal> {
    let own = caller.credential();
    if own.scopes().has(Scope::Operator) {
        return Ok(grant);
    }
    let beyond = grant.scopes.without(own.scopes());
    if let Some(first) = beyond.iter().next() {
        return Err(caller.refused(Refusal::Scope { needs: Scopes::only(first) }));
    }
    let ends = [grant.expires_at_ms, own.expires_at_ms()];
    Ok(Grant { expires_at_ms: ends.into_iter().flatten().min(), ..grant })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::caller::Origin;
    use crate::access::config::Security;
    use crate::access::scope;
    use crate::access::testing::memory;

    const OF_TENANT: usize = 3;

    struct World {
        access: Arc<Access>,
        issuance: Issuance,
        metadata: Arc<dyn Metadata>,
    }

    async fn world() -> World {
        let metadata: Arc<dyn Metadata> = memory();
        let settings = Security { tokens: true, ..Security::default() };
        let access = Arc::new(Access::open(&settings, Arc::clone(&metadata), || 1000).await.unwrap());
        World { issuance: Issuance::new(Arc::clone(&access), Arc::clone(&metadata), OF_TENANT), access, metadata }
    }

    fn grant(tenant: Option<&str>, scopes: &str) -> Grant {
        Grant {
            tenant: tenant.map(|id| TenantId::new(id).unwrap()),
            scopes: Scopes::among(scopes.split(',')),
            label: String::new(),
            expires_at_ms: None,
        }
    }

    impl World {
        /// A caller with a token for this grant.
        async fn caller(&self, grant: Grant) -> Caller {
            let fresh = make(grant, rand::random(), rand::random(), 0);
            self.metadata.create_token(fresh.token.clone(), None).await.unwrap();
            self.access.token_made(&fresh.token).await;
            let shown = format!("Bearer {}", fresh.text);
            let rule = scope::of_call("/witan.v1.AccessService/CreateToken");
            self.access.admit(rule, Some(shown.as_bytes()), &Origin::default()).unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn an_operator_makes_any_token() {
        let world = world().await;
        let operator = world.caller(grant(None, "operator")).await;
        for made in [grant(None, "admin,operator"), grant(Some("acme"), "read,write,admin"), grant(None, "")] {
            let fresh = world.issuance.create(&operator, made.clone()).await.unwrap();
            assert_eq!(fresh.token.scopes, made.scopes.bits());
        }
        let mixed = world.issuance.create(&operator, grant(Some("acme"), "operator")).await;
        assert!(matches!(mixed, Err(Denied::Invalid(invalid)) if invalid.field == "scopes"));
        let late = Grant { expires_at_ms: Some(1000), ..grant(None, "read") };
        let late = world.issuance.create(&operator, late).await;
        assert!(matches!(late, Err(Denied::Invalid(invalid)) if invalid.field == "expires_at"));
    }

    #[tokio::test]
    async fn an_administrator_gives_no_more_than_it_has() {
        let world = world().await;
        let own = Grant { expires_at_ms: Some(5000), ..grant(Some("acme"), "admin,read") };
        let admin = world.caller(own).await;
        let fresh = world.issuance.create(&admin, grant(Some("acme"), "read")).await.unwrap();
        assert_eq!(fresh.token.expires_at_ms, Some(5000), "nor for longer");
        for wrong in [
            grant(Some("acme"), "read,write"),
            grant(Some("other"), "read"),
            grant(None, "read"),
            grant(None, "operator"),
            grant(None, ""),
        ] {
            let refused = world.issuance.create(&admin, wrong.clone()).await;
            assert!(matches!(refused, Err(Denied::Refused(_))), "{wrong:?}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn a_tenant_leaves_tokens_for_others() {
        let world = world().await;
        let operator = world.caller(grant(None, "operator")).await;
        let admin = world.caller(grant(Some("acme"), "admin,read")).await;
        let make =
            async |caller: &Caller, tenant: &str| world.issuance.create(caller, grant(Some(tenant), "read")).await;
        let mut own = Vec::new();
        let refused = loop {
            match make(&admin, "acme").await {
                Ok(fresh) => own.push(fresh.token.id),
                Err(refused) => break refused,
            }
        };
        assert_eq!(own.len(), OF_TENANT - 1, "with the one that it has");
        assert!(
            matches!(&refused, Denied::Store(StoreError::Refused(why)) if why.contains("revoke some")),
            "{refused:?}"
        );
        let other = world.caller(grant(Some("other"), "admin,read")).await;
        make(&other, "other").await.expect("another tenant's");
        make(&operator, "acme").await.expect("an operator makes more");
        for id in own {
            world.issuance.revoke(&admin, &id).await.expect("revoked");
        }
        make(&admin, "acme").await.expect("there is room again");
    }

    #[tokio::test]
    async fn an_administrator_sees_and_revokes_its_tenants_tokens_only() {
        let world = world().await;
        let operator = world.caller(grant(None, "operator")).await;
        let admin = world.caller(grant(Some("acme"), "admin")).await;
        let other = world.issuance.create(&operator, grant(Some("other"), "read")).await.unwrap().token;
        let own = world.issuance.create(&operator, grant(Some("acme"), "read")).await.unwrap().token;

        let seen = world.issuance.list(&admin, None, None, 100).await.unwrap();
        assert!(seen.tokens.len() == 2 && seen.tokens.iter().all(|token| token.tenant == own.tenant));
        assert_eq!(seen.next, None);
        let foreign = world.issuance.list(&admin, other.tenant.as_ref(), None, 100).await;
        assert!(matches!(foreign, Err(Denied::Refused(_))));
        assert_eq!(world.issuance.list(&operator, None, None, 100).await.unwrap().tokens.len(), 4);

        let everywhere = world.caller(grant(None, "admin")).await;
        let operators = operator.credential().id().trim_start_matches("token:");
        let refused = world.issuance.revoke(&everywhere, operators).await;
        assert!(matches!(refused, Err(Denied::Refused(_))), "only an operator revokes an operator's token");
        let refused = world.issuance.revoke(&admin, &other.id).await;
        assert!(matches!(refused, Err(Denied::Store(StoreError::Missing(_)))));
        world.issuance.revoke(&admin, &own.id).await.unwrap();
        assert!(world.issuance.revoke(&admin, &own.id).await.is_err());
        world.issuance.revoke(&operator, &other.id).await.unwrap();
    }

    #[tokio::test]
    async fn lists_come_in_pages() {
        let world = world().await;
        let operator = world.caller(grant(None, "operator")).await;
        for _ in 0..5 {
            world.issuance.create(&operator, grant(Some("acme"), "read")).await.unwrap();
        }
        let acme = TenantId::new("acme").unwrap();
        for (tenant, expected) in [(None, 6), (Some(&acme), 5)] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = world.issuance.list(&operator, tenant, after, 2).await.unwrap();
                assert!(page.tokens.len() <= 2);
                seen.extend(page.tokens.into_iter().map(|token| token.id));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(seen.len(), expected);
            seen.dedup();
            assert_eq!(seen.len(), expected);
        }
    }

    #[tokio::test]
    async fn a_revoked_token_opens_nothing_any_more() {
        let world = world().await;
        let operator = world.caller(grant(None, "operator")).await;
        let fresh = world.issuance.create(&operator, grant(Some("acme"), "read")).await.unwrap();
        let shown = format!("bearer {}", fresh.text);
        let rule = scope::of_call("/witan.v1.CoordinatorService/ReadKeyValue");
        let admit = || world.access.admit(rule, Some(shown.as_bytes()), &Origin::default());
        let reader = admit().unwrap().unwrap();
        assert_eq!(reader.is_still_good(), Ok(()));
        world.issuance.revoke(&operator, &fresh.token.id).await.unwrap();
        assert_eq!(reader.is_still_good(), Err(Refusal::Unknown), "including streams opened with it");
        assert!(admit().is_none(), "it is not known any more");
        let asked = world.access.admit_unseen(rule, Some(shown.as_bytes()), &Origin::default()).await;
        assert!(matches!(asked, Err(Refusal::Unknown)));
    }
}
