//! Signatures of plugins: what is signed, byte for byte, with which keys, and whether a plugin must be.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey as PrivateKey, VerifyingKey};
use witan_kernel::hexadecimal;
use witan_kernel::name::{TenantId, shown};
use witan_kernel::port::{Artifact, SigningKey, rules};

use crate::digest::Digest;

/// What every signed text begins with, so that no signature of something else is one of a plugin.
const DOMAIN: &[u8] = b"witan plugin signature v1\n";
/// What a file with a signature begins with.
const FILE: &str = "witan-signature-v1";
/// Most bytes of a file with a signature: its first word, the id of a key, and 128 digits.
pub const SIGNATURE_FILE_BYTES: usize = 512;

/// Whether plugins must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Signatures are not looked at.
    #[default]
    Off,
    /// A wrong signature is refused, and what is not signed is logged.
    Warn,
    /// What is not signed is refused: when it is staged, and when it is bound.
    Required,
}

/// What the configuration says of signatures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signatures {
    /// Whether plugins must be signed.
    pub mode: Mode,
    /// The keys that the configuration names, beside those of the store.
    pub keys: Vec<SigningKey>,
}

/// Why a plugin is refused for its signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It has none.
    #[error(
        "{plugin} is not signed, and plugins.signatures requires it: sign it with `witan plugin sign`, then push it with --signature"
    )]
    Missing {
        /// The plugin, `name@version`.
        plugin: String,
    },
    /// It is signed with a key that is not known, or not any longer.
    #[error(
        "{plugin} is signed with {key}, which is no signing key of {owner}: sign it with another, or add the key (`witan plugin keys add`)"
    )]
    UnknownKey {
        /// The plugin, `name@version`.
        plugin: String,
        /// The key's id, quoted.
        key: String,
        /// Whose plugin it is.
        owner: String,
    },
    /// The signature is not one of this plugin.
    #[error(
        "the signature with {key} is not one of {plugin} of {owner} with the digest {digest}: digest, name, version and tenant must be \
         those that were signed; sign this component again"
    )]
    Wrong {
        /// The plugin, `name@version`.
        plugin: String,
        /// The key's id, quoted.
        key: String,
        /// Whose plugin it is.
        owner: String,
        /// The component's digest.
        digest: Digest,
    },
    /// It is no signature.
    #[error("the signature {0}: send the one that `witan plugin sign` has written")]
    Form(&'static str),
}

/// A signature, and the key that has made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    key: String,
    bytes: [u8; 64],
}

impl Signature {
    /// The signature of these bytes, by the key of this id.
    pub fn new(key: &str, bytes: &[u8]) -> Result<Self, SignatureError> {
        if !rules::is_signing_key_id(key) {
            return Err(SignatureError::Form("does not name its key with 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'"));
        }
        let bytes = bytes.try_into().map_err(|_| SignatureError::Form("does not have 64 bytes"))?;
        Ok(Self { key: key.to_owned(), bytes })
    }

    /// Reads a file with a signature.
    pub fn parse(text: &[u8]) -> Result<Self, SignatureError> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= SIGNATURE_FILE_BYTES);
        let words: Vec<&str> = text.unwrap_or_default().split_ascii_whitespace().collect();
        let &[FILE, key, digits] = words.as_slice() else {
            return Err(SignatureError::Form(
                "does not consist of witan-signature-v1, the id of a key, and 128 hexadecimal digits",
            ));
        };
        Self::new(
            key,
            &hexadecimal::decode(digits).ok_or(SignatureError::Form("has other characters than hexadecimal digits"))?,
        )
    }

    /// The id of the key.
    pub fn key_id(&self) -> &str {
        &self.key
    }

    /// Its 64 bytes.
    pub fn bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

/// As in a file with a signature.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FILE} {} {}", self.key, hexadecimal::encode(&self.bytes))
    }
}

/// What a signature says: that a component is this plugin of this owner.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// The component.
    pub digest: Digest,
    /// The plugin's name.
    pub name: &'a str,
    /// The plugin's version.
    pub version: &'a str,
    /// The tenant that it is for; `None`: it is the operator's.
    pub owner: Option<&'a TenantId>,
}

