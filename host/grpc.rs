//! The gRPC edge: decodes requests, calls the coordinator, encodes responses. The only place where a failure becomes a status.
//!
//! `guard` authorizes calls, `status` maps failures to statuses, `convert` maps requests and responses, `keyvalue` serves single
//! calls and `session` streams of them (`kept` and `unsent` bound what waits for clients), `tenants`, `nodes` and `migrations` serve the
//! catalog, `locate` says where a key is, `maintenance` (with `page_token`) serves key listings, repair and tenant deletion, `access`
//! API tokens (the plugin platform has a room of its own); `origin` gives each call its id, `intake` bounds the memory held by
//! incomplete messages, and `server` serves all of it on a listener.

mod access;
pub(crate) mod convert;
pub(crate) mod guard;
pub(crate) mod hooks;
pub mod intake;
pub(crate) mod kept;
mod keyvalue;
mod leftovers;
mod locate;
mod maintenance;
mod migrations;
mod nodes;
pub mod origin;
pub mod page_token;
pub(crate) mod questions;
pub mod server;
pub mod session;
pub(crate) mod status;
pub(crate) mod tenants;
mod unsent;

pub use access::AccessApi;
pub use kept::Admit;
pub use keyvalue::CoordinatorApi;
pub use unsent::Unsent;
