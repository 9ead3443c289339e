//! Stores that an operator has asked to fill, by a placement change of the kind [`PlacementChange::ReplaceStore`]: which these are, and how
//! far each is, on record. When such a change has ended is decided by what stores are on record (`moves/status`), since a repair may have
//! filled the store as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{
    MIGRATION_TEXT_BYTES, MIGRATIONS, Metadata, Migration, MigrationProgress, MigrationStatus, PlacementChange,
    StoreError,
};

use crate::moves::grouped;
use crate::sweep::Swept;

/// How often it is put on record how far a store is: as often as somebody who watches looks.
const EVERY: Duration = Duration::from_secs(2);
/// The pause after the metadata store has not answered: the sweep waits for it each time.
const PAUSE: Duration = Duration::from_secs(10);

/// What operators have asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// For each node the store that is to be filled, and whether what no other replica has is given up.
    fill: BTreeMap<(NodeId, StoreId), bool>,
    /// Stores of which the last replacement was given up by an operator: they are not filled without being asked for.
    given_up: BTreeSet<StoreId>,
}

impl Asked {
    pub(super) async fn read(metadata: &dyn Metadata) -> Result<Self, StoreError> {
        let mut all = metadata.migrations(None, MIGRATIONS as u32).await?;
        all.sort_by_key(|migration| migration.number);
        let mut asked = Self::default();
        for Migration { change, status, cancel_requested, .. } in all {
            let PlacementChange::ReplaceStore { node, to, accept_loss, .. } = change else { continue };
            if cancel_requested {
                asked.given_up.insert(to);
            } else {
                asked.given_up.remove(&to);
            }
            if !cancel_requested && !status.has_ended() {
                *asked.fill.entry((node, to)).or_default() |= accept_loss;
            }
        }
        Ok(asked)
    }

    /// True if this store of the node is to be filled at once.
    pub(super) fn fills(&self, node: &NodeId, store: StoreId) -> bool {
        self.fill.contains_key(&(node.clone(), store))
    }

    /// True if this store is not to be filled, since its node is to come back with the one on record.
    pub(super) fn keeps_old(&self, store: StoreId) -> bool {
        self.given_up.contains(&store)
    }

    /// Those of `due` that are filled together, first those for which loss is accepted: it is accepted for no other node. The flag says so.
    pub(super) fn first(&self, due: BTreeSet<NodeId>) -> (BTreeSet<NodeId>, bool) {
        let accepts = |node: &NodeId| self.fill.iter().any(|((of, _), accept_loss)| of == node && *accept_loss);
        let (with_loss, without): (BTreeSet<_>, BTreeSet<_>) = due.into_iter().partition(accepts);
        if with_loss.is_empty() { (without, false) } else { (with_loss, true) }
    }
}

/// The changes that a pass carries out, and what was put on record of them.
#[derive(Debug, Default)]
pub(super) struct Filling {
    coordinator: String,
    /// Each with the number of records that the store on record has reported last.
    changes: Vec<(Migration, u64)>,
    again: Option<Instant>,
}

impl Filling {
    /// Those of these nodes. Without an answer of the metadata store, nothing is said about them this time.
    pub(super) async fn of(metadata: &dyn Metadata, nodes: &BTreeSet<NodeId>, coordinator: &NodeId) -> Self {
        let (Ok(all), Ok(stores)) = (metadata.migrations(None, MIGRATIONS as u32).await, metadata.stores().await)
        else {
            return Self::default();
        };
        let keys = |store| stores.iter().find(|known| known.store == store).map_or(0, |known| known.keys);
        let asked = all.into_iter().filter_map(|migration| match &migration.change {
            PlacementChange::ReplaceStore { node, from, .. }
                if nodes.contains(node) && !migration.cancel_requested && !migration.status.has_ended() =>
            {
                let keys = keys(*from);
                Some((migration, keys))
            }
            _ => None,
        });
        Self { coordinator: coordinator.to_string(), changes: asked.collect(), again: None }
    }

    /// Puts on record how far the pass is, if that was long ago.
    pub(super) async fn note(&mut self, metadata: &dyn Metadata, swept: &Swept, now_ms: u64) {
        if self.changes.is_empty() || self.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        self.put(metadata, swept, now_ms).await;
    }

    /// The pass has ended.
    pub(super) async fn ended(&mut self, metadata: &dyn Metadata, swept: &Swept, now_ms: u64) {
        if !self.changes.is_empty() {
            self.put(metadata, swept, now_ms).await;
        }
    }

