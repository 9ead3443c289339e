//! What an action does to the cluster.

use std::sync::atomic::Ordering;

use super::{Action, FAST_SYNC_MS, Link};
use crate::cluster::Cluster;
use crate::world::key;

/// Applies one action.
pub(crate) fn act(action: &Action, sim: &mut turmoil::Sim<'_>, cluster: &Cluster) {
    match *action {
        Action::Link { coordinator, node, becomes } => cluster.set_link(sim, (coordinator, node), becomes),
        Action::CrashNode { node, survives } => cluster.crash_node(sim, node, |unsynced| unsynced * survives / 1000),
        Action::PowerCut => (0..cluster.nodes.len()).for_each(|node| cluster.crash_node(sim, node, |_| 0)),
        Action::RestartNode { node } => {
            // A node is not started again with a disk that is known to fail.
            cluster.nodes[node].disk().set_failing_reads(false);
            cluster.nodes[node].disk().set_failing_syncs(false);
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::CrashCoordinator { coordinator } => cluster.crash_coordinator(sim, coordinator),
        Action::RestartCoordinator { coordinator } => cluster.restart(sim, &cluster.coordinators[coordinator].name),
        Action::Jump { coordinator, micros } => cluster.coordinators[coordinator].clock.jump_by(micros),
        Action::JumpNode { node, micros } => cluster.nodes[node].clock.jump_by(micros),
        Action::Outage { reserving, settling } => cluster.idempotency.set_failing(reserving, settling),
        Action::SlowDisk { node, ms } => cluster.nodes[node].set_slowest_sync(ms),
        Action::FullDisk { node, full } => cluster.nodes[node].disk().set_full(full),
        Action::Wipe { node } => {
            cluster.crash_node(sim, node, |_| 0);
            cluster.nodes[node].disk().wipe();
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::Damage { node, batches } => {
            cluster.crash_node(sim, node, |_| 0);
            cluster.nodes[node].disk().lose(|synced| synced.min(batches));
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::CopyDisk { node } => cluster.nodes[node].copy_disk(),
        Action::SwapDisk { node } => {
            cluster.crash_node(sim, node, |_| 0);
            cluster.nodes[node].swap_disk();
            cluster.restart(sim, &cluster.nodes[node].name);
        }
        Action::Loss { per_million } => sim.set_fail_rate(f64::from(per_million) / 1e6),
        Action::Stop { coordinator, stopped } => cluster.set_stopped(sim, coordinator, stopped),
        Action::Flip { node, place, bit } => cluster.nodes[node].flip(&cluster.place(place.0, &key(place.1)), bit),
        Action::Unflip { node } => cluster.nodes[node].unflip(),
        Action::FailReads { node, fails } => cluster.nodes[node].disk().set_failing_reads(fails),
        Action::FailSyncs { node } => cluster.nodes[node].disk().set_failing_syncs(true),
        Action::Metadata { coordinator, missing, away } => {
            cluster.coordinators[coordinator].view.set_missing(missing, away);
        }
        Action::Ahead { coordinator, ahead } => cluster.coordinators[coordinator].view.set_ahead(ahead),
        Action::Replicate => cluster.idempotency.replicate(),
        Action::FailOver => cluster.idempotency.fail_over(),
        Action::Plugins { faulty } => cluster.faulty.store(faulty, Ordering::Relaxed),
        Action::Drift { coordinator, ppm } => cluster.coordinators[coordinator].clock.drift_by(ppm),
    }
}

/// Ends all faults except wrong clocks.
pub(crate) fn heal(sim: &mut turmoil::Sim<'_>, cluster: &Cluster) {
    act(&Action::Loss { per_million: 0 }, sim, cluster);
    act(&Action::Outage { reserving: 0, settling: 0 }, sim, cluster);
    act(&Action::Plugins { faulty: 0 }, sim, cluster);
    for coordinator in 0..cluster.coordinators.len() {
        act(&Action::Stop { coordinator, stopped: false }, sim, cluster);
        act(&Action::Metadata { coordinator, missing: 0, away: false }, sim, cluster);
        act(&Action::Ahead { coordinator, ahead: false }, sim, cluster);
    }
    for node in 0..cluster.nodes.len() {
        act(&Action::SlowDisk { node, ms: FAST_SYNC_MS }, sim, cluster);
        act(&Action::FullDisk { node, full: false }, sim, cluster);
        act(&Action::FailReads { node, fails: false }, sim, cluster);
        // After a sync that failed, a node stores nothing until it is started again.
        if cluster.nodes[node].disk().is_unsound() {
            act(&Action::CrashNode { node, survives: 0 }, sim, cluster);
        }
        for coordinator in 0..cluster.coordinators.len() {
            act(&Action::Link { coordinator, node, becomes: Link::Up }, sim, cluster);
        }
        act(&Action::Unflip { node }, sim, cluster);
        act(&Action::RestartNode { node }, sim, cluster);
    }
    for coordinator in 0..cluster.coordinators.len() {
        act(&Action::RestartCoordinator { coordinator }, sim, cluster);
    }
}
