//! The API tokens that are known here: all of them, in memory, for there are at most [`TOKENS`]. So no call waits for the
//! database, and a flood of invented tokens never gets there.
//!
//! Changes of other coordinators are followed; what has been confirmed last is taken for true while the database is away, but
//! not for ever: a token may have been revoked meanwhile.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use witan_kernel::port::{Metadata, PAGE, StoreError, TOKENS, Token};

use super::credential::Credential;
use super::refusal::Refusal;
use super::token;

/// How long what is known stands while nobody can say whether it is still so. A day: an outage of the database must not stop what needs
/// no database, and somebody will have noticed by then. It is also the longest for which a token that was revoked elsewhere may stay
/// good at a coordinator that is cut off.
pub(super) const STANDS_MS: u64 = 24 * 3600 * 1000;
/// Changes are looked for twice a second. After four looks that were missed, an unknown token may be a new one.
const FRESH_MS: u64 = 2000;
/// Unknown tokens for which the database is asked in a second, of all clients together: a token that was just made elsewhere is
/// good at once, and a flood of invented ones costs the database next to nothing.
const LOOKS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("twenty is not zero");
/// How many such looks there may be at a time.
const ASKING: usize = 8;
/// How long such a look may take.
const LOOK: Duration = Duration::from_secs(2);

