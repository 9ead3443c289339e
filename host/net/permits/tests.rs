use super::*;
use crate::untaken::LINE;

fn of(bounds: Bounds, silent_for: Duration) -> Arc<Permits> {
    Arc::new(Permits { silent_for, ..Permits::new(bounds) })
}

fn most(connections: usize) -> Bounds {
    Bounds { connections, of_address: 0, ..Bounds::default() }
}

fn from(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

#[test]
fn permits_are_returned_in_any_order() {
    let permits = of(most(3), SILENT_FOR);
    let take = || permits.take(from(1));
    let (a, b, c) = (take().unwrap(), take().unwrap(), take().unwrap());
    assert!(take().is_none());
    drop(a);
    drop(c);
    assert_eq!(permits.open_now(), 1);
    let (d, e) = (take().unwrap(), take().unwrap());
    assert!(take().is_none());
    drop((b, d, e));
    assert_eq!(permits.open_now(), 0);
    assert!(permits.open().by_address.is_empty());
    assert_eq!(permits.counts.full.load(Ordering::Relaxed), 2);
}

#[test]
fn the_one_that_was_without_a_call_longest_makes_room() {
    let permits = of(most(64), Duration::ZERO);
    let taken: Vec<Permit> = (0..64).map(|_| permits.take(from(1)).unwrap()).collect();
    let calls: Vec<Call> = taken[1..60].iter().map(|permit| permit.usage().call()).collect();
    for (index, permit) in taken.iter().enumerate() {
        permit.entry.heard_ms.store(if index == 3 { 0 } else { 2 }, Ordering::Relaxed);
        permit.entry.used_ms.store(if index == 62 { 0 } else { 1 }, Ordering::Relaxed);
    }
    let cx = Context::from_waker(std::task::Waker::noop());
    let newest = permits.take(from(1)).expect("one makes room");
    let gone = |taken: &[Permit]| (0..64).filter(|at| taken[*at].is_evicted(&cx)).collect::<Vec<_>>();
    assert_eq!(gone(&taken), [62], "although its peer was heard");
    let calling: Vec<Call> = taken.iter().chain([&newest]).map(|permit| permit.usage().call()).collect();
    let last = permits.take(from(1)).expect("one makes room");
    assert_eq!(gone(&taken), [3, 62], "all have calls: the one that was silent longest");
    assert_eq!(permits.open_now(), 64);
    drop((calls, calling, taken));
    assert_eq!(permits.open_now(), 2);
    assert!(!newest.is_evicted(&cx) && !last.is_evicted(&cx));
}

#[test]
fn an_address_has_its_share_and_the_last_places_are_for_others() {
    let trusted = vec!["192.0.2.0/24".parse().unwrap()];
    let bounds = Bounds { connections: 10, of_address: 4, reserved: 3, trusted, ..Bounds::default() };
    let permits = of(bounds, SILENT_FOR);
    let taken: Vec<Permit> = (0..6).filter_map(|_| permits.take(from(1))).collect();
    assert_eq!((taken.len(), permits.counts.address.load(Ordering::Relaxed)), (4, 2));
    let site = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
    let of_site: Vec<Permit> = (0..6).filter_map(|last| permits.take(site(last))).collect();
    assert_eq!(of_site.len(), 3, "the last three places are for addresses that have few");
    assert_eq!(permits.counts.full.load(Ordering::Relaxed), 3);
    let others = [[127, 0, 0, 1], [192, 0, 2, 1], [192, 0, 2, 1]].map(|of| permits.take(of.into()));
    assert!(others.iter().all(Option::is_some) && permits.take(from(3)).is_none());
    drop((others, taken, of_site));
    let many = |address: [u8; 4]| (0..9).filter_map(|_| permits.take(address.into())).collect::<Vec<_>>().len();
    assert_eq!(
        (many([127, 0, 0, 1]), many([192, 0, 2, 9]), many([10, 0, 0, 9])),
        (7, 7, 4),
        "with and without a share"
    );
}

#[test]
fn a_large_answer_has_to_be_taken_in_time() {
    let permits = of(most(1), SILENT_FOR);
    let permit = permits.take(from(1)).unwrap();
    let usage = permit.usage();
    let (small, large) = (usage.answer(LARGE_ANSWER).unwrap(), usage.answer(40 << 20).unwrap());
    assert!(usage.answer(30 << 20).is_none(), "64 MiB in all");
    assert!(!permit.is_stalled());
    drop((small, large));
    assert!(permit.entry.large().waiting.is_empty() && usage.answer(ANSWER_BYTES).is_some());
}

#[test]
fn requests_of_a_connection_that_wait_are_bounded() {
    let permit = of(most(1), SILENT_FOR).take(from(1)).unwrap();
    let usage = permit.usage();
    let first = usage.waiting(WAITING_BYTES - 10).unwrap();
    assert!(usage.waiting(11).is_none() && usage.waiting(10).is_some());
    drop(first);
    assert!(usage.waiting(WAITING_BYTES).is_some());
}

#[test]
fn a_slow_line_has_time_for_everything_that_shares_it() {
    let mut large = Large::default();
    let first = large.enter(2_560_000, TAKEN_WITHIN_MS, 1000);
    let time = |bytes: u64| TAKEN_WITHIN_MS + bytes / LINE;
    assert!(!large.is_stalled(1000 + time(2_560_000)) && large.is_stalled(1001 + time(2_560_000)));
    let second = large.enter(5_120_000, TAKEN_WITHIN_MS, 2000);
    assert!(!large.is_stalled(1000 + time(7_680_000)) && large.is_stalled(1001 + time(7_680_000)));
    large.leave(first);
    assert!(!large.is_stalled(2000 + time(7_680_000)), "it has shared the line with the first one");
    large.leave(second);
    large.enter(2_560_000, TAKEN_WITHIN_MS, 50_000);
    assert!(large.is_stalled(50_001 + time(2_560_000)), "and this one with nobody");
}

#[test]
fn streams_without_a_credential_are_bounded_three_times() {
    let permits = of(Bounds { connections: 1000, of_address: 0, watches: 2, ..Bounds::default() }, SILENT_FOR);
    let one = permits.take(from(1)).unwrap();
    let kept = (one.usage().watch().unwrap(), one.usage().watch().unwrap());
    assert!(one.usage().watch().is_none(), "of the connection");
    drop(kept.0);
    assert!(one.usage().watch().is_some(), "one has ended");
    drop(kept.1);
    let crowd = |last: u8| (0..400).map(|_| permits.take(from(last)).unwrap()).collect::<Vec<_>>();
    let (first, second) = (crowd(1), crowd(2));
    let watches = |crowd: &[Permit]| {
        crowd.iter().flat_map(|permit| [(); 2].map(|()| permit.usage().watch())).flatten().collect::<Vec<_>>()
    };
    let (of_first, of_second) = (watches(&first), watches(&second));
    assert_eq!((of_first.len(), of_second.len()), (WATCHES / 2, WATCHES / 2), "of an address");
    assert!(permits.take(from(3)).unwrap().usage().watch().is_none(), "of all");
    drop((of_first, of_second));
    assert_eq!(permits.open().watches, 0);
}

#[test]
fn receive_windows_are_shared_and_given_back() {
    let permits = of(Bounds { connections: 1000, of_address: 0, ..Bounds::default() }, SILENT_FOR);
    let crowd: Vec<Permit> = (0..200).map(|_| permits.take(from(1)).unwrap()).collect();
    let windows: Vec<Window> = crowd.iter().map(|permit| permit.usage().window()).collect();
    assert_eq!(
        (windows[0].bytes(), windows[199].bytes()),
        (window::OF_ADDRESS / window::PART + window::LEAST, window::LEAST)
    );
    let total: usize = windows.iter().map(Window::bytes).sum();
    assert_eq!(permits.windows(), total);
    assert!(total <= window::OF_ADDRESS + 200 * window::LEAST, "{total}");
    let other = permits.take(from(2)).unwrap().usage().window();
    assert!(other.bytes() > window::OF_ADDRESS / window::PART / 2, "another address has its own: {}", other.bytes());
    drop((windows, crowd, other));
    assert_eq!((permits.windows(), permits.open().beyond_least), (0, 0));
    assert!(permits.open().by_address.is_empty());
}

#[test]
fn calls_are_bounded_of_an_address_and_of_all() {
    let permits = of(Bounds { connections: 1000, of_address: 0, ..Bounds::default() }, SILENT_FOR);
    for (open, most) in [(true, OPEN_CALLS), (false, CALLS)] {
        let (one, two, three) =
            (permits.take(from(1)).unwrap(), permits.take(from(2)).unwrap(), permits.take(from(3)).unwrap());
        let calls = |permit: &Permit| (0..most).map_while(|_| permit.usage().counted_call(open, 1)).collect::<Vec<_>>();
        let first = calls(&one);
        assert_eq!(first.len(), most / 2, "of an address");
        assert!(permits.take(from(1)).unwrap().usage().counted_call(open, 1).is_none(), "on any of its connections");
        assert!(one.usage().counted_call(!open, 1).is_some(), "the others are counted apart");
        let second = calls(&two);
        assert_eq!(second.len(), most / 4, "of all, for one that has many");
        let few = calls(&three);
        assert_eq!(few.len(), FEW_CALLS as usize, "the rest is for those that have few");
        drop((first, second, few));
        let heavy = (0..most).map_while(|_| one.usage().counted_call(open, 4)).collect::<Vec<_>>();
        assert_eq!(heavy.len(), most / 2 / 4);
        drop((heavy, one));
        assert_eq!(permits.calls.of(open).load(Ordering::Relaxed), 0);
    }
    assert_eq!(permits.counts.calls.load(Ordering::Relaxed), 2 * 5);
}

#[test]
fn a_small_answer_has_to_be_taken_in_time_too() {
    let mut answers = Large::default();
    let small = answers.enter(0, ANSWERED_WITHIN_MS, 1000);
    assert!(!answers.is_stalled(31_000) && answers.is_stalled(31_001));
    answers.leave(small);
    assert!(!answers.is_stalled(100_000));
    answers.enter(2_560_000, TAKEN_WITHIN_MS, 1000);
    answers.enter(0, ANSWERED_WITHIN_MS, 1000);
    assert!(answers.is_stalled(22_000), "the large one has waited for longer than its line needs");
}
