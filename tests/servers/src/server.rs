//! A server on its own port, which was free at the start and stays the same after restarts.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::eventually;
use crate::port::Port;
use crate::process::Process;

/// Attempts to start, each on another port.
const PORTS: usize = 20;

/// Starts the server's program on a port.
type Launch = Box<dyn Fn(u16) -> Process + Send + Sync>;

/// A server that runs, or can be restarted.
pub(crate) struct Server {
    name: &'static str,
    launch: Launch,
    answers: fn(SocketAddr) -> bool,
    port: Port,
    process: Mutex<Process>,
}

impl Server {
    /// Launches it on a free port, and waits until it answers.
    ///
    /// # Panics
    /// When it ends instead, or does not answer in time.
    pub(crate) fn start(
        name: &'static str,
        answers: fn(SocketAddr) -> bool,
        launch: impl Fn(u16) -> Process + Send + Sync + 'static,
    ) -> Self {
        for _ in 0..PORTS {
            let port = Port::free();
            let mut process = launch(port.number());
            match process.await_answer(|| answers(port.address())) {
                Ok(()) => {
                    let (launch, process) = (Box::new(launch), Mutex::new(process));
                    return Self { name, launch, answers, port, process };
                }
                // Another process has taken the port.
                Err(silent) => assert!(silent.port_taken, "{}", silent.why),
            }
        }
        panic!("{name} found {PORTS} ports taken");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(crate) fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches it again on its port, and waits until it answers.
    ///
    /// # Panics
    /// When it runs, ends instead, or does not answer in time.
    pub(crate) fn start_again(&self) {
        let mut process = self.process();
        assert!(process.has_ended(), "{} runs: there is nothing to start again", self.name);
        let started = eventually(|| {
            let mut next = (self.launch)(self.port.number());
            match next.await_answer(|| (self.answers)(self.address())) {
                Ok(()) => Some(next),
                // Another process may have taken the port for a while.
                Err(silent) if silent.port_taken => None,
                Err(silent) => panic!("{}", silent.why),
            }
        });
        *process = started.unwrap_or_else(|| panic!("{} finds its port taken: {}", self.name, self.address()));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.name).field("address", &self.address()).finish_non_exhaustive()
    }
}
