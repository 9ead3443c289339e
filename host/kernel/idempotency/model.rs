//! Random histories of attempts that are slow, crash, are taken over and report late, checked against the record's promises: one
//! holder at a time, one stamp, one answer, and no write forgotten that a replica may have seen.

use std::collections::HashSet;

use bytes::Bytes;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::proptest;

use super::{Change, DOUBTED_MS, KEPT_MS, Name, Owner, Reservation, State, Step, Stepped, apply, write_id};
use crate::hook::Operation;
use crate::name::{Era, Key, TenantId, WriteId};
use crate::register::Stamp;

/// What happens next. Attempts are named by index; a crashed attempt is one that is never picked again.
#[derive(Clone, Debug)]
enum Event {
    Reserve { request: u8, lease_ms: u64 },
    AskAgain { attempt: usize, lease_ms: u64 },
    Stamp { attempt: usize },
    Send { attempt: usize },
    Done { attempt: usize },
    Release { attempt: usize },
    Abandon { attempt: usize },
    Pass { ms: u64 },
}

fn events() -> impl Strategy<Value = Event> {
    let attempt = 0usize..12;
    let lease = prop_oneof![Just(0u64), 1u64..50, Just(u64::MAX)];
    prop_oneof![
        4 => (prop_oneof![9 => Just(0u8), 1 => Just(1u8)], lease.clone())
            .prop_map(|(request, lease_ms)| Event::Reserve { request, lease_ms }),
        1 => (attempt.clone(), lease).prop_map(|(attempt, lease_ms)| Event::AskAgain { attempt, lease_ms }),
        3 => attempt.clone().prop_map(|attempt| Event::Stamp { attempt }),
        3 => attempt.clone().prop_map(|attempt| Event::Send { attempt }),
        2 => attempt.clone().prop_map(|attempt| Event::Done { attempt }),
        2 => attempt.clone().prop_map(|attempt| Event::Release { attempt }),
        1 => attempt.prop_map(|attempt| Event::Abandon { attempt }),
        4 => prop_oneof![8 => 1u64..60, 1 => Just(KEPT_MS / 2), 1 => Just(KEPT_MS - 30), 1 => Just(KEPT_MS + 1)]
            .prop_map(|ms| Event::Pass { ms }),
    ]
}

/// One attempt, from its own point of view. It is honest: it releases only what it has not sent, and stops when its claim is lost.
struct Attempt {
    owner: Owner,
    fence: u64,
    life: usize,
    lease_until: u64,
    stamp: Option<Stamp>,
    sent: bool,
    ended: bool,
}

/// One life of the record, from its first reservation until it is deleted or expires.
#[derive(Clone, Copy)]
struct Life {
    request: u8,
    started: u64,
    grants: u64,
    sent: bool,
}

struct World {
    /// True: no attempt sends without a stamp. False: stamps are not used, as in `siblings`.
    stamped: bool,
    now: u64,
    record: Option<Reservation>,
    lives: Vec<Life>,
    deleted: HashSet<usize>,
    attempts: Vec<Attempt>,
}

impl World {
    fn alive(&self) -> Option<&Reservation> {
        self.record.as_ref().filter(|record| record.remembered_until_ms() > self.now)
    }

    /// True when the record's first claim is too long ago for its request to be carried out.
    fn has_expired(&self) -> bool {
        let in_progress = self.alive().is_some_and(|record| record.state == State::InProgress);
        in_progress && self.lives.last().is_some_and(|life| life.started / 1000 + KEPT_MS <= self.now)
    }

    fn step(&mut self, step: &Step) -> Stepped {
        let before = self.alive().cloned();
        let (change, result) = apply(self.record.as_ref(), step, self.now);
        match change {
            Change::Keep => {}
            Change::Put(record) => self.record = Some(Reservation::decode(&record.encode()).expect("its own encoding")),
            Change::Delete => self.record = None,
        }
        let succeeded = |before: &Reservation, after: &Reservation| {
            before.has_expired(self.now) && before.write_id != after.write_id
        };
        if let (Some(before), Some(after)) = (&before, &self.record)
            && !succeeded(before, after)
        {
            assert!(before.stamp.is_none() || before.stamp == after.stamp, "a stored stamp changed");
            assert!(before.state == State::InProgress || before == after, "a recorded response changed");
            assert_eq!((before.write_id, before.started), (after.write_id, after.started));
            assert!(after.fence >= before.fence);
            let settled = after.state != State::InProgress;
            assert!(
                settled || after.kept_until_ms <= after.started / 1000 + KEPT_MS,
                "a step prolonged an unsettled record"
            );
        }
        if let (Some(before), None) = (&before, &self.record) {
            let life = self.lives.len() - 1;
            assert!(before.stamp.is_none() && before.state == State::InProgress && !self.lives[life].sent);
            self.deleted.insert(life);
        }
        if result == Stepped::Lost {
            assert_eq!(self.alive(), before.as_ref(), "a lost step changed something");
        }
        result
    }

