//! Every invalid request: its code, reason, outcome and field.

use bytes::Bytes;
use tonic::Code;
use witan_wire::v1;

use crate::harness::{Api, Dev, Refusal, delete, read, write};

const BAD: Code = Code::InvalidArgument;

/// The request must be refused for this field, and have no effect.
fn assert_refused(result: Result<impl std::fmt::Debug, Refusal>, field: &str) {
    let refusal = result.expect_err(field);
    assert_eq!(refusal.summary(), (BAD, "INVALID_REQUEST", "not-applied", field), "{refusal:?}");
    assert!(refusal.message.contains(field), "the message names the field: {refusal:?}");
}

async fn with_tenant() -> (Dev, Api) {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    (dev, api)
}

#[tokio::test]
async fn fields_out_of_bounds_are_named() {
    let (_dev, api) = with_tenant().await;
    let over = "x".repeat(1025);
    for key in ["", over.as_str()] {
        assert_refused(api.write(write("t", key, "v")).await, "key");
        assert_refused(api.read(read("t", key)).await, "key");
        assert_refused(api.delete(delete("t", key)).await, "key");
    }
    for tenant in ["", "a:b", "tab\t", &"x".repeat(257)] {
        assert_refused(api.write(write(tenant, "k", "v")).await, "tenant_id");
        assert_refused(api.read(read(tenant, "k")).await, "tenant_id");
        assert_refused(api.delete(delete(tenant, "k")).await, "tenant_id");
    }
    let unknown = "most".to_owned();
    let request = v1::WriteKeyValueRequest { consistency: unknown.clone(), ..write("t", "k", "v") };
    assert_refused(api.write(request).await, "consistency");
    assert_refused(
        api.read(v1::ReadKeyValueRequest { consistency: unknown.clone(), ..read("t", "k") }).await,
        "consistency",
    );
    let request = v1::DeleteKeyValueRequest { consistency: unknown, ..delete("t", "k") };
    assert_refused(api.delete(request).await, "consistency");
    assert_refused(api.write(write("t", "k", vec![0; (10 << 20) + 1])).await, "value");
    let request = v1::WriteKeyValueRequest { idempotency_key: "x".repeat(257), ..write("t", "k", "v") };
    assert_refused(api.write(request).await, "idempotency_key");
    let refusal = api.read(read("t", "k")).await.expect_err("nothing was written");
    assert_eq!(refusal.reason, "KEY_NOT_FOUND");
}

#[tokio::test]
async fn only_a_context_of_this_key_is_taken() {
    let (_dev, api) = with_tenant().await;
    api.tenant("other", |_| {}).await;
    api.siblings_tenant("s").await;
    for tenant in ["t", "s"] {
        let mine = api.write(write(tenant, "k", "v")).await.expect("write").context;
        let other_key = api.write(write(tenant, "k2", "v")).await.expect("write").context;
        let other_tenant = api.write(write("other", "k", "v")).await.expect("write").context;
        let mut forged = mine.to_vec();
        forged[mine.len() / 2] ^= 1;
        let wrong = [
            other_key,
            other_tenant,
            Bytes::from(forged),
            mine.slice(..mine.len() - 1),
            mine.slice(..1),
            Bytes::from(vec![7; 4096]),
            Bytes::from(vec![7; 4097]),
        ];
        for context in wrong {
            let request = v1::WriteKeyValueRequest { context: context.clone(), ..write(tenant, "k", "w") };
            assert_refused(api.write(request).await, "context");
            let request = v1::DeleteKeyValueRequest { context, ..delete(tenant, "k") };
            assert_refused(api.delete(request).await, "context");
        }
        assert_eq!(api.read(read(tenant, "k")).await.expect("read").value, "v");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let (_dev, api) = with_tenant().await;
    let missing = (Code::NotFound, "TENANT_NOT_FOUND");
    let refusal = api.write(write("nobody", "k", "v")).await.expect_err("no tenant");
    assert_eq!(refusal.summary(), (missing.0, missing.1, "not-applied", ""));
    let refusal = api.delete(delete("nobody", "k")).await.expect_err("no tenant");
    assert_eq!(refusal.summary(), (missing.0, missing.1, "not-applied", ""));
    let refusal = api.read(read("nobody", "k")).await.expect_err("no tenant");
    assert_eq!((refusal.code, refusal.reason.as_str()), missing);

    let refusal = api.read(read("t", "k")).await.expect_err("no key");
    assert_eq!(refusal.summary(), (Code::NotFound, "KEY_NOT_FOUND", "", ""));
    // A write can also refer to the context of a missing key.
    let request = v1::WriteKeyValueRequest { context: refusal.context, ..write("t", "k", "v") };
    api.write(request).await.expect("write with the context of a key that never was");
}
