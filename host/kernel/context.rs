//! Contexts: what a reader has seen, as an opaque token that it sends back with its next write.
//!
//! A replica drops the versions that a token covers. A forged token could delete values that no client has read, so tokens are
//! authenticated, and bound to their tenant and key.

use std::fmt;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smallvec::SmallVec;

use crate::limit::CONTEXT_BYTES;
use crate::name::{Era, Invalid, Key, TenantId, WriteId};
use crate::record::Damaged;
use crate::record::raw::{ID, Raw, VARINT_BYTES, put_actor, put_varint};
use crate::register::Stamp;
use crate::siblings::{Dot, VersionVector};

/// What a context claims to have seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claims {
    /// No record at all: it covers nothing.
    Nothing,
    /// A register, up to a stamp.
    Register {
        /// The stamp of the value that was read.
        stamp: Stamp,
    },
    /// A `siblings` record.
    Siblings {
        /// Events seen.
        seen: VersionVector,
        /// Writes seen, the most important (newest) first: what does not fit into a token is cut from the end.
        ids: Vec<WriteId>,
        /// The greatest time of what was seen, microseconds; 0 in a token that does not say it.
        newest: u64,
    },
}

/// Versions of tokens that may be issued: those that every coordinator can open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Issue {
    /// Those of the previous version of the program.
    #[default]
    First,
    /// All.
    Second,
}

/// One of the cluster's context keys.
#[derive(Clone)]
struct Keyed {
    id: u32,
    mac: Hmac<Sha256>,
}

/// The cluster's keys that authenticate contexts, and the era that they are of: the current one seals, all of them open. Rotation: put a
/// new one first, and drop the old one when no client can still hold its tokens. An era begins with a new key and without the old ones.
#[derive(Clone)]
pub struct ContextKeys {
    era: Era,
    current: Keyed,
    previous: Vec<Keyed>,
}

impl fmt::Debug for ContextKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let previous: Vec<u32> = self.previous.iter().map(|key| key.id).collect();
        f.debug_struct("ContextKeys")
            .field("current", &self.current.id)
            .field("previous", &previous)
            .finish_non_exhaustive()
    }
}

/// Why a token was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// It is no token that was sealed for this tenant and key.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Its key is no longer in use: it is older than a restore of the cluster, or than many rotations.
    #[error("the context's key is no longer in use")]
    Outdated,
}

const V1: u8 = 1;
/// Says also `newest`, and single events beyond the vector.
const V2: u8 = 2;
/// Bytes of the 32-byte SHA-256 that a token carries: 128 bits.
const MAC: usize = 16;
const NOTHING: u8 = 0;
const REGISTER: u8 = 1;
const SIBLINGS: u8 = 2;
/// Separates this use of the keys from any other.
const PURPOSE: &[u8] = b"witan context v1";
const REMEDY: &str = "send the context that a read or write of this very key has returned, or none";

fn invalid(problem: impl Into<String>) -> Invalid {
    Invalid::new("context", problem, REMEDY)
}

