//! Finding the parts of a range in which something may have to be sent, by the fingerprints of its records: where all replicas have the
//! same, nothing is, and the records need not travel. What an earlier copy has left to do is little, and while the last copy lasts,
//! operations need both placements.

use futures::future::join_all;
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::placement::Tokens;
use witan_kernel::record::Fingerprint;
use witan_kernel::replica::{Place, ReplicaError};
use witan_kernel::scan::{Held, Joined, Page, Ranges, Scan, Step};

use super::Stale;
use super::range::{Walk, page};
use crate::sweep::RECORD_BYTES;

/// Bytes of the records of which a page has the fingerprints, of every replica: a node reads them in about a millisecond.
const PAGE: u32 = 256 << 10;
/// What a node reads to make fingerprints counts for this part of what is read from it: nothing of it travels.
const HASHED: u64 = 4;
/// Parts that are found in a range before the rest of it is read whole: each is asked for by itself.
const PARTS: usize = 64;
/// With fewer records between them that are level, two parts are one: reading these costs less than asking once more.
const NEAR: u64 = 8;

/// The parts of a range that are not level.
#[derive(Debug, Default)]
struct Parts {
    found: Vec<Tokens>,
    /// Records outside of them.
    level: u64,
    /// Of these, how many came since the last part.
    since: u64,
    /// A token, and how many of them have it.
    at: (u64, u64),
}

impl Parts {
    /// A record comes that is the same everywhere.
    fn level(&mut self, token: u64) {
        if self.found.last().is_some_and(|part| part.1 == token) {
            // It is in the part.
            return;
        }
        if self.at.0 != token {
            self.at = (token, 0);
        }
        self.at.1 += 1;
        self.level += 1;
        self.since += 1;
    }

    /// A record comes that is not.
    fn differs(&mut self, token: u64) {
        match self.found.last_mut() {
            Some(part) if part.1 == token || self.since < NEAR => {
                part.1 = token;
                self.level -= self.since;
            }
            _ => {
                self.found.push((token, token));
                self.level -= if self.at.0 == token { self.at.1 } else { 0 };
            }
        }
        (self.since, self.at.1) = (0, 0);
    }

    /// The rest of a range, from a token on, is to be read whole.
    fn rest(&mut self, from: u64, to: u64) {
        self.differs(from);
        if let Some(part) = self.found.last_mut() {
            part.1 = to;
        }
    }
}

impl<W: World> Walk<'_, W> {
    /// The parts of the range that have to be read whole, in order. Whatever is not certain is in one of them. All members that take part
    /// have shown to have the same of everything else, each under the epoch of the pass and in the store that it had at the beginning.
    pub(super) async fn differing(&mut self) -> Result<Vec<Tokens>, Stale> {
        let (from, to) = self.range().tokens;
        let (mut join, mut parts) = (self.join::<Fingerprint>(from), Parts::default());
        loop {
            match join.step() {
                Step::Ask(starved) => {
                    let turn = match self.rate() {
                        Some(rate) => Some(rate.turn().await),
                        None => None,
                    };
                    let bytes = turn.as_ref().map_or(PAGE, |turn| turn.page);
                    let asks =
                        starved.iter().map(|index| self.fingerprints(*index, join.after(*index).cloned(), bytes));
                    let pages = join_all(asks).await;
                    let reached = join.reached().map_or(from, |place| place.token);
                    let mut read = 0;
                    for (index, page) in starved.iter().zip(pages) {
                        let taken = match page {
                            Err(ReplicaError::StaleEpoch) => return Err(Stale),
                            Err(_) => None,
                            Ok(Page { found, next, .. }) => {
                                read += RECORD_BYTES * found.len() as u64;
                                // A page that is not the last one may have that many bytes of records, which the node has read and hashed.
                                read += u64::from(bytes) / HASHED * u64::from(next.is_some());
                                join.page(*index, found, next).ok()
                            }
                        };
                        if taken.is_none() {
                            // Reading it whole shows what is wrong.
                            parts.rest(reached, to);
                            return Ok(self.found(parts));
                        }
                    }
                    self.has_read(turn.as_ref(), read, starved.len());
                }
                Step::Key(joined) if is_level(&joined) => parts.level(joined.place.token),
                Step::Key(Joined { place, .. }) if parts.found.len() >= PARTS => {
                    parts.rest(place.token, to);
                    return Ok(self.found(parts));
                }
                Step::Key(Joined { place, .. }) => parts.differs(place.token),
                Step::End => return Ok(self.found(parts)),
            }
        }
    }

    fn found(&mut self, parts: Parts) -> Vec<Tokens> {
        self.compared(parts.level);
        parts.found
    }

    fn fingerprints(
        &self,
        index: u8,
        after: Option<Place>,
        bytes: u32,
    ) -> impl Future<Output = Result<Page<Fingerprint>, ReplicaError>> + Send + use<'_, W> {
        let (node, store) = self.store_of(index);
        let scan = Scan { after, bytes, ..self.scan(self.range().tokens) };
        let replicas = self.replicas();
        page(node, store, move || replicas.fingerprints(node, scan.clone()))
    }
}

