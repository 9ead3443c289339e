//! Finding the parts of a range in which replicas may differ, by their [digests](witan_kernel::digest): the others need not be read.
//!
//! Replicas of one tenant are compared among each other, as records are. Whatever is not certain is read: slices that a node could not
//! count, ranges of a node that has no digests or whose new store must be exact, tenants of which it is not clear who holds them.

use std::collections::BTreeMap;

use futures::future::join_all;
use witan_coordinate::World;
use witan_kernel::burial::micros;
use witan_kernel::digest::{Among, Digests, Wanted, differing};
use witan_kernel::limit::PerReplica;
use witan_kernel::name::NodeId;
use witan_kernel::placement::Tokens;
use witan_kernel::port::Clock;
use witan_kernel::replica::ReplicaError;
use witan_kernel::ring::ReplicaRange;
use witan_kernel::scan::Ranges;
use witan_kernel::space::Space;

use super::walk::{PAUSE, TRIES};
use super::{RECORD_BYTES, REPORT_EVERY, Stopped, Sweeping};

/// What a leaf on its way counts for in the rate limit, in bytes.
const LEAF_BYTES: u64 = 48;
/// What a node reads to count its own records counts for this part of what is read from it: nothing of it travels, and nobody compares it.
const COUNTED: u64 = 8;

/// What digests say of the beginning of a range.
struct Compared {
    /// Up to this token.
    to: u64,
    /// What has to be read of that.
    spans: Vec<Tokens>,
    /// The number of slices that are level.
    level: u64,
    /// Some replica has not been compared.
    incomplete: bool,
}

