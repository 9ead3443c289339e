//! Lists the keys of a tenant, a page at a time: walks a quorum of each range's replicas side by side and leaves out deleted keys.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use witan_kernel::failure::Failure;
use witan_kernel::limit::{LONGEST_DEADLINE, PerReplica};
use witan_kernel::name::{Key, NodeId, TenantId};
use witan_kernel::port::{Clock, Replicas};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::Place;
use witan_kernel::ring::ReplicaRange;
use witan_kernel::scan::{Held, Join, Joined, Page, Ranges, Scan, Step, merged};
use witan_kernel::tenant::Level;

use super::{Coordinator, World};

/// A page stops after 1/SHARE of its deadline, provided it has made progress; the rest is left for sending the answer.
const SHARE: u32 = 2;

/// A request for a page of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// Only keys with this prefix.
    pub prefix: Bytes,
    /// The position at which to start.
    pub from: Resume,
    /// Most keys on the page; at least 1.
    pub limit: u32,
    /// When the request arrived, in microseconds of the coordinator's monotonic clock; `None`: now.
    pub arrived: Option<u64>,
    /// How long after its arrival the client waits; `None`: the coordinator's default for reads.
    pub timeout: Option<Duration>,
}

/// A position at which a listing resumes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resume {
    /// The token.
    pub token: u64,
    /// The last key of that token that is done; `None`: none is.
    pub after: Option<Key>,
}

/// A page of keys, in the order of their tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeysPage {
    /// Keys that have a value.
    pub keys: Vec<ListedKey>,
    /// Where the next page starts; `None` on the last one. A page can be short, even empty, without being the last.
    pub next: Option<Resume>,
}

/// A key that has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKey {
    /// The key.
    pub key: Key,
    /// True when it has live values that differ.
    pub siblings: bool,
}

impl<W: World> Coordinator<W> {
    /// Lists keys. A key that exists during the whole listing is listed once; one written or deleted meanwhile may or may not be listed.
    ///
    /// Only a few pages are read at a time, since each takes the nodes more work than any operation.
    ///
    /// # Errors
    /// A quorum of some range's replicas cannot be read, or too many pages are being read, of the tenant or of all.
    pub async fn list_keys(self: &Arc<Self>, request: KeysRequest) -> Result<KeysPage, Failure> {
        let Some(_page) = self.scans.admit(&request.tenant, 1) else {
            self.metrics.scans_refused.inc();
            return Err(self.overloaded());
        };
        let timeout = request.timeout.unwrap_or(self.timeouts.load().read).min(LONGEST_DEADLINE);
        let arrived = self.arrival(request.arrived);
        let tenant = self.tenant(&request.tenant).await?;
        let (ring, factor) = (self.ring(), tenant.replication_factor);
        if ring.len() < usize::from(factor) {
            return Err(Failure::TooFewNodes { wanted: factor, nodes: ring.len() });
        }
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        let listing = Listing {
            coordinator: self,
            until: arrived.saturating_add(micros / u64::from(SHARE)),
            deadline: arrived.saturating_add(micros),
            required: Level::Quorum.required(factor),
            at: request.from.clone(),
            begun_at: request.from.clone(),
            request,
            page: KeysPage::default(),
            failed: Vec::new(),
        };
        listing.run(&ring.replica_ranges(&[factor])).await
    }
}

/// A page being filled.
struct Listing<'a, W: World> {
    coordinator: &'a Coordinator<W>,
    request: KeysRequest,
    /// Monotonic microseconds at which the page ends if it has made progress.
    until: u64,
    /// Monotonic microseconds at which the client stops waiting.
    deadline: u64,
    required: u8,
    /// The position reached: everything before it is done.
    at: Resume,
    begun_at: Resume,
    page: KeysPage,
    /// Nodes that have failed, and why. They are not asked again for this page.
    failed: Vec<(NodeId, String)>,
}

/// How the walk of a range ended.
enum Walked {
    /// The range is done.
    Whole,
    /// The page is full, or its time is up.
    Enough,
    /// A replica failed: try again with others.
    Again,
}

