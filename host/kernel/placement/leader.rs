//! What is to be done next for a tenant whose records are not where they are to be. One coordinator at a time leads; whichever takes over
//! finds everything in the tenant's record, and repeats the step that it finds: each may be repeated.
//!
//! A step is published before anything is done under it, and each publication names the version of the tenant that it follows. Whoever was
//! replaced as the leader without knowing can publish nothing any longer, and what it still copies carries the epoch of its step, below
//! which later steps fence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Both, Placed, Step, Tokens, both, entering, sources_needed};
use crate::fault::Fault;
use crate::name::NodeId;
use crate::port::MoveTenant;
use crate::ring::{Ring, Rings};
use crate::scan::CLEARED_RANGES;
use crate::tenant::{Level, Tenant};

/// Where the records of a tenant are to be: on the newest version of the ring, on as many nodes as are wanted, and in the generation that
/// is wanted.
pub fn target(tenant: &Tenant, newest_ring: u64) -> Placed {
    Placed {
        ring: newest_ring,
        replication_factor: tenant.wanted_factor.unwrap_or(tenant.replication_factor),
        generation: tenant.wanted_generation.unwrap_or(tenant.generation),
    }
}

/// What a move from one placement to another is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the records are.
    pub from: Placed,
    /// Where they move.
    pub to: Placed,
    /// The ranges of tokens whose replicas change, with those before and after. Of a move to another generation, in which each key has
    /// another token: all ranges, with the replicas before and no others.
    pub ranges: Vec<Both>,
    /// Nodes that get rows, with the tokens of those.
    pub entering: BTreeMap<NodeId, Vec<Tokens>>,
    /// Nodes that lose rows, with the tokens of those.
    pub leaving: BTreeMap<NodeId, Vec<Tokens>>,
}

impl Plan {
    /// The plan of a move; `None` if a version of the ring is not known.
    pub fn new(from: Placed, to: Placed, rings: &Rings) -> Option<Self> {
        let (old, new) = (rings.version(from.ring)?, rings.version(to.ring)?);
        Some(Self::between((from, old), (to, new)))
    }

    fn between(old: (Placed, &Ring), new: (Placed, &Ring)) -> Self {
        let (from, to) = ((old.1, old.0.replication_factor), (new.1, new.0.replication_factor));
        if old.0.generation != new.0.generation {
            let all = from.0.replica_ranges(&[from.1]).into_iter();
            let ranges =
                all.map(|range| Both { tokens: (range.from, range.to), old: range.replicas.to_vec(), new: Vec::new() });
            return Self {
                from: old.0,
                to: new.0,
                ranges: ranges.collect(),
                entering: everything(to),
                leaving: everything(from),
            };
        }
        let (enter, leave) = (entering(from, to), entering(to, from));
        // Of keys that the same nodes hold before and after, nothing has to be copied, and whoever goes by either placement asks the same.
        let ranges = both(from, to).into_iter().filter(|range| !range.is_same()).collect();
        Self { from: old.0, to: new.0, ranges, entering: enter, leaving: leave }
    }

    /// True for a move to another generation: each row before is another one after, also on the same node.
    pub fn is_swap(&self) -> bool {
        self.from.generation != self.to.generation
    }

    /// True when each key has the same replicas before and after, so that nothing has to be copied.
    pub fn moves_nothing(&self) -> bool {
        self.entering.is_empty() && self.leaving.is_empty()
    }

    /// The nodes that hold replicas before the move.
    pub fn old_nodes(&self) -> BTreeSet<NodeId> {
        self.ranges.iter().flat_map(|range| range.old.iter().cloned()).collect()
    }

    /// The nodes that hold replicas after the move.
    pub fn new_nodes(&self) -> BTreeSet<NodeId> {
        if self.is_swap() {
            return self.entering.keys().cloned().collect();
        }
        self.ranges.iter().flat_map(|range| range.new.iter().cloned()).collect()
    }

