//! The connection to a coordinator, and how its errors are shown: message, reason, whether the change happened, what to do next.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use witan_net::{ClientSide, ClientTls, Connector, Fields, FileError};
use witan_wire::v1::KeyNotFoundDetail;
use witan_wire::v1::access_service_client::AccessServiceClient;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::weigh;

use super::credential::{self, Shown};
use super::deed::Deed;
use super::endpoint::{self, Scheme};
use super::output::{self, Output, inline};
use super::{Global, args};

/// Exit code of `kv get` for a key that has no value.
pub const NO_SUCH_KEY: u8 = 3;

/// Largest message received or sent, in bytes: the response to a read with all siblings of the largest possible record.
pub const MESSAGE_BYTES: usize = 36 << 20;

/// A connection that sends the command line's token.
pub type Link = InterceptedService<Channel, Shown>;

/// Connects to the coordinator.
pub async fn coordinator(global: &Global) -> Result<CoordinatorServiceClient<Link>, Problem> {
    let client = CoordinatorServiceClient::new(link(global).await?);
    Ok(client.max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES))
}

/// Connects to the coordinator's plugin service.
pub async fn plugins(global: &Global) -> Result<PluginServiceClient<Link>, Problem> {
    Ok(PluginServiceClient::new(link(global).await?))
}

/// Connects to the coordinator's service of tokens.
pub async fn access(global: &Global) -> Result<AccessServiceClient<Link>, Problem> {
    Ok(AccessServiceClient::new(link(global).await?))
}

async fn link(global: &Global) -> Result<Link, Problem> {
    let shown = Shown::of(global).map_err(Problem::from)?;
    Ok(InterceptedService::new(channel(global).await?, shown))
}

/// A connection to the coordinator.
pub async fn channel(global: &Global) -> Result<Channel, Problem> {
    let endpoint = endpoint::Endpoint::parse(&global.endpoint)?;
    connect(&endpoint.url, global.timeout(), tls(global)?).await
}

/// A connection to `endpoint`, made within `timeout`; with `tls`, over TLS.
pub async fn connect(endpoint: &str, timeout: Duration, tls: Option<ClientSide>) -> Result<Channel, Problem> {
    let unreachable = |why: String| Problem::Unreachable { endpoint: endpoint.to_owned(), why };
    let settings = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| unreachable(causes(&error)))?
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20);
    let connected = match tls {
        Some(tls) => settings.connect_with_connector(Connector::new(tls)).await,
        None => settings.connect().await,
    };
    connected.map_err(|error| unreachable(causes(&error)))
}

/// TLS settings of the command line for an https:// endpoint; `None` for others.
pub fn tls(global: &Global) -> Result<Option<ClientSide>, Problem> {
    let tls = ClientTls {
        ca_file: global.ca_file.clone(),
        cert_file: global.client_cert_file.clone(),
        key_file: global.client_key_file.clone(),
        server_name: global.server_name.clone(),
    };
    if endpoint::Endpoint::parse(&global.endpoint)?.scheme == Scheme::Tls {
        return Ok(Some(ClientSide::open(&tls, Fields::CLIENT_FLAGS)?));
    }
    // A user who names an authority expects TLS, so that must not be ignored.
    if tls != ClientTls::default() {
        return Err(Problem::Unreachable {
            endpoint: global.endpoint.clone(),
            why: "--ca-file, --client-cert-file, --client-key-file and --server-name are for https:// endpoints"
                .to_owned(),
        });
    }
    Ok(None)
}

/// A request that carries the command line's deadline.
pub fn within<T>(global: &Global, message: T) -> Request<T> {
    by(global.timeout(), message)
}

/// The same, for a request for which a plugin may have to be compiled or probed.
pub fn within_long<T>(global: &Global, message: T) -> Request<T> {
    by(global.long_timeout(), message)
}

