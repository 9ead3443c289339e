//! The servers of the idempotency store, assembled from their keys.

use super::database::{bracketed, is_encoded, is_local, not_encoded, secret_of};
use super::problem::KeyError;
use super::settings::Redis;
use super::value::Secret;

/// The servers of the idempotency store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Single(Secret),
    /// Some servers of a Redis Cluster.
    Cluster(Vec<Secret>),
    /// Sentinels, and the master that they know.
    Sentinel {
        /// Their addresses.
        sentinels: Vec<Secret>,
        /// The master's name.
        master: String,
        /// The number of its database.
        database: u32,
        /// Whether the master is connected to over TLS.
        tls: bool,
    },
}

impl Redis {
    /// The servers; `None`: idempotency records are embedded.
    ///
    /// # Errors
    /// When a key has an unusable value.
    pub fn servers(&self) -> Result<Option<Servers>, KeyError> {
        let (key, addresses) = match self.addresses()? {
            Some(found) => found,
            None if self.sentinel_master.is_some() => {
                let what = "names a master, but there are no addresses of Sentinels: set redis.addresses";
                return Err(KeyError::new("redis.sentinel_master", what));
            }
            None => return Ok(None),
        };
        if addresses.iter().any(|address| !is_encoded(address.reveal())) {
            return Err(KeyError::new(key, not_encoded("redis.host and redis.password_file")));
        }
        if addresses.iter().any(|address| address.reveal().is_empty()) {
            return Err(KeyError::new(key, "contains an empty address"));
        }
        if self.tls
            && let Some(scheme) =
                addresses.iter().filter_map(|address| scheme(address.reveal())).find(|it| is_plain(it))
        {
            return Err(KeyError::new(key, format!("says {scheme}:// while redis.tls is true: write rediss://")));
        }
        if self.db != 0 && matches!(key, "redis.url" | "redis.url_file") {
            let what = format!(
                "is {}, but has no effect with {key}: append it to the address, as in redis://host:6379/{}",
                self.db, self.db
            );
            return Err(KeyError::new("redis.db", what));
        }
        if let Some(master) = &self.sentinel_master {
            let tls = self.tls || addresses.iter().any(|address| scheme(address.reveal()).is_some_and(is_tls));
            let (sentinels, master, database) = (addresses, master.clone(), self.db);
            return Ok(Some(Servers::Sentinel { sentinels, master, database, tls }));
        }
        if addresses.len() == 1 {
            return Ok(addresses.into_iter().next().map(Servers::Single));
        }
        if self.db != 0 {
            return Err(KeyError::new("redis.db", format!("is {}, but a Redis Cluster has database 0 only", self.db)));
        }
        Ok(Some(Servers::Cluster(addresses)))
    }

    fn addresses(&self) -> Result<Option<(&'static str, Vec<Secret>)>, KeyError> {
        if let Some(url) = &self.url {
            return Ok(Some(("redis.url", split(url))));
        }
        if let Some(file) = &self.url_file {
            return Ok(Some(("redis.url_file", split(&secret_of("redis.url_file", file)?))));
        }
        let scheme = if self.tls { "rediss" } else { "redis" };
        if !self.addresses.is_empty() {
            let whole = |address: &String| match address.contains("://") {
                true => Secret::new(address.clone()),
                false => Secret::new(format!("{scheme}://{address}")),
            };
            return Ok(Some(("redis.addresses", self.addresses.iter().map(whole).collect())));
        }
        let Some(host) = &self.host else { return Ok(None) };
        let address = format!("{scheme}://{}:{}/{}", bracketed(host), self.port, self.db);
        Ok(Some(("redis.host", vec![Secret::new(address)])))
    }

    /// The password, if it is not part of an address.
    ///
    /// # Errors
    /// When a key has an unusable value.
    pub fn separate_password(&self) -> Result<Option<Secret>, KeyError> {
        let password = match (&self.password, &self.password_file) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(file)) => Some(secret_of("redis.password_file", file)?),
            (None, None) => None,
        };
        Ok(password.filter(|password| !password.reveal().is_empty()))
    }

    /// Whether the connection could be read in transit.
    pub fn is_open(&self) -> bool {
        let Ok(Some((_, addresses))) = self.addresses() else { return false };
        addresses.iter().any(|address| {
            let plain = address.reveal().split_once("://").filter(|(scheme, _)| is_plain(scheme));
            plain.is_some_and(|(_, rest)| !is_local(host_of(rest)))
        })
    }
}

/// The scheme of an address, as it is written.
fn scheme(address: &str) -> Option<&str> {
    address.split_once("://").map(|(scheme, _)| scheme)
}

/// Whether a scheme means TLS. Schemes have no case, and Redis has a sister with schemes of her own.
fn is_tls(scheme: &str) -> bool {
    ["rediss", "valkeys"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls))
}

/// Whether a scheme means a connection to a port without TLS.
fn is_plain(scheme: &str) -> bool {
    ["redis", "valkey"].iter().any(|plain| scheme.eq_ignore_ascii_case(plain))
}

/// The host in an address without its scheme.
fn host_of(rest: &str) -> &str {
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or(inner),
        None => host.split(':').next().unwrap_or(host),
    }
}

fn split(addresses: &Secret) -> Vec<Secret> {
    addresses.reveal().split(',').map(|address| Secret::new(address.trim())).collect()
}
