//! Reads.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use witan_kernel::context::Claims;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::hook::{Asked, Operation, Verdict};
use witan_kernel::quorum::{Progress, ReadRound, Reconciled, reconcile};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::Register;
use witan_kernel::replica::{Answer, Ask};
use witan_kernel::siblings::Siblings;
use witan_kernel::tenant::ReadRepair;

use super::change::claims_of;
use super::collapse::question;
use super::exchange::{Event, Exchange, Phase};
use super::plan::{Asks, read_order, told};
use super::register::{Causes, unexpected};
use super::request::{ReadAnswer, ReadRequest, WriteRequest, render};
use super::{Coordinator, Respond, World};
use witan_origin as origin;

/// Replicas that have not answered a read within this time may be dead: everybody else is asked, whatever the budget for
/// hedges. Without this the reads that are under way when a node hangs would wait for it until their deadlines. Later reads
/// ask it last.
const PATIENCE_MICROS: u64 = 250_000;

/// What each replica that answered has stored, decoded; equal bytes are decoded once.
type Answers = SmallVec<[(u8, Option<Record>); 5]>;

impl<W: World> Coordinator<W> {
    pub(super) async fn run_read(self: &Arc<Self>, request: ReadRequest, respond: Respond<ReadAnswer>) {
        let asks = Asks {
            operation: Operation::Read,
            tenant: &request.tenant,
            key: &request.key,
            level: request.level,
            value_bytes: 0,
            timeout: request.timeout,
        };
        match self.plan(asks).await {
            Ok(plan) => Exchange::new(Arc::clone(self), plan).read(respond).await,
            Err(failure) => respond(Err(failure.of_read())),
        }
    }
}

impl<W: World> Exchange<W> {
    async fn read(mut self, respond: Respond<ReadAnswer>) {
        let (reconciled, answered) = match self.gather().await {
            Ok(gathered) => gathered,
            Err(failed) => return respond(Err(failed)),
        };
        let stale = &reconciled.stale;
        let merged = if stale.is_empty() { None } else { reconciled.record.as_ref().map(Record::encode) };
        let blocking = self.plan.tenant.read_repair == ReadRepair::Blocking && !Fault::BlockingRepairSkipped.is_on();
        if let Some(merged) = merged.as_ref().filter(|_| blocking) {
            let level: SmallVec<[u8; 5]> = answered.iter().copied().filter(|r| !stale.contains(r)).collect();
            if let Err(failed) = self.repair_before_answer(merged, &level).await {
                return respond(Err(failed));
            }
        }
        let answer = self.answer_with(reconciled.record).await;
        respond(answer);
        if let Some(merged) = merged.filter(|_| !blocking) {
            self.repair_behind(&merged, stale).await;
        }
    }

    /// Asks until the requirement is met, and merges what is told. Returns who has answered, too.
    pub(super) async fn gather(&mut self) -> Result<(Reconciled, SmallVec<[u8; 5]>), Failed> {
        let states = self.coordinator.states(&self.plan.replicas);
        let order = read_order(&self.plan, &states);
        let mut round = ReadRound::new(order, self.plan.policy.required, self.plan.policy.shortfall);
        let asked = round.start();
        for replica in &asked {
            self.send(Phase::Read, *replica, Ask::Read);
        }
        let slowest = asked.iter().map(|r| states[usize::from(*r)].latency_p99_us).max().unwrap_or(0);
        let patience = self.now() + PATIENCE_MICROS;
        let mut hedge_at = Some((self.now() + self.hedge_after(slowest)).min(patience));
        let mut told: SmallVec<[(u8, Option<Encoded>); 5]> = SmallVec::new();
        let mut causes = Causes::default();
        loop {
            let until = hedge_at.unwrap_or(self.plan.deadline).min(self.plan.deadline);
            let progress = match self.event(round.tally().missing(), until).await {
                Event::Answer { phase: Phase::Read, replica, outcome: Ok(Answer::Record(record)) } => {
                    let next = round.told(replica, record.is_some());
                    told.push((replica, record));
                    if let Some(spare) = next.ask {
                        self.send(Phase::Read, spare, Ask::Read);
                    }
                    next.progress
                }
                Event::Answer { phase: Phase::Read, replica, outcome } => {
                    let error = outcome.err().unwrap_or_else(unexpected);
                    causes.add(&error);
                    let next = round.failed(replica, &error);
                    if let Some(spare) = next.ask {
                        self.send(Phase::Read, spare, Ask::Read);
                    }
                    next.progress
                }
                Event::Answer { .. } => Progress::Open,
                Event::Elapsed if self.now() >= self.plan.deadline => match round.elapsed() {
                    Progress::Met => Progress::Met,
                    _ => {
                        let tally = round.tally();
                        let failure = Failure::Deadline { required: tally.required(), received: tally.acks() };
                        return Err(failure.of_read());
                    }
                },
                Event::Elapsed if self.now() >= patience => {
                    hedge_at = None;
                    while let Some(spare) = round.spare() {
                        self.send(Phase::Read, spare, Ask::Read);
                    }
                    Progress::Open
                }
                Event::Elapsed => {
                    hedge_at = Some(patience);
                    if self.coordinator.metrics.may_hedge()
                        && let Some(spare) = round.spare()
                    {
                        self.coordinator.metrics.hedges.inc();
                        self.send(Phase::Read, spare, Ask::Read);
                    }
                    Progress::Open
                }
            };
            match progress {
                Progress::Open => {}
                Progress::Met => return self.reconciled(&told),
                Progress::Short => {
                    let tally = round.tally();
                    self.coordinator.metrics.quorum_failures.inc();
                    return Err(causes.quorum_not_reached(tally.required(), tally.acks()).of_read());
                }
            }
        }
    }

