//! What every gRPC call must be before a server looks at it: a call by its content type, and one whose deadline has not passed.
//!
//! Both servers, of coordinators and of storage nodes, put these layers in front of everything else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::discard::discard;

/// Header of a call's deadline.
const TIMEOUT: &str = "grpc-timeout";
/// Longest time until a call's deadline. A header can say hundreds of millions of years, and no clock can add that to the present.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(30 * 86_400);
/// The most by which a call is answered before its deadline, so that the answer still arrives: at the deadline itself clients give up, and
/// would not learn whether a change was made.
const HEAD_START: Duration = Duration::from_millis(50);
/// Content types of calls: what the wire format is called, and the name of the only encoding of messages that is served.
const CONTENT_TYPES: [&str; 2] = ["application/grpc", "application/grpc+proto"];

/// The time that the client gives a call, from its header; `None` if it says none, or says it in a way that is not gRPC's.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    // More digits than a number holds are a longer time than the longest.
    let amount: u64 = digits.parse().unwrap_or(u64::MAX);
    let timeout = match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout.min(LONGEST_TIMEOUT))
}

/// Whether these are the headers of a gRPC call, and not of a form, of a script in a browser, or of gRPC-web.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    // A content type may have parameters after a semicolon.
    let named = value.to_str().ok().and_then(|text| text.split(';').next()).map(str::trim_ascii);
    named.is_some_and(|named| CONTENT_TYPES.iter().any(|known| named.eq_ignore_ascii_case(known)))
}

/// The layer that answers everything that is not a gRPC call with status 415 of HTTP, which no client takes for success. Decision 0027.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnlyGrpc;

impl<S> Layer<S> for OnlyGrpc {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls(inner)
    }
}

/// A service that is called with gRPC calls only.
#[derive(Debug, Clone)]
pub struct Calls<S>(S);

impl<S, B, R> Service<Request<B>> for Calls<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: HttpBody + Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if is_grpc(request.headers()) {
            return Either::Left(self.0.call(request));
        }
        discard(request.into_body());
        let mut refused = Response::new(R::default());
        *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        refused.headers_mut().insert(ACCEPT, HeaderValue::from_static(CONTENT_TYPES[0]));
        Either::Right(ready(Ok(refused)))
    }
}

/// A call whose deadline has passed.
#[derive(Debug, Clone, Copy)]
pub struct Late<'a> {
    /// "/package.Service/Method".
    pub path: &'a str,
    /// The whole request had arrived, so the call may have begun. If not, it has done nothing.
    pub begun: bool,
}

