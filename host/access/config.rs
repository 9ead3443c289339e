//! The section `security` of a coordinator's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use witan_net::{ClientTls, ListenerTls};

/// The section `security`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Serve clients without a credential. If this is off and clients are not identified, only loopback is served.
    pub allow_anonymous: bool,
    /// Whether API tokens are required.
    pub tokens: bool,
    /// TLS on the listeners of gRPC and HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// JSON web tokens of the operator's issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// Connections to storage nodes.
    pub nodes: Nodes,
    /// Rate limits of each tenant.
    pub rate_limits: RateLimits,
    /// The audit log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

impl Security {
    /// True when every client must send a token.
    pub fn asks_for_tokens(&self) -> bool {
        self.tokens || self.jwt.is_some()
    }

    /// True when clients are identified, by tokens or by their certificates.
    pub fn knows_clients(&self) -> bool {
        self.asks_for_tokens() || self.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some())
    }
}

/// A listener that other machines could use although clients are not identified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} can be reached from other machines, and nothing says who may do what there: ask for credentials with \
     `security.tokens: true` (or `security.jwt`, or `security.tls.client_ca_file`), listen on 127.0.0.1, or let everybody \
     do everything with `security.allow_anonymous: true`"
)]
pub struct Exposed(SocketAddr);

/// Whether a coordinator may serve at `address`: clients on this machine are always served; those on others only when credentials identify
/// them, or the operator has allowed anonymous ones.
///
/// # Errors
/// When it may not; the message follows the name of the key that holds the address.
pub fn may_listen(security: &Security, address: SocketAddr) -> Result<(), Exposed> {
    if security.allow_anonymous || security.knows_clients() || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Exposed(address))
}

/// JSON web tokens (RFC 7519) as credentials.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The only accepted algorithm: RS256, ES256, EdDSA, or HS256.
    pub algorithm: String,
    /// PEM file of the public key; for HS256 a file with the secret.
    pub key_file: PathBuf,
    /// Required value of the claim `iss`.
    pub issuer: String,
    /// Value that the claim `aud` must equal or contain.
    pub audience: String,
}

/// Connections to storage nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// TLS to the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// File with the secret that coordinators and nodes share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_secret_file: Option<PathBuf>,
}

/// Requests per second of one tenant, by scope; 0: no limit. Bursts of one second's worth are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Reads per second.
    pub read: u32,
    /// Writes and deletes per second.
    pub write: u32,
    /// Changes of tenants per second.
    pub admin: u32,
    /// Changes of nodes and plugins per second, of all operators together.
    pub operator: u32,
}

/// The audit log of changes and refusals: JSON lines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The file to append to.
    pub file: PathBuf,
    /// Size at which the file is rotated, in bytes.
    #[serde(default = "Audit::default_max_bytes")]
    pub max_bytes: u64,
    /// Number of rotated files to keep.
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

#[cfg(test)]
mod tests {
    use witan_net::ListenerTls;

    use super::*;

    fn answer(security: &Security, address: &str) -> Result<(), Exposed> {
        may_listen(security, address.parse().unwrap())
    }

    #[test]
    fn without_credentials_only_loopback_is_served() {
        let nothing = Security::default();
        for here in ["127.0.0.1:1", "127.3.2.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(answer(&nothing, here), Ok(()), "{here}");
        }
        for elsewhere in ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let refused = answer(&nothing, elsewhere).unwrap_err().to_string();
            for named in [elsewhere, "security.allow_anonymous: true", "security.tokens: true"] {
                assert!(refused.contains(named), "{named:?} is not in {refused}");
            }
        }
    }

    #[test]
    fn with_credentials_or_permission_every_address_is_served() {
        let tls = ListenerTls { cert_file: "c".into(), key_file: "k".into(), client_ca_file: Some("a".into()) };
        let jwt = Jwt { algorithm: "EdDSA".into(), key_file: "k".into(), issuer: "i".into(), audience: "a".into() };
        let ways = [
            Security { tokens: true, ..Security::default() },
            Security { allow_anonymous: true, ..Security::default() },
            Security { jwt: Some(jwt), ..Security::default() },
            Security { tls: Some(tls.clone()), ..Security::default() },
        ];
        for security in ways {
            assert_eq!(answer(&security, "0.0.0.0:1"), Ok(()), "{security:?}");
        }
        let nobody_asked = Security { tls: Some(ListenerTls { client_ca_file: None, ..tls }), ..Security::default() };
        assert!(answer(&nobody_asked, "0.0.0.0:1").is_err());
    }
}
