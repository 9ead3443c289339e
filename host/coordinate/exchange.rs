//! One operation's exchange of requests and answers with its replicas. [`Exchange::drive`] is the only loop that waits for answers; what
//! to ask and what the answers come to is decided by the kernel's rounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use smallvec::{SmallVec, smallvec};
use tokio::time::{Instant, Sleep};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::limit::PerReplica;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Clock, Collect, Replicas, Reply, until};
use witan_kernel::quorum::{Next, PATIENCE_MICROS, Round};
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError, Request};
use witan_kernel::slice::Slice;

use super::mailbox::Mailbox;
use super::missed::Reached;
use super::plan::Plan;
use super::{Coordinator, RETRY_AFTER, World};
use witan_origin::{self as origin, Span};

/// Which request an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Stamp,
    Put,
    /// Questions about a write that is repeated, beside its Puts.
    Names,
    Merge,
    Read,
    Repair,
    Unpin,
}

impl Phase {
    const ALL: [Self; 7] = [Self::Stamp, Self::Put, Self::Names, Self::Merge, Self::Read, Self::Repair, Self::Unpin];

    /// The name of a request's span.
    fn span_name(self) -> &'static str {
        match self {
            Self::Stamp => "node stamp",
            Self::Put => "node put",
            Self::Names => "node names",
            Self::Merge => "node merge",
            Self::Read => "node read",
            Self::Repair => "node repair",
            Self::Unpin => "node unpin",
        }
    }

    fn tag(self, turn: u16, replica: u8) -> u32 {
        u32::from(turn) << 16 | (self as u32) << 8 | u32::from(replica)
    }
}

/// What an operation waits for.
#[derive(Debug)]
enum Event {
    /// A replica answered or failed.
    Answer(Answered),
    /// The moment waited for has come.
    Elapsed,
}

/// What a replica answered to one request.
#[derive(Debug)]
struct Answered {
    phase: Phase,
    turn: u16,
    replica: u8,
    outcome: Outcome,
}

/// How a round ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Its requirement is met.
    Met,
    /// Its requirement cannot be met any more.
    Short(Causes),
    /// The operation's deadline passed first.
    Late,
}

/// What replicas reported, each text once.
#[derive(Debug, Default, Clone)]
pub(super) struct Causes {
    texts: Vec<String>,
    /// Replicas that had too much to do.
    overloaded: u8,
    /// Replicas whose fence is above the operation's epoch.
    stale: u8,
}

impl Causes {
    pub(super) fn add(&mut self, error: &ReplicaError) {
        self.overloaded += u8::from(*error == ReplicaError::Overloaded);
        self.stale += u8::from(*error == ReplicaError::StaleEpoch);
        let text = error.to_string();
        if !self.texts.contains(&text) {
            self.texts.push(text);
        }
    }

    /// The failure of an operation that is short of answers; `nothing_done`: it has certainly changed nothing. Then it is overload, or a
    /// plan of before a change, and no other fault, if it would have been met without.
    fn quorum_not_reached(self, required: u8, received: u8, nothing_done: bool) -> Failure {
        if nothing_done && self.overloaded > 0 && received + self.overloaded >= required {
            return Failure::Overloaded { retry_after: RETRY_AFTER };
        }
        if nothing_done && self.stale > 0 && received + self.overloaded + self.stale >= required {
            return Failure::StaleEpoch;
        }
        Failure::QuorumNotReached { required, received, causes: self.texts }
    }
}

/// One operation's exchange with its replicas.
pub(super) struct Exchange<W: World> {
    pub(super) coordinator: Arc<Coordinator<W>>,
    pub(super) plan: Plan,
    mailbox: Arc<Mailbox>,
    /// Number of the round, among those of one phase.
    turn: u16,
    /// Answers to Puts that came after their round.
    late_puts: SmallVec<[(u8, Outcome); 0]>,
    timer: Option<(u64, Pin<Box<Sleep>>)>,
    /// The incarnation of each replica's store when it was last sent a request; 0: it was sent none.
    sent_to: PerReplica<u64>,
    /// What has become of the change, if this is one.
    pub(super) reached: Option<Reached>,
    /// Spans of requests that are not answered yet, by their tag; empty unless the operation is traced.
    spans: Mutex<SmallVec<[(u32, Span); 0]>>,
}

