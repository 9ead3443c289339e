//! Clients that read, write and delete while placements change, and what the cluster may have afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Api, PATIENCE, Refusal, Session, delete, eventually, read, write};

/// Tenants with one value of each key, and their replication factors at the beginning.
pub(crate) const TENANTS: [(&str, i32); 2] = [("three", 3), ("two", 2)];
/// A tenant with siblings.
pub(crate) const SIBLINGS: &str = "siblings";
/// Clients that work at the same time, each on keys of its own.
pub(crate) const WORKERS: usize = 4;
/// Keys of each worker and tenant: a prime, so that every key is read, written and deleted.
pub(crate) const KEYS: usize = 31;

/// What a key may have: one value after an acknowledged change, more while changes are in doubt. `None`: it has none.
pub(crate) type Possible = BTreeSet<Option<String>>;

/// What a key with siblings has, and may have besides: changes that are in doubt. And the context of what was read last.
#[derive(Default)]
pub(crate) struct Siblings {
    has: BTreeSet<String>,
    may_have: BTreeSet<String>,
    seen: BTreeSet<String>,
    context: Bytes,
}

/// All keys of a load.
#[derive(Default)]
pub(crate) struct Keys {
    pub(crate) registers: BTreeMap<(&'static str, String), Possible>,
    pub(crate) siblings: BTreeMap<String, Siblings>,
}

impl Keys {
    /// The tenants that have keys.
    pub(crate) fn tenants(&self) -> BTreeSet<&'static str> {
        let siblings = (!self.siblings.is_empty()).then_some(SIBLINGS);
        self.registers.keys().map(|(tenant, _)| *tenant).chain(siblings).collect()
    }

    /// Whether each key of a tenant certainly has a value.
    pub(crate) fn of(&self, tenant: &str) -> BTreeMap<&str, bool> {
        if tenant == SIBLINGS {
            return self.siblings.iter().map(|(key, is)| (key.as_str(), !is.has.is_empty())).collect();
        }
        let own = self.registers.iter().filter(|((of, _), _)| *of == tenant);
        own.map(|((_, key), is)| (key.as_str(), !is.contains(&None))).collect()
    }

    /// Reads every key over each coordinator: no read fails, and none finds what cannot be.
    pub(crate) async fn all_read(&mut self, apis: &[Api]) {
        for api in apis {
            for ((tenant, key), possible) in &self.registers {
                read_one(&mut Client::of(api), tenant, key, possible).await.expect("read");
            }
            for (key, is) in &mut self.siblings {
                is.read(api, key).await.expect("read");
            }
        }
    }
}

/// Clients that read, write and delete until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    refusals: Arc<Mutex<Vec<String>>>,
    workers: Vec<JoinHandle<Keys>>,
}

impl Load {
    /// Makes the tenants.
    pub(crate) async fn tenants(api: &Api) {
        for (name, replicas) in TENANTS {
            api.tenant(name, |tenant| tenant.replication_factor = replicas).await;
        }
        api.siblings_tenant(SIBLINGS).await;
    }

    /// Begins. `in_sessions`: half of the clients work over sessions, which end with their coordinator.
    pub(crate) fn start(apis: &[Api], in_sessions: bool) -> Self {
        Self::of(0, apis, in_sessions)
    }

    /// The same, of several loads that work one after the other, each on keys of its own.
    pub(crate) fn of(number: usize, apis: &[Api], in_sessions: bool) -> Self {
        let first = number * WORKERS;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let refusals = Arc::<Mutex<Vec<String>>>::default();
        let worker = |number: usize| {
            let work = Work {
                number,
                apis: apis.to_vec(),
                in_session: in_sessions && number.is_multiple_of(2),
                done: Arc::clone(&done),
                refusals: Arc::clone(&refusals),
                keys: Keys::default(),
            };
            tokio::spawn(work.until(Arc::clone(&stop)))
        };
        Self { workers: (first..first + WORKERS).map(worker).collect(), stop, done, refusals }
    }

