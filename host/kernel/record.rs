//! What a replica stores under a key, and its encoding.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::register::{Register, apply_merge};
use crate::siblings::Siblings;

mod abridge;
mod canonical;
mod codec;
mod codec2;
pub(crate) mod raw;

pub use abridge::ABRIDGED_BYTES;

/// A stored record: a join-semilattice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A record of a `register` tenant.
    Register(Register),
    /// A record of a `siblings` tenant.
    Siblings(Siblings),
}

/// A record's bytes: codec version, kind, checksum, body. The same on disk and on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded(pub Bytes);

/// Bytes that cannot be read as a record: cut off, altered, or of a codec version that this build does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record is damaged: {0}")]
pub struct Damaged(pub &'static str);

/// What merging a record into a stored one has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absorbed {
    /// Nothing: it need not be stored.
    Nothing,
    /// There was no record, and what was sent is stored as it is.
    AsSent,
    /// Something else: it has to be encoded and stored.
    Changed,
}

/// Two records under the same key have different conflict modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record is of another conflict mode")]
pub struct WrongMode;

impl Record {
    /// Writes the record in the oldest codec version that has room for all of it. Values are copied once.
    pub fn encode(&self) -> Encoded {
        codec::encode(self)
    }

    /// Joins `incoming` with what is stored. Also returns whether the stored record has changed, including what it remembers of writes:
    /// then it has to be stored.
    pub fn merge(stored: Option<Self>, incoming: Self) -> Result<(Self, bool), WrongMode> {
        match (stored, incoming) {
            (None, incoming) => Ok((incoming, true)),
            (Some(Self::Register(stored)), Self::Register(incoming)) => {
                let (merged, changed) = apply_merge(Some(stored), &incoming);
                Ok((Self::Register(merged), changed))
            }
            (Some(Self::Siblings(mut stored)), Self::Siblings(incoming)) => {
                let changed = stored.merge(&incoming);
                Ok((Self::Siblings(stored), changed))
            }
            (Some(Self::Register(_)), Self::Siblings(_)) | (Some(Self::Siblings(_)), Self::Register(_)) => {
                Err(WrongMode)
            }
        }
    }

    /// Merges a record that was `sent` to this store into what is `stored`, and forgets writes that are old at `now_micros`. What is stored
    /// differs from what was sent or was stored before as [`Absorbed`] says.
    pub fn absorb(stored: Option<Self>, sent: &Self, now_micros: u64) -> Result<(Self, Absorbed), WrongMode> {
        match (stored, sent) {
            (None, sent) => {
                let mut record = sent.clone();
                let forgot = record.expire(now_micros);
                Ok((record, if forgot { Absorbed::Changed } else { Absorbed::AsSent }))
            }
            (Some(Self::Siblings(mut stored)), Self::Siblings(sent)) => {
                let changed = stored.absorb(sent, now_micros);
                Ok((Self::Siblings(stored), if changed { Absorbed::Changed } else { Absorbed::Nothing }))
            }
            (Some(stored), sent) => {
                // Both sides expire their entries; otherwise what one has expired would return from the other for ever.
                let mut sent = sent.clone();
                sent.expire(now_micros);
                let (mut record, changed) = Self::merge(Some(stored), sent)?;
                if !changed {
                    return Ok((record, Absorbed::Nothing));
                }
                record.expire(now_micros);
                Ok((record, Absorbed::Changed))
            }
        }
    }

    /// True when both have the same state of the key, whatever they remember of writes: then neither replica is stale.
    pub fn same_state(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Register(a), Self::Register(b)) => {
                (a.stamp, a.write_id) == (b.stamp, b.write_id) && a.value == b.value
            }
            (Self::Siblings(a), Self::Siblings(b)) => a.same_state(b),
            (Self::Register(_), Self::Siblings(_)) | (Self::Siblings(_), Self::Register(_)) => false,
        }
    }

    /// True when merging `other` would change what this stored record has to remember. Names that it may have forgotten on purpose do not
    /// count: they would be sent to it again and again.
    pub fn lacks(&self, other: &Self) -> Result<bool, WrongMode> {
        match (self, other) {
            (Self::Siblings(stored), Self::Siblings(other)) => {
                Ok(!stored.same_state(other) || stored.names.lack(&other.names))
            }
            (stored, other) => Ok(Self::merge(Some(stored.clone()), other.clone())?.1),
        }
    }

    /// Forgets writes that are old ([`crate::recent::Recent::expire`], [`crate::siblings::Names::trim`]) at `now_micros`, microseconds
    /// since 1970. True when any was forgotten. To be called when the record is about to be stored anyway.
    pub fn expire(&mut self, now_micros: u64) -> bool {
        match self {
            Self::Register(register) => register.recent.expire(now_micros),
            Self::Siblings(siblings) => siblings.names.trim(now_micros),
        }
    }

    /// True when there is no live value.
    pub fn is_deleted(&self) -> bool {
        match self {
            Self::Register(register) => register.value.is_none(),
            Self::Siblings(siblings) => siblings.is_deleted(),
        }
    }
}

impl Record {
    /// Since when the key has been deleted here and nothing was heard of it: the latest of all times in the record, in microseconds since
    /// 1970. `None` while there is a live value.
    pub fn buried_since(&self) -> Option<u64> {
        if !self.is_deleted() {
            return None;
        }
        let latest = |times: &mut dyn Iterator<Item = u64>, horizon: u64| times.max().unwrap_or(0).max(horizon);
        Some(match self {
            Self::Register(Register { stamp, recent, .. }) => {
                latest(&mut recent.entries.iter().map(|(_, time)| *time), recent.horizon).max(stamp.0)
            }
            Self::Siblings(Siblings { versions, names, .. }) => {
                let versions = versions.iter().map(|version| version.time);
                latest(&mut versions.chain(names.entries.iter().map(|name| name.time)), names.horizon)
            }
        })
    }
}

/// Identifies the bytes of a record: the first half of their SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// Reads one; `None` unless there are 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl Encoded {
    /// The fingerprint of these bytes.
    pub fn fingerprint(&self) -> Fingerprint {
        let whole = Sha256::digest(&self.0);
        Fingerprint(std::array::from_fn(|at| whole[at]))
    }

    /// Reads the record; checks what [`Self::check`] does, and that the record's fields are valid. Values share these bytes. Whatever the
    /// bytes are, it never allocates more than a small multiple of their number.
    pub fn decode(&self) -> Result<Record, Damaged> {
        codec::decode(&self.0)
    }

    /// Checks codec version, kind and checksum only: cheap enough for every record that is received or read.
    pub fn check(&self) -> Result<(), Damaged> {
        codec::check(&self.0).map(|_| ())
    }
}
