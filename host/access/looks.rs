//! Look-ups of unknown tokens in the database: a few, of which no peer address may have all. A flood of invented tokens barely loads the
//! database, and does not keep a token out that was just created elsewhere.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, SemaphorePermit};
use witan_net::unit;

/// Look-ups a second: a token is known within half a second without one, so that few are needed.
const A_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("twenty is not zero");
/// Most at a time: if the database hangs, only a few calls wait.
const AT_A_TIME: usize = 8;
/// Shares that peer addresses are assigned to by hash. Two in one share have half of all together, which is rare with this number; they
/// take some 30 KB.
const SHARES: usize = 256;

/// The look-ups that may be made.
pub(super) struct Looks {
    all: Share,
    of_addresses: Vec<Share>,
    /// So that nobody can choose an address with the share of somebody else's.
    hash: RandomState,
}

struct Share {
    rate: DefaultDirectRateLimiter,
    places: Semaphore,
}

/// A look-up under way; its places are given back when it is dropped.
pub(super) struct Look<'a> {
    _own: SemaphorePermit<'a>,
    _all: SemaphorePermit<'a>,
}

impl Share {
    fn new(a_second: NonZeroU32, at_a_time: usize) -> Self {
        Self { rate: RateLimiter::direct(Quota::per_second(a_second)), places: Semaphore::new(at_a_time) }
    }

    fn take(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.places.try_acquire().ok()?;
        self.rate.check().is_ok().then_some(place)
    }
}

impl Looks {
    pub(super) fn new() -> Self {
        let half = NonZeroU32::new(A_SECOND.get() / 2).unwrap_or(A_SECOND);
        let of_addresses = (0..SHARES).map(|_| Share::new(half, AT_A_TIME / 2)).collect();
        Self { all: Share::new(A_SECOND, AT_A_TIME), of_addresses, hash: RandomState::new() }
    }

    /// Permission for one look-up for a peer, unless too many were made lately or are under way.
    pub(super) fn take(&self, peer: Option<IpAddr>) -> Option<Look<'_>> {
        let share = self.hash.hash_one(peer.map(unit)) as usize % SHARES;
        // Its own share first: what is refused here takes nothing from others.
        let own = self.of_addresses[share].take()?;
        let all = self.all.take()?;
        Some(Look { _own: own, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two addresses with shares of their own.
    fn two(looks: &Looks) -> [Option<IpAddr>; 2] {
        let share = |peer: Option<IpAddr>| looks.hash.hash_one(peer.map(unit)) as usize % SHARES;
        let first = Some(IpAddr::from([10, 0, 0, 1]));
        let other = (2..=255).map(|n| Some(IpAddr::from([10, 0, 0, n]))).find(|other| share(*other) != share(first));
        [first, other.expect("254 addresses are not all in one of 256 shares")]
    }

    #[tokio::test]
    async fn one_address_leaves_room_for_others() {
        let looks = Looks::new();
        let [flood, other] = two(&looks);
        let under_way: Vec<_> = std::iter::from_fn(|| looks.take(flood)).collect();
        assert_eq!(under_way.len(), AT_A_TIME / 2);
        assert!(looks.take(other).is_some(), "there is a place for another");
        drop(under_way);

        // One after the other, as fast as they come.
        let looks = Looks::new();
        let [flood, other] = two(&looks);
        for _ in 0..1000 {
            drop(looks.take(flood));
        }
        assert!(looks.take(other).is_some(), "and it comes to its turn");
    }

    #[tokio::test]
    async fn all_together_are_bounded() {
        let looks = Looks::new();
        let addresses = (0..=255).map(|n| Some(IpAddr::from([10, 0, 0, n])));
        let under_way: Vec<_> = addresses.filter_map(|peer| looks.take(peer)).collect();
        assert_eq!(under_way.len(), AT_A_TIME);
        assert!(looks.take(None).is_none());
    }

    #[tokio::test]
    async fn addresses_of_one_site_have_one_share() {
        let looks = Looks::new();
        let of_site = |n| Some(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]));
        let under_way: Vec<_> = (0..1000).filter_map(|n| looks.take(of_site(n))).collect();
        assert_eq!(under_way.len(), AT_A_TIME / 2);
    }
}
