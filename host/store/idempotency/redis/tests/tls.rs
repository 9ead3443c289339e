//! A server that speaks TLS only, and only to those who show a certificate.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use witan_kernel::port::{IdempotencyStore, StoreError};
use witan_servers::{Port, Redis};

use super::{RedisConfig, RedisIdempotency, RedisServers, contract, patient, reserve, reserve_all};
use crate::idempotency::redis::RedisTls;

/// Who vouches for both sides.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// Certificate and key, in PEM.
fn certificate(authority: &CertifiedIssuer<'static, KeyPair>) -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, authority).expect("signed");
    (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_certificates() {
    let (ours, other) = (authority(), authority());
    let folder = tempfile::tempdir().expect("a folder");
    let (server, key) = certificate(&ours);
    for (name, bytes) in [("ca", ours.pem().as_bytes()), ("cert", &server), ("key", &key)] {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let port = Port::free();
    let redis = Redis::start_with(&[
        ("tls-port", &port.number().to_string()),
        ("tls-ca-cert-file", &path("ca")),
        ("tls-cert-file", &path("cert")),
        ("tls-key-file", &path("key")),
    ]);
    let with = |authorities: &CertifiedIssuer<'static, KeyPair>, identity| {
        let tls = RedisTls { authorities: Some(authorities.pem().into_bytes()), identity };
        let servers = RedisServers::Single(format!("rediss://{}", port.address()));
        RedisIdempotency::new(RedisConfig { tls: Some(tls), ..patient(servers) }).expect("opens")
    };
    let store = with(&ours, Some(certificate(&ours)));
    reserve_all(&store, 0..50).await;
    // In the clear, it is the same server.
    contract::finds_one(&super::open(&redis), 7).await;
    let strangers = [with(&ours, None), with(&ours, Some(certificate(&other))), with(&other, Some(certificate(&ours)))];
    for stranger in strangers {
        let refused = stranger.step(contract::name(1), reserve(1, 1)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
}
