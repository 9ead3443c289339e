//! Locks of state that is consistent between any two statements, so that a panic elsewhere does not make it unusable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whether or not a thread has panicked while it held it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