    /// Whether every node that the move needs can do its part: all that hold replicas after it, and of those before it enough for their
    /// records to be known.
    ///
    /// # Errors
    /// The first obstacle.
    pub fn ready(&self, condition: impl Fn(&NodeId) -> NodeCondition) -> Result<(), Obstacle> {
        if let Some((node, _)) = self.entering.iter().find(|(_, ranges)| ranges.len() > CLEARED_RANGES) {
            return Err(Obstacle::TooManyRanges(node.clone()));
        }
        let conditions: BTreeMap<NodeId, NodeCondition> =
            self.old_nodes().into_iter().chain(self.new_nodes()).map(|node| (node.clone(), condition(&node))).collect();
        let of = |node: &NodeId| conditions.get(node).copied().unwrap_or(NodeCondition::Away);
        for node in self.new_nodes() {
            let condition = of(&node);
            // A full node that gets no records is why others join.
            let is_full = condition == NodeCondition::TooFull && self.entering.contains_key(&node);
            if !condition.is_usable() || is_full {
                return Err(Obstacle::Node(node, condition));
            }
        }
        for range in &self.ranges {
            let usable = range.old.iter().filter(|node| of(node).is_usable()).count();
            let needed = sources_wanted(&range.old, |node| of(node) == NodeCondition::Lost);
            if usable < needed {
                let missing = range.old.iter().filter(|node| !of(node).is_usable());
                let nodes = missing.map(|node| (node.clone(), of(node))).collect();
                return Err(Obstacle::Sources { needed, usable, nodes });
            }
        }
        Ok(())
    }
}

/// All tokens, for each node that holds replicas under a placement.
fn everything((ring, factor): (&Ring, u8)) -> BTreeMap<NodeId, Vec<Tokens>> {
    let nodes = ring.replica_ranges(&[factor]).into_iter().flat_map(|range| range.replicas);
    nodes.map(|node| (node, vec![(0, u64::MAX)])).collect()
}

/// How many of these replicas must have been fenced and read to the end for everything that was acknowledged to be known. What only nodes
/// had that are taken for lost is lost: nothing would be gained by waiting for it.
pub fn sources_wanted(old: &[NodeId], is_lost: impl Fn(&NodeId) -> bool) -> usize {
    if Fault::MoveCopyFromOne.is_on() {
        return 1.min(old.len());
    }
    let left = old.iter().filter(|node| !is_lost(node)).count();
    // At most five replicas.
    sources_needed(u8::try_from(old.len()).unwrap_or(u8::MAX)).min(left)
}

/// Whether enough of a range's present replicas, which are those that `has` it, have the fence of a move for anything to be copied: as many
/// as have to be read later. Whoever does not know of the move is refused by them, and [collects](crate::burial) nothing: for that, all
/// replicas have to answer. Otherwise the tombstone of a value that was copied could be dropped before it has followed the value.
pub fn is_fenced(range: &Both, is_lost: impl Fn(&NodeId) -> bool, has: impl Fn(&NodeId) -> bool) -> bool {
    range.old.iter().filter(|node| has(node)).count() >= sources_wanted(&range.old, is_lost)
}

/// Whether a record is on enough of a range's coming replicas, which are those that `has` it: every one that had no replica before, of
/// which nothing else is known, and a quorum of all.
pub fn is_copied(range: &Both, has: impl Fn(&NodeId) -> bool) -> bool {
    let on = range.new.iter().filter(|node| has(node)).count();
    if Fault::MoveCopyToOne.is_on() {
        return on >= 1;
    }
    let enters = |node: &&NodeId| !range.old.contains(node);
    range.new.iter().filter(enters).all(&has) && on >= quorum(&range.new)
}

/// A quorum of these replicas.
pub fn quorum(replicas: &[NodeId]) -> usize {
    quorum_of(replicas.len())
}

/// A quorum of this number of replicas.
pub fn quorum_of(replicas: usize) -> usize {
    // At most five.
    usize::from(Level::Quorum.required(u8::try_from(replicas).unwrap_or(u8::MAX)))
}

/// Rows that a node has lost, in ranges with their present replicas: the node as the only one before.
pub fn lost_rows(node: &NodeId, lost: &[Tokens], present: (&Ring, u8)) -> Vec<Both> {
    let mut all = Vec::new();
    for range in present.0.replica_ranges(&[present.1]) {
        let begin = lost.partition_point(|(_, last)| *last < range.from);
        for (first, last) in lost[begin..].iter().take_while(|(first, _)| *first <= range.to) {
            let tokens = (range.from.max(*first), range.to.min(*last));
            all.push(Both { tokens, old: vec![node.clone()], new: range.replicas.to_vec() });
        }
    }
    all
}

