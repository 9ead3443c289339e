//! Version 0.2.0: replicas have attributes (their zone and load), questions the coordinator's zone; a resolver answers several questions at
//! once; and a guest may ask which tenant it serves.

use bytes::Bytes;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store};
use witan_kernel::hook::{
    Hook, Operation, PolicyAnswer, PolicyQuestion, ReadReplica, ReplicaState, ResolverQuestion, Shortfall,
};
use witan_kernel::limit::PerReplica;
use witan_kernel::name::Zone;
use witan_kernel::tenant::Level;

use super::{Called, Manifest, Said, any_world, policy_question, severity, version};
use crate::fault::Declined;
use crate::guest::Guest;
use crate::lines::Severity;

version!(v0_2);

/// Names and values, as a question borrows them.
type Attributes<'a> = PerReplica<(&'a str, &'a str)>;

impl Exports {
    pub(super) fn decide(
        &self,
        store: &mut Store<Guest>,
        question: &PolicyQuestion<'_>,
    ) -> Option<Called<PolicyAnswer>> {
        let Self::Policy(bindings) = self else { return None };
        let loads: PerReplica<String> = question.replicas.iter().map(|state| state.in_flight.to_string()).collect();
        let attributes: PerReplica<Attributes<'_>> = loads
            .iter()
            .enumerate()
            .map(|(index, load)| attributes(load, question.zones.get(index).and_then(Option::as_ref)))
            .collect();
        let replicas: PerReplica<types::Replica<'_>> =
            question.replicas.iter().zip(&attributes).map(|(state, attributes)| replica(state, attributes)).collect();
        let asked = policy_question!(question, &replicas, &coordinator(question.zone));
        let answer = bindings.witan_plugin_policy().call_decide(store, asked);
        Some(answer.map(|answer| answer.map(policy_answer).map_err(declined)))
    }

    pub(super) fn resolve_many(
        &self,
        store: &mut Store<Guest>,
        questions: &[ResolverQuestion],
    ) -> Option<wasmtime::Result<Vec<Result<Said, Declined>>>> {
        let Self::Resolver(bindings) = self else { return None };
        let siblings: Vec<_> = questions.iter().map(siblings).collect();
        let asked: Vec<_> = questions.iter().zip(&siblings).map(|(asked, it)| resolver_question(asked, it)).collect();
        let said = bindings.witan_plugin_resolver().call_resolve_many(store, &asked);
        Some(said.map(|said| said.into_iter().map(|one| one.map(verdict).map_err(declined)).collect()))
    }

    pub(super) fn prefer(
        &self,
        store: &mut Store<Guest>,
        key: &[u8],
        candidates: &[ReadReplica],
        zone: Option<&Zone>,
    ) -> Option<Called<Vec<u8>>> {
        let Self::Routing(bindings) = self else { return None };
        let loads: PerReplica<String> = candidates.iter().map(|it| it.load.to_string()).collect();
        let attributes: PerReplica<Attributes<'_>> =
            candidates.iter().zip(&loads).map(|(it, load)| attributes(load, it.zone.as_ref())).collect();
        let candidates: PerReplica<routing_wit::Candidate<'_>> = candidates
            .iter()
            .zip(&attributes)
            .map(|(it, attributes)| routing_wit::Candidate {
                node: it.node.as_str(),
                state: replica(&it.state, attributes),
            })
            .collect();
        let order = bindings.witan_plugin_routing().call_prefer_replicas(store, key, &candidates, &coordinator(zone));
        Some(order.map(|order| order.map_err(declined)))
    }
}

fn attributes<'a>(load: &'a str, zone: Option<&'a Zone>) -> Attributes<'a> {
    let zone = zone.map(|zone| ("zone", zone.as_str()));
    zone.into_iter().chain([("load", load)]).collect()
}

/// What a question says of the coordinator that asks.
fn coordinator(zone: Option<&Zone>) -> Attributes<'_> {
    zone.map(|zone| ("coordinator-zone", zone.as_str())).into_iter().collect()
}

fn replica<'a>(state: &ReplicaState, attributes: &'a [(&'a str, &'a str)]) -> types::Replica<'a> {
    types::Replica {
        reachable: state.reachable,
        latency_p50_us: state.latency_p50_us,
        latency_p99_us: state.latency_p99_us,
        in_flight: state.in_flight,
        attributes,
    }
}

impl host_wit::Host for Guest {
    fn log(&mut self, severity: host_wit::Severity, message: String) {
        self.log_line(severity!(severity), &message);
    }

    fn metric(&mut self, name: String, value: f64) {
        self.set_gauge(name, value);
    }

    fn tenant(&mut self) -> Vec<(String, String)> {
        self.tenant_served().map(|tenant| ("tenant".to_owned(), tenant.to_string())).into_iter().collect()
    }
}
