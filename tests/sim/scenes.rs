//! Scenes: short plays for rules that no storm reaches, because a client would have to wait in line or repeat itself for a day. Each is
//! played with many seeds, which vary latencies, the duration of syncs and the order of everything; the deliberate fault of its rule must
//! be found by it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use witan_coordinate::{Line, Lines, ReadRequest, WriteRequest};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::idempotency::KEPT_MS;
use witan_kernel::limit::LONGEST_DEADLINE;
use witan_kernel::name::{Key, StoreId, WriteId};
use witan_kernel::port::Clock;
use witan_kernel::record::Record;
use witan_kernel::siblings::{Actor, VersionVector, Write};
use witan_kernel::tenant::{ConflictMode, Level, Tenant};

use crate::cluster::Call;
use crate::losses;
use crate::oracle;
use crate::play::Verdict;
use crate::reports;
use crate::scenario::{Play, Scenario};
use crate::scene::{MERGED, Scene, everything_works, send, stage, write};
use crate::world::{now_micros, to_value};

/// The scene in which a rule can be broken; `None`: any scenario.
pub(crate) fn of(fault: Fault) -> Option<Scene> {
    match fault {
        Fault::DeadlineFromTurn => Some(in_line),
        Fault::ReservationProlonged => Some(repeated_for_a_day),
        Fault::UncanonicalAccepted => Some(uncanonical),
        Fault::LateAccepted => Some(held_back),
        Fault::MergesNotGated => Some(losses::repeated_before_the_sync),
        Fault::SyncCoversLater => Some(losses::shown_during_the_sync),
        Fault::StampNotStored => Some(losses::repeated_after_others),
        Fault::UnrepairedBelieved => Some(losses::not_filled),
        Fault::FailureUnreported | Fault::FailedAskedFirst => Some(reports::store_fails),
        Fault::ForgottenCalledShort => Some(reports::killed_before_recording),
        Fault::EventsGoAlone => Some(met_in_any_order),
        _ => None,
    }
}

/// How long after its deadline an answer may arrive: its way, and the steps of the simulation.
const LATE: u64 = 20_000;

/// Writes on one key wait in line, as those of a session do, while disks are slow. Each is answered by its own deadline, counted from its
/// arrival, and what has not begun by then has done nothing.
pub(crate) fn in_line(play: Play) -> Verdict {
    stage(
        play,
        "in-line",
        |_| {},
        |cluster, _| async move {
            everything_works(&cluster).await;
            cluster.nodes.iter().for_each(|node| node.set_slowest_sync(3000));
            let line: Line = (cluster.tenants[0].id.clone(), Key::new("key-0").expect("a key"));
            let (mut lines, arrived) = (Lines::default(), now_micros());
            let mut violations = Vec::new();
            let timeouts = [700, 300, 1000, 500, 1100].map(Duration::from_millis);
            let deadlines = timeouts.map(|timeout| arrived + timeout.as_micros() as u64);
            let mut next = None;
            for (number, deadline) in deadlines.into_iter().enumerate() {
                next = next.or(lines.enter(&line, deadline, number));
            }
            while let Some(number) = next {
                let timeout = timeouts[number];
                let request = WriteRequest { arrived: Some(arrived), ..write(&cluster, number as u32 + 1, timeout) };
                let answer = send(&cluster, request).await;
                let late = now_micros().saturating_sub(deadlines[number]);
                if late > LATE {
                    violations
                        .push(format!("late: write {number} was answered {late} us after its deadline: {answer:?}"));
                }
                let not_begun = matches!(&answer, Err(Failed { failure: Failure::NotBegun, .. }));
                if not_begun && !matches!(answer, Err(Failed { effect: Some(Effect::NotApplied), .. })) {
                    violations.push(format!("honesty: write {number} has not begun: {answer:?}"));
                }
                // Whoever has come to its deadline in line does not begin.
                lines.expired(now_micros());
                next = lines.leave(&line);
            }
            violations
        },
    )
}

