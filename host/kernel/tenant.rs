//! A tenant and its settings.

use std::fmt;

use crate::limit;
use crate::name::{Invalid, TenantId, shown};
use crate::placement::{Moving, Placed};

/// How many replicas must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// One replica.
    One,
    /// More than half of them.
    Quorum,
    /// Every one.
    All,
}

impl Level {
    /// Reads the API's spelling. `Ok(None)` for "", which asks for the tenant's default.
    pub fn parse(field: &'static str, text: &str) -> Result<Option<Self>, Invalid> {
        match text {
            "" => Ok(None),
            "one" => Ok(Some(Self::One)),
            "quorum" => Ok(Some(Self::Quorum)),
            "all" => Ok(Some(Self::All)),
            other => Err(Invalid::new(
                field,
                format!("{} is not a consistency level", shown(other)),
                "use \"one\", \"quorum\", \"all\", or leave it empty for the tenant's default",
            )),
        }
    }

    /// Replicas that must answer, of `replication_factor`.
    pub fn required(self, replication_factor: u8) -> u8 {
        match self {
            Self::One => 1,
            Self::Quorum => replication_factor / 2 + 1,
            Self::All => replication_factor,
        }
    }

    /// The highest level that `answers` of `replication_factor` replicas meet.
    pub fn met(answers: u8, replication_factor: u8) -> Self {
        if answers >= replication_factor {
            Self::All
        } else if answers >= Self::Quorum.required(replication_factor) {
            Self::Quorum
        } else {
            Self::One
        }
    }

    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Quorum => "quorum",
            Self::All => "all",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $field:literal, $default:ident, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Reads the API's spelling; "" is the default.
            pub fn parse(text: &str) -> Result<Self, Invalid> {
                match text {
                    "" => Ok(Self::$default),
                    $($text => Ok(Self::$variant),)+
                    other => {
                        let known = [$($text),+].map(|t| format!("{t:?}")).join(" or ");
                        Err(Invalid::new($field, format!("{} is not known", shown(other)), format!("use {known}")))
                    }
                }
            }

            /// The API's spelling.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// What happens to concurrent writes. Chosen when the tenant is created.
    ConflictMode, "conflict_mode", Register, {
        /// One value, totally ordered.
        Register = "register",
        /// No concurrent write is dropped.
        Siblings = "siblings",
    }
}

choice! {
    /// How a register's writes get their stamps.
    Ordering, "ordering", Quorum, {
        /// A quorum is asked first: an acknowledged write is ordered after every write acknowledged before it, whatever the clocks do.
        Quorum = "quorum",
        /// The coordinator's hybrid clock alone: one round, without that promise.
        Clock = "clock",
    }
}

choice! {
    /// When replicas that a read found stale are repaired.
    ReadRepair, "read_repair", Async, {
        /// After the answer, in the background.
        Async = "async",
        /// Before the answer: quorum reads and writes are linearizable per key.
        Blocking = "blocking",
    }
}

choice! {
    /// What requests with an idempotency key do while the idempotency store cannot be reached.
    IdempotencyOutage, "idempotency_outage", Reject, {
        /// Fail them: nothing may happen twice.
        Reject = "reject",
        /// Carry them out: only `recent` guards against a second effect.
        Proceed = "proceed",
    }
}

