//! Faults and their times: drawn before a simulation starts, applied between its steps.

mod apply;
mod troubles;

use rand::Rng;
use rand::rngs::StdRng;

use crate::history::Place;

pub(crate) use apply::{act, heal};
pub(crate) use troubles::Troubles;

/// The state of a link between a coordinator and a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Delivers messages, including those held back before.
    Up,
    /// Drops all messages.
    Cut,
    /// Drops messages from the node.
    Mute,
    /// Drops messages from the coordinator.
    Deaf,
    /// Holds back all messages.
    Held,
}

/// One change of the environment. Machines are given by index.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// The link between a coordinator and a node changes.
    Link {
        coordinator: usize,
        node: usize,
        becomes: Link,
    },
    /// A node loses power. `survives`: the share of its unsynced batches that are on the disk anyway, per mille.
    CrashNode {
        node: usize,
        survives: usize,
    },
    /// All nodes lose power at once.
    PowerCut,
    RestartNode {
        node: usize,
    },
    CrashCoordinator {
        coordinator: usize,
    },
    RestartCoordinator {
        coordinator: usize,
    },
    /// A coordinator's wall clock jumps by `micros` microseconds.
    Jump {
        coordinator: usize,
        micros: i64,
    },
    /// A node's wall clock jumps by `micros` microseconds.
    JumpNode {
        node: usize,
        micros: i64,
    },
    /// Steps of the idempotency store fail: shares of those that begin and of those that end an operation, per mille.
    Outage {
        reserving: u64,
        settling: u64,
    },
    /// Syncs of a node take up to `ms` milliseconds.
    SlowDisk {
        node: usize,
        ms: u64,
    },
    FullDisk {
        node: usize,
        full: bool,
    },
    /// A node's disk is replaced by an empty one.
    Wipe {
        node: usize,
    },
    /// A node loses power, and its disk up to this many of the batches that were synced last.
    Damage {
        node: usize,
        batches: usize,
    },
    /// A copy of a node's disk is put on the shelf.
    CopyDisk {
        node: usize,
    },
    /// A node comes back with the disk on its shelf (an empty one if there is none), where the one that it had is put.
    SwapDisk {
        node: usize,
    },
    /// A coordinator's process is stopped, or continues.
    Stop {
        coordinator: usize,
        stopped: bool,
    },
    /// A bit of a row on a node's disk is inverted.
    Flip {
        node: usize,
        place: Place,
        bit: usize,
    },
    /// The bit is inverted again.
    Unflip {
        node: usize,
    },
    /// Reads of a node's disk fail.
    FailReads {
        node: usize,
        fails: bool,
    },
    /// Syncs of a node's disk fail, until its disk is replaced by one that works and has what was synced.
    FailSyncs {
        node: usize,
    },
    /// Of the lookups of tenants by a coordinator, this many per mille ask the metadata store, which may be away.
    Metadata {
        coordinator: usize,
        missing: u64,
        away: bool,
    },
    /// A coordinator knows of a change of tenants' default levels that the others do not know of.
    Ahead {
        coordinator: usize,
        ahead: bool,
    },
    /// The idempotency store's replica has everything now.
    Replicate,
    /// The idempotency store's replica takes over.
    FailOver,
    /// Plugins fail to answer, this many questions per mille.
    Plugins {
        faulty: u64,
    },
    /// A coordinator's wall clock is too fast by this much from the beginning on, parts per million.
    Drift {
        coordinator: usize,
        ppm: i64,
    },
    /// Messages are lost at random, this many per million.
    Loss {
        per_million: u32,
    },
}

/// Relative frequency of each kind of fault.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) cuts: u32,
    pub(crate) holds: u32,
    pub(crate) crashes: u32,
    pub(crate) power_cuts: u32,
    pub(crate) coordinator_crashes: u32,
    pub(crate) jumps: u32,
    pub(crate) outages: u32,
    pub(crate) slow_disks: u32,
    pub(crate) full_disks: u32,
    pub(crate) losses: u32,
    /// Coordinators that are stopped and continue.
    pub(crate) stops: u32,
    /// Damaged rows.
    pub(crate) flips: u32,
    /// Disks that fail to read.
    pub(crate) unreadable: u32,
    /// Disks that fail to sync.
    pub(crate) unsyncable: u32,
    /// Metadata stores that are away or late, and coordinators that know more than others.
    pub(crate) metadata: u32,
    /// Idempotency stores that lose acknowledged steps.
    pub(crate) forgets: u32,
    /// Plugins that fail.
    pub(crate) plugins: u32,
}

