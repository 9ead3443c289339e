//! Files with certificates, keys and secrets: the settings that name them, and what can be wrong with them.

use std::fmt;
use std::path::PathBuf;

use crate::watch::Snapshot;

/// What the settings of one side are called, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// The certificate's file.
    pub cert: &'static str,
    /// Its key's.
    pub key: &'static str,
    /// The authorities' that the other side must be signed by.
    pub ca: &'static str,
}

impl Fields {
    /// The listeners of a coordinator, as its configuration names them.
    pub const LISTENERS: Self =
        Self { cert: "security.tls.cert_file", key: "security.tls.key_file", ca: "security.tls.client_ca_file" };
    /// A coordinator's connections to its nodes, as its configuration names them.
    pub const NODES: Self = Self {
        cert: "security.nodes.tls.cert_file",
        key: "security.nodes.tls.key_file",
        ca: "security.nodes.tls.ca_file",
    };
    /// The listener of a node, as its flags name them.
    pub const NODE_FLAGS: Self = Self { cert: "--tls-cert-file", key: "--tls-key-file", ca: "--tls-client-ca-file" };
    /// The connections of the command line.
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

/// What is wrong with a file, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{file}: {why}; name a file that is there and that this process may read")]
    Unreadable {
        /// Which.
        file: Named,
        /// What the operating system said.
        why: String,
    },
    /// It holds nothing of what it should.
    #[error("{file}: holds no {wanted} in PEM form, which begins with \"-----BEGIN {begins}-----\"{why}")]
    NotPem {
        /// Which.
        file: Named,
        /// What should be in it.
        wanted: &'static str,
        /// How that begins.
        begins: &'static str,
        /// What was found instead; empty, or begins with a separator.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error("{key}: is not the private key of the certificate in {cert}; give the two that were made together")]
    KeyDoesNotFit {
        /// The key.
        key: Named,
        /// The certificate.
        cert: Named,
    },
    /// The certificate's time is over.
    #[error("{file}: the certificate has expired {ago}; renew it (and check this machine's clock)")]
    Expired {
        /// Which.
        file: Named,
        /// Since when.
        ago: String,
    },
    /// The certificate's time has not begun.
    #[error("{file}: the certificate is not valid before {within} from now; check this machine's clock")]
    NotYetValid {
        /// Which.
        file: Named,
        /// How long it takes.
        within: String,
    },
    /// It is read, and of no use.
    #[error("{file}: {why}")]
    Unusable {
        /// Which.
        file: Named,
        /// Why, and what to do.
        why: String,
    },
    /// A certificate without a key, or the other way round.
    #[error("{given} is given without {missing}; a certificate and its key go together")]
    Alone {
        /// The setting that is there.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
}

impl Snapshot {
    /// The content of a file that a setting names.
    pub(crate) fn content(&self, file: &Named) -> Result<&[u8], FileError> {
        self.get(&file.path).map_err(|why| FileError::Unreadable { file: file.clone(), why: why.to_owned() })
    }
}
