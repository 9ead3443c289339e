//! Authentication, authorization, rate limits, and the audit log. One layer in front of every server of a coordinator asks
//! here; nothing behind that layer decides about access.
//!
//! In reading order: [`scope`] (what each call needs), [`credential`] and [`refusal`], [`token`] (API tokens as text), `looks`,
//! `tokens` and `jwt` (from a token to its credential), `rate`, [`audit`], [`caller`] (further checks of an admitted call).
//!
//! Nothing here knows statuses or servers. A call waits for the database only if its token is unknown.

pub mod audit;
pub mod caller;
pub mod config;
pub mod credential;
pub mod issuance;
mod jwt;
mod looks;
mod metrics;
mod rate;
pub mod refusal;
pub mod scope;
pub mod token;
mod tokens;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Metadata, StoreError, Token};

use audit::{Audit, Entry};
use caller::{Caller, Origin};
use config::{RateLimits, Security};
use credential::Credential;
use jwt::Issuer;
use metrics::Metrics;
use rate::Rates;
use refusal::Refusal;
use scope::{Rule, Scope};
use tokens::{Looked, Tokens};

/// Decides who may do what.
pub struct Access {
    /// Credential of clients that send none; `None`: they are refused.
    anonymous: Option<Arc<Credential>>,
    tokens: Option<Tokens>,
    issuer: Option<Arc<Issuer>>,
    rates: ArcSwap<Rates>,
    audit: Option<Audit>,
    metrics: Metrics,
    now_ms: fn() -> u64,
}

/// The result of looking a credential up in memory.
enum Seen {
    Known(Arc<Credential>),
    Refused(Refusal),
    /// Unknown here; the database may know it.
    Unseen,
}

impl Access {
    /// Reads tokens and keys, and opens the audit log. `now_ms` returns Unix milliseconds.
    ///
    /// # Errors
    /// When a setting is invalid (the message names its key), or the store does not answer.
    pub async fn open(settings: &Security, metadata: Arc<dyn Metadata>, now_ms: fn() -> u64) -> anyhow::Result<Self> {
        let metrics = Metrics::default();
        let tokens = match settings.tokens {
            true => Some(Tokens::open(metadata, now_ms()).await?),
            false => None,
        };
        let issuer = settings.jwt.clone().map(Issuer::open).transpose().map_err(anyhow::Error::msg)?;
        let audit = settings.audit.as_ref().map(|settings| Audit::open(settings, metrics.audit.clone()));
        let is_open = settings.allow_anonymous || !settings.asks_for_tokens();
        Ok(Self {
            anonymous: is_open.then(|| Arc::new(Credential::anonymous())),
            tokens,
            issuer: issuer.map(Arc::new),
            rates: ArcSwap::from_pointee(Rates::new(settings.rate_limits.clone())),
            audit: audit.transpose()?,
            metrics,
            now_ms,
        })
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        if let Some(tokens) = &self.tokens {
            registry.register("witan_access_tokens", "API tokens that are known here", tokens.number().clone());
        }
    }

    /// True when clients without a credential are served.
    pub fn serves_anybody(&self) -> bool {
        self.anonymous.is_some()
    }

    /// Follows the issuer's key until the signal to stop.
    pub async fn follow(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let Some(issuer) = self.issuer.clone() else { return };
        tokio::select! {
            () = issuer.follow() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// Admits or refuses a call. `shown` is its header `authorization`. Returns `None` if the token is unknown here; then
    /// [`Self::admit_unseen`] decides.
    pub fn admit(
        self: &Arc<Self>,
        rule: &'static Rule,
        shown: Option<&[u8]>,
        origin: &Origin,
    ) -> Option<Result<Caller, Refusal>> {
        let found = match self.look(shown) {
            Seen::Known(credential) => self.enter(rule, credential, origin),
            Seen::Refused(refusal) => Err((None, refusal)),
            Seen::Unseen => return None,
        };
        Some(found.map_err(|(who, refusal)| self.refused(rule, who.as_deref(), refusal, origin)))
    }

    /// Admits or refuses a call whose token is unknown here.
    ///
    /// # Errors
    /// When it is refused; the refusal is recorded.
    pub async fn admit_unseen(
        self: &Arc<Self>,
        rule: &'static Rule,
        shown: Option<&[u8]>,
        origin: &Origin,
    ) -> Result<Caller, Refusal> {
        let asked = match (&self.tokens, bearer(shown)) {
            (Some(tokens), Some(Ok(text))) => tokens.ask(text, origin.peer.map(|peer| peer.ip()), self.now_ms()).await,
            _ => Err(Refusal::Unknown),
        };
        let found = asked.map_err(|refusal| (None, refusal));
        let found = found.and_then(|credential| self.enter(rule, credential, origin));
        found.map_err(|(who, refusal)| self.refused(rule, who.as_deref(), refusal, origin))
    }

    /// Reads all tokens again, because another coordinator has changed some.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn tokens_outdated(&self) -> Result<(), StoreError> {
        match &self.tokens {
            Some(tokens) => tokens.read_all().await,
            None => Ok(()),
        }
    }

    /// Notes that every change of tokens so far is known here.
    pub fn confirmed(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.confirm(self.now_ms());
        }
    }

