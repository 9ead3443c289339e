//! Why a file of certificates or a key cannot be used, in the words of whoever has to replace it.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

/// Smallest RSA key that the cryptography accepts, in bits.
const RSA_BITS: usize = 2048;

/// Elliptic curves by their identifier: those that exist, and are not supported here.
const OTHER_CURVES: [(&str, &str); 6] = [
    ("1.3.132.0.35", "P-521"),
    ("1.3.132.0.10", "secp256k1"),
    ("1.3.132.0.33", "P-224"),
    ("1.3.36.3.3.2.8.1.1.7", "brainpoolP256r1"),
    ("1.3.36.3.3.2.8.1.1.11", "brainpoolP384r1"),
    ("1.3.36.3.3.2.8.1.1.13", "brainpoolP512r1"),
];
/// P-256 and P-384, which are supported.
const CURVES: [&str; 2] = ["1.2.840.10045.3.1.7", "1.3.132.0.34"];
/// The identifiers of keys on an elliptic curve, of RSA, and of Ed25519.
const EC: &str = "1.2.840.10045.2.1";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";
const ED448: &str = "1.3.101.113";

/// What can be used instead.
const USE: &str = "use a key on P-256 or P-384, an Ed25519 key, or an RSA key of 2048 bits or more";

/// Why a file is no PEM although it may look like it in an editor.
pub(crate) fn text(content: &[u8]) -> Option<String> {
    let why = match content {
        [0xef, 0xbb, 0xbf, ..] => {
            "it begins with a byte order mark, as some editors write: save it as UTF-8 without one"
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it is in UTF-16, as some editors write: save it as ASCII or UTF-8",
        [0x30, 0x80..=0x84, ..] => {
            "it is in binary form (DER): convert it with openssl x509 -inform DER -in FILE -out NEW, or openssl pkey for a key"
        }
        _ => return None,
    };
    Some(format!(": {why}"))
}

/// Whether a file of a key has a password: in PKCS #8, or in the older form with headers.
pub(crate) fn is_encrypted(content: &[u8]) -> bool {
    let mut lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.any(|line| line == b"-----BEGIN ENCRYPTED PRIVATE KEY-----" || line == b"Proc-Type: 4,ENCRYPTED")
}

/// What to do if the key belongs to the certificate at this place of a chain (from 0), not to the first.
pub(crate) fn order(place: usize) -> String {
    format!(
        "the key belongs to certificate {} of this file: put that one first, then each certificate that signed the one before it",
        place + 1
    )
}

/// Why the key of a certificate cannot be used, if that is known.
pub(crate) fn key(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let about = &parsed.tbs_certificate.subject_pki.algorithm;
    match about.algorithm.to_id_string().as_str() {
        EC => {
            let curve = about.parameters.as_ref().and_then(|curve| curve.as_oid().ok())?.to_id_string();
            if CURVES.contains(&curve.as_str()) {
                return None;
            }
            let known = OTHER_CURVES.iter().find(|(id, _)| *id == curve);
            Some(format!(
                "the key is on the curve {}, which is not supported; {USE}",
                known.map_or(&*curve, |(_, name)| name)
            ))
        }
        RSA => {
            let PublicKey::RSA(key) = parsed.public_key().parsed().ok()? else { return None };
            let bits = key.key_size();
            (bits < RSA_BITS).then(|| format!("the RSA key has {bits} bits, too few; {USE}"))
        }
        ED25519 => None,
        ED448 => Some(format!("the key is an Ed448 key, which is not supported; {USE}")),
        _ => None,
    }
}

/// What is wrong with a chain whose key fits, and which some clients will therefore refuse: a certificate that has not signed the one
/// before it.
pub(crate) fn gap(chain: &[CertificateDer<'_>]) -> Option<String> {
    let parsed: Vec<X509Certificate<'_>> =
        chain.iter().map_while(|one| Some(x509_parser::parse_x509_certificate(one).ok()?.1)).collect();
    let (at, pair) = parsed.windows(2).enumerate().find(|(_, pair)| pair[0].issuer() != pair[1].subject())?;
    let issuer: String = pair[0].issuer().to_string().chars().take(100).collect();
    Some(format!(
        "certificate {} of this file was not signed by the one after it, so that some clients will not find its authority: it should be \
         followed by that of {issuer}",
        at + 1
    ))
}
