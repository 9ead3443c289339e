//! Steps as calls of one script, and the script's replies.

use bytes::Bytes;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value};
use witan_kernel::idempotency::{DOUBTED_MS, KEPT_MS, Name, Step, Stepped};
use witan_kernel::port::StoreError;
use witan_kernel::register::Stamp;

use super::link::Connection;
use super::name;

/// Its arguments and replies are documented there.
const SOURCE: &str = include_str!("step.lua");

/// The fence of a record's first claim.
const FIRST_FENCE: u64 = 1;

/// Which of its names a first claim is written under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// The short one. The position of its key in a call.
    Short = 1,
    /// The long one.
    Long = 2,
}

/// The script, by the hash under which servers cache it.
pub(super) struct Steps {
    /// SHA-1 of the source, in hexadecimal.
    hash: String,
    key_prefix: String,
}

/// One step, ready to be sent; it may be sent again.
pub(super) struct Call<'a> {
    hash: &'a str,
    short: Vec<u8>,
    long: Vec<u8>,
    first: Spelling,
    step: &'a Step,
    /// Replaces the server's time.
    now_ms: Option<u64>,
}

impl Steps {
    pub(super) fn new(key_prefix: &str) -> Self {
        Self { hash: Script::new(SOURCE).get_hash().to_owned(), key_prefix: key_prefix.to_owned() }
    }

    /// The key of a record under one of its names.
    #[cfg(test)]
    pub(super) fn key(&self, name: &Name, spelling: Spelling) -> Vec<u8> {
        let (short, long) = name::both(&self.key_prefix, name);
        if spelling == Spelling::Short { short } else { long }
    }

    /// A step on the record of `name`, which is written under the name `first` if it is new; `now_ms`, if given, replaces the server's
    /// time.
    pub(super) fn call<'a>(&'a self, name: &Name, step: &'a Step, first: Spelling, now_ms: Option<u64>) -> Call<'a> {
        let (short, long) = name::both(&self.key_prefix, name);
        Call { hash: &self.hash, short, long, first, step, now_ms }
    }
}

impl Call<'_> {
    /// Sends it. A server that does not have the script in its cache gets it with a second call.
    pub(super) async fn send(&self, connection: &mut Connection) -> Result<Value, RedisError> {
        match connection.call(&self.command("EVALSHA", self.hash)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.call(&self.command("EVAL", SOURCE)).await
            }
            reply => reply,
        }
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(2).arg(&self.short[..]).arg(&self.long[..]);
        let kept_ms = match self.step {
            Step::Reserve { kept_ms, .. } | Step::Done { kept_ms, .. } => (*kept_ms).min(KEPT_MS),
            // They change nothing about it.
            Step::Stamp { .. } | Step::Release { .. } | Step::Abandon { .. } => KEPT_MS,
        };
        command.arg(self.now_ms.map(|now| now.to_string()).unwrap_or_default()).arg(kept_ms).arg(DOUBTED_MS);
        command.arg(self.first as u8);
        match self.step {
            Step::Reserve { owner, write_id, started, lease_ms, kept_ms: _ } => {
                command.arg("reserve").arg(&owner.0).arg(&write_id.0).arg(&started.to_be_bytes()).arg(*lease_ms);
            }
            Step::Stamp { owner, fence, stamp } => {
                command.arg("stamp").arg(&owner.0).arg(&fence.to_be_bytes()).arg(&stamp.0.to_be_bytes());
            }
            Step::Done { owner, fence, response, kept_ms: _ } => {
                command.arg("done").arg(&owner.0).arg(&fence.to_be_bytes()).arg(&response[..]);
            }
            Step::Release { owner, fence } => {
                command.arg("release").arg(&owner.0).arg(&fence.to_be_bytes());
            }
            Step::Abandon { owner, fence } => {
                command.arg("abandon").arg(&owner.0).arg(&fence.to_be_bytes());
            }
        }
        command
    }
}

/// Reads the script's reply.
pub(super) fn read(reply: &Value) -> Result<Stepped, StoreError> {
    let Value::Array(parts) = reply else { return Err(unexpected(reply)) };
    let Some((Value::BulkString(word), rest)) = parts.split_first() else { return Err(unexpected(reply)) };
    match (&word[..], rest) {
        (b"reserved", [Value::BulkString(fence), Value::BulkString(stamp), Value::BulkString(started)]) => {
            let fence = number(fence).ok_or_else(|| unexpected(reply))?;
            let stamp = read_stamp(stamp).ok_or_else(|| unexpected(reply))?;
            let started = number(started).ok_or_else(|| unexpected(reply))?;
            Ok(Stepped::Reserved { fence, took_over: fence > FIRST_FENCE, stamp, started })
        }
        (b"completed", [Value::BulkString(response)]) => {
            Ok(Stepped::Done { response: Bytes::copy_from_slice(response) })
        }
        (b"in-progress", [Value::Int(left)]) => match u64::try_from(*left) {
            Ok(left_ms) => Ok(Stepped::InProgress { left_ms }),
            Err(_) => Err(unexpected(reply)),
        },
        (b"expired", []) => Ok(Stepped::Expired),
        (b"conflict", []) => Ok(Stepped::Conflict),
        (b"stored", []) => Ok(Stepped::Stored),
        (b"lost", []) => Ok(Stepped::Lost),
        (b"damaged", [Value::BulkString(why)]) => {
            Err(StoreError::Damaged(format!("an idempotency record in Redis: {}", String::from_utf8_lossy(why))))
        }
        _ => Err(unexpected(reply)),
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn read_stamp(bytes: &[u8]) -> Option<Option<Stamp>> {
    match bytes.split_first()? {
        (0, none) => (number(none) == Some(0)).then_some(None),
        (1, stamp) => number(stamp).map(|stamp| Some(Stamp(stamp))),
        _ => None,
    }
}

fn unexpected(reply: &Value) -> StoreError {
    // Shortened: it may be as long as a response.
    let reply: String = format!("{reply:?}").chars().take(200).collect();
    StoreError::Damaged(format!("Redis answers a step with {reply}"))
}