impl<W: World> Exchange<W> {
    pub(super) fn new(coordinator: Arc<Coordinator<W>>, plan: Plan) -> Self {
        let sent_to = smallvec![0; plan.replicas().len()];
        Self {
            coordinator,
            plan,
            mailbox: Arc::default(),
            turn: 0,
            late_puts: SmallVec::new(),
            timer: None,
            sent_to,
            reached: None,
            spans: Mutex::default(),
        }
    }

    /// The same for a read: the records that it fetches have to find room.
    pub(super) fn fetching(mut self) -> Self {
        let room = Arc::clone(&self.coordinator.fetched);
        self.mailbox = Arc::new(Mailbox::within(room, self.plan.tenant.id.clone()));
        self
    }

    /// From now on the exchange is a change: what becomes of it at its replicas is noted.
    pub(super) fn begin_change(&mut self) {
        self.reached.get_or_insert_default();
    }

    /// Reports the replicas that have missed something of the change. Those of a coming placement do not count before it does: what they
    /// lack is copied to them.
    fn report_missed(&self) {
        let Some(mut reached) = self.reached else { return };
        let (ports, asked) = (&self.coordinator.ports, self.plan.route.asked());
        for replica in self.replaced() {
            reached.revoked(replica);
        }
        for (replica, node) in (0..asked).zip(self.plan.replicas()) {
            if reached.is_missed_by(replica, asked) {
                ports.missed.missed(node, Slice::of(self.plan.place_of(replica).token));
            }
        }
    }

    /// The failure of the operation, which is short of answers; it is counted as what it is. See [`Causes::quorum_not_reached`].
    pub(super) fn short(&self, causes: Causes, required: u8, received: u8, nothing_done: bool) -> Failure {
        let failure = causes.quorum_not_reached(required, received, nothing_done);
        self.coordinator.metrics.fell_short(&failure);
        failure
    }

    /// Whether there was no room for a record: then nothing else is asked for.
    pub(super) fn had_no_room(&self) -> bool {
        self.mailbox.had_no_room()
    }

    /// The records that were fetched are not kept any longer.
    pub(super) fn release(&self) {
        self.mailbox.release();
    }

    /// Carries out a round: sends what it asks for, waits, and passes on the answers, until it has ended or the operation's deadline has
    /// passed. `phase` and turn tell the round's answers from late ones of earlier rounds.
    pub(super) async fn drive(&mut self, phase: Phase, round: &mut impl Round) -> Ended {
        let mut causes = Causes::default();
        // Requests of this round that are not answered yet.
        let mut open = 0u8;
        if Fault::DeadlineStartsAgain.is_on() {
            self.plan.deadline = self.now() + u64::from(self.plan.policy.deadline_ms) * 1000;
        }
        loop {
            let now = self.now();
            let (answers, until) = loop {
                match round.next(now) {
                    Next::Ask(replica, ask) => {
                        open += 1;
                        self.send(phase, replica, ask);
                    }
                    Next::Wait { answers, until } => break (answers, until),
                    Next::Met if self.revoke(round) => {}
                    Next::Met => return Ended::Met,
                    Next::Short if Fault::OthersUnheard.is_on() => return Ended::Short(causes),
                    Next::Short => {
                        self.hear_others(phase, round, open, &mut causes).await;
                        return Ended::Short(causes);
                    }
                }
            };
            let deadline = self.plan.deadline;
            let until = until.map_or(deadline, |until| until.min(deadline));
            match self.event(answers, until).await {
                // Also answers to requests that an earlier part of this round has sent.
                Event::Answer(answer) => {
                    open = open.saturating_sub(self.hear(phase, round, answer, &mut causes).into());
                    if self.had_no_room() {
                        return Ended::Short(causes);
                    }
                }
                Event::Elapsed if until < deadline && self.now() < deadline => round.waited(self.now()),
                Event::Elapsed if round.suffices() && !self.revoke(round) => return Ended::Met,
                Event::Elapsed if Fault::DeadlineCountsAsMet.is_on() && phase == Phase::Merge => return Ended::Met,
                Event::Elapsed => return Ended::Late,
            }
        }
    }

