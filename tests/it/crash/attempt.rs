//! One change, attempted once or until it is settled, and its known outcome.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::IntoRequest;
use witan_wire::v1;

use super::Ground;
use crate::harness::{Api, PATIENCE, Refusal};

/// Timeout of an attempt with an idempotency key, which is then retried: the coordinator's claim on the key outlives the attempt only
/// briefly, so that a retry after a crash need not wait long for it to expire.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Time after which a change with an idempotency key is given up. A `siblings` write that is not minted after 15 s stays in doubt.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// A write or a delete.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) tenant: &'static str,
    pub(super) key: String,
    /// `None` deletes.
    pub(super) value: Option<String>,
    /// The idempotency key; empty: none.
    pub(super) name: String,
    pub(super) context: Bytes,
    /// Number of losses of idempotency records before it was first sent.
    pub(super) losses: usize,
}

/// The known outcome of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It happened.
    Acknowledged {
        /// The context for the next write.
        context: Bytes,
        /// An earlier attempt had done it.
        duplicate: bool,
    },
    /// It did not happen and will not.
    NotApplied,
    /// Unknown.
    InDoubt,
}

impl Change {
    /// Sends it once.
    pub(super) async fn once(&self, ground: &Ground) -> Fate {
        // The coordinator's default deadline is 5 s.
        match tokio::time::timeout(PATIENCE, self.send(ground.api())).await {
            Err(_) => panic!("{self:?} was not answered within {PATIENCE:?}"),
            Ok(Ok(written)) => {
                ground.acknowledged.fetch_add(1, Ordering::Relaxed);
                Fate::Acknowledged { context: written.context, duplicate: written.is_duplicate }
            }
            Ok(Err(refusal)) => self.fate(&refusal),
        }
    }

    /// Sends a change with an idempotency key until it is acknowledged, or has been in doubt for too long.
    pub(super) async fn settled(&self, ground: &Ground) -> Fate {
        let until = Instant::now() + GIVEN_UP;
        let mut pause = Duration::from_millis(10);
        let mut doubt = false;
        loop {
            match self.once(ground).await {
                acknowledged @ Fate::Acknowledged { .. } => return acknowledged,
                Fate::InDoubt => doubt = true,
                Fate::NotApplied => {}
            }
            if Instant::now() > until {
                ground.given_up.fetch_add(1, Ordering::Relaxed);
                return if doubt { Fate::InDoubt } else { Fate::NotApplied };
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Sends it to a coordinator.
    pub(super) async fn send(&self, api: &Api) -> Result<v1::WriteKeyValueResponse, Refusal> {
        let (tenant_id, key, context) = (self.tenant.to_owned(), self.key.clone(), self.context.clone());
        let (idempotency_key, consistency) = (self.name.clone(), String::new());
        match &self.value {
            Some(value) => {
                let value = Bytes::from(value.clone());
                let request = v1::WriteKeyValueRequest { tenant_id, key, value, consistency, idempotency_key, context };
                api.write(self.timed(request)).await
            }
            None => {
                let request = v1::DeleteKeyValueRequest { tenant_id, key, consistency, idempotency_key, context };
                api.delete(self.timed(request)).await
            }
        }
    }

    /// A change without an idempotency key is not retried: its response is awaited, so that nothing of the change is in flight when
    /// its outcome is noted.
    fn timed<T: IntoRequest<T>>(&self, request: T) -> tonic::Request<T> {
        let mut request = request.into_request();
        if !self.name.is_empty() {
            request.set_timeout(ATTEMPT);
        }
        request
    }

    fn fate(&self, refusal: &Refusal) -> Fate {
        match (refusal.reason.as_str(), refusal.outcome.as_str()) {
            // No coordinator has responded. If there was no connection, nothing was sent.
            ("", _) if refusal.message.contains("tcp connect error") => Fate::NotApplied,
            ("", _) => Fate::InDoubt,
            ("INTERNAL_ERROR" | "INVALID_REQUEST" | "IDEMPOTENCY_KEY_CONFLICT" | "TENANT_NOT_FOUND", _) => {
                panic!("{self:?} was refused: {refusal:?}")
            }
            (_, "not-applied") => Fate::NotApplied,
            (_, "in-doubt") => Fate::InDoubt,
            _ => panic!("{self:?} failed and nobody says how it came out: {refusal:?}"),
        }
    }
}

/// Reads until a coordinator responds; returns all values, sorted, and the context.
pub(super) async fn values(ground: &Ground, tenant: &str, key: &str, level: &str) -> (Vec<String>, Bytes) {
    let until = Instant::now() + PATIENCE;
    loop {
        let request = v1::ReadKeyValueRequest {
            tenant_id: tenant.to_owned(),
            key: key.to_owned(),
            consistency: level.to_owned(),
        };
        match ground.api().values(request).await {
            Ok((values, context)) => {
                let text = |value: Bytes| String::from_utf8(value.to_vec()).expect("what was written is text");
                return (values.into_iter().map(text).collect(), context);
            }
            Err(refusal) => {
                assert_ne!(refusal.reason, "INTERNAL_ERROR", "{refusal:?}");
                assert!(Instant::now() < until, "{tenant} {key} cannot be read: {refusal:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
