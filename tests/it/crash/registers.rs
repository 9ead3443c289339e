//! Writers of registers. Each key has one writer, which makes one change after the other, so that the possible stored values are known
//! exactly: the last acknowledged one, and those in doubt since.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::attempt::{Change, Fate, values};
use super::{Ground, Report};

const TENANT: &str = "registers";
/// Number of changes of one key before the writer moves on to another.
const CHANGES: usize = 40;

/// A key and its changes.
struct Key {
    name: String,
    /// In the order in which they were sent.
    changes: Vec<(Change, Fate)>,
}

impl Key {
    /// The values that a read may return; `None` is no value.
    fn candidates(&self) -> Vec<Option<&str>> {
        let mut candidates = vec![None];
        for (change, fate) in &self.changes {
            match fate {
                Fate::Acknowledged { .. } => candidates = vec![change.value.as_deref()],
                Fate::InDoubt => candidates.push(change.value.as_deref()),
                Fate::NotApplied => {}
            }
        }
        candidates
    }

    /// Compares with the stored data. Reads at `all` come last, since they repair stale replicas.
    async fn check(&self, ground: &Ground, level: &str) -> Option<String> {
        let (found, _) = values(ground, TENANT, &self.name, level).await;
        let found = found.first().map(String::as_str);
        let candidates = self.candidates();
        if candidates.contains(&found) {
            return None;
        }
        let history: Vec<String> =
            self.changes.iter().map(|(change, fate)| format!("{:?} {fate:?}", change.value)).collect();
        Some(format!(
            "register {}: a read at {level:?} found {found:?} and might have found {candidates:?}; history: {}",
            self.name,
            history.join(", ")
        ))
    }
}

/// Writes until stopped, and then compares.
pub(super) async fn run(ground: Ground, index: u64, mut random: StdRng) -> Report {
    let mut report = Report::default();
    let mut keys: Vec<Key> = Vec::new();
    while !ground.stopped() {
        let mut key = Key { name: format!("{index}/{}", keys.len()), changes: Vec::new() };
        while key.changes.len() < CHANGES && !ground.stopped() {
            match random.random_range(0..100) {
                0..15 => report.violations.extend(key.check(&ground, "quorum").await),
                15..30 => repeat(&ground, &key, &mut random, &mut report).await,
                kind => key.change(&ground, kind, &mut random).await,
            }
        }
        keys.push(key);
    }
    for key in &keys {
        for (_, fate) in &key.changes {
            report.acknowledged += usize::from(matches!(fate, Fate::Acknowledged { .. }));
            report.in_doubt += usize::from(*fate == Fate::InDoubt);
        }
    }
    for level in ["quorum", "all"] {
        for key in &keys {
            report.violations.extend(key.check(&ground, level).await);
        }
    }
    report
}

/// Repeats an acknowledged change: it must be recognized as done, and must not take effect again.
async fn repeat(ground: &Ground, key: &Key, random: &mut StdRng, report: &mut Report) {
    ground.repeating.fetch_add(1, Ordering::SeqCst);
    // While records are being lost, earlier changes are not repeated.
    let losses = ground.losses();
    if losses.is_multiple_of(2) {
        repeat_since(losses, ground, key, random, report).await;
    }
    ground.repeating.fetch_sub(1, Ordering::SeqCst);
}

async fn repeat_since(losses: usize, ground: &Ground, key: &Key, random: &mut StdRng, report: &mut Report) {
    let named = |(change, fate): &&(Change, Fate)| {
        !change.name.is_empty() && change.losses == losses && matches!(fate, Fate::Acknowledged { .. })
    };
    let acknowledged: Vec<_> = key.changes.iter().filter(named).collect();
    if acknowledged.is_empty() {
        return;
    }
    let (change, _) = acknowledged[random.random_range(0..acknowledged.len())];
    if let Fate::Acknowledged { duplicate, .. } = change.settled(ground).await {
        report.repeated += 1;
        if !duplicate {
            report.violations.push(format!("{change:?} was acknowledged before and is now no duplicate"));
        }
    }
}

impl Key {
    async fn change(&mut self, ground: &Ground, kind: u32, random: &mut StdRng) {
        let number = self.changes.len();
        let value = (kind < 85).then(|| format!("{}#{number}", self.name));
        let named = random.random_bool(0.7);
        let name = if named { format!("intention {number}") } else { String::new() };
        let context = match self.changes.last() {
            Some((_, Fate::Acknowledged { context, .. })) if random.random_bool(0.3) => context.clone(),
            _ => Bytes::new(),
        };
        let change = Change { tenant: TENANT, key: self.name.clone(), value, name, context, losses: ground.losses() };
        let fate = if named { change.settled(ground).await } else { change.once(ground).await };
        self.changes.push((change, fate));
    }
}

/// Tests of the checks themselves: which values a read may return.
#[cfg(test)]
mod tests {
    use super::{Bytes, Change, Fate, Key, TENANT};

    fn candidates(changes: &[(Option<&str>, Fate)]) -> Vec<Option<String>> {
        let changes = changes.iter().map(|(value, fate)| {
            let (key, value) = ("k".to_owned(), value.map(str::to_owned));
            let change = Change { tenant: TENANT, key, value, name: String::new(), context: Bytes::new(), losses: 0 };
            (change, fate.clone())
        });
        let key = Key { name: "k".to_owned(), changes: changes.collect() };
        key.candidates().into_iter().map(|value| value.map(str::to_owned)).collect()
    }

    #[test]
    fn what_was_acknowledged_last_and_what_has_been_in_doubt_since() {
        let acknowledged = || Fate::Acknowledged { context: Bytes::new(), duplicate: false };
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(candidates(&[]), [None]);
        let history = [(Some("a"), Fate::InDoubt), (Some("b"), acknowledged()), (Some("c"), Fate::NotApplied)];
        assert_eq!(candidates(&history), [some("b")]);
        let history = [(Some("a"), acknowledged()), (None, Fate::InDoubt), (Some("b"), Fate::InDoubt)];
        assert_eq!(candidates(&history), [some("a"), None, some("b")]);
        assert_eq!(candidates(&[(Some("a"), acknowledged()), (None, acknowledged())]), [None]);
    }
}