impl<W: World> Listing<'_, W> {
    async fn run(mut self, ranges: &[ReplicaRange]) -> Result<KeysPage, Failure> {
        let from = self.request.from.token;
        for range in ranges.iter().filter(|range| range.to >= from) {
            if self.at.token < range.from {
                self.at = Resume { token: range.from, after: None };
            }
            if self.is_over() {
                return Ok(self.with_next());
            }
            loop {
                match self.walk(range).await? {
                    Walked::Whole => break,
                    Walked::Enough => return Ok(self.with_next()),
                    Walked::Again => {}
                }
            }
        }
        Ok(self.page)
    }

    fn with_next(self) -> KeysPage {
        KeysPage { next: Some(self.at), ..self.page }
    }

    /// True when the page should end here. A page that has made no progress goes on until its deadline.
    fn is_over(&self) -> bool {
        let full = self.page.keys.len() >= self.request.limit as usize;
        full || (self.at != self.begun_at && self.coordinator.ports.clock.monotonic_micros() >= self.until)
    }

    async fn walk(&mut self, range: &ReplicaRange) -> Result<Walked, Failure> {
        let nodes = self.quorum(range)?;
        let after = self.at.after.clone().map(|key| self.place(self.at.token, key));
        let mut join = Join::new(self.required, self.at.token, after.as_ref());
        // Bits of the replicas that have answered.
        let mut answered = 0u16;
        loop {
            match join.step() {
                Step::End => return Ok(Walked::Whole),
                Step::Key(joined) => {
                    self.key(joined)?;
                    if self.is_over() {
                        return Ok(Walked::Enough);
                    }
                }
                Step::Ask(starved) => {
                    if let Some(reached) = join.reached() {
                        self.come_to(reached);
                    }
                    if self.is_over() {
                        return Ok(Walked::Enough);
                    }
                    if self.coordinator.ports.clock.monotonic_micros() >= self.deadline {
                        return Err(self.too_late(answered));
                    }
                    answered |= starved.iter().fold(0, |mask, replica| mask | 1 << replica);
                    if !self.turn_page(&mut join, range, &nodes, &starved).await {
                        return Ok(Walked::Again);
                    }
                }
            }
        }
    }

    fn too_late(&self, answered: u16) -> Failure {
        Failure::Deadline { required: self.required, received: answered.count_ones() as u8 }
    }

    /// A quorum of a range's replicas: the fastest whole ones that have not failed.
    fn quorum(&self, range: &ReplicaRange) -> Result<PerReplica<NodeId>, Failure> {
        let replicas = &self.coordinator.ports.replicas;
        let mut causes: Vec<String> = self.failed.iter().map(|(node, why)| format!("node {node}: {why}")).collect();
        let mut nodes: PerReplica<&NodeId> = PerReplica::new();
        for node in range.replicas.iter().filter(|node| self.failed.iter().all(|(failed, _)| failed != *node)) {
            match replicas.standing(node) {
                Some(standing) if standing.is_whole() => nodes.push(node),
                Some(_) => causes.push(format!("node {node} has another store than before")),
                None => causes.push(format!("node {node} cannot be reached")),
            }
        }
        if nodes.len() < usize::from(self.required) {
            let received = nodes.len() as u8;
            return Err(Failure::QuorumNotReached { required: self.required, received, causes });
        }
        nodes.sort_by_key(|node| {
            let state = replicas.state(node);
            (!state.reachable, state.latency_p50_us)
        });
        Ok(nodes.into_iter().take(usize::from(self.required)).cloned().collect())
    }

    /// Gets the next pages. False when a node did not answer.
    async fn turn_page(&mut self, join: &mut Join, range: &ReplicaRange, nodes: &[NodeId], starved: &[u8]) -> bool {
        let left = (self.request.limit as usize).saturating_sub(self.page.keys.len());
        let asks = starved.iter().map(|replica| {
            let scan = Scan {
                tenant: Some(self.request.tenant.clone()),
                prefix: self.request.prefix.clone(),
                after: join.after(*replica).cloned(),
                abridged: true,
                records: u32::try_from(left).unwrap_or(u32::MAX).max(1),
                ..Scan::between(self.at.token.max(range.from), range.to)
            };
            self.page_of(&nodes[usize::from(*replica)], scan)
        });
        let pages: Vec<Result<Page, String>> = join_all(asks).await;
        let mut all = true;
        for (replica, page) in starved.iter().zip(pages) {
            let taken =
                page.and_then(|page| join.page(*replica, page.found, page.next).map_err(|error| error.to_string()));
            if let Err(why) = taken {
                self.failed.push((nodes[usize::from(*replica)].clone(), why));
                all = false;
            }
        }
        all
    }

    async fn page_of(&self, node: &NodeId, scan: Scan) -> Result<Page, String> {
        let replicas = &self.coordinator.ports.replicas;
        let left = self.deadline.saturating_sub(self.coordinator.ports.clock.monotonic_micros());
        let page = tokio::time::timeout(Duration::from_micros(left), replicas.scan(node, scan)).await;
        let page = page.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
        match replicas.standing(node) {
            Some(standing) if standing.is_whole() && standing.store == page.store => Ok(page),
            _ => Err("its store has changed".to_owned()),
        }
    }

    /// Lists a key, unless it is deleted.
    fn key(&mut self, joined: Joined) -> Result<(), Failure> {
        let Joined { place, held } = joined;
        let mut have: PerReplica<(u8, Option<Encoded>)> = PerReplica::new();
        for (replica, held) in held {
            match held {
                Held::Nothing => have.push((replica, None)),
                Held::Record(record) => have.push((replica, Some(record))),
                Held::Damaged => return Err(Failure::Internal("a stored record cannot be read".to_owned())),
            }
        }
        let record = merged(&have).map_err(|error| Failure::Internal(error.to_string()))?;
        self.at = Resume { token: place.token, after: Some(place.key.clone()) };
        if let Some(record) = record.filter(|record| !record.is_deleted()) {
            let siblings = match &record {
                Record::Register(_) => false,
                Record::Siblings(siblings) => siblings.live_values_deduplicated().len() > 1,
            };
            self.page.keys.push(ListedKey { key: place.key, siblings });
        }
        Ok(())
    }

    /// Everything up to this place is done, whichever tenant it belongs to.
    fn come_to(&mut self, reached: &Place) {
        if reached.tenant == self.request.tenant {
            self.at = Resume { token: reached.token, after: Some(reached.key.clone()) };
        } else if reached.token > self.at.token {
            // Further keys of the listed tenant may have this token.
            self.at = Resume { token: reached.token, after: None };
        }
    }

    fn place(&self, token: u64, key: Key) -> Place {
        Place { token, tenant: self.request.tenant.clone(), key }
    }
}