/// The layer that ends calls at their deadlines, with the answer that a server chooses. tonic has one of its own, outside of all others,
/// which says CANCELLED and nothing else; this one is always a little earlier.
#[derive(Debug)]
pub struct Deadlines<R>(pub fn(Late<'_>) -> Response<R>);

// Derived, it would ask that of the body too.
impl<R> Clone for Deadlines<R> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<S, R> Layer<S> for Deadlines<R> {
    type Service = InTime<S, R>;

    fn layer(&self, inner: S) -> InTime<S, R> {
        InTime { answer: self.0, inner }
    }
}

/// A service whose calls end at their deadlines.
#[derive(Debug)]
pub struct InTime<S, R> {
    answer: fn(Late<'_>) -> Response<R>,
    inner: S,
}

impl<S: Clone, R> Clone for InTime<S, R> {
    fn clone(&self) -> Self {
        Self { answer: self.answer, inner: self.inner.clone() }
    }
}

impl<S, R> Service<Request<Body>> for InTime<S, R>
where
    S: Service<Request<Body>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Timed<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(timeout) = timeout(request.headers()) else {
            return Timed { inner: self.inner.call(request), end: None };
        };
        let sleep = tokio::time::sleep(timeout - (timeout / 20).min(HEAD_START));
        let arrived = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let uri = request.uri().clone();
        let request = request.map(|body| Body::new(Followed { body, arrived: Arc::clone(&arrived) }));
        let end = End { sleep, uri, arrived, answer: self.answer, started: false };
        Timed { inner: self.inner.call(request), end: Some(end) }
    }
}

/// What a body is read in.
type Polled = Result<Frame<<Body as HttpBody>::Data>, <Body as HttpBody>::Error>;

/// A request's body that notes when all of it has been read. Only then does a call that is not a stream begin.
struct Followed {
    body: Body,
    arrived: Arc<AtomicBool>,
}

impl HttpBody for Followed {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.arrived.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// How a call ends that has a deadline.
    struct End<R> {
        #[pin]
        sleep: Sleep,
        uri: Uri,
        arrived: Arc<AtomicBool>,
        answer: fn(Late<'_>) -> Response<R>,
        started: bool,
    }
}

impl<R> End<R> {
    /// Whether the deadline has passed. The timer alone would not do: two timers of one millisecond may fire in either order, and tonic's
    /// must not be the first.
    fn has_passed(&self) -> bool {
        Instant::now() >= self.sleep.deadline()
    }

    fn answer(&self) -> Response<R> {
        (self.answer)(Late { path: self.uri.path(), begun: self.arrived.load(Ordering::Acquire) && self.started })
    }
}

pin_project! {
    /// A call in progress.
    pub struct Timed<F, R> {
        #[pin]
        inner: F,
        #[pin]
        end: Option<End<R>>,
    }
}

impl<F, R, E> Future for Timed<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(end) = this.end.as_mut().as_pin_mut() {
            // A call that comes too late does not begin.
            if !end.started && end.has_passed() {
                return Poll::Ready(Ok(end.answer()));
            }
            *end.project().started = true;
        }
        if let ended @ Poll::Ready(_) = this.inner.poll(cx) {
            return ended;
        }
        let Some(mut end) = this.end.as_pin_mut() else { return Poll::Pending };
        let fired = end.as_mut().project().sleep.poll(cx).is_ready();
        if fired || end.has_passed() { Poll::Ready(Ok(end.answer())) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn timeouts_are_those_of_grpc_and_never_too_long_to_add() {
        let read = |text: &str| timeout(&headers(TIMEOUT, text));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        for long in ["18446744073709551615S", "99999999H", "99999999999999999999999M", "18446744073709551615H"] {
            assert_eq!(read(long), Some(LONGEST_TIMEOUT), "{long}");
        }
        for none in ["", "S", "5", "-1S", "+1S", "1.5S", "5s", " 5S"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn only_grpc_is_a_call() {
        for good in
            ["application/grpc", "application/grpc+proto", "Application/GRPC", "application/grpc; charset=utf-8"]
        {
            assert!(is_grpc(&headers("content-type", good)), "{good}");
        }
        for bad in [
            "application/grpc+json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "application/grpcx",
            "text/plain",
            "text/plain; application/grpc",
            "application/json",
            "",
        ] {
            assert!(!is_grpc(&headers("content-type", bad)), "{bad}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
        let mut both = headers("content-type", "application/grpc");
        both.append("content-type", HeaderValue::from_static("text/plain"));
        assert!(!is_grpc(&both), "which of them holds cannot be known");
    }

    #[tokio::test]
    async fn what_is_no_call_does_not_reach_the_service() {
        let service = tower::service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new("served")));
        let service = OnlyGrpc.layer(service);
        let call = |kind: &str| Request::builder().header("content-type", kind).body(Body::empty()).unwrap();
        let served = service.clone().oneshot(call("application/grpc")).await.unwrap();
        assert_eq!((served.status(), *served.body()), (StatusCode::OK, "served"));
        let refused = service.oneshot(call("text/plain")).await.unwrap();
        assert_eq!((refused.status(), *refused.body()), (StatusCode::UNSUPPORTED_MEDIA_TYPE, ""));
        assert_eq!(refused.headers()["accept"], "application/grpc");
    }

    async fn outcome(timeout: &str, takes: Duration, body: Body) -> (bool, bool) {
        let service = tower::service_fn(move |mut request: Request<Body>| async move {
            // As tonic does: the call begins when its request is complete.
            std::future::poll_fn(|cx| Pin::new(request.body_mut()).poll_frame(cx)).await;
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(Response::new((true, true)))
        });
        let service = Deadlines(|late| Response::new((false, late.begun))).layer(service);
        let request = Request::builder().uri("/a/B").header(TIMEOUT, timeout).body(body).unwrap();
        service.oneshot(request).await.unwrap().into_body()
    }

    /// A body that never comes.
    struct Silent;

    impl HttpBody for Silent {
        type Data = <Body as HttpBody>::Data;
        type Error = <Body as HttpBody>::Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Polled>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_answered_before_its_deadline_and_says_whether_it_had_begun() {
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(5));
        assert_eq!(outcome("1S", short, Body::empty()).await, (true, true), "in time");
        let before = Instant::now();
        assert_eq!(outcome("1S", long, Body::empty()).await, (false, true), "begun");
        assert!(before.elapsed() < Duration::from_secs(1), "the answer must arrive before the client gives up");
        assert_eq!(outcome("1S", long, Body::new(Silent)).await, (false, false), "not begun");
        for none in ["0n", "0H"] {
            assert_eq!(outcome(none, short, Body::empty()).await, (false, false), "{none}: it does not begin");
        }
    }
}
