//! A node's store is replaced: the one that it shows is admitted in place of the one on record, and filled.
//!
//! What becomes of that follows from the stores on record alone, whoever has filled the store: healing, or a repair.

use super::{OnRecord, Plan};
use crate::name::{NodeId, StoreId};
use crate::port::{NodeOnRecord, PlacementChange, StoreError, StoreOnRecord, StoreState, rules};
use crate::ring::Ring;
use crate::scan::whole_needed;

/// What becomes of the store that is to take the place of a node's store on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedStore {
    /// As by [`PlacementStore::admit_store`](crate::port::PlacementStore::admit_store).
    Admit {
        /// The node.
        node: NodeId,
        /// Its store on record.
        from: StoreId,
        /// The store that is filled in its place.
        to: StoreId,
    },
    /// Whichever store of this node was admitted is merely reported again.
    GiveUp(NodeId),
}

/// What has become of a replacement, by the stores on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The store is admitted, and not filled yet.
    Filling,
    /// It is on record, and the old one is retired.
    Whole,
    /// It takes no one's place any longer, for this reason.
    GivenUp(&'static str),
}

impl Fate {
    /// True while the store is to be filled.
    pub fn is_open(self) -> bool {
        self == Self::Filling
    }
}

/// What has become of a [`PlacementChange::ReplaceStore`]; any other change is none, and given up.
pub fn fate(change: &PlacementChange, nodes: &[NodeOnRecord], stores: &[StoreOnRecord]) -> Fate {
    let PlacementChange::ReplaceStore { node, from, to, .. } = change else {
        return Fate::GivenUp("it replaces no store");
    };
    let state = |store: &StoreId| stores.iter().find(|known| known.store == *store).map(|known| known.state);
    match nodes.iter().find(|known| known.node.id == *node).map(|known| known.store_id) {
        None => Fate::GivenUp("the node was removed"),
        // One that was retired with its node stays on record until the node is forgotten.
        Some(_) if state(to) == Some(StoreState::Retired) => Fate::GivenUp("the store was retired"),
        Some(Some(on_record)) if on_record == *to => Fate::Whole,
        Some(Some(on_record)) if on_record != *from => Fate::GivenUp("the node has a third store on record"),
        Some(_) if state(to) == Some(StoreState::Filling) => Fate::Filling,
        Some(_) => Fate::GivenUp("the store on record is used again, or another one was admitted in its place"),
    }
}

/// Of how many other replicas a node's new store can be filled in the range of a ring in which that is worst, and how many it takes, for
/// keys with this many replicas: `None` if there are enough everywhere.
pub fn too_few_sources(
    ring: &Ring,
    replication_factor: u8,
    node: &NodeId,
    is_source: impl Fn(&NodeId) -> bool,
) -> Option<(usize, usize)> {
    let needed = usize::from(whole_needed(replication_factor));
    let there = fewest_others(ring, replication_factor, node, is_source)?;
    (there < needed).then_some((there, needed))
}

/// How many other replicas of this kind there are in the range of a node in which they are fewest; `None` if it has none.
pub fn fewest_others(
    ring: &Ring,
    replication_factor: u8,
    node: &NodeId,
    is_one: impl Fn(&NodeId) -> bool,
) -> Option<usize> {
    let ranges = ring.replica_ranges(&[replication_factor]);
    let of_node = ranges.iter().filter(|range| range.replicas.contains(node));
    of_node.map(|range| range.replicas.iter().filter(|other| *other != node && is_one(other)).count()).min()
}

impl PlacementChange {
    /// True for the same change, and for the replacement of the same store that may lose less.
    pub(super) fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ReplaceStore { node, from, to, accept_loss: true }, Self::ReplaceStore { .. }) => {
                let accept_loss = matches!(other, Self::ReplaceStore { accept_loss: true, .. });
                *other == Self::ReplaceStore { node: node.clone(), from: *from, to: *to, accept_loss }
            }
            _ => self == other,
        }
    }
}

impl OnRecord<'_> {
    pub(super) fn plan_replacing(
        &self,
        plan: &mut Plan,
        node: NodeId,
        from: StoreId,
        to: StoreId,
    ) -> Result<(), StoreError> {
        self.node(&node).ok_or_else(|| rules::no_node(&node))?;
        if !self.is_member(&node) {
            return Err(StoreError::Refused(format!(
                "storage node {node} leaves the ring, and what it has is copied from the other replicas; its store is not filled"
            )));
        }
        let other = self
            .migrations
            .iter()
            .find(|of| of.is_open() && of.change.changes_ring() && of.change.node() == Some(&node));
        if let Some(other) = other {
            let number = other.number;
            return Err(StoreError::Conflict(format!(
                "storage node {node} joins or is updated, by migration m-{number}"
            )));
        }
        plan.store = Some(PlannedStore::Admit { node, from, to });
        Ok(())
    }

    /// The store on record keeps its place.
    pub(super) fn plan_keeping(
        &self,
        plan: &mut Plan,
        change: &PlacementChange,
        node: &NodeId,
    ) -> Result<(), StoreError> {
        match fate(change, &self.placement.nodes, self.stores) {
            Fate::Whole => Err(StoreError::Conflict(format!(
                "the new store of storage node {node} is filled and on record, and the old one is retired"
            ))),
            Fate::Filling => {
                plan.store = Some(PlannedStore::GiveUp(node.clone()));
                Ok(())
            }
            Fate::GivenUp(_) => Ok(()),
        }
    }
}
