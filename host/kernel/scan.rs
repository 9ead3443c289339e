//! Scans of many records: the requests, the answers, and their order.
//!
//! Nodes keep records by token, then by space (shorter names first, equally long ones by their bytes), then by key:
//! [`stored_order`]. A walk goes from page to page; each page says after which place the next one begins. [`Join`] walks several
//! replicas side by side, [`difference`] finds what some of them lack, and a [`ReplicaRange`](crate::ring::ReplicaRange) says which
//! nodes to walk for which tokens.

mod compare;
mod join;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::digest::{Digests, Wanted};
use crate::name::{Key, NodeId, StoreId, TenantId};
use crate::record::{Encoded, Fingerprint};
use crate::replica::{Place, ReplicaError};
use crate::space::{SPACE_BYTES, Space};

pub use compare::{Difference, Unmergeable, difference, difference_kept, difference_routine, merged};
pub use join::{Disordered, Held, Join, Joined, Step};

/// Most records on a page: bounds the time that a node spends on it.
pub const PAGE_RECORDS: u32 = 1000;
/// Bytes of records after which a page ends: bounds the memory that a page takes. The record that reaches it is still on the page,
/// however large.
pub const PAGE_BYTES: u32 = 1 << 20;

/// The order in which nodes keep records.
pub fn stored_order(a: &Place, b: &Place) -> Ordering {
    let (space_a, space_b) = (a.space.bytes(), b.space.bytes());
    let by_token = a.token.cmp(&b.token);
    let by_space = || space_a.len().cmp(&space_b.len()).then_with(|| space_a.cmp(space_b));
    by_token.then_with(by_space).then_with(|| a.key.bytes().cmp(b.key.bytes()))
}

/// A request for one page of the records between two tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Records of this tenant in this generation only; `None`: of all.
    pub space: Option<Space>,
    /// Keys with this prefix only.
    pub prefix: Bytes,
    /// The first token.
    pub from: u64,
    /// The last token, included.
    pub to: u64,
    /// Records after this place only.
    pub after: Option<Place>,
    /// Values longer than [`ABRIDGED_BYTES`](crate::record::ABRIDGED_BYTES) are replaced by their digests: enough to see which values are
    /// live.
    pub abridged: bool,
    /// Most records.
    pub records: u32,
    /// Bytes of records after which the page ends.
    pub bytes: u32,
    /// The revision up to which the coordinator followed all changes when it began, if the page must not come from a node whose
    /// [fence](crate::fence) for the tenant is higher; 0: from any. Needs a space.
    pub epoch: u64,
}

impl Scan {
    /// Whole records of all tenants between two tokens, in pages of the usual size.
    pub fn between(from: u64, to: u64) -> Self {
        Self {
            space: None,
            prefix: Bytes::new(),
            from,
            to,
            after: None,
            abridged: false,
            records: PAGE_RECORDS,
            bytes: PAGE_BYTES,
            epoch: 0,
        }
    }
}

/// Most ranges of one [`Clear`]: those that a node can get or lose of a ring of the usual size are a few thousand.
pub const CLEARED_RANGES: usize = 1 << 16;

/// Rows that a node is to drop for a [placement change](crate::placement).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clear {
    /// Of this tenant in this generation. Fences and marks are those of the tenant.
    pub space: Space,
    /// With these tokens, at most [`CLEARED_RANGES`].
    pub ranges: Vec<crate::placement::Tokens>,
    /// The revision that has published the step for which it is done.
    pub epoch: u64,
    /// Why.
    pub purpose: Purpose,
}

/// Why rows are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The node gets them anew. It raises the tenant's fence to the epoch, drops the rows, and remembers the epoch, durably. Repeated under
    /// the epoch that it remembers, it drops nothing.
    Enter,
    /// The node has lost them, or was to get them in a move that was given up. It raises the tenant's fence to the epoch and drops them,
    /// unless it has entered under a later epoch.
    Leave,
}

/// The answer to a [`Clear`] that is done, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    /// The store that has done it.
    pub store: StoreId,
    /// It was done before, under this epoch: nothing was dropped. Never true for [`Purpose::Leave`].
    pub already: bool,
    /// Rows that were dropped.
    pub records: u64,
}

