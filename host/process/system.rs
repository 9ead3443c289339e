//! The operating system's clocks and randomness, and its limit on open files.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use witan_kernel::port::{Clock, Randomness};

/// This machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall_micros(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// The operating system's random number generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn sixteen(&self) -> [u8; 16] {
        rand::random()
    }
}

/// Raises the limit on open files, which include connections, as far as this process may. Many systems set a low one (1024) for programs
/// that use select(2), which this one does not, and a much higher one that every program may raise it to.
///
/// # Errors
/// When the system forbids it.
pub fn raise_open_files() -> std::io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// The current time, Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
