//! Following what other coordinators change: the metadata store numbers every change, and this reads those that it has not
//! seen, at once when the store gives a hint and twice a second when it does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use witan_kernel::port::StoreError;
use witan_store::metadata::{Changed, Metadata};

use super::Cluster;

/// How often the store is asked without a hint. A hint can be lost, so that this bounds how late a change is seen.
const EVERY: Duration = Duration::from_millis(500);

/// Puts in force here what others change after `revision`, for as long as it is polled. A change that could not be read is
/// read again until it could.
pub async fn follow(metadata: Arc<dyn Metadata>, cluster: Arc<dyn Cluster>, mut revision: u64) {
    let mut hint = metadata.hint();
    let mut failing = false;
    loop {
        // An error means that whoever gives hints is gone: then time does.
        if let Ok(Err(_)) = timeout(EVERY, hint.changed()).await {
            tokio::time::sleep(EVERY).await;
        }
        match look(metadata.as_ref(), cluster.as_ref(), revision).await {
            Ok(seen) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(revision = seen, "changes of other coordinators are followed again");
                }
                revision = seen;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "changes of other coordinators cannot be followed; what is known stays in force");
                }
            }
        }
    }
}

/// Puts in force what has changed since `after`. Returns the revision up to which everything is. One change that cannot be followed,
/// say a plugin for which there is no room here, holds up no other; all of them are looked at again then.
async fn look(metadata: &dyn Metadata, cluster: &dyn Cluster, after: u64) -> Result<u64, StoreError> {
    let changes = metadata.changes(after).await?;
    let all = !changes.complete;
    // First: without a word on tokens they stop being good.
    if all || changes.changed.contains(&Changed::Tokens) {
        cluster.tokens_outdated().await?;
    }
    cluster.up_to_date();
    let mut followed = Ok(());
    let mut note = |done: Result<(), StoreError>| {
        if followed.is_ok() {
            followed = done;
        }
    };
    if all {
        note(cluster.tenants_outdated().await);
        note(publish_nodes(metadata, cluster).await);
        note(cluster.secrets_outdated().await);
        note(cluster.plugins_outdated(None).await);
        return followed.map(|()| changes.revision);
    }
    let mut slots = None;
    for changed in &changes.changed {
        match changed {
            Changed::Tenant(id) => note(cluster.tenant_outdated(id).await),
            Changed::Nodes => note(publish_nodes(metadata, cluster).await),
            Changed::Secrets => note(cluster.secrets_outdated().await),
            Changed::Artifacts => _ = slots.get_or_insert_with(Vec::new),
            Changed::Binding(slot) => slots.get_or_insert_with(Vec::new).push(slot.clone()),
            Changed::Tokens | Changed::Coordinators => {}
        }
    }
    // All at once: a binding and the plugin that it binds often come together.
    if slots.is_some() {
        note(cluster.plugins_outdated(slots).await);
    }
    followed.map(|()| changes.revision)
}

async fn publish_nodes(metadata: &dyn Metadata, cluster: &dyn Cluster) -> Result<(), StoreError> {
    let placement = metadata.placement().await?;
    let nodes: Vec<_> = placement.nodes.into_iter().map(|on_record| on_record.node).collect();
    cluster.placement_changed(placement.epoch, &nodes);
    cluster.stores_changed().await;
    Ok(())
}
