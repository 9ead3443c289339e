//! The kernel's store ports on SQL, Redis and a local disk: metadata, idempotency records, plugins. All SQL is here.
//!
//! 1. [`idempotency`]: makes the steps of [`witan_kernel::idempotency`] atomic and durable.
//! 2. [`metadata`]: tenants, storage nodes, coordinators, plugin artifacts and their bindings, API tokens, cluster secrets.
//! 3. [`plugins`]: the plugin host's store, on any metadata store.
//!
//! Decisions are the kernel's. The in-memory implementations are in `witan-memory`, and all pass the same contract tests.

pub mod idempotency;
pub mod metadata;
pub mod plugins;
mod retry;

pub use witan_kernel::durability::Durability;

#[cfg(test)]
mod testing;
