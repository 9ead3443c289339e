//! Concurrent writes of a key are all kept until a client that has seen them writes.

use bytes::Bytes;
use tonic::Code;
use witan_wire::v1;

use crate::harness::{Dev, delete, read, write};

fn after(context: &Bytes, value: &str) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { context: context.clone(), ..write("s", "k", value.to_owned()) }
}

#[tokio::test]
async fn concurrent_values_stand_side_by_side_until_a_write_covers_them() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.siblings_tenant("s").await;
    let first = api.write(write("s", "k", "a")).await.expect("write");
    api.write(write("s", "k", "b")).await.expect("write");
    let found = api.read(read("s", "k")).await.expect("read");
    assert!(found.value.is_empty(), "nobody decides, so nobody hides one");
    assert_eq!((found.siblings.len(), found.resolved_by.as_str()), (2, "native"));
    assert!(found.siblings.iter().all(|sibling| sibling.written_at_us > 1_500_000_000_000_000));
    assert!(found.siblings[0].written_at_us <= found.siblings[1].written_at_us);

    // A writer that has seen only its own write replaces only that.
    api.write(after(&first.context, "a2")).await.expect("write");
    let (values, context) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["a2", "b"]);
    // A write that the client has not seen stays, next to the one that replaces the others.
    api.write(write("s", "k", "c")).await.expect("write");
    api.write(after(&context, "a2+b")).await.expect("write");
    let (values, context) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["a2+b", "c"]);
    api.write(after(&context, "all")).await.expect("write");
    let (values, _) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["all"]);
    // An old context drops no later values.
    api.write(after(&context, "late")).await.expect("write");
    let (values, _) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["all", "late"]);
}

#[tokio::test]
async fn a_delete_takes_what_it_has_seen() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.siblings_tenant("s").await;
    api.write(write("s", "k", "a")).await.expect("write");
    let (_, seen_a) = api.values(read("s", "k")).await.expect("read");
    api.write(write("s", "k", "b")).await.expect("write");
    let with_context = v1::DeleteKeyValueRequest { context: seen_a, ..delete("s", "k") };
    api.delete(with_context).await.expect("delete");
    let (values, _) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["b"], "a value that the delete had not seen is kept");
    api.write(write("s", "k", "c")).await.expect("write");
    // Without a context it covers all current values.
    api.delete(delete("s", "k")).await.expect("delete");
    let refusal = api.read(read("s", "k")).await.expect_err("deleted");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "KEY_NOT_FOUND"));
    let request = v1::WriteKeyValueRequest { context: refusal.context, ..write("s", "k", "d") };
    api.write(request).await.expect("write");
    let (values, _) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["d"]);
}

/// The context of a missing key covers nothing, which differs from no context.
#[tokio::test]
async fn a_delete_that_has_seen_nothing_deletes_nothing() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.siblings_tenant("s").await;
    let nothing = api.read(read("s", "k")).await.expect_err("not there yet").context;
    api.write(write("s", "k", "a")).await.expect("write");
    api.delete(v1::DeleteKeyValueRequest { context: nothing, ..delete("s", "k") }).await.expect("delete");
    let (values, _) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["a"]);
}

#[tokio::test]
async fn siblings_are_bounded_and_a_write_that_covers_them_gets_through() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.siblings_tenant("s").await;
    for index in 0..100 {
        api.write(write("s", "k", format!("{index:03}"))).await.expect("write");
    }
    let refusal = api.write(write("s", "k", "one too many")).await.expect_err("the bound");
    assert_eq!(refusal.summary(), (Code::ResourceExhausted, "SIBLING_LIMIT", "not-applied", ""));
    let (values, context) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values.len(), 100);
    api.write(after(&context, "settled")).await.expect("write with the context");
    let (values, _) = api.values(read("s", "k")).await.expect("read");
    assert_eq!(values, ["settled"]);
}
