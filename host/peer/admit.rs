//! Nodes whose store is not the one on record.

use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Clock, StoreError};
use witan_kernel::scan::Trust;

use super::vitals::Vitals;
use super::{Connect, Lanes, Met};

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// The connected nodes whose store is not the one on record, sorted, and what each store may be used for.
    pub fn not_whole(&self) -> Vec<(NodeId, Trust)> {
        let nodes = self.nodes.load();
        let standing = nodes.iter().filter_map(|(id, node)| node.vitals.standing().map(|standing| (id, standing)));
        let not_whole = standing.filter(|(_, standing)| !standing.is_whole());
        let mut ids: Vec<(NodeId, Trust)> = not_whole.map(|(id, standing)| (id.clone(), standing.trust)).collect();
        ids.sort_by(|(a, _), (b, _)| a.cmp(b));
        ids
    }

    /// Checks again what the stores may be used for that are not on record, and if `whole` also those that are. A node whose check
    /// fails stays as it is.
    pub async fn meet_again(&self, whole: bool) {
        let nodes = self.nodes.load_full();
        for (id, node) in nodes.iter() {
            let Some(standing) = node.vitals.standing().filter(|standing| whole || !standing.is_whole()) else {
                continue;
            };
            match self.ask_about(id, &node.vitals, standing.store).await {
                Ok(met) => {
                    if node.vitals.trust(standing.store, met.trust) {
                        log(id, met.trust);
                    }
                }
                Err(reason) => tracing::debug!(node = %id, %reason, "cannot check a node's store"),
            }
        }
    }

    async fn ask_about(&self, node: &NodeId, vitals: &Vitals, store: StoreId) -> Result<Met, StoreError> {
        let commit = vitals.commit_of(store);
        let met = self.connect.meet(node, store, commit, commit).await?;
        if !met.is_suspect(commit) {
            return Ok(met);
        }
        // Another coordinator has seen a later commit than this one: the node is asked, and shows it, too.
        let _ = self.fullness(node).await;
        let commit = vitals.commit_of(store);
        if met.is_suspect(commit) {
            return Err(StoreError::Unavailable("the node has not shown the commit that is on record".to_owned()));
        }
        self.connect.meet(node, store, commit, commit).await
    }
}

/// Logs that a node's store may be used for something else than before, or that the node comes with another store.
pub(super) fn log(node: &NodeId, trust: Trust) {
    let advice = trust.advice().unwrap_or_default();
    match trust {
        Trust::Whole => tracing::info!(%node, "the node's new store is complete: it is read from again"),
        Trust::Filling => tracing::warn!(%node, "the node has another store than before: {advice}"),
        Trust::Unadmitted => tracing::error!(%node, "the node has another store than before: {advice}"),
    }
}
