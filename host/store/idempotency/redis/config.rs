//! Where the servers are, and how long to wait for them.

use std::fmt;
use std::time::Duration;

use redis::cluster::ClusterClientBuilder;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates, TlsMode,
};
use witan_kernel::port::StoreError;

use super::link::Connector;

/// Longest key prefix, in bytes: it is part of every key.
const PREFIX_BYTES: usize = 64;

/// How Redis (7 or later) or Valkey is reached.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// The servers.
    pub servers: RedisServers,
    /// User and password for the servers; overrides those in their addresses.
    pub credentials: Option<RedisCredentials>,
    /// Certificates for addresses that start with `rediss://`. `None`: the system's certificate authorities, and no client
    /// certificate.
    pub tls: Option<RedisTls>,
    /// Prefix of every key, so that several clusters can share a server: 1..=64 bytes of letters, digits and `_.-`.
    pub key_prefix: String,
    /// Time limit of a step, including a new connection. A step that exceeds it may or may not have been carried out.
    pub timeout: Duration,
    /// Time limit of connecting.
    pub connect_timeout: Duration,
}

/// Addresses: `redis://host:6379`, with TLS `rediss://host:6379`; user, password and number of the database
/// (`redis://user:password@host:6379/1`) if needed.
#[derive(Clone)]
pub enum RedisServers {
    /// One server.
    Single(String),
    /// Some of a cluster's servers; the others are discovered.
    Cluster(Vec<String>),
    /// Sentinels that know where the master is.
    Sentinel {
        /// Their addresses.
        sentinels: Vec<String>,
        /// The name under which they know the master.
        master: String,
        /// The number of the master's database.
        database: u32,
        /// Whether connections to the master use TLS.
        tls: bool,
    },
}

/// Credentials for the servers.
#[derive(Clone)]
pub struct RedisCredentials {
    /// The user; `None` for the default one.
    pub user: Option<String>,
    /// The password. Never printed.
    pub password: String,
}

/// Certificates, in PEM.
#[derive(Clone, Default)]
pub struct RedisTls {
    /// Certificate authorities for the servers' certificates; `None` for the system's.
    pub authorities: Option<Vec<u8>>,
    /// Client certificate and private key, if the servers require them. Never printed.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl RedisConfig {
    /// Default settings: key prefix `witan`, a second for a step and for a connection.
    pub fn new(servers: RedisServers) -> Self {
        Self {
            servers,
            credentials: None,
            tls: None,
            key_prefix: "witan".to_owned(),
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
        }
    }

    /// Checks everything that can be checked without a server.
    pub(super) fn connector(&self) -> Result<Connector, StoreError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=PREFIX_BYTES).contains(&self.key_prefix.len()) || !self.key_prefix.bytes().all(allowed) {
            let what = "the Redis key prefix must be 1 to 64 letters, digits and `_.-`";
            return Err(StoreError::Refused(what.to_owned()));
        }
        if self.timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(StoreError::Refused("a timeout for Redis must be longer than zero".to_owned()));
        }
        match &self.servers {
            RedisServers::Single(address) => self.single(address),
            RedisServers::Cluster(addresses) => self.cluster(addresses),
            RedisServers::Sentinel { sentinels, master, database, tls } => {
                self.sentinel(sentinels, master, *database, *tls)
            }
        }
    }

    fn single(&self, address: &str) -> Result<Connector, StoreError> {
        let node = self.node(address)?;
        let client = match &self.tls {
            Some(tls) => redis::Client::build_with_tls(node, tls.certificates()),
            None => redis::Client::open(node),
        };
        client
            .map(|client| Connector::Single(Box::new(client)))
            .map_err(|error| refused(&without_secrets(address), &error))
    }

    fn cluster(&self, addresses: &[String]) -> Result<Connector, StoreError> {
        let nodes = addresses.iter().map(|address| self.node(address)).collect::<Result<Vec<_>, _>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.timeout)
            .overall_response_timeout(Some(self.timeout))
            .min_retry_wait(10)
            .max_retry_wait(100);
        if let Some(tls) = &self.tls {
            builder = builder.certs(tls.certificates());
        }
        builder
            .build()
            .map(|client| Connector::Cluster(Box::new(client)))
            .map_err(|error| refused("the cluster's addresses", &error))
    }

    fn sentinel(&self, sentinels: &[String], master: &str, database: u32, tls: bool) -> Result<Connector, StoreError> {
        let nodes = sentinels.iter().map(|address| parse(address)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = nodes.first() else {
            return Err(StoreError::Refused("at least one sentinel's address is needed".to_owned()));
        };
        let known = first.redis_settings().clone();
        let with_tls = matches!(first.addr(), ConnectionAddr::TcpTls { .. });
        let addresses: Vec<ConnectionAddr> = nodes.iter().map(|node| node.addr().clone()).collect();
        let settings = self.clone();
        let (master, database) = (master.to_owned(), i64::from(database));
        let build = move || {
            let kind = SentinelServerType::Master;
            let mut builder = SentinelClientBuilder::new(addresses.clone(), &master, kind)?;
            builder = builder.set_client_to_redis_db(database);
            if let Some(user) = known.username() {
                builder = builder.set_client_to_sentinel_username(user);
            }
            if let Some(password) = known.password() {
                builder = builder.set_client_to_sentinel_password(password);
            }
            if let Some(RedisCredentials { user, password }) = &settings.credentials {
                builder = builder.set_client_to_redis_password(password);
                if let Some(user) = user {
                    builder = builder.set_client_to_redis_username(user);
                }
            }
            if tls {
                builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            }
            if let Some(certificates) = settings.tls.as_ref().map(RedisTls::certificates) {
                if with_tls {
                    builder = builder.set_client_to_sentinel_certificates(certificates.clone());
                }
                builder = builder.set_client_to_redis_certificates(certificates);
            }
            builder.build()
        };
        // Once here, so that an error is reported at once; then for every connection, since a client caches what it has found.
        build().map_err(|error| refused("the sentinels' addresses", &error))?;
        Ok(Connector::Sentinel(Box::new(build)))
    }

    fn node(&self, address: &str) -> Result<ConnectionInfo, StoreError> {
        let node = parse(address)?;
        let Some(RedisCredentials { user, password }) = &self.credentials else { return Ok(node) };
        let mut settings = node.redis_settings().clone().set_password(password);
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        Ok(node.set_redis_settings(settings))
    }
}

