//! An idempotency store that fills: what clients and operators see, and for how long a tenant's records are kept.

use std::net::SocketAddr;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use witan_servers::Redis;
use witan_wire::v1;

use crate::harness::{Api, Process, eventually, get, own_address, write};

/// A coordinator with a node and a Redis of its own.
struct Place {
    coordinator: Process,
    _node: Process,
    redis: Redis,
    folder: TempDir,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let redis = tokio::task::spawn_blocking(Redis::start).await.expect("Redis starts");
        let free = SocketAddr::new(own_address(), 0).to_string();
        let mut node = Process::witan();
        node.args(["node", "--id", "node-1", "--durability", "os", "--listen", &free, "--data-dir"]);
        node.arg(folder.path().join("node"));
        let mut node = Process::start("node-1", node, folder.path());
        node.ready().await;
        let address = node.address("address");
        let config = format!(
            "server: {{data_dir: data}}\nredis: {{url: '{}'}}\nstorage_nodes: [{{id: node-1, host: {}, port: {}}}]\n",
            redis.url(),
            address.ip(),
            address.port()
        );
        std::fs::write(folder.path().join("config.yaml"), config).expect("write the configuration");
        let mut command = Process::witan();
        command.arg("serve").arg("--config").arg(folder.path().join("config.yaml"));
        command.args(["--durability", "os", "--listen", &free, "--admin-listen", &free]);
        let mut coordinator = Process::start("coordinator", command, folder.path());
        coordinator.ready().await;
        Self { coordinator, _node: node, redis, folder }
    }

    fn api(&self) -> Api {
        Api::new(self.coordinator.address("address"))
    }

    /// Runs a command of the program.
    async fn witan(&self, arguments: &[&str]) -> Output {
        let mut command = Process::witan();
        command.args(arguments).arg("--endpoint").arg(format!("http://{}", self.coordinator.address("address")));
        run(command).await
    }

    /// The findings of the doctor about Redis.
    async fn findings(&self) -> Vec<String> {
        let mut command = Process::witan();
        command.args(["doctor", "--output", "json", "--timeout", "2s", "--config"]);
        let output = run({
            command.arg(self.folder.path().join("config.yaml"));
            command
        })
        .await;
        let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let about_redis = result["findings"].as_array().expect("a list").iter().filter(|one| one["about"] == "redis");
        about_redis.map(|one| format!("{} {}", one["level"], one["message"]).replace('"', "")).collect()
    }

    async fn page(&self, path: &str) -> String {
        get(self.coordinator.address("admin"), path).await.map(|(_, text)| text).unwrap_or_default()
    }
}

async fn run(mut command: Command) -> Output {
    command.env_remove("RUST_LOG");
    tokio::task::spawn_blocking(move || command.output().expect("run witan")).await.expect("run witan")
}

fn named(key: &str) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { idempotency_key: key.to_owned(), ..write("t", "k", "v") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_called_full_by_everybody() {
    let place = Place::new().await;
    let api = place.api();
    api.tenant("t", |request| request.replication_factor = 1).await;
    api.write(named("before")).await.expect("there is room");
    assert!(!place.page("/readyz").await.contains("degraded"), "{}", place.page("/readyz").await);

    let used = |share: f64| {
        let info = place.redis.ask("INFO memory");
        let field = |name: &str| -> f64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name)).expect("INFO reports it");
            line.trim().parse().expect("a number")
        };
        let counted = field("used_memory:") - field("mem_not_counted_for_evict:");
        place.redis.ask(&format!("CONFIG SET maxmemory {:.0}", counted / share));
    };
    used(0.9);
    eventually("it is filling", async || {
        place.page("/readyz").await.contains("of the idempotency store's room").then_some(())
    })
    .await;
    let findings = place.findings().await;
    assert!(findings.iter().any(|one| one.starts_with("warning") && one.contains("of its maxmemory")), "{findings:?}");
    api.write(named("still")).await.expect("there is room");

    place.redis.ask("CONFIG SET maxmemory 1");
    for of in 0..20 {
        let refused = api.write(named(&format!("refused-{of}"))).await.expect_err("there is no room");
        assert_eq!((refused.reason.as_str(), refused.outcome.as_str()), ("STORAGE_FULL", "in-doubt"));
        assert!(refused.message.contains("the idempotency store is full"), "{}", refused.message);
    }
    assert!(api.write(named("before")).await.expect("it is on record").is_duplicate);
    api.write(write("t", "other", "v")).await.expect("a change without a key needs no room");
    let ready = place.page("/readyz").await;
    assert!(ready.contains("the idempotency store is full") && ready.contains("maxmemory"), "{ready}");
    eventually("the metrics say so", async || {
        let metrics = place.page("/metrics").await;
        metrics.lines().any(|line| line == "witan_idempotency_store_full 1").then_some(())
    })
    .await;
    let findings = place.findings().await;
    assert!(findings.iter().any(|one| one.starts_with("error") && one.contains("it is full")), "{findings:?}");

    place.redis.ask("CONFIG SET maxmemory 0");
    api.write(named("after")).await.expect("there is room again");
    eventually("it is well again", async || (!place.page("/readyz").await.contains("idempotency")).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_kept_as_long_as_their_tenant_says() {
    let place = Place::new().await;
    let api = place.api();
    let create =
        ["tenant", "create", "t", "--replication-factor", "1", "--idempotency-retention", "90s", "--output", "json"];
    let created = place.witan(&create).await;
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let retention = async || {
        let request = v1::GetTenantRequest { tenant_id: "t".to_owned() };
        let tenant = api.client().get_tenant(request).await.expect("get a tenant").into_inner();
        tenant.idempotency_retention_seconds
    };
    assert_eq!(retention().await, 90);
    // The life of the only record that is there.
    let left = || {
        // Its name may be one that no word of a command can be.
        let life = place.redis.ask(r#"EVAL "return redis.call('PTTL', redis.call('RANDOMKEY'))" 0"#);
        place.redis.ask("FLUSHALL");
        life.trim().parse::<u64>().expect("a number")
    };
    api.write(named("short")).await.expect("write");
    let life = left();
    assert!((1..=90_000).contains(&life), "{life}");

    let updated = place.witan(&["tenant", "update", "t", "--idempotency-retention", "2h"]).await;
    let text = String::from_utf8_lossy(&updated.stdout).into_owned();
    assert!(text.contains("idempotency kept    2h"), "{text}");
    assert_eq!(retention().await, 7200);
    api.write(named("longer")).await.expect("write");
    let life = left();
    assert!((90_001..=7_200_000).contains(&life), "{life}");

    // Another change leaves it as it is, and what is out of range is refused on the command line already.
    let update = v1::UpdateTenantRequest {
        tenant_id: "t".to_owned(),
        default_level: "one".to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    api.client().update_tenant(update.clone()).await.expect("updated");
    assert_eq!(retention().await, 7200);
    let wrong = v1::UpdateTenantRequest { idempotency_retention_seconds: Some(0), ..update };
    assert_eq!(api.client().update_tenant(wrong).await.expect_err("out of range").code(), tonic::Code::InvalidArgument);
    for wrong in ["59s", "25h", "60500ms", "day"] {
        let refused = place.witan(&["tenant", "update", "t", "--idempotency-retention", wrong]).await;
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
    }
    let plain = place.witan(&["tenant", "create", "u", "--replication-factor", "1", "--output", "json"]).await;
    assert!(plain.status.success());
    let shown = place.witan(&["tenant", "get", "u"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("idempotency kept    24h"));
}
