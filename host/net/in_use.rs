//! A layer that counts the calls of each connection: one without calls is idle, and makes room for others. Streams that need no
//! credential, such as those of the health service, are bounded.

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
use crate::permits::{Call, WatchCall};

/// What a call is, as far as its connection is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// One response, at once.
    Unary,
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
    /// The response to a stream that needs no credential, of which there are too many.
    pub too_many: fn() -> Response<Body>,
}

/// Why a stream is refused, for [`CountCalls::too_many`].
pub const TOO_MANY: &str = "too many streams that need no credential are open on this connection, or from this address: end one first, or \
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
        let watch = match kind {
            CallKind::Watch => match usage.watch() {
                Some(watch) => Some(watch),
                None => {
                    discard(request.into_body());
                    return Either::Left(ready(Ok((self.rules.too_many)())));
                }
            },
            CallKind::Unary | CallKind::Stream => None,
        };
        let ended: Ended<S::Error> = if kind == CallKind::Unary { answered } else { streaming };
        let in_use = InUseUntil { _call: usage.call(), _watch: watch };
        Either::Right(join(self.inner.call(request), ready(in_use)).map(ended))
    }
}

type Answer<E> = Result<Response<Body>, E>;
type Ended<E> = fn((Answer<E>, InUseUntil)) -> Answer<E>;
/// A call with what counts it, without an allocation.
type InUse<F, E> = Map<Join<F, Ready<InUseUntil>>, Ended<E>>;

/// The connection is in use until this is dropped.
#[derive(Debug)]
pub struct InUseUntil {
    _call: Call,
    _watch: Option<WatchCall>,
}

/// Something in a response's extensions that is kept until its body has been sent.
#[derive(Clone)]
pub struct UntilSent(pub Arc<dyn Any + Send + Sync>);

/// A unary call has ended once it is answered, unless its answer keeps something until it is sent.
fn answered<E>((answer, in_use): (Answer<E>, InUseUntil)) -> Answer<E> {
    match answer {
        Ok(response) if response.extensions().get::<UntilSent>().is_some() => streaming((Ok(response), in_use)),
        answer => answer,
    }
}

/// A stream has ended once its body has.
fn streaming<E>((answer, in_use): (Answer<E>, InUseUntil)) -> Answer<E> {
    answer.map(|mut response| {
        let kept = response.extensions_mut().remove::<UntilSent>();
        response.map(|body| Body::new(Streaming { body, _in_use: in_use, _kept: kept }))
    })
}

/// The body of a response, during which the connection is in use.
struct Streaming {
    body: Body,
    _in_use: InUseUntil,
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
