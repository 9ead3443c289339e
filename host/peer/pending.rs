//! Requests that a node has not answered yet, by id.

use std::collections::VecDeque;

use witan_kernel::fault::Fault;
use witan_kernel::port::Reply;
use witan_kernel::replica::{ReplicaError, Request};
use witan_origin::Traced;

/// A request that was sent and is not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) reply: Reply,
    /// When it was sent, in monotonic microseconds.
    pub(super) sent: u64,
    /// When the caller stops waiting, in monotonic microseconds.
    pub(super) deadline: u64,
    /// The span that waits for its answer, if the operation is traced.
    pub(super) traced: Option<Traced>,
    /// The request, if it may have to be sent over another lane.
    pub(super) again: Option<Request>,
}

/// The unanswered requests. Ids are assigned in order, so the table is a queue with holes: looking one up is an index, and the
/// oldest is at the front.
#[derive(Debug, Default)]
pub(super) struct Table {
    first: u64,
    entries: VecDeque<Option<Pending>>,
    live: usize,
}

impl Table {
    /// Adds a request and returns its id.
    pub(super) fn enter(&mut self, pending: Pending) -> u64 {
        self.entries.push_back(Some(pending));
        self.live += 1;
        self.first + self.entries.len() as u64 - 1
    }

    /// Removes and returns the request with an id.
    pub(super) fn take(&mut self, id: u64) -> Option<Pending> {
        let index = usize::try_from(id.checked_sub(self.first)?).ok()?;
        let index = if Fault::AnswersByTurn.is_on() { 0 } else { index };
        let pending = self.entries.get_mut(index)?.take()?;
        self.live -= 1;
        self.trim();
        Some(pending)
    }

    /// The number of unanswered requests.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The distance between the oldest and the newest request, which bounds the table's memory.
    pub(super) fn span(&self) -> usize {
        self.entries.len()
    }

    /// When the oldest unanswered request was sent, in monotonic microseconds.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.entries.front().and_then(Option::as_ref).map(|pending| pending.sent)
    }

    /// Answers the requests whose deadline has passed.
    pub(super) fn expire(&mut self, now: u64) {
        for entry in &mut self.entries {
            if entry.as_ref().is_some_and(|pending| pending.deadline <= now)
                && let Some(pending) = entry.take()
            {
                self.live -= 1;
                pending.reply.answer(Err(ReplicaError::Late));
            }
        }
        self.trim();
    }

    /// [`Fault::LostCalledUnsent`]: answers everything that is left as if it had never been sent.
    pub(super) fn call_unsent(&mut self) {
        for pending in std::mem::take(&mut self.entries).into_iter().flatten() {
            let node = pending.reply.node().clone();
            pending.reply.answer(Err(ReplicaError::NotSent(node)));
        }
        self.live = 0;
    }

    fn trim(&mut self) {
        while matches!(self.entries.front(), Some(None)) {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use witan_kernel::name::NodeId;
    use witan_kernel::port::Collect;
    use witan_kernel::replica::Outcome;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<u32>>);

    impl Collect for Heard {
        fn collect(&self, tag: u32, _: Outcome) {
            self.0.lock().unwrap().push(tag);
        }
    }

    #[test]
    fn every_request_is_answered_once() {
        let heard = Arc::new(Heard::default());
        let mut table = Table::default();
        let ids: Vec<u64> = (0..4)
            .map(|tag| {
                let reply = Reply::new(Arc::clone(&heard) as Arc<dyn Collect>, tag, NodeId::new("n").unwrap());
                table.enter(Pending {
                    reply,
                    sent: u64::from(tag),
                    deadline: 10 + u64::from(tag),
                    traced: None,
                    again: None,
                })
            })
            .collect();
        drop(table.take(ids[1]));
        assert!(table.take(ids[1]).is_none());
        assert!(table.take(99).is_none());
        assert_eq!((table.len(), table.oldest()), (3, Some(0)));
        table.expire(10);
        assert_eq!((table.len(), table.oldest(), table.span()), (2, Some(2), 2));
        drop(table);
        assert_eq!(*heard.0.lock().unwrap(), [1, 0, 2, 3]);
    }
}