    /// Waits until some more operations are done: a change is not over before anything has happened.
    pub(crate) async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("the load goes on", async || {
            (self.done.load(Ordering::Relaxed) >= before + 20 * WORKERS).then_some(())
        })
        .await;
    }

    /// Ends, and returns what was refused.
    pub(crate) async fn end(self) -> (Keys, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Keys::default();
        for worker in self.workers {
            let keys = worker.await.expect("a worker has not failed");
            all.registers.extend(keys.registers);
            all.siblings.extend(keys.siblings);
        }
        let refusals = std::mem::take(&mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner));
        (all, refusals)
    }
}

/// Calls one by one, or in a session.
struct Client {
    api: Api,
    session: Option<Session>,
}

impl Client {
    fn of(api: &Api) -> Self {
        Self { api: api.clone(), session: None }
    }

    async fn change(&mut self, operation: Operation) -> Result<v1::WriteKeyValueResponse, Refusal> {
        match (&mut self.session, operation) {
            (Some(session), operation) => match session.within(PATIENCE, operation).await {
                Outcome::Write(done) => Ok(done),
                Outcome::Status(status) => Err(status.into()),
                other => panic!("the response of another operation: {other:?}"),
            },
            (None, Operation::Write(request)) => self.api.write(request).await,
            (None, Operation::Delete(request)) => self.api.delete(request).await,
            (None, other) => panic!("no change: {other:?}"),
        }
    }

    async fn read(&mut self, request: v1::ReadKeyValueRequest) -> Result<v1::ReadKeyValueResponse, Refusal> {
        let Some(session) = &mut self.session else { return self.api.read(request).await };
        match session.within(PATIENCE, Operation::Read(request)).await {
            Outcome::Read(found) => Ok(found),
            Outcome::Status(status) => Err(status.into()),
            other => panic!("the response of another operation: {other:?}"),
        }
    }
}

struct Work {
    number: usize,
    apis: Vec<Api>,
    in_session: bool,
    done: Arc<AtomicUsize>,
    refusals: Arc<Mutex<Vec<String>>>,
    keys: Keys,
}

