//! Receive windows of HTTP/2: how much the client of a connection may send before anybody has read it. What has not been read is in no
//! other bound, because nobody knows yet what it is: a session that does not go on, for one, reads nothing.

/// Bytes of all windows beyond the least: an eighth of a coordinator's memory that has one GiB.
pub(crate) const ALL: usize = 128 << 20;
/// What one address may have of that, so that one client leaves windows for others. Addresses that may have any number of connections may
/// have all of it.
pub(crate) const OF_ADDRESS: usize = ALL / 2;
/// The least window: HTTP/2 gives every connection that many bytes before the server can say anything. With a delay of 10 ms, 6 MB arrive
/// in a second.
pub(crate) const LEAST: usize = (1 << 16) - 1;
/// A connection gets this part of what is left: the first few dozen get megabytes, with which 20 MB arrive in a second over a line with a
/// delay of 100 ms, and there is something for the next one for long.
pub(crate) const PART: usize = 32;
/// The part of a connection's window that one stream may fill, so that one whose call does not read leaves room for others.
const STREAM_PART: usize = 4;
/// The least window of a stream: half of the least window of a connection. With a delay of 50 ms, a value of 10 MiB arrives within the time
/// that a message has.
const STREAM_LEAST: usize = LEAST / 2;

/// What the next window has beyond the least, if all others have `taken`, and those of its address `own`, if that has a bound.
pub(crate) fn beyond_least(taken: usize, own: Option<usize>) -> usize {
    let of_all = ALL.saturating_sub(taken) / PART;
    let of_own = own.map_or(of_all, |own| OF_ADDRESS.saturating_sub(own) / PART);
    // A little more than the least is not worth counting.
    Some(of_all.min(of_own)).filter(|beyond| *beyond >= LEAST).unwrap_or_default()
}

/// The window of each stream of a connection with this window.
pub(crate) fn of_stream(connection: usize) -> usize {
    (connection / STREAM_PART).max(STREAM_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_get_smaller_and_all_together_are_bounded() {
        let mut taken = 0;
        let mut shares = Vec::new();
        for _ in 0..1000 {
            shares.push(beyond_least(taken, None));
            taken += shares[shares.len() - 1];
        }
        assert_eq!((shares[0], shares[999]), (4 << 20, 0));
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert!(shares[99] > LEAST, "a hundred connections have more than the least");
        assert!(taken <= ALL);
    }

    #[test]
    fn an_address_leaves_windows_for_others() {
        let mut own = 0;
        (0..1000).for_each(|_| own += beyond_least(own, Some(own)));
        assert!(own <= OF_ADDRESS, "{own}");
        assert!(beyond_least(own, Some(0)) >= 1 << 20, "another address");
        assert!(beyond_least(own, None) >= 2 << 20, "one without a bound");
    }

    #[test]
    fn a_stream_leaves_room_for_others() {
        assert_eq!([4 << 20, LEAST].map(of_stream), [1 << 20, LEAST / 2]);
    }
}
