//! One change, attempted once or until it is settled, and what is known of it then.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::IntoRequest;
use witan_wire::v1;

use super::Ground;
use crate::harness::{Api, PATIENCE, Refusal};

/// An attempt that names its intention is given up after so long, and tried again: the coordinator's claim on the name
/// outlives it only by a moment, so that an attempt after a crash need not wait long for it to expire.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// When a change with a name is given up for good. A `siblings` write that nobody has minted after 15 s stays in doubt.
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
    /// How often idempotency records had been lost before it was sent first.
    pub(super) losses: usize,
}

/// What is known of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It happened.
    Acknowledged {
        /// To be sent with the next write.
        context: Bytes,
        /// Somebody had done it before.
        duplicate: bool,
    },
    /// It did not happen and will not.
    NotApplied,
    /// Nobody knows.
    InDoubt,
}

impl Change {
    /// Sends it once.
    pub(super) async fn once(&self, ground: &Ground) -> Fate {
        // The coordinator's own deadline is 5 s.
        match tokio::time::timeout(PATIENCE, self.send(ground.api())).await {
            Err(_) => panic!("{self:?} was not answered within {PATIENCE:?}"),
            Ok(Ok(written)) => {
                ground.acknowledged.fetch_add(1, Ordering::Relaxed);
                Fate::Acknowledged { context: written.context, duplicate: written.is_duplicate }
            }
            Ok(Err(refusal)) => self.fate(&refusal),
        }
    }

    /// Sends it, which has a name, again and again until it is acknowledged, or has been in doubt for too long.
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

    /// Without a name there is no second attempt: then the answer is awaited, so that nothing of the change is under way
    /// any more when its fate is noted.
    fn timed<T: IntoRequest<T>>(&self, request: T) -> tonic::Request<T> {
        let mut request = request.into_request();
        if !self.name.is_empty() {
            request.set_timeout(ATTEMPT);
        }
        request
    }

    fn fate(&self, refusal: &Refusal) -> Fate {
        match (refusal.reason.as_str(), refusal.outcome.as_str()) {
            // No coordinator has said anything. A connection that was never made has carried nothing.
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

/// Reads until somebody answers; all values, sorted, and the context.
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
