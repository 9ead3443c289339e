//! The stored form of a reservation: its fields, its lease, and a codec that survives any bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{DOUBTED_MS, KEPT_MS, Owner};
use crate::fault::Fault;
use crate::name::WriteId;
use crate::register::Stamp;

/// Whether a request has been carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// An attempt is carrying it out, or may have left it half done.
    InProgress,
    /// Carried out.
    Done {
        /// The answer for duplicates.
        response: Bytes,
    },
}

/// The record of one idempotency key. Times are the store's, milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Whether the request has been carried out.
    pub state: State,
    /// The request's fingerprint, under which replicas remember the write.
    pub write_id: WriteId,
    /// The attempt that holds it, or held it last.
    pub owner: Owner,
    /// 1 for the first attempt; each takeover adds one.
    pub fence: u64,
    /// When the first attempt started: hybrid time, microseconds.
    pub started: u64,
    /// The stamp that every attempt uses, once one has drawn it.
    pub stamp: Option<Stamp>,
    /// When the lease was granted.
    pub lease_from_ms: u64,
    /// When it ends. No later than `lease_from_ms` if the claim was given up.
    pub lease_until_ms: u64,
    /// When it ends. Without a response: when attempts are granted no further claims. With one: when it may be forgotten.
    pub kept_until_ms: u64,
}

/// Why bytes are not a reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damaged {
    /// Fewer or more bytes than the fields need.
    #[error("a reservation cannot have {0} bytes")]
    Length(usize),
    /// Written by a later version of this program.
    #[error("a reservation has codec version {0}, which this program does not know")]
    Version(u8),
    /// The bytes have been altered.
    #[error("a reservation's checksum does not match")]
    Checksum,
    /// A field has an impossible value.
    #[error("a reservation has an impossible {0}")]
    Field(&'static str),
}

/// The codec's first version: version, CRC-32 of what follows, state, write id, owner, fence, started, whether there is a
/// stamp, stamp, the three times, response. Numbers are big endian.
const VERSION: u8 = 1;
const HEAD: usize = 5;
const FIXED: usize = 1 + 16 + 16 + 8 + 8 + 1 + 8 + 3 * 8;
const IN_PROGRESS: u8 = 0;
const DONE: u8 = 1;

impl Reservation {
    /// Milliseconds until the lease ends; 0 when it has. A lease that begins in the future was granted before the store's clock was set
    /// back: how long it is valid is unknown, and no promise depends on it, so it counts as ended.
    pub fn lease_left_ms(&self, now_ms: u64) -> u64 {
        if now_ms < self.lease_from_ms { 0 } else { self.lease_until_ms.saturating_sub(now_ms) }
    }

    /// True when it is in progress and its first claim is so long ago that nobody may carry it out any longer.
    pub(super) fn has_expired(&self, now_ms: u64) -> bool {
        self.state == State::InProgress && self.kept_until_ms <= now_ms
    }

    /// When it may be forgotten.
    pub fn remembered_until_ms(&self) -> u64 {
        match self.state {
            State::InProgress => self.kept_until_ms.saturating_add(DOUBTED_MS),
            State::Done { .. } => self.kept_until_ms,
        }
    }

    /// With a lease that starts now and lasts at most [`KEPT_MS`].
    pub(super) fn leased(mut self, lease_ms: u64, now_ms: u64) -> Self {
        self.lease_from_ms = now_ms;
        self.lease_until_ms = now_ms.saturating_add(lease_ms.min(KEPT_MS));
        self.touched(now_ms)
    }

    /// After a step other than the first and the last: it is kept no longer because of it.
    pub(super) fn touched(self, now_ms: u64) -> Self {
        if Fault::ReservationProlonged.is_on() { self.kept(KEPT_MS, now_ms) } else { self }
    }

    /// To be kept so long from now on: from its first claim, and again from the moment that its response is recorded. It never ends
    /// earlier for that: another attempt may record the response, after the tenant's retention was shortened.
    pub(super) fn kept(mut self, kept_ms: u64, now_ms: u64) -> Self {
        self.kept_until_ms = self.kept_until_ms.max(now_ms.saturating_add(kept_ms));
        self
    }

