//! Exactly one effect: an operation's claim on its idempotency key.

use std::time::Duration;

use witan_kernel::failure::{Failed, Failure};
use witan_kernel::idempotency::{Name, Owner, Step, Stepped};
use witan_kernel::name::{Key, TenantId, WriteId};
use witan_kernel::port::{Clock, IdempotencyStore, Randomness, StoreError, until};
use witan_kernel::register::Stamp;
use witan_kernel::tenant::IdempotencyOutage;

use super::plan::{Plan, store_failure};
use super::request::Written;
use super::{Coordinator, World};

/// How soon a request looks again whether the one before it has finished; doubled up to the second one.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(100);
/// A lease outlasts its operation's deadline by so much, so that nobody takes over from one that is about to record.
const LEASE_MARGIN_MS: u64 = 500;

/// What an operation holds of its idempotency key.
#[derive(Debug)]
pub(super) struct Claim {
    reserved: Option<Reserved>,
    started: u64,
    sent: bool,
}

#[derive(Debug)]
struct Reserved {
    name: Name,
    owner: Owner,
    fence: u64,
    took_over: bool,
    stamp: Option<Stamp>,
}

/// What claiming comes to.
pub(super) enum Claimed {
    /// Go on.
    Yes(Claim),
    /// It was done before.
    Done(Written),
}

impl Claim {
    /// An operation whose client has not named its intention.
    pub(super) fn none(started: u64) -> Self {
        Self { reserved: None, started, sent: false }
    }

    /// True when a reservation stands behind it.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// True when an earlier attempt may have done part of the work.
    pub(super) fn took_over(&self) -> bool {
        self.reserved.as_ref().is_some_and(|r| r.took_over)
    }

    /// The stamp an earlier attempt has stored.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.reserved.as_ref().and_then(|r| r.stamp)
    }

    /// Hybrid time at which the first attempt started.
    pub(super) fn started(&self) -> u64 {
        self.started
    }

    /// From here on replicas may have heard of the write.
    pub(super) fn sent(&mut self) {
        self.sent = true;
    }

    /// Stores the stamp before anything is sent.
    pub(super) async fn fix_stamp<W: World>(
        &mut self,
        coordinator: &Coordinator<W>,
        stamp: Stamp,
    ) -> Result<(), Failed> {
        let Some(reserved) = self.reserved.as_mut().filter(|r| r.stamp != Some(stamp)) else { return Ok(()) };
        let step = Step::Stamp { owner: reserved.owner, fence: reserved.fence, stamp };
        match coordinator.ports.idempotency.step(reserved.name, step).await {
            Ok(Stepped::Stored) => {
                reserved.stamp = Some(stamp);
                Ok(())
            }
            // Taken over: the other attempt decides.
            Ok(_) => Err(Failure::InProgress { retry_after: LAST_LOOK }.in_doubt()),
            Err(error) => Err(store_failure("the idempotency store", error).not_applied()),
        }
    }

    /// Records the result, or gives the name back. A result that cannot be recorded is told all the same: a retry repeats
    /// the same write id and stamp.
    pub(super) async fn settle<W: World>(self, coordinator: &Coordinator<W>, result: &Result<Written, Failed>) {
        let Some(Reserved { name, owner, fence, .. }) = self.reserved else { return };
        let step = match result {
            Ok(written) => Step::Done { owner, fence, response: written.encode() },
            Err(failed) if !self.sent || failed.effect == Some(witan_kernel::failure::Effect::NotApplied) => {
                Step::Release { owner, fence }
            }
            Err(_) => Step::Abandon { owner, fence },
        };
        if let Err(error) = coordinator.ports.idempotency.step(name, step).await {
            coordinator.metrics.idempotency_unsettled.inc();
            tracing::warn!(%error, "an idempotency record could not be settled; its lease will expire");
        }
    }
}

impl<W: World> Coordinator<W> {
    /// Claims an idempotency key for a request, waiting for another attempt at it as long as the client waits.
    pub(super) async fn claim(
        &self,
        plan: &Plan,
        idempotency_key: &str,
        write_id: WriteId,
        started: u64,
    ) -> Result<Claimed, Failed> {
        let name = name(&plan.place.tenant, &plan.place.key, idempotency_key);
        let owner = Owner(self.ports.randomness.sixteen());
        let mut look = FIRST_LOOK;
        loop {
            let left = until(plan.deadline, self.ports.clock.monotonic_micros());
            let lease_ms = left.as_millis() as u64 + LEASE_MARGIN_MS;
            let step = Step::Reserve { owner, write_id, started, lease_ms };
            let left_ms = match self.ports.idempotency.step(name, step).await {
                Ok(Stepped::Reserved { fence, took_over, stamp, started }) => {
                    let reserved = Reserved { name, owner, fence, took_over, stamp };
                    return Ok(Claimed::Yes(Claim { reserved: Some(reserved), started, sent: false }));
                }
                Ok(Stepped::Done { response }) => {
                    let decoded = Written::decode(response, idempotency_key.to_owned());
                    let damaged = || Failure::Internal("a recorded response is damaged".to_owned()).in_doubt();
                    return decoded.map(Claimed::Done).ok_or_else(damaged);
                }
                Ok(Stepped::Conflict) => return Err(Failure::IdempotencyKeyConflict.not_applied()),
                Ok(Stepped::InProgress { left_ms }) => left_ms,
                Ok(Stepped::Stored | Stepped::Lost) => {
                    let reason = "the idempotency store answered out of turn".to_owned();
                    return Err(Failure::Internal(reason).not_applied());
                }
                Err(error) => return self.without_store(plan, started, error),
            };
            if left.is_zero() {
                let retry_after = Duration::from_millis(left_ms);
                // The attempt that holds the key may yet apply it.
                return Err(Failure::InProgress { retry_after }.in_doubt());
            }
            tokio::time::sleep(look.min(left).min(Duration::from_millis(left_ms.max(1)))).await;
            look = (look * 2).min(LAST_LOOK);
        }
    }

    fn without_store(&self, plan: &Plan, started: u64, error: StoreError) -> Result<Claimed, Failed> {
        match plan.tenant.idempotency_outage {
            IdempotencyOutage::Proceed => Ok(Claimed::Yes(Claim::none(started))),
            IdempotencyOutage::Reject => Err(store_failure("the idempotency store", error).not_applied()),
        }
    }
}

fn name(tenant: &TenantId, key: &Key, idempotency_key: &str) -> Name {
    Name::new(tenant, key, idempotency_key.as_bytes())
}