/// A write in doubt is repeated every few hours, while others write. Its repetitions are carried out until a day after the first attempt.
pub(crate) fn repeated_for_a_day(play: Play) -> Verdict {
    stage(
        play,
        "repeated",
        |_| {},
        |cluster, _| async move {
            everything_works(&cluster).await;
            let mut violations = Vec::new();
            let mine = WriteRequest {
                idempotency_key: Some("intention".to_owned()),
                ..write(&cluster, 1, Duration::from_millis(150))
            };
            let hours = [0, 7, 13, 20, 25, 30, 40];
            let mut before = 0;
            for hour in hours {
                cluster.idempotency.pass_ms((hour - before) * KEPT_MS / 24);
                before = hour;
                // Answers of nodes come too late, so that every attempt ends in doubt.
                cluster.nodes.iter().for_each(|node| node.set_slowest_sync(60_000));
                let answer = send(&cluster, mine.clone()).await;
                let expired = matches!(answer, Err(Failed { failure: Failure::ReservationExpired, .. }));
                if expired != (hour >= 24) {
                    violations.push(format!("age: the repetition after {hour} hours was answered {answer:?}"));
                }
                if expired && !matches!(answer, Err(Failed { effect: Some(Effect::InDoubt), .. })) {
                    violations
                        .push(format!("honesty: the repetition after {hour} hours may have been applied: {answer:?}"));
                }
                if answer.is_ok() {
                    break;
                }
            }
            violations
        },
    )
}

/// A replica holds a record that no replica can have written: one event is in two versions, so that no merge with the record ends. It
/// is refused, as a damaged one is: a read that needs all replicas fails, and one that needs a quorum shows the values.
pub(crate) fn uncanonical(play: Play) -> Verdict {
    stage(
        play,
        "uncanonical",
        |_| {},
        |cluster, _| async move {
            let siblings = |tenant: &Tenant| tenant.conflict_mode == ConflictMode::Siblings;
            let Some(tenant) = cluster.tenants.iter().position(siblings) else { return Vec::new() };
            everything_works(&cluster).await;
            let id = cluster.tenants[tenant].id.clone();
            for value in [1, 2] {
                let request = WriteRequest { tenant: id.clone(), ..write(&cluster, value, Duration::from_secs(2)) };
                match send(&cluster, request).await {
                    Ok(_) => {}
                    // It is created during the play.
                    Err(Failed { failure: Failure::TenantNotFound(_), .. }) => return Vec::new(),
                    Err(failed) => return vec![format!("recovery: a write has failed: {failed:?}")],
                }
            }
            tokio::time::sleep(MERGED).await;
            let place = cluster.place(tenant, &Key::new("key-0").expect("a key"));
            if let Some(replica) = cluster.replicas(tenant, &place).first() {
                replica.rewrite(&place, |record| {
                    let Record::Siblings(record) = record else { return };
                    if let [first, second, ..] = record.versions.as_mut_slice() {
                        second.dots.clone_from(&first.dots);
                    }
                });
            }
            let mut violations = Vec::new();
            for (level, is_answered) in [(Level::All, false), (Level::Quorum, true)] {
                let (to, answer) = oneshot::channel();
                let (tenant, key) = (id.clone(), place.key.clone());
                let timeout = Some(Duration::from_secs(2));
                let request = ReadRequest { tenant, key, level: Some(level), arrived: None, timeout };
                if let Some(doors) = cluster.coordinators[0].doors() {
                    let _ = doors.calls.send(Call::Read(request, to));
                }
                let answer = answer.await.expect("an answer");
                let values = answer.as_ref().map_or(0, |answer| answer.siblings.len());
                if answer.is_ok() != is_answered || is_answered && values < 2 {
                    violations.push(format!(
                        "contents: a replica holds an impossible record, and a read at {level}: {answer:?}"
                    ));
                }
            }
            violations
        },
    )
}

/// A change to one replica is held back on its way for longer than any operation lasts, and arrives then: it is not carried out.
pub(crate) fn held_back(play: Play) -> Verdict {
    let heals = Scenario::of(play).heals.is_some();
    stage(
        play,
        "held-back",
        |_| {},
        move |cluster, _| async move {
            if heals {
                // Others bring it.
                return Vec::new();
            }
            everything_works(&cluster).await;
            tokio::time::sleep(MERGED).await;
            let place = cluster.place(0, &Key::new("key-0").expect("a key"));
            let coordinator = cluster.coordinators[0].name.as_str();
            let replicas: Vec<_> = cluster.replicas(0, &place).into_iter().map(Arc::clone).collect();
            let Some(last) = replicas.last() else { return Vec::new() };
            let before = last.content(&place);
            turmoil::hold(coordinator, last.name.as_str());
            let _ = send(&cluster, write(&cluster, 1, Duration::from_secs(2))).await;
            tokio::time::sleep(LONGEST_DEADLINE).await;
            turmoil::release(coordinator, last.name.as_str());
            tokio::time::sleep(MERGED).await;
            let after = last.content(&place);
            if before == after {
                return Vec::new();
            }
            vec![format!(
                "age: {} has stored what was sent more than ten seconds before: {before:?}, then {after:?}",
                last.name
            )]
        },
    )
}

