//! Sets: writers read a set, add a member, and write it back with the context they have read. Concurrent additions become
//! siblings whose union the next writer takes; no acknowledged member may be missing from the union.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;

use super::attempt::{Change, Fate, values};
use super::{Ground, Report};

const TENANT: &str = "siblings";
/// Number of sets written at a time.
const SETS: usize = 3;
/// Most members of a set, so that values stay short.
const MEMBERS: usize = 60;

/// The members added to each set.
#[derive(Default)]
pub(super) struct Members(Mutex<BTreeMap<String, Vec<(String, Fate)>>>);

/// Adds members until stopped.
pub(super) async fn run(ground: Ground, members: Arc<Members>, mut random: StdRng) -> Report {
    let mut generation = [0_usize; SETS];
    let mut number = 0_u64;
    let writer: u32 = random.random();
    while !ground.stopped() {
        let set = random.random_range(0..SETS);
        let key = format!("set {set}/{}", generation[set]);
        let (found, context) = values(&ground, TENANT, &key, "quorum").await;
        let mut all = union(&found);
        if all.len() >= MEMBERS {
            generation[set] += 1;
            continue;
        }
        number += 1;
        let member = format!("{writer:08x}.{number}");
        all.insert(member.clone());
        let value = Some(all.into_iter().collect::<Vec<_>>().join(","));
        let change =
            Change { tenant: TENANT, key: key.clone(), value, name: format!("add {member}"), context, losses: 0 };
        let fate = change.settled(&ground).await;
        members.0.lock().expect("no writer has panicked").entry(key).or_default().push((member, fate));
    }
    Report::default()
}

fn union(siblings: &[String]) -> BTreeSet<String> {
    siblings.iter().flat_map(|value| value.split(',')).map(str::to_owned).collect()
}

impl Members {
    /// Compares the added members with the stored ones.
    pub(super) async fn judge(&self, ground: &Ground) -> Report {
        let sets = std::mem::take(&mut *self.0.lock().expect("no writer has panicked"));
        let mut report = Report::default();
        for (key, members) in sets {
            let all = union(&values(ground, TENANT, &key, "quorum").await.0);
            for (member, fate) in members {
                let acknowledged = matches!(fate, Fate::Acknowledged { .. });
                report.acknowledged += usize::from(acknowledged);
                report.in_doubt += usize::from(fate == Fate::InDoubt);
                if acknowledged && !all.contains(&member) {
                    report.violations.push(format!("{member} was added to {key} and is missing"));
                }
                if fate == Fate::NotApplied && all.contains(&member) {
                    report.violations.push(format!("{member} was not added to {key} and is there"));
                }
            }
        }
        report
    }
}