/// What a node can do for a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeCondition {
    /// Everything.
    Usable,
    /// Everything but take records: its disk is [too full](super::rate::is_too_full).
    TooFull,
    /// It cannot be reached.
    Away,
    /// Its store is not the one on record.
    OtherStore,
    /// Its store was retired, when the node was removed or its disk replaced, and is never used again: not even to be filled.
    RetiredStore,
    /// Its version cannot take part.
    Old,
    /// It is taken for lost: its store is never used again.
    Lost,
}

impl NodeCondition {
    /// Whether it can take part, apart from getting records.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Usable | Self::TooFull)
    }
}

impl fmt::Display for NodeCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usable => "it can be used",
            Self::TooFull => "its disk is too full for the records that it would get (placement.full_disk); make room there",
            Self::Away => "it cannot be reached",
            Self::OtherStore => {
                "its store is not the one on record, and has to be filled first (see `witan nodes list`)"
            }
            Self::RetiredStore => {
                "the store in its folder was retired, when the node was removed or its disk replaced, and is never used again; stop the \
                 node, move its folder aside, and start it with an empty one"
            }
            Self::Old => "its version does not know placement changes; upgrade it",
            Self::Lost => "it is taken for lost",
        })
    }
}

/// Why a tenant is not moved at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A node that is to hold replicas cannot do its part.
    Node(NodeId, NodeCondition),
    /// Of some range too few of the present replicas can be read.
    Sources {
        /// How many must be.
        needed: usize,
        /// How many can be.
        usable: usize,
        /// The others.
        nodes: Vec<(NodeId, NodeCondition)>,
    },
    /// A node that would get rows has rows still that it has lost before. Once it is prepared, nobody could tell those from the new ones,
    /// and what it has to hand over would be dropped.
    Leftover(NodeId),
    /// A version of the ring is not on record.
    UnknownRing,
    /// A node would have to drop more ranges than one request may have.
    TooManyRanges(NodeId),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node, condition) => write!(f, "waits for node {node}: {condition}"),
            Self::Sources { needed, usable, nodes } => {
                let nodes: Vec<String> = nodes.iter().map(|(node, condition)| format!("{node}: {condition}")).collect();
                write!(
                    f,
                    "waits until {needed} of the present replicas of each key can be read, and of some only {usable} can ({})",
                    nodes.join("; ")
                )
            }
            Self::Leftover(node) => {
                write!(f, "waits until node {node} has handed over and dropped the rows that it has lost before")
            }
            Self::UnknownRing => f.write_str("waits until the version of the ring that it needs is on record"),
            Self::TooManyRanges(node) => {
                write!(f, "node {node} would get more than {CLEARED_RANGES} ranges: use fewer virtual nodes")
            }
        }
    }
}

/// What a leader has done itself under the step that a tenant is in. What was done under another step counts for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// The revision that has published the step.
    since: u64,
    /// Every node that gets rows has dropped what it may have had of them.
    pub prepared: bool,
    /// What was stored before has been copied.
    pub copied: bool,
    /// Operations that began before the step have ended, or were waited for as long as is reasonable.
    pub drained: bool,
    /// What the first copy has missed has been copied from fenced sources.
    pub completed: bool,
    /// The stores of nodes that have got rows are those that were prepared.
    pub verified: bool,
    /// A node has a fence above the epoch of the preparation.
    pub stale: bool,
    /// Something has failed that only a new beginning repairs.
    pub failed: bool,
}

impl Done {
    /// Nothing yet, under the step that was published by this revision.
    pub fn under(since: u64) -> Self {
        Self { since, ..Self::default() }
    }

