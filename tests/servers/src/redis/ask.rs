//! A minimal client: one command and one response per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Sends a command, its words separated by spaces (or in double quotes), and returns the response, a list as lines. `patience` is the
/// longest wait for a connection, and for each part of the response.
///
/// # Errors
/// When there is no response, or it is an error.
pub(super) fn ask(address: SocketAddr, command: &str, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    read(&mut BufReader::new(stream))
}

fn read(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let Some((kind, rest)) = line.split_at_checked(1) else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    let number = || rest.parse::<i64>().map_err(|_| io::Error::other(format!("not an answer: {line}")));
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" => {
            let Ok(length) = u64::try_from(number()?) else { return Ok(String::new()) };
            let mut bytes = Vec::new();
            from.take(length + 2).read_to_end(&mut bytes)?;
            bytes.truncate(length as usize);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => {
            let parts = (0..number()?).map(|_| read(from)).collect::<io::Result<Vec<_>>>()?;
            Ok(parts.join("\n"))
        }
        _ => Err(io::Error::other(rest.to_owned())),
    }
}
