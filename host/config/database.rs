//! The address of the metadata database, assembled from its keys.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use super::problem::KeyError;
use super::read_secret;
use super::settings::{Database, SslMode};
use super::value::Secret;

impl Database {
    /// The address, with its password; `None`: metadata is embedded.
    ///
    /// # Errors
    /// When a key has an unusable value.
    pub fn address(&self) -> Result<Option<Secret>, KeyError> {
        if let Some(url) = &self.url {
            return self.checked("database.url", url.reveal()).map(Some);
        }
        if let Some(file) = &self.url_file {
            let url = secret_of("database.url_file", file)?;
            return self.checked("database.url_file", url.reveal()).map(Some);
        }
        let Some(host) = &self.host else { return Ok(None) };
        self.check_ssl("database.host", host, self.ssl_mode.map(SslMode::as_str))?;
        let password = match (&self.password, &self.password_file) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(file)) => Some(secret_of("database.password_file", file)?),
            (None, None) => None,
        };
        let mut url = format!("postgres://{}", encoded(&self.user));
        if let Some(password) = password.filter(|password| !password.reveal().is_empty()) {
            let _ = write!(url, ":{}", encoded(password.reveal()));
        }
        let local = host.starts_with('/');
        let at = if local { String::new() } else { bracketed(host) };
        let _ = write!(url, "@{at}:{}/{}", self.port, encoded(&self.database));
        let mut mark = '?';
        if local {
            let _ = write!(url, "?host={}", encoded(host));
            mark = '&';
        }
        Ok(Some(Secret::new(self.with_ssl(url, mark))))
    }

    /// The address of the server itself, if that of a pooler is configured as well.
    ///
    /// # Errors
    /// When a key has an unusable value.
    pub fn direct_address(&self) -> Result<Option<Secret>, KeyError> {
        match (&self.direct_url, &self.direct_url_file) {
            (Some(url), _) => self.checked("database.direct_url", url.reveal()).map(Some),
            (None, Some(file)) => {
                let url = secret_of("database.direct_url_file", file)?;
                self.checked("database.direct_url_file", url.reveal()).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    fn checked(&self, key: &'static str, url: &str) -> Result<Secret, KeyError> {
        if !is_encoded(url) {
            let apart = "database.host, database.user and database.password_file";
            return Err(KeyError::new(key, not_encoded(apart)));
        }
        let parts = parts(url)
            .ok_or_else(|| KeyError::new(key, "is not of the form postgres://user:password@host:port/database"))?;
        if parts.mode.is_some() && self.ssl_mode.is_some() {
            return Err(KeyError::new("database.ssl_mode", "the address already has sslmode; leave one of them out"));
        }
        self.check_ssl(key, parts.host, parts.mode.or(self.ssl_mode.map(SslMode::as_str)))?;
        let mark = if url.contains('?') { '&' } else { '?' };
        Ok(Secret::new(self.with_ssl(url.to_owned(), mark)))
    }

    fn with_ssl(&self, mut url: String, mut mark: char) -> String {
        if let Some(mode) = self.ssl_mode {
            let _ = write!(url, "{mark}sslmode={}", mode.as_str());
            mark = '&';
        }
        if let Some(file) = &self.ca_file {
            let _ = write!(url, "{mark}sslrootcert={}", encoded(&file.display().to_string()));
        }
        url
    }

    fn check_ssl(&self, key: &'static str, host: &str, mode: Option<&str>) -> Result<(), KeyError> {
        if mode.is_some() || is_local(host) {
            return Ok(());
        }
        let what = format!(
            "{host:?} is another machine, and without database.ssl_mode the password and all metadata may be sent in clear \
             text: set database.ssl_mode to verify-full (and database.ca_file, if the authority is your own), or to disable \
             if the network is trusted"
        );
        Err(KeyError::new(key, what))
    }

    /// Whether the server's certificate is verified, or need not be.
    pub fn is_proved(&self) -> bool {
        let url = self.address().ok().flatten();
        let Some(parts) = url.as_ref().and_then(|url| parts(url.reveal())) else { return true };
        is_local(parts.host) || parts.mode == Some("verify-full")
    }
}

/// Whether user and password of an address are percent-encoded as they must be. If not, an address is cut in the middle of the password,
/// and what follows is taken for a host, which errors and logs may show.
pub(super) fn is_encoded(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return true };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if let Some((secrets, _)) = authority.rsplit_once('@') {
        let mut parts = secrets.split('%').skip(1);
        return parts.all(|part| part.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)));
    }
    // No '@' before the first of these characters, and one after it: they are within the password. In the parameters there may be one,
    // unless the supposed port is no number.
    let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    let is_host = port.is_none_or(|port| port.bytes().all(|digit| digit.is_ascii_digit()));
    let before_parameters = if tail.starts_with('#') { tail } else { tail.split('?').next().unwrap_or(tail) };
    !before_parameters.contains('@') && (is_host || !tail.contains('@'))
}

/// What is wrong with such an address, without any of it.
pub(super) fn not_encoded(apart: &str) -> String {
    format!(
        "has a user or password with a character that means something else in an address: percent-encode it (/ as %2F, ? as %3F, # as %23, \
         @ as %40, : as %3A, % as %25), or leave the address out and set {apart}"
    )
}

struct Parts<'a> {
    host: &'a str,
    mode: Option<&'a str>,
}

/// The host and the TLS mode of an address.
fn parts(url: &str) -> Option<Parts<'_>> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or(inner),
        None => host.split(':').next().unwrap_or(host),
    };
    let parameter = |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name);
    let mode = parameter("sslmode").or_else(|| parameter("ssl-mode")).map(|(_, mode)| mode);
    let host = parameter("host").or_else(|| parameter("hostaddr")).map_or(host, |(_, host)| host);
    Some(Parts { host, mode })
}

/// Whether a host is this machine.
pub(super) fn is_local(host: &str) -> bool {
    let path = host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
    host.is_empty() || path || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A host as it is written in an address.
pub(super) fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// A part of an address, percent-encoded.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => _ = write!(out, "%{other:02X}"),
        }
    }
    out
}

/// Reads a secret from a file, without surrounding white space such as the final newline.
pub(super) fn secret_of(key: &'static str, file: &Path) -> Result<Secret, KeyError> {
    let text = read_secret(file)
        .map_err(|what| KeyError::new(key, format!("{what}; create the file, with nothing but the secret in it")))?;
    let text = text.trim();
    if text.is_empty() {
        let what = format!("{} is empty; write the secret into it, and nothing else", file.display());
        return Err(KeyError::new(key, what));
    }
    Ok(Secret::new(text))
}
