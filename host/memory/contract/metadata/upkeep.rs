//! What every store of claims must do.

use witan_kernel::name::NodeId;
use witan_kernel::port::{
    Claimant, DUTIES, Duty, DutyKind, Metadata, PassEnd, StoreError, UPKEEP_CLAIM_MS, UPKEEP_CURSOR_BYTES,
    UPKEEP_RANGE_BYTES,
};

use super::{Pass, join_all};

fn claimant(of: u8) -> Claimant {
    Claimant { coordinator: NodeId::new(format!("coordinator-{of}")).expect("valid"), instance: [of; 16] }
}

fn duty(kind: DutyKind, range: &str) -> Duty {
    Duty { kind, range: range.to_owned() }
}

pub(super) async fn claims<M: Metadata>(metadata: &M, pass: Pass<'_>) {
    assert!(metadata.duties().await.expect("duties").duties.is_empty());
    let revision = metadata.changes(u64::MAX).await.expect("a revision").revision;
    let part = duty(DutyKind::Compare, "3");
    let first = metadata.claim_duty(&part, claimant(1), 200_000).await.expect("claimed");
    assert!(first.begun_ms > 0 && first.until_ms == first.begun_ms + 200_000 && first.cursor.is_empty());
    let refused = metadata.claim_duty(&part, claimant(2), 200_000).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(why)) if why.contains("coordinator-1")), "{refused:?}");
    let again = metadata.claim_duty(&part, claimant(1), 200_000).await.expect("renewed");
    assert_eq!((again.fence, again.begun_ms), (first.fence, first.begun_ms));

    metadata.keep_duty(&part, first.fence, vec![7; UPKEEP_CURSOR_BYTES], 200_000).await.expect("kept");
    let lost = metadata.keep_duty(&part, first.fence + 1, Vec::new(), 200_000).await;
    assert!(matches!(lost, Err(StoreError::Conflict(_))), "{lost:?}");
    metadata.give_back_duty(&part, first.fence, PassEnd::Interrupted(b"half".to_vec())).await.expect("given back");
    let lost = metadata.keep_duty(&part, first.fence, Vec::new(), 200_000).await;
    assert!(matches!(lost, Err(StoreError::Conflict(_))), "given back: {lost:?}");

    let second = metadata.claim_duty(&part, claimant(2), 200_000).await.expect("claimed");
    assert!(second.fence > first.fence, "a claim of another time");
    assert_eq!((second.begun_ms, second.cursor.as_slice()), (first.begun_ms, &b"half"[..]), "the same pass goes on");
    metadata.give_back_duty(&part, second.fence, PassEnd::Complete).await.expect("given back");
    let third = metadata.claim_duty(&part, claimant(1), 1).await.expect("claimed");
    assert_eq!(third.covered_ms, first.begun_ms, "complete since that began, and not since it was taken over");
    assert!(third.ended_ms > 0 && third.cursor.is_empty());
    pass(20).await;
    let rivals = join_all((4..9).map(|of| metadata.claim_duty(&part, claimant(of), 200_000))).await;
    let won: Vec<_> = rivals.into_iter().flatten().collect();
    assert_eq!(won.len(), 1, "of rivals for an expired claim, one wins");
    assert!(won[0].fence > third.fence && won[0].begun_ms == third.begun_ms);
    let lost = metadata.give_back_duty(&part, third.fence, PassEnd::Complete).await;
    assert!(matches!(lost, Err(StoreError::Conflict(_))), "whose claim was taken over decides nothing: {lost:?}");
    metadata.give_back_duty(&part, won[0].fence, PassEnd::Incomplete).await.expect("given back");

    wanted(metadata, pass).await;
    let listed = metadata.duties().await.expect("duties");
    let shown: Vec<_> = listed.duties.iter().map(|known| known.duty.clone()).collect();
    assert_eq!(shown, [part, duty(DutyKind::CatchUp, "node-1")], "in order");
    let part = &listed.duties[0];
    assert_eq!((part.covered_ms, part.begun_ms, &part.holder), (first.begun_ms, 0, &None));
    assert!(part.ended_ms > 0 && part.live_holder(listed.now_ms).is_none());
    let after = metadata.changes(u64::MAX).await.expect("a revision").revision;
    assert_eq!(after, revision, "others do not follow claims");
    refusals(metadata).await;
}

async fn wanted<M: Metadata>(metadata: &M, pass: Pass<'_>) {
    let back = duty(DutyKind::CatchUp, "node-1");
    metadata.want_duty(&back).await.expect("wanted");
    let known = metadata.duties().await.expect("duties").duties.pop().expect("one");
    assert!(known.wanted_ms > 0 && known.holder.is_none() && known.begun_ms == 0, "{known:?}");
    pass(20).await;
    let claimed = metadata.claim_duty(&back, claimant(1), 200_000).await.expect("claimed");
    assert!(claimed.begun_ms > known.wanted_ms);
    pass(20).await;
    metadata.want_duty(&back).await.expect("wanted again");
    metadata.keep_duty(&back, claimed.fence, Vec::new(), 200_000).await.expect("the claim is the same");
    metadata.give_back_duty(&back, claimed.fence, PassEnd::Complete).await.expect("given back");
    let known = metadata.duties().await.expect("duties").duties.pop().expect("one");
    assert!(known.wanted_ms > known.covered_ms, "what was asked for during a pass is not what that pass has done");
    let gone = duty(DutyKind::CatchUp, "node-2");
    metadata.want_duty(&gone).await.expect("wanted");
    metadata.forget_duty(&gone).await.expect("forgotten");
    metadata.forget_duty(&gone).await.expect("nothing to forget");
}

/// Duties of what nodes have missed are counted apart from all others, and both have a bound. Leaves a full table behind.
pub async fn duties_are_bounded<M: Metadata>(metadata: &M) {
    for kind in [DutyKind::Missed, DutyKind::CatchUp] {
        let of_kind = |known: &Duty| (known.kind == DutyKind::Missed) == (kind == DutyKind::Missed);
        let listed = metadata.duties().await.expect("duties").duties;
        let room = DUTIES - listed.iter().filter(|known| of_kind(&known.duty)).count();
        for number in 0..room {
            metadata.want_duty(&duty(kind, &format!("many-{number}"))).await.expect("wanted");
        }
        let refused = metadata.claim_duty(&duty(kind, "one more"), claimant(1), 1000).await;
        assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("1200")), "{kind:?}: {refused:?}");
        metadata.want_duty(&duty(kind, "many-0")).await.expect("one that is there");
    }
}

async fn refusals<M: Metadata>(metadata: &M) {
    let part = duty(DutyKind::Compare, "3");
    for for_ms in [0, UPKEEP_CLAIM_MS + 1] {
        let refused = metadata.claim_duty(&part, claimant(1), for_ms).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    for range in ["", &"r".repeat(UPKEEP_RANGE_BYTES + 1)] {
        let refused = metadata.want_duty(&duty(DutyKind::CatchUp, range)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    let claimed = metadata.claim_duty(&part, claimant(1), 200_000).await.expect("claimed");
    let refused = metadata.keep_duty(&part, claimed.fence, vec![0; UPKEEP_CURSOR_BYTES + 1], 200_000).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    metadata.give_back_duty(&part, claimed.fence, PassEnd::Incomplete).await.expect("given back");
}
