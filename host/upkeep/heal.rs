//! Healing: what a cluster does by itself so that its replicas become level without reads and without an operator.
//!
//! - *Comparison*: all replicas of each part of the ring are compared every `compare_every`, by the digests that nodes keep; only what
//!   differs is read.
//! - *Scrubbing*: the same by reading everything, every `scrub_every`: digests do not show what has rotted on a disk.
//! - *Making good*: a node that has missed changes, because it was away or has refused them, is compared with the other replicas in the
//!   slices concerned once it can be reached.
//! - *Catching up*: a node is compared in all of its ranges, where a coordinator of the previous version has asked for it.
//! - *Filling*: the new store of a node is admitted and filled once it has waited for `admit_after`, as by `witan repair`, or at once if an
//!   operator has asked for that.
//!
//! What is compared routinely leaves nothing behind of keys that were deleted long ago.
//!
//! All of it is the sweep of a repair, at a bounded rate. It blocks no operation and decides nothing that a read would not decide. A claim
//! in the metadata store says which coordinator does which part; a pass that is interrupted is continued by whoever claims it next. A
//! coordinator does one pass of each kind at a time, so that the work is spread evenly over those that are live.
//!
//! `watch` looks at nodes, `missed` knows what they have missed, `owed` sees to it, `schedule` decides what else is due, `pass` carries
//! all of it out, and `replace` keeps on record how far a store is that an operator has asked to fill.

pub(crate) mod missed;
mod owed;
mod pass;
mod replace;
mod schedule;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch as flag;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use witan_coordinate::World;
use witan_kernel::backoff::{Backoff, seed};
use witan_kernel::limit::GRACE;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Claimant, Clock, Duties, Duty, DutyKind, DutyOnRecord, Metadata, StoreError};
use witan_kernel::scan::Ranges;
use witan_kernel::sync::lock;

use super::Upkeep;
use super::sweep::{Routine, Sweep};
use pass::Pass;
use replace::Asked;
pub use schedule::is_wanted;

use schedule::Schedule;
use watch::{NewStores, Reach};

/// What is healed, and how fast. Changes take effect within ten seconds, except that a fill under way keeps its rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealingConfig {
    /// Whether replicas are compared, routinely and after a node was away.
    pub anti_entropy: bool,
    /// How often each part of the ring is compared.
    pub compare_every: Duration,
    /// How often it is compared by reading all of it; zero: never.
    pub scrub_every: Duration,
    /// Bytes that a pass reads from nodes per second; a coordinator has one pass of each kind at most.
    pub bytes_per_second: u64,
    /// For how long a new store waits before it is admitted; zero: it is never admitted without an operator.
    pub admit_after: Duration,
    /// How long ago a key must have been deleted until nothing is left of it.
    pub tombstone_grace: Duration,
    /// Whether tombstones are collected at all.
    pub collect_tombstones: bool,
}

impl Default for HealingConfig {
    fn default() -> Self {
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        Self {
            anti_entropy: true,
            compare_every: 4 * hour,
            scrub_every: 7 * 24 * hour,
            bytes_per_second: 4 << 20,
            admit_after: 15 * minute,
            tombstone_grace: GRACE,
            collect_tombstones: true,
        }
    }
}

impl HealingConfig {
    fn routine(&self) -> Routine {
        Routine { grace: self.tombstone_grace, collects: self.collect_tombstones }
    }
}

/// How long after its start a coordinator claims its first duty: those that are restarted one after the other do not take each other's.
pub const BEGINS_AFTER: Duration = Duration::from_secs(60);
/// How often it looks at the nodes.
const LOOK: Duration = Duration::from_millis(250);
/// How often it reads what is claimed, unless one of its own passes has just ended.
const READ_DUTIES: Duration = Duration::from_secs(5);
/// How long a fill that has failed waits at first, and at most: it may have read everything in vain.
const FILL_AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// The healing that a coordinator does.
pub struct Healing<W: World> {
    upkeep: Arc<Upkeep<W>>,
    claimant: Claimant,
    begins_after: Duration,
    config: Mutex<HealingConfig>,
    seen: Mutex<Seen>,
    reach: Mutex<Reach>,
    /// The claims by which it is on record that nodes have missed changes of this coordinator.
    claimed: Mutex<BTreeMap<NodeId, u64>>,
}

/// What it saw when it looked last, for people.
#[derive(Debug, Default)]
struct Seen {
    /// Kinds that nobody has done for long, with the reason to look at them.
    overdue: BTreeMap<DutyKind, String>,
    /// Nodes that do not become level although they can be reached.
    behind: BTreeMap<NodeId, String>,
}

