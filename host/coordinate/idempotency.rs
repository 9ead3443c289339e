//! Exactly one effect: an operation's claim on its idempotency key, and its result on record under it.
//!
//! What is acknowledged under an idempotency key is on record, so that whoever repeats it is answered with the first response. A store
//! that is away for a moment delays the answer; one that is away for longer turns it into a doubt, which a repetition clears up.
//! Tenants that would rather go on without the store (`proceed`) are told at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use witan_kernel::backoff::Backoff;
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::idempotency::{Name, Owner, Step, Stepped};
use witan_kernel::name::{Key, TenantId, WriteId};
use witan_kernel::port::{self, Clock, IdempotencyStore, Randomness, StoreError};
use witan_kernel::register::Stamp;
use witan_kernel::tenant::IdempotencyOutage;

use super::plan::{Plan, store_failure};
use super::request::Written;
use super::{Coordinator, World};

/// How soon a request checks again whether the one before it has finished.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(100);
/// A lease outlasts its operation's deadline by so much, so that nobody takes over from one that is about to record.
const LEASE_MARGIN_MS: u64 = 500;
/// How soon a record that the store did not take is tried again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
/// For how long, after the operation has been answered. A `siblings` change that is repeated later than 15 s after it started stays in
/// doubt, unless its record tells how it came out: this is about as long as a server takes that has to be looked after.
const LATE_MICROS: u64 = 600_000_000;
/// Records that may be late at a time: at about a kilobyte each, and a step a second.
const MOST_LATE: usize = 1000;

/// What an operation holds of its idempotency key.
#[derive(Debug)]
pub(super) struct Claim {
    reserved: Option<Reserved>,
    named: bool,
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
        Self { reserved: None, named: false, started, sent: false }
    }

    /// One whose name could not be claimed, and whose tenant goes on without.
    fn unclaimed(started: u64) -> Self {
        Self { named: true, ..Self::none(started) }
    }

    /// True when the client has named its intention, and may have sent it before.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }

    /// True when a reservation stands behind it.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// True when an earlier attempt may have done all of the work, or may still: only a first claim knows that there was none.
    pub(super) fn may_be_repeated(&self) -> bool {
        self.took_over() || (self.named && self.reserved.is_none())
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

    /// Records the result, or gives the name back.
    pub(super) async fn settle<W: World>(
        self,
        coordinator: &Coordinator<W>,
        result: &Result<Written, Failed>,
    ) -> Recorded {
        let Some(Reserved { name, owner, fence, .. }) = self.reserved else { return Recorded::Yes };
        let step = match result {
            Ok(written) => Step::Done { owner, fence, response: written.encode() },
            Err(failed) if !self.sent || failed.effect == Some(Effect::NotApplied) => Step::Release { owner, fence },
            Err(_) => Step::Abandon { owner, fence },
        };
        match coordinator.ports.idempotency.step(name, step.clone()).await {
            Ok(Stepped::Stored) => Recorded::Yes,
            // What failed has nothing to record, and a name that was not given back is free when its lease has expired.
            Ok(_) if result.is_err() => Recorded::Yes,
            Err(error) if result.is_err() || Fault::AcknowledgedUnrecorded.is_on() => {
                coordinator.unsettled(&error);
                Recorded::Yes
            }
            told => Unrecorded::after(told, name, step, coordinator),
        }
    }
}

/// Whether a result is where a repetition looks for it.
#[derive(Debug)]
pub(super) enum Recorded {
    /// It is, or there is none.
    Yes,
    /// It can be tried again.
    NotYet(Unrecorded),
    /// The record is lost, damaged, or another attempt's by now, which works under the same write id and stamp, and has yet to say how
    /// it came out.
    Never,
}

/// The result of an operation that is stored, and not on record yet.
#[derive(Debug)]
pub(super) struct Unrecorded {
    name: Name,
    done: Step,
    why: StoreError,
}