    /// The stored bytes.
    pub fn encode(&self) -> Bytes {
        let (state, response) = match &self.state {
            State::InProgress => (IN_PROGRESS, &[][..]),
            State::Done { response } => (DONE, &response[..]),
        };
        let mut out = BytesMut::with_capacity(HEAD + FIXED + response.len());
        out.put_u8(VERSION);
        out.put_u32(0);
        out.put_u8(state);
        out.put_slice(&self.write_id.0);
        out.put_slice(&self.owner.0);
        out.put_u64(self.fence);
        out.put_u64(self.started);
        out.put_u8(u8::from(self.stamp.is_some()));
        out.put_u64(self.stamp.map_or(0, |stamp| stamp.0));
        out.put_u64(self.lease_from_ms);
        out.put_u64(self.lease_until_ms);
        out.put_u64(self.kept_until_ms);
        out.put_slice(response);
        let sum = crc32fast::hash(&out[HEAD..]);
        out[1..HEAD].copy_from_slice(&sum.to_be_bytes());
        out.freeze()
    }

    /// Reads stored bytes; any bytes are safe to read.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let (&version, rest) = bytes.split_first().ok_or(Damaged::Length(0))?;
        if version != VERSION {
            return Err(Damaged::Version(version));
        }
        let (sum, body) = rest.split_first_chunk::<4>().ok_or(Damaged::Length(bytes.len()))?;
        if crc32fast::hash(body) != u32::from_be_bytes(*sum) {
            return Err(Damaged::Checksum);
        }
        let mut fields = Fields { rest: body, whole: bytes.len() };
        let state = fields.u8()?;
        let reservation = Self {
            state: State::InProgress,
            write_id: WriteId(fields.take()?),
            owner: Owner(fields.take()?),
            fence: fields.u64()?,
            started: fields.u64()?,
            stamp: fields.stamp()?,
            lease_from_ms: fields.u64()?,
            lease_until_ms: fields.u64()?,
            kept_until_ms: fields.u64()?,
        };
        match (state, fields.rest) {
            (IN_PROGRESS, []) => Ok(reservation),
            (IN_PROGRESS, _) => Err(Damaged::Length(bytes.len())),
            (DONE, response) => {
                Ok(Self { state: State::Done { response: Bytes::copy_from_slice(response) }, ..reservation })
            }
            _ => Err(Damaged::Field("state")),
        }
    }
}

