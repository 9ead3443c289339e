//! What all clients of a simulation share: the scenario, the cluster, the history, and changes to be sent again.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use witan_coordinate::WriteRequest;
use witan_kernel::name::Key;

use crate::cluster::Cluster;
use crate::history::{History, Place};
use crate::nemesis::{Action, Storm};
use crate::scenario::Scenario;
use crate::world::{key, lock, now_micros};

/// A command from the play to the loop that steps the simulation.
pub(crate) enum Command {
    Storm(Storm),
    /// In addition to the storm that goes on.
    StormToo(Storm),
    Heal,
    Wipe(usize),
    Do(Action),
    /// Cuts the links between a node and all coordinators, in both directions.
    CutOff(usize),
}

/// One in this many acknowledged changes is sent again.
const REPEATED: u32 = 5;
/// The idempotency key of one in this many acknowledged changes is used for another change, which must be refused.
const REUSED: u32 = 7;

/// A change whose outcome is unknown to its client, and which it can retry.
pub(crate) struct Doubtful {
    pub(crate) index: usize,
    pub(crate) request: WriteRequest,
}

/// An acknowledged change with an idempotency key, of which the idempotency store must have a record.
#[derive(Clone)]
pub(crate) struct Acknowledged {
    pub(crate) place: Place,
    pub(crate) tag: u32,
    pub(crate) request: WriteRequest,
}

impl Acknowledged {
    pub(crate) fn is_repeated(&self) -> bool {
        self.tag.is_multiple_of(REPEATED) && self.request.idempotency_key.is_some()
    }

    pub(crate) fn is_reused(&self) -> bool {
        self.tag.is_multiple_of(REUSED) && self.request.idempotency_key.is_some()
    }
}

/// Whether faults may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Calm,
    /// Nothing is wrong except that no disk has room.
    Full,
    Stormy,
}

/// The state shared by all clients of a simulation.
pub(crate) struct Stage {
    pub(crate) scenario: Scenario,
    pub(crate) cluster: Cluster,
    pub(crate) history: History,
    pub(crate) commands: Mutex<VecDeque<Command>>,
    pub(crate) violations: Mutex<Vec<String>>,
    pub(crate) doubtful: Mutex<Vec<Doubtful>>,
    pub(crate) acknowledged: Mutex<Vec<Acknowledged>>,
    /// True once the tenants that are created during the play exist.
    pub(crate) grown: AtomicBool,
    /// True once an operator has declared a restore: contexts of before are refused.
    pub(crate) new_era: AtomicBool,
}

impl Stage {
    pub(crate) fn new(scenario: Scenario, cluster: Cluster, verbose: bool) -> Self {
        Self {
            scenario,
            cluster,
            history: History::new(verbose),
            commands: Mutex::default(),
            violations: Mutex::default(),
            doubtful: Mutex::default(),
            acknowledged: Mutex::default(),
            grown: AtomicBool::default(),
            new_era: AtomicBool::default(),
        }
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        self.history.note(now_micros(), what);
    }

    pub(crate) fn violated(&self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        lock(&self.violations).push(what);
    }

    pub(crate) fn command(&self, command: Command) {
        lock(&self.commands).push_back(command);
    }

    pub(crate) fn key(place: Place) -> Key {
        key(place.1)
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let grown = self.grown.load(Ordering::Relaxed);
        let casts = self.scenario.casts.iter().enumerate().filter(|(_, cast)| grown || !cast.comes_later);
        casts.flat_map(|(tenant, cast)| (0..cast.keys).map(move |key| (tenant, key))).collect()
    }
}
