//! Where work comes from: the id of the request that asked for it, and its trace, if it is one of the few that are traced.
//! Both travel with the tasks that do the work, so that a log line or a span far below knows them without being told.
//!
//! What is not traced costs no more than a number: an id becomes text only when somebody reads it.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::global::BoxedSpan;
use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use tokio::task::futures::TaskLocalFuture;

/// The name under which spans are made.
const SCOPE: &str = "witan";
/// Longest id that is taken from a client, in bytes: it is repeated in every log line of the request.
const ID_BYTES: usize = 128;

tokio::task_local! {
    static ORIGIN: Option<Origin>;
}

/// Tells processes apart, so that ids of several coordinators differ.
static PROCESS: LazyLock<u32> = LazyLock::new(rand::random);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    /// The client's own.
    Given(Arc<str>),
    /// One of ours.
    Numbered(u64),
}

impl RequestId {
    /// The client's, if it is well-formed: 1 to 128 letters, digits and `-_.:/=+@`, which need no escape anywhere. Else a new
    /// one.
    pub fn of(given: Option<&[u8]>) -> Self {
        let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/=+@".contains(byte);
        let given = given.filter(|given| (1..=ID_BYTES).contains(&given.len()) && given.iter().all(fine));
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

/// Where work comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The request.
    pub id: RequestId,
    /// The span that is open around the work; `None`: it is not traced.
    trace: Option<Context>,
}

impl Origin {
    /// A request that is not traced.
    pub fn untraced(id: RequestId) -> Self {
        Self { id, trace: None }
    }

    /// A request that is traced, as a part of the client's trace if `parent` knows one.
    pub fn traced(id: RequestId, name: impl Into<Cow<'static, str>>, parent: &Context) -> Self {
        let tracer = tracer();
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server);
        let builder = builder.with_attributes([KeyValue::new("request.id", id.to_string())]);
        let span = tracer.build_with_context(builder, parent);
        Self { id, trace: Some(parent.with_span(span)) }
    }

    /// The origin of a part of the work.
    fn part(&self, name: &'static str) -> Self {
        let trace = self.trace.as_ref().map(|trace| trace.with_span(tracer().start_with_context(name, trace)));
        Self { id: self.id.clone(), trace }
    }
}

fn tracer() -> opentelemetry::global::BoxedTracer {
    opentelemetry::global::tracer_provider().tracer(SCOPE)
}

/// Work that knows its origin.
pub type Scoped<F> = TaskLocalFuture<Option<Origin>, F>;

/// Does `work` for `origin`.
pub fn scope<F: Future>(origin: Option<Origin>, work: F) -> Scoped<F> {
    ORIGIN.scope(origin, work)
}

/// Does `work` for `origin` at once.
pub fn now<R>(origin: Option<Origin>, work: impl FnOnce() -> R) -> R {
    ORIGIN.sync_scope(origin, work)
}

/// Lets `work`, which another task is about to do, know the present origin. Where that is traced, it is a span called `name`.
pub fn carried<F: Future>(name: &'static str, work: F) -> Scoped<F> {
    ORIGIN.scope(current().map(|origin| if origin.trace.is_some() { origin.part(name) } else { origin }), work)
}

/// The present origin.
pub fn current() -> Option<Origin> {
    ORIGIN.try_with(Clone::clone).ok().flatten()
}

/// The span that was open when something was asked of others, for when their answer comes.
#[derive(Debug, Clone)]
pub struct Traced(Context);

impl Traced {
    /// Tells of something that has just ended, at `node`, after so long.
    pub fn has_taken(&self, name: &'static str, took: Duration, node: &str) {
        let tracer = tracer();
        let since = SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH);
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server).with_start_time(since);
        let builder = builder.with_attributes([KeyValue::new("node", node.to_owned())]);
        tracer.build_with_context(builder, &self.0).end();
    }
}

/// The span that is open, if there is one.
pub fn traced() -> Option<Traced> {
    ORIGIN.try_with(|origin| origin.as_ref()?.trace.clone()).ok().flatten().map(Traced)
}

/// A span that ends when it is dropped; nothing at all, where nothing is traced.
pub struct Span(Option<BoxedSpan>);

impl Span {
    /// Says something about it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// Does `work` below it.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let (Some(span), Some(origin)) = (&self.0, current()) else { return work() };
        let trace = Context::new().with_remote_span_context(span.span_context().clone());
        ORIGIN.sync_scope(Some(Origin { id: origin.id, trace: Some(trace) }), work)
    }

    /// Whether there is one: what is said about it need not be found out otherwise.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// Opens a span below the present one.
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
    fn ids_are_taken_when_they_are_harmless() {
        let given = |text: &str| RequestId::of(Some(text.as_bytes())).to_string();
        for fine in ["a", "req-7", "0af7651916cd43dd/1:2@eu+1=x"] {
            assert_eq!(given(fine), fine);
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
        let told = scope(Some(origin), async {
            assert!(!span("nothing").is_there());
            tokio::spawn(carried("work", async { current().map(|origin| origin.id.to_string()) })).await
        });
        assert_eq!(told.await.expect("ends").as_deref(), Some("r1"));
    }
}