    /// Microseconds after which one spare replica is asked.
    fn hedge_after(&self, slowest_p99_us: u32) -> u64 {
        let cap = self.coordinator.defaults.hedge_cap.as_micros() as u64;
        let native = if slowest_p99_us == 0 { cap } else { u64::from(slowest_p99_us).min(cap) };
        self.plan.policy.hedge_after_us.map_or(native, u64::from)
    }

    fn reconciled(&self, told: &[(u8, Option<Encoded>)]) -> Result<(Reconciled, SmallVec<[u8; 5]>), Failed> {
        let answered = told.iter().map(|(replica, _)| *replica).collect();
        let internal = |reason: String| Failure::Internal(reason).of_read();
        let (_, first) = &told[0];
        if told.iter().all(|(_, record)| record == first) {
            let record = match first {
                Some(bytes) => Some(bytes.decode().map_err(|e| internal(e.to_string()))?),
                None => None,
            };
            return Ok((Reconciled { record, stale: SmallVec::new() }, answered));
        }
        let mut answers = Answers::new();
        for (replica, bytes) in told {
            let record = match bytes {
                Some(bytes) => Some(bytes.decode().map_err(|e| internal(e.to_string()))?),
                None => None,
            };
            answers.push((*replica, record));
        }
        let reconciled = reconcile(&answers);
        let reconciled =
            reconciled.ok_or_else(|| internal("replicas hold records of two conflict modes".to_owned()))?;
        Ok((reconciled, answered))
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
        told(&mut span, &asked);
        drop(span);
        let (value, by) = match asked {
            Asked::Answered { answer: Verdict::Pick(index), by } => (values.get(index).cloned(), Some(by)),
            Asked::Answered { answer: Verdict::Merged(bytes), by } => (Some(bytes), Some(by)),
            Asked::Answered { answer: Verdict::KeepAll, by } => (None, Some(by)),
            // Whatever the binding says, nothing is hidden: the client sees all.
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
        Ok(answer)
    }

    fn found(&self, value: Bytes, claims: &Claims) -> ReadAnswer {
        let context = self.coordinator.seal(&self.plan, claims);
        ReadAnswer { value, siblings: Vec::new(), context, rendering: render(claims), resolved_by: None }
    }

    fn not_found(&self, claims: &Claims) -> Failed {
        Failure::KeyNotFound { context: self.coordinator.seal(&self.plan, claims) }.of_read()
    }

    /// [`Fault::VerdictWrittenBack`].
    fn write_verdict_back(&self, value: Bytes, context: Bytes) {
        let request = WriteRequest {
            tenant: self.plan.place.tenant.clone(),
            key: self.plan.place.key.clone(),
            value: Some(value),
            level: None,
            idempotency_key: None,
            context,
            timeout: None,
        };
        self.coordinator.write(request, Box::new(|_| {}));
    }
}
