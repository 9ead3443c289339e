//! Writers of siblings. Each key has one writer, which writes with or without a context and deletes with one, so that it is known which
//! values must be stored, and which must never be returned again.

use std::collections::HashSet;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::attempt::{Change, Fate, values};
use super::{Ground, Report};

const TENANT: &str = "siblings";
/// Number of changes of one key before the writer moves on to another: well below the bound on siblings.
const CHANGES: usize = 40;

/// A change, and the values that its context covers.
struct Done {
    change: Change,
    fate: Fate,
    covers: HashSet<String>,
}

/// The values that the writer has seen, with their context.
#[derive(Clone, Default)]
struct Seen {
    context: Bytes,
    values: HashSet<String>,
}

struct Key {
    name: String,
    done: Vec<Done>,
    seen: Seen,
}

impl Key {
    fn covered_by(&self, counts: impl Fn(&Fate) -> bool) -> HashSet<&str> {
        let covering = self.done.iter().filter(|done| counts(&done.fate));
        covering.flat_map(|done| done.covers.iter().map(String::as_str)).collect()
    }

    /// Compares a read with the values that it must and may return.
    fn judge(&self, found: &[String]) -> Option<String> {
        let acknowledged = |fate: &Fate| matches!(fate, Fate::Acknowledged { .. });
        let certainly_covered = self.covered_by(acknowledged);
        let perhaps_covered = self.covered_by(|fate| *fate != Fate::NotApplied);
        let found: HashSet<&str> = found.iter().map(String::as_str).collect();
        let mut wrong = Vec::new();
        for done in &self.done {
            let Some(value) = done.change.value.as_deref() else { continue };
            let is_found = found.contains(value);
            if !is_found && acknowledged(&done.fate) && !perhaps_covered.contains(value) {
                wrong.push(format!("{value} is lost"));
            }
            if is_found && certainly_covered.contains(value) {
                wrong.push(format!("{value} is back"));
            }
            if is_found && done.fate == Fate::NotApplied {
                wrong.push(format!("{value} was said not to be applied"));
            }
        }
        let known: HashSet<&str> = self.done.iter().filter_map(|done| done.change.value.as_deref()).collect();
        wrong.extend(found.difference(&known).map(|value| format!("{value} was never written")));
        (!wrong.is_empty()).then(|| format!("siblings {}: {}; {}", self.name, wrong.join(", "), self.history()))
    }

    fn history(&self) -> String {
        let changes = self.done.iter().map(|done| {
            let mut covers: Vec<&str> = done.covers.iter().map(String::as_str).collect();
            covers.sort_unstable();
            let fate = match &done.fate {
                Fate::Acknowledged { .. } => "acknowledged",
                Fate::NotApplied => "not applied",
                Fate::InDoubt => "in doubt",
            };
            format!("{:?} over {covers:?} {fate}", done.change.value)
        });
        changes.collect::<Vec<_>>().join(", ")
    }

    async fn look(&mut self, ground: &Ground, level: &str) -> Option<String> {
        let (values, context) = values(ground, TENANT, &self.name, level).await;
        let wrong = self.judge(&values);
        self.seen = Seen { context, values: values.into_iter().collect() };
        wrong
    }

    async fn change(&mut self, ground: &Ground, deletes: bool, random: &mut StdRng) {
        let number = self.done.len();
        let value = (!deletes).then(|| format!("{}#{number}", self.name));
        let named = random.random_bool(0.8);
        let name = if named { format!("intention {number}") } else { String::new() };
        // A delete without a context would cover all current values, which could not be determined afterwards.
        let seen = if deletes || random.random_bool(0.4) { self.seen.clone() } else { Seen::default() };
        let change = Change { tenant: TENANT, key: self.name.clone(), value, name, context: seen.context, losses: 0 };
        let fate = if named { change.settled(ground).await } else { change.once(ground).await };
        if let (Fate::Acknowledged { context, .. }, true) = (&fate, random.random_bool(0.5)) {
            // A writer has seen its own write, and all that it had seen before.
            let values = seen.values.iter().cloned().chain(change.value.clone()).collect();
            self.seen = Seen { context: context.clone(), values };
        }
        self.done.push(Done { change, fate, covers: seen.values });
    }
}

/// Writes until stopped, and then compares.
pub(super) async fn run(ground: Ground, index: u64, mut random: StdRng) -> Report {
    let mut report = Report::default();
    let mut keys: Vec<Key> = Vec::new();
    while !ground.stopped() {
        let mut key = Key { name: format!("{index}/{}", keys.len()), done: Vec::new(), seen: Seen::default() };
        while key.done.len() < CHANGES && !ground.stopped() {
            match random.random_range(0..100) {
                0..30 => report.violations.extend(key.look(&ground, "quorum").await),
                30..45 if !key.seen.context.is_empty() => key.change(&ground, true, &mut random).await,
                _ => key.change(&ground, false, &mut random).await,
            }
        }
        keys.push(key);
    }
    for key in &keys {
        for done in &key.done {
            report.acknowledged += usize::from(matches!(done.fate, Fate::Acknowledged { .. }));
            report.in_doubt += usize::from(done.fate == Fate::InDoubt);
        }
    }
    for level in ["quorum", "all"] {
        for key in &mut keys {
            report.violations.extend(key.look(&ground, level).await);
        }
    }
    report
}

/// Tests of the checks themselves: the violations that they must find.
#[cfg(test)]
mod tests {
    use super::{Bytes, Change, Done, Fate, HashSet, Key, Seen, TENANT};

    fn done(value: Option<&str>, fate: Fate, covers: &[&str]) -> Done {
        let (key, value) = ("k".to_owned(), value.map(str::to_owned));
        let change = Change { tenant: TENANT, key, value, name: String::new(), context: Bytes::new(), losses: 0 };
        Done { change, fate, covers: covers.iter().map(|value| (*value).to_owned()).collect() }
    }

    fn acknowledged() -> Fate {
        Fate::Acknowledged { context: Bytes::new(), duplicate: false }
    }

    fn judged(done: Vec<Done>, found: &[&str]) -> Option<String> {
        let key = Key { name: "k".to_owned(), done, seen: Seen { context: Bytes::new(), values: HashSet::new() } };
        key.judge(&found.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn losses_and_resurrections_are_noticed() {
        let both = || vec![done(Some("a"), acknowledged(), &[]), done(Some("b"), acknowledged(), &[])];
        assert_eq!(judged(both(), &["a", "b"]), None);
        assert!(judged(both(), &["b"]).is_some_and(|violation| violation.contains("a is lost")));
        let deleted = || vec![done(Some("a"), acknowledged(), &[]), done(None, acknowledged(), &["a"])];
        assert_eq!(judged(deleted(), &[]), None);
        assert!(judged(deleted(), &["a"]).is_some_and(|violation| violation.contains("a is back")));
        let perhaps = || vec![done(Some("a"), acknowledged(), &[]), done(Some("b"), Fate::InDoubt, &["a"])];
        for found in [&["a"][..], &["b"], &["a", "b"]] {
            assert_eq!(judged(perhaps(), found), None);
        }
        let refused = || vec![done(Some("a"), Fate::NotApplied, &[])];
        assert_eq!(judged(refused(), &[]), None);
        assert!(judged(refused(), &["a"]).is_some());
        assert!(judged(Vec::new(), &["x"]).is_some_and(|violation| violation.contains("never written")));
    }
}
