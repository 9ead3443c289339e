//! One row while a batch is applied: each kind of request, carried out on it.

use bytes::Bytes;
use witan_kernel::burial::drops;
use witan_kernel::digest::Row;
use witan_kernel::fault::Fault;
use witan_kernel::name::WriteId;
use witan_kernel::record::{Absorbed, Damaged, Encoded, Fingerprint, Record, WrongMode};
use witan_kernel::replica::{Answer, Ask, Outcome, ReplicaError};
use witan_kernel::siblings::{Shown, Siblings, Write};

use crate::row::{self, DamagedRow};
use crate::store::{BIRTHS, LoadError, Store};

/// One row while a batch is applied.
pub(super) struct BatchRow {
    pub(super) key: Bytes,
    pub(super) birth: u64,
    /// The record, once it was decoded.
    pub(super) record: Option<Record>,
    /// The encoded record, unless it has changed since.
    pub(super) encoded: Option<Encoded>,
    /// Whether `record` is set from `encoded`. If not, `encoded` is as stored, unverified.
    decoded: bool,
    /// It was written before, and is not synced yet.
    dirty: bool,
    pub(super) changed: bool,
    /// It was read from the engine, and is not cached yet.
    pub(super) fetched: bool,
    /// What a digest had of it before it was changed, if digests are kept; the inner `None`: there was no record.
    pub(super) before: Option<Option<Row>>,
}

impl BatchRow {
    pub(super) fn load(
        key: Bytes,
        cached: Option<Option<(u64, Encoded)>>,
        dirty: bool,
        store: &Store,
    ) -> Result<Self, ReplicaError> {
        let fetched = cached.is_none();
        let stored = match cached {
            Some(stored) => stored,
            None => store.load(&key).map_err(|error| match error {
                LoadError::Engine(error) => ReplicaError::Broken(error.to_string()),
                LoadError::Damaged(damaged) => report(&damaged),
            })?,
        };
        let (birth, encoded) = stored.map_or((0, None), |(birth, encoded)| (birth, Some(encoded)));
        Ok(Self { key, birth, record: None, encoded, decoded: false, dirty, changed: false, fetched, before: None })
    }

    pub(super) fn decode(&mut self) -> Result<(), ReplicaError> {
        if !self.decoded {
            match self.encoded.as_ref().map(Encoded::decode).transpose() {
                Ok(record) => self.record = record,
                Err(error) => return Err(self.damaged(error)),
            }
            self.decoded = true;
        }
        Ok(())
    }

    /// A row that cannot be read is not cached: whatever damaged it on its way from the disk may not do so again.
    fn damaged(&mut self, error: Damaged) -> ReplicaError {
        self.fetched = false;
        report(&row::damaged(&self.key, error.to_string()))
    }

    pub(super) fn read(&mut self) -> Outcome {
        if !self.decoded
            && let Some(Err(error)) = self.encoded.as_ref().map(Encoded::check)
        {
            return Err(self.damaged(error));
        }
        Ok(Answer::Record(self.encoded()))
    }

    /// The most bytes that the record in the answer may have, before the request is carried out.
    pub(super) fn answer_bytes(&mut self, ask: &Ask) -> usize {
        let asked = match ask {
            Ask::Put(put) => put.bytes(),
            Ask::Read | Ask::Names { .. } => 0,
            Ask::Stamp { .. } | Ask::Merge { .. } | Ask::Unpin { .. } | Ask::Collect { .. } => return 0,
        };
        self.encoded().map_or(0, |record| record.0.len()) + asked
    }

    pub(super) fn reveals_unsynced(&self) -> bool {
        self.dirty || self.changed
    }

    /// The encoded record; `None` if there is none.
    pub(super) fn encoded(&mut self) -> Option<Encoded> {
        if self.encoded.is_none() {
            self.encoded = self.record.as_ref().map(Record::encode);
        }
        self.encoded.clone()
    }

    fn is_register(&self) -> Option<bool> {
        self.record.as_ref().map(|record| matches!(record, Record::Register(_)))
    }

    fn set(&mut self, record: Record, encoded: Option<Encoded>) {
        self.record = Some(record);
        self.encoded = encoded;
        self.changed = true;
    }

    pub(super) fn stamp(&mut self, write_id: &WriteId) -> Outcome {
        self.decode()?;
        match &self.record {
            None => Ok(Answer::Stamp { stands: None, known: None }),
            Some(Record::Register(register)) => {
                let stands =
                    Some(register.stamp).filter(|_| register.value.is_some() || !Fault::TombstoneHasNoStamp.is_on());
                let known = register.knows(write_id).filter(|_| !Fault::StampNotRemembered.is_on());
                Ok(Answer::Stamp { stands, known })
            }
            Some(Record::Siblings(_)) => Err(ReplicaError::WrongMode),
        }
    }

