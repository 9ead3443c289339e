//! The previous version together with this one: processes of both in one cluster, one after the other on the same data, and upgrades
//! from one to the other under load.
//!
//! `cargo xtask previous` builds its program; `WITAN_PREVIOUS` names another one. [`operations`] has the operations that each
//! combination runs.

mod folder;
mod operations;
mod records;
mod upgrade;
mod zones;

use std::net::SocketAddr;
use std::process::Command;

use tonic::Code;
use tonic::metadata::AsciiMetadataValue;
use witan_wire::v1;

use crate::harness::Version::{Previous, This};
use crate::harness::{Api, Company, Process, Version, eventually, own_address, read, write};

/// The two programs must differ: otherwise, by a mistake in the build, the other tests would prove nothing.
#[test]
fn the_programs_are_two() {
    let [this, previous] = [This, Previous].map(|version| std::fs::read(version.program()).expect("read a program"));
    assert!(
        this != previous,
        "the previous version's program is the one under test; remove target/previous and run `cargo xtask previous`"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_the_previous_version_serve_this_coordinator() {
    let mut company = Company::of_versions(&[Previous; 3], &[This]).await;
    operations::all(&company, 0, 0).await;
    operations::a_node_that_was_away(&mut company, 1, Previous, [0, 0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_this_version_serve_a_coordinator_of_the_previous_one() {
    let mut company = Company::of_versions(&[This; 3], &[Previous]).await;
    operations::all(&company, 0, 0).await;
    operations::a_node_that_was_away(&mut company, 1, This, [0, 0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_of_both_versions_share_nodes_of_both() {
    let mut company = Company::of_versions(&[Previous, This, Previous], &[Previous, This]).await;
    operations::all(&company, 0, 1).await;
    operations::all(&company, 1, 0).await;
    operations::a_node_that_was_away(&mut company, 0, Previous, [0, 1]).await;
    operations::a_node_that_was_away(&mut company, 1, This, [1, 0]).await;
    for client in [Previous, This] {
        for coordinator in 0..2 {
            a_client(&company, client, coordinator).await;
        }
    }
    tokens(&company).await;
}

/// What only this version can read is issued while every live coordinator is of this version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_writes_for_a_coordinator_of_the_previous_version_while_there_is_one() {
    let mut company = Company::of_versions(&[This; 3], &[This, This]).await;
    company.api(0).siblings_tenant("shop").await;
    company.api(0).write(write("shop", "k", "v")).await.expect("written");
    let issued = async |company: &Company, by: usize| company.api(by).values(read("shop", "k")).await.expect("read").1;
    let of_this = issued(&company, 0).await;
    company.change_coordinator(1, Previous).await;
    let of_previous = issued(&company, 1).await;
    assert!(of_previous.len() < of_this.len());
    eventually("its contexts are for the previous version", async || {
        (issued(&company, 0).await.len() == of_previous.len()).then_some(())
    })
    .await;
    let change = v1::WriteKeyValueRequest { context: issued(&company, 0).await, ..write("shop", "k", "w") };
    company.api(1).write(change).await.expect("it can be read there");
    assert_eq!(company.api(0).values(read("shop", "k")).await.expect("read").0, ["w"]);
    company.change_coordinator(1, This).await;
    eventually("its contexts are for this version", async || {
        (issued(&company, 0).await.len() == of_this.len()).then_some(())
    })
    .await;
}

/// A coordinator of the previous version writes to whatever store a node has, and counts what it acknowledges. A node that knows
/// that its store is not on record does not let it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_of_the_previous_version_cannot_count_an_unmounted_disk() {
    let mut company = Company::of_versions(&[This; 3], &[Previous, This]).await;
    company.api(0).siblings_tenant("shop").await;
    company.api(0).write(write("shop", "before", "v")).await.expect("written");
    company.end_node(2).await;
    let (folder, aside) = (company.node_folder(2), company.node_folder(2).with_extension("aside"));
    std::fs::rename(&folder, &aside).expect("move a folder");
    company.start_node_alone(2, This).await;
    eventually("both coordinators have met the empty store", async || {
        let [old, new] = [company.node_at(0, 2).await, company.node_at(1, 2).await];
        (old.write_only && new.store_use == "unadmitted").then_some(())
    })
    .await;

    company.end_node(0).await;
    let mut acknowledged = 0;
    for n in 0..20 {
        acknowledged += usize::from(company.api(0).write(write("shop", &format!("k{n}"), "v")).await.is_ok());
    }
    assert_eq!(acknowledged, 0, "one whole node is no quorum");
    company.start_node_alone(0, This).await;

    company.end_node(2).await;
    std::fs::remove_dir_all(&folder).expect("remove a folder");
    std::fs::rename(&aside, &folder).expect("move a folder");
    company.start_node(2, This).await;
    for coordinator in 0..2 {
        company.api(coordinator).write(write("shop", "after", "v")).await.expect("written");
        company.api(coordinator).read(read("shop", "before")).await.expect("found");
    }
}

/// A node of the previous version would serve whom a fence refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_previous_version_does_not_open_a_node_that_has_a_fence() {
    let mut company = Company::of(1).await;
    let api = company.api(0);
    api.tenant("shop", |_| {}).await;
    let change = v1::UpdateTenantRequest {
        tenant_id: "shop".to_owned(),
        ordering: "clock".to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    api.client().update_tenant(change).await.expect("in force");
    company.end_node(2).await;
    let mut node = company.node_process(2, Previous);
    assert!(!node.ended().await.success());
    assert!(node.tail().contains("unknown codec version"), "{}", node.tail());
    // Nothing was lost by the attempt.
    company.start_node(2, This).await;
    api.write(write("shop", "k", "v")).await.expect("written");
}

/// The command line of one version with a coordinator of either.
async fn a_client(company: &Company, client: Version, coordinator: usize) {
    let tenant = format!("client-{client:?}-{coordinator}");
    let run = async |arguments: &[&str]| {
        let mut command = client.witan();
        command.args(arguments).args(["--timeout", "60s"]);
        command.env("WITAN_ENDPOINT", format!("http://{}", company.coordinators[coordinator].address));
        printed(command).await
    };
    run(&["tenant", "create", &tenant]).await;
    run(&["kv", "put", "-t", &tenant, "k", "v"]).await;
    assert_eq!(run(&["kv", "get", "-t", &tenant, "k"]).await, "v");
    assert!(run(&["kv", "list", "-t", &tenant]).await.contains('k'));
    assert!(run(&["nodes", "list"]).await.contains("node-3"));
    run(&["repair", "--tenant", &tenant]).await;
}

/// The output of a command that must succeed.
async fn printed(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || {
        let output = command.output().expect("run witan");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    });
    String::from_utf8(output.await.expect("it ran").stdout).expect("text")
}

/// Tokens created by either version, at coordinators of both that require one: valid at both, and revoked at both.
async fn tokens(company: &Company) {
    company.api(0).tenant("guarded", |_| {}).await;
    let mut guarded = Vec::new();
    for version in [Previous, This] {
        guarded.push(asking(company, version).await);
    }
    for maker in [Previous, This] {
        a_token(company, &guarded, maker).await;
    }
}

async fn a_token(company: &Company, guarded: &[Process], maker: Version) {
    let database = company.folder.path().join("database");
    let token = async |arguments: &[&str]| {
        let mut command = maker.witan();
        command.arg("token").args(arguments).args(["--output", "json", "--database-url-file"]).arg(&database);
        serde_json::from_str::<serde_json::Value>(&printed(command).await).expect("an object")
    };
    let made = token(&["create", "--scope", "read", "--tenant", "guarded"]).await;
    let shown = format!("Bearer {}", made["token"].as_str().expect("a token"));
    let shown: AsciiMetadataValue = shown.parse().expect("a header");
    let reads = async |process: &Process| {
        let mut request = tonic::Request::new(read("guarded", "k"));
        request.metadata_mut().insert("authorization", shown.clone());
        let answer = Api::new(process.address("address")).client().read_key_value(request).await;
        answer.expect_err("there is nothing to read").code()
    };
    for process in guarded {
        assert_eq!(reads(process).await, Code::NotFound, "it is let in, and finds nothing");
    }
    token(&["revoke", made["token_id"].as_str().expect("an id")]).await;
    for process in guarded {
        eventually("a revoked token is refused", async || {
            (reads(process).await == Code::Unauthenticated).then_some(())
        })
        .await;
    }
}

/// Another coordinator of the cluster, which requires tokens.
async fn asking(company: &Company, version: Version) -> Process {
    let config = company.folder.path().join("asking.yaml");
    std::fs::write(&config, "security:\n  tokens: true\n").expect("write a file");
    let free = SocketAddr::new(own_address(), 0);
    let id = format!("asking-{version:?}");
    let mut command = company.command_of(version, &id, free, free);
    command.arg("--config").arg(config);
    let mut process = Process::start(&id, command, company.folder.path());
    process.ready().await;
    process
}

/// Runs a repair, and returns the last report.
async fn repair(api: &Api, request: v1::CoordinatorServiceRepairRequest) -> v1::CoordinatorServiceRepairResponse {
    let mut reports = api.client().repair(request).await.expect("repair").into_inner();
    let mut last = None;
    while let Some(report) = reports.message().await.expect("a report") {
        last = Some(report);
    }
    last.expect("a last report")
}
