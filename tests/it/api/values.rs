//! Values are stored and returned unchanged; levels and responses report what was done.

use bytes::Bytes;
use tonic::Code;
use witan_wire::v1;

use crate::harness::{Dev, delete, read, write};

#[tokio::test]
async fn a_value_is_whatever_bytes_it_is() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let large: Bytes = (0..10_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let values = [("empty", Bytes::new()), ("zeros", Bytes::from_static(&[0; 3])), ("ten mebibytes", large)];
    for (key, value) in values {
        let written = api.write(write("t", key, value.clone())).await.expect(key);
        assert!(written.success && written.error_message.is_empty() && !written.is_duplicate);
        assert_eq!((written.key.as_str(), written.idempotency_key.len()), (key, 32), "a key is generated");
        let found = api.read(read("t", key)).await.expect(key);
        assert!(found.value == value, "{key} comes back");
        assert!(found.success && found.siblings.is_empty());
        assert_eq!((found.key.as_str(), found.resolved_by.as_str()), (key, "native"));
        assert!(!found.context.is_empty());
    }
    // Keys may contain characters that tenant ids may not, and are as long as allowed.
    for key in ["a:b", "\n", &"k".repeat(1024), "Schlüssel"] {
        api.write(write("t", key, "v")).await.expect(key);
        assert_eq!(api.read(read("t", key)).await.expect(key).value, "v");
    }
}

#[tokio::test]
async fn responses_tell_the_level_that_was_met() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    for (level, at_least) in [("one", 1), ("quorum", 2), ("", 2), ("all", 3)] {
        let request = v1::WriteKeyValueRequest { consistency: level.to_owned(), ..write("t", "k", level) };
        let written = api.write(request).await.expect("write");
        assert!(written.replica_count >= at_least, "{level:?}: {written:?}");
        let met = match written.replica_count {
            1 => "one",
            2 => "quorum",
            _ => "all",
        };
        assert_eq!(written.consistency, met);
        let clock = written.vector_clock.expect("a vector clock");
        assert!(clock.entries[0].logical_timestamp > 0, "clocks do not start at 0: {clock:?}");
    }
    // The last write wins, at whatever level it is read.
    for level in ["one", "quorum", "all", ""] {
        let request = v1::ReadKeyValueRequest { consistency: level.to_owned(), ..read("t", "k") };
        assert_eq!(api.read(request).await.expect("read").value, "all");
    }
}

#[tokio::test]
async fn a_tenants_minimum_level_holds_whatever_is_asked_for() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |request| request.minimum_level = "all".to_owned()).await;
    let request = v1::WriteKeyValueRequest { consistency: "one".to_owned(), ..write("t", "k", "v") };
    let written = api.write(request).await.expect("write");
    assert_eq!((written.replica_count, written.consistency.as_str()), (3, "all"));
}

#[tokio::test]
async fn a_deleted_key_is_not_found_and_can_be_written_again() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    // Deleting a key that never existed is not an error.
    let deleted = api.delete(delete("t", "k")).await.expect("delete");
    assert!(deleted.success);
    api.write(write("t", "k", "1")).await.expect("write");
    let deleted = api.delete(delete("t", "k")).await.expect("delete");
    assert!(!deleted.context.is_empty());
    let refusal = api.read(read("t", "k")).await.expect_err("deleted");
    assert_eq!(refusal.summary(), (Code::NotFound, "KEY_NOT_FOUND", "", ""));
    assert!(!refusal.context.is_empty(), "the context of what is not there");
    let again = v1::WriteKeyValueRequest { context: refusal.context, ..write("t", "k", "2") };
    api.write(again).await.expect("write with the context of a deleted key");
    assert_eq!(api.read(read("t", "k")).await.expect("read").value, "2");
}
