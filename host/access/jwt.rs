//! JSON web tokens of the operator's issuer (RFC 7519). The configuration decides algorithm, issuer and audience; a token's
//! header is only compared with them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use moka::sync::Cache;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use witan_kernel::name::TenantId;
use witan_net::{Snapshot, Watch};

use super::config::Jwt;
use super::credential::Credential;
use super::refusal::Refusal;
use super::scope::{Scope, Scopes};

/// Longest web token, in bytes: it must fit into the headers of a call, together with the other headers.
pub(super) const TEXT_BYTES: usize = 8 << 10;
/// Checked tokens kept in each cache, of valid and of invalid ones: checking a signature costs a hundred times a lookup.
const REMEMBERED: u64 = 10_000;
/// Time for which an invalid token is cached: it may become valid later (`nbf`).
const BAD_FOR: Duration = Duration::from_secs(5);
/// Tolerated difference between the issuer's clock and this one, in seconds.
const LEEWAY: u64 = 30;
/// Shortest HS256 secret, in bytes: the length of the hash (RFC 7518, 3.2).
const SECRET_BYTES: usize = 32;
/// Largest key file, in bytes: a PEM key has a few kilobytes.
const FILE_BYTES: usize = 64 << 10;
/// The last second of the year 9999, in seconds since 1970. Times in milliseconds are beyond it, and would never expire.
const LAST_SECOND: f64 = 253_402_300_799.0;
/// Longest recorded `sub`, in characters.
const SUBJECT_CHARS: usize = 100;

/// Checks web tokens.
pub(super) struct Issuer {
    settings: Jwt,
    algorithm: Algorithm,
    validation: Validation,
    key: ArcSwap<Key>,
    good: Cache<Seen, Arc<Credential>>,
    bad: Cache<Seen, Refusal>,
}

struct Key {
    key: DecodingKey,
    /// SHA-256 of the file, which detects changes.
    file: [u8; 32],
}

/// The hash of a token, and that of the key file it was checked with: a new key may give a different result.
type Seen = ([u8; 32], [u8; 32]);

/// Claims as they were sent. Of any type, so that a refusal can say which of them is wrong.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Claims {
    iss: Value,
    exp: Value,
    sub: Value,
    scope: Value,
    tenant: Value,
}

impl Claims {
    /// When the token expires, in seconds since 1970.
    fn expiry(&self) -> Result<f64, Refusal> {
        match self.exp.as_f64() {
            Some(exp) if exp <= LAST_SECOND => Ok(exp),
            Some(_) => Err(Refusal::Issuer(
                "its claim `exp` is after the year 9999: it must be in seconds since 1970, and seems to be in milliseconds",
            )),
            None => Err(Refusal::Issuer("its claim `exp` is not a number of seconds since 1970")),
        }
    }

    /// The names of scopes: separated by spaces (RFC 8693, section 4.2), or a list, which several issuers send.
    fn scopes(&self) -> Result<Scopes, Refusal> {
        let wrong =
            Refusal::Issuer("its claim `scope` is neither text with names separated by spaces nor a list of names");
        match &self.scope {
            Value::Null => Ok(Scopes::NONE),
            Value::String(text) => Ok(Scopes::among(text.split(' '))),
            Value::Array(names) => {
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                names.map(Scopes::among).ok_or(wrong)
            }
            _ => Err(wrong),
        }
    }

    fn tenant(&self) -> Result<Option<TenantId>, Refusal> {
        let tenant = match &self.tenant {
            Value::Null => return Ok(None),
            Value::String(id) => TenantId::new(id.as_str()).ok(),
            _ => None,
        };
        tenant.map(Some).ok_or(Refusal::Issuer("its claim `tenant` is not a tenant id"))
    }

    /// Checks the types of names, which the validation leaves open.
    fn are_of_their_types(&self) -> Result<(), Refusal> {
        if !self.iss.is_string() {
            return Err(Refusal::Issuer("its claim `iss` is not text: a token has one issuer"));
        }
        match &self.sub {
            Value::Null | Value::String(_) => Ok(()),
            _ => Err(Refusal::Issuer("its claim `sub` is not text")),
        }
    }
}

