//! Placement changes on record: which were asked for, how far they are, and what they leave to be cleaned.

use super::{Answer, BindingChange, StorageNode};
#[cfg(doc)]
use super::{BindingStore, PlacementStore, StoreError};
use crate::name::{NodeId, StoreId, TenantId, Zone};
use crate::placement::Placed;
use crate::ring::Member;
use crate::tenant::Tenant;

/// Most placement changes that are kept on record; of those that have ended, the oldest are forgotten.
pub const MIGRATIONS: usize = 1000;
/// Longest text that is kept of what a placement change waits for, or why it failed, in bytes.
pub const MIGRATION_TEXT_BYTES: usize = 500;
/// How the message of a placement change begins that cannot be carried out since the routing hook of the coming generation faults. Such a
/// message is kept, and the change ends as [failed](MigrationStatus::Failed).
pub const HOOK_FAULTS: &str = "hook faults on key ";
/// Most leftovers that one question is answered with.
pub const LEFTOVERS: usize = 1000;

/// What a placement change changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlacementChange {
    /// A node joins the ring.
    AddNode(StorageNode),
    /// A node leaves the ring.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// It is taken for lost: nothing waits for it, and its store is never used again.
        force: bool,
    },
    /// A member of the ring gets another number of virtual nodes, another zone, or both.
    UpdateNode {
        /// The node.
        node: NodeId,
        /// Its virtual nodes, 1..=4096; `None`: as before.
        virtual_nodes: Option<u32>,
        /// Its zone; `None`: as before.
        zone: Option<Zone>,
    },
    /// A node's store is replaced by the one that it shows: that is admitted at once, and filled. The ring stays as it is.
    ReplaceStore {
        /// The node.
        node: NodeId,
        /// The store on record.
        from: StoreId,
        /// The one that is filled in its place.
        to: StoreId,
        /// Also if too few other replicas are left to know what it has to hold.
        accept_loss: bool,
    },
    /// The keys of a tenant get another number of replicas.
    ReplicationFactor {
        /// The tenant.
        tenant: TenantId,
        /// Replicas, 1..=5.
        to: u8,
    },
    /// The records of a tenant move to rows of another generation, which another partition hook places. Which hook that is, is on record
    /// with the tenant's binding before the change is.
    Generation {
        /// The tenant.
        tenant: TenantId,
        /// The generation: the one above [`Tenant::generations`].
        generation: u32,
    },
}

/// The state of a placement change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MigrationStatus {
    /// Nothing has moved yet.
    Pending,
    /// Records move.
    InProgress,
    /// It is done, also what it left.
    Completed,
    /// It was given up; everything is as it was before.
    Cancelled,
    /// The same, but nobody has asked for that: it cannot be carried out, for the reason in its message.
    Failed,
}

impl MigrationStatus {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Reads the API's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Pending, Self::InProgress, Self::Completed, Self::Cancelled, Self::Failed];
        all.into_iter().find(|it| it.as_str() == text)
    }

    /// True when nothing will change any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Failed)
    }
}

/// A placement change on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its number: the revision of the metadata store that has recorded it. Later ones have higher numbers.
    pub number: u64,
    /// What it changes.
    pub change: PlacementChange,
    /// For a change of nodes, the version of the ring that it makes; for one of a tenant, the ring's version when it was recorded.
    pub ring: u64,
    /// For a change of a tenant, the replication factor of before; else 0.
    pub before: u8,
    /// For an update of a node, what it was before.
    pub was: Option<Member>,
    /// Its state.
    pub status: MigrationStatus,
    /// Somebody has asked to give it up.
    pub cancel_requested: bool,
    /// How far it is.
    pub progress: MigrationProgress,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// When the first record moved: Unix time, milliseconds.
    pub started_at_ms: Option<u64>,
    /// When it ended: Unix time, milliseconds.
    pub finished_at_ms: Option<u64>,
}

