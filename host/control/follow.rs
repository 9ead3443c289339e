//! Follows other coordinators' changes: the metadata store numbers every change, and this reads the new ones, immediately when the
//! store sends a notification and twice a second otherwise.

use std::sync::Arc;
use std::time::Duration;

use futures::future::select;
use tokio::time::timeout;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Changed, Metadata, StoreError};

use super::Cluster;

/// How often the store is polled without a notification. Notifications can be lost, so this bounds how late a change is seen.
const EVERY: Duration = Duration::from_millis(500);

/// Applies here what others change after `revision`, for as long as it is polled. Reading a change is retried until it succeeds.
pub async fn follow(metadata: Arc<dyn Metadata>, cluster: Arc<dyn Cluster>, mut revision: u64) {
    let mut hint = metadata.hint();
    let mut failing = false;
    loop {
        _ = timeout(EVERY, select(hint.given(), cluster.behind())).await;
        match look(metadata.as_ref(), cluster.as_ref(), revision).await {
            Ok(seen) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(revision = seen, "following changes of other coordinators again");
                }
                revision = seen;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "changes of other coordinators cannot be followed; the last known state is used");
                }
            }
        }
    }
}

/// Applies what has changed since `after`. Returns the revision up to which everything is applied. A change that fails, such as a
/// plugin for which the disk has no space, does not delay the others; all of them are then applied again.
async fn look(metadata: &dyn Metadata, cluster: &dyn Cluster, after: u64) -> Result<u64, StoreError> {
    let changes = metadata.changes(after).await?;
    let all = !changes.complete;
    // Tokens first: without confirmation they become invalid.
    if all || changes.changed.contains(&Changed::Tokens) {
        cluster.tokens_outdated().await?;
    }
    cluster.tokens_confirmed();
    // Before its revision is followed: putting a binding in force takes time, and may fail.
    let bindings: Vec<_> = match all {
        true => vec![None],
        false => changes.changed.iter().filter_map(bound).collect(),
    };
    if !bindings.is_empty() {
        cluster.bindings_change(bindings, after);
    }
    let mut followed = Ok(());
    if all {
        note(&mut followed, cluster.tenants_outdated().await);
        note(&mut followed, publish_nodes(metadata, cluster).await);
    } else {
        for changed in &changes.changed {
            match changed {
                Changed::Tenant(id) => note(&mut followed, cluster.tenant_outdated(id).await),
                Changed::Nodes => note(&mut followed, publish_nodes(metadata, cluster).await),
                _ => {}
            }
        }
    }
    if followed.is_ok() {
        // What nodes fence is known up to here, whatever becomes of the rest.
        cluster.followed(changes.revision);
    }
    if all {
        note(&mut followed, cluster.secrets_outdated().await);
        note(&mut followed, cluster.coordinators_changed().await);
        note(&mut followed, cluster.plugins_outdated(None).await);
        return finished(cluster, followed, changes.revision);
    }
    let mut slots = None;
    for changed in &changes.changed {
        match changed {
            Changed::Secrets => note(&mut followed, cluster.secrets_outdated().await),
            Changed::Artifacts => _ = slots.get_or_insert_with(Vec::new),
            Changed::Binding(slot) => slots.get_or_insert_with(Vec::new).push(slot.clone()),
            Changed::Coordinators => note(&mut followed, cluster.coordinators_changed().await),
            Changed::Tokens | Changed::Tenant(_) | Changed::Nodes => {}
        }
    }
    // All slots in one call: a binding and the plugin that it binds often change together.
    if slots.is_some() {
        note(&mut followed, cluster.plugins_outdated(slots).await);
    }
    finished(cluster, followed, changes.revision)
}

/// If everything is applied up to this revision, so are the bindings; otherwise the same changes are looked at again.
fn finished(cluster: &dyn Cluster, followed: Result<(), StoreError>, revision: u64) -> Result<u64, StoreError> {
    followed?;
    cluster.bindings_followed();
    Ok(revision)
}

/// The tenant whose binding has changed (`None` in it: that of all tenants).
fn bound(changed: &Changed) -> Option<Option<TenantId>> {
    match changed {
        Changed::Binding(slot) => Some(slot.tenant.clone()),
        _ => None,
    }
}

/// Keeps the first failure.
fn note(followed: &mut Result<(), StoreError>, done: Result<(), StoreError>) {
    if followed.is_ok() {
        *followed = done;
    }
}

