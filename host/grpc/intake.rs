//! What clients may have half sent. A message is collected before it is decoded, with memory for all of it from the moment
//! that its length is told; a connection may have a thousand of them under way, and each may have 16 MiB. Without a bound
//! over all of them, and a time for each, a few slow clients would fill the memory. A message that comes in one piece, as
//! small ones do, is never counted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http::Request;
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::server::REQUEST_BYTES;
use super::status::Report;
use crate::access::scope::{self, Need};

/// Bounds of what is half sent.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of all messages of up to 1 MiB that are not complete, and as many of larger ones: whoever sends giants is only in
    /// the way of others who do.
    pub bytes: usize,
    /// Calls whose message is not complete, and sessions.
    pub calls: usize,
    /// How long one message may take.
    pub within: Duration,
}

impl Default for Bounds {
    /// A quarter of a GiB holds 16 of the largest messages. 20,000 operations may be under way, and half as many sessions
    /// be open. A value of 10 MiB takes 10 s over a line of 8 Mbit/s, three times as long is for everybody else.
    fn default() -> Self {
        Self { bytes: 256 << 20, calls: 30_000, within: Duration::from_secs(30) }
    }
}

/// The five bytes before a message: not compressed, and its length.
const PREFIX: usize = 5;
/// The one call that is a stream of the client's: it may say nothing for as long as it likes between two messages.
const STREAMING: &str = "/Session";

/// What calls may have half sent that anybody may make, without any credential: they are probes, and must not be in the way of others.
const OPEN: Bounds = Bounds { bytes: 64 << 10, calls: 1000, within: Duration::from_secs(5) };

/// Stands before every service.
#[derive(Debug, Clone)]
pub(super) struct IntakeLayer {
    intake: Arc<Intake>,
    open: Arc<Intake>,
}

#[derive(Debug)]
struct Intake {
    bounds: Bounds,
    small: AtomicUsize,
    large: AtomicUsize,
    calls: AtomicUsize,
}

/// From here on a message is large.
const LARGE: usize = 1 << 20;

impl Intake {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, small: AtomicUsize::new(0), large: AtomicUsize::new(0), calls: AtomicUsize::new(0) }
    }

    fn of(&self, length: usize) -> &AtomicUsize {
        if length > LARGE { &self.large } else { &self.small }
    }

    /// Counts a message, unless it is too much.
    fn take(&self, length: usize) -> Result<(), Status> {
        let before = self.of(length).fetch_add(length, Ordering::AcqRel);
        if before + length <= self.bounds.bytes {
            return Ok(());
        }
        self.give_back(length);
        Err(refused("too many messages are half sent"))
    }

    fn give_back(&self, length: usize) {
        self.of(length).fetch_sub(length, Ordering::AcqRel);
    }
}

impl IntakeLayer {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { intake: Arc::new(Intake::new(bounds)), open: Arc::new(Intake::new(OPEN)) }
    }
}

impl<S> Layer<S> for IntakeLayer {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered { layer: self.clone(), inner }
    }
}

/// Services whose requests' messages are counted.
#[derive(Debug, Clone)]
pub(super) struct Metered<S> {
    layer: IntakeLayer,
    inner: S,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Metered<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let streaming = path.ends_with(STREAMING);
        let intake = if scope::of_call(path).need == Need::Nothing { &self.layer.open } else { &self.layer.intake };
        let request = request.map(|body| {
            // A call without a message has nothing to wait for.
            match body.is_end_stream() {
                true => body,
                false => metered(Message::new(body, Arc::clone(intake), streaming)),
            }
        });
        self.inner.call(request)
    }
}

/// What a client says behind its messages is of no interest to any call, so that a body is a stream of bytes.
fn metered(message: Message) -> Body {
    Body::new(axum::body::Body::from_stream(message))
}

/// A request's body, of which at most one message is not complete.
struct Message {
    body: Body,
    /// There were as many calls as there may be when this one began.
    too_many: bool,
    intake: Arc<Intake>,
    /// Nothing needs to come between two messages.
    streaming: bool,
    /// Bytes of the prefix that have come, and the length that they tell.
    prefix: usize,
    length: [u8; 4],
    /// Bytes that the message still lacks.
    missing: usize,
    /// Its length, while it is counted.
    held: Option<usize>,
    late: Option<Pin<Box<Sleep>>>,
}

impl Message {
    fn new(body: Body, intake: Arc<Intake>, streaming: bool) -> Self {
        let too_many = intake.calls.fetch_add(1, Ordering::AcqRel) >= intake.bounds.calls;
        Self { body, too_many, intake, streaming, prefix: 0, length: [0; 4], missing: 0, held: None, late: None }
    }

    /// Follows the messages through bytes that have come; true when the last one is not complete.
    fn follow(&mut self, bytes: &[u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            if self.prefix < PREFIX {
                if let Some(place) = self.prefix.checked_sub(1) {
                    self.length[place] = bytes[at];
                }
                self.prefix += 1;
                at += 1;
                if self.prefix == PREFIX {
                    self.missing = u32::from_be_bytes(self.length) as usize;
                }
            } else {
                let taken = self.missing.min(bytes.len() - at);
                self.missing -= taken;
                at += taken;
            }
            if self.prefix == PREFIX && self.missing == 0 {
                self.prefix = 0;
                // The next one has time of its own.
                self.late = None;
            }
        }
        self.prefix > 0
    }

