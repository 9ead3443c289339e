//! The running coordinator: chooses implementations, assembles and starts them, applies configuration changes, and shuts down.
//!
//! [`coordinator`] runs one from its configuration to its end, [`node`] runs storage nodes. [`config`] is what a coordinator is
//! assembled from, [`world`] names the implementation of each port, [`start`] assembles and serves. Around them: [`stores`]
//! (metadata and idempotency, and the lease on this coordinator's id), `nodes` (polling of storage nodes), `cluster` (applies changes
//! made by the control plane), `formats` (those that an earlier version cannot read), `plugins`, `live` and [`reload`] (configuration
//! changes at run time), `readiness`, [`room`] (of the idempotency store), [`secured`] (TLS), [`telemetry`], [`lines`] (of the log),
//! [`signal`], [`private`] (permissions of files, no core files), [`system`] (clocks and randomness, and the limit on open files),
//! `background` (the thread for long work).
//!
//! No other module names an implementation of a port.

mod background;
mod busy;
mod cluster;
pub mod config;
pub mod coordinator;
mod formats;
pub mod lines;
mod live;
pub mod node;
mod nodes;
pub mod plugins;
pub mod private;
mod readiness;
pub mod reload;
pub mod room;
pub mod secured;
pub mod signal;
pub mod start;
pub mod stores;
mod swaps;
pub mod system;
pub mod telemetry;
pub mod world;
