//! Writes and deletes of `register` records.

use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::name::WriteId;
use witan_kernel::port::Clock;
use witan_kernel::quorum::{Progress, Round, StampRound};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask};
use witan_kernel::tenant::Ordering;

use super::World;
use super::exchange::{Event, Exchange, Phase};
use super::once::Claim;
use super::request::WriteRequest;

/// A change as far as it has come when its requirement is met.
pub(super) struct Stored {
    /// What the writer has now seen.
    pub(super) claims: Claims,
    /// Replicas that have stored it.
    pub(super) replicas: u8,
}

/// The round that goes on after the response.
pub(super) struct Rest {
    pub(super) round: Round,
}

impl<W: World> Exchange<W> {
    /// Writes until the requirement is met.
    pub(super) async fn write_register(
        &mut self,
        request: &WriteRequest,
        write_id: WriteId,
        claims: &Claims,
        claim: &mut Claim,
    ) -> Result<(Stored, Rest), Failed> {
        let stamp = self.stamp(write_id, claims, claim).await?;
        if claim.is_reserved() {
            Box::pin(claim.fix_stamp(&self.coordinator, stamp)).await?;
        }
        let record = Register::written(stamp, write_id, request.value.clone());
        let ask = Ask::Merge { record: Record::Register(record).encode() };
        claim.sent();
        self.send_all(Phase::Merge, &ask);
        let replicas = self.plan.replication_factor();
        let mut round = Round::new(replicas, self.plan.policy.required, self.plan.policy.shortfall);
        self.until_met(&mut round).await?;
        let stored = Stored { claims: Claims::Register { stamp }, replicas: round.tally().acks() };
        Ok((stored, Rest { round }))
    }

    /// The write's stamp: one it was given before, or one above everything that it must stand above.
    async fn stamp(&mut self, write_id: WriteId, claims: &Claims, claim: &Claim) -> Result<Stamp, Failed> {
        if let Some(stamp) = claim.stamp().filter(|_| !Fault::StoredStampIgnored.is_on()) {
            return Ok(stamp);
        }
        let seen = match claims {
            Claims::Register { stamp } => Some(*stamp),
            Claims::Nothing | Claims::Siblings { .. } => None,
        };
        let replicas = self.plan.replication_factor();
        let mut round = StampRound::new(replicas, self.plan.policy.required);
        if self.needs_stamp_round(claim) {
            self.send_all(Phase::Stamp, &Ask::Stamp { write_id });
            self.gather_stamps(&mut round).await?;
        }
        let clock = self.coordinator.hybrid.tick(self.coordinator.ports.clock.wall_micros());
        Ok(round.stamp(clock, seen))
    }

    /// Ordering `clock` does without the round, unless the client has named its intention: then `recent` is asked, so that
    /// a retry keeps its stamp even when the idempotency store has lost its records, or is away.
    fn needs_stamp_round(&self, claim: &Claim) -> bool {
        if Fault::StampRoundSkipped.is_on() {
            return false;
        }
        self.plan.tenant.ordering == Ordering::Quorum || claim.is_named()
    }

    async fn gather_stamps(&mut self, round: &mut StampRound) -> Result<(), Failed> {
        let mut causes = Causes::default();
        loop {
            let progress = match self.answer(round.tally().missing()).await {
                Event::Answer { phase: Phase::Stamp, replica, outcome } => match outcome {
                    Ok(Answer::Stamp { stands, known }) => round.told(replica, stands, known),
                    Ok(_) => round.failed(replica, &unexpected()),
                    Err(error) => {
                        causes.add(&error);
                        round.failed(replica, &error)
                    }
                },
                Event::Answer { .. } => continue,
                Event::Elapsed => {
                    let tally = round.tally();
                    let failure = Failure::Deadline { required: tally.required(), received: tally.acks() };
                    return Err(failure.not_applied());
                }
            };
            match progress {
                Progress::Open => {}
                Progress::Met => return Ok(()),
                Progress::Short => {
                    let tally = round.tally();
                    self.coordinator.metrics.quorum_failures.inc();
                    return Err(causes.quorum_not_reached(tally.required(), tally.acks()).not_applied());
                }
            }
        }
    }

    /// Feeds a merge round until it is met or lost.
    pub(super) async fn until_met(&mut self, round: &mut Round) -> Result<(), Failed> {
        let mut causes = Causes::default();
        loop {
            match round.progress() {
                Progress::Met => return Ok(()),
                Progress::Short => return Err(self.fell_short(round, causes)),
                Progress::Open => {}
            }
            match self.answer(round.tally().missing()).await {
                Event::Answer { phase: Phase::Merge, replica, outcome } => match outcome {
                    Ok(Answer::Merged { .. }) => {
                        round.acked(replica);
                    }
                    Ok(_) => {
                        round.failed(replica, &unexpected());
                    }
                    Err(error) => {
                        causes.add(&error);
                        round.failed(replica, &error);
                    }
                },
                Event::Answer { .. } => {}
                Event::Elapsed if round.elapsed() == Progress::Met => return Ok(()),
                Event::Elapsed => {
                    let tally = round.tally();
                    return Err(Failure::Deadline { required: tally.required(), received: tally.acks() }.in_doubt());
                }
            }
        }
    }

    fn fell_short(&self, round: &Round, causes: Causes) -> Failed {
        let tally = round.tally();
        self.coordinator.metrics.quorum_failures.inc();
        let failure = if round.disks_full() {
            Failure::StorageFull { required: tally.required(), received: tally.acks() }
        } else {
            causes.quorum_not_reached(tally.required(), tally.acks())
        };
        if tally.certainly_nothing_done() { failure.not_applied() } else { failure.in_doubt() }
    }

    /// Hears the rest of a round, after the response has left.
    pub(super) async fn hear_out(&mut self, mut rest: Rest) {
        while rest.round.tally().open() > 0 {
            match self.answer(rest.round.tally().open()).await {
                Event::Answer { phase: Phase::Merge, replica, outcome: Ok(Answer::Merged { .. }) } => {
                    rest.round.acked(replica);
                }
                Event::Answer { phase: Phase::Merge, replica, outcome } => {
                    let error = outcome.err().unwrap_or_else(unexpected);
                    rest.round.failed(replica, &error);
                }
                Event::Answer { .. } => {}
                Event::Elapsed => break,
            }
        }
        let missed = self.plan.replication_factor() - rest.round.tally().acks();
        self.coordinator.metrics.replicas_missed.inc_by(u64::from(missed));
    }
}

/// What replicas said, each once.
#[derive(Debug, Default)]
pub(super) struct Causes(Vec<String>);

impl Causes {
    pub(super) fn add(&mut self, error: &witan_kernel::replica::ReplicaError) {
        let text = error.to_string();
        if !self.0.contains(&text) {
            self.0.push(text);
        }
    }

    pub(super) fn quorum_not_reached(self, required: u8, received: u8) -> Failure {
        Failure::QuorumNotReached { required, received, causes: self.0 }
    }
}

/// A replica that answers something else than it was asked is broken.
pub(super) fn unexpected() -> witan_kernel::replica::ReplicaError {
    witan_kernel::replica::ReplicaError::Broken("the answer does not fit the request".to_owned())
}
