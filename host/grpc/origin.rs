//! Gives every call an id, and decides at its start whether it is traced.
//!
//! The id is the client's `x-request-id` if that is well-formed. It comes back with every refusal and every error, and with
//! any answer to a client that has sent one.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::Map;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tower::{Layer, Service};

use witan_origin::{Origin, RequestId, Scoped, current, now, scope};

/// The name of the header.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Which calls are traced.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sampling {
    /// Whether there is anybody to tell.
    pub on: bool,
    /// Share of the calls whose client does not say, 0 to 1.
    pub ratio: f64,
}

/// The layer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origins(pub Sampling);

impl<S> Layer<S> for Origins {
    type Service = WithOrigin<S>;

    fn layer(&self, inner: S) -> WithOrigin<S> {
        WithOrigin { inner, sampling: self.0 }
    }
}

/// A service whose calls have an origin.
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
        // What goes wrong within a session comes by its stream: whoever wants to ask about it needs to know the id before.
        let answer: Answered<R, S::Error> = if request.uri().path().ends_with("/Session") { told } else { named };
        // What the layers below do at once knows the origin as well as what they do later.
        let call = now(Some(origin.clone()), || self.inner.call(request));
        scope(Some(origin), call.map(answer))
    }
}

/// Puts the id on an answer.
fn told<R, E>(answer: Result<Response<R>, E>) -> Result<Response<R>, E> {
    let mut response = answer?;
    if let Some(origin) = current()
        && let Ok(id) = HeaderValue::try_from(origin.id.to_string())
    {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    Ok(response)
}

/// Puts the id on what a client may want to ask about.
fn named<R, E>(answer: Result<Response<R>, E>) -> Result<Response<R>, E> {
    let response = answer?;
    // An error that comes instead of an answer has its status where an answer has its headers.
    let failed = response.headers().get("grpc-status").is_some_and(|status| status != "0");
    let given = || current().is_some_and(|origin| matches!(origin.id, RequestId::Given(_)));
    if failed || given() { told(Ok(response)) } else { Ok(response) }
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
    // Only paths of ours: a hostile client must not fill a collector with names.
    let path = request.uri().path().strip_prefix('/').filter(|path| path.len() < 100);
    Origin::traced(id, path.unwrap_or("unknown").to_owned(), &context)
}

/// Reads the W3C's `traceparent`: version, trace, span and flags, in hexadecimal.
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
    fn a_clients_trace_is_followed_when_it_is_one() {
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
