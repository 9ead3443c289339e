//! Certificates: whether they can be read, and how long they are valid.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use witan_net::{ClientSide, Fields, Protocol, ServerSide};
use x509_parser::pem::Pem;

use super::{Findings, Gravity};
use crate::config::{FILE_BYTES, Loaded, keys};

/// Days before its expiry at which a certificate should be renewed: by then, automatic renewal has failed for a while.
const SOON_DAYS: i64 = 14;
const DAY: i64 = 86_400;

/// Checks every certificate that the configuration names.
pub(super) fn examine(loaded: &Loaded, findings: &mut Findings) {
    let named = keys::KEYS.iter().filter(|key| key.path.ends_with("cert_file") || key.path.ends_with("ca_file"));
    for key in named {
        let Some(file) = loaded.text(key.path) else { continue };
        match witan_file::read(Path::new(&file), FILE_BYTES) {
            Ok(pem) => certificates(&pem, key.path, Path::new(&file), now(), findings),
            Err(error) => findings.error("certificates", format!("{}: {file} cannot be read: {error}", key.path)),
        }
    }
    // What the coordinator itself will say of them, and of their keys.
    let security = &loaded.settings.security;
    let listeners = security.tls.as_ref().map(|tls| ServerSide::open(tls, Fields::LISTENERS, Protocol::Grpc).map(drop));
    let nodes = security.nodes.tls.as_ref().map(|tls| ClientSide::open(tls, Fields::NODES).map(drop));
    for refused in [listeners, nodes].into_iter().flatten().filter_map(Result::err) {
        findings.error("certificates", refused.to_string());
    }
}

fn certificates(pem: &[u8], key: &str, file: &Path, now: i64, findings: &mut Findings) {
    let about = "certificates";
    let shown = format!("{key} ({})", file.display());
    let mut seen = 0;
    for block in Pem::iter_from_buffer(pem) {
        let parsed = block.ok();
        let parsed = parsed.as_ref().and_then(|block| block.parse_x509().ok());
        let Some(certificate) = parsed else {
            findings.error(about, format!("{shown} contains something that is not a certificate"));
            continue;
        };
        seen += 1;
        let subject: String = certificate.subject().to_string().chars().take(100).collect();
        let validity = certificate.validity();
        let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let days = (to - now).div_euclid(DAY);
        let (level, what) = match () {
            () if now < from => (Gravity::Error, "is not valid yet: check this machine's clock".to_owned()),
            () if now >= to => (Gravity::Error, "has expired: renew it, and replace this file".to_owned()),
            () if days < SOON_DAYS => (Gravity::Warning, format!("expires in {days} days: renew it")),
            () => (Gravity::Ok, format!("is valid for {days} days")),
        };
        findings.say(level, about, format!("{shown}: {subject} {what}"));
    }
    if seen == 0 {
        findings.error(about, format!("{shown} contains no certificate: it must be PEM, with BEGIN CERTIFICATE"));
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(pem: &[u8], now: i64) -> Vec<Gravity> {
        let mut findings = Findings::default();
        certificates(pem, "security.tls.cert_file", Path::new("tls.crt"), now, &mut findings);
        findings.0.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn certificates_are_told_by_the_time_that_is_left() {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 3, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let first = parameters.not_before.unix_timestamp();
        let end = parameters.not_after.unix_timestamp();
        for (when, level) in [
            (first - 1, Gravity::Error),
            (first + 1, Gravity::Ok),
            (end - 5 * DAY, Gravity::Warning),
            (end, Gravity::Error),
        ] {
            assert_eq!(levels(pem.as_bytes(), when), [level], "{when}");
        }
        assert_eq!(levels(b"nonsense", first), [Gravity::Error]);
        assert_eq!(levels(key.serialize_pem().as_bytes(), first), [Gravity::Error, Gravity::Error]);
    }
}
