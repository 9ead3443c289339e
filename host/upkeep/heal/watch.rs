//! Looking at nodes: which have been away, and which have a new store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{NodeOnRecord, Replicas, StoreOnRecord, stores};
use witan_kernel::scan::{Standing, Trust};

use super::replace::Asked;

/// Which nodes can be reached for operations.
#[derive(Debug, Default)]
pub(super) struct Reach {
    reachable: BTreeMap<NodeId, bool>,
    /// How often each has gone: one that is back before anybody looks has been away, too.
    outages: BTreeMap<NodeId, u64>,
    /// Nodes that have gone or come back since this was last taken: they may have missed something, or be about to.
    moved: BTreeSet<NodeId>,
    /// How often the store of each was opened that acknowledges before it syncs.
    boots: BTreeMap<NodeId, u64>,
    /// Nodes whose store was opened again, and may lack what it had acknowledged.
    reopened: BTreeSet<NodeId>,
}

/// The new stores of nodes.
#[derive(Debug, Default)]
pub(super) struct NewStores {
    /// Since when a node has had a store that is not on record.
    since: BTreeMap<NodeId, (StoreId, Instant)>,
}

/// What is to be done about new stores.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Nodes whose new store may be admitted and filled now.
    pub(super) due: BTreeSet<NodeId>,
    /// For each node with a new store, what becomes of it.
    pub(super) notes: BTreeMap<NodeId, String>,
}

impl Reach {
    /// Looks at the nodes. One that is away when it is first seen counts as one that has gone.
    pub(super) fn look(&mut self, on_record: &[NodeId], replicas: &impl Replicas) {
        let now: BTreeMap<NodeId, bool> =
            on_record.iter().map(|node| (node.clone(), replicas.state(node).reachable)).collect();
        let outages = on_record.iter().map(|node| (node.clone(), replicas.outages(node))).collect();
        let before = std::mem::replace(&mut self.reachable, now);
        let outages_before: BTreeMap<NodeId, u64> = std::mem::replace(&mut self.outages, outages);
        let was = |node: &NodeId| before.get(node).copied().unwrap_or(true);
        let went =
            |node: &NodeId| outages_before.get(node).is_some_and(|before| self.outages.get(node) != Some(before));
        let moved = self.reachable.iter().filter(|(node, is)| **is != was(node) || went(node));
        self.moved.extend(moved.map(|(node, _)| node.clone()));
        let boots = on_record.iter().map(|node| (node.clone(), replicas.unsynced_boot(node))).collect();
        let before = std::mem::replace(&mut self.boots, boots);
        let is_reopened =
            |(node, boot): &(&NodeId, &u64)| before.get(*node).is_some_and(|was| *was > 0 && was != *boot);
        self.reopened.extend(self.boots.iter().filter(is_reopened).map(|(node, _)| node.clone()));
        if Fault::ReturnUnnoticed.is_on() {
            let was_away = |node: &NodeId| self.outages.get(node).is_some_and(|outages| *outages > 0);
            self.reachable.iter_mut().filter(|(node, _)| was_away(node)).for_each(|(_, is)| *is = false);
        }
    }

    pub(super) fn take_moved(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.moved)
    }

    pub(super) fn take_reopened(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.reopened)
    }

    pub(super) fn is_reachable(&self, node: &NodeId) -> bool {
        self.reachable.get(node).copied().unwrap_or(false)
    }

    pub(super) fn all_reachable(&self, on_record: &[NodeId]) -> bool {
        on_record.iter().all(|node| self.is_reachable(node))
    }
}

impl NewStores {
    /// The nodes whose store is not the one on record, with that store. A node that cannot be reached at present stays as it was.
    pub(super) fn look<'a>(
        &mut self,
        nodes: impl Iterator<Item = (&'a NodeId, Option<Standing>)>,
    ) -> Vec<(NodeId, Standing)> {
        let mut found = Vec::new();
        for (node, standing) in nodes {
            let Some(standing) = standing else { continue };
            if standing.trust == Trust::Whole {
                self.since.remove(node);
                continue;
            }
            if self.since.get(node).is_none_or(|(store, _)| *store != standing.store) {
                self.since.insert(node.clone(), (standing.store, Instant::now()));
            }
            found.push((node.clone(), standing));
        }
        found
    }

