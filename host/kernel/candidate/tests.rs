use proptest::prelude::*;

use super::*;

fn trial(mode: Mode, percent: u8) -> Trial {
    let bounds = Bounds { least_answers: 10, window_s: 5, ..Bounds::default() };
    Trial { mode, percent, bounds, promote_after_s: None, began_ms: 1_000, step_ms: 1_000 }
}

fn seen(answered: u64, faulted: u64, refused: u64) -> Seen {
    Seen { answered, faulted, refused, ..Seen::default() }
}

#[test]
fn a_trial_that_cannot_be_made_names_the_field() {
    let with = |change: &dyn Fn(&mut Trial)| {
        let mut trial = trial(Mode::Canary, 10);
        change(&mut trial);
        trial.checked().err().map(|error| error.field)
    };
    assert_eq!(with(&|_| {}), None);
    assert_eq!(with(&|it| it.percent = 0), Some("percent"));
    assert_eq!(with(&|it| it.percent = 100), Some("percent"));
    assert_eq!(with(&|it| (it.mode, it.percent) = (Mode::Shadow, 100)), None);
    assert_eq!(with(&|it| (it.mode, it.percent) = (Mode::Shadow, 101)), Some("percent"));
    assert_eq!(with(&|it| it.bounds.fault_permille = 1001), Some("bounds.fault_permille"));
    assert_eq!(with(&|it| it.bounds.refused_permille = 1001), Some("bounds.refused_permille"));
    assert_eq!(with(&|it| it.bounds.differing_permille = 1001), Some("bounds.differing_permille"));
    assert_eq!(with(&|it| it.bounds.fault_permille = 1000), None);
    assert_eq!(with(&|it| it.bounds.p99_us = Some(0)), Some("bounds.p99_us"));
    assert_eq!(with(&|it| it.bounds.window_s = 4), Some("bounds.window_seconds"));
    assert_eq!(with(&|it| it.bounds.window_s = 601), Some("bounds.window_seconds"));
    assert_eq!(with(&|it| it.bounds.least_answers = 0), Some("bounds.least_answers"));
    assert_eq!(with(&|it| it.bounds.least_answers = LEAST_ANSWERS), None);
    assert_eq!(with(&|it| it.bounds.least_answers = LEAST_ANSWERS + 1), Some("bounds.least_answers"));
    assert_eq!(with(&|it| it.bounds.steps = vec![20, 50, 99]), None);
    assert_eq!(with(&|it| it.bounds.steps = (11..).take(STEPS).collect()), None);
    assert_eq!(with(&|it| it.bounds.steps = vec![10, 20]), None, "it begins at its first step");
    for steps in [vec![5, 20], vec![50, 20], vec![20, 20], vec![100], (11..=27).collect()] {
        assert_eq!(with(&|it| it.bounds.steps.clone_from(&steps)), Some("bounds.steps"), "{steps:?}");
    }
    assert_eq!(with(&|it| (it.mode, it.bounds.steps) = (Mode::Shadow, vec![20])), Some("bounds.steps"));
    assert_eq!(with(&|it| it.promote_after_s = Some(0)), Some("promote_after_seconds"));
    assert_eq!(with(&|it| it.promote_after_s = Some(PROMOTE_AFTER_S + 1)), Some("promote_after_seconds"));
    assert_eq!(with(&|it| it.promote_after_s = Some(PROMOTE_AFTER_S)), None);
}

#[test]
fn everything_that_was_seen_is_added() {
    let mut first =
        Seen { answered: 1, faulted: 2, refused: 3, compared: 4, differing: 5, undetermined: 6, ..Seen::default() };
    first.latencies.record(1);
    let mut sum = Seen {
        answered: 10,
        faulted: 20,
        refused: 30,
        compared: 40,
        differing: 50,
        undetermined: 60,
        ..Seen::default()
    };
    sum.latencies.record(2);
    sum.add(&first);
    let mut expected = Seen {
        answered: 11,
        faulted: 22,
        refused: 33,
        compared: 44,
        differing: 55,
        undetermined: 66,
        ..Seen::default()
    };
    expected.latencies.record(1);
    expected.latencies.record(2);
    assert_eq!((sum.asked(), sum), (66, expected));
}

