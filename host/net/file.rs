//! Files with certificates, keys and secrets: read whole, with a bound, and errors that say which setting named them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest file that is read. A bundle of every public authority is a quarter of it.
const FILE_BYTES: u64 = 1 << 20;

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

/// What some files held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<(PathBuf, Result<Vec<u8>, String>)>);

impl Snapshot {
    /// Reads them all. Blocks.
    pub fn take(paths: &[PathBuf]) -> Self {
        let read = |path: &PathBuf| (path.clone(), read(path).map_err(|error| error.to_string()));
        Self(paths.iter().map(read).collect())
    }

    /// What a file held.
    pub(crate) fn content(&self, file: &Named) -> Result<&[u8], FileError> {
        let unreadable = |why: &str| FileError::Unreadable { file: file.clone(), why: why.to_owned() };
        match self.0.iter().find(|(path, _)| *path == file.path) {
            Some((_, Ok(content))) => Ok(content),
            Some((_, Err(why))) => Err(unreadable(why)),
            None => Err(unreadable("was not read")),
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let mut content = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES {
        return Err(io::Error::other(format!("is larger than {FILE_BYTES} bytes")));
    }
    Ok(content)
}
