//! Clients: their requests, how long they wait, and what they conclude when no answer arrives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use witan_coordinate::{ReadAnswer, ReadRequest, WriteRequest};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::name::Key;
use witan_kernel::tenant::{IdempotencyOutage, Level};

use crate::cluster::{Call, Cluster};
use crate::history::{History, Intention, Operation, Outcome, Place};
use crate::nemesis::{Action, Storm};
use crate::scenario::{Cast, Manner, Scenario};
use crate::world::{Tags, from_value, lock, now_micros, to_value};

/// A command from the play to the loop that steps the simulation.
pub(crate) enum Command {
    Storm(Storm),
    Heal,
    /// A node loses power, and its disk what it acknowledged last.
    Damage(usize),
    Wipe(usize),
    /// Cuts the links between a node and all coordinators, in both directions.
    CutOff(usize),
    Do(Action),
}

/// One in this many acknowledged changes is sent again.
const REPEATED: u32 = 5;

/// A change whose outcome is unknown to its client, and which it can retry.
pub(crate) struct Doubtful {
    index: usize,
    request: WriteRequest,
}

/// An acknowledged change with an idempotency key, of which the idempotency store must have a record.
#[derive(Clone)]
pub(crate) struct Acknowledged {
    place: Place,
    tag: u32,
    request: WriteRequest,
}

/// The state shared by all clients of a simulation.
pub(crate) struct Stage {
    pub(crate) scenario: Scenario,
    pub(crate) cluster: Cluster,
    pub(crate) history: History,
    pub(crate) commands: Mutex<VecDeque<Command>>,
    pub(crate) violations: Mutex<Vec<String>>,
    pub(crate) doubtful: Mutex<Vec<Doubtful>>,
    pub(crate) acknowledged: Mutex<Vec<Acknowledged>>,
    /// True once the tenants that are created during the play exist.
    pub(crate) grown: AtomicBool,
}

impl Acknowledged {
    fn is_repeated(&self) -> bool {
        self.tag.is_multiple_of(REPEATED) && self.request.idempotency_key.is_some()
    }
}

impl Stage {
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        self.history.note(now_micros(), what);
    }

    pub(crate) fn violated(&self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        lock(&self.violations).push(what);
    }

    pub(crate) fn command(&self, command: Command) {
        lock(&self.commands).push_back(command);
    }

    pub(crate) fn key(place: Place) -> Key {
        Key::from_trusted(Bytes::from(format!("key-{}", place.1)))
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let grown = self.grown.load(Ordering::Relaxed);
        let casts = self.scenario.casts.iter().enumerate().filter(|(_, cast)| grown || !cast.comes_later);
        casts.flat_map(|(tenant, cast)| (0..cast.keys).map(move |key| (tenant, key))).collect()
    }
}

/// The result of sending one request.
enum Attempt<T> {
    /// An answer arrived.
    Answered(Result<T, Failed>),
    /// The request was not sent.
    NotSent,
    /// No answer arrived in time.
    Lost,
}

/// Whether faults may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Calm,
    Stormy,
}

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
}