#[test]
fn a_finding_says_what_was_seen_and_what_is_allowed() {
    for (finding, says) in [
        (Finding::Faults { faulted: 2, asked: 10, bound: 100 }, "failed on 2 of 10 questions; 100 of 1,000"),
        (Finding::Refused { refused: 3, asked: 10, bound: 200 }, "did not answer 3 of 10 questions; 200 of 1,000"),
        (Finding::Slow { p99_us: 9, bound: 7 }, "is 9 us; 7 us are allowed"),
        (Finding::Differing { differing: 4, compared: 10, bound: 300 }, "4 of 10 answers differ"),
        (Finding::Undetermined, "different answers to equal questions"),
    ] {
        assert!(finding.to_string().contains(says), "{finding}");
    }
}

#[test]
fn every_bound_takes_a_candidate_back_just_beyond_it() {
    let bounds = Bounds {
        fault_permille: 100,
        refused_permille: 200,
        differing_permille: 300,
        p99_us: Some(7),
        least_answers: 10,
        ..Bounds::default()
    };
    assert_eq!(bounds.finding(&seen(9, 1, 0)), None);
    let finding = bounds.finding(&seen(8, 2, 0));
    assert_eq!(finding, Some(Finding::Faults { faulted: 2, asked: 10, bound: 100 }));
    assert_eq!(bounds.finding(&seen(0, 9, 0)), None, "too few to say");
    assert_eq!(bounds.finding(&seen(8, 0, 2)), None);
    assert_eq!(bounds.finding(&seen(7, 0, 3)), Some(Finding::Refused { refused: 3, asked: 10, bound: 200 }));
    let compared = |differing, compared| Seen { differing, compared, ..seen(20, 0, 0) };
    assert_eq!(bounds.finding(&compared(3, 10)), None);
    assert_eq!(bounds.finding(&compared(9, 9)), None, "too few to say");
    let finding = bounds.finding(&compared(4, 10));
    assert_eq!(finding, Some(Finding::Differing { differing: 4, compared: 10, bound: 300 }));
    let lasting = |micros: u64, times: usize| {
        let mut latencies = Latencies::default();
        (0..times).for_each(|_| latencies.record(micros));
        Seen { latencies, ..seen(20, 0, 0) }
    };
    assert_eq!(bounds.finding(&lasting(7, 10)), None);
    assert_eq!(bounds.finding(&lasting(8, 9)), None, "too few to say");
    assert_eq!(bounds.finding(&lasting(8, 10)), Some(Finding::Slow { p99_us: 9, bound: 7 }));
    let undetermined = Seen { undetermined: 1, ..Seen::default() };
    assert_eq!(bounds.finding(&undetermined), Some(Finding::Undetermined), "once is enough");
}

#[test]
fn a_canary_climbs_its_steps_and_is_promoted_after_its_time() {
    let mut canary = trial(Mode::Canary, 1);
    canary.bounds.steps = vec![10, 50];
    canary.promote_after_s = Some(12);
    let good = seen(10, 0, 0);
    assert_eq!(canary.next(&good, 5_999), Next::Wait, "the window has not passed");
    assert_eq!(canary.next(&seen(9, 0, 0), 6_000), Next::Wait, "too few answers");
    assert_eq!(canary.next(&good, 6_000), Next::Step(10));
    let canary = canary.at(10, 6_000);
    assert_eq!(canary.next(&good, 10_999), Next::Wait);
    assert_eq!(canary.next(&good, 11_000), Next::Step(50));
    let canary = canary.at(50, 11_000);
    assert_eq!(canary.next(&good, 15_999), Next::Wait, "the last step lasts a window, too");
    assert_eq!(canary.next(&good, 16_000), Next::Promote);
    assert_eq!(
        canary.next(&seen(10, 5, 0), 16_000),
        Next::TakeBack(Finding::Faults { faulted: 5, asked: 15, bound: 10 })
    );
    let by_hand = Trial { promote_after_s: None, ..canary };
    assert_eq!(by_hand.next(&good, u64::MAX), Next::Wait);
}