/// The actions of a storm in order, each with its time in milliseconds after the storm's start.
pub(crate) type Storm = Vec<(u64, Action)>;

/// The machines that a storm is drawn for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machines {
    pub(crate) nodes: usize,
    pub(crate) coordinators: usize,
    /// Largest jump of coordinators' clocks, microseconds; nodes' clocks jump by a tenth of it, and by one second at most.
    pub(crate) jump: i64,
    /// Longest duration of a fault, milliseconds.
    pub(crate) longest: u64,
    /// Keys of the tenant whose rows are damaged, which is the last one.
    pub(crate) damaged: Place,
}

/// Draws a storm of `ms` milliseconds, with one fault per `gap` milliseconds on average.
pub(crate) fn storm(rng: &mut StdRng, machines: Machines, weather: Weather, ms: u64, gap: u64) -> Storm {
    let mut storm = Storm::new();
    for _ in 0..ms.div_ceil(gap) {
        let at = rng.random_range(0..ms);
        let long = rng.random_range(50..=machines.longest);
        for (after, action) in fault(rng, machines, weather, long) {
            storm.push((at + after, action));
        }
    }
    storm.sort_by_key(|(at, _)| *at);
    storm
}

fn fault(rng: &mut StdRng, machines: Machines, weather: Weather, long: u64) -> Storm {
    let node = rng.random_range(0..machines.nodes);
    let coordinator = rng.random_range(0..machines.coordinators);
    let mut dice = Weighted { left: rng.random_range(0..weather.total().max(1)) };
    if dice.falls(weather.cuts) {
        return cut(rng, machines, coordinator, node, long);
    }
    if dice.falls(weather.holds) {
        let becomes = |becomes| Action::Link { coordinator, node, becomes };
        return vec![(0, becomes(Link::Held)), (long, becomes(Link::Up))];
    }
    if dice.falls(weather.crashes) {
        let survives = rng.random_range(0..=1000);
        return vec![(0, Action::CrashNode { node, survives }), (long, Action::RestartNode { node })];
    }
    if dice.falls(weather.power_cuts) {
        let back = (0..machines.nodes).map(|node| (rng.random_range(50..=600), Action::RestartNode { node }));
        return std::iter::once((0, Action::PowerCut)).chain(back).collect();
    }
    if dice.falls(weather.coordinator_crashes) {
        return vec![(0, Action::CrashCoordinator { coordinator }), (long, Action::RestartCoordinator { coordinator })];
    }
    if dice.falls(weather.jumps) {
        let micros = rng.random_range(-machines.jump..=machines.jump);
        if rng.random_bool(0.2) {
            return vec![(0, Action::JumpNode { node, micros: (micros / 10).clamp(-1_000_000, 1_000_000) })];
        }
        return vec![(0, Action::Jump { coordinator, micros })];
    }
    if dice.falls(weather.outages) {
        let (reserving, settling) = match rng.random_range(0..4) {
            0 => (1000, 1000),
            1 => (500, 500),
            2 => (800, 0),
            _ => (0, 800),
        };
        let over = Action::Outage { reserving: 0, settling: 0 };
        return vec![(0, Action::Outage { reserving, settling }), (long, over)];
    }
    if dice.falls(weather.slow_disks) {
        let ms = rng.random_range(20..=300);
        return vec![(0, Action::SlowDisk { node, ms }), (long, Action::SlowDisk { node, ms: FAST_SYNC_MS })];
    }
    if dice.falls(weather.full_disks) {
        return vec![(0, Action::FullDisk { node, full: true }), (long, Action::FullDisk { node, full: false })];
    }
    if dice.falls(weather.losses) {
        let per_million = rng.random_range(500..=10_000);
        return vec![(0, Action::Loss { per_million }), (long, Action::Loss { per_million: 0 })];
    }
    rarer(rng, machines, weather, long, dice)
}