fn parse(address: &str) -> Result<ConnectionInfo, StoreError> {
    address.into_connection_info().map_err(|error| refused(&without_secrets(address), &error))
}

fn refused(what: &str, error: &RedisError) -> StoreError {
    StoreError::Refused(format!("{what} cannot be used for Redis: {error}"))
}

/// An address without user and password.
fn without_secrets(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &address[..scheme], &address[at..]),
        (None, Some(at)) => format!("…{}", &address[at..]),
        _ => address.to_owned(),
    }
}

impl RedisTls {
    fn certificates(&self) -> TlsCertificates {
        let identity = self.identity.clone();
        let client_tls = identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        TlsCertificates { client_tls, root_cert: self.authorities.clone() }
    }
}

impl fmt::Display for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[String]| {
            let shown: Vec<String> = addresses.iter().map(|address| without_secrets(address)).collect();
            shown.join(", ")
        };
        match self {
            Self::Single(address) => f.write_str(&without_secrets(address)),
            Self::Cluster(addresses) => write!(f, "the cluster at {}", list(addresses)),
            Self::Sentinel { sentinels, master, .. } => {
                write!(f, "the master {master:?} of the sentinels at {}", list(sentinels))
            }
        }
    }
}

impl fmt::Debug for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for RedisCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authorities, identity) = (self.authorities.is_some(), self.identity.is_some());
        f.debug_struct("RedisTls").field("authorities", &authorities).field("identity", &identity).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{RedisConfig, RedisCredentials, RedisServers, RedisTls};
    use witan_kernel::port::StoreError;

    fn single(address: &str) -> RedisConfig {
        RedisConfig::new(RedisServers::Single(address.to_owned()))
    }

    fn refusal(config: &RedisConfig) -> String {
        match config.connector() {
            Err(StoreError::Refused(why)) => why,
            Err(other) => panic!("refused with {other:?}"),
            Ok(_) => panic!("{config:?} was not refused"),
        }
    }

    #[test]
    fn addresses_of_every_kind_are_taken() {
        for address in ["redis://localhost:6379", "redis://:pa%24s@[::1]:7000/3", "redis://10.0.0.1", "valkey://h"] {
            assert!(single(address).connector().is_ok(), "{address}");
        }
        let addresses: Vec<String> = (0..3).map(|node| format!("redis://10.0.0.{node}:6379")).collect();
        assert!(RedisConfig::new(RedisServers::Cluster(addresses.clone())).connector().is_ok());
        let master = "mymaster".to_owned();
        let servers = RedisServers::Sentinel { sentinels: addresses, master, database: 0, tls: false };
        assert!(RedisConfig::new(servers).connector().is_ok());
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason_and_without_the_secret() {
        for address in ["", "localhost:6379", "http://localhost", "redis://0.0.0.0", "redis://user:hunter2@h:port/"] {
            let why = refusal(&single(address));
            assert!(!why.contains("hunter2"), "{why}");
        }
        assert!(refusal(&RedisConfig::new(RedisServers::Cluster(Vec::new()))).contains("cluster"));
        let servers = RedisServers::Sentinel { sentinels: Vec::new(), master: "m".to_owned(), database: 0, tls: false };
        assert!(refusal(&RedisConfig::new(servers)).contains("sentinel"));
        for key_prefix in ["", "a{b}", "a b", &"x".repeat(65)] {
            let config = RedisConfig { key_prefix: key_prefix.to_owned(), ..single("redis://h") };
            assert!(refusal(&config).contains("prefix"));
        }
        let config = RedisConfig { timeout: Duration::ZERO, ..single("redis://h") };
        assert!(refusal(&config).contains("timeout"));
        let tls = RedisTls { authorities: Some(b"no certificate".to_vec()), identity: None };
        assert!(refusal(&RedisConfig { tls: Some(tls), ..single("redis://h") }).contains("rediss"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = RedisConfig {
            credentials: Some(RedisCredentials { user: Some("alice".into()), password: "hunter2".into() }),
            tls: Some(RedisTls { authorities: None, identity: Some((b"cert".into(), b"hunter2".into())) }),
            ..single("rediss://bob:hunter2@h:6379/1")
        };
        let printed = format!("{config:?} {}", config.servers);
        assert!(!printed.contains("hunter2") && !printed.contains("bob"), "{printed}");
        assert!(printed.contains("alice") && printed.contains("@h:6379/1"), "{printed}");
    }
}
