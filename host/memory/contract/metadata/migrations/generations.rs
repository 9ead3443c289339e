//! Generations of a tenant's rows: each swap of its routing hook makes one, on record together with the binding, and none is used again.

use witan_kernel::hook::Hook;
use witan_kernel::placement::Placed;
use witan_kernel::port::{
    BindingChange, Changed, HOOK_FAULTS, Metadata, MigrationProgress, MigrationStatus, MoveTenant, PlacementChange,
    RecordText, Slot, StoreError,
};
use witan_kernel::tenant::Tenant;

use super::super::tenant;
use super::{change, factor, id, is_conflict, is_missing, is_refused, revision, ring, step, stored};

pub(super) async fn all<M: Metadata>(metadata: &M) {
    let of = metadata.create_tenant(tenant("swapped")).await.expect("created");
    assert_eq!((of.generation, of.generations, of.wanted_generation), (0, 0, None));
    both_are_recorded_or_neither(metadata, &of).await;
    rows_move_to_the_generation(metadata, &of).await;
    a_swap_is_given_up(metadata, &of).await;
    a_swap_fails(metadata, &of).await;
}

fn swap(of: &Tenant, generation: u32) -> PlacementChange {
    PlacementChange::Generation { tenant: of.id.clone(), generation }
}

fn slot(of: &Tenant) -> Slot {
    Slot { tenant: Some(of.id.clone()), hook: Hook::RoutingHook }
}

fn record(of: &Tenant, expected: u64, text: &str) -> BindingChange {
    let record = Some(RecordText(text.to_owned()));
    BindingChange { slot: slot(of), expected, record, puts_in_force: None, fenced: false, entry: None }
}

fn generations(of: &Tenant) -> (u32, u32, Option<u32>) {
    (of.generation, of.generations, of.wanted_generation)
}

async fn both_are_recorded_or_neither<M: Metadata>(metadata: &M, of: &Tenant) {
    let before = revision(metadata).await;
    for wrong in [0, 2] {
        let refused = metadata.swap_hook(record(of, 0, "first"), swap(of, wrong), 100).await;
        assert!(is_conflict(&refused), "{wrong}: {refused:?}");
    }
    let other = metadata.swap_hook(record(of, 7, "first"), swap(of, 1), 100).await;
    assert!(is_conflict(&other), "another record is stored: {other:?}");
    let unknown = Tenant { id: tenant("nobody").id, ..of.clone() };
    let missing = metadata.swap_hook(record(&unknown, 0, "first"), swap(&unknown, 1), 100).await;
    assert!(is_missing(&missing), "{missing:?}");
    assert_eq!(metadata.binding_record(&slot(of)).await, Ok(None), "what was refused has stored nothing");
    assert_eq!((stored(metadata, &of.id).await, revision(metadata).await), (of.clone(), before));

    let (version, migration) = metadata.swap_hook(record(of, 0, "first"), swap(of, 1), 100).await.expect("recorded");
    let kept = metadata.binding_record(&slot(of)).await.expect("answered").expect("stored");
    assert_eq!((kept.version, kept.record.as_str()), (version, "first"));
    assert_eq!((migration.change.clone(), migration.status), (swap(of, 1), MigrationStatus::Pending));
    assert_eq!(metadata.migration(migration.number).await, Ok(migration.clone()));
    assert_eq!(generations(&stored(metadata, &of.id).await), (0, 1, Some(1)));
    let changes = metadata.changes(before).await.expect("changes").changed;
    let of_both = [Changed::Binding(slot(of)), Changed::Tenant(of.id.clone())];
    assert!(of_both.iter().all(|one| changes.contains(one)), "others follow both: {changes:?}");
    let second = metadata.swap_hook(record(of, version, "second"), swap(of, 2), 100).await;
    assert!(is_conflict(&second), "one at a time: {second:?}");
}

