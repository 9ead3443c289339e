//! Reads, from the plan to the response and the repair after it.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::hook::{Asked, Operation, Verdict};
use witan_kernel::limit::PerReplica;
use witan_kernel::port::{Clock, Replicas};
use witan_kernel::quorum::{Hedging, ReadRound, Reconciled, reconcile};
use witan_kernel::record::{Damaged, Encoded, Record};
use witan_kernel::register::Register;
use witan_kernel::replica::ReplicaError;
use witan_kernel::siblings::Siblings;
use witan_kernel::tenant::ReadRepair;

use super::change::claims_of;
use super::collapse::question;
use super::exchange::{Ended, Exchange, Phase};
use super::following::RESTARTS;
use super::plan::{Asks, record_answer};
use super::register::late;
use super::request::{ReadAnswer, ReadRequest, WriteRequest, render};
use super::{Coordinator, Respond, World};
use witan_origin as origin;

impl<W: World> Coordinator<W> {
    /// Carries out a read that arrived at `arrived`, in monotonic microseconds.
    pub(super) async fn run_read(self: &Arc<Self>, request: ReadRequest, arrived: u64, respond: Respond<ReadAnswer>) {
        let asks = Asks {
            operation: Operation::Read,
            tenant: &request.tenant,
            key: &request.key,
            level: request.level,
            value_bytes: 0,
            arrived,
            timeout: request.timeout,
        };
        let mut restarts = RESTARTS;
        loop {
            let plan = match self.plan(asks).await {
                Ok(plan) if self.ports.clock.monotonic_micros() >= plan.deadline => {
                    return respond(Err(Failure::NotBegun.of_read()));
                }
                Ok(plan) => plan,
                Err(failure) => return respond(Err(failure.of_read())),
            };
            let mut exchange = Exchange::new(Arc::clone(self), plan).fetching();
            match exchange.fetch().await {
                Ok(fetched) => return exchange.answer(fetched, respond).await,
                Err(failed) => {
                    if !Box::pin(exchange.may_begin_again(&failed, &mut restarts)).await {
                        return respond(Err(failed));
                    }
                }
            }
        }
    }
}

/// What a read has found, as far as it had to be stored before it is answered.
struct Fetched {
    reconciled: Reconciled,
    /// The merge of what replicas have, if some are stale.
    merged: Option<Encoded>,
    /// It has been stored as the read requires.
    repaired: bool,
}

impl<W: World> Exchange<W> {
    /// Reads, and repairs what has to be repaired before the answer.
    async fn fetch(&mut self) -> Result<Fetched, Failed> {
        let (reconciled, answered) = self.gather().await?;
        let stale = &reconciled.stale;
        let mut merged = if stale.is_empty() { None } else { reconciled.record.as_ref().map(Record::encode) };
        if Fault::RepairSendsFirst.is_on() {
            merged = merged.zip(reconciled.record.as_ref().map(first_only)).map(|(_, first)| first.encode());
        }
        let blocking = self.plan.tenant.read_repair == ReadRepair::Blocking && !Fault::BlockingRepairSkipped.is_on();
        if let Some(merged) = merged.as_ref().filter(|_| blocking) {
            let early = Fault::StaleCountedAsRepaired.is_on();
            let level: PerReplica<u8> = answered.iter().copied().filter(|r| early || !stale.contains(r)).collect();
            self.repair_before_answer(merged, &level).await?;
        }
        Ok(Fetched { reconciled, merged, repaired: blocking })
    }

    async fn answer(mut self, fetched: Fetched, respond: Respond<ReadAnswer>) {
        let Fetched { reconciled: Reconciled { record, stale }, merged, repaired } = fetched;
        let answer = self.answer_with(record).await;
        // From here on the answer counts for itself.
        self.release();
        respond(answer);
        if let Some(merged) = merged.filter(|_| !repaired) {
            self.repair_behind(&merged, &stale).await;
        }
    }

