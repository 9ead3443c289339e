//! Clients of the coordinator, of its sessions and of a node; and the details of an error.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_types::pb;
use witan_wire::v1;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;

use super::PATIENCE;

/// 100 siblings fill a record of 32 MiB.
const RESPONSE_BYTES: usize = 48 << 20;

/// A write without options.
pub(crate) fn write(tenant: &str, key: &str, value: impl Into<Bytes>) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest {
        tenant_id: tenant.to_owned(),
        key: key.to_owned(),
        value: value.into(),
        ..v1::WriteKeyValueRequest::default()
    }
}

/// A delete without options.
pub(crate) fn delete(tenant: &str, key: &str) -> v1::DeleteKeyValueRequest {
    let (tenant_id, key) = (tenant.to_owned(), key.to_owned());
    v1::DeleteKeyValueRequest { tenant_id, key, ..v1::DeleteKeyValueRequest::default() }
}

/// A read at the tenant's default level.
pub(crate) fn read(tenant: &str, key: &str) -> v1::ReadKeyValueRequest {
    v1::ReadKeyValueRequest { tenant_id: tenant.to_owned(), key: key.to_owned(), consistency: String::new() }
}

/// A client of a coordinator. Connects when needed, and reconnects when a connection has broken.
#[derive(Clone)]
pub(crate) struct Api {
    client: CoordinatorServiceClient<Channel>,
    /// The deadline of requests that set none; `None`: the coordinator's default.
    deadline: Option<Duration>,
}

impl Api {
    /// A client of the coordinator at `address`. It sets the longest deadline that a coordinator allows: most
    /// tests are about the response, and a busy machine may be slow.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let client = CoordinatorServiceClient::new(channel(address));
        let client = client.max_decoding_message_size(RESPONSE_BYTES).max_encoding_message_size(RESPONSE_BYTES);
        Self { client, deadline: Some(PATIENCE) }
    }

    /// The same client, with the coordinator's default deadlines.
    pub(crate) fn without_deadline(self) -> Self {
        Self { deadline: None, ..self }
    }

    /// The generated client, for calls without a shorthand here.
    pub(crate) fn client(&self) -> CoordinatorServiceClient<Channel> {
        self.client.clone()
    }

    fn timed<T>(&self, request: impl tonic::IntoRequest<T>) -> tonic::Request<T> {
        let mut request = request.into_request();
        if let Some(deadline) = self.deadline.filter(|_| request.metadata().get("grpc-timeout").is_none()) {
            request.set_timeout(deadline);
        }
        request
    }

    /// Creates a tenant with 3 replicas and the settings that `change` makes.
    pub(crate) async fn tenant(&self, id: &str, change: impl FnOnce(&mut v1::CreateTenantRequest)) {
        let mut request = v1::CreateTenantRequest { tenant_id: id.to_owned(), ..v1::CreateTenantRequest::default() };
        change(&mut request);
        self.client().create_tenant(request).await.expect("create a tenant");
    }

    /// Creates a tenant that keeps siblings.
    pub(crate) async fn siblings_tenant(&self, id: &str) {
        self.tenant(id, |request| request.conflict_mode = "siblings".to_owned()).await;
    }

    /// Writes.
    pub(crate) async fn write(
        &self,
        request: impl tonic::IntoRequest<v1::WriteKeyValueRequest>,
    ) -> Result<v1::WriteKeyValueResponse, Refusal> {
        Ok(self.client().write_key_value(self.timed(request)).await?.into_inner())
    }

    /// Deletes.
    pub(crate) async fn delete(
        &self,
        request: impl tonic::IntoRequest<v1::DeleteKeyValueRequest>,
    ) -> Result<v1::WriteKeyValueResponse, Refusal> {
        Ok(self.client().delete_key_value(self.timed(request)).await?.into_inner())
    }

    /// Reads.
    pub(crate) async fn read(
        &self,
        request: impl tonic::IntoRequest<v1::ReadKeyValueRequest>,
    ) -> Result<v1::ReadKeyValueResponse, Refusal> {
        Ok(self.client().read_key_value(self.timed(request)).await?.into_inner())
    }

    /// All values that a read returns, sorted, and the context; no values if the key has none.
    pub(crate) async fn values(&self, request: v1::ReadKeyValueRequest) -> Result<(Vec<Bytes>, Bytes), Refusal> {
        match self.read(request).await {
            Ok(found) if found.siblings.is_empty() => Ok((vec![found.value], found.context)),
            Ok(found) => {
                let mut values: Vec<Bytes> = found.siblings.into_iter().map(|sibling| sibling.value).collect();
                values.sort();
                Ok((values, found.context))
            }
            Err(refusal) if refusal.reason == "KEY_NOT_FOUND" => Ok((Vec::new(), refusal.context)),
            Err(refusal) => Err(refusal),
        }
    }

    /// Opens a session.
    pub(crate) async fn session(&self) -> Session {
        let (requests, receiver) = mpsc::channel(64);
        let responses = self.client().session(ReceiverStream::new(receiver)).await.expect("open a session");
        Session { requests: Some(requests), responses: responses.into_inner() }
    }
}