    /// Takes back the acknowledgements of stores that were replaced since. A repair has filled the new store without what only the old
    /// one and replicas that answered later have.
    fn revoke(&self, round: &mut impl Round) -> bool {
        let mut revoked = false;
        self.replaced().for_each(|replica| revoked |= round.revoked(replica));
        revoked
    }

    /// The replicas whose store was replaced since they were sent something.
    fn replaced(&self) -> impl Iterator<Item = u8> {
        let replicas = &self.coordinator.ports.replicas;
        let all = (0..).zip(self.sent_to.iter().zip(self.plan.replicas()));
        let replaced = all.filter(|(_, (sent_to, node))| **sent_to != 0 && **sent_to != replicas.incarnation(node));
        replaced.map(|(replica, _)| replica)
    }

    /// A round that cannot be met is often short before the first answer: a replica without a connection fails at once. The replicas that
    /// are well are heard, so that the failure reports how many there are, but not waited for longer than a replica that is well needs.
    async fn hear_others(&mut self, phase: Phase, round: &mut impl Round, mut open: u8, causes: &mut Causes) {
        let until = self.plan.deadline.min(self.now() + PATIENCE_MICROS);
        while open > 0 {
            match self.event(open, until).await {
                Event::Answer(answer) => open -= u8::from(self.hear(phase, round, answer, causes)),
                Event::Elapsed => return,
            }
        }
    }

    /// Passes an answer on to the round that it belongs to. True if that is this one.
    fn hear(&mut self, phase: Phase, round: &mut impl Round, answered: Answered, causes: &mut Causes) -> bool {
        let Answered { phase: of, turn, replica, outcome } = answered;
        let beside = of == Phase::Names && phase == Phase::Put;
        // Puts have one round, which may go on after later rounds of merges.
        let own = of == phase && (turn == self.turn || of == Phase::Put);
        if let Some(reached) = self.reached.as_mut().filter(|_| own || of == Phase::Put) {
            reached.answered(of == Phase::Put, replica, &outcome);
        }
        if !own && !beside {
            if of == Phase::Put {
                self.late_puts.push((replica, outcome));
            }
            return false;
        }
        let outcome = match outcome {
            Err(ReplicaError::StorageFull) if Fault::RefusalCounted.is_on() && phase == Phase::Merge => {
                Ok(Answer::Merged { superseded: true, told: Vec::new() })
            }
            outcome => outcome,
        };
        if let Err(error) = outcome.and_then(|answer| round.answered(replica, answer)) {
            causes.add(&error);
            if beside { round.failed_beside(replica, &error) } else { round.failed(replica, &error) }
        }
        true
    }

    /// Begins another round of a phase that has had one: answers to the one before no longer count.
    pub(super) fn next_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// Passes on the answers to Puts that came after the round that now goes on.
    pub(super) fn pass_on_late_puts(&mut self, round: &mut impl Round) {
        for (replica, outcome) in std::mem::take(&mut self.late_puts) {
            if let Err(error) = outcome.and_then(|answer| round.answered(replica, answer)) {
                round.failed(replica, &error);
            }
        }
    }