async fn rows_move_to_the_generation<M: Metadata>(metadata: &M, of: &Tenant) {
    let now = stored(metadata, &of.id).await;
    let to = Placed { ring: ring(metadata).await.0, replication_factor: now.replication_factor, generation: 1 };
    let other =
        metadata.move_tenant(&of.id, now.version, MoveTenant::Prepare(Placed { generation: 2, ..to }), 300).await;
    assert!(is_refused(&other), "nobody wants that one: {other:?}");
    let mut at = step(metadata, &now, MoveTenant::Prepare(to)).await.tenant;
    assert_eq!(stored(metadata, &of.id).await.moving.map(|moving| moving.to), Some(to));
    for next in [MoveTenant::DualWrite, MoveTenant::Cutover] {
        at = step(metadata, &at, next).await.tenant;
    }
    let from = at.placed();
    let done = step(metadata, &at, MoveTenant::Finish(vec![id("m-1")])).await;
    assert_eq!(stored(metadata, &of.id).await, done.tenant);
    assert_eq!((generations(&done.tenant), done.tenant.moving), ((1, 1, None), None));
    let left = metadata.leftovers(Some(&of.id), None).await.expect("leftovers");
    assert!(left.iter().all(|left| (left.from, left.to) == (from, to) && left.hand_over), "{left:?}");
    for left in &left {
        metadata.leftover_cleaned(&of.id, &left.node, left.epoch).await.expect("cleaned");
    }
    let settings = metadata.update_tenant(Tenant { generation: 0, generations: 0, ..done.tenant }, false).await;
    assert_eq!(settings.map(|of| generations(&of)), Ok((1, 1, None)), "that is no setting");
    let first = metadata.migrations(None, 1).await.expect("migrations").remove(0);
    let late = metadata.cancel_migration(first.number, 400).await;
    assert!(is_conflict(&late), "it is never used again: {late:?}");
    let done = MigrationProgress::default();
    metadata.note_migration(first.number, MigrationStatus::Completed, done, 500).await.expect("noted");
}

async fn a_swap_is_given_up<M: Metadata>(metadata: &M, of: &Tenant) {
    let migration = change(metadata, swap(of, 2)).await;
    assert_eq!(generations(&stored(metadata, &of.id).await), (1, 2, Some(2)));
    // A change of the factor does not exclude it.
    let of_factor = change(metadata, factor(of, 1)).await;
    metadata.cancel_migration(of_factor.number, 200).await.expect("given up");
    metadata
        .note_migration(of_factor.number, MigrationStatus::Cancelled, MigrationProgress::default(), 300)
        .await
        .expect("noted");
    let given_up = metadata.cancel_migration(migration.number, 200).await.expect("given up");
    assert!(given_up.cancel_requested && !given_up.status.has_ended());
    assert_eq!(generations(&stored(metadata, &of.id).await), (1, 2, None), "the number is used up");
    metadata
        .note_migration(migration.number, MigrationStatus::Cancelled, MigrationProgress::default(), 300)
        .await
        .expect("noted");
    let again = metadata.change_placement(swap(of, 2), 300).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
}

async fn a_swap_fails<M: Metadata>(metadata: &M, of: &Tenant) {
    let migration = change(metadata, swap(of, 3)).await;
    let why = format!("{HOOK_FAULTS}\"k\": it trapped");
    let fault = MigrationProgress { message: why.clone(), ..MigrationProgress::default() };
    metadata.note_migration(migration.number, MigrationStatus::InProgress, fault, 300).await.expect("noted");
    metadata.cancel_migration(migration.number, 300).await.expect("given up");
    metadata
        .note_migration(migration.number, MigrationStatus::Failed, MigrationProgress::default(), 400)
        .await
        .expect("noted");
    let failed = metadata.migration(migration.number).await.expect("on record");
    assert_eq!(
        (failed.status, failed.progress.message, failed.finished_at_ms),
        (MigrationStatus::Failed, why, Some(400))
    );
    assert_eq!(generations(&stored(metadata, &of.id).await), (1, 3, None));
}
