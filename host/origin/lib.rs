//! The origin of work: the id of the request that caused it, and the trace, if the request is one of the few that are traced. Both
//! are task-local, so log lines and spans far below carry them without passing arguments.
//!
//! An untraced request costs a number: its id is formatted only when it is read.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::global::BoxedSpan;
use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use tokio::task::futures::TaskLocalFuture;

/// The instrumentation scope of our spans.
const SCOPE: &str = "witan";
/// Longest id that is accepted from a client, in bytes: it is repeated in every log line of the request.
const ID_BYTES: usize = 128;

tokio::task_local! {
    static ORIGIN: Option<Origin>;
}

/// Distinguishes processes, so that ids of several coordinators differ.
static PROCESS: LazyLock<u32> = LazyLock::new(rand::random);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    /// Chosen by the client.
    Given(Arc<str>),
    /// Assigned here.
    Numbered(u64),
}

impl RequestId {
    /// The client's id, if it is well-formed: 1 to 128 letters, digits and `-_.:/=+@`, which need no escaping anywhere. Otherwise
    /// a new id.
    pub fn of(given: Option<&[u8]>) -> Self {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/=+@".contains(byte);
        let given = given.filter(|given| (1..=ID_BYTES).contains(&given.len()) && given.iter().all(allowed));
        match given.and_then(|given| std::str::from_utf8(given).ok()) {
            Some(given) => Self::Given(given.into()),
            None => Self::Numbered(NEXT.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(given) => f.write_str(given),
            Self::Numbered(number) => write!(f, "{:08x}-{number:x}", *PROCESS),
        }
    }
}

/// The request that work is done for.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The id of the request.
    pub id: RequestId,
    /// The trace with the span that is currently open; `None` if the request is not traced.
    trace: Option<Context>,
}

impl Origin {
    /// An untraced request.
    pub fn untraced(id: RequestId) -> Self {
        Self { id, trace: None }
    }

    /// A traced request; part of the client's trace if `parent` has one.
    pub fn traced(id: RequestId, name: impl Into<Cow<'static, str>>, parent: &Context) -> Self {
        let tracer = tracer();
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server);
        let builder = builder.with_attributes([KeyValue::new("request.id", id.to_string())]);
        let span = tracer.build_with_context(builder, parent);
        Self { id, trace: Some(parent.with_span(span)) }
    }

    /// The origin of a part of the work, with a span of its own.
    fn part(&self, name: &'static str) -> Self {
        let trace = self.trace.as_ref().map(|trace| trace.with_span(tracer().start_with_context(name, trace)));
        Self { id: self.id.clone(), trace }
    }
}

fn tracer() -> opentelemetry::global::BoxedTracer {
    opentelemetry::global::tracer_provider().tracer(SCOPE)
}

/// A future with an origin.
pub type Scoped<F> = TaskLocalFuture<Option<Origin>, F>;

/// Runs `work` with an origin.
pub fn scope<F: Future>(origin: Option<Origin>, work: F) -> Scoped<F> {
    ORIGIN.scope(origin, work)
}

/// Runs synchronous `work` with an origin.
pub fn now<R>(origin: Option<Origin>, work: impl FnOnce() -> R) -> R {
    ORIGIN.sync_scope(origin, work)
}

/// Passes the current origin on to `work`, for another task to run. If it is traced, the work becomes a span called `name`.
pub fn carried<F: Future>(name: &'static str, work: F) -> Scoped<F> {
    ORIGIN.scope(current().map(|origin| if origin.trace.is_some() { origin.part(name) } else { origin }), work)
}

/// The current origin.
pub fn current() -> Option<Origin> {
    ORIGIN.try_with(Clone::clone).ok().flatten()
}

/// The span that was open when a request was sent elsewhere, kept until its answer arrives.
#[derive(Debug, Clone)]
pub struct Traced(Context);

impl Traced {
    /// Records a span for work that has just ended on `node` and took `took`.
    pub fn record(&self, name: &'static str, took: Duration, node: &str) {
        let tracer = tracer();
        let since = SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH);
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server).with_start_time(since);
        let builder = builder.with_attributes([KeyValue::new("node", node.to_owned())]);
        tracer.build_with_context(builder, &self.0).end();
    }
}

/// The span that is currently open, if the request is traced.
pub fn traced() -> Option<Traced> {
    ORIGIN.try_with(|origin| origin.as_ref()?.trace.clone()).ok().flatten().map(Traced)
}

/// A span that ends when it is dropped; a no-op if the request is not traced.
pub struct Span(Option<BoxedSpan>);

impl Span {
    /// Sets an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// Runs `work` with this span as the parent of its spans.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let (Some(span), Some(origin)) = (&self.0, current()) else { return work() };
        let trace = Context::new().with_remote_span_context(span.span_context().clone());
        ORIGIN.sync_scope(Some(Origin { id: origin.id, trace: Some(trace) }), work)
    }

    /// Whether it is recorded; if not, attributes need not be computed.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// Opens a child of the current span.
pub fn span(name: &'static str) -> Span {
    let open = |origin: &Option<Origin>| {
        let trace = origin.as_ref()?.trace.as_ref()?;
        Some(tracer().start_with_context(name, trace))
    };
    Span(ORIGIN.try_with(open).ok().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_ids_are_accepted() {
        let given = |text: &str| RequestId::of(Some(text.as_bytes())).to_string();
        for valid in ["a", "req-7", "0af7651916cd43dd/1:2@eu+1=x"] {
            assert_eq!(given(valid), valid);
        }
        let long = "x".repeat(129);
        for wrong in ["", "two words", "quote\"", "line\nbreak", "ünïcode", &long, "{}", "\u{1b}[31m"] {
            assert_ne!(given(wrong), wrong, "{wrong:?}");
        }
        assert_ne!(RequestId::of(None).to_string(), RequestId::of(None).to_string());
    }

    #[tokio::test]
    async fn tasks_inherit_what_they_are_given() {
        assert!(current().is_none());
        let origin = Origin::untraced(RequestId::of(Some(b"r1")));
        let inherited = scope(Some(origin), async {
            assert!(!span("nothing").is_there());
            tokio::spawn(carried("work", async { current().map(|origin| origin.id.to_string()) })).await
        });
        assert_eq!(inherited.await.expect("ends").as_deref(), Some("r1"));
    }
}
