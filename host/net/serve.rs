//! Serving the connections of a listener over HTTP/2, each with an age and a receive window of its own.
//!
//! tonic's own loop gives all connections the same age and the same window. Clients that connected in the same moment would then come back
//! in the same moment, for ever; and since a window is what a client may send before anybody has looked at it, all windows together would
//! have no bound but their number.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming as Received;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Service, ServiceExt};

use crate::connection::Peer;
use crate::window;

/// How often a client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long it may take to say so.
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(10);
/// Calls that a client has reset, and the server has not looked at yet. More end the connection: it is a rapid-reset attack.
const PENDING_RESETS: usize = 64;
/// Calls that the server has reset because of what the client has sent. More end the connection.
const OWN_RESETS: usize = 256;
/// Bytes of the headers of a call.
const HEADER_BYTES: u32 = 16 << 10;

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Serving {
    /// Concurrent calls per connection.
    pub streams: u32,
    /// After this time the client of a connection is asked to connect again; calls in flight are completed.
    pub age: fn(&Peer) -> Duration,
}

/// Serves connections until `stop` is ready; then accepts none any more, and returns when the calls in flight have been answered and their
/// clients are gone.
pub async fn serve<I, IO, E, S>(incoming: I, service: S, serving: Serving, stop: impl Future<Output = ()>)
where
    I: Stream<Item = Result<IO, E>>,
    IO: AsyncRead + AsyncWrite + Connected<ConnectInfo = Peer> + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (stopping, stopped) = watch::channel(());
    {
        // Dropped when nothing is accepted any more, which closes the listener.
        let mut incoming = pin!(incoming);
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = incoming.next() => match accepted {
                    Some(Ok(io)) => drop(tokio::spawn(connection(io, service.clone(), serving, stopped.clone()))),
                    // It concerns one client, which is gone.
                    Some(Err(_)) => {}
                    None => break,
                },
            }
        }
    }
    drop(stopped);
    // Every connection sees that, also one that is being started.
    let _ = stopping.send(());
    stopping.closed().await;
}

/// Serves one connection until its client is gone, or has been asked to go and has no call left.
async fn connection<IO, S>(io: IO, service: S, serving: Serving, mut stopped: watch::Receiver<()>)
where
    IO: AsyncRead + AsyncWrite + Connected<ConnectInfo = Peer> + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let peer = io.connect_info();
    let window = peer.usage.window();
    let age = tokio::time::sleep((serving.age)(&peer));
    let service = service.map_request(move |mut request: Request<Received>| {
        request.extensions_mut().insert(peer.clone());
        request.map(Body::new)
    });
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(serving.streams)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(OWN_RESETS)
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_WITHIN)
        .initial_connection_window_size(window.bytes() as u32)
        .initial_stream_window_size(window::of_stream(window.bytes()) as u32);
    let mut served = pin!(http2.serve_connection(TokioIo::new(io), TowerToHyperService::new(service)));
    let mut ends = pin!(async {
        tokio::select! {
            biased;
            () = age => {}
            // An error means that the sender is gone, and is as good as a signal.
            _ = stopped.changed() => {}
        }
    });
    let ended = tokio::select! {
        biased;
        ended = &mut served => ended,
        () = &mut ends => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use bytes::Bytes;
    use h2::client::SendRequest;
    use tokio::io::DuplexStream;
    use tokio::sync::{Semaphore, mpsc, oneshot};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;
    use tokio_stream::wrappers::ReceiverStream;
    use tower::service_fn;

    use super::*;

    /// A connection from a port of its own.
    struct From(DuplexStream, u16);

    impl Connected for From {
        type ConnectInfo = Peer;

        fn connect_info(&self) -> Peer {
            let address = SocketAddr::from(([10, 0, 0, 1], self.1));
            Peer { address, identity: None, usage: crate::Usage::default() }
        }
    }

    impl AsyncRead for From {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for From {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// A server whose answers wait for permits, and whose connections live for as many seconds as the number of their port.
    struct Server {
        dial: mpsc::Sender<Result<From, Infallible>>,
        answers: Arc<Semaphore>,
        stop: oneshot::Sender<()>,
        serving: JoinHandle<()>,
    }

    fn server() -> Server {
        let (dial, dialled) = mpsc::channel(8);
        let answers = Arc::new(Semaphore::new(0));
        let may = Arc::clone(&answers);
        let service = service_fn(move |request: Request<Body>| {
            let (may, port) = (Arc::clone(&may), request.extensions().get::<Peer>().map(|peer| peer.address.port()));
            async move {
                may.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(Response::builder().header("port", port.unwrap()).body(Body::empty()).unwrap())
            }
        });
        let age = |peer: &Peer| Duration::from_secs(peer.address.port().into());
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let serving = tokio::spawn(serve(ReceiverStream::new(dialled), service, Serving { streams: 8, age }, stopped));
        Server { dial, answers, stop, serving }
    }

    impl Server {
        /// A client from this port, and its connection until that ends.
        async fn client(&self, port: u16) -> (SendRequest<Bytes>, JoinHandle<Instant>) {
            let (near, far) = tokio::io::duplex(1 << 16);
            self.dial.send(Ok(From(far, port))).await.unwrap();
            let (send, connection) = h2::client::handshake(near).await.unwrap();
            let ended = async move {
                let _ = connection.await;
                Instant::now()
            };
            (send, tokio::spawn(ended))
        }
    }

    fn call(send: &mut SendRequest<Bytes>) -> h2::client::ResponseFuture {
        let request = Request::builder().uri("http://server/").body(()).unwrap();
        send.send_request(request, true).unwrap().0
    }

    #[tokio::test(start_paused = true)]
    async fn each_connection_has_an_age_of_its_own_and_completes_its_calls() {
        let server = server();
        let began = Instant::now();
        let (mut old, old_ended) = server.client(100).await;
        let (_young, young_ended) = server.client(70).await;
        let answer = call(&mut old);
        assert_eq!((young_ended.await.unwrap() - began).as_secs(), 70, "it has no call");
        // Asked to go at 100, with a call under way.
        tokio::time::sleep_until(began + Duration::from_secs(115)).await;
        assert!(!old_ended.is_finished());
        assert!(old.ready().await.is_err(), "it takes no further call");
        server.answers.add_permits(1);
        assert_eq!(answer.await.unwrap().headers()["port"], "100");
        assert_eq!((old_ended.await.unwrap() - began).as_secs(), 115);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stops_completes_its_calls_and_accepts_no_more() {
        let server = server();
        let (mut client, ended) = server.client(1000).await;
        let answer = call(&mut client);
        // The call has arrived.
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.stop.send(()).unwrap();
        server.dial.closed().await;
        assert!(client.ready().await.is_err() && !server.serving.is_finished());
        server.answers.add_permits(1);
        assert_eq!(answer.await.unwrap().status(), 200);
        ended.await.unwrap();
        server.serving.await.unwrap();
    }
}
