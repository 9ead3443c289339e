//! Removes a deleted tenant's records from every node.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::Instant;
use witan_coordinate::World;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::replica::ReplicaError;
use witan_kernel::scan::{Ranges, Removed};

use super::Upkeep;
use super::runner::{Kind, Progress};

/// Nodes that one removal works on concurrently.
const NODES: usize = 16;
/// Attempts at each request to a node.
const TRIES: u32 = 3;
/// Pause before the second attempt; twice as long before the third.
const PAUSE: Duration = Duration::from_millis(200);

impl<W: World> Upkeep<W> {
    /// Removes a tenant's records from these nodes, or from every one, as far as possible before `until`. Idempotent. The tenant must be
    /// deleted already: records written during the removal may remain.
    pub async fn remove_records(&self, tenant: &TenantId, from: Option<Vec<NodeId>>, until: Instant) -> Removed {
        let from = from.unwrap_or_else(|| self.coordinator.rings().nodes());
        let Some(task) =
            self.runner.begin(Kind::Removal, Some(tenant), || format!("remove the records of tenant {tenant}"))
        else {
            return refused(&from);
        };
        let all = from.len() as u64;
        let nodes = stream::iter(from);
        let each = nodes.map(|node| async move {
            let (records, why) = self.remove_from(&node, tenant, until).await;
            (node, records, why)
        });
        let mut removed = Removed::default();
        let mut progress = Progress { done: 0, of: Some(all) };
        let mut each = each.buffer_unordered(NODES);
        while let Some((node, records, why)) = each.next().await {
            removed.records += records;
            if let Some(why) = why {
                task.failed(format!("{node}: {why}"));
                removed.incomplete.insert(node, why);
            }
            progress.done += 1;
            task.progress(progress);
        }
        removed
    }

    /// Returns the number of records removed from a node, and the reason if some may remain.
    async fn remove_from(&self, node: &NodeId, tenant: &TenantId, until: Instant) -> (u64, Option<String>) {
        let (mut records, mut after, mut tries) = (0, None, 0);
        loop {
            if Instant::now() >= until {
                return (records, Some("the deadline has passed".to_owned()));
            }
            match self.coordinator.ports().replicas.drop_tenant(node, tenant.clone(), after.clone()).await {
                Ok(dropped) => {
                    records += dropped.records;
                    tries = 0;
                    match dropped.next {
                        Some(next) => after = Some(next),
                        None => return (records, None),
                    }
                }
                Err(error) => {
                    tries += 1;
                    if tries >= TRIES || matches!(error, ReplicaError::NotSent(_)) {
                        return (records, Some(error.to_string()));
                    }
                    tokio::time::sleep(PAUSE * tries).await;
                }
            }
        }
    }
}

fn refused(nodes: &[NodeId]) -> Removed {
    let (most, of_tenant) = (Kind::Removal.at_most(), Kind::Removal.of_tenant());
    let why = format!(
        "{most} removals are running, or {of_tenant} of this tenant, which is the limit; delete the tenant again to remove its records"
    );
    Removed { records: 0, incomplete: nodes.iter().map(|node| (node.clone(), why.clone())).collect() }
}
