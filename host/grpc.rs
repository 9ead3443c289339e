//! gRPC: decode, call, encode. The one place where a failure becomes a status.
//!
//! `status` maps failures, `convert` requests and responses, `keyvalue` serves single calls, `session` streams of
//! them, `tenants` and `nodes` the catalog, `plugins` the plugin platform, `server` puts them on a listener.

mod convert;
mod keyvalue;
mod nodes;
mod plugins;
pub mod server;
pub mod session;
mod status;
mod tenants;

pub use keyvalue::CoordinatorApi;
pub use plugins::PluginApi;