impl<'a> Statement<'a> {
    /// What a signature of an artifact must say.
    pub fn of(artifact: &'a Artifact) -> Self {
        let Artifact { digest, name, version, owner, .. } = artifact;
        Self { digest: *digest, name, version, owner: owner.as_ref() }
    }

    /// The bytes that are signed: a line that says what they are, the 32 bytes of the digest, then name, version and tenant id (empty for
    /// the operator), each behind its length in bytes as two bytes, the higher one first.
    pub fn bytes(&self) -> Vec<u8> {
        let owner = self.owner.map_or("", TenantId::as_str);
        let mut bytes = [DOMAIN, self.digest.bytes()].concat();
        for text in [self.name, self.version, owner] {
            // None of them has more than 256 bytes.
            bytes.extend((text.len() as u16).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    /// Signs it with the private key of these 32 bytes, whose id is `key`.
    pub fn sign(&self, private: &[u8; 32], key: &str) -> Result<Signature, SignatureError> {
        Signature::new(key, &PrivateKey::from_bytes(private).sign(&self.bytes()).to_bytes())
    }
}

/// The public key that belongs to a private one.
pub fn public_key(private: &[u8; 32]) -> [u8; 32] {
    PrivateKey::from_bytes(private).verifying_key().to_bytes()
}

/// Whether a public key may verify signatures: a point of the curve in its only spelling, and not one of the few under which almost
/// anything is signed.
pub fn is_public_key(public: &[u8; 32]) -> bool {
    let is_canonical = |key: &VerifyingKey| key.to_edwards().compress().as_bytes() == public;
    VerifyingKey::from_bytes(public).is_ok_and(|key| !key.is_weak() && is_canonical(&key))
}

/// Checks that an artifact is signed by one of these keys of its owner. Returns the key's id.
pub(crate) fn verify(
    artifact: &Artifact,
    signature: &Signature,
    keys: &[SigningKey],
) -> Result<String, SignatureError> {
    let key = key_of(artifact, &signature.key, keys)?;
    let verifying = VerifyingKey::from_bytes(&key.public);
    let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
    let is_good = verifying.is_ok_and(|key| key.verify_strict(&Statement::of(artifact).bytes(), &bytes).is_ok());
    if is_good {
        return Ok(key.id.clone());
    }
    Err(SignatureError::Wrong {
        plugin: artifact.plugin(),
        key: shown(&signature.key),
        owner: whose(artifact),
        digest: artifact.digest,
    })
}

/// Checks that an artifact was signed by a key that is still known.
pub(crate) fn is_signed(artifact: &Artifact, keys: &[SigningKey]) -> Result<(), SignatureError> {
    match &artifact.signed_by {
        Some(id) => key_of(artifact, id, keys).map(|_| ()),
        None => Err(SignatureError::Missing { plugin: artifact.plugin() }),
    }
}

fn key_of<'a>(artifact: &Artifact, id: &str, keys: &'a [SigningKey]) -> Result<&'a SigningKey, SignatureError> {
    let unknown = || SignatureError::UnknownKey { plugin: artifact.plugin(), key: shown(id), owner: whose(artifact) };
    keys.iter().find(|key| key.owner == artifact.owner && key.id == id).ok_or_else(unknown)
}

fn whose(artifact: &Artifact) -> String {
    artifact.owner.as_ref().map_or_else(|| "the operator".to_owned(), |tenant| format!("tenant {tenant}"))
}

#[cfg(test)]
mod tests {
    use witan_kernel::hook::Hook;
    use witan_kernel::port::Source;

    use super::*;

    const PRIVATE: [u8; 32] = [7; 32];

    fn artifact(owner: &str) -> Artifact {
        Artifact {
            digest: Digest::of(b"component"),
            owner: (!owner.is_empty()).then(|| TenantId::new(owner).unwrap()),
            name: "cart".to_owned(),
            version: "1.2.0".to_owned(),
            hook: Hook::ConflictResolver,
            deterministic: true,
            size: 9,
            staged_at_ms: 0,
            source: Source::Upload,
            signed_by: None,
            class: witan_kernel::class::Class::Standard,
            class_reason: String::new(),
        }
    }

