//! Clients: their requests, how long they wait, and what they conclude when no answer arrives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use witan_coordinate::{ReadAnswer, ReadRequest, WriteRequest, Written};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::tenant::{IdempotencyOutage, Level};

use crate::cluster::Call;
use crate::history::{Intention, Operation, Outcome, Place};
use crate::scenario::{Cast, Manner};
use crate::stage::{Acknowledged, Doubtful, Mood, Stage};
use crate::world::{Tags, from_value, lock, to_value};

mod attempt;

use attempt::Attempt;

/// A client.
pub(crate) struct Client {
    id: usize,
    rng: StdRng,
    stage: Arc<Stage>,
    /// The last contexts that it received for each key, newest last.
    contexts: BTreeMap<Place, VecDeque<Context>>,
}

/// A context, and what its client knows about it.
#[derive(Debug, Clone)]
struct Context {
    token: Bytes,
    /// The tags that it covers.
    seen: Tags,
    /// The tags of the live values when it was issued: a set is written from these.
    live: Tags,
    /// It may also cover what started before this position.
    until: u64,
}

/// A change that is about to be sent for the first time.
struct Draft {
    place: Place,
    intention: Intention,
    context: Option<Context>,
    level: Option<Level>,
    named: bool,
}

impl Client {
    pub(crate) fn new(id: usize, stage: Arc<Stage>) -> Self {
        let rng = StdRng::seed_from_u64(stage.scenario.seed.wrapping_mul(31).wrapping_add(id as u64));
        Self { id, rng, stage, contexts: BTreeMap::new() }
    }

    fn manner(&self) -> Manner {
        self.stage.scenario.manner
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.rng.random_range(0..1000) < per_mille
    }

    fn cast(&self, place: Place) -> &Cast {
        &self.stage.scenario.casts[place.0]
    }