    pub(super) fn merge(&mut self, encoded: &Encoded, wall: u64) -> Outcome {
        self.decode()?;
        let incoming = encoded
            .decode()
            .map_err(|error| ReplicaError::Broken(format!("the record to merge is invalid: {error}")))?;
        if self.is_register().is_some_and(|register| register != matches!(incoming, Record::Register(_))) {
            return Err(ReplicaError::WrongMode);
        }
        let open_before = match &self.record {
            Some(Record::Siblings(siblings)) => siblings.open_pins(),
            _ => Vec::new(),
        };
        let (record, absorbed) =
            Record::absorb(self.record.take(), &incoming, wall).map_err(|WrongMode| ReplicaError::WrongMode)?;
        let told = match (&record, &incoming) {
            (Record::Siblings(stored), Record::Siblings(sent)) => stored.lacking_in(sent, &open_before),
            _ => Vec::new(),
        };
        match absorbed {
            Absorbed::Nothing => self.record = Some(record),
            Absorbed::AsSent => self.set(record, Some(encoded.clone())),
            Absorbed::Changed => self.set(record, None),
        }
        Ok(Answer::Merged { superseded: absorbed == Absorbed::Nothing, told })
    }

    pub(super) fn put(&mut self, put: &Write, store: &Store, wall: u64) -> Outcome {
        self.decode()?;
        let mut siblings = match &self.record {
            None => Siblings::default(),
            Some(Record::Siblings(siblings)) if siblings.knows(&put.write_id).is_some() => {
                return Ok(self.put_answer(true));
            }
            Some(Record::Siblings(siblings)) => siblings.clone(),
            Some(Record::Register(_)) => return Err(ReplicaError::WrongMode),
        };
        siblings.refuse(put, wall)?;
        let broken = broken_context(put, &siblings);
        let put = broken.as_ref().unwrap_or(put);
        if self.birth == 0 || (store.is_outlived(self.birth) && siblings.births_of(&store.id()) < BIRTHS) {
            self.birth = store.draw_birth();
        }
        // Before the write and not after it: the answer names everything that this write supersedes, and is what is stored, encoded once.
        siblings.names.trim(wall);
        siblings.put(put, store.actor(self.birth));
        if Fault::AnswerTrimmed.is_on() {
            siblings.names.trim(wall);
        }
        self.set(Record::Siblings(siblings), None);
        Ok(self.put_answer(false))
    }

    fn put_answer(&mut self, applied_already: bool) -> Answer {
        let record = self.encoded().unwrap_or_else(|| Record::Siblings(Siblings::default()).encode());
        Answer::Put { record, applied_already }
    }

    /// The record of siblings; an empty one without a record.
    fn siblings(&mut self) -> Result<Siblings, ReplicaError> {
        self.decode()?;
        match &self.record {
            None => Ok(Siblings::default()),
            Some(Record::Siblings(siblings)) => Ok(siblings.clone()),
            Some(Record::Register(_)) => Err(ReplicaError::WrongMode),
        }
    }

    pub(super) fn names(&mut self, write_id: &WriteId, started: u64) -> Outcome {
        let mut siblings = self.siblings()?;
        if siblings.pin(write_id, started)? {
            self.set(Record::Siblings(siblings), None);
        }
        Ok(Answer::Record(self.encoded()))
    }

    pub(super) fn unpin(&mut self, write_id: &WriteId) -> Outcome {
        let mut siblings = self.siblings()?;
        let changed = siblings.names.unpin(write_id);
        if changed {
            self.set(Record::Siblings(siblings), None);
        }
        Ok(Answer::Merged { superseded: !changed, told: Vec::new() })
    }

    /// Drops the row, and its birth with it: what is written later draws a new one.
    pub(super) fn collect(&mut self, expected: Fingerprint, grace: u64, wall: u64) -> Outcome {
        let Some(stored) = self.encoded() else { return Ok(Answer::Collected { dropped: false }) };
        self.decode()?;
        let dropped = self.record.as_ref().is_some_and(|record| drops(&stored, record, expected, grace, wall));
        if dropped {
            (self.record, self.encoded, self.birth, self.changed) = (None, None, 0, true);
        }
        Ok(Answer::Collected { dropped })
    }
}

/// [`Fault::PutForgetsContext`] and [`Fault::PutDropsAll`]: the put with another context than the client's.
fn broken_context(put: &Write, stored: &Siblings) -> Option<Write> {
    if Fault::PutForgetsContext.is_on() {
        return Some(Write { seen: Default::default(), ids: Vec::new(), ..put.clone() });
    }
    Fault::PutDropsAll.is_on().then(|| {
        let Shown { seen, ids, newest } = stored.context_claims();
        Write { seen, ids, newest, ..put.clone() }
    })
}

/// Logs a damaged row for the operator, and returns the error for the coordinator.
fn report(damaged: &DamagedRow) -> ReplicaError {
    tracing::error!(%damaged, "a stored row cannot be read: restore it from the other replicas");
    ReplicaError::Broken(damaged.to_string())
}
