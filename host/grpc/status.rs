//! Failures as gRPC statuses: one code, one reason, and whether the change was applied.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use prost::Message;
use prost_types::Any;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::pb;
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::name::Invalid;
use witan_kernel::port::StoreError;
use witan_wire::v1::KeyNotFoundDetail;

use crate::access::refusal::Refusal;

/// The `domain` of every `ErrorInfo`.
pub(super) const DOMAIN: &str = "witan";

/// Longest text in a status, in bytes. A status travels in headers, of which clients take 8 to 16 KiB, and contains its message up to three
/// times, encoded in Base64 or with escapes. No text of ours is longer, but many contain something that a client has sent.
const TEXT_BYTES: usize = 1536;

/// A text of a status, shortened.
fn text(mut text: String) -> String {
    const MARK: &str = " ... (shortened)";
    if text.len() > TEXT_BYTES {
        text.truncate(text.floor_char_boundary(TEXT_BYTES - MARK.len()));
        text.push_str(MARK);
        // What was cut off is not kept with the rest.
        text.shrink_to_fit();
    }
    text
}

/// A status under construction.
pub(crate) struct Report {
    code: Code,
    reason: &'static str,
    message: String,
    outcome: Option<&'static str>,
    details: Vec<Any>,
    /// `ErrorInfo` metadata: numbers and names for programs.
    facts: Vec<(&'static str, String)>,
}

impl Report {
    pub(super) fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: text(message.into()), outcome: None, details: Vec::new(), facts: Vec::new() }
    }

    fn fact(mut self, name: &'static str, value: impl ToString) -> Self {
        self.facts.push((name, text(value.to_string())));
        self
    }

    /// Marks the request as in doubt.
    pub(super) fn in_doubt(mut self) -> Self {
        self.outcome = Some(Effect::InDoubt.as_str());
        self
    }

    /// Marks the request as not applied.
    pub(super) fn not_applied(mut self) -> Self {
        self.outcome = Some(Effect::NotApplied.as_str());
        self
    }

    pub(super) fn retry_after(mut self, delay: Duration) -> Self {
        let retry_delay = prost_types::Duration { seconds: delay.as_secs() as i64, nanos: delay.subsec_nanos() as i32 };
        self.details.push(any("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay: Some(retry_delay) }));
        self
    }

    fn violation(mut self, invalid: &Invalid) -> Self {
        let violation = pb::bad_request::FieldViolation {
            field: invalid.field.to_owned(),
            description: text(format!("{}; {}", invalid.problem, invalid.remedy)),
            ..Default::default()
        };
        self.details.push(any("google.rpc.BadRequest", &pb::BadRequest { field_violations: vec![violation] }));
        self
    }

    fn context(mut self, context: Bytes) -> Self {
        self.details.push(any("witan.v1.KeyNotFoundDetail", &KeyNotFoundDetail { context }));
        self
    }

    /// The code, the message, and the encoded `google.rpc.Status`.
    pub(super) fn encode(mut self) -> (Code, String, Bytes) {
        let mut metadata: HashMap<String, String> =
            self.facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        if let Some(outcome) = self.outcome {
            metadata.insert("outcome".to_owned(), outcome.to_owned());
        }
        let info = pb::ErrorInfo { reason: self.reason.to_owned(), domain: DOMAIN.to_owned(), metadata };
        self.details.insert(0, any("google.rpc.ErrorInfo", &info));
        let status = pb::Status { code: self.code as i32, message: self.message.clone(), details: self.details };
        (self.code, self.message, Bytes::from(status.encode_to_vec()))
    }

    pub(crate) fn status(self) -> Status {
        let (code, message, details) = self.encode();
        Status::with_details(code, message, details)
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// The report of an operation's failure.
pub(super) fn report(failed: Failed) -> Report {
    if let Failure::Internal(reason) = &failed.failure {
        tracing::error!(%reason, "an operation failed with an internal error");
    }
    let mut report = of(failed.failure);
    report.outcome = failed.effect.map(witan_kernel::failure::Effect::as_str);
    report
}

fn of(failure: Failure) -> Report {
    let message = failure.to_string();
    let new = |code, reason| Report::new(code, reason, message.clone());
    match failure {
        Failure::Invalid(invalid) => invalid_report(&invalid),
        Failure::TenantNotFound(_) => new(Code::NotFound, "TENANT_NOT_FOUND"),
        Failure::KeyNotFound { context } => new(Code::NotFound, "KEY_NOT_FOUND").context(context),
        Failure::TooFewNodes { wanted, nodes } => new(Code::FailedPrecondition, "INVALID_REPLICATION_FACTOR")
            .fact("replication_factor", wanted)
            .fact("nodes", nodes),
        Failure::QuorumNotReached { required, received, .. } => new(Code::Unavailable, "QUORUM_NOT_REACHED")
            .fact("required", required)
            .fact("received", received)
            .retry_after(Duration::from_millis(200)),
        Failure::Deadline { required, received } => {
            new(Code::DeadlineExceeded, "DEADLINE").fact("required", required).fact("received", received)
        }
        Failure::NotBegun => new(Code::DeadlineExceeded, "DEADLINE"),
        Failure::Overloaded { retry_after } => new(Code::ResourceExhausted, "OVERLOADED").retry_after(retry_after),
        Failure::SiblingLimit => new(Code::ResourceExhausted, "SIBLING_LIMIT"),
        Failure::IdempotencyKeyConflict => new(Code::InvalidArgument, "IDEMPOTENCY_KEY_CONFLICT"),
        Failure::ContextOutdated => new(Code::Aborted, "VERSION_CONFLICT"),
        Failure::ReservationExpired => new(Code::FailedPrecondition, "IDEMPOTENCY_KEY_EXPIRED"),
        Failure::InProgress { retry_after } => new(Code::Aborted, "IN_PROGRESS").retry_after(retry_after),
        Failure::PluginFault { hook, by, .. } => {
            new(Code::FailedPrecondition, "PLUGIN_FAULT").fact("hook", hook).fact("plugin", by)
        }
        Failure::StorageFull { required, received } => {
            new(Code::ResourceExhausted, "STORAGE_FULL").fact("required", required).fact("received", received)
        }
        Failure::StaleEpoch => new(Code::Aborted, "STALE_EPOCH").retry_after(Duration::from_millis(100)),
        Failure::StoreUnavailable { what, .. } => {
            Report::new(Code::Unavailable, "STORE_UNAVAILABLE", format!("{what} cannot be reached; try again later"))
                .retry_after(Duration::from_millis(500))
        }
        Failure::StoreFull(_) => new(Code::ResourceExhausted, "STORAGE_FULL"),
        Failure::Forgotten => new(Code::Aborted, "OUTCOME_FORGOTTEN"),
        Failure::Unrecorded => new(Code::Unavailable, "STORE_UNAVAILABLE").retry_after(Duration::from_millis(500)),
        Failure::Internal(_) => Report::new(Code::Internal, "INTERNAL_ERROR", "internal error; see the log"),
    }
}

fn invalid_report(invalid: &Invalid) -> Report {
    // The number of replicas has a reason of its own, whether it is impossible everywhere or only with the nodes there are.
    let reason = match invalid.field {
        "replication_factor" | "new_replication_factor" => "INVALID_REPLICATION_FACTOR",
        _ => "INVALID_REQUEST",
    };
    Report::new(Code::InvalidArgument, reason, invalid.to_string()).violation(invalid)
}

/// The status for a malformed request, which was not applied.
pub(crate) fn invalid(invalid: &Invalid) -> Status {
    let mut report = invalid_report(invalid);
    report.outcome = Some("not-applied");
    report.status()
}

/// The report of an error that the metadata store returned for a change or lookup of the catalog.
pub(crate) fn store_report(error: &StoreError, exists: &'static str, missing: &'static str) -> Report {
    let (code, reason) = match error {
        StoreError::Unavailable(reason) => {
            tracing::warn!(%reason, "the metadata store cannot be reached");
            (Code::Unavailable, "STORE_UNAVAILABLE")
        }
        StoreError::Full(reason) => {
            tracing::warn!(%reason, "the metadata store is full");
            (Code::ResourceExhausted, "STORAGE_FULL")
        }
        StoreError::Conflict(_) => (Code::Aborted, "VERSION_CONFLICT"),
        StoreError::Exists(_) => (Code::AlreadyExists, exists),
        StoreError::Missing(_) => (Code::NotFound, missing),
        StoreError::Refused(_) => (Code::FailedPrecondition, "INVALID_REQUEST"),
        StoreError::Damaged(reason) => {
            tracing::error!(%reason, "stored metadata is damaged");
            (Code::Internal, "INTERNAL_ERROR")
        }
    };
    let mut report = Report::new(code, reason, error.to_string());
    report.outcome = Some(match error {
        StoreError::Unavailable(_) | StoreError::Full(_) => "in-doubt",
        _ => "not-applied",
    });
    report
}

/// The status for a change that was refused, and why.
pub(crate) fn refused(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    let mut report = Report::new(code, reason, message);
    report.outcome = Some("not-applied");
    report.status()
}

/// The status for a call that is refused because others are under way, and was not applied.
pub(super) fn busy(message: impl Into<String>) -> Status {
    let report = Report::new(Code::ResourceExhausted, "OVERLOADED", message).not_applied();
    report.retry_after(Duration::from_millis(200)).status()
}

/// The report of a call whose deadline passed before it was answered. `begun`: it may have had effects by then.
pub(super) fn too_late(begun: bool, changes: bool) -> Report {
    let message = match begun {
        true => "the deadline passed before the call was answered; allow more time",
        false => "the deadline passed before the whole request had arrived; allow more time",
    };
    let mut report = Report::new(Code::DeadlineExceeded, "DEADLINE", message);
    report.outcome = changes.then_some(if begun { "in-doubt" } else { "not-applied" });
    report
}

/// The answer to a call whose messages are compressed. A small message can become a very large one when it is decompressed, and the bounds
/// on memory count bytes as they arrive.
pub(super) fn compressed(encoding: &str, changes: bool) -> Response<Body> {
    let message = format!(
        "messages compressed with {encoding:?} are not accepted: turn compression off in the client (grpc-encoding: identity)"
    );
    let mut report = Report::new(Code::Unimplemented, "COMPRESSION_UNSUPPORTED", message);
    report.outcome = changes.then_some("not-applied");
    let mut response = report.status().into_http();
    // The specification of gRPC asks for what is accepted.
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    response
}

/// The report of a call that was not authorized. `changes`: the call would have changed something; it was not applied.
pub(super) fn refusal(refusal: &Refusal, changes: bool) -> Report {
    let code = match refusal {
        Refusal::NoCredential | Refusal::Malformed | Refusal::Unknown | Refusal::Expired | Refusal::Issuer(_) => {
            Code::Unauthenticated
        }
        Refusal::Scope { .. } | Refusal::Tenant { .. } | Refusal::Bound => Code::PermissionDenied,
        Refusal::Rate { .. } => Code::ResourceExhausted,
        Refusal::Unavailable | Refusal::Unrecorded => Code::Unavailable,
    };
    let mut report = Report::new(code, refusal.reason(), refusal.to_string());
    report.outcome = changes.then_some("not-applied");
    match refusal {
        Refusal::Rate { retry_after, .. } => report.retry_after(*retry_after),
        Refusal::Unavailable | Refusal::Unrecorded => report.retry_after(Duration::from_millis(500)),
        Refusal::Scope { needs } => report.fact("scope", needs),
        _ => report,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn a_status_names_reason_outcome_and_numbers() {
        let failure = Failure::QuorumNotReached { required: 2, received: 1, causes: vec!["node n1 is gone".into()] };
        let status = report(failure.in_doubt()).status();
        assert_eq!(status.code(), Code::Unavailable);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("QUORUM_NOT_REACHED", DOMAIN));
        assert_eq!(info.metadata["outcome"], "in-doubt");
        assert_eq!((info.metadata["required"].as_str(), info.metadata["received"].as_str()), ("2", "1"));
        assert!(status.get_details_retry_info().is_some());
        assert!(status.message().contains("node n1 is gone"));
    }

    #[test]
    fn a_bad_field_is_named() {
        let status = invalid(&Invalid::new("key", "is empty", "use 1 to 1024 bytes"));
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "key");
        assert!(violations[0].description.contains("1024"));
    }

    #[test]
    fn every_text_is_shortened() {
        let long = "ü".repeat(1 << 20);
        let bad = Invalid::new("hook", format!("{long:?} is not a hook"), long.clone());
        let facts =
            Report::new(Code::NotFound, "PLUGIN_NOT_FOUND", &long).fact("plugin", &long).violation(&bad).status();
        for status in [invalid(&bad), refused(Code::NotFound, "PLUGIN_NOT_FOUND", &long), facts] {
            assert!(status.message().len() <= TEXT_BYTES && status.message().ends_with("(shortened)"));
            assert!(status.details().len() < 4 * TEXT_BYTES, "{}", status.details().len());
        }
    }

    #[test]
    fn a_number_of_replicas_has_a_reason_of_its_own() {
        for field in ["replication_factor", "new_replication_factor"] {
            let status = invalid(&Invalid::new(field, "99 is out of range", "use 1 to 5"));
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_REPLICATION_FACTOR");
            assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
        }
    }

    #[test]
    fn an_internal_error_reveals_no_internals() {
        let status = report(Failure::Internal("row 7 is damaged".into()).of_read()).status();
        assert!(!status.message().contains("row 7"));
    }
}
