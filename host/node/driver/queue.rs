//! A shard's queue of groups, bounded in requests and bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{BATCH_ITEMS, QueueLimits};
use crate::batch::Group;

/// A queue of groups.
pub(super) struct Queue {
    limits: QueueLimits,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    groups: VecDeque<(usize, Group)>,
    items: usize,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self { limits, state: Mutex::default(), filled: Condvar::new() }
    }

    /// Queues a group, or gives it back when it finds no room. A group larger than the whole queue finds room in an empty one.
    pub(super) fn push(&self, group: Group) -> Result<(), Group> {
        let bytes = group.bytes();
        let mut state = self.lock();
        let fits = state.items + group.len() <= self.limits.items && state.bytes + bytes <= self.limits.bytes;
        if state.closed || !(fits || state.groups.is_empty()) {
            return Err(group);
        }
        state.items += group.len();
        state.bytes += bytes;
        state.groups.push_back((bytes, group));
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Whatever waits, up to [`BATCH_ITEMS`] requests, though one group at least; nothing when nothing waits.
    pub(super) fn take(&self) -> Vec<Group> {
        self.lock().take()
    }

    /// As [`Queue::take`], but waits for something. `None` once the queue is closed and empty.
    pub(super) fn wait(&self) -> Option<Vec<Group>> {
        let mut state = self.lock();
        loop {
            let groups = state.take();
            if !groups.is_empty() {
                return Some(groups);
            }
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets nothing more in.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts and groups change together, without a chance to panic in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Vec<Group> {
        let mut taken = 0;
        let mut count = 0;
        for (_, group) in &self.groups {
            if count > 0 && taken + group.len() > BATCH_ITEMS {
                break;
            }
            taken += group.len();
            count += 1;
        }
        self.items -= taken;
        let mut freed = 0;
        let groups = self
            .groups
            .drain(..count)
            .map(|(bytes, group)| {
                freed += bytes;
                group
            })
            .collect();
        self.bytes -= freed;
        groups
    }
}
