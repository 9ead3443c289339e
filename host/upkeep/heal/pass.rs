//! A pass: the work of some duties that this coordinator has claimed, until it is done, or the claim is lost or given back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use witan_coordinate::World;
use witan_kernel::name::NodeId;
use witan_kernel::port::{DutyKind, DutyOnRecord, PassEnd, StoreError};
use witan_kernel::replica::Place;
use witan_kernel::scan::{from_cursor, to_cursor};

use super::{Healing, schedule};
use crate::repair::Repaired;
use crate::runner::Kind;
use crate::sweep::{Stopped, Sweep, Swept};

/// How long a claim lasts without renewal: so long does the work of a coordinator wait that has died. Milliseconds.
pub(super) const CLAIM_MS: u64 = 30_000;
/// How often it is renewed, and how far the pass is put on record: a third of that.
pub(super) const RENEW: Duration = Duration::from_secs(10);
/// Version of the cursors of passes: it is followed by flags, and the cursor of a sweep.
const CURSOR: u8 = 1;
/// The flag of a pass in which something could not be done.
const INCOMPLETE: u8 = 1;

/// How a pass ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything was done.
    Complete,
    /// Something could not be done.
    Incomplete,
    /// It goes on elsewhere, or later.
    #[default]
    Interrupted,
}

/// The end of a pass.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How it ended.
    pub(super) ended: Ended,
    /// The nodes that it was for; empty: all.
    pub(super) of: BTreeSet<NodeId>,
    /// What it has done until then.
    pub(super) swept: Swept,
}

impl Ended {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How far a pass is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reached {
    after: Option<Place>,
    incomplete: bool,
}

impl Reached {
    fn write(&self) -> Vec<u8> {
        let mut bytes = vec![CURSOR, if self.incomplete { INCOMPLETE } else { 0 }];
        bytes.extend(self.after.iter().flat_map(to_cursor));
        bytes
    }

    /// Reads a cursor. One that cannot be read, perhaps of another version, is the beginning.
    fn read(bytes: &[u8]) -> Self {
        let [CURSOR, flags, place @ ..] = bytes else { return Self::default() };
        let incomplete = flags & INCOMPLETE != 0;
        if place.is_empty() {
            return Self { after: None, incomplete };
        }
        let after = from_cursor(&Bytes::copy_from_slice(place));
        after.map_or_else(Self::default, |after| Self { after: Some(after), incomplete })
    }
}

/// The sweep of the claimed duties, from where an earlier one was interrupted; `None` without duties.
pub(super) fn sweep(claims: &[DutyOnRecord], sweep: Sweep) -> Option<Sweep> {
    let first = claims.first()?;
    // Nodes whose passes are at different places are compared from the beginning, together.
    let is_same = claims.iter().all(|claim| claim.cursor == first.cursor);
    let after = if is_same { Reached::read(&first.cursor).after } else { None };
    if let Some((from, to)) = schedule::tokens(&first.duty) {
        return Some(Sweep { from, to, after, ..sweep });
    }
    Some(Sweep { of: Some(nodes(claims)), after, ..sweep })
}

/// The nodes that claims are about.
fn nodes(claims: &[DutyOnRecord]) -> BTreeSet<NodeId> {
    claims.iter().filter_map(|claim| NodeId::new(&claim.duty.range).ok()).collect()
}

/// The work of some claims.
pub(super) struct Pass<W: World> {
    healing: Arc<Healing<W>>,
    kind: DutyKind,
    claims: Vec<DutyOnRecord>,
    sweep: Sweep,
    reached: Reached,
    /// What has been counted of the sweep's progress.
    counted: Swept,
}

impl<W: World> Pass<W> {
    pub(super) fn new(healing: Arc<Healing<W>>, kind: DutyKind, claims: Vec<DutyOnRecord>, sweep: Sweep) -> Self {
        let incomplete = sweep.after.is_some() && claims.iter().any(|claim| Reached::read(&claim.cursor).incomplete);
        let reached = Reached { after: sweep.after.clone(), incomplete };
        Self { healing, kind, claims, sweep, reached, counted: Swept::default() }
    }

    /// Works until the end, until the claims are lost, or until `stopping` turns true.
    pub(super) async fn run(mut self, mut stopping: watch::Receiver<bool>) -> Outcome {
        let ended = self.work(&mut stopping).await;
        Outcome { ended, of: self.sweep.of.unwrap_or_default(), swept: self.counted }
    }

