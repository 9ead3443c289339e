//! API tokens as text: `witan_<id>_<secret>`. The id is public, and identifies the token in lists and in the audit log; the
//! secret has 256 random bits, of which only a hash is stored. It cannot be guessed, so it needs no slow password hash.

use std::fmt;

use sha2::{Digest, Sha256};
use witan_kernel::name::TenantId;
use witan_kernel::port::{TOKEN_ID_BYTES, Token};

use super::scope::Scopes;

/// Prefix of every token, by which secret scanners find leaked ones.
const PREFIX: &str = "witan_";
/// Characters of an id: 60 bits, enough that 10,000 tokens do not collide.
const ID_CHARS: usize = 12;
/// Digits of a secret: 256 bits.
const SECRET_CHARS: usize = 64;
/// Longest token, in bytes; longer text is refused unread.
pub const TEXT_BYTES: usize = PREFIX.len() + TOKEN_ID_BYTES + 1 + SECRET_CHARS;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A new token with its secret, which is not stored.
pub struct Fresh {
    /// The text that its holder sends; shown once.
    pub text: String,
    /// The stored part.
    pub token: Token,
}

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").field("token", &self.token).finish_non_exhaustive()
    }
}

/// What a new token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The tenant; `None`: all tenants.
    pub tenant: Option<TenantId>,
    /// The scopes.
    pub scopes: Scopes,
    /// Description for people.
    pub label: String,
    /// When it expires: Unix time, milliseconds.
    pub expires_at_ms: Option<u64>,
}

/// Makes a token from random bits.
pub fn make(grant: Grant, id: [u8; ID_CHARS], secret: [u8; 32], now_ms: u64) -> Fresh {
    let id: String = id.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    let secret = hexadecimal(&secret);
    let token = Token {
        hash: hash(&secret),
        tenant: grant.tenant,
        scopes: grant.scopes.bits(),
        label: grant.label,
        created_at_ms: now_ms,
        expires_at_ms: grant.expires_at_ms,
        id,
    };
    Fresh { text: format!("{PREFIX}{}_{secret}", token.id), token }
}

/// Splits a text into id and secret, if it may be a token.
pub fn split(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let well_formed = !id.is_empty() && id.len() <= TOKEN_ID_BYTES && secret.len() == SECRET_CHARS;
    well_formed.then_some((id, secret))
}

/// True for text with the prefix of API tokens, well-formed or not.
pub fn is_meant(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The stored hash of a secret.
pub fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Compares two hashes in constant time.
pub fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    std::hint::black_box(one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b))) == 0
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::scope::Scope;

    fn fresh() -> Fresh {
        let grant = Grant {
            tenant: TenantId::new("acme").ok(),
            scopes: Scopes::only(Scope::Read),
            label: "ci".to_owned(),
            expires_at_ms: Some(9),
        };
        make(grant, [7; 12], [0xa5; 32], 5)
    }

    #[test]
    fn a_token_is_taken_apart_into_what_is_stored() {
        let Fresh { text, token } = fresh();
        assert_eq!(text.len(), 6 + 12 + 1 + 64);
        let (id, secret) = split(&text).unwrap();
        assert_eq!(id, token.id);
        assert!(same(&hash(secret), &token.hash));
        assert!(!same(&hash("x"), &token.hash));
    }

    #[test]
    fn what_is_no_token_is_not_taken() {
        let good = fresh().text;
        let too_long = format!("witan_{}_{}", "a".repeat(65), "0".repeat(64));
        let cut = &good[..good.len() - 1];
        for wrong in ["", "witan_", "witan__", "witan_a_b", "Witan_a_b", cut, &too_long, &format!("{good}0")] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let fresh = fresh();
        assert!(!format!("{fresh:?}").contains("a5a5"));
    }
}
