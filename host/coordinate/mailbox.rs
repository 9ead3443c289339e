//! Where the answers of one operation's replicas arrive, from any thread.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures::task::AtomicWaker;
use witan_kernel::port::Collect;
use witan_kernel::replica::Outcome;

/// Answers that have arrived and have not been looked at. Bounded by the requests sent: each is answered once.
#[derive(Default)]
pub(super) struct Mailbox {
    answers: Mutex<Answers>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Answers {
    arrived: VecDeque<(u32, Outcome)>,
    /// How many of `arrived` are failures. The operation looks at a failure at once.
    failures: usize,
    /// How many answers the operation waits for. With fewer, and no failure, it has nothing to do, and is not woken.
    enough: usize,
}

impl Answers {
    fn suffice(&self, enough: usize) -> bool {
        !self.arrived.is_empty() && (self.failures > 0 || self.arrived.len() >= enough)
    }
}

impl Collect for Mailbox {
    fn collect(&self, tag: u32, outcome: Outcome) {
        let mut answers = self.answers();
        answers.failures += usize::from(outcome.is_err());
        answers.arrived.push_back((tag, outcome));
        let awaited = answers.suffice(answers.enough);
        drop(answers);
        if awaited {
            self.waker.wake();
        }
    }
}

impl Mailbox {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers who is woken when as many answers have arrived as [`Self::take`] was last called for.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The next answer, with its request's tag, once `enough` have arrived or one of them is a failure.
    pub(super) fn take(&self, enough: usize) -> Option<(u32, Outcome)> {
        let mut answers = self.answers();
        if !answers.suffice(enough) {
            answers.enough = enough;
            return None;
        }
        let (tag, outcome) = answers.arrived.pop_front()?;
        answers.failures -= usize::from(outcome.is_err());
        Some((tag, outcome))
    }
}
