//! An admitted call: who makes it, and the checks that follow once its request is decoded.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use witan_kernel::name::TenantId;

use super::audit::{Entry, Place};
use super::credential::Credential;
use super::refusal::Refusal;
use super::scope::{Need, Rule, Scope, Scopes};
use super::{Access, token};
use witan_origin::RequestId;

/// Interval at which a waiting stream checks the time.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// The origin of a call, for the audit log.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The peer of the connection.
    pub peer: Option<SocketAddr>,
    /// The call's id.
    pub request_id: Option<RequestId>,
    /// When its headers arrived; `None`: not known.
    pub arrived: Option<Instant>,
}

/// Who makes a call. Only the layer in front of every server makes one, and attaches it to the request.
#[derive(Clone)]
pub struct Caller {
    pub(super) access: Arc<Access>,
    pub(super) credential: Arc<Credential>,
    pub(super) rule: &'static Rule,
    pub(super) origin: Origin,
    /// The tenant that a change names, for the entry written when it has ended.
    pub(super) named: Option<Arc<OnceLock<TenantId>>>,
    /// It has been counted against the rate of its credential's tenant, before its request was decoded.
    pub(super) counted: bool,
}

impl Caller {
    /// Checks that the call may name this tenant, and that the tenant is within its rate limit.
    ///
    /// # Errors
    /// When it is refused; the refusal is recorded.
    pub fn may(&self, tenant: &TenantId) -> Result<(), Refusal> {
        self.may_on(tenant, None)
    }

    /// As [`Self::may`], for a call about one key.
    ///
    /// # Errors
    /// When it is refused; the refusal is recorded.
    pub fn may_on(&self, tenant: &TenantId, key: Option<&[u8]>) -> Result<(), Refusal> {
        if let Some(named) = &self.named {
            // A call names one tenant; if it named two, the first one would be recorded.
            let _ = named.set(tenant.clone());
        }
        let allowed = self.credential.covers(tenant).and_then(|()| match self.counted {
            true => Ok(()),
            false => self.take(tenant, self.rule.rate()),
        });
        self.noted(allowed, Some(tenant), key)
    }

    /// Checks an operation of a stream, which was opened with any one of several scopes.
    ///
    /// # Errors
    /// When it is refused; the refusal is recorded.
    pub fn may_operate(&self, scope: Scope, tenant: &TenantId, key: &[u8]) -> Result<(), Refusal> {
        let allowed = self
            .credential
            .meets(Need::OneOf(Scopes::only(scope)))
            .and_then(|()| self.credential.covers(tenant))
            .and_then(|()| self.take(tenant, Some(scope)));
        self.noted(allowed, Some(tenant), Some(key))
    }

    /// How long ago the call arrived, before its message was complete and its credential was checked.
    pub fn waited(&self) -> Duration {
        self.origin.arrived.map_or(Duration::ZERO, |arrived| arrived.elapsed())
    }

    /// Checks that the call may be about all tenants at once.
    ///
    /// # Errors
    /// When it is refused; the refusal is recorded.
    pub fn may_all(&self) -> Result<(), Refusal> {
        let operator = Need::OneOf(Scopes::only(Scope::Operator));
        let allowed = self.credential.meets(operator).and_then(|()| self.access.take_operator());
        self.noted(allowed, None, None)
    }

    /// Checks that the credential is still valid: streams may outlive the credential they were opened with.
    ///
    /// # Errors
    /// When it was revoked, or has expired.
    pub fn is_still_good(&self) -> Result<(), Refusal> {
        self.noted(self.credential.is_good(self.access.now_ms()), None, None)
    }

