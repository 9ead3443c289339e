//! One effect per idempotency key: an operation's claim on its key, and the record of its result.
//!
//! A change is acknowledged only after its result has been recorded under its idempotency key, so that a repetition gets the first
//! response. If the store cannot be reached for a moment, the response is delayed; if for longer, the change is reported as in doubt, and a
//! repetition finds out. Tenants that do without the store (`proceed`) get their response at once.

use std::sync::Arc;
use std::time::Duration;

use witan_kernel::backoff::{self, Backoff};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::idempotency::{Name, Owner, Step, Stepped};
use witan_kernel::name::{TenantId, WriteId};
use witan_kernel::port::{self, Clock, IdempotencyStore, Randomness, StoreError};
use witan_kernel::register::Stamp;
use witan_kernel::tenant::IdempotencyOutage;

use super::plan::{Plan, store_failure};
use super::request::Written;
use super::room::Room;
use super::{Coordinator, World};

/// First and longest pause before a request checks again whether an earlier attempt has finished; doubled each time.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(100);
/// How long a lease outlasts its operation's deadline, milliseconds: another attempt must not take over while the result is recorded.
const LEASE_MARGIN_MS: u64 = 500;
/// Pauses before recording a result is tried again.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// How long recording is tried after the response, microseconds. A `siblings` change that is repeated later than 15 s after it started
/// stays in doubt unless its record has the result. Ten minutes is about as long as it takes to bring back a server.
const LATE_MICROS: u64 = 600_000_000;
/// Most results that are being recorded after the response: each takes about a kilobyte, and one step per second.
const MOST_LATE: usize = 1000;

/// An operation's claim on its idempotency key.
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
    /// The retention that it was claimed with, which its response has as well.
    kept_ms: u64,
}

/// The result of claiming a key.
pub(super) enum Claimed {
    /// Carry out the operation.
    Yes(Claim),
    /// It has been carried out before, with this result.
    Done(Written),
}

impl Claim {
    /// An operation without an idempotency key of the client.
    pub(super) fn none(started: u64) -> Self {
        Self { reserved: None, named: false, started, sent: false }
    }

    /// An operation whose key could not be claimed, of a tenant that does without the store.
    fn unclaimed(started: u64) -> Self {
        Self { named: true, ..Self::none(started) }
    }

    /// True when the client has sent an idempotency key, and may have sent the request before.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }

    /// True when the store has a reservation for it.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// True when an earlier attempt may have carried it out, or may still do so: only the first claim of a key rules that out.
    pub(super) fn may_be_repeated(&self) -> bool {
        self.took_over() || (self.named && self.reserved.is_none())
    }

    /// True when an earlier attempt may have done part of the work.
    pub(super) fn took_over(&self) -> bool {
        self.reserved.as_ref().is_some_and(|r| r.took_over)
    }

    /// The stamp that an earlier attempt has stored.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.reserved.as_ref().and_then(|r| r.stamp)
    }

    /// Hybrid time at which the first attempt started.
    pub(super) fn started(&self) -> u64 {
        self.started
    }

    /// From now on, replicas may have received the write.
    pub(super) fn sent(&mut self) {
        self.sent = true;
    }

    /// Stores the stamp, before anything is sent to replicas.
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
            // Another attempt has taken over: it decides.
            Ok(_) => Err(Failure::InProgress { retry_after: LAST_LOOK }.in_doubt()),
            Err(error) => Err(store_failure("the idempotency store", error).not_applied()),
        }
    }

    /// Records the result, or gives up the claim.
    pub(super) async fn settle<W: World>(
        self,
        coordinator: &Coordinator<W>,
        result: &Result<Written, Failed>,
    ) -> Recorded {
        let Some(Reserved { name, owner, fence, kept_ms, .. }) = self.reserved else { return Recorded::Yes };
        let step = match result {
            Ok(written) => {
                Step::Done { owner, fence, response: written.encode(coordinator.small_responses()), kept_ms }
            }
            Err(failed) if !self.sent || failed.effect == Some(Effect::NotApplied) => Step::Release { owner, fence },
            Err(_) if Fault::DoubtReleased.is_on() => Step::Release { owner, fence },
            Err(_) => Step::Abandon { owner, fence },
        };
        match coordinator.ports.idempotency.step(name, step.clone()).await {
            Ok(Stepped::Stored) => Recorded::Yes,
            // A failure has no result to record, and a claim that was not given up is free once its lease has expired.
            Ok(_) if result.is_err() => Recorded::Yes,
            Err(error) if result.is_err() || Fault::AcknowledgedUnrecorded.is_on() => {
                coordinator.unsettled(&error);
                Recorded::Yes
            }
            result => Unrecorded::after(result, name, step, coordinator),
        }
    }
}

