//! Repetitions of `siblings` writes whose coordinator was killed between storing and recording.

use tonic::Code;
use witan_wire::v1;

use crate::harness::{Company, Refusal, eventually, read, write};

/// Other writes to the key: more than the names that replicas keep.
const OTHERS: usize = 75;

/// A write that is stored, and not on record under its idempotency key: its coordinator was killed, with Redis away.
async fn stored_and_not_recorded(company: &mut Company, change: &v1::WriteKeyValueRequest) {
    let records = |company: &Company| company.redis.ask("DBSIZE").parse::<usize>().expect("a number");
    let before = records(company);
    company.stop_nodes().await;
    let (api, sent) = (company.api(0).without_deadline(), change.clone());
    let answer = tokio::spawn(async move { api.write(sent).await });
    eventually("it is claimed", async || (records(company) > before).then_some(())).await;
    company.redis.kill();
    company.resume_nodes();
    let (tenant, key) = (change.tenant_id.as_str(), change.key.as_str());
    eventually("it is stored", async || company.api(1).read(read(tenant, key)).await.ok()).await;
    company.coordinators[0].process = None;
    answer.await.expect("no panic").expect_err("its coordinator is gone");
    company.redis.start_again();
}

/// The context of a read.
async fn context(company: &Company, key: &str) -> bytes::Bytes {
    company.api(1).values(read("shop", key)).await.expect("read").1
}

/// The answer to a repetition, once the claim of the killed coordinator has run out.
async fn repeated(company: &Company, change: &v1::WriteKeyValueRequest) -> Result<v1::WriteKeyValueResponse, Refusal> {
    let api = company.api(1).without_deadline();
    eventually("the claim runs out", async || match api.write(change.clone()).await {
        // On a busy machine, Redis may take longer than a deadline to be connected again.
        Err(refused) if ["IN_PROGRESS", "DEADLINE"].contains(&refused.reason.as_str()) => None,
        answer => Some(answer),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_settles_or_says_that_nobody_can_tell() {
    let mut company = Company::of(2).await;
    company.api(1).siblings_tenant("shop").await;
    let named =
        |key: &str| v1::WriteKeyValueRequest { idempotency_key: format!("order {key}"), ..write("shop", key, "w") };

    // It is live beside the other writes: the repetition finds it, and it happens once.
    let change = named("beside");
    stored_and_not_recorded(&mut company, &change).await;
    let mut context_of_others = bytes::Bytes::new();
    for n in 0..OTHERS {
        let other = v1::WriteKeyValueRequest { context: context_of_others, ..write("shop", "beside", n.to_string()) };
        context_of_others = company.api(1).write(other).await.expect("written").context;
    }
    repeated(&company, &change).await.expect("it is known");
    let (mut values, _) = company.api(1).values(read("shop", "beside")).await.expect("read");
    values.sort();
    assert_eq!(values, [(OTHERS - 1).to_string().as_bytes(), b"w"], "once, beside what is concurrent with it");

    // It was replaced, and its name is forgotten: nobody can tell, and the answer says that and what to do.
    company.start(0).await;
    let change = named("replaced");
    stored_and_not_recorded(&mut company, &change).await;
    for n in 0..OTHERS {
        let context = context(&company, "replaced").await;
        let other = v1::WriteKeyValueRequest { context, ..write("shop", "replaced", n.to_string()) };
        company.api(1).write(other).await.expect("written");
    }
    let refused = repeated(&company, &change).await.expect_err("nobody knows");
    assert_eq!(
        (refused.code, &refused.reason[..], &refused.outcome[..]),
        (Code::Aborted, "OUTCOME_FORGOTTEN", "in-doubt"),
        "{refused:?}"
    );
    assert!(refused.message.contains("read it") && refused.message.contains("new idempotency key"), "{refused:?}");
    let (values, _) = company.api(1).values(read("shop", "replaced")).await.expect("read");
    assert_eq!(values, [(OTHERS - 1).to_string().as_bytes()], "and it has not come back");
}
