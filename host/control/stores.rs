//! Which of a node's stores may be read.
//!
//! The metadata store records, for each node, the id of the store that holds the node's data. A node that comes back with another
//! store (a replaced disk, an empty folder) has lost data: in that store, missing records are indistinguishable from records that
//! were never written. So it is written to but not read until a repair has filled the new store and put it on record.

use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Metadata, StoreError};
use witan_kernel::scan::{Trust, is_whole};

/// Decides whether `node`, which has reported `store`, may be read from. The first store that a node reports is put on record.
///
/// # Errors
/// The metadata store did not answer: nothing may be concluded about the node.
pub async fn admit(metadata: &dyn Metadata, node: &NodeId, store: StoreId) -> Result<Trust, StoreError> {
    let on_record = metadata.record_store_id(node, store).await?;
    if Fault::NewStoreRecorded.is_on() && on_record != store {
        metadata.replace_store_id(node, on_record, store).await?;
        return Ok(Trust::Whole);
    }
    Ok(if is_whole(on_record, store) { Trust::Whole } else { Trust::WriteOnly })
}