    /// Performs this many operations.
    pub(crate) async fn work(&mut self, operations: usize, mood: Mood) {
        for _ in 0..operations {
            let pause = self.rng.random_range(0..=self.manner().pause_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let place = *self.stage.places().choose(&mut self.rng).expect("a key");
            if self.chance(self.manner().reads) {
                let weak = self.chance(self.manner().weak);
                let level = if weak { Some(Level::One) } else { self.any_level(place) };
                let coordinator = self.any_coordinator();
                self.read(place, level, coordinator, mood).await;
            } else {
                self.change(place, mood).await;
            }
        }
    }

    /// Writes this many times to the last tenant's first key, without a context.
    pub(crate) async fn pile_up(&mut self, writes: usize) {
        let place = (self.stage.scenario.casts.len() - 1, 0);
        for _ in 0..writes {
            self.change_with(place, Mood::Stormy, true).await;
        }
    }

    /// Writes to a key while no disk has room.
    pub(crate) async fn is_refused(&mut self) {
        let place = *self.stage.places().choose(&mut self.rng).expect("a key");
        let tag = self.stage.history.fresh_tag();
        let intention = Intention::Write { tag, carries: Tags::from([tag]) };
        let (operation, request) = self.prepare(Draft { place, intention, context: None, level: None, named: false });
        let index = self.stage.history.start(operation);
        self.insist(index, request, 1, Mood::Full, false).await;
    }

    /// Reads each key, and writes it with the context that the read has returned.
    pub(crate) async fn tidy_up(&mut self, mood: Mood) {
        for place in self.stage.places() {
            let coordinator = self.any_coordinator();
            self.read(place, None, coordinator, mood).await;
            let Some(context) = self.contexts.get(&place).and_then(VecDeque::back).cloned() else { continue };
            let tag = self.stage.history.fresh_tag();
            let intention = Intention::Write { tag, carries: Tags::from([tag]) };
            self.submit(Draft { place, intention, context: Some(context), level: None, named: true }, mood).await;
        }
    }

    /// Writes a new value to a key until the write is acknowledged or the attempts are used up.
    pub(crate) async fn write(&mut self, place: Place, attempts: u64) -> bool {
        let tag = self.stage.history.fresh_tag();
        let intention = Intention::Write { tag, carries: Tags::from([tag]) };
        let draft = Draft { place, intention, context: None, level: None, named: true };
        let (operation, request) = self.prepare(draft);
        let index = self.stage.history.start(operation);
        self.insist(index, request, attempts, Mood::Stormy, false).await;
        self.stage.history.operation(index).is_acknowledged()
    }

    /// Deletes a key until that is acknowledged or the attempts are used up.
    pub(crate) async fn delete(&mut self, place: Place, attempts: u64) -> bool {
        let intention = Intention::Delete { tag: self.stage.history.fresh_tag() };
        let draft = Draft { place, intention, context: None, level: None, named: true };
        let (operation, request) = self.prepare(draft);
        let index = self.stage.history.start(operation);
        self.insist(index, request, attempts, Mood::Stormy, false).await;
        self.stage.history.operation(index).is_acknowledged()
    }

    fn any_coordinator(&mut self) -> usize {
        self.rng.random_range(0..self.stage.cluster.coordinators.len())
    }

    /// Mostly the tenant's default, in tenants of which several levels are asked.
    fn any_level(&mut self, place: Place) -> Option<Level> {
        let mixed = self.cast(place).mixed;
        if mixed == 0 || !self.chance(mixed) {
            return None;
        }
        [Level::One, Level::Quorum, Level::All].choose(&mut self.rng).copied()
    }

    /// The number of replicas on which an operation at a level rests at least.
    fn needs(&self, place: Place, level: Option<Level>) -> (u8, u8) {
        let cast = self.cast(place);
        let (tenant, replicas) = (&cast.tenant, cast.tenant.replication_factor);
        // A policy may ask for less than the level, but not for less than the tenant's minimum.
        let level = if cast.policy {
            tenant.minimum_level
        } else {
            level.unwrap_or(tenant.default_level).max(tenant.minimum_level)
        };
        let needs = match level {
            Level::One => 1,
            Level::Quorum => replicas / 2 + 1,
            Level::All => replicas,
        };
        (needs, replicas)
    }

    /// Reads, and returns the tags shown; `None` if the read failed.
    pub(crate) async fn read(
        &mut self,
        place: Place,
        level: Option<Level>,
        coordinator: usize,
        mood: Mood,
    ) -> Option<Tags> {
        let (needs, replicas) = self.needs(place, level);
        let mut operation = Operation::new(self.id, place, Intention::Read, needs, replicas);
        operation.partial = self.cast(place).resolver.hides();
        let index = self.stage.history.start(operation);
        let (tenant, key) = (self.cast(place).tenant.id.clone(), Stage::key(place));
        let call =
            |timeout, to| Call::Read(ReadRequest { tenant, key, level, timeout: Some(timeout), arrived: None }, to);
        let attempt = self.attempt(coordinator, mood, "a read", call).await;
        let (outcome, description) = self.understand_read(place, attempt);
        let (id, stage) = (self.id, Arc::clone(&self.stage));
        stage.note(|| format!("client {id} reads {place:?} through c{}: {description}", coordinator + 1));
        let answered = matches!(outcome, Outcome::Shown(_));
        if !answered && mood == Mood::Calm {
            stage.violated(format!("success: a read of {place:?} failed without faults: {description}"));
        }
        stage.history.end(index, outcome.clone());
        match outcome {
            Outcome::Shown(tags) => Some(tags),
            _ => None,
        }
    }

    fn understand_read(&mut self, place: Place, attempt: Attempt<ReadAnswer>) -> (Outcome, String) {
        let (context, shown) = match attempt {
            Attempt::Answered(Ok(answer)) => match shown(&answer) {
                Some(tags) => (answer.context, tags),
                None => {
                    let what = format!("garbage: {place:?} holds what no client wrote: {answer:?}");
                    self.stage.violated(what.clone());
                    return (Outcome::Unknown, what);
                }
            },
            Attempt::Answered(Err(Failed { failure: Failure::KeyNotFound { context }, .. })) => (context, Tags::new()),
            Attempt::Answered(Err(failed)) => return (Outcome::Unknown, format!("failed: {failed}")),
            Attempt::NotSent => return (Outcome::Unknown, "not sent".to_owned()),
            Attempt::Lost => return (Outcome::Unknown, "no answer".to_owned()),
        };
        let until = if self.cast(place).resolver.hides() { self.stage.history.position() } else { 0 };
        self.remember(place, Context { token: context, seen: shown.clone(), live: shown.clone(), until });
        let description = format!("{shown:?}");
        (Outcome::Shown(shown), description)
    }

    fn remember(&mut self, place: Place, context: Context) {
        let contexts = self.contexts.entry(place).or_default();
        contexts.push_back(context);
        if contexts.len() > 3 {
            contexts.pop_front();
        }
    }

    /// A context that this client received for the key: mostly the last one, sometimes an old one, sometimes none.
    fn context(&mut self, place: Place) -> Option<Context> {
        let kept = self.contexts.get(&place).map_or(0, VecDeque::len);
        if kept == 0 || self.chance(self.manner().blind) {
            return None;
        }
        let back = if self.chance(150) { self.rng.random_range(0..kept) } else { 0 };
        self.contexts.get(&place).and_then(|contexts| contexts.get(kept - 1 - back)).cloned()
    }

    async fn change(&mut self, place: Place, mood: Mood) {
        self.change_with(place, mood, false).await;
    }

    /// Writes or deletes, with retries. `blind`: writes, without a context.
    async fn change_with(&mut self, place: Place, mood: Mood, blind: bool) {
        let context = if blind { None } else { self.context(place) };
        let deletes = !blind && self.chance(self.manner().deletes);
        let tag = self.stage.history.fresh_tag();
        let intention = if deletes {
            Intention::Delete { tag }
        } else {
            let mut carries = Tags::from([tag]);
            if let Some(context) = context.as_ref().filter(|_| self.cast(place).sets)
                && self.rng.random_bool(0.7)
            {
                carries.extend(&context.live);
            }
            Intention::Write { tag, carries }
        };
        let weak = !self.cast(place).is_register() && self.chance(self.manner().weak);
        let level = if weak { Some(Level::One) } else { self.any_level(place) };
        let named = blind || self.chance(self.manner().named);
        self.submit(Draft { place, intention, context, level, named }, mood).await;
    }

    async fn submit(&mut self, draft: Draft, mood: Mood) {
        let named = draft.named;
        let (operation, request) = self.prepare(draft);
        let (id, shown) = (self.id, operation.clone());
        self.stage.note(|| {
            let (name, place) = (if named { "" } else { ", unnamed" }, shown.place);
            format!(
                "client {id} wants {:?} at {place:?}, seen {:?}, {} replicas{name}",
                shown.intention, shown.seen, shown.needs
            )
        });
        let index = self.stage.history.start(operation);
        let attempts = if named { self.rng.random_range(1..=self.manner().attempts) } else { 1 };
        self.insist(index, request, attempts, mood, false).await;
    }

    fn prepare(&mut self, draft: Draft) -> (Operation, WriteRequest) {
        let Draft { place, intention, context, level, named } = draft;
        let (needs, replicas) = self.needs(place, level);
        let mut operation = Operation::new(self.id, place, intention, needs, replicas);
        let tag = operation.tag().unwrap_or_default();
        let long = if self.chance(self.manner().large) { self.rng.random_range(2_000..=150_000) } else { 0 };
        let request = WriteRequest {
            tenant: self.cast(place).tenant.id.clone(),
            key: Stage::key(place),
            value: match &operation.intention {
                Intention::Write { carries, .. } => Some(to_value(carries, long)),
                _ => None,
            },
            level,
            idempotency_key: named.then(|| format!("intention-{tag}")),
            context: context.as_ref().map(|context| context.token.clone()).unwrap_or_default(),
            timeout: None,
            arrived: None,
        };
        operation.may_cover_until = context.as_ref().map_or(0, |context| context.until);
        operation.seen = context.map(|context| context.seen);
        (operation, request)
    }

    /// Retries a change that is in doubt.
    pub(crate) async fn retry(&mut self, doubtful: Doubtful) {
        let Doubtful { index, request } = doubtful;
        self.insist(index, request, 3, Mood::Stormy, true).await;
    }

    /// Sends a change until it is acknowledged or the attempts are used up. `doubt`: it may have been applied already.
    async fn insist(&mut self, index: usize, request: WriteRequest, attempts: u64, mood: Mood, mut doubt: bool) {
        let stage = Arc::clone(&self.stage);
        let operation = stage.history.operation(index);
        let (place, tag) = (operation.place, operation.tag().unwrap_or_default());
        let mut coordinator = self.any_coordinator();
        for attempt in 1..=attempts {
            let sent = request.clone();
            let call = |timeout, to| Call::Write(WriteRequest { timeout: Some(timeout), ..sent }, to);
            let answer = self.attempt(coordinator, mood, "a change", call).await;
            let description = describe(&answer);
            let id = self.id;
            stage.note(|| format!("client {id} gets for {tag} at {place:?} from c{}: {description}", coordinator + 1));
            if !self.is_expected(place, mood, &answer) {
                stage.violated(format!("success: change {tag} at {place:?}, {mood:?}: {description}"));
            }
            match answer {
                Attempt::Answered(Ok(written)) => {
                    self.acknowledged(index, &operation, written, request, mood).await;
                    return;
                }
                Attempt::Answered(Err(Failed { failure: Failure::ContextOutdated, .. })) => {
                    self.contexts.remove(&place);
                    break;
                }
                Attempt::Answered(Err(failed)) => match failed.effect {
                    Some(Effect::NotApplied) => doubt &= !self.is_final(place, &request, &failed.failure),
                    Some(Effect::InDoubt) => doubt = true,
                    None => stage.violated(format!("honesty: change {tag} failed without saying if it was applied")),
                },
                Attempt::NotSent => {}
                Attempt::Lost => doubt = true,
            }
            if attempt < attempts {
                let pause = self.rng.random_range(5..=800);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                coordinator = self.any_coordinator();
            }
        }
        stage.history.end(index, if doubt { Outcome::Unknown } else { Outcome::NotApplied });
        if doubt && request.idempotency_key.is_some() {
            lock(&stage.doubtful).push(Doubtful { index, request });
        }
    }

    /// True if a change may be answered like this when there are no faults, or only full disks.
    fn is_expected(&self, place: Place, mood: Mood, answer: &Attempt<Written>) -> bool {
        let failure = match answer {
            Attempt::Answered(Ok(_)) => None,
            Attempt::Answered(Err(failed)) => Some(&failed.failure),
            Attempt::NotSent | Attempt::Lost => return mood == Mood::Stormy,
        };
        match mood {
            Mood::Calm => failure.is_none_or(|failure| match failure {
                Failure::SiblingLimit => self.cast(place).crowded,
                Failure::ContextOutdated => self.stage.new_era.load(Ordering::Relaxed),
                _ => false,
            }),
            Mood::Full => matches!(failure, Some(Failure::StorageFull { .. })),
            Mood::Stormy => true,
        }
    }

    /// True if "not applied" is said of the change, and not only of this attempt at it: the idempotency store has been asked whether
    /// there were others, and remembers all of them.
    fn is_final(&self, place: Place, request: &WriteRequest, failure: &Failure) -> bool {
        let asked = !matches!(
            failure,
            Failure::Overloaded { .. }
                | Failure::TenantNotFound(_)
                | Failure::PluginFault { .. }
                | Failure::StoreUnavailable { .. }
                | Failure::IdempotencyKeyConflict
        );
        let remembers = self.cast(place).tenant.idempotency_outage == IdempotencyOutage::Reject;
        let scenario = &self.stage.scenario;
        asked && remembers && request.idempotency_key.is_some() && !scenario.forgetful && !scenario.stops
    }

    async fn acknowledged(
        &mut self,
        index: usize,
        operation: &Operation,
        written: Written,
        request: WriteRequest,
        mood: Mood,
    ) {
        let (place, tag) = (operation.place, operation.tag().unwrap_or_default());
        if written.replicas < operation.needs {
            let (got, needs) = (written.replicas, operation.needs);
            self.stage
                .violated(format!("level: change {tag} at {place:?} was acknowledged by {got} of {needs} replicas"));
        }
        let mut seen = operation.seen.clone().unwrap_or_default();
        seen.insert(tag);
        let live = match &operation.intention {
            Intention::Write { carries, .. } => carries.clone(),
            _ => Tags::new(),
        };
        // A delete without a context has read the key: the context that it returns covers what it found.
        let reads = operation.is_delete() && operation.seen.is_none();
        let until = if reads { self.stage.history.position() } else { operation.may_cover_until };
        self.remember(place, Context { token: written.context, seen, live, until });
        self.stage.history.end(index, Outcome::Done);
        let acknowledged = Acknowledged { place, tag, request };
        if self.cast(place).tenant.idempotency_outage != IdempotencyOutage::Reject || self.stage.scenario.forgetful {
            return;
        }
        if acknowledged.is_reused() {
            self.reuse(&acknowledged, mood).await;
        }
        if acknowledged.is_repeated() {
            lock(&self.stage.acknowledged).push(acknowledged.clone());
            self.repeat(acknowledged, mood).await;
        }
    }

    /// Sends an acknowledged change again, as a queue may deliver a message twice: it must be reported as a duplicate.
    pub(crate) async fn repeat(&mut self, acknowledged: Acknowledged, mood: Mood) {
        let Acknowledged { place, tag, request } = acknowledged;
        let coordinator = self.any_coordinator();
        let call = |timeout, to| Call::Write(WriteRequest { timeout: Some(timeout), ..request }, to);
        let again = self.attempt(coordinator, mood, "a repetition", call).await;
        let id = self.id;
        match again {
            Attempt::Answered(Ok(written)) if !written.duplicate => self.stage.violated(format!(
                "idempotency: change {tag} at {place:?} was acknowledged before and is now no duplicate"
            )),
            Attempt::Answered(result) => {
                self.stage
                    .note(|| format!("client {id} repeats {tag} at {place:?}: {:?}", result.map(|_| "duplicate")));
            }
            Attempt::NotSent | Attempt::Lost => {}
        }
    }

    /// Uses the idempotency key of an acknowledged change for another one: it must be refused, and no read may ever show it.
    async fn reuse(&mut self, acknowledged: &Acknowledged, mood: Mood) {
        let (coordinator, place, tag) = (self.any_coordinator(), acknowledged.place, acknowledged.tag);
        let other = self.stage.history.fresh_tag();
        let request = WriteRequest { value: Some(to_value(&Tags::from([other]), 0)), ..acknowledged.request.clone() };
        let call = |timeout, to| Call::Write(WriteRequest { timeout: Some(timeout), ..request }, to);
        let answer = self.attempt(coordinator, mood, "another change with the same key", call).await;
        let description = describe(&answer);
        let id = self.id;
        self.stage.note(|| format!("client {id} uses the key of {tag} at {place:?} for {other}: {description}"));
        if let Attempt::Answered(Ok(_)) = answer {
            self.stage.violated(format!(
                "idempotency: the key of change {tag} at {place:?} was accepted for another change, {other}"
            ));
        }
    }
}

fn describe(answer: &Attempt<Written>) -> String {
    match answer {
        Attempt::Answered(Ok(written)) => {
            format!("done by {} replicas, duplicate {}", written.replicas, written.duplicate)
        }
        Attempt::Answered(Err(failed)) => format!("failed ({:?}): {failed}", failed.effect),
        Attempt::NotSent => "not sent".to_owned(),
        Attempt::Lost => "no answer".to_owned(),
    }
}

/// The tags of all values that a read returned. `None`: some value was not written by any client.
fn shown(answer: &ReadAnswer) -> Option<Tags> {
    if answer.siblings.is_empty() {
        return from_value(&answer.value);
    }
    let sets: Option<Vec<Tags>> = answer.siblings.iter().map(|sibling| from_value(&sibling.value)).collect();
    Some(sets?.into_iter().flatten().collect())
}
