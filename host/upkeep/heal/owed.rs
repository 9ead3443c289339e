//! What this coordinator owes to nodes that have missed changes of its own: put on record while there is anything, and made good once the
//! node can be reached.
//!
//! The set of slices is in memory ([`Missed`](super::missed::Missed)). On record is only that there is one, as a duty of
//! [`DutyKind::Missed`] which this coordinator keeps claimed. If it dies, the claim expires, and the set is lost: whoever claims the duty
//! then takes all slices for missed. A coordinator that stops leaves the set with the duty, if it fits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use witan_coordinate::World;
use witan_kernel::backoff::{Backoff, seed};
use witan_kernel::fault::Fault;
use witan_kernel::limit::LONGEST_DEADLINE;
use witan_kernel::name::NodeId;
use witan_kernel::port::upkeep::UPKEEP_CURSOR_BYTES;
use witan_kernel::port::{Claimant, Duties, DutyKind, DutyOnRecord, PassEnd, StoreError};
use witan_kernel::slice::{SLICES, Slice, Slices};
use witan_kernel::sync::lock;

use super::missed::Missed;
use super::pass::{CLAIM_MS, Ended, Outcome, RENEW};
use super::{Healer, Healing, schedule};
use crate::sweep::Sweep;

/// Pause after a claim could not be made, and before a node is asked for again that has refused what it was sent, at first and at most:
/// it may have no room for hours.
const AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Pause after a pass was interrupted, because the metadata store did not answer or the rate was changed.
const INTERRUPTED: Duration = Duration::from_secs(5);
/// A node that can be reached and whose set does not become empty for this long is reported.
const LONG: Duration = Duration::from_secs(600);
/// Most nodes that one pass brings what they have missed: as many as of the other passes.
const TOGETHER: usize = 32;
/// Most slices of a node that one pass compares, a sixteenth of all as in the routine comparison: what other nodes have missed waits no
/// longer than for that.
const PORTION: usize = SLICES / 16;
/// Version of a set that is left with its duty.
const LEFT: u8 = 1;

/// What is owed to one node.
pub(super) struct Debt {
    /// When the claim on record is to be renewed; `None`: it is not on record yet.
    renew: Option<Instant>,
    /// Not before this moment is it put on record.
    claim: Instant,
    stage: Stage,
    backoff: Backoff,
    /// Since when the node could be reached without becoming level.
    since: Option<Instant>,
}

enum Stage {
    /// Nothing is done yet: the node may be away.
    Open,
    /// The set was taken at this moment. Operations that were under way then are waited for: what they have sent may arrive still.
    Taken(Instant),
    /// It was taken at this moment, and these slices of it are being made good.
    Passing(Instant, Slices),
    /// Something could not be done, and is tried again at this moment.
    Paused(Instant),
    /// All was made good.
    Settled,
}

impl Debt {
    fn new(node: &NodeId, by: &Claimant) -> Self {
        let backoff = Backoff::new(AGAIN.0, AGAIN.1, seed(&[&by.instance, node.as_str().as_bytes()]));
        Self { renew: None, claim: Instant::now(), stage: Stage::Open, backoff, since: None }
    }
}

impl<W: World> Healing<W> {
    fn missed(&self) -> &Missed {
        &self.upkeep.missed
    }

    /// Leaves what nodes have missed with the duties on record, so that other coordinators make it good without reading everything. Called
    /// when no operation can begin any longer; waits for those under way.
    pub async fn hand_over(&self) {
        self.upkeep.coordinator.drained().await;
        let claims = std::mem::take(&mut *lock(&self.claimed));
        for (node, fence) in claims {
            let (duty, slices) = (schedule::missed(&node, &self.claimant.instance), self.missed().of_node(&node));
            let ended = if slices.is_empty() {
                self.metadata().forget_duty(&duty).await
            } else {
                self.metadata().give_back_duty(&duty, fence, PassEnd::Interrupted(left(&slices))).await
            };
            if let Err(error) = ended {
                tracing::debug!(%duty, %error, "what the node has missed could not be handed over: its claim expires");
            }
        }
    }
}

