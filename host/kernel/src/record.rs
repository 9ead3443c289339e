//! What a replica stores under a key, and its encoding.

use bytes::Bytes;

use crate::register::Register;
use crate::siblings::Siblings;

/// A stored record: a join-semilattice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Of a `register` tenant.
    Register(Register),
    /// Of a `siblings` tenant.
    Siblings(Siblings),
}

/// A record's bytes: codec version, kind, checksum, body. On disk and on the wire alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded(pub Bytes);
