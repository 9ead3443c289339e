//! One effect per idempotency key.

use std::collections::HashSet;

use futures::future::join_all;
use tonic::Code;
use witan_wire::v1;

use crate::harness::{Dev, delete, read, write};

fn named(tenant: &str, key: &str, value: &str, name: &str) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { idempotency_key: name.to_owned(), ..write(tenant, key, value.to_owned()) }
}

#[tokio::test]
async fn a_repeated_request_is_answered_and_not_repeated() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let first = api.write(named("t", "k", "1", "a")).await.expect("write");
    assert!(!first.is_duplicate);
    api.write(named("t", "k", "2", "b")).await.expect("write");
    let again = api.write(named("t", "k", "1", "a")).await.expect("write again");
    assert!(again.is_duplicate);
    assert_eq!(
        (&again.context, &again.idempotency_key, &again.key),
        (&first.context, &first.idempotency_key, &first.key)
    );
    assert_eq!(again.vector_clock, first.vector_clock);
    assert_eq!(api.read(read("t", "k")).await.expect("read").value, "2", "the older write does not come back");

    let gone = v1::DeleteKeyValueRequest { idempotency_key: "c".to_owned(), ..delete("t", "k") };
    assert!(!api.delete(gone.clone()).await.expect("delete").is_duplicate);
    api.write(named("t", "k", "3", "d")).await.expect("write");
    assert!(api.delete(gone).await.expect("delete again").is_duplicate);
    assert_eq!(api.read(read("t", "k")).await.expect("read").value, "3", "the delete is not repeated");
}

#[tokio::test]
async fn a_key_used_with_another_request_is_a_conflict() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    api.tenant("u", |_| {}).await;
    let first = api.write(named("t", "k", "1", "a")).await.expect("write");
    let conflict = (Code::InvalidArgument, "IDEMPOTENCY_KEY_CONFLICT", "not-applied", "");
    let another_value = api.write(named("t", "k", "2", "a")).await.expect_err("another value");
    assert_eq!(another_value.summary(), conflict);
    let with_context = v1::WriteKeyValueRequest { context: first.context, ..named("t", "k", "1", "a") };
    assert_eq!(api.write(with_context).await.expect_err("another context").summary(), conflict);
    let gone = v1::DeleteKeyValueRequest { idempotency_key: "a".to_owned(), ..delete("t", "k") };
    assert_eq!(api.delete(gone).await.expect_err("another operation").summary(), conflict);
    assert_eq!(api.read(read("t", "k")).await.expect("read").value, "1");
    // Idempotency keys are scoped: the same one for another tenant or key is different, whatever the parts contain.
    for (tenant, key, name) in [("t", "k2", "a"), ("u", "k", "a"), ("t", "k:a", "a"), ("t", "k", "a:a")] {
        assert!(!api.write(named(tenant, key, "1", name)).await.expect("write").is_duplicate, "{tenant} {key} {name}");
    }
}

#[tokio::test]
async fn of_concurrent_duplicates_one_is_carried_out() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    for (tenant, round) in [("t", 0), ("s", 0), ("t", 1), ("s", 1)] {
        let key = format!("k{round}");
        let attempts = (0..16).map(|_| {
            // Each over its own connection.
            let api = dev.api();
            let request = named(tenant, &key, "v", "only once");
            async move { api.write(request).await.expect("write") }
        });
        let written = join_all(attempts).await;
        assert_eq!(written.iter().filter(|written| !written.is_duplicate).count(), 1, "one of them did it");
        let contexts: HashSet<_> = written.iter().map(|written| &written.context).collect();
        assert_eq!(contexts.len(), 1, "all are answered alike");
        let (values, _) = api.values(read(tenant, &key)).await.expect("read");
        assert_eq!(values, ["v"]);
    }
}
