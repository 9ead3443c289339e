//! TLS for every listener and client, with certificates that are read again when their folder changes, and what stands
//! before the bytes of a connection at all: how many there may be, and how long one may say nothing.
//!
//! In reading order: [`file`](mod@file) (what can be wrong with a file), [`certificate`] (PEM to rustls), [`reload`] (files that are watched),
//! [`listen`] and [`connect`] (the two sides of TLS), [`incoming`] and [`connection`] (a listener's stream of connections),
//! `slots` (how many there are), [`secret`] (what coordinators and nodes may share instead), [`metrics`].
//!
//! Invariants, as absences: no handshake stands before another connection; no file is read on a runtime's thread after the
//! start; no connection is without a bound on how long it may say nothing at first; no secret is in a debug output.

pub mod certificate;
pub mod connect;
pub mod connection;
pub mod file;
pub mod incoming;
pub mod listen;
pub mod metrics;
pub mod reload;
pub mod secret;
mod slots;
pub mod watch;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use connect::{ClientSide, Connector, explain};
pub use connection::{Connection, Identity, Peer};
pub use file::{Fields, FileError};
pub use incoming::{Bounds, Incoming};
pub use listen::{Protocol, ServerSide};
pub use secret::SharedSecret;
pub use watch::{Snapshot, Watch};

/// What a listener shows, and what it asks of its clients.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file of the certificate and of those between it and its authority.
    pub cert_file: PathBuf,
    /// PEM file of the certificate's private key.
    pub key_file: PathBuf,
    /// PEM file of the authorities whose client certificates are taken; with it, a client without one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

/// Whom a client trusts, and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// PEM file of the authorities that are trusted; `None`: those of the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's own certificate, for servers that ask for one; with `key_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have; `None`: the host that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}
