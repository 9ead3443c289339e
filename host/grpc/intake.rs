//! Bounds on incomplete request messages. A message is buffered before it is decoded, and memory for all of it is allocated as soon
//! as its length is known; a connection may have a thousand messages in flight, of up to 16 MiB each. Without a bound on their
//! total size, and a timeout for each, a few slow clients could exhaust the memory. A message that arrives in one piece, as small
//! ones do, is never counted.
//!
//! What is counted are bytes on the wire, until their message is complete. What they become is not counted here: the codec of `witan_wire`
//! refuses a message that would take more memory, once it is decoded, than a constant multiple of its bytes and an allowance.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
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

use super::status::Report;
use crate::access::caller::Caller;
use crate::access::scope::{self, Need};

/// Bytes of the largest message that a client may send. Most calls take less: [`scope::Rule::most_bytes`].
pub(super) const REQUEST_BYTES: usize = scope::VALUE_MESSAGE_BYTES;
/// Number of counters of tenants' messages. Tenants are assigned to them by hash, so that the table is bounded whatever ids arrive.
const COUNTERS: usize = 4096;

/// Bounds on incomplete messages.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Total bytes of incomplete messages of up to 1 MiB, and separately of larger ones: clients that send large messages compete
    /// only with each other. One tenant may have three quarters.
    pub bytes: usize,
    /// Calls whose message is incomplete, plus open sessions. One tenant may have three quarters.
    pub calls: usize,
    /// The longest that one message may take to arrive.
    pub within: Duration,
}

impl Default for Bounds {
    /// A quarter of a GiB holds 16 of the largest messages. 20,000 operations may be in flight, plus half that number of open
    /// sessions. A value of 10 MiB takes 10 s over a line of 8 Mbit/s; three times that leaves room for slower lines.
    fn default() -> Self {
        Self { bytes: 256 << 20, calls: 30_000, within: Duration::from_secs(30) }
    }
}

/// Bytes before a message: the compression flag and its length.
const PREFIX: usize = 5;
/// Path suffix of the client-streaming call, which may be idle for any time between two messages.
const STREAMING: &str = "/Session";

/// Separate bounds for calls that need no credential: these are probes, and must not take capacity from other calls.
const OPEN: Bounds = Bounds { bytes: 64 << 10, calls: 1000, within: Duration::from_secs(5) };

/// The layer in front of every service.
#[derive(Debug, Clone)]
pub(super) struct IntakeLayer {
    intake: Arc<Intake>,
    open: Arc<Intake>,
}

#[derive(Debug)]
struct Intake {
    bounds: Bounds,
    all: Held,
    tenants: Box<[Held]>,
}

/// What incomplete messages take.
#[derive(Debug, Default)]
struct Held {
    small: AtomicUsize,
    large: AtomicUsize,
    calls: AtomicUsize,
}

/// A message of more bytes than this is large.
const LARGE: usize = 1 << 20;

impl Held {
    fn of(&self, length: usize) -> &AtomicUsize {
        if length > LARGE { &self.large } else { &self.small }
    }
}