/// Three replicas of a key: two have minted the same write W, which was repeated, and the third has X, whose writer has seen one event of W
/// without learning W's name. One repair is enough: then all have the same, and none has W, in whatever order it has read them.
pub(crate) fn met_in_any_order(play: Play) -> Verdict {
    const NAME: &str = "met-in-any-order";
    if !reports::alone(&mut Scenario::of(play), true) {
        return stage(play, NAME, |_| {}, |_, _| async { Vec::new() });
    }
    let shape = |scenario: &mut Scenario| {
        reports::alone(scenario, true);
    };
    stage(play, NAME, shape, |cluster, _| async move {
        everything_works(&cluster).await;
        tokio::time::sleep(MERGED).await;
        let place = cluster.place(0, &Key::new("key-0").expect("a key"));
        let actor = |n: u8| Actor { store: StoreId([n; 16]), birth: 1 };
        let minted = |id: u8, seen: VersionVector| Write {
            write_id: WriteId([id; 16]),
            started: cluster.nodes[0].clock.wall_micros(),
            again: false,
            asked: false,
            seen,
            ids: Vec::new(),
            newest: 0,
            value: Some(to_value(&[u32::from(id)].into(), 0)),
        };
        let (w, mut seen) = (minted(1, VersionVector::default()), VersionVector::default());
        // Which of the replicas is which decides the order in which they are joined.
        let first = cluster.dice.between(0, 2) as usize;
        let replicas: Vec<Arc<_>> = cluster.replicas(0, &place).into_iter().map(Arc::clone).collect();
        while replicas.iter().any(|node| !matches!(node.content(&place), Ok(Some(_)))) {
            let _ = send(&cluster, write(&cluster, 3, MERGED)).await;
            tokio::time::sleep(MERGED).await;
        }
        for number in 0..replicas.len() {
            replicas[(first + number) % replicas.len()].rewrite(&place, |record| {
                let Record::Siblings(record) = record else { return };
                match number {
                    0 => {
                        record.put(&w, actor(1));
                    }
                    1 => {
                        seen.add(&record.put(&w, actor(2)));
                    }
                    _ => {
                        record.put(&minted(2, seen.clone()), actor(3));
                    }
                }
            });
        }
        let (to, repaired) = oneshot::channel();
        if let Some(doors) = cluster.coordinators[0].doors() {
            let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
        }
        let repaired = repaired.await.unwrap_or_else(|_| "aborted".to_owned());
        let stored = replicas.iter().map(|node| (node.name.clone(), node.content(&place).ok().flatten()));
        let stored: Vec<_> = stored.collect();
        let has = |value: u32| {
            let value = to_value(&[value].into(), 0);
            stored
                .iter()
                .filter(|(_, content)| content.as_ref().is_some_and(|c| c.values().contains(&&value[..])))
                .count()
        };
        let differ = oracle::differs(&stored).map(|difference| format!("convergence: after {repaired}: {difference}"));
        let wrong = (has(1), has(2)) != (0, replicas.len());
        let wrong = wrong.then(|| format!("siblings: W is at {}, X at {} replicas, after {repaired}", has(1), has(2)));
        differ.into_iter().chain(wrong).collect()
    })
}

/// Seeds of each scene in every run: they differ little.
const SEEDS: u64 = 12;

#[test]
fn scenes_keep_every_promise() {
    crate::on_all_cores(SEEDS, |seed| {
        let here = [in_line, repeated_for_a_day, uncanonical, held_back, met_in_any_order] as [Scene; 5];
        for scene in here.into_iter().chain(losses::ALL).chain(reports::ALL) {
            let verdict = scene(Play::of(seed));
            assert!(verdict.violations.is_empty(), "seed {seed} ({}): {:#?}", verdict.scenario, verdict.violations);
        }
    });
}
