//! Rate limits: requests per second of each tenant, by scope.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use witan_kernel::name::TenantId;

use super::config::RateLimits;
use super::scope::Scope;

/// Most tenants whose requests are counted at a time. A forgotten tenant starts again with a full second's worth, so this only
/// matters when more tenants than these are busy within seconds.
const TENANTS: u64 = 10_000;
/// Idle time after which a tenant is forgotten: its limit has fully recovered by then.
const IDLE: Duration = Duration::from_secs(10);

/// The limits, and how much of them is used.
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
    /// New limits, of which nothing is used.
    pub(super) fn new(limits: RateLimits) -> Self {
        let tenants = Cache::builder().max_capacity(TENANTS).time_to_idle(IDLE).build();
        Self { operators: gate(limits.operator), limits, tenants }
    }

    /// The limits.
    pub(super) fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// Counts one request of `tenant`; if it is over the limit, returns the time until the next is accepted.
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

    /// Counts one request of an operator; all operators share one limit.
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
        // So slow that nothing recovers while the test runs.
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
