//! Tokens of coordinators that share a database: created at one, valid at all; revoked at one, valid at none; and the database
//! unavailable for a while.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use witan_wire::v1;
use witan_wire::v1::access_service_client::AccessServiceClient;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;

use super::{Link, Showing, object, text};
use crate::harness::{Company, Process, channel, eventually, own_address, read};

fn link(process: &Process, token: &str) -> Link {
    InterceptedService::new(channel(process.address("address")), Showing(format!("Bearer {token}")))
}

/// The result of a read with this token.
async fn reads(process: &Process, token: &str) -> Code {
    let mut client = CoordinatorServiceClient::new(link(process, token));
    client.read_key_value(read("acme", "k")).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn coordinator(company: &Company, id: &str) -> Process {
    let config = company.folder.path().join("config.yaml");
    std::fs::write(&config, "security:\n  tokens: true\n").expect("write a file");
    let free = SocketAddr::new(own_address(), 0);
    let mut command = company.command(id, free, free);
    command.arg("--config").arg(config);
    let mut process = Process::start(id, command, company.folder.path());
    process.ready().await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_at_every_coordinator_and_revoked_at_every_one() {
    let company = Company::with(1, 0).await;
    let mut command = Process::witan();
    command.args(["token", "create", "--scope", "operator,admin", "--output", "json", "--database-url-file"]);
    let operator = text(&object(command.arg(company.folder.path().join("database"))));
    let (first, second) = (coordinator(&company, "one").await, coordinator(&company, "two").await);
    let tenant = v1::CreateTenantRequest { tenant_id: "acme".into(), replication_factor: 1, ..Default::default() };
    CoordinatorServiceClient::new(link(&first, &operator)).create_tenant(tenant).await.expect("create a tenant");

    let mut tokens = AccessServiceClient::new(link(&first, &operator));
    let mut make = async || {
        let request =
            v1::CreateTokenRequest { tenant_id: "acme".into(), scopes: vec!["read".into()], ..Default::default() };
        tokens.create_token(request).await.expect("make a token").into_inner()
    };
    let (kept, revoked) = (make().await, make().await);
    for token in [&kept.token, &revoked.token] {
        assert_eq!(reads(&second, token).await, Code::NotFound, "it is good at once, and the key has no value");
    }
    let id = revoked.info.expect("what it is").token_id;
    tokens.revoke_token(v1::RevokeTokenRequest { token_id: id }).await.expect("revoke");
    let began = Instant::now();
    assert_eq!(reads(&first, &revoked.token).await, Code::Unauthenticated, "where it was revoked, at once");
    eventually("the other coordinator refuses it, too", async || {
        (reads(&second, &revoked.token).await == Code::Unauthenticated).then_some(())
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");

    // Without the database, known tokens stay valid, and unknown ones cannot be checked.
    company.postgres.kill();
    let invented = format!("witan_nobody_{}", "0".repeat(64));
    eventually("tokens cannot be checked", async || {
        (reads(&second, &invented).await == Code::Unavailable).then_some(())
    })
    .await;
    assert_eq!(reads(&second, &kept.token).await, Code::NotFound);
    assert_eq!(reads(&second, &revoked.token).await, Code::Unavailable, "it might be new");
    company.postgres.start_again();
    eventually("it is known again who is not", async || {
        (reads(&second, &invented).await == Code::Unauthenticated).then_some(())
    })
    .await;
    assert_eq!(reads(&second, &kept.token).await, Code::NotFound);
}