impl Issuer {
    /// Reads the key.
    ///
    /// # Errors
    /// When a setting or the key file is invalid; the message names it.
    pub(super) fn open(settings: Jwt) -> Result<Self, String> {
        let algorithm = algorithm(&settings.algorithm)?;
        for (name, value) in [("issuer", &settings.issuer), ("audience", &settings.audience)] {
            if value.is_empty() {
                return Err(format!(
                    "security.jwt.{name} is empty: tokens of any would be accepted; set the expected one"
                ));
            }
        }
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let file = Snapshot::take(std::slice::from_ref(&settings.key_file));
        let key = ArcSwap::from_pointee(read(&file, &settings.key_file, algorithm)?);
        let good = Cache::new(REMEMBERED);
        let bad = Cache::builder().max_capacity(REMEMBERED).time_to_live(BAD_FOR).build();
        Ok(Self { settings, algorithm, validation, key, good, bad })
    }

    /// The credential of a token, if it is valid.
    ///
    /// # Errors
    /// When it is invalid.
    pub(super) fn check(&self, text: &str, now_ms: u64) -> Result<Arc<Credential>, Refusal> {
        if text.len() > TEXT_BYTES {
            return Err(Refusal::Malformed);
        }
        let key = self.key.load();
        let seen = (Sha256::digest(text.as_bytes()).into(), key.file);
        if let Some(credential) = self.good.get(&seen) {
            credential.is_good(now_ms)?;
            return Ok(credential);
        }
        if let Some(refusal) = self.bad.get(&seen) {
            return Err(refusal);
        }
        match self.verify(text, &key.key).and_then(|credential| credential.is_good(now_ms).map(|()| credential)) {
            Ok(credential) => {
                let credential = Arc::new(credential);
                self.good.insert(seen, Arc::clone(&credential));
                Ok(credential)
            }
            Err(refusal) => {
                self.bad.insert(seen, refusal.clone());
                Err(refusal)
            }
        }
    }

    fn verify(&self, text: &str, key: &DecodingKey) -> Result<Credential, Refusal> {
        let token = decode::<Claims>(text, key, &self.validation).map_err(|error| refusal(error.kind()))?;
        // RFC 7515, section 4.1.11: such a token means something else to whoever understands the extension.
        if token.header.crit.is_some() {
            return Err(Refusal::Issuer(
                "its header `crit` names extensions that must be understood, and none is known here",
            ));
        }
        let claims = token.claims;
        claims.are_of_their_types()?;
        let (scopes, tenant, expiry) = (claims.scopes()?, claims.tenant()?, claims.expiry()?);
        if tenant.is_none() && !scopes.has(Scope::Operator) {
            return Err(Refusal::Issuer("it names no tenant, and only a token with the scope operator may do without"));
        }
        let subject = claims.sub.as_str().unwrap_or_default();
        let subject: String = subject.chars().filter(|c| !c.is_control()).take(SUBJECT_CHARS).collect();
        // The cast saturates. The leeway for the issuer's clock applies to the expiry, too.
        let expires_at_ms = ((expiry + LEEWAY as f64) * 1000.0) as u64;
        Ok(Credential::new(format!("jwt:{subject}"), tenant, scopes, Some(expires_at_ms)))
    }

    /// Reads the key file again whenever it has changed; never returns. An invalid file leaves the current key in place.
    pub(super) async fn follow(self: Arc<Self>) {
        let file = &self.settings.key_file;
        // It may have changed since the key was read.
        let mut watch = Watch::unread([file.clone()]);
        loop {
            match read(watch.changed().await, file, self.algorithm) {
                Ok(key) => self.take(key),
                Err(error) => {
                    tracing::warn!(%error, "cannot reload the key for web tokens; the previous key stays in use");
                }
            }
        }
    }

    fn take(&self, key: Key) {
        if key.file != self.key.load().file {
            tracing::info!(file = %self.settings.key_file.display(), "reloaded the key for web tokens");
            self.key.store(Arc::new(key));
        }
    }
}

