//! A connection to a server that can be cut.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::own_address;

/// Passes connections on to a server, unless it is cut.
#[derive(Clone)]
pub(crate) struct Link {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    cut: Arc<watch::Sender<bool>>,
}

impl Link {
    /// A link to the server at `to`.
    pub(crate) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).await.expect("listen");
        let address = listener.local_addr().expect("an address");
        let cut = Arc::new(watch::Sender::new(false));
        let watched = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut is_cut = watched.subscribe();
                if !*is_cut.borrow_and_update() {
                    tokio::spawn(async move {
                        tokio::select! {
                            () = pass(client, to) => {}
                            _ = is_cut.wait_for(|cut| *cut) => {}
                        }
                    });
                }
            }
        });
        Self { address, cut }
    }

    /// Closes every connection and each that is made from now on.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Passes connections on again.
    pub(crate) fn restore(&self) {
        self.cut.send_replace(false);
    }
}

async fn pass(mut client: TcpStream, to: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(to).await {
        // It ends when either side closes the connection.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
