//! What a coordinator keeps outside its storage nodes: metadata, and the records of idempotency keys. All SQL lives here.
//!
//! 1. [`idempotency`]: where [`witan_kernel::idempotency`]'s steps become atomic and durable.
//! 2. [`metadata`]: tenants, storage nodes, plugin artifacts and their bindings, cluster keys.
//! 3. [`tenants`]: the cache through which requests see tenants.
//!
//! Each kind of store has an implementation for production and one in memory for the simulation, and both pass the same
//! contract tests. Decisions are the kernel's; nothing here invents one.

mod clock;
pub mod idempotency;
pub mod metadata;
pub mod tenants;

#[cfg(test)]
mod testing;

/// What "stored" means when a step is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Synced to the disk: survives a power failure.
    #[default]
    Sync,
    /// Handed to the operating system: survives the end of this process, however sudden, but no power failure.
    Os,
}