/// Only algorithms that are secure and cannot be confused with each other; never `none`.
fn algorithm(name: &str) -> Result<Algorithm, String> {
    match name {
        "RS256" => Ok(Algorithm::RS256),
        "ES256" => Ok(Algorithm::ES256),
        "EdDSA" => Ok(Algorithm::EdDSA),
        "HS256" => Ok(Algorithm::HS256),
        other => Err(format!("security.jwt.algorithm: {other:?} is not supported; use RS256, ES256, EdDSA or HS256")),
    }
}

fn read(snapshot: &Snapshot, file: &Path, algorithm: Algorithm) -> Result<Key, String> {
    let wrong = |why: String| format!("security.jwt.key_file: {}: {why}", file.display());
    let bytes = snapshot.get(file).map_err(|why| wrong(why.to_owned()))?;
    if bytes.len() > FILE_BYTES {
        return Err(wrong(format!("has {} bytes; a key has at most {FILE_BYTES}", bytes.len())));
    }
    let key = key(bytes, algorithm).map_err(wrong)?;
    Ok(Key { key, file: Sha256::digest(bytes).into() })
}

fn key(bytes: &[u8], algorithm: Algorithm) -> Result<DecodingKey, String> {
    let is_pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
    let key = match algorithm {
        Algorithm::HS256 if is_pem => {
            return Err("is a PEM file, but HS256 needs a secret: a public key is not one".to_owned());
        }
        Algorithm::HS256 => {
            let secret = bytes.trim_ascii();
            if secret.len() < SECRET_BYTES {
                return Err(format!("has {} bytes; a secret of HS256 has at least {SECRET_BYTES}", secret.len()));
            }
            return Ok(DecodingKey::from_secret(secret));
        }
        Algorithm::RS256 => DecodingKey::from_rsa_pem(bytes),
        Algorithm::ES256 => DecodingKey::from_ec_pem(bytes),
        _ => DecodingKey::from_ed_pem(bytes),
    };
    key.map_err(|error| format!("is not a PEM file of a public key for {algorithm:?}: {error}"))
}

fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::InvalidIssuer => Refusal::Issuer("its issuer is not `security.jwt.issuer`"),
        ErrorKind::InvalidAudience => Refusal::Issuer("it is not for `security.jwt.audience`"),
        ErrorKind::ImmatureSignature => Refusal::Issuer("it is not valid yet (`nbf`)"),
        ErrorKind::MissingRequiredClaim(_) => Refusal::Issuer("it lacks one of the claims exp, iss and aud"),
        ErrorKind::InvalidClaimFormat(_) => {
            Refusal::Issuer("one of its claims `exp` and `nbf` is not a number of seconds since 1970")
        }
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => {
            Refusal::Issuer("it is not signed with `security.jwt.algorithm`")
        }
        ErrorKind::InvalidSignature => Refusal::Issuer("its signature is not that of `security.jwt.key_file`"),
        _ => Refusal::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn settings(file: &Path) -> Jwt {
        Jwt { algorithm: "HS256".into(), key_file: file.to_owned(), issuer: "us".into(), audience: "witan".into() }
    }

    fn issuer() -> Issuer {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(SECRET).unwrap();
        Issuer::open(settings(file.path())).unwrap()
    }

    fn claims() -> Value {
        let exp = get_current_timestamp() + 600;
        json!({ "exp": exp, "iss": "us", "aud": "witan", "sub": "ci", "scope": "openid read write", "tenant": "acme" })
    }

    fn signed(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn now_ms() -> u64 {
        get_current_timestamp() * 1000
    }

    #[test]
    fn a_valid_token_gives_tenant_and_scopes() {
        let issuer = issuer();
        let text = signed(Algorithm::HS256, SECRET, &claims());
        let credential = issuer.check(&text, now_ms()).unwrap();
        assert_eq!((credential.id(), credential.tenant().unwrap().as_str()), ("jwt:ci", "acme"));
        assert_eq!(credential.scopes(), Scopes::parse(["read", "write"]).unwrap());
        let again = issuer.check(&text, now_ms()).unwrap();
        assert!(Arc::ptr_eq(&credential, &again), "it is remembered");
        assert_eq!(issuer.check(&text, now_ms() + 700_000).unwrap_err(), Refusal::Expired, "and its end as well");
    }

    #[test]
    fn tokens_that_do_not_hold_are_refused() {
        let issuer = issuer();
        let change = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            claims
        };
        let missing = |name: &str| {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(name);
            claims
        };
        let now = get_current_timestamp();
        let wrong = [
            change("exp", json!(now - 100)),
            change("exp", json!("tomorrow")),
            change("nbf", json!(now + 100)),
            change("iss", json!("them")),
            change("aud", json!("another")),
            change("tenant", json!("a:b")),
            change("tenant", json!(["acme", "other"])),
            missing("exp"),
            missing("iss"),
            missing("aud"),
            missing("tenant"),
        ];
        for claims in wrong {
            let text = signed(Algorithm::HS256, SECRET, &claims);
            assert!(issuer.check(&text, now_ms()).is_err(), "{claims}");
            assert!(issuer.check(&text, now_ms()).is_err(), "{claims}: again");
        }
        let text = signed(Algorithm::HS256, b"another secret of more than 32 bytes", &claims());
        assert!(matches!(issuer.check(&text, now_ms()), Err(Refusal::Issuer(why)) if why.contains("signature")));
    }

    #[test]
    fn a_refusal_names_the_claim() {
        let issuer = issuer();
        let reason = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value.clone();
            let refused = issuer.check(&signed(Algorithm::HS256, SECRET, &claims), now_ms());
            refused.err().unwrap_or_else(|| panic!("{name}: {value} is accepted")).to_string()
        };
        let now = get_current_timestamp();
        for (name, value, says) in [
            ("exp", json!(now * 1000), "milliseconds"),
            ("exp", json!(now * 1_000_000), "`exp`"),
            ("iss", json!(["us"]), "`iss`"),
            ("iss", json!(["us", "them"]), "issuer"),
            ("nbf", json!("tomorrow"), "`nbf`"),
            ("sub", json!(7), "`sub`"),
            ("scope", json!(["read", 7]), "`scope`"),
            ("scope", json!({ "read": true }), "`scope`"),
            ("tenant", json!(["acme", "other"]), "`tenant`"),
            ("tenant", json!("a:b"), "`tenant`"),
        ] {
            let refused = reason(name, value.clone());
            assert!(refused.contains(says), "{name}: {value}: {refused}");
        }
    }

    #[test]
    fn scopes_may_be_a_list() {
        let issuer = issuer();
        let scopes = |value: Value| {
            let mut claims = claims();
            claims["scope"] = value;
            issuer.check(&signed(Algorithm::HS256, SECRET, &claims), now_ms()).unwrap().scopes()
        };
        assert_eq!(scopes(json!(["openid", "read", "write"])), Scopes::parse(["read", "write"]).unwrap());
        assert_eq!(scopes(json!(["read write"])), Scopes::NONE, "the names of a list are not split");
        assert_eq!((scopes(json!([])), scopes(Value::Null)), (Scopes::NONE, Scopes::NONE));
    }

    #[test]
    fn an_extension_that_must_be_understood_is_refused() {
        let issuer = issuer();
        for crit in [&["exp"][..], &["http://example.com/UNDEFINED"], &["b64"], &[]] {
            let crit: Vec<String> = crit.iter().map(|name| (*name).to_owned()).collect();
            let header = Header { crit: Some(crit.clone()), ..Header::new(Algorithm::HS256) };
            let text = encode(&header, &claims(), &EncodingKey::from_secret(SECRET)).unwrap();
            let refused = issuer.check(&text, now_ms()).unwrap_err();
            assert!(matches!(refused, Refusal::Issuer(why) if why.contains("crit")), "{crit:?}: {refused}");
        }
    }

    #[test]
    fn the_header_does_not_choose_the_algorithm() {
        let issuer = issuer();
        let text = signed(Algorithm::HS384, SECRET, &claims());
        assert!(issuer.check(&text, now_ms()).is_err());
        let good = signed(Algorithm::HS256, SECRET, &claims());
        let payload = good.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT"}
        for header in ["eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0", "eyJhbGciOiJOT05FIiwidHlwIjoiSldUIn0", ""] {
            for signature in ["", "AAAA", good.rsplit('.').next().unwrap()] {
                assert!(issuer.check(&format!("{header}.{payload}.{signature}"), now_ms()).is_err(), "{header}");
            }
        }
        for garbage in ["", "..", "a.b.c", "\u{1F600}.x.y", &"x".repeat(TEXT_BYTES + 1)] {
            assert!(issuer.check(garbage, now_ms()).is_err());
        }
    }

    /// A PEM file of these bytes.
    fn pem(label: &str, der: &[u8]) -> String {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    /// An issuer with this algorithm, its signing key, and its public key.
    fn issuer_of(algorithm: Algorithm) -> (Issuer, EncodingKey, String) {
        let (public, private) = match algorithm {
            Algorithm::RS256 => {
                use rsa::pkcs1::EncodeRsaPrivateKey;
                use rsa::pkcs8::EncodePublicKey;
                let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
                let public = pem("PUBLIC KEY", key.to_public_key().to_public_key_der().unwrap().as_bytes());
                (public, EncodingKey::from_rsa_der(key.to_pkcs1_der().unwrap().as_bytes()))
            }
            Algorithm::ES256 => {
                let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
                (key.public_key_pem(), EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap())
            }
            Algorithm::EdDSA => {
                let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
                (key.public_key_pem(), EncodingKey::from_ed_der(key.serialized_der()))
            }
            other => panic!("{other:?} is not asymmetric"),
        };
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(public.as_bytes()).unwrap();
        let settings = Jwt { algorithm: format!("{algorithm:?}"), ..settings(file.path()) };
        (Issuer::open(settings).unwrap(), private, public)
    }

    #[test]
    fn pairs_of_keys_sign_for_their_own_algorithm() {
        for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
            let (issuer, private, public) = issuer_of(algorithm);
            let text = encode(&Header::new(algorithm), &claims(), &private).unwrap();
            assert_eq!(issuer.check(&text, now_ms()).unwrap().id(), "jwt:ci", "{algorithm:?}");
            let (_, another, _) = issuer_of(algorithm);
            let text = encode(&Header::new(algorithm), &claims(), &another).unwrap();
            assert!(issuer.check(&text, now_ms()).is_err(), "{algorithm:?}: of another key");
            for secret in [public.as_bytes(), SECRET, b""] {
                // A token signed with the public key as a shared secret must be refused.
                let text = signed(Algorithm::HS256, secret, &claims());
                assert!(issuer.check(&text, now_ms()).is_err(), "{algorithm:?} taken for HS256");
            }
        }
    }

    #[test]
    fn only_operators_need_no_tenant() {
        let issuer = issuer();
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove("tenant");
        claims["scope"] = json!("operator");
        let credential = issuer.check(&signed(Algorithm::HS256, SECRET, &claims), now_ms()).unwrap();
        assert_eq!((credential.tenant(), credential.scopes()), (None, Scopes::only(Scope::Operator)));
    }

    #[test]
    fn another_key_makes_another_verdict() {
        let issuer = issuer();
        let text = signed(Algorithm::HS256, SECRET, &claims());
        assert!(issuer.check(&text, now_ms()).is_ok());
        let other = [b'x'; 32];
        issuer.take(Key { key: DecodingKey::from_secret(&other), file: [1; 32] });
        assert!(issuer.check(&text, now_ms()).is_err());
        assert!(issuer.check(&signed(Algorithm::HS256, &other, &claims()), now_ms()).is_ok());
    }

    #[test]
    fn settings_that_would_let_anybody_in_are_refused() {
        let write = |bytes: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bytes).unwrap();
            file
        };
        let refused = |change: fn(&mut Jwt), bytes: &[u8]| {
            let file = write(bytes);
            let mut settings = settings(file.path());
            change(&mut settings);
            Issuer::open(settings).err().expect("it is refused")
        };
        assert!(refused(|jwt| jwt.algorithm = "none".into(), SECRET).contains("security.jwt.algorithm"));
        assert!(refused(|jwt| jwt.issuer.clear(), SECRET).contains("security.jwt.issuer"));
        assert!(refused(|_| (), b"short").contains("at least 32"));
        assert!(refused(|_| (), b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA").contains("PEM"));
        assert!(refused(|jwt| jwt.algorithm = "EdDSA".into(), SECRET).contains("not a PEM file"));
        assert!(refused(|jwt| jwt.key_file = "/nonexistent".into(), SECRET).contains("/nonexistent"));
    }
}
