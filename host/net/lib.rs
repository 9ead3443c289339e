//! Listeners and connections: TLS with certificates that are reloaded when their files change, and the bounds on how many
//! connections there may be and how long a client may stay silent.
//!
//! In reading order: [`watch`] (files that are polled), [`file`](mod@file) (errors of files), `certificate` (PEM to rustls),
//! [`reload`] (values made from watched files), [`listen`] and [`connect`] (the two sides of TLS), [`incoming`] and [`connection`]
//! (a listener's stream of connections), `permits` with `untaken` (how many there may be), `window` (what their clients may send unread),
//! [`serve`](mod@serve) (serving them), `in_use` (which of them carry calls), [`call`] (what every call must be), [`secret`] (a shared
//! secret for coordinators and nodes without client certificates), [`metrics`].
//!
//! Invariants, as absences: no handshake delays another connection; no file is read on a thread of the async runtime after the
//! start; no connection may stay silent without a limit before its first bytes, or without a call for ever; no address may have all
//! connections; no stream is open, and no answer waits for its client, that nobody counts; no secret appears in debug output.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

pub mod bounds;
pub mod call;
pub mod cause;
mod certificate;
pub mod connect;
pub mod connection;
mod discard;
pub mod file;
mod in_use;
pub mod incoming;
pub mod listen;
pub mod metrics;
mod permits;
pub mod reload;
pub mod secret;
pub mod serve;
mod untaken;
pub mod watch;
mod window;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use bounds::Bounds;
pub use connect::{ClientSide, Connector, explain};
pub use connection::{Connection, Identity, Peer};
pub use discard::discard;
pub use file::{Fields, FileError};
pub use in_use::{CallKind, CountCalls, UntilSent};
pub use incoming::Incoming;
pub use listen::{Protocol, ServerSide};
pub use permits::unit;
pub use permits::{Answering, Call, CountedCall, Untaken, Usage, Waits, WatchCall, Window};
pub use secret::SharedSecret;
pub use serve::{Serving, serve};
pub use watch::{Snapshot, Watch};

/// A listener's certificate, and whether its clients need one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file of the certificate chain, the server's own certificate first.
    pub cert_file: PathBuf,
    /// PEM file of the certificate's private key.
    pub key_file: PathBuf,
    /// PEM file of the authorities whose client certificates are accepted; if set, a client without a certificate is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

/// A client's trusted authorities, and its own certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// PEM file of the trusted authorities; `None`: those of the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's own certificate, for servers that require one; needs `key_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have; `None`: the host that is connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}
