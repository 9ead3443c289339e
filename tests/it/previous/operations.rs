//! Every kind of operation, each by two coordinators: the second continues what the first has begun.

use std::collections::BTreeSet;

use bytes::Bytes;
use tonic::Code;
use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use super::repair;
use crate::harness::{Api, Company, Guest, Plugins, Refusal, Version, delete, eventually, node_client, read, write};

/// Two coordinators, or one twice.
struct Pair {
    first: Api,
    second: Api,
    /// Part of the tenants' names that identifies this pair.
    name: String,
}

impl Pair {
    async fn tenant(&self, what: &str, change: impl FnOnce(&mut v1::CreateTenantRequest)) -> String {
        let tenant = format!("{what}-{}", self.name);
        self.first.tenant(&tenant, change).await;
        tenant
    }
}

/// All operations with these coordinators of a cluster, except those that need a node to be down.
pub(super) async fn all(company: &Company, first: usize, second: usize) {
    let name = format!("{first}-{second}");
    let pair = Pair { first: company.api(first), second: company.api(second), name };
    for ordering in ["quorum", "clock"] {
        registers(&pair, ordering).await;
    }
    siblings(&pair).await;
    names(&pair).await;
    sessions(&pair).await;
    large_values(&pair).await;
    pages_of_keys(&pair).await;
    tenants(&pair).await;
    let plugins = [first, second].map(|index| Plugins::new(company.coordinators[index].address));
    a_plugin(&pair, &plugins).await;
}

fn after(context: Bytes, request: v1::WriteKeyValueRequest) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { context, ..request }
}

/// The values of `k`, and the context.
async fn values(api: &Api, tenant: &str) -> (Vec<Bytes>, Bytes) {
    api.values(read(tenant, "k")).await.expect("read")
}

async fn registers(pair: &Pair, ordering: &str) {
    let Pair { first, second, .. } = pair;
    let tenant = pair.tenant(&format!("by-{ordering}"), |request| request.ordering = ordering.to_owned()).await;
    first.write(write(&tenant, "k", "one")).await.expect("written");
    let (found, context) = values(second, &tenant).await;
    assert_eq!(found, ["one"]);
    second.write(after(context, write(&tenant, "k", "two"))).await.expect("written");
    let (found, context) = values(first, &tenant).await;
    assert_eq!(found, ["two"]);
    first.delete(v1::DeleteKeyValueRequest { context, ..delete(&tenant, "k") }).await.expect("deleted");
    let (found, context) = values(second, &tenant).await;
    assert!(found.is_empty(), "{found:?}");
    second.write(after(context, write(&tenant, "k", "three"))).await.expect("written");
    for api in [first, second] {
        for level in ["quorum", "all"] {
            let request = v1::ReadKeyValueRequest { consistency: level.to_owned(), ..read(&tenant, "k") };
            assert_eq!(&api.read(request).await.expect("read").value[..], b"three");
        }
    }
}

async fn siblings(pair: &Pair) {
    let Pair { first, second, .. } = pair;
    let tenant = pair.tenant("siblings", |request| request.conflict_mode = "siblings".to_owned()).await;
    for (api, value) in [(first, "one"), (second, "two")] {
        api.write(write(&tenant, "k", value)).await.expect("written");
    }
    let (found, context) = values(first, &tenant).await;
    assert_eq!(found, ["one", "two"]);
    second.write(after(context, write(&tenant, "k", "both"))).await.expect("written");
    let (found, context) = values(first, &tenant).await;
    assert_eq!(found, ["both"], "the second has replaced what the first has shown");
    first.write(write(&tenant, "k", "beside")).await.expect("written");
    second.delete(v1::DeleteKeyValueRequest { context, ..delete(&tenant, "k") }).await.expect("deleted");
    assert_eq!(values(first, &tenant).await.0, ["beside"], "what is concurrent with a delete stays");
    first.delete(delete(&tenant, "k")).await.expect("deleted");
    let (found, context) = values(second, &tenant).await;
    assert!(found.is_empty(), "{found:?}");
    second.write(after(context, write(&tenant, "k", "back"))).await.expect("written");
    assert_eq!(values(first, &tenant).await.0, ["back"]);
}