/// How far a placement change is. None of its numbers falls, nor does the share of `keys_done` in `keys_total`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Tenants whose records are where they belong.
    pub tenants_done: u64,
    /// Tenants that it concerns.
    pub tenants_total: u64,
    /// Records that were compared and, where needed, copied.
    pub keys_done: u64,
    /// Records that there are, an estimate; at least `keys_done`. If it turns out too low, it grows as fast as `keys_done` at most.
    pub keys_total: u64,
    /// Bytes of records that were sent.
    pub bytes_done: u64,
    /// What is done now, or what it waits for, for people: at most [`MIGRATION_TEXT_BYTES`].
    pub message: String,
}

/// A step of a tenant's move that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveTenant {
    /// [`crate::placement::Step::Preparing`]: also to prepare a move anew, under a later epoch.
    Prepare(Placed),
    /// [`crate::placement::Step::DualWrite`].
    DualWrite,
    /// [`crate::placement::Step::Cutover`].
    Cutover,
    /// The records are where they were to be moved. These nodes are left with rows.
    Finish(Vec<NodeId>),
    /// The move is given up. These nodes are left with rows that count nowhere.
    GiveUp(Vec<NodeId>),
}

/// A tenant, and the revision that has published its present state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// As it is stored now.
    pub tenant: Tenant,
    /// The revision.
    pub epoch: u64,
}

/// Rows of a tenant on a node that holds no replica of them any longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The tenant.
    pub tenant: TenantId,
    /// The node.
    pub node: NodeId,
    /// The placement under which it had them.
    pub from: Placed,
    /// The placement under which it has none.
    pub to: Placed,
    /// They may be the only copies of what was acknowledged at level `one`: each is merged into the present replicas before it is dropped.
    /// Those of a move that was given up are not.
    pub hand_over: bool,
    /// The revision that has published it. The node refuses who has not followed it before the rows are read.
    pub epoch: u64,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
}

