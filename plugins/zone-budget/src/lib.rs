//! Consistency policy: only a share of the reads may leave the zone of the coordinator. Traffic between zones costs money and time.
//!
//! A read that needs answers of other zones leaves the zone. Of a hundred reads, as many may as the configuration says; the others are
//! content with the replicas in the zone, but never with fewer than the tenant's minimum level needs, nor with none: a read for which these
//! are not there, or not reachable, leaves the zone whatever is left of the budget. A read that stays is not hedged by a replica of another
//! zone. Writes and deletes are as the client asked.
//!
//! Configuration, as lines of `key = value`. Every key is optional:
//!
//! | key | default | meaning |
//! | --- | --- | --- |
//! | percent | 10 | how many of a hundred reads may leave the zone although they need not |
//! | zone | the coordinator's `server.zone` | the zone |
//!
//! Without a zone, and where replicas have none, nothing is saved: everything is as the client asked. Which replicas are asked first is not
//! the policy's business: it is the nearest ones, by their latency, unless a routing hook decides otherwise.

use std::cell::Cell;

use witan_plugin_sdk::policy::{Answer, Operation, Question, native, required};
use witan_plugin_sdk::{ConfigIssue, ConsistencyPolicy, Error, Plugin, Settings, attribute};

/// What leaving the zone costs, in hundredths of a read; each read earns the percentage.
const COST: u32 = 100;
/// Most that can be saved up: after a quiet time, this many reads may leave the zone one after the other.
const SAVED: u32 = 10 * COST;
/// Longer than any operation, in microseconds.
const NEVER: u32 = u32::MAX;

/// The policy.
#[derive(Debug)]
pub struct ZoneBudget {
    percent: u32,
    zone: Option<String>,
    /// What has been earned and not spent, in hundredths of a read. Each instance has its own reads and its own budget.
    saved: Cell<u32>,
}

impl Default for ZoneBudget {
    fn default() -> Self {
        Self { percent: 10, zone: None, saved: Cell::new(0) }
    }
}

impl Plugin for ZoneBudget {
    /// The answer depends on the reads before.
    const DETERMINISTIC: bool = false;

    fn configure(&mut self, configuration: &[u8]) -> Result<(), Vec<ConfigIssue>> {
        let mut settings = Settings::read(configuration);
        let mut zone = String::new();
        settings.take("percent", "a number from 0 to 100", &mut self.percent);
        settings.take("zone", "the name of a zone", &mut zone);
        if self.percent > 100 {
            settings.refuse("percent", format!("is {}; use a number from 0 to 100", self.percent));
        }
        self.zone = (!zone.is_empty()).then_some(zone);
        settings.finish()
    }
}

impl ConsistencyPolicy for ZoneBudget {
    fn decide(&self, question: &Question) -> Result<Answer, Error> {
        let mut answer = native(question);
        if question.operation != Operation::Read {
            return Ok(answer);
        }
        let own = self.zone.as_deref().or_else(|| attribute(&question.attributes, "coordinator-zone"));
        let Some(own) = own else { return Ok(answer) };
        let zones = question.replicas.iter().map(|replica| (attribute(&replica.attributes, "zone"), replica.reachable));
        let near = zones.filter(|(zone, reachable)| *reachable && *zone == Some(own)).count();
        let near = u8::try_from(near).unwrap_or(u8::MAX);
        if near == 0 {
            return Ok(answer);
        }
        self.earn();
        let fewest = near.max(required(question.minimum, question.replication_factor));
        if answer.required > fewest && !self.spend() {
            answer.required = fewest;
        }
        if answer.required == near {
            // The spare replica would be in another zone.
            answer.hedge_after_us = Some(NEVER);
        }
        Ok(answer)
    }
}

impl ZoneBudget {
    fn earn(&self) {
        self.saved.set((self.saved.get() + self.percent).min(SAVED));
    }

    /// False if too little is left.
    fn spend(&self) -> bool {
        let left = self.saved.get().checked_sub(COST);
        if let Some(left) = left {
            self.saved.set(left);
        }
        left.is_some()
    }
}

