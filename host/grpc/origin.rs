//! Assigns an id to every call, and decides at its start whether it is traced.
//!
//! The id is the client's `x-request-id` if that is well-formed. It is returned with every refusal and every error, and with any
//! response to a client that sent one.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::Map;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tower::{Layer, Service};

use witan_origin::{Origin, RequestId, Scoped, current, now, scope};

/// Header that carries a request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Which calls are traced.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sampling {
    /// Whether a collector is configured.
    pub on: bool,
    /// Fraction (0 to 1) of calls to trace among those whose client sent no trace context.
    pub ratio: f64,
}

/// The layer that assigns origins.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origins(pub Sampling);

impl<S> Layer<S> for Origins {
    type Service = WithOrigin<S>;

    fn layer(&self, inner: S) -> WithOrigin<S> {
        WithOrigin { inner, sampling: self.0 }
    }
}

/// A service whose calls run with an origin.
#[derive(Debug, Clone)]
pub struct WithOrigin<S> {
    inner: S,
    sampling: Sampling,
}

type Answered<R, E> = fn(Result<Response<R>, E>) -> Result<Response<R>, E>;

impl<S, B, R> Service<Request<B>> for WithOrigin<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Scoped<Map<S::Future, Answered<R, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let origin = origin(&request, self.sampling);
        // Errors within a session arrive on its stream: to report one, the client needs the id from the start.
        let answer: Answered<R, S::Error> = if request.uri().path().ends_with("/Session") { with_id } else { named };
        // The layers below see the origin both in their synchronous part and in their future.
        let call = now(Some(origin.clone()), || self.inner.call(request));
        scope(Some(origin), call.map(answer))
    }
}

/// Adds the id to a response.
fn with_id<R, E>(answer: Result<Response<R>, E>) -> Result<Response<R>, E> {
    let mut response = answer?;
    if let Some(origin) = current()
        && let Ok(id) = HeaderValue::try_from(origin.id.to_string())
    {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    Ok(response)
}

/// Adds the id to failed responses, and to those whose client sent an id.
fn named<R, E>(answer: Result<Response<R>, E>) -> Result<Response<R>, E> {
    let response = answer?;
    // A response that consists of an error only has its status among its headers.
    let failed = response.headers().get("grpc-status").is_some_and(|status| status != "0");
    let given = || current().is_some_and(|origin| matches!(origin.id, RequestId::Given(_)));
    if failed || given() { with_id(Ok(response)) } else { Ok(response) }
}

fn origin<B>(request: &Request<B>, sampling: Sampling) -> Origin {
    let headers = request.headers();
    let id = RequestId::of(headers.get(REQUEST_ID).map(HeaderValue::as_bytes));
    if !sampling.on {
        return Origin::untraced(id);
    }
    let parent = parent(headers);
    let traced = match &parent {
        Some(parent) => parent.is_sampled(),
        None => rand::random::<f64>() < sampling.ratio,
    };
    if !traced {
        return Origin::untraced(id);
    }
    let context = match parent {
        Some(parent) => opentelemetry::Context::new().with_remote_span_context(parent),
        None => opentelemetry::Context::new(),
    };
    // Bounded length: a hostile client must not fill a collector with long span names.
    let path = request.uri().path().strip_prefix('/').filter(|path| path.len() < 100);
    Origin::traced(id, path.unwrap_or("unknown").to_owned(), &context)
}

/// Parses a W3C `traceparent` header: version, trace id, span id and flags, in hexadecimal.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let plain = |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    if !plain(version, 2) || version == "ff" || !plain(trace, 32) || !plain(span, 16) || !plain(flags, 2) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let parent = SpanContext::new(trace, span, flags, true, TraceState::default());
    parent.is_valid().then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_trace_context_is_followed_when_valid() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_str(text).unwrap());
            parent(&headers)
        };
        let parent = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert!(parent.is_sampled() && parent.is_remote());
        assert!(!read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().is_sampled());
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7-b7ad-01",
        ] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }
}