impl Work {
    async fn until(mut self, stop: Arc<AtomicBool>) -> Keys {
        let mut clients = Vec::new();
        for api in &self.apis {
            let session = if self.in_session { Some(api.session().await) } else { None };
            clients.push(Client { api: api.clone(), session });
        }
        for turn in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let which = (self.number + turn / 3) % clients.len();
            let (number, n) = (self.number, turn * 7 % KEYS);
            // A hook may place those with the same tag together.
            let key = format!("{{tag-{}}}key-{number}-{n}", n % 5);
            let done = match TENANTS.get(turn % (TENANTS.len() + 1)) {
                Some((tenant, _)) => self.on_register(turn, tenant, key, &mut clients[which]).await,
                None => self.on_siblings(turn, key, &clients[which].api).await,
            };
            if let Err((what, refusal)) = done {
                let said =
                    format!("{what}: {:?} {} {} ({})", refusal.code, refusal.reason, refusal.message, refusal.outcome);
                self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push(said);
                // A coordinator that is not there refuses at once.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        self.keys
    }

    async fn on_register(
        &mut self,
        turn: usize,
        tenant: &'static str,
        key: String,
        client: &mut Client,
    ) -> Result<(), (String, Refusal)> {
        let possible = self.keys.registers.entry((tenant, key.clone())).or_insert_with(|| [None].into());
        let value = format!("{}-{turn}", self.number);
        let named = |what: &str, refusal| (format!("{what} {tenant} {key} turn {turn}"), refusal);
        match turn % 5 {
            0 | 2 => {
                let written = client.change(Operation::Write(write(tenant, &key, value.clone()))).await;
                changed(possible, Some(value), &written);
                written.map(drop).map_err(|refusal| named("write", refusal))
            }
            // The same write twice: whatever happens to the placement in between, it is done once.
            3 => {
                let mut request = write(tenant, &key, value.clone());
                request.idempotency_key = format!("once-{value}");
                for again in [false, true] {
                    let written = client.change(Operation::Write(request.clone())).await;
                    changed(possible, Some(value.clone()), &written);
                    let written = written.map_err(|refusal| named("repeated write", refusal))?;
                    assert!(written.is_duplicate || !again, "{tenant} {key} was written twice");
                }
                Ok(())
            }
            1 => read_one(client, tenant, &key, possible).await.map_err(|refusal| named("read", refusal)),
            _ => {
                let deleted = client.change(Operation::Delete(delete(tenant, &key))).await;
                changed(possible, None, &deleted);
                deleted.map(drop).map_err(|refusal| named("delete", refusal))
            }
        }
    }

    async fn on_siblings(&mut self, turn: usize, key: String, api: &Api) -> Result<(), (String, Refusal)> {
        let is = self.keys.siblings.entry(key.clone()).or_default();
        let value = format!("{}-{turn}", self.number);
        let named = |what: &str, refusal| (format!("{what} {SIBLINGS} {key} turn {turn}"), refusal);
        match turn % 5 {
            // It has seen nothing: a sibling more.
            0 => {
                let written = api.write(write(SIBLINGS, &key, value.clone())).await;
                is.changed(Some(value), &BTreeSet::new(), &written);
                written.map(drop).map_err(|refusal| named("write", refusal))
            }
            1 | 3 => is.read(api, &key).await.map_err(|refusal| named("read", refusal)),
            4 => {
                let context = is.context.clone();
                // Without a context it covers what it finds.
                let seen = if context.is_empty() { is.has.clone() } else { is.seen.clone() };
                let deleted = api.delete(v1::DeleteKeyValueRequest { context, ..delete(SIBLINGS, &key) }).await;
                is.changed(None, &seen, &deleted);
                deleted.map(drop).map_err(|refusal| named("delete", refusal))
            }
            _ => {
                let (seen, context) = (is.seen.clone(), is.context.clone());
                let request = v1::WriteKeyValueRequest { context, ..write(SIBLINGS, &key, value.clone()) };
                let written = api.write(request).await;
                is.changed(Some(value), &seen, &written);
                written.map(drop).map_err(|refusal| named("write", refusal))
            }
        }
    }
}

fn changed<T>(possible: &mut Possible, to: Option<String>, done: &Result<T, Refusal>) {
    match done {
        Ok(_) => *possible = [to].into(),
        Err(refusal) if refusal.outcome == "not-applied" => {}
        Err(_) => _ = possible.insert(to),
    }
}

/// Reads a key at a quorum: what it has must be what it may have.
async fn read_one(client: &mut Client, tenant: &str, key: &str, possible: &Possible) -> Result<(), Refusal> {
    let found = match client.read(read(tenant, key)).await {
        Ok(found) => Some(String::from_utf8(found.value.to_vec()).expect("a value of the load")),
        Err(refusal) if refusal.reason == "KEY_NOT_FOUND" => None,
        // It says nothing about the key.
        Err(refusal) => return Err(refusal),
    };
    assert!(possible.contains(&found), "{tenant} {key} has {found:?}, and may have {possible:?}");
    Ok(())
}

impl Siblings {
    /// A change that covers what was seen.
    fn changed<T>(&mut self, to: Option<String>, seen: &BTreeSet<String>, done: &Result<T, Refusal>) {
        match done {
            Ok(_) => {
                self.has.retain(|value| !seen.contains(value));
                self.may_have.retain(|value| !seen.contains(value));
                self.has.extend(to);
            }
            Err(refusal) if refusal.outcome == "not-applied" => {}
            Err(_) => {
                self.may_have.extend(self.has.extract_if(.., |value| seen.contains(value)));
                self.may_have.extend(to);
            }
        }
    }

    async fn read(&mut self, api: &Api, key: &str) -> Result<(), Refusal> {
        let (values, context) = api.values(read(SIBLINGS, key)).await?;
        let text = |value: Bytes| String::from_utf8(value.to_vec()).expect("a value of the load");
        let found: BTreeSet<String> = values.into_iter().map(text).collect();
        assert!(self.has.is_subset(&found), "{key} has {found:?}, and must have {:?}", self.has);
        let other = found.iter().find(|value| !self.has.contains(*value) && !self.may_have.contains(*value));
        assert_eq!(other, None, "{key} has {found:?}, and may have {:?} and {:?}", self.has, self.may_have);
        (self.seen, self.context) = (found, context);
        Ok(())
    }
}
