//! Appends: several writers add values to the same keys without having read the others', and retry until each is acknowledged. Afterwards
//! each value must be there exactly once, in the records of the replicas.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use witan_kernel::record::{Encoded, Record};
use witan_wire::v1::ReadRequest;

use super::attempt::{Change, Fate, values};
use super::{Ground, Report};
use crate::harness::node_client;

const TENANT: &str = "siblings";
/// Values of one key; 100 is the bound.
const OF_A_KEY: usize = 60;

/// The appended values.
pub(super) struct Elements {
    next: AtomicUsize,
    fates: Mutex<Vec<(Change, Fate)>>,
    nodes: Vec<SocketAddr>,
}

/// Appends until stopped.
pub(super) async fn run(ground: Ground, elements: std::sync::Arc<Elements>) -> Report {
    while !ground.stopped() {
        let change = elements.next();
        let fate = change.settled(&ground).await;
        elements.note(change, fate);
    }
    Report::default()
}

impl Elements {
    /// `nodes` are the replicas of every key.
    pub(super) fn new(nodes: Vec<SocketAddr>) -> Self {
        Self { next: AtomicUsize::new(0), fates: Mutex::default(), nodes }
    }

    /// The next value to append.
    pub(super) fn next(&self) -> Change {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Change {
            tenant: TENANT,
            key: format!("append {}", number / OF_A_KEY),
            value: Some(format!("element {number}")),
            name: format!("append {number}"),
            context: Bytes::new(),
            losses: 0,
        }
    }

    /// Notes the outcome.
    pub(super) fn note(&self, change: Change, fate: Fate) {
        self.fates.lock().expect("no writer has panicked").push((change, fate));
    }

    /// Compares the appended values with reads, and with the records of the nodes.
    pub(super) async fn judge(&self, ground: &Ground) -> Report {
        let fates = std::mem::take(&mut *self.fates.lock().expect("no writer has panicked"));
        let mut report = Report::default();
        let keys: BTreeSet<&str> = fates.iter().map(|(change, _)| change.key.as_str()).collect();
        let mut shown = HashMap::new();
        let mut versions = HashMap::new();
        for key in keys {
            shown.insert(key, values(ground, TENANT, key, "quorum").await.0);
            versions.insert(key, self.versions(key).await);
        }
        for (change, fate) in &fates {
            let value = change.value.as_deref().unwrap_or_default();
            let found = versions[change.key.as_str()].get(value).copied().unwrap_or(0);
            let is_shown = shown[change.key.as_str()].iter().any(|shown| shown == value);
            let right = match fate {
                Fate::Acknowledged { .. } => found == 1 && is_shown,
                Fate::InDoubt => found <= 1,
                Fate::NotApplied => found == 0 && !is_shown,
            };
            report.acknowledged += usize::from(matches!(fate, Fate::Acknowledged { .. }));
            report.in_doubt += usize::from(*fate == Fate::InDoubt);
            if !right {
                report.violations.push(format!("{change:?} {fate:?} found {found} times, shown: {is_shown}"));
            }
        }
        report
    }

    /// How often each value occurs in the records of all replicas together. A read would return equal ones once.
    async fn versions(&self, key: &str) -> HashMap<String, usize> {
        let mut merged: Option<Record> = None;
        for node in &self.nodes {
            let request = ReadRequest { tenant_id: TENANT.to_owned(), key: key.to_owned(), ..ReadRequest::default() };
            let answer = node_client(*node).read(request).await.expect("read from a node").into_inner();
            if let Some(bytes) = answer.record {
                let record = Encoded(bytes).decode().expect("a sound record");
                merged = Some(Record::merge(merged, record).expect("records of one mode").0);
            }
        }
        let mut counts = HashMap::new();
        if let Some(Record::Siblings(siblings)) = merged {
            for value in siblings.live().filter_map(|version| version.value.as_ref()) {
                *counts.entry(String::from_utf8_lossy(value).into_owned()).or_default() += 1;
            }
        }
        counts
    }
}
