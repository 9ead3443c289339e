//! The configuration of a coordinator by file, environment and flags; its reload while the coordinator serves; and the output of
//! `witan config` and `witan doctor`.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use tonic::Request;
use witan_servers::{Postgres, Redis};
use witan_wire::v1;

use crate::harness::{Api, Process, eventually, get, own_address, write};

/// A storage node, and a folder for a coordinator's configuration.
struct Place {
    node: Process,
    folder: TempDir,
    address: IpAddr,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let address = own_address();
        let mut command = Process::witan();
        command
            .args(["node", "--id", "node-1", "--durability", "os"])
            .arg("--data-dir")
            .arg(folder.path().join("node"));
        command.args(["--listen", &SocketAddr::new(address, 0).to_string()]);
        let mut node = Process::start("node-1", command, folder.path());
        node.ready().await;
        Self { node, folder, address }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Writes the file: the settings that every test needs, and `more`.
    fn write(&self, more: &str) {
        let node = self.node.address("address");
        let data = self.folder.path().join("coordinator");
        let text = format!(
            "server:\n  host: {}\n  port: 0\n  data_dir: {}\nstorage_nodes:\n  - {{id: node-1, host: {}, port: {}}}\n\
             durability: os\n{more}",
            self.address,
            data.display(),
            node.ip(),
            node.port()
        );
        // In one step, as editors and Kubernetes do.
        let whole = self.folder.path().join("config.new");
        std::fs::write(&whole, text).expect("write the file");
        // It may contain passwords.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&whole, mode).expect("keep it from others");
        std::fs::rename(whole, self.file()).expect("put the file in its place");
    }

    async fn start(&self, change: impl FnOnce(&mut Command)) -> Process {
        let mut command = Process::witan();
        command.arg("serve").arg("--config").arg(self.file());
        change(&mut command);
        let mut process = Process::start("coordinator", command, self.folder.path());
        process.ready().await;
        process
    }
}

/// Runs a command that terminates.
async fn run(mut command: Command) -> Output {
    command.env_remove("RUST_LOG");
    tokio::task::spawn_blocking(move || command.output().expect("run witan")).await.expect("run witan")
}

