//! An operation's plan: which replicas are asked, how many must answer, and by when. Made once, when the operation starts.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::Failure;
use witan_kernel::fault::Fault;
use witan_kernel::hook::{
    AnsweredBy, Asked, Hooks, Operation, Partition, PluginFault, PolicyAnswer, PolicyQuestion, ReadReplica,
    ReplicaState, Shortfall, coarse,
};
use witan_kernel::limit::{LONGEST_DEADLINE, PerReplica};
use witan_kernel::name::{Key, NodeId, TenantId, Zone};
use witan_kernel::placement::{Moving, Placed, Step};
use witan_kernel::port::{Clock, Replicas, StoreError, Tenants};
use witan_kernel::quorum::{Route, Tally};
use witan_kernel::replica::Place;
use witan_kernel::ring::{Preference, token};
use witan_kernel::space::Space;
use witan_kernel::tenant::{Level, Tenant};

use super::following::{Epoch, RESTARTS};
use super::{Coordinator, World};
use witan_origin::{self as origin, Span};

/// One operation's plan: a snapshot of everything that may change while it runs.
pub(super) struct Plan {
    pub(super) tenant: Arc<Tenant>,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) place: Place,
    /// While the tenant moves to rows of another generation, the key's place there.
    coming: Option<Place>,
    /// The key's replicas, and how many of them must answer.
    pub(super) route: Route,
    /// The revision up to which the coordinator followed all changes before it planned: it has taken none of them into account by half.
    pub(super) epoch: Arc<Epoch>,
    /// When the request arrived, in monotonic microseconds.
    pub(super) arrived: u64,
    /// The answer of the consistency policy, or of the native rule.
    pub(super) policy: PolicyAnswer,
    /// Why the consistency policy that is bound gave way to the native rule, if it did.
    pub(super) policy_fault: Option<Box<PluginFault>>,
    /// When the operation ends, monotonic microseconds.
    pub(super) deadline: u64,
    /// Of one era: a context that the operation returns must not claim under a new one what it has read before a restore.
    pub(super) keys: Arc<ContextKeys>,
}

/// What an operation asks for, as input of its plan.
#[derive(Clone, Copy)]
pub(super) struct Asks<'a> {
    pub(super) operation: Operation,
    pub(super) tenant: &'a TenantId,
    pub(super) key: &'a Key,
    pub(super) level: Option<Level>,
    pub(super) value_bytes: usize,
    /// When the request arrived, in monotonic microseconds: its deadline counts from here.
    pub(super) arrived: u64,
    pub(super) timeout: Option<Duration>,
}

impl Plan {
    /// The key's replicas: see [`Route::replicas`].
    pub(super) fn replicas(&self) -> &Preference {
        self.route.replicas()
    }

    /// The place of the row that a replica has.
    pub(super) fn place_of(&self, replica: u8) -> &Place {
        self.coming.as_ref().filter(|_| self.route.is_coming(replica)).unwrap_or(&self.place)
    }

    /// Number of replicas of the key, as the policy knows it.
    pub(super) fn replication_factor(&self) -> u8 {
        self.route.replication_factor()
    }

    /// The index of every replica.
    pub(super) fn everyone(&self) -> Range<u8> {
        0..self.replicas().len() as u8
    }

    /// An empty tally of the replicas that are asked what they have, with the policy's requirement.
    pub(super) fn asking(&self) -> Tally {
        self.route.asking(self.policy.required)
    }

    /// An empty tally of the replicas that a change is sent to, with the policy's requirement.
    pub(super) fn changing(&self) -> Tally {
        self.route.changing(self.policy.required)
    }

    /// Raises the requirement to a quorum's answers, and accepts no shortfall: what a policy accepts of an operation is no reason to base
    /// a delete or a collapse on fewer.
    pub(super) fn read_a_quorum(&mut self) {
        self.policy.required = self.policy.required.max(Level::Quorum.required(self.replication_factor()));
        self.policy.shortfall = Shortfall::Fail;
    }
}

impl<W: World> Coordinator<W> {
    /// Plans an operation. Waits for a version of the ring that is not known here yet.
    pub(super) async fn plan(&self, asks: Asks<'_>) -> Result<Plan, Failure> {
        let mut restarts = RESTARTS;
        loop {
            match self.plan_now(asks).await {
                Err(Failure::StaleEpoch) if restarts > 0 => {
                    restarts -= 1;
                    let deadline = self.deadline(asks.operation, asks.arrived, asks.timeout);
                    let epoch = self.followed();
                    if !Box::pin(self.follows_beyond(Some(asks.tenant), epoch, deadline)).await {
                        return Err(Failure::StaleEpoch);
                    }
                }
                planned => return planned,
            }
        }
    }

