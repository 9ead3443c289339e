//! Writes and deletes of `register` records.

use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::port::Clock;
use witan_kernel::quorum::{MergeRound, PutRound, StampRound, Tally};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::tenant::{Level, Ordering};

use super::World;
use super::change::Change;
use super::exchange::{Causes, Ended, Exchange, Phase};
use super::idempotency::Claim;

/// A change whose requirement is met.
pub(super) struct Stored {
    /// What the writer has now seen.
    pub(super) claims: Claims,
    /// Replicas that have stored it, of the placement that has the fewest, and the level that is met.
    pub(super) met: (u8, Level),
    /// The round that goes on after the response.
    pub(super) rest: MergeRound,
    /// The Puts of a `siblings` write that may be unpinned after the response.
    pub(super) puts: Option<Box<PutRound>>,
}

impl<W: World> Exchange<W> {
    /// Writes until the requirement is met.
    pub(super) async fn write_register(&mut self, change: &mut Change) -> Result<Stored, Failed> {
        let stamp = self.stamp(change).await?;
        if change.claim.is_reserved() && !Fault::StampNotStored.is_on() {
            Box::pin(change.claim.fix_stamp(&self.coordinator, stamp)).await?;
        }
        let record = Register::written(stamp, change.write_id, change.request.value.clone());
        change.claim.sent();
        self.begin_change();
        let record = Record::Register(record).encode();
        let mut round = MergeRound::new(record, self.plan.changing(), self.plan.policy.shortfall);
        self.until_met(&mut round).await?;
        Ok(Stored { claims: Claims::Register { stamp }, met: self.met(&round), rest: round, puts: None })
    }

    /// The write's stamp: one it was given before, or one above everything that it must supersede.
    async fn stamp(&mut self, change: &Change) -> Result<Stamp, Failed> {
        if let Some(stamp) = change.claim.stamp().filter(|_| !Fault::StoredStampIgnored.is_on()) {
            return Ok(stamp);
        }
        let seen = match change.claims {
            Claims::Register { stamp } if !Fault::ContextNotAbove.is_on() => Some(stamp),
            Claims::Register { .. } | Claims::Nothing | Claims::Siblings { .. } => None,
        };
        let one = Fault::OneStampIsEnough.is_on();
        let tally = if one { Tally::new(self.plan.replication_factor(), 1) } else { self.plan.asking() };
        let mut round = StampRound::new(change.write_id, tally);
        if self.needs_stamp_round(&change.claim) {
            self.gather_stamps(&mut round).await?;
        }
        let clock = self.coordinator.hybrid.tick(self.coordinator.ports.clock.wall_micros());
        Ok(round.stamp(clock, seen))
    }

    /// Ordering `clock` skips the round unless the client has sent an idempotency key: then the replicas are asked what they remember, so
    /// that a retry keeps its stamp even when the idempotency store has lost its records or cannot be reached.
    fn needs_stamp_round(&self, claim: &Claim) -> bool {
        if Fault::StampRoundSkipped.is_on() {
            return false;
        }
        self.plan.tenant.ordering == Ordering::Quorum || claim.is_named()
    }

    async fn gather_stamps(&mut self, round: &mut StampRound) -> Result<(), Failed> {
        match self.drive(Phase::Stamp, round).await {
            Ended::Met => Ok(()),
            Ended::Short(causes) => {
                let tally = round.tally();
                Err(self.short(causes, tally.required(), tally.received(), true).not_applied())
            }
            Ended::Late => Err(late(round.tally()).not_applied()),
        }
    }

    /// Carries out a merge round until its requirement is met.
    pub(super) async fn until_met(&mut self, round: &mut MergeRound) -> Result<(), Failed> {
        match self.drive(Phase::Merge, round).await {
            Ended::Met => Ok(()),
            Ended::Short(causes) => Err(self.fell_short(round, causes)),
            Ended::Late if Fault::LateCalledUnapplied.is_on() => Err(late(round.tally()).not_applied()),
            Ended::Late => Err(late(round.tally()).in_doubt()),
        }
    }

    fn fell_short(&self, round: &MergeRound, causes: Causes) -> Failed {
        let tally = round.tally();
        let (required, received) = (tally.required(), tally.received());
        let nothing_done = tally.certainly_nothing_done();
        let failure = if round.disks_full() {
            self.coordinator.metrics.quorum_failures.inc();
            Failure::StorageFull { required, received }
        } else {
            self.short(causes, required, received, nothing_done)
        };
        if nothing_done { failure.not_applied() } else { failure.in_doubt() }
    }

    /// Replicas that have stored what a round has sent, of the placement that has the fewest, and the level that is met.
    pub(super) fn met(&self, round: &MergeRound) -> (u8, Level) {
        self.plan.route.met(round.tally())
    }

    /// Waits for the rest of a round's answers, after the response has left.
    pub(super) async fn hear_out(&mut self, rest: MergeRound) {
        let mut rest = rest.every_answer();
        self.drive(Phase::Merge, &mut rest).await;
        let missed = self.plan.everyone().len() as u8 - rest.tally().acks();
        self.coordinator.metrics.replicas_missed.inc_by(u64::from(missed));
    }
}

/// The deadline passed with the answers that `tally` counts.
pub(super) fn late(tally: &Tally) -> Failure {
    Failure::Deadline { required: tally.required(), received: tally.received() }
}
