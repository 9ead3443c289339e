//! Ports: one that is free now, and that no other test takes while its server is down for a moment.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

/// Where ports are taken from: below those that systems hand out for outgoing connections (from 32768 on, or 49152), so
/// that no connection takes the port of a server that is about to be started again.
const RANGE: Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1. Other tests, in whatever process, get another one while this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked. Absent where the folder of locks belongs to another user; then only the server's own attempt decides.
    _lock: Option<File>,
}

impl Port {
    /// One that is free now. A server may still find it taken by somebody who keeps no locks: try again with another.
    ///
    /// # Panics
    /// When none is free.
    pub fn free() -> Self {
        let folder = std::env::temp_dir().join("witan-test-ports");
        // What goes wrong here goes wrong below too.
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
