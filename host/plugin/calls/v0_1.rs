//! Version 0.1.0: replicas have no attributes.

use bytes::Bytes;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store};
use witan_kernel::hook::{
    Hook, Operation, PolicyAnswer, PolicyQuestion, ReadReplica, ReplicaState, ResolverQuestion, Shortfall,
};
use witan_kernel::limit::PerReplica;
use witan_kernel::tenant::Level;

use super::{Called, Manifest, Said, any_world, policy_question, severity, version};
use crate::fault::Declined;
use crate::guest::Guest;
use crate::lines::Severity;

version!(v0_1);

impl Exports {
    pub(super) fn decide(
        &self,
        store: &mut Store<Guest>,
        question: &PolicyQuestion<'_>,
    ) -> Option<Called<PolicyAnswer>> {
        let Self::Policy(bindings) = self else { return None };
        let replicas: PerReplica<types::Replica> = question.replicas.iter().map(replica).collect();
        let asked = policy_question!(question, &replicas, &[]);
        let answer = bindings.witan_plugin_policy().call_decide(store, asked);
        Some(answer.map(|answer| answer.map(policy_answer).map_err(declined)))
    }

    pub(super) fn prefer(
        &self,
        store: &mut Store<Guest>,
        key: &[u8],
        candidates: &[ReadReplica],
    ) -> Option<Called<Vec<u8>>> {
        let Self::Routing(bindings) = self else { return None };
        let candidates: PerReplica<routing_wit::Candidate<'_>> = candidates
            .iter()
            .map(|it| routing_wit::Candidate { node: it.node.as_str(), state: replica(&it.state), attributes: &[] })
            .collect();
        let order = bindings.witan_plugin_routing().call_prefer_replicas(store, key, &candidates);
        Some(order.map(|order| order.map_err(declined)))
    }
}

fn replica(state: &ReplicaState) -> types::Replica {
    types::Replica {
        reachable: state.reachable,
        latency_p50_us: state.latency_p50_us,
        latency_p99_us: state.latency_p99_us,
        in_flight: state.in_flight,
    }
}

impl host_wit::Host for Guest {
    fn log(&mut self, severity: host_wit::Severity, message: String) {
        self.log_line(severity!(severity), &message);
    }

    fn metric(&mut self, name: String, value: f64) {
        self.set_gauge(name, value);
    }
}