impl ContextKeys {
    /// Keys of an era with their ids, the current one first.
    ///
    /// # Errors
    /// There is no key, or two keys have the same id.
    pub fn new(era: Era, keys: &[(u32, [u8; 32])]) -> Result<Self, Invalid> {
        let wrong = |problem: &str| {
            Invalid::new("context_keys", problem, "give each key a different id, the current one first")
        };
        for (index, (id, _)) in keys.iter().enumerate() {
            if keys[..index].iter().any(|(other, _)| other == id) {
                return Err(wrong("two keys have the same id"));
            }
        }
        let mut keyed = keys.iter().map(|(id, secret)| {
            // Keying hashes a block, so it is done once, here, and the state is copied for each token.
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| wrong("a key has a wrong length"))?;
            mac.update(PURPOSE);
            Ok(Keyed { id: *id, mac })
        });
        let current = keyed.next().ok_or_else(|| wrong("there is none"))??;
        let previous = keyed.collect::<Result<_, _>>()?;
        Ok(Self { era, current, previous })
    }

    /// The era that the keys are of.
    pub fn era(&self) -> Era {
        self.era
    }

    /// Makes a token of at most [`CONTEXT_BYTES`]. What does not fit is left out: first write ids, from the end, then actors. A token with
    /// less in it covers less, which is safe.
    pub fn seal(&self, tenant: &TenantId, key: &Key, claims: &Claims, issue: Issue) -> Bytes {
        let mut out = Vec::with_capacity(64 + bound(claims));
        // Only claims about siblings have a second version.
        let second = issue == Issue::Second && matches!(claims, Claims::Siblings { .. });
        out.push(if second { V2 } else { V1 });
        put_varint(&mut out, u64::from(self.current.id));
        put_claims(&mut out, claims, second);
        let mac = authenticator(&self.current, tenant, key, &out).finalize().into_bytes();
        out.extend_from_slice(&mac[..MAC]);
        Bytes::from(out)
    }

    /// Reads a token that was sealed for this tenant and key. An empty one is no context: [`Claims::Nothing`].
    ///
    /// # Errors
    /// [`Unopened::Outdated`] if it was sealed with a key that is no longer known. [`Unopened::Invalid`] (field `context`) for anything
    /// else: cut off, of an unknown version, or not authentic. An altered token looks like one of another tenant or key.
    pub fn open(&self, tenant: &TenantId, key: &Key, token: &[u8]) -> Result<Claims, Unopened> {
        if token.is_empty() {
            return Ok(Claims::Nothing);
        }
        if token.len() > CONTEXT_BYTES {
            return Err(invalid(format!("has {} bytes, and a context has {CONTEXT_BYTES} at most", token.len())).into());
        }
        if token[0] != V1 && token[0] != V2 {
            return Err(invalid("is of a version that this coordinator does not know").into());
        }
        let (sealed, mac) = token.split_last_chunk::<MAC>().ok_or_else(|| invalid("is cut off"))?;
        let mut raw = Raw::new(sealed, 1);
        let id = raw.varint().map_err(|_| invalid("is cut off"))?;
        let keyed = std::iter::once(&self.current)
            .chain(&self.previous)
            .find(|keyed| u64::from(keyed.id) == id)
            .ok_or(Unopened::Outdated)?;
        authenticator(keyed, tenant, key, sealed)
            .verify_truncated_left(mac)
            .map_err(|_| invalid("was made for another tenant or key, or was altered or cut off"))?;
        claims(raw, token[0] == V2)
            .map_err(|Damaged(what)| invalid(format!("is authentic and yet unreadable ({what})")).into())
    }
}

/// What a token claims, be it authentic or not; `None` if it is not in the form of one. Only for showing it to people.
pub fn shown(token: &[u8]) -> Option<Claims> {
    if token.is_empty() {
        return Some(Claims::Nothing);
    }
    let second = match token[0] {
        V1 => false,
        V2 => true,
        _ => return None,
    };
    let (sealed, _) = token.split_last_chunk::<MAC>()?;
    let mut raw = Raw::new(sealed, 1);
    raw.varint().ok()?;
    claims(raw, second).ok()
}

/// HMAC over purpose, tenant, key (each after its length) and everything that precedes the authenticator.
fn authenticator(keyed: &Keyed, tenant: &TenantId, key: &Key, sealed: &[u8]) -> Hmac<Sha256> {
    let mut mac = keyed.mac.clone();
    for part in [tenant.bytes(), key.bytes()] {
        mac.update(&(part.len() as u32).to_be_bytes());
        mac.update(part);
    }
    mac.update(sealed);
    mac
}

/// Longest form of an actor and its counter.
const ENTRY: usize = ID + 2 * VARINT_BYTES;

fn bound(claims: &Claims) -> usize {
    match claims {
        Claims::Nothing => 0,
        Claims::Register { .. } => VARINT_BYTES,
        Claims::Siblings { seen, ids, .. } => {
            ((seen.entries.len() + seen.cloud.len()) * ENTRY + ids.len() * ID + 2 * VARINT_BYTES).min(CONTEXT_BYTES)
        }
    }
}

fn put_claims(out: &mut Vec<u8>, claims: &Claims, second: bool) {
    match claims {
        Claims::Nothing => out.push(NOTHING),
        Claims::Register { stamp } => {
            out.push(REGISTER);
            put_varint(out, stamp.0);
        }
        Claims::Siblings { seen, ids, newest } => {
            out.push(SIBLINGS);
            if second {
                put_varint(out, *newest);
                put_cloud(out, seen);
            }
            put_sibling_claims(out, seen, ids);
        }
    }
}

/// Single events: at most a quarter of a token, so that they do not crowd out the vector.
fn put_cloud(out: &mut Vec<u8>, seen: &VersionVector) {
    let dots = &seen.cloud[..seen.cloud.len().min(CONTEXT_BYTES / 4 / ENTRY)];
    put_varint(out, dots.len() as u64);
    for dot in dots {
        put_actor(out, &dot.actor);
        put_varint(out, dot.counter);
    }
}

