//! Which formats this coordinator writes that the version before cannot read: decided anew when coordinators come or go, and logged.

use std::sync::Mutex;

use witan_control::capabilities::{Written, written};
use witan_control::small_records::{Smaller, SmallerRecords};
use witan_coordinate::Coordinator;
use witan_kernel::capability::{AGES, COLLECT, FENCES, MOVES, NAMES, OF_COORDINATORS};
use witan_kernel::port::{Metadata, SmallRecords, StoreError};
use witan_kernel::sync::lock;
use witan_store::idempotency::RedisIdempotency;

use super::config::Config;
use super::stores::Idempotency;
use super::world::Real;

/// The formats, and what was decided last about each, which is logged when it changes.
pub(super) struct Formats {
    /// `consistency.ask_before_repeating`; `None`: auto.
    names: Option<bool>,
    /// `consistency.fence_changes`; `None`: auto.
    fences: Option<bool>,
    /// Several coordinators may share the metadata store: a single one is never cut off from its own changes.
    shared: bool,
    smaller: SmallerRecords,
    idempotency: Idempotency,
    decided: Mutex<Decided>,
}

#[derive(Default)]
struct Decided {
    names: Option<Written>,
    fences: Option<Written>,
    moves: Option<Written>,
    collects: Option<Written>,
    smaller: Option<Smaller>,
}

impl Formats {
    pub(super) fn new(config: &Config, idempotency: Idempotency, shared: bool) -> Self {
        let smaller = SmallerRecords::new(config.small_records);
        let Config { names, fences, .. } = *config;
        Self { names, fences, shared, smaller, idempotency, decided: Mutex::default() }
    }

    /// Decides which are written from now on.
    pub(super) async fn decide(
        &self,
        metadata: &dyn Metadata,
        coordinator: &Coordinator<Real>,
    ) -> Result<(), StoreError> {
        let names = written(metadata, NAMES, self.names).await?;
        coordinator.set_names(names.is_yes());
        if is_new(&mut lock(&self.decided).names, &names) {
            log_names(&names);
        }
        if self.shared {
            let fences = written(metadata, FENCES, self.fences).await?;
            coordinator.set_fences(fences.is_yes());
            if is_new(&mut lock(&self.decided).fences, &fences) {
                log_fences(&fences);
            }
        }
        // What moves records is fenced, so whoever does not want the one does not want the other.
        let moves = match OF_COORDINATORS.contains(&MOVES) {
            true => written(metadata, MOVES, self.fences).await?,
            false => Written::Off,
        };
        if is_new(&mut lock(&self.decided).moves, &moves) {
            log_moves(&moves);
        }
        // The same for what collects tombstones.
        let collects = match written(metadata, AGES, self.fences).await? {
            Written::Yes => written(metadata, COLLECT, self.fences).await?,
            lacking => lacking,
        };
        if is_new(&mut lock(&self.decided).collects, &collects) {
            log_collects(&collects);
        }
        // The embedded store has one form, and one coordinator.
        if let Idempotency::Redis(redis) = &self.idempotency {
            let smaller = self.smaller.decide(metadata, &Recording { redis, coordinator }).await?;
            if is_new(&mut lock(&self.decided).smaller, &smaller) {
                log_smaller(&smaller);
            }
        }
        Ok(())
    }
}

impl Formats {
    /// Whether every coordinator knows of tenants that move, and none will come that does not.
    pub(super) fn moves(&self) -> bool {
        lock(&self.decided).moves.as_ref().is_some_and(Written::is_yes)
    }

    /// Whether every coordinator does what the collection of tombstones rests on.
    pub(super) fn collects(&self) -> bool {
        lock(&self.decided).collects.as_ref().is_some_and(Written::is_yes)
    }

    /// Whether several coordinators may share the metadata store.
    pub(super) fn shared(&self) -> bool {
        self.shared
    }
}

