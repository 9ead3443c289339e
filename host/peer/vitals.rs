//! The health of a node: whether it is connected and answers, its latency, and the trust in its store.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::watch;
use witan_kernel::capability;
use witan_kernel::condition::Condition;
use witan_kernel::fault::Fault;
use witan_kernel::hook::ReplicaState;
use witan_kernel::name::StoreId;
use witan_kernel::scan::{Standing, Trust};
use witan_kernel::sync::lock;

use super::usual::Usual;

/// The health of a node, written by its lanes.
#[derive(Debug)]
pub(super) struct Vitals {
    connected: AtomicBool,
    /// It is connected, and has left requests unanswered for suspiciously long.
    silent: AtomicBool,
    /// How often either has begun.
    outages: AtomicU64,
    /// Packed [`Use`] of its present store.
    uses: AtomicU64,
    /// The highest commit number that its present store has shown.
    commit: AtomicU64,
    /// The highest fence that any of its stores has been known to have here.
    fence: AtomicU64,
    /// How often its store was opened, if that acknowledges before it syncs.
    unsynced_boot: AtomicU64,
    /// It did not name [`capability::NAMES`] in its last handshake.
    lacks_names: AtomicBool,
    /// It did not name [`capability::FENCES`] in its last handshake.
    lacks_fences: AtomicBool,
    /// It named [`capability::MOVES`] in its last handshake.
    has_moves: AtomicBool,
    /// It named [`capability::COLLECT`] in its last handshake.
    has_collect: AtomicBool,
    /// It named [`capability::AGES`] in its last handshake.
    has_ages: AtomicBool,
    /// It named [`capability::DIGESTS`] in its last handshake.
    has_digests: AtomicBool,
    /// It named [`capability::GENERATIONS`] in its last handshake.
    has_generations: AtomicBool,
    in_flight: AtomicU32,
    /// The largest number of requests in flight between the last two ticks.
    in_flight_peak: AtomicU32,
    p50_us: AtomicU32,
    p99_us: AtomicU32,
    /// What its latency usually is.
    pub(super) usual: Usual,
    store: Mutex<Option<StoreId>>,
    /// The store has failed: the node is asked last.
    failed: AtomicBool,
    /// The condition of its store as last reported; `None` if the node does not report it.
    condition: Mutex<Option<Condition>>,
    /// Whether the first attempt to connect has succeeded or failed.
    tried: watch::Sender<bool>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            connected: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            outages: AtomicU64::new(0),
            uses: AtomicU64::new(Use::NONE.packed()),
            commit: AtomicU64::new(0),
            fence: AtomicU64::new(0),
            unsynced_boot: AtomicU64::new(0),
            lacks_names: AtomicBool::new(false),
            lacks_fences: AtomicBool::new(false),
            has_moves: AtomicBool::new(false),
            has_collect: AtomicBool::new(false),
            has_ages: AtomicBool::new(false),
            has_digests: AtomicBool::new(false),
            has_generations: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            in_flight_peak: AtomicU32::new(0),
            p50_us: AtomicU32::new(0),
            p99_us: AtomicU32::new(0),
            usual: Usual::default(),
            store: Mutex::new(None),
            failed: AtomicBool::new(false),
            condition: Mutex::new(None),
            tried: watch::Sender::new(false),
        }
    }
}