witan_plugin_sdk::consistency_policy!(ZoneBudget);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use witan_plugin_sdk::policy::{Level, Replica, Shortfall};

    fn replica(zone: &str, reachable: bool) -> Replica {
        let attributes = if zone.is_empty() { Vec::new() } else { vec![("zone".to_owned(), zone.to_owned())] };
        Replica { reachable, latency_p50_us: 300, latency_p99_us: 900, in_flight: 0, attributes }
    }

    fn read(level: Level, minimum: Level, replicas: Vec<Replica>) -> Question {
        Question {
            operation: Operation::Read,
            level,
            minimum,
            replication_factor: replicas.len() as u8,
            deadline_ms: 1000,
            value_bytes: 0,
            replicas,
            attributes: vec![("coordinator-zone".to_owned(), "a".to_owned())],
        }
    }

    fn configured(configuration: &str) -> ZoneBudget {
        let mut policy = ZoneBudget::default();
        policy.configure(configuration.as_bytes()).unwrap();
        policy
    }

    fn in_three_zones() -> Vec<Replica> {
        ["a", "b", "c"].map(|zone| replica(zone, true)).to_vec()
    }

    #[test]
    fn as_many_reads_leave_the_zone_as_may() {
        for (percent, expected) in [(0, 0), (10, 100), (33, 330), (100, 1000)] {
            let policy = configured(&format!("percent = {percent}"));
            let answers = (0..1000).map(|_| policy.decide(&read(Level::Quorum, Level::One, in_three_zones())).unwrap());
            let left = answers.filter(|answer| answer.required > 1).count();
            assert_eq!(left, expected, "{percent} percent");
        }
    }

    #[test]
    fn a_read_that_stays_is_not_hedged_from_elsewhere() {
        let policy = configured("percent = 0");
        let stays = policy.decide(&read(Level::Quorum, Level::One, in_three_zones())).unwrap();
        assert_eq!((stays.required, stays.hedge_after_us), (1, Some(NEVER)));
        assert!(matches!(stays.shortfall, Shortfall::Fail));
        let two_near = ["a", "a", "b"].map(|zone| replica(zone, true)).to_vec();
        let spare_is_near = policy.decide(&read(Level::One, Level::One, two_near)).unwrap();
        assert_eq!((spare_is_near.required, spare_is_near.hedge_after_us), (1, None));
    }

    #[test]
    fn the_minimum_level_is_kept_and_a_zone_without_replicas_is_left() {
        let policy = configured("percent = 0");
        let decide = |question: &Question| policy.decide(question).unwrap();
        assert_eq!(decide(&read(Level::All, Level::Quorum, in_three_zones())).required, 2);
        let away = vec![replica("a", false), replica("b", true), replica("c", true)];
        let left = decide(&read(Level::Quorum, Level::One, away));
        assert_eq!((left.required, left.hedge_after_us), (2, None), "as the client asked");
        let write = Question { operation: Operation::Write, ..read(Level::All, Level::One, in_three_zones()) };
        assert_eq!(decide(&write).required, 3);
    }

    #[test]
    fn without_zones_everything_is_as_the_client_asked() {
        let policy = configured("percent = 0");
        let none = vec![replica("", true); 3];
        assert_eq!(policy.decide(&read(Level::Quorum, Level::One, none)).unwrap().required, 2);
        let unknown = Question { attributes: Vec::new(), ..read(Level::Quorum, Level::One, in_three_zones()) };
        assert_eq!(policy.decide(&unknown).unwrap().required, 2);
        assert_eq!(configured("percent = 0\nzone = c").decide(&unknown).unwrap().required, 1);
    }

    #[test]
    fn a_configuration_is_checked() {
        for wrong in ["percent = 101", "percent = -1", "percent = some", "zones = a"] {
            assert!(ZoneBudget::default().configure(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    fn any_level() -> impl Strategy<Value = Level> {
        prop::sample::select(vec![Level::One, Level::Quorum, Level::All])
    }

    proptest! {
        #[test]
        fn no_read_is_asked_more_or_less_than_it_may(
            percent in 0_u32..=100,
            reads in prop::collection::vec(
                (any_level(), any_level(), prop::collection::vec(("[a-b]?", any::<bool>()), 1..6)),
                1..50,
            ),
        ) {
            let policy = configured(&format!("percent = {percent}"));
            for (level, minimum, replicas) in reads {
                let replicas = replicas.iter().map(|(zone, reachable)| replica(zone, *reachable)).collect();
                let question = read(level, minimum, replicas);
                let (answer, native) = (policy.decide(&question).unwrap(), native(&question));
                prop_assert!(answer.required <= native.required);
                prop_assert!(answer.required >= required(minimum, question.replication_factor));
            }
        }
    }
}
