//! A checked credential: who calls, and what it allows.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use witan_kernel::name::TenantId;
use witan_kernel::port::Token;

use super::refusal::Refusal;
use super::scope::{Need, Scope, Scopes};

/// A checked credential, without its secret.
#[derive(Debug)]
pub struct Credential {
    id: String,
    tenant: Option<TenantId>,
    scopes: Scopes,
    expires_at_ms: Option<u64>,
    /// Turns true when it is revoked; streams opened with it watch this.
    ended: AtomicBool,
    ending: Notify,
}

impl Credential {
    /// A credential. One that is bound to a tenant never has the scope operator, whatever it claims, since operators act on all
    /// tenants.
    pub fn new(id: String, tenant: Option<TenantId>, scopes: Scopes, expires_at_ms: Option<u64>) -> Self {
        let scopes = if tenant.is_some() { scopes.without(Scopes::only(Scope::Operator)) } else { scopes };
        Self { id, tenant, scopes, expires_at_ms, ended: AtomicBool::new(false), ending: Notify::new() }
    }

    /// The credential of clients that send none, where they are served.
    pub fn anonymous() -> Self {
        Self::new("anonymous".to_owned(), None, Scopes::ALL, None)
    }

    /// The credential of an API token.
    pub fn of_token(token: &Token) -> Self {
        let scopes = Scopes::from_bits(token.scopes);
        Self::new(format!("token:{}", token.id), token.tenant.clone(), scopes, token.expires_at_ms)
    }

    /// Its name in the audit log; contains no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tenant that it is bound to.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The scopes that it has.
    pub fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// When it expires: Unix time, milliseconds.
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }

    /// Marks it as revoked.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.ending.notify_waiters();
    }

    /// Waits until it is revoked.
    pub async fn revoked(&self) {
        let ending = self.ending.notified();
        tokio::pin!(ending);
        // Subscribed before the check, so that a change in between is not missed.
        ending.as_mut().enable();
        if !self.ended.load(Ordering::SeqCst) {
            ending.await;
        }
    }

    /// Whether it is still valid.
    pub fn is_good(&self, now_ms: u64) -> Result<(), Refusal> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(Refusal::Unknown);
        }
        match self.expires_at_ms {
            Some(end) if end <= now_ms => Err(Refusal::Expired),
            _ => Ok(()),
        }
    }

    /// Whether it has what a call needs. The tenant that the call names is checked later.
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
