//! Zones, which the previous version does not know.

use tonic::Code;
use witan_wire::v1;

use super::records::previous_refuses_to_start;
use crate::harness::Version::{Previous, This};
use crate::harness::{Company, Refusal, eventually};

/// It would place keys as if there were no zones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_node_gets_a_zone_while_there_is_a_coordinator_of_the_previous_version() {
    let mut company = Company::of_versions(&[This; 3], &[This, This]).await;
    company.change_coordinator(1, Previous).await;
    let update =
        v1::UpdateStorageNodeRequest { node_id: "node-1".to_owned(), virtual_nodes: None, zone: Some("a".to_owned()) };
    let refused: Refusal =
        company.api(0).client().update_storage_node(update.clone()).await.expect_err("refused").into();
    assert_eq!((refused.code, &*refused.reason), (Code::FailedPrecondition, "NODE_TOO_OLD"), "{refused:?}");
    assert!(refused.message.contains("coordinator-2"), "{}", refused.message);
    let schema = company.postgres.ask("SELECT needs_schema FROM cluster_state");
    assert!(schema.trim().parse::<u64>().is_ok_and(|schema| schema < 10), "{schema}");
    let nodes = company.postgres.ask("SELECT COUNT(*) FROM storage_nodes WHERE zone <> ''");
    assert_eq!(nodes.trim(), "0");
    company.change_coordinator(1, This).await;
    eventually("the node has a zone", async || company.api(0).client().update_storage_node(update.clone()).await.ok())
        .await;
    assert_eq!(company.postgres.ask("SELECT needs_schema FROM cluster_state").trim(), "10");
    previous_refuses_to_start(&company).await;
}
