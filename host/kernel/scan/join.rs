//! Joins the walks of several replicas: key by key, what each of them holds.

use std::collections::VecDeque;

use super::{Found, stored_order};
use crate::limit::PerReplica;
use crate::record::Encoded;
use crate::replica::Place;

/// What one replica holds of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held<T = Encoded> {
    /// No record.
    Nothing,
    /// This record, or what was asked for of it.
    Record(T),
    /// A record that the replica cannot read.
    Damaged,
}

/// A key, and what each replica holds of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined<T = Encoded> {
    /// The key's place.
    pub place: Place,
    /// For each replica that has not failed: its index and what it holds.
    pub held: PerReplica<(u8, Held<T>)>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T = Encoded> {
    /// Get the next pages of these replicas, after [`Join::after`].
    Ask(PerReplica<u8>),
    /// The next key.
    Key(Joined<T>),
    /// The end: all keys have come.
    End,
}

/// A page that does not continue where the one before it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's records are out of order")]
pub struct Disordered;

/// The joined walks of one range's replicas.
#[derive(Debug)]
pub struct Join<T = Encoded> {
    from: u64,
    walks: PerReplica<Walk<T>>,
}

#[derive(Debug)]
struct Walk<T> {
    waiting: VecDeque<Found<T>>,
    after: Option<Place>,
    pages: Pages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// There may be further pages.
    Open,
    /// All pages have come.
    Ended,
    /// The replica has failed and is left out.
    Failed,
}

impl<T> Join<T> {
    /// Walks of `replicas` replicas that begin at a token, and after a place if one is given.
    pub fn new(replicas: u8, from: u64, after: Option<&Place>) -> Self {
        let walk = |_| Walk { waiting: VecDeque::new(), after: after.cloned(), pages: Pages::Open };
        Self { from, walks: (0..replicas).map(walk).collect() }
    }

    /// What comes next. Every key comes once, in stored order, and pages are asked for only when they are needed for the next key.
    pub fn step(&mut self) -> Step<T> {
        let heads = self.walks.iter().filter_map(|walk| walk.waiting.front().map(|found| &found.place));
        let head = heads.min_by(|a, b| stored_order(a, b));
        let blocks = |walk: &Walk<T>| match (&walk.after, head) {
            (Some(after), Some(head)) => stored_order(after, head).is_lt(),
            _ => true,
        };
        if self.walks.iter().any(|walk| walk.is_starved() && blocks(walk)) {
            let starved = (0..).zip(&self.walks).filter(|(_, walk)| walk.is_starved());
            return Step::Ask(starved.map(|(index, _)| index).collect());
        }
        let Some(place) = head.cloned() else { return Step::End };
        let mut held = PerReplica::new();
        for (index, walk) in (0..).zip(&mut self.walks).filter(|(_, walk)| walk.pages != Pages::Failed) {
            held.push((index, walk.take(&place)));
        }
        Step::Key(Joined { place, held })
    }

    /// The place after which a replica's next page begins.
    pub fn after(&self, replica: u8) -> Option<&Place> {
        self.walks[usize::from(replica)].after.as_ref()
    }

    /// Adds a replica's page.
    pub fn page(&mut self, replica: u8, found: Vec<Found<T>>, next: Option<Place>) -> Result<(), Disordered> {
        let walk = &mut self.walks[usize::from(replica)];
        let mut last = walk.after.as_ref();
        for place in found.iter().map(|found| &found.place) {
            if last.is_some_and(|last| stored_order(last, place).is_ge()) || place.token < self.from {
                return Err(Disordered);
            }
            last = Some(place);
        }
        if let (Some(last), Some(next)) = (last, &next) {
            // A page that ends where it began would be asked for again and again.
            let stays = found.is_empty() && stored_order(last, next).is_eq();
            if stays || stored_order(last, next).is_gt() {
                return Err(Disordered);
            }
        }
        walk.pages = if next.is_some() { Pages::Open } else { Pages::Ended };
        walk.after = next.or(walk.after.take());
        walk.waiting.extend(found);
        Ok(())
    }