    /// What it does, for people.
    fn what(&self) -> String {
        if let (Some(slices), Some(of)) = (&self.sweep.slices, &self.sweep.of) {
            let nodes: Vec<&str> = of.iter().map(NodeId::as_str).collect();
            return format!("{} {}: {slices:?}", self.kind.as_str(), nodes.join(", "));
        }
        let what: Vec<String> = self.claims.iter().map(|claim| claim.duty.to_string()).collect();
        what.join(", ")
    }

    async fn work(&mut self, stopping: &mut watch::Receiver<bool>) -> Ended {
        let what = self.what();
        let repair = match self.healing.upkeep.begin_sweep(Kind::Healing, self.sweep.clone()).await {
            Ok(repair) => repair,
            Err(error) => {
                tracing::debug!(what, %error, "healing could not begin");
                self.end(Ended::Interrupted).await;
                return Ended::Interrupted;
            }
        };
        tracing::debug!(what, "healing begins");
        self.healing.upkeep.metrics.healing_running(self.kind).set(1);
        let (progress, mut reports) = mpsc::channel(1);
        let mut sweeping = tokio::spawn(repair.run(progress));
        let mut renewal = Instant::now() + RENEW;
        let mut held_until = Instant::now() + Duration::from_millis(CLAIM_MS);
        let swept = loop {
            tokio::select! {
                biased;
                swept = &mut sweeping => break swept.ok(),
                Some(swept) = reports.recv() => self.note(&swept),
                () = tokio::time::sleep_until(renewal) => {
                    renewal = Instant::now() + RENEW;
                    if !self.renew(&mut held_until).await {
                        break None;
                    }
                }
                () = stopped(stopping) => break None,
            }
        };
        // A sweep without a receiver of its reports stops after the work in flight. What it has reported is done.
        drop(reports);
        let ended = match swept {
            Some(Ok(repaired)) => self.judge(&repaired),
            Some(Err(Stopped::Failed(why))) => {
                tracing::warn!(what, %why, "healing was interrupted, and goes on later");
                Ended::Interrupted
            }
            Some(Err(Stopped::Abandoned)) | None => Ended::Interrupted,
        };
        let Swept { scanned, repaired, failed, collected, .. } = self.counted;
        let is_routine = matches!(self.kind, DutyKind::Compare | DutyKind::Scrub);
        if is_routine && repaired == 0 && collected == 0 && ended == Ended::Complete {
            tracing::debug!(what, records = scanned, "healing: all replicas are level");
        } else {
            let result = ended.as_str();
            tracing::info!(what, result, records = scanned, repaired, failed, collected, "healing: a pass has ended");
        }
        self.end(ended).await;
        ended
    }

    /// Counts what has been done since the last report, and keeps how far it is.
    fn note(&mut self, swept: &Swept) {
        let (metrics, before) = (&self.healing.upkeep.metrics, &self.counted);
        metrics.healing_records(self.kind).inc_by(swept.scanned - before.scanned);
        metrics.healing_repaired(self.kind).inc_by(swept.repaired - before.repaired);
        metrics.healing_read(self.kind).inc_by(swept.bytes - before.bytes);
        metrics.healing_sent(self.kind).inc_by(swept.sent_bytes - before.sent_bytes);
        metrics.level_slices(self.kind).inc_by(swept.level_slices - before.level_slices);
        metrics.unknown_slices(self.kind).inc_by(swept.unknown_slices - before.unknown_slices);
        if !swept.waiting {
            self.reached = Reached {
                after: swept.after.clone(),
                incomplete: self.reached.incomplete || self.is_incomplete(swept),
            };
        }
        self.counted = swept.clone();
    }

    /// Whether something could not be done that this pass is for. A pass over nodes that were away is for those nodes alone: what only
    /// another node has that is away now is that node's, once it is back.
    fn is_incomplete(&self, swept: &Swept) -> bool {
        match self.kind {
            DutyKind::Compare | DutyKind::Scrub => {
                !swept.missing.is_empty() || swept.failed > 0 || swept.ranges_incomplete > 0
            }
            DutyKind::CatchUp => nodes(&self.claims).iter().any(|node| swept.missing.contains_key(node)),
            DutyKind::Missed => {
                let is_missing = |of: &BTreeSet<NodeId>| of.iter().any(|node| swept.missing.contains_key(node));
                self.sweep.of.as_ref().is_some_and(is_missing) || swept.unsettled > 0
            }
            DutyKind::Fill => !swept.unfilled.is_empty(),
            // Not a pass of healing.
            DutyKind::Place => false,
        }
    }

