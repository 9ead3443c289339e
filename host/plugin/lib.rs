//! Witan's plugin host: WebAssembly components that make decisions, replaced while requests run. Nothing outside this crate uses
//! wasmtime.
//!
//! A plugin passes through these modules, in this order:
//!
//! 1. [`limit`], [`class`], [`digest`]: its limits, the class of limits that it needs, and its identity.
//! 2. `version`, `validate`, `effort`: the versions of the interface, the rules that its bytes must keep, and how much work they may be.
//! 3. `engine`, `compile`: compilation to machine code, once per digest, in a process of its own (`spawn` from the outside, `child` from
//!    the inside), cached on disk (`images`); `refusals` are remembered there too.
//! 4. `bindings`, `calls`, `guest`, `instance`, `fault`: calling it within its limits, and why a call gave no answer.
//! 5. `describe`, `probe`: its description of itself, and tests of its answers before anything depends on them; [`signature`]: who vouches
//!    for it; `inspect` for tools.
//! 6. [`binding`], `tenant`, `warm`, `breaker`, `cpu`, `answers`, `fair`, `resolvers`, `snapshot`: which version answers for which tenant,
//!    in whose turn, and what happens when it fails; [`candidate`], `tried`: what is tried beside it; [`dry_run`], `recent`: what another
//!    version would answer to the same; [`history`]: what has become of a slot.
//! 7. `upload`, [`registry`]: [`PluginHost`], which puts a version in force; `folder` watches for new components; [`event`], [`metrics`]
//!    and [`lines`] report what happened; [`error`] says why a change was not made.
//! 8. [`trial`]: a component and its author, without any of 6 and 7.
//!
//! Invariants: an instance serves one tenant and one binding. A call is bounded in time, memory, stack and in the size of its result. A
//! guest that fails loses only its own instance. Nothing blocks a serving thread: resolvers, the disk and the binding store have
//! separate threads, and compilation has separate processes.

mod answers;
pub mod binding;
mod bindings;
mod breaker;
mod calls;
pub mod candidate;
mod child;
pub mod class;
mod compile;
mod control;
mod cpu;
mod describe;
pub mod digest;
mod disk;
pub mod dry_run;
mod effort;
mod engine;
pub mod error;
pub mod event;
mod fair;
mod fault;
mod folder;
mod guest;
pub mod history;
mod images;
mod inspect;
mod instance;
mod late;
pub mod limit;
pub mod lines;
pub mod metrics;
mod pool;
mod probe;
mod recent;
mod refusals;
pub mod registry;
mod resolvers;
pub mod signature;
mod snapshot;
mod spawn;
pub mod tally;
mod tenant;
pub mod trial;
mod tried;
mod turn;
mod uncompiled;
mod upload;
mod validate;
mod version;
mod warm;

pub use binding::{BindingRecord, OnFault, PluginStore, Reference};
pub use child::compile_if_asked;
pub use class::Inspection;
pub use compile::Compilations;
pub use digest::Digest;
pub use error::PluginError;
pub use inspect::{Described, inspect};
pub use late::LateLoading;
pub use limit::{Budget, ClassLimits, Limits};
pub use registry::{BindRequest, PluginHost, Settings, TryRequest};
pub use upload::{Push, Upload};
pub use witan_kernel::class::Class;
