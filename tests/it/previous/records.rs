//! Idempotency records of both forms: what one version has recorded, the other one finds, and the smaller form, which the previous version
//! does not find, is written only when that can no longer start.

use std::net::SocketAddr;

use witan_wire::v1;

use crate::harness::Version::{Previous, This};
use crate::harness::{Api, Company, Process, delete, eventually, get, own_address, write};

/// A change under an idempotency key, in one of the tenants of [`tenants`].
fn pay(tenant: &str, name: &str) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { idempotency_key: name.to_owned(), ..write(tenant, name, "paid") }
}

fn close(tenant: &str, name: &str) -> v1::DeleteKeyValueRequest {
    v1::DeleteKeyValueRequest { idempotency_key: format!("close {name}"), ..delete(tenant, name) }
}

const MODES: [&str; 2] = ["register", "siblings"];

async fn tenants(api: &Api) {
    for mode in MODES {
        api.tenant(mode, |request| request.conflict_mode = mode.to_owned()).await;
    }
}

/// Carries out changes of every kind at one coordinator. Whoever finds their records gives the same answers.
async fn carry_out(api: &Api, name: &str) {
    for mode in MODES {
        let written = api.write(pay(mode, name)).await.expect("written");
        assert!(!written.is_duplicate, "{name}");
        let again = api.write(pay(mode, name)).await.expect("answered");
        assert_eq!(again, v1::WriteKeyValueResponse { is_duplicate: true, ..written }, "{name}");
        assert!(!api.delete(close(mode, name)).await.expect("deleted").is_duplicate, "{name}");
    }
}

/// Repeats them at another, which finds their records, and refuses other requests under the same keys.
async fn repeat(api: &Api, name: &str) {
    for mode in MODES {
        assert!(api.write(pay(mode, name)).await.expect("answered").is_duplicate, "{name}");
        assert!(api.delete(close(mode, name)).await.expect("answered").is_duplicate, "{name}");
        let other = v1::WriteKeyValueRequest { value: "less".into(), ..pay(mode, name) };
        let refused = api.write(other).await.expect_err("another request under the same key");
        assert_eq!(refused.reason, "IDEMPOTENCY_KEY_CONFLICT", "{name}");
    }
}

/// Records of the larger form, and all.
fn records(company: &Company) -> (usize, usize) {
    let large = company.redis.ask("KEYS witan:idempotency:*").lines().filter(|line| !line.is_empty()).count();
    (large, company.redis.ask("DBSIZE").parse().expect("a number"))
}

/// Makes changes until one has left a record of the smaller form; what else is recorded is of the larger one.
async fn until_small(company: &Company, api: &Api, name: &str) {
    let mut count = 0;
    // An event within each wait: that it is about to be written, and that it is.
    eventually("earlier versions are kept out", async || {
        let needed = company.postgres.ask("SELECT needs_schema FROM cluster_state");
        (needed.trim() == "6").then_some(())
    })
    .await;
    eventually("a record is small", async || {
        count += 1;
        carry_out(api, &format!("{name} {count}")).await;
        let (large, all) = records(company);
        (large < all).then_some(())
    })
    .await;
}

/// Tries to start a coordinator of the previous version; it refuses, and says why.
pub(super) async fn previous_refuses_to_start(company: &Company) {
    let free = SocketAddr::new(own_address(), 0);
    let command = company.command_of(Previous, "late", free, free);
    let mut late = Process::start("late", command, company.folder.path());
    assert!(!late.ended().await.success());
    assert!(late.tail().contains("newer version"), "{}", late.tail());
}

/// In a cluster that the previous version has created, and in one that this version has created and that version has joined.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_version_finds_what_the_other_has_recorded() {
    for founder in [Previous, This] {
        let mut company = Company::of_versions(&[This; 3], &[founder, This]).await;
        tenants(&company.api(1)).await;
        if founder == This {
            company.change_coordinator(0, Previous).await;
        }
        for (first, second) in [(0, 1), (1, 0)] {
            let name = format!("{founder:?} {first}");
            carry_out(&company.api(first), &name).await;
            repeat(&company.api(second), &name).await;
            repeat(&company.api(first), &name).await;
        }
        let (large, all) = records(&company);
        assert_eq!((large, all), (8, 8), "none is small");
        assert_eq!(company.postgres.ask("SELECT needs_schema FROM cluster_state").trim(), "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_keeps_small_records_and_the_previous_version_out() {
    let company = Company::of(2).await;
    tenants(&company.api(0)).await;
    carry_out(&company.api(0), "first").await;
    until_small(&company, &company.api(0), "then").await;
    let name = "last";
    carry_out(&company.api(0), name).await;
    // The other one may still write the larger form.
    for coordinator in [1, 0] {
        for name in ["first", "then 1", name] {
            repeat(&company.api(coordinator), name).await;
        }
    }
    previous_refuses_to_start(&company).await;
}

/// The operator says that no process of the previous version is left. What that version has recorded is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_cluster_keeps_small_records_when_its_operator_says_so() {
    let mut company = Company::of_versions(&[This; 3], &[Previous]).await;
    tenants(&company.api(0)).await;
    carry_out(&company.api(0), "of the previous version").await;
    let free = SocketAddr::new(own_address(), 0);
    let mut command = company.command_of(This, "new", free, free);
    command.env("WITAN_REDIS__SMALL_RECORDS", "true");
    let mut new = Process::start("new", command, company.folder.path());
    new.ready().await;
    let (api, admin) = (Api::new(new.address("address")), new.address("admin"));
    eventually("the new coordinator is ready", async || (get(admin, "/readyz").await.ok()?.0 == 200).then_some(()))
        .await;
    repeat(&api, "of the previous version").await;
    carry_out(&api, "of this version").await;
    repeat(&company.api(0), "of this version").await;
    let (large, all) = records(&company);
    assert_eq!(large, all, "the previous version has to find them");

    company.coordinators[0].process.as_mut().expect("it runs").end().await;
    until_small(&company, &api, "small").await;
    for name in ["of the previous version", "of this version", "small 1"] {
        repeat(&api, name).await;
    }
    previous_refuses_to_start(&company).await;
}