impl<W: World> Healing<W> {
    /// Healing as `claimant`, which begins `begins_after` after it is run.
    pub fn new(upkeep: Arc<Upkeep<W>>, claimant: Claimant, config: HealingConfig, begins_after: Duration) -> Arc<Self> {
        upkeep.healing_rate.store(config.bytes_per_second, Ordering::Relaxed);
        Arc::new(Self {
            upkeep,
            claimant,
            begins_after,
            config: Mutex::new(config),
            seen: Mutex::default(),
            reach: Mutex::default(),
            claimed: Mutex::default(),
        })
    }

    /// Changes what is healed, and how fast.
    pub fn configure(&self, config: HealingConfig) {
        self.upkeep.healing_rate.store(config.bytes_per_second, Ordering::Relaxed);
        *lock(&self.config) = config;
    }

    /// What is wrong with healing, for operators.
    pub fn notes(&self) -> Vec<String> {
        let seen = lock(&self.seen);
        seen.overdue.values().chain(seen.behind.values()).cloned().collect()
    }

    /// What becomes of the new store of a node, for people; `None` if it has none that is known of here.
    pub fn new_store(&self, node: &NodeId) -> Option<String> {
        self.upkeep.new_store(node)
    }

    /// Heals until `stopped`, then gives its claims back.
    pub async fn run(self: Arc<Self>, stopped: impl Future<Output = ()> + Send) {
        let (stop, stopping) = flag::channel(false);
        let (observing, working) = (self.observe(), Healer::new(Arc::clone(&self), stopping).run());
        tokio::pin!(stopped, observing, working);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                biased;
                () = &mut stopped, if !is_stopping => {
                    is_stopping = true;
                    stop.send_replace(true);
                }
                never = &mut observing => match never {},
                () = &mut working => return,
            }
        }
    }

    /// Looks at the nodes, also while everything else waits for the metadata store.
    async fn observe(&self) -> Infallible {
        loop {
            let nodes = self.upkeep.coordinator.rings().nodes();
            lock(&self.reach).look(&nodes, &self.upkeep.coordinator.ports().replicas);
            tokio::time::sleep(LOOK).await;
        }
    }

    fn config(&self) -> HealingConfig {
        lock(&self.config).clone()
    }

    fn now_ms(&self) -> u64 {
        self.upkeep.coordinator.ports().clock.wall_micros() / 1000
    }

    fn metadata(&self) -> &dyn Metadata {
        self.upkeep.metadata.as_ref()
    }

    /// A routine sweep at the rate of healing, which admits nothing. What fills a store or looks for damage reads everything.
    fn sweep(&self, kind: DutyKind) -> Sweep {
        let config = self.config();
        let by_digests = matches!(kind, DutyKind::Compare | DutyKind::CatchUp);
        let (bytes_per_second, routine) = (config.bytes_per_second, Some(config.routine()));
        Sweep { by_digests, fills: false, bytes_per_second, routine, ..Sweep::everything() }
    }
}

/// The loop of [`Healing::run`].
struct Healer<W: World> {
    healing: Arc<Healing<W>>,
    stopping: flag::Receiver<bool>,
    began: Instant,
    /// The store's time when this coordinator could first have done something.
    began_ms: Option<u64>,
    new_stores: NewStores,
    /// Nodes for which a pass over all of their ranges has to be asked.
    reopened: BTreeSet<NodeId>,
    /// What is owed to nodes that have missed changes.
    debts: BTreeMap<NodeId, owed::Debt>,
    passes: BTreeMap<DutyKind, JoinHandle<pass::Outcome>>,
    read: Option<Instant>,
    fill_again: Backoff,
    /// Nodes of which the metric says how many slices they have missed.
    shown: BTreeSet<NodeId>,
}

impl<W: World> Healer<W> {
    fn new(healing: Arc<Healing<W>>, stopping: flag::Receiver<bool>) -> Self {
        let (first, longest) = FILL_AGAIN;
        let fill_again = Backoff::new(first, longest, seed(&[&healing.claimant.instance]));
        Self {
            healing,
            stopping,
            began: Instant::now(),
            began_ms: None,
            new_stores: NewStores::default(),
            reopened: BTreeSet::new(),
            debts: BTreeMap::new(),
            shown: BTreeSet::new(),
            passes: BTreeMap::new(),
            read: None,
            fill_again,
        }
    }