/// A page of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T = Encoded> {
    /// The store that has answered.
    pub store: StoreId,
    /// The records, in stored order.
    pub found: Vec<Found<T>>,
    /// After which place the next page begins; `None` on the last one. It may lie beyond everything found.
    pub next: Option<Place>,
}

impl Page {
    /// The fingerprints of its records.
    pub fn fingerprints(self) -> Page<Fingerprint> {
        let of = |Found { place, record }: Found| Found { place, record: record.map(|record| record.fingerprint()) };
        Page { store: self.store, found: self.found.into_iter().map(of).collect(), next: self.next }
    }
}

/// A record on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T = Encoded> {
    /// The record's place.
    pub place: Place,
    /// The record, or what was asked for of it; `None`: the node cannot read it.
    pub record: Option<T>,
}

/// One step of a tenant's removal from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Records removed, durably.
    pub records: u64,
    /// The place after which to go on; `None`: no records of the tenant are left on the node.
    pub next: Option<Place>,
}

/// The removal of a tenant's records from all nodes, as far as it went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Records removed; each replica counts.
    pub records: u64,
    /// Nodes that may still hold some, with the reason.
    pub incomplete: BTreeMap<NodeId, String>,
}

/// What a node's store may be used for. In a store other than the one on record, a record that was lost looks like one that was never
/// written, so nothing may be concluded from its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Everything: it is the store on record.
    Whole,
    /// Merges only, and their acknowledgements count towards no level: a repair has admitted the store in place of the one on record,
    /// and is filling it.
    Filling,
    /// Nothing. The disk was wiped, replaced or not mounted, and no repair has admitted the new store; or the store was replaced by
    /// another one.
    Unadmitted,
}

impl Trust {
    /// Its spelling in answers and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Filling => "filling",
            Self::Unadmitted => "unadmitted",
        }
    }

    /// What is wrong with the store and what to do about it, for people; nothing if it may be used for everything.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Filling => Some(
                "its new store receives writes, which do not count, until it has been filled, by itself or by `witan repair`, which prints \
                 what is missing",
            ),
            Self::Unadmitted => Some(
                "its store is not the one on record (wiped, replaced, not mounted, retired or set back) and is not used; bring the old \
                 disk back, or run `witan repair` to fill this one from the other nodes; one that was retired is never filled: start the \
                 node with an empty folder",
            ),
        }
    }
}

/// How full a node is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fullness {
    /// Number of records, approximately. 0 only when there are none.
    pub keys: u64,
    /// Usage of the file system that holds the store, 0..=100.
    pub disk_usage_percent: f32,
    /// Bytes of the store; 0: not reported.
    pub bytes: u64,
    /// Reads that it has answered since the node started; 0: not reported.
    pub reads: u64,
    /// Events that it has minted since the node started; 0: not reported.
    pub mints: u64,
}

/// The store of a reachable node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The store's id, as the node reported it.
    pub store: StoreId,
    /// What the store may be used for.
    pub trust: Trust,
}

impl Standing {
    /// True when it is the store on record.
    pub fn is_whole(&self) -> bool {
        self.trust == Trust::Whole
    }
}

