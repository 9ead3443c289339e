//! Witan's plugin host: WebAssembly components that decide, swapped while requests run. Everything of wasmtime is here.
//!
//! A plugin passes through these rooms, and the modules stand in that order:
//!
//! 1. [`limit`], [`digest`]: what a plugin may use, and its identity.
//! 2. `validate`: what it may be at all.
//! 3. `engine`, `compile`: machine code out of it, once per digest, away from the serving threads; kept on disk.
//! 4. `bindings`, `guest`, `instance`: asking it, within its limits.
//! 5. `probe`: asking it before anything depends on the answers.
//! 6. [`binding`], `breaker`, `memory`, `slot`, `snapshot`: who asks which one, and what happens when it fails.
//! 7. [`registry`]: [`PluginHost`], which puts one in force; `folder` watches for new ones; [`event`] and [`metrics`] tell.
//!
//! What must hold: an instance belongs to one tenant and one binding. A call is bounded in time, memory, stack and in
//! what it hands over. A guest that fails never takes more with it than its own instance. Nothing here waits on a
//! serving thread: resolvers, compilation, the disk and the binding store have threads of their own.

pub mod binding;
mod bindings;
mod breaker;
mod compile;
pub mod digest;
mod engine;
pub mod event;
mod folder;
mod guest;
mod instance;
pub mod limit;
mod memory;
pub mod metrics;
mod pool;
mod probe;
pub mod registry;
mod slot;
mod snapshot;
mod validate;

pub use binding::{BindingRecord, InMemoryPlugins, OnFault, PluginStore, Reference};
pub use digest::Digest;
pub use limit::{Budget, Limits};
pub use registry::{BindRequest, PluginError, PluginHost, Settings};
