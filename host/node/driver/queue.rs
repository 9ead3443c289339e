//! A shard's queue of groups, bounded in requests and bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use witan_kernel::sync::lock;

use super::{BATCH_ITEMS, QueueLimits};
use crate::batch::Group;

/// A queue of groups.
pub(super) struct Queue {
    limits: QueueLimits,
    queued: Mutex<Queued>,
    filled: Condvar,
}

#[derive(Default)]
struct Queued {
    groups: VecDeque<(usize, Group)>,
    items: usize,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self { limits, queued: Mutex::default(), filled: Condvar::new() }
    }

    /// Queues a group, or returns it if there is no room. A group larger than the whole queue fits into an empty one.
    pub(super) fn push(&self, group: Group) -> Result<(), Group> {
        let bytes = group.bytes();
        let mut queued = self.lock();
        let fits = queued.items + group.len() <= self.limits.items && queued.bytes + bytes <= self.limits.bytes;
        if queued.closed || !(fits || queued.groups.is_empty()) {
            return Err(group);
        }
        queued.items += group.len();
        queued.bytes += bytes;
        queued.groups.push_back((bytes, group));
        drop(queued);
        self.filled.notify_one();
        Ok(())
    }

    /// The queued groups, up to [`BATCH_ITEMS`] requests but at least one group; empty if nothing is queued.
    pub(super) fn take(&self) -> Vec<Group> {
        self.lock().take()
    }

    /// Like [`Queue::take`], but blocks until something is queued. `None` once the queue is closed and empty.
    pub(super) fn wait(&self) -> Option<Vec<Group>> {
        let mut queued = self.lock();
        loop {
            let groups = queued.take();
            if !groups.is_empty() {
                return Some(groups);
            }
            if queued.closed {
                return None;
            }
            queued = self.filled.wait(queued).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Refuses groups from now on.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        lock(&self.queued)
    }
}

impl Queued {
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
