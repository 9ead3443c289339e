//! Certificate authorities for both sides of a TLS connection in tests.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// An authority whose files, and those of the certificates that it issues, are in one folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    name: String,
}

/// The files of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, in PEM.
    pub cert: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority of this name in `folder`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let authority = Self { issuer, folder: folder.to_owned(), name: name.to_owned() };
        replace(&authority.file(), &authority.issuer.pem());
        authority
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// A certificate for these names (or addresses), in `FILE.pem` and `FILE.key`; existing files are replaced atomically.
    pub fn issue(&self, file: &str, names: &[&str]) -> Pair {
        self.issue_until(file, names, 2100)
    }

    /// The same, expiring on the first day of that year.
    pub fn issue_until(&self, file: &str, names: &[&str], year: i32) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, file);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let pair = Pair { cert: self.folder.join(format!("{file}.pem")), key: self.folder.join(format!("{file}.key")) };
        replace(&pair.cert, &certificate.pem());
        replace(&pair.key, &key.serialize_pem());
        pair
    }
}

/// Replaces a file atomically: readers find the old or the new content.
fn replace(path: &Path, content: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, content).expect("write a file");
    fs::rename(beside, path).expect("replace a file");
}
