//! Questions for plugins, found among the keys that a tenant has now: conflicts, and where keys belong. Nothing is changed or repaired.
//!
//! Keys are listed as for a client, and a key that is read is an operation of the tenant like any other, so that looking for questions
//! takes as much of the cluster as the tenant itself may take.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::failure::Failure;
use witan_kernel::hook::{Hook, KeptPolicyQuestion, Operation, PolicyQuestion, ResolverQuestion};
use witan_kernel::limit::LONGEST_DEADLINE;
use witan_kernel::name::{Key, TenantId};
use witan_kernel::port::Clock;
use witan_kernel::question::{Found, Question, RoutingQuestion};
use witan_kernel::record::Record;

use super::collapse::question;
use super::exchange::Exchange;
use super::keys::{KeysRequest, ListedKey, Resume};
use super::plan::{Asks, native_order};
use super::{Coordinator, World};

/// Keys on a page: few enough that a search which finds what it needs on the first one has not read much more than that.
const PAGE: u32 = 200;
/// Keys that are looked at: conflicts are rare, and a search among more of them takes longer than a person waits.
const MOST_KEYS: usize = 100_000;
/// Bytes of the value of a write about which a policy is asked that has not been asked lately: nobody knows what will be written.
const WRITTEN_BYTES: u32 = 1024;

/// A search for questions among a tenant's keys.
pub struct Questions<W: World> {
    coordinator: Arc<Coordinator<W>>,
    tenant: TenantId,
    hook: Hook,
    /// Monotonic microseconds at which it ends.
    until: u64,
    /// The next page; `None`: there is none.
    next: Option<Resume>,
    page: VecDeque<ListedKey>,
    /// Questions about a key of the page.
    more: VecDeque<Question>,
    looked_at: usize,
    /// What the last question was read with: its values count as fetched until the next question is wanted.
    held: Option<Exchange<W>>,
}

impl<W: World> Coordinator<W> {
    /// Begins a search for questions to the plugins of a hook, which ends after this time.
    pub fn questions(self: &Arc<Self>, tenant: TenantId, hook: Hook, within: Duration) -> Questions<W> {
        let within = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
        Questions {
            coordinator: Arc::clone(self),
            tenant,
            hook,
            until: self.ports.clock.monotonic_micros().saturating_add(within),
            next: Some(Resume::default()),
            page: VecDeque::new(),
            more: VecDeque::new(),
            looked_at: 0,
            held: None,
        }
    }
}

impl<W: World> Questions<W> {
    /// What is found next; `None` after the last key.
    ///
    /// # Errors
    /// The keys cannot be listed.
    pub async fn next(&mut self) -> Result<Option<Found>, Failure> {
        self.held = None;
        loop {
            if let Some(question) = self.more.pop_front() {
                return Ok(Some(Found::Question(Box::new(question))));
            }
            if self.left().is_zero() || self.looked_at >= MOST_KEYS {
                let is_done = self.next.is_none() && self.page.is_empty();
                return Ok((!is_done).then_some(Found::Enough));
            }
            let Some(listed) = self.page.pop_front() else {
                if self.next.is_none() {
                    return Ok(None);
                }
                return self.turn_page().await.map(|keys| Some(Found::Keys(keys)));
            };
            if let Err(failure) = self.look_at(listed).await {
                return Ok(Some(Found::Unread(failure.to_string())));
            }
        }
    }

    async fn turn_page(&mut self) -> Result<usize, Failure> {
        let request = KeysRequest {
            tenant: self.tenant.clone(),
            prefix: Bytes::new(),
            from: self.next.take().unwrap_or_default(),
            limit: PAGE,
            arrived: None,
            timeout: Some(self.left().min(LONGEST_DEADLINE)),
        };
        let page = self.coordinator.list_keys(request).await?;
        self.next = page.next;
        self.looked_at += page.keys.len();
        self.page = page.keys.into();
        Ok(self.page.len())
    }

