//! Writes and deletes of `siblings` records: one replica mints the dot, the others merge.

use std::sync::atomic::Ordering;

use witan_kernel::age;
use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::limit::PerReplica;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::port::Replicas;
use witan_kernel::quorum::{Applied, MergeRound, PutRound, Tally};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::{Ask, ReplicaError};
use witan_kernel::siblings::{Actor, Name, Shown, Siblings, VersionVector, Write};

use super::World;
use super::change::{Change, claims_of};
use super::exchange::{Causes, Ended, Exchange, Phase};
use super::register::Stored;

impl<W: World> Exchange<W> {
    /// Writes until the requirement is met.
    pub(super) async fn write_siblings(&mut self, change: &mut Change) -> Result<Stored, Failed> {
        let can_ask = self.can_ask();
        let mut write = write_of(change);
        if !can_ask {
            // A replica that does not know single events could not store them, or pass them on.
            write.seen.cloud.clear();
        }
        let (applied, puts) = if Fault::DotsMintedByCoordinator.is_on() {
            (Applied { replica: None, record: self.mint_here(&write) }, None)
        } else {
            self.begin_change();
            change.claim.sent();
            let earlier = change.claim.took_over() || change.claim.may_be_repeated() && !sent_as_first(can_ask);
            let (applied, round) = self.mint(write, earlier, can_ask).await?;
            // The round has the value: it is kept only if there is a pin to remove.
            (applied, round.was_asked().then(|| Box::new(round)))
        };
        // A dot is minted: whatever follows, the write may take effect.
        let (round, record) = self.spread(applied).await.map_err(|failed| failed.failure.in_doubt())?;
        let claims = after(change, &record);
        self.collapse_if_wanted(&record);
        Ok(Stored { claims, met: self.met(&round), rest: round, puts })
    }

    /// Whether replicas may be asked about a write before it is repeated: each of them, and every coordinator, understands what that
    /// leaves in records.
    fn can_ask(&self) -> bool {
        let replicas = &self.coordinator.ports.replicas;
        let all = self.coordinator.names.load(Ordering::Relaxed) && !Fault::RepeatedUnasked.is_on();
        all && self.plan.replicas().iter().all(|node| replicas.has_names(node))
    }

    /// Has the write applied by one replica, or finds it applied.
    async fn mint(&mut self, write: Write, earlier: bool, can_ask: bool) -> Result<(Applied, PutRound), Failed> {
        let states = self.coordinator.states(self.plan.replicas());
        let is_there = |replica: u8| states.get(usize::from(replica)).is_some_and(|state| state.reachable);
        let reachable = |replica: u8| is_there(replica) && !self.is_asked_last(replica);
        let asking = can_ask.then(|| self.plan.route.quorum());
        let mut round = PutRound::new(write, self.plan.route.asked(), reachable, earlier, asking);
        let ended = self.drive(Phase::Put, &mut round).await;
        if let Some(applied) = round.applied().cloned() {
            return Ok((applied, round));
        }
        match ended {
            Ended::Short(causes) => Err(self.put_failed(&round, causes)),
            Ended::Met | Ended::Late => {
                let (required, received) = round.short_of_answers().unwrap_or((self.plan.policy.required, 0));
                Err(Failure::Deadline { required, received }.in_doubt())
            }
        }
    }

    fn put_failed(&self, round: &PutRound, causes: Causes) -> Failed {
        let required = self.plan.policy.required;
        let failure = match round.refusal() {
            _ if round.is_forgotten() && !Fault::ForgottenCalledShort.is_on() => Failure::Forgotten,
            Some(ReplicaError::SiblingLimit) => Failure::SiblingLimit,
            Some(ReplicaError::StorageFull) => Failure::StorageFull { required, received: 0 },
            _ => {
                let (required, received) = round.short_of_answers().unwrap_or((required, 0));
                self.short(causes, required, received, round.certainly_not_applied())
            }
        };
        if round.certainly_not_applied() { failure.not_applied() } else { failure.in_doubt() }
    }

