//! How large things may be. Every bound of the data model stands here; each room keeps those of its own queues.

use std::time::Duration;

use smallvec::SmallVec;

/// Longest tenant id, in bytes.
pub const TENANT_BYTES: usize = 256;
/// Longest key, in bytes.
pub const KEY_BYTES: usize = 1024;
/// Largest value, in bytes. An empty value is a value.
pub const VALUE_BYTES: usize = 10 << 20;
/// Largest record that a client's write may make, in bytes. Repair, hints and copies are never refused.
pub const RECORD_BYTES: usize = 32 << 20;
/// Live siblings at which a client's write whose context does not cover them is refused.
pub const SIBLINGS: usize = 100;
/// Live siblings at which a coordinator asks the resolver to collapse them.
pub const COLLAPSE_SIBLINGS: usize = 25;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES: usize = 256;
/// Largest context token, in bytes.
pub const CONTEXT_BYTES: usize = 4096;
/// Largest component of a plugin that requests carry and stores keep, in bytes: that of an interpreted language. The plugin host
/// accepts less by default, and says so in its own words.
pub const COMPONENT_BYTES: usize = 32 << 20;
/// Largest configuration of a plugin's binding, in bytes: it is kept in the binding's record, eight earlier versions included.
pub const PLUGIN_CONFIGURATION_BYTES: usize = 64 << 10;
/// Most replicas of a key. Five survive two losses; more would cost every write and promise little.
pub const MAX_REPLICAS: usize = 5;
/// Replicas of a key.
pub const REPLICATION_FACTOR: std::ops::RangeInclusive<u8> = 1..=MAX_REPLICAS as u8;
/// One `T` for each replica of a key, or for some of them: inline, so that an operation allocates nothing for it.
pub type PerReplica<T> = SmallVec<[T; MAX_REPLICAS]>;
/// The longest that any operation lasts, whatever its client asks for: a Put that is tried again must be younger than
/// [`PUT_RETRY_MICROS`].
pub const LONGEST_DEADLINE: Duration = Duration::from_secs(10);
/// Virtual nodes of a storage node, when it does not say otherwise.
pub const VIRTUAL_NODES: u32 = 150;
/// Most virtual nodes of one storage node: 1,000 nodes of them are a ring of 64 MB.
pub const MAX_VIRTUAL_NODES: u32 = 4096;
/// Entries of a record's `recent`.
pub const RECENT_ENTRIES: usize = 64;
/// Farthest that a coordinator's clock may be off; beyond, it is not ready. Microseconds.
pub const CLOCK_SKEW_MICROS: u64 = 60_000_000;
/// How long an entry of `recent` is kept at least, unless there are more than [`RECENT_ENTRIES`] of them. Microseconds.
pub const RECENT_MICROS: u64 = 30_000_000;
/// Age of a request from which a failed Put is not minted a second time but reported in doubt. Microseconds. Half of
/// [`RECENT_MICROS`], so that what the first attempt left behind is still remembered whatever the clocks' skew.
pub const PUT_RETRY_MICROS: u64 = 15_000_000;
