//! Bytes as credentials, and as the page tokens of key listings.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tempfile::NamedTempFile;
use witan::access::caller::Origin;
use witan::access::config::{Jwt, Security};
use witan::access::{Access, scope, token};
use witan::grpc::page_token;
use witan_kernel::name::{Key, TenantId};
use witan_kernel::port::Clock;
use witan_memory::MemoryMetadata;

use crate::Seen;

/// What a claim and a token consist of.
pub(super) const WORDS: &[&[u8]] = &[
    b"Bearer ",
    b"witan_",
    b"\"exp\":1e300,",
    b"\"exp\":9999999999,",
    b"\"aud\":[\"a\"],",
    b"\"tenant\":\"t\"",
    b"\"scope\":\"read write operator\"",
    b"\"nbf\":-1",
    b"{\"alg\":\"none\"}",
];

const SECRET: &[u8] = &[b's'; 32];

/// A clock that does not advance.
#[derive(Clone)]
struct Still;

impl Clock for Still {
    fn wall_micros(&self) -> u64 {
        1_700_000_000_000_000
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

/// API tokens, of which there are none, and web tokens of an issuer whose secret this target knows.
fn access() -> &'static (Arc<Access>, NamedTempFile) {
    static ACCESS: OnceLock<(Arc<Access>, NamedTempFile)> = OnceLock::new();
    ACCESS.get_or_init(|| {
        let mut key = NamedTempFile::new().expect("make a file");
        key.write_all(SECRET).expect("write the secret");
        let jwt = Jwt {
            algorithm: "HS256".to_owned(),
            key_file: key.path().to_owned(),
            issuer: "i".to_owned(),
            audience: "a".to_owned(),
        };
        let settings = Security { tokens: true, jwt: Some(jwt), ..Security::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let opened = Access::open(&settings, Arc::new(MemoryMetadata::new(Still)), || 1_700_000_000_000);
        (Arc::new(runtime.block_on(opened).expect("settings that are valid")), key)
    })
}

/// An input that begins with `{` is the claims of a web token; every other one is what a client shows.
pub(super) fn run(input: &[u8]) -> Seen {
    let forged = !input.starts_with(b"{");
    let shown = if forged { input.to_vec() } else { signed(input) };
    if let Some((id, secret)) = std::str::from_utf8(input).ok().and_then(token::split) {
        assert_eq!(format!("witan_{id}_{secret}").as_bytes(), input);
    }
    let rule = scope::of_call("/witan.v1.CoordinatorService/ReadKeyValue");
    match access().0.admit(rule, Some(&shown), &Origin::default()) {
        None => Seen(1),
        Some(Err(refusal)) => Seen::of((2, forged, format!("{refusal:?}").chars().take(32).collect::<String>())),
        Some(Ok(caller)) => {
            assert!(!forged, "admitted without a signature");
            let other = TenantId::new("a tenant that no token names").expect("a tenant");
            Seen::of((3, caller.may(&other).is_ok()))
        }
    }
}

/// The header of a call with a web token of these claims.
fn signed(claims: &[u8]) -> Vec<u8> {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let text = format!("{}.{}", part(br#"{"alg":"HS256","typ":"JWT"}"#), part(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("any length");
    mac.update(text.as_bytes());
    format!("Bearer {text}.{}", part(&mac.finalize().into_bytes())).into_bytes()
}

/// An input is a position, a key, and a change of the token that is made of them; it is also read as a token as it is.
pub(super) fn page(input: &[u8]) -> Seen {
    let (tenant, prefix) = (TenantId::new("t").expect("a tenant"), Bytes::from_static(b"p"));
    let text = String::from_utf8_lossy(input);
    if let Ok(at) = page_token::read(&tenant, &prefix, &text) {
        assert_eq!(page_token::write(&tenant, &prefix, &at), text, "a token has two spellings");
    }
    let Some((token, rest)) = input.split_first_chunk::<8>() else { return Seen(0) };
    let (change, key) = rest.split_first().map_or((0, rest), |(change, key)| (*change, key));
    let after = Key::new(Bytes::copy_from_slice(key)).ok();
    let at = witan_coordinate::Resume { generation: u32::from(change & 3), token: u64::from_be_bytes(*token), after };
    let written = page_token::write(&tenant, &prefix, &at);
    assert_eq!(page_token::read(&tenant, &prefix, &written).as_ref(), Ok(&at));
    assert!(page_token::read(&tenant, &Bytes::new(), &written).is_err());
    let mut altered = written.clone().into_bytes();
    let place = usize::from(change) % altered.len();
    altered[place] = key.first().map_or(b'A', |byte| b'A' + byte % 26);
    let altered = String::from_utf8(altered).expect("letters");
    let read = page_token::read(&tenant, &prefix, &altered);
    assert!(altered == written || read.is_err(), "an altered token is accepted");
    Seen::of((1, at.after.is_some(), read.is_ok()))
}
