//! A pass over the records of a tenant: range by range, the pages of its replicas before and after a move are joined, and whoever is to
//! have a record and lacks a part of it is sent the merge.

mod compare;
mod merge;
mod range;
mod swap;

use std::collections::BTreeSet;

use futures::stream::{FuturesUnordered, StreamExt};
use witan_coordinate::{Coordinator, World};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::placement::Both;
use witan_kernel::port::Replicas;
use witan_kernel::space::Space;

use super::status::Board;
use super::{Rate, Stores};
use crate::Metrics;
use range::Walk;
pub(super) use swap::Swap;

/// Ranges that are walked at a time: a ring has hundreds of ranges for each node, and most tenants have few records, so that most of the
/// time would be spent waiting for one node after the other.
const RANGES: usize = 8;

/// What a pass has to achieve in each range.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need<'a> {
    /// Nothing: what it does not achieve, a later one does.
    Nothing,
    /// Of the replicas before, enough must be read to the end for all to be known that was acknowledged. Of those after, every one that
    /// enters and a quorum must have all of it.
    Everything {
        /// Nodes that are taken for lost.
        lost: &'a BTreeSet<NodeId>,
    },
    /// All that the one node has must be on a quorum of the present replicas.
    HandOver,
}

/// A pass.
pub(super) struct Pass<'a, W: World> {
    pub(super) coordinator: &'a Coordinator<W>,
    pub(super) metrics: &'a Metrics,
    pub(super) board: &'a Board,
    pub(super) tenant: &'a TenantId,
    /// The rows that are read.
    pub(super) space: Space,
    /// Where they go, if that is to rows of another generation; otherwise, to those of the same place.
    pub(super) swap: Option<Swap<'a>>,
    /// The ranges, with the replicas that are read and those that are to have everything.
    pub(super) ranges: &'a [Both],
    /// The epoch of the step, or a later one at which the tenant was in it still: determined before anything is read.
    pub(super) epoch: u64,
    /// The stores of nodes that may be read for what was acknowledged.
    pub(super) sources: &'a Stores,
    /// The stores of nodes whose acknowledgements count.
    pub(super) targets: &'a Stores,
    pub(super) need: Need<'a>,
    /// It is found out first where replicas differ, since in most places they do not. Not if rows go to other places.
    pub(super) compares: bool,
    /// Limits how fast it reads; `None`: unlimited.
    pub(super) rate: Option<&'a Rate<'a, W>>,
}

/// What a pass, or a part of it, has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Records that were compared.
    pub(super) records: u64,
    /// Merges that replicas have stored.
    pub(super) sent: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Why not everything was achieved, of one range in which that is so.
    pub(super) lacking: Option<String>,
    /// On which key the hook of the coming generation faults.
    pub(super) fault: Option<String>,
}

/// A node has a fence above the epoch of the pass: its tenant was changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stale;

impl<W: World> Pass<'_, W> {
    /// The one replica of before that is read in a range, if one is enough: nodes get rows that they have nothing of, and what one replica
    /// lacks of them, a later pass copies. Ranges have different ones, so that all share the work; one that is out of service for
    /// maintenance is spared.
    fn only_source<'r>(&self, range: &'r Both) -> Option<&'r NodeId> {
        let enters = range.new.iter().any(|node| !range.old.contains(node) && self.targets.contains_key(node));
        if self.compares || self.swap.is_some() || !enters || !matches!(self.need, Need::Nothing) {
            return None;
        }
        let usable = || range.old.iter().filter(|node| self.sources.contains_key(*node));
        let spared = |node: &&NodeId| self.coordinator.ports().replicas.is_asked_last(node);
        let first = (range.tokens.0 >> 32) as usize;
        let of = |nodes: Vec<&'r NodeId>| nodes.get(first % nodes.len().max(1)).copied();
        of(usable().filter(|node| !spared(node)).collect()).or_else(|| of(usable().collect()))
    }

    pub(super) async fn run(&self) -> Result<Copied, Stale> {
        match &self.swap {
            None => self.walk(self.ranges, false).await,
            Some(swap) => self.run_swap(swap).await,
        }
    }

    /// Walks ranges. `looks`: only to see what is there.
    async fn walk(&self, ranges: &[Both], looks: bool) -> Result<Copied, Stale> {
        let mut all = Copied::default();
        let (mut walks, mut ranges) = (FuturesUnordered::new(), ranges.iter());
        walks.extend(ranges.by_ref().take(RANGES).map(|range| Walk::new(self, range, looks).run()));
        while let Some(walked) = walks.next().await {
            let (range, copied) = walked?;
            walks.extend(ranges.next().map(|range| Walk::new(self, range, looks).run()));
            all.records += copied.records;
            all.sent += copied.sent;
            all.bytes += copied.bytes;
            all.lacking = all.lacking.or(copied.lacking);
            all.fault = all.fault.or(copied.fault);
            let (first, last) = range.tokens;
            if !looks {
                self.board.walked(self.tenant, copied.records, copied.bytes, last - first);
            }
            if all.fault.is_some() {
                break;
            }
            if all.lacking.is_some() && matches!(self.need, Need::Everything { .. }) {
                // It has to be repeated: while it lasts, operations need both placements.
                break;
            }
        }
        Ok(all)
    }
}