async fn publish_nodes(metadata: &dyn Metadata, cluster: &dyn Cluster) -> Result<(), StoreError> {
    cluster.placement_changed(metadata.placement().await?);
    cluster.stores_changed().await;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use witan_kernel::hook::{Pending, ReplicaState};
    use witan_kernel::name::{NodeId, StoreId, TenantId};
    use witan_kernel::port::{Placement, Slot};
    use witan_kernel::replica::ReplicaError;
    use witan_kernel::ring::Ring;
    use witan_kernel::scan::{Fullness, Removed, Standing, Trust};
    use witan_kernel::tenant::Tenant;
    use witan_memory::MemoryMetadata;

    use super::*;
    use crate::Held;

    /// A coordinator whose disk has no space for a plugin; records the calls that it received, in order.
    #[derive(Default)]
    pub(crate) struct FullDisk(Mutex<Vec<&'static str>>);

    impl FullDisk {
        fn note(&self, what: &'static str) -> Pending<Result<(), StoreError>> {
            self.0.lock().unwrap().push(what);
            Box::pin(std::future::ready(Ok(())))
        }
    }

    impl Cluster for FullDisk {
        fn tenant_changed(&self, _: Tenant) {}
        fn tenant_outdated(&self, _: &TenantId) -> Pending<Result<(), StoreError>> {
            self.note("tenant")
        }
        fn tenants_outdated(&self) -> Pending<Result<(), StoreError>> {
            self.note("tenants")
        }
        fn secrets_outdated(&self) -> Pending<Result<(), StoreError>> {
            self.note("secrets")
        }
        fn plugins_outdated(&self, _: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>> {
            drop(self.note("plugins"));
            Box::pin(std::future::ready(Err(StoreError::Unavailable("the disk is full".to_owned()))))
        }
        fn tokens_outdated(&self) -> Pending<Result<(), StoreError>> {
            self.note("tokens")
        }
        fn tokens_confirmed(&self) {
            drop(self.note("confirmed"));
        }
        fn followed(&self, _: u64) {
            drop(self.note("followed"));
        }
        fn bindings_change(&self, _: Vec<Option<TenantId>>, _: u64) {
            drop(self.note("bindings"));
        }
        fn bindings_followed(&self) {
            drop(self.note("in force"));
        }
        fn ring(&self) -> Arc<Ring> {
            Arc::new(Ring::new(&[], 0))
        }
        fn raise_fence(&self, _: &NodeId, _: Option<&TenantId>, _: u64) -> Pending<Result<(), ReplicaError>> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn placement_changed(&self, _: Placement) {
            drop(self.note("placement"));
        }
        fn state(&self, _: &NodeId) -> ReplicaState {
            ReplicaState { reachable: true, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
        }
        fn fullness(&self, _: &NodeId) -> Pending<Option<Fullness>> {
            Box::pin(std::future::ready(None))
        }
        fn standing(&self, _: &NodeId) -> Option<Standing> {
            Some(Standing { store: StoreId([1; 16]), trust: Trust::Whole })
        }
        fn stores_changed(&self) -> Pending<()> {
            Box::pin(std::future::ready(()))
        }
        fn remove_records(&self, _: &TenantId, _: Option<Vec<NodeId>>, _: tokio::time::Instant) -> Pending<Removed> {
            Box::pin(std::future::ready(Removed::default()))
        }
        fn hold(&self) -> Pending<Held> {
            Box::pin(std::future::ready(Box::new(()) as Held))
        }
    }

    /// A clock on which no time passes.
    #[derive(Clone)]
    pub(crate) struct AtTheEpoch;

    impl witan_kernel::port::Clock for AtTheEpoch {
        fn wall_micros(&self) -> u64 {
            0
        }
        fn monotonic_micros(&self) -> u64 {
            0
        }
    }

    #[tokio::test]
    async fn a_plugin_for_which_the_disk_has_no_space_delays_nothing_else() {
        let metadata = MemoryMetadata::new(AtTheEpoch);
        let cluster = FullDisk::default();
        // The set of changes is unknown: everything is applied, and the error makes the caller try again.
        let result = look(&metadata, &cluster, u64::MAX - 1).await;
        assert!(result.is_err(), "{result:?}");
        let followed = cluster.0.lock().unwrap().clone();
        assert_eq!(
            followed,
            ["tokens", "confirmed", "bindings", "tenants", "placement", "followed", "secrets", "plugins"]
        );
    }
}