    /// Works until this coordinator stops, and then until its claims are given back.
    async fn run(mut self) {
        let mut stopping = self.stopping.clone();
        while !*stopping.borrow() {
            self.look().await;
            tokio::select! {
                biased;
                () = pass::stopped(&mut stopping) => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        for pass in self.passes.into_values() {
            // A pass that has panicked holds a claim that expires.
            drop(pass.await);
        }
    }

    async fn look(&mut self) {
        let config = self.healing.config();
        let nodes = self.healing.upkeep.coordinator.rings().nodes();
        let (moved, reopened) = {
            let mut reach = lock(&self.healing.reach);
            (reach.take_moved(), reach.take_reopened())
        };
        self.reap().await;
        if config.anti_entropy {
            self.see_to_missed(&nodes, &moved).await;
            self.reopened.extend(reopened);
            self.ask_for_passes(&nodes).await;
        }
        if self.began.elapsed() < self.healing.begins_after
            || self.read.is_some_and(|read| read.elapsed() < READ_DUTIES)
        {
            return;
        }
        self.read = Some(Instant::now());
        match self.healing.metadata().duties().await {
            Ok(duties) => self.work(&config, &nodes, &duties).await,
            Err(error) => tracing::debug!(%error, "what is healed by whom cannot be read"),
        }
    }

    /// Asks for passes over nodes that may lack what they had acknowledged: on record, so that one coordinator makes it, whichever is live.
    async fn ask_for_passes(&mut self, on_record: &[NodeId]) {
        while let Some(node) = self.reopened.first().cloned() {
            if on_record.contains(&node) {
                if let Err(error) = self.healing.metadata().want_duty(&schedule::catch_up(&node)).await {
                    return tracing::debug!(%node, %error, "a pass over the node's ranges could not be asked for yet");
                }
                tracing::info!(%node, "healing: the node was started again with --durability os, and is compared in all of its ranges");
            }
            self.reopened.remove(&node);
        }
    }

    /// Takes the results of passes that have ended.
    async fn reap(&mut self) {
        let ended: Vec<DutyKind> =
            self.passes.iter().filter(|(_, pass)| pass.is_finished()).map(|(kind, _)| *kind).collect();
        for kind in ended {
            let Some(pass) = self.passes.remove(&kind) else { continue };
            let outcome = pass.await.unwrap_or_default();
            if kind == DutyKind::Missed {
                self.settle(&outcome);
                continue;
            }
            let ended = outcome.ended;
            if ended != pass::Ended::Interrupted {
                // There may be more to do. What was interrupted would be so again if it went on at once.
                self.read = None;
            }
            match (kind, ended) {
                (DutyKind::Fill, pass::Ended::Complete) => self.fill_again.succeeded(),
                (DutyKind::Fill, _) => drop(self.fill_again.failed()),
                _ => {}
            }
        }
    }

    async fn work(&mut self, config: &HealingConfig, on_record: &[NodeId], duties: &Duties) {
        let began_ms = *self.began_ms.get_or_insert(duties.now_ms);
        let schedule = Schedule { duties, config, began_ms, seed: seed(&[&self.healing.claimant.instance]) };
        self.forget_removed(on_record, duties).await;
        self.healing.show(&schedule, on_record);
        if config.anti_entropy {
            self.take_over(on_record, duties).await;
            if !self.passes.contains_key(&DutyKind::CatchUp) {
                let wanted = schedule.catch_up(|node| lock(&self.healing.reach).is_reachable(node));
                self.begin(DutyKind::CatchUp, wanted).await;
            }
            for kind in [DutyKind::Compare, DutyKind::Scrub] {
                if !self.passes.contains_key(&kind) {
                    let part = schedule.compare(kind, lock(&self.healing.reach).all_reachable(on_record));
                    self.begin(kind, part.into_iter().collect()).await;
                }
            }
        }
        let (new, accept_loss) = self.fillable(config, on_record).await;
        let fill = schedule.fill(self.fill_again.pause());
        if let (Some(fill), false, false) = (fill, new.is_empty(), self.passes.contains_key(&DutyKind::Fill)) {
            let sweep = self.healing.sweep(DutyKind::Fill);
            let sweep = Sweep { fills: true, of: Some(new), routine: None, accept_loss, ..sweep };
            if let Some(claim) = self.claim(&fill).await {
                self.start(DutyKind::Fill, vec![claim], sweep);
            }
        }
    }

    /// Claims what it can of these duties, and begins a pass over it.
    async fn begin(&mut self, kind: DutyKind, duties: Vec<Duty>) {
        let mut claims = Vec::new();
        for duty in duties {
            claims.extend(self.claim(&duty).await);
        }
        if let Some(sweep) = pass::sweep(&claims, self.healing.sweep(kind)) {
            self.start(kind, claims, sweep);
        }
    }

    async fn claim(&self, duty: &Duty) -> Option<DutyOnRecord> {
        let claimed = self.healing.metadata().claim_duty(duty, self.healing.claimant.clone(), pass::CLAIM_MS).await;
        match claimed {
            Ok(claimed) => Some(claimed),
            // Another coordinator was faster.
            Err(StoreError::Conflict(_)) => None,
            Err(error) => {
                tracing::debug!(%duty, %error, "a duty could not be claimed");
                None
            }
        }
    }

    fn start(&mut self, kind: DutyKind, claims: Vec<DutyOnRecord>, sweep: Sweep) {
        let pass = Pass::new(Arc::clone(&self.healing), kind, claims, sweep);
        self.passes.insert(kind, tokio::spawn(pass.run(self.stopping.clone())));
    }

    /// Nodes whose new store may be admitted and filled now, and whether what no other replica has is given up then. Notes for people what
    /// becomes of the others.
    async fn fillable(&mut self, config: &HealingConfig, on_record: &[NodeId]) -> (BTreeSet<NodeId>, bool) {
        let replicas = &self.healing.upkeep.coordinator.ports().replicas;
        let new = self.new_stores.look(on_record.iter().map(|node| (node, replicas.standing(node))));
        if new.is_empty() {
            self.healing.upkeep.note_new_stores(BTreeMap::new());
            return (BTreeSet::new(), false);
        }
        let metadata = self.healing.metadata();
        let (nodes, stores, asked) = (metadata.nodes().await, metadata.stores().await, Asked::read(metadata).await);
        let (Ok(nodes), Ok(stores), Ok(asked)) = (nodes, stores, asked) else { return (BTreeSet::new(), false) };
        let judged = self.new_stores.judge(&new, &nodes, &stores, &asked, config.admit_after);
        self.healing.upkeep.note_new_stores(judged.notes);
        asked.first(judged.due)
    }

    async fn forget_removed(&self, on_record: &[NodeId], duties: &Duties) {
        let is_removed = |duty: &Duty| match duty.kind {
            DutyKind::CatchUp => on_record.iter().all(|node| node.as_str() != duty.range),
            DutyKind::Missed => schedule::of_missed(duty, on_record).is_none(),
            DutyKind::Compare | DutyKind::Scrub | DutyKind::Fill | DutyKind::Place => false,
        };
        for duty in duties.duties.iter().map(|known| &known.duty).filter(|duty| is_removed(duty)) {
            if !self.forget(duty).await {
                return;
            }
        }
    }

    async fn forget(&self, duty: &Duty) -> bool {
        let forgotten = self.healing.metadata().forget_duty(duty).await;
        if let Err(error) = &forgotten {
            tracing::debug!(%duty, %error, "a duty could not be forgotten");
        }
        forgotten.is_ok()
    }
}

impl<W: World> Healing<W> {
    /// Shows people what is done and what is not.
    fn show(&self, schedule: &Schedule<'_>, on_record: &[NodeId]) {
        let metrics = &self.upkeep.metrics;
        metrics.healing_every.set(if schedule.config.anti_entropy {
            schedule.config.compare_every.as_secs_f64()
        } else {
            0.0
        });
        metrics.healing_oldest.set(schedule.oldest_ms(DutyKind::Compare) as f64 / 1000.0);
        let scrubs = schedule.config.anti_entropy;
        metrics.scrub_every.set(if scrubs { schedule.config.scrub_every.as_secs_f64() } else { 0.0 });
        metrics.oldest_scrub.set(schedule.oldest_ms(DutyKind::Scrub) as f64 / 1000.0);
        let (now, config) = (self.upkeep.coordinator.ports().clock.wall_micros(), schedule.config);
        self.upkeep.overdue.show(metrics, now, config.tombstone_grace, config.compare_every);
        let mut overdue = BTreeMap::new();
        for kind in DutyKind::HEALING {
            let late = schedule.overdue_ms(kind, on_record, |node| lock(&self.reach).is_reachable(node));
            metrics.healing_overdue(kind).set(i64::from(late.is_some()));
            if let Some(ago) = schedule.since_complete_ms(kind) {
                metrics.healing_since_complete(kind).set(ago as f64 / 1000.0);
            }
            if let Some(late) = late {
                let minutes = late / 60_000;
                let note = format!(
                    "healing: no coordinator does \"{}\", which has been due for {minutes} min; look for `healing` in the coordinators' \
                     logs, and for nodes that cannot be reached",
                    kind.as_str()
                );
                overdue.insert(kind, note);
            }
        }
        lock(&self.seen).overdue = overdue;
    }
}
