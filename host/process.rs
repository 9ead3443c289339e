//! The running coordinator: its implementations chosen, put together, started, kept up to date, and stopped.
//!
//! [`config`] is what a coordinator is put together from, [`world`] says which implementation stands behind each port, [`start`]
//! assembles and serves. Around it: [`stores`] (metadata and idempotency, and the lease on this coordinator's id), `nodes`, `cluster`
//! (this coordinator as the control plane changes it), `plugins`, `live` and [`reload`] (changes of the configuration while it
//! serves), `readiness`, [`secured`] (TLS), [`telemetry`], [`signal`], [`system`] (clocks and randomness).
//!
//! No other module names an implementation of a port.

mod cluster;
pub mod config;
mod live;
mod nodes;
mod plugins;
mod readiness;
pub mod reload;
pub mod secured;
pub mod signal;
pub mod start;
pub mod stores;
pub mod system;
pub mod telemetry;
pub mod world;