/// The storage nodes, as seen by scans.
pub trait Ranges: Send + Sync + 'static {
    /// A node's store and what it may be used for; `None` while the node cannot be reached. Cheap.
    fn standing(&self, node: &NodeId) -> Option<Standing>;

    /// A page of a node's records, whatever its store may be used for. Bounded in time.
    fn scan(&self, node: &NodeId, scan: Scan) -> impl Future<Output = Result<Page, ReplicaError>> + Send;

    /// A page of the fingerprints of a node's whole records, of as many as a page of the records would have. Bounded in time. A node whose
    /// version knows no fingerprints sends the records.
    fn fingerprints(
        &self,
        node: &NodeId,
        scan: Scan,
    ) -> impl Future<Output = Result<Page<Fingerprint>, ReplicaError>> + Send {
        let scanned = self.scan(node, scan);
        async { scanned.await.map(Page::fingerprints) }
    }

    /// Whether a node has named [`crate::capability::DIGESTS`] in its last handshake. Cheap.
    fn has_digests(&self, node: &NodeId) -> bool {
        let _ = node;
        false
    }

    /// Digests of a node's records, whatever its store may be used for. Bounded in time. Only for a node that [has
    /// them](Self::has_digests).
    fn digests(&self, node: &NodeId, wanted: Wanted) -> impl Future<Output = Result<Digests, ReplicaError>> + Send {
        let _ = wanted;
        let node = node.clone();
        async { Err(ReplicaError::NotSent(node)) }
    }

    /// Asks again what the stores of nodes may be used for, because that has changed for some of them.
    fn stores_changed(&self) -> impl Future<Output = ()> + Send;

    /// Removes some of a tenant's records, of all generations, from a node. Bounded in time. Repeating it is harmless.
    fn drop_tenant(
        &self,
        node: &NodeId,
        tenant: TenantId,
        after: Option<Place>,
    ) -> impl Future<Output = Result<Dropped, ReplicaError>> + Send;

    /// Raises the [fence](crate::fence) of a tenant, or of all tenants, at a node, and returns the store that has it durably. Bounded in
    /// time. Repeating it is harmless. [`ReplicaError::Broken`] when the node's version knows no fences.
    fn raise_fence(
        &self,
        node: &NodeId,
        tenant: Option<&TenantId>,
        epoch: u64,
    ) -> impl Future<Output = Result<StoreId, ReplicaError>> + Send;

    /// Has a node drop rows for a placement change. Bounded in time: [`ReplicaError::Late`] when there was more than could be dropped,
    /// and repeating it goes on. [`ReplicaError::StaleEpoch`], and nothing was dropped, when the node has entered under a later epoch, or,
    /// to enter, when the tenant's fence is above the epoch; [`ReplicaError::Broken`] when its version cannot.
    fn clear(&self, node: &NodeId, clear: Clear) -> impl Future<Output = Result<Cleared, ReplicaError>> + Send;
}

impl<T: Ranges> Ranges for std::sync::Arc<T> {
    fn standing(&self, node: &NodeId) -> Option<Standing> {
        (**self).standing(node)
    }

    fn scan(&self, node: &NodeId, scan: Scan) -> impl Future<Output = Result<Page, ReplicaError>> + Send {
        (**self).scan(node, scan)
    }

    fn fingerprints(
        &self,
        node: &NodeId,
        scan: Scan,
    ) -> impl Future<Output = Result<Page<Fingerprint>, ReplicaError>> + Send {
        (**self).fingerprints(node, scan)
    }

    fn has_digests(&self, node: &NodeId) -> bool {
        (**self).has_digests(node)
    }

    fn digests(&self, node: &NodeId, wanted: Wanted) -> impl Future<Output = Result<Digests, ReplicaError>> + Send {
        (**self).digests(node, wanted)
    }

    fn stores_changed(&self) -> impl Future<Output = ()> + Send {
        (**self).stores_changed()
    }

    fn drop_tenant(
        &self,
        node: &NodeId,
        tenant: TenantId,
        after: Option<Place>,
    ) -> impl Future<Output = Result<Dropped, ReplicaError>> + Send {
        (**self).drop_tenant(node, tenant, after)
    }

    fn raise_fence(
        &self,
        node: &NodeId,
        tenant: Option<&TenantId>,
        epoch: u64,
    ) -> impl Future<Output = Result<StoreId, ReplicaError>> + Send {
        (**self).raise_fence(node, tenant, epoch)
    }

    fn clear(&self, node: &NodeId, clear: Clear) -> impl Future<Output = Result<Cleared, ReplicaError>> + Send {
        (**self).clear(node, clear)
    }
}

/// Number of other whole replicas from which a wiped replica can be filled without missing an acknowledged write: any that many share a
/// node with every quorum that may have acknowledged it, not counting the wiped node.
pub fn whole_needed(replication_factor: u8) -> u8 {
    let quorum = crate::tenant::Level::Quorum.required(replication_factor);
    replication_factor - quorum + 1
}

/// Version of a cursor's encoding.
const CURSOR: u8 = 1;

