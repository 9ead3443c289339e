//! A write or a delete from its first check to its last answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use witan_kernel::context::{Claims, Issue, Unopened};
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::hook::Operation;
use witan_kernel::idempotency::write_id;
use witan_kernel::name::WriteId;
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::quorum::{MergeRound, PutRound};
use witan_kernel::record::Record;
use witan_kernel::siblings::Shown;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level};

use super::exchange::Exchange;
use super::following::RESTARTS;
use super::idempotency::{Claim, Claimed, Recorded};
use super::plan::{Asks, Plan};
use super::register::Stored;
use super::request::{WriteRequest, Written, render};
use super::{Coordinator, Respond, World};

/// A write or a delete under way.
pub(super) struct Change {
    pub(super) request: WriteRequest,
    pub(super) write_id: WriteId,
    /// What the client has seen.
    pub(super) claims: Claims,
    /// What it holds of its idempotency key.
    pub(super) claim: Claim,
    /// The key that the client sent, or the one that was generated.
    pub(super) idempotency_key: String,
}

/// What goes on after the response.
struct Rest {
    merges: MergeRound,
    puts: Option<Box<PutRound>>,
    write_id: WriteId,
}

impl<W: World> Coordinator<W> {
    /// Carries out a change that arrived at `arrived`, in monotonic microseconds.
    pub(super) async fn run_write(self: &Arc<Self>, request: WriteRequest, arrived: u64, respond: Respond<Written>) {
        let (plan, claims) = match self.prepare(&request, arrived).await {
            Ok(prepared) => prepared,
            Err(failure) => return respond(Err(failure.not_applied())),
        };
        let (idempotency_key, named) = match &request.idempotency_key {
            Some(key) => (key.clone(), true),
            None => (WriteId(self.ports.randomness.sixteen()).hex(), false),
        };
        let write_id = write_id(
            &plan.tenant.id,
            &plan.place.key,
            idempotency_key.as_bytes(),
            request.operation(),
            request.value.as_deref(),
            &request.context,
        );
        let started = self.ports.clock.wall_micros();
        let claim = if named {
            match Box::pin(self.claim(&plan, &idempotency_key, write_id, started)).await {
                Ok(Claimed::Yes(claim)) => claim,
                Ok(Claimed::Done(written)) => return respond(Ok(written)),
                Err(failed) => return respond(Err(failed)),
            }
        } else {
            Claim::none(started)
        };
        let change = Change { request, write_id, claims, claim, idempotency_key };
        Exchange::new(Arc::clone(self), plan).carry_out(change, respond).await;
    }

    async fn prepare(&self, request: &WriteRequest, arrived: u64) -> Result<(Plan, Claims), Failure> {
        let asks = Asks {
            operation: request.operation(),
            tenant: &request.tenant,
            key: &request.key,
            level: request.level,
            value_bytes: request.value.as_ref().map_or(0, Bytes::len),
            arrived,
            timeout: request.timeout,
        };
        let plan = self.plan(asks).await?;
        let claims = self.open_context(&plan, &request.context)?;
        // Before its key is claimed: what does not begin leaves nothing behind.
        if self.ports.clock.monotonic_micros() >= plan.deadline {
            return Err(Failure::NotBegun);
        }
        Ok((plan, claims))
    }

    fn open_context(&self, plan: &Plan, context: &Bytes) -> Result<Claims, Failure> {
        if context.is_empty() {
            return Ok(Claims::Nothing);
        }
        match plan.keys.open(&plan.tenant.id, &plan.place.key, context) {
            Ok(claims) => Ok(claims),
            Err(Unopened::Invalid(invalid)) => Err(invalid.into()),
            Err(Unopened::Outdated) => Err(Failure::ContextOutdated),
        }
    }

    /// Seals a client's claims as a context token.
    pub(super) fn seal(&self, plan: &Plan, claims: &Claims) -> Bytes {
        let issue = if self.names.load(Ordering::Relaxed) { Issue::Second } else { Issue::First };
        plan.keys.seal(&plan.tenant.id, &plan.place.key, claims, issue)
    }
}

impl<W: World> Exchange<W> {
    async fn carry_out(mut self, mut change: Change, respond: Respond<Written>) {
        let outcome = self.store_under_what_holds(&mut change).await;
        let (result, rest) = match outcome {
            Ok(Stored { claims, met, rest, puts }) => {
                // Whoever took over, or has no reservation, may not be the only one that has ever sent the write.
                let puts = puts.filter(|_| !change.claim.may_be_repeated());
                let rest = Rest { merges: rest, puts, write_id: change.write_id };
                (Ok(self.written(&claims, met, change.idempotency_key)), Some(rest))
            }
            // That this attempt has done nothing says nothing of the intention: an earlier one may have applied it.
            Err(failed) if change.claim.may_be_repeated() => (Err(failed.failure.in_doubt()), None),
            Err(failed) => (Err(failed), None),
        };
        let mut recorded = Recorded::Yes;
        if change.claim.is_reserved() {
            recorded = Box::pin(change.claim.settle(&self.coordinator, &result)).await;
        }
        match (recorded, rest) {
            (Recorded::Yes, rest) => {
                respond(result);
                if let Some(rest) = rest {
                    self.hear_out(rest.merges).await;
                    if let Some(puts) = rest.puts {
                        Box::pin(self.unpin(*puts, rest.write_id)).await;
                    }
                }
            }
            (recorded, rest) => Box::pin(self.answer_late(recorded, result, respond, rest)).await,
        }
    }

