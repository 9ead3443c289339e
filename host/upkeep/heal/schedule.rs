//! What is due. All times are the metadata store's, in milliseconds.

use std::time::Duration;

use witan_kernel::backoff::seed;
use witan_kernel::limit::LONGEST_DEADLINE;
use witan_kernel::name::NodeId;
use witan_kernel::port::upkeep::UPKEEP_RANGE_BYTES;
use witan_kernel::port::{Duties, Duty, DutyKind, DutyOnRecord};

use super::HealingConfig;

/// Equal parts of the ring that are compared one by one: few enough for a list, and enough for as many coordinators as a cluster has.
pub(super) const PARTS: u64 = 16;
/// An operation that began while a node was away may end this long after the node is back, without it: a pass that begins earlier may
/// pass the record before. Milliseconds.
const LIFE_MS: u64 = LONGEST_DEADLINE.as_millis() as u64;
/// Coordinators wait up to this long beyond it, each differently, so that they do not claim in step. Milliseconds.
const JITTER_MS: u64 = 2000;
/// Longest name of a node in the duty of what it has missed: the rest is a slash and an instance.
const SHORT: usize = UPKEEP_RANGE_BYTES - 33;
/// Most nodes that one pass catches up with: each has a claim that is renewed.
const TOGETHER: usize = 32;
/// Pause after a pass over a node that was away has ended: one that comes and goes must not be read without end. Milliseconds.
const CATCH_UP_AGAIN_MS: u64 = 30_000;
/// A coordinator that cannot reach all nodes leaves routine comparisons to others for this long: less than [`OVERDUE_MS`]. Milliseconds.
const LEFT_TO_OTHERS_MS: u64 = 5 * 60 * 1000;
/// A kind of work that is due and that nobody has done for this long is reported. Milliseconds.
const OVERDUE_MS: u64 = 10 * 60 * 1000;

/// The duty of catching up with a node that was away.
pub(super) fn catch_up(node: &NodeId) -> Duty {
    Duty { kind: DutyKind::CatchUp, range: node.as_str().to_owned() }
}

/// The duty of sending a node what it has missed of the changes of one coordinator. Of a long id only the beginning is there, and what
/// tells it from others, so that there is room for the instance.
pub(super) fn missed(node: &NodeId, instance: &[u8; 16]) -> Duty {
    Duty { kind: DutyKind::Missed, range: format!("{}/{:032x}", short(node), u128::from_be_bytes(*instance)) }
}

fn short(node: &NodeId) -> String {
    let id = node.as_str();
    if id.len() <= SHORT { id.to_owned() } else { format!("{}~{:016x}", &id[..SHORT - 17], seed(&[id.as_bytes()])) }
}

/// The node that such a duty is for, of those that are there.
pub(super) fn of_missed<'a>(duty: &Duty, nodes: &'a [NodeId]) -> Option<&'a NodeId> {
    let (node, _) = duty.range.split_once('/')?;
    nodes.iter().find(|known| short(known) == node)
}

/// True for a duty that was asked for and that no pass has done completely since. A pass that began while operations could still miss the
/// node does not count.
pub fn is_wanted(known: &DutyOnRecord) -> bool {
    // That of what a node has missed is on record for as long as it is.
    known.duty.kind == DutyKind::Missed || known.wanted_ms > 0 && known.covered_ms < known.wanted_ms + LIFE_MS
}

/// The duty of comparing a part of the ring, by digests or by reading it.
fn part(kind: DutyKind, number: u64) -> Duty {
    Duty { kind, range: number.to_string() }
}

/// The first and the last token of the part of the ring that a duty compares; `None` if that is not its kind.
pub(super) fn tokens(duty: &Duty) -> Option<(u64, u64)> {
    const SIZE: u64 = 1 << 60;
    let is_part = matches!(duty.kind, DutyKind::Compare | DutyKind::Scrub);
    let number: u64 = duty.range.parse().ok().filter(|number| is_part && *number < PARTS)?;
    Some((number * SIZE, number * SIZE + (SIZE - 1)))
}

/// Everything from which it is decided what is due.
pub(super) struct Schedule<'a> {
    pub(super) duties: &'a Duties,
    pub(super) config: &'a HealingConfig,
    /// When this coordinator could first have done something.
    pub(super) began_ms: u64,
    /// Differs between coordinators.
    pub(super) seed: u64,
}