    /// What of this was done under the step that was published by `since`.
    pub fn of(self, since: u64) -> Self {
        if self.since == since { self } else { Self::under(since) }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Nothing: the records are where they are to be.
    Settled,
    /// Nothing at present.
    Wait(Obstacle),
    /// This step is to be published.
    Publish(MoveTenant),
    /// Nodes that get rows drop what they have of them, under this epoch.
    Prepare(u64),
    /// What was stored before is copied.
    Copy,
    /// Operations end that began before this epoch.
    Drain(u64),
    /// What the first copy has missed is copied from sources that are fenced at this epoch.
    Complete(u64),
    /// The nodes that got rows are asked whether they still have the stores that were prepared under this epoch.
    Verify(u64),
}

/// A tenant, as its leader sees it.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The tenant as it is stored.
    pub tenant: &'a Tenant,
    /// Where its records are to be.
    pub target: Placed,
    /// The plan of the move that is under way or, if there is none, of the one to the target; `None` if a version of the ring is unknown.
    pub plan: Option<&'a Plan>,
    /// Nodes that have rows of the tenant which they are to drop.
    pub left_over: &'a BTreeSet<NodeId>,
    /// What the leader has done.
    pub done: Done,
}

/// Decides what is to be done next. `condition` is asked only before a step that needs nodes.
pub fn next(at: &Situation<'_>, condition: impl Fn(&NodeId) -> NodeCondition) -> Do {
    let Situation { tenant, target, .. } = at;
    let Some(moving) = tenant.moving else {
        if tenant.deleted_at_ms.is_some() || tenant.placed() == *target {
            return Do::Settled;
        }
        return begin(at, condition);
    };
    if tenant.deleted_at_ms.is_some() {
        return Do::Settled;
    }
    let done = at.done.of(moving.since);
    // In the last step there is little left to do: what was begun is ended, and the next move begins from there. From a generation there is
    // no way back to the one before.
    let is_late = moving.step == Step::Cutover && moving.to.generation == target.generation;
    let is_wanted = moving.to == *target || is_late;
    if (done.failed || !is_wanted) && moving.step == Step::Preparing {
        // Nobody has sent them anything.
        return Do::Publish(MoveTenant::GiveUp(Vec::new()));
    }
    let Some(plan) = at.plan else { return Do::Wait(Obstacle::UnknownRing) };
    if done.failed || !is_wanted {
        return Do::Publish(MoveTenant::GiveUp(plan.entering.keys().cloned().collect()));
    }
    let moves_nothing = plan.moves_nothing();
    match moving.step {
        Step::Preparing if done.stale => Do::Publish(MoveTenant::Prepare(moving.to)),
        // Nodes that prepare fence the tenant: operations of before, at nodes that hold other rows of it, should have ended.
        Step::Preparing if !done.drained && !moves_nothing => Do::Drain(moving.since),
        Step::Preparing if !done.prepared && !moves_nothing => Do::Prepare(moving.prepared),
        Step::Preparing => Do::Publish(MoveTenant::DualWrite),
        Step::DualWrite if moves_nothing => Do::Publish(MoveTenant::Cutover),
        Step::DualWrite if !done.copied => Do::Copy,
        Step::DualWrite => match plan.ready(condition) {
            Ok(()) => Do::Publish(MoveTenant::Cutover),
            Err(obstacle) => Do::Wait(obstacle),
        },
        Step::Cutover if moves_nothing => Do::Publish(MoveTenant::Finish(Vec::new())),
        Step::Cutover if !done.drained => Do::Drain(moving.since),
        Step::Cutover if !done.completed => Do::Complete(moving.since),
        Step::Cutover if !done.verified => Do::Verify(moving.prepared),
        Step::Cutover => Do::Publish(MoveTenant::Finish(plan.leaving.keys().cloned().collect())),
    }
}

fn begin(at: &Situation<'_>, condition: impl Fn(&NodeId) -> NodeCondition) -> Do {
    let Some(plan) = at.plan else { return Do::Wait(Obstacle::UnknownRing) };
    if plan.moves_nothing() {
        return Do::Publish(MoveTenant::Prepare(at.target));
    }
    // What has to be handed over is merged into the rows of one generation: that of the move which has left it.
    let mut left = at.left_over.iter();
    if let Some(node) = left.find(|node| plan.is_swap() || plan.entering.contains_key(*node)) {
        return Do::Wait(Obstacle::Leftover(node.clone()));
    }
    match plan.ready(condition) {
        Ok(()) => Do::Publish(MoveTenant::Prepare(at.target)),
        Err(obstacle) => Do::Wait(obstacle),
    }
}

#[cfg(test)]
mod tests;