/// Every token of the cluster.
pub(super) struct Tokens {
    metadata: Arc<dyn Metadata>,
    known: ArcSwap<HashMap<String, Known>>,
    /// When it was last certain that `known` is what the database says: Unix time, milliseconds.
    confirmed_ms: AtomicU64,
    looks: DefaultDirectRateLimiter,
    /// Turns at asking the database: one that hangs keeps a few calls waiting, and no more.
    asking: Semaphore,
    /// How often something may have gone from `known`.
    readings: AtomicU64,
    /// Held by whoever replaces `known`.
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

/// What a look into memory tells.
pub(super) enum Looked {
    /// Whose it is.
    Good(Arc<Credential>),
    /// It is not good.
    Refused(Refusal),
    /// Nothing is known of it; [`Tokens::ask`] may know more.
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
            looks: RateLimiter::direct(Quota::per_second(LOOKS_PER_SECOND)),
            asking: Semaphore::new(ASKING),
            readings: AtomicU64::new(0),
            replacing: Mutex::new(()),
            number: Gauge::default(),
        };
        tokens.read_all().await?;
        Ok(tokens)
    }

    /// How many tokens there are.
    pub(super) fn number(&self) -> &Gauge {
        &self.number
    }

    /// Looks in memory. No allocation, no lock.
    pub(super) fn look(&self, text: &str, now_ms: u64) -> Looked {
        let Some((id, secret)) = token::split(text) else { return Looked::Refused(Refusal::Malformed) };
        let known = self.known.load();
        let Some(known) = known.get(id) else { return Looked::NotKnown };
        if now_ms.saturating_sub(self.confirmed_ms.load(Ordering::Relaxed)) > STANDS_MS {
            return Looked::Refused(Refusal::Unavailable);
        }
        check(known, secret, now_ms).map_or_else(Looked::Refused, Looked::Good)
    }

    /// Asks the database for a token that is not known here, unless it is asked for too many already.
    ///
    /// # Errors
    /// When the token is not good, or nobody can tell.
    pub(super) async fn ask(&self, text: &str, now_ms: u64) -> Result<Arc<Credential>, Refusal> {
        let (id, secret) = token::split(text).ok_or(Refusal::Malformed)?;
        let stale = now_ms.saturating_sub(self.confirmed_ms.load(Ordering::Relaxed)) > FRESH_MS;
        let not_known = || if stale { Refusal::Unavailable } else { Refusal::Unknown };
        if self.looks.check().is_err() {
            return Err(not_known());
        }
        let Ok(_asking) = self.asking.try_acquire() else { return Err(not_known()) };
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

    /// What is known here is what the database says: nothing has changed, or all changes were read.
    pub(super) fn confirm(&self, now_ms: u64) {
        self.confirmed_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Reads all tokens again. Those that are gone end at once, in open streams as well.
    ///
    /// # Errors
    /// When the store does not answer; then all stays as it was.
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

    /// A token was made here.
    pub(super) async fn made(&self, token: &Token) {
        let _replacing = self.replacing.lock().await;
        self.add(token.id.clone(), Known::of(token));
    }

    /// A token was revoked here.
    pub(super) async fn revoked(&self, id: &str) {
        let _replacing = self.replacing.lock().await;
        self.readings.fetch_add(1, Ordering::Relaxed);
        let mut known = HashMap::clone(&self.known.load());
        if let Some(gone) = known.remove(id) {
            gone.credential.end();
        }
        self.replace(known);
    }

    /// Remembers a token that was found, unless something was revoked, or all were read, since it was asked for: it may be
    /// gone by now, and nobody would say so again. The client asks once more then.
    async fn found(&self, before: u64, id: String, token: Known) -> Option<Arc<Credential>> {
        let _replacing = self.replacing.lock().await;
        if self.readings.load(Ordering::Relaxed) == before {
            return Some(self.add(id, token));
        }
        let known = self.known.load();
        known.get(&id).filter(|known| known.hash == token.hash).map(|known| Arc::clone(&known.credential))
    }

    /// Adds a token, if it is not there yet: there is one credential of each, which its end is told to.
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

/// A token never changes: whoever holds its credential is told of its end through it.
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
        metadata.create_token(good.token.clone()).await.unwrap();
        let tokens = Tokens::open(Arc::clone(&metadata), 0).await.unwrap();
        let Looked::Good(credential) = tokens.look(&good.text, 1) else { panic!("it is good") };
        assert_eq!(refused(tokens.look(&good.text, 1000)), Refusal::Expired);
        let other = make(grant(None), [1; 12], [2; 32], 0);
        assert_eq!(refused(tokens.look(&other.text, 1)), Refusal::Unknown);
        assert_eq!(refused(tokens.look("witan_nonsense", 1)), Refusal::Malformed);

        metadata.remove_token(&good.token.id).await.unwrap();
        tokens.read_all().await.unwrap();
        assert!(matches!(tokens.look(&good.text, 1), Looked::NotKnown));
        assert_eq!(tokens.ask(&good.text, 1).await.unwrap_err(), Refusal::Unknown);
        assert_eq!(credential.is_good(1), Err(Refusal::Unknown));
    }

    #[tokio::test]
    async fn a_token_made_elsewhere_is_good_at_once() {
        let metadata: Arc<dyn Metadata> = memory();
        let tokens = Tokens::open(Arc::clone(&metadata), 0).await.unwrap();
        let new = make(grant(None), [1; 12], [1; 32], 0);
        metadata.create_token(new.token.clone()).await.unwrap();
        assert!(matches!(tokens.look(&new.text, 1), Looked::NotKnown));
        assert!(tokens.ask(&new.text, 1).await.is_ok());
        let Looked::Good(credential) = tokens.look(&new.text, 1) else { panic!("it is known now") };
        tokens.read_all().await.unwrap();
        assert_eq!(credential.is_good(1), Ok(()), "reading all again ends nothing that is there");
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
        let _all: Vec<_> = (0..ASKING).map(|_| tokens.asking.try_acquire().unwrap()).collect();
        assert_eq!(tokens.ask(&token.text, 1).await.unwrap_err(), Refusal::Unknown, "others are asking");
    }

    #[tokio::test]
    async fn invented_tokens_do_not_reach_the_database_for_long() {
        let metadata: Arc<dyn Metadata> = memory();
        let tokens = Tokens::open(Arc::clone(&metadata), 0).await.unwrap();
        let invented = make(grant(None), [1; 12], [1; 32], 0);
        while tokens.looks.check().is_ok() {}
        assert_eq!(tokens.ask(&invented.text, 1).await.unwrap_err(), Refusal::Unknown);
        assert_eq!(tokens.ask(&invented.text, FRESH_MS + 1).await.unwrap_err(), Refusal::Unavailable);
    }

    #[tokio::test]
    async fn while_the_database_is_away_known_tokens_go_on() {
        let metadata = memory();
        let (good, new) = (make(grant(None), [1; 12], [1; 32], 0), make(grant(None), [2; 12], [2; 32], 0));
        metadata.create_token(good.token.clone()).await.unwrap();
        let tokens = Tokens::open(metadata.clone(), 0).await.unwrap();
        metadata.set_available(false);
        assert!(matches!(tokens.look(&good.text, 1), Looked::Good(_)));
        assert_eq!(tokens.ask(&new.text, 1).await.unwrap_err(), Refusal::Unavailable, "nobody can tell");
        assert!(tokens.read_all().await.is_err());
        assert!(matches!(tokens.look(&good.text, 1), Looked::Good(_)), "what cannot be read again stays");
    }

    #[tokio::test]
    async fn what_was_not_confirmed_for_long_is_not_taken() {
        let metadata: Arc<dyn Metadata> = memory();
        let good = make(grant(None), [1; 12], [1; 32], 0);
        metadata.create_token(good.token.clone()).await.unwrap();
        let tokens = Tokens::open(metadata, 0).await.unwrap();
        assert!(matches!(tokens.look(&good.text, STANDS_MS), Looked::Good(_)));
        assert_eq!(refused(tokens.look(&good.text, STANDS_MS + 1)), Refusal::Unavailable);
        tokens.confirm(STANDS_MS);
        assert!(matches!(tokens.look(&good.text, STANDS_MS + 1), Looked::Good(_)));
    }
}
