//! Idempotency records shared by several coordinators, in Redis 7 or later, or Valkey: one server, a master found through sentinels, or
//! a cluster.
//!
//! A record is small and has a short name, or has the form and the name of the version before, which looks for no other. New ones are
//! small once that version cannot be around any more ([`SmallRecords`]); every step looks for both.
//!
//! A step is one call of one script (`redis/step.lua`), which decides as [`witan_kernel::idempotency::apply`] does, by the
//! server's time. Concurrent calls are pipelined on one connection. A step whose connection is lost is sent again on the next one:
//! every step may be repeated, since owner and fence identify it.
//!
//! Whether a server keeps what it has acknowledged depends on its settings (see [`RedisIdempotency::check`]); a failover to a replica
//! loses what was not replicated yet. Lost records affect exactly-once only for requests that the replicas no longer remember either.
//!
//! Reading order: `config`, `link` (the connection), `breaker` (when not to try), `name` (of a record), `script` (steps as calls),
//! `check`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::port::{IdempotencyStore, SmallRecords, StoreError, rules};
use witan_kernel::sync::lock;

use self::breaker::{Breaker, Pass};
use self::link::{Connection, Link};
use self::script::{Call, Spelling, Steps};

mod breaker;
mod check;
mod config;
mod link;
mod name;
mod script;

pub use check::{FILLING, RedisFacts, RedisFinding};
pub use config::{RedisConfig, RedisCredentials, RedisServers, RedisTls};

/// Most steps in flight. At half a millisecond to a few each, far more than a coordinator starts; bounds the memory that a server
/// that hangs can pin.
const IN_FLIGHT: usize = 4096;

/// Most bytes of responses in those steps.
const BYTES_IN_FLIGHT: usize = 16 << 20;

/// Connections, or attempts to connect, after which a step fails.
const TRIES: usize = 3;

/// A handle to the store; clones share its connection.
#[derive(Clone)]
pub struct RedisIdempotency {
    shared: Arc<Shared>,
}

struct Shared {
    config: RedisConfig,
    steps: Steps,
    link: Link,
    breaker: Mutex<Breaker>,
    in_flight: Semaphore,
    bytes_in_flight: AtomicUsize,
    /// Whether the last step that needed memory was refused because there is none.
    full: AtomicBool,
    /// Whether new records are small.
    small: AtomicBool,
    /// Whether a key has been claimed.
    claims: AtomicBool,
    /// Replaces the server's time.
    #[cfg(test)]
    time: Option<witan_kernel::port::StoreTime>,
}

impl RedisIdempotency {
    /// The store at the configured servers. Nothing is sent yet: the first step connects, in its runtime.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the configuration is invalid.
    pub fn new(config: RedisConfig) -> Result<Self, StoreError> {
        let link = Link::new(config.connector()?, config.connect_timeout, warn_of_findings());
        let shared = Shared {
            steps: Steps::new(&config.key_prefix),
            link,
            config,
            breaker: Mutex::default(),
            in_flight: Semaphore::new(IN_FLIGHT),
            bytes_in_flight: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            small: AtomicBool::new(false),
            claims: AtomicBool::new(false),
            #[cfg(test)]
            time: None,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Uses the addresses, credentials and certificates of `config` for every connection from now on, and drops the current one. The
    /// other settings stay.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the configuration is invalid; nothing has changed then.
    pub fn reconnect_with(&self, config: &RedisConfig) -> Result<(), StoreError> {
        self.shared.link.replace(config.connector()?);
        Ok(())
    }

    /// The properties of every server that stores records; [`RedisFacts::findings`] lists what to change. The same findings are logged
    /// as warnings whenever a connection is made.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when they do not answer in time.
    pub async fn check(&self) -> Result<Vec<RedisFacts>, StoreError> {
        let ask = async {
            let connected = self.shared.link.connected().await?;
            check::facts(&mut connected.connection.clone()).await.map_err(|error| error.to_string())
        };
        self.in_time(ask).await.map_err(|why| self.unavailable(&why))
    }

    /// How much of its memory limit the fullest server uses, from 0 to about 1; `None` if no server has a limit, or reports it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when they do not answer in time.
    pub async fn used_share(&self) -> Result<Option<f64>, StoreError> {
        let facts = self.check().await?;
        Ok(facts.iter().filter_map(RedisFacts::used_share).reduce(f64::max))
    }

    /// True while steps that need memory are refused, because the servers have reached their limit.
    pub fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Relaxed)
    }