    /// Adds a token that was created here; it is valid at once.
    pub async fn token_made(&self, token: &Token) {
        if let Some(tokens) = &self.tokens {
            tokens.made(token).await;
        }
    }

    /// Removes a token that was revoked here.
    pub async fn token_revoked(&self, id: &str) {
        if let Some(tokens) = &self.tokens {
            tokens.revoked(id).await;
        }
    }

    /// Replaces the rate limits; requests counted so far are forgotten.
    pub fn set_rate_limits(&self, limits: RateLimits) {
        if *self.rates.load().limits() != limits {
            self.rates.store(Arc::new(Rates::new(limits)));
        }
    }

    /// Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        (self.now_ms)()
    }

    /// Waits, for a bounded time, until recorded entries are in the file.
    pub async fn close(self: Arc<Self>) {
        let flushed = tokio::task::spawn_blocking(move || self.audit.as_ref().map(Audit::flush));
        // If the thread has panicked, it has nothing left to write.
        let _ = flushed.await;
    }

    fn look(&self, shown: Option<&[u8]>) -> Seen {
        // Clients are not identified, so a credential has no meaning.
        if let Some(anonymous) = self.anonymous.as_ref().filter(|_| self.tokens.is_none() && self.issuer.is_none()) {
            return Seen::Known(Arc::clone(anonymous));
        }
        let text = match bearer(shown) {
            Some(Ok(text)) => text,
            Some(Err(refusal)) => return Seen::Refused(refusal),
            None => return self.anonymous.clone().map_or(Seen::Refused(Refusal::NoCredential), Seen::Known),
        };
        match (&self.tokens, &self.issuer) {
            (Some(tokens), _) if token::is_meant(text) => match tokens.look(text, self.now_ms()) {
                Looked::Good(credential) => Seen::Known(credential),
                Looked::Refused(refusal) => Seen::Refused(refusal),
                Looked::NotKnown => Seen::Unseen,
            },
            (_, Some(issuer)) if !token::is_meant(text) => {
                issuer.check(text, self.now_ms()).map_or_else(Seen::Refused, Seen::Known)
            }
            _ => Seen::Refused(Refusal::Malformed),
        }
    }

    #[allow(
        clippy::type_complexity,
        reason = "the refused credential belongs with the reason, and is used nowhere else"
    )]
    fn enter(
        self: &Arc<Self>,
        rule: &'static Rule,
        credential: Arc<Credential>,
        origin: &Origin,
    ) -> Result<Caller, (Option<Arc<Credential>>, Refusal)> {
        // The rate is taken before the request is decoded, if it is known by now whose it is: otherwise calls whose requests are refused
        // would not count.
        let mut counted = false;
        let allowed = credential.meets(rule.need).and_then(|()| match (rule.rate(), credential.tenant()) {
            (Some(Scope::Operator), _) => self.take_operator(),
            (Some(scope), Some(tenant)) => {
                counted = true;
                self.take(tenant, scope)
            }
            _ => Ok(()),
        });
        if let Err(refusal) = allowed {
            return Err((Some(credential), refusal));
        }
        let is_recorded = self.audit.is_some() && rule.effect == scope::Effect::Catalog;
        Ok(Caller {
            access: Arc::clone(self),
            credential,
            rule,
            origin: origin.clone(),
            named: is_recorded.then(|| Arc::new(OnceLock::new())),
            counted,
        })
    }

    fn take(&self, tenant: &TenantId, scope: Scope) -> Result<(), Refusal> {
        let taken = self.rates.load().take(tenant, scope);
        taken.map_err(|retry_after| Refusal::Rate { tenant: Some(tenant.clone()), scope, retry_after })
    }

    fn take_operator(&self) -> Result<(), Refusal> {
        let taken = self.rates.load().take_operator();
        taken.map_err(|retry_after| Refusal::Rate { tenant: None, scope: Scope::Operator, retry_after })
    }

    fn refused(&self, rule: &'static Rule, who: Option<&Credential>, refusal: Refusal, origin: &Origin) -> Refusal {
        self.metrics.refused(&refusal);
        self.put_refusal(|| Entry {
            time_ms: self.now_ms(),
            request_id: origin.request_id.as_ref().map(ToString::to_string),
            peer: origin.peer,
            credential: who.map_or("none", Credential::id),
            rpc: rule.path,
            tenant: match &refusal {
                Refusal::Rate { tenant, .. } => tenant.as_ref().map(TenantId::as_str),
                _ => None,
            },
            outcome: "refused",
            reason: Some(refusal.reason()),
            ..Entry::default()
        });
        refusal
    }

    fn put_refusal<'a>(&self, entry: impl FnOnce() -> Entry<'a>) {
        if let Some(audit) = &self.audit {
            audit.refused(entry);
        }
    }
}

/// The credential of a call, as text. Two credentials are malformed, since it is unclear which one applies.
pub fn shown(headers: &http::HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let first = values.next()?;
    Some(if values.next().is_some() { b"" } else { first.as_bytes() })
}

/// The text after `Bearer`; `None` when there is no credential.
fn bearer(shown: Option<&[u8]>) -> Option<Result<&str, Refusal>> {
    let text = std::str::from_utf8(shown?).ok().and_then(|text| text.split_once(' '));
    Some(match text {
        Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") => Ok(text.trim()),
        _ => Err(Refusal::Malformed),
    })
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