    fn reserve(&mut self, owner: Owner, request: u8, lease_ms: u64) {
        let step = Step::Reserve {
            owner,
            write_id: WriteId([request; 16]),
            started: self.now * 1000,
            lease_ms,
            kept_ms: KEPT_MS,
        };
        let before = self.alive().cloned();
        match (self.step(&step), before) {
            (Stepped::Conflict, Some(before)) => assert_ne!(before.write_id, WriteId([request; 16])),
            (Stepped::Expired, Some(before)) => {
                assert!(before.write_id == WriteId([request; 16]) && self.has_expired())
            }
            (Stepped::Done { response }, Some(before)) => assert_eq!(before.state, State::Done { response }),
            (Stepped::InProgress { left_ms }, Some(before)) => {
                assert!(left_ms > 0 && before.owner != owner && before.lease_left_ms(self.now) == left_ms);
            }
            (Stepped::Reserved { fence, took_over, stamp, started }, before) => {
                self.granted(owner, request, lease_ms, before.as_ref(), (fence, took_over, stamp, started));
            }
            (result, before) => panic!("{result:?} to a reservation of {before:?}"),
        }
    }

    fn granted(
        &mut self,
        owner: Owner,
        request: u8,
        lease_ms: u64,
        before: Option<&Reservation>,
        (fence, took_over, stamp, started): (u64, bool, Option<Stamp>, u64),
    ) {
        let before = before.filter(|before| before.write_id == WriteId([request; 16]) || !before.has_expired(self.now));
        assert!(before.is_none() || !self.has_expired(), "a request was carried out a day after its first attempt");
        if before.is_none() {
            assert!(!took_over && stamp.is_none() && started == self.now * 1000);
            self.lives.push(Life { request, started, grants: 0, sent: false });
        }
        let id = self.lives.len() - 1;
        let life = &mut self.lives[id];
        assert_eq!((life.request, life.started), (request, started), "a fingerprint or a start changed");
        assert_eq!(stamp, before.and_then(|before| before.stamp), "a takeover returns the stored stamp");
        let lease_until = self.now.saturating_add(lease_ms.min(KEPT_MS));
        let again = self.attempts.iter_mut().find(|known| known.life == id && known.fence == fence);
        match again {
            Some(known) => {
                assert_eq!(known.owner, owner, "two attempts under one fence");
                known.lease_until = known.lease_until.max(lease_until);
                known.ended = false;
            }
            None => {
                life.grants += 1;
                assert_eq!((fence, took_over), (life.grants, life.grants > 1));
                let rival = self.attempts.iter().find(|a| a.life == id && !a.ended && a.lease_until > self.now);
                assert!(rival.is_none(), "two attempts hold one name");
                let sent = false;
                self.attempts.push(Attempt { owner, fence, life: id, lease_until, stamp, sent, ended: false });
            }
        }
    }

    /// True when this attempt holds the claim: then its steps must succeed.
    fn holds(&self, attempt: &Attempt) -> bool {
        self.alive().is_some_and(|record| {
            (record.owner, record.fence) == (attempt.owner, attempt.fence) && attempt.life + 1 == self.lives.len()
        })
    }

    fn stamp(&mut self, at: usize) {
        let attempt = &self.attempts[at];
        let (owner, fence, own) = (attempt.owner, attempt.fence, attempt.stamp);
        let holds = self.holds(attempt) && self.alive().is_some_and(|record| record.state == State::InProgress);
        let stored = self.alive().and_then(|record| record.stamp);
        let stamp = own.unwrap_or(Stamp(self.now + at as u64));
        let result = self.step(&Step::Stamp { owner, fence, stamp });
        let right = holds && !self.has_expired() && stored.is_none_or(|stored| stored == stamp);
        assert_eq!(result, if right { Stepped::Stored } else { Stepped::Lost });
        if right {
            self.attempts[at].stamp = Some(stamp);
        } else {
            self.attempts[at].ended = true;
        }
    }

