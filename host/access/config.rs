//! How a coordinator is secured, as its configuration says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use witan_tls::{ClientTls, ListenerTls};

/// The section `security`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Serve clients without a credential. Without it, and without any way to tell clients apart, only loopback is served.
    pub allow_anonymous: bool,
    /// Whether API tokens are asked for.
    pub tokens: bool,
    /// TLS on the listeners of gRPC and HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// JSON web tokens of an issuer of one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// How storage nodes are spoken to.
    pub nodes: Nodes,
    /// How many requests each tenant may make.
    pub rate_limits: RateLimits,
    /// The record of changes and refusals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

/// JSON web tokens (RFC 7519) that are taken as credentials.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The one algorithm that is taken: RS256, ES256, EdDSA, or HS256.
    pub algorithm: String,
    /// PEM file of the public key; for HS256 a file with the secret.
    pub key_file: PathBuf,
    /// What the claim `iss` must be.
    pub issuer: String,
    /// What the claim `aud` must be or hold.
    pub audience: String,
}

/// How storage nodes are spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// TLS towards the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// A file with the secret that coordinators and nodes share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_secret_file: Option<PathBuf>,
}

/// Requests a second of one tenant, per scope; 0: no limit. Each may come at once in one second's worth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Reads a second.
    pub read: u32,
    /// Writes and deletes a second.
    pub write: u32,
    /// Changes of tenants a second.
    pub admin: u32,
    /// Changes of nodes and plugins a second, of all together.
    pub operator: u32,
}

/// The record of changes and refusals: JSON lines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The file that is appended to.
    pub file: PathBuf,
    /// Bytes after which it is put aside and a new one begun.
    #[serde(default = "Audit::default_max_bytes")]
    pub max_bytes: u64,
    /// Files put aside that are kept.
    #[serde(default = "Audit::default_keep")]
    pub keep: u32,
}

impl Audit {
    fn default_max_bytes() -> u64 {
        64 << 20
    }

    fn default_keep() -> u32 {
        4
    }
}
