//! All API tokens, in memory, since there are at most [`TOKENS`]. So calls do not wait for the database, and a flood of invented
//! tokens does not reach it.
//!
//! Changes by other coordinators are followed. While the database is unavailable, the last confirmed state is used, but only
//! for a limited time, since a token may have been revoked meanwhile.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Mutex;
use tokio::time::timeout;
use witan_kernel::port::{Metadata, PAGE, StoreError, TOKENS, Token};

use super::credential::Credential;
use super::looks::Looks;
use super::refusal::Refusal;
use super::token;

/// Time for which the known tokens are used without confirmation by the database. A day: an outage of the database must not stop
/// requests that do not need it, and by then an operator will have noticed. It is also the longest time for which a token revoked
/// elsewhere stays valid at a coordinator that is cut off.
pub(super) const UNCONFIRMED_MS: u64 = 24 * 3600 * 1000;
/// Time without confirmation after which an unknown token may be a new one: changes are polled twice a second, so four polls
/// were missed.
const FRESH_MS: u64 = 2000;
/// Longest time of a lookup of an unknown token: one just created elsewhere is valid at once.
const LOOK: Duration = Duration::from_secs(2);

/// Every token of the cluster.
pub(super) struct Tokens {
    metadata: Arc<dyn Metadata>,
    known: ArcSwap<HashMap<String, Known>>,
    /// When `known` was last confirmed by the database: Unix time, milliseconds.
    confirmed_ms: AtomicU64,
    looks: Looks,
    /// Number of times that tokens may have been removed from `known`.
    readings: AtomicU64,
    /// Held while `known` is replaced.
    replacing: Mutex<()>,
    number: Gauge,
}

#[derive(Clone)]
struct Known {
    hash: [u8; 32],
    credential: Arc<Credential>,
}

impl Known {
    fn of(token: &Token) -> Self {
        Self { hash: token.hash, credential: Arc::new(Credential::of_token(token)) }
    }
}

/// The result of a lookup in memory.
pub(super) enum Looked {
    /// A valid token, with its credential.
    Good(Arc<Credential>),
    /// An invalid token.
    Refused(Refusal),
    /// Unknown here; [`Tokens::ask`] asks the database.
    NotKnown,
}