    /// Responds once the idempotency record has the result, or certainly will not in time. Clients of a tenant that does without the store
    /// get their response at once.
    async fn answer_late(
        &mut self,
        recorded: Recorded,
        result: Result<Written, Failed>,
        respond: Respond<Written>,
        rest: Option<Rest>,
    ) {
        let (coordinator, deadline) = (Arc::clone(&self.coordinator), self.plan.deadline);
        let at_once = self.plan.tenant.idempotency_outage == IdempotencyOutage::Proceed;
        let tenant = self.plan.tenant.id.clone();
        let answer = async move {
            let recorded = match recorded {
                Recorded::NotYet(unrecorded) if !at_once => unrecorded.insist(&coordinator, deadline).await,
                recorded => recorded,
            };
            let found = at_once || matches!(recorded, Recorded::Yes);
            respond(if found { result } else { Err(Failure::Unrecorded.in_doubt()) });
            if let Recorded::NotYet(unrecorded) = recorded {
                unrecorded.insist_behind(&coordinator, &tenant);
            }
        };
        let hear_out = async {
            if let Some(rest) = rest {
                self.hear_out(rest.merges).await;
            }
        };
        futures::future::join(answer, hear_out).await;
    }

    /// Stores the change. Begins again where a fence has refused all of it, unless its stamp is on record: whoever repeats it uses that.
    async fn store_under_what_holds(&mut self, change: &mut Change) -> Result<Stored, Failed> {
        let mut restarts = RESTARTS;
        loop {
            match self.store(change).await {
                Err(failed) if change.claim.stamp().is_none() => {
                    if !Box::pin(self.may_begin_again(&failed, &mut restarts)).await {
                        return Err(failed);
                    }
                    let prepared = Box::pin(self.coordinator.prepare(&change.request, self.plan.arrived)).await;
                    let (plan, claims) = prepared.map_err(Failure::not_applied)?;
                    change.claims = claims;
                    *self = Self::new(Arc::clone(&self.coordinator), plan);
                }
                outcome => return outcome,
            }
        }
    }

    async fn store(&mut self, change: &mut Change) -> Result<Stored, Failed> {
        // The claim may have taken long.
        if self.now() >= self.plan.deadline {
            return Err(Failure::NotBegun.not_applied());
        }
        match self.plan.tenant.conflict_mode {
            ConflictMode::Register => self.write_register(change).await,
            // Boxed, as everything that most operations do not do: an operation's task is as large as the largest of its
            // branches, and is moved more than once.
            ConflictMode::Siblings => {
                Box::pin(async {
                    self.claim_what_is_deleted(change).await?;
                    self.write_siblings(change).await
                })
                .await
            }
        }
    }

    /// A delete without a context deletes what a quorum shows now.
    async fn claim_what_is_deleted(&mut self, change: &mut Change) -> Result<(), Failed> {
        if change.request.operation() != Operation::Delete {
            return Ok(());
        }
        if Fault::ContextIgnoredOnDelete.is_on() {
            change.claims = Claims::Nothing;
            return Ok(());
        }
        // A context of a missing key has seen nothing, and deletes nothing that came since.
        if !change.request.context.is_empty() {
            return Ok(());
        }
        let policy = self.plan.policy;
        self.plan.read_a_quorum();
        let gathered = self.gather().await;
        self.plan.policy = policy;
        let (reconciled, _) = gathered.map_err(|failed| failed.failure.not_applied())?;
        change.claims = match reconciled.record {
            Some(Record::Siblings(record)) => claims_of(&record),
            _ => Claims::Nothing,
        };
        Ok(())
    }

    fn written(&self, claims: &Claims, (replicas, level): (u8, Level), idempotency_key: String) -> Written {
        Written {
            idempotency_key,
            context: self.coordinator.seal(&self.plan, claims),
            rendering: render(claims),
            replicas,
            level,
            duplicate: false,
            policy_fault: self.plan.policy_fault.clone(),
        }
    }
}

/// The claims of a client that has read the whole record.
pub(super) fn claims_of(record: &witan_kernel::siblings::Siblings) -> Claims {
    let Shown { seen, ids, newest } = record.context_claims();
    Claims::Siblings { seen, ids, newest }
}