impl<W: World> Sweeping<'_, W> {
    /// Sweeps the parts of a range in which its replicas differ.
    pub(super) async fn differing(&mut self, version: u64, range: &ReplicaRange, is_last: bool) -> Result<(), Stopped> {
        let (mut from, mut incomplete) = (range.from, false);
        loop {
            let compared = self.compare(version, range, from).await?;
            incomplete |= compared.incomplete;
            self.swept.level_slices += compared.level;
            for (from, to) in compared.spans {
                self.swept.ranges_total += 1;
                self.at = self.at.take().filter(|at| at.token >= from);
                let span = ReplicaRange { from, to, replicas: range.replicas.clone() };
                self.range(version, &span, is_last).await?;
            }
            self.swept.token = compared.to;
            self.report_if_due().await?;
            if compared.to >= range.to {
                break;
            }
            from = compared.to + 1;
        }
        self.swept.ranges_done += 1;
        self.swept.ranges_incomplete += usize::from(incomplete);
        Ok(())
    }

    async fn report_if_due(&mut self) -> Result<(), Stopped> {
        if self.progress.is_closed() {
            return Err(Stopped::Abandoned);
        }
        // No merge is in flight between two spans.
        if self.reported_at.elapsed() < REPORT_EVERY { Ok(()) } else { self.report().await }
    }

    /// Compares the digests of a range's replicas, from a token on and as far as one answer of each goes.
    async fn compare(&mut self, version: u64, range: &ReplicaRange, from: u64) -> Result<Compared, Stopped> {
        let tokens = (from, range.to);
        let all = |incomplete| Compared { to: range.to, spans: vec![tokens], level: 0, incomplete };
        let mut asked: PerReplica<(u8, &NodeId)> = PerReplica::new();
        let mut incomplete = false;
        for (index, node) in (0..).zip(&range.replicas) {
            match self.may_take_part(node) {
                Ok(()) => asked.push((index, node)),
                Err(why) => {
                    incomplete = true;
                    self.swept.missing.insert(node.clone(), why);
                }
            }
        }
        let ports = self.coordinator.ports();
        let is_whole = |node: &NodeId| self.met.get(node).is_some_and(|met| met.is_whole());
        if !asked.iter().all(|(_, node)| ports.replicas.has_digests(node) && is_whole(node)) {
            return Ok(all(incomplete));
        }
        if let Some(due) = self.byte_pace.due() {
            self.sleep_until(due).await;
        }
        let answers = join_all(asked.iter().map(|(_, node)| self.digests(node, tokens))).await;
        let mut answered: Vec<(u8, Digests)> = Vec::with_capacity(asked.len());
        for ((index, node), answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(answer) => {
                    let read = answer.read_bytes + RECORD_BYTES * answer.read_rows;
                    self.byte_pace.charge(read / COUNTED + LEAF_BYTES * (1 + answer.leaves.len() as u64));
                    self.failing.remove(node);
                    self.swept.unknown_slices += answer.unknown.len() as u64;
                    answered.push((index, answer));
                }
                // It answers, but not this.
                Err(ReplicaError::Broken(why)) => {
                    tracing::warn!(%node, %why, "a node's digests cannot be compared: its records are");
                    return Ok(all(incomplete));
                }
                Err(why) => {
                    tracing::warn!(%node, %why, "a node is left out of the comparison of a range");
                    *self.failing.entry(node.clone()).or_default() += 1;
                    self.swept.missing.insert(node.clone(), why.to_string());
                    incomplete = true;
                }
            }
        }
        let to = answered.iter().map(|(_, answer)| answer.to).min().unwrap_or(range.to);
        let among = self.among(version, range, &answered).await?;
        let of = |space: &Space| among.get(space).cloned().unwrap_or(Among::Unclear);
        let (spans, level) = differing(&answered, (from, to), self.collected_before(), of);
        Ok(Compared { to, spans, level, incomplete })
    }

    /// Tombstones of before this time are to be dropped, microseconds; 0: none are.
    fn collected_before(&self) -> u64 {
        let routine = self.sweep.routine.filter(|routine| routine.collects);
        let now = self.coordinator.ports().clock.wall_micros();
        routine.map_or(0, |routine| now.saturating_sub(micros(routine.grace)))
    }

    async fn digests(&self, node: &NodeId, tokens: Tokens) -> Result<Digests, ReplicaError> {
        let replicas = &self.coordinator.ports().replicas;
        let (mut tries, space) = (0, self.space().await);
        loop {
            let wanted = Wanted { space: space.clone(), tokens };
            let why = match replicas.digests(node, wanted).await {
                Ok(answer) if self.met.get(node).is_some_and(|met| met.store == answer.store) => return Ok(answer),
                Ok(_) => return Err(ReplicaError::Lost(node.clone())),
                Err(error) => error,
            };
            tries += 1;
            let is_final = matches!(why, ReplicaError::NotSent(_) | ReplicaError::Broken(_));
            if tries >= TRIES || is_final || self.progress.is_closed() {
                return Err(why);
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }

    /// For each space in some answers, among whom its records are to be compared.
    async fn among(
        &mut self,
        version: u64,
        range: &ReplicaRange,
        answers: &[(u8, Digests)],
    ) -> Result<BTreeMap<Space, Among>, Stopped> {
        let mut all: BTreeMap<Space, Among> = BTreeMap::new();
        for leaf in answers.iter().flat_map(|(_, answer)| &answer.leaves) {
            if all.contains_key(&leaf.space) {
                continue;
            }
            let among = match self.tenant(&leaf.space.tenant()).await? {
                Some(tenant) if tenant.ring == version && tenant.generation == leaf.space.generation() => {
                    self.replicas_of(range, tenant.replication_factor)
                }
                _ => Among::Nobody,
            };
            all.insert(leaf.space.clone(), among);
        }
        Ok(all)
    }

    /// The replicas of a tenant with this factor in a range.
    fn replicas_of(&self, range: &ReplicaRange, factor: u8) -> Among {
        let most = range.replicas.len();
        if usize::from(factor) < most && !self.sweep.factors.contains(&factor) {
            // The tenant was created after the sweep began: within the range, its keys have different replicas.
            return Among::Unclear;
        }
        Among::Replicas((0..factor.min(most as u8)).collect())
    }
}
