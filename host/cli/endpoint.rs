//! The address of a coordinator as the command line reads it: whether TLS is spoken is decided here and nowhere else.

use std::net::IpAddr;

use http::Uri;

/// The schemes that are known.
const KNOWN: &str = "http:// (plain text) or https:// (TLS)";

/// Whether a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// It is not.
    Plain,
    /// With TLS.
    Tls,
}

/// An address that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether connections to it are encrypted.
    pub scheme: Scheme,
    /// The address, with its scheme in lower case: "http://host:port" or "https://host:port".
    pub url: String,
    host: String,
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It does not say whether TLS is spoken.
    #[error("--endpoint {0:?} has no scheme: write http://{0} for plain text, or https://{0} for TLS")]
    NoScheme(String),
    /// Its scheme is not known.
    #[error("--endpoint {endpoint:?}: the scheme {scheme:?} is not known; use {KNOWN}")]
    Scheme {
        /// The address.
        endpoint: String,
        /// Its scheme.
        scheme: String,
    },
    /// It is no address.
    #[error("--endpoint {endpoint:?} is not an address ({why}); write it as in http://127.0.0.1:50051")]
    NotAnAddress {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Endpoint {
    /// Reads an address. Schemes have no case (RFC 3986, section 3.1).
    ///
    /// # Errors
    /// When it has no scheme, an unknown one, or no host.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        let Some((scheme, rest)) = text.split_once("://") else { return Err(Unusable::NoScheme(text.to_owned())) };
        let (scheme, name) = if scheme.eq_ignore_ascii_case("http") {
            (Scheme::Plain, "http")
        } else if scheme.eq_ignore_ascii_case("https") {
            (Scheme::Tls, "https")
        } else {
            return Err(Unusable::Scheme { endpoint: text.to_owned(), scheme: scheme.to_owned() });
        };
        let not_an_address = |why: String| Unusable::NotAnAddress { endpoint: text.to_owned(), why };
        let url = format!("{name}://{rest}");
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| not_an_address(error.to_string()))?;
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| not_an_address("it names no host".to_owned()))?.to_owned();
        Ok(Self { scheme, url, host })
    }

    /// Whether everything that is sent there stays on this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        // RFC 6761, section 6.3: this name and all below it mean this machine.
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// Whether a secret can be sent there without anybody else reading it.
    pub fn is_private(&self) -> bool {
        self.scheme == Scheme::Tls || self.is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_have_no_case() {
        for (text, scheme, url) in [
            ("http://h:1", Scheme::Plain, "http://h:1"),
            ("HTTP://h:1", Scheme::Plain, "http://h:1"),
            ("https://h:1", Scheme::Tls, "https://h:1"),
            ("HTTPS://h:1", Scheme::Tls, "https://h:1"),
            ("hTTpS://[::1]:1", Scheme::Tls, "https://[::1]:1"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.scheme, endpoint.url.as_str()), (scheme, url), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        for text in ["grpcs://h:1", "tls://h:1", "httpss://h:1", "grpc://h:1", "ftp://h", "://h", " https://h"] {
            let refused = Endpoint::parse(text).unwrap_err().to_string();
            for part in [text, "http://", "https://", "not known"] {
                assert!(refused.contains(part), "{part:?} is not in {refused}");
            }
        }
        for text in ["h:1", "127.0.0.1:50051", "coordinator", ""] {
            let refused = Endpoint::parse(text).unwrap_err().to_string();
            assert!(refused.contains(&format!("https://{text} for TLS")), "{refused}");
        }
        for text in ["http://", "https://:1", "http://a b"] {
            assert!(matches!(Endpoint::parse(text), Err(Unusable::NotAnAddress { .. })), "{text}");
        }
    }

    #[test]
    fn secrets_leave_this_machine_over_tls_only() {
        for private in [
            "https://far.example",
            "http://localhost:1",
            "http://LOCALHOST",
            "http://a.localhost",
            "http://localhost.:1",
            "http://127.3.4.5:1",
            "http://[::1]:1",
            "http://[::ffff:127.0.0.1]:1",
        ] {
            assert!(Endpoint::parse(private).unwrap().is_private(), "{private}");
        }
        for open in [
            "http://far.example",
            "http://10.0.0.1:1",
            "http://[2001:db8::1]",
            "http://localhost.example",
            "http://notlocalhost",
            "http://127.0.0.1.example",
            "http://0.0.0.0:1",
            "http://127.0.0.1@far.example",
        ] {
            assert!(!Endpoint::parse(open).unwrap().is_private(), "{open}");
        }
    }
}