/// The kinds of faults that few scenarios have.
fn rarer(rng: &mut StdRng, machines: Machines, weather: Weather, long: u64, mut dice: Weighted) -> Storm {
    let node = rng.random_range(0..machines.nodes);
    let coordinator = rng.random_range(0..machines.coordinators);
    if dice.falls(weather.stops) {
        let stop = |stopped| Action::Stop { coordinator, stopped };
        return vec![(0, stop(true)), (long, stop(false))];
    }
    if dice.falls(weather.flips) {
        let place = (machines.damaged.0, rng.random_range(0..machines.damaged.1));
        let flip = Action::Flip { node, place, bit: rng.random_range(0..100_000) };
        return vec![(0, flip), (long, Action::Unflip { node })];
    }
    if dice.falls(weather.unreadable) {
        return vec![(0, Action::FailReads { node, fails: true }), (long, Action::FailReads { node, fails: false })];
    }
    if dice.falls(weather.unsyncable) {
        let survives = 0;
        let back = Action::RestartNode { node };
        return vec![(0, Action::FailSyncs { node }), (long, Action::CrashNode { node, survives }), (long + 200, back)];
    }
    if dice.falls(weather.metadata) {
        if rng.random_bool(0.3) {
            let ahead = |ahead| Action::Ahead { coordinator, ahead };
            return vec![(0, ahead(true)), (long, ahead(false))];
        }
        let (missing, away) = (rng.random_range(300..=1000), rng.random_bool(0.5));
        let over = Action::Metadata { coordinator, missing: 0, away: false };
        return vec![(0, Action::Metadata { coordinator, missing, away }), (long, over)];
    }
    if dice.falls(weather.forgets) {
        return vec![(0, Action::Replicate), (long, Action::FailOver)];
    }
    if dice.falls(weather.plugins) {
        let faulty = rng.random_range(100..=1000);
        return vec![(0, Action::Plugins { faulty }), (long, Action::Plugins { faulty: 0 })];
    }
    Storm::new()
}

/// Cuts one link, all links of a node, or those of a coordinator to all other nodes; in one direction or both.
fn cut(rng: &mut StdRng, machines: Machines, coordinator: usize, node: usize, long: u64) -> Storm {
    let links: Vec<(usize, usize)> = match rng.random_range(0..4) {
        0 => (0..machines.coordinators).map(|coordinator| (coordinator, node)).collect(),
        1 => (0..machines.nodes).filter(|n| *n != node).map(|node| (coordinator, node)).collect(),
        _ => vec![(coordinator, node)],
    };
    let broken = match rng.random_range(0..4) {
        0 => Link::Mute,
        1 => Link::Deaf,
        _ => Link::Cut,
    };
    let mut storm = Storm::new();
    for (coordinator, node) in links {
        storm.push((0, Action::Link { coordinator, node, becomes: broken }));
        storm.push((long, Action::Link { coordinator, node, becomes: Link::Up }));
    }
    storm
}

/// A weighted choice, made by going through the weights.
struct Weighted {
    left: u32,
}

impl Weighted {
    fn falls(&mut self, weight: u32) -> bool {
        match self.left.checked_sub(weight) {
            Some(left) => {
                self.left = left;
                false
            }
            None => {
                // No later weight is chosen.
                self.left = u32::MAX;
                true
            }
        }
    }
}

impl Weather {
    fn total(&self) -> u32 {
        [
            self.cuts,
            self.holds,
            self.crashes,
            self.power_cuts,
            self.coordinator_crashes,
            self.jumps,
            self.outages,
            self.slow_disks,
            self.full_disks,
            self.losses,
            self.stops,
            self.flips,
            self.unreadable,
            self.unsyncable,
            self.metadata,
            self.forgets,
            self.plugins,
        ]
        .iter()
        .sum()
    }
}

/// The longest duration of a healthy disk's sync, milliseconds.
const FAST_SYNC_MS: u64 = 5;
