//! The records of one range.

use std::pin::Pin;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep};
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::placement::leader::{is_copied, quorum, quorum_of, sources_wanted};
use witan_kernel::placement::{Both, Tokens};
use witan_kernel::port::Clock;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::{Place, ReplicaError};
use witan_kernel::scan::{Held, Join, Joined, Page, Ranges, Scan, Step, Unmergeable, difference_kept};

use super::merge::merge;
use super::swap::Goes;
use super::{Copied, Need, Pass, Stale};
use crate::moves::Rate;
use crate::moves::rate::{PAGE, Turn};
use crate::sweep::RECORD_BYTES;
use crate::sweep::fresh::FRESH;
use witan_kernel::sync::lock;

/// Merges of one range that are under way: with eight ranges at a time as many as a sweep has in four.
const UNDER_WAY: usize = 64;
/// Bytes of merges of one range that are under way, unless one merge alone is larger.
const BYTES: usize = 2 << 20;
/// Attempts at reading a page before its replica is left out.
const TRIES: u32 = 3;
/// How often pages are read again that have become too old, without any record sent in between.
const READ_AGAIN: u32 = 3;
/// Pause before the second attempt; twice as long before the third.
const PAUSE: Duration = Duration::from_millis(200);

/// A record that was sent.
struct Sent {
    to: To,
    bytes: usize,
    /// How it ended at each node.
    ended: Vec<(NodeId, Result<(), ReplicaError>)>,
}

/// Where a record was sent.
enum To {
    /// To one of the walk's nodes.
    Member(usize),
    /// To the replicas of its coming place, of which this number were to be sent it. It was read at this place.
    Coming(usize, Place, Encoded),
}

/// A node, as it takes part in the walk of a range.
struct Member<'a> {
    node: &'a NodeId,
    /// The store that was there when the pass began.
    store: Option<StoreId>,
    /// It may be read for what was acknowledged.
    is_source: bool,
    /// It is to have everything, and its acknowledgements count.
    is_target: bool,
    /// Why it does not count any longer, as a source or a target.
    failed: Option<String>,
}

/// The walk of a range.
pub(super) struct Walk<'a, W: World> {
    pass: &'a Pass<'a, W>,
    range: &'a Both,
    members: Vec<Member<'a>>,
    /// The part of the range that is being walked.
    part: Tokens,
    join: Join,
    /// For each member, when its present page was asked for.
    read: Vec<Instant>,
    /// The last record that was compared.
    at: Option<Place>,
    /// How often it was read again since.
    again: u32,
    under_way: FuturesUnordered<Pin<Box<dyn Future<Output = Sent> + Send + 'a>>>,
    bytes: usize,
    /// Nothing is sent.
    looks: bool,
    /// Why some record is not on enough of its coming replicas.
    missed: Option<String>,
    copied: Copied,
}