    /// A replica has failed: from the next key on, nothing of it counts.
    pub fn failed(&mut self, replica: u8) {
        let walk = &mut self.walks[usize::from(replica)];
        walk.waiting.clear();
        walk.pages = Pages::Failed;
    }

    /// Replicas that have not failed.
    pub fn taking_part(&self) -> PerReplica<u8> {
        (0..).zip(&self.walks).filter(|(_, walk)| walk.pages != Pages::Failed).map(|(index, _)| index).collect()
    }

    /// When pages are asked for: the place up to which every key has come; `None` before the first pages.
    pub fn reached(&self) -> Option<&Place> {
        let starved = self.walks.iter().filter(|walk| walk.is_starved());
        starved.map(|walk| walk.after.as_ref()).min_by(|a, b| match (a, b) {
            (Some(a), Some(b)) => stored_order(a, b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        })?
    }
}

impl<T> Walk<T> {
    fn is_starved(&self) -> bool {
        self.pages == Pages::Open && self.waiting.is_empty()
    }

    fn take(&mut self, place: &Place) -> Held<T> {
        match self.waiting.pop_front_if(|found| found.place == *place) {
            None => Held::Nothing,
            Some(Found { record: Some(record), .. }) => Held::Record(record),
            Some(Found { record: None, .. }) => Held::Damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bytes::Bytes;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;
    use crate::name::Key;
    use crate::space::Space;

    fn place(token: u64, tenant: &str, key: u8) -> Place {
        let space = Space::from_trusted(Bytes::copy_from_slice(tenant.as_bytes()));
        Place { token, space, key: Key::from_trusted(Bytes::from(vec![key])) }
    }

    fn found(place: &Place) -> Found {
        Found { place: place.clone(), record: Some(Encoded(place.key.bytes().clone())) }
    }

    #[test]
    fn pages_out_of_order_are_refused() {
        let (a, b, c) = (place(5, "t", 1), place(5, "t", 2), place(6, "t", 1));
        let join = || Join::new(1, 5, None);
        assert_eq!(join().page(0, vec![found(&b), found(&a)], None), Err(Disordered));
        assert_eq!(join().page(0, vec![found(&a), found(&a)], None), Err(Disordered));
        assert_eq!(join().page(0, vec![found(&c)], Some(b.clone())), Err(Disordered), "the next page begins earlier");
        assert_eq!(join().page(0, vec![found(&place(4, "t", 1))], None), Err(Disordered), "before the range");
        let mut begun = Join::new(1, 5, Some(&b));
        assert_eq!(begun.page(0, vec![found(&b)], None), Err(Disordered));
        assert_eq!(begun.page(0, vec![], Some(b.clone())), Err(Disordered), "it does not continue");
        assert_eq!(begun.page(0, vec![], Some(c.clone())), Ok(()));
        assert_eq!((begun.after(0), begun.reached()), (Some(&c), Some(&c)));
    }

    #[test]
    fn tenants_of_one_token_come_shorter_first() {
        let mut join = Join::new(2, 0, None);
        let (short, long) = (place(1, "z", 1), place(1, "aa", 1));
        join.page(0, vec![found(&short), found(&long)], None).unwrap();
        join.page(1, vec![found(&long)], None).unwrap();
        let mut next = || match join.step() {
            Step::Key(joined) => joined.place,
            step => panic!("{step:?}"),
        };
        assert_eq!((next(), next()), (short, long));
        assert_eq!(join.step(), Step::End);
    }

    /// A page may end beyond what was found on it: up to there the replica has nothing.
    #[test]
    fn no_page_is_asked_for_before_it_is_needed_for_the_next_key() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|token| place(token, "t", 1));
        let mut join = Join::new(2, 0, None);
        join.page(0, vec![found(&a)], Some(c.clone())).unwrap();
        join.page(1, vec![found(&a), found(&b), found(&c), found(&d)], None).unwrap();
        for (place, by_first) in [(&a, true), (&b, false), (&c, false)] {
            let Step::Key(joined) = join.step() else { panic!("{place:?}") };
            assert_eq!((&joined.place, joined.held[0].1 != Held::Nothing), (place, by_first));
        }
        assert_eq!(join.step(), Step::Ask(PerReplica::from_slice(&[0])), "it may have the next one, too");
        join.page(0, vec![], None).unwrap();
        assert!(matches!(join.step(), Step::Key(joined) if joined.place == d));
    }

