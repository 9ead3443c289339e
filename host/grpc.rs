//! gRPC: decode, call, encode. The one place where a failure becomes a status.
//!
//! `guard` lets calls in, `status` maps failures, `convert` requests and responses, `keyvalue` serves single calls, `session` streams of
//! them, `tenants` and `nodes` the catalog, `maintenance` (with
//! `page_token`) listings, repair and removal, `plugins` the plugin platform, `access` tokens, `origin` gives each call its id,
//! `intake` bounds what is half sent, `server` puts them on a listener.

mod access;
mod convert;
mod guard;
pub mod intake;
mod keyvalue;
mod maintenance;
mod nodes;
pub mod origin;
mod page_token;
mod plugins;
pub mod server;
pub mod session;
mod status;
mod tenants;

pub use access::AccessApi;
pub use keyvalue::CoordinatorApi;
pub use plugins::PluginApi;
