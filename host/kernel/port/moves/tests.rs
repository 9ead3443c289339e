use super::replaces::{Fate, PlannedStore, fate, fewest_others, too_few_sources};
use super::*;
use crate::name::{StoreId, Zone};
use crate::port::{NodeOnRecord, RingOnRecord, StoreState};

const OLD: StoreId = StoreId([1; 16]);
const NEW: StoreId = StoreId([2; 16]);

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn node(name: &str) -> StorageNode {
    let zone = Zone::default();
    StorageNode { id: id(name), host: "h".into(), port: 1, virtual_nodes: 8, status: NodeStatus::Active, zone }
}

fn tenant(factor: u8) -> Tenant {
    Tenant::with_defaults(TenantId::new("t").unwrap(), factor, 1)
}

fn placed(ring: u64, replication_factor: u8) -> Placed {
    Placed { ring, replication_factor, generation: 0 }
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
fn a_generation_is_moved_to_only_while_it_is_wanted_and_is_never_given_again() {
    let to = Placed { generation: 2, ..placed(0, 3) };
    let settled = Tenant { generation: 1, generations: 1, ..tenant(3) };
    assert!(is_refused(settled.moved(&MoveTenant::Prepare(to), 10)), "nobody wants it");
    let wanted = settled.wishing_generation(2, 5);
    assert_eq!((wanted.wanted_generation, wanted.generations, wanted.generation), (Some(2), 2, 1));
    let preparing = wanted.moved(&MoveTenant::Prepare(to), 10).unwrap();
    let cutover = Tenant { moving: preparing.moving.map(|moving| Moving { step: Step::Cutover, ..moving }), ..wanted };
    let done = cutover.moved(&MoveTenant::Finish(vec![]), 13).unwrap();
    assert_eq!((done.generation, done.generations, done.wanted_generation, done.moving), (2, 2, None, None));
    // Taken back meanwhile.
    for (of, step) in [(&preparing, MoveTenant::DualWrite), (&cutover, MoveTenant::Finish(vec![]))] {
        let unwanted = Tenant { wanted_generation: None, ..of.clone() };
        assert!(is_refused(unwanted.moved(&step, 20)), "{step:?}");
        let given_up = unwanted.moved(&MoveTenant::GiveUp(vec![]), 20).unwrap();
        assert_eq!((given_up.generation, given_up.generations, given_up.moving), (1, 2, None));
    }
    let left = cutover.left_over(&MoveTenant::Finish(vec![id("a")]), 9, 7);
    assert_eq!((left[0].from.generation, left[0].to.generation, left[0].hand_over), (1, 2, true));
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
    let new = Migration { status: Pending, ..Migration::pending(PlacementChange::AddNode(node("a")), 1, 5) };
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
    let of = |number| Migration { number, ..Migration::pending(PlacementChange::AddNode(node("a")), 1, 5) };
    let mut open: Vec<Migration> = (0..MIGRATIONS as u64).map(of).collect();
    let placement = Placement { epoch: 1, nodes: vec![], rings: vec![] };
    let plan = |open: &[Migration]| {
        let at = OnRecord { placement: &placement, stores: &[], tenant: None, migrations: open };
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
    let ring = |version, members: &[&str]| RingOnRecord {
        version,
        members: members.iter().map(|n| node(n).member()).collect(),
    };
    let on_record =
        |name| NodeOnRecord { node: node(name), store_id: None, drained: false, created_at_ms: 0, updated_at_ms: 0 };
    let placement = Placement {
        epoch: 1,
        nodes: ["a", "b", "c"].map(on_record).to_vec(),
        rings: vec![ring(0, &["a", "b"]), ring(1, &["b", "c"]), ring(2, &["b"])],
    };
    assert_eq!(forgotten(&placement, &BTreeSet::from([0, 1])), (vec![], vec![]));
    assert_eq!(forgotten(&placement, &BTreeSet::from([1])), (vec![0], vec![id("a")]));
    assert_eq!(forgotten(&placement, &BTreeSet::new()), (vec![0, 1], vec![id("a"), id("c")]), "the newest is kept");
}

/// What a placement change makes of a ring with nodes "a" and "b", "c" having left it.
struct Place {
    placement: Placement,
    stores: Vec<StoreOnRecord>,
    open: Vec<Migration>,
}

impl Place {
    fn new() -> Self {
        let on_record = |name| NodeOnRecord {
            node: node(name),
            store_id: None,
            drained: false,
            created_at_ms: 0,
            updated_at_ms: 0,
        };
        let ring = RingOnRecord { version: 3, members: ["a", "b"].map(|name| node(name).member()).to_vec() };
        let nodes = ["a", "b", "c"].map(on_record).to_vec();
        Self { placement: Placement { epoch: 1, nodes, rings: vec![ring] }, stores: vec![], open: vec![] }
    }

    fn at(&self) -> OnRecord<'_> {
        OnRecord { placement: &self.placement, stores: &self.stores, tenant: None, migrations: &self.open }
    }

    /// Carries a plan out.
    fn carry_out(&mut self, plan: &Plan) {
        if let Some(planned) = &plan.store {
            let (to, state) = match planned {
                PlannedStore::Admit { to, .. } => (*to, StoreState::Filling),
                PlannedStore::GiveUp(_) => (NEW, StoreState::Reported),
            };
            self.stores.retain(|known| known.store != to);
            return self.stores.push(StoreOnRecord { store: to, node: id("b"), state, commit: 0, keys: 0 });
        }
        let Some((version, members)) = plan.ring.clone() else { return };
        self.placement.rings.push(RingOnRecord { version, members });
        let node = plan.node.as_ref().expect("a node");
        match self.placement.nodes.iter_mut().find(|known| known.node.id == node.id) {
            Some(known) => known.node.clone_from(node),
            None => {
                let like = self.placement.nodes[0].clone();
                self.placement.nodes.push(NodeOnRecord { node: node.clone(), ..like });
            }
        }
    }

    fn change(&mut self, change: PlacementChange) -> Result<u64, StoreError> {
        match self.at().plan(change, 1)? {
            Planned::Known(known) => Ok(known.number),
            Planned::Write(plan) => {
                self.carry_out(&plan);
                let number = self.open.len() as u64 + 1;
                self.open.push(Migration { number, ..plan.migration });
                Ok(number)
            }
        }
    }

    fn take_back(&mut self, number: u64) -> Result<(), StoreError> {
        let of = self.open[number as usize - 1].clone();
        let plan = self.at().plan_taking_back(&of, 1)?.expect("something is to be written");
        self.carry_out(&plan);
        self.open[number as usize - 1] = plan.migration;
        Ok(())
    }

    /// The newest version of the ring, and what "b" is in it and on record.
    fn b(&self) -> (u64, u32, String) {
        let (version, members) = newest(&self.placement);
        let member = members.iter().find(|member| member.node == id("b")).expect("a member");
        assert_eq!(self.placement.nodes[1].node.member(), *member);
        (version, member.virtual_nodes, member.zone.as_str().to_owned())
    }
}

fn update(name: &str, virtual_nodes: Option<u32>, zone: Option<&str>) -> PlacementChange {
    let zone = zone.map(|zone| Zone::new(zone).unwrap());
    PlacementChange::UpdateNode { node: id(name), virtual_nodes, zone }
}

#[test]
fn an_update_changes_what_it_names_and_taking_it_back_restores_that() {
    let mut place = Place::new();
    let first = place.change(update("b", None, Some("z1"))).unwrap();
    assert_eq!(place.b(), (4, 8, "z1".to_owned()));
    assert_eq!((place.open[0].ring, place.open[0].was.clone()), (4, Some(node("b").member())));
    assert_eq!(place.change(update("b", None, Some("z1"))), Ok(first), "the same once more");
    assert_eq!(place.b().0, 4, "nothing was made");
    let second = place.change(update("b", Some(4), Some("z2"))).unwrap();
    assert_eq!(place.b(), (5, 4, "z2".to_owned()));
    assert!(matches!(place.take_back(first), Err(StoreError::Conflict(why)) if why.contains("change 2 rests")));
    let third = place.change(update("b", None, Some("z1"))).unwrap();
    assert_eq!((third, place.b()), (3, (6, 4, "z1".to_owned())), "the first one does not hold any longer");
    place.take_back(third).unwrap();
    place.take_back(second).unwrap();
    assert_eq!(place.b(), (8, 8, "z1".to_owned()));
    place.take_back(first).unwrap();
    assert_eq!(place.b(), (9, 8, String::new()));
    assert!(place.at().plan_taking_back(&place.open[0], 1).unwrap().is_none(), "it was taken back before");
}

#[test]
fn an_update_is_refused_if_there_is_nothing_to_update() {
    let mut place = Place::new();
    for (change, why) in [
        (update("b", Some(8), Some("")), "has 8 virtual nodes and no zone already"),
        (update("b", None, None), "already"),
        (update("b", Some(0), None), "virtual_nodes is 0"),
        (update("b", Some(limit::MAX_VIRTUAL_NODES + 1), None), "virtual_nodes is 4097"),
        (update("c", Some(9), None), "leaves the ring"),
    ] {
        let refused = place.change(change.clone()).expect_err("a refusal");
        assert!(is_refused::<()>(Err(refused.clone())) && refused.to_string().contains(why), "{change:?}: {refused}");
    }
    assert!(matches!(place.change(update("d", Some(9), None)), Err(StoreError::Missing(_))));
    assert!(place.open.is_empty());
}

#[test]
fn a_node_that_stays_after_all_is_as_it_was_updated_last() {
    let mut place = Place::new();
    place.change(update("b", Some(3), Some("z"))).unwrap();
    let leaves = place.change(PlacementChange::RemoveNode { node: id("b"), force: false }).unwrap();
    assert!(matches!(place.take_back(1), Err(StoreError::Conflict(_))), "the removal rests on it");
    assert!(is_refused(place.change(update("b", Some(8), None))));
    place.take_back(leaves).unwrap();
    assert_eq!(place.b(), (6, 3, "z".to_owned()));
}

fn replacing(name: &str, accept_loss: bool) -> PlacementChange {
    PlacementChange::ReplaceStore { node: id(name), from: OLD, to: NEW, accept_loss }
}

#[test]
fn a_replacement_admits_once_and_ends_as_the_stores_on_record_say() {
    let mut place = Place::new();
    place.placement.nodes[1].store_id = Some(OLD);
    let first = place.change(replacing("b", false)).unwrap();
    assert_eq!(place.change(replacing("b", false)), Ok(first), "the same once more");
    let second = place.change(replacing("b", true)).unwrap();
    assert_ne!(first, second, "it may do more");
    for accept_loss in [false, true] {
        assert_eq!(place.change(replacing("b", accept_loss)), Ok(second));
    }
    assert_eq!((place.placement.rings.len(), place.open[0].ring), (1, 3), "the ring stays as it is");
    let fate_of = |place: &Place| fate(&replacing("b", false), &place.placement.nodes, &place.stores);
    assert_eq!(fate_of(&place), Fate::Filling);
    place.take_back(first).unwrap();
    assert!(matches!(fate_of(&place), Fate::GivenUp(why) if why.contains("used again")));
    place.take_back(second).unwrap();

    // It was given up because the old disk was back, and nobody has noted that: the same call is another change.
    let third = place.change(replacing("b", false)).unwrap();
    place.stores[0].state = StoreState::Reported;
    let fourth = place.change(replacing("b", false)).unwrap();
    assert!(fourth > third && fate_of(&place) == Fate::Filling);
    place.placement.nodes[1].store_id = Some(NEW);
    assert_eq!(fate_of(&place), Fate::Whole);
    let of = place.open.last().unwrap();
    assert!(matches!(place.at().plan_taking_back(of, 1), Err(StoreError::Conflict(why)) if why.contains("retired")));
    place.stores[0].state = StoreState::Retired;
    assert!(matches!(fate_of(&place), Fate::GivenUp(_)), "taken for lost afterwards");
    place.placement.nodes.clear();
    assert!(matches!(fate_of(&place), Fate::GivenUp(why) if why.contains("removed")));
}

#[test]
fn no_store_is_replaced_of_a_node_that_changes_its_place() {
    let mut place = Place::new();
    assert!(is_refused(place.change(replacing("c", false))), "it leaves");
    assert!(matches!(place.change(replacing("d", false)), Err(StoreError::Missing(_))));
    let updated = place.change(update("b", None, Some("z1"))).unwrap();
    assert!(matches!(place.change(replacing("b", true)), Err(StoreError::Conflict(why)) if why.contains("m-1")));
    place.open[updated as usize - 1].status = MigrationStatus::Completed;
    let replaced = place.change(replacing("b", true)).unwrap();
    place.change(update("b", Some(4), None)).unwrap();
    place.take_back(replaced).expect("the ring does not rest on it");
}

mod plans;