    /// The attempt sends its change to replicas. Nothing keeps a slow one from doing so late.
    fn send(&mut self, at: usize) {
        let attempt = &mut self.attempts[at];
        assert!(!self.deleted.contains(&attempt.life), "sent under a name that was given up as never sent");
        attempt.sent = true;
        self.lives[attempt.life].sent = true;
        if let Some(record) = self.record.as_ref().filter(|_| self.stamped && attempt.life + 1 == self.lives.len()) {
            assert_eq!(attempt.stamp, record.stamp, "two stamps for one intention");
        }
    }

    fn end(&mut self, at: usize, step: &Step) {
        let attempt = &self.attempts[at];
        let in_progress = self.alive().is_some_and(|record| record.state == State::InProgress);
        let right = self.holds(attempt) && (in_progress || matches!(step, Step::Done { .. }));
        let result = self.step(step);
        assert_eq!(result, if right { Stepped::Stored } else { Stepped::Lost }, "{step:?}");
        self.attempts[at].ended = true;
    }

    fn happen(&mut self, event: &Event) {
        let picked = |attempt: &usize| self.attempts.get(*attempt).map(|a| (a.owner, a.fence, a.ended, a.sent));
        match event {
            Event::Pass { ms } => self.now += ms,
            Event::Reserve { request, lease_ms } => {
                let mut owner = [0; 16];
                owner[..8].copy_from_slice(&(self.attempts.len() as u64 + 1).to_be_bytes());
                self.reserve(Owner(owner), *request, *lease_ms);
            }
            Event::AskAgain { attempt, lease_ms } => {
                // An attempt asks again within seconds; a day later it is another attempt with another id.
                let current = |a: &Attempt| self.alive().is_some() && a.life + 1 == self.lives.len();
                if let (Some((owner, _, false, _)), true) =
                    (picked(attempt), self.attempts.get(*attempt).is_some_and(current))
                {
                    let request = self.lives[self.attempts[*attempt].life].request;
                    self.reserve(owner, request, *lease_ms);
                }
            }
            Event::Stamp { attempt } => {
                if self.stamped && matches!(picked(attempt), Some((_, _, false, _))) {
                    self.stamp(*attempt);
                }
            }
            Event::Send { attempt } => {
                let ready = |a: &Attempt| !a.ended && (!self.stamped || a.stamp.is_some());
                if self.attempts.get(*attempt).is_some_and(ready) {
                    self.send(*attempt);
                }
            }
            Event::Done { attempt } => {
                // Also by an attempt that has ended before: an abandoned operation may succeed after all.
                if let Some((owner, fence, _, true)) = picked(attempt) {
                    let response = Bytes::from(vec![7, *attempt as u8]);
                    self.end(*attempt, &Step::Done { owner, fence, response, kept_ms: KEPT_MS });
                }
            }
            Event::Release { attempt } => {
                if let Some((owner, fence, false, false)) = picked(attempt) {
                    self.end(*attempt, &Step::Release { owner, fence });
                }
            }
            Event::Abandon { attempt } => {
                if let Some((owner, fence, false, _)) = picked(attempt) {
                    self.end(*attempt, &Step::Abandon { owner, fence });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 4000, ..Default::default() })]
    #[test]
    fn one_effect_whatever_happens(stamped in any::<bool>(), events in proptest::collection::vec(events(), 1..60)) {
        let (lives, attempts, deleted) = (Vec::new(), Vec::new(), HashSet::new());
        let mut world = World { stamped, now: 1_000_000, record: None, lives, deleted, attempts };
        for event in &events {
            world.happen(event);
        }
    }
}

fn reserve(owner: u8, lease_ms: u64) -> Step {
    Step::Reserve { owner: Owner([owner; 16]), write_id: WriteId([1; 16]), started: 5, lease_ms, kept_ms: KEPT_MS }
}

fn put(change: Change) -> Reservation {
    match change {
        Change::Put(reservation) => reservation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_late_owner_changes_nothing_after_a_takeover() {
    let first = put(apply(None, &reserve(1, 10), 0).0);
    let (change, result) = apply(Some(&first), &reserve(2, 10), 10);
    assert_eq!(result, Stepped::Reserved { fence: 2, took_over: true, stamp: None, started: 5 });
    let second = put(change);
    let late = Step::Done { owner: Owner([1; 16]), fence: 1, response: Bytes::new(), kept_ms: KEPT_MS };
    assert_eq!(apply(Some(&second), &late, 11), (Change::Keep, Stepped::Lost));
    // Nor does it when only one of owner and fence matches.
    let mixed = Step::Done { owner: Owner([2; 16]), fence: 1, response: Bytes::new(), kept_ms: KEPT_MS };
    assert_eq!(apply(Some(&second), &mixed, 11), (Change::Keep, Stepped::Lost));
}

/// The stamp of a request that is repeated every hour, after each hour: whether it is still granted.
fn repeated_for(hours: u64) -> Vec<bool> {
    let mut record = None;
    let hour = KEPT_MS / 24;
    let mut granted = Vec::new();
    for at in 0..hours {
        let (change, result) = apply(record.as_ref(), &reserve(at as u8, 10), at * hour);
        if let Change::Put(put) = change {
            record = Some(put);
        }
        if let Stepped::Reserved { fence, .. } = result {
            let owner = Owner([at as u8; 16]);
            let steps = [Step::Stamp { owner, fence, stamp: Stamp(7) }, Step::Abandon { owner, fence }];
            for step in steps {
                let (change, result) = apply(record.as_ref(), &step, at * hour + 1);
                assert_eq!(result, Stepped::Stored);
                record = if let Change::Put(put) = change { Some(put) } else { record };
            }
        } else {
            assert_eq!(result, Stepped::Expired);
        }
        granted.push(matches!(result, Stepped::Reserved { .. }));
    }
    granted
}

#[test]
fn a_request_is_carried_out_for_a_day_however_often_it_is_repeated() {
    let granted = repeated_for(48);
    assert!(
        granted[..24].iter().all(|granted| *granted) && granted[24..].iter().all(|granted| !granted),
        "{granted:?}"
    );
}

#[test]
fn a_record_that_its_repetitions_prolong_is_noticed() {
    crate::fault::set(Some(crate::fault::Fault::ReservationProlonged));
    let granted = repeated_for(48);
    crate::fault::set(None);
    assert!(granted[24], "the rule is not tested any longer");
}

#[test]
fn an_expired_record_accepts_its_result_and_nothing_else() {
    let first = put(apply(None, &reserve(1, 10), 0).0);
    let owner = Owner([1; 16]);
    assert_eq!(apply(Some(&first), &reserve(2, 10), KEPT_MS), (Change::Keep, Stepped::Expired));
    let stamp = Step::Stamp { owner, fence: 1, stamp: Stamp(7) };
    assert_eq!(apply(Some(&first), &stamp, KEPT_MS), (Change::Keep, Stepped::Lost));
    let done = Step::Done { owner, fence: 1, response: Bytes::from_static(b"late"), kept_ms: KEPT_MS };
    let late = put(apply(Some(&first), &done, KEPT_MS).0);
    assert!(matches!(apply(Some(&late), &reserve(2, 10), 2 * KEPT_MS - 1).1, Stepped::Done { .. }));
    let other = Step::Reserve { owner, write_id: WriteId([2; 16]), started: 9, lease_ms: 10, kept_ms: KEPT_MS };
    let (change, result) = apply(Some(&first), &other, KEPT_MS);
    assert!(matches!((put(change).fence, result), (1, Stepped::Reserved { took_over: false, .. })), "the name is free");
    let (_, result) = apply(Some(&first), &reserve(2, 10), KEPT_MS + DOUBTED_MS);
    assert!(matches!(result, Stepped::Reserved { took_over: false, .. }), "it is forgotten");
}

#[test]
fn release_forgets_a_first_attempt_without_a_stamp_and_nothing_else() {
    let release = |fence, owner| Step::Release { owner: Owner([owner; 16]), fence };
    let first = put(apply(None, &reserve(1, 10), 0).0);
    assert_eq!(apply(Some(&first), &release(1, 1), 5), (Change::Delete, Stepped::Stored));

    let stamp = Step::Stamp { owner: Owner([1; 16]), fence: 1, stamp: Stamp(77) };
    let stamped = put(apply(Some(&first), &stamp, 5).0);
    let (change, result) = apply(Some(&stamped), &release(1, 1), 6);
    assert_eq!(result, Stepped::Stored);
    let (change, result) = apply(Some(&put(change)), &reserve(2, 10), 6);
    assert_eq!(result, Stepped::Reserved { fence: 2, took_over: true, stamp: Some(Stamp(77)), started: 5 });
    assert_eq!(put(change).stamp, Some(Stamp(77)));

    let second = put(apply(Some(&first), &reserve(2, 10), 10).0);
    assert!(matches!(apply(Some(&second), &release(2, 2), 11).0, Change::Put(_)));
}

#[test]
fn an_attempt_that_asks_again_keeps_its_claim_and_the_longer_lease() {
    let first = put(apply(None, &reserve(1, 10), 0).0);
    let (change, result) = apply(Some(&first), &reserve(1, 10), 5);
    assert_eq!(result, Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 5 });
    assert_eq!(put(change).lease_until_ms, 15);
    assert_eq!(put(apply(Some(&first), &reserve(1, 1), 5).0).lease_until_ms, 10, "no shorter than it was");
    assert_eq!(apply(Some(&first), &reserve(2, 10), 5), (Change::Keep, Stepped::InProgress { left_ms: 5 }));
}

#[test]
fn no_step_is_taken_without_the_claim() {
    let first = put(apply(None, &reserve(1, 10), 0).0);
    let steps = |owner: u8, fence| {
        let owner = Owner([owner; 16]);
        [Step::Stamp { owner, fence, stamp: Stamp(7) }, Step::Release { owner, fence }, Step::Abandon { owner, fence }]
    };
    let done = Step::Done { owner: Owner([1; 16]), fence: 1, response: Bytes::new(), kept_ms: KEPT_MS };
    let settled = put(apply(Some(&first), &done, 1).0);
    for (owner, fence, record) in [(2, 1, &first), (1, 2, &first), (2, 2, &first), (1, 1, &settled)] {
        for step in steps(owner, fence) {
            assert_eq!(apply(Some(record), &step, 2), (Change::Keep, Stepped::Lost), "{step:?}");
        }
    }
    for step in steps(1, 1) {
        assert_eq!(apply(Some(&first), &step, 2).1, Stepped::Stored, "{step:?}");
        assert_eq!(apply(None, &step, 2).1, Stepped::Lost, "{step:?}");
    }
}

/// Whoever asks for another stamp, or records another response, has lost; the same again is a step repeated.
#[test]
fn a_stamp_and_a_response_are_final() {
    let owner = Owner([1; 16]);
    let first = put(apply(None, &reserve(1, 10), 0).0);
    let stamp = |at| Step::Stamp { owner, fence: 1, stamp: Stamp(at) };
    let stamped = put(apply(Some(&first), &stamp(7), 1).0);
    assert_eq!(apply(Some(&stamped), &stamp(7), 2), (Change::Keep, Stepped::Stored));
    assert_eq!(apply(Some(&stamped), &stamp(8), 2), (Change::Keep, Stepped::Lost));

    let done = |response| Step::Done { owner, fence: 1, response: Bytes::from_static(response), kept_ms: KEPT_MS };
    let recorded = put(apply(Some(&stamped), &done(b"yes"), 3).0);
    assert_eq!(apply(Some(&recorded), &done(b"yes"), 4), (Change::Keep, Stepped::Stored));
    assert_eq!(apply(Some(&recorded), &done(b"no"), 4), (Change::Keep, Stepped::Lost));
}

#[test]
fn a_clock_set_back_ends_leases_and_wedges_nobody() {
    let first = put(apply(None, &reserve(1, 10), 1_000_000).0);
    let (_, result) = apply(Some(&first), &reserve(2, 10), 10);
    assert!(matches!(result, Stepped::Reserved { took_over: true, .. }));
}

#[test]
fn names_are_unambiguous_and_ids_tell_every_difference() {
    let tenant = |id: &'static str| TenantId::new(id).expect("valid");
    let key = |key: &'static str| Key::new(key).expect("valid");
    let names = [
        Name::new(Era::default(), &tenant("a"), &key("b"), b"c"),
        Name::new(Era::default(), &tenant("ab"), &key("c"), b""),
        Name::new(Era::default(), &tenant("a"), &key("bc"), b""),
        Name::new(Era::default(), &tenant("a"), &key("b:c"), b""),
        Name::new(Era::default(), &tenant("a"), &key("b"), b":c"),
        Name::new(Era([1; 16]), &tenant("a"), &key("b"), b"c"),
        Name::new(Era([2; 16]), &tenant("a"), &key("b"), b"c"),
    ];
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());

    let (a, b) = (tenant("a"), key("b"));
    let id = |operation, value, context| write_id(&a, &b, b"c", operation, value, context);
    let ids = [
        id(Operation::Write, Some(b"".as_slice()), b"".as_slice()),
        id(Operation::Write, None, b""),
        id(Operation::Write, Some(b"v"), b""),
        id(Operation::Write, Some(b""), b"v"),
        id(Operation::Delete, None, b""),
        write_id(&tenant("ab"), &b, b"c", Operation::Write, None, b""),
        write_id(&a, &key("bc"), b"", Operation::Write, None, b""),
    ];
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    assert_eq!(ids[0], id(Operation::Write, Some(b""), b""));
    // Pinned: with another value, a retry after an upgrade would have a second effect.
    assert_eq!(ids[2].to_string(), "a90e75813cf48123fdfa5f57c995d9df");
}