/// Whether every replica has the same record.
fn is_level(joined: &Joined<Fingerprint>) -> bool {
    let mut held = joined.held.iter().map(|(_, held)| held);
    if Fault::CopyTakesNothingForLevel.is_on() {
        let mut held = held.filter(|held| !matches!(held, Held::Nothing));
        let first = held.next();
        return held.all(|held| Some(held) == first);
    }
    let first = held.next();
    matches!(first, Some(Held::Record(_))) && held.all(|held| Some(held) == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts, and how many records are outside of them, of records with these tokens, of which some differ.
    fn parts(records: &[(u64, bool)]) -> (Vec<Tokens>, u64) {
        let mut parts = Parts::default();
        for (token, differs) in records {
            if *differs { parts.differs(*token) } else { parts.level(*token) }
        }
        let outside = |token: u64| !parts.found.iter().any(|(from, to)| (*from..=*to).contains(&token));
        let counted = records.iter().filter(|(token, _)| outside(*token)).count() as u64;
        assert_eq!(parts.level, counted, "{records:?} {parts:?}");
        let differing = records.iter().filter(|(_, differs)| *differs);
        assert!(differing.into_iter().all(|(token, _)| !outside(*token)), "{records:?} {parts:?}");
        (parts.found, parts.level)
    }

    #[test]
    fn parts_have_what_differs_and_little_else() {
        assert_eq!(parts(&[]), (vec![], 0));
        assert_eq!(parts(&[(1, false), (2, true), (3, true), (4, false)]), (vec![(2, 3)], 2));
        let level = |from: u64, number: u64| (from..from + number).map(|token| (token, false)).collect::<Vec<_>>();
        let near = [&[(1, true)][..], &level(2, NEAR - 1), &[(50, true)]].concat();
        assert_eq!(parts(&near), (vec![(1, 50)], 0));
        let far = [&[(1, true)][..], &level(2, NEAR), &[(50, true)]].concat();
        assert_eq!(parts(&far), (vec![(1, 1), (50, 50)], NEAR));
    }

    #[test]
    fn records_with_one_token_are_in_one_part() {
        let same: Vec<(u64, bool)> = (0..40).map(|n| (7, n % 20 == 10)).collect();
        assert_eq!(parts(&same), (vec![(7, 7)], 0));
        let mixed = [&[(1, true), (2, false)][..], &same, &[(8, false)]].concat();
        assert_eq!(parts(&mixed).0.last().map(|part| part.1), Some(7));
    }

    #[test]
    fn the_rest_of_a_range_goes_to_its_end() {
        let mut all = Parts::default();
        all.rest(0, u64::MAX);
        assert_eq!(all.found, [(0, u64::MAX)]);
        let mut later = Parts::default();
        (1..=20).for_each(|token| later.level(token));
        later.rest(20, 30);
        assert_eq!((later.found, later.level), (vec![(20, 30)], 19));
    }
}
