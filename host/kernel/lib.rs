//! Witan's decisions as pure code: no I/O, no async runtime, no clock and no randomness.
//!
//! Everything here is synchronous code that takes values and events and returns values. The crates around it (`witan-coordinate`,
//! `witan-node`, `witan-store`) send the messages and store the bytes. Reading order:
//!
//! 1. [`name`], [`limit`], [`tenant`], [`weight`]: what a request is about, how large it may be, and what its tenant's share is.
//! 2. [`clock`], [`recent`], [`record`], [`register`], [`siblings`], [`context`]: what a replica stores and how it merges.
//! 3. [`ring`], [`placement`]: which nodes store it, and how that changes; [`scan`], [`mod@slice`], [`digest`]: walking all of it, or
//!    finding out where that is not needed; [`fence`]: who may not ask for it any longer; [`burial`]: when deleted keys leave nothing
//!    behind.
//! 4. [`quorum`], [`age`]: when an operation is done, and how late a change of it may be stored.
//! 5. [`idempotency`]: one effect per idempotency key.
//! 6. [`hook`], [`candidate`], [`replica`], [`condition`], [`port`], [`capability`], [`durability`], [`failure`]: the interfaces to
//!    plugins, replicas, stores and clients.
//! 7. [`fault`]: rules that the simulation breaks on purpose.
//! 8. [`backoff`], [`sync`], [`hexadecimal`]: what every room needs when it retries, locks, or shows bytes.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

pub mod age;
pub mod backoff;
pub mod burial;
pub mod candidate;
pub mod capability;
pub mod class;
pub mod clock;
pub mod condition;
pub mod context;
pub mod digest;
pub mod durability;
pub mod failure;
pub mod fault;
pub mod fence;
pub mod hexadecimal;
pub mod hook;
pub mod idempotency;
pub mod limit;
pub mod name;
pub mod placement;
pub mod port;
pub mod quorum;
pub mod recent;
pub mod record;
pub mod register;
pub mod replica;
pub mod ring;
pub mod scan;
pub mod siblings;
pub mod slice;
pub mod space;
pub mod sync;
pub mod tenant;
pub mod weight;