#[test]
fn a_shadow_is_promoted_only_if_it_was_asked() {
    let shadow = Trial { promote_after_s: Some(5), ..trial(Mode::Shadow, 10) };
    assert_eq!(shadow.next(&Seen::default(), 1_000_000), Next::Wait);
    assert_eq!(shadow.next(&seen(10, 0, 0), 5_999), Next::Wait);
    assert_eq!(shadow.next(&seen(10, 0, 0), 6_000), Next::Promote);
}

proptest! {
    #[test]
    fn a_greater_part_of_the_keys_holds_a_smaller_one(key: [u8; 8], small in 1u8..99, more in 0u8..98) {
        let great = (small + more).min(99);
        if trial(Mode::Canary, small).answers_for(&key) {
            prop_assert!(trial(Mode::Canary, great).answers_for(&key));
        }
        prop_assert!(!trial(Mode::Shadow, great).answers_for(&key), "a shadow answers for nobody");
        prop_assert!(!trial(Mode::Canary, great).is_sampled(u64::from_le_bytes(key)));
    }

    /// Whoever looks at whichever parts of what was seen, in whichever order: a candidate that exceeds a bound never rises.
    #[test]
    fn what_exceeds_a_bound_never_rises(
        parts in proptest::collection::vec((0u64..50, 0u64..5, 0u64..5, 0u64..20), 1..6),
        now_ms: u64,
        steps in proptest::sample::select(vec![vec![], vec![20], vec![20, 40, 90]]),
    ) {
        let mut canary = trial(Mode::Canary, 5);
        canary.bounds.steps = steps;
        canary.promote_after_s = Some(1);
        let (mut sum, mut backwards) = (Seen::default(), Seen::default());
        let all: Vec<Seen> = parts.iter().map(|(answered, faulted, refused, micros)| {
            let mut part = seen(*answered, *faulted, *refused);
            part.latencies.record(*micros);
            part
        }).collect();
        all.iter().for_each(|part| sum.add(part));
        all.iter().rev().for_each(|part| backwards.add(part));
        prop_assert_eq!(&sum, &backwards);
        match (canary.bounds.finding(&sum), canary.next(&sum, now_ms)) {
            (Some(found), next) => prop_assert_eq!(next, Next::TakeBack(found)),
            (None, Next::Step(percent)) => prop_assert!(percent > canary.percent && canary.clone().at(percent, now_ms).checked().is_ok()),
            (None, Next::Promote) => prop_assert!(canary.bounds.steps.is_empty() && sum.asked() >= 10),
            (None, next) => prop_assert_eq!(next, Next::Wait),
        }
    }
}

#[test]
fn about_a_percentage_of_the_keys_has_the_canary() {
    let canary = trial(Mode::Canary, 25);
    let keys = || (0..10_000).map(|number| format!("user:{number}"));
    assert!((2_300..2_700).contains(&keys().filter(|key| canary.answers_for(key.as_bytes())).count()));
    let shadow = trial(Mode::Shadow, 25);
    assert!((2_300..2_700).contains(&(0..10_000).filter(|number| shadow.is_sampled(*number)).count()));
    // As many in a hundred as it says: the last one has neither.
    assert!(!keys().all(|key| trial(Mode::Canary, 99).answers_for(key.as_bytes())));
    assert!(!(0..10_000).all(|number| trial(Mode::Shadow, 99).is_sampled(number)));
    assert!((0..10_000).all(|number| trial(Mode::Shadow, 100).is_sampled(number)));
    // Programs of several versions serve one cluster, and must ask about the same keys.
    let first: Vec<String> = keys().filter(|key| canary.answers_for(key.as_bytes())).take(4).collect();
    assert_eq!(first, ["user:5", "user:7", "user:13", "user:17"]);
    assert_eq!(Mode::parse("canary").map(Mode::default_percent), Some(1));
    assert_eq!(Mode::parse("shadow").map(Mode::default_percent), Some(10));
    assert_eq!(Mode::parse("active"), None);
}
