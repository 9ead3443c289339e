//! Where the answers of one operation's replicas arrive, from any thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures::task::AtomicWaker;
use witan_kernel::name::TenantId;
use witan_kernel::port::Collect;
use witan_kernel::replica::{Answer, Outcome, ReplicaError};

use super::room::{Room, RoomPermit};

/// A record of more bytes is counted while it is kept for a read: as many smaller ones as there may be reads fit into the room.
const COUNTED: usize = 4 << 10;

/// Answers that have arrived and have not been looked at. Bounded by the requests sent: each is answered once.
#[derive(Default)]
pub(super) struct Mailbox {
    answers: Mutex<Answers>,
    waker: AtomicWaker,
    /// Room for the records that a read fetches, and whose they are. What other operations fetch must not be refused, since they may have
    /// changed something.
    room: Option<(Arc<Room>, TenantId)>,
    /// A record was dropped for which there was no room.
    no_room: AtomicBool,
}

#[derive(Default)]
struct Answers {
    arrived: VecDeque<(u32, Outcome)>,
    /// How many of `arrived` are failures. The operation looks at a failure at once.
    failures: usize,
    /// How many answers the operation waits for. With fewer, and no failure, it has nothing to do, and is not woken.
    enough: usize,
    /// What the records take that have arrived.
    held: Vec<RoomPermit>,
}

impl Answers {
    fn suffice(&self, enough: usize) -> bool {
        !self.arrived.is_empty() && (self.failures > 0 || self.arrived.len() >= enough)
    }
}

impl Collect for Mailbox {
    fn collect(&self, tag: u32, outcome: Outcome) {
        let (outcome, held) = self.admitted(outcome);
        let mut answers = self.answers();
        answers.held.extend(held);
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
    /// For a read of this tenant, whose records have to find room here.
    pub(super) fn within(room: Arc<Room>, tenant: TenantId) -> Self {
        Self { room: Some((room, tenant)), ..Self::default() }
    }

    /// A record that finds no room is dropped, and counts as not answered.
    fn admitted(&self, outcome: Outcome) -> (Outcome, Option<RoomPermit>) {
        let (Some((room, tenant)), Ok(Answer::Record(Some(record)))) = (&self.room, &outcome) else {
            return (outcome, None);
        };
        if record.0.len() <= COUNTED {
            return (outcome, None);
        }
        match room.admit(tenant, record.0.len()) {
            Some(permit) => (outcome, Some(permit)),
            None => {
                self.no_room.store(true, Ordering::Relaxed);
                (Err(ReplicaError::Overloaded), None)
            }
        }
    }

    /// Whether there was no room for a record.
    pub(super) fn had_no_room(&self) -> bool {
        self.no_room.load(Ordering::Relaxed)
    }

    /// The records that have arrived are not kept any longer.
    pub(super) fn release(&self) {
        self.answers().held.clear();
    }

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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use witan_kernel::record::Encoded;

    use super::*;

    #[test]
    fn records_that_find_no_room_are_dropped_and_others_give_it_back() {
        let room = Room::new(400_000);
        let of = |tenant: &str| Mailbox::within(Arc::clone(&room), TenantId::new(tenant).unwrap());
        let arrive = |mailbox: &Mailbox, bytes: usize| {
            mailbox.collect(0, Ok(Answer::Record(Some(Encoded(Bytes::from(vec![0; bytes]))))));
            mailbox.take(1).expect("it has arrived").1.is_ok()
        };
        let (busy, quiet) = (of("busy"), of("quiet"));
        assert!((0..3).all(|_| arrive(&busy, 100_000)) && !busy.had_no_room());
        assert!(!arrive(&busy, 100_000) && busy.had_no_room(), "its share is three quarters");
        assert!(arrive(&busy, COUNTED), "a small one");
        assert!(arrive(&quiet, 100_000) && !quiet.had_no_room());
        busy.release();
        assert_eq!(room.bytes(), 100_000);
        drop(quiet);
        assert_eq!(room.bytes(), 0);
        let change = Mailbox::default();
        assert!(arrive(&change, 1_000_000), "what a change fetches is never refused");
    }
}