impl Vitals {
    pub(super) fn state(&self) -> ReplicaState {
        ReplicaState {
            reachable: self.connected.load(Ordering::Relaxed)
                && !self.silent.load(Ordering::Relaxed)
                && self.uses().trust == Trust::Whole
                && !self.failed.load(Ordering::Relaxed),
            latency_p50_us: self.p50_us.load(Ordering::Relaxed),
            latency_p99_us: self.p99_us.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }

    pub(super) fn recent_state(&self) -> ReplicaState {
        ReplicaState { in_flight: self.in_flight_peak.load(Ordering::Relaxed), ..self.state() }
    }

    pub(super) fn has_names(&self) -> bool {
        !self.lacks_names.load(Ordering::Relaxed)
    }

    pub(super) fn has_fences(&self) -> bool {
        !self.lacks_fences.load(Ordering::Relaxed)
    }

    pub(super) fn has_moves(&self) -> bool {
        self.has_moves.load(Ordering::Relaxed)
    }

    pub(super) fn has_collect(&self) -> bool {
        self.has_collect.load(Ordering::Relaxed)
    }

    pub(super) fn has_ages(&self) -> bool {
        self.has_ages.load(Ordering::Relaxed)
    }

    pub(super) fn has_digests(&self) -> bool {
        self.has_digests.load(Ordering::Relaxed)
    }

    pub(super) fn has_generations(&self) -> bool {
        self.has_generations.load(Ordering::Relaxed)
    }

    pub(super) fn set_capabilities(&self, named: &[String]) {
        let lacks = |capability| !named.iter().any(|name| name == capability);
        self.lacks_names.store(lacks(capability::NAMES), Ordering::Relaxed);
        self.lacks_fences.store(lacks(capability::FENCES), Ordering::Relaxed);
        self.has_moves.store(!lacks(capability::MOVES), Ordering::Relaxed);
        self.has_collect.store(!lacks(capability::COLLECT), Ordering::Relaxed);
        self.has_ages.store(!lacks(capability::AGES), Ordering::Relaxed);
        self.has_digests.store(!lacks(capability::DIGESTS), Ordering::Relaxed);
        self.has_generations.store(!lacks(capability::GENERATIONS), Ordering::Relaxed);
    }

    pub(super) fn store_id(&self) -> Option<StoreId> {
        *lock(&self.store)
    }

    pub(super) async fn tried(&self) {
        // This cannot fail, because the sender lives as long as `self`.
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// What the node's present store may be used for.
    pub(super) fn uses(&self) -> Use {
        Use::unpacked(self.uses.load(Ordering::Acquire))
    }

    /// The use of `store`, if that is the node's present store.
    pub(super) fn uses_of(&self, store: StoreId) -> Option<Use> {
        let known = lock(&self.store);
        (*known == Some(store)).then(|| self.uses())
    }

    /// The condition of the node's store; `None` while the node is not connected or does not report it.
    pub(super) fn condition(&self) -> Option<Condition> {
        lock(&self.condition).clone().filter(|_| self.is_connected())
    }

    /// The node has reported the condition of its store. Returns whether it is another one than before.
    pub(super) fn set_condition(&self, condition: Option<Condition>) -> bool {
        let mut kept = lock(&self.condition);
        self.failed.store(condition.as_ref().is_some_and(Condition::is_failed), Ordering::Relaxed);
        let changed = *kept != condition;
        *kept = condition;
        changed
    }

    /// The highest commit number that `store` has shown here; 0 if that is not the node's present store.
    pub(super) fn commit_of(&self, store: StoreId) -> u64 {
        let known = lock(&self.store);
        if *known == Some(store) { self.commit.load(Ordering::Acquire) } else { 0 }
    }

    /// The node's present store, and the highest commit number that it has shown here.
    pub(super) fn commits_known(&self) -> Option<(StoreId, u64)> {
        let known = lock(&self.store);
        (*known).map(|store| (store, self.commit.load(Ordering::Acquire)))
    }

    /// The node has this fence, or a higher one.
    pub(super) fn fenced(&self, epoch: u64) {
        self.fence.fetch_max(epoch, Ordering::Relaxed);
    }

    /// The node has said in a handshake how often its store was opened, if that acknowledges before it syncs.
    pub(super) fn opened(&self, unsynced_boot: u64) {
        self.unsynced_boot.store(unsynced_boot, Ordering::Relaxed);
    }

    pub(super) fn unsynced_boot(&self) -> u64 {
        self.unsynced_boot.load(Ordering::Relaxed)
    }

    /// The highest fence that it is known to have; 0: none.
    pub(super) fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    /// The node's present store has this commit number at least.
    pub(super) fn committed(&self, commit: u64) {
        if commit > self.commit.load(Ordering::Relaxed) {
            self.commit.fetch_max(commit, Ordering::AcqRel);
        }
    }

    /// As [`Self::committed`], if `store` is the node's present store.
    pub(super) fn committed_by(&self, store: StoreId, commit: u64) {
        let known = lock(&self.store);
        if *known == Some(store) {
            self.commit.fetch_max(commit, Ordering::AcqRel);
        }
    }

    /// As [`Self::committed`], for a store that may not be the present one: then it becomes that, and may not be used yet.
    pub(super) fn expects(&self, store: StoreId, commit: u64) {
        let mut known = lock(&self.store);
        if known.replace(store) != Some(store) {
            self.commit.store(0, Ordering::Release);
            let uses = Use { store: self.uses().store + 1, ends: 0, trust: Trust::Unadmitted };
            self.uses.store(uses.packed(), Ordering::Release);
        }
        self.commit.fetch_max(commit, Ordering::AcqRel);
    }

    /// The node's store and what it may be used for; `None` unless the node is connected.
    pub(super) fn standing(&self) -> Option<Standing> {
        let known = lock(&self.store);
        let store = (*known).filter(|_| self.is_connected())?;
        Some(Standing { store, trust: self.uses().trust })
    }

    /// Sets what `store` may be used for, unless the node has another store by now. True when that is something else than before.
    pub(super) fn trust(&self, store: StoreId, trust: Trust) -> bool {
        let known = lock(&self.store);
        let uses = self.uses();
        if *known != Some(store) || uses.trust == trust {
            return false;
        }
        // What a store has acknowledged does not count any longer once it may not be used.
        let ends = uses.ends + u32::from(trust != Trust::Whole);
        self.uses.store(Use { ends, trust, ..uses }.packed(), Ordering::Release);
        true
    }

    /// The node is connected, and shows this store with this commit number. Returns the use of the store.
    pub(super) fn connected(&self, store: StoreId, commit: u64, trust: Trust) -> Use {
        self.expects(store, commit);
        // What was known before has been compared, and an operator may have declared that the store is an earlier copy.
        self.commit.store(commit, Ordering::Release);
        self.trust(store, trust);
        self.silent.store(false, Ordering::Relaxed);
        self.connected.store(true, Ordering::Relaxed);
        self.tried.send_replace(true);
        self.uses()
    }

    pub(super) fn disconnected(&self) {
        if self.connected.swap(false, Ordering::Relaxed) {
            self.outages.fetch_add(1, Ordering::Relaxed);
        }
        self.tried.send_replace(true);
    }

    pub(super) fn set_silent(&self, silent: bool) {
        if !self.silent.swap(silent, Ordering::Relaxed) && silent {
            self.outages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often the node could not be reached any longer.
    pub(super) fn outages(&self) -> u64 {
        self.outages.load(Ordering::Relaxed)
    }

    pub(super) fn set_in_flight(&self, in_flight: usize) {
        self.in_flight.store(in_flight as u32, Ordering::Relaxed);
    }

    pub(super) fn set_in_flight_peak(&self, in_flight: usize) {
        self.in_flight_peak.store(in_flight as u32, Ordering::Relaxed);
    }

    pub(super) fn set_latency(&self, p50_us: u32, p99_us: u32) {
        self.p50_us.store(p50_us, Ordering::Relaxed);
        self.p99_us.store(p99_us, Ordering::Relaxed);
    }
}

/// What the present store of a node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// How many stores the node has had.
    pub(super) store: u32,
    /// How often this store could not be used any longer, or not for everything.
    ends: u32,
    pub(super) trust: Trust,
}

impl Use {
    const NONE: Self = Self { store: 0, ends: 0, trust: Trust::Unadmitted };

    /// Grows whenever the node has another store, or its store may not be used any longer.
    pub(super) fn incarnation(self) -> u64 {
        self.packed() >> 2
    }

    fn packed(self) -> u64 {
        u64::from(self.store) << 32 | u64::from(self.ends) << 2 | self.trust as u64
    }

    fn unpacked(packed: u64) -> Self {
        let trust = [Trust::Whole, Trust::Filling].into_iter().find(|trust| *trust as u64 == packed & 3);
        let (store, ends) = ((packed >> 32) as u32, (packed >> 2 & 0x3fff_ffff) as u32);
        Self { store, ends, trust: trust.unwrap_or(Trust::Unadmitted) }
    }

    /// True when a request may be sent to the store; `fills`: it is one that a store needs while it is being filled.
    pub(super) fn permits(self, fills: bool) -> bool {
        match self.trust {
            Trust::Whole => true,
            Trust::Filling => fills,
            Trust::Unadmitted => fills && Fault::UnadmittedStoreCounted.is_on(),
        }
    }
}

/// A histogram of recent round-trip times, in buckets a quarter of an octave wide. Each [`Latencies::publish`] halves the counts,
/// so that old ones fade.
#[derive(Debug)]
pub(super) struct Latencies {
    buckets: [u32; BUCKETS],
    fresh: u32,
}

/// Four per octave, up to 2^26 us (about a minute).
const BUCKETS: usize = 26 * 4;

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], fresh: 0 }
    }
}

