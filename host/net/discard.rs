//! What is left of the request of a call that is refused before it was read.
//!
//! A server that answers and drops the request resets the stream. What the client had sent by then arrives on a stream that is gone, and
//! HTTP/2 implementations close connections on which that happens a few hundred times, with all other calls that are under way on them.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Buf;
use http_body::Body as HttpBody;

/// Most bytes that are read; a client that has more to send is stopped by a reset. More than a client sends before it learns of the answer,
/// unless the message is large.
const MOST_BYTES: usize = 64 << 10;
/// How long the client may take to end its request. The stream counts towards the connection's limit until then.
const WITHIN: Duration = Duration::from_secs(5);

/// Reads the rest of a request and drops it, in a task of its own unless it has arrived already.
pub fn discard<B>(body: B)
where
    B: HttpBody + Send + 'static,
{
    let mut rest = Rest { body: Box::pin(body), left: MOST_BYTES };
    if rest.poll_end(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::spawn(async move {
            // A client that does not end its request in time is reset like one that sends too much.
            let _ = tokio::time::timeout(WITHIN, std::future::poll_fn(|cx| rest.poll_end(cx))).await;
        });
    }
}

struct Rest<B> {
    body: Pin<Box<B>>,
    left: usize,
}

impl<B: HttpBody> Rest<B> {
    /// Ready at the end of the request, at an error, and when the client has sent too much.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.body.is_end_stream() {
            let Some(Ok(frame)) = std::task::ready!(self.body.as_mut().poll_frame(cx)) else { break };
            let bytes = frame.data_ref().map_or(0, Buf::remaining);
            let Some(left) = self.left.checked_sub(bytes) else { break };
            self.left = left;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::{Arc, Weak};
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use futures::StreamExt;
    use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
    use http_body::{Body as HttpBody, Frame};

    use super::{Duration, MOST_BYTES, WITHIN, discard};

    /// A request whose parts are sent by the test.
    struct Request {
        parts: UnboundedReceiver<Bytes>,
        _alive: Arc<()>,
    }

    impl HttpBody for Request {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.parts.poll_next_unpin(cx).map(|part| part.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    /// A request of which this many KiB have arrived, what sends more of it, and what lives as long as it does.
    fn arrived(kib: usize) -> (Request, UnboundedSender<Bytes>, Weak<()>) {
        let (sender, parts) = unbounded();
        (0..kib).for_each(|_| sender.unbounded_send(Bytes::from_static(&[0; 1024])).expect("open"));
        let alive = Arc::new(());
        let until = Arc::downgrade(&alive);
        (Request { parts, _alive: alive }, sender, until)
    }

    async fn is_dropped(until: &Weak<()>) {
        while until.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_request_is_read_within_bounds() {
        let (request, parts, until) = arrived(3);
        drop(parts);
        discard(request);
        assert_eq!(until.strong_count(), 0, "at once: all of it has arrived");

        let (request, parts, until) = arrived(1);
        discard(request);
        parts.unbounded_send(Bytes::new()).expect("it is awaited");
        assert_eq!(until.strong_count(), 1);
        drop(parts);
        is_dropped(&until).await;

        let (request, _parts, until) = arrived(MOST_BYTES / 1024 + 1);
        discard(request);
        assert_eq!(until.strong_count(), 0, "it is too large");

        let (request, _parts, until) = arrived(1);
        discard(request);
        tokio::time::sleep(WITHIN - Duration::from_millis(1)).await;
        assert_eq!(until.strong_count(), 1);
        tokio::time::sleep(Duration::from_millis(2)).await;
        is_dropped(&until).await;
    }
}