    /// Notes whether a step found memory. Repetitions that are only answered say nothing about that.
    fn note_room(&self, result: &Result<Stepped, Failed>) {
        let is_full = match result {
            Err(Failed::Answered(StoreError::Full(_))) => true,
            Ok(Stepped::Reserved { .. } | Stepped::Stored) => false,
            _ => return,
        };
        if self.shared.full.swap(is_full, Ordering::Relaxed) != is_full {
            let servers = &self.shared.config.servers;
            match is_full {
                true => {
                    tracing::warn!(%servers, "Redis is full (maxmemory): requests with idempotency keys are refused or go on without it")
                }
                false => tracing::warn!(%servers, "Redis has room again"),
            }
        }
    }

    /// True while steps are refused without being tried, because the servers did not answer the last ones.
    pub fn is_down(&self) -> bool {
        self.breaker().is_open()
    }

    async fn carry_out(&self, call: &Call<'_>) -> Result<Stepped, Failed> {
        let mut why = String::new();
        for _ in 0..TRIES {
            let mut connected = match self.shared.link.connected().await {
                Ok(connected) => connected,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            match call.send(&mut connected.connection).await {
                Ok(reply) => {
                    self.shared.link.proven(connected.generation);
                    return script::read(&reply).map_err(Failed::Answered);
                }
                Err(error) if connected.connection.is_lost_by(&error) => {
                    self.shared.link.lost(connected.generation);
                    why = error.to_string();
                }
                // Its only write was refused, so the script has changed nothing.
                Err(error) if error.code() == Some("OOM") => {
                    let what = format!("Redis ({}) has reached its maxmemory", self.shared.config.servers);
                    return Err(Failed::Answered(StoreError::Full(what)));
                }
                Err(error) if error.code() == Some("WRONGTYPE") => {
                    let what = "an idempotency record in Redis is not one".to_owned();
                    return Err(Failed::Answered(StoreError::Damaged(what)));
                }
                Err(error) => return Err(Failed::Outage(error.to_string())),
            }
        }
        Err(Failed::Outage(why))
    }

    /// Carries out a call if the breaker admits it, and reports the outcome to the breaker.
    async fn guarded(&self, call: &Call<'_>) -> Result<Stepped, StoreError> {
        let Some(attempt) = Attempt::begin(self) else {
            return Err(self.unavailable("it has not answered the last steps"));
        };
        let outcome = self.in_time(async { Ok(self.carry_out(call).await) }).await;
        let outcome = outcome.unwrap_or_else(|why| Err(Failed::Outage(why)));
        self.note_room(&outcome);
        match outcome {
            Ok(stepped) => {
                attempt.succeeded();
                Ok(stepped)
            }
            Err(Failed::Answered(error)) => {
                attempt.succeeded();
                Err(error)
            }
            Err(Failed::Outage(why)) => {
                attempt.failed(&why);
                Err(self.unavailable(&why))
            }
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let limit = self.shared.config.timeout;
        timeout(limit, work).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("Redis ({}): {why}", self.shared.config.servers))
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        lock(&self.shared.breaker)
    }

    #[cfg(not(test))]
    fn now_ms(&self) -> Option<u64> {
        None
    }

    #[cfg(test)]
    fn now_ms(&self) -> Option<u64> {
        self.shared.time.as_ref().map(witan_kernel::port::StoreTime::now_ms)
    }
}

impl IdempotencyStore for RedisIdempotency {
    async fn step(&self, name: Name, step: Step) -> Result<Stepped, StoreError> {
        let bytes = Bytes::of(&self.shared.bytes_in_flight, rules::response_bytes(&step)?);
        let (Some(_bytes), Ok(_room)) = (bytes, self.shared.in_flight.try_acquire()) else {
            return Err(self.unavailable("too many steps are in flight"));
        };
        if matches!(step, Step::Reserve { .. }) {
            self.shared.claims.store(true, Ordering::Relaxed);
        }
        let first = if self.shared.small.load(Ordering::Relaxed) { Spelling::Short } else { Spelling::Long };
        self.guarded(&self.shared.steps.call(&name, &step, first, self.now_ms())).await
    }
}

impl SmallRecords for RedisIdempotency {
    fn claims(&self) -> bool {
        self.shared.claims.load(Ordering::Relaxed)
    }