    async fn put(&mut self, metadata: &dyn Metadata, swept: &Swept, now_ms: u64) {
        self.again = Some(Instant::now() + EVERY);
        for (migration, keys) in &self.changes {
            let Some(node) = migration.change.node() else { continue };
            let progress = progress(node, *keys, swept, &self.coordinator);
            let noted = metadata.note_migration(migration.number, MigrationStatus::InProgress, progress, now_ms).await;
            if let Err(error) = noted {
                tracing::debug!(%node, %error, "how far the node's new store is could not be put on record");
                self.again = Some(Instant::now() + PAUSE);
            }
        }
    }
}

/// How far the store of a node is whose predecessor had about `keys` records.
fn progress(node: &NodeId, keys: u64, swept: &Swept, coordinator: &str) -> MigrationProgress {
    let done = swept.of_new_stores.get(node).copied().unwrap_or_default();
    let all: u64 = swept.of_new_stores.values().sum();
    // Of several stores that are filled together it is known only what all have been sent.
    let bytes = u128::from(swept.sent_bytes) * u128::from(done);
    let bytes_done = bytes.checked_div(u128::from(all)).map_or(0, |bytes| u64::try_from(bytes).unwrap_or(u64::MAX));
    let by_ranges = u128::from(done) * swept.ranges_total as u128;
    let by_ranges =
        by_ranges.checked_div(swept.ranges_done as u128).map_or(0, |all| u64::try_from(all).unwrap_or(u64::MAX));
    let keys_total = if keys > 0 { keys } else { by_ranges }.max(done);
    let mut message = if let Some(why) = swept.unfilled.get(node) {
        format!("the store could not be filled: {why}; it will be tried again")
    } else if swept.waiting {
        "waits for operations that may have been under way when the node's store was lost".to_owned()
    } else if let Some(why) = swept.missing.get(node) {
        format!("node {node} does not take part: {why}")
    } else {
        let (done, total) = (grouped(done), grouped(keys_total));
        format!("{coordinator} fills the store of node {node}: {done} of about {total} records")
    };
    message.truncate(message.floor_char_boundary(MIGRATION_TEXT_BYTES));
    MigrationProgress { keys_done: done, keys_total, bytes_done, message, ..MigrationProgress::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn how_far_a_store_is_follows_from_the_sweep() {
        let of_new_stores = BTreeMap::from([(node("a"), 300), (node("b"), 100)]);
        let swept = Swept { of_new_stores, sent_bytes: 8000, ranges_done: 5, ranges_total: 20, ..Swept::default() };
        let a = progress(&node("a"), 900, &swept, "c1");
        assert_eq!((a.keys_done, a.keys_total, a.bytes_done), (300, 900, 6000));
        assert_eq!(a.message, "c1 fills the store of node a: 300 of about 900 records");
        let b = progress(&node("b"), 0, &swept, "c1");
        assert_eq!((b.keys_done, b.keys_total, b.bytes_done), (100, 400, 2000), "as many in the ranges that are left");
        let none = progress(&node("c"), 0, &Swept { waiting: true, ..Swept::default() }, "c1");
        assert_eq!((none.keys_done, none.keys_total, none.bytes_done), (0, 0, 0));
        assert!(none.message.starts_with("waits for operations"));
        let unfilled = BTreeMap::from([(node("a"), "too few took part".to_owned())]);
        let failed = progress(&node("a"), 1, &Swept { unfilled, ..swept }, "c1");
        assert!(failed.message.contains("too few took part") && failed.keys_total == 300, "{failed:?}");
    }

    #[test]
    fn loss_is_accepted_for_no_other_node() {
        let of = |name: &str| (node(name), StoreId([1; 16]));
        let asked = Asked { fill: BTreeMap::from([(of("a"), false), (of("b"), true)]), given_up: BTreeSet::new() };
        let due = |names: &[&str]| names.iter().map(|name| node(name)).collect::<BTreeSet<_>>();
        assert_eq!(asked.first(due(&["a", "b", "c"])), (due(&["b"]), true));
        assert_eq!(asked.first(due(&["a", "c"])), (due(&["a", "c"]), false));
        assert!(asked.fills(&node("a"), StoreId([1; 16])) && !asked.fills(&node("a"), StoreId([2; 16])));
    }
}