    /// Sends one request.
    pub(super) fn send(&mut self, phase: Phase, replica: u8, ask: Ask) {
        let phase = if matches!(ask, Ask::Names { .. }) { Phase::Names } else { phase };
        self.reached.iter_mut().for_each(|reached| reached.sent(replica, &ask));
        let Some(node) = self.plan.replicas().get(usize::from(replica)) else { return };
        self.sent_to[usize::from(replica)] = self.coordinator.ports.replicas.incarnation(node);
        let epoch = if Fault::EpochOfLater.is_on() { self.coordinator.followed() } else { self.plan.epoch.revision };
        let request = Request { place: self.plan.place_of(replica).clone(), epoch, ask };
        let to: Arc<dyn Collect> = Arc::clone(&self.mailbox) as Arc<dyn Collect>;
        let tag = phase.tag(self.turn, replica);
        let reply = Reply::new(to, tag, node.clone());
        let span = self.span(phase, node);
        span.within(|| self.coordinator.ports.replicas.send(node, request, self.plan.deadline, reply));
        if span.is_there() {
            self.spans.lock().unwrap_or_else(PoisonError::into_inner).push((tag, span));
        }
    }

    fn span(&self, phase: Phase, node: &NodeId) -> Span {
        let mut span = origin::span(phase.span_name());
        if span.is_there() {
            span.set("node", node.to_string());
        }
        span
    }

    fn close_span(&mut self, tag: u32, outcome: &Outcome) {
        let spans = self.spans.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = spans.iter().position(|(open, _)| *open == tag) else { return };
        let (_, mut span) = spans.swap_remove(at);
        if let Err(error) = outcome {
            span.set("error", error.to_string());
        }
    }

    /// Waits for the next answer, or until `until` (monotonic microseconds). Is not woken before `answers` successes have arrived, unless
    /// a replica fails.
    async fn event(&mut self, answers: u8, until: u64) -> Event {
        std::future::poll_fn(|cx| self.poll_event(cx, usize::from(answers), until)).await
    }

    pub(super) fn now(&self) -> u64 {
        self.coordinator.ports.clock.monotonic_micros()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, enough: usize, until: u64) -> Poll<Event> {
        if let Some(event) = self.arrived(enough) {
            return Poll::Ready(event);
        }
        self.mailbox.register(cx.waker());
        if let Some(event) = self.arrived(enough) {
            return Poll::Ready(event);
        }
        std::task::ready!(self.sleep_until(until).as_mut().poll(cx));
        // Answers that have arrived, though fewer than awaited, come before the end of the wait.
        Poll::Ready(self.arrived(1).unwrap_or(Event::Elapsed))
    }

    fn arrived(&mut self, enough: usize) -> Option<Event> {
        let (tag, outcome) = self.mailbox.take(enough)?;
        self.close_span(tag, &outcome);
        let (phase, turn) = (Phase::ALL[usize::from((tag >> 8) as u8)], (tag >> 16) as u16);
        Some(Event::Answer(Answered { phase, turn, replica: tag as u8, outcome }))
    }

    fn sleep_until(&mut self, at: u64) -> &mut Pin<Box<Sleep>> {
        let clock = &self.coordinator.ports.clock;
        let moment = || Instant::now() + until(at, clock.monotonic_micros());
        let (set_for, timer) = self.timer.get_or_insert_with(|| (at, Box::pin(tokio::time::sleep_until(moment()))));
        if *set_for != at {
            *set_for = at;
            timer.as_mut().reset(moment());
        }
        timer
    }

    /// Whether an operation that failed in this way may begin again under a later plan: a fence has refused it, so that it has done
    /// nothing, and later changes are followed in time. Waits for them.
    pub(super) async fn may_begin_again(&mut self, failed: &Failed, restarts: &mut u8) -> bool {
        if failed.failure != Failure::StaleEpoch || failed.effect == Some(Effect::InDoubt) || *restarts == 0 {
            return false;
        }
        *restarts -= 1;
        let (epoch, deadline) = (self.plan.epoch.revision, self.plan.deadline);
        self.coordinator.follows_beyond(Some(&self.plan.tenant.id), epoch, deadline).await
    }
}

impl<W: World> Drop for Exchange<W> {
    fn drop(&mut self) {
        self.report_missed();
    }
}

#[cfg(test)]
mod tests;