impl<'a, W: World> Walk<'a, W> {
    pub(super) fn new(pass: &'a Pass<'a, W>, range: &'a Both, looks: bool) -> Self {
        let also = range.new.iter().filter(|node| !range.old.contains(node));
        let only = pass.only_source(range);
        let members: Vec<Member<'a>> = range
            .old
            .iter()
            .chain(also)
            .map(|node| {
                let (is_old, is_new) = (range.old.contains(node), range.new.contains(node));
                let source = pass.sources.get(node).filter(|_| is_old && only.is_none_or(|only| only == node));
                let target = pass.targets.get(node).filter(|_| is_new && !(is_old && only.is_some()));
                let (is_source, is_target) = (source.is_some(), target.is_some());
                Member { node, store: target.or(source).copied(), is_source, is_target, failed: None }
            })
            .collect();
        let (read, under_way) = (vec![Instant::now(); members.len()], FuturesUnordered::new());
        let part = range.tokens;
        Self {
            pass,
            range,
            join: join_of(&members, part.0),
            members,
            part,
            read,
            at: None,
            again: 0,
            under_way,
            bytes: 0,
            looks,
            missed: None,
            copied: Copied::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<(&'a Both, Copied), Stale> {
        let parts = if self.pass.compares { self.differing().await? } else { vec![self.range.tokens] };
        for part in parts {
            let taking_part = self.join.taking_part();
            (self.part, self.join, self.at) = (part, join_of(&self.members, part.0), None);
            // Who could not be read in an earlier part is not read in the others.
            (0..self.members.len() as u8)
                .filter(|index| !taking_part.contains(index))
                .for_each(|index| self.join.failed(index));
            if !self.walk().await? {
                break;
            }
        }
        self.settle(0).await?;
        self.copied.lacking = self.copied.lacking.take().or_else(|| self.lacks());
        Ok((self.range, self.copied))
    }

    /// Walks the part. False if that was given up.
    async fn walk(&mut self) -> Result<bool, Stale> {
        loop {
            match self.join.step() {
                Step::Ask(starved) => {
                    self.settle(0).await?;
                    let turn = match self.pass.rate {
                        Some(rate) => Some(rate.turn().await),
                        None => None,
                    };
                    if self.oldest(&starved).elapsed() >= FRESH / 2 {
                        // They would be too old soon.
                        self.read_again();
                        self.has_read(turn.as_ref(), 0, starved.len());
                    } else {
                        self.turn_pages(&starved, turn.as_ref()).await?;
                    }
                }
                Step::Key(_) if self.oldest(&[]).elapsed() >= FRESH => {
                    self.again += 1;
                    if self.again > READ_AGAIN {
                        self.copied.lacking =
                            Some("pages take so long that they are too old once they are there".to_owned());
                        return Ok(false);
                    }
                    self.read_again();
                }
                Step::Key(joined) => {
                    let place = joined.place.clone();
                    self.record(joined).await?;
                    (self.at, self.again) = (Some(place), 0);
                    if self.copied.fault.is_some() || self.copied.lacking.is_some() && self.pass.swap.is_some() {
                        return Ok(false);
                    }
                }
                Step::End => return Ok(true),
            }
        }
    }

    pub(super) fn range(&self) -> &'a Both {
        self.range
    }

    pub(super) fn rate(&self) -> Option<&'a Rate<'a, W>> {
        self.pass.rate
    }

    /// A walk of all members that take part, from a token on.
    pub(super) fn join<T>(&self, from: u64) -> Join<T> {
        join_of(&self.members, from)
    }

    /// A member's node, and the store that it had when the pass began.
    pub(super) fn store_of(&self, index: u8) -> (&'a NodeId, Option<StoreId>) {
        let member = &self.members[usize::from(index)];
        (member.node, member.store)
    }

    /// These records are the same everywhere.
    pub(super) fn compared(&mut self, records: u64) {
        self.copied.records += records;
    }

    /// When the first of the pages was read that are there; `but`: those of these members.
    fn oldest(&self, but: &[u8]) -> Instant {
        let taking_part = self.join.taking_part();
        let there = taking_part.iter().filter(|index| !but.contains(index));
        there.map(|index| self.read[usize::from(*index)]).min().unwrap_or_else(Instant::now)
    }

    /// Drops all pages, and goes on after the last record that was compared.
    fn read_again(&mut self) {
        let (taking_part, members) = (self.join.taking_part(), self.members.len() as u8);
        self.join = Join::new(members, self.part.0, self.at.as_ref());
        (0..members).filter(|index| !taking_part.contains(index)).for_each(|index| self.join.failed(index));
        self.read.fill(Instant::now());
    }

    async fn turn_pages(&mut self, starved: &[u8], turn: Option<&Turn>) -> Result<(), Stale> {
        let now = Instant::now();
        starved.iter().for_each(|index| self.read[usize::from(*index)] = now);
        let bytes = turn.map_or(PAGE, |turn| turn.page);
        let asks: Vec<_> = starved.iter().map(|index| self.page(*index, bytes)).collect();
        let pages = join_all(asks).await;
        let mut read = 0;
        for (index, page) in starved.iter().zip(pages) {
            let taken = match page {
                Err(ReplicaError::StaleEpoch) => return Err(Stale),
                Err(error) => Err(error.to_string()),
                Ok(page) => {
                    let records = page.found.iter().filter_map(|found| found.record.as_ref());
                    read += records.map(|record| record.0.len() as u64 + RECORD_BYTES).sum::<u64>();
                    self.join.page(*index, page.found, page.next).map_err(|error| error.to_string())
                }
            };
            if let Err(why) = taken {
                self.join.failed(*index);
                let member = &mut self.members[usize::from(*index)];
                tracing::debug!(node = %member.node, %why, "a node cannot be read for a placement change");
                // It may still be sent everything.
                member.is_source = false;
                if !member.is_target {
                    member.failed.get_or_insert(why);
                }
            }
        }
        self.has_read(turn, read, starved.len());
        Ok(())
    }

    pub(super) fn has_read(&self, turn: Option<&Turn>, bytes: u64, replicas: usize) {
        if let (Some(rate), Some(turn)) = (self.pass.rate, turn) {
            rate.read(turn, bytes, replicas);
        }
    }

    fn page(&self, index: u8, bytes: u32) -> impl Future<Output = Result<Page, ReplicaError>> + Send + use<'a, W> {
        let (node, store) = self.store_of(index);
        let scan = Scan { after: self.join.after(index).cloned(), bytes, ..self.scan(self.part) };
        let replicas = self.replicas();
        page(node, store, move || replicas.scan(node, scan.clone()))
    }