    /// Waits until the credential is no longer valid, and returns why.
    pub async fn until_ended(&self) -> Refusal {
        loop {
            if let Err(refusal) = self.is_still_good() {
                return refusal;
            }
            let left = self.credential.expires_at_ms().map(|end| end.saturating_sub(self.access.now_ms()).max(1));
            // In steps, since the wall clock may be changed meanwhile.
            let patience = Duration::from_millis(left.unwrap_or(u64::MAX)).min(CLOCK_CHECK);
            tokio::select! {
                () = self.credential.revoked() => {}
                () = tokio::time::sleep(patience) => {}
            }
        }
    }

    /// Counts and records a refusal that was decided elsewhere.
    pub fn refused(&self, refusal: Refusal) -> Refusal {
        self.noted(Err(refusal.clone()), self.named(), None).err().unwrap_or(refusal)
    }

    /// Its credential.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// The tenant for whose administrators a call about `tenant` is made; `None` for operators, who have room of their own.
    pub fn on_behalf_of<'a>(&self, tenant: &'a TenantId) -> Option<&'a TenantId> {
        (!self.is_operator()).then_some(tenant)
    }

    /// Whether an operator makes the call.
    pub fn is_operator(&self) -> bool {
        self.credential.scopes().has(Scope::Operator)
    }

    /// The path of the call.
    pub fn rule(&self) -> &'static Rule {
        self.rule
    }

    /// Whether its end is recorded.
    pub fn is_recorded(&self) -> bool {
        self.named.is_some()
    }

    /// A place in the audit log, which a change takes before it is made.
    ///
    /// # Errors
    /// When the audit log cannot be written: then the change must not be made.
    pub async fn place(&self) -> Result<Place, Refusal> {
        let place = match &self.access.audit {
            Some(audit) => audit.place().await,
            None => None,
        };
        place.ok_or_else(|| self.refused(Refusal::Unrecorded))
    }

    /// Records the end of a change that was made, or may have been.
    pub fn changed(&self, place: Place, outcome: &'static str, reason: Option<&str>) {
        if let Some(audit) = &self.access.audit {
            audit.changed(place, &self.entry(outcome, reason, self.named(), None));
        }
    }

    /// Records the end of a call that has changed nothing.
    pub fn failed(&self, outcome: &'static str, reason: Option<&str>) {
        if let Some(audit) = &self.access.audit {
            let source = self.credential.tenant().map_or(self.credential.id(), TenantId::as_str);
            audit.failed(source, || self.entry(outcome, reason, self.named(), None));
        }
    }

    /// Whether the call may have begun to change something: it has said what, and was permitted. Operators need not name a tenant.
    pub fn may_have_begun(&self) -> bool {
        self.named().is_some() || self.is_operator()
    }

    fn named(&self) -> Option<&TenantId> {
        self.named.as_ref().and_then(|named| named.get())
    }

    fn take(&self, tenant: &TenantId, scope: Option<Scope>) -> Result<(), Refusal> {
        scope.map_or(Ok(()), |scope| self.access.take(tenant, scope))
    }

    /// Counts and records a refusal.
    fn noted(
        &self,
        allowed: Result<(), Refusal>,
        tenant: Option<&TenantId>,
        key: Option<&[u8]>,
    ) -> Result<(), Refusal> {
        let refusal = match allowed {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        self.access.metrics.refused(&refusal);
        self.access.put_refusal(|| self.entry("refused", Some(refusal.reason()), tenant, key));
        Err(refusal)
    }

    fn entry<'a>(
        &'a self,
        outcome: &'static str,
        reason: Option<&'a str>,
        tenant: Option<&'a TenantId>,
        key: Option<&[u8]>,
    ) -> Entry<'a> {
        Entry {
            time_ms: self.access.now_ms(),
            request_id: self.origin.request_id.as_ref().map(ToString::to_string),
            peer: self.origin.peer,
            credential: self.credential.id(),
            rpc: self.rule.path,
            tenant: tenant.map(TenantId::as_str),
            key_hash: key.map(|key| token::hexadecimal(&Sha256::digest(key)[..8])),
            outcome,
            reason,
            left_out: None,
        }
    }
}
