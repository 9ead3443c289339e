//! Walks over what is stored, for coordinators: on threads that may block, and few at a time, so that clients' requests
//! hardly notice.

use std::time::Duration;

use tokio::sync::oneshot;
use tonic::Status;
use witan_wire::Malformed;
use witan_wire::range::{drop_from_wire, dropped_to_wire, page_to_wire, scan_from_wire};
use witan_wire::v1::{DropTenantRequest, DropTenantResponse, ScanRangeRequest, ScanRangeResponse};

use super::Storage;
use crate::engine::EngineError;
use crate::scan;
use crate::store::Store;

/// Pieces of walks that may be under way on a node.
pub(super) const WALKS: usize = 2;
/// How long a piece waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// Answers with a page of records.
pub(super) async fn scan(storage: &Storage, request: ScanRangeRequest) -> Result<ScanRangeResponse, Status> {
    meant(storage, &request.node_id)?;
    let asked = scan_from_wire(request).map_err(malformed)?;
    let durability = storage.driver.durability();
    let page = aside(storage, move |store| scan::page(store, durability, &asked)).await?;
    Ok(page_to_wire(page))
}

/// Removes a stretch of a tenant.
pub(super) async fn drop_tenant(storage: &Storage, request: DropTenantRequest) -> Result<DropTenantResponse, Status> {
    meant(storage, &request.node_id)?;
    let (tenant, after) = drop_from_wire(request).map_err(malformed)?;
    let dropped = aside(storage, move |store| scan::drop_tenant(store, &tenant, after.as_ref())).await?;
    Ok(dropped_to_wire(dropped))
}

/// Does a piece of a walk beside the shards.
async fn aside<T: Send + 'static>(
    storage: &Storage,
    work: impl FnOnce(&Store) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, Status> {
    let turn = tokio::time::timeout(TURN_WITHIN, storage.walks.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(Status::resource_exhausted("the node walks for others; try again later"));
    };
    let (answer, answered) = oneshot::channel();
    storage.driver.aside(Box::new(move |store| {
        // Whoever has gone needs no answer.
        let _ = answer.send(work(store));
        drop(turn);
    }));
    let done = answered.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
    done.map_err(|error| match error {
        EngineError::Full => Status::resource_exhausted(error.to_string()),
        EngineError::Broken(_) => Status::internal(error.to_string()),
    })
}

fn meant(storage: &Storage, node: &str) -> Result<(), Status> {
    if node.is_empty() || node == storage.node.as_str() {
        return Ok(());
    }
    Err(Status::failed_precondition(format!("this is node {}, not {node:?}", storage.node)))
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}
