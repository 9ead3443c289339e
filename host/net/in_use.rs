//! A layer that counts the calls of each connection: one without calls is idle, and makes room for others. Calls are bounded until their
//! answers have been taken, in all and of one address; streams that need no credential, such as those of the health service, are bounded
//! more tightly.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{Either, Join, Map, Ready, join, ready};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::connection::Peer;
use crate::discard::discard;
use crate::permits::{Answering, CountedCall, WatchCall};

/// What a call is, as far as its connection is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// One response, at once.
    Unary,
    /// One response, at once, and no credential is needed.
    Probe,
    /// A stream of responses.
    Stream,
    /// A stream of responses that needs no credential.
    Watch,
}

/// The layer. It knows connections by the [`Peer`] in a request's extensions, and counts nothing without one.
#[derive(Debug, Clone, Copy)]
pub struct CountCalls {
    /// What the call of a path is.
    pub kind: fn(&str) -> CallKind,
    /// The response to a call of which there are too many, and why.
    pub too_many: fn(&'static str) -> Response<Body>,
}

/// Why a call is refused.
const TOO_MANY_CALLS: &str =
    "too many calls are under way, or answered and not taken, of this address or of all; take answers, and try again";
/// Why a stream is refused.
const TOO_MANY: &str = "too many streams that need no credential are open on this connection, or from this address: end one first, or \
                            ask with Health/Check";

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { rules: *self, inner }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    rules: CountCalls,
    inner: S,
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    B: HttpBody + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Answer<S::Error>>, InUse<S::Future, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let usage = request.extensions().get::<Peer>().map(|peer| peer.usage.clone()).unwrap_or_default();
        let kind = (self.rules.kind)(request.uri().path());
        let open = matches!(kind, CallKind::Watch | CallKind::Probe);
        let Some(call) = usage.counted_call(open, weight(&request)) else {
            return self.refuse(request, TOO_MANY_CALLS);
        };
        let watch = match kind {
            CallKind::Watch => match usage.watch() {
                Some(watch) => Some(watch),
                None => return self.refuse(request, TOO_MANY),
            },
            CallKind::Unary | CallKind::Probe | CallKind::Stream => None,
        };
        let ended: Ended<S::Error> = match kind {
            CallKind::Unary | CallKind::Probe => answered,
            CallKind::Stream | CallKind::Watch => streaming,
        };
        let in_use = InUseUntil { call, _watch: watch };
        Either::Right(join(self.inner.call(request), ready(in_use)).map(ended))
    }
}

/// Headers are kept while their call is under way, and take about four times their size. This number of bytes takes as much as a call.
const HEADER_BYTES: usize = 2 << 10;

/// For how many calls one counts.
fn weight<B>(request: &Request<B>) -> usize {
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    1 + (headers + request.uri().path().len()) / HEADER_BYTES
}

impl<S> Counted<S> {
    fn refuse<B, F, E>(&self, request: Request<B>, why: &'static str) -> Either<Ready<Answer<E>>, InUse<F, E>>
    where
        B: HttpBody + Send + 'static,
        F: Future<Output = Answer<E>>,
    {
        discard(request.into_body());
        Either::Left(ready(Ok((self.rules.too_many)(why))))
    }
}

type Answer<E> = Result<Response<Body>, E>;
type Ended<E> = fn((Answer<E>, InUseUntil)) -> Answer<E>;
/// A call with what counts it, without an allocation.
type InUse<F, E> = Map<Join<F, Ready<InUseUntil>>, Ended<E>>;

/// The connection is in use until this is dropped.
#[derive(Debug)]
pub struct InUseUntil {
    call: CountedCall,
    _watch: Option<WatchCall>,
}

/// Something in a response's extensions that is kept until its body has been sent.
#[derive(Clone)]
pub struct UntilSent(pub Arc<dyn Any + Send + Sync>);

/// A unary call has ended once its answer has been taken, which has to happen in time.
fn answered<E>((answer, in_use): (Answer<E>, InUseUntil)) -> Answer<E> {
    let answering = in_use.call.usage().answering();
    until_sent(answer, in_use, answering)
}

/// A stream has ended once its body has.
fn streaming<E>((answer, in_use): (Answer<E>, InUseUntil)) -> Answer<E> {
    until_sent(answer, in_use, None)
}

fn until_sent<E>(answer: Answer<E>, in_use: InUseUntil, answering: Option<Answering>) -> Answer<E> {
    answer.map(|mut response| {
        let kept = response.extensions_mut().remove::<UntilSent>();
        response.map(|body| Body::new(Streaming { body, _in_use: in_use, _answering: answering, _kept: kept }))
    })
}

/// The body of a response, during which the connection is in use.
struct Streaming {
    body: Body,
    _in_use: InUseUntil,
    _answering: Option<Answering>,
    _kept: Option<UntilSent>,
}

impl HttpBody for Streaming {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