    /// A page of the rows that are copied.
    pub(super) fn scan(&self, (from, to): Tokens) -> Scan {
        // What is copied first may come from anybody.
        let epoch = if matches!(self.pass.need, Need::Nothing) { 0 } else { self.pass.epoch };
        Scan { space: Some(self.pass.space.clone()), epoch, ..Scan::between(from, to) }
    }

    pub(super) fn replicas(&self) -> &'a W::Replicas {
        &self.pass.coordinator.ports().replicas
    }

    /// Merges what all replicas have of a key, and sends it to those that are to have it and lack a part.
    async fn record(&mut self, joined: Joined) -> Result<(), Stale> {
        let Joined { place, held } = joined;
        self.copied.records += 1;
        let mut have: Vec<(u8, Option<Encoded>)> = Vec::with_capacity(held.len());
        for (index, held) in held {
            match held {
                Held::Nothing => have.push((index, None)),
                Held::Record(record) => have.push((index, Some(record))),
                Held::Damaged => self.unreadable(index, &mut have),
            }
        }
        let now = self.pass.coordinator.ports().clock.wall_micros();
        let (record, lacking) = loop {
            // What replicas remember of writes counts, too: an acknowledged write may be remembered by fewer than a quorum of the new ones.
            match difference_kept(&have, now) {
                Ok(Some(found)) => break (found.record, found.lacking.to_vec()),
                Ok(None) => match have.iter().find_map(|(_, held)| held.clone()) {
                    Some(record) => break (record, Vec::new()),
                    None => return Ok(()),
                },
                Err(Unmergeable::Damaged(index, _)) => {
                    have.retain(|(known, _)| *known != index);
                    self.unreadable(index, &mut have);
                }
                Err(error @ Unmergeable::WrongMode(_)) => {
                    tracing::error!(tenant = %place.space, key = %place.key, %error, "a record cannot be moved");
                    self.copied.lacking.get_or_insert(format!("a record cannot be merged: {error}"));
                    return Ok(());
                }
            }
        };
        if Fault::MoveSkipsTombstones.is_on() && is_deleted(&record) {
            return Ok(());
        }
        if self.pass.swap.is_some() {
            return self.send_anew(place, record).await;
        }
        let has = |index: usize| have.iter().any(|(known, _)| usize::from(*known) == index);
        let lacks = |index: usize| !has(index) || lacking.iter().any(|known| usize::from(*known) == index);
        for index in (0..self.members.len()).filter(|index| lacks(*index)) {
            self.send(index, &place, &record).await?;
        }
        Ok(())
    }

    /// A member cannot read a record: it counts neither as a source nor as one that has everything. It is sent nothing further in this
    /// range: a merge in place of what it has lost would make it look whole.
    fn unreadable(&mut self, index: u8, have: &mut Vec<(u8, Option<Encoded>)>) {
        let member = &mut self.members[usize::from(index)];
        if member.is_source {
            let (node, tenant) = (member.node, self.pass.tenant);
            tracing::warn!(%node, %tenant, "a record cannot be read, so that the node is no source of its range");
        }
        member.is_source = false;
        member.failed.get_or_insert_with(|| "a record cannot be read".to_owned());
        have.push((index, None));
    }

    async fn send(&mut self, index: usize, place: &Place, record: &Encoded) -> Result<(), Stale> {
        let member = &self.members[index];
        if !member.is_target || member.failed.is_some() {
            return Ok(());
        }
        let bytes = record.0.len();
        self.make_room(bytes).await?;
        let (pass, node) = (self.pass, self.members[index].node);
        let (place, record, read) = (place.clone(), record.clone(), self.oldest(&[]));
        self.under_way.push(Box::pin(async move {
            let ended = merge(pass.coordinator, node, &place, &record, pass.epoch, read).await;
            Sent { to: To::Member(index), bytes, ended: vec![(node.clone(), ended)] }
        }));
        Ok(())
    }

    async fn make_room(&mut self, bytes: usize) -> Result<(), Stale> {
        while !self.under_way.is_empty() && (self.under_way.len() >= UNDER_WAY || self.bytes + bytes > BYTES) {
            let most = self.under_way.len() - 1;
            self.settle(most).await?;
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Sends a record to all replicas of its place in the coming generation.
    async fn send_anew(&mut self, place: Place, record: Encoded) -> Result<(), Stale> {
        let pass = self.pass;
        let Some(swap) = &pass.swap else { return Ok(()) };
        if self.looks {
            lock(&swap.read).add(&place, &record);
            return Ok(());
        }
        let (coming, nodes) = match swap.goes(pass.tenant, &place.key).await {
            Goes::To(coming, nodes) => (coming, nodes),
            Goes::Unknown => {
                let generation = swap.to.generation;
                let why = format!("the routing hook of generation {generation} is not known to this coordinator yet");
                self.copied.lacking.get_or_insert(why);
                return Ok(());
            }
            Goes::Fault(why) => {
                self.copied.fault = Some(why);
                return Ok(());
            }
        };
        let coming = if Fault::SwapLeftoverMisplaced.is_on() && matches!(pass.need, Need::HandOver) {
            Place { token: place.token, ..coming }
        } else {
            coming
        };
        let bytes = record.0.len();
        self.make_room(bytes).await?;
        let (read, all) = (self.oldest(&[]), nodes.len());
        self.under_way.push(Box::pin(async move {
            // One whose store is not the one on record, or not the one that was prepared, has nothing that counts.
            let counts = nodes.into_iter().filter(|node| pass.targets.contains_key(node));
            let ended = join_all(counts.map(async |node| {
                let ended = merge(pass.coordinator, &node, &coming, &record, pass.epoch, read).await;
                (node, ended)
            }));
            let ended = ended.await;
            Sent { to: To::Coming(all, place, record), bytes, ended }
        }));
        Ok(())
    }

    /// Notes what a record's coming replicas have answered.
    fn came(&mut self, all: usize, place: &Place, record: &Encoded, ended: &[(NodeId, Result<(), ReplicaError>)]) {
        let has = ended.iter().filter(|(_, ended)| ended.is_ok()).count();
        let needed = if matches!(self.pass.need, Need::HandOver) { quorum_of(all) } else { all };
        if let Some(swap) = &self.pass.swap {
            let mut known = lock(&swap.known);
            if has == all { known.add(place, record) } else { known.lacks(place.token) }
        }
        if has < needed {
            let why = ended.iter().find_map(|(node, ended)| Some(format!("node {node}: {}", ended.as_ref().err()?)));
            let why = why.unwrap_or_else(|| "a node cannot be used".to_owned());
            self.missed.get_or_insert(why);
        }
    }

    /// Waits until at most this number of merges is under way.
    async fn settle(&mut self, most: usize) -> Result<(), Stale> {
        while self.under_way.len() > most {
            let Some(Sent { to, bytes, ended }) = self.under_way.next().await else { break };
            self.bytes -= bytes;
            for (_, ended) in &ended {
                match (ended, &to) {
                    (Ok(()), _) => {
                        self.copied.sent += 1;
                        self.copied.bytes += bytes as u64;
                        self.pass.metrics.moved_records.inc();
                        self.pass.metrics.moved_bytes.inc_by(bytes as u64);
                    }
                    (Err(ReplicaError::StaleEpoch), _) => return Err(Stale),
                    (Err(error), To::Member(index)) => {
                        self.members[*index].failed.get_or_insert(error.to_string());
                    }
                    (Err(_), To::Coming(..)) => {}
                }
            }
            if let To::Coming(all, place, record) = to {
                self.came(all, &place, &record, &ended);
            }
        }
        Ok(())
    }

    /// What was not achieved that the pass needs. A member counts only if its store is still the one that was there at the beginning.
    fn lacks(&self) -> Option<String> {
        let replicas = &self.pass.coordinator.ports().replicas;
        let is_steady = |member: &&Member<'_>| {
            let standing = replicas.standing(member.node);
            standing.is_some_and(|now| now.is_whole() && Some(now.store) == member.store)
        };
        let read = self.members.iter().filter(|member| member.is_source).filter(is_steady).count();
        let counts = |member: &&Member<'_>| member.is_target && member.failed.is_none() && is_steady(member);
        let has = |node: &NodeId| self.members.iter().filter(counts).any(|member| member.node == node);
        let wanted = match self.pass.need {
            Need::Nothing => return self.members.iter().find_map(Self::why).or_else(|| self.missed.clone()),
            Need::Everything { lost } => sources_wanted(&self.range.old, |node| lost.contains(node)),
            Need::HandOver => self.range.old.len(),
        };
        if read < wanted {
            return Some(self.because(format!("{wanted} replicas of before must be read to the end, and {read} were")));
        }
        if self.pass.swap.is_some() {
            return self.missed.as_ref().map(|why| format!("too few replicas of after have everything ({why})"));
        }
        let is_enough = match self.pass.need {
            Need::HandOver => self.range.new.iter().filter(|node| has(node)).count() >= quorum(&self.range.new),
            _ => is_copied(self.range, has),
        };
        (!is_enough).then(|| self.because("too few replicas of after have everything".to_owned()))
    }

    fn why(member: &Member<'_>) -> Option<String> {
        member.failed.as_ref().map(|why| format!("node {}: {why}", member.node))
    }

    fn because(&self, what: String) -> String {
        let why: Vec<String> = self.members.iter().filter_map(Self::why).collect();
        let absent = self.members.iter().filter(|member| !member.is_source && !member.is_target);
        let absent: Vec<String> = absent.map(|member| format!("node {} did not take part", member.node)).collect();
        let all: Vec<String> = why.into_iter().chain(absent).collect();
        if all.is_empty() { what } else { format!("{what} ({})", all.join("; ")) }
    }
}