/// A set as it is left with its duty; nothing if it does not fit.
fn left(slices: &Slices) -> Vec<u8> {
    let mut bytes = vec![LEFT];
    bytes.extend(slices.encode());
    if bytes.len() <= UPKEEP_CURSOR_BYTES { bytes } else { Vec::new() }
}

/// The set that was left with a duty; `None`: it is lost.
fn found(cursor: &[u8]) -> Option<Slices> {
    let (version, set) = cursor.split_first()?;
    Slices::decode(set).filter(|_| *version == LEFT)
}

impl<W: World> Healer<W> {
    /// Sees to what nodes have missed. `moved`: those that have gone or come back, which may miss something soon.
    pub(super) async fn see_to_missed(&mut self, on_record: &[NodeId], moved: &BTreeSet<NodeId>) {
        self.healing.missed().retain(on_record);
        for node in self.shown.extract_if(.., |node| !on_record.contains(node)) {
            self.healing.upkeep.metrics.forget_missed(&node);
        }
        self.debts.retain(|node, _| on_record.contains(node));
        lock(&self.healing.claimed).retain(|node, _| on_record.contains(node));
        for node in on_record {
            let has_moved = moved.contains(node);
            if has_moved || self.healing.missed().is_noted(node) {
                let debt = self.debts.entry(node.clone()).or_insert_with(|| Debt::new(node, &self.healing.claimant));
                if has_moved {
                    debt.backoff.succeeded();
                    if matches!(debt.stage, Stage::Paused(_)) {
                        debt.stage = Stage::Open;
                    }
                }
            }
        }
        let is_on_record = self.put_on_record().await;
        self.advance(is_on_record).await;
        self.show_missed(on_record);
    }

    /// Claims the duties of all debts, and renews the claims. True if all of them are on record.
    async fn put_on_record(&mut self) -> bool {
        let mut all = true;
        for (node, debt) in &mut self.debts {
            let now = Instant::now();
            let duty = schedule::missed(node, &self.healing.claimant.instance);
            let metadata = self.healing.metadata();
            let fence = lock(&self.healing.claimed).get(node).copied();
            let done = match (debt.renew, fence) {
                (Some(renew), _) if now < renew => continue,
                (None, _) if now < debt.claim => {
                    all = false;
                    continue;
                }
                (Some(_), Some(fence)) => metadata.keep_duty(&duty, fence, Vec::new(), CLAIM_MS).await,
                _ => match metadata.claim_duty(&duty, self.healing.claimant.clone(), CLAIM_MS).await {
                    Ok(claimed) => {
                        lock(&self.healing.claimed).insert(node.clone(), claimed.fence);
                        Ok(())
                    }
                    Err(StoreError::Refused(why)) => {
                        // There are too many: the node is compared in all of its ranges, by whoever does it.
                        tracing::debug!(%duty, %why, "a pass over all ranges of the node is asked for instead");
                        match metadata.want_duty(&schedule::catch_up(node)).await {
                            Ok(()) => Err(StoreError::Refused(why)),
                            Err(error) => Err(error),
                        }
                    }
                    Err(error) => Err(error),
                },
            };
            match done {
                Ok(()) => debt.renew = Some(now + RENEW),
                Err(error) => {
                    tracing::debug!(%duty, %error, "that the node has missed changes could not be put on record");
                    all = false;
                    let is_lost = matches!(error, StoreError::Conflict(_) | StoreError::Missing(_));
                    if is_lost || debt.renew.is_none() {
                        // Another coordinator has taken this one for dead.
                        debt.renew = None;
                        lock(&self.healing.claimed).remove(node);
                    }
                    if matches!(error, StoreError::Unavailable(_)) {
                        // Nor will the others.
                        return false;
                    }
                    debt.claim = now + AGAIN.0;
                }
            }
        }
        all
    }