/// Whether a result has been recorded for repetitions.
#[derive(Debug)]
pub(super) enum Recorded {
    /// It has, or there is none to record.
    Yes,
    /// Not yet; recording can be tried again.
    NotYet(Unrecorded),
    /// It cannot be: the record is lost or damaged, or another attempt has taken over, which uses the same write id and stamp and will
    /// record its own result.
    Never,
}

/// The result of a stored change that has not been recorded yet.
#[derive(Debug)]
pub(super) struct Unrecorded {
    name: Name,
    done: Step,
    why: StoreError,
}

impl Unrecorded {
    /// Interprets the store's answer to recording.
    fn after<W: World>(
        result: Result<Stepped, StoreError>,
        name: Name,
        done: Step,
        coordinator: &Coordinator<W>,
    ) -> Recorded {
        match result {
            Ok(Stepped::Stored) => Recorded::Yes,
            Ok(_) => {
                coordinator.unsettled(&"the claim is lost or has been taken over");
                Recorded::Never
            }
            Err(why @ (StoreError::Unavailable(_) | StoreError::Full(_))) => Recorded::NotYet(Self { name, done, why }),
            Err(error) => {
                coordinator.unsettled(&error);
                Recorded::Never
            }
        }
    }

    /// Tries until it is recorded, or cannot be, or `until` (monotonic microseconds) has come.
    pub(super) async fn insist<W: World>(mut self, coordinator: &Coordinator<W>, until: u64) -> Recorded {
        let left = || port::until(until, coordinator.ports.clock.monotonic_micros());
        let mut backoff = Backoff::new(RETRY[0], RETRY[1], backoff::seed(&[&self.name.0]));
        while !left().is_zero() {
            tokio::time::sleep(backoff.failed().min(left())).await;
            let step = coordinator.ports.idempotency.step(self.name, self.done.clone());
            let Ok(result) = tokio::time::timeout(left(), step).await else { break };
            match Self::after(result, self.name, self.done, coordinator) {
                Recorded::NotYet(still) => self = still,
                recorded => return recorded,
            }
        }
        Recorded::NotYet(self)
    }

    /// Goes on trying after the response, within [`LATE_MICROS`] and [`late_records`].
    pub(super) fn insist_behind<W: World>(self, coordinator: &Arc<Coordinator<W>>, tenant: &TenantId) {
        coordinator.unsettled(&self.why);
        let Some(permit) = coordinator.late_records.admit(tenant, 1) else { return };
        let (coordinator, until) = (Arc::clone(coordinator), coordinator.ports.clock.monotonic_micros() + LATE_MICROS);
        tokio::spawn(async move {
            if let Recorded::NotYet(Self { why, .. }) = self.insist(&coordinator, until).await {
                tracing::warn!(error = %why, "gave up recording a result under its idempotency key; a repetition may stay in doubt");
            }
            drop(permit);
        });
    }
}

/// Room for the results that are being recorded after the response. One tenant may have three quarters: it may be the only one that goes
/// on without the store, and others' results must have a place as soon as they need one.
pub(super) fn late_records() -> Arc<Room> {
    Room::new(MOST_LATE)
}