    fn received(&mut self, bytes: &Bytes) -> Result<(), Status> {
        let goes_on = self.follow(bytes);
        // What is counted may be complete, and the next one begun.
        let length = (goes_on && self.prefix == PREFIX).then(|| u32::from_be_bytes(self.length) as usize);
        if length != self.held {
            self.give_back();
            // One that is too large for any call is refused when it is decoded, before there is memory for it.
            if let Some(length) = length.filter(|length| *length <= REQUEST_BYTES) {
                self.intake.take(length)?;
                self.held = Some(length);
            }
        }
        Ok(())
    }

    fn give_back(&mut self) {
        if let Some(held) = self.held.take() {
            self.intake.give_back(held);
        }
    }

    /// An error when the rest of a message takes too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.prefix == 0 && self.streaming {
            return Poll::Pending;
        }
        let within = self.intake.bounds.within;
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        ready!(late.as_mut().poll(cx));
        let told = format!("the message was not complete after {} s", within.as_secs());
        Poll::Ready(Report::new(Code::DeadlineExceeded, "DEADLINE", told).not_applied().status())
    }
}

fn refused(why: &str) -> Status {
    let report = Report::new(Code::ResourceExhausted, "OVERLOADED", why).not_applied();
    report.retry_after(Duration::from_millis(500)).status()
}

impl Drop for Message {
    fn drop(&mut self) {
        self.give_back();
        self.intake.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Stream for Message {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        // Those that came before are in nobody's way, least of all sessions.
        if self.too_many {
            return Poll::Ready(Some(Err(refused("too many calls are half sent"))));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.into_data().unwrap_or_default();
                Poll::Ready(Some(self.received(&bytes).map(|()| bytes)))
            }
            Poll::Ready(Some(Err(broken))) => Poll::Ready(Some(Err(broken))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self.wait(cx).map(|late| Some(Err(late))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bounds: Bounds) -> (Arc<Intake>, Message) {
        let intake = Arc::new(Intake::new(bounds));
        (Arc::clone(&intake), Message::new(Body::empty(), intake, false))
    }

    fn framed(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.resize(PREFIX + length, 7);
        bytes
    }

    fn held(intake: &Intake) -> (usize, usize) {
        (intake.small.load(Ordering::Relaxed), intake.large.load(Ordering::Relaxed))
    }

    #[test]
    fn only_what_is_not_complete_is_counted() {
        let (intake, mut message) = of(Bounds::default());
        for length in [0, 1, 100] {
            message.received(&framed(length).into()).unwrap();
            assert_eq!(held(&intake), (0, 0), "whole: {length}");
        }
        for (place, byte) in framed(10).iter().enumerate() {
            message.received(&Bytes::copy_from_slice(&[*byte])).unwrap();
            let counted = if (PREFIX - 1..PREFIX + 9).contains(&place) { 10 } else { 0 };
            assert_eq!(held(&intake), (counted, 0), "by the byte: {place}");
        }
        // Two and a half in one piece, then the other half and a beginning.
        let mut two = [framed(3), framed(4), framed(6)].concat();
        let rest = two.split_off(two.len() - 3);
        message.received(&two.into()).unwrap();
        assert_eq!(held(&intake), (6, 0));
        message.received(&[rest, framed(LARGE + 1)[..99].to_vec()].concat().into()).unwrap();
        assert_eq!(held(&intake), (0, LARGE + 1));
        drop(message);
        assert_eq!((held(&intake), intake.calls.load(Ordering::Relaxed)), ((0, 0), 0));
    }

    #[test]
    fn beyond_the_bound_messages_are_refused_and_give_back_what_they_held() {
        let (intake, mut first) = of(Bounds { bytes: 2 * LARGE, ..Bounds::default() });
        let next = || Message::new(Body::empty(), Arc::clone(&intake), false);
        let (mut second, mut small) = (next(), next());
        let begun = Bytes::from(framed(LARGE + 1)).slice(..90);
        first.received(&begun).unwrap();
        let refused = second.received(&begun).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        small.received(&Bytes::from(framed(LARGE)).slice(..90)).expect("giants are not in the way of others");
        drop((first, second));
        assert_eq!(held(&intake), (LARGE, 0));
        next().received(&begun).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_takes_too_long_is_given_up() {
        let (_, mut message) = of(Bounds::default());
        message.received(&framed(10)[..8].to_vec().into()).unwrap();
        let late = std::future::poll_fn(|cx| message.wait(cx)).await;
        assert_eq!(late.code(), Code::DeadlineExceeded);
        message.late = None;
        message.streaming = true;
        message.received(&framed(10)[8..].to_vec().into()).unwrap();
        let idle = tokio::time::timeout(Duration::from_secs(3600), std::future::poll_fn(|cx| message.wait(cx)));
        assert!(idle.await.is_err(), "a session may be idle");
    }
}
