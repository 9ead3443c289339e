//! The life of a claim on a duty, by the rules that every metadata store applies.

use witan_kernel::name::NodeId;
use witan_kernel::port::upkeep::named_duty;
use witan_kernel::port::{
    Claimant, Duty, DutyKind, DutyOnRecord, PassEnd, StoreError, UPKEEP_CLAIM_MS, UPKEEP_CURSOR_BYTES,
    UPKEEP_RANGE_BYTES,
};

fn duty(range: &str) -> Duty {
    Duty { kind: DutyKind::Compare, range: range.to_owned() }
}

fn by(instance: u8) -> Claimant {
    Claimant { coordinator: NodeId::new("c1").unwrap(), instance: [instance; 16] }
}

fn is_conflict<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Conflict(_)))
}

fn is_refused<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Refused(_)))
}

#[test]
fn a_claim_is_held_until_it_expires_and_each_other_holder_gets_another_fence() {
    let first = DutyOnRecord::new(duty("1")).claimed(by(1), 100, 1000).unwrap();
    assert_eq!((first.fence, first.begun_ms, first.until_ms), (1, 1000, 1100));
    assert_eq!([1000, 1099, 1100, 1101].map(|now| first.live_holder(now).is_some()), [true, true, false, false]);
    assert!(is_conflict(first.clone().claimed(by(2), 100, 1099)));
    let renewed = first.clone().claimed(by(1), 100, 1050).unwrap();
    assert_eq!((renewed.fence, renewed.begun_ms, renewed.until_ms), (1, 1000, 1150), "the same holder, the same pass");
    let other = renewed.clone().claimed(by(2), 100, 1150).unwrap();
    assert_eq!((other.fence, other.begun_ms, other.holder.clone()), (2, 1000, Some(by(2))), "it goes on with the pass");
    let third = other.clone().claimed(by(3), 100, 1250).unwrap();
    assert_eq!(third.fence, 3);
    assert!(is_conflict(third.clone().kept(2, Vec::new(), 100, 1260)), "it was lost");
    let kept = third.kept(3, vec![7], 100, 1260).unwrap();
    assert_eq!((kept.cursor.clone(), kept.until_ms), (vec![7], 1360));
}

#[test]
fn what_is_given_back_says_how_far_it_has_come() {
    let held = || DutyOnRecord::new(duty("1")).claimed(by(1), 100, 1000).unwrap().kept(1, vec![7], 100, 1010).unwrap();
    let back = |end| held().given_back(1, end, 1020).unwrap();
    let said = |left: &DutyOnRecord| (left.begun_ms, left.cursor.clone(), left.covered_ms, left.ended_ms);
    let interrupted = back(PassEnd::Interrupted(vec![9]));
    assert_eq!(said(&interrupted), (1000, vec![9], 0, 0));
    assert_eq!(said(&back(PassEnd::Incomplete)), (0, Vec::new(), 0, 1020));
    assert_eq!(said(&back(PassEnd::Complete)), (0, Vec::new(), 1000, 1020));
    assert_eq!((interrupted.holder.clone(), interrupted.until_ms), (None, 1020));
    assert!(is_conflict(held().given_back(2, PassEnd::Complete, 1020)), "of another claim");
    assert!(is_conflict(interrupted.clone().given_back(1, PassEnd::Complete, 1030)), "nobody holds it");
    assert!(is_conflict(interrupted.kept(1, Vec::new(), 100, 1030)));
}

#[test]
fn limits_are_reached_and_not_exceeded() {
    let new = || DutyOnRecord::new(duty("1"));
    assert!(is_refused(new().claimed(by(1), 0, 1)) && is_refused(new().claimed(by(1), UPKEEP_CLAIM_MS + 1, 1)));
    let held = new().claimed(by(1), UPKEEP_CLAIM_MS, 1).unwrap();
    let keep = |bytes: usize, ms: u64| held.clone().kept(1, vec![1; bytes], ms, 2);
    assert!(keep(UPKEEP_CURSOR_BYTES, 1).is_ok());
    assert!(is_refused(keep(UPKEEP_CURSOR_BYTES + 1, 1)) && is_refused(keep(0, 0)));
    assert!(is_refused(held.clone().given_back(1, PassEnd::Interrupted(vec![1; UPKEEP_CURSOR_BYTES + 1]), 2)));
    let named = |bytes: usize| named_duty(&duty(&"r".repeat(bytes)));
    assert!(named(1).is_ok() && named(UPKEEP_RANGE_BYTES).is_ok());
    assert!(is_refused(named(0)) && is_refused(named(UPKEEP_RANGE_BYTES + 1)));
}