impl Tokens {
    /// Reads all tokens.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn open(metadata: Arc<dyn Metadata>, now_ms: u64) -> Result<Self, StoreError> {
        let tokens = Self {
            metadata,
            known: ArcSwap::default(),
            confirmed_ms: AtomicU64::new(now_ms),
            looks: Looks::new(),
            readings: AtomicU64::new(0),
            replacing: Mutex::new(()),
            number: Gauge::default(),
        };
        tokens.read_all().await?;
        Ok(tokens)
    }

    /// The gauge of the number of tokens.
    pub(super) fn number(&self) -> &Gauge {
        &self.number
    }

    /// Looks a token up in memory, without allocation or lock.
    pub(super) fn look(&self, text: &str, now_ms: u64) -> Looked {
        let Some((id, secret)) = token::split(text) else { return Looked::Refused(Refusal::Malformed) };
        let known = self.known.load();
        let Some(known) = known.get(id) else { return Looked::NotKnown };
        if now_ms.saturating_sub(self.confirmed_ms.load(Ordering::Relaxed)) > UNCONFIRMED_MS {
            return Looked::Refused(Refusal::Unavailable);
        }
        check(known, secret, now_ms).map_or_else(Looked::Refused, Looked::Good)
    }

    /// Asks the database for a token that is unknown here, unless there are too many such lookups, in all or for `peer`.
    ///
    /// # Errors
    /// When the token is invalid, or that cannot be determined.
    pub(super) async fn ask(&self, text: &str, peer: Option<IpAddr>, now_ms: u64) -> Result<Arc<Credential>, Refusal> {
        let (id, secret) = token::split(text).ok_or(Refusal::Malformed)?;
        let stale = now_ms.saturating_sub(self.confirmed_ms.load(Ordering::Relaxed)) > FRESH_MS;
        let not_known = || if stale { Refusal::Unavailable } else { Refusal::Unknown };
        let Some(_look) = self.looks.take(peer) else { return Err(not_known()) };
        let before = self.readings.load(Ordering::Relaxed);
        match timeout(LOOK, self.metadata.token(id)).await {
            Ok(Ok(Some(token))) => {
                let known = Known::of(&token);
                check(&known, secret, now_ms)?;
                self.found(before, token.id, known).await.ok_or(Refusal::Unavailable)
            }
            Ok(Ok(None)) => Err(Refusal::Unknown),
            Ok(Err(_)) | Err(_) => Err(Refusal::Unavailable),
        }
    }

    /// Notes that the known tokens are those of the database: nothing has changed, or all changes were read.
    pub(super) fn confirm(&self, now_ms: u64) {
        self.confirmed_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Reads all tokens again. Removed ones become invalid at once, in open streams too.
    ///
    /// # Errors
    /// When the store does not answer; then nothing changes.
    pub(super) async fn read_all(&self) -> Result<(), StoreError> {
        let _replacing = self.replacing.lock().await;
        self.readings.fetch_add(1, Ordering::Relaxed);
        let before = self.known.load_full();
        let mut now = HashMap::new();
        let mut last: Option<String> = None;
        while now.len() < TOKENS {
            let page = self.metadata.tokens(last.as_deref(), PAGE).await?;
            let Some(token) = page.last() else { break };
            last = Some(token.id.clone());
            now.extend(page.iter().map(|token| (token.id.clone(), unchanged(&before, token))));
        }
        before.iter().filter(|(id, _)| !now.contains_key(*id)).for_each(|(_, gone)| gone.credential.end());
        self.replace(now);
        Ok(())
    }

    /// Adds a token that was created here.
    pub(super) async fn made(&self, token: &Token) {
        let _replacing = self.replacing.lock().await;
        self.add(token.id.clone(), Known::of(token));
    }

    /// Removes a token that was revoked here.
    pub(super) async fn revoked(&self, id: &str) {
        let _replacing = self.replacing.lock().await;
        self.readings.fetch_add(1, Ordering::Relaxed);
        let mut known = HashMap::clone(&self.known.load());
        if let Some(gone) = known.remove(id) {
            gone.credential.end();
        }
        self.replace(known);
    }

    /// Adds a token found in the database, unless tokens were revoked or read again since the lookup started: it may have been
    /// revoked meanwhile, and that would not be noticed again. In that case the client has to retry.
    async fn found(&self, before: u64, id: String, token: Known) -> Option<Arc<Credential>> {
        let _replacing = self.replacing.lock().await;
        if self.readings.load(Ordering::Relaxed) == before {
            return Some(self.add(id, token));
        }
        let known = self.known.load();
        known.get(&id).filter(|known| known.hash == token.hash).map(|known| Arc::clone(&known.credential))
    }

    /// Adds a token unless it is known: each has one credential, which is marked when the token is revoked.
    fn add(&self, id: String, token: Known) -> Arc<Credential> {
        let mut known = HashMap::clone(&self.known.load());
        let credential = Arc::clone(&known.entry(id).or_insert(token).credential);
        self.replace(known);
        credential
    }

    fn replace(&self, known: HashMap<String, Known>) {
        self.number.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
        self.known.store(Arc::new(known));
    }
}

/// The credential of a token. A token never changes, and holders of the credential learn of a revocation through it.
fn unchanged(before: &HashMap<String, Known>, token: &Token) -> Known {
    before.get(&token.id).filter(|known| known.hash == token.hash).cloned().unwrap_or_else(|| Known::of(token))
}

fn check(known: &Known, secret: &str, now_ms: u64) -> Result<Arc<Credential>, Refusal> {
    if !token::same(&token::hash(secret), &known.hash) {
        return Err(Refusal::Unknown);
    }
    known.credential.is_good(now_ms)?;
    Ok(Arc::clone(&known.credential))
}

#[cfg(test)]
mod tests {
    use witan_kernel::port::TokenStore;

    use super::*;
    use crate::access::scope::{Scope, Scopes};
    use crate::access::testing::memory;
    use crate::access::token::{Grant, make};

    fn grant(expires_at_ms: Option<u64>) -> Grant {
        Grant { tenant: None, scopes: Scopes::only(Scope::Read), label: String::new(), expires_at_ms }
    }

    fn refused(looked: Looked) -> Refusal {
        match looked {
            Looked::Refused(refusal) => refusal,
            Looked::Good(_) => panic!("it was taken"),
            Looked::NotKnown => panic!("it is not known"),
        }
    }

