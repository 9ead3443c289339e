//! Which of a node's stores may be used.
//!
//! The metadata store records, for each node, the id of the store that holds the node's data. A node that comes back with another
//! store (a replaced disk, an empty folder, a disk that is not mounted) has lost data: in that store, missing records are
//! indistinguishable from records that were never written. Such a store is used for nothing until a repair has admitted it. Then it is
//! sent merges, which count towards no level, until the repair has filled it and put it on record.

use std::time::Duration;

use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Commit, Met, Metadata, StoreError, StoreState};
use witan_kernel::scan::Trust;

/// Decides what the store may be used for that `node` has reported with the commit number `commit`. `before` is the highest one that was
/// known here before the node was asked. The first store that a node reports is put on record.
///
/// # Errors
/// The metadata store did not answer: nothing may be concluded about the node.
pub async fn meet(
    metadata: &dyn Metadata,
    node: &NodeId,
    store: StoreId,
    commit: u64,
    before: u64,
) -> Result<Met, StoreError> {
    let met = metadata.meet_store(node, store, commit, before).await?;
    if met.trust == Trust::Unadmitted && met.state == StoreState::SetBack {
        tracing::error!(
            %node, %store, commit, known = met.commit.max(before),
            "the node's store was set back: it has committed less than it had before (a restored copy or snapshot, or a disk that lost \
             writes). It is not used. Move its folder aside, start the node with an empty one, and run `witan repair`"
        );
    }
    if met.trust == Trust::Whole || met.is_suspect(commit) {
        return Ok(met);
    }
    if Fault::NewStoreRecorded.is_on() {
        metadata.admit_store(node, met.on_record, store).await?;
        metadata.replace_store(node, met.on_record, store).await?;
        return Ok(Met::whole(store));
    }
    Ok(if Fault::NewStoreBelieved.is_on() { Met::whole(store) } else { met })
}

/// Records the progress of stores, so that every coordinator notices when one of them is set back. Remembers what it recorded last.
#[derive(Debug, Default)]
pub struct Progress(Vec<Commit>);

/// How often the progress of stores should be recorded. A store that is set back by less than this while all coordinators are
/// restarted goes unnoticed.
pub const NOTE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Records those of the `commits` that have changed.
    ///
    /// # Errors
    /// The metadata store did not answer; they are recorded the next time.
    pub async fn note(&mut self, metadata: &dyn Metadata, commits: Vec<Commit>) -> Result<(), StoreError> {
        let changed: Vec<Commit> = commits.iter().filter(|new| !self.0.contains(new)).cloned().collect();
        if !changed.is_empty() {
            metadata.note_commits(changed).await?;
            self.0 = commits;
        }
        Ok(())
    }
}
