//! Components that were pushed and that nobody waits for: how far each has come, the same on every coordinator.

use std::collections::BTreeMap;

use super::{Answer, Digest, StoreError};
use crate::name::{NodeId, TenantId};

/// Most pushes of one owner on record. Of more, the oldest that have ended are forgotten; a client that wants to know looks within minutes,
/// and nobody pushes dozens of components meanwhile.
pub const PUSHES: usize = 32;
/// For how long a push that does not get on is believed to go on, in milliseconds: the five minutes for which a compilation may run on an
/// overloaded machine, the wait for a place to compile in, and as much again. After that its coordinator counts as stopped.
pub const PUSH_STEP_MS: u64 = 600_000;
/// How long a push that has ended is remembered, in milliseconds: a day, so that who pushed in the evening sees in the morning why it was
/// refused.
pub const PUSH_KEPT_MS: u64 = 86_400_000;
/// Longest reason, in bytes: a few lines on a terminal, as of every text about a plugin.
pub const PUSH_REASON_BYTES: usize = 1024;

/// How far a push has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushState {
    /// Received; it waits to be compiled.
    Staged,
    /// It is checked and compiled.
    Compiling,
    /// It is a plugin that can be bound, unless it was removed since.
    Ready,
    /// It was refused, or given up; the reason says which.
    Refused,
}

impl PushState {
    /// Every state, in the order in which a push goes through them.
    pub const ALL: [Self; 4] = [Self::Staged, Self::Compiling, Self::Ready, Self::Refused];

    /// Its name, as the API and the store spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Compiling => "compiling",
            Self::Ready => "ready",
            Self::Refused => "refused",
        }
    }

    /// The state of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether a coordinator still works on it.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Staged | Self::Compiling)
    }
}

impl std::fmt::Display for PushState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A push on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOnRecord {
    /// The tenant that the plugin will belong to; `None`: the operator.
    pub owner: Option<TenantId>,
    /// The component's.
    pub digest: Digest,
    /// The component's bytes.
    pub size: u64,
    /// How far it has come.
    pub state: PushState,
    /// Why it was refused; empty otherwise. At most [`PUSH_REASON_BYTES`].
    pub reason: String,
    /// The coordinator that works, or worked, on it.
    pub worker: NodeId,
    /// When the state became this one, by the store's clock: Unix time, milliseconds. A store sets it.
    pub since_ms: u64,
}

impl PushOnRecord {
    /// What is to be said of it now; `None`: it is forgotten. Nothing is under way for ever.
    pub fn seen(&self, now_ms: u64) -> Option<Self> {
        let age = now_ms.saturating_sub(self.since_ms);
        if age >= PUSH_KEPT_MS {
            return None;
        }
        if self.state.is_under_way() && age >= PUSH_STEP_MS {
            let (worker, seconds) = (&self.worker, PUSH_STEP_MS / 1000);
            let reason = format!("coordinator {worker} has not gone on with it for {seconds} s; push it again");
            return Some(Self { state: PushState::Refused, reason, ..self.clone() });
        }
        Some(self.clone())
    }

    /// The same of an unfinished push whose coordinator was started again.
    pub fn abandoned(&self) -> Self {
        let reason = format!("coordinator {} was stopped before it had compiled it; push it again", self.worker);
        Self { state: PushState::Refused, reason, ..self.clone() }
    }
}

/// What comes of a push that would begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushBegun {
    /// It has begun, and its coordinator works on it.
    Begun,
    /// The same component of this owner is worked on already.
    UnderWay(PushOnRecord),
}

/// What a store has to do for a push that would begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing: the same is worked on already.
    UnderWay(PushOnRecord),
    /// To forget these pushes of the owner, and to keep the new one.
    Begin(Vec<Digest>),
}

/// Decides it. `own`: the pushes of its owner on record.
///
/// # Errors
/// [`StoreError::Refused`] when [`PUSHES`] of the owner are under way.
pub fn beginning<'a>(
    own: impl Iterator<Item = &'a PushOnRecord>,
    digest: Digest,
    now_ms: u64,
) -> Result<Beginning, StoreError> {
    let (mut forgotten, mut ended, mut under_way) = (Vec::new(), Vec::new(), 0);
    for push in own {
        match push.seen(now_ms) {
            Some(seen) if seen.state.is_under_way() && seen.digest == digest => return Ok(Beginning::UnderWay(seen)),
            Some(seen) if seen.state.is_under_way() => under_way += 1,
            Some(seen) if seen.digest != digest => ended.push(seen),
            Some(_) | None => forgotten.push(push.digest),
        }
    }
    if under_way >= PUSHES {
        let problem = format!("{PUSHES} pushes are under way, the most for one owner; wait for some to end");
        return Err(StoreError::Refused(problem));
    }
    ended.sort_by_key(|push| push.since_ms);
    let surplus = (under_way + ended.len() + 1).saturating_sub(PUSHES);
    forgotten.extend(ended.iter().take(surplus).map(|push| push.digest));
    Ok(Beginning::Begin(forgotten))
}

/// Pushes on record.
pub trait PushStore: Send + Sync + 'static {
    /// Records a push that begins, as [`PushState::Staged`], unless the same is under way. [`StoreError::Refused`] when too many of its
    /// owner are.
    fn begin_push(&self, push: PushOnRecord) -> Answer<PushBegun>;

    /// Records how far a push has come that is under way at its worker; false, and nothing is recorded, when it is no longer. A component
    /// that is stored for its owner makes its push ready by itself.
    fn step_push(&self, push: PushOnRecord) -> Answer<bool>;

    /// A push, as it is seen now.
    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Answer<Option<PushOnRecord>>;

    /// Records that what this coordinator was working on has been abandoned, because it has been started again.
    fn abandon_pushes(&self, worker: &NodeId) -> Answer<()>;
}