/// A channel that connects when needed.
pub(crate) fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(PATIENCE).tcp_nodelay(true).connect_lazy()
}

/// A client of a storage node.
pub(crate) fn node_client(address: SocketAddr) -> StorageNodeServiceClient<Channel> {
    StorageNodeServiceClient::new(channel(address)).max_decoding_message_size(RESPONSE_BYTES)
}

/// A stream of operations.
pub(crate) struct Session {
    requests: Option<mpsc::Sender<v1::SessionRequestBatch>>,
    responses: Streaming<v1::SessionResponseBatch>,
}

impl Session {
    /// Executes one operation, alone on the stream, with a deadline. Unlike the deadline of a call, only the coordinator knows
    /// this one: nothing in between gives up at the same moment, so the coordinator's response arrives.
    pub(crate) async fn within(
        &mut self,
        deadline: Duration,
        operation: v1::session_request::Operation,
    ) -> v1::session_response::Result {
        let timeout_ms = u32::try_from(deadline.as_millis()).expect("a deadline of days");
        self.send(vec![v1::SessionRequest { id: 1, operation: Some(operation), timeout_ms }]).await;
        self.take(1).await.remove(0).result.expect("a result")
    }

    /// Sends a batch.
    pub(crate) async fn send(&self, requests: Vec<v1::SessionRequest>) {
        let open = self.requests.as_ref().expect("the session takes requests");
        open.send(v1::SessionRequestBatch { requests }).await.expect("send to a session");
    }

    /// Closes the sending side.
    pub(crate) fn finish(&mut self) {
        self.requests = None;
    }

    /// The next batch of responses; `None` when the stream has ended without error.
    pub(crate) async fn next(&mut self) -> Option<Vec<v1::SessionResponse>> {
        let message = self.responses.message().await.expect("a session's stream");
        message.map(|batch| batch.responses)
    }

    /// `count` responses in the order of their arrival.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<v1::SessionResponse> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.extend(self.next().await.expect("the session goes on"));
        }
        taken
    }
}

/// A failed call, with its details decoded.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The status code.
    pub(crate) code: Code,
    /// Its message.
    pub(crate) message: String,
    /// `ErrorInfo.reason`; empty if the transport failed, without a response of the coordinator.
    pub(crate) reason: String,
    /// The metadata `outcome`; empty if absent.
    pub(crate) outcome: String,
    /// Other metadata of `ErrorInfo`.
    pub(crate) facts: HashMap<String, String>,
    /// Fields that `BadRequest` names.
    pub(crate) fields: Vec<String>,
    /// The delay of `RetryInfo`.
    pub(crate) retry_after: Option<Duration>,
    /// The context of a key that has no value.
    pub(crate) context: Bytes,
}

impl Refusal {
    /// Code, reason, outcome and first field: what most tests compare.
    pub(crate) fn summary(&self) -> (Code, &str, &str, &str) {
        let field = self.fields.first().map_or("", String::as_str);
        (self.code, &self.reason, &self.outcome, field)
    }

    fn new(code: Code, message: &str, details: &[u8]) -> Self {
        let mut refusal = Self {
            code,
            message: message.to_owned(),
            reason: String::new(),
            outcome: String::new(),
            facts: HashMap::new(),
            fields: Vec::new(),
            retry_after: None,
            context: Bytes::new(),
        };
        let status = pb::Status::decode(details).expect("details are a google.rpc.Status");
        if !details.is_empty() {
            assert_eq!((status.code, status.message.as_str()), (code as i32, message), "the details repeat the status");
        }
        for detail in status.details {
            refusal.take(&detail.type_url, &detail.value);
        }
        refusal
    }

    fn take(&mut self, kind: &str, value: &[u8]) {
        match kind.rsplit('/').next() {
            Some("google.rpc.ErrorInfo") => {
                let info = pb::ErrorInfo::decode(value).expect("an ErrorInfo");
                assert_eq!(info.domain, "witan");
                self.reason = info.reason;
                self.facts = info.metadata;
                self.outcome = self.facts.remove("outcome").unwrap_or_default();
            }
            Some("google.rpc.BadRequest") => {
                let bad = pb::BadRequest::decode(value).expect("a BadRequest");
                self.fields = bad.field_violations.into_iter().map(|violation| violation.field).collect();
            }
            Some("google.rpc.RetryInfo") => {
                let retry = pb::RetryInfo::decode(value).expect("a RetryInfo");
                self.retry_after = retry.retry_delay.and_then(|delay| delay.try_into().ok());
            }
            Some("witan.v1.KeyNotFoundDetail") => {
                self.context = v1::KeyNotFoundDetail::decode(value).expect("a KeyNotFoundDetail").context;
            }
            _ => panic!("unknown detail {kind}"),
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::new(status.code(), status.message(), status.details())
    }
}

impl From<v1::SessionStatus> for Refusal {
    fn from(status: v1::SessionStatus) -> Self {
        Self::new(Code::from_i32(status.code), &status.message, &status.details)
    }
}