    #[tokio::test]
    async fn known_tokens_are_good_until_they_are_revoked_or_expire() {
        let metadata: Arc<dyn Metadata> = memory();
        let good = make(grant(Some(1000)), [1; 12], [1; 32], 0);
        metadata.create_token(good.token.clone(), None).await.unwrap();
        let tokens = Tokens::open(Arc::clone(&metadata), 0).await.unwrap();
        let Looked::Good(credential) = tokens.look(&good.text, 1) else { panic!("it is good") };
        assert_eq!(refused(tokens.look(&good.text, 1000)), Refusal::Expired);
        let other = make(grant(None), [1; 12], [2; 32], 0);
        assert_eq!(refused(tokens.look(&other.text, 1)), Refusal::Unknown);
        assert_eq!(refused(tokens.look("witan_nonsense", 1)), Refusal::Malformed);

        metadata.remove_token(&good.token.id).await.unwrap();
        tokens.read_all().await.unwrap();
        assert!(matches!(tokens.look(&good.text, 1), Looked::NotKnown));
        assert_eq!(tokens.ask(&good.text, None, 1).await.unwrap_err(), Refusal::Unknown);
        assert_eq!(credential.is_good(1), Err(Refusal::Unknown));
    }

    #[tokio::test]
    async fn a_token_made_elsewhere_is_good_at_once() {
        let metadata: Arc<dyn Metadata> = memory();
        let tokens = Tokens::open(Arc::clone(&metadata), 0).await.unwrap();
        let new = make(grant(None), [1; 12], [1; 32], 0);
        metadata.create_token(new.token.clone(), None).await.unwrap();
        assert!(matches!(tokens.look(&new.text, 1), Looked::NotKnown));
        assert!(tokens.ask(&new.text, None, 1).await.is_ok());
        let Looked::Good(credential) = tokens.look(&new.text, 1) else { panic!("it is known now") };
        tokens.read_all().await.unwrap();
        assert_eq!(credential.is_good(1), Ok(()), "reading all again does not end existing ones");
        assert_eq!(tokens.number().get(), 1);
    }

    #[tokio::test]
    async fn a_token_that_is_revoked_while_it_is_found_is_not_remembered() {
        let metadata = memory();
        let tokens = Tokens::open(metadata.clone(), 0).await.unwrap();
        let token = make(grant(None), [1; 12], [1; 32], 0);
        let before = tokens.readings.load(Ordering::Relaxed);
        tokens.revoked(&token.token.id).await;
        let found = tokens.found(before, token.token.id.clone(), Known::of(&token.token)).await;
        assert!(found.is_none());
        assert!(matches!(tokens.look(&token.text, 1), Looked::NotKnown));
        let _all: Vec<_> = (0..=255).filter_map(|n| tokens.looks.take(Some([10, 0, 0, n].into()))).collect();
        assert_eq!(tokens.ask(&token.text, None, 1).await.unwrap_err(), Refusal::Unknown, "all permits are taken");
    }

    #[tokio::test]
    async fn invented_tokens_do_not_reach_the_database_for_long() {
        let metadata: Arc<dyn Metadata> = memory();
        let tokens = Tokens::open(Arc::clone(&metadata), 0).await.unwrap();
        let invented = make(grant(None), [1; 12], [1; 32], 0);
        while tokens.looks.take(None).is_some() {}
        assert_eq!(tokens.ask(&invented.text, None, 1).await.unwrap_err(), Refusal::Unknown);
        assert_eq!(tokens.ask(&invented.text, None, FRESH_MS + 1).await.unwrap_err(), Refusal::Unavailable);
    }

    #[tokio::test]
    async fn while_the_database_is_away_known_tokens_go_on() {
        let metadata = memory();
        let (good, new) = (make(grant(None), [1; 12], [1; 32], 0), make(grant(None), [2; 12], [2; 32], 0));
        metadata.create_token(good.token.clone(), None).await.unwrap();
        let tokens = Tokens::open(metadata.clone(), 0).await.unwrap();
        metadata.set_available(false);
        assert!(matches!(tokens.look(&good.text, 1), Looked::Good(_)));
        assert_eq!(tokens.ask(&new.text, None, 1).await.unwrap_err(), Refusal::Unavailable, "it cannot be determined");
        assert!(tokens.read_all().await.is_err());
        assert!(matches!(tokens.look(&good.text, 1), Looked::Good(_)), "known tokens stay when reading fails");
    }

    #[tokio::test]
    async fn what_was_not_confirmed_for_long_is_not_taken() {
        let metadata: Arc<dyn Metadata> = memory();
        let good = make(grant(None), [1; 12], [1; 32], 0);
        metadata.create_token(good.token.clone(), None).await.unwrap();
        let tokens = Tokens::open(metadata, 0).await.unwrap();
        assert!(matches!(tokens.look(&good.text, UNCONFIRMED_MS), Looked::Good(_)));
        assert_eq!(refused(tokens.look(&good.text, UNCONFIRMED_MS + 1)), Refusal::Unavailable);
        tokens.confirm(UNCONFIRMED_MS);
        assert!(matches!(tokens.look(&good.text, UNCONFIRMED_MS + 1), Looked::Good(_)));
    }
}