impl<W: World> Coordinator<W> {
    /// Claims an idempotency key for a request. Waits for another attempt at the same request as long as the client waits.
    pub(super) async fn claim(
        &self,
        plan: &Plan,
        idempotency_key: &str,
        write_id: WriteId,
        started: u64,
    ) -> Result<Claimed, Failed> {
        let (era, place) = (plan.keys.era(), &plan.place);
        let name = Name::new(era, &place.tenant(), &place.key, idempotency_key.as_bytes());
        let owner = Owner(self.ports.randomness.sixteen());
        let kept_ms = plan.tenant.idempotency_retention_ms;
        let (mut backoff, mut another) = (Backoff::new(FIRST_LOOK, LAST_LOOK, backoff::seed(&[&owner.0])), false);
        loop {
            let left = port::until(plan.deadline, self.ports.clock.monotonic_micros());
            let lease_ms = left.as_millis() as u64 + LEASE_MARGIN_MS;
            let step = Step::Reserve { owner, write_id, started, lease_ms, kept_ms };
            let left_ms = match self.ports.idempotency.step(name, step).await {
                Ok(Stepped::Reserved { fence, took_over, stamp, started }) => {
                    let took_over = took_over && !Fault::TakeoverForgotten.is_on();
                    let reserved = Reserved { name, owner, fence, took_over, stamp, kept_ms };
                    return Ok(Claimed::Yes(Claim { reserved: Some(reserved), named: true, started, sent: false }));
                }
                Ok(Stepped::Done { response }) => {
                    let decoded = Written::decode(response, idempotency_key.to_owned());
                    let damaged = || Failure::Internal("a recorded response is damaged".to_owned()).in_doubt();
                    let duplicate = !Fault::DuplicateCalledNew.is_on();
                    let decoded = decoded.map(|written| Written { duplicate, ..written });
                    return decoded.map(Claimed::Done).ok_or_else(damaged);
                }
                // An attempt of the day before may have applied it: this one does nothing.
                Ok(Stepped::Expired) => return Err(Failure::ReservationExpired.in_doubt()),
                Ok(Stepped::Conflict) if Fault::ConflictAccepted.is_on() => {
                    return Ok(Claimed::Yes(Claim::unclaimed(started)));
                }
                Ok(Stepped::Conflict) => return Err(Failure::IdempotencyKeyConflict.not_applied()),
                Ok(Stepped::InProgress { left_ms }) => left_ms,
                Ok(Stepped::Stored | Stepped::Lost) => {
                    let reason = "the idempotency store's answer does not fit the request".to_owned();
                    return Err(Failure::Internal(reason).not_applied());
                }
                // Another attempt is known to exist: this one must not run beside it.
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
        tracing::warn!(%error, "an operation has ended without its result in the idempotency record");
    }

    fn without_store(&self, plan: &Plan, started: u64, error: StoreError) -> Result<Claimed, Failed> {
        match plan.tenant.idempotency_outage {
            IdempotencyOutage::Reject if Fault::OutageIgnored.is_on() => Ok(Claimed::Yes(Claim::unclaimed(started))),
            IdempotencyOutage::Proceed => Ok(Claimed::Yes(Claim::unclaimed(started))),
            // This attempt does nothing, but an earlier one may have.
            IdempotencyOutage::Reject => Err(store_failure("the idempotency store", error).in_doubt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_that_goes_on_without_the_store_leaves_room_for_the_results_of_others() {
        let room = late_records();
        let [busy, quiet] = ["busy", "quiet"].map(|id| TenantId::new(id).expect("valid"));
        let late: Vec<_> = (0..MOST_LATE).map_while(|_| room.admit(&busy, 1)).collect();
        assert_eq!(late.len(), MOST_LATE / 4 * 3);
        let others: Vec<_> = (0..MOST_LATE).map_while(|_| room.admit(&quiet, 1)).collect();
        assert_eq!(others.len(), MOST_LATE / 4, "and all together have no more than before");
        drop((late, others));
        assert_eq!(room.bytes(), 0);
    }
}
