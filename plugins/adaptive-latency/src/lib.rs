//! Consistency policy: while replicas are slow, busy or unreachable, an operation requires only as many answers as there are healthy
//! replicas, but never fewer than the tenant's minimum level. Reads are hedged by the latencies that the coordinator measures.
//!
//! Configuration, as lines of `key = value`. Every key is optional:
//!
//! | key | default | meaning |
//! | --- | --- | --- |
//! | slow-us | 50000 | a replica whose 99th percentile of latency is above this is not healthy, in microseconds |
//! | busy | 512 | a replica with more requests in flight than this is not healthy |
//! | hedge-cap-us | 20000 | the longest time before a read asks a spare replica, in microseconds |
//! | accept-shortfall | true | whether the minimum level is enough when fewer replicas answer than required |

use witan_plugin_sdk::policy::{Answer, Operation, Question, Replica, Shortfall, native, required};
use witan_plugin_sdk::{ConfigIssue, ConsistencyPolicy, Error, Plugin, Settings};

/// The policy.
#[derive(Debug)]
pub struct AdaptiveLatency {
    slow_us: u32,
    busy: u32,
    hedge_cap_us: u32,
    accept_shortfall: bool,
}

impl Default for AdaptiveLatency {
    fn default() -> Self {
        Self { slow_us: 50_000, busy: 512, hedge_cap_us: 20_000, accept_shortfall: true }
    }
}

impl Plugin for AdaptiveLatency {
    fn configure(&mut self, configuration: &[u8]) -> Result<(), Vec<ConfigIssue>> {
        let mut settings = Settings::read(configuration);
        settings.take("slow-us", "a number of microseconds", &mut self.slow_us);
        settings.take("busy", "a number of requests", &mut self.busy);
        settings.take("hedge-cap-us", "a number of microseconds", &mut self.hedge_cap_us);
        settings.take("accept-shortfall", "true or false", &mut self.accept_shortfall);
        if self.slow_us == 0 {
            settings.refuse("slow-us", "is 0, which makes every replica slow; use 1 or more");
        }
        settings.finish()
    }
}

impl ConsistencyPolicy for AdaptiveLatency {
    fn decide(&self, question: &Question) -> Result<Answer, Error> {
        let mut answer = native(question);
        let floor = required(question.minimum, question.replication_factor);
        if !question.replicas.is_empty() {
            let healthy = question.replicas.iter().filter(|replica| self.is_healthy(replica)).count();
            let healthy = u8::try_from(healthy).unwrap_or(u8::MAX);
            answer.required = answer.required.min(healthy.max(floor));
        }
        if self.accept_shortfall && floor < answer.required {
            answer.shortfall = Shortfall::Accept(floor);
        }
        if question.operation == Operation::Read {
            answer.hedge_after_us = self.hedge(question, answer.required);
        }
        Ok(answer)
    }
}

impl AdaptiveLatency {
    fn is_healthy(&self, replica: &Replica) -> bool {
        replica.reachable && replica.latency_p99_us <= self.slow_us && replica.in_flight <= self.busy
    }

    /// The time after which one of the replicas that are asked first, the fastest ones, is later than in 99 % of its answers. Unhealthy
    /// replicas do not count, so that they do not delay the hedge.
    fn hedge(&self, question: &Question, required: u8) -> Option<u32> {
        let mut healthy: Vec<&Replica> = question.replicas.iter().filter(|replica| self.is_healthy(replica)).collect();
        healthy.sort_by_key(|replica| replica.latency_p50_us);
        let asked = healthy.iter().take(usize::from(required)).map(|replica| replica.latency_p99_us);
        asked.max().filter(|p99| *p99 > 0).map(|p99| p99.min(self.hedge_cap_us))
    }
}

witan_plugin_sdk::consistency_policy!(AdaptiveLatency);

#[cfg(test)]
mod tests {
    use super::*;
    use witan_plugin_sdk::policy::Level;

    fn replica(reachable: bool, p99: u32) -> Replica {
        Replica { reachable, latency_p50_us: p99 / 4, latency_p99_us: p99, in_flight: 0, attributes: Vec::new() }
    }

    fn question(operation: Operation, level: Level, minimum: Level, replicas: Vec<Replica>) -> Question {
        Question {
            operation,
            level,
            minimum,
            replication_factor: 3,
            deadline_ms: 1000,
            value_bytes: 0,
            replicas,
            attributes: Vec::new(),
        }
    }

    #[test]
    fn with_all_replicas_healthy_the_requested_level_applies() {
        let q = question(Operation::Write, Level::All, Level::One, vec![replica(true, 900); 3]);
        let answer = AdaptiveLatency::default().decide(&q).unwrap();
        assert_eq!((answer.required, answer.hedge_after_us), (3, None));
        assert!(matches!(answer.shortfall, Shortfall::Accept(1)));
    }

    #[test]
    fn an_unhealthy_replica_is_not_required_beyond_the_minimum() {
        let unhealthy = vec![replica(true, 900), replica(false, 0), replica(true, 90_000)];
        let relaxed =
            AdaptiveLatency::default().decide(&question(Operation::Write, Level::All, Level::One, unhealthy.clone()));
        assert_eq!(relaxed.unwrap().required, 1);
        let held = AdaptiveLatency::default()
            .decide(&question(Operation::Write, Level::All, Level::Quorum, unhealthy))
            .unwrap();
        assert_eq!(held.required, 2);
        assert!(matches!(held.shortfall, Shortfall::Fail));
    }

    #[test]
    fn a_read_is_hedged_from_the_fastest_replicas() {
        let mixed = vec![replica(true, 40_000), replica(true, 900), replica(true, 700)];
        let hedge = |level| {
            let q = question(Operation::Read, level, Level::One, mixed.clone());
            AdaptiveLatency::default().decide(&q).unwrap().hedge_after_us
        };
        assert_eq!(hedge(Level::Quorum), Some(900));
        assert_eq!(hedge(Level::All), Some(20_000), "capped");
        let unmeasured = question(Operation::Read, Level::One, Level::One, vec![replica(true, 0); 3]);
        assert_eq!(AdaptiveLatency::default().decide(&unmeasured).unwrap().hedge_after_us, None);
    }

    #[test]
    fn a_configuration_is_read_and_checked() {
        let mut policy = AdaptiveLatency::default();
        policy.configure(b"slow-us = 100\naccept-shortfall = false").unwrap();
        let q = question(Operation::Write, Level::Quorum, Level::One, vec![replica(true, 900); 3]);
        let answer = policy.decide(&q).unwrap();
        assert_eq!(answer.required, 1);
        assert!(AdaptiveLatency::default().configure(b"slow-us = 0\nfast = 1").is_err_and(|issues| issues.len() == 2));
    }
}