fn put_sibling_claims(out: &mut Vec<u8>, seen: &VersionVector, ids: &[WriteId]) {
    // Besides the claims: both counts and the authenticator.
    let room = CONTEXT_BYTES - MAC - 2 * VARINT_BYTES - out.len();
    let entries = seen.entries.len().min(room / ENTRY);
    put_varint(out, entries as u64);
    for (actor, counter) in &seen.entries[..entries] {
        put_actor(out, actor);
        put_varint(out, *counter);
    }
    let ids = &ids[..ids.len().min((CONTEXT_BYTES - MAC - VARINT_BYTES - out.len()) / ID)];
    put_varint(out, ids.len() as u64);
    for id in ids {
        out.extend_from_slice(&id.0);
    }
}

fn claims(mut raw: Raw<'_>, second: bool) -> Result<Claims, Damaged> {
    let claims = match raw.varint()? {
        0 | 1 if second => return Err(Damaged("a kind without a second version")),
        0 => Claims::Nothing,
        1 => Claims::Register { stamp: Stamp(raw.varint()?) },
        2 => {
            let newest = if second { raw.varint()? } else { 0 };
            let mut dots: SmallVec<[Dot; 2]> = SmallVec::new();
            for _ in 0..if second { raw.count(ID + 2)? } else { 0 } {
                dots.push(Dot { actor: raw.actor()?, counter: raw.varint()? });
            }
            let mut seen = raw.seen()?;
            let count = raw.count(ID)?;
            let ids = (0..count).map(|_| raw.write_id()).collect::<Result<_, _>>()?;
            for dot in &dots {
                seen.add(dot);
            }
            Claims::Siblings { seen, ids, newest }
        }
        _ => return Err(Damaged("unknown kind")),
    };
    if raw.left() > 0 { Err(Damaged("bytes after its end")) } else { Ok(claims) }
}

#[cfg(test)]
mod tests {
    use hmac::Mac;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{Claims, ContextKeys, Issue, MAC, Unopened, authenticator, shown};
    use crate::limit::CONTEXT_BYTES;
    use crate::name::{Era, Key, StoreId, TenantId, WriteId};
    use crate::register::Stamp;
    use crate::siblings::{Actor, Dot, VersionVector};