impl Latencies {
    pub(super) fn record(&mut self, micros: u64) {
        self.buckets[bucket(micros)] += 1;
        self.fresh += 1;
    }

    /// The median and the 99th percentile in microseconds, if anything was recorded since the last call.
    pub(super) fn publish(&mut self) -> Option<(u32, u32)> {
        if std::mem::take(&mut self.fresh) == 0 {
            return None;
        }
        let total: u64 = self.buckets.iter().map(|count| u64::from(*count)).sum();
        let quantile = |per_mille: u64| {
            let rank = (total * per_mille).div_ceil(1000).max(1);
            let mut seen = 0;
            let at = self.buckets.iter().position(|count| {
                seen += u64::from(*count);
                seen >= rank
            });
            upper_bound(at.unwrap_or(BUCKETS - 1))
        };
        let answer = (quantile(500), quantile(990));
        for count in &mut self.buckets {
            *count /= 2;
        }
        Some(answer)
    }
}

fn bucket(micros: u64) -> usize {
    let micros = micros.max(1);
    let octave = micros.ilog2() as usize;
    let quarter = if octave >= 2 { (micros >> (octave - 2)) as usize & 3 } else { 0 };
    (octave * 4 + quarter).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u32 {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    if octave >= 2 { ((5 + quarter) << (octave - 2)) as u32 } else { 1 << (octave + 1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    #[test]
    fn quantiles_are_within_a_quarter() {
        let mut latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.record(micros);
        }
        let (p50, p99) = latencies.publish().unwrap();
        assert!((500..=640).contains(&p50), "{p50}");
        assert!((990..=1280).contains(&p99), "{p99}");
        assert_eq!(latencies.publish(), None, "nothing new");
    }

    #[test]
    fn a_node_has_what_it_named_in_its_last_handshake() {
        let vitals = Vitals::default();
        let has = |vitals: &Vitals| {
            let of_moves = (vitals.has_fences(), vitals.has_moves());
            (of_moves, vitals.has_ages(), vitals.has_collect(), (vitals.has_digests(), vitals.has_generations()))
        };
        assert_eq!(has(&vitals), ((true, false), false, false, (false, false)), "before the first one");
        for (named, expected) in [
            (
                &[capability::FENCES, capability::MOVES, capability::AGES][..],
                ((true, true), true, false, (false, false)),
            ),
            (&[capability::FENCES, capability::DIGESTS], ((true, false), false, false, (true, false))),
            (&[capability::FENCES, capability::GENERATIONS], ((true, false), false, false, (false, true))),
            (&[capability::AGES], ((false, false), true, false, (false, false))),
            (&[capability::COLLECT], ((false, false), false, true, (false, false))),
            (&[], ((false, false), false, false, (false, false))),
        ] {
            vitals.set_capabilities(&named.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            assert_eq!(has(&vitals), expected, "{named:?}");
        }
    }

    proptest! {
        #[test]
        fn a_bucket_reaches_up_to_its_bound(micros in 4u64..60_000_000) {
            let bound = u64::from(upper_bound(bucket(micros)));
            prop_assert!(micros <= bound && bound <= micros + micros / 4 + 1, "{micros} in {bound}");
        }
    }
}