/// A walk of the members that take part, from a token on: at most five replicas before, and five after.
fn join_of<T>(members: &[Member<'_>], from: u64) -> Join<T> {
    let mut join = Join::new(members.len() as u8, from, None);
    for (index, member) in (0..).zip(members) {
        if !member.is_source && !member.is_target {
            join.failed(index);
        }
    }
    join
}

/// A page of a node, if it still has this store.
pub(super) async fn page<T, F: Future<Output = Result<Page<T>, ReplicaError>>>(
    node: &NodeId,
    store: Option<StoreId>,
    ask: impl Fn() -> F,
) -> Result<Page<T>, ReplicaError> {
    let mut tries = 0;
    loop {
        let error = match ask().await {
            Ok(page) if Some(page.store) == store => return Ok(page),
            Ok(_) => return Err(ReplicaError::Incomplete(node.clone())),
            Err(error) => error,
        };
        tries += 1;
        if tries >= TRIES || matches!(error, ReplicaError::NotSent(_) | ReplicaError::StaleEpoch) {
            return Err(error);
        }
        sleep(PAUSE * tries).await;
    }
}

/// True for a record of a key that was deleted.
fn is_deleted(record: &Encoded) -> bool {
    match record.decode() {
        Ok(Record::Register(register)) => register.value.is_none(),
        Ok(Record::Siblings(siblings)) => siblings.is_deleted(),
        Err(_) => false,
    }
}