    /// Asks until the requirement is met, and merges the answers. Also returns which replicas have answered.
    pub(super) async fn gather(&mut self) -> Result<(Reconciled, PerReplica<u8>), Failed> {
        let states = self.coordinator.states(self.plan.replicas());
        let tally = self.plan.asking();
        let order = self.coordinator.read_order(&self.plan, &states);
        let open = order.into_iter().filter(|replica| tally.is_open(*replica));
        // Whatever a routing hook says, nodes under maintenance come last.
        let (mut order, last): (PerReplica<u8>, PerReplica<u8>) =
            open.partition(|replica| !self.is_asked_last(*replica));
        order.extend_from_slice(&last);
        let metrics = Arc::clone(&self.coordinator.metrics);
        let hedging = Hedging { started: self.now(), budget: move || metrics.take_hedge() };
        let mut round = ReadRound::new(order, tally, self.plan.policy.shortfall, hedging);
        round.not_hedged(last.len());
        let slowest = round.asked().iter().map(|r| states[usize::from(*r)].latency_p99_us).max().unwrap_or(0);
        round.hedge_after(self.hedge_after(slowest));
        let mut unreadable: SmallVec<[ReplicaError; 0]> = SmallVec::new();
        loop {
            match self.drive(Phase::Read, &mut round).await {
                Ended::Met => {
                    let answered = round.records().iter().map(|(replica, _)| *replica).collect();
                    match reconciled(round.records()) {
                        Ok(reconciled) => return Ok((reconciled, answered)),
                        Err(Unread::Damaged(replica, damaged)) => {
                            round.refuted(replica);
                            unreadable.push(ReplicaError::Broken(damaged.to_string()));
                        }
                        Err(Unread::TwoModes) => return Err(Failure::Internal(Unread::TwoModes.to_string()).of_read()),
                    }
                }
                Ended::Short(_) if self.had_no_room() => return Err(self.coordinator.overloaded().of_read()),
                Ended::Short(mut causes) => {
                    unreadable.iter().for_each(|error| causes.add(error));
                    let tally = round.tally();
                    return Err(self.short(causes, tally.required(), tally.received(), true).of_read());
                }
                Ended::Late => return Err(late(round.tally()).of_read()),
            }
        }
    }

    /// Whether a replica is under maintenance: others are asked before it is.
    pub(super) fn is_asked_last(&self, replica: u8) -> bool {
        let node = self.plan.replicas().get(usize::from(replica));
        node.is_some_and(|node| self.coordinator.ports.replicas.is_asked_last(node))
    }

    /// Microseconds after which one spare replica is asked: the policy's choice, else the slowest replica's 99th percentile.
    fn hedge_after(&self, slowest_p99_us: u32) -> u64 {
        let cap = self.coordinator.defaults.hedge_cap.as_micros() as u64;
        let native = if slowest_p99_us == 0 { cap } else { u64::from(slowest_p99_us).min(cap) };
        self.plan.policy.hedge_after_us.map_or(native, u64::from)
    }

    async fn answer_with(&mut self, record: Option<Record>) -> Result<ReadAnswer, Failed> {
        match record {
            None => Err(self.not_found(&Claims::Nothing)),
            Some(Record::Register(register)) => self.answer_register(register),
            Some(Record::Siblings(siblings)) => self.answer_siblings(siblings).await,
        }
    }

    fn answer_register(&self, register: Register) -> Result<ReadAnswer, Failed> {
        let claims = Claims::Register { stamp: register.stamp };
        match register.value {
            None => Err(self.not_found(&claims)),
            Some(value) => Ok(self.found(value, &claims)),
        }
    }

