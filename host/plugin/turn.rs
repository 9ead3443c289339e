//! Turns: at most one thread at a time works on a key, and others that want the same key wait.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use witan_kernel::sync::lock;

/// Keys that are being worked on. Bounded by the threads of the host, each of which works on one.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    taken: Mutex<BTreeSet<K>>,
    ended: Condvar,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { taken: Mutex::default(), ended: Condvar::new() }
    }
}

impl<K: Ord + Clone> Turns<K> {
    /// Waits while another thread works on the key.
    pub(crate) fn take(&self, key: &K) -> Turn<'_, K> {
        let mut taken = lock(&self.taken);
        while !taken.insert(key.clone()) {
            taken = self.ended.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { turns: self, key: key.clone() }
    }

    /// The same, but not for longer than until this moment.
    pub(crate) fn take_until(&self, key: &K, until: Instant) -> Option<Turn<'_, K>> {
        let mut taken = lock(&self.taken);
        while !taken.insert(key.clone()) {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            taken = self.ended.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(Turn { turns: self, key: key.clone() })
    }
}

/// The right to work on one key, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a, K: Ord> {
    turns: &'a Turns<K>,
    key: K,
}

impl<K: Ord> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        lock(&self.turns.taken).remove(&self.key);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_has_the_turn_of_a_key() {
        let turns = Turns::default();
        let first = turns.take(&1);
        assert!(turns.take_until(&1, Instant::now()).is_none());
        assert!(turns.take_until(&2, Instant::now()).is_some(), "another key");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drop(turns.take(&1)));
            drop(first);
            waits.join().unwrap();
        });
    }
}
