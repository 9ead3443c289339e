use super::*;
use crate::port::{NodeOnRecord, RingOnRecord};

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn node(name: &str) -> StorageNode {
    StorageNode { id: id(name), host: "h".into(), port: 1, virtual_nodes: 8, status: NodeStatus::Active }
}

fn tenant(factor: u8) -> Tenant {
    Tenant::with_defaults(TenantId::new("t").unwrap(), factor, 1)
}

fn placed(ring: u64, replication_factor: u8) -> Placed {
    Placed { ring, replication_factor }
}

fn is_refused<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Refused(_)))
}

/// Each step from each state: what follows, and nothing else.
#[test]
fn a_move_goes_step_by_step() {
    let (to, settled) = (placed(1, 3), tenant(3));
    let preparing = settled.moved(&MoveTenant::Prepare(to), 10).unwrap();
    assert_eq!(preparing.moving, Some(Moving { to, step: Step::Preparing, prepared: 10, since: 10 }));
    let dual = preparing.moved(&MoveTenant::DualWrite, 11).unwrap();
    assert_eq!(dual.moving, Some(Moving { to, step: Step::DualWrite, prepared: 10, since: 11 }));
    let cutover = dual.moved(&MoveTenant::Cutover, 12).unwrap();
    assert_eq!(cutover.moving, Some(Moving { to, step: Step::Cutover, prepared: 10, since: 12 }));
    let done = cutover.moved(&MoveTenant::Finish(vec![]), 13).unwrap();
    assert_eq!(done, Tenant { ring: 1, ..settled.clone() });

    for from in [&preparing, &dual, &cutover] {
        let anew = from.moved(&MoveTenant::Prepare(to), 20).unwrap();
        assert_eq!(anew.moving, Some(Moving { to, step: Step::Preparing, prepared: 20, since: 20 }));
        assert!(is_refused(from.moved(&MoveTenant::Prepare(placed(2, 3)), 20)), "give that one up first");
        assert_eq!(from.moved(&MoveTenant::GiveUp(vec![]), 20).unwrap(), settled);
    }
    for (from, step) in [
        (&settled, MoveTenant::DualWrite),
        (&settled, MoveTenant::Cutover),
        (&settled, MoveTenant::Finish(vec![])),
        (&settled, MoveTenant::GiveUp(vec![])),
        (&preparing, MoveTenant::Cutover),
        (&preparing, MoveTenant::Finish(vec![])),
        (&dual, MoveTenant::DualWrite),
        (&dual, MoveTenant::Finish(vec![])),
        (&cutover, MoveTenant::DualWrite),
        (&cutover, MoveTenant::Cutover),
    ] {
        assert!(is_refused(from.moved(&step, 20)), "{step:?} from {:?}", from.moving);
    }
}

#[test]
fn what_a_tenant_is_to_have_does_not_change_by_its_arrival() {
    let arrived = |wanted_factor, to| {
        let moving = Some(Moving { to: placed(4, to), step: Step::Cutover, prepared: 1, since: 2 });
        let done = Tenant { wanted_factor, moving, ..tenant(3) }.moved(&MoveTenant::Finish(vec![]), 9).unwrap();
        (done.replication_factor, done.wanted_factor)
    };
    assert_eq!(arrived(Some(5), 5), (5, None), "the wish is fulfilled");
    assert_eq!(arrived(Some(5), 3), (3, Some(5)), "only the ring was another one");
    assert_eq!(arrived(None, 3), (3, None));
    assert_eq!(arrived(None, 5), (5, Some(3)), "the wish was withdrawn meanwhile");
}

#[test]
fn what_is_left_is_what_it_had_before() {
    let moving = Some(Moving { to: placed(4, 2), step: Step::Cutover, prepared: 1, since: 2 });
    let moving = Tenant { ring: 3, moving, ..tenant(3) };
    let left = moving.left_over(&MoveTenant::Finish(vec![id("b"), id("a"), id("b")]), 9, 7);
    let shown: Vec<_> = left.iter().map(|left| (left.node.as_str(), left.from, left.to, left.hand_over)).collect();
    assert_eq!(shown, [("a", placed(3, 3), placed(4, 2), true), ("b", placed(3, 3), placed(4, 2), true)]);
    assert_eq!((left[0].epoch, left[0].created_at_ms), (9, 7));
    let left = moving.left_over(&MoveTenant::GiveUp(vec![id("a")]), 9, 7);
    assert_eq!((left[0].from, left[0].to, left[0].hand_over), (placed(4, 2), placed(3, 3), false));
}

#[test]
fn a_settings_change_does_not_touch_where_records_are() {
    let moving = Some(Moving { to: placed(4, 3), step: Step::Preparing, prepared: 1, since: 1 });
    let stored = Tenant { ring: 3, moving, ..tenant(3) };
    let other = Tenant { created_at_ms: 99, ..tenant(3) };
    assert_eq!(other.replacing(&stored), Ok(stored.clone()));
    assert!(matches!(tenant(2).replacing(&stored), Err(StoreError::Conflict(_))));
    let wishing = Tenant { wanted_factor: Some(5), ..tenant(3) };
    assert!(matches!(tenant(5).replacing(&wishing), Err(StoreError::Conflict(_))));
    assert_eq!(tenant(2).replacing(&tenant(3)), Ok(tenant(2)));
}

