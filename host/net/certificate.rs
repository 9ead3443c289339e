//! Parses PEM files into rustls types, and reads validity from certificates. What is wrong with a file that cannot be used is in
//! [`crate::cause`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::cause;
use crate::file::{FileError, Named};
use crate::watch::Snapshot;

/// Most certificates in one chain. Real chains have two to four.
const CHAIN: usize = 16;

/// When the certificate in a file expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The file.
    pub file: PathBuf,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// The cryptography provider. It is passed explicitly everywhere, because the process-wide default is set by whoever comes first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// A certificate chain with its key, and the expiry of the first certificate.
pub(crate) fn pair(snapshot: &Snapshot, cert: &Named, key: &Named) -> Result<(CertifiedKey, Expiry), FileError> {
    let chain = chain(snapshot, cert)?;
    let not_after = validity(&chain[0], cert, now())?;
    let private = private_key(snapshot, key)?;
    let certified = CertifiedKey::from_der(chain.clone(), private, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            match (1..chain.len()).find(|other| fits(&chain[*other], key, snapshot)) {
                Some(other) => FileError::Unusable { file: cert.clone(), why: cause::order(other) },
                None => FileError::KeyDoesNotFit { key: key.clone(), cert: cert.clone() },
            }
        }
        error => {
            let why = cause::key(&chain[0]).unwrap_or_else(|| format!("the key cannot be used: {error}"));
            FileError::Unusable { file: key.clone(), why }
        }
    })?;
    if let Some(why) = cause::gap(&chain) {
        tracing::warn!(file = %cert, "{why}");
    }
    Ok((certified, Expiry { file: cert.path.clone(), not_after }))
}

/// Whether a key belongs to this certificate.
fn fits(certificate: &CertificateDer<'static>, key: &Named, snapshot: &Snapshot) -> bool {
    private_key(snapshot, key)
        .is_ok_and(|private| CertifiedKey::from_der(vec![certificate.clone()], private, &provider()).is_ok())
}

/// The certificate authorities in a file. One whose key cannot be used is skipped, unless it is the only one.
pub(crate) fn authorities(snapshot: &Snapshot, file: &Named) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    let found = certificates(snapshot, file)?;
    let unusable: Vec<String> = found.iter().filter_map(|certificate| cause::key(certificate)).collect();
    if let Some(why) = unusable.first() {
        let why = format!("of an authority {why}");
        if unusable.len() == found.len() {
            return Err(FileError::Unusable { file: file.clone(), why });
        }
        tracing::warn!(%file, "{why}; what it has signed will be refused");
    }
    for certificate in found {
        let unusable =
            |error| FileError::Unusable { file: file.clone(), why: format!("an authority cannot be used: {error}") };
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

/// Where Linux distributions keep the certificate authorities that the machine trusts, the most common path first.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file of the authorities that the operating system trusts: the one that SSL_CERT_FILE names, or the first of
/// [`SYSTEM_BUNDLES`] that exists.
pub(crate) fn system_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()))
}

/// The operating system's authorities. Unusable ones are skipped: a bundle of hundreds may contain one.
pub(crate) fn system_authorities(snapshot: &Snapshot, file: &Named) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(snapshot, file)?);
    Ok(roots)
}

fn chain(snapshot: &Snapshot, file: &Named) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let chain = certificates(snapshot, file)?;
    if chain.len() > CHAIN {
        let why = format!("holds {} certificates; a chain has at most {CHAIN}, the server's own first", chain.len());
        return Err(FileError::Unusable { file: file.clone(), why });
    }
    Ok(chain)
}

/// The certificates in a file, at least one.
fn certificates(snapshot: &Snapshot, file: &Named) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let wrong =
        |why: String| FileError::NotPem { file: file.clone(), wanted: "certificate", begins: "CERTIFICATE", why };
    let content = snapshot.content(file)?;
    if let Some(why) = cause::text(content) {
        return Err(wrong(why));
    }
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(content).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(String::new())),
        Ok(found) => Ok(found),
        Err(_) => Err(wrong(": it is cut off or damaged".to_owned())),
    }
}

fn private_key(snapshot: &Snapshot, file: &Named) -> Result<PrivateKeyDer<'static>, FileError> {
    let content = snapshot.content(file)?;
    let wrong =
        |why: String| FileError::NotPem { file: file.clone(), wanted: "private key", begins: "PRIVATE KEY", why };
    if let Some(why) = cause::text(content) {
        return Err(wrong(why));
    }
    PrivateKeyDer::from_pem_slice(content).map_err(|error| {
        // The error's own text is never shown: it may quote a line of the key.
        let why = match error {
            _ if cause::is_encrypted(content) => {
                ": it is encrypted, and nobody is there to enter a password when it is read; remove it with \
                 openssl pkey -in FILE -out NEW, and let only the process's user read the new file"
            }
            pem::Error::NoItemsFound => "",
            _ => ": it is cut off or damaged",
        };
        wrong(why.to_owned())
    })
}

/// When a certificate expires (seconds since 1970); an error unless it is valid now.
fn validity(certificate: &CertificateDer<'_>, file: &Named, now: i64) -> Result<i64, FileError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| FileError::NotPem {
        file: file.clone(),
        wanted: "certificate",
        begins: "CERTIFICATE",
        why: ": its content is not an X.509 certificate".to_owned(),
    })?;
    let (begins, ends) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    if now > ends {
        return Err(FileError::Expired { file: file.clone(), ago: format!("{} ago", span(now - ends)) });
    }
    if now < begins {
        return Err(FileError::NotYetValid { file: file.clone(), within: span(begins - now) });
    }
    Ok(ends)
}

fn span(seconds: i64) -> String {
    match seconds {
        0..7200 => format!("{seconds} s"),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
