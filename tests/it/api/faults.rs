//! What clients learn of plugins that do not answer, and operators of their breakers.

use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Api, Dev, Guest, PATIENCE, Plugins, read, write};

const RESOLVER: &str = "conflict-resolver";
const POLICY: &str = "consistency-policy";
/// A value of this size triggers the policies.
const TRIGGER: usize = 666;

/// A resolver that traps on keys of five letters, which end with an x.
fn trapping() -> Guest {
    let is_x = "(i32.eq (i32.load8_u offset=3 (local.get 0)) (i32.const 0x78))";
    Guest::resolver("cart").when_triggered(&format!("(if {is_x} (then unreachable))"))
}

async fn put(dev: &Dev, tenant: &str, hook: &str, guest: &Guest) -> String {
    let plugins = Plugins::new(dev.address());
    let digest = plugins.send(guest.build()).await.expect("uploaded").digest;
    plugins.bind(tenant, hook, &digest).await.expect("bound");
    digest
}

async fn binding(dev: &Dev, tenant: &str) -> v1::Binding {
    let list = v1::ListBindingsRequest { tenant_id: tenant.to_owned() };
    let listed = Plugins::new(dev.address()).client().list_bindings(list).await.expect("listed").into_inner();
    listed.bindings.into_iter().find(|it| it.tenant_id == tenant).expect("it is bound")
}

async fn in_session(api: &Api, operation: Operation) -> Outcome {
    api.session().await.within(PATIENCE, operation).await
}

#[tokio::test]
async fn a_read_says_why_no_resolver_has_decided() {
    let dev = Dev::start().await;
    let api = dev.api();
    for tenant in ["shop", "other"] {
        api.siblings_tenant(tenant).await;
        for key in ["keyx", "keyy"] {
            for value in ["one", "two"] {
                api.write(write(tenant, key, value)).await.expect("written");
            }
        }
    }
    let found = api.read(read("shop", "keyx")).await.expect("read");
    assert_eq!((found.siblings.len(), found.resolver_fault), (2, None), "nothing is bound");
    let digest = put(&dev, "shop", RESOLVER, &trapping()).await;

    let found = api.read(read("shop", "keyx")).await.expect("read");
    assert_eq!((found.siblings.len(), &*found.resolved_by), (2, "native"));
    let fault = found.resolver_fault.expect("it has not answered");
    assert_eq!((&*fault.plugin, &*fault.kind), (&*format!("cart@{}", &digest[..12]), "trap"));
    assert!(fault.reason.starts_with(&format!("{} trapped", fault.plugin)), "{fault:?}");
    let Outcome::Read(found) = in_session(&api, Operation::Read(read("shop", "keyx"))).await else { panic!("no read") };
    assert_eq!(found.resolver_fault, Some(fault), "the same in a session");

    let found = api.read(read("shop", "keyy")).await.expect("read");
    assert_eq!((found.siblings.len(), found.resolver_fault), (2, None), "it keeps all, and answers");
    assert!(found.resolved_by.starts_with("cart@"), "{}", found.resolved_by);
    let found = api.read(read("other", "keyx")).await.expect("read");
    assert_eq!((&*found.resolved_by, found.resolver_fault), ("native", None), "another tenant's is not its");
}

#[tokio::test]
async fn a_write_and_a_read_say_why_a_policy_gave_way() {
    let dev = Dev::start().await;
    let api = dev.api();
    for tenant in ["shop", "other"] {
        api.tenant(tenant, |_| {}).await;
    }
    put(&dev, "shop", POLICY, &Guest::policy("lenient", 1).when_triggered("unreachable")).await;
    let large = || "v".repeat(TRIGGER);
    let written = api.write(write("shop", "k", "small")).await.expect("written");
    assert_eq!(written.policy_fault, None);
    let named =
        |value: String| v1::WriteKeyValueRequest { idempotency_key: "once".to_owned(), ..write("shop", "k", value) };
    let written = api.write(named(large())).await.expect("written by the native rule");
    let fault = written.policy_fault.expect("the policy gave way");
    assert!(fault.kind == "trap" && fault.plugin.starts_with("lenient@"), "{fault:?}");
    let again = api.write(named(large())).await.expect("a repetition");
    assert_eq!((again.is_duplicate, again.policy_fault), (true, None));
    let outcome = in_session(&api, Operation::Write(write("shop", "k", large()))).await;
    let Outcome::Write(written) = outcome else { panic!("no write: {outcome:?}") };
    assert_eq!(written.policy_fault.map(|it| it.kind), Some("trap".to_owned()));
    let written = api.write(write("other", "k", large())).await.expect("written");
    assert_eq!(written.policy_fault, None);

    // A read is about no bytes, which the probe does not ask about.
    let reading = Guest::policy("no-reads", 1).with(|guest| {
        guest.answer = format!("(if (i32.eqz (local.get 5)) (then unreachable)) {}", guest.answer);
    });
    put(&dev, "other", POLICY, &reading).await;
    let found = api.read(read("other", "k")).await.expect("read by the native rule");
    let fault = found.policy_fault.expect("the policy gave way");
    assert!(fault.kind == "trap" && fault.plugin.starts_with("no-reads@"), "{fault:?}");
    assert_eq!((found.value.len(), found.resolver_fault), (TRIGGER, None));
}

#[tokio::test]
async fn a_binding_says_whether_its_breaker_is_open() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.siblings_tenant("shop").await;
    for value in ["one", "two"] {
        api.write(write("shop", "keyx", value)).await.expect("written");
    }
    put(&dev, "shop", RESOLVER, &trapping()).await;
    for _ in 0..19 {
        let found = api.read(read("shop", "keyx")).await.expect("read");
        assert_eq!(found.resolver_fault.map(|it| it.kind), Some("trap".to_owned()));
    }
    let closed = binding(&dev, "shop").await;
    assert_eq!((closed.breaker_open, closed.breakers_open, closed.admitted_permille), (false, 0, 1000));
    for kind in ["trap", "breaker"] {
        let found = api.read(read("shop", "keyx")).await.expect("read");
        assert_eq!(found.resolver_fault.map(|it| it.kind), Some(kind.to_owned()));
    }
    let open = binding(&dev, "shop").await;
    assert_eq!((open.breaker_open, open.breakers_open, open.admitted_permille, &*open.broken), (true, 1, 0, ""));
}
