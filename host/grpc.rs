//! The gRPC edge: decodes requests, calls the coordinator, encodes responses. The only place where a failure becomes a status.
//!
//! `guard` authorizes calls, `status` maps failures to statuses, `convert` maps requests and responses, `keyvalue` serves single
//! calls and `session` streams of them (`kept` and `unsent` bound what waits for clients), `tenants`, `nodes` and `migrations` serve the
//! catalog, `locate` says where a key is, `maintenance` (with `page_token`) serves key listings, repair and tenant deletion, `plugins` the
//! plugin platform, `access` API tokens; `origin` gives each call its id, `intake` bounds the memory held by incomplete messages, and
//! `server` serves all of it on a listener.

mod access;
mod convert;
mod guard;
mod hooks;
pub mod intake;
mod kept;
mod keyvalue;
mod leftovers;
mod locate;
mod maintenance;
mod migrations;
mod nodes;
pub mod origin;
pub mod page_token;
mod plugins;
pub mod server;
pub mod session;
mod status;
mod tenants;
mod unsent;

pub use access::AccessApi;
pub use kept::Admit;
pub use keyvalue::CoordinatorApi;
pub use plugins::PluginApi;
pub use unsent::Unsent;