/// Writes a place as bytes that [`from_cursor`] reads: version, token, length of the space, space, key.
pub fn to_cursor(place: &Place) -> Bytes {
    let (space, key) = (place.space.bytes(), place.key.bytes());
    let mut out = BytesMut::with_capacity(11 + space.len() + key.len());
    out.put_u8(CURSOR);
    out.put_u64(place.token);
    // Spaces have 267 bytes at most.
    out.put_u16(u16::try_from(space.len()).unwrap_or(u16::MAX));
    out.put_slice(space);
    out.put_slice(key);
    out.freeze()
}

/// Reads a cursor; `None` when it is none.
pub fn from_cursor(bytes: &Bytes) -> Option<Place> {
    let [CURSOR, rest @ ..] = &bytes[..] else { return None };
    let (token, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length > rest.len() || length > SPACE_BYTES || rest.len() - length > crate::limit::KEY_BYTES {
        return None;
    }
    let (space, key) = rest.split_at(length);
    Some(Place {
        token: u64::from_be_bytes(*token),
        space: Space::from_trusted(bytes.slice_ref(space)),
        key: Key::from_trusted(bytes.slice_ref(key)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;
    use crate::limit::KEY_BYTES;
    use crate::tenant::Level;

    fn place(token: u64, tenant: Vec<u8>, key: Vec<u8>) -> Place {
        Place { token, space: Space::from_trusted(tenant.into()), key: Key::from_trusted(key.into()) }
    }

    #[test]
    fn a_wiped_replica_is_filled_from_nodes_that_every_quorum_shares() {
        assert_eq!((1..=5).map(whole_needed).collect::<Vec<_>>(), [1, 1, 2, 2, 3]);
        for factor in 2..=5 {
            // One node of the quorum that has acknowledged is wiped; its others and the scanned nodes overlap.
            let left = Level::Quorum.required(factor) - 1;
            assert!(left + whole_needed(factor) > factor - 1);
        }
    }

    #[test]
    fn what_is_no_cursor_is_none() {
        for bytes in [&b""[..], &[1], &[2; 30], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, b't']] {
            assert_eq!(from_cursor(&Bytes::copy_from_slice(bytes)), None);
        }
    }

    #[test]
    fn a_cursor_is_as_long_as_a_tenant_and_a_key_may_be() {
        let cursor = |tenant, key| to_cursor(&place(7, vec![b't'; tenant], vec![b'k'; key]));
        for (tenant, key) in [(SPACE_BYTES, KEY_BYTES), (1, KEY_BYTES), (SPACE_BYTES, 1), (1, 1)] {
            let read = from_cursor(&cursor(tenant, key)).expect("a cursor");
            assert_eq!((read.space.bytes().len(), read.key.bytes().len(), read.token), (tenant, key, 7));
        }
        for (tenant, key) in
            [(SPACE_BYTES + 1, KEY_BYTES), (SPACE_BYTES + 1, 0), (1, KEY_BYTES + 1), (0, KEY_BYTES + 1)]
        {
            assert_eq!(from_cursor(&cursor(tenant, key)), None, "{tenant} {key}");
        }
        // The tenant fills the cursor, or says that it is longer than that.
        let whole = cursor(3, 0);
        assert!(from_cursor(&whole).is_some() && from_cursor(&whole.slice(..whole.len() - 1)).is_none());
    }

    #[test]
    fn a_page_of_everything_has_the_usual_size() {
        let scan = Scan::between(3, 9);
        assert_eq!((scan.from, scan.to, scan.space, scan.after), (3, 9, None, None));
        assert_eq!((scan.records, scan.bytes, scan.abridged, scan.prefix.len()), (1000, 1024 * 1024, false, 0));
    }

    proptest! {
        #[test]
        fn cursors_come_back(
            token: u64,
            tenant in proptest::collection::vec(any::<u8>(), 0..256),
            key in proptest::collection::vec(any::<u8>(), 0..1024),
        ) {
            let place = place(token, tenant, key);
            prop_assert_eq!(from_cursor(&to_cursor(&place)), Some(place));
        }
    }
}
