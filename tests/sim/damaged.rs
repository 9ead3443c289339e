//! A disk that loses what it has acknowledged: the store on it is not opened again, the other nodes go on, and the node is filled
//! like one with a replaced disk.

use std::sync::Mutex;

use crate::scenario::DAMAGED as SEEDS;
use crate::world::lock;
use crate::{judge, on_all_cores};

/// How many of them every test run plays.
const PLAYED: u64 = 40;

#[test]
fn a_disk_that_loses_what_it_acknowledged_breaks_no_promise() {
    let failed: Mutex<Vec<String>> = Mutex::default();
    on_all_cores(PLAYED, |number| {
        let verdict = judge(SEEDS + number, None, false);
        if let Some(violation) = verdict.violations.first() {
            lock(&failed).push(format!("seed {}: {violation}", SEEDS + number));
        }
    });
    assert!(lock(&failed).is_empty(), "{:#?}", lock(&failed));
}