/// Placement changes on record. The rules of what is written are in [`moves`](super::moves).
pub trait MigrationStore: Send + Sync + 'static {
    /// Records a placement change, and in the same transaction makes the ring or the wish that it needs. The same change as one that has
    /// not ended, and was neither taken back nor undone by a later one, is not recorded again: that one is returned.
    /// [`StoreError::Refused`] outside the limits, or if [`MIGRATIONS`] have not ended.
    ///
    /// - A node that joins is put on record, and is a member of the ring's next version. [`StoreError::Exists`] if it is on record already.
    /// - A node that leaves is no member of the ring's next version, and is [draining](super::NodeStatus::Draining). If it is taken for
    ///   lost, its stores are retired, and what it has left over is forgotten. [`StoreError::Missing`] if it is no member of the newest
    ///   ring; one that is leaving may be taken for lost all the same, and makes no version then. [`StoreError::Refused`], naming a tenant,
    ///   if fewer nodes would remain than a tenant has, or is to have, replicas.
    /// - A node that gets other virtual nodes or another zone has them in the ring's next version. [`StoreError::Missing`] if it is not on
    ///   record; [`StoreError::Refused`] if it is no member of the newest ring, outside the limits, or if nothing would change.
    /// - A store that is to be replaced: the other one is [admitted](PlacementStore::admit_store), with the errors of that.
    ///   [`StoreError::Missing`] if the node is not on record; [`StoreError::Refused`] if it is no member of the newest ring;
    ///   [`StoreError::Conflict`] while it joins or is updated.
    /// - A tenant is to have another replication factor ([`Tenant::wanted_factor`]). [`StoreError::Missing`]; [`StoreError::Refused`] out
    ///   of range or beyond the newest ring's nodes; [`StoreError::Conflict`] while another change of its factor has not ended.
    /// - A tenant is to have rows of another generation ([`Tenant::wanted_generation`], [`Tenant::generations`]). [`StoreError::Missing`];
    ///   [`StoreError::Conflict`] if it is not the one above the highest so far, and while another change of its generation has not
    ///   ended.
    fn change_placement(&self, change: PlacementChange, now_ms: u64) -> Answer<Migration>;

    /// Saves the record of a tenant's routing hook, and records the placement change that follows from it, in one transaction: either both
    /// are on record, or neither. As [`BindingStore::change_binding_record`] and [`Self::change_placement`], with the errors of both.
    /// Returns the record's new version, and the change.
    fn swap_hook(&self, record: BindingChange, change: PlacementChange, now_ms: u64) -> Answer<(u64, Migration)>;

    /// One placement change; [`StoreError::Missing`].
    fn migration(&self, number: u64) -> Answer<Migration>;

    /// Placement changes, the newest first, before `before`; at most `limit` (1..=1000).
    fn migrations(&self, before: Option<u64>, limit: u32) -> Answer<Vec<Migration>>;

    /// Keeps how far a placement change is, and sets its state: pending becomes in progress, and both may end; what has ended stays as it
    /// is, and what is being taken back does not end as completed. Numbers never fall. This is no change that others follow.
    /// [`StoreError::Missing`].
    fn note_migration(
        &self,
        number: u64,
        status: MigrationStatus,
        progress: MigrationProgress,
        now_ms: u64,
    ) -> Answer<()>;

    /// Asks to give a placement change up, and in the same transaction takes back what [`Self::change_placement`] has made: a node that was
    /// to join is no member of the ring's next version, one that was to leave is one again, one that was updated is as before, a tenant
    /// keeps its factor, or its generation, a store that was to be filled is not [admitted](super::StoreState::Filling) any longer. What
    /// has moved already moves back. Returns it as it is; one that has ended, or was taken back before, is returned unchanged.
    /// [`StoreError::Missing`]; [`StoreError::Conflict`] if the node is taken for lost or has left already, if the store is filled, if
    /// later changes of nodes rest on it, if the ring would have too few nodes for a tenant's replicas, or if the tenant has the
    /// generation already: none is used again.
    fn cancel_migration(&self, number: u64, now_ms: u64) -> Answer<Migration>;

    /// Publishes a step of the move of a tenant that is still at `version`. The tenant is returned as stored, one version later.
    ///
    /// [`MoveTenant::Finish`] sets ring, replication factor and generation, and forgets the wish if it is fulfilled; a factor that was
    /// withdrawn before is wished again, so that the tenant moves back. Nodes that are left with rows are recorded as [`Leftover`]s in
    /// the same transaction,
    /// except nodes that are not on record, and those whose store on record is retired: it is never used again, so nothing waits for it.
    /// One of the same node and placements takes the place of an earlier one. [`StoreError::Conflict`] when the tenant is at another
    /// version; [`StoreError::Missing`], also when it is deleted; [`StoreError::Refused`] for a step that does not follow from the present
    /// one, and for one to a generation that is neither the present nor the wanted one.
    fn move_tenant(&self, id: &TenantId, version: u64, step: MoveTenant, now_ms: u64) -> Answer<Published>;

    /// Leftovers of one tenant, or of all, by tenant, node and epoch, after this tenant and node; at most [`LEFTOVERS`]. A node may have
    /// several of a tenant, of other rows each; a page has all or none of them. Those of deleted tenants are none: the
    /// removal of their records is owed anyway.
    fn leftovers(&self, tenant: Option<&TenantId>, after: Option<super::Owing>) -> Answer<Vec<Leftover>>;

    /// A node has no rows left over of a tenant, as of the leftover of this epoch, and of no other. This is no change that others follow.
    fn leftover_cleaned(&self, tenant: &TenantId, node: &NodeId, epoch: u64) -> Answer<()>;

    /// Forgets versions of the ring but the newest, and nodes that have left it, to which no tenant that is not deleted, no move and no
    /// leftover refers. A node's stores are retired then, and it owes nothing any longer. True if anything was forgotten.
    fn forget_rings(&self, now_ms: u64) -> Answer<bool>;
}