    /// Sends the record to the other replicas until enough have merged it, and each of these knows what the others say of pinned names:
    /// none of them may forget a write that is superseded here, and of which another event may be under way.
    async fn spread(&mut self, applied: Applied) -> Result<(MergeRound, Encoded), Failed> {
        let mut record = applied.record;
        let mut holders: PerReplica<u8> = applied.replica.into_iter().collect();
        if let Some(reached) = &mut self.reached {
            reached.source(applied.replica);
        }
        let one = Fault::MintAloneSuffices.is_on();
        let tally = if one { Tally::new(self.plan.replication_factor(), 1) } else { self.plan.changing() };
        loop {
            let mut round = MergeRound::new(record.clone(), tally, self.plan.policy.shortfall);
            holders.iter().for_each(|replica| round.acked(*replica));
            self.until_met(&mut round).await?;
            let told = round.untold();
            if told.is_empty() {
                return Ok((round, record));
            }
            record = learned(&record, &told);
            holders = self.plan.everyone().filter(|replica| round.knows(*replica, &told)).collect();
            self.next_turn();
            if let Some(reached) = &mut self.reached {
                reached.more(&holders);
            }
        }
    }

    /// Waits, after the response, until every Put of the write is answered, and takes the pin off its name if that is safe.
    pub(super) async fn unpin(&mut self, puts: PutRound, write_id: WriteId) {
        let mut puts = puts.every_put();
        self.pass_on_late_puts(&mut puts);
        self.drive(Phase::Put, &mut puts).await;
        if !puts.may_unpin() {
            return;
        }
        self.plan.deadline = self.plan.deadline.max(age::deadline(self.plan.arrived, self.now(), UNPIN_MICROS));
        for replica in self.plan.everyone() {
            self.send(Phase::Unpin, replica, Ask::Unpin { write_id });
        }
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

/// How long an unpinning is worth sending: a pin that stays costs a few bytes.
const UNPIN_MICROS: u64 = 5_000_000;

/// A named write without a reservation may have been sent by anybody. Where replicas cannot be asked about it, it is sent as a first one,
/// as the previous version did: repeated, it would be refused as soon as it is 15 s old.
fn sent_as_first(can_ask: bool) -> bool {
    !can_ask || Fault::UnreservedSentAsFirst.is_on()
}

/// The record with what replicas say of pinned names.
fn learned(record: &Encoded, told: &[Name]) -> Encoded {
    match record.decode() {
        Ok(Record::Siblings(mut siblings)) => {
            siblings.learn(told);
            Record::Siblings(siblings).encode()
        }
        Ok(Record::Register(_)) | Err(_) => record.clone(),
    }
}

/// The change as a write to a record.
fn write_of(change: &Change) -> Write {
    let Shown { seen, ids, newest } = claimed(&change.claims);
    let (write_id, started) = (change.write_id, change.claim.started());
    let value = change.request.value.clone();
    Write { write_id, started, again: false, asked: false, seen, ids, newest, value }
}

/// What a client's claims say that it has seen.
pub(super) fn claimed(claims: &Claims) -> Shown {
    match claims {
        Claims::Siblings { seen, ids, newest } => Shown { seen: seen.clone(), ids: ids.clone(), newest: *newest },
        Claims::Nothing | Claims::Register { .. } => Shown::default(),
    }
}

/// What a writer claims to have seen after its write.
fn after(change: &Change, record: &Encoded) -> Claims {
    let record = match record.decode() {
        Ok(Record::Siblings(record)) => record,
        // It is stored all the same: only the write's id is claimed.
        Ok(Record::Register(_)) | Err(_) => Siblings::default(),
    };
    if Fault::WriterClaimsRecord.is_on() {
        return claims_of(&record);
    }
    let shown = record.claims_after(claimed(&change.claims), &change.write_id, change.claim.started());
    let Shown { seen, ids, newest } = shown;
    Claims::Siblings { seen, ids, newest }
}