fn witan(arguments: &[&str]) -> Command {
    let mut command = Process::witan();
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn tenant(api: &Api, id: &str) -> v1::GetTenantResponse {
    api.tenant(id, |request| request.replication_factor = 1).await;
    let request = v1::GetTenantRequest { tenant_id: id.to_owned() };
    api.client().get_tenant(request).await.expect("get a tenant").into_inner()
}

#[tokio::test]
async fn what_is_stored_stays_where_it_is_whatever_the_file_says_of_virtual_nodes() {
    let place = Place::new().await;
    place.write("");
    let admin = |command: &mut Command| {
        command.args(["--admin-listen", &SocketAddr::new(place.address, 0).to_string()]);
    };
    let mut first = place.start(admin).await;
    let virtual_nodes = async |coordinator: &Process| {
        let api = Api::new(coordinator.address("address"));
        let listed =
            api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("listed").into_inner();
        listed.nodes.iter().map(|node| node.virtual_nodes).collect::<Vec<_>>()
    };
    assert_eq!(virtual_nodes(&first).await, [150]);
    first.end().await;
    // The old ring still places all keys.
    place.write("hash_ring: {virtual_nodes: 7}\n");
    let second = place.start(admin).await;
    assert_eq!(virtual_nodes(&second).await, [150]);
    assert!(second.tail().contains("what is configured has no effect"), "{}", second.tail());
}

/// Waits until a metric has this value.
async fn counted(admin: SocketAddr, path: &str, line: &str) {
    eventually(line, async || {
        let (_, metrics) = get(admin, path).await.ok()?;
        metrics.lines().any(|shown| shown == line).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_is_told_by_file_environment_and_flags() {
    let place = Place::new().await;
    place.write(&format!(
        "metrics: {{host: {}, port: 0, path: /numbers}}\nconsistency: {{default_level: all, repair_async: true}}\n",
        place.address
    ));
    let process = place
        .start(|command| {
            command.env("WITAN_CONSISTENCY__REPAIR_ASYNC", "false").args(["--node-id", "of-a-flag"]);
        })
        .await;
    let api = Api::new(process.address("address"));
    let created = tenant(&api, "t").await;
    assert_eq!((created.default_level.as_str(), created.read_repair.as_str()), ("all", "blocking"));
    api.write(write("t", "k", "v")).await.expect("write");

    let admin = process.address("admin");
    let (status, metrics) = get(admin, "/numbers").await.expect("metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("witan_build_info{version="), "{metrics}");
    assert_eq!(get(admin, "/metrics").await.expect("an answer").0, 404);
    assert_eq!(get(admin, "/livez").await.expect("an answer").0, 200);
}

#[tokio::test]
async fn a_request_has_an_id_that_its_error_tells() {
    let place = Place::new().await;
    place.write(&format!("metrics: {{host: {}, port: 0}}\n", place.address));
    let process = place.start(|_| {}).await;
    let mut client = Api::new(process.address("address")).client();
    let mut ask = async |id: Option<&str>| {
        let mut request = Request::new(v1::GetTenantRequest { tenant_id: "nobody".to_owned() });
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().expect("ASCII"));
        }
        let status = client.get_tenant(request).await.expect_err("there is none");
        let id = status.metadata().get("x-request-id").expect("an id").to_str().expect("ASCII");
        id.to_owned()
    };
    assert_eq!(ask(Some("order-7/retry:2")).await, "order-7/retry:2");
    let (first, second) = (ask(None).await, ask(None).await);
    assert!(!first.is_empty() && first != second);
    for hostile in ["two words", "\"quoted\"", &"x".repeat(129)] {
        assert_ne!(ask(Some(hostile)).await, hostile);
    }
}

#[tokio::test]
async fn what_can_be_changed_is_changed_while_it_serves() {
    let place = Place::new().await;
    let metrics = format!("metrics: {{host: {}, port: 0}}\n", place.address);
    place.write(&format!("{metrics}consistency: {{default_level: all}}\n"));
    let process = place.start(|_| {}).await;
    let (api, admin) = (Api::new(process.address("address")), process.address("admin"));
    assert_eq!(tenant(&api, "before").await.default_level, "all");

    place.write(&format!("{metrics}consistency: {{default_level: one}}\nhash_ring: {{virtual_nodes: 10}}\n"));
    counted(admin, "/metrics", "witan_config_reloads_total{result=\"applied\"} 1").await;
    eventually("the new level is in force", async || {
        let id = format!("after-{}", rand::random::<u64>());
        (tenant(&api, &id).await.default_level == "one").then_some(())
    })
    .await;
    let log = process.tail();
    assert!(log.contains("hash_ring.virtual_nodes") && log.contains("need a restart"), "{log}");

    // An invalid file changes nothing.
    place.write(&format!("{metrics}consistency: {{default_level: quorom}}\n"));
    counted(admin, "/metrics", "witan_config_reloads_total{result=\"refused\"} 1").await;
    assert_eq!(tenant(&api, "meanwhile").await.default_level, "one");
    assert!(process.tail().contains("did you mean quorum?"), "{}", process.tail());

    place.write(&format!("{metrics}consistency: {{default_level: quorum}}\n"));
    counted(admin, "/metrics", "witan_config_reloads_total{result=\"applied\"} 2").await;
    process.signal("HUP");
    counted(admin, "/metrics", "witan_config_reloads_total{result=\"unchanged\"} 1").await;
}

#[tokio::test]
async fn wrong_configurations_are_refused_with_everything_that_is_wrong() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("config.yaml");
    let path = file.to_str().expect("UTF-8");
    let seed = include_str!("../../host/config/tests/seed.yaml");
    std::fs::write(&file, seed).expect("write");
    let refused = run(witan(&["config", "check", path])).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("security.allow_anonymous: true"), "{}", text(&refused.stderr));
    let refused = run(witan(&["serve", "--config", path])).await;
    assert_eq!(refused.status.code(), Some(1), "it must not serve");

    std::fs::write(&file, format!("{seed}security: {{allow_anonymous: true}}\n")).expect("write");
    let fine = run(witan(&["config", "check", "--output", "json", path])).await;
    assert_eq!(fine.status.code(), Some(0), "{}", text(&fine.stderr));
    let result: Value = serde_json::from_slice(&fine.stdout).expect("JSON");
    assert_eq!(result["valid"], true);
    assert!(result["notes"].as_array().expect("a list").iter().any(|note| note["key"] == "redis.pool_size"));

    let shown = run(witan(&["config", "print", "--config", path])).await;
    let shown = text(&shown.stdout);
    assert!(shown.contains("password: \"***\"") && !shown.contains("secret\""), "{shown}");

    let mut command = witan(&["config", "check", path]);
    command.env("WITAN_SERVER__PROT", "1");
    let refused = run(command).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("WITAN_SERVER__PORT"), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn paths_of_a_file_begin_in_its_folder() {
    let place = Place::new().await;
    let here = place.folder.path().join("here");
    std::fs::create_dir(&here).expect("make a folder");
    let metrics = format!("metrics: {{host: {}, port: 0}}\n", place.address);
    // `plugins` is beside the file, `audit` only in the working directory, where it used to be looked for.
    std::fs::create_dir(place.folder.path().join("plugins")).expect("make a folder");
    std::fs::create_dir(here.join("audit")).expect("make a folder");
    place.write(&format!("{metrics}plugins: {{folder: plugins}}\nsecurity: {{audit: {{file: audit/log}}}}\n"));
    std::fs::write(here.join("audit/log"), "").expect("write");
    let text = std::fs::read_to_string(place.file()).expect("the file");
    let data = format!("data_dir: {}", place.folder.path().join("coordinator").display());
    std::fs::write(place.file(), text.replace(&data, "data_dir: own/data")).expect("write the file");

    let process = place.start(|command| _ = command.current_dir(&here)).await;
    assert!(place.folder.path().join("own/data/metadata.db").exists(), "the data is beside the file");
    assert!(!here.join("own").exists());
    let lines = process.tail();
    let moved: Vec<&str> = lines.lines().filter(|line| line.contains("in the working directory is used")).collect();
    let (expected, found) = (place.folder.path().join("audit/log"), here.join("audit/log"));
    assert_eq!(moved.len(), 1, "one warning: {lines}");
    for part in ["WARN", "security.audit.file", &expected.display().to_string(), &found.display().to_string()] {
        assert!(moved[0].contains(part), "{part} is not in {}", moved[0]);
    }
    tenant(&Api::new(process.address("address")), "t").await;
    eventually("the audit log has an entry", async || (found.metadata().ok()?.len() > 0).then_some(())).await;
    assert!(!expected.exists());
    drop(process);

    // The environment and flags begin in the working directory, and the result is shown with whole paths.
    let mut command = witan(&["config", "print", "--output", "json", "--config", "../config.yaml"]);
    command.current_dir(&here).env("WITAN_PLUGINS__FOLDER", "plugins");
    let shown: Value = serde_json::from_slice(&run(command).await.stdout).expect("JSON");
    let value = |key: &str| {
        let keys = shown["keys"].as_array().expect("keys").iter();
        keys.clone().find(|shown| shown["key"] == key).expect("every key is shown")["value"].clone()
    };
    assert_eq!(value("plugins.folder"), "plugins");
    let data = PathBuf::from(value("server.data_dir").as_str().expect("a path"));
    assert_eq!(data, here.join("../own/data"));
}

#[tokio::test]
async fn what_is_not_text_and_what_only_a_shell_replaces_is_refused_with_advice() {
    use std::os::unix::ffi::OsStrExt;
    let garbled = std::ffi::OsStr::from_bytes(b"\xff");
    let refused = async |arguments: &[&str], variable: &str| {
        let mut command = witan(arguments);
        if !variable.is_empty() {
            command.env(variable, garbled);
        }
        let output = run(command).await;
        assert!(!output.status.success(), "{arguments:?} {variable}");
        text(&output.stderr)
    };
    for (arguments, variable) in [
        (&["config", "check"][..], "WITAN_SERVER__PORT"),
        (&["config", "check"], "WITAN_DATABASE__PASSWORD"),
        (&["tenant", "get", "t"], "WITAN_ENDPOINT"),
    ] {
        let message = refused(arguments, variable).await;
        assert!(message.contains(variable) && message.contains("is not UTF-8"), "{message}");
    }
    // A token that cannot be read is not the same as no token.
    let message = refused(&["tenant", "get", "t"], "WITAN_TOKEN").await;
    assert!(message.contains("WITAN_TOKEN: is not a token"), "{message}");
    for arguments in [
        &["serve", "--data-dir=~/data"][..],
        &["node", "--id", "n", "--data-dir=~/data"],
        &["config", "check", "~/config.yaml"],
        &["kv", "put", "-t", "t", "k", "@~/value"],
        &["--ca-file=~/ca.pem", "tenant", "get", "t"],
    ] {
        let message = refused(arguments, "").await;
        assert!(message.contains("begins with ~") && message.contains("/home/NAME"), "{arguments:?}: {message}");
    }
    let message = refused(&["--endpoint", "coordinator:50051", "tenant", "get", "t"], "").await;
    assert!(message.contains("has no scheme: write http://coordinator:50051"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_to_do() {
    let place = Place::new().await;
    let servers = tokio::task::spawn_blocking(|| {
        (Postgres::start(), Redis::start(), Postgres::start_with(&[("synchronous_commit", "off")]))
    });
    let (postgres, redis, careless) = servers.await.expect("the servers start");
    let stores = |database: &str, redis: &str| format!("database: {{url: '{database}'}}\nredis: {{url: '{redis}'}}\n");
    let examine = async || {
        let nobody = format!("http://{}", SocketAddr::new(place.address, 1));
        let mut command = witan(&["doctor", "--output", "json", "--timeout", "2s", "--endpoint", &nobody, "--config"]);
        command.arg(place.file());
        let output = run(command).await;
        let result: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        let findings = result["findings"].as_array().expect("a list").iter();
        let lines: Vec<String> = findings
            .map(|finding| {
                format!("{} {}: {}", finding["level"], finding["about"], finding["message"]).replace('"', "")
            })
            .collect();
        (output.status.code(), lines)
    };
    let said = |lines: &[String], start: &str, part: &str| {
        assert!(
            lines.iter().any(|line| line.starts_with(start) && line.contains(part)),
            "{start} {part} in\n{lines:#?}"
        );
    };

    place.write(&stores(&postgres.url(), &redis.url()));
    let (code, lines) = examine().await;
    // The disk of this machine may be rather full, which is a warning.
    let warnings: Vec<_> = lines.iter().filter(|line| line.starts_with("warning")).collect();
    assert!(warnings.iter().all(|line| line.contains("its disk is")), "{lines:#?}");
    assert_eq!(code, Some(if warnings.is_empty() { 0 } else { 4 }), "{lines:#?}");
    said(&lines, "ok redis", "answers");
    said(&lines, "ok postgresql", "answers");
    said(&lines, "note postgresql", "no schema yet");
    said(&lines, "ok node node-1", "answers");
    said(&lines, "note coordinator", "--endpoint");

    redis.ask("CONFIG SET maxmemory-policy allkeys-lru");
    place.write(&stores(&careless.url(), &redis.url()));
    let (code, lines) = examine().await;
    assert_eq!(code, Some(1), "{lines:#?}");
    said(&lines, "error postgresql", "synchronous_commit");
    said(&lines, "error redis", "set it to noeviction");
}
