//! Who calls, and what they may.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use witan_kernel::name::TenantId;
use witan_kernel::port::Token;

use super::refusal::Refusal;
use super::scope::{Need, Scope, Scopes};

/// A credential that has been checked, without what would let anybody use it.
#[derive(Debug)]
pub struct Credential {
    id: String,
    tenant: Option<TenantId>,
    scopes: Scopes,
    expires_at_ms: Option<u64>,
    /// Turns true when it is revoked: streams that it has opened look at this.
    ended: AtomicBool,
    ending: Notify,
}

impl Credential {
    /// A credential. One that is bound to a tenant is no operator's, whatever it claims: what operators do is of all tenants.
    pub fn new(id: String, tenant: Option<TenantId>, scopes: Scopes, expires_at_ms: Option<u64>) -> Self {
        let scopes = if tenant.is_some() { scopes.without(Scopes::only(Scope::Operator)) } else { scopes };
        Self { id, tenant, scopes, expires_at_ms, ended: AtomicBool::new(false), ending: Notify::new() }
    }

    /// Whoever shows nothing, where that is served.
    pub fn anonymous() -> Self {
        Self::new("anonymous".to_owned(), None, Scopes::ALL, None)
    }

    /// That of an API token.
    pub fn of_token(token: &Token) -> Self {
        let scopes = Scopes::from_bits(token.scopes);
        Self::new(format!("token:{}", token.id), token.tenant.clone(), scopes, token.expires_at_ms)
    }

    /// What stands for it in records: never anything that opens a door.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tenant that it is bound to.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// What it allows.
    pub fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// When it ends to be good: Unix time, milliseconds.
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }

    /// It was revoked.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.ending.notify_waiters();
    }

    /// Waits until it is revoked.
    pub async fn revoked(&self) {
        let ending = self.ending.notified();
        tokio::pin!(ending);
        // Registered before the look, so that it is not missed in between.
        ending.as_mut().enable();
        if !self.ended.load(Ordering::SeqCst) {
            ending.await;
        }
    }

    /// Whether it is still good.
    pub fn is_good(&self, now_ms: u64) -> Result<(), Refusal> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(Refusal::Unknown);
        }
        match self.expires_at_ms {
            Some(end) if end <= now_ms => Err(Refusal::Expired),
            _ => Ok(()),
        }
    }

    /// Whether it has what a call needs. Which tenant the call names is not known yet.
    pub fn meets(&self, need: Need) -> Result<(), Refusal> {
        match need {
            Need::Nothing | Need::Credential => Ok(()),
            Need::WholeCluster if self.tenant.is_none() => Ok(()),
            Need::WholeCluster => Err(Refusal::Bound),
            Need::OneOf(needs) if self.scopes.meets(needs) => Ok(()),
            Need::OneOf(needs) => Err(Refusal::Scope { needs }),
        }
    }

    /// Whether it may name this tenant.
    pub fn covers(&self, tenant: &TenantId) -> Result<(), Refusal> {
        match &self.tenant {
            Some(own) if own != tenant => Err(Refusal::Tenant { tenant: tenant.clone() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    #[test]
    fn a_bound_credential_names_its_tenant_only() {
        let bound = Credential::new("x".into(), Some(tenant("a")), Scopes::ALL, None);
        assert_eq!(bound.covers(&tenant("a")), Ok(()));
        assert_eq!(bound.covers(&tenant("b")), Err(Refusal::Tenant { tenant: tenant("b") }));
        assert_eq!(bound.meets(Need::WholeCluster), Err(Refusal::Bound));
        let operators = Scopes::only(Scope::Operator);
        assert_eq!(bound.meets(Need::OneOf(operators)), Err(Refusal::Scope { needs: operators }));
        assert_eq!(Credential::anonymous().covers(&tenant("b")), Ok(()));
    }

    #[test]
    fn a_credential_ends() {
        let short = Credential::new("x".into(), None, Scopes::NONE, Some(10));
        assert_eq!((short.is_good(9), short.is_good(10)), (Ok(()), Err(Refusal::Expired)));
        assert_eq!(short.meets(Need::Credential), Ok(()));
        short.end();
        assert_eq!(short.is_good(9), Err(Refusal::Unknown));
    }
}
