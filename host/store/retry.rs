//! Pauses between attempts to reach a server, at random: whoever lost it at the same moment does not come back in step.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use witan_kernel::backoff::Backoff;

/// Pauses of up to `first`, doubled after each further failure up to `longest`.
pub(crate) fn pauses(first: Duration, longest: Duration) -> Backoff {
    // The standard library seeds each of these differently.
    Backoff::new(first, longest, RandomState::new().build_hasher().finish())
}