/// How long a client waits without faults: longer than any deadline of a coordinator.
const CALM_PATIENCE: Duration = Duration::from_secs(12);

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
                let coordinator = self.any_coordinator();
                self.read(place, if weak { Some(Level::One) } else { None }, coordinator, mood).await;
            } else {
                self.change(place, mood).await;
            }
        }
    }

    /// Writes this many times to the last tenant's first key, without a context.
    pub(crate) async fn pile_up(&mut self, writes: usize) {
        let place = (self.stage.scenario.casts.len() - 1, 0);
        for _ in 0..writes {
            self.change_with(place, Mood::Stormy, Some(None)).await;
        }
    }

    /// Writes a new value to a key until the write is acknowledged or the attempts are used up.
    pub(crate) async fn write(&mut self, place: Place, attempts: u64) -> bool {
        let tag = self.stage.history.fresh_tag();
        let carries = Tags::from([tag]);
        let request = WriteRequest {
            tenant: self.cast(place).tenant.id.clone(),
            key: Stage::key(place),
            value: Some(to_value(&carries)),
            level: None,
            idempotency_key: Some(format!("intention-{tag}")),
            context: Bytes::new(),
            arrived: None,
            timeout: None,
        };
        let operation = Operation {
            client: self.id,
            place,
            intention: Intention::Write { tag, carries },
            seen: None,
            level_all: false,
            weak: false,
            start: 0,
            end: 0,
            outcome: Outcome::Unknown,
        };
        let index = self.stage.history.start(operation);
        self.insist(index, request, attempts, Mood::Stormy, false).await;
        self.stage.history.operations()[index].is_acknowledged()
    }

    fn any_coordinator(&mut self) -> usize {
        self.rng.random_range(0..self.stage.cluster.coordinators.len())
    }

    /// Reads, and returns the tags shown; `None` if the read failed.
    pub(crate) async fn read(
        &mut self,
        place: Place,
        level: Option<Level>,
        coordinator: usize,
        mood: Mood,
    ) -> Option<Tags> {
        let operation = Operation {
            client: self.id,
            place,
            intention: Intention::Read,
            seen: None,
            level_all: level == Some(Level::All),
            weak: level == Some(Level::One),
            start: 0,
            end: 0,
            outcome: Outcome::Unknown,
        };
        let index = self.stage.history.start(operation);
        let patience = self.patience(mood);
        let request = ReadRequest {
            tenant: self.cast(place).tenant.id.clone(),
            key: Stage::key(place),
            level,
            arrived: None,
            timeout: Some(patience),
        };
        let attempt = self.attempt(coordinator, patience, mood, |to| Call::Read(request, to)).await;
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
        self.remember(place, Context { token: context, seen: shown.clone(), live: shown.clone() });
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
        if kept == 0 || self.chance(350) {
            return None;
        }
        let back = if self.chance(150) { self.rng.random_range(0..kept) } else { 0 };
        self.contexts.get(&place).and_then(|contexts| contexts.get(kept - 1 - back)).cloned()
    }

    async fn change(&mut self, place: Place, mood: Mood) {
        self.change_with(place, mood, None).await;
    }

    /// Writes or deletes, with retries.
    async fn change_with(&mut self, place: Place, mood: Mood, context: Option<Option<Context>>) {
        let blind = context.is_some();
        let context = context.unwrap_or_else(|| self.context(place));
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
        let named = blind || self.chance(self.manner().named);
        let request = WriteRequest {
            tenant: self.cast(place).tenant.id.clone(),
            key: Stage::key(place),
            value: match &intention {
                Intention::Write { carries, .. } => Some(to_value(carries)),
                _ => None,
            },
            level: weak.then_some(Level::One),
            idempotency_key: named.then(|| format!("intention-{tag}")),
            context: context.as_ref().map(|context| context.token.clone()).unwrap_or_default(),
            arrived: None,
            timeout: None,
        };
        let operation = Operation {
            client: self.id,
            place,
            intention,
            seen: context.map(|context| context.seen),
            level_all: false,
            weak,
            start: 0,
            end: 0,
            outcome: Outcome::Unknown,
        };
        let (id, shown) = (self.id, operation.clone());
        self.stage.note(|| {
            let name = if named { "" } else { ", unnamed" };
            format!("client {id} wants {:?} at {place:?}, seen {:?}{name}", shown.intention, shown.seen)
        });
        let index = self.stage.history.start(operation);
        let attempts = if named { self.rng.random_range(1..=self.manner().attempts) } else { 1 };
        self.insist(index, request, attempts, mood, false).await;
    }

    /// Retries a change that is in doubt.
    pub(crate) async fn retry(&mut self, doubtful: Doubtful) {
        let Doubtful { index, request } = doubtful;
        self.insist(index, request, 3, Mood::Stormy, true).await;
    }

    /// Sends a change until it is acknowledged or the attempts are used up. `doubt`: it may have been applied already.
    async fn insist(&mut self, index: usize, request: WriteRequest, attempts: u64, mood: Mood, mut doubt: bool) {
        let stage = Arc::clone(&self.stage);
        let operation = stage.history.operations()[index].clone();
        let (place, tag) = (operation.place, operation.tag().unwrap_or_default());
        let mut coordinator = self.any_coordinator();
        for attempt in 1..=attempts {
            let patience = self.patience(mood);
            let sent = WriteRequest { timeout: Some(patience), ..request.clone() };
            let answer = self.attempt(coordinator, patience, mood, |to| Call::Write(sent, to)).await;
            let description = match &answer {
                Attempt::Answered(Ok(written)) => {
                    format!("done by {} replicas, duplicate {}", written.replicas, written.duplicate)
                }
                Attempt::Answered(Err(failed)) => format!("failed ({:?}): {failed}", failed.effect),
                Attempt::NotSent => "not sent".to_owned(),
                Attempt::Lost => "no answer".to_owned(),
            };
            let id = self.id;
            stage.note(|| format!("client {id} gets for {tag} at {place:?} from c{}: {description}", coordinator + 1));
            if mood == Mood::Calm && !matches!(answer, Attempt::Answered(Ok(_))) {
                stage.violated(format!("success: change {tag} at {place:?} failed without faults: {description}"));
            }
            match answer {
                Attempt::Answered(Ok(written)) => {
                    let mut seen = operation.seen.clone().unwrap_or_default();
                    seen.insert(tag);
                    let live = match operation.intention {
                        Intention::Write { carries, .. } => carries,
                        _ => Tags::new(),
                    };
                    self.remember(place, Context { token: written.context, seen, live });
                    stage.history.end(index, Outcome::Done);
                    let acknowledged = Acknowledged { place, tag, request };
                    if acknowledged.is_repeated()
                        && self.cast(place).tenant.idempotency_outage == IdempotencyOutage::Reject
                    {
                        lock(&stage.acknowledged).push(acknowledged.clone());
                        self.repeat(acknowledged, mood).await;
                    }
                    return;
                }
                Attempt::Answered(Err(failed)) => match failed.effect {
                    Some(Effect::NotApplied) => {}
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

    /// Sends an acknowledged change again, as a queue may deliver a message twice: it must be reported as a duplicate.
    pub(crate) async fn repeat(&mut self, acknowledged: Acknowledged, mood: Mood) {
        let Acknowledged { place, tag, request } = acknowledged;
        let (coordinator, patience) = (self.any_coordinator(), self.patience(mood));
        let request = WriteRequest { timeout: Some(patience), ..request };
        let again = self.attempt(coordinator, patience, mood, |to| Call::Write(request, to)).await;
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

    fn patience(&mut self, mood: Mood) -> Duration {
        match mood {
            Mood::Calm => CALM_PATIENCE,
            Mood::Stormy => Duration::from_millis(self.rng.random_range(100..=self.manner().patience_ms)),
        }
    }

    /// Sends one request and waits for the answer, over a network that may lose either.
    async fn attempt<T>(
        &mut self,
        coordinator: usize,
        patience: Duration,
        mood: Mood,
        call: impl FnOnce(oneshot::Sender<Result<T, Failed>>) -> Call,
    ) -> Attempt<T> {
        let stormy = mood == Mood::Stormy;
        let Some(doors) = self.stage.cluster.coordinators[coordinator].doors() else { return Attempt::NotSent };
        let way = Duration::from_millis(self.rng.random_range(0..=4));
        tokio::time::sleep(way).await;
        if stormy && self.chance(self.manner().lost) {
            tokio::time::sleep(patience).await;
            return Attempt::Lost;
        }
        let (to, answer) = oneshot::channel();
        if doors.calls.send(call(to)).is_err() {
            return Attempt::NotSent;
        }
        if stormy && self.chance(self.manner().cancelled) {
            let soon = Duration::from_millis(self.rng.random_range(0..=60));
            tokio::time::sleep(soon).await;
            return Attempt::Lost;
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(_)) if stormy && self.chance(self.manner().lost) => Attempt::Lost,
            Ok(Ok(result)) => Attempt::Answered(result),
            Ok(Err(_)) | Err(_) => Attempt::Lost,
        }
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