    /// Takes each debt to its next stage, and begins a pass over the nodes that are due.
    async fn advance(&mut self, is_on_record: bool) {
        let (now, mut due, mut settled) = (Instant::now(), BTreeMap::new(), Vec::new());
        for (node, debt) in &mut self.debts {
            let missed = self.healing.missed();
            let is_reachable = lock(&self.healing.reach).is_reachable(node);
            debt.since = debt.since.filter(|_| is_reachable).or_else(|| is_reachable.then_some(now));
            match debt.stage {
                Stage::Paused(until) if now < until => {}
                Stage::Open | Stage::Paused(_) if !is_reachable => {}
                Stage::Open | Stage::Paused(_) => {
                    missed.take(node);
                    debt.stage = Stage::Taken(now);
                }
                Stage::Taken(_) if !is_reachable => {
                    missed.put_back(node);
                    debt.stage = Stage::Open;
                }
                Stage::Taken(since) if since.elapsed() < LONGEST_DEADLINE + jitter(node, &self.healing.claimant) => {}
                Stage::Taken(since) => {
                    let portion = missed.taken(node).first(PORTION);
                    if portion.is_empty() {
                        debt.stage = Stage::Settled;
                    } else if due.len() < TOGETHER {
                        due.insert(node.clone(), (since, portion));
                    }
                }
                Stage::Passing(..) => {}
                Stage::Settled if missed.is_noted(node) => debt.stage = Stage::Open,
                // What others were found to lack is on record before.
                Stage::Settled if is_on_record => settled.push(node.clone()),
                Stage::Settled => {}
            }
        }
        for node in settled {
            self.end_debt(&node).await;
        }
        if !due.is_empty() && !self.passes.contains_key(&DutyKind::Missed) {
            self.make_good(due);
        }
    }

    fn make_good(&mut self, due: BTreeMap<NodeId, (Instant, Slices)>) {
        let (mut slices, mut of) = (Slices::default(), BTreeSet::new());
        for (node, (since, portion)) in due {
            slices.union(&portion);
            if let Some(debt) = self.debts.get_mut(&node) {
                debt.stage = Stage::Passing(since, portion);
            }
            of.insert(node);
        }
        let sweep = Sweep { of: Some(of), slices: Some(slices), ..self.healing.sweep(DutyKind::Missed) };
        self.start(DutyKind::Missed, Vec::new(), sweep);
    }

    /// Takes what a node has missed off the record.
    async fn end_debt(&mut self, node: &NodeId) {
        let duty = schedule::missed(node, &self.healing.claimant.instance);
        match self.healing.metadata().forget_duty(&duty).await {
            Ok(()) => {
                lock(&self.healing.claimed).remove(node);
                self.debts.remove(node);
                self.healing.upkeep.metrics.missed_slices(node).set(0);
            }
            Err(error) => tracing::debug!(%duty, %error, "that the node is level could not be put on record yet"),
        }
    }

    /// A pass has ended: notes what it has made good. What only a replica may have that could not take part is that one's to be compared
    /// with, once it is back.
    pub(super) fn settle(&mut self, outcome: &Outcome) {
        let missed = self.healing.missed();
        let absent: BTreeSet<&NodeId> = outcome.swept.missing.keys().collect();
        let mut compared = Slices::default();
        for (node, debt) in &mut self.debts {
            let Stage::Passing(since, portion) = &debt.stage else { continue };
            let (since, mut done) = (*since, portion.clone());
            compared.union(&done);
            let is_incomplete = absent.contains(node) || outcome.swept.unsettled > 0;
            if (outcome.ended != Ended::Interrupted && !is_incomplete) || Fault::MissEndsEarly.is_on() {
                missed.made_good(node, &done);
                debt.backoff.succeeded();
                debt.stage = Stage::Taken(since);
                continue;
            }
            if let (false, Some(after)) = (is_incomplete, &outcome.swept.after) {
                let mut rest = done.clone();
                rest.remove_before(Slice::of(after.token));
                done.remove(&rest);
                missed.made_good(node, &done);
            }
            missed.put_back(node);
            // An interruption says nothing of the node.
            let pause = if is_incomplete { debt.backoff.failed() } else { INTERRUPTED };
            debt.stage = Stage::Paused(Instant::now() + pause);
        }
        if Fault::MissEndsEarly.is_on() {
            return;
        }
        let is_other = |node: &&NodeId| !outcome.of.contains(*node);
        absent.into_iter().filter(is_other).for_each(|node| missed.add(node, &compared));
    }