    /// Decides which of the new stores may be admitted, and says what becomes of each.
    pub(super) fn judge(
        &self,
        new: &[(NodeId, Standing)],
        nodes: &[NodeOnRecord],
        stores: &[StoreOnRecord],
        asked: &Asked,
        admit_after: Duration,
    ) -> Judged {
        let mut judged = Judged::default();
        for (node, Standing { store, trust }) in new {
            let known = nodes.iter().find(|known| known.node.id == *node);
            let (Some(from), Some((_, since))) = (known.and_then(|known| known.store_id), self.since.get(node)) else {
                continue;
            };
            let keys = stores.iter().find(|known| known.store == from).map_or(0, |known| known.keys);
            let both = format!("its store is {store}, and on record is {from}, which had about {keys} records");
            let note = match stores::admits(node, Some(from), from, *store, stores) {
                Err(why) => format!("{both}; {why}"),
                Ok(()) if asked.fills(node, *store) => {
                    judged.due.insert(node.clone());
                    format!("{both}; it is being filled in place of the old one, as was asked for")
                }
                Ok(()) if asked.keeps_old(*store) => format!(
                    "{both}; filling it was given up: stop the node and mount the old disk again, or run `witan nodes replace {node}`"
                ),
                Ok(()) if admit_after.is_zero() => {
                    format!("{both}; healing.admit_after is 0: mount the old disk again, or run `witan repair`")
                }
                Ok(()) if since.elapsed() < admit_after => {
                    let left = admit_after.saturating_sub(since.elapsed()).as_secs().div_ceil(60);
                    format!(
                        "{both}; it will be filled in place of the old one in {left} min: stop the node and mount the old disk again if \
                         that is what is missing, or run `witan nodes replace {node}` or `witan repair` to fill it at once"
                    )
                }
                Ok(()) => {
                    judged.due.insert(node.clone());
                    match trust {
                        Trust::Filling => format!("{both}; it is being filled in place of the old one"),
                        _ => format!("{both}; it is about to be filled in place of the old one"),
                    }
                }
            };
            judged.notes.insert(node.clone(), note);
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::port::{NodeStatus, StorageNode, StoreState};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn on_record(name: &str, store: u8) -> NodeOnRecord {
        let node = StorageNode {
            id: node(name),
            host: "here".to_owned(),
            port: 1,
            virtual_nodes: 1,
            status: NodeStatus::Active,
            zone: witan_kernel::name::Zone::default(),
        };
        NodeOnRecord { node, store_id: Some(StoreId([store; 16])), drained: false, created_at_ms: 0, updated_at_ms: 0 }
    }

    fn standing(store: u8, trust: Trust) -> Option<Standing> {
        Some(Standing { store: StoreId([store; 16]), trust })
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_store_waits_before_it_is_admitted() {
        let (n1, mut watch) = (node("n1"), NewStores::default());
        let minute = Duration::from_secs(60);
        let nodes = [on_record("n1", 1)];
        let old = StoreOnRecord {
            store: StoreId([1; 16]),
            node: n1.clone(),
            state: StoreState::Reported,
            commit: 7,
            keys: 42,
        };
        let stores = [old.clone()];
        let mut look = |standing, admit_after| {
            let new = watch.look([(&n1, standing)].into_iter());
            let judged = watch.judge(&new, &nodes, &stores, &Asked::default(), admit_after);
            (judged.due.len(), judged.notes.into_values().next().unwrap_or_default())
        };
        assert_eq!(look(standing(1, Trust::Whole), minute), (0, String::new()));
        let (due, note) = look(standing(2, Trust::Unadmitted), minute);
        assert_eq!(due, 0);
        for part in [&StoreId([1; 16]).to_string(), &StoreId([2; 16]).to_string(), "42 records", "in 1 min"] {
            assert!(note.contains(part), "{note}");
        }
        tokio::time::advance(minute - Duration::from_secs(1)).await;
        assert_eq!(look(None, minute).0, 0, "it cannot be reached for a moment");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(look(standing(2, Trust::Unadmitted), minute).0, 1);
        assert_eq!(look(standing(2, Trust::Filling), minute).0, 1);
        let (due, note) = look(standing(2, Trust::Unadmitted), Duration::ZERO);
        assert!(due == 0 && note.contains("witan repair"), "never by itself: {note}");
        assert_eq!(look(standing(3, Trust::Unadmitted), minute).0, 0, "another store waits anew");
        let retired = StoreOnRecord { store: StoreId([3; 16]), state: StoreState::Retired, ..old.clone() };
        tokio::time::advance(minute).await;
        let new = watch.look([(&n1, standing(3, Trust::Unadmitted))].into_iter());
        let judged = watch.judge(&new, &nodes, &[old, retired], &Asked::default(), minute);
        assert!(judged.due.is_empty() && judged.notes[&n1].contains("was replaced before"), "{judged:?}");
    }
}
