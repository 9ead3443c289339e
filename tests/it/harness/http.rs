//! As much HTTP as requests for health and metrics need.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The status and the body of the response to a path.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    get_showing(address, path, None).await
}

/// The same, with this header `authorization`.
pub(crate) async fn get_showing(address: SocketAddr, path: &str, shown: Option<&str>) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let shown = shown.map(|shown| format!("Authorization: {shown}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{shown}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    let status = response.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("no status line"))?;
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
