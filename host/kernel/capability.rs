//! Abilities that nodes and coordinators name to each other, for what a previous version does not have. Nothing that one of them would not
//! understand is sent to it, or stored where it may read it.

/// Reads records of codec 2 and contexts of version 2, and carries out [`crate::replica::Ask::Names`] and [`crate::replica::Ask::Unpin`].
pub const NAMES: &str = "names";

/// Of a coordinator: it counts nothing that a store acknowledges which is not on record. Of a node: it refuses every coordinator that does
/// not name this, with [`crate::replica::ReplicaError::StaleEpoch`], from when it has learned that its store is not on record.
pub const STANDING: &str = "standing";

/// Of a node: it keeps [fences](crate::fence) and refuses requests below them. Of a coordinator: its requests carry the revision of the
/// metadata store up to which it follows changes, and it begins again what a fence refuses.
pub const FENCES: &str = "fences";

/// Of a coordinator: it looks for an idempotency record under its short name in Redis as well, and reads the form that it has there.
pub const SMALL_RECORDS: &str = "small-records";

/// Of a node: it [clears](crate::scan::Clear) rows, and remembers for which epoch; its pages may be asked for under an epoch. Of a
/// coordinator: it knows versions of the ring, and tenants that [move](crate::placement).
pub const MOVES: &str = "moves";

/// Of a node: it carries out [`crate::replica::Ask::Collect`]. Of a coordinator: it fences the replicas of a tenant before records are
/// copied for a [placement](crate::placement) change, so that nobody [collects](crate::burial) who does not know of it.
pub const COLLECT: &str = "collect";

/// Of a node: deadlines of requests count from when they were [sent](crate::age), and it reports its monotonic clock. Of a coordinator: it
/// says with every batch of requests when that was sent, and changes nothing under a deadline later than [`crate::age`] allows.
pub const AGES: &str = "ages";

/// Of a node: it answers what the [digests](crate::digest) of its rows are.
pub const DIGESTS: &str = "digests";

/// Of a coordinator: it knows that nodes have zones, by which the [ring](crate::ring) places keys, and that what a node is in the ring may
/// change.
pub const ZONES: &str = "zones";

/// Of a node: it keeps rows of every [generation](crate::placement::Placed::generation) of a tenant apart. Of a coordinator: it knows that
/// a tenant's record names one.
pub const GENERATIONS: &str = "generations";
/// Of a coordinator: it fills a store that an operator has asked to fill, reads placement changes of that kind, and asks a node last that
/// is under maintenance.
pub const MAINTENANCE: &str = "maintenance";

/// Of a coordinator: it reads bindings that have a [candidate](crate::candidate), asks the candidate and reports of it, and loads what a
/// slot is to have next.
pub const CANDIDATES: &str = "candidates";

/// Of a coordinator: it knows that plugins may belong to a tenant, and shows them to nobody else.
pub const OWNERS: &str = "owners";

/// Of a coordinator: it loads plugins of [classes](crate::class) that have to be granted, and knows who has which.
pub const CLASSES: &str = "classes";

/// What a coordinator of this version names with its lease.
pub const OF_COORDINATORS: [&str; 12] =
    [NAMES, SMALL_RECORDS, FENCES, MOVES, AGES, COLLECT, ZONES, GENERATIONS, MAINTENANCE, CANDIDATES, OWNERS, CLASSES];

/// What a metadata store keeps of the version that has created it. Capabilities that came with one version are not listed one by one: who
/// named the first of them had them all.
pub const OF_FOUNDERS: [&str; 1] = [NAMES];