    fn keys() -> ContextKeys {
        ContextKeys::new(Era::default(), &[(7, [7; 32]), (6, [6; 32])]).expect("two keys")
    }

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).expect("a tenant id")
    }

    fn key(key: &'static str) -> Key {
        Key::new(key).expect("a key")
    }

    fn seen(actors: u32) -> VersionVector {
        let mut seen = VersionVector::default();
        for n in 0..actors {
            let mut store = [0; 16];
            store[..4].copy_from_slice(&n.to_be_bytes());
            seen.advance(&Dot { actor: Actor { store: StoreId(store), birth: u64::MAX }, counter: u64::MAX });
        }
        seen
    }

    fn ids(count: u32) -> Vec<WriteId> {
        (0..count).map(|n| WriteId(u128::from(n).to_be_bytes())).collect()
    }

    fn samples() -> [Claims; 4] {
        [
            Claims::Nothing,
            Claims::Register { stamp: Stamp(u64::MAX) },
            Claims::Siblings { seen: VersionVector::default(), ids: Vec::new(), newest: 0 },
            Claims::Siblings { seen: seen(5), ids: ids(25), newest: 0 },
        ]
    }

    #[test]
    fn what_was_sealed_opens_again() {
        for claims in samples() {
            let token = keys().seal(&tenant("t"), &key("k"), &claims, Issue::Second);
            assert!(token.len() <= CONTEXT_BYTES);
            assert_eq!(shown(&token), Some(claims.clone()));
            assert_eq!(keys().open(&tenant("t"), &key("k"), &token), Ok(claims));
        }
        assert_eq!(shown(b""), Some(Claims::Nothing));
        assert_eq!(keys().open(&tenant("t"), &key("k"), b""), Ok(Claims::Nothing));
    }

    #[test]
    fn a_token_of_anybody_can_be_shown() {
        let claims = &samples()[3];
        for (issue, version) in [(Issue::First, 1), (Issue::Second, 2)] {
            let token = keys().seal(&tenant("t"), &key("k"), claims, issue);
            assert_eq!((token[0], shown(&token)), (version, Some(claims.clone())));
            let mut forged = token.to_vec();
            *forged.last_mut().unwrap() ^= 1;
            assert_eq!(shown(&forged), Some(claims.clone()));
            forged[0] = 3;
            assert_eq!(shown(&forged), None);
            for end in 1..token.len() {
                assert_eq!(shown(&token[..end]), None, "cut at {end}");
            }
        }
    }

    #[test]
    fn what_only_the_second_version_says() {
        let mut past = seen(2);
        let beyond = |counter| Dot { actor: Actor { store: StoreId([9; 16]), birth: 3 }, counter };
        assert!(past.add(&beyond(5)) && past.add(&beyond(7)));
        let claims = Claims::Siblings { seen: past.clone(), ids: ids(2), newest: 77 };
        let second = keys().seal(&tenant("t"), &key("k"), &claims, Issue::Second);
        assert_eq!(keys().open(&tenant("t"), &key("k"), &second), Ok(claims.clone()));
        let first = keys().seal(&tenant("t"), &key("k"), &claims, Issue::First);
        let without = Claims::Siblings { seen: seen(2), ids: ids(2), newest: 0 };
        assert_eq!(keys().open(&tenant("t"), &key("k"), &first), Ok(without.clone()));
        assert_eq!(
            first,
            keys().seal(&tenant("t"), &key("k"), &without, Issue::First),
            "as the previous version wrote it"
        );
        for n in 100..1000 {
            past.add(&beyond(2 * n));
        }
        let claims = Claims::Siblings { seen: past.clone(), ids: ids(500), newest: u64::MAX };
        let token = keys().seal(&tenant("t"), &key("k"), &claims, Issue::Second);
        let Ok(Claims::Siblings { seen: kept, ids: names, newest }) = keys().open(&tenant("t"), &key("k"), &token)
        else {
            panic!("a sealed token opens");
        };
        assert!(token.len() <= CONTEXT_BYTES && past.dominates(&kept));
        assert!(kept.cloud.len() > 20 && kept.entries.len() == 2 && names.len() > 100 && newest == u64::MAX);
    }

    /// Opens a token of this version and body that the current key has sealed.
    fn opened(version: u8, body: &[u8]) -> Result<Claims, String> {
        let (keys, tenant, key) = (keys(), tenant("t"), key("k"));
        let mut token = [&[version, 7][..], body].concat();
        let mac = authenticator(&keys.current, &tenant, &key, &token).finalize().into_bytes();
        token.extend_from_slice(&mac[..MAC]);
        keys.open(&tenant, &key, &token).map_err(|unopened| unopened.to_string())
    }

    #[test]
    fn what_is_authentic_and_makes_no_sense_is_refused_and_says_why() {
        // The shortest single event there is: a store, its birth, a counter; then no vector and no ids.
        let event = [&[9; 16][..], &[1, 5]].concat();
        let seen = [&[2, 0, 1][..], &event, &[0, 0]].concat();
        let Ok(Claims::Siblings { seen: opened_seen, .. }) = opened(2, &seen) else { panic!("{:?}", opened(2, &seen)) };
        assert_eq!(opened_seen.cloud.len(), 1);
        let says = |version: u8, body: &[u8]| opened(version, body).unwrap_err();
        assert!(says(2, &[&[2, 0, 2][..], &event, &[0; 17]].concat()).contains("a list is cut off"));
        assert!(says(1, &[2, 0, 1]).contains("a list is cut off"));
        for kind in [0, 1] {
            assert!(says(2, &[kind, 5]).contains("a kind without a second version"));
        }
        assert_eq!(opened(1, &[0]), Ok(Claims::Nothing));
        assert!(says(1, &[0, 0]).contains("bytes after its end") && says(1, &[3]).contains("unknown kind"));
    }

    #[test]
    fn what_is_longer_than_a_context_is_not_looked_at() {
        let says = |bytes: usize| keys().open(&tenant("t"), &key("k"), &vec![1; bytes]).unwrap_err().to_string();
        assert!(says(CONTEXT_BYTES + 1).contains("has 4097 bytes, and a context has 4096 at most"));
        assert!(!says(CONTEXT_BYTES).contains("at most"), "{}", says(CONTEXT_BYTES));
    }

    #[test]
    fn keys_are_of_an_era() {
        let keys = |era| ContextKeys::new(era, &[(7, [7; 32])]).expect("a key");
        assert_eq!([Era::default(), Era([3; 16])].map(|era| keys(era).era()), [Era::default(), Era([3; 16])]);
    }

    #[test]
    fn a_rotated_key_still_opens_and_a_dropped_one_says_so() {
        let token = keys().seal(&tenant("t"), &key("k"), &Claims::Nothing, Issue::Second);
        let rotated = ContextKeys::new(Era::default(), &[(8, [8; 32]), (7, [7; 32])]).expect("two keys");
        assert_eq!(rotated.open(&tenant("t"), &key("k"), &token), Ok(Claims::Nothing));
        let dropped = ContextKeys::new(Era::default(), &[(8, [8; 32])]).expect("a key");
        assert_eq!(dropped.open(&tenant("t"), &key("k"), &token), Err(Unopened::Outdated));
        let secret_differs = ContextKeys::new(Era::default(), &[(7, [9; 32])]).expect("a key");
        assert!(secret_differs.open(&tenant("t"), &key("k"), &token).is_err());
    }

    #[test]
    fn bound_to_tenant_and_key_without_ambiguity() {
        let token = keys().seal(&tenant("ab"), &key("c"), &Claims::Nothing, Issue::Second);
        for (other_tenant, other_key) in [("a", "bc"), ("ab", "d"), ("abc", "c")] {
            let error = keys().open(&tenant(other_tenant), &key(other_key), &token).unwrap_err();
            assert!(error.to_string().contains("another tenant or key"), "{error}");
        }
    }

    #[test]
    fn too_much_is_cut_ids_first() {
        let claims = Claims::Siblings { seen: seen(20), ids: ids(500), newest: 0 };
        let token = keys().seal(&tenant("t"), &key("k"), &claims, Issue::Second);
        assert!(token.len() <= CONTEXT_BYTES && token.len() > CONTEXT_BYTES - 64, "{}", token.len());
        let Ok(Claims::Siblings { seen: kept, ids: names, .. }) = keys().open(&tenant("t"), &key("k"), &token) else {
            panic!("a sealed token opens");
        };
        assert_eq!(kept, seen(20));
        assert_eq!(names, ids(500)[..names.len()]);
        let token = keys().seal(
            &tenant("t"),
            &key("k"),
            &Claims::Siblings { seen: seen(1000), ids: ids(500), newest: 0 },
            Issue::Second,
        );
        assert!(token.len() <= CONTEXT_BYTES);
        let Ok(Claims::Siblings { seen: kept, ids: names, .. }) = keys().open(&tenant("t"), &key("k"), &token) else {
            panic!("a sealed token opens");
        };
        assert!(seen(1000).dominates(&kept) && kept.entries.len() > 100 && names.len() < 3);
    }

    #[test]
    fn no_context_is_longer_than_clients_may_send_back() {
        for (actors, dots, names) in
            [(1000, 0, 0), (1000, 1000, 0), (0, 1000, 1000), (1000, 1000, 1000), (60, 10, 1000)]
        {
            let mut seen = seen(actors);
            for n in 0..dots {
                let actor = Actor { store: StoreId([0xff; 16]), birth: u64::MAX };
                seen.add(&Dot { actor, counter: u64::MAX - 2 * n });
            }
            let claims = Claims::Siblings { seen, ids: ids(names), newest: u64::MAX };
            for issue in [Issue::First, Issue::Second] {
                let token = keys().seal(&tenant("t"), &key("k"), &claims, issue);
                assert!(token.len() <= CONTEXT_BYTES, "{actors} {dots} {names}: {}", token.len());
                assert!(keys().open(&tenant("t"), &key("k"), &token).is_ok());
            }
        }
    }

    #[test]
    fn keys_are_checked_and_not_shown() {
        assert!(ContextKeys::new(Era::default(), &[]).is_err());
        assert!(ContextKeys::new(Era::default(), &[(1, [1; 32]), (1, [2; 32])]).is_err());
        let shown = format!("{:?}", ContextKeys::new(Era::default(), &[(3, [0xab; 32])]).expect("a key"));
        assert_eq!(shown, "ContextKeys { current: 3, previous: [], .. }");
    }

    proptest! {
        #[test]
        fn altered_or_cut_tokens_never_open(at in any::<proptest::sample::Index>(), bit in 0..8u8, sample in 0..4usize) {
            let token = keys().seal(&tenant("t"), &key("k"), &samples()[sample], Issue::Second);
            let at = at.index(token.len());
            let mut altered = token.to_vec();
            altered[at] ^= 1 << bit;
            prop_assert!(keys().open(&tenant("t"), &key("k"), &altered).is_err());
            prop_assert_eq!(keys().open(&tenant("t"), &key("k"), &token[..at]).is_ok(), at == 0);
        }

        #[test]
        fn arbitrary_bytes_never_open(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            prop_assert!(keys().open(&tenant("t"), &key("k"), &bytes).is_err());
        }
    }
}
