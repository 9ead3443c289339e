//! One operation's exchange of requests and answers with its replicas. [`Exchange::drive`] is the only loop that waits for answers; what
//! to ask and what the answers come to is decided by the kernel's rounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::time::{Instant, Sleep};
use witan_kernel::failure::Failure;
use witan_kernel::fault::Fault;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Clock, Collect, Replicas, Reply, until};
use witan_kernel::quorum::{Next, Round};
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError, Request};

use super::mailbox::Mailbox;
use super::plan::Plan;
use super::{Coordinator, World};
use witan_origin::{self as origin, Span};

/// Which request an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Stamp,
    Put,
    Merge,
    Read,
    Repair,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Stamp, Self::Put, Self::Merge, Self::Read, Self::Repair];

    /// The name of a request's span.
    fn span_name(self) -> &'static str {
        match self {
            Self::Stamp => "node stamp",
            Self::Put => "node put",
            Self::Merge => "node merge",
            Self::Read => "node read",
            Self::Repair => "node repair",
        }
    }

    fn tag(self, replica: u8) -> u32 {
        (self as u32) << 8 | u32::from(replica)
    }
}

/// What an operation waits for.
#[derive(Debug)]
enum Event {
    /// A replica answered or failed.
    Answer { phase: Phase, replica: u8, outcome: Outcome },
    /// The moment waited for has come.
    Elapsed,
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
#[derive(Debug, Default)]
pub(super) struct Causes(Vec<String>);

impl Causes {
    fn add(&mut self, error: &ReplicaError) {
        let text = error.to_string();
        if !self.0.contains(&text) {
            self.0.push(text);
        }
    }

    pub(super) fn quorum_not_reached(self, required: u8, received: u8) -> Failure {
        Failure::QuorumNotReached { required, received, causes: self.0 }
    }
}

/// One operation's exchange with its replicas.
pub(super) struct Exchange<W: World> {
    pub(super) coordinator: Arc<Coordinator<W>>,
    pub(super) plan: Plan,
    mailbox: Arc<Mailbox>,
    timer: Option<(u64, Pin<Box<Sleep>>)>,
    /// Spans of requests that are not answered yet, by their tag; empty unless the operation is traced.
    spans: Mutex<SmallVec<[(u32, Span); 0]>>,
}

impl<W: World> Exchange<W> {
    pub(super) fn new(coordinator: Arc<Coordinator<W>>, plan: Plan) -> Self {
        Self { coordinator, plan, mailbox: Arc::default(), timer: None, spans: Mutex::default() }
    }

    /// Carries out a round: sends what it asks for, waits, and passes on the answers, until it has ended or the operation's deadline has
    /// passed. `phase` tells the round's answers from late ones of earlier rounds.
    pub(super) async fn drive(&mut self, phase: Phase, round: &mut impl Round) -> Ended {
        let mut causes = Causes::default();
        if Fault::DeadlineStartsAgain.is_on() {
            self.plan.deadline = self.now() + u64::from(self.plan.policy.deadline_ms) * 1000;
        }
        loop {
            let now = self.now();
            let (answers, until) = loop {
                match round.next(now) {
                    Next::Ask(replica, ask) => self.send(phase, replica, ask),
                    Next::Wait { answers, until } => break (answers, until),
                    Next::Met => return Ended::Met,
                    Next::Short => return Ended::Short(causes),
                }
            };
            let deadline = self.plan.deadline;
            let until = until.map_or(deadline, |until| until.min(deadline));
            match self.event(answers, until).await {
                Event::Answer { phase: of, replica, outcome } if of == phase => {
                    let outcome = match outcome {
                        Err(ReplicaError::StorageFull) if Fault::RefusalCounted.is_on() && phase == Phase::Merge => {
                            Ok(Answer::Merged { superseded: true })
                        }
                        outcome => outcome,
                    };
                    if let Err(error) = outcome.and_then(|answer| round.answered(replica, answer)) {
                        causes.add(&error);
                        round.failed(replica, &error);
                    }
                }
                Event::Answer { .. } => {}
                Event::Elapsed if until < deadline && self.now() < deadline => round.waited(self.now()),
                Event::Elapsed if round.suffices() || (Fault::DeadlineCountsAsMet.is_on() && phase == Phase::Merge) => {
                    return Ended::Met;
                }
                Event::Elapsed => return Ended::Late,
            }
        }
    }

    /// Sends one request.
    fn send(&self, phase: Phase, replica: u8, ask: Ask) {
        let Some(node) = self.plan.replicas.get(usize::from(replica)) else { return };
        let request = Request { place: self.plan.place.clone(), epoch: self.plan.epoch, ask };
        let to: Arc<dyn Collect> = Arc::clone(&self.mailbox) as Arc<dyn Collect>;
        let reply = Reply::new(to, phase.tag(replica), node.clone());
        let span = self.span(phase, node);
        span.within(|| self.coordinator.ports.replicas.send(node, request, self.plan.deadline, reply));
        if span.is_there() {
            self.spans.lock().unwrap_or_else(PoisonError::into_inner).push((phase.tag(replica), span));
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
        Some(Event::Answer { phase: Phase::ALL[(tag >> 8) as usize], replica: tag as u8, outcome })
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
}

#[cfg(test)]
mod tests;