fn by<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No connection.
    #[error("cannot reach {endpoint}: {why}")]
    Unreachable {
        /// The endpoint.
        endpoint: String,
        /// The chain of causes.
        why: String,
    },
    /// The address cannot be used.
    #[error(transparent)]
    Endpoint(#[from] endpoint::Unusable),
    /// A certificate or a key cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The token cannot be used.
    #[error(transparent)]
    Credential(#[from] credential::Unusable),
    /// The coordinator refused what it was asked, or, of a change, the outcome is unknown.
    #[error("{}", .0.message())]
    Failed(Box<Status>, Deed),
}

impl Problem {
    /// A failed query.
    pub fn query(status: Status) -> Self {
        Self::of(Deed::Query)(status)
    }

    /// A failure of what a command was doing.
    pub fn of(deed: Deed) -> impl Fn(Status) -> Self {
        move |status| Self::unheard(&status).unwrap_or_else(|| Self::Failed(Box::new(status), deed))
    }

    /// A request that failed in TLS, before the coordinator saw it.
    fn unheard(status: &Status) -> Option<Self> {
        let why = witan_net::explain(status)?;
        Some(Self::Unreachable { endpoint: "the coordinator".to_owned(), why })
    }
}

/// The content of a status and its details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The status code's name, as gRPC spells it.
    pub code: String,
    /// Message for people.
    pub message: String,
    /// The reason, such as `QUORUM_NOT_REACHED`; empty when none is given.
    pub reason: String,
    /// For a change: "not-applied" or "in-doubt".
    pub outcome: Option<String>,
    /// Invalid fields, and what is wrong with each.
    pub fields: Vec<(String, String)>,
    /// Time after which to retry.
    pub retry_after: Option<Duration>,
    /// For a key that has no value: the token for the next write.
    pub context: Option<Bytes>,
    /// What was being done.
    pub deed: Deed,
}

impl Explained {
    /// Decodes a status. The outcome of a change is in doubt unless the status says otherwise.
    pub fn new(status: &Status, deed: Deed) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let outcome = info.and_then(|info| info.metadata.get("outcome").cloned());
        Self {
            code: code(status.code()).to_owned(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            outcome: outcome.or_else(|| deed.is_change().then(|| without_details(status.code()).to_owned())),
            fields: details
                .bad_request()
                .map(|bad| bad.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect())
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            context: not_found_context(status),
            deed,
        }
    }

