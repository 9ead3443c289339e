//! Writes and deletes of `siblings` records: one replica mints the dot, the others merge.

use std::sync::Arc;

use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::quorum::{PutNext, PutRound, Round};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::{Answer, Ask, Put, ReplicaError};
use witan_kernel::siblings::{Actor, Siblings, VersionVector};

use super::World;
use super::exchange::{Event, Exchange, Phase};
use super::once::Claim;
use super::register::{Causes, Rest, Stored, unexpected};
use super::request::WriteRequest;

/// A first replica that has not minted within this time is not waited for alone: the next one is asked too. Two dots of one
/// write unite when they meet, so this costs a message and no correctness.
const PATIENCE_MICROS: u64 = 250_000;

impl<W: World> Exchange<W> {
    /// Writes until the requirement is met.
    pub(super) async fn write_siblings(
        &mut self,
        request: &WriteRequest,
        write_id: WriteId,
        claims: &Claims,
        claim: &mut Claim,
    ) -> Result<(Stored, Rest), Failed> {
        let (seen, ids) = claimed(claims);
        let put = Put { write_id, started: claim.started(), again: false, seen, ids, value: request.value.clone() };
        let (minter, record) = if Fault::DotsMintedByCoordinator.is_on() {
            (None, self.mint_here(&put))
        } else {
            claim.sent();
            let (minter, record) = self.mint(&put, claim.took_over()).await?;
            (Some(minter), record)
        };
        let ask = Ask::Merge { record: record.clone() };
        let replicas = self.plan.replication_factor();
        let mut round = Round::new(replicas, self.plan.policy.required, self.plan.policy.shortfall);
        for replica in (0..replicas).filter(|replica| Some(*replica) != minter) {
            self.send(Phase::Merge, replica, ask.clone());
        }
        if let Some(minter) = minter {
            round.acked(minter);
        }
        // Minted: whatever follows, it may stand.
        self.until_met(&mut round).await.map_err(|failed| failed.failure.in_doubt())?;
        let stored = Stored { claims: after(claims, &record, write_id), replicas: round.tally().acks() };
        self.collapse_if_wanted(&record);
        Ok((stored, Rest { round }))
    }

    /// Has one replica mint. Returns it and its whole record.
    async fn mint(&mut self, put: &Put, earlier: bool) -> Result<(u8, Encoded), Failed> {
        let states = self.coordinator.states(&self.plan.replicas);
        let mut round = PutRound::new(self.plan.replication_factor(), |replica| {
            states.get(usize::from(replica)).is_some_and(|state| state.reachable)
        });
        let mut causes = Causes::default();
        let mut refusal = None;
        let mut next = round.start(earlier);
        let mut patience = self.now() + PATIENCE_MICROS;
        loop {
            match next {
                PutNext::Try(attempt) => {
                    let put = Put { again: attempt.again, ..put.clone() };
                    self.send(Phase::Put, attempt.replica, Ask::Put(Arc::new(put)));
                    patience = self.now() + PATIENCE_MICROS;
                }
                PutNext::Wait => {}
                PutNext::Failed { certainly_not_applied } => {
                    return Err(self.put_failed(refusal, causes, certainly_not_applied));
                }
            }
            next = match self.event(1, patience.min(self.plan.deadline)).await {
                Event::Answer { phase: Phase::Put, replica, outcome: Ok(Answer::Put { record, .. }) } => {
                    return Ok((replica, record));
                }
                Event::Answer { phase: Phase::Put, replica, outcome } => {
                    let error = outcome.err().unwrap_or_else(unexpected);
                    causes.add(&error);
                    let next = round.failed(replica, &error);
                    refusal = refusal.or(Some(error));
                    next
                }
                Event::Answer { .. } => PutNext::Wait,
                Event::Elapsed if self.now() >= self.plan.deadline => {
                    let required = self.plan.policy.required;
                    return Err(Failure::Deadline { required, received: 0 }.in_doubt());
                }
                Event::Elapsed => {
                    patience = self.plan.deadline;
                    round.slow()
                }
            };
        }
    }

    fn put_failed(&self, refusal: Option<ReplicaError>, causes: Causes, certainly_not_applied: bool) -> Failed {
        let required = self.plan.policy.required;
        let failure = match refusal {
            Some(ReplicaError::SiblingLimit) => Failure::SiblingLimit,
            Some(ReplicaError::StorageFull) => Failure::StorageFull { required, received: 0 },
            _ => {
                self.coordinator.metrics.quorum_failures.inc();
                causes.quorum_not_reached(required, 0)
            }
        };
        if certainly_not_applied { failure.not_applied() } else { failure.in_doubt() }
    }

    /// [`Fault::DotsMintedByCoordinator`]: counts events of its own, over all keys, as a naive design would.
    fn mint_here(&self, put: &Put) -> Encoded {
        let actor = Actor { store: StoreId::default(), birth: 0 };
        let mut record = Siblings { seen: put.seen.clone(), ..Siblings::default() };
        let counter = self.coordinator.hybrid.tick(0);
        let mut seen = VersionVector::default();
        seen.entries.push((actor, counter - 1));
        record.seen.join(&seen);
        record.put(put, actor);
        Record::Siblings(record).encode()
    }
}

/// What a Put says that the client has seen.
pub(super) fn claimed(claims: &Claims) -> (VersionVector, Vec<WriteId>) {
    match claims {
        Claims::Siblings { seen, ids } => (seen.clone(), ids.clone()),
        Claims::Nothing | Claims::Register { .. } => (VersionVector::default(), Vec::new()),
    }
}

/// What a writer has seen after its write.
fn after(before: &Claims, record: &Encoded, write_id: WriteId) -> Claims {
    let record = match record.decode() {
        Ok(Record::Siblings(record)) => record,
        // Stored all the same: the write's name alone is claimed.
        Ok(Record::Register(_)) | Err(_) => Siblings::default(),
    };
    let (seen, ids) = record.claims_after(claimed(before), &write_id);
    Claims::Siblings { seen, ids }
}
