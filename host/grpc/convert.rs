//! Conversion of the key-value calls' requests and responses.

use std::time::Duration;

use bytes::Bytes;
use witan_kernel::hook::PluginFault;
use witan_kernel::limit;
use witan_kernel::name::{Invalid, Key, TenantId};
use witan_kernel::tenant::Level;
use witan_net::call;
use witan_wire::v1;

use witan_coordinate::{ReadAnswer, ReadRequest, WriteRequest, Written};

/// A request that is about one key.
pub(super) trait OfKey {
    /// The tenant and the key.
    fn of_key(&self) -> (&TenantId, &[u8]);
    /// Sets when it arrived, in microseconds of the coordinator's monotonic clock.
    fn arrived_at(&mut self, arrived: u64);
}

impl OfKey for WriteRequest {
    fn of_key(&self) -> (&TenantId, &[u8]) {
        (&self.tenant, self.key.bytes())
    }

    fn arrived_at(&mut self, arrived: u64) {
        self.arrived = Some(arrived);
    }
}

impl OfKey for ReadRequest {
    fn of_key(&self) -> (&TenantId, &[u8]) {
        (&self.tenant, self.key.bytes())
    }

    fn arrived_at(&mut self, arrived: u64) {
        self.arrived = Some(arrived);
    }
}

pub(super) fn write(request: v1::WriteKeyValueRequest, timeout: Option<Duration>) -> Result<WriteRequest, Invalid> {
    if request.value.len() > limit::VALUE_BYTES {
        let problem = format!("has {} bytes", request.value.len());
        return Err(Invalid::new("value", problem, format!("send at most {} bytes", limit::VALUE_BYTES)));
    }
    Ok(WriteRequest {
        tenant: TenantId::new(request.tenant_id)?,
        key: Key::new(request.key)?,
        value: Some(request.value),
        level: Level::parse("consistency", &request.consistency)?,
        idempotency_key: idempotency_key(request.idempotency_key)?,
        context: context(request.context)?,
        arrived: None,
        timeout,
    })
}

pub(super) fn delete(request: v1::DeleteKeyValueRequest, timeout: Option<Duration>) -> Result<WriteRequest, Invalid> {
    Ok(WriteRequest {
        tenant: TenantId::new(request.tenant_id)?,
        key: Key::new(request.key)?,
        value: None,
        level: Level::parse("consistency", &request.consistency)?,
        idempotency_key: idempotency_key(request.idempotency_key)?,
        context: context(request.context)?,
        arrived: None,
        timeout,
    })
}

pub(super) fn read(request: v1::ReadKeyValueRequest, timeout: Option<Duration>) -> Result<ReadRequest, Invalid> {
    Ok(ReadRequest {
        tenant: TenantId::new(request.tenant_id)?,
        key: Key::new(request.key)?,
        level: Level::parse("consistency", &request.consistency)?,
        arrived: None,
        timeout,
    })
}

pub(super) fn written(written: Written, key: String) -> v1::WriteKeyValueResponse {
    v1::WriteKeyValueResponse {
        success: true,
        key,
        idempotency_key: written.idempotency_key,
        vector_clock: Some(clock(written.rendering)),
        replica_count: i32::from(written.replicas),
        consistency: written.level.as_str().to_owned(),
        is_duplicate: written.duplicate,
        error_message: String::new(),
        context: written.context,
        policy_fault: fault(written.policy_fault),
    }
}

fn fault(fault: Option<Box<PluginFault>>) -> Option<v1::PluginFault> {
    let PluginFault { by, kind, reason } = *fault?;
    Some(v1::PluginFault { plugin: by.to_string(), reason, kind: kind.as_str().to_owned() })
}

pub(super) fn found(answer: ReadAnswer, key: String) -> v1::ReadKeyValueResponse {
    let siblings = answer.siblings.into_iter().map(|sibling| v1::Sibling {
        value: sibling.value,
        written_at_us: i64::try_from(sibling.time).unwrap_or(i64::MAX),
    });
    v1::ReadKeyValueResponse {
        success: true,
        key,
        value: answer.value,
        vector_clock: Some(clock(answer.rendering)),
        error_message: String::new(),
        context: answer.context,
        siblings: siblings.collect(),
        resolved_by: answer.resolved_by.map_or_else(|| "native".to_owned(), |by| by.to_string()),
        resolver_fault: fault(answer.resolver_fault),
        policy_fault: fault(answer.policy_fault),
    }
}

fn clock(rendering: Vec<(String, u64)>) -> v1::VectorClock {
    let entries = rendering.into_iter().map(|(coordinator_node_id, counter)| v1::VectorClockEntry {
        coordinator_node_id,
        logical_timestamp: i64::try_from(counter).unwrap_or(i64::MAX),
    });
    v1::VectorClock { entries: entries.collect() }
}

fn idempotency_key(key: String) -> Result<Option<String>, Invalid> {
    if key.len() > limit::IDEMPOTENCY_KEY_BYTES {
        let remedy = format!("use at most {} bytes", limit::IDEMPOTENCY_KEY_BYTES);
        return Err(Invalid::new("idempotency_key", format!("has {} bytes", key.len()), remedy));
    }
    Ok((!key.is_empty()).then_some(key))
}

fn context(context: Bytes) -> Result<Bytes, Invalid> {
    if context.len() > limit::CONTEXT_BYTES {
        let problem = format!("has {} bytes", context.len());
        return Err(Invalid::new("context", problem, "send the context that a read of this key returned, unchanged"));
    }
    Ok(context)
}

/// The most by which an operation's deadline is earlier than its client's.
const HEAD_START: Duration = Duration::from_millis(100);

/// How long an operation may take for a call with this deadline: a little less, so that it can say itself how far it got, before the call
/// is [ended](witan_net::call::Deadlines).
pub(crate) fn timeout(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let timeout = call::timeout(metadata.as_ref())?;
    Some(timeout - (timeout / 10).min(HEAD_START))
}

/// The name of the migration of this number.
pub(crate) fn migration_id(number: u64) -> String {
    format!("m-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_travel() {
        let read = |text: &'static str| {
            let mut metadata = tonic::metadata::MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(225)));
        assert_eq!(read("2S"), Some(Duration::from_millis(1900)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        assert_eq!(read("S"), None);
        assert_eq!(read("1x"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn an_unknown_level_is_refused_by_name() {
        let request = v1::ReadKeyValueRequest { tenant_id: "t".into(), key: "k".into(), consistency: "most".into() };
        let error = read(request, None).unwrap_err();
        assert_eq!(error.field, "consistency");
    }
}