/// Reads a retention of idempotency keys, in seconds as the API has it.
///
/// # Errors
/// When it is out of range.
pub fn idempotency_retention_ms(seconds: i64) -> Result<u64, Invalid> {
    let range = limit::IDEMPOTENCY_RETENTION_MS;
    let ms = u64::try_from(seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
    ms.filter(|ms| range.contains(ms)).ok_or_else(|| {
        let (least, most) = (range.start() / 1000, range.end() / 1000);
        Invalid::new(
            "idempotency_retention_seconds",
            format!("{seconds} is out of range"),
            format!("use {least} (a minute) to {most} (24 hours)"),
        )
    })
}

/// A tenant, as the metadata store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Replicas of each of its keys, 1..=5, as long as no change of its placement has ended that makes it another number.
    pub replication_factor: u8,
    /// The replication factor that it is to have, once its records have moved; `None`: no other.
    pub wanted_factor: Option<u8>,
    /// The version of the ring on which its keys are placed.
    pub ring: u64,
    /// The generation of its rows: see [`Placed::generation`].
    pub generation: u32,
    /// The highest generation that it was ever given, also by a change that was given up: no number is used again.
    pub generations: u32,
    /// The generation that its rows are to have, once its records have moved; `None`: no other.
    pub wanted_generation: Option<u32>,
    /// The change of its placement that is under way.
    pub moving: Option<Moving>,
    /// What happens to concurrent writes.
    pub conflict_mode: ConflictMode,
    /// How a register's writes get their stamps.
    pub ordering: Ordering,
    /// When stale replicas are repaired.
    pub read_repair: ReadRepair,
    /// What a request without a level asks for.
    pub default_level: Level,
    /// The level that no policy may go below.
    pub minimum_level: Level,
    /// What happens to requests with an idempotency key while its store is down.
    pub idempotency_outage: IdempotencyOutage,
    /// For how long an idempotency key has one effect, milliseconds: within [`limit::IDEMPOTENCY_RETENTION_MS`]. A change counts for
    /// reservations that are made after it.
    pub idempotency_retention_ms: u64,
    /// Grows by one with every change; guards against lost updates.
    pub version: u64,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// Unix time, milliseconds.
    pub updated_at_ms: u64,
    /// When it was deleted: Unix time, milliseconds. A deleted tenant is kept, so that its id is never used again.
    pub deleted_at_ms: Option<u64>,
}

impl Tenant {
    /// Where its records are, as long as the change that is under way has not ended.
    pub fn placed(&self) -> Placed {
        Placed { ring: self.ring, replication_factor: self.replication_factor, generation: self.generation }
    }

    /// A tenant with every default, as `CreateTenant` with its id alone makes it.
    pub fn with_defaults(id: TenantId, replication_factor: u8, now_ms: u64) -> Self {
        Self {
            id,
            replication_factor,
            wanted_factor: None,
            ring: 0,
            generation: 0,
            generations: 0,
            wanted_generation: None,
            moving: None,
            conflict_mode: ConflictMode::Register,
            ordering: Ordering::Quorum,
            read_repair: ReadRepair::Async,
            default_level: Level::Quorum,
            minimum_level: Level::One,
            idempotency_outage: IdempotencyOutage::Reject,
            idempotency_retention_ms: limit::LONGEST_RETENTION_MS,
            version: 1,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            deleted_at_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_every_replication_factor() {
        let quorums: Vec<u8> = (1..=5).map(|rf| Level::Quorum.required(rf)).collect();
        assert_eq!(quorums, [1, 2, 2, 3, 3]);
        assert_eq!(Level::met(2, 3), Level::Quorum);
        assert_eq!(Level::met(1, 1), Level::All);
        assert_eq!(Level::met(1, 3), Level::One);
    }

    #[test]
    fn retentions_are_from_a_minute_to_a_day() {
        assert_eq!(
            (idempotency_retention_ms(60), idempotency_retention_ms(86_400)),
            (Ok(60_000), Ok(limit::LONGEST_RETENTION_MS))
        );
        for wrong in [i64::MIN, -1, 0, 59, 86_401, i64::MAX] {
            let error = idempotency_retention_ms(wrong).unwrap_err().to_string();
            assert!(error.contains("idempotency_retention_seconds"), "{error}");
            assert!(error.contains("use 60 (a minute) to 86400 (24 hours)"), "{error}");
        }
    }

    #[test]
    fn unknown_spellings_name_field_value_and_remedy() {
        let error = Level::parse("consistency", "quorom").unwrap_err().to_string();
        assert!(error.contains("consistency") && error.contains("quorom") && error.contains("\"quorum\""), "{error}");
        let error = ConflictMode::parse("crdt").unwrap_err().to_string();
        assert!(error.contains("conflict_mode") && error.contains("siblings"), "{error}");
    }
}