/// A change done by one coordinator under an idempotency key is not repeated by the other.
async fn names(pair: &Pair) {
    let Pair { first, second, .. } = pair;
    for mode in ["register", "siblings"] {
        let tenant = pair.tenant(&format!("names-{mode}"), |request| request.conflict_mode = mode.to_owned()).await;
        let pay = v1::WriteKeyValueRequest { idempotency_key: "order-7".to_owned(), ..write(&tenant, "k", "paid") };
        let done = first.write(pay.clone()).await.expect("written");
        assert!(!done.is_duplicate);
        second.write(after(done.context.clone(), write(&tenant, "k", "spent"))).await.expect("written");
        let again = second.write(pay.clone()).await.expect("answered");
        assert!(again.is_duplicate);
        assert_eq!((again.context, again.vector_clock), (done.context, done.vector_clock), "the first one's answer");
        assert_eq!(values(first, &tenant).await.0, ["spent"]);
        let other = v1::WriteKeyValueRequest { value: "less".into(), ..pay };
        let refused = second.write(other).await.expect_err("another request under the same name");
        assert_eq!(refused.reason, "IDEMPOTENCY_KEY_CONFLICT");

        let close = v1::DeleteKeyValueRequest { idempotency_key: "close".to_owned(), ..delete(&tenant, "k") };
        second.delete(close.clone()).await.expect("deleted");
        first.write(write(&tenant, "k", "open")).await.expect("written");
        assert!(first.delete(close).await.expect("answered").is_duplicate);
        assert_eq!(values(second, &tenant).await.0, ["open"]);
    }
}

async fn sessions(pair: &Pair) {
    const KEYS: u64 = 100;
    let tenant = pair.tenant("sessions", |_| {}).await;
    // Four operations on each key, each of which must see the effects of the earlier ones.
    let operations = |value: &'static str| {
        (0..KEYS).flat_map({
            let tenant = tenant.clone();
            move |key| {
                let (id, key) = (key * 4, format!("k{key}"));
                let write = |value: String| Operation::Write(write(&tenant, &key, value));
                let operations = [
                    Operation::Read(read(&tenant, &key)),
                    write(format!("{value} of {key}")),
                    Operation::Delete(delete(&tenant, &key)),
                    write(format!("{value} of {key}")),
                ];
                let request =
                    |(id, operation)| v1::SessionRequest { id, operation: Some(operation), timeout_ms: 60_000 };
                (id..).zip(operations).map(request).collect::<Vec<_>>()
            }
        })
    };
    for (api, before, value) in [(&pair.first, None, "first"), (&pair.second, Some("first"), "second")] {
        let mut session = api.session().await;
        session.send(operations(value).collect()).await;
        for response in session.take(KEYS as usize * 4).await {
            let key = response.id / 4;
            match response.result.expect("a result") {
                Outcome::Read(found) => {
                    assert_eq!(found.value, format!("{} of k{key}", before.expect("nothing was there")));
                }
                Outcome::Status(status) => {
                    assert_eq!((Refusal::from(status).code, before), (Code::NotFound, None));
                }
                Outcome::Write(_) => assert_ne!(response.id % 4, 0),
            }
        }
        session.finish();
        assert!(session.next().await.is_none(), "the stream ends when all is answered");
    }
}

/// Larger than a frame of a lane.
async fn large_values(pair: &Pair) {
    let tenant = pair.tenant("large", |request| request.read_repair = "blocking".to_owned()).await;
    let value = Bytes::from_iter((0..3_u32 << 20).map(|at| (at % 251) as u8));
    pair.first.write(write(&tenant, "k", value.clone())).await.expect("written");
    let all = v1::ReadKeyValueRequest { consistency: "all".to_owned(), ..read(&tenant, "k") };
    assert!(pair.second.read(all).await.expect("read").value == value, "another value");
}

/// Pages alternate between the coordinators.
async fn pages_of_keys(pair: &Pair) {
    let tenant = pair.tenant("listed", |_| {}).await;
    let everywhere = |key: &str| v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..write(&tenant, key, "v") };
    for key in 0..10 {
        pair.first.write(everywhere(&format!("k{key}"))).await.expect("written");
    }
    pair.second.delete(delete(&tenant, "k3")).await.expect("deleted");
    let mut found = BTreeSet::new();
    let mut request = v1::ListKeysRequest { tenant_id: tenant, page_size: 2, ..v1::ListKeysRequest::default() };
    for api in [&pair.first, &pair.second].into_iter().cycle() {
        let page = api.client().list_keys(request.clone()).await.expect("listed").into_inner();
        found.extend(page.keys.into_iter().map(|info| info.key));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let expected = (0..10).filter(|key| *key != 3).map(|key| format!("k{key}"));
    assert_eq!(found, expected.collect());
}

