//! Ports that are free, and that no other test takes while their server is down.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

/// Range of ports: below those that systems assign to outgoing connections (from 32768 or 49152 on), so that no connection takes the
/// port of a server that is being restarted.
const RANGE: Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1. Other tests, in any process, get other ones while this exists.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// The lock. Absent if the lock folder belongs to another user; then only binding decides.
    _lock: Option<File>,
}

impl Port {
    /// A free port. Programs that use no locks may still take it: then try another one.
    ///
    /// # Panics
    /// When none is free.
    pub fn free() -> Self {
        let folder = std::env::temp_dir().join("witan-test-ports");
        // An error here shows below, too.
        let _ = fs::create_dir_all(&folder);
        let first = RandomState::new().build_hasher().finish() as u16 % RANGE.len() as u16;
        let all = RANGE.map(|number| RANGE.start + (number - RANGE.start + first) % RANGE.len() as u16);
        for number in all {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(number.to_string()));
            let lock = match file.map(|file| file.try_lock().map(|()| file)) {
                Ok(Ok(locked)) => Some(locked),
                Ok(Err(_)) => continue,
                Err(_) => None,
            };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no port of {RANGE:?} is free");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