    async fn plan_now(&self, asks: Asks<'_>) -> Result<Plan, Failure> {
        // Before anything else is looked up, which may then be newer, but not older.
        let epoch = self.following.begins_for(asks.tenant);
        let tenant = self.tenant(asks.tenant).await?;
        let hooks = self.ports.plugins.hooks(asks.tenant);
        let generation = if Fault::HookFromNewest.is_on() { tenant.generations } else { tenant.generation };
        let (mut place, _) = place(&tenant, generation, asks.key, hooks.as_ref())?;
        if Fault::HookFromNewest.is_on() {
            place.space = Space::new(&tenant.id, tenant.generation);
        }
        let coming = coming(&tenant, asks.key, hooks.as_ref())?;
        let (route, coming) = match (coming, tenant.moving) {
            (Some(coming), Some(Moving { to, .. })) if Fault::HookInForceEarly.is_on() => {
                let route = Route::settled(self.replicas(to, coming.token)?);
                place = coming;
                (route, None)
            }
            (coming, _) => (self.route(&tenant, &place, coming.as_ref())?, coming),
        };
        let timeout = self.timeout(asks.operation, asks.timeout);
        let (policy, policy_fault) = self.policy(&asks, &tenant, hooks.as_ref(), &route, timeout).await?;
        let deadline = asks.arrived + u64::from(policy.deadline_ms) * 1000;
        let keys = self.keys.load_full();
        let arrived = asks.arrived;
        Ok(Plan { tenant, hooks, place, coming, route, epoch, arrived, policy, policy_fault, deadline, keys })
    }

    /// The replicas of a place, under the placement of its tenant. `coming`: its place in the generation to which the tenant moves.
    fn route(&self, tenant: &Tenant, place: &Place, coming: Option<&Place>) -> Result<Route, Failure> {
        let present = self.replicas(tenant.placed(), place.token)?;
        match (tenant.moving, coming) {
            (Some(Moving { to, step, .. }), Some(coming)) => {
                Ok(Route::moving(present, &self.replicas(to, coming.token)?, step, true))
            }
            (Some(Moving { to, step, .. }), None) if to.generation == tenant.generation => {
                Ok(Route::moving(present, &self.replicas(to, place.token)?, step, false))
            }
            // It moves to another generation, and nothing is sent there (yet).
            (_, _) => Ok(Route::settled(present)),
        }
    }

    /// The replicas of a token under a placement.
    ///
    /// # Errors
    /// [`Failure::TooFewNodes`]; [`Failure::StaleEpoch`] when the version of the ring is not known here (yet).
    pub(super) fn replicas(&self, placed: Placed, token: u64) -> Result<Preference, Failure> {
        let rings = self.rings.load();
        let ring = rings.version(placed.ring).ok_or(Failure::StaleEpoch)?;
        let (replicas, wanted) = (ring.replicas(token, placed.replication_factor), placed.replication_factor);
        let nodes = replicas.len();
        if nodes < usize::from(wanted) { Err(Failure::TooFewNodes { wanted, nodes }) } else { Ok(replicas) }
    }

    /// Where a key of a tenant is on the ring.
    ///
    /// # Errors
    /// [`Failure::TenantNotFound`], [`Failure::PluginFault`], or the metadata store does not answer.
    pub async fn places_of(&self, tenant: &TenantId, key: &Key) -> Result<Places, Failure> {
        let known = self.tenant(tenant).await?;
        let hooks = self.ports.plugins.hooks(tenant);
        let (present, partition) = place(&known, known.generation, key, hooks.as_ref())?;
        let coming = coming(&known, key, hooks.as_ref())?;
        Ok(Places { tenant: known, present, partition, coming })
    }

    /// The key's replicas as this coordinator sees them, in ring order.
    pub(super) fn states(&self, replicas: &Preference) -> PerReplica<ReplicaState> {
        replicas.iter().map(|node| self.ports.replicas.state(node)).collect()
    }

    /// The states for a consistency policy, with the requests in flight made [`coarse`].
    pub(super) fn coarse_states(&self, replicas: &[NodeId]) -> PerReplica<ReplicaState> {
        let recent = replicas.iter().map(|node| self.ports.replicas.recent_state(node));
        recent.map(|state| ReplicaState { in_flight: coarse(state.in_flight), ..state }).collect()
    }

    pub(super) fn zones(&self, replicas: &[NodeId]) -> PerReplica<Option<Zone>> {
        replicas.iter().map(|node| self.ports.replicas.zone(node)).collect()
    }