    fn left(&self) -> Duration {
        Duration::from_micros(self.until.saturating_sub(self.coordinator.ports.clock.monotonic_micros()))
    }

    async fn look_at(&mut self, ListedKey { key, siblings }: ListedKey) -> Result<(), Failure> {
        match self.hook {
            Hook::ConflictResolver if siblings => {
                let conflict = self.conflict(&key).await?;
                self.more.extend(conflict.map(Question::Resolver));
            }
            Hook::ConflictResolver => {}
            Hook::ConsistencyPolicy => {
                let of_policy = |question| Question::Policy { key: key.clone(), question };
                let asked = self.policy_questions(&key).await?;
                self.more.extend(asked.map(of_policy));
            }
            Hook::RoutingHook => {
                let asked = self.routing_question(key).await?;
                self.more.push_back(Question::Routing(asked));
            }
        }
        Ok(())
    }

    /// What a read at the tenant's own level would ask a resolver.
    async fn conflict(&mut self, key: &Key) -> Result<Option<ResolverQuestion>, Failure> {
        let coordinator = &self.coordinator;
        let now = coordinator.ports.clock.monotonic_micros();
        let permit = coordinator.admission.admit(&self.tenant, 0, now).ok_or_else(|| coordinator.overloaded())?;
        let asks = Asks {
            operation: Operation::Read,
            tenant: &self.tenant,
            key,
            level: None,
            value_bytes: 0,
            arrived: now,
            timeout: Some(coordinator.timeout(Operation::Read, None).min(self.left())),
        };
        permit.begins(now, now);
        let plan = coordinator.plan(asks).await?;
        let mut exchange = Exchange::new(Arc::clone(coordinator), plan).fetching();
        let (reconciled, _) = exchange.gather().await.map_err(|failed| failed.failure)?;
        let Some(Record::Siblings(record)) = reconciled.record else { return Ok(None) };
        let (question, values) = question(&exchange.plan.place, &record);
        self.held = Some(exchange);
        Ok((values.len() > 1).then_some(question))
    }

    /// What a policy would be asked before a read and before a write of the key.
    async fn policy_questions(&self, key: &Key) -> Result<[KeptPolicyQuestion; 2], Failure> {
        let coordinator = &self.coordinator;
        let places = coordinator.places_of(&self.tenant, key).await?;
        let tenant = &places.tenant;
        let replicas = coordinator.replicas(tenant.placed(), places.present.token)?;
        let (states, zones) = (coordinator.coarse_states(&replicas), coordinator.zones(&replicas));
        let question = |operation, value_bytes| {
            let question = PolicyQuestion {
                operation,
                level: tenant.default_level,
                minimum: tenant.minimum_level,
                replication_factor: tenant.replication_factor,
                deadline_ms: coordinator.timeout(operation, None).as_millis() as u32,
                value_bytes,
                replicas: &states,
                zones: &zones,
                zone: coordinator.defaults.zone.as_ref(),
            };
            question.kept()
        };
        Ok([question(Operation::Read, 0), question(Operation::Write, WRITTEN_BYTES)])
    }

    /// What a routing hook would be asked about the key, and where it is now.
    async fn routing_question(&self, key: Key) -> Result<RoutingQuestion, Failure> {
        let coordinator = &self.coordinator;
        let places = coordinator.places_of(&self.tenant, &key).await?;
        let replicas = coordinator.replicas(places.tenant.placed(), places.present.token)?;
        let states = coordinator.states(&replicas);
        let partition = places.partition.map_or_else(|| key.bytes().clone(), |(partition, _)| partition);
        Ok(RoutingQuestion {
            partition,
            native: native_order(states.len() as u8, &states).to_vec(),
            replicas: coordinator.read_replicas(replicas.iter(), &states).to_vec(),
            zone: coordinator.defaults.zone.clone(),
            key,
        })
    }
}