impl Schedule<'_> {
    fn known(&self, duty: &Duty) -> Option<&DutyOnRecord> {
        self.duties.duties.iter().find(|known| known.duty == *duty)
    }

    fn is_free(&self, duty: &Duty) -> bool {
        self.known(duty).is_none_or(|known| known.live_holder(self.duties.now_ms).is_none())
    }

    fn every_ms(&self, kind: DutyKind) -> u64 {
        let every = if kind == DutyKind::Scrub { self.config.scrub_every } else { self.config.compare_every };
        every.as_millis() as u64
    }

    /// Since when or from when a part is to be compared. A comparison in which a replica could not take part is repeated after an eighth
    /// of the usual time, and one that takes longer than the usual time leaves as much of a pause: reading without end would help nobody.
    fn part_due_ms(&self, duty: &Duty) -> u64 {
        let Some(known) = self.known(duty) else { return self.began_ms };
        if known.begun_ms > 0 {
            return known.begun_ms;
        }
        let every_ms = self.every_ms(duty.kind);
        let next = if known.covered_ms == 0 { 0 } else { known.covered_ms + every_ms };
        let again = if known.ended_ms == 0 { 0 } else { known.ended_ms + every_ms / 8 };
        next.max(again)
    }

    /// The part of the ring to be compared now, by digests or by reading it, as `kind` says. Where not all nodes can be reached, another
    /// coordinator may do better, and is given time to.
    pub(super) fn compare(&self, kind: DutyKind, all_reachable: bool) -> Option<Duty> {
        if self.every_ms(kind) == 0 {
            return None;
        }
        let now_ms = self.duties.now_ms;
        let patience = if all_reachable { 0 } else { LEFT_TO_OTHERS_MS };
        let from = self.seed % PARTS;
        let parts = (0..PARTS).map(|number| part(kind, (from + number) % PARTS));
        let due = parts.filter(|duty| self.is_free(duty)).map(|duty| (self.part_due_ms(&duty), duty));
        let due = due.filter(|(due_ms, _)| due_ms + patience <= now_ms);
        due.min_by_key(|(due_ms, _)| *due_ms).map(|(_, duty)| duty)
    }

    /// From when a pass over a node that was away is to be made; `None` if none is needed.
    fn catch_up_due_ms(&self, known: &DutyOnRecord) -> Option<u64> {
        let level_from = known.wanted_ms + LIFE_MS;
        let again = if known.ended_ms == 0 { 0 } else { known.ended_ms + CATCH_UP_AGAIN_MS };
        is_wanted(known).then_some(level_from.max(again))
    }

    /// The nodes that were away over which a pass is to be made now, all together, of those that can be reached.
    pub(super) fn catch_up(&self, is_reachable: impl Fn(&NodeId) -> bool) -> Vec<Duty> {
        let now_ms = self.duties.now_ms;
        let due = self.duties.duties.iter().filter(|known| {
            known.duty.kind == DutyKind::CatchUp
                && self.is_free(&known.duty)
                && self.catch_up_due_ms(known).is_some_and(|due| due + self.jitter_ms(&known.duty) <= now_ms)
                && NodeId::new(&known.duty.range).is_ok_and(|node| is_reachable(&node))
        });
        due.take(TOGETHER).map(|known| known.duty.clone()).collect()
    }

    fn jitter_ms(&self, duty: &Duty) -> u64 {
        seed(&[&self.seed.to_be_bytes(), duty.range.as_bytes()]) % JITTER_MS
    }

    /// The duty of filling new stores, if nobody does it, and the last attempt that failed is `pause` ago, or an operator has asked for one
    /// since.
    pub(super) fn fill(&self, pause: Duration) -> Option<Duty> {
        let duty = Duty::fill();
        let (ended_ms, wanted_ms) = self.known(&duty).map_or((0, 0), |known| (known.ended_ms, known.wanted_ms));
        let again = if wanted_ms > ended_ms { wanted_ms } else { ended_ms + pause.as_millis() as u64 };
        (self.is_free(&duty) && again <= self.duties.now_ms).then_some(duty)
    }

    /// For how long work of a kind has been due, if nobody has done any of it for long.
    /// Nodes that are away still are not late.
    pub(super) fn overdue_ms(
        &self,
        kind: DutyKind,
        nodes: &[NodeId],
        is_reachable: impl Fn(&NodeId) -> bool,
    ) -> Option<u64> {
        let now_ms = self.duties.now_ms;
        let of_kind = || self.duties.duties.iter().filter(move |known| known.duty.kind == kind);
        let is_done = |known: &DutyOnRecord| known.until_ms.max(known.ended_ms) + OVERDUE_MS > now_ms;
        let is_off = !self.config.anti_entropy || kind == DutyKind::Scrub && self.every_ms(kind) == 0;
        // Each of what nodes have missed has a holder of its own.
        if is_off || kind != DutyKind::Missed && of_kind().any(is_done) {
            return None;
        }
        let due = match kind {
            DutyKind::Compare | DutyKind::Scrub => (0..PARTS).map(|number| self.part_due_ms(&part(kind, number))).min(),
            DutyKind::CatchUp => {
                let back =
                    of_kind().filter(|known| NodeId::new(&known.duty.range).is_ok_and(|node| is_reachable(&node)));
                back.filter_map(|known| self.catch_up_due_ms(known)).min()
            }
            DutyKind::Missed => {
                let of_reachable = |known: &&DutyOnRecord| of_missed(&known.duty, nodes).is_some_and(&is_reachable);
                of_kind().filter(of_reachable).map(|known| known.until_ms).min()
            }
            // A store that waits has an alert of its own, and so does a tenant that is not moved.
            DutyKind::Fill | DutyKind::Place => None,
        };
        let late = now_ms.saturating_sub(due?.max(self.began_ms));
        (late >= OVERDUE_MS).then_some(late)
    }

    /// How long ago the last complete pass of a kind began; `None` if there was none.
    pub(super) fn since_complete_ms(&self, kind: DutyKind) -> Option<u64> {
        let of_kind = self.duties.duties.iter().filter(|known| known.duty.kind == kind && known.covered_ms > 0);
        of_kind.map(|known| self.duties.now_ms.saturating_sub(known.covered_ms)).min()
    }

    /// How long ago the part was compared completely for which that is longest ago. Those that never were count from the beginning.
    pub(super) fn oldest_ms(&self, kind: DutyKind) -> u64 {
        let covered = (0..PARTS).map(|number| {
            let covered_ms = self.known(&part(kind, number)).map_or(0, |known| known.covered_ms);
            if covered_ms == 0 { self.began_ms } else { covered_ms }
        });
        self.duties.now_ms.saturating_sub(covered.min().unwrap_or(self.began_ms))
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::port::Claimant;

    use super::*;

    const NOW_MS: u64 = 10_000_000_000;
    const MINUTE_MS: u64 = 60_000;
    const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

    fn duties(duties: Vec<DutyOnRecord>) -> Duties {
        Duties { now_ms: NOW_MS, duties }
    }

    fn with<T>(duties: &Duties, look: impl FnOnce(&Schedule<'_>) -> T) -> T {
        let config = HealingConfig { compare_every: Duration::from_millis(DAY_MS), ..HealingConfig::default() };
        look(&Schedule { duties, config: &config, began_ms: NOW_MS - MINUTE_MS, seed: 0 })
    }

    fn compared(number: u64, covered_ago_ms: u64) -> DutyOnRecord {
        let covered_ms = NOW_MS - covered_ago_ms;
        DutyOnRecord { covered_ms, ended_ms: covered_ms, ..DutyOnRecord::new(part(DutyKind::Compare, number)) }
    }

    fn all_compared(change: impl FnOnce(&mut [DutyOnRecord])) -> Duties {
        let mut all: Vec<_> = (0..PARTS).map(|number| compared(number, DAY_MS - MINUTE_MS)).collect();
        change(&mut all);
        duties(all)
    }

    fn holder() -> Claimant {
        Claimant { coordinator: NodeId::new("c").unwrap(), instance: [1; 16] }
    }

    fn away(wanted_ago_ms: u64) -> DutyOnRecord {
        let node = NodeId::new("n1").unwrap();
        DutyOnRecord { wanted_ms: NOW_MS - wanted_ago_ms, ..DutyOnRecord::new(catch_up(&node)) }
    }

    #[test]
    fn parts_cover_the_ring() {
        let parts: Vec<(u64, u64)> =
            (0..PARTS).map(|number| tokens(&part(DutyKind::Compare, number)).unwrap()).collect();
        assert_eq!((parts[0].0, parts[15].1), (0, u64::MAX));
        assert!(parts.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
        assert_eq!(tokens(&part(DutyKind::Compare, PARTS)), None);
    }

    #[test]
    fn the_part_comes_first_that_has_waited_longest() {
        let next =
            |duties: &Duties| with(duties, |schedule| schedule.compare(DutyKind::Compare, true)).map(|duty| duty.range);
        assert_eq!(next(&duties(vec![])).as_deref(), Some("0"), "none was ever compared");
        assert_eq!(next(&all_compared(|_| {})), None);
        let late = all_compared(|all| {
            all[3] = compared(3, DAY_MS + MINUTE_MS);
            all[7] = compared(7, DAY_MS + 2 * MINUTE_MS);
        });
        assert_eq!(next(&late).as_deref(), Some("7"));
        let held = all_compared(|all| {
            all[3] = compared(3, DAY_MS + MINUTE_MS);
            let until_ms = NOW_MS + 1;
            all[7] = DutyOnRecord { holder: Some(holder()), until_ms, ..compared(7, DAY_MS + 2 * MINUTE_MS) };
        });
        assert_eq!(next(&held).as_deref(), Some("3"));
        let interrupted = all_compared(|all| all[5].begun_ms = NOW_MS - 1);
        assert_eq!(next(&interrupted).as_deref(), Some("5"), "it goes on at once");
        let incomplete = |ago| all_compared(|all| (all[2].covered_ms, all[2].ended_ms) = (1, NOW_MS - ago));
        assert_eq!(next(&incomplete(DAY_MS / 8 - MINUTE_MS)), None);
        assert_eq!(next(&incomplete(DAY_MS / 8)).as_deref(), Some("2"));
    }

    #[test]
    fn parts_are_scrubbed_in_their_own_time() {
        let all = |change: fn(&mut Vec<DutyOnRecord>)| {
            let scrubbed = |number| DutyOnRecord {
                covered_ms: NOW_MS - 6 * DAY_MS,
                ended_ms: NOW_MS - 6 * DAY_MS,
                ..DutyOnRecord::new(part(DutyKind::Scrub, number))
            };
            let mut all: Vec<DutyOnRecord> = (0..PARTS).map(scrubbed).collect();
            all.extend((0..PARTS).map(|number| compared(number, MINUTE_MS)));
            change(&mut all);
            duties(all)
        };
        let next =
            |duties: &Duties| with(duties, |schedule| schedule.compare(DutyKind::Scrub, true)).map(|duty| duty.range);
        assert_eq!(next(&all(|_| {})), None);
        let late = |known: &mut DutyOnRecord| known.covered_ms = NOW_MS - 7 * DAY_MS;
        let due = all(|all| all[4].covered_ms = NOW_MS - 7 * DAY_MS);
        assert_eq!(next(&due).as_deref(), Some("4"));
        assert_eq!(with(&due, |schedule| schedule.oldest_ms(DutyKind::Scrub)), 7 * DAY_MS);
        let mut overdue = all(|_| {});
        overdue.duties.iter_mut().for_each(late);
        let off = HealingConfig { scrub_every: Duration::ZERO, ..HealingConfig::default() };
        let schedule = Schedule { duties: &overdue, config: &off, began_ms: 1, seed: 0 };
        assert_eq!(
            (schedule.compare(DutyKind::Scrub, true), schedule.overdue_ms(DutyKind::Scrub, &[], |_| true)),
            (None, None)
        );
        assert!(
            with(&overdue, |schedule| schedule.overdue_ms(DutyKind::Scrub, &[], |_| true)).is_none(),
            "not for long"
        );
    }

    #[test]
    fn who_cannot_reach_every_node_lets_others_go_first() {
        let due = |ago| all_compared(|all| all[3] = compared(3, DAY_MS + ago));
        let next = |duties: &Duties| with(duties, |schedule| schedule.compare(DutyKind::Compare, false));
        assert_eq!(next(&due(LEFT_TO_OTHERS_MS - 1)), None);
        assert!(next(&due(LEFT_TO_OTHERS_MS)).is_some());
    }

    #[test]
    fn a_node_that_is_back_is_caught_up_with_once_no_operation_can_still_miss_it() {
        let due = |known| with(&duties(vec![known]), |schedule| schedule.catch_up(|_| true).len());
        assert_eq!((due(away(LIFE_MS - 1)), due(away(LIFE_MS + JITTER_MS))), (0, 1));
        assert_eq!(with(&duties(vec![away(DAY_MS)]), |schedule| schedule.catch_up(|_| false).len()), 0, "not back yet");
        let asked_during_the_pass =
            DutyOnRecord { covered_ms: NOW_MS - MINUTE_MS, ended_ms: NOW_MS - MINUTE_MS, ..away(MINUTE_MS) };
        assert_eq!(due(asked_during_the_pass), 1);
        let done = DutyOnRecord { covered_ms: NOW_MS - MINUTE_MS + LIFE_MS, ..away(MINUTE_MS) };
        assert_eq!(due(done), 0);
        let again = DutyOnRecord { ended_ms: NOW_MS - CATCH_UP_AGAIN_MS + 1, ..away(MINUTE_MS) };
        assert_eq!(due(again), 0, "not without a pause");
    }

    #[test]
    fn what_nobody_does_is_reported() {
        let config = HealingConfig { compare_every: Duration::from_millis(DAY_MS), ..HealingConfig::default() };
        let late = |duties: &Duties, kind, began_ms| {
            Schedule { duties, config: &config, began_ms, seed: 0 }.overdue_ms(kind, &[], |_| true).is_some()
        };
        let long_ago = NOW_MS - DAY_MS;
        let none = duties(vec![]);
        assert!(late(&none, DutyKind::Compare, long_ago) && !late(&none, DutyKind::Compare, NOW_MS - MINUTE_MS));
        let due = |ago| all_compared(|all| all[3] = compared(3, DAY_MS + ago));
        assert!(late(&due(OVERDUE_MS), DutyKind::Compare, long_ago));
        assert!(!late(&due(OVERDUE_MS - 1), DutyKind::Compare, long_ago));
        let at_work = all_compared(|all| {
            all[3] = compared(3, DAY_MS + OVERDUE_MS);
            all[4].until_ms = NOW_MS - MINUTE_MS;
        });
        assert!(!late(&at_work, DutyKind::Compare, long_ago), "somebody is at work, and will come to it");
        assert!(late(&duties(vec![away(DAY_MS)]), DutyKind::CatchUp, long_ago));
        let off = HealingConfig { anti_entropy: false, ..HealingConfig::default() };
        let schedule = Schedule { duties: &none, config: &off, began_ms: long_ago, seed: 0 };
        assert_eq!(schedule.overdue_ms(DutyKind::Compare, &[], |_| true), None);
        let (away, config) = (duties(vec![away(DAY_MS)]), HealingConfig::default());
        let schedule = Schedule { duties: &away, config: &config, began_ms: long_ago, seed: 0 };
        assert_eq!(schedule.overdue_ms(DutyKind::CatchUp, &[], |_| false), None, "it is not back yet");
    }

    #[test]
    fn what_a_coordinator_knew_that_has_died_is_reported_if_nobody_takes_it_over() {
        let n1 = NodeId::new("n1").unwrap();
        let config = HealingConfig::default();
        let late = |left_ago_ms, reachable: bool| {
            let until_ms = NOW_MS - left_ago_ms;
            let known = DutyOnRecord { until_ms, ..DutyOnRecord::new(missed(&n1, &[1; 16])) };
            let duties =
                duties(vec![known, DutyOnRecord { until_ms: NOW_MS + 1, ..DutyOnRecord::new(missed(&n1, &[2; 16])) }]);
            let schedule = Schedule { duties: &duties, config: &config, began_ms: NOW_MS - DAY_MS, seed: 0 };
            schedule.overdue_ms(DutyKind::Missed, std::slice::from_ref(&n1), |_| reachable).is_some()
        };
        assert!(late(OVERDUE_MS, true) && !late(OVERDUE_MS - 1, true) && !late(OVERDUE_MS, false));
    }

    #[test]
    fn a_duty_of_what_a_node_has_missed_names_the_node_and_the_coordinator() {
        let nodes = ["n1".to_owned(), "n".repeat(95), "n".repeat(96), format!("{}m", "n".repeat(127)), "n".repeat(128)];
        let nodes = nodes.map(|id| NodeId::new(id).unwrap());
        assert_eq!(missed(&nodes[0], &[0xab; 16]).range, format!("n1/{}", "ab".repeat(16)));
        for node in &nodes {
            let duty = missed(node, &[1; 16]);
            assert!(duty.range.len() <= UPKEEP_RANGE_BYTES && duty != missed(node, &[2; 16]));
            assert_eq!(of_missed(&duty, &nodes), Some(node));
            let others: Vec<NodeId> = nodes.iter().filter(|other| *other != node).cloned().collect();
            assert_eq!(of_missed(&duty, &others), None);
        }
        assert_eq!(of_missed(&catch_up(&nodes[0]), &nodes), None);
    }

    #[test]
    fn the_oldest_comparison_counts() {
        assert_eq!(with(&duties(vec![]), |schedule| schedule.oldest_ms(DutyKind::Compare)), MINUTE_MS);
        let compared = all_compared(|all| all[3] = compared(3, 2 * DAY_MS));
        assert_eq!(with(&compared, |schedule| schedule.oldest_ms(DutyKind::Compare)), 2 * DAY_MS);
        assert_eq!(with(&compared, |schedule| schedule.since_complete_ms(DutyKind::Compare)), Some(DAY_MS - MINUTE_MS));
    }
}