    fn judge(&mut self, repaired: &Repaired) -> Ended {
        self.note(&repaired.swept);
        for (node, why) in &repaired.swept.unfilled {
            tracing::warn!(%node, %why, "healing: the node's new store could not be filled; it will be tried again");
        }
        if self.reached.incomplete { Ended::Incomplete } else { Ended::Complete }
    }

    /// Renews the claims, and puts on record how far the pass is. False if it must stop: a claim was lost, this kind was turned off, or it
    /// has another rate now. (Filling begins anew when it is stopped, and goes on.)
    async fn renew(&self, held_until: &mut Instant) -> bool {
        let config = self.healing.config();
        let is_as_configured = config.anti_entropy
            && config.bytes_per_second == self.sweep.bytes_per_second
            && self.sweep.routine == Some(config.routine());
        if self.kind != DutyKind::Fill && !is_as_configured {
            return false;
        }
        for claim in &self.claims {
            let cursor = self.reached.write();
            match self.healing.metadata().keep_duty(&claim.duty, claim.fence, cursor, CLAIM_MS).await {
                Ok(()) => {}
                Err(StoreError::Conflict(why)) => {
                    tracing::info!(%why, "healing stops");
                    return false;
                }
                // Once the claim has expired, another coordinator may have it.
                Err(error) => {
                    tracing::debug!(duty = %claim.duty, %error, "a claim could not be renewed");
                    return Instant::now() < *held_until;
                }
            }
        }
        *held_until = Instant::now() + Duration::from_millis(CLAIM_MS);
        true
    }

    async fn end(&self, ended: Ended) {
        self.healing.upkeep.metrics.healing_running(self.kind).set(0);
        self.healing.upkeep.metrics.healing_passes(self.kind, ended.as_str()).inc();
        for claim in &self.claims {
            let end = match ended {
                Ended::Complete => PassEnd::Complete,
                Ended::Incomplete => PassEnd::Incomplete,
                Ended::Interrupted => PassEnd::Interrupted(self.reached.write()),
            };
            if let Err(error) = self.healing.metadata().give_back_duty(&claim.duty, claim.fence, end).await {
                tracing::debug!(duty = %claim.duty, %error, "a claim could not be given back, and expires");
            }
        }
    }
}

/// Returns once this coordinator stops.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender lives as long as the loop that waits for this pass.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

#[cfg(test)]
mod tests {
    use witan_kernel::name::{Key, TenantId};
    use witan_kernel::port::Duty;

    use super::*;

    fn place(token: u64) -> Place {
        Place { token, space: TenantId::new("t").unwrap().into(), key: Key::new("k").unwrap() }
    }

    fn claim(kind: DutyKind, range: &str, cursor: Vec<u8>) -> DutyOnRecord {
        DutyOnRecord { cursor, ..DutyOnRecord::new(Duty { kind, range: range.to_owned() }) }
    }

    #[test]
    fn a_cursor_comes_back() {
        for after in [None, Some(place(7))] {
            for incomplete in [false, true] {
                let reached = Reached { after: after.clone(), incomplete };
                assert_eq!(Reached::read(&reached.write()), reached);
            }
        }
        for other in [&[][..], &[9, 0], &[CURSOR], &[CURSOR, 1, 99]] {
            assert_eq!(Reached::read(other), Reached::default(), "{other:?}");
        }
    }

    #[test]
    fn a_pass_goes_on_where_one_was_interrupted() {
        let plain = || Sweep { fills: false, ..Sweep::everything() };
        assert_eq!(sweep(&[], plain()), None);
        let at = |token| Reached { after: Some(place(token)), incomplete: false }.write();
        let part = sweep(&[claim(DutyKind::Compare, "1", at(1 << 60))], plain()).unwrap();
        assert_eq!((part.from, part.to, part.after), (1 << 60, (1 << 61) - 1, Some(place(1 << 60))));
        let both = |a, b| {
            let claims = [claim(DutyKind::CatchUp, "n1", a), claim(DutyKind::CatchUp, "n2", b)];
            sweep(&claims, plain()).unwrap()
        };
        let same = both(at(5), at(5));
        assert!(!same.is_everything() && same.of.as_ref().is_some_and(|of| of.len() == 2));
        assert_eq!(same.after, Some(place(5)));
        assert_eq!(both(at(5), at(6)).after, None);
        assert!(!both(vec![], vec![]).is_everything(), "it admits nothing");
    }
}
