//! The data set, and writing and reading it over a session with many operations in flight.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::{ReadKeyValueRequest, SessionRequest, SessionRequestBatch};

use crate::client::{self, Coordinator};

/// Operations of a session in flight.
const WINDOW: usize = 512;
/// Operations in one message.
const BATCH: usize = 64;
/// Deadline of one operation, in milliseconds.
const TIMEOUT_MS: u32 = 10_000;

/// One record of the data set.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its key: type and subtag.
    pub key: String,
    /// Its line of the data set.
    pub value: Bytes,
}

/// Reads the data set.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.lines().map(record).collect::<Result<_>>().with_context(|| format!("read {}", path.display()))
}

fn record(line: &str) -> Result<Record> {
    let fields: serde_json::Value = serde_json::from_str(line)?;
    let kind = fields["Type"].as_str().context("a record has no Type")?;
    let tag = fields["Subtag"].as_str().or(fields["Tag"].as_str()).context("a record has no Subtag")?;
    Ok(Record { key: format!("{kind}/{tag}"), value: Bytes::copy_from_slice(line.as_bytes()) })
}

/// Writes every record; `each` is called when one is acknowledged.
pub async fn load(coordinator: &Coordinator, tenant: &str, records: &[Record], mut each: impl FnMut()) -> Result<()> {
    let writes =
        records.iter().map(|record| Operation::Write(client::write(tenant, &record.key, record.value.clone())));
    session(coordinator, writes.collect(), |_, outcome| match outcome {
        Outcome::Write(_) => {
            each();
            Ok(())
        }
        other => bail!("a write was answered with {other:?}"),
    })
    .await
}

/// Reads keys at a level; returns the values in the order of the keys, `None` where there is none.
pub async fn fetch(coordinator: &Coordinator, tenant: &str, keys: &[&str], level: &str) -> Result<Vec<Option<Bytes>>> {
    let read = |key: &&str| {
        let (tenant_id, key, consistency) = (tenant.to_owned(), (*key).to_owned(), level.to_owned());
        Operation::Read(ReadKeyValueRequest { tenant_id, key, consistency })
    };
    let mut values = vec![None; keys.len()];
    session(coordinator, keys.iter().map(read).collect(), |index, outcome| {
        match outcome {
            Outcome::Read(read) => values[index] = Some(read.value),
            Outcome::Status(status) if status.code == tonic::Code::NotFound as i32 => {}
            Outcome::Status(status) => bail!("read {} at level {level}: {}", keys[index], status.message),
            Outcome::Write(_) => bail!("a read was answered like a write"),
        }
        Ok(())
    })
    .await?;
    Ok(values)
}

/// Executes operations over one session, [`WINDOW`] at a time; `each` gets each result with the index of its operation.
async fn session(
    coordinator: &Coordinator,
    operations: Vec<Operation>,
    mut each: impl FnMut(usize, Outcome) -> Result<()>,
) -> Result<()> {
    let count = operations.len();
    let window = Arc::new(Semaphore::new(WINDOW));
    let (out, batches) = mpsc::channel(4);
    let sending = tokio::spawn(send(operations, window.clone(), out));
    let mut responses =
        coordinator.clone().session(ReceiverStream::new(batches)).await.context("open a session")?.into_inner();
    let mut answered = 0;
    while let Some(batch) = responses.message().await.context("read a session's answers")? {
        window.add_permits(batch.responses.len());
        for response in batch.responses {
            let outcome = response.result.context("an answer without a result")?;
            each(usize::try_from(response.id).unwrap_or(usize::MAX).min(count), outcome)?;
            answered += 1;
        }
    }
    sending.await.context("send a session's requests")?;
    ensure!(answered == count, "the session ended after {answered} of {count} answers");
    Ok(())
}

async fn send(operations: Vec<Operation>, window: Arc<Semaphore>, out: mpsc::Sender<SessionRequestBatch>) {
    let requests: Vec<SessionRequest> = operations
        .into_iter()
        .enumerate()
        .map(|(id, operation)| SessionRequest { id: id as u64, operation: Some(operation), timeout_ms: TIMEOUT_MS })
        .collect();
    for batch in requests.chunks(BATCH) {
        let Ok(permits) = window.acquire_many(batch.len() as u32).await else { return };
        permits.forget();
        if out.send(SessionRequestBatch { requests: batch.to_vec() }).await.is_err() {
            return;
        }
    }
}
