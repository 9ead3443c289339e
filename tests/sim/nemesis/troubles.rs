//! Which faults go on, so that it can be said how many operations met one.

use std::collections::BTreeSet;

use super::{Action, Link};

/// The faults that go on.
#[derive(Debug, Default)]
pub(crate) struct Troubles(BTreeSet<(Kind, usize, usize)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Link,
    Node,
    Coordinator,
    Store,
    SlowDisk,
    FullDisk,
    Network,
    Stopped,
    Damaged,
    Unreadable,
    Unsyncable,
    Metadata,
    View,
    Plugins,
    /// A clock that has jumped or drifts, until all is said to be healed: it goes on being wrong.
    Clock,
    /// A disk that was replaced, or has lost what was synced.
    Wiped,
}

/// What an action does to faults that last.
enum Effect {
    /// It is over at once.
    Moment,
    /// It is no fault.
    Nothing,
    AllNodes,
    Goes(Kind, usize, usize, bool),
}

impl Troubles {
    /// Takes note of an action in a cluster of this many nodes. True if a fault has begun.
    pub(crate) fn after(&mut self, action: &Action, nodes: usize) -> bool {
        match effect(action) {
            Effect::Moment => true,
            Effect::Nothing => false,
            Effect::AllNodes => {
                self.0.extend((0..nodes).map(|node| (Kind::Node, node, 0)));
                true
            }
            Effect::Goes(kind, a, b, true) => self.0.insert((kind, a, b)),
            Effect::Goes(kind, a, b, false) => {
                if kind == Kind::Node {
                    // A node is started again with a disk that works.
                    self.0
                        .retain(|(kind, node, _)| !(*node == a && matches!(kind, Kind::Unreadable | Kind::Unsyncable)));
                }
                self.0.remove(&(kind, a, b));
                false
            }
        }
    }

    /// The number of faults that go on.
    pub(crate) fn going_on(&self) -> usize {
        self.0.len()
    }

    /// All faults are over.
    pub(crate) fn healed(&mut self) {
        self.0.clear();
    }
}

/// The duration of a sync that is no fault, milliseconds.
const USUAL_SYNC_MS: u64 = 10;

fn effect(action: &Action) -> Effect {
    use Effect::{AllNodes, Goes, Moment, Nothing};
    match *action {
        Action::Link { coordinator, node, becomes } => Goes(Kind::Link, coordinator, node, becomes != Link::Up),
        Action::CrashNode { node, .. } => Goes(Kind::Node, node, 0, true),
        Action::RestartNode { node } => Goes(Kind::Node, node, 0, false),
        Action::CrashCoordinator { coordinator } => Goes(Kind::Coordinator, coordinator, 0, true),
        Action::RestartCoordinator { coordinator } => Goes(Kind::Coordinator, coordinator, 0, false),
        Action::Outage { reserving, settling } => Goes(Kind::Store, 0, 0, reserving + settling > 0),
        Action::SlowDisk { node, ms } => Goes(Kind::SlowDisk, node, 0, ms > USUAL_SYNC_MS),
        Action::FullDisk { node, full } => Goes(Kind::FullDisk, node, 0, full),
        Action::Loss { per_million } => Goes(Kind::Network, 0, 0, per_million > 0),
        Action::Stop { coordinator, stopped } => Goes(Kind::Stopped, coordinator, 0, stopped),
        Action::Flip { node, .. } => Goes(Kind::Damaged, node, 0, true),
        Action::Unflip { node } => Goes(Kind::Damaged, node, 0, false),
        Action::FailReads { node, fails } => Goes(Kind::Unreadable, node, 0, fails),
        Action::FailSyncs { node } => Goes(Kind::Unsyncable, node, 0, true),
        Action::Metadata { coordinator, missing, .. } => Goes(Kind::Metadata, coordinator, 0, missing > 0),
        Action::Ahead { coordinator, ahead } => Goes(Kind::View, coordinator, 0, ahead),
        Action::Plugins { faulty } => Goes(Kind::Plugins, 0, 0, faulty > 0),
        Action::Jump { coordinator, .. } | Action::Drift { coordinator, .. } => Goes(Kind::Clock, 0, coordinator, true),
        Action::JumpNode { node, .. } => Goes(Kind::Clock, 1, node, true),
        Action::CopyDisk { .. } => Nothing,
        Action::Damage { node, .. } | Action::SwapDisk { node } | Action::Wipe { node } => {
            Goes(Kind::Wiped, node, 0, true)
        }
        Action::PowerCut => AllNodes,
        Action::Replicate | Action::FailOver => Moment,
    }
}