    /// The order in which replicas are read: the routing hook's, else reachable ones first, by their median round trip. Returns each index
    /// of the asked replicas once.
    pub(super) fn read_order(&self, plan: &Plan, states: &[ReplicaState]) -> PerReplica<u8> {
        let order = native_order(plan.route.asked(), states);
        if !plan.hooks.has_routing() {
            return order;
        }
        let asked = usize::from(plan.route.asked());
        let candidates = self.read_replicas(plan.replicas().iter().take(asked), states);
        let zone = self.defaults.zone.as_ref();
        let Asked::Answered { answer, .. } = plan.hooks.prefer(&plan.place.key, &candidates, zone) else {
            return order;
        };
        let mut preferred: PerReplica<u8> = PerReplica::new();
        for replica in answer.into_iter().chain(order) {
            if usize::from(replica) < asked && !preferred.contains(&replica) {
                preferred.push(replica);
            }
        }
        preferred
    }

    /// Replicas of a key as a routing hook knows them.
    pub(super) fn read_replicas<'a>(
        &self,
        nodes: impl Iterator<Item = &'a NodeId>,
        states: &[ReplicaState],
    ) -> PerReplica<ReadReplica> {
        let replicas = &self.ports.replicas;
        let candidate = |(node, state): (&NodeId, &ReplicaState)| ReadReplica {
            node: node.clone(),
            state: *state,
            load: coarse(replicas.recent_state(node).in_flight),
            zone: replicas.zone(node),
        };
        nodes.zip(states).map(candidate).collect()
    }

    /// A tenant that is not deleted, from the cache if it is there.
    ///
    /// # Errors
    /// [`Failure::TenantNotFound`], or the metadata store does not answer.
    pub async fn tenant(&self, id: &TenantId) -> Result<Arc<Tenant>, Failure> {
        let known = match self.ports.tenants.cached(id) {
            Some(tenant) => Ok(Some(tenant)),
            None => Box::pin(self.ports.tenants.tenant(id)).await,
        };
        match known {
            Ok(Some(tenant)) if tenant.deleted_at_ms.is_none() => Ok(tenant),
            Ok(_) => Err(Failure::TenantNotFound(id.clone())),
            Err(error) => Err(store_failure("the metadata store", error)),
        }
    }

    /// When a request arrived that says `arrived` of itself; by default it arrives now.
    pub(super) fn arrival(&self, arrived: Option<u64>) -> u64 {
        let now = self.ports.clock.monotonic_micros();
        if Fault::DeadlineFromTurn.is_on() { now } else { arrived.map_or(now, |arrived| arrived.min(now)) }
    }

    /// The deadline of a request that arrived at `arrived`, in monotonic microseconds. A policy may bring it forward.
    pub fn deadline(&self, operation: Operation, arrived: u64, asked: Option<Duration>) -> u64 {
        arrived.saturating_add(self.timeout(operation, asked).as_micros() as u64)
    }

    pub(super) fn timeout(&self, operation: Operation, asked: Option<Duration>) -> Duration {
        let default = match operation {
            Operation::Read => self.timeouts.load().read,
            Operation::Write | Operation::Delete => self.timeouts.load().write,
        };
        asked.unwrap_or(default).min(LONGEST_DEADLINE).max(Duration::from_millis(1))
    }

    async fn policy(
        &self,
        asks: &Asks<'_>,
        tenant: &Tenant,
        hooks: &dyn Hooks,
        route: &Route,
        timeout: Duration,
    ) -> Result<(PolicyAnswer, Option<Box<PluginFault>>), Failure> {
        let with_policy = hooks.has_policy();
        // A policy is asked about the present placement, also while the coming one has to answer as well.
        let present = usize::from(route.replication_factor());
        let replicas = if with_policy { &route.replicas()[..present] } else { &[] };
        let (states, zones) = (self.coarse_states(replicas), self.zones(replicas));
        let question = PolicyQuestion {
            operation: asks.operation,
            level: asks.level.filter(|_| !Fault::LevelIgnored.is_on()).unwrap_or(tenant.default_level),
            minimum: tenant.minimum_level,
            replication_factor: route.replication_factor(),
            deadline_ms: timeout.as_millis() as u32,
            value_bytes: asks.value_bytes as u32,
            replicas: &states,
            zones: &zones,
            zone: self.defaults.zone.as_ref(),
        };
        if !with_policy {
            return Ok((PolicyAnswer::native(&question), None));
        }
        let mut span = origin::span("plugin consistency policy");
        let asked = match hooks.policy_tried(asks.key, &question) {
            Some(asked) => asked,
            None => {
                let asked = match hooks.policy_apart(&question) {
                    Some(asked) => asked.await,
                    None => hooks.policy(&question),
                };
                hooks.policy_answered(asks.key, &question, &asked);
                asked
            }
        };
        record_answer(&mut span, &asked);
        let fault = asked.fault();
        match asked {
            Asked::Answered { answer, .. } if Fault::MinimumIgnored.is_on() => {
                Ok((answer.within(&PolicyQuestion { minimum: Level::One, ..question }), None))
            }
            Asked::Answered { answer, .. } => Ok((answer.within(&question), None)),
            Asked::Faulted { reason, fail: true, by, .. } => Err(Failure::PluginFault {
                hook: witan_kernel::hook::Hook::ConsistencyPolicy,
                by: by.to_string(),
                reason,
            }),
            Asked::Unbound | Asked::Faulted { .. } => Ok((PolicyAnswer::native(&question), fault)),
        }
    }
}