impl Intake {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, all: Held::default(), tenants: (0..COUNTERS).map(|_| Held::default()).collect() }
    }

    /// The counter of the tenant to which the caller's credential is bound. Others are counted in all only.
    fn tenant(&self, caller: Option<&Caller>) -> Option<usize> {
        let tenant = caller?.credential().tenant()?;
        Some(BuildHasherDefault::<DefaultHasher>::default().hash_one(tenant.bytes()) as usize % self.tenants.len())
    }

    /// Counts a call; false when there are too many.
    fn begin(&self, tenant: Option<usize>) -> bool {
        let most = self.bounds.calls;
        let of_tenant = tenant.map_or(0, |tenant| self.tenants[tenant].calls.fetch_add(1, Ordering::AcqRel));
        let fits = self.all.calls.fetch_add(1, Ordering::AcqRel) < most;
        fits && (tenant.is_none() || of_tenant < most / 4 * 3)
    }

    fn end(&self, tenant: Option<usize>) {
        self.all.calls.fetch_sub(1, Ordering::AcqRel);
        if let Some(tenant) = tenant {
            self.tenants[tenant].calls.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Counts a message; refuses it when that would exceed the bound.
    fn take(&self, tenant: Option<usize>, length: usize) -> Result<(), Status> {
        let most = self.bounds.bytes;
        let fits = |held: &Held, most: usize| held.of(length).fetch_add(length, Ordering::AcqRel) + length <= most;
        let of_tenant = tenant.is_none_or(|tenant| fits(&self.tenants[tenant], most / 4 * 3));
        if fits(&self.all, most) && of_tenant {
            return Ok(());
        }
        self.give_back(tenant, length);
        Err(refused("too many incomplete messages"))
    }

    fn give_back(&self, tenant: Option<usize>, length: usize) {
        self.all.of(length).fetch_sub(length, Ordering::AcqRel);
        if let Some(tenant) = tenant {
            self.tenants[tenant].of(length).fetch_sub(length, Ordering::AcqRel);
        }
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

/// A service whose incomplete request messages are counted.
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
        let (rule, streaming) = (scope::of_call(path), path.ends_with(STREAMING));
        let intake = if rule.need == Need::Nothing { &self.layer.open } else { &self.layer.intake };
        let tenant = intake.tenant(request.extensions().get());
        let request = request.map(|body| {
            // A call without a body has no message to wait for.
            match body.is_end_stream() {
                true => body,
                false => metered(Message::new(body, Arc::clone(intake), tenant, rule.most_bytes, streaming)),
            }
        });
        self.inner.call(request)
    }
}

/// No call reads trailers of a request, so the body is passed on as a plain stream of bytes.
fn metered(message: Message) -> Body {
    Body::new(axum::body::Body::from_stream(message))
}

/// A request's body. At most one of its messages is incomplete at a time.
struct Message {
    body: Body,
    /// The limit on calls had been reached when this one began.
    too_many: bool,
    intake: Arc<Intake>,
    /// The counter of its tenant.
    tenant: Option<usize>,
    /// Bytes of the largest message of this call.
    most: usize,
    /// The call may be idle between two messages.
    streaming: bool,
    /// Bytes of the prefix received so far, and the message length that they encode.
    prefix: usize,
    length: [u8; 4],
    /// Bytes of the message that have not been received.
    missing: usize,
    /// The message's length in bytes, while it is counted.
    held: Option<usize>,
    /// Fires when the message has taken too long.
    late: Option<Pin<Box<Sleep>>>,
}

impl Message {
    fn new(body: Body, intake: Arc<Intake>, tenant: Option<usize>, most: usize, streaming: bool) -> Self {
        let too_many = !intake.begin(tenant);
        let (length, held, late) = ([0; 4], None, None);
        Self { body, too_many, intake, tenant, most, streaming, prefix: 0, length, missing: 0, held, late }
    }

    /// Finds message boundaries in received bytes; true when the last message is incomplete. Fails at a message that is too large for the
    /// call.
    fn follow(&mut self, bytes: &[u8]) -> Result<bool, Status> {
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
                    // One that is too large for any call is refused when it is decoded, before memory is allocated for it.
                    if self.missing > self.most && self.missing <= REQUEST_BYTES {
                        return Err(too_large(self.missing, self.most));
                    }
                }
            } else {
                let taken = self.missing.min(bytes.len() - at);
                self.missing -= taken;
                at += taken;
            }
            if self.prefix == PREFIX && self.missing == 0 {
                self.prefix = 0;
                // The next message gets its own timeout.
                self.late = None;
            }
        }
        Ok(self.prefix > 0)
    }

    fn received(&mut self, bytes: &Bytes) -> Result<(), Status> {
        let goes_on = self.follow(bytes)?;
        // The counted message may have been completed, and the next one begun.
        let length = (goes_on && self.prefix == PREFIX).then(|| u32::from_be_bytes(self.length) as usize);
        if length != self.held {
            self.give_back();
            if let Some(length) = length.filter(|length| *length <= REQUEST_BYTES) {
                self.intake.take(self.tenant, length)?;
                self.held = Some(length);
            }
        }
        Ok(())
    }

    fn give_back(&mut self) {
        if let Some(held) = self.held.take() {
            self.intake.give_back(self.tenant, held);
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
        let problem = format!("the message was not complete after {} s", within.as_secs());
        Poll::Ready(Report::new(Code::DeadlineExceeded, "DEADLINE", problem).not_applied().status())
    }
}

