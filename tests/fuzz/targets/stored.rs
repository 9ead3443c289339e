//! Bytes as what is stored, or given to operators, besides records: the cursors of repair and the reservations of idempotency keys.

use bytes::Bytes;
use witan_kernel::idempotency::{Reservation, State};
use witan_kernel::scan::{from_cursor, to_cursor};

use crate::Seen;

/// An input is a cursor.
pub(super) fn cursor(input: &[u8]) -> Seen {
    let bytes = Bytes::copy_from_slice(input);
    match from_cursor(&bytes) {
        None => Seen::of((0, input.len().min(12), input.first() == Some(&1))),
        Some(place) => {
            assert_eq!(to_cursor(&place), bytes, "the cursor has another encoding");
            Seen::of((1, place.space.bytes().len().min(3), place.key.bytes().len().min(3)))
        }
    }
}

/// An input is a reservation without its version and checksum.
pub(super) fn reservation(input: &[u8]) -> Seen {
    let _ = Reservation::decode(input);
    let whole = [&[1][..], &crc32fast::hash(input).to_be_bytes(), input].concat();
    match Reservation::decode(&whole) {
        Err(why) => Seen::of((0, why.to_string().chars().filter(|c| !c.is_ascii_digit()).collect::<String>())),
        Ok(reservation) => {
            assert_eq!(reservation.encode(), whole, "the reservation has another encoding");
            for now in [0, reservation.lease_from_ms, reservation.kept_until_ms, u64::MAX] {
                assert!(reservation.lease_left_ms(now) <= reservation.lease_until_ms);
            }
            Seen::of((1, reservation.state == State::InProgress, reservation.stamp.is_some(), input.len().min(90)))
        }
    }
}