    fn keys(owner: &str) -> Vec<SigningKey> {
        let Artifact { owner, .. } = artifact(owner);
        vec![SigningKey { owner, id: "release".to_owned(), public: public_key(&PRIVATE), added_at_ms: 0 }]
    }

    /// Other programs sign, too: the layout is an interface.
    #[test]
    fn what_is_signed_is_laid_out_as_documented() {
        let of_tenant = artifact("shop");
        let digest = Digest::of(b"component");
        let expected = [b"witan plugin signature v1\n", &digest.0[..], b"\0\x04cart\0\x051.2.0\0\x04shop"].concat();
        assert_eq!(Statement::of(&of_tenant).bytes(), expected);
        let of_operator = artifact("");
        assert!(Statement::of(&of_operator).bytes().ends_with(b"\0\x051.2.0\0\0"));
    }

    #[test]
    fn a_signature_is_of_one_component_name_version_and_owner() {
        let signed = artifact("shop");
        let signature = Statement::of(&signed).sign(&PRIVATE, "release").unwrap();
        assert_eq!(verify(&signed, &signature, &keys("shop")), Ok("release".to_owned()));
        let other = |change: fn(&mut Artifact)| {
            let mut other = signed.clone();
            change(&mut other);
            other
        };
        for other in [
            other(|it| it.digest = Digest::of(b"other")),
            other(|it| it.name = "card".to_owned()),
            other(|it| it.version = "1.2.1".to_owned()),
            // The same bytes, cut elsewhere.
            other(|it| (it.name, it.version) = ("cart1".to_owned(), ".2.0".to_owned())),
        ] {
            let refused = verify(&other, &signature, &keys("shop"));
            assert!(matches!(refused, Err(SignatureError::Wrong { .. })), "{other:?}: {refused:?}");
        }
        for owner in ["", "shop2"] {
            // Even if that owner trusts the same key.
            let refused = verify(&artifact(owner), &signature, &keys(owner));
            assert!(matches!(refused, Err(SignatureError::Wrong { .. })), "{owner}: {refused:?}");
            let refused = verify(&signed, &signature, &keys(owner)).unwrap_err();
            assert!(matches!(refused, SignatureError::UnknownKey { .. }), "keys are their owner's: {refused}");
        }
        let mut altered = signature.clone();
        altered.bytes[40] ^= 1;
        assert!(verify(&signed, &altered, &keys("shop")).is_err());
        let renamed = Signature { key: "other".to_owned(), ..signature };
        assert!(matches!(verify(&signed, &renamed, &keys("shop")), Err(SignatureError::UnknownKey { .. })));
    }

    #[test]
    fn weak_keys_are_none() {
        assert!(is_public_key(&public_key(&PRIVATE)));
        // The neutral element, of order 1, and a point of order 2.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert!(!is_public_key(&neutral) && !is_public_key(&[0xff; 32]) && !is_public_key(&[0; 32]));
    }

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let signature = Statement::of(&artifact("")).sign(&PRIVATE, "release").unwrap();
        let text = signature.to_string();
        assert_eq!(Signature::parse(format!("{text}\n").as_bytes()), Ok(signature));
        let long = format!("{text}{}", " ".repeat(SIGNATURE_FILE_BYTES));
        let cut = &text[..text.len() - 2];
        let wrong = [
            "",
            cut,
            &text.replace("v1", "v2"),
            &text.replace("release", "re/lease"),
            &text.replace("release", ""),
            &format!("{text} more"),
            &format!("{text}0"),
            &text.replacen(&text[text.len() - 4..], "\u{e9}zz", 1),
            &long,
        ];
        for text in wrong {
            let refused = Signature::parse(text.as_bytes());
            assert!(matches!(refused, Err(SignatureError::Form(_))), "{text}: {refused:?}");
        }
        assert!(Signature::parse(&[0xff, 0xfe]).is_err());
    }
}
