//! Scans of stored records for coordinators, the removal of tenants and of ranges, and fences: on threads that may block, and few at a
//! time, so that they hardly affect the requests of clients.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tonic::Status;
use witan_kernel::replica::ReplicaError;
use witan_wire::Malformed;
use witan_wire::digest::{digested_to_wire, digests_from_wire};
use witan_wire::range::{
    clear_from_wire, cleared_to_wire, drop_from_wire, dropped_to_wire, fence_from_wire, fenced_to_wire,
    fingerprint_page_to_wire, page_to_wire, scan_from_wire,
};
use witan_wire::v1::{
    ClearRangeRequest, ClearRangeResponse, DigestsRequest, DigestsResponse, DropTenantRequest, DropTenantResponse,
    RaiseFenceRequest, RaiseFenceResponse, ScanRangeRequest, ScanRangeResponse,
};

use super::Storage;
use crate::clear::{Clearing, clear};
use crate::engine::EngineError;
use crate::scan;
use crate::store::Store;

/// Most steps of scans that run concurrently on a node.
pub(super) const SCANS: usize = 2;
/// Most fences that are raised concurrently on a node. They have turns of their own, so that no change waits for scans.
pub(super) const FENCES: usize = 2;
/// Most clears that run concurrently on a node: a store drops rows for one at a time. They have turns of their own, too.
pub(super) const CLEARS: usize = 1;
/// Most answers with digests that are made concurrently on a node: only one counts rows at a time.
pub(super) const DIGESTS: usize = 1;
/// How long a step may wait for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns a page of records.
pub(super) async fn scan(storage: &Storage, request: ScanRangeRequest) -> Result<ScanRangeResponse, Status> {
    check_node(storage, &request.node_id)?;
    let fingerprints = request.fingerprints;
    let wanted = scan_from_wire(request).map_err(malformed)?;
    let durability = storage.driver.durability();
    // A client that lists keys waits for a page of abridged records; for others nobody does.
    let haste = if wanted.abridged { Haste::Awaited } else { Haste::Patient };
    let page = run_among(&storage.scans, storage, haste, move |store| {
        let page = scan::page_under(store, durability, &wanted)?;
        Ok(page.map(|page| match fingerprints {
            true => fingerprint_page_to_wire(page.fingerprints()),
            false => page_to_wire(page),
        }))
    });
    page.await?.ok_or_else(stale)
}

/// Removes a batch of a tenant's records.
pub(super) async fn drop_tenant(storage: &Storage, request: DropTenantRequest) -> Result<DropTenantResponse, Status> {
    check_node(storage, &request.node_id)?;
    let (tenant, after) = drop_from_wire(request).map_err(malformed)?;
    let drop = move |store: &Store| scan::drop_tenant(store, &tenant, after.as_ref());
    let dropped = run_among(&storage.scans, storage, Haste::Awaited, drop).await?;
    Ok(dropped_to_wire(dropped))
}

/// Raises a fence.
pub(super) async fn raise_fence(storage: &Storage, request: RaiseFenceRequest) -> Result<RaiseFenceResponse, Status> {
    check_node(storage, &request.node_id)?;
    let (tenant, epoch) = fence_from_wire(request).map_err(malformed)?;
    let raise = move |store: &Store| store.raise_fence(tenant.as_ref(), epoch).map(|()| store.id());
    let store = run_among(&storage.fences, storage, Haste::Awaited, raise).await?;
    Ok(fenced_to_wire(store))
}

/// Drops rows for a placement change.
pub(super) async fn clear_range(storage: &Storage, request: ClearRangeRequest) -> Result<ClearRangeResponse, Status> {
    check_node(storage, &request.node_id)?;
    let wanted = clear_from_wire(request).map_err(malformed)?;
    match run_among(&storage.clears, storage, Haste::Patient, move |store| clear(store, &wanted)).await? {
        Clearing::Done(cleared) => Ok(cleared_to_wire(cleared, true)),
        Clearing::More(cleared) => Ok(cleared_to_wire(cleared, false)),
        Clearing::Stale => Err(stale()),
        Clearing::NotOnRecord => Err(Status::failed_precondition(format!(
            "the store of node {} is not the one on record, or is still being filled: nothing was dropped; try again when it is whole",
            storage.node
        ))),
    }
}

/// Returns digests.
pub(super) async fn digests(storage: &Storage, request: DigestsRequest) -> Result<DigestsResponse, Status> {
    check_node(storage, &request.node_id)?;
    let wanted = digests_from_wire(request).map_err(malformed)?;
    let durability = storage.driver.durability();
    let driver = Arc::clone(&storage.driver);
    let rest = move |long| driver.rest(long);
    let answer = move |store: &Store| crate::digest::digests(store, durability, &wanted, &rest);
    run_among(&storage.digests, storage, Haste::Awaited, answer).await.map(|digests| digested_to_wire(&digests))
}

/// The answer to a call under an epoch that is too early. No other answer of a node has this code.
fn stale() -> Status {
    Status::aborted(ReplicaError::StaleEpoch.to_string())
}

/// Who waits for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// A client, or it holds what shards wait for again and again.
    Awaited,
    /// Nobody.
    Patient,
}

/// Runs work outside the shards, once one of `turns` is free.
async fn run_among<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    storage: &Storage,
    haste: Haste,
    work: impl FnOnce(&Store) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, Status> {
    let turn = tokio::time::timeout(TURN_TIMEOUT, turns.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(Status::resource_exhausted("too many calls of this kind are running on the node; try again later"));
    };
    let (answer, answered) = oneshot::channel();
    let job = Box::new(move |store: &Store| {
        // An error means that the caller has disconnected.
        let _ = answer.send(work(store));
        drop(turn);
    });
    match haste {
        Haste::Awaited => storage.driver.spawn(job),
        Haste::Patient => storage.driver.spawn_patient(job),
    }
    let done = answered.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
    done.map_err(|error| match error {
        EngineError::Full => Status::resource_exhausted(error.to_string()),
        EngineError::Broken(_) => Status::internal(error.to_string()),
    })
}

/// An error if the caller meant another node.
fn check_node(storage: &Storage, node: &str) -> Result<(), Status> {
    if node.is_empty() || node == storage.node.as_str() {
        return Ok(());
    }
    Err(Status::failed_precondition(format!("this is node {}, not {node:?}", storage.node)))
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}
