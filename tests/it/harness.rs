//! Support for the tests: processes that end with their test, clusters of them, and a client that decodes errors.

mod client;
mod cluster;
mod company;
#[path = "../../host/plugin/tests/it/guest.rs"]
#[allow(dead_code, reason = "the tests of the plugin host need more of it")]
mod guest;
mod http;
mod link;
mod plugins;
mod process;

use std::time::Duration;

use tokio::time::Instant;

pub(crate) use client::{Api, Refusal, Session, channel, delete, node_client, read, write};
pub(crate) use cluster::{Cluster, Dev, Disk, NODES, Setup, own_address};
pub(crate) use company::Company;
pub(crate) use guest::Guest;
pub(crate) use http::{get, get_showing};
pub(crate) use link::Link;
pub(crate) use plugins::Plugins;
pub(crate) use process::{Process, Version};

/// Longest wait for an expected event, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls `look` until it finds something; for states that nothing announces.
///
/// # Panics
/// After [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
