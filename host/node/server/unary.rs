//! Unary calls: one request each.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tonic::Status;
use witan_kernel::name::{Invalid, Key, NodeId, TenantId};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::ring;
use witan_kernel::space::Space;
use witan_kernel::sync::lock;
use witan_wire::condition::condition_to_wire;
use witan_wire::v1::{DescribeResponse, ReadRequest, ReadResponse, RepairRequest, RepairResponse};

use crate::batch::{Answers, Deliver, Item};
use crate::driver::Driver;

/// Receives the answer to a single request.
struct One(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Deliver for One {
    fn deliver(&self, answers: Answers) {
        let waiting = lock(&self.0).take();
        if let (Some(waiting), Some((_, outcome))) = (waiting, answers.into_iter().next()) {
            // An error means that the caller has disconnected.
            let _ = waiting.send(outcome);
        }
    }
}

async fn ask(driver: &dyn Driver, place: Place, ask: Ask) -> Result<Answer, Status> {
    let (answer, answered) = oneshot::channel();
    // People and tools are beyond fences: they look at, or repair, what is there.
    let request = Request { place, epoch: u64::MAX, ask };
    driver.submit(
        vec![Item { tag: 0, request, deadline: u64::MAX, largest_answer: usize::MAX, is_aged: true }],
        Arc::new(One(Mutex::new(Some(answer)))),
    );
    match answered.await {
        Ok(outcome) => outcome.map_err(|error| status(&error)),
        Err(_) => Err(Status::unavailable("the node is shutting down")),
    }
}

fn place(tenant: String, key: String, token: Option<u64>) -> Result<Place, Status> {
    let invalid = |error: Invalid| Status::invalid_argument(error.to_string());
    // A later generation is named behind a colon.
    let space = Space::from_trusted(tenant.into_bytes().into());
    let tenant = TenantId::new(space.tenant().as_str()).map_err(invalid)?;
    let key = Key::new(key).map_err(invalid)?;
    let token = token.unwrap_or_else(|| ring::token(&tenant, key.bytes()));
    Ok(Place { token, space, key })
}

fn status(error: &ReplicaError) -> Status {
    let message = error.to_string();
    match error {
        ReplicaError::Overloaded | ReplicaError::StorageFull => Status::resource_exhausted(message),
        ReplicaError::WrongMode | ReplicaError::SiblingLimit | ReplicaError::StaleEpoch | ReplicaError::Large => {
            Status::failed_precondition(message)
        }
        ReplicaError::Late => Status::deadline_exceeded(message),
        ReplicaError::NotSent(_) | ReplicaError::Incomplete(_) | ReplicaError::Filling(_) | ReplicaError::Lost(_) => {
            Status::unavailable(message)
        }
        ReplicaError::InDoubt | ReplicaError::Broken(_) => Status::internal(message),
    }
}

fn unexpected(answer: &Answer) -> Status {
    tracing::error!(?answer, "a shard gave an answer of the wrong kind");
    Status::internal("internal error")
}

/// Returns a stored record.
pub(super) async fn read(driver: &dyn Driver, request: ReadRequest) -> Result<ReadResponse, Status> {
    let place = place(request.tenant_id, request.key, request.token)?;
    match ask(driver, place, Ask::Read).await? {
        Answer::Record(record) => {
            let rendering = record.as_ref().filter(|_| request.render).map(render).unwrap_or_default();
            Ok(ReadResponse { record: record.map(|record| record.0), rendering })
        }
        answer => Err(unexpected(&answer)),
    }
}

/// Merges a record into the stored one.
pub(super) async fn repair(driver: &dyn Driver, request: RepairRequest) -> Result<RepairResponse, Status> {
    let record = Encoded(request.record);
    record.check().map_err(|error| Status::invalid_argument(format!("record: {error}")))?;
    let place = place(request.tenant_id, request.key, request.token)?;
    match ask(driver, place, Ask::Merge { record }).await? {
        Answer::Merged { superseded, .. } => Ok(RepairResponse { superseded }),
        answer => Err(unexpected(&answer)),
    }
}

/// Describes the node: its ids, its size, how full its disk is, and what its clock shows: `wall`, microseconds since 1970, is asked last.
pub(super) async fn describe(
    driver: &dyn Driver,
    node: &NodeId,
    wall: impl FnOnce() -> u64,
) -> Result<DescribeResponse, Status> {
    let store = driver.store();
    let usage = driver.usage().await.map_err(|error| Status::internal(error.to_string()))?;
    let condition = store.condition();
    Ok(DescribeResponse {
        node_id: node.to_string(),
        store_id: store.id().0.to_vec().into(),
        keys_count: store.engine().approximate_keys(),
        disk_bytes: usage.bytes,
        disk_usage_percent: usage.percent,
        commit: driver.store().commit(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_state: Some(condition_to_wire(&condition)),
        clock_micros: wall(),
    })
}

/// Most bytes of a value that a rendering shows.
const SHOWN_BYTES: usize = 200;

/// A record in readable form: one line for a register, or one for each sibling and one for the whole.
fn render(record: &Encoded) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = match record.decode() {
        Ok(Record::Register(register)) => writeln!(
            out,
            "register: stamp {}, write {}, {}, remembers {} writes",
            register.stamp.0,
            register.write_id,
            show(register.value.as_deref()),
            register.recent.entries.len()
        ),
        Ok(Record::Siblings(siblings)) => {
            let versions = siblings.versions.iter().try_for_each(|version| {
                let dots =
                    version.dots.iter().map(|dot| format!("{}/{}:{}", dot.actor.store, dot.actor.birth, dot.counter));
                let dots = dots.collect::<Vec<_>>().join(" ");
                writeln!(out, "version: time {}, events {dots}, {}", version.time, show(version.value.as_deref()))
            });
            versions.and_then(|()| {
                let (actors, writes) = (siblings.seen.entries.len(), siblings.names.entries.len());
                writeln!(out, "siblings: has seen events of {actors} actors, remembers {writes} writes")
            })
        }
        Err(error) => writeln!(out, "{error}"),
    };
    out
}

fn show(value: Option<&[u8]>) -> String {
    match value {
        None => "deleted".to_owned(),
        Some(value) => {
            let shown = String::from_utf8_lossy(&value[..value.len().min(SHOWN_BYTES)]);
            let more = if value.len() > SHOWN_BYTES { "..." } else { "" };
            format!("value of {} bytes {shown:?}{more}", value.len())
        }
    }
}