    /// What to do next, if the reason allows a suggestion.
    pub fn next_step(&self) -> Option<String> {
        if let Some(delay) = self.retry_after {
            return Some(format!(
                "try again in {}",
                output::micros(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX))
            ));
        }
        let step = match self.reason.as_str() {
            "TENANT_NOT_FOUND" => "create the tenant: witan tenant create TENANT",
            "TENANT_EXISTS" => "see its settings: witan tenant get TENANT; change them: witan tenant update TENANT",
            "QUORUM_NOT_REACHED" | "DEADLINE" if self.deed.has_level() => {
                "see which storage nodes are reachable: witan nodes list; or lower the level: --consistency one"
            }
            "QUORUM_NOT_REACHED" => "see which storage nodes are reachable: witan nodes list",
            "DEADLINE" => "allow more time with --timeout",
            "INVALID_REPLICATION_FACTOR" if self.fields.is_empty() => {
                "see the storage nodes: witan nodes list; add some, or choose a smaller factor"
            }
            "IDEMPOTENCY_KEY_CONFLICT" => "use a new idempotency key for a different change",
            "IDEMPOTENCY_KEY_EXPIRED" => "read the key; use a new idempotency key for a new attempt",
            "OUTCOME_FORGOTTEN" => {
                "read the key; if the change is missing, send it again with a new idempotency key and the context read"
            }
            "SIBLING_LIMIT" => "read the key, and write with the context that the read returns (--context)",
            "VERSION_CONFLICT" if self.deed == Deed::Bind => {
                "see what is bound now: witan plugin bindings; then repeat the change"
            }
            "VERSION_CONFLICT" => "read it again, and repeat the change with its current version",
            "STORE_UNAVAILABLE" => {
                "try again in a moment; witan doctor, on the coordinator's machine, says what is wrong"
            }
            "NODE_NOT_FOUND" => "list the storage nodes: witan nodes list",
            "MIGRATION_NOT_FOUND" => "list the migrations: witan migration list",
            "MIGRATION_CONFLICT" => "see what is under way: witan migration list",
            "PLUGIN_NOT_FOUND" => "see what there is: witan plugin list, witan plugin bindings",
            "PLUGIN_IN_USE" => "see what uses it: witan plugin bindings",
            "PLUGIN_FAULT" => {
                "see its failures: witan plugin events; restore the previous plugin: witan plugin rollback HOOK"
            }
            "STORAGE_FULL" => "free disk space on the storage nodes: witan nodes list shows how full they are",
            "PLUGIN_HOST_BUSY" => "try again in a minute, or allow more time with --timeout",
            "OVERLOADED" | "RATE_LIMIT_EXCEEDED" | "IN_PROGRESS" => "try again in a moment",
            "STALE_EPOCH" => "try again in a moment, or at another coordinator",
            "CHANGE_PENDING" => "bring the nodes back or remove them (see `witan nodes list`), and repeat the call",
            "UNAUTHORIZED" => {
                "provide a token: --token-file FILE, or WITAN_TOKEN; an operator creates one: witan token create"
            }
            "FORBIDDEN" => "use a token with that scope, for that tenant; an operator creates one: witan token create",
            "TOKEN_NOT_FOUND" => "list the tokens: witan token list",
            "INTERNAL_ERROR" => "see the coordinator's log",
            "" => return self.step_by_code(),
            // The message says what to do.
            _ => return None,
        };
        Some(step.to_owned())
    }

    /// For a status that did not come from a coordinator's code, which always gives a reason.
    fn step_by_code(&self) -> Option<String> {
        let step = match self.code.as_str() {
            "UNIMPLEMENTED" => "the coordinator does not support this; compare versions: witan --version",
            "UNAVAILABLE" => "check that the coordinator runs, and its address (--endpoint)",
            "DEADLINE_EXCEEDED" | "CANCELLED" => "allow more time with --timeout",
            _ => return None,
        };
        Some(step.to_owned())
    }

    /// The error as text, on several lines.
    pub fn text(&self) -> String {
        let message = if self.message.is_empty() { &self.code } else { &self.message };
        let mut text = format!("error: {}", inline(message));
        let reason = if self.reason.is_empty() { &self.code } else { &self.reason };
        // Writing to a string does not fail.
        let _ = write!(text, "\n  reason:   {}", inline(reason));
        for (field, problem) in &self.fields {
            let _ = write!(text, "\n  field:    {}: {}", inline(field), inline(problem));
        }
        match self.outcome.as_deref() {
            Some("not-applied") => text.push_str("\n  outcome:  nothing was changed"),
            Some("in-doubt") => {
                let settle = self.deed.settle();
                let _ =
                    write!(text, "\n  outcome:  in doubt: the change may have happened, or may still happen; {settle}");
            }
            Some(other) => drop(write!(text, "\n  outcome:  {}", inline(other))),
            None => {}
        }
        if let Some(step) = self.next_step() {
            let _ = write!(text, "\n  next:     {step}");
        }
        text
    }

    /// The error as JSON.
    pub fn json(&self) -> Value {
        let fields: Vec<Value> =
            self.fields.iter().map(|(field, problem)| json!({ "field": field, "problem": problem })).collect();
        json!({
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
            "outcome": self.outcome,
            "fields": fields,
            "retry_after_ms": self.retry_after.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
            "context": self.context.as_deref().map(args::base64),
        })
    }
}

/// Prints an error, and returns the process's exit code.
pub fn report(error: &anyhow::Error, output: Output) -> ExitCode {
    let (text, json) = match error.downcast_ref::<Problem>() {
        Some(Problem::Failed(status, deed)) => both(&Explained::new(status, *deed)),
        Some(problem @ Problem::Unreachable { .. }) => (
            format!("error: {problem}\n  next:     check that the coordinator runs, and its address (--endpoint)"),
            json!({ "code": "UNAVAILABLE", "reason": "UNREACHABLE", "message": problem.to_string(), "outcome": "not-applied" }),
        ),
        None | Some(Problem::Endpoint(_) | Problem::File(_) | Problem::Credential(_)) => {
            let message = chain(error);
            (format!("error: {message}"), json!({ "code": "", "reason": "FAILED", "message": message }))
        }
    };
    match output {
        Output::Text => output::notes(&text),
        // If standard output is closed, the error cannot be reported anywhere.
        Output::Json => drop(output::object(&json!({ "error": json }))),
    }
    ExitCode::FAILURE
}