    fn write_small(&self, small: bool) {
        self.shared.small.store(small, Ordering::Relaxed);
    }
}

/// Why a step has no result.
enum Failed {
    /// The server has answered with this error.
    Answered(StoreError),
    /// The server has not answered, or could not carry out the step.
    Outage(String),
}

/// A step that the breaker has admitted. Dropped without an outcome when its caller stops waiting.
struct Attempt<'a> {
    store: &'a RedisIdempotency,
    pass: Option<Pass>,
}

impl<'a> Attempt<'a> {
    fn begin(store: &'a RedisIdempotency) -> Option<Self> {
        let pass = store.breaker().admit(Instant::now());
        pass.map(|pass| Self { store, pass: Some(pass) })
    }

    fn succeeded(mut self) {
        self.pass = None;
        let was_open = {
            let mut breaker = self.store.breaker();
            let was_open = breaker.is_open();
            breaker.succeeded();
            was_open
        };
        if was_open {
            tracing::warn!(servers = %self.store.shared.config.servers, "Redis answers again");
        }
    }

    fn failed(mut self, why: &str) {
        let Some(pass) = self.pass.take() else { return };
        let opens = self.store.breaker().failed(&pass, Instant::now());
        if opens {
            // A dead connection may look alive for many minutes.
            self.store.shared.link.reset();
        }
        if opens && pass == Pass::Ordinary {
            let servers = &self.store.shared.config.servers;
            tracing::warn!(
                %servers,
                why,
                "Redis does not answer; until it does, requests with idempotency keys are refused or proceed without them"
            );
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.store.breaker().dropped(&pass);
        }
    }
}

/// A share of the bytes that may be in flight.
struct Bytes<'a> {
    of: &'a AtomicUsize,
    bytes: usize,
}

impl<'a> Bytes<'a> {
    fn of(all: &'a AtomicUsize, bytes: usize) -> Option<Self> {
        let share = Self { of: all, bytes };
        (all.fetch_add(bytes, Ordering::Relaxed) + bytes <= BYTES_IN_FLIGHT).then_some(share)
    }
}

impl Drop for Bytes<'_> {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How long a server may take to report its properties.
const CHECK: Duration = Duration::from_secs(10);

/// Logs findings about the servers of a connection, each once while it persists.
fn warn_of_findings() -> impl Fn(Connection) + Send + Sync {
    let logged: Arc<Mutex<Vec<RedisFinding>>> = Arc::default();
    move |mut connection| {
        let logged = logged.clone();
        tokio::spawn(async move {
            let Ok(Ok(facts)) = timeout(CHECK, check::facts(&mut connection)).await else { return };
            let found: Vec<RedisFinding> = facts.iter().flat_map(RedisFacts::findings).collect();
            let mut logged = lock(&logged);
            for finding in found.iter().filter(|finding| !logged.contains(finding)) {
                tracing::warn!("Redis: {finding}");
            }
            *logged = found;
        });
    }
}

impl std::fmt::Debug for RedisIdempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisIdempotency").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
