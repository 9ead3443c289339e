//! Lists the keys of a tenant, a page at a time: walks a quorum of each range's replicas side by side and leaves out deleted keys.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use witan_kernel::failure::Failure;
use witan_kernel::limit::{LONGEST_DEADLINE, PerReplica};
use witan_kernel::name::{Invalid, Key, NodeId, TenantId};
use witan_kernel::placement::{self, Both, Moving, Placed, Tokens};
use witan_kernel::port::{Clock, Replicas};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::{Place, ReplicaError};
use witan_kernel::ring::ReplicaRange;
use witan_kernel::scan::{Held, Join, Joined, Page, Ranges, Scan, Step, Unmergeable, merged};
use witan_kernel::space::Space;
use witan_kernel::tenant::{Level, Tenant};

use super::following::{Epoch, RESTARTS};
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
    /// The generation of the rows that are walked: in another one, the keys are in another order.
    pub generation: u32,
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
        let arrived = self.arrival(request.arrived);
        let mut restarts = RESTARTS;
        loop {
            let epoch = self.following.begins();
            let listing = self.listing(request.clone(), arrived, &epoch).await?;
            let deadline = listing.deadline;
            match listing.run().await {
                Err(Failure::StaleEpoch) if restarts > 0 => {
                    restarts -= 1;
                    if !self.follows_beyond(None, epoch.revision, deadline).await {
                        return Err(Failure::StaleEpoch);
                    }
                }
                listed => return listed,
            }
        }
    }

    async fn listing(&self, request: KeysRequest, arrived: u64, epoch: &Epoch) -> Result<Listing<'_, W>, Failure> {
        let timeout = request.timeout.unwrap_or(self.timeouts.load().read).min(LONGEST_DEADLINE);
        let tenant = self.tenant(&request.tenant).await?;
        let from = begins(&tenant, &request.from)?;
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        Ok(Listing {
            coordinator: self,
            epoch: epoch.revision,
            until: arrived.saturating_add(micros / u64::from(SHARE)),
            deadline: arrived.saturating_add(micros),
            space: Space::new(&tenant.id, tenant.generation),
            ranges: self.walks(&tenant)?,
            at: from.clone(),
            begun_at: from,
            request,
            page: KeysPage::default(),
            failed: Vec::new(),
            is_stale: false,
        })
    }

    /// The ranges of a tenant's keys, with the replicas to walk: of the present placement, and in the last step of a change of the coming
    /// one as well.
    fn walks(&self, tenant: &Tenant) -> Result<Vec<Walk>, Failure> {
        let rings = self.rings();
        let on = |placed: Placed| {
            let (ring, wanted) = (rings.version(placed.ring).ok_or(Failure::StaleEpoch)?, placed.replication_factor);
            let nodes = ring.len();
            if nodes < usize::from(wanted) {
                Err(Failure::TooFewNodes { wanted, nodes })
            } else {
                Ok((&**ring, wanted))
            }
        };
        let present = on(tenant.placed())?;
        let Some(Moving { to, .. }) = tenant.moving.filter(|moving| moving.step == placement::Step::Cutover) else {
            let walk =
                |range: ReplicaRange| Walk { tokens: (range.from, range.to), sets: vec![range.replicas.to_vec()] };
            return Ok(present.0.replica_ranges(&[present.1]).into_iter().map(walk).collect());
        };
        let walk = |range: Both| Walk { tokens: range.tokens, sets: vec![range.old, range.new] };
        Ok(placement::both(present, on(to)?).into_iter().map(walk).collect())
    }
}

/// Where a listing goes on.
///
/// # Errors
/// It began in rows of another generation. [`Failure::StaleEpoch`] in the last step of a move to another one: a key that is written then
/// may be in either, at another position in each, until the step is over.
fn begins(tenant: &Tenant, from: &Resume) -> Result<Resume, Failure> {
    let is_apart = |moving: &Moving| moving.to.generation != tenant.generation;
    if tenant.moving.filter(is_apart).is_some_and(|moving| moving.step == placement::Step::Cutover) {
        return Err(Failure::StaleEpoch);
    }
    if *from == Resume::default() {
        return Ok(Resume { generation: tenant.generation, ..Resume::default() });
    }
    if from.generation != tenant.generation {
        return Err(Invalid::new(
            "page_token",
            "is of before the tenant's routing hook was changed, which has put its keys into another order",
            "list from the beginning",
        )
        .into());
    }
    Ok(from.clone())
}