/// Bytes not read yet.
struct Fields<'a> {
    rest: &'a [u8],
    whole: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(Damaged::Length(self.whole))?;
        self.rest = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, Damaged> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, Damaged> {
        self.take().map(u64::from_be_bytes)
    }

    fn stamp(&mut self) -> Result<Option<Stamp>, Damaged> {
        match (self.u8()?, self.u64()?) {
            (0, 0) => Ok(None),
            (1, stamp) => Ok(Some(Stamp(stamp))),
            _ => Err(Damaged::Field("stamp")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
    use proptest::proptest;

    use super::{Damaged, FIXED, HEAD, Reservation, State};
    use crate::idempotency::{Change, KEPT_MS, Owner, Step, Stepped, apply};
    use crate::name::WriteId;
    use crate::register::Stamp;

    fn reservations() -> impl Strategy<Value = Reservation> {
        let state = prop_oneof![
            Just(State::InProgress),
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| State::Done { response: bytes.into() }),
        ];
        (state, any::<([u8; 16], [u8; 16], u64, u64, Option<u64>)>(), any::<(u64, u64, u64)>()).prop_map(
            |(state, (write_id, owner, fence, started, stamp), (lease_from_ms, lease_until_ms, kept_until_ms))| {
                Reservation {
                    state,
                    write_id: WriteId(write_id),
                    owner: Owner(owner),
                    fence,
                    started,
                    stamp: stamp.map(Stamp),
                    lease_from_ms,
                    lease_until_ms,
                    kept_until_ms,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(reservation in reservations()) {
            prop_assert_eq!(Reservation::decode(&reservation.encode()), Ok(reservation));
        }

        #[test]
        fn no_damage_is_read_as_something_else(reservation in reservations(), at in any::<proptest::sample::Index>(), flip in 1u8..) {
            let mut bytes = reservation.encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Reservation::decode(&bytes).is_err());
            prop_assert!(Reservation::decode(&bytes[..at]).is_err());
        }

        #[test]
        fn hostile_bytes_never_panic(mut body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Reservation::decode(&body);
            // With a valid header, so that the fields are reached.
            if body.len() > 5 {
                body[0] = 1;
                let sum = crc32fast::hash(&body[5..]).to_be_bytes();
                body[1..5].copy_from_slice(&sum);
                if let Ok(read) = Reservation::decode(&body) {
                    prop_assert_eq!(read.encode(), body);
                }
            }
        }
    }

    #[test]
    fn a_record_is_kept_for_a_day_and_no_lease_is_longer() {
        const DAY_MS: u64 = 86_400_000;
        let reserve = |n| Step::Reserve {
            owner: Owner([n; 16]),
            write_id: WriteId([n; 16]),
            started: 5,
            lease_ms: u64::MAX,
            kept_ms: KEPT_MS,
        };
        let (Change::Put(first), _) = apply(None, &reserve(1), 1000) else { panic!("a claim") };
        assert_eq!(
            (first.lease_from_ms, first.lease_until_ms, first.kept_until_ms),
            (1000, 1000 + DAY_MS, 1000 + DAY_MS)
        );
        assert_eq!(apply(Some(&first), &reserve(2), 999 + DAY_MS), (Change::Keep, Stepped::Conflict));
        let (change, stepped) = apply(Some(&first), &reserve(2), 1000 + DAY_MS);
        assert!(matches!(change, Change::Put(second) if second.write_id == WriteId([2; 16]) && second.fence == 1));
        assert!(matches!(stepped, Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 5 }));
        // A recorded response starts the day anew.
        let done = Step::Done { owner: first.owner, fence: 1, response: b"ok".as_slice().into(), kept_ms: KEPT_MS };
        let (Change::Put(done), Stepped::Stored) = apply(Some(&first), &done, 7000) else { panic!("a response") };
        assert_eq!((done.kept_until_ms, done.lease_until_ms), (7000 + DAY_MS, first.lease_until_ms));
    }

    /// A claim with a lease of 10 ms.
    fn claimed_at_100() -> Reservation {
        let (owner, write_id) = (Owner([1; 16]), WriteId([1; 16]));
        let reserve = Step::Reserve { owner, write_id, started: 5, lease_ms: 10, kept_ms: KEPT_MS };
        let (Change::Put(claim), _) = apply(None, &reserve, 100) else { panic!("a claim") };
        claim
    }

    #[test]
    fn a_lease_ends_at_its_end_and_when_the_clock_was_set_back() {
        let claim = claimed_at_100();
        for (now, left) in [(99, 0), (100, 10), (105, 5), (109, 1), (110, 0), (111, 0)] {
            assert_eq!(claim.lease_left_ms(now), left, "at {now}");
        }
    }

    #[test]
    fn what_is_no_reservation_says_why() {
        let claim = claimed_at_100();
        let read = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = claim.encode().to_vec();
            change(&mut bytes);
            let sum = crc32fast::hash(&bytes[HEAD..]).to_be_bytes();
            bytes[1..HEAD].copy_from_slice(&sum);
            Reservation::decode(&bytes)
        };
        let (stamped, whole) = (HEAD + 1 + 16 + 16 + 8 + 8, HEAD + FIXED);
        assert_eq!(read(&|_| {}), Ok(claim.clone()));
        assert_eq!(read(&|bytes| bytes.push(0)), Err(Damaged::Length(whole + 1)), "no response without an end");
        assert_eq!(read(&|bytes| bytes.truncate(whole - 1)), Err(Damaged::Length(whole - 1)));
        assert_eq!(read(&|bytes| bytes[HEAD] = 2), Err(Damaged::Field("state")));
        assert_eq!(read(&|bytes| bytes[stamped] = 2), Err(Damaged::Field("stamp")));
        assert_eq!(read(&|bytes| bytes[stamped + 8] = 1), Err(Damaged::Field("stamp")), "a stamp that is not there");
        let mut altered = claim.encode().to_vec();
        altered[HEAD] ^= 1;
        assert_eq!(Reservation::decode(&altered), Err(Damaged::Checksum));
    }

    #[test]
    fn bytes_of_version_one_are_read_for_ever() {
        let reservation = Reservation {
            state: State::Done { response: b"ok".as_slice().into() },
            write_id: WriteId([1; 16]),
            owner: Owner([2; 16]),
            fence: 3,
            started: 4,
            stamp: Some(Stamp(5)),
            lease_from_ms: 6,
            lease_until_ms: 7,
            kept_until_ms: 8,
        };
        let hex: String = reservation.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let fields = concat!(
            "01",
            "01010101010101010101010101010101",
            "02020202020202020202020202020202",
            "0000000000000003",
            "0000000000000004",
            "01",
            "0000000000000005",
            "0000000000000006",
            "0000000000000007",
            "0000000000000008",
            "6f6b",
        );
        assert_eq!(reservation.encode().len(), HEAD + FIXED + 2, "as many bytes as are allocated");
        assert_eq!(&hex[..2], "01");
        assert_eq!(&hex[10..], fields);
        assert_eq!(Reservation::decode(&[9, 0, 0]), Err(Damaged::Version(9)));
        assert_eq!(Reservation::decode(&[]), Err(Damaged::Length(0)));
    }
}
