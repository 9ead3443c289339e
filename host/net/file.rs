//! Files with certificates, keys and secrets: the settings that name them, and what can be wrong with them.

use std::fmt;
use std::path::PathBuf;

use crate::watch::Snapshot;

/// The names of the settings of one side of TLS, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// The setting that names the file of the certificate.
    pub cert: &'static str,
    /// The setting that names the file of its private key.
    pub key: &'static str,
    /// The setting that names the file of the authorities that must have signed the peer's certificate.
    pub ca: &'static str,
}

impl Fields {
    /// Configuration keys of a coordinator's listeners.
    pub const LISTENERS: Self =
        Self { cert: "security.tls.cert_file", key: "security.tls.key_file", ca: "security.tls.client_ca_file" };
    /// Configuration keys of a coordinator's connections to its nodes.
    pub const NODES: Self = Self {
        cert: "security.nodes.tls.cert_file",
        key: "security.nodes.tls.key_file",
        ca: "security.nodes.tls.ca_file",
    };
    /// Flags of a node's listener.
    pub const NODE_FLAGS: Self = Self { cert: "--tls-cert-file", key: "--tls-key-file", ca: "--tls-client-ca-file" };
    /// Flags of the command-line client.
    pub const CLIENT_FLAGS: Self = Self { cert: "--client-cert-file", key: "--client-key-file", ca: "--ca-file" };
}

/// A file, and the setting that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The setting.
    pub field: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl Named {
    /// The file that a setting names.
    pub fn new(field: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { field, path: path.into() }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.path.display())
    }
}

/// Why a file cannot be used, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{file}: {why}; set the path of a file that exists and that this process may read")]
    Unreadable {
        /// The file.
        file: Named,
        /// The operating system's error.
        why: String,
    },
    /// It contains no PEM block of the expected kind.
    #[error("{file}: holds no {wanted} in PEM form, which begins with \"-----BEGIN {begins}-----\"{why}")]
    NotPem {
        /// The file.
        file: Named,
        /// What it should contain.
        wanted: &'static str,
        /// The label of the PEM block that was expected.
        begins: &'static str,
        /// What was found instead; empty, or starts with a separator.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error(
        "{key}: is not the private key of the certificate in {cert}; set a certificate and a key that belong together"
    )]
    KeyDoesNotFit {
        /// The key.
        key: Named,
        /// The certificate.
        cert: Named,
    },
    /// The certificate has expired.
    #[error("{file}: the certificate has expired {ago}; renew it (and check this machine's clock)")]
    Expired {
        /// The file.
        file: Named,
        /// How long ago it expired.
        ago: String,
    },
    /// The certificate is not valid yet.
    #[error("{file}: the certificate becomes valid only in {within}; check this machine's clock")]
    NotYetValid {
        /// The file.
        file: Named,
        /// The time until it becomes valid.
        within: String,
    },
    /// It can be read, but not used.
    #[error("{file}: {why}")]
    Unusable {
        /// The file.
        file: Named,
        /// The reason, and the remedy.
        why: String,
    },
    /// A certificate without a key, or the other way round.
    #[error("{given} is set without {missing}; a certificate needs its key, and a key its certificate")]
    Alone {
        /// The setting that is present.
        given: &'static str,
        /// The setting that is missing.
        missing: &'static str,
    },
}

impl Snapshot {
    /// The content of a file that a setting names.
    pub(crate) fn content(&self, file: &Named) -> Result<&[u8], FileError> {
        self.get(&file.path).map_err(|why| FileError::Unreadable { file: file.clone(), why: why.to_owned() })
    }
}