/// A range of tokens, and the sets of replicas of which a quorum each is walked.
struct Walk {
    tokens: Tokens,
    sets: Vec<Vec<NodeId>>,
}

/// A page being filled.
struct Listing<'a, W: World> {
    coordinator: &'a Coordinator<W>,
    /// The revision up to which all changes were followed before the tenant was looked up.
    epoch: u64,
    space: Space,
    request: KeysRequest,
    /// Monotonic microseconds at which the page ends if it has made progress.
    until: u64,
    /// Monotonic microseconds at which the client stops waiting.
    deadline: u64,
    ranges: Vec<Walk>,
    /// The position reached: everything before it is done.
    at: Resume,
    begun_at: Resume,
    page: KeysPage,
    /// Nodes that have failed, and why. They are not asked again for this page.
    failed: Vec<(NodeId, String)>,
    /// A node knows of a later change of the tenant.
    is_stale: bool,
}

/// Why a page was not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("it knows of a later change of the tenant")]
    Stale,
    #[error(transparent)]
    Failed(ReplicaError),
    #[error("its store has changed")]
    OtherStore,
}

fn too_late(required: u8, answered: u16) -> Failure {
    Failure::Deadline { required, received: answered.count_ones() as u8 }
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
    async fn run(mut self) -> Result<KeysPage, Failure> {
        let from = self.at.token;
        let ranges = std::mem::take(&mut self.ranges);
        for range in ranges.iter().filter(|range| range.tokens.1 >= from) {
            if self.at.token < range.tokens.0 {
                self.at = self.at_token(range.tokens.0, None);
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

    async fn walk(&mut self, range: &Walk) -> Result<Walked, Failure> {
        let nodes = self.quorum(range)?;
        let after = self.at.after.clone().map(|key| self.place(self.at.token, key));
        let mut join = Join::new(nodes.len() as u8, self.at.token, after.as_ref());
        // Bits of the replicas that have answered.
        let mut answered = 0u16;
        loop {
            match join.step() {
                Step::End => return Ok(Walked::Whole),
                Step::Key(joined) => {
                    if let Some(replica) = self.key(joined)? {
                        let why = "it holds a record that cannot be read".to_owned();
                        self.failed.push((nodes[usize::from(replica)].clone(), why));
                        return Ok(Walked::Again);
                    }
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
                        return Err(too_late(nodes.len() as u8, answered));
                    }
                    answered |= starved.iter().fold(0, |mask, replica| mask | 1 << replica);
                    if !self.turn_page(&mut join, range, &nodes, &starved).await {
                        return if self.is_stale { Err(Failure::StaleEpoch) } else { Ok(Walked::Again) };
                    }
                }
            }
        }
    }

    /// A quorum of each of a range's sets: the fastest whole ones that have not failed.
    fn quorum(&self, range: &Walk) -> Result<PerReplica<NodeId>, Failure> {
        let mut all: PerReplica<NodeId> = PerReplica::new();
        for set in &range.sets {
            for node in self.quorum_of(set)? {
                if !all.contains(&node) {
                    all.push(node);
                }
            }
        }
        Ok(all)
    }

    fn quorum_of(&self, set: &[NodeId]) -> Result<PerReplica<NodeId>, Failure> {
        let required = Level::Quorum.required(set.len() as u8);
        let replicas = &self.coordinator.ports.replicas;
        let mut causes: Vec<String> = self.failed.iter().map(|(node, why)| format!("node {node}: {why}")).collect();
        let mut nodes: PerReplica<&NodeId> = PerReplica::new();
        for node in set.iter().filter(|node| self.failed.iter().all(|(failed, _)| failed != *node)) {
            match replicas.standing(node) {
                Some(standing) if standing.is_whole() => nodes.push(node),
                Some(_) => causes.push(format!("node {node} has another store than before")),
                None => causes.push(format!("node {node} cannot be reached")),
            }
        }
        if nodes.len() < usize::from(required) {
            let received = nodes.len() as u8;
            return Err(Failure::QuorumNotReached { required, received, causes });
        }
        nodes.sort_by_key(|node| {
            let state = replicas.state(node);
            (!state.reachable || replicas.is_asked_last(node), state.latency_p50_us)
        });
        Ok(nodes.into_iter().take(usize::from(required)).cloned().collect())
    }

    /// Gets the next pages. False when a node did not answer.
    async fn turn_page(&mut self, join: &mut Join, range: &Walk, nodes: &[NodeId], starved: &[u8]) -> bool {
        let left = (self.request.limit as usize).saturating_sub(self.page.keys.len());
        let asks = starved.iter().map(|replica| {
            let scan = Scan {
                space: Some(self.space.clone()),
                prefix: self.request.prefix.clone(),
                after: join.after(*replica).cloned(),
                abridged: true,
                records: u32::try_from(left).unwrap_or(u32::MAX).max(1),
                epoch: self.epoch,
                ..Scan::between(self.at.token.max(range.tokens.0), range.tokens.1)
            };
            self.page_of(&nodes[usize::from(*replica)], scan)
        });
        let pages: Vec<Result<Page, Unread>> = join_all(asks).await;
        let mut all = true;
        for (replica, page) in starved.iter().zip(pages) {
            self.is_stale |= matches!(page, Err(Unread::Stale));
            let taken = page.map_err(|unread| unread.to_string());
            let taken =
                taken.and_then(|page| join.page(*replica, page.found, page.next).map_err(|error| error.to_string()));
            if let Err(why) = taken {
                self.failed.push((nodes[usize::from(*replica)].clone(), why));
                all = false;
            }
        }
        all
    }

    async fn page_of(&self, node: &NodeId, scan: Scan) -> Result<Page, Unread> {
        let replicas = &self.coordinator.ports.replicas;
        let left = self.deadline.saturating_sub(self.coordinator.ports.clock.monotonic_micros());
        let page = tokio::time::timeout(Duration::from_micros(left), replicas.scan(node, scan)).await;
        let page = match page {
            Ok(Ok(page)) => page,
            Ok(Err(ReplicaError::StaleEpoch)) => return Err(Unread::Stale),
            Ok(Err(error)) => return Err(Unread::Failed(error)),
            Err(_) => return Err(Unread::Failed(ReplicaError::Late)),
        };
        match replicas.standing(node) {
            Some(standing) if standing.is_whole() && standing.store == page.store => Ok(page),
            _ => Err(Unread::OtherStore),
        }
    }

    /// Lists a key, unless it is deleted. Returns a replica whose record of it cannot be read: the key is not done then.
    fn key(&mut self, joined: Joined) -> Result<Option<u8>, Failure> {
        let Joined { place, held } = joined;
        let mut have: PerReplica<(u8, Option<Encoded>)> = PerReplica::new();
        for (replica, held) in held {
            match held {
                Held::Nothing => have.push((replica, None)),
                Held::Record(record) => have.push((replica, Some(record))),
                Held::Damaged => return Ok(Some(replica)),
            }
        }
        let record = match merged(&have) {
            Err(Unmergeable::Damaged(replica, _)) => return Ok(Some(replica)),
            merged => merged.map_err(|error| Failure::Internal(error.to_string()))?,
        };
        self.at = self.at_token(place.token, Some(place.key.clone()));
        if let Some(record) = record.filter(|record| !record.is_deleted()) {
            let siblings = match &record {
                Record::Register(_) => false,
                Record::Siblings(siblings) => siblings.live_values_deduplicated().len() > 1,
            };
            self.page.keys.push(ListedKey { key: place.key, siblings });
        }
        Ok(None)
    }

    /// Everything up to this place is done, whichever tenant it belongs to.
    fn come_to(&mut self, reached: &Place) {
        if reached.space == self.space {
            self.at = self.at_token(reached.token, Some(reached.key.clone()));
        } else if reached.token > self.at.token {
            // Further keys of the listed tenant may have this token.
            self.at = self.at_token(reached.token, None);
        }
    }

    fn at_token(&self, token: u64, after: Option<Key>) -> Resume {
        Resume { generation: self.space.generation(), token, after }
    }

    fn place(&self, token: u64, key: Key) -> Place {
        Place { token, space: self.space.clone(), key }
    }
}