/// What of a coordinator writes idempotency records.
struct Recording<'a> {
    redis: &'a RedisIdempotency,
    coordinator: &'a Coordinator<Real>,
}

impl SmallRecords for Recording<'_> {
    fn claims(&self) -> bool {
        self.redis.claims()
    }

    fn write_small(&self, small: bool) {
        self.redis.write_small(small);
        self.coordinator.set_small_responses(small);
    }
}

/// Keeps what has been decided. True if that is something else than before.
fn is_new<T: Clone + PartialEq>(decided: &mut Option<T>, now: &T) -> bool {
    decided.replace(now.clone()).is_none_or(|before| before != *now)
}

fn log_names(written: &Written) {
    match written {
        Written::Yes => tracing::info!("replicas are asked about a siblings write before it is repeated"),
        Written::Off => tracing::warn!(
            "consistency.ask_before_repeating is false: a replaced or deleted value of a siblings tenant may come back when a late \
             write is repeated; leave it out unless an earlier version has to read this cluster's data"
        ),
        Written::MayGoBack => tracing::warn!(
            "an earlier version of witan has created this cluster, so replicas are not asked about a siblings write before it is \
             repeated; once no process will go back to that version, set consistency.ask_before_repeating to true"
        ),
        Written::Lacking(coordinator, version) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, so replicas are not asked about a siblings write before it is repeated"
        ),
    }
}

fn log_fences(written: &Written) {
    match written {
        Written::Yes => tracing::info!("changes of tenants are fenced at the storage nodes"),
        Written::Off => tracing::warn!(
            "consistency.fence_changes is false: a coordinator that is cut off from the metadata store goes on under a tenant's earlier \
             settings after they were changed; leave it out unless an earlier version has to open this cluster's storage nodes"
        ),
        Written::MayGoBack => tracing::warn!(
            "an earlier version of witan has created this cluster, so changes of tenants are not fenced at the storage nodes; once no \
             process will go back to that version, set consistency.fence_changes to true"
        ),
        Written::Lacking(coordinator, version) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, so changes of tenants are not fenced at the storage nodes"
        ),
    }
}

fn log_moves(written: &Written) {
    match written {
        Written::Yes => tracing::info!("nodes and replication factors can be changed while data is stored"),
        Written::Off | Written::MayGoBack => tracing::info!(
            "nodes and replication factors can be changed only while nothing is stored, since changes of tenants are not fenced \
             (consistency.fence_changes)"
        ),
        Written::Lacking(coordinator, version) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, so nodes and replication factors can be changed only while nothing is stored"
        ),
    }
}

fn log_collects(written: &Written) {
    match written {
        Written::Yes => tracing::info!("what is left of deleted keys is dropped (healing.collect_tombstones)"),
        Written::Off | Written::MayGoBack => tracing::info!(
            "what is left of deleted keys stays on the disks, since changes of tenants are not fenced (consistency.fence_changes)"
        ),
        Written::Lacking(coordinator, version) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, so what is left of deleted keys stays on the disks"
        ),
    }
}

fn log_smaller(smaller: &Smaller) {
    match smaller {
        Smaller::Yes => tracing::info!("idempotency records are written in their smaller form"),
        Smaller::Unused => tracing::debug!("no idempotency key has been claimed yet"),
        Smaller::Settling => tracing::info!(
            "idempotency records are written in their smaller form soon; from now on an earlier version of witan refuses to start"
        ),
        Smaller::No(Written::Yes | Written::Off) => tracing::info!(
            "redis.small_records is false, so idempotency records are written in their larger form (docs/capacity.md)"
        ),
        Smaller::No(Written::MayGoBack) => tracing::warn!(
            "an earlier version of witan has created this cluster, so idempotency records are written in their larger form; once no \
             process of that version runs any more and none will, set redis.small_records to true (docs/capacity.md)"
        ),
        Smaller::No(Written::Lacking(coordinator, version)) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, or was within the last day, so idempotency records are written in their larger form"
        ),
    }
}