    /// Takes over what coordinators knew that are no longer there.
    pub(super) async fn take_over(&mut self, on_record: &[NodeId], duties: &Duties) {
        if Fault::MissUnclaimed.is_on() {
            return;
        }
        let is_left =
            |known: &&DutyOnRecord| known.duty.kind == DutyKind::Missed && known.live_holder(duties.now_ms).is_none();
        for known in duties.duties.iter().filter(is_left).take(TOGETHER) {
            let own = |node: &NodeId| schedule::missed(node, &self.healing.claimant.instance) == known.duty;
            let Some(node) = schedule::of_missed(&known.duty, on_record).filter(|node| !own(node)).cloned() else {
                continue;
            };
            if !lock(&self.healing.reach).is_reachable(&node) {
                continue;
            }
            let Some(claimed) = self.claim(&known.duty).await else { continue };
            let slices = found(&claimed.cursor);
            tracing::info!(%node, duty = %known.duty.range, slices = slices.as_ref().map_or(0, Slices::count),
                "healing: takes over what another coordinator knew that the node has missed (0 slices: it is lost, and all are compared)");
            self.healing.upkeep.metrics.missed_taken_over(slices.is_some()).inc();
            self.healing.missed().add(&node, &slices.unwrap_or_else(Slices::all));
            let debt = Debt::new(&node, &self.healing.claimant);
            self.debts.entry(node.clone()).or_insert(debt).claim = Instant::now();
            self.put_on_record().await;
            // Until its own is on record, the other one stays, and is taken again when this claim has expired.
            if lock(&self.healing.claimed).contains_key(&node) {
                self.forget(&known.duty).await;
            }
        }
    }

    fn show_missed(&mut self, on_record: &[NodeId]) {
        for node in on_record {
            let count = self.healing.missed().of_node(node).count();
            self.healing.upkeep.metrics.missed_slices(node).set(count as i64);
        }
        self.shown.extend(on_record.iter().cloned());
        let mut notes = BTreeMap::new();
        for (node, debt) in &self.debts {
            let count = self.healing.missed().of_node(node).count();
            let since = debt.since.filter(|since| since.elapsed() >= LONG);
            if let (Some(since), true) = (since, count > 0) {
                let minutes = since.elapsed().as_secs() / 60;
                let note = format!(
                    "healing: node {node} has missed changes in {count} of 65536 slices, and is not level although it could be reached for \
                     {minutes} min; look for `healing` in this coordinator's log, and for a full disk of a node"
                );
                notes.insert(node.clone(), note);
            }
        }
        lock(&self.healing.seen).behind = notes;
    }
}

/// Coordinators wait up to two seconds longer than they must, each differently, so that they do not read in step.
fn jitter(node: &NodeId, by: &Claimant) -> Duration {
    Duration::from_millis(seed(&[&by.instance, node.as_str().as_bytes()]) % 2000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_fits_is_left_with_its_duty() {
        let mut few = Slices::default();
        (0..500).for_each(|n| few.insert(Slice(n * 100)));
        assert_eq!(found(&left(&few)), Some(few));
        assert_eq!(found(&left(&Slices::all())), Some(Slices::all()));
        let mut many = Slices::default();
        (0..3000).for_each(|n| many.insert(Slice(n * 20)));
        assert_eq!(left(&many), Vec::<u8>::new(), "it does not fit");
        for lost in [&[][..], &[LEFT + 1], &[LEFT, 0x80]] {
            assert_eq!(found(lost), None, "{lost:?}");
        }
    }
}