/// An error with its causes. Many errors repeat their cause in their own text: it is not said twice.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            // Writing to a string does not fail.
            let _ = write!(text, ": {cause}");
        }
    }
    text
}

fn both(explained: &Explained) -> (String, Value) {
    (explained.text(), explained.json())
}

/// True when a status has this reason.
pub fn has_reason(status: &Status, reason: &str) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == reason)
}

/// The context in the details of a "not found": the token for the next write of the key.
pub fn not_found_context(status: &Status) -> Option<Bytes> {
    let details = tonic_types::Status::decode(status.details()).ok()?;
    let detail = details.details.into_iter().find(|any| any.type_url.ends_with("/witan.v1.KeyNotFoundDetail"))?;
    weigh::decode::<KeyNotFoundDetail>(detail.value.into()).ok().map(|detail| detail.context)
}

/// The outcome of a change whose status has no details: these codes are only returned before anything is done.
fn without_details(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => "not-applied",
        _ => "in-doubt",
    }
}

/// A status code's name, as gRPC spells it.
pub fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An error and its causes, on one line.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use bytes::Bytes;
    use prost::Message;
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt};
    use witan_wire::v1::KeyNotFoundDetail;

    use super::{Deed, Explained, chain, has_reason, not_found_context};

    fn refused(outcome: &str) -> Status {
        let outcome = HashMap::from([("outcome".to_owned(), outcome.to_owned())]);
        let mut details = ErrorDetails::with_error_info("QUORUM_NOT_REACHED", "witan", outcome);
        details.set_retry_info(Some(Duration::from_millis(50)));
        details.add_bad_request_violation("key", "is empty; use 1 to 1024 bytes");
        Status::with_error_details(Code::Unavailable, "1 of 2 required replicas answered", details)
    }

    #[test]
    fn details_are_shown() {
        let status = refused("in-doubt");
        assert!(has_reason(&status, "QUORUM_NOT_REACHED"));
        let explained = Explained::new(&status, NAMED);
        let text = explained.text();
        for part in ["1 of 2 required", "QUORUM_NOT_REACHED", "in doubt", "key: is empty", "try again in 50.0 ms"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let json = explained.json();
        assert_eq!(json["outcome"], "in-doubt");
        assert_eq!(json["fields"][0]["field"], "key");
        assert_eq!(json["retry_after_ms"], 50);
        assert!(Explained::new(&refused("not-applied"), NAMED).text().contains("nothing was changed"));
    }

    #[test]
    fn a_change_without_details_is_in_doubt_unless_its_code_excludes_it() {
        let outcome = |code, deed| Explained::new(&Status::new(code, "x"), deed).outcome;
        assert_eq!(outcome(Code::Unavailable, NAMED).as_deref(), Some("in-doubt"));
        assert_eq!(outcome(Code::InvalidArgument, NAMED).as_deref(), Some("not-applied"));
        assert_eq!(outcome(Code::Unavailable, Deed::Read), None);
    }

    const NAMED: Deed = Deed::Change { named: true };
    const DEEDS: [Deed; 11] = [
        Deed::Query,
        Deed::Read,
        NAMED,
        Deed::Change { named: false },
        Deed::Node,
        Deed::Tenant,
        Deed::Restore,
        Deed::Push,
        Deed::Bind,
        Deed::RemovePlugin,
        Deed::Token,
    ];

    fn with_reason(code: Code, reason: &str) -> Status {
        Status::with_error_details(code, "why", ErrorDetails::with_error_info(reason, "witan", HashMap::new()))
    }

    #[test]
    fn hints_name_only_options_that_the_command_has() {
        let of_keys = ["--consistency", "--idempotency-key", "--context"];
        let codes = [Code::DeadlineExceeded, Code::Unavailable, Code::Cancelled, Code::Aborted, Code::Unimplemented];
        let reasons =
            ["", "QUORUM_NOT_REACHED", "DEADLINE", "VERSION_CONFLICT", "PLUGIN_HOST_BUSY", "STORE_UNAVAILABLE"];
        for deed in DEEDS.into_iter().filter(|deed| !deed.has_level()) {
            for (code, reason) in codes.into_iter().flat_map(|code| reasons.map(|reason| (code, reason))) {
                let status = if reason.is_empty() { Status::new(code, "why") } else { with_reason(code, reason) };
                let text = Explained::new(&status, deed).text();
                assert!(!of_keys.iter().any(|option| text.contains(option)), "{deed:?}: {text}");
            }
        }
        let text = Explained::new(&with_reason(Code::Unavailable, "QUORUM_NOT_REACHED"), Deed::Read).text();
        assert!(text.contains("--consistency one"), "{text}");
    }

    /// Every command that a hint names exists.
    #[test]
    fn hints_name_only_commands_that_there_are() {
        let reasons = [
            "TENANT_NOT_FOUND",
            "TENANT_EXISTS",
            "QUORUM_NOT_REACHED",
            "INVALID_REPLICATION_FACTOR",
            "NODE_NOT_FOUND",
            "PLUGIN_NOT_FOUND",
            "PLUGIN_IN_USE",
            "PLUGIN_FAULT",
            "STORAGE_FULL",
            "STORE_UNAVAILABLE",
            "VERSION_CONFLICT",
            "UNAUTHORIZED",
            "FORBIDDEN",
            "TOKEN_NOT_FOUND",
        ];
        let mut named = 0;
        for (deed, reason) in DEEDS.into_iter().flat_map(|deed| reasons.map(|reason| (deed, reason))) {
            let text = Explained::new(&with_reason(Code::Unavailable, reason), deed).text();
            for mention in text.split("witan ").skip(1) {
                let words =
                    mention.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| !word.is_empty());
                let mut command = <crate::cli::Cli as clap::CommandFactory>::command();
                for word in words {
                    if !command.has_subcommands() {
                        break;
                    }
                    let sub = command.find_subcommand(word).cloned();
                    command = sub.unwrap_or_else(|| panic!("{deed:?}, {reason}: witan {mention}: no {word}"));
                }
                named += 1;
            }
        }
        assert!(named > 50, "{named}");
    }

    #[test]
    fn an_upload_that_took_too_long_goes_on() {
        let text = Explained::new(&Status::new(Code::Cancelled, "Timeout expired"), Deed::Push).text();
        for part in ["goes on", "witan plugin list", "pushing it again is harmless", "--timeout"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    #[test]
    fn a_refusal_that_says_everything_gets_no_hint() {
        let refused = with_reason(Code::Unimplemented, "INVALID_REQUEST");
        assert_eq!(Explained::new(&refused, Deed::Bind).next_step(), None, "versions have nothing to do with it");
        let unknown = Status::new(Code::Unimplemented, "unknown method");
        assert!(Explained::new(&unknown, Deed::Bind).next_step().unwrap().contains("compare versions"));
        let known = with_reason(Code::Unavailable, "CERTIFICATE");
        assert_eq!(Explained::new(&known, Deed::Query).next_step(), None, "the coordinator runs: it has answered");
    }

    #[test]
    fn a_missing_key_has_a_context() {
        let detail = KeyNotFoundDetail { context: Bytes::from_static(b"token") };
        let details = tonic_types::Status {
            code: Code::NotFound as i32,
            message: "the key has no value".to_owned(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/witan.v1.KeyNotFoundDetail".to_owned(),
                value: detail.encode_to_vec(),
            }],
        };
        let status = Status::with_details(Code::NotFound, "the key has no value", details.encode_to_vec().into());
        assert_eq!(not_found_context(&status).as_deref(), Some(&b"token"[..]));
        assert_eq!(not_found_context(&Status::not_found("x")), None);
        assert_eq!(not_found_context(&Status::with_details(Code::NotFound, "x", Bytes::from_static(&[255]))), None);
    }

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("open store of node n: {source}")]
        struct Open {
            source: std::io::Error,
        }
        let error = Open { source: std::io::Error::other("the store in d cannot be opened: it is locked") };
        let error = anyhow::Error::from(error).context("start the node");
        assert_eq!(
            chain(&error),
            "start the node: open store of node n: the store in d cannot be opened: it is locked"
        );
        assert_eq!(chain(&anyhow::anyhow!("inner").context("outer")), "outer: inner");
    }
}
