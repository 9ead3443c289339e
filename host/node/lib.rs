//! The storage node: rows on a disk, the requests that read and change them, and the gRPC server.
//!
//! Reading order:
//!
//! 1. [`engine`]: the port behind which rows are stored, on a real disk or a simulated one.
//! 2. [`row`], [`store`]: the format of a stored record, and the identity of a store.
//! 3. [`batch`]: the effects of requests, as plain synchronous code; the gate that holds answers back until they are durable.
//! 4. [`scan`], [`digest`], [`clear`]: scans of stored records, digests of them, the removal of tenants, and of rows for placement
//!    changes, outside the shards.
//! 5. [`driver`]: the threads (or tasks, in the simulation) that run shards, with one sync for many batches.
//! 6. [`server`]: the gRPC server.
//! 7. [`node`]: a node assembled from its configuration.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

pub mod batch;
pub mod clear;
pub mod digest;
pub mod driver;
pub mod engine;
mod leaves;
#[cfg(feature = "fjall")]
pub mod node;
pub mod priority;
pub mod row;
pub mod scan;
pub mod server;
pub mod store;
#[cfg(test)]
mod testing;
