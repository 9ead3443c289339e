//! Parses PEM files into rustls types, and reads validity from certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

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
    let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => FileError::KeyDoesNotFit { key: key.clone(), cert: cert.clone() },
        error => FileError::Unusable { file: key.clone(), why: format!("the key cannot be used: {error}") },
    })?;
    Ok((certified, Expiry { file: cert.path.clone(), not_after }))
}

/// The certificate authorities in a file.
pub(crate) fn authorities(snapshot: &Snapshot, file: &Named) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(snapshot, file)? {
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
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(snapshot.content(file)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(String::new())),
        Ok(found) => Ok(found),
        Err(_) => Err(wrong(": it is cut off or damaged".to_owned())),
    }
}

fn private_key(snapshot: &Snapshot, file: &Named) -> Result<PrivateKeyDer<'static>, FileError> {
    let content = snapshot.content(file)?;
    PrivateKeyDer::from_pem_slice(content).map_err(|error| {
        // The error's own text is never shown: it may quote a line of the key.
        let encrypted = content.windows(9).any(|part| part == b"ENCRYPTED");
        let why = match error {
            pem::Error::NoItemsFound if encrypted => ": it is encrypted; remove its password (openssl pkey -in ...)",
            pem::Error::NoItemsFound => "",
            _ => ": it is cut off or damaged",
        };
        FileError::NotPem { file: file.clone(), wanted: "private key", begins: "PRIVATE KEY", why: why.to_owned() }
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
