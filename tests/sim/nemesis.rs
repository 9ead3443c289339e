//! Faults and their times: drawn before a simulation starts, applied between its steps.

use rand::Rng;
use rand::rngs::StdRng;

use crate::cluster::{Cluster, Link};

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
    /// A node loses power, and its disk up to this many of the batches that were synced last.
    Damage {
        node: usize,
        batches: usize,
    },
    /// A node's disk is replaced by an empty one.
    Wipe {
        node: usize,
    },
    /// A copy of a node's disk is put on the shelf.
    CopyDisk {
        node: usize,
    },
    /// A node comes back with the disk on its shelf (an empty one if there is none), where the one that it had is put.
    SwapDisk {
        node: usize,
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
}

/// Draws a storm of `ms` milliseconds, with one fault per `gap` milliseconds on average.
pub(crate) fn storm(rng: &mut StdRng, machines: Machines, weather: Weather, ms: u64, gap: u64) -> Storm {
    let mut storm = Storm::new();
    for _ in 0..ms.div_ceil(gap) {
        let at = rng.random_range(0..ms);
        let long = rng.random_range(50..=1200);
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
        ]
        .iter()
        .sum()
    }
}

/// The longest duration of a healthy disk's sync, milliseconds.
const FAST_SYNC_MS: u64 = 5;

/// Applies one action.
pub(crate) fn act(action: &Action, sim: &mut turmoil::Sim<'_>, cluster: &Cluster) {
    match *action {
        Action::Link { coordinator, node, becomes } => cluster.set_link(sim, (coordinator, node), becomes),
        Action::CrashNode { node, survives } => cluster.crash_node(sim, node, |unsynced| unsynced * survives / 1000),
        Action::PowerCut => (0..cluster.nodes.len()).for_each(|node| cluster.crash_node(sim, node, |_| 0)),
        Action::RestartNode { node } => cluster.restart(sim, &cluster.nodes[node].name),
        Action::CrashCoordinator { coordinator } => cluster.crash_coordinator(sim, coordinator),
        Action::RestartCoordinator { coordinator } => cluster.restart(sim, &cluster.coordinators[coordinator].name),
        Action::Jump { coordinator, micros } => cluster.coordinators[coordinator].clock.jump_by(micros),
        Action::JumpNode { node, micros } => cluster.nodes[node].clock.jump_by(micros),
        Action::Outage { reserving, settling } => cluster.idempotency.set_failing(reserving, settling),
        Action::SlowDisk { node, ms } => cluster.nodes[node].set_slowest_sync(ms),
        Action::FullDisk { node, full } => cluster.nodes[node].disk().set_full(full),
        Action::Damage { node, batches } => {
            cluster.crash_node(sim, node, |_| 0);
            cluster.nodes[node].disk().lose(|synced| synced.min(batches));
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::Wipe { node } => {
            cluster.crash_node(sim, node, |_| 0);
            cluster.nodes[node].disk().wipe();
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::CopyDisk { node } => cluster.nodes[node].copy_disk(),
        Action::SwapDisk { node } => {
            cluster.crash_node(sim, node, |_| 0);
            cluster.nodes[node].swap_disk();
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::Loss { per_million } => sim.set_fail_rate(f64::from(per_million) / 1e6),
    }
}

/// Ends all faults except wrong clocks.
pub(crate) fn heal(sim: &mut turmoil::Sim<'_>, cluster: &Cluster) {
    act(&Action::Loss { per_million: 0 }, sim, cluster);
    act(&Action::Outage { reserving: 0, settling: 0 }, sim, cluster);
    for node in 0..cluster.nodes.len() {
        act(&Action::SlowDisk { node, ms: FAST_SYNC_MS }, sim, cluster);
        act(&Action::FullDisk { node, full: false }, sim, cluster);
        for coordinator in 0..cluster.coordinators.len() {
            act(&Action::Link { coordinator, node, becomes: Link::Up }, sim, cluster);
        }
        act(&Action::RestartNode { node }, sim, cluster);
    }
    for coordinator in 0..cluster.coordinators.len() {
        act(&Action::RestartCoordinator { coordinator }, sim, cluster);
    }
}