    #[test]
    fn a_failed_replica_is_left_out() {
        let mut join = Join::new(2, 0, None);
        let (a, b) = (place(1, "t", 1), place(2, "t", 2));
        assert_eq!((join.step(), join.reached()), (Step::Ask(PerReplica::from_slice(&[0, 1])), None));
        join.page(0, vec![found(&a)], Some(a.clone())).unwrap();
        join.page(1, vec![found(&a), found(&b)], None).unwrap();
        assert!(matches!(join.step(), Step::Key(Joined { held, .. }) if held.len() == 2));
        assert_eq!(join.step(), Step::Ask(PerReplica::from_slice(&[0])));
        assert_eq!((join.reached(), join.taking_part().as_slice()), (Some(&a), &[0, 1][..]));
        join.failed(0);
        assert!(matches!(join.step(), Step::Key(Joined { place, held }) if place == b && held.len() == 1));
        assert_eq!((join.step(), join.taking_part().as_slice()), (Step::End, &[1][..]));
    }

    /// Token, length of the tenant's id, the id, the key.
    type Order = (u64, usize, Bytes, Bytes);

    proptest! {
        #[test]
        fn every_key_comes_once_with_what_each_has(
            sets in proptest::collection::vec(proptest::collection::btree_set((0..6u64, 0..3u8, any::<u8>()), 0..40), 1..5),
            cut in 1..7usize,
        ) {
            let tenants = ["t", "s", "long"];
            let sets: Vec<Vec<Place>> = sets
                .iter()
                .map(|set| {
                    let place = |(token, tenant, key): &(u64, u8, u8)| place(*token, tenants[usize::from(*tenant)], *key);
                    let mut places: Vec<Place> = set.iter().map(place).collect();
                    places.sort_by(stored_order);
                    places
                })
                .collect();
            let mut join = Join::new(sets.len() as u8, 0, None);
            let mut came: Vec<(Place, BTreeSet<u8>)> = Vec::new();
            loop {
                match join.step() {
                    Step::End => break,
                    Step::Ask(replicas) => for replica in replicas {
                        if let (Some(reached), Some((last, _))) = (join.reached(), came.last()) {
                            assert!(stored_order(last, reached).is_le());
                        }
                        let all = &sets[usize::from(replica)];
                        let start = join.after(replica).map_or(0, |after| all.partition_point(|place| stored_order(place, after).is_le()));
                        let page = &all[start..all.len().min(start + cut)];
                        let next = (start + cut < all.len()).then(|| page[page.len() - 1].clone());
                        join.page(replica, page.iter().map(found).collect(), next).unwrap();
                    },
                    Step::Key(Joined { place, held }) => {
                        let has = held.iter().filter(|(_, held)| *held != Held::Nothing).map(|(index, _)| *index).collect();
                        came.push((place, has));
                    }
                }
            }
            let mut expected: BTreeMap<Order, (Place, BTreeSet<u8>)> = BTreeMap::new();
            for (index, set) in (0..).zip(&sets) {
                for place in set {
                    let space = place.space.bytes();
                    let order = (place.token, space.len(), space.clone(), place.key.bytes().clone());
                    expected.entry(order).or_insert_with(|| (place.clone(), BTreeSet::new())).1.insert(index);
                }
            }
            prop_assert_eq!(came, expected.into_values().collect::<Vec<_>>());
        }
    }
}
