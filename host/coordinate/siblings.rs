//! Writes and deletes of `siblings` records: one replica mints the dot, the others merge.

use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::quorum::{MergeRound, PutRound, Tally};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::ReplicaError;
use witan_kernel::siblings::{Actor, Siblings, VersionVector, Write};

use super::World;
use super::change::{Change, claims_of};
use super::exchange::{Causes, Ended, Exchange, Phase};
use super::register::Stored;

impl<W: World> Exchange<W> {
    /// Writes until the requirement is met.
    pub(super) async fn write_siblings(&mut self, change: &mut Change) -> Result<Stored, Failed> {
        let write = write_of(change);
        let (minter, record) = if Fault::DotsMintedByCoordinator.is_on() {
            (None, self.mint_here(&write))
        } else {
            change.claim.sent();
            let (minter, record) = self.mint(write, change.claim.took_over()).await?;
            (Some(minter), record)
        };
        let one = Fault::MintAloneSuffices.is_on();
        let tally = if one { Tally::new(self.plan.replication_factor(), 1) } else { self.plan.tally() };
        let mut round = MergeRound::new(record.clone(), tally, self.plan.policy.shortfall);
        if let Some(minter) = minter {
            round.acked(minter);
        }
        // A dot is minted: whatever follows, the write may take effect.
        self.until_met(&mut round).await.map_err(|failed| failed.failure.in_doubt())?;
        let claims = after(&change.claims, &record, change.write_id);
        self.collapse_if_wanted(&record);
        Ok(Stored { claims, replicas: round.tally().acks(), rest: round })
    }

    /// Has one replica mint. Returns it and its whole record.
    async fn mint(&mut self, write: Write, earlier: bool) -> Result<(u8, Encoded), Failed> {
        let states = self.coordinator.states(&self.plan.replicas);
        let reachable = |replica: u8| states.get(usize::from(replica)).is_some_and(|state| state.reachable);
        let mut round = PutRound::new(write, self.plan.replication_factor(), reachable, earlier);
        let ended = self.drive(Phase::Put, &mut round).await;
        let certainly_not_applied = round.certainly_not_applied();
        let refusal = round.refusal().cloned();
        match (ended, round.into_minted()) {
            (Ended::Met, Some(minted)) => Ok(minted),
            (Ended::Short(causes), _) => Err(self.put_failed(refusal, causes, certainly_not_applied)),
            (Ended::Met | Ended::Late, _) => {
                Err(Failure::Deadline { required: self.plan.policy.required, received: 0 }.in_doubt())
            }
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

    /// [`Fault::DotsMintedByCoordinator`]: counts the coordinator's own events over all keys, as a naive design would.
    fn mint_here(&self, write: &Write) -> Encoded {
        let actor = Actor { store: StoreId::default(), birth: 0 };
        let mut record = Siblings { seen: write.seen.clone(), ..Siblings::default() };
        let counter = self.coordinator.hybrid.tick(0);
        let mut seen = VersionVector::default();
        seen.entries.push((actor, counter - 1));
        record.seen.join(&seen);
        record.put(write, actor);
        Record::Siblings(record).encode()
    }
}

/// The change as a write to a record.
fn write_of(change: &Change) -> Write {
    let (seen, ids) = claimed(&change.claims);
    let (write_id, started) = (change.write_id, change.claim.started());
    Write { write_id, started, again: false, seen, ids, value: change.request.value.clone() }
}

/// What a client's claims say that it has seen.
pub(super) fn claimed(claims: &Claims) -> (VersionVector, Vec<WriteId>) {
    match claims {
        Claims::Siblings { seen, ids } => (seen.clone(), ids.clone()),
        Claims::Nothing | Claims::Register { .. } => (VersionVector::default(), Vec::new()),
    }
}

/// What a writer claims to have seen after its write.
fn after(before: &Claims, record: &Encoded, write_id: WriteId) -> Claims {
    let record = match record.decode() {
        Ok(Record::Siblings(record)) => record,
        // It is stored all the same: only the write's id is claimed.
        Ok(Record::Register(_)) | Err(_) => Siblings::default(),
    };
    if Fault::WriterClaimsRecord.is_on() {
        return claims_of(&record);
    }
    let (seen, ids) = record.claims_after(claimed(before), &write_id);
    Claims::Siblings { seen, ids }
}