/// Records in a question's span which plugin has answered.
pub(super) fn record_answer<T>(span: &mut Span, asked: &Asked<T>) {
    if !span.is_there() {
        return;
    }
    match asked {
        Asked::Unbound => span.set("plugin", "none"),
        Asked::Answered { by, .. } => span.set("plugin", by.to_string()),
        Asked::Faulted { by, reason, .. } => {
            span.set("plugin", by.to_string());
            span.set("fault", reason.clone());
        }
    }
}

/// The place of a key in the generation to which its tenant moves; `None`: it moves to none, or nothing is sent there.
fn coming(tenant: &Tenant, key: &Key, hooks: &dyn Hooks) -> Result<Option<Place>, Failure> {
    let Some(Moving { to, step, .. }) = tenant.moving else { return Ok(None) };
    if to.generation == tenant.generation || step == Step::Preparing {
        return Ok(None);
    }
    match place(tenant, to.generation, key, hooks) {
        Ok((place, _)) => Ok(Some(place)),
        // Nothing rests on the coming rows yet. The last copy will find the key, and if the hook faults again, the change is given up.
        Err(Failure::PluginFault { .. }) if step == Step::DualWrite => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Where a key is on the ring.
pub struct Places {
    /// Its tenant.
    pub tenant: Arc<Tenant>,
    /// Its place in its tenant's present generation.
    pub present: Place,
    /// What a routing hook has mapped it to in this generation, if there is one.
    pub partition: Option<PartitionKey>,
    /// Its place in the generation to which its tenant moves, if changes are sent there.
    pub coming: Option<Place>,
}

/// A key of a partition that a routing hook has answered, and which one has.
pub type PartitionKey = (Bytes, AnsweredBy);

/// The place of a key in a generation of its tenant, and the partition that a routing hook has mapped it to, if there is one.
fn place(
    tenant: &Tenant,
    generation: u32,
    key: &Key,
    hooks: &dyn Hooks,
) -> Result<(Place, Option<PartitionKey>), Failure> {
    let id = &tenant.id;
    let (token, partition) = match hooks.partition_key(generation, key) {
        Partition::Native => (token(id, key.bytes()), None),
        Partition::By { key, by } => (token(id, &key), Some((key, by))),
        // The tenant's record is newer than what is known here of its bindings.
        Partition::Unknown => return Err(Failure::StaleEpoch),
        // Never the native rule instead: the data is elsewhere.
        Partition::Faulted { reason, by } => {
            return Err(Failure::PluginFault {
                hook: witan_kernel::hook::Hook::RoutingHook,
                by: by.to_string(),
                reason,
            });
        }
    };
    Ok((Place { token, space: Space::new(id, generation), key: key.clone() }, partition))
}

/// The order in which replicas are read without a routing hook.
pub(super) fn native_order(asked: u8, states: &[ReplicaState]) -> PerReplica<u8> {
    let mut order: PerReplica<u8> = (0..asked).collect();
    order.sort_by_key(|replica| {
        let state = &states[usize::from(*replica)];
        // Latencies within a quarter of a millisecond count as equal, so that near replicas share the load by requests in flight.
        (!state.reachable, state.latency_p50_us / 250, state.in_flight)
    });
    order
}

pub(super) fn store_failure(what: &'static str, error: StoreError) -> Failure {
    match error {
        StoreError::Full(_) => Failure::StoreFull(what),
        StoreError::Damaged(reason) => Failure::Internal(format!("{what}: {reason}")),
        // The failure says that it cannot be reached.
        StoreError::Unavailable(reason) => Failure::StoreUnavailable { what, reason },
        other => Failure::StoreUnavailable { what, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_a_store_says_its_sentence_once() {
        let why = || "no answer within 2s".to_owned();
        for error in [
            StoreError::Unavailable(why()),
            StoreError::Full(why()),
            StoreError::Conflict(why()),
            StoreError::Exists(why()),
            StoreError::Missing(why()),
            StoreError::Refused(why()),
            StoreError::Damaged(why()),
        ] {
            let said = store_failure("the metadata store", error.clone()).to_string();
            let words: Vec<&str> = said.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
            let phrases: Vec<&[&str]> = words.windows(3).collect();
            let twice = phrases.iter().enumerate().find(|(at, phrase)| phrases[..*at].contains(phrase));
            assert_eq!(twice, None, "{error:?} becomes: {said}");
        }
    }
}
