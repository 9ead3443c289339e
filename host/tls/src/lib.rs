//! TLS for every listener and client, with certificates that are read again when their folder changes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