impl Unrecorded {
    /// What the store's answer to recording comes to.
    fn after<W: World>(
        told: Result<Stepped, StoreError>,
        name: Name,
        done: Step,
        coordinator: &Coordinator<W>,
    ) -> Recorded {
        match told {
            Ok(Stepped::Stored) => Recorded::Yes,
            Ok(_) => {
                coordinator.unsettled(&"the claim is lost, or another attempt's by now");
                Recorded::Never
            }
            Err(why @ StoreError::Unavailable(_)) => Recorded::NotYet(Self { name, done, why }),
            Err(error) => {
                coordinator.unsettled(&error);
                Recorded::Never
            }
        }
    }

    /// Tries until it is on record, or cannot be, or monotonic time has come to `until`.
    pub(super) async fn insist<W: World>(mut self, coordinator: &Coordinator<W>, until: u64) -> Recorded {
        let left = || port::until(until, coordinator.ports.clock.monotonic_micros());
        let mut backoff = RETRY;
        while !left().is_zero() {
            tokio::time::sleep(backoff.failed().min(left())).await;
            let step = coordinator.ports.idempotency.step(self.name, self.done.clone());
            let Ok(told) = tokio::time::timeout(left(), step).await else { break };
            match Self::after(told, self.name, self.done, coordinator) {
                Recorded::NotYet(still) => self = still,
                recorded => return recorded,
            }
        }
        Recorded::NotYet(self)
    }

    /// Goes on behind the answer, within bounds.
    pub(super) fn insist_behind<W: World>(self, coordinator: &Arc<Coordinator<W>>) {
        coordinator.unsettled(&self.why);
        let Some(slot) = coordinator.late_records.take() else { return };
        let (coordinator, until) = (Arc::clone(coordinator), coordinator.ports.clock.monotonic_micros() + LATE_MICROS);
        tokio::spawn(async move {
            if let Recorded::NotYet(Self { why, .. }) = self.insist(&coordinator, until).await {
                tracing::warn!(error = %why, "an idempotency record was not made in all this time; a repetition may stay in doubt");
            }
            drop(slot);
        });
    }
}

/// Records that are late.
pub(super) struct LateRecords(Arc<Semaphore>);

impl LateRecords {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST_LATE)))
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
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
        let (mut backoff, mut another) = (Backoff::new(FIRST_LOOK, LAST_LOOK), false);
        loop {
            let left = port::until(plan.deadline, self.ports.clock.monotonic_micros());
            let lease_ms = left.as_millis() as u64 + LEASE_MARGIN_MS;
            let step = Step::Reserve { owner, write_id, started, lease_ms };
            let left_ms = match self.ports.idempotency.step(name, step).await {
                Ok(Stepped::Reserved { fence, took_over, stamp, started }) => {
                    let reserved = Reserved { name, owner, fence, took_over, stamp };
                    return Ok(Claimed::Yes(Claim { reserved: Some(reserved), named: true, started, sent: false }));
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
                // Another attempt has been seen: nobody goes on beside it.
                Err(_) if another => return Err(Failure::InProgress { retry_after: LAST_LOOK }.in_doubt()),
                Err(error) => return self.without_store(plan, started, error),
            };
            another = true;
            if left.is_zero() {
                let retry_after = Duration::from_millis(left_ms);
                // The attempt that holds the key may yet apply it.
                return Err(Failure::InProgress { retry_after }.in_doubt());
            }
            tokio::time::sleep(backoff.failed().min(left).min(Duration::from_millis(left_ms.max(1)))).await;
        }
    }

    fn unsettled(&self, error: &dyn std::fmt::Display) {
        self.metrics.idempotency_unsettled.inc();
        tracing::warn!(%error, "an operation has ended, and its idempotency record does not show it");
    }

    fn without_store(&self, plan: &Plan, started: u64, error: StoreError) -> Result<Claimed, Failed> {
        match plan.tenant.idempotency_outage {
            IdempotencyOutage::Proceed => Ok(Claimed::Yes(Claim::unclaimed(started))),
            // This attempt does nothing, but there may have been one before it.
            IdempotencyOutage::Reject => Err(store_failure("the idempotency store", error).in_doubt()),
        }
    }
}

fn name(tenant: &TenantId, key: &Key, idempotency_key: &str) -> Name {
    Name::new(tenant, key, idempotency_key.as_bytes())
}