fn too_large(length: usize, most: usize) -> Status {
    let problem = format!("the message has {length} bytes, and this call takes messages of at most {most} bytes");
    Report::new(Code::OutOfRange, "INVALID_REQUEST", problem).not_applied().status()
}

pub(super) fn refused(why: &str) -> Status {
    let report = Report::new(Code::ResourceExhausted, "OVERLOADED", why).not_applied();
    report.retry_after(Duration::from_millis(500)).status()
}

impl Drop for Message {
    fn drop(&mut self) {
        self.give_back();
        self.intake.end(self.tenant);
    }
}

impl Stream for Message {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        // Only the newest calls are refused: earlier ones, sessions above all, are not disturbed.
        if self.too_many {
            return Poll::Ready(Some(Err(refused("too many calls with incomplete messages"))));
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
        (Arc::clone(&intake), Message::new(Body::empty(), intake, None, REQUEST_BYTES, false))
    }

    fn framed(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.resize(PREFIX + length, 7);
        bytes
    }

    fn held(intake: &Intake) -> (usize, usize) {
        (intake.all.small.load(Ordering::Relaxed), intake.all.large.load(Ordering::Relaxed))
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
        // Two and a half messages in one piece, then the other half and the beginning of another.
        let mut two = [framed(3), framed(4), framed(6)].concat();
        let rest = two.split_off(two.len() - 3);
        message.received(&two.into()).unwrap();
        assert_eq!(held(&intake), (6, 0));
        message.received(&[rest, framed(LARGE + 1)[..99].to_vec()].concat().into()).unwrap();
        assert_eq!(held(&intake), (0, LARGE + 1));
        drop(message);
        assert_eq!((held(&intake), intake.all.calls.load(Ordering::Relaxed)), ((0, 0), 0));
    }

    #[test]
    fn beyond_the_bound_messages_are_refused_and_give_back_what_they_held() {
        let (intake, mut first) = of(Bounds { bytes: 2 * LARGE, ..Bounds::default() });
        let next = || Message::new(Body::empty(), Arc::clone(&intake), None, REQUEST_BYTES, false);
        let (mut second, mut small) = (next(), next());
        let begun = Bytes::from(framed(LARGE + 1)).slice(..90);
        first.received(&begun).unwrap();
        let refused = second.received(&begun).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        small.received(&Bytes::from(framed(LARGE)).slice(..90)).expect("large messages do not block small ones");
        drop((first, second));
        assert_eq!(held(&intake), (LARGE, 0));
        next().received(&begun).unwrap();
    }

    #[test]
    fn a_message_that_is_too_large_for_its_call_is_refused_at_its_prefix() {
        let intake = Arc::new(Intake::new(Bounds::default()));
        let mut message = Message::new(Body::empty(), Arc::clone(&intake), None, 1000, false);
        message.received(&framed(1000).into()).unwrap();
        let refused = message.received(&Bytes::from(framed(1001)).slice(..PREFIX)).unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange);
        assert!(refused.message().contains("at most 1000"), "{refused}");
        assert_eq!(held(&intake), (0, 0));
    }

    #[test]
    fn one_tenant_leaves_room_for_others() {
        let intake = Arc::new(Intake::new(Bounds { bytes: 4000, calls: 8, ..Bounds::default() }));
        let of = |tenant| Message::new(Body::empty(), Arc::clone(&intake), tenant, REQUEST_BYTES, false);
        let begun = Bytes::from(framed(1000)).slice(..90);
        let mut busy: Vec<_> = (0..8).map(|_| of(Some(1))).collect();
        assert_eq!(busy.iter().filter(|message| message.too_many).count(), 2);
        busy.truncate(4);
        let taken = busy.iter_mut().map(|message| message.received(&begun)).filter(Result::is_ok).count();
        assert_eq!(taken, 3);
        for tenant in [Some(2), None] {
            let mut other = of(tenant);
            assert!(!other.too_many);
            other.received(&begun).expect("another's");
        }
        drop(busy);
        assert_eq!((held(&intake), held_of(&intake.tenants[1])), ((0, 0), (0, 0, 0)));
    }

    fn held_of(held: &Held) -> (usize, usize, usize) {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (read(&held.small), read(&held.large), read(&held.calls))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_takes_too_long_is_abandoned() {
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