    async fn answer_siblings(&self, record: Siblings) -> Result<ReadAnswer, Failed> {
        let claims = claims_of(&record);
        let (question, values) = question(&self.plan.place, &record);
        match values.as_slice() {
            [] => return Err(self.not_found(&claims)),
            [value] => return Ok(self.found(value.clone(), &claims)),
            _ => {}
        }
        self.coordinator.metrics.conflicts_detected.inc();
        self.collapse_if_many(&record);
        let siblings = question.siblings.clone();
        let mut span = origin::span("plugin conflict resolver");
        let asked = self.plan.hooks.resolve(question).await;
        record_answer(&mut span, &asked);
        drop(span);
        let resolver_fault = asked.fault();
        let (value, by) = match asked {
            Asked::Answered { answer: Verdict::Pick(index), by } => (values.get(index).cloned(), Some(by)),
            Asked::Answered { answer: Verdict::Merged(bytes), by } => (Some(bytes), Some(by)),
            Asked::Answered { answer: Verdict::KeepAll, by } => (None, Some(by)),
            // Whatever the binding says, the client gets all siblings: no value is hidden.
            Asked::Unbound | Asked::Faulted { .. } => (None, None),
        };
        let mut answer = self.found(Bytes::new(), &claims);
        match value {
            Some(value) => {
                if Fault::VerdictWrittenBack.is_on() {
                    self.write_verdict_back(value.clone(), answer.context.clone());
                }
                answer.value = value;
            }
            None => answer.siblings = siblings,
        }
        answer.resolved_by = by;
        answer.resolver_fault = resolver_fault;
        Ok(answer)
    }

    fn found(&self, value: Bytes, claims: &Claims) -> ReadAnswer {
        let context = self.coordinator.seal(&self.plan, claims);
        ReadAnswer {
            value,
            siblings: Vec::new(),
            context,
            rendering: render(claims),
            resolved_by: None,
            resolver_fault: None,
            policy_fault: self.plan.policy_fault.clone(),
        }
    }

    fn not_found(&self, claims: &Claims) -> Failed {
        Failure::KeyNotFound { context: self.coordinator.seal(&self.plan, claims) }.of_read()
    }

    /// [`Fault::VerdictWrittenBack`].
    fn write_verdict_back(&self, value: Bytes, context: Bytes) {
        let request = WriteRequest {
            tenant: self.plan.tenant.id.clone(),
            key: self.plan.place.key.clone(),
            value: Some(value),
            level: None,
            idempotency_key: None,
            context,
            arrived: None,
            timeout: None,
        };
        self.coordinator.write(request, Box::new(|_| {}));
    }
}

/// Why answers say nothing together.
#[derive(Debug, thiserror::Error)]
enum Unread {
    /// This replica's is no record.
    #[error("{1}")]
    Damaged(u8, Damaged),
    #[error("replicas hold records of two conflict modes")]
    TwoModes,
}

fn reconciled(records: &[(u8, Option<Encoded>)]) -> Result<Reconciled, Unread> {
    let decode = |(replica, bytes): &(u8, Option<Encoded>)| {
        let record = bytes.as_ref().map(Encoded::decode).transpose();
        record.map_err(|damaged| Unread::Damaged(*replica, damaged))
    };
    let none = Reconciled { record: None, stale: PerReplica::new() };
    let Some(first) = records.first() else { return Ok(none) };
    if records.iter().all(|(_, record)| *record == first.1) {
        return Ok(Reconciled { record: decode(first)?, ..none });
    }
    let mut decoded: PerReplica<(u8, Option<Record>)> = PerReplica::new();
    for record in records {
        decoded.push((record.0, decode(record)?));
    }
    let mut reconciled = reconcile(&decoded).ok_or(Unread::TwoModes)?;
    if Fault::AbsentNotStale.is_on() {
        reconciled.stale.retain(|stale| decoded.iter().any(|(replica, record)| replica == stale && record.is_some()));
    }
    if Fault::FirstAnswerReturned.is_on() {
        reconciled.record = decoded[0].1.clone();
    }
    Ok(reconciled)
}

/// [`Fault::RepairSendsFirst`]: the record as a replica has it that knows one of its versions only.
fn first_only(record: &Record) -> Record {
    let Record::Siblings(siblings) = record else { return record.clone() };
    let mut first = Siblings { versions: siblings.versions.iter().take(1).cloned().collect(), ..Siblings::default() };
    for dot in siblings.versions.iter().take(1).flat_map(|version| &version.dots) {
        first.seen.advance(dot);
    }
    Record::Siblings(first)
}