/// Pushes in memory.
#[derive(Debug, Clone, Default)]
pub struct PushTable(BTreeMap<(Option<TenantId>, Digest), PushOnRecord>);

impl PushTable {
    /// As [`PushStore::begin_push`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(&mut self, push: PushOnRecord, now_ms: u64) -> Result<PushBegun, StoreError> {
        self.0.retain(|_, push| push.seen(now_ms).is_some());
        let own = self.0.values().filter(|known| known.owner == push.owner);
        match beginning(own, push.digest, now_ms)? {
            Beginning::UnderWay(known) => Ok(PushBegun::UnderWay(known)),
            Beginning::Begin(forgotten) => {
                for digest in forgotten {
                    self.0.remove(&(push.owner.clone(), digest));
                }
                let push = PushOnRecord { since_ms: now_ms, state: PushState::Staged, ..push };
                self.0.insert((push.owner.clone(), push.digest), push);
                Ok(PushBegun::Begun)
            }
        }
    }

    /// As [`PushStore::step_push`].
    pub fn step(&mut self, push: PushOnRecord, now_ms: u64) -> bool {
        let Some(known) = self.0.get_mut(&(push.owner.clone(), push.digest)) else { return false };
        if known.worker != push.worker || !known.state.is_under_way() {
            return false;
        }
        *known = PushOnRecord { since_ms: now_ms, ..push };
        true
    }

    /// A component of this owner is stored.
    pub fn stored(&mut self, owner: Option<&TenantId>, digest: Digest, now_ms: u64) {
        if let Some(known) = self.0.get_mut(&(owner.cloned(), digest)) {
            (known.state, known.reason, known.since_ms) = (PushState::Ready, String::new(), now_ms);
        }
    }

    /// As [`PushStore::push`].
    pub fn get(&self, owner: Option<&TenantId>, digest: Digest, now_ms: u64) -> Option<PushOnRecord> {
        self.0.get(&(owner.cloned(), digest))?.seen(now_ms)
    }

    /// As [`PushStore::abandon_pushes`].
    pub fn abandon(&mut self, worker: &NodeId, now_ms: u64) {
        let own = self.0.values_mut().filter(|push| push.worker == *worker && push.state.is_under_way());
        for push in own {
            *push = PushOnRecord { since_ms: now_ms, ..push.abandoned() };
        }
    }

    /// Forgets those of a deleted tenant.
    pub fn forget_of(&mut self, tenant: &TenantId) {
        self.0.retain(|(owner, _), _| owner.as_ref() != Some(tenant));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(of: u8, state: PushState, since_ms: u64) -> PushOnRecord {
        let worker = NodeId::new("c-1").unwrap();
        PushOnRecord { owner: None, digest: Digest([of; 32]), size: 9, state, reason: String::new(), worker, since_ms }
    }

    #[test]
    fn nothing_is_under_way_for_ever() {
        for state in [PushState::Staged, PushState::Compiling] {
            let push = push(1, state, 5);
            assert_eq!(push.seen(5 + PUSH_STEP_MS - 1).unwrap().state, state);
            let given_up = push.seen(5 + PUSH_STEP_MS).unwrap();
            assert_eq!(given_up.state, PushState::Refused);
            assert!(given_up.reason.contains("c-1") && given_up.reason.contains("push it again"), "{given_up:?}");
            assert_eq!(push.seen(5 + PUSH_KEPT_MS), None);
        }
        let refused = push(1, PushState::Refused, 5);
        assert_eq!(refused.seen(4 + PUSH_KEPT_MS), Some(refused.clone()));
        assert_eq!(refused.seen(5 + PUSH_KEPT_MS), None);
    }

    #[test]
    fn a_push_begins_unless_the_same_is_under_way() {
        let (digest, known) = (Digest([1; 32]), push(1, PushState::Compiling, 5));
        let own = [known.clone(), push(2, PushState::Staged, 5)];
        assert_eq!(beginning(own.iter(), digest, 9), Ok(Beginning::UnderWay(known)));
        assert_eq!(beginning(own.iter(), Digest([3; 32]), 9), Ok(Beginning::Begin(Vec::new())));
        // One that was given up, or was refused, is replaced.
        assert_eq!(beginning(own[..1].iter(), digest, 5 + PUSH_STEP_MS), Ok(Beginning::Begin(vec![digest])));
        let refused = [push(1, PushState::Refused, 5)];
        assert_eq!(beginning(refused.iter(), digest, 9), Ok(Beginning::Begin(vec![digest])));
    }

    #[test]
    fn pushes_of_an_owner_are_bounded() {
        let mut own: Vec<_> = (0..PUSHES as u8).map(|of| push(of, PushState::Refused, 100 - u64::from(of))).collect();
        let next = Digest([99; 32]);
        let oldest = own.last().unwrap().digest;
        assert_eq!(beginning(own.iter(), next, 200), Ok(Beginning::Begin(vec![oldest])));
        own.iter_mut().for_each(|push| push.state = PushState::Staged);
        assert!(matches!(beginning(own.iter(), next, 200), Err(StoreError::Refused(_))));
        own[3].state = PushState::Ready;
        assert_eq!(beginning(own.iter(), next, 200), Ok(Beginning::Begin(vec![own[3].digest])));
    }
}
