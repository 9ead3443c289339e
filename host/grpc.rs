//! gRPC: decode, call, encode. The one place where a failure becomes a status.
//!
//! `guard` lets calls in, `status` maps failures, `convert` requests and responses, `keyvalue` serves single calls, `session` streams of
//! them, `tenants` and `nodes` the catalog, `care` (with
//! `page_token`) listings, repair and removal, `plugins` the plugin platform, `access` tokens, `origin` gives each call its id,
//! `intake` bounds what is half sent, `server` puts them on a listener.

mod access;
mod care;
mod convert;
mod guard;
pub mod intake;
mod keyvalue;
mod nodes;
pub mod origin;
mod page_token;
mod plugins;
pub mod server;
pub mod session;
mod status;
mod tenants;

pub use access::AccessApi;
pub use keyvalue::{CoordinatorApi, Fallbacks};
pub use plugins::PluginApi;

/// Carries something out to its end, whatever becomes of the client that has asked for it. A change of the placement goes on in the stores
/// when its call is dropped, and what keeps operations out meanwhile must not be let go before.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, tonic::Status> {
    let ended = tokio::spawn(work).await;
    ended.map_err(|_| tonic::Status::internal("internal error; the log says more"))
}