#[test]
fn a_change_that_has_ended_stays_as_it_is_and_no_number_falls() {
    use MigrationStatus::{Cancelled, Completed, InProgress, Pending};
    let new = Migration { status: Pending, ..pending(PlacementChange::AddNode(node("a")), 1, 5) };
    let progress = |keys_done, message: &str| MigrationProgress {
        tenants_done: keys_done,
        keys_done,
        message: message.to_owned(),
        ..MigrationProgress::default()
    };
    let begun = new.clone().noted(InProgress, progress(7, "x"), 6);
    assert_eq!((begun.status, begun.started_at_ms, begun.finished_at_ms), (InProgress, Some(6), None));
    let later = begun.clone().noted(Pending, progress(3, &"ü".repeat(300)), 8);
    assert_eq!((later.status, later.started_at_ms), (InProgress, Some(6)), "it does not go back");
    assert_eq!((later.progress.keys_done, later.progress.keys_total, later.progress.tenants_done), (7, 7, 7));
    assert_eq!(later.progress.message, "ü".repeat(250), "cut between characters");
    let odd = later.clone().noted(InProgress, progress(3, &format!("x{}", "ü".repeat(300))), 8).progress.message;
    assert_eq!(odd.len(), 499);
    for end in [Completed, Cancelled] {
        let ended = later.clone().noted(end, progress(9, "done"), 9);
        assert_eq!((ended.status, ended.finished_at_ms, ended.progress.keys_done), (end, Some(9), 9));
        assert_eq!(ended.clone().noted(InProgress, progress(10, "late"), 10), ended);
    }
    let straight = new.clone().noted(Completed, progress(0, ""), 9);
    assert_eq!((straight.status, straight.started_at_ms), (Completed, None), "nothing had to move");
    let taken_back = Migration { cancel_requested: true, ..begun };
    assert_eq!(taken_back.clone().noted(Completed, progress(9, ""), 9).status, InProgress);
    assert_eq!(taken_back.noted(Cancelled, progress(9, ""), 9).status, Cancelled);
}

#[test]
fn the_share_that_is_done_does_not_fall_when_there_is_more_than_was_thought() {
    let of = |keys_done, keys_total| MigrationProgress { keys_done, keys_total, ..MigrationProgress::default() };
    let reported = [(0, 10), (0, 100), (40, 100), (40, 1000), (50, 1000), (300, 1000), (500, 1000), (1000, 1000)];
    let mut known = MigrationProgress::default();
    let mut shown = Vec::new();
    for (done, total) in reported {
        let next = known.clone().then(of(done, total));
        let (before, after) = (known.keys_done * next.keys_total, next.keys_done * known.keys_total);
        assert!(after >= before && next.keys_total >= known.keys_total, "{known:?}, {next:?}");
        known = next;
        shown.push((known.keys_done, known.keys_total));
    }
    let expected = [(0, 10), (0, 100), (40, 100), (40, 100), (50, 125), (300, 750), (500, 1000), (1000, 1000)];
    assert_eq!(shown, expected, "it waits at 40 %");
    assert_eq!(of(7, 7).then(of(8, 90)), of(8, 8), "everything was done, as far as was known");
    assert_eq!(of(2, u64::MAX).then(of(u64::MAX, 0)), of(u64::MAX, u64::MAX));
}

#[test]
fn there_is_an_end_to_changes_that_are_under_way() {
    assert_eq!([0, MIGRATIONS - 1, MIGRATIONS, MIGRATIONS + 2].map(superfluous), [0, 0, 1, 3]);
    let of = |number| Migration { number, ..pending(PlacementChange::AddNode(node("a")), 1, 5) };
    let mut open: Vec<Migration> = (0..MIGRATIONS as u64).map(of).collect();
    let placement = Placement { epoch: 1, nodes: vec![], rings: vec![] };
    let plan = |open: &[Migration]| {
        let at = OnRecord { placement: &placement, tenant: None, migrations: open };
        at.plan(PlacementChange::AddNode(node("b")), 1)
    };
    assert!(is_refused(plan(&open)));
    open[7].status = MigrationStatus::Completed;
    assert!(plan(&open).is_ok());
}

#[test]
fn a_page_of_leftovers_does_not_end_within_a_node() {
    let left = |node: &str, epoch| Leftover {
        tenant: TenantId::new("t").unwrap(),
        node: id(node),
        from: placed(0, 3),
        to: placed(epoch, 3),
        hand_over: true,
        epoch,
        created_at_ms: 0,
    };
    let mut all: Vec<Leftover> = (0..LEFTOVERS).map(|n| left(&format!("n{n:04}"), 1)).collect();
    assert_eq!(leftovers(all.clone()), all);
    all.push(left("z", 1));
    assert_eq!(leftovers(all.clone()), all[..LEFTOVERS]);
    all[LEFTOVERS] = left(&format!("n{:04}", LEFTOVERS - 1), 2);
    assert_eq!(leftovers(all.clone()), all[..LEFTOVERS - 1]);
    let one: Vec<Leftover> = (0..=LEFTOVERS as u64).map(|epoch| left("a", epoch)).collect();
    assert_eq!(leftovers(one.clone()), one[..LEFTOVERS], "rather some than none");
}

#[test]
fn what_nothing_refers_to_is_forgotten() {
    let ring =
        |version, members: &[&str]| RingOnRecord { version, members: members.iter().map(|n| (id(n), 8)).collect() };
    let on_record = |name| NodeOnRecord { node: node(name), store_id: None, created_at_ms: 0, updated_at_ms: 0 };
    let placement = Placement {
        epoch: 1,
        nodes: ["a", "b", "c"].map(on_record).to_vec(),
        rings: vec![ring(0, &["a", "b"]), ring(1, &["b", "c"]), ring(2, &["b"])],
    };
    assert_eq!(forgotten(&placement, &BTreeSet::from([0, 1])), (vec![], vec![]));
    assert_eq!(forgotten(&placement, &BTreeSet::from([1])), (vec![0], vec![id("a")]));
    assert_eq!(forgotten(&placement, &BTreeSet::new()), (vec![0, 1], vec![id("a"), id("c")]), "the newest is kept");
}
