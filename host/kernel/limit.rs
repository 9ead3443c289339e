//! Bounds of the data model. Bounds of queues are beside the queues.

use std::time::Duration;

use smallvec::SmallVec;

/// Longest tenant id, in bytes: part of every row's key on disk.
pub const TENANT_BYTES: usize = 256;
/// Longest key, in bytes: part of every row's key on disk.
pub const KEY_BYTES: usize = 1024;
/// Largest value, in bytes. An empty value is a value. Ten MiB bound the memory that one request may hold.
pub const VALUE_BYTES: usize = 10 << 20;
/// Largest record that a client's write may create, in bytes: a few values of the largest size. Merges are never refused.
pub const RECORD_BYTES: usize = 32 << 20;
/// Live siblings from which on a client's write that does not cover them is refused: a client that never reads would grow the record
/// without bound.
pub const SIBLINGS: usize = 100;
/// Live siblings from which on the resolver is asked to collapse them: well before writes are refused at [`SIBLINGS`].
pub const COLLAPSE_SIBLINGS: usize = 25;
/// Longest idempotency key, in bytes: room for any UUID or URL-like name.
pub const IDEMPOTENCY_KEY_BYTES: usize = 256;
/// The longest and the default time for which an idempotency key has one effect, milliseconds: 24 h. Clients that repeat for longer are
/// rare, and the store's memory grows with it.
pub const LONGEST_RETENTION_MS: u64 = 24 * 3600 * 1000;
/// The shortest, milliseconds: a minute is longer than the longest deadline, and than the repetitions that clients send by themselves.
pub const SHORTEST_RETENTION_MS: u64 = 60_000;
/// For how long an idempotency key of a tenant may have one effect.
pub const IDEMPOTENCY_RETENTION_MS: std::ops::RangeInclusive<u64> = SHORTEST_RETENTION_MS..=LONGEST_RETENTION_MS;
/// Largest context token, in bytes: it travels with every read and write.
pub const CONTEXT_BYTES: usize = 4096;
/// Largest component of a plugin that requests carry and stores keep, in bytes: that of an interpreted language. The plugin host
/// accepts less by default, and says so in its own words.
pub const COMPONENT_BYTES: usize = 32 << 20;
/// Largest configuration of a plugin's binding, in bytes: it is kept in the binding's record, eight earlier versions included.
pub const PLUGIN_CONFIGURATION_BYTES: usize = 64 << 10;
/// Most replicas of a key. Five survive two losses; more would cost every write and promise little.
pub const MAX_REPLICAS: usize = 5;
/// Replication factors that a tenant may have.
pub const REPLICATION_FACTOR: std::ops::RangeInclusive<u8> = 1..=MAX_REPLICAS as u8;
/// One `T` for each replica of a key, or for some of them: inline, so that an operation allocates nothing for it.
pub type PerReplica<T> = SmallVec<[T; MAX_REPLICAS]>;
/// The longest that any operation lasts, whatever its client asks for: a Put that is tried again must be younger than
/// [`PUT_RETRY_MICROS`].
pub const LONGEST_DEADLINE: Duration = Duration::from_secs(10);
/// The least and the default time after which a tombstone may be [collected](crate::burial): 25 h and 36 h. A repetition may bring back a
/// stamp that is as old as the longest retention of an idempotency key, 24 h ([`LONGEST_RETENTION_MS`]); what it sends may be on its way
/// for [`LONGEST_DEADLINE`], and clocks may differ by [`CLOCK_SKEW_MICROS`]: rounded up to the hour.
pub const LEAST_GRACE: Duration = Duration::from_secs(25 * 3600);
/// See [`LEAST_GRACE`].
pub const GRACE: Duration = Duration::from_secs(36 * 3600);
/// Time between the two looks at what is to be collected: [`LONGEST_DEADLINE`], after which nothing arrives any longer that was under way
/// at the first one, and half as much again for clocks that do not run equally fast.
pub const LOOKS_AGAIN: Duration = Duration::from_secs(15);
/// Default number of virtual nodes of a storage node: evens out the nodes' shares to within about a tenth.
pub const VIRTUAL_NODES: u32 = 150;
/// Longest name of a zone, in bytes: room for a cloud provider's names of regions and zones with a rack.
pub const ZONE_BYTES: usize = 64;
/// Most virtual nodes of one storage node: with 1,000 such nodes each version of the ring takes 115 MB.
pub const MAX_VIRTUAL_NODES: u32 = 4096;
/// Most entries of a record's `recent`: about 1.6 KB of a record that many clients write to.
pub const RECENT_ENTRIES: usize = 64;
/// Most pinned names of a record; with more, repetitions of further writes stay in doubt. In the models' storms a record had 255 at most;
/// they take 5 KB.
pub const PINNED_NAMES: usize = 256;
/// Largest clock skew of a coordinator, microseconds; beyond it, the coordinator is not ready. Far above what any time service allows.
pub const CLOCK_SKEW_MICROS: u64 = 60_000_000;
/// Least age at which an entry of `recent` is dropped, unless there are more than [`RECENT_ENTRIES`]. Microseconds. Twice
/// [`PUT_RETRY_MICROS`].
pub const RECENT_MICROS: u64 = 30_000_000;
/// Age from which on a failed Put is reported in doubt instead of being tried again. Microseconds. Half of [`RECENT_MICROS`], so that a
/// record still remembers the first attempt, whatever the clock skew.
pub const PUT_RETRY_MICROS: u64 = 15_000_000;

/// Largest request or answer of the connection between coordinator and node that is for small ones, in bytes, without its envelope. Larger
/// ones have a connection of their own, so that small ones never wait behind them.
pub const SMALL_BYTES: usize = 64 << 10;
