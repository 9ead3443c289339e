//! How many requests a second each tenant may make, per scope.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use witan_kernel::name::TenantId;

use super::config::RateLimits;
use super::scope::Scope;

/// Tenants whose requests are counted at a time. One that has been forgotten starts with a full second's worth, so that this
/// only matters where more tenants than these are busy within seconds.
const TENANTS: u64 = 10_000;
/// After so long without a request, a tenant's second is full again anyway.
const IDLE: Duration = Duration::from_secs(10);

/// The limits in force, and what has been used of them.
#[derive(Debug)]
pub(super) struct Rates {
    limits: RateLimits,
    tenants: Cache<TenantId, Arc<Gates>>,
    operators: Option<DefaultDirectRateLimiter>,
}

#[derive(Debug)]
struct Gates {
    read: Option<DefaultDirectRateLimiter>,
    write: Option<DefaultDirectRateLimiter>,
    admin: Option<DefaultDirectRateLimiter>,
}

fn gate(per_second: u32) -> Option<DefaultDirectRateLimiter> {
    NonZeroU32::new(per_second).map(|limit| RateLimiter::direct(Quota::per_second(limit)))
}

impl Rates {
    /// These limits, of which nothing is used yet.
    pub(super) fn new(limits: RateLimits) -> Self {
        let tenants = Cache::builder().max_capacity(TENANTS).time_to_idle(IDLE).build();
        Self { operators: gate(limits.operator), limits, tenants }
    }

    /// The limits.
    pub(super) fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// Takes one request of `tenant`, or says when there will be room for it.
    pub(super) fn take(&self, tenant: &TenantId, scope: Scope) -> Result<(), Duration> {
        if self.of(scope) == 0 {
            return Ok(());
        }
        if scope == Scope::Operator {
            return self.take_operator();
        }
        let gates = match self.tenants.get(tenant) {
            Some(gates) => gates,
            None => self.tenants.get_with(tenant.clone(), || Arc::new(self.gates())),
        };
        match scope {
            Scope::Read => pass(gates.read.as_ref()),
            Scope::Write => pass(gates.write.as_ref()),
            Scope::Admin | Scope::Operator => pass(gates.admin.as_ref()),
        }
    }

    /// Takes one request of the operators, who share one limit.
    pub(super) fn take_operator(&self) -> Result<(), Duration> {
        pass(self.operators.as_ref())
    }

    fn of(&self, scope: Scope) -> u32 {
        match scope {
            Scope::Read => self.limits.read,
            Scope::Write => self.limits.write,
            Scope::Admin => self.limits.admin,
            Scope::Operator => self.limits.operator,
        }
    }

    fn gates(&self) -> Gates {
        Gates { read: gate(self.limits.read), write: gate(self.limits.write), admin: gate(self.limits.admin) }
    }
}

fn pass(gate: Option<&DefaultDirectRateLimiter>) -> Result<(), Duration> {
    let Some(gate) = gate else { return Ok(()) };
    gate.check().map_err(|until| until.wait_time_from(DefaultClock::default().now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    #[test]
    fn a_tenant_uses_up_its_own_second_only() {
        // So slow that no room comes back while the test runs.
        let rates = Rates::new(RateLimits { read: 2, write: 1, operator: 1, ..RateLimits::default() });
        let (a, b) = (tenant("a"), tenant("b"));
        assert!(rates.take(&a, Scope::Write).is_ok());
        let wait = rates.take(&a, Scope::Write).unwrap_err();
        assert!(wait <= Duration::from_secs(1) && wait > Duration::ZERO, "{wait:?}");
        assert!(rates.take(&b, Scope::Write).is_ok());
        assert!(rates.take(&a, Scope::Read).is_ok());
        assert!((0..1000).all(|_| rates.take(&a, Scope::Admin).is_ok()), "0 is no limit");
        assert!(rates.take(&a, Scope::Operator).is_ok());
        assert!(rates.take_operator().is_err(), "operators share one limit");
    }

    #[test]
    fn what_is_counted_is_bounded() {
        let rates = Rates::new(RateLimits { read: 1, ..RateLimits::default() });
        for number in 0..3 * TENANTS {
            let _ = rates.take(&tenant(&number.to_string()), Scope::Read);
        }
        rates.tenants.run_pending_tasks();
        assert!(rates.tenants.entry_count() <= TENANTS);
    }
}
