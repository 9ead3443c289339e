//! The log of changes, through which coordinators that share a store follow each other.
//!
//! Each change gets the next revision in the transaction that makes it, so that changes become visible in revision order.

use std::pin::Pin;

use super::{Answer, Slot};
use crate::name::TenantId;

/// Changes that are kept one by one. A coordinator that has missed more reads everything again, as at its start.
pub const CHANGES: u64 = 10_000;

/// Changes since a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The newest revision: the next query starts here.
    pub revision: u64,
    /// False when older changes have been dropped from the log, or the store was restored to an earlier state: read everything
    /// again.
    pub complete: bool,
    /// What has changed, each subject once, ordered by its last change. Empty unless `complete`. Reading these subjects yields
    /// state at `revision` or newer.
    pub changed: Vec<Changed>,
}

/// A subject that coordinators follow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Changed {
    /// This tenant.
    Tenant(TenantId),
    /// The storage nodes.
    Nodes,
    /// The cluster's secrets.
    Secrets,
    /// The plugin artifacts.
    Artifacts,
    /// This slot's binding.
    Binding(Slot),
    /// The API tokens.
    Tokens,
    /// The coordinators: a lease was granted or released. (A lease that expires changes nothing in the store.)
    Coordinators,
}

/// Notifies of changes without a query. A hint can be lost, a change cannot, so poll [`ChangeLog::changes`] as well.
pub trait Hint: Send {
    /// Ready when there may be changes since the last hint; at once if there were some already.
    fn given(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The log of changes.
pub trait ChangeLog: Send + Sync + 'static {
    /// What has changed since revision `after`. To start following, query `u64::MAX`, which returns the revision alone, then
    /// read everything, then continue from that revision.
    fn changes(&self, after: u64) -> Answer<Changes>;

    /// A new subscription to hints: given at once for this coordinator's own changes, and for those of others when the store
    /// notifies of them.
    fn hint(&self) -> Box<dyn Hint>;
}