async fn tenants(pair: &Pair) {
    let Pair { first, second, .. } = pair;
    let tenant = pair.tenant("changed", |_| {}).await;
    let update = |version, level: &str| v1::UpdateTenantRequest {
        tenant_id: tenant.clone(),
        version,
        default_level: level.to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    let follows = async |api: &Api, level: &str| {
        eventually("a change is followed", async || {
            let met = api.write(write(&tenant, "k", "v")).await.expect("written").consistency;
            (met == level).then_some(())
        })
        .await;
    };
    // Both have it cached before it changes.
    for api in [first, second] {
        follows(api, "quorum").await;
    }
    let changed = first.client().update_tenant(update(0, "all")).await.expect("updated").into_inner();
    follows(second, "all").await;
    let back = second.client().update_tenant(update(changed.version, "quorum")).await.expect("updated").into_inner();
    follows(first, "quorum").await;
    let late = first.client().update_tenant(update(changed.version, "all")).await.expect_err("of an older version");
    assert_eq!(late.code(), Code::Aborted);
    let listed = first.client().list_tenants(v1::ListTenantsRequest::default()).await.expect("listed").into_inner();
    // Of a setting that only one of the versions knows, the other says nothing, and keeps what it is.
    let known = |tenant: &v1::GetTenantResponse| {
        assert!([0, 86_400].contains(&tenant.idempotency_retention_seconds), "{tenant:?}");
        v1::GetTenantResponse { idempotency_retention_seconds: 0, ..tenant.clone() }
    };
    assert!(listed.tenants.iter().any(|tenant| known(tenant) == known(&back)), "as the other returned it");

    let end = v1::DeleteTenantRequest { tenant_id: tenant.clone(), version: back.version, confirm: tenant.clone() };
    let ended = second.client().delete_tenant(end).await.expect("deleted").into_inner();
    assert!(ended.records_removed > 0 && ended.incomplete_nodes.is_empty(), "{ended:?}");
    eventually("the end of a tenant is followed", async || {
        (first.read(read(&tenant, "k")).await.err()?.reason == "TENANT_NOT_FOUND").then_some(())
    })
    .await;
}

async fn a_plugin(pair: &Pair, [first, second]: &[Plugins; 2]) {
    let hook = "conflict-resolver";
    let tenant = pair.tenant("resolved", |request| request.conflict_mode = "siblings".to_owned()).await;
    for (api, value) in [(&pair.first, "[1]"), (&pair.second, "[2]")] {
        api.write(write(&tenant, "k", value)).await.expect("written");
    }
    let resolved = async |by: &str| {
        for api in [&pair.first, &pair.second] {
            eventually("both ask the plugin", async || {
                let found = api.read(read(&tenant, "k")).await.expect("read");
                found.resolved_by.starts_with(by).then_some(())
            })
            .await;
        }
    };
    // Of the released version of the interface, which is the only one that the previous version knows.
    let greatest = first.upload("released-0-1").await;
    second.bind(&tenant, hook, &greatest).await.expect("known there at once");
    resolved("released-0-1").await;
    let keeps = second.send(Guest::resolver("keeps-all").build()).await.expect("uploaded").digest;
    first.bind(&tenant, hook, &keeps).await.expect("bound");
    resolved("keeps-all").await;
    second.roll_back(&tenant, hook).await.expect("rolled back");
    resolved("released-0-1").await;
}

/// A node of `version` misses writes, comes back, and is repaired: half of the ring by one coordinator, and the rest by the other, from
/// the cursor of the first.
pub(super) async fn a_node_that_was_away(company: &mut Company, node: usize, version: Version, by: [usize; 2]) {
    const KEYS: usize = 20;
    let [first, second] = by.map(|index| company.api(index));
    let tenant = format!("away-{node}");
    first.siblings_tenant(&tenant).await;
    company.end_node(node).await;
    for key in 0..KEYS {
        for api in [&first, &second] {
            api.write(write(&tenant, &format!("k{key}"), "v")).await.expect("a quorum is left");
        }
    }
    company.start_node(node, version).await;
    let of_tenant = v1::CoordinatorServiceRepairRequest {
        tenant_id: tenant.clone(),
        ..v1::CoordinatorServiceRepairRequest::default()
    };
    let half = v1::CoordinatorServiceRepairRequest { to_token: Some((1 << 63) - 1), ..of_tenant.clone() };
    let half = repair(&first, half).await;
    let rest = repair(&second, v1::CoordinatorServiceRepairRequest { cursor: half.cursor.clone(), ..of_tenant }).await;
    assert!(half.complete && rest.complete, "{half:?} {rest:?}");
    let totals = (half.scanned + rest.scanned, half.repaired + rest.repaired);
    assert_eq!(totals, (KEYS as u64, KEYS as u64), "{half:?} {rest:?}");
    for key in 0..KEYS {
        let request = v1::ReadRequest { tenant_id: tenant.clone(), key: format!("k{key}"), ..Default::default() };
        let answer = node_client(company.nodes[node].1).read(request).await.expect("read from a node").into_inner();
        assert!(answer.record.is_some(), "k{key} is still missing");
    }
}
